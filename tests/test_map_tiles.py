"""Tiles hold the pixels that a prediction would read, on the grid of the result, and nothing beside the image."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine, from_origin

from hetecd.errors import InputError
from hetecd.image import open_image
from hetecd.map_tiles import TILE_PX, levels, read_tile, read_whole
from hetecd.preview import shrink
from hetecd.raster import Grid, write_raster
from hetecd.tiles import Window

UTM = CRS.from_epsg(32611)
GRID = Grid(UTM, from_origin(500_000, 4_000_000, 10, 10), 300, 700)
OTHER = Grid(CRS.from_epsg(3857), from_origin(-13_028_500, 4_321_500, 14, 14), 320, 680)


def _image(path: Path, grid: Grid, bands: int = 1) -> Path:
    image = np.random.default_rng(0).random((bands, *grid.shape), np.float32) + 1
    image[:, :20, :50] = 0
    write_raster(path, image, grid, nodata=0)
    return path


def test_levels_reach_one_tile() -> None:
    for shape, wanted in (((1, 256), 0), ((257, 9), 1), ((300, 700), 2), ((9, 10_000), 6)):
        assert levels(Grid(None, Affine.identity(), *shape)) == wanted


@pytest.mark.parametrize("move", [None, Affine.translation(3.5, -2) @ Affine.rotation(1)], ids=["", "moved"])
@pytest.mark.parametrize("own", [GRID, OTHER], ids=["same grid", "other CRS"])
def test_the_finest_tile_is_what_a_prediction_reads(tmp_path: Path, own: Grid, move: Affine | None) -> None:
    path = _image(tmp_path / "image.tif", own, bands=2)
    tile = read_tile(path, (2, 1), GRID, levels(GRID), 1, 0, move)
    with ExitStack() as stack:
        read = stack.enter_context(open_image(path, (2, 1))).on(stack, GRID, move)
        wanted, _ = read(Window(0, TILE_PX, TILE_PX, TILE_PX))
    assert np.isfinite(wanted).any()
    np.testing.assert_allclose(tile, wanted, rtol=1e-6)


def test_a_coarse_tile_is_the_mean(tmp_path: Path) -> None:
    path = _image(tmp_path / "image.tif", GRID)
    tile = read_tile(path, (1,), GRID, 0, 0, 0)
    with ExitStack() as stack:
        read = stack.enter_context(open_image(path, (1,))).on(stack, GRID)
        wanted = shrink(read(Window(0, 0, 300, 700))[0], 4)
    assert np.isnan(tile[:, 75:]).all()
    assert np.isnan(tile[:, :, 175:]).all()
    np.testing.assert_allclose(tile[:, :75, :175], wanted, rtol=1e-5)
    assert read_whole(path, (1,), GRID, 100).shape == (1, 43, 100)


def test_no_place_on_earth_and_granules(tmp_path: Path) -> None:
    plain = Grid(None, Affine.identity(), 300, 700)
    path = _image(tmp_path / "plain.tif", plain)
    assert np.isfinite(read_tile(path, (1,), plain, 2, 2, 0)[0, :256, :188]).all()
    for name, left in (("a", 500_000), ("b", 503_500)):
        _image(tmp_path / "granules" / f"{name}.tif", Grid(UTM, from_origin(left, 4_000_000, 10, 10), 300, 350))
    both = read_tile(tmp_path / "granules", (1,), GRID, 0, 0, 0)
    assert np.isfinite(both[0, 10:75, :175]).all()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    path = _image(tmp_path / "image.tif", GRID)
    for place in ((2, 3, 0), (2, 0, 2), (3, 0, 0)):
        with pytest.raises(InputError, match="which is not on this map"):
            read_tile(path, (1,), GRID, *place)
    with pytest.raises(InputError, match="cannot be brought to"):
        read_tile(_image(tmp_path / "plain.tif", Grid(None, Affine.identity(), 300, 700)), (1,), GRID, 0, 0, 0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"truncated or damaged\?|not a raster"):
        read_whole(path, (1,), GRID, 700)
    with pytest.raises(InputError, match=r"truncated or damaged\?|not a raster"):
        read_tile(path, (1,), GRID, 2, 0, 1)
