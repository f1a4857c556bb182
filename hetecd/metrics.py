"""Counts of right and wrong pixels, and the scores computed from them.

One :class:`Confusion` is pooled over a whole split, then scored once: the mean of per-tile scores is another number,
which depends on how the scene was cut. NumPy only.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetecd.config import IGNORE
from hetecd.errors import InputError


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
