"""DenseNet (Huang et al. 2017) for small images, without bottlenecks.

B batch, H x W pixels, C channels, G growth: what each layer adds.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from crosr_jax.models import blocks, layers

Array = jax.Array

_STEM = 16


class DenseLayer(nn.Module):
  """Norm, ReLU, 3x3 convolution and dropout, of all maps before."""

  growth: int
  dropout: float

  @nn.compact
  def __call__(
    self, maps: tuple[Array, ...], keys: Array | None, train: bool
  ) -> Array:
    """Maps [B, H, W, C_i] -> [B, H, W, G]."""
    x = nn.relu(layers.Norm()(jnp.concatenate(maps, axis=-1), train))
    x = layers.conv(self.growth, use_bias=False)(x)
    return layers.Dropout(self.dropout)(x, keys)


class Transition(nn.Module):
  """Norm, ReLU, 1x1 convolution that keeps C, dropout, mean of 2x2."""

  dropout: float

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]."""
    channels = x.shape[-1]
    x = nn.relu(layers.Norm()(x, train))
    x = layers.conv(channels, 1, use_bias=False)(x)
    y = nn.avg_pool(
      layers.Dropout(self.dropout)(x, keys).astype(jnp.float32),
      *((2, 2), (2, 2)),
      padding='SAME',
      count_include_pad=False,
    )
    return y.astype(x.dtype)


class DenseBlock(nn.Module):
  """What comes before (the stem or a transition), then dense layers."""

  num_layers: int
  growth: int
  dropout: float
  is_first: bool

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> [B, H', W', C' + num_layers * G]."""
    if self.is_first:
      x = layers.conv(_STEM, use_bias=False)(x)
    else:
      x = Transition(self.dropout)(x, keys, train)
    # Stacked maps and their norms are made again for the gradient: kept, they
    # grow with the square of num_layers.
    layer = nn.remat(DenseLayer, static_argnums=(3,))
    maps: tuple[Array, ...] = (x,)
    for i in range(self.num_layers):
      dense = layer(self.growth, self.dropout, name=f'layer_{i}')
      maps = (*maps, dense(maps, keys, train))
    return jnp.concatenate(maps, axis=-1)


def densenet(
  num_classes: int,
  width: int,
  dropout: float,
  head_dropout: float,
  *,
  num_layers: int,
) -> blocks.Backbone:
  """Three dense blocks of `num_layers`; width is the growth."""
  return blocks.Backbone(
    blocks=tuple(
      DenseBlock(num_layers, width, dropout, is_first=i == 0) for i in range(3)
    ),
    head=blocks.PooledHead(num_classes, head_dropout),
  )


def densenet100(
  num_classes: int, width: int, dropout: float, head_dropout: float
) -> blocks.Backbone:
  """Three blocks of 32 layers, which the CROSR paper calls 92 deep; width 24.

  Depth by the usual count: 96 dense layers, the stem, two transitions, fc.
  """
  return densenet(num_classes, width, dropout, head_dropout, num_layers=32)
