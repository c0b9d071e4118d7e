"""Names of any characters, through every output; each read back by its own."""

import csv
import dataclasses
import functools
import html.parser
import io
import json
import os
import pathlib
import re
import shutil
import unicodedata
from typing import Any, NamedTuple
from unittest import mock

import jobs
import numpy as np
from hypothesis import strategies as st

from crosr_jax import (
  demo_page,
  exported,
  exporting,
  extension,
  openset,
  pipeline,
  predict,
  report,
  saved,
  types,
)
from crosr_jax.data import folder
from crosr_jax.report import comparison, rows

_NAMES = (
  *(
    'a b',
    ' a',
    'a ',
    'a  b',
    '\t',
    'a\tb',
    'a\nb',
    'a\r\nb',
    '\r',
    '\v',
    '\f',
  ),
  *('=1+1', '+1', '-1', '@SUM(A1)', '=cmd|x!A0', "'=1", '"', "'", '""', 'a"b'),
  *(
    ',',
    ';',
    'a,b',
    '|',
    'a|b',
    '\\',
    '\\|',
    '`',
    '``',
    '*a*',
    '_a_',
    '#',
    '~~',
  ),
  *('<b>', '</td>', '<script>alert(1)</script>', '"><img src=x onerror=y>'),
  *(
    '&lt;',
    '&amp;',
    '&',
    ']]>',
    '<!--',
    '--&gt;',
    '{{ 7*7 }}',
    '{% x %}',
    '%s',
  ),
  *(
    'javascript:x',
    '![x](y)',
    '[x](y)',
    '$x$',
    '\\frac',
    'é',
    'e\u0301',
    '日本',
  ),
  *('\u202eabc', '\u200b', '\ufeff', '\u2028', '\u2029', '\x85', '\x1b[31m'),
  *('😀', '👨\u200d👩\u200d👧', '\udcff', '\udc80a', '\ud800', '\x00', '\x7f'),
  *(
    'x' * 255,
    'x' * 3000,
    '',
    'unknown',
    'nan',
    'None',
    'true',
    '0',
    '-',
    'CON',
  ),
)


class Case(NamedTuple):
  """Three classes and a file."""

  class_names: tuple[str, str, str]
  file_name: str
  error: str  # why a file cannot be read; '' = it can


def names() -> st.SearchStrategy:
  """One."""
  return st.one_of(
    st.sampled_from(_NAMES),
    st.text(max_size=20),
    st.text(st.characters(), max_size=8),
    st.lists(st.sampled_from(_NAMES[:-12]), min_size=2, max_size=3).map(
      ''.join
    ),
  )


def cases() -> st.SearchStrategy:
  """Cases."""
  return st.builds(
    Case,
    st.tuples(names(), names(), names()),
    names(),
    st.sampled_from(('', '', 'it is a folder', 'damaged (a\tb)')),
  )


class Page(html.parser.HTMLParser):
  """Elements and attributes of a page, and its text."""

  def __init__(self, text: str):
    super().__init__()
    self.shape: list[Any] = []
    self.text: list[str] = []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag: str, attrs: list) -> None:
    """Its name, and those of its attributes."""
    self.shape.append((tag, tuple(name for name, _ in attrs)))

  def handle_endtag(self, tag: str) -> None:
    """Its name."""
    self.shape.append(tag)

  def handle_comment(self, data: str) -> None:
    """That there is one."""
    self.shape.append('comment')

  def handle_decl(self, decl: str) -> None:
    """All of it."""
    self.shape.append(decl)

  def handle_pi(self, data: str) -> None:
    """That there is one."""
    self.shape.append('instruction')

  def handle_data(self, data: str) -> None:
    """Text."""
    self.text.append(data)


def written(text: str) -> str:
  """As a file in UTF-8 holds it."""
  return text.encode('utf-8', 'backslashreplace').decode()


