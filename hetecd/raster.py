"""The pixel grid, reading rasters with their validity, writing GeoTIFFs that are whole.

A pixel is valid where every band read is: not the nodata value, not masked by a mask band or by alpha, finite, and not
as huge as only a nodata value is that nobody declared.
Nothing here ever leaves a half-written file under its final name, see :mod:`hetecd.files`.
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from hetecd.errors import InputError
from hetecd.files import replacing, writing
from hetecd.modality import Floats
from hetecd.products import is_product, product_vrt
from hetecd.tiles import Window

Bools = NDArray[np.bool_]
WGS84 = CRS.from_epsg(4326)
HUGE = 1e30  # beyond what is measured; programs like -3.4e38 for nodata, and do not always say so

# GDAL keeps pixels that it has unpacked; unless told otherwise, in a twentieth of the machine's memory.
os.environ.setdefault("GDAL_CACHEMAX", "128")  # MB

READING = {  # in force both when a file is opened and when it is read
    # Otherwise a window read through a warp is warped by itself, rounded otherwise than the same part of the whole.
    "GDAL_VRT_WARP_USE_DATASET_RASTERIO": "NO",
    # Otherwise the missing end of a truncated PNG is whatever stood in memory, without an error.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
    # Over a network: no listing of the folder, patience with a server that is busy, none with one that is dead.
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_CONNECTTIMEOUT": "15",
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
}


DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_:]?(0[1-9]|1[0-2])[-_:]?(0[1-9]|[12]\d|3[01])(?!\d)")
CLOCK = re.compile(r"[T ]([01]\d|2[0-3]):?([0-5]\d):?([0-5]\d)(?!\d)")
DAY_TAGS = (
    "ACQUISITIONDATETIME", "ACQUISITION_DATETIME", "ACQUISITION_DATE", "SENSING_TIME", "PRODUCT_START_TIME",
    "DATE_ACQUIRED", "datetime", "DATE", "TIFFTAG_DATETIME",
)  # fmt: skip

PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z")
# Names of no file that GDAL still opens: URLs, its own file systems, parts of containers (GPKG:FILE:TABLE). A single
# letter before the colon is a drive of Windows.
FOR_GDAL = re.compile(r"/vsi|[A-Za-z][A-Za-z0-9+_.-]*://|[A-Za-z][A-Za-z0-9_]+:")


@dataclass(frozen=True)
class Grid:
    """Where pixels lie: a CRS, an affine transform and a size. Rotated and non-square pixels are fine.

    Attributes:
        crs: coordinate reference system; None for tiles without georeference.
        transform: pixel (col, row) to coordinate (x, y), the outer corner of pixel (0, 0) being (0, 0).
        height: rows.
        width: columns.
    """

    crs: CRS | None
    transform: Affine
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top of the box around the grid, in units of the CRS."""
        x, y = self.transform @ (np.array([0, self.width, 0, self.width]), np.array([0, 0, self.height, self.height]))
        return float(x.min()), float(y.min()), float(x.max()), float(y.max())

    @property
    def res(self) -> tuple[float, float]:
        """Edge lengths of a pixel along a row and along a column, in units of the CRS."""
        t = self.transform
        return float(np.hypot(t.a, t.d)), float(np.hypot(t.b, t.e))

    def window(self, window: Window) -> "Grid":
        """The part of this grid that a window covers."""
        offset = Affine.translation(window.col, window.row)
        return Grid(self.crs, self.transform @ offset, window.height, window.width)


@dataclass(frozen=True)
class Raster:
    """One image in memory.

    Attributes:
        array: (C, H, W) in the dtype of the file.
        valid: (H, W) bool, True where every band is usable.
        grid: where it lies.
    """

    array: NDArray[Any]
    valid: Bools
    grid: Grid


