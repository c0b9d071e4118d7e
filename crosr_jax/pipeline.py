"""The whole story: data, net, features, Weibulls, scores, figures, report.

Each stage takes its section of `config` as keywords, and reads nothing else.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import pathlib
import platform
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

import crosr_jax
from crosr_jax import (
  checkpoint,
  choice,
  counterfactual,
  data,
  features,
  files,
  loop,
  metrics,
  models,
  report,
  scorer,
  sharding,
  train,
  types,
  weibull,
)
from crosr_jax.data import duplicates

# Methods as published, beside the config's recipe 'crosr'; PAPER.md names the
# sources: OpenMax (Bendale and Boult 2016), CROSR, the authors' release.
PUBLISHED: dict[str, dict[str, Any]] = {
  'crosr_published': {'vector': 'joint', 'scaling': 'none', 'tail_size': 20},
  'crosr_y': {'vector': 'logits', 'scaling': 'none', 'tail_size': 100},
  'openmax': {'vector': 'logits', 'scaling': 'none', 'tail_size': 20},
}
# What each row of the report is scored with: a method of the scorer.
_FORMULAS = {
  'crosr': 'crosr',
  'crosr_published': 'crosr',
  'crosr_y': 'crosr_y',
  'openmax': 'openmax',
  'softmax': 'softmax',
  'max_logit': 'max_logit',
}
# The same for a net that was trained on generated unknowns.
_FORMULAS_AUGMENTED = {'gan': 'augmented'}
# Sections that a workdir is bound to.
BINDING = ('data', 'model', 'train', 'seed', 'counterfactual')
_CONTROL = (
  'A net without laterals reconstructs nothing: in its rows "crosr" and '
  '"crosr_published" the pooled outputs of its blocks stand for the codes. '
  'They are a control, not CROSR.'
)


class Scored(NamedTuple):
  """What fitting and scoring make of a trained net."""

  step: int  # of training, that the features are from
  formulas: dict[str, str]  # the scorer's method of each row; the first leads
  parts: dict[str, types.Features]  # by part and unknown set
  fitted: dict[str, types.WeibullModel]  # by method
  notes: list[str]  # what the fits warned of
  scores: dict[str, dict[str, types.Scores]]  # by method, then part
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


def run(
  config: config_dict.ConfigDict,
  name: str,
  workdir: pathlib.Path,
  data_dir: pathlib.Path,
) -> dict:
  """Runs a config in a workdir and returns its report.

  Args:
    config: as configs/common.py has it.
    name: of the run, for the report.
    workdir: a new folder, or one of an earlier run of the same `data`,
      `model`, `train`, `counterfactual` and `seed`, which is then resumed.
    data_dir: where prepared data sets are.

  Raises:
    ValueError: where a field or the workdir cannot be used, or a stage fails;
      one line that names the value and the way out.
  """
  check_config(config)
  with _opened(config, name, workdir):
    logging.info('reading %s', config.data.name)
    benchmark = data.load(
      seed=config.seed, data_dir=data_dir, **config.data, **config.evaluation
    )
    mean, deviation = models.pixel_statistics(benchmark.train.image)
    build = functools.partial(
      models.build, mean=mean, deviation=deviation, **config.model
    )
    num_outputs, training = len(benchmark.class_names), benchmark.train
    generated = None
    if config.counterfactual.count:
      generated = counterfactual.generate(
        build(num_classes=num_outputs),
        benchmark.train,
        benchmark.select,
        workdir,
        seed=config.seed,
        parallel=config.parallel,
        training=config.train,
        **config.counterfactual,
      )
      training = counterfactual.augment(
        training, generated.images.image, num_outputs
      )
      num_outputs += 1
    model = build(num_classes=num_outputs)
    trained = train.fit(
      model,
      training,
      benchmark.select,
      workdir,
      seed=config.seed,
      parallel=config.parallel,
      **config.train,
    )
    logging.info('fitting and scoring')
    scored = _score(config, benchmark, model, trained)
    checkpoint.save_fitted(
      workdir, scored.fitted, _model_info(config, benchmark, model, scored)
    )
    result = _result(config, name, benchmark, trained, scored, generated)
    material = None
    if config.report.pictures:
      material = _material(benchmark, model, trained, scored, generated)
    logging.info('writing the report')
    report.write(
      workdir,
      result,
      material,
      map_samples=config.report.map_samples,
      seed=config.seed,
    )
  return result


def check(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Raises where `run` would refuse a field, or the workdir of another run."""
  check_config(config)
  if (workdir / 'config.json').exists():
    bind(config, workdir)


