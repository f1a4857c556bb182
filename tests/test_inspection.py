"""What two images are and what is wrong with them, said before anything is mapped."""

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from test_pair import OPTICAL, SAR, UTM, WGS84, save

from hetecd import cli
from hetecd.align import Alignment
from hetecd.config import ModelConfig
from hetecd.doubts import doubts_of_likeness
from hetecd.errors import InputError
from hetecd.grids import GridChoice
from hetecd.info import ModelInfo
from hetecd.inspection import inspect_pair
from hetecd.modality import Modality, Windows, uint8_modality
from hetecd.raster import Grid
from hetecd.wording import in_words

LINEAR = Modality((1,), (-25.0,), (0.0,), db=True, unit="linear power", gsd_m=10.0)
INFO = ModelInfo(ModelConfig(optical_channels=3, sar_channels=1), uint8_modality((1, 2, 3)), LINEAR)
RNG = np.random.default_rng(0)


def town(grid):
    """Blocks of some 100 m, each of its own brightness from 0 to 1, at the pixels (H, W) of a grid."""
    rows, cols = np.indices(grid.shape) + 0.5
    x, y = transform_points(grid.crs, UTM, *(v.ravel() for v in grid.transform @ (cols, rows)))
    table = np.random.default_rng(1).random((64, 64))
    blocks = (np.array(y) // 83).astype(int) % 64, (np.array(x) // 97).astype(int) % 64
    return table[blocks].reshape(grid.shape)


def power(grid):
    """SAR of it as linear power: dark where the optical image is bright, with speckle."""
    return (0.02 + 0.2 * (1 - town(grid)) * RNG.gamma(4, 0.25, grid.shape))[None].astype(np.float32)


COLOURS = np.stack([(40 + scale * town(OPTICAL)) for scale in (100, 150, 200)]).astype(np.uint8)
POWER = power(SAR)


@pytest.fixture
def good(tmp_path):
    """A pair with nothing wrong."""
    return save(tmp_path / "before_20230103.tif", OPTICAL, COLOURS), save(tmp_path / "after_2023-02-05.tif", SAR, POWER)


def look(before, after, before_is="optical", info=INFO, **choice):
    report = inspect_pair(before, after, before_is, info, GridChoice(**choice), Windows(128, 32))
    json.dumps(report)  # it can be
    text = in_words(report).splitlines()
    assert text[-1] == f"hetecd predict would {'work' if report['usable'] else 'fail'}"
    assert len([line for line in text if line.startswith(("error", "warning"))]) == len(report["problems"])
    return report


def problem(report, *words, fatal):
    """The one problem; it must say all of the words."""
    (only,) = report["problems"]
    for word in words:
        assert word in only["found"] + "; " + only["remedy"]
    assert only["fatal"] == fatal
    assert report["usable"] == (not fatal)


def test_a_good_pair(good):
    report = look(*good)
    assert report["problems"] == []
    assert report["usable"]
    before, after = report["before"], report["after"]
    assert (before["is"], before["bands"], before["dtype"], before["crs"], before["scale"], before["date"]) == (
        "optical", 3, "uint8", "EPSG:32633", "8-bit", "2023-01-03",
    )  # fmt: skip
    assert (after["is"], after["bands"], after["crs"], after["scale"], after["date"]) == (
        "sar", 1, "EPSG:4326", "linear", "2023-02-05",
    )  # fmt: skip
    assert before["pixel_m"] == pytest.approx([10, 8], rel=1e-3)
    assert after["pixel_m"] == pytest.approx([9.43, 11.11], rel=1e-3)
    assert (before["invalid"], after["invalid"]) == (0, 0)
    assert after["values"][0]["median"] == pytest.approx(np.median(POWER), rel=0.02)
    assert report["grid"]["crs"] == "EPSG:32633"
    assert (report["grid"]["height"], report["grid"]["width"]) == OPTICAL.shape
    assert report["overlap"] > 0.95
    assert report["valid"] > 0.95
    assert report["windows"] == 3 * 3


def test_overlap_and_nodata_are_measured(tmp_path):
    plain = Grid(UTM, Affine(10, 0, 500_000, 0, -10, 5_005_000), 1000, 1000)
    optical = save(tmp_path / "a.tif", plain, np.repeat(1 + 200 * town(plain)[None], 3, 0).astype(np.uint8))
    quarter = Grid(UTM, Affine(10, 0, 505_000, 0, -10, 5_000_000), 1000, 1000)
    image = power(quarter)
    image[:, :, 100:200] = -9999
    sar = save(tmp_path / "b.tif", quarter, image, -9999)
    report = look(optical, sar)
    assert report["overlap"] == pytest.approx(0.25, abs=0.01)
    assert report["after"]["nodata"] == "value -9999"
    assert report["after"]["invalid"] == pytest.approx(0.1, abs=0.05)
    assert report["valid"] == pytest.approx(0.8, abs=0.1)
    assert look(optical, sar, resolution=20.0)["grid"]["height"] == 500


def test_a_file_that_is_missing_does_not_hide_the_other(good, tmp_path):
    report = look(tmp_path / "nowhere.tif", good[1])
    problem(report, "nowhere.tif", "check the path", fatal=True)
    assert report["before"] is None
    assert report["after"]["bands"] == 1


def test_every_problem_is_told(tmp_path):
    """No CRS on one side, counts instead of power, an empty border, a band too few, dates exchanged."""
    image = COLOURS[:2].copy()
    image[:, :30] = 0
    before = save(tmp_path / "20230501.tif", Grid(None, Affine.identity(), *OPTICAL.shape), image)
    after = save(tmp_path / "20230401.tif", SAR, 1e4 * POWER)
    report = look(before, after)
    told = [item["found"] for item in report["problems"]]
    for words in (
        "found 2 bands",
        "found no CRS",
        "digital numbers",
        "no nodata is declared",
        "is of 2023-05-01, which is after",
    ):
        assert sum(words in text for text in told) == 1, words
    assert len(told) == 5
    fatal = [item["fatal"] for item in report["problems"]]
    assert fatal == [True, True, False, False, False]


def test_another_place(good, tmp_path):
    far = save(
        tmp_path / "far.tif", Grid(WGS84, Affine(0.0001, 0, 18.0, 0, -0.0001, 45.22), 300, 300), POWER[:, :300, :300]
    )
    problem(look(good[0], far), "the middles of the two images are 23", "km apart", fatal=True)
    turned = Grid(WGS84, Affine(0.0001, 0, 45.19, 0, -0.0001, 15.01), 300, 300)
    swapped = save(tmp_path / "swapped.tif", turned, POWER[:, :300, :300])
    problem(look(good[0], swapped), "longitude and latitude look exchanged", fatal=True)


def test_a_shift_is_measured(good, tmp_path):
    moved = Grid(WGS84, SAR.transform @ Affine.translation(8, 0), *SAR.shape)
    report = look(good[0], save(tmp_path / "moved.tif", moved, POWER))
    assert report["problems"] == []
    assert report["alignment"]["moved"]
    # 8 SAR pixels of 9.43 m too far east, on a grid turned by 20 degrees whose pixels are 10 x 8 m
    assert report["alignment"]["shift_m"] == pytest.approx([-75.4 * np.cos(np.radians(20)), 0], abs=30)
    assert look(*good)["alignment"]["moved"] is False


def test_two_that_show_other_places_under_one_georeference(good, tmp_path):
    elsewhere = Grid(
        UTM, Affine.translation(530_000, 5_020_000) @ Affine.rotation(37) @ Affine.scale(9, -11), *SAR.shape
    )
    turned = save(tmp_path / "turned.tif", SAR, power(elsewhere))
    report = look(good[0], turned)
    problem(report, "the images hardly show the same structures", fatal=False)
    assert "  shift     unknown; not moved" in in_words(report)


def test_swapped_dates(good, tmp_path):
    sar = save(tmp_path / "SAR_20221231.tif", SAR, POWER)
    problem(look(good[0], sar), "2023-01-03, which is after 2022-12-31", "the earlier one first", fatal=False)
    assert look(sar, good[0], before_is="sar")["problems"] == []


def test_swapped_modalities_by_bands_and_by_names(good, tmp_path):
    optical, sar = good
    info = ModelInfo(ModelConfig(optical_channels=1, sar_channels=1), uint8_modality((1,)), uint8_modality((1,)))
    found = " ".join(item["found"] for item in look(sar, optical, info=info)["problems"])
    assert "has 1 and" in found
    with rasterio.open(sar, "r+") as dataset:
        dataset.set_band_description(1, "Sigma0_VV_db")
    found = " ".join(item["found"] for item in look(sar, optical, info=info)["problems"])
    assert "says Sigma0, VV" in found
    assert not any("is taken for" in item["found"] for item in look(optical, sar, info=info)["problems"])
    with rasterio.open(optical, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    found = " ".join(item["found"] for item in look(sar, optical, info=info)["problems"])
    assert "says bands red, green, blue" in found


@pytest.mark.parametrize("copied", [False, True])
def test_one_file_twice(good, tmp_path, copied):
    twin = save(tmp_path / "twin.tif", OPTICAL, COLOURS) if copied else good[0]
    info = ModelInfo(ModelConfig(optical_channels=3, sar_channels=1), uint8_modality((1, 2, 3)), uint8_modality((1,)))
    problem(look(good[0], twin, info=info), "shows the same as", fatal=True)


@pytest.mark.parametrize(
    ("values", "modality", "words"),
    [
        (np.clip(POWER * 800, 1, 255).astype(np.uint8), LINEAR, "found 8-bit from"),
        ((POWER * 1e4).astype(np.uint16) + 1, uint8_modality((1,)), "found digital numbers from"),
    ],
)
def test_values_unlike_those_of_training(good, tmp_path, values, modality, words):
    sar = save(tmp_path / "other.tif", SAR, values)
    info = ModelInfo(ModelConfig(optical_channels=3, sar_channels=1), uint8_modality((1, 2, 3)), modality)
    problem(look(good[0], sar, info=info), "sar values are unlike those of training", words, fatal=False)


@pytest.mark.parametrize(
    ("values", "modality"), [(10 * np.log10(POWER), LINEAR), (POWER, Modality((1,), (-25.0,), (0.0,), unit="dB"))]
)
def test_decibels_and_power_are_no_problem(good, tmp_path, values, modality):
    """A prediction converts them."""
    info = ModelInfo(ModelConfig(optical_channels=3, sar_channels=1), uint8_modality((1, 2, 3)), modality)
    assert not look(good[0], save(tmp_path / "other.tif", SAR, values), info=info)["problems"]


def test_nothing_valid(good, tmp_path):
    report = look(good[0], save(tmp_path / "nan.tif", SAR, POWER * np.nan))
    assert not report["usable"]
    assert any("found no valid pixel in the sample" in item["found"] for item in report["problems"])


def test_a_sliver_of_overlap(good, tmp_path):
    east = Grid(WGS84, Affine(0.00012, 0, 15.037, 0, -0.0001, 45.22), *SAR.shape)
    problem(look(good[0], save(tmp_path / "east.tif", east, POWER)), "of the grid", "--aoi", fatal=False)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([40], "is 40 everywhere in the sample and shows nothing"),
        ([1, 255], "has only the values 1 and 255 in the sample, as labels and masks have"),
    ],
)
def test_a_band_that_shows_nothing(good, tmp_path, values, says):
    path = tmp_path / "few.tif"
    with rasterio.open(good[1]) as dataset:
        profile, bands = dataset.profile, dataset.read()
    bands[:] = np.resize(values, bands.shape)
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(bands)
    report = look(good[0], path)
    assert report["usable"]
    said = {item["found"]: item["remedy"] for item in report["problems"]}
    assert "--sar-bands" in said[f"{path}: band 1 {says}"]


