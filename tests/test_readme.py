"""What the README shows works as it stands there."""

import re

from conftest import ROOT

_README = (ROOT / 'README.md').read_text()


def _blocks(language):
  return re.findall(rf'```{language}\n(.*?)```', _README, re.DOTALL)


def test_python_blocks_run():
  blocks = _blocks('python')
  assert blocks
  for block in blocks:
    exec(compile(block, 'README.md', 'exec'), {})


def test_the_check_runs_the_commands_of_the_readme():
  check = (ROOT / '.ci' / 'run').read_text()
  commands = [c for block in _blocks('bash') for c in block.split(' && ')]
  assert len(commands) == 4
  for command in commands:
    words = command.strip().replace('pip install', 'pip install --quiet')
    assert words in check


def test_links_lead_somewhere():
  links = re.findall(r'\]\(([^)]+)\)', _README)
  local = [link for link in links if not link.startswith('https://')]
  assert local
  assert [link for link in local if not (ROOT / link).exists()] == []
