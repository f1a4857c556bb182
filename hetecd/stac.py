"""A map as an item of a SpatioTemporal Asset Catalog: where it lies, of when, its files, and the model that made it.

STAC 1.1 with the extensions projection 2.0, file 2.1, classification 2.0 and, where the weights are known, MLM 1.4
(machine learning model). Paths of results are relative to the item, those of inputs and weights absolute.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from hetecd.errors import InputError
from hetecd.files import sha256, writing
from hetecd.ground import outline_wgs84
from hetecd.image import images_of
from hetecd.info import ModelInfo
from hetecd.modality import Modality
from hetecd.raster import Grid, open_raster, time_of

EXTENSION = "https://stac-extensions.github.io/{}/v{}/schema.json"
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
MEDIA = {
    ".gpkg": "application/geopackage+sqlite3", ".fgb": "application/vnd.flatgeobuf", ".geojson": "application/geo+json",
    ".tif": "image/tiff; application=geotiff", ".tiff": "image/tiff; application=geotiff",
}  # fmt: skip
# Framework of weights, and what wrote them, by the ending of their name; all others are checkpoints.
GRAPHS = {".onnx": ("ONNX", "onnx.save_model"), ".xml": ("OpenVINO", "openvino.save_model")}
CLASSES = [
    {"value": 0, "name": "unchanged"},
    {"value": 1, "name": "changed", "color_hint": "D7191C"},
    {"value": 255, "name": "invalid", "description": "no data in one of the images", "nodata": True},
]


def write_item(
    path: Path, summary: Mapping[str, Any], grid: Grid, polygons: Path, model: ModelInfo | None = None
) -> None:
    """Write ``item.json`` into the folder of finished results.

    Args:
        path: where; ``change.tif``, ``probability.tif`` and the polygons lie beside it.
        summary: what :mod:`hetecd.results` wrote into ``summary.json``.
        grid: of the map.
        polygons: their file.
        model: what the checkpoint says about itself; None where the map was not made by one.

    Raises:
        OutputError: it cannot be written.
    """
    extensions = [("projection", "2.0.0"), ("file", "2.1.0"), ("classification", "2.0.0")]
    if model and summary["weights"]:
        extensions.append(("mlm", "1.4.0"))
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [EXTENSION.format(*extension) for extension in extensions],
        "id": _name(summary),
        **_place(summary, grid),
        "properties": {**_times(summary), **_projection(summary["grid"]), **_model(summary, model)},
        "links": [],
        "assets": _assets(path.parent, summary, polygons),
    }
    with writing(path):
        path.write_text(json.dumps(item, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _name(summary: Mapping[str, Any]) -> str:
    """The same for the same inputs, weights, values and settings, wherever the files lie."""
    made_from = {key: summary[key] for key in ("scaling", "settings", "alignment", "grid")}
    for key in ("before", "after", "weights", "aoi"):
        entry = summary[key] or {}
        content = [entry["sha256"], entry["sources"]["sha256"]] if "sources" in entry else entry.get("sha256")
        made_from[key] = [content, entry.get("read_as")] if content else entry or None
    return "hetecd-" + hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _place(summary: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    box = summary["grid"]["bounds_wgs84"]
    if box is None:
        return {"geometry": None}
    west, south, east, north = box
    if west <= east:
        return {"bbox": box, "geometry": {"type": "Polygon", "coordinates": [outline_wgs84(grid)]}}
    halves = ((west, 180.0), (-180.0, east))  # a polygon must not cross the antimeridian
    rings = [[[[w, south], [e, south], [e, north], [w, north], [w, south]]] for w, e in halves]
    return {"bbox": box, "geometry": {"type": "MultiPolygon", "coordinates": rings}}


def _times(summary: Mapping[str, Any]) -> dict[str, Any]:
    """When both images were taken, if names or tags tell, else when the map was made: STAC wants a time."""
    before, after = (_taken(summary[date]["path"]) for date in ("before", "after"))
    if before is None or after is None:
        return {"datetime": _utc(datetime.fromisoformat(summary["created"]))}
    first, last = min(before[0], after[0]), max(before[1], after[1])
    return {"datetime": _utc(after[0]), "start_datetime": _utc(first), "end_datetime": _utc(last)}


def _taken(path: str) -> tuple[datetime, datetime] | None:
    """First and last second of an image, of a folder's first granule, as far as :func:`hetecd.raster.time_of` knows."""
    try:
        image = images_of(path)[0]
        with open_raster(image) as dataset:
            found = time_of(dataset, image)
    except InputError:
        return None
    return found and found[:2]


