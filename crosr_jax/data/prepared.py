"""Data sets on disk: prepared once, whole or not at all, then read.

N samples. A prepared set is a TFDS folder of array_record files,
<data_dir>/<name>/<version>; it is written aside and renamed, and every read is
held against the published SHA-256.
"""

import contextlib
import difflib
import errno
import fcntl
import io
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np

from crosr_jax import types
from crosr_jax.data import catalog, raw

# Samples decoded at once.
_BLOCK = 1_000
_SECONDS_TO_ANSWER = 10
# What TFDS, and we, call folders that are not finished.
_INCOMPLETE = 'incomplete.'


def prepare(
  name: str, data_dir: pathlib.Path, manual_dir: pathlib.Path | None = None
) -> pathlib.Path:
  """Prepares a data set, unless it is there whole; returns its folder.

  Processes that prepare in one data_dir wait for each other.

  Args:
    name: in catalog.DATA_SETS.
    data_dir: where prepared data sets are.
    manual_dir: holds the publisher's files, or a folder `name` that does;
      without it they are downloaded.

  Raises:
    UserError: where a file is missing or not as published, the network or the
      disk fails; one line that names it. Nothing is left behind.
  """
  types.check_choice('data set', name, catalog.DATA_SETS)
  local = _local_files(name, manual_dir) if manual_dir else {}
  folder = _folder(name, data_dir)
  data_dir.mkdir(parents=True, exist_ok=True)
  with _lock(data_dir):
    if folder.exists():
      try:
        for part in catalog.DATA_SETS[name].parts:
          _read_part(name, part, data_dir)
        logging.info('%s is prepared already, in %s', name, folder)
        return folder
      except types.UserError as error:
        logging.warning('%s; preparing it again', error)
        shutil.rmtree(folder)
    _check_space(name, data_dir)
    try:
      _sweep(folder.parent)
      _build(name, data_dir, local)
    finally:
      _sweep(folder.parent)
  logging.info('%s is prepared in %s', name, folder)
  return folder


def read(
  name: str, part: str, data_dir: pathlib.Path
) -> tuple[raw.Raw, tuple[str, ...]]:
  """A part of a data set and the class names; prepared first if need be.

  Raises:
    UserError: where it is neither prepared nor can be downloaded, or is
      damaged; says what to run.
  """
  spec = catalog.DATA_SETS[name]
  if not _folder(name, data_dir).exists():
    logging.info('%s is not in %s', name, data_dir)
    try:
      prepare(name, data_dir)
    except types.UserError as error:
      raise types.UserError(
        f'data set {name} is not prepared in {data_dir} and cannot be '
        f'downloaded ({error}); fetch {_listing(spec)} by other means and run: '
        f'{_command(name, data_dir)} --manual_dir=FOLDER'
      ) from None
  try:
    return _read_part(name, part, data_dir)
  except types.UserError as error:
    raise types.UserError(
      f'{error}; prepare it again: {_command(name, data_dir)}'
    ) from None


