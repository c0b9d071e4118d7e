"""Pictures of a fit from within: distances, rejections, reliability."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import axes, figure

from crosr_jax import diagnosis
from crosr_jax.report import style

_CLASSES = 30  # drawn, at most: more cannot be read


def draw(found: diagnosis.Diagnosis) -> bytes:
  """One picture, as a PNG file."""
  with matplotlib.rc_context(style.settings()):
    return style.png(figure_of(found))


def figure_of(found: diagnosis.Diagnosis) -> figure.Figure:
  """The drawing: of many classes those that lose most test samples."""
  lost = [np.nan_to_num(row.rejected_test, nan=-1.0) for row in found.rows]
  worst = np.sort(np.argsort(-np.asarray(lost), kind='stable')[:_CLASSES])
  rows = [found.rows[i] for i in worst]
  fig, (left, middle, right) = style.panels(
    3, width=4.8, height=max(3.8, 0.28 * len(rows) + 1.4), columns=3
  )
  _distances(left, rows)
  _rejected(middle, rows, found)
  _reliability(right, found)
  handles, names = [], []
  for ax in (left, middle):
    found_handles, found_names = ax.get_legend_handles_labels()
    handles += found_handles
    names += found_names
  title = 'Left: bar 5 to 95 % of the samples, dot median, tick 99 %.'
  if len(rows) < len(found.rows):
    title += (
      f' Of {len(found.rows):,} classes the {len(rows)} that lose most test '
      'samples.'
    )
  fig.legend(
    handles,
    names,
    loc='outside lower left',
    ncols=len(names),
    title=title,
    title_fontsize=8,
    alignment='left',
  )
  return fig


def _distances(ax: axes.Axes, rows: Sequence[diagnosis.ClassRow]) -> None:
  """5 to 95 % as a bar, the median as a dot, 99 % as a tick; the tail."""
  for i, row in enumerate(rows):
    for offset, values, colour, name in (
      (-0.17, row.train, style.FAINT, 'training samples'),
      (0.17, row.held_out, style.KNOWN, 'held-out samples'),
    ):
      low, median, high, highest = values
      label = name if i == 0 else None
      y = i + offset
      ax.plot([low, high], [y, y], color=colour, linewidth=3, alpha=0.5)
      ax.plot([median], [y], 'o', color=colour, markersize=4, label=label)
      ax.plot([highest], [y], '|', color=colour, markersize=7)
    ax.plot(
      *([row.tail_begin, row.half], [i, i]),
      color=style.unknown_colour(0),
      linewidth=1,
      label='tail begins, one half' if i == 0 else None,
      marker='>',
      markersize=4,
    )
  _classes(ax, rows)
  ax.set_title('distance to the class')


def _rejected(
  ax: axes.Axes,
  rows: Sequence[diagnosis.ClassRow],
  found: diagnosis.Diagnosis,
) -> None:
  y = np.arange(len(rows))
  for offset, field, colour, name in (
    (-0.17, 'rejected_held_out', style.KNOWN, 'held-out, called unknown'),
    (0.17, 'rejected_test', style.INK, 'test, called unknown'),
  ):
    values = [getattr(row, field) for row in rows]
    ax.barh(y + offset, values, 0.3, color=colour, label=name, alpha=0.8)
  ax.axvline(found.rejected['test'], color=style.INK, linestyle=':')
  _classes(ax, rows)
  ax.xaxis.set_major_formatter(lambda x, _: f'{100 * x:g} %')
  ax.set_title(f'known, called unknown ({found.decision})')


def _reliability(ax: axes.Axes, found: diagnosis.Diagnosis) -> None:
  ax.plot([0, 1], [0, 1], ':', color=style.FAINT)
  there = found.bin_count > 0
  size = 20 + 180 * found.bin_count[there] / found.bin_count.max()
  ax.scatter(
    found.confidence[there], found.right[there], size, color=style.KNOWN
  )
  ax.set(xlim=(0, 1.03), ylim=(0, 1.03))
  ax.set(xlabel='largest closed-set probability', ylabel='classified right')
  ax.set_title(
    f'reliability on test samples, error {found.calibration_error:.3f}'
  )
  # Of itself as high as all classes are.
  ax.set_box_aspect(1)
  ax.set_anchor('N')


def _classes(ax: axes.Axes, rows: Sequence[diagnosis.ClassRow]) -> None:
  names = [style.label(row.name, 16) for row in rows]
  ax.set_yticks(np.arange(len(names)), names)
  ax.set_ylim(len(rows) - 0.4, -0.6)
