"""Fits against LibMR, SciPy, 50-digit arithmetic and plain NumPy."""

import concurrent.futures
import itertools
import json
import threading
import time
import warnings

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from crosr_jax import blocks, scorer, types, vectors, weibull

_LIBMR = GOLDEN / 'libmr.json'


def _golden(valid):
  if not _LIBMR.exists():
    return []
  cases = json.loads(_LIBMR.read_text())['cases']
  return [
    pytest.param(case, id=case['name'])
    for case in cases
    if case['name'].startswith('EDGE') != valid
  ]


def _features(generator, n=400, k=4, width=6, spread=1.0):
  """Features of a net that is right about most of its samples."""
  label = generator.integers(0, k, n).astype(np.int32)
  logits = generator.normal(size=(n, k)) + 4 * np.eye(k)[label]
  latent = generator.gamma(2.0, spread, (n, width)) * (1 + label[:, None])
  return types.Features(
    logits.astype(np.float32), latent.astype(np.float32), label
  )


@pytest.mark.skipif(not _LIBMR.exists(), reason='golden/libmr.json is not here')
@pytest.mark.parametrize('case', _golden(valid=True))
def test_equals_libmr(case):
  sign = -1 if case.get('fit') == 'fit_low' else 1
  values = sign * np.array(case['values'])
  translate = case.get('ctor', {}).get('translate_amount', 1)
  shape, loc, scale = weibull.fit_tails(
    [values], tail_size=case['tail_size'], translate=translate
  )
  exact = case.get('exact_mle_on_translated_tail', case['libmr'])
  np.testing.assert_allclose(shape, exact['shape'], rtol=1e-5)
  np.testing.assert_allclose(scale, exact['scale'], rtol=1e-5)
  point, w = np.array(case['libmr']['w_score']).T
  found = weibull.cdf(sign * point[:, None], shape, loc, scale)[:, 0]
  np.testing.assert_allclose(found, w, atol=2e-6)


@pytest.mark.skipif(not _LIBMR.exists(), reason='golden/libmr.json is not here')
@pytest.mark.parametrize('case', _golden(valid=False))
def test_what_libmr_fails_on_raises_or_warns(case):
  if case['name'] == 'EDGE_tail_gt_n':
    with pytest.warns(UserWarning, match=r'a tail of 20 .* 0 \(3\)'):
      fitted = weibull.fit_tails([case['values']], tail_size=20)
    assert np.isfinite(fitted).all()
  else:
    with pytest.raises(ValueError, match=r'class 0|tail_size'):
      weibull.fit_tails([case['values']], tail_size=case['tail_size'])


def test_equals_scipy(generator):
  distances = generator.gamma(5.0, size=(5, 300))
  shape, loc, scale = weibull.fit_tails(distances, tail_size=50)
  for k in range(5):
    tail = np.sort(distances[k])[-50:]
    expected = stats.weibull_min.fit(tail - tail[0] + 1, floc=0)
    np.testing.assert_allclose(
      (shape[k], loc[k], scale[k]),
      (expected[0], tail[0] - 1, expected[2]),
      rtol=1e-4,
    )
    np.testing.assert_allclose(
      weibull.cdf(tail[:, None], shape[k], loc[k], scale[k])[:, 0],
      stats.weibull_min.cdf(tail, shape[k], loc[k], scale[k]),
      atol=1e-12,
    )


@settings(max_examples=60)
@given(
  seed=st.integers(0, 10_000),
  size=st.integers(2, 60),
  unit=st.sampled_from([1e-9, 1e-3, 1.0, 1e6]),
  power=st.sampled_from([0.3, 1.0, 4.0]),
)
def test_is_the_top_of_the_likelihood(seed, size, unit, power):
  # The score of the log-likelihood vanishes at the fit, in both parameters.
  raw = np.random.default_rng(seed).exponential(size=size) ** power
  assert raw.min() < raw.max()
  shape, _, scale = (
    x[0] for x in weibull.fit_tails([raw * unit], tail_size=size)
  )
  log_v = np.log1p(raw * unit - (raw * unit).min())
  power_v = np.exp(shape * (log_v - np.log(scale)))
  # A scale of 1 + 1e-9 itself has 7 digits beyond the 1.
  digits = 1e-8 + 4e-16 * shape
  np.testing.assert_allclose(power_v.mean(), 1, rtol=digits)
  slope = 1 / shape + log_v.mean() - (power_v * log_v).mean()
  assert abs(slope) * shape < 4 * digits


