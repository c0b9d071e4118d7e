"""The vector 'neighbour', in fit and score, against plain NumPy and by hand."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from sklearn import neighbors

from crosr_jax import choice, extension, scorer, types, weibull

_COMMAND = """
import numpy as np

from crosr_jax import scorer, types, weibull

generator = np.random.default_rng(0)


def features(n, k, width, apart):
  label = np.arange(n) % k
  return types.Features(
    generator.normal(size=(n, k)) + apart * np.eye(k)[label],
    generator.normal(size=(n, width)) + label[:, None] % 5,
    label,
    generator.lognormal(label % 3, 1, n),
  )


for k, width, count in ((6, 96, 3000), (7, 64, 700), (2, 8, 60), (10, 32, 500)):
  train, found = features(count, k, width, 6), features(4096, k, width, 2)
  for vector in ('joint', 'evidence', 'neighbour'):
    model = weibull.fit(train, vector=vector, scaling='std', tail_size=20)
    whole = scorer.score(found, model).unknown_score
    # Whatever the size of a block is, its last rows come to lie elsewhere.
    order = np.roll(np.arange(4096), 8)
    rolled = scorer.score(found.rows(order), model).unknown_score
    np.testing.assert_array_equal(rolled, whole[order], f'{vector}, {k}')
"""
_FIELDS = {'vector': 'neighbour', 'scaling': 'within_class'}


def _features(generator, n=400, k=4, width=6, error=True):
  label = (np.arange(n) % k).astype(np.int32)
  return types.Features(
    (generator.normal(size=(n, k)) + 6 * np.eye(k)[label]).astype('f4'),
    (generator.gamma(2, 1, (n, width)) * (1 + label[:, None] % 3)).astype('f4'),
    label,
    generator.lognormal(label % 3, 1, n).astype('f4')
    if error
    else np.zeros(0, np.float32),
  )


def _nearest(train, found, count=2):
  """To training samples of each class, [N, K], and to others of one's own, [M].

  Mean roots of the distances of directions, by scikit-learn, in float64.
  """
  k = train.logits.shape[1]
  known = train.rows(train.logits.argmax(axis=1) == train.label)

  def unit(f):
    a = np.concatenate([f.logits, f.latent], axis=1).astype(float)
    return a / np.linalg.norm(a, axis=1, keepdims=True)

  each, own = [], np.zeros(len(known.label))
  for i in range(k):
    of_class = known.label == i
    index = neighbors.NearestNeighbors(algorithm='brute').fit(
      unit(known)[of_class]
    )
    each.append(np.sqrt(index.kneighbors(unit(found), count)[0]).mean(axis=1))
    # Without samples named, scikit-learn passes each over itself.
    away, _ = index.kneighbors(n_neighbors=count)
    own[of_class] = np.sqrt(away).mean(axis=1)
  return np.stack(each, axis=1), own, known.label


def _nearest_part(train, found):
  """The weighted answer to the question after the nearest samples, [N, K]."""
  each, own, label = _nearest(train, found)
  k = each.shape[1]
  mean = np.array([own[label == i].mean() for i in range(k)])
  spread = np.array(
    [np.square(own[label == i] - mean[i]).sum() for i in range(k)]
  )
  count = np.bincount(label)
  variance = (spread + 20 * spread.sum() / count.sum()) / (count + 20)
  return np.maximum(2.0 * (each - mean) / np.sqrt(variance), 0)


@pytest.mark.parametrize('error', [True, False])
@pytest.mark.parametrize(('k', 'width'), [(4, 6), (2, 1), (3, 0), (30, 40)])
def test_distances_equal_plain_numpy(generator, k, width, error):
  train, found = (
    _features(generator, n, k, width, error) for n in (30 * k, 50)
  )
  model = weibull.fit(train, tail_size=20, **_FIELDS)
  # Code and error as in 'evidence', whose logit is in its way, but from two
  # deviations later on and twice.
  evidence = weibull.fit(
    train, tail_size=20, **(_FIELDS | {'vector': 'evidence'})
  )
  deviation = evidence.part_deviation.copy()
  deviation[:, 0] = np.inf
  later = 2 * np.where(np.isfinite(deviation), deviation, 0)
  far = evidence._replace(
    part_mean=evidence.part_mean + later, part_deviation=deviation / 2
  )
  expected = np.hypot(scorer.distances(found, far), _nearest_part(train, found))
  np.testing.assert_allclose(
    scorer.distances(found, model), expected, rtol=2e-4, atol=2e-4
  )


@pytest.mark.parametrize('offset', [100, 3000])
def test_directions_that_lie_close_together(generator, offset):
  """Cosines of all of a class are 1 to seven digits."""

  def features(n):
    label = np.arange(n) % 4
    a = offset + generator.normal(size=(n, 12)) * np.linspace(0.5, 2, 12)
    a[:, :4] += 12 * np.eye(4)[label]
    # As float32 has them.
    a = a.astype(np.float32).astype(float)
    return types.Features(a[:, :4], a[:, 4:], label)

  train, found = features(800), features(200)
  model = weibull.fit(train, tail_size=20, **_FIELDS)
  _, own, label = _nearest(train, train)
  assert np.square(own.max()) < 0.06 * 100 / offset
  for i in range(4):
    assert model.part_mean[i, 0] == pytest.approx(
      own[label == i].mean(), rel=1e-4
    )
  alone = model._replace(part_deviation=model.part_deviation.copy())
  alone.part_deviation[:, 1:] = np.inf
  np.testing.assert_allclose(
    scorer.distances(found, alone), _nearest_part(train, found),
    rtol=0.01, atol=0.01,
  )  # fmt: skip


def test_directions_that_float32_cannot_tell_apart_are_warned_of(generator):
  train = _features(generator, error=False)
  far = train._replace(
    logits=train.logits.astype(float) + 1e6, latent=train.latent + 1e6
  )
  with pytest.warns(UserWarning, match='same direction .*class 0 and 3 more'):
    weibull.fit(far, tail_size=20, **_FIELDS)


def test_tails_are_of_distances_to_other_samples(generator):
  train = _features(generator)
  model = weibull.fit(train, tail_share=0.2, **_FIELDS)
  right = train.logits.argmax(axis=1) == train.label
  # A training sample is not its own neighbour, in the scorer either.
  own = scorer.distances(train, model)[np.arange(len(right)), train.label]
  _, away, label = _nearest(train, train)
  for i in range(4):
    assert model.part_mean[i, 0] == pytest.approx(
      away[label == i].mean(), rel=1e-6
    )
  expected = weibull.fit_tails(
    [own[right & (train.label == i)] for i in range(4)], tail_share=0.2
  )
  for a, b in zip((model.shape, model.loc, model.scale), expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4)
  np.testing.assert_array_equal(
    model.exemplar_count, np.bincount(train.label[right])
  )
  assert model.exemplars.shape == (right.sum(), 10)
  np.testing.assert_allclose(
    np.linalg.norm(model.exemplars, axis=1), 1.0, rtol=1e-6
  )


def test_the_length_of_a_vector_tells_nothing_to_the_nearest(generator):
  train = _features(generator, error=False)
  model = weibull.fit(train, tail_size=20, **_FIELDS)
  # Codes apart, which do have a length.
  alone = model._replace(part_deviation=model.part_deviation.copy())
  alone.part_deviation[:, 1:] = np.inf
  found = _features(generator, 50, error=False)
  longer = found._replace(logits=3 * found.logits, latent=3 * found.latent)
  np.testing.assert_allclose(
    *(scorer.distances(f, alone) for f in (found, longer)), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize('rounding', [0.0, 1e-7])
def test_copies_are_no_neighbours(generator, rounding):
  once, found = _features(generator), _features(generator, 100)
  (second,) = np.nonzero(once.label == 2)
  # A class that is there three times, as other places in a batch round it.
  rows = np.r_[0:400, second, second]
  some = once.rows(rows)
  noise = 1 + rounding * generator.standard_normal(some.latent.shape)
  some = some._replace(latent=(some.latent * noise).astype('f4'))
  one, several = (
    weibull.fit(x, tail_share=0.2, **_FIELDS) for x in (once, some)
  )
  np.testing.assert_array_equal(several.exemplar_count, one.exemplar_count)
  np.testing.assert_allclose(
    several.part_mean[:, 0], one.part_mean[:, 0], rtol=1e-4
  )
  a, b = (scorer.score(found, model) for model in (one, several))
  of_second = found.label == 2
  for scores in (a, b):
    assert np.mean(scores.prediction[of_second] == types.UNKNOWN) < 0.3
  # Nor in the scorer.
  np.testing.assert_allclose(
    scorer.distances(some, several),
    scorer.distances(once, several)[rows],
    rtol=1e-3,
    atol=1e-3,
  )


def test_a_class_of_one_sample_many_times(generator):
  features = _features(generator)
  (second,) = np.nonzero(features.label == 2)
  rows = np.arange(400)
  rows[second] = second[0]
  with pytest.raises(types.UserError, match=r'class 2.*all equal'):
    weibull.fit(features.rows(rows), tail_size=20, **_FIELDS)


def test_a_class_of_two_samples_has_no_tail(generator):
  # Each is the other's nearest, and both are equally far from their mean.
  features = _features(generator)
  (second,) = np.nonzero(features.label == 2)
  rows = np.delete(np.arange(400), second[2:])
  with pytest.raises(types.UserError, match=r'class 2: 2 .* at least 3'):
    weibull.fit(features.rows(rows), tail_size=20, **_FIELDS)


@pytest.mark.parametrize('few', [1, 2, 3])
def test_a_class_of_few_samples(generator, few):
  # Once each; the farthest that there is stands for those that are missing.
  train, found = _features(generator), _features(generator, 50)
  (second,) = np.nonzero(train.label == 2)
  rows = np.delete(np.arange(400), second)
  rows = np.r_[rows, second[:few], second[:few], second[:few]]
  model = weibull.fit(
    train.rows(rows), tail_features=train, tail_size=20, **_FIELDS
  )
  assert model.exemplar_count[2] == few

  def unit(f):
    a = np.concatenate([f.logits, f.latent], axis=1).astype(float)
    return a / np.linalg.norm(a, axis=1, keepdims=True)

  apart = np.linalg.norm(
    unit(found)[:, None] - unit(train.rows(second[:few])), axis=2
  )
  away = np.sort(np.sqrt(apart), axis=1)[:, :2].mean(axis=1)
  # Of a part alone, with nothing usual, the distance is what it answers.
  alone = model._replace(
    part_mean=np.zeros((4, 3)), part_deviation=np.ones((4, 3)),
    part_weight=np.array([1.0, 0, 0]),
  )  # fmt: skip
  np.testing.assert_allclose(
    scorer.distances(found, alone)[:, 2], away, rtol=1e-4
  )
  # To each other.
  own = scorer.distances(train.rows(second[:few]), alone)[:, 2]
  if few == 1:
    assert own == pytest.approx(0, abs=1e-3)
  elif few == 2:
    assert own[0] == pytest.approx(own[1], rel=1e-5)


@pytest.mark.parametrize('neighbours', [1, 2, 3])
def test_as_many_neighbours_as_the_model_has(generator, neighbours):
  # Models of before have one.
  train, found = _features(generator), _features(generator, 50)
  model = weibull.fit(train, tail_size=20, **_FIELDS)
  assert model.neighbours == 2
  each, own, label = _nearest(train, found, neighbours)
  alone = model._replace(
    neighbours=neighbours,
    part_mean=np.zeros((4, 3)), part_deviation=np.ones((4, 3)),
    part_weight=np.array([1.0, 0, 0]),
  )  # fmt: skip
  np.testing.assert_allclose(scorer.distances(found, alone), each, rtol=1e-4)
  # A training sample passes itself over.
  right = train.logits.argmax(axis=1) == train.label
  again = scorer.distances(train.rows(right), alone)
  np.testing.assert_allclose(
    again[np.arange(len(label)), label], own, rtol=1e-4
  )


def test_a_sample_without_a_direction(generator):
  train = _features(generator)
  model = weibull.fit(train, tail_size=20, **_FIELDS)
  still = train.rows([0])._replace(
    logits=np.zeros((1, 4)), latent=np.zeros((1, 6))
  )
  # At 1 from every unit vector.
  part = 2.0 * (1 - model.part_mean[:, 0]) / model.part_deviation[:, 0]
  assert (scorer.distances(still, model)[0] > 0.999 * part).all()
  assert scorer.score(still, model).prediction == [types.UNKNOWN]


@pytest.mark.parametrize('block', [1, 37, 1000])
def test_stream_equals_memory(generator, block):
  features = _features(generator)
  blocks = [features.rows(slice(i, i + block)) for i in range(0, 400, block)]
  whole = weibull.fit(features, tail_share=0.2, **_FIELDS)
  stream = weibull.fit_stream(lambda: blocks, tail_share=0.2, **_FIELDS)
  for a, b in zip(whole[1:], stream[1:], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_processes_fit_together(generator):
  features = _features(generator)
  none = features.rows(slice(0))
  parts = [
    [features.rows(slice(150))],
    [none],
    [features.rows(slice(150, 400))],
  ]
  barrier, given = threading.Barrier(3), [None] * 3

  def fit(i, out):
    def everyone(rows):
      given[i] = np.array(rows)
      barrier.wait(60)
      found = list(given)
      barrier.wait(60)
      return found

    out[i] = weibull.fit_stream(
      lambda: parts[i], tail_share=0.2, everyone=everyone, **_FIELDS
    )

  out = [None] * 3
  threads = [threading.Thread(target=fit, args=(i, out)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  whole = weibull.fit(features, tail_share=0.2, **_FIELDS)
  for model in out:
    for a, b in zip(model[1:], whole[1:], strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_score_is_its_own(generator):
  # Uneven classes, so that some have no exemplar where others do.
  train = _features(generator).rows(np.r_[0:300, 300:400:4])
  model = weibull.fit(train, tail_share=0.2, **_FIELDS)
  assert len(set(model.exemplar_count)) > 1
  found = _features(generator, 300)
  whole = scorer.score(found, model)
  for rows in ([7], [3, 299], range(100, 200)):
    for a, b in zip(scorer.score(found.rows(rows), model), whole, strict=True):
      np.testing.assert_array_equal(a, b[rows])
  # One that passes itself over changes nothing for what is beside it.
  mixed = types.Features(
    *(np.concatenate(x) for x in zip(found, train.rows([5]), strict=True))
  )
  for a, b in zip(scorer.score(mixed, model), whole, strict=True):
    np.testing.assert_array_equal(a[:-1], b)


def test_a_score_is_its_own_at_the_end_of_a_block(command, environment):
  # Compiled as for users: what rounds otherwise there is a matter of that.
  subprocess.run(
    [sys.executable, command], env={**environment, 'XLA_FLAGS': ''}, check=True
  )


@pytest.mark.parametrize('unit', [1e-19, 1e-12, 1e17, 1e19])
def test_directions_of_any_size(generator, unit):
  train, found = _features(generator), _features(generator, 100)
  train, found = (
    f._replace(logits=unit * f.logits, latent=unit * f.latent)
    for f in (train, found)
  )
  fields = {'vector': 'neighbour', 'scaling': 'within_class', 'tail_size': 20}
  model = weibull.fit(train, **fields)
  _, own, label = _nearest(train, found)
  mean = [own[label == i].mean() for i in range(4)]
  np.testing.assert_allclose(model.part_mean[:, 0], mean, rtol=1e-5)
  alone = model._replace(part_deviation=model.part_deviation.copy())
  alone.part_deviation[:, 1:] = np.inf
  np.testing.assert_allclose(
    scorer.distances(found, alone),
    _nearest_part(train, found),
    rtol=2e-4,
    atol=2e-4,
  )


@pytest.mark.parametrize('vector', ['joint', 'evidence', 'neighbour'])
def test_rejects_is_argmax_of_score(generator, vector):
  train, held_out = _features(generator), _features(generator)
  models = weibull.fit_shares(
    train, choice.SHARES, **(_FIELDS | {'vector': vector})
  )
  found = scorer.rejects(held_out, models)
  assert found.shape == (400, len(choice.SHARES)) and found.any()
  for i, model in enumerate(models):
    np.testing.assert_array_equal(
      found[:, i], scorer.score(held_out, model).prediction == types.UNKNOWN
    )


def test_a_class_is_added(generator):
  train = _features(generator)
  fields = _FIELDS | {'tail_size': 20}
  neighbour, evidence = (
    weibull.fit(train, **(fields | {'vector': v}))
    for v in ('neighbour', 'evidence')
  )
  new = _features(generator, 40).rows(slice(0, 40, 4))
  both = [
    extension.add('new', new, model, reject_known=0.02)
    for model in (neighbour, evidence)
  ]
  # It asks for class means alone.
  for a, b in zip(*both, strict=True):
    np.testing.assert_array_equal(a, b)
