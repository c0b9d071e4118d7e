"""The replica step on 1 and 8 devices, schedules, augmentation, the loop."""

import functools
import logging
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from crosr_jax import (
  checkpoint,
  exported,
  feed,
  loop,
  mixing,
  models,
  optimizer,
  sharding,
  signals,
  train,
  types,
)
from crosr_jax.data import augment, batches, splits

_RULE = {
  'optimizer': 'sgd',
  'learning_rate': 0.05,
  'momentum': 0.9,
  'weight_decay': 5e-4,
  'schedule': 'one_cycle',
  'warmup_share': 0.3,
  'halvings': 19,
  'clip_norm': 5.0,
}
# Nothing but the gradient times 0.05.
_PLAIN = {
  **_RULE,
  'schedule': 'constant',
  'warmup_share': 0.0,
  'momentum': 0.0,
  'weight_decay': 0.0,
}
# What a net is made from: no more than its shape.
_IMAGE = np.zeros((1, 8, 8, 1), np.uint8)
_FIT = {
  'seed': 0,
  'parallel': 'pmap',
  'num_steps': 6,
  'batch_size': 16,
  'reconstruction_weight': 1.0,
  'label_smoothing': 0.0,
  'average': 0.0,
  'shift': 1,
  'flip': True,
  'log_every': 2,
  'checkpoint_every': 3,
  'keep_checkpoints': 2,
  **_RULE,
}


def _net(**changes):
  fields = {'width': 8, 'dropout': 0.25, 'head_dropout': 0.5, **changes}
  return models.build(3, [0.4], [0.3], backbone='digits_cnn', **fields)


def _samples(n=64):
  generator = np.random.default_rng(0)
  label = np.arange(n, dtype=np.int32) % 3
  image = generator.integers(0, 200, (n, 8, 8, 1))
  image[np.arange(n), label * 2] += 55
  return splits.Labelled(image.astype(np.uint8), label)


def _steps(net, devices, parallel, num_steps=20, together=1):
  """Losses and parameters after some steps of dropout and augmentation."""
  rule, rate = optimizer.build(20, **_RULE)
  step = functools.partial(
    train.replica_step,
    model=net,
    rule=rule,
    rate=rate,
    augmentation=augment.build(
      shift=1,
      flip=True,
      shift_fill='reflect',
      rotate=15.0,
      lighting=25.5,
      expand=1.2,
      crop=7,
      mean=net.mean,
      covariance=((0.1,),),
    ),
    key=jax.random.key(1),
    reconstruction_weight=1.0,
    label_smoothing=0.1,
    average=0.9,
    mixup=0.4,
    noise=0.2,
    cutout=3,
  )
  engine = sharding.engine(
    step, parallel=parallel, devices=jax.devices()[:devices]
  )
  state = train.init_state(net, rule, _IMAGE, jax.random.key(0), average=0.9)
  placed, losses = engine.place(state), []
  order = batches.training(_samples(), 32, 0, 0)
  for _ in range(num_steps // together):
    batch = [next(order) for _ in range(together)]
    placed, metrics = engine.step(placed, *batch)
    losses.extend(np.ravel(metrics['loss']))
  return np.array(losses), engine.fetch(placed)


@functools.cache
def _of_net(devices, parallel):
  """The 20 steps of the net as it is, which several tests compare with."""
  return _steps(_net(), devices, parallel)


def test_devices_and_ways_agree():
  losses, state = _of_net(1, 'pmap')
  assert losses[-1] < losses[0]
  for parallel in sharding.PARALLEL:
    found, other = _of_net(8, parallel)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
      state.variables,
      other.variables,
    )


@pytest.mark.parametrize(
  ('parallel', 'together', 'is_unrolled'),
  [('pmap', 5, False), ('shard_map', 2, True)],
)
def test_steps_of_one_program(monkeypatch, parallel, together, is_unrolled):
  """A loop, as on accelerators, and written out, as on CPU."""
  losses, state = _of_net(8, parallel)
  monkeypatch.setattr(sharding, '_is_unrolled', lambda platform: is_unrolled)
  found, other = _steps(_net(), 8, parallel, 20, together)
  np.testing.assert_allclose(found, losses, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, other
  )


