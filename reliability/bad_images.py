"""Image files of every mode, format and damage, as they are read here."""

import io
import os
import pathlib
import shutil
import struct
import zlib
from typing import Any, NamedTuple

import jobs  # noqa: F401  Puts the project on the path.
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from crosr_jax import types
from crosr_jax.data import folder, images, named

_MODES = {
  'PNG': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'),
  'JPEG': ('L', 'RGB', 'CMYK'),
  'BMP': ('1', 'L', 'P', 'RGB', 'RGBA'),
  'WEBP': ('RGB', 'RGBA', 'L'),
  # Not to be read, whatever they are called.
  'GIF': ('L', 'P', 'RGB'),
  'TIFF': ('1', 'L', 'RGB', 'CMYK', 'F', 'I;16', 'LAB', 'YCbCr'),
  'PPM': ('L', 'RGB'),
  'ICO': ('RGBA',),
}
_SUFFIXES = ('.png', '.jpg', '.JPEG', '.bmp', '.webp', '.txt', '', '.png.gz')
_SIZES = (1, 2, 3, 7, 8, 16, 31, 64, 200)
_CLAIMED = (
  *(0, 1, 2, 255, 4_000, 12_247, 12_248, 20_000, 65_535, 65_536),
  *(2**31 - 1, 2**31, 2**32 - 1),
)
# Decoding begins by taking memory for all pixels that a file claims.
_MOST_CLAIMED = 30_000_000
_THINGS = ('folder', 'fifo', 'loop', 'nowhere', 'device', 'empty', 'noise')
# Half of all files are of a format that is read.
_KINDS = (*('PNG', 'JPEG', 'BMP', 'WEBP') * 3, *_MODES, *_THINGS)
_SHAPES = ((8, 8, 1), (16, 16, 3), (1, 1, 3), (28, 20, 1), (64, 64, 3))


class Case(NamedTuple):
  """One file."""

  kind: str  # of PIL, or one of _THINGS
  mode: str
  size: tuple[int, int]
  options: dict[str, Any]
  # What is done to the bytes: (name, position as a share, value) each.
  damage: tuple[tuple[str, float, int], ...]
  claimed: tuple[int, int] | None
  suffix: str
  shape: tuple[int, int, int]
  seed: int


@st.composite
def cases(draw: Any) -> Case:
  """Cases."""
  kind = draw(st.sampled_from(_KINDS))
  options: dict[str, Any] = {}
  mode, claimed, damage = '', None, ()
  if kind in _MODES:
    mode = draw(st.sampled_from(_MODES[kind]))
    options['exif'] = draw(st.sampled_from((0, 1, 3, 6, 8, 9, 65535)))
    options['frames'] = draw(st.sampled_from((1, 1, 1, 3)))
    options['transparency'] = draw(st.sampled_from((None, None, 0, 3, 255)))
    options['progressive'] = draw(st.booleans())
    one = st.tuples(
      st.sampled_from(('cut', 'flip', 'put', 'double', 'drop', 'zero')),
      st.floats(0, 1),
      st.integers(0, 255),
    )
    if draw(st.booleans()):
      damage = tuple(draw(st.lists(one, min_size=1, max_size=3)))
    if kind in ('PNG', 'BMP', 'JPEG') and draw(st.integers(0, 3)) == 0:
      side = st.sampled_from(_CLAIMED)
      claimed = draw(
        st.tuples(side, side).filter(
          lambda x: not _MOST_CLAIMED < x[0] * x[1] <= images.MOST_PIXELS
        )
      )
  side = st.sampled_from(_SIZES)
  return Case(
    *(kind, mode, draw(st.tuples(side, side)), options, damage, claimed),
    draw(st.sampled_from(_SUFFIXES)),
    draw(st.sampled_from(_SHAPES)),
    draw(st.integers(0, 2**16)),
  )


