"""Known misplacements are found and undone; what cannot be told is left alone."""

import json
import logging
import re
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine
from scipy import ndimage

from hetecd import cli
from hetecd.align import choose_move, find_move, opener
from hetecd.errors import InputError
from hetecd.modality import uint8_modality
from hetecd.orientation import BESIDE_PX, Sensor, field, likeness, peak
from hetecd.pair import Pair, open_pair
from hetecd.raster import Grid, write_raster
from hetecd.synth import make_scene
from hetecd.tiles import Window

ONE = uint8_modality((1,))
SIZE = 448
MIDDLE = Affine.translation(SIZE / 2, SIZE / 2)
STILL = Affine.identity()


class Files(NamedTuple):
    optical: Path
    sar: Path

    def opener(self, misplaced=STILL, modality=ONE):
        """Opens the pair with the SAR image misplaced: at pixel p it shows what belongs at ``misplaced @ p``."""
        return lambda move: open_pair(*self, "optical", modality, ONE, sar_move=misplaced @ (move or STILL))


@pytest.fixture(scope="module")
def scene():
    return make_scene(2001, SIZE, SIZE, "city", jitter_px=0)


@pytest.fixture(scope="module")
def files(scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("align")
    write_raster(folder / "optical.tif", scene.optical, scene.grid, 0)
    write_raster(folder / "sar.tif", scene.sar, scene.grid, np.nan)
    return Files(folder / "optical.tif", folder / "sar.tif")


def around(angle_deg=0.0, scale=1.0):
    return MIDDLE @ Affine.rotation(angle_deg) @ Affine.scale(scale) @ ~MIDDLE


def off_px(*motions):
    """Largest distance to which motions, one after the other, take a place of the scene."""
    total = STILL
    for motion in motions:
        total @= motion
    cols, rows = np.meshgrid(np.linspace(60, SIZE - 60, 5), np.linspace(60, SIZE - 60, 5))
    return float(np.hypot(*(np.array(total @ (cols, rows)) - (cols, rows))).max())


@pytest.mark.parametrize(
    "misplaced",
    [
        Affine.translation(31.4, -22.7),
        Affine.translation(-40, 40),
        Affine.translation(5, 8) @ around(1.5),
        Affine.translation(-12, 3) @ around(-1.2, 1.01),
        Affine.translation(3.3, 17.2) @ around(scale=0.99),
    ],
)
def test_a_known_misplacement_is_undone(files, misplaced):
    found = find_move(files.opener(misplaced))
    assert found.moved
    assert found.inlier_ratio > 0.6
    assert found.tiles > 9
    assert off_px(misplaced) > 8
    assert off_px(misplaced, found.sar_move) < 1.5  # heights and shadows are part of it
    # What the SAR image shows at p belongs at misplaced @ p: that is how it must move.
    assert found.rotation_deg == pytest.approx(np.rad2deg(np.arctan2(misplaced.d, misplaced.a)), abs=0.2)
    assert found.scale == pytest.approx(np.sqrt(misplaced.determinant), abs=0.003)
    middle = np.array(misplaced @ (SIZE / 2, SIZE / 2)) - SIZE / 2
    assert np.abs(np.array(found.shift_px) - middle).max() < 1.2
    assert np.abs(np.array(found.shift_m) - np.array(found.shift_px) * 3).max() < 0.02 * np.abs(found.shift_m).max()


def test_parts_of_a_pixel(files):
    """Misplacements that differ by parts of a pixel are told apart by that much."""
    shifts = [find_move(files.opener(Affine.translation(12 + part, -9 - part))).shift_px for part in (0, 0.3, 0.6)]
    steps = np.subtract(shifts[1:], shifts[0])
    assert np.abs(steps - [[0.3, -0.3], [0.6, -0.6]]).max() < 0.15


def test_what_is_in_place_stays(files):
    found = find_move(files.opener())
    assert not found.moved
    assert found.sar_move == STILL
    assert found.inlier_ratio > 0.6
    assert "heights and shadows" in found.note


def changed_files(files, scene, folder):
    """The same pair with another place in a quarter of the SAR image."""
    other = make_scene(4000, SIZE, SIZE, "city", jitter_px=0).sar
    noise = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(scene.label.shape), 24)
    sar = np.where(noise > np.quantile(noise, 0.75), other, scene.sar)
    write_raster(folder / "changed.tif", sar, scene.grid, np.nan)
    return Files(files.optical, folder / "changed.tif")


