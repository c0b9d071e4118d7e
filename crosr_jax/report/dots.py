"""Picture of one reading: every row of a comparison on every unknown set."""

import matplotlib
import numpy as np
from matplotlib import axes, figure, lines

from crosr_jax.report import judgement, rows, style
from crosr_jax.report import material as material_lib

_COLOUR = {'baseline': '#56616B', 'crosr': '#D55E00', 'control': '#0072B2'}
_SAYS = {'baseline': 'baselines', 'crosr': 'CROSR', 'control': 'controls'}
_COLUMNS = 3


def draw(table: dict, key: str) -> material_lib.Picture | None:
  """Means, spread, single runs and published figures; None = nothing to draw.

  Args:
    table: from rows.table.
    key: of the reading.
  """
  shown = [row for row in table['rows'] if _has(row, key)]
  if not shown:
    return None
  with matplotlib.rc_context(style.settings()):
    png = style.png(figure_of(table, shown, key))
  by = table['by']
  published = (
    'Diamonds: published figures, in this very reading.'
    if _has_paper(table, shown, key)
    else 'No published figure compares in this reading.'
  )
  return material_lib.Picture(
    f'compare_{key}',
    rows.reading(key).head,
    f'Dots: mean over {by}s, lines: ± one sample standard deviation, small '
    f'dots: every {by}. {published} Each panel has an axis of its own.',
    png,
  )


def figure_of(table: dict, shown: list[dict], key: str) -> figure.Figure:
  """The drawing of some rows, a panel per unknown set."""
  columns = min(_COLUMNS, len(table['sets']))
  fig, grid = style.panels(
    len(table['sets']),
    # The names of the rows need as much as a panel.
    width=2.7 + 3.0 / columns,
    height=1.0 + 0.23 * len(shown),
    columns=columns,
  )
  for i, (ax, name) in enumerate(zip(grid, table['sets'], strict=True)):
    _panel(ax, table, shown, name, key)
    titles = [row['title'] for row in shown]
    ax.set_yticks(np.arange(len(shown)), labels=[] if i % columns else titles)
  fig.legend(
    handles=_legend(
      shown,
      table['by'],
      len(table['labels']),
      _has_paper(table, shown, key),
    ),
    loc='outside lower center',
    ncols=5 if columns > 1 else 3,
  )
  return fig


def _has_paper(table: dict, shown: list[dict], key: str) -> bool:
  return any(
    rows.paper(table, row, name, key) for row in shown for name in table['sets']
  )


def _has(row: dict, key: str) -> bool:
  return any(
    cells[key]['mean'] is not None for cells in row['unknown'].values()
  )


def _panel(
  ax: axes.Axes, table: dict, shown: list[dict], name: str, key: str
) -> None:
  kinds = [row['kind'] for row in shown]
  for i in range(1, len(kinds)):
    if kinds[i] != kinds[i - 1]:
      ax.axhline(i - 0.5, color='#cccccc', linewidth=0.8)
  for y, row in enumerate(shown):
    cell, colour = row['unknown'][name][key], _COLOUR[row['kind']]
    paper = rows.paper(table, row, name, key)
    if paper:
      ax.plot(
        paper['value'], y, 'D', markersize=6.5, markerfacecolor='none',
        markeredgecolor=style.INK, markeredgewidth=1.2, zorder=4,
      )  # fmt: skip
    if cell['mean'] is None:
      continue
    singles = [value for value in cell['values'] if value is not None]
    if len(singles) > 1:
      ax.plot(
        singles, [y] * len(singles), 'o', markersize=3, color=colour,
        alpha=0.45, markeredgewidth=0,
      )  # fmt: skip
      ax.plot(
        [cell['mean'] - cell['std'], cell['mean'] + cell['std']], [y, y],
        color=colour, linewidth=1.6,
      )  # fmt: skip
    ax.plot(cell['mean'], y, 'o', markersize=6.5, color=colour, zorder=3)
  ax.set_title(style.label(name))
  ax.set_ylim(len(shown) - 0.5, -0.5)
  ax.margins(x=0.08)
  ax.locator_params(axis='x', nbins=5)
  ax.xaxis.set_major_formatter(
    lambda value, _: (
      judgement.short(float(value)).rstrip('0').rstrip('.') or '0'
    )
  )
  ax.grid(axis='x', color='#e8e8e8', linewidth=0.8)
  ax.tick_params(axis='y', length=0, labelcolor=style.INK)
  ax.set_axisbelow(True)
  for side in ('left', 'bottom'):
    ax.spines[side].set_visible(False)


def _legend(
  shown: list[dict], by: str, count: int, has_paper: bool
) -> list[lines.Line2D]:
  kinds = dict.fromkeys(row['kind'] for row in shown)
  handles = [
    lines.Line2D([], [], marker='o', linestyle='', color=_COLOUR[kind],
                 markersize=6.5, label=_SAYS[kind])
    for kind in kinds
  ]  # fmt: skip
  if count > 1:
    handles.append(
      lines.Line2D([], [], marker='o', linestyle='-', color=style.FAINT,
                   markersize=3, label=f'single {by}s, ± deviation')
    )  # fmt: skip
  if has_paper:
    handles.append(
      lines.Line2D([], [], marker='D', linestyle='', color=style.INK,
                   markerfacecolor='none', markersize=6.5, label='published')
    )  # fmt: skip
  return handles