class Trial:
  """Writes names into every output, and reads them back."""

  def __init__(self, folder: pathlib.Path):
    self.cases = cases()
    self._folder = folder
    self._run = folder / 'run'
    config = jobs.small_config()
    config.data.unknown_classes = tuple(range(3, 10))
    pipeline.run(config, 'names', self._run, folder / 'data')
    self._model = openset.load(self._run)
    self._saved = saved.load(self._run)
    self._report = json.loads((self._run / 'report.json').read_text())
    self._plain = self._write_report(('a', 'b', 'c'), 'd')
    self._compared = self._compare(('a', 'b', 'c'), 'd')
    # Its time goes into the function, which no name is in.
    function = functools.cache(lambda _: exporting.function(self._model))
    made = function(None)
    mock.patch.object(exporting, 'function', lambda _: made).start()
    known = saved.load_features(self._run)['train']
    self._plane = demo_page.fit_map(known)
    mock.patch.object(demo_page, 'fit_map', lambda _: self._plane).start()

  def __call__(self, case: Case) -> list[str]:
    """What is wrong; raises a UserError where the case is refused."""
    model = dataclasses.replace(self._model, class_names=case.class_names)
    return [
      *self._of_predict(case),
      *self._of_report(case),
      *self._of_compare(case),
      *self._of_model(case),
      *self._of_added(case),
      *self._of_export(model, case),
      *_of_demo(model, case),
      *self._of_folder(case),
    ]

  def _of_predict(self, case: Case) -> list[str]:
    first, second, third = case.class_names
    given = [
      predict.Row(case.file_name, first, 0.5, 0.25, second, ''),
      predict.Row(case.file_name, 'unknown', 0.5, 0.25, third, ''),
    ]
    if case.error:
      given.append(predict.Row(case.file_name, '', None, None, '', case.error))
    found = {}
    for name, writer in predict._WRITERS.items():
      data = io.BytesIO()
      # As standard output is in a pipe.
      stream = io.TextIOWrapper(data, 'utf-8', newline='', errors='strict')
      write = writer(stream, case.class_names)
      for row in given:
        write.row(row)
      write.end()
      stream.flush()
      found[name] = data.getvalue().decode()
    faults = []
    if json.loads(found['json']) != [row._asdict() for row in given]:
      faults.append('predict json')
    cells = list(csv.reader(io.StringIO(found['csv'], newline='')))
    expected = [
      [written('' if x is None else str(x)) for x in row] for row in given
    ]
    if cells != [list(predict.Row._fields), *expected]:
      faults.append('predict csv')
    if len(found['table'].splitlines()) != 1 + len(given):
      faults.append('predict table: lines')
    if any(map(_is_hidden, found['table'].replace('\n', ''))):
      faults.append('predict table: control characters')
    return faults

  def _write_report(self, class_names: tuple, other: str) -> dict[str, Any]:
    changed = json.loads(json.dumps(self._report))
    changed['class_names'] = list(class_names)
    changed['name'] = other
    changed['notes'] = [f'class {class_names[0]} has a note', other]
    changed['skipped'] = [{'path': other, 'reason': class_names[1]}]
    for entry in changed['unknown'].values():
      entry['recipe'] = f'classes {", ".join(class_names)}'
    changed['config']['data']['train_dir'] = other
    target = self._folder / 'report'
    report.write(target, changed, None)
    written = json.loads((target / 'report.json').read_text())
    del written['sha256']
    page = (target / 'report.html').read_text()
    lines = (target / 'report.md').read_text().split('\n')
    return {
      'given': changed,
      'json': written,
      'page': Page(page),
      'rows': [_cells(line) for line in lines if line.startswith('|')],
      'text': '\n'.join(lines),
    }

  def _of_report(self, case: Case) -> list[str]:
    found = self._write_report(case.class_names, case.file_name)
    return [
      *([] if found['json'] == found['given'] else ['report.json']),
      *_page_faults('report.html', found['page'], self._plain['page'], case),
      *_markdown_faults('report.md', found, self._plain, case),
    ]

  def _compare(self, class_names: tuple, other: str) -> dict[str, Any]:
    changed = json.loads(json.dumps(self._report))
    changed['class_names'] = list(class_names)
    changed['notes'] = [other]
    changed['device'] = class_names[0]
    target = self._folder / 'compare'
    made = comparison.write(
      target,
      other,
      [rows.Case('dhrnet', 0, None, changed, f'{other}/seed0')],
      changes={'dhrnet': {}},
      pictures=False,
    )
    lines = (target / 'compare.md').read_text().split('\n')
    return {
      'given': made,
      'json': json.loads((target / 'compare.json').read_text()),
      'page': Page((target / 'compare.html').read_text()),
      'rows': [_cells(line) for line in lines if line.startswith('|')],
      'text': '\n'.join(lines),
    }

  def _of_compare(self, case: Case) -> list[str]:
    found = self._compare(case.class_names, case.file_name)
    shape = (found['page'].shape, self._compared['page'].shape)
    return [
      *([] if found['json'] == found['given'] else ['compare.json']),
      *([] if shape[0] == shape[1] else ['compare.html: other elements']),
      *_markdown_faults('compare.md', found, self._compared, case),
    ]

  def _of_model(self, case: Case) -> list[str]:
    target = self._folder / 'saved'
    target.mkdir(exist_ok=True)
    info = {**self._saved.info, 'class_names': list(case.class_names)}
    saved.save(target, self._saved._replace(info=info))
    found = openset.load(target)
    return [] if found.class_names == case.class_names else ['model.json']

  def _of_added(self, case: Case) -> list[str]:
    name = case.class_names[0]
    try:
      self._model.check_name(name)
    except types.UserError:
      return []
    fitted = self._saved.info['fitted_sha256']
    fields = {
      x: np.ones((1, 3) if x == 'mav' else 1)
      for x in extension.Extension._fields
    }
    added = extension.Extension(**{**fields, 'class_names': (name,)})
    target = self._folder / 'added'
    target.mkdir(exist_ok=True)
    shutil.copy(self._run / 'model.json', target)
    saved.save_added(target, added, fitted)
    found = saved.load_added(target, fitted)
    return [] if found and found.class_names == (name,) else ['added.npz']

  def _of_export(self, model: openset.OpenSetModel, case: Case) -> list[str]:
    path = self._folder / 'x.jaxexport'
    card = exporting.card(model, self._saved.info)
    path.write_bytes(exporting.pack(model, card))
    header = exported.load(str(path)).header
    is_equal = header['class_names'] == list(case.class_names)
    return [] if is_equal else ['export header']

  def _of_folder(self, case: Case) -> list[str]:
    """Those that a disk can hold, as folders."""
    root = self._folder / 'classes'
    shutil.rmtree(root, ignore_errors=True)
    made = set()
    for name in case.class_names:
      try:
        encoded = os.fsencode(name)
      except UnicodeEncodeError:
        continue
      if not 0 < len(encoded) < 256 or re.search(rb'[/\0]|^\.', encoded):
        continue
      (root / name).mkdir(parents=True, exist_ok=True)
      made.add(name)
    if len(made) < 2 or 'unknown' in made:
      return []
    found = folder.class_names(str(root), 'data.train_dir')
    return [] if set(found) == made else ['folder: other classes']


