"""Published weights -> our own files.

Four spellings are understood, told apart by their keys: the released HeteCD checkpoint, SegFormer-style MiT files
(``backbone.*`` or bare), Hugging Face's MiT (both of its spellings) and timm's PVTv2. A pickle is only ever opened by
``torch.load(weights_only=True)``, which runs no code from the file.

Every table below goes from our name to the published one, so that a converter is a loop over our own tensors, and
what is missing or too much is reported in the words of the file at hand.
"""

import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from hetecd.config import EncoderName, ModelConfig
from hetecd.encoder import ENCODERS, Encoder
from hetecd.errors import CheckpointError
from hetecd.info import ModelInfo
from hetecd.modality import uint8_modality
from hetecd.model import HeteCD
from hetecd.weights import FORMAT, check_name, empty, fill, load, read_tensors, save, save_encoder


@dataclass(frozen=True)
class _Spelling:
    """How one source names an encoder.

    Attributes:
        family: of :data:`ENCODERS`.
        stage: our name inside a stage -> theirs; {i} is the stage from 0, {n} from 1.
        block: our name inside a block -> theirs, after ``prefix``; a pair is stored apart and joined, keys first.
        prefix: of a block; {j} is the block from 0.
        first: name of the first stage's patch embedding, where it differs.
    """

    family: str
    stage: dict[str, str]
    prefix: str
    block: dict[str, str | tuple[str, str]]
    first: str = ""

    def names(self, key: str) -> tuple[str, ...]:
        """Published name (or two, to be joined) of our ``stages.{i}...`` key."""
        _, i, *rest = key.split(".")
        part, leaf = ".".join(rest[:-1]), rest[-1]
        if rest[0] == "blocks":
            theirs = self.block[".".join(rest[2:-1])]
            pair = [self.prefix + name for name in ((theirs,) if isinstance(theirs, str) else theirs)]
        else:
            pair = [self.stage[part]]
            if i == "0" and self.first and part.startswith("embed"):
                pair = [self.first + "." + pair[0].rsplit(".", 1)[1]]
        return tuple(f"{name.format(i=i, n=int(i) + 1, j=rest[1])}.{leaf}" for name in pair)


_MIT = _Spelling(
    "mit",
    {"embed.conv": "patch_embed{n}.proj", "embed.norm": "patch_embed{n}.norm", "norm": "norm{n}"},
    "block{n}.{j}.",
    {
        "norm1": "norm1", "norm2": "norm2", "attention.query": "attn.q", "attention.key_value": "attn.kv",
        "attention.out": "attn.proj", "attention.reduce": "attn.sr", "attention.reduce_norm": "attn.norm",
        "mlp.expand": "mlp.fc1", "mlp.depthwise": "mlp.dwconv.dwconv", "mlp.project": "mlp.fc2",
    },
)  # fmt: skip
_TIMM = _Spelling(
    "pvt_v2",
    {"embed.conv": "stages.{i}.downsample.proj", "embed.norm": "stages.{i}.downsample.norm", "norm": "stages.{i}.norm"},
    "stages.{i}.blocks.{j}.",
    _MIT.block | {"mlp.depthwise": "mlp.dwconv"},
    first="patch_embed",
)
_HF = _Spelling(
    "mit",
    {
        "embed.conv": "stages.{i}.patch_embeddings.proj", "embed.norm": "stages.{i}.patch_embeddings.layer_norm",
        "norm": "stages.{i}.layer_norm",
    },
    "stages.{i}.blocks.{j}.",
    {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attention.query": "attention.q_proj",
        "attention.key_value": ("attention.k_proj", "attention.v_proj"), "attention.out": "attention.o_proj",
        "attention.reduce": "attention.sequence_reduction.sequence_reduction",
        "attention.reduce_norm": "attention.sequence_reduction.layer_norm",
        "mlp.expand": "mlp.fc1", "mlp.depthwise": "mlp.dwconv.dwconv", "mlp.project": "mlp.fc2",
    },
)  # fmt: skip
# Before its version 5 the same library named the same tensors so; most files in circulation do.
_HF_BEFORE_5 = _Spelling(
    "mit",
    {
        "embed.conv": "patch_embeddings.{i}.proj", "embed.norm": "patch_embeddings.{i}.layer_norm",
        "norm": "layer_norm.{i}",
    },
    "block.{i}.{j}.",
    {
        "norm1": "layer_norm_1", "norm2": "layer_norm_2", "attention.query": "attention.self.query",
        "attention.key_value": ("attention.self.key", "attention.self.value"),
        "attention.out": "attention.output.dense", "attention.reduce": "attention.self.sr",
        "attention.reduce_norm": "attention.self.layer_norm",
        "mlp.expand": "mlp.dense1", "mlp.depthwise": "mlp.dwconv.dwconv", "mlp.project": "mlp.dense2",
    },
)  # fmt: skip
_SPELLINGS = (_MIT, _HF, _HF_BEFORE_5, _TIMM)
_CLASSIFIERS = ("head.", "classifier.", "decode_head.")  # what an encoder was trained with, of no use here

