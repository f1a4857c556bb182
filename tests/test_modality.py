"""The input contract of one date: what is scaled how, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hetecd.errors import ConfigError, InputError
from hetecd.modality import (
    CLIP,
    Floats,
    Focusing,
    Inner,
    Modality,
    Scaled,
    Windows,
    ask,
    fit_modality,
    mirrored,
    to_db,
    uint8_modality,
)

TWO = Modality((1, 2), (0.0, 100.0), (10.0, 300.0))
DB = Modality((1,), (-30.0,), (0.0,), db=True, unit="linear power")


def image(*bands: list[float]) -> np.ndarray:
    """(C, 1, W) float32."""
    return np.array(bands, np.float32)[:, None]


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_each_band_has_its_own_range() -> None:
    out = TWO.normalise(image([0, 5, 10], [100, 150, 300]))
    assert out.dtype == np.float32
    assert np.allclose(out, image([0, 0.5, 1], [0, 0.25, 1]))


def test_outside_the_range_values_keep_on_to_the_clip() -> None:
    out = TWO.normalise(image([-5, 15, -1e6, 1e6, 3.4e38], [100] * 5))
    assert np.allclose(out[0, 0], [-0.5, 1.5, *CLIP, CLIP[1]])


@pytest.mark.parametrize("modality", [replace(TWO, bands=(1,), low=(0.0,), high=(10.0,)), DB])
def test_invalid_pixels_become_zero(modality: Modality) -> None:
    raw = image([np.nan, np.inf, -np.inf, 1])
    kept = raw.copy()
    out = modality.normalise(raw)
    assert out[0, 0, :3].tolist() == [0, 0, 0]
    assert out[0, 0, 3] != 0
    assert np.array_equal(raw, kept, equal_nan=True), "the input was changed"


def test_invalid_pixels_are_so_per_band() -> None:
    assert TWO.normalise(image([np.nan, 5], [200, 200]))[:, 0, 0].tolist() == [0, 0.5]


def test_power_becomes_decibel_with_a_floor() -> None:
    assert np.allclose(to_db(np.array([1, 0.1, 100, 1e-6, 0, -3], np.float32)), [0, -10, 20, -60, -60, -60])
    assert np.isnan(to_db(np.array([np.nan], np.float32)))
    assert np.allclose(DB.normalise(image([1, 0.1, 0.001, 0])), image([1, 2 / 3, 0, -1]), atol=1e-6)


def test_batches_scale_like_single_images() -> None:
    raw = np.random.default_rng(0).uniform(0, 300, (3, 2, 4, 5)).astype(np.float32)
    assert np.array_equal(TWO.normalise(raw)[1], TWO.normalise(raw[1]))


def test_uint8_is_pixel_over_255() -> None:
    three = uint8_modality((3, 2, 1))
    assert (three.bands, three.channels) == ((3, 2, 1), 3)
    assert np.allclose(three.normalise(image([0], [51], [255]))[:, 0, 0], [0, 0.2, 1])


@given(hnp.arrays(np.float32, (1, 2, 3), elements=st.floats(width=32)), st.booleans())
def test_nothing_that_is_not_finite_comes_out(raw: np.ndarray, db: bool) -> None:
    with np.errstate(all="raise"):
        out = Modality((1,), (-0.25,), (0.25,), db=db).normalise(raw)
    assert out.shape == raw.shape
    assert out.dtype == np.float32
    assert ((out >= CLIP[0]) & (out <= CLIP[1])).all()
    assert (out[~np.isfinite(raw)] == 0).all()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_wrong_number_of_channels() -> None:
    with pytest.raises(InputError, match=r"^image: found 3 channels, expected 2 \(bands \(1, 2\)\)$"):
        TWO.normalise(np.zeros((3, 4, 4), np.float32))


def test_other_bands_are_as_many() -> None:
    assert TWO.reading([7, 3]).bands == (7, 3)
    assert TWO.reading([]) == TWO
    with pytest.raises(ConfigError, match=r"^SAR bands: found \[7\], expected 2: one for each"):
        TWO.reading([7], "SAR bands")


@pytest.mark.parametrize(
    ("bands", "low", "high", "says"),
    [
        ((), (), (), r"bands: found \(\), expected band numbers from 1"),
        ((0, 1), (0.0, 0.0), (1.0, 1.0), r"bands: found \(0, 1\), expected band numbers from 1"),
        ((1, 2), (0.0,), (1.0, 1.0), "found 2 bands, 1 low and 2 high values, expected as many of each"),
        ((1,), (1.0,), (1.0,), "must be finite and below"),
        ((1,), (2.0,), (1.0,), "must be finite and below"),
        ((1,), (float("nan"),), (1.0,), "must be finite and below"),
        ((1,), (0.0,), (float("inf"),), "must be finite and below"),
    ],
)
def test_impossible_contracts(
    bands: tuple[int, ...], low: tuple[float, ...], high: tuple[float, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Modality(bands, low, high)
    assert "\n" not in str(caught.value)


# --- fitting ---------------------------------------------------------------------------------------------------------


def test_fit_takes_percentiles_over_all_images() -> None:
    ramp = np.arange(100, dtype=np.float32).reshape(1, 10, 10)
    images = [np.concatenate([ramp, -ramp]), np.concatenate([ramp + 100, -ramp - 100])]
    fitted = fit_modality(images, (4, 2), gsd_m=3.0)
    low, high = np.percentile(np.arange(200), (1, 99))
    assert (fitted.bands, fitted.db, fitted.gsd_m) == ((4, 2), False, 3.0)
    assert fitted.low == pytest.approx((low, -high))
    assert fitted.high == pytest.approx((high, -low))


def test_fit_looks_at_every_pixel() -> None:
    pixels = np.zeros((1, 300, 300), np.float32)
    pixels[0, 1::2] = 1  # every other row: thinning by an even step would see one value
    assert (fit_modality([pixels], (1,)).low, fit_modality([pixels], (1,)).high) == ((0.0,), (1.0,))


def test_fit_leaves_invalid_pixels_out() -> None:
    pixels = np.linspace(0, 1, 1000, dtype=np.float32).reshape(1, 20, 50)
    clean = fit_modality([pixels], (1,))
    dirty = np.concatenate([pixels, np.full((1, 3, 50), np.nan, np.float32)], axis=1)
    dirty[0, 20] = np.inf
    dirty[0, 21] = -np.inf
    assert fit_modality([dirty, np.full((1, 2, 2), np.nan, np.float32)], (1,)) == clean


def test_fit_in_decibel() -> None:
    power = (10 ** np.linspace(-3, 0, 3001, dtype=np.float32))[None, None]
    fitted = fit_modality([power], (1,), db=True)
    assert fitted.db
    assert fitted.low == pytest.approx((-29.7,), abs=1e-2)
    assert fitted.high == pytest.approx((-0.3,), abs=1e-2)
    assert np.median(fitted.normalise(power)) == pytest.approx(0.5, abs=1e-3)


def test_fit_falls_back_to_the_whole_range_where_nearly_all_is_alike() -> None:
    pixels = np.zeros((1, 100, 100), np.float32)
    pixels[0, 0, 0] = 7  # beyond the 99th percentile
    fitted = fit_modality([pixels], (1,))
    assert (fitted.low, fitted.high) == ((0.0,), (7.0,))


def test_fit_refuses_what_has_no_range() -> None:
    flat = np.stack([np.arange(16, dtype=np.float32).reshape(4, 4), np.full((4, 4), 5, np.float32)])
    with pytest.raises(InputError, match=r"^band 3: found 5 everywhere, expected an image; check it, or read another$"):
        fit_modality([flat, flat], (1, 3))
    flat[1] = np.nan
    with pytest.raises(
        InputError, match=r"^band 3: found no valid pixel, expected some; check its nodata, or read another$"
    ):
        fit_modality([flat, flat], (1, 3))
    dark = np.zeros((1, 4, 4), np.float32)
    dark[0, 0, 0] = 1e-9  # below the floor of dB
    with pytest.raises(InputError, match=r"found -60 everywhere"):
        fit_modality([dark], (1,), db=True)


def test_windows_that_are_asked_for() -> None:
    wide, usual = Windows(1536, 512), Windows()
    assert wide.asked(None, None) == wide
    assert wide.asked(512, None) == (512, 192)  # as large a share or more, in steps of the stride
    assert wide.asked(4096, None) == (4096, 512)
    assert wide.asked(None, 64) == (1536, 64)
    assert usual.asked(64, None) == (64, 32)
    assert usual.asked(32, None) == (32, 0)
    assert usual.asked(100, 7) == (100, 7)


@pytest.mark.parametrize("inner", [None, (slice(1, 4), slice(0, 3))])
def test_what_is_not_wanted_is_not_computed(inner: Inner | None) -> None:
    """Behind scaling and mirroring, too."""
    asked: list[Inner | None] = []

    def compute(optical: Floats, sar: Floats, part: Inner | None) -> Floats:
        asked.append(part)
        rows, cols = part or (slice(None), slice(None))
        out = np.zeros_like(sar[:, 0])
        out[:, rows, cols] = (optical[:, 0] + 2 * sar[:, 0])[:, rows, cols]
        return out

    rng = np.random.default_rng(0)
    optical, sar = 255 * rng.random((2, 1, 40, 70), np.float32), 255 * rng.random((2, 1, 40, 70), np.float32)
    grey = uint8_modality((1,))
    found = ask(mirrored(Scaled(Focusing(compute), grey, grey)), optical, sar, inner)
    wanted = (optical[:, 0] + 2 * sar[:, 0]) / 255
    rows, cols = inner or (slice(None), slice(None))
    np.testing.assert_allclose(found[:, rows, cols], wanted[:, rows, cols], atol=1e-6)
    # 40 rows and 70 columns, with those to the next multiple of 32 of either, from the other end.
    assert asked == [None if inner is None else (slice(96 - 3, 96), slice(64 - 4, 64 - 1)), inner]


def test_mirrored_is_the_mean_with_the_mirror_image_at_the_diagonal() -> None:
    def leaning(optical: Floats, sar: Floats) -> Floats:
        """Depends on the pixel above and the one to the left."""
        return (np.roll(optical[:, 0], 1, 1) + 2 * np.roll(sar[:, 0], 1, 2)).astype(np.float32)

    rng = np.random.default_rng(0)
    optical, sar = rng.random((2, 1, 32, 64), np.float32), rng.random((2, 1, 32, 64), np.float32)
    right = np.roll(optical[:, 0], -1, 2) + 2 * np.roll(sar[:, 0], -1, 1)  # above is to the right there, left is below
    wanted = (leaning(optical, sar) + right) / 2
    np.testing.assert_allclose(mirrored(leaning)(optical, sar), wanted, atol=1e-6)


def test_fractions_are_foreign_to_weights_of_8_bits() -> None:
    rng = np.random.default_rng(0)
    known = uint8_modality((1,))
    assert known.outlying(rng.uniform(0, 1, (1, 50, 50)).astype(np.float32)) == 0  # they lie in the range
    for high, whole, foreign in ((1.5, False, True), (1.5, True, False), (3, False, False), (250, True, False)):
        image = rng.uniform(0, high, (1, 50, 50)).astype(np.float32)
        assert known.is_foreign(image.round() if whole else image) is foreign