def test_ragged_and_rectangular_agree(generator):
  distances = generator.gamma(5.0, size=(3, 100))
  alone = [weibull.fit_tails([row], tail_size=20) for row in distances]
  together = weibull.fit_tails(distances, tail_size=20)
  ragged = weibull.fit_tails(
    [*distances, generator.gamma(5.0, size=40)], tail_size=20
  )
  np.testing.assert_allclose(together, np.concatenate(alone, 1), rtol=1e-13)
  np.testing.assert_allclose(np.array(ragged)[:, :3], together, rtol=1e-13)


def test_rows_of_an_array_of_objects(generator):
  """As MATLAB's files and np.load give arrays of other lengths."""
  rows = [generator.gamma(5.0, size=n) for n in (30, 50)]
  objects = np.empty(2, object)
  objects[:] = rows
  np.testing.assert_array_equal(
    weibull.fit_tails(objects, tail_size=20),
    weibull.fit_tails(rows, tail_size=20),
  )


def test_distances_that_no_tail_has(generator):
  rows = generator.gamma(5.0, size=(2, 30))
  masked = np.ma.masked_greater(rows, np.sort(rows[1])[-3])
  for distances in (masked, list(masked)):
    with pytest.raises(types.UsageError, match='values are masked'):
      weibull.fit_tails(distances, tail_size=20)
  rows[1, :2] = -1e308, 1e308
  with pytest.raises(types.UserError, match=r'class 1: from -1e\+308 to'):
    weibull.fit_tails(rows, tail_size=30)


def test_no_advice_on_a_tail_that_cannot_be_fitted():
  """Of one-hot logits: that they are far from 0 is not what is wrong."""
  label = np.arange(300) % 3
  same = types.Features(6 * np.eye(3)[label], np.zeros((300, 0)), label)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    with pytest.raises(types.UserError, match='of its tail all equal 0'):
      weibull.fit(same, vector='logits', tail_size=20)


def test_order_and_small_values_do_not_matter(generator):
  distances = generator.gamma(5.0, size=100)
  shuffled = generator.permutation(distances)
  shuffled[np.argsort(shuffled)[:50]] *= 0.5
  np.testing.assert_array_equal(
    weibull.fit_tails([distances], tail_size=20),
    weibull.fit_tails([shuffled], tail_size=20),
  )


def test_a_share_of_too_small_a_class_warns():
  with pytest.warns(UserWarning, match=r'a tail of 20 .*: 1 \(12\)'):
    weibull.fit_tails([np.arange(400.0), np.arange(12.0)], tail_share=0.05)


@pytest.mark.filterwarnings('ignore:a tail of 20')
@pytest.mark.parametrize(
  ('count', 'share', 'expected'),
  [(400, 0.05, 20), (401, 0.05, 21), (1000, 0.05, 50), (100, 0.05, 20),
   (15, 0.05, 15), (100, 1.0, 100)],
)  # fmt: skip
def test_share_of_a_class(generator, count, share, expected):
  distances = generator.gamma(5.0, size=count)
  np.testing.assert_array_equal(
    weibull.fit_tails([distances], tail_share=share),
    weibull.fit_tails([distances], tail_size=expected),
  )


