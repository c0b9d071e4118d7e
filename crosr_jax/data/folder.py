"""One's own images: a folder with a sub-folder for each class.

N files. Each is read once before a run, so that damaged ones are told of and
left out, and a digest of its pixels is kept; what was found is remembered in
`data_dir`, by path, size and times of change.
"""

import concurrent.futures
import hashlib
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from crosr_jax import files, progress, types
from crosr_jax.data import images, sources

# Of each class; fewer cannot be split into four parts and have a tail.
FEWEST = 10
_DIGEST_SIZE = 32
_RESERVED = 'unknown'


class Skipped(NamedTuple):
  """A file that is left out."""

  path: str
  reason: str


def source(
  train_dir: str,
  field: str,
  shape: tuple[int, int, int],
  data_dir: pathlib.Path,
  *,
  num_classes: int = 0,
  fewest: int = FEWEST,
) -> tuple[sources.Source, list[Skipped]]:
  """The images below a folder, by class, and the files that are left out.

  Classes are the folder's sub-folders in alphabetical order; an image may lie
  deeper. Hidden files and folders are not looked at.

  Args:
    train_dir: the folder.
    field: of the config that names it, for errors.
    shape: see images.read.
    data_dir: where what was found is remembered.
    num_classes: that there must be; 0 = any number.
    fewest: images that a class must have.

  Raises:
    UsageError: where there is no such folder, fewer than two classes or another
      number than there must be, or a class of too few images that can be used.
  """
  names = class_names(train_dir, field, num_classes)
  root = files.user_path(train_dir)
  per_class = [list(below(root / name)) for name in names]
  found, skipped = _scan(
    [path for paths in per_class for path in paths], shape, data_dir, train_dir
  )
  label = np.repeat(
    np.arange(len(names), dtype=np.int32), [len(paths) for paths in per_class]
  )[found.rows]
  skipped += [
    Skipped(str(p), 'it lies in no class folder')
    for p in sorted(root.iterdir())
    if p.is_file() and not _hidden(p)
  ]
  count = np.bincount(label, minlength=len(names))
  if few := [k for k in range(len(names)) if count[k] < fewest]:
    told = ', '.join(f'{names[k]}: {count[k]}' for k in few)
    within = [root / names[k] for k in few]
    left_out = [
      x
      for x in skipped
      if any(pathlib.Path(x.path).is_relative_to(y) for y in within)
    ]
    raise types.UsageError(
      f'{field}={train_dir}: at least {fewest} images of a class are needed, '
      f'there are fewer of {told}{_also(left_out)}; add some, or move the '
      'folder away'
    )
  return sources.Source(found.image, label, tuple(names)), skipped


def class_names(train_dir: str, field: str, num_classes: int = 0) -> list[str]:
  """Names of the classes that lie in a folder; args and errors as `source`."""
  if not train_dir:
    raise types.UsageError(
      f'{field} is needed, a folder with a sub-folder of images for each '
      f'class: --config.{field}=DIR'
    )
  root = _existing(train_dir, field)
  names = sorted(
    p.name for p in root.iterdir() if p.is_dir() and not _hidden(p)
  )
  if len(names) < 2:
    raise types.UsageError(
      f'{field}={train_dir} has {len(names)} sub-folders, and each is a class: '
      'at least 2 are needed'
    )
  if num_classes not in (0, len(names)):
    raise types.UsageError(
      f'{field}={train_dir} has {len(names)} sub-folders, and each is a class: '
      f'data.num_classes={num_classes}; bring the others, or set that to 0'
    )
  if _RESERVED in names:
    raise types.UsageError(
      f'{field}={train_dir} has a class {_RESERVED!r}, which is what unknown '
      'images are called; rename that folder, or move it elsewhere and name it '
      'in evaluation.unknown_dirs'
    )
  return names


def unknown(
  folder: str, field: str, shape: tuple[int, int, int], data_dir: pathlib.Path
) -> tuple[images.ImageFiles, int, list[Skipped]]:
  """Images below a folder of unknowns, its classes, and what is left out.

  Args:
    folder: images, or sub-folders with images.
    field: of the config that names it, for errors.
    shape: see images.read.
    data_dir: where what was found is remembered.

  Raises:
    UsageError: where there is no such folder, or no image in it.
  """
  root = _existing(folder, field)
  paths = list(below(root))
  found, skipped = _scan(paths, shape, data_dir, folder)
  if not len(found.image):
    raise types.UsageError(
      f'{field}: {folder} holds no image that can be used{_also(skipped)}'
    )
  parents = {
    pathlib.Path(path).relative_to(root).parts[:-1][:1]
    for path in found.image.paths
  }
  return found.image, len(parents), skipped


class _Found(NamedTuple):
  image: images.ImageFiles  # that can be used
  rows: np.ndarray  # their positions among all files


def _existing(folder: str, field: str) -> pathlib.Path:
  path = files.user_path(folder)
  if not folder or not path.is_dir():
    there = 'is a file' if folder and path.exists() else 'does not exist'
    raise types.UsageError(f'{field}={folder} {there}; name a folder')
  return path


