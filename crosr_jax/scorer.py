"""Open-set probabilities and unknown scores of features.

N samples, B rows of a block, K known classes, D activation width.

Rows are scored in blocks of a fixed size by one program, each row on its own:
a sample's score is the same, to the last bit, whatever else is in its batch.
Inside it the samples come last, [K, B]: they fill a processor's registers where
there are few classes.
"""

import concurrent.futures
import functools
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crosr_jax import types, vectors

Array = jax.Array

DECISIONS = ('argmax', 'half', 'tpr95', 'calibrated')

# Log-odds beyond it go on logarithmically, so that float32 neither overflows
# nor ties; up there the two scales meet to less than one ulp.
LARGEST_LOG_ODDS = 1e20
# Up to this K * D, distances are sums of squared differences, which cancel
# nothing; above, a matmul, and such sums for the nearest classes alone.
_DIRECT = 16_384
_NEAREST = 8
# A squared distance below this share of the two squared norms counts as near:
# there a matmul's loses more than two bits.
_CLOSE = 0.25
# Rows of a block: as many as make its [B, K] and [B, D] a good piece of work,
# within bounds; but never more than memory has room for, 16 MiB each, which is
# what a GPU takes. As many for fewer samples: no score may depend on them.
_GOOD_CELLS, _MOST_CELLS = 1 << 18, 1 << 22
_FEWEST_ROWS, _MOST_ROWS = 128, 2048
# Blocks at once: XLA computes on all cores in a matmul alone.
_THREADS = min(8, os.cpu_count() or 1)


class Method(NamedTuple):
  """What a method needs and what it gives."""

  vectors: tuple[str, ...]  # `vector` of the models it takes, () = no model
  is_probability: bool  # False: a score alone, column K of probability is 0
  reads: str = 'logits'  # 'joint': the latent too, where it takes no model


METHODS = {
  'softmax': Method((), True),
  'max_logit': Method((), False),
  'energy': Method((), False),
  'openmax': Method(('logits',), True),
  'crosr_y': Method(('logits',), True),
  'crosr': Method(('joint', 'evidence', 'neighbour'), True),
  'augmented': Method((), True, 'joint'),
}


class _Fitted(NamedTuple):
  """A WeibullModel in the program's float32."""

  center: types.Array  # [D] mean of the MAVs
  unit: types.Array  # [D] 1 / feature_scale
  # [K, D] less center, times unit; of those with parts [K, D-K], all but the
  # logits
  mav: types.Array
  own: types.Array  # [K] the same of each class's own logit
  shape: types.Array  # [K]
  loc: types.Array  # [K]
  scale: types.Array  # [K]
  one: types.Array  # [K] loc + scale: the distance where the CDF is 1 - 1/e
  square: types.Array  # [1, K] squared norms of mav; of those with parts
  # [2, K], of latent and error
  part_mean: types.Array  # [3, K] of those with parts
  part_unit: types.Array  # [3, K] weight / part_deviation
  # [K, K+L] of 'neighbour': the mean of each class's exemplars; of others, as
  # the next two, of nothing
  middle: types.Array
  # [K, M, K+L] exemplars less that, as many as the largest class has
  exemplars: types.Array
  # [K, M] half of the squared norm of exemplars less that of their middle;
  # infinite where there is none
  half_square: types.Array


class _Parts(NamedTuple):
  """What a program knows of a model whose vector has parts."""

  width: int  # L, of the latent
  neighbours: int  # nearest exemplars that are asked about


class Prepared(NamedTuple):
  """A model as `score` computes with it, on the device; see `prepare`."""

  model: types.WeibullModel
  fitted: _Fitted


def prepare(model: types.WeibullModel) -> Prepared:
  """For many calls of `score`, each of which would convert the model anew.

  It takes the memory of the model that `score` tells of for as long as it is
  kept, and does not see what is changed in the model's arrays after this.
  """
  return Prepared(model, jax.device_put(_float32(model, on_device=True)))


