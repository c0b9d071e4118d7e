"""Files that are whole or absent: written aside, then renamed."""

import contextlib
import fcntl
import functools
import glob
import hashlib
import json
import logging
import os
import pathlib
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

from crosr_jax import types

_ASIDE = '.aside'


@contextlib.contextmanager
def aside(path: str | os.PathLike) -> Iterator[IO[bytes]]:
  """A file to write what will be at `path`; what fails leaves what was there.

  The new file lies in the same folder until it is complete, so that the
  rename never crosses a file system. Missing folders are made. What writers of
  the same file left there when they were killed is removed. A link stays one,
  to a new file.

  Raises:
    UsageError: where a folder, device or pipe is there, which a rename would
      replace.
  """
  check_output(path)
  # Errors name it as it was asked for, but where it is a link.
  path = pathlib.Path(os.path.realpath(path) if os.path.islink(path) else path)
  path.parent.mkdir(parents=True, exist_ok=True)
  host = _host()
  for old in path.parent.glob(f'.{glob.escape(path.name)}.*.*.*{_ASIDE}'):
    _, writer, pid, _ = old.name.removesuffix(_ASIDE).rsplit('.', 3)
    if writer == host and pid.isdigit() and not _is_alive(int(pid)):
      old.unlink(missing_ok=True)
  # Errors are of the file that was wanted, not of the one aside.
  with _naming(path):
    handle, name = tempfile.mkstemp(
      dir=path.parent,
      prefix=f'.{path.name}.{host}.{os.getpid()}.',
      suffix=_ASIDE,
    )
    try:
      with os.fdopen(handle, 'wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.chmod(name, _mode(path))
      os.replace(name, path)
    except BaseException:
      pathlib.Path(name).unlink(missing_ok=True)
      raise


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
  """What fails names the path."""
  try:
    yield
  except OSError as error:
    if error.errno:
      raise OSError(error.errno, error.strerror, str(path)) from error
    raise


def check_output(path: str | os.PathLike) -> None:
  """Looks at what a file that is to be written would replace.

  Raises:
    UsageError: where it is a folder, a device or a pipe, or of a bucket.
  """
  if re.match(r'\w+:/', str(path)):
    raise types.UsageError(
      f'{path} cannot be written to from here; name a file of this machine, '
      'and copy that'
    )
  if os.path.isdir(path):
    raise types.UsageError(f'{path} is a folder; name a file')
  if os.path.exists(path) and not os.path.isfile(path):
    raise types.UsageError(f'{path} is no regular file; name another')


def user_path(path: str | os.PathLike) -> pathlib.Path:
  """A path as a user writes it, ~ meaning a home.

  Raises:
    UsageError: for the home of somebody who is not there.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise types.UsageError(f'{path}: {error}') from None


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
  """Puts `data` at `path`, by `aside`."""
  with aside(path) as file:
    file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
  """`write_bytes` of UTF-8; what it cannot hold is written as an escape.

  A folder's name that is no valid text reaches Python as lone surrogates;
  such a class name must not cost the whole file.
  """
  write_bytes(path, text.encode('utf-8', 'backslashreplace'))


@contextlib.contextmanager
def held(folder: str | os.PathLike, name: str = 'run.lock') -> Iterator[None]:
  """Keeps all others who ask out of a folder; ends with its holder, at latest.

  Args:
    folder: that is there.
    name: of the lock's file in it.

  Raises:
    UserError: where another process holds it; the line names that process.
  """
  with open(pathlib.Path(folder) / name, 'a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise types.UserError(
        f'{folder} is in use by {file.read() or "another process"}; wait until '
        'that ends, or take another folder'
      ) from None
    except OSError as error:
      warn_of_no_locks(folder, error)
    with _naming(pathlib.Path(file.name)):
      # Past the buffer, which a full disk would let fail once more at the end.
      os.truncate(file.fileno(), 0)
      os.write(file.fileno(), this_process().encode())
    yield


def warn_of_no_locks(folder: str | os.PathLike, error: OSError) -> None:
  """Where taking one failed: some network file systems have none."""
  logging.warning(
    '%s: this file system knows no locks (%s), so that nobody notices a second '
    'job in the same folder',
    *(folder, error.strerror),
  )


def real(path: str | os.PathLike) -> pathlib.Path:
  """Where a path as a user writes it leads; a link to itself stays as it is."""
  return pathlib.Path(os.path.realpath(user_path(path)))


def this_process() -> str:
  """As others are told of it."""
  return f'process {os.getpid()} on {socket.gethostname()}'


def digest(value: Mapping[str, Any]) -> str:
  """SHA-256 of what JSON holds."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_kept(folder: pathlib.Path, name: str = '') -> None:
  """Raises a UserError where a folder, or a file in it, is there no more."""
  if not (folder / name).exists():
    raise types.UserError(
      f'{folder} was deleted while the run was in it; run the same command '
      'again'
    )


def sweep(folder: str | os.PathLike) -> None:
  """Removes what writers that were killed left aside in a folder."""
  for path in pathlib.Path(folder).glob(f'.*{_ASIDE}'):
    path.unlink(missing_ok=True)


def _host() -> str:
  """Name of this machine without its domain, whose dots part file names."""
  return socket.gethostname().partition('.')[0]


def _is_alive(pid: int) -> bool:
  """Whether a process of this machine is there, whoever it belongs to."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True


def _mode(path: pathlib.Path) -> int:
  """Permissions of the old file, else what a plain open would give."""
  if path.exists():
    return path.stat().st_mode & 0o777
  return 0o666 & ~_mask()


@functools.cache
def _mask() -> int:
  """Asked for once: it can only be read by changing it, for all threads."""
  mask = os.umask(0)
  os.umask(mask)
  return mask
