"""Two open images of two dates on one pixel grid, read window by window.

The grid is that of the optical image; SAR is warped onto it as it is read. How invalid pixels are marked (nodata
value, mask band, alpha, NaN) makes no difference.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio._path import _parse_path, _vsi_path
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_points

from hetecd.config import Role
from hetecd.errors import InputError
from hetecd.modality import Floats, Modality
from hetecd.raster import (
    Bools,
    Grid,
    alpha_band,
    check_numbers,
    grid_of,
    one_line,
    open_raster,
    read_valid,
    to_float32,
)
from hetecd.tiles import Window

# GDAL approximates a warp by straight pieces off by up to 1/8 of a pixel unless told otherwise; 1/100 costs nothing.
WARP_TOLERANCE_PX = 0.01
# What the pixels of two files without CRS lie in while one of them is moved; any plane will do.
PLANE = CRS.from_wkt('LOCAL_CS["pixels",UNIT["metre",1]]')


class Pair:
    """Two open images on one pixel grid; made by :func:`open_pair`.

    Reading takes a lock, for GDAL's datasets serve one thread at a time.

    Attributes:
        grid: the grid of the optical image.
        optical_path: file of the optical image.
        sar_path: file of the SAR image.
        before_is: which of the two the earlier date is.
        files: local files that the two are read from, also those behind a container or a virtual raster.
    """

    def __init__(
        self,
        grid: Grid,
        optical_path: Path | str,
        sar_path: Path | str,
        before_is: Role,
        files: Sequence[str],
        read_optical: Callable[[Window], tuple[Floats, Bools]],
        read_sar: Callable[[Window], tuple[Floats, Bools]],
    ) -> None:
        self.grid = grid
        self.optical_path = optical_path
        self.sar_path = sar_path
        self.before_is: Role = before_is
        self.files = tuple(files)
        self._read_optical = read_optical
        self._read_sar = read_sar
        self._lock = threading.Lock()

    def read(self, window: Window) -> tuple[Floats, Floats, Bools]:
        """Read a window inside the grid; it equals the same part of any larger window to the last bit.

        Returns:
            optical (Co, h, w) and sar (Cs, h, w), float32 in the units of the files, NaN where that image is invalid;
            valid (h, w), True where both are usable.

        Raises:
            InputError: a file turns out to be damaged.
        """
        with self._lock:
            optical, optical_valid = self._read_optical(window)
            sar, sar_valid = self._read_sar(window)
        return optical, sar, optical_valid & sar_valid


@contextmanager
def open_pair(
    before: Path | str,
    after: Path | str,
    before_is: Role,
    optical: Modality,
    sar: Modality,
    sar_move: Affine | None = None,
) -> Iterator[Pair]:
    """Open two images on the grid of the optical one; SAR is warped onto it as it is read (bilinear, minding nodata).

    Two files without CRS and of equal size are used pixel by pixel.

    Args:
        before: file of the earlier date.
        after: file of the later date.
        before_is: which of the two the earlier date is.
        optical: which bands are read from the optical file.
        sar: which bands are read from the SAR file.
        sar_move: corrects where the SAR image lies (see :mod:`hetecd.align`): what is at pixel (col, row) of the grid
            is found where the SAR image, by its georeference, would lie at pixel ``sar_move @ (col, row)``. It becomes
            part of the one warp.

    Raises:
        InputError: a file is missing, no raster or has too few bands; only one has a CRS; they do not overlap.
    """
    optical_path, sar_path = (before, after) if before_is == "optical" else (after, before)
    with ExitStack() as stack:
        optical_data = stack.enter_context(open_raster(optical_path))
        sar_data = stack.enter_context(open_raster(sar_path))
        for data, modality, path in ((optical_data, optical, optical_path), (sar_data, sar, sar_path)):
            check_numbers(data, modality.bands, path)
        grid, sar_grid = grid_of(optical_data), grid_of(sar_data)
        if _same_pixels(grid, sar_grid, optical_path, sar_path) and sar_move is None:
            read_sar = _reader(sar_data, sar.bands, sar_path)
        else:
            distinct = sorted(set(sar.bands))
            target, source = _planes(grid, sar_grid, sar_move or Affine.identity())
            try:
                _check_overlap(target, source, optical_path, sar_path)
                warped = stack.enter_context(_warp(stack, sar_data, distinct, source, target))
            except (RasterioError, CPLE_BaseError, CRSError) as error:
                raise InputError(
                    f"{sar_path}: cannot be brought to the CRS of {optical_path} ({one_line(error)}); check both CRS"
                ) from error
            read_sar = _reader(warped, tuple(distinct.index(band) + 1 for band in sar.bands), sar_path)
        files = [*_local_files(optical_data), *_local_files(sar_data)]
        read_optical = _reader(optical_data, optical.bands, optical_path)
        yield Pair(grid, optical_path, sar_path, before_is, files, read_optical, read_sar)


def _reader(dataset: Any, numbers: Sequence[int], path: Path | str) -> Callable[[Window], tuple[Floats, Bools]]:
    def read(window: Window) -> tuple[Floats, Bools]:
        array, valid = read_valid(dataset, numbers, window, path)
        return to_float32(array, valid), valid

    return read


def _local_files(dataset: Any) -> list[str]:
    """Files of this machine that an open dataset consists of."""
    name = dataset.name
    # Asked about a URL, GDAL would look for two dozen companions over the network.
    remote = name.startswith("/vsi") or ("://" in name and not name.startswith("file://"))
    return [] if remote else dataset.files


def _same_pixels(grid: Grid, sar_grid: Grid, optical_path: Path | str, sar_path: Path | str) -> bool:
    """True where pixel (row, col) of one file is that of the other; InputError where no relation is known."""
    if (grid.crs is None) != (sar_grid.crs is None):
        without, other = (optical_path, sar_path) if grid.crs is None else (sar_path, optical_path)
        raise InputError(
            f"{without}: found no CRS while {other} has one, expected both or neither; georeference it (gdal_edit.py)"
        )
    cols, rows = np.array([0, grid.width, 0]), np.array([0, 0, grid.height])
    offset = np.subtract(grid.transform @ (cols, rows), sar_grid.transform @ (cols, rows))
    near = bool(np.abs(offset).max() < 1e-3 * min(grid.res))
    if grid.crs is not None:
        return grid.crs == sar_grid.crs and grid.shape == sar_grid.shape and near
    if grid.shape != sar_grid.shape:
        raise InputError(
            f"{sar_path}: found {sar_grid.height} x {sar_grid.width} pixels, expected {grid.height} x {grid.width} as "
            f"in {optical_path}, for neither has a CRS; georeference both or bring them to one size"
        )
    plain = Affine.identity()
    if not near and plain not in (grid.transform, sar_grid.transform):
        raise InputError(f"{sar_path}: found another transform than in {optical_path} but no CRS in either; assign it")
    return True


def _planes(grid: Grid, sar_grid: Grid, sar_move: Affine) -> tuple[Grid, Grid]:
    """The grid on which to read the moved SAR image, and that on which it lies; in pixels where there is no CRS."""
    if grid.crs is None:
        plane = replace(grid, crs=PLANE, transform=Affine.identity())
        return replace(plane, transform=sar_move), plane
    return replace(grid, transform=grid.transform @ sar_move), sar_grid


def _pixel_of(source: Grid, target: Grid, cols: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.float64]:
    """Pixel coordinates (2, n) as (col, row) in ``target`` of those in ``source``; infinite where there is none."""
    x, y = source.transform @ (cols, rows)
    x, y = transform_points(source.crs, target.crs, x, y)
    return np.array(~target.transform @ (np.asarray(x), np.asarray(y)))


def _check_overlap(grid: Grid, sar_grid: Grid, optical_path: Path | str, sar_path: Path | str) -> None:
    """InputError when the box around the SAR image, in optical pixels, misses the optical image."""
    along = np.linspace(0, 1, 33)
    zero, one = np.zeros(33), np.ones(33)
    cols = np.concatenate([along, along, zero, one]) * sar_grid.width
    rows = np.concatenate([zero, one, along, along]) * sar_grid.height
    at = _pixel_of(sar_grid, grid, cols, rows)
    at = at[:, np.isfinite(at).all(0)]
    size = np.array([grid.width, grid.height])
    if at.size == 0 or (at.max(1) <= 0).any() or (at.min(1) >= size).any():
        raise InputError(
            f"{sar_path}: found no overlap with {optical_path} (bounds {_box(sar_grid)} and {_box(grid)}), expected "
            "the same place; check that both files and their CRS are right"
        )


def _box(grid: Grid) -> str:
    return f"[{', '.join(f'{v:.7g}' for v in grid.bounds)}] in {grid.crs}"


def _warp(stack: ExitStack, dataset: Any, numbers: Sequence[int], source_grid: Grid, grid: Grid) -> Any:
    """Virtual dataset of the bands, which lie on ``source_grid``, on ``grid``; float32 with NaN as nodata.

    Every way to mark invalid pixels becomes NaN first, in a virtual float32 copy: the warp knows one way only.
    """
    # Left to itself GDAL guesses the reduction from what a block holds, and smooths blocks at the border less.
    middle = np.array([source_grid.width, source_grid.height]) / 2
    cols, rows = middle[0] + np.array([0.0, 1, 0]), middle[1] + np.array([0.0, 0, 1])
    at = _pixel_of(source_grid, grid, cols, rows)
    scale = np.hypot(*(at[:, 1:] - at[:, :1]))
    extras = {}
    if np.isfinite(scale).all():
        extras = {"XSCALE": repr(min(1.0, float(scale[0]))), "YSCALE": repr(min(1.0, float(scale[1])))}
    source = stack.enter_context(rasterio.open(_float_copy(dataset, numbers, source_grid)))
    return WarpedVRT(
        source,
        crs=grid.crs,
        transform=grid.transform,
        height=grid.height,
        width=grid.width,
        resampling=Resampling.bilinear,
        tolerance=WARP_TOLERANCE_PX,
        nodata=float("nan"),
        dtype="float32",
        UNIFIED_SRC_NODATA="NO",  # a band is interpolated from its own valid pixels
        **extras,
    )


def _float_copy(dataset: Any, numbers: Sequence[int], grid: Grid) -> str:
    """GDAL's XML for a virtual float32 copy of some bands, lying on ``grid``, in which invalid pixels are NaN."""
    assert grid.crs is not None
    lines = [
        f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">',
        f"<SRS>{escape(grid.crs.to_wkt())}</SRS>",
        f"<GeoTransform>{', '.join(map(repr, grid.transform.to_gdal()))}</GeoTransform>",
    ]
    name = os.path.abspath(dataset.name) if os.path.exists(dataset.name) else _vsi_path(_parse_path(dataset.name))
    alpha_is_data = alpha_band(dataset) in numbers
    for position, number in enumerate(numbers, 1):
        nodata = dataset.nodatavals[number - 1]
        lines += [
            f'<VRTRasterBand dataType="Float32" band="{position}"><NoDataValue>nan</NoDataValue><ComplexSource>',
            f'<SourceFilename relativeToVRT="0">{escape(name)}</SourceFilename><SourceBand>{number}</SourceBand>',
            "" if nodata is None else f"<NODATA>{nodata!r}</NODATA>",
            "" if alpha_is_data else "<UseMaskBand>true</UseMaskBand>",
            "</ComplexSource></VRTRasterBand>",
        ]
    return "".join([*lines, "</VRTDataset>"])