def test_each_sample_of_each_step_has_a_key_of_its_own(monkeypatch):
  """Augmentation and loss draw from it: by the step and the sample's number."""

  def bits(keys):
    data = jax.random.key_data(keys)
    return jnp.stack([data >> 16, data & 0xFFFF], 1).astype(jnp.float32)

  def loss(params, batch_stats, model, samples, keys, *others):
    seen = {'augmentation': samples.image, 'loss': bits(keys)}
    return 0.0 * params['w'], (seen, batch_stats)

  monkeypatch.setattr(train, 'loss_fn', loss)
  rule, rate = optimizer.build(10, **_PLAIN)
  key, number = jax.random.key(3), np.array([5, 9, 5 + 64], np.int32)
  batch = types.Batch(
    np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, np.int32), np.ones(3, bool)
  )
  params = {'w': jnp.float32(1)}
  step = functools.partial(
    train.replica_step,
    model=None,
    rule=rule,
    rate=rate,
    augmentation=lambda image, keys: bits(keys),
    key=key,
    reconstruction_weight=1.0,
    label_smoothing=0.0,
    average=0.0,
  )
  run = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name='batch'))
  for taken in (0, 1):
    state = train.TrainState(jnp.int32(taken), params, {}, rule.init(params))
    _, seen = run(state, jax.tree.map(lambda x: x[None], (batch, number)))
    of_step = jax.random.fold_in(key, taken)
    expected = bits(jnp.stack([jax.random.fold_in(of_step, n) for n in number]))
    for name in ('augmentation', 'loss'):
      np.testing.assert_array_equal(seen[name][0], expected)


class _AskedError(Exception):
  """What a stage of `fit` was called with, in place of it."""


def _asked(monkeypatch, module, name):
  def stop(*args, **fields):
    raise _AskedError(args, fields)

  monkeypatch.setattr(module, name, stop)
  return pytest.raises(_AskedError)


@pytest.mark.parametrize('balanced', [False, True])
def test_balanced_is_handed_on(tmp_path, monkeypatch, balanced):
  with _asked(monkeypatch, feed, 'build') as found:
    _fit(tmp_path, balanced=balanced)
  assert found.value.args[1]['balanced'] is balanced


def test_a_net_begins_with_images_of_all_classes(tmp_path, monkeypatch):
  """Which a layer that whitens is made from; data may be sorted."""
  label = np.repeat(np.arange(3, dtype=np.int32), 700)
  image = np.broadcast_to(label[:, None, None, None], (2100, 8, 8, 1))
  samples = splits.Labelled(image.astype(np.uint8), label)
  with _asked(monkeypatch, models, 'init') as found:
    train.fit(_net(), samples, samples, tmp_path, **_FIT)
  seen = np.asarray(found.value.args[0][1])
  assert len(seen) < 700 and set(np.unique(seen)) == {0, 1, 2}