def test_a_quarter_changed(files, scene, tmp_path):
    misplaced = Affine.translation(-26, 14) @ around(0.9)
    found = find_move(changed_files(files, scene, tmp_path).opener(misplaced))
    assert found.moved
    assert off_px(misplaced, found.sar_move) < 2


@pytest.mark.parametrize("where", ["optical", "sar"])
def test_gaps_make_no_edges(files, scene, tmp_path, where):
    """Gaps of one image that are not where the other image is misplaced to do not draw the result to themselves."""
    rng = np.random.default_rng(1)
    gaps = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), 10)
    gaps = gaps > np.quantile(gaps, 0.8)
    optical, sar = scene.optical.copy(), scene.sar.copy()
    if where == "optical":
        optical[:, gaps] = 0
    else:
        sar[:, gaps] = np.nan
    holey = Files(tmp_path / "o.tif", tmp_path / "s.tif")
    write_raster(holey.optical, optical, scene.grid, 0)
    write_raster(holey.sar, sar, scene.grid, np.nan)
    misplaced = Affine.translation(18, 11)
    found, whole = (find_move(f.opener(misplaced)) for f in (holey, files))
    assert found.moved
    assert np.abs(np.subtract(found.shift_px, whole.shift_px)).max() < 0.5


def test_common_gaps_do_not_count_as_agreement(scene, tmp_path):
    """Two unlike places under one pattern of gaps."""
    other = make_scene(4000, SIZE, SIZE, "city", jitter_px=0).sar
    gaps = np.indices((SIZE, SIZE)).sum(0) % 56 < 10
    pair = Files(tmp_path / "o.tif", tmp_path / "s.tif")
    write_raster(pair.optical, np.where(gaps, 0, scene.optical), scene.grid, 0)
    write_raster(pair.sar, np.where(gaps, np.nan, other), scene.grid, np.nan)
    found = find_move(pair.opener())
    assert not found.moved
    assert "unsure" in found.note


def images(folder, optical, sar, grid=None):
    pair = Files(folder / "o.tif", folder / "s.tif")
    grid = grid or Grid(CRS.from_epsg(32633), Affine(10, 0, 500_000, 0, -10, 5_000_000), *optical.shape)
    write_raster(pair.optical, optical.astype(np.float32), grid)
    write_raster(pair.sar, sar.astype(np.float32), grid)
    return pair


@pytest.mark.parametrize("what", ["noise", "another place", "constant", "slope", "stripes"])
def test_nothing_is_moved_when_unsure(scene, tmp_path, what):
    rng = np.random.default_rng(0)
    optical, sar = rng.random((2, SIZE, SIZE))
    if what == "another place":
        optical, sar = scene.optical[1], make_scene(4000, SIZE, SIZE, "city", jitter_px=0).sar[0]
    if what == "constant":
        optical[:], sar[:] = 7, 3
    if what == "slope":
        optical, sar = np.indices((SIZE, SIZE)) + 1.0
    if what == "stripes":  # they fit at every shift along them
        optical = sar = np.sin(np.indices((SIZE, SIZE))[1] / 5) + 2
    found = find_move(images(tmp_path, optical, sar).opener())
    assert not found.moved
    assert found.sar_move == STILL
    assert "not moved" in found.note
    assert found.inlier_ratio < 0.35


