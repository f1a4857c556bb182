"""What is written beside a finished map: how it was made, and what it says in numbers.

``summary.json`` is the contract with everything that shows results. Its fields:

    hetecd, created      version, time of writing (UTC)
    before, after        {path, bytes, sha256, is, read_as}, perhaps sources and version: see
                         :func:`hetecd.sources.identify`
    weights              {name, path, bytes, sha256, scores}: validation scores of the checkpoint; perhaps sources, the
                         file beside an OpenVINO graph; null without a name
    scaling              {optical, sar}: bands and ranges that the values were scaled by, of a
                         :class:`hetecd.modality.Modality`; null where no checkpoint made the map
    settings             threshold, tile_px, overlap_px, tta, precision, runtime, device ("cpu", "cuda"), and of the
                         polygons min_area, simplify
    alignment            null, or how the SAR image was moved
    grid                 {crs, transform [a, b, c, d, e, f], height, width, pixel_m, bounds_wgs84}
    aoi                  null, or {path, bytes, sha256} of the area of interest
    pixels, valid_pixels, changed_pixels, changed_area_m2, polygons
    classes              [{from_prob, to_prob, pixels, area_m2}]: the changed area by confidence
    histogram            {bins, pixels, area_m2}: the valid pixels by probability
    outputs, warnings, seconds
    bytes                {name: size} of the two GeoTIFFs: one of another size was damaged or edited since
    asked                digest of the request, by which a finished map is known before anything is read

Areas, ``pixel_m`` and ``bounds_wgs84`` are null where the grid is tied to no place on earth.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hetecd
from hetecd.errors import InputError
from hetecd.files import writing
from hetecd.ground import PixelAreas, bounds_wgs84, pixel_m
from hetecd.info import ModelInfo
from hetecd.modality import Floats
from hetecd.pair import Pair
from hetecd.raster import Bools, Grid, crs_text
from hetecd.sources import identify, identify_with, is_known
from hetecd.tiles import Window

log = logging.getLogger("hetecd")

BINS = 100
CLASSES = (0.6, 0.7, 0.8, 0.9)  # where confidence classes end, between the threshold and 1
EDGES = (np.arange(BINS + 1) / BINS).astype(np.float32)
STRIP_ROWS = 64  # rows of a map that are in memory at a time, besides blocks with data
CELL_PX = 16  # pixels of such a square count with the area of the one in its middle


@dataclass(frozen=True)
class About:
    """How a map is made, as far as it is known before: for its metadata.

    Attributes:
        weights: name, path, sha256 and validation scores of the checkpoint, from :func:`describe_weights`.
        tta: mean with a mirror image.
        precision: that the predictor was asked for.
        runtime: that the predictor was asked for.
        device: kind of device that computes, "cpu" or "cuda": rounding depends on it.
        alignment: how the SAR image was moved, JSON-able; None where nothing was estimated.
        warnings: what a reader of the results should know.
        model: what the checkpoint says about itself, with the bands and ranges that were used.
        asked: from :func:`hetecd.sources.request_of`; "" = unknown.
    """

    weights: Mapping[str, Any] | None = None
    tta: bool = False
    precision: str = "auto"
    runtime: str = "auto"
    device: str = "cpu"
    alignment: Mapping[str, Any] | None = None
    warnings: Sequence[str] = ()
    model: ModelInfo | None = None
    asked: str = ""


def describe_weights(path: Path | str, scores: Mapping[str, float | None]) -> dict[str, Any]:
    """Name, path, checksum and validation scores of a checkpoint or exported graph."""
    return {"name": Path(path).name, **identify_with(path), "scores": dict(scores) or None}


def describe(pair: Pair, about: About, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the summary that is known before a run; reads the input files once for their checksums.

    Args:
        pair: what is mapped.
        about: what else is known.
        settings: of the run.
    """
    dates = {"optical": pair.optical_path, "sar": pair.sar_path}
    before, after = dates if pair.before_is == "optical" else reversed(dates)
    images = {"before": identify(dates[before]) | {"is": before}, "after": identify(dates[after]) | {"is": after}}
    unknown = [
        f"{image['path']}: nothing tells whether it changes (neither ETag nor Last-Modified); taken for the same"
        for image in images.values()
        if not is_known(image)
    ]
    return {
        "hetecd": hetecd.__version__,
        **images,
        "weights": about.weights,
        "scaling": about.model and {role: asdict(getattr(about.model, role)) for role in ("optical", "sar")},
        "settings": {
            **settings,
            "tta": about.tta,
            "precision": about.precision,
            "runtime": about.runtime,
            "device": about.device,
        },
        "alignment": about.alignment,
        "grid": _describe_grid(pair.grid),
        "aoi": None if pair.aoi is None else identify_with(pair.aoi),
        "warnings": [*about.warnings, *unknown],
    }