# Scale {n} from 1 in the release, {i} from 0 here.
_SCALE = {
    "project.{i}": "linear_c{n}.proj",
    "difference.{i}.volumes.conv3": "cross_fuse_c{n}.conv3d1.0",
    "difference.{i}.volumes.conv5": "cross_fuse_c{n}.conv3d2.0",
    "difference.{i}.volumes.conv7": "cross_fuse_c{n}.conv3d3.0",
    "difference.{i}.temporal.linear": "cross_fuse_c{n}.temporal_attention.time_attention",
    "difference.{i}.spatial.conv": "cross_fuse_c{n}.spatial_attention.spatial_attention",
    "difference.{i}.fuse.conv": "cross_fuse_c{n}.fuse_conv.0",
    "difference.{i}.fuse.norm": "cross_fuse_c{n}.fuse_conv.2",
    "difference.{i}.reduce.conv": "cross_fuse_c{n}.fuse_conv1.0",
    "difference.{i}.reduce.norm": "cross_fuse_c{n}.fuse_conv1.2",
}
_DECODER = {name.format(i=i): theirs.format(n=i + 1) for i in range(4) for name, theirs in _SCALE.items()} | {
    "fuse": "linear_fuse_bcd.0",
    "fuse_norm": "linear_fuse_bcd.1",
    "refine.0.conv1": "dense_2x.0.conv1.conv2d",
    "refine.0.conv2": "dense_2x.0.conv2.conv2d",
    "refine.1.conv1": "dense_1x.0.conv1.conv2d",
    "refine.1.conv2": "dense_1x.0.conv2.conv2d",
    "head.0": "make_pred_bcd.0",
    "head.2": "make_pred_bcd.2",
    "head.3": "make_pred_bcd.3",
}
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_CONV = ("weight", "bias")
# Stored in the release but never used by its forward pass.
_UNUSED_MODULES = {
    f"vae{n}.{name}": leaves
    for n in (1, 2)
    for name, leaves in (
        ("initial_conv", ("weight",)), ("initial_bn", _NORM), ("res_block.conv1", ("weight",)),
        ("res_block.bn1", _NORM), ("res_block.conv2", ("weight",)), ("res_block.bn2", _NORM),
        ("res_block.downsample.0", ("weight",)), ("res_block.downsample.1", _NORM),
    )
} | {
    f"CD_Decoder.{name}": leaves
    for name, leaves in (
        ("sce.conv2d", _CONV), ("linear_fuse.0", _CONV), ("linear_fuse.1", _NORM), ("convd2x.conv2d", _CONV),
        ("convd1x.conv2d", _CONV), ("change_probability.conv2d", _CONV), ("dense_2x_bcd.0.conv1.conv2d", _CONV),
        ("dense_2x_bcd.0.conv2.conv2d", _CONV), ("dense_1x_bcd.0.conv1.conv2d", _CONV),
        ("dense_1x_bcd.0.conv2.conv2d", _CONV),
    )
}  # fmt: skip
UNUSED = frozenset(f"{module}.{leaf}" for module, leaves in _UNUSED_MODULES.items() for leaf in leaves)


