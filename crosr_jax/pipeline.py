"""The whole story: data, net, features, Weibulls, scores, figures, report.

Each stage takes its section of `config` as keywords, and reads nothing else.
"""

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

import crosr_jax
from crosr_jax import (
  binding,
  bucket,
  counterfactual,
  data,
  features,
  files,
  judge,
  loop,
  metrics,
  models,
  report,
  saved,
  settings,
  sharding,
  train,
  types,
  vectors,
)
from crosr_jax.data import duplicates, images
from crosr_jax.models import summary
from crosr_jax.report import tables

_CONTROL = (
  'A net without laterals reconstructs nothing: in its rows "crosr" and '
  '"crosr_published" the pooled outputs of its blocks stand for the codes. '
  'They are a control, not CROSR.'
)


class Plan(NamedTuple):
  """A run before it is begun."""

  device: str
  image_shape: tuple[int, int, int]
  num_classes: int
  batch_size: int  # over all devices
  parts: list[summary.Row]
  step: train.Plan


def run(
  config: config_dict.ConfigDict,
  name: str,
  workdir: pathlib.Path,
  data_dir: pathlib.Path,
) -> dict:
  """Runs a config in a workdir and returns its report.

  Of several processes one writes and reports; of the others it is {}.

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
  settings.check_config(config)
  settings.check_apart(config, workdir)
  with _opened(config, name, workdir):
    logging.info('reading %s', config.data.name)
    # What has to be prepared for it is there when the others come.
    with sharding.writer_first():
      benchmark = data.load(
        seed=config.seed, data_dir=data_dir, **config.data, **config.evaluation
      )
    if sharding.is_writer():
      binding.bind_files(benchmark, workdir)
    mean, deviation = models.pixel_statistics(
      images.for_statistics(benchmark.train.image)
    )
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
        steps_per_dispatch=config.steps_per_dispatch,
        data_on_device=config.data_on_device,
        training=config.train,
        **config.counterfactual,
      )
      training = counterfactual.augment(
        training, generated.images.image, num_outputs
      )
      num_outputs += 1
    model = build(num_classes=num_outputs)
    trained = train.fit_all(
      model,
      training,
      benchmark.select,
      workdir,
      seed=config.seed,
      parallel=config.parallel,
      steps_per_dispatch=config.steps_per_dispatch,
      data_on_device=config.data_on_device,
      **config.train,
    )
    logging.info('fitting and scoring')
    parts = _features(config, benchmark, model, trained)
    if not sharding.is_writer():
      return {}
    scored = judge.score(
      parts,
      benchmark.class_names,
      augmented=bool(config.counterfactual.count),
      **config.weibull,
      **config.scorer,
    )
    files.check_kept(workdir, 'config.json')
    saved.save(
      workdir,
      saved.Saved(
        _model_info(config, benchmark, model, trained, scored),
        scored.fitted,
        scored.scores[scored.lead]['calibrate'].unknown_score,
        trained.state.variables,
      ),
      scored.parts if config.report.features else None,
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


def plan(config: config_dict.ConfigDict) -> Plan:
  """What `run` would train, and what a step of it takes; nothing is run.

  Reads no image and writes nothing. Args and errors are those of `run`.
  """
  settings.check_config(config)
  settings.set_deterministic(config)
  shape = data.expected(**config.data)
  channels = shape.image[-1]
  model = models.build(
    shape.num_classes + bool(config.counterfactual.count),
    # Nothing that is told depends on the pixels.
    *([0.5] * channels, [0.25] * channels),
    **config.model,
  )
  return Plan(
    f'{sharding.num_devices()} x {jax.devices()[0].device_kind}',
    shape.image,
    shape.num_classes,
    config.train.batch_size,
    summary.rows(model, shape.image),
    train.plan(
      model,
      shape.image,
      seed=config.seed,
      parallel=config.parallel,
      **config.train,
    ),
  )


def check(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Raises where `run` would refuse a field, or the workdir of another run."""
  settings.check_config(config)
  if (workdir / 'config.json').exists():
    binding.bind(config, workdir)


