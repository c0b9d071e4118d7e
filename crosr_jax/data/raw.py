"""Files as their publishers offer them, read and checked, never unpacked.

N samples, H x W pixels, C channels.
"""

import gzip
import hashlib
import io
import logging
import math
import pathlib
import re
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from crosr_jax import types
from crosr_jax.data import catalog


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
  for name, kind, array, sha256 in (
    (image_name, 'images', image, expected.image_sha256),
    (label_name, 'labels', label.astype('<i4'), expected.label_sha256),
  ):
    found = hashlib.sha256(array.tobytes()).hexdigest()
    if found != sha256:
      raise types.UserError(
        f'{name}: its {kind} are not the published ones (SHA-256 '
        f'{found[:12]}..., published {sha256[:12]}...){advice}'
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
_DRAWING = re.compile(r'(?:.*/)?([^/]+/character\d+)/[^/]+\.png')
# Published drawings have 522 bytes at most.
_LARGEST_DRAWING = 20_000


def omniglot(spec: catalog.DataSet, paths: dict[str, pathlib.Path]) -> Read:
  """The two zips of drawings; labels number the characters of both.

  Args and errors as `mnist`.
  """
  drawings = {
    part: _read_zip(path, spec.parts[part].num_samples)
    for part, path in zip(spec.parts, paths.values(), strict=True)
  }
  characters = sorted(
    {_character(n) for found in drawings.values() for n in found}
  )
  number = {name: i for i, name in enumerate(characters)}
  parts = {}
  for (part, found), path in zip(drawings.items(), paths.values(), strict=True):
    image = np.stack(
      [_decode(path, n, found[n], spec.image_shape) for n in sorted(found)]
    )
    label = np.array([number[_character(n)] for n in sorted(found)], np.int32)
    check(spec.parts[part], image, label, path, path)
    parts[part] = Raw(image, label)
  return Read(parts, tuple(characters))


def _character(name: str) -> str:
  match = _DRAWING.fullmatch(name)
  return match[1] if match else ''


def _read_zip(path: pathlib.Path, count: int) -> dict[str, bytes]:
  """The drawings in a zip by their names."""
  try:
    with zipfile.ZipFile(path) as archive:
      members = [m for m in archive.infolist() if _character(m.filename)]
      if len(members) != count:
        raise types.UserError(
          f'{path} holds {len(members)} drawings where {count} were published; '
          'is it another file under that name?'
        )
      if any(m.file_size > _LARGEST_DRAWING for m in members):
        raise types.UserError(f'{path} holds files too large for a drawing')
      return {m.filename: archive.read(m) for m in members}
  except (types.UserError, FileNotFoundError, PermissionError):
    raise
  except (
    # Whatever damage makes of lengths and offsets, and packings or passwords
    # that the publisher does not use.
    *(zipfile.BadZipFile, EOFError, zlib.error, OSError, ValueError),
    *(struct.error, NotImplementedError, RuntimeError),
  ):
    raise types.UserError(
      f'{path} is truncated or damaged; fetch it again'
    ) from None


def _decode(
  path: pathlib.Path, name: str, content: bytes, shape: tuple[int, int, int]
) -> np.ndarray:
  """One drawing, [H, W, 1] uint8, paper 255."""
  try:
    with Image.open(io.BytesIO(content), formats=['PNG']) as opened:
      if opened.size == (shape[1], shape[0]):
        return np.asarray(opened.convert('L'))[..., None]
  except MemoryError:
    raise
  except Exception as error:
    # Damage shows as any of a dozen errors of Pillow's.
    logging.debug('%s: %s', name, error)
  raise types.UserError(
    f'{path}: {name} is no drawing of {shape[1]} x {shape[0]} pixels'
  )


READERS = {'mnist': mnist, 'omniglot': omniglot}
