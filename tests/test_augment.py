"""Turning, cropping, canvases and colours against SciPy and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from crosr_jax import models
from crosr_jax.data import augment

_RELEASED = {'rotate': 15.0, 'lighting': 25.5, 'expand': 1.2, 'crop': 28}
_COVARIANCE = ((0.06, 0.05, 0.04), (0.05, 0.06, 0.05), (0.04, 0.05, 0.07))
_STATISTICS = {'mean': (0.5, 0.4, 0.3), 'covariance': _COVARIANCE}

_warp = jax.jit(augment.warp)


def _smooth(generator, n=1, size=32):
  """Images whose gradients are small enough for samplings to be compared."""
  image = ndimage.gaussian_filter(
    generator.uniform(0, 255, (n, size, size, 3)), (0, 2, 2, 0)
  )
  image = (image - image.min()) / (image.max() - image.min())
  return np.round(255 * image).astype(np.uint8)


def _apply(image, seed=0, **fields):
  build = augment.build(shift=0, flip=False, **{**_STATISTICS, **fields})
  keys = jax.random.split(jax.random.key(seed), len(image))
  return np.asarray(jax.jit(build)(image, keys))


def _warped(image, angle=0.0, corner=(0, 0), window=(32, 32), fill=(0, 0, 0)):
  return np.asarray(
    _warp(
      image.astype(np.float32),
      jnp.float32(angle),
      jnp.array(corner, jnp.float32),
      jnp.array(window, jnp.float32),
      jnp.array(fill, jnp.float32),
    )
  )


@settings(max_examples=20)
@given(degrees=st.floats(-180, 180), seed=st.integers(0, 999))
def test_turned_as_scipy_turns(degrees, seed):
  image = np.random.default_rng(seed).uniform(0, 255, (32, 32, 3))
  expected = ndimage.rotate(
    image, degrees, reshape=False, order=1, mode='grid-constant'
  )
  found = _warped(image, np.deg2rad(degrees))
  np.testing.assert_allclose(found, expected, atol=0.02)


@settings(max_examples=20)
@given(
  row=st.integers(0, 6), column=st.integers(0, 6), side=st.integers(20, 26),
  seed=st.integers(0, 999),
)  # fmt: skip
def test_cropped_and_resized_as_scipy_and_pillow_do(row, column, side, seed):
  image = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
  crop = image[row : row + side, column : column + side]
  found = _warped(image, 0.0, (row, column), (side, side))
  expected = ndimage.zoom(
    crop.astype(float),
    (32 / side, 32 / side, 1),
    order=1,
    mode='nearest',
    grid_mode=True,
  )
  np.testing.assert_allclose(found, expected, atol=0.02)
  pillow = PIL.Image.fromarray(crop).resize((32, 32), PIL.Image.BILINEAR)
  assert np.abs(found - np.asarray(pillow)).max() < 1.5


@settings(max_examples=20)
@given(
  top=st.integers(0, 6), left=st.integers(0, 6),
  row=st.integers(0, 10), column=st.integers(0, 10),
)  # fmt: skip
def test_pasted_cropped_and_resized_one_by_one(top, left, row, column):
  image = np.random.default_rng(0).uniform(0, 255, (32, 32, 3))
  fill = (10.0, 120.0, 240.0)
  canvas = np.full((38, 38, 3), fill)
  canvas[top : top + 32, left : left + 32] = image
  expected = ndimage.zoom(
    canvas[row : row + 28, column : column + 28],
    (32 / 28, 32 / 28, 1),
    order=1,
    mode='nearest',
    grid_mode=True,
  )
  found = _warped(image, 0.0, (row - top, column - left), (28, 28), fill)
  np.testing.assert_allclose(found, expected, atol=0.02)


def test_one_resampling_is_near_the_steps_of_the_release(generator):
  (image,) = _smooth(generator)
  turned = ndimage.rotate(
    image.astype(float), 11.0, reshape=False, order=1, mode='grid-constant'
  )
  canvas = np.full((38, 38, 3), 90.0)
  canvas[3:35, 2:34] = turned
  steps = ndimage.zoom(
    canvas[5:33, 6:34],
    (32 / 28, 32 / 28, 1),
    order=1,
    mode='nearest',
    grid_mode=True,
  )
  once = _warped(image, np.deg2rad(11.0), (2, 4), (28, 28), (90, 90, 90))
  inner = np.abs(once - steps)[4:-4, 4:-4]
  # A degree more or less would make it 1.3.
  assert inner.mean() < 0.8


def test_nothing_changes_where_nothing_is_asked(generator):
  image = _smooth(generator, 4)
  np.testing.assert_array_equal(_apply(image), image)
  # The whole machinery, of which chance leaves nothing.
  np.testing.assert_array_equal(_apply(image, crop=32), image)
  np.testing.assert_array_equal(_apply(image, expand=1.0, rotate=1e-9), image)
  constant = np.full((4, 32, 32, 3), 99, np.uint8)
  np.testing.assert_array_equal(
    _apply(constant, crop=28, expand=1.2, mean=(99 / 255,) * 3), constant
  )


def test_crops_are_of_every_place_and_the_view_is_the_middle_one(generator):
  image = np.repeat(_smooth(generator), 400, axis=0)
  found = _apply(image, crop=28)
  different = np.unique(found.reshape(400, -1), axis=0)
  # 5 x 5 places of 28 in 32.
  assert len(different) == 25
  net = models.build(
    2, (0.4,) * 3, (0.3,) * 3, backbone='vgg', width=4, dropout=0.0,
    head_dropout=0.0, eval_crop=28,
  )  # fmt: skip
  view = np.asarray(net.view(image[:1])).reshape(-1).astype(int)
  assert np.abs(different.astype(int) - view[None]).max(axis=1).min() <= 1


def test_whole_canvas_shrinks_the_image():
  image = np.full((500, 32, 32, 3), 255, np.uint8)
  found = _apply(image, expand=2.0, mean=(0.0,) * 3)
  # Mean of 1 / ratio^2 over ratios between 1 and 2 is a half.
  assert abs((found / 255).mean() - 0.5) < 0.03
  assert found.max() == 255


def test_lighting_has_the_distribution_of_principal_colours():
  image = np.full((4000, 2, 2, 3), 128, np.uint8)
  found = _apply(image, lighting=255.0).astype(float)
  # One shift per image.
  np.testing.assert_array_equal(found, found[:, :1, :1] + 0 * found)
  shift = found[:, 0, 0] - 128
  value, vector = np.linalg.eigh(np.array(_COVARIANCE))
  # Krizhevsky et al.: sum of vector_i value_i alpha_i, alpha_i of this sigma.
  expected = (vector * value) @ (vector * value).T * 255**2
  np.testing.assert_allclose(np.cov(shift.T), expected, rtol=0.1)
  assert np.abs(shift.mean(0)).max() < 3


def test_lighting_makes_grey_images_brighter_or_darker(generator):
  image = np.full((2000, 2, 2, 1), 100, np.uint8)
  found = _apply(image, lighting=100.0, covariance=((0.1,),), mean=(0.5,))
  assert abs(found[:, 0, 0, 0].astype(float).std() - 10) < 0.5


def test_covariance_is_numpys(generator):
  # More than a portion.
  image = generator.integers(0, 256, (1203, 5, 4, 3), np.uint8)
  expected = np.cov(image.reshape(-1, 3).T / 255, bias=True)
  np.testing.assert_allclose(augment.covariance(image), expected, rtol=1e-9)


def test_canvas_keeps_its_colour_under_lighting():
  image = np.zeros((64, 32, 32, 3), np.uint8)
  found = _apply(image, expand=3.0, lighting=25.5, mean=(0.2, 0.4, 0.6))
  corners = found[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(-1, 3)
  is_canvas = (corners == np.array([[51, 102, 153]])).all(axis=1)
  assert is_canvas.mean() > 0.5


def test_reflected_where_it_is_moved(generator):
  image = _smooth(generator, 64, 8)
  keys = jax.random.split(jax.random.key(0), 64)
  found = augment.build(shift=2, flip=False, shift_fill='reflect')(image, keys)
  black = augment.build(shift=2, flip=False)(image, keys)
  for before, ours, other in zip(image, found, black, strict=True):
    padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), mode='reflect')
    places = [
      (r, c)
      for r in range(5)
      for c in range(5)
      if np.array_equal(padded[r : r + 8, c : c + 8], ours)
    ]
    ((r, c),) = places
    # The same move, whatever comes in.
    padded = np.pad(before, ((2, 2), (2, 2), (0, 0)))
    np.testing.assert_array_equal(padded[r : r + 8, c : c + 8], other)


def test_a_sample_is_its_own(generator):
  image = _smooth(generator, 16)
  build = jax.jit(
    augment.build(
      shift=4, flip=True, shift_fill='reflect', **_RELEASED, **_STATISTICS
    )
  )
  keys = jax.random.split(jax.random.key(0), 16)
  whole = np.asarray(build(image, keys))
  assert whole.dtype == np.uint8 and whole.shape == image.shape
  assert len(np.unique(whole.reshape(16, -1), axis=0)) == 16
  # Compiled for another batch, a sum may round another way.
  alone = np.asarray(build(image[7:8], keys[7:8]))
  assert np.abs(alone[0].astype(int) - whole[7]).max() <= 1
  assert np.mean(alone[0] != whole[7]) < 0.01


@pytest.mark.parametrize('fields', [{'crop': 33}, {'crop': 32, 'shift': 32}])
def test_larger_than_the_images(fields):
  with pytest.raises(ValueError, match='32 x 32 pixels'):
    augment.build(**{'shift': 0, 'flip': True, **fields},
                  image_shape=(32, 32, 3))  # fmt: skip
