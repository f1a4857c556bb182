"""The 3D spatio-temporal attention difference block (Jing et al. 2025), and a correlation of our own beside it.

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

from hetecd.config import ModelConfig
from hetecd.ops import Conv3x3, ConvNorm, Linear, conv_gelu, linear, reusable

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


class Correlation(nn.Module):
    """Whether two maps vary alike around each place. It looks ``REACH`` rows and columns far.

    Of an unchanged place optical and SAR share the outlines, not the greys. So the mean of a window is taken from both
    maps, and what is left is compared, channel by channel: its cosine within such a window, which is near the
    correlation coefficient.

    Args:
        width: channels D of both inputs and of the output.
        dropout: channel dropout before the last convolution.
    """

    WINDOW = 7
    REACH = 2 * (WINDOW // 2) + 1  # the mean, the cosine, a 3x3 convolution
    FLOOR = 1e-2  # added to variances, which in trained networks are 0.02 to 0.15: what hardly varies says little

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.mix = nn.Sequential(
            ConvNorm(width, width), nn.ReLU(True), nn.Dropout2d(dropout), nn.Conv2d(width, width, 1)
        )

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        """Two maps (B, h, w, D) -> (B, D, h, w)."""
        return self.mix(self.cosines(optical, sar))

    def cosines(self, optical: Tensor, sar: Tensor) -> Tensor:
        """Two maps (B, h, w, D) -> (B, D, h, w), -1 to 1 but for rounding, near 0 where a map is flat."""
        maps = (x.permute(0, 3, 1, 2) for x in (optical, sar))
        a, b = (x - self._mean(x) for x in maps)
        scale_a, scale_b = ((self._mean(x.square()) + self.FLOOR).rsqrt() for x in (a, b))
        return self._mean(a * b) * scale_a * scale_b

    def _mean(self, x: Tensor) -> Tensor:
        """Over the window, (B, D, h, w) -> (B, D, h, w)."""
        for kernel in ((self.WINDOW, 1), (1, self.WINDOW)):
            padding = kernel[0] // 2, kernel[1] // 2
            x = F.avg_pool2d(x, kernel, 1, padding, count_include_pad=False)
        return x


class Difference(nn.Module):
    """Two maps in, their difference out. It looks ``REACH`` rows and columns far.

    Args:
        config: of the network. With ``attention: rescaled`` the attention maps are multiplied by 2D and 2, so that an
            untrained block is near the identity; as published, softmax over 2D slices and sigmoid leave about 1/4D of
            the signal.
    """

    REACH = max(KERNELS[-1] // 2 + SpatialAttention.SIZE // 2 + 1, Correlation.REACH)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, slices, rescaled = config.width, 2 * config.width, config.attention == "rescaled"
        self.dropout, self.token_dropout = config.decoder_dropout, config.token_dropout
        self.volumes = Volumes()
        self.temporal = TemporalAttention(slices, float(slices) if rescaled else 1.0)
        self.spatial = SpatialAttention(slices, 2.0 if rescaled else 1.0)
        self.fuse = ConvReluNorm(len(KERNELS) * slices, slices, 3, self.dropout)
        self.reduce = ConvReluNorm(slices, width, 1, self.dropout)
        self.correlation = Correlation(width, self.dropout) if config.correlation else None

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        """Two maps (B, h, w, D) -> (B, D, h, w), channels-last in memory."""
        # The dropped ones are not for the correlation: it knows no gain that could make up for what is missing.
        dropped = [self.drop(x) for x in (optical, sar)]
        volume = torch.stack(dropped, dim=-1).flatten(-2)  # (B, h, w, 2D), slices alternate between the dates
        x = self.spatial(self.temporal(self.volumes(volume)))  # (B, h, w, 3, 2D)
        x = x.flatten(-2).permute(0, 3, 1, 2)  # (B, 6D, h, w)
        x = self.reduce(self.fuse(x))
        return x if self.correlation is None else x + self.correlation(optical, sar)

    def drop(self, x: Tensor) -> Tensor:
        """Some channels, or with ``token_dropout`` places, of a map (B, h, w, D) as zeros, in training."""
        if not self.training or self.dropout == 0.0:
            return x
        B, h, w, D = x.shape
        shape = (B, h, w, 1) if self.token_dropout else (B, 1, 1, D)
        keep = torch.rand(shape, device=x.device) >= self.dropout
        return x * (keep / (1.0 - self.dropout)).to(x.dtype)
