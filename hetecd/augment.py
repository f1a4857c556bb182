"""Random variants of a training tile: one geometry for both dates and the label, radiometry per modality.

Works on normalised tensors (about [0, 1], see :meth:`hetecd.modality.Modality.normalise`) and is a function of its
arguments and the generator alone. Three bands are red, green, blue; four or more start with blue, green, red, as
satellites store them (:func:`hetecd.figures.picture` goes by the same rule).

The published recipe (HeteCD, Jing et al. 2025) is flip 0.5, rotate90 off, scale 1.2, blur_px 1, and 0.3 for
optical_jitter, optical_hue, sar_jitter and sar_hue; see :func:`augment` for what differs.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hetecd.config import IGNORE, TrainConfig
from hetecd.modality import CLIP

GREY = (0.299, 0.587, 0.114)  # luma of red, green, blue (ITU-R BT.601)
DB_PER_NEPER = 10 / math.log(10)  # decibels per unit of the natural logarithm of power


def augment(
    optical: Tensor,
    sar: Tensor,
    label: Tensor,
    config: TrainConfig,
    rng: torch.Generator,
    sar_span_db: Sequence[float] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Vary one tile at random.

    Geometry, the same for all three: enlargement by U(1, scale) with a random crop back to the size (images bilinear,
    label nearest), rotation by U(-rotate, rotate) degrees with mirrored edges, two flips, a multiple of 90 degrees
    (square tiles only). Then, drawn anew per date: blur, brightness and contrast; for optical saturation and hue; for
    SAR speckle. ``sar_hue`` > 0 gives SAR the whole colour treatment of the published recipe, saturation (by
    ``sar_jitter``) and hue: without effect on equal bands.

    Differs from the released recipe, where a pillow image is clipped and rounded after each step: brightness,
    contrast, saturation and hue come in this order and are clipped once, at the end.

    Args:
        optical: (Co, H, W) float32 normalised; three bands are red, green, blue, four or more start with blue, green,
            red, in the order the network reads them.
        sar: (Cs, H, W) float32 normalised.
        label: (H, W) uint8, 0 / 1 / 255. Where it is 255 and all bands of a date are 0, the date is taken to be
            invalid and stays 0.
        config: the fields flip to sar_speckle; ``sar_bands`` tells which bands are copies and share their speckle,
            ``normalise`` the range to clip to.
        rng: source of all chance.
        sar_span_db: decibels per band between SAR 0 and 1 where SAR is in dB: gain and speckle, which multiply power,
            then add. Empty = SAR is not in dB, they multiply.

    Returns:
        New tensors, shapes and dtypes as given.
    """
    optical, sar, label = _geometry(optical, sar, label, config, rng)
    ignored = label == IGNORE
    optical_hole, sar_hole = (_hole(image, ignored) for image in (optical, sar))
    clip = (0.0, 1.0) if config.normalise == "uint8" else CLIP

    optical = _blur(optical, _uniform(rng, 0, config.blur_px))
    optical = _jitter(optical, config.optical_jitter, config.optical_jitter, config.optical_hue, rng)

    sar = _blur(sar, _uniform(rng, 0, config.blur_px))
    saturation = config.sar_jitter if config.sar_hue > 0 else 0.0
    sar = _jitter(sar, config.sar_jitter, saturation, config.sar_hue, rng, sar_span_db)
    if config.sar_speckle > 0:
        sar = _speckle(sar, config, rng, sar_span_db)
    return _finish(optical, optical_hole, clip), _finish(sar, sar_hole, clip), label


