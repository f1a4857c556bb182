import math
import os
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

from hetecd.errors import InputError, OutputError
from hetecd.folders import TileFiles
from hetecd.grids import GridChoice
from hetecd.modality import Scaled, standardised, uint8_modality
from hetecd.pair import open_pair
from hetecd.predict import predict_folder, predict_scene
from hetecd.raster import Grid, open_raster, read_raster, to_float32, write_raster
from hetecd.results import About
from hetecd.stream import probability_rows
from hetecd.tiles import Window, window_rows
from hetecd.vector import PolygonSettings

OPTICAL = Grid(CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_005_000), 200, 260)
SAR = Grid(CRS.from_epsg(4326), Affine(0.00012, 0, 14.995, 0, -0.0001, 45.195), 180, 200)
TWO, ONE = uint8_modality((1, 2)), uint8_modality((1,))
OUTPUTS = ["change.gpkg", "change.qml", "change.tif", "item.json", "probability.qml", "probability.tif", "summary.json"]


def pointwise(optical, sar):
    """Depends on nothing but the pixel itself, as a predictor that tiling cannot disturb."""
    return 0.5 + 0.25 * np.sin(optical.mean(1) / 9) + 0.25 * np.cos(sar.mean(1) / 7)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    optical = rng.integers(1, 255, (2, *OPTICAL.shape)).astype(np.uint8)
    optical[:, :30, :40] = 0
    sar = rng.exponential(20, (1, *SAR.shape)).astype(np.float32)
    write_raster(tmp_path / "optical.tif", optical, OPTICAL, nodata=0)
    write_raster(tmp_path / "sar.tif", sar, SAR)
    return tmp_path / "optical.tif", tmp_path / "sar.tif"


@pytest.fixture
def pair(files):
    with open_pair(*files, "optical", TWO, ONE) as pair:
        yield pair


def test_outputs_lie_on_the_optical_grid(pair, tmp_path):
    weights = {"name": "none.safetensors", "path": "none.safetensors", "sha256": None, "scores": None}
    summary = predict_scene(pair, pointwise, tmp_path / "out", 0.6, tile_px=64, overlap_px=16, about=About(weights))
    assert sorted(os.listdir(tmp_path / "out")) == OUTPUTS
    optical, sar, valid = pair.read(Window(0, 0, *pair.grid.shape))
    assert 0.1 < valid.mean() < 0.9
    expected = np.where(valid, pointwise(optical[None], sar[None])[0], np.nan).astype(np.float32)
    for name, nodata in (("change.tif", 255), ("probability.tif", np.nan)):
        with rasterio.open(tmp_path / "out" / name) as dataset:
            assert (dataset.crs, dataset.transform, dataset.shape) == (OPTICAL.crs, OPTICAL.transform, OPTICAL.shape)
            assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            np.testing.assert_equal(dataset.nodata, nodata)
            tags = dataset.tags()
            assert (tags["threshold"], tags["weights"]) == ("0.6", "none.safetensors")
    probability = read_raster(tmp_path / "out" / "probability.tif")
    # Stitched from windows it is what one pass gives, to the last bit.
    assert np.array_equal(probability.array[0], expected, equal_nan=True)
    change = read_raster(tmp_path / "out" / "change.tif")
    assert change.array.dtype == np.uint8
    assert np.array_equal(change.array[0], np.where(valid, expected >= 0.6, 255))
    assert np.array_equal(change.valid, valid)
    _, _, geometry, fields = pyogrio.raw.read(tmp_path / "out" / "change.gpkg")
    changed = int((change.array == 1).sum())
    assert summary.polygons == len(geometry)
    assert fields[1].sum() == summary.changed_pixels == changed
    assert summary.changed_area_m2 == pytest.approx(changed * 100 / 0.9996**2, rel=1e-4)
    assert (summary.pixels, summary.valid_pixels) == (200 * 260, valid.sum())
    assert (summary.windows, summary.seconds > 0) == (4 * 6, True)
    assert [path.name for path in sorted(summary.outputs)] == OUTPUTS


def test_roles_by_the_flag(files, tmp_path):
    with open_pair(files[1], files[0], "sar", TWO, ONE) as pair:
        predict_scene(pair, pointwise, tmp_path / "a")
    with open_pair(*files, "optical", TWO, ONE) as pair:
        predict_scene(pair, pointwise, tmp_path / "b", tile_px=4000)
    images = [read_raster(tmp_path / name / "probability.tif").array for name in "ab"]
    assert np.array_equal(*images, equal_nan=True)


