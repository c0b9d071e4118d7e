"""Images that occur more than once, within a set or in two of them."""

import collections
import hashlib
import itertools
from collections.abc import Iterable

import numpy as np


def count(parts: Iterable[tuple[str, np.ndarray]]) -> dict[str, int]:
  """How many images are repeated, by SHA-256 of their pixels.

  Args:
    parts: names and images [N, H, W, C] uint8.

  Returns:
    {'test': images of test that came before in test, 'train, test': images of
    test that are in train, ..}; only what is not 0.
  """
  seen = {
    name: collections.Counter(
      hashlib.sha256(x.tobytes()).digest() for x in image
    )
    for name, image in parts
  }
  found = {
    name: digests.total() - len(digests) for name, digests in seen.items()
  }
  for (first, a), (second, b) in itertools.combinations(seen.items(), 2):
    found[f'{first}, {second}'] = sum(n for x, n in b.items() if x in a)
  return {name: n for name, n in found.items() if n}


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
