"""Wide residual nets (Zagoruyko and Komodakis 2016) for small images.

B batch, H x W pixels, C channels.
"""

import flax.linen as nn
import jax

from crosr_jax.models import blocks, layers

Array = jax.Array

_STEM = 16


class Residual(nn.Module):
  """Twice norm, ReLU and 3x3 convolution, added to what came in."""

  width: int
  stride: int
  dropout: float

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width]."""
    strides = (self.stride, self.stride)
    out = nn.relu(layers.Norm()(x, train))
    if x.shape[-1] != self.width or self.stride > 1:
      x = layers.conv(
        self.width, 1, strides=strides, use_bias=False, name='shortcut'
      )(out)
    out = layers.conv(self.width, strides=strides, use_bias=False)(out)
    out = nn.relu(layers.Norm()(out, train))
    out = layers.Dropout(self.dropout)(out, keys)
    return x + layers.conv(self.width, use_bias=False)(out)


class Group(nn.Module):
  """Residuals of one width; the first group begins with the stem."""

  num_residuals: int
  width: int
  dropout: float
  is_first: bool

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> [B, H', W', width]; the first group keeps H and W."""
    if self.is_first:
      x = layers.conv(_STEM, use_bias=False)(x)
    for i in range(self.num_residuals):
      stride = 2 if i == 0 and not self.is_first else 1
      x = Residual(self.width, stride, self.dropout)(x, keys, train)
    return x


def wide_resnet(
  num_classes: int,
  width: int,
  dropout: float,
  head_dropout: float,
  *,
  num_residuals: int,
) -> blocks.Backbone:
  """Three groups of `num_residuals`, width, 2 width and 4 width wide."""
  return blocks.Backbone(
    blocks=tuple(
      Group(num_residuals, width * 2**i, dropout, is_first=i == 0)
      for i in range(3)
    ),
    head=blocks.PooledHead(num_classes, head_dropout),
  )


def wide_resnet40_4(
  num_classes: int, width: int, dropout: float, head_dropout: float
) -> blocks.Backbone:
  """WRN-40-4: three groups of six residuals; width 64."""
  return wide_resnet(num_classes, width, dropout, head_dropout, num_residuals=6)
