"""Outlines of groups of pixels, traced while the rows of an image go by.

A group is a set of True pixels that hang together by edges. Its outline is found corner by corner: at each grid point
the four pixels around it tell whether an outline turns there and which two edges meet. Corners wait until no pixel
below can belong to their group any more; then they are linked to rings. So memory holds one block of rows and the
corners of groups that are still open, and the result does not depend on where blocks end.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hetecd.modality import Floats

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

STRIP_ROWS = 64  # rows traced at a time: enough for NumPy to be quick, few beside the width of a scene
# The two pixels across from each other, where they alone are True: by the bits of NW, NE, SW, SE.
DIAGONALS = (0b1001, 0b0110)


@dataclass
class Corners:
    """Points where an outline turns, as arrays of equal length.

    Attributes:
        group: to which group the outline belongs.
        row: grid point, 0 to H.
        col: grid point, 0 to W.
        east: the horizontal edge that ends here lies to the east, else to the west.
        south: the vertical edge that ends here lies to the south, else to the north.
        leaves_level: followed with the group to the right, the outline comes by the vertical edge.
    """

    group: Ints
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    east: Bools
    south: Bools
    leaves_level: Bools

    def __getitem__(self, which: NDArray[np.generic]) -> "Corners":
        return Corners(*(getattr(self, field.name)[which] for field in fields(self)))

    def __add__(self, other: "Corners") -> "Corners":
        return Corners(*(np.concatenate([getattr(c, field.name) for c in (self, other)]) for field in fields(self)))


@dataclass(frozen=True)
class Shapes:
    """Finished groups, in the order of their last pixels.

    Attributes:
        polygons: (n,) shapely polygons in pixel coordinates (x = column, y = row), valid, holes included. Each ring
            begins at its first corner from the top.
        area_px: (n,) pixels.
        mean: (n,) of the values over the pixels.
    """

    polygons: NDArray[np.object_]
    area_px: Ints
    mean: NDArray[np.float64]


def trace(blocks: Iterable[tuple[Bools, Floats]], width: int) -> Iterator[Shapes]:
    """Outlines of the groups of an image.

    Args:
        blocks: successive rows from top to bottom: (n, W) True = inside, and (n, W) values to average over a group.
        width: W.

    Yields:
        The groups that a strip of rows has finished, where there are any.
    """
    tracer = _Tracer(width)
    for inside, values in blocks:
        for start in range(0, len(inside), STRIP_ROWS):
            part = slice(start, start + STRIP_ROWS)
            yield from tracer.add(inside[part], values[part])
    yield from tracer.add(np.zeros((1, width), bool), np.zeros((1, width), np.float32))  # closes what is open


class _Tracer:
    """What is open at the last row: groups 0, 1, ... with their pixels so far."""

    def __init__(self, width: int) -> None:
        self._row = 0  # the next
        self._above = np.zeros(width + 2, np.int64)  # groups of the last row plus 1; 0 = outside
        self._area_px = np.zeros(0, np.int64)
        self._sums = np.zeros(0)
        self._corners = _corners(np.zeros((2, 2), np.int64), 0)

    def add(self, inside: Bools, values: Floats) -> Iterator[Shapes]:
        """Take the next rows, and give the groups that end above the last of them."""
        if not (inside.any() or len(self._area_px)):
            self._row += len(inside)
            return
        labels = np.zeros((len(inside) + 1, len(self._above)), np.int64)
        labels[0] = self._above > 0
        labels[1:, 1:-1] = inside
        labels, count = ndimage.label(labels, output=np.int64)
        group, total = self._join(labels[0], count)
        labels = group[labels]  # groups plus 1 from now on, as in self._above
        members = labels[1:, 1:-1][inside] - 1
        known = group[count + 1 :] - 1  # where the groups that were open are now
        area_px = np.bincount(members, minlength=total)
        np.add.at(area_px, known, self._area_px)
        sums = np.bincount(members, values[inside], total).astype(np.float64)  # without members they are integers
        np.add.at(sums, known, self._sums)
        self._corners.group = known[self._corners.group]
        corners = self._corners + _corners(labels, self._row)
        self._row += len(inside)
        is_open = np.zeros(total, bool)
        is_open[labels[-1][labels[-1] > 0] - 1] = True
        waits = is_open[corners.group]
        number = np.cumsum(is_open)  # of the groups that stay open, plus 1
        self._corners, self._above = corners[waits], np.append(0, number * is_open)[labels[-1]]
        self._corners.group = number[self._corners.group] - 1
        self._area_px, self._sums = area_px[is_open], sums[is_open]
        if not is_open.all():
            yield _finish(corners[~waits], area_px, sums)

    def _join(self, first: Ints, count: int) -> tuple[Ints, int]:
        """Give each label its group, where those of the row above go on.

        Args:
            first: labels of the row above, labelled together with the new rows.
            count: of the labels.

        Returns:
            For 0, the labels 1 to ``count`` and the groups that were open: 0, or their group from now on plus 1; and
            the number of groups.
        """
        at = np.nonzero(first)[0]
        size = 1 + count + len(self._area_px)
        links = coo_array((np.ones(len(at), bool), (first[at], count + self._above[at])), (size, size))
        total, group = connected_components(links, directed=False)  # the outside, 0, comes first and alone
        return group.astype(np.int64), total - 1


def _corners(labels: Ints, first_row: int) -> Corners:
    """Corners at the grid points between the rows of labels (n + 1, W + 2), of which the first is ``first_row``."""
    inside = (labels > 0).astype(np.uint8)
    around = inside[:-1, :-1] | inside[:-1, 1:] << 1 | inside[1:, :-1] << 2 | inside[1:, 1:] << 3
    turns = np.array([0, 1, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 0], bool)
    rows, cols = np.nonzero(turns[around])
    around = around[rows, cols]
    found = Corners(*(np.zeros(0, dtype) for dtype in (np.int64, np.int32, np.int32, bool, bool, bool)))
    for pixel in range(4):  # NW, NE, SW, SE: the one within the angle
        south, east = divmod(pixel, 2)
        alone = around == 1 << pixel
        for diagonal in DIAGONALS:
            alone |= (around == diagonal) & bool(diagonal >> pixel & 1)
        for where, other in ((alone, pixel), (around == 15 - (1 << pixel), 3 - pixel)):
            row, col = rows[where], cols[where]
            group = labels[row + other // 2, col + other % 2] - 1
            leaves_level = (south == east) == (other == pixel)
            sides = (np.full(len(row), side, bool) for side in (east, south, leaves_level))
            found += Corners(group, (row + first_row).astype(np.int32), col.astype(np.int32), *sides)
    return found


def _finish(corners: Corners, area_px: Ints, sums: NDArray[np.float64]) -> Shapes:
    """Link all corners of some groups to polygons."""
    corners = corners[np.lexsort((corners.col, corners.row, corners.group))]
    # Where two pixels of one group meet at a point only, the outline must not touch itself: what meets there are two
    # holes, or a hole and the shell. The corners were found as if the pixels belonged to different groups.
    twice = (np.diff(corners.group) == 0) & (np.diff(corners.row) == 0) & (np.diff(corners.col) == 0)
    corners.south ^= np.append(twice, False) | np.append(False, twice)
    by_column = np.lexsort((corners.row, corners.col, corners.group))
    follower = np.empty(len(corners.row), np.int64)
    for order, side, leaves in (
        (np.arange(len(follower)), corners.east, corners.leaves_level),
        (by_column, corners.south, ~corners.leaves_level),
    ):
        # The ends of edges alternate along a line: the k-th beginning and the k-th end are one edge.
        begins, ends = order[side[order]], order[~side[order]]
        forward = leaves[begins]
        follower[np.where(forward, begins, ends)] = np.where(forward, ends, begins)
    order, ring = _cycles(follower)
    points = np.column_stack([corners.col[order], corners.row[order]]).astype(np.float64)
    rings = shapely.linearrings(points, indices=ring)
    # The first ring of a group begins at its topmost corner, so that it is the shell.
    groups = corners.group[order][np.append(True, np.diff(ring) > 0)]
    names, polygon = np.unique(groups, return_inverse=True)
    polygons = np.asarray(shapely.polygons(rings, indices=polygon))
    # The last corner of a group ends its last row, in which no other group ends at the same point.
    last = np.append(np.nonzero(np.diff(corners.group))[0], len(follower) - 1)
    by_end = np.lexsort((corners.col[last], corners.row[last]))
    names = names[by_end]
    return Shapes(polygons[by_end], area_px[names], sums[names] / area_px[names])


def _cycles(follower: Ints) -> tuple[Ints, Ints]:
    """Cycles of a permutation: its elements cycle by cycle, each from its smallest, and the cycle's number of each."""
    after, seen = follower.tolist(), bytearray(len(follower))
    order: list[int] = []
    lengths: list[int] = []
    for start in range(len(after)):
        if seen[start]:
            continue
        before, at = len(order), start
        while not seen[at]:
            seen[at] = 1
            order.append(at)
            at = after[at]
        lengths.append(len(order) - before)
    return np.array(order), np.repeat(np.arange(len(lengths)), lengths)