def score(
  features: types.Features,
  model: types.WeibullModel | Prepared | None = None,
  *,
  method: str = 'crosr',
  alpha: int = 10,
) -> types.Scores:
  """Scores N samples.

  Takes no memory for them but the result's and that of a few blocks of rows,
  16 MiB an array at most, or 32 K (K + L) bytes of 'neighbour' where that is
  more; for a model that of its means [K, D] in float32, once
  (of 'evidence', without their logits), and of the exemplars of 'neighbour', of
  each class as many as the largest has.

  Args:
    features: of any net.
    model: from `weibull.fit` or `prepare`; 'softmax', 'max_logit', 'energy' and
      'augmented' need none.
    method: 'softmax', 'max_logit' (Vaze et al. 2022), 'energy' (-log sum exp of
      the logits, Liu et al. 2020), 'openmax' (Bendale and Boult 2016),
      'crosr' (Yoshihashi et al. 2019), 'crosr_y' (its formula on logits
      alone, which the authors' release calls OpenMax) or 'augmented': of a net
      that was trained with unknowns as class K (Neal et al. 2018), whose last
      logit comes as the latent, [N, 1].
    alpha: number of top classes that 'openmax' revises; above K it means K.

  Returns:
    One row per sample.

  Raises:
    ValueError: for an unknown method, a model that is missing or suits
      neither method nor features, and features that are not finite.
  """
  types.check_choice('method', method, METHODS)
  check_fields(alpha=alpha)
  vectors.check_rows(features)
  reads, fitted = METHODS[method].reads, None
  if isinstance(model, Prepared):
    model, fitted = model
  if METHODS[method].vectors:
    model = _suitable(model, method)
    reads = model.vector
    fitted = fitted or _float32(model, on_device=True)
  else:
    model = fitted = None
  num_classes = np.shape(features.logits)[1]
  vector = _vectors(features, reads, model)
  width = vector(0, 1).shape[1]
  if method == 'augmented' and width != num_classes + 1:
    raise types.UsageError(
      "method 'augmented' needs the logit of unknown as a latent of width 1, "
      f'got width {width - num_classes}'
    )
  program = functools.partial(
    _program,
    method=method,
    alpha=min(alpha, num_classes),
    k=num_classes,
    parts=_parts(model),
  )
  probability, unknown_score = by_blocks(
    program, vector, len(features.label), fitted, _columns(fitted, num_classes)
  )
  if not np.isfinite(unknown_score).all():
    row = int(np.flatnonzero(~np.isfinite(unknown_score))[0])
    raise _too_large(row, vector(row, row + 1))
  column = np.argmax(probability, axis=1)
  return types.Scores(
    probability=probability,
    prediction=np.where(column == num_classes, types.UNKNOWN, column).astype(
      np.int32
    ),
    unknown_score=unknown_score,
  )


def traced(
  logits: Array,
  latent: Array,
  error: Array | None,
  model: types.WeibullModel | None,
  *,
  method: str,
  alpha: int,
) -> tuple[Array, Array]:
  """`score` for a program that JAX traces, the model a part of it.

  Args:
    logits: [B, K].
    latent: [B, L].
    error: [B], mean squared errors of the reconstructions; None = there is no
      reconstruction.
    model: see `score`.
    method: see `score`.
    alpha: see `score`.

  Returns:
    probability [B, K+1] and unknown_score [B].

  Raises:
    UsageError: where the model is of features of other widths.
  """
  num_classes = logits.shape[1]
  reads = METHODS[method].reads
  fitted = None
  if METHODS[method].vectors:
    model = _suitable(model, method)
    fitted, reads = _float32(model, on_device=False), model.vector
  parts = [logits]
  if reads != 'logits':
    parts.append(latent)
  if reads in vectors.PART_WEIGHTS and error is not None:
    parts.append(jnp.log(jnp.maximum(error, vectors.SMALLEST_ERROR))[:, None])
  joined = jnp.concatenate(parts, axis=1)
  if fitted is not None and model is not None:
    _check_widths(model, num_classes, latent.shape[1], joined.shape[1])
  return _program(
    joined,
    fitted,
    method=method,
    alpha=min(alpha, num_classes),
    k=num_classes,
    parts=_parts(model),
  )


