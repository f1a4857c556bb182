"""The command line: one short function per verb, no logic.

Heavy imports happen inside the verb that needs them, so that ``hetecd --help`` answers at once.
"""

import dataclasses
import errno
import json
import logging
import math
import sys
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

import hetecd
from hetecd.config import FROM_DATA, ModelConfig, Role, TrainConfig, read_recipe
from hetecd.errors import CheckpointError, ConfigError, HetecdError, InputError

DEFAULT_WEIGHTS = Path(__file__).parent / "models" / "default.safetensors"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the return value is the exit code: 0, 1 = it said why, 2 = usage, 130 = interrupted."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("hetecd").setLevel(logging.INFO)
    parsers = _parsers()
    words = _underscores(sys.argv[1:] if argv is None else argv)
    if "--debug" in words:  # before or after the verb
        words = ["--debug", *(word for word in words if word != "--debug")]
    args = parsers[""].parse_args(words)
    if args.verb is None:
        parsers[""].print_help()
        return 2
    try:
        if args.verb == "train":
            _apply_recipe(parsers["train"], args.train.recipe)
            args = parsers[""].parse_args(words)
        return VERBS[args.verb][0](args[args.verb]) or 0
    except HetecdError as error:
        return _fail(str(error), args.debug)
    except KeyboardInterrupt:
        print("hetecd: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `hetecd ... | head`
        sys.stdout = None
        return 1
    except OSError as error:  # such as a disk that fills up inside a library
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return _fail(f"{where}{error.strerror or error}{hint}", args.debug)


def _fail(message: str, debug: bool) -> int:
    if debug:
        raise  # noqa: PLE0704 - the exception being handled
    print(f"hetecd: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


# --- verbs -----------------------------------------------------------------------------------------------------------


def train(args: Namespace) -> None:
    """Train a network by a recipe."""
    from hetecd.train import Hardware, fit

    model, config = (_fill(cls, args) for cls in (ModelConfig, TrainConfig))
    best = fit(args.data, args.out, model, config, args.resume, _fill(Hardware, args))
    print(f"best checkpoint: {best}")


def evaluate(args: Namespace) -> None:
    """Score a checkpoint on labelled tiles."""
    from hetecd.evaluate import score, table

    predictor, info = _predictor(args.checkpoint, args)
    result = score(predictor, info, args.data, args.split, args.out, args.ignore_255, args.batch, sys.stderr.isatty())
    print(table(result))
    if args.out:
        print(f"written: {args.out}/metrics.json, {args.out}/tiles.png")


def inspect(args: Namespace) -> int:
    """Say what two rasters are, what `predict` would do with them, and what is wrong; 1 where it would fail."""
    from hetecd.grids import GridChoice
    from hetecd.inspection import in_words, inspect_pair

    _, info = _predictor(args.weights, args)
    before_is: Role = args.before_is or info.before_is
    choice = _fill(GridChoice, args)
    found = inspect_pair(args.before, args.after, before_is, info, choice, args.tile, args.overlap)
    print(json.dumps(found, indent=2) if args.json else in_words(found))
    return 0 if found["usable"] else 1


def predict(args: Namespace) -> None:
    """Map a pair of rasters, two folders of tiles, or many pairs."""
    if bool(args.pairs) == bool(args.before) or bool(args.before) != bool(args.after):
        raise InputError("predict: found one image or too many, expected BEFORE and AFTER, or --pairs FILE")
    if not args.pairs:
        return _predict_pair(args)
    from hetecd.batch import read_pairs, run_pairs

    pairs = read_pairs(args.pairs, set(vars(args)) - {"pairs", "out", "redo"})
    if failed := run_pairs(pairs, args.out, lambda row: _predict_pair(_with_row(args, row))):
        raise InputError(f"{args.pairs}: {len(failed)} of {len(pairs)} scenes failed; see {args.out}/status.csv")


def _predict_pair(args: Namespace) -> None:
    from hetecd.align import choose_move
    from hetecd.folders import match_tiles
    from hetecd.grids import GridChoice
    from hetecd.image import are_tiles
    from hetecd.memory import fitting_batch
    from hetecd.pair import open_pair
    from hetecd.predict import predict_folder, predict_scene
    from hetecd.results import About, describe_weights
    from hetecd.vector import PolygonSettings

    predictor, info = _predictor(args.weights, args)
    before_is: Role = args.before_is or info.before_is
    threshold = info.threshold if args.threshold is None else args.threshold
    batch = fitting_batch(args.tile, args.device) if args.batch is None else args.batch
    choice: GridChoice = _fill(GridChoice, args)
    if are_tiles(args.before, args.after):
        choice.refuse_for_tiles(args.before)
        if args.report:
            raise InputError("report: found folders of tiles, expected two rasters; leave --report out")
        summary = predict_folder(
            match_tiles(args.before, args.after), predictor, args.out, info.optical, info.sar, before_is, threshold,
            args.tile, args.overlap, batch,
        )  # fmt: skip
        print(f"{summary.windows} tiles, {summary.changed_pixels} of {summary.valid_pixels} valid pixels changed")
    else:
        weights = describe_weights(args.weights or DEFAULT_WEIGHTS, info.scores)
        open_moved = partial(open_pair, args.before, args.after, before_is, info.optical, info.sar, choice=choice)
        found = choose_move(open_moved, args.align)
        about = About(weights, args.tta, args.precision, args.runtime, found.summary() if found else None, model=info)
        with open_moved(found.sar_move if found else None) as pair:
            summary = predict_scene(
                pair, predictor, args.out, threshold, args.tile, args.overlap, batch, about=about, redo=args.redo,
                polygons=PolygonSettings(args.format, args.min_area, args.simplify), keep_batch=args.batch is None,
            )  # fmt: skip
        area = "" if math.isnan(summary.changed_area_m2) else f", {summary.changed_area_m2 / 1e4:.1f} ha"
        changed = f"{summary.changed_pixels} of {summary.valid_pixels} valid pixels changed"
        print(f"{changed}, {summary.polygons} polygons{area}")
    print(f"written: {args.out}")
    if args.report:
        from hetecd.report import write_report

        print(f"written: {write_report(args.out)}")


def report(args: Namespace) -> None:
    """Show a map or a training on one HTML page."""
    from hetecd.report import write_report
    from hetecd.survey import is_result

    if is_result(args.folder):
        path = write_report(args.folder, args.out)
    else:
        from hetecd.run_report import write_report as write_run_report  # torch

        path = write_run_report(args.folder, args.out, args.previous, *_tiles_of(args))
    print(f"written: {path}")


def compare(args: Namespace) -> None:
    """Put trainings side by side on one HTML page."""
    from hetecd.run_report import write_comparison

    print(f"written: {write_comparison(args.runs, args.out, *_tiles_of(args))}")


def align(args: Namespace) -> None:
    """Measure how the SAR image must move to fit the optical one."""
    from hetecd.align import find_move, opener

    found = find_move(opener(args.before, args.after, args.before_is), args.limit)
    print(json.dumps(found.summary(), indent=2) if args.json else found)


def serve(args: Namespace) -> None:
    """Show the maps in a folder in a browser, and map pairs uploaded there."""
    if missing := [name for name in ("rio_tiler", "fastapi", "uvicorn") if not find_spec(name)]:
        raise ConfigError(f"serve: needs {' and '.join(missing)}, not installed; pip install 'hetecd[serve]'")
    from hetecd.serve import serve as run

    flags = [f"--{key}={args[key]}" for key in ("weights", "device", "precision", "runtime") if args[key]]
    options = [*flags, *(["--tta"] if args.tta else [])]
    run(args.folder, args.host, args.port, args.images, args.upload_mb, options)


def distances(args: Namespace) -> None:
    """Measure how far apart the features of the two branches are."""
    from hetecd.distances import compare, table
    from hetecd.weights import load

    before = load(args.before) if args.before else None
    print(table(compare(load(args.checkpoint), before, args.data, args.split, args.out)))
    if args.out:
        print(f"written: {args.out}/distances.csv, {args.out}/densities.png")


def convert(args: Namespace) -> None:
    """Turn published weights into ours."""
    from hetecd.convert import convert_file

    print(convert_file(args.published, args.out, args.half))


def calibrate(args: Namespace) -> None:
    """Fit probabilities and threshold of a checkpoint to labelled tiles."""
    from hetecd.calibrate import calibrate_file

    found = calibrate_file(args.checkpoint or DEFAULT_WEIGHTS, args.data, args.split, args.out)
    print(f"IoU {100 * found.iou:.2f} with threshold {found.threshold:.2f}, before {100 * found.iou_before:.2f}")
    print(f"written: {args.out}")


def export(args: Namespace) -> None:
    """Make a checkpoint a graph for ONNX Runtime or OpenVINO."""
    from hetecd.export import export_file

    print(export_file(args.checkpoint, args.out, args.to, args.precision, args.data, args.split))
    print(f"written: {args.out}")


def synth(args: Namespace) -> None:
    """Make synthetic scenes."""
    from hetecd.synth import write_pair, write_tiles

    if args.what == "scene":
        print("\n".join(str(path) for path in write_pair(args.out, args.seed, args.size, args.size, args.kind)))
        return
    if args.scenes < 1:
        raise InputError(f"scenes: found {args.scenes}, expected at least 1")
    seeds = range(args.seed, args.seed + args.scenes)
    names = write_tiles(args.out, args.split, seeds, args.tile, kind=None if args.kind == "both" else args.kind)
    print(f"{len(names)} tiles in {Path(args.out) / args.split}")


# --- arguments -------------------------------------------------------------------------------------------------------


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", type=str, help="YAML file, such as recipes/default.yaml; every key is a flag too")
    parser.add_argument("--data", type=str, required=True, help="folder of tiles")
    parser.add_argument("--out", "-o", type=str, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--resume", action="store_true", help="go on after the last whole epoch in --out")
    parser.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu, ...")
    parser.add_argument("--devices", type=int, default=1, help="per machine; 0 = all")
    parser.add_argument("--nodes", type=int, default=1, help="number of machines")
    parser.add_argument("--strategy", type=str, default="auto", help="such as ddp, as Lightning names it")
    _recipe_arguments(parser)


def _recipe_arguments(parser: ArgumentParser) -> None:
    parser.add_class_arguments(ModelConfig, skip=set(FROM_DATA))
    parser.add_class_arguments(TrainConfig)


def _evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", type=str, help="default: the weights that come with hetecd")
    parser.add_argument("--data", type=str, required=True, help="folder of tiles")
    parser.add_argument("--split", type=str, default="test", help="train, val or test")
    parser.add_argument("--out", "-o", type=str, help="folder for metrics.json and tiles.png")
    parser.add_argument("--ignore_255", type=bool | None, default=None, help="labels {0, 1, 255}: 255 does not count")
    parser.add_argument("--batch", type=int, default=8, help="tiles at a time")
    _device_arguments(parser)


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="the --out of `predict` or `train`; the flags below are for `train`")
    parser.add_argument("--out", "-o", type=str, help="page to write; default: report.html in the folder")
    parser.add_argument("--previous", type=str, help="training to compare with; default: the one beside it before it")
    _tiles_arguments(parser)


def _compare_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=str, nargs="+", help="folders that `train` wrote; the first is the reference")
    parser.add_argument("--out", "-o", type=str, required=True, help="page to write, .html")
    _tiles_arguments(parser)


def _tiles_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=str, help="folder of tiles to predict, for diagrams and examples of a training")
    parser.add_argument("--split", type=str, default="val", help="which; val: also those that training held out")
    parser.add_argument("--batch", type=int, default=8, help="tiles at a time")
    _device_arguments(parser)


