"""Measures cases in turns, so that what slows the machine slows all of them."""

import argparse
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Case = Callable[[], Any]


class Row(NamedTuple):
  """Seconds of one case."""

  name: str
  median: float
  least: float
  most: float
  ratio: float  # its median over that of the first case
  note: str = ''


def parser(about: str) -> argparse.ArgumentParser:
  """With the flags that every script here has."""
  made = argparse.ArgumentParser(
    description=about, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  made.add_argument(
    '--repeats',
    type=_positive,
    default=7,
    help='rounds; figures to be told need 7',
  )
  made.add_argument(
    '--output', type=_writable, default='', help='JSON file for the figures'
  )
  return made


def _positive(text: str) -> int:
  count = int(text)
  if count < 1:
    raise argparse.ArgumentTypeError(f'{text}: at least 1 round is needed')
  return count


def _writable(text: str) -> str:
  # Seen now and not when all is measured.
  if text and not os.access(pathlib.Path(text).absolute().parent, os.W_OK):
    raise argparse.ArgumentTypeError(f'{text} cannot be written')
  return text


def interleaved(
  cases: Mapping[str, Case], repeats: int, notes: Mapping[str, str] = {}
) -> list[Row]:
  """Runs every case once to warm up, then all of them in turns.

  Args:
    cases: each does one unit of work, and has done all of it when it returns.
    repeats: rounds.
    notes: what to say beside a case.
  """
  for case in cases.values():
    case()
  seconds: dict[str, list[float]] = {name: [] for name in cases}
  names = list(cases)
  for i in range(repeats):
    # Each is the first, the second, .. of a round in turn.
    for name in names[i % len(names) :] + names[: i % len(names)]:
      start = time.perf_counter()
      cases[name]()
      seconds[name].append(time.perf_counter() - start)
  first = float(np.median(seconds[names[0]]))
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
  pathlib.Path(path).write_text(json.dumps(found, indent=2) + '\n')
