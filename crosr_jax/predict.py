"""Says of images what they are, or that they are unknown.

  python -m crosr_jax.predict --workdir=runs/mnist photo.png folder/ 'x/*.jpg'

Arguments are image files, folders (all images below them), patterns, and '-'
for a list of those on standard input, one a line. The answers are in the same
order: prediction, a class or 'unknown'; the probability of that class, or where
it is unknown of the nearest one; that of unknown; and the nearest class,
whatever is decided. A file that cannot be read has a row that says why, and
makes the exit code 1.
"""

import contextlib
import csv
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

from absl import flags

from crosr_jax import cli, progress, types

_WORKDIR = flags.DEFINE_string('workdir', '', 'folder of a finished run')
_FORMAT = flags.DEFINE_string(
  'format', 'table', 'table, json (a list of objects) or csv'
)
_REJECT_KNOWN = cli.define_reject_known()

_BLOCK = 256
_UNKNOWN = 'unknown'


class Row(NamedTuple):
  """What is said of one file."""

  path: str
  prediction: str  # a class, 'unknown', or '' where the file gives no image
  # of the class that is predicted, or the nearest where that is unknown
  probability: float | None
  unknown_probability: float | None
  nearest: str  # class
  error: str  # '' where there is none


def main(arguments: list[str]) -> None:
  """Predicts what is named on the command line."""
  # Flags are looked at before JAX is loaded: a typo is told at once.
  types.check_choice('--format', _FORMAT.value, _WRITERS)
  workdir = cli.finished_run(_WORKDIR.value)
  from crosr_jax.data import named

  paths = named.paths(arguments)
  from crosr_jax import openset

  model = openset.load(workdir)
  if _REJECT_KNOWN.value is not None:
    model = model.rejecting(_REJECT_KNOWN.value)
  logging.info('decision: %s', model.told())
  faults = 0
  with _bar(len(paths)) as show:
    write = _WRITERS[_FORMAT.value](sys.stdout, model.class_names)
    for i, row in enumerate(rows(model, paths)):
      write.row(row)
      faults += bool(row.error)
      show(i + 1)
    write.end()
  if faults:
    raise types.UserError(
      f'{faults} of {len(paths)} files could not be read; their rows say why'
    )


def _bar(total: int) -> contextlib.AbstractContextManager[progress.Show]:
  """None where the rows themselves are seen to come."""
  if sys.stdout.isatty():
    return contextlib.nullcontext(lambda done, text='': None)
  return progress.bar('predicting', total)


def rows(model: Any, paths: Sequence[str]) -> Iterator[Row]:
  """A row for each path, in order.

  Args:
    model: openset.OpenSetModel.
    paths: of image files.
  """
  from crosr_jax.data import images

  for start in range(0, len(paths), _BLOCK):
    block = paths[start : start + _BLOCK]
    image, faults = images.read_all(block, model.image_shape)
    found = model.features(image)
    scores = model.score(found)
    nearest = model.nearest(found, scores)
    answers = iter(range(len(image)))
    for i, path in enumerate(block):
      if i in faults:
        yield Row(path, '', None, None, '', faults[i])
        continue
      k = next(answers)
      prediction = scores.prediction[k]
      is_unknown = prediction == types.UNKNOWN
      told = nearest[k] if is_unknown else prediction
      yield Row(
        path,
        _UNKNOWN if is_unknown else model.class_names[prediction],
        float(scores.probability[k, told]),
        float(scores.probability[k, -1]),
        model.class_names[nearest[k]],
        '',
      )


class _Table:
  """For people."""

  def __init__(self, stream: TextIO, class_names: Sequence[str]):
    self._stream = stream
    names = map(cli.in_line, class_names)
    self._width = max(len('prediction'), *map(len, names))
    self._line('prediction', 'probability', 'unknown', 'nearest', 'image')

  def row(self, row: Row) -> None:
    if row.error:
      self._line('-', '-', '-', '-', f'{row.path}: {row.error}')
    else:
      self._line(
        row.prediction,
        f'{row.probability:.3f}',
        f'{row.unknown_probability:.3f}',
        row.nearest,
        row.path,
      )

  def end(self) -> None:
    self._stream.flush()

  def _line(self, *cells: str) -> None:
    prediction, own, unknown, nearest, path = map(cli.in_line, cells)
    n = self._width
    text = f'{prediction:{n}} {own:>11} {unknown:>8}  {nearest:{n}} {path}'
    self._stream.write(text + '\n')


class _Json:
  """A list of objects."""

  def __init__(self, stream: TextIO, class_names: Sequence[str]):
    del class_names
    self._stream, self._begin = stream, '[\n'

  def row(self, row: Row) -> None:
    self._stream.write(self._begin + json.dumps(row._asdict()))
    self._begin = ',\n'

  def end(self) -> None:
    self._stream.write('\n]\n' if self._begin == ',\n' else '[]\n')
    self._stream.flush()


class _Csv:
  """With a header."""

  def __init__(self, stream: TextIO, class_names: Sequence[str]):
    del class_names
    self._stream = stream
    self._write(Row._fields)

  def row(self, row: Row) -> None:
    cells = ['' if cell is None else cell for cell in row]
    self._write(cells)

  def end(self) -> None:
    self._stream.flush()

  def _write(self, cells: Sequence[Any]) -> None:
    line = io.StringIO()
    # A return within a cell is quoted only where it could end the line.
    csv.writer(line, lineterminator='\r\n').writerow(cells)
    self._stream.write(line.getvalue().removesuffix('\r\n') + '\n')


_WRITERS: dict[str, Callable[[TextIO, Sequence[str]], Any]] = {
  'table': _Table,
  'json': _Json,
  'csv': _Csv,
}


if __name__ == '__main__':
  cli.run(main, takes_arguments=True)
