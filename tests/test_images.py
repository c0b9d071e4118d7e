"""Image files of every kind, and files that are none."""

import errno
import hashlib
import io
import pathlib
import struct
import zlib
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageOps

from crosr_jax import types
from crosr_jax.data import images

_SHAPE = (16, 16, 3)


@pytest.fixture
def photo(generator):
  """[24, 40, 3], smooth, so that JPEG keeps it."""
  coarse = generator.integers(0, 256, (3, 5, 3), np.uint8)
  return Image.fromarray(coarse).resize((40, 24), Image.Resampling.BICUBIC)


def _saved(tmp_path, picture, name, **options):
  path = tmp_path / name
  picture.save(path, **options)
  return path


@pytest.mark.parametrize('suffix', images.SUFFIXES)
@pytest.mark.parametrize('channels', [1, 3])
def test_formats(tmp_path, photo, suffix, channels):
  path = _saved(tmp_path, photo, f'x{suffix}')
  found = images.read(path, (24, 40, channels))
  assert found.shape == (24, 40, channels) and found.dtype == np.uint8
  expected = np.asarray(photo.convert('L' if channels == 1 else 'RGB'), int)
  error = np.abs(found.reshape(expected.shape) - expected).mean()
  # BMP and PNG lose nothing.
  assert error < (1e-9 if suffix in ('.bmp', '.png') else 6)


def test_an_image_of_that_size_is_left_alone(tmp_path, generator):
  pixels = generator.integers(0, 256, _SHAPE, np.uint8)
  path = _saved(tmp_path, Image.fromarray(pixels), 'x.png')
  np.testing.assert_array_equal(images.read(path, _SHAPE), pixels)


@pytest.mark.parametrize(
  'mode', ['1', 'L', 'LA', 'P', 'palette', 'RGBA', 'CMYK', 'I;16']
)
def test_modes(tmp_path, photo, mode):
  if mode == 'I;16':
    deep = np.asarray(photo.convert('L'), np.uint16) * 257
    picture, like = Image.fromarray(deep), photo.convert('L')
  elif mode == 'palette':
    # A palette whose colours can be transparent; none of them is.
    picture, like = photo.convert('P'), photo.convert('P')
    picture.info['transparency'] = bytes([255] * 256)
  else:
    start = photo.convert('L') if mode == 'LA' else photo
    like = picture = start.convert(mode)
  path = _saved(tmp_path, picture, 'x.jpg' if mode == 'CMYK' else 'x.png')
  found = images.read(path, (24, 40, 3)).astype(int)
  expected = np.asarray(like.convert('RGB'), int)
  assert np.abs(found - expected).mean() < (6 if mode == 'CMYK' else 1)


def test_transparency_is_white(tmp_path):
  picture = Image.new('RGBA', (16, 16), (10, 20, 30, 0))
  picture.putpixel((3, 5), (10, 20, 30, 255))
  found = images.read(_saved(tmp_path, picture, 'x.png'), _SHAPE).copy()
  assert (found[5, 3] == (10, 20, 30)).all()
  found[5, 3] = 255
  assert (found == 255).all()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, photo, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = _saved(tmp_path, photo, 'x.png', exif=exif)
  # By the standard's own table: what must be done to the stored picture.
  turn = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
  }  # fmt: skip
  upright = photo.transpose(turn[orientation]) if orientation > 1 else photo
  found = images.read(path, (upright.height, upright.width, 3))
  np.testing.assert_array_equal(found, np.asarray(upright))


