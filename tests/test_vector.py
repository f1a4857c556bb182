import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from hetecd.errors import InputError, OutputError
from hetecd.raster import Grid, write_raster
from hetecd.vector import area_m2, write_polygons

AXIS_M, FLATTENING = 6378137.0, 1 / 298.257223563
ECCENTRICITY = math.sqrt(FLATTENING * (2 - FLATTENING))
UTM_GRID = Grid(CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_000_000), 60, 80)


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


def write_maps(folder, change, grid, probability=None):
    write_raster(folder / "change.tif", change.astype(np.uint8), grid, nodata=255)
    probability = np.where(change == 255, np.nan, 0.5).astype(np.float32) if probability is None else probability
    write_raster(folder / "probability.tif", probability, grid, nodata=np.nan)
    return folder / "change.tif", folder / "probability.tif", folder / "change.gpkg"


def read(path):
    meta, _, geometry, fields = pyogrio.raw.read(path)
    return meta, shapely.from_wkb(geometry), dict(zip(meta["fields"], fields, strict=True))


def test_polygons_of_a_map(tmp_path):
    change = np.zeros((60, 80), np.uint8)
    change[10:20, 10:30] = 1
    change[14:16, 14:16] = 0  # a hole
    change[20, 30] = 1  # touches by a corner only: a polygon of its own
    change[40:50, 40:60] = 1
    change[44:, 50:] = 255
    probability = np.where(change == 255, np.nan, np.linspace(0, 1, 80)[None]).astype(np.float32)
    count, total = write_polygons(*write_maps(tmp_path, change, UTM_GRID, probability))
    meta, polygons, fields = read(tmp_path / "change.gpkg")
    assert count == len(polygons) == 3
    assert meta["crs"] == "EPSG:32633"
    assert all(polygon.is_valid for polygon in polygons)
    assert set(fields) == {"area_m2", "area_px", "mean_prob"}
    assert fields["area_px"].tolist() == [196, 1, 140]
    np.testing.assert_allclose(fields["area_m2"], fields["area_px"] * 100 / 0.9996**2, rtol=1e-6)  # the scale of UTM
    assert total == pytest.approx(fields["area_m2"].sum())
    assert polygons[0].bounds == (500_100, 4_999_800, 500_300, 4_999_900)
    assert len(polygons[0].interiors) == 1
    assert fields["mean_prob"][1] == pytest.approx(probability[20, 30])
    part = change[40:50, 40:60] == 1
    assert fields["mean_prob"][2] == pytest.approx(probability[40:50, 40:60][part].mean(), rel=1e-6)


def test_polygons_of_a_rotated_oblong_grid_add_up_to_its_pixels(tmp_path):
    transform = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(12, -7)
    change = np.random.default_rng(0).random((60, 80)) > 0.6
    grid = Grid(CRS.from_epsg(32633), transform, 60, 80)
    write_polygons(*write_maps(tmp_path, change, grid))
    _, polygons, fields = read(tmp_path / "change.gpkg")
    np.testing.assert_allclose(shapely.area(polygons), fields["area_px"] * 12 * 7, rtol=1e-9)
    assert fields["area_px"].sum() == change.sum()
    rows, cols = np.nonzero(change)
    x, y = transform @ (cols + 0.5, rows + 0.5)
    assert shapely.contains_xy(shapely.union_all(polygons), x, y).all()


def test_no_change_is_a_valid_empty_layer(tmp_path):
    assert write_polygons(*write_maps(tmp_path, np.zeros((60, 80)), UTM_GRID)) == (0, 0.0)
    info = pyogrio.read_info(tmp_path / "change.gpkg")
    assert info["features"] == 0
    assert info["geometry_type"] == "Polygon"
    assert info["crs"] == "EPSG:32633"
    assert info["fields"].tolist() == ["area_m2", "area_px", "mean_prob"]


def test_without_crs_the_area_is_unknown(tmp_path, recwarn):
    grid = Grid(None, Affine.identity(), 60, 80)
    count, total = write_polygons(*write_maps(tmp_path, np.ones((60, 80)), grid))
    assert count == 1
    assert math.isnan(total)
    _, _, fields = read(tmp_path / "change.gpkg")
    assert np.isnan(fields["area_m2"]).all()
    assert fields["area_px"].tolist() == [4800]
    assert not [warning for warning in recwarn.list if "crs" in str(warning.message)]


def test_a_local_crs_has_no_area(tmp_path):
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    count, total = write_polygons(*write_maps(tmp_path, np.ones((60, 80)), Grid(local, UTM_GRID.transform, 60, 80)))
    assert count == 1
    assert math.isnan(total)


def test_an_older_file_is_replaced_and_nothing_else_is_left(tmp_path):
    maps = write_maps(tmp_path, np.ones((60, 80)), UTM_GRID)
    maps[2].write_text("old")
    write_polygons(*maps)
    assert len(read(maps[2])[1]) == 1
    assert sorted(os.listdir(tmp_path)) == ["change.gpkg", "change.tif", "probability.tif"]


def test_bad_input_and_output(tmp_path):
    maps = write_maps(tmp_path, np.ones((60, 80)), UTM_GRID)
    with pytest.raises(InputError, match="no such file"):
        write_polygons(tmp_path / "none.tif", maps[1], maps[2])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        write_polygons(maps[0], maps[1], tmp_path / "file" / "change.gpkg")


def test_disk_full(tmp_path):
    change = np.random.default_rng(0).random((60, 80)) > 0.6
    write_maps(tmp_path, change, UTM_GRID)
    script = """
        import resource, sys
        from hetecd.errors import OutputError
        from hetecd.vector import write_polygons
        folder, limit = sys.argv[1], int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write_polygons(folder + "/change.tif", folder + "/probability.tif", folder + "/change.gpkg")
        except OutputError as error:
            assert chr(10) not in str(error)
            print("refused")
    """
    for limit in ("0", "60000", "110000"):
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), limit]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout == "refused\n", (limit, done.stderr)
        assert sorted(os.listdir(tmp_path)) == ["change.tif", "probability.tif"]
