"""compare.json, compare.md and compare.html: systems side by side."""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from crosr_jax import files, report
from crosr_jax.report import (
  judgement,
  markdown,
  published,
  rows,
  tables,
  words,
)
from crosr_jax.report import material as material_lib

NOT_YET = 'not yet run'
# Readings that are drawn.
_DRAWN = ('macro_f1_half', 'auroc', 'macro_f1', 'macro_f1_tpr95', 'oscr')


class Nets(NamedTuple):
  """What the picture of the nets is drawn from."""

  nets: Sequence[Any]  # of architecture.Net
  image_shape: tuple[int, ...]  # H, W, C
  members: int = 1  # that answer as one


class Cell(NamedTuple):
  """Ours, and beneath it the published figure, if there is one."""

  ours: str
  paper: str
  is_figure: bool
  best: bool


class Line(NamedTuple):
  """One row of a table of results."""

  title: str
  kind: str
  cells: list[Cell]
  singles: list[tuple[str, list[str]]]  # unknown set, every seed or split


class Section(NamedTuple):
  """All there is to say of one reading."""

  reading: words.Reading
  says: str  # what the reading means
  is_published: bool  # whether there is a figure of others in this reading
  lines: list[Line]


def write(
  root: pathlib.Path,
  name: str,
  cases: Sequence[rows.Case],
  *,
  benchmark: str = '',
  changes: dict[str, dict[str, Any]],
  nets: Nets | None = None,
  pictures: bool = True,
) -> dict:
  """Writes the three files, and figures/*.png; returns compare.json.

  Args:
    root: folder to write into.
    name: of the comparison.
    cases: every run that was asked for, finished or not.
    benchmark: see published.benchmark.
    changes: fields of the config that make a system, for each system.
    nets: what is drawn of the nets; None where nothing can be.
    pictures: whether to draw.
  """
  table = rows.table(cases, benchmark)
  verdicts, controls = judgement.verdicts(table), judgement.controls(table)
  result = report.plain(
    {
      'name': name,
      **table,
      'systems': _systems(cases, changes),
      'facts': _facts(cases),
      'notes': _notes(cases, table),
      'rule': judgement.RULE,
      'verdicts': verdicts,
      'verdict_sentences': judgement.verdict_sentences(verdicts),
      'controls': controls,
      'control_sentences': judgement.control_sentences(controls, table['by']),
      'published_sentences': list(judgement.against_published(table)),
      'others': [other._asdict() for other in published.others(benchmark)],
    }
  )
  text = json.dumps(result, indent=2, allow_nan=False)
  # Comes back last of all: none of a former comparison stays beside figures
  # that it is not of.
  (root / 'compare.html').unlink(missing_ok=True)
  files.write_text(root / 'compare.json', text + '\n')
  drawn = _draw(result, nets) if pictures else []
  for picture in drawn:
    path = root / 'figures' / f'{picture.name}.png'
    files.write_bytes(path, picture.png)
  for path in (root / 'figures').glob('*.png'):
    # None of a former comparison stays beside figures it is not of.
    if path.stem in _names() and path.stem not in {p.name for p in drawn}:
      path.unlink()
  files.write_text(root / 'compare.md', _markdown(result, drawn))
  files.write_text(root / 'compare.html', _page(result, drawn))
  return result


def _draw(result: dict, nets: Nets | None) -> list[material_lib.Picture]:
  from crosr_jax.report import architecture, dots

  found = [
    dots.draw(result, key) for key in result['readings'] if key in _DRAWN
  ]
  if nets:
    found.append(architecture.draw(*nets))
  return [picture for picture in found if picture]


def _names() -> set[str]:
  return {'architecture', *(f'compare_{key}' for key in _DRAWN)}