@pytest.mark.parametrize(
  'odd', [(0x128, 7, 1, b'\2\0\0\0'), (0x100, 11, 1, b'\0\0\x80B'), None]
)
def test_what_is_odd_in_exif_costs_no_pixels(tmp_path, photo, odd):
  """Orientation 6 and a tag of a wrong type; or no EXIF at all."""
  entries = [(0x112, 3, 1, struct.pack('<HH', 6, 0)), *([odd] if odd else [])]
  exif = b'II*\0\x08\0\0\0' + struct.pack('<H', len(entries))
  for tag, kind, count, value in sorted(entries):
    exif += struct.pack('<HHI', tag, kind, count) + value
  exif = b'Exif\0\0' + exif + bytes(4) if odd else b'garbage'
  path = _saved(tmp_path, photo, 'x.png' if odd is None else 'x.jpg', exif=exif)
  with Image.open(path) as picture:
    upright = picture.convert('RGB')
  if odd:
    upright = upright.transpose(Image.Transpose.ROTATE_270)
  found = images.read(path, (upright.height, upright.width, 3))
  np.testing.assert_array_equal(found, np.asarray(upright))


def test_the_middle_is_taken(tmp_path):
  picture = Image.new('RGB', (60, 20))
  picture.paste((255, 0, 0), (20, 0, 40, 20))
  found = images.read(_saved(tmp_path, picture, 'x.png'), (10, 10, 3))
  # All of the red square but what smoothing takes from its sides.
  assert (found[:, 1:-1] == (255, 0, 0)).all()


def test_large_photographs_are_drafted(tmp_path, photo):
  large = photo.resize((1600, 960), Image.Resampling.BICUBIC)
  found = images.read(_saved(tmp_path, large, 'x.jpg', quality=95), (24, 24, 3))
  expected = ImageOps.fit(large, (24, 24), Image.Resampling.BILINEAR)
  assert np.abs(found.astype(int) - np.asarray(expected, int)).mean() < 3


def _png(width, height, rows=b'', *, kind=(8, 0), clear=b''):
  """A PNG that claims this size, grey, with these compressed rows.

  It may have another depth and colour type, and a colour that is transparent.
  """

  def chunk(kind, data):
    whole = kind + data
    return struct.pack('>I', len(data)) + whole + struct.pack(
      '>I', zlib.crc32(whole)
    )  # fmt: skip

  header = struct.pack('>IIBBBBB', width, height, *kind, 0, 0, 0)
  return b''.join(
    [b'\x89PNG\r\n\x1a\n', chunk(b'IHDR', header),
     chunk(b'tRNS', clear) if clear else b'',
     chunk(b'IDAT', zlib.compress(rows)), chunk(b'IEND', b'')]
  )  # fmt: skip


