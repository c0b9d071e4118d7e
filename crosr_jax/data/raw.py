"""Files as their publishers offer them, read and checked, never unpacked.

N samples, H x W pixels, C channels.
"""

import gzip
import hashlib
import io
import itertools
import logging
import math
import pathlib
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from crosr_jax import progress, types
from crosr_jax.data import archives, catalog


class Raw(NamedTuple):
  """One part of a data set."""

  image: np.ndarray  # [N, H, W, C] uint8
  label: np.ndarray  # [N] int32


class Read(NamedTuple):
  """All parts of a data set."""

  parts: dict[str, Raw]
  class_names: tuple[str, ...]


def check(
  expected: catalog.Part,
  image: np.ndarray,
  label: np.ndarray,
  image_name: object,
  label_name: object,
  *,
  advice: str = '; fetch it again',
) -> None:
  """Raises a UserError unless these are the published samples.

  Args:
    expected: the part of the data set that they should be.
    image: [N, H, W, C] uint8.
    label: [N] int32.
    image_name: where the images are from, for the error.
    label_name: likewise.
    advice: the end of the error.
  """
  if len(label) != expected.num_samples:
    raise types.UserError(
      f'{label_name}: {len(label)} samples where {expected.num_samples} were '
      f'published{advice}'
    )
  if expected.class_counts:
    _check_counts(expected.class_counts, label, label_name, advice)
  for name, kind, array, sha256 in (
    (image_name, 'images', image, expected.image_sha256),
    (label_name, 'labels', label.astype('<i4'), expected.label_sha256),
  ):
    found = digest(array) if sha256 else ''
    if found != sha256:
      raise types.UserError(
        f'{name}: its {kind} are not the published ones (SHA-256 '
        f'{found[:12]}..., published {sha256[:12]}...){advice}'
      )


def check_names(
  spec: catalog.DataSet,
  class_names: Sequence[str],
  label: np.ndarray,
  folder: object,
) -> None:
  """Raises a UserError for class names that are not those of the data set.

  Args:
    spec: of the data set.
    class_names: K.
    label: of the samples, [N].
    folder: where the names lie, for the error.
  """
  found = hashlib.sha256('\n'.join(class_names).encode()).hexdigest()
  is_of_labels = len(set(class_names)) == len(class_names) > label.max()
  if not is_of_labels or found != (spec.names_sha256 or found):
    raise types.UserError(
      f'{folder} is damaged: {len(class_names)} names of classes are not those '
      'of the data set'
    )


def _check_counts(
  counts: Sequence[int], label: np.ndarray, name: object, advice: str
) -> None:
  found = np.bincount(label, minlength=len(counts))
  wrong = np.flatnonzero(found[: len(counts)] != counts)
  if len(found) > len(counts):
    raise types.UserError(
      f'{name}: there is a label {len(found) - 1} where {len(counts)} classes '
      f'were published{advice}'
    )
  if len(wrong):
    k = wrong[0]
    raise types.UserError(
      f'{name}: class {k} has {found[k]} samples where {counts[k]} were '
      f'published{advice}'
    )


def digest(array: np.ndarray) -> str:
  """SHA-256 of the bytes of an array, in C order."""
  # A view, since the largest array here takes 1.2 GB.
  view = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  return hashlib.sha256(view.data).hexdigest()


def _check_file(path: pathlib.Path, file: catalog.File) -> None:
  """Raises a UserError unless a file has its published SHA-256, where known."""
  if not file.sha256:
    logging.info('no SHA-256 of %s is known: only counts are checked', path)
    return
  found = hashlib.sha256()
  with path.open('rb') as opened:
    while chunk := opened.read(1 << 20):
      found.update(chunk)
  if found.hexdigest() != file.sha256:
    raise types.UserError(
      f'{path} is not the published file: {path.stat().st_size} of {file.size} '
      f'bytes, SHA-256 {found.hexdigest()[:12]}... where '
      f'{file.sha256[:12]}... was published; fetch {file.url} again'
    )


