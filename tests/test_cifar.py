"""Real CIFAR-10, CIFAR-100 and the outliers of the ODIN paper."""

import hashlib
import tarfile

import numpy as np
import pytest
from conftest import needs_raw_colour

from crosr_jax import data
from crosr_jax.data import catalog, duplicates, prepared, raw, sources

pytestmark = needs_raw_colour

_SETS = (
  *('imagenet_crop', 'imagenet_resize', 'lsun_crop', 'lsun_resize'),
  'cifar100',
)


@pytest.fixture(scope='module')
def data_dir(raw_colour, tmp_path_factory):
  """The three data sets, prepared."""
  folder = tmp_path_factory.mktemp('data')
  for name in ('cifar10', 'cifar100', 'odin'):
    prepared.prepare(name, folder, raw_colour)
  return folder


@pytest.fixture(scope='module')
def benchmark(data_dir):
  return data.load(
    seed=0,
    data_dir=data_dir,
    name='cifar10',
    unknown_classes=(),
    test_share=0.0,
    select_share=0.05,
    calibrate_share=0.05,
    evaluation_seed=0,
    unknown_sets=_SETS,
    max_unknown=10_000,
  )


@pytest.fixture(scope='module')
def archive(raw_colour, tmp_path_factory):
  """What the reader makes of CIFAR-10 as an archive."""
  folder = raw_colour / 'cifar10' / 'cifar-10-batches-bin'
  if not folder.is_dir():
    pytest.skip('needs cifar10/cifar-10-batches-bin, unpacked')
  path = tmp_path_factory.mktemp('tar') / 'cifar-10-binary.tar'
  with tarfile.open(path, 'w') as tar:
    tar.add(folder, folder.name)
  return raw.cifar10(catalog.DATA_SETS['cifar10'], {'': path}).parts


def test_counts(benchmark):
  counts = {name: len(image) for name, image, _ in benchmark.parts()}
  assert counts['test'] == 10_000
  assert sum(counts[n] for n in ('train', 'select', 'calibrate')) == 50_000
  assert list(benchmark.unknown) == list(_SETS)
  assert {counts[name] for name in _SETS} == {10_000}
  assert [u.num_classes for u in benchmark.unknown.values()] == [
    200, 200, 10, 10, 100,
  ]  # fmt: skip
  assert np.bincount(benchmark.test.label).tolist() == [1_000] * 10
  assert benchmark.class_names[3] == 'cat'


def test_cifar10_as_others_know_it(archive):
  """Mean and deviation that everybody standardises with; the first labels."""
  image, label = archive['train']
  levels = np.arange(256) / 255
  for channel, mean, deviation in (
    (0, 0.4914, 0.2470),
    (1, 0.4822, 0.2435),
    (2, 0.4465, 0.2616),
  ):
    share = np.bincount(image[..., channel].reshape(-1), minlength=256)
    share = share / share.sum()
    assert abs(share @ levels - mean) < 5e-5
    assert abs(np.sqrt(share @ (levels - mean) ** 2) - deviation) < 5e-5
  assert label[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
  assert np.bincount(label).tolist() == [5_000] * 10


def test_what_is_read_back(benchmark, archive):
  """From a folder and from an archive, the published test_batch.bin."""
  test = benchmark.test
  np.testing.assert_array_equal(test.image, archive['test'].image)
  assert test.label[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
  planes = test.image.transpose(0, 3, 1, 2).reshape(10_000, -1)
  records = np.hstack([test.label[:, None].astype(np.uint8), planes])
  assert hashlib.sha256(records.tobytes()).hexdigest() == (
    '8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b'
  )


def test_cifar100_classes(data_dir):
  found = sources.prepared_part('cifar100', 'test', data_dir)
  assert np.bincount(found.label).tolist() == [100] * 100
  # As the published list of fine labels has them.
  names = found.class_names
  assert [names[k] for k in (0, 1, 49, 50, 98, 99)] == [
    'apple', 'aquarium_fish', 'mountain', 'mouse', 'woman', 'worm',
  ]  # fmt: skip
  assert list(names) == sorted(names)


def test_no_image_is_known_and_unknown(benchmark):
  """But for two pictures that their publisher put into both of his sets."""
  found = duplicates.count((n, image) for n, image, _ in benchmark.parts())
  assert found == {
    # Within a set.
    **{'imagenet_resize': 2, 'lsun_crop': 12, 'cifar100': 2},
    # A dog that is also among the cattle, an automobile that is also a bus.
    **{'train, cifar100': 1, 'test, cifar100': 1},
  }
