"""One date on any grid: a file, a Sentinel product, or a folder of granules taken together as one image.

Pixels are resampled once at most: a file whose pixels are those of the grid is read as it is, any other is warped as
it is read (bilinear, minding nodata). How invalid pixels are marked (nodata value, mask band, alpha, NaN) makes no
difference.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio._path import _parse_path, _vsi_path
from rasterio.enums import MaskFlags
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import Affine

from hetecd import vrt
from hetecd.errors import InputError
from hetecd.files import allow_many_files
from hetecd.modality import Floats
from hetecd.place import Place, at_grid, part_of, pixel_of, place_of, side_by_side
from hetecd.products import is_product, product_files
from hetecd.raster import (
    Bools,
    Grid,
    alpha_band,
    check_numbers,
    files_of,
    is_remote,
    nodata_of,
    one_line,
    open_raster,
    read_valid,
    to_float32,
)
from hetecd.tiles import Window

log = logging.getLogger("hetecd")

Read = Callable[[Window], tuple[Floats, Bools]]
GRANULES = (".tif", ".tiff", ".jp2", ".img", ".png", ".jpg", ".jpeg")  # of which a folder may consist
# GDAL approximates a warp by straight pieces off by up to 1/8 of a pixel unless told otherwise; 1/100 costs nothing.
WARP_TOLERANCE_PX = 0.01
MARGIN_PX = 16  # around the box of an image on a grid, for an outline that bulges between the points looked at


@dataclass(frozen=True)
class Granule:
    """One open file."""

    dataset: Any
    place: Place
    path: Path | str


@dataclass(frozen=True)
class Image:
    """One date, open: a file or several granules of one CRS or many; the first by name counts where two overlap.

    Attributes:
        path: the file or folder.
        numbers: the bands that are read, from 1.
        granules: the open files, sorted by name.
    """

    path: Path | str
    numbers: tuple[int, ...]
    granules: tuple[Granule, ...]

    @property
    def place(self) -> Place:
        """Where the first granule lies, for a file: where it lies."""
        return self.granules[0].place

    @property
    def files(self) -> list[str]:
        """Local files that are read, also those behind a container or a virtual raster."""
        return [file for g in self.granules for file in files_of(g.dataset) if not is_remote(file)]

    def on(self, stack: ExitStack, grid: Grid, move: Affine | None = None) -> Read:
        """A function that reads windows of a grid; what it opens is closed with ``stack``.

        Args:
            stack: closes what is opened.
            grid: the grid; without a CRS, where the image has none: then pixels go by their numbers.
            move: what is read at pixel p of the grid is what lies at pixel ``move @ p``.

        Raises:
            InputError: the image does not touch the grid, or its CRS cannot be brought to the grid's.
        """
        target = _moved(grid, move)
        parts = []
        try:
            for granule in self.granules:
                place, plane = side_by_side(_place(granule, grid), target)
                if box := part_of(place, plane):
                    parts.append((box[0] - MARGIN_PX, box[1] + MARGIN_PX, self._reader(stack, granule, place, plane)))
        except (RasterioError, CPLE_BaseError, CRSError) as error:
            raise self._no_way_to(grid, error) from error
        if not parts:
            found = f"{self.place} against {at_grid(grid)}"
            raise InputError(
                f"{self.path}: found no overlap with the grid of the pair ({found}), expected the same place; check "
                "that both files and their CRS are right"
            )

        def read(window: Window) -> tuple[Floats, Bools]:
            values, valid = _nothing(len(self.numbers), window)
            first = window.col, window.row
            last = window.col + window.width, window.row + window.height
            for least, greatest, read_part in parts:
                if (least >= last).any() or (greatest <= first).any():
                    continue
                part, part_valid = read_part(window)
                new = part_valid & ~valid
                values = part if new.all() else np.where(new, part, values)
                valid |= new
                if valid.all():
                    break
            return values, valid

        return read

    def datasets_on(self, stack: ExitStack, grid: Grid, move: Affine | None = None) -> list[Any]:
        """Each granule as a virtual dataset on a grid: float32 with NaN as nodata, with the overviews of its file.

        Read at full size it gives what :meth:`on` gives, shrunk it is read fast. Arguments and errors are those of
        :meth:`on`, but each band can be read once only.
        """
        target = _moved(grid, move)
        try:
            if any((g.place.crs is None) != (grid.crs is None) for g in self.granules):
                raise CRSError("one of the two has none")
            xml = [_warped(g.dataset, self.numbers, *side_by_side(_place(g, grid), target)) for g in self.granules]
            return [stack.enter_context(rasterio.open(text)) for text in xml]
        except (RasterioError, CPLE_BaseError, CRSError) as error:
            raise self._no_way_to(grid, error) from error

    def _no_way_to(self, grid: Grid, error: Exception) -> InputError:
        return InputError(
            f"{self.path}: cannot be brought to {grid.crs} ({one_line(error)}); check the CRS of both images"
        )

    def _reader(self, stack: ExitStack, granule: Granule, place: Place, grid: Grid) -> Read:
        """Reader of one granule that lies at ``place``."""
        offset = _offset(place, grid)
        if offset is not None:
            return lambda window: _read_shifted(granule, self.numbers, window, *offset)
        distinct = sorted(set(self.numbers))
        warped = stack.enter_context(rasterio.open(_warped(granule.dataset, distinct, place, grid)))
        order = tuple(distinct.index(number) + 1 for number in self.numbers)

        def read(window: Window) -> tuple[Floats, Bools]:
            values, valid = read_valid(warped, order, window, granule.path)
            return to_float32(values, valid), valid

        return read


@contextmanager
def open_image(path: Path | str, numbers: Sequence[int]) -> Iterator[Image]:
    """Open a file, or all granules in a folder, for reading some bands.

    Args:
        path: whatever :func:`hetecd.raster.open_raster` takes, or a folder of images or products with a georeference.
        numbers: band numbers from 1, repeats allowed.

    Raises:
        InputError: a file is missing, no raster, of too few bands or complex; a folder is no mosaic.
    """
    with ExitStack() as stack:
        is_folder = os.path.isdir(path)
        if is_folder:
            allow_many_files()  # all granules are open at once
        granules = []
        for file in images_of(path):
            dataset = stack.enter_context(open_raster(file))
            check_numbers(dataset, numbers, file)
            granules.append(Granule(dataset, place_of(dataset, file), file))
        if is_folder:
            _check_mosaic(path, granules)
            _say_once(f"{path}: {_in_words(granules)}, taken as one image")
        yield Image(path, tuple(numbers), tuple(granules))


@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    """Log what holds for an image however often it is opened."""
    log.info(text)


def _in_words(granules: Sequence[Granule]) -> str:
    if len(granules) == 1 and is_product(granules[0].path):
        return f"bands {', '.join(granules[0].dataset.descriptions)} of a product"
    return f"{len(granules)} granule{'s'[: len(granules) != 1]}"


def images_of(path: Path | str) -> Sequence[Path | str]:
    """What an image is opened as: the granules of a folder, or the file itself; errors of :func:`granule_files`."""
    return granule_files(path) if os.path.isdir(path) else [path]


def own_files(path: Path | str) -> list[Path | str]:
    """The files whose pixels an image is: itself, its granules, of a product those of its bands; errors of both."""
    images = images_of(path)
    return [file for image in images for file in (product_files(image).values() if is_product(image) else (image,))]


def granule_files(folder: Path | str) -> list[Path]:
    """Images in a folder, by name, products being one each; InputError where there are none."""
    if is_product(folder):
        return [Path(folder)]
    try:
        names = sorted(
            path
            for path in Path(folder).iterdir()
            if not path.name.startswith(".") and (path.suffix.lower() in GRANULES or is_product(path))
        )
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    if not names:
        raise InputError(
            f"{folder}: found no image, expected granules ({', '.join(GRANULES)}) or a Sentinel product; check the path"
        )
    return names


def are_tiles(before: Path | str, after: Path | str) -> bool:
    """Whether two paths are folders of tiles, to be mapped one by one, rather than images or folders of granules.

    Tiles have the same names in both folders, or no georeference (of which the first of each is asked).
    """
    if not (os.path.isdir(before) and os.path.isdir(after)):
        return False
    names = [granule_files(folder) for folder in (before, after)]
    if any(is_product(path) for paths in names for path in paths):
        return False
    tiles = {path.stem for path in names[0]} == {path.stem for path in names[1]}
    for first, *_ in names:
        with open_raster(first) as dataset:
            tiles = tiles or place_of(dataset, first).crs is None
    if tiles:
        log.info("%s and %s: taken as tiles, each of which is mapped by itself", before, after)
    return tiles


def _check_mosaic(folder: Path | str, granules: Sequence[Granule]) -> None:
    """InputError unless all granules have a georeference and places of their own."""
    seen: dict[Place, Granule] = {}
    for granule in granules:
        if granule.place.crs is None:
            raise InputError(
                f"{granule.path}: found no CRS, expected georeferenced granules in the folder {folder}; georeference "
                "it, or give two folders with the same names in both, which are tiles"
            )
        other = seen.setdefault(granule.place, granule)
        if other is not granule:
            raise InputError(
                f"{folder}: found {Path(other.path).name} and {Path(granule.path).name} of the same grid, expected "
                "one file per place; stack bands to one file (rio stack), keep one date"
            )
    bands = {g.dataset.descriptions for g in granules if is_product(g.path)}
    if len(bands) > 1:
        found = " and ".join(sorted(", ".join(names) for names in bands))
        raise InputError(f"{folder}: found products with the bands {found}, expected the same in all; keep one kind")


def _place(granule: Granule, grid: Grid) -> Place:
    """Where a granule lies; by the numbers of its pixels where the grid has no CRS."""
    return granule.place if grid.crs else replace(granule.place, transform=Affine.identity())


def _moved(grid: Grid, move: Affine | None) -> Grid:
    """The grid on which to read what lies elsewhere by ``move``; of plain pixels where it has no CRS."""
    return replace(grid, transform=(grid.transform if grid.crs else Affine.identity()) @ (move or Affine.identity()))


def _nothing(channels: int, window: Window) -> tuple[Floats, Bools]:
    shape = window.height, window.width
    return np.full((channels, *shape), np.nan, np.float32), np.zeros(shape, bool)


def _offset(place: Place, grid: Grid) -> tuple[int, int] | None:
    """Row and column of the grid's first pixel in an image whose pixels are those of the grid; None for any other."""
    if place.transform is None or place.crs != grid.crs:
        return None
    cols, rows = np.array([0, grid.width, 0]), np.array([0, 0, grid.height])
    at = place.pixel(*(grid.transform @ (cols, rows)))
    shift = np.rint(at[:, 0])
    if np.abs(at - np.array([cols, rows]) - shift[:, None]).max() >= 1e-3:
        return None
    return int(shift[1]), int(shift[0])


