"""A workdir belongs to the config, and the images, that it was trained with."""

import hashlib
import json
import logging
import pathlib
import re
from typing import Any

from ml_collections import config_dict

from crosr_jax import data, files, saved, settings, types
from crosr_jax.data import images


def bind(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Raises where the workdir was made with another config."""
  path = workdir / 'config.json'
  bound = sections(config)
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
  unsaid = {'counterfactual.count': 0, **settings.defaults()}
  old, new = unsaid | settings.flat(before), unsaid | settings.flat(bound)
  folders = {f'data.{field}' for field in settings.FOLDERS}

  def value(fields: dict[str, Any], k: str) -> Any:
    found = fields.get(k)
    # However it is written, it is the same folder.
    return files.real(found) if found and k in folders else found

  changed = [k for k in new | old if value(old, k) != value(new, k)]
  if changed:
    told = ', '.join(
      f'{k} was {settings.told(old, k)} and is now {settings.told(new, k)}'
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
  if trained_with != digest(config):
    raise types.UsageError(
      f'--workdir={workdir} has lost its config.json, and this config is not, '
      'word for word, that of its model; bring the file back, or take the old '
      'values or another --workdir'
    )


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


def digest(config: config_dict.ConfigDict) -> str:
  """SHA-256 of what binds a workdir."""
  return files.digest(sections(config))


def sections(config: config_dict.ConfigDict) -> dict:
  """The sections that bind a workdir, as JSON gives them back."""
  bound = {name: settings.plain(config[name]) for name in settings.BINDING}
  # Fields of a system that is off bind nothing.
  if not config.counterfactual.count:
    bound['counterfactual'] = {'count': 0}
  return json.loads(json.dumps(bound))
