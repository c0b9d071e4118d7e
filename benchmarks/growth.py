"""How fit and score grow with samples, classes and width.

  python benchmarks/growth.py --picture=growth.png

From N = 16,000, K = 100, D = 1,000 one of them grows at a time. Each point is
the median of the rounds, and the peak of memory that it took beside its
features (tracemalloc: what NumPy holds, not XLA). The table has the slope of
the last doublings on log axes: 1 is a straight line through the origin.
"""

import pathlib
import sys
import tracemalloc

import numpy as np
import timing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from crosr_jax import scorer, types, weibull

_BASE = {'N': 16_000, 'K': 100, 'D': 1000}
_STEPS = {
  'N': (4000, 8000, 16_000, 32_000, 64_000),
  'K': (50, 100, 200, 400, 800),
  'D': (250, 500, 1000, 2000, 4000),
}
_QUANTITIES = ('fit, s', 'score, s', 'fit, MiB', 'score, MiB')


def main() -> None:
  """Measures, prints and draws."""
  parser = timing.parser(__doc__)
  parser.add_argument(
    '--picture', type=timing.writable, default='', help='PNG file'
  )
  arguments = parser.parse_args()
  curves, slopes = {}, {}
  for axis, values in _STEPS.items():
    points = [
      _point(arguments.repeats, **(_BASE | {axis: value})) for value in values
    ]
    curves[axis] = {q: [p[q] for p in points] for q in _QUANTITIES}
    # Where fixed costs no longer count.
    x = np.log(values[-3:])
    slopes[axis] = {
      q: float(np.polyfit(x, np.log(y[-3:]), 1)[0])
      for q, y in curves[axis].items()
    }
  print(f'{"slope":>8}', *(f'{q:>12}' for q in _QUANTITIES))
  for axis, found in slopes.items():
    print(f'{axis:>8}', *(f'{found[q]:12.2f}' for q in _QUANTITIES))
  if arguments.picture:
    _draw(curves, slopes, arguments.picture)
  timing.write(arguments.output, {}, curves=curves, slopes=slopes)


def _point(repeats: int, **size: int) -> dict[str, float]:
  count, num_classes, width = size['N'], size['K'], size['D']
  rng = np.random.default_rng(0)
  label = np.arange(count, dtype=np.int32) % num_classes
  logits = rng.normal(size=(count, num_classes)).astype(np.float32)
  logits[np.arange(count), label] += 12.0
  latent = rng.normal(size=(count, max(width - num_classes, 0)))
  features = types.Features(logits, latent.astype(np.float32), label)
  model = weibull.fit(features, tail_size=20)
  cases = {
    'fit': lambda: weibull.fit(features, tail_size=20),
    'score': lambda: scorer.score(features, model),
  }
  rows = timing.interleaved(cases, repeats)
  found = {f'{row.name}, s': row.median for row in rows}
  for name, case in cases.items():
    tracemalloc.start()
    case()
    found[f'{name}, MiB'] = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
  told = ', '.join(f'{k} = {v:,}' for k, v in size.items())
  print(told, *(f'{q} {found[q]:.3f}' for q in _QUANTITIES), sep='  ')
  return found


def _draw(curves, slopes, path) -> None:
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot as plt
  from matplotlib import ticker

  figure, axes = plt.subplots(2, 3, figsize=(10, 6), sharey='row')
  for column, (axis, found) in enumerate(curves.items()):
    for row, unit in enumerate(('s', 'MiB')):
      panel = axes[row, column]
      for name, marker in (('fit', 'o'), ('score', 's')):
        key = f'{name}, {unit}'
        panel.loglog(
          _STEPS[axis],
          found[key],
          marker=marker,
          label=f'{name}, slope {slopes[axis][key]:.2f}',
        )
      panel.set_xticks(_STEPS[axis], [f'{x:,}' for x in _STEPS[axis]])
      panel.xaxis.set_minor_locator(ticker.NullLocator())
      panel.set_xlabel(axis)
      panel.grid(alpha=0.3)
      panel.legend(frameon=False)
    axes[0, column].set_title(f'{axis} grows')
  axes[0, 0].set_ylabel('seconds')
  axes[1, 0].set_ylabel('MiB beside the features')
  figure.tight_layout()
  figure.savefig(path, dpi=110)


if __name__ == '__main__':
  main()