@pytest.mark.parametrize(
  ('distances', 'fields', 'message'),
  [
    ([[1.0, 2.0, np.nan]], {'tail_size': 2}, 'class 0.*1 of 3.*not finite'),
    ([[1.0, 2.0], [np.inf, 1.0]], {'tail_size': 2}, 'class 1.*not finite'),
    ([[1.0, 2.0], [-np.inf, 1.0, 2.0]], {'tail_size': 2}, 'class 1'),
    ([[1.0, 2.0], []], {'tail_size': 2}, 'class 1: 0 .*at least 2'),
    ([[1.0, 2.0], [3.0]], {'tail_size': 2}, 'class 1: 1 .*at least 2'),
    ([[0.0, 2.0, 2.0]], {'tail_size': 2}, 'class 0.*all equal 2'),
    ([], {'tail_size': 2}, 'no class'),
    ([[1.0, 2.0]], {'tail_size': 1}, 'at least 2, got 1'),
    ([[1.0, 2.0]], {'tail_size': -3}, 'at least 2, got -3'),
    ([[1.0, 2.0]], {'tail_size': 2.0}, 'whole number.*got 2.0'),
    ([[1.0, 2.0]], {'tail_size': float('nan')}, 'whole number.*got nan'),
    ([[1.0, 2.0]], {'tail_share': 1.5}, r'in \(0, 1\], got 1.5'),
    ([[1.0, 2.0]], {'tail_share': float('nan')}, r'in \(0, 1\], got nan'),
    ([[1.0, 2.0]], {}, 'either tail_size or tail_share'),
    ([[1.0, 2.0]], {'tail_size': 2, 'tail_share': 0.1}, 'either'),
    ([[1.0, 2.0]], {'tail_size': 2, 'translate': 0.0}, 'translate'),
  ],
)
def test_never_a_silent_fit(distances, fields, message):
  with pytest.raises(ValueError, match=message):
    weibull.fit_tails(distances, **fields)


def _reference(features, scaling):
  """MAVs and scales in plain NumPy, one class at a time."""
  a = np.concatenate([features.logits, features.latent], 1).astype(np.float64)
  right = features.logits.argmax(1) == features.label
  k = features.logits.shape[1]
  a, label = a[right], features.label[right]
  mav = np.array([a[label == i].mean(0) for i in range(k)])
  scale = {
    'none': np.ones(a.shape[1]),
    'std': a.std(0),
    'within_class': np.sqrt(np.mean((a - mav[label]) ** 2, axis=0)),
  }[scaling]
  distance = np.linalg.norm((a - mav[label]) / scale, axis=1)
  return mav, scale, [distance[label == i] for i in range(k)]


@pytest.mark.parametrize('scaling', weibull.SCALINGS)
def test_fit_equals_plain_numpy(generator, scaling):
  features = _features(generator)
  fitted = weibull.fit(features, scaling=scaling, tail_size=20)
  mav, scale, distances = _reference(features, scaling)
  np.testing.assert_allclose(fitted.mav, mav, rtol=1e-12)
  np.testing.assert_allclose(fitted.feature_scale, scale, rtol=1e-12)
  expected = weibull.fit_tails(distances, tail_size=20)
  np.testing.assert_allclose(fitted[3:6], expected, rtol=1e-9)
  np.testing.assert_array_equal(fitted.tail_count, 20)
  assert not fitted.dead.any()


