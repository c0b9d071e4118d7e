"""Class means, distance tails and their Weibulls; NumPy and SciPy only.

N samples, K known classes, D activation width, L latent width.

Features of any net will do: `fit` takes arrays, `fit_stream` takes them block
by block. Source of the recipe: CROSR, section 3, and LibMR's `fit_high`.

The published distance counts every deviation from a class mean, a logit higher
than usual too, and lets a hundred coordinates of the codes drown what little
else there is. The vector 'evidence', this project's own, asks three questions
instead, each in deviations of the class's training samples, and takes the norm
of those answers that are above 0, weighted as EVIDENCE_WEIGHTS:

  how far the class's own logit is below its mean,
  how much farther the code is from the class mean than codes usually are,
  how much farther the log reconstruction error is from the class's usual one,
  on either side, than errors usually are.

A deviation is that of the class, with that of all classes counted in as twenty
samples more, so that a small class has one too.

'neighbour' asks something else in place of the first, weighted as
NEIGHBOUR_WEIGHTS: how much farther are the two nearest training samples of the
class than they are from another one of the class? Both as directions of logits
and codes (Sun et al. 2022 rank by such distances alone), the mean of the two on
a square-root scale. All of those directions are kept, the exemplars, copies
once; a sample is never its own neighbour. Its code and its error count from two
deviations beyond the usual on: what is a little unusual there the nearest
samples tell better.

With a margin all answers count from so many deviations before that on, so that
samples which are all as usual are not all alike.
"""

import collections
import concurrent.futures
import functools
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from crosr_jax import types

VECTORS = ('logits', 'joint', 'evidence', 'neighbour')
SCALINGS = ('none', 'std', 'within_class')
# A tail taken as a share of its class holds at least this many distances.
SMALLEST_SHARED_TAIL = 20
# Below this share of its block's deviation a coordinate counts as dead.
DEAD_SHARE = 1e-3
# Of logit, code and error; chosen on known samples, docs/experiments.md.
EVIDENCE_WEIGHTS = (2.5, 0.5, 1.0)
# Of nearest samples, code and error; chosen likewise.
NEIGHBOUR_WEIGHTS = (2.0, 1.0, 2.0)
# Of those that ask questions; no other vector has parts.
PART_WEIGHTS = {'evidence': EVIDENCE_WEIGHTS, 'neighbour': NEIGHBOUR_WEIGHTS}
# Deviations beyond the usual from which on they count; chosen likewise.
_STARTS = {'evidence': (0.0, 0.0, 0.0), 'neighbour': (0.0, 2.0, 2.0)}
# Nearest samples that 'neighbour' asks about; chosen likewise.
_NEIGHBOURS = 2
# Beyond, nothing that training samples answer counts as usual.
MOST_MARGIN = 10.0
# A class's own deviation counts as this many samples of the pooled one more.
_POOLED_SAMPLES = 20
# Vectors of less length have no direction.
SHORTEST = 1e-30
# A direction that is nearer is the same one: float32 tells no less.
ITSELF = 1e-5
# Where nearest directions are usually nearer, float32 errs.
_CLOSE = 10 * ITSELF
# Errors below it are taken as equal to it before the logarithm.
SMALLEST_ERROR = 1e-12

# Numbers that are looked at together: what is computed of them in float64 stays
# in the processor's cache.
_CELLS = 1 << 17
# Those of a piece of a block: more, as between any two operations on them
# threads wait for Python's lock.
_PIECE = 3 << 16
# Of a float64: sign, exponent and 24 binary digits.
_HIGH_DIGITS = np.uint64(2**64 - 2**29)
# Distances that differ by less of themselves are equal.
_ROUNDING = 3e-14
# More of a distance than this should not be what float32 makes of it.
_MOST_ROUNDING = 0.03
# Pieces whose largest distances wait to be merged, at most.
_MOST_PARTS = 1000
# Of a tail, in units of what its smallest value becomes: below, a Weibull's loc
# and scale differ in their last digits alone.
_LEAST_SPREAD = 1e-13

Blocks = Callable[[], Iterable[types.Features]]
# What was made of the vectors of a piece, and their labels.
_Correct = Iterable[tuple[np.ndarray, np.ndarray]]
_Result = TypeVar('_Result')
# [n, ...] of this process -> what every process gave, in their order; only n
# may differ between them.
Everyone = Callable[[np.ndarray], Sequence[np.ndarray]]


def alone(rows: np.ndarray) -> Sequence[np.ndarray]:
  """`Everyone` of one process."""
  return [rows]


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
      for own logit, code and reconstruction error, as above, or 'neighbour' for
      nearest samples, code and reconstruction error; parts that the features
      lack are left out.
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