def picture(case: Case) -> Image.Image:
  """Random pixels of a mode."""
  generator = np.random.default_rng(case.seed)
  width, height = case.size
  pixels = generator.integers(0, 256, (height, width, 4), np.uint8)
  grey = Image.fromarray(np.ascontiguousarray(pixels[..., 0]))
  colour = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
  match case.mode:
    case 'RGBA' | 'CMYK':
      return Image.frombytes(case.mode, case.size, pixels.tobytes())
    case 'I;16':
      deep = generator.integers(0, 2**16, (height, width), np.uint16)
      return Image.fromarray(deep)
    case 'F':
      return grey.convert('F')
    case 'LAB':
      return Image.frombytes('LAB', case.size, pixels[..., :3].tobytes())
    case 'LA':
      return Image.merge('LA', (grey, grey))
    case 'RGB':
      return colour
    case 'P':
      return colour.quantize(16) if min(case.size) > 1 else grey.convert('P')
    case 'YCbCr':
      return colour.convert('YCbCr')
  return grey.convert(case.mode)


def encoded(case: Case) -> bytes:
  """The file, or b'' where PIL cannot write it."""
  made = picture(case)
  options: dict[str, Any] = {}
  if case.options['frames'] > 1 and case.kind in ('PNG', 'WEBP', 'GIF', 'TIFF'):
    options |= {'save_all': True, 'append_images': [made] * 2}
  if case.options['exif'] and case.kind in ('PNG', 'JPEG', 'WEBP'):
    exif = Image.Exif()
    exif[0x0112] = case.options['exif']
    options['exif'] = exif
  if case.options['transparency'] is not None and case.kind == 'PNG':
    if case.mode in ('P', 'L'):
      options['transparency'] = case.options['transparency']
    elif case.mode == 'RGB':
      options['transparency'] = (case.options['transparency'],) * 3
  if case.kind == 'JPEG':
    options['progressive'] = case.options['progressive']
  if case.kind == 'WEBP':
    options['lossless'] = True
  file = io.BytesIO()
  try:
    made.save(file, case.kind, **options)
  except (OSError, ValueError, KeyError):
    return b''
  data = file.getvalue()
  return _claiming(case.kind, data, case.claimed) if case.claimed else data


def _claiming(kind: str, data: bytes, size: tuple[int, int]) -> bytes:
  """With another width and height in its header, as far as it holds them."""
  width, height = size
  if kind == 'PNG':
    head = b'IHDR' + struct.pack('>II', width, height) + data[24:29]
    check = struct.pack('>I', zlib.crc32(head))
    return data[:12] + head + check + data[33:]
  if kind == 'BMP':
    sides = struct.pack('<II', width, height)
    return data[:18] + sides + data[26:]
  for marker in (b'\xff\xc0', b'\xff\xc2'):
    at = data.find(marker)
    if at >= 0:
      sides = struct.pack('>HH', min(height, 65_535), min(width, 65_535))
      return data[: at + 5] + sides + data[at + 9 :]
  return data


def damaged(data: bytes, damage: tuple[tuple[str, float, int], ...]) -> bytes:
  """Cut, flipped, put in, doubled, dropped or zeroed at some positions."""
  for name, share, value in damage:
    at = min(int(share * len(data)), max(len(data) - 1, 0))
    if name == 'cut':
      data = data[:at]
    elif name == 'flip' and data:
      flipped = bytes([data[at] ^ (1 << value % 8)])
      data = data[:at] + flipped + data[at + 1 :]
    elif name == 'put':
      data = data[:at] + bytes([value]) * (1 + value % 5) + data[at:]
    elif name == 'double':
      data = data[:at] + data
    elif name == 'drop':
      data = data[:at] + data[at + 1 + value :]
    elif name == 'zero':
      data = data[:at] + bytes(value) + data[at + value :]
  return data


def put(case: Case, path: pathlib.Path) -> bytes | None:
  """Makes the file; what is in it, None where it is no plain file."""
  match case.kind:
    case 'folder':
      path.mkdir()
    case 'fifo':
      os.mkfifo(path)
    case 'loop':
      path.symlink_to(path.name)
    case 'nowhere':
      path.symlink_to('not_there')
    case 'device':
      path.symlink_to('/dev/zero')
    case _:
      data = b''
      if case.kind == 'noise':
        data = np.random.default_rng(case.seed).bytes(200)
      elif case.kind in _MODES:
        data = damaged(encoded(case), case.damage)
      path.write_bytes(data)
      return data
  return None


