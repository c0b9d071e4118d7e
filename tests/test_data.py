"""Splits, held-out parts, noise, batches."""

import itertools
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets

from crosr_jax import data
from crosr_jax.data import batches, sources, splits, unknowns

_FIELDS = {
  'name': 'digits',
  'unknown_classes': (7, 8, 9),
  'test_share': 0.25,
  'select_share': 0.1,
  'calibrate_share': 0.1,
  'evaluation_seed': 0,
  'unknown_sets': ('noise',),
  'max_unknown': 10_000,
}
_NOWHERE = pathlib.Path('/nowhere')


def _load(seed=0, **changes):
  fields = {**_FIELDS, **changes}
  return data.load(seed=seed, data_dir=_NOWHERE, **fields)


def _digits():
  return sources.digits(_NOWHERE).train


def test_digits_are_all_there():
  source = _digits()
  assert source.image.shape == (1797, 8, 8, 1)
  assert source.image.dtype == np.uint8
  assert (source.image.min(), source.image.max()) == (0, 255)
  raw = datasets.load_digits()
  np.testing.assert_array_equal(source.label, raw.target)
  # Ink is bright, and 16 grey levels stay apart.
  np.testing.assert_allclose(
    source.image[..., 0] / 255 * 16, raw.images, atol=0.04
  )


def test_parts_are_disjoint_and_whole():
  benchmark = _load(unknown_sets=())
  parts = {name: (i, y) for name, i, y in benchmark.parts()}
  assert list(parts) == [
    'train', 'select', 'calibrate', 'test', 'digits_unknown',
  ]  # fmt: skip
  source = _digits()
  total = np.concatenate([image for image, _ in parts.values()])
  assert sorted(x.tobytes() for x in total) == sorted(
    x.tobytes() for x in source.image
  )
  assert (parts['digits_unknown'][1] == -1).all()
  assert benchmark.class_names == tuple('0123456')


def test_labels_are_reindexed():
  benchmark = _load(unknown_classes=(0, 5))
  assert benchmark.class_names == ('1', '2', '3', '4', '6', '7', '8', '9')
  source = _digits()
  true = {
    x.tobytes(): y for x, y in zip(source.image, source.label, strict=True)
  }
  for image, label in zip(
    benchmark.test.image, benchmark.test.label, strict=True
  ):
    assert benchmark.class_names[label] == str(true[image.tobytes()])
  assert set(benchmark.train.label) == set(range(8))
  assert benchmark.unknown['digits_unknown'].recipe == 'digits classes 0, 5'


def test_held_out_parts_are_stratified_and_follow_the_seed():
  a, b, c = _load(seed=1), _load(seed=1), _load(seed=2)
  np.testing.assert_array_equal(a.train.image, b.train.image)
  assert not np.array_equal(a.select.image, c.select.image)
  # All seeds are tested on the same samples.
  np.testing.assert_array_equal(a.test.image, c.test.image)
  np.testing.assert_array_equal(
    a.unknown['noise'].image, c.unknown['noise'].image
  )
  for part in (a.select, a.calibrate, a.test):
    counts = np.bincount(part.label, minlength=7)
    assert counts.max() - counts.min() <= 2


def test_the_test_part_is_the_same_whatever_is_known():
  """Else who trains on some of the classes is taught others' test samples."""
  tested = {x.tobytes() for x in _load().test.image}
  for kept_back in ((0,), (1, 5), (0, 2, 4, 6, 8)):
    found = _load(unknown_classes=kept_back)
    known = _load(unknown_classes=sorted({*kept_back, 7, 8, 9}))
    assert {x.tobytes() for x in known.test.image} < tested
    for _, image, _ in list(known.parts())[:3]:
      assert not tested & {x.tobytes() for x in image}
    assert len(found.test.label) > len(known.test.label)