def test_too_small_to_tell(scene, tmp_path):
    found = find_move(images(tmp_path, scene.optical[1, :120, :150], scene.sar[0, :120, :150]).opener())
    assert not found.moved
    assert "4 tiles" in found.note


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (2, 300), (5, 300), (300, 12)])
def test_a_thin_grid_is_not_moved(tmp_path, size):
    checks = (np.indices(size).sum(0) // 5 % 2) + 1.0
    found = find_move(images(tmp_path, checks, checks).opener())
    assert found.sar_move == STILL
    assert "not moved: 4 tiles" in found.note


def test_nothing_is_moved_where_no_place_fits(tmp_path):
    """Everywhere the edges of the one image lie across those of the other."""
    x, y = np.meshgrid(np.arange(200) - 100.5, np.arange(200) - 100.5)
    found = find_move(images(tmp_path, np.hypot(x, y), np.arctan2(y, x) + 4).opener(), 8)
    assert found.sar_move == STILL
    assert "unsure" in found.note


def test_beyond_the_limit(files):
    assert not find_move(files.opener(Affine.translation(40, 0)), 12).moved
    assert find_move(files.opener(Affine.translation(10, 0)), 12).moved
    for limit_px in (0, 2000):
        with pytest.raises(InputError, match=f"largest shift of {limit_px} px, expected 1 to 1024"):
            find_move(files.opener(), limit_px)


@pytest.mark.parametrize("transform", [STILL, Affine.scale(2, -2)])
def test_without_crs_pixel_by_pixel(scene, tmp_path, transform):
    pair = images(tmp_path, scene.optical[1], scene.sar[0], Grid(None, transform, SIZE, SIZE))
    misplaced = Affine.translation(-14, 21) @ around(1)
    found = find_move(pair.opener(misplaced))
    assert found.moved
    assert found.shift_m is None
    assert off_px(misplaced, found.sar_move) < 1.5


def test_oblong_pixels_in_degrees(scene, tmp_path):
    """On a grid of oblong pixels a rotation on the ground is none of the pixels; it is found all the same."""
    x, y = 15.0, 46.0
    across = 3 / (111_320 * np.cos(np.deg2rad(y)))
    grid = Grid(CRS.from_epsg(4326), Affine(across, 0, x, 0, -3 / 111_150, y), SIZE, SIZE)
    pair = Files(tmp_path / "o.tif", tmp_path / "s.tif")
    halves = scene.optical[1].reshape(SIZE, SIZE // 2, 2).mean(2)
    write_raster(pair.optical, halves, Grid(grid.crs, grid.transform @ Affine.scale(2, 1), SIZE, SIZE // 2))
    write_raster(pair.sar, scene.sar, Grid(grid.crs, grid.transform @ around(1.4), SIZE, SIZE), np.nan)
    found = find_move(pair.opener())
    assert found.moved
    assert found.rotation_deg == pytest.approx(-1.4, abs=0.2)
    # The way round: from a pixel of the optical grid to where its place is in the true SAR image.
    half = Affine.scale(2, 1)
    assert off_px(~around(1.4), half @ found.sar_move @ ~half) < 2


def test_what_is_read_does_not_grow_with_the_scene(files):
    class Repeated(Pair):
        """A scene next to itself, many times."""

        def __init__(self, pair, times):
            self.grid = Grid(pair.grid.crs, pair.grid.transform, SIZE * times, SIZE * times)
            self.whole, self.pixels = pair.read(Window(0, 0, SIZE, SIZE)), 0

        def read(self, window):
            self.pixels += window.height * window.width
            rows, cols = (
                np.arange(window.row, window.row + window.height),
                np.arange(window.col, window.col + window.width),
            )
            return tuple(image[..., (rows % SIZE)[:, None], cols % SIZE] for image in self.whole)

    with open_pair(*files, "optical", ONE, ONE) as pair:
        repeated = Repeated(pair, 200)
    assert find_move(lambda move: nullcontext(repeated), 16).tiles == 48
    assert repeated.pixels < 48 * 3 * 330**2


def test_contrast_may_be_reversed_and_shifts_be_parts_of_pixels():
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.standard_normal((160, 160)), 2).astype(np.float32)
    moved = ndimage.fourier_shift(np.fft.fft2(image), (3.4, -5.7))
    moved = -np.fft.ifft2(moved).real.astype(np.float32)
    surface = likeness(field(image[None]).inside(32), field(moved[None]).inside(16))
    assert surface.shape == (33, 33)
    assert np.abs(np.array(peak(surface)) - (16 + 3.4, 16 - 5.7)).max() < 0.1
    assert surface.max() > 6


def test_fields_of_nothing():
    flat = np.full((2, 60, 60), 5, np.float32)
    flat[:, 20:30] = np.nan
    values, valid = field(flat)
    assert not values.any()
    assert not valid[16:34].any()
    assert valid[:16].all()
    assert not field(np.full_like(flat, np.nan)).valid.any()
    assert not likeness(field(flat), field(flat)).any()


def blurred(rng, count, width_px=2.0):
    return ndimage.gaussian_filter(rng.standard_normal((count, 128, 128)), (0, width_px, width_px)).astype(np.float32)


def test_shade_is_left_out_of_optical():
    """A shade that darkens all bands, not alike, makes next to no directions; without colours it has to stay."""
    rng = np.random.default_rng(0)
    colour, shade = blurred(rng, 3), blurred(rng, 1)
    colour *= 0.7 / colour.std()
    shade = shade / shade.std() * np.array([1.3, 1.6, 2.0], np.float32)[:, None, None]
    lit, shaded = (field(np.exp(image), Sensor.OPTICAL) for image in (colour, colour + shade))
    alone = field(np.exp(shade), Sensor.ANY)

    def alike(one, other):
        return abs(np.vdot(one.values, other.values)) / np.linalg.norm(one.values) / np.linalg.norm(other.values)

    assert alike(shaded, alone) < 0.15
    assert alike(shaded, lit) > 3 * alike(field(np.exp(colour + shade)), lit)
    for grey in (np.exp(shade[:1]), np.exp(shade[[0, 0, 0]])):
        assert alike(field(grey, Sensor.OPTICAL), alone) > 0.95


def test_what_is_beside_the_bright_is_left_out_of_sar():
    rng = np.random.default_rng(0)
    sar = np.exp(0.1 * blurred(rng, 1))
    sar[0, 40:48, 60:70] = 50
    plain, seen = field(sar), field(sar, Sensor.SAR)
    assert plain.valid.all()
    assert not seen.valid[40 - BESIDE_PX : 48 + BESIDE_PX, 60 - BESIDE_PX : 70 + BESIDE_PX].any()
    assert not seen.values[seen.valid == 0].any()
    assert 0.2 < seen.valid.mean() < 0.8
    twice = field(sar, Sensor.SAR, factor=2)
    assert seen.valid.sum() < twice.valid.sum() < plain.valid.sum()
    assert field(np.ones_like(sar), Sensor.SAR).valid.all()  # nothing is bright


def test_what_predict_is_told(files, caplog):
    caplog.set_level(logging.INFO, logger="hetecd")
    assert choose_move(files.opener(), "off") is None
    found = choose_move(files.opener(Affine.translation(20, 0)), "30")
    assert found is not None
    assert found.moved
    assert str(found) in caplog.text
    for how in ("on", "-3", "2.5"):
        with pytest.raises(InputError, match="auto, off"):
            choose_move(files.opener(), how)


@pytest.fixture(scope="module")
def misplaced_files(scene, files, tmp_path_factory):
    path = tmp_path_factory.mktemp("misplaced") / "sar.tif"
    write_raster(path, scene.sar, Grid(scene.grid.crs, scene.grid.transform @ Affine.translation(15, 6), SIZE, SIZE))
    return Files(files.optical, path)


def test_the_verb(misplaced_files, capsys):
    assert cli.main(["align", *map(str, misplaced_files)]) == 0
    line = capsys.readouterr().out
    assert re.match(r"SAR to optical -1\d\.\d+ px right, -\d\.\d+ px down \(.* m\), rotation .* scale .*; moved", line)
    swapped = [*map(str, reversed(misplaced_files)), "--before-is", "sar", "--json"]
    assert cli.main(["align", *swapped]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["moved"]
    assert np.abs(np.add(found["shift_px"], (15, 6))).max() < 1.5
    assert cli.main(["align", *map(str, misplaced_files), "--optical-bands", "2", "--sar-bands", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["moved"]
    assert cli.main(["align", *map(str, misplaced_files), "--limit", "0"]) == 1
    for role in ("optical", "sar"):
        assert cli.main(["align", *map(str, misplaced_files), f"--{role}-bands", "9"]) == 1
        assert re.search(rf"{role}.tif: found \d bands?, expected bands \[9\]", capsys.readouterr().err)


def test_predict_says_what_it_did(misplaced_files, decided, tmp_path):
    alignments = {}
    for how in ("auto", "off", "8"):
        words = ["predict", *map(str, misplaced_files), "-o", str(tmp_path / how), "--weights", str(decided)]
        assert cli.main([*words, "--align", how]) == 0
        alignments[how] = json.loads((tmp_path / how / "summary.json").read_text())["alignment"]
    assert alignments["off"] is None
    assert not alignments["8"]["moved"]
    assert alignments["auto"]["moved"]
    assert alignments["auto"]["inlier_ratio"] > 0.6


@pytest.mark.slow
def test_los_angeles(shared):
    """Two grids, nothing changed: a known misplacement more is found as that much more."""
    folder = shared / "data" / "scene_la"
    pair = Files(folder / "optical.tif", folder / "sar.tif")
    plain = opener(*pair, "optical")
    misplaced = Affine.translation(33, -21) @ Affine.rotation(0.7)
    base, found = find_move(plain), find_move(pair.opener(misplaced, uint8_modality((1, 2, 3))))
    cols, rows = np.meshgrid(np.linspace(300, 2700, 5), np.linspace(300, 1800, 5))
    left = np.hypot(*np.subtract(misplaced @ found.sar_move @ (cols, rows), base.sar_move @ (cols, rows)))
    assert np.median(left) < 0.7
    assert found.inlier_ratio > 0.5
