"""Images in other units than those of training: converted where that is arithmetic, else scaled by their own range."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from hetecd.cli import main
from hetecd.errors import ConfigError
from hetecd.modality import EIGHT_BIT, FOREIGN, Floats, Modality, Scaled, looks_like
from hetecd.pair import open_pair
from hetecd.raster import Grid, write_raster
from hetecd.scaling import scale_to_pair

OPTICAL = Modality((1, 2), (10.0, 20.0), (110.0, 220.0))
POWER = Modality((1,), (-22.0,), (-2.0,), db=True)
DECIBELS = Modality((1,), (-22.0,), (-2.0,))
RNG = np.random.default_rng(0)
GRID = Grid(rasterio.crs.CRS.from_epsg(32633), rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), 160, 200)
BRIGHT = RNG.uniform((10, 20), (110, 220), (160, 200, 2)).astype(np.float32).transpose(2, 0, 1)
BACKSCATTER = RNG.uniform(-22, -2, (1, 160, 200)).astype(np.float32)


def _mean(optical: Floats, sar: Floats) -> Floats:
    """In place of a network: depends on every band."""
    return np.asarray(optical.mean(1) / 2 + sar.mean(1) / 2, np.float32)


def _mapped(folder: Path, optical: Floats, sar: Floats, known: tuple[Modality, Modality], how: str = "auto") -> Floats:
    """What a predictor that knows ``known`` makes of two images, once they are scaled."""
    folder.mkdir()
    for name, image in (("optical", optical), ("sar", sar)):
        write_raster(folder / f"{name}.tif", image, GRID)
    with open_pair(folder / "optical.tif", folder / "sar.tif", "optical", *known) as pair:
        own = scale_to_pair(pair, *known, how)  # type: ignore[arg-type]
    return Scaled(_mean, *own)(optical[None], sar[None])


@pytest.mark.parametrize(("known", "other"), [(POWER, BACKSCATTER), (DECIBELS, 10 ** (BACKSCATTER / 10))])
def test_decibels_and_power_are_converted_exactly(
    tmp_path: Path, known: Modality, other: Floats, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = 10 ** (BACKSCATTER / 10) if known.db else BACKSCATTER
    expected = _mapped(tmp_path / "a", BRIGHT, wanted, (OPTICAL, known))
    caplog.clear()
    np.testing.assert_allclose(_mapped(tmp_path / "b", BRIGHT, other, (OPTICAL, known)), expected, atol=1e-5)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("change", [lambda x: 40 * x + 300, lambda x: x / 400 + 0.01], ids=["counts", "reflectance"])
def test_another_range_becomes_that_of_training(
    tmp_path: Path, change: Callable[[Floats], Floats], caplog: pytest.LogCaptureFixture
) -> None:
    known = (OPTICAL, POWER)
    sar = (10 ** (BACKSCATTER / 10)).astype(np.float32)
    expected = _mapped(tmp_path / "a", BRIGHT, sar, known)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    found = _mapped(tmp_path / "b", change(BRIGHT), sar, known)
    assert "optical: scaled by the range of this scene" in caplog.text
    assert "sar" not in caplog.text
    # Percentiles 1 and 99 of what is uniform over the range lie 1 % inside.
    np.testing.assert_allclose(found, expected, atol=0.02)

    caplog.clear()
    wrong = _mapped(tmp_path / "c", change(BRIGHT), sar, known, "weights")
    assert np.abs(wrong - expected).max() > 0.2
    assert "do not trust the map" in caplog.text


@pytest.mark.parametrize(("share", "scaled"), [(0.35, False), (0.5, True)])
def test_two_fifths_outside_make_an_image_of_another_kind(
    tmp_path: Path, share: float, scaled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bright = np.where(RNG.random(BRIGHT.shape) < share, BRIGHT + 201, BRIGHT)
    _mapped(tmp_path / "a", bright, BACKSCATTER, (OPTICAL, DECIBELS))
    assert ("optical: scaled by the range of this scene" in caplog.text) is scaled
    assert "do not trust" not in caplog.text


def test_power_for_weights_of_8_bit_pictures_goes_through_decibels(tmp_path: Path) -> None:
    known = (OPTICAL, Modality((1,), (38.0,), (237.0,)))
    picture = (BACKSCATTER + 22) / 20 * (237 - 38) + 38
    expected = _mapped(tmp_path / "a", BRIGHT, picture, known)
    for name, sar in (("b", BACKSCATTER), ("c", 10 ** (BACKSCATTER / 10))):
        np.testing.assert_allclose(_mapped(tmp_path / name, BRIGHT, sar, known), expected, atol=0.02)


@pytest.mark.parametrize("factor", [400, 270])
def test_counts_of_a_sar_sensor_are_no_8_bit_picture(
    tmp_path: Path, factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Though most of them lie in its range: amplitude, as in the products of Sentinel-1."""
    known = OPTICAL, Modality((1,), (38.0,), (237.0,), unit=EIGHT_BIT)
    expected = _mapped(tmp_path / "a", BRIGHT, (BACKSCATTER + 22) / 20 * (237 - 38) + 38, known)
    counts = np.maximum(np.rint(factor * 10 ** (BACKSCATTER / 20)), 0)
    counts[0, 60, 60:80] = 300  # houses
    assert (counts > 255).mean() < known[1].outlying(counts) < FOREIGN
    np.testing.assert_allclose(_mapped(tmp_path / "b", BRIGHT, counts, known)[0, 61:], expected[0, 61:], atol=0.05)
    assert "sar: scaled by the range of this scene" in caplog.text
    # Weights that were trained on counts know them.
    caplog.clear()
    own = OPTICAL, Modality((1,), (38.0,), (237.0,))
    _mapped(tmp_path / "c", BRIGHT, counts, own)
    assert not caplog.records


