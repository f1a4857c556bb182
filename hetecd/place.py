"""Where the pixels of a file lie on the ground: by an affine transform, or by tie points.

Tie points are the ground control points (GCPs) of a file, such as Sentinel-1's, or a lattice of them where it has
rational polynomials (RPCs), such as those of very high resolution images. Between them runs a thin plate spline,
which meets every one. Terrain is not looked at: RPCs are taken at the mean height that they state.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import Affine, GCPTransformer, RPCTransformer
from rasterio.warp import transform as transform_points

from hetecd.errors import InputError
from hetecd.raster import WGS84, Grid, grid_of, one_line

# Tie points along either edge in place of RPCs, and how far beyond it, as a share, for a spline is worst at its border:
# some thousandths of a pixel from the polynomials, which GDAL itself would invert to a tenth only.
RPC_TIES, RPC_MARGIN, RPC_ERROR_PX = 15, 0.1, 0.001
FLAT = 1e-6  # ratio of their extents below which tie points lie on a line
EDGE_POINTS = 33  # along each edge of an image whose outline is wanted

P = TypeVar("P", "Place", Grid)


@dataclass(frozen=True)
class Place:
    """Where the pixels of one file lie.

    Attributes:
        crs: of the ground coordinates; None for an image tied to no place.
        height: rows.
        width: columns.
        transform: pixel (col, row) to ground (x, y); None where tie points tell.
        ties: pixel and ground coordinates of points; empty where the transform tells.
        by: what the file says it with.
    """

    crs: CRS | None
    height: int
    width: int
    transform: Affine | None
    ties: tuple[GroundControlPoint, ...] = ()
    by: Literal["transform", "GCPs", "RPCs"] = "transform"

    def ground(self, cols: ArrayLike, rows: ArrayLike) -> NDArray[np.float64]:
        """Ground coordinates (2, n) as (x, y) of pixel coordinates (n,); (0, 0) is the outer corner of the first."""
        if self.transform is not None:
            return np.array(self.transform @ (np.asarray(cols, float), np.asarray(rows, float)))
        with GCPTransformer(self.ties, tps=True) as spline:
            return np.array(spline.xy(rows, cols, offset="ul"))

    def pixel(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """The inverse of :meth:`ground`: pixel coordinates (2, n) as (col, row)."""
        if self.transform is not None:
            return np.array(~self.transform @ (np.asarray(x, float), np.asarray(y, float)))
        with GCPTransformer(self.ties, tps=True) as spline:
            return np.array(spline.rowcol(x, y, op=lambda value: value))[::-1]

    def outline(self) -> NDArray[np.float64]:
        """Pixel coordinates (2, n) as (col, row) of points along the four edges."""
        along = np.linspace(0, 1, EDGE_POINTS)
        zero, one = np.zeros(EDGE_POINTS), np.ones(EDGE_POINTS)
        cols, rows = np.concatenate([along, along, zero, one]), np.concatenate([zero, one, along, along])
        return np.array([cols * self.width, rows * self.height])

    def __str__(self) -> str:
        x, y = self.ground(*self.outline())
        box = ", ".join(f"{value:.7g}" for value in (x.min(), y.min(), x.max(), y.max()))
        return f"[{box}] in {self.crs}"


def at_grid(grid: Grid) -> Place:
    """The place of a grid."""
    return Place(grid.crs, grid.height, grid.width, grid.transform)


def place_of(dataset: Any, path: object) -> Place:
    """Place of an open rasterio dataset: its transform, else its GCPs, else its RPCs, else nowhere.

    Raises:
        InputError: it has fewer than three GCPs, or such as fix no place, or a transform that cannot be undone.
    """
    grid = grid_of(dataset)
    if grid.transform.is_degenerate:
        found = list(grid.transform)[:6]
        raise InputError(f"{path}: found a transform that leaves pixels no area ({found}); georeference it anew")
    if grid.crs is not None:
        return at_grid(grid)
    ties, crs = dataset.gcps
    if ties and crs:
        if len(ties) < 3:
            raise InputError(f"{path}: found {len(ties)} ground control points, expected 3 or more; add some")
        place = _on_a_plane(Place(crs, grid.height, grid.width, None, tuple(ties), "GCPs"))
        _check_ties(place, path)
        return place
    if dataset.rpcs is not None:
        return _on_a_plane(Place(WGS84, grid.height, grid.width, None, _rpc_ties(dataset), "RPCs"))
    return at_grid(grid)


def _check_ties(place: Place, path: object) -> None:
    """InputError where no spline meets the points: they lie on a line, or contradict each other."""
    fault = _fault(tuple((t.col, t.row, t.x, t.y) for t in place.ties), place.height, place.width)
    if fault:
        raise InputError(
            f"{path}: found {len(place.ties)} ground control points that fix no place ({fault}), expected some that "
            "lie at different pixels and places and not on a line; correct them, or give it a transform"
        )


@lru_cache(maxsize=256)  # an image is opened several times, and a spline takes the cube of the number of its points
def _fault(ties: tuple[tuple[float, ...], ...], height: int, width: int) -> str:
    """What is wrong with tie points (col, row, x, y) of an image of that size; "" if nothing is."""
    points = np.array(ties)
    if not np.isfinite(points).all():
        return "not all are numbers"
    points -= points.mean(0)
    extents = [np.linalg.svd(part, compute_uv=False) for part in (points[:, :2], points[:, 2:])]
    if any(short <= FLAT * long for long, short in extents):
        return "all on a line"
    cols, rows = Place(None, height, width, None).outline()
    try:
        with GCPTransformer([GroundControlPoint(row, col, x, y) for col, row, x, y in ties], tps=True) as spline:
            back = spline.rowcol(*spline.xy(rows, cols, offset="ul"), op=lambda value: value)
    except (RasterioError, CPLE_BaseError) as error:
        return one_line(error)
    # Not a number is not near, either.
    return "" if np.abs(np.array(back) - (rows, cols)).max() < 1 else "the way there and back ends elsewhere"


def _on_a_plane(place: Place) -> Place:
    """Tie points across the antimeridian, in degrees, in a CRS that has no edge there."""
    x = np.array([tie.x for tie in place.ties])
    crs = _from_antimeridian(place.crs)
    if crs is None or (x.min() >= -180 and x.max() <= 180 and np.ptp(x) <= 180):
        return place
    return replace(place, crs=crs, ties=_moved(place.ties, x % 360 - 180, [tie.y for tie in place.ties]))


def side_by_side(place: Place, grid: Grid) -> tuple[Place, Grid]:
    """The same place and grid, each in degrees from the antimeridian where it reaches beyond 180 east or west.

    What is brought to degrees ends at 180, so that of an image that goes on there a part would seem empty. They stay as
    they are where one holds the other in the same CRS, and where they would not fit in 360 degrees then.
    """
    one, other = _extent_x(place), _extent_x(at_grid(grid))
    least, greatest = max(one[0], other[0]), min(one[1], other[1])
    if place.crs == grid.crs and (least, greatest) in (one, other):
        return place, grid
    return _turned(place, *one), _turned(grid, *other)


def _extent_x(place: Place) -> tuple[float, float]:
    x, _ = place.ground(*place.outline())
    return float(x.min()), float(x.max())


def _turned(where: P, least: float, greatest: float) -> P:
    """A place or grid between these degrees, counted from the antimeridian if it reaches beyond it."""
    if where.transform is None or (least >= -180 and greatest <= 180):
        return where
    turn = -180 if greatest > 180 else 180
    crs = _from_antimeridian(where.crs)
    if crs is None or least + turn < -180 or greatest + turn > 180:
        return where
    return replace(where, crs=crs, transform=Affine.translation(turn, 0) @ where.transform)


def _from_antimeridian(crs: CRS | None) -> CRS | None:
    """A CRS in degrees with the antimeridian as its prime meridian; None for what does not count from Greenwich."""
    if crs is None or not crs.is_geographic or not np.isclose(crs.units_factor[1], np.pi / 180):
        return None
    # Of the older kind of text, which GDAL writes of all but those in three dimensions.
    wkt, count = re.subn(r'PRIMEM\["[^"]*",0(,AUTHORITY\[[^]]*\])?\]', 'PRIMEM["antimeridian",180]', crs.to_wkt())
    # Without the code of the CRS, which it is no longer.
    return CRS.from_wkt(re.sub(r",AUTHORITY\[[^]]*\]\]$", "]", wkt)) if count == 1 else None


def _moved(ties: Sequence[GroundControlPoint], x: ArrayLike, y: ArrayLike) -> tuple[GroundControlPoint, ...]:
    points = zip(ties, np.asarray(x).tolist(), np.asarray(y).tolist(), strict=True)
    return tuple(GroundControlPoint(tie.row, tie.col, east, north) for tie, east, north in points)


def _rpc_ties(dataset: Any) -> tuple[GroundControlPoint, ...]:
    along = np.linspace(-RPC_MARGIN, 1 + RPC_MARGIN, RPC_TIES)
    cols, rows = (values.ravel() for values in np.meshgrid(along * dataset.width, along * dataset.height))
    options = {"rpc_height": dataset.rpcs.height_off, "RPC_PIXEL_ERROR_THRESHOLD": RPC_ERROR_PX}
    with RPCTransformer(dataset.rpcs, **options) as polynomials:
        x, y = polynomials.xy(rows, cols, offset="ul")
    return tuple(GroundControlPoint(*map(float, point)) for point in zip(rows, cols, x, y, strict=True))


def pixel_of(source: Place, target: Place, cols: ArrayLike, rows: ArrayLike) -> NDArray[np.float64]:
    """Pixel coordinates (2, n) as (col, row) in ``target`` of those in ``source``; infinite where there is none."""
    x, y = source.ground(cols, rows)
    if source.crs != target.crs:
        x, y = brought(source.crs, target.crs, x, y)
    return target.pixel(x, y)


def brought(source: CRS | None, target: CRS | None, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Coordinates (2, n) in another CRS; infinite where they have none there."""
    at = np.array([x, y], np.float64)
    try:
        return np.array(transform_points(source, target, *at))
    except CPLE_BaseError:  # GDAL gives up for a single point
        n = at.shape[1]
        if n == 1:
            return np.full((2, 1), np.inf)
        return np.concatenate([brought(source, target, *half) for half in (at[:, : n // 2], at[:, n // 2 :])], 1)


def box_of(source: Place, target: Place) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Least and greatest pixel coordinates (col, row) in ``target`` of the outline of ``source``; None if nowhere."""
    at = pixel_of(source, target, *source.outline())
    at = at[:, np.isfinite(at).all(0)]
    return (at.min(1), at.max(1)) if at.size else None


def part_of(place: Place, grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The box (col, row) of a grid outside of which a place has no pixels; without end where its outline does not tell.

    That of the whole world, say, has no place in UTM, or another than it seems. None where the two do not meet.
    """
    at = pixel_of(place, at_grid(grid), *place.outline())
    known = at[:, np.isfinite(at).all(0)]
    box = (known.min(1), known.max(1)) if known.size else None
    if box and known.shape == at.shape and _meets(box, grid.width, grid.height):
        return box
    back = box_of(at_grid(grid), place) if place.transform is not None else None
    if back and _meets(back, place.width, place.height):
        return np.full(2, -np.inf), np.full(2, np.inf)
    return box if box and _meets(box, grid.width, grid.height) else None


def _meets(box: tuple[NDArray[np.float64], NDArray[np.float64]], width: int, height: int) -> bool:
    return bool((box[1] > 0).all() and (box[0] < (width, height)).all())


def pixel_size(place: Place, crs: CRS) -> float:
    """Edge of a square in units of ``crs`` of the area of the pixel in the middle of a place."""
    col, row = place.width / 2, place.height / 2
    x, y = place.ground([col, col + 1, col], [row, row, row + 1])
    if place.crs is not None and place.crs != crs:
        x, y = brought(place.crs, crs, x, y)
    return float(np.sqrt(abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0]))))


def middle_wgs84(place: Place) -> tuple[float, float]:
    """Longitude and latitude of the middle in degrees; infinite where its CRS is tied to no place on earth."""
    x, y = place.ground([place.width / 2], [place.height / 2])
    (lon,), (lat,) = transform_points(place.crs, WGS84, x, y)
    return float(lon), float(lat)


def metric_crs(place: Place) -> CRS:
    """The UTM zone of the middle of a place, or the polar stereographic CRS beyond 84 degrees."""
    lon, lat = middle_wgs84(place)
    if abs(lat) > 84:
        return CRS.from_epsg(32661 if lat > 0 else 32761)
    zone = int((lon + 180) // 6) % 60 + 1
    return CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)