def _uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def _geometry(
    optical: Tensor, sar: Tensor, label: Tensor, config: TrainConfig, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    height, width = label.shape
    axes = [axis for axis in (-1, -2) if _uniform(rng, 0, 1) < config.flip]
    turns = int(torch.randint(4, (), generator=rng)) if config.rotate90 and height == width else 0
    # Enlarging by f and cropping back is reading a window of 1/f of the size at full size.
    factor = _uniform(rng, 1, config.scale)
    h, w = max(1, round(height / factor)), max(1, round(width / factor))
    row = int(torch.randint(height - h + 1, (), generator=rng))
    col = int(torch.randint(width - w + 1, (), generator=rng))

    window = (slice(None), slice(row, row + h), slice(col, col + w))
    angle = math.radians(_uniform(rng, -config.rotate, config.rotate)) if config.rotate else 0.0
    out = []
    # Both dates at once: bilinear resampling of three channels takes as long as of six.
    for part in (torch.cat([optical[window], sar[window]])[None], label[None][window][None].clone()):
        full = part
        if (h, w) != (height, width):
            if part.is_floating_point():
                full = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
            else:
                full = F.interpolate(part, (height, width), mode="nearest-exact")
        if angle:
            full = _rotate(full, angle)
        if axes:
            full = full.flip(axes)
        out.append(full.rot90(turns, (-2, -1)).contiguous()[0] if turns else full[0])
    images, labels = out
    return images[: len(optical)], images[len(optical) :], labels[0]


def _rotate(image: Tensor, angle: float) -> Tensor:
    """Rotate (1, C, H, W) by radians about the centre, edges mirrored; integers keep their values."""
    height, width = image.shape[-2:]
    cos, sin = math.cos(angle), math.sin(angle)
    # Coordinates of grid_sample run from -1 to 1 along either edge, whatever its length.
    matrix = torch.tensor([[[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]])
    grid = F.affine_grid(matrix, [1, 1, height, width], align_corners=False)
    mode = "bilinear" if image.is_floating_point() else "nearest"
    rotated = F.grid_sample(image.float(), grid, mode, padding_mode="reflection", align_corners=False)
    return rotated.to(image.dtype)


def cutmix(batch: dict[str, Tensor], share: float, rng: torch.Generator) -> None:
    """Paste a rectangle of another pair of the batch into some pairs and their labels, in place (Yun et al. 2019).

    Args:
        batch: ``optical`` (B, Co, H, W), ``sar`` (B, Cs, H, W) and ``label`` (B, H, W).
        share: of the pairs that get one; its edges are U(1/4, 3/4) of theirs.
        rng: source of all chance.
    """
    images = [batch[name] for name in ("optical", "sar", "label")]
    height, width = images[-1].shape[-2:]
    others = [image.clone() for image in images]
    count = len(images[-1])
    if count < 2:
        return
    shift = int(torch.randint(1, count, (), generator=rng))
    for to in range(count):
        if _uniform(rng, 0, 1) >= share:
            continue
        source = (to + shift) % count
        h, w = (round(_uniform(rng, 0.25, 0.75) * edge) for edge in (height, width))
        row = int(torch.randint(height - h + 1, (), generator=rng))
        col = int(torch.randint(width - w + 1, (), generator=rng))
        for image, other in zip(images, others, strict=True):
            image[to, ..., row : row + h, col : col + w] = other[source, ..., row : row + h, col : col + w]


def _hole(image: Tensor, ignored: Tensor) -> Tensor | None:
    """(H, W) bool, True where the date is invalid; None if nowhere."""
    if not ignored.any():
        return None
    hole = ignored & (image == 0).all(0)
    return hole if hole.any() else None


def _finish(image: Tensor, hole: Tensor | None, clip: tuple[float, float]) -> Tensor:
    image = image.clamp_(*clip)
    return image if hole is None else image.masked_fill_(hole, 0.0)


def _blur(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of (C, H, W), edges repeated; the released recipe's "radius" is this standard deviation."""
    if sigma_px < 0.1:  # the neighbours' weight is below 1e-20
        return image
    reach = math.ceil(3 * sigma_px)
    weights = torch.exp(-0.5 * (torch.arange(reach + 1) / sigma_px) ** 2)
    side = (weights / (2 * weights.sum() - 1)).tolist()
    # Sums of shifted copies: for kernels this short several times faster than a convolution on a CPU.
    for axis, pad in ((1, (0, 0, reach, reach)), (2, (reach, reach, 0, 0))):
        size = image.shape[axis]
        x = F.pad(image[None], pad, mode="replicate")[0]
        image = x.narrow(axis, reach, size) * side[0]
        for shift in range(1, reach + 1):
            image.add_(x.narrow(axis, reach - shift, size), alpha=side[shift])
            image.add_(x.narrow(axis, reach + shift, size), alpha=side[shift])
    return image


def _jitter(
    image: Tensor,
    share: float,
    saturation: float,
    hue: float,
    rng: torch.Generator,
    span_db: Sequence[float] = (),
) -> Tensor:
    """Brightness and contrast by 1 ± share, saturation by 1 ± saturation, hue by ± hue of the circle.

    The first three are affine in the bands of a pixel, so they are one matrix. Bands beyond the third (and those of
    images that have fewer) are not part of the colour: they keep their own mean and no saturation.
    """
    brightness, contrast, vivid = (_uniform(rng, 1 - s, 1 + s) for s in (share, share, saturation))
    turn = _uniform(rng, -hue, hue)
    bands = len(image)
    if share > 0 or saturation > 0:
        mean = image.mean((1, 2))
        matrix = torch.eye(bands)
        if bands >= 3:
            luma = torch.tensor(GREY if bands == 3 else GREY[::-1])
            mean[:3] = mean[:3] @ luma
            matrix[:3, :3] = vivid * matrix[:3, :3] + (1 - vivid) * luma
        if span_db:  # gain is a shift in dB
            shift = DB_PER_NEPER * math.log(brightness) / torch.tensor(span_db)
            offset = (1 - contrast) * mean + shift
            image = torch.addmm(offset[:, None], matrix * contrast, image.flatten(1)).view_as(image)
        else:
            offset = (1 - contrast) * brightness * mean
            image = torch.addmm(offset[:, None], matrix * (contrast * brightness), image.flatten(1)).view_as(image)
    if hue > 0 and bands == 3:
        image = _turn_hue(image, turn)
    elif hue > 0 and bands > 3:
        # To exchange red and blue is to mirror the circle.
        image = torch.cat([_turn_hue(image[:3], -turn), image[3:]])
    return image


def _turn_hue(rgb: Tensor, turn: float) -> Tensor:
    """Turn the hue of red, green, blue (3, H, W) by a share of the circle at constant HSV value and chroma.

    Only differences of bands enter, so values outside [0, 1] are no obstacle.
    """
    high, low = rgb.amax(0), rgb.amin(0)
    chroma = high - low
    red, green, blue = rgb
    # Hue in sixths of the circle, from red, by whichever band is highest: a sign is 0 where its band is, else 1. With
    # torch.where, which guesses at branches, noisy images take several times as long.
    hue = torch.lerp(blue - red + 2 * chroma, red - green + 4 * chroma, (high - green).sign_())
    hue = torch.lerp(green - blue, hue, (high - red).sign_())
    hue = (hue / chroma.clamp_min(1e-12) + 6 * turn).remainder_(6.0)
    shares = torch.stack([(hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()]).clamp_(0, 1)
    return torch.addcmul(low, chroma, shares)


def _speckle(sar: Tensor, config: TrainConfig, rng: torch.Generator, span_db: Sequence[float]) -> Tensor:
    """Multiply power by log-normal noise of mean 1 and standard deviation ``sar_speckle``; in dB: add its logarithm."""
    bands = config.sar_bands if len(config.sar_bands) == len(sar) else tuple(range(len(sar)))
    distinct = list(dict.fromkeys(bands))
    spread = math.sqrt(math.log1p(config.sar_speckle**2))
    noise = torch.randn((len(distinct), *sar.shape[1:]), generator=rng).mul_(spread).sub_(spread**2 / 2)
    noise = noise[[distinct.index(band) for band in bands]] if len(distinct) < len(bands) else noise
    if span_db:
        return sar + noise * (DB_PER_NEPER / torch.tensor(span_db))[:, None, None]
    return sar * noise.exp_()
