"""Picture of how the odds of unknown were chosen."""

import numpy as np

from crosr_jax import types
from crosr_jax.report import material as material_lib
from crosr_jax.report import style


def tail(material: material_lib.Material) -> style.Picture | None:
  """Share of knowns that argmax rejects, against the odds of unknown."""
  chosen = material.tail
  if chosen is None:
    return None
  prior, held_out = np.asarray(chosen.priors), np.asarray(chosen.held_out)
  fig, (ax,) = style.panels(1, width=6.6, height=4.0)
  error = _open(chosen)
  first, last, most = _shown(chosen)
  ax.set(ylim=(0, most))
  ax.fill_between(
    prior, held_out - error, held_out + error, color=style.KNOWN, alpha=0.15
  )
  ax.plot(
    *(prior, held_out, '-'),
    color=style.KNOWN,
    label=f'{chosen.num_held_out:,} held-out samples, ± 2 standard errors',
  )
  ax.plot(
    *(prior, chosen.train, '--'), color=style.FAINT, label='training samples'
  )
  ax.axhline(chosen.reject_known, color=style.INK, linestyle=':')
  ax.plot(
    *(chosen.prior, held_out[chosen.priors.index(chosen.prior)], 'o'),
    color='none',
    markeredgecolor=style.INK,
    markersize=13,
    markeredgewidth=1.8,
    label='chosen',
  )
  ax.annotate(
    f'asked for: {100 * chosen.reject_known:g} %',
    *((first, chosen.reject_known), (4, 4)),
    textcoords='offset points',
  )
  if first < 1 < last:
    ax.axvline(1, color=style.FAINT, linewidth=0.8)
    ax.annotate(
      'as published',
      *((1, ax.get_ylim()[1]), (-4, -4)),
      textcoords='offset points',
      ha='right',
      va='top',
      color=style.FAINT,
    )
  ax.set_xscale('log')
  ax.set(xlabel='odds of unknown before a sample is seen', xlim=(first, last))
  ax.xaxis.set_major_formatter(lambda x, _: f'{x:g}')
  ax.set(ylabel='known samples rejected by argmax')
  ax.yaxis.set_major_formatter(lambda y, _: f'{100 * y:g} %')
  ax.grid(color='#eeeeee')
  fig.legend(loc='outside upper left', ncols=3, columnspacing=1.2)
  return style.Picture(
    'tail',
    'How the decision was chosen',
    'The greater the odds of unknown, the more known samples are called '
    f'unknown. The tail is {100 * chosen.share:g} % of each class; the odds '
    'are those whose rejections come nearest to what was asked for, on known '
    'samples that the net was not trained on. Odds whose band reaches the '
    f'dotted line fit as well: {_as_well(chosen)}.',
    style.png(fig),
  )


def _open(chosen: types.TailChoice) -> np.ndarray:
  """Two standard errors: what the count of held-out samples leaves, [T]."""
  share = np.asarray(chosen.held_out)
  return 2 * np.sqrt(share * (1 - share) / chosen.num_held_out)


def _shown(chosen: types.TailChoice) -> tuple[float, float, float]:
  """Range of odds, and of shares rejected, with room around what was chosen."""
  prior, held_out = np.asarray(chosen.priors), np.asarray(chosen.held_out)
  most = min(10 * chosen.reject_known, 1.0)
  near = prior[(held_out > 0) & (held_out < most)]
  first = min([*near, chosen.prior / 10])
  last = max([*near, chosen.prior * 10])
  return max(first, prior[0]), min(last, prior[-1]), most


def _as_well(chosen: types.TailChoice) -> str:
  """Range of the odds that held-out samples cannot tell from the chosen."""
  away = np.abs(np.asarray(chosen.held_out) - chosen.reject_known)
  near = away <= _open(chosen)
  fits = np.asarray(chosen.priors)[near]
  if not len(fits):
    return 'none does'
  first, last = (f'{odds:.1g}' for odds in (fits.min(), fits.max()))
  return first if first == last else f'{first} to {last}'