@pytest.mark.parametrize(
  ('smoothing', 'noise', 'cutout', 'turns', 'mixup'),
  [
    (0.0, 0.0, 0, (), 0.0),
    (0.2, 0.3, 4, (), 0.0),
    (0.2, 0.3, 4, (90, 270), 0.3),
  ],
)
def test_loss_by_hand(smoothing, noise, cutout, turns, mixup):
  # What is seen in evaluation is no matter here.
  net = _net(eval_crop=6, rotation_classes=turns)
  samples = _samples(8)
  variables = models.init(net, _IMAGE, jax.random.key(0))
  batch = types.Batch(*samples, np.ones(8, bool))
  keys = jax.random.split(jax.random.key(0), 8)

  def replica(image, label, keys):
    loss, (metrics, _) = train.loss_fn(
      variables['params'],
      variables['batch_stats'],
      net,
      types.Batch(image, label, batch.mask),
      keys,
      0.5,
      smoothing,
      noise=noise,
      cutout=cutout,
      mixup=mixup,
    )
    return loss, metrics

  loss, metrics = jax.jit(jax.vmap(replica, axis_name='batch'))(
    *(x[None] for x in (batch.image, batch.label, keys))
  )
  image, label = samples
  if turns:
    # Label y with the i-th turn is y + K i.
    image, which = map(np.asarray, mixing.turned(image, keys, turns))
    label = label + 3 * which
    assert len(set(which)) > 1
  num_classes = 9 if turns else 3
  soft = (1 - smoothing) * np.eye(num_classes)[label] + smoothing / num_classes
  if mixup:
    mixed = jax.vmap(
      lambda keys, *rows: jax.tree.map(mixing.mixer(keys, mixup), rows),
      axis_name='batch',
    )(keys[None], image[None], soft.astype(np.float32)[None])
    image, soft = (np.asarray(x[0]) for x in mixed)
    assert 0 < np.median(soft) < np.max(soft) < 1
  # They are on what the net sees; what it is to rebuild stays clean.
  seen = mixing.noisy(image, keys, noise, net.deviation)
  seen = mixing.cut_out(seen, keys, cutout, net.mean)
  apply = jax.vmap(
    lambda image, keys: net.apply(
      variables, image, keys, train=True, mutable=['batch_stats']
    ),
    axis_name='batch',
  )
  applied = jax.jit(apply)
  outputs, _ = applied(seen[None], keys[None])
  # Dropout is on: that devices and ways agree would else be worth little.
  others, _ = applied(seen[None], keys[None, ::-1])
  assert np.abs(others.logits - outputs.logits).max() > 1e-3
  logits = np.asarray(outputs.logits[0], np.float64)
  assert logits.shape == (8, num_classes)
  right = np.mean(np.argmax(logits, axis=1) == label)
  np.testing.assert_allclose(metrics['accuracy'][0], right, rtol=1e-6)
  logits -= logits.max(1, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  cross_entropy = -(soft * log_p).sum(axis=1).mean()
  target = (image / 255 - 0.4) / 0.3
  error = np.mean((np.asarray(outputs.reconstruction[0]) - target) ** 2)
  np.testing.assert_allclose(
    metrics['cross_entropy'][0], cross_entropy, rtol=1e-5
  )
  np.testing.assert_allclose(metrics['reconstruction'][0], error, rtol=1e-5)
  np.testing.assert_allclose(loss[0], cross_entropy + 0.5 * error, rtol=1e-5)


@pytest.mark.parametrize('degrees', [(90, 180, 270), (270, 90), (180,)])
def test_turns_by_hand(degrees):
  image = np.random.default_rng(0).integers(0, 256, (256, 5, 5, 2), np.uint8)
  keys = jax.random.split(jax.random.key(3), len(image))
  turned = jax.jit(mixing.turned, static_argnums=2)
  found, which = turned(image, keys, degrees)
  assert found.dtype == np.uint8
  for one, other, i in zip(image, found, which, strict=True):
    turn = (0, *degrees)[i]
    np.testing.assert_array_equal(np.rot90(one, turn // 90), other)
  counts = np.bincount(which, minlength=1 + len(degrees))
  assert stats.chisquare(counts).pvalue > 1e-3, counts
  # A sample's turn follows its key, wherever it stands in the batch.
  alone, _ = turned(image[7:8], keys[7:8], degrees)
  np.testing.assert_array_equal(alone[0], found[7])


def test_of_turned_images_the_upright_are_told():
  net = _net(rotation_classes=(90, 270))
  image = _samples(16).image
  variables = models.init(net, _IMAGE, jax.random.key(0))
  found, whole = (
    jax.jit(x.apply)(variables, image).logits
    for x in (net, net.clone(rotation_classes=()))
  )
  assert whole.shape == (16, 9)
  np.testing.assert_allclose(found, whole[:, :3], rtol=1e-6)
  tall = np.zeros((1, 8, 6, 1), np.uint8)
  fields = {**_RULE, 'reconstruction_weight': 1.0, 'shift': 0, 'flip': False}
  with pytest.raises(types.UsageError, match='of 8 x 6 pixels are not square'):
    train.build_step(net, tall, seed=0, num_steps=2, average=0.0, **fields)


@pytest.mark.parametrize('replicas', [1, 2, 8])
def test_mixup_by_hand(replicas):
  keys = jax.random.split(jax.random.key(3), 16)
  image = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1), np.uint8)
  label = np.eye(6, dtype=np.float32)[np.arange(16) % 6]

  def replica(image, label, keys):
    mix = mixing.mixer(keys, 0.3)
    return mix(image), mix(label)

  split = [x.reshape(replicas, -1, *x.shape[1:]) for x in (image, label, keys)]
  mixed = jax.jit(jax.vmap(replica, axis_name='batch'))(*split)
  mixed_image, mixed_label = (np.concatenate(np.asarray(x)) for x in mixed)
  # What a row keeps can be read off its label: no two neighbours share one.
  own = mixed_label[np.arange(16), np.arange(16) % 6]
  assert 0.5 <= own.min() < 0.9 and own.max() > 0.99
  for rows, found in ((image, mixed_image), (label, mixed_label)):
    kept = own.reshape(16, *(1,) * (rows.ndim - 1))
    expected = kept * rows + (1 - kept) * np.roll(rows, -1, axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [0.3, 1.0])
def test_mixup_follows_its_distribution(shape):
  keys = jax.random.split(jax.random.key(0), 4_000)
  rows = np.tile(np.eye(2, dtype=np.float32), (2_000, 1))
  mixed = jax.vmap(
    lambda keys, rows: mixing.mixer(keys, shape)(rows), axis_name='batch'
  )(keys[None], rows[None])
  share = stats.beta(shape, shape)
  larger = stats.kstest(
    np.asarray(mixed[0]).max(axis=1),
    lambda x: share.cdf(x) - share.cdf(1 - x),
  )
  assert larger.pvalue > 1e-3


def test_noise_follows_its_distribution():
  keys = jax.random.split(jax.random.key(0), 500)
  image = np.full((500, 4, 5, 2), 100, np.uint8)
  noisy = np.asarray(mixing.noisy(image, keys, 0.5, (0.2, 0.4)))
  for channel, deviation in enumerate((0.1, 0.2)):
    added = (noisy[..., channel] - 100) / (255 * deviation)
    assert stats.kstest(added.ravel(), 'norm').pvalue > 1e-3


@pytest.mark.parametrize(
  ('side', 'size'), [(3, (7, 9)), (4, (6, 5)), (6, (6, 6))]
)
def test_cutout_is_a_square_anywhere(side, size):
  keys = jax.random.split(jax.random.key(0), 3_000)
  image = np.full((3_000, *size, 2), 7, np.uint8)
  cut = np.asarray(mixing.cut_out(image, keys, side, (0.2, 0.4)))
  is_cut = cut[..., 0] != 7
  for channel, colour in enumerate((51, 102)):
    np.testing.assert_allclose(cut[is_cut][:, channel], colour, rtol=1e-6)
    assert (cut[~is_cut][:, channel] == 7).all()
  # A rectangle, and how long it is on each axis if centres are uniform.
  spans = [is_cut.any(axis=axis) for axis in (2, 1)]
  np.testing.assert_array_equal(
    is_cut, spans[0][:, :, None] & spans[1][:, None]
  )
  # Of 3 around 2: 1, 2, 3; of 4: 0, 1, 2, 3.
  firsts = {tuple(np.flatnonzero(x)) for x in spans[0]}
  assert tuple(range(2 - side // 2, 2 - side // 2 + side)) in firsts or side > 5
  assert len(firsts) == size[0]
  for span, length in zip(spans, size, strict=True):
    expected = sum(
      max(
        0, min(center - side // 2 + side, length) - max(center - side // 2, 0)
      )
      for center in range(length)
    )
    assert abs(span.sum(axis=1).mean() - expected / length) < 0.1


def test_average_by_hand():
  state = train.TrainState(jnp.int32(1), {'w': jnp.ones(2)}, {}, ())
  state = state._replace(average={'params': {'w': jnp.zeros(2)},
                                  'batch_stats': {}})  # fmt: skip
  # After the first of many steps it keeps 1 / 11, much later nine tenths.
  first = train._averaged(state, 0.9)
  np.testing.assert_allclose(first.average['params']['w'], 10 / 11)
  later = train._averaged(state._replace(step=jnp.int32(10_000)), 0.9)
  np.testing.assert_allclose(later.average['params']['w'], 0.1, rtol=1e-6)
  assert later.variables is later.average
  assert train._averaged(state, 0.0) is state
  assert state._replace(average=()).variables == state.trained


def test_muon_makes_updates_of_convolutions_orthogonal(generator):
  fields = {**_PLAIN, 'optimizer': 'muon', 'momentum': 0.9, 'clip_norm': 0.0}
  rule, _ = optimizer.build(10, **fields)
  params = {
    'conv': jnp.zeros((3, 3, 4, 8)), 'dense': jnp.zeros((5, 6)),
    'bias': jnp.zeros(6),
  }  # fmt: skip
  gradient = jax.tree.map(
    lambda x: generator.normal(size=x.shape).astype(np.float32), params
  )
  update, _ = rule.update(gradient, rule.init(params), params)
  # 36 x 8, as tall as it is wide after scaling: all singular values near 1.
  values = np.linalg.svd(np.asarray(update['conv']).reshape(36, 8))[1]
  np.testing.assert_allclose(values, 0.05, rtol=0.35)
  # The rest is Adam's, with Nesterov momentum and a twentieth of the rate: the
  # first step is as large everywhere, against the sign.
  step = 0.05 * 0.05 * (1 + 0.9 / 1.9)
  for name in ('dense', 'bias'):
    np.testing.assert_allclose(
      update[name], -step * np.sign(gradient[name]), rtol=1e-3
    )


@pytest.mark.parametrize('num_steps', [1, 10, 1000])
@pytest.mark.parametrize('schedule', optimizer.SCHEDULES)
def test_schedules_stretch(schedule, num_steps):
  _, rate = optimizer.build(num_steps, **{**_RULE, 'schedule': schedule})
  values = np.array([float(rate(i)) for i in range(num_steps)])
  assert (values >= 0).all() and values.max() <= 0.05 * (1 + 1e-6)
  if num_steps == 1000:
    peak = values.argmax()
    assert abs(peak - 300) <= 1
    if schedule in ('cosine', 'linear', 'one_cycle'):
      assert values[-1] < 2e-3 * values.max()


def test_halving_halves_at_equal_distances():
  fields = {**_RULE, 'schedule': 'halving', 'warmup_share': 0.0, 'halvings': 3}
  _, rate = optimizer.build(100, **fields)
  assert [float(rate(i)) / 0.05 for i in (0, 24, 25, 49, 50, 75, 99)] == (
    pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.125, 0.125])
  )


def test_halving_begins_after_the_rise():
  fields = {**_RULE, 'schedule': 'halving', 'warmup_share': 0.3, 'halvings': 19}
  _, rate = optimizer.build(1000, **fields)
  rates = np.array([rate(step) for step in range(1000)])
  peak = fields['learning_rate']
  assert rates[300] == pytest.approx(peak)
  falls = rates[301:] / rates[300:-1]
  assert set(np.round(falls, 6)) == {0.5, 1.0}
  assert rates[-1] == pytest.approx(peak / 2**19)


def test_more_halvings_than_steps():
  fields = {**_RULE, 'schedule': 'halving', 'warmup_share': 0.0, 'halvings': 19}
  _, rate = optimizer.build(10, **fields)
  np.testing.assert_allclose(float(rate(10)), 0.05 / 2**19, rtol=1e-5)
  # Two of them a step.
  np.testing.assert_allclose(float(rate(8)) / float(rate(6)), 1 / 2**4)


def test_halvings_come_to_an_end():
  with pytest.raises(types.UsageError, match='below 1001, got 2147483647'):
    optimizer.build(10, **{**_RULE, 'halvings': 2**31 - 1})


@pytest.mark.parametrize('parallel', sharding.PARALLEL)
def test_the_state_that_is_handed_in_stays(parallel):
  engine = sharding.engine(
    lambda state, batch: (state + 1, {'n': state[0]}), parallel=parallel
  )
  for state in (np.arange(6, dtype=np.float32), jnp.arange(6.0)):
    placed = engine.place(state)
    for i in range(3):
      placed, metrics = engine.step(placed, np.zeros((8, 1), np.float32))
      assert np.asarray(metrics['n']).item() == i
      if not i:
        fetched = engine.fetch(placed)
    np.testing.assert_array_equal(fetched, np.arange(6.0) + 1)
    np.testing.assert_array_equal(state, np.arange(6.0))
    np.testing.assert_array_equal(engine.fetch(placed), np.arange(6.0) + 3)


@pytest.fixture
def options(monkeypatch):
  """Sets what XLA is told."""

  def change(value):
    monkeypatch.setattr(exported, '_ON_ALL_CORES', value)
    exported.compiler_options.cache_clear()

  yield change
  exported.compiler_options.cache_clear()


def test_both_libraries_of_convolutions_train_alike(options):
  losses, _ = _of_net(1, 'pmap')
  options({})
  other, _ = _steps(_net(), 1, 'pmap', 3)
  np.testing.assert_allclose(losses[:3], other, rtol=1e-5)


def test_an_option_that_this_version_lacks_is_left_out(options):
  options({'xla_no_such_option': 'x'})
  assert exported.compiler_options('cpu') == {}
  assert exported.compiler_options('gpu') == {}
  # An option that is there, with a value that it cannot have.
  options({'xla_cpu_parallel_codegen_split_count': 'many'})
  with pytest.raises(jax.errors.JaxRuntimeError):
    exported.compiler_options('cpu')


@pytest.mark.parametrize('name', optimizer.OPTIMIZERS)
def test_decay_spares_biases(name):
  rule, _ = optimizer.build(
    10, **{**_PLAIN, 'optimizer': name, 'weight_decay': 0.1}
  )
  params = {'kernel': jnp.ones((1, 1, 2, 2)), 'bias': jnp.ones(2)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  update, _ = rule.update(zeros, rule.init(params), params)
  np.testing.assert_allclose(update['kernel'], -0.05 * 0.1, rtol=1e-6)
  np.testing.assert_array_equal(update['bias'], 0)


def test_gradients_are_clipped():
  rule, _ = optimizer.build(10, **_PLAIN)
  params = {'kernel': jnp.zeros((2, 2))}
  huge = {'kernel': jnp.full((2, 2), 1e6)}
  update, _ = rule.update(huge, rule.init(params), params)
  np.testing.assert_allclose(optax.global_norm(update), 0.05 * 5, rtol=1e-5)


def test_augmentation_moves_and_mirrors():
  image = np.zeros((64, 5, 5, 1), np.uint8)
  image[:, 2, 1] = 255
  keys = jax.random.split(jax.random.key(0), 64)
  moved = np.asarray(augment.build(shift=1, flip=False)(image, keys))
  assert moved.dtype == np.uint8
  spots = {tuple(np.argwhere(x[..., 0])[0]) for x in moved}
  assert spots == {(r, c) for r in (1, 2, 3) for c in (0, 1, 2)}
  mirrored = np.asarray(augment.build(shift=0, flip=True)(image, keys))
  columns = [int(np.argwhere(x[..., 0])[0, 1]) for x in mirrored]
  assert set(columns) == {1, 3}
  assert 16 < columns.count(3) < 48
  same = augment.build(shift=0, flip=False)(image, keys)
  np.testing.assert_array_equal(same, image)
  # A sample's change follows its key, wherever it stands in the batch.
  alone = augment.build(shift=1, flip=True)(image[7:8], keys[7:8])
  whole = augment.build(shift=1, flip=True)(image, keys)
  np.testing.assert_array_equal(alone[0], whole[7])


def _fit(workdir, **changes):
  samples = _samples()
  return train.fit(_net(), samples, samples, workdir, **{**_FIT, **changes})


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {
      'steps_per_dispatch': 2,
      'data_on_device': 'always',
      'parallel': 'shard_map',
    },
  ],
)
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, changes):
  whole = _fit(tmp_path / 'a', **changes)
  # The second session begins at the checkpoint of step 3.
  save = checkpoint.Checkpoints.save

  def cut(self, step, *rest, **named):
    save(self, step, *rest, **named)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', cut)
    with pytest.raises(KeyboardInterrupt):
      _fit(tmp_path / 'b', **changes)
  resumed = _fit(tmp_path / 'b', **changes)
  jax.tree.map(np.testing.assert_array_equal, whole.state, resumed.state)
  assert whole.history == resumed.history
  assert [row['step'] for row in whole.history] == [2, 3, 4, 6]
  assert [row['step'] for row in whole.history if 'select_accuracy' in row] == [
    3,
    6,
  ]


