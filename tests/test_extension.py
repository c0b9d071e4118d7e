"""Classes that are added to a finished run."""

import io
import re
import shutil

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from sklearn import datasets

from crosr_jax import (
  exported,
  exporting,
  extension,
  files,
  openset,
  saved,
  scorer,
  types,
  weibull,
)


def _features(rng, label, count):
  """Four classes, of which the net knows three."""
  center = np.array([[6, 0, 0], [0, 6, 0], [0, 0, 6], [1, 1, 1]], float)
  code = 4 * np.eye(4)[label][None] + rng.normal(size=(count, 4))
  return types.Features(
    (center[label] + rng.normal(size=(count, 3))).astype(np.float32),
    code.astype(np.float32),
    np.full(count, label if label < 3 else types.UNKNOWN, np.int32),
  )


def _all(parts):
  return types.Features(*map(np.concatenate, zip(*parts, strict=True)))


@pytest.fixture(scope='module')
def fitted():
  rng = np.random.default_rng(0)
  known = _all([_features(rng, k, 500) for k in range(3)])
  return weibull.fit(
    known, vector='joint', scaling='within_class', tail_share=0.05
  )


@pytest.fixture(scope='module')
def added(fitted):
  new = _features(np.random.default_rng(1), 3, 40)
  return extension.add('new', new, fitted, reject_known=0.02)


def _directions(features, fitted):
  a = np.hstack([features.logits, features.latent]).astype(float)
  a = (a - fitted.mav.mean(axis=0)) / fitted.feature_scale
  return a / np.linalg.norm(a, axis=1, keepdims=True)


def test_distances_are_to_the_mean_of_the_others(fitted):
  new = _features(np.random.default_rng(1), 3, 15)
  found = extension.add('new', new, fitted, reject_known=0.05)
  unit = _directions(new, fitted)
  alone = [
    np.linalg.norm(unit[i] - np.delete(unit, i, axis=0).mean(axis=0))
    for i in range(15)
  ]
  # All 15 make the tail: a tail holds at least 20.
  shape, loc, scale = weibull.fit_tails([alone], tail_size=15)
  np.testing.assert_allclose(found.shape, shape, rtol=1e-6)
  np.testing.assert_allclose(found.loc, loc, rtol=1e-6)
  np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
  np.testing.assert_allclose(found.limit, 0.95)
  np.testing.assert_allclose(found.mav[0], unit.mean(axis=0), rtol=1e-6)


def test_scores_by_scipy(fitted, added):
  rng = np.random.default_rng(2)
  features = _all([_features(rng, k, 50) for k in range(4)])
  before = scorer.score(features, fitted)
  found = extension.score(before, features, added)
  away = np.linalg.norm(_directions(features, fitted) - added.mav, axis=1)
  w = scipy.stats.weibull_min.cdf(
    away, added.shape, loc=added.loc, scale=added.scale
  )
  unknown = before.probability[:, 3]
  np.testing.assert_array_equal(
    found.probability[:, :3], before.probability[:, :3]
  )
  np.testing.assert_allclose(
    found.probability[:, 3], unknown * (1 - w), atol=1e-6
  )
  np.testing.assert_allclose(found.probability[:, 4], unknown * w, atol=1e-6)
  inside = (w > 1e-6) & (w < 1 - 1e-6)
  odds = np.log(w[inside]) - np.log1p(-w[inside])
  expected = np.minimum(before.unknown_score[inside], odds)
  np.testing.assert_allclose(
    found.unknown_score[inside], expected, rtol=1e-3, atol=1e-4
  )
  is_added = (before.prediction == types.UNKNOWN) & (w <= added.limit[0])
  np.testing.assert_array_equal(
    found.prediction, np.where(is_added, 3, before.prediction)
  )
  assert is_added[150:].sum() > 40 and is_added[:150].sum() < 3


