"""Folders of a bucket, gs://bucket/path, by way of a local copy.

A folder of a bucket is worked on in a folder of this machine that is brought to
the bucket's state first. Whoever has written something whole says so by `put`,
and it goes up: what makes files count (the digests of a checkpoint, model.json,
report.json, dataset_info.json) after them, so that a reader of the bucket takes
no half for whole; what was deleted here is then deleted there.

A file that was changed on one side alone since both were last the same is taken
from that side. So what could not go up goes up another time, and a copy that is
lost, as a whole or in part, is brought again.

A run belongs to who took it last, .holder.json in the bucket tells whom: a
machine that comes back from the dead, or a second job, must not mix its files
with another's. Who finds that it was taken over ends before it uploads.

Layout of the cache: <bucket>%2F<path>/, a folder for each; in that of a workdir
.bucket.json, the checksums of the bucket's files when they were last the same,
and .bucket.lock, which is held while a session writes there.
"""

import base64
import contextlib
import datetime
import hashlib
import json
import logging
import os
import pathlib
import re
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from crosr_jax import files, types

_SCHEME = 'gs://'
_NOTE = '.bucket.json'
_HOLDER = '.holder.json'
_LOCK = '.bucket.lock'
# All that an answer of a finished run needs; see saved.py.
_FINISHED = (
  'model.json', 'weights.npz', 'fitted.npz', 'features.npz', 'added.npz',
)  # fmt: skip
# Files that make others count, and when they go up; all others go first.
_RANK = {
  'dataset_info.json': 2, 'model.json': 2, 'report.json': 3, 'compare.json': 3,
}  # fmt: skip
_CHECKPOINT = re.compile(r'(.*/)?checkpoints/(\d+)/.*')
# Files up to this size are read at once: they may grow while they go up.
_SMALL = 8 * 2**20
# Seconds in which what fails is tried again: a command begins soon or not at
# all; a training waits for the network to come back.
_PATIENCE = {'read': 30.0, 'written': 300.0}
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0

_T = TypeVar('_T')


def workdir(url: str, cache: str = '', *, writes: bool = True) -> pathlib.Path:
  """The local copy of a run's folder, all of it; `put` brings it up to date.

  Args:
    url: gs://bucket/path.
    cache: folder of the copies; '' is $CROSR_JAX_CACHE or ~/.cache/crosr_jax.
    writes: whether this process works in it; else only the path is told, of
      several processes.

  Raises:
    UsageError: where the URL cannot be used, or the extra is not installed.
    UserError: where the bucket cannot be read.
  """
  mirror = _Mirror(url, cache, writes=writes)
  if writes:
    mirror.open()
  return mirror.local


def finished(
  folder: str | os.PathLike, cache: str = '', *, writes: bool = False
) -> pathlib.Path:
  """The same of the files alone that an answer of a finished run needs.

  Args:
    folder: as `workdir`; or one of this machine, ~ meaning a home.
    cache: as `workdir`.
    writes: whether what is written in it goes up.

  Raises:
    UsageError: for '', and as `workdir` and `files.user_path`.
    UserError: as `workdir`.
  """
  if not os.fspath(folder):
    raise types.UsageError(
      "'' is no folder of a run; the folder that you are in is '.'"
    )
  if not is_url(folder):
    return files.user_path(folder)
  mirror = _Mirror(str(folder), cache, writes=writes, names=_FINISHED)
  mirror.open()
  return mirror.local


def data(url: str, cache: str = '', *, writes: bool = False) -> pathlib.Path:
  """The local copy of a folder of data sets, each brought by `bring`.

  Raises:
    UserError: as `workdir`.
  """
  mirror = _Mirror(url, cache, writes=writes)
  mirror.scopes = []
  mirror.register()
  return mirror.local


def bring(folder: pathlib.Path, marker: str) -> None:
  """Makes a folder below `data` what the bucket has; elsewhere does nothing.

  Args:
    folder: of a data set.
    marker: its file that makes it count. Where the bucket has none there is
      nothing to bring.

  Raises:
    UserError: as `workdir`.
  """
  if mirror := _mirror_of(folder):
    mirror.bring(folder, marker)


