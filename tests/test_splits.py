"""Class splits: the published lists, the drawn ones, and a run of one."""

import hashlib
import json
import math
import pathlib

import numpy as np
import pytest
from conftest import CONFIGS, GOLDEN, ROOT
from hypothesis import assume, given
from hypothesis import strategies as st

from configs import cifar10_split, cifar_plus, mnist_split, svhn_split
from configs import tinyimagenet as tinyimagenet_split
from crosr_jax import data
from crosr_jax.data import sources, splits, unknowns

_PUBLISHED = GOLDEN / 'published_splits.json'
_LISTS = {
  'mnist': mnist_split.PUBLISHED,
  'svhn': svhn_split.PUBLISHED,
  'cifar10': cifar10_split.PUBLISHED,
  'cifar_plus_known': cifar_plus.PUBLISHED,
  'cifar_plus_10_unknown': cifar_plus.PUBLISHED_10,
  'cifar_plus_50_unknown': cifar_plus.PUBLISHED_50,
  'tinyimagenet': tinyimagenet_split.PUBLISHED,
}
_DIGITS = {
  'name': 'digits',
  'unknown_classes': (),
  'test_share': 0.25,
  'select_share': 0.1,
  'calibrate_share': 0.1,
  'evaluation_seed': 0,
  'unknown_sets': (),
  'max_unknown': 10_000,
  'splits': ((0, 1, 2), (9, 3, 5, 7)),
}


def _load(**changes):
  fields = {**_DIGITS, **changes}
  return data.load(seed=0, data_dir=pathlib.Path('/nowhere'), **fields)


@pytest.mark.skipif(
  not _PUBLISHED.exists(), reason='golden/published_splits.json is not here'
)
@pytest.mark.parametrize('name', _LISTS)
def test_published_lists(name):
  golden = json.loads(_PUBLISHED.read_text())
  assert set(golden) - {'what'} == set(_LISTS)
  assert [list(classes) for classes in _LISTS[name]] == golden[name]


@pytest.mark.parametrize(
  ('name', 'num_classes', 'size', 'same'),
  [
    ('mnist', 10, 6, []),
    ('svhn', 10, 6, [(0, 1)]),
    ('cifar10', 10, 6, [(0, 1)]),
    ('cifar_plus_known', 10, 4, [(1, 2)]),
    ('cifar_plus_10_unknown', 100, 10, []),
    ('cifar_plus_50_unknown', 100, 50, []),
    ('tinyimagenet', 200, 20, []),
  ],
)
def test_what_the_configs_say_of_the_published_lists(
  name, num_classes, size, same
):
  found = [set(classes) for classes in _LISTS[name]]
  assert [len(classes) for classes in found] == [size] * 5
  assert set.union(*found) <= set(range(num_classes))
  pairs = [(i, j) for j in range(5) for i in range(j) if found[i] == found[j]]
  assert pairs == same


@pytest.mark.parametrize(
  'name', [n for n in CONFIGS if n.partition(':')[2].startswith('distinct')]
)
def test_distinct_sets_are_five(name):
  config = CONFIGS[name]
  published = CONFIGS[name.partition(':')[0]]
  assert len(set(map(frozenset, config.data.splits))) == 5
  assert {len(s) for s in config.data.splits} == {
    len(s) for s in published.data.splits
  }


@given(
  num_classes=st.integers(1, 30),
  num_known=st.integers(0, 30),
  count=st.integers(0, 8),
  seed=st.integers(0, 2**32),
)
def test_distinct_sets(num_classes, num_known, count, seed):
  assume(math.comb(num_classes, num_known) >= count)
  found = splits.distinct(num_classes, num_known, count, seed)
  assert len(found) == len(set(found)) == count
  for classes in found:
    assert list(classes) == sorted(set(classes))
    assert len(classes) == num_known
    assert set(classes) <= set(range(num_classes))
  # More of them are the same ones and others.
  if count:
    fewer = splits.distinct(num_classes, num_known, count - 1, seed)
    assert fewer == found[:-1]


def test_distinct_sets_by_their_rule():
  # Of coreutils: for k in 0..9: printf '0,<draw>,<k>' | sha256sum, sorted.
  order = [(5, 3, 6, 0, 4, 8), (3, 6, 5, 1, 0, 8)]
  found = splits.distinct(10, 6, 2, 0)
  assert found == tuple(tuple(sorted(classes)) for classes in order)
  first = min(range(100), key=lambda k: hashlib.sha256(b'7,0,%d' % k).digest())
  assert splits.distinct(100, 1, 1, 7) == ((first,),)


def test_every_set_there_is_and_no_more():
  assert len(set(splits.distinct(6, 3, 20, 0))) == 20
  with pytest.raises(ValueError, match=r'21 different sets of 3 of 6.* are 20'):
    splits.distinct(6, 3, 21, 0)


def test_known_classes_of_a_split():
  benchmark = _load(split=1)
  assert benchmark.class_names == ('3', '5', '7', '9')
  assert set(benchmark.train.label) == {0, 1, 2, 3}
  found = benchmark.unknown['digits_unknown']
  assert found.recipe == 'digits classes 0, 1, 2, 4, 6, 8'
  assert found.num_classes == 6
  # The same as by naming the others.
  named = _load(splits=(), unknown_classes=(0, 1, 2, 4, 6, 8))
  for ours, theirs in zip(benchmark.parts(), named.parts(), strict=True):
    assert ours[0] == theirs[0]
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(ours[2], theirs[2])