def _of_demo(model: openset.OpenSetModel, case: Case) -> list[str]:
  app = demo_page.create(model, None, demo_page.Limiter(1e9, 1e9))
  found = app.test_client().get('/model.json')
  told = json.loads(found.data)
  is_equal = told['class_names'] == list(case.class_names)
  answer = demo_page.answer(model, None, np.zeros(model.image_shape, np.uint8))
  again = json.loads(app.json.dumps(answer))
  is_equal &= again == answer
  return [] if is_equal else ['demo']


def _is_hidden(character: str) -> bool:
  """Whether a terminal would do something else than show it."""
  turns = ('LRE', 'RLE', 'PDF', 'LRO', 'RLO', 'LRI', 'RLI', 'FSI', 'PDI')
  return (
    unicodedata.category(character) in ('Cc', 'Zl', 'Zp', 'Cs')
    or unicodedata.bidirectional(character) in turns
  )


def _cells(line: str) -> int:
  """Cells of a row of Markdown."""
  return len(re.split(r'(?<!\\)\|', re.sub(r'\\\\', '', line)))


def _page_faults(name: str, found: Page, plain: Page, case: Case) -> list[str]:
  if found.shape != plain.shape:
    return [f'{name}: other elements']
  text = ''.join(found.text)
  missing = [
    x for x in case.class_names if _lines(written(x)) not in _lines(text)
  ]
  return [f'{name}: a name is not there'] if missing else []


def _lines(text: str) -> str:
  """HTML reads every end of a line as one, and NUL as U+FFFD or nothing."""
  return re.sub(r'\r\n?', '\n', text)


def _markdown_faults(
  name: str, found: dict[str, Any], plain: dict[str, Any], case: Case
) -> list[str]:
  # The order of rows follows figures, the number of cells the columns.
  faults = []
  if found['rows'] != plain['rows']:
    faults.append(f'{name}: other rows or cells')
  outside = found['text'].partition('```json')[0]
  if re.search(r'<(?!br>)[a-zA-Z/!?]', outside):
    faults.append(f'{name}: an element')
  return faults
