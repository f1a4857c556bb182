"""Images larger than memory: written in parts, then joined into one Cloud Optimized GeoTIFF.

Each part, and the whole, is complete when it has its name.
"""

import shutil
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from hetecd.errors import OutputError
from hetecd.files import replacing
from hetecd.raster import Grid, one_line, writing_gdal
from hetecd.tiles import BLOCK_PX, Window

COG_PER_PART = 1.7  # bytes of disk while a COG is made: itself, and its overviews once more beside it


def write_part(path: Path, array: NDArray[Any]) -> int:
    """Write an image (H, W) for :func:`write_cog`, quickly packed; it is on disk, and whole, when it has its name.

    Returns:
        The CRC-32 of the file, by which it is known to be undamaged.

    Raises:
        OutputError: the folder is not writable or the disk is full.
    """
    options = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "compress": "deflate", "zlevel": 1}
    # Storing the bytes of neighbouring values apart makes floats much smaller; classes deflate best as they are.
    options |= {"predictor": 3 if array.dtype.kind == "f" else 1, "count": 1, "dtype": array.dtype}
    options |= {"height": array.shape[0], "width": array.shape[1]}
    # Built in memory, because GDAL does not report a disk that fills up while it closes a file.
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="GTiff", **options) as dataset:
            dataset.write(array, 1)
        with replacing(path, durable=True) as part:
            part.write_bytes(memory.getbuffer())
        return zlib.crc32(memory.getbuffer())


def read_part(path: Path) -> NDArray[Any]:
    """The image (H, W) of :func:`write_part`.

    Raises:
        OutputError: it is gone or damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as dataset:
                return dataset.read(1)
        except (RasterioError, CPLE_BaseError) as error:
            raise OutputError(
                f"{path}: cannot read this finished part ({one_line(error)}); the same command once more makes it anew"
            ) from error


def write_cog(
    path: Path | str,
    grid: Grid,
    parts: Mapping[Window, Path],
    dtype: str,
    nodata: float,
    overviews: str = "average",
    tags: Mapping[str, str] | None = None,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
) -> None:
    """Join parts of an image of one band into a Cloud Optimized GeoTIFF, whole or not at all.

    Where there is no part there is no data, which costs neither memory nor disk and little time. The finished file is
    read back and compared with the parts.

    Args:
        path: final name.
        grid: where the image lies.
        parts: files of :func:`write_part` and where they belong; best with corners on multiples of ``BLOCK_PX``.
        dtype: "uint8", "float32", ...: that of the parts.
        nodata: value of invalid pixels, may be NaN.
        overviews: how overviews are resampled: "average", "mode", "nearest".
        tags: metadata of the file.
        colours: red, green, blue (0 to 255) of values, for a colour table; uint8 only.

    Raises:
        OutputError: the folder is not writable, the disk is full, or a part is damaged.
    """
    path = Path(path)
    with replacing(path) as final, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        _need_space(final.parent, COG_PER_PART * sum(part.stat().st_size for part in parts.values()))
        joined = final.with_suffix(".vrt")
        joined.write_text(_join(grid, parts, dtype, nodata, tags or {}, colours or {}), encoding="utf-8")
        smooth = np.dtype(dtype).kind == "f"
        try:
            with writing_gdal(path):
                rasterio.shutil.copy(
                    joined, final, driver="COG", compress="deflate", predictor="yes" if smooth else "no",
                    bigtiff="if_safer", sparse_ok="yes", overview_resampling=overviews,
                )  # fmt: skip
        except OutputError as error:
            for part in parts.values():
                if part.name in str(error):
                    read_part(part)  # says more if that is at fault
            raise
        _compare(final, parts, path)


def _join(
    grid: Grid,
    parts: Mapping[Window, Path],
    dtype: str,
    nodata: float,
    tags: Mapping[str, str],
    colours: Mapping[int, tuple[int, int, int]],
) -> str:
    """GDAL's XML for a virtual image of the parts."""
    kind = {"uint8": "Byte", "float32": "Float32"}[dtype]
    lines = [f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">']
    if grid.crs is not None:
        lines.append(f"<SRS>{escape(grid.crs.to_wkt())}</SRS>")
    if not grid.transform.is_identity:
        lines.append(f"<GeoTransform>{', '.join(map(repr, grid.transform.to_gdal()))}</GeoTransform>")
    lines += ["<Metadata>", *(f'<MDI key="{escape(k)}">{escape(v)}</MDI>' for k, v in tags.items()), "</Metadata>"]
    lines.append(f'<VRTRasterBand dataType="{kind}" band="1"><NoDataValue>{nodata!r}</NoDataValue>')
    if colours:
        table = (colours.get(value, (0, 0, 0)) for value in range(256))
        entries = "".join('<Entry c1="{}" c2="{}" c3="{}" c4="255"/>'.format(*colour) for colour in table)
        lines.append(f"<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable>")
    for window, part in parts.items():
        size = f'xSize="{window.width}" ySize="{window.height}"'
        lines += [
            f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(part.absolute()))}</SourceFilename>',
            # Said here, so that no part is opened before it is needed.
            f'<SourceBand>1</SourceBand><SourceProperties RasterXSize="{window.width}" RasterYSize="{window.height}" ',
            f'DataType="{kind}" BlockXSize="{BLOCK_PX}" BlockYSize="{BLOCK_PX}"/>',
            f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{window.col}" yOff="{window.row}" {size}/>',
            "</SimpleSource>",
        ]
    return "\n".join([*lines, "</VRTRasterBand></VRTDataset>"])


def _compare(path: Path, parts: Mapping[Window, Path], final: Path) -> None:
    """Raise OutputError unless the file holds what the parts do; a disk that fills up late loses blocks silently."""
    with writing_gdal(final), rasterio.open(path) as dataset:
        for window, part in parts.items():
            rows = (window.row, window.row + window.height)
            found = dataset.read(1, window=(rows, (window.col, window.col + window.width)))
            if found.tobytes() != read_part(part).tobytes():
                raise OSError("found other pixels than written; is the disk full or failing?")


def _need_space(folder: Path, size_bytes: float) -> None:
    """Raise OutputError where the disk has less left. GDAL would find out late, and chatter on stderr about it."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes:
        raise OutputError(
            f"{folder}: found {free_bytes / 1e6:.1f} MB free, expected at least {size_bytes / 1e6:.1f} MB; "
            "free space or choose another folder"
        )
