"""Where the SAR image really lies: estimated from the two images themselves.

Tiles spread over the scene are compared by :mod:`hetecd.orientation`, coarse to fine: first on pixels of twice the
size, with every displacement up to a limit, for the motion on which most tiles agree; then on the pixels themselves,
with the SAR image read anew where that motion puts it. A motion is a shift, or a similarity (shift, rotation, scale)
where the tiles clearly ask for one. Nothing is moved unless enough tiles agree; the result says why.

The motion goes into the warp by which the SAR image is read (``open_pair(..., sar_move=...)``): it is resampled once.
Memory and time depend on the number of tiles, not on the size of the scene, unless data has to be searched for.
"""

import cmath
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.transform import Affine
from scipy import ndimage

from hetecd.config import Role
from hetecd.errors import InputError
from hetecd.ground import pixel_m
from hetecd.image import open_image
from hetecd.modality import Floats, Modality, uint8_modality
from hetecd.orientation import MARGIN_PX, Sensor, field, likeness, peak, peaks, thinned
from hetecd.pair import Pair, open_pair
from hetecd.raster import Bools, Grid, data_bands
from hetecd.tiles import Window, sampled

log = logging.getLogger("hetecd")

TILES = 48  # at most
TILE_PX = (96, 256)  # edge of a tile: a fifth of the scene, within these
LATTICE = 16  # places of tiles per axis, at most
SEARCH = 6  # windows per axis that look for data where these places miss it
FEW = 12  # tiles, below which those around each window that shows data are better
ISLAND_PX = 1024  # edge of what is looked at around one
LIMIT_PX = 128  # largest displacement searched unless told otherwise
MOST_PX = 1024  # of it; surfaces of all displacements then take about a gigabyte
COARSE = 2  # pixels to one in the first look
FINE_PX = (16, 8)  # displacement that may be left over, in the second and in the third look
TURN = 0.05  # largest |rotation (radians) + change of scale|
PEAKS = 4  # of a tile that are believed possible in the first look
TRUST = 8.0  # a tile cannot speak for a motion with more standard deviations than this
SIMPLE = 0.9  # a shift is preferred where it is supported by this share of what supports the best similarity
ROBUST_PX = (12.0, 8.0, 5.0, 3.0, 3.0)  # where a tile ceases to count, from one round of the fit to the next
INLIER_PX = 1.5  # a tile agrees where it is that close to the motion of all
AGREE = 4, 0.35  # tiles, and share of the tiles, that must agree
SURE_OF_TURN = 6.0  # F value from which rotation and scale are believed
LEAST_PX = 2.0  # less is not moved: heights and shadows can look like it

Reals = NDArray[np.float64]
Points = NDArray[np.complex128]  # places or displacements on a plane: x + i y
OpenMoved = Callable[[Affine | None], AbstractContextManager[Pair]]


@dataclass(frozen=True)
class Alignment:
    """What was found, and what is done about it.

    Attributes:
        sar_move: for :func:`hetecd.pair.open_pair`; the identity where nothing is to be moved.
        shift_px: (x, y) by which the middle of the SAR image must move, in pixels of the grid, right and down.
        shift_m: the same in metres; None where the grid is tied to no place on earth.
        rotation_deg: by which it must turn, clockwise.
        scale: by which it must grow.
        inlier_ratio: share of the tiles that agree, 0 to 1.
        tiles: how many could be compared.
        moved: False where ``sar_move`` is the identity.
        note: why, in words.
    """

    sar_move: Affine
    shift_px: tuple[float, float]
    shift_m: tuple[float, float] | None
    rotation_deg: float
    scale: float
    inlier_ratio: float
    tiles: int
    moved: bool
    note: str

    def summary(self) -> dict[str, object]:
        """JSON-able, for the metadata of results."""
        out = asdict(self) | {"sar_move": list(self.sar_move)[:6], "shift_px": list(self.shift_px)}
        return out | {"shift_m": None if self.shift_m is None else list(self.shift_m)}

    def __str__(self) -> str:
        """One line."""
        agree = f"{self.inlier_ratio:.0%} of {self.tiles} tiles agree; {self.note}"
        if not is_known(self.inlier_ratio, self.tiles):
            return f"SAR to optical unknown, {agree}"
        shift = "{:+.2f} px right, {:+.2f} px down".format(*self.shift_px)
        if self.shift_m:
            shift += " ({:+.1f} m, {:+.1f} m)".format(*self.shift_m)
        found = f"SAR to optical {shift}, rotation {self.rotation_deg:+.3f} deg, scale {self.scale:.5f}"
        return f"{found}; {agree}"


