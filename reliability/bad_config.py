"""Any value for any field of a config, up to the first step of a training."""

import functools
import itertools
import json
import pathlib
import shutil
import sys
from typing import Any, NamedTuple
from unittest import mock

import jobs  # Puts the project on the path.
import numpy as np
import sklearn.datasets
from absl import flags
from hypothesis import strategies as st
from ml_collections import config_dict, config_flags
from PIL import Image

from configs import common
from crosr_jax import (
  binding,
  cli,
  judge,
  loop,
  pipeline,
  settings,
  train,
  types,
)

_INTEGERS = (
  *(0, 1, -1, 2, 3, 7, 10, 63, 64, 100, 1024, 2**31 - 1, 2**31, -(2**31)),
  *(2**32, 2**63, 2**64, 10**30, 10**400),
)
_FLOATS = (
  *(0.0, -0.0, 0.02, 0.5, 1.0, 1.5, -0.5, 1e-300, 1e300, 5e-324),
  *(float('inf'), float('-inf'), float('nan'), 0.9999999999999999),
)
_WORDS = (
  *('', ' ', 'auto', 'none', 'best', '5%', '0%', '101%', 'nan%', '20', '-1'),
  *('1e999', 'inf', 'noise', 'noise:', ':', 'noise:uniform', 'mnist_noise'),
  *('cifar100', 'folder', 'digits', '~', '~nobody_here/x', '/dev/null', '.'),
  *('..', '/', 'x' * 5000, '%s', '{}', '\\', '\n', 'a\nb', '\t', '"', "'"),
  *('é', '日本', '\u202e', '😀', '\x00', '\udc80', '$(x)', '-', '--help'),
)

# How a field is set: on the command line, in a config file, there against its
# type, or not at all.
_WAYS = ('flag',) * 5 + ('set',) * 3 + ('force',) * 3 + ('delete',)


class Case(NamedTuple):
  """One or two fields of a config that are set."""

  base: str  # digits or folder
  way: str  # flag: on the command line; else how a config file sets it
  fields: tuple[tuple[str, Any], ...]  # name and value, or text of a flag


class _Stop(BaseException):
  """A run that is about to take its first step."""


def _plain(config: config_dict.ConfigDict) -> dict[str, Any]:
  return settings.flat(config.to_dict())


FIELDS = _plain(common.get_config())


def values() -> st.SearchStrategy:
  """Whatever a Python file can hold in a field."""
  single = st.one_of(
    st.sampled_from(_INTEGERS),
    st.integers(),
    st.sampled_from(_FLOATS),
    st.floats(),
    st.sampled_from(_WORDS),
    st.text(max_size=12),
    st.booleans(),
    st.none(),
    st.binary(max_size=4),
    st.sampled_from((1j, (), [], {}, frozenset(), (0,), ((0, 1),))),
  )
  return st.one_of(
    single,
    st.lists(single, max_size=4).map(tuple),
    st.lists(st.lists(single, max_size=3).map(tuple), max_size=3).map(tuple),
    st.lists(single, max_size=3),
    st.dictionaries(st.text(max_size=4), single, max_size=2),
  )


def near(default: Any) -> st.SearchStrategy:
  """Values of a field's own type."""
  if isinstance(default, bool):
    return st.booleans()
  if isinstance(default, int):
    return st.one_of(
      st.sampled_from(_INTEGERS), st.integers(-3, 200), st.integers()
    )
  if isinstance(default, float):
    return st.one_of(st.sampled_from(_FLOATS), st.floats(), st.floats(0, 1))
  if isinstance(default, str):
    return st.one_of(st.sampled_from(_WORDS), st.text(max_size=20))
  item = st.one_of(
    st.integers(-2, 11),
    st.sampled_from((*_INTEGERS, *_FLOATS, *_WORDS, True, None)),
  )
  inner = st.lists(item, max_size=4).map(tuple)
  return st.one_of(inner, st.lists(inner, max_size=3).map(tuple))


def _is_flag(text: str) -> bool:
  """Whether a process can be started with it."""
  try:
    return '\0' not in text and bool(text.encode('utf-8', 'surrogateescape'))
  except UnicodeEncodeError:
    return False


