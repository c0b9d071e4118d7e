"""The layers that every net here is made of.

B batch, H x W pixels, C channels. `keys` is one PRNG key per sample, [B]:
randomness belongs to the sample, so a result does not depend on how a batch is
spread over devices.
"""

import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

# The axis name of data parallelism.
AXIS = 'batch'


def standardise(
  image: Array, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Array:
  """8-bit images [B, H, W, C] to float32 of mean 0 and deviation 1.

  The only place where pixels change their unit; knowns, unknowns and noise all
  pass here.
  """
  unit = image.astype(jnp.float32) / 255.0
  return (unit - jnp.array(mean, jnp.float32)[None, None, None]) / jnp.array(
    deviation, jnp.float32
  )[None, None, None]


def unstandardise(
  x: Array, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Array:
  """The way back to 8-bit images, clipped and rounded; [B, H, W, C]."""
  unit = (
    x * jnp.array(deviation, jnp.float32)[None, None, None]
    + jnp.array(mean, jnp.float32)[None, None, None]
  )
  return jnp.round(jnp.clip(unit, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def conv(features: int, size: int = 3, **kwargs: Any) -> nn.Conv:
  """A size x size convolution that keeps height and width."""
  return nn.Conv(features, (size, size), padding='SAME', **kwargs)


def max_pool(x: Array) -> Array:
  """2x2, stride 2; an odd row or column is pooled alone. [B, H, W, C]."""
  return nn.max_pool(x, (2, 2), (2, 2), padding='SAME')


class Dropout(nn.Module):
  """Drops each value with probability `rate`, by its own sample's key."""

  rate: float

  @nn.compact
  def __call__(self, x: Array, keys: Array | None) -> Array:
    """[B, ...] with keys [B]; without keys (evaluation) nothing is dropped."""
    if keys is None or self.rate == 0.0:
      return x
    layer = zlib.crc32('/'.join(self.path).encode())

    def mask(key: Array) -> Array:
      bits = jax.random.bits(
        jax.random.fold_in(key, layer), x.shape[1:], jnp.uint16
      )
      return bits >= jnp.uint16(min(round(self.rate * 65536), 65535))

    return jnp.where(jax.vmap(mask)(keys), x / (1.0 - self.rate), 0.0)


class Norm(nn.Module):
  """Batch normalisation with statistics over the whole global batch."""

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """[B, H, W, C]; in training inside a replica step, see train.py."""
    return nn.BatchNorm(
      use_running_average=not train, momentum=0.9, axis_name=AXIS
    )(x)