def _systems(
  cases: Sequence[rows.Case], changes: dict[str, dict[str, Any]]
) -> list[dict]:
  """What was run of each system, and what it cost."""
  found = []
  for system in dict.fromkeys(case.system for case in cases):
    own = [case for case in cases if case.system == system]
    done = [case.report for case in own if case.report]
    found.append(
      {
        'system': system,
        'title': rows.SYSTEMS[system],
        'changes': changes[system],
        'parameters': _common(r.get('parameters') for r in done),
        'activation_width': _common(r.get('activation_width') for r in done),
        'closed_set_accuracy': rows.summary(
          [r['closed_set_accuracy'] for r in done]
        ),
        'seconds': rows.summary([_seconds(r) for r in done]),
        'runs': [
          {
            'seed': case.seed,
            'split': case.split,
            'folder': case.folder,
            'is_finished': case.report is not None,
          }
          for case in own
        ],
      }
    )
  return found


def _common(values: Iterable[Any]) -> Any:
  """What all of them are; None where they differ."""
  found = set(values)
  return found.pop() if len(found) == 1 else None


def _seconds(report: dict) -> float:
  """Of all trainings of a run, and what else came before the scores."""
  stages = report.get('counterfactual', {}).get('seconds', {})
  return report['train']['seconds'] + sum(stages.values())


def _facts(cases: Sequence[rows.Case]) -> list[str]:
  """What is the same for all, in sentences."""
  done = [case.report for case in cases if case.report]
  if not done:
    return []
  known = _span(len(r.get('class_names') or ()) for r in done)
  devices = ', '.join(dict.fromkeys(str(r.get('device')) for r in done))
  steps = ', '.join(
    dict.fromkeys(words.count(r['train'].get('steps')) for r in done)
  )
  return [
    f'{known} known classes, {steps} steps each, on {devices}.',
    *_sizes([r['unknown'] for r in done]),
  ]


def _sizes(runs: Sequence[dict[str, dict]]) -> list[str]:
  """How many samples were told apart; sets of one size together."""
  sizes: dict[tuple[str, str], list[str]] = {}
  for name in dict.fromkeys(name for run in runs for name in run):
    entries = [run[name] for run in runs if name in run]
    known, unknown = (
      _span(entry.get(key) for entry in entries)
      for key in ('n_known', 'n_unknown')
    )
    sizes.setdefault((known, unknown), []).append(name)
  return [
    f'{", ".join(names)}: {known} known and {unknown} unknown samples.'
    for (known, unknown), names in sizes.items()
  ]


def _some(folders: list[str]) -> str:
  """'a, b, c and 2 more'."""
  more = f' and {len(folders) - 3} more' if len(folders) > 3 else ''
  return ', '.join(folders[:3]) + more


def _span(values: Iterable[int | None]) -> str:
  """'5,899', or '5,848 to 5,971' where runs differ."""
  found = {value for value in values if value is not None}
  if not found:
    return words.DASH
  ends = dict.fromkeys((min(found), max(found)))
  return ' to '.join(map(words.count, ends))


def _notes(cases: Sequence[rows.Case], table: dict) -> list[str]:
  """What every run warns of, and what is missing."""
  # In the order of the runs; what only some warn of is told of these.
  folders: dict[str, list[str]] = {}
  finished = {case.folder: case.report for case in cases if case.report}
  for folder, found in finished.items():
    for note in found.get('notes') or []:
      folders.setdefault(note, []).append(folder)
  told = [
    note if len(where) == len(finished) else f'{_some(where)}: {note}'
    for note, where in folders.items()
  ]
  missing = [case.folder for case in cases if case.report is None]
  notes = []
  if missing:
    notes.append(f'{NOT_YET.capitalize()}: {", ".join(missing)}.')
  by = table['by']
  done = len({rows.label_of(case) for case in cases if case.report})
  if table['benchmark'] and done and not published.compares(by, done):
    notes.append(
      f'Published figures are means of {published.NUM_SPLITS} class splits, '
      f'ours here of {done}: they do not compare.'
    )
  if table['benchmark']:
    notes += published.unlike(finished.values())
    notes += published.unlike_counts(table['benchmark'], finished.values())
  if done == 1:
    notes.append(
      f'One {by}: no figure here has a spread, and a small '
      'difference may be chance.'
    )
  return [*notes, *told]


def sections(result: dict) -> list[Section]:
  """One table per reading, in the order of reading."""
  return [_section(result, key) for key in result['readings']]


