"""Nets of counterfactual images (Neal et al. 2018): encoder, generator, critic.

B batch, H x W pixels, C channels, L latent width. Images are [B, H, W, C]
float32 from 0 to 1; codes are [B, L], points on the unit sphere, so that a
distance between two of them means the same in every run.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from crosr_jax.models import layers

Array = jax.Array
Params = dict[str, Any]

# Images are halved until neither side is longer.
_SMALLEST = 4


class Nets(NamedTuple):
  """The three nets, without parameters."""

  encoder: nn.Module  # images -> codes [B, L]
  generator: nn.Module  # codes -> images
  critic: nn.Module  # images -> [B], higher = more like a training image

  def encode(self, params: Params, image: Array) -> Array:
    """Codes [B, L] on the unit sphere."""
    return on_sphere(_apply(self.encoder, params['encoder'], image))

  def decode(self, params: Params, code: Array) -> Array:
    """Images of codes [B, L]."""
    return _apply(self.generator, params['generator'], code)

  def judge(self, params: Params, image: Array) -> Array:
    """The critic's values, [B]."""
    return _apply(self.critic, params, image)[:, 0]


class HalvingConv(nn.Module):
  """A 3x3 convolution with stride 2, as one matrix product.

  The gradient penalty needs second derivatives, which XLA's own convolutions
  take several times as long for on CPU.
  """

  features: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), features]."""
    height, width = x.shape[1:3]
    # As padding='SAME' has it; the ninth part reaches one beyond the others.
    x = jnp.pad(x, ((0, 0), (height % 2, 1), (width % 2, 1), (0, 0)))
    rows, columns = height + height % 2 - 1, width + width % 2 - 1
    parts = [
      x[:, i : i + rows : 2, j : j + columns : 2]
      for i in range(3)
      for j in range(3)
    ]
    return nn.Dense(self.features)(jnp.concatenate(parts, axis=-1))


class Down(nn.Module):
  """Convolutions that halve the image, then a fully connected layer."""

  width: int  # channels of the first convolution, doubled at every further one
  outputs: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, H, W, C] -> [B, outputs], linear."""
    for level in range(len(sizes(x.shape[1:3])) - 1):
      x = nn.leaky_relu(HalvingConv(self.width << level)(x), 0.2)
    return nn.Dense(self.outputs)(x.reshape(len(x), -1))


class Up(nn.Module):
  """A fully connected layer, then doublings with a 3x3 convolution each."""

  width: int  # as of Down, whose sizes and channels it runs back through
  image_shape: tuple[int, int, int]

  @nn.compact
  def __call__(self, code: Array) -> Array:
    """[B, L] -> [B, H, W, C] in [0, 1]."""
    *rest, (height, width) = sizes(self.image_shape[:2])
    channels = self.width << max(len(rest) - 1, 0)
    x = nn.Dense(height * width * channels)(code)
    x = _normed(x.reshape(len(x), height, width, channels))
    for level in reversed(range(1, len(rest))):
      x = _doubled(x, rest[level])
      x = _normed(layers.conv(self.width << (level - 1))(x))
    x = _doubled(x, self.image_shape[:2])
    return nn.sigmoid(layers.conv(self.image_shape[2])(x))


def build(image_shape: Sequence[int], *, latent_width: int, width: int) -> Nets:
  """Nets for images [H, W, C]; `width` channels where they are largest."""
  height, wide, channels = image_shape
  return Nets(
    Down(width, latent_width),
    Up(width, (height, wide, channels)),
    Down(width, 1),
  )


def init(nets: Nets, image_shape: Sequence[int], key: Array) -> Params:
  """Parameters of 'encoder', 'generator' and 'critic'."""

  def make(key: Array) -> Params:
    image = jnp.zeros((1, *image_shape))
    keys = jax.random.split(key, 3)
    encoder = nets.encoder.init(keys[0], image)['params']
    code = nets.encode({'encoder': encoder}, image)
    return {
      'encoder': encoder,
      'generator': nets.generator.init(keys[1], code)['params'],
      'critic': nets.critic.init(keys[2], image)['params'],
    }

  return jax.jit(make)(key)


def sizes(size: Sequence[int]) -> list[tuple[int, int]]:
  """Height and width before each halving, and after the last one."""
  height, width = size
  found = [(height, width)]
  while max(height, width) > _SMALLEST:
    height, width = -(-height // 2), -(-width // 2)
    found.append((height, width))
  return found


def on_sphere(code: Array) -> Array:
  """Codes [B, L] at length 1."""
  square = jnp.sum(jnp.square(code), axis=1, keepdims=True)
  # Its gradient stays finite where a code is 0.
  return code * jax.lax.rsqrt(square + 1e-12)


def _normed(x: Array) -> Array:
  """ReLU of each sample's own normalised [H, W, C].

  Without it dark images are all rebuilt as black; batch statistics would make
  an image depend on its batch.
  """
  return nn.relu(nn.GroupNorm(num_groups=1)(x))


def _doubled(x: Array, size: Sequence[int]) -> Array:
  """Each pixel as 2x2, cropped to `size`; as it is where that is its size."""
  if x.shape[1:3] == tuple(size):
    return x
  return layers.doubled(x, size)


def _apply(module: nn.Module, params: Any, x: Array) -> Array:
  """apply's own type covers calls that also mutate."""
  return module.apply({'params': params}, x)  # type: ignore[return-value]