def is_known(inlier_ratio: float, tiles: int) -> bool:
    """Whether so large a share of so many tiles tells where an image lies."""
    return inlier_ratio * tiles >= AGREE[0] - 0.5 and inlier_ratio >= AGREE[1]


def limit_of(how: str) -> int | None:
    """The largest shift that ``--align`` asks to search: None for "off", the usual one for "auto", or a number, px.

    Raises:
        InputError: it is none of these.
    """
    if how == "off":
        return None
    if how != "auto" and not how.isdecimal():
        raise InputError(f"align: found '{how}', expected auto, off, or the largest shift to search in pixels")
    return LIMIT_PX if how == "auto" else int(how)


def choose_move(open_moved: OpenMoved, how: str = "auto") -> Alignment | None:
    """What ``predict --align`` asks for, said in the log; see :func:`find_move`.

    Args:
        open_moved: opens the pair with a given ``sar_move``.
        how: see :func:`limit_of`; "off" gives None.

    Raises:
        InputError: ``how`` cannot be, or what :func:`find_move` raises.
    """
    limit_px = limit_of(how)
    if limit_px is None:
        return None
    found = find_move(open_moved, limit_px)
    log.info("align: %s", found)
    return found


def opener(
    before: Path | str,
    after: Path | str,
    before_is: Role,
    optical_bands: Sequence[int] = (),
    sar_bands: Sequence[int] = (),
) -> OpenMoved:
    """Opens a pair for :func:`find_move` where no weights say which bands count: by default the first three with data.

    Raises:
        InputError: a file is missing, no raster or has no such band.
    """

    def modality(path: Path | str, bands: Sequence[int]) -> Modality:
        with open_image(path, tuple(bands) or (1,)) as image:
            return uint8_modality(tuple(bands) or data_bands(image.granules[0].dataset)[:3])

    paths = (before, after) if before_is == "optical" else (after, before)
    optical, sar = map(modality, paths, (optical_bands, sar_bands))
    return lambda move: open_pair(before, after, before_is, optical, sar, sar_move=move)


class _Motion(NamedTuple):
    """Displacement ``shift + turn * place``; 1 + ``turn`` is scale and rotation as a complex number."""

    shift: complex = 0j
    turn: complex = 0j

    def at(self, places: Points) -> Points:
        return self.shift + self.turn * places


class _Plane:
    """The grid as a plane of square pixels of about the same size, with 0 in its middle."""

    def __init__(self, grid: Grid) -> None:
        edges = pixel_m(grid) if grid.crs else (math.nan, math.nan)
        self.pixel_m = edges if all(map(math.isfinite, edges)) else None
        width, height = self.pixel_m or (grid.res if grid.crs else (1.0, 1.0))
        self._unit = Affine.scale(math.sqrt(width / height), math.sqrt(height / width))
        self._middle = Affine.translation(-grid.width / 2, -grid.height / 2)

    def steps(self, cols: Reals, rows: Reals) -> Points:
        """Displacements in pixels to such on the plane."""
        x, y = self._unit @ (cols, rows)
        return np.asarray(x + 1j * y, np.complex128)

    def places(self, cols: Reals, rows: Reals) -> Points:
        """Places on the grid to such on the plane."""
        x, y = self._middle @ (cols, rows)
        return self.steps(np.asarray(x), np.asarray(y))

    def pixels(self, steps: Points) -> tuple[Reals, Reals]:
        """Displacements on the plane to such in columns and rows."""
        cols, rows = ~self._unit @ (steps.real, steps.imag)
        return cols, rows

    def affine(self, motion: _Motion) -> Affine:
        """The motion as a map from pixels of the grid to pixels of the grid."""
        to_plane = self._unit @ self._middle
        one, shift = 1 + motion.turn, motion.shift
        return ~to_plane @ Affine(one.real, -one.imag, shift.real, one.imag, one.real, shift.imag) @ to_plane


