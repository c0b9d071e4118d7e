"""Why is everything unknown, or nothing: what a fit looks like from within.

N samples, K known classes. Looks at features alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from crosr_jax import judge, scorer, types

PERCENTILES = (5, 50, 95, 99)
# Held-out samples: the two parts that the net was not trained on.
_HELD_OUT = ('select', 'calibrate')
_BINS = 10
# When something is worth a word: times what was asked for, times the median of
# all classes, share of the width, difference of accuracies, ratio of distances,
# count of a tail, AUROC, share of an unknown set that is found.
_OFF = 2.0
_ODD_CLASS = 3.0
_DEAD = 0.5
_OVERFIT = 0.03
_TIGHT = 1.25
_SHORT_TAIL = 20
_BLIND = 0.6
_MISSED = 0.5


class ClassRow(NamedTuple):
  """What there is to know of one class."""

  name: str
  num_train: int  # correctly classified training samples
  tail_count: int
  # Percentiles of the distance to the own class, of correct samples.
  train: tuple[float, ...]
  held_out: tuple[float, ...]  # nan where there is none
  tail_begin: float  # the least distance in the tail
  half: float  # the distance at which the Weibull says one half
  rejected_held_out: float  # shares that the decision calls unknown
  rejected_test: float


class Diagnosis(NamedTuple):
  """What `examine` finds."""

  rows: list[ClassRow]
  rejected: dict[str, float]  # share of each part, unknown sets too
  accuracy: dict[str, float]  # closed-set, of each known part
  sizes: dict[str, int]  # samples of each known part
  dead: int  # coordinates that (nearly) never moved in training
  width: int
  decision: str
  threshold: float
  confidence: np.ndarray  # [bins] mean closed-set probability of test samples
  right: np.ndarray  # [bins] share of them that is classified right
  bin_count: np.ndarray  # [bins] how many they are
  calibration_error: float  # expected: mean of |confidence - right|
  findings: list[str]  # what is odd, and what to do


def examine(
  scored: judge.Scored,
  class_names: Sequence[str],
  *,
  reject_known: float,
  unknown: dict[str, dict[str, Any]],
) -> Diagnosis:
  """Looks at a fit.

  Args:
    scored: of judge.score; its lead must have a Weibull model.
    class_names: K.
    reject_known: share of known samples that might be rejected.
    unknown: figures of each unknown set, as judge.against has them.

  Raises:
    UserError: where the lead has no Weibulls.
  """
  model = scored.fitted.get(scored.lead)
  if model is None:
    raise types.UserError(
      f'{scored.lead} has no Weibulls, there is nothing to look at; this is '
      'for runs without counterfactual.count'
    )
  rows = _rows(scored, model, class_names)
  accuracy = {
    part: float(np.mean(judge.closed(found) == found.label))
    for part, found in scored.parts.items()
    if part in types.PARTS
  }
  confidence, right, count = _reliability(scored.parts['test'])
  found = Diagnosis(
    rows=rows,
    rejected={x: scored.rejected(x) for x in (*types.PARTS, *unknown)},
    accuracy=accuracy,
    sizes={part: len(scored.parts[part].label) for part in accuracy},
    dead=int(model.dead.sum()),
    width=len(model.dead),
    decision=scored.decision,
    threshold=scored.threshold,
    confidence=confidence,
    right=right,
    bin_count=count,
    calibration_error=float(
      np.nansum(count * np.abs(confidence - right)) / count.sum()
    ),
    findings=[],
  )
  return found._replace(findings=_findings(found, reject_known, unknown))


def own_distance(
  found: types.Features, model: types.WeibullModel
) -> tuple[np.ndarray, np.ndarray]:
  """Distances of correct samples to their class, and the classes, [n]."""
  correct = judge.closed(found) == found.label
  label = found.label[correct]
  some = found.rows(correct)
  distance = scorer.distances(some, model)
  return distance[np.arange(len(label)), label], label


def _rows(
  scored: judge.Scored,
  model: types.WeibullModel,
  class_names: Sequence[str],
) -> list[ClassRow]:
  train, train_label = own_distance(scored.parts['train'], model)
  others = [own_distance(scored.parts[part], model) for part in _HELD_OUT]
  held_out, held_out_label = (
    np.concatenate(x) for x in zip(*others, strict=True)
  )
  half = model.loc + model.scale * np.log(2) ** (1 / model.shape)
  rows = []
  for k, name in enumerate(class_names):
    own = train[train_label == k]
    rows.append(
      ClassRow(
        name=name,
        num_train=len(own),
        tail_count=int(model.tail_count[k]),
        train=_percentiles(own),
        held_out=_percentiles(held_out[held_out_label == k]),
        # LibMR's shift: the least of a tail lies 1 above `loc`.
        tail_begin=float(model.loc[k] + 1),
        half=float(half[k]),
        rejected_held_out=_rejected(scored, _HELD_OUT, k),
        rejected_test=_rejected(scored, ('test',), k),
      )
    )
  return rows


def _percentiles(distance: np.ndarray) -> tuple[float, ...]:
  if not len(distance):
    return (float('nan'),) * len(PERCENTILES)
  return tuple(float(x) for x in np.percentile(distance, PERCENTILES))


def _rejected(scored: judge.Scored, parts: Sequence[str], k: int) -> float:
  """Share of the samples of a class that is called unknown; nan of none."""
  own = np.concatenate(
    [scored.decided[part][scored.parts[part].label == k] for part in parts]
  )
  return float(np.mean(own == types.UNKNOWN)) if len(own) else float('nan')


def _reliability(
  found: types.Features,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mean confidence, accuracy and count in bins of the largest probability."""
  logits = found.logits.astype(np.float64)
  shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
  probability = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
  right = judge.closed(found) == found.label
  position = np.minimum((probability * _BINS).astype(int), _BINS - 1)
  count = np.bincount(position, minlength=_BINS)
  with np.errstate(invalid='ignore'):
    confidence, accuracy = (
      np.bincount(position, x, minlength=_BINS) / count
      for x in (probability, right.astype(float))
    )
  return confidence, accuracy, count


