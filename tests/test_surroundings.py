"""Whatever window shows a pixel, a network that standardises its bands sees the same there."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import Affine
from scipy import ndimage

import hetecd
from hetecd import surroundings
from hetecd.config import ModelConfig
from hetecd.flags import DEFAULT_WEIGHTS
from hetecd.info import ModelInfo
from hetecd.modality import Scaled, mirrored, standardised, uint8_modality, windows_of
from hetecd.pair import open_pair
from hetecd.raster import Grid, write_raster
from hetecd.stream import probability_rows
from hetecd.surroundings import CELL_PX, FLAT, REACH, SAMPLE_PX, Surroundings, seen_by
from hetecd.tiles import Window
from hetecd.weights import fresh, predictor

THREE, ONE = uint8_modality((1, 2, 3)), uint8_modality((1,))
CRS_M = CRS.from_epsg(32633)
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
SHAPE = 900, 1300


def nothing(optical, sar):
    raise AssertionError("not asked here")


STANDARDISES = Scaled(nothing, THREE, ONE, standardises=True)


def landscape(bands, shape, seed=0):
    """Smooth, brighter to one side, with objects."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((bands, *shape)), (0, 6, 6))
    objects = ndimage.zoom(rng.random((bands, -(-shape[0] // 20), -(-shape[1] // 20))) < 0.2, (1, 20, 20), order=0)
    slope = np.linspace(0, 60, shape[1])
    return np.clip(70 + slope + 700 * smooth + 60 * objects[:, : shape[0], : shape[1]], 1, 255).astype(np.uint8)


def write(folder, optical, sar, sar_place=PLACE):
    for name, image, place in (("optical", optical, PLACE), ("sar", sar, sar_place)):
        write_raster(folder / f"{name}.tif", image, Grid(CRS_M, place, *image.shape[1:]), nodata=0)
    return folder / "optical.tif", folder / "sar.tif"


def opened(files):
    return open_pair(*files, "optical", THREE, ONE)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """SAR is warped; a hole that is wider than what counts around a pixel, and an island in it."""
    optical, sar = landscape(3, SHAPE), landscape(1, SHAPE, 1)
    optical[:, 100:800, 500:1290] = 0
    optical[:, 330:350, 900:910] = 140
    return write(tmp_path_factory.mktemp("pair"), optical, sar, PLACE @ Affine.rotation(4) @ Affine.scale(1.05))


@pytest.fixture(scope="module")
def wholes(files):
    """The whole as it is seen where all rows are looked at, and where a quarter is."""
    return {small_px: whole(files, small_px) for small_px in (0, 2048)}


def whole(files, small_px):
    with pytest.MonkeyPatch.context() as patch, opened(files) as pair:
        patch.setattr(surroundings, "SMALL_PX", small_px)
        return seen(around(pair), pair, Window(0, 0, *SHAPE))


def around(pair):
    return Surroundings(STANDARDISES, pair.grid.shape, pair.read)


def seen(view, pair, window):
    return view.see(window, *pair.read(window)[:2])


@settings(deadline=None, max_examples=25)
@given(st.data(), st.sampled_from((0, 2048)))
def test_a_window_shows_what_the_whole_does(files, wholes, data, small_px):
    """To the last bit, in any order, however many strips are kept."""
    with pytest.MonkeyPatch.context() as patch, opened(files) as pair:
        patch.setattr(surroundings, "SMALL_PX", small_px)
        patch.setattr(surroundings, "KEPT", data.draw(st.sampled_from((1, 100))))
        view = around(pair)
        for _ in range(2):
            row, col = data.draw(st.integers(0, SHAPE[0] - 1)), data.draw(st.integers(0, SHAPE[1] - 1))
            height, width = (data.draw(st.integers(1, min(400, n))) for n in (SHAPE[0] - row, SHAPE[1] - col))
            part = np.s_[..., row : row + height, col : col + width]
            expected = [image[part] for image in wholes[small_px]]
            found = seen(view, pair, Window(row, col, height, width))
            for one, other in zip(found, expected, strict=True):
                assert np.array_equal(one, other)


@pytest.mark.parametrize("small_px", [0, 2048])
def test_it_is_standardised(wholes, small_px):
    """Nowhere infinite or far off, 0 where invalid, about 0 and 1 on average; the bands themselves come first."""
    for image, bands in zip(wholes[small_px], (3, 1), strict=True):
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert np.abs(image).max() < 12
        valid = (image[:bands] != 0).any(0)
        assert (image[bands:, ~valid] == 0).all()
        assert valid.mean() > 0.3
        for band in image[bands:]:
            assert abs(band[valid].mean()) < 0.15
            assert 0.75 < band[valid].std() < 1.1  # FLAT makes it a little less


def test_against_the_plain_sums(files, wholes):
    """Four pixels around the middle of a cell have on average what the squares around it have."""
    row, col = 1, 2
    with opened(files) as pair:
        sar = ONE.normalise(pair.read(Window(0, 0, *SHAPE))[1])[0]
    cells = [slice(max(0, at - REACH) * CELL_PX, (at + REACH + 1) * CELL_PX) for at in (row, col)]
    around = sar[cells[0], cells[1]].astype(np.float64)
    around = around[around != 0]
    middle = [(at * CELL_PX + CELL_PX // 2 + np.array([-1, 0])) for at in (row, col)]
    values, found = (image[np.ix_(*middle)].mean() for image in (sar, wholes[2048][1][1]))
    assert found == pytest.approx((values - around.mean()) / (around.std() + FLAT), abs=2e-3)


def test_a_small_scene_is_one_tile(tmp_path):
    """What the network itself would make of it."""
    optical, sar = landscape(3, (300, 500)), landscape(1, (300, 500), 1)
    optical[:, :, 420:] = 0
    with opened(write(tmp_path, optical, sar)) as pair:
        window = Window(0, 0, 300, 500)
        images, raw = seen(around(pair), pair, window), pair.read(window)[:2]
    for image, modality, found in zip(raw, (THREE, ONE), images, strict=True):
        np.testing.assert_allclose(found, standardised(modality.normalise(image)[None])[0], atol=1e-4)


def test_an_island_between_the_rows_that_are_looked_at(files, wholes):
    """Rows 330 to 350 are none of those, and nothing else is near: it is standardised by itself."""
    assert SAMPLE_PX <= 330 - CELL_PX
    island = wholes[0][0][3:, 330:350, 900:910]
    assert np.abs(island).max() < 3
    plain = wholes[0][0][:3, 330:350, 900:910]
    assert (plain != 0).all()


def test_a_band_of_one_value_is_zero(tmp_path):
    optical, sar = landscape(3, (280, 600)), landscape(1, (280, 600))
    optical[1] = 90
    with opened(write(tmp_path, optical, sar)) as pair:
        image, _ = seen(around(pair), pair, Window(0, 0, 280, 600))
    assert np.abs(image[4]).max() < 1e-4
    assert image[3].std() > 0.5


def test_rows_that_are_looked_at(tmp_path, monkeypatch):
    """A quarter, once, and only around the windows."""
    monkeypatch.setattr(surroundings, "SMALL_PX", 0)
    shape = 2100, 600
    with opened(write(tmp_path, landscape(3, shape), landscape(1, shape))) as pair:
        windows = []
        read = pair.read
        monkeypatch.setattr(pair, "read", lambda window: (windows.append(window), read(window))[1])
        view = around(pair)
        nothing_valid = [np.full((n, 256, 256), np.nan, np.float32) for n in (3, 1)]
        for row in (0, 100, 200):
            view.see(Window(row, 0, 256, 256), *nothing_valid)
        assert [(w.row, w.height, w.width) for w in sorted(windows, key=lambda w: w.row)] == [
            (256 * i, SAMPLE_PX, 600) for i in range(5)
        ]


def test_a_predictor_in_another_shape_still_standardises():
    """Measured, or with mirror images; a function that says nothing is asked as it is."""
    for shaped in (dataclasses.replace(STANDARDISES, compute=lambda optical, sar: sar[:, 0]), mirrored(STANDARDISES)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(surroundings, "Surroundings", lambda *told: SimpleNamespace(see=told))
            assert seen_by(shaped, (1, 1), nothing) == (shaped.compute, (shaped, (1, 1), nothing))
    without = Scaled(nothing, THREE, ONE)
    for plain in (nothing, without):
        assert seen_by(plain, (1, 1), nothing) == (plain, None)


def mapped(files, compute, tile_px, overlap_px, shape):
    with open_pair(*files, "optical", compute.optical, compute.sar) as pair:
        ask, see = seen_by(compute, pair.grid.shape, pair.read)
        rows = np.concatenate(list(probability_rows(pair, ask, tile_px, overlap_px, 1, see=see)))
    assert rows.shape == shape
    return rows


def test_stitched_is_one_pass(tmp_path):
    """Of a network that standardises; the scene is no multiple of its stride."""
    config = ModelConfig("residual_s", 3, 1, width=16, standardise=True, detail=True)
    net = fresh(config, 0).eval()
    net.info = ModelInfo(model=config, optical=THREE, sar=ONE)
    shape = 430, 523
    files = write(tmp_path, landscape(3, shape), landscape(1, shape, 1))
    compute = predictor(net, "cpu", "f32")
    single, stitched = (mapped(files, compute, *plan, shape) for plan in ((544, 0), (256, 64)))
    inner = np.s_[32:-32, 32:-32]
    assert np.abs(stitched - single)[inner].max() < 1e-3
    with opened(files) as pair:  # window by window it is not
        apart = np.concatenate(list(probability_rows(pair, compute, 256, 64, 1)))
    assert np.abs(apart - single)[inner].max() > 3e-3


def test_stitched_is_one_pass_with_the_weights_that_come_along(tmp_path):
    """In the windows that they are mapped in unless told otherwise: two across."""
    net = hetecd.load(DEFAULT_WEIGHTS)
    shape = 224, 2560
    files = write(tmp_path, landscape(3, shape), landscape(1, shape, 1))
    compute = predictor(net, "cpu", "f32")
    assert windows_of(compute) == windows_of(mirrored(compute)) == (1536, 512)
    assert windows_of(partial(compute)) == (512, 128)  # a predictor that nobody knows
    single, usual, narrow = (
        mapped(files, compute, *plan, shape) for plan in ((2560, 0), windows_of(compute), (512, 128))
    )
    inner = np.s_[32:-32, 32:-32]
    assert np.abs(usual - single)[inner].max() < 1e-3
    assert np.abs(narrow - single)[inner].max() > 1e-3
    assert np.abs(narrow - single)[inner].mean() < 5e-3


def test_mirror_images_of_windows_agree_too(tmp_path):
    """Also where the scene ends at no multiple of the stride."""
    net = hetecd.load(DEFAULT_WEIGHTS)
    shape = 64, 1000
    files = write(tmp_path, landscape(3, shape), landscape(1, shape, 1))
    compute = mirrored(predictor(net, "cpu", "f32"))
    single, stitched = (mapped(files, compute, *plan, shape) for plan in ((1024, 0), (768, 512)))
    assert np.abs(stitched - single).max() < 1e-3


def test_around_an_island_nothing_is_computed(tmp_path):
    """What lies farther than the network looks is left out, and it makes no difference."""
    net = hetecd.load(DEFAULT_WEIGHTS)
    shape = 600, 900
    land = np.zeros(shape, bool)
    land[280:350, 150:260] = True
    files = write(tmp_path, landscape(3, shape) * land, landscape(1, shape, 1) * land)
    compute = predictor(net, "cpu", "f32")
    everything = dataclasses.replace(compute, compute=partial(compute.compute))  # which nothing is spared
    found, wanted = (mapped(files, ask, *windows_of(compute), shape) for ask in (compute, everything))
    assert np.array_equal(np.isnan(found), ~land)
    assert 0 < np.abs(found - wanted)[land].max() < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (20, 700)])
def test_scenes_smaller_than_a_window(tmp_path, shape):
    config = ModelConfig("residual_s", 3, 1, width=16, standardise=True)
    net = fresh(config, 0).eval()
    net.info = ModelInfo(model=config, optical=THREE, sar=ONE)
    files = write(tmp_path, landscape(3, shape), landscape(1, shape, 1))
    assert np.isfinite(mapped(files, predictor(net, "cpu", "f32"), 256, 64, shape)).all()
