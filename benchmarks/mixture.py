"""A training set with synthetic scenes: `mixture.py --data ombria --out mixture --val-fraction 0`.

OMBRIA's training tiles as they are, and quarters of synthetic scenes (:mod:`hetecd.synth`): floods and cities at 3 to
10 m, drawn the way `predict` draws images in other units, each band in the range of its scene, in several choices of
bands; some with clouds or without data in places, a part of them without any change. In OMBRIA there is hardly a place
that is not flooded, and no true-colour image.

The weights that come along were trained on this one (docs/model-card.md). Without ``--val-fraction 0`` blocks of
OMBRIA's training tiles become its ``val``, which `hetecd train` scores on.
"""

import argparse
import logging
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray
from protocols import link_tiles, once
from torch.nn.functional import adaptive_avg_pool2d

from hetecd.config import TrainConfig
from hetecd.data import find_tiles, fit_modalities, hold_out_blocks
from hetecd.errors import HetecdError, InputError
from hetecd.modality import Floats, Modality, fit_modality
from hetecd.raster import Grid, write_raster
from hetecd.synth import make_scene

SEED = 60_000  # of the first synthetic scene; protocols.py keeps others
TILE_PX = 256
FALSE, INFRARED, NATURAL = (3, 4, 2), (4, 3, 2), (3, 2, 1)  # of blue, green, red, near infrared

Bytes = NDArray[np.uint8]


def write_synthetic(root: Path, seed: int, optical: Modality, sar: Modality) -> None:
    """Write the quarters of a synthetic scene, in the range of 8-bit training images: ``root/{A,B,label}``."""
    rng = np.random.default_rng([seed, 3])
    flood = rng.random() < 0.7
    shrink = float(rng.choice([1, 2, 10 / 3] if flood else [1, 2]))
    bands = (FALSE, INFRARED, NATURAL)[rng.choice(3, p=[0.6, 0.15, 0.25])]
    scene_px = round(2 * TILE_PX * shrink)
    chances = {name: rng.random() < share for name, share in (("clouds", 0.2), ("wedges", 0.15), ("change", 0.85))}
    scene = make_scene(
        seed, scene_px, scene_px, "flood" if flood else "city", looks=4 / shrink**2, jitter_px=2 * shrink, **chances
    )  # fmt: skip
    reflectance = np.where(scene.optical == 0, np.nan, scene.optical)[[band - 1 for band in bands]]
    images = shrunk(np.concatenate([reflectance, scene.sar, scene.label[None]]).astype(np.float32), 2 * TILE_PX)
    valid = np.isfinite(images).all(0)
    drawn = {
        "A": _drawn(images[:3], optical, fit_modality([images[:3, valid][..., None]], bands)) * valid,
        "B": _drawn(images[3:4], sar, fit_modality([images[3:4, valid][..., None]], (1,), db=True)) * valid,
        "label": np.where(images[4:] > 0.5, 255, 0).astype(np.uint8),
    }
    grid = Grid(None, Affine.identity(), TILE_PX, TILE_PX)
    for row, col in np.ndindex(2, 2):
        rows, cols = (slice(TILE_PX * n, TILE_PX * (n + 1)) for n in (row, col))
        for folder, image in drawn.items():
            path = root / folder / f"synthetic_{seed:05d}_{row}_{col}.tif"
            write_raster(path, image[:, rows, cols], grid, nodata=None if folder == "label" else 0)


def shrunk(images: Floats, edge: int) -> Floats:
    """Mean over the pixels that become one: (C, H, W) -> (C, edge, edge)."""
    return adaptive_avg_pool2d(torch.from_numpy(images), edge).numpy()


def _drawn(image: Floats, as_in: Modality, own: Modality) -> Bytes:
    """Put the range of a scene where that of the training images lies; valid pixels are at least 1."""
    low, high = (np.array(v, np.float32)[:, None, None] for v in (as_in.low, as_in.high))
    return np.clip(np.rint(low + own.normalise(image) * (high - low)), 1, 255).astype(np.uint8)


def write_mixture(data: Path, scenes: int, val_fraction: float, seed: int, root: Path) -> None:
    """Write ``root/train``, and ``root/val`` of the blocks held out, if any."""
    tiles = find_tiles(data, "train")
    optical, sar = fit_modalities(tiles, TrainConfig())
    if val_fraction:
        tiles, held = hold_out_blocks(tiles, val_fraction, seed)
        link_tiles(root, {"val": held})
    link_tiles(root, {"train": tiles})
    for scene in range(SEED, SEED + scenes):
        write_synthetic(root / "train", scene, optical, sar)


def main(argv: list[str] | None = None) -> int:
    """Write the mixture; 0, or 1 after a failure whose reason was printed."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of OMBRIA, of which only train is read")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it links to the files of OMBRIA")
    parser.add_argument("--scenes", type=int, default=124, help="synthetic scenes, four tiles each (default 124)")
    parser.add_argument("--val-fraction", type=float, default=0.15, help="share of OMBRIA's training tiles held out")
    parser.add_argument("--seed", type=int, default=0, help="of the blocks that are held out (default 0)")
    args = parser.parse_args(argv)
    try:
        if args.out.exists():
            raise InputError(f"{args.out}: exists, expected a new folder; name another one")
        if not (0 <= args.val_fraction < 1 and args.scenes >= 0):
            raise InputError(
                f"--val-fraction, --scenes: found {args.val_fraction:g} and {args.scenes}, expected 0 or more, "
                "and a share below 1"
            )
        once(args.out, partial(write_mixture, args.data, args.scenes, args.val_fraction, args.seed))
    except HetecdError as error:
        print(f"mixture: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
