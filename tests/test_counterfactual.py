"""Counterfactual images: losses by hand, the search, resumption, the job."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIGS
from scipy import special

from crosr_jax import (
  checkpoint,
  counterfactual,
  features,
  models,
  pipeline,
  saved,
  scorer,
  train,
  types,
)
from crosr_jax.data import splits
from crosr_jax.models import counterfactual as nets_lib

_GAN = {
  'seed': 0,
  'parallel': 'pmap',
  'num_steps': 6,
  'batch_size': 16,
  'learning_rate': 1e-3,
  'critic_steps': 2,
  'gradient_penalty': 10.0,
  'reconstruction_weight': 100.0,
  'log_every': 2,
  'checkpoint_every': 3,
  'keep_checkpoints': 2,
}
_SECTION = {
  'count': 24,
  'gan_steps': 6,
  'batch_size': 16,
  'latent_width': 4,
  'width': 4,
  'learning_rate': 1e-3,
  'critic_steps': 1,
  'gradient_penalty': 10.0,
  'reconstruction_weight': 100.0,
  'search_steps': 8,
  'search_rate': 0.1,
  'distance_weight': 0.5,
}
_TRAINING = {
  'num_steps': 20,
  'batch_size': 16,
  'reconstruction_weight': 1.0,
  'shift': 0,
  'flip': False,
  'log_every': 10,
  'checkpoint_every': 20,
  'keep_checkpoints': 1,
  'optimizer': 'sgd',
  'learning_rate': 0.1,
  'momentum': 0.9,
  'weight_decay': 0.0,
  'schedule': 'constant',
  'warmup_share': 0.0,
  'halvings': 0,
  'clip_norm': 5.0,
}


def _classifier():
  fields = {'width': 4, 'dropout': 0.0, 'head_dropout': 0.0, 'lateral': 'none'}
  return models.build(3, [0.3], [0.3], backbone='digits_cnn', **fields)


def _samples(n=64):
  generator = np.random.default_rng(0)
  label = np.arange(n, dtype=np.int32) % 3
  image = generator.integers(0, 100, (n, 8, 8, 1))
  image[np.arange(n), label * 2] += 155
  return splits.Labelled(image.astype(np.uint8), label)


def _nets(shape=(8, 8, 1)):
  nets = nets_lib.build(shape, latent_width=4, width=4)
  return nets, nets_lib.init(nets, shape, jax.random.key(0))


@pytest.mark.parametrize(
  ('shape', 'channels'),
  [((8, 8, 1), 4), ((28, 28, 1), 16), ((32, 32, 3), 16), ((13, 5, 3), 8),
   ((4, 3, 1), 4)],
)  # fmt: skip
def test_the_stack_follows_the_image(shape, channels):
  nets, params = _nets(shape)
  image = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
  code = jax.jit(nets.encode)(params, image)
  assert code.shape == (2, 4)
  np.testing.assert_allclose(np.linalg.norm(code, axis=1), 1.0, rtol=1e-5)
  made = jax.jit(nets.decode)(params, code)
  assert made.shape == image.shape
  assert made.min() >= 0 and made.max() <= 1
  assert jax.eval_shape(nets.judge, params['critic'], image).shape == (2,)
  height, width = nets_lib.sizes(shape[:2])[-1]
  bias = params['generator']['Dense_0']['bias']
  assert bias.shape == (height * width * channels,)


@pytest.mark.parametrize('size', [(28, 28), (7, 8), (5, 3), (2, 1)])
def test_the_halving_convolution_is_one(size):
  x = jax.random.normal(jax.random.key(0), (2, *size, 3))
  layer = nets_lib.HalvingConv(4)
  variables = layer.init(jax.random.key(1), x)
  kernel = variables['params']['Dense_0']['kernel'].reshape(3, 3, 3, 4)
  expected = jax.lax.conv_general_dilated(
    x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_gradient_penalty_of_a_linear_critic():
  # Its gradient is (3, 4, 0, 0) everywhere, of norm 5: (5 - 1)^2.
  weight = jnp.array([3.0, 4.0, 0.0, 0.0]).reshape(2, 2, 1)
  real, fake = jax.random.normal(jax.random.key(0), (2, 6, 2, 2, 1))
  penalty = counterfactual.gradient_penalty_of(
    lambda x: jnp.sum(x * weight[None], axis=(1, 2, 3)),
    real,
    fake,
    jnp.linspace(0.0, 1.0, 6),
  )
  np.testing.assert_allclose(penalty, 16.0, rtol=1e-6)


def test_gradient_penalty_is_taken_between_real_and_fake():
  # D = |x|^2 / 2 has the gradient x: the norm of the point itself.
  real, fake = np.random.default_rng(0).normal(size=(2, 5, 2, 2, 1))
  share = np.array([0.0, 0.25, 0.5, 0.9, 1.0])
  point = share[:, None] * real.reshape(5, 4)
  point += (1 - share)[:, None] * fake.reshape(5, 4)
  found = counterfactual.gradient_penalty_of(
    lambda x: 0.5 * jnp.sum(jnp.square(x), axis=(1, 2, 3)),
    *(jnp.asarray(x, jnp.float32) for x in (real, fake, share)),
  )
  expected = np.mean((np.linalg.norm(point, axis=1) - 1) ** 2)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # A critic that says nothing has no direction, and a gradient all the same.
  flat = jax.grad(
    lambda w: counterfactual.gradient_penalty_of(
      lambda x: w * jnp.sum(x, axis=(1, 2, 3)),
      *(jnp.asarray(x, jnp.float32) for x in (real, fake, share)),
    )
  )(0.0)
  assert np.isfinite(flat)


def test_losses_by_hand():
  nets, params = _nets()
  critic = params.pop('critic')
  real = np.asarray(_samples(6).image / 255, np.float32)
  fake = np.asarray(nets.decode(params, nets.encode(params, real)))
  share = np.full(6, 0.5, np.float32)
  of_real, of_fake = (
    np.asarray(nets.judge(critic, x), np.float64) for x in (real, fake)
  )
  penalty = counterfactual.gradient_penalty_of(
    functools.partial(nets.judge, critic), real, fake, share
  )
  loss, metrics = counterfactual.critic_loss(
    critic, nets, real, fake, share, 10.0
  )
  gap = of_real.mean() - of_fake.mean()
  np.testing.assert_allclose(loss, 10 * float(penalty) - gap, rtol=1e-4)
  np.testing.assert_allclose(metrics['critic'], gap, rtol=1e-4)
  loss, metrics = counterfactual.generator_loss(
    params, critic, nets, real, 100.0
  )
  error = np.abs(real.astype(np.float64) - fake).mean()
  np.testing.assert_allclose(loss, 100 * error - of_fake.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics['reconstruction'], error, rtol=1e-5)


def _fit(workdir, **changes):
  nets, _ = _nets()
  return counterfactual.fit(nets, _samples(), workdir, **{**_GAN, **changes})


def test_resumed_equals_uninterrupted(tmp_path, monkeypatch):
  changes = {'steps_per_dispatch': 2, 'data_on_device': 'always'}
  save, states = checkpoint.Checkpoints.save, []

  def note(self, step, state, *rest, **kwargs):
    states.append(state)
    save(self, step, state, *rest, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', note)
    whole = _fit(tmp_path / 'a', **changes)
  # All three nets learn; but of the critic, who compares, nothing is added to
  # what it says.
  for name, fixed in (('params', 0), ('critic', 1)):
    before, after = (jax.tree.leaves(getattr(x, name)) for x in states)
    assert sum(map(np.array_equal, before, after)) == fixed

  def cut(self, step, *rest, **kwargs):
    save(self, step, *rest, **kwargs)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', cut)
    with pytest.raises(KeyboardInterrupt):
      _fit(tmp_path / 'b', **changes)
  resumed = _fit(tmp_path / 'b', **changes)
  jax.tree.map(np.testing.assert_array_equal, whole.state, resumed.state)
  assert whole.history == resumed.history
  assert [row['step'] for row in whole.history] == [2, 3, 4, 6]
  # Again: nothing is left to do.
  again = _fit(tmp_path / 'b', **changes)
  jax.tree.map(np.testing.assert_array_equal, whole.state, again.state)
  assert again.seconds == resumed.seconds


def test_divergence_is_told(tmp_path):
  with pytest.raises(ValueError, match=r'GAN diverged.*learning_rate'):
    _fit(tmp_path, learning_rate=1e30)


def test_the_gan_learns_to_rebuild(tmp_path):
  history = _fit(tmp_path, num_steps=60, log_every=20).history
  assert history[-1]['reconstruction'] < 0.7 * history[0]['reconstruction']


def _known(logits):
  """log(1 + sum exp) in float64."""
  logits = np.asarray(logits, np.float64)
  return special.logsumexp(np.pad(logits, ((0, 0), (0, 1))), axis=1)


@pytest.fixture(scope='module')
def stages(tmp_path_factory):
  """A workdir with all three stages, and what they gave."""
  workdir = tmp_path_factory.mktemp('stages')
  samples = _samples()
  return workdir, _generate(workdir, samples)


def _generate(workdir, samples, **changes):
  return counterfactual.generate(
    _classifier(),
    samples,
    samples,
    workdir,
    seed=0,
    parallel='pmap',
    training=_TRAINING,
    **{**_SECTION, **changes},
  )


def test_the_search_ends_less_sure_than_it_began(stages):
  workdir, generated = stages
  images = generated.images
  classifier = _classifier()
  samples = _samples()
  fitted = train.fit(
    classifier, samples, samples, workdir / 'counterfactual' / 'classifier',
    seed=0, parallel='pmap', **_TRAINING,
  )  # fmt: skip
  # From the 8-bit images, by another way: features, then NumPy.
  sums = [
    _known(
      features.extract(
        classifier, fitted.state.variables, image, np.zeros(24, np.int32)
      ).logits
    )
    for image in (images.reconstruction, images.image)
  ]
  np.testing.assert_allclose(images.before, sums[0], atol=0.05)
  np.testing.assert_allclose(images.after, sums[1], atol=0.05)
  assert (images.before - images.after >= -1e-5).all()
  assert images.after.mean() < images.before.mean() - 0.1
  objective = 0.5 * images.distance + images.after
  assert (objective <= images.before + 1e-5).all()
  assert (images.distance <= 4).all()
  assert generated.select_accuracy == fitted.history[-1]['select_accuracy']


def test_objective_by_hand():
  generator = np.random.default_rng(0)
  code, start = generator.normal(size=(2, 5, 4)).astype(np.float32)
  mix = generator.normal(size=(4, 3)).astype(np.float32)
  value, known = counterfactual.objective(
    code, start, lambda z: 2.0 * z, lambda image: image @ mix, 0.25
  )
  by_hand = _known(2.0 * code.astype(np.float64) @ mix)
  np.testing.assert_allclose(known, by_hand, rtol=1e-5)
  np.testing.assert_allclose(
    value, by_hand + 0.25 * np.sum((code - start) ** 2, axis=1), rtol=1e-5
  )


def test_the_walk_finds_the_minimum_on_the_sphere():
  # 1 + a . z is least at -a / |a|.
  target = np.array([0.6, 0.0, 0.8], np.float32)
  start = np.eye(3, dtype=np.float32)[:2]
  step = jax.jit(
    lambda walk: counterfactual.advance(
      walk, lambda z: (1.0 + z @ target, z @ target), rate=0.1
    )
  )
  # The first code that is looked at is where it began.
  walk = step(counterfactual.begin(start))
  np.testing.assert_array_equal(walk.best, start)
  np.testing.assert_allclose(walk.term, [0.6, 0.0], atol=1e-6)
  for _ in range(60):
    before, walk = walk, step(walk)
    assert (walk.least <= before.least).all()
  np.testing.assert_allclose(walk.best, [-target] * 2, atol=0.1)
  assert (walk.term < -0.99).all()
  np.testing.assert_allclose(walk.least, 1.0 + walk.term, atol=1e-6)


def test_stages_are_not_repeated_and_damage_is_mended(stages, caplog):
  workdir, first = stages
  path = workdir / 'counterfactual' / 'images.npz'
  written = path.read_bytes()

  def same(generated):
    for a, b in zip(generated.images, first.images, strict=True):
      np.testing.assert_array_equal(a, b)

  same(_generate(workdir, _samples()))
  assert path.read_bytes() == written
  for damaged in (written[:-100], b'', b'no archive',
                  written[:200] + b'x' * 50 + written[250:]):  # fmt: skip
    caplog.clear()
    path.write_bytes(damaged)
    same(_generate(workdir, _samples()))
    assert any('damaged' in m and 'made again' in m for m in caplog.messages)
  other = _generate(workdir, _samples(), search_steps=2)
  assert other.images.after.mean() > first.images.after.mean()
  assert any('another training' in m for m in caplog.messages)
  path.write_bytes(written)


def test_all_that_is_trained_on_comes_from_the_training_samples(stages):
  _, generated = stages
  samples = _samples()
  assert len(set(generated.images.source)) == 24
  # More than there are means all.
  assert len(counterfactual._chosen(64, 10_000, 0)) == 64
  extended = counterfactual.augment(samples, generated.images.image, 3)
  np.testing.assert_array_equal(extended.image[:64], samples.image)
  np.testing.assert_array_equal(extended.image[64:], generated.images.image)
  np.testing.assert_array_equal(
    extended.label, np.append(samples.label, [3] * 24)
  )
  assert extended.image.dtype == np.uint8


def test_no_other_sample_changes_an_image(stages, tmp_path):
  # Held-out samples are looked at for the log alone.
  _, first = stages
  samples = _samples()
  other = splits.Labelled(255 - samples.image, samples.label)
  second = counterfactual.generate(
    _classifier(), samples, other, tmp_path, seed=0, parallel='pmap',
    training=_TRAINING, **_SECTION,
  )  # fmt: skip
  np.testing.assert_array_equal(second.images.image, first.images.image)


def test_scores_by_hand():
  outputs = np.log([[6.0, 3.0, 1.0], [1.0, 1.0, 8.0]]).astype(np.float32)
  found = features.split_unknown(
    types.Features(outputs, np.zeros((2, 0)), np.array([0, -1]))
  )
  assert found.logits.shape == (2, 2) and found.latent.shape == (2, 1)
  scores = scorer.score(found, method='augmented')
  np.testing.assert_allclose(
    scores.probability, [[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]], rtol=1e-5
  )
  assert list(scores.prediction) == [0, -1]
  np.testing.assert_allclose(
    scores.unknown_score, np.log([1 / 9, 4]), rtol=1e-5
  )


def test_score_never_saturates():
  logits = np.array([[1e4, 0.0]] * 5, np.float32)
  unknown = np.array([[-2e4], [0.0], [1e4 - 1], [1e4 + 1], [3e4]], np.float32)
  found = types.Features(logits, unknown, np.zeros(5, np.int32))
  score = scorer.score(found, method='augmented').unknown_score
  np.testing.assert_allclose(score, [-3e4, -1e4, -1, 1, 2e4], rtol=1e-5)


def test_unknown_needs_one_logit():
  found = types.Features(np.zeros((2, 3)), np.zeros((2, 0)), np.zeros(2))
  with pytest.raises(ValueError, match=r"'augmented' needs.*got width 0"):
    scorer.score(found, method='augmented')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'count': -1}, 'counterfactual.count must be at least 0, got -1'),
    ({'gan_steps': 0}, 'counterfactual.gan_steps must be at least 1'),
    ({'latent_width': 1}, 'latent_width must be at least 2'),
    ({'search_rate': float('nan')}, 'search_rate must be above 0.*nan'),
    ({'learning_rate': 0.0}, 'learning_rate must be above 0.*got 0'),
    ({'gradient_penalty': -1.0}, 'gradient_penalty must be at least 0'),
    ({'distance_weight': float('inf')}, 'distance_weight .* got inf'),
  ],
)
def test_bad_fields(changes, message):
  counterfactual.check_fields(**_SECTION)
  with pytest.raises(types.UsageError, match=message):
    counterfactual.check_fields(**{**_SECTION, **changes})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'batch_size': 12}, 'counterfactual.batch_size=12 cannot be split.*8'),
    ({'batch_size': 128}, 'batch_size=128 is more than the 64'),
  ],
)
def test_batches_that_cannot_be(tmp_path, changes, message):
  with pytest.raises(types.UsageError, match=message):
    _generate(tmp_path, _samples(), **changes)
  # Told before any stage begins.
  assert list(tmp_path.iterdir()) == []


_JOB = (
  'main', '--config=configs/digits.py',
  '--config.model.lateral=none', '--config.model.width=8',
  '--config.train.num_steps=120', '--config.train.checkpoint_every=60',
  '--config.counterfactual.count=100', '--config.counterfactual.gan_steps=40',
  '--config.counterfactual.width=8', '--config.counterfactual.search_steps=5',
  '--config.report.map_samples=60',
)  # fmt: skip


@pytest.fixture
def job(run_command):
  """Runs the main job with the system on; returns the finished process."""
  return functools.partial(run_command, *_JOB)


def test_the_classifier_is_trained_on_what_is_generated(tmp_path, monkeypatch):
  image = np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8, 1)
  images = counterfactual.Images(np.arange(5), image, image, *[np.ones(5)] * 3)
  made = counterfactual.Generated(images, 1.0, {})
  # Fields of a config are those that they take.
  monkeypatch.setattr(
    counterfactual,
    'generate',
    functools.wraps(counterfactual.generate)(lambda *_, **__: made),
  )
  seen = {}

  @functools.wraps(train.fit_all)
  def fit_all(model, training, *others, **fields):
    seen.update(model=model, training=training)
    raise types.UserError('enough')

  monkeypatch.setattr(train, 'fit_all', fit_all)
  config = CONFIGS['digits'].copy_and_resolve_references()
  config.model.lateral, config.counterfactual.count = 'none', 5
  with pytest.raises(types.UserError, match='enough'):
    pipeline.run(config, 'digits', tmp_path, tmp_path)
  training = seen['training']
  np.testing.assert_array_equal(training.image[-5:], image)
  # The class after seven known ones.
  assert training.label[-5:].tolist() == [7] * 5
  assert set(training.label[:-5].tolist()) == set(range(7))
  assert seen['model'].head.num_classes == 8


def test_main_job(job, tmp_path):
  workdir = f'--workdir={tmp_path}'
  process = job(workdir)
  assert process.returncode == 0, process.stderr
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['system'] == 'gan'
  assert report['counterfactual']['count'] == 100
  for row in report['unknown'].values():
    scored = {name for name, value in row.items() if isinstance(value, dict)}
    assert scored == {'gan', 'trivial'}
    assert 0 < row['gan']['auroc'] <= 1
    assert row['gan']['macro_f1'] is not None
    # K + 1 rows and columns, whatever the net's outputs.
    assert np.shape(row['gan']['confusion']) == (8, 8)
  found = saved.load(tmp_path)
  info = found.info
  assert found.models == {} and info['num_outputs'] == 8
  assert (info['entry'], info['method']) == ('gan', 'augmented')
  assert set(info['thresholds']) == {'gan'}
  drawn = {path.stem for path in (tmp_path / 'figures').iterdir()}
  assert {'counterfactuals', 'map', 'confusion', 'roc'} <= drawn
  assert 'reconstructions' not in drawn
  assert 'GAN unknown augmentation' in (tmp_path / 'report.md').read_text()
  # Another decision trains nothing; another system is refused.
  process = job(
    workdir, '--config.scorer.decision=tpr95', '--config.report.pictures=False'
  )
  assert process.returncode == 0, process.stderr
  assert 'first step' not in process.stderr
  again = json.loads((tmp_path / 'report.json').read_text())
  assert again['unknown'] == report['unknown']
  process = job(workdir, '--config.counterfactual.count=0')
  assert process.returncode == 2
  assert 'counterfactual.count was 100 and is now 0' in process.stderr


def test_a_lateral_is_refused(job, tmp_path):
  process = job(f'--workdir={tmp_path}', '--config.model.lateral=bottleneck')
  assert process.returncode == 2
  assert 'counterfactual.count=100 is for a classifier alone' in process.stderr
