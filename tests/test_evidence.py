"""The vector 'evidence', in fit and score, against plain NumPy and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosr_jax import scorer, types, vectors, weibull


def _features(generator, n=600, k=4, width=6, spread=1.0, error=True):
  label = (np.arange(n) % k).astype(np.int32)
  return types.Features(
    (generator.normal(0, spread, (n, k)) + 6 * np.eye(k)[label]).astype('f4'),
    (generator.gamma(2, spread, (n, width)) * (1 + label[:, None] % 3)).astype(
      'f4'
    ),
    label,
    generator.lognormal(label % 3, spread, n).astype('f4')
    if error
    else np.zeros(0, np.float32),
  )


def _distances(train, found):
  """To every class, [N, K], by the words of vectors.py; float64."""
  k = train.logits.shape[1]
  right = train.logits.argmax(axis=1) == train.label
  label = train.label[right]

  def deviations(x):
    """From each class mean, of training samples [M, W] and new [N, K, W]."""
    known, new = x(train)[right].astype(float), x(found).astype(float)
    mean = np.stack([known[label == i].mean(axis=0) for i in range(k)])
    scale = np.sqrt(np.mean(np.square(known - mean[label]), axis=0))
    return (known - mean[label]) / scale, (new[:, None] - mean[None]) / scale

  own, y = deviations(lambda f: f.logits)
  parts = [
    (
      -own[np.arange(len(own)), label],
      -np.stack([y[:, i, i] for i in range(k)], axis=1),
    ),
    [np.linalg.norm(x, axis=-1) for x in deviations(lambda f: f.latent)],
  ]
  if len(train.reconstruction_error):
    error = deviations(lambda f: np.log(f.reconstruction_error)[:, None])
    parts.append([np.linalg.norm(x, axis=-1) for x in error])
  square = np.zeros(y.shape[:2])
  for (usual, new), weight in zip(parts, (2.5, 0.5, 1.0), strict=False):
    if usual.std() == 0:
      continue
    of_class = [usual[label == i] for i in range(k)]
    mean = np.array([x.mean() for x in of_class])
    spread = np.array([np.square(x - x.mean()).sum() for x in of_class])
    count = np.bincount(label)
    variance = (spread + 20 * spread.sum() / len(label)) / (count + 20)
    answer = weight * (new - mean) / np.sqrt(variance)
    square += np.square(np.maximum(answer, 0))
  return np.sqrt(square)


@pytest.mark.parametrize('error', [True, False])
@pytest.mark.parametrize(
  ('k', 'width'), [(4, 6), (2, 1), (3, 0), (150, 110), (3, 6000)]
)
def test_distances_equal_plain_numpy(generator, k, width, error):
  train = _features(generator, n=24 * k, k=k, width=width, error=error)
  found = _features(generator, n=50, k=k, width=width, spread=2.0, error=error)
  model = weibull.fit(
    train, vector='evidence', scaling='within_class', tail_size=20
  )
  np.testing.assert_allclose(
    scorer.distances(found, model),
    _distances(train, found),
    *(1e-4, 1e-4),
  )
  # The tails are those of the same distances to the own class.
  right = train.logits.argmax(axis=1) == train.label
  own = _distances(train, train)[np.arange(len(right)), train.label]
  expected = weibull.fit_tails(
    [own[right & (train.label == i)] for i in range(k)], tail_size=20
  )
  for a, b in zip((model.shape, model.loc, model.scale), expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_by_hand():
  # Class 0: own logit 1 below its mean of 3, in units of 0.5: 2, 5 weighted.
  # Code 9 away, usually 1 +- 1: 8, 4 weighted. Log error 0, class mean 2,
  # usually 0.5 +- 1.5: 1, but 20 with deviation 0.075.
  model = types.WeibullModel(
    'evidence',
    np.array([0.5, 1.0, 1.0, 1.0]),
    np.array([[3.0, 0, 0, 2], [0, 9, 9, 0]]),
    *np.ones((3, 2)),
    np.full(2, 20),
    np.zeros(4, bool),
    np.array([[0, 1, 0.5], [0, 0, 0]]),
    np.array([[1, 1, 0.075], [1, 1, 1]]),
    1,
  )
  one = types.Features(
    np.array([[2.0, 10]]), np.array([[9.0]]), np.array([0]), np.array([1.0])
  )
  # Class 1: its logit is above the mean, its code and error are its own.
  np.testing.assert_allclose(scorer.distances(one, model), [[21, 0]], rtol=1e-6)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), more=st.floats(0, 1e3))
def test_a_higher_own_logit_is_never_farther(seed, more):
  generator = np.random.default_rng(seed)
  train = _features(generator)
  model = weibull.fit(train, vector='evidence', tail_size=20)
  found = _features(generator, n=20, spread=3.0)
  higher = found.logits + np.float32(more)
  before, after = (
    scorer.distances(f, model) for f in (found, found._replace(logits=higher))
  )
  assert (after <= before).all()


def test_an_error_is_strange_on_both_sides(generator):
  train = _features(generator)
  model = weibull.fit(train, vector='evidence', tail_size=20)
  usual = train._replace(
    reconstruction_error=np.exp(train.label % 3).astype('f4')
  )
  scores = [
    scorer.score(
      usual._replace(reconstruction_error=usual.reconstruction_error * factor),
      model,
    )
    for factor in (
      np.float32(1e-6),
      np.float32(1),
      np.float32(1e6),
      0 * usual[3],
    )
  ]
  rejected = [np.mean(s.prediction == types.UNKNOWN) for s in scores]
  assert rejected[1] < 0.1 and rejected[0] == rejected[2] == rejected[3] == 1


@pytest.mark.parametrize('error', [True, False])
def test_a_score_is_its_own(generator, error):
  train = _features(generator, error=error)
  model = weibull.fit(train, vector='evidence', tail_share=0.1)
  whole = scorer.score(train, model)
  for rows in ([7], [3, 599], range(100, 400)):
    part = types.Features(*(x[rows] if len(x) else x for x in train))
    for a, b in zip(scorer.score(part, model), whole, strict=True):
      np.testing.assert_array_equal(a, b[rows])


@pytest.mark.parametrize('block', [1, 37, 1000])
def test_stream_equals_memory(generator, block):
  features = _features(generator)
  blocks = [
    types.Features(*(x[i : i + block] for x in features))
    for i in range(0, len(features.label), block)
  ]
  fields = {
    'vector': 'evidence', 'scaling': 'within_class', 'tail_share': 0.2,
  }  # fmt: skip
  whole = weibull.fit(features, **fields)
  stream = weibull.fit_stream(lambda: blocks, **fields)
  for a, b in zip(whole[1:], stream[1:], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('vector', weibull.VECTORS)
def test_several_shares_equal_one_by_one(generator, vector):
  features = _features(generator)
  shares = (0.5, 0.05, 1.0, 0.2)
  fields = {'vector': vector, 'scaling': 'within_class'}
  together = weibull.fit_shares(features, shares, **fields)
  for share, model in zip(shares, together, strict=True):
    alone = weibull.fit(features, tail_share=share, **fields)
    for a, b in zip(model, alone, strict=True):
      np.testing.assert_array_equal(a, b)
  with pytest.raises(ValueError, match=r'tail_share must be in \(0, 1\]'):
    weibull.fit_shares(features, (0.1, 2.0), **fields)


def test_parts_that_never_move_tell_nothing(generator):
  features = _features(generator)
  still = features._replace(
    latent=np.ones_like(features.latent),
    reconstruction_error=np.ones_like(features.reconstruction_error),
  )
  model = weibull.fit(still, vector='evidence', tail_size=20)
  assert np.isinf(model.part_deviation[:, 1:]).all()
  alone = weibull.fit(
    features._replace(latent=features.latent[:, :0], reconstruction_error=()),
    vector='evidence',
    tail_size=20,
  )
  np.testing.assert_allclose(
    scorer.distances(still, model),
    scorer.distances(
      features._replace(latent=features.latent[:, :0], reconstruction_error=()),
      alone,
    ),
  )


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (np.ones(3), r'shape \(3,\) for 600 samples'),
    (np.ones((600, 1)), r'shape \(600, 1\) for 600 samples'),
    (np.arange(600) - 0.5, 'of sample 0 is -0.5'),
    (np.full(600, np.nan), 'not finite'),
  ],
)
def test_bad_errors(generator, error, message):
  features = _features(generator)._replace(reconstruction_error=error)
  with pytest.raises(ValueError, match=message):
    weibull.fit(features, vector='evidence', tail_size=20)
  model = weibull.fit(_features(generator), vector='evidence', tail_size=20)
  with pytest.raises(ValueError, match=message):
    scorer.score(features, model)


def test_no_samples(generator):
  features = _features(generator)
  model = weibull.fit(features, vector='evidence', tail_size=20)
  none = types.Features(*(x[:0] for x in features))
  assert scorer.score(none, model).probability.shape == (0, 5)
  # As part of a stream, they change nothing.
  stream = weibull.fit_stream(
    lambda: [none, features, none], vector='evidence', tail_size=20
  )
  np.testing.assert_array_equal(stream.mav, model.mav)


def test_widths_that_add_up_to_the_same_are_told_apart(generator):
  # A latent of 5 and an error, or one of 6 and none.
  narrow = _features(generator, width=5)
  wide = _features(generator, width=6, error=False)
  for a, b in ((narrow, wide), (wide, narrow)):
    model = weibull.fit(a, vector='evidence', tail_size=20)
    with pytest.raises(ValueError, match='latents of width'):
      scorer.score(b, model)
    with pytest.raises(ValueError, match='latents of width'):
      scorer.traced(
        b.logits,
        b.latent,
        b.reconstruction_error if len(b.reconstruction_error) else None,
        model,
        method='crosr',
        alpha=10,
      )
    with pytest.raises(ValueError, match='a latent of width'):
      weibull.fit(a, vector='evidence', tail_size=20, tail_features=b)
    with pytest.raises(ValueError, match='blocks of features differ'):
      weibull.fit_stream(lambda: [a, b], vector='evidence', tail_size=20)  # noqa: B023


def test_a_model_with_error_needs_errors(generator):
  features = _features(generator)
  model = weibull.fit(features, vector='evidence', tail_size=20)
  without = features._replace(reconstruction_error=np.zeros(0, np.float32))
  with pytest.raises(ValueError, match=r'width 11 \(evidence\).* 4 and 10'):
    scorer.score(without, model)


@pytest.mark.parametrize('vector', ['evidence', 'neighbour'])
def test_tails_of_other_samples(generator, vector):
  train, held_out = _features(generator), _features(generator, spread=1.3)
  fields = {'vector': vector, 'scaling': 'within_class', 'tail_share': 0.2}
  model = weibull.fit(train, tail_features=held_out, **fields)
  plain = weibull.fit(train, **fields)
  np.testing.assert_array_equal(model.mav, plain.mav)
  np.testing.assert_array_equal(model.exemplars, plain.exemplars)
  right = held_out.logits.argmax(axis=1) == held_out.label
  own = scorer.distances(held_out, plain)[np.arange(600), held_out.label]
  expected = weibull.fit_tails(
    [own[right & (held_out.label == i)] for i in range(4)], tail_share=0.2
  )
  np.testing.assert_allclose(model.shape, expected[0], rtol=1e-4)
  np.testing.assert_allclose(model.loc, expected[1], rtol=1e-4)
  with pytest.raises(ValueError, match=r'tail_features have 4 classes'):
    weibull.fit(train, tail_features=_features(generator, width=3), **fields)
  few = types.Features(*(x[:5] for x in held_out))
  with pytest.raises(ValueError, match='class 1: 1 correctly'):
    weibull.fit(train, tail_features=few, **fields)


@pytest.mark.parametrize('error', [True, False])
def test_evidence_of_the_nearest_class(generator, error):
  train, found = (_features(generator, n, error=error) for n in (600, 50))
  fitted = weibull.fit(
    train, vector='evidence', scaling='within_class', tail_size=20
  )
  above = weibull.evidence(found, fitted)
  none = weibull.evidence(found.rows(slice(0)), fitted)
  assert none.shape == (0, 3)
  expected = _distances(train, found)[np.arange(50), found.logits.argmax(1)]
  np.testing.assert_allclose(
    np.linalg.norm(np.maximum(above, 0) * vectors.EVIDENCE_WEIGHTS, axis=1),
    expected,
    rtol=1e-5,
    atol=1e-5,  # the reference takes logarithms in float32
  )
  assert error or (above[:, 2] == 0).all()


@pytest.mark.parametrize('vector', ['evidence', 'neighbour'])
def test_a_margin_counts_from_before_the_usual_on(generator, vector):
  train = _features(generator)
  # A part that never moves has no deviation to begin before.
  train = train._replace(reconstruction_error=np.ones(600, np.float32))
  fields = {'vector': vector, 'scaling': 'within_class', 'tail_share': 0.2}
  plain = weibull.fit(train, **fields)
  model = weibull.fit(train, margin=1.5, **fields)
  np.testing.assert_array_equal(model.part_deviation, plain.part_deviation)
  moves = np.isfinite(plain.part_deviation)
  assert not moves[:, 2].any()
  expected = plain.part_mean - np.where(moves, 1.5 * plain.part_deviation, 0.0)
  np.testing.assert_allclose(model.part_mean, expected, rtol=1e-12)
  # Nothing is nearer for it, and what was all as usual is told apart.
  before, after = (scorer.distances(train, x) for x in (plain, model))
  assert (after >= before).all()
  is_usual = before == 0
  assert is_usual.any() and len(np.unique(after[is_usual])) > 1
  (shared,) = weibull.fit_shares(
    train,
    [0.2],
    margin=1.5,
    **{k: x for k, x in fields.items() if k != 'tail_share'},
  )
  np.testing.assert_array_equal(shared.scale, model.scale)


@pytest.mark.parametrize(
  ('fields', 'told'),
  [
    ({'vector': 'evidence', 'margin': -1.0}, r'margin must be in \[0, 10\]'),
    ({'vector': 'evidence', 'margin': float('nan')}, 'got nan'),
  ],
)
def test_margins_that_cannot_be(generator, fields, told):
  with pytest.raises(types.UsageError, match=told):
    weibull.fit(_features(generator), tail_size=20, **fields)


def test_evidence_of_another_model(generator):
  train = _features(generator)
  fields = {'scaling': 'within_class', 'tail_size': 20}
  joint = weibull.fit(train, vector='joint', **fields)
  with pytest.raises(types.UsageError, match=r"got .'joint'"):
    weibull.evidence(train, joint)
  fitted = weibull.fit(train, vector='evidence', **fields)
  narrow = train._replace(latent=train.latent[:, :2])
  with pytest.raises(types.UsageError, match=r"got .'evidence', 2, 7"):
    weibull.evidence(narrow, fitted)


def test_evidence_of_lists(generator):
  features = _features(generator)
  model = weibull.fit(features, vector='evidence', tail_size=20)
  lists = types.Features(*(x.tolist() for x in features))
  np.testing.assert_array_equal(
    weibull.evidence(lists, model), weibull.evidence(features, model)
  )
