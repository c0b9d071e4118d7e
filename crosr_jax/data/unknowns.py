"""Unknown sets. N samples, H x W pixels, C channels, all uint8.

None of these is seen in training, nor by any threshold. A set comes in one or
more recipes, since public codes disagree; the first is the default. An entry of
`evaluation.unknown_sets` is 'set' or 'set:recipe'.
"""

import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from crosr_jax import types
from crosr_jax.data import catalog, images, sources

Shape = tuple[int, ...]
_ALL: Mapping[str, Sequence[int]] = {}
_FIELD = 'evaluation.unknown_sets'


class Unknown(NamedTuple):
  """One set of unknown samples, of the test part only."""

  image: types.Array  # [N, H, W, C] uint8, in memory or images.ImageFiles
  num_classes: int  # that it counts for in openness; a noise set is one
  recipe: str  # how it was made
  classes: tuple[int, ...] = ()  # that it is restricted to; none = all


class Recipe(NamedTuple):
  """One way to make a set."""

  # (images to start from [N, H', W', C'], shape (H, W, C) of the known ones,
  # generator) -> [N, H, W, C]
  make: Callable[[np.ndarray, Shape, np.random.Generator], np.ndarray]
  text: str  # one line for the report


class Set(NamedTuple):
  """An unknown set."""

  recipes: dict[str, Recipe]  # the first is the default
  num_classes: int
  # Data set and part that it starts from; None = the known test samples.
  start: tuple[str, str] | None = None


def check(entries: Sequence[str], field: str = _FIELD) -> None:
  """Raises a UsageError for an entry of `field` that cannot be used."""
  keys = [_key(*_split(entry, field)) for entry in entries]
  twice = {key for key in keys if keys.count(key) > 1}
  if twice:
    raise types.UsageError(
      f'{field} names {", ".join(sorted(twice))} more than once'
    )


def make(
  entries: Sequence[str],
  known: np.ndarray,
  *,
  max_unknown: int,
  seed: int,
  data_dir: pathlib.Path,
  classes: Mapping[str, Sequence[int]] = _ALL,
  field: str = _FIELD,
) -> dict[str, Unknown]:
  """The sets by their names in the report: 'set', or 'set_recipe'.

  Args:
    entries: 'set' or 'set:recipe'.
    known: known test images [N, H, W, C].
    max_unknown: samples of a set at most; a shorter one is used whole.
    seed: of samples, which all recipes of a set share, and of noise.
    data_dir: where prepared data sets are.
    classes: by set, the positions of the classes of the data set it starts
      from that it is restricted to, and counts for; none = all.
    field: that the entries are of, for errors.

  Raises:
    UserError: for an entry, a class or a data set that cannot be used.
  """
  check(entries, field)
  for name, recipe in map(_split, entries):
    _check_shape(name, recipe, known.shape[1:], field)
  chosen_classes = _checked(classes, entries)
  made: dict[str, Unknown] = {}
  start: dict[tuple[str, str] | None, np.ndarray] = {
    None: sample(known, max_unknown, seed)
  }
  for name, recipe in map(_split, entries):
    found, positions = SETS[name], chosen_classes.get(name, ())
    key, chosen = _key(name, recipe), found.recipes[recipe]
    num_classes, text = found.num_classes, chosen.text
    if found.start and found.start not in start:
      source = sources.prepared_part(*found.start, data_dir)
      if positions:
        source = _of_classes(source, positions, name)
      start[found.start] = sample(source.image, max_unknown, seed)
    if positions:
      num_classes = len(positions)
      text += f'; classes {", ".join(map(str, positions))} alone'
    generator = np.random.default_rng([seed, zlib.crc32(key.encode())])
    image = chosen.make(start[found.start], known.shape[1:], generator)
    if found.start is None:
      _check_changed(key, start[None], image, field)
    made[key] = Unknown(image, num_classes, text, tuple(positions))
  return made


