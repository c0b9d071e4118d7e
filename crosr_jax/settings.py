"""Fields of a config: those there are, of which type, and which go together.

What a section may hold is read off the stages: a field is a keyword of one.
"""

import inspect
import json
import logging
import os
import pathlib
import typing
from collections.abc import Callable, Iterator
from typing import Any

from jax._src import xla_bridge
from ml_collections import config_dict

from crosr_jax import (
  choice,
  counterfactual,
  data,
  feed,
  files,
  models,
  optimizer,
  train,
  types,
)

# Sections that a workdir is bound to.
BINDING = ('data', 'model', 'train', 'seed', 'counterfactual')
_EVALUATION = ('unknown_sets', 'max_unknown', 'unknown_dirs', 'cifar100_splits')
_DETERMINISTIC = '--xla_gpu_deterministic_ops=true'
# Arguments of stages that are of no section.
_GIVEN = (
  *('seed', 'data_dir', 'parallel', 'training'),
  *('steps_per_dispatch', 'data_on_device'),
)
# Fields that name folders of images.
FOLDERS = ('train_dir', 'test_dir')
# Fields that `run` itself reads.
_OWN = {
  'seed': int,
  'parallel': str,
  'steps_per_dispatch': int,
  'data_on_device': str,
  'deterministic': bool,
  'report.pictures': bool,
  'report.features': bool,
  'report.map_samples': int,
}
_TYPES = {
  bool: 'True or False',
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
}


def check_config(config: config_dict.ConfigDict) -> None:
  """Looks first at what is used last: a typo must not cost a training."""
  check_sections(config)
  _check_types(config)
  for name, value in flat(config).items():
    if isinstance(value, int) and abs(value) >= 2**31:
      raise types.UsageError(f'{name} is too large: {value}')
  if config.seed < 0:
    raise types.UsageError(f'seed must be at least 0, got {config.seed}')
  members = config.model.get('members', 1)
  if (config.seed + 1) * members > 2**32:
    raise types.UsageError(
      f'seed={config.seed} is too large for model.members={members}: each of '
      'them has one of its own, below 2**32'
    )
  if config.report.map_samples < 0:
    raise types.UsageError(
      f'report.map_samples must be at least 0, got {config.report.map_samples}'
    )
  if config.counterfactual.count and lateral(config) != 'none':
    raise types.UsageError(
      f'counterfactual.count={config.counterfactual.count} is for a classifier '
      "alone: set model.lateral to 'none', or the count to 0"
    )
  if config.counterfactual.count and not counterfactual.suits(config.data.name):
    raise types.UsageError(
      f'counterfactual.count={config.counterfactual.count}: unknowns are '
      "generated for images in memory alone; set it to 0 for 'folder'"
    )
  data.check_splits(
    config.data.get('splits', ()),
    config.data.get('split', 0),
    config.data.unknown_classes,
    config.evaluation.get('cifar100_splits', ()),
  )
  data.check_unknown(
    config.evaluation.unknown_sets,
    config.evaluation.max_unknown,
    config.data.evaluation_seed,
  )
  feed.check_fields(config.steps_per_dispatch, config.data_on_device)
  for name, check in (
    ('counterfactual', counterfactual.check_fields),
    ('weibull', choice.check_recipe),
    ('scorer', choice.check_decision),
  ):
    try:
      check(**config[name])
    except types.UsageError as error:
      raise types.UsageError(f'config.{name}: {error}') from None
  if config.model.get('eval_mirror', False) and not config.train.flip:
    logging.warning(
      'model.eval_mirror=True: mirror images are asked about that the net is '
      'not trained with; set train.flip=True, or expect lower accuracy'
    )


def _check_types(config: config_dict.ConfigDict) -> None:
  """Raises a UsageError for a field that is missing or of another type."""
  known = fields()
  for name, (kind, is_needed) in known.items():
    section, _, field = name.rpartition('.')
    holder = config[section] if section else config
    if not isinstance(holder, config_dict.ConfigDict):
      raise types.UsageError(
        f'the config has {section}={holder!r}, which must be a section; start '
        'it from configs/common.py'
      )
    if field in holder:
      if not _fits(holder[field], kind):
        raise types.UsageError(
          f'{name} must be {_told_type(kind)}, got {holder[field]!r}'
        )
    elif is_needed:
      raise types.UsageError(
        f'the config has no {name}; start it from configs/common.py, which has '
        'every field'
      )
  for name in flat(config):
    if name not in known:
      hint = types.near(name, known) or '; leave it out'
      raise types.UsageError(
        f'the config has {name}, which nothing reads{hint}'
      )


def lateral(config: config_dict.ConfigDict) -> str:
  """What crosses from the net's blocks to its decoder."""
  return config.model.get('lateral', defaults()['model.lateral'])


