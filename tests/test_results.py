import hashlib
import json
import logging
import os
from itertools import product

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

import hetecd
from hetecd.modality import uint8_modality
from hetecd.pair import open_pair
from hetecd.predict import predict_scene
from hetecd.raster import Grid, read_raster, write_raster
from hetecd.results import About, Count, describe_weights
from hetecd.sources import identify
from hetecd.tiles import Window

MERCATOR = Grid(CRS.from_epsg(3857), Affine(20, 0, 1_000_000, 0, -20, 8_400_000), 130, 90)
TWO, ONE = uint8_modality((1, 2)), uint8_modality((1,))


def pointwise(optical, sar):
    return 0.5 + 0.25 * np.sin(optical.mean(1) / 9) + 0.25 * np.cos(sar.mean(1) / 7)


def write_files(folder, grid):
    rng = np.random.default_rng(0)
    optical = rng.integers(1, 255, (2, *grid.shape)).astype(np.uint8)
    optical[:, :30, :40] = 0
    write_raster(folder / "optical.tif", optical, grid, nodata=0)
    write_raster(folder / "sar.tif", rng.exponential(20, (1, *grid.shape)).astype(np.float32), grid)
    return folder / "optical.tif", folder / "sar.tif"


def run(folder, grid=MERCATOR, threshold=0.6, before_is="optical", **about):
    optical, sar = write_files(folder, grid)
    dates = (optical, sar) if before_is == "optical" else (sar, optical)
    with open_pair(*dates, before_is, TWO, ONE) as pair:
        result = predict_scene(pair, pointwise, folder / "out", threshold, 64, 16, about=About(**about))
    return json.loads((folder / "out" / "summary.json").read_text()), result


def test_the_summary_says_what_was_done(tmp_path):
    weights = describe_weights(__file__, {"iou": 0.5})
    alignment = {"shift_px": [1.5, -2.0], "moved": True, "note": "made up"}
    summary, _ = run(tmp_path, weights=weights, tta=True, precision="bf16", alignment=alignment, warnings=["look"])
    for date, name, role in (("before", "optical.tif", "optical"), ("after", "sar.tif", "sar")):
        content = (tmp_path / name).read_bytes()
        expected = {"path": str(tmp_path / name), "bytes": len(content), "is": role}
        expected["read_as"] = identify(tmp_path / name)["read_as"]
        assert summary[date] == expected | {"sha256": hashlib.sha256(content).hexdigest()}
    assert summary["hetecd"] == hetecd.__version__
    assert summary["created"].endswith("+00:00")
    assert summary["seconds"] > 0
    assert summary["weights"]["name"] == "test_results.py"
    assert len(summary["weights"]["sha256"]) == 64
    assert summary["weights"]["scores"] == {"iou": 0.5}
    assert summary["settings"] == {
        "threshold": 0.6, "tile_px": 64, "overlap_px": 16, "tta": True, "precision": "bf16", "runtime": "auto",
        "device": "cpu", "min_area": 0, "simplify": 0,
    }  # fmt: skip
    assert (summary["alignment"], summary["warnings"]) == (alignment, ["look"])
    assert sorted(summary["outputs"]) == sorted(os.listdir(tmp_path / "out"))
    grid = summary["grid"]
    assert (grid["crs"], grid["height"], grid["width"]) == ("EPSG:3857", 130, 90)
    assert Affine(*grid["transform"]) == MERCATOR.transform
    assert grid["pixel_m"] == pytest.approx([10, 10], rel=0.01)  # half of Mercator's metres at 60 degrees north
    assert grid["bounds_wgs84"][1] == pytest.approx(60, abs=0.1)
    with rasterio.open(tmp_path / "out" / "change.tif") as dataset:
        tags = dataset.tags()
    assert tags["before"] == "optical.tif"
    assert tags["after_sha256"] == summary["after"]["sha256"]
    assert tags["weights_sha256"] == weights["sha256"]
    assert json.loads(tags["alignment"]) == alignment
    assert (tags["threshold"], tags["tta"], tags["hetecd"]) == ("0.6", "True", hetecd.__version__)


def test_the_numbers_are_those_of_the_map(tmp_path):
    summary, result = run(tmp_path)
    change = read_raster(tmp_path / "out" / "change.tif").array[0]
    probability = read_raster(tmp_path / "out" / "probability.tif").array[0]
    valid = change != 255
    assert summary["pixels"] == change.size
    assert summary["valid_pixels"] == valid.sum() == result.valid_pixels
    assert summary["changed_pixels"] == (change == 1).sum() == result.changed_pixels
    assert summary["polygons"] == result.polygons > 0
    assert summary["changed_area_m2"] == result.changed_area_m2
    assert summary["changed_area_m2"] == pytest.approx(100 * (change == 1).sum(), rel=0.01)
    counts, _ = np.histogram(probability[valid].astype(np.float64), 100, (0, 1))
    assert np.abs(np.subtract(summary["histogram"]["pixels"], counts)).sum() <= 2  # rounding at the edges of bins
    assert sum(summary["histogram"]["area_m2"]) == pytest.approx(100 * valid.sum(), rel=0.01)
    assert [item["from_prob"] for item in summary["classes"]] == [0.6, 0.7, 0.8, 0.9]
    for item in summary["classes"]:
        above, upto = item["from_prob"], item["to_prob"]
        inside = (probability >= above) & ((probability < upto) | (upto == 1.0))
        assert abs(item["pixels"] - inside.sum()) <= 1
    assert sum(item["pixels"] for item in summary["classes"]) == summary["changed_pixels"]
    assert sum(item["area_m2"] for item in summary["classes"]) == pytest.approx(summary["changed_area_m2"])


