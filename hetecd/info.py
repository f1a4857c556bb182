"""What a checkpoint says about itself. No torch here: reading a description needs none."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import hetecd
from hetecd.config import ModelConfig, Role
from hetecd.errors import CheckpointError, ConfigError
from hetecd.modality import Modality, Predictor, Scaled, uint8_modality

FORMAT = "hetecd-1"
COARSER = 2.0  # times the pixels of training, or a part of them, from which a map is not to be trusted


@dataclass(frozen=True)
class ModelInfo:
    """What a checkpoint says about itself.

    Attributes:
        model: settings of the network.
        optical: what the optical image must look like.
        sar: what the SAR image must look like.
        before_is: modality of the earlier date in training.
        threshold: probability from which a pixel counts as changed.
        calibration: slope and offset of the logit that :mod:`hetecd.calibrate` has put into the weights.
        recipe: settings of the training, for the record.
        data: what it was trained on.
        licence: of the weights.
        version: of hetecd that wrote the file.
        scores: validation scores at the stored epoch, and the epoch.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    optical: Modality = field(default_factory=lambda: uint8_modality((1, 2, 3)))
    sar: Modality = field(default_factory=lambda: uint8_modality((1, 1, 1)))
    before_is: Role = "optical"
    threshold: float = 0.5
    calibration: tuple[float, float] = (1.0, 0.0)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: str = "unknown"
    licence: str = "unknown"
    version: str = hetecd.__version__
    scores: dict[str, float | None] = field(default_factory=dict)

    def reading(self, optical_bands: Sequence[int] = (), sar_bands: Sequence[int] = ()) -> "ModelInfo":
        """The same for images that hold what the network reads in other bands; none = as they are.

        Raises:
            ConfigError: not as many bands as the network reads.
        """
        optical = self.optical.reading(optical_bands, "optical bands")
        return dataclasses.replace(self, optical=optical, sar=self.sar.reading(sar_bands, "SAR bands"))

    def scaled(self, compute: Predictor) -> Scaled:
        """The network as a predictor of raw images, given what computes it from normalised ones."""
        return Scaled(compute, self.optical, self.sar, self.model.standardise)

    def unlike_pixels(self, pixel_m: Sequence[float] | None) -> tuple[str, str] | None:
        """What is wrong and what to do where pixels (edges in m; NaN, None = unknown) are unlike those of training."""
        trained_m = self.optical.gsd_m or self.sar.gsd_m
        if not (pixel_m and trained_m):
            return None
        ratio = math.sqrt(pixel_m[0] * pixel_m[1]) / trained_m
        if not (ratio > COARSER or ratio < 1 / COARSER):
            return None
        return (
            f"grid: pixels of {pixel_m[0]:.3g} x {pixel_m[1]:.3g} m, the weights were trained on {trained_m:g} m",
            "choose --resolution (in units of the CRS), or other weights",
        )

    def __post_init__(self) -> None:
        for role in get_args(Role):
            wanted, found = getattr(self.model, f"{role}_channels"), getattr(self, role).channels
            if wanted != found:
                raise ConfigError(f"{role}: the network reads {wanted} channels but its contract names {found}")
        if self.before_is not in get_args(Role):
            raise ConfigError(f"before_is: found {self.before_is!r}, expected 'optical' or 'sar'")
        if not (isinstance(self.threshold, int | float) and 0 <= self.threshold <= 1):
            raise ConfigError(f"threshold: found {self.threshold!r}, expected 0 to 1")


def to_metadata(info: ModelInfo) -> dict[str, str]:
    """JSON strings, one per field, as safetensors wants them."""
    return {"format": FORMAT} | {key: json.dumps(value) for key, value in dataclasses.asdict(info).items()}


def from_metadata(metadata: dict[str, str], path: Path | str) -> ModelInfo:
    """The inverse of :func:`to_metadata`.

    Raises:
        CheckpointError: written by something else, or a field is missing or wrong.
    """
    found = metadata.get("format")
    if found != FORMAT:
        hint = "published weights go through `hetecd convert` first"
        if str(found).startswith("hetecd-"):
            hint = "this is another of our files; take the best.safetensors of a training"
        raise CheckpointError(f"{path}: found format {found!r}, expected {FORMAT!r}; {hint}")
    try:
        younger = {"calibration": "[1, 0]"}  # fields that older files lack
        values = {f.name: json.loads((younger | metadata)[f.name]) for f in dataclasses.fields(ModelInfo)}
        slope, offset = values["calibration"]
        values["calibration"] = float(slope), float(offset)
        values["model"] = ModelConfig(**values["model"])
        for role in ("optical", "sar"):
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values[role].items()}
            values[role] = Modality(**fields)
        return ModelInfo(**values)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path}: its description cannot be used ({error}); write it again") from error
