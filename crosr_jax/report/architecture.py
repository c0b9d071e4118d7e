"""Picture of nets side by side, drawn from what their modules really are.

Each net stands on the image: blocks rise on the left to the head, laterals
cross, the decoder comes down on the right to the reconstruction.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import matplotlib
from matplotlib import axes, figure, layout_engine, patches

from crosr_jax.report import material as material_lib
from crosr_jax.report import style, words


class Row(Protocol):
  """A part of a net, as models.summary tells it."""

  @property
  def name(self) -> str:
    """Of its parameters; all but the head's end in the number of the block."""

  @property
  def kind(self) -> str:
    """'block', 'head', 'lateral' (there and back) or 'decoder'."""

  @property
  def shape(self) -> Sequence[int]:
    """Of its output, without the batch."""

  @property
  def parameters(self) -> int:
    """Trained numbers."""

  @property
  def multiply_adds(self) -> int:
    """For one image."""


class Net(NamedTuple):
  """One net to draw."""

  title: str
  rows: Sequence[Row]


_COLOUR = {
  'block': '#D6E6F4',
  'head': '#B7D3EA',
  'lateral': '#FBE0CC',
  'decoder': '#D9EEDF',
  'image': '#F1F1F1',
}
_EDGE = {
  'block': '#0072B2',
  'head': '#0072B2',
  'lateral': '#D55E00',
  'decoder': '#009E73',
  'image': '#808080',
}
_WIDTH, _HEIGHT, _GAP, _RISE = 1.25, 0.92, 0.36, 1.28
_IDENTITY = 0.95  # how far LadderNet's laterals reach


def draw(
  nets: Sequence[Net], image_shape: Sequence[int], members: int = 1
) -> material_lib.Picture:
  """All nets on one floor.

  Args:
    nets: from the plain classifier up.
    image_shape: [H, W, C].
    members: nets that answer as one, of which one is drawn.
  """
  of = (
    f', of each of the {members} nets that answer as one' if members > 1 else ''
  )
  with matplotlib.rc_context(style.settings()):
    png = style.png(figure_of(nets, image_shape))
  return material_lib.Picture(
    'architecture',
    'The nets side by side',
    'From below: the image, the blocks of the backbone, the head with the '
    'logits. LadderNet and DHRNet cross from each block to a decoder that '
    'comes down to the reconstruction: LadderNet with the block as it is, '
    'DHRNet through a narrow code, which is what CROSR measures beside the '
    'logits. In each part: shape of its output (of a bottleneck, that of its '
    f'code), trained parameters, multiply-adds for one image{of}; counted from '
    'the modules themselves.',
    png,
  )


def figure_of(nets: Sequence[Net], image_shape: Sequence[int]) -> figure.Figure:
  """The drawing."""
  levels = max(len(_of(net, 'block')) for net in nets)
  widths = [_columns(net)[-1] + _WIDTH + 0.5 for net in nets]
  height = (levels + 2) * _RISE + 0.75
  fig = figure.Figure(
    figsize=(sum(widths), height),
    layout=layout_engine.ConstrainedLayoutEngine(w_pad=0.0, h_pad=0.02),
  )
  grid = fig.subplots(
    1, len(nets), squeeze=False, gridspec_kw={'width_ratios': widths}
  )[0]
  for ax, net, width in zip(grid, nets, widths, strict=True):
    ax.set(xlim=(-0.25, width - 0.25), ylim=(-0.55, height - 0.55))
    ax.set(aspect='equal')
    ax.set_axis_off()
    _net(ax, net, tuple(image_shape), levels)
  return fig


def _of(net: Net, kind: str) -> list[Row]:
  return [row for row in net.rows if row.kind == kind]