def test_an_answer_that_was_known_stays(fitted, added):
  rng = np.random.default_rng(3)
  features = _all([_features(rng, k, 300) for k in range(4)])
  before = scorer.score(features, fitted)
  twice = extension.add(
    'newer',
    _features(rng, 3, 30),
    fitted,
    reject_known=0.1,
    before=added,
  )
  assert twice.class_names == ('new', 'newer')
  for extra in (added, twice):
    found = extension.score(before, features, extra)
    known = before.prediction != types.UNKNOWN
    np.testing.assert_array_equal(
      found.prediction[known], before.prediction[known]
    )
    np.testing.assert_allclose(found.probability.sum(axis=1), 1.0, atol=1e-6)
    assert found.probability.shape == (1200, 4 + len(extra.limit))
    assert (found.unknown_score <= before.unknown_score).all()
    assert len(np.unique(found.unknown_score)) > 1195


@pytest.mark.parametrize('count', [40, 400, 4000])
@pytest.mark.parametrize('reject_known', [0.02, 0.2])
def test_as_many_are_lost_as_was_asked_for(fitted, count, reject_known):
  rng = np.random.default_rng(4)
  lost = []
  for _ in range(20):
    new = _features(rng, 3, count)
    found = extension.add('new', new, fitted, reject_known=reject_known)
    fresh = _features(rng, 3, 2000)
    scores = scorer.score(fresh, fitted)
    rejected = scores.prediction == types.UNKNOWN
    decided = extension.score(scores, fresh, found).prediction[rejected]
    lost.append(np.mean(decided == types.UNKNOWN))
  # Of 40 samples 2 % are less than one.
  assert np.mean(lost) == pytest.approx(reject_known, rel=0.5, abs=0.015)


@pytest.mark.parametrize('reject_known', [0.05, 0.3])
def test_no_more_than_the_tail_is_lost_later(fitted, reject_known):
  rng = np.random.default_rng(2)
  first = extension.add(
    'new', _features(rng, 3, 1000), fitted, reject_known=0.02
  )
  np.testing.assert_allclose(first.share, 0.05)
  later = extension.rejecting(first, reject_known)
  fresh = _features(rng, 3, 2000)
  scores = scorer.score(fresh, fitted)
  rejected = scores.prediction == types.UNKNOWN
  decided = extension.score(scores, fresh, later).prediction[rejected]
  assert 0.02 < np.mean(decided == types.UNKNOWN) < 0.1


@pytest.mark.filterwarnings('error')
def test_a_share_next_to_nothing(fitted, added):
  rng = np.random.default_rng(3)
  other = _features(rng, 3, 30)
  other = other._replace(logits=other.logits + np.float32([[0, 4, 0]]))
  both = extension.add('other', other, fitted, reject_known=0.02, before=added)
  features = _features(rng, 3, 100)
  scores = scorer.score(features, fitted)
  few, fewest = (
    extension.score(scores, features, extension.rejecting(both, share))
    for share in (1e-9, 1e-17)
  )
  # The nearest of the two is named, not the first.
  np.testing.assert_array_equal(few.prediction, fewest.prediction)
  is_first = fewest.probability[:, 3] > 0
  assert is_first.any() and not is_first.all()