@pytest.mark.parametrize('parallel', sharding.PARALLEL)
def test_images_on_devices_change_nothing(tmp_path, parallel):
  fields = {'parallel': parallel, 'balanced': True}
  host = _fit(tmp_path / 'a', **fields)
  device = _fit(tmp_path / 'b', data_on_device='always', **fields)
  jax.tree.map(np.testing.assert_array_equal, host.state, device.state)
  assert host.history == device.history


@pytest.fixture
def listening():
  """SIGTERM, Ctrl-C and SIGHUP are answered, as in a command."""
  of_python = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: signal.SIG_DFL,
  }
  # Whoever started the tests may have them ignored.
  before = {x: signal.signal(x, handler) for x, handler in of_python.items()}
  signals.listen()
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """What a training ends with that nothing interrupted, by `keep`."""
  return functools.cache(
    lambda keep: _fit(tmp_path_factory.mktemp('whole'), keep=keep)
  )


@pytest.mark.parametrize(
  ('step', 'keep', 'number'),
  [
    (2, 'last', signal.SIGTERM),
    (5, 'last', signal.SIGINT),
    (3, 'best', signal.SIGINT),
    (5, 'best', signal.SIGTERM),
    (2, 'last', signal.SIGHUP),
    # The last one: nothing is left to do but to end.
    (6, 'last', signal.SIGTERM),
    (6, 'last', signal.SIGINT),
  ],
)
def test_asked_to_end_it_saves_the_step(
  whole, tmp_path, monkeypatch, listening, step, keep, number
):
  """Rows are due at 2, 4, 6, checkpoints at 3 and 6."""
  expected = whole(keep)
  add, taken = loop._Journal.add, []

  def add_and_ask(self, metrics, count):
    add(self, metrics, count)
    taken.append(metrics)
    if len(taken) == step:
      signal.raise_signal(number)

  with monkeypatch.context() as patch:
    patch.setattr(loop._Journal, 'add', add_and_ask)
    with pytest.raises(signals.Terminated) as found:
      _fit(tmp_path, keep=keep)
  assert found.value.number == number
  assert len(taken) == step
  kept = [int(p.name) for p in (tmp_path / 'checkpoints').iterdir()]
  assert max(kept) == step
  resumed = _fit(tmp_path, keep=keep)
  jax.tree.map(np.testing.assert_array_equal, expected.state, resumed.state)
  assert expected.history == resumed.history


