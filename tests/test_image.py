"""One date on any grid: tie points, folders of granules, virtual rasters."""

import logging
from contextlib import ExitStack

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from test_pair import ONE, OPTICAL, SAR, UTM, WGS84, ground, inside, read, refused, save
from test_place import curved, polynomials, tie_points

from hetecd.errors import InputError
from hetecd.grids import GridChoice, choose_grid
from hetecd.image import are_tiles, open_image
from hetecd.inspection import _covered
from hetecd.pair import open_pair
from hetecd.place import at_grid
from hetecd.raster import Grid
from hetecd.results import About, describe
from hetecd.tiles import Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SHAPE = 400, 500
WHOLE: dict[str, np.ndarray] = {}  # of each kind of tie points, read at once
FIJI, FIJI_CORNER = CRS.from_epsg(32760), (818_394.0, 8_118_550.0)
NEXT_ZONE = CRS.from_epsg(32632)


def on_ground(lon, lat):
    """What stands at a place: the function of test_pair, by longitude and latitude."""
    x, y = (np.array(v).reshape(np.shape(lon)) for v in transform_points(WGS84, UTM, np.ravel(lon), np.ravel(lat)))
    return 1000 + 0.05 * (x - 500_000) + 0.03 * (y - 5_005_000)


def pictured(path, how):
    """An image of 400 x 500 pixels without transform, whose pixels lie by GCPs or by RPCs."""
    rows, cols = np.indices(SHAPE) + 0.5
    with rasterio.open(path, "w", driver="GTiff", height=400, width=500, count=1, dtype="float32") as dataset:
        if how == "GCPs":
            dataset.gcps = tie_points(), WGS84
            image = on_ground(*curved(cols, rows))
        else:
            dataset.rpcs = polynomials()
            image = np.zeros(SHAPE)
        dataset.write(image.astype(np.float32), 1)
    if how == "RPCs":  # place_of is held against the formula in test_place
        with open_image(path, (1,)) as opened, rasterio.open(path, "r+") as dataset:
            lon, lat = opened.place.ground(cols.ravel(), rows.ravel())
            dataset.write(on_ground(lon, lat).reshape(SHAPE).astype(np.float32), 1)
    return path


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """Images by tie points, and an ordinary optical one."""
    folder = tmp_path_factory.mktemp("placed")
    save(folder / "optical.tif", OPTICAL, ground(OPTICAL).astype(np.float32))
    return {"optical": folder / "optical.tif"} | {how: pictured(folder / f"{how}.tif", how) for how in ("GCPs", "RPCs")}


def off_px(image, expected):
    """How far, in pixels of some 9 m, values are from their place; without the few that lie at the very border."""
    return np.nanquantile(np.abs(image - expected), 0.99) / (9 * np.hypot(0.05, 0.03))


@pytest.mark.parametrize("how", ["GCPs", "RPCs"])
def test_sar_by_tie_points_lands_where_it_belongs(placed, how):
    _, sar, valid = read(placed["optical"], placed[how])
    assert valid.mean() > 0.6
    assert off_px(sar[0], ground(OPTICAL)[0]) < 0.1


@pytest.mark.parametrize("how", ["GCPs", "RPCs"])
def test_optical_by_tie_points_gets_a_grid_north_up_in_utm(placed, how, tmp_path):
    sar = save(tmp_path / "sar.tif", SAR, ground(SAR).astype(np.float32))
    with open_image(placed[how], (1,)) as image:
        corners = np.array(transform_points(WGS84, UTM, *image.place.ground(*image.place.outline())))
    with open_pair(placed[how], sar, "optical", ONE, ONE) as pair:
        grid = pair.grid
        optical, sar, valid = pair.read(Window(0, 0, *grid.shape))
    assert grid.crs == UTM
    edge = grid.transform.a
    assert grid.transform == Affine(edge, 0, grid.transform.c, 0, -edge, grid.transform.f)
    assert 8 < edge < 11
    assert np.allclose(np.array([grid.transform.c, grid.transform.f]) / edge % 1, 0)
    left, bottom, right, top = grid.bounds
    around = np.array([left, bottom, right, top])
    tight = np.array([*corners.min(1), *corners.max(1)])
    assert (np.abs(around - tight) <= edge).all()
    assert valid.mean() > 0.8
    assert off_px(optical[0], ground(grid)[0]) < 0.1
    assert off_px(sar[0], ground(grid)[0]) < 0.1


