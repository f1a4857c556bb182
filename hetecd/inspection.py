"""What two images are, what ``hetecd predict`` would do with them, and what is wrong with them, before it is done.

Pixels are looked at in a sample of windows spread over each image, so that scenes of any size take seconds, up to a
minute where data has to be searched for; shares and ranges are those of the sample.
"""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetecd.align import OpenMoved, find_move, limit_of
from hetecd.config import Role
from hetecd.doubts import (
    Problems,
    Side,
    check_likeness,
    check_range,
    check_same,
    check_values,
    compare_labels,
    label_of,
    note,
    noting,
    roles_of,
)
from hetecd.errors import InputError
from hetecd.grids import GridChoice, choose_grid
from hetecd.ground import bounds_wgs84, pixel_m
from hetecd.image import Image, Read, open_image
from hetecd.info import ModelInfo
from hetecd.modality import EIGHT_BIT, Floats, Modality, Windows, looks_like
from hetecd.pair import SAMPLE, SAMPLE_PX, check_related, open_pair
from hetecd.place import at_grid, pixel_of, side_by_side
from hetecd.raster import Bools, Grid, check_numbers, crs_text, data_bands
from hetecd.scaling import Scaling
from hetecd.stream import check_windows
from hetecd.tiles import Window, sampled, spread, starts

LATTICE = 101  # points along either axis at which the overlap is measured
EARTH_KM = 6371.0
SPARSE = 0.9  # share of invalid pixels from which it is asked where the others are


def inspect_pair(
    before: Path | str,
    after: Path | str,
    before_is: Role,
    info: ModelInfo,
    choice: GridChoice,
    windows: Windows,
    align: str = "auto",
    scaling: Scaling = "auto",
) -> dict[str, Any]:
    """Look at a pair without mapping it. The arguments are those of a prediction.

    Raises:
        InputError: ``align`` cannot be; everything else is among the problems.

    Returns:
        JSON-able: ``usable`` (False where a prediction would fail), ``problems`` ({fatal, found, remedy}, the fatal
        ones first), ``before`` and ``after`` (what each image is; None where it cannot be opened), and, where the two
        belong together, ``grid`` ({crs, height, width, pixel_m, bounds_wgs84}), ``windows``, ``overlap`` (share of the
        grid that both cover), ``valid`` (share of what both cover that is valid in both) and ``alignment`` (how the
        SAR image lies, as :meth:`hetecd.align.Alignment.summary` has it; None with ``align`` "off").
    """
    limit_px = limit_of(align)
    problems: Problems = []
    report: dict[str, Any] = {"usable": False, "problems": problems, "before": None, "after": None}
    report |= {"grid": None, "windows": None, "overlap": None, "valid": None, "alignment": None}
    roles = roles_of(before_is)
    with ExitStack() as stack:
        images: dict[Role, Image] = {}
        samples: list[Floats] = []
        for name, path, role in (("before", before, roles[0]), ("after", after, roles[1])):
            with noting(problems):
                # The first band, which every image has: that others lack is one problem among several.
                image = stack.enter_context(open_image(path, (1,)))
                report[name], images[role], sample = _side(stack, image, role, getattr(info, role), scaling, problems)
                samples.append(sample)
        if len(samples) == 2:
            if not check_same(report["before"], report["after"], samples, problems):
                compare_labels(report["before"], report["after"], problems)
            with noting(problems):
                check_related(images["optical"], images["sar"])
                grid = _meet(stack, images, choice, report, problems)
                check_windows(*windows)
                rows, cols = (starts(size, *windows) for size in grid.shape)
                report["windows"] = len(rows) * len(cols)
                if said := info.unlike_pixels(report["grid"]["pixel_m"]):
                    note(problems, *said)
            if limit_px is not None and not any(problem["fatal"] for problem in problems):
                open_moved = partial(open_pair, before, after, before_is, info.optical, info.sar, choice=choice)
                report["alignment"] = _measure_shift(open_moved, limit_px, problems)
    problems.sort(key=lambda problem: not problem["fatal"])
    report["usable"] = not any(problem["fatal"] for problem in problems)
    return report