def test_asked_to_end_while_it_compiles_it_takes_no_step(
  whole, tmp_path, monkeypatch, listening
):
  compiled = loop._compiled

  def compiled_and_ask(*args):
    signal.raise_signal(signal.SIGTERM)
    return compiled(*args)

  with monkeypatch.context() as patch:
    patch.setattr(loop, '_compiled', compiled_and_ask)
    patch.setattr(loop._Journal, 'add', lambda *_: pytest.fail('a step'))
    with pytest.raises(signals.Terminated):
      _fit(tmp_path)
  assert list((tmp_path / 'checkpoints').iterdir()) == []
  later = _fit(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, whole('last').state, later.state)


def test_a_second_interrupt_ends_at_once(
  tmp_path, monkeypatch, capfd, listening
):
  add = loop._Journal.add

  def add_and_interrupt(self, metrics, count):
    add(self, metrics, count)
    signal.raise_signal(signal.SIGINT)
    told = capfd.readouterr().err
    assert told == (
      '\nsaving a checkpoint first; Ctrl-C once more ends at once\n'
    )
    signal.raise_signal(signal.SIGINT)
    pytest.fail('it went on')

  monkeypatch.setattr(loop._Journal, 'add', add_and_interrupt)
  with pytest.raises(KeyboardInterrupt):
    _fit(tmp_path)
  assert list((tmp_path / 'checkpoints').iterdir()) == []
  # Where nothing waits, the first one does.
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_stays_ignored(listening, number):
  """As of a command that a shell runs in the background, and of nohup."""
  signal.signal(number, signal.SIG_IGN)
  signals.listen()
  assert signal.getsignal(number) is signal.SIG_IGN


