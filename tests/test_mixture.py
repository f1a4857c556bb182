"""Tiles with what lies around them, and synthetic scenes drawn like them."""

from pathlib import Path

import mixture
import numpy as np
import pytest
from affine import Affine
from mixture import neighbours, write_extended, write_synthetic
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hetecd.config import IGNORE
from hetecd.data import find_tiles
from hetecd.modality import Modality
from hetecd.raster import Grid, read_raster, write_raster

EDGE = 48
SCENE = (3, 4)  # tiles


@pytest.fixture(scope="module")
def scene() -> NDArray[np.uint8]:
    """(5, H, W): optical, SAR, label of a place of 3 x 4 tiles."""
    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.normal(size=(5, SCENE[0] * EDGE, SCENE[1] * EDGE)), (0, 1.5, 1.5))
    images = np.clip(128 + 150 * noise, 1, 255)
    images[3] = 60 + images[3] / 4
    images[3, 5, 5::EDGE] = 255  # a bright point, so that the tiles of the first row are stretched otherwise
    images[4] = images[4] > 140
    return images.astype(np.uint8)


@pytest.fixture(scope="module")
def tiled(scene: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tiles as a data set, the SAR of each stretched by itself."""
    root = tmp_path_factory.mktemp("tiled")
    for row in range(SCENE[0]):
        for col in range(SCENE[1]):
            part = scene[:, row * EDGE : (row + 1) * EDGE, col * EDGE : (col + 1) * EDGE].astype(float)
            part[3] = (part[3] - part[3].min()) * 255 / np.ptp(part[3])
            part[4] *= 255
            for folder, bands in (("A", part[:3]), ("B", part[3:4]), ("label", part[4:])):
                path = root / "train" / folder / f"{row * SCENE[1] + col:04d}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_raster(path, np.rint(bands).astype(np.uint8), Grid(None, Affine.identity(), EDGE, EDGE))
    return root


def read(root: Path, name: str) -> NDArray[np.uint8]:
    return np.concatenate([read_raster(root / folder / f"{name}.tif").array for folder in ("A", "B", "label")])


def test_neighbours_are_those_whose_edges_continue(scene: NDArray[np.uint8]) -> None:
    tiles = [
        scene[:, r * EDGE : (r + 1) * EDGE, c * EDGE : (c + 1) * EDGE] for r in range(SCENE[0]) for c in range(SCENE[1])
    ]
    found = neighbours(tiles)
    assert found[0] == {(0, 1): 1, (1, 0): 4}
    assert found[5] == {(0, -1): 4, (0, 1): 6, (-1, 0): 1, (1, 0): 9}
    # Another place: nothing continues.
    strange = [np.random.default_rng(i).integers(1, 255, tiles[0].shape).astype(np.uint8) for i in range(6)]
    assert neighbours(strange) == [{}] * 6


def test_a_tile_is_extended_by_what_lies_around_it(scene: NDArray[np.uint8], tiled: Path, tmp_path: Path) -> None:
    tiles = find_tiles(tiled, "train")
    write_extended(tmp_path, tiles, 20)
    middle = read(tmp_path, "0005")
    whole = scene[:, EDGE - 20 : 2 * EDGE + 20, EDGE - 20 : 2 * EDGE + 20]
    assert middle.shape == whole.shape
    np.testing.assert_array_equal(middle[:3], whole[:3])
    np.testing.assert_array_equal(middle[4], whole[4])
    # Its own SAR is as it was; that around it was brought to its scale.
    np.testing.assert_array_equal(middle[3, 20:-20, 20:-20], read_raster(tiles[5].after).array[0])
    line = np.polyfit(whole[3, 20:-20, 20:-20].ravel(), middle[3, 20:-20, 20:-20].ravel(), 1)
    wanted = np.clip(np.polyval(line, whole[3, :20, 20:-20].astype(float)), 0, 255)
    matched, raw = middle[3, :20, 20:-20], read_raster(tiles[1].after).array[0, -20:]
    assert np.abs(wanted - matched).mean() < np.abs(wanted - raw).mean() / 2
    assert read(tmp_path, "0000").shape == (5, EDGE + 20, EDGE + 20)  # a corner


def test_what_is_missing_is_unknown_and_never_shown(scene: NDArray[np.uint8], tiled: Path, tmp_path: Path) -> None:
    tiles = [tile for tile in find_tiles(tiled, "train") if tile.name not in ("0001", "0002", "0003", "0007")]
    write_extended(tmp_path, tiles, 20)
    corner = read(tmp_path, "0006")  # nothing above, nothing to the right
    assert corner.shape == (5, EDGE + 20, EDGE + 20)
    hole = read(tmp_path, "0004")[:, :20]
    assert hole.shape[1:] == (20, EDGE + 20)
    np.testing.assert_array_equal(hole[4, :, EDGE:], IGNORE)
    assert not hole[:4, :, EDGE:].any()
    np.testing.assert_array_equal(hole[:3, :, :EDGE], scene[:3, EDGE - 20 : EDGE, :EDGE])


def test_synthetic_tiles_are_drawn_in_the_range_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "TILE_PX", 96)
    optical = Modality((1, 2, 3), (2.0, 10.0, 4.0), (100.0, 147.0, 90.0))
    for seed in range(mixture.SEED, mixture.SEED + 3):
        write_synthetic(tmp_path, seed, optical, Modality((1,), (34.0,), (235.0,)))
    tiles = sorted(path.stem for path in (tmp_path / "A").iterdir())
    assert len(tiles) == 3 * mixture.SCENE_TILES**2
    images = np.stack([read(tmp_path, name) for name in tiles])
    assert images.shape[1:] == (5, mixture.TILE_PX, mixture.TILE_PX)
    assert set(np.unique(images[:, 4])) <= {0, 1, IGNORE}
    valid = images[:, 4] != IGNORE
    assert (images[:, :4].min(1) > 0)[valid].all()
    assert not images[:, :4].any(1)[~valid].any()
    low, high = np.percentile(images[:, 1][valid], (1, 99))
    assert low == pytest.approx(10, abs=2)
    assert high == pytest.approx(147, abs=8)


def test_the_command_keeps_what_is_held_out_apart(
    tiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture, "TILE_PX", 64)
    out = tmp_path / "out"
    command = ["--data", str(tiled), "--out", str(out), "--scenes", "1", "--val-fraction", "0.25"]
    assert mixture.main(command) == 0
    held = {tile.name for tile in find_tiles(out, "val")}
    trained = {tile.name for tile in find_tiles(out, "train")}
    assert len(held) == 3
    assert not held & trained
    assert sum(name.startswith("synthetic") for name in trained) == 4
    assert mixture.main(command) == 1
    assert "exists, expected a new folder" in capsys.readouterr().err