def _findings(
  found: Diagnosis,
  reject_known: float,
  unknown: dict[str, dict[str, Any]],
) -> list[str]:
  """One sentence or two for everything that is odd."""
  told = []
  # A threshold keeps to it where it was found: others tell.
  is_own = found.decision == 'calibrated'
  rejected = found.rejected['select' if is_own else 'calibrate']
  if is_own and _is_more(rejected, found.sizes['select'], reject_known):
    told.append(
      f'{rejected:.1%} of the known samples held out for choices are called '
      f'unknown, {reject_known:.1%} was asked for: the threshold of '
      f'{found.sizes["calibrate"]:,} others does not keep to it. Hold more out '
      '(data.calibrate_share).'
    )
  if not is_own and rejected > _OFF * reject_known:
    told.append(
      f'{rejected:.1%} of the known samples held out are called unknown, '
      f'{reject_known:.1%} was asked for. The decision "calibrated" keeps to '
      'it (scorer.decision); so does a shorter tail (weibull.tail=auto looks '
      'for it).'
    )
  if rejected < reject_known / _OFF and found.decision != 'calibrated':
    told.append(
      f'Only {rejected:.1%} of the known samples held out are called unknown, '
      f'{reject_known:.1%} may be: unknowns are missed for nothing. The '
      'decision "calibrated" makes use of it (scorer.decision), or a longer '
      'tail does.'
    )
  lost = found.rejected['test']
  if lost > _OFF * max(rejected, reject_known):
    told.append(
      f'{lost:.1%} of the known test samples are called unknown, '
      f'{rejected:.1%} of those held out, {reject_known:.1%} was asked for: '
      'test images differ from those of the training. Look at some of both, '
      'for another source, size, crop or brightness.'
    )
  ratio = _ratio(found.rows)
  if ratio > _TIGHT:
    told.append(
      f'Held-out samples are {ratio:.2f} times as far from their classes '
      'as training samples: the tails are those of samples the net knows by '
      'heart. Train shorter, on more data or with augmentation; '
      "weibull.fit(tail_features=...) takes tails of others'."
    )
  train, test = found.accuracy['train'], found.accuracy['test']
  held_out = float(np.mean([found.accuracy[part] for part in _HELD_OUT]))
  if train - held_out > _OVERFIT:
    told.append(
      f'{train:.1%} of the training samples are classified right, '
      f'{held_out:.1%} of those held out: the net has overfitted. What is said '
      'of unknowns can be no better than the classes are.'
    )
  if held_out - test > _OVERFIT:
    told.append(
      f'{held_out:.1%} of the samples held out are classified right, '
      f'{test:.1%} of the test samples: test images differ from those of the '
      'training, or more of their labels are wrong. Look at those that are '
      'classified wrong.'
    )
  if found.dead > _DEAD * found.width:
    told.append(
      f'{found.dead} of {found.width} coordinates never moved in training: '
      'codes are dead. A smaller model.latent_width, a lower learning rate or '
      'a longer warm-up brings them to life.'
    )
  usual = np.nanmedian([row.rejected_test for row in found.rows])
  for row in found.rows:
    if row.rejected_test > max(_ODD_CLASS * usual, _OFF * reject_known):
      told.append(
        f'Class {row.name}: {row.rejected_test:.1%} of its test samples are '
        f'called unknown, {usual:.1%} in the median of all classes. Look at '
        'them for wrong labels, or for kinds that the '
        f'{row.num_train} training samples lack.'
      )
    if row.tail_count < _SHORT_TAIL:
      told.append(
        f'Class {row.name}: its Weibull rests on {row.tail_count} distances, '
        f'of {row.num_train} samples that were classified right. More images '
        'of it make it firmer.'
      )
  for name, figures in unknown.items():
    auroc = figures['crosr']['auroc']
    if auroc < _BLIND:
      told.append(
        f'{name}: AUROC {auroc:.3f}, hardly better than chance. To this net '
        'these unknowns look like known classes; no threshold or tail mends '
        'that, a net trained longer or on finer classes may.'
      )
    elif found.rejected[name] < _MISSED:
      told.append(
        f'{name}: {found.rejected[name]:.1%} of it is called unknown, though '
        f'AUROC is {auroc:.3f}. A larger share of known samples to give up '
        '(scorer.reject_known) finds more, and another decision may '
        '(scorer.decision).'
      )
  return told


