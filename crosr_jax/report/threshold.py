"""Picture of macro F1 as the threshold moves.

N samples, K known classes, T thresholds.
"""

import numpy as np
from matplotlib import axes

from crosr_jax import metrics, types
from crosr_jax.report import material as material_lib
from crosr_jax.report import style, words

Material = material_lib.Material
_THRESHOLDS = 60  # tried per set, and as many again from the unknowns


def f1_threshold(material: Material) -> material_lib.Picture:
  """Macro F1 of the lead method against the share of knowns rejected."""
  method = material_lib.lead(material.scores)
  fig, (ax,) = style.panels(1, width=6.6, height=4.4)
  for i, name in enumerate(material_lib.unknown_names(material)):
    colour = style.unknown_colour(i)
    tried = f1_curve(material, name, candidates(material, name))
    best = int(np.argmax(tried[1]))
    ax.plot(*tried, color=colour, label=style.label(name, 30))
    _mark(ax, tried[0][best], tried[1][best], '*', colour)
    if method in material.threshold:
      held_out = np.asarray([material.threshold[method]])
      _mark(ax, *f1_curve(material, name, held_out), 'o', colour)
    if material.followed is not None:
      held_out = np.asarray([material.followed])
      _mark(ax, *f1_curve(material, name, held_out), 'D', colour)
  fig.legend(loc='outside upper left', ncols=3)
  followed = material.followed is not None
  marks = [
    _mark(ax, [], [], form, 'white', text)
    for form, text in (
      ('o', 'threshold that keeps 95 % of held-out known samples'),
      *([('D', "threshold of the run's decision")] if followed else []),
      ('*', 'oracle: picked on the test unknowns, shown only, never used'),
    )
  ]
  fig.legend(handles=marks, loc='outside lower left', labelspacing=0.9)
  ax.set(xlabel='share of known test samples rejected', ylabel='macro F1')
  ax.set(xlim=(-0.015, 1), ylim=(0, 1.03))
  ax.grid(color='#eeeeee')
  return material_lib.Picture(
    'f1_threshold',
    'Macro F1 and the threshold',
    f'What any threshold on the score of {words.method_title(method)} would '
    'give. Circles: the threshold that keeps 95 % of held-out known samples. '
    + ("Diamonds: that of the run's decision. " if followed else '')
    + 'Stars: an oracle picked on the test unknowns, shown only to tell how '
    'much a better threshold could gain.',
    style.png(fig),
  )


def _mark(ax: axes.Axes, x, y, form: str, colour: str, text: str = ''):
  """One marker; a star is larger than a circle, so that both are seen."""
  (line,) = ax.plot(
    x,
    y,
    form,
    color=colour,
    label=text,
    markersize=14 if form == '*' else 8,
    markeredgecolor=style.INK,
  )
  return line


def candidates(material: Material, name: str) -> np.ndarray:
  """About a hundred thresholds out of the scores themselves, falling, [T].

  Known scores make the line, unknown ones its start, where no known sample is
  rejected any more.
  """
  scores = material.scores[material_lib.lead(material.scores)]
  known, unknown = scores['test'].unknown_score, scores[name].unknown_score
  # Dense where few are rejected: that is where thresholds are.
  share = 1 - np.linspace(0, 1, _THRESHOLDS) ** 2
  picked = [np.quantile(x, share, method='lower') for x in (known, unknown)]
  everything = np.nextafter(known.min(), -np.inf)
  return np.unique(np.concatenate([*picked, [everything]]))[::-1]


def f1_curve(
  material: Material, name: str, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Share of knowns rejected and macro F1 at each threshold, [T] and [T]."""
  scores = material.scores[material_lib.lead(material.scores)]
  known, unknown = scores['test'].unknown_score, scores[name].unknown_score
  score = np.append(known, unknown)
  closed = np.append(
    material_lib.closed_prediction(material, 'test'),
    material_lib.closed_prediction(material, name),
  )
  truth = np.append(
    material.features['test'].label, np.full(len(unknown), types.UNKNOWN)
  )
  k = len(material.class_names)
  f1 = [
    metrics.macro_f1(metrics.reject(closed, score, t), truth, k)
    for t in thresholds
  ]
  return np.asarray([np.mean(known > t) for t in thresholds]), np.asarray(f1)