def test_sar_before_and_no_place_on_earth(tmp_path):
    summary, _ = run(tmp_path, Grid(None, Affine.identity(), 70, 80), before_is="sar")
    assert (summary["before"]["is"], summary["after"]["is"]) == ("sar", "optical")
    assert summary["before"]["path"].endswith("sar.tif")
    assert summary["weights"] is summary["alignment"] is summary["changed_area_m2"] is None
    assert summary["grid"]["crs"] is summary["grid"]["pixel_m"] is summary["grid"]["bounds_wgs84"] is None
    assert summary["histogram"]["area_m2"] is None
    assert {item["area_m2"] for item in summary["classes"]} == {None}
    assert summary["changed_pixels"] > 0


@pytest.mark.parametrize("threshold", [0.0, 0.437, 0.7, 1.0])
def test_classes_begin_at_the_threshold(threshold):
    probability = np.random.default_rng(0).random((50, 70), np.float32)
    probability[0, :3] = (threshold, 1.0, np.nan)
    changed = probability >= threshold
    count = Count(Grid(None, Affine.identity(), 50, 70), threshold)
    count.add(Window(0, 0, 17, 70), changed[:17], probability[:17])
    count.add(Window(17, 0, 33, 32), changed[17:, :32], probability[17:, :32])
    count.add(Window(17, 32, 33, 38), changed[17:, 32:], probability[17:, 32:])
    classes = count.numbers()["classes"]
    assert classes[0]["from_prob"] == threshold
    assert classes[-1]["to_prob"] == 1
    assert sum(item["pixels"] for item in classes) == changed.sum() > 0
    assert count.numbers()["valid_pixels"] == 50 * 70 - 1


def test_areas_do_not_depend_on_the_blocks():
    """Counted cell by cell they are the sum over pixels, wherever blocks end."""
    probability = np.random.default_rng(0).random(MERCATOR.shape, np.float32)
    sums = []
    for rows, cols in ((130, 90), (50, 90), (7, 64)):
        count = Count(MERCATOR, 0.5)
        for row, col in product(range(0, 130, rows), range(0, 90, cols)):
            block = probability[row : row + rows, col : col + cols]
            count.add(Window(row, col, *block.shape), block >= 0.5, block)
        sums.append(count.numbers()["histogram"])
        assert count.changed_area_m2 == pytest.approx(100 * (probability >= 0.5).sum(), rel=0.01)
    assert sums[0]["pixels"] == sums[1]["pixels"] == sums[2]["pixels"]
    np.testing.assert_allclose(sums[0]["area_m2"], sums[1]["area_m2"], rtol=1e-4)
    np.testing.assert_allclose(sums[0]["area_m2"], sums[2]["area_m2"], rtol=1e-4)


def test_warnings_on_the_way_are_in_the_summary(tmp_path, caplog):
    """Which is nonetheless that of a finished run: nothing is mapped again."""
    calls = []

    def doubtful(optical, sar):
        calls.append(1)
        if len(calls) == 1:
            logging.getLogger("hetecd").warning("optical: %d %% look strange", 75)
        return pointwise(optical, sar)

    about = About(describe_weights(__file__, {}), warnings=["said before"])
    for _ in range(2):
        with open_pair(*write_files(tmp_path, MERCATOR), "optical", TWO, ONE) as pair:
            predict_scene(pair, doubtful, tmp_path / "out", about=about)
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["warnings"] == ["said before", "optical: 75 % look strange"]
    assert len(calls) == 1
    assert caplog.messages == ["optical: 75 % look strange"]
    logging.getLogger("hetecd").warning("later")
    assert summary["warnings"] == ["said before", "optical: 75 % look strange"]


def test_inputs_are_found_from_any_folder(tmp_path, monkeypatch):
    """By the results, and by a run that goes on or finds the scene finished."""
    (tmp_path / "below").mkdir()
    files = write_files(tmp_path, MERCATOR)
    about, windows = About(describe_weights(__file__, {})), []
    for folder in (tmp_path, tmp_path / "below"):
        monkeypatch.chdir(folder)
        with open_pair(*(os.path.relpath(path) for path in files), "optical", TWO, ONE) as pair:
            windows.append(predict_scene(pair, pointwise, tmp_path / "out", about=about).windows)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [summary[date]["path"] for date in ("before", "after")] == [str(path) for path in files]
    assert windows[0] > windows[1] == 0


def test_inputs_that_are_no_files_have_that_of_what_they_name(tmp_path):
    write_files(tmp_path, MERCATOR)
    name = "GTIFF_DIR:1:" + str(tmp_path / "optical.tif")
    with open_pair(name, tmp_path / "sar.tif", "optical", TWO, ONE) as pair:
        predict_scene(pair, pointwise, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    sources = {"files": 1, **{key: summary["before"]["sources"][key] for key in ("bytes", "sha256")}}
    known = {"path": name, "bytes": None, "sha256": None, "is": "optical"}
    assert summary["before"] == known | {"sources": sources, "read_as": identify(name)["read_as"]}
    assert sources["bytes"] == (tmp_path / "optical.tif").stat().st_size
    with rasterio.open(tmp_path / "out" / "probability.tif") as dataset:
        assert dataset.tags()["before_sha256"] == "unknown"
