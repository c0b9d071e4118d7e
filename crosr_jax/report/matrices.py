"""Picture of the (K+1)-way confusion matrices.

N samples, K known classes, G groups of classes drawn as one.
"""

import numpy as np
from matplotlib import axes

from crosr_jax import metrics, types
from crosr_jax.report import material as material_lib
from crosr_jax.report import style, words

Material = material_lib.Material
_COUNTED = 20  # classes, the most whose counts stay legible in the cells
_GROUPS = 50  # rows, the most that are told apart


def confusion(material: Material) -> material_lib.Picture:
  """Confusion of the lead method, one panel per unknown set."""
  method = material_lib.lead(material.scores)
  names = material_lib.unknown_names(material)
  k = len(material.class_names)
  group = -(-k // _GROUPS)
  size = float(np.clip(0.36 * (k + 1) + 1.2, 3.4, 8.4))
  if k > _COUNTED:
    size = 5.0
  columns = 2 if size < 5.5 else 1
  fig, grid = style.panels(len(names), width=size, height=size, columns=columns)
  known = material.scores[method]['test'].prediction
  for ax, name in zip(grid, names, strict=True):
    unknown = material.scores[method][name].prediction
    truth = np.append(
      material.features['test'].label, np.full(len(unknown), types.UNKNOWN)
    )
    counts = metrics.confusion(np.append(known, unknown), truth, k)
    _matrix(ax, grouped(counts, group), material.class_names[::group])
    ax.set_title(style.label(name, 40))
  some = '' if k <= _COUNTED else ' Too many classes for counts in the cells.'
  if group > 1:
    some = f' Each cell is a block of {group} by {group} classes.'
  return material_lib.Picture(
    'confusion',
    'Confusion',
    f'Rows: truth; columns: answer of {words.method_title(method)} '
    '(argmax of the K + 1 probabilities), unknown last. Colour is the '
    'root of the share of the row, so a good matrix is a dark diagonal; a '
    f'dark cell in the last row is a class that attracts unknowns.{some}',
    style.png(fig),
  )


def grouped(counts: np.ndarray, group: int) -> np.ndarray:
  """[K+1, K+1] -> [G+1, G+1]: sums over groups of classes, unknown alone."""
  starts = [*range(0, len(counts) - 1, group), len(counts) - 1]
  rows = np.add.reduceat(counts, starts, axis=0)
  return np.add.reduceat(rows, starts, axis=1)


def _matrix(ax: axes.Axes, counts: np.ndarray, titles) -> None:
  """Draws counts [G+1, G+1], titles [G]."""
  share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  # Linear shares would hide the few in a thousand that matter: square root.
  ax.imshow(np.sqrt(share), cmap='Blues', vmin=0, vmax=1)
  size = len(counts)
  texts = [*(style.label(name, 12) for name in titles), 'unknown']
  ticks = np.arange(size)
  if size > _COUNTED + 1:
    ticks = np.unique(np.linspace(0, size - 1, 12).astype(int))
  ax.set_xticks(ticks, [texts[i] for i in ticks], rotation=90)
  ax.set_yticks(ticks, [texts[i] for i in ticks])
  ax.tick_params(length=0)
  if size > _COUNTED + 1:
    return
  for i, j in np.argwhere(counts):
    ax.text(
      j,
      i,
      str(counts[i, j]),
      ha='center',
      va='center',
      fontsize=7,
      color='white' if share[i, j] > 0.3 else style.INK,
    )
