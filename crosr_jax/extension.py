"""Classes that come after training: a mean and a tail each, nothing retrained.

The net has no logit for such a class, so it can only name what the known
classes reject: an answer that was a known class stays as it is. What they
reject is the added class whose tail it is farthest inside, if it is inside one.

What tells classes apart that the net was not trained on is the direction of
their activation vectors, not their length (docs/experiments.md, 6). So the
vector is that of 'joint' less the mean of all class means, in the units of the
fitted model, divided by its norm; the mean and the distances are of those.

N samples, B batch, K known classes, M added ones, D = K + latent width.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crosr_jax import choice, scorer, types, vectors, weibull

Array = jax.Array

# Images of a class; of fewer, a tail says nothing.
SMALLEST_CLASS = 10
_TAIL_SHARE = 0.05
_SMALLEST_NORM = 1e-12
_LEAST_LIMIT = 1e-6
_ALIKE = 1e-6  # of directions, in which float32 has few digits more


class Extension(NamedTuple):
  """M added classes."""

  class_names: tuple[str, ...]  # M
  center: np.ndarray  # [D] float64, subtracted from activation vectors
  unit: np.ndarray  # [D] what they are divided by then
  mav: np.ndarray  # [M, D] means of the directions
  shape: np.ndarray  # [M] of the Weibulls, as types.WeibullModel has them
  loc: np.ndarray  # [M]
  scale: np.ndarray  # [M]
  share: np.ndarray  # [M] of the samples of the class that made its tail
  # [M] CDF up to which a sample is taken as of the class
  limit: np.ndarray


def add(
  name: str,
  features: types.Features,
  fitted: types.WeibullModel,
  *,
  reject_known: float,
  before: Extension | None = None,
) -> Extension:
  """The added classes with one more.

  Each sample's distance is taken to the mean of the others, n / (n - 1) times
  that to the mean of all: a class may have few samples, and new ones lie as far
  out as these would without their own pull on the mean. The limit is where
  `reject_known` of the class lies beyond: the tail holds t of n samples, so
  that is where its CDF is 1 - reject_known n / t.

  Args:
    name: of the new class.
    features: of n samples of it; labels are not looked at.
    fitted: of the known classes, on any vector but 'logits'.
    reject_known: share of the class that may be rejected, in (0, 0.5).
    before: classes added to the same model so far.

  Raises:
    UserError: for fewer than 10 samples, and samples that are all alike or not
      of the model's net.
  """
  choice.check_reject_known(reject_known)
  vectors.check_rows(features)
  if fitted.vector == 'logits':
    raise types.UsageError(
      'a class can be added to a model that looks at codes; this one was '
      f'fitted on {fitted.vector!r}'
    )
  width = fitted.mav.shape[1]
  if fitted.vector in vectors.PART_WEIGHTS:
    width = len(fitted.mav) + fitted.latent_width
  center = fitted.mav.mean(axis=0)[:width]
  unit = fitted.feature_scale[:width]
  a = _vector(features, center, len(fitted.mav)).astype(np.float64)
  direction = _distinct(_directions(np, a, center, unit))
  count = len(direction)
  if count < SMALLEST_CLASS:
    raise types.UserError(
      f'{name}: {count} different samples, at least {SMALLEST_CLASS} are '
      'needed for the tail of a class'
    )
  mav = direction.mean(axis=0, keepdims=True)
  away = np.linalg.norm(direction - mav, axis=1) * count / (count - 1)
  share = max(_TAIL_SHARE, 2.0 * reject_known)
  tail = max(weibull.SMALLEST_SHARED_TAIL, int(np.ceil(share * count)))
  tail = min(tail, count)
  if np.ptp(np.sort(away)[-tail:]) < _ALIKE:
    raise types.UserError(
      f'{name}: the {tail} farthest of its {count} samples are alike; leave '
      'duplicates out and add different ones'
    )
  shape, loc, scale = weibull.fit_tails(away[None], tail_size=tail)
  new = Extension(
    *((name,), center, unit, mav, shape, loc, scale),
    share=np.array([tail / count]),
    limit=np.zeros(1),
  )
  new = rejecting(new, reject_known)
  if before is None:
    return new
  rows = ('mav', 'shape', 'loc', 'scale', 'share', 'limit')
  return new._replace(
    class_names=before.class_names + new.class_names,
    **{x: np.concatenate([getattr(before, x), getattr(new, x)]) for x in rows},
  )


def rejecting(added: Extension, reject_known: float) -> Extension:
  """The same with limits that reject this share of each class.

  A share above that of the tail has its limit at the tail's beginning. One next
  to nothing has it where the CDF is nearly 1: the odds of 1 have no end.
  """
  limit = 1.0 - reject_known / added.share
  # A tail's smallest distance lies 1 above loc, where the CDF is above 0: less
  # would be well inside the class.
  beginning = weibull.cdf(added.loc + 1.0, added.shape, added.loc, added.scale)
  limit = np.maximum(limit, beginning)
  limit = np.clip(limit, _LEAST_LIMIT, 1.0 - _LEAST_LIMIT)
  return added._replace(limit=limit)


def lacking(added: Extension, before: Extension) -> list[str]:
  """Names of classes of `before` that are not in the same place in `added`.

  Limits may differ: they follow from a share that can be asked for.
  """
  rows = ('mav', 'shape', 'loc', 'scale', 'share')
  return [
    name
    for k, name in enumerate(before.class_names)
    if added.class_names[k : k + 1] != (name,)
    or not all(
      np.array_equal(getattr(added, x)[k], getattr(before, x)[k]) for x in rows
    )
  ]


def score(
  scores: types.Scores, features: types.Features, added: Extension
) -> types.Scores:
  """Scores of K + M classes, from decided scores of K.

  Args:
    scores: of the known classes; `prediction` as decided.
    features: that they are of.
    added: M classes.

  Returns:
    probability [N, K+M+1]: p, which was unknown's, is p (1 - w) for the added
    class whose tail the sample is farthest inside, w its CDF there, and p w for
    unknown. prediction: K and above are added classes. unknown_score: the
    lesser of that of the known classes and the log-odds of w.

  Raises:
    UserError: where the features are not of the model's net, or not finite.
  """
  num_classes = scores.probability.shape[1] - 1

  def vector(start: int, stop: int) -> np.ndarray:
    rows = features.rows(slice(start, stop))
    return _vector(rows, added.center, num_classes, start)

  found = scorer.by_blocks(
    _nearest, vector, len(features.label), _arrays(added), len(added.limit)
  )
  return types.Scores(*_together(np, *scores, found))


def traced(
  probability: Array,
  prediction: Array,
  unknown_score: Array,
  logits: Array,
  latent: Array,
  added: Extension,
) -> tuple[Array, Array, Array]:
  """`score` for a program that JAX traces.

  Returns:
    probability, prediction and unknown_score.
  """
  a = jnp.concatenate([logits, latent], axis=1)
  found = _nearest(a, _arrays(added))
  return _together(jnp, probability, prediction, unknown_score, found)


def _vector(
  features: types.Features, center: np.ndarray, num_classes: int, start: int = 0
) -> np.ndarray:
  """Activation vectors of the net that `center`, [D], is of, [N, D] float32.

  `start` is the first row's number.
  """
  a = scorer.vector_of(features, 'joint', None, start)
  sizes = np.shape(features.logits)[1], a.shape[1]
  if sizes != (num_classes, len(center)):
    raise types.UsageError(
      f'the model knows {num_classes} classes, and logits and latents of width '
      f'{len(center)} together; the features have {sizes[0]} and {sizes[1]}'
    )
  return a


def _distinct(direction: np.ndarray) -> np.ndarray:
  """Without those that are like one before, which tell nothing of the spread.

  To four decimals: the place in a batch may change the last bit.
  """
  _, first = np.unique(np.round(direction, 4), axis=0, return_index=True)
  return direction[np.sort(first)]


def _directions(xp: Any, a: Any, center: Any, unit: Any) -> Any:
  """[B, D] -> the same, of norm 1, in NumPy or JAX."""
  x = (a - center[None]) / unit[None]
  norm = xp.sqrt(xp.sum(x * x, axis=1, keepdims=True))
  return x / xp.maximum(norm, _SMALLEST_NORM)


def _arrays(added: Extension) -> tuple[np.ndarray, ...]:
  """In the order in which `_nearest` reads them."""
  limit = np.log(added.limit) - np.log1p(-added.limit)
  arrays = (
    *(added.center, added.unit, added.mav),
    *(added.shape, added.loc, added.scale, limit),
  )
  return tuple(x.astype(np.float32) for x in arrays)


@jax.jit
def _nearest(a: Array, added: tuple[Array, ...]) -> tuple[Array, ...]:
  """Where samples [B, D] lie.

  Returns:
    One-hot class whose tail each is farthest inside, [B, M] bool; whether it is
    inside its limit, w, 1 - w and the log-odds of w, each [B].
  """
  center, unit, mav, shape, loc, scale, limit = added
  away = scorer.norms(
    _directions(jnp, a, center, unit), mav, jnp.sum(jnp.square(mav), axis=1)
  )
  log_power = scorer.log_power(away, shape, loc + scale, scale)
  odds = scorer.log_odds_of_cdf(log_power, loc[:, None] - away)
  nearest = jnp.argmin(odds - limit[:, None], axis=0)
  column = jnp.arange(len(mav), dtype=nearest.dtype)
  is_nearest = column[None] == nearest[:, None]

  def own(x: Array) -> Array:
    return jnp.take_along_axis(x, nearest[None], axis=0)[0]

  power = jnp.exp(own(log_power))
  return (
    is_nearest,
    own(odds) <= limit[nearest],
    -jnp.expm1(-power),
    jnp.exp(-power),
    own(odds),
  )


def _together(
  xp: Any, probability: Any, prediction: Any, unknown_score: Any, found: Any
) -> tuple[Any, Any, Any]:
  """In NumPy or JAX, with the same bits; `found` is of _nearest."""
  is_nearest, is_inside, cdf, rest, odds = found
  num_known = probability.shape[1] - 1
  unknown = probability[:, -1:]
  parts = [
    probability[:, :-1],
    xp.where(is_nearest, unknown * rest[:, None], xp.zeros_like(unknown)),
    unknown * cdf[:, None],
  ]
  position = num_known + xp.argmax(is_nearest, axis=1).astype(xp.int32)
  is_added = (prediction == types.UNKNOWN) & is_inside
  return (
    xp.concatenate(parts, axis=1),
    xp.where(is_added, position, prediction),
    xp.minimum(unknown_score, odds),
  )
