"""Trainings as they lie on disk: their curves, their settings, and how each does on the same tiles."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hetecd.config import TrainConfig, deciding
from hetecd.data import Tile, TileDataset, find_tiles, split_tiles
from hetecd.errors import CheckpointError, InputError
from hetecd.evaluate import predict_tiles
from hetecd.folders import TileFiles, has_split
from hetecd.info import ModelInfo, from_metadata
from hetecd.metrics import BINS, Calibration, Confusion, calibration, confusion
from hetecd.modality import Floats, Predictor
from hetecd.weights import read_tensors

LOG, BEST = "log.csv", "best.safetensors"
FINE_BINS = 40 * BINS  # of probability: enough for a smooth curve of precision and recall
DRAWS = 1000
OpenPredictor = Callable[[Path], tuple[Predictor, ModelInfo]]


@dataclass(frozen=True, eq=False)
class Scored:
    """What a network does on tiles.

    Attributes:
        tiles: which ones.
        confusions: one per tile, at the network's threshold.
        calibration: of all tiles, in FINE_BINS bins.
        threshold: of the network.
        predictor: the network.
    """

    tiles: TileDataset
    confusions: tuple[Confusion, ...]
    calibration: Calibration
    threshold: float
    predictor: Predictor

    @property
    def pooled(self) -> Confusion:
        """All tiles together."""
        return sum(self.confusions, Confusion())

    def ious(self) -> list[float]:
        """IoU of the changed class per tile; NaN where nothing changed in label and map."""
        return [part.scores()["iou"] for part in self.confusions]

    def look(self, indices: Sequence[int]) -> list[tuple[Tile, Floats]]:
        """Some tiles with their probability (H, W), computed again: those of a whole split may not fit into memory."""
        return list(predict_tiles(self.predictor, self.tiles, 1, indices))


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        name: of its folder.
        folder: where it lies.
        epochs: lines of its log, column -> value; NaN where there is none.
        info: description of its best checkpoint; None where that cannot be read.
        problems: what is missing, in words.
        scored: counts on tiles; None where they could not be made.
    """

    name: str
    folder: Path
    epochs: tuple[dict[str, float], ...]
    info: ModelInfo | None
    problems: tuple[str, ...] = ()
    scored: Scored | None = None

    def column(self, name: str) -> list[float]:
        """A column of the log, NaN where it is absent."""
        return [epoch.get(name, math.nan) for epoch in self.epochs]

    def lacking(self, problem: object) -> "Run":
        """The same with one more problem."""
        return replace(self, problems=(*self.problems, " ".join(str(problem).split())))


def is_run(folder: Path | str) -> bool:
    """Whether a folder holds a training."""
    return any((Path(folder) / name).is_file() for name in (LOG, BEST))


def read_run(folder: Path | str) -> Run:
    """Read what a training left.

    Raises:
        InputError: neither log nor checkpoint is there.
    """
    folder = Path(folder)
    if not is_run(folder):
        found = f"neither {LOG} nor {BEST}" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
        raise InputError(
            f"{folder}: found {found}, expected the folder of a training (`report` also takes that of a map, with its "
            "summary.json); name the --out of one"
        )
    run = Run(folder.resolve().name, folder, (), None)
    try:
        run = replace(run, epochs=_read_log(folder / LOG))
    except InputError as error:
        run = run.lacking(error)
    try:
        return replace(run, info=from_metadata(read_tensors(folder / BEST)[1], folder / BEST))
    except CheckpointError as error:
        return run.lacking(error)


def _read_log(path: Path) -> tuple[dict[str, float], ...]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot read the log ({error}); there are no curves without it") from error
    epochs = [{key: _number(value) for key, value in line.items() if key} for line in lines]
    if not epochs or any(math.isnan(epoch.get("epoch", math.nan)) for epoch in epochs):
        raise InputError(
            f"{path}: found {len(epochs)} epochs with a line that has no number, expected a training's log"
        )
    return tuple(epochs)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def previous_run(folder: Path | str) -> Path | None:
    """The training that ended last before this one, in the folder beside; None where there is none."""
    folder = Path(folder).resolve()
    logs = [path for path in folder.parent.glob(f"*/{LOG}") if path.parent != folder]
    if not (folder / LOG).is_file():
        return None
    ended = (folder / LOG).stat().st_mtime
    earlier = [path for path in logs if path.stat().st_mtime < ended]
    return max(earlier, key=lambda path: path.stat().st_mtime).parent if earlier else None


