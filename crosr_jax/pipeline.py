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
import re
import traceback
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import xla_bridge
from ml_collections import config_dict

import crosr_jax
from crosr_jax import (
  bucket,
  choice,
  counterfactual,
  data,
  features,
  feed,
  files,
  judge,
  loop,
  metrics,
  models,
  optimizer,
  report,
  saved,
  sharding,
  train,
  types,
  vectors,
)
from crosr_jax.data import duplicates, images
from crosr_jax.models import summary
from crosr_jax.report import tables

# Sections that a workdir is bound to.
BINDING = ('data', 'model', 'train', 'seed', 'counterfactual')
_CONTROL = (
  'A net without laterals reconstructs nothing: in its rows "crosr" and '
  '"crosr_published" the pooled outputs of its blocks stand for the codes. '
  'They are a control, not CROSR.'
)

_EVALUATION = ('unknown_sets', 'max_unknown', 'unknown_dirs', 'cifar100_splits')
_DETERMINISTIC = '--xla_gpu_deterministic_ops=true'
# Arguments of stages that are of no section.
_GIVEN = (
  *('seed', 'data_dir', 'parallel', 'training'),
  *('steps_per_dispatch', 'data_on_device'),
)
# Fields that name folders of images.
_FOLDERS = ('train_dir', 'test_dir')
# Fields that `run` itself reads.
_OWN = {
  'seed': int,
  'parallel': str,
  'steps_per_dispatch': int,
  'data_on_device': str,
  'deterministic': bool,
  'report.pictures': bool,
  'report.features': bool,
  'report.map_samples': int,
}
_TYPES = {
  bool: 'True or False',
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
}


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
  check_config(config)
  check_apart(config, workdir)
  with _opened(config, name, workdir):
    logging.info('reading %s', config.data.name)
    # What has to be prepared for it is there when the others come.
    with sharding.writer_first():
      benchmark = data.load(
        seed=config.seed, data_dir=data_dir, **config.data, **config.evaluation
      )
    if sharding.is_writer():
      bind_files(benchmark, workdir)
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
  check_config(config)
  set_deterministic(config)
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


