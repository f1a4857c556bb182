"""The training set of the weights that come along: OMBRIA's tiles and synthetic ones drawn like them."""

from pathlib import Path

import mixture
import numpy as np
import pytest
from affine import Affine
from mixture import write_synthetic
from numpy.typing import NDArray

from hetecd.config import IGNORE, TrainConfig
from hetecd.data import TileDataset, find_tiles, fit_modalities, split_tiles
from hetecd.modality import Modality
from hetecd.raster import Grid, read_raster, write_raster


def read(root: Path, name: str) -> NDArray[np.uint8]:
    return np.concatenate([read_raster(root / folder / f"{name}.tif").array for folder in ("A", "B", "label")])


def test_synthetic_tiles_are_drawn_in_the_range_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "TILE_PX", 96)
    optical = Modality((1, 2, 3), (2.0, 10.0, 4.0), (100.0, 147.0, 90.0))
    sar = Modality((1,), (34.0,), (235.0,))
    for seed in range(mixture.SEED + 4, mixture.SEED + 7):  # the first has wedges without data
        write_synthetic(tmp_path / "train", seed, optical, sar)
    tiles = find_tiles(tmp_path, "train")
    assert len(tiles) == 12
    assert tiles[5].name == f"synthetic_{mixture.SEED + 5}_0_1"
    images = np.stack([read(tmp_path / "train", tile.name) for tile in tiles])
    assert images.shape[1:] == (5, mixture.TILE_PX, mixture.TILE_PX)
    assert set(np.unique(images[:, 4])) == {0, 255}
    # Nodata is 0 in all bands of both images, and nowhere else.
    valid = images[:, :4].min(1) > 0
    assert not images[:, :4].any(1)[~valid].any()
    assert 0 < (~valid).mean() < 0.2
    data = TileDataset(tiles, TrainConfig(), optical, sar)
    for i, there in enumerate(valid):
        np.testing.assert_array_equal(data[i]["label"].numpy() == IGNORE, ~there)
    low, high = np.percentile(images[:, 1][valid], (1, 99))
    assert low == pytest.approx(10, abs=2)
    assert high == pytest.approx(147, abs=8)


@pytest.fixture
def ombria(tmp_path: Path) -> Path:
    """Twelve tiles with labels of 0 and 255."""
    rng = np.random.default_rng(0)
    for i in range(12):
        for folder, bands in (("A", 3), ("B", 1), ("label", 1)):
            image = rng.integers(1, 255, (bands, 64, 64)).astype(np.uint8)
            path = tmp_path / "ombria" / "train" / folder / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_raster(
                path,
                image if folder != "label" else (image > 127) * np.uint8(255),
                Grid(None, Affine.identity(), 64, 64),
            )
    return tmp_path / "ombria"


def test_the_command_makes_a_set_that_training_takes_as_it_is(
    ombria: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture, "TILE_PX", 64)
    command = ["--data", str(ombria), "--out", str(tmp_path / "out"), "--scenes", "2", "--val-fraction", "0.25"]
    assert mixture.main(command) == 0
    train, held, _ = split_tiles(tmp_path / "out", TrainConfig())
    assert [tile.name for tile in held] == [
        tile.name for tile in split_tiles(ombria, TrainConfig(val_fraction=0.25))[1]
    ]
    assert not {tile.name for tile in held} & {tile.name for tile in train}
    assert len(train) == 12 - len(held) + 8
    assert TileDataset(train, TrainConfig(), *fit_modalities(train, TrainConfig())).has_change
    assert mixture.main(command) == 1
    assert "exists, expected a new folder" in capsys.readouterr().err


def test_all_tiles_are_trained_on_where_none_is_held_out(ombria: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert mixture.main(["--data", str(ombria), "--out", str(out), "--scenes", "0", "--val-fraction", "0"]) == 0
    assert [tile.name for tile in find_tiles(out, "train")] == [tile.name for tile in find_tiles(ombria, "train")]
    assert not (out / "val").exists()


@pytest.mark.parametrize("flags", [["--val-fraction", "nan"], ["--val-fraction", "2"], ["--scenes", "-3"]])
def test_what_makes_no_set_leaves_nothing(
    ombria: Path, tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mixture.main(["--data", str(ombria), "--out", str(tmp_path / "out"), *flags]) == 1
    assert "mixture: error: --val-fraction, --scenes: found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
