"""What the rows of the accuracy tables are trained on and scored on."""

import dataclasses
from pathlib import Path

import numpy as np
import protocols
import pytest
import rasterio
from affine import Affine
from protocols import PAIRS, PROTOCOLS, Sizes, cut_scene
from rows import Row, train
from scoring import SHIFTS_PX, score

from hetecd.data import find_tiles
from hetecd.errors import InputError
from hetecd.raster import Grid, read_raster, write_raster

SMALL = Sizes(folds=4, train_scenes=2, test_scenes=3, scene_px=192, tile_px=64)


def test_blocks_are_consecutive_and_never_touch_the_test_split(tiles: Path, tmp_path: Path) -> None:
    folds = PROTOCOLS["blocks"](tiles, tmp_path, SMALL)
    names = [tile.name for tile in find_tiles(tiles, "train")]
    held = [[tile.name for tile in find_tiles(fold.data, "test")] for fold in folds]
    assert [name for block in held for name in block] == names
    for fold, block in zip(folds, held, strict=True):
        training = find_tiles(fold.data, "train")
        assert sorted([tile.name for tile in training] + block) == names
        assert all((tiles / "train") in tile.before.resolve().parents for tile in training)
        assert [test.split for test in fold.tests] == ["test"]
    with pytest.raises(InputError, match="expected at least 24"):
        PROTOCOLS["blocks"](tiles, tmp_path, dataclasses.replace(SMALL, folds=8))
    with pytest.raises(InputError, match="--data"):
        PROTOCOLS["public"](None, tmp_path, SMALL)


@pytest.mark.parametrize("shape", [(70, 301), (301, 70)])
def test_tiles_of_a_scene_cover_it_once(shape: tuple[int, int], tmp_path: Path) -> None:
    name, before_is = "gloucester2", PAIRS["gloucester2"]
    scene = tmp_path / "scenes" / name
    grid = Grid(None, Affine.identity(), *shape)
    image = np.random.default_rng(0).integers(0, 255, (3, *shape), np.uint8)
    write_raster(scene / "pre.tif", image, grid)
    write_raster(scene / "post.tif", image[:1], grid)
    write_raster(scene / "label.png", (image[:1] > 99) * np.uint8(255), grid)
    cut_scene(scene, tmp_path / "cut", 4)
    cut = find_tiles(tmp_path / "cut", "")
    found = np.concatenate([read_raster(tile.before).array.ravel() for tile in cut])
    np.testing.assert_array_equal(np.bincount(found), np.bincount(image.ravel()))
    along = 0 if shape[0] > shape[1] else 1
    first = read_raster(cut[0].after).array[0]
    np.testing.assert_array_equal(first, image[0, : first.shape[0], : first.shape[1]])
    assert first.shape[along] == 75
    folds = PROTOCOLS["pairs"](scene.parent, tmp_path / "work", SMALL)
    assert [fold.name for fold in folds] == [f"{name}-{k}" for k in range(4)]
    assert folds[0].settings == {"before_is": before_is}
    held = [tile.name for fold in folds for tile in find_tiles(fold.data, "test")]
    assert held == [tile.name for tile in cut]
    for k, fold in enumerate(folds):
        assert {tile.name[:2] for tile in find_tiles(fold.data, "train")} == {"00", "01", "02", "03"} - {f"{k:02d}"}
    with pytest.raises(InputError, match="shuguang"):
        PROTOCOLS["pairs"](tmp_path, tmp_path / "work", SMALL)


def test_only_scenes_without_holes_are_cut(tmp_path: Path) -> None:
    grid = Grid(None, Affine.identity(), 64, 64)
    image = np.ones((1, 64, 64), np.float32)
    write_raster(tmp_path / "pre.tif", image, grid)
    write_raster(tmp_path / "post.tif", image, grid)
    label = np.zeros((64, 64), np.uint8)
    label[:, 32:] = 1
    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint8", "nodata": 7}
    with rasterio.open(tmp_path / "label.png", "w", **profile) as file:
        file.write(label, 1)
    cut_scene(tmp_path, tmp_path / "cut", 1)
    (tile,) = find_tiles(tmp_path / "cut", "")
    assert tile.label is not None
    np.testing.assert_array_equal(read_raster(tile.label).array[0], label * 255)
    label[3, 3] = 7
    with rasterio.open(tmp_path / "label.png", "w", **profile) as file:
        file.write(label, 1)
    with pytest.raises(InputError, match="found 1 pixels that do not count"):
        cut_scene(tmp_path, tmp_path / "other", 1)
    write_raster(tmp_path / "label.png", image.astype(np.uint8), grid)
    image[0, 5, :2] = np.nan
    write_raster(tmp_path / "post.tif", image, grid)
    with pytest.raises(InputError, match="found 2 invalid pixels"):
        cut_scene(tmp_path, tmp_path / "other", 1)


def test_cut_data_are_made_anew_when_what_makes_them_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, work = tmp_path / "scenes" / "gloucester2", tmp_path / "work"
    grid = Grid(None, Affine.identity(), 64, 256)
    for value in (1, 2):
        image = np.full((1, 64, 256), value, np.uint8)
        image[0, 0, : 9 * value] = 9  # nothing depends on the resolution of the file system's clock
        write_raster(scene / "pre.tif", image, grid)
        write_raster(scene / "post.tif", image, grid)
        write_raster(scene / "label.png", np.full_like(image, 255), grid)
        fold, *_ = PROTOCOLS["pairs"](scene.parent, work, SMALL)
        assert read_raster(find_tiles(fold.data, "test")[0].before).array[0, -1, -1] == value
    sizes = Sizes(train_scenes=1, test_scenes=1, scene_px=64, tile_px=64)
    (before,) = PROTOCOLS["synthetic"](None, work, sizes)
    program = tmp_path / "protocols.py"
    program.write_text("TRAIN_SEED = 21_000\n")
    monkeypatch.setattr(protocols, "HERE", program)
    (after,) = PROTOCOLS["synthetic"](None, work, sizes)
    assert before.data != after.data


def test_synthetic_sets_are_what_they_say(tmp_path: Path) -> None:
    (fold,) = PROTOCOLS["synthetic"](None, tmp_path, SMALL)
    sets = {test.name: test for test in fold.tests}
    assert [name for name in sets if name.startswith("shift")] == [f"shift {px}" for px in SHIFTS_PX]
    for tile in find_tiles(fold.data, "unchanged"):
        assert tile.label is not None
        assert not read_raster(tile.label).array.any()
    seeds = {split: {t.name[:5] for t in find_tiles(fold.data, split)} for split in ("train", "plain", "season")}
    assert all(len(names) == count for names, count in zip(seeds.values(), (2, 3, 3), strict=True))
    assert len(set().union(*seeds.values())) == 8
    # Moving SAR cannot matter to a map that does not look at it.
    row = Row("boosting", "quick.yaml", "boosting", settings={"sar_db": True}, options={"pixels": 60, "iterations": 4})
    trained = train(row, fold.data, 0, fold.settings, tmp_path / "out")
    blind = dataclasses.replace(trained, predictor=lambda optical, sar: (optical[:, 0] > 700).astype(np.float32))
    assert len({score(blind, sets[f"shift {px}"]).confusion for px in SHIFTS_PX}) == 1
    assert len({score(trained, sets[f"shift {px}"]).calibration for px in (0, 8)}) == 2
    made = (fold.data / "plain").stat().st_mtime_ns
    assert PROTOCOLS["synthetic"](None, tmp_path, SMALL)[0].data.joinpath("plain").stat().st_mtime_ns == made
