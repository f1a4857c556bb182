"""HeteCD: two unshared encoders, a difference block per scale, a top-down decoder (Jing et al. 2025)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetecd.config import ModelConfig
from hetecd.difference import Difference
from hetecd.encoder import ENCODERS, Encoder
from hetecd.errors import InputError
from hetecd.info import ModelInfo
from hetecd.modality import FLAT, MIN_PX, STRIDE_PX, Inner
from hetecd.ops import Conv3x3, ConvNorm, Linear, in_strips, reusable
from hetecd.residual import RESIDUAL, ResidualEncoder

# How far the finest scale looks, at stride 4: 7 rows in its difference, 4 in refining, less than 4 in what follows.
HALO_PX = 64


class Features(NamedTuple):
    """What training compares beside the logits; belongs to the input padded to a multiple of 32.

    Attributes:
        optical: the two coarsest maps of the optical encoder. Of the published one those are stages 3 and 4,
            (B, C, H / 16, W / 16) and (B, C, H / 32, W / 32).
        sar: the same of SAR.
        scales: logits (B, 2, h, w) of every scale from coarse to fine; empty without deep supervision.
    """

    optical: tuple[Tensor, Tensor]
    sar: tuple[Tensor, Tensor]
    scales: list[Tensor]


class HeteCD(nn.Module):
    """Change between an optical and a SAR image of one place.

    Args:
        config: the settings; the default is the published network (81.3 M parameters).

    Example:
        >>> net = HeteCD(ModelConfig(encoder="mit_b0", width=64, sar_channels=1))
        >>> net(torch.rand(2, 3, 100, 60), torch.rand(2, 1, 100, 60)).shape
        torch.Size([2, 2, 100, 60])
    """

    info: ModelInfo | None = None  # set by hetecd.load

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        copies = config.copies
        self.optical_encoder = _encoder(config, copies * config.optical_channels)
        self.sar_encoder = _encoder(config, copies * config.sar_channels)
        self.decoder = Decoder(
            self.optical_encoder.channels, config, copies * (config.optical_channels + config.sar_channels)
        )
        # As published: the decoder keeps PyTorch's own initialisation.
        self.optical_encoder.apply(_init)
        self.sar_encoder.apply(_init)
        if config.modalities != "both":
            (self.sar_encoder if config.modalities == "optical" else self.optical_encoder).requires_grad_(False)

    def forward(
        self, optical: Tensor, sar: Tensor, features: bool = False, inner: Inner | None = None
    ) -> Tensor | tuple[Tensor, Features]:
        """Logits of (unchanged, changed).

        Args:
            optical: (B, optical_channels, H, W), scaled as the weights expect (published: pixel / 255).
            sar: (B, sar_channels, H, W), the same size; H and W are at least 32 and otherwise free. Where the network
                standardises, both may come with their standardised bands, as (B, 2 * channels, H, W).
            features: also return what the losses of training compare.
            inner: rows and columns whose logits are wanted, without features; the finest scale then spares the others.

        Returns:
            logits (B, 2, H, W) or those of ``inner`` alone, or (logits, features).

        Raises:
            InputError: wrong number of channels, different sizes, or smaller than 32 px.
        """
        self._check(optical, sar)
        H, W = optical.shape[-2:]
        optical, sar = (_pad(image) for image in self.prepare(optical, sar))
        maps_optical, maps_sar = self.encode(optical, sar)  # three or four of (B, C_i, h_i, w_i) each
        assert inner is None or not features
        if inner is not None:
            area = around(inner, optical.shape[-2:], HALO_PX)
            logits = self.decoder(maps_optical, maps_sar, optical, sar, None, area)
            return logits[..., *within(inner, area)]
        if not features:
            return self.decoder(maps_optical, maps_sar, optical, sar)[..., :H, :W]
        scales: list[Tensor] = []
        seen = Features((maps_optical[-2], maps_optical[-1]), (maps_sar[-2], maps_sar[-1]), scales)
        return self.decoder(maps_optical, maps_sar, optical, sar, scales)[..., :H, :W], seen

    def prepare(self, optical: Tensor, sar: Tensor) -> tuple[Tensor, Tensor]:
        """What encoders and decoder read of the two images before padding; a date that must not be seen is zeros."""
        seen = self.config.modalities
        if self.config.standardise and optical.shape[1] == self.config.optical_channels:
            optical, sar = standardised(optical), standardised(sar)
        return (optical if seen != "sar" else torch.zeros_like(optical)), (
            sar if seen != "optical" else torch.zeros_like(sar)
        )

    def _check(self, optical: Tensor, sar: Tensor) -> None:
        config = self.config
        copies = config.copies if optical.shape[1:2] == (config.copies * config.optical_channels,) else 1
        for name, image, channels in (
            ("optical", optical, copies * config.optical_channels),
            ("sar", sar, copies * config.sar_channels),
        ):
            if image.ndim != 4 or image.shape[1] != channels:
                raise InputError(f"{name}: found shape {tuple(image.shape)}, expected (B, {channels}, H, W)")
            if min(image.shape[-2:]) < MIN_PX:
                raise InputError(f"{name}: found {tuple(image.shape[-2:])} px, expected at least {MIN_PX} x {MIN_PX}")
        if optical.shape[-2:] != sar.shape[-2:] or optical.shape[0] != sar.shape[0]:
            raise InputError(
                f"optical {tuple(optical.shape)} and sar {tuple(sar.shape)}: expected the same batch and size"
            )

    def encode(self, optical: Tensor, sar: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, C_i, H / stride_i, W / stride_i) of each image, fine to coarse; H and W are multiples of 32."""
        seen = self.config.modalities
        # A date that must not be seen gives maps of zeros. An image of zeros would do too, but each of the encoder's
        # norms multiplies the gradient of a constant by 1 / sqrt(eps): it overflows.
        if seen == "optical":
            maps = self.optical_encoder(optical)
            return maps, [torch.zeros_like(x) for x in maps]
        if seen == "sar":
            maps = self.sar_encoder(sar)
            return [torch.zeros_like(x) for x in maps], maps
        return self.optical_encoder(optical), self.sar_encoder(sar)


