"""Sentinel products as they are downloaded: an unpacked folder ``*.SAFE``, taken as one image without a copy of it.

Of Sentinel-2 (L1C and L2A) it has the bands of :data:`BANDS` at 10 m, each pixel of 20 m four times; of Sentinel-1 GRD
the polarisations, placed by their ground control points. What is 0 is no data in both.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rasterio

from hetecd import vrt
from hetecd.errors import InputError

# Short-wave infrared, near infrared and red come first: the false colour that the weights which come along know.
BANDS = ("B12", "B08", "B04", "B03", "B02")
POLARISATIONS = ("vv", "vh", "hh", "hv")


def is_product(path: Path | str) -> bool:
    """Whether a path is the folder of a product, whatever its name."""
    return any(os.path.isdir(Path(path) / name) for name in ("measurement", "GRANULE"))


def product_files(folder: Path | str) -> dict[str, Path]:
    """The file of each band of a product, in order.

    Raises:
        InputError: it is another product than these, or not the whole of it.
    """
    root = Path(folder)
    if measured := _images(root, "measurement/*", (".tif", ".tiff")):
        found = {key.upper(): path for key in POLARISATIONS for path in measured if f"-{key}-" in path.name.lower()}
        if len(found) < len(measured):
            raise InputError(
                f"{folder}: found {len(measured)} measurements, such as {measured[0].name}, expected one for each "
                "polarisation; take the GRD product of this scene"
            )
        return found
    images = sorted(_images(root, "GRANULE/*/IMG_DATA/**/*", (".jp2",)), key=_metres)
    if not images:
        raise InputError(
            f"{folder}: found neither measurement/*.tiff nor GRANULE/*/IMG_DATA/*.jp2, expected a Sentinel-1 GRD or a "
            "Sentinel-2 product; unpack it anew, or take another product"
        )
    if len({path.relative_to(root).parts[1] for path in images}) > 1:
        raise InputError(f"{folder}: found several granules, expected one; stack the bands of one of them to one file")
    named = {band: [path for path in images if re.search(rf"_{band}(_\d+m)?\.jp2$", path.name)] for band in BANDS}
    if missing := [band for band, paths in named.items() if not paths]:
        raise InputError(f"{folder}: found no {', '.join(missing)}, expected all of {', '.join(BANDS)}; unpack it anew")
    return {band: paths[0] for band, paths in named.items()}  # the finest


def _images(root: Path, pattern: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Files by name, but for those that a system hides."""
    return sorted(p for p in root.glob(pattern) if p.suffix.lower() in suffixes and not p.name.startswith("."))


def _metres(path: Path) -> int:
    found = re.search(r"_(\d+)m\.jp2$", path.name)
    return int(found[1]) if found else 0


def product_vrt(folder: Path | str) -> str:
    """GDAL's XML for the image that a product is taken as.

    Raises:
        InputError: see :func:`product_files`; or a file holds no digital numbers, as in SLC products.
        RasterioError: a file cannot be read.
    """
    files = product_files(folder)
    parts = {}
    for band, path in files.items():
        with rasterio.open(path) as dataset:
            if dataset.dtypes[0] != "uint16":
                raise InputError(
                    f"{path}: found {dataset.dtypes[0]}, expected counts (uint16); take the GRD product of this scene"
                )
            parts[band] = dataset.shape, "".join(_placed(dataset))
    (height, width), place = max(parts.values())
    lines = [f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{place}']
    for number, (band, (shape, _)) in enumerate(parts.items(), 1):
        sizes = zip(("SrcRect", "DstRect"), (shape, (height, width)), strict=True)
        rectangles = [f'<{name} xOff="0" yOff="0" xSize="{cols}" ySize="{rows}"/>' for name, (rows, cols) in sizes]
        lines += [
            f'<VRTRasterBand dataType="UInt16" band="{number}"><Description>{band}</Description>',
            f"<NoDataValue>0</NoDataValue><SimpleSource>{vrt.source(str(files[band].resolve()), 1)}",
            *rectangles,
            "</SimpleSource></VRTRasterBand>",
        ]
    return "".join([*lines, "</VRTDataset>"])


def _placed(dataset: Any) -> Iterator[str]:
    """XML of where an open dataset lies."""
    ties, crs = dataset.gcps
    if ties and crs:
        yield f'<GCPList Projection="{vrt.wkt(crs)}">'
        yield from vrt.ties(ties)
        yield "</GCPList>"
    elif dataset.crs:
        yield f"<SRS>{vrt.wkt(dataset.crs)}</SRS>"
        yield f"<GeoTransform>{vrt.numbers(dataset.transform)}</GeoTransform>"