def convert_file(path: Path | str, out: Path | str, half: bool = False) -> str:
    """Convert published weights to our own file and say in one line what it became.

    A released HeteCD checkpoint becomes a checkpoint for :func:`hetecd.load`; an encoder becomes a file for the
    recipe key ``encoder_weights``; a checkpoint of our own is written again.

    Args:
        path: published weights, or a checkpoint of our own.
        out: file to write, .safetensors.
        half: store in half precision.

    Raises:
        CheckpointError: unreadable or unknown, or tensors missing, extra or of another shape (all are named).
        OutputError: ``out`` cannot be written.
    """
    check_name(out)
    if Path(out).exists() and Path(path).exists() and Path(out).samefile(path):
        raise CheckpointError(f"{out}: is the input; choose another name")
    if Path(path).suffix == ".safetensors" and read_tensors(path)[1].get("format") == FORMAT:
        model = load(path)
        assert model.info is not None
        save(out, model, model.info, half)
        return f"{out}: {path} written again"
    state = read_published(path)
    if any(key.startswith(("backbone1.", "CD_Decoder.")) for key in state):
        model = convert_hetecd(state, path)
        config = model.config
        # SAR is stored as three equal channels; reading band 1 three times serves those and plain one-band files.
        sar_bands = (1, 1, 1) if config.sar_channels == 3 else tuple(range(1, config.sar_channels + 1))
        info = ModelInfo(
            model=config, optical=uint8_modality(tuple(range(1, config.optical_channels + 1))),
            sar=uint8_modality(sar_bands), data="as published", licence="as published",
        )  # fmt: skip
        save(out, model, info, half)
        return f"{out}: HeteCD, {config.encoder}, width {config.width}"
    name, tensors = convert_encoder(state, path)
    save_encoder(out, tensors, name, half)
    return f"{out}: encoder {name}; use it as `encoder_weights`"


def read_published(path: Path | str) -> dict[str, Tensor]:
    """The state dict of a published file (.safetensors or pickle), without a leading ``module.`` in its keys.

    Raises:
        CheckpointError: missing, unreadable, holds code, or no mapping of names to tensors.
    """
    path = Path(path)
    state = read_tensors(path)[0] if path.suffix == ".safetensors" else _read_pickle(path)
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: expected a mapping of names to tensors (a state dict), found something else")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _read_pickle(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected published weights (.pth, .pt, .bin or .safetensors)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch would comment on the pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in whatever way its bytes happen to ask for
        reason = " ".join(str(error).split())
        if isinstance(error, pickle.UnpicklingError) and (is_zipfile(path) or _first_byte(path) == pickle.PROTO):
            code = re.search(r"GLOBAL ([\w.]+)", reason)
            raise CheckpointError(
                f"{path}: refused, this pickle is not plain tensors but asks to run code"
                f"{f' ({code.group(1)})' if code else ''}; get the weights as a state dict from a source you trust"
            ) from error
        raise CheckpointError(f"{path}: damaged or not a file of weights; fetch it again") from error


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def convert_hetecd(state: dict[str, Tensor], what: Path | str = "state dict") -> HeteCD:
    """The network that a released state dict describes, in evaluation mode.

    Args:
        state: keys as released, without ``module.``.
        what: named in errors.

    Raises:
        CheckpointError: tensors missing, extra or of another shape.
    """
    used = {key: value for key, value in state.items() if key not in UNUSED}
    if len(state) != len(used) and (missing := sorted(UNUSED - state.keys())):  # all of them or, stripped, none
        raise CheckpointError(f"{what}: does not fit the network; {len(missing)} missing: {', '.join(missing)}")
    config = ModelConfig(
        encoder=_recognise({k.removeprefix("backbone1."): v for k, v in used.items()}, _MIT),
        optical_channels=_channels(used, "backbone1.patch_embed1.proj.weight", what),
        sar_channels=_channels(used, "backbone2.patch_embed1.proj.weight", what),
        width=_size(used, "CD_Decoder.linear_fuse_bcd.0.bias", what),
    )
    model = empty(config)
    tensors = _pick(used, {key: _published_name(key) for key in model.state_dict()}, what)
    for key, value in tensors.items():
        if key.endswith("temporal.linear.weight") and value.ndim == 3:
            tensors[key] = value.squeeze(2)  # published as a 1x1 convolution over depth
    fill(model, tensors, what)
    return model.eval()