def test_a_diverged_step_is_not_saved_when_asked_to_end(
  tmp_path, monkeypatch, listening
):
  def add(self, metrics, count):
    self._pending.append({'loss': float('nan')})
    signal.raise_signal(signal.SIGTERM)

  monkeypatch.setattr(loop._Journal, 'add', add)
  with pytest.raises(types.DivergedError, match='at step 1 loss is nan'):
    _fit(tmp_path)
  assert list((tmp_path / 'checkpoints').iterdir()) == []


def test_the_best_checkpoint_on_select_is_kept(tmp_path, monkeypatch):
  accuracies = {1: 0.3, 2: 0.9, 3: 0.9, 4: 0.5, 5: 0.6, 6: 0.1}
  monkeypatch.setattr(
    train, '_accuracy', lambda model, select, state: accuracies[int(state.step)]
  )
  fields = {'checkpoint_every': 1, 'keep_checkpoints': 2, 'keep': 'best'}
  found = _fit(tmp_path / 'a', **fields).state
  # The last of two that are equally good, and what it was at that step.
  assert found.step == 3
  short = _fit(tmp_path / 'b', checkpoint_every=1, keep_checkpoints=9).state
  assert short.step == 6
  with checkpoint.Checkpoints(tmp_path / 'b', 9) as checkpoints:
    jax.tree.map(
      np.testing.assert_array_equal,
      found,
      checkpoints.restore_step(3, short),
    )
  kept = sorted(int(p.name) for p in (tmp_path / 'a/checkpoints').iterdir())
  assert kept == [3, 5, 6]
  # Opened again it is the same, and damage is no silent fall-back.
  assert _fit(tmp_path / 'a', **fields).state.step == 3
  next((tmp_path / 'a/checkpoints/3').rglob('_METADATA')).write_text('{}')
  with pytest.raises(ValueError, match=r'checkpoint 3 .* is the best, and'):
    _fit(tmp_path / 'a', **fields)


