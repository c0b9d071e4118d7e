"""The notebook: one with its text, and it runs."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

_LAUNCH = ROOT / 'launch'


def test_the_notebook_is_made_of_its_text():
  sys.path.insert(0, str(_LAUNCH))
  try:
    import make_notebook
  finally:
    sys.path.remove(str(_LAUNCH))
  made = make_notebook.notebook((_LAUNCH / 'colab.py').read_text())
  assert made == (_LAUNCH / 'colab.ipynb').read_text()
  cells = json.loads(made)['cells']
  kinds = [cell['cell_type'] for cell in cells]
  assert kinds.count('code') == 5 and kinds.count('markdown') == 7
  assert cells[0]['source'][0] == '# Known, or unknown?\n'
  assert not any(cell.get('outputs') for cell in cells)


def test_every_cell_runs(run_command, tmp_path):
  """One after the other, in one namespace, as a notebook runs them."""
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  (tmp_path / 'run.py').write_text(
    'import json, sys, types\n'
    # What shows the report in a notebook, kept to be looked at.
    'display = types.ModuleType("IPython.display")\n'
    'display.HTML = str\n'
    'display.display = lambda x: open("shown.html", "w").write(x)\n'
    'ipython = types.ModuleType("IPython")\n'
    'ipython.display = display\n'
    'sys.modules |= {"IPython": ipython, "IPython.display": display}\n'
    f'page = json.load(open({str(_LAUNCH / "colab.ipynb")!r}))\n'
    'names = {"__name__": "__main__"}\n'
    'for cell in page["cells"]:\n'
    '  if cell["cell_type"] == "code":\n'
    '    exec(compile("".join(cell["source"]), "cell", "exec"), names)\n'
  )
  short = '--config.train.num_steps=200 --config.report.pictures=False'
  process = run_command(
    tmp_path / 'run.py',
    cwd=tmp_path,
    CROSR_JAX_SHORT=short,
    CROSR_JAX_INSTALLED='yes',
  )
  assert process.returncode == 0, process.stderr + process.stdout
  assert process.stdout.startswith('[CpuDevice(id=0)')
  assert 'Closed-set accuracy' in process.stdout
  answers = [x.split() for x in process.stdout.splitlines() if 'digit.png' in x]
  assert [answer[0] for answer in answers] == ['0']
  shown = (tmp_path / 'shown.html').read_text()
  assert shown.startswith('<iframe srcdoc="&lt;!doctype html')


@pytest.mark.parametrize(
  ('program', 'variable', 'installed'),
  [
    ('/usr/bin/nvidia-smi', 'X', '.[cuda]'),
    (None, 'COLAB_TPU_ADDR', '.[tpu]'),
    (None, 'X', '.'),
  ],
)
def test_jax_is_installed_for_what_is_there(
  monkeypatch, capsys, program, variable, installed
):
  """Else pip would bring a new JAX beside the old plugin for its GPU."""
  cells = json.loads((_LAUNCH / 'colab.ipynb').read_text())['cells']
  first = next(c for c in cells if c['cell_type'] == 'code')
  asked = []
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv(variable, '0')
  monkeypatch.setattr('glob.glob', lambda pattern: [])
  monkeypatch.setattr('shutil.which', lambda name: program)
  monkeypatch.setattr('subprocess.run', lambda words, **_: asked.append(words))
  monkeypatch.setattr('subprocess.check_output', lambda *_, **__: 'devices')
  exec(''.join(first['source']), {})
  assert [words[-1] for words in asked] == [installed]
  assert capsys.readouterr().out == 'devices\n'


def test_without_the_repository_it_says_what_to_do(tmp_path):
  cells = json.loads((_LAUNCH / 'colab.ipynb').read_text())['cells']
  first = next(c for c in cells if c['cell_type'] == 'code')
  process = subprocess.run(
    [sys.executable, '-c', ''.join(first['source'])],
    cwd=tmp_path,
    env={**os.environ, 'PATH': ''},
    capture_output=True,
    text=True,
  )
  assert process.returncode == 1 and 'fill in ADDRESS' in process.stderr