@pytest.mark.parametrize("how", ["GCPs", "RPCs"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_windows_of_tie_points_are_bit_identical(placed, how, data):
    row, col = data.draw(st.integers(0, 299)), data.draw(st.integers(0, 259))
    window = Window(row, col, data.draw(st.integers(1, 300 - row)), data.draw(st.integers(1, 260 - col)))
    if how not in WHOLE:
        WHOLE[how] = read(placed["optical"], placed[how])[1]
    part, whole = read(placed["optical"], placed[how], window)[1], WHOLE[how]
    assert np.array_equal(part, whole[:, row : row + window.height, col : col + window.width], equal_nan=True)


def quarters(folder, crs=(None, None, None, None), overlap_px=20):
    """The SAR image as four granules that overlap; each in degrees, or in another CRS at 9 m."""
    folder.mkdir()
    for number, target in enumerate(crs):
        row, col = divmod(number, 2)
        part = SAR.window(Window(row * 250 - overlap_px * row, col * 300 - overlap_px * col, 250 + overlap_px, 300))
        if target is not None:
            (left, right), (bottom, top) = transform_points(WGS84, target, part.bounds[::2], part.bounds[1::2])
            part = Grid(target, Affine(9, 0, left, 0, -9, top), int((top - bottom) / 9), int((right - left) / 9))
        save(folder / f"granule_{number}.tif", part, ground(part).astype(np.float32))
    return folder


def test_granules_of_one_grid_are_read_as_they_are(tmp_path, caplog):
    """On their own grid, so that nothing is resampled; they leave no seam, and nothing where there is none of them."""
    image = np.random.default_rng(0).normal(0, 1, SAR.shape).astype(np.float32)
    folder = tmp_path / "granules"
    folder.mkdir()
    for name, row, col in (("a", 0, 0), ("b", 0, 300), ("c", 250, 0)):  # no south-eastern quarter
        save(
            folder / f"{name}.tif",
            SAR.window(Window(row, col, 250, 300)),
            image[None, row : row + 250, col : col + 300],
        )
    sar = save(tmp_path / "sar.tif", SAR, image)
    with caplog.at_level(logging.INFO, "hetecd"):
        optical, sar, valid = read(folder, sar)
    assert f"{folder}: 3 granules, taken as one image" in caplog.text
    assert optical.shape == (1, *SAR.shape)
    there = np.ones(SAR.shape, bool)
    there[250:, 300:] = False
    assert np.array_equal(valid, there)
    assert np.array_equal(optical[0][there], image[there])
    assert np.array_equal(sar[0], image)


@pytest.mark.parametrize("crs", [(None,) * 4, (UTM, NEXT_ZONE, None, UTM)], ids=["one CRS", "three CRSs"])
def test_granules_as_sar(tmp_path, crs):
    optical = save(tmp_path / "optical.tif", OPTICAL, np.ones((1, *OPTICAL.shape), np.uint8))
    folder = quarters(tmp_path / "sar", crs)
    _, sar, valid = read(optical, folder)
    assert valid[inside(OPTICAL, SAR, 25)].all()
    np.testing.assert_allclose(sar[0][valid], ground(OPTICAL)[0][valid], atol=0.3)
    rng = np.random.default_rng(1)
    for row, col in rng.integers(0, 200, (10, 2)).tolist():
        part = read(optical, folder, Window(row, col, 55, 47))
        assert np.array_equal(part[1], sar[:, row : row + 55, col : col + 47], equal_nan=True)
        assert np.array_equal(part[2], valid[row : row + 55, col : col + 47])


def test_the_first_granule_by_name_counts(tmp_path):
    folder = tmp_path / "sar"
    folder.mkdir()
    save(folder / "b.tif", SAR, np.full((1, *SAR.shape), 2, np.uint8), 0)
    top = np.full((1, 300, 600), 1, np.uint8)
    top[:, 100:120] = 0  # invalid there: the other granule shows
    save(folder / "a.tif", SAR.window(Window(0, 0, 300, 600)), top, 0)
    optical = save(tmp_path / "optical.tif", SAR, np.ones((1, *SAR.shape), np.uint8))
    _, sar, valid = read(optical, folder)
    assert valid.all()
    assert [set(np.unique(rows)) for rows in (sar[0, :100], sar[0, 100:120], sar[0, 120:300], sar[0, 300:])] == [
        {1}, {2}, {1}, {2},
    ]  # fmt: skip


def test_files_of_all_granules_are_known(tmp_path):
    folder = quarters(tmp_path / "sar")
    with open_image(folder, (1,)) as image:
        assert image.files == [str(folder / f"granule_{number}.tif") for number in range(4)]
    with open_pair(folder, folder, "optical", ONE, ONE) as pair:
        before = describe(pair, About(), {})["before"]
        assert before["bytes"] == sum((folder / f"granule_{number}.tif").stat().st_size for number in range(4))
        (folder / "granule_3.tif").write_bytes((folder / "granule_2.tif").read_bytes())
        assert describe(pair, About(), {})["before"]["sha256"] != before["sha256"]


def test_folders_that_are_no_mosaic(tmp_path):
    optical = save(tmp_path / "optical.tif", OPTICAL, np.ones((1, *OPTICAL.shape), np.uint8))
    (tmp_path / "empty").mkdir()
    refused(optical, tmp_path / "empty", "found no image")
    bands = tmp_path / "bands"
    bands.mkdir()
    for name in ("B02.tif", "B03.tif"):
        save(bands / name, SAR, np.ones((1, *SAR.shape), np.uint8))
    assert "stack bands" in refused(optical, bands, "B02.tif and B03.tif of the same grid")
    save(bands / "B03.tif", Grid(None, Affine.identity(), *SAR.shape), np.ones((1, *SAR.shape), np.uint8))
    assert "which are tiles" in refused(optical, bands, "B03.tif: found no CRS")


def test_tiles_are_told_from_granules(tmp_path):
    plain = Grid(None, Affine.identity(), 40, 50)
    here, there = SAR.window(Window(0, 0, 40, 50)), SAR.window(Window(0, 50, 40, 50))
    for folder, names, grids in (
        ("tiles_a", "xy", (plain, plain)), ("tiles_b", "xy", (plain, plain)), ("plain", "uv", (plain, plain)),
        ("granules", "pq", (here, there)), ("named_alike", "xy", (here, there)),
    ):  # fmt: skip
        (tmp_path / folder).mkdir()
        for name, grid in zip(names, grids, strict=True):
            save(tmp_path / folder / f"{name}.tif", grid, np.ones((1, 40, 50), np.uint8))

    def tiles(one, other):
        return are_tiles(tmp_path / one, tmp_path / other)

    assert tiles("tiles_a", "tiles_b")
    assert tiles("tiles_a", "named_alike")  # the same names: a data set, georeferenced or not
    assert tiles("tiles_a", "plain")  # whatever is wrong there, folders.match_tiles says it
    assert not tiles("granules", "named_alike")
    assert not tiles("granules", "tiles_a/x.tif")
    assert not tiles("tiles_a/x.tif", "tiles_b/x.tif")


VRT = """<VRTDataset rasterXSize="600" rasterYSize="500"><SRS>EPSG:4326</SRS>
<GeoTransform>14.97, 0.00012, 0, 45.22, 0, -0.0001</GeoTransform>
<VRTRasterBand dataType="Float32" band="1"><NoDataValue>nan</NoDataValue>{}</VRTRasterBand></VRTDataset>"""
SOURCE = """<ComplexSource><SourceFilename relativeToVRT="1">{}.tif</SourceFilename>
<SrcRect xOff="0" yOff="0" xSize="300" ySize="500"/><DstRect xOff="{}" yOff="0" xSize="300" ySize="500"/>
<NODATA>nan</NODATA></ComplexSource>"""


def test_a_virtual_mosaic(tmp_path):
    optical = save(tmp_path / "optical.tif", OPTICAL, np.ones((1, *OPTICAL.shape), np.uint8))
    whole = save(tmp_path / "whole.tif", SAR, ground(SAR).astype(np.float32))
    for name, col in (("west", 0), ("east", 300)):
        part = SAR.window(Window(0, col, 500, 300))
        save(tmp_path / f"{name}.tif", part, ground(part).astype(np.float32))
    vrt = tmp_path / "mosaic.vrt"
    vrt.write_text(VRT.format(SOURCE.format("west", 0) + SOURCE.format("east", 300)))
    for one, other in zip(read(optical, vrt), read(optical, whole), strict=True):
        assert np.array_equal(one, other, equal_nan=True)
    with open_image(vrt, (1,)) as image:
        assert {str(tmp_path / f"{name}.tif") for name in ("west", "east")} < set(image.files)
    (tmp_path / "east.tif").unlink()
    assert str(vrt) in refused(optical, vrt, "east.tif")


def test_an_image_far_from_the_grid(tmp_path):
    far = save(tmp_path / "far.tif", SAR, np.ones((1, *SAR.shape), np.uint8))
    grid = Grid(UTM, Affine(10, 0, 700_000, 0, -10, 5_005_000), 100, 100)
    with open_image(far, (1,)) as image, ExitStack() as stack, pytest.raises(InputError, match="no overlap") as error:
        image.on(stack, grid)
    assert "in EPSG:4326 against [700000, 5004000, 701000, 5005000] in EPSG:32633" in str(error.value)


def across(path, degrees=None, crs=WGS84, ties=False):
    """An image across the antimeridian: in UTM, or in degrees that begin so much from where it lies."""
    grid = Grid(FIJI, Affine(10, 0, FIJI_CORNER[0], 0, -10, FIJI_CORNER[1]), 110, 210)
    if degrees is not None:
        grid = Grid(crs, Affine(1e-4, 0, 179.99 + degrees, 0, -1e-4, -16.995), 100, 200)
    rows, cols = np.indices(grid.shape) + 0.5
    x, y = (np.array(v) for v in grid.transform @ (cols.ravel(), rows.ravel()))
    if degrees is None:
        x, y = (np.array(v) for v in transform_points(FIJI, WGS84, x, y))
    values = (1e4 * (x % 360 - 179.9) + 3e3 * (y + 17.1)).reshape(1, *grid.shape).astype(np.float32)
    if not ties:
        return save(path, grid, values)
    points = [(row, col, *(grid.transform @ (col, row))) for row in (0, 50, 100) for col in (0, 100, 200)]
    gcps = [GroundControlPoint(row, col, x, y) for row, col, x, y in points]
    with rasterio.open(
        path, "w", driver="GTiff", height=100, width=200, count=1, dtype="float32", gcps=gcps, crs=crs
    ) as dataset:
        dataset.write(values)
    return path


@pytest.mark.parametrize(
    "sar",
    [{}, {"degrees": 0}, {"degrees": -360}, {"degrees": 0, "ties": True}, {"degrees": -360, "ties": True}],
    ids=str,
)
@pytest.mark.parametrize("optical", [{}, {"degrees": 0}, {"degrees": -360}], ids=str)
def test_images_across_the_antimeridian(tmp_path, optical, sar):
    """In degrees each goes on beyond 180 from either side; no part of it may seem empty."""
    paths = across(tmp_path / "optical.tif", **optical), across(tmp_path / "sar.tif", **sar)
    seen, also, valid = read(*paths)
    assert valid.mean() > 0.85
    assert np.abs(seen - also)[:, valid].max() < 0.5  # of 1 for each pixel of degrees; the border is stretched
    with open_pair(*paths, "optical", ONE, ONE) as pair, open_image(paths[1], (1,)) as image, ExitStack() as stack:
        (dataset,) = image.datasets_on(stack, pair.grid)
        np.testing.assert_array_equal(dataset.read(1)[valid], also[0][valid])


@pytest.mark.parametrize("crs", [4167, 4720])
def test_other_degrees_across_the_antimeridian(tmp_path, crs):
    """Of New Zealand; of Fiji in 1986, some way off."""
    seen, also, valid = read(across(tmp_path / "optical.tif"), across(tmp_path / "sar.tif", 0, CRS.from_epsg(crs)))
    assert valid.mean() > 0.8
    assert np.abs(seen - also)[:, valid].max() < (20 if crs == 4720 else 0.5)


def test_a_grid_across_the_antimeridian_of_another_kind(tmp_path):
    """In three dimensions, whose CRS cannot be turned; what is brought from degrees needs no turn."""
    seen, also, valid = read(across(tmp_path / "optical.tif", 0, CRS.from_epsg(4979)), across(tmp_path / "sar.tif"))
    assert valid.mean() > 0.85
    assert np.abs(seen - also)[:, valid].max() < 0.5


def test_half_of_an_image_on_the_other_side(tmp_path):
    """Where both are in the same degrees and share a part, the rest of it lies across, too."""
    wide = save(
        tmp_path / "wide.tif", Grid(WGS84, Affine(1, 0, 170, 0, -1, 10), 20, 20), np.ones((1, 20, 20), np.uint8)
    )
    globe = save(
        tmp_path / "all.tif", Grid(WGS84, Affine(1, 0, -180, 0, -1, 90), 180, 360), np.ones((1, 180, 360), np.uint8)
    )
    assert read(wide, globe)[2].mean() > 0.9


@pytest.mark.parametrize("bounds", [(-20, 0, 180, 80), (-180, -90, 180, 90)], ids=["half of it", "the world"])
def test_an_image_whose_outline_has_no_place_on_the_grid(tmp_path, bounds):
    """The answer must not depend on how often it was asked, either: GDAL complains of the first few points only."""
    left, bottom, right, top = bounds
    wide = Grid(WGS84, Affine((right - left) / 400, 0, left, 0, -(top - bottom) / 300, top), 300, 400)
    path = save(tmp_path / "wide.tif", wide, np.arange(1, 120_001, dtype=np.float32).reshape(1, 300, 400))
    grid = Grid(UTM, Affine(1000, 0, 500_000, 0, -1000, 5_005_000), 100, 100)
    found = []
    for _ in range(10):
        with open_image(path, (1,)) as image, ExitStack() as stack:
            values, valid = image.on(stack, grid)(Window(0, 0, 100, 100))
        assert valid.all()
        found.append(values)
    assert all(np.array_equal(values, found[0]) for values in found)
    for _ in range(10):
        choice = GridChoice(crs="EPSG:32633", bounds=(500_000, 4_905_000, 600_000, 5_005_000), resolution=1000)
        assert choose_grid([at_grid(wide)], path, choice).grid == grid
    part = save(tmp_path / "part.tif", grid, np.ones((1, 100, 100), np.uint8))
    with open_image(part, (1,)) as image:
        assert not _covered(image, wide).all()
