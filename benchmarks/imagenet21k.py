"""Fit and scores of as many classes as ImageNet-21k has: time and memory.

  python benchmarks/imagenet21k.py --output=FILE

K = 21,841 classes, logits and a code of 1,000: D = 22,841. The fit is streamed,
as features of that many images do not lie in memory: --rows of them, in blocks
that are views of the same numbers, each beginning elsewhere. Then 1,000 samples
are scored with what was fitted. One process: what the fit took before is in the
peak of the scores. The class means, which are the result, are 3.72 GiB in
float64 and half of that in float32, as scores take them; the whole takes less
than 12 GiB.
"""

import pathlib
import resource
import sys
import time
import warnings

import numpy as np
import timing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from crosr_jax import scorer, types, weibull

CLASSES, LATENT, BLOCK, SCORED = 21_841, 1_000, 500, 1_000


def main() -> None:
  """Measures, prints, and writes where it is asked to."""
  parser = timing.parser(__doc__, rounds=False)
  parser.add_argument(
    '--rows', type=int, default=3 * CLASSES, help='samples that are fitted'
  )
  parser.add_argument(
    '--vector', choices=('joint', 'evidence'), default='joint'
  )
  arguments = parser.parse_args()
  found = measured(arguments.rows, arguments.vector)
  for name, row in found['cases'].items():
    print(
      f'{name:10} {row["seconds"]:8.1f} s, peak so far '
      f'{row["peak_gib"]:.2f} GiB, {row["count"]:,} samples'
    )
  print(f'class means {found["means_gib"]:.2f} GiB in float64')
  timing.save(arguments.output, found)


def measured(
  rows: int,
  vector: str,
  classes: int = CLASSES,
  latent: int = LATENT,
  block: int = BLOCK,
  scored: int = SCORED,
) -> dict:
  """Seconds and peak of memory of the fit, then of the scores."""
  rng = np.random.default_rng(0)
  width = classes + latent
  numbers = rng.standard_normal(block * width + rows, dtype=np.float32)

  def blocks():
    for start in range(0, rows, block):
      count = min(block, rows - start)
      a = numbers[start : start + count * width].reshape(count, width).copy()
      label = np.arange(start, start + count) % classes
      # Far from all others, so that every sample is classified right.
      a[np.arange(count), label] += 20
      yield features(a, label)

  def features(a, label):
    # Any positive number does for the reconstruction error.
    error = np.exp(a[:, classes])
    return types.Features(a[:, :classes], a[:, classes:], label, error)

  cases, start = {'begin': row(0.0, 0)}, time.perf_counter()
  with warnings.catch_warnings():
    # Classes have fewer samples than a tail asks for.
    warnings.simplefilter('ignore')
    model = weibull.fit_stream(
      blocks, vector=vector, scaling='within_class', tail_size=20
    )
  cases['fit'] = row(time.perf_counter() - start, rows)
  a = rng.standard_normal((scored, width), dtype=np.float32)
  label = np.arange(scored) % classes
  a[np.arange(scored), label] += 20
  start = time.perf_counter()
  scores = scorer.score(features(a, label), model)
  cases['score'] = row(time.perf_counter() - start, scored)
  assert scores.probability.shape == (scored, classes + 1)
  assert np.isfinite(scores.unknown_score).all()
  return {
    'classes': classes,
    'width': width,
    'vector': vector,
    'means_gib': model.mav.nbytes / 2**30,
    'cases': cases,
  }


def row(seconds: float, count: int) -> dict:
  """One case; the peak is of the process so far."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  return {'seconds': seconds, 'count': count, 'peak_gib': peak}


if __name__ == '__main__':
  main()