def test_other_classes_left_out():
  whole, alone = _load(), _load(others_unknown=False)
  assert list(whole.unknown) == ['digits_unknown'] and alone.unknown == {}
  for name in ('train', 'select', 'calibrate', 'test'):
    np.testing.assert_array_equal(
      getattr(whole, name).image, getattr(alone, name).image
    )


def test_classes_of_cifar100_follow_the_split(monkeypatch):
  asked = []

  def make(entries, known, **fields):
    asked.append(fields['classes'])
    return {}

  monkeypatch.setattr(unknowns, 'make', make)
  _load(split=1, cifar100_splits=((5, 6), (71, 3)))
  _load(split=1)
  assert asked == [{'cifar100': (3, 71)}, {}]


def test_unknown_set_of_some_classes(monkeypatch):
  label = np.arange(60, dtype=np.int32) % 6
  image = np.broadcast_to(
    label.astype(np.uint8)[:, None, None, None], (60, 105, 105, 1)
  )

  def part(name, part, data_dir):
    return sources.Source(image, label, tuple('abcdef'))

  monkeypatch.setattr(sources, 'prepared_part', part)
  known = np.zeros((5, 8, 8, 1), np.uint8)

  def make(classes):
    return unknowns.make(
      ('omniglot:dark', 'noise'),
      known,
      max_unknown=15,
      seed=0,
      data_dir=pathlib.Path('/nowhere'),
      classes={'omniglot': classes},
    )

  found = make((4, 1))
  assert found['omniglot_dark'].num_classes == 2
  assert found['omniglot_dark'].image.shape == (15, 8, 8, 1)
  assert set(np.unique(found['omniglot_dark'].image)) == {1, 4}
  assert found['noise'].num_classes == 1
  with pytest.raises(ValueError, match=r'omniglot has no class 6, .*0\.\.5'):
    make((1, 6))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'unknown_classes': (7,)}, r'data\.splits and .*unknown_classes=\(7,\)'),
    ({'split': 2}, r'data\.split=2: data\.splits has 2, choose from 0\.\.1'),
    ({'split': -1}, r'data\.split=-1: .* choose from 0\.\.1'),
    ({'splits': (), 'split': 3}, r'data\.split=3, but data\.splits is empty'),
    ({'splits': (0, 1)}, r'split 0 is 0, no tuple .*\(\(0, 1\),\)'),
    ({'splits': ((),)}, r'split 0 is \(\), no tuple'),
    ({'splits': ((0, 10),)}, r'data\.splits: 10 is no class.*0\.\.9'),
    ({'splits': ((0, -1),)}, r'data\.splits: -1 is no class'),
    ({'splits': ((0, 1.0),)}, r'split 0: 1\.0 is no class'),
    ({'splits': ((0, 'a'),)}, "split 0: 'a' is no class"),
    ({'splits': ((0, 3, 3),)}, 'split 0: 3 is there twice'),
    ({'splits': ((4,),)}, r'split 0 has 1 classes, at least 2'),
    (
      {'cifar100_splits': ((1, 2),)},
      r'cifar100_splits has 1 entries, data\.splits 2',
    ),
    (
      {'cifar100_splits': ((1, 1), (2,))},
      r'cifar100_splits: split 0: 1 is there twice',
    ),
  ],
)
def test_bad_splits(changes, message):
  with pytest.raises(ValueError, match=message):
    _load(**changes)


def test_a_split_on_the_command_line(run_command, tmp_path):
  process = run_command(
    'main',
    f'--config={ROOT}/configs/digits.py',
    '--config.data.splits=((0,1),(7,8,9))',
    '--config.data.split=1',
    '--config.data.unknown_classes=()',
    '--config.train.num_steps=60',
    '--config.model.width=4',
    '--config.report.pictures=False',
    cwd=tmp_path,
  )
  assert process.returncode == 0, process.stderr
  workdir = tmp_path / 'runs' / 'digits-split1'
  report = json.loads((workdir / 'report.json').read_text())
  assert report['name'] == 'digits-split1'
  assert report['class_names'] == ['7', '8', '9']
  assert report['config']['data']['splits'] == [[0, 1], [7, 8, 9]]
  recipe = 'digits classes 0, 1, 2, 3, 4, 5, 6'
  assert report['unknown']['digits_unknown']['recipe'] == recipe
  # The pages tell both, known classes in the table per class.
  page = (workdir / 'report.md').read_text()
  assert recipe in page and recipe in (workdir / 'report.html').read_text()
  for name in report['class_names']:
    assert f'\n| {name} |' in page.partition('## Classes')[2]


def test_a_split_that_is_not_there(run_command, tmp_path):
  config = f'--config={ROOT}/configs/mnist_split.py:distinct'
  process = run_command('main', config, '--config.data.split=5', cwd=tmp_path)
  assert process.returncode == 2
  lines = [x for x in process.stderr.splitlines() if x.startswith('error: ')]
  assert lines == [
    'error: data.split=5: data.splits has 5, choose from 0..4'
  ], process.stderr
  assert list(tmp_path.iterdir()) == []
