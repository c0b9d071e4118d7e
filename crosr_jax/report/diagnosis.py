"""Pictures of a fit from within: distances, rejections, reliability."""

import matplotlib
import numpy as np
from matplotlib import axes

from crosr_jax import diagnosis
from crosr_jax.report import style


def draw(found: diagnosis.Diagnosis) -> bytes:
  """One picture, as a PNG file."""
  with matplotlib.rc_context(style.settings()):
    height = max(3.2, 0.28 * len(found.rows) + 1.2)
    fig, (left, middle, right) = style.panels(
      3, width=4.4, height=height, columns=3
    )
    _distances(left, found)
    _rejected(middle, found)
    _reliability(right, found)
    handles, names = [], []
    for ax in (left, middle):
      found_handles, found_names = ax.get_legend_handles_labels()
      handles += found_handles
      names += found_names
    fig.legend(handles, names, loc='outside lower left', ncols=len(names))
    return style.png(fig)


def _distances(ax: axes.Axes, found: diagnosis.Diagnosis) -> None:
  """5 to 95 % as a bar, the median as a dot, 99 % as a tick; the tail."""
  for i, row in enumerate(found.rows):
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
  _classes(ax, found)
  ax.set_title('distance to the class')


def _rejected(ax: axes.Axes, found: diagnosis.Diagnosis) -> None:
  y = np.arange(len(found.rows))
  for offset, field, colour, name in (
    (-0.17, 'rejected_held_out', style.KNOWN, 'held-out, called unknown'),
    (0.17, 'rejected_test', style.INK, 'test, called unknown'),
  ):
    values = [getattr(row, field) for row in found.rows]
    ax.barh(y + offset, values, 0.3, color=colour, label=name, alpha=0.8)
  ax.axvline(found.rejected['test'], color=style.INK, linestyle=':')
  _classes(ax, found)
  ax.xaxis.set_major_formatter(lambda x, _: f'{100 * x:g} %')
  ax.set_title(f'known samples called unknown ({found.decision})')


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


def _classes(ax: axes.Axes, found: diagnosis.Diagnosis) -> None:
  names = [style.label(row.name, 16) for row in found.rows]
  ax.set_yticks(np.arange(len(names)), names)
  ax.invert_yaxis()
