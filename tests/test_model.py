"""The network gives the published network's numbers, and takes any size and any number of channels."""

import copy
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hetecd import ops
from hetecd.config import ModelConfig
from hetecd.convert import _published_name, convert_hetecd
from hetecd.difference import Correlation, Difference, SpatialAttention, Volumes, conv_gelu
from hetecd.encoder import Attention
from hetecd.errors import ConfigError, InputError
from hetecd.losses import cross_entropy, fca_loss, released_dice
from hetecd.model import FLAT, HeteCD, standardised
from hetecd.ops import freeze


@pytest.fixture(scope="module")
def published() -> dict[int, HeteCD]:
    """Networks filled with the parity weights, by decoder width; made once."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "parity"
    if not folder.is_dir():
        pytest.skip("needs ../shared/parity, which is absent")
    return {width: convert_hetecd(parity.state_dict(folder, f"keys_e{width}.json")) for width in (64, 256)}


def _statistics(x: Tensor) -> np.ndarray:
    """(B, C, h, w) -> (2, C): mean and population standard deviation per channel."""
    return torch.stack([x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)]).detach().numpy()


def _watch(net: HeteCD) -> dict[str, np.ndarray]:
    """Record the statistics that the parity numbers give for the inside of the network."""
    seen: dict[str, np.ndarray] = {}

    def record(name: str, layout: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            # (B, h, w, 3, S) -> (B, 3 S, h, w)
            maps = output.flatten(-2).permute(0, 3, 1, 2) if layout == "volumes" else output
            seen[f"stat_{name}"] = _statistics(maps)

        return hook

    for i, block in enumerate(net.decoder.difference, start=1):
        block.temporal.register_forward_hook(record(f"temporal_c{i}", "volumes"))
        block.spatial.register_forward_hook(record(f"spatial_c{i}", "volumes"))
        block.register_forward_hook(record(f"cross_fuse_c{i}", "maps"))
    for number, encoder in enumerate((net.optical_encoder, net.sar_encoder), start=1):
        for i, stage in enumerate(encoder.stages, start=1):
            stage.register_forward_hook(record(f"backbone{number}_c{i}", "maps"))
    net.decoder.fuse_norm.register_forward_hook(record("linear_fuse_bcd", "maps"))
    net.decoder.refine.register_forward_hook(record("dense_1x", "maps"))
    return seen


@pytest.mark.parametrize("name", parity.CASES)
def test_parity_of_logits_features_and_losses(name: str, published: dict[int, HeteCD], shared: Path) -> None:
    folder = shared / "parity"
    arrays, facts = parity.case(folder, name)
    optical, sar, label = parity.inputs(folder, name)
    net = published[parity.CASES[name]]
    with torch.no_grad():
        logits, features = net(optical, sar, features=True)
    assert np.abs(logits.numpy() - arrays["logits"]).max() < 1e-4
    for date, maps in enumerate((features.optical, features.sar), start=1):
        for scale, found in zip(("c3", "c4"), maps, strict=True):
            assert np.abs(found[:, :8].numpy() - arrays[f"feat{date}_{scale}_first8"]).max() < 1e-4
    wanted = facts["losses"]
    assert fca_loss(features).item() == pytest.approx(wanted["align"], rel=1e-5)
    assert cross_entropy(logits, label).item() == pytest.approx(wanted["ce"], rel=1e-5)
    assert cross_entropy(logits, label, (0.1, 0.9)).item() == pytest.approx(wanted["ce_val_weights"], rel=1e-5)
    assert released_dice(logits, label).item() == pytest.approx(wanted["dice_reference"], rel=1e-5)


@pytest.mark.parametrize("name", parity.CASES)
def test_parity_of_what_happens_inside(name: str, shared: Path) -> None:
    folder = shared / "parity"
    arrays, _ = parity.case(folder, name)
    net = convert_hetecd(parity.state_dict(folder, f"keys_e{parity.CASES[name]}.json"))
    seen = _watch(net)
    optical, sar, _ = parity.inputs(folder, name)
    with torch.no_grad():
        net(optical, sar)
    wanted = [key for key in arrays if key.startswith("stat_")]
    assert sorted(wanted) == sorted(seen)
    for key in wanted:
        np.testing.assert_allclose(seen[key], arrays[key], atol=1e-4, err_msg=key)


def test_parity_with_batch_statistics(shared: Path) -> None:
    folder = shared / "parity"
    arrays, facts = parity.case(folder, "B_e256_2x128")
    net = convert_hetecd(parity.state_dict(folder, "keys_e256.json"))
    for module in net.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    optical, sar, _ = parity.inputs(folder, "B_e256_2x128")
    with torch.no_grad():
        logits = net(optical, sar)
    assert np.abs(logits.numpy() - arrays["trainbn_logits"]).max() < 1e-4
    for key, value in net.state_dict().items():
        if "running" in key and (wanted := facts["trainbn_running_l2"].get(_published_name(key)[0])) is not None:
            assert value.norm().item() == pytest.approx(wanted, rel=1e-4), key


@pytest.mark.parametrize("name", ["B_e256_2x128", "C_e64_1x64"])
def test_parity_of_gradients(name: str, shared: Path) -> None:
    folder = shared / "parity"
    arrays, facts = parity.case(folder, name)
    net = convert_hetecd(parity.state_dict(folder, f"keys_e{parity.CASES[name]}.json"))
    optical, sar, label = parity.inputs(folder, name)
    logits, features = net(optical, sar, features=True)
    (cross_entropy(logits, label) + released_dice(logits, label) + 2 * fca_loss(features)).backward()
    norms = facts["grad_l2_norm_total_epoch0_eval_mode"]
    compared = set()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        (theirs,) = _published_name(key)
        # A gradient that is zero but for rounding (a bias before a normalisation) has no relative error.
        assert parameter.grad.norm().item() == pytest.approx(norms[theirs], rel=1e-3, abs=1e-6), theirs
        compared.add(theirs)
        if f"grad_{theirs}" in arrays:
            np.testing.assert_allclose(
                parameter.grad.numpy().reshape(-1), arrays[f"grad_{theirs}"].reshape(-1), rtol=1e-3, atol=1e-5
            )
    assert compared == {key for key, norm in norms.items() if norm is not None}


def test_size_of_the_published_network() -> None:
    with torch.device("meta"):
        net = HeteCD()
    assert sum(p.numel() for p in net.parameters()) == 86_164_097 - 4_883_429


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(32, 100), width=st.integers(32, 100),
    optical=st.sampled_from([1, 3, 4, 13]), sar=st.sampled_from([1, 2, 3]),
    settings=st.sampled_from(
        [{"encoder": "pvt_v2_b0"}, {"encoder": "residual_s", "detail": True, "standardise": True, "correlation": True}]
    ),
)  # fmt: skip
def test_any_size_and_any_channels(height: int, width: int, optical: int, sar: int, settings: dict[str, Any]) -> None:
    net = HeteCD(ModelConfig(**settings, width=8, optical_channels=optical, sar_channels=sar)).eval()
    with torch.no_grad():
        logits = net(torch.rand(1, optical, height, width), torch.rand(1, sar, height, width))
    assert logits.shape == (1, 2, height, width)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("optical", "sar", "message"),
    [
        ((1, 4, 64, 64), (1, 3, 64, 64), r"optical: found shape \(1, 4, 64, 64\), expected \(B, 3, H, W\)"),
        ((1, 3, 64, 64), (1, 3, 64, 32), "expected the same batch and size"),
        ((1, 3, 31, 64), (1, 3, 31, 64), "expected at least 32 x 32"),
        ((3, 64, 64), (3, 64, 64), "expected"),
    ],
)
def test_wrong_shapes_are_refused(optical: tuple[int, ...], sar: tuple[int, ...], message: str) -> None:
    net = HeteCD(ModelConfig(encoder="mit_b0", width=8))
    with pytest.raises(InputError, match=message):
        net(torch.rand(optical), torch.rand(sar))


@pytest.mark.parametrize("slices", [2, 14, 16, 28, 42, 128])
def test_one_banded_convolution_equals_three_3d_convolutions(slices: int) -> None:
    torch.manual_seed(slices)
    volumes = Volumes().double()
    volume = torch.randn(2, 9, 5, slices, dtype=torch.float64)
    with torch.no_grad():
        plain = [F.gelu(conv(volume.permute(0, 3, 1, 2)[:, None])) for conv in volumes.convs]  # (B, 1, S, h, w)
        wanted = torch.cat(plain, 1).permute(0, 3, 4, 1, 2)
        torch.testing.assert_close(volumes(volume), wanted)


def test_without_gradients_one_volume_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []

    def watched(*args: Any) -> Tensor:
        assert not any(volume() is not None for volume in made)
        made.append(weakref.ref(volume := conv_gelu(*args)))
        return volume

    monkeypatch.setattr("hetecd.difference.conv_gelu", watched)
    with torch.no_grad():
        Volumes()(torch.randn(1, 9, 5, 32))
    assert len(made) == 3


def test_folded_spatial_attention_equals_a_7x7_convolution() -> None:
    torch.manual_seed(0)
    attention = SpatialAttention(6, gain=1.0).double()
    x = torch.randn(2, 9, 5, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        maps = x.permute(0, 3, 4, 1, 2).flatten(0, 1)  # (2 * 3, 6, 9, 5)
        score = attention.conv(maps).sigmoid() * maps
        torch.testing.assert_close(attention(x), score.view(2, 3, 6, 9, 5).permute(0, 3, 4, 1, 2))


def test_rescaled_attention_lets_an_untrained_block_pass_its_signal() -> None:
    def spread(attention: str) -> float:
        torch.manual_seed(0)
        net = HeteCD(ModelConfig(encoder="mit_b0", width=32, attention=attention))  # type: ignore[arg-type]
        block = net.decoder.difference[0].eval()
        with torch.no_grad():
            maps = block.fuse.conv(
                block.spatial(block.temporal(block.volumes(torch.randn(1, 16, 16, 64)))).flatten(-2).permute(0, 3, 1, 2)
            )
        return maps.std((0, 2, 3)).median().item()

    assert spread("rescaled") > 50 * spread("published")


@pytest.mark.parametrize(("height", "width"), [(1, 9), (13, 5), (8, 20)])
def test_attention_with_a_reach_looks_no_farther(height: int, width: int) -> None:
    torch.manual_seed(0)
    reach = 4
    attention = Attention(16, 2, 1, 0.0, reach).eval()
    x = torch.randn(1, height, width, 16)
    row, col = height // 2, width // 2
    near = np.s_[max(0, row - reach) : row + reach + 1, max(0, col - reach) : col + reach + 1]
    other = torch.randn_like(x)
    other[0][near] = x[0][near]
    with torch.no_grad():
        torch.testing.assert_close(attention(other)[0, row, col], attention(x)[0, row, col])
        # And at all of what is near: alone it gives the same.
        alone = Attention(16, 2, 1, 0.0).eval()
        alone.load_state_dict(attention.state_dict())
        found = alone(x[:, near[0], near[1]])[0, row - near[0].start, col - near[1].start]
        torch.testing.assert_close(found, attention(x)[0, row, col])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_attention_with_a_reach_is_the_same_in_a_graph_of_any_size() -> None:
    torch.manual_seed(0)
    attention = Attention(16, 2, 1, 0.0, reach=4).eval().requires_grad_(False)
    graph = torch.jit.trace(attention, torch.randn(1, 6, 5, 16))
    for shape in ((1, 1, 9), (2, 13, 5), (1, 8, 20)):
        x = torch.randn(*shape, 16)
        torch.testing.assert_close(graph(x), attention(x))


def test_a_blanked_date_has_no_influence() -> None:
    config = ModelConfig(encoder="mit_b0", width=8, modalities="optical")
    optical = torch.rand(1, 3, 64, 64)
    for net in (HeteCD(config).eval(), HeteCD(replace(config, standardise=True, detail=True, correlation=True)).eval()):
        with torch.no_grad():
            assert torch.equal(net(optical, torch.rand(1, 3, 64, 64)), net(optical, torch.rand(1, 3, 64, 64)))
            assert not torch.equal(net(optical, optical), net(torch.rand(1, 3, 64, 64), optical))


def test_standardising_undoes_gain_and_offset_and_leaves_out_invalid_pixels() -> None:
    image = torch.rand(2, 3, 40, 50) + 0.1
    image[0, :, :10] = 0
    own, even = standardised(image).chunk(2, 1)
    assert torch.equal(own, image)
    valid = even[0, :, 10:]
    assert torch.equal(even[0, :, :10], torch.zeros(3, 10, 50))
    assert torch.allclose(valid.mean((1, 2)), torch.zeros(3), atol=1e-6)
    raw = image[0, :, 10:]
    assert torch.allclose(
        valid, (raw - raw.mean((1, 2), True)) / (raw.std((1, 2), keepdim=True, correction=0) + FLAT), atol=1e-5
    )
    brighter = standardised(50 * image[1:] + 7)[:, 3:]
    assert torch.allclose(brighter, even[1:], atol=0.1 * float(even[1:].abs().max()))  # but for what a flat band needs
    flat = standardised(torch.full((1, 1, 32, 32), 0.7))
    assert torch.allclose(flat[:, 1], torch.zeros(1, 32, 32), atol=1e-5)
    assert torch.equal(standardised(torch.zeros(1, 2, 32, 32)), torch.zeros(1, 4, 32, 32))


def test_detail_sees_what_a_quarter_of_the_size_hides() -> None:
    config = ModelConfig(encoder="residual_s", width=8, detail=True, sar_channels=1, dropout=0, decoder_dropout=0)
    torch.manual_seed(0)  # with others a gradient may cancel by chance
    net = HeteCD(config).eval()
    optical, sar = torch.rand(1, 3, 64, 64, requires_grad=True), torch.rand(1, 1, 64, 64, requires_grad=True)
    maps = net.encode(optical.detach(), sar.detach())
    net.decoder(*maps, optical, sar).sum().backward()
    for image in (optical, sar):  # the encoders' way is cut
        assert image.grad is not None
        assert float(image.grad.abs().min()) > 0


def test_correlation_tells_what_varies_alike_whatever_the_greys() -> None:
    torch.manual_seed(0)
    optical, other = torch.randn(2, 1, 40, 50, 4)
    compare = Correlation(4, 0.0).cosines
    ramp = torch.linspace(0, 9, 50)[:, None]  # as of an illumination that changes along a row
    for gain in (3.0, -0.5):
        alike = compare(optical, gain * optical + 20 + ramp)
        assert alike.shape == (1, 4, 40, 50)
        torch.testing.assert_close(alike[..., 7:-7], torch.full((1, 4, 40, 36), gain / abs(gain)), atol=0.08, rtol=0)
    unlike = compare(optical, other)
    assert abs(unlike.mean().item()) < 0.05
    assert 0.05 < unlike.std().item() < 0.25  # 49 pixels each
    # In the middle of a window, as it is defined.
    a, b = (x - F.avg_pool2d(x, 7, 1, 3, count_include_pad=False) for x in (optical.movedim(3, 1), other.movedim(3, 1)))
    a, b = a[0, 1, 10:17, 20:27], b[0, 1, 10:17, 20:27]
    wanted = (a * b).mean() / ((a.square().mean() + 0.01) * (b.square().mean() + 0.01)).sqrt()
    torch.testing.assert_close(unlike[0, 1, 13, 23], wanted)
    assert compare(optical, torch.full_like(other, 5.3)).abs().max() < 1e-4


@settings(max_examples=6, deadline=None)
@given(
    height=st.integers(160, 330), width=st.integers(160, 330), data=st.data(), residual=st.booleans(),
    strip=st.sampled_from([500, ops.STRIP]),
)  # fmt: skip
def test_a_part_of_the_logits(height: int, width: int, data: st.DataObject, residual: bool, strip: int) -> None:
    """What the finest scale leaves out is none of it, at any place in any size, and in strips."""
    config = ModelConfig("mit_b0", 3, 1, width=8, dropout=0, decoder_dropout=0, attention="rescaled")
    if residual:
        config = replace(config, encoder="residual_s", standardise=True, detail=True, correlation=True)
    torch.manual_seed(0)
    net = HeteCD(config).eval()
    optical, sar = torch.rand(1, 3, height, width), torch.rand(1, 1, height, width)
    starts = [data.draw(st.integers(0, size - 1)) for size in (height, width)]
    rows, cols = (
        slice(start, data.draw(st.integers(start + 1, size)))
        for start, size in zip(starts, (height, width), strict=True)
    )
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        wanted = net(optical, sar)
        patch.setattr(ops, "STRIP", strip)
        found = net(optical, sar, inner=(rows, cols))
    torch.testing.assert_close(found, wanted[..., rows, cols], atol=1e-5, rtol=1e-4)


def test_dropout_of_tokens_or_of_channels() -> None:
    for token_dropout in (True, False):
        block = Difference(ModelConfig(width=64, decoder_dropout=0.5, token_dropout=token_dropout))
        torch.manual_seed(0)
        zero = block.drop(torch.rand(1, 16, 16, 64) + 0.1) == 0
        whole = zero.all(-1).float().mean() if token_dropout else zero.all(2).all(1).float().mean()
        assert 0.3 < whole.item() < 0.7
        assert zero.float().mean().item() == pytest.approx(whole.item(), abs=0.01)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dropout: found 1.5, expected 0 to 0.95"):
        ModelConfig(dropout=1.5)


@pytest.mark.parametrize("name", parity.CASES)
@pytest.mark.parametrize("registers", [True, False])
def test_parity_of_a_network_made_fast(
    name: str, registers: bool, published: dict[int, HeteCD], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As predictors have it: the float32 numbers, and in bfloat16 the decisions."""
    monkeypatch.setattr(ops, "MATRIX_REGISTERS", registers)
    arrays, _ = parity.case(shared / "parity", name)
    optical, sar, _ = parity.inputs(shared / "parity", name)
    net = freeze(copy.deepcopy(published[parity.CASES[name]]))
    with torch.no_grad():
        assert np.abs(net(optical, sar).numpy() - arrays["logits"]).max() < 1e-4
        with torch.autocast("cpu", torch.bfloat16):
            logits = freeze(net, torch.bfloat16)(optical, sar).float().numpy()
    assert (logits.argmax(1) == arrays["logits"].argmax(1)).mean() >= 0.985
