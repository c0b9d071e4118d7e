"""Training of a classifier: loss, replica step, fit.

B batch of one replica; the axis sharding.AXIS runs over the replicas.
"""

import functools
import logging
import pathlib
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from crosr_jax import (
  features,
  feed,
  loop,
  mixing,
  models,
  optimizer,
  sharding,
  types,
)
from crosr_jax.data import augment, images, splits
from crosr_jax.models import dhrnet, ensemble, layers, summary

Array = jax.Array

_IMAGES_FOR_INIT = 512
_PIXELS_FOR_INIT = 1 << 25
_WORDS = loop.Words(
  'training',
  ('loss', 'cross_entropy', 'reconstruction', 'accuracy'),
  'Lower train.learning_rate or set train.clip_norm',
)


class TrainState(NamedTuple):
  """All that a step changes."""

  step: Any  # [] int32, steps taken
  params: Any
  batch_stats: Any
  opt_state: Any
  # Moving average of `trained`; () where there is none.
  average: Any = ()

  @property
  def trained(self) -> dict[str, Any]:
    """What the last step left."""
    return {'params': self.params, 'batch_stats': self.batch_stats}

  @property
  def variables(self) -> dict[str, Any]:
    """What the net is applied with: the average where there is one."""
    return self.average or self.trained


def loss_fn(
  params: Any,
  batch_stats: Any,
  model: dhrnet.DHRNet,
  batch: types.Batch,
  keys: Array,
  reconstruction_weight: float,
  label_smoothing: float,
  mixup: float = 0.0,
  noise: float = 0.0,
  cutout: int = 0,
) -> tuple[Array, tuple[dict[str, Array], Any]]:
  """Cross-entropy + weight * mean squared reconstruction error.

  Both are means over this replica's batch; the error is over all elements of
  the standardised image (CROSR, section 4). Of a label, a share
  `label_smoothing` is spread evenly over all classes. With `mixup`, image and
  label are first mixed with the next row's, see mixing.mixer; the mixed image
  is what is rebuilt, and the sample counts as its larger part's class. `noise`
  and `cutout` are on what the net sees and not on what it is to rebuild, see
  mixing.noisy and mixing.cut_out. Of a net with classes of turned images, image
  and label are first turned, see mixing.turned.

  Returns:
    The loss [], and (metrics, batch_stats) beside it.
  """
  variables = {'params': params, 'batch_stats': batch_stats}
  image, label = batch.image, batch.label
  if model.rotation_classes:
    image, which = mixing.turned(image, keys, model.rotation_classes)
  mix = mixing.mixer(keys, mixup) if mixup else lambda rows: rows
  image = mix(image)
  seen = image
  if noise:
    seen = mixing.noisy(seen, keys, noise, model.deviation)
  if cutout:
    seen = mixing.cut_out(seen, keys, cutout, model.mean)
  outputs, updated = model.apply(
    models.for_compute(model, variables),
    seen,
    keys,
    train=True,
    mutable=['batch_stats'],
  )
  num_classes = outputs.logits.shape[1]
  if model.rotation_classes:
    label = label + num_classes // model.ways * which
  target_class = mix(
    (1.0 - label_smoothing) * jax.nn.one_hot(label, num_classes)
    + label_smoothing / num_classes
  )
  cross_entropy = jnp.mean(
    optax.softmax_cross_entropy(outputs.logits, target_class)
  )
  right = jnp.argmax(outputs.logits, axis=1) == label
  metrics = {
    'cross_entropy': cross_entropy,
    'accuracy': jnp.mean(right.astype(jnp.float32)),
  }
  loss = cross_entropy
  if model.lateral != 'none':
    target = model.standardise(image, train=True)
    metrics['reconstruction'] = jnp.mean(
      jnp.square(outputs.reconstruction - target)
    )
    loss = loss + reconstruction_weight * metrics['reconstruction']
  metrics['loss'] = loss
  return loss, (metrics, updated.get('batch_stats', batch_stats))


