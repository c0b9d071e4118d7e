"""Chooses tail and decision from known samples alone.

The tail is what users of OpenMax and of CROSR are left alone with: 20 samples
by custom, whatever the class size. What it decides is how many known samples
the largest probability rejects. So that share is what one is asked for here,
and the tail follows:

  tail: of SHARES, the one with which the argmax over K + 1 probabilities
    rejects the share of held-out known samples that is nearest to
    `reject_known`; the smallest of equals.
  decision: 'argmax', unless even so it rejects less than half or more than
    twice of `reject_known` of other held-out samples: then the threshold of
    the unknown score that keeps all but `reject_known` of them.

A Weibull's median tells what to expect: if held-out samples are as far out as
those fitted, a tail share of s rejects s / 2.
"""

import math
import numbers
from collections.abc import Sequence

import numpy as np

from crosr_jax import metrics, scorer, types, weibull

# Denser ones would tell no more: neighbours differ by about as much as the
# count of some thousand held-out samples does by chance.
SHARES = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4)
DECISIONS = (*scorer.DECISIONS, 'auto')
# Of them those that compare the unknown score with a threshold.
BY_THRESHOLD = ('tpr95', 'calibrated')
# Of held-out known samples, by the threshold of 'tpr95', also as a reading.
TPR95_REJECTS = 0.05
# What is meant for features of no run, as configs/common.py has it.
RECIPE = {'vector': 'evidence', 'scaling': 'within_class', 'tail': 'auto'}
SCORER = {'alpha': 10, 'decision': 'auto', 'reject_known': 0.02}
# Beyond these times `reject_known`, argmax does not keep what was asked for.
TOLERATED = (0.5, 2.0)


def tail(
  train: types.Features,
  held_out: types.Features,
  *,
  reject_known: float,
  vector: str,
  scaling: str,
  margin: float = 0.0,
  tail_features: types.Features | None = None,
  class_names: Sequence[str] = (),
) -> types.TailChoice:
  """Chooses the tail share for CROSR's probabilities.

  Args:
    train: known training samples; what is labelled -1 is left out.
    held_out: known samples that the net was not trained on.
    reject_known: share of known samples to be rejected, in (0, 0.5).
    vector: see `weibull.fit`; not 'logits'.
    scaling: see `weibull.fit`.
    margin: see `weibull.fit`.
    tail_features: see `weibull.fit`.
    class_names: see `weibull.fit`.

  Raises:
    UserError: where there is no held-out sample, and as `weibull.fit`.
    UsageError: for held-out samples that are not known.
  """
  check_reject_known(reject_known)
  if vector == 'logits':
    raise types.UsageError(
      "no tail is chosen for vector='logits'; take vector='joint' and a latent "
      'of no column, [N, 0]'
    )
  if not len(held_out.label):
    raise types.UserError(
      "tail 'auto' is chosen on held-out known samples, there are none; raise "
      'data.select_share, or give the tail as a number or a share'
    )
  models = weibull.fit_shares(
    train,
    SHARES,
    vector=vector,
    scaling=scaling,
    margin=margin,
    tail_features=tail_features,
    class_names=class_names,
  )
  label = np.asarray(held_out.label)
  unknown = label[(label < 0) | (label >= np.shape(train.logits)[1])]
  if len(unknown):
    raise types.UsageError(
      f'held_out has {len(unknown)} samples of no known class, labelled '
      f'{unknown[0]} for one; a choice is made on known samples alone'
    )
  known = np.asarray(train.label) != types.UNKNOWN
  if not known.all():
    train = types.Features(*map(np.asarray, train)).rows(known)
  of_train, of_held_out = (
    tuple(scorer.rejects(part, models).mean(axis=0).tolist())
    for part in (train, held_out)
  )
  return _nearest(reject_known, of_train, of_held_out, len(held_out.label))


def again(found: types.TailChoice, reject_known: float) -> types.TailChoice:
  """The choice for another share of known samples, from the same trials."""
  check_reject_known(reject_known)
  return _nearest(reject_known, found.train, found.held_out, found.num_held_out)


