"""Nothing that the package reads can run code: see SECURITY.md."""

import ast

import pytest
from conftest import ROOT

_MODULES = {
  'cloudpickle', 'code', 'dill', 'joblib', 'jsonpickle', 'marshal', 'pickle',
  'pty', 'runpy', 'shelve', 'subprocess', 'torch', 'yaml', '_pickle',
}  # fmt: skip
_BUILTINS = {'__import__', 'compile', 'eval', 'exec'}
# Of whatever they are called on.
_METHODS = {
  'exec_module', 'extractall', 'import_module', 'load_module',
  'popen', 'posix_spawn', 'read_pickle', 'spec_from_file_location', 'system',
  'to_pickle', 'unpack_archive',
}  # fmt: skip
_TRUE = {'allow_pickle', 'shell', 'trust_remote_code'}
# The user's own Python file, which --config names.
_ALLOWED = {
  'crosr_jax/cli.py': ['spec_from_file_location', 'exec_module'],
}


def _dangers(source):
  """What could run code, in the order of the source."""
  found = []
  nodes = [n for n in ast.walk(ast.parse(source)) if hasattr(n, 'lineno')]
  for node in sorted(nodes, key=lambda n: (n.lineno, n.col_offset)):
    if isinstance(node, ast.Import):
      names = [alias.name.partition('.')[0] for alias in node.names]
      found += [name for name in names if name in _MODULES]
    elif isinstance(node, ast.ImportFrom):
      names = [(node.module or '').partition('.')[0]]
      found += [name for name in names if name in _MODULES]
      taken = {alias.name for alias in node.names}
      # By its bare name nobody would see which `load` it is.
      found += sorted(taken & (_METHODS | {'load', 'loads'}))
    elif isinstance(node, ast.Call):
      found += _of_call(node)
  return found


def _of_call(node):
  given = {k.arg: k.value for k in node.keywords}
  found = [
    f'{name}={ast.unparse(value)}'
    for name, value in given.items()
    if name in _TRUE and ast.unparse(value) != 'False'
  ]
  match node.func:
    case ast.Name(id=name) if name in _BUILTINS:
      found.append(name)
    case ast.Attribute(attr=name) if name in _METHODS:
      found.append(name)
    case ast.Attribute(value=ast.Name(id='os'), attr=name) if name.startswith(
      ('exec', 'spawn')
    ):
      found.append(name)
    case ast.Attribute(value=ast.Name(id='np' | 'numpy'), attr='load'):
      # NumPy's default is False; said, nobody has to know it.
      if 'allow_pickle' not in given:
        found.append('np.load')
  return found


def _sources():
  for folder in ('crosr_jax', 'configs'):
    for path in sorted((ROOT / folder).rglob('*.py')):
      yield path.relative_to(ROOT).as_posix(), path.read_text()


def test_nothing_that_is_read_can_run_code():
  found = {name: _dangers(source) for name, source in _sources()}
  assert len(found) > 80
  assert {name: each for name, each in found.items() if each} == _ALLOWED


@pytest.mark.parametrize(
  ('source', 'danger'),
  [
    ('import os, pickle', 'pickle'),
    ('import torch.nn as nn', 'torch'),
    ('def f():\n  from marshal import loads', 'marshal'),
    ('from numpy import load', 'load'),
    ('eval("1")', 'eval'),
    ('exec(x)', 'exec'),
    ('__import__(x)', '__import__'),
    ('np.load(path)', 'np.load'),
    ('np.load(path, allow_pickle=True)', 'allow_pickle=True'),
    ('np.load(path, allow_pickle=flag)', 'allow_pickle=flag'),
    ('os.system(x)', 'system'),
    ('os.execvp(x, y)', 'execvp'),
    ('run(x, shell=True)', 'shell=True'),
    ('pd.read_pickle(x)', 'read_pickle'),
    ('archive.extractall(x)', 'extractall'),
    ('importlib.import_module(x)', 'import_module'),
  ],
)
def test_what_is_looked_for_is_found(source, danger):
  assert danger in _dangers(source)


def test_what_is_harmless_is_not():
  source = 'import re, json\nre.compile(x)\njson.load(f)\nast.literal_eval(x)'
  source += '\nnp.load(path, allow_pickle=False)\nstep.lower(x).compile()'
  assert _dangers(source) == []
