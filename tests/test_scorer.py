"""The scorer against a float64 NumPy version, and the laws of a score."""

import warnings

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from crosr_jax import scorer, types, vectors, weibull

_FITTED = ('openmax', 'crosr_y', 'crosr')


def _problem(seed, n=64, k=5, width=7, vector='joint'):
  """A model, and samples from inside its classes to far outside."""
  generator = np.random.default_rng(seed)
  label = np.arange(100 * k, dtype=np.int32) % k
  center = generator.normal(0, 2, (k, width))

  def draw(label, spread):
    logits = generator.normal(0, spread, (len(label), k)) + 5 * np.eye(k)[label]
    latent = generator.normal(0, spread, (len(label), width)) + center[label]
    return types.Features(
      logits.astype(np.float32), latent.astype(np.float32), label
    )

  model = weibull.fit(
    draw(label, 1.0), vector=vector, scaling='within_class', tail_size=20
  )
  parts = [draw(label[: n // 2], 1.2), draw(label[: n - n // 2], 3.0)]
  new = types.Features(
    *(np.concatenate(x) for x in list(zip(*parts, strict=True))[:3])
  )
  return new, model


def _model_for(method, seed=0, **sizes):
  if method == 'augmented':
    sizes['width'] = 1
  vector = scorer.METHODS[method].vectors
  return _problem(seed, vector=vector[0] if vector else 'joint', **sizes)


def _reference(features, model, method, alpha=10):
  """probability, log-odds of unknown, distances; float64, loops and all."""
  y = features.logits.astype(np.float64)
  a = np.concatenate([y, features.latent], axis=1)[:, : model.mav.shape[1]]
  d = np.stack(
    [np.linalg.norm((a - m) / model.feature_scale, axis=1) for m in model.mav],
    axis=1,
  )
  w = weibull.cdf(d, model.shape, model.loc, model.scale)
  if method == 'openmax':
    k = y.shape[1]
    revised = np.zeros((len(y), k + 1))
    for n in range(len(y)):
      order = np.argsort(-y[n], kind='stable')
      for rank, i in enumerate(order):
        weight = max(alpha - rank, 0) / alpha
        revised[n, i] = y[n, i] * (1 - w[n, i] * weight)
        revised[n, k] += y[n, i] * w[n, i] * weight
    log_odds = revised[:, k] - special.logsumexp(revised[:, :k], axis=1)
    return special.softmax(revised, axis=1), log_odds, d
  closed = special.softmax(y, axis=1)
  known, unknown = closed * (1 - w), np.sum(closed * w, axis=1)
  with np.errstate(divide='ignore'):
    log_odds = np.log(unknown) - np.log(known.sum(axis=1))
  return np.concatenate([known, unknown[:, None]], axis=1), log_odds, d


@pytest.mark.parametrize('method', _FITTED)
@pytest.mark.parametrize(
  ('k', 'width'),
  # Direct distances up to K D = 16,384; the matmul for the last three.
  [(5, 7), (2, 3), (10, 96), (150, 120), (2, 9000), (5, 4000)],
)
def test_equals_float64(method, k, width):
  features, model = _model_for(method, k=k, width=width)
  scores = scorer.score(features, model, method=method, alpha=min(10, k))
  probability, log_odds, distance = _reference(
    features, model, method, alpha=min(10, k)
  )
  np.testing.assert_allclose(
    scorer.distances(features, model), distance, rtol=1e-5
  )
  np.testing.assert_allclose(scores.probability, probability, atol=1e-5)
  # Beyond, float64's own 1 - w has no digits; of thousands of coordinates,
  # some are always that far out.
  sane = np.abs(log_odds) < 12
  assert sane.any() or width > 1000
  np.testing.assert_allclose(
    scores.unknown_score[sane], log_odds[sane], rtol=2e-3, atol=2e-3
  )


def test_distances_of_samples_near_a_mean_keep_their_digits():
  # Where |a - mav| is small beside |a|, a plain matmul has no digits left.
  generator = np.random.default_rng(0)
  for k in (5, 200):
    mav = generator.normal(0, 50, (k, 100))
    if k == 200:
      # Eight classes are near each sample.
      mav = np.repeat(mav[::8], 8, axis=0) + generator.normal(0, 0.1, mav.shape)
    model = types.WeibullModel(
      'logits', np.ones(100), mav, *np.ones((3, k)), np.full(k, 20), mav[0] > 99
    )
    near = mav + generator.normal(0, 0.1, mav.shape)
    logits = near[:, :k].astype(np.float32)
    features = types.Features(logits, near[:, k:].astype(np.float32), mav[:, 0])
    if k == 200:
      features = features._replace(
        logits=np.zeros((k, k), np.float32), latent=near.astype(np.float32)
      )
      mav = np.concatenate([np.zeros((k, k)), mav], axis=1)
      model = model._replace(mav=mav, feature_scale=np.ones(300))
    model = model._replace(vector='joint')
    _, _, expected = _reference(features, model, 'crosr')
    found = scorer.distances(features, model)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Whoever is in the block: here a sample far from all of them as well.
    logits, latent, label = (np.stack([x[0], x[0]]) for x in features[:3])
    latent[1] = -1000.0
    found_two = scorer.distances(types.Features(logits, latent, label), model)
    np.testing.assert_array_equal(found_two[0], found[0])


@pytest.mark.parametrize('method', ['crosr', 'openmax'])
@pytest.mark.parametrize(('k', 'width'), [(5, 7), (150, 120)])
def test_traced_for_a_batch_of_any_size(method, k, width):
  features, model = _model_for(method, k=k, width=width)
  expected = scorer.score(features, model, method=method)
  (batch,) = jax.export.symbolic_shape('b')
  program = jax.export.export(
    jax.jit(
      lambda logits, latent: scorer.traced(
        logits, latent, None, model, method=method, alpha=10
      )
    )
  )(
    *(
      jax.ShapeDtypeStruct((batch, x.shape[1]), np.float32)
      for x in features[:2]
    )
  )
  with pytest.raises(ValueError, match=r'knows .*, the features have'):
    scorer.traced(
      features.logits[:, :-1],
      features.latent[:, :-1],
      None,
      model,
      method=method,
      alpha=10,
    )
  for count in (1, len(features.label)):
    probability, unknown_score = program.call(
      *(x[:count].astype(np.float32) for x in features[:2])
    )
    np.testing.assert_allclose(
      probability, expected.probability[:count], atol=1e-5
    )
    np.testing.assert_allclose(
      unknown_score, expected.unknown_score[:count], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize('method', scorer.METHODS)
@pytest.mark.parametrize(('k', 'width'), [(5, 7), (150, 120)])
def test_a_score_is_its_own(method, k, width):
  features, model = _model_for(method, n=300, k=k, width=width)
  whole = scorer.score(features, model, method=method)
  for rows in ([7], [299], [3, 7, 200], range(100, 300)):
    part = types.Features(*(x[rows] for x in features[:3]))
    found = scorer.score(part, model, method=method)
    for a, b in zip(found, whole, strict=True):
      np.testing.assert_array_equal(a, b[rows])


@settings(max_examples=15)
@given(
  seed=st.integers(0, 10_000),
  method=st.sampled_from(sorted(scorer.METHODS)),
  unit=st.sampled_from([1e-3, 1.0, 1e2, 1e4]),
)
def test_rows_sum_to_one_and_scores_are_finite(seed, method, unit):
  features, model = _model_for(method, seed)
  features = features._replace(logits=features.logits * np.float32(unit))
  scores = scorer.score(features, model, method=method)
  np.testing.assert_allclose(scores.probability.sum(axis=1), 1, atol=1e-5)
  assert (scores.probability >= 0).all()
  assert np.isfinite(scores.unknown_score).all()
  assert scores.probability.shape == (64, 6)
  column = scores.probability.argmax(axis=1)
  np.testing.assert_array_equal(
    scores.prediction, np.where(column == 5, -1, column)
  )


@pytest.mark.parametrize('method', scorer.METHODS)
def test_prepared_is_the_same(method, monkeypatch):
  new, model = _model_for(method)
  whole = scorer.score(new, model, method=method)
  prepared = scorer.prepare(model)
  # Once is enough.
  monkeypatch.setattr(scorer, '_float32', None)
  for _ in range(2):
    found = scorer.score(new, prepared, method=method)
    for a, b in zip(found, whole, strict=True):
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('method', scorer.METHODS)
def test_permuting_classes_permutes_columns(method):
  features, model = _model_for(method)
  order = np.array([3, 0, 4, 1, 2])
  k = len(order)
  columns = np.append(order, np.arange(k, model.mav.shape[1]))
  moved = features._replace(logits=features.logits[:, order])
  moved_model = model._replace(
    mav=model.mav[order][:, columns],
    feature_scale=model.feature_scale[columns],
    shape=model.shape[order],
    loc=model.loc[order],
    scale=model.scale[order],
  )
  a = scorer.score(features, model, method=method)
  b = scorer.score(moved, moved_model, method=method)
  np.testing.assert_allclose(
    b.probability, a.probability[:, np.append(order, k)], atol=1e-6
  )
  np.testing.assert_allclose(b.unknown_score, a.unknown_score, rtol=1e-4)


@pytest.mark.parametrize('alpha', [0, -1, 2.5, float('nan'), '3', None])
def test_alpha_that_is_none(alpha):
  with pytest.raises(types.UsageError, match='alpha must be a whole number of'):
    scorer.check_fields(alpha=alpha)


@pytest.mark.parametrize('alpha', [1, 2, 5, 6, 10**9])
def test_any_alpha(alpha):
  features, model = _model_for('openmax')
  scores = scorer.score(features, model, method='openmax', alpha=alpha)
  expected, _, _ = _reference(features, model, 'openmax', min(alpha, 5))
  np.testing.assert_allclose(scores.probability, expected, atol=1e-5)


def test_softmax_by_hand():
  logits = np.log(np.array([[6.0, 3.0, 1.0]], np.float32))
  features = types.Features(logits, np.zeros((1, 0), np.float32), np.array([0]))
  scores = scorer.score(features, method='softmax')
  np.testing.assert_allclose(scores.probability, [[0.6, 0, 0, 0.4]], atol=1e-6)
  np.testing.assert_allclose(scores.unknown_score, np.log(0.4 / 0.6), atol=1e-6)
  assert scores.prediction[0] == 0
  scores = scorer.score(features, method='max_logit')
  np.testing.assert_allclose(
    scores.probability, [[0.6, 0.3, 0.1, 0]], atol=1e-6
  )
  np.testing.assert_allclose(scores.unknown_score, -np.log(6), rtol=1e-6)
  scores = scorer.score(features, method='energy')
  np.testing.assert_allclose(scores.unknown_score, -np.log(10), rtol=1e-6)


def test_crosr_by_hand():
  # Distance 2 to class 0 and 5 to class 1; loc 1, scale 1, shape 1:
  # w = 1 - exp(-1), 1 - exp(-4).
  model = types.WeibullModel(
    'joint',
    np.ones(3),
    np.array([[0.0, 0, 0], [0, 0, 7]]),
    np.ones(2),
    np.ones(2),
    np.ones(2),
    np.full(2, 20),
    np.zeros(3, bool),
  )
  features = types.Features(
    np.zeros((1, 2), np.float32), np.full((1, 1), 2, np.float32), np.array([0])
  )
  scores = scorer.score(features, model)
  known = np.exp([-1, -4]) / 2
  expected = [*known, 1 - known.sum()]
  np.testing.assert_allclose(scores.probability[0], expected, atol=1e-6)
  np.testing.assert_allclose(
    scores.unknown_score[0],
    np.log(expected[2] / known.sum()),
    rtol=1e-5,
  )


@pytest.mark.parametrize('shape', [1.0, 30.0, 1e4, 1e7, 1e9])
def test_unknown_score_never_saturates(shape):
  # From deep inside every tail to far outside, every step counts.
  model = types.WeibullModel(
    'joint',
    np.ones(3),
    np.array([[0.0, 0, 0], [0, 0, 1e-3]]),
    np.full(2, shape),
    np.ones(2),
    np.ones(2),
    np.full(2, 20),
    np.zeros(3, bool),
  )
  out = np.concatenate(
    [np.linspace(0.01, 2.2, 50), np.geomspace(2.3, 1e15, 50)]
  )
  features = types.Features(
    np.zeros((100, 2), np.float32),
    out[:, None].astype(np.float32),
    np.zeros(100, np.int32),
  )
  score = scorer.score(features, model).unknown_score
  assert np.isfinite(score).all()
  assert (np.diff(score) > 0).all()


def test_larger_distance_is_more_unknown():
  features, model = _model_for('crosr', n=50)
  further = features._replace(latent=features.latent + 40)
  a, b = scorer.score(features, model), scorer.score(further, model)
  assert (b.unknown_score > a.unknown_score).all()
  assert (b.prediction == -1).all()


def test_decisions():
  probability = np.array([[0.6, 0.1, 0.3], [0.4, 0.35, 0.25], [0.2, 0.2, 0.6]])
  scores = types.Scores(
    probability, np.array([0, 0, -1]), np.array([0, 1, 2.0])
  )
  closed = np.array([0, 1, 1])
  for decision, expected in (
    ('argmax', [0, 0, -1]),
    ('half', [0, -1, -1]),
    ('tpr95', [0, 1, -1]),
    ('calibrated', [0, 1, -1]),
  ):
    found = scorer.decide(scores, closed, decision=decision, threshold=1.0)
    assert list(found) == expected
  with pytest.raises(ValueError, match="did you mean 'half'"):
    scorer.decide(scores, closed, decision='hal')
  for threshold in (None, float('nan')):
    with pytest.raises(ValueError, match=r"'calibrated' needs a threshold"):
      scorer.decide(scores, closed, decision='calibrated', threshold=threshold)
  with pytest.raises(ValueError, match=r'closed_prediction has shape \(1,\)'):
    scorer.decide(scores, closed[:1])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'method': 'crossr'}, "did you mean 'crosr'"),
    ({'method': 'openmax'}, "vector='logits'.*'joint'"),
    ({'method': 'crosr', 'model': None}, 'needs a model'),
    (
      {'method': 'crosr', 'alpha': 0},
      'alpha must be a whole number of at least 1',
    ),
  ],
)
def test_bad_arguments(fields, message):
  features, model = _problem(0)
  with pytest.raises(ValueError, match=message):
    scorer.score(features, **{'model': model, **fields})