def mnist(spec: catalog.DataSet, paths: dict[str, pathlib.Path]) -> Read:
  """The four idx files, with or without their .gz.

  Args:
    spec: of the data set.
    paths: of the files, by the names in spec.files.

  Raises:
    UserError: for a file that is not as published; names it.
  """
  names = list(spec.files)
  parts = {}
  for i, (part, expected) in enumerate(spec.parts.items()):
    image_path, label_path = (paths[name] for name in names[2 * i : 2 * i + 2])
    shape = (expected.num_samples, *spec.image_shape[:2])
    image = read_idx(image_path, shape)[..., None]
    label = read_idx(label_path, shape[:1]).astype(np.int32)
    check(expected, image, label, image_path, label_path)
    parts[part] = Raw(image, label)
  return Read(parts, tuple(str(i) for i in range(10)))


def read_idx(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
  """An idx file of unsigned bytes, gzipped or not, that must have this shape.

  Raises:
    UserError: where it is anything else; names the file.
  """
  dims = f'>{len(shape)}I'
  header = bytes([0, 0, 8, len(shape)]) + struct.pack(dims, *shape)
  size = len(header) + math.prod(shape)
  with path.open('rb') as file:
    is_gzip = file.read(2) == b'\x1f\x8b'
  try:
    with gzip.open(path) if is_gzip else path.open('rb') as file:
      # One byte more than there should be, and never the whole of a bomb.
      content = file.read(size + 1)
  except (EOFError, gzip.BadGzipFile, zlib.error):
    raise types.UserError(
      f'{path} is truncated or damaged; fetch it again'
    ) from None
  if not content.startswith(header):
    raise types.UserError(f'{path} {_what_idx(content, shape)}')
  if len(content) < size:
    raise types.UserError(
      f'{path} is truncated: {len(content)} of {size} bytes; fetch it again'
    )
  if len(content) > size:
    raise types.UserError(
      f'{path} holds more than its header tells; fetch it again'
    )
  return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _what_idx(content: bytes, shape: tuple[int, ...]) -> str:
  """What a file holds that does not begin as it should."""
  expected = ' x '.join(map(str, shape))
  is_idx = content[:3] == b'\0\0\x08' and len(content) > 3
  if not is_idx or len(content) < 4 + 4 * content[3]:
    return f'is no idx file of {expected} bytes; fetch it again'
  found = struct.unpack_from(f'>{content[3]}I', content, 4)
  return (
    f'holds {" x ".join(map(str, found))} bytes where {expected} were '
    'published; is it another file under that name?'
  )


# <anything>/<alphabet>/<character>/<drawing>.png
_DRAWING = re.compile(r'(?:.*/)?([^/]+/character\d+/[^/]+\.png)')
# Published drawings have 522 bytes at most.
_LARGEST_DRAWING = 20_000


def omniglot(spec: catalog.DataSet, paths: dict[str, pathlib.Path]) -> Read:
  """The two zips of drawings; labels number the characters of both.

  Args and errors as `mnist`.
  """
  drawings = {
    part: dict(
      archives.read(
        path,
        _DRAWING,
        count=spec.parts[part].num_samples,
        what='drawings',
        largest=_LARGEST_DRAWING,
      )
    )
    for part, path in zip(spec.parts, paths.values(), strict=True)
  }
  names = [n for found in drawings.values() for n in found]
  characters = sorted(set(map(_folder, names)))
  number = {name: i for i, name in enumerate(characters)}
  parts = {}
  for (part, found), path in zip(drawings.items(), paths.values(), strict=True):
    image = np.stack(
      [
        _decode(path, n, found[n], [spec.image_shape], 'drawing')
        for n in sorted(found)
      ]
    )
    label = np.array([number[_folder(n)] for n in sorted(found)], np.int32)
    check(spec.parts[part], image, label, path, path)
    parts[part] = Raw(image, label)
  return Read(parts, tuple(characters))


def _folder(name: str) -> str:
  return name.rpartition('/')[0]


def _decode(
  path: pathlib.Path,
  name: str,
  content: bytes,
  shapes: Sequence[tuple[int, int, int]],
  what: str = 'image',
) -> np.ndarray:
  """A picture that must have one of these shapes, [H, W, C] uint8.

  Grey becomes colour, and colour grey, as C says.
  """
  try:
    with Image.open(io.BytesIO(content), formats=['PNG', 'JPEG']) as opened:
      for height, width, channels in shapes:
        if opened.size == (width, height):
          pixels = opened.convert('L' if channels == 1 else 'RGB')
          return np.asarray(pixels).reshape(height, width, channels)
  except MemoryError:
    raise
  except Exception as error:
    # Damage shows as any of a dozen errors of Pillow's.
    logging.debug('%s: %s', name, error)
  sizes = ' or '.join(f'{shape[1]} x {shape[0]}' for shape in shapes)
  raise types.UserError(f'{path}: {name} is no {what} of {sizes} pixels')


_CIFAR10_NAMES = (
  *('airplane', 'automobile', 'bird', 'cat', 'deer'),
  *('dog', 'frog', 'horse', 'ship', 'truck'),
)
_CIFAR10_BATCHES = {
  'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
  'test': ('test_batch.bin',),
}
_CIFAR10_BATCH = re.compile(r'(?:.*/)?((?:data_batch_[1-5]|test_batch)\.bin)')


def cifar10(spec: catalog.DataSet, paths: dict[str, pathlib.Path]) -> Read:
  """The archive of six binary batches, or the folder of them.

  Args and errors as `mnist`.
  """
  (path,) = paths.values()
  sizes = {
    name: spec.parts[part].num_samples // len(names)
    for part, names in _CIFAR10_BATCHES.items()
    for name in names
  }
  found = _records(path, _CIFAR10_BATCH, sizes, spec.image_shape, 1)
  parts = {}
  for part, names in _CIFAR10_BATCHES.items():
    image = np.concatenate([found[name].image for name in names])
    label = np.concatenate([found[name].label for name in names])
    check(spec.parts[part], image, label, path, path)
    parts[part] = Raw(image, label)
  return Read(parts, _CIFAR10_NAMES)


def _records(
  path: pathlib.Path,
  pattern: re.Pattern[str],
  sizes: Mapping[str, int],
  shape: tuple[int, int, int],
  num_labels: int,
) -> dict[str, Raw]:
  """Files of CIFAR's records: labels, of which the last counts, then planes.

  Args:
    path: of the archive or folder.
    pattern: of the files' names; its first group is a key of `sizes`.
    sizes: records of each file.
    shape: (H, W, C) of an image.
    num_labels: bytes before the pixels of a record.
  """
  width = num_labels + math.prod(shape)
  found = {}
  for name, content in archives.read(
    path,
    pattern,
    count=len(sizes),
    what='files of records',
    largest=max(sizes.values()) * width,
  ):
    if len(content) != sizes[name] * width:
      raise types.UserError(
        f'{path}: {name} has {len(content)} bytes where {sizes[name] * width} '
        'were published; fetch it again'
      )
    records = np.frombuffer(content, np.uint8).reshape(-1, width)
    planes = records[:, num_labels:].reshape(-1, shape[2], *shape[:2])
    found[name] = Raw(
      np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
      records[:, num_labels - 1].astype(np.int32),
    )
  return found


_CIFAR100_TEST = re.compile(r'(?:.*/)?(test\.bin)')
_CIFAR100_NAMES = re.compile(r'(?:.*/)?(fine_label_names\.txt)')
_CIFAR100_PICTURE = re.compile(r'(?:.*/)?([^/]+/[^/.][^/]*\.png)')
# A 32x32 picture has 3 kB; JPEG may carry a preview and a profile.
_LARGEST_PICTURE = 100_000


def cifar100(spec: catalog.DataSet, paths: dict[str, pathlib.Path]) -> Read:
  """The test part, of the binary archive or a folder <label>/<picture>.png.

  Its order is of its own, since folders of pictures have lost the publisher's.
  Args and errors as `mnist`.
  """
  (path,) = paths.values()
  ((part, expected),) = spec.parts.items()
  if path.is_dir() and path.name == 'test':
    image, label, names = _labelled_pictures(path, expected, spec.image_shape)
  else:
    size = {'test.bin': expected.num_samples}
    found = _records(path, _CIFAR100_TEST, size, spec.image_shape, 2)
    image, label = found['test.bin']
    ((_, content),) = archives.read(
      path, _CIFAR100_NAMES, count=1, what='lists of labels', largest=10_000
    )
    names = tuple(content.decode(errors='replace').split())
  image, label = _by_content(image, label)
  check(expected, image, label, path, path)
  return Read({part: Raw(image, label)}, names)


def _labelled_pictures(
  path: pathlib.Path, expected: catalog.Part, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
  """Images, labels and class names of a folder that has a folder per class."""
  image = np.empty((expected.num_samples, *shape), np.uint8)
  folders = []
  for i, (name, content) in enumerate(
    archives.read(
      path,
      _CIFAR100_PICTURE,
      count=expected.num_samples,
      what='pictures',
      largest=_LARGEST_PICTURE,
    )
  ):
    image[i] = _decode(path, name, content, [shape])
    folders.append(_folder(name))
  names, label = np.unique(folders, return_inverse=True)
  return image, label.astype(np.int32), tuple(map(str, names))


def _by_content(
  image: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The same samples in the order of their SHA-256, then of their labels.

  For files whose names and order differ between packings and tell nothing.
  """
  keys = [hashlib.sha256(x.tobytes()).digest() for x in image]
  order = sorted(range(len(label)), key=lambda i: (keys[i], int(label[i])))
  return image[order], label[order]


_PICTURE = re.compile(r'(?:.*/)?([^/.][^/]*\.(?:png|jpe?g))', re.IGNORECASE)
_CROPPED_FROM = 36  # pixels


def odin(spec: catalog.DataSet, paths: dict[str, pathlib.Path]) -> Read:
  """The four archives or folders of unlabelled pictures, some of 36x36.

  Those lose two pixels on each side, as in the paper. The order is of its own,
  since the names of the files tell nothing. Args and errors as `mnist`.
  """
  height, width, channels = spec.image_shape
  larger = (_CROPPED_FROM, _CROPPED_FROM, channels)
  top, left = (_CROPPED_FROM - height) // 2, (_CROPPED_FROM - width) // 2
  parts = {}
  for (part, expected), path in zip(
    spec.parts.items(), paths.values(), strict=True
  ):
    image = np.empty((expected.num_samples, *spec.image_shape), np.uint8)
    with progress.bar(f'reading {part}', len(image)) as show:
      for i, (name, content) in enumerate(
        archives.read(
          path,
          _PICTURE,
          count=len(image),
          what='pictures',
          largest=_LARGEST_PICTURE,
        )
      ):
        pixels = _decode(path, name, content, [spec.image_shape, larger])
        if len(pixels) == _CROPPED_FROM:
          pixels = pixels[top : top + height, left : left + width]
        image[i] = pixels
        show(i + 1)
    image, label = _by_content(image, np.zeros(len(image), np.int32))
    check(expected, image, label, path, path)
    parts[part] = Raw(image, label)
  return Read(parts, ('unlabelled',))


def svhn(spec: catalog.DataSet, paths: dict[str, pathlib.Path]) -> Read:
  """The two MATLAB files of cropped digits; label 10 is the digit 0.

  Args and errors as `mnist`.
  """
  parts = {}
  for (part, expected), (name, path) in zip(
    spec.parts.items(), paths.items(), strict=True
  ):
    _check_file(path, spec.files[name])
    shape = (*spec.image_shape, expected.num_samples)
    pixels, digit = _read_mat(path, shape)
    image = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
    label = (digit % 10).astype(np.int32)
    check(expected, image, label, path, path)
    parts[part] = Raw(image, label)
  return Read(parts, tuple(str(i) for i in range(10)))


def _read_mat(
  path: pathlib.Path, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """X of this shape and y of as many digits 1..10, of a MATLAB file."""
  # Costs a third of a second, and only those who prepare SVHN should pay it.
  from scipy import io as scipy_io

  try:
    with path.open('rb') as file:
      found = scipy_io.loadmat(file, variable_names=['X', 'y'])
  except (MemoryError, FileNotFoundError, PermissionError):
    raise
  except Exception as error:
    # Damage shows as any of a dozen errors.
    logging.debug('%s: %s', path, error)
    raise types.UserError(
      f'{path} is truncated or damaged; fetch it again'
    ) from None
  pixels, digit = (np.asarray(found.get(name)) for name in ('X', 'y'))
  if pixels.dtype != np.uint8 or pixels.shape != shape:
    raise types.UserError(
      f'{path}: X is {pixels.dtype} of {_times(pixels.shape)} where uint8 of '
      f'{_times(shape)} was published; is it another file under that name?'
    )
  if (
    digit.dtype.kind not in 'ui'
    or digit.size != shape[-1]
    or not ((digit >= 1) & (digit <= 10)).all()
  ):
    raise types.UserError(
      f'{path}: y is not the {shape[-1]} digits 1..10 that were published; is '
      'it another file under that name?'
    )
  return pixels, digit.reshape(-1)


def _times(shape: Sequence[int]) -> str:
  return ' x '.join(map(str, shape)) or 'no shape'


_TINY_LIST = re.compile(r'(?:.*/)?(wnids|words|val_annotations)\.txt')
_TINY_TRAIN = re.compile(
  r'(?:.*/)?train/[^/]+/images/(n\d+_(?:0|[1-9]\d*))\.JPEG'
)
_TINY_VAL = re.compile(r'(?:.*/)?val/images/(val_(?:0|[1-9]\d*)\.JPEG)')
_LARGEST_LIST = 10_000_000


def tinyimagenet(spec: catalog.DataSet, paths: dict[str, pathlib.Path]) -> Read:
  """The zip of Tiny ImageNet; labels are positions in its sorted WordNet ids.

  Args and errors as `mnist`.
  """
  ((name, path),) = paths.items()
  _check_file(path, spec.files[name])
  lists = {
    key: content.decode(errors='replace').splitlines()
    for key, content in archives.read(
      path, _TINY_LIST, count=3, what='lists', largest=_LARGEST_LIST
    )
  }
  classes = sorted(filter(None, map(str.strip, lists['wnids'])))
  train = spec.parts['train'].class_counts
  if len(classes) != len(train):
    raise types.UserError(
      f'{path}: wnids.txt names {len(classes)} classes where {len(train)} were '
      'published; fetch it again'
    )
  # Where each picture goes, and its label: by class, then by number; the part
  # for validation by number.
  starts = itertools.accumulate(train, initial=0)
  place = {
    f'{wnid}_{i}': (start + i, k)
    for k, (wnid, start) in enumerate(zip(classes, starts, strict=False))
    for i in range(train[k])
  }
  number = {wnid: k for k, wnid in enumerate(classes)}
  rows = [line.split('\t') for line in lists['val_annotations']]
  place |= {
    row[0]: (i, number[row[1]])
    for row in rows
    if len(row) > 1
    and row[1] in number
    and (i := _number(row[0])) in range(spec.parts['val'].num_samples)
  }
  parts = {
    part: _placed(path, pattern, part, spec, place)
    for part, pattern in (('train', _TINY_TRAIN), ('val', _TINY_VAL))
  }
  return Read(parts, _words(classes, lists['words']))


def _number(name: str) -> int:
  """27 for 'val_27.JPEG', -1 for what is called otherwise."""
  digits = name.removeprefix('val_').removesuffix('.JPEG')
  return int(digits) if digits.isdecimal() else -1


def _placed(
  path: pathlib.Path,
  pattern: re.Pattern[str],
  part: str,
  spec: catalog.DataSet,
  place: Mapping[str, tuple[int, int]],
) -> Raw:
  """The pictures of a part, each in its row, with its label."""
  expected = spec.parts[part]
  image = np.empty((expected.num_samples, *spec.image_shape), np.uint8)
  label = np.empty(expected.num_samples, np.int32)
  with progress.bar(f'reading {part}', len(label)) as show:
    for done, (name, content) in enumerate(
      archives.read(
        path,
        pattern,
        count=len(label),
        what=f'pictures of {part}',
        largest=_LARGEST_PICTURE,
      )
    ):
      if name not in place:
        raise types.UserError(
          f'{path}: {name} is a picture of no class; fetch it again'
        )
      row, label_of_row = place[name]
      image[row] = _decode(path, name, content, [spec.image_shape])
      label[row] = label_of_row
      show(done + 1)
  check(expected, image, label, path, path)
  return Raw(image, label)


def _words(classes: Sequence[str], lines: Sequence[str]) -> tuple[str, ...]:
  """The first word for each WordNet id; the id where that is no name."""
  word = {
    wnid: words.partition(',')[0].strip()
    for wnid, _, words in (line.partition('\t') for line in lines)
  }
  first = [word.get(wnid, '') for wnid in classes]
  return tuple(
    name if name and first.count(name) == 1 else wnid
    for name, wnid in zip(first, classes, strict=True)
  )


READERS = {
  'mnist': mnist,
  'omniglot': omniglot,
  'cifar10': cifar10,
  'cifar100': cifar100,
  'odin': odin,
  'svhn': svhn,
  'tinyimagenet': tinyimagenet,
}
