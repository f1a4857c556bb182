"""Standard operations in the form that a CPU runs fastest. Same parameters, same results as PyTorch's own.

What a table in docs/performance.md shows to pay is here, nothing else. On a GPU, and where a graph is traced or
compiled, every one of them is PyTorch's own form again.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

M = TypeVar("M", bound=nn.Module)
# oneDNN's convolution together with what follows it, as torch.compile uses it; PyTorch without oneDNN lacks it.
FUSED = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
# Without AVX-512 or the like oneDNN refuses bfloat16, and PyTorch's own convolutions take five times as long as in
# float32. PyTorch asks for it under a private name; without it bfloat16 is not worth while.
BF16 = bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)())
SCORES = 2**24  # attention scores held at a time
BLOCK = 2**23  # bytes of an image that Winograd transforms at a time: enough for full speed, and little memory
SMALL = 1024  # pixels below which Winograd does not pay
STRIP = 2**16  # pixels of a map that are computed at a time where memory matters
FEW = 1024  # pixels up to which a convolution packs a bfloat16 weight for longer than it gains by it
# Winograd's transformation of the rows of a 3x3 kernel for two outputs, and of its columns for four. The latter take a
# kernel as a polynomial at 0, +-NEAR, +-FAR and infinity: of all points tried these cost bfloat16 the fewest digits.
KERNEL = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
NEAR, FAR = 0.75, 1.5
KERNEL_4 = (
    (1 / (NEAR * FAR) ** 2, 0.0, 0.0),
    *(
        tuple(p**k / (2 * p * p * (p * p - q * q)) for k in range(3))
        for p, q in ((NEAR, FAR), (-NEAR, FAR), (FAR, NEAR), (-FAR, NEAR))
    ),
    (0.0, 0.0, 1.0),
)
# Matrix registers (Intel's AMX) multiply bfloat16 so fast that to save products for more memory does not pay. PyTorch
# asks for them under a private name; without it the forms are those for CPUs that lack them.
MATRIX_REGISTERS = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
WIDE = 256  # input channels from which Winograd's transformations cost less than they save


def keep_memory() -> None:
    """Tell glibc to keep freed memory for the next large tensor instead of returning it to the system.

    Getting it back costs a page fault per 4 KiB, which takes longer than most elementwise operations. Does nothing
    where the allocator is another one, or where its user has set it up by the environment.
    """
    if not sys.platform.startswith("linux") or any(k.startswith(("MALLOC_", "GLIBC_TUNABLES")) for k in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc has it, musl has not
        trim_threshold, mmap_threshold, mmap_max, arena_max = -1, -3, -4, -8
        mallopt(trim_threshold, -1)
        mallopt(arena_max, 1)  # what one thread has freed, another may have
        if not mallopt(mmap_threshold, 2**30):  # older versions allow 32 MiB only
            mallopt(mmap_max, 0)


def give_back_memory() -> None:
    """Return to the system what glibc keeps and nobody uses: of large windows, what one leaves suits the next badly."""
    if sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def lower(model: M, dtype: torch.dtype = torch.bfloat16) -> M:
    """Convolutions and linear layers in a half type, in place, for use under autocast, which then casts no weights."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
    return model


def freeze(model: M, dtype: torch.dtype = torch.float32) -> M:
    """Prepare a network in evaluation mode for inference alone, in place: later changes of weights would not be seen.

    BatchNorm after a convolution becomes part of it; weights lie in memory as they are read; for a half
    ``dtype`` see :func:`lower`; on a CPU wide 3x3 convolutions get their Winograd form, unless matrix registers are
    faster.
    """
    for module in list(model.modules()):
        if isinstance(module, ConvNorm):
            module.freeze()
    if dtype != torch.float32:
        lower(model, dtype)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # Like its input; otherwise copied at every call.
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        if isinstance(module, Conv3x3) and _pays(module, dtype):
            module.freeze()
    return model


def _pays(conv: "Conv3x3", dtype: torch.dtype) -> bool:
    """Whether Winograd's way is the faster one."""
    straight = MATRIX_REGISTERS and dtype == torch.bfloat16
    return conv.in_channels >= WIDE and conv.weight.device.type == "cpu" and not straight


def traced() -> bool:
    """Whether a graph is being made of what runs."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def plain(x: Tensor) -> bool:
    """Whether PyTorch's own form is the one to use."""
    return x.device.type != "cpu" or traced()