def replica_step(
  state: TrainState,
  batch: tuple[types.Batch, Array],
  *,
  model: dhrnet.DHRNet,
  rule: optax.GradientTransformation,
  rate: optax.Schedule,
  augmentation: Callable[[Array, Array], Array],
  key: Array,
  reconstruction_weight: float,
  label_smoothing: float,
  average: float,
  mixup: float = 0.0,
  noise: float = 0.0,
  cutout: int = 0,
) -> tuple[TrainState, dict[str, Array]]:
  """One step of one replica.

  Args:
    state: equal on all replicas.
    batch: this replica's share, and each row's number, [B], see batches.rows:
      dropout and augmentation follow (key, step, number), wherever a row lands.
    model: the net.
    rule: the update rule.
    rate: learning rate by step, for the log.
    augmentation: of images [B, H, W, C] with keys [B].
    key: of the run.
    reconstruction_weight: see `loss_fn`.
    label_smoothing: see `loss_fn`.
    average: decay of the moving average; 0 = none.
    mixup: see `loss_fn`.
    noise: see `loss_fn`.
    cutout: see `loss_fn`.

  Returns:
    The next state and the metrics, means over all replicas.
  """
  samples, number = batch
  step_key = jax.random.fold_in(key, state.step)
  keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(number)
  samples = samples._replace(image=augmentation(samples.image, keys))
  gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
  (_, (metrics, batch_stats)), gradient = gradient_fn(
    state.params,
    state.batch_stats,
    model,
    samples,
    keys,
    reconstruction_weight,
    label_smoothing,
    mixup,
    noise,
    cutout,
  )
  gradient = jax.lax.pmean(gradient, sharding.AXIS)
  metrics = jax.lax.pmean(metrics, sharding.AXIS)
  metrics['grad_norm'] = optax.tree.norm(gradient)
  metrics['learning_rate'] = jnp.asarray(rate(state.step), jnp.float32)
  update, opt_state = rule.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, update)
  state = TrainState(
    state.step + 1, params, batch_stats, opt_state, state.average
  )
  return _averaged(state, average), metrics


def _averaged(state: TrainState, decay: float) -> TrainState:
  """The average brought up to a step; early on it forgets faster."""
  if not decay:
    return state
  step = state.step.astype(jnp.float32)
  keep = jnp.minimum(decay, step / (step + 10.0))
  average = optax.incremental_update(state.trained, state.average, 1.0 - keep)
  return state._replace(average=average)


def init_state(
  model: dhrnet.DHRNet,
  rule: optax.GradientTransformation,
  image: np.ndarray,
  key: Array,
  *,
  average: float = 0.0,
) -> TrainState:
  """The state before the first step; image and key as models.init has them."""
  return _first(models.init(model, image, key), rule, average)


def _first(
  variables: dict[str, Any], rule: optax.GradientTransformation, average: float
) -> TrainState:
  """The state before the first step, of a net's variables."""
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=rule.init(variables['params']),
  )
  return state._replace(average=state.trained) if average else state


def num_parameters(state: TrainState) -> int:
  """Trained numbers; batch statistics are not among them."""
  return sum(np.size(x) for x in jax.tree.leaves(state.params))


class Plan(NamedTuple):
  """What a training would take; bytes are of one device."""

  parameters: int
  # Of a step, the update of the parameters included, on one device.
  multiply_adds: int
  state: int  # parameters, statistics, optimizer, average
  batch: int  # its share
  working: int  # beside them, while a step runs
  program: int
  seconds: float  # of compilation


