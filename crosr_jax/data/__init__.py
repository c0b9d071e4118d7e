"""Data of one benchmark: known parts, unknown sets, class names.

N samples. Known labels are 0..K-1, unknown ones -1; images are uint8 up to the
entry of the net.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from crosr_jax import types
from crosr_jax.data import sources, splits, unknowns


class Unknown(NamedTuple):
  """One set of unknown samples, of the test part only."""

  image: np.ndarray  # [N, H, W, C] uint8
  num_classes: int  # that it counts for in openness; a noise set is one
  recipe: str  # how it was made


class Benchmark(NamedTuple):
  """Everything a run reads; no unknown is in the four known parts."""

  class_names: tuple[str, ...]  # K
  train: splits.Labelled
  select: splits.Labelled  # held out: recipe, epoch, tail
  calibrate: splits.Labelled  # held out: thresholds
  test: splits.Labelled
  unknown: dict[str, Unknown]

  def parts(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, images, labels of the known parts, then of the unknown sets."""
    for name in ('train', 'select', 'calibrate', 'test'):
      yield name, *getattr(self, name)
    for name, found in self.unknown.items():
      label = np.full(len(found.image), types.UNKNOWN, np.int32)
      yield name, found.image, label


def load(
  *,
  seed: int,
  name: str,
  unknown_classes: Sequence[int],
  test_share: float,
  select_share: float,
  calibrate_share: float,
  made_unknowns: Sequence[str],
  max_unknown: int,
  evaluation_seed: int,
) -> Benchmark:
  """Loads a data set and splits it.

  Args:
    seed: of the held-out parts.
    name: of the data set, a name in sources.SOURCES.
    unknown_classes: classes of the data set that are kept back as unknown.
    test_share: share of the known samples that is tested on.
    select_share: share of the rest held out for choices.
    calibrate_share: share of the rest held out for thresholds.
    made_unknowns: names in unknowns.MAKERS.
    max_unknown: samples of an unknown set at most; a shorter one is used whole.
    evaluation_seed: of the known and unknown test samples, so that every
      training seed meets the same ones.

  Raises:
    ValueError: for a value that cannot be used; names the field.
  """
  types.check_choice('data.name', name, sources.SOURCES)
  for made in made_unknowns:
    types.check_choice('data.made_unknowns', made, unknowns.MAKERS)
  if not 0 <= evaluation_seed < 2**32:
    raise types.UsageError(
      f'data.evaluation_seed must be in 0..2^32 - 1, got {evaluation_seed}'
    )
  if max_unknown < 1:
    raise types.UsageError(
      f'data.max_unknown must be at least 1, got {max_unknown}'
    )
  source = sources.SOURCES[name]()
  known, unknown = splits.by_class(source, unknown_classes)
  test, rest = splits.hold_out(known, 'test_share', test_share, evaluation_seed)
  select, rest = splits.hold_out(rest, 'select_share', select_share, seed)
  calibrate, train = splits.hold_out(
    rest, 'calibrate_share', calibrate_share, seed
  )
  for field, share, part in (
    ('test_share', test_share, test),
    ('select_share', select_share, select),
    ('calibrate_share', calibrate_share, calibrate),
  ):
    if not len(part.label):
      raise types.UsageError(
        f'data.{field}={share} leaves that part without a sample; make it '
        'larger, or the parts drawn before it smaller'
      )
  sets = {}
  if len(unknown):
    image = unknowns.sample(unknown, max_unknown, evaluation_seed)
    recipe = f'{name} classes ' + ', '.join(
      source.class_names[k] for k in sorted(set(unknown_classes))
    )
    sets[f'{name}_unknown'] = Unknown(image, len(set(unknown_classes)), recipe)
  for made in made_unknowns:
    maker = unknowns.MAKERS[made]
    count = min(max_unknown, len(test.image))
    image = maker.make(test.image[:count], evaluation_seed)
    sets[made] = Unknown(image, 1, maker.recipe)
  names = splits.known_names(source, unknown_classes)
  return Benchmark(names, train, select, calibrate, test, sets)
