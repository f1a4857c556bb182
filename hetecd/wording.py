"""What :mod:`hetecd.inspection` found, in words."""

from collections.abc import Iterator
from typing import Any

from hetecd.align import is_known
from hetecd.raster import crs_name


def in_words(report: dict[str, Any]) -> str:
    """What :func:`hetecd.inspection.inspect_pair` found, as lines for people."""
    lines = [f"{report['tiles']} tiles, each mapped by itself; of the first"] if report.get("tiles") else []
    for name in ("before", "after"):
        if side := report[name]:
            lines += [f"{name}: {side['path']}, {side['is']}", *_side_in_words(side)]
    if grid := report["grid"]:
        lines.append("map")
        lines.append(f"  grid      {_size(grid)}, pixels of {_metres(grid['pixel_m'])}, {_crs(grid)}")
        if report["valid"] is not None:
            lines.append(
                f"  overlap   {report['overlap']:.1%} of it, of which about {report['valid']:.1%} is valid in both"
            )
        if report["windows"]:
            lines.append(f"  windows   {report['windows']}")
        if shift := report["alignment"]:
            known = is_known(shift["inlier_ratio"], shift["tiles"])
            x, y = shift["shift_px"]
            found = (
                f"SAR {x:+.1f} px right, {y:+.1f} px down, {shift['inlier_ratio']:.0%} of {shift['tiles']} tiles agree"
            )
            lines.append(f"  shift     {found if known else 'unknown'}; {shift['note']}")
    for problem in report["problems"]:
        text = "; ".join(filter(None, (problem["found"], problem["remedy"])))
        lines.append(f"{'error' if problem['fatal'] else 'warning'}: {text}")
    lines.append("hetecd predict would work" if report["usable"] else "hetecd predict would fail")
    return "\n".join(lines)


def _crs(found: dict[str, Any]) -> str:
    return crs_name(found["crs"]) if found["crs"] else "no CRS"


def _side_in_words(side: dict[str, Any]) -> Iterator[str]:
    granules = f"{side['granules']} granules, " if side["granules"] > 1 else ""
    yield f"  size      {granules}{_size(side)}, {side['bands']} x {side['dtype']}"
    yield f"  place     {_crs(side)} by {side['placed_by']}, pixels of {_metres(side['pixel_m'])}"
    if side["bounds_wgs84"]:
        west, south, east, north = side["bounds_wgs84"]
        yield f"  degrees   {west:.4f} to {east:.4f} east, {south:.4f} to {north:.4f} north"
    yield f"  nodata    {side['nodata']}, about {side['invalid']:.1%} of the pixels invalid"
    ranges = "; ".join(f"{_band(side, v['band'])}: {v['low']:.4g} to {v['high']:.4g}" for v in side["values"])
    yield f"  values    {side['scale']}, {ranges}"
    if side["date"]:
        yield f"  date      {side['date']}"


def _band(side: dict[str, Any], number: int) -> str:
    name = side["band_names"][number - 1]
    return f"band {number} ({name})" if name else f"band {number}"


def _size(of: dict[str, Any]) -> str:
    return f"{of['height']} x {of['width']} px"


def _metres(edges: list[float] | None) -> str:
    return "unknown size" if edges is None else f"{edges[0]:.4g} x {edges[1]:.4g} m"
