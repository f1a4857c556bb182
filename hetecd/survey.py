"""What a folder of results holds, read back for people to look at: summary, rasters, polygons.

Whatever is missing or damaged is named in :attr:`Results.missing` or raised as InputError by the part that needs it, so
that a page can show the rest.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform as transform_points

from hetecd.config import Role
from hetecd.errors import InputError
from hetecd.modality import Floats
from hetecd.preview import shrink, strips
from hetecd.raster import Grid, day_of, grid_of, one_line, open_raster, read_valid
from hetecd.results import BINS, Count, bins_of
from hetecd.vector import DRIVERS

SUMMARY, CHANGE, PROBABILITY = "summary.json", "change.tif", "probability.tif"
POLYGONS = [f"change{suffix}" for suffix in DRIVERS]  # one of these
NUMBER = re.compile(r"0(\.\d+)?|1(\.0+)?|\d(\.\d+)?e-\d{1,2}")  # from 0 to 1, as a tag has it
_NEEDED = ("before", "after", "settings", "grid", "pixels", "valid_pixels", "changed_pixels", "histogram")
# What pages rely on: {} = fields, [kind] = a list, [kind] * n = one of n, (kind, None) = may lack, float = any number.
_INPUT = {"path": str, "is": str, "bytes": (int, None)}
_KINDS: dict[str, Any] = {
    "hetecd": (str, None), "created": (str, None), "before": _INPUT, "after": _INPUT,
    "weights": ({"name": (str, None)}, None),
    "settings": {"threshold": float, "tile_px": (int, None), "overlap_px": (int, None), "min_area": (float, None),
                 "simplify": (float, None)},
    "alignment": ({"shift_px": [float] * 2, "rotation_deg": float, "scale": float, "moved": bool, "note": str,
                   "sar_move": [float] * 6}, None),
    "grid": {"height": int, "width": int, "pixel_m": ([float] * 2, None)},
    "pixels": int, "valid_pixels": int, "changed_pixels": int, "changed_area_m2": (float, None),
    "histogram": {"pixels": [int] * BINS, "area_m2": ([float] * BINS, None)},
    "polygons": (int, None), "outputs": ([str], None), "warnings": ([str], None),
}  # fmt: skip


@dataclass(frozen=True)
class Results:
    """A folder that `hetecd predict` has filled.

    Attributes:
        folder: where it is.
        grid: of the rasters.
        summary: content of summary.json, {} without it.
        tags: metadata of a raster, {} without one.
        missing: a line for each thing that is not there or cannot be opened.
    """

    folder: Path
    grid: Grid
    summary: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def sar_move(self) -> Affine | None:
        """How the SAR image was moved, see :func:`hetecd.pair.open_pair`."""
        found = self.summary.get("alignment") or {}
        return Affine(*found["sar_move"]) if found.get("moved") else None

    @property
    def threshold(self) -> float:
        """Probability from which the map calls a pixel changed."""
        found = (self.summary.get("settings") or {}).get("threshold", self.tags.get("threshold"))
        return 0.5 if found is None else float(found)


@dataclass(frozen=True)
class Polygons:
    """The largest polygons of a map.

    Attributes:
        shapes: (n,) shapely polygons in the CRS of the map, the largest first.
        area_m2: (n,), NaN where unknown.
        area_px: (n,).
        mean_prob: (n,) 0 to 1.
        total: how many the file holds.
    """

    shapes: NDArray[Any]
    area_m2: NDArray[np.float64]
    area_px: NDArray[np.int64]
    mean_prob: NDArray[np.float64]
    total: int


@dataclass(frozen=True)
class Survey:
    """What one pass over the probability raster tells.

    Attributes:
        small: (h, w) float32, mean of blocks of pixels, NaN = invalid.
        polygon_pixels: (n, 100) pixels of each polygon by probability.
    """

    small: Floats
    polygon_pixels: NDArray[np.int64]


def is_result(folder: Path | str) -> bool:
    """Whether a folder holds a map, or what is left of one."""
    # Not Path.is_file, which fails on a folder that may not be entered.
    return any(os.path.isfile(Path(folder) / name) for name in (SUMMARY, CHANGE, PROBABILITY))


def open_results(folder: Path | str) -> Results:
    """Find out what is in a folder.

    Raises:
        InputError: it holds neither a raster of a result nor a summary.
    """
    folder, missing, opened = Path(folder), [], []
    for name in (PROBABILITY, CHANGE):
        try:
            with open_raster(folder / name) as dataset:
                opened.append((grid_of(dataset), dataset.tags()))
        except InputError as error:
            missing.append(str(error))
    try:
        summary = summary_in(folder)
        opened.append((_grid_in(summary), {}))
    except InputError as error:
        missing.append(f"{error}; shown is what the rasters tell")
        summary = {}
    if not opened:
        raise InputError(f"{folder}: found no results ({missing[0]}), expected a folder written by `hetecd predict`")
    grid, tags = opened[0]
    if not NUMBER.fullmatch(tags.get("threshold", "0")):
        missing.append(f"{folder}: found {tags.pop('threshold')!r} as threshold of the map, expected 0 to 1")
    return Results(folder, grid, summary, tags, tuple(missing))


def _grid_in(summary: Mapping[str, Any]) -> Grid:
    grid = summary["grid"]
    return Grid(_crs(grid["crs"]), Affine(*grid["transform"]), grid["height"], grid["width"])


def _crs(text: str | None) -> CRS | None:
    """What a summary says: EPSG:n or WKT, and nothing that GDAL would look up elsewhere, such as a URL."""
    if not text:
        return None
    code = re.fullmatch(r"EPSG:(\d{1,7})", text)
    return CRS.from_epsg(int(code[1])) if code else CRS.from_wkt(text)


def recount(results: Results) -> dict[str, Any]:
    """What a summary says in numbers, from the probability raster; InputError where it is missing or damaged."""
    path, count = results.folder / PROBABILITY, Count(results.grid, results.threshold)
    with open_raster(path) as dataset:
        for window in strips(results.grid, 1):
            probability = read_valid(dataset, (1,), window, path)[0][0]
            count.add(window, probability >= results.threshold, probability)
    return count.numbers()


def inputs(results: Results) -> dict[str, tuple[Role, str]]:
    """The dates that the summary knows, "before" and "after": what each is an image of, and where its file is now.

    A file that is no longer where it was is looked for in the folder of the results and in the one above, and taken
    where its size is right.
    """
    out: dict[str, tuple[Role, str]] = {}
    for date in ("before", "after"):
        entry = results.summary.get(date) or {}
        if entry.get("is") in ("optical", "sar") and entry.get("path"):
            name = Path(entry["path"]).name
            places = [entry["path"], str(results.folder / name), str(results.folder.parent / name)]
            found = (place for place in places if os.path.isfile(place) and os.path.getsize(place) == entry["bytes"])
            out[date] = entry["is"], next(found, entry["path"])
    return out


def summary_in(folder: Path) -> dict[str, Any]:
    """Content of summary.json; InputError where it is missing or something else."""
    path = folder / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(summary, allow_nan=False, ensure_ascii=False).encode()  # what cannot be said to a browser
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from None
    lacking = [key for key in _NEEDED if not isinstance(summary, dict) or key not in summary]
    if lacking:
        raise InputError(f"{path}: found no {', '.join(lacking)}, expected a summary of `hetecd predict`")
    try:
        _grid_in(summary)
    except (KeyError, TypeError, ValueError, CRSError) as error:
        raise InputError(f"{path}: found no grid in it ({one_line(error)}); make the map again") from None
    if wrong := _misfit(summary, _KINDS, ""):
        raise InputError(f"{path}: found something else as {wrong} than `hetecd predict` writes; make the map again")
    return summary


def _misfit(found: Any, kind: Any, name: str) -> str | None:
    """Name of the first part that is not of its kind; None where all are."""
    parts: Iterable[tuple[Any, Any, str]] = ()
    if isinstance(kind, tuple):
        return None if found is None else _misfit(found, kind[0], name)
    if isinstance(kind, dict):
        fits = isinstance(found, dict)
        parts = ((found.get(key), each, f"{name}.{key}".lstrip(".")) for key, each in kind.items())
    elif isinstance(kind, list):
        fits = isinstance(found, list) and len(kind) in (1, len(found))
        parts = ((each, kind[0], name) for each in (found if fits else ()))
    elif kind is float:
        fits = type(found) in (int, float) and abs(found) < 1e300
    else:
        fits = type(found) is kind
    if not fits:
        return name
    return next((wrong for part in parts if (wrong := _misfit(*part))), None)


def read_polygons(results: Results, most: int) -> Polygons:
    """The largest polygons of a result.

    Args:
        results: from :func:`open_results`.
        most: how many at most.

    Raises:
        InputError: the file is missing, damaged or without the layer `change`.
    """
    listed = [name for name in results.summary.get("outputs", ()) if name in POLYGONS] or POLYGONS
    path = next((results.folder / name for name in listed if (results.folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{results.folder / listed[0]}: no such file")
    order = f'SELECT * FROM "change" ORDER BY area_px DESC LIMIT {most}'
    try:
        total = pyogrio.read_info(path, layer="change", force_feature_count=True)["features"]
        meta, _, geometry, columns = pyogrio.raw.read(path, sql=order)
        if geometry is None:
            raise ValueError("layer change has no geometry")
        named = dict(zip(meta["fields"], columns, strict=True))
        shapes = _on_grid(shapely.from_wkb(geometry), meta["crs"], results.grid)
        area_m2, area_px, mean_prob = (named[name] for name in ("area_m2", "area_px", "mean_prob"))
    except (RuntimeError, ValueError, shapely.GEOSException, CRSError) as error:  # pyogrio's are RuntimeErrors
        raise InputError(f"{path}: cannot be read ({one_line(error)}); truncated or damaged?") from None
    except KeyError as error:
        raise InputError(f"{path}: found no field {error} in layer change") from None
    return Polygons(shapes, area_m2.astype(np.float64), area_px.astype(np.int64), mean_prob.astype(np.float64), total)


def _on_grid(shapes: NDArray[Any], crs: str | None, grid: Grid) -> NDArray[Any]:
    """Polygons in the CRS of a grid; GeoJSON has them in its own."""
    if crs is None or grid.crs is None or CRS.from_user_input(crs) == grid.crs:
        return shapes
    return shapely.transform(shapes, lambda xy: np.column_stack(transform_points(crs, grid.crs, *xy.T)))


def survey(results: Results, shapes: NDArray[Any], factor: int) -> Survey:
    """Read the probability raster once, strip by strip: a preview, and the histogram within each polygon.

    Args:
        results: from :func:`open_results`.
        shapes: (n,) polygons in the CRS of the map, may be none. Pixels whose middle lies within count.
        factor: edge of the blocks of pixels that become one in the preview.

    Raises:
        InputError: the raster is missing or damaged.
    """
    path, grid = results.folder / PROBABILITY, results.grid
    first, last = _rows(shapes, grid)
    small, counts = [], np.zeros((len(shapes) + 1, BINS), np.int64)
    with open_raster(path) as dataset:
        for window in strips(grid, factor):
            band, valid = read_valid(dataset, (1,), window, path)
            small.append(shrink(np.where(valid, band, np.float32(np.nan)), factor)[0])
            inside = np.flatnonzero((first < window.row + window.height) & (last > window.row))
            member = _members(shapes, inside, grid.window(window))
            index = member[valid].astype(np.int64) * BINS + bins_of(band[0][valid])
            counts += np.bincount(index, minlength=counts.size).reshape(counts.shape)
    return Survey(np.concatenate(small), counts[1:])


def date_of(path: Path | str) -> str | None:
    """When an image was taken, with what says so; None where nothing does, or nothing can be read."""
    try:
        with open_raster(path) as dataset:
            found = day_of(dataset, path)
    except InputError:
        return None
    return f"{found[0]} ({found[1]})" if found else None


def outlines(shapes: NDArray[Any], grid: Grid, tolerance_px: float) -> list[list[list[int]]]:
    """Rings of polygons in pixels, (col, row) after (col, row), shell first, without the repeated last point.

    Args:
        shapes: (n,) polygons in the CRS of the grid.
        grid: whose pixels count.
        tolerance_px: how far a line may be off, and what edge a hole must have; 0 keeps everything.
    """
    flat = shapely.transform(shapes, lambda xy: np.column_stack((~grid.transform) @ tuple(xy.T)))
    flat = shapely.simplify(flat, tolerance_px) if tolerance_px else flat
    return [
        [
            np.rint(shapely.get_coordinates(ring)[:-1]).astype(int).ravel().tolist()
            for ring in _rings(shape, tolerance_px)
        ]
        for shape in flat
    ]


def _rings(shape: Any, tolerance_px: float) -> Sequence[Any]:
    """Shells and holes of a polygon, without holes that are smaller than the tolerance."""
    parts = shapely.get_parts(shape)
    holes = [ring for part in parts for ring in part.interiors if shapely.Polygon(ring).area >= tolerance_px**2]
    return [*(part.exterior for part in parts), *holes]


def _rows(shapes: NDArray[Any], grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last row that each polygon may touch."""
    left, bottom, right, top = shapely.bounds(shapes).reshape(-1, 4).T
    inverse: Affine = ~grid.transform
    rows = np.array([(inverse @ corner)[1] for corner in ((left, bottom), (left, top), (right, bottom), (right, top))])
    return rows.min(0), rows.max(0)


def _members(shapes: NDArray[Any], inside: NDArray[np.intp], grid: Grid) -> NDArray[np.int32]:
    """(h, w): number from 1 of the polygon that holds a pixel's middle, 0 where none does."""
    if inside.size == 0:
        return np.zeros(grid.shape, np.int32)
    numbered = [(shapes[k], int(k) + 1) for k in inside]
    return np.asarray(rasterize(numbered, grid.shape, transform=grid.transform, dtype="int32"))
