"""Synthetic scenes: reproducible, labelled by what changed, and physically what they claim to be."""

from dataclasses import fields, replace

import numpy as np
import pytest
import rasterio
from rasterio.warp import Resampling, reproject
from scipy import ndimage

from hetecd.errors import InputError, OutputError
from hetecd.modality import to_db
from hetecd.synth import Kind, Scene, make_scene, write_pair, write_tiles
from hetecd.synth_render import View, direction, render_optical, render_sar, speckle
from hetecd.synth_world import PIXEL_M, Cover, World, build_world

CHANGES = (Kind.BUILT, Kind.DEMOLISHED, Kind.FLOODED)
NO_SPECKLE = 1e6


@pytest.fixture(scope="module")
def city() -> Scene:
    return make_scene(11, 384, 384, "city", looks=NO_SPECKLE, jitter_px=0)


@pytest.fixture(scope="module")
def flood() -> Scene:
    return make_scene(12, 384, 384, "flood", looks=NO_SPECKLE, jitter_px=0)


def same(a: Scene, b: Scene) -> bool:
    arrays = [f.name for f in fields(Scene) if f.name not in ("grid", "view")]
    equal = all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=n == "sar") for n in arrays)
    return equal and (a.grid, a.view) == (b.grid, b.view)


# --- contract -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["city", "flood"])
def test_same_seed_same_bits_other_seed_other_scene(kind):
    first = make_scene(3, 96, 128, kind, clouds=True, wedges=True)
    assert same(first, make_scene(3, 96, 128, kind, clouds=True, wedges=True))
    other = make_scene(4, 96, 128, kind, clouds=True, wedges=True)
    assert not np.array_equal(first.optical, other.optical)
    assert (first.before != other.before).mean() > 0.1
    assert first.grid != other.grid


def test_the_two_kinds_of_one_seed_are_two_places():
    assert (make_scene(3, 96, 96, "city").before != make_scene(3, 96, 96, "flood").before).mean() > 0.1


def test_shapes_dtypes_and_grid():
    scene = make_scene(5, 70, 130, "city")
    assert scene.optical.shape == (4, 70, 130)
    assert scene.optical.dtype == np.uint16
    assert scene.sar.shape == (1, 70, 130)
    assert scene.sar.dtype == np.float32
    for array in (scene.label, scene.kinds, scene.before, scene.after):
        assert array.shape == (70, 130)
        assert array.dtype == np.uint8
    assert scene.grid.shape == (70, 130)
    assert scene.grid.res == (PIXEL_M, PIXEL_M)
    assert scene.grid.crs.is_projected
    assert scene.optical.min() > 0  # 0 is nodata
    assert scene.optical.max() <= 12_000
    assert np.isfinite(scene.sar).all()
    assert scene.sar.min() > 0


@pytest.mark.parametrize(("kind", "low", "high"), [("city", 0.05, 0.15), ("flood", 0.10, 0.35)])
def test_share_of_change(kind, low, high):
    for seed in range(3):
        scene = make_scene(seed, kind=kind)
        assert low <= scene.label.mean() <= high, seed
        # Both dates hold plenty of what would be a change if it were new.
        held = Cover.WATER if kind == "flood" else Cover.BUILDING
        assert (scene.before == held).mean() > 0.5 * scene.label.mean()


def test_wedges_and_clouds_move_nothing_on_the_ground():
    plain = make_scene(6, 128, 128, "city")
    wedged = make_scene(6, 128, 128, "city", wedges=True, clouds=True)
    assert np.array_equal(plain.label, wedged.label)
    optical_gone, sar_gone = (wedged.optical == 0).all(axis=0), np.isnan(wedged.sar[0])
    for gone in (optical_gone, sar_gone):
        assert 0.02 < gone.mean() < 0.3
    assert (optical_gone != sar_gone).any()
    assert ((wedged.optical == 0).any(axis=0) == optical_gone).all()
    assert np.array_equal(plain.sar[0][~sar_gone], wedged.sar[0][~sar_gone])
    cloud = (wedged.kinds == Kind.CLOUD) & ~optical_gone
    assert cloud.mean() > 0.02
    clear = ~optical_gone & (ndimage.maximum_filter(wedged.kinds == Kind.CLOUD, 9) == 0) & (wedged.label == 0)
    assert np.abs(plain.optical.astype(int) - wedged.optical)[:, cloud].mean() > 300
    assert np.abs(plain.optical.astype(int) - wedged.optical)[:, clear].mean() < 100


