"""Every statistic against a second implementation, on inputs that are unkind.

Ties, constants, one sample, two classes, scores at the ends of float32, tails
and features of any scale. The second implementations count pairs and sets,
exactly, or take SciPy's root finder and sums without rounding.
"""

import fractions
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import optimize

from crosr_jax import metrics, scorer, types, weibull

_LARGEST = float(np.finfo(np.float32).max)
_LEAST = float(np.finfo(np.float32).smallest_subnormal)
# Few, so that they tie; neighbours, which a difference may lose.
_score = st.sampled_from(
  [
    *(0.0, -0.0, 1.0, float(np.nextafter(np.float32(1), np.float32(2)))),
    *(_LEAST, -_LEAST, _LARGEST, -_LARGEST, 1e20, -3.5),
  ]
)
_K = 2
_known = st.lists(
  st.tuples(_score, st.integers(0, _K - 1), st.integers(0, _K - 1)),
  min_size=1,
  max_size=8,
)
_unknown = st.lists(
  st.tuples(_score, st.integers(0, _K - 1)), min_size=1, max_size=8
)


def _mean(values):
  values = [fractions.Fraction(x) for x in values]
  return sum(values) / len(values)


def _average_precision(known, unknown):
  """Precision at each threshold, weighed by what recall it adds."""
  total, before = fractions.Fraction(0), 0
  for t in sorted({*known, *unknown}, reverse=True):
    found = sum(s >= t for s in unknown)
    wrong = sum(s >= t for s in known)
    if found > before:
      precision = fractions.Fraction(found, found + wrong)
      total += precision * (found - before) / len(unknown)
    before = found
  return total


def _threshold(known, share):
  """The least of the scores that keeps the share, by trying all."""
  return min(t for t in known if _mean(s <= t for s in known) >= share)


def _oscr(known, right, unknown):
  area, x, y = fractions.Fraction(0), fractions.Fraction(0), 0
  for t in sorted({*known, *unknown}):
    far = _mean(s <= t for s in unknown)
    ccr = _mean(bool(ok and s <= t) for s, ok in zip(known, right, strict=True))
    area, x, y = area + (far - x) * (ccr + y) / 2, far, ccr
  return area


def _f1(said, is_so):
  """2 TP / (2 TP + FP + FN) of two lists of bools; 0 where there is none."""
  both = sum(bool(x and y) for x, y in zip(said, is_so, strict=True))
  one = sum(bool(x) != y for x, y in zip(said, is_so, strict=True))
  return fractions.Fraction(2 * both, 2 * both + one) if both + one else 0


def _class_f1(predicted, truth):
  """Of each class, unknown last."""
  return [
    _f1([p == k for p in predicted], [t == k for t in truth])
    for k in (*range(_K), -1)
  ]


def _scores(rows, probability):
  column = probability.argmax(axis=1)
  return types.Scores(
    probability=probability,
    prediction=np.where(column == _K, -1, column).astype(np.int32),
    unknown_score=np.array([row[0] for row in rows], np.float32),
  )


@settings(max_examples=150)
@given(_known, _unknown, st.sampled_from([0.0, 1.0, _LARGEST]), st.data())
@example([(0.0, 0, 0)], [(0.0, 0)], 0.0, None)
@example([(_LARGEST, 0, 1)], [(-_LARGEST, 1)], 0.0, None)
@example([(_LEAST, 0, 0), (0.0, 1, 1)], [(0.0, 0), (_LEAST, 1)], 0.0, None)
def test_every_figure_of_a_report(known, unknown, threshold, draw):
  parts = [0, 0, 1]
  if draw is not None:
    parts = draw.draw(st.permutations([0, 1, 1]))
  # One half, twice in a row, or a sure thing.
  row = np.array(parts, np.float32) / sum(parts)
  of_known = np.tile(row, (len(known), 1))
  of_unknown = np.tile(row[::-1], (len(unknown), 1))
  label = np.array([k for _, k, _ in known])
  closed = [k for *_, k in known] + [k for _, k in unknown]
  a, b = _scores(known, of_known), _scores(unknown, of_unknown)
  found = metrics.evaluate(a, b, label, np.array(closed), threshold=threshold)
  s, u = ([float(x) for x in y.unknown_score] for y in (a, b))
  truth = [*label.tolist(), *([-1] * len(u))]

  def f1_at(t):
    rejected = [-1 if x > t else k for x, k in zip(s + u, closed, strict=True)]
    return _mean(_class_f1(rejected, truth))

  argmax = [*a.prediction.tolist(), *b.prediction.tolist()]
  f1 = _class_f1(argmax, truth)
  columns = np.vstack([of_known, of_unknown]).T >= 0.5
  half = [
    _f1(column, [t == k for t in truth])
    for k, column in zip((0, 1, -1), columns, strict=True)
  ]
  t95, t99 = (
    _threshold(s, fractions.Fraction(percent, 100)) for percent in (95, 99)
  )
  expected = {
    'auroc': _mean(
      fractions.Fraction((y > x) + (y >= x), 2) for x in s for y in u
    ),
    'aupr': _average_precision(s, u),
    'fpr95': _mean(y <= t95 for y in u),
    'fpr99': _mean(y <= t99 for y in u),
    'oscr': _oscr(s, [p == t for p, t in zip(closed, label, strict=False)], u),
    'macro_f1_tpr95': f1_at(threshold),
    'macro_f1_tpr95_test': f1_at(t95),
    'macro_f1': _mean(f1),
    'macro_f1_half': _mean(half),
  }
  for name, value in expected.items():
    assert found[name] == pytest.approx(float(value), abs=1e-12), name
  assert found['class_f1'] == pytest.approx([float(x) for x in f1], abs=1e-12)
  counted = [
    [
      sum(p == c and t == r for p, t in zip(argmax, truth, strict=True))
      for c in (0, 1, -1)
    ]
    for r in (0, 1, -1)
  ]
  assert found['confusion'] == counted


