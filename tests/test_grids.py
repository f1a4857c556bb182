"""The grid of a pair: the optical one's unless another is asked for, and the area of interest on it."""

import json
import warnings

import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from test_pair import ONE, OPTICAL, SAR, UTM, WGS84, ground, inside, read, save

from hetecd.errors import InputError, UsageError
from hetecd.files import sha256
from hetecd.grids import GridChoice, choose_grid
from hetecd.pair import open_pair
from hetecd.place import at_grid
from hetecd.raster import Grid
from hetecd.results import About, describe, tags
from hetecd.tiles import Window

PLAIN = Grid(UTM, Affine(10, 0, 500_000, 0, -10, 5_005_000), 300, 400)


AFAR = Grid(CRS.from_epsg(32760), Affine(10, 0, 818_451, 0, -10, 8_118_998), 200, 200)  # across the antimeridian


def chosen(grid=PLAIN, **choice):
    return choose_grid([at_grid(grid)], "optical.tif", GridChoice(**choice)).grid


def refused(match, grid=PLAIN, **choice):
    with pytest.raises(InputError, match=match) as error:
        chosen(grid, **choice)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def pair(tmp_path):
    optical = save(tmp_path / "optical.tif", OPTICAL, ground(OPTICAL).astype(np.float32))
    return optical, save(tmp_path / "sar.tif", SAR, ground(SAR).astype(np.float32))


@pytest.mark.parametrize("grid", [OPTICAL, SAR, PLAIN, Grid(None, Affine.identity(), 40, 50)])
def test_nothing_asked_for_is_the_optical_grid(grid):
    assert chosen(grid) == grid


def test_resolution_keeps_corner_and_direction():
    grid = chosen(OPTICAL, resolution=25)
    assert grid.res == pytest.approx((25, 25))
    assert grid.transform @ (0, 0) == OPTICAL.transform @ (0, 0)
    assert grid.shape == (np.ceil(300 * 8 / 25), np.ceil(260 * 10 / 25))
    assert np.arctan2(grid.transform.d, grid.transform.a) == pytest.approx(np.radians(20))


def test_crs_gives_north_up_squares_around_the_image():
    grid = chosen(SAR, crs="EPSG:32633")
    edge = grid.transform.a
    assert grid.transform[:6] == (edge, 0, grid.transform.c, 0, -edge, grid.transform.f)
    # 0.00012 x 0.0001 degrees at 45.2 north are 9.43 x 11.11 m; three digits of the square of that area
    assert edge == pytest.approx(np.sqrt(9.43 * 11.11), abs=0.06)
    assert edge == float(f"{edge:.3g}")
    x, y = transform_points(WGS84, UTM, *SAR.transform @ np.array([[0.0, 600, 600, 0], [0, 0, 500, 500]]))
    left, bottom, right, top = grid.bounds
    assert left <= min(x) < left + edge
    assert right - edge < max(x) <= right
    assert bottom <= min(y) < bottom + 2 * edge  # the parallels bulge
    assert top - 2 * edge < max(y) <= top


def test_grids_of_neighbours_fit_together():
    """Pixels of both lie on one net, so that their maps can be put side by side."""
    grids = [
        chosen(SAR.window(window), crs="EPSG:3035") for window in (Window(0, 0, 250, 600), Window(250, 0, 250, 600))
    ]
    assert grids[0].res == grids[1].res
    apart = np.subtract(grids[0].transform @ (0, 0), grids[1].transform @ (0, 0)) / grids[0].res
    np.testing.assert_allclose(apart, np.rint(apart), atol=1e-6)


def test_bounds_take_whole_pixels_of_the_image():
    grid = chosen(bounds=(500_103, 5_003_990, 500_296, 5_004_500))
    assert grid == PLAIN.window(Window(50, 10, 51, 20))
    assert chosen(bounds=(500_100, 5_004_000, 500_300, 5_004_500)) == PLAIN.window(Window(50, 10, 50, 20))
    assert chosen(bounds=(0, 0, 9e9, 9e9)) == PLAIN  # no further than the image


