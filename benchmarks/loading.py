"""Whether reading tiles slows a training down: `benchmarks/loading.py DATA [--recipe recipes/default.yaml]`.

The same training step with batches that lie in memory, with tiles that lie in memory and are varied anew each time,
with tiles decoded every time, and with the cache of decoded tiles that training has, by number of loader processes.
Epochs alternate between the variants; prints a Markdown table.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from speed import processor, step
from torch import Tensor
from torch.utils.data import DataLoader

from hetecd.augment import augment
from hetecd.config import TrainConfig, checked, configs, read_recipe
from hetecd.data import CACHE_BYTES, EpochSampler, TileDataset, collate, fit_modalities, split_tiles
from hetecd.folders import TileFiles
from hetecd.modality import Modality
from hetecd.model import HeteCD
from hetecd.ops import keep_memory

Batches = Iterable[dict[str, Tensor]]


def step_of(model: HeteCD, config: TrainConfig) -> Callable[[dict[str, Tensor]], None]:
    """A training step with the network, batch and precision of the recipe."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)

    def run(batch: dict[str, Tensor]) -> None:
        step(model, optimizer, (batch["optical"], batch["sar"]), batch["label"], config.precision == "bf16")

    return run


class Varied:
    """Batches of tiles that lie in memory as the network reads them: what variation alone costs."""

    def __init__(self, files: Sequence[TileFiles], config: TrainConfig, optical: Modality, sar: Modality) -> None:
        tiles = TileDataset(files, config, optical, sar)
        self.items = [tiles[i] for i in range(len(tiles))]
        self.config = config
        self.rng = torch.Generator()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.randperm(len(self.items), generator=self.rng).tolist()
        for first in range(0, len(order) - self.config.batch + 1, self.config.batch):
            chosen = [self.items[i] for i in order[first : first + self.config.batch]]
            yield collate([self._varied(item) for item in chosen])

    def _varied(self, item: dict[str, Any]) -> dict[str, Any]:
        images = augment(item["optical"], item["sar"], item["label"], self.config, self.rng)
        return {**dict(zip(("optical", "sar", "label"), images, strict=True)), "index": item["index"]}


def epoch_s(batches: Batches, epoch: int, run: Callable[[dict[str, Tensor]], None]) -> float:
    """Seconds per step, the wait for each batch included."""
    if isinstance(batches, DataLoader) and isinstance(batches.sampler, EpochSampler):
        batches.sampler.set_epoch(epoch)  # another order, so that tiles reach workers that have not decoded them
    count, start = 0, time.perf_counter()
    for batch in batches:
        run(batch)
        count += 1
    return (time.perf_counter() - start) / count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--recipe", default="recipes/default.yaml")
    parser.add_argument("--tiles", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    keep_memory()
    model_config, config = configs(checked(read_recipe(args.recipe), args.recipe))
    files = split_tiles(args.data, config)[0][: args.tiles]
    if len(files) < config.batch:
        parser.error(f"{args.data}: found {len(files)} training tiles, expected at least a batch of {config.batch}")
    optical, sar = fit_modalities(files, config)
    model_config = dataclasses.replace(model_config, optical_channels=optical.channels, sar_channels=sar.channels)
    torch.manual_seed(0)
    run = step_of(HeteCD(model_config).train(), config)

    def loader(cache_bytes: int, workers: int) -> Batches:
        tiles = TileDataset(files, dataclasses.replace(config, workers=workers), optical, sar, augment, cache_bytes)
        return DataLoader(
            tiles, config.batch, sampler=EpochSampler(len(tiles)), collate_fn=collate, num_workers=workers,
            persistent_workers=workers > 0, drop_last=True,
        )  # fmt: skip

    variants: dict[str, Batches] = {
        "batches in memory": list(loader(CACHE_BYTES, 0)),
        "tiles in memory, varied anew": Varied(files, config, optical, sar),
        "decoded every time, no worker": loader(0, 0),
        "decoded once, no worker (the default on a CPU)": loader(CACHE_BYTES, 0),
        "decoded once, 1 worker": loader(CACHE_BYTES, 1),
        "decoded once, 2 workers": loader(CACHE_BYTES, 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for epoch in range(args.epochs + 1):
        for name, batches in variants.items():
            taken = epoch_s(batches, epoch, run)
            if epoch:  # the first one fills caches and starts workers
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{args.recipe}, {len(files)} tiles, batch {config.batch}, {processor()}, {torch.get_num_threads()} threads\n"
    )
    print("| tiles | ms per step | more than with batches in memory |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {1000 * median:.0f} | {100 * (median / medians['batches in memory'] - 1):+.1f} % |")


if __name__ == "__main__":
    main()
