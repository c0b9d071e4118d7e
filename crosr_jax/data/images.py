"""Image files to the arrays that a net takes; whatever is in them.

H x W pixels, C channels (1 grey, 3 colour).
"""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import io
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from crosr_jax import types

FORMATS = ('BMP', 'JPEG', 'PNG', 'WEBP')
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')
# Of BMP, JPEG and PNG.
_STARTS = (b'BM', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n')
# More than nearly any camera takes; a small file that claims more is a trap.
MOST_PIXELS = 150_000_000
# Of a photograph that is decoded at less than its size: at least this many
# times the size that is needed.
_DRAFT = 2
_FOR_STATISTICS = 4096
_MOST_BYTES = 1 << 27
# Below it digits fill their square, as scikit-learn's do.
_WITH_MARGIN = 20
# What the system says of a file; all else it says of the machine, which may be
# out of memory, of open files or of a network.
_OF_THE_FILE = (
  errno.EACCES,
  errno.EINVAL,
  errno.ELOOP,
  errno.ENAMETOOLONG,
  errno.ENOTDIR,
  errno.EPERM,
)
# It is told as an error, with the file's name; of oddities beside the pixels
# nothing is.
warnings.simplefilter('ignore', Image.DecompressionBombWarning)
warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')
# What makes an image upright, by what EXIF calls its orientation.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


class ImageError(types.UserError):
  """A file that gives no image; the message says why, without the path."""


def read(path: str | os.PathLike, shape: Sequence[int]) -> np.ndarray:
  """An image file as [H, W, C] uint8.

  Turned upright as EXIF says; what is transparent is put on white; 16 bits
  become 8; of moving images the first. Then resized, antialiased, until it just
  covers H x W, and its middle is taken: an image of that size is left alone.

  Args:
    path: of a BMP, JPEG, PNG or WebP file.
    shape: H, W and C, which is 1 for grey or 3 for colour.

  Raises:
    ImageError: where it is none, or damaged, or too large.
    OSError, MemoryError: where it is not the file that is at fault.
  """
  with _told():
    if not os.path.getsize(path):
      raise ImageError('the file is empty')
    return _decoded(path, shape)


def decode(
  data: bytes,
  shape: Sequence[int],
  *,
  most_pixels: int = MOST_PIXELS,
  is_drawing: bool = False,
) -> np.ndarray:
  """`read` of what is in a file.

  Args:
    data: the file.
    shape: see `read`.
    most_pixels: that it may have.
    is_drawing: bright ink on black, which is brought to the middle where C is
      1, see `centred`.

  Raises:
    ImageError: as `read`.
  """
  with _told():
    if not data:
      raise ImageError('the file is empty')
    return _decoded(io.BytesIO(data), shape, most_pixels, is_drawing)


def _decoded(
  source: Any,
  shape: Sequence[int],
  most_pixels: int = MOST_PIXELS,
  is_drawing: bool = False,
) -> np.ndarray:
  height, width, channels = shape
  with Image.open(source, formats=FORMATS) as picture:
    if picture.width * picture.height > most_pixels:
      raise ImageError(
        f'it claims {picture.width} x {picture.height} pixels, more than '
        f'{most_pixels:,}'
      )
    _enlarge_transparent_grey(picture)
    if is_drawing and channels == 1:
      share = 20 / 28 if min(height, width) >= _WITH_MARGIN else 1.0
      ink = np.asarray(_plain(picture, 'L'))
      return centred(ink, (height, width), share)[..., None]
    # Of photographs, decodes no more than is needed.
    picture.draft(None, (_DRAFT * width, _DRAFT * height))
    return _fitted(
      _plain(_upright(picture), 'L' if channels == 1 else 'RGB'),
      (width, height),
    )


def _enlarge_transparent_grey(picture: ImageFile.ImageFile) -> None:
  """A transparent grey of 2 or 4 bits, as which Pillow gives pixels of 8."""
  clear = picture.info.get('transparency')
  if picture.tile and isinstance(clear, int):
    # Before it is loaded: the bits of the file are known no longer then.
    unit = {'L;2': 85, 'L;4': 17}.get(str(picture.tile[0].args), 1)
    picture.info['transparency'] = clear * unit


def _upright(picture: Image.Image) -> Image.Image:
  """As EXIF says; where that is damaged, as it is."""
  picture.load()
  try:
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    turn = _TURNS.get(orientation)
  except Exception:
    # Readers of EXIF raise whatever they stumble over; the pixels are whole.
    return picture
  return picture if turn is None else picture.transpose(turn)


@contextlib.contextmanager
def _told() -> Iterator[None]:
  """Whatever goes wrong with the file, as an ImageError."""
  try:
    yield
  except (ImageError, MemoryError):
    raise
  except FileNotFoundError:
    raise ImageError('there is no such file') from None
  except IsADirectoryError:
    raise ImageError('it is a folder') from None
  except Image.UnidentifiedImageError:
    raise ImageError('it is no BMP, JPEG, PNG or WebP image') from None
  except Image.DecompressionBombError:
    raise ImageError(f'it claims more than {MOST_PIXELS:,} pixels') from None
  except OSError as error:
    if not error.errno:
      # Of Pillow, not of the system.
      told = _first_line(error)
      raise ImageError(f'the image is damaged ({told})') from None
    if error.errno not in _OF_THE_FILE:
      # Left out, good images would be missing without anyone's wish.
      raise
    reason = error.strerror or str(error)
    raise ImageError(f'it cannot be read ({reason})') from None
  except Exception as error:
    # Decoders raise whatever they stumble over.
    raise ImageError(f'the image is damaged ({_first_line(error)})') from None


def _first_line(error: Exception) -> str:
  return str(error).partition('\n')[0] or type(error).__name__


def read_all(
  paths: Sequence[str | os.PathLike], shape: Sequence[int]
) -> tuple[np.ndarray, dict[int, str]]:
  """Several files, on all cores.

  Args:
    paths: N of them.
    shape: see `read`.

  Returns:
    [M, H, W, C] uint8, those that could be read, in order; and why the others
    could not, by position in `paths`.
  """
  image = np.zeros((len(paths), *shape), np.uint8)
  faults: dict[int, str] = {}
  for i, found in enumerate(
    _threads().map(lambda path: _read_or_say(path, shape), paths)
  ):
    if isinstance(found, str):
      faults[i] = found
    else:
      image[i] = found
  if faults:
    image = np.delete(image, list(faults), axis=0)
  return image, faults


def is_image(path: str | os.PathLike) -> bool:
  """By its name, or else by how it begins."""
  if pathlib.Path(path).suffix.lower() in SUFFIXES:
    return True
  if not os.path.isfile(path):
    # A pipe would be waited for.
    return False
  try:
    with open(path, 'rb') as file:
      start = file.read(12)
  except OSError:
    return False
  is_webp = start[:4] == b'RIFF' and start[8:] == b'WEBP'
  return is_webp or start.startswith(_STARTS)


def _read_or_say(
  path: str | os.PathLike, shape: Sequence[int]
) -> np.ndarray | str:
  try:
    return read(path, shape)
  except ImageError as error:
    return str(error)


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(os.cpu_count())


def _plain(picture: Image.Image, mode: str) -> Image.Image:
  """In 'L' or 'RGB', on white."""
  clear = picture.info.get('transparency')
  if picture.mode.startswith('I'):
    # PNG of 16 bits: the upper eight.
    deep = np.asarray(picture).astype(np.int32).clip(0, 65535)
    picture = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if clear is not None:
      picture.putalpha(Image.fromarray(255 * np.uint8(deep != clear)))
  elif picture.mode == 'RGB' and isinstance(clear, tuple) and max(clear) > 255:
    # The same in colour: Pillow keeps the upper eight of the pixels alone.
    picture.info['transparency'] = tuple(x >> 8 for x in clear)
  if picture.has_transparency_data:
    picture = picture.convert('RGBA')
    white = Image.new('RGBA', picture.size, 'white')
    picture = Image.alpha_composite(white, picture)
  return picture.convert(mode)


def _fitted(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
  """Covers (width, height); [H, W, C]."""
  if picture.size != size:
    picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
  found = np.asarray(picture)
  return found[..., None] if found.ndim == 2 else found


def centred(
  ink: np.ndarray, size: Sequence[int], share: float = 20 / 28
) -> np.ndarray:
  """A drawing as MNIST was made: its box scaled, its mass in the middle.

  Args:
    ink: [H', W'] uint8, 0 where there is none.
    size: H and W.
    share: of H and W that the box of the ink fits into.

  Returns:
    [H, W] uint8, the brightest pixel 255; black where there is no ink.
  """
  picture = Image.fromarray(ink)
  box = picture.getbbox()
  if box is None:
    return np.zeros(size, np.uint8)
  picture = picture.crop(box)
  fit = min(size[0] / picture.height, size[1] / picture.width) * share
  height, width = (
    max(round(picture.height * fit), 1),
    max(round(picture.width * fit), 1),
  )
  resized = picture.resize((width, height), Image.Resampling.BILINEAR)
  small = np.asarray(resized, np.float64)
  if not small.max():
    return np.zeros(size, np.uint8)
  small = np.round(small * (255 / small.max()))
  out = np.zeros(size, np.uint8)
  row, column = (
    _offset(small.sum(axis=1 - axis), size[axis]) for axis in (0, 1)
  )
  out[row : row + height, column : column + width] = small
  return out


def _offset(mass: np.ndarray, size: int) -> int:
  """Where a strip must begin for its centre of mass to be in the middle."""
  centre = mass @ np.arange(len(mass)) / mass.sum()
  begin = round((size - 1) / 2 - centre)
  return int(np.clip(begin, 0, size - len(mass)))


def stamp(path: str) -> tuple[int, int, int]:
  """Size, time of change, and that of a rename; -1 for a link to nowhere.

  Copies keep the first two, and so do files that change their names.
  """
  try:
    found = os.stat(path)
  except OSError:
    return (-1, -1, -1)
  return (found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class ImageFiles:
  """Image files that look like an array [N, H, W, C] uint8, read when indexed.

  `x[rows]` reads those files; `take` chooses files and reads none.
  """

  dtype = np.dtype(np.uint8)
  ndim = 4

  def __init__(
    self,
    paths: Sequence[str],
    shape: tuple[int, int, int],
    digest: np.ndarray,
    stamp: np.ndarray,
  ):
    """Of files that were read once.

    Args:
      paths: N of them.
      shape: see `read`.
      digest: [N, 32] uint8, SHA-256 of the pixels of each.
      stamp: [N, 3] int64, the `stamp` of each, from before it was read.
    """
    self.paths = tuple(paths)
    self.digest = digest
    self._stamp = stamp
    self._of_one = shape

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """N, H, W, C."""
    return (len(self.paths), *self._of_one)

  def __len__(self) -> int:
    return len(self.paths)

  def take(self, rows: np.ndarray, axis: int = 0) -> 'ImageFiles':
    """Those of some positions, [M]."""
    if axis:
      raise ValueError(f'files lie along axis 0, not {axis}')
    rows = np.asarray(rows, np.int64)
    return ImageFiles(
      [self.paths[i] for i in rows],
      self._of_one,
      self.digest[rows],
      self._stamp[rows],
    )

  def __getitem__(self, key: Any) -> np.ndarray:
    """Reads: [H, W, C] for a number, [M, H, W, C] for anything else.

    Raises:
      UserError: where a file cannot be read any more, or shows something else.
    """
    chosen = np.arange(len(self.paths))[key]
    rows = np.atleast_1d(chosen)
    image, faults = read_all([self.paths[i] for i in rows], self._of_one)
    for i, row in enumerate(rows):
      if i in faults:
        reason = f'{faults[i]}, and it was whole'
      elif self._is_other(row, image[i]):
        reason = 'it is another image than it was'
      else:
        continue
      raise types.UserError(
        f'{self.paths[row]}: {reason} when the run began; bring it back, or '
        'begin again in another --workdir'
      )
    return image if np.ndim(chosen) else image[0]

  def _is_other(self, row: int, image: np.ndarray) -> bool:
    """Whether a file was touched, and its pixels are others."""
    return (
      stamp(self.paths[row]) != tuple(self._stamp[row])
      and hashlib.sha256(image.tobytes()).digest() != self.digest[row].tobytes()
    )

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    """All of them in memory."""
    del copy
    return self[:] if dtype is None else self[:].astype(dtype)


def is_lazy(image: Any) -> bool:
  """Whether indexing reads files."""
  return isinstance(image, ImageFiles)


def part(image: Any, rows: slice) -> Any:
  """Some of the images; of those in files none is read."""
  if is_lazy(image):
    return image.take(np.arange(len(image))[rows])
  return image[rows]


def spread(image: Any, count: int) -> np.ndarray:
  """At most `count` images, spread: data sets come sorted by class.

  Of images in files no more than memory should hold.
  """
  if is_lazy(image):
    count = min(count, max(1, _MOST_BYTES // int(np.prod(image.shape[1:]))))
  kept = min(count, len(image))
  return image[np.arange(kept) * len(image) // max(kept, 1)]


def for_statistics(image: Any) -> np.ndarray:
  """All images in memory, or enough of those in files."""
  return spread(image, _FOR_STATISTICS) if is_lazy(image) else image