def test_bounds_in_another_crs_and_resolution():
    grid = chosen(crs="EPSG:4326", resolution=0.001, bounds=(15.001, 45.185, 15.02, 45.19))
    assert grid.crs == WGS84
    assert grid.bounds == pytest.approx((15.001, 45.185, 15.02, 45.19))
    assert grid.shape == (5, 19)


def test_what_cannot_be(tmp_path):
    assert "[500000, 5002000, 504000, 5005000] EPSG:32633" in refused("no overlap", bounds=(0, 0, 10, 10))
    assert "left bottom right top" in refused("bounds", bounds=(10, 0, 0, 10))
    refused("positive", resolution=-1.0)
    refused("positive", resolution=float("nan"))
    refused("found 10 degree, which makes the image 0.0027 x 0.0051 px", crs="EPSG:4326", resolution=10.0)
    refused("found 1e-09 metre, which makes the image 3e.12 x 4e.12 px", resolution=1e-9)
    refused("cannot be brought to EPSG:99999999", crs="EPSG:99999999")
    refused("cannot be brought to nonsense", crs="nonsense")
    for vertical_or_geocentric in ("EPSG:5773", "EPSG:4978"):
        refused("which is none of a map", crs=vertical_or_geocentric)
    refused("no CRS", Grid(None, Affine.identity(), 40, 50), crs="EPSG:4326")
    assert chosen(AFAR, crs="EPSG:3832").width == pytest.approx(AFAR.width, rel=0.1)
    for crs in ("EPSG:4326", "EPSG:3857", "EPSG:3395", "EPSG:6933"):
        refused("both sides of the antimeridian", AFAR, crs=crs)
    refused("more than 100 x 100 pixels of one of the image", resolution=0.001)
    refused("more than 100 x 100 pixels of one of the image", crs="EPSG:4326", resolution=1e-9)
    refused("around a pole", Grid(CRS.from_epsg(3413), Affine(10, 0, -900, 0, -10, 1100), 200, 200), crs="EPSG:4326")
    refused("no CRS", Grid(None, Affine.identity(), 40, 50), aoi="x.gpkg")
    with pytest.raises(UsageError, match="leave these flags out"):
        GridChoice(resolution=3.0).refuse_for_tiles(tmp_path)
    GridChoice().refuse_for_tiles(tmp_path)


@pytest.mark.parametrize("choice", [{"resolution": 13.0}, {"crs": "EPSG:3035"}, {"crs": "EPSG:4326"}])
def test_both_dates_land_on_another_grid(pair, choice):
    choice = GridChoice(**choice)
    grid = choose_grid([at_grid(OPTICAL)], "optical.tif", choice).grid
    optical, sar, valid = read(*pair, choice=choice)
    assert optical.shape[1:] == grid.shape
    assert valid[inside(grid, OPTICAL, 1) & inside(grid, SAR, 1)].all()
    assert not valid[~inside(grid, OPTICAL, -1)].any()
    # Within half a pixel even at the border, where there is nothing to interpolate with.
    np.testing.assert_allclose(optical[0][valid], ground(grid)[0][valid], atol=0.4)
    deep = inside(grid, OPTICAL, 2) & inside(grid, SAR, 2)
    np.testing.assert_allclose(optical[0][deep], ground(grid)[0][deep], atol=0.06)
    np.testing.assert_allclose(sar[0][deep], ground(grid)[0][deep], atol=0.06)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_windows_of_another_grid_are_bit_identical(data, tmp_path_factory):
    """Both dates warped: noise with gaps, onto degrees of another shape, within bounds."""
    folder = tmp_path_factory.getbasetemp() / "another_grid"
    optical, sar = folder / "optical.tif", folder / "sar.tif"
    if not folder.exists():
        folder.mkdir()
        rng = np.random.default_rng(0)
        for path, grid in ((optical, OPTICAL), (sar, SAR)):
            noise = rng.normal(size=(1, *grid.shape)).astype(np.float32)
            noise[:, rng.random(grid.shape) < 0.05] = np.nan
            save(path, grid, noise)
    choice = GridChoice(crs="EPSG:4326", resolution=0.00015, bounds=(15.005, 45.17, 15.035, 45.195))
    whole = read(optical, sar, choice=choice)
    height, width = whole[2].shape
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    for big, small in zip(whole, read(optical, sar, window, choice=choice), strict=True):
        expected = big[..., row : row + window.height, col : col + window.width]
        assert np.array_equal(small, expected, equal_nan=small.dtype != bool)