def _check_changed(
  name: str, known: np.ndarray, made: np.ndarray, field: str
) -> None:
  """Raises a UsageError where images made of known ones are these."""
  axes = tuple(range(1, known.ndim))
  same = np.count_nonzero((np.asarray(known) == made).all(axis=axes))
  if same:
    raise types.UsageError(
      f'{field}: {name} leaves {same} of {len(known)} known test images as '
      "they are, which cannot come as unknown; name another set, as 'noise'"
    )


def _check_shape(name: str, recipe: str, shape: Shape, field: str) -> None:
  """Raises a UsageError where a recipe keeps images of another shape."""
  found = SETS[name]
  if not found.start or found.recipes[recipe].make is not _as_they_are:
    return
  own = catalog.DATA_SETS[found.start[0]].image_shape
  if own != tuple(shape):
    raise types.UsageError(
      f'{field}: {name} has images of {_times(own)}, the known ones are '
      f'{_times(shape)}; name a set of that shape, or one that takes any: '
      'noise, omniglot'
    )


def _times(shape: Shape) -> str:
  return ' x '.join(map(str, shape))


def _checked(
  classes: Mapping[str, Sequence[int]], entries: Sequence[str]
) -> dict[str, list[int]]:
  """The class positions by set, in order, each once."""
  named = {_split(entry)[0] for entry in entries}
  found = {n: sorted(set(positions)) for n, positions in classes.items()}
  for name, positions in found.items():
    if positions and name not in named:
      raise types.UsageError(
        f'evaluation.{name}_splits chooses classes of {name}, which '
        'evaluation.unknown_sets does not name; name it there'
      )
    if positions and not SETS[name].start:
      raise types.UsageError(
        f'{name} is made of no classes that could be chosen'
      )
  return found


def _of_classes(
  source: sources.Source, positions: Sequence[int], name: str
) -> sources.Source:
  """The samples of some classes."""
  for position in positions:
    if not (source.label == position).any():
      there = np.unique(source.label)
      raise types.UsageError(
        f'evaluation.{name}_splits: {name} has no class {position}, its '
        f'classes are {there[0]}..{there[-1]}'
      )
  chosen = np.isin(source.label, positions)
  return source._replace(image=source.image[chosen], label=source.label[chosen])


def sample(image: types.Array, count: int, seed: int) -> types.Array:
  """`count` of the images by a permutation; all of a shorter set, once."""
  order = np.random.default_rng(seed).permutation(len(image))[:count]
  return image.take(np.sort(order), axis=0)


def _split(entry: str, field: str = _FIELD) -> tuple[str, str]:
  """'set:recipe' -> its parts, checked."""
  name, _, recipe = str(entry).partition(':')
  types.check_choice(field, name, SETS)
  default = next(iter(SETS[name].recipes))
  types.check_choice(
    f'{field}: recipe of {name}',
    recipe or default,
    SETS[name].recipes,
  )
  return name, recipe or default


def _key(name: str, recipe: str) -> str:
  is_default = recipe == next(iter(SETS[name].recipes))
  return name if is_default else f'{name}_{recipe}'


def _as_they_are(
  image: np.ndarray, shape: Shape, generator: np.random.Generator
) -> np.ndarray:
  """For images of the known ones' shape."""
  del shape, generator
  return image


def _noise(
  image: np.ndarray, shape: Shape, generator: np.random.Generator
) -> np.ndarray:
  return generator.integers(0, 256, (len(image), *shape), np.uint8)


def _on_noise(
  image: np.ndarray, shape: Shape, generator: np.random.Generator
) -> np.ndarray:
  image = np.asarray(image)
  return np.where(image == 0, _noise(image, shape, generator), image)


def _plus_noise(
  image: np.ndarray, shape: Shape, generator: np.random.Generator
) -> np.ndarray:
  total = np.asarray(image, np.uint16) + _noise(image, shape, generator)
  return np.minimum(total, 255).astype(np.uint8)


