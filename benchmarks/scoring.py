"""What is measured of every row of the accuracy tables: scores of a predictor on sets of tiles, and what it costs."""

import copy
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hetecd.config import Role, TrainConfig
from hetecd.data import Tile, TileDataset, find_tiles
from hetecd.difference import OUT, Volumes
from hetecd.errors import InputError
from hetecd.evaluate import predict_tiles
from hetecd.metrics import Boundary, Calibration, Confusion, boundary, calibration, confusion
from hetecd.modality import Modality, Predictor

SHIFT, SHIFTS_PX = "shift ", (0, 1, 2, 3, 5, 8)  # how the sets of a shift curve are called, followed by px
DIRECTIONS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # (row, col); tiles take them in turn
EDGE_PX = 256  # of the images whose multiply-adds are counted


@dataclass(frozen=True)
class Trained:
    """What training a row gives.

    Attributes:
        predictor: raw images to probability.
        optical: bands to read.
        sar: bands to read.
        before_is: modality of the earlier date.
        threshold: probability from which a pixel counts as changed.
        ignore_255: labels are {0, 1, 255} and 255 does not count.
        parameters: how many numbers were learned; None where the question makes no sense.
        multiply_adds: of a pair of 256 x 256 px; None likewise.
        minutes: of training, on whatever it ran on; None where it is not known.
        epochs: of training; None where there are none.
    """

    predictor: Predictor
    optical: Modality
    sar: Modality
    before_is: Role = "optical"
    threshold: float = 0.5
    ignore_255: bool = False
    parameters: int | None = None
    multiply_adds: int | None = None
    minutes: float | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class ScoredSet:
    """Labelled tiles to score on.

    Attributes:
        name: in the tables.
        data: folder of tiles.
        split: part of it.
        shift_px: how far SAR is moved against optical and label. Where it is a number, also 0, all tiles lose an edge
            of the largest shift, so that every shift is scored on the same pixels.
    """

    name: str
    data: Path
    split: str
    shift_px: int | None = None


@dataclass(frozen=True)
class Counts:
    """Everything the scores of a set are computed from; add two to pool them."""

    confusion: Confusion = field(default_factory=Confusion)
    boundary: Boundary = field(default_factory=Boundary)
    calibration: Calibration = field(default_factory=Calibration)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.confusion + other.confusion,
            self.boundary + other.boundary,
            self.calibration + other.calibration,
        )

    def scores(self) -> dict[str, float]:
        """Shares in [0, 1], NaN where undefined.

        Those of :meth:`hetecd.metrics.Confusion.scores` and ``boundary_f1`` (2 px), ``ece`` (expected calibration
        error), ``false_alarms`` (share of the unchanged pixels that are called changed).
        """
        quiet = self.confusion.fp + self.confusion.tn
        return self.confusion.scores() | {
            "boundary_f1": self.boundary.f1,
            "ece": self.calibration.error,
            "false_alarms": self.confusion.fp / quiet if quiet else float("nan"),
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Counts":
        """The inverse of :meth:`as_dict`, also after a journey through JSON."""
        bins = {key: tuple(value) for key, value in values["calibration"].items()}
        return Counts(Confusion(**values["confusion"]), Boundary(**values["boundary"]), Calibration(**bins))


def score(trained: Trained, test: ScoredSet, batch: int = 8) -> Counts:
    """Predict every tile of a set and count.

    Raises:
        InputError: the set cannot be read, its tiles are too small for the shift, or a probability is not finite.
    """
    config = TrainConfig(before_is=trained.before_is, ignore_255=trained.ignore_255)
    files = find_tiles(test.data, test.split)
    tiles = _Shifted(files, config, trained.optical, trained.sar, cache_bytes=0)
    tiles.shift_px = test.shift_px
    total = Counts()
    for tile, prob in predict_tiles(trained.predictor, tiles, batch):
        changed = prob >= trained.threshold
        total += Counts(confusion(changed, tile.label), boundary(changed, tile.label), calibration(prob, tile.label))
    return total


class _Shifted(TileDataset):
    """Tiles whose SAR is moved, see :attr:`ScoredSet.shift_px`."""

    shift_px: int | None = None

    def tile(self, index: int) -> Tile:
        tile = super().tile(index)
        return tile if self.shift_px is None else shifted(tile, self.shift_px, DIRECTIONS[index % len(DIRECTIONS)])


def shifted(tile: Tile, shift_px: int, direction: tuple[int, int]) -> Tile:
    """Move SAR against optical and label, and cut an edge of the largest of SHIFTS_PX off all three.

    Args:
        tile: at least 32 px larger than that edge on both sides takes away.
        shift_px: at most the largest of SHIFTS_PX.
        direction: (row, col), a unit vector: what SAR showed at (r, c) it shows at (r, c) + shift_px * direction.

    Raises:
        InputError: the tile is too small.
    """
    height, width = tile.label.shape
    cut = SHIFTS_PX[-1]
    if min(height, width) < 32 + 2 * cut:
        raise InputError(f"{tile.name}: found {height} x {width} px, expected {32 + 2 * cut} or more for a shift curve")
    rows, cols = slice(cut, height - cut), slice(cut, width - cut)
    row, col = (shift_px * step for step in direction)
    sar = tile.sar[:, cut - row : height - cut - row, cut - col : width - cut - col]
    return Tile(tile.name, tile.optical[:, rows, cols], sar, tile.label[rows, cols])


def parameters(net: nn.Module) -> int:
    """Learned numbers that a map depends on.

    Neither an encoder that a control on one date blanks counts nor the heads of deep supervision.
    """
    named = net.named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and not name.startswith("decoder.heads."))


def multiply_adds(net: nn.Module, optical_channels: int, sar_channels: int, edge_px: int = EDGE_PX) -> int:
    """Multiply-adds of convolutions and matrix products for one pair of images.

    Counted without computing anything. The 3D convolutions of the difference block count as such, not as the banded
    2D convolutions that compute them, most of whose products are with zeros.
    """
    net = copy.deepcopy(net).to("meta").eval()
    images = [
        torch.empty(1, channels, edge_px, edge_px, device="meta") for channels in (optical_channels, sar_channels)
    ]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(*images)
    counts = counter.get_flop_counts()
    names = [f"{type(net).__name__}.{name}" for name, module in net.named_modules() if isinstance(module, Volumes)]
    banded = sum(sum(counts.get(name, {}).values()) for name in names)
    read, needed = OUT + 2, 3  # slices: by a banded kernel, and by the 3D kernel that it stands for
    return (counter.get_total_flops() - banded + banded * needed // read) // 2