def _section(result: dict, key: str) -> Section:
  reading = rows.reading(key)
  is_published = any(
    rows.paper(result, row, name, key)
    for row in result['rows']
    for name in row['paper']
  )
  best = {name: _best(result['rows'], name, reading) for name in result['sets']}
  lines = [
    Line(
      row['title'],
      row['kind'],
      [
        _cell(result, row, name, key, is_published, best[name])
        for name in result['sets']
      ],
      [
        (
          name,
          [judgement.short(v) for v in row['unknown'][name][key]['values']],
        )
        for name in result['sets']
        if row['unknown'][name][key]['mean'] is not None
      ],
    )
    for row in result['rows']
  ]
  says = f'{reading.meaning[0].upper()}{reading.meaning[1:]}. ' + (
    'Beneath ours stands what is published in this very reading.'
    if is_published
    else 'No figure that is published of these systems compares in it.'
  )
  return Section(reading, says, is_published, lines)


def _best(found: list[dict], name: str, reading: words.Reading) -> str:
  """The best mean as it is printed, so that what looks tied is tied."""
  means = [row['unknown'][name][reading.key]['mean'] for row in found]
  there = [mean for mean in means if mean is not None]
  return judgement.short(reading.best(there)) if there else ''


def _cell(
  result: dict, row: dict, name: str, key: str, is_published: bool, best: str
) -> Cell:
  cell = row['unknown'][name][key]
  ours = judgement.spread(cell)
  if not rows.is_measured(row):
    ours = NOT_YET
  figure = rows.paper(result, row, name, key)
  paper = ''
  if figure:
    paper = f'{_source(figure["source"])} {judgement.short(figure["value"])}'
  elif is_published:
    paper = published.absent(result['benchmark'], row['system'])
  return Cell(
    ours, paper, figure is not None, judgement.short(cell['mean']) == best
  )


def _source(text: str) -> str:
  """A source short enough for a cell; in full it stands in a sentence."""
  return text.partition(';')[0]


def plain_text(result: dict, key: str) -> str:
  """One reading for a terminal, published figures in brackets."""
  section = _section(result, key)
  width = max((len(line.title) for line in section.lines), default=0)
  figures = [
    [
      judgement.short(figure['value'])
      if (figure := rows.paper(result, row, name, key))
      else ''
      for name in result['sets']
    ]
    for row in result['rows']
  ]
  texts = [
    [
      f'{cell.ours} ({paper})' if paper else cell.ours
      for cell, paper in zip(line.cells, papers, strict=True)
    ]
    for line, papers in zip(section.lines, figures, strict=True)
  ]
  columns = list(zip(result['sets'], *texts, strict=True))
  widths = [max(map(len, column)) for column in columns]
  header = section.reading.head
  if section.is_published:
    header += ' (published)'
  grid = [(header, result['sets'])]
  grid += [
    (line.title, row) for line, row in zip(section.lines, texts, strict=True)
  ]
  width = max(width, len(header))
  return '\n'.join(
    '  '.join(
      [title.ljust(width)]
      + [text.rjust(w) for text, w in zip(row, widths, strict=True)]
    )
    for title, row in grid
  )


def _page(result: dict, drawn: list[material_lib.Picture]) -> str:
  from crosr_jax.report import page

  has_control = any(row['kind'] == 'control' for row in result['rows'])
  return page.template('compare.html.j2').render(
    result=result,
    sections=sections(result),
    pictures={p.name: (p, page.embedded(p.png)) for p in drawn},
    controls_text=rows.CONTROLS if has_control else '',
    spread_text=judgement.SPREAD,
    matrices=[_matrix(result, kind) for kind in ('crosr', 'control')],
    short=judgement.short,
    spread=judgement.spread,
    count=words.count,
    percent=words.percent,
    duration=words.duration,
    clarity=judgement.clarity,
    titles={
      spec.method: words.method_title(spec.method) for spec in rows.SPECS
    },
    head=lambda key: rows.reading(key).head,
    is_own=lambda key: key == published.OWN,
  )


