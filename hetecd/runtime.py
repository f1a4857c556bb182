"""Exported graphs as predictors: OpenVINO and ONNX Runtime, without torch.

A graph is a file that `hetecd export` wrote: ``.xml`` with its ``.bin`` (OpenVINO) or ``.onnx``. It reads normalised
images ``optical`` and ``sar`` (with their standardised bands, where the network has them), gives ``probability``, and
carries its :class:`hetecd.info.ModelInfo`, so that the file alone is enough to use.
"""

import json
import logging
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hetecd.errors import CheckpointError, ConfigError
from hetecd.info import ModelInfo, from_metadata
from hetecd.memory import torch_takes_gpu
from hetecd.modality import Floats, Scaled, Windows, padded, standardised

log = logging.getLogger("hetecd")

Runtime = Literal["auto", "torch", "openvino", "onnx"]
Precision = Literal["auto", "f32", "bf16", "f16"]
KINDS: dict[str, tuple[Runtime, ...]] = {  # what may run a file, by its ending
    ".safetensors": ("torch",), ".xml": ("openvino",), ".onnx": ("openvino", "onnx"),
}  # fmt: skip
PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}
SECTION = "hetecd"  # of OpenVINO's rt_info
PRECISION = "precision"  # metadata key: what the graph was exported and compared as
WINDOWS = "windows"  # metadata key: in which windows the graph maps a scene; older files lack it
SHAPES = 4  # graphs compiled for one shape that are kept


def choose(path: Path | str, runtime: Runtime = "auto", device: str = "auto") -> Runtime:
    """Which runtime computes a file: the only one, the one asked for, or the fastest installed.

    Args:
        path: a checkpoint or a graph.
        runtime: "auto" takes ONNX Runtime for a GPU that it can use, otherwise OpenVINO before ONNX Runtime.
        device: "auto", "cpu", "cuda", ...

    Raises:
        ConfigError: this runtime cannot compute this file, or is not installed.
    """
    possible = KINDS.get(Path(path).suffix.lower(), ("torch",))  # what torch cannot read, it says itself
    if runtime != "auto":
        if runtime not in possible:
            hint = "make a graph with `hetecd export`" if possible == ("torch",) else "leave --runtime out"
            raise ConfigError(f"{path}: found --runtime {runtime}, expected {' or '.join(possible)}; {hint}")
        possible = (runtime,)
    if possible == ("torch",):
        return "torch"
    installed = [name for name in possible if is_installed(name)]
    if not installed:
        extras = " or ".join(f"pip install 'hetecd[{name}]'" for name in possible)
        raise ConfigError(
            f"{path}: needs {' or '.join(PACKAGES[n] for n in possible)}, which is not installed; {extras}"
        )
    return "onnx" if "onnx" in installed and _onnx_takes_gpu(device) else installed[0]


def kind_of_device(path: Path | str, runtime: Runtime = "auto", device: str = "auto") -> Literal["cpu", "cuda"]:
    """What a file is computed on; arguments and errors are those of :func:`choose`. Torch must be imported already."""
    chosen = choose(path, runtime, device)
    on_gpu = torch_takes_gpu(device) if chosen == "torch" else chosen == "onnx" and _onnx_takes_gpu(device)
    return "cuda" if on_gpu else "cpu"


def open_graph(
    path: Path | str, runtime: Runtime = "auto", device: str = "auto", precision: Precision = "auto"
) -> tuple[Scaled, ModelInfo]:
    """An exported graph as a function of raw images, and what it says about itself.

    Arguments and errors are those of :func:`read_graph`.

    Returns:
        ``(optical (B, Co, H, W), sar (B, Cs, H, W)) -> probability (B, H, W)`` of raw float32 arrays, NaN = invalid,
        H and W from 32; and the description.
    """
    graph = read_graph(path, runtime, device, precision)
    return graph.info.scaled(graph), graph.info


def read_graph(
    path: Path | str, runtime: Runtime = "auto", device: str = "auto", precision: Precision = "auto"
) -> "OpenVinoGraph | OnnxGraph":
    """An exported graph as a function of normalised images.

    Args:
        path: the ``.xml`` or ``.onnx`` file.
        runtime: see :func:`choose`.
        device: "auto", "cpu"; for ONNX Runtime also "cuda", "cuda:1", ...
        precision: "auto" computes as exported. OpenVINO computes any graph in "f32" or, where the processor can, in
            "bf16"; int8 parts stay int8. "f16" is for torch.

    Raises:
        CheckpointError: missing, unreadable, or not written by `hetecd export`.
        ConfigError: the runtime is not installed, cannot read this kind of file or cannot use device or precision.
    """
    chosen = choose(path, runtime, device)
    if precision == "f16":
        raise ConfigError(f"{path}: found --precision f16, expected f32 or bf16 of a graph; f16 is for checkpoints")
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; expected a graph written by `hetecd export`")
    graph = GRAPHS[chosen](path, device, precision)
    log.info("%s: computed by %s", Path(path).name, graph)
    return graph


