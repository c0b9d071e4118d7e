"""Augmentation inside the jitted step, 8-bit in and out.

B batch, H x W pixels, C channels; one PRNG key per sample. Angles in radians;
colours in [0, 1] in statistics, in 255ths in images.
"""

import math
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import ndimage

from crosr_jax import types

Array = jax.Array

SHIFT_FILLS = ('black', 'reflect')

_SALT = zlib.crc32(b'augment')
# Random numbers of a sample before those of its colour.
_DRAWS = 9


def build(
  *,
  shift: int,
  flip: bool,
  shift_fill: str = 'black',
  rotate: float = 0.0,
  lighting: float = 0.0,
  expand: float = 1.0,
  crop: int = 0,
  image_shape: Sequence[int] = (),
  mean: Sequence[float] = (),
  covariance: Sequence[Sequence[float]] = (),
) -> Callable[[Array, Array], Array]:
  """A function of images [B, H, W, C] uint8 and keys [B].

  In this order: shift, flip, rotate, lighting, expand, crop. The last four are
  those of the authors' release. There each resamples or copies the image of the
  step before; here one bilinear resampling does all (see `warp`), so an image
  is blurred once and not twice. The release turns images around the pixel right
  below the centre and flips after turning, which chance makes the same.

  Args:
    shift: each image is moved by up to so many pixels along both axes; 0 = not
      at all.
    flip: whether half of the images are mirrored left to right.
    shift_fill: what a shift brings in: 'black', or 'reflect' for the image
      mirrored at its border pixel.
    rotate: each image is turned by up to so many degrees either way, black
      corners coming in; 0 = not at all.
    lighting: 'PCA lighting' (Krizhevsky et al. 2012): a random combination of
      the principal colours is added, each as a normal number of this deviation
      (in 255ths) times the colour's variance. `covariance` times independent
      normal numbers has the same distribution. Grey images become brighter or
      darker. 0 = none.
    expand: each image is put at random on a canvas of the mean colour, whose
      sides are up to so many times the image's; 1 = no canvas.
    crop: side of the square that is cut from the canvas at random and resized
      to the image's size; 0 = the whole canvas is resized.
    image_shape: [3] H, W, C, where a crop or a shift is to be checked.
    mean: [C] of the training pixels, for `expand`.
    covariance: [C, C] of the training pixels, for `lighting`.

  Raises:
    UsageError: for a value that cannot be used.
  """
  types.check_choice('train.shift_fill', shift_fill, SHIFT_FILLS)
  _check_range('shift', shift, 0, math.inf)
  _check_range('rotate', rotate, 0, 180)
  _check_range('lighting', lighting, 0, 255)
  _check_range('expand', expand, 1, 100)
  _check_range('crop', crop, 0, math.inf)
  if image_shape:
    _check_size(shift, crop, image_shape)
  colour = jnp.array(mean, jnp.float32) * 255.0
  is_warped = rotate > 0 or expand > 1 or crop > 0

  def one(image: Array, key: Array) -> Array:
    # One draw for all: every further one costs a quarter second to compile.
    draw = jax.random.bits(
      jax.random.fold_in(key, _SALT), (_DRAWS + image.shape[-1],)
    )
    if shift:
      padded = jnp.pad(
        image,
        ((shift, shift), (shift, shift), (0, 0)),
        mode='constant' if shift_fill == 'black' else 'reflect',
      )
      row, column = draw[:2] % jnp.uint32(2 * shift + 1)
      image = jax.lax.dynamic_slice(
        padded, (row, column, jnp.zeros_like(row)), image.shape
      )
    if flip:
      image = jnp.where(draw[2] % jnp.uint32(2) == 1, image[:, ::-1], image)
    if not is_warped and not lighting:
      return image
    share = _share(draw)
    changed, light = image.astype(jnp.float32), jnp.zeros(image.shape[-1])
    if lighting:
      normal = lighting * jax.scipy.special.ndtri(share[_DRAWS:])
      # No matrix product: its precision differs between devices.
      light = jnp.sum(jnp.array(covariance) * normal[None], axis=1)
    if is_warped:
      size = jnp.array(image.shape[:2], jnp.float32)
      canvas = jnp.floor(size * (1 + share[4] * (expand - 1)))
      window = jnp.full(2, float(crop)) if crop else canvas
      place = jnp.floor(share[5:7] * (canvas - size + 1))
      corner = jnp.floor(share[7:9] * (canvas - window + 1)) - place
      angle = (2 * share[3] - 1) * math.radians(rotate)
      # The canvas takes no part in the lighting.
      fill = colour - light if expand > 1 else jnp.zeros_like(light)
      changed = warp(changed, angle, corner, window, fill)
    changed = changed + light[None, None]
    return jnp.round(jnp.clip(changed, 0, 255)).astype(jnp.uint8)

  if not (shift or flip or is_warped or lighting):
    return lambda image, keys: image
  return jax.vmap(one)