@contextlib.contextmanager
def _opened(
  config: config_dict.ConfigDict, name: str, workdir: pathlib.Path
) -> Iterator[None]:
  """Makes the workdir, binds it to the config, and keeps a log in it.

  Raises:
    UsageError: where it cannot be written, or belongs to another config; and
      where processes have different ones.
    UserError: where another process works in it.
  """
  settings.set_deterministic(config)
  _check_same(config)
  if not sharding.is_writer():
    # What all would say, one says.
    logging.getLogger().setLevel(logging.WARNING)
    yield
    return
  with contextlib.ExitStack() as stack:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      stack.enter_context(files.held(workdir))
      for folder in (workdir, workdir / 'figures'):
        files.sweep(folder)
      binding.bind(config, workdir)
      bucket.take(workdir)
      # Last, so that a workdir that is refused leaves no open file.
      handler = logging.FileHandler(
        workdir / 'run.log', encoding='utf-8', errors='backslashreplace'
      )
    except OSError as error:
      is_dangling = workdir.is_symlink() and not workdir.exists()
      reason = 'it is a link to nothing' if is_dangling else error.strerror
      raise types.UsageError(
        f'--workdir={workdir} cannot be written: {reason}; take another'
      ) from None
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s'))
    logging.getLogger().addHandler(handler)
    logging.info(
      'crosr_jax %s: %s in %s, on %d x %s',
      *(crosr_jax.__version__, name, workdir),
      *(sharding.num_devices(), jax.devices()[0].device_kind),
    )
    try:
      # A bucket that cannot be written must not cost a training.
      bucket.put(workdir)
      yield
    except types.UserError as error:
      handler.emit(_record(f'error: {error}'))
      raise
    except Exception:
      handler.emit(_record(traceback.format_exc()))
      raise
    finally:
      logging.getLogger().removeHandler(handler)
      # A disk without room for the log has none for more, and of that the run
      # tells, naming what it could not write.
      with contextlib.suppress(OSError):
        handler.close()
      sharding.forget()


def _check_same(config: config_dict.ConfigDict) -> None:
  """Raises a UsageError where the writer has another config, or version.

  Together they would train something else, or wait for each other for ever.
  """
  own = {'crosr_jax': crosr_jax.__version__, **settings.flat(config)}
  own = json.loads(json.dumps(own))
  first = sharding.agreed(own)
  for name in first | own:
    if first.get(name) != own.get(name):
      raise types.UsageError(
        f'the configs of the processes differ: {name} is '
        f'{settings.told(own, name)} here and {settings.told(first, name)} '
        'in process 0; start all of them with the same config and version'
      )
  # Nothing is written before all have looked.
  sharding.barrier()


def _record(message: str) -> logging.LogRecord:
  return logging.LogRecord('', logging.ERROR, '', 0, message, None, None)


def _features(
  config: config_dict.ConfigDict,
  benchmark: data.Benchmark,
  model: models.Net,
  trained: loop.Trained,
) -> dict[str, types.Features]:
  """Features of every part."""
  variables = trained.state.variables
  augmented = bool(config.counterfactual.count)
  parts = {}
  for name, image, label in benchmark.parts():
    found = features.extract(model, variables, image, label)
    parts[name] = features.split_unknown(found) if augmented else found
  return parts


