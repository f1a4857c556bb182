import json
import re
import shutil

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.crs import CRS
from rasterio.transform import Affine
from scipy import ndimage

from hetecd.errors import InputError
from hetecd.preview import shrink
from hetecd.raster import Grid, read_raster
from hetecd.results import bins_of
from hetecd.survey import date_of, inputs, open_results, outlines, read_polygons, recount, survey
from hetecd.vector import write_polygons


@pytest.fixture
def folder(mapped, tmp_path):
    return shutil.copytree(mapped, tmp_path / "map")


def test_one_pass_tells_what_each_polygon_holds(mapped):
    results = open_results(mapped)
    assert results.missing == ()
    assert results.threshold == 0.6
    polygons = read_polygons(results, 1000)
    prob = read_raster(mapped / "probability.tif").array[0]
    labels, count = ndimage.label(prob >= np.float32(0.6))
    sizes = np.bincount(labels.ravel())[1:]
    assert polygons.total == count > 10
    assert polygons.area_px.tolist() == sorted(sizes, reverse=True)
    for factor in (1, 3):
        found = survey(results, polygons.shapes, factor)
        np.testing.assert_allclose(found.small, shrink(prob[None], factor)[0], rtol=1e-6)
        assert found.polygon_pixels.sum(1).tolist() == polygons.area_px.tolist()
        biggest = prob[labels == sizes.argmax() + 1]
        assert found.polygon_pixels[0].tolist() == np.bincount(bins_of(biggest), minlength=100).tolist()
    assert survey(results, np.empty(0, object), 1).polygon_pixels.shape == (0, 100)


def test_strips_change_nothing(mapped, monkeypatch):
    results = open_results(mapped)
    shapes = read_polygons(results, 1000).shapes
    whole = survey(results, shapes, 2)
    monkeypatch.setattr("hetecd.preview.STRIP_PX", 14)
    parts = survey(results, shapes, 2)
    np.testing.assert_array_equal(parts.small, whole.small)
    np.testing.assert_array_equal(parts.polygon_pixels, whole.polygon_pixels)


def test_only_the_largest_polygons_are_read(mapped):
    polygons = read_polygons(open_results(mapped), 3)
    assert len(polygons.shapes) == 3
    assert polygons.total > 3
    np.testing.assert_allclose(polygons.area_m2 / polygons.area_px, 9, rtol=2e-3)
    assert ((polygons.mean_prob >= 0.6) & (polygons.mean_prob <= 1)).all()


@pytest.mark.parametrize("kind", ["fgb", "geojson"])
def test_polygons_of_other_formats(folder, kind):
    results = open_results(folder)
    expected = read_polygons(results, 1000)
    prob = read_raster(folder / "probability.tif").array[0]
    write_polygons([(prob >= np.float32(0.6), prob)], results.grid, folder / f"change.{kind}")
    (folder / "change.gpkg").unlink()
    summary = json.loads((folder / "summary.json").read_text())
    summary["outputs"] = [name.replace("gpkg", kind) for name in summary["outputs"]]
    (folder / "summary.json").write_text(json.dumps(summary))
    results = open_results(folder)
    found = read_polygons(results, 1000)
    assert found.total == expected.total
    np.testing.assert_array_equal(found.area_px, expected.area_px)
    rows = [sorted(survey(results, polygons.shapes, 1).polygon_pixels.tolist()) for polygons in (found, expected)]
    assert rows[0] == rows[1]
    assert len(read_polygons(results, 3).shapes) == 3
    (folder / f"change.{kind}").unlink()
    with pytest.raises(InputError, match=f"change.{kind}: no such file"):
        read_polygons(results, 1000)


@pytest.mark.parametrize("rotation", [0, 30])
def test_outlines_are_pixels_again(rotation):
    grid = Grid(CRS.from_epsg(32633), Affine.translation(5e5, 5e6) @ Affine.rotation(rotation) @ Affine.scale(10, -7),
                40, 50)  # fmt: skip
    shape = shapely.box(10, 5, 30, 20) - shapely.box(12, 8, 14, 10)
    notched = shape - shapely.box(10, 5, 11, 6)
    placed = shapely.transform(np.array([shape, notched]), lambda xy: np.column_stack(grid.transform @ tuple(xy.T)))
    shell, hole = outlines(placed, grid, 0)[0]
    assert shapely.Polygon(np.reshape(shell, (-1, 2))).equals(shapely.box(10, 5, 30, 20))
    assert shapely.Polygon(np.reshape(hole, (-1, 2))).equals(shapely.box(12, 8, 14, 10))
    assert len(shell) == len(hole) == 8
    exact, coarse = (outlines(placed, grid, tolerance)[1] for tolerance in (0, 3))
    assert len(exact[0]) == 12 > len(coarse[0])
    assert len(exact) == 2 > len(coarse)  # the hole is gone


