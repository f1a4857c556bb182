"""Where the time of a forward pass goes, and how far each piece is from what the machine can do: `make bench-roofline`.

First the peaks, measured here and now: matrix products of float32, bf16 and int8, and copying. Then, per kind of
module, its own time, the operations and bytes of everything it calls, and the time these would take at the peaks
(the larger of the two). Bytes count each operand of each operation once, also where a cache holds it.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from speed import check_device, device_argument, images, network, now, processor
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hetecd.ops import FUSED, Conv3x3, freeze, keep_memory

LEAST_MS = 2.0  # rows below are summed up


@dataclass
class Piece:
    """A kind of module: what its own code costs, that of the modules in it left out."""

    calls: int = 0
    seconds: float = 0.0
    operations: float = 0.0
    bytes: float = 0.0


class Watch(TorchDispatchMode):
    """Give time, operations and bytes to the module that is running."""

    def __init__(self, net: nn.Module, device: str) -> None:
        super().__init__()
        self.device = device
        self.pieces: dict[str, Piece] = defaultdict(Piece)
        self.stack: list[str] = []
        self.since = 0.0
        for module in net.modules():
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._account()
        name = type(module).__name__
        if isinstance(module, Conv3x3):
            name += " " + " x ".join(str(n) for n in args[0].shape[1:])
        self.stack.append(name)
        self.pieces[name].calls += 1

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        self._account()
        self.stack.pop()

    def _account(self) -> None:
        """Time since the last module began or ended belongs to the innermost one."""
        time = now(self.device)
        if self.stack:
            self.pieces[self.stack[-1]].seconds += time - self.since
        self.since = time

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what an operation does, then do it."""
        out = func(*args, **(kwargs or {}))
        if self.stack:
            piece = self.pieces[self.stack[-1]]
            if func.overloadpacket in flop_registry:
                piece.operations += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            elif "scaled_dot_product" in func.name():  # that of the CPU is not registered
                piece.operations += 4 * args[0].numel() * args[1].shape[-2]
            elif func.overloadpacket == FUSED:  # weight: (C_out, C_in / groups, k, k)
                piece.operations += 2 * out.numel() * args[1][0].numel()
            if not func.is_view:
                tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
                piece.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def best_s(run: Callable[[], object], device: str, repetitions: int = 7) -> float:
    """Seconds of the fastest of several calls."""
    run()
    seconds = []
    for _ in range(repetitions):
        start = now(device)
        run()
        seconds.append(now(device) - start)
    return min(seconds)


def peaks(device: str) -> dict[str, float]:
    """Operations per second by type, and bytes per second of a copy."""
    n = 2048 if device == "cpu" else 8192
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    # float32 as a 1x1 convolution, which is oneDNN: MKL's product would understate an AMD.
    map_, weight = a.view(1, 32, -1, n).permute(0, 3, 1, 2), b[:, :, None, None]
    half, half_b = a.bfloat16(), b.bfloat16()
    whole, whole_b = (a * 30).to(torch.int8), (b * 30).to(torch.int8)
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    return {
        "float32": 2 * n**3 / best_s(lambda: nn.functional.conv2d(map_, weight), device),
        "bf16": 2 * n**3 / best_s(lambda: half @ half_b, device),
        "int8": 2 * n**3 / best_s(lambda: torch._int_mm(whole, whole_b), device),
        "copy": 2 * 4 * source.numel() / best_s(lambda: target.copy_(source), device),
    }


def watch(net: nn.Module, pair: tuple[Tensor, Tensor], bf16: bool, repetitions: int) -> dict[str, Piece]:
    """Pieces of one pass: the time of an undisturbed one, then what a slow one counted."""
    device = pair[0].device.type
    watch = Watch(net, device)

    def run() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            net(*pair)

    for _ in range(3):
        run()
    watch.pieces.clear()
    for _ in range(repetitions):
        run()
    seconds = {name: piece.seconds / repetitions for name, piece in watch.pieces.items()}
    watch.pieces.clear()
    with watch:
        run()
    for name, piece in watch.pieces.items():
        piece.seconds = seconds[name]
    return dict(watch.pieces)


def show(title: str, pieces: dict[str, Piece], operations_s: float, bytes_s: float) -> None:
    """Print one table, the slowest piece first."""
    small = Piece()
    rows = []
    for name, p in sorted(pieces.items(), key=lambda item: -item[1].seconds):
        if 1000 * p.seconds >= LEAST_MS:
            rows.append((name, p))
        else:
            small = Piece(
                small.calls + p.calls, small.seconds + p.seconds, small.operations + p.operations, small.bytes + p.bytes
            )
    total = Piece(0, *(sum(getattr(p, key) for p in pieces.values()) for key in ("seconds", "operations", "bytes")))
    print(f"\n{title}\n\n| | calls | ms | G operations | GB | at the peaks, ms | share of it |")
    print("|---|---|---|---|---|---|---|")
    for name, p in [*rows, ("all others", small), ("**together**", total)]:
        least = max(p.operations / operations_s, p.bytes / bytes_s)
        if name == "**together**":
            least = sum(max(q.operations / operations_s, q.bytes / bytes_s) for q in pieces.values())
        print(
            f"| {name} | {p.calls or ''} | {1000 * p.seconds:.1f} | {p.operations / 1e9:.1f} | {p.bytes / 1e9:.2f} "
            f"| {1000 * least:.1f} | {100 * least / max(p.seconds, 1e-9):.0f} % |",
            flush=True,
        )


def main() -> None:
    """Print the peaks and a table for each network and precision."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repetitions", type=int, default=5)
    device_argument(parser)
    args = parser.parse_args()
    check_device(args.device)
    torch.set_num_threads(args.threads)
    keep_memory()
    measured = peaks(args.device)
    print(f"torch {torch.__version__}, {args.threads} threads, {processor(args.device)}")
    rates = ", ".join(f"{name} {measured[name] / 1e9:.0f} G operations/s" for name in ("float32", "bf16", "int8"))
    print(f"Peaks: {rates}, copy {measured['copy'] / 1e9:.0f} GB/s")
    for name in ("float32", "bf16"):
        for kind in ("ours", "default"):
            net = network(kind).eval().to(args.device)
            net = freeze(net, torch.bfloat16 if name == "bf16" else torch.float32)
            optical, sar = (image.to(args.device) for image in images(1, 512))
            pieces = watch(net, (optical, sar), name == "bf16", args.repetitions)
            title = f"{'Published' if kind == 'ours' else '`default`'} network, 512 x 512, {name}"
            show(title, pieces, measured[name], measured["copy"])


if __name__ == "__main__":
    main()
