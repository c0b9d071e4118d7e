"""Where images come from. N samples, H x W pixels, C channels."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from crosr_jax import types
from crosr_jax.data import catalog, prepared


class Source(NamedTuple):
  """A labelled data set as published, or one part of it."""

  image: types.Array  # [N, H, W, C] uint8, in memory or images.ImageFiles
  label: np.ndarray  # [N] int32, position in class_names
  class_names: tuple[str, ...]


class Published(NamedTuple):
  """A data set, and its test part where the publisher drew one."""

  train: Source  # all there is, where there is no test part
  test: Source | None = None


class Shape(NamedTuple):
  """What is known of a data set before it is there."""

  image: tuple[int, int, int]  # H, W, C
  num_classes: int


def digits(data_dir: pathlib.Path) -> Published:
  """1,797 real handwritten digits, 8x8, that come with scikit-learn.

  UCI "Optical Recognition of Handwritten Digits", test part; its 17 grey
  levels 0..16 are spread over 0..255.
  """
  del data_dir  # They are in the package.
  # Costs half a second, and only those who ask for digits should pay it.
  from sklearn import datasets

  raw = datasets.load_digits()
  image = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
  names = tuple(str(name) for name in raw.target_names)
  return Published(Source(image, raw.target.astype(np.int32), names))


def mnist(data_dir: pathlib.Path) -> Published:
  """60,000 + 10,000 handwritten digits, 28x28 (LeCun et al. 1998)."""
  return Published(
    prepared_part('mnist', 'train', data_dir),
    prepared_part('mnist', 'test', data_dir),
  )


def cifar10(data_dir: pathlib.Path) -> Published:
  """50,000 + 10,000 colour images, 32x32 (Krizhevsky 2009)."""
  return Published(
    prepared_part('cifar10', 'train', data_dir),
    prepared_part('cifar10', 'test', data_dir),
  )


def svhn(data_dir: pathlib.Path) -> Published:
  """73,257 + 26,032 house number digits, 32x32 (Netzer et al. 2011)."""
  return Published(
    prepared_part('svhn', 'train', data_dir),
    prepared_part('svhn', 'test', data_dir),
  )


def tinyimagenet(data_dir: pathlib.Path) -> Published:
  """100,000 + 10,000 colour images of 200 classes, 64x64 (Le and Yang 2015).

  The labels of its test part were never published: as everywhere, its part for
  validation takes that place.
  """
  return Published(
    prepared_part('tinyimagenet', 'train', data_dir),
    prepared_part('tinyimagenet', 'val', data_dir),
  )


def prepared_part(name: str, part: str, data_dir: pathlib.Path) -> Source:
  """A part of a prepared data set; see prepared.read."""
  found, class_names = prepared.read(name, part, data_dir)
  return Source(found.image, found.label, class_names)


SOURCES: dict[str, Callable[[pathlib.Path], Published]] = {
  'digits': digits,
  'mnist': mnist,
  'cifar10': cifar10,
  'svhn': svhn,
  'tinyimagenet': tinyimagenet,
}

SHAPES: dict[str, Shape] = {
  'digits': Shape((8, 8, 1), 10),
  **{
    name: Shape(catalog.DATA_SETS[name].image_shape, num_classes)
    for name, num_classes in (
      ('mnist', 10),
      ('cifar10', 10),
      ('svhn', 10),
      ('tinyimagenet', 200),
    )
  },
}