def rejects(
  features: types.Features, models: Sequence[types.WeibullModel]
) -> np.ndarray:
  """Whether argmax of CROSR's probabilities is unknown, [N, T].

  For T models that differ in nothing but their tails, as weibull.fit_shares
  gives them: the distances are computed once.

  Args:
    features: N samples.
    models: T.

  Raises:
    ValueError: as `score`.
  """
  vectors.check_rows(features)
  first = _suitable(models[0], 'crosr')
  fitted = _float32(first, on_device=True)
  tails = [
    np.stack([getattr(model, name) for model in models]).astype(np.float32)
    for name in ('shape', 'loc', 'scale')
  ]
  one = np.stack([model.loc + model.scale for model in models])
  program = functools.partial(_rejects_program, parts=_parts(first))
  (found,) = by_blocks(
    program,
    _vectors(features, first.vector, first),
    len(features.label),
    (fitted, (*tails, one.astype(np.float32))),
    _columns(fitted, len(first.mav) * len(models)),
  )
  return found


def check_fields(*, alpha: int = 10, decision: str = 'argmax') -> None:
  """Raises a UsageError where `score` or `decide` would."""
  if not isinstance(alpha, int | np.integer) or alpha < 1:
    raise types.UsageError(
      f'alpha must be a whole number of at least 1, got {alpha}'
    )
  types.check_choice('decision', decision, DECISIONS)


def distances(
  features: types.Features, model: types.WeibullModel
) -> np.ndarray:
  """Distances to every class mean, [N, K] float32, as `score` takes them."""
  vectors.check_rows(features)
  fitted = _float32(model, on_device=True)
  program = functools.partial(_distance_program, parts=_parts(model))
  (result,) = by_blocks(
    program,
    _vectors(features, model.vector, model),
    len(features.label),
    fitted,
    _columns(fitted, len(model.mav)),
  )
  return result


def decide(
  scores: types.Scores,
  closed_prediction: np.ndarray,
  *,
  decision: str = 'argmax',
  threshold: float | None = None,
) -> np.ndarray:
  """The class of each sample, [N] int32, -1 = unknown.

  Args:
    scores: N rows.
    closed_prediction: argmax of the logits, [N].
    decision: 'argmax' of the K + 1 probabilities; 'half': the class with
      p >= 0.5, unknown where there is none; 'tpr95' and 'calibrated': unknown
      where the unknown score is above `threshold`, else the closed-set class.
    threshold: chosen on held-out known samples, to keep 95 % of them or all but
      the share that was asked for; where the decision needs one.

  Raises:
    ValueError: for an unknown decision, one without its threshold, and classes
      of other samples.
  """
  check_fields(decision=decision)
  if np.shape(closed_prediction) != np.shape(scores.prediction):
    raise types.UsageError(
      f'closed_prediction has shape {np.shape(closed_prediction)}, the scores '
      f'are of {len(scores.prediction)} samples'
    )
  if decision == 'argmax':
    return scores.prediction
  if decision == 'half':
    accepted = scores.probability.max(axis=1) >= 0.5
    known = scores.prediction
  else:
    if threshold is None or np.isnan(threshold):
      raise types.UsageError(
        f'decision {decision!r} needs a threshold, got {threshold}; '
        'choice.threshold finds one'
      )
    accepted = scores.unknown_score <= threshold
    known = closed_prediction
  return np.where(accepted, known, types.UNKNOWN).astype(np.int32)


@functools.partial(jax.jit, static_argnames=('method', 'alpha', 'k', 'parts'))
def _program(
  a: Array,
  fitted: _Fitted | None,
  *,
  method: str,
  alpha: int,
  k: int,
  parts: _Parts | None,
) -> tuple[Array, Array]:
  """[B, D] -> probability [B, K+1], unknown_score [B]."""
  logits = a[:, :k]
  if method == 'softmax':
    return _softmax(logits)
  if method in ('max_logit', 'energy'):
    closed = jnp.pad(jax.nn.softmax(logits, axis=1), ((0, 0), (0, 1)))
    if method == 'max_logit':
      return closed, -logits.max(axis=1)
    return closed, -jax.nn.logsumexp(logits, axis=1)
  if method == 'augmented':
    against = jax.nn.logsumexp(logits, axis=1)
    return jax.nn.softmax(a, axis=1), a[:, k] - against
  assert fitted is not None
  d = _distances(a, fitted, parts)
  if method == 'openmax':
    return _openmax(
      logits, log_power(d, fitted.shape, fitted.one, fitted.scale).T, alpha
    )
  return _crosr(logits.T, d, fitted)