@pytest.mark.parametrize("kind", ["city", "flood"])
def test_a_scene_without_change_is_the_same_place(kind):
    changed, still = (make_scene(3, 128, 128, kind, change=change) for change in (True, False))
    assert changed.label.any()
    assert not still.label.any()
    assert np.array_equal(still.optical, changed.optical)
    assert np.array_equal(still.before, changed.before)
    assert np.array_equal(still.after, still.before)
    away = ndimage.binary_dilation(changed.label, iterations=20) == 0  # beyond most shadows and layover
    assert away.any()
    assert np.isclose(still.sar[0][away], changed.sar[0][away], rtol=0.05).mean() > 0.9
    assert (still.kinds >= 10).any()  # what only looks like change is there


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1, "height_px": 31}, "31 x 512"),
        ({"seed": 1, "kind": "quake"}, "city, flood"),
        ({"seed": 1, "looks": 0}, "looks"),
        ({"seed": 1, "jitter_px": 9}, "jitter_px"),
    ],
)
def test_bad_arguments(arguments, named):
    with pytest.raises(InputError, match=named) as error:
        make_scene(**arguments)
    assert "\n" not in str(error.value)


# --- the label ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["city", "flood"])
def test_label_is_what_changed(name, request):
    scene = request.getfixturevalue(name)
    built = (scene.before != Cover.BUILDING) & (scene.after == Cover.BUILDING)
    demolished = (scene.before == Cover.BUILDING) & (scene.after != Cover.BUILDING)
    flooded = (scene.before != Cover.WATER) & (scene.after == Cover.WATER)
    assert np.array_equal(scene.label == 1, built | demolished | flooded)
    assert not ((scene.before == Cover.WATER) & (scene.after != Cover.WATER)).any()
    for kind, where in ((Kind.BUILT, built), (Kind.DEMOLISHED, demolished), (Kind.FLOODED, flooded)):
        assert np.array_equal(scene.kinds == kind, where)
    assert set(np.unique(scene.label)) == {0, 1}


def test_what_only_looks_like_change_is_not_in_the_label():
    seen = set()
    for seed, kind in ((1, "city"), (2, "flood"), (3, "city")):
        scene = make_scene(seed, 256, 256, kind, clouds=True)
        seen |= set(np.unique(scene.kinds))
        assert np.array_equal(np.isin(scene.kinds, CHANGES), scene.label == 1)
        assert not scene.label[scene.kinds > 10].any()
    assert seen == {int(k) for k in Kind}


def test_one_date_alone_does_not_tell_a_change():
    """New and old buildings in SAR, doomed and lasting ones in optical, flood and river in SAR: one distribution."""
    new, old, doomed, lasting, flood, river = ([] for _ in range(6))
    for seed in range(4):
        scene = make_scene(seed, 320, 320, "city")
        stays = (scene.before == Cover.BUILDING) & (scene.after == Cover.BUILDING)
        power, red = to_db(scene.sar[0]), scene.optical[2] / 10_000
        new.append(power[scene.kinds == Kind.BUILT])
        old.append(power[stays])
        doomed.append(red[scene.kinds == Kind.DEMOLISHED])
        lasting.append(red[stays])
        scene = make_scene(seed, 320, 320, "flood")
        power = to_db(scene.sar[0])
        flood.append(power[ndimage.binary_erosion(scene.kinds == Kind.FLOODED, iterations=3)])
        river.append(power[ndimage.binary_erosion(scene.before == Cover.WATER, iterations=3)])
    for changed, unchanged, unit in ((new, old, 1.5), (doomed, lasting, 0.05), (flood, river, 2.5)):
        a, b = np.concatenate(changed), np.concatenate(unchanged)
        assert abs(np.median(a) - np.median(b)) < unit
        # Probability that a changed pixel exceeds an unchanged one: 0.5 = no cue at all.
        rank = np.searchsorted(np.sort(b), a) / b.size
        assert 0.35 < rank.mean() < 0.75


