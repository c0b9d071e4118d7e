"""Unknown sets by their recipes: polarity, counts, seeds, repeated images."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosr_jax import data, types
from crosr_jax.data import duplicates, sources, unknowns

_NOWHERE = pathlib.Path('/nowhere')
_RECIPES = list(unknowns.SETS['omniglot'].recipes)


def _make(known, *entries, seed=0, max_unknown=10_000, classes=()):
  return unknowns.make(
    entries,
    known,
    max_unknown=max_unknown,
    seed=seed,
    data_dir=_NOWHERE,
    classes=dict(classes),
  )


@pytest.fixture
def digits(generator):
  """Images with a black background, as MNIST's."""
  image = generator.integers(0, 256, (50, 28, 28, 1), np.uint8)
  return np.where(generator.random(image.shape) < 0.8, 0, image)


def _drawing(top, left, height, width):
  """Black ink, an open rectangle with a bar, on white; [105, 105, 1]."""
  image = np.full((105, 105, 1), 255, np.uint8)
  image[top : top + height, left : left + 4] = 0
  image[top : top + 4, left : left + width] = 0
  return image


@pytest.fixture
def drawings(monkeypatch):
  """30 drawings in place of Omniglot."""
  image = np.stack([_drawing(20 + i, 30, 40, 20 + i) for i in range(30)])
  asked = []

  def part(name, part, data_dir):
    asked.append((name, part))
    return sources.Source(image, np.zeros(30, np.int32), ('a',))

  monkeypatch.setattr(sources, 'prepared_part', part)
  return image, asked


def test_noise_is_uniform_and_from_its_seed(digits):
  image = _make(digits, 'noise')['noise'].image
  assert image.shape == digits.shape and image.dtype == np.uint8
  assert abs(image.mean() - 127.5) < 2
  assert abs(image.std() - 73.9) < 1
  np.testing.assert_array_equal(image, _make(digits, 'noise')['noise'].image)
  other = _make(digits, 'noise', seed=1)['noise'].image
  assert not np.array_equal(image, other)


def test_digits_on_noise(digits):
  made = _make(digits, 'mnist_noise', 'mnist_noise:sum', 'noise')
  assert list(made) == ['mnist_noise', 'mnist_noise_sum', 'noise']
  image = made['mnist_noise'].image
  ink = digits > 0
  np.testing.assert_array_equal(image[ink], digits[ink])
  assert abs(image[~ink].mean() - 127.5) < 2
  total = made['mnist_noise_sum'].image
  assert (total >= digits).all()
  # Clipped, not wrapped: the mean of min(x + u, 255) over u in 0..255.
  u = np.arange(256)[:, None]
  expected = np.minimum(digits[ink][None].astype(int) + u, 255).mean()
  assert abs(total[ink].mean() - expected) < 1
  # A smaller set is a sample of all, not their beginning.
  few = _make(digits, 'mnist_noise', max_unknown=5)['mnist_noise'].image
  assert len(few) == 5
  chosen = unknowns.sample(digits, 5, 0)
  np.testing.assert_array_equal(few[chosen > 0], chosen[chosen > 0])
  assert not np.array_equal(chosen, digits[:5])
  # Each set has noise of its own.
  assert not np.array_equal(image[~ink], made['noise'].image[~ink])
  assert not np.array_equal(image[~ink], total[~ink])
  assert {u.num_classes for u in made.values()} == {1}


def test_known_images_cannot_come_as_they_are(digits):
  """A photograph has no background of 0 to put noise on."""
  bright = np.maximum(digits, 1)
  bright[:3] = digits[:3]
  with pytest.raises(
    types.UsageError,
    match=f'mnist_noise leaves {len(digits) - 3} of {len(digits)} known test',
  ):
    _make(bright, 'mnist_noise')
  assert list(_make(bright, 'mnist_noise:sum', 'noise')) == [
    'mnist_noise_sum', 'noise',
  ]  # fmt: skip


