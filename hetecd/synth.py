"""Synthetic pairs: an optical image before, a SAR image after, and what changed in between.

Test data, demo and documentation share these scenes. Both images show the same place with different physics, so that a
change can be told only by comparing them: water that was always there is as dark in SAR as a flood, an old building as
bright as a new one, and a lot that stays empty looks like one that will be built on. What differs without being a
change (season, tilled or wet soil, traffic, misregistration, clouds) is marked in ``Scene.kinds``, never in
``Scene.label``. The same seed gives the same scene, bit by bit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject, transform_bounds
from scipy import ndimage

from hetecd.errors import InputError
from hetecd.files import writing
from hetecd.raster import Grid, write_raster
from hetecd.synth_render import View, cars, direction, render_optical, render_sar, ships, speckle
from hetecd.synth_world import PIXEL_M, Cover, Reals, SceneKind, World, build_world, noise
from hetecd.tiles import Window

MARGIN_PX = 44  # what stands just outside still throws its shadow and its layover into the scene


class Kind(IntEnum):
    """Why the two images differ at a pixel (``Scene.kinds``). Below 10 it is a change, above it only looks like one."""

    NONE = 0
    BUILT = 1
    DEMOLISHED = 2
    FLOODED = 3
    SEASON = 11  # vegetation that grew, was harvested or lost its leaves
    SOIL = 12  # bare soil that is tilled smooth or wet
    TRAFFIC = 13  # vehicles and ships
    MISREGISTERED = 14  # the shift between the dates shows another surface
    CLOUD = 15  # cloud or its shadow in optical


@dataclass(frozen=True)
class Scene:
    """One synthetic pair on one grid.

    Attributes:
        optical: (4, H, W) uint16, reflectance × 10000 (blue, green, red, near infrared), 0 = nodata.
        sar: (1, H, W) float32, sigma0 in linear power, NaN = nodata.
        label: (H, W) uint8, 1 = changed.
        kinds: (H, W) uint8, see :class:`Kind`.
        before: (H, W) uint8, what was there at the optical date, see :class:`~hetecd.synth_world.Cover`.
        after: (H, W) uint8, what is there at the SAR date.
        grid: UTM, 3 m pixels.
        view: sun, radar geometry, dates, shift between the dates.
    """

    optical: NDArray[np.uint16]
    sar: NDArray[np.float32]
    label: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    grid: Grid
    view: View


def make_scene(
    seed: int,
    height_px: int = 512,
    width_px: int = 512,
    kind: SceneKind = "city",
    *,
    looks: float = 4.0,
    jitter_px: float = 2.0,
    clouds: bool = False,
    wedges: bool = False,
    change: bool = True,
) -> Scene:
    """Make one scene.

    Args:
        seed: not negative; the same seed and arguments give the same bits. ``looks``, ``jitter_px``, ``clouds`` and
            ``wedges`` do not move anything on the ground.
        height_px: rows, at least 32.
        width_px: columns, at least 32.
        kind: "city": buildings come and go; "flood": a river leaves its bed.
        looks: of the SAR image; speckle has mean² / variance of this.
        jitter_px: largest shift between the dates.
        clouds: some clouds, with shadows, in optical. The label is what happened, also underneath.
        wedges: both images are rotated footprints: a wedge without data at their edges.
        change: False: no building comes or goes, and the river stays in its bed.

    Raises:
        InputError: an argument is out of range.
    """
    _check(seed, height_px, width_px, kind, looks, jitter_px)
    rngs = np.random.default_rng([seed, get_args(SceneKind).index(kind)]).spawn(7)
    view = _draw_view(rngs[0], looks, jitter_px)
    shape = (height_px + 2 * MARGIN_PX, width_px + 2 * MARGIN_PX)
    world = build_world(rngs[1], shape, MARGIN_PX, kind, (view.day_before, view.day_after))
    world = world if change else world.untouched()
    traffic = [np.maximum(cars(world, rngs[2]), ships(world, rngs[2])) for _ in range(2)]
    optical = render_optical(world, view, rngs[3], traffic[0])
    sar = render_sar(world, view, rngs[4], traffic[1])
    cloud = np.zeros(shape, np.float32)
    if clouds:
        optical, cloud = _clouds(optical, view, rngs[5])
    kinds = _kinds(world, view, traffic, cloud)

    inner = tuple(slice(MARGIN_PX, MARGIN_PX + n) for n in (height_px, width_px))
    digital = np.clip(np.rint(optical[:, *inner] * 10000), 1, 65535).astype(np.uint16)
    sar = speckle(sar[inner], looks, rngs[6])[None]
    if wedges:
        digital[:, ~_footprint(rngs[5], (height_px, width_px))] = 0
        sar[:, ~_footprint(rngs[5], (height_px, width_px))] = np.nan
    kinds = kinds[inner]
    return Scene(
        optical=digital,
        sar=sar,
        label=((kinds > 0) & (kinds < 10)).astype(np.uint8),
        kinds=kinds,
        before=world.cover(after=False)[inner],
        after=world.cover(after=True)[inner],
        grid=_grid(seed, height_px, width_px),
        view=view,
    )


def _check(seed: int, height_px: int, width_px: int, kind: str, looks: float, jitter_px: float) -> None:
    if seed < 0:
        raise InputError(f"seed: found {seed}, expected 0 or more")
    if min(height_px, width_px) < 32:
        raise InputError(f"scene: found {height_px} x {width_px} pixels, expected at least 32 x 32")
    if kind not in get_args(SceneKind):
        raise InputError(f"kind: found '{kind}', expected one of {', '.join(get_args(SceneKind))}")
    if not looks > 0:
        raise InputError(f"looks: found {looks}, expected more than 0")
    if not 0 <= jitter_px <= 8:
        raise InputError(f"jitter_px: found {jitter_px}, expected 0 to 8")


def _draw_view(rng: np.random.Generator, looks: float, jitter_px: float) -> View:
    """Sun, season and radar as satellites in near-polar orbits meet them at middle latitudes."""
    # Cloud-free optical images come from spring to autumn, radar images from any day.
    day_before, day_after = rng.uniform(85, 310), rng.uniform(1, 365)
    noon = 43 + 22 * np.sin((day_before - 80) / 365 * 2 * np.pi)
    # Right-looking, ascending or descending: towards about east or about west.
    look = rng.choice([80.0, 280.0]) + rng.uniform(-6, 6)
    turn, reach = rng.uniform(0, 2 * np.pi), jitter_px * np.sqrt(rng.random())
    return View(
        sun_azimuth_deg=rng.uniform(125, 215),
        sun_elevation_deg=max(float(noon + rng.uniform(-6, 4)), 26.0),
        look_azimuth_deg=float(look),
        incidence_deg=rng.uniform(31, 44),
        looks=looks,
        day_before=day_before,
        day_after=day_after,
        shift_px=(float(reach * np.sin(turn)), float(reach * np.cos(turn))),
    )


def _grid(seed: int, height_px: int, width_px: int) -> Grid:
    """A place in UTM zone 33 that depends on the seed, so that scenes do not lie on each other."""
    east, north = 300_000 + 6_000 * (seed % 60), 5_200_000 + 6_000 * (seed // 60 % 100)
    return Grid(CRS.from_epsg(32633), Affine(PIXEL_M, 0, east, 0, -PIXEL_M, north), height_px, width_px)


def _kinds(world: World, view: View, traffic: list[Reals], cloud: Reals) -> NDArray[np.uint8]:
    """Every pixel's reason to look different, change before what only looks like one."""
    before, after = world.cover(after=False), world.cover(after=True)
    lots = world.lots
    kinds = np.zeros(before.shape, np.uint8)
    shift = tuple(round(s) for s in view.shift_px)
    if any(shift):
        solid = np.where(after == Cover.TREES, Cover.OPEN, after)
        kinds[np.roll(solid, shift, (0, 1)) != solid] = Kind.MISREGISTERED
    plain = before <= Cover.TREES
    soil = (lots.bare_db < -18)[world.lot] | (world.moist > 0.75)
    kinds[plain & soil & (lots.green_after < 0.2)[world.lot]] = Kind.SOIL
    kinds[plain & (np.abs(lots.green_after - lots.green_before) > 0.3)[world.lot]] = Kind.SEASON
    kinds[np.maximum(*traffic) > 0.3] = Kind.TRAFFIC
    kinds[cloud > 0.2] = Kind.CLOUD
    kinds[(before != Cover.WATER) & (after == Cover.WATER)] = Kind.FLOODED
    kinds[(before != Cover.BUILDING) & (after == Cover.BUILDING)] = Kind.BUILT
    kinds[(before == Cover.BUILDING) & (after != Cover.BUILDING)] = Kind.DEMOLISHED
    return kinds