def _inspect_arguments(parser: ArgumentParser) -> None:
    _pair_arguments(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    _device_arguments(parser)


def _predict_arguments(parser: ArgumentParser) -> None:
    _pair_arguments(parser, "?")
    parser.add_argument("--pairs", type=str, help="CSV with columns before, after, perhaps name and flags of one scene")
    parser.add_argument("--out", "-o", type=str, required=True, help="folder for the results")
    parser.add_argument("--threshold", type=float | None, help="probability of a change; default: the checkpoint's")
    parser.add_argument("--batch", type=int | None, help="windows at a time; default: as many as memory allows")
    parser.add_argument("--redo", action="store_true", help="do again what is finished, and drop what is unfinished")
    parser.add_argument("--format", type=Literal["gpkg", "fgb", "geojson"], default="gpkg", help="of the polygons")
    parser.add_argument("--min_area", type=float, default=0.0, help="leave out smaller polygons, m2 (px without CRS)")
    parser.add_argument("--simplify", type=float, default=0.0, help="move outlines by up to this, m (px without CRS)")
    parser.add_argument("--align", type=str, default="auto", help="auto, off, or the largest shift searched, px")
    parser.add_argument("--report", action="store_true", help="make report.html in --out too; of a pair of rasters")
    _device_arguments(parser)


def _pair_arguments(parser: ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument("before", nargs=nargs, type=str, help="earlier date: raster, or folder of granules or tiles")
    parser.add_argument("after", nargs=nargs, type=str, help="the same of the later date")
    parser.add_argument("--weights", type=str, help="checkpoint; default: the weights that come with hetecd")
    parser.add_argument("--before_is", type=Literal["optical", "sar"] | None, help="default: as in training")
    parser.add_argument("--tile", type=int, default=256, help="edge of a window, px; best that of the training tiles")
    parser.add_argument("--overlap", type=int, default=64, help="shared by neighbouring windows, px")
    _grid_arguments(parser)


def _grid_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--resolution", type=float | None, help="edge of a pixel of the map, in units of its CRS")
    parser.add_argument("--crs", type=str, help="of the map, such as EPSG:32633; default: the optical image's")
    parser.add_argument("--bounds", type=float, nargs=4, help="left bottom right top of the map, in its CRS")
    parser.add_argument("--aoi", type=str, help="file of polygons outside of which nothing is mapped")


def _align_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("before", type=str, help="raster of the earlier date")
    parser.add_argument("after", type=str, help="raster of the later date")
    parser.add_argument("--before_is", type=Literal["optical", "sar"], default="optical", help="the earlier date")
    parser.add_argument("--limit", type=int, default=128, help="largest shift searched, px of the optical image")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _serve_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=str, help="holds results, each in a folder of its own")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; default: this machine")
    parser.add_argument("--port", type=int, default=8000, help="0 = any that is free")
    parser.add_argument("--images", type=str, nargs="*", default=[], help="other folders whose images may be shown")
    parser.add_argument("--upload_mb", type=float, default=2048.0, help="largest file that is taken")
    parser.add_argument("--weights", type=str, help="for uploads; default: the weights that come with hetecd")
    _device_arguments(parser)


def _distances_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=str, help="the network after alignment")
    parser.add_argument("--before", type=str, help="checkpoint to compare with; default: its own initial weights")
    parser.add_argument("--data", type=str, required=True, help="folder of tiles")
    parser.add_argument("--split", type=str, default="test", help="train, val or test")
    parser.add_argument("--out", "-o", type=str, help="folder for distances.csv and densities.png")


