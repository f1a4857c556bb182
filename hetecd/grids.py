"""The grid that two images are brought to, and the area of interest on it.

It is the optical image's own, so that this one is not resampled, unless another is asked for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.features import geometry_mask
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds

from hetecd.errors import InputError, UsageError, some
from hetecd.ground import STRAIGHT_PX
from hetecd.place import Place, at_grid, box_of, brought, metric_crs, pixel_size
from hetecd.raster import Bools, Grid, one_line
from hetecd.tiles import Window

BLOCK_PX = 512  # polygons are drawn in blocks of this edge, always the same, so that windows agree to the last pixel
NEAR_PX = 1e-3  # an edge this close to that of a pixel is meant to be there
TURNS = ((-360.0, 0.0), (0.0, 0.0), (360.0, 0.0))  # the same place in degrees
FINEST = 100  # pixels of a grid along one of the image: who asks for more has mistaken the unit
LEAP = 100  # how many times the usual step along an edge leads to the other end of a map
MOST_PX = 2**31 - 1  # along either edge, the most that GDAL counts

Box = tuple[NDArray[np.float64], NDArray[np.float64]]  # least and greatest (col, row)


@dataclass(frozen=True)
class GridChoice:
    """How the common grid is to differ from the optical image's own.

    Attributes:
        resolution: edge of a pixel in units of the CRS; None: the optical image's.
        crs: whatever GDAL knows as a CRS, such as "EPSG:32633"; None: the optical image's.
        bounds: left, bottom, right, top in the CRS of the grid, rounded outwards to whole pixels.
        aoi: file of polygons in any CRS; pixels whose middle lies in none are invalid, and the grid ends at their box.
    """

    resolution: float | None = None
    crs: str | None = None
    bounds: tuple[float, float, float, float] | None = None
    aoi: Path | str | None = None

    def __post_init__(self) -> None:
        if self.resolution is not None and not (math.isfinite(self.resolution) and self.resolution > 0):
            raise InputError(f"resolution: found {self.resolution}, expected a positive number in units of the CRS")
        if self.bounds is not None:
            left, bottom, right, top = self.bounds
            if not (left < right and bottom < top):
                raise InputError(f"bounds: found {_text(self.bounds)}, expected left bottom right top in that order")

    def refuse_for_tiles(self, folder: Path | str) -> None:
        """UsageError where a grid is asked for, which tiles that are mapped one by one do not share."""
        if self != GridChoice():
            raise UsageError(
                f"{folder}: found a folder of tiles, for which no grid can be chosen; leave these flags out"
            )


@dataclass(frozen=True)
class CommonGrid:
    """A grid and which of its pixels are of interest.

    Attributes:
        grid: the grid.
        wanted: gives (h, w) bool of a window of the grid, True inside the area of interest; None: it is everywhere.
    """

    grid: Grid
    wanted: Callable[[Window], Bools] | None = None


def choose_grid(places: Sequence[Place], path: Path | str, choice: GridChoice) -> CommonGrid:
    """The common grid: pixels as chosen, as many as the optical image has within bounds and area of interest.

    Pixels are those of the (first) optical file. Where another CRS is asked for, or the file has tie points only (then
    in the UTM zone of its middle), they are squares with north up whose edges lie at multiples of the resolution.

    Args:
        places: of the optical files.
        path: the optical image, for messages.
        choice: what is asked for.

    Raises:
        InputError: nothing of the image is left; something is asked for that needs a CRS and there is none; a CRS
            or the file of polygons cannot be used.
    """
    first = places[0]
    if first.crs is None:
        if choice != GridChoice():
            raise InputError(f"{path}: found no CRS, which a choice of the grid needs; georeference both images")
        return CommonGrid(Grid(None, first.transform or Affine.identity(), first.height, first.width))
    try:
        pixels = _pixels(first, choice)
        # Of a map in metres a part may be asked for: it is no larger, whatever the image would be.
        part = pixels.crs is not None and pixels.crs.is_projected and (choice.bounds or choice.aoi)
        for place in places if choice.crs and not part else ():
            _check_whole(place, pixels.crs, path)
        if not choice.crs:
            _check_one_side(places, path)
        boxes = [box for place in places if (box := box_of(place, at_grid(pixels)))]
    except (RasterioError, CPLE_BaseError, CRSError) as error:
        found = choice.crs or first.crs
        raise InputError(f"{path}: cannot be brought to {found} ({one_line(error)}); check the CRS") from error
    if not boxes:
        raise InputError(f"{path}: found no pixel that has a place in {pixels.crs}, expected some; choose another CRS")
    box = np.min([least for least, _ in boxes], 0), np.max([greatest for _, greatest in boxes], 0)
    _check_size(pixels, box)
    if choice.resolution and pixel_size(first, pixels.crs or first.crs) > FINEST * choice.resolution:
        raise InputError(
            f"resolution: found {choice.resolution:g}, which makes more than {FINEST} x {FINEST} pixels of one of the "
            "image, expected a coarser one; it counts in units of the CRS"
        )
    if choice.bounds is not None:
        left, bottom, right, top = choice.bounds
        corners = at_grid(pixels).pixel([left, right, left, right], [top, top, bottom, bottom])
        box = _shared(pixels, box, (corners.min(1), corners.max(1)), f"bounds: {_text(choice.bounds)}")
    if choice.aoi is None:
        return CommonGrid(_cut(pixels, box))
    polygons = _polygons(choice.aoi, _cut(pixels, box), pixels)
    least_x, least_y, greatest_x, greatest_y = shapely.total_bounds(polygons)
    around = np.array([least_x, least_y]), np.array([greatest_x, greatest_y])
    box = _shared(pixels, box, around, str(choice.aoi))
    return CommonGrid(_cut(pixels, box), _inside(polygons, _outwards(box)[0]))


def _pixels(first: Place, choice: GridChoice) -> Grid:
    """One pixel of the grid; the others follow from it without end."""
    if choice.crs is None and first.transform is not None:
        grid = Grid(first.crs, first.transform, 1, 1)
        if choice.resolution is None:
            return grid
        wide, high = grid.res
        scale = Affine.scale(choice.resolution / wide, choice.resolution / high)
        return Grid(first.crs, first.transform @ scale, 1, 1)
    crs = CRS.from_user_input(choice.crs) if choice.crs else metric_crs(first)
    if not (crs.is_geographic or crs.is_projected):
        raise InputError(f"crs: found {choice.crs}, which is none of a map, expected one such as EPSG:32633")
    # Three digits: scenes side by side get one and the same pixel size.
    edge = choice.resolution or float(f"{pixel_size(first, crs):.3g}")
    return Grid(crs, Affine.scale(edge, -edge), 1, 1)


def _check_whole(place: Place, crs: CRS, path: Path | str) -> None:
    """InputError where an image lies on both ends of a map, on which it would span the globe."""
    # Middles of pixels: a map of the whole world may touch both ends.
    size = np.array([[place.width], [place.height]])
    cols, rows = (place.outline() - size / 2) * (1 - 1 / size) + size / 2
    at = brought(place.crs, crs, *place.ground(cols, rows))
    with np.errstate(invalid="ignore"):
        steps = np.hypot(*np.diff(at.reshape(2, 4, -1)))  # along each edge
    steps = steps[np.isfinite(steps)]
    most = 180 if crs.is_geographic else LEAP * np.median(steps) if steps.size else np.inf
    if (steps > most).any():
        raise InputError(
            f"{path}: lies on both sides of the antimeridian or around a pole, expected neither for {crs}, in which it "
            f"would span the globe; choose another CRS, such as {metric_crs(place)}"
        )


def _check_one_side(places: Sequence[Place], path: Path | str) -> None:
    """InputError where granules in degrees lie at both ends of the map, which would span the globe."""
    crs = places[0].crs
    if crs is None or not crs.is_geographic:
        return
    middles = [float(p.ground([p.width / 2], [p.height / 2])[0, 0]) for p in places if p.crs == crs]
    if max(middles) - min(middles) > 180:
        raise InputError(
            f"{path}: found granules from {min(middles):g} to {max(middles):g} degrees east, expected them on one side "
            f"of the antimeridian; choose another grid, such as --crs {metric_crs(places[0])}"
        )


def _shared(pixels: Grid, image: Box, other: Box, what: str) -> Box:
    """What the box of the image and another have in common; InputError about ``what`` where that is nothing."""
    least, greatest = np.maximum(image[0], other[0]), np.minimum(image[1], other[1])
    if (greatest - least <= NEAR_PX).any():
        there = _text(_cut(pixels, image).bounds)
        raise InputError(f"{what}: found no overlap with the optical image, expected some; it has {there} {pixels.crs}")
    return least, greatest


def _outwards(box: Box) -> NDArray[np.int64]:
    """First and last pixel (col, row) that a box touches, the last one exclusive."""
    return np.array([np.floor(box[0] + NEAR_PX), np.ceil(box[1] - NEAR_PX)]).astype(np.int64)


def _cut(pixels: Grid, box: Box) -> Grid:
    """The grid of all pixels that a box touches."""
    (col, row), (end_col, end_row) = _outwards(box).tolist()
    return pixels.window(Window(row, col, end_row - row, end_col - col))


def _check_size(pixels: Grid, box: Box) -> None:
    """InputError where an image is less than a pixel, or more than GDAL counts."""
    edges_px = box[1] - box[0]
    if edges_px.min() < 0.5 or edges_px.max() > MOST_PX:
        unit = pixels.crs.units_factor[0] if pixels.crs else "px"
        raise InputError(
            f"resolution: found {min(pixels.res):g} {unit}, which makes the image {edges_px[1]:.2g} x "
            f"{edges_px[0]:.2g} px, expected 1 to {MOST_PX}; it counts in units of the CRS"
        )


def _polygons(path: Path | str, image: Grid, pixels: Grid) -> NDArray[Any]:
    """Polygons of a file as far as they lie on the image, in coordinates (col, row) of the pixels."""
    crs, shapes = _read_polygons(path)
    try:
        left, bottom, right, top = transform_bounds(image.crs, crs, *image.bounds, densify_pts=33)
        # Only what is near: elsewhere the CRS of the grid may have no place for it. Across the antimeridian the box
        # begins in the east and ends in the west.
        spans = [(left, 180.0), (-180.0, right)] if left > right else [(left, right)]
        margin = 0.01 * max(top - bottom, *(east - west for west, east in spans))
        near = shapely.union_all(
            [shapely.box(west - margin, bottom - margin, east + margin, top + margin) for west, east in spans]
        )
        shapes = shapely.make_valid(shapes)
        if crs.is_geographic and left < right and max(abs(left), abs(right)) > 180:  # a grid that goes on beyond it
            shapes = np.concatenate([shapely.transform(shapes, lambda xy, by=by: xy + by) for by in TURNS])
        shapes = shapely.get_parts(shapely.intersection(shapes, near))
        shapes = shapely.get_parts(shapes[(shapely.get_dimensions(shapes) == 2) & ~shapely.is_empty(shapes)])
        shapes = shapely.segmentize(shapes, STRAIGHT_PX * pixel_size(at_grid(image), crs))

        def to_pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
            x, y = (np.array(values) for values in transform_points(crs, pixels.crs, points[:, 0], points[:, 1]))
            if crs != pixels.crs and pixels.crs is not None and pixels.crs.is_geographic:
                x -= 360 * np.rint((x - (image.bounds[0] + image.bounds[2]) / 2) / 360)
            return at_grid(pixels).pixel(x, y).T

        found = shapely.transform(shapes, to_pixels)
    except (RasterioError, CPLE_BaseError, CRSError) as error:
        raise InputError(f"{path}: cannot be brought to {pixels.crs} ({one_line(error)}); check its CRS") from error
    if len(found) == 0:
        there = _text((left, bottom, right, top))
        raise InputError(
            f"{path}: found no polygon where the grid lies, expected some; in the CRS of the file that is {there}"
        )
    return found


def _read_polygons(path: Path | str) -> tuple[CRS, NDArray[Any]]:
    """CRS and polygons of a file: of its layer of polygons or, where no layer says that it is one, of the first."""
    try:
        layers = [name for name, kind in pyogrio.list_layers(path) if kind and "Polygon" in kind]
        if len(layers) > 1:
            raise InputError(
                f"{path}: found several layers ({some(layers)}), expected one of polygons; keep one "
                f"(ogr2ogr aoi.gpkg {path} {layers[0]})"
            )
        about, _, shapes, _ = pyogrio.raw.read(path, layer=(layers or [0])[0], columns=[], force_2d=True)
        crs = CRS.from_user_input(about["crs"]) if about["crs"] else None
        polygons = shapely.from_wkb([] if shapes is None else [shape for shape in shapes if shape is not None])
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
        shapely.errors.ShapelyError,
        CRSError,
    ) as error:
        raise InputError(
            f"{path}: cannot read its polygons ({one_line(error)}); use GeoPackage, GeoJSON or Shapefile"
        ) from error
    if crs is None:
        raise InputError(f"{path}: found no CRS, expected one; assign it (ogr2ogr -a_srs)")
    if len(polygons) == 0 or not (shapely.get_dimensions(polygons) == 2).all():
        kinds = sorted({geometry.geom_type for geometry in polygons})
        raise InputError(f"{path}: found {', '.join(kinds) or 'nothing'}, expected polygons; choose another file")
    return crs, polygons


def _inside(polygons: NDArray[Any], first_px: NDArray[np.int64]) -> Callable[[Window], Bools]:
    """Which pixels of a window have their middle in a polygon.

    Args:
        polygons: in coordinates (col, row) of some pixels.
        first_px: (col, row) of the first pixel of the grid among those.
    """
    tree = shapely.STRtree(polygons)

    @lru_cache(maxsize=64)
    def block(row: int, col: int) -> Bools:
        """Of the grid, from block number (row, col)."""
        left, top = (np.array([col, row]) * BLOCK_PX + first_px).tolist()
        rectangle = left, top, left + BLOCK_PX, top + BLOCK_PX
        near = polygons[tree.query(shapely.box(*rectangle))]
        pieces = [piece for piece in shapely.clip_by_rect(near, *rectangle) if not piece.is_empty]
        if not pieces:
            return np.zeros((BLOCK_PX, BLOCK_PX), bool)
        return geometry_mask(pieces, (BLOCK_PX, BLOCK_PX), Affine.translation(left, top), invert=True)

    def wanted(window: Window) -> Bools:
        out = np.zeros((window.height, window.width), bool)
        last_row, last_col = window.row + window.height, window.col + window.width
        for row in range(window.row // BLOCK_PX, (last_row - 1) // BLOCK_PX + 1):
            for col in range(window.col // BLOCK_PX, (last_col - 1) // BLOCK_PX + 1):
                top, left = row * BLOCK_PX, col * BLOCK_PX
                rows = slice(max(top, window.row), min(top + BLOCK_PX, last_row))
                cols = slice(max(left, window.col), min(left + BLOCK_PX, last_col))
                part = block(row, col)[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
                out[
                    rows.start - window.row : rows.stop - window.row, cols.start - window.col : cols.stop - window.col
                ] = part
        return out

    return wanted


def _text(numbers: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.9g}" for value in numbers) + "]"
