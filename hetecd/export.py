"""A checkpoint as a graph for other runtimes; none is written whose numbers differ from torch.

ONNX is made by torch and, for OpenVINO, read from there; both hold the same operations. int8 is made by NNCF from the
OpenVINO graph, calibrated on real tiles. The finished file is run in its runtime and compared before it gets its name.
"""

import contextlib
import importlib.util
import io
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from hetecd.config import TrainConfig
from hetecd.data import TileDataset, find_tiles
from hetecd.errors import ConfigError, ExportError
from hetecd.files import publish, staging, writing
from hetecd.graph import Graph
from hetecd.info import ModelInfo, to_metadata
from hetecd.modality import STRIDE_PX, Floats, Predictor
from hetecd.model import HeteCD
from hetecd.runtime import GRAPHS, PRECISION, SECTION, WINDOWS, OpenVinoGraph, is_installed, quiet, with_standardised
from hetecd.weights import load, suitable_windows

log = logging.getLogger("hetecd")

Target = Literal["onnx", "openvino"]
Precision = Literal["f32", "bf16", "int8"]
Images = tuple[Floats, Floats]  # normalised optical (B, Co, H, W) and SAR (B, Cs, H, W)

OPSET = 20  # ONNX Runtime 1.17, OpenVINO 2024
CALIBRATION_TILES = 64
COMPARED_TILES = 8
MAKE = "pip install 'hetecd[export]'"


class Bounds(NamedTuple):
    """What is tolerated of a precision, see :class:`Comparison`."""

    difference: float
    mean_difference: float
    agreement: float


# Where nothing changed, equal decisions show nothing, hence the mean.
BOUNDS: dict[Precision, Bounds] = {
    "f32": Bounds(1e-4, 1e-4, 0.0),
    "bf16": Bounds(1.0, 0.01, 0.985),
    "int8": Bounds(1.0, 0.03, 0.97),
}


@dataclass(frozen=True)
class Comparison:
    """An exported graph against torch in float32.

    Attributes:
        difference: largest difference of a probability.
        mean_difference: mean of the same.
        agreement: share of pixels with the same decision at the checkpoint's threshold.
        pixels: how many were compared.
    """

    difference: float
    mean_difference: float
    agreement: float
    pixels: int

    def __str__(self) -> str:
        return (
            f"probabilities differ from torch by at most {self.difference:.2g} and {self.mean_difference:.2g} on "
            f"average, same decision at {100 * self.agreement:.2f} % of {self.pixels} pixels"
        )


def export_file(
    checkpoint: Path | str,
    out: Path | str,
    to: Target,
    precision: Precision = "f32",
    data: Path | str | None = None,
    split: str = "train",
) -> Comparison:
    """Write a checkpoint as a graph, if it gives the numbers of torch.

    Args:
        checkpoint: our .safetensors file.
        out: file to write: .onnx, or .xml with a .bin beside it.
        to: "onnx" or "openvino".
        precision: "f32"; "bf16" is a float32 graph that OpenVINO computes in bf16 where the processor can; "int8" has
            int8 weights and inputs of most products, and bf16 for the rest.
        data: folder of tiles to compare on, and to calibrate int8 with; without it, generated images are compared.
        split: which tiles of it.

    Returns:
        How it compares with torch.

    Raises:
        ConfigError: an argument does not fit, or a package is not installed.
        CheckpointError: the checkpoint cannot be used.
        InputError: the tiles cannot be read.
        ExportError: the numbers differ by more than :data:`BOUNDS` allows. Nothing is written.
        OutputError: ``out`` cannot be written.
    """
    out = Path(out)
    _check(out, to, precision, data)
    net = load(checkpoint)
    info = net.info
    assert info is not None
    tiles = None if data is None else _tiles(info, data, split)
    with staging(out.parent, out) as folder:
        part = folder / out.name
        metadata = to_metadata(info) | {PRECISION: precision, WINDOWS: json.dumps(suitable_windows(net.config))}
        with writing(out):
            if to == "onnx":
                write_onnx(net, part, metadata)
            else:
                write_openvino(
                    net, part, metadata, _calibration(info, tiles) if tiles and precision == "int8" else None
                )
        comparison = compare(net, _graphs(part), _cases(info, tiles))
        _judge(comparison, BOUNDS[precision], out, precision)
        publish(sorted(folder.iterdir()), out.parent)  # the .bin before its .xml
    return comparison


