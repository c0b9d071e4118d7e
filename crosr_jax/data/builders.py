"""TFDS builders of our own, which need no TensorFlow to write or to read.

Importing this module loads TFDS, a second's work: only prepared.py does.
"""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from crosr_jax import progress
from crosr_jax.data import catalog, raw

# Bytes of pixels in a split at most: TFDS holds a split in memory until it is
# written, and asks for TensorFlow where it has more than 1 GB.
_LARGEST_SPLIT = 500_000_000


# TFDS's own builders of the same names stay what `tfds.builder` finds.
class _Builder(
  tfds.core.GeneratorBasedBuilder,
  skip_registration=True,  # type: ignore[call-arg]
):
  """Writes what raw.py reads, in that order, as array_record."""

  def __init__(
    self,
    spec: catalog.DataSet,
    data_dir: pathlib.Path,
    paths: dict[str, pathlib.Path] | None = None,
  ):
    """A builder.

    Args:
      spec: of the data set.
      data_dir: where our prepared data sets are.
      paths: of the publisher's files by name; needed to write, not to read.
    """
    self._spec, self._paths = spec, paths or {}
    super().__init__(data_dir=str(data_dir), file_format='array_record')

  def _image(self) -> tfds.features.FeatureConnector:
    # Raw pixels of small images are read three times as fast as PNG.
    return tfds.features.Tensor(
      shape=self._spec.image_shape, dtype=np.uint8, encoding='bytes'
    )

  def _encodable(self, image: np.ndarray) -> Any:
    """What the image feature takes for [H, W, C]."""
    return image

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self._spec.title,
      homepage=self._spec.homepage,
      citation=self._spec.citation,
      license=self._spec.licence,
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict() if self._unknown_digests() else None,
      features=tfds.features.FeaturesDict(
        {'image': self._image(), 'label': tfds.features.ClassLabel()}
      ),
      supervised_keys=('image', 'label'),
    )

  def _unknown_digests(self) -> list[str]:
    """Parts whose published SHA-256 is not known: ours is written beside."""
    return [n for n, p in self._spec.parts.items() if not p.image_sha256]

  def expected(self, part: str) -> catalog.Part:
    """What a part must hold when it is read."""
    found = self._spec.parts[part]
    if part not in self._unknown_digests():
      return found
    image, label = self.info.metadata[part]
    return found._replace(image_sha256=image, label_sha256=label)

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    del dl_manager  # Its downloads have no time limit.
    found = raw.READERS[self.name](self._spec, self._paths)
    self.info.features['label'].names = list(found.class_names)
    for part in self._unknown_digests():
      what = found.parts[part]
      self.info.metadata[part] = [
        raw.digest(what.image),
        raw.digest(what.label.astype('<i4')),
      ]
    return {
      split: self._generate_examples(split, found.parts[part], rows)
      for part in found.parts
      for split, rows in self.splits(part).items()
    }

  def splits(self, part: str) -> dict[str, range]:
    """TFDS's names for a part, or for the pieces of a large one, and its rows.

    In order.
    """
    total = self._spec.parts[part].num_samples
    rows = _LARGEST_SPLIT // math.prod(self._spec.image_shape)
    if total <= rows:
      return {part: range(total)}
    return {
      f'{part}_{start // rows}': range(start, min(start + rows, total))
      for start in range(0, total, rows)
    }

  def _generate_examples(
    self, split: str, what: raw.Raw, rows: range
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    with progress.bar(f'writing {self.name} {split}', len(rows)) as show:
      for i, row in enumerate(rows):
        image = self._encodable(what.image[row])
        yield i, {'image': image, 'label': int(what.label[row])}
        show(i + 1)


class Mnist(_Builder, skip_registration=True):  # type: ignore[call-arg]
  """60,000 train and 10,000 test digits."""

  VERSION = tfds.core.Version(catalog.DATA_SETS['mnist'].version)


class Omniglot(_Builder, skip_registration=True):  # type: ignore[call-arg]
  """19,280 background and 13,180 evaluation drawings."""

  VERSION = tfds.core.Version(catalog.DATA_SETS['omniglot'].version)

  def _image(self) -> tfds.features.FeatureConnector:
    return tfds.features.Image(
      shape=self._spec.image_shape, encoding_format='png'
    )

  def _encodable(self, image: np.ndarray) -> Any:
    return Image.fromarray(image[..., 0])


class Cifar10(_Builder, skip_registration=True):  # type: ignore[call-arg]
  """50,000 train and 10,000 test images of 10 classes."""

  VERSION = tfds.core.Version(catalog.DATA_SETS['cifar10'].version)


class Cifar100(_Builder, skip_registration=True):  # type: ignore[call-arg]
  """10,000 test images of 100 classes, in the order of their SHA-256."""

  VERSION = tfds.core.Version(catalog.DATA_SETS['cifar100'].version)


class Odin(_Builder, skip_registration=True):  # type: ignore[call-arg]
  """Four times 10,000 outliers, in the order of their SHA-256."""

  VERSION = tfds.core.Version(catalog.DATA_SETS['odin'].version)


class Svhn(_Builder, skip_registration=True):  # type: ignore[call-arg]
  """73,257 train and 26,032 test digits."""

  VERSION = tfds.core.Version(catalog.DATA_SETS['svhn'].version)


class Tinyimagenet(_Builder, skip_registration=True):  # type: ignore[call-arg]
  """100,000 train and 10,000 validation images of 200 classes."""

  VERSION = tfds.core.Version(catalog.DATA_SETS['tinyimagenet'].version)


BUILDERS = {
  'mnist': Mnist,
  'omniglot': Omniglot,
  'cifar10': Cifar10,
  'cifar100': Cifar100,
  'odin': Odin,
  'svhn': Svhn,
  'tinyimagenet': Tinyimagenet,
}
