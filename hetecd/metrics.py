"""Counts of right and wrong pixels, and the scores computed from them.

One :class:`Confusion` is pooled over a whole split, then scored once: the mean of per-tile scores is another number,
which depends on how the scene was cut. :class:`Boundary` (are outlines in the right place) and :class:`Calibration`
(does a probability mean what it says) are pooled in the same way. NumPy only.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetecd.config import IGNORE
from hetecd.errors import InputError

TOLERANCE_PX = 2.0  # an outline this far off still counts as right
BINS = 15  # of probability, as in Guo et al. 2017
NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of one or many maps; add two to pool them, ``sum(parts, Confusion())`` to pool many.

    Attributes:
        tn: unchanged and predicted unchanged.
        fp: unchanged but predicted changed.
        fn: changed but predicted unchanged.
        tp: changed and predicted changed.
    """

    tn: int = 0
    fp: int = 0
    fn: int = 0
    tp: int = 0

    def __add__(self, other: "Confusion") -> "Confusion":
        if not isinstance(other, Confusion):
            return NotImplemented
        return Confusion(self.tn + other.tn, self.fp + other.fp, self.fn + other.fn, self.tp + other.tp)

    @property
    def total(self) -> int:
        """Number of pixels that counted."""
        return self.tn + self.fp + self.fn + self.tp

    def scores(self) -> dict[str, float]:
        """Score the pooled counts.

        Returns:
            Shares in [0, 1] under flat keys: ``iou``, ``f1``, ``precision`` and ``recall`` of the changed class,
            ``miou`` (mean of both classes' IoU), ``accuracy``, and ``kappa`` (Cohen 1960, in [-1, 1]). What would be
            0 / 0 is NaN, and a class that is absent from both maps does not count in ``miou`` (the released program
            lets it count as 0).
        """
        tn, fp, fn, tp = self.tn, self.fp, self.fn, self.tp
        total = self.total
        ious = [v for v in (_share(tp, tp + fp + fn), _share(tn, tn + fp + fn)) if not np.isnan(v)]
        # Kappa = (observed - expected) / (1 - expected) multiplied through by total squared, which keeps it integer.
        expected = (tn + fp) * (tn + fn) + (fn + tp) * (fp + tp)
        return {
            "iou": _share(tp, tp + fp + fn),
            "f1": _share(2 * tp, 2 * tp + fp + fn),
            "precision": _share(tp, tp + fp),
            "recall": _share(tp, tp + fn),
            "miou": sum(ious) / len(ious) if ious else float("nan"),
            "accuracy": _share(tn + tp, total),
            "kappa": _share(total * (tn + tp) - expected, total * total - expected),
        }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def confusion(pred: NDArray[Any], label: NDArray[Any], valid: NDArray[Any] | None = None) -> Confusion:
    """Count one map (or one batch of maps) against its label.

    Args:
        pred: (...) bool or integer, 1 = changed; 255 = no prediction, does not count.
        label: (...) the same shape, 0 / 1; 255 = does not count.
        valid: (...) bool, True = usable; None = all.

    Raises:
        InputError: the shapes differ, or a pixel that counts is neither 0 nor 1 in ``pred`` or ``label``.
    """
    pred, label = np.asarray(pred), np.asarray(label)
    if pred.shape != label.shape or (valid is not None and np.shape(valid) != label.shape):
        shapes = [pred.shape, label.shape, *([] if valid is None else [np.shape(valid)])]
        raise InputError(f"confusion: found shapes {shapes}, expected one shape; predict at the label's size")
    counts = (label != IGNORE) & (pred != IGNORE)
    if valid is not None:
        counts &= np.asarray(valid, dtype=bool)
    p, t = pred[counts], label[counts]
    changed_pred, changed = p == 1, t == 1
    for name, values, changed_values in (("pred", p, changed_pred), ("label", t, changed)):
        odd = values[~changed_values & (values != 0)]
        if odd.size:
            raise InputError(f"confusion: found {name} value {odd[0]}, expected 0, 1 or 255; threshold it first")
    n = [int(v) for v in np.bincount(2 * changed.astype(np.int64) + changed_pred, minlength=4)]
    return Confusion(tn=n[0], fp=n[1], fn=n[2], tp=n[3])


