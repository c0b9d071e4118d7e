"""What training does to the images of a batch beside augmentation.

B batch of one replica, H x W pixels, C channels; one PRNG key per sample, so
that what happens to it does not depend on the device it lands on. The axis
sharding.AXIS runs over the replicas.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from crosr_jax import sharding
from crosr_jax.models import layers

Array = jax.Array

_MIXUP_SALT = zlib.crc32(b'mixup')
_NOISE_SALT = zlib.crc32(b'noise')
_CUTOUT_SALT = zlib.crc32(b'cutout')
_TURN_SALT = zlib.crc32(b'turn')


def mixer(keys: Array, shape: float) -> Callable[[Array], Array]:
  """Mixes each row with the next of the global batch (Zhang et al. 2018).

  Args:
    keys: [B].
    shape: of the symmetric Beta distribution that shares are drawn from; a row
      keeps the larger of the two.

  Returns:
    A function of rows [B, ...], which come back as float32.
  """

  def larger(key: Array) -> Array:
    own = jax.random.beta(jax.random.fold_in(key, _MIXUP_SALT), shape, shape)
    return jnp.maximum(own, 1.0 - own)

  def mix(rows: Array) -> Array:
    rows = rows.astype(jnp.float32)
    own = share.reshape(-1, *(1,) * (rows.ndim - 1))
    return own * rows + (1.0 - own) * _next_row(rows)

  share = jax.vmap(larger)(keys)
  return mix


def noisy(
  image: Array, keys: Array, noise: float, deviation: tuple[float, ...]
) -> Array:
  """With Gaussian noise on every pixel, for denoising (Vincent et al. 2008).

  Args:
    image: [B, H, W, C], of 8-bit values.
    keys: [B].
    noise: its deviation, in those of the training pixels.
    deviation: these, per channel, in [0, 1].

  Returns:
    [B, H, W, C] float32, not clipped.
  """

  def added(key: Array) -> Array:
    own = jax.random.fold_in(key, _NOISE_SALT)
    return jax.random.normal(own, image.shape[1:])

  scale = 255.0 * noise * jnp.array(deviation, jnp.float32)
  return image.astype(jnp.float32) + scale[None, None, None] * jax.vmap(added)(
    keys
  )


def cut_out(
  image: Array, keys: Array, side: int, mean: tuple[float, ...]
) -> Array:
  """With a square of the mean colour (DeVries & Taylor 2017).

  Its centre is at any pixel, so that near the border part of it lies outside.

  Args:
    image: [B, H, W, C], of 8-bit values.
    keys: [B].
    side: of the square, in pixels.
    mean: of the training pixels, per channel, in [0, 1].

  Returns:
    [B, H, W, C] float32.
  """

  def is_cut(key: Array) -> Array:
    own = jax.random.split(jax.random.fold_in(key, _CUTOUT_SALT))
    # Counted from the first row and column of the square.
    row, column = (
      jnp.arange(size) - jax.random.randint(axis, (), 0, size) + side // 2
      for size, axis in zip(image.shape[1:3], own, strict=True)
    )
    inside = [(x >= 0) & (x < side) for x in (row, column)]
    return inside[0][:, None] & inside[1][None]

  colour = 255.0 * jnp.array(mean, jnp.float32)
  return jnp.where(
    jax.vmap(is_cut)(keys)[..., None],
    colour[None, None, None],
    image.astype(jnp.float32),
  )


def turned(
  image: Array, keys: Array, degrees: tuple[int, ...]
) -> tuple[Array, Array]:
  """Each image as it is or turned, as its key draws, all equally often.

  Args:
    image: [B, H, H, C].
    keys: [B].
    degrees: of the turns there are, counter-clockwise, each of layers.TURNS.

  Returns:
    The images, and which turn each had, [B] int32: 0 = none, i = the i-th.
  """

  def drawn(key: Array) -> Array:
    own = jax.random.fold_in(key, _TURN_SALT)
    return jax.random.randint(own, (), 0, 1 + len(degrees))

  which = jax.vmap(drawn)(keys)
  found = image
  for i, turn in enumerate(degrees, start=1):
    found = jnp.where(
      (which == i)[:, None, None, None],
      layers.turned(image, turn),
      found,
    )
  return found, which


def _next_row(rows: Array) -> Array:
  """Row i + 1 in place of row i, over all replicas, the first after the last.

  However many devices share a batch, every row meets the same one.
  """
  n = jax.lax.axis_size(sharding.AXIS)
  first = jax.lax.ppermute(
    rows[:1], sharding.AXIS, [(i, (i - 1) % n) for i in range(n)]
  )
  return jnp.concatenate([rows[1:], first])