class OpenVinoGraph:
    """A graph in OpenVINO, a predictor of normalised images.

    It is compiled for each shape of input it meets, as fixed sizes compute about a fifth faster than free ones; the
    last few are kept.
    """

    def __init__(self, path: Path | str, device: str = "auto", precision: Precision = "auto") -> None:
        if device not in ("auto", "cpu"):
            raise ConfigError(f"device: found {device!r}, expected cpu for OpenVINO; see --runtime")
        import openvino

        self.core = openvino.Core()
        try:
            self.model = self.core.read_model(str(path))
            metadata = _openvino_metadata(self.model)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: not a graph that OpenVINO can read; export it again") from error
        self.info = from_metadata(metadata, path)
        self.windows = _windows(metadata, path)
        _check_channels(path, self.info, self.model.input("optical").partial_shape[1].get_length())
        if precision == "auto":
            # What is not int8 in an int8 graph is best computed in bf16.
            precision = "f32" if metadata.get(PRECISION, "f32") == "f32" else "bf16"
        # Always said: by itself OpenVINO computes float32 graphs in bf16 where the processor can.
        self.settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        self.compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self.name = (
            f"OpenVINO {openvino.__version__.split('-')[0]} ({metadata.get(PRECISION, 'f32')} graph, {precision})"
        )

    def __str__(self) -> str:
        return self.name

    def __call__(self, optical: Floats, sar: Floats) -> Floats:
        """Normalised images to probability, see :func:`open_graph`."""
        H, W = sar.shape[-2:]
        optical, sar = with_standardised(self.info, optical, sar)
        # A scene's last windows, a little shorter, shall not take memory for shapes of their own.
        if optical.shape not in self.compiled and (grown := padded(optical)).shape in self.compiled:
            optical, sar = grown, padded(sar)
        if optical.shape not in self.compiled:
            if len(self.compiled) == SHAPES:
                self.compiled.popitem(last=False)
            self.model.reshape({"optical": optical.shape, "sar": sar.shape})
            compiled = self.core.compile_model(self.model, "CPU", self.settings)
            self.compiled[optical.shape] = compiled.create_infer_request()
        self.compiled.move_to_end(optical.shape)
        result = self.compiled[optical.shape].infer({"optical": optical, "sar": sar})
        return np.array(result["probability"][..., :H, :W], np.float32)  # a copy: the runtime reuses its own


class OnnxGraph:
    """A graph in ONNX Runtime, a predictor of normalised images."""

    def __init__(self, path: Path | str, device: str = "auto", precision: Precision = "auto") -> None:
        import onnxruntime

        if precision == "bf16":
            raise ConfigError(f"{path}: ONNX Runtime computes it as exported, not in bf16; take --runtime openvino")
        gpu = re.fullmatch(r"cuda(:\d+)?", device) is not None
        if (gpu and not _has_cuda()) or not (gpu or device in ("auto", "cpu")):
            found = ", ".join(onnxruntime.get_available_providers())
            raise ConfigError(f"device: {device!r} cannot be used by ONNX Runtime ({found}); install onnxruntime-gpu")
        number = int(device.partition(":")[2] or 0)
        on_gpu = ("CUDAExecutionProvider", {"device_id": number})
        providers: list[Any] = [on_gpu] if gpu or (device == "auto" and _has_cuda()) else []
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=[*providers, "CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base
            raise CheckpointError(f"{path}: not a graph that ONNX Runtime can read; export it again") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.info = from_metadata(metadata, path)
        self.windows = _windows(metadata, path)
        _check_channels(path, self.info, self.session.get_inputs()[0].shape[1])
        where = "CUDA" if self.session.get_providers()[0].startswith("CUDA") else "CPU"
        if gpu and where == "CPU":  # built for CUDA, but its driver or libraries are missing
            raise ConfigError(f"device: {device!r} cannot be started by ONNX Runtime; see its messages, or take cpu")
        self.name = f"ONNX Runtime {onnxruntime.__version__} ({where}, f32)"

    def __str__(self) -> str:
        return self.name

    def __call__(self, optical: Floats, sar: Floats) -> Floats:
        """Normalised images to probability, see :func:`open_graph`."""
        optical, sar = with_standardised(self.info, optical, sar)
        return self.session.run(["probability"], {"optical": optical, "sar": sar})[0]


GRAPHS: dict[str, type[OpenVinoGraph] | type[OnnxGraph]] = {"openvino": OpenVinoGraph, "onnx": OnnxGraph}


@contextmanager
def quiet() -> Iterator[None]:
    """Import a runtime or its companions inside this: they would report their use to their makers."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("NNCF_CI", "1")
    absent = "openvino_telemetry" not in sys.modules
    if absent:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # what OpenVINO takes for: not installed
    try:
        yield
    finally:
        if absent:
            del sys.modules["openvino_telemetry"]


def is_installed(runtime: str) -> bool:
    """Whether "openvino" or "onnx" can be used here."""
    try:
        with quiet():
            if runtime == "openvino":
                import openvino  # noqa: F401
            else:
                import onnxruntime  # noqa: F401
    except ImportError:
        return False
    return True


def _onnx_takes_gpu(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and _has_cuda())


def _has_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def with_standardised(info: ModelInfo, optical: Floats, sar: Floats) -> tuple[Floats, Floats]:
    """Normalised images as a graph reads them: with their standardised bands, where they are wanted and do not come."""
    if info.model.standardise and optical.shape[1] == info.optical.channels:
        return standardised(optical), standardised(sar)
    return optical, sar


def _check_channels(path: Path | str, info: ModelInfo, found: int) -> None:
    """CheckpointError where a graph standardises bands itself, as those of older versions do."""
    expected = info.optical.channels * info.model.copies
    if found != expected:
        raise CheckpointError(
            f"{path}: found a graph of {found} optical channels, expected {expected}; an older version wrote it, "
            "export it again"
        )


def _windows(metadata: dict[str, str], path: Path | str) -> Windows:
    try:
        return Windows(*map(int, json.loads(metadata[WINDOWS]))) if WINDOWS in metadata else Windows()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its description cannot be used ({error}); export it again") from error


def _openvino_metadata(model: Any) -> dict[str, str]:
    """Our entries of a model read from .xml (its rt_info) or .onnx (which OpenVINO keeps under "framework")."""
    for section in ([SECTION], ["framework"]):
        if model.has_rt_info(section):
            found = model.get_rt_info(section).value
            return {key: str(value) for key, value in found.items()}
    return {}
