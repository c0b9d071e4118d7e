"""The fitted model on disk comes back whole or not at all."""

import hashlib
import json
import zipfile

import numpy as np
import pytest

from crosr_jax import saved, types, weibull


def _saved(generator, **info):
  label = np.arange(200, dtype=np.int32) % 2
  features = types.Features(
    generator.normal(size=(200, 2)) + 6 * np.eye(2)[label],
    generator.normal(size=(200, 3)),
    label,
    generator.uniform(1, 2, size=200),
  )
  models = {
    'crosr': weibull.fit(features, vector='evidence', tail_size=20),
    'crosr, neighbour': weibull.fit(features, vector='neighbour', tail_size=20),
    'openmax': weibull.fit(features, vector='logits', tail_size=20),
  }
  variables = {
    'params': {
      'block 0': {'kernel': generator.normal(size=(3, 2)).astype(np.float32)},
      'head': {'bias': np.zeros(2, np.float32)},
    },
    'batch_stats': {},
  }
  held_out = generator.normal(size=9).astype(np.float32)
  return features, saved.Saved(info, models, held_out, variables)


def test_round_trip(tmp_path, generator):
  features, whole = _saved(generator, class_names=['a|b', 'ü\n'], x=1.5)
  saved.save(tmp_path, whole, {'train': features, 'my set': features})
  found = saved.load(tmp_path)
  assert whole.info.items() <= found.info.items()
  assert list(found.models) == list(whole.models)
  for name, model in whole.models.items():
    assert found.models[name].vector == model.vector
    for a, b in zip(found.models[name][1:], model[1:], strict=True):
      np.testing.assert_array_equal(a, b)
      assert np.asarray(a).dtype == np.asarray(b).dtype
  np.testing.assert_array_equal(found.held_out, whole.held_out)
  kernel = found.variables['params']['block 0']['kernel']
  np.testing.assert_array_equal(
    kernel, whole.variables['params']['block 0']['kernel']
  )
  assert kernel.dtype == np.float32 and found.variables['batch_stats'] == {}
  parts = saved.load_features(tmp_path)
  assert list(parts) == ['train', 'my set']
  for a, b in zip(parts['my set'], features, strict=True):
    np.testing.assert_array_equal(a, b)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'features.npz', 'fitted.npz', 'model.json', 'weights.npz',
  ]  # fmt: skip


def test_what_is_not_whole(tmp_path, generator):
  with pytest.raises(types.UserError, match=r'model\.json is missing'):
    saved.load(tmp_path)
  with pytest.raises(types.UsageError, match='is no folder'):
    saved.load(tmp_path / 'nowhere')
  features, whole = _saved(generator)
  for name in ('fitted.npz', 'weights.npz', 'features.npz'):
    saved.save(tmp_path, whole, {'train': features})
    data = (tmp_path / name).read_bytes()
    load = saved.load_features if name == 'features.npz' else saved.load
    (tmp_path / name).write_bytes(data[:-4])
    with pytest.raises(types.UserError, match=rf'{name} is damaged'):
      load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(types.UserError, match=rf'{name} is missing'):
      load(tmp_path)
  for text in ('{', '[]', '3'):
    (tmp_path / 'model.json').write_text(text)
    with pytest.raises(types.UserError, match=r'model\.json is'):
      saved.load(tmp_path)
  (tmp_path / 'model.json').write_text('{"format": 1}')
  with pytest.raises(types.UserError, match=r'of format 1, this .* reads 4'):
    saved.load(tmp_path)


@pytest.mark.parametrize('change', ['older', 'newer'])
def test_a_file_of_another_version(tmp_path, generator, change):
  _, whole = _saved(generator)
  saved.save(tmp_path, whole)
  with np.load(tmp_path / 'fitted.npz') as arrays:
    fields = dict(arrays)
  if change == 'older':
    del fields['crosr/mav']
  else:
    fields['crosr/from_later'] = np.zeros(2)
  np.savez(tmp_path / 'fitted.npz', **fields)
  _sign(tmp_path)
  with pytest.raises(types.UserError, match='written by another version'):
    saved.load(tmp_path)


def _sign(workdir):
  """As if `save` had written what is there."""
  data = (workdir / 'fitted.npz').read_bytes()
  info = json.loads((workdir / 'model.json').read_text())
  info['fitted_sha256'] = hashlib.sha256(data).hexdigest()
  del info['sha256']
  text = json.dumps(info, sort_keys=True)
  info['sha256'] = hashlib.sha256(text.encode()).hexdigest()
  (workdir / 'model.json').write_text(json.dumps(info))


@pytest.mark.parametrize(
  'change',
  [{'threshold': 9.0}, {'threshold': None}, {'more': 1}, {'class_names': None}],
)
def test_a_number_that_was_changed(tmp_path, generator, change):
  _, whole = _saved(generator, threshold=1.5, class_names=['a', 'b'])
  saved.save(tmp_path, whole)
  path = tmp_path / 'model.json'
  info = json.loads(path.read_text())
  # Written otherwise it is the same.
  path.write_text(json.dumps(dict(reversed(info.items()))))
  assert saved.load(tmp_path).info['threshold'] == 1.5
  path.write_text(json.dumps(info | change))
  with pytest.raises(types.UserError, match=r'model\.json is damaged'):
    saved.load(tmp_path)


def test_a_run_without_features_says_how_to_keep_them(tmp_path, generator):
  saved.save(tmp_path, _saved(generator)[1])
  with pytest.raises(types.UserError, match=r'report\.features=True'):
    saved.load_features(tmp_path)