def read_raster(path: Path | str, bands: Sequence[int] = ()) -> Raster:
    """Read one image of any format GDAL reads.

    Args:
        path: PNG, JPEG, TIFF, ... uint8, uint16, float, ...
        bands: band numbers from 1, in the order wanted, repeats allowed; empty = all but alpha. Alpha named by its
            number counts as data: GDAL calls the fourth of any four uint8 bands alpha.

    Raises:
        InputError: the file is missing, no raster, truncated, complex-valued, or lacks a band.
    """
    with open_raster(path) as dataset:
        numbers = tuple(bands) or data_bands(dataset)
        check_numbers(dataset, numbers, path)
        array, valid = read_valid(dataset, numbers, None, path)
        grid = grid_of(dataset)
    return Raster(array, valid, grid)


def to_float32(array: NDArray[Any], valid: Bools) -> Floats:
    """(C, H, W) of any dtype to float32 with NaN where ``valid`` (H, W) is False."""
    if not valid.any():  # much of a large scene
        return np.full(array.shape, np.nan, np.float32)
    with np.errstate(over="ignore"):  # such as nodata of float64
        out = array.astype(np.float32)
    np.copyto(out, np.float32(np.nan), where=~valid)
    return out


@contextmanager
def open_raster(path: Path | str) -> Iterator[Any]:
    """Open for reading; InputError when the file is missing or no raster.

    Args:
        path: a file, or what else GDAL takes for a raster: https://..., /vsi..., NETCDF:FILE:VARIABLE; or the folder
            of a product, see :mod:`hetecd.products`.
    """
    name = str(path)
    product = os.path.isdir(name) and is_product(path)
    remedy = "unpack it" if name.lower().endswith(PACKED) else ""
    if not product and not FOR_GDAL.match(name) and not os.path.isfile(name):
        found = "a folder" if os.path.isdir(name) else "no such file"
        raise InputError(f"{name}: found {found}, expected a raster; check the path")
    try:
        with rasterio.Env(**READING), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # tiles have no georeference, which is fine
            dataset = rasterio.open(product_vrt(path) if product else name)
    except (RasterioError, OSError, UnicodeError) as error:
        hint = "check the address, or download the file" if is_remote(name) else "use GeoTIFF, PNG or JPEG"
        remedy = remedy or ("unpack it anew" if product else hint)
        raise InputError(f"{name}: not a raster that GDAL can read ({one_line(error)}); {remedy}") from None
    with dataset:
        if dataset.count == 0:
            names = dataset.subdatasets
            remedy = remedy or (f"name one of them, such as {names[0]}" if names else "export one of them")
            raise InputError(f"{name}: found a container of {len(names)} rasters, expected one image; {remedy}")
        if "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS"):  # GDAL would show the pixels of whatever it names
            raise InputError(
                f"{name}: found overviews in another file (OVERVIEW_FILE); copy it with gdal_translate -nomd"
            )
        yield dataset


def is_remote(name: str) -> bool:
    """Whether an open dataset's name is a URL or in a file system of GDAL's own, rather than a file of this machine."""
    return name.startswith("/vsi") or ("://" in name and not name.startswith("file://"))


def files_of(dataset: Any) -> list[str]:
    """Files and URLs that an open dataset is read from, itself first where it is one, also those behind them."""
    # Asked about a URL, GDAL would look for two dozen companions over the network.
    found = [dataset.name] if is_remote(dataset.name) else list(dataset.files)
    for file in found:  # which grows: a virtual raster names the next ones only
        if file.lower().endswith(".vrt") and file != dataset.name:
            with open_raster(file) as inner:
                found += [name for name in inner.files if name not in found]
    return found


def crs_text(crs: CRS) -> str:
    """The EPSG code of a CRS, WKT where none is exactly it: left to itself PROJ also names codes that are near."""
    epsg = crs.to_epsg(confidence_threshold=100)
    return f"EPSG:{epsg}" if epsg else crs.to_wkt()


def crs_name(text: str) -> str:
    """A CRS as :func:`crs_text` gives it, in a few words: EPSG code or name."""
    return text if text.startswith("EPSG:") else text.split('"')[1]