def _net(
  ax: axes.Axes, net: Net, image_shape: tuple[int, ...], levels: int
) -> None:
  x = _columns(net)
  _box(ax, x[0], 0, 'image', ('image', words.size(image_shape)))
  floors = _by_level(net)
  for level, parts in floors.items():
    y = level * _RISE
    _box(ax, x[0], y, 'block', _lines(f'block {level}', parts['block']))
    _up(ax, x[0], y - _RISE)
    if not parts['decoder']:
      continue
    if parts['lateral']:
      texts = _lines(f'bottleneck {level}', parts['lateral'])
      _box(ax, x[1], y, 'lateral', texts)
      _arrow(ax, (x[0] + _WIDTH, y), (x[1], y))
      _arrow(ax, (x[1] + _WIDTH, y), (x[-1], y))
    else:
      _arrow(ax, (x[0] + _WIDTH, y), (x[-1], y))
      ax.text(
        (x[0] + _WIDTH + x[-1]) / 2, y + 0.07, 'identity', ha='center',
        va='bottom', fontsize=8.5, color=_EDGE['lateral'],
      )  # fmt: skip
    _box(ax, x[-1], y, 'decoder', _lines(f'decoder {level}', parts['decoder']))
    _down(ax, x[-1], y)
  if _of(net, 'decoder'):
    _box(ax, x[-1], 0, 'image', ('reconstruction', words.size(image_shape)))
  if heads := _of(net, 'head'):
    _box(ax, x[0], (len(floors) + 1) * _RISE, 'head', _lines('head', heads))
    _up(ax, x[0], len(floors) * _RISE)
  parameters = sum(row.parameters for row in net.rows)
  work = sum(row.multiply_adds for row in net.rows)
  ax.text(
    0, (levels + 2) * _RISE + 0.02, net.title, fontsize=12,
    fontweight='bold', color=style.INK, va='bottom',
  )  # fmt: skip
  ax.text(
    0, (levels + 2) * _RISE - 0.06,
    f'{parameters:,} parameters\n{words.short(work)} multiply-adds',
    fontsize=8.5, color='#555555', va='top', linespacing=1.35,
  )  # fmt: skip


def _columns(net: Net) -> list[float]:
  """Left edges of backbone, bottlenecks and decoder, what there is of them."""
  if _of(net, 'lateral'):
    return [i * (_WIDTH + _GAP) for i in range(3)]
  return [0.0, _WIDTH + _IDENTITY] if _of(net, 'decoder') else [0.0]


def _by_level(net: Net) -> dict[int, dict[str, list[Row]]]:
  """Rows by number, from 1, and kind; the head has no number."""
  floors: dict[int, dict[str, list[Row]]] = {}
  for row in net.rows:
    if row.kind != 'head':
      level = int(row.name.rpartition('_')[2]) + 1
      floors.setdefault(level, {'block': [], 'lateral': [], 'decoder': []})
      floors[level][row.kind].append(row)
  return dict(sorted(floors.items()))


def _lines(title: str, rows: Sequence[Row]) -> tuple[str, ...]:
  """Of a box: title, shape of its first part, cost of all of them."""
  parameters = sum(row.parameters for row in rows)
  work = sum(row.multiply_adds for row in rows)
  costs = f'{words.short(parameters)} params', f'{words.short(work)} mult-adds'
  return title, words.size(rows[0].shape), *costs


def _box(
  ax: axes.Axes, x: float, y: float, kind: str, texts: Sequence[str]
) -> None:
  """A part, its lower left corner at x and half its height below y."""
  ax.add_patch(
    patches.FancyBboxPatch(
      (x, y - _HEIGHT / 2), _WIDTH, _HEIGHT,
      boxstyle='round,pad=0,rounding_size=0.08',
      facecolor=_COLOUR[kind], edgecolor=_EDGE[kind], linewidth=1.0,
    )
  )  # fmt: skip
  step = min(_HEIGHT / (len(texts) + 0.5), 0.24)
  top = y + step * (len(texts) - 1) / 2
  for i, text in enumerate(texts):
    ax.text(
      x + _WIDTH / 2, top - i * step, text, ha='center', va='center',
      fontsize=9.5 if i == 0 else 8.5,
      fontweight='bold' if i == 0 else 'normal',
      color=style.INK if i < 2 else '#555555',
    )  # fmt: skip


def _arrow(
  ax: axes.Axes, start: tuple[float, float], end: tuple[float, float]
) -> None:
  ax.annotate(
    '', end, start,
    arrowprops={'arrowstyle': '-|>', 'color': '#444444', 'linewidth': 1.1,
                'shrinkA': 1, 'shrinkB': 1, 'mutation_scale': 9},
  )  # fmt: skip


def _up(ax: axes.Axes, x: float, y: float) -> None:
  middle = x + _WIDTH / 2
  _arrow(ax, (middle, y + _HEIGHT / 2), (middle, y + _RISE - _HEIGHT / 2))


def _down(ax: axes.Axes, x: float, y: float) -> None:
  middle = x + _WIDTH / 2
  _arrow(ax, (middle, y - _HEIGHT / 2), (middle, y - _RISE + _HEIGHT / 2))
