"""Says why everything is unknown, or nothing, and what to change.

  python -m crosr_jax.diagnose --workdir=runs/mnist

A line for each class: how far its samples are from its mean, in training and
held out, where its tail begins, where its Weibull says one half, how many
samples are in the tail, how many are called unknown; then what is odd, and what
to do. A picture of it goes to <workdir>/diagnosis.png. Nothing is
trained, and of the run's folder nothing else is changed.
"""

import json
import math

from absl import flags

from crosr_jax import cli, files, types

_WORKDIR = flags.DEFINE_string('workdir', '', 'folder of a finished run')
_FORMAT = flags.DEFINE_string('format', 'table', 'table or json')

_FORMATS = ('table', 'json')


def main() -> None:
  """Diagnoses."""
  # Flags are looked at before JAX is loaded: a typo is told at once.
  types.check_choice('--format', _FORMAT.value, _FORMATS)
  workdir = cli.finished_run(_WORKDIR.value, writes=True)
  from crosr_jax import diagnosis, judge, saved
  from crosr_jax.report import diagnosis as picture

  info = saved.load_info(workdir)
  parts = saved.load_features(workdir)
  scored = judge.score(
    parts,
    info['class_names'],
    augmented=info['method'] == 'augmented',
    **info['weibull'],
    **info['scorer'],
  )
  unknown = {
    name: judge.against(scored, name, count)
    for name, count in info['unknown_sets'].items()
  }
  found = diagnosis.examine(
    scored,
    info['class_names'],
    reject_known=info['scorer']['reject_known'],
    unknown=unknown,
  )
  path = workdir / 'diagnosis.png'
  files.write_bytes(path, picture.draw(found))
  if _FORMAT.value == 'json':
    print(json.dumps(diagnosis.plain(found), indent=2))
  else:
    print(_table(found))
    print(f'\nPicture: {path}')


def _share(value: float) -> str:
  """Of samples; a dash of none."""
  return '–' if math.isnan(value) else f'{value:.1%}'


def _table(found) -> str:
  """For people; `found` is a diagnosis.Diagnosis."""
  names = [cli.in_line(row.name) for row in found.rows]
  width = max(5, *map(len, names))
  lines = [
    f'{"":{width}}  {"distance to the class: median, 95 %":31} '
    f'{"tail":>7} {"Weibull":>8} {"tail":>7}   called unknown',
    f'{"class":{width}}  {"train":>15} {"held out":>15} {"begins":>7} '
    f'{"one half":>8} {"samples":>7} {"held out":>8} {"test":>6}',
  ]
  for name, row in zip(names, found.rows, strict=True):
    train, held_out = (
      f'{x[1]:.2f}, {x[2]:.2f}' for x in (row.train, row.held_out)
    )
    lines.append(
      f'{name:{width}}  {train:>15} {held_out:>15} {row.tail_begin:7.2f} '
      f'{row.half:8.2f} {row.tail_count:7d} '
      f'{_share(row.rejected_held_out):>8} {_share(row.rejected_test):>6}'
    )
  rejected = ', '.join(f'{k} {v:.1%}' for k, v in found.rejected.items())
  accuracy = ', '.join(f'{k} {v:.1%}' for k, v in found.accuracy.items())
  lines += [
    '',
    cli.in_line(f'decision {found.decision}; called unknown: {rejected}'),
    f'closed-set accuracy: {accuracy}; expected calibration error '
    f'{found.calibration_error:.3f}',
    f'dead coordinates: {found.dead} of {found.width}',
    '',
    *(f'- {cli.in_line(text)}' for text in found.findings),
  ]
  if not found.findings:
    lines.append('Nothing odd was found.')
  return '\n'.join(lines)


if __name__ == '__main__':
  cli.run(main)
