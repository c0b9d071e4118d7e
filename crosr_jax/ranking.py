"""Ranks recipes on stand-ins for unknowns; no test sample is ever scored.

A net is trained on a part of the known classes. The held-out classes' samples
are near unknowns; images made of known ones (data/standins.py) are far ones.
Known samples are those of the calibrate part, which the net was not trained on
and which chose nothing; stand-ins are made of them and of the select part.
"""

import functools
import json
import logging
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import config_dict
from sklearn import covariance, neighbors

from crosr_jax import (
  binding,
  bucket,
  choice,
  data,
  features,
  files,
  judge,
  metrics,
  models,
  scorer,
  settings,
  sharding,
  train,
  types,
  vectors,
  weibull,
)
from crosr_jax.data import images, splits, standins

NEAR = 'held_out'
REJECT_KNOWN = (0.005, 0.01, 0.02, 0.05)
_NEIGHBOURS = 20
# There are few held-out samples.
_HELD_OUT_TAIL = 0.2

_EVIDENCE: dict[str, Any] = {
  'vector': 'evidence', 'scaling': 'within_class', 'tail_share': 0.05,
}  # fmt: skip
# By name: what is fitted, for CROSR's probabilities.
RECIPES: dict[str, dict[str, Any]] = {
  'published': judge.PUBLISHED['crosr_published'],
  'joint, within_class': _EVIDENCE | {'vector': 'joint'},
  'evidence': _EVIDENCE,
  'evidence, std': _EVIDENCE | {'scaling': 'std'},
  'evidence, tail 1%': _EVIDENCE | {'tail_share': 0.01},
  'evidence, tail 20%': _EVIDENCE | {'tail_share': 0.2},
  'evidence, margin 1, tail 20%': _EVIDENCE
  | {'margin': 1.0, 'tail_share': 0.2},
  'neighbour': _EVIDENCE | {'vector': 'neighbour'},
  'neighbour, tail 20%': _EVIDENCE | {'vector': 'neighbour', 'tail_share': 0.2},
  'neighbour, margin 1': _EVIDENCE | {'vector': 'neighbour', 'margin': 1.0},
  'neighbour, margin 1, tail 20%': _EVIDENCE
  | {'vector': 'neighbour', 'margin': 1.0, 'tail_share': 0.2},
}


def run(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  data_dir: pathlib.Path,
  *,
  hold_out: int,
  folds: int,
) -> dict:
  """Trains a net per fold, scores every candidate, and writes the ranking.

  Args:
    config: as configs/common.py has it; of its class splits, the one that is
      named.
    workdir: of the nets and of ranking.json and ranking.md; a net that is
      finished is not trained again.
    data_dir: where prepared data sets are.
    hold_out: known classes that are kept back in each fold.
    folds: different sets of them, drawn by splits.distinct.

  Returns:
    What ranking.json holds.

  Raises:
    UserError: where a field cannot be used.
  """
  settings.check_config(config)
  settings.check_apart(config, workdir)
  if config.counterfactual.count:
    raise types.UsageError(
      f'counterfactual.count={config.counterfactual.count}: recipes of nets '
      'trained on generated unknowns are not ranked; set it to 0'
    )
  settings.set_deterministic(config)
  num_classes = len(_load(_only(config, ()), data_dir).class_names)
  known = _known_classes(config, num_classes)
  if not 2 <= hold_out <= len(known) - 2:
    raise types.UsageError(
      f'--hold_out={hold_out}: of {len(known)} known classes, 2 to '
      f'{len(known) - 2} can be held out'
    )
  try:
    drawn = splits.distinct(len(known), len(known) - hold_out, folds, seed=0)
  except types.UserError as error:
    raise types.UsageError(f'--folds={folds}: {error}') from None
  workdir.mkdir(parents=True, exist_ok=True)
  with files.held(workdir):
    bucket.take(workdir)
    result = _run(config, workdir, data_dir, num_classes, known, drawn)
    files.write_text(workdir / 'ranking.json', json.dumps(result, indent=2))
    files.write_text(workdir / 'ranking.md', table(result))
  return result


