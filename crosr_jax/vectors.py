"""What a vector is made of, and distances in it; NumPy only.

N samples, K known classes, D width of the vectors, L of the latent.

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

from typing import Any, NamedTuple

import numpy as np

from crosr_jax import types

VECTORS = ('logits', 'joint', 'evidence', 'neighbour')
# Of logit, code and error; chosen on known samples, docs/experiments.md.
EVIDENCE_WEIGHTS = (2.5, 0.5, 1.0)
# Of nearest samples, code and error; chosen likewise.
NEIGHBOUR_WEIGHTS = (2.0, 1.0, 2.0)
# Of those that ask questions; no other vector has parts.
PART_WEIGHTS = {'evidence': EVIDENCE_WEIGHTS, 'neighbour': NEIGHBOUR_WEIGHTS}
# Deviations beyond the usual from which on they count; chosen likewise.
_STARTS = {'evidence': (0.0, 0.0, 0.0), 'neighbour': (0.0, 2.0, 2.0)}
# Nearest samples that 'neighbour' asks about; chosen likewise.
NEIGHBOURS = 2
# A class's own deviation counts as this many samples of the pooled one more.
_POOLED_SAMPLES = 20
# Vectors of less length have no direction.
SHORTEST = 1e-30
# A direction that is nearer is the same one: float32 tells no less.
ITSELF = 1e-5
# Errors below it are taken as equal to it before the logarithm.
SMALLEST_ERROR = 1e-12

# Numbers that are looked at together: what is computed of them in float64 stays
# in the processor's cache.
CELLS = 1 << 17


def activation_vector(
  features: types.Features, vector: str, dtype: Any = np.float64
) -> np.ndarray:
  """[N, D]: what `vector` names, side by side."""
  parts = parts_of(features, vector)
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
  if not len(features.label):
    return np.zeros((0, 3))
  a = activation_vector(features, model.vector)
  found = model.vector, np.shape(features.latent)[1], a.shape[1]
  wanted = 'evidence', model.latent_width, model.mav.shape[1]
  if found != wanted:
    raise types.UsageError(
      'vector, latent width and vector width must be those of a model of '
      f'evidence, {wanted}, got {found}'
    )
  label = np.argmax(features.logits, axis=1)
  space = Space(
    *(model.vector, model.mav, model.feature_scale, model.latent_width),
    *(model.part_mean, model.part_deviation),
  )
  return space.above(a, label, np.empty_like(a))


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
  for name, values in features._asdict().items():
    types.check_unmasked(name, values)
    dtype = np.asarray(values).dtype
    # bfloat16 and its like are of no kind of NumPy's. Labels are looked at
    # where they are read.
    is_number = dtype.kind in 'biuf' or np.can_cast(dtype, np.float64)
    if not is_number and name != 'label':
      raise types.UsageError(f'{name} must be real numbers, got {dtype}')
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


def check_features(features: types.Features) -> None:
  """Raises a UsageError for features that `weibull.fit` cannot take."""
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


def parts_of(features: types.Features, vector: str) -> list[np.ndarray]:
  """What `vector` names, [N, ...] each; logits first, of any type."""
  parts = [np.asarray(features.logits)]
  if vector != 'logits':
    parts.append(np.asarray(features.latent))
  if vector in PART_WEIGHTS and len(features.reconstruction_error):
    error = np.asarray(features.reconstruction_error, np.float64)
    log_error = np.log(np.maximum(error, SMALLEST_ERROR))
    parts.append(log_error[:, None])
  return parts


class Space(NamedTuple):
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

  def with_exemplars(self, rows: np.ndarray, label: np.ndarray) -> 'Space':
    """The same with the `directions` of training samples and their classes."""
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

  def with_usual(
    self, count: np.ndarray, total: np.ndarray, square: np.ndarray
  ) -> 'Space':
    """The same with mean and deviation of the `parts` of training samples.

    Of so many of each class, [K], their sums and those of squares, [K, 3].
    """
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

  def counting(self, margin: float) -> 'Space':
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
    """Answers to the three questions of vectors.py, [N, 3].

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
      size = max(CELLS * 8 // self.exemplar_count[k], 1)
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
    less_own_mean(a, self.mav, label, spare)
    if np.any(self.scale != 1.0):
      a /= self.scale


def less_own_mean(
  a: np.ndarray, mav: np.ndarray, label: np.ndarray, spare: np.ndarray
) -> None:
  """Takes from each row of a [N, D] the mean of its class, in place."""
  np.take(mav, label, axis=0, out=spare, mode='clip')
  a -= spare


def _is_copy(unit: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Whether another, kept, of [N, D] directions and its class is the same, [N].

  Samples that are there twice would be each other's neighbours, and the class's
  other samples far from all of it. Copies lie side by side along any line.
  """
  line = np.random.default_rng(0).standard_normal(unit.shape[1], np.float32)
  order = np.lexsort((unit @ line, label))
  is_copy = np.zeros(len(unit), bool)
  size = max(CELLS // max(unit.shape[1], 1), 1)
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

  for _ in range(NEIGHBOURS):
    find()
  is_itself = found[0] < ITSELF
  if is_itself.any():
    find()
    found = list(np.where(is_itself, found[1:], found[:-1]))
  return np.mean(np.sqrt(found), axis=0)
