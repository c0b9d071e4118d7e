"""Makes colab.ipynb of colab.py, its text: python launch/make_notebook.py.

Cells begin with a line '# %%', those of words with '# %% [markdown]'.
"""

import json
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent


def notebook(text: str) -> str:
  """The notebook of a script, as JSON."""
  cells = []
  for part in re.split(r'^# %%', text, flags=re.MULTILINE)[1:]:
    head, _, body = part.partition('\n')
    body = body.strip('\n')
    is_words = head.strip() == '[markdown]'
    if is_words:
      body = re.sub(r'^# ?', '', body, flags=re.MULTILINE)
    cell = {
      'cell_type': 'markdown' if is_words else 'code',
      'id': f'cell-{len(cells)}',
      'metadata': {},
      'source': body.splitlines(keepends=True),
    }
    if not is_words:
      cell |= {'execution_count': None, 'outputs': []}
    cells.append(cell)
  kernel = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
  page = {
    'cells': cells,
    'metadata': {
      'accelerator': 'GPU',
      'colab': {'provenance': []},
      'kernelspec': kernel,
      'language_info': {'name': 'python'},
    },
    'nbformat': 4,
    'nbformat_minor': 5,
  }
  return json.dumps(page, indent=1) + '\n'


if __name__ == '__main__':
  script = (HERE / 'colab.py').read_text(encoding='utf-8')
  (HERE / 'colab.ipynb').write_text(notebook(script), encoding='utf-8')
