"""Order and shape of batches. N samples, B batch.

The order is a pure function of (seed, step): a resumed run sees what an
uninterrupted one would have seen.
"""

from collections.abc import Iterator

import numpy as np

from crosr_jax import types
from crosr_jax.data import splits


def training(
  samples: splits.Labelled, batch_size: int, seed: int, first_step: int
) -> Iterator[tuple[types.Batch, np.ndarray]]:
  """Endless batches from a step on, with each row's index in the data, [B].

  Every epoch is a new permutation; its remainder is dropped.

  Raises:
    UsageError: where one batch is more than all samples.
  """
  check_size('train.batch_size', batch_size, len(samples.label))
  per_epoch = len(samples.label) // batch_size
  epoch, position = divmod(first_step, per_epoch)
  mask = np.ones(batch_size, bool)
  while True:
    order = np.random.default_rng([seed, epoch]).permutation(len(samples.label))
    for i in range(position, per_epoch):
      rows = order[i * batch_size : (i + 1) * batch_size]
      batch = types.Batch(samples.image[rows], samples.label[rows], mask)
      yield batch, rows.astype(np.uint32)
    epoch, position = epoch + 1, 0


def check_size(field: str, batch_size: int, num_samples: int) -> None:
  """Raises a UsageError where one batch is more than all samples."""
  if batch_size > num_samples:
    raise types.UsageError(
      f'{field}={batch_size} is more than the {num_samples} training samples; '
      'make it smaller'
    )


def padded(
  image: np.ndarray, label: np.ndarray, batch_size: int
) -> Iterator[types.Batch]:
  """All samples in order, the last batch filled up and masked."""
  for start in range(0, len(image), batch_size):
    rows = slice(start, start + batch_size)
    fill = batch_size - len(label[rows])
    yield types.Batch(
      np.pad(image[rows], ((0, fill), (0, 0), (0, 0), (0, 0))),
      np.pad(label[rows], (0, fill), constant_values=types.UNKNOWN),
      np.arange(batch_size) < batch_size - fill,
    )