@functools.partial(jax.jit, static_argnames=('parts',))
def _distance_program(
  a: Array, fitted: _Fitted, *, parts: _Parts | None
) -> tuple[Array]:
  return (_distances(a, fitted, parts).T,)


@functools.partial(jax.jit, static_argnames=('parts',))
def _rejects_program(
  a: Array,
  fitted: tuple[_Fitted, tuple[Array, ...]],
  *,
  parts: _Parts | None,
) -> tuple[Array]:
  """[B, D] and the tails of T models, shape, loc, scale and one -> [B, T]."""
  first, tails = fitted
  d = _distances(a, first, parts)
  logits = a[:, : len(first.own)].T

  def rejected(shape: Array, loc: Array, scale: Array, one: Array) -> Array:
    model = first._replace(shape=shape, loc=loc, scale=scale, one=one)
    probability, _ = _crosr(logits, d, model)
    return jnp.argmax(probability, axis=1) == len(logits)

  return (jax.vmap(rejected)(*tails).T,)


def _distances(a: Array, fitted: _Fitted, parts: _Parts | None) -> Array:
  """[B, D] -> [K, B]."""
  x = (a - fitted.center[None, :]) * fitted.unit[None, :]
  if parts is None:
    return norms(x, fitted.mav, fitted.square[0])
  # As in vectors.py: own logit or nearest samples, code and, where there is
  # one, error.
  k, width = len(fitted.own), parts.width
  logits, rest = jnp.split(x, [k], axis=1)
  if parts.neighbours:
    answers = [(0, _nearest(a[:, : k + width], fitted, parts.neighbours))]
  else:
    answers = [(0, fitted.own[:, None] - logits.T)]
  for i, columns in ((1, slice(width)), (2, slice(width, None))):
    mav = fitted.mav[:, columns]
    # A part that the features lack tells nothing.
    if mav.shape[1]:
      answers.append((i, norms(rest[:, columns], mav, fitted.square[i - 1])))
  square = jnp.zeros((), a.dtype)
  for i, answer in answers:
    mean, unit = fitted.part_mean[i], fitted.part_unit[i]
    above = jnp.maximum((answer - mean[:, None]) * unit[:, None], 0.0)
    square = square + jnp.square(above)
  return jnp.sqrt(square)


def _nearest(joint: Array, fitted: _Fitted, count: int) -> Array:
  """Mean root of distances to each class's nearest, [B, K+L] -> [K, B].

  To `count` exemplars, as directions. A sample that is an exemplar is passed
  over; where there are too few, the last stands for those that are missing.
  """
  k, size, width = fitted.exemplars.shape
  # Squares of what is very large or very small leave float32.
  peak = jnp.max(jnp.abs(joint), axis=1, keepdims=True)
  joint = joint / jnp.maximum(peak, vectors.SHORTEST)
  length = jnp.linalg.norm(joint, axis=1, keepdims=True)
  unit = joint / jnp.maximum(length, vectors.SHORTEST)
  flat = fitted.exemplars.reshape(k * size, width)
  product = jnp.matmul(flat, unit.T, precision=jax.lax.Precision.HIGHEST)
  # The larger, the nearer: of what is far from the middle alone, as cosines of
  # a class whose directions lie close together are all 1, up to rounding.
  near = product.reshape(k, size, -1) - fitted.half_square[:, :, None]
  from_middle = unit[None] - fitted.middle[:, None]

  how_many = jnp.isfinite(fitted.half_square).sum(axis=1)[:, None]
  row = jnp.arange(size)[None, :, None]

  def next_after(
    places: list[Array], away: list[Array]
  ) -> tuple[list[Array], list[Array]]:
    """Both with the next nearest of each class, [K, B]."""
    left = near
    for place in places:
      left = jnp.where(row == place[:, None, :], -jnp.inf, left)
    # What float32 makes of such a product is good enough to find the nearest,
    # and not for how near it is.
    place = jnp.argmax(left, axis=1)
    position = place + size * jnp.arange(k)[:, None]
    found = flat.at[position].get(mode='promise_in_bounds')
    apart = jnp.sqrt(jnp.sum(jnp.square(from_middle - found), axis=2))
    if away:
      apart = jnp.where(how_many > len(away), apart, away[-1])
    return [*places, place], [*away, apart]

  def mean_root(away: list[Array]) -> Array:
    return jnp.mean(jnp.sqrt(jnp.stack(away)), axis=0)

  places: list[Array] = []
  away: list[Array] = []
  for _ in range(count):
    places, away = next_after(places, away)
  is_itself = away[0] < vectors.ITSELF

  def without_itself() -> Array:
    _, more = next_after(places, away)
    return jnp.where(is_itself, mean_root(more[1:]), mean_root(away))

  return jax.lax.cond(is_itself.any(), without_itself, lambda: mean_root(away))


