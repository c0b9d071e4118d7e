"""Checkpoints of training (Orbax), and the fitted model beside them.

Layout of a workdir:
  checkpoints/<step>/        state and training log, Orbax
  digests/<step>.json        SHA-256 of each of its files, written last
  damaged/<step>/            checkpoints whose files had changed
  fitted.npz, model.json     MAVs and Weibulls of every method; all else that
                             a decision needs
"""

import hashlib
import io
import json
import logging
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from crosr_jax import files, types


class Checkpoints:
  """The newest `keep` checkpoints of a workdir; a context manager."""

  def __init__(self, workdir: pathlib.Path, keep: int):
    self._steps = workdir / 'checkpoints'
    self._digests = workdir / 'digests'
    self._damaged = workdir / 'damaged'
    self._newest = self._newest_whole()
    self._manager = ocp.CheckpointManager(
      self._steps.absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False
      ),
      item_names=('state', 'log'),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_: object) -> None:
    self._manager.close()

  def restore(self, like: Any) -> tuple[Any, dict] | None:
    """The newest whole checkpoint, as `save` was given it; None = no one.

    Args:
      like: a state of the same structure, shapes and types.
    """
    if self._newest is None:
      return None
    found = self._manager.restore(
      self._newest,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(like), log=ocp.args.JsonRestore()
      ),
    )
    logging.info('restored the checkpoint of step %d', self._newest)
    return jax.tree.map(np.asarray, found.state), found.log

  def save(self, step: int, state: Any, log: dict) -> None:
    """Saves, waits until it is on disk, then writes the digests."""
    if not self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), log=ocp.args.JsonSave(log)
      ),
      force=True,
    ):
      raise types.UserError(
        f'the checkpoint of step {step} could not be saved in {self._steps}'
      )
    self._manager.wait_until_finished()
    self._digests.mkdir(exist_ok=True)
    files.write_text(
      self._digest_file(step),
      json.dumps(_digests(self._steps / str(step)), indent=1),
    )
    for path in self._digests.glob('*.json'):
      if not (self._steps / path.stem).exists():
        path.unlink()

  def _newest_whole(self) -> int | None:
    """Looks from the newest step down; sets aside what cannot be trusted.

    Raises:
      UserError: where every checkpoint is damaged.
    """
    steps = sorted(
      (int(p.name) for p in self._steps.glob('*') if p.name.isdigit()),
      reverse=True,
    )
    damaged: list[int] = []
    for step in steps:
      folder = self._steps / str(step)
      if not self._digest_file(step).exists():
        logging.info('checkpoint %d was not finished: dropped', step)
        shutil.rmtree(folder)
        continue
      changed = self._changed(step)
      if not changed:
        for bad in damaged:
          self._set_aside(bad)
        return step
      logging.warning(
        'checkpoint %d is damaged (%s): going back to the one before',
        *(step, changed),
      )
      damaged.append(step)
    if damaged:
      raise types.UserError(
        f'every checkpoint in {self._steps} is damaged; bring one back, or '
        'delete the folder to train from the start'
      )
    return None

  def _changed(self, step: int) -> str:
    """The first file that is not as it was written; '' where all are."""
    try:
      written = json.loads(self._digest_file(step).read_text())
    except ValueError:
      return self._digest_file(step).name
    found = _digests(self._steps / str(step))
    names = sorted(written.keys() | found.keys())
    return next((n for n in names if written.get(n) != found.get(n)), '')

  def _set_aside(self, step: int) -> None:
    self._damaged.mkdir(exist_ok=True)
    target = self._damaged / str(step)
    if target.exists():
      shutil.rmtree(target)
    (self._steps / str(step)).rename(target)
    self._digest_file(step).unlink()

  def _digest_file(self, step: int) -> pathlib.Path:
    return self._digests / f'{step}.json'


def save_fitted(
  workdir: pathlib.Path, models: dict[str, types.WeibullModel], info: dict
) -> None:
  """Writes fitted.npz (models by name) and model.json (info).

  model.json holds the digest of fitted.npz, and comes last: the two are read
  only if they belong together.
  """
  arrays = {
    f'{name}/{field}': np.asarray(value)
    for name, model in models.items()
    for field, value in model._asdict().items()
  }
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)  # type: ignore[arg-type]
  data = buffer.getvalue()
  files.write_bytes(workdir / 'fitted.npz', data)
  info = {**info, 'fitted_sha256': hashlib.sha256(data).hexdigest()}
  files.write_text(
    workdir / 'model.json', json.dumps(info, indent=2, allow_nan=False)
  )


def load_fitted(
  workdir: pathlib.Path,
) -> tuple[dict[str, types.WeibullModel], dict]:
  """What `save_fitted` was given; runs no code from the files.

  Raises:
    UserError: where a file is missing, damaged, or not of the other.
  """
  again = 'run the main job again in this workdir'
  try:
    info = json.loads((workdir / 'model.json').read_text())
    data = (workdir / 'fitted.npz').read_bytes()
  except FileNotFoundError as error:
    raise types.UserError(
      f'{error.filename} is missing: no finished run; {again}'
    ) from None
  except ValueError:
    raise types.UserError(
      f'{workdir / "model.json"} is damaged; {again}'
    ) from None
  if hashlib.sha256(data).hexdigest() != info.get('fitted_sha256'):
    raise types.UserError(
      f'{workdir / "fitted.npz"} is damaged or not of this model.json; {again}'
    )
  models: dict[str, dict] = {}
  with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
    for key in arrays.files:
      name, field = key.split('/')
      models.setdefault(name, {})[field] = arrays[key]
  return {
    name: types.WeibullModel(**{**fields, 'vector': str(fields['vector'])})
    for name, fields in models.items()
  }, info


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
