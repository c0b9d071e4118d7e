"""A net for 32x32 images that two CPU cores train within 75 minutes.

B batch, H x W pixels, C channels.

What the speed records on CIFAR-10 have in common (Page 2018, "How to train your
ResNet"; Jordan 2024, "94 % on CIFAR-10 in 3.29 seconds on a single GPU"): a
fixed first layer that whitens small patches, few wide convolutions, pooling
right after the first of each block, batch norm, GELU.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from crosr_jax.models import blocks, layers

Array = jax.Array

# Directions of less variance are amplified no further.
_EPSILON = 5e-4


class Whitening(nn.Module):
  """2x2 patches along the principal axes of the data, each way; not trained.

  The kernel is of the images that the net is initialised with, and lies among
  the statistics, where no optimiser reaches it.
  """

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, H, W, C] -> [B, H, W, 8 C]."""
    kernel = self.variable('batch_stats', 'kernel', _whitening, x).value
    kernel = kernel.astype(x.dtype)
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return nn.gelu(y)


def _whitening(x: Array) -> Array:
  """Principal axes of the 2x2 patches of [B, H, W, C], [2, 2, C, 8 C]."""
  x = x.astype(jnp.float32)
  channels = x.shape[-1]
  patches = jnp.concatenate(
    [x[:, i : x.shape[1] - 1 + i, j : x.shape[2] - 1 + j]
     for i in range(2) for j in range(2)],
    axis=-1,
  ).reshape(-1, 4 * channels)  # fmt: skip
  value, vector = jnp.linalg.eigh(patches.T @ patches / len(patches))
  axes = vector / jnp.sqrt(value + _EPSILON)[None]
  axes = axes.reshape(2, 2, channels, 4 * channels)
  return jnp.concatenate([axes, -axes], axis=-1)


class FastBlock(nn.Module):
  """Two 3x3 convolutions, pooled after the first, with norm and GELU."""

  width: int
  dropout: float
  whiten: bool = False

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), width]."""
    if self.whiten:
      x = Whitening()(x)
    x = layers.max_pool(layers.conv(self.width, use_bias=False)(x))
    x = nn.gelu(layers.Norm()(x, train))
    x = layers.conv(self.width, use_bias=False)(x)
    x = nn.gelu(layers.Norm()(x, train))
    return layers.Dropout(self.dropout)(x, keys)


class MaxHead(nn.Module):
  """The largest of each channel over space, dropout, then the logits."""

  num_classes: int
  dropout: float

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> logits [B, K], linear."""
    del train
    x = layers.Dropout(self.dropout)(x.max(axis=(1, 2)), keys)
    return layers.logits(self.num_classes)(x)


def fast_cnn(
  num_classes: int, width: int, dropout: float, head_dropout: float
) -> blocks.Backbone:
  """Six convolutions after the fixed one; `width` channels, then four times."""
  return blocks.Backbone(
    blocks=(
      FastBlock(width, dropout, whiten=True),
      FastBlock(4 * width, dropout),
      FastBlock(4 * width, dropout),
    ),
    head=MaxHead(num_classes, head_dropout),
  )
