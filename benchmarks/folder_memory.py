"""Peak memory of the whole job on a folder of images, for several sizes of it.

  python benchmarks/folder_memory.py --counts=20000,200000

Makes that many PNGs in two classes below a temporary folder (a few minutes and
some hundred MB), trains 50 steps on each folder, fits, scores and reports, and
prints the largest resident memory of the process, beside what the list of paths
takes. The job streams: what grows is that list, a digest of each image, and
features.
"""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile

import numpy as np
import timing
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
_SIDE = 16
_JOB = [
  *(sys.executable, '-m', 'crosr_jax.main', '--config=configs/folder.py'),
  f'--config.data.image_size={_SIDE}',
  '--config.train.num_steps=50',
  '--config.report.pictures=False',
]


def main() -> None:
  """Measures and prints."""
  parser = timing.parser(__doc__, rounds=False)
  parser.add_argument(
    '--counts',
    type=timing.numbers(),
    default='20000,200000',
    help='of files',
  )
  arguments = parser.parse_args()
  rows = []
  for count in arguments.counts:
    with tempfile.TemporaryDirectory() as folder:
      rows.append(_measure(count, pathlib.Path(folder)))
    print(
      '{files:>10,} files: peak {peak_mib:8.1f} MiB, of that paths '
      '{paths_mib:6.1f} MiB'.format(**rows[-1]),
      flush=True,
    )
  first, last = rows[0], rows[-1]
  without = [row['peak_mib'] - row['paths_mib'] for row in (first, last)]
  print(f'without the paths: {without[1] / without[0]:.3f} times as much')
  timing.save(arguments.output, rows)


def _measure(count: int, folder: pathlib.Path) -> dict[str, float]:
  paths = list(_make(count, folder / 'images'))
  read, write = os.pipe()
  # The job's own peak: a child that ends tells its parent's usage of children,
  # which is the largest of all of them, so each job has a parent of its own.
  pid = os.fork()
  if not pid:
    try:
      os.write(write, str(_peak(folder)).encode())
    finally:
      os._exit(0)
  os.close(write)
  os.waitpid(pid, 0)
  with open(read) as answer:
    peak = int(answer.read() or 0)
  if not peak:
    sys.exit('the job failed')
  return {
    'files': count,
    'peak_mib': peak / 1024,
    'paths_mib': (sys.getsizeof(paths) + sum(map(sys.getsizeof, paths)))
    / 2**20,
  }


def _peak(folder: pathlib.Path) -> int:
  """Of the job, in KiB; 0 where it fails."""
  done = subprocess.run(
    [
      *_JOB,
      f'--config.data.train_dir={folder / "images"}',
      f'--data_dir={folder / "data"}',
      f'--workdir={folder / "run"}',
    ],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  if done.returncode:
    sys.stderr.write(done.stderr.decode()[-2000:])
    return 0
  return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def _make(count: int, folder: pathlib.Path):
  """Two classes, bright above or below; yields the paths."""
  rng = np.random.default_rng(0)
  for k in range(2):
    (folder / f'class{k}').mkdir(parents=True)
  for i in range(count):
    k = i % 2
    image = rng.integers(0, 128, (_SIDE, _SIDE, 3), np.uint8)
    image[k * _SIDE // 2 : (k + 1) * _SIDE // 2] += 100
    path = folder / f'class{k}' / f'{i:07d}.png'
    Image.fromarray(image).save(path, compress_level=1)
    yield str(path)


if __name__ == '__main__':
  main()
