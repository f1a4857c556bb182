"""The 3D spatio-temporal attention difference block (Jing et al. 2025).

Two maps of D channels, one per date, become one volume whose 2D depth slices alternate between the dates. Small 3D
convolutions compare neighbouring slices, attention over depth and over space weighs them, 2D convolutions sum up.

The arithmetic is the published one; its order is not. The volume lives as (B, h, w, depth), so that attention over
depth is a matrix product on contiguous memory, and each one-channel 3D convolution runs as a 2D convolution over blocks
of 16 slices with a banded weight: six times the multiplications, a fraction of the time.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetecd.ops import Conv3x3, Linear, conv_gelu, linear, reusable

KERNELS = (3, 5, 7)  # spatial size of the three 3D convolutions; all are 3 deep
OUT = 16  # slices that one block computes; it reads two more. 16 fills the vector registers of every CPU.
_IN = OUT + 2


class Volumes(nn.Module):
    """Three parallel one-channel 3D convolutions, each with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3, self.conv5, self.conv7 = (nn.Conv3d(1, 1, (3, k, k), padding=(1, k // 2, k // 2)) for k in KERNELS)

    @property
    def convs(self) -> tuple[nn.Conv3d, nn.Conv3d, nn.Conv3d]:
        """The three convolutions, from the smallest kernel to the largest."""
        return self.conv3, self.conv5, self.conv7

    def forward(self, volume: Tensor) -> Tensor:
        """(B, h, w, S) -> (B, h, w, 3, S)."""
        B, h, w, S = volume.shape
        blocks = -(-S // OUT)
        x = F.pad(volume, (1, blocks * OUT - S + 1)).unfold(3, _IN, OUT)  # (B, h, w, blocks, 18)
        # Copied here, as otherwise each of the three convolutions would make a copy for itself.
        x = x.permute(0, 3, 1, 2, 4).reshape(B * blocks, h, w, _IN).contiguous().permute(0, 3, 1, 2)
        # (B*blocks, 18, h, w)
        stacked = _stack((self._convolve(conv, x, B) for conv in self.convs), len(KERNELS))
        return stacked.view(B, h, w, len(KERNELS), blocks * OUT)[..., :S]

    @staticmethod
    def _convolve(conv: nn.Conv3d, x: Tensor, batch: int) -> Tensor:
        """(B*blocks, 18, h, w) -> (B, h, w, blocks, 16)."""
        assert conv.bias is not None
        y = conv_gelu(x, banded(conv.weight[0, 0]).to(x.dtype), conv.bias.repeat(OUT).to(x.dtype))
        y = y.permute(0, 2, 3, 1).unflatten(0, (batch, -1))  # (B, blocks, h, w, 16)
        return y.permute(0, 2, 3, 1, 4)


def _stack(parts: Iterator[Tensor], count: int) -> Tensor:
    """torch.stack of ``count`` maps (B, h, w, blocks, 16) at dimension 3; without gradients only one is held at a time.

    Numbers that are only moved move faster eight bytes at a time, which autograd does not know.
    """
    if not reusable():
        return torch.stack(list(parts), 3)
    out = None
    for i in range(count):
        part = next(parts)
        out = part.new_empty(*part.shape[:3], count, *part.shape[3:]) if out is None else out
        if part.stride(-1) == 1:
            out[:, :, :, i].view(torch.int64).copy_(part.view(torch.int64))
        else:
            out[:, :, :, i] = part
        del part  # before the next one is made
    assert out is not None
    return out


def banded(kernel: Tensor) -> Tensor:
    """A 3D kernel (3, k, k) as a 2D kernel (16, 18, k, k) whose band is shifted by a slice per row."""
    k = kernel.flatten(1).t()  # (k*k, 3)
    # Rows of 18 cut from a sequence of period 19 start one place further left each time: a Toeplitz matrix.
    k = F.pad(k, (0, _IN + 1 - 3)).repeat(1, OUT)[:, : OUT * _IN]  # (k*k, 16*18)
    weight = k.t().reshape(OUT, _IN, *kernel.shape[1:])
    return weight.contiguous(memory_format=torch.channels_last)


class TemporalAttention(nn.Module):
    """Softmax over depth of a linear map over depth, times the volume."""

    def __init__(self, slices: int, gain: float) -> None:
        super().__init__()
        self.linear = Linear(slices, slices)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, 3, S) -> (B, h, w, 3, S)."""
        attention = self.linear(x.flatten(2, 3)).view(x.shape)
        attention = torch.softmax(attention, -1, out=attention if reusable() else None)
        return _times(x, attention, self.gain)


class SpatialAttention(nn.Module):
    """Sigmoid of a 7x7 convolution from all slices to one map, times the volume."""

    SIZE = 7

    def __init__(self, slices: int, gain: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(slices, 1, self.SIZE, padding=self.SIZE // 2, bias=False)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, 3, S) -> (B, h, w, 3, S)."""
        B, h, w, V, _ = x.shape
        # A convolution to a single channel leaves vector units idle: first the 49 products at every pixel as one
        # matrix product, then the shifted sum of them. Sum and convolution run in opposite directions, hence flip.
        taps = self.conv.weight[0].flatten(1).flip(1).t()  # (49, S)
        taps = linear(x.flatten(2, 3), taps.to(x.dtype)).view(B, h, w, V, -1)
        # Volume by volume, as the sum makes a copy.
        volumes = (v.flatten(1, 2).transpose(1, 2) for v in taps.unbind(3))  # (B, 49, h*w) each
        scores = [F.fold(v, (h, w), self.SIZE, padding=self.SIZE // 2) for v in volumes]  # (B, 1, h, w) each
        attention = torch.stack(scores, -1).permute(0, 2, 3, 4, 1).sigmoid()  # (B, h, w, 3, 1)
        return _times(x, attention, self.gain)


def _times(x: Tensor, attention: Tensor, gain: float) -> Tensor:
    """x * attention * gain, in place of both where nobody needs them any more."""
    if reusable():
        return x.mul_(attention.mul_(gain).to(x.dtype))
    return x * (attention if gain == 1.0 else attention * gain).to(x.dtype)


class ConvReluNorm(nn.Module):
    """Convolution, ReLU, BatchNorm (in this order, as published), channel dropout."""

    def __init__(self, in_channels: int, channels: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv = Conv3x3(in_channels, channels) if kernel == 3 else nn.Conv2d(in_channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C, h, w)."""
        return self.dropout(self.norm(self.conv(x).relu_()))


class Difference(nn.Module):
    """Two maps in, their difference out. It looks ``REACH`` rows and columns far.

    Args:
        width: channels D of both inputs and of the output.
        dropout: channel dropout after each of the two last convolutions.
        rescaled: multiply the attention maps by 2D and 2, so that an untrained block is near the identity. As
            published (False), softmax over 2D slices and sigmoid leave about 1/4D of the signal.
    """

    REACH = KERNELS[-1] // 2 + SpatialAttention.SIZE // 2 + 1

    def __init__(self, width: int, dropout: float, rescaled: bool) -> None:
        super().__init__()
        slices = 2 * width
        self.volumes = Volumes()
        self.temporal = TemporalAttention(slices, float(slices) if rescaled else 1.0)
        self.spatial = SpatialAttention(slices, 2.0 if rescaled else 1.0)
        self.fuse = ConvReluNorm(len(KERNELS) * slices, slices, 3, dropout)
        self.reduce = ConvReluNorm(slices, width, 1, dropout)

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        """Two maps (B, h, w, D) -> (B, D, h, w), channels-last in memory."""
        volume = torch.stack((optical, sar), dim=-1).flatten(-2)  # (B, h, w, 2D), slices alternate between the dates
        x = self.spatial(self.temporal(self.volumes(volume)))  # (B, h, w, 3, 2D)
        x = x.flatten(-2).permute(0, 3, 1, 2)  # (B, 6D, h, w)
        return self.reduce(self.fuse(x))
