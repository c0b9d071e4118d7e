"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from tqdm import auto as tqdm_auto
from tqdm.contrib import logging as tqdm_logging

_SECONDS_BETWEEN_LINES = 5.0


class Show(Protocol):
  """Tells how far the work is."""

  def __call__(self, done: int, text: str = '') -> None:
    """`done` of the total, and what to say beside it."""


@contextlib.contextmanager
def bar(name: str, total: int, done: int = 0) -> Iterator[Show]:
  """A function to call with what is done; it draws at most as often as useful.

  Where the log is to tell warnings alone, there is no bar either.

  Args:
    name: of the work.
    total: how much there is, in any unit.
    done: how much is done already.
  """
  is_told = logging.getLogger().isEnabledFor(logging.INFO)
  if sys.stderr.isatty() and is_told:
    with (
      tqdm_logging.logging_redirect_tqdm(),
      tqdm_auto.tqdm(
        total=total,
        initial=done,
        desc=name,
        dynamic_ncols=True,
        bar_format='{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} '
        '{remaining} left{postfix}',
      ) as drawn,
    ):
      yield lambda now, text='': _draw(drawn, now, text)
  else:
    yield _Lines(name, total)


def _draw(drawn: tqdm_auto.tqdm, done: int, text: str) -> None:
  drawn.set_postfix_str(text, refresh=False)
  drawn.update(done - drawn.n)


class _Lines:
  """A line every few seconds, and one at the end, with the time left."""

  def __init__(self, name: str, total: int):
    self._name, self._total = name, total
    # Of the first call: what came before was setting up, and tells nothing.
    self._first: tuple[int, float] | None = None
    self._last = time.monotonic()

  def __call__(self, done: int, text: str = '') -> None:
    now = time.monotonic()
    if self._first is None:
      self._first, self._last = (done, now), now
    if now - self._last < _SECONDS_BETWEEN_LINES and done < self._total:
      return
    self._last = now
    steps, seconds = done - self._first[0], now - self._first[1]
    parts = [f'{self._name} {done}/{self._total}', *([text] if text else [])]
    if steps:
      left = seconds / steps * (self._total - done)
      parts.append(f'{duration(left)} left')
    logging.info('%s', ', '.join(parts))


def duration(seconds: float) -> str:
  """As a person says it: '42 s', '3 min 05 s', '2 h 10 min'."""
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60} min {whole % 60:02d} s'
  return f'{whole // 3600} h {whole % 3600 // 60:02d} min'
