"""Small pictures of large images: shrunk strip by strip on the grid of a result, stretched, encoded for a page."""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from hetecd.config import Role
from hetecd.image import images_of, open_image
from hetecd.modality import Floats, looks_like
from hetecd.products import BANDS, is_product
from hetecd.raster import Grid, data_bands, open_raster
from hetecd.tiles import Window

NODATA = (128, 128, 128)  # in pictures without transparency
STRIP_PX = 256  # rows in memory at a time, about


def strips(grid: Grid, factor: int) -> Iterator[Window]:
    """Windows of the full width from top to bottom; all but the last have a multiple of ``factor`` rows."""
    rows = max(1, round(STRIP_PX / factor)) * factor
    for row in range(0, grid.height, rows):
        yield Window(row, 0, min(rows, grid.height - row), grid.width)


def coarseness(grid: Grid, most_px: int) -> int:
    """Edge of the blocks of pixels that become one, so that no edge of a picture is longer than ``most_px``."""
    return math.ceil(max(grid.shape) / most_px)


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


def shown_bands(image_path: Path | str, is_: Role) -> tuple[int, ...]:
    """Numbers of the bands that :func:`picture` wants of an image: up to four of an optical one, the first of SAR."""
    first = images_of(image_path)[0]
    if is_ == "optical" and is_product(first):
        return tuple(BANDS.index(band) + 1 for band in ("B04", "B03", "B02"))
    with open_raster(first) as dataset:
        return data_bands(dataset)[: 4 if is_ == "optical" else 1]


def read_small(grid: Grid, image_path: Path | str, is_: Role, factor: int, move: Affine | None = None) -> Floats:
    """The shown bands of an image (C, h, w) on a grid, shrunk; never held in memory as a whole.

    Args:
        grid: of the result.
        image_path: what to read; warped as for a prediction where its grid is another.
        is_: what it is an image of.
        factor: edge of the blocks of pixels that become one.
        move: how it was moved for the prediction, see :func:`hetecd.pair.open_pair`.

    Raises:
        InputError: the file is missing or damaged, or shows another place.
    """
    with ExitStack() as stack:
        read = stack.enter_context(open_image(image_path, shown_bands(image_path, is_))).on(stack, grid, move)
        parts = [shrink(read(window)[0], factor) for window in strips(grid, factor)]
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Stretch:
    """How raw values become brightness.

    Attributes:
        log: of the logarithm, as for SAR as power, which would be black.
        low: value per shown band that becomes 0.
        high: value per shown band that becomes 255.
    """

    log: bool
    low: tuple[float, ...]
    high: tuple[float, ...]


def stretch(image: Floats) -> Stretch:
    """Percentiles 2 and 98 of the shown bands of an image (C, H, W), NaN = invalid; for parts of it, too."""
    shown = _shown(image)
    valid = shown[np.isfinite(shown)]
    positive = valid[valid > 0]
    power = len(image) < 3 and positive.size and looks_like(shown) != "decibels"
    log = bool(power and valid.max() > 20 * np.median(positive))
    seen = [band[np.isfinite(band)] for band in (_log(shown) if log else shown)]
    limits = [np.percentile(band, (2, 98)).tolist() if band.size else (0.0, 1.0) for band in seen]
    low, high = zip(*limits, strict=True)
    return Stretch(log, low, high)


def picture(image: Floats, how: Stretch | None = None) -> NDArray[np.uint8]:
    """A raw image (C, H, W), NaN = invalid, as (H, W, 3) uint8: first three bands or grey.

    Four bands or more are taken to be blue, green, red, ... as satellites store them. ``how`` is by default that of
    :func:`stretch` of the image itself.
    """
    how, shown = how or stretch(image), _shown(image)
    low, high = (np.array(values, np.float32)[:, None, None] for values in (how.low, how.high))
    scaled = ((_log(shown) if how.log else shown) - low) / np.maximum(high - low, np.float32(1e-6))
    out = np.nan_to_num(np.clip(scaled, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    out[~np.isfinite(image).all(0)] = NODATA
    return out


def _shown(image: Floats) -> Floats:
    """Red, green and blue (3, H, W) of an image."""
    bands = (2, 1, 0) if len(image) > 3 else (0, 1, 2) if len(image) == 3 else (0, 0, 0)
    return image[list(bands)]


def _log(image: Floats) -> Floats:
    return np.log(np.maximum(image, np.float32(1e-6)))


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
