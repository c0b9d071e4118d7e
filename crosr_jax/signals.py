"""SIGTERM, by which machines are taken away: save first, then end.

Where there is nothing to save a process ends at once: its files are whole or
absent at any moment, and waiting would gain nothing.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_came = False
_is_deferred = False


class Terminated(BaseException):
  """SIGTERM came, and what there was to save is saved."""

  exit_code = 128 + signal.SIGTERM


def listen() -> None:
  """From now on SIGTERM is answered; for the main thread of a command."""
  signal.signal(signal.SIGTERM, _answer)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
  """SIGTERM waits for the end of the block, which may ask whether it came.

  Without `listen` it does what it would anyway.

  Raises:
    Terminated: at the end of the block, where it came.
  """
  global _came, _is_deferred
  _came, _is_deferred = False, True
  try:
    yield lambda: _came
  finally:
    _is_deferred = False
  if _came:
    raise Terminated


def end() -> NoReturn:
  """Ends as SIGTERM ends a process: a shell sees exit code 143."""
  # Not by logging, whose locks the interrupted code may hold.
  line = b'terminated; the same command goes on where it was stopped\n'
  with contextlib.suppress(OSError):
    os.write(2, line)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  os.kill(os.getpid(), signal.SIGTERM)
  sys.exit(Terminated.exit_code)  # Never reached where signals are.


def _answer(*_: Any) -> None:
  global _came
  _came = True
  if not _is_deferred:
    end()
