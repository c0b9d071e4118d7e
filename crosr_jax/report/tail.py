"""Picture of how the tail was chosen."""

import numpy as np

from crosr_jax import types, weibull
from crosr_jax.report import material as material_lib
from crosr_jax.report import style


def tail(material: material_lib.Material) -> material_lib.Picture | None:
  """Share of knowns that argmax rejects, against the tail share."""
  chosen = material.tail
  if chosen is None:
    return None
  share, held_out = np.asarray(chosen.shares), np.asarray(chosen.held_out)
  fig, (ax,) = style.panels(1, width=6.6, height=4.0)
  error = _open(chosen)
  ax.fill_between(
    share, held_out - error, held_out + error, color=style.KNOWN, alpha=0.15
  )
  ax.plot(
    *(share, held_out, 'o-'),
    color=style.KNOWN,
    label=f'{chosen.num_held_out:,} held-out samples, ± 2 standard errors',
  )
  ax.plot(
    *(share, chosen.train, '--'), color=style.FAINT, label='training samples'
  )
  ax.axhline(chosen.reject_known, color=style.INK, linestyle=':')
  ax.plot(
    *(chosen.share, held_out[chosen.shares.index(chosen.share)], 'o'),
    color='none',
    markeredgecolor=style.INK,
    markersize=13,
    markeredgewidth=1.8,
    label='chosen',
  )
  ax.annotate(
    f'asked for: {100 * chosen.reject_known:g} %',
    *((share[-1], chosen.reject_known), (0, 4)),
    textcoords='offset points',
    ha='right',
  )
  ax.set_xscale('log')
  ax.set_xticks(share, [f'{100 * s:g} %' for s in share], minor=False)
  ax.set_xticks([], minor=True)
  ax.set(
    xlabel='tail: share of each class that the Weibull is fitted on, at least '
    f'{weibull.SMALLEST_SHARED_TAIL} samples'
  )
  ax.set(ylabel='known samples rejected by argmax', ylim=(0, None))
  ax.yaxis.set_major_formatter(lambda y, _: f'{100 * y:g} %')
  ax.grid(color='#eeeeee')
  fig.legend(loc='outside upper left', ncols=3)
  return material_lib.Picture(
    'tail',
    'How the tail was chosen',
    'The longer the tail, the more known samples are called unknown. The tail '
    'is the share whose rejections come nearest to what was asked for, on '
    'known samples that the net was not trained on. Tails whose band reaches '
    f'the dotted line fit as well: {_as_well(chosen)}.',
    style.png(fig),
  )


def _open(chosen: types.TailChoice) -> np.ndarray:
  """Two standard errors: what the count of held-out samples leaves, [T]."""
  share = np.asarray(chosen.held_out)
  return 2 * np.sqrt(share * (1 - share) / chosen.num_held_out)


def _as_well(chosen: types.TailChoice) -> str:
  """Range of the shares that held-out samples cannot tell from the chosen."""
  away = np.abs(np.asarray(chosen.held_out) - chosen.reject_known)
  near = away <= _open(chosen)
  fits = np.asarray(chosen.shares)[near]
  if not len(fits):
    return 'none does'
  first, last = (f'{100 * s:g} %' for s in (fits.min(), fits.max()))
  return first if first == last else f'{first} to {last}'