def _folder(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  return data_dir / name / catalog.DATA_SETS[name].version


def _command(name: str, data_dir: pathlib.Path) -> str:
  return f'python -m crosr_jax.prepare {name} --data_dir={data_dir}'


def _listing(spec: catalog.DataSet) -> str:
  return ', '.join(spec.files)


def _read_part(
  name: str, part: str, data_dir: pathlib.Path
) -> tuple[raw.Raw, tuple[str, ...]]:
  """Reads and checks; any damage is a UserError."""
  from crosr_jax.data import builders

  spec, folder = catalog.DATA_SETS[name], _folder(name, data_dir)
  expected = spec.parts[part]
  try:
    builder = builders.BUILDERS[name](spec, data_dir)
    source = builder.as_data_source(part)
    image = np.empty((len(source), *spec.image_shape), np.uint8)
    label = np.empty(len(source), np.int32)
    for start in range(0, len(source), _BLOCK):
      rows = range(start, min(start + _BLOCK, len(source)))
      for i, sample in zip(rows, source.__getitems__(rows), strict=True):
        image[i], label[i] = sample['image'], sample['label']
    class_names = tuple(builder.info.features['label'].names)
  except (PermissionError, MemoryError):
    raise
  except Exception as error:
    # Records are read by C++ and protocol buffers, which raise what they like.
    reason = ' '.join(str(error).split())[:200]
    raise types.UserError(
      f'{folder} is damaged: {part} cannot be read ({reason})'
    ) from error
  raw.check(expected, image, label, folder, folder)
  return raw.Raw(image, label), class_names


def _build(
  name: str, data_dir: pathlib.Path, local: dict[str, pathlib.Path]
) -> None:
  """Downloads where there are no local files, checks, writes, renames."""
  spec = catalog.DATA_SETS[name]
  if not local:
    _check_network(spec)
  import tensorflow_datasets as tfds

  from crosr_jax.data import builders

  # Our own progress is shown; TFDS's bars are for a network that is slow.
  tfds.disable_progress_bar()
  builder = builders.BUILDERS[name](spec, data_dir, local)
  config = tfds.download.DownloadConfig(
    force_checksums_validation=True, try_download_gcs=False
  )
  downloads = data_dir / name / f'{_INCOMPLETE}downloads'
  with contextlib.redirect_stdout(io.StringIO()), _plain_errors(data_dir):
    builder.download_and_prepare(
      download_dir=str(downloads), download_config=config
    )


@contextlib.contextmanager
def _plain_errors(data_dir: pathlib.Path) -> Iterator[None]:
  """What TFDS, its downloader and its writer raise, as one line."""
  import requests
  from tensorflow_datasets.core.download import download_manager, util

  try:
    yield
  except types.UserError:
    raise
  except download_manager.NonMatchingChecksumError as error:
    url = str(error).split(',')[0].removeprefix('Artifact ')
    raise types.UserError(
      f'{url} is not the published file: its SHA-256 differs; try again later'
    ) from error
  except (requests.RequestException, util.DownloadError) as error:
    raise types.UserError(f'download failed: {error}') from error
  except Exception as error:
    # The record writer is C++ and tells a full disk in words.
    text = ' '.join(str(error).split())
    is_full = getattr(error, 'errno', 0) == errno.ENOSPC
    if not is_full and os.strerror(errno.ENOSPC) not in text:
      raise
    raise types.UserError(
      f'{data_dir}: {os.strerror(errno.ENOSPC)}; make room, or take another '
      '--data_dir'
    ) from error


def _check_network(spec: catalog.DataSet) -> None:
  """Fails in seconds where TFDS would try for minutes."""
  import requests

  url = next(iter(spec.files.values())).url
  size = sum(file.size for file in spec.files.values())
  logging.info('downloading %.1f MB from %s', size / 1e6, url)
  try:
    requests.head(
      url, timeout=_SECONDS_TO_ANSWER, allow_redirects=True
    ).raise_for_status()
  except requests.RequestException as error:
    reason = error.args[0] if error.args else error
    reason = getattr(reason, 'reason', reason)
    raise types.UserError(f'{url} does not answer: {reason}') from error


def _check_space(name: str, data_dir: pathlib.Path) -> None:
  free, needed = shutil.disk_usage(data_dir).free, catalog.DATA_SETS[name].space
  if free < needed:
    raise types.UserError(
      f'{data_dir} has {free / 1e6:.1f} MB free, preparing {name} takes '
      f'{needed / 1e6:.0f} MB; make room, or take another --data_dir'
    )


def _local_files(
  name: str, manual_dir: pathlib.Path
) -> dict[str, pathlib.Path]:
  """The publisher's files by name; a .gz may be unpacked already."""
  if not manual_dir.is_dir():
    there = 'is a file, no folder' if manual_dir.exists() else 'does not exist'
    raise types.UsageError(f'--manual_dir={manual_dir} {there}')
  try:
    folder = manual_dir / name if (manual_dir / name).is_dir() else manual_dir
    names = sorted(path.name for path in folder.iterdir())
  except OSError as error:
    raise types.UsageError(
      f'--manual_dir={manual_dir} cannot be read: {error.strerror}'
    ) from None
  spec = catalog.DATA_SETS[name]
  found = {}
  for file in spec.files:
    packed, plain = folder / file, folder / file.removesuffix('.gz')
    path = next((p for p in (packed, plain) if p.is_file()), None)
    if not path:
      near = difflib.get_close_matches(
        file, [n for n in names if n not in spec.files], 1
      )
      hint = f' (there is {near[0]}: is it that, renamed?)' if near else ''
      holds = '' if names else ', it is empty'
      raise types.UserError(
        f'{folder} has no {file}{hint}{holds}; {name} is made of '
        f'{_listing(spec)}, see {spec.homepage}'
      )
    found[file] = path
  return found


@contextlib.contextmanager
def _lock(data_dir: pathlib.Path) -> Iterator[None]:
  """One process at a time; the lock ends with its holder, however it ends."""
  handle = os.open(data_dir, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('another process prepares data in %s: waiting', data_dir)
      fcntl.flock(handle, fcntl.LOCK_EX)
    yield
  finally:
    os.close(handle)


def _sweep(folder: pathlib.Path) -> None:
  """Removes what was not finished; the lock is held, so nobody works there."""
  for path in folder.glob(f'{_INCOMPLETE}*'):
    shutil.rmtree(path, ignore_errors=True)
  with contextlib.suppress(OSError):
    folder.rmdir()  # only where it is empty


def summary(name: str) -> str:
  """Title, home, licence and citation, for a person."""
  spec = catalog.DATA_SETS[name]
  return (
    f'{spec.title}\n  Home: {spec.homepage}\n  Licence: {spec.licence}\n'
    f'  Cite: {spec.citation}'
  )
