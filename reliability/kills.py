"""Kills small runs at random moments, and starts the same command again.

  python reliability/kills.py --scratch=FOLDER --kills=100

SIGKILL and SIGTERM in turn, aimed at each stage of a run in turn; each run is a
process of its own, and the real command. It survives where the command, started
again, ends with the weights, fitted model, features, training history and
report (all but its times) of a run that was not killed, to the last bit; where
no file lay half-written under its own name after the kill; and where nothing is
left aside in the end. A run that ended before its moment is killed once more.
"""

import concurrent.futures
import pathlib
import shutil
import signal
import statistics
import subprocess
import threading
import time
from typing import Any, NamedTuple

import jobs
import numpy as np
import small_mnist
import tqdm

# Those in which files are written oftener than the others.
STAGES = (
  'start', 'training', 'checkpoint', 'fit', 'writing', 'prepare',
  'training', 'checkpoint', 'report', 'writing', 'export',
)  # fmt: skip
# What 'writing' waits for, one at random: that it is begun.
_FILES = (
  'weights.npz', 'fitted.npz', 'features.npz', 'model.json', 'report.json',
  'report.md', 'report.html',
)  # fmt: skip
_SIGNALS = (signal.SIGKILL, signal.SIGTERM)
_POLL = 0.002  # seconds


class Kill(NamedTuple):
  """One kill, and what came of it."""

  number: int
  stage: str  # aimed at
  signal: str
  delay: float  # seconds after the stage began
  said_last: str  # before the signal
  seconds: float  # from the signal to the end of the process
  code: int
  saved_first: bool  # SIGTERM in the steps of a training
  half_written: list[str]
  differing: list[str]  # of the run in the end
  leftovers: list[str]
  again: str  # '' or what the second run died of

  @property
  def survived(self) -> bool:
    """Whether nothing was lost."""
    return not (
      self.half_written or self.differing or self.leftovers or self.again
    )


class Watched:
  """A command that is watched while it runs."""

  def __init__(self, process: subprocess.Popen):
    self.process = process
    self.lines: list[tuple[float, str]] = []  # time, line
    self._reader = threading.Thread(target=self._read)
    self._reader.start()

  def _read(self) -> None:
    for line in self.process.stdout:
      self.lines.append((time.monotonic(), line.rstrip()))

  def wait(self) -> int:
    """Exit code, when all is read."""
    self.process.wait()
    self._reader.join()
    return jobs.code(self.process)

  def when(self, words: str) -> float | None:
    """When a line with these words came; None = not yet."""
    return next((t for t, line in self.lines if words in line), None)


class Commands:
  """The commands that are killed, and how they end when they are not."""

  def __init__(self, scratch: pathlib.Path):
    self._scratch = scratch
    # Fills the cache, and makes the raw files.
    self._unkilled('prepare', scratch / 'warm')
    self._unkilled('fit', scratch / 'warm')
    self.lengths: dict[str, float] = {}
    self.whole: dict[str, Any] = {}
    for stage in ('fit', 'export', 'prepare'):
      self._measure(stage)

  def start(self, stage: str, folder: pathlib.Path) -> Watched:
    """The command that has this stage, writing below a folder."""
    scratch = self._scratch
    if stage == 'prepare':
      command = [
        str(pathlib.Path(__file__).with_name('small_mnist.py')),
        *(str(scratch / 'raw'), 'mnist'),
        *(f'--manual_dir={scratch / "raw"}', f'--data_dir={folder}'),
      ]
    elif stage == 'export':
      command = ['-m', 'crosr_jax.export', f'--output={folder / "x.jaxexport"}']
      command.append(f'--workdir={scratch / "fit_whole"}')
    else:
      command = jobs.job(folder)
    folder.mkdir(exist_ok=True)
    return Watched(jobs.start(scratch, *command))

  def has_begun(self, stage: str, folder: pathlib.Path, run: Watched, nth: int):
    """Whether a stage has; `nth` = which checkpoint or file."""
    if stage in ('start', 'export'):
      return True
    if stage == 'training':
      return run.when('first step after')
    if stage == 'checkpoint':
      steps = [p.name for p in folder.glob('checkpoints/*')]
      return any(name.startswith(f'{20 * nth}') for name in steps)
    if stage == 'writing':
      name = _FILES[nth]
      return (folder / name).exists() or any(folder.glob(f'.{name}.*'))
    if stage == 'prepare':
      return any(folder.glob('crosr_jax/mnist/incomplete.*'))
    words = {'fit': 'fitting and scoring', 'report': 'writing the report'}
    return run.when(words[stage])

  def result(self, stage: str, folder: pathlib.Path) -> Any:
    """What it made, times left out."""
    if stage == 'prepare':
      return small_mnist.found(self._scratch / 'raw', folder)
    return jobs.tree(folder) if stage == 'export' else jobs.result(folder)

  def differing(self, stage: str, folder: pathlib.Path) -> list[str]:
    """What is not as without a kill."""
    if stage not in ('prepare', 'export'):
      return jobs.differing(folder, self.whole['fit'])
    found, whole = self.result(stage, folder), self.whole[stage]
    return [k for k in found | whole if found.get(k) != whole.get(k)]

  def _unkilled(
    self, stage: str, folder: pathlib.Path
  ) -> tuple[Watched, float]:
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.monotonic()
    run = self.start(stage, folder)
    if run.wait():
      raise RuntimeError('\n'.join(line for _, line in run.lines))
    return run, begin

  def _measure(self, stage: str) -> None:
    """Seconds of the stages, and the result."""
    folder = self._scratch / f'{stage}_whole'
    run, begin = self._unkilled(stage, folder)
    end = time.monotonic()
    self.whole[stage] = self.result(stage, folder)
    if stage == 'fit':
      step, fit, report = map(
        run.when, ('first step', 'fitting and scoring', 'writing the report')
      )
      written = folder / 'report.html'
      self.lengths |= {
        'start': step - begin,
        'training': fit - step,
        'fit': report - fit,
        'report': max(
          0.05, written.stat().st_mtime - time.time() + end - report
        ),
        'checkpoint': (fit - step) / 12,
        # From mkstemp to the rename.
        'writing': 0.01,
      }
    elif stage == 'export':
      self.lengths['export'] = end - begin
    else:
      self.lengths['prepare'] = min(1.5, (end - begin) / 3)