def norms(x: Array, mav: Array, mav_square: Array) -> Array:
  """Norms of x [B, D] less each of mav [K, D], [K, B].

  `mav_square` is the squared norms of mav, [K].
  """
  if mav.size <= _DIRECT:
    # With classes first: turned round afterwards, XLA rounds the last rows of a
    # block in another way.
    difference = x[None, :, :] - mav[:, None, :]
    return jnp.sqrt(jnp.sum(jnp.square(difference), axis=2))
  product = jnp.matmul(mav, x.T, precision=jax.lax.Precision.HIGHEST)
  whole = jnp.sum(jnp.square(x), axis=1)[None, :] + mav_square[:, None]
  square = whole - 2.0 * product
  # What is left of two large squares near a class mean has few true digits:
  # there, nearest first, by each sample's own need, whoever is beside it.
  close = jnp.where(square < _CLOSE * whole, square, jnp.inf)
  classes = jnp.arange(len(mav))[:, None]

  def more(carry: tuple[Array, ...]) -> Array:
    count, least, *_ = carry
    return (count < _NEAREST) & jnp.any(least < jnp.inf)

  def exact(carry: tuple[Array, ...]) -> tuple[Array, ...]:
    count, least, close, square = carry
    nearest = jnp.argmin(close, axis=0)
    difference = x - mav.at[nearest].get(mode='promise_in_bounds')
    found = jnp.sum(jnp.square(difference), axis=1)
    # Masks, not indices of rows: these a program for batches of any size may
    # not have.
    is_nearest = classes == nearest[None, :]
    is_wanted = is_nearest & (least < jnp.inf)[None, :]
    square = jnp.where(is_wanted, found[None, :], square)
    close = jnp.where(is_nearest, jnp.inf, close)
    return count + 1, close.min(axis=0), close, square

  zero = jnp.zeros((), jnp.int32)
  start: tuple[Array, ...] = (zero, close.min(axis=0), close, square)
  *_, square = jax.lax.while_loop(more, exact, start)
  return jnp.sqrt(jnp.maximum(square, 0.0))


def log_power(d: Array, shape: Array, one: Array, scale: Array) -> Array:
  """log of t = ((d - loc) / scale)**shape, [K, B]; cdf = 1 - exp(-t).

  Through log1p around the point where t is 1: the digits of d - loc - scale
  are all there, however large the shape.

  Args:
    d: distances, [K, B].
    shape: [K].
    one: loc + scale, [K].
    scale: [K].
  """
  x = jnp.maximum((d - one[:, None]) / scale[:, None], -1.0)
  return shape[:, None] * jnp.log1p(x)


def _log_cdf(log_t: Array, t: Array) -> Array:
  """log w; below the switch 1 - exp(-t) = t exp(-t / 2) to float32."""
  return jnp.where(log_t < -8.0, log_t - t / 2.0, jnp.log(-jnp.expm1(-t)))


def log_odds_of_cdf(log_t: Array, inside: Array) -> Array:
  """log(w / (1 - w)), [K, B], carried on where it ends, as `_extend` does.

  Args:
    log_t: as log_power has it; w = 1 - exp(-t).
    inside: how far below `loc`, where w is 0.
  """
  t = jnp.exp(log_t)
  return _extend(_log_cdf(log_t, t), t, log_t, inside)


