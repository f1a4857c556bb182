"""The probability of change of a pair, from top to bottom: read ahead in a thread, predicted, blended.

What is in memory depends on the window and the width of the part, not on the scene.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hetecd.errors import InputError
from hetecd.flow import ahead
from hetecd.modality import MIN_PX, Floats, Inner, Predictor, ask
from hetecd.pair import Pair
from hetecd.surroundings import See
from hetecd.tiles import Stitcher, Window, starts, window_rows

READ_PX = 2**21  # read at a time: neighbouring windows share pixels, and empty ones are seen together


@dataclass
class Tally:
    """Counts windows: those looked at, and those among them that hold no valid pixel that counts."""

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
        inner: rows and columns that are wanted of them, whatever else the predictor may see.
        next_row: no window that comes later begins above this row of the scene.
    """

    windows: Sequence[Window]
    optical: Floats
    sar: Floats
    valid: NDArray[np.bool_]
    inner: Inner
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
    reading = _read(pair, rows, batch, part, tally or Tally(), see, stitcher.inner)
    with closing(ahead(reading, depth=1)) as batches:
        for item in batches:
            if item.windows:
                for window, values in zip(item.windows, _predict(item, predictor), strict=True):
                    stitcher.add(window, values)
            finished = stitcher.advance(item.next_row)
            if len(finished):
                yield finished


def _read(
    pair: Pair,
    rows: Sequence[Sequence[Window]],
    batch: int,
    part: Window,
    tally: Tally,
    see: See | None,
    counting: Callable[[Window], Inner],
) -> Iterator[Batch]:
    """Batches of the windows in which valid pixels count; the last of every row, perhaps empty, goes on to the next.

    The windows of a batch are of one size.
    """
    ends = [*(row[0].row for row in rows[1:]), part.row + part.height]
    for row, end in zip(rows, ends, strict=True):
        waiting: list[_Read] = []
        for item in _read_row(pair, row, counting):
            tally.windows += 1
            if item is None:
                tally.skipped += 1
                continue
            if waiting and waiting[0].valid.shape != item.valid.shape:
                yield _stack(waiting, row[0].row)
                waiting = []
            waiting.append(_seen(item, see))
            if len(waiting) == batch:  # at once: the next window would be one more in memory
                yield _stack(waiting, row[0].row)
                waiting = []
        yield _stack(waiting, end)


class _Read(NamedTuple):
    """A window, what it shows (C, h, w), where that is valid (h, w), and which rows and columns of it are wanted."""

    window: Window
    optical: Floats
    sar: Floats
    valid: NDArray[np.bool_]
    inner: Inner


def _read_row(pair: Pair, row: Sequence[Window], counting: Callable[[Window], Inner]) -> Iterator[_Read | None]:
    """The windows of a row, several read at once; None for each without a valid pixel that counts."""
    group = max(1, READ_PX // (row[0].width * row[0].height))
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
            inner = _hull_of_valid(valid, counting(window))
            yield None if inner is None else _Read(window, optical, sar, valid, inner)


def _hull_of_valid(valid: NDArray[np.bool_], inner: Inner) -> Inner | None:
    """The rows and columns from the first to the last that hold a valid pixel within some; None where there is none."""
    if not valid[inner].any():
        return None
    rows, cols = (
        np.nonzero(valid[inner].any(axis))[0] + along.start for axis, along in zip((1, 0), inner, strict=True)
    )
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _seen(item: _Read, see: See | None) -> _Read:
    """A window for the predictor; invalid rows and columns are added where it is smaller than that can take."""
    window, optical, sar, valid, inner = item
    # A copy, as the predictor may write to it and the next window shows a part of the same.
    missing = [(0, max(0, MIN_PX - size)) for size in valid.shape]
    if see is None or any(after for _, after in missing):
        optical, sar = (np.pad(image, ((0, 0), *missing), constant_values=np.nan) for image in (optical, sar))
    if see is not None:
        optical, sar = see(Window(window.row, window.col, *optical.shape[1:]), optical, sar)
    return _Read(window, optical, sar, valid, inner)


def _stack(items: Sequence[_Read], next_row: int) -> Batch:
    """A batch, perhaps of nothing."""
    if not items:
        none = np.empty((0, 0, 0, 0), np.float32)
        return Batch((), none, none, np.empty((0, 0, 0), bool), (slice(0, 0), slice(0, 0)), next_row)
    windows, *images, parts = zip(*items, strict=True)
    optical, sar, valid = (kind[0][None] if len(items) == 1 else np.stack(kind) for kind in images)
    rows, cols = (slice(min(s.start for s in along), max(s.stop for s in along)) for along in zip(*parts, strict=True))
    return Batch(windows, optical, sar, valid, (rows, cols), next_row)


def _predict(batch: Batch, predictor: Predictor) -> Iterator[Floats]:
    """Run the predictor on a batch and give the probabilities of its windows, NaN at invalid pixels.

    Outside of ``batch.inner`` they mean nothing.
    """
    probability = np.asarray(ask(predictor, batch.optical, batch.sar, batch.inner), np.float32)
    expected = (len(batch.windows), *batch.optical.shape[2:])
    if probability.shape != expected:
        raise InputError(f"predictor: found an output of shape {probability.shape}, expected {expected}")
    for window, valid, padded in zip(batch.windows, batch.valid, probability, strict=True):
        values = padded[: window.height, : window.width]
        good = values[batch.inner][valid[batch.inner]]
        if not ((good >= -1e-3) & (good <= 1 + 1e-3)).all():  # False for NaN as well
            raise InputError(
                f"predictor: found values from {good.min():g} to {good.max():g} in {window}, expected probabilities "
                "from 0 to 1; has the training diverged?"
            )
        yield np.where(valid, np.clip(values, 0.0, 1.0), np.float32(np.nan))
