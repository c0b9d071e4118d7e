"""Several nets that answer as one."""

import json

import jax
import numpy as np
import pytest

from crosr_jax import (
  exported,
  exporting,
  features,
  models,
  openset,
  saved,
  train,
  types,
)
from crosr_jax.data import splits

_NET = {
  'backbone': 'digits_cnn', 'width': 4, 'dropout': 0.25, 'head_dropout': 0.5,
  'latent_width': 3,
}  # fmt: skip
_FIT = {
  'parallel': 'pmap', 'num_steps': 6, 'batch_size': 16,
  'reconstruction_weight': 1.0, 'shift': 0, 'flip': False, 'log_every': 2,
  'checkpoint_every': 3, 'keep_checkpoints': 2, 'optimizer': 'sgd',
  'learning_rate': 0.05, 'momentum': 0.9, 'weight_decay': 0.0,
  'schedule': 'constant', 'warmup_share': 0.0, 'clip_norm': 5.0, 'halvings': 1,
}  # fmt: skip


@pytest.fixture
def samples(generator):
  label = np.arange(64, dtype=np.int32) % 3
  image = generator.integers(0, 200, (64, 8, 8, 1))
  image[np.arange(64), label * 2] += 55
  return splits.Labelled(image.astype(np.uint8), label)


def _build(members, **changes):
  return models.build(3, [0.4], [0.3], members=members, **_NET | changes)


def _initial(members, image, **changes):
  """An ensemble and variables as its members begin; and the members alone."""
  net = _build(members, **changes)
  own = [
    models.init(member, image, jax.random.key(i))
    for i, member in enumerate(net.members)
  ]
  variables = {
    name: {f'members_{i}': x[name] for i, x in enumerate(own)}
    for name in ('params', 'batch_stats')
  }
  return net, variables, list(zip(net.members, own, strict=True))


@pytest.mark.parametrize('lateral', ['bottleneck', 'identity', 'none'])
def test_members_by_hand(samples, lateral):
  net, variables, alone = _initial(3, samples.image, lateral=lateral)
  found = features.extract(net, variables, *samples)
  outputs = [member.apply(x, samples.image) for member, x in alone]
  np.testing.assert_allclose(
    found.logits, np.mean([x.logits for x in outputs], axis=0), atol=1e-5
  )
  # Deepest block first, and of each block one member after the other.
  blocks = [
    np.concatenate(x, 1)
    for x in zip(*(x.latents for x in outputs), strict=True)
  ]
  np.testing.assert_allclose(
    found.latent, np.concatenate(blocks, axis=1), atol=1e-5
  )
  if lateral == 'none':
    assert not len(found.reconstruction_error)
    return
  rebuilt = np.mean([x.reconstruction for x in outputs], axis=0)
  error = (rebuilt - (samples.image / 255 - 0.4) / 0.3) ** 2
  np.testing.assert_allclose(
    found.reconstruction_error, error.mean((1, 2, 3)), rtol=1e-4
  )


def test_one_member_is_a_net():
  assert _build(1) == models.build(3, [0.4], [0.3], **_NET)
  with pytest.raises(types.UsageError, match=r'model\.members .* got 0'):
    _build(0)


def test_members_are_trained_apart(samples, tmp_path):
  net = _build(2)
  both = train.fit_all(net, *[samples] * 2, tmp_path / 'x', seed=3, **_FIT)
  alone = [
    train.fit(member, *[samples] * 2, tmp_path / str(seed), seed=seed, **_FIT)
    for seed, member in zip((6, 7), net.members, strict=True)
  ]
  for i, expected in enumerate(alone):
    for name, tree in expected.state.variables.items():
      jax.tree.map(
        np.testing.assert_array_equal,
        both.state.variables[name][f'members_{i}'],
        tree,
      )
  assert [row['step'] for row in both.history] == [2, 3, 4, 6]
  losses = [[row['loss'] for row in x.history] for x in alone]
  np.testing.assert_allclose(
    [row['loss'] for row in both.history], np.mean(losses, axis=0)
  )
  found = features.extract(net, both.state.variables, *samples)
  assert both.select_accuracy == np.mean(
    found.logits.argmax(axis=1) == samples.label
  )
  again = train.fit_all(net, *[samples] * 2, tmp_path / 'x', seed=3, **_FIT)
  jax.tree.map(np.testing.assert_array_equal, again.state, both.state)


@pytest.mark.parametrize('steps', [(3, 3), (6, 3)])
def test_members_have_best_steps_of_their_own(
  samples, tmp_path, monkeypatch, steps
):
  """As with train.keep='best', which nobody can foretell."""
  net, fit = _build(2), train.fit
  kept = iter(steps)

  def best(*args, **fields):
    found = fit(*args, **fields)
    return found._replace(state=found.state._replace(step=np.int32(next(kept))))

  monkeypatch.setattr(train, 'fit', best)
  found = train.fit_all(net, *[samples] * 2, tmp_path, seed=0, **_FIT)
  assert found.evaluated_step == (3 if steps == (3, 3) else [6, 3])
  row = {x['step']: x for x in found.history}[3 if steps == (3, 3) else 6]
  together = features.extract(net, found.state.variables, *samples)
  right = np.mean(together.logits.argmax(axis=1) == samples.label)
  assert found.select_accuracy == row['select_accuracy'] == right


def test_an_ensemble_as_its_users_have_it(run_command, tmp_path):
  """The main job, loaded, exported; a workdir is bound to its members."""
  command = (
    *('main', '--config=configs/digits.py'),
    *(f'--workdir={tmp_path}', '--config.report.pictures=False'),
    *('--config.train.num_steps=100', '--config.model.width=16'),
  )
  done = run_command(*command, '--config.model.members=2')
  assert not done.returncode, done.stderr
  report = json.loads((tmp_path / 'report.json').read_text())
  model = openset.load(tmp_path)
  assert report['parameters'] == sum(
    x.size for x in jax.tree.leaves(model.variables['params'])
  )
  image = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)
  expected = model(image)
  known = saved.load_features(tmp_path)['test']
  assert known.latent.shape[1] == 2 * 2 * 32  # members, blocks, codes
  path = tmp_path / 'x.jaxexport'
  path.write_bytes(exporting.pack(model, {'about': 'a test'}))
  probability, unknown_score, prediction = exported.load(str(path))(image)
  np.testing.assert_array_equal(prediction, expected.prediction)
  np.testing.assert_allclose(probability, expected.probability, atol=1e-6)
  np.testing.assert_allclose(
    unknown_score, expected.unknown_score, rtol=1e-4, atol=1e-4
  )
  done = run_command(*command)
  assert done.returncode == 2
  assert 'model.members was 2 and is now 1' in done.stderr