class Residual(nn.Module):
    """x + 0.1 * conv(ReLU(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(width, width)
        self.conv2 = Conv3x3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, h, w)."""
        return torch.add(x, self.conv2(self.conv1(x).relu_()), alpha=0.1)


class Detail(nn.Module):
    """What both images show at half their size, added to the map at a quarter of it."""

    REACH = 4  # rows and columns of the map, a convolution after it included, and more than enough

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.look = nn.Sequential(ConvNorm(in_channels, width, 2), nn.ReLU(True), ConvNorm(width, width), nn.ReLU(True))
        self.mix = nn.Sequential(ConvNorm(2 * width, width), nn.ReLU(True))

    def forward(self, x: Tensor, optical: Tensor, sar: Tensor) -> Tensor:
        """(B, D, H / 4, W / 4), images (B, C, H, W) -> (B, D, H / 2, W / 2)."""
        seen = self.look(torch.cat((optical, sar), 1))
        x = _resize(x, seen.shape[-2:])
        seen = torch.cat((x, seen.to(x.dtype)), 1)  # (B, 2D, H / 2, W / 2)
        mixed = self.mix(seen)
        return x.add_(mixed) if reusable() else x + mixed


class Decoder(nn.Module):
    """Difference at every scale, summed from coarse to fine, fused at stride 4."""

    def __init__(self, channels: tuple[int, ...], config: ModelConfig, image_channels: int) -> None:
        super().__init__()
        D = config.width
        self.project = nn.ModuleList(Linear(c, D) for c in channels)
        self.difference = nn.ModuleList(Difference(config) for _ in channels)
        self.heads = nn.ModuleList(nn.Conv2d(D, 2, 1) for _ in channels if config.deep_supervision)
        self.fuse = nn.Conv2d(len(channels) * D, D, 1)  # reads the scales from coarse to fine
        self.fuse_norm = nn.BatchNorm2d(D)
        self.refine = nn.Sequential(Residual(D), Residual(D))
        self.detail = Detail(image_channels, D) if config.detail else None
        self.head: nn.Module = nn.Conv2d(D, 2, 3, padding=1)
        if self.detail is None:  # as published
            self.head = nn.Sequential(self.head, nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1))

    def forward(
        self, maps_optical: list[Tensor], maps_sar: list[Tensor], optical: Tensor, sar: Tensor,
        scales: list[Tensor] | None = None, area: Inner | None = None,
    ) -> Tensor:  # fmt: skip
        """Maps of two images (B, C_i, H / stride_i, W / stride_i), two images (B, C, H, W) -> logits (B, 2, H, W).

        ``scales`` receives the logits of every scale, if there are heads for them. The two lists of maps are emptied,
        so that what was read makes room for what follows. Of an ``area`` only those logits come back, (B, 2, h, w),
        and they are right but for the outer ``HALO_PX`` where it ends within the image.
        """
        cut = partial(_cut, area=area, height=optical.shape[-2])
        optical, sar, maps_optical[0], maps_sar[0] = (cut(x) for x in (optical, sar, maps_optical[0], maps_sar[0]))
        # A 1x1 convolution of upsampled maps is the upsampled 1x1 convolution: each scale does its share at its own
        # size, which saves two thirds of the multiplications of the fusion.
        shares = self.fuse.weight.chunk(len(self.project), dim=1)
        size = maps_optical[0].shape[-2:]
        above = fused = None
        for i in reversed(range(len(self.project))):
            maps = maps_optical.pop(), maps_sar.pop()
            d = self._apart(partial(self._compare, i), maps, Difference.REACH)  # (B, D, h_i, w_i)
            if above is not None:
                d = d + _resize(above if i > 0 else cut(above), d.shape[-2:])
            above = d
            if scales is not None and self.heads:
                scales.append(self.heads[i](d))
            share = F.conv2d(d, shares[len(self.project) - 1 - i], self.fuse.bias if i == 0 else None)
            share = _resize(cut(share) if i > 0 else share, size)  # (B, D, H/4, W/4)
            fused = share if fused is None else fused + share
        x = self.refine(self.fuse_norm(fused))
        # (B, 2, H/4, W/4), with a look at the detail (B, 2, H/2, W/2)
        x = self.head(x) if self.detail is None else self._apart(self._look, (x, optical, sar), Detail.REACH)
        return _resize(x, optical.shape[-2:])

    def _apart(self, compute: Callable[..., Tensor], maps: Sequence[Tensor], halo: int) -> Tensor:
        """Some rows at a time, unless the norms need to see all of them."""
        return compute(*maps) if self.training else in_strips(compute, maps, halo)

    def _look(self, x: Tensor, optical: Tensor, sar: Tensor) -> Tensor:
        """(B, D, H / 4, W / 4), images (B, C, H, W) -> (B, 2, H / 2, W / 2)."""
        assert self.detail is not None
        return self.head(self.detail(x, optical, sar))

    def _compare(self, i: int, optical: Tensor, sar: Tensor) -> Tensor:
        """Two maps (B, C_i, h, w) of stage i -> (B, D, h, w)."""
        tokens = (self.project[i](x.permute(0, 2, 3, 1)) for x in (optical, sar))  # (B, h, w, D) each
        return self.difference[i](*tokens)