def plan(
  model: models.Net,
  image_shape: tuple[int, int, int],
  *,
  seed: int,
  parallel: str,
  batch_size: int,
  average: float = 0.0,
  balanced: bool = False,
  **fields: Any,
) -> Plan:
  """Traces and compiles the step that `fit` would run, and runs nothing.

  Args and errors are those of `fit`, with H, W, C of an image in place of the
  samples. Of an ensemble one member is told, as they are trained one by one.
  """
  del balanced
  if isinstance(model, ensemble.Ensemble):
    model = model.members[0]
  step, rule = _checked_step(
    model,
    np.zeros((1, *image_shape), np.uint8),
    seed=seed,
    batch_size=batch_size,
    average=average,
    **fields,
  )
  state = state_shapes(model, rule, image_shape, average=average)
  devices = sharding.num_devices()
  share = batch_shapes(image_shape, batch_size // devices)
  counted = multiply_adds(step, state, share, devices)
  start = time.monotonic()
  engine = sharding.engine(step, parallel=parallel)
  found: Any = engine.planned(
    state, batch_shapes(image_shape, batch_size)
  ).memory_analysis()
  return Plan(
    parameters=num_parameters(state),
    multiply_adds=counted,
    state=_bytes(state),
    batch=_bytes(share),
    # What is not given the memory of the old state is new.
    working=found.temp_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes,
    program=found.generated_code_size_in_bytes,
    seconds=time.monotonic() - start,
  )


def state_shapes(
  model: dhrnet.DHRNet,
  rule: optax.GradientTransformation,
  image_shape: tuple[int, int, int],
  *,
  average: float = 0.0,
) -> TrainState:
  """`init_state` of images of H, W, C, as shapes alone."""
  return jax.eval_shape(
    functools.partial(_first, rule=rule, average=average),
    models.shapes(model, image_shape),
  )


def batch_shapes(
  image_shape: tuple[int, int, int], rows: int
) -> tuple[types.Batch, Any]:
  """What a step is given, as shapes alone."""
  image = jax.ShapeDtypeStruct((rows, *image_shape), jnp.uint8)
  label, mask, index = (
    jax.ShapeDtypeStruct((rows,), dtype)
    for dtype in (jnp.int32, jnp.bool, jnp.uint32)
  )
  return types.Batch(image, label, mask), index


def multiply_adds(
  step: sharding.ReplicaStep, state: Any, batch: Any, devices: int = 1
) -> int:
  """Of a step on one of the devices, from shapes; see summary.multiply_adds."""
  with layers.stock_operations():
    jaxpr = jax.make_jaxpr(step, axis_env=[(sharding.AXIS, devices)])(
      state, batch
    )
  return summary.multiply_adds(jaxpr.jaxpr)


def _bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def fit(
  model: dhrnet.DHRNet,
  train: splits.Labelled,
  select: splits.Labelled,
  workdir: pathlib.Path,
  *,
  seed: int,
  parallel: str,
  num_steps: int,
  batch_size: int,
  log_every: int,
  checkpoint_every: int,
  keep_checkpoints: int,
  steps_per_dispatch: int = 0,
  data_on_device: str = 'auto',
  keep: str = 'last',
  balanced: bool = False,
  average: float = 0.0,
  **step_fields: Any,
) -> loop.Trained:
  """Trains, or goes on where the newest whole checkpoint is.

  Args:
    model: the net.
    train: samples to train on.
    select: held-out samples whose accuracy is logged at every checkpoint.
    workdir: where checkpoints and TensorBoard files go.
    seed: of initialisation, data order, dropout and augmentation.
    parallel: see sharding.engine.
    num_steps: of the whole training; schedules stretch to it.
    batch_size: over all devices.
    log_every: steps between rows of the history.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many of the newest ones stay.
    steps_per_dispatch: see feed.build.
    data_on_device: see feed.build.
    keep: 'last' step, or 'best' checkpoint on `select`: what is returned.
    balanced: see batches.rows.
    average: decay of the moving average of weights and statistics, which is
      then what is evaluated, in [0, 1); 0 = none.
    **step_fields: see `build_step`.

  Raises:
    ValueError: for a field that cannot be used.
    DivergedError: where a loss or a gradient is not finite; the last good
      checkpoint is kept.
  """
  step, rule = _checked_step(
    model,
    train.image,
    seed=seed,
    num_steps=num_steps,
    batch_size=batch_size,
    log_every=log_every,
    checkpoint_every=checkpoint_every,
    keep_checkpoints=keep_checkpoints,
    keep=keep,
    average=average,
    **step_fields,
  )
  fed = feed.build(
    step,
    train,
    batch_size,
    seed,
    balanced=balanced,
    steps_per_dispatch=steps_per_dispatch,
    data_on_device=data_on_device,
  )
  state = init_state(
    model,
    rule,
    images.spread(train.image, _images_for_init(model, train.image.shape)),
    named_key(jax.random.key(seed), 'init'),
    average=average,
  )
  return loop.run(
    sharding.engine(fed.step, parallel=parallel, shared=fed.shared),
    state,
    fed.order,
    workdir,
    _WORDS,
    num_steps=num_steps,
    batch_size=batch_size,
    log_every=log_every,
    checkpoint_every=checkpoint_every,
    keep_checkpoints=keep_checkpoints,
    steps_per_dispatch=fed.steps_per_dispatch,
    keep=keep,
    select_accuracy=functools.partial(_accuracy, model, select),
  )


def _images_for_init(model: dhrnet.DHRNet, shape: Sequence[int]) -> int:
  """Of [N, H, W, C], with all views of each in memory at once."""
  pixels = shape[1] * shape[2] * model.num_views
  return max(1, min(_IMAGES_FOR_INIT, _PIXELS_FOR_INIT // pixels))


def folders(workdir: pathlib.Path, members: int) -> list[pathlib.Path]:
  """Where the checkpoints of each net are, of one or of several."""
  if members == 1:
    return [workdir]
  return [workdir / 'members' / str(i) for i in range(members)]


def fit_all(
  model: models.Net,
  train: splits.Labelled,
  select: splits.Labelled,
  workdir: pathlib.Path,
  *,
  seed: int,
  **fields: Any,
) -> loop.Trained:
  """`fit`, or all members of an ensemble, one after the other.

  Args:
    model: the net.
    train: see `fit`.
    select: see `fit`.
    workdir: of the checkpoints, see `folders`.
    seed: of M members, member i takes M * seed + i, so that no two ensembles
      share one.
    **fields: see `fit`.

  Returns:
    The state of all members; of the history, means over them, but how right
    they are together on `select` once all are trained.

  Raises:
    ValueError: as `fit`.
  """
  if isinstance(model, dhrnet.DHRNet):
    return fit(model, train, select, workdir, seed=seed, **fields)
  count = len(model.members)
  trained = []
  for i, folder in enumerate(folders(workdir, count)):
    logging.info('member %d of %d', i + 1, count)
    member = model.members[i]
    own = count * seed + i
    trained.append(fit(member, train, select, folder, seed=own, **fields))
  params, batch_stats = (
    {f'members_{i}': x.state.variables[name] for i, x in enumerate(trained)}
    for name in ('params', 'batch_stats')
  )
  history = [
    {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    | {'step': rows[0]['step']}
    for rows in zip(*(x.history for x in trained), strict=True)
  ]
  steps = np.array([x.state.step for x in trained], np.int32)
  # With train.keep='best' each has its own.
  step = steps if np.ptp(steps) else steps[0]
  state = TrainState(step, params, batch_stats, ())
  found = loop.Trained(
    state,
    history,
    sum(x.seconds for x in trained),
    float(np.mean([x.images_per_second for x in trained])),
  )
  found.evaluated['select_accuracy'] = _accuracy(model, select, state)
  return found


def build_step(
  model: dhrnet.DHRNet,
  image: Any,
  *,
  seed: int,
  num_steps: int,
  reconstruction_weight: float,
  shift: int,
  flip: bool,
  average: float = 0.0,
  label_smoothing: float = 0.0,
  mixup: float = 0.0,
  noise: float = 0.0,
  cutout: int = 0,
  shift_fill: str = 'black',
  rotate: float = 0.0,
  lighting: float = 0.0,
  expand: float = 1.0,
  crop: int = 0,
  **optimizer_fields: Any,
) -> tuple[sharding.ReplicaStep, optax.GradientTransformation]:
  """The step of a training, see `replica_step`, and its update rule.

  Args:
    model: the net.
    image: of the training data, [N, H, W, C], see augment.build.
    seed: of dropout and augmentation.
    num_steps: of the whole training.
    reconstruction_weight: see `loss_fn`.
    shift: see augment.build.
    flip: see augment.build.
    average: see `fit`.
    label_smoothing: see `loss_fn`, in [0, 1).
    mixup: see `loss_fn`, the Beta distribution's parameter; 0 = not mixed.
    noise: see `loss_fn`, in deviations of the training pixels; 0 = none.
    cutout: see `loss_fn`, in pixels; 0 = none.
    shift_fill: see augment.build.
    rotate: see augment.build.
    lighting: see augment.build.
    expand: see augment.build.
    crop: see augment.build.
    **optimizer_fields: see optimizer.build.

  Raises:
    ValueError: for a field that cannot be used.
  """
  _check_finite(
    reconstruction_weight=reconstruction_weight, mixup=mixup, noise=noise
  )
  _check_share(label_smoothing=label_smoothing, average=average)
  height, width = image.shape[1:3]
  side = min(height, width)
  if not 0 <= cutout <= side:
    raise types.UsageError(
      f'train.cutout must be at least 0 and at most {side}, the side of the '
      f'images, got {cutout}'
    )
  if model.rotation_classes and height != width:
    raise types.UsageError(
      f'model.rotation_classes={model.rotation_classes} turns images, and '
      f'these of {height} x {width} pixels are not square; set it to ()'
    )
  augmentation = augment.build(
    shift=shift,
    flip=flip,
    shift_fill=shift_fill,
    rotate=rotate,
    lighting=lighting,
    expand=expand,
    crop=crop,
    image_shape=image.shape[1:],
    mean=model.mean,
    covariance=augment.covariance(images.for_statistics(image))
    if lighting
    else (),
  )
  rule, rate = optimizer.build(num_steps, **optimizer_fields)
  step = functools.partial(
    replica_step,
    model=model,
    rule=rule,
    rate=rate,
    augmentation=augmentation,
    key=named_key(jax.random.key(seed), 'train'),
    reconstruction_weight=reconstruction_weight,
    label_smoothing=label_smoothing,
    average=average,
    mixup=mixup,
    noise=noise,
    cutout=cutout,
  )
  return step, rule


def _accuracy(
  model: models.Net, samples: splits.Labelled, state: TrainState
) -> float:
  """Closed-set accuracy in evaluation mode; NaN where a logit is not finite."""
  found = features.extract(model, state.variables, samples.image, samples.label)
  if not np.isfinite(found.logits).all():
    return np.nan
  return float(np.mean(np.argmax(found.logits, axis=1) == found.label))


def named_key(key: Array, name: str) -> Array:
  """A key of its own for each use of a run's key."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _checked_step(
  model: dhrnet.DHRNet,
  image: Any,
  *,
  num_steps: int,
  batch_size: int,
  log_every: int,
  checkpoint_every: int,
  keep_checkpoints: int,
  keep: str = 'last',
  **step_fields: Any,
) -> tuple[sharding.ReplicaStep, optax.GradientTransformation]:
  """`build_step`, where the fields of `fit` beside it can be used too."""
  _check_positive(
    num_steps=num_steps,
    batch_size=batch_size,
    log_every=log_every,
    checkpoint_every=checkpoint_every,
    keep_checkpoints=keep_checkpoints,
  )
  sharding.check_even('train.batch_size', batch_size)
  types.check_choice('train.keep', keep, loop.KEEPS)
  return build_step(model, image, num_steps=num_steps, **step_fields)


def _check_positive(**fields: int) -> None:
  for field, value in fields.items():
    if value < 1:
      raise types.UsageError(f'train.{field} must be at least 1, got {value}')


def _check_finite(**fields: float) -> None:
  for field, value in fields.items():
    if not 0 <= value < np.inf:
      raise types.UsageError(
        f'train.{field} must be at least 0 and finite, got {value}'
      )


def _check_share(**fields: float) -> None:
  for field, value in fields.items():
    if not 0 <= value < 1:
      raise types.UsageError(f'train.{field} must be in [0, 1), got {value}')
