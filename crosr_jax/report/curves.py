"""Pictures of the unknown score: histograms and ROC.

N samples, K known classes.
"""

import numpy as np
from matplotlib import ticker
from sklearn import metrics as sk

from crosr_jax import metrics
from crosr_jax.report import material as material_lib
from crosr_jax.report import style, words

Material = material_lib.Material


def unknown_scores(material: Material) -> material_lib.Picture:
  """Histograms of the lead method's scores, knowns against each set."""
  method = material_lib.lead(material.scores)
  scores = material.scores[method]
  names = material_lib.unknown_names(material)
  # Each with its dash; at 0 the probability of unknown is one half.
  marks = [
    (mark, dash, text)
    for mark, dash, text in (
      (0.0, ':', 'probability of unknown = one half'),
      (
        material.threshold.get(method),
        '--',
        'threshold: keeps 95 % of held-out known samples',
      ),
      (material.followed, '-.', "threshold of the run's decision"),
    )
    if mark is not None
  ]
  fig, grid = style.panels(len(names))
  for i, (ax, name) in enumerate(zip(grid, names, strict=True)):
    _histograms(
      ax,
      scores['test'].unknown_score,
      scores[name].unknown_score,
      marks,
      style.label(name),
      style.unknown_colour(i),
    )
  for _, dash, text in marks:
    grid[0].plot([], [], color=style.INK, linestyle=dash, label=text)
  fig.legend(
    handles=grid[0].lines[-len(marks) :],
    loc='outside lower center',
    ncols=min(2, len(names)),
  )
  return material_lib.Picture(
    'unknown_scores',
    'Unknown scores',
    f'How strange each sample looks to {words.method_title(method)}: known '
    'test samples should lie left, unknown ones right, with little overlap. '
    'The axis is linear near 0 and logarithmic beyond 1; far outliers are '
    'piled up in the first and last bar.',
    style.png(fig),
  )


def _histograms(ax, known, unknown, marks, name, colour) -> None:
  sides = np.arcsinh(known, dtype=float), np.arcsinh(unknown, dtype=float)
  where = np.arcsinh([mark for mark, *_ in marks], dtype=float)
  low, high = limits(*sides, where)
  labels = (f'known test ({len(known):,})', f'{name} ({len(unknown):,})')
  hues = (style.KNOWN, colour)
  for values, text, hue in zip(sides, labels, hues, strict=True):
    ax.hist(
      np.clip(values, low, high),
      np.linspace(low, high, 51),
      label=text,
      weights=np.full(len(values), 100 / len(values)),
      color=hue,
      alpha=0.55,
      edgecolor=hue,
      linewidth=0.6,
      histtype='stepfilled',
    )
  for x, (_, dash, _) in zip(where, marks, strict=True):
    ax.axvline(float(x), color=style.INK, linestyle=dash, linewidth=1.2)
  ax.set_xticks(*score_ticks(low, high))
  ax.set(xlim=(low, high), xlabel='unknown score', ylabel='% of samples')
  ax.legend(loc='lower left', bbox_to_anchor=(-0.02, 1), ncols=2)


def limits(*groups: np.ndarray) -> tuple[float, float]:
  """Ends of an axis for all of the groups [N], but for far outliers.

  A group's own ends are at most half the span of its middle 90 % beyond it.
  """
  ends = []
  for values in groups:
    low = np.quantile(values, 0.05, method='higher')
    high = np.quantile(values, 0.95, method='lower')
    reach = max(0.0, high - low) / 2
    ends.append(max(values.min(), min(low, high) - reach))
    ends.append(min(values.max(), max(low, high) + reach))
  margin = 0.1 + 0.02 * (max(ends) - min(ends))
  return float(min(ends) - margin), float(max(ends) + margin)


def score_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
  """Ticks of an arcsinh axis from low to high: where, and the scores there.

  Plain steps on a short axis, else 0 and about eight powers of ten.
  """
  if max(-low, high) < 1.5:
    found = ticker.MaxNLocator(6).tick_values(np.sinh(low), np.sinh(high))
    texts = {float(x): f'{x:g}'.replace('-', '−') for x in found}
  else:
    decades = (high - low) / np.log(10)
    step = max(1, round(decades / 7))
    powers = range(step if decades > 5 else 0, 40, step)
    texts = {10.0**power: _power(power) for power in powers}
    if decades < 3:
      texts |= {3 * x: f'{3 * x:g}' for x in texts if x < 1e3}
    texts |= {-x: f'−{text}' for x, text in texts.items()} | {0.0: '0'}
  places = {float(np.arcsinh(x)): text for x, text in texts.items()}
  inside = sorted(place for place in places if low <= place <= high)
  return inside, [places[place] for place in inside]


def _power(exponent: int) -> str:
  if exponent < 3:
    return str(10**exponent)
  digits = str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹')
  return '10' + str(exponent).translate(digits)


def roc(material: Material) -> material_lib.Picture:
  """ROC of every method, one panel per unknown set."""
  names = material_lib.unknown_names(material)
  first = material_lib.lead(material.scores)
  fig, grid = style.panels(len(names), width=4.4, height=4.2)
  for ax, name in zip(grid, names, strict=True):
    for i, (method, scores) in enumerate(material.scores.items()):
      a, b = scores['test'].unknown_score, scores[name].unknown_score
      truth = np.repeat([0, 1], [len(a), len(b)])
      fpr, tpr, _ = sk.roc_curve(truth, np.append(a, b))
      text = f'{metrics.auroc(a, b):.4f}  {words.method_title(method)}'
      line = style.method_line(i, lead=method == first)
      ax.plot(fpr, tpr, label=text, **line)
    ax.plot([0, 1], [0, 1], color=style.FAINT, linewidth=0.8, zorder=0)
    ax.set_title(style.label(name, 40))
    ax.set(xlabel='known test samples rejected', ylabel='unknowns rejected')
    ax.set(xlim=(-0.01, 1), ylim=(0, 1.01), aspect='equal')
    ax.legend(title='AUROC', loc='lower right', alignment='left')
  return material_lib.Picture(
    'roc',
    'Receiver operating curves',
    'Share of unknown samples found against share of known samples lost, as '
    'the threshold moves. Up and left is better; the diagonal is guessing.',
    style.png(fig),
  )
