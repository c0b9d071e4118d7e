"""Checkpoints of training (Orbax); saved.py has the model that comes of it.

Layout of a workdir:
  checkpoints/<step>/        state and training log, Orbax
  digests/<step>.json        SHA-256 of each of its files, written last
  damaged/<step>/            checkpoints that could not be trusted
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import logging
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from crosr_jax import bucket, files, sharding, types


class Checkpoints:
  """The newest `keep` checkpoints of a workdir; a context manager.

  They are written by a thread of their own, one after the other, and all of
  them are on disk when the context ends. Of several processes the writer alone
  sees the folder; all of them call `restore`, `restore_step` and `save`, and
  have what it finds.
  """

  def __init__(
    self, workdir: pathlib.Path, keep: int, first: int | None = None
  ):
    """Opens those of a workdir.

    Args:
      workdir: of the run, or of a member of it.
      keep: how many are kept.
      first: the step at which a training saves for the first time, if nothing
        asks for it earlier; None = not known.
    """
    self._steps = workdir / 'checkpoints'
    self._digests = workdir / 'digests'
    self._damaged = workdir / 'damaged'
    self._keep, self._first = keep, first
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'checkpoints')
    self._written: concurrent.futures.Future[None] | None = None
    self._newest: int | None = None
    if sharding.is_writer():
      files.sweep(self._digests)
      self._newest = self._newest_whole()
      self._manager = self._opened()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    try:
      self.wait()
    except types.UserError as error:
      if kind is None:
        raise
      # The user is told of what ended the training.
      logging.error('%s', error)
    finally:
      self._thread.shutdown()
      if sharding.is_writer():
        self._manager.close()
    if kind is None:
      sharding.barrier()

  def restore(self, like: Any) -> tuple[Any, dict] | None:
    """The newest whole checkpoint, as `save` was given it; None = no one.

    Args:
      like: a state of the same structure, shapes and types.

    Raises:
      UserError: where the checkpoint is of another structure.
    """
    if sharding.agreed(self._newest) is None:
      return None
    return self._restore(self._newest, like)

  def restore_step(self, step: int, like: Any) -> Any:
    """The state of one step that is kept.

    Raises:
      UserError: where it is damaged, gone, or of another structure; or as
        `wait`.
    """
    self.wait()
    if sharding.is_writer() and (fault := self._fault(step)):
      raise types.UserError(
        f'checkpoint {step} in {self._steps} is the best, and cannot be '
        f'trusted ({fault}); bring it back, or delete the folder to train from '
        'the start'
      )
    return self._restore(step, like)[0]

  def _restore(self, step: int | None, like: Any) -> tuple[Any, dict]:
    """What the writer reads, in every process."""
    found: tuple[Any, dict] = (like, {})
    if sharding.is_writer():
      found = self._read(step, like)
    return sharding.of_writer(found[0]), sharding.agreed(found[1])

  def _opened(self) -> ocp.CheckpointManager:
    self._steps.mkdir(parents=True, exist_ok=True)
    # Orbax would delete old steps before the new one has its digests.
    return ocp.CheckpointManager(
      self._steps.absolute(),
      options=ocp.CheckpointManagerOptions(
        create=False,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        # Else it would wait for the other processes, which do not call it.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          primary_host=0, active_processes={0}
        ),
      ),
      item_names=('state', 'log'),
    )

  def _read(self, step: int | None, like: Any) -> tuple[Any, dict]:
    other = types.UserError(
      f'the checkpoint of step {step} in {self._steps} is of another '
      'net or optimiser than this version builds; take another --workdir, or '
      'the version that made it'
    )
    expected = _saved(like)
    try:
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(expected),
          log=ocp.args.JsonRestore(),
        ),
      )
    except ValueError as error:
      # Its files are as they were written, so it is not damaged.
      raise other from error
    state = jax.tree.map(np.asarray, found.state)
    if _kind(state) != _kind(expected):
      raise other
    logging.info('restored the checkpoint of step %d', step)
    return like._replace(**state), found.log

  def save(
    self, step: int, state: Any, log: dict, *, best: int | None = None
  ) -> None:
    """Begins to save, once what was saved before is on disk.

    A step counts as saved when its digests are written, after all its files;
    only then are others pruned.

    Args:
      step: of the state.
      state: a NamedTuple of trees of NumPy arrays, nobody else's from now on.
      log: JSON, likewise.
      best: a step that is never pruned.

    Raises:
      UserError: as `wait`.
    """
    self.wait()
    if sharding.is_writer():
      self._written = self._thread.submit(
        self._save, step, _saved(state), log, best
      )

  def check(self) -> None:
    """Raises as `wait` does where writing has failed by now."""
    if self._written and self._written.done():
      self.wait()

  def wait(self) -> None:
    """Waits until what was saved is on disk.

    Raises:
      UserError: where it cannot be written.
    """
    written, self._written = self._written, None
    if written:
      written.result()

  def _save(
    self, step: int, state: dict[str, Any], log: dict, best: int | None
  ) -> None:
    # Made anew it would lack what binds it to its config.
    files.check_kept(self._steps)
    try:
      self._write(step, state, log)
    except (OSError, RuntimeError, ValueError) as error:
      # Orbax hands a full disk on as either, among the storage's own words.
      text = str(error)
      full = list(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))
      known = [*full, *map(os.strerror, (errno.EROFS, errno.EFBIG, errno.EIO))]
      reason = next((x for x in known if x in text), text.partition('\n')[0])
      advice = 'make room there' if reason in full else 'mend that'
      raise types.UserError(
        f'the checkpoint of step {step} cannot be written in {self._steps}: '
        f'{reason}; {advice} and run the same command again'
      ) from error
    for old in self._on_disk()[self._keep :]:
      if old != best:
        self._manager.delete(old)
    for path in self._digests.glob('*.json'):
      if not (self._steps / path.stem).exists():
        path.unlink()
    bucket.put(self._steps)

  def _write(self, step: int, state: dict[str, Any], log: dict) -> None:
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), log=ocp.args.JsonSave(log)
      ),
      force=True,
    )
    if not saved:
      raise RuntimeError('Orbax declined to save it')
    self._manager.wait_until_finished()
    self._digests.mkdir(exist_ok=True)
    files.write_text(
      self._digest_file(step),
      json.dumps(_digests(self._steps / str(step)), indent=1),
    )
    # What was set aside of this step is made up for.
    shutil.rmtree(self._damaged / str(step), ignore_errors=True)
    with contextlib.suppress(OSError):
      self._damaged.rmdir()

  def _on_disk(self) -> list[int]:
    """Steps that have a folder, newest first."""
    names = (path.name for path in self._steps.glob('*') if path.is_dir())
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)

  def _newest_whole(self) -> int | None:
    """Looks from the newest step down; sets aside what cannot be trusted.

    Raises:
      UserError: where there are checkpoints, but not one whole.
    """
    steps = self._on_disk()
    faults: dict[int, str] = {}
    for step in steps:
      if not (fault := self._fault(step)):
        break
      faults[step] = fault
    # A run that was killed while it wrote its first checkpoint has no other.
    is_first = (
      len(steps) == 1
      and (self._first is None or steps[0] <= self._first)
      and not self._digest_file(steps[0]).exists()
    )
    if steps and len(faults) == len(steps) and not is_first:
      raise types.UserError(
        f'no checkpoint in {self._steps} can be trusted: their files are not '
        f'those that {self._digests} tells of; bring one back, or delete both '
        'folders to train from the start'
      )
    for step, fault in faults.items():
      what = (
        'training from the start'
        if is_first
        else 'going back to the one before'
      )
      logging.warning(
        'checkpoint %d cannot be trusted (%s): %s', *(step, fault, what)
      )
      self._set_aside(step)
    return steps[len(faults)] if len(faults) < len(steps) else None

  def _fault(self, step: int) -> str:
    """Why a checkpoint is not as it was written; '' where it is."""
    digests = self._digest_file(step)
    if not digests.exists():
      return 'it was not finished'
    try:
      written = dict(json.loads(digests.read_text()))
    except (RecursionError, TypeError, ValueError):
      return f'{digests.name} is damaged'
    found = _digests(self._steps / str(step))
    names = sorted(written.keys() | found.keys())
    changed = (n for n in names if written.get(n) != found.get(n))
    return next((f'{name} is damaged' for name in changed), '')

  def _set_aside(self, step: int) -> None:
    self._damaged.mkdir(exist_ok=True)
    target = self._damaged / str(step)
    if target.exists():
      shutil.rmtree(target)
    (self._steps / str(step)).rename(target)
    self._digest_file(step).unlink(missing_ok=True)

  def _digest_file(self, step: int) -> pathlib.Path:
    return self._digests / f'{step}.json'


def _saved(state: Any) -> dict[str, Any]:
  """The fields that hold something.

  So a checkpoint from before there was a field is of the structure that a state
  has where that field is ().
  """
  fields = state._asdict().items()
  return {k: v for k, v in fields if not isinstance(v, tuple) or v}


def _kind(tree: Any) -> tuple[Any, list]:
  """Structure, and shape and type of every leaf."""
  leaves, structure = jax.tree.flatten(tree)
  return structure, [(np.shape(x), np.asarray(x).dtype) for x in leaves]


def _digests(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every file below a folder, by its relative path."""
  return {
    str(path.relative_to(folder)): _sha256(path)
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