# --- physics --------------------------------------------------------------------------------------------------------


def bare(height_m: float) -> tuple[World, View]:
    """One square block of 12 x 12 pixels on bare flat ground, seen by a radar that looks east."""
    world = build_world(np.random.default_rng(1), (128, 128), 16, "city", (180, 180))
    nothing = np.zeros((128, 128), np.float32)
    block = nothing.copy()
    block[58:70, 58:70] = 1
    n = len(world.lots.zone)
    standing = np.ones(n, bool)
    lots = replace(
        world.lots, height_m=np.full(n, height_m, np.float32), built_before=standing, built_after=standing,
        bare_db=np.full(n, -14, np.float32), green_after=np.zeros(n, np.float32), rows=np.zeros(n, np.float32),
        green_before=np.zeros(n, np.float32), ground=np.full((n, 4), 0.12, np.float32), gable=~standing,
    )  # fmt: skip
    layers = ("street", "arterial", "crown", "tree_m", "water", "flood_m", "terrain_m", "moist")
    world = replace(world, lots=lots, footprint=block, **dict.fromkeys(layers, nothing))
    return world, View(180.0, 45.0, 90.0, 35.0, 4.0, 180.0, 180.0, (0.0, 0.0))


def test_direction():
    assert direction(0) == pytest.approx((-1, 0))
    assert direction(90) == pytest.approx((0, 1))
    assert direction(180) == pytest.approx((1, 0))


def test_layover_double_bounce_and_shadow_of_one_building():
    world, view = bare(height_m=21.0)
    quiet = np.zeros_like(world.water)
    image = render_sar(world, view, np.random.default_rng(2), quiet)
    profile = np.median(to_db(image)[60:68], axis=0)
    ground = np.median(profile[20:40])
    lay = 21 / np.tan(np.deg2rad(35)) / PIXEL_M  # 10 px towards the sensor, which is in the west
    front = 58
    assert profile[int(front - lay) + 2 : front].min() > ground + 3  # layover
    assert abs(profile[int(front - lay) - 4] - ground) < 2  # and no further
    assert int(np.argmax(profile)) in (front - 2, front - 1, front)  # double bounce where wall meets ground
    assert profile.max() > ground + 12
    shadow = 21 * np.tan(np.deg2rad(35)) / PIXEL_M  # 4.9 px behind the building
    assert profile[70 : 70 + int(shadow) - 1].max() < ground - 5
    assert abs(np.median(profile[70 + int(shadow) + 3 : 90]) - ground) < 1.5

    mirrored = render_sar(world, replace(view, look_azimuth_deg=270.0), np.random.default_rng(2), quiet)
    profile = np.median(to_db(mirrored)[60:68], axis=0)
    assert profile[71 : 69 + int(lay) - 1].min() > ground + 3  # the sensor is in the east now
    assert int(np.argmax(profile)) in (69, 70, 71)


def test_taller_building_longer_layover_and_cast_shadow():
    quiet = np.zeros((128, 128), np.float32)
    lengths, shades = [], []
    for height in (9.0, 18.0, 36.0):
        world, view = bare(height)
        profile = np.median(to_db(render_sar(world, view, np.random.default_rng(2), quiet))[60:68], axis=0)
        lengths.append(int((profile[:58] > -11).sum()))
        red = render_optical(world, view, np.random.default_rng(2), quiet)[2]
        column = np.median(red[:, 60:68], axis=1)  # the sun stands in the south, shadows fall north
        shades.append(int((column[:58] < 0.65 * np.median(column[80:110])).sum()))
    expected = [h / np.tan(np.deg2rad(35)) / PIXEL_M for h in (9, 18, 36)]
    assert lengths == pytest.approx(expected, abs=1.6)
    assert shades == pytest.approx([3, 6, 12], abs=1)


