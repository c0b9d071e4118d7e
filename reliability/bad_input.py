"""Gives the real code what nobody should: bad inputs of four kinds.

  python reliability/bad_input.py --scratch=FOLDER

  config    any value for any field, on the command line and in a config file,
            as far as the first step of a training
  images    files of every mode, format and damage, read as predict and the
            data set 'folder' read them
  archives  publishers' files in every packing, damaged and hostile, read as
            prepare reads them; features in npz files
  names     class and file names of any characters, through every output, each
            read back by its own reader

Hypothesis draws the cases, the same ones for the same --seed. Each kind is one
process. A case is accepted, or refused with a UserError; all else is a defect:
any other exception, no end within --limit seconds, a file outside of the folder
that it was given, one that is half-written, and what is not read back equal.
"""

import collections
import contextlib
import faulthandler
import importlib
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import hypothesis
import jobs
import tqdm
from hypothesis import strategies as st

# What is tried, and how many cases where --cases says nothing.
KINDS = {'config': 5_000, 'images': 2_500, 'archives': 1_000, 'names': 1_500}
_EXAMPLES = 3  # of each defect that are kept
_OFTEN = 20  # cases between two writings
_LONGEST = 2_000  # characters of a case that are kept
# Of a kind: what reads without end must not take the machine's memory.
_MEMORY = 4 << 30


class Kind(Protocol):
  """What the module bad_<kind>.py has as `Trial`; made once, in a folder."""

  cases: st.SearchStrategy

  def __init__(self, folder: pathlib.Path):
    """In a folder of its own, which is the only one it may write into."""

  def __call__(self, case: Any) -> list[str]:
    """What is wrong; raises a UserError where the case is refused."""


class Hung(BaseException):
  """A case that came to no end; no `except Exception` stops it."""


class Outcome(NamedTuple):
  """What came of one case."""

  how: str  # accepted, refused or defect
  said: str  # by which it was refused
  faults: list[str]
  seconds: float


def examine(
  trial: Callable[[Any], list[str]], case: Any, limit: float
) -> Outcome:
  """Tries one case, in the main thread."""
  start, said, faults = time.monotonic(), '', []
  from crosr_jax import types

  how = 'accepted'
  try:
    with _within(limit):
      faults = trial(case)
  except types.UserError as error:
    how, said = 'refused', ' '.join(str(error).split())
    if not said:
      faults = ['refused without a word']
  except Hung:
    faults = [f'no end: {_place(sys.exc_info()[2])}']
  except Exception as error:
    # What a user would see a traceback of.
    faults = [f'{type(error).__name__}: {_place(error.__traceback__)}']
    said = str(error)
  return Outcome(
    'defect' if faults else how, said, faults, time.monotonic() - start
  )


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
  def end(*_: Any) -> None:
    raise Hung

  before = signal.signal(signal.SIGALRM, end)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  # What hangs outside of Python hears no signal: it ends the whole script.
  faulthandler.dump_traceback_later(4 * seconds, exit=True)
  try:
    yield
  finally:
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _place(found: Any) -> str:
  """The innermost line of the package on the way to an exception."""
  frames = traceback.extract_tb(found)
  own = [f for f in frames if '/crosr_jax/' in f.filename] or frames
  last = own[-1]
  return f'{pathlib.Path(last.filename).name}:{last.name}: {last.line}'


def strays(home: pathlib.Path) -> list[str]:
  """Files beside the folder of a kind, and half-written ones within."""
  faults = [
    f'written outside: {path.relative_to(home)}'
    for path in home.rglob('*')
    if path.relative_to(home).parts[0] != 'own' and path.name != 'elsewhere'
  ]
  for path in (home / 'own').rglob('*.aside'):
    faults.append('left aside')
    path.unlink()
  return faults


class Tally:
  """Counts of one kind, and each defect with its first cases."""

  def __init__(self, kind: str):
    self.kind = kind
    self.count: collections.Counter[str] = collections.Counter()
    self.defects: dict[str, dict[str, Any]] = {}
    self.slowest = 0.0

  def add(self, case: Any, outcome: Outcome) -> None:
    """One case more."""
    self.count[outcome.how] += 1
    self.slowest = max(self.slowest, outcome.seconds)
    for fault in outcome.faults:
      found = self.defects.setdefault(fault, {'count': 0, 'cases': []})
      found['count'] += 1
      if len(found['cases']) < _EXAMPLES:
        found['cases'].append([repr(case)[:_LONGEST], outcome.said[:500]])

  def told(self) -> dict[str, Any]:
    """As JSON has it."""
    return {
      'kind': self.kind,
      'cases': self.count.total(),
      **{how: self.count[how] for how in ('accepted', 'refused', 'defect')},
      'slowest': self.slowest,
      'defects': self.defects,
    }