def cases() -> st.SearchStrategy:
  """Cases."""

  @st.composite
  def draw_case(draw: Any) -> Case:
    base = draw(st.sampled_from(('digits', 'folder')))
    way = draw(st.sampled_from(_WAYS))
    names = draw(
      st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=2)
    )
    found = []
    for name in dict.fromkeys(names):
      value = draw(st.one_of(near(FIELDS[name]), values()))
      if way == 'flag':
        text = draw(st.sampled_from((repr(value), str(value))))
        value = text if _is_flag(text) else 'x'
      found.append((name, value))
    return Case(base, way, tuple(found))

  return draw_case()


def _source(case: Case, folder: str) -> str:
  """Of a config file."""
  lines = [
    'from configs import common',
    "nan, inf = float('nan'), float('inf')",
    'def get_config():',
    '  config = common.get_config()',
  ]
  if case.base == 'folder':
    lines += [
      f"  config.data.name, config.data.train_dir = 'folder', {folder!r}",
      '  config.data.unknown_classes, config.data.image_size = (), 16',
    ]
  if case.way == 'flag':
    return '\n'.join([*lines, '  return config'])
  for name, value in case.fields:
    # The text of a file is UTF-8.
    text = ascii(value)
    if case.way == 'delete':
      lines.append(f'  del config.{name}')
    elif case.way == 'force':
      lines += ['  with config.ignore_type():', f'    config.{name} = {text}']
    else:
      lines.append(f'  config.{name} = {text}')
  return '\n'.join([*lines, '  return config'])


def parse(arguments: list[str]) -> config_dict.ConfigDict:
  """The config, as a command reads it."""
  found = flags.FlagValues()
  with (
    mock.patch.object(flags, 'FLAGS', found),
    mock.patch.object(sys, 'argv', ['main', *arguments]),
  ):
    config_flags.DEFINE_config_file(
      'config', None, '', lock_config=True, flag_values=found
    )
    try:
      cli._parse()
    except flags.Error as error:
      # As `cli.run` tells it.
      raise types.UsageError(str(error)) from None
    return found.config


def features() -> dict[str, types.Features]:
  """Few, of three classes."""
  generator = np.random.default_rng(0)
  found = {}
  for part in (*types.PARTS, 'noise'):
    label = np.arange(60, dtype=np.int32) % 3
    own = label[:, None] == np.arange(3)
    logits = generator.normal(size=(60, 3)) + 4 * own * (part != 'noise')
    found[part] = types.Features(
      logits.astype(np.float32),
      generator.normal(size=(60, 2)).astype(np.float32) + own[:, :2],
      np.full_like(label, -1) if part == 'noise' else label,
      generator.uniform(0.1, 1, 60).astype(np.float32),
    )
  return found


class Trial:
  """Parses a config, and begins the run."""

  def __init__(self, folder: pathlib.Path):
    self.cases = cases()
    self._folder = folder
    self._images = folder / 'images'
    generator = np.random.default_rng(0)
    for name, i in itertools.product('ab', range(12)):
      path = self._images / name / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = generator.integers(0, 256, (16, 16, 3), np.uint8)
      Image.fromarray(pixels).save(path)
    self._features = features()
    # They take longer to read than all else.
    cached = functools.cache(sklearn.datasets.load_digits)
    mock.patch.object(sklearn.datasets, 'load_digits', cached).start()
    # A state takes a compilation, and nothing here looks at it.
    mock.patch.object(train, 'init_state', mock.Mock()).start()
    mock.patch.object(loop, 'run', mock.Mock(side_effect=_Stop)).start()

  def __call__(self, case: Case) -> list[str]:
    """What is wrong; raises a UserError where the case is refused."""
    path = self._folder / 'config.py'
    path.write_text(_source(case, str(self._images)))
    arguments = [f'--config={path}']
    if case.way == 'flag':
      arguments += [f'--config.{name}={value}' for name, value in case.fields]
    config = parse(arguments)
    workdir = self._folder / 'run'
    shutil.rmtree(workdir, ignore_errors=True)
    try:
      pipeline.run(config, 'bad', workdir, self._folder / 'data')
    except _Stop:
      pass
    else:
      return ['a run without a step']
    faults = jobs.half_written(workdir)
    bound = (workdir / 'config.json').read_text()
    if json.loads(bound, parse_constant=_refuse) != binding.sections(config):
      faults.append('config.json is not read back equal')
    pipeline.check(config, workdir)
    if any(x[0].startswith(('weibull', 'scorer')) for x in case.fields):
      judge.score(self._features, 'abc', **config.weibull, **config.scorer)
    return faults


def _refuse(constant: str) -> None:
  raise ValueError(f'{constant} is no JSON')
