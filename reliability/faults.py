"""Makes disk, files, clock and neighbours fail under a small run.

  python reliability/faults.py --scratch=FOLDER

Each trial looks at four things: what the command says and its exit code, that
it is one line and no traceback, that no file lies half-written under its own
name, and that the same command, once the fault is mended, ends as a run that
met no fault, to the last bit. Full and read-only disks are mounted, for which
one must be root; without that these trials are left out, and named.
"""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jobs
import tqdm

# Checkpoints of the small run before its newest.
_OLDEST, _BEFORE = 80, 100
# How a file that is not as it was is told of.
_DAMAGE = ('is damaged', 'belongs to another config', 'is of format')
_FUTURE = 10 * 365 * 86400.0  # seconds

_CLOCK = '''
import random, time
_time, _random = time.time, random.Random({seed})
def jumping():
  """Off by up to ten days either way, anew at every call."""
  return _time() + _random.uniform(-864000, 864000)
time.time = jumping
'''


class Trial(NamedTuple):
  """One fault, and what came of it."""

  fault: str
  detail: str
  code: int  # while the fault lasts
  said: str
  faults: list[str]  # what should not have been; [] = survived


class Bench:
  """A run that met no fault, and what others are held against."""

  def __init__(self, scratch: pathlib.Path):
    self.scratch = scratch
    self.finished = scratch / 'finished'
    shutil.rmtree(self.finished, ignore_errors=True)
    self.run(self.finished, expected=0)
    self.whole = jobs.result(self.finished)

  def start(self, workdir: pathlib.Path, **kwargs: Any) -> subprocess.Popen:
    """The main job, begun."""
    return jobs.start(self.scratch, *jobs.job(workdir), **kwargs)

  def run(
    self, workdir: pathlib.Path, expected: int | None = None, **kwargs: Any
  ) -> tuple[int, str]:
    """The main job to its end: exit code, and what was said."""
    code, told = jobs.finish(self.start(workdir, **kwargs))
    if expected is not None and code != expected:
      raise RuntimeError(f'exit code {code}, not {expected}:\n{told}')
    return code, told

  def copy(self, name: str) -> pathlib.Path:
    """Of the finished run."""
    target = self.scratch / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(self.finished, target)
    return target

  def again(self, workdir: pathlib.Path) -> list[str]:
    """What is wrong when the same command runs once more, without the fault."""
    faults = [f'half-written: {name}' for name in jobs.half_written(workdir)]
    code, told = self.run(workdir)
    if code:
      return [*faults, f'again: {jobs.error_line(told)}']
    faults += [f'differs: {n}' for n in jobs.differing(workdir, self.whole)]
    return faults + [f'left: {name}' for name in jobs.leftovers(workdir)]


def told_plainly(code: int, told: str, *words: str) -> list[str]:
  """What is wrong with how a fault was told."""
  errors = [x for x in told.splitlines() if x.startswith('error: ')]
  faults = []
  if 'Traceback' in told:
    faults.append('traceback')
  if code not in (1, 2) or len(errors) != 1:
    faults.append(f'exit code {code}, {len(errors)} error lines')
  return faults + [f'not said: {w}' for w in words if w not in ''.join(errors)]