def fields() -> dict[str, tuple[Any, bool]]:
  """By field, its type, and whether it is needed: as the stages have it."""
  found = {name: (kind, True) for name, kind in _OWN.items()}
  for name, parameter in parameters():
    found[name] = parameter.annotation, parameter.default is parameter.empty
  return found


def parameters() -> Iterator[tuple[str, inspect.Parameter]]:
  """Fields, each with what the stage that reads it says of it."""
  stages: list[tuple[str, Callable[..., Any]]] = [
    ('data', data.load),
    ('model', models.build),
    ('train', train.fit),
    ('train', train.build_step),
    ('train', optimizer.build),
    ('counterfactual', counterfactual.generate),
    ('weibull', choice.check_recipe),
    ('scorer', choice.check_decision),
  ]
  for section, stage in stages:
    for name, parameter in inspect.signature(stage).parameters.items():
      if parameter.kind is parameter.KEYWORD_ONLY and name not in _GIVEN:
        of = 'evaluation' if name in _EVALUATION else section
        yield f'{of}.{name}', parameter


def _fits(value: Any, kind: Any) -> bool:
  """Whether a value is of a type, as the stages annotate it."""
  if items := typing.get_args(kind):
    if not isinstance(value, tuple | list):
      return False
    # Who reads splits tells better what is wrong within one.
    is_nested = bool(typing.get_args(items[0]))
    return is_nested or all(_fits(x, items[0]) for x in value)
  if isinstance(value, bool):
    return kind is bool
  return isinstance(value, (int, float) if kind is float else kind)


def _told_type(kind: Any) -> str:
  if items := typing.get_args(kind):
    return f'a tuple, each item {_told_type(items[0])}'
  return _TYPES[kind]


def check_sections(config: config_dict.ConfigDict) -> None:
  """Raises a UsageError for a section that is not there."""
  for section in (*BINDING, 'evaluation', 'weibull', 'scorer', 'report'):
    if section not in config:
      raise types.UsageError(
        f'the config has no {section!r}; start it from configs/common.py, '
        'which has every field'
      )


def check_apart(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Raises a UsageError where folders lie in one another that must not.

  The workdir in one of images, or known images in one of unknowns.
  """
  known = {f'data.{field}': config.data.get(field, '') for field in FOLDERS}
  dirs = config.evaluation.get('unknown_dirs', ())
  if all(known.values()):
    first, second = map(files.real, known.values())
    if first.is_relative_to(second) or second.is_relative_to(first):
      raise types.UsageError(
        f'data.test_dir={known["data.test_dir"]} lies in data.train_dir='
        f'{known["data.train_dir"]}, or that in it; name a folder of other '
        'images, or none, and the share that is tested on as data.test_share'
      )
  if dirs:
    classes = data.known_folders(**config.data)
    for folder in dirs:
      data.check_apart(
        'evaluation.unknown_dirs', folder, known, classes=classes
      )
  named = [*known.items(), *(('evaluation.unknown_dirs', x) for x in dirs)]
  for field, folder in named:
    if folder and files.real(workdir).is_relative_to(files.real(folder)):
      raise types.UsageError(
        f'--workdir={workdir} lies in {field}={folder}, whose folders are '
        'classes; take one elsewhere'
      )


def set_deterministic(config: config_dict.ConfigDict) -> None:
  """Before JAX is first used: bit-equal training on GPU, where asked for."""
  before, flag = os.environ.get('XLA_FLAGS', ''), _DETERMINISTIC
  # What a config lacks is told later.
  if config.get('deterministic') and flag not in before.split():
    os.environ['XLA_FLAGS'] = f'{before} {flag}'
    if xla_bridge.backends_are_initialized():
      logging.warning(
        'deterministic=True comes too late, JAX is in use already: begin anew '
        'with XLA_FLAGS=%s',
        flag,
      )


def defaults() -> dict[str, Any]:
  """Of fields that the stages can do without, as JSON gives them back."""
  found = {
    name: parameter.default
    for name, parameter in parameters()
    if parameter.default is not parameter.empty
  }
  return json.loads(json.dumps(found))


def told(fields: dict[str, Any], name: str) -> str:
  """A field's value, for an error."""
  return repr(fields[name]) if name in fields else 'not there'


def plain(config: Any) -> Any:
  """A section as a dict; what is none as it is."""
  if isinstance(config, config_dict.ConfigDict):
    return config.to_dict()
  return config


def flat(section: Any, prefix: str = '') -> dict[str, Any]:
  """{'data': {'name': 1}} -> {'data.name': 1}, of a config too."""
  section = plain(section)
  if not isinstance(section, dict):
    return {prefix: section}
  found: dict[str, Any] = {}
  for name, value in section.items():
    found |= flat(value, f'{prefix}.{name}' if prefix else name)
  return found
