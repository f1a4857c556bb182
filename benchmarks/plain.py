"""HeteCD written down as published: eager, unfused, one operation per sentence of the paper and the key names of the
released checkpoint. It is the yardstick of the speed tables and nothing else uses it.

Our own transcription of a description of the network's behaviour; tests hold it to the published numbers, as they do
:class:`hetecd.model.HeteCD`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, DEPTHS, HEADS, REDUCTION = (64, 128, 320, 512), (3, 4, 6, 3), (1, 2, 5, 8), (8, 4, 2, 1)
Maps = list[Tensor]


class PatchEmbed(nn.Module):
    """Strided convolution, then a norm over channels."""

    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, after, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(after)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """(B, C, H, W) -> tokens (B, N, C'), h, w."""
        x = self.proj(x)
        h, w = x.shape[-2:]
        return self.norm(x.flatten(2).transpose(1, 2)), h, w


class Attention(nn.Module):
    """Attention whose keys and values are spatially reduced."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.heads, C // self.heads).transpose(1, 2)
        if self.reduction > 1:
            x = self.sr(x.transpose(1, 2).reshape(B, C, h, w)).flatten(2).transpose(1, 2)
            x = self.norm(x)
        k, v = self.kv(x).reshape(B, -1, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (C // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, N, C))


class DepthwiseConv(nn.Module):
    """3x3 depthwise convolution of tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        B, _, C = x.shape
        return self.dwconv(x.transpose(1, 2).view(B, C, h, w)).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, depthwise convolution, GELU, linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.dwconv = DepthwiseConv(4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), h, w)))


class Block(nn.Module):
    """Attention and mlp, each after a norm and added."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.attn(self.norm1(x), h, w)
        return x + self.mlp(self.norm2(x), h, w)


class Backbone(nn.Module):
    """MiT-b2."""

    def __init__(self) -> None:
        super().__init__()
        before = 3
        for i, channels in enumerate(CHANNELS, start=1):
            kernel, stride = (7, 4) if i == 1 else (3, 2)
            setattr(self, f"patch_embed{i}", PatchEmbed(before, channels, kernel, stride))
            blocks = [Block(channels, HEADS[i - 1], REDUCTION[i - 1]) for _ in range(DEPTHS[i - 1])]
            setattr(self, f"block{i}", nn.ModuleList(blocks))
            setattr(self, f"norm{i}", nn.LayerNorm(channels, eps=1e-6))
            before = channels

    def forward(self, x: Tensor) -> Maps:
        """(B, 3, H, W) -> four maps (B, C_i, H / stride_i, W / stride_i)."""
        maps = []
        for i in range(1, 5):
            x, h, w = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x, h, w)
            x = getattr(self, f"norm{i}")(x).transpose(1, 2).reshape(len(x), -1, h, w).contiguous()
            maps.append(x)
        return maps


class TemporalAttention(nn.Module):
    """Softmax over depth of a 1x1 convolution over depth."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.time_attention = nn.Conv1d(slices, slices, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, h, w) -> the same."""
        B, V, S, h, w = x.shape
        weights = self.time_attention(x.reshape(B * V, S, h * w)).softmax(1)
        return x * weights.reshape(B, V, S, h, w)


class SpatialAttention(nn.Module):
    """Sigmoid of a 7x7 convolution to one map."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.spatial_attention = nn.Conv2d(slices, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, h, w) -> the same."""
        B, V, S, h, w = x.shape
        weights = self.spatial_attention(x.reshape(B * V, S, h, w)).sigmoid()
        return x * weights.reshape(B, V, 1, h, w)


class Difference(nn.Module):
    """The 3D spatio-temporal attention difference block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        slices = 2 * width
        for i, k in enumerate((3, 5, 7), start=1):
            conv = nn.Conv3d(1, 1, (3, k, k), padding=(1, k // 2, k // 2))
            setattr(self, f"conv3d{i}", nn.Sequential(conv, nn.GELU()))
        self.temporal_attention = TemporalAttention(slices)
        self.spatial_attention = SpatialAttention(slices)
        self.fuse_conv = nn.Sequential(nn.Conv2d(3 * slices, slices, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(slices))
        self.fuse_conv1 = nn.Sequential(nn.Conv2d(slices, width, 1), nn.ReLU(), nn.BatchNorm2d(width))

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        """Two maps (B, D, h, w) -> (B, D, h, w)."""
        volume = torch.stack((optical, sar), 2).flatten(1, 2).unsqueeze(1)  # (B, 1, 2D, h, w)
        x = torch.cat([getattr(self, f"conv3d{i}")(volume) for i in (1, 2, 3)], 1)  # (B, 3, 2D, h, w)
        x = self.spatial_attention(self.temporal_attention(x))
        return self.fuse_conv1(self.fuse_conv(x.flatten(1, 2)))


class Project(nn.Module):
    """Linear of tokens."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.proj = nn.Linear(before, after)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, D, h, w)."""
        B, _, h, w = x.shape
        return self.proj(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(B, -1, h, w)


class Conv(nn.Module):
    """A convolution under the release's name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> the same."""
        return self.conv2d(x)


class Residual(nn.Module):
    """x + 0.1 * conv(ReLU(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(width), Conv(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> the same."""
        return x + 0.1 * self.conv2(F.relu(self.conv1(x)))


class Decoder(nn.Module):
    """Difference per scale, summed from coarse to fine, fused at stride 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for i, channels in enumerate(CHANNELS, start=1):
            setattr(self, f"linear_c{i}", Project(channels, width))
            setattr(self, f"cross_fuse_c{i}", Difference(width))
        self.linear_fuse_bcd = nn.Sequential(nn.Conv2d(4 * width, width, 1), nn.BatchNorm2d(width))
        self.dense_2x, self.dense_1x = nn.Sequential(Residual(width)), nn.Sequential(Residual(width))
        self.make_pred_bcd = nn.Sequential(
            nn.Conv2d(width, 2, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)
        )

    def forward(self, optical: Maps, sar: Maps) -> Tensor:
        """Two times four maps -> logits (B, 2, H, W)."""
        differences: dict[int, Tensor] = {}
        for i in (4, 3, 2, 1):
            project = getattr(self, f"linear_c{i}")
            d = getattr(self, f"cross_fuse_c{i}")(project(optical[i - 1]), project(sar[i - 1]))
            if i < 4:
                d = d + F.interpolate(differences[i + 1], scale_factor=2, mode="bilinear", align_corners=False)
            differences[i] = d
        size = differences[1].shape[-2:]
        same = [F.interpolate(differences[i], size, mode="bilinear", align_corners=False) for i in (4, 3, 2)]
        x = self.linear_fuse_bcd(torch.cat([*same, differences[1]], 1))
        x = self.make_pred_bcd(self.dense_1x(self.dense_2x(x)))
        return F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)


class PlainHeteCD(nn.Module):
    """The published network; load the used part of a released state dict with ``strict=True``."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.backbone1, self.backbone2 = Backbone(), Backbone()
        self.CD_Decoder = Decoder(width)

    def forward(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, tuple[Maps, Maps]]:
        """Two images (B, 3, H, W), H and W multiples of 32 -> logits (B, 2, H, W), stages 3 and 4 of each branch."""
        a, b = self.backbone1(optical), self.backbone2(sar)
        return self.CD_Decoder(a, b), (a[2:], b[2:])