def test_omniglot_polarity_and_counts(digits, drawings):
  entries = ['omniglot', *(f'omniglot:{r}' for r in _RECIPES[1:])]
  made = _make(digits, *entries, max_unknown=20)
  assert list(made) == [
    'omniglot', 'omniglot_nearest', 'omniglot_mnist_style', 'omniglot_dark',
  ]  # fmt: skip
  assert drawings[1] == [('omniglot', 'evaluation')]
  for name, found in made.items():
    assert found.image.shape == (20, 28, 28, 1)
    assert found.image.dtype == np.uint8
    assert found.num_classes == 659
    assert 'Omniglot' in found.recipe
    # Ink is bright on black, as MNIST's, but where the name says dark.
    corner = 255 if name == 'omniglot_dark' else 0
    assert (found.image[:, 0, 0] == corner).all()
    assert (np.median(found.image, axis=(1, 2, 3)) == corner).all()
  np.testing.assert_array_equal(
    made['omniglot'].image, 255 - made['omniglot_dark'].image
  )
  # All recipes show the same drawings; nearest: the pixel under the centre.
  pixel = np.floor((np.arange(28) + 0.5) * 105 / 28).astype(int)
  nearest = unknowns.sample(drawings[0], 20, 0)[:, pixel][:, :, pixel]
  np.testing.assert_array_equal(made['omniglot_nearest'].image, 255 - nearest)


def test_the_default_recipe_by_its_name(digits, drawings):
  named = _make(digits, f'omniglot:{_RECIPES[0]}')
  assert list(named) == ['omniglot']
  assert _RECIPES == ['resize', 'nearest', 'mnist_style', 'dark']


def test_resize_keeps_the_mean(digits, drawings):
  # Antialiasing loses no ink; taking every fourth pixel may.
  found = _make(digits, 'omniglot')['omniglot'].image
  np.testing.assert_allclose(
    found.mean((1, 2, 3)), (255.0 - drawings[0]).mean((1, 2, 3)), rtol=0.02
  )


def _mnist_style(image):
  made = (
    unknowns.SETS['omniglot']
    .recipes['mnist_style']
    .make(image, (28, 28, 1), np.random.default_rng(0))
  )
  return made[..., 0]


@settings(max_examples=50)
@given(
  top=st.integers(0, 40),
  left=st.integers(0, 40),
  height=st.integers(1, 64),
  width=st.integers(1, 64),
)
def test_mnist_style_is_as_mnist_was_made(top, left, height, width):
  found = _mnist_style(_drawing(top, left, height, width)[None])[0]
  assert found.max() == 255
  rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
  assert max(np.ptp(rows), np.ptp(columns)) + 1 <= 20
  # Wherever it was drawn, it lands in the same place.
  moved = _mnist_style(_drawing(40 - top, 40 - left, height, width)[None])[0]
  np.testing.assert_array_equal(found, moved)
  mass = found.astype(float)
  for axis, ends in ((0, rows), (1, columns)):
    centre = mass.sum(1 - axis) @ np.arange(28) / mass.sum()
    at_edge = ends[0] == 0 or ends[-1] == 27
    assert at_edge or abs(centre - 13.5) <= 0.51


def test_a_drawing_without_ink():
  blank = np.full((1, 105, 105, 1), 255, np.uint8)
  assert (_mnist_style(blank) == 0).all()


def test_colour_where_the_known_images_have_it(generator, drawings):
  known = generator.integers(0, 256, (5, 32, 32, 3), np.uint8)
  made = _make(known, 'omniglot', 'noise', 'mnist_noise')
  assert {u.image.shape[1:] for u in made.values()} == {(32, 32, 3)}


_COLOUR = {
  'imagenet_crop': (200, ('odin', 'imagenet_crop')),
  'imagenet_resize': (200, ('odin', 'imagenet_resize')),
  'lsun_crop': (10, ('odin', 'lsun_crop')),
  'lsun_resize': (10, ('odin', 'lsun_resize')),
  'cifar100': (100, ('cifar100', 'test')),
}


