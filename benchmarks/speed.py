"""How fast the network is against a plain transcription of the published one: `make bench-speed`.

Same weights, same run, same thread count; every number is the median of repetitions that alternate between the
variants, because these machines are noisy and only ratios hold. Prints a Markdown table.
"""

import argparse
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from plain import PlainHeteCD
from torch import Tensor, nn

from hetecd.config import ModelConfig
from hetecd.convert import convert_hetecd
from hetecd.losses import cross_entropy, fca_loss, soft_dice
from hetecd.model import HeteCD


@dataclass
class Variant:
    """One row: what it is, one call of it, and what the call gave."""

    name: str
    run: Callable[[], Tensor]
    seconds: list[float]
    peak_mb: float = float("nan")
    logits: Tensor | None = None

    @property
    def median_ms(self) -> float:
        """Milliseconds of the middle repetition."""
        return 1000 * statistics.median(self.seconds)


def images(batch: int, edge_px: int, sar_channels: int = 3) -> tuple[Tensor, Tensor]:
    """Blocks at two scales plus noise: unlike plain noise they give logits of both signs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 6, edge_px // 16, edge_px // 16, generator=generator)
    both = nn.functional.interpolate(coarse, scale_factor=16) * 0.7
    both = both + 0.3 * torch.rand(batch, 6, edge_px, edge_px, generator=generator)
    return both[:, :3].contiguous(), both[:, 3 : 3 + sar_channels].contiguous()


def weights() -> dict[str, Tensor]:
    """Released names; drawn so that every part of the network matters (see the comment)."""
    torch.manual_seed(0)
    net = PlainHeteCD()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            # The published initialisation leaves the difference block without signal; a trained network has one.
            if name.endswith("fuse_conv.0.weight"):
                parameter.mul_(256)
            elif name.endswith("make_pred_bcd.0.bias"):
                parameter.add_(1)
    return net.state_dict()


def inference(net: nn.Module, pair: tuple[Tensor, Tensor], bf16: bool) -> Callable[[], Tensor]:
    """One forward pass, logits in float32."""
    net.eval()

    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = net(*pair)
        return (logits[0] if isinstance(logits, tuple) else logits).float()

    return run


def training(net: nn.Module, pair: tuple[Tensor, Tensor], bf16: bool) -> Callable[[], Tensor]:
    """One step: forward, the three losses, backward, AdamW."""
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=isinstance(net, HeteCD))
    label = (pair[0][:, 0] > 0.5).long()

    def run() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits, features = net(*pair, features=True) if isinstance(net, HeteCD) else net(*pair)
        loss = cross_entropy(logits, label) + soft_dice(logits, label) + fca_loss(features)
        loss.backward()
        optimizer.step()
        return logits.detach().float()

    return run


def measure(variants: list[Variant], repetitions: int) -> None:
    """Fill in times and memory; the order turns with every repetition."""
    for variant in variants:
        variant.logits = variant.run()
        variant.peak_mb = peak_mb(variant.run)
    for _ in range(repetitions):
        for variant in variants:
            start = time.perf_counter()
            variant.run()
            variant.seconds.append(time.perf_counter() - start)


def peak_mb(run: Callable[[], Tensor]) -> float:
    """Memory that a call adds at its peak, MB; NaN where the system does not tell (Linux does)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before = int(re.findall(r"VmRSS:\s+(\d+)", status.read_text())[0])
        run()
        return (int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) - before) / 1024
    except (OSError, IndexError):
        return float("nan")


def table(title: str, variants: list[Variant]) -> None:
    """Print one table; the first variant is the yardstick."""
    yardstick = variants[0]
    assert yardstick.logits is not None
    print(f"\n{title}\n\n| | ms | times as fast | added MB | max logit difference | same decision % |")
    print("|---|---|---|---|---|---|")
    for v in variants:
        assert v.logits is not None
        same = v.logits.shape == yardstick.logits.shape and v.name.split(",")[0] in ("plain", "ours")
        difference = f"{(v.logits - yardstick.logits).abs().max():.2g}" if same else "other network"
        agree = f"{100 * (v.logits.argmax(1) == yardstick.logits.argmax(1)).float().mean():.2f}" if same else ""
        print(
            f"| {v.name} | {v.median_ms:.0f} | {yardstick.median_ms / v.median_ms:.2f} | {v.peak_mb:.0f} "
            f"| {difference} | {agree} |"
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {processor()}, medians of {args.repetitions}")
    state = weights()
    quick = ModelConfig(encoder="mit_b0", width=32, attention="rescaled", dropout=0, drop_path=0, decoder_dropout=0)

    for title, make, batch, edge_px in (
        ("Inference, 512 x 512, batch 1", inference, 1, 512),
        ("Training step, 256 x 256, batch 2", training, 2, 256),
    ):
        pair = images(batch, edge_px)
        variants = []
        for bf16 in (False, True):
            plain = PlainHeteCD()
            plain.load_state_dict(state)
            name = "bf16" if bf16 else "float32"
            variants.append(Variant(f"plain, {name}", make(plain, pair, bf16), []))
            variants.append(Variant(f"ours, {name}", make(without_dropout(convert_hetecd(state)), pair, bf16), []))
            variants.append(Variant(f"`quick` network, {name}", make(HeteCD(quick), pair, bf16), []))
        measure(variants, args.repetitions)
        table(title, variants)


def without_dropout(net: HeteCD) -> HeteCD:
    """The plain transcription has no dropout; neither has what is compared with it."""
    net.decoder.dropout = 0.0
    for module in net.modules():
        for name in ("dropout", "drop_path"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return net


def processor() -> str:
    """Name of the CPU."""
    try:
        return re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
