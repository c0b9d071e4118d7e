"""How training samples reach a step. N samples, B batch.

As batches, which cross from the host at every step; or, where all images fit
into the memory of each device, as numbers of what lies there from the
beginning. A step sees the same either way.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crosr_jax import sharding, types
from crosr_jax.data import batches, images, splits

Array = jax.Array

ON_DEVICE = ('auto', 'always', 'never')

# Of the memory of a device; the net needs the rest.
_SHARE = 0.25
# On accelerators a step may take less time than starting it.
_STEPS = 10


class Feed(NamedTuple):
  """A step, and what it is fed with."""

  step: sharding.ReplicaStep  # of what crosses
  shared: tuple[np.ndarray, ...]  # see sharding.engine
  order: Callable[[int], Iterator[Any]]  # what crosses, from a step on
  steps_per_dispatch: int  # see loop.run


def build(
  step: sharding.ReplicaStep,
  samples: splits.Labelled,
  batch_size: int,
  seed: int,
  *,
  balanced: bool = False,
  steps_per_dispatch: int = 0,
  data_on_device: str = 'auto',
) -> Feed:
  """Chooses the way.

  Args:
    step: of a state and of what batches.training gives.
    samples: to train on.
    batch_size: B, over all devices; of each batch this process takes its
      `share` alone.
    seed: of the order.
    balanced: see batches.rows.
    steps_per_dispatch: 0 = 10 on accelerators; 1 on CPU, where a step costs
      nothing to start, and of images in files, which cannot be read ten batches
      ahead.
    data_on_device: 'auto' = on accelerators, where images and labels take a
      quarter of the memory at most.

  Raises:
    UsageError: for a field that cannot be used.
  """
  check_fields(steps_per_dispatch, data_on_device)
  if not steps_per_dispatch:
    in_files = images.is_lazy(samples.image)
    is_slow = in_files or not sharding.is_accelerated()
    steps_per_dispatch = 1 if is_slow else _STEPS
  share = sharding.share(batch_size)
  # Decided once, since all have to run the same program.
  if not sharding.agreed(_is_on_device(samples, data_on_device)):
    order = functools.partial(
      batches.training,
      *(samples, batch_size, seed),
      balanced=balanced,
      share=share,
    )
    return Feed(step, (), order, steps_per_dispatch)
  rows = batches.rows(samples.label, batch_size, seed, balanced=balanced)
  return Feed(
    _looking_up(step, samples.image.shape[1:]),
    # Flat: some devices store a few channels in many times the space.
    (samples.image.reshape(len(samples.image), -1), samples.label),
    lambda first_step: (rows(i)[share] for i in itertools.count(first_step)),
    steps_per_dispatch,
  )


def check_fields(steps_per_dispatch: int, data_on_device: str) -> None:
  """Raises a UsageError for what `build` cannot use of any samples."""
  if steps_per_dispatch < 0:
    raise types.UsageError(
      f'steps_per_dispatch must be at least 0, got {steps_per_dispatch}'
    )
  types.check_choice('data_on_device', data_on_device, ON_DEVICE)


def _looking_up(
  step: sharding.ReplicaStep, shape: tuple[int, ...]
) -> sharding.ReplicaStep:
  """The step, of numbers [B], all images [N, H * W * C] and labels [N]."""

  def of_rows(
    state: Any, number: Array, image: Array, label: Array
  ) -> tuple[Any, Any]:
    index = number % len(label)

    def taken(x: Array) -> Array:
      return x.at[index].get(mode='promise_in_bounds')

    batch = types.Batch(
      taken(image).reshape(-1, *shape),
      taken(label),
      jnp.ones(index.shape, bool),
    )
    return step(state, (batch, number))

  return of_rows


def _is_on_device(samples: splits.Labelled, wanted: str) -> bool:
  if images.is_lazy(samples.image):
    if wanted == 'always':
      raise types.UsageError(
        "data_on_device='always': the images lie in files, and are read when "
        "they are needed; take 'auto' or 'never'"
      )
    return False
  if wanted == 'never' or (wanted == 'auto' and not sharding.is_accelerated()):
    return False
  size = samples.image.nbytes + samples.label.nbytes
  memory = sharding.memory()
  told = f'{size / 1e6:,.0f} MB'
  if wanted == 'always':
    if memory is not None and size > memory:
      raise types.UsageError(
        f"data_on_device='always': the training images take {told}, and "
        f"a device has {memory / 1e6:,.0f} MB; take 'auto' or 'never'"
      )
    return True
  if memory is None or size > _SHARE * memory:
    logging.info('training images stay on the host: %s', told)
    return False
  logging.info('training images on each device: %s', told)
  return True