def test_within_bounds_the_optical_image_is_not_resampled(tmp_path):
    image = np.random.default_rng(0).normal(size=PLAIN.shape).astype(np.float32)
    optical = save(tmp_path / "optical.tif", PLAIN, image)
    choice = GridChoice(bounds=(500_103, 5_003_990, 500_296, 5_004_500))
    for sar in (optical, save(tmp_path / "sar.tif", SAR, ground(SAR).astype(np.float32))):
        assert np.array_equal(read(optical, sar, choice=choice)[0][0], image[50:101, 10:30])


# --- area of interest ------------------------------------------------------------------------------------------------


def polygons(path, shapes, crs=UTM, kind="Unknown", **layer):
    with warnings.catch_warnings(action="ignore"):  # of pyogrio, about no CRS
        wkt = crs.to_wkt() if crs else None
        pyogrio.raw.write(path, shapely.to_wkb(np.array(shapes)), [], [], geometry_type=kind, crs=wkt, **layer)
    return path


def ring(points, inner=(), crs=WGS84):
    """A polygon of points in UTM, in another CRS."""

    def there(xy):
        x, y = transform_points(UTM, crs, *np.array(xy, float).T)
        return np.column_stack([x, y])

    return shapely.Polygon(there(points), [there(hole) for hole in inner])


@pytest.mark.parametrize("crs", [UTM, WGS84, CRS.from_epsg(3035)])
def test_only_pixels_within_the_polygons_are_wanted(tmp_path, crs):
    corners = [(500_503, 5_004_803), (502_297, 5_004_797), (501_111, 5_002_605)]
    hole = [(501_000, 5_004_500), (501_400, 5_004_500), (501_400, 5_004_200), (501_000, 5_004_200)]
    far = [(900_000, 5_004_500), (901_400, 5_004_500), (901_400, 5_004_200)]
    aoi = polygons(tmp_path / "aoi.gpkg", [ring(corners, [hole], crs), ring(far, crs=crs)], crs)
    optical = save(tmp_path / "optical.tif", PLAIN, ground(PLAIN).astype(np.float32))
    common = choose_grid([at_grid(PLAIN)], optical, GridChoice(aoi=aoi))
    assert common.grid == PLAIN.window(Window(19, 50, 221, 180))  # the box of the triangle, on whole pixels
    image, _, valid = read(optical, optical, choice=GridChoice(aoi=aoi))
    rows, cols = np.indices(common.grid.shape) + 0.5
    expected = shapely.contains_xy(shapely.Polygon(corners, [hole]), *common.grid.transform @ (cols, rows))
    # Edges that are straight in one CRS are curved in another, by some centimetres here.
    assert (valid != expected).sum() <= (0 if crs == UTM else 8)
    assert np.isfinite(image).all()  # what lies around is context
    with open_pair(optical, optical, "optical", ONE, ONE, choice=GridChoice(aoi=aoi)) as pair:
        assert np.array_equal(pair.read_usable(Window(0, 0, *valid.shape))[2], valid)
        assert pair.read_usable(Window(200, 0, 20, 20)) is None  # outside the triangle
        summary = describe(pair, About(), {})
    assert summary["aoi"]["sha256"] == sha256(aoi)
    assert (tags(summary)["aoi"], tags(summary)["aoi_sha256"]) == ("aoi.gpkg", sha256(aoi))


