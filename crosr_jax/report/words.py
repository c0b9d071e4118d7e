"""How figures are called and written for readers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

DASH = '–'
_METHODS = {
  'crosr': 'CROSR',
  'crosr_published': 'CROSR as published',
  'crosr_y': 'CROSR, logits only',
  'openmax': 'OpenMax',
  'softmax': 'Softmax',
  'max_logit': 'Maximum logit',
  'gan': 'GAN unknown augmentation',
  'energy': 'Energy',
}


# Said once above the tables of results.
EXPLANATION = (
  'The best method of each column is bold. The last rows are plain image '
  'statistics, in the better of their two directions: where one of them does '
  'well, the set is easy and high figures say little.'
)


class Reading(NamedTuple):
  """One column of the tables of results."""

  key: str  # in report.json
  head: str
  meaning: str
  best: Callable = max


READINGS = (
  Reading(
    'macro_f1',
    'F1 argmax',
    'mean F1 over the classes and unknown; the answer is the largest of the '
    'K + 1 probabilities',
  ),
  Reading(
    'macro_f1_half',
    'F1 half',
    'the reading of the CROSR poster: a sample is in every class whose '
    'probability is at least one half',
  ),
  Reading(
    'macro_f1_tpr95',
    'F1 tpr95',
    'unknown where the score is above the threshold that keeps 95 % of '
    'held-out known samples',
  ),
  Reading(
    'macro_f1_tpr95_test',
    'F1 tpr95 test*',
    'transductive: the same with the threshold taken on the known test '
    'samples themselves; only to compare with work that does so',
  ),
  Reading(
    'auroc', 'AUROC', 'how well the score ranks unknown above known samples'
  ),
  Reading('aupr', 'AUPR', 'average precision of finding the unknown samples'),
  Reading(
    'fpr95',
    'FPR95 ↓',
    'share of unknown samples accepted where 95 % of the known test samples '
    'are; lower is better',
    min,
  ),
  Reading(
    'oscr',
    'OSCR',
    'area under correct classification against unknown samples accepted; at '
    'most the closed-set accuracy',
  ),
)


def decimal(value: Any) -> str:
  """Four decimals, a dash for None."""
  return DASH if value is None else f'{value:.4f}'


def percent(value: Any) -> str:
  """A share as a percentage, a dash for None."""
  return DASH if value is None else f'{100 * value:.2f} %'


def count(value: Any) -> str:
  """A whole number with thousands apart, a dash for None."""
  return DASH if value is None else f'{value:,}'


def duration(seconds: Any) -> str:
  """Seconds in the unit a reader would use."""
  if seconds is None:
    return DASH
  if seconds < 90:
    return f'{seconds:.1f} s'
  if seconds < 5400:
    return f'{seconds / 60:.1f} min'
  return f'{seconds / 3600:.1f} h'


def method_title(method: str) -> str:
  """A method's name for readers; the key itself where it has no other."""
  return _METHODS.get(method, method)


def size(shape: Sequence[int]) -> str:
  """'14 × 14 × 32'."""
  return ' × '.join(str(n) for n in shape)


def short(number: int) -> str:
  """Three digits and a unit: '832', '9.25 k', '1.81 M'."""
  for unit, name in ((10**12, 'T'), (10**9, 'G'), (10**6, 'M'), (10**3, 'k')):
    if number >= 0.9995 * unit:
      return f'{number / unit:.3g} {name}'
  return str(number)


def memory(number: int) -> str:
  """Bytes: '832 B', '1023 KiB', '1.812 GiB'."""
  for power, name in ((30, 'GiB'), (20, 'MiB'), (10, 'KiB')):
    if number >= 1 << power:
      return f'{number / (1 << power):.4g} {name}'
  return f'{number} B'