def standardised(image: Tensor) -> Tensor:
    """Each band, and each once more with mean 0 and deviation 1 over the image: (B, C, H, W) -> (B, 2C, H, W).

    Invalid pixels do not count and stay 0. They are told by 0 in all bands; a valid pixel may be that by chance, rarely
    where there are several bands, in one of a thousand of a band of 8 bits.
    """
    valid = (image != 0).any(1, keepdim=True)
    count = valid.sum((2, 3), keepdim=True).clamp_min(1)
    even = (image - image.sum((2, 3), keepdim=True) / count) * valid
    deviation = (even.square().sum((2, 3), keepdim=True) / count).sqrt()
    return torch.cat((image, even / (deviation + FLAT)), 1)


def _encoder(config: ModelConfig, in_channels: int) -> Encoder | ResidualEncoder:
    if config.encoder in RESIDUAL:
        return ResidualEncoder(RESIDUAL[config.encoder], in_channels, config.dropout, config.drop_path)
    return Encoder(ENCODERS[config.encoder], in_channels, config.dropout, config.drop_path)


def _resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return x if x.shape[-2:] == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def around(part: Inner, size: Sequence[int], halo_px: int) -> Inner:
    """A part of an image of some size, and what lies around it, in steps of the coarsest scale."""
    rows, cols = (
        slice(
            max(0, (along.start - halo_px) // STRIDE_PX * STRIDE_PX),
            min(edge, -(-(along.stop + halo_px) // STRIDE_PX) * STRIDE_PX),
        )
        for along, edge in zip(part, size, strict=True)
    )
    return rows, cols


def within(part: Inner, whole: Inner) -> Inner:
    """The same part of an image of which only the whole is left."""
    rows, cols = (slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True))
    return rows, cols


def _cut(x: Tensor, area: Inner | None, height: int) -> Tensor:
    """What a map (B, C, h, w) of an image of some height shows of an area of it."""
    if area is None:
        return x
    rows, cols = (slice(part.start * x.shape[-2] // height, part.stop * x.shape[-2] // height) for part in area)
    return x[..., rows, cols]


def _pad(x: Tensor) -> Tensor:
    """Mirror the right and lower edge up to a multiple of 32."""
    H, W = x.shape[-2:]
    pad = (0, -W % STRIDE_PX, 0, -H % STRIDE_PX)
    x = F.pad(x, pad, mode="reflect") if any(pad) else x
    return x.contiguous(memory_format=torch.channels_last)


def _init(module: nn.Module) -> None:
    """The published initialisation of the encoders: linear truncated normal 0.02, convolution normal by its fan-out."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
