"""What backbones are made of: a block maps a map, the head gives the logits.

B batch, H x W pixels, C channels, K known classes.
"""

from typing import NamedTuple

import flax.linen as nn
import jax

from crosr_jax.models import layers

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
    x = x.reshape(x.shape[0], -1)
    for width in self.hidden:
      x = layers.Dropout(self.dropout)(nn.relu(nn.Dense(width)(x)), keys)
    return layers.logits(self.num_classes)(x)


class PooledHead(nn.Module):
  """Mean over space, dropout, then the logits."""

  num_classes: int
  dropout: float
  # First a norm and a ReLU, for nets whose blocks end before their last ones.
  norm: bool = True

  @nn.compact
  def __call__(self, x: Array, keys: Array | None, train: bool) -> Array:
    """[B, H, W, C] -> logits [B, K], linear."""
    if self.norm:
      x = nn.relu(layers.Norm()(x, train))
    x = layers.Dropout(self.dropout)(x.mean(axis=(1, 2)), keys)
    return layers.logits(self.num_classes)(x)
