"""Whether our training step learns as the plain one does: `benchmarks/curves.py DATA`.

Same initial weights, same crops in the same order, same losses and optimiser: the plain transcription in float32, and
ours in float32 and in bf16. Prints the mean loss of every window of steps, and how far each is from plain on average;
a training on other crops of the same tiles tells what distance is noise.
"""

import argparse
import time

import numpy as np
import torch
from plain import PlainHeteCD
from speed import processor, step, weights, without_dropout
from torch import Tensor, nn

from hetecd.config import TrainConfig
from hetecd.convert import convert_hetecd
from hetecd.data import TileDataset, fit_modalities, split_tiles
from hetecd.ops import keep_memory

WINDOW = 25  # steps


def losses(net: nn.Module, crops: list[tuple[Tensor, Tensor, Tensor]], bf16: bool) -> list[float]:
    """The loss at every step."""
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=1e-4, fused=True)
    return [step(net, optimizer, (a, b), label, bf16, 0.05)[0].item() for a, b, label in crops]


def crops_of(data: str, steps: int, edge_px: int, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A batch of two crops per step, without augmentation."""
    config = TrainConfig(optical_bands=(1, 2, 3), sar_bands=(1, 1, 1))
    files = split_tiles(data, config)[0]
    tiles = TileDataset(files, config, *fit_modalities(files, config))
    rng, batches = np.random.default_rng(seed), []
    for _ in range(steps):
        items = []
        for index in rng.integers(len(tiles), size=2):
            item = tiles[int(index)]
            top, left = (int(rng.integers(edge - edge_px + 1)) for edge in item["label"].shape)
            items.append(
                [item[key][..., top : top + edge_px, left : left + edge_px] for key in ("optical", "sar", "label")]
            )
        optical, sar, label = (torch.stack(images) for images in zip(*items, strict=True))
        batches.append((optical, sar, label))
    return batches


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--edge", type=int, default=128)
    args = parser.parse_args()
    if args.steps % WINDOW:
        parser.error(f"--steps: found {args.steps}, expected a multiple of {WINDOW}")
    keep_memory()
    crops, others = (crops_of(args.data, args.steps, args.edge, seed) for seed in (0, 1))
    plain = PlainHeteCD()
    plain.load_state_dict(weights())
    print(f"{args.steps} steps, 2 crops of {args.edge} px, {torch.get_num_threads()} threads, {processor()}\n")
    curves = {}
    for name, net, batches, bf16 in (
        ("plain, float32", plain, crops, False),
        ("ours, float32", without_dropout(convert_hetecd(weights())), crops, False),
        ("ours, bf16", without_dropout(convert_hetecd(weights())), crops, True),
        ("ours, bf16, other crops", without_dropout(convert_hetecd(weights())), others, True),
    ):
        start = time.perf_counter()
        curves[name] = np.array(losses(net, batches, bf16)).reshape(-1, WINDOW).mean(1)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n| steps | {' | '.join(curves)} |\n|---|{'---|' * len(curves)}")
    for i in range(len(curves["plain, float32"])):
        values = " | ".join(f"{curve[i]:.4f}" for curve in curves.values())
        print(f"| {i * WINDOW + 1} to {(i + 1) * WINDOW} | {values} |")
    apart = " | ".join(f"{np.abs(c - curves['plain, float32']).mean():.4f}" for c in curves.values())
    print(f"| mean distance from plain | {apart} |")


if __name__ == "__main__":
    main()
