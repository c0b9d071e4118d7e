"""Known and unknown classes, and held-out parts. N samples, K known classes."""

import hashlib
import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from crosr_jax import types
from crosr_jax.data import sources


class Labelled(NamedTuple):
  """Known samples."""

  image: types.Array  # [N, H, W, C] uint8, in memory or images.ImageFiles
  label: np.ndarray  # [N] int32, 0..K-1


def pick(
  field: str, splits: Sequence[Sequence[int]], split: int, *, least: int = 1
) -> tuple[int, ...]:
  """Classes of one of several class splits, in ascending order.

  Args:
    field: of the config that has the splits, for errors.
    splits: classes of each.
    split: position in `splits`.
    least: classes that it must have.

  Raises:
    UsageError: for a position outside, and for what is no tuple of different
      classes, or too short.
  """
  if split not in range(len(splits)):
    raise types.UsageError(
      f'data.split={split}: {field} has {len(splits)}, choose from '
      f'0..{len(splits) - 1}'
    )
  classes = splits[split]
  if not isinstance(classes, (tuple, list)) or not classes:
    raise types.UsageError(
      f'{field}: split {split} is {classes!r}, no tuple of classes; a single '
      'split is written ((0, 1),)'
    )
  for k in classes:
    if not isinstance(k, int) or classes.count(k) > 1:
      told = 'is there twice' if isinstance(k, int) else 'is no class'
      raise types.UsageError(f'{field}: split {split}: {k!r} {told}')
  if len(classes) < least:
    raise types.UsageError(
      f'{field}: split {split} has {len(classes)} classes, at least {least} '
      'are needed'
    )
  return tuple(sorted(classes))


def others(
  known: Sequence[int], num_classes: int, field: str = 'data.splits'
) -> tuple[int, ...]:
  """Classes that are not among these, which a field of the config names.

  Raises:
    UsageError: for a class that does not exist.
  """
  for k in known:
    if k not in range(num_classes):
      raise types.UsageError(
        f'{field}: {k} is no class, choose from 0..{num_classes - 1}'
      )
  return tuple(k for k in range(num_classes) if k not in known)


def distinct(
  num_classes: int, num_known: int, count: int, seed: int
) -> tuple[tuple[int, ...], ...]:
  """`count` different sets of `num_known` classes, each in ascending order.

  Draw i takes the classes k whose SHA-256 of the text '<seed>,<i>,<k>' comes
  first; a set that was drawn before is passed over. So anyone can draw them
  again, with any library, and a smaller set of the same draw lies within a
  larger one.

  Raises:
    UsageError: where there are fewer such sets.
  """
  possible = math.comb(num_classes, num_known)
  if count > possible:
    raise types.UsageError(
      f'{count} different sets of {num_known} of {num_classes} classes were '
      f'asked for, there are {possible}'
    )
  found: dict[tuple[int, ...], None] = {}
  draw = 0
  while len(found) < count:
    order = sorted(
      range(num_classes),
      key=lambda k: hashlib.sha256(f'{seed},{draw},{k}'.encode()).digest(),
    )
    found[tuple(sorted(order[:num_known]))] = None
    draw += 1
  return tuple(found)


def by_class(
  source: sources.Source, unknown_classes: Sequence[int]
) -> tuple[Labelled, np.ndarray]:
  """Known samples re-indexed to 0..K-1, and the images of the others.

  Args:
    source: a labelled data set.
    unknown_classes: positions in its class_names.

  Raises:
    UsageError: for a class that does not exist, or fewer than 2 known ones.
  """
  num_classes = len(source.class_names)
  unknown = set(unknown_classes)
  for k in unknown:
    if not isinstance(k, int) or k not in range(num_classes):
      raise types.UsageError(
        f'data.unknown_classes: {k!r} is no class, choose from '
        f'0..{num_classes - 1}'
      )
  known = [k for k in range(num_classes) if k not in unknown]
  if len(known) < 2:
    raise types.UsageError(
      f'data.unknown_classes leaves {len(known)} of {num_classes} classes '
      'known, at least 2 are needed; keep fewer back'
    )
  new_label = np.full(num_classes, types.UNKNOWN, np.int32)
  new_label[known] = np.arange(len(known), dtype=np.int32)
  label = new_label[source.label]
  is_known = label != types.UNKNOWN
  return (
    take(Labelled(source.image, label), is_known),
    source.image.take(np.flatnonzero(~is_known), axis=0),
  )


def known_names(
  source: sources.Source, unknown_classes: Sequence[int]
) -> tuple[str, ...]:
  """Names of the known classes, in the order of their new labels."""
  return tuple(
    name
    for k, name in enumerate(source.class_names)
    if k not in set(unknown_classes)
  )


def hold_out(
  samples: Labelled, field: str, share: float, seed: int
) -> tuple[Labelled, Labelled]:
  """A stratified part and what remains, both in the original order.

  Args:
    samples: to split.
    field: of the config, for errors.
    share: of each class that goes to the part, rounded, in [0, 1).
    seed: of the draw.

  Raises:
    UsageError: for a share outside [0, 1).
  """
  if not 0 <= share < 1:
    raise types.UsageError(f'data.{field} must be in [0, 1), got {share}')
  # By field: the parts are drawn from streams of their own.
  generator = np.random.default_rng([seed, zlib.crc32(field.encode())])
  taken = np.zeros(len(samples.label), bool)
  for k in np.unique(samples.label):
    member = np.flatnonzero(samples.label == k)
    count = round(share * len(member))
    taken[generator.permutation(member)[:count]] = True
  return take(samples, taken), take(samples, ~taken)


def take(samples: Labelled, chosen: np.ndarray) -> Labelled:
  """The samples where `chosen` [N] bool is set; files are not read."""
  rows = np.flatnonzero(chosen)
  return Labelled(samples.image.take(rows, axis=0), samples.label[rows])