@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_predictor_gets_full_batches_of_raw_pixels(pair, batch):
    seen = []
    usable = [sum(pair.read(window)[2].any() for window in row) for row in window_rows(*pair.grid.shape, 64, 16)]
    assert max(usable) == 4  # of six in a row

    def predictor(optical, sar):
        assert optical.dtype == sar.dtype == np.float32
        assert optical.shape[1:] == (2, 64, 64)
        assert sar.shape[1:] == (1, 64, 64)
        valid = np.isfinite(optical).all(1) & np.isfinite(sar).all(1)
        assert valid.any((1, 2)).all()  # windows without a valid pixel never come here
        seen.append(len(optical))
        return np.full((len(optical), 64, 64), 0.3)

    rows = np.concatenate(list(probability_rows(pair, predictor, 64, 16, batch)))
    assert max(seen) == min(batch, 4)  # batches end with a row
    assert len(seen) == sum(-(-count // batch) for count in usable)
    assert set(np.unique(rows[~np.isnan(rows)])) == {np.float32(0.3)}


def test_windows_without_valid_pixels_are_skipped(pair, tmp_path):
    calls = []

    def predictor(optical, sar):
        calls.append(len(optical))
        return np.zeros((len(optical), *optical.shape[2:]), np.float32)

    summary = predict_scene(pair, predictor, tmp_path / "out", tile_px=32, overlap_px=4)
    assert summary.skipped > 0
    assert sum(calls) + summary.skipped == summary.windows
    assert summary.polygons == 0
    assert pyogrio.read_info(tmp_path / "out" / "change.gpkg")["features"] == 0


def test_what_a_predictor_says_of_invalid_pixels_is_not_heard(pair):
    def wild(optical, sar):
        valid = np.isfinite(optical).all(1) & np.isfinite(sar).all(1)
        return np.where(valid, pointwise(optical, sar), 1e30)

    rows = [np.concatenate(list(probability_rows(pair, predictor, 64, 16, 2))) for predictor in (wild, pointwise)]
    assert np.array_equal(*rows, equal_nan=True)


def test_no_seams_from_a_predictor_that_is_bad_near_borders(pair):
    def bad(optical, sar):
        value = np.full((len(optical), *optical.shape[2:]), 0.5, np.float32)
        value[:, :4] = value[:, -4:] = value[:, :, :4] = value[:, :, -4:] = 0.9
        return value

    rows = np.concatenate(list(probability_rows(pair, bad, 64, 16, 2)))[4:-4, 4:-4]
    assert set(np.unique(rows[~np.isnan(rows)])) == {np.float32(0.5)}


def tile_folder(folder, shapes):
    tiles = []
    for number, shape in enumerate(shapes):
        rng = np.random.default_rng(number)
        paths = folder / f"{number}_optical.png", folder / f"{number}_sar.tif"
        Image.fromarray(rng.integers(1, 255, (*shape, 3)).astype(np.uint8)).save(paths[0])
        sar = rng.exponential(20, (1, *shape)).astype(np.float32)
        sar[:, :5, :5] = np.nan
        write_raster(paths[1], sar, Grid(None, Affine.identity(), *shape))
        tiles.append(TileFiles(f"tile{number}", *paths))
    return tiles


@pytest.mark.parametrize("shape", [(1, 1), (7, 90), (20, 20), (32, 31), (33, 45)])
def test_tiny_scenes(tmp_path, shape):
    (tile,) = tile_folder(tmp_path, [(64, 64)])
    image = read_raster(tile.after).array[:, 10 : 10 + shape[0], : shape[1]] if shape[1] <= 64 else np.ones((1, *shape))
    write_raster(tmp_path / "a.tif", image.astype(np.float32), Grid(None, Affine.identity(), *shape))

    def predictor(optical, sar):
        assert min(optical.shape[2:]) >= 32
        return pointwise(optical, sar)

    with open_pair(tmp_path / "a.tif", tmp_path / "a.tif", "optical", ONE, ONE) as pair:
        summary = predict_scene(pair, predictor, tmp_path / "out")
    assert summary.valid_pixels == summary.pixels == shape[0] * shape[1]
    assert math.isnan(summary.changed_area_m2)


def test_folder_of_tiles(tmp_path):
    tiles = tile_folder(tmp_path, [(64, 64), (64, 64), (40, 70), (150, 130)])
    three = uint8_modality((1, 2, 3))
    summary = predict_folder(tiles, pointwise, tmp_path / "out", three, ONE, threshold=0.6, tile_px=100, overlap_px=8)
    names = [f"tile{number}.png" for number in range(4)]
    assert sorted(os.listdir(tmp_path / "out")) == ["probability", *names]
    assert sorted(os.listdir(tmp_path / "out" / "probability")) == names
    assert (summary.windows, len(summary.outputs)) == (4, 8)
    valid_pixels = changed = 0
    for tile in tiles:
        optical, sar = read_raster(tile.before), read_raster(tile.after)
        expected = pointwise(*(to_float32(image.array, image.valid)[None] for image in (optical, sar)))[0]
        change = np.asarray(Image.open(tmp_path / "out" / f"{tile.name}.png"))
        assert np.array_equal(change, np.where(sar.valid, np.where(expected >= 0.6, 255, 0), 127))
        level = read_raster(tmp_path / "out" / "probability" / f"{tile.name}.png")
        assert np.array_equal(level.valid, sar.valid)
        assert np.abs(level.array[0] / 254 - expected)[sar.valid].max() <= 0.5 / 254 + 1e-6
        valid_pixels += int(sar.valid.sum())
        changed += int((change == 255).sum())
    assert (summary.valid_pixels, summary.changed_pixels) == (valid_pixels, changed)
    with pytest.raises(InputError, match="found none"):
        predict_folder([], pointwise, tmp_path / "out", three, ONE)


def test_tiles_larger_than_a_window_show_no_seams(tmp_path):
    """Bands that are standardised window by window would."""
    (tile,) = tile_folder(tmp_path, [(200, 180)])
    three = uint8_modality((1, 2, 3))

    def standardising(optical, _):
        bands = optical if optical.shape[1] == 6 else standardised(optical)
        return 1 / (1 + np.exp(-bands[:, 3]))

    levels = []
    for tile_px in (96, 128):
        seen = Scaled(standardising, three, ONE, standardises=True)
        predict_folder([tile], seen, tmp_path / "out", three, ONE, tile_px=tile_px, overlap_px=32)
        levels.append(read_raster(tmp_path / "out" / "probability" / f"{tile.name}.png").array.astype(int))
    assert np.abs(levels[0] - levels[1]).max() <= 1


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_valid_pixel_leaves_nothing_behind(tmp_path):
    plain = Grid(None, Affine.identity(), 50, 60)
    write_raster(tmp_path / "nan.tif", np.full((1, 50, 60), np.nan, np.float32), plain)
    write_raster(tmp_path / "one.tif", np.ones((1, 50, 60), np.float32), plain)

    def never(optical, sar):
        raise AssertionError("nothing to predict")

    with open_pair(tmp_path / "one.tif", tmp_path / "nan.tif", "optical", ONE, ONE) as pair:
        for folder in (tmp_path / "new" / "out", tmp_path):
            with pytest.raises(InputError, match="no pixel that is valid in both") as error:
                predict_scene(pair, never, folder)
            assert "nan.tif" in one_line(error)
    assert sorted(os.listdir(tmp_path)) == ["nan.tif", "one.tif"]


@pytest.mark.parametrize(
    ("predictor", "message"),
    [
        (lambda o, s: np.full((len(o), *o.shape[2:]), np.nan), "probabilities"),
        (lambda o, s: np.full((len(o), *o.shape[2:]), 1.1), "probabilities"),
        (lambda o, s: np.zeros((len(o), 2, *o.shape[2:])), "shape"),
    ],
)
def test_no_probabilities(pair, tmp_path, predictor, message):
    with pytest.raises(InputError, match=message) as error:
        predict_scene(pair, predictor, tmp_path / "out")
    one_line(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong", [{"threshold": 1.5}, {"tile_px": 16, "overlap_px": 4}, {"overlap_px": 512}, {"batch": 0}]
)
def test_bad_arguments(pair, tmp_path, wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}: found"):
        predict_scene(pair, pointwise, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_interrupted_run_keeps_older_results(pair, tmp_path, stop):
    predict_scene(pair, pointwise, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in OUTPUTS}
    calls = []

    def interrupted(optical, sar):
        calls.append(0)
        if len(calls) == 3:
            raise stop
        return pointwise(optical, sar)

    with pytest.raises(stop):
        predict_scene(pair, interrupted, tmp_path / "out", tile_px=64, overlap_px=16, batch=1)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in os.listdir(tmp_path / "out")} == before


def test_folder_that_cannot_be_written(pair, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OutputError, match="cannot write") as error:
            predict_scene(pair, pointwise, folder)
        assert str(folder) in one_line(error)


@pytest.mark.parametrize("limit", [0, 20_000, 100_000])
def test_disk_full(files, tmp_path, limit):
    script = """
        import resource, sys
        from hetecd.errors import OutputError
        from hetecd.modality import Scaled, standardised, uint8_modality
        from hetecd.pair import open_pair
        from hetecd.predict import predict_scene
        one, limit = uint8_modality((1,)), int(sys.argv[4])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            with open_pair(sys.argv[1], sys.argv[2], "optical", one, one) as pair:
                predict_scene(pair, lambda o, s: (o[:, 0] * s[:, 0]) % 1, sys.argv[3])
        except OutputError as error:
            assert chr(10) not in str(error)
            print("refused")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, files), str(tmp_path / "out"), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["{}", "file://{}", "GTIFF_DIR:1:{}", "link", "vrt"])
@pytest.mark.parametrize("name", ["change.tif", "probability.tif"])
def test_a_scene_does_not_replace_its_inputs(files, tmp_path, which, how, name):
    out = tmp_path / "out"
    out.mkdir()
    names = [str(path) for path in files]
    files[which].rename(out / name)
    names[which] = how.format(out / name)
    if how == "link":
        names[which] = str(tmp_path / "link.tif")
        os.symlink(out / name, names[which])
    if how == "vrt":
        names[which] = str(tmp_path / "link.vrt")
        rasterio.shutil.copy(out / name, names[which], driver="VRT")
    content = (out / name).read_bytes()
    with (
        open_pair(*names, "optical", TWO, ONE) as pair,
        pytest.raises(InputError, match="found an input there") as error,
    ):
        predict_scene(pair, pointwise, out)
    assert str(out / name) in one_line(error)
    assert os.listdir(out) == [name]
    assert (out / name).read_bytes() == content


def test_a_scene_does_not_replace_its_area_of_interest(files, pair, tmp_path):
    out = tmp_path / "out"
    predict_scene(pair, pointwise, out)
    before = {name: (out / name).read_bytes() for name in OUTPUTS}
    with (
        open_pair(*files, "optical", TWO, ONE, choice=GridChoice(aoi=out / "change.gpkg")) as part,
        pytest.raises(InputError, match=r"change.gpkg: found an input there"),
    ):
        predict_scene(part, pointwise, out)
    assert {name: (out / name).read_bytes() for name in os.listdir(out)} == before


def test_what_is_outdated_does_not_stay_beside_a_new_map(pair, tmp_path, caplog):
    predict_scene(pair, pointwise, tmp_path)
    for name in ("report.html", "notes.txt"):
        (tmp_path / name).write_text("about the map")
    before = {*os.listdir(tmp_path)}
    with caplog.at_level("INFO", "hetecd"):
        predict_scene(pair, pointwise, tmp_path, polygons=PolygonSettings("fgb"))
    assert {*os.listdir(tmp_path)} == before - {"change.gpkg", "report.html"} | {"change.fgb"}
    for name in ("change.gpkg", "report.html"):
        assert f"{tmp_path / name}: removed, it was of an older map" in caplog.messages


def test_a_finished_map_has_its_summary_last(pair, tmp_path):
    (tmp_path / "summary.json" / "in the way").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"summary.json"):
        predict_scene(pair, pointwise, tmp_path)
    assert {*OUTPUTS} - {*os.listdir(tmp_path)} == set()


def test_what_a_killed_run_left_to_remove_goes_with_the_next(pair, tmp_path):
    weights = {"name": "n", "path": "n", "bytes": 1, "sha256": "known", "scores": None}
    predict_scene(pair, pointwise, tmp_path, about=About(weights))
    report = tmp_path / "report.html"
    report.write_text("about this map")
    made_s = (tmp_path / "summary.json").stat().st_mtime
    for seconds, stays in ((1, True), (-1, False)):
        os.utime(report, (made_s + seconds,) * 2)
        summary = predict_scene(pair, pointwise, tmp_path, about=About(weights))
        assert summary.windows == 0  # it was finished
        assert report.exists() == stays


def test_a_folder_of_granules_is_no_place_for_a_map(files, tmp_path):
    folder = tmp_path / "granules"
    folder.mkdir()
    files[1].rename(folder / "sar.tif")
    with (
        open_pair(files[0], folder, "optical", TWO, ONE) as pair,
        pytest.raises(InputError, match="granules: found an input there"),
    ):
        predict_scene(pair, pointwise, folder)
    assert os.listdir(folder) == ["sar.tif"]


@pytest.mark.parametrize("out", ["A", "B", "label", "link", "A/../B"])
def test_a_folder_of_tiles_is_no_place_for_their_maps(tmp_path, out):
    for name in ("A", "B", "label"):
        (tmp_path / name).mkdir()
        write_raster(tmp_path / name / "x.png", np.ones((40, 50), np.uint8), Grid(None, Affine.identity(), 40, 50))
    (tmp_path / "link").symlink_to(tmp_path / "A")
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*.png")}
    tiles = [TileFiles("x", *(tmp_path / name / "x.png" for name in ("A", "B", "label")))]
    with pytest.raises(InputError, match="found an input there") as error:
        predict_folder(tiles, pointwise, tmp_path / out, ONE, ONE)
    assert str(tmp_path / out) in one_line(error)
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == before
    # The folder above them is one, unless a map would lie among them.
    predict_folder(tiles, pointwise, tmp_path, ONE, ONE)
    (tmp_path / "A").rename(tmp_path / "old")
    (tmp_path / "probability").rename(tmp_path / "A")
    (tmp_path / "old").rename(tmp_path / "probability")
    tiles = [TileFiles("x", tmp_path / "probability" / "x.png", tmp_path / "B" / "x.png")]
    with pytest.raises(InputError, match="probability: found an input there"):
        predict_folder(tiles, pointwise, tmp_path, ONE, ONE)


def test_a_tile_linked_to_an_older_map_keeps_it(tmp_path):
    (tile,) = tile_folder(tmp_path, [(40, 50)])
    (tmp_path / "out").mkdir()
    tile.before.rename(tmp_path / "out" / "tile0.png")
    tile.before.symlink_to(tmp_path / "out" / "tile0.png")
    with pytest.raises(InputError, match=r"tile0.png: found an input there"):
        predict_folder([tile], pointwise, tmp_path / "out", ONE, ONE)
    assert os.listdir(tmp_path / "out") == ["tile0.png"]


@pytest.mark.parametrize("how", ["file://{}", "zip://{}", "GTIFF_DIR:1:{}", "GPKG:{}:TWO", "relative"])
def test_names_that_only_gdal_knows(files, tmp_path, monkeypatch, how):
    """SAR is warped, so its name is passed on to GDAL in a virtual raster."""
    expected = read_window(*files)
    path, name = files[1], None
    if how.startswith("zip"):
        with zipfile.ZipFile(tmp_path / "sar.zip", "w") as archive:
            archive.write(path, "sar.tif")
        name = how.format(tmp_path / "sar.zip") + "!sar.tif"
    elif how.startswith("GPKG"):
        container = tmp_path / "both.gpkg"
        for table in ("ONE", "TWO"):
            rasterio.shutil.copy(path, container, driver="GPKG", RASTER_TABLE=table, APPEND_SUBDATASET="YES",
                                 TILE_FORMAT="TIFF")  # fmt: skip
        with pytest.raises(InputError, match=f"container of 2 rasters.*GPKG:{container}:ONE"), open_raster(container):
            pass
        path = container
    elif how == "relative":
        monkeypatch.chdir(tmp_path)
        name = path.name
    for got, same in zip(read_window(files[0], name or how.format(path)), expected, strict=True):
        assert np.array_equal(got, same, equal_nan=got.dtype != bool)


def read_window(optical, sar):
    with open_pair(optical, sar, "optical", TWO, ONE) as pair:
        return pair.read(Window(20, 30, 150, 200))


def test_bar_is_silent_where_no_terminal_is(pair, tmp_path, capsys):
    predict_scene(pair, pointwise, tmp_path / "out")
    assert capsys.readouterr() == ("", "")


def test_real_scene(shared, tmp_path):
    scene = shared / "data" / "scene_la"

    def predictor(optical, sar):
        return (sar[:, 0] > 250) & (optical[:, 0] > 200)

    with open_pair(scene / "optical.tif", scene / "sar.tif", "optical", uint8_modality((1, 2, 3)), ONE) as pair:
        summary = predict_scene(pair, predictor, tmp_path / "out", batch=2)
        grid = pair.grid
    assert summary.pixels == 2048 * 3072
    assert summary.valid_pixels / summary.pixels == pytest.approx(0.9026, abs=1e-3)
    change = read_raster(tmp_path / "out" / "change.tif")
    assert change.grid == grid
    assert change.valid.sum() == summary.valid_pixels
    assert (change.array == 1).sum() == summary.changed_pixels > 0
    # A pixel of 10 Mercator metres is smaller on the ground by the square of the cosine of the latitude.
    metres = summary.changed_area_m2 / summary.changed_pixels
    assert metres == pytest.approx(100 * math.cos(math.radians(33.8)) ** 2, rel=0.01)
