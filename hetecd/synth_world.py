"""The place that the synthetic images show: where streets, buildings, fields and water lie, before and after.

Everything is computed for all pixels at once: a pixel asks in which district, block and lot it lies, and the lot's
row in a table says what stands there on each date. Distances are in pixels of 3 m unless a name says metres.
NumPy and SciPy only; every random number comes from the generator that is passed in.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Reals = NDArray[np.floating[Any]]  # of either precision
Bools = NDArray[np.bool_]
SceneKind = Literal["city", "flood"]
PIXEL_M = 3.0


class Cover(IntEnum):
    """What is on the ground at one date (``Scene.before``, ``Scene.after``)."""

    OPEN = 0
    TREES = 1
    ROAD = 2
    WATER = 3
    BUILDING = 4


class Zone(NamedTuple):
    """How one kind of district is laid out; lengths in pixels, heights in metres, pairs are (low, high)."""

    block: tuple[float, float]
    street: float
    lots: tuple[int, int]
    half: tuple[tuple[float, float], tuple[float, float]]  # half sizes of a building, as shares of its lot
    height_m: tuple[float, float]
    trees: float  # share of open ground under crowns
    paved: float  # share of lots with sealed ground


CORE, SLABS, HOUSES, INDUSTRY, FIELDS, MEADOW, FOREST = range(7)
ZONES = (
    Zone((33, 29), 3.2, (2, 2), ((0.5, 0.5), (0.5, 0.5)), (14, 25), 0.16, 0.5),
    Zone((68, 56), 3.2, (2, 3), ((0.32, 0.42), (0.17, 0.26)), (12, 32), 0.22, 0.25),
    Zone((64, 31), 2.4, (5, 2), ((0.26, 0.36), (0.22, 0.34)), (5, 9), 0.30, 0.05),
    Zone((96, 70), 4.0, (2, 2), ((0.28, 0.44), (0.26, 0.42)), (7, 14), 0.04, 0.75),
    Zone((124, 88), 1.3, (3, 2), ((0.0, 0.0), (0.0, 0.0)), (0, 0), 0.004, 0.0),
    Zone((300, 260), 0.0, (1, 1), ((0.0, 0.0), (0.0, 0.0)), (0, 0), 0.16, 0.0),
    Zone((300, 260), 0.0, (1, 1), ((0.0, 0.0), (0.0, 0.0)), (0, 0), 0.97, 0.0),
)
CORE_DEPTH = 4.6  # depth of the buildings around a courtyard
DISTRICT = 165.0
# Share of districts of each kind, in the order of ZONES.
CITY_MIX = (0.20, 0.24, 0.22, 0.18, 0.06, 0.06, 0.04)
FLOOD_MIX = (0.0, 0.0, 0.14, 0.04, 0.58, 0.14, 0.10)


@dataclass(frozen=True)
class Lots:
    """One row per lot: what stands there."""

    zone: NDArray[np.int64]
    half: Reals  # (N, 2) half sizes of the building, pixels
    height_m: Reals
    gable: Bools
    ground: Reals  # (N, 4) reflectance of the bare ground: blue, green, red, near infrared
    green_before: Reals  # share of green vegetation, 0 to 1
    green_after: Reals
    bare_db: Reals  # backscatter of the bare ground
    rows: Reals  # how strongly the field shows rows
    pond: Bools  # fish pond or paddy: water on both dates
    tree_density: Reals
    hedge: Bools
    built_before: Bools
    built_after: Bools


@dataclass(frozen=True)
class World:
    """The place, on a canvas with a margin around the scene. Arrays are (H, W); coverages run from 0 to 1."""

    lot: NDArray[np.int64]  # row of `lots`
    lots: Lots
    across: Reals  # position in the building across its ridge, -1 to 1
    stripe: Reals  # coordinate along which field rows alternate
    footprint: Reals  # coverage of every building that ever stands
    street: Reals
    arterial: Reals
    crown: Reals  # coverage of trees
    tree_m: Reals  # height of trees
    water: Reals  # coverage of water on both dates
    flood_m: Reals  # depth of the flood, 0 where dry or water anyway
    terrain_m: Reals
    moist: Reals  # 0 to 1, rain on the ground at the SAR date

    def untouched(self) -> "World":
        """The same place if nothing had happened to it between the dates."""
        lots = replace(self.lots, built_after=self.lots.built_before)
        return replace(self, lots=lots, flood_m=np.zeros_like(self.flood_m))

    def building(self, after: bool) -> Reals:
        """Coverage of the buildings that stand at a date."""
        return self.footprint * (self.lots.built_after if after else self.lots.built_before)[self.lot]

    def height_m(self, after: bool) -> Reals:
        """Height of buildings and trees above ground at a date, metres."""
        house = self.lots.height_m[self.lot] * (self.building(after) > 0.5)
        return np.maximum(house, self.tree_m).astype(np.float32)

    def cover(self, after: bool) -> NDArray[np.uint8]:
        """Class of each pixel at a date, see :class:`Cover`."""
        cover = np.full(self.lot.shape, Cover.OPEN, np.uint8)
        cover[self.crown > 0.5] = Cover.TREES
        cover[np.maximum(self.street, self.arterial) > 0.5] = Cover.ROAD
        cover[self.water > 0.5] = Cover.WATER
        cover[(self.arterial > 0.5) & (self.water > 0.5)] = Cover.ROAD
        if after:
            cover[self.flood_m > 0] = Cover.WATER
        cover[self.building(after) > 0.5] = Cover.BUILDING
        return cover


def noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: float, power: float = 3.0) -> Reals:
    """Fractal noise of mean 0 and standard deviation 1; ``scale_px`` is the size of its largest patches."""
    rows, cols = (fft.next_fast_len(n, real=True) for n in shape)
    spectrum = fft.rfft2(rng.standard_normal((rows, cols), dtype=np.float32))
    f_row, f_col = fft.fftfreq(rows).astype(np.float32), fft.rfftfreq(cols).astype(np.float32)
    squared = f_row[:, None] ** 2 + f_col[None] ** 2
    spectrum *= (squared + np.float32((0.5 / scale_px) ** 2)) ** np.float32(-power / 4)
    field = fft.irfft2(spectrum, s=(rows, cols))[: shape[0], : shape[1]]
    return ((field - field.mean()) / field.std()).astype(np.float32)


def hashed(row: NDArray[np.integer[Any]], col: NDArray[np.integer[Any]], salt: int) -> Reals:
    """A number in [0, 1) that depends on two integers only: the same cell answers the same to all its pixels."""
    x = row.astype(np.uint32) * np.uint32(0x85EBCA6B) + col.astype(np.uint32) * np.uint32(0xC2B2AE35)
    x += np.uint32(salt * 0x9E3779B9 & 0xFFFFFFFF)
    for _ in range(2):
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x2C1B3C6D)
    x ^= x >> np.uint32(16)
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def dots(y: Reals, x: Reals, cell: float, radius: tuple[float, float], salt: int) -> tuple[Reals, Reals]:
    """One round dot per grid cell, at a random place within it.

    Returns:
        Height of a dome over each dot (0 outside, 1 at its centre) and a random number per cell in [0, 1).
    """
    row, col = np.floor(y / cell).astype(np.int32), np.floor(x / cell).astype(np.int32)
    size = radius[0] + (radius[1] - radius[0]) * hashed(row, col, salt)
    room = np.maximum(cell / 2 - size, 0)
    dy = y - (row + 0.5) * cell - (2 * hashed(row, col, salt + 1) - 1) * room
    dx = x - (col + 0.5) * cell - (2 * hashed(row, col, salt + 2) - 1) * room
    dome = np.clip(1 - (dy * dy + dx * dx) / (size * size), 0, 1).astype(np.float32)
    return dome, hashed(row, col, salt + 3)


def _districts(y: Reals, x: Reals, salt: int) -> tuple[NDArray[np.int64], Reals, Reals]:
    """Cells around random centres: number of the district, its centre (N, 2), distance of each pixel to the edge."""

    def centre(which: NDArray[np.integer[Any]]) -> tuple[Reals, Reals]:
        r, c = row + which // 3 - 1, col + which % 3 - 1
        return (r + 0.15 + 0.7 * hashed(r, c, salt)) * DISTRICT, (c + 0.15 + 0.7 * hashed(r, c, salt + 1)) * DISTRICT

    row, col = np.floor(y / DISTRICT).astype(np.int32), np.floor(x / DISTRICT).astype(np.int32)
    nearest, second = np.full(y.shape, np.inf, np.float32), np.full(y.shape, np.inf, np.float32)
    which, runner = np.zeros(y.shape, np.int32), np.zeros(y.shape, np.int32)
    for i in range(9):
        cy, cx = centre(np.array(i))
        d = ((y - cy) ** 2 + (x - cx) ** 2).astype(np.float32)
        best, next_best = d < nearest, d < second
        runner = np.where(best, which, np.where(next_best, i, runner))
        second = np.where(best, nearest, np.where(next_best, d, second))
        which, nearest = np.where(best, i, which), np.where(best, d, nearest)
    (cy, cx), (oy, ox) = centre(which), centre(runner)
    edge = ((second - nearest) / (2 * np.hypot(cy - oy, cx - ox))).astype(np.float32)
    key = (row + which // 3).astype(np.int64) * 1_000_003 + (col + which % 3)
    _, index, inverse = np.unique(key, return_index=True, return_inverse=True)
    centres = np.stack([cy.ravel()[index], cx.ravel()[index]], axis=1).astype(np.float32)
    return inverse.reshape(y.shape), centres, edge


def _zones(rng: np.random.Generator, centres: Reals, kind: SceneKind) -> NDArray[np.int64]:
    """Kind of every district: in a city dense towards one point and open far from it, in the country at random."""
    mix = np.asarray(CITY_MIX if kind == "city" else FLOOD_MIX)
    count = len(centres)
    if kind == "city":
        middle = centres.mean(axis=0) + rng.normal(0, 60, 2)
        rank = np.hypot(*(centres - middle).T) + rng.normal(0, 70, count)
    else:
        rank = rng.random(count)
    # Equal steps through the mix, so that no scene is all forest or without a village.
    share = (np.argsort(np.argsort(rank)) + rng.random()) / count
    return np.minimum(np.searchsorted(np.cumsum(mix), share, side="right"), len(mix) - 1)


class _Plan(NamedTuple):
    """Where each pixel lies in its block and lot."""

    lot: NDArray[np.int64]
    first: NDArray[np.int64]  # a pixel of every lot, flat
    block_hash: Reals  # (N,) random, the same for all lots of a block
    along: Reals  # offset from the centre of the lot, pixels
    up: Reals
    size: tuple[Reals, Reals]  # of the lot, pixels
    street: Reals
    depth: Reals  # distance to the edge of the block
    edge: Reals  # distance to the edge of the district
    zone: NDArray[np.int64]

    def border(self) -> Reals:
        """Distance to the edge of the lot."""
        return np.minimum(self.size[0] / 2 - np.abs(self.along), self.size[1] / 2 - np.abs(self.up))

    def per_lot(self, values: NDArray[Any]) -> Reals:
        """Sum of a (H, W) array over every lot."""
        return np.bincount(self.lot.ravel(), values.ravel(), len(self.first)).astype(np.float32)


def _plan(rng: np.random.Generator, y: Reals, x: Reals, kind: SceneKind, salt: int) -> _Plan:
    """Districts, blocks and lots, on slightly bent coordinates."""
    bend = [9 * noise(rng, y.shape, 260, 5.0) for _ in range(2)]
    y, x = y + bend[0], x + bend[1]
    district, centres, edge = _districts(y, x, salt)
    zone = _zones(rng, centres, kind)
    n = len(centres)
    angle = rng.uniform(0, np.pi / 2, n)
    size = np.array([z.block for z in ZONES])[zone] * rng.uniform(0.88, 1.2, (n, 2))
    lots = np.array([z.lots for z in ZONES])[zone] + rng.integers(0, 2, (n, 2)) * (zone < MEADOW)[:, None]
    cos, sin = (f(angle).astype(np.float32)[district] for f in (np.cos, np.sin))
    y, x = y - centres[district, 0], x - centres[district, 1]
    street = np.array([z.street for z in ZONES], np.float32)[zone][district]
    local, cells, number, extent, inside = [], [], [], [], []
    for axis, position in enumerate((cos * x + sin * y, cos * y - sin * x)):
        length = size[:, axis].astype(np.float32)[district]
        cell = np.floor(position / length)
        within = position - cell * length - street / 2
        count = lots[:, axis].astype(np.float32)[district]
        lot_size = (length - street) / count
        place = np.clip(np.floor(within / lot_size), 0, count - 1)
        extent.append(lot_size)
        local.append(within - (place + 0.5) * lot_size)
        inside.append(np.minimum(within, length - street - within))
        cells.append(cell.astype(np.int64))
        number.append(place.astype(np.int64))
    depth = np.minimum(inside[0], inside[1])
    block = (district * 512 + cells[0] + 256) * 512 + cells[1] + 256
    key = (block * 16 + number[0]) * 16 + number[1]
    _, first, lot = np.unique(key, return_index=True, return_inverse=True)
    return _Plan(
        lot=lot.reshape(y.shape), first=first, block_hash=hashed(block.ravel()[first], district.ravel()[first], salt),
        along=local[0], up=local[1], size=(extent[0], extent[1]), street=np.clip(0.5 - depth, 0, 1) * (street > 0),
        depth=depth, edge=edge, zone=zone[district],
    )  # fmt: skip


def _water(rng: np.random.Generator, y: Reals, x: Reals, kind: SceneKind) -> tuple[Reals, Reals, Reals]:
    """Coverage of the river and of the lakes, and height of the ground above the river (metres)."""
    shape = y.shape
    middle = np.array(shape) / 2 + rng.normal(0, 0.12 * min(shape), 2)
    angle = rng.uniform(0, np.pi)
    u = (np.cos(angle) * (x - middle[1]) + np.sin(angle) * (y - middle[0])).astype(np.float32)
    v = (np.cos(angle) * (y - middle[0]) - np.sin(angle) * (x - middle[1])).astype(np.float32)
    bed, slope = np.zeros_like(u), np.zeros_like(u)
    for length, height in ((620, 46), (300, 24), (130, 7)):
        phase, k = rng.uniform(0, 2 * np.pi), 2 * np.pi / length / rng.uniform(0.8, 1.25)
        bed += (height * np.sin(k * u + phase)).astype(np.float32)
        slope += (height * k * np.cos(k * u + phase)).astype(np.float32)
    distance = (v - bed) / np.sqrt(1 + slope**2)
    rough, low = noise(rng, shape, 18), noise(rng, shape, 110, 4.2)
    half_width = rng.uniform(7, 15) if kind == "city" else rng.uniform(8, 17)
    has_river = kind == "flood" or rng.random() < 0.6
    river = np.clip(half_width + 1.2 * rough - np.abs(distance), 0, 1) if has_river else np.zeros_like(u)
    has_lakes = kind == "flood" or rng.random() < 0.6
    share = rng.uniform(0.06, 0.15) if kind == "flood" else rng.uniform(0.01, 0.05)
    level = float(np.quantile(low, share)) if has_lakes else -np.inf
    lake = np.clip((level - low) * 14, 0, 1)
    bank = np.abs(distance) - half_width
    # The flood must not be readable from the map of the river: one bank is often higher (a dyke), and low ground
    # away from the river fills as well.
    side = rng.choice([-1, 0, 1]) * np.sign(distance)
    above = 2.4 * np.tanh(bank / 130) + 1.1 * low + 0.7 * noise(rng, shape, 70, 3.8) + 0.9 * side
    return river.astype(np.float32), lake.astype(np.float32), above.astype(np.float32)


def _flood(rng: np.random.Generator, above: Reals, dry: Bools, scene: tuple[slice, slice]) -> Reals:
    """Depth of the flood in metres, 0 where there is none; it covers 12 to 30 % of the scene."""
    floor = np.where(dry, np.inf, above)
    with np.errstate(invalid="ignore"):  # a tiny scene may hardly have dry land, and gets no flood then
        level = np.quantile(floor[scene], rng.uniform(0.13, 0.30))
    wet = floor < level
    wet = ndimage.binary_opening(wet, np.ones((3, 3), bool))
    number, _ = ndimage.label(wet)
    wet &= (np.bincount(number.ravel()) >= 80)[number]
    return np.where(wet, np.maximum(level - above, 0.01), 0).astype(np.float32)


def _grounds(rng: np.random.Generator, zone: NDArray[np.int64], season: tuple[float, float]) -> dict[str, Reals]:
    """Bare reflectance and backscatter of each lot, and how green it is on both dates (``season``: day of the year)."""
    n = len(zone)
    palette = np.array([
        [0.070, 0.100, 0.135, 0.20],  # loam
        [0.105, 0.140, 0.185, 0.26],  # sand, stubble
        [0.045, 0.065, 0.085, 0.13],  # dark, moist soil
        [0.115, 0.125, 0.130, 0.15],  # gravel, asphalt
        [0.165, 0.180, 0.192, 0.22],  # concrete
    ])  # fmt: skip
    paved = rng.random(n) < np.array([z.paved for z in ZONES])[zone]
    choice = np.where(paved, rng.choice([3, 3, 3, 4], n), rng.choice([0, 0, 1, 2], n))
    # Winter crops are greenest in May, summer crops in July; grass stays green, less so in winter and in drought.
    peak, width = rng.choice([135, 145, 205, 215], n), rng.uniform(30, 48, n)
    crop = [np.exp(-(((day - peak) / width) ** 2)) for day in season]
    grass = [rng.uniform(0.55, 0.95, n) * (0.62 + 0.38 * np.sin((day - 60) / 365 * 2 * np.pi)) for day in season]
    field = (zone == FIELDS) & (rng.random(n) < 0.8)
    green = [np.where(field, c, np.where(paved, 0.04, g)) for c, g in zip(crop, grass, strict=True)]
    # Scrub or bare: lots of a city without a house are not all lawns.
    bare = ~field & ~paved & (zone < FIELDS) & (rng.random(n) < 0.4)
    green = [np.where(bare, 0.15 * g, g) for g in green]
    # Smooth tilled soil is nearly as dark as water, rough soil is not.
    smooth = field & (rng.random(n) < 0.3)
    bare_db = np.where(smooth, rng.uniform(-22, -18, n), rng.uniform(-16, -10.5, n))
    bare_db = np.where(paved, rng.uniform(-19, -14, n), bare_db)
    return {
        "ground": (palette[choice] * rng.normal(1, 0.13, (n, 1)).clip(0.65, 1.4)).astype(np.float32),
        "green_before": green[0].clip(0, 1).astype(np.float32),
        "green_after": np.where(smooth, 0.1 * green[1], green[1]).clip(0, 1).astype(np.float32),
        "bare_db": bare_db.astype(np.float32),
        "rows": np.where(field, rng.uniform(0, 0.13, n), 0).astype(np.float32),
    }


def _states(rng: np.random.Generator, area: Reals, block: Reals, scene_px: int, kind: SceneKind) -> tuple[Bools, Bools]:
    """Which buildings stand before and after; lots of one block tend to share their fate."""
    n = len(area)
    if kind == "flood":
        standing = rng.random(n) < 0.85
        return standing, standing
    share = rng.uniform(0.07, 0.13) * scene_px / max(float(area.sum()), 1)
    changed = min(share, 0.42)
    built = changed * rng.uniform(0.5, 0.68)
    # (share, stands before, stands after). All four fates come from one queue cut in four: an old and a new
    # building, a lot left empty and one soon built on, differ in nothing but the other date.
    fates = [(built, False, True), (changed - built, True, False), (0.14, False, False)]
    fates = [fates[i] for i in rng.permutation(3)] + [(1.0, True, True)]
    queue = np.argsort(block + 0.45 * rng.random(n))
    rank = np.empty(n)
    rank[queue] = np.cumsum(area[queue]) / max(float(area.sum()), 1)
    fate = np.minimum(np.searchsorted(np.cumsum([f[0] for f in fates]), rank), 3)
    return np.array([f[1] for f in fates])[fate], np.array([f[2] for f in fates])[fate]


def _buildings(rng: np.random.Generator, plan: _Plan, zone: NDArray[np.int64]) -> tuple[Reals, Reals, Reals, Reals]:
    """Half sizes, offsets and heights per lot, and the coverage of all buildings."""
    n = len(zone)
    lot_size = np.stack([extent.ravel()[plan.first] for extent in plan.size], axis=1)
    low, high = (np.array([[axis[i] for axis in z.half] for z in ZONES]) for i in (0, 1))
    share = low[zone] + (high - low)[zone] * rng.random((n, 2))
    tower = (zone == SLABS) & (rng.random(n) < 0.16)
    share[tower] = rng.uniform((0.13, 0.2), (0.2, 0.3), (int(tower.sum()), 2))
    half = share * lot_size
    shift = (rng.random((n, 2)) - 0.5) * np.maximum(lot_size - 2 * half - 2, 0) * 0.7
    storeys = np.array([z.height_m for z in ZONES])
    height = storeys[zone, 0] + (storeys[zone, 1] - storeys[zone, 0]) * rng.random(n)
    height[tower] = rng.uniform(34, 54, int(tower.sum()))
    half, shift = half.astype(np.float32), shift.astype(np.float32)
    outside = np.maximum(
        np.abs(plan.along - shift[:, 0][plan.lot]) - half[:, 0][plan.lot],
        np.abs(plan.up - shift[:, 1][plan.lot]) - half[:, 1][plan.lot],
    )
    # Lots of the old town share walls and leave a courtyard; some halls and slabs are L-shaped.
    outside = np.where(plan.zone == CORE, np.maximum(outside - 0.5, plan.depth - CORE_DEPTH), outside)
    angled = ((rng.random(n) < 0.3) & ((zone == SLABS) | (zone == INDUSTRY)) & ~tower)[plan.lot]
    quadrant = np.minimum(plan.along - shift[:, 0][plan.lot], plan.up - shift[:, 1][plan.lot])
    outside = np.where(angled, np.maximum(outside, quadrant), outside)
    return half, shift, height.astype(np.float32), np.clip(0.5 - outside, 0, 1).astype(np.float32)


def _water_and_roads(
    plan: _Plan, river: Reals, lake: Reals, pond: Bools, kind: SceneKind
) -> tuple[Reals, Reals, Reals]:
    """Coverage of water, of streets and of arterial roads, which alone cross rivers."""
    ponds = pond[plan.lot]
    water = np.maximum(np.maximum(river, lake), np.clip(plan.border() - 1.5, 0, 1) * ponds)
    arterial = np.clip((2.9 if kind == "city" else 1.9) - plan.edge, 0, 1) * (1 - np.clip(lake + ponds, 0, 1))
    number, _ = ndimage.label((arterial > 0) & (river > 0))
    sunk = np.bincount(number.ravel()) > 260  # a road in the river bed, not a bridge over it
    sunk[0] = False
    street = plan.street * (1 - water) * (plan.edge > 1)
    return water.astype(np.float32), street.astype(np.float32), (arterial * ~sunk[number]).astype(np.float32)


def _whole(plan: _Plan, footprint: Reals, half: Reals, water: Reals) -> Reals:
    """Drop the buildings that an arterial road cuts in half or that would stand in the water."""
    zone = plan.zone.ravel()[plan.first]
    footprint = footprint * (plan.edge > 4.2)
    least = np.where(zone == CORE, 40, np.minimum(2.2 * half[:, 0] * half[:, 1], 60)).clip(9)
    wet = plan.per_lot(footprint * (ndimage.maximum_filter(water, 5) > 0)) > 0
    stays = (plan.per_lot(footprint) >= least) & ~wet
    return (footprint * stays[plan.lot]).astype(np.float32)


def _across(plan: _Plan, half: Reals, shift: Reals) -> Reals:
    """Position across the ridge of the roof, -1 to 1."""
    lengthwise = (half[:, 0] > half[:, 1])[plan.lot]
    offset = np.where(lengthwise, plan.up - shift[:, 1][plan.lot], plan.along - shift[:, 0][plan.lot])
    across = offset / np.maximum(half.min(axis=1), 1)[plan.lot]
    return np.where(plan.zone == CORE, 1 - 2 * np.clip(plan.depth / CORE_DEPTH, 0, 1), across).astype(np.float32)


def _trees(plan: _Plan, lots: Lots, y: Reals, x: Reals, clump: Reals, free: Reals, salt: int) -> tuple[Reals, Reals]:
    """Coverage of crowns and their height in metres; ``free`` is 1 on ground where a tree can stand."""
    dome, chance = dots(y, x, 4.2, (1.5, 2.1), salt)
    other, other_chance = dots(y + 2.1, x + 2.1, 3.4, (1.1, 1.7), salt + 10)
    density = lots.tree_density[plan.lot]
    wild = (plan.zone == MEADOW) | (plan.zone == FOREST)
    density = np.where(wild, density * np.clip(1.15 + 1.6 * clump, 0, 1) + 0.5 * (clump > 1.3), density)
    # Hedges follow some field edges.
    density = np.where((plan.border() < 1.6) & lots.hedge[plan.lot], 0.75, density)
    dome = np.maximum(dome * (chance < density), other * (other_chance < density))
    closed = np.clip((density - 0.9) * 12, 0, 1)
    crown = np.maximum(np.clip(dome * 2.2, 0, 1), closed) * free
    height = (5 + 4 * dome + 7 * closed) * (crown > 0.4)
    return crown.astype(np.float32), height.astype(np.float32)


def build_world(
    rng: np.random.Generator,
    shape: tuple[int, int],
    margin_px: int,
    kind: SceneKind,
    season: tuple[float, float],
) -> World:
    """Lay out a place.

    Args:
        rng: source of every random choice.
        shape: rows and columns of the canvas, margin included.
        margin_px: canvas around the scene; the share of change holds for the scene.
        kind: "city" (buildings change) or "flood" (water rises).
        season: day of the year of the optical (before) and the SAR (after) image.
    """
    salt = int(rng.integers(1 << 20))
    y, x = (np.broadcast_to(a, shape).astype(np.float32) for a in np.ogrid[: shape[0], : shape[1]])
    inner = (slice(margin_px, shape[0] - margin_px), slice(margin_px, shape[1] - margin_px))
    plan = _plan(rng, y, x, kind, salt)
    zone = plan.zone.ravel()[plan.first]
    n = len(zone)
    river, lake, above = _water(rng, y, x, kind)
    pond = (zone == FIELDS) & (rng.random(n) < (0.13 if kind == "flood" else 0.04))
    water, street, arterial = _water_and_roads(plan, river, lake, pond, kind)
    half, shift, height, footprint = _buildings(rng, plan, zone)
    footprint = _whole(plan, footprint, half, water)
    scene = np.zeros(shape, bool)
    scene[inner] = True
    before, after = _states(rng, plan.per_lot((footprint > 0.5) & scene), plan.block_hash, int(scene.sum()), kind)
    lots = Lots(
        zone=zone, half=half, height_m=height, pond=pond, built_before=before, built_after=after,
        gable=np.isin(zone, (HOUSES, CORE)) | ((zone == SLABS) & (rng.random(n) < 0.3)),
        tree_density=(np.array([z.trees for z in ZONES])[zone] * rng.uniform(0.5, 1.4, n)).astype(np.float32),
        hedge=(zone == FIELDS) & (rng.random(n) < 0.3), **_grounds(rng, zone, season),
    )  # fmt: skip
    free = (1 - np.maximum(water, np.maximum(street, arterial))) * (ndimage.maximum_filter(footprint, 3) < 0.5)
    crown, tree_m = _trees(plan, lots, y, x, noise(rng, shape, 26, 3.6), free, salt + 20)
    flood_m = np.zeros(shape, np.float32)
    if kind == "flood":
        # Villages stand on higher ground: water reaches their edges, rarely their streets.
        village = ndimage.gaussian_filter(np.isin(plan.zone, (HOUSES, INDUSTRY)).astype(np.float32), 6)
        dry = (water > 0) | (arterial > 0) | (footprint > 0.5)
        flood_m = _flood(rng, above + 2.2 * village, dry, inner)
    hills_m = 16 if kind == "flood" else 7
    return World(
        lot=plan.lot, lots=lots, across=_across(plan, half, shift), stripe=plan.up, footprint=footprint, street=street,
        arterial=arterial, crown=crown, tree_m=tree_m, water=water, flood_m=flood_m,
        terrain_m=hills_m * noise(rng, shape, 190, 5.0),
        moist=np.clip(0.5 + 0.8 * noise(rng, shape, 120, 4.0), 0, 1),
    )  # fmt: skip