def check_sections(config: config_dict.ConfigDict) -> None:
  """Raises a UsageError for a section that is not there."""
  for section in (*BINDING, 'evaluation', 'weibull', 'scorer', 'report'):
    if section not in config:
      raise types.UsageError(
        f'the config has no {section!r}; start it from configs/common.py, '
        'which has every field'
      )


@contextlib.contextmanager
def _opened(
  config: config_dict.ConfigDict, name: str, workdir: pathlib.Path
) -> Iterator[None]:
  """Makes the workdir, binds it to the config, and keeps a log in it."""
  set_deterministic(config)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    for folder in (workdir, workdir / 'figures'):
      files.sweep(folder)
    bind(config, workdir)
    # Last, so that a workdir that is refused leaves no open file.
    handler = logging.FileHandler(workdir / 'run.log')
  except OSError as error:
    raise types.UsageError(
      f'--workdir={workdir} cannot be written: {error.strerror}; take another'
    ) from None
  handler.setFormatter(logging.Formatter('%(asctime)s %(message)s'))
  logging.getLogger().addHandler(handler)
  logging.info(
    'crosr_jax %s: %s in %s, on %d x %s',
    *(crosr_jax.__version__, name, workdir),
    *(sharding.num_devices(), jax.devices()[0].device_kind),
  )
  try:
    yield
  except types.UserError as error:
    handler.emit(_record(f'error: {error}'))
    raise
  except Exception:
    handler.emit(_record(traceback.format_exc()))
    raise
  finally:
    logging.getLogger().removeHandler(handler)
    handler.close()


def set_deterministic(config: config_dict.ConfigDict) -> None:
  """Before JAX is first used: bit-equal training on GPU, where asked for."""
  if config.deterministic:
    flag = '--xla_gpu_deterministic_ops=true'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'


def _record(message: str) -> logging.LogRecord:
  return logging.LogRecord('', logging.ERROR, '', 0, message, None, None)


def check_config(config: config_dict.ConfigDict) -> None:
  """Looks first at what is used last: a typo must not cost a training."""
  check_sections(config)
  for name, value in _flat(_plain(config)).items():
    if isinstance(value, int) and abs(value) >= 2**31:
      raise types.UsageError(f'{name} is too large: {value}')
  if config.seed < 0:
    raise types.UsageError(f'seed must be at least 0, got {config.seed}')
  if config.report.map_samples < 0:
    raise types.UsageError(
      f'report.map_samples must be at least 0, got {config.report.map_samples}'
    )
  if config.counterfactual.count and config.model.lateral != 'none':
    raise types.UsageError(
      f'counterfactual.count={config.counterfactual.count} is for a classifier '
      "alone: set model.lateral to 'none', or the count to 0"
    )
  data.check_splits(
    config.data.get('splits', ()),
    config.data.get('split', 0),
    config.data.unknown_classes,
    config.evaluation.get('cifar100_splits', ()),
  )
  for name, check in (
    ('counterfactual', counterfactual.check_fields),
    ('weibull', choice.check_recipe),
    ('scorer', choice.check_decision),
  ):
    try:
      check(**config[name])
    except types.UsageError as error:
      raise types.UsageError(f'config.{name}: {error}') from None