def grid_of(dataset: Any) -> Grid:
    """Grid of an open rasterio dataset."""
    return Grid(dataset.crs or None, dataset.transform, dataset.height, dataset.width)


def data_bands(dataset: Any) -> tuple[int, ...]:
    """Band numbers from 1 of all bands but alpha."""
    alpha = alpha_band(dataset)
    return tuple(number for number in dataset.indexes if number != alpha) or tuple(dataset.indexes)


def day_of(dataset: Any, path: Path | str) -> tuple[str, str] | None:
    """Day of an open image (ISO 8601) and what says so, its name or a tag; None where nothing does.

    Of the tags the last one, TIFFTAG_DATETIME, often tells when the file was written.
    """
    found = time_of(dataset, path)
    return (found[0].date().isoformat(), found[2]) if found else None


def time_of(dataset: Any, path: Path | str) -> tuple[datetime, datetime, str] | None:
    """When an image began and ended to be taken (UTC), as far as is told, and what says so, as :func:`day_of`.

    The names of Sentinel's and many other products tell a second (20210730T154809), others a day.
    """
    tags = {**dataset.tags(ns="IMAGERY"), **dataset.tags()}
    sources = {"file name": Path(path).name, **{tag: str(tags[tag]) for tag in DAY_TAGS if tag in tags}}
    for source, text in sources.items():
        if found := DAY.search(text):
            try:
                first = datetime(*map(int, found.groups()), tzinfo=UTC)  # type: ignore[misc,arg-type]
            except ValueError:  # the 31st of a month of 30 days is no date
                continue
            if clock := CLOCK.match(text, found.end()):
                first += timedelta(**dict(zip(("hours", "minutes", "seconds"), map(int, clock.groups()), strict=True)))
                return first, first, source
            return first, first + timedelta(days=1, seconds=-1), source
    return None


def alpha_band(dataset: Any) -> int:
    """Number of the alpha band, 0 if there is none."""
    return next((n for n, c in zip(dataset.indexes, dataset.colorinterp, strict=True) if c == ColorInterp.alpha), 0)


def check_numbers(dataset: Any, numbers: Sequence[int], path: Path | str) -> None:
    """InputError unless all band numbers exist and are real-valued."""
    if min(numbers) < 1 or max(numbers) > dataset.count:
        raise InputError(
            f"{path}: found {dataset.count} band{'s'[: dataset.count != 1]}, expected bands {list(numbers)} "
            "(counted from 1); use another file, other bands or other weights"
        )
    dtypes = {dataset.dtypes[number - 1] for number in numbers}
    if any(dtype.startswith("complex") for dtype in dtypes):
        raise InputError(f"{path}: found complex pixels, expected real ones; convert to amplitude or power first")


def read_valid(
    dataset: Any, numbers: Sequence[int], window: Window | None, path: Path | str
) -> tuple[NDArray[Any], Bools]:
    """Read bands (C, h, w) in the dtype of the file and their joint validity (h, w); InputError on read errors."""
    part = (
        None if window is None else ((window.row, window.row + window.height), (window.col, window.col + window.width))
    )
    distinct = sorted(set(numbers))
    try:
        with rasterio.Env(**READING):
            array = dataset.read(distinct, window=part)
            valid = np.ones(array.shape[1:], bool)
            for mask_of in _mask_bands(dataset, distinct):
                valid &= dataset.read_masks(mask_of, window=part) != 0
            alpha = alpha_band(dataset)
            if alpha and alpha not in distinct:
                valid &= dataset.read(alpha, window=part) != 0
    except (RasterioError, OSError) as error:
        hint = "try again, or download the file" if is_remote(str(path)) else "the file seems truncated or damaged"
        raise InputError(f"{path}: cannot read its pixels ({one_line(error)}); {hint}") from None
    for plane, number in zip(array, distinct, strict=True):
        # A mask band hides the nodata value from GDAL's mask, so the value is always looked at here.
        nodata = nodata_of(dataset, number)
        if nodata is not None and not np.isnan(nodata):
            valid &= plane != nodata
        if plane.dtype.kind == "f":
            valid &= np.abs(plane) < HUGE
    if list(numbers) != distinct:
        array = array[[distinct.index(number) for number in numbers]]
    return array, valid