@pytest.mark.parametrize('block', [1, 37, 1000])
@pytest.mark.parametrize('piece', [64, blocks._PIECE])
@pytest.mark.parametrize('offset', [0.0, 1e4])
def test_stream_equals_memory(generator, monkeypatch, block, piece, offset):
  features = _features(generator)
  if offset:
    # What float32 does not hold, far from 0; the first samples are all wrong.
    logits, latent = (1.1 * x.astype(float) + offset for x in features[:2])
    logits[:40] = -logits[:40]
    features = features._replace(logits=logits, latent=latent)
  parts = [
    types.Features(*(x[i : i + block] for x in features[:3]))
    for i in range(0, len(features.label), block)
  ]
  fields = {'scaling': 'within_class', 'tail_share': 0.2}
  whole = weibull.fit(features, **fields)
  monkeypatch.setattr(blocks, '_PIECE', piece)
  stream = weibull.fit_stream(lambda: parts, **fields)
  for a, b in zip(whole[1:], stream[1:], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('label', [0, -1])
def test_what_is_wrong_must_be_finite_too(generator, bad, label):
  features = _features(generator)
  features.logits[7], features.label[7] = np.arange(4), label
  features.latent[7, 2] = bad
  with pytest.raises(types.UserError, match='1 of 4000 values are not finite'):
    weibull.fit(features, tail_size=20)
  held_out = {'tail_features': features, 'tail_size': 20}
  with pytest.raises(types.UserError, match='1 of 4000 values are not finite'):
    weibull.fit(_features(generator), **held_out)


def _together(parts, **fields):
  """What each of several threads fits of its blocks, as processes would."""
  table, met = [None] * len(parts), threading.Barrier(len(parts), timeout=60)

  def fit(i):
    def everyone(rows):
      table[i] = rows.copy()
      met.wait()
      found = list(table)
      met.wait()
      return found

    return weibull.fit_stream(lambda: parts[i], everyone=everyone, **fields)

  with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:
    return list(threads.map(fit, range(len(parts))))


def _cut(features, *ends):
  """A block each; of no row where two ends are the same."""
  return [
    [types.Features(*(x[a:b] for x in features))]
    for a, b in itertools.pairwise([0, *ends, len(features.label)])
  ]


@pytest.mark.parametrize('vector', weibull.VECTORS)
@pytest.mark.parametrize('scaling', weibull.SCALINGS)
def test_parts_of_several_processes_are_the_whole(generator, vector, scaling):
  features = _features(generator)
  error = generator.uniform(0.1, 1, len(features.label))
  features = features._replace(reconstruction_error=error)
  fields = {'vector': vector, 'scaling': scaling, 'tail_share': 0.2}
  whole = weibull.fit(features, **fields)
  # Uneven; the second has no sample, the last no block.
  found = _together([*_cut(features, 17, 17, 101), []], **fields)
  for field, a, b in zip(whole._fields, whole, found[0], strict=True):
    if field in ('shape', 'loc', 'scale'):
      # Newton's last digits.
      np.testing.assert_allclose(a, b, rtol=1e-9, err_msg=field)
    elif field != 'vector':
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=field)
  # All of them have the same, bit for bit.
  for other in found[1:]:
    for a, b in zip(found[0], other, strict=True):
      np.testing.assert_array_equal(a, b)


def test_tails_of_several_processes_are_bit_equal(generator):
  """Of numbers whose sums are exact."""
  # Powers of two of each class and in each part, so that means are dyadic too.
  label = np.repeat(np.arange(4), 64)[generator.permutation(256)]
  features = types.Features(
    100.0 * np.eye(4)[label],
    generator.integers(-64, 64, (256, 3)) / 8.0,
    label,
  )
  whole = weibull.fit(features, tail_size=20)
  for other in _together(_cut(features, 32, 96, 128), tail_size=20):
    for a, b in zip(whole, other, strict=True):
      np.testing.assert_array_equal(a, b)


def test_processes_with_other_features_are_an_error(generator):
  features = _features(generator)
  narrow = features._replace(latent=features.latent[:, :-1])
  with pytest.raises(types.UsageError, match='features of the processes diff'):
    _together([[features], [narrow]], tail_size=20)
  with pytest.raises(types.UserError, match='no sample'):
    _together([[], []], tail_size=20)


def test_large_offsets_keep_their_digits(generator):
  features = _features(generator)
  shifted = features._replace(latent=features.latent.astype(np.float64) + 1e8)
  a = weibull.fit(features, scaling='within_class', tail_size=20)
  with pytest.warns(UserWarning, match='so far from 0 that float32'):
    b = weibull.fit(shifted, scaling='within_class', tail_size=20)
  np.testing.assert_allclose(a.feature_scale, b.feature_scale, rtol=1e-6)
  np.testing.assert_allclose(a.shape, b.shape, rtol=1e-4)


