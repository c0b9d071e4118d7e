"""Where images come from. N samples, H x W pixels, C channels."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Source(NamedTuple):
  """A labelled data set as published."""

  image: np.ndarray  # [N, H, W, C] uint8
  label: np.ndarray  # [N] int32, position in class_names
  class_names: tuple[str, ...]


def digits() -> Source:
  """1,797 real handwritten digits, 8x8, that come with scikit-learn.

  UCI "Optical Recognition of Handwritten Digits", test part; its 17 grey
  levels 0..16 are spread over 0..255.
  """
  # Costs half a second, and only those who ask for digits should pay it.
  from sklearn import datasets

  raw = datasets.load_digits()
  image = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
  names = tuple(str(name) for name in raw.target_names)
  return Source(image, raw.target.astype(np.int32), names)


SOURCES: dict[str, Callable[[], Source]] = {'digits': digits}