def _read_shifted(granule: Granule, numbers: Sequence[int], window: Window, row: int, col: int) -> tuple[Floats, Bools]:
    """A window of an image whose pixel (row, col) is the first of the grid; invalid outside the image."""
    dataset = granule.dataset
    top, left = window.row + row, window.col + col
    rows = max(0, -top), min(window.height, dataset.height - top)
    cols = max(0, -left), min(window.width, dataset.width - left)
    if rows == (0, window.height) and cols == (0, window.width):
        values, valid = read_valid(dataset, numbers, Window(top, left, window.height, window.width), granule.path)
        return to_float32(values, valid), valid
    out, out_valid = _nothing(len(numbers), window)
    if rows[0] < rows[1] and cols[0] < cols[1]:
        inside = Window(top + rows[0], left + cols[0], rows[1] - rows[0], cols[1] - cols[0])
        values, valid = read_valid(dataset, numbers, inside, granule.path)
        out[:, slice(*rows), slice(*cols)] = to_float32(values, valid)
        out_valid[slice(*rows), slice(*cols)] = valid
    return out, out_valid


def _warped(dataset: Any, numbers: Sequence[int], place: Place, grid: Grid) -> str:
    """GDAL's XML for bands of a dataset warped onto a grid, float32 with NaN as nodata.

    Every way to mark invalid pixels becomes NaN first, in a virtual float32 copy: the warp knows one way only. The
    XML is ours because WarpedVRT of rasterio takes no spline, and no transform other than the file's.
    """
    bands = range(1, len(numbers) + 1)
    lines = [
        f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}" subClass="VRTWarpedDataset">',
        f"<SRS>{vrt.wkt(grid.crs)}</SRS>" if grid.crs else "",
        f"<GeoTransform>{vrt.numbers(grid.transform)}</GeoTransform>",
        *(
            f'<VRTRasterBand dataType="Float32" band="{band}" subClass="VRTWarpedRasterBand">'
            "<NoDataValue>nan</NoDataValue></VRTRasterBand>"
            for band in bands
        ),
        "<GDALWarpOptions><ResampleAlg>Bilinear</ResampleAlg><WorkingDataType>Float32</WorkingDataType>",
        '<Option name="INIT_DEST">NO_DATA</Option>',
        '<Option name="UNIFIED_SRC_NODATA">NO</Option>',  # a band is interpolated from its own valid pixels
        *_scales(place, grid),
        f'<SourceDataset relativeToVRT="0">{escape(_float_copy(dataset, numbers))}</SourceDataset>',
        f"<Transformer><ApproxTransformer><MaxError>{WARP_TOLERANCE_PX}</MaxError><BaseTransformer>",
        *_transformer(place, grid),
        "</BaseTransformer></ApproxTransformer></Transformer><BandList>",
        *(
            f'<BandMapping src="{band}" dst="{band}"><SrcNoDataReal>nan</SrcNoDataReal>'
            "<DstNoDataReal>nan</DstNoDataReal></BandMapping>"
            for band in bands
        ),
        "</BandList></GDALWarpOptions></VRTDataset>",
    ]
    return "".join(lines)


