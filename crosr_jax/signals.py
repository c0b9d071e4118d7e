"""What asks a command to end: save first, then end.

SIGTERM, by which machines are taken away, Ctrl-C, and SIGHUP, which comes when
the terminal is closed or its connection lost.

Where there is nothing to save a process ends at once: its files are whole or
absent at any moment, and waiting would gain nothing. It ends by the signal, so
that a loop of a shell ends with it.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_WORDS: dict[int, str] = {
  signal.SIGTERM: 'terminated',
  signal.SIGINT: 'interrupted',
  signal.SIGHUP: 'the terminal was closed',
}

_resumes = False  # Whether the same command goes on from what was saved.
_came = 0  # The signal's number; 0 = none.
_is_deferred = False


class Terminated(BaseException):
  """A signal came, here or elsewhere, and what there was to save is saved."""

  def __init__(self) -> None:
    super().__init__()
    self.number = _came or signal.SIGTERM
    self.exit_code = 128 + self.number


def listen(*, resumes: bool = False) -> None:
  """From now on they are answered; for the main thread of a command.

  Args:
    resumes: whether the command, started again, goes on from what it saved.
  """
  global _resumes
  _resumes = resumes
  signal.signal(signal.SIGTERM, _answer)
  # `nohup` has commands outlive their terminal.
  if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
    signal.signal(signal.SIGHUP, _answer)
  # A shell has commands in the background not hear it.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _answer)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
  """They wait for the end of the block, which may ask whether one came.

  Ctrl-C waits once: the second one ends the block where it is. Without `listen`
  they do what they would anyway.

  Raises:
    Terminated: at the end of the block, where one came.
    KeyboardInterrupt: where Ctrl-C came after one.
  """
  global _came, _is_deferred
  _came, _is_deferred = 0, True
  try:
    yield lambda: bool(_came)
  finally:
    _is_deferred = False
  check()


def check() -> None:
  """Of the last block of `deferred`, which may have ended with another error.

  Raises:
    Terminated: where a signal came in it.
  """
  if _came:
    raise Terminated


def end(number: int) -> NoReturn:
  """Ends as this signal ends a process: a shell sees 143, 130 or 129."""
  _say(told(number))
  signal.signal(number, signal.SIG_DFL)
  os.kill(os.getpid(), number)
  sys.exit(128 + number)  # Never reached where signals are.


def told(number: int) -> str:
  """What a command says last."""
  more = '; the same command goes on from what was saved' if _resumes else ''
  return _WORDS[number] + more


def _say(line: str) -> None:
  # Not by logging, whose locks the interrupted code may hold.
  with contextlib.suppress(OSError):
    os.write(2, f'{line}\n'.encode())


def _answer(number: int, _: Any) -> None:
  global _came
  if number == signal.SIGINT:
    if not _is_deferred or _came:
      raise KeyboardInterrupt
    _say('\nsaving a checkpoint first; Ctrl-C once more ends at once')
  _came = number
  if not _is_deferred:
    end(number)
