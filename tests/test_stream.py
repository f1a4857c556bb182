"""Stitched from windows, a real network gives what it gives in one pass; reading keeps ahead and stops when told."""

import dataclasses
import threading
from contextlib import closing

import numpy as np
import pytest
from rasterio.transform import Affine
from scipy import ndimage

from hetecd.config import ModelConfig
from hetecd.errors import InputError
from hetecd.info import ModelInfo
from hetecd.modality import Focusing, uint8_modality
from hetecd.pair import open_pair
from hetecd.raster import Grid, write_raster
from hetecd.stream import Tally, probability_rows
from hetecd.tiles import Window
from hetecd.weights import fresh, predictor

THREE, ONE = uint8_modality((1, 2, 3)), uint8_modality((1,))
SCENE = Grid(None, Affine.identity(), 420, 512)
BORDER_PX = 32


def ours():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("hetecd-")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Smooth images with objects, like a landscape."""
    folder, rng = tmp_path_factory.mktemp("pair"), np.random.default_rng(0)
    for name, bands in (("optical", 3), ("sar", 1)):
        smooth = ndimage.gaussian_filter(rng.standard_normal((bands, *SCENE.shape)), (0, 6, 6))
        objects = np.kron(rng.random((bands, 21, 16)) < 0.2, np.ones((20, 32)))
        image = np.clip(110 + 700 * smooth + 60 * objects, 1, 255).astype(np.uint8)
        write_raster(folder / f"{name}.tif", image, SCENE)
    return folder / "optical.tif", folder / "sar.tif"


def mapped(files, compute, tile_px, overlap_px, batch=4, **options):
    with open_pair(*files, "optical", THREE, ONE) as pair:
        return np.concatenate(list(probability_rows(pair, compute, tile_px, overlap_px, batch, **options)))


def test_stitched_is_one_pass(files):
    """A network that does not standardise: one that does looks at the whole window, see tests/test_surroundings.py."""
    config = ModelConfig("residual_s", 3, 1, width=16)
    net = fresh(config, 0).eval()
    net.info = ModelInfo(model=config, optical=THREE, sar=ONE)
    compute = predictor(net, "cpu", "f32")
    whole = mapped(files, compute, 512, 0)
    inner = np.s_[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
    off = {overlap_px: np.abs(mapped(files, compute, 256, overlap_px) - whole)[inner] for overlap_px in (0, 64)}
    assert off[64].max() < 1e-3
    assert off[0].max() > 3e-3  # it is the overlap that does it


def test_what_counts_for_nothing_is_not_asked_for(files):
    """The predictor gives rubbish there. Of windows that are asked together, that is what counts in none of them."""
    parts = []

    def compute(optical, sar, inner):
        parts.append((len(optical), inner))
        out = np.full((len(optical), *optical.shape[2:]), 7, np.float32)
        out[:, *inner] = (optical[:, 0] + sar[:, 0])[:, *inner] / 510
        return out

    found = mapped(files, Focusing(compute), 256, 64)
    with open_pair(*files, "optical", THREE, ONE) as pair:
        optical, sar, _ = pair.read(Window(0, 0, SCENE.height, SCENE.width))
    np.testing.assert_allclose(found, (optical[0] + sar[0]) / 510, atol=1e-6)
    # Two rows of three windows; a quarter of the overlap counts nothing where there is a neighbour.
    assert parts[0] == (3, (slice(0, 240), slice(0, 256)))
    found = mapped(files, Focusing(compute), 256, 64, batch=1)
    assert parts[-3:] == [(1, (slice(16, 228), cols)) for cols in (slice(0, 240), slice(16, 192), slice(64, 256))]


def test_a_predictor_may_write_to_what_it_is_given(files):
    """The next window shows a part of the same."""

    def careless(optical, sar):
        optical /= 510
        sar /= 510
        return optical[:, 0] + sar[:, 0]

    careful = mapped(files, lambda optical, sar: (optical[:, 0] + sar[:, 0]) / 510, 256, 64)
    for batch in (1, 2):
        np.testing.assert_allclose(mapped(files, careless, 256, 64, batch=batch), careful, atol=1e-6)


def test_a_part_asks_the_predictor_what_the_whole_does(files):
    """So that a run which goes on gives the same bytes, rounding in the predictor included."""

    def rounding(optical, sar):
        return np.clip(optical.mean(1) / 300 + len(optical) / 1000 + np.arange(len(optical))[:, None, None] / 500, 0, 1)

    whole = mapped(files, rounding, 96, 24)
    for row in (1, 150, 300, 419):
        part = Window(row, 0, SCENE.height - row, SCENE.width)
        assert np.array_equal(mapped(files, rounding, 96, 24, part=part), whole[row:])


def test_closed_early_nothing_reads_on(files):
    with open_pair(*files, "optical", THREE, ONE) as pair:
        rows = probability_rows(pair, lambda optical, sar: np.zeros((len(optical), *optical.shape[2:])), 64, 16, 1)
        with closing(rows):
            next(rows)
    assert not ours()


def test_an_error_of_the_reader_is_raised_here(files, tmp_path):
    content = files[1].read_bytes()
    (tmp_path / "sar.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated or damaged"):
        mapped(
            (files[0], tmp_path / "sar.tif"), lambda optical, sar: np.zeros((len(optical), *optical.shape[2:])), 64, 16
        )
    assert not ours()


def test_windows_are_counted(files, tmp_path):
    nothing = np.zeros((1, *SCENE.shape), np.uint8)
    nothing[0, 100:140, 300:310] = 7
    write_raster(tmp_path / "sar.tif", nothing, SCENE, nodata=0)
    calls, tally = [], Tally()

    def compute(optical, sar):
        calls.append(len(optical))
        return np.full((len(optical), *optical.shape[2:]), 0.25)

    found = mapped((files[0], tmp_path / "sar.tif"), compute, 64, 16, tally=tally)
    assert np.array_equal(found == 0.25, nothing[0] == 7)
    assert dataclasses.astuple(tally) == (9 * 11, 9 * 11 - sum(calls))
    assert sum(calls) == 2  # two rows of windows; of the two that show it in each, it counts in one
