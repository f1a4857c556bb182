"""Augmentation: geometry shared by dates and label, radiometry that does what its name says."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetecd.augment import GREY, _blur, _jitter, _turn_hue, augment, cutmix
from hetecd.config import TrainConfig

NOTHING = TrainConfig(
    flip=0, rotate90=False, scale=1, blur_px=0, optical_jitter=0, sar_jitter=0, sar_speckle=0, normalise="uint8"
)
PAPER = replace(
    NOTHING, flip=0.5, scale=1.2, blur_px=1, optical_jitter=0.3, optical_hue=0.3, sar_jitter=0.3, sar_hue=0.3
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tile(height: int = 40, width: int = 48, sar_bands: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = generator(99)
    label = torch.randint(0, 2, (height, width), generator=g, dtype=torch.uint8)
    return torch.rand(3, height, width, generator=g), torch.rand(sar_bands, height, width, generator=g), label


def coordinates(height: int, width: int) -> torch.Tensor:
    """(2, H, W): row and column of each pixel centre as shares of the edge, which survive bilinear resampling."""
    rows, cols = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij"))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(32, 80),
    width=st.integers(32, 80),
    square=st.booleans(),
    scale=st.floats(1, 2),
    rotate=st.sampled_from([0.0, 180.0]),
)
def test_geometry_is_the_same_for_both_dates_and_label(
    seed: int, height: int, width: int, square: bool, scale: float, rotate: float
) -> None:
    width = height if square else width
    place = coordinates(height, width)
    # The label says in which of 8 x 8 cells a pixel lies, and so does the image: they must agree but where an edge of
    # a cell is within the half pixel that nearest resampling moves, once or twice.
    cell = (8 * place[0]).floor() * 8 + (8 * place[1]).floor()
    optical, sar, label = augment(
        place,
        place.clone(),
        cell.to(torch.uint8),
        replace(NOTHING, flip=0.5, rotate90=True, scale=scale, rotate=rotate),
        generator(seed),
    )
    assert torch.equal(optical, sar)
    assert label.dtype == torch.uint8
    assert set(label.unique().tolist()) <= set(range(64))
    row8, col8 = 8 * optical
    edge = 10 if rotate else 4.01
    away = ((row8 - row8.round()).abs() > edge / height) & ((col8 - col8.round()).abs() > edge / width)
    assert torch.equal((row8.floor() * 8 + col8.floor())[away], label.float()[away])


def test_a_rotation_keeps_angles_and_the_centre() -> None:
    rows, cols = torch.meshgrid(torch.arange(61.0) - 30, torch.arange(91.0) - 45, indexing="ij")
    place = torch.stack((rows, cols)) / 100  # a ramp: what is read where tells the geometry
    label = torch.zeros(61, 91, dtype=torch.uint8)
    turned = augment(place, place, label, replace(NOTHING, rotate=40, normalise="percentile"), generator(3))[0]
    inner = turned[:, 25:36, 40:51]  # no mirrored edge
    assert torch.allclose(turned[:, 30, 45], torch.zeros(2), atol=1e-5)
    right, down = (inner.diff(dim=axis)[:, 4, 4] * 100 for axis in (2, 1))
    assert float(right.norm()) == pytest.approx(1, abs=1e-3)
    assert float(down.norm()) == pytest.approx(1, abs=1e-3)
    assert float(right @ down) == pytest.approx(0, abs=1e-3)
    assert 1e-2 < abs(float(right[0])) <= np.sin(np.radians(40))


def test_cutmix_pastes_both_dates_and_the_label_of_one_other_pair() -> None:
    number = torch.arange(6.0)[:, None, None].expand(6, 40, 56)
    batch = {"optical": number[:, None].repeat(1, 3, 1, 1), "sar": number[:, None].clone(), "label": number.byte()}
    cutmix(batch, 1.0, generator(2))
    for own, (optical, sar, label) in enumerate(zip(*batch.values(), strict=True)):
        assert torch.equal(optical[0], sar[0])
        assert torch.equal(optical[2].byte(), label)
        foreign = label != own
        assert len(label[foreign].unique()) == 1
        rows, cols = foreign.any(1).sum(), foreign.any(0).sum()
        assert foreign.sum() == rows * cols  # a rectangle
        assert 10 <= rows <= 30
        assert 14 <= cols <= 42
    untouched = {name: image.clone() for name, image in batch.items()}
    cutmix(batch, 0.0, generator(2))
    assert all(torch.equal(batch[name], untouched[name]) for name in batch)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_label_values_are_never_mixed(seed: int) -> None:
    optical, sar, _ = tile()
    label = torch.tensor([0, 1, 255], dtype=torch.uint8)[torch.randint(0, 3, (40, 48), generator=generator(seed))]
    out = augment(optical, sar, label, replace(TrainConfig(), scale=2), generator(seed))[2]
    assert set(out.unique().tolist()) <= {0, 1, 255}


@pytest.mark.parametrize("config", [TrainConfig(), PAPER, replace(TrainConfig(), sar_speckle=0.5, blur_px=2)])
@pytest.mark.parametrize("sar_bands", [1, 2, 3])
def test_is_a_function_of_the_generator(config: TrainConfig, sar_bands: int) -> None:
    given_tile = tile(40, 40, sar_bands)
    kept = [x.clone() for x in given_tile]
    one, again, other = (augment(*given_tile, config, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])
    for before, kept_one, after in zip(given_tile, kept, one, strict=True):
        assert torch.equal(before, kept_one), "the input was changed"
        assert after.shape == before.shape
        assert after.dtype == before.dtype
        assert after.isfinite().all()


def test_nothing_asked_nothing_done() -> None:
    given_tile = tile()
    for before, after in zip(given_tile, augment(*given_tile, NOTHING, generator()), strict=True):
        assert torch.equal(before, after)
        assert after.data_ptr() != before.data_ptr()


def test_all_eight_orientations_occur_and_only_the_half_turn_family_on_oblong_tiles() -> None:
    config = replace(NOTHING, flip=0.5, rotate90=True)
    for width, orientations in ((32, 8), (40, 4)):
        optical, sar, label = tile(32, width)
        seen = {augment(optical, sar, label, config, generator(s))[0].numpy().tobytes() for s in range(80)}
        assert len(seen) == orientations


def test_enlarging_magnifies_and_stays_inside() -> None:
    place = coordinates(64, 64)
    shares = []
    for seed in range(40):
        out = augment(
            place, place, torch.zeros(64, 64, dtype=torch.uint8), replace(NOTHING, scale=1.5), generator(seed)
        )[0]
        assert out.min() >= place.min()
        assert out.max() <= place.max()
        shares.append(float(out[0].max() - out[0].min()))
    assert 1 / 1.5 - 0.05 < min(shares) < 0.75
    assert max(shares) > 0.9


def test_invalid_pixels_stay_zero() -> None:
    optical, sar, label = tile(48, 48)
    label[:, :20] = 255
    optical[:, :, :20] = 0  # invalid in optical; in SAR only not counted
    optical[:, :, 40:] = 0  # valid and black
    config = replace(TrainConfig(), scale=1, blur_px=2, flip=0, rotate90=False, optical_jitter=0.5)
    for seed in range(10):
        out = augment(optical, sar, label, config, generator(seed))
        assert (out[0][:, :, :20] == 0).all()
        assert (out[1][:, :, :20] != 0).any()
        assert (out[0][:, :, 44:] != 0).all()


@pytest.mark.parametrize(("bands", "luma"), [(3, GREY), (4, GREY[::-1])])
def test_jitter_moves_what_it_says(bands: int, luma: tuple[float, float, float]) -> None:
    image = torch.rand(bands, 32, 32, generator=generator())
    grey = torch.einsum("c,chw->hw", torch.tensor(luma), image[:3])
    g = generator(5)
    brightness, contrast, vivid = (1 - 0.2 + 0.4 * torch.rand((), generator=g) for _ in range(3))
    # The same by steps, as colour jitter is usually written.
    step = image * brightness
    means = torch.cat([(grey * brightness).mean().expand(3), step[3:].mean((1, 2))])[:, None, None]
    step = contrast * step + (1 - contrast) * means
    step_grey = torch.einsum("c,chw->hw", torch.tensor(luma), step[:3])
    step[:3] = vivid * step[:3] + (1 - vivid) * step_grey
    assert torch.allclose(_jitter(image, 0.2, 0.2, 0, generator(5)), step, atol=1e-6)


def test_three_bands_are_rgb_and_four_start_with_bgr() -> None:
    rgb = torch.rand(3, 32, 32, generator=generator())
    infrared = torch.rand(1, 32, 32, generator=generator(1))
    bgr = torch.cat([rgb.flip(0), infrared])
    for seed in range(5):
        three = _jitter(rgb, 0.3, 0.3, 0.3, generator(seed))
        four = _jitter(bgr, 0.3, 0.3, 0.3, generator(seed))
        assert torch.allclose(four[:3].flip(0), three, atol=1e-5)
        only_hue = _jitter(bgr, 0, 0, 0.3, generator(seed))
        assert torch.equal(only_hue[3:], infrared)


def test_gain_in_db_is_a_shift_and_contrast_keeps_the_mean() -> None:
    sar = torch.rand(2, 32, 32, generator=generator())
    out = _jitter(sar, 0.3, 0, 0, generator(3), span_db=(20.0, 10.0))
    shift = (out - sar).mean((1, 2))
    assert shift[1] == pytest.approx(2 * float(shift[0]), rel=1e-4)  # half the decibels per unit
    gain = 10 ** (float(shift[0]) * 20 / 10)
    assert 0.7 <= gain <= 1.3


@settings(deadline=None, max_examples=50)
@given(rgb=st.tuples(*[st.floats(0, 1, width=32)] * 3), turn=st.floats(-0.5, 0.5))
def test_hue_agrees_with_hsv(rgb: tuple[float, float, float], turn: float) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    wanted = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    assert np.allclose(_turn_hue(torch.tensor(rgb)[:, None, None], turn).flatten(), wanted, atol=2e-5)


def test_hue_never_touches_grey_nor_a_single_sar_band() -> None:
    grey = torch.rand(1, 16, 16).expand(3, -1, -1)
    assert torch.equal(_turn_hue(grey, 0.3), grey)
    optical, sar, label = tile(32, 32, sar_bands=1)
    assert torch.equal(augment(optical, sar, label, replace(NOTHING, sar_hue=0.5), generator())[1], sar)
    composite = tile(32, 32, sar_bands=3)
    kept = augment(*composite, replace(NOTHING, sar_jitter=0.0), generator())[1]
    assert torch.equal(kept, composite[1])
    # Without hue no saturation either: each band is a straight line of itself alone.
    plain = augment(*composite, replace(NOTHING, sar_jitter=0.3, normalise="percentile"), generator())[1]
    before, after = (x[0] - x[0].mean() for x in (composite[1], plain))
    assert torch.allclose(after, before * (after.std() / before.std()), atol=1e-5)
    published = augment(*composite, replace(NOTHING, sar_hue=0.3), generator())[1]
    assert not torch.allclose(published, composite[1])


def test_published_recipe_draws_per_image() -> None:
    same = torch.rand(3, 32, 32, generator=generator())
    optical, sar, _ = augment(same, same, torch.zeros(32, 32, dtype=torch.uint8), PAPER, generator(1))
    assert not torch.allclose(optical, sar)
    assert min(optical.min(), sar.min()) >= 0
    assert max(optical.max(), sar.max()) <= 1


def test_speckle_keeps_the_mean_and_has_the_spread_asked_for() -> None:
    flat = torch.full((2, 256, 256), 0.5)
    config = replace(NOTHING, sar_speckle=0.2, normalise="percentile")
    optical, _, label = tile(256, 256)
    ratio = augment(optical, flat, label, config, generator())[1] / 0.5
    assert float(ratio.mean()) == pytest.approx(1, abs=0.005)
    assert float(ratio.std()) == pytest.approx(0.2, abs=0.005)
    assert abs(float(torch.corrcoef(ratio.flatten(1))[0, 1])) < 0.02  # bands speckle independently
    copies = augment(optical, flat, label, replace(config, sar_bands=(1, 1)), generator())[1]
    assert torch.equal(copies[0], copies[1])
    in_db = augment(optical, flat, label, config, generator(), (25.0, 25.0))[1]
    assert torch.allclose(10 ** ((in_db - 0.5) * 25 / 10), ratio, rtol=1e-3)


def test_blur_is_gaussian() -> None:
    dot = torch.zeros(2, 41, 41)
    dot[:, 20, 20] = 1
    out = _blur(dot, 1.5)
    assert float(out.sum()) == pytest.approx(2, abs=1e-4)
    offsets = torch.arange(41) - 20.0
    assert float((out[0].sum(0) * offsets**2).sum()) == pytest.approx(1.5**2, rel=0.02)
    flat = torch.full((1, 9, 9), 0.7)
    assert torch.allclose(_blur(flat, 2.0), flat, atol=1e-6)  # nothing comes in over the edge
    assert _blur(dot, 0.0) is dot
