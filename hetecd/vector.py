"""Change map to polygons with their area on the ground."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import shapes
from scipy import ndimage

from hetecd.files import replacing
from hetecd.ground import area_m2
from hetecd.raster import Grid, grid_of, open_raster, read_valid


def write_polygons(change_path: Path | str, probability_path: Path | str, out_path: Path | str) -> tuple[int, float]:
    """Turn a change map into polygons, one per group of changed pixels that share edges, as a GeoPackage.

    Fields: ``area_m2`` on the ellipsoid (NULL without a CRS), ``area_px``, ``mean_prob`` over the pixels within.
    Without a changed pixel the layer is there and empty.

    Args:
        change_path: raster with 1 = changed.
        probability_path: raster of the same grid with the probability of change.
        out_path: the GeoPackage; appears when it is whole, and replaces an older one.

    Returns:
        Number of polygons and their total area in m2 (NaN without a CRS).

    Raises:
        InputError: a raster cannot be read.
        OutputError: the GeoPackage cannot be written.
    """
    with open_raster(change_path) as dataset:
        grid = grid_of(dataset)
        changed = read_valid(dataset, (1,), None, change_path)[0][0] == 1
    # A scene is large and little of it has changed: of everything but the groups only changed pixels are kept.
    with open_raster(probability_path) as dataset:
        probability = read_valid(dataset, (1,), None, probability_path)[0][0][changed]
    groups, count = ndimage.label(changed, output=np.int32)
    members = groups[changed]
    del changed
    area_px = np.bincount(members, minlength=count + 1)[1:]
    sums = np.bincount(members, weights=probability, minlength=count + 1)[1:]
    polygons = group_polygons(groups, count, grid)
    area = area_m2(polygons, grid)
    fields: dict[str, NDArray[Any]] = {
        "area_m2": area,
        "area_px": area_px.astype(np.int32),
        "mean_prob": sums / np.maximum(area_px, 1),
    }
    _write_gpkg(Path(out_path), polygons, fields, grid.crs)
    return count, float(area.sum()) if grid.crs else float("nan")


def group_polygons(groups: NDArray[np.int32], count: int, grid: Grid) -> NDArray[Any]:
    """Outlines of the groups 1 to ``count`` of an image (H, W) along pixel edges: (count,) polygons in the CRS."""
    polygons = np.empty(count, object)
    for outline, group in shapes(groups, mask=groups > 0, connectivity=4, transform=grid.transform):
        shell, *holes = outline["coordinates"]
        polygons[int(group) - 1] = shapely.Polygon(shell, holes)
    return polygons


def _write_gpkg(path: Path, polygons: NDArray[Any], fields: dict[str, NDArray[Any]], crs: CRS | None) -> None:
    epsg = crs.to_epsg() if crs else None
    with replacing(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # tiles have none
        try:
            pyogrio.raw.write(
                part,
                shapely.to_wkb(polygons),
                list(fields.values()),
                list(fields),
                field_mask=[np.isnan(values) for values in fields.values()],
                layer="change",
                driver="GPKG",
                geometry_type="Polygon",
                crs=f"EPSG:{epsg}" if epsg else crs.to_wkt() if crs else None,
            )
            found = pyogrio.read_info(part, layer="change")["features"]
        except (
            pyogrio.errors.DataSourceError,
            pyogrio.errors.DataLayerError,
            pyogrio.errors.GeometryError,
        ) as error:
            raise OSError(" ".join(str(error).split())) from error
        if found != len(polygons):
            raise OSError(f"found {found} polygons after writing {len(polygons)}")
