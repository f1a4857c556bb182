"""Hierarchical transformer encoders: MiT (Xie et al. 2021, SegFormer) and PVTv2 (Wang et al. 2022) as one class.

The two families are the same network up to the expansion of the mlp. Maps travel as (B, H, W, C) inside, so that
linear layers and norms read contiguous channels and a convolution sees the very same memory as channels-last.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetecd.ops import Linear, attend, conv_gelu, traced


@dataclass(frozen=True)
class EncoderSpec:
    """Shape of one encoder; every tuple has one entry per stage."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    expansion: tuple[int, int, int, int]
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    reduction: tuple[int, int, int, int] = (8, 4, 2, 1)


_DEPTHS = {0: (2, 2, 2, 2), 1: (2, 2, 2, 2), 2: (3, 4, 6, 3), 3: (3, 4, 18, 3), 4: (3, 8, 27, 3), 5: (3, 6, 40, 3)}


def _spec(family: str, size: int) -> EncoderSpec:
    # PVTv2-b5 alone of its family uses 4 throughout, to keep its size in bounds.
    expansion = (8, 8, 4, 4) if family == "pvt_v2" and size < 5 else (4, 4, 4, 4)
    return EncoderSpec((32, 64, 160, 256) if size == 0 else (64, 128, 320, 512), _DEPTHS[size], expansion)


ENCODERS = {f"{family}_b{size}": _spec(family, size) for family in ("mit", "pvt_v2") for size in range(6)}