def test_wall_square_to_the_beam_is_brighter_than_an_oblique_one():
    quiet = np.zeros((128, 128), np.float32)
    peaks = []
    for azimuth in (90.0, 135.0):
        world, view = bare(15.0)
        image = render_sar(world, replace(view, look_azimuth_deg=azimuth), np.random.default_rng(2), quiet)
        peaks.append(np.sort(image[40:90, 40:90].ravel())[-12:].mean())
    assert peaks[0] > 2 * peaks[1]


def test_water_is_dark_buildings_are_bright(city, flood):
    for scene in (city, flood):
        power = to_db(scene.sar[0])
        inside = ndimage.binary_erosion(scene.after == Cover.WATER, iterations=3)
        if inside.sum() > 500:
            assert np.median(power[inside]) < np.median(power[scene.after == Cover.OPEN]) - 4
    power = to_db(city.sar[0])
    house = city.after == Cover.BUILDING
    assert np.median(power[house]) > np.median(power[city.after == Cover.OPEN]) + 2
    # Facades that face the sensor are brighter than those that look away.
    back = tuple(round(v) for v in city.view.look)
    facing = house & ~np.roll(house, back, (0, 1))
    averted = house & ~np.roll(house, (-back[0], -back[1]), (0, 1))
    assert power[facing].mean() > power[averted].mean() + 5


def test_water_is_black_in_near_infrared_and_vegetation_is_not(flood):
    infrared = flood.optical[3] / 10_000
    assert np.median(infrared[flood.before == Cover.WATER]) < 0.08
    assert np.median(infrared[flood.before == Cover.TREES]) > 0.11


@pytest.mark.parametrize("looks", [1.0, 4.0, 10.0])
def test_speckle_statistics(looks):
    grain = speckle(np.full((300, 300), 0.2, np.float32), looks, np.random.default_rng(0))
    assert grain.dtype == np.float32
    assert grain.mean() == pytest.approx(0.2, rel=0.02)
    assert grain.mean() ** 2 / grain.var() == pytest.approx(looks, rel=0.08)


def test_looks_of_a_scene_are_those_asked_for():
    clean = make_scene(8, 256, 256, "flood", looks=1e6)
    noisy = make_scene(8, 256, 256, "flood", looks=4)
    ratio = noisy.sar / clean.sar
    assert np.array_equal(clean.label, noisy.label)
    assert 1 / ratio.var() == pytest.approx(4, rel=0.1)


# --- registration ---------------------------------------------------------------------------------------------------


def test_jitter_shifts_the_sar_image_and_nothing_else():
    still = make_scene(9, 256, 256, "city", looks=NO_SPECKLE, jitter_px=0)
    moved = make_scene(9, 256, 256, "city", looks=NO_SPECKLE, jitter_px=6)
    assert still.view.shift_px == (0, 0)
    assert not (still.kinds == Kind.MISREGISTERED).any()
    assert np.hypot(*moved.view.shift_px) <= 6
    assert np.array_equal(still.label, moved.label)
    assert np.array_equal(still.optical, moved.optical)
    back = ndimage.shift(moved.sar[0], [-s for s in moved.view.shift_px], order=1)
    inner = (slice(8, -8), slice(8, -8))

    def alike(a, b):
        return np.corrcoef(to_db(a[inner]).ravel(), to_db(b[inner]).ravel())[0, 1]

    assert alike(back, still.sar[0]) > 0.93
    assert alike(back, still.sar[0]) > alike(moved.sar[0], still.sar[0]) + 0.1


def test_without_jitter_the_shores_of_both_dates_align():
    """The shift at which the SAR edge of permanent water best meets the optical edge is zero."""
    scene = make_scene(10, 320, 320, "city", looks=NO_SPECKLE, jitter_px=0)
    water = ndimage.gaussian_filter((scene.before == Cover.WATER).astype(np.float32), 1.5)
    dark = ndimage.gaussian_filter((to_db(scene.sar[0]) < -17).astype(np.float32), 1.5)
    inner = (slice(8, -8), slice(8, -8))
    shifts = [(r, c) for r in range(-4, 5) for c in range(-4, 5)]
    best = max(shifts, key=lambda s: float((water[inner] * np.roll(dark, s, (0, 1))[inner]).sum()))
    assert np.hypot(*best) <= 1.5


