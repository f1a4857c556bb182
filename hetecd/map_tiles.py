"""Square pieces of large rasters, read on demand at the resolution that a screen shows, with rio-tiler.

Zoom levels are those of the grid of a result: at level ``levels(grid)`` a pixel of a tile is one of the grid, and each
level below halves that, down to one tile for everything. A file with overviews, such as a COG, is only read in part.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rio_tiler.errors import NoOverviewWarning, RioTilerError
from rio_tiler.io import ImageReader

from hetecd.errors import InputError
from hetecd.image import open_image
from hetecd.modality import Floats
from hetecd.preview import coarseness, shrink
from hetecd.raster import Grid, one_line

warnings.simplefilter("ignore", NoOverviewWarning)  # for good: to catch warnings is not for threads

TILE_PX = 256
FINER = 4  # how much finer what has no overviews is read, and averaged: GDAL would take single pixels
MOST_PX = 3000  # edge of what is read at once; larger pictures are read less finely


def levels(grid: Grid) -> int:
    """The zoom level at which a pixel of a tile is one of the grid."""
    return max(0, math.ceil(math.log2(max(grid.shape) / TILE_PX)))


def read_tile(
    path: Path, numbers: Sequence[int], grid: Grid, zoom: int, col: int, row: int, move: Affine | None = None
) -> Floats:
    """One tile (C, 256, 256) of an image on a grid, NaN where it is invalid or outside.

    Args:
        path: an image with any place on earth, or without one where the grid has none.
        numbers: its bands, from 1, none twice.
        grid: of the result.
        zoom: from 0 to :func:`levels`.
        col: of the tile, from 0 on the left.
        row: of the tile, from 0 at the top.
        move: how the image lies elsewhere than its georeference says, see :meth:`hetecd.image.Image.on`.

    Raises:
        InputError: there is no such tile, or the file is damaged or cannot be brought to the grid.
    """
    factor = 2 ** (levels(grid) - zoom)
    edge = TILE_PX * factor
    if zoom > levels(grid) or col * edge >= grid.width or row * edge >= grid.height:
        raise InputError(f"tile: found {zoom}/{col}/{row}, which is not on this map")
    return _read(path, numbers, grid, factor, move, lambda reader, finer: reader.tile(col, row, zoom, TILE_PX * finer))


def read_whole(path: Path, numbers: Sequence[int], grid: Grid, most_px: int, move: Affine | None = None) -> Floats:
    """The image on the whole grid (C, h, w), shrunk so that no edge is longer than ``most_px``; NaN where invalid.

    Raises:
        InputError: the file is damaged or cannot be brought to the grid.
    """
    box = (0.0, float(grid.height), float(grid.width), 0.0)
    finest = min(coarseness(grid, most_px), max(1, MOST_PX // most_px))
    return _read(path, numbers, grid, finest, move, lambda reader, finer: reader.part(box, max_size=most_px * finer))


def _read(
    path: Path,
    numbers: Sequence[int],
    grid: Grid,
    finest: int,
    move: Affine | None,
    read: Callable[[ImageReader, int], Any],
) -> Floats:
    """What ``read`` gives of each granule, made one; without overviews up to ``finest`` times finer, then shrunk."""
    edge = TILE_PX << levels(grid)  # virtual rasters cannot be read beyond their edge
    with ExitStack() as stack:
        image = stack.enter_context(open_image(path, numbers))
        out = None
        for dataset in image.datasets_on(stack, replace(grid, height=edge, width=edge), move):
            finer = 1 if dataset.overviews(1) else min(FINER, finest)
            try:
                pixels = read(ImageReader(str(path), dataset=dataset), finer).array
            except (RioTilerError, RasterioError, OSError) as error:
                raise InputError(f"{path}: cannot be read ({one_line(error)}); truncated or damaged?") from error
            bands = (band.filled(np.nan).astype(np.float32)[None] for band in pixels)
            part = np.concatenate([shrink(band, finer) for band in bands])
            out = part if out is None else np.where(np.isfinite(out), out, part)
        assert out is not None
        return out