def _utc(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def _projection(grid: Mapping[str, Any]) -> dict[str, Any]:
    code, crs = "proj:code", grid["crs"]
    named = crs is None or crs.startswith("EPSG:")
    out = {code: crs} if named else {code: None, "proj:wkt2": crs}
    return out | {"proj:shape": [grid["height"], grid["width"]], "proj:transform": grid["transform"]}


def _model(summary: Mapping[str, Any], model: ModelInfo | None) -> dict[str, Any]:
    """Fields of the MLM extension."""
    weights, settings = summary["weights"], summary["settings"]
    if not (model and weights):
        return {}
    size = [settings["tile_px"]] * 2
    result = {"shape": [-1, *size], "dim_order": ["batch", "height", "width"], "data_type": "float32"}
    output = {
        "name": "probability of change",
        "tasks": ["semantic-segmentation"],
        "result": result,
        "classification:classes": CLASSES[:2],
        "post_processing_function": {"format": "python", "expression": f"probability >= {settings['threshold']!r}"},
    }
    return {
        "mlm:name": weights["name"],
        "mlm:architecture": "HeteCD",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": _made_with(weights)[0],
        "mlm:input": [_input("optical", model.optical, size), _input("sar", model.sar, size)],
        "mlm:output": [output],
        "mlm:hyperparameters": dict(settings),
    }


def _input(name: str, modality: Modality, size: list[int]) -> dict[str, Any]:
    shape, order = [-1, modality.channels, *size], ["batch", "channel", "height", "width"]
    return {
        "name": name,
        "description": f"bands {', '.join(map(str, modality.bands))} of the file, {modality.unit}",
        "bands": [],
        "input": {"shape": shape, "dim_order": order, "data_type": "float32"},
        "value_scaling": [
            {"type": "min-max", "minimum": low, "maximum": high}
            for low, high in zip(modality.low, modality.high, strict=True)
        ],
        "pre_processing_function": {"format": "python", "expression": "10 * log10(x)"} if modality.db else None,
    }


def _assets(folder: Path, summary: Mapping[str, Any], polygons: Path) -> dict[str, Any]:
    assets: dict[str, Any] = {
        "change": {"title": "Change: 1 changed, 0 not, 255 invalid", "type": COG, "data_type": "uint8", "nodata": 255,
                   "classification:classes": CLASSES},
        "probability": {"title": "Probability of change", "type": COG, "data_type": "float32", "nodata": "nan"},
        "polygons": {"title": "Changed areas", "type": MEDIA[polygons.suffix]},
    }  # fmt: skip
    for name, file in zip(assets, ("change.tif", "probability.tif", polygons.name), strict=True):
        size = (folder / file).stat().st_size
        assets[name] |= {"href": f"./{file}", "roles": ["data"], "file:size": size}
        assets[name] |= _checksum(sha256(folder / file))
    assets["summary"] = {"href": "./summary.json", "type": "application/json", "roles": ["metadata"]}
    for date in ("before", "after"):
        image = summary[date]
        assets[date] = {"href": image["path"], "roles": ["source"], **_checksum(image["sha256"])}
        if media := MEDIA.get(Path(image["path"]).suffix.lower()):
            assets[date]["type"] = media
    if weights := summary["weights"]:
        href = weights.get("path", weights["name"])
        assets["model"] = {"href": href, "roles": ["mlm:model"], "mlm:artifact_type": _made_with(weights)[1]}
        assets["model"] |= _checksum(weights["sha256"])
    return assets


def _made_with(weights: Mapping[str, Any]) -> tuple[str, str]:
    return GRAPHS.get(Path(weights["name"]).suffix.lower(), ("PyTorch", "safetensors.torch.save_file"))


def _checksum(digest: str | None) -> dict[str, str]:
    """As a multihash: 12 for sha256, 20 for 32 bytes."""
    return {"file:checksum": f"1220{digest}"} if digest else {}