def _transformer(place: Place, grid: Grid) -> Iterator[str]:
    """XML of the way from pixels at a place to those of a grid."""
    yield "<GenImgProjTransformer>"
    if place.transform is not None:
        yield f"<SrcGeoTransform>{vrt.numbers(place.transform)}</SrcGeoTransform>"
        yield f"<SrcInvGeoTransform>{vrt.numbers(~place.transform)}</SrcInvGeoTransform>"
    else:
        yield "<SrcTPSTransformer><TPSTransformer><Reversed>0</Reversed><GCPList>"
        yield from vrt.ties(place.ties)
        yield "</GCPList></TPSTransformer></SrcTPSTransformer>"
    if place.crs != grid.crs:
        yield f"<ReprojectTransformer><ReprojectionTransformer><SourceSRS>{vrt.wkt(place.crs)}</SourceSRS>"
        yield f"<TargetSRS>{vrt.wkt(grid.crs)}</TargetSRS></ReprojectionTransformer></ReprojectTransformer>"
    yield f"<DstGeoTransform>{vrt.numbers(grid.transform)}</DstGeoTransform>"
    yield f"<DstInvGeoTransform>{vrt.numbers(~grid.transform)}</DstInvGeoTransform></GenImgProjTransformer>"


def _scales(place: Place, grid: Grid) -> Iterator[str]:
    """XML of the reduction. Left to itself GDAL guesses it block by block, and smooths blocks at the border less."""
    middle = np.array([place.width, place.height]) / 2
    at = pixel_of(place, at_grid(grid), middle[0] + np.array([0.0, 1, 0]), middle[1] + np.array([0.0, 0, 1]))
    scale = np.hypot(*(at[:, 1:] - at[:, :1]))
    if np.isfinite(scale).all():
        for axis, value in zip("XY", scale.tolist(), strict=True):
            yield f'<Option name="{axis}SCALE">{min(1.0, value)!r}</Option>'


