import math

import numpy as np
import pytest
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from hetecd.ground import PixelAreas, area_m2, bounds_wgs84, outline_wgs84, pixel_m
from hetecd.raster import Grid

AXIS_M, FLATTENING = 6378137.0, 1 / 298.257223563
ECCENTRICITY = math.sqrt(FLATTENING * (2 - FLATTENING))
LOCAL = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')


def equal_area_height(lat):
    """Area between the equator and a latitude on WGS 84, in m2 per radian of longitude (closed form)."""
    e, s = ECCENTRICITY, np.sin(np.radians(lat))
    polar_m2 = AXIS_M**2 * (1 - e**2)
    return polar_m2 / 2 * (s / (1 - (e * s) ** 2) + np.log((1 + e * s) / (1 - e * s)) / (2 * e))


def geodetic_area(lon, lat):
    """Area of a closed ring of many short pieces on the ellipsoid, by summing up trapezoids of the above."""
    heights = equal_area_height(lat)
    return abs(np.sum(np.radians(np.diff(lon)) * (heights[1:] + heights[:-1]) / 2))


def measured(crs, ring):
    x, y = np.array(ring).T
    res = max(np.ptp(x), np.ptp(y)) / 500
    grid = Grid(CRS.from_epsg(crs), Affine(res, 0, x.min(), 0, -res, y.max()), 500, 500)
    return area_m2(np.array([shapely.Polygon(ring)]), grid)[0]


def true_area(crs, ring):
    x, y = shapely.get_coordinates(shapely.segmentize(shapely.LinearRing(ring), np.ptp(np.array(ring)[:, 0]) / 5000)).T
    lon, lat = transform_points(CRS.from_epsg(crs), CRS.from_epsg(4326), x, y)
    return geodetic_area(np.array(lon), np.array(lat))


def test_the_reference_itself():
    whole_earth = 2 * math.pi * (equal_area_height(90) - equal_area_height(-90))
    assert whole_earth == pytest.approx(510_065_621.724e6, rel=1e-9)  # surface of WGS 84


@pytest.mark.parametrize("crs", [4326, 3857, 3395])
@pytest.mark.parametrize("lat", [-68.0, 0.0, 34.0, 60.0])
def test_area_of_a_box_of_degrees(crs, lat):
    """Between parallels and meridians the area is known in closed form; these stay straight in all three CRSs."""
    box = np.array([(-118.0, lat), (-117.5, lat), (-117.5, lat + 0.3), (-118.0, lat + 0.3)])
    x, y = transform_points(CRS.from_epsg(4326), CRS.from_epsg(crs), box[:, 0], box[:, 1])
    expected = np.radians(0.5) * (equal_area_height(lat + 0.3) - equal_area_height(lat))
    assert measured(crs, list(zip(x, y, strict=True))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("crs", [32611, 3857, 3395, 3035, 2154])
def test_area_of_an_oblique_triangle(crs):
    """A triangle with sides of some 20 km, in metres of each CRS, against the sum over its outline on the ellipsoid."""
    origin = {32611: (377_000, 3_764_000), 3857: (-13e6, 8e6), 3395: (-13e6, 4e6), 3035: (4.3e6, 3.2e6),
              2154: (7e5, 6.6e6)}[crs]  # fmt: skip
    ring = [(origin[0] + dx, origin[1] + dy) for dx, dy in ((0, 0), (17_000, 6_000), (5_000, 21_000), (0, 0))]
    assert measured(crs, ring) == pytest.approx(true_area(crs, ring), rel=2e-6)


def test_mercator_metres_are_no_metres():
    square = [(0, 8.4e6), (1000, 8.4e6), (1000, 8.401e6), (0, 8.401e6)]
    assert measured(3857, square) == pytest.approx(1e6 * math.cos(math.radians(60)) ** 2, rel=0.02)


@pytest.mark.parametrize(
    "grid",
    [
        Grid(CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_000_000), 300, 700),
        Grid(
            CRS.from_epsg(3857), Affine.translation(1e6, 8.4e6) @ Affine.rotation(30) @ Affine.scale(120, -70), 400, 300
        ),
        Grid(CRS.from_epsg(4326), Affine(0.02, 0, 10, 0, -0.01, 70), 900, 500),
        Grid(CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_000_000), 1, 2),
    ],
    ids=["UTM", "rotated oblong Mercator", "degrees", "tiny"],
)
def test_pixels_have_the_area_of_their_outline(grid):
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, grid.height, 5), rng.integers(0, grid.width, 5)
    corners = [grid.transform @ (cols + dc, rows + dr) for dc, dr in ((0, 0), (1, 0), (1, 1), (0, 1))]
    outlines = shapely.polygons(np.array(corners).transpose(2, 0, 1))
    areas = PixelAreas(grid)
    found = areas.at(rows + 0.5, cols + 0.5)
    assert found.shape == (5, 5)
    np.testing.assert_allclose(np.diag(found), area_m2(outlines, grid), rtol=1e-5)
    assert areas.known
    width_m, height_m = pixel_m(grid)
    middle = areas.at(np.array([grid.height / 2]), np.array([grid.width / 2]))
    assert width_m * height_m == pytest.approx(middle[0, 0], rel=1e-3)


