"""The plain net of the paper's CIFAR-10 experiments, after VGG."""

from crosr_jax.models import blocks


def vgg(
  num_classes: int, width: int, dropout: float, head_dropout: float
) -> blocks.Backbone:
  """Eight convolutions with norms in three blocks, fc 1024 twice; width 64."""
  return blocks.Backbone(
    blocks=(
      blocks.ConvBlock(width, 2, dropout, norm=True),
      blocks.ConvBlock(2 * width, 2, dropout, norm=True),
      blocks.ConvBlock(4 * width, 4, dropout, norm=True),
    ),
    head=blocks.Head(num_classes, (1024, 1024), head_dropout),
  )
