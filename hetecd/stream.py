"""The probability of change of a pair, from top to bottom: read ahead in a thread, predicted, blended.

What is in memory depends on the window and the width of the part, not on the scene.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hetecd.errors import InputError
from hetecd.flow import ahead
from hetecd.modality import MIN_PX, Floats, Predictor
from hetecd.pair import Pair
from hetecd.surroundings import See
from hetecd.tiles import Stitcher, Window, starts, window_rows

READ_PX = 4096  # width that is read at a time: neighbouring windows share pixels, and empty ones are seen together


@dataclass
class Tally:
    """Counts windows: those looked at, and those among them that hold no valid pixel."""

    windows: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Batch:
    """Windows of one row, read.

    Attributes:
        windows: may be none.
        optical: (B, Co, H, W) float32, for the predictor; from 32 px, smaller windows are at the upper left.
        sar: (B, Cs, H, W), likewise.
        valid: (B, h, w), True where both are usable.
        next_row: no window that comes later begins above this row of the scene.
    """

    windows: Sequence[Window]
    optical: Floats
    sar: Floats
    valid: NDArray[np.bool_]
    next_row: int


def check_windows(tile_px: int, overlap_px: int) -> None:
    """InputError unless a network can see a window of this edge, and windows can overlap so far."""
    if tile_px < MIN_PX:
        raise InputError(f"tile_px: found {tile_px}, expected at least {MIN_PX}; give larger windows")
    starts(tile_px, tile_px, overlap_px)


def probability_rows(
    pair: Pair,
    predictor: Predictor,
    tile_px: int,
    overlap_px: int,
    batch: int,
    part: Window | None = None,
    tally: Tally | None = None,
    see: See | None = None,
) -> Generator[Floats]:
    """Probability of change of a pair, blended over windows, as blocks of rows (n, W) from top to bottom.

    NaN where a pixel is invalid in either image. Windows without a valid pixel never reach the predictor. Batches end
    with a row of windows, so that the predictor is asked the same whichever row one begins with.

    Args:
        pair: what to read; a thread reads it until this iterator is used up or closed.
        predictor: see :data:`hetecd.modality.Predictor`.
        tile_px: edge of a window, at least 32, best that of the training tiles or more: it is what a pixel sees around.
        overlap_px: pixels that neighbouring windows share.
        batch: windows given to the predictor at a time.
        part: of the scene, by default all; it is what it would be in the whole, but for rounding in the predictor.
        tally: counts the windows.
        see: what becomes of the images of a window before the predictor gets them; None: they are left raw.

    Raises:
        InputError: an argument is out of range, a file is damaged, or the predictor gives something other than
            probabilities.
    """
    check_windows(tile_px, overlap_px)
    if batch < 1:
        raise InputError(f"batch: found {batch}, expected at least 1")
    part = part or Window(0, 0, *pair.grid.shape)
    stitcher = Stitcher(*pair.grid.shape, tile_px, overlap_px, part)
    rows = list(window_rows(*pair.grid.shape, tile_px, overlap_px, part))
    with closing(ahead(_read(pair, rows, batch, part, tally or Tally(), see))) as batches:
        for item in batches:
            if item.windows:
                for window, values in zip(item.windows, _predict(item, predictor), strict=True):
                    stitcher.add(window, values)
            finished = stitcher.advance(item.next_row)
            if len(finished):
                yield finished


def _read(
    pair: Pair, rows: Sequence[Sequence[Window]], batch: int, part: Window, tally: Tally, see: See | None
) -> Iterator[Batch]:
    """Batches of the windows that hold valid pixels; the last of every row, perhaps empty, goes on to the next row.

    The windows of a batch are of one size.
    """
    ends = [*(row[0].row for row in rows[1:]), part.row + part.height]
    for row, end in zip(rows, ends, strict=True):
        waiting: list[tuple[Window, Floats, Floats, NDArray[np.bool_]]] = []
        for item in _read_row(pair, row):
            tally.windows += 1
            if item is None:
                tally.skipped += 1
                continue
            if len(waiting) == batch or (waiting and waiting[0][3].shape != item[3].shape):
                yield _stack(waiting, row[0].row)
                waiting = []
            waiting.append(_seen(*item, see))
        yield _stack(waiting, end)


def _read_row(pair: Pair, row: Sequence[Window]) -> Iterator[tuple[Window, Floats, Floats, NDArray[np.bool_]] | None]:
    """The windows of a row and what they show, several read at once; None for each without a valid pixel."""
    group = max(1, READ_PX // row[0].width)
    for first, last in pairwise([*range(0, len(row), group), len(row)]):
        windows = row[first:last]
        left, right = windows[0].col, windows[-1].col + windows[-1].width
        found = pair.read_usable(Window(row[0].row, left, row[0].height, right - left))
        for window in windows:
            if found is None:
                yield None
                continue
            part = slice(window.col - left, window.col - left + window.width)
            optical, sar, valid = found[0][..., part], found[1][..., part], found[2][..., part]
            yield (window, optical, sar, valid) if valid.any() else None


def _seen(
    window: Window, optical: Floats, sar: Floats, valid: NDArray[np.bool_], see: See | None
) -> tuple[Window, Floats, Floats, NDArray[np.bool_]]:
    """A window for the predictor; invalid rows and columns are added where it is smaller than that can take."""
    missing = [(0, max(0, MIN_PX - size)) for size in valid.shape]
    if any(after for _, after in missing):
        optical, sar = (np.pad(image, ((0, 0), *missing), constant_values=np.nan) for image in (optical, sar))
    if see is not None:
        optical, sar = see(Window(window.row, window.col, *optical.shape[1:]), optical, sar)
    return window, optical, sar, valid


def _stack(items: Sequence[tuple[Window, Floats, Floats, NDArray[np.bool_]]], next_row: int) -> Batch:
    """A batch, perhaps of nothing."""
    if not items:
        none = np.empty((0, 0, 0, 0), np.float32)
        return Batch((), none, none, np.empty((0, 0, 0), bool), next_row)
    windows, *images = zip(*items, strict=True)
    optical, sar, valid = (np.stack(kind) for kind in images)
    return Batch(windows, optical, sar, valid, next_row)


def _predict(batch: Batch, predictor: Predictor) -> Iterator[Floats]:
    """Run the predictor on a batch and give the probabilities of its windows, NaN at invalid pixels."""
    probability = np.asarray(predictor(batch.optical, batch.sar), np.float32)
    expected = (len(batch.windows), *batch.optical.shape[2:])
    if probability.shape != expected:
        raise InputError(f"predictor: found an output of shape {probability.shape}, expected {expected}")
    for window, valid, padded in zip(batch.windows, batch.valid, probability, strict=True):
        values = padded[: window.height, : window.width]
        good = values[valid]
        if not ((good >= -1e-3) & (good <= 1 + 1e-3)).all():  # False for NaN as well
            raise InputError(
                f"predictor: found values from {good.min():g} to {good.max():g} in {window}, expected probabilities "
                "from 0 to 1; has the training diverged?"
            )
        yield np.where(valid, np.clip(values, 0.0, 1.0), np.float32(np.nan))