def _is_more(share: float, count: int, asked: float) -> bool:
  """Whether a share of `count` samples is above what chance makes of asked."""
  chance = 3 * np.sqrt(asked * (1 - asked) / count)
  return share > max(_OFF * asked, asked + chance)


def _ratio(rows: Sequence[ClassRow]) -> float:
  """Distance of held-out samples over that of training samples.

  Of each class that of the median, or, where half of the training samples are
  all as usual and at no distance, that below which 95 % are.
  """
  ratios = []
  for row in rows:
    percent = 50 if row.train[PERCENTILES.index(50)] > 0 else 95
    i = PERCENTILES.index(percent)
    if row.train[i] > 0 and np.isfinite(row.held_out[i]):
      ratios.append(row.held_out[i] / row.train[i])
  return float(np.median(ratios)) if ratios else 1.0


def plain(found: Any) -> Any:
  """What JSON can hold: lists for arrays, null for what is no number."""
  if hasattr(found, '_asdict'):
    return {key: plain(value) for key, value in found._asdict().items()}
  if isinstance(found, dict):
    return {key: plain(value) for key, value in found.items()}
  if hasattr(found, 'tolist'):
    found = found.tolist()
  if isinstance(found, (list, tuple)):
    return [plain(value) for value in found]
  return None if isinstance(found, float) and found != found else found
