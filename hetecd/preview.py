"""Small pictures of large images: shrunk strip by strip on the grid of a result, stretched, encoded for a page."""

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from hetecd.config import Role
from hetecd.image import granule_files, open_image
from hetecd.modality import Floats
from hetecd.raster import Grid, data_bands, open_raster
from hetecd.tiles import Window

NODATA = (128, 128, 128)  # in pictures without transparency
_MOST = {"optical": 4, "sar": 1}  # bands that `picture` knows what to do with
STRIP_PX = 256  # rows in memory at a time, about


def strips(grid: Grid, factor: int) -> Iterator[Window]:
    """Windows of the full width from top to bottom; all but the last have a multiple of ``factor`` rows."""
    rows = max(1, round(STRIP_PX / factor)) * factor
    for row in range(0, grid.height, rows):
        yield Window(row, 0, min(rows, grid.height - row), grid.width)


def shrink(image: Floats, factor: int) -> Floats:
    """Mean of the valid pixels of each block of ``factor`` x ``factor``; (C, H, W), NaN = invalid."""
    if factor == 1:
        return image
    missing = [-size % factor for size in image.shape[1:]]
    padded = np.pad(image, ((0, 0), (0, missing[0]), (0, missing[1])), constant_values=np.nan)
    bands, height, width = padded.shape
    blocks = padded.reshape(bands, height // factor, factor, width // factor, factor)
    valid = np.isfinite(blocks)
    total, count = np.where(valid, blocks, 0).sum((2, 4)), valid.sum((2, 4))
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count, np.float32)  # 0 / 0 is NaN


def read_small(grid: Grid, image_path: Path | str, is_: Role, factor: int, move: Affine | None = None) -> Floats:
    """An image (C, h, w) on a grid, shrunk; never held in memory as a whole.

    Optical: up to four bands, as :func:`picture` wants them; SAR: the first.

    Args:
        grid: of the result.
        image_path: what to read; warped as for a prediction where its grid is another.
        is_: what it is an image of.
        factor: edge of the blocks of pixels that become one.
        move: how it was moved for the prediction, see :func:`hetecd.pair.open_pair`.

    Raises:
        InputError: the file is missing or damaged, or shows another place.
    """
    first = granule_files(image_path)[0] if os.path.isdir(image_path) else image_path
    with ExitStack() as stack:
        numbers = data_bands(stack.enter_context(open_raster(first)))[: _MOST[is_]]
        read = stack.enter_context(open_image(image_path, numbers)).on(stack, grid, move)
        parts = [shrink(read(window)[0], factor) for window in strips(grid, factor)]
    return np.concatenate(parts, axis=1)


def picture(image: Floats) -> NDArray[np.uint8]:
    """A raw image (C, H, W), NaN = invalid, as (H, W, 3) uint8: first three bands or grey, stretched 2 to 98 %.

    Four bands or more are taken to be blue, green, red, ... as satellites store them.
    """
    bands = (2, 1, 0) if len(image) > 3 else (0, 1, 2) if len(image) == 3 else (0, 0, 0)
    shown = image[list(bands)]
    positive = shown[np.isfinite(shown) & (shown > 0)]
    if len(image) < 3 and positive.size and np.nanmax(shown) > 20 * np.median(positive):
        shown = np.log(np.maximum(shown, np.float32(1e-6)))  # SAR as power: a linear stretch would be black
    out = np.zeros((*image.shape[1:], 3), np.uint8)
    for k, band in enumerate(shown):
        seen = band[np.isfinite(band)]
        if seen.size:
            low, high = np.percentile(seen, (2, 98))
            out[..., k] = np.nan_to_num(np.clip((band - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    out[~np.isfinite(image).all(0)] = NODATA
    return out


def encode(image: NDArray[np.uint8], driver: str, **options: Any) -> bytes:
    """An image (H, W) or (H, W, C) uint8 as the bytes of a file.

    Args:
        image: grey, RGB or RGBA.
        driver: of GDAL: "PNG", "WEBP".
        options: of that driver, such as ``quality=75``.
    """
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    size = {"count": len(planes), "height": planes.shape[1], "width": planes.shape[2], "dtype": "uint8"}
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver=driver, **size, **options) as dataset:
            dataset.write(planes)
        return bytes(memory.getbuffer())
