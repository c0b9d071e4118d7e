"""Stand-ins for unknowns, and the ranking of recipes on them."""

import functools
import json
import warnings

import numpy as np
import pytest
from conftest import CONFIGS
from scipy import ndimage
from scipy.spatial import distance
from sklearn import covariance

from crosr_jax import data, files, ranking, types, weibull
from crosr_jax.data import standins


def _images(generator, n=40, side=8, channels=3):
  shape = (n, side, side, channels)
  return generator.integers(0, 256, shape, dtype=np.uint8), np.arange(n) % 4


@pytest.mark.parametrize(('side', 'channels'), [(8, 1), (28, 1), (32, 3)])
def test_stand_ins_are_images_of_the_same_kind(generator, side, channels):
  image, label = _images(generator, side=side, channels=channels)
  made = standins.make(image, label, seed=0)
  assert len(made) == 8
  for name, found in made.items():
    assert found.shape == image.shape and found.dtype == np.uint8, name
    assert not (found == image).all(axis=(1, 2, 3)).any(), name
  again = standins.make(image, label, seed=0)
  other = standins.make(image, label, seed=1)
  for name, found in made.items():
    np.testing.assert_array_equal(found, again[name])
    drawn = name in ('blend', 'quarters', 'speckle')
    assert (found != other[name]).any() == drawn, name


def test_stand_ins_by_law(generator):
  image, label = _images(generator)
  # Of class k, all pixels are 10 k: a blend tells which classes it is of.
  flat = np.broadcast_to(
    (10 * label[:, None, None, None]).astype(np.uint8), image.shape
  )
  blend = standins.make(flat, label, seed=0)['blend']
  assert (blend != flat).all() and set(np.unique(blend)) <= {5, 10, 15, 20, 25}
  made = standins.make(image, label, seed=0)
  np.testing.assert_array_equal(
    np.sort(made['quarters'].reshape(40, -1)), np.sort(image.reshape(40, -1))
  )
  for i in (0, 4):
    for j in (0, 4):
      quarter = (slice(None), slice(i, i + 4), slice(j, j + 4))
      moved = made['quarters'][quarter] != image[quarter]
      assert moved.any(axis=(1, 2, 3)).all()
      np.testing.assert_array_equal(
        made['tiles'][quarter], made['tiles'][:, :4, :4]
      )
  np.testing.assert_array_equal(255 - made['negative'], image)
  brightest = ndimage.maximum_filter(image, (1, 3, 3, 1), mode='nearest')
  np.testing.assert_array_equal(made['outline'], brightest - image)
  middle = standins.make(np.pad(image[:, 2:6, 2:6], _AROUND), label, 0)['zoom']
  inner = (slice(None), slice(1, -1), slice(1, -1))
  np.testing.assert_array_equal(middle[inner], made['zoom'][inner])
  noise = made['speckle'].astype(int) - image
  inside = (made['speckle'] > 0) & (made['speckle'] < 255)
  assert 20 < noise[inside].std() < 34


_AROUND = ((0, 0), (2, 2), (2, 2), (0, 0))


@pytest.fixture(scope='module')
def small():
  config = CONFIGS['digits'].copy_and_resolve_references()
  config.model.width, config.model.latent_width = 8, 8
  config.train.num_steps = 150
  config.data.calibrate_share = 0.2
  return config


@pytest.fixture(scope='module')
def ranked(small, tmp_path_factory):
  """A ranking whose benchmark has neither test samples nor unknowns."""
  workdir = tmp_path_factory.mktemp('ranking')
  found = []

  @functools.wraps(data.load)
  def load(**fields):
    benchmark = data_load(**fields)
    assert not benchmark.unknown
    found.append(benchmark.class_names)
    return benchmark._replace(test=None)

  data_load, ranking.data.load = data.load, load
  try:
    result = ranking.run(small, workdir, workdir, hold_out=3, folds=1)
  finally:
    ranking.data.load = data_load
  return result, workdir, found


def test_ranks_without_any_test_sample(ranked):
  result, workdir, loaded = ranked
  fold = result['folds'][0]
  # 7, 8 and 9 are the config's own unknowns, and stay out.
  assert sorted(fold['trained_on'] + fold['held_out']) == list(range(7))
  assert [len(names) for names in loaded] == [10, 4, 3]
  assert fold['select_accuracy'] > 0.8
  rows = result['mean']['auroc']
  assert {
    'max_logit',
    'published',
    'neighbour',
    'evidence, common logit',
    'evidence, margin 1, tail 20%',
  } < set(rows)
  both = [row['both'] for row in rows.values()]
  assert both == sorted(both, reverse=True)
  for row in rows.values():
    assert len(row) == 9 + 2 and all(0 <= x <= 1 for x in row.values())
    made = [v for n, v in list(row.items())[:9] if n != 'held_out']
    assert row['both'] == pytest.approx((row['held_out'] + np.mean(made)) / 2)
  # What a net has learnt in these seconds ranks far images above chance.
  assert rows['evidence']['mean of made'] > 0.75
  assert set(result['mean']['macro_f1']) == {'0.005', '0.01', '0.02', '0.05'}
  told = json.loads((workdir / 'ranking.json').read_text())
  assert told['mean'] == result['mean']
  lines = (workdir / 'ranking.md').read_text().splitlines()
  assert len(lines) == len(rows) + 2 + 1 + 4 + 2


