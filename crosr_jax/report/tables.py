"""What the pages say: figures of report.json as words and tables.

Markdown and HTML show the same; here nothing is escaped yet.
"""

from collections.abc import Callable
from typing import NamedTuple

from crosr_jax.report import material as material_lib
from crosr_jax.report import published, words

_CLASSES = 30  # rows of the table per class, at most


class Cell(NamedTuple):
  """A cell's text; `best` of its column in bold."""

  text: str
  best: bool = False


class Table(NamedTuple):
  """Rows start with a name, the other cells are numbers."""

  head: tuple[str, ...]
  rows: list[tuple[str, list[Cell]]]


class Result(NamedTuple):
  """All there is to say of one unknown set."""

  name: str
  facts: str
  recipe: str
  table: Table
  warning: str  # '' where there is nothing to warn of


def methods(entry: dict) -> list[str]:
  """Methods that were scored on an unknown set."""
  return [k for k, v in entry.items() if isinstance(v, dict) and k != 'trivial']


def lead(report: dict) -> str:
  """The method whose figures a report leads with; '' where there is none."""
  scored = [m for entry in report['unknown'].values() for m in methods(entry)]
  return material_lib.lead(scored) if scored else ''


def verdict(report: dict) -> list[str]:
  """The run in two or three sentences."""
  accuracy = words.percent(report.get('closed_set_accuracy'))
  tested = words.count((report.get('data') or {}).get('test'))
  rejected = words.percent((report.get('known_rejected') or {}).get('test'))
  says = [
    f'Closed-set accuracy {accuracy} on {tested} known test samples, '
    f'{rejected} of which are rejected as unknown (decision: '
    f'{report.get("decision", words.DASH)}).'
  ]
  first = lead(report)
  if first in ('', 'softmax'):
    return says
  title = words.method_title(first)
  for key, text in (('auroc', 'AUROC'), ('macro_f1', 'macro F1 (argmax)')):
    pairs = [
      (entry.get(first, {}).get(key), entry.get('softmax', {}).get(key))
      for entry in report['unknown'].values()
    ]
    pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
    if pairs:
      says.append(f'{title} {_compared(pairs)} in {text}.')
  return [*says, *_leaders(report)]


def _leaders(report: dict) -> list[str]:
  """The best method of each set by AUROC, whichever it is."""
  best = []
  for name, entry in report['unknown'].items():
    scored = {
      method: entry[method]['auroc']
      for method in methods(entry)
      if entry[method].get('auroc') is not None
    }
    if scored:
      winner = max(scored, key=lambda m: scored[m])
      title = words.method_title(winner)
      best.append(f'{title} on {name} ({words.decimal(scored[winner])})')
  return [f'Highest AUROC: {", ".join(best)}.'] if best else []


def _compared(pairs: list[tuple[float, float]]) -> str:
  """Ours against softmax's, as printed: what looks tied is tied."""
  above = sum(round(a, 4) > round(b, 4) for a, b in pairs)
  ties = sum(round(a, 4) == round(b, 4) for a, b in pairs)
  tied = f' and level on {ties}' if ties else ''
  sets = 'set' if len(pairs) == 1 else 'sets'
  return f'is above softmax on {above}{tied} of {len(pairs)} unknown {sets}'


def glance(report: dict) -> Table:
  """AUROC and macro F1 of the lead method beside softmax, a row per set."""
  first = lead(report)
  # A system need not have been scored by softmax as well.
  scored = {m for entry in report['unknown'].values() for m in methods(entry)}
  shown = [m for m in dict.fromkeys((first, 'softmax')) if m in scored]
  keys = (('auroc', 'AUROC'), ('macro_f1', 'F1 argmax'))
  head = [f'{text}, {words.method_title(m)}' for _, text in keys for m in shown]
  rows = []
  for name, entry in report['unknown'].items():
    cells = []
    for key, _ in keys:
      values = [entry.get(m, {}).get(key) for m in shown]
      best = _best(values, max) if len(shown) > 1 else None
      cells += [
        Cell(words.decimal(v), words.decimal(v) == best) for v in values
      ]
    cells.append(Cell(words.decimal(entry.get('ceiling_f1'))))
    rows.append((name, cells))
  return Table(('Unknown set', *head, 'F1, ceiling'), rows)


