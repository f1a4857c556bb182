"""Settings: two frozen dataclasses and the recipes that fill them.

A recipe is a flat YAML file of the fields of :class:`ModelConfig` and :class:`TrainConfig`. This module imports
neither torch nor rasterio, so that ``hetecd train --help`` answers at once.
"""

import difflib
import math
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import yaml

from hetecd.errors import ConfigError
from hetecd.usage import explained

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

IGNORE = 255  # label value of a pixel that never counts

EncoderName = Literal[
    "mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5",
    "pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5", "residual_s",
]  # fmt: skip
Attention = Literal["published", "rescaled"]
Modalities = Literal["both", "optical", "sar"]
Role = Literal["optical", "sar"]

OF_TRAINING = {"dropout", "drop_path", "decoder_dropout", "token_dropout"}  # a network in use does not have them


def _check_choices(settings: "ModelConfig | TrainConfig") -> None:
    """ConfigError unless each field that is a Literal has one of its values."""
    for field in fields(settings):
        value, allowed = getattr(settings, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in allowed:
            raise ConfigError(f"{field.name}: found {value!r}, expected one of {', '.join(allowed)}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: found {value}, expected {low} to {high}")


@dataclass(frozen=True)
class ModelConfig:
    """The network. The defaults are HeteCD as published (REFERENCE: MiT-b2, width 256).

    Attributes:
        encoder: of both branches: a hierarchical transformer, or a residual convolutional network.
        optical_channels: channels of the optical input.
        sar_channels: channels of the SAR input.
        width: channels D of the decoder.
        attention: scale of the two attention maps of the difference block. "published" multiplies by a softmax over
            2D slices (about 1/2D each) and a sigmoid (about 1/2), which leaves the block almost without signal;
            "rescaled" multiplies those by 2D and 2, so that an untrained block passes its input through.
        dropout: in attention, projection and mlp of the encoders.
        drop_path: stochastic depth of the last encoder block, rising linearly from 0.
        decoder_dropout: channel dropout in the decoder.
        token_dropout: True drops whole tokens after the decoder's first projection, as the release does by accident
            (channel dropout on a (B, N, C) tensor); False drops channels.
        standardise: append each band once more, with mean 0 and deviation 1 over the tile, which undoes what differs
            between scenes as a whole.
        deep_supervision: a small head at each scale, used in training alone.
        detail: look at both images at half their size, too, and give logits at this size; otherwise at a quarter.
        correlation: compare also whether both images vary alike around each place, whatever their greys.
        modalities: "optical" or "sar" blanks the other input, for controls that must not see both dates.
    """

    encoder: EncoderName = "mit_b2"
    optical_channels: int = 3
    sar_channels: int = 3
    width: int = 256
    attention: Attention = "published"
    dropout: float = 0.2
    drop_path: float = 0.2
    decoder_dropout: float = 0.1
    token_dropout: bool = True
    standardise: bool = False
    detail: bool = False
    correlation: bool = False
    deep_supervision: bool = False
    modalities: Modalities = "both"

    @property
    def copies(self) -> int:
        """How often encoders and decoder get each band."""
        return 2 if self.standardise else 1

    def __post_init__(self) -> None:
        _check_choices(self)
        for name in ("optical_channels", "sar_channels", "width"):
            _check_range(name, getattr(self, name), 1, 4096)
        for name in ("dropout", "drop_path", "decoder_dropout"):
            _check_range(name, getattr(self, name), 0, 0.95)

    def unlike(self, other: "ModelConfig") -> list[str]:
        """Names of the settings by which two networks differ in use."""
        names = (f.name for f in fields(self) if f.name not in OF_TRAINING)
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained.

    Attributes:
        before_is: which modality the earlier date is; folder A (T1, pre-event, im1) holds the earlier date.
        optical_bands: bands to read, from 1; empty = all. May repeat ([1, 1, 1]: one SAR band as three channels).
        sar_bands: the same for SAR.
        normalise: "percentile" fits the 1st and 99th percentile per band on the training split; "uint8" is pixel / 255.
        sar_db: SAR pixels are linear power and are turned into dB.
        optical_unit: what optical pixels are, written into the checkpoint.
        sar_unit: what SAR pixels are, written into the checkpoint.
        gsd_m: ground sampling distance of the tiles in metres, written into the checkpoint; 0 = unknown.
        data_licence: licence of the training data, written into the checkpoint.
        ignore_255: labels are {0, 1, 255} and 255 means "do not count".
        tile_px: training tiles are cropped at random to this edge; 0 = whole tiles.
        val_fraction: share of the training tiles held out, in blocks of consecutive names, where no val split exists;
            0 = none: all train, nothing is validated, and the last epoch counts as the best.
        epochs: passes over the training split.
        batch: pairs per step and device.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        decay: which parameters decay: "weights" (matrices and kernels) or "all" (biases and norms too).
        warmup: share of all steps in which the learning rate rises linearly.
        lr_power: learning rate falls as (1 - step / steps) ** lr_power.
        clip: largest gradient norm; 0 = no clipping.
        ema: weights that are validated and kept are a running mean of those of the last 1 / (1 - ema) steps; 0 = they
            are the last ones.
        calibrate: at the end fit probabilities and threshold of the best checkpoint to the held-out tiles.
        seed: of weights, order, augmentation and dropout.
        precision: "f32" or "bf16" (autocast); on a CPU that does not compute bf16 this is f32.
        workers: processes that read tiles, per device and split; 0 reads in the main process. -1 chooses: none where
            a CPU trains, from which they would only take, and a share of the cores where a GPU does.
        ce_weights: class weights of the cross entropy (unchanged, changed).
        val_ce_weights: the same for the validation loss.
        dice: "soft" is the usual soft Dice of the changed class, "released" the defective published one.
        dice_weight: factor of the Dice term.
        lovasz_weight: factor of the Lovasz hinge.
        deep_weight: factor of the cross entropy of the heads at each scale, where the network has them.
        alignment: "published" aligns the features of all pixels, "label_aware" those of unchanged ones, and pushes
            those of changed ones apart.
        fca_weight: factor of the alignment.
        fca_schedule: "decay" = weight / (epoch + 1) as released, "ramp" rises linearly over the training, "constant".
        encoder_weights: pretrained weights for both encoders (a converted .safetensors file).
        start_from: checkpoint to start from instead of random weights, for more training or for data of one's own; the
            network must be its own, and scaling and, where none are named, bands are taken from it.
        flip: probability of each of the two flips.
        rotate90: rotate by a random multiple of 90 degrees.
        rotate: rotate by U(-rotate, rotate) degrees, edges mirrored.
        scale: largest enlargement; a tile is enlarged by U(1, scale) and cropped back.
        cutmix: share of the pairs of a batch that get a rectangle of another one.
        blur_px: Gaussian blur of radius U(0, blur_px).
        optical_jitter: brightness, contrast and saturation of optical vary by this share.
        optical_hue: hue of optical varies by this share of the circle (red, green, blue).
        sar_jitter: brightness and contrast of SAR vary by this share.
        sar_hue: hue jitter on SAR. Senseless; the published recipe does it.
        sar_speckle: standard deviation of extra multiplicative speckle on SAR.
    """

    before_is: Role = "optical"
    optical_bands: tuple[int, ...] = ()
    sar_bands: tuple[int, ...] = ()
    normalise: Literal["percentile", "uint8"] = "percentile"
    sar_db: bool = False
    optical_unit: str = "digital number"
    sar_unit: str = "digital number"
    gsd_m: float = 0.0
    data_licence: str = "unknown"
    ignore_255: bool = False
    tile_px: int = 0
    val_fraction: float = 0.15
    epochs: int = 50
    batch: int = 8
    lr: float = 5e-4
    weight_decay: float = 0.01
    decay: Literal["weights", "all"] = "weights"
    warmup: float = 0.05
    lr_power: float = 1.0
    clip: float = 1.0
    ema: float = 0.0
    calibrate: bool = False
    seed: int = 0
    precision: Literal["f32", "bf16"] = "f32"
    workers: int = -1
    ce_weights: tuple[float, float] = (1.0, 1.0)
    val_ce_weights: tuple[float, float] = (1.0, 1.0)
    dice: Literal["soft", "released"] = "soft"
    dice_weight: float = 1.0
    lovasz_weight: float = 0.0
    deep_weight: float = 0.4
    alignment: Literal["published", "label_aware"] = "published"
    fca_weight: float = 0.1
    fca_schedule: Literal["decay", "constant", "ramp"] = "ramp"
    encoder_weights: str = ""
    start_from: str = ""
    flip: float = 0.5
    rotate90: bool = True
    rotate: float = 0.0
    scale: float = 1.2
    cutmix: float = 0.0
    blur_px: float = 0.0
    optical_jitter: float = 0.2
    optical_hue: float = 0.0
    sar_jitter: float = 0.2
    sar_hue: float = 0.0
    sar_speckle: float = 0.1

    def __post_init__(self) -> None:
        _check_choices(self)
        for name, low, high in (
            ("val_fraction", 0, 0.9), ("epochs", 1, 100_000), ("batch", 1, 4096), ("lr", 0, 10), ("warmup", 0, 1),
            ("lr_power", 0, 10), ("flip", 0, 1), ("scale", 1, 4), ("blur_px", 0, 10), ("optical_jitter", 0, 0.95),
            ("optical_hue", 0, 0.5), ("sar_jitter", 0, 0.95), ("sar_hue", 0, 0.5), ("sar_speckle", 0, 2),
            ("tile_px", 0, 8192), ("workers", -1, 256), ("clip", 0, 1e6), ("weight_decay", 0, 1),
            ("fca_weight", 0, 1e3), ("dice_weight", 0, 1e3), ("gsd_m", 0, 1e5), ("seed", 0, 2**32 - 1),
            ("rotate", 0, 180), ("cutmix", 0, 1), ("ema", 0, 0.99999), ("lovasz_weight", 0, 1e3),
            ("deep_weight", 0, 1e3),
        ):  # fmt: skip
            _check_range(name, getattr(self, name), low, high)
        for name in ("ce_weights", "val_ce_weights"):
            weights = getattr(self, name)
            if not all(0 <= weight < math.inf for weight in weights) or not sum(weights) > 0:
                raise ConfigError(f"{name}: found {list(weights)}, expected two finite numbers from 0, not both 0")
        if self.encoder_weights and self.start_from:
            raise ConfigError("start_from: found encoder_weights too, expected one of them; leave the other empty")
        if self.calibrate and self.val_fraction == 0:
            raise ConfigError("calibrate: found val_fraction 0, expected tiles held out; leave one of them out")
        if 0 < self.tile_px < 32:
            raise ConfigError(f"tile_px: found {self.tile_px}, expected 0 (whole tiles) or at least 32")


# Set from the data, never by a recipe.
FROM_DATA = ("optical_channels", "sar_channels")


def recipe_keys() -> list[str]:
    """Names that a recipe may set."""
    return [f.name for cls in (ModelConfig, TrainConfig) for f in fields(cls) if f.name not in FROM_DATA]


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that decide what a training gives: all but the number of loader processes."""
    return {key: value for key, value in settings.items() if key != "workers"}


def read_recipe(path: Path | str) -> dict[str, Any]:
    """Read a recipe's flat mapping and check its keys (values are checked by the dataclasses).

    Raises:
        ConfigError: the file is missing, no flat YAML mapping, or holds an unknown key (the nearest one is named).
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this recipe ({error.strerror}); see the folder recipes/") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: found {type(content).__name__}, expected lines of `key: value`")
    known = recipe_keys()
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise ConfigError(f"{path}: unknown key '{key}'; did you mean '{near[0]}'?")
    return content


def add_recipe_keys(parser: "ArgumentParser") -> None:
    """Give a parser all keys of a recipe, with type, default and help."""
    parser.add_class_arguments(ModelConfig, skip=set(FROM_DATA))
    parser.add_class_arguments(TrainConfig)


def checked(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """All keys of a recipe: those given, in the type of their field, and the defaults of the others.

    Args:
        values: recipe keys and their values.
        source: what the error message begins with.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    add_recipe_keys(parser)
    try:
        return vars(parser.parse_object(dict(values)))
    except ArgumentError as error:
        raise ConfigError(f"{source}: {explained(str(error))}") from error


def configs(values: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """The two settings from :func:`checked` values; other keys do not matter.

    Raises:
        ConfigError: a value is out of range.
    """
    model = {f.name: values[f.name] for f in fields(ModelConfig) if f.name not in FROM_DATA}
    return ModelConfig(**model), TrainConfig(**{f.name: values[f.name] for f in fields(TrainConfig)})
