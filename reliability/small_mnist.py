"""`crosr_jax.prepare` of a small MNIST, made of random numbers.

  python reliability/small_mnist.py RAW mnist --manual_dir=RAW --data_dir=DIR

Makes the publisher's four files in RAW where they are not there, then is the
command itself, to which the checksums of these files are the published ones.
"""

import gzip
import hashlib
import pathlib
import runpy
import struct
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from crosr_jax.data import catalog, prepared

# Large enough that writing takes a moment in which it can be killed.
_SAMPLES = {'train': 20_000, 'test': 4_000}


def make(folder: pathlib.Path) -> catalog.DataSet:
  """Writes the files that are not there; returns the facts of all of them."""
  spec, parts = catalog.DATA_SETS['mnist'], {}
  names = iter(spec.files)
  for i, (part, count) in enumerate(_SAMPLES.items()):
    generator = np.random.default_rng(i)
    image = generator.integers(0, 256, (count, 28, 28), np.uint8)
    label = generator.integers(0, 10, count).astype(np.uint8)
    for array in (image, label):
      path = folder / next(names)
      head = struct.pack(f'>{array.ndim}I', *array.shape)
      if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = bytes([0, 0, 8, array.ndim]) + head + array.tobytes()
        path.write_bytes(gzip.compress(data, 1))
    parts[part] = catalog.Part(count, _sha256(image), _sha256(label, '<i4'))
  return spec._replace(parts=parts, space=1)


def found(raw: pathlib.Path, data_dir: pathlib.Path) -> dict[str, str]:
  """SHA-256 of what is read from a prepared data set, by part.

  Record files themselves differ from one writing to the next.
  """
  catalog.DATA_SETS['mnist'] = make(raw)
  digests = {}
  for part in _SAMPLES:
    read, _ = prepared.read('mnist', part, data_dir)
    digests[part] = _sha256(read.image) + _sha256(read.label, '<i4')
  return digests


def _sha256(array: np.ndarray, dtype: str = 'u1') -> str:
  return hashlib.sha256(array.astype(dtype).tobytes()).hexdigest()


if __name__ == '__main__':
  if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
    sys.exit(__doc__)
  catalog.DATA_SETS['mnist'] = make(pathlib.Path(sys.argv.pop(1)))
  runpy.run_module('crosr_jax.prepare', run_name='__main__', alter_sys=True)