class PatchEmbed(nn.Module):
    """Overlapping patches: a strided convolution and a norm."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, H / stride, W / stride, C)."""
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class Attention(nn.Module):
    """Self-attention whose keys and values come from a spatially reduced map.

    With a ``reach`` (where nothing is reduced) a pixel looks at those that many rows and columns away and nearer.
    """

    def __init__(self, channels: int, heads: int, reduction: int, dropout: float, reach: int = 0) -> None:
        super().__init__()
        self.reach = reach
        self.heads = heads
        self.dropout = dropout
        self.query = Linear(channels, channels)
        self.key_value = Linear(channels, 2 * channels)  # keys first
        self.out = Linear(channels, channels)
        self.reduce = nn.Conv2d(channels, channels, reduction, reduction) if reduction > 1 else None
        self.reduce_norm = nn.LayerNorm(channels, eps=1e-5) if reduction > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        B, H, W, C = x.shape
        heads = self.heads
        q = self.query(x).view(B, H * W, heads, C // heads).transpose(1, 2)  # (B, heads, N, c)
        if self.reduce is not None and self.reduce_norm is not None:
            x = self.reduce_norm(self.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))  # (B, H/r, W/r, C)
        kv = self.key_value(x).view(B, -1, 2, heads, C // heads).permute(2, 0, 3, 1, 4)  # (2, B, heads, M, c)
        dropout = self.dropout if self.training else 0.0
        x = self._near(q, kv[0], kv[1], H, W, dropout) if self.reach else attend(q, kv[0], kv[1], dropout)
        x = self.out(x.transpose(1, 2).reshape(B, H, W, C))
        return F.dropout(x, self.dropout, self.training)

    def _near(self, q: Tensor, k: Tensor, v: Tensor, H: int, W: int, dropout: float) -> Tensor:
        """Three of (B, heads, H * W, c) -> (B, heads, H * W, c)."""
        reach = self.reach
        if traced():
            return _near_in_blocks(q, k, v, H, W, reach, dropout)
        q, k, v = (x.unflatten(2, (H, W)) for x in (q, k, v))
        rows, cols = torch.arange(H, device=q.device), torch.arange(W, device=q.device)
        seen_cols = (cols[:, None] - cols).abs() <= reach  # (W, W)
        parts = []
        # A few rows at a time, as most pairs of pixels are far apart.
        for i in range(0, H, reach):
            own, near = slice(i, i + reach), slice(max(0, i - reach), i + 2 * reach)
            seen_rows = (rows[own, None] - rows[near]).abs() <= reach
            seen = (seen_rows[:, None, :, None] & seen_cols[:, None]).flatten(2).flatten(0, 1)
            query, key, value = (x.flatten(2, 3) for x in (q[:, :, own], k[:, :, near], v[:, :, near]))
            parts.append(attend(query, key, value, dropout, seen))
        return torch.cat(parts, 2)


def _near_in_blocks(q: Tensor, k: Tensor, v: Tensor, H: int, W: int, reach: int, dropout: float) -> Tensor:
    """The same without a loop, for graphs: a block of reach x reach pixels looks at itself and the eight around it.

    Three of (B, heads, H * W, c) -> (B, heads, H * W, c).
    """
    heads, c = q.shape[1], q.shape[-1]
    q, k, v = (x.view(-1, heads, H, W, c) for x in (q, k, v))  # of what `unflatten` makes, a trace fixes the size
    lower, right = -H % reach, -W % reach
    rows, cols = H + lower, W + right
    around = (0, 0, reach, reach + right, reach, reach + lower)

    def blocks(x: Tensor) -> Tensor:
        """(B, heads, rows, cols, c) -> (B, blocks, heads, reach * reach, c)."""
        x = x.reshape(-1, x.shape[1], rows // reach, reach, cols // reach, reach, x.shape[-1])
        return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(1, 2)

    def neighbours(x: Tensor) -> Tensor:
        """(B, heads, rows + 2 * reach, cols + 2 * reach, c) -> (B, blocks, heads, 9 * reach * reach, c)."""
        starts = itertools.product((0, reach, 2 * reach), repeat=2)
        return torch.cat([blocks(x[:, :, i : i + rows, j : j + cols]) for i, j in starts], 3)

    # Within a block and its neighbours all pairs lie alike; beyond the image there is nothing to see. No pixel is
    # blind, as those beyond it are in a block with some of it.
    number = torch.arange(3 * reach, device=q.device)
    near = (number[reach : 2 * reach, None] - number).abs() <= reach  # (reach, 3 * reach) of rows, and of columns
    near = (near.view(reach, 1, 3, 1, reach, 1) & near.view(1, reach, 1, 3, 1, reach)).reshape(reach**2, 9 * reach**2)
    inside = neighbours(F.pad(q.new_ones(1, 1, H, W, 1), around))[..., 0].unsqueeze(-2) > 0  # (1, blocks, 1, 1, 9 ...)
    query = blocks(F.pad(q, (0, 0, 0, right, 0, lower)))
    key, value = (neighbours(F.pad(x, around)) for x in (k, v))
    x = attend(query, key, value, dropout, near & inside)
    x = x.unflatten(3, (reach, reach)).unflatten(1, (rows // reach, cols // reach)).permute(0, 3, 1, 4, 2, 5, 6)
    return x.reshape(-1, heads, rows, cols, c)[:, :, :H, :W].flatten(2, 3)


class Mlp(nn.Module):
    """Linear, 3x3 depthwise convolution, GELU, linear."""

    def __init__(self, channels: int, expansion: int, dropout: float) -> None:
        super().__init__()
        hidden = channels * expansion
        self.dropout = dropout
        self.expand = Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.expand(x)  # (B, H, W, hidden)
        conv = self.depthwise
        assert conv.bias is not None
        x = conv_gelu(x.permute(0, 3, 1, 2), conv.weight, conv.bias, conv.groups).permute(0, 2, 3, 1)
        x = self.project(F.dropout(x, self.dropout, self.training))  # (B, H, W, C)
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """One transformer block with stochastic depth on both branches."""

    def __init__(
        self, channels: int, heads: int, reduction: int, expansion: int, dropout: float, drop_path: float,
        reach: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attention = Attention(channels, heads, reduction, dropout, reach)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, expansion, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self._path(self.attention(self.norm1(x)))
        return x + self._path(self.mlp(self.norm2(x)))

    def _path(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.drop_path
        return x * (keep / (1.0 - self.drop_path)).to(x.dtype)


class Stage(nn.Module):
    """Patch embedding, blocks, norm."""

    def __init__(self, embed: PatchEmbed, blocks: list[Block], channels: int) -> None:
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride), channels-last in memory."""
        x = self.embed(x)  # (B, h, w, C)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """Four stages at strides 4, 8, 16, 32.

    Args:
        spec: shape, one of :data:`ENCODERS`.
        in_channels: channels of the image.
        dropout: in attention, projection and mlp.
        drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
    """

    def __init__(self, spec: EncoderSpec, in_channels: int, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.channels = spec.channels
        last = sum(spec.depths) - 1
        rates = (drop_path * k / last for k in range(last + 1))
        stages = []
        before = in_channels
        for i, channels in enumerate(spec.channels):
            embed = PatchEmbed(before, channels, *((7, 4) if i == 0 else (3, 2)))
            blocks = [
                Block(channels, spec.heads[i], spec.reduction[i], spec.expansion[i], dropout, next(rates))
                for _ in range(spec.depths[i])
            ]
            stages.append(Stage(embed, blocks, channels))
            before = channels
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, C_in, H, W), H and W multiples of 32 -> four maps (B, C_i, H / stride_i, W / stride_i)."""
        maps = []
        x = image
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
