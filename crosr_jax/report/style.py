"""One look for every picture; Figure objects, no global state of pyplot.

Colours are told apart by colour-blind readers too: Okabe and Ito's for sets,
Tol's muted ones (and line styles) for methods.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from matplotlib import (
  axes,
  colormaps,
  colors,
  figure,
  font_manager,
  layout_engine,
)

DPI = 110
KNOWN = '#0072B2'
INK = '#222222'
FAINT = '#808080'
_UNKNOWN = (
  '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#7B3294', '#5D4037',
)  # fmt: skip
_METHOD = (
  '#CC6677', '#332288', '#117733', '#DDAA33', '#44AA99', '#882255', '#88CCEE',
  '#999933', '#AA4499',
)  # fmt: skip
_CLASS = ('#4477AA', *_METHOD)
_DASHES = ('--', '-.', ':', (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
# Where one of them is installed, names in these scripts are drawn, not boxed.
_FALLBACK = (
  'Noto Sans CJK JP', 'Noto Sans CJK SC', 'Noto Sans', 'Hiragino Sans',
  'Yu Gothic', 'Microsoft YaHei', 'Arial Unicode MS', 'Noto Sans Arabic',
)  # fmt: skip


def settings() -> dict:
  """What every picture is drawn under (matplotlib's rc parameters)."""
  installed = {font.name for font in font_manager.fontManager.ttflist}
  fallback = [name for name in _FALLBACK if name in installed]
  return {
    'font.family': ['DejaVu Sans', *fallback],
    'font.size': 9,
    'axes.titlesize': 10,
    'axes.titlelocation': 'left',
    'axes.edgecolor': FAINT,
    'axes.labelcolor': INK,
    'axes.linewidth': 0.8,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'xtick.color': '#555555',
    'ytick.color': '#555555',
    'legend.frameon': False,
    'legend.fontsize': 8,
    'lines.linewidth': 1.6,
    'figure.facecolor': 'white',
    # Names come from users: a dollar sign in one must not start mathematics.
    'text.parse_math': False,
  }


def unknown_colour(index: int) -> str:
  """Colour of the unknown set of that position."""
  return _UNKNOWN[index % len(_UNKNOWN)]


def class_colours(count: int) -> np.ndarray:
  """Colours of up to 20 classes, [count, 4]; names beside them help too."""
  if count <= len(_CLASS):
    return colors.to_rgba_array(_CLASS[:count])
  return colormaps['tab20'](np.arange(count))


def dark(colour: str) -> tuple[float, float, float]:
  """A colour for lines and letters on white, from 0 to 1."""
  r, g, b = colors.to_rgb(colour)
  return 0.6 * r, 0.6 * g, 0.6 * b


def method_line(index: int, *, lead: bool) -> dict:
  """Colour and dash of a method's line; the lead's is black and solid."""
  if lead:
    return {'color': INK, 'linewidth': 2.2, 'zorder': 5}
  return {
    'color': _METHOD[index % len(_METHOD)],
    'linestyle': _DASHES[index % len(_DASHES)],
  }


def label(name: object, limit: int = 24) -> str:
  """A user's name as one short line that a font can draw."""
  text = str(name).encode('utf-8', 'replace').decode()
  text = ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())
  return text if len(text) <= limit else text[: limit - 1] + '…'


def panels(
  count: int, *, width: float = 4.6, height: float = 3.2, columns: int = 2
) -> tuple[figure.Figure, list[axes.Axes]]:
  """A figure of `count` panels of that size, at most `columns` beside."""
  columns = min(columns, count)
  rows = -(-count // columns)
  fig = figure.Figure(
    figsize=(width * columns, height * rows),
    layout=layout_engine.ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
  )
  grid = fig.subplots(rows, columns, squeeze=False).ravel()
  for spare in grid[count:]:
    spare.set_axis_off()
  return fig, list(grid[:count])


@contextlib.contextmanager
def any_letters() -> Iterator[None]:
  """No warning where a letter that no installed font has becomes a box."""
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Glyph')
    warnings.filterwarnings('ignore', message='Matplotlib currently does not')
    yield


def png(fig: figure.Figure) -> bytes:
  """The picture's file; the same drawing gives the same bytes."""
  buffer = io.BytesIO()
  with any_letters():
    fig.savefig(buffer, format='png', dpi=DPI, metadata={'Software': None})
  return buffer.getvalue()


def colour_images(image: np.ndarray) -> np.ndarray:
  """[N, H, W, 1 or 3] uint8 -> [N, H, W, 3] uint8."""
  return np.broadcast_to(image, (*image.shape[:3], 3))
