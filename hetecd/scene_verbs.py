"""Verbs about scenes: what a pair is, its alignment, its map, and the server of maps. Each after its flags."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from hetecd.config import Role
from hetecd.errors import ConfigError, InputError, UsageError
from hetecd.flags import DEFAULT_WEIGHTS, Network, device_arguments, fill, open_network
from hetecd.usage import LISTS, explained, numbers_in

if TYPE_CHECKING:
    from hetecd.info import ModelInfo
    from hetecd.modality import Windows
    from hetecd.predict import Summary
    from hetecd.vector import PolygonSettings

log = logging.getLogger("hetecd")
# What a cell of a table of pairs may hold for a flag without a value.
YES_NO = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
# Flags for scenes, besides those of the grid, and what they may be where tiles are mapped.
OF_SCENES = {
    "format": ("gpkg",), "min_area": (0.0,), "simplify": (0.0,), "report": (False,),
    "align": ("auto", "off"), "scaling": ("auto", "weights"),
}  # fmt: skip
# Flags that say nothing about what is in a map; its files are told by themselves.
IN_ANY_WAY = ("before", "after", "weights", "aoi", "out", "redo", "report", "pairs", "batch")


def inspect_arguments(parser: ArgumentParser) -> None:
    """Flags of `inspect`."""
    _pair_arguments(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    device_arguments(parser)


def inspect(args: Namespace) -> int:
    """Say what two images are, what `predict` would do with them, and what is wrong; 1 where it would fail."""
    from hetecd.folders import match_tiles
    from hetecd.grids import GridChoice
    from hetecd.image import are_tiles
    from hetecd.inspection import inspect_pair
    from hetecd.wording import in_words

    network = open_network(args.weights, args.runtime, args.device, args.precision)
    info = network.info.reading(args.optical_bands, args.sar_bands)
    before, after = args.before, args.after
    tiles = match_tiles(before, after) if are_tiles(before, after) else []
    if tiles:
        _refuse_for_tiles(args)
        before, after = tiles[0].before, tiles[0].after
        args.align, args.scaling = "off", "weights"  # as tiles are mapped
    found = inspect_pair(
        before, after, args.before_is or info.before_is, info, fill(GridChoice, args),
        network.windows.asked(args.tile, args.overlap), args.align, args.scaling,
    )  # fmt: skip
    found["tiles"] = len(tiles) or None
    print(json.dumps(found, indent=2) if args.json else in_words(found))
    return 0 if found["usable"] else 1


def predict_arguments(parser: ArgumentParser) -> None:
    """Flags of `predict`."""
    _pair_arguments(parser, "?")
    parser.add_argument("--pairs", type=str, help="CSV with columns before, after, perhaps name and flags of one scene")
    parser.add_argument("--out", "-o", type=str, required=True, help="folder for the results")
    parser.add_argument("--threshold", type=float | None, help="probability of a change; default: the checkpoint's")
    parser.add_argument("--batch", type=int | None, help="windows at a time; default: as many as memory allows")
    parser.add_argument("--redo", action="store_true", help="do again what is finished, and drop what is unfinished")
    parser.add_argument("--format", type=Literal["gpkg", "fgb", "geojson"], default="gpkg", help="of the polygons")
    parser.add_argument("--min_area", type=float, default=0.0, help="leave out smaller polygons, m2 (px without CRS)")
    parser.add_argument("--simplify", type=float, default=0.0, help="move outlines by up to this, m (px without CRS)")
    parser.add_argument("--report", action="store_true", help="make report.html in --out too; of a pair of rasters")
    device_arguments(parser)


def predict(args: Namespace) -> None:
    """Map a pair of rasters, two folders of tiles, or many pairs."""
    if bool(args.pairs) == bool(args.before) or bool(args.before) != bool(args.after):
        raise UsageError(
            "predict: found neither two images nor a table alone, expected BEFORE and AFTER, or --pairs FILE"
        )
    if not args.pairs:
        return _predict_pair(args, open_network)
    from hetecd.batch import read_pairs, run_pairs

    pairs = read_pairs(args.pairs, set(vars(args)) - {"pairs", "out", "redo"})
    opened = lru_cache(1)(open_network)  # once for all rows of the same weights
    if failed := run_pairs(pairs, args.out, lambda row: _predict_pair(_with_row(args, row), opened)):
        raise InputError(f"{args.pairs}: {len(failed)} of {len(pairs)} scenes failed; see {args.out}/status.csv")


def _with_row(args: Namespace, row: Mapping[str, str]) -> Namespace:
    checker = ArgumentParser(exit_on_error=False)
    predict_arguments(checker)
    cells = {key: _cell(key, text, args[key]) for key, text in row.items()}
    try:
        return checker.parse_object({**vars(args), **cells, "pairs": None})
    except ArgumentError as error:
        raise InputError(f"{explained(str(error))}, in the table of pairs; see `hetecd predict --help`") from error


def _cell(key: str, text: str, given: Any) -> Any:
    """What a cell says of a flag: several numbers, yes or no, or text that the parser understands."""
    if key in LISTS:
        kind = float if key == "bounds" else int
        numbers = [kind(number) for number in numbers_in(key, text)]
        if not numbers or (key == "bounds" and len(numbers) != 4):
            many = "four numbers" if key == "bounds" else "numbers"
            raise InputError(f"{key}: found {text!r} in the table, expected {many} with blanks between")
        return numbers
    if not isinstance(given, bool):
        return text
    if text.lower() not in YES_NO:
        raise InputError(f"{key}: found {text!r} in the table, expected one of {', '.join(YES_NO)}")
    return YES_NO[text.lower()]


def _predict_pair(args: Namespace, opened: Callable[..., Network]) -> None:
    from hetecd.image import are_tiles

    said = (_predict_tiles if are_tiles(args.before, args.after) else _predict_scene)(args, opened)
    print(f"{said}\nwritten: {args.out}")
    if args.report:
        from hetecd.report import write_report

        print(f"written: {write_report(args.out)}")


def _predict_tiles(args: Namespace, opened: Callable[..., Network]) -> str:
    from hetecd.folders import match_tiles
    from hetecd.predict import predict_folder

    _refuse_for_tiles(args)
    network, info, before_is, threshold, windows, batch = _settle(args, opened)
    summary = predict_folder(
        match_tiles(args.before, args.after), network.predictor(args.tta), args.out, info.optical, info.sar, before_is,
        threshold, *windows, batch,
    )  # fmt: skip
    return f"{summary.windows} tiles, {summary.changed_pixels} of {summary.valid_pixels} valid pixels changed"


def _refuse_for_tiles(args: Namespace) -> None:
    """UsageError where flags ask for what tiles, mapped one by one to PNGs, do not have."""
    from hetecd.grids import GridChoice

    fill(GridChoice, args).refuse_for_tiles(args.before)
    for flag, allowed in OF_SCENES.items():
        if args.get(flag, allowed[0]) not in allowed:
            raise UsageError(
                f"{flag}: found {args[flag]} and folders of tiles, which are mapped one by one as they are, to PNGs; "
                f"leave --{flag.replace('_', '-')} out, or name two rasters"
            )


def _predict_scene(args: Namespace, opened: Callable[..., Network]) -> str:
    from hetecd.predict import check_outputs, finished_scene
    from hetecd.sources import files_beside, request_of
    from hetecd.vector import PolygonSettings

    polygons = PolygonSettings(args.format, args.min_area, args.simplify)
    settings = {key: args[key] for key in vars(args) if key not in IN_ANY_WAY}
    files = [*files_beside(args.weights or DEFAULT_WEIGHTS), *(files_beside(args.aoi) if args.aoi else [])]
    asked = request_of(settings, [args.before, args.after], files)
    summary = None if args.redo else finished_scene(args.out, asked, polygons)
    if summary is None:
        check_outputs(args.out, polygons)
        summary = _map_scene(args, opened, asked, polygons)
    area = "" if math.isnan(summary.changed_area_m2) else f", {summary.changed_area_m2 / 1e4:.1f} ha"
    changed = f"{summary.changed_pixels} of {summary.valid_pixels} valid pixels changed"
    return f"{changed}, {summary.polygons} polygons{area}"


def _map_scene(args: Namespace, opened: Callable[..., Network], asked: str, polygons: "PolygonSettings") -> "Summary":
    from hetecd.align import choose_move
    from hetecd.doubts import doubts_of_labels, doubts_of_likeness, doubts_of_pixels, labels_of
    from hetecd.grids import GridChoice
    from hetecd.ground import pixel_m
    from hetecd.pair import open_pair
    from hetecd.predict import predict_scene
    from hetecd.results import About, warnings_heard
    from hetecd.scaling import scale_to_pair

    network, info, before_is, threshold, windows, batch = _settle(args, opened)
    heard: list[str] = []
    with warnings_heard(heard.append):  # at once, as they may explain what follows
        labels = labels_of(args.before, args.after, before_is, info)
        _warn(doubts_of_labels(*labels))
    choice = fill(GridChoice, args)
    open_moved = partial(open_pair, args.before, args.after, before_is, info.optical, info.sar, choice=choice)
    found = choose_move(open_moved, args.align)
    with open_moved(found.sar_move if found else None) as pair:
        with warnings_heard(heard.append):
            _warn(doubts_of_likeness(found))
            _warn(doubts_of_pixels(pair, *labels))
            if said := info.unlike_pixels(pixel_m(pair.grid)):
                _warn(["; ".join(said)])
            optical, sar = scale_to_pair(pair, info.optical, info.sar, args.scaling)
        info = replace(info, optical=optical, sar=sar)
        about = About(
            network.description, args.tta, args.precision, args.runtime, network.device,
            found.summary() if found else None, heard, info, asked,
        )  # fmt: skip
        return predict_scene(
            pair, network.predictor(args.tta, info), args.out, threshold, *windows, batch, about=about,
            redo=args.redo, polygons=polygons, keep_batch=args.batch is None,
        )  # fmt: skip


def _warn(doubts: Iterable[str]) -> None:
    for doubt in doubts:
        log.warning(doubt)


def _settle(
    args: Namespace, opened: Callable[..., Network]
) -> tuple[Network, "ModelInfo", Role, float, "Windows", int]:
    """Network, its description with the bands asked for, earlier date, threshold, windows, batch: flags or defaults."""
    from hetecd.memory import fitting_batch
    from hetecd.predict import check_threshold
    from hetecd.stream import check_windows

    network = opened(args.weights, args.runtime, args.device, args.precision)
    if network.advice:
        log.info(network.advice)
    info = network.info.reading(args.optical_bands, args.sar_bands)
    threshold = info.threshold if args.threshold is None else args.threshold
    check_threshold(threshold)
    windows = network.windows.asked(args.tile, args.overlap)
    check_windows(*windows)
    batch = fitting_batch(windows.tile_px, args.device) if args.batch is None else args.batch
    return network, info, args.before_is or info.before_is, threshold, windows, batch


def align_arguments(parser: ArgumentParser) -> None:
    """Flags of `align`."""
    parser.add_argument("before", type=str, help="raster of the earlier date")
    parser.add_argument("after", type=str, help="raster of the later date")
    parser.add_argument("--before_is", type=Literal["optical", "sar"], default="optical", help="the earlier date")
    parser.add_argument("--limit", type=int, default=128, help="largest shift searched, px of the optical image")
    _band_arguments(parser, "the first three")
    parser.add_argument("--json", action="store_true", help="print JSON")


def align(args: Namespace) -> None:
    """Measure how the SAR image must move to fit the optical one."""
    from hetecd.align import find_move, opener

    opened = opener(args.before, args.after, args.before_is, args.optical_bands, args.sar_bands)
    found = find_move(opened, args.limit)
    print(json.dumps(found.summary(), indent=2) if args.json else found)


def serve_arguments(parser: ArgumentParser) -> None:
    """Flags of `serve`."""
    parser.add_argument("folder", type=str, help="holds results, each in a folder of its own")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; default: this machine")
    parser.add_argument("--port", type=int, default=8000, help="0 = any that is free")
    parser.add_argument("--images", type=str, nargs="*", default=[], help="other folders whose images may be shown")
    parser.add_argument("--upload_mb", type=float, default=2048.0, help="largest file that is taken")
    parser.add_argument("--weights", type=str, help="for uploads; default: the weights that come with hetecd")
    device_arguments(parser)


def serve(args: Namespace) -> None:
    """Show the maps in a folder in a browser, and map pairs uploaded there."""
    if missing := [name for name in ("rio_tiler", "fastapi", "uvicorn") if not find_spec(name)]:
        raise ConfigError(f"serve: needs {' and '.join(missing)}, not installed; pip install 'hetecd[serve]'")
    from hetecd.serve import serve as run

    flags = [f"--{key}={args[key]}" for key in ("weights", "device", "precision", "runtime") if args[key]]
    options = [*flags, *(["--tta"] if args.tta else [])]
    run(args.folder, args.host, args.port, args.images, args.upload_mb, options)


def _band_arguments(parser: ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--optical_bands", type=tuple[int, ...], default=(), metavar="N N ...",
        help=f"bands to read, from 1; default: {default}",
    )  # fmt: skip
    parser.add_argument(
        "--sar_bands", type=tuple[int, ...], default=(), metavar="N N ...", help="the same of the SAR image"
    )


def _pair_arguments(parser: ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument("before", nargs=nargs, type=str, help="earlier date: raster, or folder of granules or tiles")
    parser.add_argument("after", nargs=nargs, type=str, help="the same of the later date")
    parser.add_argument("--weights", type=str, help="checkpoint; default: the weights that come with hetecd")
    parser.add_argument("--before_is", type=Literal["optical", "sar"] | None, help="default: as in training")
    parser.add_argument("--tile", type=int | None, help="edge of a window, px; default: what suits the weights")
    parser.add_argument("--overlap", type=int | None, help="px that neighbouring windows share; default: what suits")
    _band_arguments(parser, "as in training")
    parser.add_argument("--align", type=str, default="auto", help="auto, off, or the largest shift searched, px")
    parser.add_argument(
        "--scaling", type=Literal["auto", "weights", "scene"], default="auto",
        help="range of the values: that of training, of this scene, or of this scene where it is unlike training",
    )  # fmt: skip
    _grid_arguments(parser)


def _grid_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--resolution", type=float | None, help="edge of a pixel of the map, in units of its CRS")
    parser.add_argument("--crs", type=str, help="of the map, such as EPSG:32633; default: the optical image's")
    parser.add_argument(
        "--bounds", type=tuple[float, float, float, float] | None, metavar="LEFT BOTTOM RIGHT TOP",
        help="edges of the map, in its CRS",
    )  # fmt: skip
    parser.add_argument("--aoi", type=str, help="file of polygons outside of which nothing is mapped")
