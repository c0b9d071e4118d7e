"""Files that are whole or absent, and folders that one process works in."""

import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
import tempfile

import pytest

from crosr_jax import files, types

_KILLED = """
import os, sys
from crosr_jax import files
with files.aside(sys.argv[1]) as file:
  file.write(b'half')
  file.flush()
  os.kill(os.getpid(), 9)
"""


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path, environment):
  path = tmp_path / 'a[1].b.json'
  files.write_text(path, 'before')
  command = [sys.executable, '-c', _KILLED, str(path)]
  process = subprocess.run(command, env=environment)
  assert process.returncode == -9
  (left,) = tmp_path.glob('.*.aside')
  assert left.read_bytes() == b'half' and path.read_text() == 'before'
  # Those of a process that lives, of another machine, and of another file.
  host = files._host()
  others = [
    f'.a[1].b.json.{host}.{os.getpid()}.abc.aside',
    '.a[1].b.json.elsewhere.1.abc.aside',
    f'.b.json.{host}.999999999.abc.aside',
    '.a[1].b.json.aside',
  ]
  for name in others:
    (tmp_path / name).touch()
  files.write_text(path, 'after')
  assert path.read_text() == 'after'
  assert {p.name for p in tmp_path.iterdir()} == {path.name, *others}
  files.sweep(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_no_file_is_not_replaced(tmp_path):
  pipe, target, link = (tmp_path / x for x in ('pipe', 'target', 'link'))
  os.mkfifo(pipe)
  for path, reason in (
    (pipe, 'no regular file; name another'),
    (os.devnull, 'no regular file; name another'),
    (tmp_path, 'a folder; name a file'),
  ):
    with pytest.raises(types.UsageError, match=f'{path} is {reason}'):
      files.write_text(path, 'x')
  assert pipe.is_fifo()
  # What a link means is written, one that leads nowhere yet too.
  link.symlink_to(target.name)
  for text in ('new', 'newer'):
    files.write_text(link, text)
    assert link.is_symlink() and target.read_text() == text
  assert sorted(x.name for x in tmp_path.iterdir()) == [
    'link',
    'pipe',
    'target',
  ]


def test_a_folder_is_held_by_one(tmp_path):
  with files.held(tmp_path):
    holder = f'process {os.getpid()} on {socket.gethostname()}'
    with (
      pytest.raises(types.UserError, match=f'is in use by {holder}; wait'),
      files.held(tmp_path),
    ):
      pass
    # Who is refused takes nothing from who is not.
    with pytest.raises(types.UserError, match=holder), files.held(tmp_path):
      pass
  with files.held(tmp_path):
    pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with caplog.at_level(logging.WARNING), files.held(tmp_path):
    pass
  assert f'{tmp_path}: this file system knows no locks' in caplog.text


def test_what_cannot_be_written_is_named_as_it_was_asked_for(
  tmp_path, monkeypatch
):
  path = tmp_path / 'a.json'

  def fail(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / '.x'))

  monkeypatch.setattr(tempfile, 'mkstemp', fail)
  with pytest.raises(OSError) as found:
    files.write_text(path, 'x')
  assert found.value.errno == errno.EROFS and found.value.filename == str(path)
  # A lock on a device that takes nothing.
  (tmp_path / 'run.lock').symlink_to('/dev/full')
  with pytest.raises(OSError) as found, files.held(tmp_path):
    pass
  assert found.value.filename == str(tmp_path / 'run.lock')
