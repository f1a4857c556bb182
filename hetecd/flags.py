"""Flags that several verbs share, and what they stand for."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from hetecd.errors import CheckpointError

DEFAULT_WEIGHTS = Path(__file__).parent / "models" / "default.safetensors"


def device_arguments(parser: ArgumentParser) -> None:
    """What a network is computed with and on."""
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--precision", type=Literal["auto", "f32", "bf16"], default="auto", help="auto: bf16 on a GPU")
    parser.add_argument(
        "--runtime", type=Literal["auto", "torch", "openvino", "onnx"], default="auto",
        help="auto: torch for a checkpoint, the fastest that is installed for an exported graph",
    )  # fmt: skip
    parser.add_argument("--tta", action="store_true", help="mean over four mirror images: better, four times as long")


def fill(cls: Any, args: Namespace) -> Any:
    """A dataclass from the arguments of its fields' names."""
    return cls(**{f.name: getattr(args, f.name) for f in dataclasses.fields(cls)})


def open_predictor(checkpoint: str | None, args: Namespace) -> tuple[Any, Any]:
    """Predictor and description of a checkpoint or graph, by default of the weights that come with the package.

    Raises:
        CheckpointError: it cannot be used.
        ConfigError: nor with this runtime or on this device.
    """
    from hetecd.modality import mirrored  # numpy

    predictor, info = _plain_predictor(checkpoint, args)
    return mirrored(predictor) if args.tta else predictor, info


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
