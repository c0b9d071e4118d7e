"""Batches from the host, or rows of what lies on devices: the same."""

import jax
import numpy as np
import pytest

from crosr_jax import feed, sharding, types
from crosr_jax.data import images, splits


def _samples(n=70, shape=(4, 3, 2)):
  generator = np.random.default_rng(0)
  label = generator.choice(3, n, p=[0.6, 0.3, 0.1]).astype(np.int32)
  return splits.Labelled(
    generator.integers(0, 256, (n, *shape), np.uint8), label
  )


def _look(state, batch):
  """A step that learns nothing, and tells all that it sees."""
  samples, index = batch
  seen = {'index': index, **samples._asdict()}
  return state + 1, jax.lax.all_gather(seen, 'batch', tiled=True)


# Of a sample, in what is seen.
_SHAPES = {'index': (), 'image': (4, 3, 2), 'label': (), 'mask': ()}


def _seen(fed, parallel, count, first):
  engine = sharding.engine(fed.step, parallel=parallel, shared=fed.shared)
  order, placed = fed.order(first), engine.place(np.zeros((), np.int32))
  found = []
  for _ in range(2):
    placed, metrics = engine.step(placed, *(next(order) for _ in range(count)))
    found.append(metrics)
  assert engine.fetch(placed) == 2 * count
  return {
    name: np.concatenate(
      [np.reshape(x[name], (count, 16, *shape)) for x in found]
    )
    for name, shape in _SHAPES.items()
  }


@pytest.mark.parametrize('parallel', sharding.PARALLEL)
@pytest.mark.parametrize(('count', 'balanced'), [(1, False), (3, True)])
def test_a_step_sees_the_same(parallel, count, balanced):
  samples = _samples()
  host, device = (
    _seen(
      feed.build(
        _look, samples, 16, 5, balanced=balanced, data_on_device=where
      ),
      parallel,
      count,
      first=7,
    )
    for where in ('never', 'always')
  )
  for name, expected in host.items():
    assert device[name].dtype == expected.dtype
    np.testing.assert_array_equal(device[name], expected)
  # And it is what its number says.
  index = host['index'] % 70
  np.testing.assert_array_equal(host['image'], samples.image[index])
  np.testing.assert_array_equal(host['label'], samples.label[index])
  assert host['mask'].all() and len(np.unique(index)) > 16
  # Of 70 samples 60 % are of one class.
  share = np.bincount(host['label'].ravel()) / host['label'].size
  assert share.max() < 0.45 if balanced else share.max() > 0.5


def test_images_on_devices_are_flat_and_rows_cross():
  samples = _samples()
  fed = feed.build(_look, samples, 16, 0, data_on_device='always')
  assert [x.shape for x in fed.shared] == [(70, 24), (70,)]
  assert next(fed.order(0)).nbytes == 16 * 4
  host = feed.build(_look, samples, 16, 0, data_on_device='never')
  assert host.shared == () and host.step is _look


@pytest.fixture
def machine(monkeypatch):
  """Pretends to be another one."""

  def change(accelerated, memory):
    monkeypatch.setattr(sharding, 'is_accelerated', lambda: accelerated)
    monkeypatch.setattr(sharding, 'memory', lambda: memory)

  return change


def _in_files():
  digest = np.zeros((70, 32), np.uint8)
  stamp = np.zeros((70, 3), np.int64)
  files = images.ImageFiles(['x.png'] * 70, (4, 3, 2), digest, stamp)
  return splits.Labelled(files, _samples().label)


# Images and labels of `_samples`.
_SIZE = 70 * (24 + 4)


@pytest.mark.parametrize(
  ('accelerated', 'memory', 'steps', 'is_on_device'),
  [
    (False, None, 1, False),
    (False, 10**9, 1, False),
    (True, 4 * _SIZE, 10, True),
    (True, 4 * _SIZE - 1, 10, False),
    # A device that does not tell.
    (True, None, 10, False),
  ],
)
def test_automatic(machine, accelerated, memory, steps, is_on_device):
  machine(accelerated, memory)
  fed = feed.build(_look, _samples(), 16, 0)
  assert fed.steps_per_dispatch == steps
  assert bool(fed.shared) == is_on_device
  in_files = feed.build(_look, _in_files(), 16, 0)
  assert in_files.steps_per_dispatch == 1 and not in_files.shared
  chosen = feed.build(
    _look, _samples(), 16, 0, steps_per_dispatch=3, data_on_device='never'
  )
  assert chosen.steps_per_dispatch == 3 and not chosen.shared


def test_the_memory_of_devices(monkeypatch):
  # CPU devices do not tell.
  assert not sharding.is_accelerated() and sharding.memory() is None

  class _Device:
    def __init__(self, stats):
      self.memory_stats = lambda: stats

  for stats, expected in (
    ([{'bytes_limit': 9, 'bytes_in_use': 5}, {'bytes_limit': 7}], 7),
    ([{'bytes_limit': 9}, {}], None),
    ([{'bytes_limit': 9}, None], None),
  ):
    devices = [_Device(x) for x in stats]
    with monkeypatch.context() as patch:
      patch.setattr(jax, 'local_devices', lambda devices=devices: devices)
      assert sharding.memory() == expected


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'steps_per_dispatch': -1}, 'must be at least 0, got -1'),
    ({'data_on_device': 'allways'}, "did you mean 'always'"),
    (
      {'data_on_device': 'always'},
      r"take 3 MB, and a device has 2 MB; take 'auto' or 'never'",
    ),
  ],
)
def test_bad_fields(machine, fields, message):
  machine(True, 2_000_000)
  large = _samples(1_000, (32, 32, 3))
  with pytest.raises(types.UsageError, match=message):
    feed.build(_look, large, 16, 0, **fields)


def test_images_in_files_stay_there():
  with pytest.raises(types.UsageError, match=r"'always': the images lie in f"):
    feed.build(_look, _in_files(), 16, 0, data_on_device='always')


@pytest.mark.parametrize('where', ['never', 'always'])
def test_more_samples_than_there_are(where):
  with pytest.raises(types.UsageError, match='batch_size=72 is more than the'):
    feed.build(_look, _samples(), 72, 0, data_on_device=where).order(0)
