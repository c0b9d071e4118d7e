"""Data of one benchmark: known parts, unknown sets, class names.

N samples. Known labels are 0..K-1, unknown ones -1; images are uint8 up to the
entry of the net.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from crosr_jax import files, types
from crosr_jax.data import folder, sources, unknowns
from crosr_jax.data import splits as splits_lib

# Sides of images: three blocks halve them, and a batch must fit into memory.
_SMALLEST, _USUAL_SIDE, _LARGEST = 8, 64, 1024
# What the fields of a folder are where there is none.
_OF_FOLDER = {
  'train_dir': '', 'test_dir': '', 'num_classes': 0,
  'image_size': _USUAL_SIDE, 'grey': False,
}  # fmt: skip


class Benchmark(NamedTuple):
  """Everything a run reads; no unknown is in the four known parts."""

  class_names: tuple[str, ...]  # K
  train: splits_lib.Labelled
  select: splits_lib.Labelled  # held out: recipe, epoch, tail
  calibrate: splits_lib.Labelled  # held out: thresholds
  test: splits_lib.Labelled
  unknown: dict[str, unknowns.Unknown]
  skipped: tuple[folder.Skipped, ...] = ()  # files that are no images

  def parts(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, images, labels of the known parts, then of the unknown sets."""
    for name in types.PARTS:
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
  train_dir: str = '',
  test_dir: str = '',
  num_classes: int = 0,
  image_size: int = _USUAL_SIDE,
  grey: bool = False,
  unknown_dirs: Sequence[str] = (),
) -> Benchmark:
  """Loads a data set and splits it.

  Args:
    seed: of the held-out parts.
    data_dir: where prepared data sets are.
    name: of the data set, a name in sources.SOURCES, or 'folder'.
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
    train_dir: of the data set 'folder', see folder.source.
    test_dir: of its test part, with the same classes; '' = there is none.
    num_classes: that it must have; 0 = any.
    image_size: side that its images are brought to.
    grey: whether they are made grey.
    unknown_dirs: folders whose images come as unknown, a set each.

  Raises:
    UserError: for a value that cannot be used, with the field, and for a data
      set that is not there.
  """
  types.check_choice('data.name', name, (*sources.SOURCES, 'folder'))
  check_unknown(unknown_sets, max_unknown, evaluation_seed)
  check_splits(splits, split, unknown_classes, cifar100_splits)
  source, skipped = _source(
    name, data_dir, train_dir, test_dir, num_classes, image_size, grey
  )
  names = source.train.class_names
  if splits:
    known = splits_lib.pick('data.splits', splits, split)
    unknown_classes = splits_lib.others(known, len(names))
  class_names = splits_lib.known_names(source.train, unknown_classes)
  if source.test is None:
    _, unknown = splits_lib.by_class(source.train, unknown_classes)
    # Of all classes: whichever are known, the same samples of a class are in
    # the test part.
    parts = splits_lib.hold_out(
      splits_lib.Labelled(source.train.image, source.train.label),
      *('test_share', test_share, evaluation_seed),
    )
    test, rest = (
      splits_lib.by_class(
        source.train._replace(image=part.image, label=part.label),
        unknown_classes,
      )[0]
      for part in parts
    )
    _check_left('test_share', test_share, rest, class_names)
  elif test_share:
    told = 'data.test_dir is the' if test_dir else f'{name} has a published'
    raise types.UsageError(
      f'data.test_share={test_share}: {told} test part, set it to 0'
    )
  else:
    rest, _ = splits_lib.by_class(source.train, unknown_classes)
    test, unknown = splits_lib.by_class(source.test, unknown_classes)
  select, rest = splits_lib.hold_out(rest, 'select_share', select_share, seed)
  _check_left('select_share', select_share, rest, class_names)
  calibrate, train = splits_lib.hold_out(
    rest, 'calibrate_share', calibrate_share, seed
  )
  _check_left('calibrate_share', calibrate_share, train, class_names)
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
  skipped += _add_folders(
    sets,
    unknown_dirs,
    'evaluation.unknown_dirs',
    test.image.shape[1:],
    max_unknown=max_unknown,
    seed=evaluation_seed,
    data_dir=data_dir,
  )
  # Folders of unknowns may share files.
  skipped = list(dict.fromkeys(skipped))
  return Benchmark(
    class_names, train, select, calibrate, test, sets, tuple(skipped)
  )


