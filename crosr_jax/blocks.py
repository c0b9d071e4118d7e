"""Features that come in blocks, pass by pass, on all cores; NumPy only.

N samples, K known classes, D width of the vectors, L of the latent.

A block is taken in pieces, by class, each small enough for the processor's
cache. Where several processes work together, each has blocks of its own; what
they exchange is small, but for `Stream.gather`.
"""

import collections
import concurrent.futures
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from crosr_jax import types, vectors

# Below this share of its block's deviation a coordinate counts as dead.
DEAD_SHARE = 1e-3
# Values that differ by less of themselves are equal.
ROUNDING = 3e-14

# Numbers of a piece of a block: more than vectors.CELLS, as between any two
# operations on them threads wait for Python's lock.
_PIECE = 3 << 16
# Of a float64: sign, exponent and 24 binary digits.
_HIGH_DIGITS = np.uint64(2**64 - 2**29)
# Pieces whose largest distances wait to be merged, at most.
_MOST_PARTS = 1000

Blocks = Callable[[], Iterable[types.Features]]
_Result = TypeVar('_Result')
# Vectors, their labels and memory of the vectors' shape -> anything new.
_Work = Callable[[np.ndarray, np.ndarray, np.ndarray], _Result]
# [n, ...] of this process -> what every process gave, in their order; only n
# may differ between them.
Everyone = Callable[[np.ndarray], Sequence[np.ndarray]]


def alone(rows: np.ndarray) -> Sequence[np.ndarray]:
  """`Everyone` of one process."""
  return [rows]


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
      check_finite(a, 'features')
    return a, self.label, self.memory[1, : len(a)]


