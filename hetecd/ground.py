"""How large pixels and polygons are on the ground, and where on earth a grid lies.

All areas are those of an equal-area projection of the WGS 84 ellipsoid (Lambert azimuthal, about the middle of the
grid), so that neither degrees nor the stretch of a Mercator map count.
"""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds

from hetecd.raster import WGS84, Grid

# An edge that is straight on the map is curved on the ground; pieces of this many pixels are short enough.
STRAIGHT_PX = 64.0
EDGE_POINTS = 8  # of the outline on each side
NODES = 129  # places along each side of a grid at which the area of a pixel is computed; between them it is smooth
NOWHERE = (CRSError, RasterioError, CPLE_BaseError)  # a local CRS is tied to no place on earth


def area_m2(polygons: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """Area of polygons on the WGS 84 ellipsoid in square metres, NaN without a CRS.

    Args:
        polygons: (n,) shapely polygons in the CRS of the grid.
        grid: gives CRS, pixel size and middle.
    """
    pieces = shapely.segmentize(polygons, STRAIGHT_PX * min(grid.res))
    points, owners = shapely.get_coordinates(pieces, return_index=True)
    placed = _equal_area_m(grid, *points.T)
    nowhere = ~np.isfinite(placed).all(0)
    area = shapely.area(shapely.set_coordinates(pieces, np.where(nowhere, 0, placed).T))
    area[np.unique(owners[nowhere])] = np.nan
    return np.asarray(area, np.float64)


def pixel_m(grid: Grid) -> tuple[float, float]:
    """Edge lengths in metres of the pixel in the middle of a grid, along a row and along a column; NaN without CRS."""
    cols, rows = np.array([0, 1, 0]) + grid.width / 2, np.array([0, 0, 1]) + grid.height / 2
    at = _equal_area_m(grid, *(grid.transform @ (cols, rows)))
    edges = np.hypot(*(at[:, 1:] - at[:, :1]))
    return float(edges[0]), float(edges[1])


def bounds_wgs84(grid: Grid) -> tuple[float, float, float, float] | None:
    """West, south, east, north in degrees of the box around a grid; west > east across the antimeridian.

    None without a CRS that is tied to the earth.
    """
    if grid.crs is None:
        return None
    try:
        bounds = transform_bounds(grid.crs, WGS84, *grid.bounds)
    except NOWHERE:
        return None
    if not np.isfinite(bounds).all():
        return None
    west, south, east, north = bounds
    if east - west > 360 - 1e-6:
        return -180.0, south, 180.0, north
    turn = _turn(west)
    east += turn
    return west + turn, south, east - 360 if east > 180 else east, north


def outline_wgs84(grid: Grid) -> list[list[float]]:
    """Closed ring [[lon, lat], ...] around a grid, counterclockwise where row and column run as usual.

    The grid must have a CRS that is tied to the earth, and not lie across the antimeridian.
    """
    down, along = np.array([0, 0, 1, 1, 0]), np.array([0, 1, 1, 0, 0])
    steps = np.linspace(0, 4, 4 * EDGE_POINTS + 1)
    rows, cols = np.interp(steps, np.arange(5), down), np.interp(steps, np.arange(5), along)
    x, y = grid.transform @ (cols[::-1] * grid.width, rows[::-1] * grid.height)
    lon, lat = (np.array(values) for values in transform_points(grid.crs, WGS84, x, y))
    return np.column_stack([lon + _turn(lon.min()), lat]).tolist()


def _turn(west: float) -> float:
    """Degrees to add to the longitudes of a grid in degrees that begins beyond 180 east or west."""
    return -360.0 * ((west + 180) // 360)


class PixelAreas:
    """Area of the pixels of a grid in m2: computed at a net of places, linear between them.

    Attributes:
        known: False where the grid has no CRS that is tied to the earth; then all areas are NaN.
    """

    def __init__(self, grid: Grid) -> None:
        self._rows, self._cols = (np.linspace(0.5, size - 0.5, min(NODES, size)) for size in grid.shape)
        cols, rows = (values.ravel() for values in np.meshgrid(self._cols, self._rows))
        sides = [
            _equal_area_m(grid, *(grid.transform @ (cols + col, rows + row)))
            for row, col in ((0, 0.5), (0, -0.5), (0.5, 0), (-0.5, 0))
        ]
        (ax, ay), (bx, by) = sides[0] - sides[1], sides[2] - sides[3]
        self._areas = np.abs(ax * by - ay * bx).reshape(len(self._rows), len(self._cols))
        self.known = bool(np.isfinite(self._areas).all())

    def at(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> NDArray[np.float64]:
        """Areas (len(rows), len(cols)) of the pixels around those coordinates, the first pixel being at 0.5."""
        return _between(self._rows, rows) @ self._areas @ _between(self._cols, cols).T


def _between(nodes: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (len(at), len(nodes)) of a linear interpolation."""
    position = np.interp(at, nodes, np.arange(len(nodes)))
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(len(nodes))))


def _equal_area_m(grid: Grid, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Points of the CRS of a grid in the equal-area projection: (2, n) in metres, NaN where there is none."""
    if grid.crs is None:
        return np.full((2, len(x)), np.nan)
    try:
        middle = grid.transform @ (grid.width / 2, grid.height / 2)
        (lon,), (lat,) = transform_points(grid.crs, WGS84, *([value] for value in middle))
        equal_area = CRS.from_string(f"+proj=laea +lat_0={lat!r} +lon_0={lon!r} +datum=WGS84 +units=m")
        return np.array(transform_points(grid.crs, equal_area, x, y))
    except NOWHERE:
        return np.full((2, len(x)), np.nan)