def test_a_polygon_as_large_as_a_continent(tmp_path):
    """Its corners have no place in the CRS of the grid."""
    aoi = polygons(tmp_path / "world.gpkg", [shapely.box(-180, -90, 180, 90)], WGS84)
    common = choose_grid([at_grid(PLAIN)], "optical.tif", GridChoice(aoi=aoi))
    assert common.grid == PLAIN
    assert common.wanted(Window(0, 0, *PLAIN.shape)).all()


def test_an_area_across_the_antimeridian(tmp_path):
    halves = [shapely.box(179.995, -17.005, 180, -16.995), shapely.box(-180, -17.005, -179.995, -16.995)]
    aoi = polygons(tmp_path / "aoi.gpkg", halves, WGS84)
    common = choose_grid([at_grid(AFAR)], "optical.tif", GridChoice(aoi=aoi))
    area_px = 1065 * 1107 / 100  # a hundredth of a degree, by cosine of the latitude, of 10 m pixels
    assert common.wanted(Window(0, 0, *common.grid.shape)).sum() == pytest.approx(area_px, rel=0.01)


@pytest.mark.parametrize("first", [179.99, -180.01])
@pytest.mark.parametrize("where", ["on both sides", "beyond", "in UTM"])
def test_an_area_on_a_grid_in_degrees_that_goes_on_beyond_180(tmp_path, first, where):
    grid = Grid(WGS84, Affine(1e-4, 0, first, 0, -1e-4, -16.995), 100, 200)
    shapes = [shapely.box(179.995, -17.002, 180, -16.998), shapely.box(-180, -17.002, -179.995, -16.998)]
    if where == "beyond":
        shapes = [shapely.box(first + 0.005, -17.002, first + 0.015, -16.998)]
    crs = AFAR.crs if where == "in UTM" else WGS84
    if where == "in UTM":
        x, y = transform_points(WGS84, crs, [179.995, -179.995], [-17.002, -16.998])
        shapes = [shapely.box(x[0], y[0], x[1], y[1])]
    common = choose_grid([at_grid(grid)], "optical.tif", GridChoice(aoi=polygons(tmp_path / "a.gpkg", shapes, crs)))
    # A box of UTM lies askew in degrees, so its corners are met by more and its area by about as many.
    assert common.wanted(Window(0, 0, *common.grid.shape)).sum() == pytest.approx(100 * 40, rel=0.1)


def test_granules_at_both_ends_of_the_map():
    east, west = (at_grid(Grid(WGS84, Affine(0.01, 0, lon, 0, -0.01, 0), 100, 100)) for lon in (179, -180))
    with pytest.raises(InputError, match=r"from -179.5 to 179.5 degrees east, .*; choose another grid, such as --crs"):
        choose_grid([east, west], "folder", GridChoice())
    choice = GridChoice(crs="EPSG:32660")
    assert choose_grid([east, west], "folder", choice).grid.width == pytest.approx(2 * 111_000 / 1000, rel=0.2)


def test_a_small_area_is_a_pixel(tmp_path):
    aoi = polygons(tmp_path / "aoi.gpkg", [shapely.box(500_501, 5_004_001, 500_509, 5_004_004)])
    assert chosen(aoi=aoi).shape == (1, 1)
    assert chosen(bounds=(500_501, 5_004_001, 500_502, 5_004_002)).shape == (1, 1)


