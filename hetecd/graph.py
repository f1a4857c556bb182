"""HeteCD as inference runtimes like it: the same function of the two images, in other operations.

An exported graph is read by programs that know convolutions, products and sums, not views of memory. So the network's
difference blocks are rewritten (the encoders and the rest of the decoder are taken as they are): their banded
convolutions become grouped ones, the projection of the two maps writes the slices where these groups read them, and
nothing is gathered, scattered or stacked. Weights are rearranged once, here.

The large 3x3 convolutions take less than half of their multiplications after Winograd. In int8 the mlps are faster as
convolutions.
"""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetecd.difference import OUT, SpatialAttention, banded
from hetecd.encoder import Block
from hetecd.modality import STRIDE_PX
from hetecd.model import HeteCD
from hetecd.ops import KERNEL


class Graph(nn.Module):
    """A network from normalised images to the probability of change, ready to be traced.

    Args:
        net: any HeteCD; it is copied, not changed.
        int8: in the form to be quantised, instead of that for floats.
    """

    def __init__(self, net: HeteCD, int8: bool = False) -> None:
        super().__init__()
        self.net = net = copy.deepcopy(net).eval().requires_grad_(False)
        decoder = net.decoder
        for i in range(len(decoder.difference)):
            # Winograd pays for many pixels and needs even numbers of rows and columns, which coarse maps may lack.
            winograd = i < 2  # strides 4 and 8
            decoder.difference[i] = GraphDifference(decoder.difference[i], decoder.project[i], winograd)
            decoder.project[i] = nn.Identity()
        if int8:
            blocks: list[Any] = [module for module in net.modules() if isinstance(module, Block)]
            for block in blocks:
                block.mlp = GraphMlp(block.mlp)

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        """(B, Co, H, W), (B, Cs, H, W), normalised, H and W from 32 -> probability (B, H, W).

        Where the network standardises, Co and Cs are those of the images with their standardised bands.
        """
        H, W = optical.shape[-2], sar.shape[-1]  # both, as a trace leaves out an image that nothing is asked of
        # As the network does it, but always: a trace knows no `if`.
        pad = (0, -W % STRIDE_PX, 0, -H % STRIDE_PX)
        optical, sar = (F.pad(image, pad, mode="reflect") for image in self.net.prepare(optical, sar))
        logits = self.net.decoder(*self.net.encode(optical, sar), optical, sar)  # (B, 2, H', W')
        return logits[..., :H, :W].softmax(1)[:, 1]


class GraphMlp(nn.Module):
    """:class:`hetecd.encoder.Mlp` whose linear layers are convolutions."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.expand = _pointwise(mlp.expand.weight, mlp.expand.bias)
        self.depthwise = mlp.depthwise
        self.project = _pointwise(mlp.project.weight, mlp.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        x = F.gelu(self.depthwise(self.expand(x.permute(0, 3, 1, 2))))  # (B, hidden, h, w)
        return self.project(x).permute(0, 2, 3, 1)


class GraphDifference(nn.Module):
    """:class:`hetecd.difference.Difference` together with the projection of its two inputs.

    Maps stay (B, channels, h, w) throughout and the three volumes apart, which leaves a runtime free to keep channels
    last in memory from the first convolution to the last.
    """

    def __init__(self, difference: Any, project: Any, winograd: bool) -> None:
        super().__init__()
        temporal, spatial, fuse = difference.temporal, difference.spatial, difference.fuse
        self.slices = temporal.linear.out_features
        groups = -(-self.slices // OUT)
        self.project = _project_to_blocks(project, groups)
        self.correlation = difference.correlation
        self.project_alone = project  # what the correlation reads; a graph without one leaves it out
        self.volumes = nn.ModuleList(_grouped(conv, groups) for conv in difference.volumes.convs)
        self.temporal = _pointwise(temporal.linear.weight, temporal.linear.bias)
        # The gains of both attentions are constants: they move into the weights that come next.
        self.taps = _pointwise(temporal.gain * spatial.conv.weight[0].flatten(1).t())
        self.sum_columns, self.sum_rows = _shifted_sums(SpatialAttention.SIZE)
        weights = (temporal.gain * spatial.gain * fuse.conv.weight).chunk(len(self.volumes), 1)
        self.fuse = Winograd(weights, fuse.conv.bias) if winograd else Sum(weights, fuse.conv.bias)
        self.norm = fuse.norm
        self.reduce = difference.reduce

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        """Two maps (B, h, w, C), not projected yet -> (B, D, h, w)."""
        x = self.project(torch.cat((optical, sar), -1).permute(0, 3, 1, 2))  # (B, groups * 18, h, w)
        volumes = []
        for volume in self.volumes:
            v = F.gelu(volume(x))[:, : self.slices]  # (B, S, h, w)
            # Softmax over the last axis is the one that every runtime has a fast form of.
            v = v * self.temporal(v).permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2)
            volumes.append(v * self.sum_rows(self.sum_columns(self.taps(v))).sigmoid())
        d = self._sum_up(volumes)
        if self.correlation is None:
            return d
        return d + self.correlation(self.project_alone(optical), self.project_alone(sar))

    def _sum_up(self, volumes: Sequence[Tensor]) -> Tensor:
        """Three volumes (B, S, h, w) -> (B, D, h, w)."""
        if not isinstance(self.fuse, Winograd):
            return self.reduce(self.norm(self.fuse(volumes).relu()))
        parts = [self.reduce(self.norm(part.relu())) for part in self.fuse(volumes)]
        return F.pixel_shuffle(torch.stack(parts, 2).flatten(1, 2), 2)


class Sum(nn.Module):
    """The sum of convolutions of several maps, one each."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(w, bias if i == 0 else None) for i, w in enumerate(weights))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w) -> (B, O, h, w)."""
        return functools.reduce(torch.add, [conv(x) for conv, x in zip(self.convs, maps, strict=True)])


