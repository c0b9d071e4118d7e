"""The loop of a training: steps, history, checkpoints, time."""

import itertools
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
  def evaluated_step(self) -> int | list[int]:
    """Step that `state` is of; of an ensemble a list, one of each member."""
    return np.asarray(self.state.step).tolist()

  @property
  def evaluated(self) -> dict:
    """The row of `history` of that step; of an ensemble the last row."""
    step = self.evaluated_step
    if isinstance(step, list):
      return self.history[-1]
    return next(row for row in self.history if row['step'] == step)

  @property
  def select_accuracy(self) -> float:
    """Closed-set accuracy of `state` on the select part."""
    return self.evaluated['select_accuracy']


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
  steps_per_dispatch: int = 1,
  keep: str = 'last',
  select_accuracy: Callable[[Any], float] | None = None,
) -> Trained:
  """Trains, or goes on where the newest whole checkpoint is.

  Checkpoints are written while the steps go on. Several processes begin with
  the state of the one that writes them. Whatever moves between host and
  devices in the loop without saying so is an error of JAX. What asks to end,
  where a command listens (see signals), saves a checkpoint of the step that is
  being taken, if one is; of several processes, of the next step that has a row,
  whichever was asked.

  Args:
    engine: of one step.
    state: before the first step; a NamedTuple with a field `step`.
    order: batches from a step on, without end; this process's share of them.
    workdir: where checkpoints and TensorBoard files go.
    words: see there.
    num_steps: of the whole training.
    batch_size: over all devices.
    log_every: steps between rows of the history.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many of the newest ones stay.
    steps_per_dispatch: in one program, fewer before a row or a checkpoint.
    keep: 'last' step, or 'best' checkpoint by `select_accuracy`: what is
      returned.
    select_accuracy: of a state, logged at every checkpoint.

  Raises:
    DivergedError: where a metric is not finite; the last good checkpoint is
      kept.
    Terminated: after either, when the checkpoint is on disk.
    KeyboardInterrupt: at once after a second Ctrl-C.
  """
  first_kept = min(checkpoint_every, num_steps)
  with checkpoint.Checkpoints(
    workdir, keep_checkpoints, first_kept
  ) as checkpoints:
    state, record = checkpoints.restore(state) or (
      sharding.of_writer(state),
      {},
    )
    first = int(state.step)
    journal = _Journal(workdir, words, batch_size, first, record)
    if first < num_steps:
      with (
        journal,
        progress.bar(words.title, num_steps, first) as show,
        signals.deferred() as is_ending,
      ):
        placed, step = engine.place(state), first
        counts = _counts(
          first, num_steps, steps_per_dispatch, (log_every, checkpoint_every)
        )
        batches = _compiled(engine, placed, order(first), set(counts))
        sharding.barrier()
        if sharding.anyone(is_ending(), now=True):
          # Asked while it compiled: there is nothing to save yet.
          raise signals.Terminated
        # The first program's steps are not timed.
        enough = first + _STEPS_BEFORE_ESTIMATE + counts[0] - 1
        for count in counts:
          before, step = step, step + count
          is_due = step % checkpoint_every == 0 or step == num_steps
          is_row = is_due or step % log_every == 0
          with jax.transfer_guard('disallow'):
            placed, metrics = engine.step(
              placed, *itertools.islice(batches, count)
            )
            journal.add(metrics, count)
            if before == first:
              show(step)
            if before < enough <= step:
              journal.estimate(num_steps - step)
            is_last = sharding.anyone(is_ending(), now=is_row)
            if not is_row and not is_last:
              continue
            # Looks at the metrics before anything is saved.
            journal.look()
            if is_due or is_last:
              state = engine.fetch(placed)
              journal.look_at(state, step)
          if is_row:
            row = journal.row(step)
            if is_due and select_accuracy:
              row['select_accuracy'] = select_accuracy(state)
              if not np.isfinite(row['select_accuracy']):
                raise journal.diverged(step, 'what the net gives is not finite')
            journal.write(row)
          checkpoints.check()
          if is_due or is_last:
            best = journal.best() if keep == 'best' else None
            record = journal.record()
            checkpoints.save(step, state, record, best=best)
          if is_last:
            break
          show(step, journal.text(row))
          journal.go_on()
        # Whoever was asked to end waits for that too.
        checkpoints.wait()
        if is_last:
          # Whoever leaves sooner takes the others with it.
          sharding.barrier()
          logging.info('asked to end: saved the checkpoint of step %d', step)
          raise signals.Terminated
    best = journal.best() if keep == 'best' else None
    if best is not None and best != int(state.step):
      state = checkpoints.restore_step(best, state)
  return Trained(
    jax.tree.map(np.asarray, state),
    journal.history,
    record['seconds'],
    journal.images_per_second,
  )