def _check_left(
  field: str, share: float, rest: splits_lib.Labelled, names: Sequence[str]
) -> None:
  """Raises a UsageError where a part that was drawn left a class empty."""
  count = np.bincount(rest.label, minlength=len(names))
  for name, there in zip(names, count, strict=True):
    if not there:
      raise types.UsageError(
        f'data.{field}={share} leaves no sample of class {name} to train on; '
        'make it smaller'
      )


def _source(
  name: str,
  data_dir: pathlib.Path,
  train_dir: str,
  test_dir: str,
  num_classes: int,
  image_size: int,
  grey: bool,
) -> tuple[sources.Published, list[folder.Skipped]]:
  """A data set, and which of its files are left out."""
  if name != 'folder':
    _check_no_folder(
      name,
      train_dir=train_dir,
      test_dir=test_dir,
      num_classes=num_classes,
      image_size=image_size,
      grey=grey,
    )
    return sources.SOURCES[name](data_dir), []
  shape = _folder_shape(image_size, grey)
  train, skipped = folder.source(
    train_dir, 'data.train_dir', shape, data_dir, num_classes=num_classes
  )
  if not test_dir:
    return sources.Published(train), skipped
  test, more = folder.source(
    test_dir, 'data.test_dir', shape, data_dir, fewest=1
  )
  if differ := set(train.class_names) ^ set(test.class_names):
    raise types.UsageError(
      f'data.test_dir={test_dir} and data.train_dir={train_dir} must have the '
      f'same classes: {min(differ)} is in one of them alone'
    )
  return sources.Published(train, test), skipped + more


def _check_no_folder(name: str, **of_folder: Any) -> None:
  """Raises where another data set is given a field of 'folder'."""
  for field, value in of_folder.items():
    if value != _OF_FOLDER[field]:
      raise types.UsageError(
        f"data.{field}={value} is for data.name='folder', this is {name}"
      )


def _folder_shape(image_size: int, grey: bool) -> tuple[int, int, int]:
  if not _SMALLEST <= image_size <= _LARGEST:
    raise types.UsageError(
      f'data.image_size must be in {_SMALLEST}..{_LARGEST}, got {image_size}'
    )
  return image_size, image_size, 1 if grey else 3


def expected(
  *,
  name: str,
  unknown_classes: Sequence[int],
  splits: Sequence[Sequence[int]] = (),
  split: int = 0,
  train_dir: str = '',
  test_dir: str = '',
  num_classes: int = 0,
  image_size: int = _USUAL_SIDE,
  grey: bool = False,
  **others: Any,
) -> sources.Shape:
  """What `load` would give, without an image: shape and known classes.

  Args are those of `load`; others, which choose samples, are not looked at.

  Raises:
    UserError: for a value that cannot be used, with the field.
  """
  del others
  types.check_choice('data.name', name, (*sources.SOURCES, 'folder'))
  if name != 'folder':
    _check_no_folder(
      name,
      train_dir=train_dir,
      test_dir=test_dir,
      num_classes=num_classes,
      image_size=image_size,
      grey=grey,
    )
    if name not in sources.SHAPES:
      raise types.UsageError(
        f'data.name={name}: nothing is known of it without its images; give '
        'its shape and number of classes a row in sources.SHAPES'
      )
    shape, count = sources.SHAPES[name]
  else:
    if not num_classes and not train_dir:
      raise types.UsageError(
        'data.num_classes is needed, or data.train_dir, whose sub-folders are '
        'the classes'
      )
    shape, count = _folder_shape(image_size, grey), num_classes
    if train_dir:
      count = len(folder.class_names(train_dir, 'data.train_dir', num_classes))
  known = _known(count, unknown_classes, splits, split)
  return sources.Shape(shape, len(known))


def _known(
  count: int,
  unknown_classes: Sequence[int],
  splits: Sequence[Sequence[int]],
  split: int,
) -> tuple[int, ...]:
  """Known ones of so many classes, in ascending order."""
  if splits:
    known = splits_lib.pick('data.splits', splits, split)
    unknown_classes = splits_lib.others(known, count)
  return splits_lib.others(unknown_classes, count, 'data.unknown_classes')


