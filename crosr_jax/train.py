"""Training: loss, replica step, loop.

B batch of one replica; the axis layers.AXIS runs over the replicas.
"""

import functools
import logging
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorboardX

from crosr_jax import (
  checkpoint,
  features,
  models,
  optimizer,
  progress,
  sharding,
  types,
)
from crosr_jax.data import augment, batches, splits
from crosr_jax.models import dhrnet, layers

Array = jax.Array

_STEPS_BEFORE_ESTIMATE = 20
_IMAGES_FOR_INIT = 512
KEEPS = ('last', 'best')


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


class Trained(NamedTuple):
  """A finished training."""

  state: TrainState  # NumPy
  history: list[dict]  # means over the steps since the row before
  seconds: float  # over all sessions
  images_per_second: float  # compilation not counted

  @property
  def select_accuracy(self) -> float:
    """Closed-set accuracy of `state` on the select part."""
    step = int(self.state.step)
    return next(r['select_accuracy'] for r in self.history if r['step'] == step)


def loss_fn(
  params: Any,
  batch_stats: Any,
  model: dhrnet.DHRNet,
  batch: types.Batch,
  keys: Array,
  reconstruction_weight: float,
  label_smoothing: float,
) -> tuple[Array, tuple[dict[str, Array], Any]]:
  """Cross-entropy + weight * mean squared reconstruction error.

  Both are means over this replica's batch; the error is over all elements of
  the standardised image (CROSR, section 4). Of a label, a share
  `label_smoothing` is spread evenly over all classes.

  Returns:
    The loss [], and (metrics, batch_stats) beside it.
  """
  outputs, updated = model.apply(
    {'params': params, 'batch_stats': batch_stats},
    batch.image,
    keys,
    train=True,
    mutable=['batch_stats'],
  )
  num_classes = outputs.logits.shape[1]
  target_class = (1.0 - label_smoothing) * jax.nn.one_hot(
    batch.label, num_classes
  ) + label_smoothing / num_classes
  cross_entropy = jnp.mean(
    optax.softmax_cross_entropy(outputs.logits, target_class)
  )
  right = jnp.argmax(outputs.logits, axis=1) == batch.label
  metrics = {
    'cross_entropy': cross_entropy,
    'accuracy': jnp.mean(right.astype(jnp.float32)),
  }
  loss = cross_entropy
  if model.lateral != 'none':
    target = model.standardise(batch.image, train=True)
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
) -> tuple[TrainState, dict[str, Array]]:
  """One step of one replica.

  Args:
    state: equal on all replicas.
    batch: this replica's share, and each row's index in the training data, [B]:
      dropout and augmentation follow (key, step, index), wherever a row lands.
    model: the net.
    rule: the update rule.
    rate: learning rate by step, for the log.
    augmentation: of images [B, H, W, C] with keys [B].
    key: of the run.
    reconstruction_weight: see `loss_fn`.
    label_smoothing: see `loss_fn`.
    average: decay of the moving average; 0 = none.

  Returns:
    The next state and the metrics, means over all replicas.
  """
  samples, index = batch
  step_key = jax.random.fold_in(key, state.step)
  keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(index)
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
  )
  gradient = jax.lax.pmean(gradient, layers.AXIS)
  metrics = jax.lax.pmean(metrics, layers.AXIS)
  metrics['grad_norm'] = optax.global_norm(gradient)
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
  variables = models.init(model, image, key)
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=rule.init(variables['params']),
  )
  return state._replace(average=state.trained) if average else state