@dataclass(frozen=True)
class Boundary:
    """Counts of boundary pixels; add two to pool them. A boundary pixel is changed and touches an unchanged one.

    Attributes:
        pred: boundary pixels of the map.
        pred_hits: those with a boundary pixel of the label within the tolerance.
        label: boundary pixels of the label.
        label_hits: those with a boundary pixel of the map within the tolerance.
    """

    pred: int = 0
    pred_hits: int = 0
    label: int = 0
    label_hits: int = 0

    def __add__(self, other: "Boundary") -> "Boundary":
        if not isinstance(other, Boundary):
            return NotImplemented
        return Boundary(
            self.pred + other.pred,
            self.pred_hits + other.pred_hits,
            self.label + other.label,
            self.label_hits + other.label_hits,
        )

    @property
    def f1(self) -> float:
        """Harmonic mean of the shares of hits (Csurka et al. 2013, here pooled); NaN where nobody has a boundary."""
        if not self.pred or not self.label:
            return 0.0 if self.pred or self.label else float("nan")
        precision, recall = self.pred_hits / self.pred, self.label_hits / self.label
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(pred: NDArray[Any], label: NDArray[Any], tolerance_px: float = TOLERANCE_PX) -> Boundary:
    """Compare the outlines of what changed. The edge of the image and of what does not count is no outline.

    Args:
        pred: (..., H, W) bool or integer, 1 = changed; 255 = does not count.
        label: (..., H, W), 0 / 1; 255 = does not count.
        tolerance_px: Euclidean distance up to which two boundary pixels match.

    Raises:
        InputError: the shapes differ.
    """
    pred, label = np.asarray(pred), np.asarray(label)
    if pred.shape != label.shape or label.ndim < 2:
        raise InputError(f"boundary: found shapes {pred.shape} and {label.shape}, expected one shape (..., H, W)")
    counts = (label != IGNORE) & (pred != IGNORE)
    edges = [(m == 1) & counts & _touched((m != 1) & counts, NEIGHBOURS) for m in (pred, label)]
    reach = range(-int(tolerance_px), int(tolerance_px) + 1)
    disk = [(row, col) for row in reach for col in reach if row * row + col * col <= tolerance_px**2]
    hits = [edge & _touched(other, disk) for edge, other in (edges, edges[::-1])]
    return Boundary(*(int(m.sum()) for m in (edges[0], hits[0], edges[1], hits[1])))


def _touched(where: NDArray[np.bool_], offsets: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """(..., H, W) bool: some pixel at one of these offsets (row, col) is True; outside the image none is."""
    height, width = where.shape[-2:]
    reach = max(abs(n) for offset in offsets for n in offset)
    padded = np.pad(where, [(0, 0)] * (where.ndim - 2) + [(reach, reach)] * 2)
    out = np.zeros_like(where)
    for row, col in offsets:
        out |= padded[..., reach + row : reach + row + height, reach + col : reach + col + width]
    return out


@dataclass(frozen=True)
class Calibration:
    """Pixels by their probability of change, in bins of equal width; add two to pool them.

    Attributes:
        counts: pixels per bin.
        probs: sum of their probabilities.
        changed: how many of them changed.
    """

    counts: tuple[int, ...] = (0,) * BINS
    probs: tuple[float, ...] = (0.0,) * BINS
    changed: tuple[int, ...] = (0,) * BINS

    def __add__(self, other: "Calibration") -> "Calibration":
        if not isinstance(other, Calibration):
            return NotImplemented
        return Calibration(
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            tuple(a + b for a, b in zip(self.probs, other.probs, strict=True)),
            tuple(a + b for a, b in zip(self.changed, other.changed, strict=True)),
        )

    @staticmethod
    def empty(bins: int) -> "Calibration":
        """No pixels, in so many bins."""
        return Calibration((0,) * bins, (0.0,) * bins, (0,) * bins)

    def coarse(self, bins: int = BINS) -> "Calibration":
        """The same pixels in fewer bins, a divisor of their number."""
        return Calibration(
            *(
                tuple(sum(part) for part in np.reshape(values, (bins, -1)).tolist())
                for values in dataclasses.astuple(self)
            )
        )

    def at_least(self) -> tuple[NDArray[np.float64], list[Confusion]]:
        """The lower edge of every bin as a threshold, and the confusion of a map made with it."""
        counts, changed = (np.cumsum(values[::-1])[::-1].tolist() for values in (self.counts, self.changed))
        parts = [
            Confusion(tn=counts[0] - n - (changed[0] - tp), fp=n - tp, fn=changed[0] - tp, tp=tp)
            for n, tp in zip(counts, changed, strict=True)
        ]
        return np.arange(len(counts)) / len(counts), parts

    @property
    def error(self) -> float:
        """Expected calibration error in [0, 1]: mean over pixels of |mean probability - share changed| of their bin.

        As Guo et al. 2017 define it, but of the probability of change, where they take that of the likelier class.
        NaN where nothing counted.
        """
        total = sum(self.counts)
        gaps = (abs(p - n) for p, n in zip(self.probs, self.changed, strict=True))
        return sum(gaps) / total if total else float("nan")


def calibration(prob: NDArray[Any], label: NDArray[Any], bins: int = BINS) -> Calibration:
    """Sort the pixels that count into bins of probability.

    Args:
        prob: (...) probability of change, 0 to 1.
        label: (...) the same shape, 0 / 1; 255 = does not count.
        bins: how many.

    Raises:
        InputError: the shapes differ, or a probability that counts is outside 0 to 1.
    """
    prob, label = np.asarray(prob), np.asarray(label)
    if prob.shape != label.shape:
        raise InputError(f"calibration: found shapes {prob.shape} and {label.shape}, expected one shape")
    p, t = prob[label != IGNORE].astype(np.float64), label[label != IGNORE] == 1
    if not ((p >= 0) & (p <= 1)).all():
        raise InputError("calibration: found probabilities that are not 0 to 1; take the softmax of logits first")
    places = np.minimum((p * bins).astype(np.int64), bins - 1)
    counts, probs, changed = (np.bincount(places, weights, bins) for weights in (None, p, t))
    return Calibration(tuple(int(n) for n in counts), tuple(float(x) for x in probs), tuple(int(n) for n in changed))
