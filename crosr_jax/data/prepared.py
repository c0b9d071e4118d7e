"""Data sets on disk: prepared once, whole or not at all, then read.

N samples. A prepared set is a TFDS folder of array_record files,
<data_dir>/crosr_jax/<name>/<version>: a place of our own, since TFDS uses the
same names. It is written aside and renamed, and every read is held against the
published SHA-256, or, where that is not known, against one noted at writing.
"""

import contextlib
import difflib
import errno
import fcntl
import hashlib
import io
import logging
import os
import pathlib
import shlex
import shutil
from collections.abc import Iterator

import numpy as np

from crosr_jax import bucket, files, progress, types
from crosr_jax.data import catalog, raw

# Samples decoded at once, and bytes downloaded at once.
_BLOCK = 1_000
_CHUNK = 64 * 1024
_SECONDS_OF_SILENCE = 20
# What TFDS, and we, call folders that are not finished.
_INCOMPLETE = 'incomplete.'
# TFDS's, without which there is no set.
_MARKER = 'dataset_info.json'


class DownloadError(types.UserError):
  """The network or the publisher's server fails."""


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
    DownloadError: where there is no manual_dir and the network fails.
    UserError: where a file is missing or not as published, or the disk fails;
      one line that names it. Nothing is left behind.
  """
  types.check_choice('data set', name, catalog.DATA_SETS)
  local = _local_files(name, manual_dir) if manual_dir else {}
  for line in catalog.summary(name):
    logging.info('%s', line)
  folder = _folder(name, data_dir)
  bucket.bring(folder, _MARKER)
  if _is_whole(name, data_dir):
    logging.info('%s is prepared already', name)
    bucket.put(folder)
    return folder
  folder.parent.mkdir(parents=True, exist_ok=True)
  with _lock(folder.parent):
    # Another process may have been first.
    if not _is_whole(name, data_dir):
      _sweep(folder.parent)
      try:
        with _set_aside(folder):
          _check_space(name, folder.parent)
          _build(name, data_dir, local)
      finally:
        _sweep(folder.parent)
  logging.info('%s is prepared', name)
  bucket.put(folder)
  return folder


def read(
  name: str, part: str, data_dir: pathlib.Path
) -> tuple[raw.Raw, tuple[str, ...]]:
  """A part of a data set and the class names; prepared first if need be.

  Raises:
    UserError: where it is neither prepared nor can be downloaded, or is
      damaged; says what to run.
  """
  told = bucket.named(data_dir)
  where = shlex.quote(told)
  command = f'python -m crosr_jax.prepare {name} --data_dir={where}'
  bucket.bring(_folder(name, data_dir), _MARKER)
  if not _folder(name, data_dir).exists():
    logging.info('%s is not in %s', name, told)
    try:
      prepare(name, data_dir)
    except DownloadError as error:
      files = ', '.join(catalog.DATA_SETS[name].files)
      raise types.UserError(
        f'data set {name} is not prepared in {told} and cannot be '
        f'downloaded ({error}); fetch {files} by other means and run: '
        f'{command} --manual_dir=FOLDER'
      ) from None
  try:
    return _read_part(name, part, data_dir)
  except types.UserError as error:
    raise types.UserError(f'{error}; prepare it again: {command}') from None


def _folder(name: str, data_dir: pathlib.Path) -> pathlib.Path:
  return _root(data_dir) / name / catalog.DATA_SETS[name].version


def _root(data_dir: pathlib.Path) -> pathlib.Path:
  return data_dir / 'crosr_jax'


def _is_whole(name: str, data_dir: pathlib.Path) -> bool:
  """Whether the set is there, every sample as published."""
  if not _folder(name, data_dir).exists():
    return False
  try:
    for part in catalog.DATA_SETS[name].parts:
      _read_part(name, part, data_dir)
  except types.UserError as error:
    logging.warning('%s; preparing it again', error)
    return False
  return True


def _read_part(
  name: str, part: str, data_dir: pathlib.Path
) -> tuple[raw.Raw, tuple[str, ...]]:
  """Reads and checks; any damage is a UserError."""
  from crosr_jax.data import builders

  spec, folder = catalog.DATA_SETS[name], _folder(name, data_dir)
  try:
    builder = builders.BUILDERS[name](spec, _root(data_dir))
    found = [builder.as_data_source(split) for split in builder.splits(part)]
    total = sum(map(len, found))
    image = np.empty((total, *spec.image_shape), np.uint8)
    label = np.empty(total, np.int32)
    done = 0
    for source in found:
      for start in range(0, len(source), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(source)))
        for sample in source.__getitems__(rows):
          image[done], label[done] = sample['image'], sample['label']
          done += 1
    class_names = tuple(builder.info.features['label'].names)
    expected = builder.expected(part)
  except Exception as error:
    # Records are read by C++ and protocol buffers, which raise what they like;
    # but what the machine fails at, or an installation, is no damage.
    is_missing = isinstance(error, FileNotFoundError)
    if (
      isinstance(error, OSError | ImportError | MemoryError) and not is_missing
    ):
      raise
    reason = ' '.join(str(error).split())[:200]
    raise types.UserError(
      f'{folder} is damaged: {part} cannot be read ({reason})'
    ) from error
  raw.check(expected, image, label, folder, folder, advice='')
  raw.check_names(spec, class_names, label, folder)
  return raw.Raw(image, label), class_names


def _build(
  name: str, data_dir: pathlib.Path, local: dict[str, pathlib.Path]
) -> None:
  """Downloads where there are no local files, checks, writes, renames."""
  spec, folder = catalog.DATA_SETS[name], _folder(name, data_dir)
  paths = local or _download(spec, folder.parent / f'{_INCOMPLETE}downloads')
  import tensorflow_datasets as tfds

  from crosr_jax.data import builders

  # We show our own progress, and TFDS's page of it goes nowhere.
  tfds.disable_progress_bar()
  builder = builders.BUILDERS[name](spec, _root(data_dir), paths)
  with contextlib.redirect_stdout(io.StringIO()), _plain_errors(data_dir):
    builder.download_and_prepare(
      download_dir=str(folder.parent / f'{_INCOMPLETE}unused'),
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )


@contextlib.contextmanager
def _plain_errors(data_dir: pathlib.Path) -> Iterator[None]:
  """A disk that fills up, as one line: the record writer tells it in words."""
  try:
    yield
  except Exception as error:
    text = f'{getattr(error, "strerror", "")} {error}'
    for number in (errno.ENOSPC, errno.EDQUOT):
      if os.strerror(number) in text:
        raise types.UserError(
          f'{data_dir}: {os.strerror(number)}; make room, or take another '
          '--data_dir'
        ) from error
    raise


def _download(
  spec: catalog.DataSet, folder: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Fetches the publisher's files into a folder, held against SHA-256.

  Where that is not known, so are the pixels, when they are read.
  """
  # Costs a tenth of a second, and only those who download should pay it.
  import requests

  folder.mkdir()
  total, done = sum(file.size for file in spec.files.values()), 0
  paths = {}
  with progress.bar('downloading bytes', total) as show:
    for name, file in spec.files.items():
      paths[name], digest = folder / name, hashlib.sha256()
      logging.info('downloading %s', file.url)
      try:
        with requests.get(
          file.url, stream=True, timeout=_SECONDS_OF_SILENCE
        ) as response:
          response.raise_for_status()
          with paths[name].open('wb') as out:
            for chunk in response.iter_content(_CHUNK):
              out.write(chunk)
              digest.update(chunk)
              done += len(chunk)
              if total:
                show(min(done, total))
              if out.tell() > (file.size or spec.space):
                break
      except requests.RequestException as error:
        raise DownloadError(f'{file.url}: {_reason(error)}') from error
      if file.sha256 and digest.hexdigest() != file.sha256:
        raise DownloadError(
          f'{file.url} is not the published file: {paths[name].stat().st_size} '
          f'of {file.size} bytes, SHA-256 {digest.hexdigest()[:12]}...'
        )
      if not file.sha256 and not _is_gzip(paths[name]):
        raise DownloadError(f'{file.url} gives no archive but something else')
  return paths


