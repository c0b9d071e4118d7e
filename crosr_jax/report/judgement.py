"""What a comparison says, derived from its table and from nothing else.

Values are compared as they are printed: what looks level is level.
"""

from collections.abc import Iterator
from typing import Any

from crosr_jax import types
from crosr_jax.report import rows, words

RULE = (
  'A CROSR row wins on an unknown set, in a reading, only where it beats '
  'Softmax and the maximum logit of the very same nets there (means, as '
  'printed). The maximum logit is a score and no probability, so it has no F1 '
  'half and no F1 argmax. In those two readings the row must beat Softmax in '
  'the reading itself, and the maximum logit in AUROC and in F1 tpr95, where a '
  'bare score can be held against it; ahead of Softmax alone it is no win. A '
  'loss is to be behind either of them in the reading itself.'
)
SPREAD = (
  'The spread is the sample standard deviation of the differences, taken seed '
  'by seed (split by split for class splits).'
)
_BARE = ('auroc', 'macro_f1_tpr95')
_METHODS = ('crosr_published', 'crosr')
_NETS = {
  'dhrnet': '{}',
  'dhrnet_w0': '{} of the net with reconstruction weight 0',
  'supervised': '{} of the supervised net, pooled blocks as z',
}
_TITLES = {
  'crosr_published': 'CROSR as published',
  'crosr': 'CROSR, our recipe',
}
# Control: the row it takes the part from, the sentence's start, what is worth.
_CONTROLS = {
  'reconstruction': (
    'dhrnet_w0',
    'With the reconstruction switched off',
    'the reconstruction is worth',
  ),
  'codes': (
    'supervised',
    'With the supervised net and its own pooled blocks in place of codes',
    'reconstruction and codes together are worth',
  ),
}


def short(value: float | None, sign: bool = False) -> str:
  """Three decimals without the zero in front, a dash for None."""
  if value is None:
    return words.DASH
  text = f'{abs(value):.3f}'
  text = text[1:] if text.startswith('0') else text
  if round(value, 3) < 0:
    return f'−{text}'
  return f'+{text}' if sign else text


def spread(cell: dict) -> str:
  """'.827 ± .009'; no ± of one value; '[2 of 3]' where a run is missing."""
  text = short(cell['mean'])
  if cell['std'] is not None:
    text += f' ± {short(cell["std"])}'
  there = sum(value is not None for value in cell['values'])
  if 0 < there < len(cell['values']):
    text += f' [{there} of {len(cell["values"])}]'
  return text


def verdicts(table: dict) -> list[dict]:
  """The outcome of every CROSR row, per set and reading; see RULE."""
  return [
    {
      'system': system,
      'method': method,
      'unknown': name,
      'reading': key,
      **_judged(row, softmax, max_logit, name, key),
    }
    for system in _NETS
    for method in _METHODS
    if (row := rows.find(table, system, method)) and rows.is_measured(row)
    if (softmax := rows.find(table, system, 'softmax'))
    if (max_logit := rows.find(table, system, 'max_logit'))
    for name in table['sets']
    for key in table['readings']
    if _mean(row, name, key) is not None
  ]


def _judged(
  row: dict, softmax: dict, max_logit: dict, name: str, key: str
) -> dict[str, Any]:
  direct = [_duel(row, softmax, name, key)]
  if _mean(max_logit, name, key) is not None:
    direct.append(_duel(row, max_logit, name, key))
    elsewhere = []
  else:
    elsewhere = [_duel(row, max_logit, name, k) for k in _BARE]
  worst = min(duel['sign'] for duel in direct)
  outcome = {-1: 'loss', 0: 'level', 1: 'win'}[worst]
  if outcome == 'win' and any(duel['sign'] <= 0 for duel in elsewhere):
    outcome = 'no win'
  return {'outcome': outcome, 'against': [*direct, *elsewhere]}