LARGE = Grid(UTM, Affine(10, 0, 500_000, 0, -10, 5_005_000), 1100, 1300)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(500_000, 513_000, 30), rng.uniform(4_994_000, 5_005_000, 30)
    # Pixel middles on the edges, too: those that rounding could put on either side.
    shapes = [*shapely.buffer(shapely.points(x, y), 700), shapely.box(502_005, 4_996_005, 507_005, 4_999_005)]
    path = polygons(tmp_path_factory.mktemp("aoi") / "aoi.gpkg", shapes)
    return choose_grid([at_grid(LARGE)], "optical.tif", GridChoice(aoi=path))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_windows_of_the_area_agree(wanted, data):
    height, width = wanted.grid.shape
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    whole = wanted.wanted(Window(0, 0, height, width))
    assert 0.1 < whole.mean() < 0.9
    assert np.array_equal(wanted.wanted(window), whole[row : row + window.height, col : col + window.width])


def test_a_geojson_is_in_degrees(tmp_path):
    shape = ring([(500_500, 5_004_500), (501_500, 5_004_500), (501_500, 5_003_500), (500_500, 5_003_500)])
    (tmp_path / "aoi.geojson").write_text(json.dumps(shapely.geometry.mapping(shape)))
    grid = chosen(aoi=tmp_path / "aoi.geojson")
    assert abs(grid.height - 100) <= 1
    assert abs(grid.width - 100) <= 1


def test_of_several_layers_the_one_of_polygons_counts(tmp_path):
    path, field = tmp_path / "aoi.gpkg", shapely.box(500_500, 5_004_000, 501_500, 5_004_500)
    polygons(path, [shapely.Point(500_500, 5_004_500)], kind="Point", layer="sites")
    polygons(path, [field], kind="Polygon", layer="fields", append=True)
    polygons(path, [shapely.Point(500_500, 5_004_500)], layer="mixed", append=True)
    assert chosen(aoi=path) == chosen(aoi=polygons(tmp_path / "alone.gpkg", [field]))
    polygons(path, [shapely.box(0, 0, 1, 1)], kind="MultiPolygon", layer="towns", append=True)
    assert "fields, towns" in refused("found several layers", aoi=path)


def test_areas_that_cannot_be(tmp_path):
    square = [(500_500, 5_004_500), (501_500, 5_004_500), (501_500, 5_003_500), (500_500, 5_003_500)]
    assert "missing.gpkg: cannot read its polygons" in refused("missing", aoi=tmp_path / "missing.gpkg")
    (tmp_path / "text.gpkg").write_text("hello")
    refused("text.gpkg: cannot read", aoi=tmp_path / "text.gpkg")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    refused("table.csv: found no CRS", aoi=tmp_path / "table.csv")
    refused(
        "found Point, expected polygons", aoi=polygons(tmp_path / "points.gpkg", [shapely.Point(500_500, 5_004_500)])
    )
    refused("found nothing, expected polygons", aoi=polygons(tmp_path / "none.gpkg", []))
    gap = {"type": "Feature", "properties": {}, "geometry": None}
    ring_of_two = {"type": "Polygon", "coordinates": [[[15, 45], [15.1, 45]]]}
    for name, geometry in (("empty", None), ("broken", ring_of_two)):
        features = [gap, gap | {"geometry": geometry}]
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (tmp_path / f"{name}.geojson").write_text(text)
    refused("found nothing, expected polygons", aoi=tmp_path / "empty.geojson")
    refused("broken.geojson: cannot read its polygons", aoi=tmp_path / "broken.geojson")
    nowhere = polygons(tmp_path / "nowhere.shp", [ring(square, crs=UTM)], None)
    refused("nowhere.shp: found no CRS", aoi=nowhere)
    away = polygons(tmp_path / "away.gpkg", [shapely.box(0, 0, 1, 1)], WGS84)
    assert "[15" in refused("found no polygon where the grid lies", aoi=away)
    inside_image = polygons(tmp_path / "in.gpkg", [ring(square, crs=UTM)])
    refused("in.gpkg: found no polygon where", aoi=inside_image, bounds=(502_000, 5_002_000, 503_000, 5_003_000))