def _float_copy(dataset: Any, numbers: Sequence[int]) -> str:
    """GDAL's XML for a virtual float32 copy of some bands in which invalid pixels are NaN.

    A source minds a nodata value or one mask, so where there are several, one copy is made of the other.
    """
    alpha = alpha_band(dataset)
    mask = "" if alpha in numbers else "<UseMaskBand>true</UseMaskBand>"
    nodata = [
        "" if (value := nodata_of(dataset, number)) is None else f"<NODATA>{value!r}</NODATA>" for number in numbers
    ]
    source = os.path.abspath(dataset.name) if os.path.exists(dataset.name) else _vsi_path(_parse_path(dataset.name))
    flags = {flag for number in numbers for flag in dataset.mask_flag_enums[number - 1]}
    # GDAL takes no alpha for the mask that stands beside a nodata value, or is neither uint8 nor uint16.
    unheeded = bool(alpha and mask and MaskFlags.alpha not in flags)
    if unheeded:
        if MaskFlags.per_dataset in flags:  # a mask band beside alpha
            # All but alpha: GDAL would mask it by itself, read as bytes.
            marks = [mask if number != alpha else "" for number in dataset.indexes]
            source = _virtual(dataset, source, dataset.indexes, marks)
        source = _masked_by(dataset, source, alpha)
    if not (any(nodata) and mask and (unheeded or MaskFlags.per_dataset in flags)):
        return _virtual(dataset, source, numbers, [mask + value for value in nodata])
    masked = _virtual(dataset, source, numbers, [mask] * len(numbers))
    return _virtual(dataset, masked, range(1, len(numbers) + 1), nodata)


