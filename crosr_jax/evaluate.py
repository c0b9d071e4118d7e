"""Scores a finished run again: other unknowns, tails, decisions; no training.

  python -m crosr_jax.evaluate --workdir=runs/mnist --unknown=photos/others
  python -m crosr_jax.evaluate --workdir=runs/mnist --tail=20 --vector=joint
  python -m crosr_jax.evaluate --features=mine.npz

Known samples are the run's own, as features.npz in its folder keeps them; so no
data set is needed but for unknowns. With --features the features may be of any
net of any framework: an npz file of arrays <part>/<field>, where the parts are
train, select, calibrate, test and any number of unknown sets, and the fields
logits [N, K], latent [N, L], label [N] (-1 = unknown) and, where there is one,
reconstruction_error [N]. Nothing in a workdir is changed; the main job with
other config.weibull and config.scorer fields does that.
"""

import json
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from crosr_jax import cli, files, types

_WORKDIR = flags.DEFINE_string('workdir', '', 'folder of a finished run')
_FEATURES = flags.DEFINE_string(
  'features', '', 'npz file of features, in place of those of a run'
)
_UNKNOWN = flags.DEFINE_multi_string(
  'unknown',
  [],
  'folder of images, or an unknown set as in evaluation.unknown_sets, in place '
  'of those of the run; may be given several times',
)
_MAX_UNKNOWN = flags.DEFINE_integer(
  'max_unknown', 10_000, 'samples of an unknown set at most'
)
_VECTOR = flags.DEFINE_string(
  'vector', '', 'see config.weibull.vector; default: as the run has it'
)
_SCALING = flags.DEFINE_string(
  'scaling', '', 'see config.weibull.scaling; default: as the run has it'
)
_MARGIN = flags.DEFINE_float(
  'margin', None, 'see config.weibull.margin; default: as the run has it'
)
_TAIL = flags.DEFINE_string(
  'tail', '', 'see config.weibull.tail; default: as the run has it'
)
_DECISION = flags.DEFINE_string(
  'decision', '', 'see config.scorer.decision; default: as the run has it'
)
_REJECT_KNOWN = flags.DEFINE_float(
  'reject_known',
  None,
  'share of known samples that may be rejected; default: as the run has it',
)
_SAVE_FEATURES = flags.DEFINE_string(
  'save_features', '', 'npz file that all features that were scored go to'
)
_FORMAT = flags.DEFINE_string('format', 'table', 'table or json')
_DATA_DIR = cli.define_data_dir()

_FORMATS = ('table', 'json')


class _Known(NamedTuple):
  """What there is of known samples, and of unknown ones so far."""

  parts: dict[str, types.Features]
  class_names: tuple[str, ...]
  num_classes: dict[str, int]  # of unknown sets
  info: dict[str, Any]  # model.json; {} of no run


def main() -> None:
  """Evaluates."""
  # Flags are looked at before JAX is loaded: a typo is told at once.
  types.check_choice('--format', _FORMAT.value, _FORMATS)
  if not (_WORKDIR.value or _FEATURES.value):
    raise types.UsageError(
      '--workdir is needed, the folder of a finished run, or --features'
    )
  if _UNKNOWN.value and not _WORKDIR.value:
    raise types.UsageError(
      '--unknown needs the net of a --workdir; put the features of unknown '
      'sets into the file of --features'
    )
  if _UNKNOWN.value and _FEATURES.value:
    raise types.UsageError(
      f'--unknown={_UNKNOWN.value[0]}: its features would be of the net of '
      f'--workdir, those of --features={_FEATURES.value} may be of another; '
      'leave one out, or put the features of unknown sets into the file'
    )
  if _MAX_UNKNOWN.present and not _UNKNOWN.value:
    raise types.UsageError(
      f'--max_unknown={_MAX_UNKNOWN.value} is of --unknown, and there is none: '
      'sets that a run or a file has are scored whole; leave it out'
    )
  if _MAX_UNKNOWN.value < 1:
    raise types.UsageError(
      f'--max_unknown={_MAX_UNKNOWN.value}: at least 1 is needed'
    )
  if _FEATURES.value and not files.user_path(_FEATURES.value).is_file():
    raise types.UsageError(
      f'--features={_FEATURES.value} is no file; name an npz file of features'
    )
  if _SAVE_FEATURES.value:
    files.check_output(files.user_path(_SAVE_FEATURES.value))
  from crosr_jax import choice, judge, saved
  from crosr_jax.report import terminal

  workdir = cli.finished_run(_WORKDIR.value) if _WORKDIR.value else None
  if _SAVE_FEATURES.value and workdir:
    saved.check_output(files.user_path(_SAVE_FEATURES.value), workdir)
  known = _known(workdir)
  recipe, decision = _recipe(known.info), _decision(known.info)
  choice.check_recipe(**recipe)
  choice.check_decision(**decision)
  augmented = known.info.get('method') == 'augmented'
  _check_read(recipe, augmented)
  if _UNKNOWN.value and workdir:
    known = _with_unknown(known, workdir)
  scored = judge.score(
    known.parts,
    known.class_names,
    augmented=augmented,
    more={'energy': 'energy'},
    **recipe,
    **decision,
  )
  result = _result(known, scored, recipe, decision)
  if _SAVE_FEATURES.value:
    saved.write_features(files.user_path(_SAVE_FEATURES.value), known.parts)
  if _FORMAT.value == 'json':
    json.dump(result, sys.stdout, indent=2)
    print()
  else:
    print(cli.in_lines(terminal.summary(result)))
    rejected = result['known_rejected']['test']
    print(
      f'\ndecision {scored.decision}: {rejected:.1%} of the known test samples '
      'are called unknown'
    )
    for name, share in result['unknown_found'].items():
      print(cli.in_line(f'{name}: {share:.1%} of it is called unknown'))
    for note in result['notes']:
      print(cli.in_line(f'note: {note}'))


