"""Scores of a predictor on one split, and pictures of what it sees."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hetecd.config import TrainConfig
from hetecd.data import Tile, TileDataset, find_tiles
from hetecd.errors import InputError
from hetecd.figures import tile_sheet
from hetecd.files import replacing
from hetecd.info import ModelInfo
from hetecd.metrics import Confusion, confusion
from hetecd.modality import Floats, Predictor

SHEET_TILES = 12


def score(
    predictor: Predictor,
    info: ModelInfo,
    data: Path | str,
    split: str = "test",
    out: Path | str | None = None,
    ignore_255: bool | None = None,
    batch: int = 8,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a predictor on the labelled tiles of a split.

    Args:
        predictor: raw images -> probability, see :mod:`hetecd.predict`.
        info: its contract: bands, roles, threshold.
        data: folder of tiles.
        split: which one.
        out: folder for ``metrics.json`` and ``tiles.png``; None writes nothing.
        ignore_255: labels are {0, 1, 255} and 255 does not count; None = as in training.
        batch: tiles predicted at a time.
        progress: show a progress bar.

    Returns:
        The scores of :meth:`hetecd.metrics.Confusion.scores` of the pooled split, and ``tiles``, ``pixels`` (that
        counted), ``threshold``. What is undefined is None, as in the JSON file.

    Raises:
        InputError: the split cannot be read, or none of its pixels counts.
        OutputError: ``out`` cannot be written.
    """
    if batch < 1:
        raise InputError(f"batch: found {batch}, expected at least 1")
    files = find_tiles(data, split)
    ignore = bool(info.recipe.get("ignore_255", False)) if ignore_255 is None else ignore_255
    config = TrainConfig(before_is=info.before_is, ignore_255=ignore)
    tiles = TileDataset(files, config, info.optical, info.sar, cache_bytes=0)
    shown = set(np.linspace(0, len(files) - 1, min(len(files), SHEET_TILES)).round().astype(int).tolist())
    total, rows = Confusion(), []
    steps = tqdm(total=len(files), unit="tile", desc=f"evaluate {split}", disable=not progress)
    for index, (tile, prob) in enumerate(predict_tiles(predictor, tiles, batch)):
        total += confusion(prob >= info.threshold, tile.label)
        if index in shown:
            rows.append((tile, prob))
        steps.update()
    steps.close()
    if total.total == 0:
        raise InputError(f"{data}: found no pixel that counts in split '{split}'; check nodata and labels")
    result: dict[str, Any] = {k: None if math.isnan(v) else v for k, v in total.scores().items()}
    result |= {"tiles": len(files), "pixels": total.total, "threshold": info.threshold, **dataclasses.asdict(total)}
    if out is not None:
        _write(Path(out), result, rows, info)
    return result


def predict_tiles(
    predictor: Predictor, tiles: TileDataset, batch: int, only: Sequence[int] | None = None
) -> Iterator[tuple[Tile, Floats]]:
    """Every tile (or those of some indices) with its probability (H, W); neighbours of one size go together."""
    raw = (tiles.tile(i) for i in (range(len(tiles)) if only is None else only))
    for _, same in itertools.groupby(raw, key=lambda tile: tile.label.shape):
        while group := tuple(itertools.islice(same, batch)):
            probs = predictor(np.stack([t.optical for t in group]), np.stack([t.sar for t in group]))
            if not np.isfinite(probs).all():
                raise InputError(f"{group[0].name}: the predictor gives no finite numbers; use other weights")
            yield from zip(group, probs, strict=True)


def telling(scores: Sequence[float], each: int) -> list[int]:
    """Indices of the best, the median and the worst scores, ``each`` of them and none twice; NaN is no score."""
    order = np.argsort(-np.asarray(scores))[: np.isfinite(scores).sum()].tolist()  # NaN sorts to the end
    middle = max(0, (len(order) - each) // 2)
    return list(dict.fromkeys([*order[:each], *order[middle : middle + each], *order[-each:]]))


def _write(out: Path, result: dict[str, Any], rows: list[tuple[Tile, Floats]], info: ModelInfo) -> None:
    tile_sheet(rows, info, out / "tiles.png")
    with replacing(out / "metrics.json") as part:
        part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    """The scores as text for a terminal."""
    names = ("iou", "f1", "precision", "recall", "miou", "accuracy", "kappa")
    values = ["-" if result[n] is None else f"{100 * result[n]:.2f}" for n in names]
    head = "".join(f"{n:>11}" for n in names)
    return (
        f"{head}\n" + "".join(f"{v:>11}" for v in values) + f"\n{result['tiles']} tiles, {result['pixels']} pixels, %"
    )