def test_pixels_of_another_size(good):
    problem(look(*good, resolution=40.0), "pixels of 40 x 40 m, the weights were trained on 10 m", fatal=False)


def test_a_grid_that_cannot_be(good):
    problem(look(*good, crs="nonsense"), "cannot be brought to nonsense", fatal=True)


def test_masks_alpha_and_granules(good, tmp_path):
    folder = tmp_path / "granules"
    folder.mkdir()
    for name, part in (("a", slice(0, 300)), ("b", slice(300, 600))):
        transform = SAR.transform @ Affine.translation(part.start, 0)
        save(folder / f"{name}.tif", Grid(WGS84, transform, 500, 300), POWER[:, :, part])
    report = look(good[0], folder)
    assert (report["after"]["granules"], report["after"]["height"], report["after"]["width"]) == (2, 500, 600)
    assert "  size      2 granules, 500 x 600 px" in in_words(report)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(good[1], "r+") as dataset:
        dataset.write_mask(np.arange(500 * 600).reshape(500, 600) % 2 == 0)
    report = look(*good)
    assert report["after"]["nodata"] == "mask band"
    assert report["after"]["invalid"] == pytest.approx(0.5, abs=0.01)


def test_granules_of_unlike_bands(good, tmp_path):
    folder = tmp_path / "granules"
    folder.mkdir()
    for name, count, first in (("a", 3, 0), ("b", 1, 130)):
        grid = Grid(OPTICAL.crs, OPTICAL.transform @ Affine.translation(first, 0), OPTICAL.height, 130)
        save(folder / f"{name}.tif", grid, COLOURS[:count, :, first : first + 130])
    problem(look(folder, good[1]), "b.tif: found 1 band, expected bands [1, 2, 3]", fatal=True)


