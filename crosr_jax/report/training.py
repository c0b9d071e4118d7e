"""Picture of the training log."""

import numpy as np
from matplotlib import axes, ticker

from crosr_jax.report import material as material_lib
from crosr_jax.report import style

_POINTS = 200  # of a curve


def training(material: material_lib.Material) -> material_lib.Picture | None:
  """Losses, learning rate and accuracy over the steps."""
  rows = material.history
  if not rows:
    return None
  fig, (loss, rate, accuracy) = style.panels(
    3, width=3.5, height=3.0, columns=3
  )
  for key, text, colour in (
    ('loss', 'total', style.INK),
    ('cross_entropy', 'cross-entropy', style.KNOWN),
    ('reconstruction', 'reconstruction', style.unknown_colour(0)),
  ):
    _curve(loss, rows, key, text, colour)
  if all(np.min(np.asarray(line.get_ydata())) > 0 for line in loss.lines):
    loss.set_yscale('log')
    loss.yaxis.set_major_locator(_ticks(*loss.get_ylim()))
    loss.yaxis.set_major_formatter('{x:g}')
    loss.yaxis.set_minor_formatter(ticker.NullFormatter())
  loss.set_title('Loss')
  loss.legend()
  _curve(rate, rows, 'learning_rate', 'learning rate', style.INK)
  rate.set_title('Learning rate')
  _curve(accuracy, rows, 'accuracy', 'training batches', style.KNOWN)
  _curve(accuracy, rows, 'select_accuracy', 'held-out part', style.INK, 'o-')
  accuracy.set_title('Accuracy')
  accuracy.legend(loc='lower right')
  for ax in (loss, rate, accuracy):
    ax.set_xlabel('step')
    ax.margins(x=0.02)
    ax.locator_params(axis='x', nbins=5)
  return material_lib.Picture(
    'training',
    'Training',
    'Both losses should fall and level off. A held-out accuracy well below '
    'that of the training batches means overfitting: tails fitted on '
    'training samples are then too tight. (Training batches are seen with '
    'dropout and augmentation, so they may lie below.)',
    style.png(fig),
  )


def _ticks(low: float, high: float) -> ticker.LogLocator:
  """Powers of ten; on a short axis they would be too few."""
  return ticker.LogLocator(subs=(1, 2, 5) if high / low < 500 else (1,))


def _curve(ax: axes.Axes, rows, key, text, colour, form='-') -> None:
  """One column of the log; nothing where it is missing or always 0."""
  pairs = [(r['step'], r[key]) for r in rows if r.get(key) is not None]
  points = np.asarray(pairs, np.float64)
  if not len(points) or not points[:, 1].any():
    return
  # A long log is shown as means of equal stretches, so that it stays legible.
  parts = np.array_split(points, min(_POINTS, len(points)))
  points = np.stack([part.mean(axis=0) for part in parts])
  # A line of one point is none.
  form = form if len(points) > 1 else 'o'
  ax.plot(*points.T, form, color=colour, label=text, markersize=3)
