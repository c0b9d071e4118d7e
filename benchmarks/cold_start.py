"""From nothing to an answer: whole processes, then calls of a loaded run.

  python benchmarks/cold_start.py --workdir=runs/digits

Imports of the package, `predict` on one image (with JAX's compilation cache
filled, and off), and the whole job of configs/digits.py, report and
pictures included. The limit is a process that imports JAX and adds two numbers.
Of a loaded run, answers to 1, 16 and 256 images, and what the net takes of one.
"""

import itertools
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import timing
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
  """Measures and prints."""
  parser = timing.parser(__doc__)
  parser.add_argument(
    '--workdir', type=pathlib.Path, required=True, help='a finished run'
  )
  parser.add_argument('--jobs', type=int, default=1, help='of configs/digits')
  arguments = parser.parse_args()
  from crosr_jax import saved, types

  workdir = arguments.workdir.resolve()
  try:
    saved.load_info(workdir)
  except types.UserError as error:
    parser.error(str(error))
  with tempfile.TemporaryDirectory() as folder:
    tables = _tables(workdir, pathlib.Path(folder), arguments)
  timing.write(arguments.output, tables)


def _tables(workdir, folder, arguments):
  import crosr_jax
  from crosr_jax import saved

  shape = saved.load_info(workdir)['image_shape']
  picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  image = folder / 'image.png'
  Image.fromarray(picture.squeeze()).save(image)
  predict = ['-m', 'crosr_jax.predict', f'--workdir={workdir}', str(image)]
  # By default JAX keeps only what took a second to compile.
  filled = {
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'filled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  cases = {
    'jax alone': _case(['-c', 'import jax; (jax.numpy.ones(2) + 1)[0].item()']),
    'import crosr_jax': _case(['-c', 'import crosr_jax']),
    'import numpy': _case(['-c', 'import numpy']),
    'predict, cache off': _case(predict, JAX_ENABLE_COMPILATION_CACHE='false'),
    'predict, cache filled': _case(predict, **filled),
  }
  tables = {'one process': timing.interleaved(cases, arguments.repeats)}
  timing.show('one process', tables['one process'], 1.0)
  model = crosr_jax.load(workdir)
  images = np.random.default_rng(0).integers(0, 256, (256, *shape), np.uint8)
  loaded = {
    f'{n} of 256 images': lambda n=n: model(images[:n]) for n in (1, 16, 256)
  }
  loaded['the net alone, 1 image'] = lambda: model.features(images[:1])
  tables['a loaded run'] = timing.interleaved(loaded, arguments.repeats)
  timing.show('a loaded run', tables['a loaded run'], 1e3)
  if arguments.jobs:
    jobs = itertools.count()

    def job():
      _run([
        *('-m', 'crosr_jax.main', '--config=configs/digits.py'),
        f'--workdir={folder / "digits"}{next(jobs)}',
      ])  # fmt: skip

    rows = timing.interleaved({'configs/digits.py': job}, arguments.jobs)
    tables['the whole job'] = rows
    timing.show('the whole job', rows, 1.0)
  return tables


def _case(arguments, **environment):
  return lambda: _run(arguments, **environment)


def _run(arguments, **environment):
  subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env={**os.environ, **environment},
    check=True,
    capture_output=True,
  )


if __name__ == '__main__':
  main()
