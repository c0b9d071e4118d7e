"""From features to the open-set answers of every method, and their figures.

N samples, K known classes. Needs neither net nor images: whoever has features,
of a run or of another framework, has all of it.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from crosr_jax import choice, metrics, scorer, types, vectors, weibull

# Methods as published, beside the recipe 'crosr'; the sources: OpenMax (Bendale
# and Boult 2016), CROSR, the authors' release.
PUBLISHED: dict[str, dict[str, Any]] = {
  'crosr_published': {'vector': 'joint', 'scaling': 'none', 'tail_size': 20},
  'crosr_y': {'vector': 'logits', 'scaling': 'none', 'tail_size': 100},
  'openmax': {'vector': 'logits', 'scaling': 'none', 'tail_size': 20},
}
# What each row of a report is scored with: a method of the scorer.
FORMULAS = {
  'crosr': 'crosr',
  'crosr_published': 'crosr',
  'crosr_y': 'crosr_y',
  'openmax': 'openmax',
  'softmax': 'softmax',
  'max_logit': 'max_logit',
}
# The same for a net that was trained on generated unknowns.
FORMULAS_AUGMENTED = {'gan': 'augmented'}


class Scored(NamedTuple):
  """What fitting and scoring make of features."""

  formulas: dict[str, str]  # the scorer's method of each row; the first leads
  parts: dict[str, types.Features]  # types.PARTS and the unknown sets
  fitted: dict[str, types.WeibullModel]  # by method
  notes: list[str]  # what the fits warned of
  # By method, then part; training samples by the lead alone.
  scores: dict[str, dict[str, types.Scores]]
  thresholds: dict[str, float]  # by method, from held-out knowns
  # How the lead's tail was chosen; None: it was given.
  tail: types.TailChoice | None
  decision: str  # that is followed, never 'auto'
  threshold: float  # of the decision, where it needs one
  decided: dict[str, np.ndarray]  # by part: the lead's classes, -1 = unknown

  @property
  def lead(self) -> str:
    """The row that decides."""
    return next(iter(self.formulas))

  def rejected(self, part: str) -> float:
    """Share of a part that the decision rejects."""
    return float(np.mean(self.decided[part] == types.UNKNOWN))


def score(
  parts: dict[str, types.Features],
  class_names: Sequence[str],
  *,
  vector: str,
  scaling: str,
  tail: str,
  alpha: int,
  decision: str,
  reject_known: float,
  margin: float = 0.0,
  augmented: bool = False,
  more: Mapping[str, str] | None = None,
) -> Scored:
  """Fits and scores every method.

  Args:
    parts: features of types.PARTS and of unknown sets, by name.
    class_names: K.
    vector: of the recipe, see weibull.fit.
    scaling: likewise.
    tail: a number, a share in percent, or 'auto', see weibull.parse_tail.
    alpha: see scorer.score.
    decision: in choice.DECISIONS.
    reject_known: share of known samples that may be rejected.
    margin: of the recipe, see weibull.fit.
    augmented: whether unknown has a logit of its own, see
      features.split_unknown; then there is no other method.
    more: methods of the scorer that need no Weibulls, beside FORMULAS, by name.

  Raises:
    UserError: as choice.tail and weibull.fit.
  """
  formulas = FORMULAS_AUGMENTED if augmented else {**FORMULAS, **(more or {})}
  recipes, chosen = {}, None
  if not augmented:
    recipe, chosen = _recipe(
      parts,
      class_names,
      tail,
      reject_known,
      {'vector': vector, 'scaling': scaling, 'margin': margin},
    )
    recipes = {'crosr': recipe, **PUBLISHED}
  lead = next(iter(formulas))
  fitted, notes = _fit(parts['train'], class_names, recipes)
  scores = {
    name: {
      part: scorer.score(found, fitted.get(name), method=formula, alpha=alpha)
      for part, found in parts.items()
      if part != 'train' or name == lead
    }
    for name, formula in formulas.items()
  }
  thresholds = {
    name: choice.threshold(
      found['calibrate'].unknown_score, choice.TPR95_REJECTS
    )
    for name, found in scores.items()
  }
  followed, threshold = decide(
    scores[lead]['calibrate'], decision, reject_known
  )
  decided = {
    part: scorer.decide(
      found, closed(parts[part]), decision=followed, threshold=threshold
    )
    for part, found in scores[lead].items()
  }
  return Scored(
    formulas=formulas,
    parts=parts,
    fitted=fitted,
    notes=notes,
    scores=scores,
    thresholds=thresholds,
    tail=chosen,
    decision=followed,
    threshold=threshold,
    decided=decided,
  )


def decide(
  held_out: types.Scores, decision: str, reject_known: float
) -> tuple[str, float]:
  """The decision that is followed, and its threshold.

  Args:
    held_out: of the calibrate part.
    decision: in choice.DECISIONS.
    reject_known: share of known samples that may be rejected.
  """
  if decision == 'auto':
    rejected = float(np.mean(held_out.prediction == types.UNKNOWN))
    decision = choice.decision(rejected, reject_known)
  share = choice.share(decision, reject_known)
  return decision, choice.threshold(held_out.unknown_score, share)


def against(
  scored: Scored, name: str, num_classes: int | None
) -> dict[str, Any]:
  """Figures of every method against one unknown set.

  Args:
    scored: with that set among its parts.
    name: of the set.
    num_classes: that it counts for in openness; None = nobody knows.
  """
  test, unknown = scored.parts['test'], scored.parts[name]
  figures = {
    method: metrics.evaluate(
      found['test'],
      found[name],
      test.label,
      np.append(closed(test), closed(unknown)),
      threshold=scored.thresholds[method],
      is_probability=scorer.METHODS[scored.formulas[method]].is_probability,
    )
    for method, found in scored.scores.items()
  }
  num_unknown = len(unknown.label)
  return {
    'n_known': len(test.label),
    'n_unknown': num_unknown,
    'openness': None
    if num_classes is None
    else metrics.openness(test.logits.shape[1], num_classes),
    'ceiling_f1': metrics.ceiling_f1(
      closed(test), test.label, num_unknown, test.logits.shape[1]
    ),
    **figures,
  }


def promise(scored: Scored, decision: str, reject_known: float) -> list[str]:
  """What to know where what was asked for is not, or cannot be, kept to.

  Args:
    scored: what came of it.
    decision: what was asked for.
    reject_known: share of known samples that might be rejected.
  """
  found = scored.scores[scored.lead]['calibrate'].prediction
  few = []
  if scored.decision in choice.BY_THRESHOLD:
    share = choice.share(scored.decision, reject_known)
    told = choice.too_few(len(found), share)
    few = [f'{told} (data.calibrate_share).'] if told else []
  if decision not in ('auto', 'argmax'):
    return few
  rejected = float(np.mean(found == types.UNKNOWN))
  if choice.decision(rejected, reject_known) == 'argmax':
    return []
  told = (
    f'Argmax rejects {rejected:.1%} of the {len(found):,} known samples held '
    f'out for thresholds, asked for was {reject_known:.1%} '
    '(scorer.reject_known)'
  )
  if decision == 'argmax':
    return [f'{told}; the decision "calibrated" is a threshold for it.']
  return [
    f'{told}: the decision is "calibrated", a threshold for it. F1 argmax is '
    'still the reading of argmax.',
    *few,
  ]


def untested(test: types.Features, class_names: Sequence[str]) -> list[str]:
  """What to know where a known class has no test sample.

  Args:
    test: the known test part.
    class_names: K.
  """
  count = np.bincount(test.label, minlength=len(class_names))
  names = [class_names[int(k)] for k in np.flatnonzero(count == 0)]
  if not names:
    return []
  more = ', ...' if len(names) > 5 else ''
  return [
    f'No test sample is of {", ".join(names[:5])}{more}: F1 of such a class is '
    '0 in every mean of F1, whatever the net does. Test on more samples '
    '(data.test_share).'
  ]


def check_parts(parts: Mapping[str, types.Features], path: str) -> None:
  """Raises a UsageError where a part is missing, or not as the others.

  Args:
    parts: features by part.
    path: where they come from, for errors.
  """
  for name in types.PARTS:
    if name not in parts:
      raise types.UsageError(
        f'{path} has no part {name!r}; {", ".join(types.PARTS)} are needed: '
        'samples the net was trained on, held out for choices, held out for '
        'thresholds, and test samples'
      )
  num_classes = parts['train'].logits.shape[1:]
  if len(num_classes) != 1:
    raise types.UsageError(
      f'{path}: train/logits has shape {list(parts["train"].logits.shape)}, '
      'needed is a row for each sample, a column for each class'
    )
  for name, found in parts.items():
    for field, values in found._asdict().items():
      if values.dtype.kind not in 'biuf':
        raise types.UsageError(
          f'{path}: {name}/{field} has {values.dtype} values, needed are real '
          'numbers'
        )
    if (found.logits.ndim, found.latent.ndim, found.label.ndim) != (2, 2, 1):
      raise types.UsageError(
        f'{path}: of {name}, logits and latent need two dimensions and label '
        f'one, they have {found.logits.ndim}, {found.latent.ndim} and '
        f'{found.label.ndim}'
      )
  width = parts['train'].latent.shape[1]
  has_error = parts['train'].reconstruction_error.size > 0
  for name, found in parts.items():
    count = len(found.label)
    if not count:
      out = 'it needs some' if name in types.PARTS else 'leave it out'
      raise types.UsageError(f'{path}: {name} holds no sample; {out}')
    if found.logits.shape != (count, *num_classes):
      raise types.UsageError(
        f'{path}: {name}/logits has shape {list(found.logits.shape)}, needed '
        f'is {[count, *num_classes]}: a row for each label, a column for each '
        'class as in train'
      )
    if len(found.latent) != count:
      raise types.UsageError(
        f'{path}: {name}/latent has {len(found.latent)} rows for {count} labels'
      )
    if found.latent.shape[1] != width:
      raise types.UsageError(
        f'{path}: {name}/latent has {found.latent.shape[1]} columns, '
        f'train/latent has {width}'
      )
    if found.reconstruction_error.shape != (count * has_error,):
      raise types.UsageError(
        f'{path}: {name}/reconstruction_error has shape '
        f'{list(found.reconstruction_error.shape)}, needed is '
        f'{[count * has_error]}: one for each label, or none in any part'
      )
    for field, values in found._asdict().items():
      bad = values.size - np.count_nonzero(np.isfinite(values))
      if bad:
        raise types.UsageError(
          f'{path}: {bad} of {values.size} values of {name}/{field} are not '
          'finite; find the samples they come from'
        )
      if values.size and np.abs(values).max() > np.finfo(np.float32).max:
        raise types.UsageError(
          f'{path}: values of {name}/{field} are too large for float32; divide '
          'them by one number, in all parts'
        )
    try:
      vectors.check_error(found)
    except types.UsageError as error:
      raise types.UsageError(f'{path}: {name}: {error}') from None
    known = np.isin(found.label, np.arange(*num_classes))
    if name in types.PARTS and not known.all():
      raise types.UsageError(
        f'{path}: {name}/label has {found.label[~known][0]}, known classes are '
        f'0..{num_classes[0] - 1}'
      )
    if name not in types.PARTS and np.any(found.label >= 0):
      raise types.UsageError(
        f'{path}: {name}/label has {found.label.max()}, but labels of unknown '
        f'sets are -1; known samples are of {", ".join(types.PARTS)}'
      )


def closed(found: types.Features) -> np.ndarray:
  """The closed-set class of each sample, [N]."""
  return np.argmax(found.logits, axis=1)


def _recipe(
  parts: dict[str, types.Features],
  class_names: Sequence[str],
  tail: str,
  reject_known: float,
  fields: dict[str, Any],
) -> tuple[dict[str, Any], types.TailChoice | None]:
  """The fields of the recipe's fit, and how the tail was chosen, if it was."""
  fixed = weibull.parse_tail(tail)
  if fixed:
    return fields | fixed, None
  with warnings.catch_warnings():
    # Of tails that are tried; the one that is taken is fitted again.
    warnings.simplefilter('ignore', UserWarning)
    chosen = choice.tail(
      parts['train'],
      parts['select'],
      reject_known=reject_known,
      class_names=class_names,
      **fields,
    )
  return {**fields, 'tail_share': chosen.share}, chosen


def _fit(
  known: types.Features,
  class_names: Sequence[str],
  recipes: dict[str, dict[str, Any]],
) -> tuple[dict[str, types.WeibullModel], list[str]]:
  """The models of all recipes, and what was to be warned of."""
  fitted, notes = {}, []
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always', UserWarning)
    for name, fields in recipes.items():
      try:
        fitted[name] = weibull.fit(known, class_names=class_names, **fields)
      except types.UserError as error:
        # Its tail may be another than the one that was asked for.
        raise type(error)(f'{name}: {error}') from None
      for warning in caught:
        logging.warning('%s: %s', name, warning.message)
        # NumPy's own warnings are of another kind, and no matter of the data.
        if warning.category is UserWarning:
          notes.append(f'{name}: {warning.message}')
      caught.clear()
  return fitted, notes