def test_finished_training_is_not_repeated(tmp_path):
  first = _fit(tmp_path)
  again = _fit(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, first.state, again.state)
  assert first.history == again.history
  assert again.images_per_second == pytest.approx(
    first.images_per_second, rel=0.5
  )


def test_history_holds_means(tmp_path):
  fine = _fit(tmp_path / 'a', log_every=1, checkpoint_every=6).history
  coarse = _fit(tmp_path / 'b', log_every=3, checkpoint_every=6).history
  assert len(fine) == 6 and len(coarse) == 2
  for key in ('loss', 'cross_entropy', 'reconstruction', 'accuracy'):
    means = [np.mean([r[key] for r in fine[i : i + 3]]) for i in (0, 3)]
    np.testing.assert_allclose([r[key] for r in coarse], means, rtol=1e-6)


def test_divergence_stops_and_keeps_the_checkpoint(tmp_path):
  with pytest.raises(
    ValueError, match=r'diverged: at step \d+ .*learning_rate'
  ):
    _fit(tmp_path, learning_rate=1e30, clip_norm=0.0, num_steps=40,
         schedule='constant', warmup_share=0.9, checkpoint_every=1)  # fmt: skip
  kept = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert kept
  like = train.init_state(
    _net(),
    optimizer.build(40, **{**_RULE, 'clip_norm': 0.0})[0],
    _IMAGE,
    jax.random.key(0),
  )
  with checkpoint.Checkpoints(tmp_path, 2) as checkpoints:
    state, _ = checkpoints.restore(like)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
  ('rate', 'told'), [(1e37, 'net gives'), (3e38, 'weights')]
)
def test_what_the_last_step_makes_is_looked_at(tmp_path, rate, told):
  """Its metrics are of what was before."""
  fields = {'clip_norm': 0.0, 'num_steps': 2, 'checkpoint_every': 1}
  schedule = {'schedule': 'constant', 'warmup_share': 0.5}
  with pytest.raises(types.DivergedError, match=f'at step 2 .*{told}.*finite'):
    _fit(tmp_path, learning_rate=rate, **fields, **schedule)
  kept = [p.name for p in (tmp_path / 'checkpoints').iterdir()]
  assert kept == ['1']