def put(path: pathlib.Path) -> None:
  """Says that what is at a path is whole now.

  Where it lies in a copy, all that was changed there goes up; elsewhere this
  does nothing.

  Raises:
    UserError: where that cannot be; the copy is as it was.
  """
  if mirror := _mirror_of(path):
    mirror.put()


def take(path: pathlib.Path) -> None:
  """Says that this process works at a path until its session ends.

  Where it lies in a copy, whoever worked there elsewhere is told so when it
  puts next, and ends; elsewhere this does nothing.

  Raises:
    UserError: where the bucket cannot be read or written.
  """
  if mirror := _mirror_of(path):
    mirror.take()


def named(path: pathlib.Path) -> str:
  """A path as a user knows it: of the bucket, where it lies in a copy."""
  mirror = _mirror_of(path)
  if not mirror:
    return str(path)
  below = path.absolute().relative_to(mirror.local).as_posix()
  return mirror.url if below == '.' else f'{mirror.url}/{below}'


@contextlib.contextmanager
def session() -> Iterator[None]:
  """What was opened in it is up to date at its end, and then forgotten.

  That is so after a failure too, of which the log tells, but not where nothing
  was begun. A second failure is logged. While it lasts no session of another
  process writes in these copies.
  """
  with contextlib.ExitStack() as locks:
    _locks.append(locks)
    try:
      yield
      for mirror in list(_open.values()):
        mirror.put()
        mirror.tell()
    except Exception as error:
      if not isinstance(error, types.UsageError):
        for mirror in list(_open.values()):
          with _logged():
            mirror.put()
      raise
    finally:
      for mirror in _open.values():
        mirror.leave()
      for forgotten in (_open, _locks, _locked):
        forgotten.clear()


def is_url(path: str | os.PathLike) -> bool:
  """Whether it is meant to be a folder of a bucket."""
  return str(path).startswith(_SCHEME)


