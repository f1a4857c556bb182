"""A baseline without a network: gradient boosting of single pixels, which see their tile by its statistics.

What a pixel is told: its bands raw, standardised and ranked within the tile, mean and standard deviation around it at
three sizes, and how bands and dates relate. Statistics per tile undo what differs between scenes, which is most of the
way to a new event; a network that loses to this has not learned what a neighbourhood means.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scoring import Trained

from hetecd.config import IGNORE, TrainConfig
from hetecd.data import TileDataset, TileFiles, fit_modalities, split_tiles
from hetecd.modality import Floats, Modality, Scaled

WINDOWS_PX = (3, 9, 25)


@dataclass(frozen=True)
class Options:
    """How it is trained.

    Attributes:
        pixels: drawn at random from each training tile.
        iterations: most trees; the held-out tiles say when to stop.
        learning_rate: of each tree.
        leaves: of each tree.
        patience: trees without gain on the held-out tiles after which to stop.
    """

    pixels: int = 1500
    iterations: int = 400
    learning_rate: float = 0.1
    leaves: int = 63
    patience: int = 20


def features(optical: Floats, sar: Floats) -> Floats:
    """What each pixel of a tile is told.

    Args:
        optical: (Co, H, W) normalised.
        sar: (Cs, H, W) normalised, in dB where the contract says so.

    Returns:
        (H, W, F) float32.
    """
    bands = np.concatenate([optical, sar]).astype(np.float32)
    flat = bands.reshape(len(bands), -1)
    spread = flat.std(1) + 1e-3  # a band of one value stays 0
    even = (bands - flat.mean(1)[:, None, None]) / spread[:, None, None]
    ranks = np.stack([_ranks(band) for band in flat]).reshape(bands.shape)
    out = [*bands, *even, *ranks]
    for band, size in itertools.product(even, WINDOWS_PX):
        mean = uniform_filter(band, size, mode="reflect")
        square = uniform_filter(band * band, size, mode="reflect")
        out += [mean, np.sqrt(np.maximum(square - mean * mean, 0))]
    for one, other in itertools.combinations(range(len(optical)), 2):
        total = np.abs(bands[one]) + np.abs(bands[other]) + 1e-3
        out.append((bands[one] - bands[other]) / total)
    for before, after in itertools.product(range(len(optical)), range(len(optical), len(bands))):
        out += [even[after] - even[before], ranks[after] - ranks[before]]
    return np.stack(out, axis=-1).astype(np.float32)


def _ranks(values: Floats) -> Floats:
    """Share of the values below each, ties half: (N,) in [0, 1]."""
    ordered = np.sort(values)
    below, upto = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return ((below + upto) / (2 * len(values))).astype(np.float32)


def train_boosting(data: Path, config: TrainConfig, options: Options) -> Trained:
    """Train on the tiles that :func:`hetecd.train.fit` trains on, stop by those it validates on.

    Args:
        data: folder with a split "train".
        config: bands, scaling, seed and held-out share; nothing else of it applies.
        options: of the boosting.

    Raises:
        InputError: the data cannot be used.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # rows are read where it is not installed, too

    start = time.monotonic()
    train_files, val_files, _ = split_tiles(data, config)
    optical, sar = fit_modalities(train_files, config)
    x, y = sample(train_files, config, optical, sar, options.pixels)
    x_val, y_val = sample(val_files, config, optical, sar, options.pixels)
    model = HistGradientBoostingClassifier(
        learning_rate=options.learning_rate, max_iter=options.iterations, max_leaf_nodes=options.leaves,
        early_stopping=True, n_iter_no_change=options.patience, random_state=config.seed,
    )  # fmt: skip
    model.fit(x, y, X_val=x_val, y_val=y_val)

    def compute(optical_batch: Floats, sar_batch: Floats) -> Floats:
        maps = []
        for one, other in zip(optical_batch, sar_batch, strict=True):
            seen = features(one, other)
            prob = model.predict_proba(seen.reshape(-1, seen.shape[-1]))[:, 1]
            maps.append(prob.reshape(seen.shape[:2]).astype(np.float32))
        return np.stack(maps)

    return Trained(
        Scaled(compute, optical, sar), optical, sar, config.before_is, ignore_255=config.ignore_255,
        minutes=(time.monotonic() - start) / 60,
    )  # fmt: skip


def sample(
    files: Sequence[TileFiles], config: TrainConfig, optical: Modality, sar: Modality, pixels: int
) -> tuple[Floats, NDArray[np.uint8]]:
    """Features (N, F) and labels (N,) of so many pixels of every tile, or as many as count there."""
    tiles = TileDataset(files, config, optical, sar, cache_bytes=0)
    rng = np.random.default_rng(config.seed)
    xs, ys = [], []
    for index in range(len(tiles)):
        tile = tiles.tile(index)
        rows, cols = np.nonzero(tile.label != IGNORE)
        chosen = rng.choice(len(rows), min(pixels, len(rows)), replace=False)
        rows, cols = rows[chosen], cols[chosen]
        xs.append(features(optical.normalise(tile.optical), sar.normalise(tile.sar))[rows, cols])
        ys.append(tile.label[rows, cols])
    return np.concatenate(xs), np.concatenate(ys)