def _softmax(logits: Array) -> tuple[Array, Array]:
  """The top class keeps its probability, unknown gets the rest."""
  k = logits.shape[1]
  is_top = jax.nn.one_hot(jnp.argmax(logits, axis=1), k, dtype=bool)
  closed = jax.nn.softmax(logits, axis=1)
  rest = jnp.sum(jnp.where(is_top, 0.0, closed), axis=1, keepdims=True)
  others = jax.nn.logsumexp(jnp.where(is_top, -jnp.inf, logits), axis=1)
  probability = jnp.concatenate([jnp.where(is_top, closed, 0.0), rest], axis=1)
  return probability, others - logits.max(axis=1)


def _openmax(
  logits: Array, log_power: Array, alpha: int
) -> tuple[Array, Array]:
  """Bendale and Boult 2016, algorithm 2; rank 0 is the top class."""
  rank = jnp.argsort(jnp.argsort(-logits, axis=1), axis=1)
  weight = jnp.maximum(alpha - rank, 0).astype(logits.dtype) / alpha
  tail_cdf = -jnp.expm1(-jnp.exp(log_power))
  moved = logits * tail_cdf * weight
  unknown = moved.sum(axis=1, keepdims=True)
  known = logits - moved
  probability = jax.nn.softmax(jnp.concatenate([known, unknown], axis=1))
  return probability, unknown[:, 0] - jax.nn.logsumexp(known, axis=1)


def _crosr(logits: Array, d: Array, fitted: _Fitted) -> tuple[Array, Array]:
  """p_i = softmax_i (1 - w_i), p_unknown = sum of softmax_i w_i.

  Of logits and distances [K, B].
  """
  log_t = log_power(d, fitted.shape, fitted.one, fitted.scale)
  t = jnp.exp(log_t)
  log_closed = jax.nn.log_softmax(logits, axis=0)
  known, _, log_known = _exponentials(log_closed - t)
  _, unknown, log_unknown = _exponentials(log_closed + _log_cdf(log_t, t))
  # log of the least t_i - log p_i; where float32 ends, t alone counts.
  least = jnp.min(t - log_closed, axis=0)
  log_least = jnp.where(jnp.isfinite(least), jnp.log(least), log_t.min(axis=0))
  inside = jnp.min(fitted.loc[:, None] - d, axis=0)
  return (
    jnp.concatenate([known, unknown]).T,
    _extend(log_unknown, -log_known, log_least, inside),
  )


def _exponentials(x: Array) -> tuple[Array, Array, Array]:
  """exp(x) [K, B], their sums [1, B], and the logarithms of those [B].

  The last as accurate where all of the others are 0.
  """
  top = x.max(axis=0, keepdims=True)
  top = jnp.where(jnp.isfinite(top), top, 0.0)
  value = jnp.exp(x - top)
  total = value.sum(axis=0, keepdims=True)
  unit = jnp.exp(top)
  return value * unit, total * unit, (top + jnp.log(total))[0]


def _extend(
  log_unknown: Array, against: Array, log_least: Array, inside: Array
) -> Array:
  """Log-odds log_unknown + against, carried on where they end, of any shape.

  Above LARGEST_LOG_ODDS they are the least t_i - log p_i, of which the
  logarithm is at hand, `log_least`; where no class finds anything strange (cdf
  0 for all) the depth inside the tails, `inside`, ranks.
  """
  beyond = 1.0 + log_least - np.log(LARGEST_LOG_ODDS).astype(np.float32)
  depth = 1.0 + jnp.log1p(jnp.maximum(inside, 0.0))
  result = jnp.where(
    against < LARGEST_LOG_ODDS,
    log_unknown + against,
    LARGEST_LOG_ODDS * beyond,
  )
  return jnp.where(jnp.isneginf(log_unknown), -LARGEST_LOG_ODDS * depth, result)


