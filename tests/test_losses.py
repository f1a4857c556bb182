"""The losses say what their names say, and 255 never counts."""

import math

import pytest
import torch
from torch import Tensor

from hetecd.losses import (
    channel_alignment,
    cross_entropy,
    deep_supervision,
    fca_loss,
    label_aware_alignment,
    lovasz_hinge,
    released_dice,
    soft_dice,
    spatial_alignment,
)
from hetecd.metrics import confusion
from hetecd.model import Features


def _certain(label: Tensor, confidence: float = 20.0) -> Tensor:
    """Logits of a (nearly) perfect prediction."""
    changed = (label == 1).float()
    return torch.stack([(1 - changed) * confidence, changed * confidence], 1)


@pytest.fixture
def label() -> Tensor:
    label = torch.zeros(1, 40, 50, dtype=torch.uint8)
    label[:, :6, :10] = 1  # 3 % changed
    return label


def test_soft_dice_is_lowest_for_a_perfect_prediction(label: Tensor) -> None:
    perfect = soft_dice(_certain(label), label)
    none = soft_dice(_certain(torch.zeros_like(label)), label)
    unsure = soft_dice(torch.zeros(1, 2, 40, 50), label)
    assert perfect < 1e-6
    assert perfect < unsure < none
    # 2 * 0.5 * 60 + 1 over 0.5 * 2000 + 60 + 1
    assert unsure.item() == pytest.approx(1 - 61 / 1061)


def test_released_dice_prefers_doubt_as_reported(label: Tensor) -> None:
    values = [
        released_dice(logits, label).item()
        for logits in (_certain(label), _certain(torch.zeros_like(label)), torch.zeros(1, 2, 40, 50))
    ]
    assert values == pytest.approx([0.50, 0.508, 0.34], abs=0.005)


def test_ignored_pixels_do_not_count(label: Tensor) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 40, 50)
    label[:, 20:] = 255
    other = logits.clone()
    other[:, :, 20:] = 100 * torch.randn(1, 2, 20, 50)
    for loss in (cross_entropy, soft_dice, released_dice):
        assert loss(logits, label).item() == loss(other, label).item()
        assert loss(logits, label).item() == pytest.approx(loss(logits[:, :, :20], label[:, :20]).item())


def test_a_batch_without_any_pixel_that_counts_gives_zero_and_no_nan() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    label = torch.full((1, 4, 4), 255)
    loss = cross_entropy(logits, label) + soft_dice(logits, label)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_cross_entropy_weights_classes() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 1] = math.log(3)  # second pixel: p = (0.75, 0.25)
    label = torch.tensor([[[0, 1]]])
    wanted = (0.1 * math.log(2) + 0.9 * math.log(4)) / 1.0
    assert cross_entropy(logits, label, (0.1, 0.9)).item() == pytest.approx(wanted)


def test_alignment_by_hand() -> None:
    # One channel, two pixels; T = 1, softmax over pixels of (log 3, 0) is (3/4, 1/4), of (0, 0) is (1/2, 1/2).
    optical = torch.tensor([math.log(3.0), 0.0]).view(1, 1, 1, 2)
    sar = torch.zeros(1, 1, 1, 2)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert channel_alignment(optical, sar, temperature=1.0).item() == pytest.approx(kl)
    # Two channels at one pixel: the same numbers over channels.
    assert spatial_alignment(optical.view(1, 2, 1, 1), sar.view(1, 2, 1, 1), 1.0).item() == pytest.approx(kl)
    # With temperature T the features are divided by T and the sum multiplied by T squared.
    assert channel_alignment(2 * optical, sar, temperature=2.0).item() == pytest.approx(4 * kl)


def test_alignment_is_zero_for_equal_features_and_pulls_both_branches() -> None:
    maps = [torch.randn(2, 8, 4, 4) for _ in range(2)]
    assert fca_loss(Features((maps[0], maps[1]), (maps[0], maps[1]), [])).item() == pytest.approx(0, abs=1e-6)
    optical, sar = (torch.randn(2, 8, 4, 4, requires_grad=True) for _ in range(2))
    fca_loss(Features((optical, optical), (sar, sar), [])).backward()
    assert optical.grad is not None
    assert optical.grad.abs().sum() > 0
    assert sar.grad is not None
    assert sar.grad.abs().sum() > 0


def test_lovasz_hinge_of_certain_maps_is_one_minus_iou(label: Tensor) -> None:
    torch.manual_seed(0)
    wrong = torch.rand(label.shape) < 0.1
    pred = torch.where(wrong, 1 - label, label)
    label[:, 30:] = 255
    iou = confusion(pred.numpy(), label.numpy()).scores()["iou"]
    # A margin of 1 is where the hinge is 0 for right and 2 for wrong decisions, whose steps sum up to the loss.
    assert lovasz_hinge(_certain(pred, 1.0), label).item() == pytest.approx(2 * (1 - iou), rel=1e-5)
    assert lovasz_hinge(_certain(label.clamp_max(1), 1.0), label).item() == 0
    logits = torch.zeros(1, 2, 40, 50, requires_grad=True)
    lovasz_hinge(logits, torch.full((1, 40, 50), 255)).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_deep_supervision_by_hand() -> None:
    label = torch.zeros(1, 32, 64, dtype=torch.uint8)
    label[:, :, 16:32] = 1  # half of the left cell changed
    label[:, :, 48:] = 255  # half of the right cell counts
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]).view(1, 2, 1, 2)  # p = (1/2, 1/2), (3/4, 1/4)
    wanted = (math.log(2) + 0.5 * math.log(4 / 3)) / 1.5
    assert deep_supervision([logits], label).item() == pytest.approx(wanted)
    fine = torch.zeros(1, 2, 2, 4)
    assert deep_supervision([logits, fine], label).item() == pytest.approx((wanted + math.log(2)) / 2)
    # Tiles that are no multiple of 32 are padded by the network, and the padding does not count.
    assert deep_supervision([logits], label[:, :20, :50]).isfinite()
    assert deep_supervision([logits], label[:, :32, :32]).item() != pytest.approx(wanted)
    assert deep_supervision([logits], torch.full_like(label, 255)).item() == 0


def test_label_aware_alignment_pulls_what_stayed_and_pushes_what_changed() -> None:
    label = torch.zeros(1, 32, 32, dtype=torch.uint8)
    label[:, :, 16:] = 1
    same = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    other = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    good = torch.cat((same[..., :1], other[..., :1]), -1)  # alike on the left, different on the right
    bad = good.flip(-1)

    def loss(sar: Tensor) -> float:
        return label_aware_alignment(Features((same, same), (sar, sar), []), label).item()

    assert loss(good) == pytest.approx(0, abs=1e-6)
    assert loss(bad) == pytest.approx(1)
    assert loss(same) == pytest.approx(0.5)  # the published alignment is content with this
    label[:, :, 16:] = 255
    assert loss(bad) == pytest.approx(1)
    assert loss(same) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_computed_in_float32(dtype: torch.dtype, label: Tensor) -> None:
    logits = torch.randn(1, 2, 40, 50).to(dtype)
    for loss in (cross_entropy, soft_dice, released_dice, lovasz_hinge):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(logits, label), loss(logits.float(), label))
        assert loss(logits, label).dtype == torch.float32
