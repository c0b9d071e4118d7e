"""Open-set scores of features: ours, NumPy, and what the matmul alone takes.

  python benchmarks/scoring.py

N samples, K classes, logits and codes together of width D. The vectorised NumPy
version has the same formula with its distances by one matmul: on the model as
it is fitted, in float64, and on one that was brought to float32 before; its
probabilities are compared with ours first. 'one by one' is the formula in a
loop over samples, as OpenOOD and others have it, for 100 samples and scaled up,
and so is pytorch-ood's OpenMax, which reads the logits alone. Both are left out
of K = 20,000, where each sample takes them copies of all class means.

Beside ours stands by how much it raised the peak of the process's memory. With
K = 20,000 the class means in float64 are 3.1 GiB, and all cases together take
7 GiB and, on two cores, five minutes.
"""

import contextlib
import pathlib
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from crosr_jax import scorer, types

# N, K, D.
CASES = ((10_000, 10, 106), (10_000, 1000, 1512), (1000, 20_000, 20_512))
_ONE_BY_ONE = 100


def main() -> None:
  """Measures and prints."""
  arguments = timing.parser(__doc__).parse_args()
  tables = {}
  for size in CASES:
    title = 'N = {:,}, K = {:,}, D = {:,}'.format(*size)
    tables[title] = _measured(*size, arguments.repeats)
    timing.show(title, tables[title])
  timing.write(arguments.output, tables)


def _measured(
  count: int, num_classes: int, width: int, repeats: int
) -> list[timing.Row]:
  features, model = made(count, num_classes, width)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  ours = scorer.score(features, model)
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  a = np.concatenate([features.logits, features.latent], axis=1)
  as_fitted = model[2:6]
  # One copy in float32, for NumPy and the matmul.
  mav = jax.device_put(model.mav.astype(np.float32))
  fitted = [np.asarray(mav), *(x.astype(np.float32) for x in as_fitted[1:])]
  theirs = in_numpy(features.logits, a, *fitted)
  away = np.abs(theirs - ours.probability).max()
  cases = {
    'ours': lambda: scorer.score(features, model),
    'NumPy, vectorised': lambda: in_numpy(features.logits, a, *as_fitted),
    'NumPy, all in float32': lambda: in_numpy(features.logits, a, *fitted),
    'bare matmul': bare_matmul(a, mav),
  }
  parts = {'class means': mav.nbytes, 'result': ours.probability.nbytes}
  told = ', '.join(f'{k} {v / 2**20:.0f}' for k, v in parts.items())
  notes = {
    'ours': f'grew by {grown / 1024:.0f} MiB; in float32: {told}',
    'NumPy, all in float32': f'probabilities differ by {away:.0e}',
  }
  rows = timing.interleaved(cases, repeats, notes)
  if num_classes <= 1000:
    rows += _one_by_one(features, a, model, fitted, rows[0].median)
  return rows


def made(count, num_classes, width):
  """Features of samples near their class, and a model of it."""
  rng = np.random.default_rng(0)
  # Row by row: what is made on the way would hide what scoring takes.
  mav = np.empty((num_classes, width))
  for k, row in enumerate(mav):
    row[:] = rng.standard_normal(width, np.float32)
    row[k] += 10
  label = rng.integers(0, num_classes, count).astype(np.int32)
  a = np.empty((count, width), np.float32)
  for row, k in zip(a, label, strict=True):
    row[:] = mav[k] + 0.5 * rng.standard_normal(width, np.float32)
  # About where the distances of the own class lie.
  usual = 0.5 * np.sqrt(width)
  model = types.WeibullModel(
    vector='joint',
    feature_scale=np.ones(width),
    mav=mav,
    shape=rng.uniform(1.5, 4.0, num_classes),
    loc=np.full(num_classes, usual - 1.0),
    scale=rng.uniform(1.0, 2.0, num_classes),
    tail_count=np.full(num_classes, 20),
    dead=np.zeros(width, bool),
  )
  features = types.Features(a[:, :num_classes], a[:, num_classes:], label)
  return features, model


def in_numpy(logits, a, mav, shape, loc, scale):
  """CROSR's formula on [N, K] distances, as one would write it in NumPy."""
  square = (
    np.square(a).sum(axis=1)[:, None]
    - 2 * a @ mav.T
    + np.einsum('kd,kd->k', mav, mav)[None]
  )
  distance = np.sqrt(np.maximum(square, 0))
  z = np.maximum((distance - loc) / scale, 0)
  w = 1 - np.exp(-(z**shape))
  closed = np.exp(logits - logits.max(axis=1, keepdims=True))
  closed /= closed.sum(axis=1, keepdims=True)
  unknown = (closed * w).sum(axis=1, keepdims=True)
  return np.concatenate([closed * (1 - w), unknown], axis=1)


def bare_matmul(a, mav):
  """The product that distances need, of arrays that XLA holds."""
  product = jax.jit(
    lambda a, mav: jnp.matmul(mav, a.T, precision=jax.lax.Precision.HIGHEST)
  )
  a = jnp.asarray(a)
  return lambda: product(a, mav).block_until_ready()


def _one_by_one(features, a, model, fitted, first):
  """Rows of what loops over samples."""
  mav, shape, loc, scale = fitted

  def loop():
    for x, y in zip(a[:_ONE_BY_ONE], features.logits, strict=False):
      distance = np.linalg.norm(x - mav, axis=1)
      w = 1 - np.exp(-(np.maximum((distance - loc) / scale, 0) ** shape))
      closed = np.exp(y - y.max())
      closed /= closed.sum()
      np.append(closed * (1 - w), (closed * w).sum())

  cases = {'NumPy, one by one': loop}
  with contextlib.suppress(ImportError):
    from pytorch_ood.detector.openmax import numpy as peer

    # It loops over classes in Python too; of more than 100 it takes the first.
    few = features.logits[:_ONE_BY_ONE, :100]
    openmax = peer.OpenMax(tailsize=20)
    openmax.n_dims = few.shape[1]
    openmax.alpha = min(10, few.shape[1])
    for k in range(few.shape[1]):
      openmax.centers[k] = mav[k, : few.shape[1]]
      fit = peer.LibNotMR(tailsize=20)
      fit.min_val, fit.c, fit.scale = loc[k] + 1, shape[k], scale[k]
      openmax.distributions[k] = fit
    cases['pytorch-ood OpenMax'] = lambda: openmax.predict(few)
  rows = []
  for name, case in cases.items():
    start = time.perf_counter()
    case()
    scale_up = len(a) / min(len(a), _ONE_BY_ONE)
    taken = (time.perf_counter() - start) * scale_up
    note = f'of {_ONE_BY_ONE} samples, scaled'
    if name == 'pytorch-ood OpenMax':
      note += f'; {few.shape[1]} classes'
    rows.append(timing.Row(name, taken, taken, taken, taken / first, note))
  return rows


if __name__ == '__main__':
  main()