@pytest.mark.parametrize('vector', ['joint', 'evidence'])
@pytest.mark.parametrize('scaling', ['none', 'within_class'])
def test_far_from_0_warns_before_scores_are_wrong(generator, vector, scaling):
  def scores(offset):
    a, b = (
      x._replace(latent=x.latent.astype(np.float64) + offset)
      for x in (train, test)
    )
    fitted = weibull.fit(a, vector=vector, scaling=scaling, tail_size=20)
    return scorer.distances(b, fitted)

  train, test = _features(generator), _features(generator)
  expected = scores(0.0)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    np.testing.assert_allclose(scores(1e5), expected, rtol=0.05, atol=0.05)
  with pytest.warns(UserWarning, match=r'so far from 0.*class 0 and 3 more'):
    scores(1e8)


def test_wrong_and_unknown_samples_are_left_out(generator):
  features = _features(generator)
  wrong = features.logits.argmax(1) != features.label
  assert wrong.any()
  poisoned = features._replace(latent=features.latent.copy())
  poisoned.latent[wrong] = 1e6
  poisoned.label[wrong] = -1
  kept = types.Features(*(x[~wrong] for x in features[:3]))
  np.testing.assert_allclose(
    weibull.fit(poisoned, tail_size=20).mav,
    weibull.fit(kept, tail_size=20).mav,
  )


def test_dead_coordinates_cannot_decide_alone(generator):
  features = _features(generator)
  features.latent[:, 2] = 0.25
  fitted = weibull.fit(features, scaling='within_class', tail_size=20)
  k = fitted.mav.shape[0]
  assert list(np.flatnonzero(fitted.dead)) == [k + 2]
  # Moved by one deviation of its block, it adds 1 to a squared distance, as
  # any other coordinate would; floored at 1e-3 it would add a million.
  _, scale, _ = _reference(features, 'std')
  others = np.delete(scale[k:], 2)
  np.testing.assert_allclose(
    fitted.feature_scale[k + 2], np.median(others), rtol=1e-9
  )


@pytest.mark.parametrize('constant', [1 / 3, 1e9 / 7])
def test_constants_are_dead_whatever_rounding_makes_of_them(
  generator, constant
):
  features = _features(generator)
  still = np.full((len(features.label), 9), constant)
  wider = features._replace(latent=np.hstack([features.latent, still]))
  a, b = (
    weibull.fit(x, scaling='std', tail_size=20) for x in (features, wider)
  )
  assert not b.dead[:10].any() and b.dead[10:].all()
  np.testing.assert_allclose(b.feature_scale[:10], a.feature_scale, rtol=1e-6)
  np.testing.assert_allclose(
    b.feature_scale[10:], np.median(a.feature_scale[4:]), rtol=1e-6
  )


def test_one_wild_coordinate_does_not_silence_its_block(generator):
  features = _features(generator)
  features.latent[:, 1] *= 1e5
  fitted = weibull.fit(features, scaling='within_class', tail_size=20)
  assert not fitted.dead.any()


def test_a_block_that_never_moves(generator):
  features = _features(generator)
  features.latent[:] = 0.0
  fitted = weibull.fit(features, scaling='std', tail_size=20)
  assert fitted.dead[4:].all()
  # It has no unit of its own, and takes that of the logits.
  np.testing.assert_allclose(
    fitted.feature_scale[4:], np.median(fitted.feature_scale[:4])
  )


