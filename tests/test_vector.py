import json
import os
import subprocess
import sys
import textwrap
import time
import tracemalloc

import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from scipy import ndimage

from hetecd.errors import InputError, OutputError
from hetecd.ground import area_m2
from hetecd.raster import Grid
from hetecd.vector import PolygonSettings, write_polygons

UTM_GRID = Grid(CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_000_000), 60, 80)
FORMATS = ["gpkg", "fgb", "geojson"]


def read(path):
    meta, _, geometry, fields = pyogrio.raw.read(path)
    return meta, shapely.from_wkb(geometry), dict(zip(meta["fields"], fields, strict=True))


def blocks(changed, probability=None, rows=25):
    """A map as it comes from a file, block by block."""
    values = np.full(changed.shape, 0.5) if probability is None else probability
    values = values.astype(np.float32)
    return [(changed[row : row + rows] == 1, values[row : row + rows]) for row in range(0, len(changed), rows)]


def blobs(shape, fraction=0.3, seed=0):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2.5)
    return smooth < np.quantile(smooth, fraction)


def test_polygons_of_a_map(tmp_path):
    change = np.zeros((60, 80), np.uint8)
    change[10:20, 10:30] = 1
    change[14:16, 14:16] = 0  # a hole
    change[20, 30] = 1  # touches by a corner only: a polygon of its own
    change[40:52, 40:60] = 1  # across the border of two blocks
    change[44:, 50:] = 255
    probability = np.where(change == 255, np.nan, np.linspace(0, 1, 80)[None]).astype(np.float32)
    count = write_polygons(blocks(change, probability), UTM_GRID, tmp_path / "change.gpkg")
    meta, polygons, fields = read(tmp_path / "change.gpkg")
    assert count == len(polygons) == 3
    assert meta["crs"] == "EPSG:32633"
    assert all(polygon.is_valid for polygon in polygons)
    assert list(fields) == ["area_m2", "area_px", "mean_prob"]
    assert fields["area_px"].tolist() == [196, 1, 160]
    np.testing.assert_allclose(fields["area_m2"], fields["area_px"] * 100 / 0.9996**2, rtol=1e-6)  # the scale of UTM
    assert polygons[0].bounds == (500_100, 4_999_800, 500_300, 4_999_900)
    assert len(polygons[0].interiors) == 1
    assert len(polygons[2].exterior.coords) == 7  # no corner where the blocks meet
    assert fields["mean_prob"][1] == pytest.approx(probability[20, 30])
    part = change[40:52, 40:60] == 1
    assert fields["mean_prob"][2] == pytest.approx(probability[40:52, 40:60][part].mean(), rel=1e-6)


def test_polygons_of_a_rotated_oblong_grid_add_up_to_its_pixels(tmp_path):
    transform = Affine.translation(500_000, 5_000_000) @ Affine.rotation(30) @ Affine.scale(12, -7)
    change = np.random.default_rng(0).random((60, 80)) > 0.4
    grid = Grid(CRS.from_epsg(32633), transform, 60, 80)
    write_polygons(blocks(change), grid, tmp_path / "change.gpkg")
    _, polygons, fields = read(tmp_path / "change.gpkg")
    assert shapely.is_valid(polygons).all()
    np.testing.assert_allclose(shapely.area(polygons), fields["area_px"] * 12 * 7, rtol=1e-9)
    assert fields["area_px"].sum() == change.sum()
    rows, cols = np.nonzero(change)
    x, y = transform @ (cols + 0.5, rows + 0.5)
    assert shapely.contains_xy(shapely.union_all(polygons), x, y).all()


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_change_is_a_valid_empty_layer(tmp_path, suffix):
    path = tmp_path / f"change.{suffix}"
    assert write_polygons(blocks(np.zeros((60, 80))), UTM_GRID, path) == 0
    info = pyogrio.read_info(path, force_feature_count=True)
    assert info["features"] == 0
    if suffix != "geojson":  # which has features only
        assert (info["geometry_type"], info["crs"]) == ("Polygon", "EPSG:32633")
        assert info["fields"].tolist() == ["area_m2", "area_px", "mean_prob"]