def test_a_stray_value_is_no_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = OPTICAL, Modality((1,), (38.0,), (237.0,), unit=EIGHT_BIT)
    picture = np.rint((BACKSCATTER + 22) / 20 * (237 - 38) + 38)
    picture[0, 7, 7] = 65535
    _mapped(tmp_path / "a", BRIGHT, picture, known)
    assert not caplog.records


def test_hundredths_of_decibels_are_no_counts(tmp_path: Path) -> None:
    known = OPTICAL, Modality((1,), (38.0,), (237.0,), unit=EIGHT_BIT)
    expected = _mapped(tmp_path / "a", BRIGHT, (BACKSCATTER + 22) / 20 * (237 - 38) + 38, known)
    hundredths = np.rint(100 * BACKSCATTER)
    hundredths[0, :2, :100] = 300
    found = _mapped(tmp_path / "b", BRIGHT, hundredths, known)
    np.testing.assert_allclose(found[0, 2:], expected[0, 2:], atol=0.05)


def test_what_is_in_range_is_left_alone_unless_the_scene_is_asked_for(tmp_path: Path) -> None:
    known = (OPTICAL, POWER)
    write_raster(tmp_path / "optical.tif", BRIGHT / 2 + 10, GRID)  # darker than those of training, yet in their range
    write_raster(tmp_path / "sar.tif", 10 ** (BACKSCATTER / 10), GRID)
    with open_pair(tmp_path / "optical.tif", tmp_path / "sar.tif", "optical", *known) as pair:
        assert scale_to_pair(pair, *known) == known
        optical, sar = scale_to_pair(pair, *known, "scene")
    assert optical.high == pytest.approx((64.5, 119), abs=1)
    assert (sar.low, sar.high, sar.db) == (pytest.approx((-21.8,), abs=0.1), pytest.approx((-2.2,), abs=0.1), True)


def test_without_any_valid_pixel_nothing_is_fitted(tmp_path: Path) -> None:
    write_raster(tmp_path / "optical.tif", np.full_like(BRIGHT, np.nan), GRID)
    write_raster(tmp_path / "sar.tif", BACKSCATTER, GRID)
    with open_pair(tmp_path / "optical.tif", tmp_path / "sar.tif", "optical", OPTICAL, POWER) as pair:
        assert scale_to_pair(pair, OPTICAL, POWER) == (OPTICAL, POWER)


def test_what_numbers_look_like() -> None:
    assert looks_like(BACKSCATTER) == "decibels"
    assert looks_like(10 ** (BACKSCATTER / 10)) == "linear"
    assert looks_like(BRIGHT.round()) == "digital numbers"
    assert looks_like(np.full((1, 3), np.nan, np.float32)) == "digital numbers"


def test_a_map_of_sentinel_products(tmp_path: Path) -> None:
    """Reflectance in other bands, SAR in decibels, and the weights that come along, which know 8-bit pictures."""
    reflectance = np.concatenate([np.zeros_like(BRIGHT[:1]), BRIGHT, BRIGHT[:1]]) * 30
    write_raster(tmp_path / "optical.tif", reflectance.astype(np.uint16), GRID)
    write_raster(tmp_path / "sar.tif", BACKSCATTER, GRID)
    images = [str(tmp_path / "optical.tif"), str(tmp_path / "sar.tif")]
    flags = ["--optical-bands", "4", "3", "2", "--align", "off"]
    assert main(["predict", *images, "-o", str(tmp_path / "map"), *flags]) == 0
    summary = json.loads((tmp_path / "map/summary.json").read_text())
    assert summary["scaling"]["optical"]["bands"] == [4, 3, 2]
    assert summary["scaling"]["sar"]["low"] == pytest.approx([-21.8], abs=0.1)
    assert [w.split(":")[0] for w in summary["warnings"] if "scaled by" in w] == ["optical", "sar"]
    assert main(["predict", *images, "-o", str(tmp_path / "x"), "--optical-bands", "4", "3"]) == 1


def test_as_many_bands_as_the_weights_read() -> None:
    assert OPTICAL.reading(()) == OPTICAL
    assert OPTICAL.reading([4, 2]).bands == (4, 2)
    with pytest.raises(ConfigError, match=r"bands: found \[4\], expected 2"):
        OPTICAL.reading([4])


def test_an_island_has_the_range_that_it_would_have_alone(tmp_path: Path) -> None:
    ranges = []
    for edge in (160, 9000):
        shape = {"height": edge, "width": edge * 5 // 4, "crs": GRID.crs, "transform": GRID.transform}
        for name, image in (("optical", 40 * BRIGHT + 300), ("sar", BACKSCATTER)):
            options = {"count": len(image), "dtype": "float32", "nodata": 0, "tiled": True, "sparse_ok": True}
            with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", **options, **shape) as dataset:
                corner = (edge - 160) // 3
                dataset.write(image, window=((corner, corner + 160), (corner, corner + 200)))
        with open_pair(tmp_path / "optical.tif", tmp_path / "sar.tif", "optical", OPTICAL, DECIBELS) as pair:
            ranges.append(scale_to_pair(pair, OPTICAL, DECIBELS)[0])
    np.testing.assert_allclose(ranges[0].low, ranges[1].low, rtol=0.05)
    np.testing.assert_allclose(ranges[0].high, ranges[1].high, rtol=0.05)
    assert ranges[1].high[1] > 5000
