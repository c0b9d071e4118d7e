"""Backbones: the classifying half of a net, as blocks and a head.

B batch, H x W pixels, C channels, K known classes.

A block maps [B, H, W, C] to [B, H', W', C']; DHRNet reads the shapes off and
puts its laterals around them. To add a backbone, write a function of
(num_classes, width, dropout, head_dropout) that returns a Backbone, and name it
in BACKBONES.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

from crosr_jax.models import fast, layers

Array = jax.Array


class Backbone(NamedTuple):
  """Modules called as module(x, keys, train), see DHRNet."""

  blocks: tuple[nn.Module, ...]
  head: nn.Module


class ConvBlock(nn.Module):
  """3x3 convolutions with ReLU, then max pool 2 and dropout."""

  width: int
  num_convs: int
  dropout: float
  norm: bool = False

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), width]."""
    for _ in range(self.num_convs):
      x = layers.conv(self.width, use_bias=not self.norm)(x)
      if self.norm:
        x = layers.Norm()(x, train)
      x = nn.relu(x)
    return layers.Dropout(self.dropout)(layers.max_pool(x), keys)


class Head(nn.Module):
  """Fully connected layers with ReLU and dropout, then the logits."""

  num_classes: int
  hidden: tuple[int, ...]
  dropout: float

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> logits [B, K], linear."""
    del train
    x = x.reshape(len(x), -1)
    for width in self.hidden:
      x = layers.Dropout(self.dropout)(nn.relu(nn.Dense(width)(x)), keys)
    return nn.Dense(self.num_classes)(x)


def digits_cnn(
  num_classes: int, width: int, dropout: float, head_dropout: float
) -> Backbone:
  """Four layers for 8x8 digits: two convolutions, pooled each, fc, fc."""
  return Backbone(
    blocks=(
      ConvBlock(width, 1, dropout, norm=True),
      ConvBlock(2 * width, 1, dropout, norm=True),
    ),
    head=Head(num_classes, (4 * width,), head_dropout),
  )


def mnist_cnn(
  num_classes: int, width: int, dropout: float, head_dropout: float
) -> Backbone:
  """The paper's seven layers: five convolutions, fc 500, fc K; width 100."""
  return Backbone(
    blocks=(
      ConvBlock(width, 2, dropout),
      ConvBlock(width, 2, dropout),
      ConvBlock(width, 1, dropout),
    ),
    head=Head(num_classes, (500,), head_dropout),
  )


def fast_cnn(
  num_classes: int, width: int, dropout: float, head_dropout: float
) -> Backbone:
  """Seven layers for 32x32 images, the first fixed; see fast.py."""
  del head_dropout  # Its head is one layer.
  return Backbone(
    blocks=(
      fast.FastBlock(width, dropout, whiten=True),
      fast.FastBlock(4 * width, dropout),
      fast.FastBlock(4 * width, dropout),
    ),
    head=fast.PooledHead(num_classes),
  )


BACKBONES: dict[str, Callable[[int, int, float, float], Backbone]] = {
  'digits_cnn': digits_cnn,
  'mnist_cnn': mnist_cnn,
  'fast_cnn': fast_cnn,
}