def _matrix(result: dict, kind: str) -> list[tuple[str, str, list[str]]]:
  """Row, unknown set, and the outcome in every reading."""
  outcome = {
    (e['system'], e['method'], e['unknown'], e['reading']): e['outcome']
    for e in result['verdicts']
  }
  return [
    (
      row['title'],
      name,
      [
        outcome.get((row['system'], row['method'], name, key), words.DASH)
        for key in result['readings']
      ],
    )
    for row in result['rows']
    if row['kind'] == kind
    for name in result['sets']
    if any(key[:3] == (row['system'], row['method'], name) for key in outcome)
  ]


def _markdown(result: dict, drawn: list[material_lib.Picture]) -> str:
  blocks = [
    f'# {markdown.escape(result["name"])}: every system, side by side',
    *(markdown.escape(fact) for fact in result['facts']),
  ]
  blocks += [markdown.escape(head) for head, _ in result['verdict_sentences']]
  if result['notes']:
    blocks += ['## Read with care', markdown.bullets(result['notes'])]
  for section in sections(result):
    blocks += _markdown_section(result, section)
  if result['verdicts']:
    blocks += ['## Does CROSR win?', markdown.escape(result['rule'])]
  for head, says in result['verdict_sentences']:
    blocks += [markdown.escape(head), markdown.bullets(says)]
  if result['controls']:
    blocks += [
      '## What the controls show',
      markdown.escape(f'{rows.CONTROLS} {judgement.SPREAD}'),
      markdown.bullets(result['control_sentences']),
      '### Each unknown set',
      markdown.bullets(entry['sentence'] for entry in result['controls']),
    ]
  if result['published_sentences']:
    blocks += [
      '## Beside the published figures',
      markdown.bullets(result['published_sentences']),
    ]
  if result['others']:
    blocks += ['## Published by others', markdown.grid(_others(result))]
  blocks += ['## Systems', markdown.grid(_systems_table(result))]
  if drawn:
    blocks.append('## Pictures')
  for picture in drawn:
    blocks += [
      f'### {picture.title}',
      f'![{picture.title}](figures/{picture.name}.png)',
      markdown.escape(picture.caption),
    ]
  return '\n\n'.join(blocks) + '\n'


def _markdown_section(result: dict, section: Section) -> list[str]:
  lines = [
    (
      line.title,
      [
        tables.Cell(f'{c.ours} ({c.paper})' if c.paper else c.ours, c.best)
        for c in line.cells
      ],
    )
    for line in section.lines
  ]
  blocks = [
    f'## {markdown.escape(section.reading.head)}',
    markdown.escape(section.says),
    markdown.grid(tables.Table(('', *result['sets']), lines)),
  ]
  if len(result['labels']) > 1:
    singles = [
      (f'{line.title}, {name}', [tables.Cell(text) for text in values])
      for line in section.lines
      for name, values in line.singles
    ]
    labels = (f'{result["by"]} {label}' for label in result['labels'])
    blocks += [
      f'Every single {result["by"]}:',
      markdown.grid(tables.Table(('', *labels), singles)),
    ]
  return blocks


def _others(result: dict) -> tables.Table:
  lines = []
  for other in result['others']:
    reading = 'a reading of its own'
    if other['reading'] != published.OWN:
      reading = rows.reading(other['reading']).head
    values = [judgement.short(other['value'].get(n)) for n in result['sets']]
    texts = (reading, other['source'], *values)
    lines.append((other['name'], [tables.Cell(text) for text in texts]))
  return tables.Table(('', 'Reading', 'Source', *result['sets']), lines)


def _systems_table(result: dict) -> tables.Table:
  lines = []
  for system in result['systems']:
    done = [run for run in system['runs'] if run['is_finished']]
    changes = ', '.join(f'{k}={v}' for k, v in system['changes'].items())
    texts = (
      changes,
      f'{len(done)} of {len(system["runs"])}',
      judgement.spread(system['closed_set_accuracy']),
      words.count(system['parameters']),
      words.duration(system['seconds']['mean']),
    )
    lines.append((system['title'], [tables.Cell(text) for text in texts]))
  head = (
    'System',
    'Fields changed',
    'Runs finished',
    'Closed-set accuracy',
    'Parameters',
    'Training, each',
  )
  return tables.Table(head, lines)