class Stream(NamedTuple):
  """Features in blocks, and what passes over them find, of all processes."""

  blocks: Blocks  # of this process, the same each time
  vector: str  # what is made of them, one of vectors.VECTORS
  everyone: Everyone = alone

  def class_means(self) -> tuple[np.ndarray, np.ndarray, int]:
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
        check_finite(piece.vectors(), 'features')
      return kept.label, classes, found, found_low

    count, width = np.zeros(0, np.int64), 0
    total, low = np.zeros((2, 0, 0))
    for (label, classes, *found), shape in self._each(sums):
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
    sizes = np.concatenate(
      self.everyone(np.array(own, np.int64).reshape(-1, 4))
    )
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
    count, total, low = (self._sum(x) for x in (count, total, low))
    # In place: of 20,000 classes, one more copy is gigabytes.
    total[:, first:] += low
    total /= np.maximum(count, 1)[:, None]
    return count, total, width

  def counts(self, mav: np.ndarray, width: int) -> np.ndarray:
    """Correct samples per class, [K], where the means are those of others."""
    count = np.zeros(len(mav), np.int64)

    def labels(piece: _Piece) -> np.ndarray:
      _, label, _ = piece.checked()
      return label[piece.is_correct()]

    for label, sizes in self._each(labels):
      if sizes != (len(mav), width, mav.shape[1]):
        num_classes, latent_width, vector_width = sizes
        raise types.UsageError(
          f'tail_features have {num_classes} classes, a latent of width '
          f'{latent_width} and vectors of {vector_width}, features '
          f'{mav.shape[0]}, {width} and {mav.shape[1]}'
        )
      count += np.bincount(label, minlength=len(mav))
    return self._sum(count)

  def feature_scale(
    self,
    scaling: str,
    count: np.ndarray,
    mav: np.ndarray,
    latent_width: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    """What each coordinate is divided by, [D], and which are dead, [D]."""
    num_classes, width = mav.shape
    scale, dead = np.ones(width), np.zeros(width, bool)
    if scaling == 'none':
      return scale, dead
    # What a constant seems to move is rounding.
    floor = ROUNDING * np.maximum(mav.max(axis=0), -mav.min(axis=0))
    within, overall = self._deviations(count, mav)
    chosen = overall if scaling == 'std' else within
    unit = 1.0
    end = num_classes + latent_width
    for block in (
      slice(num_classes),
      slice(num_classes, end),
      slice(end, width),
    ):
      moving = overall[block][overall[block] > floor[block]]
      # The median: one wild coordinate must not make the others look dead. A
      # block that never moves takes the unit of the logits.
      unit = float(np.median(moving)) if len(moving) else unit
      dead[block] = chosen[block] <= np.maximum(DEAD_SHARE * unit, floor[block])
      scale[block] = np.where(dead[block], unit, chosen[block])
    return scale, dead

  def again(
    self, fn: _Work[_Result], count: np.ndarray
  ) -> Iterator[tuple[_Result, np.ndarray]]:
    """fn(vectors, labels, spare) of the correctly classified, and their labels.

    By piece, in order. fn may change the vectors, and has `spare` of their
    shape to work in. It must return neither. That all others are finite, the
    pass that counted them has seen.

    Raises:
      UsageError: at the end, where there are not as many as were counted.
    """
    seen = np.zeros((1, 1), np.int64)

    def work(piece: _Piece) -> tuple[_Result, np.ndarray]:
      piece = piece.rows(piece.is_correct())
      return fn(*piece.checked()), piece.label

    for (result, label), _ in self._each(work):
      seen += len(label)
      yield result, label
    seen = self._sum(seen)
    if seen[0, 0] != count.sum():
      raise types.UsageError(
        'blocks must be the same each time that they are asked for; of '
        f'{count.sum()} samples that are classified rightly {seen[0, 0]} came '
        'again'
      )

  def moments(
    self, fn: _Work[np.ndarray], count: np.ndarray, width: int
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of rows that fn makes, their sums and those of squares, by class.

    Of all processes: [K], and [K, width] twice. See `again`.
    """
    num_classes = len(count)
    found = np.zeros(num_classes)
    total, square = np.zeros((2, num_classes, width))
    for rows, label in self.again(fn, count):
      found += np.bincount(label, minlength=num_classes)
      _add_by_class(total, label, rows)
      _add_by_class(square, label, np.square(rows))
    return self._sum(found), self._sum(total), self._sum(square)

  def gather(
    self, fn: _Work[np.ndarray], count: np.ndarray, width: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Rows that fn makes, [n, width] float32, and their labels, [n].

    Of all processes. See `again`.
    """
    # Of a process without a sample.
    first = np.zeros((0, width), np.float32), np.zeros(0, np.int64)
    rows, label = (
      np.concatenate(self.everyone(np.concatenate(x)))
      for x in zip(first, *self.again(fn, count), strict=True)
    )
    return rows, label

  def _deviations(
    self, count: np.ndarray, mav: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Deviation around the class means and around the mean of all, each [D]."""
    total = count.sum()
    within = np.zeros(mav.shape[1])

    def squares(
      a: np.ndarray, label: np.ndarray, spare: np.ndarray
    ) -> np.ndarray:
      vectors.less_own_mean(a, mav, label, spare)
      return np.einsum('nd,nd->d', a, a)

    for found, _ in self.again(squares, count):
      within += found
    within = self._sum(within)
    center, between = count @ mav / total, np.zeros_like(within)
    # Some classes at a time: a copy of all means can be gigabytes.
    rows = max(vectors.CELLS // len(center), 1)
    for start in range(0, len(mav), rows):
      part = slice(start, start + rows)
      between += count[part] @ np.square(mav[part] - center)
    return np.sqrt(within / total), np.sqrt((within + between) / total)

  def _each(
    self, fn: Callable[[_Piece], _Result]
  ) -> Iterator[tuple[_Result, tuple[int, int, int]]]:
    """fn of each piece, in order, and K, L and D."""
    # New memory for every piece would take longer than what is computed in it.
    own = threading.local()
    first: list[tuple[int, int, int]] = []

    def work(
      features: types.Features, positions: np.ndarray
    ) -> tuple[_Result, tuple[int, int, int]]:
      rows = features.rows(positions)
      parts = vectors.parts_of(rows, self.vector)
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

    yield from _on_all_cores(work, _pieces(self.blocks))

  def _sum(self, rows: np.ndarray) -> np.ndarray:
    """Of what every process has, [n, ...], in their order; may be in place."""
    if self.everyone is alone:
      return rows
    # Some rows at a time: of 20,000 classes, one copy for each process is too
    # much.
    size = max(vectors.CELLS // max(int(np.prod(rows.shape[1:])), 1), 1)
    for start in range(0, len(rows), size):
      part = slice(start, start + size)
      rows[part] = functools.reduce(np.add, self.everyone(rows[part]))
    return rows


class Tails:
  """The largest distances per class of a stream, in bounded memory."""

  def __init__(self, size: np.ndarray):
    self._size = size
    self._label = np.zeros(0, np.int64)
    self._distance = np.zeros(0)
    self._floor = np.full(len(size), -np.inf)  # below: cannot enter the tail
    self._new: list[tuple[np.ndarray, np.ndarray]] = []
    self._num_new = 0

  def add(self, label: np.ndarray, distance: np.ndarray) -> None:
    """Takes those of [n] distances, and their classes, that may be largest."""
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


def check_finite(values: np.ndarray, what: str) -> None:
  """Raises a UserError where not all values are; `what` is their name."""
  bad = values.size - np.count_nonzero(np.isfinite(values))
  if bad:
    raise types.UserError(
      f'{what}: {bad} of {values.size} values are not finite; find the '
      'samples or the training step they come from'
    )


def _is_finite(a: np.ndarray) -> bool:
  """Whether all are; False, too, where squares are too large to say."""
  # A sum is finite only if every term is.
  with np.errstate(invalid='ignore', over='ignore'):
    return bool(np.isfinite(np.vecdot(a, a).sum()))


def _pieces(
  blocks: Blocks,
) -> Iterator[tuple[types.Features, np.ndarray]]:
  """Blocks, and positions in them: by class, about _PIECE numbers at a time."""
  for features in blocks():
    vectors.check_features(features)
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