def _run(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  data_dir: pathlib.Path,
  num_classes: int,
  known: Sequence[int],
  drawn: Sequence[Sequence[int]],
) -> dict:
  """What ranking.json holds.

  `drawn` is of each fold the positions in `known` of what is trained on.
  """
  found: list[dict[str, Any]] = []
  for i, positions in enumerate(drawn):
    kept = [known[k] for k in positions]
    held = [k for k in known if k not in kept]
    logging.info(
      'fold %d of %d: classes %s kept back', *(i + 1, len(drawn), held)
    )
    changed, for_near = (
      _only(config, splits.others(some, num_classes)) for some in (kept, held)
    )
    benchmark, near = (_load(c, data_dir) for c in (changed, for_near))
    standins.check(*benchmark.select)
    folder = workdir / f'fold{i}'
    folder.mkdir(parents=True, exist_ok=True)
    binding.bind(changed, folder)
    binding.bind_files(benchmark, folder)
    parts, accuracy = _parts(changed, benchmark, near, folder)
    found.append(
      {
        'trained_on': kept,
        'held_out': held,
        'select_accuracy': accuracy,
        'auroc': _rank(parts, benchmark.class_names),
        'macro_f1': _rejecting(
          parts,
          class_names=benchmark.class_names,
          vector=config.weibull.vector,
          scaling=config.weibull.scaling,
          margin=config.weibull.margin,
        ),
      }
    )
    sharding.forget()
  mean = {
    key: _mean([fold[key] for fold in found]) for key in ('auroc', 'macro_f1')
  }
  return {'config': config.to_dict(), 'folds': found, 'mean': mean}


def table(result: dict) -> str:
  """The rankings in Markdown."""
  blocks = []
  for key, title in (
    ('auroc', 'AUROC'),
    ('macro_f1', "macro F1 (argmax) of the config's recipe by reject_known"),
  ):
    ranked = result['mean'][key]
    names = list(next(iter(ranked.values())))
    head = f'{title}, mean of {len(result["folds"])}'
    rows = [
      (candidate, *(f'{row[n]:.4f}' for n in names))
      for candidate, row in ranked.items()
    ]
    lines = [(head, *names), ('---',) * (len(names) + 1), *rows]
    blocks.append('\n'.join(f'| {" | ".join(line)} |' for line in lines))
  return '\n\n'.join(blocks) + '\n'


def candidates(
  train_part: types.Features,
  select_part: types.Features,
  class_names: Sequence[str] = (),
) -> dict[str, Callable[[types.Features], np.ndarray]]:
  """Unknown scores by name: features of N samples -> [N]."""
  fit = functools.partial(weibull.fit, class_names=class_names)
  rows: dict[str, Callable] = {
    method: functools.partial(_unknown_score, model=None, method=method)
    for method in ('softmax', 'max_logit', 'energy')
  }
  for name in ('openmax', 'crosr_y'):
    model = fit(train_part, **judge.PUBLISHED[name])
    rows[name] = functools.partial(_unknown_score, model=model, method=name)
  recipes = {
    name: fit(train_part, **fields) for name, fields in RECIPES.items()
  }
  for name, model in recipes.items():
    rows[name] = functools.partial(_unknown_score, model=model, method='crosr')
  try:
    held_out = fit(
      train_part,
      tail_features=select_part,
      **(_EVIDENCE | {'tail_share': _HELD_OUT_TAIL}),
    )
    rows['evidence, tails of select'] = functools.partial(
      _unknown_score, model=held_out, method='crosr'
    )
  except types.UserError as error:
    # It may be too small for that; the other candidates need no more of it.
    logging.warning('tails of the select part are not ranked: %s', error)
  for name, without in (
    ('evidence without error', _without_error),
    ('evidence without code', _without_code),
    ('evidence of the logit', lambda x: _without_code(_without_error(x))),
  ):
    model = fit(without(train_part), **_EVIDENCE)
    rows[name] = functools.partial(
      lambda x, model, without: _unknown_score(without(x), model, 'crosr'),
      model=model,
      without=without,
    )
  rows['evidence, common logit'] = _distance_of(
    recipes['evidence'], _shortfall(train_part)
  )
  rows['mahalanobis, shrunk'] = _mahalanobis(train_part)
  rows['nearest neighbours'] = _nearest(train_part)
  return rows


