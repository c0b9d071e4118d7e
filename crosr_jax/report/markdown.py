"""report.md: plain Markdown with pictures by relative link."""

import json
import re

from crosr_jax.report import material as material_lib
from crosr_jax.report import tables, words

# An underscore within a word means nothing to Markdown: mnist_noise stays so.
_SPECIAL = re.compile(r'[\\`*\[\]|~$#!]|(?<![^\W_])_|_(?![^\W_])')
_ENTITIES = {'&': '&amp;', '<': '&lt;', '>': '&gt;'}


def escape(text: object) -> str:
  """A user's text as literal text within one line or cell of a table."""
  line = ' '.join(
    ''.join(c if c.isprintable() else ' ' for c in str(text)).split()
  )
  line = _SPECIAL.sub(lambda found: '\\' + found[0], line)
  return ''.join(_ENTITIES.get(c, c) for c in line)


def render(report: dict, pictures: list[material_lib.Picture]) -> str:
  """The whole page; pictures are expected at figures/NAME.png."""
  blocks = [
    f'# {escape(report["name"])}',
    *(escape(sentence) for sentence in tables.verdict(report)),
  ]
  if report['unknown']:
    blocks.append(grid(tables.glance(report)))
  if beside := tables.beside(report):
    blocks.append(grid(beside))
  if report.get('notes'):
    blocks += ['## Read with care', bullets(report['notes'])]
  blocks += ['## Summary', grid(_pairs(tables.summary(report)))]
  if report['unknown']:
    blocks += [
      '## Unknown sets',
      words.EXPLANATION,
      bullets(f'{r.head}: {r.meaning}' for r in words.READINGS),
    ]
  for result in tables.results(report):
    blocks += _result(result)
  if per_class := tables.classes(report):
    table, note = per_class
    blocks += ['## Classes', escape(note), grid(table)]
  if pictures:
    blocks.append('## Pictures')
  for picture in pictures:
    blocks += [
      f'### {picture.title}',
      f'![{picture.title}](figures/{picture.name}.png)',
      escape(picture.caption),
    ]
  blocks += [
    '## Settings',
    f'```json\n{json.dumps(report.get("config") or {}, indent=2)}\n```',
    '## Versions',
    grid(_pairs((report.get('versions') or {}).items())),
  ]
  return '\n\n'.join(blocks) + '\n'


def _result(result: tables.Result) -> list[str]:
  blocks = [f'### {escape(result.name)}', result.facts]
  if result.recipe:
    blocks.append(f'How it was made: {escape(result.recipe)}')
  blocks.append(grid(result.table))
  if result.warning:
    blocks.append(f'**{escape(result.warning)}**')
  return blocks


def _pairs(items) -> tables.Table:
  rows = [(str(name), [tables.Cell(str(value))]) for name, value in items]
  return tables.Table(('', ''), rows)


def bullets(lines) -> str:
  """A list; every line is escaped."""
  return '\n'.join(f'- {escape(line)}' for line in lines)


def grid(table: tables.Table) -> str:
  """A table, the best of a column bold; every cell is escaped."""
  lines = [_row(table.head), _row(['---'] + ['---:'] * (len(table.head) - 1))]
  lines[0] = _row(escape(text) for text in table.head)
  for name, cells in table.rows:
    texts = [escape(cell.text) for cell in cells]
    bold = [
      f'**{t}**' if c.best else t for t, c in zip(texts, cells, strict=True)
    ]
    lines.append(_row([escape(name), *bold]))
  return '\n'.join(lines)


def _row(texts) -> str:
  return '| ' + ' | '.join(texts) + ' |'
