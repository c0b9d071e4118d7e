"""What imports what, as CONTRIBUTING.md has it."""

import ast
import graphlib
import re

import pytest
from conftest import ROOT

_PACKAGE = ROOT / 'crosr_jax'


def _floors():
  """Module or folder -> the number of its floor, the highest first."""
  page = (ROOT / 'CONTRIBUTING.md').read_text()
  rows = page.partition('| floor |')[2].partition('\n\n')[0].splitlines()[2:]
  return {
    name: i
    for i, row in enumerate(rows)
    for name in re.findall(r'`(\w+)`', row.split('|')[2])
  }


def _unit(path):
  return path.relative_to(_PACKAGE).parts[0].removesuffix('.py')


def _imports(path):
  """Modules and folders of the package that a file imports, at any place."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      continue
    for name in names:
      package, *parts = name.split('.')
      if package == 'crosr_jax' and parts:
        yield parts[0]


@pytest.fixture(scope='module')
def imports():
  found = {}
  for path in sorted(_PACKAGE.rglob('*.py')):
    unit = _unit(path)
    found.setdefault(unit, set()).update(set(_imports(path)) - {unit})
  # Python's own name, which every file may ask for the version.
  del found['__init__']
  return found


def test_every_module_has_a_floor(imports):
  assert sorted(_floors()) == sorted(imports)


def test_every_import_points_down(imports):
  floors = _floors()
  assert sum(map(len, imports.values())) > 100
  up = [
    f'{unit} imports {other}'
    for unit, others in imports.items()
    for other in others
    if other in floors and floors[other] < floors[unit]
  ]
  assert up == []


def test_no_module_imports_itself_by_way_of_others(imports):
  graphlib.TopologicalSorter(imports).prepare()