def test_bad_features():
  features, model = _problem(0)
  features.logits[3, 1] = np.nan
  with pytest.raises(ValueError, match='features of sample 3 are not finite'):
    scorer.score(features, model)
  narrow = _problem(0, width=6)[0]
  with pytest.raises(ValueError, match=r'width 12 \(joint\).* have 5 and 11'):
    scorer.score(narrow, model)


def test_parts_of_other_samples():
  features, model = _problem(0)
  with pytest.raises(types.UsageError, match='one row per sample'):
    scorer.distances(features._replace(latent=features.latent[:9]), model)


def test_features_beyond_float32_are_an_error():
  features, model = _problem(0)
  features.logits[4] = 1e30
  with pytest.raises(ValueError, match=r'sample 4 are too large .*1e.30'):
    scorer.score(features, model)


def test_lists_will_do():
  features, model = _problem(0)
  lists = types.Features(*(x.tolist() for x in features[:3]))
  for a, b in zip(
    scorer.score(lists, model), scorer.score(features, model), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('vector', ['joint', 'evidence', 'neighbour'])
def test_of_a_caller_in_float64_rows_are_alike(vector):
  """Later blocks are computed by threads, which his context does not reach."""
  rng = np.random.default_rng(0)
  # More than a block.
  label = np.repeat(np.arange(10), 300)
  features = types.Features(
    (rng.normal(size=(3000, 10)) + 6 * np.eye(10)[label]).astype(np.float32),
    rng.normal(size=(3000, 16)).astype(np.float32),
    label,
    rng.uniform(0.1, 1, 3000).astype(np.float32),
  )
  model = weibull.fit(features, vector=vector, tail_size=20)
  with jax.enable_x64(True):
    whole = scorer.score(features, model)
    last = scorer.score(features.rows(slice(2999, 3000)), model)
  assert whole.unknown_score.dtype == whole.probability.dtype == np.float32
  assert whole.unknown_score[2999] == last.unknown_score[0]


def test_no_samples():
  features, model = _problem(0, n=64)
  none = types.Features(*(x[:0] for x in features[:3]))
  assert scorer.score(none, model).probability.shape == (0, 6)


def test_many_rows_and_rows_that_do_not_fit(generator):
  logits = generator.normal(size=(40_000, 3))
  label = np.zeros(40_000, np.int64)
  features = types.Features(logits, np.zeros((40_000, 0)), label)
  many = scorer.score(features, method='max_logit')
  np.testing.assert_allclose(many.unknown_score, -logits.max(axis=1), rtol=1e-6)
  with pytest.raises(types.UsageError, match='one row per sample'):
    scorer.score(features._replace(label=label[:0]), method='max_logit')
  with pytest.raises(types.UsageError, match='one row per sample'):
    scorer.score(features._replace(latent=np.zeros((9, 0))), method='softmax')


def test_a_model_keeps_its_weights(generator, monkeypatch):
  label = np.arange(300) % 3
  features = types.Features(
    generator.normal(size=(300, 3)) + 6 * np.eye(3)[label],
    generator.normal(size=(300, 4)),
    label,
    generator.uniform(1, 2, size=300),
  )
  model = weibull.fit(features, vector='evidence', tail_size=20)
  before = scorer.score(features, model)
  # As of another version of the package.
  monkeypatch.setattr(vectors, 'EVIDENCE_WEIGHTS', (9.0, 9.0, 9.0))
  after = scorer.score(features, model)
  np.testing.assert_array_equal(before.unknown_score, after.unknown_score)


def test_a_device_that_a_caller_chose_holds_for_all_blocks():
  rng = np.random.default_rng(0)
  seen = set()

  def program(block, fitted):
    del fitted
    result = block + jnp.ones(())
    seen.update(result.devices())
    return (result,)

  a = rng.normal(size=(5000, 3)).astype(np.float32)
  chosen = jax.devices()[3]
  with jax.default_device(chosen):
    (found,) = scorer.by_blocks(
      program, lambda start, stop: a[start:stop], len(a), None, 3
    )
  assert seen == {chosen}
  np.testing.assert_array_equal(found, a + 1)


@pytest.mark.parametrize(
  ('widest', 'on_cpu', 'on_gpu'),
  [(106, 2048, 2048), (1_512, 128, 2048), (20_512, 128, 128)],
)
def test_blocks_are_larger_on_a_gpu(widest, on_cpu, on_gpu):
  for platform, rows in (('cpu', on_cpu), ('gpu', on_gpu), ('tpu', on_cpu)):
    assert scorer._rows(widest, platform) == rows
    # 16 MiB of float32 at most.
    assert rows * widest <= 2**22


@pytest.mark.parametrize('latent', [1e30, 1e39])
def test_too_large_for_float32(latent):
  features, model = _model_for('crosr')
  large = features.latent.astype(float)
  large[5, 0] = latent
  with (
    warnings.catch_warnings(),
    pytest.raises(types.UserError, match='sample 5 are too large for float32'),
  ):
    warnings.simplefilter('error')
    scorer.score(features._replace(latent=large), model)