def by_blocks(
  program: Callable[..., tuple[Array, ...]],
  vector: Callable[[int, int], np.ndarray],
  count: int,
  fitted: Any,
  columns: int,
) -> tuple[np.ndarray, ...]:
  """Runs a program over N rows in blocks of one size, the last one padded.

  Args:
    program: of a block [B, D] and `fitted`, gives arrays of B rows.
    vector: from start and stop to the activation vectors of these rows, in
      float32; what it raises for the first of the rows is raised.
    count: N.
    fitted: arrays, put on the device once.
    columns: that the program makes of a row, where they are more than D.
  """
  # Named, since threads do not see what a caller set for itself.
  (device,) = jax.device_put(np.zeros(())).devices()
  rows = _rows(max(columns, vector(0, 1).shape[1]), device.platform)
  fitted = jax.device_put(fitted, device)

  def run(start: int) -> list[np.ndarray]:
    block = vector(start, min(start + rows, count))
    stop = len(block)
    if stop < rows:
      block = np.pad(block, ((0, rows - stop), (0, 0)))
    with jax.default_device(device):
      found = program(block, fitted)
    return [np.asarray(x)[:stop] for x in found]

  first = run(0)
  whole = tuple(np.empty((count, *x.shape[1:]), x.dtype) for x in first)

  def fill(start: int, found: list[np.ndarray]) -> None:
    for all_of_it, part in zip(whole, found, strict=True):
      all_of_it[start : start + rows] = part

  fill(0, first)
  starts = range(rows, count, rows)
  if starts:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
      # In order, so that of several errors the first is told.
      deque(threads.map(lambda start: fill(start, run(start)), starts), 0)
  return whole


