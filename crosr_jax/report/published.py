"""Figures that others published, each with its reading and its source.

A figure stands only beside one of ours in the same reading. 'poster' is the
poster of CROSR (CVPR 2019), 'quoted' a figure of a paper as later papers quote
it. Names of unknown sets are those of report.json.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# A reading that this package does not have: shown, never compared.
OWN = 'own'


class Figure(NamedTuple):
  """One published number."""

  value: float  # a share, not per cent
  reading: str  # a key of words.READINGS
  source: str


class Other(NamedTuple):
  """A row of work that is no system here."""

  name: str
  reading: str  # a key of words.READINGS, or OWN
  source: str
  value: dict[str, float]  # by unknown set


# The five class splits with which the field's AUROC figures are compared (ARPL,
# MLS), as the configs have them: SHA-256 of the JSON text of [data.name,
# data.splits, evaluation.cifar100_splits].
_SPLITS = {
  '07c471c89c2a94796aa486a0c6efd715f7d78e9b2014fb7b656bd9401394b95e': (
    'mnist_split'
  ),
  '44c01107b7dbcfaa368d1c8cc5af4b50898a439e6c8f7c8ed67214103d8ce520': (
    'svhn_split'
  ),
  '513da1d59fba168063a94af78f3f85a1a93adad6837f7831e04a929701dd9b45': (
    'cifar10_split'
  ),
  'c637811fc6f037b7ff5256845ba297e79840c03407fc62b505bb4a1cc7efe182': (
    'cifar_plus_10'
  ),
  'e404f5b26e851f3911407db4dceae0efa60d1112a29900c5652176c26ac73c33': (
    'cifar_plus_50'
  ),
  'e7239d39b06db92fdd6be5e6db0369751d51cefd760c8523826417fbfbbf0633': (
    'tinyimagenet_split'
  ),
}
# What the published AUROC figures are means of.
NUM_SPLITS = 5

_MNIST = ('omniglot', 'mnist_noise', 'noise')
_CIFAR10 = ('imagenet_crop', 'imagenet_resize', 'lsun_crop', 'lsun_resize')
# Of which the F1 figures are, known and unknown ones: F1 depends on how many
# there are of either.
_COUNT = 10_000
# Macro F1, half: by benchmark, then system and method.
_F1: dict[str, tuple[tuple[str, ...], dict]] = {
  'mnist': (
    _MNIST,
    {
      ('supervised', 'openmax'): ('poster', (0.680, 0.720, 0.890)),
      ('laddernet', 'openmax'): ('poster', (0.764, 0.821, 0.826)),
      ('dhrnet', 'crosr_published'): ('poster', (0.793, 0.827, 0.826)),
    },
  ),
  'cifar10': (
    _CIFAR10,
    {
      ('supervised', 'softmax'): ('quoted', (0.639, 0.653, 0.642, 0.647)),
      ('supervised', 'openmax'): ('poster', (0.660, 0.684, 0.657, 0.668)),
      ('laddernet', 'openmax'): ('poster', (0.653, 0.670, 0.652, 0.659)),
      ('dhrnet', 'openmax'): ('quoted', (0.655, 0.675, 0.656, 0.664)),
      ('gan', 'gan'): ('poster', (0.636, 0.635, 0.650, 0.648)),
      ('dhrnet', 'crosr_published'): ('poster', (0.721, 0.735, 0.720, 0.749)),
    },
  ),
}
# AUROC, mean of five class splits.
_AUROC_SETS = {
  'mnist_split': 'mnist_unknown',
  'svhn_split': 'svhn_unknown',
  'cifar10_split': 'cifar10_unknown',
  'cifar_plus_10': 'cifar100',
  'cifar_plus_50': 'cifar100',
  'tinyimagenet_split': 'tinyimagenet_unknown',
}
_AUROC = {
  ('supervised', 'softmax'): (
    'as first published; later re-runs reach about .86 on CIFAR-10',
    (0.978, 0.886, 0.677, 0.816, 0.805, 0.577),
  ),
  ('supervised', 'openmax'): (
    'quoted',
    (0.981, 0.894, 0.695, 0.817, 0.796, 0.576),
  ),
  ('gan', 'gan'): ('quoted', (0.988, 0.910, 0.699, 0.838, 0.827, 0.586)),
  ('dhrnet', 'crosr_published'): (
    'as quoted later',
    (0.991, 0.899, 0.883, 0.912, 0.905, 0.589),
  ),
}
_AUROC_OTHERS = {
  'ARPL': (None, 0.967, 0.910, 0.971, 0.951, 0.782),
  'CSSR': (None, 0.979, 0.913, 0.963, 0.962, 0.823),
  'Maximum logit with strong training (Vaze et al.)': (
    0.993, 0.971, 0.936, 0.979, 0.965, 0.830,
  ),
}  # fmt: skip
_F1_OTHERS = {
  'mnist': [
    Other(
      'Best later work verified: AOSR',
      'macro_f1',
      "AOSR's published notebook; nearest resize, its own noise recipe",
      dict(zip(_MNIST, (0.868, 0.977, 0.983), strict=True)),
    ),
  ],
  'cifar10': [
    Other(name, reading, source, dict(zip(_CIFAR10, values, strict=True)))
    for name, reading, source, values in (
      ('CGDL', OWN, 'quoted', (0.840, 0.832, 0.806, 0.812)),
      ('PROSER', OWN, 'quoted', (0.849, 0.824, 0.867, 0.856)),
      (
        'Best later work seen: RCSSR / CSSR',
        'macro_f1_tpr95_test',
        'quoted',
        (0.933, 0.915, 0.941, 0.940),
      ),
    )
  ],
}


# How a net is that answers to one upright image, as those of the papers do.
_PLAIN = {
  'rotation_classes': [],
  'eval_rotations': False,
  'eval_mirror': False,
  'eval_shift': 0,
  'members': 1,
}


def benchmark(
  name: str,
  unknown_classes: Sequence[int],
  splits: Sequence[Sequence[int]] = (),
  cifar100_splits: Sequence[Sequence[int]] = (),
) -> str:
  """Which published table a run belongs to, '' = none.

  Args:
    name: of the data set.
    unknown_classes: classes kept back, where there are no splits.
    splits: known classes of each class split; figures of others are compared
      with the published ones alone.
    cifar100_splits: unknown classes of CIFAR-100 for each split.
  """
  if not splits:
    return name if name in _F1 and not len(unknown_classes) else ''
  text = json.dumps([name, splits, cifar100_splits])
  return _SPLITS.get(hashlib.sha256(text.encode()).hexdigest(), '')


def compares(by: str, num_labels: int) -> bool:
  """Whether a mean of so many (`by` 'seed' or 'split') is as the published."""
  return by == 'seed' or num_labels == NUM_SPLITS


def other_counts(key: str, reports: Iterable[Mapping]) -> list[str]:
  """Unknown sets that some report has scored on more samples, or fewer.

  Than the published F1 figures of a benchmark are of; AUROC asks for no number.
  """
  found = {
    name
    for report in reports
    for name, entry in (report.get('unknown') or {}).items()
    if (entry.get('n_known'), entry.get('n_unknown')) != (_COUNT, _COUNT)
  }
  return sorted(found & set(sets(key))) if key in _F1 else []


def unlike_counts(key: str, reports: Iterable[Mapping]) -> list[str]:
  """A note where published figures are left out for that."""
  found = other_counts(key, reports)
  if not found:
    return []
  return [
    f'Published F1 figures are of {_COUNT:,} known and {_COUNT:,} unknown '
    f'samples, ours of {", ".join(found)} are not: they do not compare.'
  ]


def unlike(reports: Iterable[Mapping]) -> list[str]:
  """A note where nets of reports answer to more than one upright image."""
  more: dict[str, None] = {}
  for report in reports:
    # A file has lists for tuples.
    model = json.loads(json.dumps(report.get('config', {}).get('model', {})))
    more |= dict.fromkeys(
      f'{name}={value}'
      for name, value in model.items()
      if name in _PLAIN and value != _PLAIN[name]
    )
  if not more:
    return []
  return [
    f'Nets here have {", ".join(more)}, those of published figures have not: '
    'a difference is not of the score alone.'
  ]


def figures(key: str) -> Mapping[tuple[str, str], dict[str, Figure]]:
  """A benchmark's figures by (system, method), then unknown set."""
  if key in _F1:
    sets, rows = _F1[key]
    return {
      row: {
        unknown: Figure(value, 'macro_f1_half', source)
        for unknown, value in zip(sets, values, strict=True)
      }
      for row, (source, values) in rows.items()
    }
  if key in _AUROC_SETS:
    column = list(_AUROC_SETS).index(key)
    return {
      row: {_AUROC_SETS[key]: Figure(values[column], 'auroc', source)}
      for row, (source, values) in _AUROC.items()
    }
  return {}


def others(key: str) -> list[Other]:
  """Rows of later work on a benchmark."""
  if key not in _AUROC_SETS:
    return _F1_OTHERS.get(key, [])
  column = list(_AUROC_SETS).index(key)
  return [
    Other(name, 'auroc', 'quoted', {_AUROC_SETS[key]: value})
    for name, values in _AUROC_OTHERS.items()
    if (value := values[column]) is not None
  ]


def sets(key: str) -> tuple[str, ...]:
  """Unknown sets of a benchmark, in the order of its table."""
  if key in _F1:
    return _F1[key][0]
  return (_AUROC_SETS[key],) if key in _AUROC_SETS else ()


def absent(key: str, system: str) -> str:
  """What is said where one would look for a number that is not published."""
  return 'not in the poster' if (key, system) == ('mnist', 'gan') else ''