def try_all(
  kind: str,
  home: pathlib.Path,
  cases: int,
  seed: int,
  limit: float,
  keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
  """All cases of one kind, in this process; `keep` gets what there is."""
  own, elsewhere = home / 'own', home / 'elsewhere'
  shutil.rmtree(home, ignore_errors=True)
  for folder in (own, elsewhere):
    folder.mkdir(parents=True)
  # What is written under a bare name is written here, and seen.
  os.chdir(elsewhere)
  trial = importlib.import_module(f'bad_{kind}').Trial(own)
  tally = Tally(kind)
  with tqdm.tqdm(total=cases, desc=kind, mininterval=1) as bar:
    rounds = 0
    # One round draws fewer where Hypothesis meets the same case again.
    while tally.count.total() < cases:
      own_seed = seed + 1000 * rounds

      def show() -> None:
        bar.update()
        if not tally.count.total() % _OFTEN:
          keep(tally.told())

      _round(trial, tally, home, cases, own_seed, limit, show)
      rounds += 1
  return tally.told()


def _round(
  trial: Kind,
  tally: Tally,
  home: pathlib.Path,
  cases: int,
  seed: int,
  limit: float,
  show: Callable[[], None],
) -> None:
  @hypothesis.seed(seed)
  @hypothesis.settings(
    max_examples=cases - tally.count.total(),
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(trial.cases)
  def each(case: Any) -> None:
    if tally.count.total() >= cases:
      return
    outcome = examine(trial, case, limit)
    if wrong := strays(home):
      outcome = outcome._replace(how='defect', faults=outcome.faults + wrong)
    tally.add(case, outcome)
    show()

  each()


def table(found: list[dict[str, Any]]) -> str:
  """Markdown."""
  rows = [
    [
      *(x['kind'], x['cases'], x['accepted'], x['refused']),
      *(x['defect'], len(x['defects'])),
    ]
    for x in found
  ]
  if found:
    sums = [sum(row[i] for row in rows) for i in range(1, 6)]
    rows.append(['all', *sums])
  return jobs.table(
    ['kind', 'cases', 'accepted', 'refused in one line', 'defects', 'distinct'],
    rows,
  )


def _child(arguments: Any) -> None:
  """One kind; this process is its alone, and ends at once."""
  logging.disable(logging.CRITICAL)
  resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
  os.environ['JAX_PLATFORMS'] = 'cpu'
  output = pathlib.Path(arguments.output).resolve()
  scratch = arguments.scratch
  (kind,) = arguments.kinds.split(',')
  found = try_all(
    kind,
    scratch / kind,
    arguments.cases or KINDS[kind],
    arguments.seed,
    arguments.limit,
    # Written now and then: a long trial may be stopped.
    lambda found: jobs.write(str(output), found),
  )
  jobs.write(str(output), found)
  sys.stderr.flush()
  # Threads that hang would keep it.
  os._exit(0)


def main() -> None:
  """Tries and prints."""
  parser = jobs.parser(__doc__, 'bad_input.json')
  parser.add_argument('--kinds', default=','.join(KINDS))
  parser.add_argument(
    '--cases', type=int, default=0, help=f'of each kind; default {KINDS}'
  )
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--limit', type=float, default=20, help='s for a case')
  parser.add_argument('--child', action='store_true', help='of this script')
  arguments = parser.parse_args()
  kinds = arguments.kinds.split(',')
  if wrong := set(kinds) - set(KINDS):
    parser.error(f'--kinds: {", ".join(sorted(wrong))}; take of {list(KINDS)}')
  if arguments.child:
    _child(arguments)
  scratch = arguments.scratch
  found = []
  for kind in kinds:
    path = scratch / f'{kind}.json'
    path.unlink(missing_ok=True)
    command = [
      *(sys.executable, __file__, '--child', f'--kinds={kind}'),
      *(f'--scratch={scratch}', f'--output={path}'),
      *(f'--cases={arguments.cases}', f'--seed={arguments.seed}'),
      f'--limit={arguments.limit}',
    ]
    subprocess.run(
      command, check=True, env={**os.environ, 'PYTHONPATH': str(jobs.ROOT)}
    )
    found.append(json.loads(path.read_text()))
    jobs.write(arguments.output, {'seed': arguments.seed, 'kinds': found})
  print(table(found))


if __name__ == '__main__':
  main()