# --- on tiles --------------------------------------------------------------------------------------------------------


def score_runs(
    runs: Sequence[Run], open_predictor: OpenPredictor, data: Path | str, split: str = "val", batch: int = 8
) -> list[Run]:
    """Score all trainings on the same tiles.

    Args:
        runs: what to score; one that cannot be gets a problem instead of scores.
        open_predictor: makes the predictor of a checkpoint.
        data: folder of tiles.
        split: which of them; "val" without such a split: those that the first training held out.
        batch: tiles predicted at a time.

    Raises:
        InputError: there is no such split, nor did the first training hold tiles out.
    """
    info = next((run.info for run in runs if run.info), ModelInfo())
    files = _held_out(data, _config(info)) if split == "val" else find_tiles(data, split)
    done = []
    for run in runs:
        try:
            predictor, info = open_predictor(run.folder / BEST)
            config = _config(info)
            tiles = TileDataset(files, config, info.optical, info.sar, cache_bytes=0)
            scored = _score(predictor, tiles, info.threshold, batch, run.name)
            if not scored.pooled.total:
                raise InputError(f"{data}: found no pixel that counts in split '{split}'; check nodata and labels")
        except (InputError, CheckpointError) as error:
            done.append(run.lacking(error))
            continue
        known = set(split_tiles(data, config)[0]) if split == "val" else set()
        learned = len(known.intersection(files))
        done.append(replace(run, scored=scored))
        if learned:
            done[-1] = done[-1].lacking(f"{learned} of the {len(files)} tiles scored are among its training tiles")
    return done


def _held_out(data: Path | str, config: TrainConfig) -> list[TileFiles]:
    """The val split, even where the training did without validation; else what the training held out."""
    files = find_tiles(data, "val") if has_split(data, "val") else split_tiles(data, config)[1]
    if not files:
        raise InputError(
            f"{data}: found no val split, and this training held no tiles out (val_fraction 0); name another with "
            "--split"
        )
    return files


def _config(info: ModelInfo) -> TrainConfig:
    """What of a training's settings decides which tiles validate and how they are read."""
    kept = {key: info.recipe[key] for key in ("val_fraction", "seed", "ignore_255") if key in info.recipe}
    return TrainConfig(before_is=info.before_is, **kept)


def _score(predictor: Predictor, tiles: TileDataset, threshold: float, batch: int, name: str) -> Scored:
    confusions, bins = [], Calibration.empty(FINE_BINS)
    steps = tqdm(total=len(tiles), unit="tile", desc=name, disable=None)
    for tile, prob in predict_tiles(predictor, tiles, batch):
        confusions.append(confusion(prob >= threshold, tile.label))
        bins += calibration(prob, tile.label, FINE_BINS)
        steps.update()
    steps.close()
    return Scored(tiles, tuple(confusions), bins, threshold, predictor)


def gain(ours: Scored, other: Scored, seed: int = 0) -> tuple[float, float, float]:
    """How much higher our IoU is on the same tiles, and the 95 % interval of that, from drawing tiles anew.

    Neighbouring tiles count as independent, which they are not: the true interval is wider. NaN where nothing changed
    in labels and maps.
    """
    counts = np.array([[(c.tp, c.fp + c.fn) for c in scored.confusions] for scored in (ours, other)])  # (2, N, 2)
    drawn = np.random.default_rng(seed).integers(counts.shape[1], size=(DRAWS, counts.shape[1]))
    with np.errstate(invalid="ignore"):
        iou = [(part := c[drawn].sum(1))[:, 0] / part.sum(1) for c in counts]
    apart = iou[0] - iou[1]
    apart = apart[np.isfinite(apart)]
    low, high = np.percentile(apart, (2.5, 97.5)).tolist() if apart.size else (math.nan, math.nan)
    return ours.pooled.scores()["iou"] - other.pooled.scores()["iou"], low, high


def settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings by name, one value per training; None where it is not known."""
    recipes = [{} if run.info is None else run.info.recipe | {"threshold": run.info.threshold} for run in runs]
    return {key: [recipe.get(key) for recipe in recipes] for key in dict.fromkeys(k for r in recipes for k in r)}


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Those settings that are not the same in all trainings, of those that decide what a training gives."""
    found = deciding(settings(runs))
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}