def test_a_damaged_threshold_without_a_summary_is_named(folder):
    (folder / "summary.json").unlink()
    for text, threshold in (("often", 0.5), ("nan", 0.5), ("-1", 0.5), ("1e-05", 1e-5), ("1.0", 1.0)):
        for name in ("change.tif", "probability.tif"):
            with rasterio.open(folder / name, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
                dataset.update_tags(threshold=text)
        results = open_results(folder)
        assert results.threshold == threshold
        assert any(f"found '{text}' as threshold" in line for line in results.missing) == (threshold == 0.5)


def test_numbers_without_a_summary_are_those_of_the_summary(folder):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    results = open_results(folder)
    assert "summary.json: no such file" in results.missing[0]
    assert results.threshold == 0.6  # from the tags
    numbers = recount(results)
    assert {key: summary[key] for key in numbers} == numbers


@pytest.mark.parametrize(
    "grid",
    [None, {}, {"crs": "EPSG:0", "transform": [1] * 6}, {"crs": None, "transform": [1]},
     *({"crs": crs, "transform": [1, 0, 0, 0, 1, 0], "height": 9, "width": 9}
       for crs in ("http://localhost/crs", "/vsicurl/http://localhost/crs", "+proj=longlat", 4326, {"init": "x"}))],
)  # fmt: skip
def test_a_summary_without_a_grid(folder, grid):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"grid": grid}))
    results = open_results(folder)
    assert "summary.json: found no grid in it" in results.missing[0]
    assert results.summary == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "cannot be read"), ("[]", "found no before"), ("{}", "found no before"), ('{"before": 1}', "found no after")],
)
def test_a_summary_of_something_else(folder, content, message):
    (folder / "summary.json").write_text(content)
    results = open_results(folder)
    assert message in results.missing[0]
    assert results.summary == {}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("before", "x", "before"), ("before", {"is": "sar", "bytes": 1, "path": 5}, "before.path"),
     ("settings", [], "settings"), ("settings", {"threshold": "0.5"}, "settings.threshold"),
     ("alignment", {"moved": True}, "alignment.shift_px"),
     ("outputs", 5, "outputs"), ("outputs", [5], "outputs"), ("warnings", 5, "warnings"), ("weights", "x", "weights"),
     ("pixels", True, "pixels"), ("changed_area_m2", 10**400, "changed_area_m2"), ("created", 5, "created"),
     ("histogram", {"pixels": [1], "area_m2": None}, "histogram.pixels"), ("hetecd", float("nan"), "cannot be read"),
     ("hetecd", "\ud800", "cannot be read")],
)  # fmt: skip
def test_a_damaged_summary(folder, name, value, said):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {name: value}))
    results = open_results(folder)
    assert re.search(rf"summary.json: (found something else as )?{said}( |$)", results.missing[0])
    assert results.summary == {}


def test_the_grid_is_known_without_rasters(folder):
    grid = open_results(folder).grid
    for name in ("change.tif", "probability.tif"):
        (folder / name).unlink()
    results = open_results(folder)
    assert results.grid == grid
    assert [line.split(":")[0].split("/")[-1] for line in results.missing] == ["probability.tif", "change.tif"]
    with pytest.raises(InputError, match="no such file"):
        survey(results, np.empty(0, object), 1)
    (folder / "summary.json").unlink()
    with pytest.raises(InputError, match="found no results"):
        open_results(folder)


def test_inputs_that_moved_with_the_results(folder, mapped):
    summary = json.loads((folder / "summary.json").read_text())
    original = summary["before"]["path"]
    summary["before"]["path"] = "/old/place/optical.tif"
    (folder / "summary.json").write_text(json.dumps(summary))
    assert inputs(open_results(folder))["before"] == ("optical", "/old/place/optical.tif")
    shutil.copy(original, folder.parent)
    assert inputs(open_results(folder))["before"] == ("optical", str(folder.parent / "optical.tif"))
    with open(folder.parent / "optical.tif", "ab") as file:
        file.write(b"another")
    assert inputs(open_results(folder))["before"] == ("optical", "/old/place/optical.tif")
    assert inputs(open_results(folder))["after"] == ("sar", str(mapped.parent / "sar.tif"))


def test_a_damaged_geopackage(folder):
    path, results = folder / "change.gpkg", open_results(folder)
    content = path.read_bytes()
    for size in (0, 50, len(content) // 2, len(content) - 8192):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"change.gpkg: "):
            read_polygons(results, 10)
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        read_polygons(results, 10)
    for layer, fields, message in (("other", {"area_m2": [1.0]}, "cannot be read"), ("change", {"a": [1.0]}, "area_px"),
                                   ("change", {"area_px": [1]}, "no field 'area_m2'")):  # fmt: skip
        path.unlink(missing_ok=True)
        pyogrio.raw.write(path, shapely.to_wkb(np.array([shapely.box(0, 0, 1, 1)])), [np.array(v) for v in
                          fields.values()], list(fields), layer=layer, driver="GPKG", geometry_type="Polygon",
                          crs="EPSG:32633")  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_polygons(results, 10)


def test_dates_come_from_names_and_tags(tmp_path):
    path = tmp_path / "image.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8", transform=Affine(2, 0, 0, 0, 2, 0)
    ) as dataset:
        dataset.write(np.ones((1, 4, 4), np.uint8))
    assert date_of(path) is None
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2024:05:06 07:08:09")
    assert date_of(path) == "2024-05-06 (TIFFTAG_DATETIME)"
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ACQUISITION_DATE="2024-05-01")
    assert date_of(path) == "2024-05-01 (ACQUISITION_DATE)"
    named = path.rename(tmp_path / "S2A_MSIL2A_20240430T101031.tif")
    assert date_of(named) == "2024-04-30 (file name)"
    assert date_of(tmp_path / "none.tif") is None