def _rank(
  parts: dict[str, types.Features], class_names: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
  """AUROC of every candidate on every stand-in."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', UserWarning)
    scores = candidates(parts['train'], parts['select'], class_names)
  rows: dict[str, dict[str, float]] = {}
  for name, score in scores.items():
    known = score(parts['calibrate'])
    rows[name] = {
      n: metrics.auroc(known, score(parts[n])) for n in _stand_ins(parts)
    }
    _add_means(rows[name])
  return rows


def _rejecting(
  parts: dict[str, types.Features], **recipe: Any
) -> dict[str, dict[str, float]]:
  """Macro F1 on every stand-in, for several shares that may be rejected."""
  rows: dict[str, dict[str, float]] = {}
  known = parts['calibrate']
  shown = ['calibrate', *_stand_ins(parts)]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', UserWarning)
    tried = choice.tail(
      parts['train'], parts['select'], reject_known=REJECT_KNOWN[0], **recipe
    )
    tails = [choice.again(tried, asked) for asked in REJECT_KNOWN]
    models = weibull.fit_shares(
      parts['train'], [tail.share for tail in tails], **recipe
    )
  for asked, tail, model in zip(REJECT_KNOWN, tails, models, strict=True):
    predicted = {n: scorer.score(parts[n], model).prediction for n in shown}
    row = rows[f'{asked:g}'] = {}
    for name in _stand_ins(parts):
      # As many unknown as known ones, as in the benchmarks, of all classes
      # where they come class by class.
      other = predicted[name]
      count = min(len(other), len(known.label))
      other = other[np.arange(count) * len(other) // count]
      row[name] = metrics.macro_f1(
        np.append(predicted['calibrate'], other),
        np.append(known.label, np.full(len(other), types.UNKNOWN)),
        known.logits.shape[1],
      )
    _add_means(row)
    rejected = predicted['calibrate'] == types.UNKNOWN
    row |= {'tail share': tail.share, 'rejected': float(np.mean(rejected))}
  return rows


def _stand_ins(parts: dict[str, types.Features]) -> list[str]:
  return [n for n in parts if n not in ('train', 'select', 'calibrate')]


def _add_means(row: dict[str, float]) -> None:
  """Near and far count alike, however many kinds of far ones there are."""
  made = float(np.mean([v for n, v in row.items() if n != NEAR]))
  row['mean of made'] = made
  row['both'] = (row[NEAR] + made) / 2


def _mean(found: list[dict]) -> dict:
  """Of every cell over the folds, the best row first.

  Rows that a fold lacks have none: a mean of other folds is no match.
  """
  mean = {
    name: {n: float(np.mean([fold[name][n] for fold in found])) for n in row}
    for name, row in found[0].items()
    if all(name in fold for fold in found)
  }
  return dict(sorted(mean.items(), key=lambda x: -x[1]['both']))


def _known_classes(
  config: config_dict.ConfigDict, num_classes: int
) -> tuple[int, ...]:
  """Positions of the known classes in the data set."""
  chosen = config.data.get('splits', ())
  if chosen:
    return splits.pick('data.splits', chosen, config.data.get('split', 0))
  return splits.others(
    config.data.unknown_classes, num_classes, 'data.unknown_classes'
  )


def _only(
  config: config_dict.ConfigDict, left_out: Sequence[int]
) -> config_dict.ConfigDict:
  """The config with these classes left out, and without any unknown."""
  changed = config_dict.ConfigDict(config.to_dict())
  for field, value in (
    ('splits', ()),
    ('split', 0),
    ('unknown_classes', tuple(left_out)),
    ('others_unknown', False),
  ):
    changed.data[field] = value
  changed.evaluation.unknown_sets = ()
  changed.evaluation.unknown_dirs = ()
  changed.evaluation.cifar100_splits = ()
  return changed


def _load(
  config: config_dict.ConfigDict, data_dir: pathlib.Path
) -> data.Benchmark:
  return data.load(
    seed=config.seed, data_dir=data_dir, **config.data, **config.evaluation
  )


def _parts(
  config: config_dict.ConfigDict,
  benchmark: data.Benchmark,
  near: data.Benchmark,
  workdir: pathlib.Path,
) -> tuple[dict[str, types.Features], float]:
  """Features of known parts and stand-ins, from a net trained here.

  Also the accuracy on the select part.
  """
  mean, deviation = models.pixel_statistics(
    images.for_statistics(benchmark.train.image)
  )
  net = models.build(
    num_classes=len(benchmark.class_names),
    mean=mean,
    deviation=deviation,
    **config.model,
  )
  trained = train.fit_all(
    net,
    benchmark.train,
    benchmark.select,
    workdir,
    seed=config.seed,
    parallel=config.parallel,
    steps_per_dispatch=config.steps_per_dispatch,
    data_on_device=config.data_on_device,
    **config.train,
  )
  image, label = (
    np.concatenate(x)
    for x in zip(benchmark.select, benchmark.calibrate, strict=True)
  )
  unknown = {
    NEAR: np.concatenate([near.select.image, near.calibrate.image]),
    **standins.make(image, label, config.seed),
  }
  everything = {
    part: getattr(benchmark, part) for part in ('train', 'select', 'calibrate')
  } | {
    name: splits.Labelled(x, np.full(len(x), types.UNKNOWN, np.int32))
    for name, x in unknown.items()
  }
  return {
    name: features.extract(net, trained.state.variables, *samples)
    for name, samples in everything.items()
  }, trained.select_accuracy


def _without_error(found: types.Features) -> types.Features:
  return found._replace(reconstruction_error=np.zeros(0, np.float32))


def _without_code(found: types.Features) -> types.Features:
  return found._replace(latent=found.latent[:, :0])


def _distance_of(
  model: types.WeibullModel, term: Callable[[types.Features], np.ndarray]
) -> Callable[[types.Features], np.ndarray]:
  """'evidence' without tails, and with `term` in place of the logit's."""

  def score(found: types.Features) -> np.ndarray:
    beside = np.maximum(vectors.evidence(found, model)[:, 1:], 0.0)
    beside = beside * vectors.EVIDENCE_WEIGHTS[1:]
    return np.linalg.norm([*beside.T, term(found)], axis=0)

  return score


def _shortfall(
  known: types.Features,
) -> Callable[[types.Features], np.ndarray]:
  """How far the largest logit is below the mean, of one measure for all.

  In the deviation of known samples within a class; smooth, so that what lies
  above the mean keeps its order.
  """
  label = np.argmax(known.logits, axis=1)
  right = label == known.label
  top, label = known.logits.max(axis=1)[right], label[right]
  mean = np.mean(top, dtype=np.float64)
  each = [np.var(top[label == k], dtype=np.float64) for k in np.unique(label)]
  deviation = np.sqrt(np.mean(each))

  def term(found: types.Features) -> np.ndarray:
    top = found.logits.max(axis=1).astype(np.float64)
    smooth = np.logaddexp(0.0, (mean - top) / deviation)
    return vectors.EVIDENCE_WEIGHTS[0] * smooth

  return term


def _mahalanobis(
  known: types.Features,
) -> Callable[[types.Features], np.ndarray]:
  """Least distance to a class mean, one shrunk covariance (Lee et al. 2018)."""
  a = vectors.activation_vector(known, 'evidence')
  right = np.argmax(known.logits, axis=1) == known.label
  a, label = a[right], known.label[right]
  mean = np.stack([a[label == k].mean(axis=0) for k in np.unique(label)])
  precision = covariance.LedoitWolf().fit(a - mean[label]).precision_
  root = np.linalg.cholesky(precision)

  def score(found: types.Features) -> np.ndarray:
    x = vectors.activation_vector(found, 'evidence') @ root
    return np.min([np.linalg.norm(x - m @ root, axis=1) for m in mean], axis=0)

  return score


def _nearest(
  known: types.Features,
) -> Callable[[types.Features], np.ndarray]:
  """Distance to the 20th nearest training sample, unit vectors (Sun 2022)."""

  def unit(found: types.Features) -> np.ndarray:
    a = vectors.activation_vector(found, 'joint')
    return a / np.linalg.norm(a, axis=1, keepdims=True)

  index = neighbors.NearestNeighbors().fit(unit(known))
  return lambda found: index.kneighbors(unit(found), _NEIGHBOURS)[0][:, -1]


def _unknown_score(
  found: types.Features, model: types.WeibullModel | None, method: str
) -> np.ndarray:
  return scorer.score(found, model, method=method).unknown_score