class _Mirror:
  """A folder of a bucket and its local copy."""

  def __init__(
    self, url: str, cache: str, *, writes: bool, names: tuple[str, ...] = ()
  ):
    name, self._prefix = _parse(url)
    self.url = f'{_SCHEME}{name}/{self._prefix}'.rstrip('/')
    key = urllib.parse.quote(self.url.removeprefix(_SCHEME), safe='')
    self.local = _cache(cache) / key
    # Folders that are looked after; '' is all.
    self.scopes = ['']
    self._writes, self._names = writes, names
    # Checksums by name: of what needs not go up, and, for the note, of what the
    # bucket had when both were last the same.
    self._base: dict[str, str] = {}
    self._noted: dict[str, str] = {}
    # Checksums of local files, by what tells that they were not touched.
    self._known: dict[str, tuple[tuple[int, int], str]] = {}
    self._failure: types.UserError | None = None
    # By which it is known there, once it has taken the folder.
    self._token = ''
    self._lock = threading.Lock()
    self._bucket = self._plain('read', lambda: _client().bucket(name))

  def open(self) -> None:
    """Brings the copy to the bucket's state, and registers it.

    Raises:
      UserError: where the bucket cannot be read, or the session of another
        process writes in the copy.
    """
    self.local.mkdir(parents=True, exist_ok=True)
    if self._writes and _locks and self.local not in _locked:
      _locks[0].enter_context(files.held(self.local, _LOCK))
      _locked.add(self.local)
    with contextlib.suppress(OSError, ValueError, TypeError):
      self._noted = dict(json.loads((self.local / _NOTE).read_text()))
    found = self._pull('', self._noted)
    # Of other files than these, those alone go up that are changed from now on.
    self._noted, self._base = (
      {n: x for n, x in others.items() if not self._is_wanted(n)} | found
      for others in (self._noted, self._here() if self._names else {})
    )
    self._note()
    self.register()

  def register(self) -> None:
    before = _open.get(self.local)
    if before and ('' in before.scopes) != ('' in self.scopes):
      raise types.UsageError(
        f'{self.url} cannot be both --workdir and --data_dir; take a folder '
        'for each'
      )
    _open[self.local] = self

  def bring(self, folder: pathlib.Path, marker: str) -> None:
    scope = folder.absolute().relative_to(self.local).as_posix() + '/'
    if scope not in self.scopes:
      self.scopes.append(scope)
    self._base |= self._pull(scope, {}, scope + marker)

  def take(self) -> None:
    if self._token or not self._writes:
      return
    if before := self._held_by():
      logging.warning(
        '%s was worked in by %s, which did not say that it ended; if it still '
        'runs, it will end',
        *(self.url, before['holder']),
      )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    self._token = uuid.uuid4().hex
    blob = self._bucket.blob(self._key(_HOLDER))
    holder = f'{files.this_process()} since {now}'
    told = json.dumps({'token': self._token, 'holder': holder})
    self._plain(
      'written',
      lambda: blob.upload_from_string(told, 'application/json', retry=None),
    )

  def leave(self) -> None:
    # Who finds it there tells the user no more than that.
    with contextlib.suppress(types.UserError):
      if self._token and self._held_by().get('token') == self._token:
        self._delete(_HOLDER)

  def _held_by(self) -> dict[str, str]:
    """Token and holder; {} where nobody has taken it, or who did has left."""
    from google.api_core import exceptions

    def read() -> bytes:
      with contextlib.suppress(exceptions.NotFound):
        blob = self._bucket.blob(self._key(_HOLDER))
        return blob.download_as_bytes(retry=None)
      return b'{}'

    told = self._plain('read', read)
    try:
      found = json.loads(told) or {}
      return {name: str(found[name]) for name in ('token', 'holder') if found}
    except (ValueError, TypeError, KeyError):
      return {'token': '', 'holder': 'somebody'}

  def _check_held(self) -> None:
    """Raises a UserError where another has taken the folder since."""
    if not self._token:
      return
    found = self._held_by()
    if found.get('token') != self._token:
      other = found.get('holder', 'a job that has ended since')
      raise types.UserError(
        f'{self.url} was taken over by {other}; this job ends, what it did not '
        f'upload is in {self.local}'
      )

  def put(self) -> None:
    """Uploads what was changed here, and deletes what was deleted here."""
    if not self._writes or self._failure:
      return
    with self._lock:
      here = self._here()
      changed = [n for n, x in here.items() if x != self._base.get(n)]
      gone = [n for n in self._base if n not in here]
      if not changed and not gone:
        return
      try:
        self._check_held()
        # From here on nothing counts that is not whole.
        stale = [n for n in changed if n in self._base and _rank(n)]
        for name in reversed(_in_order(stale)):
          self._delete(name)
        for name in _in_order(changed):
          if _rank(name):
            self._check_held()
          self._upload(name)
        for name in reversed(_in_order(gone)):
          self._delete(name)
      except types.UserError as error:
        self._failure = error
        raise
      self._note()

  def tell(self) -> None:
    if self._failure:
      # Where it came another failure may have been told in its place.
      raise self._failure
    if self._writes:
      logging.info('%s is up to date; its copy is %s', self.url, self.local)

  def _pull(
    self, scope: str, noted: dict[str, str], marker: str = ''
  ) -> dict[str, str]:
    """Downloads, or deletes here, what was changed there since it was noted.

    Returns:
      checksums of the files of the scope in the bucket, by name.
    """
    start = f'{self._prefix}/{scope}' if self._prefix else scope
    blobs = self._plain(
      'read', lambda: list(self._bucket.list_blobs(prefix=start, retry=None))
    )
    there = {
      blob.name.removeprefix(f'{self._prefix}/' if self._prefix else ''): blob
      for blob in blobs
    }
    there = {n: x for n, x in there.items() if self._is_wanted(n)}
    found = {name: _told(blob) for name, blob in there.items()}
    if marker and marker not in there:
      return found
    here = self._here()
    wanted = [
      name
      for name, told in found.items()
      if name not in here
      or (noted.get(name) != told and not self._is_as(name, told))
    ]
    both = [n for n in wanted if n in here and noted.get(n, here[n]) != here[n]]
    if both:
      logging.warning(
        '%d files were changed in %s and in its copy since, %s first: those of '
        'the bucket are taken',
        *(len(both), self.url, both[0]),
      )
    if wanted:
      size = sum(there[name].size or 0 for name in wanted)
      logging.info(
        'copying %d files, %.1f MB, from %s to %s',
        *(len(wanted), size / 1e6, self.url, self.local),
      )
    for name in _in_order(wanted):
      self._download(name, there[name])
    for name, told in noted.items():
      if name not in there and self._is_wanted(name) and here.get(name) == told:
        self._unlink(self.local / name)
    return {
      name: told if _is_md5(told) else self._checksum(name)
      for name, told in found.items()
    }

  def _download(self, name: str, blob: Any) -> None:
    def download() -> None:
      with files.aside(self.local / name) as file:
        blob.download_to_file(file, raw_download=True, retry=None)

    told = _told(blob)
    self._plain('read', download, of=name)
    if not self._is_as(name, told):
      raise types.UserError(
        f'{self.url}/{name} was changed while it was read; run the same '
        'command again'
      )

  def _unlink(self, path: pathlib.Path) -> None:
    """With the folders that hold nothing else."""
    path.unlink(missing_ok=True)
    while path.parent != self.local and not any(path.parent.iterdir()):
      path = path.parent
      path.rmdir()

  def _upload(self, name: str) -> None:
    path = self.local / name

    def upload() -> str:
      blob = self._bucket.blob(self._key(name))
      kind = 'application/octet-stream'
      if path.stat().st_size <= _SMALL:
        data = path.read_bytes()
        blob.upload_from_string(data, kind, checksum='md5', retry=None)
      else:
        blob.upload_from_filename(str(path), kind, checksum='md5', retry=None)
      return blob.md5_hash

    self._base[name] = self._noted[name] = self._plain('written', upload)

  def _delete(self, name: str) -> None:
    from google.api_core import exceptions

    def delete() -> None:
      # Who was first does not matter.
      with contextlib.suppress(exceptions.NotFound):
        self._bucket.delete_blob(self._key(name), retry=None)

    self._plain('written', delete)
    self._base.pop(name, None)
    self._noted.pop(name, None)

  def _key(self, name: str) -> str:
    return f'{self._prefix}/{name}' if self._prefix else name

  def _note(self) -> None:
    # Of a folder of data sets the bucket's state is taken as it is.
    if '' in self.scopes:
      files.write_text(self.local / _NOTE, json.dumps(self._noted, indent=1))

  def _here(self) -> dict[str, str]:
    """Checksums of the local files that count, by name."""
    pattern = '*' if self._names else '**/*'
    paths = {
      path.relative_to(self.local).as_posix(): path
      for scope in self.scopes
      for path in (self.local / scope).glob(pattern)
    }
    found = {}
    for name, path in sorted(paths.items()):
      if not _is_passing(name) and path.is_file():
        # A checkpoint counts when it has its digests.
        step = _CHECKPOINT.fullmatch(name)
        if not step or f'{step[1] or ""}digests/{step[2]}.json' in paths:
          found[name] = self._checksum(name)
    return found

  def _checksum(self, name: str) -> str:
    path = self.local / name
    stat = path.stat()
    told = (stat.st_size, stat.st_mtime_ns)
    if name not in self._known or self._known[name][0] != told:
      self._known[name] = (told, _md5(path))
    return self._known[name][1]

  def _is_as(self, name: str, told: str) -> bool:
    """Whether a local file is what the bucket tells of its own."""
    path = self.local / name
    return (self._checksum(name) if _is_md5(told) else _crc32c(path)) == told

  def _is_wanted(self, name: str) -> bool:
    return not _is_passing(name) and (not self._names or name in self._names)

  def _plain(self, what: str, call: Callable[[], _T], of: str = '') -> _T:
    """Calls, again where that may help; what fails is a UserError of a line."""
    import requests
    from google.api_core import exceptions
    from google.auth import exceptions as auth
    from google.cloud.storage import exceptions as of_storage
    from google.cloud.storage import retry

    trying = retry.DEFAULT_RETRY.with_timeout(_PATIENCE[what]).with_delay(
      _FIRST_WAIT, _LONGEST_WAIT, 2.0
    )

    def told(error: Exception) -> None:
      logging.warning(
        '%s cannot be %s yet (%s): trying again', self.url, what, _first(error)
      )

    try:
      return trying(call, on_error=told)()
    except auth.DefaultCredentialsError:
      reason = (
        'no credentials are there; run gcloud auth application-default login, '
        'or set GOOGLE_APPLICATION_CREDENTIALS'
      )
    except auth.GoogleAuthError as error:
      reason = f'the credentials are of no use ({_first(error)})'
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
      reason = f'no permission ({_first(error)})'
    except exceptions.NotFound:
      reason = f'there is no bucket {self.url.split("/")[2]}; make it first'
      if of:
        reason = f'{of} was changed meanwhile'
    except (
      exceptions.GoogleAPIError,
      of_storage.DataCorruption,
      of_storage.InvalidResponse,
      requests.RequestException,
    ) as error:
      reason = _first(error)
    advice = 'mend that and run the same command again'
    if what == 'written':
      advice = f'the copy in {self.local} is whole: {advice}, it goes on there'
    raise types.UserError(f'{self.url} cannot be {what}: {reason}; {advice}')