def _calibrate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", type=str, help="default: the weights that come with hetecd")
    parser.add_argument("--data", type=str, required=True, help="folder of labelled tiles, not of the training")
    parser.add_argument("--split", type=str, default="val", help="which of them")
    parser.add_argument("--out", "-o", type=str, required=True, help="file to write, .safetensors")


def _convert_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("published", type=str, help="HeteCD, MiT (SegFormer, Hugging Face), PVTv2 (timm), or ours")
    parser.add_argument("--out", "-o", type=str, required=True, help="file to write, .safetensors")
    parser.add_argument("--half", action="store_true", help="store in half precision")


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=str, help="file of `train` or `convert`")
    parser.add_argument("--out", "-o", type=str, required=True, help="file to write: .onnx, or .xml and its .bin")
    parser.add_argument("--to", type=Literal["onnx", "openvino"], required=True, help="format")
    parser.add_argument("--precision", type=Literal["f32", "bf16", "int8"], default="f32", help="ONNX: f32 only")
    parser.add_argument("--data", type=str, help="tiles for the comparison with torch and the calibration of int8")
    parser.add_argument("--split", type=str, default="train", help="which of them")


def _synth_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", type=Literal["scene", "tiles"], help="one georeferenced scene, or tiles for training")
    parser.add_argument("--out", "-o", type=str, required=True, help="folder")
    parser.add_argument("--kind", type=Literal["city", "flood", "both"], default="flood", help="both: tiles only")
    parser.add_argument("--seed", type=int, default=0, help="of the scene, or of the first of several")
    parser.add_argument("--size", type=int, default=1024, help="edge of a scene, px of 3 m")
    parser.add_argument("--split", type=str, default="train", help="part of the data set")
    parser.add_argument("--scenes", type=int, default=8, help="scenes to cut into tiles")
    parser.add_argument("--tile", type=int, default=128, help="edge of a tile, px")