class Trial:
  """Reads one file in each way there is."""

  def __init__(self, folder: pathlib.Path):
    self.cases = cases()
    self._root = folder / 'images'
    self._data_dir = folder / 'data'

  def __call__(self, case: Case) -> list[str]:
    """What is wrong; raises a UserError where the case is refused."""
    shutil.rmtree(self._root, ignore_errors=True)
    shutil.rmtree(self._data_dir, ignore_errors=True)
    for name in 'ab':
      (self._root / name).mkdir(parents=True)
      good = np.full((*case.shape[:2], 3), 99, np.uint8)
      Image.fromarray(good).save(self._root / name / 'good.png')
    path = self._root / 'a' / f'bad{case.suffix}'
    data = put(case, path)
    faults = []
    try:
      pixels = images.read(path, case.shape)
    except images.ImageError as error:
      pixels, refused = None, error
    else:
      faults += _wrong(case, data, pixels)
    faults += self._of_folder(case, path, pixels)
    faults += self._of_predict(case, path, pixels)
    if data is not None:
      faults += _of_demo(case, data)
    if pixels is None and not faults:
      raise refused
    return faults

  def _of_folder(
    self, case: Case, path: pathlib.Path, pixels: np.ndarray | None
  ) -> list[str]:
    """The data set 'folder' leaves out what cannot be read, and names it."""
    for _ in range(2):  # The second time it remembers.
      found, skipped = folder.source(
        str(self._root), 'data.train_dir', case.shape, self._data_dir, fewest=1
      )
      paths = found.image.paths
      if len(found.label) != len(paths) or len(paths) not in (2, 3):
        return ['folder: labels and files are not as many']
      left_out = [x.path for x in skipped]
      if case.kind == 'folder':
        expected = ([], False)
      else:
        expected = (
          [] if pixels is not None else [str(path)],
          pixels is not None,
        )
      if (left_out, str(path) in paths) != expected:
        return ['folder: read otherwise than alone']
      if pixels is not None:
        row = paths.index(str(path))
        if not np.array_equal(found.image[row], pixels):
          return ['folder: other pixels']
    return []

  def _of_predict(
    self, case: Case, path: pathlib.Path, pixels: np.ndarray | None
  ) -> list[str]:
    """A row for each file; those below a folder by their names."""
    below = named.paths([str(self._root)])
    if (str(path) in below) != (
      images.is_image(path) and case.kind != 'folder'
    ):
      return ['predict: other files of the folder']
    if case.kind == 'folder':
      return []
    (meant,) = named.paths([str(path)])
    found, faults = images.read_all([meant], case.shape)
    if (len(found), len(faults)) != ((1, 0) if pixels is not None else (0, 1)):
      return ['predict: read otherwise than alone']
    if pixels is not None and not np.array_equal(found[0], pixels):
      return ['predict: other pixels']
    return ['predict: two lines'] if any(map(_is_long, faults.values())) else []


def _is_long(text: str) -> bool:
  return len(text.splitlines()) != 1


def _of_demo(case: Case, data: bytes) -> list[str]:
  """As the page gets it, where drawings are brought to the middle."""
  try:
    found = images.decode(data, case.shape, is_drawing=True)
  except types.UserError:
    return []
  return [] if found.shape == case.shape else ['demo: other shape']


def _wrong(case: Case, data: bytes | None, pixels: np.ndarray) -> list[str]:
  if pixels.shape != case.shape or pixels.dtype != np.uint8:
    return ['other shape or type']
  if case.kind in _THINGS or case.kind in ('GIF', 'TIFF', 'PPM', 'ICO'):
    return [f'read, though it is {case.kind}']
  if case.claimed and not case.damage and case.kind != 'JPEG':
    width, height = case.claimed
    if case.kind == 'BMP' and height >= 2**31:
      height = 2**32 - height  # Negative: its rows come from the top.
    if width * height > images.MOST_PIXELS:
      return ['read, though it claims too many pixels']
  is_plain = not (
    case.damage
    or case.claimed
    or case.options['exif'] > 1
    or case.options['transparency'] is not None
  )
  of_size = case.size == case.shape[1::-1]
  modes = {1: 'L', 3: 'RGB'}
  if (
    is_plain
    and of_size
    and data
    and case.kind in ('PNG', 'BMP')
    and case.mode == modes[case.shape[2]]
  ):
    expected = np.asarray(picture(case)).reshape(case.shape)
    if not np.array_equal(pixels, expected):
      return ['not read back equal']
  return []
