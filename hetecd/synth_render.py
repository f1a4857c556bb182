"""How a place looks from above: to a camera under the sun, and to a side-looking radar.

The two share geometry and nothing else. The camera sees reflectance, cast shadows and haze. The radar sees roughness
and corners: roofs and walls fold over towards the sensor (layover), wall and ground form a bright corner (double
bounce), the ground behind lies in shadow, smooth water and asphalt mirror the beam away, and all of it is speckled.
NumPy and SciPy only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hetecd.synth_world import CORE, FIELDS, HOUSES, INDUSTRY, PIXEL_M, SLABS, ZONES, Bools, Reals, World, dots, noise

GRASS = (0.030, 0.068, 0.038, 0.38)
CROWN = (0.018, 0.036, 0.024, 0.27)
BARE_CROWN = (0.050, 0.064, 0.076, 0.15)
ASPHALT = (0.078, 0.084, 0.088, 0.11)
TRACK = (0.115, 0.145, 0.175, 0.24)
NOISE_FLOOR_DB = -25.0


@dataclass(frozen=True)
class View:
    """How the two images were taken. Azimuths are degrees clockwise from north.

    Attributes:
        sun_azimuth_deg: where the sun stands.
        sun_elevation_deg: above the horizon.
        look_azimuth_deg: where the radar beam travels to; the sensor is on the other side.
        incidence_deg: angle of the beam from the vertical.
        looks: independent samples averaged per radar pixel; mean² / variance of speckle.
        day_before: day of the year of the optical image.
        day_after: day of the year of the SAR image.
        shift_px: (row, col) by which the SAR image is misregistered: what belongs at (r, c) is seen at (r, c) + shift.
    """

    sun_azimuth_deg: float
    sun_elevation_deg: float
    look_azimuth_deg: float
    incidence_deg: float
    looks: float
    day_before: float
    day_after: float
    shift_px: tuple[float, float]

    @property
    def look(self) -> tuple[float, float]:
        """Unit vector (row, col) along which the radar beam travels on the ground."""
        return direction(self.look_azimuth_deg)


def direction(azimuth_deg: float) -> tuple[float, float]:
    """Unit vector (row, col) of an azimuth; rows run south."""
    a = np.deg2rad(azimuth_deg)
    return float(-np.cos(a)), float(np.sin(a))


def hidden(height: Reals, towards: tuple[float, float], rise_m: float) -> Reals:
    """How far each point lies below the line of sight to a source, in metres; 0 where it is lit.

    Args:
        height: (H, W) metres.
        towards: unit vector (row, col) to the source.
        rise_m: climb of the line of sight per pixel.
    """
    steps = int(np.ceil(float(height.max()) / rise_m))
    padded = np.pad(height, steps)
    H, W = height.shape
    reach = height.copy()
    for t in range(1, steps + 1):
        row, col = (steps + round(t * part) for part in towards)
        np.maximum(reach, padded[row : row + H, col : col + W] - np.float32(t * rise_m), out=reach)
    return reach - height


def _mix(a: Reals, b: tuple[float, ...] | Reals, share: Reals) -> Reals:
    """Blend (4, H, W) towards a colour, or an image, by a coverage (H, W)."""
    b = np.asarray(b, np.float32)
    return a + (b[:, None, None] - a if b.ndim == 1 else b - a) * share


def _leaf(day: float) -> float:
    """Share of leaves on deciduous trees: winter 0, summer 1."""
    return float(np.clip(1.6 * np.sin((day - 75) / 365 * 2 * np.pi) + 0.55, 0, 1))


def _roofs(rng: np.random.Generator, zone: NDArray[np.int64]) -> Reals:
    """Reflectance of the roofs, (N, 4)."""
    palette = np.array([
        [0.055, 0.080, 0.165, 0.23],  # red tiles
        [0.085, 0.095, 0.105, 0.13],  # slate, bitumen
        [0.180, 0.195, 0.205, 0.22],  # concrete, gravel
        [0.360, 0.380, 0.390, 0.40],  # white membrane
        [0.170, 0.150, 0.105, 0.15],  # blue sheet metal
        [0.090, 0.115, 0.155, 0.20],  # brown tiles
    ])  # fmt: skip
    share = {
        CORE: (0.45, 0.2, 0.2, 0.05, 0.0, 0.1),
        SLABS: (0.15, 0.3, 0.35, 0.15, 0.0, 0.05),
        HOUSES: (0.5, 0.2, 0.08, 0.02, 0.0, 0.2),
        INDUSTRY: (0.0, 0.2, 0.35, 0.35, 0.1, 0.0),
    }
    shares = np.cumsum([share.get(z, (1, 0, 0, 0, 0, 0)) for z in range(len(ZONES))], axis=1)
    choice = np.minimum((rng.random((len(zone), 1)) > shares[zone]).sum(axis=1), len(palette) - 1)
    return (palette[choice] * rng.normal(1, 0.14, (len(zone), 1)).clip(0.6, 1.5)).astype(np.float32)


def _ground(world: World, rng: np.random.Generator) -> Reals:
    """Reflectance (4, H, W) of fields, lawns and bare lots at the optical date."""
    lots, shape = world.lots, world.lot.shape
    patch, grain = noise(rng, shape, 30, 3.4), noise(rng, shape, 4, 2.0)
    green = lots.green_before[world.lot]
    green = np.clip(green + (0.10 * patch + 0.07 * grain) * np.where(green > 0.1, 1, 0.3), 0, 1)
    image = np.ascontiguousarray(np.moveaxis(lots.ground[world.lot], -1, 0))
    image = _mix(image, GRASS, green)
    image *= 1 + 0.07 * patch + 0.06 * grain + lots.rows[world.lot] * np.sin(world.stripe * 1.9)
    return image


def _water(world: World, rng: np.random.Generator) -> Reals:
    """Reflectance (4, H, W) of water: clear and dark to brown with silt."""
    shape = world.lot.shape
    silt = np.clip(rng.uniform(0, 0.9) + 0.12 * noise(rng, shape, 80, 4.0), 0, 1)
    clear = np.array([0.040, 0.045, 0.026, 0.014], np.float32)
    return _mix(np.broadcast_to(clear[:, None, None], (4, *shape)), (0.075, 0.098, 0.092, 0.045), silt)


def ships(world: World, rng: np.random.Generator) -> Reals:
    """Coverage of ships, of which there are few, on water wide enough; new places at every call."""
    y, x = (
        np.broadcast_to(a, world.lot.shape).astype(np.float32) for a in np.ogrid[tuple(map(slice, world.lot.shape))]
    )
    a = rng.uniform(0, np.pi)
    along, up = (np.cos(a) * x + np.sin(a) * y) / 3.4, np.cos(a) * y - np.sin(a) * x
    dome, chance = dots(up, along, 16, (1.4, 2.2), int(rng.integers(1 << 20)))
    wide = (ndimage.minimum_filter(world.water, 11) > 0.9) & ~world.lots.pond[world.lot]
    return (np.clip(dome * 2, 0, 1) * (chance < 0.12) * wide).astype(np.float32)


def cars(world: World, rng: np.random.Generator) -> Reals:
    """Coverage of vehicles on streets and sealed lots; new places at every call."""
    y, x = (
        np.broadcast_to(a, world.lot.shape).astype(np.float32) for a in np.ogrid[tuple(map(slice, world.lot.shape))]
    )
    dome, chance = dots(y, x, 3.0, (0.7, 1.1), int(rng.integers(1 << 20)))
    paved = (world.lots.green_before < 0.06)[world.lot] * (world.lots.tree_density > 0.02)[world.lot] * 0.5
    place = np.maximum(np.maximum(world.street * 0.4, world.arterial), paved * (world.water == 0))
    return (np.clip(0.9 * dome, 0, 1) * (chance < 0.13 * place * (world.footprint < 0.1))).astype(np.float32)


def render_optical(world: World, view: View, rng: np.random.Generator, traffic: Reals) -> Reals:
    """Reflectance (4, H, W) at the optical date: blue, green, red, near infrared, 0 to 1.

    Args:
        world: the place.
        view: sun and season.
        rng: source of textures and noise.
        traffic: coverage of vehicles and ships.
    """
    lots, shape = world.lots, world.lot.shape
    image = _ground(world, rng)
    image = _mix(image, TRACK, world.street * (lots.zone == FIELDS)[world.lot])
    image = _mix(image, ASPHALT, world.street * (lots.zone != FIELDS)[world.lot])
    leaf = _leaf(view.day_before)
    crown = leaf * np.array(CROWN, np.float32) + (1 - leaf) * np.array(BARE_CROWN, np.float32)
    tone = 1 + 0.22 * noise(rng, shape, 5, 2.2)
    image = _mix(image, crown[:, None, None] * tone, world.crown * (0.55 + 0.4 * leaf))
    image = _mix(image, _water(world, rng), world.water)
    image = _mix(image, ASPHALT, world.arterial)

    building = world.building(after=False)
    towards = direction(view.sun_azimuth_deg)
    roof = np.moveaxis(_roofs(rng, lots.zone)[world.lot], -1, 0)
    # A gable roof has a bright and a dark half.
    ay, ax = np.gradient(world.across)
    lit = -(ay * towards[0] + ax * towards[1]) / np.maximum(np.hypot(ay, ax), 1e-3)
    slope = np.where(lots.gable[world.lot], 0.42 * np.sign(world.across) * np.clip(-lit, -1, 1), 0)
    rim = np.where(lots.gable[world.lot], 0, 0.12 * (np.abs(world.across) > 0.7)) + 0.07 * noise(rng, shape, 3, 1.5)
    image = _mix(image, roof * (1 + slope + rim), building)
    paint = rng.uniform(0.05, 0.5, 1) + 0.25 * noise(rng, shape, 3, 1.0)
    image = _mix(image, np.broadcast_to(np.clip(paint, 0.04, 0.6), image.shape), traffic)

    rise = PIXEL_M * np.tan(np.deg2rad(view.sun_elevation_deg))
    height = world.height_m(after=False)
    shade = ndimage.gaussian_filter(np.clip(hidden(height, towards, rise) / 2.5, 0, 1), 0.5)
    gy, gx = np.gradient(world.terrain_m + 0.12 * world.tree_m)
    relief = 1 - np.clip((gy * towards[0] + gx * towards[1]) / rise, -0.5, 0.5)
    # What the sun does not reach still has the blue light of the sky.
    sky = np.array([0.42, 0.34, 0.28, 0.22], np.float32)[:, None, None]
    image = image * (relief * (1 - shade) + sky * shade)
    haze = rng.uniform(0.3, 1.4) * np.array([0.022, 0.013, 0.008, 0.003], np.float32)
    gain = rng.uniform(0.85, 1.12)
    blurred = [ndimage.gaussian_filter(band, 0.55) for band in image]
    image = gain * np.stack(blurred) + haze[:, None, None]
    image += 0.0022 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 1e-4, 1.2).astype(np.float32)


def _db(value: Reals | float) -> Reals:
    """Decibel to linear power."""
    return np.power(10, np.asarray(value, np.float32) / 10)


def _surface(world: World, view: View, rng: np.random.Generator) -> Reals:
    """Backscatter (H, W, linear) of the ground and of water at the SAR date, before anything stands on it."""
    lots, shape = world.lots, world.lot.shape
    texture = noise(rng, shape, 24, 3.2)
    green = lots.green_after[world.lot]
    moist = 2.6 * world.moist * (1 - green)
    ground = (1 - green) * _db(lots.bare_db[world.lot] + moist + 0.8 * texture) + green * _db(-11 + 0.8 * texture)
    ground = ground * (1 + 1.2 * lots.rows[world.lot] * np.sin(world.stripe * 1.9))
    road = np.maximum(world.street, world.arterial)
    ground = ground + (_db(-18.5) - ground) * road
    # Wind roughens open water; a scene has calm and ruffled stretches.
    wind = rng.uniform(0, 4.5) + 0.9 * noise(rng, shape, 60, 3.5)
    water = _db(-24 + wind)
    still = np.maximum(world.water, world.flood_m > 0)
    # Crops and scrub that stick out of shallow water scatter almost as if it were not there.
    stems = np.clip(green - 0.35, 0, 1) * np.exp(-world.flood_m / 0.35) * (world.flood_m > 0)
    water = water + stems * _db(-10)
    ground = ground + (water - ground) * np.where(world.arterial > 0.5, 0, still)
    gy, gx = np.gradient(world.terrain_m)
    facing = (gy * view.look[0] + gx * view.look[1]) / PIXEL_M
    return ground * np.where(still > 0.5, 1, np.clip(1 + 2.5 * facing, 0.3, 3))


def _scatter(image: Reals, row: Reals, col: Reals, power: Reals) -> None:
    """Add the power of points at fractional pixels to an image, in place."""
    H, W = image.shape
    r, c = np.floor(row).astype(np.int64), np.floor(col).astype(np.int64)
    for dr in (0, 1):
        for dc in (0, 1):
            part = power * np.abs(1 - dr - (row - r)) * np.abs(1 - dc - (col - c))
            at = np.clip(r + dr, 0, H - 1) * W + np.clip(c + dc, 0, W - 1)
            image += np.bincount(at, part, H * W).reshape(H, W).astype(np.float32)


def _walls(image: Reals, height: Reals, built: Bools, strength: Reals, view: View) -> None:
    """Add walls that face the sensor and the corner they form with the ground, in place."""
    dr, dc = view.look
    ahead = ndimage.shift(height, (dr, dc), order=1, mode="nearest")
    drop = height - ahead
    row, col = np.nonzero((drop > 2.5) & built)
    step = drop[row, col]
    # A corner sends the beam back only if the wall stands square to it.
    smooth = ndimage.gaussian_filter(np.where(built, np.minimum(height, 12), 0), 1.2)
    gy, gx = (g[row, col] for g in np.gradient(smooth))
    square = np.abs(gy * dr + gx * dc) / np.maximum(np.hypot(gy, gx), 1e-3)
    tilt = np.arccos(np.clip(square, 0, 1))
    bounce = strength[row, col] * (0.12 + np.exp(-((tilt / 0.3) ** 2)))
    row, col = row.astype(np.float32), col.astype(np.float32)
    _scatter(image, row - 0.5 * dr, col - 0.5 * dc, 9.0 * bounce * np.minimum(step / 8, 2))
    length = step / np.tan(np.deg2rad(view.incidence_deg)) / PIXEL_M
    for t in range(1, int(np.ceil(length.max(initial=0))) + 1):
        reach = np.clip(length - t + 1, 0, 1)
        seen = reach > 0
        _scatter(image, (row - t * dr)[seen], (col - t * dc)[seen], (0.16 * reach * (0.4 + bounce))[seen])


def render_sar(world: World, view: View, rng: np.random.Generator, traffic: Reals) -> Reals:
    """Backscatter sigma0 (H, W, linear power) at the SAR date, speckle-free, and already misregistered.

    Args:
        world: the place.
        view: radar geometry; ``shift_px`` moves the image.
        rng: source of textures.
        traffic: coverage of vehicles and ships.
    """
    shape = world.lot.shape
    height, building = world.height_m(after=True), world.building(after=True)
    built = building > 0.5
    up = height > 1
    lay = 1 / np.tan(np.deg2rad(view.incidence_deg)) / PIXEL_M
    dr, dc = view.look
    shade = np.clip(hidden(height, (-dr, -dc), PIXEL_M / np.tan(np.deg2rad(view.incidence_deg))) / 2.0, 0, 1)
    surface = _surface(world, view, rng)
    surface = surface + _db(2.0) * traffic
    image = surface * (1 - shade) * np.where(up, 0.05, 1)

    # Roofs and crowns appear where their height folds them to, unless something in front hides them.
    glint = noise(rng, shape, 3, 1.2)
    soaked = np.where((world.flood_m > 0) & ~built, 3.5, 0)
    roof = np.where(world.lots.zone == INDUSTRY, -9, -12)[world.lot] + 3.2 * glint
    power = np.where(built, _db(roof), _db(-8.5 + 1.2 * glint + soaked)) * (1 - shade)
    # Masts, vents, balconies, parked machines: a few points outshine everything else.
    point = rng.random(shape, dtype=np.float32) < np.where(built, 0.035, 0.0)
    power = power + point * _db(rng.uniform(4, 14, shape))
    row, col = np.nonzero(up)
    fold = height[row, col] * lay
    _scatter(image, row - fold * dr, col - fold * dc, power[row, col])
    wet = np.where(ndimage.maximum_filter(world.flood_m, 3) > 0, 1.6, 1)
    strength = _db(1.5 * glint) * wet
    _walls(image, np.where(built, height, 0).astype(np.float32), built, strength.astype(np.float32), view)
    image = ndimage.gaussian_filter(image + _db(NOISE_FLOOR_DB), 0.5)
    return ndimage.shift(image, view.shift_px, order=1, mode="nearest")


def speckle(power: Reals, looks: float, rng: np.random.Generator) -> Reals:
    """Multiply by gamma noise of mean 1 and variance 1 / looks, neighbours slightly correlated as after resampling."""
    kernel = np.array([0.14, 0.72, 0.14], np.float32)
    weights = np.outer(kernel, kernel) / kernel.sum() ** 2
    # Averaging with these weights shrinks the variance by the sum of their squares; start with that much more.
    shape_parameter = looks * float((weights**2).sum())
    grain = rng.standard_gamma(shape_parameter, power.shape, dtype=np.float32) / np.float32(shape_parameter)
    for axis in (0, 1):
        grain = ndimage.correlate1d(grain, kernel / kernel.sum(), axis=axis, mode="reflect")
    return (power * grain).astype(np.float32)
