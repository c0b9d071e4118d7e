"""Reads an exported model where there is no project: jax, numpy, flatbuffers.

python bare.py MODEL IMAGES.npy EXPECTED.npz, beside a copy of exported.py.
"""

import sys

import exported
import numpy as np

model = exported.load(sys.argv[1])
found = model(np.load(sys.argv[2]))
with np.load(sys.argv[3], allow_pickle=False) as expected:
  for name, array in zip(
    ('probability', 'unknown_score', 'prediction'), found, strict=True
  ):
    error = np.abs(array.astype(float) - expected[name]).max()
    print(f'{name}: largest difference {error:.2g}')
    assert error <= {'probability': 1e-6, 'prediction': 0}.get(name, 1e-3)
