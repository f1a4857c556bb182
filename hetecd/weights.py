"""Our checkpoint: one .safetensors file that carries everything needed to use it.

The tensors are the network; the metadata is its :class:`hetecd.info.ModelInfo`. There is no pickle in it, so loading a
stranger's file is safe.
"""

import copy
import functools
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hetecd.config import ModelConfig
from hetecd.errors import CheckpointError, ConfigError, some
from hetecd.files import replacing
from hetecd.info import FORMAT, ModelInfo, from_metadata, to_metadata
from hetecd.modality import Floats, Focusing, Inner, Predictor, Scaled, Windows
from hetecd.model import HeteCD, around, within
from hetecd.ops import BF16, freeze, give_back_memory, keep_memory
from hetecd.residual import LOOK_PX, RESIDUAL
from hetecd.runtime import Precision
from hetecd.tiles import BLEND_PX

__all__ = ["FORMAT", "fresh", "load", "load_encoder", "predictor", "save", "save_encoder"]

log = logging.getLogger("hetecd")

ENCODER_FORMAT = "hetecd-encoder-1"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
LARGE = 2**20  # pixels of a window from which memory matters more than the moment that it takes to get it again
NARROW = 64  # width of a decoder up to which windows may be large
FIRST = "stages.0.embed.conv.weight"


def save(path: Path | str, model: HeteCD, info: ModelInfo, half: bool = False) -> None:
    """Write a checkpoint; the final name appears only when the file is whole.

    Args:
        path: where to; should end in .safetensors.
        model: the network.
        info: everything else.
        half: store floating-point tensors in half precision, but those with numbers above 65504 (loading gives
            float32 again).

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_tensors(path, halved(tensors) if half else tensors, to_metadata(info))


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in half precision, but for those with numbers above its 65504."""
    halves = {key: value.half() for key, value in tensors.items() if value.is_floating_point()}
    return tensors | {key: half for key, half in halves.items() if half.isfinite().all()}


def check_name(path: Path | str) -> None:
    """Raise CheckpointError unless a name is one for a file of ours: by its ending it is opened."""
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(f"{path}: expected a name that ends in .safetensors")


def save_tensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata as safetensors, first under a temporary name.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as part:
        part.touch()
        mode = part.stat().st_mode  # safetensors makes files that only their owner can read
        try:
            save_file(tensors, part, metadata)
            part.chmod(mode)
        except SafetensorError as error:  # how it words a full disk
            raise OSError(str(error)) from error


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: missing, unreadable or no safetensors file.
    """
    if not Path(path).is_file():
        found = "a folder; name the file in it, such as best.safetensors" if Path(path).is_dir() else "no such file"
        raise CheckpointError(f"{path}: {found}; expected a .safetensors checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a .safetensors file ({error}); published weights go through `hetecd convert` first"
        ) from error


def fill(model: torch.nn.Module, tensors: dict[str, Tensor], what: Path | str) -> None:
    """Load tensors into a module, strictly, and say in one line what does not fit.

    Raises:
        CheckpointError: names are missing or extra, or a shape differs.
    """
    own = model.state_dict()
    problems = {
        "missing": [key for key in own if key not in tensors],
        "unexpected": [key for key in tensors if key not in own],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in tensors and tensors[key].shape != own[key].shape
        ],
    }
    found = "; ".join(f"{len(names)} {kind}: {some(names, 3)}" for kind, names in problems.items() if names)
    if found:
        raise CheckpointError(f"{what}: does not fit the network; {found}")
    model.load_state_dict(tensors)


def empty(config: ModelConfig) -> HeteCD:
    """A network whose tensors are yet to be filled: no time is spent on an initialisation."""
    with torch.device("meta"):
        model = HeteCD(config)
    return model.to_empty(device="cpu")


def load(path: Path | str) -> HeteCD:
    """The network of a checkpoint, in evaluation mode; ``net.info`` is its :class:`ModelInfo`.

    From now on the process keeps freed memory for its next tensors, see :func:`hetecd.ops.keep_memory`.

    Args:
        path: a .safetensors file written by hetecd.

    Raises:
        CheckpointError: missing, unreadable, foreign, or not fitting its own description.
    """
    keep_memory()
    tensors, metadata = read_tensors(path)
    info = from_metadata(metadata, path)
    model = empty(info.model)
    fill(model, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, path)
    model.info = info
    return model.eval()


def save_encoder(path: Path | str, tensors: dict[str, Tensor], name: str, half: bool = False) -> None:
    """Write an encoder file for the recipe key ``encoder_weights``; ``half``: in half precision.

    Raises:
        OutputError: the file cannot be written.
    """
    save_tensors(path, halved(tensors) if half else tensors, {"format": ENCODER_FORMAT, "encoder": name})


def load_encoder(path: Path | str, encoder: torch.nn.Module, name: str) -> None:
    """Fill an encoder from a converted file; its first convolution adapts to another number of channels.

    Raises:
        CheckpointError: another encoder, or not a converted encoder file.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != ENCODER_FORMAT or FIRST not in tensors:
        raise CheckpointError(f"{path}: not an encoder file; make one with `hetecd convert PUBLISHED -o FILE`")
    if metadata.get("encoder") != name:
        raise CheckpointError(f"{path}: found encoder {metadata.get('encoder')}, expected {name}; change `encoder`")
    tensors[FIRST] = adapt_channels(tensors[FIRST], encoder.state_dict()[FIRST].shape[1])
    fill(encoder, tensors, path)