@pytest.mark.parametrize("tile", [0, 16])
def test_windows_that_cannot_be(good, tile):
    report = inspect_pair(*good, "optical", INFO, GridChoice(), Windows(tile, 0))
    problem(report, f"tile_px: found {tile}, expected at least 32", fatal=True)


def test_the_command(good, tmp_path, capsys):
    """Weights that come along: three 8-bit bands and one."""
    words = ["inspect", *map(str, good)]
    assert cli.main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"]
    assert any("values are unlike" in item["found"] for item in report["problems"])
    assert cli.main(["inspect", str(good[0]), str(tmp_path / "nowhere.tif")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "hetecd predict would fail"


def test_a_scale_that_is_declared_is_not_applied(good):
    with rasterio.open(good[0], "r+") as dataset:
        dataset.scales = [1e-4] * 3
    problem(look(*good), "declares scale 0.0001 and offset 0, which are not applied", "-unscale", fatal=False)


def test_islands_in_a_large_scene_are_found(good, tmp_path):
    """And compared as they are where they fill the scene."""
    files = []
    for path, grid in zip(good, (OPTICAL, SAR), strict=True):
        with rasterio.open(path) as dataset:
            image = dataset.read()
        files.append(tmp_path / f"wide_{path.name}")
        wide = {"transform": grid.transform @ Affine.translation(-5300, -7700), "width": 14_000, "height": 14_000}
        wide |= {"count": len(image), "dtype": image.dtype, "crs": grid.crs, "nodata": 0, "sparse_ok": True}
        with rasterio.open(files[-1], "w", driver="GTiff", tiled=True, **wide) as dataset:
            dataset.write(image, window=((7700, 7700 + grid.height), (5300, 5300 + grid.width)))
    report, alone = look(*files), look(*good)
    assert report["problems"] == []
    assert report["before"]["invalid"] > 0.98
    for name in ("before", "after"):
        assert report[name]["scale"] == alone[name]["scale"]
        assert report[name]["values"][0]["median"] == pytest.approx(alone[name]["values"][0]["median"], rel=0.1)
    assert report["alignment"]["inlier_ratio"] > 0.8
    assert report["alignment"]["tiles"] >= 5


def test_predict_says_what_names_tell_and_refuses_one_image_twice(decided, mapped, tmp_path, caplog, capsys):
    names = "after_20240105.tif", "before_20240101.tif"
    for name, file in zip(names, ("optical.tif", "sar.tif"), strict=True):
        (tmp_path / name).write_bytes((mapped.parent / file).read_bytes())
    words = ["--weights", str(decided), "-o", str(tmp_path / "out")]
    assert cli.main(["predict", *(str(tmp_path / name) for name in names), *words]) == 0
    assert "is of 2024-01-05, which is after 2024-01-01" in caplog.text
    assert "2024-01-05" in json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"][0]
    assert cli.main(["predict", *([str(tmp_path / names[0])] * 2), *words, "--redo"]) == 1
    assert "after_20240105.tif: found the same file as" in capsys.readouterr().err
    caplog.clear()  # said also where it then fails: SAR has one band
    assert cli.main(["predict", *(str(tmp_path / name) for name in reversed(names)), *words, "--redo"]) == 1
    assert "has 1 and" in caplog.text


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (
            "sar.tif",
            lambda bands: np.where(np.arange(bands.shape[2]) < 40, 0, bands),
            "are 0 in every band but no nodata",
        ),
        ("optical.tif", lambda bands: np.where(bands > 1000, 2.0, 1.0), "only the values 1 and 2"),
        ("optical.tif", lambda bands: 10 * np.log10(bands / 1e4 + 1e-4), "but has values in decibels"),
        (
            "optical.tif",
            lambda bands: np.concatenate([bands, bands]),
            "has 8 bands, of which the weights read 1, 2, 3, 4",
        ),
    ],
)
def test_predict_says_what_pixels_tell(decided, mapped, tmp_path, file, change, says):
    for name in ("optical.tif", "sar.tif"):
        with rasterio.open(mapped.parent / name) as dataset:
            profile, bands = dataset.profile, dataset.read().astype(np.float32)
        bands = change(bands) if name == file else bands
        profile |= {"count": len(bands), "dtype": "float32", "nodata": None}
        with rasterio.open(tmp_path / name, "w", **profile) as dataset:
            dataset.write(bands.astype(np.float32))
    words = ["predict", *(str(tmp_path / name) for name in ("optical.tif", "sar.tif")), "--weights", str(decided)]
    assert cli.main([*words, "-o", str(tmp_path / "out")]) == 0
    warnings = json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"]
    assert sum(f"{tmp_path / file}: " in text and says in text for text in warnings) == 1
    assert len(warnings) == len(set(warnings))