def _each(
  draw: Callable[[Image.Image, Shape], np.ndarray],
) -> Callable[[np.ndarray, Shape, np.random.Generator], np.ndarray]:
  """A recipe of a function that turns one drawing into [H, W]."""

  def apply(
    image: np.ndarray, shape: Shape, generator: np.random.Generator
  ) -> np.ndarray:
    del generator
    grey = np.stack([draw(Image.fromarray(x[..., 0]), shape) for x in image])
    return np.repeat(grey[..., None], shape[2], axis=-1)

  return apply


def _resized(drawing: Image.Image, shape: Shape) -> np.ndarray:
  # Bilinear with antialiasing, as torchvision's Resize has it.
  size = (shape[1], shape[0])
  return np.asarray(drawing.resize(size, Image.Resampling.BILINEAR))


def _bright(drawing: Image.Image, shape: Shape) -> np.ndarray:
  return 255 - _resized(drawing, shape)


def _nearest(drawing: Image.Image, shape: Shape) -> np.ndarray:
  size = (shape[1], shape[0])
  small = drawing.convert('1').resize(size, Image.Resampling.NEAREST)
  return 255 - np.asarray(small.convert('L'))


def _mnist_style(drawing: Image.Image, shape: Shape) -> np.ndarray:
  """As MNIST was made: 20 of 28 pixels, centred by mass, brightest 255."""
  return images.centred(255 - np.asarray(drawing), shape[:2])


def _of_odin(part: str, made: str, num_classes: int) -> Set:
  """A set of the ODIN paper's."""
  text = f'outliers of the ODIN paper: test images of {made} to 32x32'
  return Set(
    {'published': Recipe(_as_they_are, text)}, num_classes, ('odin', part)
  )


_NOISE = Recipe(_noise, 'each pixel uniform in 0..255')
SETS = {
  'noise': Set({'uniform': _NOISE}, num_classes=1),
  'mnist_noise': Set(
    {
      'background': Recipe(
        _on_noise, 'known test images, pixels of 0 made uniform in 0..255'
      ),
      'sum': Recipe(
        _plus_noise, 'known test images plus uniform 0..255, clipped at 255'
      ),
    },
    num_classes=1,
  ),
  'omniglot': Set(
    {
      'resize': Recipe(
        _each(_bright), 'Omniglot evaluation, ink bright, resized antialiased'
      ),
      'nearest': Recipe(
        _each(_nearest), 'Omniglot evaluation, ink bright, 1-bit nearest pixel'
      ),
      'mnist_style': Recipe(
        _each(_mnist_style),
        'Omniglot evaluation made as MNIST was: ink bright, its box to 20 of '
        '28 pixels, centred by mass, brightest pixel 255',
      ),
      'dark': Recipe(
        _each(_resized), 'Omniglot evaluation, ink dark, resized antialiased'
      ),
    },
    num_classes=659,
    start=('omniglot', 'evaluation'),
  ),
  # What Liang, Li and Srikant (ICLR 2018), section 4.2, say of them: test
  # images of the 200 classes of Tiny ImageNet, and of 10 scenes of LSUN.
  'imagenet_crop': _of_odin('imagenet_crop', 'Tiny ImageNet, cropped', 200),
  'imagenet_resize': _of_odin('imagenet_resize', 'Tiny ImageNet, resized', 200),
  'lsun_crop': _of_odin('lsun_crop', 'LSUN, cropped', 10),
  'lsun_resize': _of_odin('lsun_resize', 'LSUN, resized', 10),
  'cifar100': Set(
    {'test': Recipe(_as_they_are, 'CIFAR-100, the published test part')},
    num_classes=100,
    start=('cifar100', 'test'),
  ),
}
# Those that need the pixels of known test images.
OF_KNOWN = tuple(
  name for name, found in SETS.items() if not found.start and name != 'noise'
)
