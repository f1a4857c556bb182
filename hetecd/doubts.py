"""What speaks against a pair: the names, the tags and the pixels of its images."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hetecd.align import AGREE, Alignment
from hetecd.config import Role
from hetecd.errors import InputError
from hetecd.image import Granule, Image, open_image
from hetecd.info import ModelInfo
from hetecd.modality import Floats, Modality, looks_like
from hetecd.pair import Pair
from hetecd.raster import alpha_band, by_all_values, data_bands, day_of, nodata_of
from hetecd.scaling import Scaling

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


def labels_of(before: Path | str, after: Path | str, before_is: Role, info: ModelInfo) -> tuple[Side, Side]:
    """What names and tags say of both images.

    Raises:
        InputError: one cannot be opened.
    """
    with open_image(before, (1,)) as one, open_image(after, (1,)) as other:
        first, second = (
            label_of(replace(image, numbers=getattr(info, role).bands), role)
            for image, role in zip((one, other), roles_of(before_is), strict=True)
        )
    return first, second


def doubts_of_labels(before: Side, after: Side) -> list[str]:
    """What names and tags (:func:`labels_of`) say against a pair: dates or modalities that look exchanged.

    Raises:
        InputError: the same bands of one file would be both dates.
    """
    problems: Problems = []
    compare_labels(before, after, problems)
    return _said(problems)


def doubts_of_pixels(pair: Pair, before: Side, after: Side) -> list[str]:
    """What a sample of its pixels says against a pair, but for their range, of which scaling tells.

    Raises:
        InputError: one image would be both dates.
    """
    problems: Problems = []
    if not pair.sample[0].size:
        return []
    sides = before, after
    samples = [pair.sample[side["is"] == "sar"] for side in sides]
    check_same(before, after, samples, problems)
    for side, sample in zip(sides, samples, strict=True):
        check_values({**side, "scale": looks_like(sample)}, sample, problems)
    return _said(problems)


def doubts_of_likeness(found: Alignment | None) -> list[str]:
    """What the search for a shift says against a pair; None = there was none."""
    problems: Problems = []
    if found is not None:
        check_likeness(found, problems)
    return _said(problems)


def _said(problems: Problems) -> list[str]:
    """Found and remedy of each; InputError for one that is fatal."""
    said = [f"{problem['found']}; {problem['remedy']}" for problem in problems]
    for problem, text in zip(problems, said, strict=True):
        if problem["fatal"]:
            raise InputError(text)
    return said


# --- problems


def roles_of(before_is: Role) -> tuple[Role, Role]:
    """What the earlier and the later date are."""
    return ("optical", "sar") if before_is == "optical" else ("sar", "optical")


@contextmanager
def noting(problems: Problems) -> Iterator[None]:
    """Make an InputError of the body a problem; its message ends with what to do."""
    try:
        yield
    except InputError as error:
        found, *remedy = str(error).rsplit("; ", 1)
        note(problems, found, "".join(remedy), fatal=True)


def note(problems: Problems, found: str, remedy: str, fatal: bool = False) -> None:
    """Add a problem."""
    problems.append({"fatal": fatal, "found": found, "remedy": remedy})


# --- one image


def label_of(image: Image, role: Role) -> Side:
    """What names and tags say of an image."""
    granule = image.granules[0]
    return {
        "path": str(image.path),
        "is": role,
        "bands": granule.dataset.count,
        "band_names": list(granule.dataset.descriptions),
        "reads": image.numbers,
        "more": sorted({*data_bands(granule.dataset)} - {*image.numbers}),
        "date": (day_of(granule.dataset, granule.path) or (None,))[0],
        "nodata": _nodata(granule),
        "rescaled": _rescaled(image),
        "words": {other: sorted(_words(granule, other)) for other in ("optical", "sar")},
    }


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
        for number in {*image.numbers} & {*granule.dataset.indexes}:
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


def check_values(side: Side, sample: Floats, problems: Problems) -> None:
    """Note bands that show nothing, nodata that nobody declared, and scales, of a sample (C, n) of valid pixels."""
    poor: dict[str, list[str]] = {}
    for band, values in dict(zip(side["reads"], sample, strict=True)).items():
        few = [f"{value:g}" for value in np.unique(values)[:3]]
        if len(values) > 1 == len(few):
            poor.setdefault(f"is {few[0]} everywhere in the sample and shows nothing", []).append(str(band))
        elif len(values) > 2 == len(few):
            what = f"has only the values {' and '.join(few)} in the sample, as labels and masks have"
            poor.setdefault(what, []).append(str(band))
    for what, bands in poor.items():
        note(
            problems,
            f"{side['path']}: band {', '.join(bands)} {what}",
            f"check the file, or read another band with --{side['is']}-bands",
        )
    if side["is"] == "optical" and side["scale"] == "decibels":
        note(
            problems,
            f"{side['path']}: is taken for optical but has values in decibels, as SAR has",
            "exchange the two images, or say --before-is",
        )
    blank = (sample == 0).all(0).mean()
    if blank > BLANK and side["nodata"] == "not declared":
        note(
            problems,
            f"{side['path']}: {blank:.0%} of the pixels are 0 in every band but no nodata is declared, so they count",
            f"if they are empty, and not dark water, declare it: rio edit-info --nodata 0 {side['path']}",
        )
    if side["rescaled"]:
        note(
            problems,
            f"{side['path']}: declares scale {side['rescaled']['scale']:g} and offset {side['rescaled']['offset']:g}, "
            "which are not applied: values count as they are stored",
            "unscale it where the weights know the physical values (gdal_translate -unscale -ot Float32)",
        )


def check_range(side: Side, sample: Floats, modality: Modality, scaling: Scaling, problems: Problems) -> None:
    """Note values that are unlike those of training."""
    if len(sample) != modality.channels:
        return
    # As the network will: the values as they stand, or in dB where it wants so.
    if modality.in_unit(side["scale"]).is_foreign(sample[None, :, :, None]):
        wanted = "decibels" if modality.unit == "dB" else "linear power" if modality.db else modality.unit
        trained = f"{wanted} from {min(modality.low):g} to {max(modality.high):g}{' dB' if modality.db else ''}"
        found = f"{side['scale']} from {min(v['low'] for v in side['values']):.4g} to "
        found += f"{max(v['high'] for v in side['values']):.4g}"
        note(
            problems,
            f"{side['path']}: {side['is']} values are unlike those of training (found {found}, expected {trained})",
            ("" if scaling == "weights" else "predict takes the range of this scene, a guess; better ")
            + "rescale the image as those of training were",
        )


# --- both images


def check_same(before: Side, after: Side, samples: list[Floats], problems: Problems) -> bool:
    """Note an image that is given twice, by the first band of samples (C, n) of both, and tell whether one is."""
    one, other = (sample[0] for sample in samples)
    shows = one.size == other.size and np.isfinite(one).any() and np.nanmin(one) < np.nanmax(one)
    same = bool(shows) and np.array_equal(one, other, equal_nan=True)
    if same:
        note(problems, f"{after['path']}: shows the same as {before['path']}", "name the other date", fatal=True)
    return same


def compare_labels(before: Side, after: Side, problems: Problems) -> None:
    """Note one file given twice, and dates or modalities that look exchanged, as far as names and tags tell."""
    if os.path.realpath(before["path"]) == os.path.realpath(after["path"]):
        if {*before["reads"]} & {*after["reads"]}:
            found = f"{after['path']}: found the same file as {before['path']}, expected another, or other bands of it"
            note(problems, found, "name the other date", fatal=True)
        return
    if before["date"] and after["date"] and before["date"] > after["date"]:
        note(
            problems,
            f"{before['path']}: is of {before['date']}, which is after {after['date']} of {after['path']}",
            "give the earlier one first" + ("" if before["is"] == after["is"] else ", and say --before-is"),
        )
    for side in (before, after):
        chosen = side["reads"] != tuple(range(1, len(side["reads"]) + 1))
        if side["more"] and not chosen and not any(problem["fatal"] for problem in problems):
            names = zip(side["reads"], side["band_names"], strict=False)
            read = ", ".join(f"{number} ({name})" if name else f"{number}" for number, name in names)
            note(
                problems,
                f"{side['path']}: has {side['bands']} bands, of which the weights read {read}",
                f"name others with --{side['is']}-bands if these are not what they were trained with",
            )
    optical, sar = (before, after) if before["is"] == "optical" else (after, before)
    clues = [
        f"{side['path']} says {', '.join(side['words'][other])}"
        for side, role, other in ((optical, "optical", "sar"), (sar, "sar", "optical"))
        if side["words"][other] and not side["words"][role]
    ]
    if optical["bands"] < 3 <= sar["bands"]:
        clues.append(f"{optical['path']} has {optical['bands']} and {sar['path']} has {sar['bands']} bands")
    if clues:
        wanted = "sar" if before["is"] == "optical" else "optical"
        note(
            problems,
            f"{optical['path']}: is taken for optical and {sar['path']} for SAR, but {', '.join(clues)}",
            f"exchange the two, or say --before-is {wanted}",
        )


def check_likeness(found: Alignment, problems: Problems) -> None:
    """Note images that the search for a shift found unlike."""
    if found.tiles >= AGREE[0] and found.inlier_ratio < AGREE[1]:
        note(
            problems,
            f"pair: the images hardly show the same structures ({found.inlier_ratio:.0%} of {found.tiles} tiles agree)",
            "check that both show the same place; where they do, as in small scenes and such of little structure, the "
            "shift between them stays unknown",
        )