def test_lists_will_do(generator):
  features = _features(generator)
  lists = types.Features(*(x.tolist() for x in features[:3]))
  for a, b in zip(
    weibull.fit(lists, tail_size=20)[1:],
    weibull.fit(features, tail_size=20)[1:],
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_no_latent_is_logits_alone(generator):
  features = _features(generator, width=0)
  joint = weibull.fit(features, vector='joint', tail_size=20)
  logits = weibull.fit(features, vector='logits', tail_size=20)
  np.testing.assert_array_equal(joint.shape, logits.shape)


def test_class_without_correct_samples_is_named(generator):
  features = _features(generator)
  features.logits[features.label == 2, 2] = -100
  with pytest.raises(ValueError, match=r'class pear: 0 correctly.*at least 3'):
    weibull.fit(
      features, tail_size=20, class_names=['fig', 'kiwi', 'pear', 'plum']
    )


def test_short_classes_warn_by_name(generator):
  features = _features(generator, n=60)
  with pytest.warns(UserWarning, match=r'a tail of 50 .*fig \(\d+\)'):
    weibull.fit(
      features, tail_size=50, class_names=['fig', 'kiwi', 'pear', 'plum']
    )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'label': np.zeros(3, np.int32)}, 'one row per sample'),
    ({'label': np.full(400, 9, np.int32)}, 'label 9 is out of range'),
    ({'label': np.full(400, np.nan)}, 'label of sample 0 is nan'),
    ({'label': np.arange(400) / 399}, r'label of sample 1 is 0\.0025'),
    ({'label': np.full(400, 'fig')}, 'labels must be numbers.*<U3'),
    ({'latent': np.full((400, 6), 1j)}, 'latent must be real.*complex128'),
    ({'logits': np.full((400, 4), 'x')}, 'logits must be real numbers.*<U1'),
    (
      {'logits': np.ma.masked_less(np.arange(1600.0).reshape(400, 4), 3)},
      'logits: 3 values are masked',
    ),
    ({'logits': np.zeros((400, 1))}, 'label|at least 2 classes'),
    ({'latent': np.zeros(400)}, 'latent \\[N, L\\]'),
    ({'latent': np.full((400, 6), np.nan)}, '2400 of 4000.*not finite'),
  ],
)
def test_bad_features(generator, change, message):
  with pytest.raises(ValueError, match=message):
    weibull.fit(_features(generator)._replace(**change), tail_size=20)


@pytest.mark.parametrize('vector', weibull.VECTORS[1:])
def test_a_sample_that_is_too_large_is_told_by_its_class(generator, vector):
  features = _features(generator)
  row = np.flatnonzero(features.label == 2)[1]
  # Which a float64 holds, and its square not.
  latent = features.latent.astype(np.float64)
  latent[row] = 1e200
  logits = np.eye(4)[features.label]
  large = features._replace(logits=logits, latent=latent)
  with (
    np.errstate(over='ignore', invalid='ignore'),
    pytest.raises(types.UserError, match=r'class \d: a distance is not finite'),
  ):
    weibull.fit(large, vector=vector, tail_size=20)


def test_names_of_other_classes(generator):
  with pytest.raises(types.UsageError, match=r'the 4 classes.*2 names'):
    weibull.fit(_features(generator), tail_size=20, class_names=['a', 'b'])


def test_unknown_choices_suggest(generator):
  with pytest.raises(ValueError, match="did you mean 'within_class'"):
    weibull.fit(_features(generator), scaling='withinclass', tail_size=20)
  with pytest.raises(ValueError, match='vector must be one of logits, joint'):
    weibull.fit(_features(generator), vector='z', tail_size=20)


def test_empty_stream():
  with pytest.raises(ValueError, match='no features'):
    weibull.fit_stream(lambda: [], tail_size=20)


@pytest.mark.parametrize('vector', weibull.VECTORS)
def test_blocks_that_are_not_given_anew(generator, vector):
  features = _features(generator)
  fields = {'vector': vector, 'tail_size': 20}
  for scaling in weibull.SCALINGS:
    for more in ({}, {'tail_blocks': lambda: [features]}):
      once = iter([features])
      if more and vector in ('logits', 'joint') and scaling == 'none':
        # They are asked for but once.
        continue
      with pytest.raises(types.UsageError, match=r'samples .* 0 came again'):
        weibull.fit_stream(lambda x=once: x, scaling=scaling, **fields, **more)
  with pytest.raises(types.UsageError, match=r'must be a function .* list'):
    weibull.fit_stream([features], **fields)
  other = features._replace(logits=np.pad(features.logits, ((0, 0), (0, 1))))
  with pytest.raises(types.UsageError, match='blocks of features differ'):
    weibull.fit_stream(lambda: [features, other], **fields)


