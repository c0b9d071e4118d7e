"""Class means, distance tails and their Weibulls; NumPy only.

N samples, K known classes, D activation width, L latent width.

Features of any net will do: `fit` takes arrays, `fit_stream` takes them block
by block. Source of the recipe: CROSR, section 3, and LibMR's `fit_high`. What
the vectors and the distances are: vectors.py.
"""

import concurrent.futures
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from crosr_jax import blocks, types, vectors

SCALINGS = ('none', 'std', 'within_class')
# A tail taken as a share of its class holds at least this many distances.
SMALLEST_SHARED_TAIL = 20
# Beyond, nothing that training samples answer counts as usual.
MOST_MARGIN = 10.0
# Where nearest directions are usually nearer, float32 errs.
_CLOSE = 10 * vectors.ITSELF
# More of a distance than this should not be what float32 makes of it.
_MOST_ROUNDING = 0.03
# Of a tail, in units of what its smallest value becomes: below, a Weibull's loc
# and scale differ in their last digits alone.
_LEAST_SPREAD = 1e-13

# What callers of `fit` and `fit_stream` need beside them.
VECTORS = vectors.VECTORS
activation_vector = vectors.activation_vector
evidence = vectors.evidence
Blocks = blocks.Blocks
Everyone = blocks.Everyone
alone = blocks.alone


def fit(
  features: types.Features,
  *,
  vector: str = 'joint',
  scaling: str = 'none',
  margin: float = 0.0,
  tail_size: int = 0,
  tail_share: float = 0.0,
  tail_features: types.Features | None = None,
  class_names: Sequence[str] = (),
) -> types.WeibullModel:
  """Fits class means and tails on the correctly classified samples.

  Args:
    features: of known training samples, N rows; net in evaluation mode.
    vector: 'logits', 'joint' for logits and latent side by side, 'evidence'
      for own logit, code and reconstruction error, or 'neighbour' for nearest
      samples, code and reconstruction error, see vectors.py; parts that the
      features lack are left out.
    scaling: what a coordinate is divided by: 'none', 'std' (its deviation
      over all correct samples) or 'within_class' (pooled, around the class
      means). Dead coordinates, those below 1e-3 of the median deviation in
      their block (logits or latent), are divided by that median, so that none
      of them can decide alone.
    margin: of 'evidence' and 'neighbour': from so many deviations earlier on
      their answers count; of other vectors nothing.
    tail_size: number of largest distances per class; 0 = use `tail_share`.
    tail_share: share of the class instead, at least 20; 0 = use `tail_size`.
    tail_features: of other known samples, whose distances make the tails:
      held-out ones where the net fits its training samples too closely; None
      = those of `features`.
    class_names: what errors and warnings call the classes; default 0..K-1.

  Returns:
    The fitted model.

  Raises:
    ValueError: for unusable arguments, non-finite features, and classes that
      cannot be fitted; the message names the class and the way out.
  """
  return fit_stream(
    lambda: [features],
    vector=vector,
    scaling=scaling,
    margin=margin,
    tail_size=tail_size,
    tail_share=tail_share,
    tail_blocks=None if tail_features is None else lambda: [tail_features],
    class_names=class_names,
  )


