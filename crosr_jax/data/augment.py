"""Augmentation inside the jitted step, 8-bit in and out.

B batch, H x W pixels, C channels; one PRNG key per sample.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from crosr_jax import types

Array = jax.Array

_SALT = zlib.crc32(b'augment')


def build(*, shift: int, flip: bool) -> Callable[[Array, Array], Array]:
  """A function of images [B, H, W, C] uint8 and keys [B].

  Args:
    shift: each image is moved by up to so many pixels along both axes, black
      coming in; 0 = not at all.
    flip: whether half of the images are mirrored left to right.

  Raises:
    UsageError: for a negative shift.
  """
  if shift < 0:
    raise types.UsageError(f'train.shift must be at least 0, got {shift}')

  def one(image: Array, key: Array) -> Array:
    # One draw for all: every further one costs a quarter second to compile.
    draw = jax.random.bits(jax.random.fold_in(key, _SALT), (3,))
    if shift:
      padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)))
      row, column = draw[:2] % jnp.uint32(2 * shift + 1)
      image = jax.lax.dynamic_slice(
        padded, (row, column, jnp.zeros_like(row)), image.shape
      )
    if flip:
      image = jnp.where(draw[2] % jnp.uint32(2) == 1, image[:, ::-1], image)
    return image

  if not shift and not flip:
    return lambda image, keys: image
  return jax.vmap(one)
