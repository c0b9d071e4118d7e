"""Weibull tails from raw distances: ours against what others use.

  python benchmarks/weibull_fit.py

K classes of n distances each; the largest of each are fitted. The note is how
far a peer's distribution functions are from ours, at most, on those distances.
pytorch-ood shifts tails by 10,000 where LibMR and we shift by 1, so its
functions are others. A peer that takes longer than --longest seconds is left
out, and said so.
"""

import contextlib
import functools
import os
import pathlib
import sys
import time

import numpy as np
import scipy.stats
import timing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from crosr_jax import weibull

# K, n, tail.
CASES = (
  (10, 5000, 20),
  (10, 5000, 1000),
  (1000, 1300, 20),
  (1000, 1300, 1000),
  (20_000, 1300, 20),
  (20_000, 1300, 1000),
)


def main() -> None:
  """Measures and prints."""
  parser = timing.parser(__doc__)
  parser.add_argument('--longest', type=float, default=20.0, help='seconds')
  arguments = parser.parse_args()
  tables = {}
  for num_classes, count, tail in CASES:
    distance = np.abs(
      np.random.default_rng(0).normal(5.0, 1.0, (num_classes, count))
    )
    title = f'K = {num_classes:,}, n = {count:,}, tail {tail:,}'
    cases, notes, left_out = {}, {}, []
    ours = weibull.fit_tails(distance, tail_size=tail)
    for name, fit in _peers().items():
      # A hundredth of the classes tells how long all of them would take.
      some = distance[: max(10, num_classes // 100)]
      fit(some[:2], tail)
      start = time.perf_counter()
      found = fit(some, tail)
      taken = (time.perf_counter() - start) * num_classes / len(some)
      largest = _largest(some, tail).T
      expected = weibull.cdf(largest, *(x[: len(some)] for x in ours))
      away = np.abs(weibull.cdf(largest, *found) - expected).max()
      notes[name] = f'cdf differs by {away:.0e}'
      if name != 'ours' and taken > arguments.longest:
        left_out.append(f'{name}: about {taken:.0f} s')
        continue
      cases[name] = lambda fit=fit, x=distance, tail=tail: fit(x, tail)
    rows = timing.interleaved(cases, arguments.repeats, notes)
    timing.show(title, rows)
    for line in left_out:
      print(f'left out, {line}')
    tables[title] = rows
  timing.write(arguments.output, tables)


def _peers():
  """[K, n] distances and a tail size -> shape, loc, scale, by name."""
  peers = {
    'ours': lambda x, tail: weibull.fit_tails(x, tail_size=tail),
    'scipy weibull_min.fit': _scipy,
  }
  with contextlib.suppress(ImportError):
    import libmr

    peers['libmr fit_high'] = functools.partial(_libmr, libmr)
  with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(os.cpu_count())
    peers['torch, batched Newton'] = functools.partial(_torch, torch)
  with contextlib.suppress(ImportError):
    from pytorch_ood.detector.openmax import libnotmr

    peers['pytorch-ood'] = functools.partial(_pytorch_ood, libnotmr)
  return peers


def _largest(x: np.ndarray, tail: int) -> np.ndarray:
  return np.partition(x, x.shape[1] - tail, axis=1)[:, -tail:]


def _scipy(x, tail):
  found = []
  for row in _largest(x, tail):
    shape, _, scale = scipy.stats.weibull_min.fit(row - row.min() + 1, floc=0)
    found.append((shape, row.min() - 1, scale))
  return np.array(found).T


def _libmr(libmr, x, tail):
  found = []
  for row in x:
    model = libmr.MR()
    model.fit_high(row, tail)
    scale, shape, _, translate, least = model.get_params()
    found.append((shape, least - translate, scale))
  return np.array(found).T


def _torch(torch, x, tail):
  """As one would write it: Newton on the profile likelihood, float64."""
  largest = torch.topk(torch.from_numpy(x), tail, dim=1).values
  value = largest - largest[:, -1:] + 1.0
  log = value.log()
  mean = log.mean(dim=1)
  k = 1.2 / log.std(dim=1)
  for _ in range(50):
    power = value.pow(k[:, None])
    total = power.sum(dim=1)
    first = (power * log).sum(dim=1) / total
    second = (power * log * log).sum(dim=1) / total
    step = (first - 1.0 / k - mean) / (second - first * first + 1.0 / (k * k))
    k = (k - step).clamp(min=1e-6)
    if bool((step.abs() <= 1e-12 * k).all()):
      break
  scale = value.pow(k[:, None]).mean(dim=1).pow(1.0 / k)
  return k.numpy(), (largest[:, -1] - 1.0).numpy(), scale.numpy()


def _pytorch_ood(libnotmr, x, tail):
  found = []
  for row in x:
    model = libnotmr.LibNotMR(tailsize=tail)
    model.fit_high(row)
    found.append((model.c, model.min_val - model.translation, model.scale))
  return np.array(found).T


if __name__ == '__main__':
  main()
