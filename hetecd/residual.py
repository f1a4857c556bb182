"""A residual convolutional encoder (He et al. 2016) that ends in self-attention.

From scratch, on some hundred tiles, convolutions learn in fewer steps than the transformers of :mod:`hetecd.encoder`;
those are for pretrained weights and for the published network.
"""

import itertools

from torch import Tensor, nn

from hetecd.encoder import Block
from hetecd.ops import ConvNorm

# What lies farther away changes what a network makes of such an encoder by some 0.0001 (docs/scenes.md).
LOOK_PX = 224
RESIDUAL = {"residual_s": (40, 80, 160)}  # channels of the stages


class Residual(nn.Module):
    """x + conv(ReLU(conv(x))), each convolution with BatchNorm, then ReLU; 1x1 on the skip where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, channels, stride)
        self.conv2 = ConvNorm(channels, channels, scale=0.0)  # begins as the identity
        self.skip = ConvNorm(in_channels, channels, stride, kernel=1) if stride > 1 or in_channels != channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C, h / stride, w / stride)."""
        y = self.conv2(self.conv1(x).relu_())
        return y.add_(x if self.skip is None else self.skip(x)).relu_()


class ResidualEncoder(nn.Module):
    """Stages at strides 4, 8, 16.

    Args:
        channels: of the stages, one of :data:`RESIDUAL`.
        in_channels: channels of the image.
        dropout: in the attention.
        drop_path: stochastic depth of the attention.
    """

    DEPTH = 2  # residual blocks per stage
    HEADS = 8
    REACH = 8  # of the attention, 128 px: with less a map is worse, with more it owes more to its windows
    EXPANSION = 2

    def __init__(self, channels: tuple[int, ...], in_channels: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.channels = channels
        first, last = channels[0], channels[-1]
        self.stem = nn.Sequential(
            ConvNorm(in_channels, first // 2, 2), nn.ReLU(True), ConvNorm(first // 2, first, 2), nn.ReLU(True)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                Residual(before, after, 1 if i == 0 else 2), *(Residual(after, after, 1) for _ in range(self.DEPTH - 1))
            )
            for i, (before, after) in enumerate(itertools.pairwise((first, *channels)))
        )
        self.attend = Block(last, self.HEADS, 1, self.EXPANSION, dropout, drop_path, self.REACH)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, C_in, H, W), H and W multiples of 32 -> maps (B, C_i, H / stride_i, W / stride_i)."""
        maps = []
        x = self.stem(image)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps[-1] = self.attend(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps
