"""Change map to polygons with their area on the ground, row block by row block."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from hetecd.errors import InputError
from hetecd.files import replacing
from hetecd.ground import STRAIGHT_PX, area_m2, bounds_wgs84, pixel_m
from hetecd.modality import Floats
from hetecd.outline import Shapes, trace
from hetecd.raster import Bools, Grid, crs_text

Format = Literal["gpkg", "fgb", "geojson"]
DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON"}
LAYER_OPTIONS = {"GeoJSON": {"RFC7946": "YES", "WRITE_NAME": "NO"}}
FILE_OPTIONS = {"GPKG": {"VERSION": "1.2"}}  # older QGIS warns of newer ones, which have nothing that is used here
BATCH = 20_000  # polygons that wait in memory to be written
# GDAL would stamp the time of writing on a GeoPackage; the same map shall give the same file.
NO_TIME = {"OGR_CURRENT_DATE": "1970-01-01T00:00:00.000Z"}


@dataclass(frozen=True)
class PolygonSettings:
    """How a map becomes polygons.

    Attributes:
        format: "gpkg", "fgb" (FlatGeobuf) or "geojson" (in WGS 84, as RFC 7946 wants).
        min_area: smaller ones are left out, m2; pixels where the map is tied to no place on earth.
        simplify: outlines may be moved by this much to have fewer corners, m; pixels where there are no metres. Area
            and mean probability remain those of the pixels. Polygons stay valid and keep their holes; neighbours that
            meet at a corner may come to overlap.
    """

    format: Format = "gpkg"
    min_area: float = 0.0
    simplify: float = 0.0

    def check(self, grid: Grid) -> None:
        """InputError unless a map on this grid can become such polygons."""
        for name in ("min_area", "simplify"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise InputError(f"{name}: found {value}, expected 0 or more")
        if self.format == "geojson" and bounds_wgs84(grid) is None:
            raise InputError("format: found geojson, which lies in WGS 84, but no CRS in the images; take gpkg or fgb")


def write_polygons(
    blocks: Iterable[tuple[Bools, Floats]], grid: Grid, out_path: Path | str, settings: PolygonSettings | None = None
) -> int:
    """Write the groups of changed pixels that share edges as polygons, in the order of their last pixels.

    Fields: ``area_m2`` on the ellipsoid (NULL without a CRS), ``area_px``, ``mean_prob`` over the pixels within.
    Without a changed pixel the layer is there and empty. Memory holds a block and the polygons that are still open.

    Args:
        blocks: successive rows from top to bottom: (n, W) True = changed, (n, W) probability of change.
        grid: where the map lies.
        out_path: its suffix tells the format, .gpkg, .fgb or .geojson; replaces an older file when it is whole.
        settings: what is left out and simplified.

    Returns:
        Number of polygons.

    Raises:
        InputError: a setting is wrong, or of GeoJSON without a CRS.
        OutputError: the file cannot be written.
    """
    settings, path, count = settings or PolygonSettings(), Path(out_path), 0
    settings.check(grid)
    driver = DRIVERS[path.suffix]
    with replacing(path) as part, _saying_why():
        # GeoPackage is the one format to which one can append well, and has its index made faster in the end.
        collected = part.with_name("collected.gpkg")
        _append(collected, *_columns([], grid, settings, driver), grid.crs)
        for shapes in _batches(trace(blocks, grid.width)):
            polygons, fields = _columns(shapes, grid, settings, driver)
            if len(polygons):
                _append(collected, polygons, fields, grid.crs)
                count += len(polygons)
        with pyogrio.raw.open_arrow(collected, use_pyarrow=False) as (meta, stream):
            names = {"layer": "change", "geometry_name": meta["geometry_name"], "geometry_type": "Polygon"}
            options = {"layer_options": LAYER_OPTIONS.get(driver), "dataset_options": FILE_OPTIONS.get(driver)}
            pyogrio.write_arrow(stream, part, driver=driver, crs=meta["crs"], **names, **options)
        found = pyogrio.read_info(part, force_feature_count=True)["features"]
        if found != count:
            raise OSError(f"found {found} polygons after writing {count}")
    return count


def _batches(found: Iterable[Shapes]) -> Iterator[list[Shapes]]:
    """Several yields at a time, for each opens the file anew."""
    waiting: list[Shapes] = []
    for shapes in found:
        waiting.append(shapes)
        if sum(len(item.polygons) for item in waiting) >= BATCH:
            yield waiting
            waiting = []
    yield waiting


def _columns(
    found: list[Shapes], grid: Grid, settings: PolygonSettings, driver: str
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Polygons in the CRS of the grid and their fields, without those that are too small."""
    polygons = np.concatenate([np.empty(0, object), *(shapes.polygons for shapes in found)])
    area_px = np.concatenate([np.empty(0, np.int64), *(shapes.area_px for shapes in found)])
    mean_prob = np.concatenate([np.empty(0), *(shapes.mean for shapes in found)])
    area = area_m2(_placed(polygons, grid), grid)
    kept = np.where(np.isfinite(area), area, area_px) >= settings.min_area
    polygons = polygons[kept]
    if settings.simplify:
        edge_m = max(pixel_m(grid))
        polygons = _simplified(polygons, settings.simplify / (edge_m if np.isfinite(edge_m) else 1))
    polygons = _placed(polygons, grid)
    if driver == "GeoJSON":  # what is straight in the CRS of the map is curved in degrees
        polygons = shapely.segmentize(polygons, STRAIGHT_PX * min(grid.res))
    return polygons, {"area_m2": area[kept], "area_px": area_px[kept], "mean_prob": mean_prob[kept]}


def _placed(polygons: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Polygons in pixels to those in the CRS of the grid."""
    return np.asarray(shapely.transform(polygons, lambda x, y: grid.transform @ (x, y), interleaved=False))


def _simplified(polygons: NDArray[Any], tolerance_px: float) -> NDArray[Any]:
    """Polygons in pixels with fewer corners; those that would not stay valid with all their holes stay as they are."""
    simple = shapely.simplify(polygons, tolerance_px, preserve_topology=True)
    rings = shapely.get_num_interior_rings
    good = shapely.is_valid(simple) & ~shapely.is_empty(simple) & (rings(simple) == rings(polygons))
    return np.where(good, simple, polygons)


def _append(path: Path, polygons: NDArray[Any], fields: dict[str, NDArray[Any]], crs: CRS | None) -> None:
    pyogrio.raw.write(
        path,
        shapely.to_wkb(polygons),
        list(fields.values()),
        list(fields),
        field_mask=[np.isnan(values) for values in fields.values()],
        layer="change",
        driver="GPKG",
        geometry_type="Polygon",
        crs=crs_text(crs) if crs else None,
        append=path.exists(),
        layer_options={"SPATIAL_INDEX": "NO"},
    )


@contextmanager
def _saying_why() -> Iterator[None]:
    """Write without the time of day; what pyogrio complains of becomes an OSError."""
    pyogrio.set_gdal_config_options(NO_TIME)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="'crs' was not provided")  # tiles have none
            yield
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
        pyogrio.errors.GeometryError,
    ) as error:
        raise OSError(" ".join(str(error).split())) from error
    finally:
        pyogrio.set_gdal_config_options(dict.fromkeys(NO_TIME))