# By local folder.
_open: dict[pathlib.Path, _Mirror] = {}
# Of the session, if there is one, and the folders that it holds.
_locks: list[contextlib.ExitStack] = []
_locked: set[pathlib.Path] = set()


def _mirror_of(path: pathlib.Path) -> _Mirror | None:
  path = path.absolute()
  return next((m for x, m in _open.items() if path.is_relative_to(x)), None)


def _client() -> Any:
  from google.cloud import storage

  # No project is needed for what is done in a bucket.
  return storage.Client(project=None)


def _parse(url: str) -> tuple[str, str]:
  """Bucket and path of a URL.

  Raises:
    UsageError: where it has none, or what uses it is not installed.
  """
  name, _, path = url.removeprefix(_SCHEME).partition('/')
  path = path.strip('/')
  parts = path.split('/') if path else []
  if not re.fullmatch(r'[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]', name) or any(
    part in ('', '.', '..') for part in parts
  ):
    raise types.UsageError(
      f'{url} names no folder of a bucket, for example gs://bucket/runs/mnist'
    )
  try:
    import google.cloud.storage  # noqa: F401
  except ImportError:
    raise types.UsageError(
      f"{url} needs another package: pip install 'crosr_jax[gcs]'"
    ) from None
  return name, path


def _cache(folder: str) -> pathlib.Path:
  folder = folder or os.environ.get('CROSR_JAX_CACHE') or '~/.cache/crosr_jax'
  return files.user_path(folder).absolute()


