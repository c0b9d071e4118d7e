"""Data of one benchmark: known parts, unknown sets, class names.

N samples. Known labels are 0..K-1, unknown ones -1; images are uint8 up to the
entry of the net.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from crosr_jax import types
from crosr_jax.data import sources, unknowns
from crosr_jax.data import splits as splits_lib


class Benchmark(NamedTuple):
  """Everything a run reads; no unknown is in the four known parts."""

  class_names: tuple[str, ...]  # K
  train: splits_lib.Labelled
  select: splits_lib.Labelled  # held out: recipe, epoch, tail
  calibrate: splits_lib.Labelled  # held out: thresholds
  test: splits_lib.Labelled
  unknown: dict[str, unknowns.Unknown]

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
  data_dir: pathlib.Path,
  name: str,
  unknown_classes: Sequence[int],
  test_share: float,
  select_share: float,
  calibrate_share: float,
  evaluation_seed: int,
  unknown_sets: Sequence[str],
  max_unknown: int,
  splits: Sequence[Sequence[int]] = (),
  split: int = 0,
  others_unknown: bool = True,
  cifar100_splits: Sequence[Sequence[int]] = (),
) -> Benchmark:
  """Loads a data set and splits it.

  Args:
    seed: of the held-out parts.
    data_dir: where prepared data sets are.
    name: of the data set, a name in sources.SOURCES.
    unknown_classes: classes of the data set that are kept back as unknown.
    test_share: share of the known samples that is tested on; 0 where the
      publisher drew a test part, which is then used.
    select_share: share of the rest held out for choices.
    calibrate_share: share of the rest held out for thresholds.
    evaluation_seed: of the known and unknown test samples, so that every
      training seed meets the same ones.
    unknown_sets: 'set' or 'set:recipe', see unknowns.SETS.
    max_unknown: samples of an unknown set at most; a shorter one is used whole.
    splits: known classes of each class split, in place of unknown_classes.
    split: position in `splits` of the one that is loaded.
    others_unknown: whether classes that are not known come as unknown, and are
      not left out.
    cifar100_splits: classes of the unknown set cifar100 for each of `splits`;
      none means all of them.

  Raises:
    UserError: for a value that cannot be used, with the field, and for a data
      set that is not there.
  """
  types.check_choice('data.name', name, sources.SOURCES)
  unknowns.check(unknown_sets)
  if not 0 <= evaluation_seed < 2**32:
    raise types.UsageError(
      f'data.evaluation_seed must be in 0..2^32 - 1, got {evaluation_seed}'
    )
  if max_unknown < 1:
    raise types.UsageError(
      f'evaluation.max_unknown must be at least 1, got {max_unknown}'
    )
  check_splits(splits, split, unknown_classes, cifar100_splits)
  source = sources.SOURCES[name](data_dir)
  names = source.train.class_names
  if splits:
    known = splits_lib.pick('data.splits', splits, split)
    unknown_classes = splits_lib.others(known, len(names))
  rest, unknown = splits_lib.by_class(source.train, unknown_classes)
  if source.test is None:
    test, rest = splits_lib.hold_out(
      rest, 'test_share', test_share, evaluation_seed
    )
  elif test_share:
    raise types.UsageError(
      f'data.test_share={test_share}: {name} has a published test part, set it '
      'to 0'
    )
  else:
    test, unknown = splits_lib.by_class(source.test, unknown_classes)
  select, rest = splits_lib.hold_out(rest, 'select_share', select_share, seed)
  calibrate, train = splits_lib.hold_out(
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
  if len(unknown) and others_unknown:
    chosen = sorted(set(unknown_classes))
    sets[f'{name}_unknown'] = unknowns.Unknown(
      unknowns.sample(unknown, max_unknown, evaluation_seed),
      len(chosen),
      f'{name} classes {", ".join(names[k] for k in chosen)}',
    )
  only: dict[str, Sequence[int]] = {}
  if cifar100_splits:
    field = 'evaluation.cifar100_splits'
    only['cifar100'] = splits_lib.pick(field, cifar100_splits, split)
  sets |= unknowns.make(
    unknown_sets,
    test.image,
    max_unknown=max_unknown,
    seed=evaluation_seed,
    data_dir=data_dir,
    classes=only,
  )
  class_names = splits_lib.known_names(source.train, unknown_classes)
  return Benchmark(class_names, train, select, calibrate, test, sets)


def check_splits(
  splits: Sequence[Sequence[int]],
  split: int,
  unknown_classes: Sequence[int],
  cifar100_splits: Sequence[Sequence[int]],
) -> None:
  """Raises a UsageError for fields of class splits that do not go together."""
  if splits and unknown_classes:
    raise types.UsageError(
      f'data.splits and data.unknown_classes={tuple(unknown_classes)} both say '
      'which classes are known; set one of them to ()'
    )
  if split and not splits:
    raise types.UsageError(
      f'data.split={split}, but data.splits is empty; set data.splits, or '
      'data.split to 0'
    )
  if cifar100_splits and len(cifar100_splits) != len(splits):
    raise types.UsageError(
      f'evaluation.cifar100_splits has {len(cifar100_splits)} entries, '
      f'data.splits {len(splits)}; give one for each split, or () for all '
      'classes'
    )
  if splits:
    splits_lib.pick('data.splits', splits, split, least=2)
  if cifar100_splits:
    splits_lib.pick('evaluation.cifar100_splits', cifar100_splits, split)
