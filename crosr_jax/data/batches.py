"""Order and shape of batches. N samples, B batch.

The order is a pure function of (seed, step): a resumed run sees what an
uninterrupted one would have seen.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from crosr_jax import types
from crosr_jax.data import images, splits

# Of images in files: batches that are read while one is worked on.
_AHEAD = 4


def rows(
  label: np.ndarray, batch_size: int, seed: int, *, balanced: bool = False
) -> Callable[[int], np.ndarray]:
  """Which samples a step sees: steps from 0 on -> numbers [B] uint32.

  Every epoch is a new permutation; its remainder is dropped. The numbers of an
  epoch all differ: a sample's is its index the first time, its index + N the
  second, its index + 2 N the third. So the index is a number's remainder by N.

  Args:
    label: of the samples to train on, [N].
    batch_size: B.
    seed: of the order.
    balanced: whether an epoch has as many samples of each class as the largest
      class has, those of smaller ones several times.

  Raises:
    UsageError: where one batch is more than all samples.
  """
  check_size('train.batch_size', batch_size, len(label))

  @functools.lru_cache(maxsize=2)
  def order(epoch: int) -> np.ndarray:
    generator = np.random.default_rng([seed, epoch])
    among = np.arange(len(label))
    if balanced:
      among = _evened(label, generator)
    return generator.permutation(among)

  per_epoch = len(order(0)) // batch_size

  def of(step: int) -> np.ndarray:
    epoch, i = divmod(step, per_epoch)
    chosen = order(epoch)[i * batch_size : (i + 1) * batch_size]
    return chosen.astype(np.uint32)

  return of


def training(
  samples: splits.Labelled,
  batch_size: int,
  seed: int,
  first_step: int,
  *,
  balanced: bool = False,
  share: slice = slice(None),
) -> Iterator[tuple[types.Batch, np.ndarray]]:
  """Endless batches from a step on, with each row's number, [B], see `rows`.

  Args:
    samples: to train on.
    batch_size: B.
    seed: see `rows`.
    first_step: from 0.
    balanced: see `rows`.
    share: rows of each batch that are wanted; no others are read.

  Raises:
    UsageError: where one batch is more than all samples.
  """
  of = rows(samples.label, batch_size, seed, balanced=balanced)
  mask = np.ones(batch_size, bool)[share]

  def batch(step: int) -> tuple[types.Batch, np.ndarray]:
    number = of(step)[share]
    index = number % len(samples.label)
    return (
      types.Batch(samples.image[index], samples.label[index], mask),
      number,
    )

  if images.is_lazy(samples.image):
    return _read_ahead(batch, range(first_step, 2**31))
  return map(batch, itertools.count(first_step))


def _evened(label: np.ndarray, generator: np.random.Generator) -> np.ndarray:
  """Numbers, see `rows`, of which every class has as many as the largest."""
  members = [np.flatnonzero(label == k) for k in np.unique(label)]
  largest = max(map(len, members))
  times = np.arange(largest)
  # As many as fit into uint32, and then from the beginning.
  most = 2**32 // len(label)
  return np.concatenate(
    [
      np.resize(generator.permutation(x), largest)
      + len(label) * (times // len(x) % most)
      for x in members
    ]
  )


def _read_ahead(fn: Callable[[int], Any], numbers: range) -> Iterator[Any]:
  """fn of each number, in order, a few of them in advance on other threads."""
  # Costs most of a second, and those with images in memory should not pay it.
  import grain

  options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
  source = grain.MapDataset.range(numbers.start, numbers.stop)
  return iter(source.map(fn).to_iter_dataset(options))


def check_size(field: str, batch_size: int, num_samples: int) -> None:
  """Raises a UsageError where one batch is more than all samples."""
  if batch_size > num_samples:
    raise types.UsageError(
      f'{field}={batch_size} is more than the {num_samples} training samples; '
      'make it smaller'
    )


def padded(
  image: Any, label: np.ndarray, batch_size: int
) -> Iterator[types.Batch]:
  """All samples in order, the last batch filled up and masked.

  Of no sample there is one batch, all of it masked: shapes are told by it.
  """

  def batch(i: int) -> types.Batch:
    rows = slice(i * batch_size, (i + 1) * batch_size)
    fill = batch_size - len(label[rows])
    return types.Batch(
      np.pad(image[rows], ((0, fill), (0, 0), (0, 0), (0, 0))),
      np.pad(label[rows], (0, fill), constant_values=types.UNKNOWN),
      np.arange(batch_size) < batch_size - fill,
    )

  numbers = range(max(1, -(-len(image) // batch_size)))
  if images.is_lazy(image):
    return _read_ahead(batch, numbers)
  return map(batch, numbers)