def warp(
  image: Array, angle: Array, corner: Array, window: Array, fill: Array
) -> Array:
  """A window of a turned image, resized to its size: one bilinear resampling.

  Pixels are squares, their centres at whole numbers. Without an angle it is
  exactly pasting on a canvas, cropping, and resizing with the border repeated.

  Args:
    image: [H, W, C] float32.
    angle: [] radians, counter-clockwise around the centre; what comes in is 0.
    corner: [2] row and column of the window's first pixel in the image; it may
      lie outside.
    window: [2] height and width of the window in pixels.
    fill: [C] what surrounds the turned image.

  Returns:
    [H, W, C] float32.
  """
  size = image.shape[:2]
  row, column = (
    corner[i]
    + jnp.clip(
      (jnp.arange(size[i], dtype=jnp.float32) + 0.5) * (window[i] / size[i])
      - 0.5,
      0.0,
      window[i] - 1,
    )
    for i in (0, 1)
  )
  # How much of the pixel at a point is image and not surroundings.
  share = _inside(row, size[0])[:, None] * _inside(column, size[1])[None]
  centre_row, centre_column = ((n - 1) / 2 for n in size)
  y = jnp.clip(row, 0, size[0] - 1)[:, None] - centre_row
  x = jnp.clip(column, 0, size[1] - 1)[None] - centre_column
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  source = (
    cos * y + sin * x + centre_row,
    cos * x - sin * y + centre_column,
  )
  found = jax.vmap(
    lambda channel: ndimage.map_coordinates(channel, source, order=1),
    in_axes=-1,
    out_axes=-1,
  )(image)
  return share[..., None] * found + (1 - share)[..., None] * fill[None, None]


def covariance(image: np.ndarray) -> tuple[tuple[float, ...], ...]:
  """Of the colours [N, H, W, C] uint8 in [0, 1], over all pixels; [C, C]."""
  channels = image.shape[-1]
  total, products = np.zeros(channels), np.zeros((channels, channels))
  # Sums of whole numbers: exact in whatever portions.
  for begin in range(0, len(image), 1000):
    pixels = image[begin : begin + 1000].reshape(-1, channels).astype(float)
    total += pixels.sum(axis=0)
    products += pixels.T @ pixels
  count = image.size // channels
  mean = total / count
  found = (products / count - np.outer(mean, mean)) / 255**2
  return tuple(tuple(float(x) for x in row) for row in found)


def _share(draw: Array) -> Array:
  """Random bits as numbers in (0, 1), never the ends."""
  return ((draw >> 9).astype(jnp.float32) + 0.5) / 2**23


def _inside(at: Array, size: int) -> Array:
  """1 between the first and the last pixel's centre, 0 one pixel further."""
  return jnp.clip(jnp.minimum(at + 1, size - at), 0.0, 1.0)


def _check_range(field: str, value: float, low: float, high: float) -> None:
  # Written so that NaN fails too.
  if not low <= value <= high:
    bounds = f'at least {low:g}'
    if high < math.inf:
      bounds += f' and at most {high:g}'
    raise types.UsageError(f'train.{field} must be {bounds}, got {value}')


def _check_size(shift: int, crop: int, image_shape: Sequence[int]) -> None:
  height, width = image_shape[:2]
  if shift >= min(height, width):
    raise types.UsageError(
      f'train.shift={shift} moves images of {height} x {width} pixels out of '
      'sight; make it smaller'
    )
  if crop > min(height, width):
    raise types.UsageError(
      f'train.crop={crop} is larger than the images, {height} x {width} '
      'pixels; make it smaller, or 0 for the whole image'
    )