def test_predict_refuses_a_copy_but_not_two_that_begin_empty(decided, mapped, tmp_path, capsys):
    (tmp_path / "copy.tif").write_bytes((mapped.parent / "optical.tif").read_bytes())
    words = ["--weights", str(decided), "--scaling", "weights", "-o", str(tmp_path / "out"), "--sar-bands", "1"]
    assert cli.main(["predict", str(mapped.parent / "optical.tif"), str(tmp_path / "copy.tif"), *words]) == 1
    assert "copy.tif: shows the same as" in capsys.readouterr().err
    for name, count in (("a.tif", 4), ("b.tif", 1)):
        save(tmp_path / name, OPTICAL, np.zeros((count, *OPTICAL.shape), np.float32))
    assert cli.main(["predict", str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), *words]) == 0
    assert "is 0 everywhere in the sample" in (tmp_path / "out" / "summary.json").read_text()


def test_what_an_unknown_shift_says():
    found = Alignment(Affine.identity(), (33.0, -65.0), None, 0.0, 1.0, 0.1, 10, False, "not moved: unsure")
    assert str(found) == "SAR to optical unknown, 10% of 10 tiles agree; not moved: unsure"
    assert "hardly show the same structures (10% of 10 tiles agree)" in doubts_of_likeness(found)[0]
    assert doubts_of_likeness(replace(found, inlier_ratio=0.5)) == doubts_of_likeness(None) == []
    assert str(replace(found, inlier_ratio=0.5)).startswith("SAR to optical +33.00 px right")
    assert "unknown" in str(replace(found, inlier_ratio=0.375, tiles=8))