def _nearest(
  reject_known: float,
  of_train: tuple[float, ...],
  of_held_out: tuple[float, ...],
  num_held_out: int,
) -> types.TailChoice:
  away = np.abs(np.asarray(of_held_out) - reject_known)
  # argmin takes the first, the smallest, of equals.
  share = SHARES[int(np.argmin(away))]
  return types.TailChoice(
    share, reject_known, SHARES, of_train, of_held_out, num_held_out
  )


def decision(rejected: float, reject_known: float) -> str:
  """'argmax' where it rejects about what was asked for, else 'calibrated'.

  Args:
    rejected: share of held-out samples that argmax rejects; not those the tail
      was chosen on.
    reject_known: what was asked for.
  """
  check_reject_known(reject_known)
  low, high = (factor * reject_known for factor in TOLERATED)
  return 'argmax' if low <= rejected <= high else 'calibrated'


def share(decision: str, reject_known: float) -> float:
  """Of held-out known samples that the threshold of a decision rejects."""
  return TPR95_REJECTS if decision == 'tpr95' else reject_known


def threshold(held_out: np.ndarray, reject_known: float) -> float:
  """An unknown score that all but a share of held-out samples keep to.

  Halfway between the largest that is kept and the least that is rejected: on a
  sample's own score, rounding would decide.

  Args:
    held_out: unknown scores of known samples that the net was not trained on
      and no tail was chosen on, [n].
    reject_known: that share, in (0, 0.5).

  Raises:
    UsageError: for another share, and scores that are not finite, masked or
      not [n].
  """
  check_reject_known(reject_known)
  types.check_unmasked('scores of held-out samples', held_out)
  held_out = np.asarray(held_out)
  if held_out.ndim != 1:
    raise types.UsageError(
      f'scores of held-out samples must be [n], got shape {held_out.shape}'
    )
  if not np.isfinite(held_out).all():
    raise types.UsageError(
      'scores of held-out samples must be finite to choose a threshold; find '
      'the samples they are of'
    )
  kept = metrics.threshold_at_tpr(held_out, 1.0 - reject_known)
  above = held_out[held_out > kept]
  if not len(above):
    return kept
  halfway = (kept + float(above.min())) / 2
  # Scores are of float32: between two neighbours there is none.
  return halfway if np.float32(halfway) < above.min() else kept


def too_few(num_held_out: int, reject_known: float) -> str:
  """What to know of a `threshold` of so few samples; '' = they are enough.

  A new sample is as likely as any of n others to be the farthest of all n + 1,
  so it lies beyond the n with a chance of 1 / (n + 1), whatever was asked for.
  """
  beyond = 1 / (num_held_out + 1)
  if beyond <= reject_known:
    return ''
  return (
    f'{num_held_out:,} known samples held out for the threshold are too few to '
    f'keep to {reject_known:.1%}: of new ones {beyond:.1%} lie beyond all of '
    f'them. It takes {math.ceil(1 / reject_known - 1e-9) - 1:,}'
  )


def check_recipe(
  *, vector: str, scaling: str, tail: str, margin: float = 0.0
) -> None:
  """Raises a UsageError for config.weibull, before there are features."""
  fixed = weibull.parse_tail(tail) or {'tail_share': SHARES[0]}
  weibull.check_recipe(vector=vector, scaling=scaling, margin=margin, **fixed)
  if vector == 'logits':
    raise types.UsageError(
      "the recipe's vector must be 'joint', 'evidence' or 'neighbour', got "
      "'logits'; the report's row crosr_y has that"
    )


def check_decision(*, alpha: int, decision: str, reject_known: float) -> None:
  """Raises a UsageError for config.scorer, before there are features."""
  types.check_choice('decision', decision, DECISIONS)
  check_reject_known(reject_known)
  scorer.check_fields(alpha=alpha)


def check_reject_known(value: float) -> None:
  """Raises a UsageError for a share that cannot be asked for."""
  if not isinstance(value, numbers.Real) or not 0 < value < 0.5:
    raise types.UsageError(f'reject_known must be in (0, 0.5), got {value}')