def _device_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--precision", type=Literal["auto", "f32", "bf16"], default="auto", help="auto: bf16 on a GPU")
    parser.add_argument(
        "--runtime", type=Literal["auto", "torch", "openvino", "onnx"], default="auto",
        help="auto: torch for a checkpoint, the fastest that is installed for an exported graph",
    )  # fmt: skip
    parser.add_argument("--tta", action="store_true", help="mean over four mirror images: better, four times as long")


VERBS: dict[str, tuple[Callable[[Namespace], int | None], Callable[[ArgumentParser], None]]] = {
    "train": (train, _train_arguments),
    "evaluate": (evaluate, _evaluate_arguments),
    "inspect": (inspect, _inspect_arguments),
    "predict": (predict, _predict_arguments),
    "report": (report, _report_arguments),
    "compare": (compare, _compare_arguments),
    "align": (align, _align_arguments),
    "serve": (serve, _serve_arguments),
    "distances": (distances, _distances_arguments),
    "calibrate": (calibrate, _calibrate_arguments),
    "convert": (convert, _convert_arguments),
    "export": (export, _export_arguments),
    "synth": (synth, _synth_arguments),
}


def _parsers() -> dict[str, ArgumentParser]:
    """The parser under "", and one per verb."""
    top = ArgumentParser(prog="hetecd", description=hetecd.__doc__.split("\n")[0], version=hetecd.__version__)
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subcommands(required=False, dest="verb")
    parsers = {"": top}
    for name, (run, add_arguments) in VERBS.items():
        parsers[name] = ArgumentParser(description=run.__doc__)
        add_arguments(parsers[name])
        verbs.add_subcommand(name, parsers[name], help=(run.__doc__ or "").rstrip("."))
    return parsers