class _Seen(NamedTuple):
    """How well tiles fit at every displacement within reach.

    Attributes:
        places: (T,) middles of the tiles on the plane.
        surfaces: (T, n, n) standard deviations; the middle is no displacement.
        step_px: pixels of the grid from one entry to the next.
    """

    places: Points
    surfaces: Floats
    step_px: int

    def steps(self, entries: Reals, plane: _Plane) -> Points:
        """Displacements on the plane of entries (n, 2) as (row, col)."""
        rows, cols = (entries - self.surfaces.shape[1] // 2).T * self.step_px
        return plane.steps(cols, rows)


def find_move(open_moved: OpenMoved, limit_px: int = LIMIT_PX) -> Alignment:
    """Estimate how the SAR image must move to fit the optical one.

    Args:
        open_moved: opens the pair with a given ``sar_move``, such as
            ``lambda move: open_pair(before, after, "optical", optical, sar, sar_move=move)``.
        limit_px: largest displacement searched at any place, in pixels of the grid along either axis.

    Raises:
        InputError: ``limit_px`` is not from 1 to 1024 (memory grows with its square), or what opening and
            reading raise.
    """
    if not 1 <= limit_px <= MOST_PX:
        raise InputError(f"align: found a largest shift of {limit_px} px, expected 1 to {MOST_PX}")
    with open_moved(None) as pair:
        plane = _Plane(pair.grid)
        tiles = _choose_tiles(pair)
        seen = _compare(pair, plane, tiles, min(limit_px, min(pair.grid.shape) // 3), COARSE)
    if len(seen.places) < AGREE[0]:
        note = f"not moved: {AGREE[0]} tiles with texture that is valid in both images are needed"
        return _result(plane, _Motion(), 0.0, len(seen.places), note)
    motion = _search(seen, plane)
    for reach_px in FINE_PX:
        with open_moved(plane.affine(motion)) as pair:
            seen = _compare(pair, plane, tiles, min(reach_px, limit_px), 1)
        motion, agree = _fit(seen, plane, motion)
    return _judge(plane, motion, seen.places, agree, limit_px)


def _judge(plane: _Plane, motion: _Motion, places: Points, agree: Bools, limit_px: int) -> Alignment:
    """Decide whether a motion is believed."""
    if not agree.any():
        return _result(plane, _Motion(), 0.0, agree.size, "not moved: unsure, no tiles agree")
    ratio = float(agree.mean())
    moves_px = float(np.sqrt(np.mean(np.abs(motion.at(places)) ** 2)))
    if np.abs(plane.pixels(motion.at(places))).max() > limit_px + 1:
        note = f"not moved: unsure, it would be beyond the limit of {limit_px} px"
    elif agree.sum() < AGREE[0] or ratio < AGREE[1]:
        note = "not moved: unsure, too few tiles agree"
    elif moves_px < LEAST_PX:
        note = f"not moved: {moves_px:.1f} px on average, and heights and shadows can look like {LEAST_PX} px"
    else:
        return _result(plane, motion, ratio, agree.size, f"moved, by {moves_px:.1f} px on average", moved=True)
    return _result(plane, motion, ratio, agree.size, note)


def _result(plane: _Plane, motion: _Motion, ratio: float, tiles: int, note: str, moved: bool = False) -> Alignment:
    # The SAR image moves the other way than the places at which it is read.
    back = 1 / (1 + motion.turn)
    x, y = map(float, plane.pixels(np.array(-motion.shift * back)))
    return Alignment(
        sar_move=plane.affine(motion) if moved else Affine.identity(),
        shift_px=(x, y),
        shift_m=(x * plane.pixel_m[0], y * plane.pixel_m[1]) if plane.pixel_m else None,
        rotation_deg=math.degrees(cmath.phase(back)),
        scale=abs(back),
        inlier_ratio=ratio,
        tiles=tiles,
        moved=moved,
        note=note,
    )


def _choose_tiles(pair: Pair) -> list[Window]:
    """Tiles spread over the scene, or over what both images show of it, whose middle is valid in both."""
    height, width = pair.grid.shape
    chosen = _tiles_in(pair, Window(0, 0, height, width))
    if len(chosen) == TILES or max(height, width) <= LATTICE * TILE_PX[1]:  # places lie side by side
        return chosen
    seen, part = sampled(pair.grid.shape, lambda w: w if pair.read_usable(w) else None, SEARCH, TILE_PX[0])
    chosen = max(chosen, _tiles_in(pair, part), key=len)
    if len(chosen) < FEW:  # islands far apart
        islands = [_tiles_in(pair, _island(window, pair.grid)) for window in seen[:FEW]]
        chosen = max(chosen, [tile for tiles in islands for tile in tiles[: TILES // len(islands)]], key=len)
    return chosen


def _island(window: Window, grid: Grid) -> Window:
    """A window and what lies around it."""
    top, left = max(0, window.row - ISLAND_PX // 2), max(0, window.col - ISLAND_PX // 2)
    return Window(top, left, min(ISLAND_PX, grid.height - top), min(ISLAND_PX, grid.width - left))


def _tiles_in(pair: Pair, part: Window) -> list[Window]:
    """The same, of a part of the scene."""
    height, width = part.height, part.width
    edge_px = min(max(min(height, width) // 5, TILE_PX[0]), TILE_PX[1], height, width) // COARSE * COARSE
    if not edge_px:  # a line of pixels
        return []
    probe_px = max(edge_px // 4, 1)
    rows, cols = (np.linspace(0, n - edge_px, min(n // edge_px, LATTICE)).astype(int) for n in (height, width))
    places = [(part.row + int(row), part.col + int(col)) for row in rows for col in cols]
    chosen: list[Window] = []
    # In an order in which any beginning is spread over the scene as well.
    for number in np.random.default_rng(0).permutation(len(places)):
        row, col = places[number]
        inset = (edge_px - probe_px) // 2
        if pair.read(Window(row + inset, col + inset, probe_px, probe_px))[2].mean() > 0.5:
            chosen.append(Window(row, col, edge_px, edge_px))
        if len(chosen) == TILES:
            break
    return chosen


def _compare(pair: Pair, plane: _Plane, tiles: Sequence[Window], reach_px: int, factor: int) -> _Seen:
    """Compare tiles of the optical image with the SAR image around them, on means over ``factor`` pixels."""
    reach = -(-reach_px // factor)
    cols, rows, surfaces = [], [], []
    for tile in tiles:
        optical, sar = (thinned(image, factor) for image in _read_around(pair, tile, (reach + MARGIN_PX) * factor))
        inner = slice(reach, -reach or None)
        wanted = field(optical[:, inner, inner], Sensor.OPTICAL).inside(MARGIN_PX)
        surface = likeness(wanted, field(sar, Sensor.SAR, factor).inside(MARGIN_PX))
        if surface.any():
            surfaces.append(surface)
            cols.append(tile.col + tile.width / 2)
            rows.append(tile.row + tile.height / 2)
    n = 2 * reach + 1
    places = plane.places(np.array(cols, np.float64), np.array(rows, np.float64))
    return _Seen(places, np.array(surfaces, np.float32).reshape(-1, n, n), factor)


def _read_around(pair: Pair, tile: Window, margin_px: int) -> tuple[Floats, Floats]:
    """Both images of a tile and a margin around it, NaN outside the grid."""
    top, left = max(tile.row - margin_px, 0), max(tile.col - margin_px, 0)
    bottom = min(tile.row + tile.height + margin_px, pair.grid.height)
    right = min(tile.col + tile.width + margin_px, pair.grid.width)
    optical, sar, _ = pair.read(Window(top, left, bottom - top, right - left))
    missing = (
        (0, 0),
        (top - tile.row + margin_px, tile.row + tile.height + margin_px - bottom),
        (left - tile.col + margin_px, tile.col + tile.width + margin_px - right),
    )
    padded = (np.pad(image, missing, constant_values=np.nan) for image in (optical, sar))
    return next(padded), next(padded)


def _search(seen: _Seen, plane: _Plane) -> _Motion:
    """The motion for which the tiles speak most, among those that one or two of them propose; none if none does."""
    owners, entries = [], []
    for number, surface in enumerate(seen.surfaces):
        tops = peaks(surface, PEAKS, apart_px=3)
        entries += tops
        owners += [number] * len(tops)
    if not entries:
        return _Motion()
    steps = seen.steps(np.array(entries, np.float64), plane)
    at = seen.places[owners]
    one, other = np.triu_indices(len(steps), 1)
    distinct = at[one] != at[other]
    one, other = one[distinct], other[distinct]
    turns = (steps[other] - steps[one]) / (at[other] - at[one])
    one, turns = one[np.abs(turns) <= TURN], turns[np.abs(turns) <= TURN]

    def best(shifts: Points, turns: Points) -> tuple[float, _Motion]:
        support = _support(seen, plane, shifts, turns)
        top = int(support.argmax())
        return float(support[top]), _Motion(complex(shifts[top]), complex(turns[top]))

    simple, shift = best(steps, np.zeros_like(steps))
    if not len(turns):
        return shift
    general, similarity = best(steps[one] - turns * at[one], turns)
    return shift if simple >= SIMPLE * general else similarity


def _support(seen: _Seen, plane: _Plane, shifts: Points, turns: Points) -> Reals:
    """How well the tiles fit on average if moved by each of some motions."""
    # What is good one entry further is good here: proposals are not that exact.
    surfaces = ndimage.maximum_filter(np.minimum(seen.surfaces, TRUST), (1, 3, 3))
    size = surfaces.shape[1]
    total = np.zeros(len(shifts))
    for place, surface in zip(seen.places, surfaces, strict=True):
        cols, rows = (np.rint(v / seen.step_px).astype(int) + size // 2 for v in plane.pixels(shifts + turns * place))
        inside = (rows >= 0) & (rows < size) & (cols >= 0) & (cols < size)
        total[inside] += surface[rows[inside], cols[inside]]
    return total / len(surfaces)


def _fit(seen: _Seen, plane: _Plane, known: _Motion) -> tuple[_Motion, Bools]:
    """The motion that the tiles measure, given what the SAR image was moved by already; which tiles agree with it."""
    places = seen.places
    if len(places) < AGREE[0]:
        return known, np.zeros(len(places), bool)
    found = places + seen.steps(np.array([peak(surface) for surface in seen.surfaces]), plane)
    total = found + known.at(found) - places
    shift, similarity = _robust(places, total, known.turn, turn=False), _robust(places, total, known.turn, turn=True)
    weights = _weights(total - similarity.at(places), ROBUST_PX[-1])
    left = float((weights * np.abs(total - similarity.at(places)) ** 2).sum())
    mean = (weights * total).sum() / max(weights.sum(), 1e-9)
    left_by_shift = float((weights * np.abs(total - mean) ** 2).sum())
    freedom = 2 * float(weights.sum()) - 4
    sure = freedom > 2 and (left_by_shift - left) / 2 > SURE_OF_TURN * left / freedom
    motion = similarity if sure else shift
    return motion, np.abs(total - motion.at(places)) <= INLIER_PX


def _robust(places: Points, total: Points, start_turn: complex, turn: bool) -> _Motion:
    """Fit of displacements in which those far off do not count; a shift, or with ``turn`` a similarity."""
    turned = start_turn if turn else 0j
    rest = total - turned * places
    motion = _Motion(complex(np.median(rest.real), np.median(rest.imag)), turned)
    for limit_px in ROBUST_PX:
        weights = _weights(total - motion.at(places), limit_px)
        if weights.sum() < 1e-6:
            break
        weights /= weights.sum()
        place, mean = (weights * places).sum(), (weights * total).sum()
        spread = float((weights * np.abs(places - place) ** 2).sum())
        turned = 0j
        if turn and spread > 0:
            turned = complex((weights * (places - place).conj() * (total - mean)).sum() / spread)
        motion = _Motion(complex(mean - turned * place), turned)
    return motion


def _weights(left: Points, limit_px: float) -> Reals:
    """Tukey's weights: 1 at no deviation, 0 from ``limit_px`` on."""
    return np.asarray(np.clip(1 - (np.abs(left) / limit_px) ** 2, 0, None) ** 2, np.float64)