def unknown_sets(
  asked: Sequence[str],
  shape: tuple[int, int, int],
  num_known: int,
  *,
  max_unknown: int,
  seed: int,
  data_dir: pathlib.Path,
  classes: Mapping[str, Sequence[int]],
) -> tuple[dict[str, unknowns.Unknown], list[folder.Skipped]]:
  """Unknown sets for known samples that are not at hand.

  Args:
    asked: each a folder of images, or an unknown set, see unknowns.SETS.
    shape: H, W, C of the known images.
    num_known: how many there are.
    max_unknown: samples of a set at most; a shorter one is used whole.
    seed: of what is drawn.
    data_dir: where prepared data sets are.
    classes: see unknowns.make; of sets that are not asked for nothing.

  Returns:
    The sets by their names in reports, and the files that were left out.

  Raises:
    UserError: for what is neither, or cannot be used.
  """
  folders = [x for x in asked if files.user_path(x).is_dir()]
  entries = [x for x in asked if x not in folders]
  for entry in entries:
    name = entry.partition(':')[0]
    if name not in unknowns.SETS:
      raise types.UsageError(
        f'--unknown={entry} is no folder, and no unknown set; there are '
        f'{", ".join(unknowns.SETS)}'
      )
    if name in unknowns.OF_KNOWN:
      raise types.UsageError(
        f'--unknown={entry} is made of known test images, which a run does not '
        'keep; run the main job again in its workdir, with '
        f'--config.evaluation.unknown_sets="({entry!r},)"'
      )
  sets = unknowns.make(
    entries,
    np.zeros((min(num_known, max_unknown), *shape), np.uint8),
    max_unknown=max_unknown,
    seed=seed,
    data_dir=data_dir,
    classes={
      name: positions
      for name, positions in classes.items()
      if name in (entry.partition(':')[0] for entry in entries)
    },
    field='--unknown',
  )
  skipped = _add_folders(
    sets,
    folders,
    '--unknown',
    shape,
    max_unknown=max_unknown,
    seed=seed,
    data_dir=data_dir,
  )
  return sets, skipped


def check_apart(
  field: str,
  folder: str,
  known: Mapping[str, str],
  *,
  classes: Sequence[str] | None = None,
) -> None:
  """Raises a UsageError where a folder of unknowns lies in one of known images.

  Or the other way round. Of copies, and of links within, the report tells.

  Args:
    field: that names it, for errors.
    folder: of unknown images.
    known: by field, folders of known images; '' = none.
    classes: sub-folders of these that are known classes; None = all.
  """
  root = files.real(folder)
  for name, other in known.items():
    there = files.real(other)
    inner = [there]
    if classes is not None:
      inner = [files.real(f'{other}/{x}') for x in classes]
    is_within = any(root.is_relative_to(x) for x in inner)
    if other and (is_within or there.is_relative_to(root)):
      raise types.UsageError(
        f'{field}: {folder} lies in {name}={other}, or that in it; known '
        'images cannot come as unknown: name another folder'
      )


def known_folders(
  *,
  unknown_classes: Sequence[int],
  train_dir: str = '',
  splits: Sequence[Sequence[int]] = (),
  split: int = 0,
  num_classes: int = 0,
  **others: Any,
) -> list[str] | None:
  """Sub-folders of a data set 'folder' that are known; None = all of them.

  Args and errors are those of `load`; others are not looked at.
  """
  del others
  if not (train_dir and (unknown_classes or splits)):
    return None
  names = folder.class_names(train_dir, 'data.train_dir', num_classes)
  known = _known(len(names), unknown_classes, splits, split)
  return [names[k] for k in known]


def _add_folders(
  sets: dict[str, unknowns.Unknown],
  folders: Sequence[str],
  field: str,
  shape: tuple[int, int, int],
  *,
  max_unknown: int,
  seed: int,
  data_dir: pathlib.Path,
) -> list[folder.Skipped]:
  """Adds a set for each folder; returns the files that are left out."""
  skipped = []
  for path in map(str, folders):
    image, num_classes, left_out = folder.unknown(path, field, shape, data_dir)
    base = files.user_path(path).absolute().name
    key = re.sub(r'\W+', '_', base).strip('_').lower() or 'others'
    if key in types.PARTS:
      # Known samples have that name.
      key += '_unknown'
    if key in sets:
      raise types.UsageError(
        f'{field}: {path} would be called {key}, and so is another unknown '
        'set; rename the folder'
      )
    sets[key] = unknowns.Unknown(
      unknowns.sample(image, max_unknown, seed),
      num_classes,
      f'images of the folder {base}',
    )
    skipped += left_out
  return skipped


def check_unknown(
  unknown_sets: Sequence[str], max_unknown: int, evaluation_seed: int
) -> None:
  """Raises a UsageError for what no unknown sample can be drawn by."""
  unknowns.check(unknown_sets)
  if not 0 <= evaluation_seed < 2**32:
    raise types.UsageError(
      f'data.evaluation_seed must be in 0..2^32 - 1, got {evaluation_seed}'
    )
  if max_unknown < 1:
    raise types.UsageError(
      f'evaluation.max_unknown must be at least 1, got {max_unknown}'
    )


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