def _known(workdir: pathlib.Path | None) -> _Known:
  """Features of the file, or of the run."""
  from crosr_jax import judge, saved

  info = saved.load_info(workdir) if workdir else {}
  if workdir and not _FEATURES.value:
    parts = saved.load_features(workdir)
  else:
    path = files.user_path(_FEATURES.value)
    parts = saved.read_features(path)
    judge.check_parts(parts, str(path))
  num_outputs = np.shape(parts['train'].logits)[1]
  names = info.get('class_names', [str(k) for k in range(num_outputs)])
  if len(names) != num_outputs:
    raise types.UsageError(
      f'the features are of {num_outputs} classes, the run has {len(names)}'
    )
  return _Known(parts, tuple(names), info.get('unknown_sets', {}), info)


def _recipe(info: dict[str, Any]) -> dict[str, Any]:
  from crosr_jax import choice

  asked = {
    'vector': _VECTOR.value, 'scaling': _SCALING.value, 'tail': _TAIL.value,
    'margin': _MARGIN.value,
  }  # fmt: skip
  # Of runs from before there was one, it is none.
  own = {'margin': 0.0, **info.get('weibull', choice.RECIPE)}
  return {n: own[n] if x in ('', None) else x for n, x in asked.items()}


def _check_read(recipe: dict[str, Any], augmented: bool) -> None:
  """Raises a UsageError for a flag that nothing would read."""
  from crosr_jax import vectors

  for flag in (_VECTOR, _SCALING, _TAIL, _MARGIN):
    if augmented and flag.value not in ('', None):
      raise types.UsageError(
        f'--{flag.name}={flag.value}: this net has an output for unknown and '
        'no Weibulls, so there is no recipe to change; leave it out'
      )
  if _MARGIN.value and recipe['vector'] not in vectors.PART_WEIGHTS:
    raise types.UsageError(
      f'--margin={_MARGIN.value:g}: the vector {recipe["vector"]!r} has none; '
      f'take --vector={" or ".join(vectors.PART_WEIGHTS)}, or leave it out'
    )


def _decision(info: dict[str, Any]) -> dict[str, Any]:
  from crosr_jax import choice

  fields = dict(info.get('scorer', choice.SCORER))
  if _DECISION.value:
    fields['decision'] = _DECISION.value
  if _REJECT_KNOWN.value is not None:
    fields['reject_known'] = _REJECT_KNOWN.value
  return fields


def _with_unknown(known: _Known, workdir: pathlib.Path) -> _Known:
  """The known parts, with the unknown sets that were asked for."""
  from crosr_jax import data, openset, saved

  model = openset.load(workdir)
  known_folders, is_all_known = saved.image_folders(known.info)
  for asked in _UNKNOWN.value:
    if files.user_path(asked).is_dir():
      data.check_apart(
        *('--unknown', asked, known_folders),
        classes=None if is_all_known else known.class_names,
      )
  sets, skipped = data.unknown_sets(
    _UNKNOWN.value,
    model.image_shape,
    len(known.parts['test'].label),
    max_unknown=_MAX_UNKNOWN.value,
    seed=known.info['evaluation_seed'],
    data_dir=cli.path_of_data(_DATA_DIR),
    # A set of the same name is the same one.
    classes=known.info.get('unknown_classes', {}),
  )
  for found in skipped:
    line = cli.in_line(f'left out: {found.path}: {found.reason}')
    print(line, file=sys.stderr)
  parts = {name: known.parts[name] for name in types.PARTS}
  for name, unknown in sets.items():
    parts[name] = model.features(unknown.image)
  return known._replace(
    parts=parts,
    num_classes={name: unknown.num_classes for name, unknown in sets.items()},
  )


def _result(
  known: _Known,
  scored: Any,
  recipe: dict[str, Any],
  decision: dict[str, Any],
) -> dict[str, Any]:
  from crosr_jax import judge

  test = known.parts['test']
  right = judge.closed(test) == test.label
  sets = [name for name in known.parts if name not in types.PARTS]
  return {
    'weibull': recipe,
    'tail_choice': scored.tail and scored.tail._asdict(),
    'decision': scored.decision,
    'threshold': scored.threshold,
    'closed_set_accuracy': float(np.mean(right)),
    'known_rejected': {part: scored.rejected(part) for part in types.PARTS},
    'unknown_found': {name: scored.rejected(name) for name in sets},
    'unknown': {
      name: judge.against(scored, name, known.num_classes.get(name))
      for name in sets
    },
    'notes': [
      *judge.promise(scored, decision['decision'], decision['reject_known']),
      *judge.untested(test, known.class_names),
      *scored.notes,
    ],
  }


if __name__ == '__main__':
  cli.run(main)
