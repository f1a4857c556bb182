"""Windows over a scene, and how their results are blended back into one. NumPy only.

Windows stand on a regular grid of rows and columns, so blending is separable: the windows of one row are joined into
a strip, strips are joined downwards. Either way a new value replaces the old one by a share between 0 and 1. Where
all windows agree on a pixel the blend is that value to the last bit, which a weighted sum would not give.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hetecd.errors import InputError
from hetecd.modality import STRIDE_PX, Floats, Inner

BLOCK_PX = 512  # edge of the tiles of a COG; blocks of a scene are this high and a multiple of it wide
PANEL_PX = 16384  # width of a panel, at the most
ROWS = 64  # that are blended at a time
BLEND_PX = 64  # width over which neighbouring windows are blended, at the most
ENOUGH = 0.25  # share of the windows of a sample that show something, from which it is one of the whole scene

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: rows ``row`` to ``row + height``, columns ``col`` to ``col + width`` (exclusive)."""

    row: int
    col: int
    height: int
    width: int


def starts(length_px: int, tile_px: int, overlap_px: int) -> list[int]:
    """First pixels of the windows along one axis; the last window ends with the scene, shifted inwards.

    Where windows go in steps that a network's maps take too, the last one does so as well, and is up to 31 px shorter.

    Raises:
        InputError: a length or the tile is not positive, or the overlap is not below the tile.
    """
    if length_px < 1 or tile_px < 1:
        raise InputError(f"tile_px: found {tile_px} on a scene of {length_px} pixels, expected both at least 1")
    if not 0 <= overlap_px < tile_px:
        raise InputError(
            f"overlap_px: found {overlap_px}, expected 0 to {tile_px - 1}, below tile_px; change one of them"
        )
    step, last = tile_px - overlap_px, max(length_px - tile_px, 0)
    if step % STRIDE_PX == 0 and tile_px >= 2 * STRIDE_PX:
        last = -(-last // STRIDE_PX) * STRIDE_PX
    return [*range(0, last, step), last]


def spread(shape: tuple[int, int], along: int, edge_px: int) -> list[Window]:
    """A sample: up to ``along`` windows along either axis of a scene (height, width); all of it where it is small."""
    rows, cols = (
        [
            (int(start), min(edge_px, size))
            for start in np.unique(np.linspace(0, max(0, size - edge_px), along, dtype=int))
        ]
        for size in shape
    )
    return [Window(row, col, height, width) for row, height in rows for col, width in cols]


def sampled(
    shape: tuple[int, int], look: Callable[[Window], Seen | None], along: int, edge_px: int
) -> tuple[list[Seen], Window]:
    """What is seen in windows spread over a scene or, where few of them show anything, over the part where some do.

    Islands far apart remain what few windows show of them. To find nothing takes ``(16 * along)**2`` looks and more.

    Args:
        shape: (height, width) of the scene.
        look: None where a window shows nothing.
        along: windows along either axis; where none shows anything, a net of four times as many is tried, and of more.
        edge_px: of a window.

    Returns:
        What was seen, and the part of the scene around it; all of it where nothing was.
    """
    part = Window(0, 0, *shape)
    while True:
        most = -(-max(part.height, part.width) // edge_px)  # cover it
        for net in (along, min(4 * along, most), min(16 * along, most)):
            windows = [
                Window(part.row + w.row, part.col + w.col, w.height, w.width)
                for w in spread((part.height, part.width), net, edge_px)
            ]
            found = [(window, seen) for window in windows if (seen := look(window)) is not None]
            if found or net >= most:
                break
        closer = _around([window for window, _ in found], part, net, edge_px) if found else part
        enough = len(found) >= ENOUGH * len(windows)
        if not found or enough or 2 * closer.height * closer.width > part.height * part.width:
            return [seen for _, seen in found], closer
        part = closer


def _around(windows: Sequence[Window], part: Window, along: int, edge_px: int) -> Window:
    """What lies around some of the windows spread over a part of a scene, up to where the next ones stand."""
    rows, cols = (-(-max(0, size - edge_px) // max(1, along - 1)) for size in (part.height, part.width))
    top = max(part.row, min(w.row for w in windows) - rows)
    left = max(part.col, min(w.col for w in windows) - cols)
    bottom = min(part.row + part.height, max(w.row + w.height for w in windows) + rows)
    right = min(part.col + part.width, max(w.col + w.width for w in windows) + cols)
    return Window(top, left, bottom - top, right - left)


def window_rows(
    height: int, width: int, tile_px: int, overlap_px: int, part: Window | None = None
) -> Iterator[list[Window]]:
    """Windows that cover every pixel, row by row, each overlapping the next by at least ``overlap_px``.

    They have the edge ``tile_px``, the last of a row or column perhaps less (see :func:`starts`).

    Args:
        height: rows of the scene.
        width: columns of the scene.
        tile_px: edge of a window.
        overlap_px: pixels that neighbouring windows share.
        part: give only the windows that reach into this part of the scene.
    """
    part = part or Window(0, 0, height, width)
    cols = [c for c in starts(width, tile_px, overlap_px) if c < part.col + part.width and c + tile_px > part.col]
    for row in starts(height, tile_px, overlap_px):
        if row < part.row + part.height and row + tile_px > part.row:
            yield [Window(row, col, min(tile_px, height - row), min(tile_px, width - col)) for col in cols]


def windows(height: int, width: int, tile_px: int, overlap_px: int) -> list[Window]:
    """All of :func:`window_rows`; for a large scene a long list."""
    return [window for row in window_rows(height, width, tile_px, overlap_px) for window in row]


def panels(height: int, width: int) -> list[Window]:
    """A scene cut into columns of ``PANEL_PX`` or less, so that a strip of windows is of bounded size.

    The windows at the cuts serve both neighbours, that is, they are computed twice.
    """
    count = -(-width // PANEL_PX)
    panel_px = -(-width // (count * BLOCK_PX)) * BLOCK_PX
    return [Window(0, col, height, min(panel_px, width - col)) for col in range(0, width, panel_px)]


def blocks(part: Window) -> list[Window]:
    """A part of a scene cut into rows of ``BLOCK_PX``, from top to bottom."""
    return [
        Window(part.row + row, part.col, min(BLOCK_PX, part.height - row), part.width)
        for row in range(0, part.height, BLOCK_PX)
    ]


def blend_weights(length_px: int, before_px: int | None, after_px: int | None) -> NDArray[np.float64]:
    """How far a window is trusted along one axis, (length_px,) in 0 to 1.

    Networks are worst at the border of their input, so the outer quarter of an overlap counts nothing, and the
    weight rises as a squared sine over the middle half, or the middle ``BLEND_PX`` of it. Two neighbours add up to 1.

    Args:
        length_px: edge of the window.
        before_px: pixels shared with the window before; None: there is none, and the first pixel has full weight.
        after_px: the same of the window after.
    """
    weights = np.ones(length_px)
    for overlap_px, way in ((before_px, 1), (after_px, -1)):
        if overlap_px is not None:
            margin_px = max(overlap_px / 4, (overlap_px - BLEND_PX) / 2)
            distance_px = np.arange(length_px)[::way] + 0.5
            rise = np.clip((distance_px - margin_px) / max(overlap_px - 2 * margin_px, 1e-9), 0.0, 1.0)
            weights *= np.sin(0.5 * np.pi * rise) ** 2
    return weights


def shares(length_px: int, tile_px: int, overlap_px: int) -> dict[int, Floats]:
    """Per window start along one axis: the share by which it replaces what the windows before it gave.

    It is its weight over the sum of weights so far: 1 where it is the first that counts, 0 where it does not count.
    """
    positions = starts(length_px, tile_px, overlap_px)
    overlaps = [before + tile_px - after for before, after in pairwise(positions)]  # the last may be larger
    total = np.zeros(length_px)
    result = {}
    for start, before_px, after_px in zip(positions, [None, *overlaps], [*overlaps, None], strict=True):
        size_px = min(tile_px, length_px - start)
        part = slice(start, start + size_px)
        weights = blend_weights(size_px, before_px, after_px)
        total[part] += weights
        result[start] = np.divide(weights, total[part], out=np.zeros(size_px), where=weights > 0).astype(np.float32)
    return result


def _blend(target: Floats, new: Floats, share: Floats) -> None:
    """Move ``target`` towards ``new`` (h, w) in place; exact for shares of 0 and 1 and where both agree."""
    share = np.broadcast_to(share, target.shape)
    for first in range(0, len(target), ROWS):  # what is made on the way would be several strips of windows
        old, by, to = (x[first : first + ROWS] for x in (target, share, new))
        old[...] = np.where(by >= 1, to, np.where(by > 0, old + by * (to - old), old))


class Stitcher:
    """Blends windows that arrive row by row into rows of the scene, keeping two strips of windows in memory.

    Windows may be left out. Pixels that no window covers are NaN, and NaN in a window stays NaN: give NaN at invalid
    pixels.

    Args:
        height: rows of the scene.
        width: columns of the scene.
        tile_px: as given to :func:`window_rows`.
        overlap_px: as given to :func:`window_rows`.
        part: the part of the scene that is wanted, by default all. It comes out as it would in the whole scene, to the
            last bit.
    """

    def __init__(self, height: int, width: int, tile_px: int, overlap_px: int, part: Window | None = None) -> None:
        self._part = part or Window(0, 0, height, width)
        self._row_shares = shares(height, tile_px, overlap_px)
        self._col_shares = shares(width, tile_px, overlap_px)
        strip_px = min(tile_px, height)
        self._joined = np.full((strip_px, self._part.width), np.nan, np.float32)  # strips before the present one
        self._strip = np.full((strip_px, self._part.width), np.nan, np.float32)
        self._strip_is_empty = True
        self._joined_px = 0  # rows of `_joined` from its first that may hold something
        # Scene row of the first row of both.
        self._top = next(row for row in self._row_shares if row + strip_px > self._part.row)

    def inner(self, window: Window) -> Inner:
        """Rows and columns of a window that count; those around them may hold anything."""
        (top, bottom), (left, right) = (
            np.nonzero(share)[0][[0, -1]].tolist()
            for share in (self._row_shares[window.row], self._col_shares[window.col])
        )
        return slice(top, bottom + 1), slice(left, right + 1)

    def add(self, window: Window, values: Floats) -> None:
        """Take one window of the present row of windows.

        Raises:
            ValueError: the window is not one of :func:`window_rows`, comes out of order, or ``values`` is not of its
                size.
        """
        if window.row != self._top or window.col not in self._col_shares:
            raise ValueError(f"{window} is not one of this scene's windows, or comes out of order")
        if values.shape != (window.height, window.width):
            raise ValueError(f"found values of shape {values.shape}, expected those of {window}")
        first = max(0, self._part.col - window.col)
        last = min(window.width, self._part.col + self._part.width - window.col)
        at = window.col - self._part.col
        target = self._strip[: window.height, at + first : at + last]
        new = values.astype(np.float32, copy=False)[:, first:last]
        _blend(target, new, self._col_shares[window.col][first:last])
        self._strip_is_empty = False

    def advance(self, row: int) -> Floats:
        """Go on to the row of windows that begins at scene row ``row``, or to the end of the part.

        Returns:
            The rows of the part (n, width) that became final, float32; the next after those given before.

        Raises:
            ValueError: a row of windows was passed over.
        """
        size_px = len(self._strip)
        done = row - self._top
        if not 0 <= done <= size_px:
            raise ValueError(f"row {row} leaves out rows, after {self._top}")
        if done and not self._strip_is_empty:
            share = self._row_shares[self._top]
            _blend(self._joined[: len(share)], self._strip[: len(share)], share[:, None])
            self._strip[:] = np.nan
            self._strip_is_empty = True
            self._joined_px = size_px
        finished = self._joined[max(0, self._part.row - self._top) : done].copy()
        if self._joined_px:
            self._joined[: size_px - done] = self._joined[done:]
            self._joined[size_px - done :] = np.nan
            self._joined_px = max(0, self._joined_px - done)
        self._top = row
        return finished