def _spread(image: np.ndarray, count: int) -> np.ndarray:
  """At most `count` images, evenly spread: data sets come sorted by class."""
  return image[:: max(1, len(image) // count)][:count]


def num_parameters(state: TrainState) -> int:
  """Trained numbers; batch statistics are not among them."""
  return sum(np.size(x) for x in jax.tree.leaves(state.params))


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
  reconstruction_weight: float,
  shift: int,
  flip: bool,
  log_every: int,
  checkpoint_every: int,
  keep_checkpoints: int,
  keep: str = 'last',
  label_smoothing: float = 0.0,
  average: float = 0.0,
  shift_fill: str = 'black',
  rotate: float = 0.0,
  lighting: float = 0.0,
  expand: float = 1.0,
  crop: int = 0,
  **optimizer_fields: Any,
) -> Trained:
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
    reconstruction_weight: see `loss_fn`.
    shift: see augment.build.
    flip: see augment.build.
    log_every: steps between rows of the history.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many of the newest ones stay.
    keep: 'last' step, or 'best' checkpoint on `select`: what is returned.
    label_smoothing: see `loss_fn`, in [0, 1).
    average: decay of the moving average of weights and statistics, which is
      then what is evaluated, in [0, 1); 0 = none.
    shift_fill: see augment.build.
    rotate: see augment.build.
    lighting: see augment.build.
    expand: see augment.build.
    crop: see augment.build.
    **optimizer_fields: see optimizer.build.

  Raises:
    ValueError: for a field that cannot be used.
    DivergedError: where a loss or a gradient is not finite; the last good
      checkpoint is kept.
  """
  _check_positive(
    num_steps=num_steps,
    batch_size=batch_size,
    log_every=log_every,
    checkpoint_every=checkpoint_every,
    keep_checkpoints=keep_checkpoints,
  )
  _check_weight(reconstruction_weight)
  _check_share(label_smoothing=label_smoothing, average=average)
  _check_split(batch_size)
  types.check_choice('train.keep', keep, KEEPS)
  augmentation = augment.build(
    shift=shift,
    flip=flip,
    shift_fill=shift_fill,
    rotate=rotate,
    lighting=lighting,
    expand=expand,
    crop=crop,
    image_shape=train.image.shape[1:],
    mean=model.mean,
    covariance=augment.covariance(train.image) if lighting else (),
  )
  rule, rate = optimizer.build(num_steps, **optimizer_fields)
  root = jax.random.key(seed)
  engine = sharding.engine(
    functools.partial(
      replica_step,
      model=model,
      rule=rule,
      rate=rate,
      augmentation=augmentation,
      key=named_key(root, 'train'),
      reconstruction_weight=reconstruction_weight,
      label_smoothing=label_smoothing,
      average=average,
    ),
    parallel=parallel,
  )
  state = init_state(
    model,
    rule,
    _spread(train.image, _IMAGES_FOR_INIT),
    named_key(root, 'init'),
    average=average,
  )
  with checkpoint.Checkpoints(workdir, keep_checkpoints) as checkpoints:
    state, record = checkpoints.restore(state) or (state, {})
    first = int(state.step)
    journal = _Journal(workdir, batch_size, first, record)
    if first < num_steps:
      with journal:
        state = _loop(
          engine,
          state,
          batches.training(train, batch_size, seed, first),
          journal,
          checkpoints,
          functools.partial(_accuracy, model, select),
          num_steps=num_steps,
          log_every=log_every,
          checkpoint_every=checkpoint_every,
          keep=keep,
        )
    best = journal.best()
    if keep == 'best' and best is not None and best != int(state.step):
      state = checkpoints.restore_step(best, state)
  state = jax.tree.map(np.asarray, state)
  return Trained(
    state, journal.history, journal.seconds, journal.images_per_second
  )


def _loop(
  engine: sharding.Engine,
  state: TrainState,
  order: Iterator[tuple[types.Batch, np.ndarray]],
  journal: '_Journal',
  checkpoints: checkpoint.Checkpoints,
  select_accuracy: Callable[[TrainState], float],
  *,
  num_steps: int,
  log_every: int,
  checkpoint_every: int,
  keep: str,
) -> TrainState:
  """Steps, rows and checkpoints up to num_steps."""
  placed, first = engine.place(state), int(state.step)
  with progress.bar('training', num_steps, first) as show:
    for step in range(first + 1, num_steps + 1):
      placed, metrics = engine.step(placed, next(order))
      journal.add(metrics)
      if step == first + 1:
        show(step)
      if step - first == _STEPS_BEFORE_ESTIMATE:
        journal.estimate(num_steps - step)
      is_save = step % checkpoint_every == 0 or step == num_steps
      if not is_save and step % log_every:
        continue
      # Looks at the losses before anything is saved.
      row = journal.row(step)
      if is_save:
        state = engine.fetch(placed)
        row['select_accuracy'] = select_accuracy(state)
        journal.write(row)
        checkpoints.save(
          step,
          state,
          journal.record(),
          best=journal.best() if keep == 'best' else None,
        )
      else:
        journal.write(row)
      show(step, journal.text(row))
      journal.go_on()
  return state


class _Journal:
  """What training says of itself: history, TensorBoard, time.

  Entered while there are steps to take.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    batch_size: int,
    first_step: int,
    record: dict,
  ):
    self.history: list[dict] = list(record.get('history', []))
    self._earlier = record.get('seconds', 0.0)
    # Of the steps that were timed, which the first of a session is not.
    self._timed_steps = record.get('timed_steps', 0)
    self._timed_seconds = record.get('timed_seconds', 0.0)
    self._batch_size = batch_size
    self._before = first_step
    self._pending: list[dict] = []
    self._begin = time.monotonic()
    self._clock = 0.0  # 0 = before the first step
    self._workdir, self._first_step = workdir, first_step

  def __enter__(self) -> '_Journal':
    # What a killed session wrote after its last checkpoint comes again.
    self._board = tensorboardX.SummaryWriter(
      str(self._workdir / 'tensorboard'), purge_step=self._first_step + 1
    )
    return self

  def __exit__(self, *_: object) -> None:
    self._board.close()

  def add(self, metrics: dict) -> None:
    """Takes the metrics of one step, which may still be computing."""
    self._pending.append(metrics)
    if not self._clock:
      # The first step compiles; speed is counted from here.
      jax.block_until_ready(metrics)
      self._clock = time.monotonic()
      self._timed_steps -= 1
      logging.info(
        'first step after %s, most of it compilation',
        progress.duration(self._clock - self._begin),
      )

  def go_on(self) -> None:
    """Starts the clock again, which stood since `row`."""
    self._clock = time.monotonic()

  def estimate(self, steps_left: int) -> None:
    """Says how long the rest will take."""
    jax.block_until_ready(self._pending)
    seconds = self._timed_seconds + time.monotonic() - self._clock
    each = seconds / max(self._timed_steps + len(self._pending), 1)
    logging.info(
      'about %s to go (%d steps, %.0f images/s)',
      progress.duration(each * steps_left),
      *(steps_left, self._batch_size / max(each, 1e-9)),
    )

  def row(self, step: int) -> dict:
    """Means over the steps since the row before.

    Raises:
      DivergedError: where a loss or a gradient is not finite.
    """
    steps = [
      {name: np.asarray(x).item() for name, x in metrics.items()}
      for metrics in self._pending
    ]
    for i, metrics in enumerate(steps):
      if not np.isfinite([metrics['loss'], metrics['grad_norm']]).all():
        raise types.DivergedError(
          f'training diverged: at step {self._before + i + 1} the loss is '
          f'{metrics["loss"]:g}, its gradient norm {metrics["grad_norm"]:g}; '
          'checkpoints from before are kept. Lower train.learning_rate or set '
          'train.clip_norm, in a new workdir'
        )
    self._timed_steps += len(steps)
    self._timed_seconds += time.monotonic() - self._clock
    self._pending, self._before = [], step
    means = {k: float(np.mean([m[k] for m in steps])) for k in sorted(steps[0])}
    return {'step': step, **means}

  def write(self, row: dict) -> None:
    """Adds a row to history and TensorBoard."""
    self.history.append(row)
    for name, value in row.items():
      if name != 'step':
        self._board.add_scalar(f'train/{name}', value, row['step'])

  def best(self) -> int | None:
    """The step of best accuracy on `select`, the last of several."""
    found = {
      row['step']: row['select_accuracy']
      for row in self.history
      if 'select_accuracy' in row
    }
    return max(found, key=lambda step: (found[step], step), default=None)

  def text(self, row: dict) -> str:
    """The row beside the progress bar."""
    names = ('loss', 'cross_entropy', 'reconstruction', 'accuracy')
    parts = [
      f'{name.replace("_", "-")} {row[name]:.3f}'
      for name in names
      if name in row
    ]
    return ', '.join([f'{self.images_per_second:.0f} images/s', *parts])

  @property
  def seconds(self) -> float:
    """Of all sessions, compilation and checkpoints included."""
    return self._earlier + time.monotonic() - self._begin

  @property
  def images_per_second(self) -> float:
    """Of the steps alone, without compilation; 0 before the second step."""
    return self._batch_size * self._timed_steps / max(self._timed_seconds, 1e-9)

  def record(self) -> dict:
    """What goes into a checkpoint; JSON."""
    return {
      'history': self.history,
      'seconds': self.seconds,
      'timed_steps': self._timed_steps,
      'timed_seconds': self._timed_seconds,
    }


def _accuracy(
  model: dhrnet.DHRNet, samples: splits.Labelled, state: TrainState
) -> float:
  """Closed-set accuracy in evaluation mode."""
  found = features.extract(model, state.variables, samples.image, samples.label)
  return float(np.mean(np.argmax(found.logits, axis=1) == found.label))


def named_key(key: Array, name: str) -> Array:
  """A key of its own for each use of a run's key."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _check_positive(**fields: int) -> None:
  for field, value in fields.items():
    if value < 1:
      raise types.UsageError(f'train.{field} must be at least 1, got {value}')


def _check_weight(weight: float) -> None:
  if not 0 <= weight < np.inf:
    raise types.UsageError(
      f'train.reconstruction_weight must be at least 0 and finite, got {weight}'
    )


def _check_share(**fields: float) -> None:
  for field, value in fields.items():
    if not 0 <= value < 1:
      raise types.UsageError(f'train.{field} must be in [0, 1), got {value}')


def _check_split(batch_size: int) -> None:
  devices = sharding.num_devices()
  if batch_size % devices:
    raise types.UsageError(
      f'train.batch_size={batch_size} cannot be split evenly among {devices} '
      f'devices; take a multiple of {devices}'
    )