def _hidden(path: pathlib.Path) -> bool:
  return path.name.startswith('.')


def below(
  folder: pathlib.Path, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
  """Files below a folder, in alphabetical order, without hidden ones.

  Links are followed, but not round. A folder that may not be read is given in
  place of its files.

  Args:
    folder: where to look.
    above: device and number of the folders that led here.
  """
  found = os.stat(folder)
  here = (found.st_dev, found.st_ino)
  if here in above:
    return
  try:
    entries = sorted(os.scandir(folder), key=lambda x: x.name)
  except PermissionError:
    yield str(folder)
    return
  for entry in entries:
    if entry.name.startswith('.'):
      continue
    # Unlike the entry's own, False for a link to itself.
    if os.path.isdir(entry.path):
      yield from below(pathlib.Path(entry.path), above | {here})
    else:
      yield entry.path


def _also(skipped: Sequence[Skipped]) -> str:
  """What was left out, where that may be why."""
  if not skipped:
    return ''
  first = skipped[0]
  more = f' and {len(skipped) - 1} more' if len(skipped) > 1 else ''
  return f' (left out: {first.path}: {first.reason}{more})'


def _scan(
  paths: Sequence[str],
  shape: tuple[int, int, int],
  data_dir: pathlib.Path,
  name: str,
) -> tuple[_Found, list[Skipped]]:
  """Reads every file that was not read before, or could not be."""
  memory = _Memory(data_dir, name, shape)
  stamp = np.array([images.stamp(path) for path in paths], np.int64)
  stamp = stamp.reshape(-1, 3)
  digest, known = memory.recall(paths, stamp)
  reasons: dict[int, str] = {}
  new = np.flatnonzero(~known).tolist()
  if new:
    logging.info('looking through %d files of %s', len(new), name)
    with progress.bar('looking through', len(new)) as show:
      for done, (i, found) in enumerate(_read([paths[i] for i in new], shape)):
        row = new[i]
        if isinstance(found, str):
          reasons[row] = found
        else:
          digest[row] = np.frombuffer(found, np.uint8)
        show(done + 1)
    rows = [i for i in range(len(paths)) if i not in reasons]
    memory.keep([paths[i] for i in rows], stamp[rows], digest[rows])
  rows = [i for i in range(len(paths)) if i not in reasons]
  image = images.ImageFiles(
    [paths[i] for i in rows], shape, digest[rows], stamp[rows]
  )
  skipped = [Skipped(paths[i], reasons[i]) for i in sorted(reasons)]
  return _Found(image, np.asarray(rows, np.int64)), skipped


def _read(
  paths: Sequence[str], shape: tuple[int, int, int]
) -> Iterator[tuple[int, bytes | str]]:
  """Position, and digest of the pixels or why there are none, in order."""

  def look(path: str) -> bytes | str:
    try:
      pixels = images.read(path, shape)
    except images.ImageError as error:
      return str(error)
    return hashlib.sha256(pixels.tobytes()).digest()

  block = 1024
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    for start in range(0, len(paths), block):
      found = threads.map(look, paths[start : start + block])
      yield from enumerate(found, start)


class _Memory:
  """The images that an earlier look through a folder found; no pickle.

  What could not be read is looked at again: there is little of it, and it may
  have been mended.
  """

  def __init__(
    self, data_dir: pathlib.Path, name: str, shape: tuple[int, int, int]
  ):
    where = str(files.user_path(name).absolute())
    key = hashlib.sha256(os.fsencode(f'{where}\n{shape}')).hexdigest()[:32]
    self._path = data_dir / 'crosr_jax' / 'folder' / f'{key}.npz'

  def recall(
    self, paths: Sequence[str], stamp: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Digests [N, D], and whether a file is known and unchanged [N]."""
    digest = np.zeros((len(paths), _DIGEST_SIZE), np.uint8)
    known = np.zeros(len(paths), bool)
    try:
      with np.load(self._path, allow_pickle=False) as old:
        names = old['paths'].tobytes().split(b'\0')
        old_stamp, old_digest = old['stamp'], old['digest']
        if old_stamp.shape[1:] != stamp.shape[1:]:
          # Of a version that looked at less.
          return digest, known
    except Exception:
      # Whatever is wrong with it, the files themselves are at hand.
      return digest, known
    row_of = {path: i for i, path in enumerate(names)}
    for i, path in enumerate(paths):
      j = row_of.get(os.fsencode(path))
      if j is not None and (old_stamp[j] == stamp[i]).all():
        known[i], digest[i] = True, old_digest[j]
    return digest, known

  def keep(
    self, paths: Sequence[str], stamp: np.ndarray, digest: np.ndarray
  ) -> None:
    """Remembers; where it cannot, the next run looks again."""
    names = np.frombuffer(b'\0'.join(map(os.fsencode, paths)), np.uint8)
    try:
      with files.aside(self._path) as file:
        np.savez(file, paths=names, stamp=stamp, digest=digest)
    except OSError as error:
      logging.warning(
        'what was found cannot be kept in %s (%s): the next run looks through '
        'all files again',
        *(self._path.parent, error.strerror),
      )
