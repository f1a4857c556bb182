"""Flags that several verbs share, and what they stand for."""

import dataclasses
import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from hetecd.errors import CheckpointError

if TYPE_CHECKING:
    from hetecd.info import ModelInfo
    from hetecd.modality import Predictor, Scaled, Windows
    from hetecd.runtime import Precision, Runtime

log = logging.getLogger("hetecd")
DEFAULT_WEIGHTS = Path(__file__).parent / "models" / "default.safetensors"


def device_arguments(parser: ArgumentParser) -> None:
    """What a network is computed with and on."""
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--precision",
        type=Literal["auto", "f32", "bf16", "f16"],
        default="auto",
        help="auto: bf16 on a GPU that has it; f16: GPU only",
    )
    parser.add_argument(
        "--runtime", type=Literal["auto", "torch", "openvino", "onnx"], default="auto",
        help="auto: torch for a checkpoint, the fastest that is installed for an exported graph",
    )  # fmt: skip
    parser.add_argument("--tta", action="store_true", help="mean with a mirror image: better, twice as long")


def fill(cls: Any, args: Namespace) -> Any:
    """A dataclass from the arguments of its fields' names."""
    return cls(**{f.name: getattr(args, f.name) for f in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class Network:
    """A checkpoint or graph that is ready to compute.

    Attributes:
        path: its file.
        compute: ``(optical, sar) -> probability`` of normalised images.
        info: what it says about itself.
        device: "cpu" or "cuda".
        advice: what would compute it faster here, if anything.
    """

    path: Path | str
    compute: "Predictor"
    info: "ModelInfo"
    device: str
    advice: str = ""

    def predictor(self, tta: bool = False, info: "ModelInfo | None" = None) -> "Scaled":
        """The same of raw images; a new one for each scene, for it warns once of values unlike those of training.

        Args:
            tta: mean with a mirror image.
            info: how the images are scaled, where not as in training.
        """
        from hetecd.modality import mirrored  # numpy

        return (info or self.info).scaled(mirrored(self.compute) if tta else self.compute)

    @property
    def windows(self) -> "Windows":
        """That suit it, of a scene."""
        from hetecd.modality import windows_of

        return windows_of(self.compute)

    @cached_property
    def description(self) -> dict[str, Any]:
        """Its name, checksum and scores, for the summary of a map."""
        from hetecd.results import describe_weights

        return describe_weights(self.path, self.info.scores)


def open_network(checkpoint: str | None, runtime: "Runtime", device: str, precision: "Precision") -> Network:
    """Open a checkpoint or graph, by default the weights that come with the package.

    Raises:
        CheckpointError: it cannot be used.
        ConfigError: nor with this runtime or on this device.
    """
    from hetecd.runtime import choose, kind_of_device, read_graph

    if checkpoint is None and not DEFAULT_WEIGHTS.is_file():
        raise CheckpointError("weights: this version comes without any; name a checkpoint")
    if checkpoint is None:
        log.info(
            "weights: none named, so those that come with hetecd (floods, 8-bit pictures of OMBRIA); see --weights"
        )
    path = checkpoint or DEFAULT_WEIGHTS
    if choose(path, runtime, device) != "torch":
        graph = read_graph(path, runtime, device, precision)
        return Network(path, graph, graph.info, kind_of_device(path, runtime, device))

    from hetecd.ops import MATRIX_REGISTERS  # torch
    from hetecd.weights import load, normalised_predictor, precision_on

    net = load(path)
    compute = normalised_predictor(net, device, precision)
    assert net.info is not None  # load sets it
    kind = kind_of_device(path, runtime, device)
    log.info("%s: computed by torch (%s, %s)", Path(path).name, kind, precision_on(kind, precision))
    slow = precision == "auto" and kind == "cpu" and MATRIX_REGISTERS
    advice = "the network computes in float32; with --precision bf16 it takes half the time on this processor"
    return Network(path, compute, net.info, kind, advice if slow else "")


def open_predictor(checkpoint: str | None, args: Namespace) -> tuple["Predictor", "ModelInfo"]:
    """Predictor of raw images and description of a checkpoint or graph; errors of :func:`open_network`."""
    network = open_network(checkpoint, args.runtime, args.device, args.precision)
    return network.predictor(args.tta), network.info
