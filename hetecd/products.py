"""Sentinel products as they are downloaded: a folder ``*.SAFE``, taken as one image without a copy of it.

Of Sentinel-2 (L1C and L2A) it has the bands of :data:`BANDS` at 10 m, each pixel of 20 m four times; of Sentinel-1 GRD
the polarisations, placed by their ground control points. What is 0 is no data in both.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import rasterio

from hetecd.errors import InputError

# Short-wave infrared, near infrared and red come first: the false colour that the weights which come along know.
BANDS = ("B12", "B08", "B04", "B03", "B02")
POLARISATIONS = ("vv", "vh", "hh", "hv")
EXPECTED = "all of a Sentinel-1 GRD or Sentinel-2 product of one granule; unpack it anew, or name one of its images"


def is_product(path: Path | str) -> bool:
    """Whether a path is the folder of a product."""
    return Path(path).suffix.upper() == ".SAFE" and Path(path).is_dir()


def product_files(folder: Path | str) -> dict[str, Path]:
    """The file of each band of a product, in order.

    Raises:
        InputError: it is no such product, or not the whole of it.
    """
    root = Path(folder)
    if measured := sorted(root.glob("measurement/*.tiff")):
        found = {key.upper(): path for key in POLARISATIONS for path in measured if f"-{key}-" in path.name}
        if len(found) == len(measured):
            return found
        raise InputError(
            f"{folder}: found {len(measured)} measurements, such as {measured[0].name}, expected {EXPECTED}"
        )
    granules = [path for path in root.glob("GRANULE/*") if path.is_dir()]
    images = sorted(root.glob("GRANULE/*/IMG_DATA/**/*.jp2"), key=_metres)
    found = {}
    for band in BANDS:
        files = [path for path in images if re.search(rf"_{band}(_\d+m)?\.jp2$", path.name)]
        if not files or len(granules) > 1:
            what = f"{len(granules)} granules" if files or not images else f"no {band}"
            raise InputError(f"{folder}: found {what}, expected {EXPECTED}")
        found[band] = files[0]  # the finest
    return found


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
                raise InputError(f"{path}: found {dataset.dtypes[0]}, expected {EXPECTED}")
            parts[band] = dataset.shape, "".join(_placed(dataset))
    (height, width), place = max(parts.values())
    lines = [f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{place}']
    for number, (band, (shape, _)) in enumerate(parts.items(), 1):
        sizes = zip(("SrcRect", "DstRect"), (shape, (height, width)), strict=True)
        rectangles = [f'<{name} xOff="0" yOff="0" xSize="{cols}" ySize="{rows}"/>' for name, (rows, cols) in sizes]
        lines += [
            f'<VRTRasterBand dataType="UInt16" band="{number}"><Description>{band}</Description>',
            '<NoDataValue>0</NoDataValue><SimpleSource><SourceFilename relativeToVRT="0">',
            f"{escape(str(files[band].resolve()))}</SourceFilename><SourceBand>1</SourceBand>",
            *rectangles,
            "</SimpleSource></VRTRasterBand>",
        ]
    return "".join([*lines, "</VRTDataset>"])


def _placed(dataset: Any) -> Iterator[str]:
    """XML of where an open dataset lies."""
    ties, crs = dataset.gcps
    if ties:
        wkt = escape(crs.to_wkt(), {'"': "&quot;"})
        yield f'<GCPList Projection="{wkt}">'
        for tie in ties:
            yield f'<GCP Id="" Pixel="{tie.col!r}" Line="{tie.row!r}" X="{tie.x!r}" Y="{tie.y!r}" Z="{tie.z or 0!r}"/>'
        yield "</GCPList>"
    elif dataset.crs:
        yield f"<SRS>{escape(dataset.crs.to_wkt())}</SRS>"
        yield f"<GeoTransform>{', '.join(map(repr, dataset.transform.to_gdal()))}</GeoTransform>"
