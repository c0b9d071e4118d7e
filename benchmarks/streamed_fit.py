"""The streamed fit against two passes that only read and sum.

  python benchmarks/streamed_fit.py --rows=100000,300000,1000000

K = 1,000 classes, logits and a code of 512: one block of memory, given again
and again with its code beginning elsewhere, so that it is the fit that is
measured and no disk. 'two passes' adds up the arrays of every block twice.
Memory is the peak of the process, in a process of its own for each size; with a
count as tail it must be flat, with a share linear in the share.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
import timing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from crosr_jax import types, weibull

_CLASSES, _LATENT, _BLOCK = 1000, 512, 10_000
TAILS = {'tail 20': {'tail_size': 20}, 'tail 5 %': {'tail_share': 0.05}}


def main() -> None:
  """Measures and prints."""
  parser = timing.parser(__doc__)
  parser.add_argument(
    '--rows', type=timing.numbers(_BLOCK), default='100000,300000,1000000'
  )
  parser.add_argument('--case', default='', help='(of the inner process)')
  arguments = parser.parse_args()
  if arguments.case:
    print(json.dumps(_one(arguments.case, *arguments.rows)))
    return
  tables = {}
  for rows in arguments.rows:
    title = f'{rows:,} rows'
    tables[title] = _measured(rows, arguments.repeats)
    timing.show(title, tables[title], 1.0)
  timing.write(arguments.output, tables)


def _measured(rows: int, repeats: int) -> list[timing.Row]:
  """In turns, each time in a process of its own."""
  found = {case: [] for case in ('two passes', *TAILS)}
  for _ in range(repeats):
    for case, taken in found.items():
      done = subprocess.run(
        [sys.executable, __file__, f'--rows={rows}', f'--case={case}'],
        check=True,
        stdout=subprocess.PIPE,
      )
      taken.append(json.loads(done.stdout))
  return timing.rows(
    {case: [x['seconds'] for x in taken] for case, taken in found.items()},
    {
      case: f'peak {max(x["peak_mib"] for x in taken):.0f} MiB'
      for case, taken in found.items()
    },
  )


def _one(case: str, rows: int) -> dict[str, float]:
  rng = np.random.default_rng(0)
  label = rng.permutation(np.arange(_BLOCK) % _CLASSES).astype(np.int32)
  logits = rng.normal(size=(_BLOCK, _CLASSES)).astype(np.float32)
  logits[np.arange(_BLOCK), label] += 12.0
  count = rows // _BLOCK
  numbers = rng.normal(size=_BLOCK * _LATENT + count).astype(np.float32)

  def blocks():
    for i in range(count):
      # A view that begins elsewhere: no two blocks have the same distances.
      latent = numbers[i : i + _BLOCK * _LATENT].reshape(_BLOCK, _LATENT)
      yield types.Features(logits, latent, label)

  start = time.perf_counter()
  if case == 'two passes':
    for _ in range(2):
      for x in blocks():
        x.logits.sum()
        x.latent.sum()
  else:
    weibull.fit_stream(blocks, vector='joint', **TAILS[case])
  seconds = time.perf_counter() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return {'seconds': seconds, 'peak_mib': peak}


if __name__ == '__main__':
  main()