def test_one_file_may_hold_both_dates(tmp_path):
    both = save(tmp_path / "stack.tif", OPTICAL, np.concatenate([COLOURS, 255 - COLOURS[:1]]))
    info = ModelInfo(INFO.model, INFO.optical, uint8_modality((4,)))
    assert look(both, both, info=info)["problems"] == []
    problem(look(both, both, info=ModelInfo(INFO.model, INFO.optical, uint8_modality((3,)))), "same file", fatal=True)


def test_tiles_are_looked_at_as_they_are_mapped(decided, tiles, tmp_path, capsys):
    """One by one, without alignment, in the range of training; what would be refused is refused here too."""
    words = [*(str(tiles / "test" / name) for name in "AB"), "--weights", str(decided)]
    assert cli.main(["inspect", *words]) == 0
    text = capsys.readouterr().out
    assert text.startswith("8 tiles, each mapped by itself; of the first\n")
    assert "shift" not in text
    assert cli.main(["inspect", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tiles"] == 8
    for flags in (["--align", "20"], ["--scaling", "scene"], ["--crs", "EPSG:3857"]):
        assert cli.main(["inspect", *words, *flags]) == 2
        assert cli.main(["predict", *words, "-o", str(tmp_path / "out"), *flags]) == 2
    assert cli.main(["predict", *words, "-o", str(tmp_path / "out"), "--min-area", "9"]) == 2
    assert "min_area: found 9.0 and folders of tiles" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_flags_of_a_prediction_count(good):
    info = ModelInfo(INFO.model, INFO.optical, Modality((1,), (50.0,), (200.0,), unit="8-bit"))
    still = inspect_pair(*good, "optical", info, GridChoice(), Windows(128, 32), "off", "weights")
    assert still["alignment"] is None
    (only,) = still["problems"]
    assert only["remedy"] == "rescale the image as those of training were"
    with pytest.raises(InputError, match=r"^align: found 'far', expected auto"):
        inspect_pair(*good, "optical", info, GridChoice(), Windows(), align="far")


@pytest.mark.slow
def test_the_real_pair(shared):
    scene = shared / "data" / "scene_la"
    info = ModelInfo(ModelConfig(optical_channels=3, sar_channels=1), uint8_modality((1, 2, 3)), uint8_modality((1,)))
    report = look(scene / "optical.tif", scene / "sar.tif", info=info)
    assert report["problems"] == []
    assert report["overlap"] == pytest.approx(0.914, abs=0.01)
    assert report["before"]["pixel_m"] == pytest.approx([8.3, 8.3], abs=0.1)  # Mercator's ten are fewer on the ground
    swapped = look(scene / "sar.tif", scene / "optical.tif", info=info)
    assert not swapped["usable"]
    assert any("is taken for optical" in item["found"] for item in swapped["problems"])


def test_local_crs(good, tmp_path):
    local = Grid(CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]'), SAR.transform, *SAR.shape)
    report = look(good[0], save(tmp_path / "local.tif", local, POWER))
    assert not report["usable"]
    assert report["after"]["bounds_wgs84"] is None


def test_a_crs_near_an_epsg_code_keeps_its_own_name(good, tmp_path):
    near = CRS.from_string("+proj=utm +zone=33 +ellps=intl +units=m")  # PROJ would call it EPSG:23033, 114 m away
    before = save(tmp_path / "near.tif", Grid(near, OPTICAL.transform, *OPTICAL.shape), COLOURS)
    report = look(before, good[1])
    for found in (report["before"]["crs"], report["grid"]["crs"]):
        assert CRS.from_user_input(found) == near
    assert in_words(report).count("unknown") == 2  # its name, of the image and of the map