def compare(net: HeteCD, graphs: Sequence[Predictor], cases: Iterable[Images]) -> Comparison:
    """Run graphs and the network on normalised images and say how far apart they are, the worst of several graphs."""
    assert net.info is not None
    threshold = net.info.threshold
    difference, total, same, pixels = 0.0, np.zeros(len(graphs)), np.zeros(len(graphs)), 0
    for optical, sar in cases:
        with torch.inference_mode():
            wanted = net(torch.from_numpy(optical), torch.from_numpy(sar)).softmax(1)[:, 1].numpy()
        pixels += wanted.size
        for i, graph in enumerate(graphs):
            found = graph(optical, sar)
            apart = np.abs(found - wanted) if found.shape == wanted.shape else np.full(wanted.shape, np.nan)
            difference = float(np.maximum(difference, apart.max()))  # NaN stays NaN
            total[i] += apart.sum()
            same[i] += ((found >= threshold) == (wanted >= threshold)).sum() if found.shape == wanted.shape else 0
    return Comparison(difference, float(total.max() / pixels), float(same.min() / pixels), pixels)


def write_onnx(net: HeteCD, path: Path, metadata: dict[str, str], int8: bool = False) -> None:
    """The network as ONNX, on request in the form to be quantised; not compared yet."""
    import onnx

    config = net.config
    # Standardised bands come with the others.
    images = tuple(torch.zeros(2, config.copies * n, 64, 96) for n in (config.optical_channels, config.sar_channels))
    free = {name: {0: "batch", 2: "height", 3: "width"} for name in ("optical", "sar")}
    free["probability"] = {0: "batch", 1: "height", 2: "width"}
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns of sizes it takes for constants; the comparison is at other sizes. torch.export, which is
        # to replace it, cannot yet hold sizes free that are padded to a multiple.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Graph(net, int8), images, path, dynamo=False, opset_version=OPSET, dynamic_axes=free,
            input_names=["optical", "sar"], output_names=["probability"],
        )  # fmt: skip
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def write_openvino(
    net: HeteCD, path: Path, metadata: dict[str, str], calibration: Sequence[Images] | None = None
) -> None:
    """The network for OpenVINO, in int8 where there are images for its calibration; not compared yet."""
    with quiet():
        import openvino

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        write_onnx(net, Path(folder) / "graph.onnx", {}, calibration is not None)
        model = openvino.Core().read_model(Path(folder) / "graph.onnx")
        if calibration is not None:
            model = _quantise(model, calibration)
        for key, value in metadata.items():
            model.set_rt_info(value, [SECTION, key])
        # Half precision holds more digits than bf16 and int8 need.
        try:
            openvino.save_model(model, path, compress_to_fp16=metadata[PRECISION] != "f32")
        except RuntimeError as error:  # how it words a full disk
            raise OSError(str(error).splitlines()[0]) from error


def _quantise(model: Any, calibration: Sequence[Images]) -> Any:
    """Convolutions and products to int8, by NNCF."""
    with quiet():
        import nncf

    nncf.set_log_level(logging.ERROR)
    data = nncf.Dataset([{"optical": optical, "sar": sar} for optical, sar in calibration])
    log.info("int8: calibrating on %d tiles", len(calibration))
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars, also into files
        return nncf.quantize(model, data, subset_size=len(calibration), model_type=nncf.ModelType.TRANSFORMER)


