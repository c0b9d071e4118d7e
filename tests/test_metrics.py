"""Figures by hand, by brute force, and their laws."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosr_jax import metrics, types

_scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30)


def _oscr_by_hand(known, unknown, correct):
  """Every threshold in turn, O(n^2)."""
  curve = [(0.0, 0.0)]
  for t in sorted({*known, *unknown}):
    ccr = np.mean([c and s <= t for s, c in zip(known, correct, strict=True)])
    curve.append((np.mean([s <= t for s in unknown]), ccr))
  return sum(
    (x1 - x0) * (y0 + y1) / 2
    for (x0, y0), (x1, y1) in itertools.pairwise(curve)
  )


@given(_scores, _scores)
def test_auroc_is_the_share_of_ordered_pairs(known, unknown):
  pairs = [(b > a) + (b == a) / 2 for a in known for b in unknown]
  found = metrics.auroc(np.array(known), np.array(unknown))
  np.testing.assert_allclose(found, np.mean(pairs))


def test_perfect_separation_and_its_opposite():
  known, unknown = np.arange(10.0), np.arange(10.0) + 20
  correct = np.ones(10, bool)
  assert metrics.auroc(known, unknown) == 1
  assert metrics.auroc(-known, -unknown) == 0
  np.testing.assert_allclose(metrics.aupr(known, unknown), 1)
  assert metrics.fpr_at_tpr(known, unknown) == 0
  assert metrics.fpr_at_tpr(-known, -unknown) == 1
  assert metrics.oscr(known, unknown, correct) == 1
  assert metrics.oscr(-known, -unknown, correct) == 0


@given(_scores, _scores, st.integers(0, 2**30))
def test_oscr_equals_brute_force(known, unknown, bits):
  correct = np.array([bits >> i & 1 for i in range(len(known))], bool)
  found = metrics.oscr(np.array(known), np.array(unknown), correct)
  np.testing.assert_allclose(found, _oscr_by_hand(known, unknown, correct))


def test_oscr_of_a_constant_is_half_the_accuracy():
  correct = np.array([True, True, True, False])
  assert metrics.oscr(np.zeros(4), np.zeros(7), correct) == 0.375


def test_ceiling_by_hand():
  # Class 0: 2 of 3 found, nothing else; class 1: found, and one of class 0.
  closed, label = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
  found = metrics.ceiling_f1(closed, label, 7, 2)
  assert found == pytest.approx((0.8 + 2 / 3 + 1) / 3)
  assert metrics.ceiling_f1(np.arange(3), np.arange(3), 5, 3) == 1


@pytest.mark.parametrize('missing', range(3))
def test_the_ceiling_counts_classes_as_macro_f1_does(missing):
  label = np.repeat(np.delete(np.arange(3), missing), 50)
  # Two of three classes, and unknown.
  assert metrics.ceiling_f1(label, label, 100, 3) == pytest.approx(3 / 4)


def test_thresholds_keep_the_share():
  known = np.arange(100.0)
  assert metrics.threshold_at_tpr(known) == 94
  assert np.mean(known <= metrics.threshold_at_tpr(known)) == 0.95
  assert metrics.threshold_at_tpr(np.array([3.0])) == 3
  assert metrics.threshold_at_tpr(known, 1.0) == 99
  with pytest.raises(ValueError, match=r'data\.calibrate_share'):
    metrics.threshold_at_tpr(np.zeros(0))


def test_scores_that_are_not_finite_are_told():
  known, unknown = np.array([1.0, np.nan, 3.0]), np.ones(3)
  for call in (
    lambda: metrics.threshold_at_tpr(known),
    lambda: metrics.fpr_at_tpr(known, unknown),
    lambda: metrics.fpr_at_tpr(unknown, known),
    lambda: metrics.oscr(known, unknown, np.ones(3)),
  ):
    with pytest.raises(types.UserError, match=r'1 of \d unknown scores are'):
      call()


def test_lists_are_as_arrays():
  probability, label = np.eye(4)[[0, 1, 2, 3, 3]], [0, 1, 2, -1, -1]
  assert metrics.macro_f1_half(probability.tolist(), label) == 1
  assert metrics.fpr_at_tpr([1, 2], [0, 5]) == 0.5
  assert metrics.reject([0, 1], [1.0, 3.0], 2.0).tolist() == [0, -1]


@given(_scores)
def test_threshold_is_the_smallest_that_keeps_it(known):
  known = np.array(known)
  t = metrics.threshold_at_tpr(known)
  assert np.mean(known <= t) >= 0.95
  assert np.mean(known < t) < 0.95


def test_openness():
  assert metrics.openness(10, 0) == 0
  # 6 known, 4 unknown: 1 - sqrt(12 / 16).
  np.testing.assert_allclose(metrics.openness(6, 4), 0.1339746, rtol=1e-6)


def test_macro_f1_by_hand():
  # Class 0: 2 right, 1 missed; class 1: never said; unknown: 1 of 2, 1 wrong.
  label = np.array([0, 0, 0, -1, -1])
  prediction = np.array([0, 0, -1, -1, 0])
  np.testing.assert_allclose(
    metrics.class_f1(prediction, label, 2), [2 / 3, 0, 0.5]
  )
  np.testing.assert_allclose(
    metrics.macro_f1(prediction, label, 2), (2 / 3 + 0 + 0.5) / 3
  )
  np.testing.assert_array_equal(
    metrics.confusion(prediction, label, 2), [[2, 0, 1], [0, 0, 0], [1, 0, 1]]
  )


def test_half_reading_by_hand():
  # The second sample is in no class at all: argmax would give it class 1.
  probability = np.array([[0.6, 0.2, 0.2], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]])
  label = np.array([0, 1, -1])
  np.testing.assert_allclose(metrics.macro_f1_half(probability, label), 2 / 3)
  probability[1] = [0.5, 0.5, 0.0]  # in both: right once, wrong once
  np.testing.assert_allclose(
    metrics.macro_f1_half(probability, label), (2 / 3 + 1 + 1) / 3
  )


def test_rejected_samples_are_unknown():
  found = metrics.reject(np.array([3, 1, 0]), np.array([0.1, 0.5, 0.9]), 0.5)
  assert list(found) == [3, 1, -1]


def _scores_of(generator, n, unknown):
  probability = generator.dirichlet([1, 1, 1, 3 if unknown else 0.5], n)
  column = probability.argmax(1)
  return types.Scores(
    probability.astype(np.float32),
    np.where(column == 3, -1, column).astype(np.int32),
    np.log(probability[:, 3] / (1 - probability[:, 3])),
  )


def test_evaluate_gives_every_reading(generator):
  known, unknown = (_scores_of(generator, 50, u) for u in (False, True))
  label = generator.integers(0, 3, 50)
  closed = np.append(label, np.zeros(50, int))
  closed[0] = (label[0] + 1) % 3
  found = metrics.evaluate(known, unknown, label, closed, threshold=0.0)
  truth = np.append(label, np.full(50, -1))
  prediction = np.append(known.prediction, unknown.prediction)
  score = np.append(known.unknown_score, unknown.unknown_score)
  assert found['macro_f1'] == metrics.macro_f1(prediction, truth, 3)
  assert found['macro_f1_tpr95'] == metrics.macro_f1(
    np.where(score > 0, -1, closed), truth, 3
  )
  t = metrics.threshold_at_tpr(known.unknown_score)
  assert found['macro_f1_tpr95_test'] == metrics.macro_f1(
    np.where(score > t, -1, closed), truth, 3
  )
  assert found['oscr'] < found['auroc'] < 1
  assert np.sum(found['confusion']) == 100
  assert len(found['class_f1']) == 4


def test_scores_that_are_no_probability_have_no_argmax(generator):
  known, unknown = (_scores_of(generator, 50, u) for u in (False, True))
  found = metrics.evaluate(
    known,
    unknown,
    np.zeros(50, int),
    np.zeros(100, int),
    threshold=0.0,
    is_probability=False,
  )
  assert found['macro_f1'] is None
  assert found['macro_f1_half'] is None
  assert 'confusion' not in found


def test_scores_must_be_finite(generator):
  known, unknown = (_scores_of(generator, 5, u) for u in (False, True))
  unknown.unknown_score[2] = np.inf
  with pytest.raises(ValueError, match='1 of 10 unknown scores'):
    metrics.evaluate(
      known, unknown, np.zeros(5, int), np.zeros(10, int), threshold=0.0
    )


def test_trivial_statistics():
  dark = np.zeros((20, 4, 4, 1), np.uint8)
  dark[:, 0, 0] = np.arange(20)[:, None]
  checked = np.tile(
    np.array([[0, 255], [255, 0]], np.uint8), (20, 2, 2, 1)[:3]
  )[..., None]
  found = metrics.trivial(dark, checked)
  assert found['mean_pixel']['auroc'] == 1
  assert found['total_variation']['auroc'] == 1
  # Either direction counts: someone who has seen the unknowns can pick it.
  assert metrics.trivial(checked, dark) == found
  assert metrics.trivial(dark, dark)['max_pixel']['auroc'] == 0.5
