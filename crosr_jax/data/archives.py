"""Files in a zip, a tar or a folder, read one by one, never unpacked to disk.

Nothing is written under a name from an archive; links in one are no files; no
member is read that is larger than what was published.
"""

import functools
import gzip
import logging
import os
import pathlib
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from crosr_jax import types

# Twice what the largest tar that is read here holds, packed or not.
_LARGEST_TAR = 400_000_000
_LARGEST_HEADER = 8192
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Whatever damage makes of lengths and offsets, and packings or passwords that
# no publisher uses.
_DAMAGE = (
  *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError),
  *(ValueError, struct.error, NotImplementedError, RuntimeError),
)


class _Member(NamedTuple):
  """A file in an archive or a folder."""

  name: str
  size: int  # bytes, as the archive tells
  read: Callable[[], bytes]


def read(
  path: pathlib.Path,
  pattern: re.Pattern[str],
  *,
  count: int,
  what: str,
  largest: int,
) -> Iterator[tuple[str, bytes]]:
  """Key and content of each file whose whole name matches, in any order.

  Args:
    path: a .zip, .tar or .tar.gz; a folder, with what is in its folders; or a
      file, for those that lie beside it.
    pattern: of a name; its first group is the key.
    count: files that there must be.
    what: the files are, for an error.
    largest: bytes of a file at most.

  Raises:
    UserError: where it is damaged or holds something else; names the path.
  """
  seen: set[str] = set()
  try:
    for member in _members(path):
      if member.name.startswith('/') or '..' in member.name.split('/'):
        raise types.UserError(
          f'{path} holds {member.name!r}, which leads out of it; fetch it again'
        )
      match = pattern.fullmatch(member.name)
      if not match:
        continue
      key = match[1] if match[1].isprintable() else ascii(match[1])
      if key in seen:
        raise types.UserError(f'{path} holds {key} more than once')
      if len(seen) == count:
        raise types.UserError(
          f'{path} holds more than the {count} {what} that were published; is '
          'it another file under that name?'
        )
      if member.size > largest:
        raise types.UserError(
          f'{path}: {key} has {member.size} bytes, too large for one of the '
          f'{what}'
        )
      seen.add(key)
      yield key, member.read()
  except (types.UserError, FileNotFoundError, PermissionError):
    raise
  except _DAMAGE as error:
    logging.debug('%s: %s', path, error)
    raise types.UserError(
      f'{path} is truncated or damaged; fetch it again'
    ) from None
  if len(seen) < count:
    raise types.UserError(
      f'{path} holds {len(seen)} {what} where {count} were published; is it '
      'another file under that name?'
    )


def _members(path: pathlib.Path) -> Iterator[_Member]:
  if path.is_dir():
    return _in_folder(path, os.walk(path))
  if path.suffix == '.zip':
    return _in_zip(path)
  if path.name.endswith(('.tar', '.tar.gz')):
    return _in_tar(path)
  names = [p.name for p in path.parent.iterdir() if p.is_file()]
  return _in_folder(path.parent, iter([(str(path.parent), [], names)]))


def _in_folder(
  path: pathlib.Path, walk: Iterator[tuple[str, list[str], list[str]]]
) -> Iterator[_Member]:
  for folder, _, names in walk:
    for name in names:
      file = pathlib.Path(folder, name)
      # A pipe or a device may have no end, a link may lead nowhere.
      if not file.is_file():
        continue
      yield _Member(
        file.relative_to(path).as_posix(), file.stat().st_size, file.read_bytes
      )


def _in_zip(path: pathlib.Path) -> Iterator[_Member]:
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      # Above two bytes of its own a zip has what a file is to Unix.
      if stat.S_ISLNK(info.external_attr >> 16):
        continue
      if info.compress_type not in _PACKED:
        raise ValueError('packed as nobody published it')
      yield _Member(
        info.filename,
        info.file_size,
        functools.partial(_inflate, archive, info),
      )


def _inflate(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
  # Asked for all there is, it unpacks more than it was told, in memory.
  with archive.open(info) as file:
    return file.read(info.file_size)


def _in_tar(path: pathlib.Path) -> Iterator[_Member]:
  with path.open('rb') as file:
    is_gzip = file.read(2) == b'\x1f\x8b'
  with (
    gzip.open(path) if is_gzip else path.open('rb') as opened,
    # As a stream: what is skipped is never held, and nothing is sought.
    tarfile.open(  # type: ignore[call-overload]
      fileobj=_Limited(opened, _LARGEST_TAR), mode='r|', tarinfo=_Header
    ) as archive,
  ):
    for info in archive:
      if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
        yield _Member(
          info.name, info.size, functools.partial(_extract, archive, info)
        )
      # Else every header stays, of what may be a million files.
      archive.members = []


class _Header(tarfile.TarInfo):
  """A header that says no more than names and times.

  Long ones take older versions of Python minutes (CVE-2024-6232).
  """

  def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
    if self.size > _LARGEST_HEADER:
      raise tarfile.ReadError(f'a header of {self.size:,} bytes')
    return super()._proc_pax(archive)  # type: ignore[misc]


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
  opened = archive.extractfile(info)
  return opened.read() if opened else b''


class _Limited:
  """A file that ends in an error where it is larger than it can be."""

  def __init__(self, file: gzip.GzipFile | BinaryIO, limit: int):
    self._file, self._left = file, limit

  def read(self, size: int) -> bytes:
    """At most `size` bytes."""
    found = self._file.read(size)
    self._left -= len(found)
    if self._left < 0:
      raise ValueError('larger than what was published')
    return found