def bind(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Raises where the workdir was made with another config."""
  path = workdir / 'config.json'
  bound = _bound(config)
  # Only what was trained binds: a typo that stopped the run must not.
  trained = ('checkpoints/[0-9]*', 'counterfactual/*/checkpoints/[0-9]*')
  if not path.exists() or not any(any(workdir.glob(x)) for x in trained):
    files.write_text(path, json.dumps(bound, indent=2))
    return
  try:
    before = dict(json.loads(path.read_text()))
  except (TypeError, ValueError):
    raise types.UserError(
      f'{path} is damaged; delete it if this run was made with this very '
      'config, else take another --workdir'
    ) from None
  new = _flat(bound)
  # What a workdir does not tell, since the field is newer, was at its default.
  newer = {k: v for k, v in _defaults().items() if k in new}
  old = {'counterfactual.count': 0, **newer, **_flat(before)}
  changed = [k for k in new | old if old.get(k) != new.get(k)]
  if changed:
    told = ', '.join(
      f'{k} was {old.get(k, "not there")} and is now {new.get(k, "not there")}'
      for k in changed[:3]
    )
    more = f' and {len(changed) - 3} more' if len(changed) > 3 else ''
    raise types.UsageError(
      f'--workdir={workdir} belongs to another config: {told}{more}; take '
      'another --workdir, or the old values'
    )


def _defaults() -> dict[str, Any]:
  """Of fields that the stages can do without, as JSON gives them back."""
  stages: dict[str, Callable[..., Any]] = {
    'data': data.load,
    'model': models.build,
    'train': train.fit,
  }
  found = {
    f'{section}.{name}': parameter.default
    for section, stage in stages.items()
    for name, parameter in inspect.signature(stage).parameters.items()
    if parameter.default is not parameter.empty
  }
  return json.loads(json.dumps(found))


def _score(
  config: config_dict.ConfigDict,
  benchmark: data.Benchmark,
  model: models.dhrnet.DHRNet,
  trained: loop.Trained,
) -> Scored:
  """Features, Weibulls and scores of every method, from one net."""
  variables = trained.state.variables
  parts = {
    name: features.extract(model, variables, image, label)
    for name, image, label in benchmark.parts()
  }
  formulas, recipes, tail = _FORMULAS, PUBLISHED, None
  if config.counterfactual.count:
    formulas, recipes = _FORMULAS_AUGMENTED, {}
    parts = {
      name: counterfactual.split_unknown(found) for name, found in parts.items()
    }
  else:
    recipe, tail = _recipe(config, parts, benchmark.class_names)
    recipes = {'crosr': recipe, **recipes}
  fitted, notes = _fit(parts['train'], benchmark.class_names, recipes)
  scores = {
    name: {
      part: scorer.score(
        found, fitted.get(name), method=formula, alpha=config.scorer.alpha
      )
      for part, found in parts.items()
    }
    for name, formula in formulas.items()
  }
  thresholds = {
    name: metrics.threshold_at_tpr(found['calibrate'].unknown_score)
    for name, found in scores.items()
  }
  lead = next(iter(formulas))
  decision, threshold = _decision(config, scores[lead]['calibrate'])
  decided = {
    part: scorer.decide(
      found, _closed(parts[part]), decision=decision, threshold=threshold
    )
    for part, found in scores[lead].items()
  }
  return Scored(
    step=int(trained.state.step),
    formulas=formulas,
    parts=parts,
    fitted=fitted,
    notes=notes,
    scores=scores,
    thresholds=thresholds,
    tail=tail,
    decision=decision,
    threshold=threshold,
    decided=decided,
  )


def _recipe(
  config: config_dict.ConfigDict,
  parts: dict[str, types.Features],
  class_names: Sequence[str],
) -> tuple[dict[str, Any], types.TailChoice | None]:
  """The fields of the config's fit, and how the tail was chosen, if it was."""
  fields = dict(config.weibull)
  fixed = weibull.parse_tail(fields.pop('tail'))
  if fixed:
    return fields | fixed, None
  with warnings.catch_warnings():
    # Of tails that are tried; the one that is taken is fitted again.
    warnings.simplefilter('ignore', UserWarning)
    tail = choice.tail(
      parts['train'],
      parts['select'],
      reject_known=config.scorer.reject_known,
      class_names=class_names,
      **fields,
    )
  return {**fields, 'tail_share': tail.share}, tail


def _decision(
  config: config_dict.ConfigDict, held_out: types.Scores
) -> tuple[str, float]:
  """The decision that is followed, and its threshold."""
  decision, reject_known = config.scorer.decision, config.scorer.reject_known
  if decision == 'auto':
    rejected = float(np.mean(held_out.prediction == types.UNKNOWN))
    decision = choice.decision(rejected, reject_known)
  tpr = 0.95 if decision == 'tpr95' else 1.0 - reject_known
  return decision, metrics.threshold_at_tpr(held_out.unknown_score, tpr)


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
      fitted[name] = weibull.fit(known, class_names=class_names, **fields)
      for warning in caught:
        logging.warning('%s: %s', name, warning.message)
        # NumPy's own warnings are of another kind, and no matter of the data.
        if warning.category is UserWarning:
          notes.append(f'{name}: {warning.message}')
      caught.clear()
  return fitted, notes


def _result(
  config: config_dict.ConfigDict,
  name: str,
  benchmark: data.Benchmark,
  trained: loop.Trained,
  scored: Scored,
  generated: counterfactual.Generated | None,
) -> dict:
  """report.json."""
  recipe = scored.fitted.get(scored.lead)
  test = scored.parts['test']
  repeated = duplicates.count((n, image) for n, image, _ in benchmark.parts())
  return {
    'name': name,
    'system': 'gan' if generated else models.SYSTEMS[config.model.lateral],
    'seed': config.seed,
    'config': _plain(config),
    'versions': _versions(),
    'device': f'{sharding.num_devices()} x {jax.devices()[0].device_kind}, '
    f'{os.cpu_count()} CPU cores',
    'parameters': train.num_parameters(trained.state),
    'class_names': list(benchmark.class_names),
    'data': {
      part: len(image)
      for part, image, _ in benchmark.parts()
      if part not in benchmark.unknown
    },
    'duplicates': repeated,
    'train': {
      'steps': trained.history[-1]['step'],
      # The same, but where train.keep is 'best'.
      'evaluated_step': scored.step,
      'seconds': trained.seconds,
      'images_per_second': trained.images_per_second,
    },
    'closed_set_accuracy': float(np.mean(_closed(test) == test.label)),
    'known_rejected': {
      part: float(np.mean(scored.decided[part] == types.UNKNOWN))
      for part in ('train', 'calibrate', 'test')
    },
    'decision': scored.decision,
    'tail_choice': scored.tail and scored.tail._asdict(),
    'activation_width': len(recipe.dead) if recipe else None,
    'dead_coordinates': int(recipe.dead.sum()) if recipe else None,
    'tail_count': {
      name: model.tail_count.tolist() for name, model in scored.fitted.items()
    },
    **({'counterfactual': _generated(generated, trained)} if generated else {}),
    'notes': [
      *_promise(config, scored),
      *([_CONTROL] if recipe and config.model.lateral == 'none' else []),
      *([] if benchmark.unknown else ['No unknown set was scored.']),
      duplicates.told(repeated),
      *scored.notes,
    ],
    'unknown': {
      name: _against(benchmark, name, scored) for name in benchmark.unknown
    },
  }


def _promise(config: config_dict.ConfigDict, scored: Scored) -> list[str]:
  """What to know where argmax does not reject what was asked for."""
  if config.scorer.decision not in ('auto', 'argmax'):
    return []
  wanted = config.scorer.reject_known
  found = scored.scores[scored.lead]['calibrate'].prediction
  rejected = float(np.mean(found == types.UNKNOWN))
  if choice.decision(rejected, wanted) == 'argmax':
    return []
  told = (
    f'Argmax rejects {rejected:.1%} of the {len(found):,} known samples held '
    f'out for thresholds, asked for was {wanted:.1%} (scorer.reject_known)'
  )
  if config.scorer.decision == 'argmax':
    return [f'{told}; the decision "calibrated" would keep to it.']
  return [
    f'{told}: the decision is "calibrated", a threshold that keeps to it. F1 '
    'argmax is still the reading of argmax.'
  ]


def _generated(found: counterfactual.Generated, trained: loop.Trained) -> dict:
  """What the generated unknowns are, and what they cost in known accuracy."""
  images = found.images
  return {
    'count': len(images.image),
    'log_sum': {
      'before': float(images.before.mean()),
      'after': float(images.after.mean()),
    },
    'distance': float(images.distance.mean()),
    # Of all K + 1 outputs: a known sample that is rejected counts as wrong.
    'select_accuracy': {
      'classifier': found.select_accuracy,
      'augmented': trained.select_accuracy,
    },
    'seconds': found.seconds,
  }


def _against(benchmark: data.Benchmark, name: str, scored: Scored) -> dict:
  """Figures of every method against one unknown set."""
  unknown, test = benchmark.unknown[name], scored.parts['test']
  figures = {
    method: metrics.evaluate(
      found['test'],
      found[name],
      test.label,
      np.append(_closed(test), _closed(scored.parts[name])),
      threshold=scored.thresholds[method],
      is_probability=scorer.METHODS[scored.formulas[method]].is_probability,
    )
    for method, found in scored.scores.items()
  }
  return {
    'n_known': len(test.label),
    'n_unknown': len(unknown.image),
    'openness': metrics.openness(
      len(benchmark.class_names), unknown.num_classes
    ),
    'recipe': unknown.recipe,
    'ceiling_f1': metrics.ceiling_f1(
      _closed(test), test.label, len(unknown.image)
    ),
    **figures,
    'trivial': metrics.trivial(benchmark.test.image, unknown.image),
  }


def _model_info(
  config: config_dict.ConfigDict,
  benchmark: data.Benchmark,
  model: models.dhrnet.DHRNet,
  scored: Scored,
) -> dict:
  """model.json: all but the Weibulls that a decision on an image needs."""
  bound = json.dumps(_bound(config), sort_keys=True)
  return {
    'format': 1,
    'class_names': list(benchmark.class_names),
    'image_shape': list(benchmark.train.image.shape[1:]),
    'mean': list(model.mean),
    'deviation': list(model.deviation),
    # What decides: its name in fitted.npz and the thresholds, and the method of
    # the scorer that it is for.
    'entry': scored.lead,
    'method': scored.formulas[scored.lead],
    # One more than there are classes where unknown has a logit of its own.
    'num_outputs': len(benchmark.class_names)
    + bool(config.counterfactual.count),
    'decision': scored.decision,
    'threshold': scored.threshold,
    'alpha': config.scorer.alpha,
    'thresholds': scored.thresholds,
    'source_step': scored.step,
    'config_sha256': hashlib.sha256(bound.encode()).hexdigest(),
    'versions': _versions(),
  }


def _material(
  benchmark: data.Benchmark,
  model: models.dhrnet.DHRNet,
  trained: loop.Trained,
  scored: Scored,
  generated: counterfactual.Generated | None,
) -> report.Material:
  """What the report draws from: training, test and unknown samples."""
  image = {
    name: image
    for name, image, _ in benchmark.parts()
    if name not in ('select', 'calibrate')
  }
  recipe, reconstruct, shown = scored.fitted.get(scored.lead), None, None
  if model.lateral != 'none':
    reconstruct = functools.partial(
      features.reconstruct, model, trained.state.variables
    )
  if generated:
    found = generated.images
    shown = report.Generated(
      benchmark.train.image[found.source],
      benchmark.train.label[found.source],
      found.reconstruction,
      found.image,
    )
  return report.Material(
    class_names=benchmark.class_names,
    history=trained.history,
    image=image,
    features={name: scored.parts[name] for name in image},
    activation={
      name: weibull.activation_vector(scored.parts[name], recipe.vector)
      / recipe.feature_scale
      if recipe
      else scored.parts[name].logits
      for name in image
    },
    scores=scored.scores,
    threshold=scored.thresholds,
    decided=scored.decided,
    reconstruct=reconstruct,
    generated=shown,
    tail=scored.tail,
  )


def _closed(found: types.Features) -> np.ndarray:
  return np.argmax(found.logits, axis=1)


def _bound(config: config_dict.ConfigDict) -> dict:
  """The sections that bind a workdir, as JSON gives them back."""
  bound = {name: _plain(config[name]) for name in BINDING}
  # Fields of a system that is off bind nothing.
  if not config.counterfactual.count:
    bound['counterfactual'] = {'count': 0}
  return json.loads(json.dumps(bound))


def _plain(config: Any) -> Any:
  if isinstance(config, config_dict.ConfigDict):
    return config.to_dict()
  return config


def _flat(section: Any, prefix: str = '') -> dict[str, Any]:
  """{'data': {'name': 1}} -> {'data.name': 1}."""
  if not isinstance(section, dict):
    return {prefix: section}
  flat: dict[str, Any] = {}
  for name, value in section.items():
    flat |= _flat(value, f'{prefix}.{name}' if prefix else name)
  return flat


def _versions() -> dict[str, str]:
  packages = ('jax', 'flax', 'optax', 'numpy', 'scipy')
  return {
    'python': platform.python_version(),
    'crosr_jax': crosr_jax.__version__,
    **{name: importlib.metadata.version(name) for name in packages},
  }