def test_what_cannot_be_added(fitted):
  rng = np.random.default_rng(5)
  new = _features(rng, 3, 30)

  def add(features, model=fitted, **fields):
    extension.add('cup', features, model, **{'reject_known': 0.02} | fields)

  few = types.Features(*(x[:9] for x in new))
  with pytest.raises(
    types.UserError, match='cup: 9 different samples, at least 10'
  ):
    add(few)
  # Ten different ones, each three times over.
  same = types.Features(*(np.repeat(x[:10], 3, axis=0) for x in new))
  once = extension.add(
    'cup',
    types.Features(*(x[:10] for x in new)),
    fitted,
    reject_known=0.02,
  )
  thrice = extension.add('cup', same, fitted, reject_known=0.02)
  for one, other in zip(once, thrice, strict=True):
    np.testing.assert_array_equal(one, other)
  # It is codes too that differ.
  clipped = new._replace(
    logits=np.tile(np.float32([9, 0, 0]), (len(new[0]), 1))
  )
  assert extension.add('cup', clipped, fitted, reject_known=0.02).mav.size
  alike = types.Features(*(np.repeat(x[:1], 30, axis=0) for x in new))
  with pytest.raises(
    types.UserError, match='cup: 1 different samples, at least 10'
  ):
    add(alike)
  with pytest.raises(types.UsageError, match='reject_known'):
    add(new, reject_known=0.5)
  with pytest.raises(types.UsageError, match=r'width 7 together.* 3 and 5'):
    add(new._replace(latent=new.latent[:, :2]))
  other = new._replace(
    logits=new.logits[:, :2], latent=np.hstack([new.latent, new.latent[:, :1]])
  )
  with pytest.raises(types.UsageError, match=r'knows 3 classes.* 2 and 7'):
    add(other)
  with pytest.raises(types.UserError, match='sample 4 are not finite'):
    latent = new.latent.copy()
    latent[4, 1] = np.nan
    add(new._replace(latent=latent))
  known = _all([_features(rng, k, 100) for k in range(3)])
  logits = weibull.fit(known, vector='logits', tail_size=20)
  with pytest.raises(types.UsageError, match="fitted on 'logits'"):
    add(new, logits)


@pytest.fixture
def digits_copy(digits_run, tmp_path):
  return shutil.copytree(digits_run[0], tmp_path / 'digits')


@pytest.fixture(scope='module')
def sevens():
  digits = datasets.load_digits()
  image = digits.images[digits.target == 7] * (255 / 16)
  return image.astype(np.uint8)[..., None]


def test_a_digit_is_added(digits_run, sevens, tmp_path):
  model = openset.load(digits_run[0])
  larger = model.with_class('seven', sevens[:60])
  assert larger.class_names == (*model.class_names, 'seven')
  before, after = model(sevens[60:]), larger(sevens[60:])
  rejected = before.prediction == types.UNKNOWN
  assert (after.prediction[rejected] == 7).mean() > 0.5
  found = larger.features(sevens[60:])
  is_seven = larger.nearest(found, after) == 7
  np.testing.assert_array_equal(is_seven, after.prediction == 7)
  assert 'is seven where it is inside its tail' in larger.told()
  assert 'seven' not in model.told()
  # Limits follow the share that may be lost, and lose more then.
  strict = larger.rejecting(0.3)
  again = model.rejecting(0.3).with_class('seven', sevens[:60])
  # The tail's beginning, as no limit lies inside the class.
  tail = strict.added
  beginning = scipy.stats.weibull_min.cdf(
    tail.loc + 1, tail.shape, tail.loc, tail.scale
  )
  assert 1 - 0.3 / tail.share < beginning
  np.testing.assert_allclose(tail.limit, beginning)
  assert strict.added.limit < larger.added.limit
  assert again.added.share > strict.added.share
  path = tmp_path / 'x.jaxexport'
  path.write_bytes(exporting.pack(larger, {}))
  shipped = exported.load(str(path))
  probability, unknown_score, prediction = shipped(sevens[60:])
  np.testing.assert_allclose(probability, after.probability, atol=1e-6)
  np.testing.assert_allclose(
    unknown_score, after.unknown_score, rtol=1e-4, atol=1e-4
  )
  np.testing.assert_array_equal(prediction, after.prediction)
  assert shipped.header['class_names'][7] == 'seven'
  for name in ('3', 'unknown', 'seven', ' '):
    with pytest.raises(types.UsageError, match='cannot name a new class'):
      larger.with_class(name, sevens)
  for name in (' 3', 'cup\n'):
    with pytest.raises(types.UsageError, match='begins or ends with a blank'):
      larger.with_class(name, sevens)
  with pytest.raises(types.UsageError, match='named by a text, got 7'):
    larger.with_class(7, sevens)
  with pytest.raises(types.UsageError, match='is no text'):
    larger.with_class('\udcff', sevens)
  # An array of text would give it back without the last character.
  with pytest.raises(types.UsageError, match='is no text'):
    larger.with_class('a\0', sevens)