def _virtual(dataset: Any, source: str, numbers: Sequence[int], marks: Sequence[str]) -> str:
    """XML of a float32 copy of bands of a source as large as a dataset; ``marks`` tell what becomes NaN in each."""
    lines = [f'<VRTDataset rasterXSize="{dataset.width}" rasterYSize="{dataset.height}">']
    for position, (number, mark) in enumerate(zip(numbers, marks, strict=True), 1):
        lines += [
            f'<VRTRasterBand dataType="Float32" band="{position}"><NoDataValue>nan</NoDataValue>',
            f"<ComplexSource>{vrt.source(source, number)}{mark}</ComplexSource></VRTRasterBand>",
        ]
    return "".join([*lines, "</VRTDataset>"])


def _masked_by(dataset: Any, source: str, alpha: int) -> str:
    """XML of a copy of a dataset whose mask is a band of it and that knows no nodata value."""
    lines = [f'<VRTDataset rasterXSize="{dataset.width}" rasterYSize="{dataset.height}">']
    for number in dataset.indexes:
        lines += [
            f'<VRTRasterBand dataType="Float32" band="{number}">',
            f"<SimpleSource>{vrt.source(source, number)}</SimpleSource></VRTRasterBand>",
        ]
    lines += [
        '<MaskBand><VRTRasterBand dataType="Byte">',
        # 255 wherever it is not 0, also where it is negative or would be rounded to 0.
        f"<ComplexSource>{vrt.source(source, alpha)}<ScaleOffset>255</ScaleOffset><ScaleRatio>0</ScaleRatio>",
        "<NODATA>0</NODATA></ComplexSource></VRTRasterBand></MaskBand>",
    ]
    return "".join([*lines, "</VRTDataset>"])
