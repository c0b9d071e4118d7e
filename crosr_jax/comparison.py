"""Every system of the paper's table, each a run of its own, side by side.

A system is a config with a few fields changed; its runs are exactly those of
pipeline.run, in <root>/<system>/seed<k>, or <root>/<system>/split<j>-seed<k>
where the config has class splits.
"""

import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

import crosr_jax
from crosr_jax import (
  counterfactual,
  files,
  models,
  pipeline,
  saved,
  settings,
  signals,
  train,
  types,
)
from crosr_jax.report import architecture, comparison, published, rows

# What makes a system out of a config.
SYSTEMS: dict[str, dict[str, Any]] = {
  'supervised': {'model.lateral': 'none'},
  'laddernet': {'model.lateral': 'identity'},
  'dhrnet': {'model.lateral': 'bottleneck'},
  # Where there are fewer training samples, an image of each.
  'gan': {
    'model.lateral': 'none',
    'train.keep': 'best',
    'counterfactual.count': 10_000,
  },
  # The control: laterals are there, but never asked to reconstruct.
  'dhrnet_w0': {
    'model.lateral': 'bottleneck',
    'train.reconstruction_weight': 0.0,
  },
}
# Fields that a comparison sets itself, and how to say what is wanted.
_OWN = {
  'model.lateral': '--systems names the systems, which differ in it',
  'seed': '--seeds=0,1,2 names the seeds',
  'data.split': '--splits=0,1 names the splits',
  'counterfactual.count': '--systems=gan generates unknowns',
}


class Run(NamedTuple):
  """One run of one system."""

  system: str
  seed: int
  split: int | None  # None where the config has no class splits
  config: config_dict.ConfigDict
  name: str
  workdir: pathlib.Path

  def __str__(self) -> str:
    split = '' if self.split is None else f', split {self.split}'
    return f'{self.system}{split}, seed {self.seed}'


def plan(
  config: config_dict.ConfigDict,
  name: str,
  root: pathlib.Path,
  *,
  systems: Sequence[str] = (),
  seeds: Sequence[int] = (0,),
  splits: Sequence[int] = (),
) -> list[Run]:
  """All runs of a comparison, every one looked at before the first begins.

  Args:
    config: as configs/common.py has it.
    name: of the comparison.
    root: folder of all runs.
    systems: names in SYSTEMS; () = all that the data set can have.
    seeds: of training.
    splits: positions in config.data.splits; () = all.

  Raises:
    UsageError: for a name or a number that is none, and where a run would
      refuse its config or its workdir.
  """
  settings.check_sections(config)
  runs = [
    _run(config, name, root, system, split, seed)
    for system in _systems(systems, config)
    for split in _splits(config, splits)
    for seed in seeds
  ]
  for run in runs:
    pipeline.check(run.config, run.workdir)
  return runs


def check_overrides(fields: Sequence[str], systems: Sequence[str] = ()) -> None:
  """Raises where a field was given that a comparison sets itself.

  Of one that some of the systems set, () = all, it is told.
  """
  for field in fields:
    for name in systems or SYSTEMS:
      own = SYSTEMS.get(name, {})
      if field in own and field not in _OWN:
        told = '%s: %s is %r there, whatever is given'
        logging.warning(told, name, field, own[field])
    if field in _OWN:
      raise types.UsageError(
        f'--config.{field} has no say in a comparison; {_OWN[field]}'
      )


def _systems(names: Sequence[str], config: config_dict.ConfigDict) -> list[str]:
  for name in names:
    types.check_choice('--systems', name, SYSTEMS)
  # In the order of the table, whatever order they are named in.
  chosen = [name for name in SYSTEMS if not names or name in names]
  if 'gan' in chosen and not counterfactual.suits(config.data.name):
    why = 'unknowns are generated for images in memory alone, not of a folder'
    if names:
      raise types.UsageError(
        f'--systems={",".join(names)}: gan cannot be compared, {why}; leave it '
        'out'
      )
    logging.warning('gan: left out, %s', why)
    chosen.remove('gan')
  return chosen


def _splits(
  config: config_dict.ConfigDict, wanted: Sequence[int]
) -> list[int | None]:
  count = len(config.data.get('splits', ()))
  if not count:
    if wanted:
      raise types.UsageError(
        f'--splits={_joined(wanted)}: data.splits of the config is empty, it '
        'has no class splits; leave the flag out'
      )
    return [None]
  for split in wanted:
    if not 0 <= split < count:
      raise types.UsageError(
        f'--splits={_joined(wanted)}: there is no split {split}, the config '
        f'has 0 to {count - 1}'
      )
  return list(wanted or range(count))


def _joined(numbers: Sequence[int]) -> str:
  return ','.join(map(str, numbers))


