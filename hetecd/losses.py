"""Segmentation losses and the feature consistency alignment (FCA) of HeteCD.

Everything is computed in float32 whatever the network's precision. Labels are (B, H, W) integers 0 / 1 / 255; 255
never counts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hetecd.config import IGNORE
from hetecd.modality import STRIDE_PX
from hetecd.model import Features

TEMPERATURE = 4.0


def cross_entropy(logits: Tensor, label: Tensor, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Mean cross entropy over the pixels that count, 0 where none does.

    Args:
        logits: (B, 2, H, W).
        label: (B, H, W), 0 / 1 / 255.
        weights: of the classes (unchanged, changed); the mean is weighted too.
    """
    weight = torch.tensor(weights, device=logits.device)
    total = F.cross_entropy(logits.float(), label.long(), weight, ignore_index=IGNORE, reduction="sum")
    counts = torch.stack([(label == c).sum() for c in (0, 1)])
    return total / (counts * weight).sum().clamp_min(torch.finfo(torch.float32).tiny)


def soft_dice(logits: Tensor, label: Tensor, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice score of the changed class, pooled over batch and pixels.

    Args:
        logits: (B, 2, H, W).
        label: (B, H, W), 0 / 1 / 255.
        smooth: added to numerator and denominator; keeps a batch without change finite.
    """
    valid = label != IGNORE
    p = logits.float().softmax(1)[:, 1] * valid
    changed = (label == 1).float()
    return 1 - (2 * (p * changed).sum() + smooth) / (p.sum() + changed.sum() + smooth)


def released_dice(logits: Tensor, label: Tensor, smooth: float = 1e-5) -> Tensor:
    """The "Dice" of the released program, defect included; for the `paper` recipe only.

    Its target is the *unchanged* indicator for both classes, so that p = 0.5 everywhere scores better than a perfect
    prediction.

    Args:
        logits: (B, 2, H, W).
        label: (B, H, W), 0 / 1 / 255 (the release knows no 255; such pixels are left out).
        smooth: added to numerator and denominator.
    """
    valid = (label != IGNORE).unsqueeze(1)
    p = logits.float().softmax(1) * valid  # (B, 2, H, W)
    unchanged = (label == 0).unsqueeze(1).float()  # (B, 1, H, W), broadcasts over the classes: the defect
    tp = (p * unchanged).sum((0, 2, 3))
    fp = p.sum((0, 2, 3)) - tp
    fn = unchanged.sum() - tp
    return 1 - ((2 * tp + smooth) / (2 * tp + fn + fp + smooth)).mean()


def lovasz_hinge(logits: Tensor, label: Tensor) -> Tensor:
    """A convex surrogate of one minus the IoU of the changed class, pooled over the batch (Berman et al. 2018).

    Args:
        logits: (B, 2, H, W).
        label: (B, H, W), 0 / 1 / 255.
    """
    valid = label != IGNORE
    changed = (label[valid] == 1).float()
    margin = (logits[:, 1].float() - logits[:, 0].float())[valid]
    errors, order = (1 - margin * (2 * changed - 1)).sort(descending=True)
    changed = changed[order]
    # IoU when the n worst pixels are wrong; its steps weigh the errors.
    missed, false = changed.cumsum(0), (1 - changed).cumsum(0)
    loss = 1 - (changed.sum() - missed) / (changed.sum() + false)
    steps = torch.cat((loss[:1], loss.diff()))
    return (errors.relu() * steps).sum()  # autocast would lower a product of vectors


def deep_supervision(scales: Sequence[Tensor], label: Tensor) -> Tensor:
    """Mean cross entropy of logits of several sizes against the share of changed pixels in each of their cells.

    Args:
        scales: logits (B, 2, h, w) of the input padded to a multiple of 32.
        label: (B, H, W), 0 / 1 / 255.
    """
    terms = []
    for logits in scales:
        changed, unchanged = _shares(label, logits.shape[-2:])
        log_p = logits.float().log_softmax(1)
        total = -(unchanged * log_p[:, 0] + changed * log_p[:, 1]).sum()
        terms.append(total / (changed + unchanged).sum().clamp_min(torch.finfo(torch.float32).tiny))
    return torch.stack(terms).mean()


def label_aware_alignment(features: Features, label: Tensor) -> Tensor:
    """Pull the features of unchanged places together, push those of changed ones apart, by the cosine of their angle.

    The published alignment (:func:`fca_loss`) pulls changed places together as well. Mean over the two coarsest stages
    of 1 - cosine where nothing changed and of the positive part of the cosine where something did.

    Args:
        features: what ``HeteCD(..., features=True)`` returns.
        label: (B, H, W), 0 / 1 / 255.
    """
    terms = []
    for optical, sar in zip(features[0], features[1], strict=True):
        changed, unchanged = _shares(label, optical.shape[-2:])
        cosine = F.cosine_similarity(optical.float(), sar.float(), dim=1)  # (B, h, w)
        total = (unchanged * (1 - cosine) + changed * cosine.relu()).sum()
        terms.append(total / (changed + unchanged).sum().clamp_min(torch.finfo(torch.float32).tiny))
    return torch.stack(terms).mean()


def _shares(label: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Share of the pixels of each cell that changed, and that did not, (B, h, w) each; 255 is in neither."""
    H, W = label.shape[-2:]
    padded = F.pad(label, (0, -W % STRIDE_PX, 0, -H % STRIDE_PX), value=IGNORE)
    both = torch.stack([(padded == c).float() for c in (1, 0)], 1)
    changed, unchanged = F.adaptive_avg_pool2d(both, (size[0], size[1])).unbind(1)
    return changed, unchanged


def channel_alignment(optical: Tensor, sar: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """KL(optical || SAR) of the distributions over the pixels of each channel, mean over batch and channels, times T^2.

    Args:
        optical: (B, C, h, w), the target distribution; gradients flow through both.
        sar: (B, C, h, w).
        temperature: T, divides both before the softmax.
    """
    return _divergence(optical.flatten(2), sar.flatten(2), dim=2, temperature=temperature)


def spatial_alignment(optical: Tensor, sar: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """KL(optical || SAR) of the distributions over the channels of each pixel, mean over batch and pixels, x T^2."""
    return _divergence(optical.flatten(2), sar.flatten(2), dim=1, temperature=temperature)


def fca_loss(features: Features) -> Tensor:
    """Feature consistency alignment as published: of the two coarsest stages, for each a channel and a spatial term.

    All have weight 1 and cover every pixel, changed ones too.

    Args:
        features: what ``HeteCD(..., features=True)`` returns.
    """
    terms = [
        term(optical, sar)
        for optical, sar in zip(features[0], features[1], strict=True)
        for term in (channel_alignment, spatial_alignment)
    ]
    return torch.stack(terms).sum()


def _divergence(optical: Tensor, sar: Tensor, dim: int, temperature: float) -> Tensor:
    """Sum of t (log t - log s) along `dim`, mean over the rest, times T^2."""
    log_t = (optical.float() / temperature).log_softmax(dim)
    log_s = (sar.float() / temperature).log_softmax(dim)
    kl = (log_t.exp() * (log_t - log_s)).sum(dim)  # (B, the other dimension)
    return kl.mean() * temperature**2