@settings(max_examples=100)
@given(
  st.lists(st.integers(0, 40), min_size=2, max_size=40),
  st.sampled_from([1e-6, 1e-3, 1.0, 1e6, 1e30, 1e150, 1e300]),
  st.sampled_from([0.0, 1.0, 1e3]),
)
@example([0, 1], 1.0, 0.0)
@example([0, 0, 0, 0, 0, 1], 1e150, 0.0)
@example([0, 40, 40, 40, 40, 40], 1e-6, 1e3)
def test_tails_by_a_root_finder(steps, unit, offset):
  """Of any unit, with ties, down to two different distances."""
  tail = offset + unit * np.array(steps, np.float64)
  v = np.log1p(tail - tail.min())
  assume(v.max() > 1e-7)
  shape, loc, scale = (
    x[0] for x in weibull.fit_tails([tail], tail_size=len(tail))
  )

  def slope(log_shape):
    # Of the likelihood that has its best scale put in.
    c = math.exp(log_shape)
    power = np.exp(c * (v - v.max()))
    return 1 / c + math.fsum(v) / len(v) - math.fsum(power * v) / math.fsum(
      power
    )  # fmt: skip

  c = math.exp(optimize.brentq(slope, -10, 40, xtol=1e-14))
  assert shape == pytest.approx(c, rel=1e-6)
  assert loc == pytest.approx(tail.min() - 1, rel=1e-12, abs=1e-12)
  log_scale = v.max() + np.log(np.mean(np.exp(c * (v - v.max())))) / c
  assert np.log(scale) == pytest.approx(log_scale, rel=1e-7, abs=1e-12)


@settings(max_examples=60)
@example(404, 1e6, 0.0)
@given(
  st.integers(0, 1000),
  st.sampled_from([1e-30, 1e-12, 1.0, 1e6, 1e15]),
  st.sampled_from([0.0, 1e3, -1e6]),
)
def test_class_means_without_rounding(seed, unit, offset):
  """Two classes, one of a single sample more than its tail needs."""
  rng = np.random.default_rng(seed)
  label = np.array([0] * 3 + [1] * 30)
  logits = rng.normal(size=(33, 2)) + offset
  logits[np.arange(33), label] += 50
  latent = rng.normal(size=(33, 2)) + offset
  features = types.Features(logits * unit, latent * unit, label)
  fitted = weibull.fit(features, vector='joint', scaling='none', tail_size=3)
  a = np.concatenate([features.logits, features.latent], axis=1)
  for k in range(2):
    own = a[label == k]
    mean = [math.fsum(column) / len(own) for column in own.T]
    np.testing.assert_allclose(
      fitted.mav[k], mean, rtol=1e-14, atol=1e-14 * unit
    )


def _crosr(logits, distance, fitted):
  """One sample, in Python's own floats: p of K + 1, and the log-odds."""
  top = max(logits)
  power = [math.exp(y - top) for y in logits]
  closed = [p / math.fsum(power) for p in power]
  known, unknown = [], []
  for k, p in enumerate(closed):
    z = max((distance[k] - fitted.loc[k]) / fitted.scale[k], 0.0)
    t = z ** fitted.shape[k]
    known.append(p * math.exp(-t))
    unknown.append(p * -math.expm1(-t))
  return [*known, math.fsum(unknown)]


@settings(max_examples=60)
@given(
  st.integers(0, 1000),
  st.sampled_from([1e-12, 1e-3, 1.0, 1e3, 1e12]),
  st.sampled_from([0, 1, 80]),
)
def test_scores_of_one_sample_of_two_classes(seed, unit, ties):
  """The codes of any unit; logits that tie, or one far above the other."""
  rng = np.random.default_rng(seed)
  mav = rng.normal(size=(2, 5)) * unit
  fitted = types.WeibullModel(
    vector='joint',
    feature_scale=np.ones(5),
    mav=mav,
    shape=rng.uniform(0.5, 5.0, 2),
    loc=np.array([-1.0, 0.5]) * unit,
    scale=rng.uniform(0.5, 2.0, 2) * unit,
    tail_count=np.full(2, 20),
    dead=np.zeros(5, bool),
  )
  a = (rng.normal(size=5) * unit).astype(np.float32)
  a[:2] = a[0] + np.float32(unit * ties) * np.arange(2, dtype=np.float32)
  features = types.Features(a[None, :2], a[None, 2:], np.zeros(1, np.int32))
  found = scorer.score(features, fitted)
  distance = [math.dist(a.astype(float), row) for row in mav]
  expected = _crosr([float(y) for y in a[:2]], distance, fitted)
  np.testing.assert_allclose(found.probability[0], expected, atol=2e-5)
  assert np.isfinite(found.unknown_score).all()
  if 1e-6 < expected[2] < 1 - 1e-6:
    log_odds = math.log(expected[2] / math.fsum(expected[:2]))
    np.testing.assert_allclose(
      found.unknown_score[0], log_odds, rtol=1e-3, atol=1e-3
    )