def tags(description: Mapping[str, Any]) -> dict[str, str]:
    """Metadata of a GeoTIFF: a description without what the GeoTIFF knows itself, flat and without folders."""
    out = {"hetecd": description["hetecd"]} | {key: json.dumps(description[key]) for key in ("alignment", "scaling")}
    for date in ("before", "after"):
        out |= {date: Path(description[date]["path"]).name, f"{date}_sha256": description[date]["sha256"] or "unknown"}
    for key in ("weights", "aoi"):
        if entry := description[key]:
            out |= {key: entry.get("name") or Path(entry["path"]).name, f"{key}_sha256": entry["sha256"] or "unknown"}
    return out | {key: str(value) for key, value in description["settings"].items()}


@contextmanager
def warnings_heard(keep: Callable[[str], None]) -> Iterator[None]:
    """Hand on what hetecd warns of meanwhile, for the summary; it is shown all the same."""

    def hear(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            keep(record.getMessage())
        return True

    log.addFilter(hear)
    try:
        yield
    finally:
        log.removeFilter(hear)


@dataclass
class Count:
    """Numbers of a map, summed up over blocks of rows.

    Attributes:
        grid: of the map.
        threshold: probability from which a pixel is changed.
        pixels: (BINS,) valid pixels by probability.
        area_m2: their area.
        class_pixels: changed pixels by confidence class.
        class_area_m2: their area.
    """

    grid: Grid
    threshold: float
    edges: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.edges = np.array([self.threshold, *(edge for edge in CLASSES if edge > self.threshold), 1.0])
        self.pixels = np.zeros(BINS, np.int64)
        self.area_m2 = np.zeros(BINS)
        self.class_pixels = np.zeros(len(self.edges) - 1, np.int64)
        self.class_area_m2 = np.zeros(len(self.edges) - 1)
        self._areas = PixelAreas(self.grid)

    def passing(self, blocks: Iterable[tuple[Window, Bools, Floats]]) -> Iterator[tuple[Window, Bools, Floats]]:
        """Hand on blocks, and count them on the way."""
        for block in blocks:
            self.add(*block)
            yield block

    def add(self, window: Window, changed: Bools, probability: Floats) -> None:
        """Count a block of the map (h, w) at a window: which pixels changed, and how likely (NaN = invalid)."""
        for start in range(0, len(probability), CELL_PX):
            rows = probability[start : start + CELL_PX]
            valid = ~np.isnan(rows)
            areas = self._cell_areas(window, window.row + start + len(rows) / 2)
            _sum(self.pixels, self.area_m2, areas, valid, bins_of(rows[valid]))
            changes = changed[start : start + CELL_PX] & valid
            classes = np.digitize(rows[changes], self.edges[1:-1].astype(np.float32))
            _sum(self.class_pixels, self.class_area_m2, areas, changes, classes)

    def _cell_areas(self, window: Window, row: float) -> NDArray[np.float64]:
        """Area of a pixel in each cell of a window along a row."""
        cells = -(-window.width // CELL_PX)
        middles = window.col + np.minimum(np.arange(cells) * CELL_PX + CELL_PX / 2, window.width)
        return self._areas.at(np.array([row]), middles)[0]

    @property
    def changed_area_m2(self) -> float:
        """Area of all changed pixels; NaN where the grid is tied to no place on earth."""
        return float(self.class_area_m2.sum())

    def numbers(self) -> dict[str, Any]:
        """Their part of the summary."""
        known = self._areas.known
        classes = [
            {"from_prob": low, "to_prob": high, "pixels": pixels, "area_m2": area if known else None}
            for low, high, pixels, area in zip(
                self.edges[:-1].tolist(), self.edges[1:].tolist(), self.class_pixels.tolist(),
                self.class_area_m2.tolist(), strict=True,
            )
        ]  # fmt: skip
        area_m2 = self.area_m2.tolist() if known else None
        return {
            "pixels": self.grid.height * self.grid.width,
            "valid_pixels": int(self.pixels.sum()),
            "changed_pixels": int(self.class_pixels.sum()),
            "changed_area_m2": self.changed_area_m2 if known else None,
            "classes": classes,
            "histogram": {"bins": BINS, "pixels": self.pixels.tolist(), "area_m2": area_m2},
        }


def _sum(
    pixels: NDArray[np.int64],
    area_m2: NDArray[np.float64],
    cell_areas: NDArray[np.float64],
    where: Bools,
    bins: NDArray[Any],
) -> None:
    """Add the pixels of a strip of cells to their bins."""
    at = np.nonzero(where)[1] // CELL_PX * len(pixels) + bins
    counts = np.bincount(at, minlength=len(cell_areas) * len(pixels)).reshape(len(cell_areas), len(pixels))
    pixels += counts.sum(0)
    area_m2 += cell_areas @ counts


def bins_of(probability: Floats) -> NDArray[np.int64]:
    """The bin of each probability: k / BINS <= p < (k + 1) / BINS as float32, the last one with 1.

    Multiplied and cut off, some probabilities would miss the bin of a threshold that they reach.
    """
    return np.digitize(probability, EDGES[1:-1])


def map_rows(blocks: Iterable[tuple[Window, Bools, Floats]], grid: Grid) -> Iterator[tuple[Bools, Floats]]:
    """Rows of a map from top to bottom, of any number: changed (n, W), probability (n, W); False and 0 in between.

    Args:
        blocks: window, changed and probability, sorted by row; those of a row begin and end with each other.
        grid: of the map.
    """
    done = 0
    for row, beside in groupby(blocks, key=lambda block: block[0].row):
        yield from _no_rows(row - done, grid)
        parts = list(beside)
        height = parts[0][0].height
        for first in range(0, height, STRIP_ROWS):
            size = (min(STRIP_ROWS, height - first), grid.width)
            strip = np.zeros(size, bool), np.zeros(size, np.float32)
            for window, *images in parts:
                for target, image in zip(strip, images, strict=True):
                    target[:, window.col : window.col + window.width] = image[first : first + STRIP_ROWS]
            yield strip
        done = row + height
    yield from _no_rows(grid.height - done, grid)


def _no_rows(count: int, grid: Grid) -> Iterator[tuple[Bools, Floats]]:
    """Rows where nothing is, a strip at a time."""
    size = (min(STRIP_ROWS, count), grid.width)
    strip = np.zeros(size, bool), np.zeros(size, np.float32)
    for first in range(0, count, STRIP_ROWS):
        yield strip[0][: count - first], strip[1][: count - first]


def read_summary(made_from: Mapping[str, Any], outputs: Sequence[Path]) -> dict[str, Any] | None:
    """The summary among the outputs, if these are there and it says that they were made from just that.

    Raises:
        InputError: a GeoTIFF is not as large as it was written.
    """
    summary = next(path for path in outputs if path.name == "summary.json")
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found | json.loads(json.dumps(made_from)) == found
    if not same or found["outputs"] != [path.name for path in outputs] or not all(map(os.path.isfile, outputs)):
        return None
    for path in outputs:
        written = (found.get("bytes") or {}).get(path.name)  # older versions do not say
        if written not in (None, size := path.stat().st_size):
            raise InputError(
                f"{path}: found {size} bytes, expected {written} as they were written; it was damaged or edited: "
                "delete it to have it made anew, or choose another folder"
            )
    return found


def write_summary(
    path: Path, description: Mapping[str, Any], numbers: Mapping[str, Any], started: float
) -> dict[str, Any]:
    """Write ``summary.json``, and give what it says.

    Args:
        path: where.
        description: from :func:`describe`.
        numbers: of :class:`Count`, the polygons and outputs.
        started: reading of ``time.monotonic`` when the run began.

    Raises:
        OutputError: it cannot be written.
    """
    times = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": time.monotonic() - started}
    summary = {**description, **numbers, **times}
    with writing(path):
        text = json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    return summary


def _describe_grid(grid: Grid) -> dict[str, Any]:
    edges = pixel_m(grid)
    return {
        "crs": crs_text(grid.crs) if grid.crs else None,
        "transform": list(grid.transform)[:6],
        "height": grid.height,
        "width": grid.width,
        "pixel_m": list(edges) if all(map(math.isfinite, edges)) else None,
        "bounds_wgs84": bounds_wgs84(grid),
    }