def _clouds(optical: Reals, view: View, rng: np.random.Generator) -> tuple[Reals, Reals]:
    """Cumulus over 3 to 12 % of the scene and its shadow; also their coverage (H, W)."""
    shape = optical.shape[1:]
    puff = noise(rng, shape, 60, 3.6)
    opacity = np.clip((puff - np.quantile(puff, 1 - rng.uniform(0.03, 0.12))) * 2.2, 0, 1)
    opacity = ndimage.gaussian_filter(opacity, 0.8)
    away = rng.uniform(30, 50) * np.array(direction(view.sun_azimuth_deg + 180))
    shadow = ndimage.gaussian_filter(ndimage.shift(opacity, away, order=0), 2)
    bright = np.array([0.62, 0.60, 0.59, 0.61], np.float32)[:, None, None] * (1 + 0.05 * puff)
    optical = optical * (1 - 0.62 * shadow)
    return (optical + (bright - optical) * opacity).astype(np.float32), np.maximum(opacity, shadow)


def _footprint(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels inside a slightly rotated frame that cuts two corners off the scene."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    angle = np.deg2rad(rng.uniform(4, 14) * rng.choice([-1, 1]))
    across = np.cos(angle) * x + np.sin(angle) * y
    low, high = np.quantile(across[::8, ::8], (rng.uniform(0.02, 0.06), 1 - rng.uniform(0.0, 0.05)))
    return (across >= low) & (across <= high)


def write_tiles(
    root: Path | str,
    split: str,
    seeds: Iterable[int],
    tile_px: int = 128,
    *,
    kind: SceneKind | None = None,
    scene_px: int = 512,
    looks: float = 4.0,
    jitter_px: float = 2.0,
    clouds: bool = False,
    wedges: bool = False,
    change: bool = True,
) -> list[str]:
    """Cut scenes into tiles for training: ``root/split/{A,B,label}/NAME.tif``.

    A holds the optical image (before), B the SAR image (after), label 0 or 255. Tiles of one scene are consecutive
    in name, scenes are in the order of their seeds.

    Args:
        root: folder of the data set.
        split: its part, such as "train".
        seeds: one scene each. Parts of a data set must not share seeds.
        tile_px: edge of a tile; the rest of a scene that fills no tile is left out.
        kind: "city" or "flood"; None takes flood for odd seeds and city for even ones.
        scene_px: edge of a scene, at least ``tile_px``.
        looks: see :func:`make_scene`, as the rest.
        jitter_px: largest shift between the dates.
        clouds: with clouds in optical.
        wedges: with wedges without data.
        change: False: nothing changes, only what looks like it.

    Returns:
        The names, without extension, in order.

    Raises:
        InputError: an argument is out of range.
        OutputError: a folder is not writable or the disk is full.
    """
    if not 32 <= tile_px <= scene_px:
        raise InputError(f"tile_px: found {tile_px}, expected 32 to the edge of the scene ({scene_px})")
    seeds = list(seeds)
    for seed in seeds:
        _check(seed, scene_px, scene_px, kind or "flood", looks, jitter_px)
    folders = [Path(root) / split / name for name in ("A", "B", "label")]
    for folder in folders:
        with writing(folder):  # before the scenes are made, which takes longer
            folder.mkdir(parents=True, exist_ok=True)
    names = []
    for seed in seeds:
        chosen: SceneKind = kind or ("flood" if seed % 2 else "city")
        scene = make_scene(
            seed, scene_px, scene_px, chosen, looks=looks, jitter_px=jitter_px, clouds=clouds, wedges=wedges,
            change=change,
        )  # fmt: skip
        images: tuple[NDArray[Any], ...] = (scene.optical, scene.sar, scene.label * np.uint8(255))
        for row in range(scene_px // tile_px):
            for col in range(scene_px // tile_px):
                window = Window(row * tile_px, col * tile_px, tile_px, tile_px)
                names.append(f"{seed:05d}_{chosen}_{row:02d}_{col:02d}")
                part = (..., slice(window.row, window.row + tile_px), slice(window.col, window.col + tile_px))
                for folder, image, nodata in zip(folders, images, (0, np.nan, None), strict=True):
                    write_raster(folder / f"{names[-1]}.tif", image[part], scene.grid.window(window), nodata)
    return names


class PairFiles(NamedTuple):
    """The files of one georeferenced scene."""

    optical: Path
    sar: Path
    label: Path


def write_pair(
    folder: Path | str,
    seed: int,
    height_px: int = 1024,
    width_px: int = 1024,
    kind: SceneKind = "flood",
    *,
    looks: float = 4.0,
    jitter_px: float = 1.0,
    clouds: bool = False,
    wedges: bool = True,
) -> PairFiles:
    """Write one scene the way two data providers would deliver it.

    ``optical.tif`` and ``label.tif`` (0 or 255) lie in UTM at 3 m. ``sar.tif`` lies in geographic coordinates, with
    pixels of about 2.5 m, reaches further on three sides, ends earlier in the west, and is NaN around its rotated
    footprint.

    Args:
        folder: made if needed; files of these names are replaced.
        seed: see :func:`make_scene`, as the rest.
        height_px: rows of the optical image.
        width_px: columns of the optical image.
        kind: "city" or "flood".
        looks: before the SAR image is resampled to its own grid, which averages it a little more.
        jitter_px: largest shift between the dates.
        clouds: with clouds in optical.
        wedges: the optical image has wedges without data too.

    Raises:
        InputError: an argument is out of range.
        OutputError: the folder is not writable or the disk is full.
    """
    _check(seed, height_px, width_px, kind, looks, jitter_px)
    folder = Path(folder)
    around = max(24, min(height_px, width_px) // 8)
    scene = make_scene(
        seed, height_px + 2 * around, width_px + 2 * around, kind, looks=looks, jitter_px=jitter_px, clouds=clouds
    )
    rng = np.random.default_rng([seed, 7])
    inner = (..., slice(around, around + height_px), slice(around, around + width_px))
    grid = scene.grid.window(Window(around, around, height_px, width_px))
    optical = scene.optical[inner].copy()
    if wedges:
        optical[:, ~_footprint(rng, grid.shape)] = 0
    start = around + width_px // 16  # the western edge of the optical image stays without SAR
    sar = scene.sar[0, :, start:].copy()
    sar[~_footprint(rng, sar.shape)] = np.nan
    swath = scene.grid.window(Window(0, start, *sar.shape))
    sar, sar_grid = _to_degrees(sar, swath, pixel_m=2.5)
    files = PairFiles(folder / "optical.tif", folder / "sar.tif", folder / "label.tif")
    write_raster(files.optical, optical, grid, nodata=0)
    write_raster(files.sar, sar, sar_grid, nodata=np.nan)
    write_raster(files.label, scene.label[inner] * np.uint8(255), grid)
    return files


def _to_degrees(image: Reals, grid: Grid, pixel_m: float) -> tuple[Reals, Grid]:
    """Resample (H, W) power from a UTM grid to EPSG:4326, with pixels of about ``pixel_m`` on the ground."""
    crs = CRS.from_epsg(4326)
    left, bottom, right, top = transform_bounds(grid.crs, crs, *grid.bounds)
    dy = pixel_m / 111_320
    dx = dy / np.cos(np.deg2rad((bottom + top) / 2))
    height, width = int((top - bottom) / dy), int((right - left) / dx)
    target = Grid(crs, Affine(dx, 0, left, 0, -dy, top), height, width)
    out = np.full((height, width), np.nan, np.float32)
    reproject(
        image, out, src_transform=grid.transform, src_crs=grid.crs, src_nodata=np.nan, dst_transform=target.transform,
        dst_crs=crs, dst_nodata=np.nan, resampling=Resampling.cubic,
    )  # fmt: skip
    # Cubic resampling undershoots beside bright points; power cannot be negative.
    return np.where(out < 1e-5, np.float32(1e-5), out), target
