"""A scene as a network sees it that standardises its bands: by what lies around each pixel, not by the window.

Such a network takes the mean and the deviation of the tile that it gets. Windows of a scene each have others, and so a
pixel would look different in each of those that share it, which shows as seams. Here mean and deviation are functions
of the place: those of the square of cells around it, interpolated between the middles of the cells. They depend on
nothing but the images, and are the same to the last bit in any window.

Cells are summed up when a window first needs them, a strip of cells at a time. In a large scene a quarter of their rows
is looked at.
"""

from collections.abc import Callable
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from hetecd.modality import FLAT, Floats, Predictor, Scaled
from hetecd.tiles import Window

Doubles = NDArray[np.float64]
# From a window and its raw images (C, h, w) to those that a predictor is given.
See = Callable[[Window, Floats, Floats], tuple[Floats, Floats]]
Read = Callable[[Window], tuple[Floats, Floats, NDArray[np.bool_]]]
CELL_PX = 256
REACH = 2  # cells to either side that count
STRIP_CELLS = 4
SAMPLE_PX = 64  # rows of a cell that are looked at,
SMALL_PX = 2048  # where the scene is larger than this; otherwise all
ROWS = 32  # standardised at a time, within the processor's cache
KEPT = 4096  # strips in memory, less than 1 kB each; a row of windows over one panel needs some hundred


def seen_by(predictor: Predictor, shape: tuple[int, int], read: Read) -> tuple[Predictor, See | None]:
    """What to ask of windows, and what to make of them before, so that they agree on what they share.

    A predictor that is no :class:`hetecd.modality.Scaled` is asked as it is: of raw windows, one by one.

    Args:
        predictor: of raw images.
        shape: height and width of the scene.
        read: reads a window of it, see :meth:`hetecd.pair.Pair.read`.
    """
    if isinstance(predictor, Scaled) and predictor.standardises:
        return predictor.compute, Surroundings(predictor, shape, read).see
    return predictor, None


class Surroundings:
    """What is seen of a scene: its images normalised, each band once more standardised by its surroundings.

    Arguments are those of :func:`seen_by`.
    """

    def __init__(self, scaled: Scaled, shape: tuple[int, int], read: Read) -> None:
        self._scaled = scaled
        self._height, self._width = shape
        self._read = read
        self._sample_px = CELL_PX if max(shape) <= SMALL_PX else SAMPLE_PX
        self._strip = lru_cache(KEPT)(self._sum_strip)

    def see(self, window: Window, optical: Floats, sar: Floats) -> tuple[Floats, Floats]:
        """Raw images (C, h, w) of a window, which may reach beyond the scene, to (2C, h, w), 0 = invalid."""
        optical, sar = self._scaled.normalise(optical, sar)
        return self._with_standardised(0, window, optical), self._with_standardised(1, window, sar)

    def _with_standardised(self, date: int, window: Window, image: Floats) -> Floats:
        """(C, h, w) -> (2C, h, w); ``date`` is 0 for the optical image, 1 for SAR."""
        bands = len(image)
        (rows, row_shares), (cols, col_shares) = _between(window.row, window.height), _between(window.col, window.width)
        nodes = self._around(date, range(rows[0], rows[-1] + 2), range(cols[0], cols[-1] + 2))
        number, (sums, squares) = np.maximum(nodes[0], 1e-9), np.split(nodes[1:], 2)
        mean = sums / number
        gain = 1 / (np.sqrt(np.maximum(squares / number - mean * mean, 0)) + FLAT)
        lines = np.concatenate((gain, -mean * gain)).astype(np.float32)  # standardised = gain * value + offset
        lines = _mixed(lines[..., cols - cols[0]], lines[..., cols - cols[0] + 1], col_shares)  # (2C, nodes, w)
        out = np.concatenate((image, image))
        for first in range(0, window.height, ROWS):
            some = slice(first, first + ROWS)
            nodes_above = rows[some] - rows[0]
            factors = _mixed(lines[:, nodes_above], lines[:, nodes_above + 1], row_shares[some, None])
            part = out[bands:, some]
            valid = (part != 0).any(0)
            part *= factors[:bands]
            part += factors[bands:]
            part *= valid
        return out

    def _around(self, date: int, rows: range, cols: range) -> Doubles:
        """Number, sums and sums of squares (1 + 2C, rows, cols) over the surroundings of cells; some lie outside."""
        height, width = (-(-size // CELL_PX) for size in (self._height, self._width))
        first_row, first_col = rows.start - REACH, cols.start - REACH
        channels = 1 + 2 * (self._scaled.optical, self._scaled.sar)[date].channels
        sums = np.zeros((channels, len(rows) + 2 * REACH, len(cols) + 2 * REACH))
        for row in range(max(0, first_row), min(rows.stop + REACH, height)):
            for col in range(max(0, first_col), min(cols.stop + REACH, width)):
                strip = self._strip(row, col // STRIP_CELLS)[date]
                sums[:, row - first_row, col - first_col] = strip[:, col % STRIP_CELLS]
        for axis, count in ((1, len(rows)), (2, len(cols))):  # in one order, for the last bit
            sums = reduce(np.add, (sums.take(range(k, k + count), axis) for k in range(2 * REACH + 1)))
        return sums

    def _sum_strip(self, row: int, number: int) -> tuple[Doubles, Doubles]:
        """Number, sums and sums of squares (1 + 2C, cells) of optical and SAR, of all rows by those looked at."""
        top, left = row * CELL_PX, number * STRIP_CELLS * CELL_PX
        height, width = min(CELL_PX, self._height - top), min(STRIP_CELLS * CELL_PX, self._width - left)
        found: tuple[Doubles, Doubles]
        for rows in sorted({min(self._sample_px, height), height}):
            optical, sar, _ = self._read(Window(top, left, rows, width))
            images = self._scaled.optical.normalise(optical), self._scaled.sar.normalise(sar)
            found = _cells(images[0]) * (height / rows), _cells(images[1]) * (height / rows)
            if all(sums[0].all() for sums in found):  # else all rows: a small island must not be missed
                break
        return found


def _cells(image: Floats) -> Doubles:
    """Number, sums and sums of squares of the valid pixels per cell: (C, h, w), 0 = invalid -> (1 + 2C, cells)."""
    columns = [part.sum(1, dtype=np.float64) for part in ((image != 0).any(0, keepdims=True), image, np.square(image))]
    return np.add.reduceat(np.concatenate(columns), range(0, image.shape[2], CELL_PX), 1)


def _between(start_px: int, length_px: int) -> tuple[NDArray[np.int64], Floats]:
    """For pixels along an axis: the cell whose middle is the last before each, and how far it is to the next."""
    at = (np.arange(start_px, start_px + length_px) + 0.5) / CELL_PX - 0.5
    cell = np.floor(at).astype(np.int64)
    return cell, (at - cell).astype(np.float32)


def _mixed(low: Floats, high: Floats, share: Floats) -> Floats:
    return low + share * (high - low)