def _result(
  config: config_dict.ConfigDict,
  name: str,
  benchmark: data.Benchmark,
  trained: loop.Trained,
  scored: judge.Scored,
  generated: counterfactual.Generated | None,
) -> dict:
  """report.json."""
  recipe = scored.fitted.get(scored.lead)
  test = scored.parts['test']
  repeated = duplicates.count((n, image) for n, image, _ in benchmark.parts())
  result: dict[str, Any] = {
    'name': name,
    'system': 'gan' if generated else models.SYSTEMS[settings.lateral(config)],
    'seed': config.seed,
    'config': settings.plain(config),
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
    'skipped': [found._asdict() for found in benchmark.skipped],
    'duplicates': repeated,
    'train': {
      'steps': trained.history[-1]['step'],
      # The same, but where train.keep is 'best'; then of members one each.
      'evaluated_step': trained.evaluated_step,
      'seconds': trained.seconds,
      'images_per_second': trained.images_per_second,
    },
    'closed_set_accuracy': float(np.mean(judge.closed(test) == test.label)),
    'known_rejected': {
      part: scored.rejected(part) for part in ('train', 'calibrate', 'test')
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
      *judge.promise(
        scored, config.scorer.decision, config.scorer.reject_known
      ),
      *judge.untested(test, benchmark.class_names),
      *([_CONTROL] if recipe and settings.lateral(config) == 'none' else []),
      *([] if benchmark.unknown else ['No unknown set was scored.']),
      duplicates.told(repeated),
      *_left_out(benchmark),
      *scored.notes,
    ],
    'unknown': {
      name: _against(benchmark, name, scored) for name in benchmark.unknown
    },
  }
  result['notes'] += tables.differences(result)
  return result


def _left_out(benchmark: data.Benchmark) -> list[str]:
  """How many files were no images, and the first of them."""
  if not benchmark.skipped:
    return []
  listed = '; '.join(f'{x.path}: {x.reason}' for x in benchmark.skipped[:3])
  more = '; ...' if len(benchmark.skipped) > 3 else ''
  return [
    f'Files that were left out: {len(benchmark.skipped)}. report.json names '
    f'them all ({listed}{more}).'
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


def _against(
  benchmark: data.Benchmark, name: str, scored: judge.Scored
) -> dict:
  """Figures of every method against one unknown set."""
  unknown = benchmark.unknown[name]
  return {
    **judge.against(scored, name, unknown.num_classes),
    'recipe': unknown.recipe,
    'trivial': metrics.trivial(benchmark.test.image, unknown.image),
  }


def _model_info(
  config: config_dict.ConfigDict,
  benchmark: data.Benchmark,
  model: models.Net,
  trained: loop.Trained,
  scored: judge.Scored,
) -> dict:
  """model.json: all but the Weibulls that a decision on an image needs."""
  return {
    'class_names': list(benchmark.class_names),
    'image_shape': list(benchmark.train.image.shape[1:]),
    'mean': list(model.mean),
    'deviation': list(model.deviation),
    'net': settings.plain(config.model),
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
    'weibull': settings.plain(config.weibull),
    'scorer': settings.plain(config.scorer),
    'unknown_sets': {
      name: found.num_classes for name, found in benchmark.unknown.items()
    },
    'unknown_classes': {
      name: found.classes
      for name, found in benchmark.unknown.items()
      if found.classes
    },
    'evaluation_seed': config.data.evaluation_seed,
    'known_images': {
      'folders': {
        f'data.{field}': str(files.real(config.data[field]))
        for field in settings.FOLDERS
        if config.data.get(field)
      },
      'is_all_known': not (
        config.data.unknown_classes or config.data.get('splits')
      ),
    },
    'source_step': trained.evaluated_step,
    'config_sha256': binding.digest(config),
    'versions': _versions(),
  }


def _material(
  benchmark: data.Benchmark,
  model: models.Net,
  trained: loop.Trained,
  scored: judge.Scored,
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
      name: vectors.activation_vector(scored.parts[name], recipe.vector)
      / recipe.feature_scale
      if recipe
      else scored.parts[name].logits
      for name in image
      if name != 'train'
    },
    scores=scored.scores,
    threshold=scored.thresholds,
    decided=scored.decided,
    reconstruct=reconstruct,
    followed=scored.threshold if scored.decision == 'calibrated' else None,
    generated=shown,
    tail=scored.tail,
  )


def _versions() -> dict[str, str]:
  packages = ('jax', 'flax', 'optax', 'numpy', 'scipy')
  return {
    'python': platform.python_version(),
    'crosr_jax': crosr_jax.__version__,
    **{name: importlib.metadata.version(name) for name in packages},
  }