@pytest.fixture
def colours(monkeypatch, generator):
  """Six colour images of the classes 0, 1, 2 in place of each such set."""
  image = generator.integers(0, 256, (6, 32, 32, 3), np.uint8)
  asked = []

  def part(name, part, data_dir):
    asked.append((name, part))
    label = np.array([0, 1, 2, 0, 1, 2], np.int32)
    return sources.Source(image, label, ('a', 'b', 'c'))

  monkeypatch.setattr(sources, 'prepared_part', part)
  return image, asked


def test_colour_sets_come_as_they_are(colours):
  known = np.zeros((4, 32, 32, 3), np.uint8)
  made = _make(known, *_COLOUR)
  assert list(made) == list(_COLOUR)
  assert colours[1] == [start for _, start in _COLOUR.values()]
  for name, found in made.items():
    np.testing.assert_array_equal(found.image, colours[0])
    assert found.num_classes == _COLOUR[name][0]
    words = {'i': 'ODIN paper: test images of Tiny ImageNet, ', 'l': 'LSUN, '}
    assert words.get(name[0], 'CIFAR-100') in found.recipe
    assert name.rpartition('_')[2].replace('cifar100', '') in found.recipe


@pytest.mark.parametrize('name', list(_COLOUR))
def test_a_set_of_another_shape(digits, colours, name):
  with pytest.raises(
    types.UsageError,
    match=f'{name} has images of 32 x 32 x 3, the known ones are 28 x 28 x 1; '
    'name a set',
  ):
    _make(digits, 'noise', name)
  assert not colours[1]


def test_classes_of_a_set(colours):
  known = np.zeros((4, 32, 32, 3), np.uint8)
  chosen = {'cifar100': (2, 0, 2), 'lsun_crop': ()}
  made = _make(known, 'cifar100', 'lsun_crop', classes=chosen)
  np.testing.assert_array_equal(
    made['cifar100'].image, colours[0][[0, 2, 3, 5]]
  )
  assert made['cifar100'].num_classes == 2
  assert made['cifar100'].classes == (0, 2) and not made['lsun_crop'].classes
  assert made['cifar100'].recipe.endswith('; classes 0, 2 alone')
  assert len(made['lsun_crop'].image) == 6
  assert made['lsun_crop'].num_classes == 10
  # The sample is drawn from the chosen classes.
  few = _make(known, 'cifar100', classes={'cifar100': (1,)}, max_unknown=1)
  assert any((few['cifar100'].image[0] == colours[0][[1, 4]]).all((1, 2, 3)))


def test_sets_for_a_finished_run_are_of_its_classes(colours):
  """As `evaluate --unknown` makes them."""
  made, _ = data.unknown_sets(
    ['lsun_crop', 'cifar100'], (32, 32, 3), 4, max_unknown=10, seed=0,
    data_dir=_NOWHERE, classes={'cifar100': [0, 2], 'omniglot': [1]},
  )  # fmt: skip
  assert (made['cifar100'].num_classes, len(made['cifar100'].image)) == (2, 4)
  assert len(made['lsun_crop'].image) == 6


@pytest.mark.parametrize(
  ('classes', 'message'),
  [
    (
      {'cifar100': (0, 3)},
      r'cifar100_splits: cifar100 has no class 3, .*0..2',
    ),
    ({'cifar100': (-1,)}, 'cifar100 has no class -1'),
    ({'lsun_crop': (0,)}, 'evaluation.unknown_sets does not name; name it'),
    ({'noise': (0,)}, 'noise is made of no classes'),
  ],
)
def test_classes_that_cannot_be_chosen(colours, classes, message):
  known = np.zeros((4, 32, 32, 3), np.uint8)
  with pytest.raises(types.UsageError, match=message):
    _make(known, 'cifar100', 'noise', classes=classes)


def test_repeated_images_by_hand():
  a = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
  parts = [('train', a), ('test', a[[3, 3, 4]] + 2), ('noise', a[:0])]
  assert duplicates.count(parts) == {'test': 1}
  parts[1] = ('test', a[[3, 3, 4]])
  found = duplicates.count(parts)
  assert found == {'test': 1, 'train, test': 3}
  assert 'test: 1; train, test: 3' in duplicates.told(found)
  assert 'No image occurs twice' in duplicates.told({})
