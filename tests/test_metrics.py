"""Scores against numbers computed by hand, and properties that hold for any maps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hetecd.errors import InputError
from hetecd.metrics import BINS, Boundary, Calibration, Confusion, boundary, calibration, confusion

KEYS = {"iou", "f1", "precision", "recall", "miou", "accuracy", "kappa"}


def test_counts_each_cell() -> None:
    pred = np.array([[0, 1, 0], [1, 1, 1]])
    label = np.array([[0, 0, 1], [1, 1, 255]], np.uint8)
    assert confusion(pred, label) == Confusion(tn=1, fp=1, fn=1, tp=2)
    assert confusion(pred.astype(bool), label) == Confusion(tn=1, fp=1, fn=1, tp=2)


def test_scores_by_hand() -> None:
    # 100 pixels: observed agreement 0.85; expected 0.75*0.7 + 0.25*0.3 = 0.6; kappa 0.25 / 0.4.
    scores = Confusion(tn=65, fp=10, fn=5, tp=20).scores()
    assert set(scores) == KEYS
    assert scores["iou"] == pytest.approx(20 / 35)
    assert scores["f1"] == pytest.approx(40 / 55)
    assert scores["precision"] == pytest.approx(20 / 30)
    assert scores["recall"] == pytest.approx(0.8)
    assert scores["miou"] == pytest.approx((20 / 35 + 65 / 80) / 2)
    assert scores["accuracy"] == pytest.approx(0.85)
    assert scores["kappa"] == pytest.approx(0.625)


def test_absent_class_does_not_count() -> None:
    scores = Confusion(tn=10).scores()
    assert scores["miou"] == 1.0
    assert scores["accuracy"] == 1.0
    assert all(math.isnan(scores[key]) for key in ("iou", "f1", "precision", "recall", "kappa"))
    missed = Confusion(tn=8, fn=2).scores()
    assert missed["iou"] == missed["recall"] == missed["f1"] == 0.0
    assert math.isnan(missed["precision"])


def test_nothing_counted_is_nan_throughout() -> None:
    empty = confusion(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    assert empty == Confusion()
    assert all(math.isnan(value) for value in empty.scores().values())


def test_invalid_and_255_never_count() -> None:
    label = np.array([0, 1, 255, 1], np.uint8)
    pred = np.array([0, 255, 1, 1], np.uint8)  # 255 in a change map is nodata
    valid = np.array([False, True, True, True])
    assert confusion(pred, label, valid) == Confusion(tp=1)


def test_big_counts_do_not_overflow() -> None:
    n = 10**12  # kappa squares the total
    assert Confusion(tn=65 * n, fp=10 * n, fn=5 * n, tp=20 * n).scores()["kappa"] == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("pred", "label", "says"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), r"\(2, 2\), \(2, 3\)"),
        (np.full(3, 0.4), np.zeros(3), "pred value 0.4"),
        (np.zeros(3), np.full(3, 2), "label value 2"),
        (np.zeros(3), np.full(3, np.nan), "label value nan"),
    ],
)
def test_refuses_what_is_no_map(pred: np.ndarray, label: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        confusion(pred, label)
    assert "\n" not in str(caught.value)


def test_adds_only_to_its_own_kind() -> None:
    with pytest.raises(TypeError):
        Confusion() + 1  # type: ignore[operator]


maps = st.integers(0, 40).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.uint8, n, elements=st.sampled_from([0, 1])),
        hnp.arrays(np.uint8, n, elements=st.sampled_from([0, 1, 255])),
        hnp.arrays(bool, n),
    )
)


@given(maps, st.integers(0, 40))
def test_pooling_parts_is_counting_the_whole(three: tuple[np.ndarray, ...], cut: int) -> None:
    pred, label, valid = three
    whole = confusion(pred, label, valid)
    parts = [confusion(pred[s], label[s], valid[s]) for s in (slice(None, cut), slice(cut, None))]
    assert sum(parts, Confusion()) == whole
    assert whole.total == int((valid & (label != 255)).sum())


@given(maps)
def test_scores_stay_in_range_and_agree(three: tuple[np.ndarray, ...]) -> None:
    pred, label, valid = three
    scores = confusion(pred, label, valid).scores()
    for key, value in scores.items():
        assert math.isnan(value) or (-1 if key == "kappa" else 0) <= value <= 1
    if not math.isnan(scores["iou"]):
        assert scores["f1"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))


@given(maps)
def test_ignored_pixels_change_nothing(three: tuple[np.ndarray, ...]) -> None:
    pred, label, valid = three
    other = np.where(valid & (label != 255), pred, 1 - pred).astype(np.uint8)
    assert confusion(other, label, valid) == confusion(pred, label, valid)


def square(row: int, col: int, edge: int, size: int = 12) -> np.ndarray:
    out = np.zeros((size, size), np.uint8)
    out[row : row + edge, col : col + edge] = 1
    return out


def test_boundary_by_hand() -> None:
    # A 4 x 4 square has 12 boundary pixels. Here two of them, 3 columns apart.
    label, pred = square(4, 2, 4), square(4, 5, 4)
    # Columns of the label: 2, 3, 4, 5; of the map: 5, 6, 7, 8. Within 2 px of the other: 3, 4, 5 and 5, 6, 7.
    # Boundary pixels in these: top and bottom row of two columns, and the four of one column.
    assert boundary(pred, label) == Boundary(pred=12, pred_hits=8, label=12, label_hits=8)
    assert boundary(pred, label).f1 == pytest.approx(8 / 12)
    assert boundary(label, label).f1 == 1.0
    assert boundary(square(4, 4, 4), label, tolerance_px=2).f1 == 1.0  # 2 px aside


def test_distance_of_boundaries_is_euclidean() -> None:
    one, diagonal = square(4, 4, 1), square(6, 6, 1)  # 2.8 px apart
    assert boundary(one, diagonal).pred_hits == 0
    assert boundary(one, diagonal, tolerance_px=3).pred_hits == 1
    assert boundary(one, square(4, 6, 1)).pred_hits == 1


def test_edges_of_image_and_of_what_counts_are_no_boundary() -> None:
    label = np.ones((5, 6), np.uint8)
    assert boundary(label, label) == Boundary()
    assert math.isnan(Boundary().f1)
    label[:, 3:] = 255
    assert boundary(np.zeros_like(label), label) == Boundary()
    assert boundary(square(1, 1, 2), np.zeros((12, 12))).f1 == 0.0


def test_boundaries_of_a_batch_are_pooled_and_do_not_mix() -> None:
    label, pred = square(4, 2, 4), square(4, 5, 4)
    both = boundary(np.stack([pred, label]), np.stack([label, label]))
    assert both == boundary(pred, label) + boundary(label, label) == Boundary(24, 20, 24, 20)
    with pytest.raises(InputError, match=r"\(12, 12\) and \(2, 2\)"):
        boundary(pred, np.zeros((2, 2)))


def test_calibration_by_hand() -> None:
    # Two bins: 0.1 four times, one of them changed: |0.4 - 1| = 0.6; 0.96 and 1.0, both changed: |1.96 - 2| = 0.04.
    prob = np.array([0.1, 0.1, 0.1, 0.1, 0.96, 1.0, 0.5])
    label = np.array([0, 0, 0, 1, 1, 1, 255], np.uint8)
    found = calibration(prob, label)
    assert (sum(found.counts), sum(found.changed)) == (6, 3)
    assert found.counts[1] == 4
    assert found.counts[BINS - 1] == 2
    assert found.error == pytest.approx((0.6 + 0.04) / 6)
    halves = calibration(prob[:3], label[:3]) + calibration(prob[3:], label[3:])
    assert halves.error == pytest.approx(found.error)
    assert math.isnan(Calibration().error)


@pytest.mark.parametrize(("prob", "says"), [([0.5, 0.5], "shapes"), ([1.5], "not 0 to 1"), ([math.nan], "not 0 to 1")])
def test_calibration_refuses(prob: list[float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        calibration(np.array(prob), np.zeros(1))


@pytest.mark.parametrize("kind", [Boundary, Calibration])
def test_counts_add_only_to_their_own_kind(kind: type) -> None:
    with pytest.raises(TypeError):
        kind() + 1