# --- one image -------------------------------------------------------------------------------------------------------


def _side(
    stack: ExitStack, image: Image, role: Role, modality: Modality, scaling: Scaling, problems: Problems
) -> tuple[Side, Image, Floats]:
    """What an image is; the image with the bands to read; a sample (C, n) of its pixels, NaN where invalid."""
    granule = image.granules[0]
    dataset, place = granule.dataset, granule.place
    numbers = modality.bands
    with noting(problems):
        for one in image.granules:
            check_numbers(one.dataset, numbers, one.path)
    fewest = min((one.dataset for one in image.granules), key=lambda one: one.count)
    if problems and max(numbers) > fewest.count:
        numbers = data_bands(fewest)[:3]
    image = replace(image, numbers=numbers)
    own = choose_grid([one.place for one in image.granules], image.path, GridChoice()).grid
    sample, invalid = _sample(image.on(stack, own), own.shape)
    valid = np.asarray(np.isfinite(sample).all(0))
    side = {
        **label_of(image, role),
        "granules": len(image.granules),
        "height": own.height if len(image.granules) > 1 else place.height,
        "width": own.width if len(image.granules) > 1 else place.width,
        "dtype": dataset.dtypes[0],
        "crs": None if place.crs is None else crs_text(place.crs),
        "placed_by": place.by,
        "pixel_m": _finite(pixel_m(own)),
        "bounds_wgs84": bounds_wgs84(own),
        "invalid": invalid,
    }
    side["values"], side["scale"] = _values(sample, numbers, dataset.dtypes[0])
    if valid.any():
        check_values(side, sample[:, valid], problems)
        check_range(side, sample, modality, scaling, problems)
    else:
        note(problems, f"{side['path']}: found no valid pixel in the sample", "check its nodata value", fatal=True)
    return side, image, sample


def _sample(read: Read, shape: tuple[int, int]) -> tuple[Floats, float]:
    """Pixels (C, n) of windows spread over an image, or over where it has any; share of invalid ones of the whole."""

    def look(window: Window) -> Floats | None:
        values, valid = read(window)
        return values if valid.any() else None

    def joined(parts: list[Floats]) -> Floats:
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)

    pixels = joined([read(window)[0] for window in spread(shape, SAMPLE, SAMPLE_PX)])
    invalid = float(1 - np.isfinite(pixels).all(0).mean())
    if invalid > SPARSE and (seen := sampled(shape, look, SAMPLE, SAMPLE_PX)[0]):
        pixels = joined(seen)
    return pixels, invalid


def _values(sample: Floats, numbers: tuple[int, ...], dtype: str) -> tuple[list[dict[str, Any]], str]:
    """Range of each band, and what its numbers look like."""
    values = []
    for number, band in zip(numbers, sample, strict=True):
        if np.isfinite(band).any():
            low, median, high = (float(v) for v in np.nanpercentile(band, (1, 50, 99)))
            values.append({"band": number, "low": low, "median": median, "high": high})
    if not values:
        return values, "nothing"
    return values, EIGHT_BIT if dtype == "uint8" else looks_like(sample)


# --- both images -----------------------------------------------------------------------------------------------------


