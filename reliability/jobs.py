"""What the scripts here share: a small run as a process, and how it ended."""

import argparse
import ast
import hashlib
import io
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# The shortest that trains, checkpoints, fits every class and reports.
SMALL = (
  '--config=configs/digits.py',
  '--config.model.width=8',
  '--config.model.latent_width=8',
  '--config.train.num_steps=120',
  '--config.train.checkpoint_every=20',
  '--config.train.log_every=10',
  '--config.report.pictures=False',
)
LAST_STEP = 120


def parser(about: str | None, output: str) -> argparse.ArgumentParser:
  """With the flags that every script here has."""
  made = argparse.ArgumentParser(
    description=about, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  made.add_argument(
    '--scratch',
    required=True,
    type=_made_folder,
    help='folder for runs and compiled programs',
  )
  made.add_argument('--output', default=output, help='JSON file to write')
  return made


def positive(text: str) -> int:
  """Of a flag that counts."""
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
  return number


def _made_folder(text: str) -> pathlib.Path:
  path = pathlib.Path(text).resolve()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise argparse.ArgumentTypeError(
      f'{path} cannot be made: {error.strerror}'
    ) from None
  return path


def start(
  scratch: pathlib.Path,
  *command: str,
  prefix: Sequence[str] = (),
  cwd: pathlib.Path = ROOT,
  **environment: str,
) -> subprocess.Popen:
  """A Python process, `command` after the interpreter; keeps what it compiles.

  Its standard error is one pipe with its standard output.
  """
  return subprocess.Popen(
    [*prefix, sys.executable, *command],
    cwd=cwd,
    env={
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'JAX_COMPILATION_CACHE_DIR': str(scratch / 'cache'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      **environment,
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def job(workdir: pathlib.Path, *more: str) -> list[str]:
  """Arguments of the main job."""
  return ['-m', 'crosr_jax.main', *SMALL, f'--workdir={workdir}', *more]


def small_config() -> Any:
  """The config of the same job, for this process."""
  from configs import digits

  config = digits.get_config()
  for flag in SMALL[1:]:
    name, value = flag.removeprefix('--config.').split('=')
    config.update_from_flattened_dict({name: ast.literal_eval(value)})
  return config


def finish(process: subprocess.Popen) -> tuple[int, str]:
  """Waits; exit code as a shell shows it, and all that was said."""
  told, _ = process.communicate()
  return code(process), told


def code(process: subprocess.Popen) -> int:
  """Exit code of a finished process, as a shell shows it."""
  found = process.returncode
  return found if found >= 0 else 128 - found


def result(workdir: pathlib.Path) -> dict[str, Any]:
  """All that two runs must share to the last bit; times left out."""
  found: dict[str, Any] = {
    name: digest(workdir / name)
    for name in ('weights.npz', 'fitted.npz', 'features.npz', 'config.json')
  }
  report = json.loads((workdir / 'report.json').read_text())
  for name in ('seconds', 'images_per_second'):
    del report['train'][name]
  # Of the times too.
  del report['sha256']
  log = workdir / 'checkpoints' / str(LAST_STEP) / 'log' / 'metadata'
  found['history'] = json.loads(log.read_text())['history']
  return found | {'report': report}


def differing(workdir: pathlib.Path, whole: Mapping[str, Any]) -> list[str]:
  """What is not as in `whole`, of `result`."""
  try:
    found = result(workdir)
  except (OSError, ValueError, KeyError) as error:
    return [f'{type(error).__name__}: {error}']
  return [name for name in whole if found[name] != whole[name]]


def half_written(folder: pathlib.Path) -> list[str]:
  """Files under their own name that cannot be read to their end.

  Files aside are not read by anything; a checkpoint counts from the moment its
  digests are there.
  """
  faults = []
  for path in sorted(folder.rglob('*')):
    name = str(path.relative_to(folder))
    if not path.is_file() or path.name.startswith('.'):
      continue
    data = path.read_bytes()
    try:
      if path.suffix == '.npz':
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
          _ = [arrays[key] for key in arrays.files]
      elif path.suffix == '.json' and path.parts[-2] != 'state':
        digests = json.loads(data)
        if path.parent.name == 'digests':
          steps = path.parent.parent / 'checkpoints' / path.stem
          # Pruned after the checkpoint, so that it may outlive it.
          if steps.exists():
            faults += [
              f'{path.stem}/{file}'
              for file, expected in digests.items()
              if digest(steps / file) != expected
            ]
      elif path.suffix == '.html' and b'</html>' not in data:
        raise ValueError('no end')
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
      faults.append(f'{name}: {error}')
  return faults


def leftovers(folder: pathlib.Path) -> list[str]:
  """Files aside and unfinished checkpoints that nobody took away."""
  return [
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if path.suffix == '.aside'
    or 'checkpoint-tmp' in path.name
    or 'incomplete' in path.name
  ]


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of every file below a folder that is not hidden."""
  return {
    str(path.relative_to(folder)): digest(path)
    for path in sorted(folder.rglob('*'))
    if path.is_file() and not path.name.startswith('.')
  }


def error_line(told: str) -> str:
  """The line by which a command says why it ended."""
  lines = [line for line in told.splitlines() if line]
  said = [line for line in lines if line.startswith(('error:', 'terminated'))]
  return (said or lines or [''])[-1]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Markdown."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def write(path: str, found: Mapping[str, Any]) -> None:
  """As JSON, with the machine and the day."""
  about = {
    'cores': os.cpu_count(),
    'python': platform.python_version(),
    'load': os.getloadavg(),
    'day': time.strftime('%Y-%m-%d'),
  }
  text = json.dumps({'machine': about, **found}, indent=1)
  pathlib.Path(path).write_text(text + '\n')
