"""Stand-ins for unknowns, made of known images alone.

N samples. None is made as any test unknown of the project is: no noise in the
place of a background, no images of noise alone, no other data set. They are
for ranking recipes, never for training and never for a threshold.
"""

import numpy as np
from PIL import Image, ImageFilter

from crosr_jax import types

# Standard deviation of the noise, in 255ths.
_SPECKLE = 32.0
# Of a 2x2 board: where each quarter comes from, no quarter at its place.
_BOARDS = ((1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0), (1, 2, 3, 0), (3, 0, 1, 2))


def make(
  image: np.ndarray, label: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
  """Stand-ins by name, as many of each as there are images.

  'blend': the mean of two images of different classes; 'quarters': the image's
  quarters at other places; 'zoom': its middle at twice the size; 'tiles': four
  copies at half the size; 'blur': halved and doubled again; 'speckle': with
  normal noise added; 'negative': bright and dark exchanged; 'outline': how much
  brighter the brightest neighbour is, thin lines around what is bright.

  Args:
    image: [N, H, W, C] uint8, H and W even.
    label: [N], of at least two classes.
    seed: of what is drawn.

  Raises:
    UserError: for other images.
  """
  check(image, label)
  generator = np.random.default_rng(seed)
  _, height, width, _ = image.shape
  half = (width // 2, height // 2)
  quarter = (width // 4, height // 4)
  small = _resize(image, half)
  noise = generator.normal(0, _SPECKLE, image.shape)
  other = image[_of_another_class(label, generator)]
  return {
    'blend': ((image.astype(np.uint16) + other) // 2).astype(np.uint8),
    'quarters': _exchange_quarters(image, generator),
    'zoom': _resize(
      image,
      (width, height),
      (*quarter, width - quarter[0], height - quarter[1]),
    ),
    'tiles': np.tile(small, (1, 2, 2, 1)),
    'blur': _resize(small, (width, height)),
    'speckle': np.clip(image + noise, 0, 255).astype(np.uint8),
    'negative': 255 - image,
    'outline': _brightest_neighbour(image) - image,
  }


def check(image: np.ndarray, label: np.ndarray) -> None:
  """Raises a UserError for images that no stand-ins can be made of."""
  height, width = image.shape[1:3]
  if height % 2 or width % 2:
    raise types.UserError(
      f'stand-ins need images of even height and width, these have {height} x '
      f'{width} pixels'
    )
  if len(np.unique(label)) < 2:
    raise types.UserError(
      'stand-ins need known samples of at least two classes; raise '
      'data.select_share or data.calibrate_share'
    )


def _of_another_class(
  label: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
  """For each sample the row of one of another class, [N]."""
  chosen = np.zeros(len(label), np.int64)
  for k in np.unique(label):
    own = label == k
    chosen[own] = generator.choice(np.flatnonzero(~own), size=own.sum())
  return chosen


def _exchange_quarters(
  image: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
  rows, columns = image.shape[1] // 2, image.shape[2] // 2
  quarters = [
    image[:, i : i + rows, j : j + columns]
    for i in (0, rows)
    for j in (0, columns)
  ]
  board = np.asarray(_BOARDS)[generator.integers(len(_BOARDS), size=len(image))]
  placed = [
    np.choose(board[:, i, None, None, None], quarters) for i in range(4)
  ]
  top = np.concatenate(placed[:2], axis=2)
  return np.concatenate([top, np.concatenate(placed[2:], axis=2)], axis=1)


def _brightest_neighbour(image: np.ndarray) -> np.ndarray:
  """Of each pixel and those around it, in each channel."""
  brightest = [
    np.asarray(_picture(x).filter(ImageFilter.MaxFilter(3))) for x in image
  ]
  return np.stack(brightest).reshape(image.shape)


def _picture(image: np.ndarray) -> Image.Image:
  return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)


def _resize(
  image: np.ndarray,
  size: tuple[int, int],
  box: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
  """Of a box of each image, bilinearly, to (width, height)."""
  resized = [
    np.asarray(_picture(x).resize(size, Image.Resampling.BILINEAR, box=box))
    for x in image
  ]
  return np.stack(resized).reshape(len(image), size[1], size[0], image.shape[3])
