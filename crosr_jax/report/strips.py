"""Sheets of images: rows with a title on the left and captions below."""

from typing import NamedTuple

import numpy as np
from matplotlib import axes, figure
from matplotlib.backends import backend_agg

from crosr_jax.report import style

COLUMNS = 10

# In inches.
_TILE = 0.68
_GAP = 0.06
_MARGIN = 0.7, 3.2
_LINE = 0.135

# Sizes of letters, in points.
_TITLE, _CAPTION = 9, 7


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
  letters = _Letters()
  lines = [x for s in strips for x in s.title.split('\n')]
  least, most = _MARGIN
  margin = 0.25 + max(letters.width(x, _TITLE) for x in lines)
  margin = min(max(margin, least), most)
  width = margin + COLUMNS * (_TILE + _GAP)
  total = sum(heights) + _GAP
  fig = figure.Figure(figsize=(width, total))
  # One frame in inches for all images: a hundred frames take a second.
  ax = fig.add_axes((0, 0, 1, 1))
  ax.set_axis_off()
  top = _GAP
  for strip, height in zip(strips, heights, strict=True):
    _draw(ax, strip, (margin, top), tile, letters)
    top += height
  ax.set(xlim=(0, width), ylim=(total, 0), aspect='auto')
  return fig


class _Letters:
  """How wide a font draws them."""

  def __init__(self) -> None:
    canvas = backend_agg.FigureCanvasAgg(figure.Figure(dpi=style.DPI))
    self._text = canvas.figure.text(0, 0, '')
    self._renderer = canvas.get_renderer()

  def width(self, line: str, size: float) -> float:
    """In inches."""
    self._text.set(text=line, fontsize=size)
    with style.any_letters():
      return self._text.get_window_extent(self._renderer).width / style.DPI

  def fitted(self, text: str, size: float, width: float) -> str:
    """Its lines, cut where they are wider than so many inches."""
    lines = []
    for line in text.split('\n'):
      cut = line
      while len(cut) > 1 and self.width(cut, size) > width:
        cut = cut.removesuffix('…')[:-1] + '…'
      lines.append(cut)
    return '\n'.join(lines)


def _draw(
  ax: axes.Axes, strip: Strip, corner: tuple, tile: float, letters: _Letters
) -> None:
  """Draws one row; its images start at `corner` and are `tile` high."""
  margin, top = corner
  ax.text(
    margin - 0.1,
    top + tile / 2,
    letters.fitted(strip.title, _TITLE, margin - 0.15),
    ha='right',
    va='center',
    fontsize=_TITLE,
    color=style.dark(strip.colour),
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
        letters.fitted(strip.captions[i], _CAPTION, _TILE + _GAP / 2),
        ha='center',
        va='top',
        fontsize=_CAPTION,
        linespacing=1.25,
      )