def _check(out: Path, to: Target, precision: Precision, data: Path | str | None) -> None:
    ending = {"onnx": ".onnx", "openvino": ".xml"}[to]
    if out.suffix != ending:
        raise ConfigError(f"{out}: found ending {out.suffix!r}, expected {ending!r} for --to {to}")
    if to == "onnx" and precision != "f32":
        raise ConfigError(f"precision: found {precision} for ONNX, expected f32; {precision} needs --to openvino")
    if precision == "int8" and data is None:
        raise ConfigError("data: found none, expected a folder of tiles, as int8 is calibrated on them; give --data")
    needed = ("onnx", *{"onnx": (), "openvino": ("openvino",)}[to], *(("nncf",) if precision == "int8" else ()))
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"export: needs {', '.join(missing)}, which is not installed; {MAKE}")
    if not any(is_installed(name) for name in GRAPHS):
        raise ConfigError(f"export: needs openvino or onnxruntime to compare with torch, found neither; {MAKE}")


def _judge(found: Comparison, bounds: Bounds, out: Path, precision: Precision) -> None:
    """Raise ExportError where a comparison is not within its bounds; not a number is in none."""
    good = (
        found.difference <= bounds.difference
        and found.mean_difference <= bounds.mean_difference
        and found.agreement >= bounds.agreement
    )
    if not good:
        raise ExportError(
            f"{out}: not written; {found}; expected for {precision} at most {bounds.difference:g} and "
            f"{bounds.mean_difference:g}, and at least {100 * bounds.agreement:g} %; try another precision"
        )


def _graphs(path: Path) -> list[Predictor]:
    """A graph in every runtime that is installed and can read it."""
    if path.suffix == ".xml":
        return [OpenVinoGraph(path)]
    return [kind(path, "cpu") for name, kind in GRAPHS.items() if is_installed(name)]


def _tiles(info: ModelInfo, data: Path | str, split: str) -> TileDataset:
    config = TrainConfig(before_is=info.before_is, ignore_255=bool(info.recipe.get("ignore_255", False)))
    return TileDataset(find_tiles(data, split), config, info.optical, info.sar, cache_bytes=0)


def _spread(tiles: TileDataset, count: int) -> Iterator[Images]:
    """Some tiles from all over a split, normalised, one at a time."""
    for index in np.unique(np.linspace(0, len(tiles) - 1, count).round().astype(int)):
        item = tiles[int(index)]
        yield item["optical"].numpy()[None], item["sar"].numpy()[None]


def _calibration(info: ModelInfo, tiles: TileDataset) -> list[Images]:
    """Images as the graph reads them."""
    return [with_standardised(info, *images) for images in _spread(tiles, CALIBRATION_TILES)]


def _cases(info: ModelInfo, tiles: TileDataset | None) -> Iterator[Images]:
    """Normalised images to compare on: two sizes, one of them no multiple of 32, and two batch sizes."""
    if tiles is None:
        yield _generated(info, 1, 96, 128)
        yield _generated(info, 2, 75, 110)
        return
    for number, images in enumerate(_spread(tiles, COMPARED_TILES)):
        if number == 0:
            yield tuple(_odd(np.concatenate((image, image[..., ::-1]))) for image in images)  # type: ignore[misc]
        yield images


def _odd(images: Floats) -> Floats:
    """Mirrored on to a size that is no multiple of 32."""
    right, bottom = ((-size % STRIDE_PX) + 5 for size in images.shape[-2:])
    return np.pad(images, ((0, 0), (0, 0), (0, right), (0, bottom)), mode="reflect")


def _generated(info: ModelInfo, batch: int, height: int, width: int) -> Images:
    """Blocks at two scales plus noise: unlike plain noise they give probabilities of both kinds."""
    rng = np.random.default_rng(batch)
    channels = info.optical.channels + info.sar.channels
    image = 0.3 * rng.random((batch, channels, height, width))
    for edge in (8, 32):
        blocks = rng.random((batch, channels, math.ceil(height / edge), math.ceil(width / edge)))
        image += 0.35 * blocks.repeat(edge, 2).repeat(edge, 3)[..., :height, :width]
    image = image.astype(np.float32)
    return np.split(image, [info.optical.channels], axis=1)  # type: ignore[return-value]