def test_a_thousand_classes_are_fitted_at_once(generator):
  # A loop over SciPy takes seconds. The best of many runs is the code's own
  # time, the others are of whatever else the machine does.
  distances = generator.gamma(5.0, size=(1000, 1300))
  seconds = []
  for _ in range(30):
    begin = time.perf_counter()
    weibull.fit_tails(distances, tail_size=20)
    seconds.append(time.perf_counter() - begin)
  assert min(seconds) < 0.020


def test_many_classes_are_fitted_in_parts(monkeypatch):
  monkeypatch.setattr(vectors, 'CELLS', 500 * 20)
  rng = np.random.default_rng(0)
  distances = np.abs(rng.normal(5.0, 1.0, (1203, 60)))
  found = weibull.fit_tails(distances, tail_size=20)
  for k in (0, 499, 500, 1202):
    alone = weibull.fit_tails(distances[[k]], tail_size=20)
    for one, other in zip(found, alone, strict=True):
      np.testing.assert_allclose(one[k], other[0], rtol=1e-9)
  ragged = [row[: 25 + k % 30] for k, row in enumerate(distances)]
  shape, *_ = weibull.fit_tails(ragged, tail_share=0.05)
  assert shape.shape == (1203,)
  distances[777, 3] = np.nan
  with pytest.raises(ValueError, match='class 777: distances'):
    weibull.fit_tails(distances, tail_size=20)
  distances[777] = 1.0
  with pytest.raises(ValueError, match='class 777: the 20 distances'):
    weibull.fit_tails(distances, tail_size=20)


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('scaling', weibull.SCALINGS)
def test_two_samples_of_a_class_have_no_tail(scaling, seed):
  """They are equally far from their mean, whatever rounding makes of it."""
  rng = np.random.default_rng(seed)
  label = np.array([0] * 30 + [1] * 2, np.int32)
  logits = rng.normal(size=(32, 2)) + 20 * np.eye(2)[label]
  features = types.Features(logits, rng.normal(size=(32, 5)), label)
  for vector in ('logits', 'joint'):
    with pytest.raises(types.UserError, match=r'class 1: 2 correct.* least 3'):
      weibull.fit(features, vector=vector, scaling=scaling, tail_size=20)
  # Answers of two are not alike, nor distances of others.
  others = features._replace(logits=logits + rng.normal(size=(32, 2)))
  for fields in ({'vector': 'evidence'}, {'tail_features': others}):
    with pytest.warns(UserWarning, match=r'1 \(2\)'):
      model = weibull.fit(features, scaling=scaling, tail_size=20, **fields)
    assert np.isfinite(model.shape).all()


def test_few_or_close_distances():
  with pytest.raises(types.UserError, match='class 0: 1 distances, at least 2'):
    weibull.fit_tails([[1.0]], tail_size=2)
  distances = np.random.default_rng(0).gamma(2, 1e-15, (2, 100))
  with pytest.warns(UserWarning, match=r'beside 1 \(class 0 and 1 more: '):
    weibull.fit_tails(distances, tail_size=20)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    weibull.fit_tails(distances, tail_size=20, translate=1e-15)


@pytest.mark.parametrize('label', [np.nan, np.inf, -np.inf, 0.5])
def test_labels_that_are_none(generator, label):
  labels = np.arange(40) % 2 + np.zeros(40)
  labels[3] = label
  features = types.Features(
    generator.normal(size=(40, 2)), np.zeros((40, 0)), labels
  )
  with (
    warnings.catch_warnings(),
    pytest.raises(types.UsageError, match=r'label of sample 3 is .* whole'),
  ):
    warnings.simplefilter('error')
    weibull.fit(features, tail_size=20)