@pytest.mark.parametrize("suffix", ["gpkg", "fgb"])
@pytest.mark.parametrize("crs", [None, CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')], ids=["none", "local"])
def test_what_lies_nowhere_on_earth_has_no_area(tmp_path, recwarn, suffix, crs):
    """Then sizes are in pixels."""
    grid, change = Grid(crs, Affine.identity(), 60, 80), np.zeros((60, 80))
    change[:5, :5] = change[20:, 20:] = 1
    path = tmp_path / f"change.{suffix}"
    assert write_polygons(blocks(change), grid, path, PolygonSettings(min_area=26, simplify=1)) == 1
    _, _, fields = read(path)
    assert np.isnan(fields["area_m2"]).all()
    assert fields["area_px"].tolist() == [2400]
    assert not [warning for warning in recwarn.list if "crs" in str(warning.message)]
    with pytest.raises(InputError, match="no CRS in the images; take gpkg or fgb"):
        write_polygons(blocks(change), grid, tmp_path / "change.geojson", PolygonSettings("geojson"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_map_gives_the_same_bytes(tmp_path, suffix, monkeypatch):
    """At another time, and read in other blocks, over several batches of writing."""
    monkeypatch.setattr("hetecd.vector.BATCH", 10)
    change, probability = blobs((60, 80)), np.random.default_rng(0).random((60, 80))
    files = []
    for rows in (60, 7):
        path = tmp_path / str(rows) / f"change.{suffix}"
        assert write_polygons(blocks(change, probability, rows), UTM_GRID, path) > 10
        files.append(path.read_bytes())
        time.sleep(0.01)  # a GeoPackage knows milliseconds
    assert files[0] == files[1]


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats_hold_the_same(tmp_path, suffix):
    change = blobs((60, 80))
    write_polygons(blocks(change), UTM_GRID, tmp_path / "reference" / "change.gpkg")
    write_polygons(blocks(change), UTM_GRID, tmp_path / f"change.{suffix}")
    (_, expected, reference), (meta, polygons, fields) = (
        read(path) for path in (tmp_path / "reference" / "change.gpkg", tmp_path / f"change.{suffix}")
    )
    order, expected_order = (np.lexsort((values["area_m2"], values["area_px"])) for values in (fields, reference))
    for name, values in reference.items():
        np.testing.assert_allclose(fields[name][order], values[expected_order])
    grid = UTM_GRID if suffix != "geojson" else Grid(CRS.from_epsg(4326), UTM_GRID.transform, 60, 80)
    assert meta["crs"] == f"EPSG:{grid.crs.to_epsg()}"
    if suffix == "geojson":
        x, y = transform_points(UTM_GRID.crs, grid.crs, *shapely.get_coordinates(expected).T)
        expected = shapely.set_coordinates(expected, np.column_stack([x, y]))
    # Two outlines cover each other to a thousandth of a pixel (10 m, 1e-4 degrees).
    size = 1e-3 * (10 if suffix != "geojson" else 1e-4)
    assert (shapely.hausdorff_distance(polygons[order], expected[expected_order]) < size).all()


def test_geojson_is_as_its_standard_wants(tmp_path):
    """Degrees, shells counterclockwise, holes clockwise, cut at the antimeridian; a long edge stays where it was."""
    grid = Grid(CRS.from_epsg(32760), Affine(10, 0, 790_000, 0, -10, 8_000_000), 60, 4000)
    change = np.zeros(grid.shape)
    change[10:50] = 1
    change[20:30, 100:200] = 0
    assert write_polygons(blocks(change), grid, tmp_path / "change.geojson") == 1
    collection = json.loads((tmp_path / "change.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    assert "crs" not in collection
    (feature,) = collection["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    parts = shapely.get_parts(shapely.from_geojson(json.dumps(feature["geometry"])))
    assert len(parts) == 2
    for part in parts:
        west, _, east, _ = part.bounds
        assert east - west < 1
        assert part.exterior.is_ccw
        assert not any(hole.is_ccw for hole in part.interiors)
    assert sum(len(part.interiors) for part in parts) == 1
    degrees = Grid(CRS.from_epsg(4326), Affine(1e-4, 0, 179, 0, -1e-4, -18), 10, 10)
    assert area_m2(np.array(parts), degrees).sum() == pytest.approx(feature["properties"]["area_m2"], rel=1e-5)


def test_small_polygons_are_left_out(tmp_path):
    change = blobs((60, 80))
    path = tmp_path / "change.gpkg"
    whole = write_polygons(blocks(change), UTM_GRID, path)
    _, _, fields = read(path)
    limit = float(np.median(fields["area_m2"]))
    kept = write_polygons(blocks(change), UTM_GRID, path, PolygonSettings(min_area=limit))
    assert kept == (fields["area_m2"] >= limit).sum() < whole
    assert read(path)[2]["area_m2"].min() >= limit


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("crs", [32633, 4326, 3857])
def test_simplified_outlines_stay_near_and_valid(tmp_path, seed, crs):
    """By no more than they may be moved on the ground, with all their holes."""
    edge = 1e-4 if crs == 4326 else 10
    grid = Grid(CRS.from_epsg(crs), Affine(edge, 0, 10, 0, -edge * 1.5, 5), 60, 80)
    change = blobs((60, 80), 0.6, seed)
    paths = [tmp_path / name / "change.gpkg" for name in ("plain", "simple")]
    for path, simplify in zip(paths, (0, 20), strict=True):
        write_polygons(blocks(change), grid, path, PolygonSettings(simplify=simplify))
    (_, plain, before), (_, simple, after) = map(read, paths)
    assert shapely.is_valid(simple).all()
    np.testing.assert_array_equal(shapely.get_num_interior_rings(simple), shapely.get_num_interior_rings(plain))
    assert shapely.get_num_interior_rings(plain).sum() > 0
    assert shapely.get_num_coordinates(simple).sum() < 0.7 * shapely.get_num_coordinates(plain).sum()
    tolerance = 20 / (111_320 if crs == 4326 else 1)  # Mercator's metres are longer by nothing at the equator
    assert (shapely.hausdorff_distance(simple, plain) <= 1.01 * tolerance).all()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 0.9), st.integers(1, 70), st.floats(0, 50))
def test_any_polygons_are_valid(tmp_path_factory, seed, fraction, rows, simplify):
    grid = Grid(UTM_GRID.crs, Affine.translation(5e5, 5e6) @ Affine.rotation(17) @ Affine.scale(10, -9), 60, 80)
    path = tmp_path_factory.mktemp("any") / "change.fgb"
    change = np.random.default_rng(seed).random((60, 80)) < fraction
    write_polygons(blocks(change, rows=rows), grid, path, PolygonSettings(simplify=simplify))
    _, polygons, fields = read(path)
    assert shapely.is_valid(polygons).all()
    assert fields["area_px"].sum() == change.sum()


def test_memory_does_not_grow_with_the_scene(tmp_path):
    """100,000 px wide: five times the rows take no more memory, and little more than a block."""
    width = 100_000
    row = np.zeros((64, width), bool)
    row[:, ::20] = True  # open all the way down
    row[:, :200] = blobs((64, 200))
    values = np.full(row.shape, 0.5, np.float32)
    peaks = []
    for count in (2, 10):
        grid = Grid(UTM_GRID.crs, UTM_GRID.transform, 64 * count, width)
        tracemalloc.start()
        written = write_polygons(((row, values) for _ in range(count)), grid, tmp_path / "change.fgb")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert written > 5000
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 60 * row.size  # bytes for each pixel of the block


def test_an_older_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "change.gpkg"
    path.write_text("old")
    write_polygons(blocks(np.ones((60, 80))), UTM_GRID, path)
    assert len(read(path)[1]) == 1
    assert os.listdir(tmp_path) == ["change.gpkg"]


def test_bad_input_and_output(tmp_path):
    for wrong in ({"min_area": -1.0}, {"simplify": float("nan")}):
        with pytest.raises(InputError, match="expected 0 or more"):
            write_polygons(blocks(np.ones((60, 80))), UTM_GRID, tmp_path / "change.gpkg", PolygonSettings(**wrong))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        write_polygons(blocks(np.ones((60, 80))), UTM_GRID, tmp_path / "file" / "change.gpkg")


@pytest.mark.parametrize("suffix", FORMATS)
def test_disk_full(tmp_path, suffix):
    script = """
        import resource, sys
        import numpy as np
        from rasterio.crs import CRS
        from rasterio.transform import Affine
        from hetecd.errors import OutputError
        from hetecd.raster import Grid
        from hetecd.vector import write_polygons
        path = sys.argv[1]
        grid = Grid(CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_000_000), 60, 80)
        changed = np.random.default_rng(0).random((60, 80)) > 0.6
        for limit in (0, 60_000, 110_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                write_polygons([(changed, changed.astype(np.float32))], grid, path)
            except OutputError as error:
                assert chr(10) not in str(error)
                print("refused")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / f"change.{suffix}")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n" * 3, done.stderr
    assert os.listdir(tmp_path) == []
