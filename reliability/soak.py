"""Does the same again and again in one process: memory and open files stay.

  python reliability/soak.py --scratch=FOLDER --jobs=50 --predictions=200

The digits job with few steps, each in a workdir of its own, then predictions of
one loaded model. Anonymous memory and open files are read from /proc, so
this is for Linux.
"""

import gc
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jobs
import numpy as np
import tqdm

# Rounds in which caches may still fill.
_WARM_UP = 5


class Row(NamedTuple):
  """After one round."""

  own_mib: float  # of no file: others the system takes back as it likes
  files: int
  seconds: float


def soak(
  title: str,
  rounds: int,
  work: Callable[[int], None],
  keep: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
  """Works `rounds` times and looks after each; `keep` gets what there is."""
  rows = []
  for i in tqdm.trange(rounds, desc=title):
    begin = time.monotonic()
    work(i)
    seconds = time.monotonic() - begin
    # What is only waiting to be collected is no leak.
    gc.collect()
    rows.append(Row(_own_mib(), len(os.listdir('/proc/self/fd')), seconds))
    keep(rows)
  return rows


def _own_mib() -> float:
  status = pathlib.Path('/proc/self/status').read_text()
  (line,) = (x for x in status.splitlines() if x.startswith('RssAnon:'))
  return int(line.split()[1]) / 1024


def growth(rows: list[Row]) -> float:
  """MiB a round after warm-up, by least squares."""
  own = [row.own_mib for row in rows[_WARM_UP:]]
  return float(np.polyfit(range(len(own)), own, 1)[0])


def table(found: dict[str, list[Row]]) -> str:
  """First, after warm-up, last."""
  lines = []
  for name, rows in found.items():
    for told, row in (
      ('first', rows[0]),
      (f'after {_WARM_UP}', rows[_WARM_UP - 1]),
      (f'last, {len(rows)}', rows[-1]),
    ):
      lines.append([name, told, f'{row.own_mib:.0f}', row.files])
    lines.append([name, 'a round', f'{growth(rows):+.2f}', ''])
  return jobs.table(['', 'round', 'memory, MiB', 'open files'], lines)


def main() -> None:
  """Soaks and prints."""
  parser = jobs.parser(__doc__, 'soak.json')
  parser.add_argument('--jobs', type=int, default=50)
  parser.add_argument('--predictions', type=int, default=200)
  arguments = parser.parse_args()
  if min(arguments.jobs, arguments.predictions) <= _WARM_UP + 1:
    parser.error(f'more than {_WARM_UP + 1} rounds are needed')
  if not sys.platform.startswith('linux'):
    parser.error('memory and open files are read from /proc: Linux alone')
  scratch = arguments.scratch
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(scratch / 'cache')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  from crosr_jax import openset, pipeline

  config, workdir = jobs.small_config(), scratch / 'soak'

  def job(_: int) -> None:
    shutil.rmtree(workdir, ignore_errors=True)
    pipeline.run(config, 'digits', workdir, workdir)

  found: dict[str, list[Row]] = {}

  def keep(name: str) -> Callable[[list[Row]], None]:
    def write(rows: list[Row]) -> None:
      found[name] = rows
      # Written at once: a long measurement may be stopped.
      told = {k: [r._asdict() for r in rows] for k, rows in found.items()}
      jobs.write(arguments.output, {'rows': told})

    return write

  soak('jobs', arguments.jobs, job, keep('jobs'))
  model = openset.load(workdir)
  generator = np.random.default_rng(0)

  def predict(i: int) -> None:
    # Other numbers of images each time, as a service meets them.
    shape = (1 + i % 7, *model.image_shape)
    model(generator.integers(0, 256, shape, np.uint8))

  soak('predictions', arguments.predictions, predict, keep('predictions'))
  print(table(found))


if __name__ == '__main__':
  main()