def wait_for(
  process: subprocess.Popen, words: str, seconds: float = 300
) -> None:
  """Reads what a process says until these words come."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    line = process.stdout.readline()
    if words in line or not line:
      return


@contextlib.contextmanager
def mounted(folder: pathlib.Path, size: int) -> Iterator[None]:
  """A disk of its own, of so many bytes."""
  folder.mkdir(exist_ok=True)
  _mount('-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder))
  try:
    yield
  finally:
    subprocess.run(['umount', str(folder)], check=True)


def _mount(*arguments: str) -> None:
  subprocess.run(['mount', *arguments], check=True, capture_output=True)


def disk_full(bench: Bench) -> Iterator[Trial]:
  """Disks of several sizes; then there is room."""
  used = sum(p.stat().st_size for p in bench.finished.rglob('*'))
  disk = bench.scratch / 'disk'
  for percent in (1, 45, 90, 15, 60, 98, 5, 30, 75):
    with mounted(disk, max(4096, used * percent // 100)):
      workdir = disk / 'run'
      code, told = bench.run(workdir)
      faults = [] if not code else told_plainly(code, told, str(disk))
      _mount('-o', 'remount,size=1g', str(disk))
      faults += bench.again(workdir) if workdir.exists() else []
      yield Trial(
        'disk full',
        f'{percent} % of a run',
        code,
        jobs.error_line(told),
        faults,
      )


def read_only(bench: Bench) -> Iterator[Trial]:
  """A disk that cannot be written, with and without a run on it."""
  disk = bench.scratch / 'disk'
  with mounted(disk, 2**30):
    shutil.copytree(bench.finished, disk / 'finished')
    before = jobs.tree(disk)
    _mount('-o', 'remount,ro', str(disk))
    cases = {
      'new workdir': jobs.job(disk / 'new'),
      'finished workdir': jobs.job(disk / 'finished'),
      'output of export': [
        *('-m', 'crosr_jax.export', f'--workdir={disk / "finished"}'),
        f'--output={disk / "x.jaxexport"}',
      ],
      'diagnose': [
        *('-m', 'crosr_jax.diagnose', f'--workdir={disk / "finished"}')
      ],
    }
    for name, command in cases.items():
      code, told = jobs.finish(jobs.start(bench.scratch, *command))
      faults = told_plainly(code, told, str(disk), 'Read-only')
      if jobs.tree(disk) != before:
        faults.append('files changed')
      yield Trial('read-only', name, code, jobs.error_line(told), faults)
    # What only reads must not mind.
    target = bench.scratch / 'x.jaxexport'
    code, told = jobs.finish(
      jobs.start(
        bench.scratch,
        *('-m', 'crosr_jax.export', f'--workdir={disk / "finished"}'),
        f'--output={target}',
      )
    )
    yield Trial(
      'read-only', 'export to elsewhere', code, jobs.error_line(told),
      [f'exit code {code}'] if code else [],
    )  # fmt: skip
    _mount('-o', 'remount,rw', str(disk))
    yield Trial(
      'read-only', 'written again', 0, '', bench.again(disk / 'finished')
    )


def deleted(bench: Bench) -> Iterator[Trial]:
  """The workdir is deleted while a run is in it."""
  for words in ('reading', 'first step', 'fitting and scoring'):
    workdir = bench.scratch / 'deleted'
    shutil.rmtree(workdir, ignore_errors=True)
    process = bench.start(workdir)
    wait_for(process, words)
    while workdir.exists():
      shutil.rmtree(workdir, ignore_errors=True)
    code, told = jobs.finish(process)
    faults = [] if not code else told_plainly(code, told, str(workdir))
    if not code:
      faults.append('nothing said')
    # A folder that came back holds a part of a run at most.
    workdir.mkdir(exist_ok=True)
    faults += bench.again(workdir)
    yield Trial(
      'workdir deleted', f'after "{words}"', code, jobs.error_line(told), faults
    )


def two_jobs(bench: Bench) -> Iterator[Trial]:
  """A second job in a workdir, while the first trains, fits, or hangs."""
  for words in ('reading', 'first step', 'fitting and scoring', 'hangs'):
    workdir = bench.scratch / 'shared'
    shutil.rmtree(workdir, ignore_errors=True)
    first = bench.start(workdir)
    wait_for(first, 'first step' if words == 'hangs' else words)
    first.send_signal(signal.SIGSTOP)
    code, told = bench.run(workdir)
    holder = f'process {first.pid} on {socket.gethostname()}'
    faults = told_plainly(code, told, holder, str(workdir))
    if words == 'hangs':
      # Whoever is told of it ends it, and nothing stays locked.
      first.kill()
      jobs.finish(first)
    else:
      first.send_signal(signal.SIGCONT)
      ended, said = jobs.finish(first)
      faults += [f'the first: {jobs.error_line(said)}'] if ended else []
    faults += bench.again(workdir)
    detail = (
      'first hangs, is killed' if words == 'hangs' else f'after "{words}"'
    )
    yield Trial('second job', detail, code, jobs.error_line(told), faults)


def clock(bench: Bench) -> Iterator[Trial]:
  """time.time jumps at every call; files come from the future."""
  for seed in range(3):
    folder = bench.scratch / 'clock'
    folder.mkdir(exist_ok=True)
    (folder / 'sitecustomize.py').write_text(_CLOCK.format(seed=seed))
    workdir = bench.scratch / 'jumping'
    shutil.rmtree(workdir, ignore_errors=True)
    code, told = bench.run(
      workdir, PYTHONPATH=f'{folder}{os.pathsep}{jobs.ROOT}'
    )
    faults = [jobs.error_line(told)] if code else []
    faults += [f'differs: {n}' for n in jobs.differing(workdir, bench.whole)]
    seconds = _seconds(workdir)
    if not 0 < seconds < 3600:
      faults.append(f'{seconds} s of training')
    yield Trial('clock', 'jumps by days at every call', code, '', faults)
  for detail, offset in (('files of the future', _FUTURE), ('of 1970', None)):
    workdir = bench.copy('dated')
    _damage(max((workdir / 'checkpoints' / '120').rglob('*'), key=_size), 'cut')
    date = time.time() + offset if offset else 0.0
    for path in workdir.rglob('*'):
      os.utime(path, (date, date))
    code, told = bench.run(workdir)
    faults = [jobs.error_line(told)] if code else []
    if 'restored the checkpoint of step 100' not in told:
      faults.append('not from the checkpoint before')
    faults += bench.again(workdir)
    yield Trial('clock', detail, code, '', faults)


def _seconds(workdir: pathlib.Path) -> float:
  return json.loads((workdir / 'report.json').read_text())['train']['seconds']


def damaged(bench: Bench) -> Iterator[Trial]:
  """Files of a finished workdir, cut and with a bit flipped."""
  said: list[str] = []
  logging.basicConfig(level=logging.INFO, handlers=[_Keeping(said)], force=True)
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  like = _like(bench)
  yield from _damaged_checkpoints(bench, said, like)
  yield from _damaged_others(bench, said)


def _like(bench: Bench) -> Any:
  """A state of the small run's structure, as its own training asks for it."""
  from crosr_jax import checkpoint, pipeline

  found, restore = [], checkpoint.Checkpoints.restore

  def keep(self, like):
    found.append(like)
    return restore(self, like)

  checkpoint.Checkpoints.restore = keep
  try:
    workdir = bench.copy('like')
    pipeline.run(jobs.small_config(), 'digits', workdir, workdir)
  finally:
    checkpoint.Checkpoints.restore = restore
  return found[0]