def _counts(
  first: int, last: int, most: int, every: Sequence[int]
) -> list[int]:
  """Steps of each program, from step `first` to `last`.

  None crosses a multiple of one of `every`. There are two numbers at most, so
  that no more is compiled: `most`, or what fits, and 1 for what is left over.
  """
  most = min(most, last, *every)
  counts: list[int] = []
  while first < last:
    steps = min(last, *(first - first % n + n for n in every)) - first
    counts += [most] * (steps // most) + [1] * (steps % most)
    first += steps
  return counts


def _compiled(
  engine: sharding.Engine,
  placed: Any,
  batches: Iterator[Any],
  counts: set[int],
) -> Iterator[Any]:
  """The batches, after all programs are compiled that run with so many."""
  batch = next(batches)
  for count in counts:
    engine.compile(placed, *[batch] * count)
  return itertools.chain([batch], batches)


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
    # Of the steps that were timed, which the first ones of a session are not.
    self._timed_steps = record.get('timed_steps', 0)
    self._timed_seconds = record.get('timed_seconds', 0.0)
    self._words, self._batch_size = words, batch_size
    # Steps since the last row, of a session that ended between two rows; they
    # have no time.
    self._pending: list[dict] = list(record.get('pending', []))
    self._steps_pending = len(self._pending)
    self._timed_steps -= self._steps_pending
    self._before = first_step - self._steps_pending
    self._begin = time.monotonic()
    self._clock = 0.0  # 0 = before the first step
    self._folder, self._first_step = str(workdir / 'tensorboard'), first_step

  def __enter__(self) -> '_Journal':
    # What a killed session wrote after its last checkpoint comes again.
    self._board = tensorboardX.SummaryWriter(
      self._folder,
      purge_step=self._first_step + 1,
      write_to_disk=sharding.is_writer(),
    )
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      self._board.close()
    except OSError as error:
      # It must not stand before the reason why the training ends.
      if kind is None:
        raise OSError(error.errno, error.strerror, self._folder) from error

  def add(self, metrics: dict, count: int) -> None:
    """Takes the metrics of some steps, which may still be computing."""
    self._pending.append(metrics)
    self._steps_pending += count
    if not self._clock:
      # Compilation came before; speed is counted from here.
      jax.block_until_ready(metrics)
      self._clock = time.monotonic()
      self._timed_steps -= count
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
    each = seconds / max(self._timed_steps + self._steps_pending, 1)
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
      dict(zip(metrics, values, strict=True))
      for metrics in jax.device_get(self._pending)
      for values in zip(
        *(np.ravel(x).tolist() for x in metrics.values()), strict=True
      )
    ]
    for i, metrics in enumerate(self._pending):
      told = ', '.join(
        f'{name} is {value:g}'
        for name, value in metrics.items()
        if not np.isfinite(value)
      )
      if told:
        raise self.diverged(self._before + i + 1, told)

  def look_at(self, state: Any, step: int) -> None:
    """Looks at what `look` has no metrics of yet: what the step has made.

    Raises:
      DivergedError: where it is not finite.
    """
    for x in jax.tree.leaves(state):
      if x.dtype.kind == 'f' and not np.isfinite(x).all():
        raise self.diverged(step, 'weights are not finite')

  def diverged(self, step: int, told: str) -> types.DivergedError:
    """The error, with the way out."""
    return types.DivergedError(
      f'{self._words.title} diverged: at step {step} {told}; checkpoints from '
      f'before are kept. {self._words.advice}, in a new workdir'
    )

  def row(self, step: int) -> dict:
    """Means over the steps since the row before, which `look` has seen."""
    steps = self._pending
    self._timed_steps += len(steps)
    self._timed_seconds += time.monotonic() - self._clock
    self._pending, self._steps_pending, self._before = [], 0, step
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
    """Of the steps alone, without compilation; 0 before the second program."""
    return self._batch_size * self._timed_steps / max(self._timed_seconds, 1e-9)

  def record(self) -> dict:
    """What goes into a checkpoint; JSON.

    The seconds are of all sessions, compilation and checkpoints included.
    """
    return {
      'history': list(self.history),
      'pending': list(self._pending),
      'seconds': self._earlier + time.monotonic() - self._begin,
      'timed_steps': self._timed_steps,
      'timed_seconds': self._timed_seconds,
    }