def _pieces(
  blocks: Blocks,
) -> Iterator[tuple[types.Features, np.ndarray]]:
  """Blocks, and positions in them: by class, about _PIECE numbers at a time."""
  for features in blocks():
    _check_features(features)
    features = types.Features(*map(np.asarray, features))
    width = features.logits.shape[1] + features.latent.shape[1]
    rows = max(_PIECE // width, 1)
    order = np.argsort(features.label, kind='stable')
    for start in range(0, len(order), rows):
      yield features, order[start : start + rows]


def _on_all_cores(
  fn: Callable[..., _Result], items: Iterable[tuple]
) -> Iterator[_Result]:
  """fn of each item, in their order; the first is done before all others."""
  items = iter(items)
  cores = os.cpu_count() or 1
  with concurrent.futures.ThreadPoolExecutor(cores) as threads:
    for first in itertools.islice(items, 1):
      # By a thread of these, whose memory is used again.
      yield threads.submit(fn, *first).result()
    ahead: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
      ahead.append(threads.submit(fn, *item))
      if len(ahead) > cores:
        yield ahead.popleft().result()
    while ahead:
      yield ahead.popleft().result()


def _fit(
  blocks: Blocks,
  vector: str,
  scaling: str,
  margin: float,
  lengths: Sequence[tuple[int, float]],
  tail_blocks: Blocks | None,
  class_names: Sequence[str],
  everyone: Everyone = alone,
) -> list[types.WeibullModel]:
  """A model for each length of the tails, (tail_size, tail_share)."""
  count, mav, width = _class_means(blocks, vector, everyone)
  if len(class_names) not in (0, len(count)):
    raise types.UsageError(
      f'class_names must name each of the {len(count)} classes, or none, got '
      f'{len(class_names)} names'
    )
  # Two samples are equally far from their own mean, and from each other, which
  # is no tail.
  is_of_own = vector != 'evidence' and tail_blocks is None
  _check_counts(count, class_names, 3 if is_of_own else 2)
  scale, dead = _feature_scale(
    blocks, vector, scaling, count, mav, width, everyone
  )
  space = _Space(vector, mav, scale, width)
  if vector == 'neighbour':
    space = space.with_exemplars(
      _again(blocks, vector, space.directions, count, everyone), everyone
    )
  if vector in PART_WEIGHTS:
    space = space.with_usual(
      _again(blocks, vector, space.parts, count, everyone), everyone
    )
  usual, space = space, space.counting(margin)
  if tail_blocks is not None:
    blocks = tail_blocks
    count = _sum(_counts(tail_blocks, vector, mav, width), everyone)
    _check_counts(count, class_names)
  wanted = [_tail_counts(count, *length) for length in lengths]
  kept = [np.minimum(size, count) for size in wanted]
  tails = _Tails(np.max(kept, axis=0))
  for distance, label in _again(
    blocks, vector, space.distance, count, everyone
  ):
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
  _warn_far(usual, tails.padded(np.ones_like(count))[:, 0], class_names)
  if vector == 'neighbour':
    _warn_close(np.square(usual.part_mean[:, 0]), class_names)
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
        latent_width=width if vector in PART_WEIGHTS else 0,
        part_weight=np.asarray(PART_WEIGHTS.get(vector, ()), np.float64),
        exemplars=space.exemplars,
        exemplar_count=space.exemplar_count,
        neighbours=_NEIGHBOURS if vector == 'neighbour' else 0,
      )
    )
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
  if isinstance(distances, np.ndarray):
    rows = np.asarray(distances, np.float64).reshape(len(distances), -1)
  else:
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
  size = max(_CELLS // int(kept.max()), 1)

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


def check_rows(features: types.Features) -> None:
  """Raises a UsageError where the parts are not of the same samples."""
  logits, latent = np.shape(features.logits), np.shape(features.latent)
  label = np.shape(features.label)
  if len(logits) != 2 or len(latent) != 2 or len(label) != 1:
    raise types.UsageError(
      'features need logits [N, K], latent [N, L] and label [N], got '
      f'{logits}, {latent}, {label}'
    )
  if not logits[0] == latent[0] == label[0]:
    raise types.UsageError(
      'features need one row per sample in each part, got '
      f'{logits[0]}, {latent[0]} and {label[0]} rows'
    )
  check_error(features)


def check_error(features: types.Features) -> None:
  """Raises a UsageError for reconstruction errors that cannot be used."""
  error = np.asarray(features.reconstruction_error)
  count = np.shape(features.label)[0]
  if error.size and error.shape != (count,):
    raise types.UsageError(
      'reconstruction_error needs one number per sample, or none at all, got '
      f'shape {error.shape} for {count} samples'
    )
  if np.any(error < 0):
    row = np.flatnonzero(error < 0)[0]
    raise types.UsageError(
      f'reconstruction_error of sample {row} is {error[row]:g}; it is a mean '
      'of squares, at least 0'
    )


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


def activation_vector(
  features: types.Features, vector: str, dtype: Any = np.float64
) -> np.ndarray:
  """[N, D]: what `vector` names, side by side."""
  parts = _parts(features, vector)
  return np.concatenate(parts, axis=1, dtype=dtype, casting='unsafe')


def evidence(features: types.Features, model: types.WeibullModel) -> np.ndarray:
  """How strange own logit, code and error are, [N, 3], in deviations.

  Each from what is usual for the class of the largest logit, less the margin,
  of a model of 'evidence'; below 0 nothing is strange. Where there is no code
  or no error it is 0.

  Raises:
    UsageError: for another model, or features that are not the model's.
  """
  check_rows(features)
  a = activation_vector(features, model.vector)
  found = model.vector, np.shape(features.latent)[1], a.shape[1]
  wanted = 'evidence', model.latent_width, model.mav.shape[1]
  if found != wanted:
    raise types.UsageError(
      'vector, latent width and vector width must be those of a model of '
      f'evidence, {wanted}, got {found}'
    )
  label = np.argmax(features.logits, axis=1)
  space = _Space(
    *(model.vector, model.mav, model.feature_scale, model.latent_width),
    *(model.part_mean, model.part_deviation),
  )
  return space.above(a, label, np.empty_like(a))


def _parts(features: types.Features, vector: str) -> list[np.ndarray]:
  parts = [np.asarray(features.logits)]
  if vector != 'logits':
    parts.append(np.asarray(features.latent))
  if vector in PART_WEIGHTS and len(features.reconstruction_error):
    error = np.asarray(features.reconstruction_error, np.float64)
    log_error = np.log(np.maximum(error, SMALLEST_ERROR))
    parts.append(log_error[:, None])
  return parts


class _Piece(NamedTuple):
  """Samples of a block, by class."""

  parts: list[np.ndarray]  # of their vectors: logits [n, K] first, then others
  label: np.ndarray  # [n] int64
  # [2, n or more, D] float64 to work in. Other pieces use it again: nothing
  # that is returned may lie in it.
  memory: np.ndarray

  def rows(self, chosen: np.ndarray) -> '_Piece':
    """Those of a mask [n]."""
    if chosen.all():
      return self
    (at,) = np.nonzero(chosen)
    parts = [part[at] for part in self.parts]
    return _Piece(parts, self.label[at], self.memory)

  def is_correct(self) -> np.ndarray:
    """[n]: whether the own logit is the largest."""
    return np.argmax(self.parts[0], axis=1) == self.label

  def first_fine(self) -> int:
    """Column of the vectors from which on they are finer than float32."""
    is_coarse = [np.can_cast(part.dtype, np.float32) for part in self.parts]
    widths = [part.shape[1] for part in self.parts]
    return sum(widths[: [*is_coarse, False].index(False)])

  def vectors(self) -> np.ndarray:
    """[n, D] float64, in the first half of the memory."""
    a = self.memory[0, : len(self.label)]
    return np.concatenate(self.parts, axis=1, out=a, casting='unsafe')

  def checked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, which are finite, labels, and memory of the vectors' shape."""
    a = self.vectors()
    if not _is_finite(a):
      _check_finite(a, 'features')
    return a, self.label, self.memory[1, : len(a)]


class _Space(NamedTuple):
  """Where distances of samples to the mean of their own class are taken."""

  vector: str
  mav: np.ndarray  # [K, D]
  scale: np.ndarray  # [D]
  width: int  # L, of the latent
  part_mean: np.ndarray = np.zeros((0, 3))  # [K, 3] of those with parts
  part_deviation: np.ndarray = np.zeros((0, 3))
  exemplars: np.ndarray = np.zeros((0, 0), np.float32)  # of 'neighbour'
  exemplar_count: np.ndarray = np.zeros(0, np.int64)
  middle: np.ndarray = np.zeros((0, 0), np.float32)  # their means, [K, K+L]
  half_square: np.ndarray = np.zeros(0, np.float32)  # halves of |e - middle|^2

  def directions(
    self, a: np.ndarray, label: np.ndarray, spare: np.ndarray
  ) -> np.ndarray:
    """Of logits and codes, [N, K+L] float32; works in `spare`."""
    del label  # The same for every class.
    joint = a[:, : len(self.mav) + self.width]
    length = np.sqrt(np.vecdot(joint, joint))[:, None]
    unit = np.divide(
      joint, np.maximum(length, SHORTEST), out=spare[:, : joint.shape[1]]
    )
    return unit.astype(np.float32)

  def with_exemplars(self, correct: _Correct, everyone: Everyone) -> '_Space':
    """The same with the directions of training samples."""
    # Of a process without a sample.
    nothing = np.zeros((0, len(self.mav) + self.width), np.float32)
    first = nothing, np.zeros(0, np.int64)
    rows, label = (
      np.concatenate(everyone(np.concatenate(x)))
      for x in zip(first, *correct, strict=True)
    )
    order = np.argsort(label, kind='stable')
    order = order[~_is_copy(rows[order], label[order])]
    exemplars, label = rows[order], label[order]
    middle = np.zeros((len(self.mav), exemplars.shape[1]), np.float32)
    half_square = np.zeros(len(exemplars), np.float32)
    count = np.bincount(label, minlength=len(self.mav))
    for k, end in enumerate(np.cumsum(count)):
      of_class = slice(end - count[k], end)
      middle[k] = exemplars[of_class].mean(axis=0, dtype=np.float64)
      less = exemplars[of_class] - middle[k]
      half_square[of_class] = np.vecdot(less, less) / 2
    return self._replace(
      exemplars=exemplars,
      exemplar_count=count,
      middle=middle,
      half_square=half_square,
    )

  def with_usual(self, correct: _Correct, everyone: Everyone) -> '_Space':
    """The same with mean and deviation of the `parts` of training samples."""
    num_classes = len(self.mav)
    count = np.zeros(num_classes)
    total, square = np.zeros((2, num_classes, 3))
    for parts, label in correct:
      count += np.bincount(label, minlength=num_classes)
      _add_by_class(total, label, parts)
      _add_by_class(square, label, np.square(parts))
    count, total, square = (_sum(x, everyone) for x in (count, total, square))
    mean = total / count[:, None]
    spread = square - count[:, None] * np.square(mean)
    pooled = spread.sum(axis=0) / count.sum()
    variance = (spread + _POOLED_SAMPLES * pooled) / (
      count[:, None] + _POOLED_SAMPLES
    )
    # What never moves, up to rounding, tells nothing.
    moves = pooled > 1e-12 * square.sum(axis=0) / count.sum()
    deviation = np.sqrt(np.where(moves, variance, np.inf))
    return self._replace(part_mean=mean, part_deviation=deviation)

  def counting(self, margin: float) -> '_Space':
    """The same with its means where answers begin to count."""
    if self.vector not in PART_WEIGHTS:
      return self
    moves = np.isfinite(self.part_deviation)
    start = np.array(_STARTS[self.vector]) - margin
    beyond = start * np.where(moves, self.part_deviation, 0.0)
    return self._replace(part_mean=self.part_mean + beyond)

  def distance(
    self, a: np.ndarray, label: np.ndarray, spare: np.ndarray
  ) -> np.ndarray:
    """[N, D] and classes [N] -> [N]; works in both arrays."""
    if self.vector not in PART_WEIGHTS:
      self._centre(a, label, spare)
      return np.sqrt(np.vecdot(a, a))
    above = np.maximum(self.above(a, label, spare), 0.0)
    return np.linalg.norm(above * PART_WEIGHTS[self.vector], axis=1)

  def above(
    self, a: np.ndarray, label: np.ndarray, spare: np.ndarray
  ) -> np.ndarray:
    """The `parts`, in deviations from the usual; works in both arrays."""
    above = self.parts(a, label, spare) - self.part_mean[label]
    return above / self.part_deviation[label]

  def parts(
    self, a: np.ndarray, label: np.ndarray, spare: np.ndarray
  ) -> np.ndarray:
    """Answers to the three questions of weibull.py, [N, 3].

    The last two are 0 where there is no such part. Works in both arrays.
    """
    nearest = None
    if self.vector == 'neighbour':
      nearest = self._nearest(self.directions(a, label, spare), label)
    self._centre(a, label, spare)
    first = len(self.mav)
    code, error = np.split(a[:, first:], [self.width], axis=1)
    norms = [np.sqrt(np.vecdot(part, part)) for part in (code, error)]
    if nearest is None:
      nearest = -a[np.arange(len(a)), label]
    return np.column_stack([nearest, *norms])

  def _nearest(self, unit: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Mean root of distances to the nearest other exemplars of the class, [N].

    Of directions, [N, K+L].
    """
    end = np.cumsum(self.exemplar_count)
    found = np.empty(len(unit))
    for k in np.unique(label):
      (rows,) = np.nonzero(label == k)
      of_class = slice(end[k] - self.exemplar_count[k], end[k])
      size = max(_CELLS * 8 // self.exemplar_count[k], 1)
      for start in range(0, len(rows), size):
        part = rows[start : start + size]
        found[part] = _nearest(
          unit[part],
          self.exemplars[of_class],
          self.middle[k],
          self.half_square[of_class],
        )
    return found

  def _centre(
    self, a: np.ndarray, label: np.ndarray, spare: np.ndarray
  ) -> None:
    _less_own_mean(a, self.mav, label, spare)
    if np.any(self.scale != 1.0):
      a /= self.scale


def _is_copy(unit: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Whether another, kept, of [N, D] directions and its class is the same, [N].

  Samples that are there twice would be each other's neighbours, and the class's
  other samples far from all of it. Copies lie side by side along any line.
  """
  line = np.random.default_rng(0).standard_normal(unit.shape[1], np.float32)
  order = np.lexsort((unit @ line, label))
  is_copy = np.zeros(len(unit), bool)
  size = max(_CELLS // max(unit.shape[1], 1), 1)
  for start in range(0, len(unit) - 1, size):
    before, after = order[start : start + size], order[start + 1 :][:size]
    before = before[: len(after)]
    away = np.linalg.norm(unit[after] - unit[before], axis=1)
    is_copy[after] = (away < ITSELF) & (label[after] == label[before])
  return is_copy


def _nearest(
  unit: np.ndarray,
  exemplars: np.ndarray,
  middle: np.ndarray,
  half_square: np.ndarray,
) -> np.ndarray:
  """Mean root of distances of [N, D] to the nearest of [M, D]; [N] float64.

  Of unit vectors. A sample that is one of the M is passed over; where there are
  too few, the last stands for those that are missing. `middle` is their mean,
  [D], and `half_square` of the exemplars less it, [M].
  """
  # The larger, the nearer: |u - e|^2 is |u - m|^2 - 2 (u - m)(e - m) +
  # |e - m|^2. Cosines of what lies close together are all 1, up to rounding.
  near = (unit - middle) @ exemplars.T - half_square
  rows = np.arange(len(unit))
  found: list[np.ndarray] = []

  def find() -> None:
    if len(found) == len(exemplars):
      found.append(found[-1])
      return
    # What float32 makes of such a product is good enough to find the nearest,
    # and not for how near it is.
    nearest = np.argmax(near, axis=1)
    near[rows, nearest] = -np.inf
    away = unit.astype(np.float64) - exemplars[nearest]
    found.append(np.sqrt(np.vecdot(away, away)))

  for _ in range(_NEIGHBOURS):
    find()
  is_itself = found[0] < ITSELF
  if is_itself.any():
    find()
    found = list(np.where(is_itself, found[1:], found[:-1]))
  return np.mean(np.sqrt(found), axis=0)


class _Tails:
  """The largest distances per class of a stream, in bounded memory."""

  def __init__(self, size: np.ndarray):
    self._size = size
    self._label = np.zeros(0, np.int64)
    self._distance = np.zeros(0)
    self._floor = np.full(len(size), -np.inf)  # below: cannot enter the tail
    self._new: list[tuple[np.ndarray, np.ndarray]] = []
    self._num_new = 0

  def add(self, label: np.ndarray, distance: np.ndarray) -> None:
    new = distance > self._floor[label]
    if not new.any():
      return
    self._new.append((label[new], distance[new]))
    self._num_new += len(self._new[-1][0])
    # Merging costs as much as there is, so not for a few.
    enough = len(self._label) + len(self._size)
    if self._num_new > enough or len(self._new) > _MOST_PARTS:
      self._merge()

  def _merge(self) -> None:
    labels, distances = zip(*self._new, strict=True)
    label = np.concatenate([self._label, *labels])
    distance = np.concatenate([self._distance, *distances])
    self._new, self._num_new = [], 0
    order = np.lexsort((-distance, label))
    label, distance = label[order], distance[order]
    start = np.searchsorted(label, np.arange(len(self._size)))
    rank = np.arange(len(label)) - start[label]
    keep = rank < self._size[label]
    last = rank == self._size[label] - 1
    self._floor[label[last]] = distance[last]
    self._label, self._distance = label[keep], distance[keep]

  def share(self, everyone: Everyone) -> None:
    """Takes the largest of all processes."""
    if self._new:
      self._merge()
    labels, distances = everyone(self._label), everyone(self._distance)
    self._new = list(zip(labels, distances, strict=True))
    self._label, self._distance = self._label[:0], self._distance[:0]
    self._merge()

  def padded(self, size: np.ndarray) -> np.ndarray:
    """The size[k] largest, [K, t], each row filled up with NaN."""
    if self._new:
      self._merge()
    column = np.concatenate([np.arange(n) for n in self._size])
    within = column < size[self._label]
    tail = np.full((len(size), size.max()), np.nan)
    tail[self._label[within], column[within]] = self._distance[within]
    return tail


def _is_finite(a: np.ndarray) -> bool:
  """Whether all are; False, too, where squares are too large to say."""
  # A sum is finite only if every term is.
  with np.errstate(invalid='ignore', over='ignore'):
    return bool(np.isfinite(np.vecdot(a, a).sum()))


def _largest(rows: Any, size: np.ndarray, first: int) -> np.ndarray:
  """The size[k] largest values of each row, [K, t], filled up with NaN.

  `first` is the first row's class.
  """
  # A sum is finite only if every term is; the costly look is for the rest.
  is_array = isinstance(rows, np.ndarray)
  sums = rows.sum(axis=1) if is_array else [row.sum() for row in rows]
  for bad in np.flatnonzero(~np.isfinite(sums)):
    _check_finite(rows[bad], f'class {first + bad}: distances')
  if is_array:
    start = rows.shape[1] - size[0]
    return np.partition(rows, start, axis=1)[:, start:]
  tail = np.full((len(rows), size.max()), np.nan)
  for k, row in enumerate(rows):
    tail[k, : size[k]] = np.partition(row, -size[k])[-size[k] :]
  return tail


def _each(
  blocks: Blocks, vector: str, fn: Callable[[_Piece], _Result]
) -> Iterator[tuple[_Result, tuple[int, int, int]]]:
  """fn of each piece, in order, and K, L and D."""
  # New memory for every piece would take longer than what is computed in it.
  own = threading.local()
  first: list[tuple[int, int, int]] = []

  def work(
    features: types.Features, positions: np.ndarray
  ) -> tuple[_Result, tuple[int, int, int]]:
    rows = features.rows(positions)
    parts = _parts(rows, vector)
    shape = len(positions), sum(part.shape[1] for part in parts)
    memory = getattr(own, 'memory', np.empty((2, 0, 0)))
    if memory.shape[1] < shape[0] or memory.shape[2] != shape[1]:
      own.memory = memory = np.empty((2, *shape))
    sizes = rows.logits.shape[1], rows.latent.shape[1], shape[1]
    # The first piece is done before all others.
    if not first:
      first.append(sizes)
    if sizes != first[0]:
      raise types.UsageError(
        'blocks of features differ: classes, latent width and vector width '
        f'were {first[0]} and are {sizes}'
      )
    return fn(_Piece(parts, rows.label.astype(np.int64), memory)), sizes

  yield from _on_all_cores(work, _pieces(blocks))


def _again(
  blocks: Blocks,
  vector: str,
  fn: Callable[[np.ndarray, np.ndarray, np.ndarray], _Result],
  count: np.ndarray,
  everyone: Everyone,
) -> Iterator[tuple[_Result, np.ndarray]]:
  """fn(vectors, labels, spare) of the correctly classified, and their labels.

  By piece, in order. fn may change the vectors, and has `spare` of their shape
  to work in. It must return neither. That all others are finite, the pass that
  counted them has seen.

  Raises:
    UsageError: at the end, where there are not as many as were counted.
  """
  seen = np.zeros((1, 1), np.int64)

  def work(piece: _Piece) -> tuple[_Result, np.ndarray]:
    piece = piece.rows(piece.is_correct())
    return fn(*piece.checked()), piece.label

  for (result, label), _ in _each(blocks, vector, work):
    seen += len(label)
    yield result, label
  seen = _sum(seen, everyone)
  if seen[0, 0] != count.sum():
    raise types.UsageError(
      'blocks must be the same each time that they are asked for; of '
      f'{count.sum()} samples that are classified rightly {seen[0, 0]} came '
      'again'
    )


def _sum(rows: np.ndarray, everyone: Everyone) -> np.ndarray:
  """Of what every process has, [n, ...], in their order; may be in place."""
  if everyone is alone:
    return rows
  # Some rows at a time: of 20,000 classes, one copy for each process is too
  # much.
  size = max(_CELLS // max(int(np.prod(rows.shape[1:])), 1), 1)
  for start in range(0, len(rows), size):
    part = slice(start, start + size)
    rows[part] = functools.reduce(np.add, everyone(rows[part]))
  return rows


def _class_means(
  blocks: Blocks, vector: str, everyone: Everyone
) -> tuple[np.ndarray, np.ndarray, int]:
  """Correct samples per class, [K], their means, [K, D], and L."""
  # Column from which on there are more digits than float32 has.
  fine: list[int] = []

  def sums(piece: _Piece) -> tuple[np.ndarray, ...]:
    right = piece.is_correct()
    # What is wrong has to be finite as well.
    finite = right.all() or _is_finite(piece.rows(~right).vectors())
    if not fine:
      fine.append(piece.first_fine())
    kept = piece.rows(right)
    a = kept.vectors()
    low = _low_digits(a[:, fine[0] :], kept.memory[1, : len(a), fine[0] :])
    classes, found = _sums(kept.label, a)
    _, found_low = _sums(kept.label, low)
    if not (finite and _is_finite(found) and _is_finite(found_low)):
      _check_finite(piece.vectors(), 'features')
    return kept.label, classes, found, found_low

  count, width = np.zeros(0, np.int64), 0
  total, low = np.zeros((2, 0, 0))
  for (label, classes, *found), shape in _each(blocks, vector, sums):
    if not len(count):
      width = shape[1]
      count = np.zeros(shape[0], np.int64)
      total = np.zeros((shape[0], shape[2]))
      low = np.zeros((shape[0], shape[2] - fine[0]))
    count += np.bincount(label, minlength=len(count))
    rows: Any = classes
    if len(classes) and classes[-1] - classes[0] == len(classes) - 1:
      # Of neighbours: without a copy.
      rows = slice(classes[0], classes[-1] + 1)
    total[rows] += found[0]
    low[rows] += found[1]
  own = [[len(count), width, total.shape[1], *fine]] if fine else []
  sizes = np.concatenate(everyone(np.array(own, np.int64).reshape(-1, 4)))
  if not len(sizes):
    raise types.UserError('no features to fit on: there is no sample')
  if np.any(sizes[:, :3] != sizes[0, :3]):
    raise types.UsageError(
      'features of the processes differ: classes, latent width and vector '
      f'width are {sizes[:, :3].tolist()}'
    )
  num_classes, width, vector_width = sizes[0, :3].tolist()
  first = int(sizes[:, 3].min())
  if not fine:
    # Of a process without a sample.
    count = np.zeros(num_classes, np.int64)
    total, low = np.zeros((num_classes, vector_width)), np.zeros((0, 0))
  if low.shape != (num_classes, vector_width - first):
    # Another process has more of them.
    more = np.zeros((num_classes, vector_width - first))
    more[: len(low), more.shape[1] - low.shape[1] :] = low
    low = more
  count, total, low = (_sum(x, everyone) for x in (count, total, low))
  # In place: of 20,000 classes, one more copy is gigabytes.
  total[:, first:] += low
  total /= np.maximum(count, 1)[:, None]
  return count, total, width


def _low_digits(a: np.ndarray, out: np.ndarray) -> np.ndarray:
  """Takes from a [N, D], and gives, what float32 has no digits for.

  Of float32's 24 bits float64 sums half a billion without an error: what it
  loses of finer ones are their last digits, wherever 0 is.
  """
  np.bitwise_and(a.view(np.uint64), _HIGH_DIGITS, out=out.view(np.uint64))
  with np.errstate(invalid='ignore'):
    np.subtract(a, out, out=out)
    a -= out
  return out


def _counts(
  blocks: Blocks, vector: str, mav: np.ndarray, width: int
) -> np.ndarray:
  """Correct samples per class of blocks other than those of the means, [K]."""
  count = np.zeros(len(mav), np.int64)

  def labels(piece: _Piece) -> np.ndarray:
    _, label, _ = piece.checked()
    return label[piece.is_correct()]

  for label, sizes in _each(blocks, vector, labels):
    if sizes != (len(mav), width, mav.shape[1]):
      num_classes, latent_width, vector_width = sizes
      raise types.UsageError(
        f'tail_features have {num_classes} classes, a latent of width '
        f'{latent_width} and vectors of {vector_width}, features '
        f'{mav.shape[0]}, {width} and {mav.shape[1]}'
      )
    count += np.bincount(label, minlength=len(mav))
  return count


def _less_own_mean(
  a: np.ndarray, mav: np.ndarray, label: np.ndarray, spare: np.ndarray
) -> None:
  """Takes from each row of a [N, D] the mean of its class, in place."""
  np.take(mav, label, axis=0, out=spare, mode='clip')
  a -= spare


def _add_by_class(total: np.ndarray, label: np.ndarray, a: np.ndarray) -> None:
  """Adds rows of a [N, D], by class, to those of their classes in total."""
  classes, sums = _sums(label, a)
  total[classes] += sums


def _sums(label: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Classes that are there, and the sums of their rows, which are by class."""
  start = np.flatnonzero(np.diff(label, prepend=-1))
  sums = np.empty((len(start), a.shape[1]))
  # Row by row along memory, which np.add.reduceat is not.
  for first, end, out in zip(start, [*start[1:], len(a)], sums, strict=False):
    np.add.reduce(a[first:end], axis=0, out=out)
  return label[start], sums


def _feature_scale(
  blocks: Blocks,
  vector: str,
  scaling: str,
  count: np.ndarray,
  mav: np.ndarray,
  latent_width: int,
  everyone: Everyone,
) -> tuple[np.ndarray, np.ndarray]:
  """What each coordinate is divided by, [D], and which are dead, [D]."""
  num_classes, width = mav.shape
  scale, dead = np.ones(width), np.zeros(width, bool)
  if scaling == 'none':
    return scale, dead
  # What a constant seems to move is rounding.
  floor = _ROUNDING * np.maximum(mav.max(axis=0), -mav.min(axis=0))
  within, overall = _deviations(blocks, vector, count, mav, everyone)
  chosen = overall if scaling == 'std' else within
  unit = 1.0
  end = num_classes + latent_width
  for block in (slice(num_classes), slice(num_classes, end), slice(end, width)):
    moving = overall[block][overall[block] > floor[block]]
    # The median: one wild coordinate must not make the others look dead. A
    # block that never moves takes the unit of the logits.
    unit = float(np.median(moving)) if len(moving) else unit
    dead[block] = chosen[block] <= np.maximum(DEAD_SHARE * unit, floor[block])
    scale[block] = np.where(dead[block], unit, chosen[block])
  return scale, dead


def _deviations(
  blocks: Blocks,
  vector: str,
  count: np.ndarray,
  mav: np.ndarray,
  everyone: Everyone,
) -> tuple[np.ndarray, np.ndarray]:
  """Deviation around the class means and around the mean of all, each [D]."""
  total = count.sum()
  within = np.zeros(mav.shape[1])

  def squares(
    a: np.ndarray, label: np.ndarray, spare: np.ndarray
  ) -> np.ndarray:
    _less_own_mean(a, mav, label, spare)
    return np.einsum('nd,nd->d', a, a)

  for found, _ in _again(blocks, vector, squares, count, everyone):
    within += found
  within = _sum(within, everyone)
  center, between = count @ mav / total, np.zeros_like(within)
  # Some classes at a time: a copy of all means can be gigabytes.
  rows = max(_CELLS // len(center), 1)
  for start in range(0, len(mav), rows):
    part = slice(start, start + rows)
    between += count[part] @ np.square(mav[part] - center)
  return np.sqrt(within / total), np.sqrt((within + between) / total)


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
  # Two samples are equally far from their mean: what rounding makes of that is
  # no tail.
  moves = difference.max(axis=1) > _ROUNDING * np.abs(smallest)
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


def _check_features(features: types.Features) -> None:
  check_rows(features)
  num_classes = np.shape(features.logits)[1]
  label = np.asarray(features.label)
  if label.dtype.kind not in 'biuf':
    raise types.UsageError(
      f'labels must be numbers, 0..K-1 or -1 for unknown, got {label.dtype}'
    )
  if label.dtype.kind == 'f' and not np.all(is_whole := _is_whole(label)):
    row = np.flatnonzero(~is_whole)[0]
    raise types.UsageError(
      f'label of sample {row} is {label[row]:g}; labels are whole, 0..K-1, -1 '
      'for unknown'
    )
  if len(features.label) and np.max(features.label) >= num_classes:
    raise types.UsageError(
      f'label {np.max(features.label)} is out of range for logits of '
      f'{num_classes} classes; labels are 0..K-1, -1 for unknown'
    )
  if num_classes < 2:
    raise types.UsageError(
      f'features need logits of at least 2 classes, got {num_classes}'
    )


def _is_whole(x: np.ndarray) -> np.ndarray:
  return np.isfinite(x) & (x == np.rint(x))


def _check_finite(values: np.ndarray, what: str) -> None:
  bad = values.size - np.count_nonzero(np.isfinite(values))
  if bad:
    raise types.UserError(
      f'{what}: {bad} of {values.size} values are not finite; find the '
      'samples or the training step they come from'
    )


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
  space: _Space, largest: np.ndarray, class_names: Sequence[str]
) -> None:
  """Where samples are so far from 0 that the scorer, in float32, errs.

  `largest` is the largest distance to each mean, [K]; of vectors with parts
  it is codes that are looked at.
  """
  columns = slice(None)
  if space.vector in PART_WEIGHTS:
    columns = slice(len(space.mav), len(space.mav) + space.width)
    moves = np.isfinite(space.part_deviation[:, 1])
    largest = np.where(moves, space.part_mean[:, 1], np.inf)
  unit = np.square(1.0 / space.scale[columns])
  rows = max(_CELLS // max(len(unit), 1), 1)
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
