"""What README and docs show works as it stands there."""

import re

from conftest import ROOT

_README = (ROOT / 'README.md').read_text()


def _blocks(language):
  return re.findall(rf'```{language}\n(.*?)```', _README, re.DOTALL)


def test_python_blocks_run():
  blocks = _blocks('python')
  assert blocks
  # One after the other: a later one goes on where an earlier one ended.
  names = {}
  for block in blocks:
    exec(compile(block, 'README.md', 'exec'), names)


def test_the_check_runs_the_commands_of_the_readme():
  check = (ROOT / '.ci' / 'run').read_text()
  commands = [c for block in _blocks('bash') for c in block.split(' && ')]
  assert len(commands) == 4
  for command in commands:
    words = command.strip().replace('pip install', 'pip install --quiet')
    assert words in check


def test_links_lead_somewhere():
  pages = [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]
  assert len(pages) > 2
  for page in pages:
    links = re.findall(r'\]\(([^)]+)\)', page.read_text())
    local = [link for link in links if not link.startswith('https://')]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert missing == [], page


def test_commands_in_the_docs_name_what_there_is():
  texts = [_README, *(x.read_text() for x in (ROOT / 'docs').glob('*.md'))]
  for command in re.findall(r'python -m crosr_jax\.(\w+)', ' '.join(texts)):
    assert (ROOT / 'crosr_jax' / f'{command}.py').exists(), command
  for config in re.findall(r'--config=(configs/\w+\.py)', ' '.join(texts)):
    assert (ROOT / config).exists(), config