def fit_stream(
  blocks: Blocks,
  *,
  vector: str = 'joint',
  scaling: str = 'none',
  margin: float = 0.0,
  tail_size: int = 0,
  tail_share: float = 0.0,
  tail_blocks: Blocks | None = None,
  class_names: Sequence[str] = (),
  everyone: Everyone = alone,
) -> types.WeibullModel:
  """`fit` for features that come in blocks.

  Memory is that of the class means, [K, D] in float64, once, and of the tails,
  whatever N is; of 'neighbour' that of N directions in float32 too, twice.

  Args:
    blocks: called for each pass (class sums, then tails; scaling and
      'evidence' add one each between, 'neighbour' one more), returns the same
      blocks of Features every time.
    vector: see `fit`.
    scaling: see `fit`.
    margin: see `fit`.
    tail_size: see `fit`.
    tail_share: see `fit`.
    tail_blocks: blocks of tail_features, see `fit`; called twice.
    class_names: see `fit`.
    everyone: where several processes fit together, each of blocks of its own,
      how they exchange arrays, as sharding.everyones does; all have to call
      this. What they exchange is small: class sums and tails; of 'neighbour'
      all directions.

  Returns:
    The fitted model: equal to `fit` on all blocks in one, of all processes.

  Raises:
    ValueError: as `fit`.
  """
  check_recipe(
    vector=vector,
    scaling=scaling,
    margin=margin,
    tail_size=tail_size,
    tail_share=tail_share,
  )
  for given in (blocks, tail_blocks):
    if given is not None and not callable(given):
      raise types.UsageError(
        f'blocks must be a function that gives them anew for each pass, got a '
        f'{type(given).__name__}'
      )
  (fitted,) = _fit(
    blocks,
    vector,
    scaling,
    margin,
    [(tail_size, tail_share)],
    tail_blocks,
    class_names,
    everyone,
  )
  return fitted


def fit_shares(
  features: types.Features,
  shares: Sequence[float],
  *,
  vector: str = 'joint',
  scaling: str = 'none',
  margin: float = 0.0,
  tail_features: types.Features | None = None,
  class_names: Sequence[str] = (),
) -> list[types.WeibullModel]:
  """`fit` for each of several tail shares; all but the tails is computed once.

  Args:
    features: see `fit`.
    shares: a tail_share each.
    vector: see `fit`.
    scaling: see `fit`.
    margin: see `fit`.
    tail_features: see `fit`.
    class_names: see `fit`.

  Returns:
    What `fit` returns for each, bit for bit.

  Raises:
    ValueError: as `fit`.
  """
  for share in shares:
    check_recipe(
      vector=vector, scaling=scaling, margin=margin, tail_share=share
    )
  return _fit(
    lambda: [features],
    vector,
    scaling,
    margin,
    [(0, share) for share in shares],
    None if tail_features is None else lambda: [tail_features],
    class_names,
  )


def _fit(
  features: Blocks,
  vector: str,
  scaling: str,
  margin: float,
  lengths: Sequence[tuple[int, float]],
  tail_features: Blocks | None,
  class_names: Sequence[str],
  everyone: Everyone = alone,
) -> list[types.WeibullModel]:
  """A model for each length of the tails, (tail_size, tail_share)."""
  stream = blocks.Stream(features, vector, everyone)
  count, mav, width = stream.class_means()
  if len(class_names) not in (0, len(count)):
    raise types.UsageError(
      f'class_names must name each of the {len(count)} classes, or none, got '
      f'{len(class_names)} names'
    )
  # Two samples are equally far from their own mean, and from each other, which
  # is no tail.
  is_of_own = vector != 'evidence' and tail_features is None
  _check_counts(count, class_names, 3 if is_of_own else 2)
  scale, dead = stream.feature_scale(scaling, count, mav, width)
  space = vectors.Space(vector, mav, scale, width)
  if vector == 'neighbour':
    space = space.with_exemplars(
      *stream.gather(space.directions, count, len(count) + width)
    )
  if vector in vectors.PART_WEIGHTS:
    space = space.with_usual(*stream.moments(space.parts, count, 3))
  usual, space = space, space.counting(margin)
  if tail_features is not None:
    stream = stream._replace(blocks=tail_features)
    count = stream.counts(mav, width)
    _check_counts(count, class_names)
  wanted = [_tail_counts(count, *length) for length in lengths]
  kept = [np.minimum(size, count) for size in wanted]
  tails = blocks.Tails(np.max(kept, axis=0))
  for distance, label in stream.again(space.distance, count):
    if not np.isfinite(distance).all():
      k = label[np.argmin(np.isfinite(distance))]
      raise types.UserError(
        f'class {_name(k, class_names)}: a distance is not finite, features '
        'are too large; look at them, or divide all by one number before fit '
        'and score'
      )
    tails.add(label, distance)
  if everyone is not alone:
    tails.share(everyone)
  models = []
  for size, keep, (tail_size, _) in zip(wanted, kept, lengths, strict=True):
    _warn_short(size, count, tail_size, class_names)
    shape, loc, tail_scale = _maximum_likelihood(
      tails.padded(keep), keep, class_names=class_names
    )
    models.append(
      types.WeibullModel(
        vector=vector,
        feature_scale=scale,
        mav=mav,
        shape=shape,
        loc=loc,
        scale=tail_scale,
        tail_count=keep,
        dead=dead,
        part_mean=space.part_mean,
        part_deviation=space.part_deviation,
        latent_width=width if vector in vectors.PART_WEIGHTS else 0,
        part_weight=np.asarray(
          vectors.PART_WEIGHTS.get(vector, ()), np.float64
        ),
        exemplars=space.exemplars,
        exemplar_count=space.exemplar_count,
        neighbours=vectors.NEIGHBOURS if vector == 'neighbour' else 0,
      )
    )
  _warn_far(usual, tails.padded(np.ones_like(count))[:, 0], class_names)
  if vector == 'neighbour':
    _warn_close(np.square(usual.part_mean[:, 0]), class_names)
  return models