def _published_name(key: str) -> tuple[str, ...]:
    """Name in the released checkpoint of one of our tensors."""
    part, rest = key.split(".", 1)
    if part != "decoder":
        backbone = {"optical_encoder": "backbone1.", "sar_encoder": "backbone2."}[part]
        return tuple(backbone + name for name in _MIT.names(rest))
    inside, leaf = rest.rsplit(".", 1)
    return (f"CD_Decoder.{_DECODER[inside]}.{leaf}",)


def convert_encoder(state: dict[str, Tensor], what: Path | str = "state dict") -> tuple[EncoderName, dict[str, Tensor]]:
    """Name and tensors of a published encoder, for :class:`hetecd.encoder.Encoder`.

    Args:
        state: keys as published.
        what: named in errors.

    Raises:
        CheckpointError: no known spelling, or tensors missing, extra or of another shape.
    """
    for spelling in _SPELLINGS:
        (sign,) = spelling.names("stages.0.embed.conv.weight")
        found = next((key for key in state if key == sign or key.endswith("." + sign)), None)
        if found is None:
            continue
        prefix = found.removesuffix(sign)
        inside = {k.removeprefix(prefix): v for k, v in state.items() if not k.startswith(_CLASSIFIERS)}
        name = _recognise(inside, spelling)
        with torch.device("meta"):
            encoder = Encoder(ENCODERS[name], _channels(inside, sign, what))
        tensors = _pick(inside, {key: spelling.names(key) for key in encoder.state_dict()}, what)
        fill(encoder.to_empty(device="cpu"), tensors, what)
        return name, tensors
    raise CheckpointError(
        f"{what}: unknown weights, found keys like {', '.join(sorted(state)[:2])}; expected those of HeteCD, "
        "of MiT (SegFormer or Hugging Face) or of PVTv2 (timm)"
    )


def _pick(state: dict[str, Tensor], names: dict[str, tuple[str, ...]], what: Path | str) -> dict[str, Tensor]:
    """Our names for a published state dict, which must hold these names and no others."""
    wanted = [name for pair in names.values() for name in pair]
    missing = [name for name in wanted if name not in state]
    extra = sorted(set(state) - set(wanted))
    if missing or extra:
        found = [
            f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in (("missing", missing), ("extra", extra)) if keys
        ]
        raise CheckpointError(f"{what}: does not fit the network; {'; '.join(found)}")
    return {
        key: torch.cat([state[n] for n in pair]) if len(pair) > 1 else state[pair[0]] for key, pair in names.items()
    }


def _recognise(state: dict[str, Tensor], spelling: _Spelling) -> EncoderName:
    """The encoder of a family that shares most tensors, by name and shape, with a state dict."""

    def shared(name: str) -> int:
        with torch.device("meta"):
            own: nn.Module = Encoder(ENCODERS[name], 3)
        keys = {key: (spelling.names(key), value.shape[-1:]) for key, value in own.state_dict().items()}
        fits = sum(all(n in state and state[n].shape[-1:] == shape for n in pair) for pair, shape in keys.values())
        return 2 * fits - len(keys)

    return max((n for n in get_args(EncoderName) if n.startswith(spelling.family)), key=shared)


def _size(state: dict[str, Tensor], key: str, what: Path | str) -> int:
    if key not in state or state[key].ndim == 0:
        raise CheckpointError(f"{what}: does not fit the network; 1 missing: {key}")
    return state[key].shape[0]


def _channels(state: dict[str, Tensor], key: str, what: Path | str) -> int:
    if key not in state or state[key].ndim != 4:
        raise CheckpointError(f"{what}: does not fit the network; 1 missing: {key}")
    return state[key].shape[1]