def beside(report: dict) -> Table | None:
  """Ours beside what was published of the same system, in its reading.

  None where nothing was, or but the mean of class splits of which this is one;
  without sets of which there are more samples, or fewer, than there.
  """
  data = (report.get('config') or {}).get('data') or {}
  by = 'split' if data.get('splits') else 'seed'
  if not published.compares(by, 1):
    return None
  key = _benchmark(report)
  other = published.other_counts(key, [report])
  names = [
    name
    for name in published.sets(key)
    if name in report['unknown'] and name not in other
  ]
  rows: list[tuple[str, list[Cell]]] = []
  readings: dict[str, None] = {}
  for (system, method), figures in published.figures(key).items():
    if system != report.get('system') or not names:
      continue
    cells = []
    for name in names:
      figure = figures[name]
      readings[figure.reading] = None
      ours = report['unknown'][name].get(method, {}).get(figure.reading)
      # As printed, so that what looks tied is tied.
      texts = words.decimal(ours), words.decimal(figure.value)
      above = ours is not None and float(texts[0]) >= float(texts[1])
      text = ' / '.join(texts)
      cells.append(Cell(text, above))
    title = f'{words.method_title(method)} ({figure.source})'
    rows.append((title, cells))
  if not rows:
    return None
  heads = {r.key: r.head for r in words.READINGS}
  reading = ', '.join(heads.get(key, key) for key in readings)
  return Table((f'{reading}: ours / published', *names), rows)


def differences(report: dict) -> list[str]:
  """Notes for what `beside` sets side by side, and for what it leaves out."""
  key = _benchmark(report)
  systems = {system for system, _ in published.figures(key)}
  found = published.unlike([report]) if beside(report) else []
  if report.get('system') in systems:
    found += published.unlike_counts(key, [report])
  return found


def _benchmark(report: dict) -> str:
  config = report.get('config') or {}
  data, evaluation = config.get('data') or {}, config.get('evaluation') or {}
  return published.benchmark(
    data.get('name', ''),
    data.get('unknown_classes', ()),
    data.get('splits', ()),
    evaluation.get('cifar100_splits', ()),
  )


def summary(report: dict) -> list[tuple[str, str]]:
  """Names and values of what was run."""
  data = report.get('data') or {}
  rejected = report.get('known_rejected') or {}
  shares = (f'{name} {words.percent(x)}' for name, x in rejected.items())
  parts = (f'{name} {words.count(n)}' for name, n in data.items())
  system, seed = report.get('system', words.DASH), report.get('seed')
  rows = [
    ('System', f'{system}, seed {words.count(seed)}'),
    ('Known classes', words.count(len(report.get('class_names') or ()))),
    ('Known samples', ', '.join(parts) or words.DASH),
    ('Closed-set accuracy', words.percent(report.get('closed_set_accuracy'))),
    ('Known samples rejected', ', '.join(shares) or words.DASH),
    ('Decision', str(report.get('decision', words.DASH))),
    ('Parameters', words.count(report.get('parameters'))),
    ('Training', _training(report.get('train') or {})),
    ('Device', str(report.get('device') or words.DASH)),
  ]
  if report.get('activation_width') is not None:
    dead = words.count(report.get('dead_coordinates'))
    width = words.count(report['activation_width'])
    rows.append(('Activation vector', f'{width} wide, {dead} dead coordinates'))
  if made := report.get('counterfactual'):
    rows.append(('Counterfactual images', _counterfactual(made)))
  return rows


def _counterfactual(made: dict) -> str:
  known, accuracy = made['log_sum'], made['select_accuracy']
  return (
    f'{words.count(made["count"])} generated and trained on as unknown; '
    f'log(1 + sum exp) of the classifier {known["before"]:.2f} before the '
    f'search, {known["after"]:.2f} after; accuracy on the held-out part '
    f'{words.percent(accuracy["classifier"])} without them, '
    f'{words.percent(accuracy["augmented"])} with them'
  )