def _run(
  config: config_dict.ConfigDict,
  name: str,
  root: pathlib.Path,
  system: str,
  split: int | None,
  seed: int,
) -> Run:
  overrides = {'counterfactual.count': 0, **SYSTEMS[system], 'seed': seed}
  folder, title = f'seed{seed}', f'seed {seed}'
  if split is not None:
    overrides['data.split'] = split
    folder, title = f'split{split}-{folder}', f'split {split}, {title}'
  changed = config_dict.ConfigDict(config.to_dict())
  changed.update_from_flattened_dict(overrides)
  workdir = root / system / folder
  return Run(
    system, seed, split, changed, f'{name}: {system}, {title}', workdir
  )


def finished(run: Run, *, but: Sequence[str] = ()) -> dict | None:
  """The report of a run that need not run again; None = it has to.

  It needs not where report.json is as it was written and holds this very
  config, field by field, and this version of the package, its page is there, so
  is the model, and the last checkpoint of training has its digests, which
  training writes last of all.

  Args:
    run: from `plan`.
    but: sections of the config that may differ.
  """
  try:
    report = dict(json.loads((run.workdir / 'report.json').read_text()))
    is_whole = report.pop('sha256', '') == files.digest(report)
    saved.load_info(run.workdir)
    config = json.loads(json.dumps(run.config.to_dict()))
    sections = (report['config'].keys() | config.keys()) - set(but)
    is_same = (
      is_whole
      and all(report['config'].get(k) == config.get(k) for k in sections)
      and report['versions']['crosr_jax'] == crosr_jax.__version__
    )
  except (
    AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError,
  ):  # fmt: skip
    # There is none, or one that no run of this package left whole.
    return None
  last = f'{run.config.train.num_steps}.json'
  is_trained = all(
    (folder / 'digests' / last).exists()
    for folder in train.folders(run.workdir, run.config.model.get('members', 1))
  )
  is_shown = (run.workdir / 'report.html').exists()
  return report if is_same and is_trained and is_shown else None


def execute(runs: Sequence[Run], data_dir: pathlib.Path) -> list[str]:
  """Runs what is not finished, one after the other.

  Returns:
    Of each run whose training diverged, what it said: the others go on.

  Raises:
    Terminated: where a signal asked to end.
  """
  systems, diverged = list(dict.fromkeys(run.system for run in runs)), []
  for run in runs:
    place = f'system {systems.index(run.system) + 1} of {len(systems)}: {run}'
    if finished(run):
      logging.info('%s: finished, not run again', place)
      continue
    logging.info('%s', place)
    try:
      pipeline.run(run.config, run.name, run.workdir, data_dir)
    except types.DivergedError as error:
      logging.warning('%s: %s', run, error)
      diverged.append(f'{run}: {error}')
      # Who asked to end while it trained did not mean this one alone.
      signals.check()
  return diverged


def report(
  runs: Sequence[Run], name: str, root: pathlib.Path, *, pictures: bool
) -> dict:
  """Writes compare.json, compare.md and compare.html; returns the first.

  Args:
    runs: from `plan`; what is not finished is told as not yet run.
    name: of the comparison.
    root: folder of all runs.
    pictures: whether to draw.
  """
  cases = []
  for run in runs:
    # Whether a run drew its own pictures changes no figure.
    found = finished(run, but=['report'])
    if found is None:
      logging.warning('%s: not yet run with this config and version', run)
    folder = run.workdir.relative_to(root).as_posix()
    cases.append(rows.Case(run.system, run.seed, run.split, found, folder))
  config = runs[0].config
  return comparison.write(
    root,
    name,
    cases,
    benchmark=published.benchmark(
      config.data.name,
      config.data.unknown_classes,
      config.data.get('splits', ()),
      config.evaluation.get('cifar100_splits', ()),
    ),
    changes={run.system: SYSTEMS[run.system] for run in runs},
    nets=_nets(runs) if pictures else None,
    pictures=pictures,
  )


def _nets(runs: Sequence[Run]) -> comparison.Nets | None:
  """The three nets of the paper as they are built; None before any run."""
  from crosr_jax.models import summary

  run = next((run for run in runs if finished(run, but=['report'])), None)
  if run is None:
    return None
  info = saved.load_info(run.workdir)
  nets = []
  for lateral in ('none', 'identity', 'bottleneck'):
    net = models.build(
      len(info['class_names']),
      info['mean'],
      info['deviation'],
      **{**run.config.model, 'lateral': lateral},
    )
    title = rows.SYSTEMS[models.SYSTEMS[lateral]]
    parts = summary.rows(net, info['image_shape'])
    nets.append(architecture.Net(title, parts))
  return comparison.Nets(
    nets, tuple(info['image_shape']), run.config.model.get('members', 1)
  )
