"""What README and docs show works as it stands there."""

import re

import pytest
from conftest import ROOT

from crosr_jax.data import sources
from crosr_jax.models import backbones

_README = (ROOT / 'README.md').read_text()
_PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def _blocks(language, page=_README):
  return re.findall(rf'```{language}\n(.*?)```', page, re.DOTALL)


@pytest.mark.parametrize('page', _PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, digits_run, tmp_path, monkeypatch):
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'digits').symlink_to(digits_run[0])
  monkeypatch.chdir(tmp_path)
  # What a page adds to a table is gone after it.
  monkeypatch.setattr(sources, 'SOURCES', dict(sources.SOURCES))
  monkeypatch.setattr(backbones, 'BACKBONES', dict(backbones.BACKBONES))
  # One after the other: a later one goes on where an earlier one ended.
  names = {'__name__': 'page'}
  for block in _blocks('python', page.read_text()):
    exec(compile(block, page.name, 'exec'), names)


def test_there_are_blocks_to_run():
  assert sum(len(_blocks('python', p.read_text())) for p in _PAGES) >= 10


def test_the_check_runs_the_commands_of_the_readme():
  check = (ROOT / '.ci' / 'run').read_text()
  commands = [c for block in _blocks('bash') for c in block.split(' && ')]
  assert len(commands) == 4
  for command in commands:
    words = command.strip().replace('pip install', 'pip install --quiet')
    assert words in check


def test_links_lead_somewhere():
  for page in _PAGES:
    links = re.findall(r'\]\(([^)]+)\)', page.read_text())
    local = [x.partition('#')[0] for x in links if not x.startswith('https://')]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert missing == [], page


def test_commands_in_the_docs_name_what_there_is():
  texts = [_README, *(x.read_text() for x in (ROOT / 'docs').glob('*.md'))]
  for command in re.findall(r'python -m crosr_jax\.(\w+)', ' '.join(texts)):
    assert (ROOT / 'crosr_jax' / f'{command}.py').exists(), command
  for config in re.findall(r'--config=(configs/\w+\.py)', ' '.join(texts)):
    assert (ROOT / config).exists(), config
