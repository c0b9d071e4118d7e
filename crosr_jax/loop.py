"""The loop of a training: steps, history, checkpoints, time."""

import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorboardX

from crosr_jax import checkpoint, progress, sharding, signals, types

_STEPS_BEFORE_ESTIMATE = 20
KEEPS = ('last', 'best')


class Words(NamedTuple):
  """How a training speaks of itself."""

  title: str
  shown: Sequence[str]  # metrics beside the progress bar
  advice: str  # what to do where it diverges


class Trained(NamedTuple):
  """A finished training."""

  state: Any  # NumPy
  history: list[dict]  # means over the steps since the row before
  seconds: float  # over all sessions
  images_per_second: float  # compilation not counted

  @property
  def select_accuracy(self) -> float:
    """Closed-set accuracy of `state` on the select part."""
    step = int(self.state.step)
    return next(r['select_accuracy'] for r in self.history if r['step'] == step)


def run(
  engine: sharding.Engine,
  state: Any,
  order: Callable[[int], Iterator[Any]],
  workdir: pathlib.Path,
  words: Words,
  *,
  num_steps: int,
  batch_size: int,
  log_every: int,
  checkpoint_every: int,
  keep_checkpoints: int,
  keep: str = 'last',
  select_accuracy: Callable[[Any], float] | None = None,
) -> Trained:
  """Trains, or goes on where the newest whole checkpoint is.

  SIGTERM, where a command listens to it, saves a checkpoint of the step that is
  being taken.

  Args:
    engine: of one step.
    state: before the first step; a NamedTuple with a field `step`.
    order: batches from a step on, without end.
    workdir: where checkpoints and TensorBoard files go.
    words: see there.
    num_steps: of the whole training.
    batch_size: over all devices.
    log_every: steps between rows of the history.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many of the newest ones stay.
    keep: 'last' step, or 'best' checkpoint by `select_accuracy`: what is
      returned.
    select_accuracy: of a state, logged at every checkpoint.

  Raises:
    DivergedError: where a metric is not finite; the last good checkpoint is
      kept.
    Terminated: after SIGTERM, when the checkpoint is on disk.
  """
  with checkpoint.Checkpoints(workdir, keep_checkpoints) as checkpoints:
    state, record = checkpoints.restore(state) or (state, {})
    first = int(state.step)
    journal = _Journal(workdir, words, batch_size, first, record)
    if first < num_steps:
      with (
        journal,
        progress.bar(words.title, num_steps, first) as show,
        signals.deferred() as is_ending,
      ):
        placed, batches = engine.place(state), order(first)
        for step in range(first + 1, num_steps + 1):
          placed, metrics = engine.step(placed, next(batches))
          journal.add(metrics)
          if step == first + 1:
            show(step)
          if step - first == _STEPS_BEFORE_ESTIMATE:
            journal.estimate(num_steps - step)
          is_last = is_ending()
          is_due = step % checkpoint_every == 0 or step == num_steps
          is_row = is_due or step % log_every == 0
          if not is_row and not is_last:
            continue
          # Looks at the metrics before anything is saved.
          journal.look()
          if is_due or is_last:
            state = engine.fetch(placed)
          if is_row:
            row = journal.row(step)
            if is_due and select_accuracy:
              row['select_accuracy'] = select_accuracy(state)
            journal.write(row)
          if is_due or is_last:
            best = journal.best() if keep == 'best' else None
            record = journal.record()
            checkpoints.save(step, state, record, best=best)
          if is_last:
            logging.info('asked to end: saved the checkpoint of step %d', step)
            break
          show(step, journal.text(row))
          journal.go_on()
    best = journal.best() if keep == 'best' else None
    if best is not None and best != int(state.step):
      state = checkpoints.restore_step(best, state)
  return Trained(
    jax.tree.map(np.asarray, state),
    journal.history,
    record['seconds'],
    journal.images_per_second,
  )


class _Journal:
  """What training says of itself: history, TensorBoard, time.

  Entered while there are steps to take.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    words: Words,
    batch_size: int,
    first_step: int,
    record: dict,
  ):
    self.history: list[dict] = list(record.get('history', []))
    self._earlier = record.get('seconds', 0.0)
    # Of the steps that were timed, which the first of a session is not.
    self._timed_steps = record.get('timed_steps', 0)
    self._timed_seconds = record.get('timed_seconds', 0.0)
    self._words, self._batch_size = words, batch_size
    # Steps since the last row, of a session that ended between two rows; they
    # have no time.
    self._pending: list[dict] = list(record.get('pending', []))
    self._timed_steps -= len(self._pending)
    self._before = first_step - len(self._pending)
    self._begin = time.monotonic()
    self._clock = 0.0  # 0 = before the first step
    self._folder, self._first_step = str(workdir / 'tensorboard'), first_step

  def __enter__(self) -> '_Journal':
    # What a killed session wrote after its last checkpoint comes again.
    self._board = tensorboardX.SummaryWriter(
      self._folder, purge_step=self._first_step + 1
    )
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      self._board.close()
    except OSError as error:
      # It must not stand before the reason why the training ends.
      if kind is None:
        raise OSError(error.errno, error.strerror, self._folder) from error

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

  def look(self) -> None:
    """Waits for the steps since the row before.

    Raises:
      DivergedError: where a metric of one is not finite.
    """
    self._pending = [
      {name: np.asarray(x).item() for name, x in metrics.items()}
      for metrics in self._pending
    ]
    for i, metrics in enumerate(self._pending):
      told = ', '.join(
        f'{name} is {value:g}'
        for name, value in metrics.items()
        if not np.isfinite(value)
      )
      if told:
        raise types.DivergedError(
          f'{self._words.title} diverged: at step {self._before + i + 1} '
          f'{told}; checkpoints from before are kept. {self._words.advice}, '
          'in a new workdir'
        )

  def row(self, step: int) -> dict:
    """Means over the steps since the row before, which `look` has seen."""
    steps = self._pending
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
    parts = [
      f'{name.replace("_", "-")} {row[name]:.3f}'
      for name in self._words.shown
      if name in row
    ]
    return ', '.join([f'{self.images_per_second:.0f} images/s', *parts])

  @property
  def images_per_second(self) -> float:
    """Of the steps alone, without compilation; 0 before the second step."""
    return self._batch_size * self._timed_steps / max(self._timed_seconds, 1e-9)

  def record(self) -> dict:
    """What goes into a checkpoint; JSON.

    The seconds are of all sessions, compilation and checkpoints included.
    """
    return {
      'history': self.history,
      'pending': self._pending,
      'seconds': self._earlier + time.monotonic() - self._begin,
      'timed_steps': self._timed_steps,
      'timed_seconds': self._timed_seconds,
    }
