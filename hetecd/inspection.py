"""What two images are, what ``hetecd predict`` would do with them, and what is wrong with them, before it is done.

Pixels are looked at in a sample of windows spread over each image, so that scenes of any size take seconds, up to a
minute where data has to be searched for; shares and ranges are those of the sample.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetecd.align import AGREE, OpenMoved, find_move, limit_of
from hetecd.config import Role
from hetecd.errors import InputError
from hetecd.grids import GridChoice, choose_grid
from hetecd.ground import bounds_wgs84, pixel_m
from hetecd.image import Granule, Image, Read, open_image
from hetecd.info import ModelInfo
from hetecd.modality import EIGHT_BIT, Floats, Modality, Windows, looks_like
from hetecd.pair import check_related, open_pair
from hetecd.place import at_grid, pixel_of, side_by_side
from hetecd.raster import Bools, Grid, alpha_band, by_all_values, check_numbers, crs_text, data_bands, day_of, nodata_of
from hetecd.scaling import Scaling
from hetecd.stream import check_windows
from hetecd.tiles import Window, sampled, spread, starts

SAMPLE, SAMPLE_PX = 6, 128  # windows along either axis, and their edge
LATTICE = 101  # points along either axis at which the overlap is measured
EARTH_KM = 6371.0
SPARSE = 0.9  # share of invalid pixels from which it is asked where the others are
BLANK = 0.01  # share of pixels that are 0 in every band from which they look like undeclared nodata


def _words_of(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z])({words})(?![a-z])", re.IGNORECASE)


# What in the names of files and bands tells what made an image.
WORDS: dict[Role, re.Pattern[str]] = {
    "sar": _words_of("vv|vh|hh|hv|sar|sigma0|gamma0|s1[abc]?|sentinel-?1|iceye|capella|umbra|terrasar|radarsat|palsar"),
    "optical": _words_of("rgb|optical|s2[abc]?|sentinel-?2|landsat|planet|pleiades|worldview|red|green|nir"),
}

Side = dict[str, Any]
Problems = list[dict[str, Any]]


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
    roles = _roles(before_is)
    with ExitStack() as stack:
        images: dict[Role, Image] = {}
        samples: list[Floats] = []
        for name, path, role in (("before", before, roles[0]), ("after", after, roles[1])):
            with _noting(problems):
                # The first band, which every image has: that others lack is one problem among several.
                image = stack.enter_context(open_image(path, (1,)))
                report[name], images[role], sample = _side(stack, image, role, getattr(info, role), scaling, problems)
                samples.append(sample)
        if len(samples) == 2:
            _compare(report["before"], report["after"], samples, problems)
            with _noting(problems):
                check_related(images["optical"], images["sar"])
                grid = _meet(stack, images, choice, report, problems)
                check_windows(*windows)
                rows, cols = (starts(size, *windows) for size in grid.shape)
                report["windows"] = len(rows) * len(cols)
                if said := info.unlike_pixels(report["grid"]["pixel_m"]):
                    _note(problems, *said)
            if limit_px is not None and not any(problem["fatal"] for problem in problems):
                open_moved = partial(open_pair, before, after, before_is, info.optical, info.sar, choice=choice)
                report["alignment"] = _measure_shift(open_moved, limit_px, problems)
    problems.sort(key=lambda problem: not problem["fatal"])
    report["usable"] = not any(problem["fatal"] for problem in problems)
    return report


def doubts(before: Path | str, after: Path | str, before_is: Role, info: ModelInfo) -> list[str]:
    """What names and tags say against a pair, without a look at pixels: dates or modalities that look exchanged.

    Raises:
        InputError: the same bands of one file would be both dates, or one cannot be opened.
    """
    problems: Problems = []
    with open_image(before, (1,)) as one, open_image(after, (1,)) as other:
        roles = _roles(before_is)
        labels = [
            _label(replace(image, numbers=getattr(info, role).bands), role)
            for image, role in zip((one, other), roles, strict=True)
        ]
    _compare_labels(labels[0], labels[1], problems)
    said = [f"{problem['found']}; {problem['remedy']}" for problem in problems]
    if any(problem["fatal"] for problem in problems):
        raise InputError(said[0])
    return said


def _roles(before_is: Role) -> tuple[Role, Role]:
    return ("optical", "sar") if before_is == "optical" else ("sar", "optical")


@contextmanager
def _noting(problems: Problems) -> Iterator[None]:
    """Make an InputError of the body a problem; its message ends with what to do."""
    try:
        yield
    except InputError as error:
        found, *remedy = str(error).rsplit("; ", 1)
        _note(problems, found, "".join(remedy), fatal=True)


def _note(problems: Problems, found: str, remedy: str, fatal: bool = False) -> None:
    problems.append({"fatal": fatal, "found": found, "remedy": remedy})


# --- one image -------------------------------------------------------------------------------------------------------


def _side(
    stack: ExitStack, image: Image, role: Role, modality: Modality, scaling: Scaling, problems: Problems
) -> tuple[Side, Image, Floats]:
    """What an image is; the image with the bands to read; a sample (C, n) of its pixels, NaN where invalid."""
    granule = image.granules[0]
    dataset, place = granule.dataset, granule.place
    numbers = modality.bands
    with _noting(problems):
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
        **_label(image, role),
        "granules": len(image.granules),
        "height": own.height if len(image.granules) > 1 else place.height,
        "width": own.width if len(image.granules) > 1 else place.width,
        "band_names": list(dataset.descriptions),
        "dtype": dataset.dtypes[0],
        "crs": None if place.crs is None else crs_text(place.crs),
        "placed_by": place.by,
        "pixel_m": _finite(pixel_m(own)),
        "bounds_wgs84": bounds_wgs84(own),
        "nodata": _nodata(granule),
        "rescaled": _rescaled(image),
        "invalid": invalid,
    }
    side["values"], side["scale"] = _values(sample, numbers, dataset.dtypes[0])
    _check_values(side, sample, valid, role, modality, scaling, problems)
    return side, image, sample


def _label(image: Image, role: Role) -> Side:
    """What names and tags say of an image."""
    granule = image.granules[0]
    return {
        "path": str(image.path),
        "is": role,
        "bands": granule.dataset.count,
        "reads": image.numbers,
        "date": (day_of(granule.dataset, granule.path) or (None,))[0],
        "words": {other: sorted(_words(granule, other)) for other in ("optical", "sar")},
    }


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


def _nodata(granule: Granule) -> str:
    """How a file marks invalid pixels."""
    dataset = granule.dataset
    values = (nodata_of(dataset, number) for number in dataset.indexes)
    ways = [f"value {value:g}" for value in sorted({v for v in values if v is not None})]
    masks = [{flag.name for flag in flags} for flags in dataset.mask_flag_enums]
    if any(map(by_all_values, dataset.mask_flag_enums)):
        ways.append("values of all bands together")
    elif any("per_dataset" in names and "alpha" not in names for names in masks):
        ways.append("mask band")
    if alpha_band(dataset):
        ways.append("alpha")
    return ", ".join(ways) or "not declared"


def _rescaled(image: Image) -> dict[str, float] | None:
    """Scale and offset by which stored values would become physical ones, if any are declared for what is read."""
    for granule in image.granules:
        for number in image.numbers:
            scale, offset = granule.dataset.scales[number - 1], granule.dataset.offsets[number - 1]
            if (scale, offset) != (1, 0):
                return {"scale": scale, "offset": offset}
    return None


def _words(granule: Granule, role: Role) -> set[str]:
    """What in the name of a file and of its bands speaks for a modality."""
    dataset = granule.dataset
    texts = [Path(granule.path).stem, *(text for text in dataset.descriptions if text)]
    found = {match.group(0) for text in texts for match in WORDS[role].finditer(text.replace("_", " "))}
    if role == "optical" and "red" in [colour.name for colour in dataset.colorinterp]:
        found.add("bands red, green, blue")
    return found


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


def _check_values(
    side: Side, sample: Floats, valid: Bools, role: Role, modality: Modality, scaling: Scaling, problems: Problems
) -> None:
    """Note values that are unlike those of training, and nodata that nobody declared."""
    if not valid.any():
        _note(problems, f"{side['path']}: found no valid pixel in the sample", "check its nodata value", fatal=True)
        return
    for band, values in dict(zip(side["reads"], sample[:, valid], strict=True)).items():
        few = [f"{value:g}" for value in np.unique(values)[:3]]
        if len(values) > len(few) < 3:
            what = f"is {few[0]} everywhere in the sample and shows nothing"
            if len(few) == 2:
                what = f"has only the values {' and '.join(few)} in the sample, as labels and masks have"
            _note(
                problems,
                f"{side['path']}: band {band} {what}",
                f"check the file, or read another band with --{role}-bands",
            )
    blank = (sample[:, valid] == 0).all(0).mean()
    if blank > BLANK and side["nodata"] == "not declared":
        _note(
            problems,
            f"{side['path']}: {blank:.0%} of the pixels are 0 in every band but no nodata is declared, so they count",
            f"if they are empty, declare it: rio edit-info --nodata 0 {side['path']}",
        )
    if side["rescaled"]:
        _note(
            problems,
            f"{side['path']}: declares scale {side['rescaled']['scale']:g} and offset {side['rescaled']['offset']:g}, "
            "which are not applied: values count as they are stored",
            "unscale it where the weights know the physical values (gdal_translate -unscale -ot Float32)",
        )
    if len(sample) != modality.channels:
        return
    # As the network will: the values as they stand, or in dB where it wants so.
    if modality.in_unit(side["scale"]).is_foreign(sample[None, :, :, None]):
        wanted = "decibels" if modality.unit == "dB" else "linear power" if modality.db else modality.unit
        trained = f"{wanted} from {min(modality.low):g} to {max(modality.high):g}{' dB' if modality.db else ''}"
        found = f"{side['scale']} from {min(v['low'] for v in side['values']):.4g} to "
        found += f"{max(v['high'] for v in side['values']):.4g}"
        _note(
            problems,
            f"{side['path']}: {role} values are unlike those of training (found {found}, expected {trained})",
            ("" if scaling == "weights" else "predict takes the range of this scene, a guess; better ")
            + "rescale the image as those of training were",
        )


# --- both images -----------------------------------------------------------------------------------------------------


def _compare(before: Side, after: Side, samples: list[Floats], problems: Problems) -> None:
    """Note a file given twice, and dates or modalities that look exchanged."""
    one, other = samples
    there = one.shape[1] == other.shape[1] and bool(np.isfinite(one[0]).any())
    same = there and np.array_equal(one[0], other[0], equal_nan=True)
    if same:
        _note(problems, f"{after['path']}: shows the same as {before['path']}", "name the other date", fatal=True)
    else:
        _compare_labels(before, after, problems)


def _compare_labels(before: Side, after: Side, problems: Problems) -> None:
    """The same, as far as names and tags tell."""
    if os.path.realpath(before["path"]) == os.path.realpath(after["path"]):
        if {*before["reads"]} & {*after["reads"]}:
            found = f"{after['path']}: found the same file as {before['path']}, expected another, or other bands of it"
            _note(problems, found, "name the other date", fatal=True)
        return
    if before["date"] and after["date"] and before["date"] > after["date"]:
        _note(
            problems,
            f"{before['path']}: is of {before['date']}, which is after {after['date']} of {after['path']}",
            "give the earlier one first" + ("" if before["is"] == after["is"] else ", and say --before-is"),
        )
    optical, sar = (before, after) if before["is"] == "optical" else (after, before)
    clues = [
        f"{side['path']} says {', '.join(side['words'][other])}"
        for side, role, other in ((optical, "optical", "sar"), (sar, "sar", "optical"))
        if side["words"][other] and not side["words"][role]
    ]
    if optical.get("scale") == "decibels":
        clues.append(f"{optical['path']} has values in decibels")
    if optical["bands"] < 3 <= sar["bands"]:
        clues.append(f"{optical['path']} has {optical['bands']} and {sar['path']} has {sar['bands']} bands")
    if clues:
        wanted = "sar" if before["is"] == "optical" else "optical"
        _note(
            problems,
            f"{optical['path']}: is taken for optical and {sar['path']} for SAR, but {', '.join(clues)}",
            f"exchange the two, or say --before-is {wanted}",
        )


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
        _note(problems, f"{sar.path}: {far}", "check that both files show the same place", fatal=True)
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
        _note(
            problems,
            f"{optical.path} and {sar.path}: found no pixel valid in both in a sample of where they overlap",
            "check that both show the same place and what their nodata values are",
            fatal=True,
        )
    elif report["overlap"] < 0.05:
        _note(
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
    if found.tiles >= AGREE[0] and found.inlier_ratio < AGREE[1]:
        _note(
            problems,
            f"pair: the images hardly show the same structures ({found.inlier_ratio:.0%} of {found.tiles} tiles agree)",
            "check that both show the same place; where they do, as in small scenes and such of little structure, the "
            "shift between them stays unknown",
        )
    return found.summary()


def _finite(edges: tuple[float, float]) -> list[float] | None:
    return list(edges) if all(map(np.isfinite, edges)) else None