def _underscores(words: Sequence[str]) -> list[str]:
    """--before-is and --before_is are the same flag."""
    out = []
    for word in words:
        flag, equals, value = word.partition("=")
        out.append(flag.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word)
    return out


def _apply_recipe(parser: ArgumentParser, path: str) -> None:
    """Make a recipe's values the defaults of the flags.

    Raises:
        ConfigError: unreadable, an unknown key, or a value of the wrong type or out of range.
    """
    checker = ArgumentParser(exit_on_error=False)
    _recipe_arguments(checker)
    try:
        values = vars(checker.parse_object(read_recipe(path)))
    except ArgumentError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    parser.set_defaults(values)


def _with_row(args: Namespace, row: Mapping[str, str]) -> Namespace:
    checker = ArgumentParser(exit_on_error=False)
    _predict_arguments(checker)
    return checker.parse_object({**vars(args), **row, "pairs": None})


def _fill(cls: Any, args: Namespace) -> Any:
    """A dataclass from the arguments of its fields' names."""
    return cls(**{f.name: getattr(args, f.name) for f in dataclasses.fields(cls) if f.name not in FROM_DATA})


def _predictor(checkpoint: str | None, args: Namespace) -> tuple[Any, Any]:
    """Predictor and description of a checkpoint or graph, by default of the weights that come with the package."""
    from hetecd.modality import mirrored  # numpy

    predictor, info = _plain_predictor(checkpoint, args)
    return mirrored(predictor) if args.tta else predictor, info


def _tiles_of(args: Namespace) -> tuple[Any, ...]:
    """What a page about trainings needs to score them on tiles."""
    return args.data, args.split, lambda path: _predictor(str(path), args), args.batch


def _plain_predictor(checkpoint: str | None, args: Namespace) -> tuple[Any, Any]:
    from hetecd.runtime import choose, open_graph

    if checkpoint is None and not DEFAULT_WEIGHTS.is_file():
        raise CheckpointError("weights: this version comes without any; name a checkpoint")
    path = checkpoint or DEFAULT_WEIGHTS
    if choose(path, args.runtime, args.device) != "torch":
        return open_graph(path, args.runtime, args.device, args.precision)

    from hetecd.weights import load, predictor  # torch

    net = load(path)
    return predictor(net, args.device, args.precision), net.info


if __name__ == "__main__":
    sys.exit(main())