def test_candidates_by_hand(generator):
  label = np.arange(90) % 3
  logits = (generator.normal(0, 0.3, (90, 3)) + 4 * np.eye(3)[label]).astype(
    'f4'
  )
  # Neither codes nor errors: they have no part in it.
  nothing = np.zeros((90, 0), np.float32)
  known = types.Features(logits, nothing, label, np.zeros(0, np.float32))
  top = logits.max(axis=1).astype(float)
  deviation = np.sqrt(np.mean([top[label == k].var() for k in range(3)]))
  shortfall = 2.5 * np.log1p(np.exp((top.mean() - top) / deviation))
  model = weibull.fit(known, **ranking._EVIDENCE)
  score = ranking._distance_of(model, ranking._shortfall(known))
  np.testing.assert_allclose(score(known), shortfall, rtol=1e-6)


def test_distances_of_others_by_hand(generator):
  """Nearest neighbours and Mahalanobis, by brute force."""
  label = np.arange(90) % 3
  known, asked = (
    types.Features(
      (generator.normal(size=(90, 3)) + 4 * np.eye(3)[label]).astype('f4'),
      generator.normal(size=(90, 4)).astype('f4'),
      label,
    )
    for _ in range(2)
  )
  rows, asked_rows = (
    np.concatenate([x.logits, x.latent], axis=1, dtype=np.float64)
    for x in (known, asked)
  )
  units = [
    x / np.linalg.norm(x, axis=1, keepdims=True) for x in (asked_rows, rows)
  ]
  expected = np.sort(distance.cdist(*units), axis=1)[:, 19]
  found = ranking._nearest(known)(asked)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  right = known.logits.argmax(axis=1) == label
  rows, label = rows[right], label[right]
  mean = np.stack([rows[label == k].mean(axis=0) for k in range(3)])
  shrunk = covariance.ledoit_wolf(rows - mean[label])[0]
  inverse = np.linalg.inv(shrunk)
  each = distance.cdist(asked_rows, mean, 'mahalanobis', VI=inverse)
  found = ranking._mahalanobis(known)(asked)
  np.testing.assert_allclose(found, each.min(axis=1), rtol=1e-4)


def _changes(workdir):
  files = (workdir / 'fold0' / 'checkpoints').rglob('*')
  return {path: path.stat().st_mtime_ns for path in files}


def test_no_fold_sees_a_test_sample_of_the_config(small, tmp_path):
  tested = {x.tobytes() for x in ranking._load(small, tmp_path).test.image}
  for trained_on in ((0, 3, 5, 6), (1, 2, 4), (4, 6)):
    left_out = sorted(set(range(10)) - set(trained_on))
    found = ranking._load(ranking._only(small, left_out), tmp_path)
    assert {x.tobytes() for x in found.test.image} < tested
    for image, _ in (found.train, found.select, found.calibrate):
      assert not tested & {x.tobytes() for x in image}


def test_a_candidate_that_a_fold_lacks_has_no_mean():
  rows = {'a': {'both': 0.25}, 'b': {'both': 1.0}}
  for found in ([rows, {'a': {'both': 0.75}}], [{'a': {'both': 0.75}}, rows]):
    assert ranking._mean(found) == {'a': {'both': 0.5}}


def test_classes_by_name(generator, caplog):
  label = np.arange(90) % 3
  known = types.Features(
    generator.normal(size=(90, 3)) + 9 * np.eye(3)[label],
    generator.normal(size=(90, 2)),
    label,
  )
  # Of the third class there is one sample.
  few = known.rows(np.r_[0:3, 3:90:3, 4:90:3])
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    ranking.candidates(known, few, ('cat', 'dog', 'eel'))
  assert 'class eel: 1 correctly classified' in caplog.text


def test_unknowns_of_every_class_count(generator):
  """However they are sorted; as many of them as of known ones."""

  def part(label, logits):
    return types.Features(logits, np.zeros((len(label), 0)), label)

  label = np.arange(300) % 3
  parts = {}
  for name in ('train', 'select', 'calibrate'):
    logits = generator.normal(0, 0.5, (300, 3)) + 9 * np.eye(3)[label]
    parts[name] = part(label, logits)
  # Of four classes kept back, by class, the last alone is hard to tell.
  kept_back = np.repeat(np.arange(4), 300)
  logits = generator.normal(0, 0.5, (1200, 3))
  logits[kept_back == 3] += 9 * np.eye(3)[0]
  parts['held_out'] = parts['blend'] = part(np.full(1200, -1), logits)
  row = ranking._rejecting(parts, vector='joint', scaling='none', margin=0.0)
  # Of a quarter most are taken for the first class.
  assert 0.7 < row['0.01']['held_out'] < 0.95