def _rank(name: str) -> int:
  """0 of what counts by others, else the place of what makes it count."""
  path = pathlib.PurePosixPath(name)
  return 1 if path.parent.name == 'digests' else _RANK.get(path.name, 0)


def _in_order(names: Iterable[str]) -> list[str]:
  """As they go up or come; what is deleted goes the other way."""
  return sorted(names, key=lambda name: (_rank(name), name))


def _is_passing(name: str) -> bool:
  """Whether it is of one side alone: unfinished, hidden, damaged, no path."""
  parts = name.split('/')
  return any(
    part in ('', 'damaged')
    or part.startswith('.')
    or '.orbax-checkpoint-tmp' in part
    for part in parts
  )


def _told(blob: Any) -> str:
  """What the bucket tells of a file: MD5 but where it was put together there.

  CRC32C alone will not do: files of checkpoints end in their own, and so all
  have the same.
  """
  return blob.md5_hash or f'{blob.size}:{blob.crc32c}'


def _is_md5(told: str) -> bool:
  return ':' not in told


def _md5(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return _text(hashlib.file_digest(file, _new_md5).digest())


def _new_md5() -> Any:
  return hashlib.md5(usedforsecurity=False)


def _crc32c(path: pathlib.Path) -> str:
  """Size and CRC32C, as `_told`."""
  import google_crc32c

  checksum = google_crc32c.Checksum()
  with path.open('rb') as file:
    while chunk := file.read(2**20):
      checksum.update(chunk)
    return f'{file.tell()}:{_text(checksum.digest())}'


def _text(digest: bytes) -> str:
  return base64.b64encode(digest).decode()


def _first(error: BaseException) -> str:
  """The first line of the innermost of what client and network wrap."""
  inner = getattr(error, 'cause', None) or getattr(error, 'reason', None)
  inner = inner or (error.args[0] if error.args else None)
  if isinstance(inner, BaseException):
    return _first(inner)
  return str(error).partition('\n')[0] or type(error).__name__


@contextlib.contextmanager
def _logged() -> Iterator[None]:
  """Of two failures the user is told of the first."""
  try:
    yield
  except types.UserError as error:
    logging.error('%s', error)
