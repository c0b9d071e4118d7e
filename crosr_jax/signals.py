"""SIGTERM, by which machines are taken away, and Ctrl-C: save first, then end.

Where there is nothing to save a process ends at once: its files are whole or
absent at any moment, and waiting would gain nothing.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_came = 0  # The signal's number; 0 = none.
_is_deferred = False


class Terminated(BaseException):
  """SIGTERM came, and what there was to save is saved."""

  exit_code = 128 + signal.SIGTERM


def listen() -> None:
  """From now on both are answered; for the main thread of a command."""
  signal.signal(signal.SIGTERM, _answer)
  # A shell has commands in the background not hear it.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _answer)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
  """They wait for the end of the block, which may ask whether one came.

  Ctrl-C waits once: the second one ends the block where it is. Without `listen`
  both do what they would anyway.

  Raises:
    Terminated: at the end of the block, where SIGTERM came.
    KeyboardInterrupt: there, where it was Ctrl-C.
  """
  global _came, _is_deferred
  _came, _is_deferred = 0, True
  try:
    yield lambda: bool(_came)
  finally:
    _is_deferred = False
  if _came:
    raise reason()


def reason() -> BaseException:
  """What a block that is asked to end, here or elsewhere, ends with."""
  return KeyboardInterrupt() if _came == signal.SIGINT else Terminated()


def end() -> NoReturn:
  """Ends as SIGTERM ends a process: a shell sees exit code 143."""
  _say('terminated; the same command goes on where it was stopped')
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  os.kill(os.getpid(), signal.SIGTERM)
  sys.exit(Terminated.exit_code)  # Never reached where signals are.


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
    end()