def fit_tails(
  distances: np.ndarray | Sequence[np.ndarray],
  *,
  tail_size: int = 0,
  tail_share: float = 0.0,
  translate: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Maximum-likelihood Weibulls of the largest distances of each class.

  The tail is shifted as LibMR's `fit_high` does, so that its smallest value
  becomes `translate`; the two-parameter fit therefore depends on the unit of
  the distances.

  Args:
    distances: [K, n] or K arrays [n_k]; any real numbers, in any order.
    tail_size: number of largest values per class; 0 = use `tail_share`.
    tail_share: share of the class instead, at least 20; 0 = use `tail_size`.
    translate: what the smallest value of a tail becomes, > 0.

  Returns:
    shape, loc, scale, each [K] float64, as scipy.stats.weibull_min has them.

  Raises:
    ValueError: for a tail of fewer than 2 values, values that are not finite
      or all equal; the message names the class.
  """
  _check_tail(tail_size, tail_share)
  if not (np.isfinite(translate) and translate > 0):
    raise types.UsageError(f'translate must be above 0, got {translate}')
  if not len(distances):
    raise types.UserError('no class to fit: distances is empty')
  # An array stays one: for 1,000 classes, rows alone would cost as much as the
  # fit.
  rows: Any = distances
  if isinstance(distances, np.ndarray) and distances.dtype != object:
    types.check_unmasked('distances', distances)
    rows = np.asarray(distances, np.float64).reshape(len(distances), -1)
  else:
    for i, row in enumerate(distances):
      types.check_unmasked(f'class {i}', row)
    rows = [np.asarray(row, np.float64).ravel() for row in distances]
  count = np.array([len(row) for row in rows])
  for k in np.flatnonzero(count < 2):
    raise types.UserError(
      f'class {k}: {count[k]} distances, at least 2 are needed to fit a tail'
    )
  wanted = _tail_counts(count, tail_size, tail_share)
  kept = np.minimum(wanted, count)
  _warn_short(wanted, count, tail_size)
  # So many classes together that what is computed of them stays in the cache.
  size = max(vectors.CELLS // int(kept.max()), 1)

  def fit(start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    part = slice(start, start + size)
    tail = _largest(rows[part], kept[part], start)
    names = [str(start + k) for k in range(len(tail))]
    return _maximum_likelihood(tail, kept[part], translate, names)

  starts = range(0, len(rows), size)
  if len(starts) == 1:
    return fit(0)
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    parts = list(threads.map(fit, starts))
  shape, loc, scale = map(np.concatenate, zip(*parts, strict=True))
  return shape, loc, scale


def check_recipe(
  *,
  vector: str = 'joint',
  scaling: str = 'none',
  margin: float = 0.0,
  tail_size: int = 0,
  tail_share: float = 0.0,
) -> None:
  """Raises a UsageError where `fit` would, before there are features."""
  types.check_choice('vector', vector, VECTORS)
  types.check_choice('scaling', scaling, SCALINGS)
  if not 0 <= margin <= MOST_MARGIN:
    raise types.UsageError(
      f'margin must be in [0, {MOST_MARGIN:g}], got {margin}'
    )
  _check_tail(tail_size, tail_share)


def cdf(
  distances: np.ndarray,
  shape: np.ndarray,
  loc: np.ndarray,
  scale: np.ndarray,
) -> np.ndarray:
  """Weibull CDF in float64, 0 at and below `loc`; LibMR's w-score.

  Args:
    distances: [..., K], one column per class.
    shape: [K].
    loc: [K].
    scale: [K].

  Returns:
    [..., K] in [0, 1].
  """
  # (d - loc) / scale = 1 + x: through log1p, shapes of 1e13 keep their digits.
  x = ((np.asarray(distances, np.float64) - loc) - scale) / scale
  with np.errstate(divide='ignore', over='ignore'):
    return -np.expm1(-np.exp(shape * np.log1p(np.maximum(x, -1.0))))


def parse_tail(tail: str) -> dict[str, Any]:
  """'20' -> {'tail_size': 20}, '5%' -> {'tail_share': 0.05}, 'auto' -> {}.

  Raises:
    UsageError: for anything else.
  """
  if tail == 'auto':
    return {}
  try:
    if tail.endswith('%'):
      share = float(tail[:-1]) / 100
      if not 0 < share <= 1:
        raise ValueError
      return {'tail_share': share}
    size = int(tail)
    if not 1 < size < 2**31:
      raise ValueError
    return {'tail_size': size}
  except (AttributeError, ValueError):
    raise types.UsageError(
      "tail must be 'auto', a number of samples from 2 as '20', or a share of "
      f"the class, above 0 and at most 100, as '5%', got {tail!r}"
    ) from None


def _largest(rows: Any, size: np.ndarray, first: int) -> np.ndarray:
  """The size[k] largest values of each row, [K, t], filled up with NaN.

  `first` is the first row's class.
  """
  # A sum is finite only if every term is; the costly look is for the rest.
  is_array = isinstance(rows, np.ndarray)
  sums = rows.sum(axis=1) if is_array else [row.sum() for row in rows]
  for bad in np.flatnonzero(~np.isfinite(sums)):
    blocks.check_finite(rows[bad], f'class {first + bad}: distances')
  if is_array:
    start = rows.shape[1] - size[0]
    return np.partition(rows, start, axis=1)[:, start:]
  tail = np.full((len(rows), size.max()), np.nan)
  for k, row in enumerate(rows):
    tail[k, : size[k]] = np.partition(row, -size[k])[-size[k] :]
  return tail


def _tail_counts(
  count: np.ndarray, tail_size: int, tail_share: float
) -> np.ndarray:
  """Distances asked for per class, [K], which may be more than there are."""
  if tail_size:
    return np.full(len(count), tail_size)
  # 1e-9: a share of 5 % of 400 is 20, whatever floating point makes of it.
  share = np.ceil(tail_share * count - 1e-9).astype(np.int64)
  return np.maximum(share, SMALLEST_SHARED_TAIL)


def _maximum_likelihood(
  tail: np.ndarray,
  count: np.ndarray,
  translate: float = 1.0,
  class_names: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Maximum likelihood for tails [K, t] padded with NaN, all at once.

  With v = d - min + translate and y = log v scaled to [-1, 0], the profile
  likelihood asks for the root in s = 1 / shape of

    sum(y e^(y/s)) / sum(e^(y/s)) - s - mean(y),

  which falls from above 0 at s = 0 to below 0 at s = -mean(y).
  """
  valid = np.arange(tail.shape[1]) < count[:, None]
  # In order (NaN last), sums do not depend on how the samples came.
  tail = np.sort(tail, axis=1)
  smallest = tail[:, 0]
  difference = np.where(valid, tail - smallest[:, None], 0.0)
  log_v = np.log1p(difference / translate)
  spread = log_v.max(axis=1)
  for k in np.flatnonzero(~np.isfinite(spread)):
    raise types.UserError(
      f'class {_name(k, class_names)}: from {smallest[k]:g} to '
      f'{np.nanmax(tail[k]):g} its distances reach farther than float64 '
      'counts; divide all by one number'
    )
  # Two samples are equally far from their mean: what rounding makes of that is
  # no tail.
  moves = difference.max(axis=1) > blocks.ROUNDING * np.abs(smallest)
  _check_spread(np.where(moves, spread, 0.0), smallest, count, class_names)
  _warn_fine(spread, difference, translate, class_names)
  y = log_v / spread[:, None] - 1.0
  mean = np.sum(y, axis=1, where=valid) / count
  s, log_mean_power = _solve(y, valid, mean)
  scale = translate * np.exp(spread * (1.0 + s * log_mean_power))
  return 1.0 / (s * spread), smallest - translate, scale


def _solve(
  y: np.ndarray, valid: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Safeguarded Newton for s, [K]; also log mean e^(y/s), [K].

  Every step keeps a bracket around the root and halves it where Newton would
  leave it: no start and no tail can make it fail.
  """
  low, high = np.zeros_like(mean), -mean
  deviation = np.sqrt(
    np.sum(np.square(y - mean[:, None]), axis=1, where=valid)
    / valid.sum(axis=1)
  )
  # The moment estimate of a Gumbel's scale.
  s = np.clip(deviation * np.sqrt(6) / np.pi, 1e-3 * high, high)
  for _ in range(100):
    weight = np.where(valid, np.exp(y / s[:, None]), 0.0)
    norm = weight.sum(axis=1)
    first = (weight * y).sum(axis=1) / norm
    variance = (weight * np.square(y - first[:, None])).sum(axis=1) / norm
    residual = first - s - mean
    low, high = np.where(residual > 0, s, low), np.where(residual > 0, high, s)
    newton = s + residual / (variance / np.square(s) + 1.0)
    inside = (newton > low) & (newton < high)
    step = np.where(inside, newton, (low + high) / 2)
    moved = np.abs(step - s) > 1e-12 * s
    s = np.where(residual == 0, s, step)
    if not np.any(moved & (residual != 0)):
      break
  count = valid.sum(axis=1)
  power = np.where(valid, np.exp(y / s[:, None]), 0.0).sum(axis=1) / count
  return s, np.log(power)


def _check_tail(tail_size: int, tail_share: float) -> None:
  if bool(tail_size) == bool(tail_share):
    raise types.UsageError(
      'give either tail_size or tail_share and leave the other at 0, got '
      f'tail_size={tail_size} and tail_share={tail_share}'
    )
  is_whole = isinstance(tail_size, int | np.integer)
  if tail_size and not (is_whole and tail_size >= 2):
    raise types.UsageError(
      f'tail_size must be a whole number of at least 2, got {tail_size}: a '
      'Weibull has two parameters'
    )
  if tail_share and not 0 < tail_share <= 1:
    raise types.UsageError(f'tail_share must be in (0, 1], got {tail_share}')


def _check_counts(
  count: np.ndarray, class_names: Sequence[str], least: int = 2
) -> None:
  for k in np.flatnonzero(count < least):
    raise types.UserError(
      f'class {_name(k, class_names)}: {count[k]} correctly classified '
      f'samples, at least {least} are needed to fit its tail; train longer, '
      'add samples or drop the class'
    )


def _check_spread(
  spread: np.ndarray,
  smallest: np.ndarray,
  count: np.ndarray,
  class_names: Sequence[str],
) -> None:
  for k in np.flatnonzero(~(spread > 0)):
    raise types.UserError(
      f'class {_name(k, class_names)}: the {count[k]} distances of its tail '
      f'all equal {smallest[k]:g}, no Weibull fits that; take a longer tail, '
      'add samples, or look for duplicates in the class'
    )


def _warn_short(
  wanted: np.ndarray,
  count: np.ndarray,
  tail_size: int,
  class_names: Sequence[str] = (),
) -> None:
  short = np.flatnonzero(wanted > count)
  if len(short):
    named = ', '.join(
      f'{_name(k, class_names)} ({count[k]})' for k in short[:10]
    )
    more = ', ...' if len(short) > 10 else ''
    # Of a share so few were not asked for.
    why = 'was asked for' if tail_size else 'is the least'
    warnings.warn(
      f'a tail of {wanted[short[0]]} {why}, but these classes have fewer '
      f'correct samples and were fitted on what they have: {named}{more}',
      stacklevel=3,
    )


def _warn_fine(
  spread: np.ndarray,
  difference: np.ndarray,
  translate: float,
  class_names: Sequence[str],
) -> None:
  fine = np.flatnonzero(spread < _LEAST_SPREAD)
  if len(fine):
    k = fine[0]
    more = f' and {len(fine) - 1} more' if len(fine) > 1 else ''
    warnings.warn(
      f'the distances of a tail differ by so little that float64 keeps hardly '
      f'a digit of it beside {translate:g} (class {_name(k, class_names)}'
      f'{more}: {difference[k].max():.1g}): give them in a larger unit, or '
      'look for samples that are nearly the same',
      stacklevel=3,
    )


def _warn_far(
  space: vectors.Space, largest: np.ndarray, class_names: Sequence[str]
) -> None:
  """Where samples are so far from 0 that the scorer, in float32, errs.

  `largest` is the largest distance to each mean, [K]; of vectors with parts
  it is codes that are looked at.
  """
  columns = slice(None)
  if space.vector in vectors.PART_WEIGHTS:
    columns = slice(len(space.mav), len(space.mav) + space.width)
    moves = np.isfinite(space.part_deviation[:, 1])
    largest = np.where(moves, space.part_mean[:, 1], np.inf)
  unit = np.square(1.0 / space.scale[columns])
  rows = max(vectors.CELLS // max(len(unit), 1), 1)
  square = [
    np.square(space.mav[start : start + rows, columns]) @ unit
    for start in range(0, len(space.mav), rows)
  ]
  rounding = 2.0**-25 * np.sqrt(np.concatenate(square))
  far = np.flatnonzero(rounding > _MOST_ROUNDING * largest)
  if len(far):
    k = far[0]
    warnings.warn(
      f'features are so far from 0 that float32, in which samples are scored, '
      f'rounds distances by up to {rounding[k]:.2g} of {largest[k]:.2g} (class '
      f'{_name(k, class_names)} and {len(far) - 1} more): take the mean of the '
      'training features from all features, in fit and score',
      stacklevel=3,
    )


def _warn_close(nearest: np.ndarray, class_names: Sequence[str]) -> None:
  """Where nearest samples, usually so far away, are hardly told apart, [K]."""
  close = np.flatnonzero(nearest < _CLOSE)
  if len(close):
    k = close[0]
    warnings.warn(
      'training samples lie in so much the same direction (the nearest usually '
      f'{nearest[k]:.2g} away; class {_name(k, class_names)} and '
      f'{len(close) - 1} more) that float32 hardly tells them apart: take the '
      'mean of the training features from all features, in fit and score, or '
      "a vector other than 'neighbour'",
      stacklevel=3,
    )


def _name(k: int | np.integer, class_names: Sequence[str]) -> str:
  return class_names[int(k)] if len(class_names) else str(k)
