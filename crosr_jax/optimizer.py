"""Optimisers and schedules that stretch with the number of steps."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from crosr_jax import types

OPTIMIZERS = ('sgd', 'adamw', 'muon')
# Of the learning rate that is right for an orthogonal matrix.
_ADAM_SHARE = 0.05
# float32 has nothing left of a rate after some 150.
_MOST_HALVINGS = 1_000
SCHEDULES = ('constant', 'cosine', 'linear', 'one_cycle', 'halving')


def build(
  num_steps: int,
  *,
  optimizer: str,
  learning_rate: float,
  momentum: float,
  weight_decay: float,
  schedule: str,
  warmup_share: float,
  halvings: int,
  clip_norm: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The update rule and its learning rate by step.

  Args:
    num_steps: of the whole schedule.
    optimizer: 'sgd' (with Nesterov momentum), 'adamw', or 'muon' (Jordan 2024):
      momentum whose matrices are made orthogonal, for the convolutions; the
      rest by AdamW.
    learning_rate: the highest of the schedule.
    momentum: of 'sgd' and 'muon', in [0, 1).
    weight_decay: on weights, not on biases or norms; for 'sgd' added to the
      gradient, for 'muon' on convolutions alone.
    schedule: 'constant'; 'cosine' or 'linear' to 0; 'one_cycle', cosine up and
      down, the peak at `warmup_share`; 'halving', halved `halvings` times at
      equal distances, after the rise where there is one (the authors' release:
      every 25 of 500 epochs).
    warmup_share: share of the steps of a linear (one_cycle: cosine) rise.
    halvings: of 'halving', in 0..1000.
    clip_norm: largest norm of the gradient; 0 = unclipped.

  Raises:
    UsageError: for a value that cannot be used; names the field.
  """
  types.check_choice('train.optimizer', optimizer, OPTIMIZERS)
  types.check_choice('train.schedule', schedule, SCHEDULES)
  _check_range('learning_rate', learning_rate, above=0.0)
  _check_range('momentum', momentum, low=0.0, below=1.0)
  _check_range('weight_decay', weight_decay, low=0.0)
  _check_range('clip_norm', clip_norm, low=0.0)
  _check_range('warmup_share', warmup_share, low=0.0, below=1.0)
  _check_range('halvings', halvings, low=0, below=_MOST_HALVINGS + 1)
  rate = _standard_promotion(
    _schedule(num_steps, schedule, learning_rate, warmup_share, halvings)
  )
  if optimizer == 'adamw':
    rule = optax.adamw(rate, weight_decay=weight_decay, mask=_is_weight)
  elif optimizer == 'muon':
    rule = optax.contrib.muon(
      rate,
      beta=momentum,
      weight_decay=weight_decay,
      weight_decay_mask=_is_weight,
      adam_learning_rate=lambda step: _ADAM_SHARE * rate(step),
      muon_weight_dimension_numbers=_convolutions,
    )
  else:
    rule = optax.chain(
      optax.add_decayed_weights(weight_decay, mask=_is_weight),
      optax.sgd(rate, momentum=momentum, nesterov=momentum > 0),
    )
  if clip_norm:
    rule = optax.chain(optax.clip_by_global_norm(clip_norm), rule)
  return optax.GradientTransformation(
    rule.init, _standard_promotion(rule.update)
  ), rate


def adam(learning_rate: float) -> optax.GradientTransformation:
  """Adam with the short momentum that GANs are trained with."""
  rule = optax.adam(learning_rate, b1=0.5, b2=0.999)
  return optax.GradientTransformation(
    rule.init, _standard_promotion(rule.update)
  )


def _schedule(
  num_steps: int, schedule: str, peak: float, warmup_share: float, halvings: int
) -> optax.Schedule:
  warmup = round(warmup_share * num_steps)
  if schedule == 'one_cycle':
    # optax ends at peak / 25 / 1e4: as good as 0.
    return optax.cosine_onecycle_schedule(
      max(num_steps, 2), peak, pct_start=max(warmup_share, 1 / num_steps)
    )
  rest = max(num_steps - warmup, 1)
  if schedule == 'cosine':
    main = optax.cosine_decay_schedule(peak, rest)
  elif schedule == 'linear':
    main = optax.linear_schedule(peak, 0.0, rest)
  elif schedule == 'halving':
    # Where steps are few, several halvings fall on one step.
    every = rest / (halvings + 1)
    ends = collections.Counter(round(every * (i + 1)) for i in range(halvings))
    main = optax.piecewise_constant_schedule(
      peak, {step: 0.5**count for step, count in ends.items()}
    )
  else:
    main = optax.constant_schedule(peak)
  if not warmup:
    return main
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, main], [warmup])


def _convolutions(params: Any) -> Any:
  """Of each kernel [H, W, C, D], which axes are rows and columns."""
  axes = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
  return jax.tree.map(lambda x: axes if jnp.ndim(x) == 4 else None, params)


def _is_weight(params: Any) -> Any:
  return jax.tree.map(lambda x: jnp.ndim(x) > 1, params)


def _standard_promotion(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Some optax code mixes types; strict promotion is for our own."""

  def call(*args: Any, **kwargs: Any) -> Any:
    with jax.numpy_dtype_promotion('standard'):
      return fn(*args, **kwargs)

  return call


def _check_range(
  field: str,
  value: float,
  *,
  low: float = float('-inf'),
  above: float = float('-inf'),
  below: float = float('inf'),
) -> None:
  # Written so that NaN fails too.
  if not (value >= low and above < value < below):
    bounds = [f'at least {low:g}'] if low > float('-inf') else []
    bounds += [f'above {above:g}'] if above > float('-inf') else []
    bounds += [f'below {below:g}'] if below < float('inf') else ['finite']
    raise types.UsageError(
      f'train.{field} must be {" and ".join(bounds)}, got {value}'
    )
