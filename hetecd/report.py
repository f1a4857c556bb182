"""One self-contained HTML page about a result, for people: the two images, the change, its figures.

:func:`view` says everything that the page shows as one dictionary of numbers and words, :func:`page` puts it into the
template of ``hetecd/page``. Where images come from is up to the caller: :func:`write_report` inlines small ones.
"""

import base64
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hetecd
from hetecd.align import is_known
from hetecd.config import Role
from hetecd.errors import InputError
from hetecd.files import replacing
from hetecd.modality import Floats
from hetecd.preview import Stretch, coarseness, encode, picture, read_small, shrink, stretch
from hetecd.raster import crs_name, crs_text
from hetecd.results import BINS, bins_of
from hetecd.survey import (
    Polygons,
    Results,
    Survey,
    date_of,
    inputs,
    open_results,
    outlines,
    read_polygons,
    recount,
    survey,
)

PREVIEW_PX = 1500  # longest edge of an inlined image
MOST_POLYGONS = 2000  # drawn at most, the largest; the page says how many there are
CORNERS = 60_000  # of all of them together
IMAGE_BYTES = 600_000  # of one inlined image, which is made coarser until it fits

PAGE = files("hetecd") / "page"
TITLES = {"optical": "optical", "sar": "SAR"}


def write_report(folder: Path | str, path: Path | str | None = None) -> Path:
    """Write the page about the results in a folder.

    Args:
        folder: filled by `hetecd predict`.
        path: where to, by default ``report.html`` in that folder; an older one is replaced.

    Raises:
        InputError: the folder holds no results.
        OutputError: the page cannot be written.
    """
    results = open_results(folder)
    factor = coarseness(results.grid, PREVIEW_PX)
    missing = list(results.missing)
    polygons = attempt(missing, read_polygons, results, MOST_POLYGONS)
    shapes = polygons.shapes if polygons else np.empty(0, object)
    surveyed = attempt(missing, survey, results, shapes, factor)
    if not results.summary:
        results = replace(results, summary=attempt(missing, recount, results) or {})
    shown = view(results, polygons, surveyed, factor)
    if surveyed:
        shown["probability"] = {"image": _url("png", level_image(surveyed.small, 9))}
    for date, (is_, place) in inputs(results).items():
        move = results.sar_move if is_ == "sar" else None
        image = attempt(missing, read_small, results.grid, place, is_, factor, move)
        if image is not None:
            shown["images"].append({"title": title_of(is_, date), "image": _picture_url(image)})
    shown["missing"] = missing
    path = Path(path or results.folder / "report.html")
    with replacing(path) as staged:
        staged.write_text(page(shown), encoding="utf-8")
    return path


def view(results: Results, polygons: Polygons | None, surveyed: Survey | None, factor: int) -> dict[str, Any]:
    """Everything that the page shows, ready for JSON; ``images`` and ``probability`` are for the caller to fill in.

    Args:
        results: from :func:`hetecd.survey.open_results`.
        polygons: the largest ones.
        surveyed: what the probability raster tells about them, at least.
        factor: edge of the blocks of pixels that are one pixel of what is seen.
    """
    summary, grid = results.summary, results.grid
    return {
        "title": _title(results),
        "hetecd": hetecd.__version__,
        "height": grid.height,
        "width": grid.width,
        "factor": factor,
        "transform": list(grid.transform[:6]),
        "crs": _crs(results),
        "degrees": bool(grid.crs and grid.crs.is_geographic),
        "pixel_m": (summary.get("grid") or {}).get("pixel_m"),
        "threshold": results.threshold,
        "changed_pixels": summary.get("changed_pixels"),
        "changed_area_m2": summary.get("changed_area_m2"),
        "histogram": summary.get("histogram"),
        "polygons": [],
        "polygons_total": summary.get("polygons"),
        "facts": facts(results),
        "warnings": [str(line) for line in summary.get("warnings") or []],
        "missing": list(results.missing),
        "images": [],
        "probability": None,
        **(_polygons(polygons, surveyed, results, factor / 2 if factor > 1 else 0) if polygons else {}),
    }


def facts(results: Results) -> list[tuple[str, str]]:
    """What there is to know about a pair and its map, name and value, in the order of a reader's interest."""
    summary, grid = results.summary, results.grid
    out = []
    for date, (is_, place) in inputs(results).items():
        taken = f"taken {found}" if (found := date_of(place)) else "date not known"
        out.append((f"{date.capitalize()}, {TITLES[is_]}", f"{Path(place).name}, {taken}"))
    out.append(("Coordinate system", _crs(results)))
    pixel_m = (summary.get("grid") or {}).get("pixel_m")
    unit = " degrees" if grid.crs and grid.crs.is_geographic else ""
    size = f"{pixel_m[0]:.4g} x {pixel_m[1]:.4g} m" if pixel_m else f"{grid.res[0]:.6g} x {grid.res[1]:.6g}{unit}"
    out += [("Pixel", size), ("Size", f"{grid.width:,} x {grid.height:,} pixels")]
    if summary.get("pixels") and "valid_pixels" in summary:
        share = 1 - summary["valid_pixels"] / summary["pixels"]
        out.append(("No data", f"{100 * share:.1f} % of the pixels, in either image"))
    out.append(("Alignment", _alignment(summary.get("alignment"))))
    weights = (summary.get("weights") or {}).get("name") or results.tags.get("weights")
    settings = summary.get("settings") or {}
    out += [("Weights", str(weights))] if weights else []
    out.append(("Threshold", f"{results.threshold:g}"))
    out += (
        [("Windows", f"{settings['tile_px']} px, {settings['overlap_px']} px shared")] if "tile_px" in settings else []
    )
    if settings.get("min_area"):
        out.append(("Left out", f"polygons below {settings['min_area']:g} {'m²' if pixel_m else 'px'}"))
    if settings.get("simplify"):
        out.append(("Outlines", f"simplified by up to {settings['simplify']:g} {'m' if pixel_m else 'px'}"))
    if summary.get("created"):
        out.append(("Made", f"{summary['created']}, hetecd {summary.get('hetecd', '')}"))
    return out