# --- files ----------------------------------------------------------------------------------------------------------


def test_write_tiles(tmp_path):
    names = write_tiles(tmp_path, "train", [2, 3], tile_px=96, scene_px=200)
    assert len(names) == len(set(names)) == 8
    assert names == sorted(names)
    assert {n.split("_")[1] for n in names} == {"city", "flood"}
    for folder in ("A", "B", "label"):
        assert sorted(p.stem for p in (tmp_path / "train" / folder).iterdir()) == names
    scene = make_scene(3, 200, 200, "flood")
    name = "00003_flood_01_00.tif"
    part = (..., slice(96, 192), slice(0, 96))
    for folder, expected in (("A", scene.optical), ("B", scene.sar), ("label", scene.label[None] * 255)):
        with rasterio.open(tmp_path / "train" / folder / name) as dataset:
            assert np.array_equal(dataset.read(), expected[part])
            assert dataset.dtypes[0] == expected.dtype.name
            assert dataset.crs == scene.grid.crs
            assert dataset.transform.f == scene.grid.transform.f - 96 * PIXEL_M
            assert str(dataset.nodata) == {"A": "0.0", "B": "nan", "label": "None"}[folder]


def test_write_tiles_of_one_kind_with_wedges(tmp_path):
    names = write_tiles(tmp_path, "val", [4], tile_px=64, kind="city", scene_px=128, wedges=True, clouds=True)
    assert all("_city_" in n for n in names)
    gone = 0
    for name in names:
        with rasterio.open(tmp_path / "val" / "B" / f"{name}.tif") as dataset:
            assert np.isnan(dataset.nodata)
            gone += np.isnan(dataset.read(1)).sum()
    assert gone > 0


def test_write_pair_warps_back_onto_the_scene(tmp_path):
    files = write_pair(tmp_path, 5, 300, 340, "city", jitter_px=0)
    around = 300 // 8
    scene = make_scene(5, 300 + 2 * around, 340 + 2 * around, "city", jitter_px=0)
    original = scene.sar[0, around:-around, around:-around]
    with rasterio.open(files.optical) as optical, rasterio.open(files.sar) as sar, rasterio.open(files.label) as label:
        assert (optical.height, optical.width, optical.count) == (300, 340, 4)
        assert (label.transform, label.crs, label.shape) == (optical.transform, optical.crs, optical.shape)
        assert set(np.unique(label.read(1))) == {0, 255}
        assert optical.nodata == 0
        assert 0.01 < (optical.read(1) == 0).mean() < 0.3
        assert sar.crs.to_epsg() == 4326 != optical.crs.to_epsg()
        assert 0.05 < np.isnan(sar.read(1)).mean() < 0.5
        warped = np.full(optical.shape, np.nan, np.float32)
        reproject(
            rasterio.band(sar, 1), warped, dst_transform=optical.transform, dst_crs=optical.crs, dst_nodata=np.nan,
            resampling=Resampling.bilinear,
        )  # fmt: skip
    valid = np.isfinite(warped)
    assert 0.7 < valid.mean() < 0.98
    assert not valid[150, 0]  # SAR ends before the western edge of the optical image

    def alike(shift):
        moved = np.roll(original, shift, (0, 1))
        both = valid & (ndimage.binary_erosion(np.ones_like(valid), iterations=4))
        return np.corrcoef(to_db(moved)[both], to_db(warped)[both])[0, 1]

    shifts = [(r, c) for r in range(-2, 3) for c in range(-2, 3)]
    assert max(shifts, key=alike) == (0, 0)
    assert alike((0, 0)) > 0.9


def test_unusable_arguments_and_folders(tmp_path):
    with pytest.raises(InputError, match="tile_px: found 600"):
        write_tiles(tmp_path, "train", [1], tile_px=600)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write it"):
        write_tiles(tmp_path / "file", "train", [1])
    with pytest.raises(OutputError, match="cannot write it"):
        write_pair(tmp_path / "file", 1, 64, 64)
