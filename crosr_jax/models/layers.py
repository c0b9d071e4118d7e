"""The layers that every net here is made of.

B batch, H x W pixels, C channels. `keys` is one PRNG key per sample, [B]:
randomness belongs to the sample, so a result does not depend on how a batch is
spread over devices.
"""

import contextlib
import contextvars
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crosr_jax import sharding, types
from crosr_jax.models import convolution

Array = jax.Array

# Degrees by which images can be turned without resampling.
TURNS = (90, 180, 270)

# Channels from which our convolution is faster on CPU; see benchmarks/.
_WIDE = 64
# And tiles: its matrices are four times the kernel, and with fewer pixels it is
# their way from memory that takes the time.
_FEWEST_TILES = 20
# Pixels of an image: `enlarged` holds 255 * 4 * H * W in 32 bits.
_MOST_ENLARGED = (2**31 - 1) // (255 * 4)
_IS_STOCK = contextvars.ContextVar('stock operations', default=False)


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


def turned(x: Array, degrees: int) -> Array:
  """Turned counter-clockwise by a multiple of 90; [B, H, W, C]."""
  return jnp.rot90(x, degrees // 90, axes=(1, 2))


def moved(x: Array, down: int, right: int) -> Array:
  """By so many pixels, up and left where negative; [B, H, W, C].

  What comes in is like the border.
  """
  for axis, by in ((1, down), (2, right)):
    rows = np.arange(x.shape[axis]) - by
    if by:
      x = jnp.take(x, rows.clip(0, len(rows) - 1), axis=axis, mode='clip')
  return x


def enlarged(image: Array, height: int, width: int) -> Array:
  """8-bit images made larger bilinearly; [B, h, w, C] -> [B, H, W, C].

  The border repeated. In whole numbers: halves are common, and which way floats
  round them differs between programs of one net. Halves go to the even number.

  Raises:
    UsageError: where H x W is more than 32 bits have room for.
  """
  if height * width > _MOST_ENLARGED:
    raise types.UsageError(
      f'images of {height} x {width} pixels are too large for model.eval_crop, '
      f'{_MOST_ENLARGED:,} pixels are the most; make data.image_size smaller, '
      'or model.eval_crop 0'
    )
  x = image.astype(jnp.int32)
  for axis, side in ((1, height), (2, width)):
    old = x.shape[axis]
    # Where the new pixels' centres lie, in steps of 1 / (2 side).
    place = (2 * np.arange(side, dtype=np.int32) + 1) * old - side
    low = place // (2 * side)
    beyond = np.expand_dims(place - 2 * side * low, [0, *{1, 2, 3} - {axis}])
    first, second = (
      jnp.take(x, np.clip(i, 0, old - 1), axis=axis) for i in (low, low + 1)
    )
    x = first * (2 * side - beyond) + second * beyond
  unit = 4 * height * width
  whole, rest = x // unit, x % unit
  is_up = (2 * rest > unit) | ((2 * rest == unit) & (whole % 2 == 1))
  return (whole + is_up.astype(jnp.int32)).astype(jnp.uint8)


def unstandardise(
  x: Array, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Array:
  """The way back to 8-bit images, clipped and rounded; [B, H, W, C]."""
  unit = (
    x * jnp.array(deviation, jnp.float32)[None, None, None]
    + jnp.array(mean, jnp.float32)[None, None, None]
  )
  return jnp.round(jnp.clip(unit, 0.0, 1.0) * 255.0).astype(jnp.uint8)


@contextlib.contextmanager
def stock_operations() -> Iterator[None]:
  """What is traced inside takes XLA's own operations everywhere.

  For programs that leave this machine: our own are made for its devices.
  """
  token = _IS_STOCK.set(True)
  try:
    yield
  finally:
    _IS_STOCK.reset(token)


def conv(features: int, size: int = 3, **kwargs: Any) -> nn.Conv:
  """A size x size convolution that keeps height and width."""
  return nn.Conv(
    features,
    (size, size),
    padding='SAME',
    conv_general_dilated=_convolve,
    **kwargs,
  )


def logits(num_classes: int) -> nn.Dense:
  """The last layer: multiplies and adds in float32.

  Whatever the net computes in, and its weights were rounded to: in bfloat16 the
  largest logits of many samples would be equal.
  """
  return nn.Dense(num_classes, dtype=jnp.float32)


def _convolve(
  x: Array,
  kernel: Array,
  strides: Sequence[int],
  padding: Any,
  **kwargs: Any,
) -> Array:
  """jax.lax.conv_general_dilated, or ours where that is faster."""
  plain = all(
    kwargs.get(name) in (None, 1, (1, 1))
    for name in ('lhs_dilation', 'rhs_dilation', 'feature_group_count')
  )
  if (
    plain
    and _is_ours('cpu')
    and (*kernel.shape[:2], *strides) == (3, 3, 1, 1)
    and min(kernel.shape[2:]) >= _WIDE
    and x.dtype == kernel.dtype == jnp.float32
    and convolution.num_tiles(x.shape) >= _FEWEST_TILES
  ):
    # Ours has no forward mode (jax.jvp).
    return convolution.convolve(x, kernel)
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


def _is_ours(*backends: str) -> bool:
  return jax.default_backend() in backends and not _IS_STOCK.get()


class Upsample(nn.Module):
  """A transposed convolution whose kernel is its stride: no patch overlaps.

  The same parameters and values as flax's ConvTranspose, as one matmul: XLA's
  gradient of wide transposed convolutions is twenty times slower on CPU.
  """

  features: int
  strides: tuple[int, int]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, H, W, C] -> [B, rows * H, columns * W, features]."""
    (rows, columns), (batch, height, width, channels) = self.strides, x.shape
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (rows, columns, channels, self.features),
    )
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    # ConvTranspose slides its kernel over spread-out pixels, so it is mirrored.
    matrix = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(channels, -1)
    y = (x.reshape(-1, channels) @ matrix).reshape(
      batch, height, width, rows, columns, self.features
    )
    y = y.transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, rows * height, columns * width, self.features)
    return y + bias[None, None, None]


def max_pool(x: Array) -> Array:
  """2x2, stride 2; an odd row or column is pooled alone. [B, H, W, C]."""
  # With XLA's own gradient a training step takes a fifth longer, on CPU as on a
  # GPU; on TPU it was not measured. Ours has no forward mode (jax.jvp).
  is_ours = _is_ours('cpu', 'gpu')
  return _max_pool_with_own_gradient(x) if is_ours else _max_pool(x)


def _max_pool(x: Array) -> Array:
  # By keywords, as the converter to ONNX takes it.
  return nn.max_pool(x, window_shape=(2, 2), strides=(2, 2), padding='SAME')


_max_pool_with_own_gradient = jax.custom_vjp(_max_pool)


def _max_pool_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
  out = _max_pool(x)
  return out, (x, out)


def _max_pool_backward(
  residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array]:
  """To the first of the largest in each 2x2 window, as XLA gives it."""
  x, out = residuals
  _, height, width, _ = x.shape
  padded = jnp.pad(
    x,
    ((0, 0), (0, height % 2), (0, width % 2), (0, 0)),
    constant_values=-jnp.inf,
  )
  is_first, is_second, is_third = (
    padded[:, i::2, j::2] == out for i, j in ((0, 0), (0, 1), (1, 0))
  )
  winner = jnp.where(
    is_first, 0, jnp.where(is_second, 1, jnp.where(is_third, 2, 3))
  ).astype(jnp.int8)
  place = 2 * (jnp.arange(height) % 2)[:, None] + jnp.arange(width)[None] % 2
  is_winner = (
    doubled(winner, x.shape[1:3]) == place.astype(jnp.int8)[None, ..., None]
  )
  return (jnp.where(is_winner, doubled(gradient, x.shape[1:3]), 0.0),)


def doubled(x: Array, size: Sequence[int]) -> Array:
  """Each element as 2x2, cropped to (height, width); [B, H, W, C]."""
  x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
  return x[:, : size[0], : size[1]]


_max_pool_with_own_gradient.defvjp(_max_pool_forward, _max_pool_backward)


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
    # Statistics are float32, whatever the net computes in.
    y = nn.BatchNorm(
      use_running_average=not train, momentum=0.9, axis_name=sharding.AXIS
    )(x.astype(jnp.float32))
    return y.astype(x.dtype)