def fresh(config: ModelConfig, seed: int, encoder_weights: str = "", start_from: str = "") -> HeteCD:
    """The network as it is before its first training step.

    Args:
        config: the network.
        seed: of its initial weights.
        encoder_weights: converted file for both encoders, "" = none.
        start_from: checkpoint with all weights, "" = none; without its calibration, which is not for training.

    Raises:
        CheckpointError: a file is of another encoder or network, or neither converted encoder nor checkpoint.
    """
    torch.manual_seed(seed)
    model = HeteCD(config)
    if encoder_weights:
        for encoder in (model.optical_encoder, model.sar_encoder):
            load_encoder(encoder_weights, encoder, config.encoder)
    if start_from:
        start = load(start_from)
        fill(model, unfolded(start).state_dict(), start_from)
        if odd := config.unlike(start.config):  # such as are no tensors
            raise CheckpointError(f"{start_from}: found another {', '.join(odd)}, expected the network to be trained")
    return model


def folded(model: HeteCD, slope: float, offset: float, threshold: float) -> HeteCD:
    """A copy with slope and offset of the logit in its last convolution: what follows it, a resize, changes neither."""
    assert model.info is not None
    before = model.info.calibration
    calibration = (slope * before[0], slope * before[1] + offset)
    info = replace(model.info, threshold=threshold, calibration=calibration)
    model = copy.deepcopy(model)
    head = model.decoder.head
    last = head[-1] if isinstance(head, torch.nn.Sequential) else head
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight.mul_(slope)
        last.bias.mul_(slope)
        last.bias[1] += offset
    model.info = info
    return model


