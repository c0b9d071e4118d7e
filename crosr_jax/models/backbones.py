"""Backbones: the classifying half of a net, as blocks and a head.

A block maps [B, H, W, C] to [B, H', W', C']; DHRNet reads the shapes off and
puts its laterals around them. To add a backbone, write a function of
(num_classes, width, dropout, head_dropout) that returns a blocks.Backbone, in a
module of its own where it is long, and name it in BACKBONES.
"""

from collections.abc import Callable

from crosr_jax.models import blocks, densenet, fast, resnet, vgg, wide_resnet


def digits_cnn(
  num_classes: int, width: int, dropout: float, head_dropout: float
) -> blocks.Backbone:
  """Four layers for 8x8 digits: two convolutions, pooled each, fc, fc."""
  return blocks.Backbone(
    blocks=(
      blocks.ConvBlock(width, 1, dropout, norm=True),
      blocks.ConvBlock(2 * width, 1, dropout, norm=True),
    ),
    head=blocks.Head(num_classes, (4 * width,), head_dropout),
  )


def mnist_cnn(
  num_classes: int, width: int, dropout: float, head_dropout: float
) -> blocks.Backbone:
  """The paper's seven layers: five convolutions, fc 500, fc K; width 100."""
  return blocks.Backbone(
    blocks=(
      blocks.ConvBlock(width, 2, dropout),
      blocks.ConvBlock(width, 2, dropout),
      blocks.ConvBlock(width, 1, dropout),
    ),
    head=blocks.Head(num_classes, (500,), head_dropout),
  )


BACKBONES: dict[str, Callable[[int, int, float, float], blocks.Backbone]] = {
  'digits_cnn': digits_cnn,
  'mnist_cnn': mnist_cnn,
  'fast_cnn': fast.fast_cnn,
  'vgg': vgg.vgg,
  'densenet100': densenet.densenet100,
  'resnet50': resnet.resnet50,
  'wide_resnet40_4': wide_resnet.wide_resnet40_4,
}
