"""Images that occur more than once, within a set or in two of them."""

import hashlib
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from crosr_jax.data import images


def count(parts: Iterable[tuple[str, Any]]) -> dict[str, int]:
  """How many images are repeated, by SHA-256 of their pixels.

  Args:
    parts: names and images [N, H, W, C] uint8.

  Returns:
    {'test': images of test that came before in test, 'train, test': images of
    test that are in train, ..}; only what is not 0.
  """
  seen = {name: _digests(image) for name, image in parts}
  found = {name: len(x) - len(np.unique(x)) for name, x in seen.items()}
  for (first, a), (second, b) in itertools.combinations(seen.items(), 2):
    found[f'{first}, {second}'] = int(np.isin(b, a).sum())
  return {name: n for name, n in found.items() if n}


def _digests(image: Any) -> np.ndarray:
  """SHA-256 of the pixels of each, [N] of 32 bytes."""
  if images.is_lazy(image):
    digest = image.digest
  else:
    joined = b''.join(hashlib.sha256(x.tobytes()).digest() for x in image)
    digest = np.frombuffer(joined, np.uint8).reshape(-1, 32)
  return np.ascontiguousarray(digest).view('V32').ravel()


def told(found: dict[str, int]) -> str:
  """A sentence for the report on what `count` found."""
  if not found:
    return (
      'No image occurs twice, within a part or in two of them (by SHA-256 of '
      'the pixels).'
    )
  listed = '; '.join(f'{name}: {n}' for name, n in found.items())
  return (
    'Images that occur more than once, within a part or in two of them (by '
    f'SHA-256 of the pixels): {listed}.'
  )