def unfolded(model: HeteCD) -> HeteCD:
    """A copy as it was before it was calibrated, its threshold as it is."""
    assert model.info is not None
    slope, offset = model.info.calibration
    return folded(model, 1 / slope, -offset / slope, model.info.threshold)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Fit a first convolution (C_out, C_in, k, k) to another number of input channels.

    The usual way: repeat the channels in turn and scale by the ratio of their numbers, so that the response to a grey
    image stays about the same (exactly so for one channel and for multiples).
    """
    before = weight.shape[1]
    if channels == before:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % before] * (before / channels)


def predictor(model: HeteCD, device: str = "auto", precision: Precision = "auto") -> Scaled:
    """A function from raw images to the probability of change.

    Args:
        model: a loaded network, or any that has its ``info`` set. It is copied: what happens to it later is not seen.
        device: where to compute; "auto" takes a GPU if there is one.
        precision: "bf16" computes in bfloat16 (autocast) where the processor can, "auto" does so on a GPU that can;
            "f16" is for GPUs alone.

    Returns:
        ``(optical (B, Co, H, W), sar (B, Cs, H, W)) -> probability (B, H, W)``; raw float32 arrays, NaN = invalid. It
        warns, once, where most values are unlike those of training.

    Raises:
        CheckpointError: the network has no ``info``.
        ConfigError: there is no such device, or it is not for this precision; later, by a call, that its memory does
            not suffice.
    """
    info = model.info
    if info is None:
        raise CheckpointError("predictor: the network carries no description; load it, or set its `info`")
    return info.scaled(normalised_predictor(model, device, precision))


@functools.cache  # it speaks once
def precision_on(kind: str, precision: Precision) -> Precision:
    """In what a kind of device computes: "auto" is exact on a CPU and fast on a GPU, bf16 needs a CPU that has it."""
    if precision == "auto":
        return "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "f32"
    if kind == "cpu" and precision == "bf16" and not BF16:
        log.info("bf16: this processor does not compute it, so float32 is faster and taken in its place")
        return "f32"
    return precision


def normalised_predictor(model: HeteCD, device: str = "auto", precision: Precision = "auto") -> Predictor:
    """As :func:`predictor`, of normalised images; it needs no ``info``, and warns of nothing."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
        if kind == "meta":
            raise RuntimeError("it holds no numbers")
        model = copy.deepcopy(model).eval().to(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        reason = str(error).splitlines()[0]
        reason = "no kind of device" if "at start of device string" in reason else reason
        raise ConfigError(f"device: {device!r} cannot be used ({reason}); try cpu, cuda or auto") from error
    if precision == "f16" and kind == "cpu":
        raise ConfigError("precision: found f16 on the CPU, expected f32 or bf16; f16 is for GPUs")
    dtype = DTYPES[precision_on(kind, precision)]
    model = freeze(model, dtype)
    config = model.config
    look = _look_px(config)

    def compute(optical: Floats, sar: Floats, inner: Inner | None) -> Floats:
        B, _, H, W = sar.shape
        whole = np.zeros((B, H, W), np.float32)
        rows, cols = inner or (slice(0, H), slice(0, W))
        # Mean and deviation of the bands are of all that is shown, unless they come with it.
        if inner and look and optical.shape[1] == config.copies * config.optical_channels:
            area = around(inner, (H, W), look)
            optical, sar = optical[:, :, area[0], area[1]], sar[:, :, area[0], area[1]]
            inner = within(inner, area)
        if kind == "cpu" and sar.size >= LARGE:
            give_back_memory()
        with torch.inference_mode(), torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            try:
                logits = model(*(torch.from_numpy(image).to(device) for image in (optical, sar)), inner=inner)
            except torch.OutOfMemoryError as error:
                raise ConfigError(f"device: not enough memory for {sar.shape}; lower --batch or --tile") from error
            whole[:, rows, cols] = logits.float().softmax(1)[:, 1].cpu().numpy()
        return whole

    return Focusing(compute, suitable_windows(config))


def suitable_windows(config: ModelConfig) -> Windows:
    """Those in which a network maps a scene unless told otherwise: where they share what it sees they agree."""
    look = _look_px(config)
    # Each takes some 0.6 GB, with a decoder that is not NARROW more than a laptop has.
    return Windows(1536, 2 * look + BLEND_PX) if look and config.width <= NARROW else Windows()


def _look_px(config: ModelConfig) -> int:
    """How far a network sees, 0 = as far as a window goes."""
    return LOOK_PX if config.encoder in RESIDUAL else 0
