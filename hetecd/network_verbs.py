"""Verbs about networks: their data, training, scores, pages and files. Each after its flags."""

import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from hetecd.config import add_recipe_keys, configs
from hetecd.errors import InputError, UsageError
from hetecd.flags import DEFAULT_WEIGHTS, device_arguments, fill, open_predictor


def train_arguments(parser: ArgumentParser) -> None:
    """Flags of `train`."""
    parser.add_argument("recipe", type=str, help="YAML file, such as recipes/default.yaml; every key is a flag too")
    parser.add_argument("--data", type=str, required=True, help="folder of tiles")
    parser.add_argument("--out", "-o", type=str, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--resume", action="store_true", help="go on after the last whole epoch in --out")
    parser.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu, ...")
    parser.add_argument("--devices", type=int, default=1, help="per machine; 0 = all")
    parser.add_argument("--nodes", type=int, default=1, help="number of machines")
    parser.add_argument("--strategy", type=str, default="auto", help="such as ddp, as Lightning names it")
    add_recipe_keys(parser)


def train(args: Namespace) -> None:
    """Train a network by a recipe."""
    from hetecd.train import Hardware, fit

    best = fit(args.data, args.out, *configs(vars(args)), args.resume, fill(Hardware, args))
    print(f"best checkpoint: {best}")


def evaluate_arguments(parser: ArgumentParser) -> None:
    """Flags of `evaluate`."""
    parser.add_argument("checkpoint", nargs="?", type=str, help="default: the weights that come with hetecd")
    parser.add_argument("--data", type=str, required=True, help="folder of tiles")
    parser.add_argument("--split", type=str, default="test", help="train, val or test")
    parser.add_argument("--out", "-o", type=str, help="folder for metrics.json and tiles.png")
    parser.add_argument("--ignore_255", type=bool | None, default=None, help="labels {0, 1, 255}: 255 does not count")
    parser.add_argument("--batch", type=int, default=8, help="tiles at a time")
    device_arguments(parser)


def evaluate(args: Namespace) -> None:
    """Score a checkpoint on labelled tiles."""
    from hetecd.evaluate import score, table

    predictor, info = open_predictor(args.checkpoint, args)
    result = score(predictor, info, args.data, args.split, args.out, args.ignore_255, args.batch, sys.stderr.isatty())
    print(table(result))
    if args.out:
        print(f"written: {args.out}/metrics.json, {args.out}/tiles.png")


def report_arguments(parser: ArgumentParser) -> None:
    """Flags of `report`."""
    parser.add_argument("folder", type=str, help="the --out of `predict` or `train`; the flags below are for `train`")
    parser.add_argument("--out", "-o", type=str, help="page to write; default: report.html in the folder")
    parser.add_argument("--previous", type=str, help="training to compare with; default: the one beside it before it")
    _tiles_arguments(parser)


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


def compare_arguments(parser: ArgumentParser) -> None:
    """Flags of `compare`."""
    parser.add_argument("runs", type=str, nargs="+", help="folders that `train` wrote; the first is the reference")
    parser.add_argument("--out", "-o", type=str, required=True, help="page to write, .html")
    _tiles_arguments(parser)


def compare(args: Namespace) -> None:
    """Put trainings side by side on one HTML page."""
    from hetecd.run_report import write_comparison

    print(f"written: {write_comparison(args.runs, args.out, *_tiles_of(args))}")


def distances_arguments(parser: ArgumentParser) -> None:
    """Flags of `distances`."""
    parser.add_argument("checkpoint", type=str, help="the network after alignment")
    parser.add_argument("--before", type=str, help="checkpoint to compare with; default: its own initial weights")
    parser.add_argument("--data", type=str, required=True, help="folder of tiles")
    parser.add_argument("--split", type=str, default="test", help="train, val or test")
    parser.add_argument("--out", "-o", type=str, help="folder for distances.csv and densities.png")


def distances(args: Namespace) -> None:
    """Measure how far apart the features of the two branches are."""
    from hetecd.distances import compare, table
    from hetecd.weights import load

    before = load(args.before) if args.before else None
    print(table(compare(load(args.checkpoint), before, args.data, args.split, args.out)))
    if args.out:
        print(f"written: {args.out}/distances.csv, {args.out}/densities.png")


def calibrate_arguments(parser: ArgumentParser) -> None:
    """Flags of `calibrate`."""
    parser.add_argument("checkpoint", nargs="?", type=str, help="default: the weights that come with hetecd")
    parser.add_argument("--data", type=str, help="folder of labelled tiles, not of the training")
    parser.add_argument("--split", type=str, default="val", help="which of them")
    parser.add_argument("--like", type=str, help="in place of --data: take over what this checkpoint was given")
    parser.add_argument("--out", "-o", type=str, required=True, help="file to write, .safetensors")


def calibrate(args: Namespace) -> None:
    """Fit probabilities and threshold of a checkpoint to labelled tiles."""
    from hetecd.calibrate import calibrate_file, calibrate_like

    checkpoint = args.checkpoint or DEFAULT_WEIGHTS
    if bool(args.data) == bool(args.like):
        raise UsageError("calibrate: found neither or both of --data and --like, expected one of them; name one")
    if args.like:
        print(f"threshold {calibrate_like(checkpoint, args.like, args.out).threshold:.2f}")
    else:
        found = calibrate_file(checkpoint, args.data, args.split, args.out)
        print(f"IoU {100 * found.iou:.2f} with threshold {found.threshold:.2f}, before {100 * found.iou_before:.2f}")
    print(f"written: {args.out}")


def average_arguments(parser: ArgumentParser) -> None:
    """Flags of `average`."""
    parser.add_argument("first", type=str, help="checkpoint of a training")
    parser.add_argument("second", type=str, help="checkpoint of a training that went on from it (--start-from)")
    parser.add_argument("--share", type=float, default=0.5, help="of the second, 0 to 1")
    parser.add_argument("--out", "-o", type=str, required=True, help="file to write, .safetensors")


def average(args: Namespace) -> None:
    """Mix a checkpoint with one trained on from it: much that is new, little that is lost."""
    from hetecd.average import average as mean

    print(f"threshold {mean(args.first, args.second, args.out, args.share).threshold:.2f}, as of {args.first}")
    print(f"written: {args.out}")


def convert_arguments(parser: ArgumentParser) -> None:
    """Flags of `convert`."""
    parser.add_argument("published", type=str, help="HeteCD, MiT (SegFormer, Hugging Face), PVTv2 (timm), or ours")
    parser.add_argument("--out", "-o", type=str, required=True, help="file to write, .safetensors")
    parser.add_argument("--half", action="store_true", help="store in half precision")


def convert(args: Namespace) -> None:
    """Turn published weights into ours."""
    from hetecd.convert import convert_file

    print(convert_file(args.published, args.out, args.half))


def export_arguments(parser: ArgumentParser) -> None:
    """Flags of `export`."""
    parser.add_argument("checkpoint", type=str, help="file of `train` or `convert`")
    parser.add_argument("--out", "-o", type=str, required=True, help="file to write: .onnx, or .xml and its .bin")
    parser.add_argument("--to", type=Literal["onnx", "openvino"], required=True, help="format")
    parser.add_argument("--precision", type=Literal["f32", "bf16", "int8"], default="f32", help="ONNX: f32 only")
    parser.add_argument("--data", type=str, help="tiles for the comparison with torch and the calibration of int8")
    parser.add_argument("--split", type=str, default="train", help="which of them")


def export(args: Namespace) -> None:
    """Make a checkpoint a graph for ONNX Runtime or OpenVINO."""
    from hetecd.export import export_file

    print(export_file(args.checkpoint, args.out, args.to, args.precision, args.data, args.split))
    print(f"written: {args.out}")


def synth_arguments(parser: ArgumentParser) -> None:
    """Flags of `synth`."""
    parser.add_argument("what", type=Literal["scene", "tiles"], help="one georeferenced scene, or tiles for training")
    parser.add_argument("--out", "-o", type=str, required=True, help="folder")
    parser.add_argument("--kind", type=Literal["city", "flood", "both"], default="flood", help="both: tiles only")
    parser.add_argument("--seed", type=int, default=0, help="of the scene, or of the first of several")
    parser.add_argument("--size", type=int, default=1024, help="edge of a scene, px of 3 m")
    parser.add_argument("--split", type=str, default="train", help="part of the data set")
    parser.add_argument("--scenes", type=int, default=8, help="scenes to cut into tiles")
    parser.add_argument("--tile", type=int, default=128, help="edge of a tile, px")


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


def _tiles_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=str, help="folder of tiles to predict, for diagrams and examples of a training")
    parser.add_argument("--split", type=str, default="val", help="which; val: also those that training held out")
    parser.add_argument("--batch", type=int, default=8, help="tiles at a time")
    device_arguments(parser)


def _tiles_of(args: Namespace) -> tuple[Any, ...]:
    """What a page about trainings needs to score them on tiles."""
    return args.data, args.split, lambda path: open_predictor(str(path), args), args.batch
