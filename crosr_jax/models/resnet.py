"""ResNet-50 (He et al. 2016) for images of a few hundred pixels.

B batch, H x W pixels, C channels. The stem is a block, and so is each of the
four stages. As in nearly all code since, the 3x3 convolution of a stage's first
bottleneck has the stride, and not the 1x1 before it.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from crosr_jax.models import blocks, layers

Array = jax.Array

_EXPANSION = 4


class Stem(nn.Module):
  """7x7 convolution of stride 2, norm, ReLU, 3x3 max pool of stride 2."""

  width: int

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> [B, ceil(H / 4), ceil(W / 4), width]."""
    del keys
    x = layers.conv(self.width, 7, strides=(2, 2), use_bias=False)(x)
    x = nn.relu(layers.Norm()(x, train))
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding='SAME')


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions with norms, added to what came in."""

  width: int
  stride: int
  dropout: float

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), 4 width]."""
    strides, wide = (self.stride, self.stride), _EXPANSION * self.width
    out = layers.conv(self.width, 1, use_bias=False)(x)
    out = nn.relu(layers.Norm()(out, train))
    out = layers.conv(self.width, strides=strides, use_bias=False)(out)
    out = nn.relu(layers.Norm()(out, train))
    out = layers.Dropout(self.dropout)(out, keys)
    out = layers.Norm()(layers.conv(wide, 1, use_bias=False)(out), train)
    if x.shape[-1] != wide or self.stride > 1:
      x = layers.conv(
        wide, 1, strides=strides, use_bias=False, name='shortcut'
      )(x)
      x = layers.Norm(name='shortcut_norm')(x, train)
    return nn.relu(x + out)


class Stage(nn.Module):
  """Bottlenecks of one width, the first of which may have a stride."""

  num_bottlenecks: int
  width: int
  stride: int
  dropout: float

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), 4 width]."""
    for i in range(self.num_bottlenecks):
      stride = self.stride if i == 0 else 1
      x = Bottleneck(self.width, stride, self.dropout)(x, keys, train)
    return x


def resnet(
  num_classes: int,
  width: int,
  dropout: float,
  head_dropout: float,
  *,
  num_bottlenecks: Sequence[int],
) -> blocks.Backbone:
  """The stem, and a stage of so many bottlenecks each, 4 width wide and up."""
  stages = tuple(
    Stage(count, width * 2**i, 1 if i == 0 else 2, dropout)
    for i, count in enumerate(num_bottlenecks)
  )
  return blocks.Backbone(
    blocks=(Stem(width), *stages),
    head=blocks.PooledHead(num_classes, head_dropout, norm=False),
  )


def resnet50(
  num_classes: int, width: int, dropout: float, head_dropout: float
) -> blocks.Backbone:
  """Stages of 3, 4, 6 and 3 bottlenecks; width 64."""
  return resnet(
    num_classes, width, dropout, head_dropout, num_bottlenecks=(3, 4, 6, 3)
  )
