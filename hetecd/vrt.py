"""Pieces of GDAL's XML for virtual rasters that several kinds of them have."""

from collections.abc import Iterable, Iterator
from typing import Any
from xml.sax.saxutils import escape

from affine import Affine

QUOTED = {'"': "&quot;"}


def wkt(crs: Any) -> str:
    """A CRS of rasterio as content or attribute of an element."""
    return escape(crs.to_wkt(), QUOTED)


def numbers(transform: Affine) -> str:
    """A transform in GDAL's order, to the last bit."""
    return ", ".join(map(repr, transform.to_gdal()))


def ties(points: Iterable[Any]) -> Iterator[str]:
    """Ground control points of rasterio, on the plane."""
    for tie in points:
        yield f'<GCP Id="" Pixel="{tie.col!r}" Line="{tie.row!r}" X="{tie.x!r}" Y="{tie.y!r}"/>'


def source(name: str, number: int) -> str:
    """A band of a file, or of the XML of another virtual raster."""
    return f'<SourceFilename relativeToVRT="0">{escape(name)}</SourceFilename><SourceBand>{number}</SourceBand>'