def check_apart(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Raises a UsageError where folders lie in one another that must not.

  The workdir in one of images, or known images in one of unknowns.
  """
  known = {f'data.{field}': config.data.get(field, '') for field in _FOLDERS}
  dirs = config.evaluation.get('unknown_dirs', ())
  if all(known.values()):
    first, second = map(files.real, known.values())
    if first.is_relative_to(second) or second.is_relative_to(first):
      raise types.UsageError(
        f'data.test_dir={known["data.test_dir"]} lies in data.train_dir='
        f'{known["data.train_dir"]}, or that in it; name a folder of other '
        'images, or none, and the share that is tested on as data.test_share'
      )
  if dirs:
    classes = data.known_folders(**config.data)
    for folder in dirs:
      data.check_apart(
        'evaluation.unknown_dirs', folder, known, classes=classes
      )
  named = [*known.items(), *(('evaluation.unknown_dirs', x) for x in dirs)]
  for field, folder in named:
    if folder and files.real(workdir).is_relative_to(files.real(folder)):
      raise types.UsageError(
        f'--workdir={workdir} lies in {field}={folder}, whose folders are '
        'classes; take one elsewhere'
      )


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
  set_deterministic(config)
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
      bind(config, workdir)
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
  own = {'crosr_jax': crosr_jax.__version__, **_flat(_plain(config))}
  own = json.loads(json.dumps(own))
  first = sharding.agreed(own)
  for name in first | own:
    if first.get(name) != own.get(name):
      raise types.UsageError(
        f'the configs of the processes differ: {name} is '
        f'{_told_value(own, name)} here and {_told_value(first, name)} in '
        'process 0; start all of them with the same config and version'
      )
  # Nothing is written before all have looked.
  sharding.barrier()


def set_deterministic(config: config_dict.ConfigDict) -> None:
  """Before JAX is first used: bit-equal training on GPU, where asked for."""
  before, flag = os.environ.get('XLA_FLAGS', ''), _DETERMINISTIC
  # What a config lacks is told later.
  if config.get('deterministic') and flag not in before.split():
    os.environ['XLA_FLAGS'] = f'{before} {flag}'
    if xla_bridge.backends_are_initialized():
      logging.warning(
        'deterministic=True comes too late, JAX is in use already: begin anew '
        'with XLA_FLAGS=%s',
        flag,
      )


def _record(message: str) -> logging.LogRecord:
  return logging.LogRecord('', logging.ERROR, '', 0, message, None, None)


def check_config(config: config_dict.ConfigDict) -> None:
  """Looks first at what is used last: a typo must not cost a training."""
  check_sections(config)
  _check_types(config)
  for name, value in _flat(_plain(config)).items():
    if isinstance(value, int) and abs(value) >= 2**31:
      raise types.UsageError(f'{name} is too large: {value}')
  if config.seed < 0:
    raise types.UsageError(f'seed must be at least 0, got {config.seed}')
  members = config.model.get('members', 1)
  if (config.seed + 1) * members > 2**32:
    raise types.UsageError(
      f'seed={config.seed} is too large for model.members={members}: each of '
      'them has one of its own, below 2**32'
    )
  if config.report.map_samples < 0:
    raise types.UsageError(
      f'report.map_samples must be at least 0, got {config.report.map_samples}'
    )
  if config.counterfactual.count and _lateral(config) != 'none':
    raise types.UsageError(
      f'counterfactual.count={config.counterfactual.count} is for a classifier '
      "alone: set model.lateral to 'none', or the count to 0"
    )
  if config.counterfactual.count and config.data.name == 'folder':
    raise types.UsageError(
      f'counterfactual.count={config.counterfactual.count}: unknowns are '
      "generated for images in memory alone; set it to 0 for 'folder'"
    )
  data.check_splits(
    config.data.get('splits', ()),
    config.data.get('split', 0),
    config.data.unknown_classes,
    config.evaluation.get('cifar100_splits', ()),
  )
  data.check_unknown(
    config.evaluation.unknown_sets,
    config.evaluation.max_unknown,
    config.data.evaluation_seed,
  )
  feed.check_fields(config.steps_per_dispatch, config.data_on_device)
  for name, check in (
    ('counterfactual', counterfactual.check_fields),
    ('weibull', choice.check_recipe),
    ('scorer', choice.check_decision),
  ):
    try:
      check(**config[name])
    except types.UsageError as error:
      raise types.UsageError(f'config.{name}: {error}') from None
  if config.model.get('eval_mirror', False) and not config.train.flip:
    logging.warning(
      'model.eval_mirror=True: mirror images are asked about that the net is '
      'not trained with; set train.flip=True, or expect lower accuracy'
    )


def _check_types(config: config_dict.ConfigDict) -> None:
  """Raises a UsageError for a field that is missing or of another type."""
  known = _fields()
  for name, (kind, is_needed) in known.items():
    section, _, field = name.rpartition('.')
    holder = config[section] if section else config
    if not isinstance(holder, config_dict.ConfigDict):
      raise types.UsageError(
        f'the config has {section}={holder!r}, which must be a section; start '
        'it from configs/common.py'
      )
    if field in holder:
      if not _fits(holder[field], kind):
        raise types.UsageError(
          f'{name} must be {_told_type(kind)}, got {holder[field]!r}'
        )
    elif is_needed:
      raise types.UsageError(
        f'the config has no {name}; start it from configs/common.py, which has '
        'every field'
      )
  for name in _flat(_plain(config)):
    if name not in known:
      hint = types.near(name, known) or '; leave it out'
      raise types.UsageError(
        f'the config has {name}, which nothing reads{hint}'
      )


def _lateral(config: config_dict.ConfigDict) -> str:
  return config.model.get('lateral', _defaults()['model.lateral'])


def _fields() -> dict[str, tuple[Any, bool]]:
  """By field, its type, and whether it is needed: as the stages have it."""
  found = {name: (kind, True) for name, kind in _OWN.items()}
  for name, parameter in _parameters():
    found[name] = parameter.annotation, parameter.default is parameter.empty
  return found


def _parameters() -> Iterator[tuple[str, inspect.Parameter]]:
  """Fields, each with what the stage that reads it says of it."""
  stages: list[tuple[str, Callable[..., Any]]] = [
    ('data', data.load),
    ('model', models.build),
    ('train', train.fit),
    ('train', train.build_step),
    ('train', optimizer.build),
    ('counterfactual', counterfactual.generate),
    ('weibull', choice.check_recipe),
    ('scorer', choice.check_decision),
  ]
  for section, stage in stages:
    for name, parameter in inspect.signature(stage).parameters.items():
      if parameter.kind is parameter.KEYWORD_ONLY and name not in _GIVEN:
        of = 'evaluation' if name in _EVALUATION else section
        yield f'{of}.{name}', parameter


def _fits(value: Any, kind: Any) -> bool:
  """Whether a value is of a type, as the stages annotate it."""
  if items := typing.get_args(kind):
    if not isinstance(value, tuple | list):
      return False
    # Who reads splits tells better what is wrong within one.
    is_nested = bool(typing.get_args(items[0]))
    return is_nested or all(_fits(x, items[0]) for x in value)
  if isinstance(value, bool):
    return kind is bool
  return isinstance(value, (int, float) if kind is float else kind)


def _told_type(kind: Any) -> str:
  if items := typing.get_args(kind):
    return f'a tuple, each item {_told_type(items[0])}'
  return _TYPES[kind]


def bind(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Raises where the workdir was made with another config."""
  path = workdir / 'config.json'
  bound = _bound(config)
  # Only what was trained binds: a typo that stopped the run must not.
  is_trained = _is_trained(workdir)
  if not path.exists() or not is_trained:
    if is_trained:
      _check_lost(config, workdir)
    files.write_text(path, json.dumps(bound, indent=2))
    return
  try:
    before = dict(json.loads(path.read_text()))
  except (RecursionError, TypeError, ValueError):
    raise types.UserError(
      f'{path} is damaged; delete it if this run was made with this very '
      'config, else take another --workdir'
    ) from None
  # A field that a workdir does not tell, since it is newer, was at its default;
  # one that a user's config leaves out is.
  unsaid = {'counterfactual.count': 0, **_defaults()}
  old, new = unsaid | _flat(before), unsaid | _flat(bound)
  folders = {f'data.{field}' for field in _FOLDERS}

  def value(fields: dict[str, Any], k: str) -> Any:
    found = fields.get(k)
    # However it is written, it is the same folder.
    return files.real(found) if found and k in folders else found

  changed = [k for k in new | old if value(old, k) != value(new, k)]
  if changed:
    told = ', '.join(
      f'{k} was {_told_value(old, k)} and is now {_told_value(new, k)}'
      for k in changed[:3]
    )
    more = f' and {len(changed) - 3} more' if len(changed) > 3 else ''
    raise types.UsageError(
      f'--workdir={workdir} belongs to another config: {told}{more}; take '
      'another --workdir, or the old values'
    )


def _check_lost(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Of a workdir that was trained and has lost its config.json."""
  try:
    trained_with = saved.load_info(workdir)['config_sha256']
  except types.UserError:
    logging.warning(
      '%s holds a training and no config.json: it is taken for one of this '
      'very config',
      workdir,
    )
    return
  if trained_with != _digest(config):
    raise types.UsageError(
      f'--workdir={workdir} has lost its config.json, and this config is not, '
      'word for word, that of its model; bring the file back, or take the old '
      'values or another --workdir'
    )


def _told_value(fields: dict[str, Any], name: str) -> str:
  return repr(fields[name]) if name in fields else 'not there'


def _is_trained(workdir: pathlib.Path) -> bool:
  """Whether there is a checkpoint of anything."""
  of_net = ('', 'members/*/')
  folders = (*of_net, *(f'counterfactual/*/{x}' for x in of_net))
  return any(any(workdir.glob(f'{x}checkpoints/[0-9]*')) for x in folders)


def bind_files(benchmark: data.Benchmark, workdir: pathlib.Path) -> None:
  """Raises where a run of images in files was trained on others.

  Data sets of `prepare` are held against checksums whenever they are read.
  """
  image, label = benchmark.train
  if not images.is_lazy(image):
    return
  found = hashlib.sha256(image.digest.tobytes() + label.tobytes()).hexdigest()
  path = workdir / 'images.sha256'
  is_trained = _is_trained(workdir)
  if not path.exists() or not is_trained:
    if is_trained:
      logging.warning(
        '%s has lost its images.sha256: it is taken for a training on the '
        'images that are there now',
        workdir,
      )
    files.write_text(path, found)
    return
  before = path.read_bytes()
  if not re.fullmatch(b'[0-9a-f]{64}', before):
    raise types.UserError(
      f'{path} is damaged; delete it if the images are those that this run was '
      'trained on, else take another --workdir'
    )
  if before.decode() != found:
    raise types.UsageError(
      f'--workdir={workdir} was trained on other images than the data set has '
      'now: files were added, changed or removed; take another --workdir, or '
      'bring them back'
    )


def _defaults() -> dict[str, Any]:
  """Of fields that the stages can do without, as JSON gives them back."""
  found = {
    name: parameter.default
    for name, parameter in _parameters()
    if parameter.default is not parameter.empty
  }
  return json.loads(json.dumps(found))


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
    'system': 'gan' if generated else models.SYSTEMS[_lateral(config)],
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
      *([_CONTROL] if recipe and _lateral(config) == 'none' else []),
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
    'net': _plain(config.model),
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
    'weibull': _plain(config.weibull),
    'scorer': _plain(config.scorer),
    'unknown_sets': {
      name: found.num_classes for name, found in benchmark.unknown.items()
    },
    'unknown_classes': {
      name: found.classes
      for name, found in benchmark.unknown.items()
      if found.classes
    },
    'evaluation_seed': config.data.evaluation_seed,
    'source_step': trained.evaluated_step,
    'config_sha256': _digest(config),
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


def _digest(config: config_dict.ConfigDict) -> str:
  """SHA-256 of what binds a workdir."""
  return files.digest(_bound(config))


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