@pytest.mark.parametrize(
  'own',
  [
    'model.json',
    'checkpoints/1/x',
    'damaged/x',
    'diagnosis.png',
    'figures/curves.png',
    'tensorboard/events',
  ],
)
def test_what_is_the_runs_own(tmp_path, own):
  with pytest.raises(types.UsageError, match="is the run's own"):
    saved.check_output(tmp_path / own, tmp_path)
  saved.check_output(tmp_path / 'mine' / own, tmp_path)


def test_files_of_two_runs_are_not_mixed(tmp_path, generator):
  for name in ('a', 'b'):
    saved.save(tmp_path / name, _saved(generator)[1])
  (tmp_path / 'a' / 'weights.npz').rename(tmp_path / 'b' / 'weights.npz')
  with pytest.raises(types.UserError, match=r'not of this model\.json'):
    saved.load(tmp_path / 'b')


def test_it_runs_no_code(tmp_path, generator):
  # A pickled array in a file is refused, not loaded.
  saved.save(tmp_path, _saved(generator)[1])
  np.savez(tmp_path / 'fitted.npz', **{'a/mav': np.array([print], object)})
  _sign(tmp_path)
  with pytest.raises(ValueError, match='holds Python objects'):
    saved.load(tmp_path)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'reconstruction_error': None}, 'reconstruction_error holds Python obj'),
    ({'label': np.zeros(2, object)}, 'train/label holds Python objects'),
    ({'latent': np.ma.masked_less(np.eye(2), 1)}, 'latent: 2 values are mask'),
  ],
)
def test_what_no_file_gives_back_is_not_written(tmp_path, change, words):
  good = types.Features(np.ones((2, 3)), np.ones((2, 2)), np.zeros(2, np.int32))
  path = tmp_path / 'x.npz'
  with pytest.raises(types.UsageError, match=words):
    saved.write_features(path, {'train': good._replace(**change)})
  assert not path.exists()


def test_a_member_that_is_no_array(tmp_path):
  path = tmp_path / 'x.npz'
  ones = types.Features(np.ones((2, 3)), np.ones((2, 2)), np.zeros(2, np.int32))
  saved.write_features(path, {'train': ones})
  assert saved.read_features(path).keys() == {'train'}
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('test/logits.npy', b'no array')
  with pytest.raises(types.UserError, match='holds no features'):
    saved.read_features(path)


@pytest.mark.parametrize('scaling', weibull.SCALINGS)
@pytest.mark.parametrize('vector', weibull.VECTORS)
def test_a_model_alone(tmp_path, generator, vector, scaling):
  label = np.arange(200) % 4
  features = types.Features(
    generator.normal(size=(200, 4)) + 9 * np.eye(4)[label],
    generator.normal(size=(200, 3)) + label[:, None],
    label,
    np.ones(200),
  )
  # Codes and errors that never move tell nothing.
  features.latent[:, 1] = 3.0
  model = weibull.fit(features, vector=vector, scaling=scaling, tail_size=20)
  path = tmp_path / 'model.npz'
  saved.write_model(path, model)
  found = saved.read_model(path)
  for name, value in model._asdict().items():
    np.testing.assert_array_equal(getattr(found, name), value)
  for name in ('latent_width', 'neighbours'):
    assert hash(getattr(found, name)) == hash(getattr(model, name))
  assert found.vector == vector
  # As it was written before there were several.
  arrays = dict(np.load(path))
  del arrays['neighbours']
  np.savez(path, **arrays)
  assert saved.read_model(path).neighbours == (vector == 'neighbour')


@pytest.mark.parametrize(
  ('changed', 'words'),
  [
    (
      {'shape': np.ones(3)},
      r'shape is float64 of shape \[3\], needed .* \[4\]',
    ),
    ({'dead': np.full(4, 'no')}, 'dead is <U2'),
    ({'exemplar_count': np.ones(4)}, r'shape \[4\], needed .* \[0\]'),
    ({'mav': np.ones(4)}, 'holds no model'),
    ({'vector': 'pixels'}, "'pixels'"),
    ({'vector': 'neighbour'}, "0 exemplars of vector 'neighbour'"),
    ({'vector': 'evidence'}, 'part_mean is float64 of shape'),
    ({'vector': 'evidence', 'latent_width': 99}, 'latent_width is 99, mav 4'),
    ({'mav': np.full((4, 4), '1')}, 'mav is <U1'),
    ({'scale': np.array([1, 2, np.nan, 3])}, 'scale is not finite'),
    ({'neighbours': 1}, 'neighbours is 1, of 0 exemplars'),
  ],
)
def test_what_is_no_model(tmp_path, generator, changed, words):
  label = np.arange(80) % 4
  logits = generator.normal(size=(80, 4)) + 9 * np.eye(4)[label]
  features = types.Features(logits, np.zeros((80, 0)), label)
  model = weibull.fit(features, vector='logits', tail_size=10)
  path = tmp_path / 'model.npz'
  saved.write_model(path, model._replace(**changed))
  with pytest.raises(types.UserError, match=words) as caught:
    saved.read_model(path)
  assert str(path) in str(caught.value)


def test_no_file_of_a_model(tmp_path):
  with pytest.raises(types.UserError, match='No such file'):
    saved.read_model(tmp_path / 'none.npz')
  saved.write_features(tmp_path / 'x.npz', {})
  with pytest.raises(types.UserError, match='holds no model'):
    saved.read_model(tmp_path / 'x.npz')


@pytest.mark.parametrize('read', [saved.read_model, saved.read_features])
def test_no_advice_to_trust_it(tmp_path, read):
  path = tmp_path / 'x.npz'
  path.write_text('a note')
  with pytest.raises(types.UserError, match='no npz file') as caught:
    read(path)
  assert 'pickle' not in str(caught.value)
  np.savez(path, mav=np.array([{}]))
  with pytest.raises(types.UserError, match='mav holds Python objects'):
    read(path)