def nodata_of(dataset: Any, number: int) -> float | None:
    """The value that by itself marks invalid pixels of a band; None where it takes those of all bands, or nothing."""
    value: float | None = dataset.nodatavals[number - 1]
    return None if by_all_values(dataset.mask_flag_enums[number - 1]) else value


def by_all_values(flags: Sequence[MaskFlags]) -> bool:
    """Whether a pixel is invalid where every band has its value (NODATA_VALUES), as GDAL's mask has it."""
    return MaskFlags.nodata in flags and MaskFlags.per_dataset in flags


def _mask_bands(dataset: Any, numbers: Sequence[int]) -> list[int]:
    """The bands whose mask bands must be read: one for a mask of the whole file, none where values tell."""
    flags = [dataset.mask_flag_enums[number - 1] for number in numbers]
    masked = [
        number
        for number, flag in zip(numbers, flags, strict=True)
        if by_all_values(flag) or not {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha} & set(flag)
    ]
    shared = all(MaskFlags.per_dataset in flag for flag in flags)
    return masked[:1] if shared else masked


def one_line(error: BaseException) -> str:
    """An exception's text (that of its cause, where GDAL hides it there) on one line."""
    text = str(error.__cause__ or error)
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def writing_gdal(path: Path | str) -> Iterator[None]:
    """As :func:`hetecd.files.writing`, also for what GDAL complains of while writing ``path``."""
    with writing(path):
        try:
            yield
        except (RasterioError, CPLE_BaseError) as error:
            raise OSError(one_line(error)) from error
        except SystemError as error:
            raise OSError("GDAL failed and gives no reason; a limit on files or disk?") from error


def write_raster(path: Path | str, array: NDArray[Any], grid: Grid, nodata: float | None = None) -> None:
    """Write a small image, whole or not at all: GeoTIFF, or PNG where the name ends so (without georeference).

    Args:
        path: ends in .tif, .tiff or .png; an existing file is replaced.
        array: (C, H, W) or (H, W); for PNG uint8 or uint16 with 1, 3 or 4 channels.
        grid: must be of the size of the array.
        nodata: value that marks invalid pixels.

    Raises:
        OutputError: the folder is not writable or the disk is full.
        InputError: array and grid differ in size, or the format cannot hold the array.
    """
    path = Path(path)
    planes = array if array.ndim == 3 else array[None]
    if planes.ndim != 3 or planes.shape[1:] != grid.shape:
        raise InputError(f"{path}: found an array of shape {array.shape}, expected (C, H, W) with H, W = {grid.shape}")
    if planes.dtype == bool:
        planes = planes.astype(np.uint8)
    options: dict[str, Any] = {"driver": "PNG"}
    if path.suffix.lower() != ".png":
        options = {"driver": "GTiff", "compress": "deflate", "bigtiff": "if_safer", "crs": grid.crs}
        options |= {"transform": grid.transform} if grid.transform != Affine.identity() else {}
        # Unasked, GDAL would call the fourth of four uint8 bands alpha, that is: take near infrared for a mask.
        options |= {"photometric": "minisblack", "alpha": "no"} if planes.shape[0] != 3 else {}
    options |= {"count": planes.shape[0], "height": grid.height, "width": grid.width, "dtype": planes.dtype}
    # Built in memory, because GDAL does not report a disk that fills up while it closes a file.
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with memory.open(nodata=nodata, **options) as dataset:
                dataset.write(planes)
        except (RasterioError, CPLE_BaseError, TypeError, ValueError) as error:
            raise InputError(f"{path}: {options['driver']} cannot hold this array ({one_line(error)})") from error
        with replacing(path) as part:
            part.write_bytes(memory.getbuffer())