def _meet(
    stack: ExitStack, images: dict[Role, Image], choice: GridChoice, report: dict[str, Any], problems: Problems
) -> Grid:
    """Where the two lie on their common grid."""
    optical, sar = images["optical"], images["sar"]
    common = choose_grid([granule.place for granule in optical.granules], optical.path, choice)
    grid = common.grid
    crs = crs_text(grid.crs) if grid.crs else None
    report["grid"] = {
        "crs": crs,
        "height": grid.height,
        "width": grid.width,
        "pixel_m": _finite(pixel_m(grid)),
        "bounds_wgs84": bounds_wgs84(grid),
    }
    try:
        readers = [image.on(stack, grid) for image in (optical, sar)]
    except InputError:
        far = _apart(report["before"]["bounds_wgs84"], report["after"]["bounds_wgs84"])
        if not far:
            raise
        report["overlap"] = 0.0
        note(problems, f"{sar.path}: {far}", "check that both files show the same place", fatal=True)
        return grid
    covered = _covered(optical, grid) & _covered(sar, grid)
    report["overlap"] = float(covered.mean())

    def valid_in(window: Window) -> Bools | None:
        found = np.ones((window.height, window.width), bool) if common.wanted is None else common.wanted(window)
        for read in readers:
            found = found & read(window)[1] if found.any() else found
        return found if found.any() else None

    good = [valid_in(window) for window in _near(covered, grid)]
    report["valid"] = float(np.mean([0.0 if part is None else part.mean() for part in good])) if good else 0.0
    if not report["valid"] and not sampled(grid.shape, valid_in, SAMPLE, SAMPLE_PX)[0]:
        note(
            problems,
            f"{optical.path} and {sar.path}: found no pixel valid in both in a sample of where they overlap",
            "check that both show the same place and what their nodata values are",
            fatal=True,
        )
    elif report["overlap"] < 0.05:
        note(
            problems,
            f"{sar.path}: covers {report['overlap']:.1%} of the grid",
            "check that it is the right image; --bounds or --aoi keep the map small",
        )
    return grid


def _covered(image: Image, grid: Grid) -> Bools:
    """Which points of a lattice (LATTICE, LATTICE) over a grid an image covers."""
    cols, rows = (
        values.ravel()
        for values in np.meshgrid(*((np.arange(LATTICE) + 0.5) / LATTICE * size for size in grid.shape[::-1]))
    )
    inside = np.zeros(cols.shape, bool)
    for granule in image.granules:
        place, plane = side_by_side(granule.place, grid)
        at = np.array([cols, rows]) if place.crs is None else pixel_of(at_grid(plane), place, cols, rows)
        inside |= ((at >= 0) & (at < np.array([[place.width], [place.height]]))).all(0)
    return inside.reshape(LATTICE, LATTICE)


def _near(covered: Bools, grid: Grid) -> list[Window]:
    """Windows around some of the points of the lattice that are covered, evenly picked."""
    points = np.argwhere(covered)
    picked = points[np.unique(np.linspace(0, len(points) - 1, SAMPLE**2, dtype=int))] if len(points) else points
    windows = []
    for point in picked:
        middle = (point + 0.5) / LATTICE * grid.shape
        height, width = (min(SAMPLE_PX // 2, size) for size in grid.shape)
        row, col = (
            int(np.clip(m - s / 2, 0, size - s)) for m, s, size in zip(middle, (height, width), grid.shape, strict=True)
        )
        windows.append(Window(row, col, height, width))
    return windows


def _apart(one: NDArray[Any] | None, other: NDArray[Any] | None) -> str:
    """How far two boxes (west, south, east, north) in degrees are from each other, in words."""
    if one is None or other is None:
        return ""
    # Across the antimeridian west is more than east.
    (lon1, lat1), (lon2, lat2) = (((w + e + 360 * (e < w)) / 2, (s + n) / 2) for w, s, e, n in (one, other))
    if max(abs(lon1 - lat2), abs(lat1 - lon2)) < 1:
        return f"lies elsewhere ({lon2:.3f}, {lat2:.3f}): longitude and latitude look exchanged"
    lon1, lat1, lon2, lat2 = np.radians([lon1, lat1, lon2, lat2])
    half = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    km = 2 * EARTH_KM * np.arcsin(np.sqrt(half))
    return f"found no overlap: the middles of the two images are {km:,.1f} km apart"


def _measure_shift(open_moved: OpenMoved, limit_px: int, problems: Problems) -> dict[str, object]:
    found = find_move(open_moved, limit_px)
    check_likeness(found, problems)
    return found.summary()


def _finite(edges: tuple[float, float]) -> list[float] | None:
    return list(edges) if all(map(np.isfinite, edges)) else None