def _duel(row: dict, rival: dict, name: str, key: str) -> dict[str, Any]:
  """A row against a rival: sign 1 = better, 0 = level, -1 = worse."""
  ours, theirs = (_mean(r, name, key) for r in (row, rival))
  if ours is None or theirs is None:
    raise types.UserError(
      f'{name} has no {key} for {row["title"]} or {rival["title"]}; the '
      'reports were made by another version, score these runs again'
    )
  return {
    'method': rival['method'],
    'reading': key,
    'ours': ours,
    'theirs': theirs,
    'sign': _sign(ours, theirs, key),
  }


def _sign(ours: float, theirs: float, key: str) -> int:
  """Rounded as printed; where low is good, low is better."""
  a, b = round(ours, 3), round(theirs, 3)
  if rows.reading(key).best is min:
    a, b = b, a
  return (a > b) - (a < b)


def _mean(row: dict, name: str, key: str) -> float | None:
  return row['unknown'].get(name, {}).get(key, {}).get('mean')


def verdict_sentences(found: list[dict]) -> list[tuple[str, list[str]]]:
  """For each CROSR row its count, then a sentence per unknown set."""
  groups: dict[tuple[str, str], list[dict]] = {}
  for entry in found:
    groups.setdefault((entry['system'], entry['method']), []).append(entry)
  says = []
  for (system, method), entries in groups.items():
    title = _NETS[system].format(_TITLES[method])
    names = dict.fromkeys(entry['unknown'] for entry in entries)
    sets = 'set' if len(names) == 1 else 'sets'
    says.append(
      (
        f'{title}: {_counted(entries)}, over {len(names)} unknown {sets} in '
        f'{len({e["reading"] for e in entries})} readings.',
        [
          _of_set(name, [e for e in entries if e['unknown'] == name])
          for name in names
        ],
      )
    )
  return says


_OUTCOMES = {
  'win': 'wins in',
  'no win': 'is ahead of Softmax alone, no win, in',
  'level': 'is level in',
  'loss': 'loses in',
}


def _counted(entries: list[dict]) -> str:
  counts = {
    outcome: sum(e['outcome'] == outcome for e in entries)
    for outcome in _OUTCOMES
  }
  return (
    f'{counts["win"]} won, {counts["loss"]} lost, {counts["level"]} level, '
    f'{counts["no win"]} ahead of Softmax alone'
  )


def _of_set(name: str, entries: list[dict]) -> str:
  parts = []
  for outcome, text in _OUTCOMES.items():
    told = [_told(e) for e in entries if e['outcome'] == outcome]
    if told:
      parts.append(f'{text} {", ".join(told)}')
  return f'{name}: {"; ".join(parts)}.'


def _told(entry: dict) -> str:
  """The reading, and whom it was not won against."""
  head = rows.reading(entry['reading']).head
  reasons = []
  for duel in entry['against']:
    if duel['sign'] > 0 or (entry['outcome'] == 'loss' and duel['sign'] == 0):
      continue
    where = ''
    if duel['reading'] != entry['reading']:
      where = f' in {rows.reading(duel["reading"]).head}'
    reasons.append(
      f'{short(duel["ours"])} against {short(duel["theirs"])} of '
      f'{words.method_title(duel["method"])}{where}'
    )
  return f'{head} ({", ".join(reasons)})' if reasons else head


def controls(table: dict) -> list[dict]:
  """What the reconstruction, and the codes, are worth; signed, with spread."""
  return [
    entry
    for control in _CONTROLS
    for method in _METHODS
    for key in table['readings'][:2]
    for name in table['sets']
    if (entry := _control(table, control, method, name, key))
  ]


