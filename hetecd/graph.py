"""HeteCD as inference runtimes like it: the same function of the two images, in other operations.

An exported graph is read by programs that know convolutions, products and sums, not views of memory. So the network's
difference blocks are rewritten (the encoders and the rest of the decoder are taken as they are): their banded
convolutions become grouped ones, the projection of the two maps writes the slices where these groups read them, and
nothing is gathered, scattered or stacked. Weights are rearranged once, here.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetecd.difference import Difference, SpatialAttention
from hetecd.encoder import PAD_TO
from hetecd.model import HeteCD

_OUT = 16  # slices that one group of a banded convolution computes; it reads two more
_IN = _OUT + 2


class Graph(nn.Module):
    """A network from normalised images to the probability of change, ready to be traced.

    Args:
        net: any HeteCD; it is copied, not changed.
    """

    def __init__(self, net: HeteCD) -> None:
        super().__init__()
        self.net = net = copy.deepcopy(net).eval().requires_grad_(False)
        decoder = net.decoder
        for i, (difference, project) in enumerate(zip(decoder.difference, decoder.project, strict=True)):
            decoder.difference[i] = GraphDifference(difference, project)
            decoder.project[i] = nn.Identity()

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        """(B, Co, H, W), (B, Cs, H, W), normalised, H and W from 32 -> probability (B, H, W)."""
        H, W = optical.shape[-2:]
        # As the network does it, but always: a trace knows no `if`.
        pad = (0, -W % PAD_TO, 0, -H % PAD_TO)
        optical, sar = (F.pad(image, pad, mode="reflect") for image in (optical, sar))
        logits = self.net.decoder(*self.net.encode(optical, sar))  # (B, 2, H', W')
        return logits[..., :H, :W].softmax(1)[:, 1]


class GraphDifference(nn.Module):
    """:class:`hetecd.difference.Difference` together with the projection of its two inputs.

    Maps stay (B, channels, h, w) throughout and the three volumes apart, which leaves a runtime free to keep channels
    last in memory from the first convolution to the last.
    """

    def __init__(self, difference: Difference, project: nn.Linear) -> None:
        super().__init__()
        temporal, spatial, fuse = difference.temporal, difference.spatial, difference.fuse
        self.slices = temporal.linear.out_features
        groups = -(-self.slices // _OUT)
        self.project = _project_to_blocks(project, groups)
        self.volumes = nn.ModuleList(_banded(conv, groups) for conv in difference.volumes.convs)
        self.temporal = _pointwise(temporal.linear.weight, temporal.linear.bias)
        # The gains of both attentions are constants: they move into the weights that come next.
        self.taps = _pointwise(temporal.gain * spatial.conv.weight[0].flatten(1).t())
        self.sum_columns, self.sum_rows = _shifted_sums(SpatialAttention.SIZE)
        parts = (temporal.gain * spatial.gain * fuse.conv.weight).chunk(len(self.volumes), 1)
        self.fuse = nn.ModuleList(_conv(part, fuse.conv.bias if i == 0 else None) for i, part in enumerate(parts))
        self.norm = fuse.norm
        self.reduce = difference.reduce

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        """Two maps (B, h, w, C), not projected yet -> (B, D, h, w)."""
        x = self.project(torch.cat((optical, sar), -1).permute(0, 3, 1, 2))  # (B, groups * 18, h, w)
        fused = None
        for banded, fuse in zip(self.volumes, self.fuse, strict=True):
            v = F.gelu(banded(x))[:, : self.slices]  # (B, S, h, w)
            # Softmax over the last axis is the one that every runtime has a fast form of.
            v = v * self.temporal(v).permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2)
            v = v * self.sum_rows(self.sum_columns(self.taps(v))).sigmoid()
            fused = fuse(v) if fused is None else fused + fuse(v)  # (B, S, h, w)
        return self.reduce(self.norm(fused.relu()))


def _conv(weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> nn.Conv2d:
    """A convolution of odd kernel and equal size around given tensors, contiguous as runtimes expect them."""
    out, per_group, *kernel = weight.shape
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(per_group * groups, out, tuple(kernel), padding=padding, groups=groups, bias=bias is not None)
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
    read = _OUT * torch.arange(groups)[:, None] + torch.arange(-1, _OUT + 1)  # (groups, 18)
    read = read.where((read >= 0) & (read < 2 * D), 2 * D).flatten()  # the last row is zeros
    return _pointwise(weight[read], bias[read])


def _banded(conv: nn.Conv3d, groups: int) -> nn.Conv2d:
    """A 3D convolution of one channel as 2D convolution from groups of 18 to groups of 16 slices."""
    k = conv.kernel_size[-1]
    band = conv.weight.new_zeros(_OUT, _IN, k, k)
    for i in range(_OUT):
        band[i, i : i + 3] = conv.weight[0, 0]
    assert conv.bias is not None
    return _conv(band.repeat(groups, 1, 1, 1), conv.bias.expand(groups * _OUT), groups)


def _shifted_sums(size: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Two convolutions that sum size * size maps, each shifted to its place in the kernel: by columns, then by rows.

    With the products at every pixel (:attr:`GraphDifference.taps`) they are the convolution to one channel, which
    alone would leave vector units idle.
    """
    one = torch.eye(size)
    columns = torch.einsum("rs,cd->rscd", one, one).reshape(size, size * size, 1, size)
    return _conv(columns), _conv(one.reshape(1, size, size, 1))