def test_kept_and_dropped(digits_copy, sevens, caplog):
  model = openset.load(digits_copy)
  larger = model.with_class('seven', sevens[:60])
  larger.save_added(digits_copy)
  again = openset.load(digits_copy)
  for one, other in zip(again(sevens), larger(sevens), strict=True):
    np.testing.assert_array_equal(one, other)
  path = digits_copy / 'added.npz'
  whole = path.read_bytes()
  # A fit of the same numbers keeps them, another one does not.
  found = saved.load(digits_copy)
  saved.save(digits_copy, found)
  assert openset.load(digits_copy).class_names[-1] == 'seven'
  saved.save(digits_copy, found._replace(held_out=found.held_out[1:]))
  with pytest.raises(types.UsageError, match='was fitted again since'):
    larger.save_added(digits_copy)
  (aside,) = digits_copy.glob('added-*.npz')
  assert aside.read_bytes() == whole
  assert not path.exists() and 'add its classes again' in caplog.text
  # Others may be added to that one; each comes back with its fit.
  other = openset.load(digits_copy).with_class('eight', sevens)
  other.save_added(digits_copy)
  saved.save(digits_copy, found)
  assert path.read_bytes() == whole and not aside.exists()
  assert openset.load(digits_copy).class_names[-1] == 'seven'
  saved.save(digits_copy, found._replace(held_out=found.held_out[1:]))
  assert openset.load(digits_copy).class_names[-1] == 'eight'
  assert aside.read_bytes() == whole
  # Damaged, or of a name that leads elsewhere, it is put aside and stays there.
  with np.load(aside) as arrays:
    fields = dict(arrays)
  for fit in ('../' * 6, fields['fitted_sha256']):
    damaged = {'mav': fields['mav'] * np.nan, 'fitted_sha256': fit}
    np.savez(path, **fields | damaged)
    bad = path.read_bytes()
    saved.save(digits_copy, found)
    assert (digits_copy / 'added-damaged.npz').read_bytes() == bad
  saved.save(digits_copy, found._replace(held_out=found.held_out[1:]))
  flips = [
    bytes([*whole[:i], whole[i] ^ 255, *whole[i + 1 :]])
    for i in range(0, len(whole), len(whole) // 40)
  ]
  for damaged in (b'', whole[:-200], whole, *flips):
    path.write_bytes(damaged)
    with pytest.raises(types.UserError, match='damaged or not of this'):
      openset.load(digits_copy)
  with pytest.raises(types.UsageError, match='no class was added'):
    model.save_added(digits_copy)


@pytest.mark.parametrize(
  'changed',
  [
    {'mav': np.ones((1, 7))},
    {'unit': np.ones(6)},
    {'share': np.full(3, np.nan)},
    {'limit': np.full(3, 'no')},
    {'center': np.ones((3, 7))},
    {'shape': None},
    {'more': np.ones(3)},
  ],
)
def test_a_file_that_was_edited(tmp_path, changed):
  row = np.ones(3)
  whole = extension.Extension(
    *(('a', 'b', 'c'), np.ones(7), np.ones(7), np.ones((3, 7))),
    *(row, row, row, row, row / 2),
  )
  fields = whole._asdict() | {'fitted_sha256': 'x'}
  np.savez(tmp_path / 'added.npz', **fields)
  found = saved.load_added(tmp_path, 'x')
  assert found.class_names == ('a', 'b', 'c')
  edited = {k: v for k, v in (fields | changed).items() if v is not None}
  np.savez(tmp_path / 'added.npz', **edited)
  with pytest.raises(types.UserError, match='is damaged or not of this model'):
    saved.load_added(tmp_path, 'x')


def test_classes_of_others_are_not_lost(digits_copy, sevens):
  model = openset.load(digits_copy)
  seven = model.with_class('seven', sevens[:60])
  other = model.with_class('other', sevens[60:90])
  seven.save_added(digits_copy)
  again = model.with_class('seven', sevens[60:120])
  before = (digits_copy / 'added.npz').read_bytes()
  for stale in (other, again):
    with pytest.raises(types.UsageError, match='got seven since the model was'):
      stale.save_added(digits_copy)
  assert (digits_copy / 'added.npz').read_bytes() == before
  # Its own, and what was added to them, at whatever share.
  seven.save_added(digits_copy)
  both = seven.rejecting(0.1).with_class('other', sevens[60:90])
  with files.held(digits_copy), pytest.raises(types.UserError, match='in use'):
    both.save_added(digits_copy)
  both.save_added(digits_copy)
  assert openset.load(digits_copy).class_names[-2:] == ('seven', 'other')
  with pytest.raises(types.UsageError, match='got other since the model was'):
    seven.save_added(digits_copy)
  (digits_copy / 'added.npz').unlink()
  seven.save_added(digits_copy)
  with pytest.raises(types.UsageError, match='is no folder'):
    seven.save_added(digits_copy / 'nowhere')


def test_limits_follow_the_share_of_the_run(digits_copy, sevens):
  model = openset.load(digits_copy).with_class('seven', sevens[:60])
  model.save_added(digits_copy)
  found = saved.load(digits_copy)
  scorer_fields = {**found.info['scorer'], 'reject_known': 0.2}
  saved.save(
    digits_copy, found._replace(info={**found.info, 'scorer': scorer_fields})
  )
  again = openset.load(digits_copy)
  np.testing.assert_array_equal(
    again.added.limit, model.rejecting(0.2).added.limit
  )
  assert again.added.limit < model.added.limit


def test_command(digits_copy, sevens, tmp_path, run_command):
  folder = tmp_path / 'sevens'
  folder.mkdir()
  for i, image in enumerate(sevens[:70]):
    Image.fromarray(image[..., 0]).save(folder / f'{i:03d}.png')
  (folder / 'broken.png').write_bytes(b'no image')

  def run(command, *arguments):
    return run_command(command, f'--workdir={digits_copy}', *arguments)

  # Two at a time would lose one.
  with files.held(digits_copy):
    done = run('add_class', '--name=seven', str(folder))
  assert done.returncode == 1 and 'is in use by process' in done.stderr
  done = run('add_class', '--name=seven', str(folder))
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('seven: added, from 70 images. Of these, ')
  named = int(done.stdout.partition('these, ')[2].split()[0])
  assert 'broken.png is left out' in done.stderr
  done = run('predict', '--format=csv', str(folder / '*.png'))
  assert done.returncode == 1
  rows = io.StringIO(done.stdout).read().splitlines()
  # As many as the command said.
  assert sum(',seven,' in row for row in rows) == named > 0
  done = run('add_class', '--name=seven', str(folder))
  assert done.returncode == 2 and 'cannot name a new class' in done.stderr
  # No image is counted twice; and no name steers the terminal.
  done = run('add_class', '--name=\x1b[31mx', str(folder))
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('\\x1b[31mx: added, from 70 images. Of these, ')
  counts = re.findall(r'(\d+) are called', done.stdout)
  assert sum(map(int, counts)) <= 70
  done = run('add_class', str(folder))
  assert done.returncode == 2 and '--name is needed' in done.stderr
  # A folder of anything else is left as it is.
  before = sorted(folder.iterdir())
  done = run('add_class', '--name=x', f'--workdir={folder}', str(folder))
  assert 'model.json is missing' in done.stderr
  assert sorted(folder.iterdir()) == before
