"""Makers of unknown sets. N samples, H x W pixels, C channels, all uint8.

None of these is seen in training, nor by any threshold.
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def sample(image: np.ndarray, count: int, seed: int) -> np.ndarray:
  """`count` of the images by a permutation; all of a shorter set, once."""
  order = np.random.default_rng(seed).permutation(len(image))[:count]
  return image[np.sort(order)]


def noise(like: np.ndarray, seed: int) -> np.ndarray:
  """Uniform noise, every pixel on its own, in the shape of `like`."""
  generator = np.random.default_rng([seed, zlib.crc32(b'noise')])
  return generator.integers(0, 256, like.shape, np.uint8)


class Maker(NamedTuple):
  """How an unknown set is made of known test images."""

  make: Callable[[np.ndarray, int], np.ndarray]  # ([N, H, W, C], seed)
  recipe: str  # one line for the report


MAKERS = {'noise': Maker(noise, 'each pixel uniform in 0..255')}