def _damaged_checkpoints(
  bench: Bench, said: list[str], like: Any
) -> Iterator[Trial]:
  """Each file of the two newest checkpoints in turn.

  Those of the older one with the newest damaged too, since it is not read while
  that is whole. What is restored must be the checkpoint before, to the last
  bit; that a run which begins there ends as another is for kills.py.
  """
  for step, before in ((jobs.LAST_STEP, _BEFORE), (_BEFORE, _OLDEST)):
    workdir = bench.copy('hurt')
    for newer in {jobs.LAST_STEP, step}:
      shutil.rmtree(workdir / 'checkpoints' / str(newer))
    expected = _restored(workdir, like)
    names = [
      str(path.relative_to(bench.finished))
      for path in sorted((bench.finished / 'checkpoints').rglob('*'))
      if path.is_file()
      and path.relative_to(bench.finished).parts[1] == f'{step}'
    ]
    for name in (*names, f'digests/{step}.json'):
      for how in ('cut', 'flipped'):
        workdir = bench.copy('hurt')
        if not _damage(workdir / name, how):
          continue
        if step != jobs.LAST_STEP:
          newest = workdir / 'checkpoints' / str(jobs.LAST_STEP)
          _damage(max(newest.rglob('*'), key=_size), how)
        said.clear()
        found = _restored(workdir, like)
        about = [x for x in said if f'checkpoint {step} cannot be trusted' in x]
        faults = [] if about else ['nothing said']
        if found != expected:
          faults.append(f'restored is not checkpoint {before} as it was')
        yield Trial(
          f'checkpoint {how}: {"newest" if step > _BEFORE else "two newest"}',
          *(name, 0, about[0] if about else '', faults),
        )


def _restored(workdir: pathlib.Path, like: Any) -> tuple[dict, list[bytes]]:
  import jax
  import numpy as np

  from crosr_jax import checkpoint

  with checkpoint.Checkpoints(workdir, 3) as checkpoints:
    state, log = checkpoints.restore(like)
  return log, [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]