@settings(max_examples=30)
@given(
  counts=st.lists(st.integers(2, 30), min_size=2, max_size=6),
  share=st.floats(0, 0.5),
)
def test_hold_out_takes_its_share_of_every_class(counts, share):
  label = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
  image = np.arange(len(label))[:, None]
  part, rest = splits.hold_out(splits.Labelled(image, label), 'x', share, 0)
  taken = np.bincount(part.label, minlength=len(counts))
  assert list(taken) == [round(share * n) for n in counts]
  together = np.append(part.image, rest.image)
  assert sorted(together) == list(range(len(label)))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'digit'}, "data.name must be one of digits.*mean 'digits'"),
    ({'unknown_classes': (10,)}, r'unknown_classes: 10 is no class.*0\.\.9'),
    ({'unknown_classes': ('a',)}, "unknown_classes: 'a' is no class"),
    ({'unknown_classes': tuple(range(9))}, 'leaves 1 of 10.*at least 2'),
    ({'unknown_classes': tuple(range(10))}, 'leaves 0 of 10'),
    ({'test_share': 1.0}, r'data.test_share must be in \[0, 1\), got 1.0'),
    ({'select_share': -0.1}, r'data.select_share must be in \[0, 1\)'),
    ({'calibrate_share': float('nan')}, 'data.calibrate_share.*nan'),
    ({'test_share': 0.999}, 'test_share=0.999 leaves no sample of class 0'),
    (
      {'unknown_classes': (0,), 'calibrate_share': 0.999},
      'calibrate_share=0.999 leaves no sample of class 1',
    ),
    ({'image_size': 32}, "image_size=32 is for data.name='folder'"),
    ({'unknown_sets': ('nose',)}, "unknown_sets.* did you mean 'noise'"),
    ({'unknown_sets': (1,)}, "unknown_sets .* got '1'"),
    ({'unknown_sets': ('noise:dark',)}, "recipe of noise .* got 'dark'"),
    (
      {'unknown_sets': ('omniglot:mnist',)},
      "recipe of omniglot .* did you mean 'mnist_style'",
    ),
    (
      {'unknown_sets': ('noise', 'noise:uniform')},
      'unknown_sets names noise more than once',
    ),
    (
      {'calibrate_share': 0.0},
      'data.calibrate_share=0.0 leaves that part without',
    ),
    ({'test_share': 0.001}, 'data.test_share=0.001 leaves that part without'),
    ({'unknown_classes': (7.0,)}, 'unknown_classes: 7.0 is no class'),
    ({'evaluation_seed': -1}, r'data.evaluation_seed .* got -1'),
    ({'max_unknown': 0}, 'max_unknown must be at least 1'),
    (
      {'grey': True},
      "data.grey=True is for data.name='folder', this is digits",
    ),
  ],
)
def test_bad_fields(changes, message):
  with pytest.raises(ValueError, match=message):
    _load(**changes)


def test_unknown_sets_are_capped_and_never_repeated():
  benchmark = _load(max_unknown=100)
  image = benchmark.unknown['digits_unknown'].image
  assert len(image) == 100
  source = _digits()
  assert len({x.tobytes() for x in image}) == 100
  there = {x.tobytes() for x in source.image[source.label >= 7]}
  assert {x.tobytes() for x in image} <= there
  short = unknowns.sample(source.image[:5], 100, 0)
  np.testing.assert_array_equal(short, source.image[:5])


def _samples(n):
  image = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
  return splits.Labelled(image, np.arange(n, dtype=np.int32))


def _take(iterator, count):
  return [next(iterator) for _ in range(count)]


def test_every_epoch_is_a_permutation():
  found = _take(batches.training(_samples(10), 3, 0, 0), 6)
  rows = np.concatenate([index for _, index in found]).reshape(2, 9)
  assert all(len(set(epoch)) == 9 for epoch in rows)
  assert list(rows[0]) != list(rows[1])
  for batch, index in found:
    np.testing.assert_array_equal(batch.label, index)


@given(st.integers(0, 40))
def test_order_is_a_function_of_seed_and_step(step):
  samples = _samples(23)
  whole = _take(batches.training(samples, 4, 5, 0), step + 3)[step:]
  resumed = _take(batches.training(samples, 4, 5, step), 3)
  for (a, i), (b, j) in zip(whole, resumed, strict=True):
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(i, j)


@pytest.mark.parametrize('ends', [(0, 10, 20), (0, 7, 7, 20)])
def test_shares_are_the_batch_and_no_other_row_is_read(ends):
  class Watched(np.ndarray):
    def __getitem__(self, key):
      read.append(np.array(key))
      return np.asarray(self)[key]

  read = []
  label = np.arange(50, dtype=np.int32) % 5
  image = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
  whole, index = next(
    batches.training(splits.Labelled(image, label), 20, 0, first_step=3)
  )
  samples = splits.Labelled(image.view(Watched), label)
  parts = [
    next(batches.training(samples, 20, 0, first_step=3, share=slice(a, b)))
    for a, b in itertools.pairwise(ends)
  ]
  for field in range(3):
    together = np.concatenate([part[field] for part, _ in parts])
    np.testing.assert_array_equal(together, whole[field])
  np.testing.assert_array_equal(np.concatenate([i for _, i in parts]), index)
  np.testing.assert_array_equal(np.concatenate(read), index)


def test_batch_larger_than_the_data():
  with pytest.raises(ValueError, match='batch_size=11 is more than the 10'):
    next(batches.training(_samples(10), 11, 0, 0))


@given(st.integers(0, 20), st.integers(1, 7))
def test_padding_keeps_every_sample_once(n, size):
  samples = _samples(n)
  found = list(batches.padded(*samples, size))
  assert all(len(b.image) == len(b.mask) == size for b in found)
  seen = [b.image[b.mask][:, 0, 0, 0] for b in found]
  assert list(np.concatenate([[], *seen])) == list(range(n))
  assert all((b.label[~b.mask] == -1).all() for b in found)