def _rows(widest: int, platform: str) -> int:
  """Of a block with so many columns, a power of two."""
  good = _MOST_CELLS if platform == 'gpu' else _GOOD_CELLS
  rows = min(max(good // widest, _FEWEST_ROWS), _MOST_ROWS)
  return 1 << (min(rows, max(_MOST_CELLS // widest, 8)).bit_length() - 1)


def _suitable(
  model: types.WeibullModel | None, method: str
) -> types.WeibullModel:
  wanted = METHODS[method].vectors
  if model is None:
    raise types.UsageError(
      f'method {method!r} needs a model: weibull.fit(features, '
      f'vector={wanted[0]!r}, ...)'
    )
  if model.vector not in wanted:
    raise types.UsageError(
      f'method {method!r} needs a model fitted on vector='
      f'{" or ".join(map(repr, wanted))}, this one was fitted on '
      f'{model.vector!r}'
    )
  return model


def _float32(model: types.WeibullModel, *, on_device: bool) -> _Fitted:
  """Converts some classes at a time: of 20,000, a copy is gigabytes.

  With `on_device` large means are put together there, in memory that is free as
  soon as nobody uses it; of NumPy's, JAX holds on to what it was given.
  """
  center = model.mav.mean(axis=0).astype(np.float32)
  unit = (1.0 / model.feature_scale).astype(np.float32)
  k, width = model.mav.shape
  own = (np.diagonal(model.mav) - center[:k]) * unit[:k]
  first, edges = 0, []
  if model.vector in vectors.PART_WEIGHTS:
    # They ask for distances of code and error alone.
    first, edges = k, [model.latent_width]
  shape = k, width - first
  on_device = on_device and math.prod(shape) > _MOST_CELLS
  mav = (jnp.zeros if on_device else np.empty)(shape, np.float32)
  square = np.empty((1 + len(edges), k), np.float32)
  rows = max(_GOOD_CELLS // width, 1)
  for start in range(0, k, rows):
    chosen = slice(start, start + rows)
    part = model.mav[chosen, first:] - center[first:]
    part *= unit[first:]
    part = part.astype(np.float32)
    for i, x in enumerate(np.split(part, edges, axis=1)):
      square[i, chosen] = np.einsum('kd,kd->k', x, x)
    if on_device:
      mav = _with_rows(mav, part, start)
    else:
      mav[chosen] = part
  weights = model.part_weight
  if not len(weights):
    weights = np.asarray(vectors.EVIDENCE_WEIGHTS)
  arrays = (
    *(own, model.shape, model.loc, model.scale, model.loc + model.scale),
    *(square, model.part_mean.T, (weights / model.part_deviation).T),
  )
  converted = [x.astype(np.float32) for x in arrays]
  return _Fitted(*(center, unit, mav, *converted, *_padded(model)))


@functools.partial(jax.jit, donate_argnums=0)
def _with_rows(whole: Array, rows: Array, start: Array) -> Array:
  """`whole` with other rows from `start` on, in the same memory."""
  return jax.lax.dynamic_update_slice_in_dim(whole, rows, start, axis=0)


def _padded(
  model: types.WeibullModel,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`middle`, `exemplars` and `half_square` of _Fitted."""
  count = model.exemplar_count
  shape = len(count), max(count, default=0), model.exemplars.shape[1]
  middle = np.zeros((shape[0], shape[2]), np.float32)
  padded = np.zeros(shape, np.float32)
  half_square = np.full(shape[:2], np.inf, np.float32)
  start = np.cumsum(count) - count
  for k, (n, first) in enumerate(zip(count, start, strict=True)):
    of_class = model.exemplars[first : first + n]
    middle[k] = of_class.mean(axis=0, dtype=np.float64)
    padded[k, :n] = of_class - middle[k]
    # |e|^2 - |m|^2 = (e - m)(e + m), of the digits that float32 keeps.
    more = padded[k, :n].astype(np.float64)
    half_square[k, :n] = np.vecdot(more, more / 2 + middle[k])
  return middle, padded, half_square


def _columns(fitted: _Fitted | None, num_classes: int) -> int:
  """What a program makes of a row at most, beside its vector."""
  if fitted is None:
    return num_classes
  # Products with all exemplars, and one of each class.
  k, size, width = fitted.exemplars.shape
  return max(num_classes, k * size, k * width)


def _parts(model: types.WeibullModel | None) -> _Parts | None:
  if model is None or model.vector not in vectors.PART_WEIGHTS:
    return None
  return _Parts(model.latent_width, model.neighbours)


def _vectors(
  features: types.Features, vector: str, model: types.WeibullModel | None
) -> Callable[[int, int], np.ndarray]:
  """`vector_of` rows from start to stop, for by_blocks."""

  def rows(start: int, stop: int) -> np.ndarray:
    return vector_of(features.rows(slice(start, stop)), vector, model, start)

  return rows


def vector_of(
  features: types.Features,
  vector: str,
  model: types.WeibullModel | None,
  start: int = 0,
) -> np.ndarray:
  """The activation vectors, [N, D] float32, checked.

  Args:
    features: of N samples.
    vector: see weibull.fit.
    model: that they should suit; None = any.
    start: number of the first row, for errors.

  Raises:
    UserError: for features that are not finite, or not those of the model.
  """
  with np.errstate(over='ignore'):
    a = vectors.activation_vector(features, vector, np.float32)
  if not np.isfinite(a).all():
    row = np.flatnonzero(~np.isfinite(a).all(axis=1))[0]
    given = vectors.activation_vector(
      features.rows(slice(row, row + 1)), vector
    )
    if np.isfinite(given).all():
      raise _too_large(start + row, given)
    raise types.UserError(
      f'features of sample {start + row} are not finite; look at its input '
      'and at the training that made the net'
    )
  k = np.shape(features.logits)[1]
  if k < 2:
    raise types.UsageError(f'logits need at least 2 classes, got {k}')
  if model is None:
    return a
  latent_width = np.shape(features.latent)[1]
  if not len(a) and vector in vectors.PART_WEIGHTS:
    # Of no sample one cannot tell whether it has an error.
    a = np.zeros((0, model.mav.shape[1]), np.float32)
  _check_widths(model, k, latent_width, a.shape[1])
  return a


def _too_large(row: int, vector: np.ndarray) -> types.UserError:
  return types.UserError(
    f'features of sample {row} are too large for float32 (they reach '
    f'{np.abs(vector).max():g}, and their distances overflow); divide all '
    'features by one number before fit and score'
  )


def _check_widths(
  model: types.WeibullModel, k: int, latent_width: int, width: int
) -> None:
  """Raises a UsageError where features are not like those that were fitted."""
  has_parts = model.vector in vectors.PART_WEIGHTS
  if has_parts and latent_width != model.latent_width:
    raise types.UsageError(
      f'the model knows latents of width {model.latent_width}, the features '
      f'have {latent_width}'
    )
  if (k, width) != model.mav.shape:
    raise types.UsageError(
      f'the model knows {model.mav.shape[0]} classes and vectors of width '
      f'{model.mav.shape[1]} ({model.vector}), the features have {k} and '
      f'{width}'
    )