def test_a_finished_ranking_trains_nothing(ranked, small):
  result, workdir, _ = ranked
  before = _changes(workdir)
  again = ranking.run(small, workdir, workdir, hold_out=3, folds=1)
  assert again['mean'] == result['mean']
  assert before and _changes(workdir) == before


def test_another_training_is_refused(ranked, small):
  _, workdir, _ = ranked
  for change, told in (
    ({'train.shift': 2}, 'train.shift was 1 and is now 2'),
    ({'seed': 1}, 'seed was 0 and is now 1'),
    ({'data.unknown_classes': (0, 1, 2)}, 'data.unknown_classes was'),
  ):
    other = small.copy_and_resolve_references()
    other.update_from_flattened_dict(change)
    with pytest.raises(types.UsageError, match=told):
      ranking.run(other, workdir, workdir, hold_out=3, folds=1)


def test_more_folds_than_there_are(small, tmp_path):
  with pytest.raises(types.UsageError, match=r'--folds=99: .* there are 35'):
    ranking.run(small, tmp_path, tmp_path, hold_out=3, folds=99)


def test_the_split_that_is_named(small, tmp_path, monkeypatch):
  trained = []

  def parts(config, benchmark, near, folder):
    trained.append((benchmark.class_names, near.class_names))
    raise types.UserError('enough')

  monkeypatch.setattr(ranking, '_parts', parts)
  config = small.copy_and_resolve_references()
  config.data.unknown_classes = ()
  config.data.splits, config.data.split = ((0, 1, 2, 3), (5, 6, 7, 8, 9)), 1
  # Unknowns are not so much as looked for.
  config.evaluation.unknown_dirs = (str(tmp_path / 'nowhere'),)
  with pytest.raises(types.UserError, match='enough'):
    ranking.run(config, tmp_path, tmp_path, hold_out=2, folds=1)
  known, near = trained[0]
  assert len(known) == 3 and set(known) | set(near) == set('56789')


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    ({'seed': -1}, 'seed must be at least 0'),
    ({'data.unknown_classes': (12,)}, 'data.unknown_classes: 12 is no class'),
    (
      {'counterfactual.count': 9, 'model.lateral': 'none'},
      'counterfactual.count=9',
    ),
  ],
)
def test_configs_that_cannot_be_ranked(small, tmp_path, change, told):
  config = small.copy_and_resolve_references()
  config.update_from_flattened_dict(change)
  with pytest.raises(types.UsageError, match=told):
    ranking.run(config, tmp_path, tmp_path, hold_out=3, folds=1)


def test_one_job_at_a_time(small, tmp_path):
  with (
    files.held(tmp_path),
    pytest.raises(types.UserError, match='is in use by process'),
  ):
    ranking.run(small, tmp_path, tmp_path, hold_out=3, folds=1)
  assert not list(tmp_path.glob('fold*'))


def test_images_that_no_stand_in_can_be_made_of(generator):
  image, label = _images(generator, side=9)
  with pytest.raises(types.UserError, match=r'even height .* 9 x 9'):
    standins.make(image, label, 0)
  with pytest.raises(types.UserError, match='at least two classes'):
    standins.make(image[:, :8, :8], 0 * label, 0)


@pytest.mark.parametrize('count', [1, 6, -1])
def test_classes_to_keep_back(small, tmp_path, count):
  with pytest.raises(types.UsageError, match=r'of 7 known classes, 2 to 5'):
    ranking.run(small, tmp_path, tmp_path, hold_out=count, folds=1)


def test_command(run_command, tmp_path):
  call = functools.partial(run_command, 'rank')
  process = call('--config=configs/digits.py', '--folds=0')
  assert process.returncode == 2 and '--folds=0' in process.stderr
  process = call(
    '--config=configs/digits.py', '--hold_out=6', f'--workdir={tmp_path}'
  )
  assert process.returncode == 2, process.stderr
  assert 'error: --hold_out=6: of 7 known' in process.stderr
  for field in ('weibull.tail=7', 'scorer.reject_known=.1'):
    process = call('--config=configs/digits.py', f'--config.{field}')
    assert process.returncode == 2
    told = f'error: --config.{field.partition("=")[0]} has no say in a ranking'
    assert told in process.stderr
  process = call('--config=configs/digits.py', '--workdir=/proc/nowhere')
  assert process.returncode == 2 and 'cannot be written' in process.stderr
  process = call('--help')
  assert process.returncode == 0 and 'kept back in each fold' in process.stdout
