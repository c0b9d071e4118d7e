"""Measures cases in turns, so that what slows the machine slows all of them."""

import argparse
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from crosr_jax import files

Case = Callable[[], Any]
_SETTLE, _WARM = 0.3, 0.1  # seconds


class Row(NamedTuple):
  """Seconds of one case."""

  name: str
  median: float
  least: float
  most: float
  ratio: float  # its median over that of the first case
  note: str = ''


def parser(about: str, *, rounds: bool = True) -> argparse.ArgumentParser:
  """With the flags that every script here has, or that has `rounds`."""
  made = argparse.ArgumentParser(
    description=about, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  if rounds:
    made.add_argument(
      '--repeats',
      type=_positive,
      default=7,
      help='rounds; figures to be told need 7',
    )
  made.add_argument(
    '--output', type=writable, default='', help='JSON file for the figures'
  )
  return made


def _positive(text: str) -> int:
  count = int(text)
  if count < 1:
    raise argparse.ArgumentTypeError(f'{text}: at least 1 round is needed')
  return count


def writable(text: str) -> str:
  """A file that can be written: seen now and not when all is measured."""
  path = pathlib.Path(text).absolute()
  if text and (path.is_dir() or not os.access(path.parent, os.W_OK)):
    raise argparse.ArgumentTypeError(f'{text} cannot be written')
  return text


def numbers(of: int = 1) -> Callable[[str], list[int]]:
  """Whole numbers above 0 with commas between, multiples of one."""

  def read(text: str) -> list[int]:
    try:
      found = [int(x) for x in text.split(',')]
    except ValueError:
      found = [0]
    if any(x < 1 or x % of for x in found):
      more = f', multiples of {of:,}' if of > 1 else ''
      raise argparse.ArgumentTypeError(
        f'{text!r}: numbers above 0 with commas between are needed{more}'
      )
    return found

  return read


def names(known: Iterable[str]) -> Callable[[str], list[str]]:
  """Some of these, with commas between."""

  def read(text: str) -> list[str]:
    found = text.split(',')
    if odd := [x for x in found if x not in known]:
      raise argparse.ArgumentTypeError(
        f'{odd[0]!r} is none of {", ".join(known)}'
      )
    return found

  return read


def interleaved(
  cases: Mapping[str, Case], repeats: int, notes: Mapping[str, str] = {}
) -> list[Row]:
  """Runs every case once to warm up, then all of them in turns.

  What takes less than a second is done for a tenth of one before, and then as
  often for each time: threads of the case before may wait with a core for what
  does not come, and have filled the caches.

  Args:
    cases: each does one unit of work, and has done all of it when it returns.
    repeats: rounds.
    notes: what to say beside a case.
  """
  is_short = {}
  for name, case in cases.items():
    start = time.perf_counter()
    case()
    if time.perf_counter() - start > 1.0:
      # It may have been the compiler.
      start = time.perf_counter()
      case()
    is_short[name] = time.perf_counter() - start < 1.0
  seconds: dict[str, list[float]] = {name: [] for name in cases}
  names = list(cases)
  for i in range(repeats):
    # Each is the first, the second, .. of a round in turn.
    for name in names[i % len(names) :] + names[: i % len(names)]:
      time.sleep(_SETTLE)
      count = _calls(cases[name]) if is_short[name] else 1
      start = time.perf_counter()
      for _ in range(count):
        cases[name]()
      seconds[name].append((time.perf_counter() - start) / count)
  return rows(seconds, notes)


def _calls(case: Case) -> int:
  """How often it is done in `_WARM` seconds."""
  end, count = time.perf_counter() + _WARM, 0
  while time.perf_counter() < end:
    case()
    count += 1
  return count


def rows(
  seconds: Mapping[str, list[float]], notes: Mapping[str, str]
) -> list[Row]:
  """Of what all rounds of each case took."""
  first = float(np.median(next(iter(seconds.values()))))
  return [
    Row(
      name,
      float(np.median(taken)),
      min(taken),
      max(taken),
      float(np.median(taken)) / first,
      notes.get(name, ''),
    )
    for name, taken in seconds.items()
  ]


def show(title: str, rows: list[Row], unit: float = 1e3) -> None:
  """Prints a table; `unit` is the parts of a second that it counts in."""
  name = {1.0: 's', 1e3: 'ms', 1e6: 'us'}[unit]
  wide = max(24, *(len(row.name) for row in rows))
  print(f'\n{title}')
  print(f'{"":{wide}} {"median":>9} {"least":>9} {"most":>9}  x first  {name}')
  for row in rows:
    print(
      f'{row.name:{wide}} {row.median * unit:9.3f} {row.least * unit:9.3f} '
      f'{row.most * unit:9.3f} {row.ratio:8.2f}  {row.note}'.rstrip(),
      flush=True,
    )


def machine() -> dict[str, Any]:
  """What the figures were measured on."""
  import jax

  found = {
    'cores': os.cpu_count(),
    'processor': platform.processor() or platform.machine(),
    'python': platform.python_version(),
    'jax': jax.__version__,
    'device': jax.devices()[0].device_kind,
    'load': os.getloadavg()[0],
  }
  try:
    import torch
  except ImportError:
    return found
  return found | {
    'torch': torch.__version__,
    'threads': torch.get_num_threads(),
  }


def write(path: str, tables: Mapping[str, list[Row]], **more: Any) -> None:
  """All tables as JSON, with the machine; nothing where `path` is empty."""
  if not path:
    return
  found = {
    'machine': machine(),
    'tables': {
      title: [row._asdict() for row in rows] for title, rows in tables.items()
    },
    **more,
  }
  save(path, found)


def save(path: str, found: Any) -> None:
  """As JSON, aside, then renamed; nothing where `path` is empty."""
  if path:
    text = json.dumps(found, indent=2) + '\n'
    files.write_text(pathlib.Path(path), text)