def _training(train: dict) -> str:
  steps, seconds = words.count(train.get('steps')), train.get('seconds')
  speed = train.get('images_per_second')
  rate = words.DASH if speed is None else f'{speed:,.0f}'
  return f'{steps} steps in {words.duration(seconds)}, {rate} images/s'


def results(report: dict) -> list[Result]:
  """Every unknown set's figures."""
  first = lead(report)
  return [_result(n, entry, first) for n, entry in report['unknown'].items()]


def _result(name: str, entry: dict, first: str) -> Result:
  known = words.count(entry.get('n_known'))
  unknown = words.count(entry.get('n_unknown'))
  openness = words.decimal(entry.get('openness'))
  ceiling = entry.get('ceiling_f1')
  trivial = _trivial(entry)
  score = entry.get(first, {}).get('auroc')
  rivals = [k for k, v in trivial.items() if score is not None and v >= score]
  warning = ''
  if rivals:
    warning = (
      f'{rivals[0].capitalize()} alone ranks at least as well as '
      f'{words.method_title(first)}: on this set a high figure says little.'
    )
  return Result(
    name,
    f'{known} known and {unknown} unknown samples, openness {openness}.'
    + (
      ' A perfect detector on the same net would have macro F1 '
      f'{words.decimal(ceiling)}.'
      if ceiling is not None
      else ''
    ),
    str(entry.get('recipe') or ''),
    _methods_table(entry, trivial),
    warning,
  )


def _trivial(entry: dict) -> dict[str, float]:
  measured = (entry.get('trivial') or {}).items()
  return {
    key.replace('_', ' '): value['auroc']
    for key, value in measured
    if value.get('auroc') is not None
  }


def _methods_table(entry: dict, trivial: dict[str, float]) -> Table:
  names = methods(entry)
  best = [
    _best([entry[m].get(r.key) for m in names], r.best) for r in words.READINGS
  ]
  rows = []
  for method in names:
    texts = [words.decimal(entry[method].get(r.key)) for r in words.READINGS]
    cells = [Cell(t, t == b) for t, b in zip(texts, best, strict=True)]
    rows.append((words.method_title(method), cells))
  for name, auroc in trivial.items():
    texts = [words.DASH] * len(words.READINGS)
    texts[[r.key for r in words.READINGS].index('auroc')] = words.decimal(auroc)
    rows.append((f'{name} alone', [Cell(text) for text in texts]))
  return Table(('Method', *(r.head for r in words.READINGS)), rows)


def _best(values: list, choose: Callable) -> str | None:
  """The best value as it is printed, so that what looks tied is tied."""
  given = [value for value in values if value is not None]
  return words.decimal(choose(given)) if given else None


def classes(report: dict) -> tuple[Table, str] | None:
  """F1 of the lead method per class, worst first, and what is left out."""
  first = lead(report)
  names = report.get('class_names') or ()
  f1 = {
    name: entry[first]['class_f1']
    for name, entry in report['unknown'].items()
    if entry.get(first, {}).get('class_f1')
  }
  if not f1:
    return None
  tail = (report.get('tail_count') or {}).get(first)
  order = sorted(
    range(len(names)), key=lambda k: min(v[k] for v in f1.values())
  )
  rows = []
  for k in order[:_CLASSES]:
    cells = [Cell(words.count(tail[k]))] if tail else []
    cells += [Cell(words.decimal(values[k])) for values in f1.values()]
    rows.append((str(names[k]), cells))
  last = [Cell(words.DASH)] if tail else []
  last += [Cell(words.decimal(values[-1])) for values in f1.values()]
  rows.append(('(unknown)', last))
  head = ('Class', *(['Tail samples'] if tail else []), *f1)
  note = f'F1 of {words.method_title(first)} (argmax) per class, worst first.'
  if len(order) > _CLASSES:
    note += f' The worst {_CLASSES} of {len(order):,} classes are shown.'
  return Table(head, rows), note