def page(shown: dict[str, Any], allow: str = "") -> str:
    """The HTML page of what :func:`view` gives, with ``images`` and ``probability`` filled in.

    ``allow`` is what the page may load beside what is in it, as :func:`policy` takes it; for tiles.
    """
    code = part("words.js") + (part("tiles.js") if allow else "") + part("report.js")
    scripts = [part("leaflet/leaflet.js").partition("//# sourceMappingURL")[0], code]
    styles = [part("leaflet/leaflet.css"), part("report.css")]
    # In JSON "<" only occurs within strings: written thus, nothing in them can end the element that holds it.
    data = json.dumps(shown, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(part("report.html")).substitute(
        policy=policy(scripts, styles, allow), licence=part("leaflet/LICENSE"), data=data,
        leaflet_css=styles[0], css=styles[1], leaflet_js=scripts[0], js=scripts[1],
    )  # fmt: skip


def attempt(missing: list[str], read: Callable[..., Any], *given: Any) -> Any:
    """What could be read, or None and a line more in ``missing``."""
    try:
        return read(*given)
    except InputError as error:
        if str(error) not in missing:
            missing.append(str(error))
        return None


def _polygons(polygons: Polygons, surveyed: Survey | None, results: Results, tolerance_px: float) -> dict[str, Any]:
    """The entries of the page about polygons, whose outlines are made simpler until they fit."""
    rings = outlines(polygons.shapes, results.grid, tolerance_px)
    while sum(len(ring) for shape in rings for ring in shape) > 2 * CORNERS:
        tolerance_px = max(1.0, 2 * tolerance_px)
        rings = outlines(polygons.shapes, results.grid, tolerance_px)
    bins = polygon_bins(results, surveyed) if surveyed else [None] * len(rings)
    out = []
    for k, shape in enumerate(rings):
        area_m2 = float(polygons.area_m2[k])
        out.append({
            "rings": shape,
            "area_m2": None if math.isnan(area_m2) else area_m2,
            "area_px": int(polygons.area_px[k]),
            "mean_prob": round(float(polygons.mean_prob[k]), 4),
            "bins": bins[k],
        })  # fmt: skip
    return {"polygons": out, "polygons_total": polygons.total, "tolerance_px": tolerance_px}


def polygon_bins(results: Results, surveyed: Survey) -> list[list[int]]:
    """Pixels of each polygon by bin of probability, from that of the threshold on."""
    first = int(results.threshold * BINS)  # simplified polygons hold some pixels below the threshold, too
    return surveyed.polygon_pixels[:, first:].tolist()


def level_image(prob: Floats, zlevel: int = 6) -> bytes:
    """Probability (H, W) as grey PNG: 0 where invalid, else the number of its bin from 1."""
    return encode(_levels(prob), "PNG", zlevel=zlevel)


def _levels(prob: Floats) -> NDArray[np.uint8]:
    valid = np.isfinite(prob)
    out = np.zeros(prob.shape, np.uint8)
    out[valid] = bins_of(prob[valid]) + 1
    return out


def picture_image(image: Floats, how: Stretch, quality: int = 85) -> bytes:
    """A raw image (C, H, W) as WebP, transparent where invalid."""
    return encode(np.dstack([picture(image, how), np.isfinite(image).all(0) * np.uint8(255)]), "WEBP", quality=quality)


def _picture_url(image: Floats) -> str:
    """A picture as good as its share of the page allows."""
    how = stretch(image)
    for quality in (85, 60, 30):
        coded = picture_image(image, how, quality)
        if len(coded) <= IMAGE_BYTES:
            return _url("webp", coded)
    return _picture_url(shrink(image, 2))


def _url(kind: str, coded: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(coded).decode()}"


def part(name: str) -> str:
    """A file of the folder ``page``."""
    return PAGE.joinpath(name).read_text(encoding="utf-8")


def policy(scripts: list[str], styles: list[str], allow: str = "") -> str:
    """What a browser may do with a page: run these very scripts, show images within it, load nothing but ``allow``."""
    hashes = [
        " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)
        for texts in (scripts, styles)
    ]
    return f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; {allow or 'img-src data:'}"


def title_of(is_: Role, date: str) -> str:
    """What stands above an image."""
    return f"{TITLES[is_]}, {date}"


def _title(results: Results) -> str:
    names = [Path(place).name for _, place in inputs(results).values()]
    return f"Change from {names[0]} to {names[1]}" if len(names) == 2 else f"Change in {results.folder.resolve().name}"


def _crs(results: Results) -> str:
    crs = results.grid.crs
    if crs is None:
        return "none (positions in pixels)"
    return crs_name(crs_text(crs))


def _alignment(found: dict[str, Any] | None) -> str:
    if not found:
        return "not measured"
    if not is_known(found["inlier_ratio"], found["tiles"]):
        return f"SAR not moved: shift unknown; {found['note']}"
    x, y = found["shift_px"]
    turned = f", rotation {found['rotation_deg']:.2f}°, scale {found['scale']:.4f}"
    done = "moved" if found["moved"] else "not moved"
    return f"SAR {done}: found {x:+.1f} px to the right, {y:+.1f} px down{turned}; {found['note']}"