def aim(number: int) -> tuple[str, signal.Signals]:
  """Of a kill; both signals meet every stage, since STAGES are odd."""
  return STAGES[number % len(STAGES)], _SIGNALS[number % 2]


def kill(commands: Commands, scratch: pathlib.Path, number: int, seed: int):
  """One kill, and the same command again."""
  stage, sent = aim(number)
  for attempt in range(20):
    generator = np.random.default_rng([seed, number, attempt])
    delay = float(generator.uniform(0, commands.lengths[stage]))
    nth = int(generator.integers(1, 7))
    if stage == 'writing':
      nth = number // len(STAGES) % len(_FILES)
    folder = scratch / f'{number}'
    shutil.rmtree(folder, ignore_errors=True)
    run = commands.start(stage, folder)
    while run.process.poll() is None:
      if commands.has_begun(stage, folder, run, nth):
        break
      time.sleep(_POLL)
    time.sleep(delay)
    said = run.lines[-1][1] if run.lines else ''
    begin = time.monotonic()
    if run.process.poll() is not None:
      run.wait()
      continue
    run.process.send_signal(sent)
    code = run.wait()
    seconds = time.monotonic() - begin
    if code:
      break
  else:
    raise RuntimeError(f'kill {number} in {stage} always came too late')
  half_written = jobs.half_written(folder)
  is_saved = sent == signal.SIGTERM and _is_saved(run, folder)
  again = commands.start(stage, folder)
  failed = again.wait()
  found = Kill(
    number,
    stage,
    sent.name,
    delay,
    said,
    seconds,
    code,
    is_saved,
    half_written,
    commands.differing(stage, folder) if not failed else [],
    jobs.leftovers(folder),
    '\n'.join(line for _, line in again.lines[-5:]) if failed else '',
  )
  if found.survived:
    shutil.rmtree(folder)
  return found


def _is_saved(run: Watched, folder: pathlib.Path) -> bool:
  """Whether a training that was asked to end saved its very last step."""
  last = folder / 'digests' / f'{jobs.LAST_STEP}.json'
  is_in_training = not run.when('fitting and scoring')
  return bool(run.when('asked to end: saved')) or (
    is_in_training and last.exists()
  )


def tables(kills: list[Kill]) -> str:
  """What was tried and survived, and how long SIGTERM took."""
  rows, graces = [], []
  for stage in dict.fromkeys(STAGES):
    for sent in _SIGNALS:
      found = [k for k in kills if (k.stage, k.signal) == (stage, sent.name)]
      survived = sum(k.survived for k in found)
      rows.append(
        [stage, sent.name, len(found), survived, len(found) - survived]
      )
    if taken := [k.seconds for k in found]:
      graces.append([
        *(stage, len(taken), sum(k.saved_first for k in found)),
        *(f'{x:.2f}' for x in (statistics.median(taken), max(taken))),
      ])  # fmt: skip
  survived = sum(k.survived for k in kills)
  rows.append(['all', '', len(kills), survived, len(kills) - survived])
  return '\n\n'.join([
    jobs.table(['killed in', 'by', 'tried', 'survived', 'lost'], rows),
    jobs.table(
      ['SIGTERM in', 'tried', 'saved first', 'median s', 'largest s'], graces
    ),
  ])  # fmt: skip


def main() -> None:
  """Kills and prints."""
  parser = jobs.parser(__doc__, 'kills.json')
  parser.add_argument('--kills', type=jobs.positive, default=100)
  parser.add_argument(
    '--first', type=int, default=0, help='number of the first'
  )
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  parser.add_argument(
    '--jobs', type=jobs.positive, default=1, help='runs at a time'
  )
  arguments = parser.parse_args()
  scratch = arguments.scratch
  commands = Commands(scratch)
  kills: list[Kill] = []
  numbers = range(arguments.first, arguments.first + arguments.kills)
  with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
    started = [
      pool.submit(kill, commands, scratch, number, arguments.seed)
      for number in numbers
    ]
    for done in tqdm.tqdm(
      concurrent.futures.as_completed(started), 'kills', len(started)
    ):
      kills.append(done.result())
      # Written at once: a long measurement may itself be killed.
      jobs.write(
        arguments.output,
        {
          'seed': arguments.seed,
          'lengths': commands.lengths,
          'kills': [k._asdict() | {'survived': k.survived} for k in kills],
        },
      )
  print(tables(kills))


if __name__ == '__main__':
  main()
