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

from hetecd.errors import InputError, OutputError
from hetecd.raster import Grid, write_raster
from hetecd.vector import write_polygons

UTM_GRID = Grid(CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_000_000), 60, 80)


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