def _control(
  table: dict, control: str, method: str, name: str, key: str
) -> dict | None:
  system, _, _ = _CONTROLS[control]
  pair = [rows.find(table, s, method) for s in ('dhrnet', system)]
  cells = [row['unknown'][name][key] for row in pair if row]
  if len(cells) < 2:
    return None
  # Only what was run both ways: a mean over other seeds would be no match.
  paired = [
    (a, b)
    for a, b in zip(cells[0]['values'], cells[1]['values'], strict=True)
    if a is not None and b is not None
  ]
  if not paired:
    return None
  worth = rows.summary([a - b for a, b in paired])
  entry = {
    'control': control,
    'method': method,
    'unknown': name,
    'reading': key,
    'with': rows.summary([a for a, _ in paired])['mean'],
    'without': rows.summary([b for _, b in paired])['mean'],
    'worth': worth['mean'],
    'spread': worth['std'],
  }
  return {**entry, 'sentence': _control_sentence(entry, table['by'])}


def _control_sentence(entry: dict, by: str) -> str:
  _, start, worth = _CONTROLS[entry['control']]
  head = rows.reading(entry['reading']).head
  return (
    f'{start}, {_recipe(entry["method"])} reaches {short(entry["without"])} '
    f'against {short(entry["with"])} on {entry["unknown"]} ({head}): {worth} '
    f'{short(entry["worth"], sign=True)} there, {clarity(entry, by)}.'
  )


def _recipe(method: str) -> str:
  return {'crosr_published': 'CROSR as published', 'crosr': 'our recipe'}[
    method
  ]


def clarity(entry: dict, by: str) -> str:
  """A difference held against its spread, in words."""
  if entry['spread'] is None:
    return f'one {by}: no spread'
  more = abs(entry['worth']) > entry['spread']
  return (
    f'{"more" if more else "not more"} than its spread over {by}s '
    f'({short(entry["spread"])})'
  )


def control_sentences(found: list[dict], by: str) -> list[str]:
  """One sentence per control, recipe and reading, over all unknown sets."""
  groups: dict[tuple[str, str, str], list[dict]] = {}
  for entry in found:
    group = (entry['control'], entry['method'], entry['reading'])
    groups.setdefault(group, []).append(entry)
  says = []
  for (control, method, key), entries in groups.items():
    _, start, worth = _CONTROLS[control]
    parts = ', '.join(
      f'{short(e["worth"], sign=True)} on {e["unknown"]}' for e in entries
    )
    says.append(
      f'{start}. {_TITLES[method]}, {rows.reading(key).head}: {worth} {parts}; '
      f'{_clear(entries, by)}.'
    )
  return says


def _clear(entries: list[dict], by: str) -> str:
  if any(e['spread'] is None for e in entries):
    return f'one {by}: no spread'
  gains = sum(e['worth'] > e['spread'] for e in entries)
  losses = sum(-e['worth'] > e['spread'] for e in entries)
  sets = 'set' if len(entries) == 1 else 'sets'
  return (
    f'a gain beyond the spread over {by}s on {gains} of {len(entries)} '
    f'{sets}, a loss beyond it on {losses}'
  )


def against_published(table: dict) -> Iterator[str]:
  """Ours beside every published figure, in its own reading."""
  for row in table['rows']:
    if not row['paper'] or not rows.is_measured(row):
      continue
    parts: dict[str, list[str]] = {'above': [], 'level with': [], 'below': []}
    for name, figure in row['paper'].items():
      ours = _mean(row, name, figure['reading'])
      stands = rows.paper(table, row, name, figure['reading'])
      if ours is None or not stands:
        continue
      sign = _sign(ours, figure['value'], figure['reading'])
      side = ('level with', 'above', 'below')[sign]
      parts[side].append(
        f'{name} ({short(ours)} here, {short(figure["value"])} there)'
      )
    told = '; '.join(
      f'{side} it on {", ".join(names)}'
      for side, names in parts.items()
      if names
    )
    if not told:
      continue
    first = next(iter(row['paper'].values()))
    head = rows.reading(first['reading']).head
    yield (
      f'{row["title"]}, {head}, beside the published figure '
      f'({first["source"]}): {told}.'
    )