def _is_gzip(path: pathlib.Path) -> bool:
  with path.open('rb') as file:
    return file.read(2) == b'\x1f\x8b'


def _reason(error: BaseException) -> BaseException:
  """The innermost of the errors that `requests` wraps."""
  inner = error.args[0] if error.args else None
  inner = getattr(inner, 'reason', inner)
  return _reason(inner) if isinstance(inner, BaseException) else error


def _check_space(name: str, folder: pathlib.Path) -> None:
  free, needed = shutil.disk_usage(folder).free, catalog.DATA_SETS[name].space
  if free < needed:
    raise types.UserError(
      f'{folder} has {free / 1e6:.1f} MB free, preparing {name} takes '
      f'{needed / 1e6:.0f} MB; make room, or take another --data_dir'
    )


def _local_files(
  name: str, manual_dir: pathlib.Path
) -> dict[str, pathlib.Path]:
  """The publisher's files by name, or what lies there in their place."""
  try:
    folder = manual_dir / name if (manual_dir / name).is_dir() else manual_dir
    names = sorted(path.name for path in folder.iterdir())
  except OSError as error:
    raise types.UsageError(
      f'--manual_dir={manual_dir} cannot be read: {error.strerror}'
    ) from None
  spec = catalog.DATA_SETS[name]
  found = {}
  for file, facts in spec.files.items():
    path = _first(folder, (file, *facts.unpacked))
    if not path:
      holds = '' if names else ', it is empty'
      instead = ''.join(f' or {other}' for other in facts.unpacked)
      raise types.UserError(
        f'{folder} has no {file}{instead}{_hint(file, names, spec)}{holds}; '
        f'{name} is made of {", ".join(spec.files)}, see {spec.homepage}'
      )
    found[file] = path
  return found


def _first(folder: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path | None:
  """The first that is there; a name that ends in / must be a folder."""
  for name in names:
    path = folder / name
    if path.is_dir() if name.endswith('/') else path.is_file():
      return path
  return None


def _hint(file: str, names: list[str], spec: catalog.DataSet) -> str:
  """What may be meant to be the file that is missing."""
  facts = spec.files[file]
  for other in facts.not_read:
    if other in names:
      return f' (there is {other}: another packing, which is not read)'
  used = {
    used.rstrip('/')
    for packed, facts in spec.files.items()
    for used in (packed, *facts.unpacked)
  }
  near = difflib.get_close_matches(file, [n for n in names if n not in used], 1)
  return f' (there is {near[0]}: is it that, renamed?)' if near else ''


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
  """One process at a time; the lock ends with its holder, however it ends."""
  with (folder / '.lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('another process prepares it: waiting')
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
      files.warn_of_no_locks(folder, error)
    yield


@contextlib.contextmanager
def _set_aside(folder: pathlib.Path) -> Iterator[None]:
  """A damaged set gives way to a new one, and comes back if there is none."""
  aside = folder.with_name(f'{_INCOMPLETE}damaged')
  if folder.exists():
    folder.rename(aside)
  try:
    yield
  except BaseException:
    if aside.exists():
      aside.rename(folder)
    raise


def _sweep(folder: pathlib.Path) -> None:
  """Removes what was not finished; the lock is held, so nobody works there."""
  for path in folder.glob(f'{_INCOMPLETE}*'):
    shutil.rmtree(path, ignore_errors=True)
