"""An experiment: a training set with two things that OMBRIA's tiles lack: `mixture.py --data ombria --out mixture`.

- **What lies around a tile.** Its tiles were cut from larger images, without a georeference. Edges that continue each
  other tell which lie side by side, and each training tile is written with up to 128 px of its neighbours around it.
  A random crop (``tile_px: 256``) then never sees the same tile twice. Only training tiles of the same side of the
  split are neighbours; where there is none, nothing is added.
- **Other scenes.** Synthetic floods and cities (:mod:`hetecd.synth`) at 3 to 10 m, drawn the way `predict` draws images
  in other units: each band in the range of its scene, in several choices of bands; a part of them without any change.

Labels are 0, 1, and 255 where nothing is known: `hetecd train recipes/default.yaml --data mixture --tile-px 256
--ignore-255 true`. The weights that come along are not trained on it.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from hetecd.config import IGNORE, TrainConfig
from hetecd.data import TileFiles, find_tiles, fit_modalities, hold_out_blocks, read_tile
from hetecd.errors import HetecdError, InputError
from hetecd.modality import Floats, Modality, fit_modality, uint8_modality
from hetecd.raster import Grid, write_raster
from hetecd.synth import make_scene

SEED = 60_000  # of the first synthetic scene; protocols.py keeps others
MARGIN_PX = 128  # of neighbours around a tile
ALIKE = 0.65  # correlation of two edges from which tiles are neighbours
NEAR = 25  # tiles further apart in the list are none
EDGE_PX = 3  # along two neighbours' edges that should look alike
SMOOTH_PX = 15  # what is smoother along an edge says little about where it goes on
TILE_PX = 256
SCENE_TILES = 2  # along either axis of a synthetic scene
FALSE, INFRARED, NATURAL = (3, 4, 2), (4, 3, 2), (3, 2, 1)  # of blue, green, red, near infrared

Bytes = NDArray[np.uint8]
Place = tuple[int, int]  # (rows, columns), in tiles


def write_extended(root: Path, tiles: Sequence[TileFiles], margin_px: int) -> None:
    """Write tiles with up to ``margin_px`` of their neighbours among them around: ``root/{A,B,label}``.

    Raises:
        InputError: tiles of different sizes.
    """
    images = [_read(tile) for tile in tiles]
    if len({image.shape for image in images}) > 1:
        raise InputError(f"{tiles[0].before.parent}: found tiles of several sizes, expected one")
    beside = neighbours(images) if margin_px else [{} for _ in images]
    edge = images[0].shape[-1]
    for i, tile in enumerate(tiles):
        known = _around(i, beside)
        whole = np.zeros((len(images[0]), 3 * edge, 3 * edge), np.uint8)
        whole[-1] = IGNORE
        for place in sorted(known, key=lambda place: abs(place[0]) + abs(place[1])):  # each beside one that is there
            here = _slices(place, edge)
            whole[:, *here] = images[known[place]]
            if place != (0, 0):
                away = (place[0], 0) if (0, place[1]) in known and place[0] else (0, place[1])
                there = _slices((place[0] - away[0], place[1] - away[1]), edge)
                _match(whole[-2, *here], whole[-2, *there], away)
        top, bottom, left, right = (
            edge - margin_px * (side in known) for side in ((-1, 0), (1, 0), (0, -1), (0, 1))
        )  # fmt: skip
        _write(root, tile.name, whole[:, top : 3 * edge - bottom, left : 3 * edge - right])


def _slices(place: Place, edge: int) -> tuple[slice, slice]:
    return slice(edge * (1 + place[0]), edge * (2 + place[0])), slice(edge * (1 + place[1]), edge * (2 + place[1]))


def _match(sar: Bytes, other: Bytes, away: Place) -> None:
    """Bring a tile's SAR to the scale of the one that it lies beside, in place: each was stretched to 0..255 alone.

    Args:
        sar: (H, W).
        other: the same of the other tile.
        away: (down, right), one of them 0: the direction from the other tile to this one.
    """
    inner, outer = _edge(sar, (-away[0], -away[1])), _edge(other, away)
    gain = outer.std() / max(float(inner.std()), 1.0)
    sar[:] = np.clip(np.rint((sar - inner.mean()) * gain + outer.mean()), 0, 255)


def _edge(image: Bytes, side: Place) -> Bytes:
    down, right = side
    strip = slice(-EDGE_PX, None) if down + right > 0 else slice(EDGE_PX)
    return image[strip] if down else image[:, strip]


def neighbours(images: Sequence[Bytes]) -> list[dict[Place, int]]:
    """Which tiles continue each other: per tile the others above, below, left and right, by place (down, right).

    Two are neighbours where each one's edge fits the other's better than any other edge does.

    Args:
        images: (C, H, W), the first three bands optical.
    """
    found: list[dict[Place, int]] = [{} for _ in images]
    stack = np.stack([image[:3] for image in images]).astype(np.float32)
    for down, right in ((0, 1), (1, 0)):
        last, first = (stack[..., :, -1], stack[..., :, 0]) if right else (stack[..., -1, :], stack[..., 0, :])
        score = np.einsum("icp,jcp->ij", _detail(last), _detail(first)) / 3
        np.fill_diagonal(score, -1)
        for i, j in enumerate(score.argmax(1)):
            if score[i, j] > ALIKE and score[:, j].argmax() == i and abs(i - j) < NEAR:
                found[i][down, right] = int(j)
                found[j][-down, -right] = i
    return found


def _detail(edges: Floats) -> Floats:
    """What is not smooth along edges (N, C, P), of norm 1."""
    padded = np.pad(edges, ((0, 0), (0, 0), (SMOOTH_PX // 2, SMOOTH_PX // 2)), mode="edge")
    detail = edges - np.lib.stride_tricks.sliding_window_view(padded, SMOOTH_PX, -1).mean(-1)
    return detail / (np.linalg.norm(detail, axis=-1, keepdims=True) + 1e-3)


def _around(i: int, beside: Sequence[dict[Place, int]]) -> dict[Place, int]:
    """The tile itself and up to eight neighbours; one across a corner only where no two ways to it disagree."""
    around = {(0, 0): i, **beside[i]}
    for down in (-1, 1):
        for right in (-1, 1):
            ways = [
                beside[beside[i][one]][other]
                for one, other in (((down, 0), (0, right)), ((0, right), (down, 0)))
                if one in beside[i] and other in beside[beside[i][one]]
            ]
            if ways and len(set(ways)) == 1:
                around[down, right] = ways[0]
    return around


def _read(files: TileFiles) -> Bytes:
    """(C, H, W): optical, SAR, label 0 / 1 / 255."""
    tile = read_tile(files, "optical", uint8_modality((1, 2, 3)), uint8_modality((1,)))
    return np.concatenate([np.nan_to_num(tile.optical), np.nan_to_num(tile.sar), tile.label[None]]).astype(np.uint8)


def write_synthetic(root: Path, seed: int, optical: Modality, sar: Modality) -> None:
    """Write the tiles of one synthetic scene, its images in the range of 8-bit training images."""
    rng = np.random.default_rng([seed, 3])
    flood = rng.random() < 0.7
    shrink = float(rng.choice([1, 2, 10 / 3] if flood else [1, 2]))
    bands = (FALSE, INFRARED, NATURAL)[rng.choice(3, p=[0.6, 0.15, 0.25])]
    edge = SCENE_TILES * TILE_PX
    scene_px = round(edge * shrink)
    chances = {name: rng.random() < share for name, share in (("clouds", 0.2), ("wedges", 0.15), ("change", 0.85))}
    scene = make_scene(
        seed, scene_px, scene_px, "flood" if flood else "city", looks=4 / shrink**2, jitter_px=2 * shrink, **chances
    )  # fmt: skip
    reflectance = np.where(scene.optical == 0, np.nan, scene.optical)[[band - 1 for band in bands]]
    images = _shrunk(np.concatenate([reflectance, scene.sar, scene.label[None]]).astype(np.float32), edge)
    valid = np.isfinite(images).all(0)
    drawn = [
        _drawn(images[:3], optical, fit_modality([images[:3, valid][..., None]], bands)),
        _drawn(images[3:4], sar, fit_modality([images[3:4, valid][..., None]], (1,), db=True)),
        (images[4:] > 0.5).astype(np.uint8),
    ]
    whole = np.concatenate(drawn) * valid
    whole[-1, ~valid] = IGNORE
    for row in range(SCENE_TILES):
        for col in range(SCENE_TILES):
            rows, cols = (slice(TILE_PX * n, TILE_PX * (n + 1)) for n in (row, col))
            _write(root, f"synthetic_{seed:05d}_{row}_{col}", whole[:, rows, cols])


def _shrunk(images: Floats, edge: int) -> Floats:
    """Mean over the pixels that become one: (C, H, W) -> (C, edge, edge)."""
    return adaptive_avg_pool2d(torch.from_numpy(images), edge).numpy()


def _drawn(image: Floats, as_in: Modality, own: Modality) -> Bytes:
    """Put the range of a scene where that of the training images lies; valid pixels are at least 1."""
    low, high = (np.array(v, np.float32)[:, None, None] for v in (as_in.low, as_in.high))
    return np.clip(np.rint(low + own.normalise(image) * (high - low)), 1, 255).astype(np.uint8)


def _write(root: Path, name: str, whole: Bytes) -> None:
    grid = Grid(None, Affine.identity(), *whole.shape[1:])
    for folder, part in (("A", whole[:-2]), ("B", whole[-2:-1]), ("label", whole[-1:])):
        write_raster(root / folder / f"{name}.tif", part, grid)


def main(argv: list[str] | None = None) -> int:
    """Write the mixture; 0, or 1 after a failure whose reason was printed."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of OMBRIA, of which only train is read")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--scenes", type=int, default=60, help="synthetic scenes, four tiles each (default 60)")
    parser.add_argument("--val-fraction", type=float, default=0.0, help="share of OMBRIA's training tiles held out")
    args = parser.parse_args(argv)
    try:
        if args.out.exists():
            raise InputError(f"{args.out}: exists, expected a new folder; name another one")
        tiles = find_tiles(args.data, "train")
        optical, sar = fit_modalities(tiles, TrainConfig())
        if args.val_fraction:
            tiles, held = hold_out_blocks(tiles, args.val_fraction, 0)
            write_extended(args.out / "val", held, 0)
        write_extended(args.out / "train", tiles, MARGIN_PX)
        for seed in range(SEED, SEED + args.scenes):
            write_synthetic(args.out / "train", seed, optical, sar)
    except HetecdError as error:
        print(f"mixture: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