@pytest.mark.parametrize("crs", [None, LOCAL], ids=["none", "local"])
def test_what_lies_nowhere_on_earth_has_no_size(crs):
    grid = Grid(crs, Affine.identity(), 3, 4)
    assert np.isnan(area_m2(np.array([shapely.box(0, 0, 1, 1)]), grid)).all()
    assert not PixelAreas(grid).known
    assert np.isnan(PixelAreas(grid).at(np.array([1.0]), np.array([1.0]))).all()
    assert np.isnan(pixel_m(grid)).all()
    assert bounds_wgs84(grid) is None


def test_bounds_on_earth():
    """Also across the antimeridian, where west lies east of east."""
    degrees = Grid(CRS.from_epsg(4326), Affine(0.1, 0, 10, 0, -0.1, 50), 20, 30)
    assert bounds_wgs84(degrees) == pytest.approx((10, 48, 13, 50))
    fiji = Grid(CRS.from_epsg(32760), Affine(10, 0, 800_000, 0, -10, 8_000_000), 1000, 4000)
    west, south, east, north = bounds_wgs84(fiji)
    assert 179 < west < 180
    assert -180 < east < -179
    assert -19 < south < north < -17
    # The corners lie within.
    x, y = fiji.transform @ (np.array([0, 4000, 0, 4000]), np.array([0, 0, 1000, 1000]))
    lon, lat = transform_points(fiji.crs, CRS.from_epsg(4326), x, y)
    assert (np.array(lon) % 360 >= west - 1e-6).all()
    assert (np.array(lon) % 360 <= east + 360 + 1e-6).all()
    assert south <= min(lat) <= max(lat) <= north


@pytest.mark.parametrize(
    ("first", "edges"),
    [
        (179, (179, -179)),
        (-181, (179, -179)),
        (190, (-170, -168)),
        (-180, (-180, -178)),
        (178, (178, 180)),
        (180, (-180, -178)),
        (-182, (178, 180)),
    ],
)
def test_bounds_in_degrees_that_go_on_beyond_the_antimeridian(first, edges):
    grid = Grid(CRS.from_epsg(4326), Affine(0.1, 0, first, 0, -0.1, 50), 10, 20)
    assert bounds_wgs84(grid) == pytest.approx((edges[0], 49, edges[1], 50))
    if edges[0] < edges[1]:
        lon = np.array(outline_wgs84(grid))[:, 0]
        assert (lon.min(), lon.max()) == pytest.approx(edges)


def test_bounds_of_the_whole_world():
    for first in (-180, 0, -180.05):
        grid = Grid(CRS.from_epsg(4326), Affine(0.1, 0, first, 0, -0.1, 50), 10, 3600)
        assert bounds_wgs84(grid) == pytest.approx((-180, 49, 180, 50))
