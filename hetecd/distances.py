"""How far apart the feature distributions of the two branches are, before and after training.

The released program measures five distances between histograms of the two branches' features; so does this. "Before"
is the network with its initial weights (or any other checkpoint), "after" the checkpoint itself.
"""

import csv
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from hetecd.config import TrainConfig
from hetecd.data import TileDataset, find_tiles
from hetecd.errors import CheckpointError
from hetecd.figures import density_figure
from hetecd.files import replacing
from hetecd.model import HeteCD
from hetecd.weights import fresh

BINS = 200
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Distances:
    """Distances between two discrete distributions p (optical) and q (SAR) over the same bins.

    Attributes:
        euclidean: root of the summed squared differences.
        kl: sum p log(p / q), natural logarithm; empty bins count as 1e-12.
        js: Jensen-Shannon divergence, 0 to log 2.
        wasserstein: first Wasserstein distance, in the unit of the features.
        hellinger: 0 to 1.
    """

    euclidean: float
    kl: float
    js: float
    wasserstein: float
    hellinger: float


def distances(p: Values, q: Values, centres: Values) -> Distances:
    """Distances between two histograms.

    Args:
        p: (bins,) counts or shares of optical.
        q: (bins,) the same of SAR.
        centres: (bins,) value of each bin.
    """
    p, q = p / p.sum(), q / q.sum()

    def kl(a: Values, b: Values) -> float:
        return float(np.sum(a * np.log(np.maximum(a, 1e-12) / np.maximum(b, 1e-12))))

    middle = (p + q) / 2
    return Distances(
        euclidean=float(np.linalg.norm(p - q)),
        kl=kl(p, q),
        js=(kl(p, middle) + kl(q, middle)) / 2,
        wasserstein=float(stats.wasserstein_distance(centres, centres, p, q)),
        hellinger=float(np.linalg.norm(np.sqrt(p) - np.sqrt(q)) / np.sqrt(2)),
    )


def compare(
    net: HeteCD,
    before: HeteCD | None,
    data: Path | str,
    split: str = "test",
    out: Path | str | None = None,
    most: int = 100,
) -> dict[str, Distances]:
    """Distances at the two coarsest stages (published: 3 and 4), which the alignment loss compares, for two networks.

    Args:
        net: a loaded checkpoint (with ``info``).
        before: what to compare with; None = the same network with its initial weights.
        data: folder of tiles; labels are not needed.
        split: which tiles.
        out: folder for ``distances.csv`` and ``densities.png``; None writes nothing.
        most: tiles used, spread over the split.

    Returns:
        "stage 2, before" and so on -> distances.

    Raises:
        InputError: the tiles cannot be read.
        CheckpointError: the two networks read different inputs.
        OutputError: ``out`` cannot be written.
    """
    info = net.info
    if info is None:
        raise CheckpointError("distances: the network carries no description; load it with hetecd.load")
    untrained = before is None and not info.recipe.get("start_from")
    if before is None:
        recipe = info.recipe
        origins = (str(recipe.get(key, "")) for key in ("encoder_weights", "start_from"))
        try:
            before = fresh(info.model, int(recipe.get("seed", 0)), *origins).eval()
        except CheckpointError as error:  # of a file that the training began with
            raise CheckpointError(f"distances: {error}; name what to compare with (--before)") from error
    if (before.config.optical_channels, before.config.sar_channels) != (info.optical.channels, info.sar.channels):
        raise CheckpointError("distances: the two checkpoints read different bands; compare like with like")
    files = find_tiles(data, split, labels=False)
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(len(files), most)).round().astype(int)]
    tiles = TileDataset(chosen, TrainConfig(before_is=info.before_is), info.optical, info.sar, cache_bytes=0)
    if untrained:
        _settle(before, tiles)
    results, curves = {}, {}
    for name, network in (("before", before), ("after", net)):
        stages = len(network.optical_encoder.channels)
        for stage, (p, q, centres) in zip((stages - 1, stages), histograms(network, tiles), strict=True):
            results[f"stage {stage}, {name}"] = distances(p, q, centres)
            step = centres[1] - centres[0]
            curves[f"stage {stage}, {name}"] = {
                "optical": (centres, p / p.sum() / step),
                "SAR": (centres, q / q.sum() / step),
            }
    if out is not None:
        _write(Path(out), results, curves)
    return results


def _settle(network: HeteCD, tiles: TileDataset) -> None:
    """Give an untrained network's encoders the batch statistics of tiles; without, their features are on no scale."""
    encoders = network.optical_encoder, network.sar_encoder
    for norm in (m for encoder in encoders for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = None  # the mean over all tiles
        norm.train()
    histograms(network, tiles)
    network.eval()


def histograms(net: HeteCD, tiles: TileDataset) -> list[tuple[Values, Values, Values]]:
    """Counts of optical and of SAR feature values over shared bins, and bin centres, for the two coarsest stages."""
    values: list[list[list[NDArray[np.float32]]]] = [[[], []], [[], []]]  # stage, date, tiles
    rng = np.random.default_rng(0)  # the same places in every network
    with torch.inference_mode():
        for i in range(len(tiles)):
            item = tiles[i]
            _, features = net(item["optical"][None], item["sar"][None], features=True)
            for date, maps in enumerate((features.optical, features.sar)):
                for stage, x in enumerate(maps):
                    values[stage][date].append(_sample(x, rng))
    result = []
    for dates in values:
        optical, sar = (np.concatenate(date) for date in dates)
        low, high = np.percentile(np.concatenate([optical, sar]), (0.1, 99.9))
        edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
        p, q = (np.histogram(np.clip(x, low, high), edges)[0].astype(np.float64) for x in (optical, sar))
        result.append((p, q, (edges[1:] + edges[:-1]) / 2))
    return result


def _sample(x: Tensor, rng: np.random.Generator, most: int = 20_000) -> NDArray[np.float32]:
    """Values of a map at random places: a fixed stride would visit the same few columns."""
    flat = x.reshape(-1).numpy()
    return flat[rng.integers(flat.size, size=most)] if flat.size > most else flat


def table(results: dict[str, Distances]) -> str:
    """The distances as text for a terminal."""
    names = list(Distances.__dataclass_fields__)
    lines = [f"{'':18}" + "".join(f"{n:>13}" for n in names)]
    lines += [f"{key:18}" + "".join(f"{getattr(d, n):13.4f}" for n in names) for key, d in results.items()]
    return "\n".join(lines)


def _write(out: Path, results: dict[str, Distances], curves: dict[str, dict[str, tuple[Values, Values]]]) -> None:
    density_figure(curves, out / "densities.png", "Feature distributions of the two branches")
    with replacing(out / "distances.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["features", *Distances.__dataclass_fields__])
        writer.writerows([key, *(f"{value:.6g}" for value in astuple(d))] for key, d in results.items())