def _damaged_others(bench: Bench, said: list[str]) -> Iterator[Trial]:
  """All else in the workdir, and the whole job once more.

  What no run reads again is damaged all at once.
  """
  from crosr_jax import openset, pipeline, types

  read = ('weights.npz', 'fitted.npz', 'model.json', 'config.json')
  others = tuple(
    str(path.relative_to(bench.finished))
    for path in bench.finished.rglob('*')
    if path.is_file()
    and path.relative_to(bench.finished).parts[0]
    not in (*read, 'checkpoints', 'digests')
  )
  for names in (*((name,) for name in read), others):
    for how in ('cut', 'flipped'):
      workdir = bench.copy('hurt')
      for name in names:
        _damage(workdir / name, how)
      said.clear()
      faults, code = [], 0
      if names[0] in read[:3]:
        # First as predict, export and others meet it.
        try:
          openset.load(workdir)
          faults.append('read as if it were whole')
        except types.UserError as error:
          said.append(str(error))
      try:
        pipeline.run(jobs.small_config(), 'digits', workdir, workdir)
      except types.UserError as error:
        code = error.exit_code
        said.append(str(error))
        checkpoints = jobs.tree(workdir / 'checkpoints')
        if checkpoints != jobs.tree(bench.finished / 'checkpoints'):
          faults.append('an error, and checkpoints were changed')
      else:
        faults += [
          f'differs: {x}' for x in jobs.differing(workdir, bench.whole)
        ]
        faults += [f'left: {x}' for x in jobs.leftovers(workdir)]
      about = [x for x in said if any(word in x for word in _DAMAGE)]
      if not about and names != others:
        faults.append('nothing said')
      kind = 'what no run reads' if names == others else names[0]
      yield Trial(
        f'{how}: {kind}',
        *(', '.join(names), code, about[0] if about else '', faults),
      )


class _Keeping(logging.Handler):
  """Keeps what is logged."""

  def __init__(self, said: list[str]):
    super().__init__()
    self._said = said

  def emit(self, record: logging.LogRecord) -> None:
    self._said.append(record.getMessage())


def _damage(path: pathlib.Path, how: str) -> bool:
  """Whether there was anything to damage."""
  data = bytearray(path.read_bytes())
  if not data:
    return False
  if how == 'cut':
    data = data[: len(data) // 2]
  else:
    data[len(data) // 2] ^= 0x10
  path.write_bytes(data)
  return True


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size if path.is_file() else 0


ROOT_ALONE = {'disk_full': disk_full, 'read_only': read_only}
ANYBODY = {
  'deleted': deleted,
  'two_jobs': two_jobs,
  'clock': clock,
  'damaged': damaged,
}


def tables(trials: list[Trial], skipped: list[str]) -> str:
  """What was tried and survived; what was said, each once."""
  rows = []
  for fault in dict.fromkeys(trial.fault for trial in trials):
    found = [t for t in trials if t.fault == fault]
    survived = sum(not t.faults for t in found)
    codes = sorted({t.code for t in found})
    rows.append([
      *(fault, len(found), survived, len(found) - survived),
      ', '.join(map(str, codes)),
    ])  # fmt: skip
  rows += [[name, 0, 'skipped: not root', '', ''] for name in skipped]
  said = {(t.fault.split(': ')[0], t.said): None for t in trials if t.said}
  lost = [[t.fault, t.detail, '; '.join(t.faults)] for t in trials if t.faults]
  parts = [
    jobs.table(['fault', 'tried', 'survived', 'lost', 'exit codes'], rows),
    jobs.table(['fault', 'said'], list(said)),
  ]
  if lost:
    parts.append(jobs.table(['lost', 'trial', 'why'], lost))
  return '\n\n'.join(parts)


def main() -> None:
  """Tries and prints."""
  every = ROOT_ALONE | ANYBODY
  parser = jobs.parser(__doc__, 'faults.json')
  parser.add_argument(
    '--only', default=','.join(every), help='some of them, between commas'
  )
  arguments = parser.parse_args()
  scratch = arguments.scratch
  chosen, is_root = arguments.only.split(','), os.getuid() == 0
  if unknown := set(chosen) - set(every):
    parser.error(
      f'--only: no {", ".join(unknown)}; there are {", ".join(every)}'
    )
  skipped = [n for n in chosen if n in ROOT_ALONE and not is_root]
  bench = Bench(scratch)
  trials: list[Trial] = []
  with tqdm.tqdm(desc='trials') as bar:
    for name in chosen:
      if name in skipped:
        continue
      for trial in every[name](bench):
        trials.append(trial)
        bar.update()
        jobs.write(
          arguments.output,
          {'trials': [t._asdict() for t in trials], 'skipped': skipped},
        )
  print(tables(trials, skipped))


if __name__ == '__main__':
  main()
