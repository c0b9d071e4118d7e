"""The table of a comparison: systems and methods, ours beside the published.

A case is one run: a system with one seed, or one seed on one class split. What
the columns are spread over is the seeds, or the splits where there are any.
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from crosr_jax.report import published, words

# Systems, as readers are told them.
SYSTEMS = {
  'supervised': 'Supervised',
  'laddernet': 'LadderNet',
  'dhrnet': 'DHRNet',
  'gan': 'GAN unknowns',
  'dhrnet_w0': 'DHRNet, reconstruction weight 0',
}


class Case(NamedTuple):
  """One run of one system."""

  system: str
  seed: int
  split: int | None  # None where the config has no class splits
  report: dict | None  # its report.json; None = not yet run
  folder: str  # of the run, from where the tables lie


class Spec(NamedTuple):
  """A row: what it is of, and how readers are told it."""

  system: str
  method: str
  kind: str  # 'baseline', 'crosr' or 'control'
  title: str


SPECS = (
  Spec('supervised', 'softmax', 'baseline', 'Supervised · Softmax'),
  Spec('supervised', 'max_logit', 'baseline', 'Supervised · Maximum logit'),
  Spec('supervised', 'openmax', 'baseline', 'Supervised · OpenMax'),
  Spec(
    'supervised',
    'crosr_y',
    'baseline',
    'Supervised · OpenMax, authors’ scoring',
  ),
  Spec('laddernet', 'softmax', 'baseline', 'LadderNet · Softmax'),
  Spec('laddernet', 'openmax', 'baseline', 'LadderNet · OpenMax'),
  Spec('dhrnet', 'softmax', 'baseline', 'DHRNet · Softmax'),
  Spec('dhrnet', 'max_logit', 'baseline', 'DHRNet · Maximum logit'),
  Spec('dhrnet', 'openmax', 'baseline', 'DHRNet · OpenMax'),
  Spec('gan', 'gan', 'baseline', 'GAN unknown augmentation'),
  Spec('dhrnet', 'crosr_published', 'crosr', 'CROSR as published'),
  Spec('dhrnet', 'crosr', 'crosr', 'CROSR, our recipe'),
  Spec('dhrnet_w0', 'softmax', 'control', 'Weight 0 · Softmax'),
  Spec('dhrnet_w0', 'max_logit', 'control', 'Weight 0 · Maximum logit'),
  Spec(
    'dhrnet_w0', 'crosr_published', 'control', 'Weight 0 · CROSR as published'
  ),
  Spec('dhrnet_w0', 'crosr', 'control', 'Weight 0 · CROSR, our recipe'),
  Spec(
    'supervised',
    'crosr_published',
    'control',
    'Pooled blocks · CROSR as published',
  ),
  Spec('supervised', 'crosr', 'control', 'Pooled blocks · CROSR, our recipe'),
)
# Said once where rows are listed.
CONTROLS = (
  'Controls. Weight 0: DHRNet trained with the reconstruction weight at 0, so '
  'that its codes are never asked to hold anything. Pooled blocks: the '
  'supervised net with the pooled outputs of its own blocks in place of codes.'
)


def table(cases: Sequence[Case], benchmark: str = '') -> dict:
  """All figures of a comparison: the front part of compare.json.

  Args:
    cases: every run that was asked for, finished or not.
    benchmark: whose published figures stand beside, see published.benchmark.

  Returns:
    `by` ('seed' or 'split') and `labels`: what `values` are of; `sets` and
    `readings`, in the order of reading; `rows`, each with `unknown` (set ->
    reading -> mean, std, values; values are None where a run is missing) and
    `paper` (set -> value, reading, source).
  """
  by = 'split' if any(case.split is not None for case in cases) else 'seed'
  labels = sorted({label_of(case) for case in cases})
  sets = _sets(cases, benchmark)
  wanted = {case.system for case in cases}
  figures = published.figures(benchmark)
  # Where any run has another number of samples, no mean compares.
  finished = [case.report for case in cases if case.report]
  other = published.other_counts(benchmark, finished)
  rows = []
  for spec in SPECS:
    if spec.system not in wanted:
      continue
    unknown = {
      name: {
        reading.key: summary(_values(cases, spec, name, reading.key, labels))
        for reading in words.READINGS
      }
      for name in sets
    }
    paper = {
      name: figure._asdict()
      for name, figure in figures.get((spec.system, spec.method), {}).items()
      if name in sets and name not in other
    }
    rows.append({**spec._asdict(), 'unknown': unknown, 'paper': paper})
  return {
    'benchmark': benchmark,
    'by': by,
    'labels': labels,
    'sets': sets,
    # Of no set there is none.
    'readings': readings(by) if sets else [],
    'rows': rows,
  }


def paper(table: dict, row: dict, name: str, key: str) -> dict | None:
  """The published figure of this very reading that stands beside ours.

  None where nothing was published, or only a mean of more splits than ours.
  """
  figure = row['paper'].get(name)
  if not figure or figure['reading'] != key:
    return None
  values = row['unknown'][name][key]['values']
  done = sum(value is not None for value in values)
  return figure if not done or published.compares(table['by'], done) else None


def readings(by: str) -> list[str]:
  """Keys of the readings, those that the field compares first."""
  first = ('auroc', 'oscr') if by == 'split' else ('macro_f1_half', 'auroc')
  return [*first, *(r.key for r in words.READINGS if r.key not in first)]


def reading(key: str) -> words.Reading:
  """All there is to say of a reading."""
  return next(r for r in words.READINGS if r.key == key)


def summary(values: Sequence[float | None]) -> dict[str, Any]:
  """Mean and sample standard deviation of what is there; None = nothing."""
  there = [value for value in values if value is not None]
  return {
    'mean': statistics.fmean(there) if there else None,
    'std': statistics.stdev(there) if len(there) > 1 else None,
    'values': list(values),
  }


def find(table: dict, system: str, method: str) -> dict | None:
  """A row."""
  return next(
    (
      row
      for row in table['rows']
      if (row['system'], row['method']) == (system, method)
    ),
    None,
  )


def is_measured(row: dict) -> bool:
  """Whether any run of a row is there."""
  return any(
    cell['mean'] is not None
    for cells in row['unknown'].values()
    for cell in cells.values()
  )


def label_of(case: Case) -> int:
  """The seed of a run, or its split where there are any."""
  return case.seed if case.split is None else case.split


def _sets(cases: Sequence[Case], benchmark: str) -> list[str]:
  """Unknown sets in the order of the config; before any run, the published."""
  found: dict[str, None] = {}
  for case in cases:
    found |= dict.fromkeys((case.report or {}).get('unknown') or {})
  return list(found) or list(published.sets(benchmark))


def _values(
  cases: Sequence[Case],
  spec: Spec,
  name: str,
  key: str,
  labels: Sequence[int],
) -> list[float | None]:
  """One value per label; that of a split is the mean over its seeds.

  Of all its seeds: others' means are of those, and would be no match.
  """
  found: dict[int, list[float]] = {label: [] for label in labels}
  lacking = set()
  for case in cases:
    if case.system == spec.system:
      entry = (case.report or {}).get('unknown', {}).get(name, {})
      value = entry.get(spec.method, {}).get(key)
      if value is None:
        lacking.add(label_of(case))
      else:
        found[label_of(case)].append(value)
  return [
    statistics.fmean(x) if x and label not in lacking else None
    for label, x in found.items()
  ]