@pytest.mark.parametrize('depth', [8, 16])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_transparent_colour_is_white(depth, channels):
  pixels = np.array([[10, 20, 200], [40, 50, 60]], np.uint8)[:, :channels]
  deep = pixels.astype(int)
  if depth == 16:
    deep = 256 * deep + 7
  data = _png(
    *(2, 1, b'\0' + deep.astype(f'>u{depth // 8}').tobytes()),
    kind=(depth, 0 if channels == 1 else 2),
    clear=deep[0].astype('>u2').tobytes(),
  )
  found = images.decode(data, (1, 2, channels))
  np.testing.assert_array_equal(found[0], [[255] * channels, pixels[1]])


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_a_transparent_grey_of_few_bits_is_white(bits):
  """Two pixels in one byte, grey 0 and the lightest but white."""
  most = 2**bits - 1
  light = most - 1 if bits > 1 else most
  row = bytes([0, light << (8 - 2 * bits)])
  for clear, expected in ((light, [0, 255]), (0, [255, light * 255 // most])):
    data = _png(
      2, 1, row, kind=(bits, 0), clear=np.array(clear, '>u2').tobytes()
    )
    found = images.decode(data, (1, 2, 1))
    np.testing.assert_array_equal(found[0, :, 0], expected)


def test_what_the_machine_lacks_is_no_fault_of_an_image(
  some, tmp_path, monkeypatch
):
  """It would be left out of the training, and nobody would look."""
  paths, _ = some
  for error in (
    MemoryError(),
    OSError(errno.EMFILE, 'Too many open files'),
    OSError(errno.EIO, 'Input/output error'),
    OSError(errno.ESTALE, 'Stale file handle'),
  ):

    def fails(*args, error=error, **kwargs):
      raise error

    with monkeypatch.context() as patch:
      patch.setattr(images, '_decoded', fails)
      with pytest.raises(type(error)):
        images.read_all(paths, _SHAPE)
  # That one may not be read is said of it.
  denied = OSError(errno.EACCES, 'Permission denied')
  monkeypatch.setattr(images, '_decoded', mock.Mock(side_effect=denied))
  image, faults = images.read_all(paths, _SHAPE)
  assert len(faults) == 12 and not len(image)
  assert 'Permission denied' in faults[0]


def bad_files(photo):
  """20 kinds: name, bytes, a word of the reason."""

  def encoded(kind, **options):
    buffer = io.BytesIO()
    photo.save(buffer, kind, **options)
    return buffer.getvalue()

  png, jpeg, webp, bmp = map(encoded, ('PNG', 'JPEG', 'WEBP', 'BMP'))
  flipped = bytearray(png)
  flipped[len(png) // 2] ^= 0xFF
  return [
    ('empty.png', b'', 'empty'),
    ('text.jpg', b'not an image', 'no BMP'),
    ('zeros.png', bytes(1000), 'no BMP'),
    ('page.png', b'<html><body>404</body></html>', 'no BMP'),
    ('signature.png', png[:8], 'no BMP'),
    ('header.png', png[:40], 'no BMP'),
    ('half.png', png[: len(png) // 2], 'damaged'),
    ('flipped.png', bytes(flipped), 'damaged'),
    ('half.jpg', jpeg[: len(jpeg) // 2], 'damaged'),
    ('start.jpg', jpeg[:4], 'no BMP'),
    ('no_end.jpg', jpeg[:-200], 'damaged'),
    ('half.webp', webp[: len(webp) // 2], 'damaged'),
    ('half.bmp', bmp[: len(bmp) // 2], 'damaged'),
    ('bomb.png', _png(60_000, 60_000), 'pixels'),
    ('large.png', _png(13_000, 13_000), 'pixels'),
    ('nothing.png', _png(0, 0), 'no BMP'),
    ('no_rows.png', _png(20, 20), 'damaged'),
    ('picture.gif', encoded('GIF'), 'no BMP'),
    ('scan.tiff', encoded('TIFF'), 'no BMP'),
    ('photo.pdf', encoded('PDF'), 'no BMP'),
  ]


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_bad_files(tmp_path, photo):
  kinds = bad_files(photo)
  assert len(kinds) == 20
  for name, data, reason in kinds:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(images.ImageError) as caught:
      images.read(path, _SHAPE)
    assert reason in str(caught.value), name
    assert '\n' not in str(caught.value)


def test_what_is_no_file(tmp_path):
  for path, reason in (
    (tmp_path / 'no.png', 'no such file'),
    (tmp_path, 'a folder'),
  ):
    with pytest.raises(images.ImageError, match=reason):
      images.read(path, _SHAPE)


@pytest.fixture
def some(tmp_path, generator):
  """12 files, and their pixels."""
  pixels = generator.integers(0, 256, (12, *_SHAPE), np.uint8)
  paths = [
    str(_saved(tmp_path, Image.fromarray(x), f'{i:02d}.png'))
    for i, x in enumerate(pixels)
  ]
  return paths, pixels


def test_several_keep_their_order(some, tmp_path):
  paths, pixels = some
  broken = tmp_path / 'broken.png'
  broken.write_bytes(b'x')
  mixed = [paths[0], str(broken), *paths[1:], str(tmp_path / 'no.png')]
  found, faults = images.read_all(mixed, _SHAPE)
  np.testing.assert_array_equal(found, pixels)
  assert list(faults) == [1, 13] and 'no such' in faults[13]


def _digest(pixels):
  found = [hashlib.sha256(x.tobytes()).digest() for x in pixels]
  return np.frombuffer(b''.join(found), np.uint8).reshape(-1, 32)


def _files(paths, pixels):
  stamp = np.array([images.stamp(path) for path in paths])
  return images.ImageFiles(paths, _SHAPE, _digest(pixels), stamp)


def test_files_as_an_array(some):
  paths, pixels = some
  files = _files(paths, pixels)
  digest = files.digest
  assert files.shape == pixels.shape and len(files) == 12
  for key in (
    3,
    -1,
    slice(2, 7),
    slice(None),
    [4, 4, 0],
    pixels[:, 0, 0, 0] > 99,
  ):
    np.testing.assert_array_equal(files[key], pixels[key])
  np.testing.assert_array_equal(np.asarray(files), pixels)
  np.testing.assert_array_equal(np.concatenate([files, files])[12:], pixels)
  chosen = files.take(np.array([7, 1]), axis=0)
  np.testing.assert_array_equal(chosen[:], pixels[[7, 1]])
  np.testing.assert_array_equal(chosen.digest, digest[[7, 1]])
  for count, rows in (
    (1, [0]), (5, [0, 2, 4, 7, 9]), (8, [0, 1, 3, 4, 6, 7, 9, 10]),
    (12, range(12)), (100, range(12)),
  ):  # fmt: skip
    np.testing.assert_array_equal(
      images.spread(files, count), pixels[list(rows)]
    )
  assert images.for_statistics(pixels) is pixels


def test_a_file_that_is_gone(some, tmp_path):
  paths, pixels = some
  files = _files(paths, pixels)
  (tmp_path / '05.png').unlink()
  with pytest.raises(types.UserError, match=r'05\.png: there is no such file'):
    files[:]


def test_a_file_that_shows_something_else(some):
  paths, pixels = some
  files = _files(paths, pixels)
  Image.fromarray(pixels[6]).save(paths[5])
  # Touched, and the same.
  pathlib.Path(paths[4]).touch()
  with pytest.raises(types.UserError, match=r'05\.png: it is another image'):
    files[3:8]
  np.testing.assert_array_equal(files[[3, 4, 6]], pixels[[3, 4, 6]])


def test_another_decoder_is_no_other_image(some, monkeypatch):
  """As after an update of one."""
  paths, pixels = some
  files = _files(paths, pixels)
  read = images.read
  monkeypatch.setattr(images, 'read', lambda *args: read(*args) ^ 1)
  np.testing.assert_array_equal(files[:], pixels ^ 1)


def test_no_more_in_memory_than_fits(some, monkeypatch):
  paths, pixels = some
  files = _files(paths, pixels)
  monkeypatch.setattr(images, '_MOST_BYTES', 3 * pixels[0].size + 1)
  np.testing.assert_array_equal(images.for_statistics(files), pixels[[0, 4, 8]])


@pytest.mark.parametrize('count', [1, 6, 7, 11, 12, 20])
def test_some_are_of_all_classes(count):
  """They come sorted by class; steps differ by one at most."""
  found = images.spread(np.arange(12), count)
  assert len(found) == min(count, 12) and found[0] == 0
  steps = np.diff([*found, 12])
  assert np.ptp(steps) <= 1


def test_drawings(tmp_path):
  canvas = np.zeros((100, 100), np.uint8)
  canvas[10:50, 60:80] = 200
  buffer = io.BytesIO()
  Image.fromarray(canvas).save(buffer, 'PNG')
  found = images.decode(buffer.getvalue(), (28, 28, 1), is_drawing=True)
  # 20 of 28 pixels high, 10 wide, in the middle, as bright as can be.
  expected = np.zeros((28, 28), np.uint8)
  expected[4:24, 9:19] = 255
  np.testing.assert_array_equal(found[..., 0], expected)
  # So little ink that nothing is left of it is no error.
  specks = np.zeros((280, 280), np.uint8)
  specks[0, 0] = specks[-1, -1] = 1
  assert not images.centred(specks, (28, 28)).any()


def test_what_an_upload_may_claim():
  with pytest.raises(images.ImageError, match='more than 1,000'):
    images.decode(_png(40, 40), _SHAPE, most_pixels=1000)
