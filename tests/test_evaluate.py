"""Scores equal those computed by hand through the seam, and the results land on disk."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hetecd.config import ModelConfig
from hetecd.data import TileDataset, find_tiles
from hetecd.errors import InputError, OutputError
from hetecd.evaluate import predict_tiles, score, table
from hetecd.figures import FALSE_ALARM, HIT, MISS, NODATA, QUIET, picture, verdict
from hetecd.info import ModelInfo
from hetecd.metrics import Confusion, confusion
from hetecd.modality import Floats, Modality
from hetecd.raster import Grid, write_raster

INFO = ModelInfo(
    model=ModelConfig(optical_channels=4, sar_channels=1),
    optical=Modality((1, 2, 3, 4), (0.0,) * 4, (3000.0,) * 4),
    sar=Modality((1,), (0.0,), (1.0,)),
)


def dark_is_change(optical: Floats, sar: Floats) -> Floats:
    """A predictor that any flood mapper knows: dark radar is water."""
    return (1 / (1 + np.nan_to_num(sar[:, 0]) * 20)).astype(np.float32)


def test_scores_are_those_of_the_pooled_pixels(tiles: Path, tmp_path: Path) -> None:
    result = score(dark_is_change, INFO, tiles, out=tmp_path, batch=3)
    total = Confusion()
    for files in find_tiles(tiles, "test"):
        with Image.open(files.label) as label, Image.open(files.after) as sar:
            dark = 1 / (1 + np.asarray(sar) * 20) >= 0.5
            total += confusion(dark, (np.asarray(label) > 0).astype(np.uint8))
    wanted = total.scores()
    assert {key: result[key] for key in wanted} == pytest.approx(wanted)
    assert (result["tiles"], result["pixels"], result["threshold"]) == (8, 8 * 64 * 64, 0.5)
    assert json.loads((tmp_path / "metrics.json").read_text()) == result
    assert {"iou", "f1", "precision", "recall", "miou", "accuracy", "kappa"} <= result.keys()
    with Image.open(tmp_path / "tiles.png") as sheet:
        assert sheet.width > 900
        assert sheet.height > 8 * 150
    assert f"{100 * wanted['iou']:.2f}" in table(result)


def test_the_threshold_is_the_checkpoints(tiles: Path) -> None:
    import dataclasses

    strict = dataclasses.replace(INFO, threshold=0.999)
    assert score(dark_is_change, strict, tiles)["recall"] < score(dark_is_change, INFO, tiles)["recall"]


def test_tiles_of_different_sizes_are_grouped(tmp_path: Path) -> None:
    for i, edge in enumerate((40, 40, 48, 40)):
        for folder, bands in (("A", 4), ("B", 1), ("label", 1)):
            image = np.full((bands, edge, edge), 0 if folder == "label" else 100, np.uint16)
            write_raster(tmp_path / "test" / folder / f"{i}.tif", image, Grid(None, None, edge, edge))
    shapes = []

    def watch(optical: Floats, sar: Floats) -> Floats:
        shapes.append(optical.shape)
        return np.zeros((len(sar), *sar.shape[2:]), np.float32)

    result = score(watch, INFO, tmp_path, batch=8)
    assert shapes == [(2, 4, 40, 40), (1, 4, 48, 48), (1, 4, 40, 40)]
    assert result["iou"] is None  # nothing changed and nothing found: no score, not zero
    assert result["accuracy"] == 1.0
    assert "-" in table(result)


def test_order_of_tiles_and_probabilities(tiles: Path) -> None:
    from hetecd.config import TrainConfig

    data = TileDataset(find_tiles(tiles, "test"), TrainConfig(), INFO.optical, INFO.sar)
    for index, (tile, prob) in enumerate(predict_tiles(dark_is_change, data, 3)):
        assert tile.name == data.files[index].name
        np.testing.assert_allclose(prob, dark_is_change(tile.optical[None], tile.sar[None])[0])


def test_a_name_with_two_dollars_is_no_formula(tmp_path: Path) -> None:
    for folder, bands in (("A", 4), ("B", 1), ("label", 1)):
        image = np.zeros((bands, 40, 40), np.uint16)
        write_raster(tmp_path / "test" / folder / "a$_$b.tif", image, Grid(None, None, 40, 40))
    score(dark_is_change, INFO, tmp_path, out=tmp_path / "out")
    assert (tmp_path / "out" / "tiles.png").is_file()


def test_a_tile_that_is_too_small_is_named(tmp_path: Path) -> None:
    for folder, bands in (("A", 4), ("B", 1), ("label", 1)):
        image = np.zeros((bands, 31, 40), np.uint16)
        write_raster(tmp_path / "test" / folder / "x.tif", image, Grid(None, None, 31, 40))
    with pytest.raises(InputError, match=r"A/x\.tif: found 31 x 40 pixels, expected at least 32 x 32"):
        score(dark_is_change, INFO, tmp_path)


def test_a_split_without_any_pixel_that_counts(tmp_path: Path) -> None:
    for folder, bands in (("A", 4), ("B", 1), ("label", 1)):
        image = np.zeros((bands, 40, 40), np.uint16)
        nodata = 0 if folder == "A" else None
        write_raster(tmp_path / "test" / folder / "x.tif", image, Grid(None, None, 40, 40), nodata)
    with pytest.raises(InputError, match="found no pixel that counts in split 'test'"):
        score(dark_is_change, INFO, tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        score(dark_is_change, INFO, tiles, out=tmp_path / "file" / "out")


def test_pictures_and_verdicts() -> None:
    prob = np.array([[0.9, 0.1, 0.9, 0.1, 0.9]], np.float32)
    label = np.array([[1, 1, 0, 0, 255]], np.uint8)
    assert [tuple(c) for c in verdict(prob, label, 0.5)[0].tolist()] == [HIT, MISS, FALSE_ALARM, QUIET, NODATA]
    ramp = np.linspace(0, 1, 100, dtype=np.float32).reshape(1, 10, 10)
    ramp[0, 0, 0] = math.nan
    grey = picture(ramp)
    assert tuple(grey[0, 0]) == NODATA
    assert grey[9, 9].tolist() == [255, 255, 255]
    assert np.array_equal(grey[..., 0], grey[..., 2])
    bgrn = np.stack([np.full((4, 4), v, np.float32) * np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
                     for v in (1, 2, 3, 9)])  # fmt: skip
    assert picture(bgrn).shape == (4, 4, 3)


def test_a_network_that_gives_no_numbers_is_not_scored(tiles: Path) -> None:
    with pytest.raises(InputError, match="gives no finite numbers"):
        score(lambda optical, sar: dark_is_change(optical, sar) * np.float32(np.nan), INFO, tiles)