def reusable() -> bool:
    """Whether a result may overwrite what it was made from."""
    return not torch.is_grad_enabled() and not traced()


def in_strips(compute: Callable[..., Tensor], maps: Sequence[Tensor], halo: int) -> Tensor:
    """``compute(*maps)``, without gradients some rows at a time: the same, to rounding, for less memory.

    Args:
        compute: of maps (B, C_i, n_i * h, n_i * w) with a whole n_i each, to one such map. A row of it must depend on
            no more than the ``halo`` rows (of h) above and below it, and on nothing but them.
        maps: the first has h rows.
        halo: rows that are computed for nothing on either side of a cut.
    """
    if not reusable():
        return compute(*maps)
    h, w = maps[0].shape[-2:]
    halo += halo % 2  # Winograd takes even numbers of rows
    rows = max(halo, STRIP // w // 2 * 2)
    if h <= rows + halo:
        return compute(*maps)
    parts = []
    for first in range(0, h, rows):
        last, top, bottom = min(h, first + rows), max(0, first - halo), min(h, first + rows + halo)
        some = (map_[:, :, top * (n := map_.shape[2] // h) : bottom * n] for map_ in maps)
        part = compute(*some)
        n = part.shape[2] // (bottom - top)
        parts.append(part[:, :, (first - top) * n : (last - top) * n])
    return torch.cat(parts, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear map of the last dimension, (B, h, w, C) -> (B, h, w, C_out), for a weight (C_out, C).

    As a 1x1 convolution it runs in oneDNN, which is fast on every CPU; as a float32 matrix product it would run in
    MKL, which takes twice as long on an AMD. Products of bfloat16 are oneDNN's, too.
    """
    if plain(x) or (x.dtype == torch.bfloat16 and x.shape[:-1].numel() <= FEW):
        return F.linear(x, weight, bias)
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class Linear(nn.Linear):
    """A linear layer of maps, see :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C_out)."""
        return linear(input, self.weight, self.bias)


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, seen: Tensor | None = None) -> Tensor:
    """Softmax(query key^T / sqrt(c)) value, (B, heads, N, c) and twice (B, heads, M, c) -> (B, heads, N, c).

    ``seen``, if given, is False where a query must not look at a key.

    In bfloat16 PyTorch's own form unpacks to float32 on CPUs without matrix registers: there two plain products take
    half the time.
    """
    if plain(query) or query.dtype != torch.bfloat16 or dropout > 0 or MATRIX_REGISTERS:
        return F.scaled_dot_product_attention(query, key, value, seen, dropout_p=dropout)
    B, heads, _, c = query.shape
    key = (key * c**-0.5).transpose(-1, -2)
    rows = max(1, SCORES // (B * heads * key.shape[-1]))
    parts = []
    for i, part in enumerate(query.split(rows, dim=2)):
        scores = part @ key
        if seen is not None:
            scores.masked_fill_(~seen[i * rows : (i + 1) * rows], -torch.inf)
        parts.append(scores.softmax(-1) @ value)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def conv_gelu(x: Tensor, weight: Tensor, bias: Tensor, groups: int = 1) -> Tensor:
    """GELU of a convolution that keeps the size, (B, C, h, w) -> (B, C_out, h, w); for inference in a single pass."""
    padding = weight.shape[-1] // 2
    known = x.dtype in (torch.float32, *((torch.bfloat16,) if BF16 else ())) and x.dtype == weight.dtype == bias.dtype
    if FUSED is None or plain(x) or torch.is_grad_enabled() or not known:
        return F.gelu(F.conv2d(x, weight, bias, padding=padding, groups=groups))
    return FUSED(x, weight, bias, [padding] * 2, [1, 1], [1, 1], groups, "gelu", [], "none")


class ConvNorm(nn.Sequential):
    """A convolution with BatchNorm, which begins with ``scale``; one convolution after :func:`freeze`."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, kernel: int = 3, scale: float = 1.0) -> None:
        norm = nn.BatchNorm2d(channels)
        nn.init.constant_(norm.weight, scale)
        super().__init__(nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False), norm)

    def freeze(self) -> None:
        """Prepare for inference with the weights as they are now."""
        conv, norm = self
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            self[0], self[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution; once :func:`freeze` has prepared it, by Winograd's F(2x4, 3x3) (Lavin and Gray 2016).

    Two rows of four outputs take 24 products instead of 72. float32 keeps its accuracy, bfloat16 loses two bits.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(in_channels, channels, 3, padding=1)
        self.transformed: Tensor | None = None  # (6, 4, C, C_in)

    def freeze(self) -> None:
        """Prepare for inference with the weights as they are now."""
        w = self.weight.detach().to(torch.promote_types(self.weight.dtype, torch.float32))
        rows, columns = torch.tensor(KERNEL, dtype=w.dtype), torch.tensor(KERNEL_4, dtype=w.dtype)
        with torch.autocast("cpu", enabled=False):
            self.transformed = torch.einsum("iu,jv,ocuv->jioc", rows, columns, w).to(self.weight.dtype).contiguous()

    def train(self, mode: bool = True) -> "Conv3x3":
        """As of any module; what was prepared is given up where the weights may change."""
        if mode:
            self.transformed = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.transformed = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C, h, w), channels-last in memory."""
        B, _, h, w = input.shape
        if self.transformed is None or torch.is_grad_enabled() or plain(input) or h % 2 or w % 4 or B * h * w < SMALL:
            return super().forward(input)
        if torch.is_autocast_enabled("cpu"):
            input = input.to(torch.get_autocast_dtype("cpu"))
        if input.dtype != self.transformed.dtype:
            return super().forward(input)
        return self._winograd(input.permute(0, 2, 3, 1), self.transformed).permute(0, 3, 1, 2)

    def _winograd(self, x: Tensor, weights: Tensor) -> Tensor:
        """(B, h, w, C_in), (6, 4, C, C_in) -> (B, h, w, C)."""
        B, h, w, C = x.shape
        bias = 0.0 if self.bias is None else self.bias.to(x.dtype)
        out = x.new_empty(B, h // 2, 2, w // 4, 4, self.out_channels)
        step = max(1, BLOCK // (B * w // 2 * C * x.element_size()))
        for first in range(0, h // 2, step):
            n = min(step, h // 2 - first)  # rows of tiles
            top, bottom = 2 * first - 1, 2 * (first + n) + 1
            strip = x.new_empty(B, 2 * n + 2, w + 2, C)
            strip[:, :: 2 * n + 1] = strip[:, :, :: w + 1] = 0.0  # the frame; padding would write all of it twice
            inside = x[:, max(top, 0) : bottom]
            strip[:, int(top < 0) :, 1:-1][:, : inside.shape[1]] = inside
            sums = []
            columns = _difference_4([strip[:, :, j : j + w : 4] for j in range(6)])  # 6 of (B, 2n + 2, w / 4, C_in)
            for column, weight in zip(columns, weights, strict=True):
                tiles = _difference([column[:, i : i + 2 * n : 2] for i in range(4)])  # 4 of (B, n, w / 4, C_in)
                sums.append(_sum([linear(t, w_) for t, w_ in zip(tiles, weight, strict=True)]))
            for i, row in enumerate(zip(*sums, strict=True)):  # 6 of (B, n, w / 4, C)
                for j, part in enumerate(_sum_4(row)):
                    torch.add(part, bias, out=out[:, first : first + n, i, :, j])
        return out.view(B, h, w, self.out_channels)


def _difference(d: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Winograd's transformation of four neighbouring inputs."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _sum(m: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Winograd's way back from four products to two neighbouring outputs."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _difference_4(d: Sequence[Tensor]) -> list[Tensor]:
    """Winograd's transformation of six neighbouring inputs."""
    inner = []
    for p, q in ((NEAR, FAR), (FAR, NEAR)):
        even, odd = torch.sub(d[4], d[2], alpha=q * q), torch.sub(d[3], d[1], alpha=q * q)
        inner += [torch.add(even, odd, alpha=p), torch.sub(even, odd, alpha=p)]
    outer = [torch.sub(d[i + 4], d[i + 2], alpha=NEAR**2 + FAR**2).add_(d[i], alpha=(NEAR * FAR) ** 2) for i in (0, 1)]
    return [outer[0], *inner, outer[1]]


def _sum_4(m: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Winograd's way back from six products to four neighbouring outputs."""
    near, far = m[1] + m[2], m[3] + m[4]
    near_odd, far_odd = (m[1] - m[2]).mul_(NEAR), (m[3] - m[4]).mul_(FAR)
    return (
        m[0] + near + far,
        near_odd + far_odd,
        (near * NEAR**2).add_(far, alpha=FAR**2),
        (near_odd * NEAR**2).add_(far_odd, alpha=FAR**2).add_(m[5]),
    )
