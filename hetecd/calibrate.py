"""What a probability means and from which one a pixel counts as changed, fitted on labelled tiles.

A network is surer of itself than it should be, and 0.5 is not the threshold of the highest IoU. Two numbers, slope and
offset of the logit (Platt 1999; temperature scaling, Guo et al. 2017, is the slope alone), make the probabilities those
of the tiles; they go into the last convolution, so that every runtime has them. The threshold goes into the checkpoint.

Take tiles that the weights were not trained on: the held-out ones of a training, or some of an event that is new. For
weights that were trained on all tiles, take over what was fitted to those of a training that held some out.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hetecd.config import TrainConfig
from hetecd.data import TileDataset, find_tiles
from hetecd.errors import CheckpointError, InputError
from hetecd.evaluate import predict_tiles
from hetecd.info import ModelInfo
from hetecd.model import HeteCD
from hetecd.weights import check_name, folded, load, predictor, save

LIMIT = 14.0  # of logits
BINS = 1 << 17
EDGES = np.linspace(-LIMIT, LIMIT, BINS + 1)  # 0.0002 apart: the logits of a weak network all lie within 0.05
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2
NEWTON_STEPS = 50
LEAST_SLOPE = 0.05
PRIOR = 1e-4  # pull towards slope 1 and offset 0, per pixel: where the classes separate, nothing else ends the slope


@dataclass(frozen=True)
class Calibrated:
    """What was fitted.

    Attributes:
        slope: factor of the logit (changed minus unchanged).
        offset: then added to it.
        threshold: probability, after that, from which a pixel counts as changed.
        iou: of the changed class on the tiles with that threshold, and ``iou_before`` with the threshold of before.
        iou_before: see ``iou``.
        pixels: how many counted.
    """

    slope: float
    offset: float
    threshold: float
    iou: float
    iou_before: float
    pixels: int


def calibrate_file(checkpoint: Path | str, data: Path | str, split: str, out: Path | str) -> Calibrated:
    """Write a checkpoint whose probabilities and threshold suit the labelled tiles of a split.

    Raises:
        CheckpointError: ``checkpoint`` is none, or ``out`` no name for one.
        InputError: the split cannot be read, or has no unchanged or no changed pixel.
        OutputError: ``out`` cannot be written.
    """
    check_name(out)
    model = load(checkpoint)
    info = model.info
    assert info is not None
    config = TrainConfig(before_is=info.before_is, ignore_255=bool(info.recipe.get("ignore_255", False)))
    return calibrate_to(out, model, TileDataset(find_tiles(data, split), config, info.optical, info.sar))


def calibrate_like(checkpoint: Path | str, example: Path | str, out: Path | str) -> ModelInfo:
    """Write a checkpoint with the calibration and the threshold that another one has.

    Returns:
        What the new file says about itself.

    Raises:
        CheckpointError: one of the two is none, ``checkpoint`` is calibrated already, or ``out`` no name for one.
        OutputError: ``out`` cannot be written.
    """
    check_name(out)
    model, other = load(checkpoint), load(example).info
    assert model.info is not None
    assert other is not None
    if model.info.calibration != (1.0, 0.0):
        raise CheckpointError(f"{checkpoint}: found calibrated weights, expected those of a training; take these")
    model = folded(model, *other.calibration, other.threshold)
    assert model.info is not None
    save(out, model, model.info)
    return model.info


def calibrate_to(out: Path | str, model: HeteCD, tiles: TileDataset) -> Calibrated:
    """Write a network as :func:`calibrate` makes it, which says what is raised besides an OutputError."""
    model, found = calibrate(model, tiles)
    assert model.info is not None
    save(out, model, model.info)
    return found


def calibrate(model: HeteCD, tiles: TileDataset, batch: int = 8) -> tuple[HeteCD, Calibrated]:
    """A copy of a network whose probabilities and threshold suit labelled tiles.

    Args:
        model: a network with its ``info``.
        tiles: with labels, without augmentation.
        batch: tiles predicted at a time.

    Raises:
        InputError: among the pixels that count, none changed or all did.
        CheckpointError: the network has no ``info``.
    """
    if model.info is None:
        raise CheckpointError("calibrate: the network carries no description; load it with hetecd.load")
    counts = np.zeros((2, BINS))
    for tile, prob in predict_tiles(predictor(model, "cpu"), tiles, batch):
        for value in (0, 1):
            places = (_logit(prob[tile.label == value]) + LIMIT) * (BINS / (2 * LIMIT))
            counts[value] += np.bincount(places.astype(np.int64), minlength=BINS)
    if not counts.sum(1).all():
        raise InputError("calibrate: found no unchanged or no changed pixel, expected both; take more or other tiles")
    slope, offset = platt(counts)
    ious = _ious(counts)
    # Of two digits: the edges of the bins of histograms in a summary, too.
    thresholds = np.arange(1, 100) / 100
    found_ious = ious[_bins((_logit(thresholds) - offset) / slope)]
    best = int(found_ious.argmax())
    before = ious[_bins(_logit(np.array(model.info.threshold)))]
    found = Calibrated(
        slope, offset, float(thresholds[best]), float(found_ious[best]), float(before), int(counts.sum())
    )
    return folded(model, slope, offset, found.threshold), found


def platt(counts: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and offset of the likeliest probability sigmoid(slope * logit + offset), by Newton's method.

    Args:
        counts: (2, BINS) unchanged and changed pixels by logit, at :data:`CENTRES`.
    """
    slope, offset = _newton(counts, 1.0, [0, 1])
    # Labels that contradict the map would turn it round; that is not for a calibration to do.
    return (slope, offset) if slope >= LEAST_SLOPE else _newton(counts, LEAST_SLOPE, [1])


def _newton(counts: NDArray[np.float64], slope: float, free: list[int]) -> tuple[float, float]:
    """Slope, from that given, and offset; ``free`` are the places of those that may move."""
    filled = counts.any(0)
    counts = counts[:, filled]
    x = np.stack([CENTRES[filled], np.ones(filled.sum())])
    start = np.array([slope, 0.0])
    theta = start.copy()
    total = counts.sum(0)
    prior = PRIOR * total.sum()
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-theta @ x))
        gradient = x @ (counts[1] - total * p) - prior * (theta - start)
        hessian = (x * (total * p * (1 - p))) @ x.T + prior * np.eye(2)
        step = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        theta[free] += step * min(1.0, 1 / float(np.abs(step).max()))  # further than 1 at a time, it swings
        if np.abs(step).max() < 1e-9:
            break
    return float(theta[0]), float(theta[1])


def _bins(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each logit the first bin that lies wholly from there on, the last one at most."""
    return np.minimum(np.searchsorted(EDGES, logits - 1e-9), BINS - 1)


def _ious(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of the changed class (BINS,) if this bin and those above it are mapped as changed."""
    false, hits = counts[:, ::-1].cumsum(1)[:, ::-1]
    return hits / (counts[1].sum() + false)


def _logit(prob: NDArray[np.floating]) -> NDArray[np.float64]:
    p = np.clip(prob.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))