def test_tensorboard_files_are_written(tmp_path):
  _fit(tmp_path)
  (events,) = (tmp_path / 'tensorboard').iterdir()
  data = events.read_bytes()
  for name in (b'train/loss', b'train/reconstruction', b'train/accuracy'):
    assert name in data


def test_plain_lines_without_a_terminal(tmp_path, caplog):
  with caplog.at_level(logging.INFO):
    _fit(tmp_path)
  assert any('first step after' in m for m in caplog.messages)
  (last,) = [m for m in caplog.messages if m.startswith('training 6/6, ')]
  assert 'images/s, loss ' in last and last.endswith(', 0 s left')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'parallel': 'pmp'}, "did you mean 'pmap'"),
    ({'num_steps': 0}, 'train.num_steps must be at least 1, got 0'),
    ({'batch_size': 12}, 'batch_size=12 cannot be split.*8 devices'),
    ({'batch_size': 0}, 'train.batch_size must be at least 1'),
    ({'batch_size': 128}, 'batch_size=128 is more than the 64'),
    ({'reconstruction_weight': -1.0}, 'reconstruction_weight .* got -1.0'),
    ({'reconstruction_weight': float('inf')}, 'and finite, got inf'),
    ({'optimizer': 'adam'}, "train.optimizer .*did you mean 'adamw'"),
    ({'schedule': 'onecycle'}, "did you mean 'one_cycle'"),
    ({'learning_rate': 0.0}, 'train.learning_rate must be above 0'),
    ({'learning_rate': float('nan')}, 'train.learning_rate.*got nan'),
    ({'learning_rate': float('inf')}, 'train.learning_rate.*got inf'),
    ({'momentum': 1.0}, 'train.momentum must be at least 0 and below 1'),
    ({'weight_decay': -1e-4}, 'train.weight_decay must be at least 0'),
    ({'clip_norm': -1.0}, 'train.clip_norm'),
    ({'warmup_share': 1.0}, 'train.warmup_share'),
    ({'halvings': -1}, 'train.halvings'),
    ({'shift': -1}, 'train.shift must be at least 0'),
    ({'shift': 8}, r'train.shift=8 moves images of 8 x 8 pixels out'),
    ({'shift_fill': 'blak'}, "train.shift_fill .*did you mean 'black'"),
    ({'rotate': 181.0}, 'rotate must be at least 0 and at most 180, got 181'),
    ({'rotate': float('nan')}, 'train.rotate .* got nan'),
    ({'lighting': -1.0}, 'train.lighting must be at least 0'),
    ({'expand': 0.9}, 'train.expand must be at least 1 .* got 0.9'),
    ({'crop': -1}, 'train.crop must be at least 0, got -1'),
    ({'cutout': 9}, 'train.cutout must be at least 0 and at most 8'),
    ({'crop': 9}, 'train.crop=9 is larger than the images, 8 x 8'),
    ({'keep_checkpoints': 0}, 'train.keep_checkpoints'),
    ({'log_every': 0}, 'train.log_every'),
    ({'steps_per_dispatch': -1}, 'steps_per_dispatch .* at least 0, got -1'),
    ({'data_on_device': 'alway'}, "did you mean 'always'"),
  ],
)
def test_bad_fields(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    _fit(tmp_path, **changes)


def test_nothing_is_compiled_after_the_first_round(tmp_path, compilations):
  """Twice as many steps, logs and checkpoints compile no program more."""

  def compiled(num_steps):
    before = len(compilations)
    _fit(tmp_path / str(num_steps), num_steps=num_steps)
    return len(compilations) - before

  compiled(3)
  assert compiled(6) == compiled(12) > 0