class Winograd(nn.Module):
    """The sum of 3x3 convolutions by 16 products on tiles of 4x4 pixels that give 2x2.

    F(2x2, 3x3) of Lavin and Gray, CVPR 2016.
    """

    # What the four sums of a tile's rows (and likewise its columns) read: weights, distance between them, padding.
    IN = (((1.0, -1.0), 2, 1), ((1.0, 1.0), 1, 0), ((-1.0, 1.0), 1, 0), ((0.0, 1.0, -1.0), 2, 2))

    def __init__(self, weights: Sequence[Tensor], bias: Tensor) -> None:
        super().__init__()
        kernel = torch.tensor(KERNEL)
        channels = weights[0].shape[1]
        self.tiles = nn.ModuleList(_tile(row, column, channels) for row in self.IN for column in self.IN)
        products = [torch.einsum("ik,ockl,jl->ijoc", kernel, w, kernel).flatten(0, 1)[..., None, None] for w in weights]
        # The sixth product enters all four pixels with a plus: there the bias belongs.
        self.products = nn.ModuleList(Sum([p[i] for p in products], bias if i == 5 else None) for i in range(16))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C, h, w), h and w even -> four maps (B, O, h / 2, w / 2): the pixels of 2x2 tiles, row by row."""
        m = [product([tile(x) for x in maps]) for tile, product in zip(self.tiles, self.products, strict=True)]
        upper = [m[j] + m[4 + j] + m[8 + j] for j in range(4)]
        lower = [m[4 + j] - m[8 + j] - m[12 + j] for j in range(4)]
        return [y for r in (upper, lower) for y in (r[0] + r[1] + r[2], r[1] - r[2] - r[3])]


Taps = tuple[tuple[float, ...], int, int]  # weights, distance between them, padding


def _tile(row: Taps, column: Taps, channels: int) -> nn.Conv2d:
    """A sum over rows and columns at every second place of every map: (B, C, h, w) -> (B, C, h / 2, w / 2)."""
    weight = torch.outer(torch.tensor(row[0]), torch.tensor(column[0]))
    conv = _conv(weight.expand(channels, 1, *weight.shape), groups=channels)
    conv.stride, conv.dilation, conv.padding = (2, 2), (row[1], column[1]), (row[2], column[2])
    return conv


def _conv(weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> nn.Conv2d:
    """A convolution around given tensors, contiguous as runtimes expect them; the result has the size of the input."""
    out, per_group, rows, columns = weight.shape
    padding = (rows // 2, columns // 2)
    conv = nn.Conv2d(per_group * groups, out, (rows, columns), padding=padding, groups=groups, bias=bias is not None)
    conv.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return conv


def _pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A linear layer (out, in) as convolution."""
    return _conv(weight[:, :, None, None], bias)


def _project_to_blocks(project: nn.Linear, groups: int) -> nn.Conv2d:
    """The projection of both maps that writes every slice to all the groups that read it; no slice: zeros.

    Slice 2d is channel d of the projected optical map, slice 2d + 1 that of the SAR map.
    """
    D, C = project.weight.shape
    weight, bias = project.weight.new_zeros(2 * D + 1, 2 * C), project.bias.new_zeros(2 * D + 1)
    weight[0 : 2 * D : 2, :C] = weight[1 : 2 * D : 2, C:] = project.weight
    bias[: 2 * D] = project.bias.repeat_interleave(2)
    read = OUT * torch.arange(groups)[:, None] + torch.arange(-1, OUT + 1)  # (groups, 18)
    read = read.where((read >= 0) & (read < 2 * D), 2 * D).flatten()  # the last row is zeros
    return _pointwise(weight[read], bias[read])


def _grouped(conv: nn.Conv3d, groups: int) -> nn.Conv2d:
    """A 3D convolution of one channel as 2D convolution from groups of 18 to groups of 16 slices."""
    assert conv.bias is not None
    return _conv(banded(conv.weight[0, 0]).repeat(groups, 1, 1, 1), conv.bias.expand(groups * OUT), groups)


def _shifted_sums(size: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Two convolutions that sum size * size maps, each shifted to its place in the kernel: by columns, then by rows.

    With the products at every pixel (:attr:`GraphDifference.taps`) they are the convolution to one channel, which
    alone would leave vector units idle.
    """
    one = torch.eye(size)
    columns = torch.einsum("rs,cd->rscd", one, one).reshape(size, size * size, 1, size)
    return _conv(columns), _conv(one.reshape(1, size, size, 1))
