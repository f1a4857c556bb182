"""What each fast form saves against PyTorch's own operation: `make bench-forms`.

At the sizes that the published network has for 512 x 512 pixels, without gradients; the two take turns. Prints a
Markdown table.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from speed import processor
from torch import Tensor, nn

from hetecd import ops
from hetecd.difference import Volumes
from hetecd.ops import Conv3x3, Linear, attend, keep_memory

Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def medians_ms(pair: Pair, repetitions: int = 9) -> list[float]:
    """Milliseconds of either call."""
    seconds: list[list[float]] = [[], []]
    for repetition in range(repetitions + 2):
        for taken, run in zip(seconds, pair, strict=True):
            start = time.perf_counter()
            run()
            if repetition >= 2:
                taken.append(time.perf_counter() - start)
    return [1000 * statistics.median(taken) for taken in seconds]


def linear(dtype: torch.dtype) -> Pair:
    """Attention over depth."""
    layer, x = Linear(512, 512).to(dtype), torch.randn(1, 128, 384, 512).to(dtype)
    return lambda: nn.Linear.forward(layer, x), lambda: layer(x)


def attention(dtype: torch.dtype) -> Pair:
    """The first stage of an encoder."""
    query, key, value = (torch.randn(1, 1, n, 64).to(dtype) for n in (16384, 256, 256))
    return lambda: F.scaled_dot_product_attention(query, key, value), lambda: attend(query, key, value)


def convolution(channels: int, out: int, edge_px: int) -> Callable[[torch.dtype], Pair]:
    """Of the difference block, or of the refinement."""

    def make(dtype: torch.dtype) -> Pair:
        conv = Conv3x3(channels, out).to(dtype)
        x = torch.randn(1, channels, edge_px, edge_px).to(dtype).contiguous(memory_format=torch.channels_last)
        conv.freeze()
        return lambda: F.conv2d(x, conv.weight, conv.bias, padding=1), lambda: conv(x)

    return make


def volumes(dtype: torch.dtype) -> Pair:
    """The three 3D convolutions and GELU, each in the layout that its network has."""
    block, volume = Volumes().to(dtype), torch.randn(1, 128, 128, 512).to(dtype)
    plain = volume.permute(0, 3, 1, 2)[:, None].contiguous()
    return lambda: torch.cat([F.gelu(conv(plain)) for conv in block.convs], 1), lambda: block(volume)


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    keep_memory()
    ops.MATRIX_REGISTERS = False  # each form, also where it is not taken
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}\n")
    print("| | float32: own ms | fast ms | times | bf16: own ms | fast ms | times |\n|---|---|---|---|---|---|---|")
    for name, make in {
        "linear, 49152 x 512 to 512": linear,
        "attention, 16384 queries, 256 keys": attention,
        "3x3 convolution, 1536 to 512, 128 x 128": convolution(1536, 512, 128),
        "3x3 convolution, 1536 to 512, 32 x 32": convolution(1536, 512, 32),
        "3x3 convolution, 256 to 256, 128 x 128": convolution(256, 256, 128),
        "three 3D convolutions, 512 x 128 x 128": volumes,
    }.items():
        cells = []
        for dtype in (torch.float32, torch.bfloat16):
            with torch.inference_mode():
                own, fast = medians_ms(make(dtype))
            cells += [f"{own:.1f}", f"{fast:.1f}", f"{own / fast:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
