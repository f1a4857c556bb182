"""A scene as a network sees it that standardises its bands: by what lies around each pixel, not by the window.

Such a network takes the mean and the deviation of the tile that it gets. Windows of a scene each have others, and so a
pixel would look different in each of those that share it, which shows as seams. Here mean and deviation are functions
of the place: those of the square of cells around it, interpolated between the middles of the cells. They depend on
nothing but the images, and are the same to the last bit in any window.

Cells are summed up when a window first needs them, a strip of cells at a time. In a large scene a quarter of their rows
is looked at.
"""

from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from hetecd.modality import FLAT, Floats, Predictor, Scaled
from hetecd.pair import Pair
from hetecd.raster import Bools
from hetecd.stream import Source
from hetecd.tiles import Window

Doubles = NDArray[np.float64]
CELL_PX = 256
REACH = 2  # cells to either side that count
STRIP_CELLS = 4
SAMPLE_PX = 64  # rows of a cell that are looked at,
SMALL_PX = 2048  # where the scene is larger than this; otherwise all
KEPT = 4096  # strips in memory, less than 1 kB each; a row of windows over one panel needs some hundred


def seen_by(predictor: Predictor, pair: Pair) -> tuple[Source, Predictor]:
    """What to read, and what to ask of what is read, so that windows agree on what they share.

    A predictor that is no :class:`hetecd.modality.Scaled` is asked as it is: of raw windows, one by one.
    """
    if isinstance(predictor, Scaled) and predictor.standardises:
        return Surroundings(pair, predictor), predictor.compute
    return pair, predictor


class Surroundings:
    """A pair, normalised, each band once more standardised by its surroundings.

    Attributes:
        grid: of the pair.
        invalid: value of invalid pixels.
    """

    invalid = 0.0

    def __init__(self, pair: Pair, scaled: Scaled) -> None:
        self.grid = pair.grid
        self._pair = pair
        self._scaled = scaled
        self._sample_px = CELL_PX if max(pair.grid.shape) <= SMALL_PX else SAMPLE_PX
        self._strip = lru_cache(KEPT)(self._sum_strip)

    def read_usable(self, window: Window) -> tuple[Floats, Floats, Bools] | None:
        """As :meth:`hetecd.pair.Pair.read_usable`, with (2C, h, w) of C bands; 0 = invalid."""
        found = self._pair.read_usable(window)
        if found is None:
            return None
        optical, sar, valid = found
        del found  # a strip of windows: its memory is wanted
        optical, sar = self._scaled.normalise(optical, sar)
        return self._with_standardised(0, window, optical), self._with_standardised(1, window, sar), valid

    def _with_standardised(self, date: int, window: Window, image: Floats) -> Floats:
        """(C, h, w) -> (2C, h, w); ``date`` is 0 for the optical image, 1 for SAR."""
        bands = len(image)
        rows, cols = _between(window.row, window.height), _between(window.col, window.width)
        nodes = self._around(date, range(rows[0][0], rows[0][-1] + 2), range(cols[0][0], cols[0][-1] + 2))
        number, (sums, squares) = np.maximum(nodes[0], 1e-9), np.split(nodes[1:], 2)
        mean = sums / number
        gain = 1 / (np.sqrt(np.maximum(squares / number - mean * mean, 0)) + FLAT)
        lines = np.concatenate((gain, -mean * gain)).astype(np.float32)  # standardised = gain * value + offset
        cell, share = cols
        lines = _mixed(lines[..., cell - cell[0]], lines[..., cell - cell[0] + 1], share)  # (2C, nodes, w)
        out = np.empty((2 * bands, *image.shape[1:]), np.float32)
        out[:bands] = image
        valid = (image != 0).any(0)
        for row, (cell_row, share_row) in enumerate(zip(*rows, strict=True)):
            line = _mixed(lines[:, cell_row - rows[0][0]], lines[:, cell_row - rows[0][0] + 1], share_row)
            out[bands:, row] = (image[:, row] * line[:bands] + line[bands:]) * valid[row]
        return out

    def _around(self, date: int, rows: range, cols: range) -> Doubles:
        """Number, sums and sums of squares (1 + 2C, rows, cols) over the surroundings of cells; some lie outside."""
        height, width = (-(-size // CELL_PX) for size in self.grid.shape)
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
        height, width = min(CELL_PX, self.grid.height - top), min(STRIP_CELLS * CELL_PX, self.grid.width - left)
        found: tuple[Doubles, Doubles]
        for rows in (min(self._sample_px, height), height):
            optical, sar, _ = self._pair.read(Window(top, left, rows, width))
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
