"""Sheets of images: rows with a title on the left and captions below."""

from typing import NamedTuple

import numpy as np
from matplotlib import axes, figure

from crosr_jax.report import style

COLUMNS = 10

# In inches.
_TILE = 0.68
_GAP = 0.06
_LETTER = 0.078
_LINE = 0.135


class Strip(NamedTuple):
  """One row of a sheet."""

  title: str
  image: np.ndarray  # [n, H, W, C] uint8
  captions: tuple[str, ...] = ()  # one of two lines under each image
  colour: str = style.INK


def parts(count: int) -> list[slice]:
  """Slices of `count` images, one per row of a sheet."""
  return [slice(i, i + COLUMNS) for i in range(0, count, COLUMNS)]


def sheet(strips: list[Strip]) -> figure.Figure:
  """Rows of images, a title left of each, captions below where given."""
  _, h, w, _ = strips[0].image.shape
  tile = _TILE * h / w
  heights = [tile + _GAP + 2.4 * _LINE * bool(s.captions) for s in strips]
  margin = _margin(strips)
  width = margin + COLUMNS * (_TILE + _GAP)
  total = sum(heights) + _GAP
  fig = figure.Figure(figsize=(width, total))
  # One frame in inches for all images: a hundred frames take a second.
  ax = fig.add_axes((0, 0, 1, 1))
  ax.set_axis_off()
  top = _GAP
  for strip, height in zip(strips, heights, strict=True):
    _draw(ax, strip, (margin, top), tile)
    top += height
  ax.set(xlim=(0, width), ylim=(total, 0), aspect='auto')
  return fig


def _margin(strips: list[Strip]) -> float:
  """Room for the longest line of a title."""
  lines = [line for strip in strips for line in strip.title.split('\n')]
  return max(0.7, 0.25 + _LETTER * max(map(len, lines)))


def _draw(ax: axes.Axes, strip: Strip, corner: tuple, tile: float) -> None:
  """Draws one row; its images start at `corner` and are `tile` high."""
  margin, top = corner
  ax.text(
    margin - 0.1,
    top + tile / 2,
    strip.title,
    ha='right',
    va='center',
    color=strip.colour,
    linespacing=1.3,
  )
  # Small images keep their pixels; only a large one is smoothed on shrinking.
  small = max(strip.image.shape[1:3]) <= _TILE * style.DPI
  for i, image in enumerate(style.colour_images(strip.image)):
    left = margin + i * (_TILE + _GAP)
    ax.imshow(
      image,
      extent=(left, left + _TILE, top + tile, top),
      interpolation='nearest' if small else 'antialiased',
    )
    if strip.captions:
      ax.text(
        left + _TILE / 2,
        top + tile + 0.03,
        strip.captions[i],
        ha='center',
        va='top',
        fontsize=7,
        linespacing=1.25,
      )
