"""Colour data sets as their publishers pack them, small; and their damage."""

import gzip
import hashlib
import io
import itertools
import json
import os
import re
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import io as scipy_io

from crosr_jax import types
from crosr_jax.data import archives, builders, catalog, prepared, raw


def _sha256(array):
  return hashlib.sha256(array.tobytes()).hexdigest()


def _part(image, label):
  return catalog.Part(
    len(label), _sha256(image), _sha256(np.asarray(label, '<i4'))
  )


def _counted(label, num_classes):
  """A part whose SHA-256 nobody published."""
  counts = np.bincount(label, minlength=num_classes)
  return catalog.Part(len(label), '', '', tuple(map(int, counts)))


def _set_spec(monkeypatch, name, parts):
  """The data set in small; no SHA-256 of a file is known."""
  spec = catalog.DATA_SETS[name]
  files = {n: f._replace(sha256='') for n, f in spec.files.items()}
  spec = spec._replace(parts=parts, files=files, space=1, names_sha256='')
  monkeypatch.setitem(catalog.DATA_SETS, name, spec)


def _images(generator, count, side=32):
  return generator.integers(0, 256, (count, side, side, 3), np.uint8)


def _in_order(image, label):
  """By SHA-256 of the pixels."""
  order = sorted(range(len(image)), key=lambda i: _sha256(image[i]))
  return image[order], np.asarray(label)[order]


def _encoded(image, kind='png', mode=None, **options):
  file = io.BytesIO()
  Image.fromarray(image).convert(mode).save(file, kind, **options)
  return file.getvalue()


def _write(path, members):
  """Members by name, as an archive or as a folder, as the name of it says."""
  if path.name.endswith('.zip'):
    with zipfile.ZipFile(path, 'w') as archive:
      for name, content in members.items():
        archive.writestr(name, content)
  elif '.tar' in path.name:
    with tarfile.open(path, 'w:gz' if path.suffix == '.gz' else 'w') as archive:
      for name, content in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
  else:
    for name, content in members.items():
      file = path / name
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(content)


def _prepare(tmp_path, name):
  return prepared.prepare(name, tmp_path / 'data', tmp_path / 'raw')


def _read(tmp_path, name, part):
  return prepared.read(name, part, tmp_path / 'data')


@pytest.fixture(autouse=True)
def folder(tmp_path):
  """Where the publisher's files are."""
  (tmp_path / 'raw').mkdir()
  return tmp_path / 'raw'


_BATCHES = [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']


@pytest.fixture
def cifar10(monkeypatch, generator):
  """Members of CIFAR-10's archive, 5 x 4 + 3 images, and what is in them."""
  parts, members = {}, {'cifar-10-batches-bin/readme.html': b'<html>'}
  for part, count, names in (
    ('train', 20, _BATCHES[:5]),
    ('test', 3, _BATCHES[5:]),
  ):
    image = _images(generator, count)
    label = generator.integers(0, 10, count)
    records = [
      bytes([k]) + x.transpose(2, 0, 1).tobytes()
      for x, k in zip(image, label, strict=True)
    ]
    size = count // len(names)
    for i, name in enumerate(names):
      content = b''.join(records[i * size : (i + 1) * size])
      members[f'cifar-10-batches-bin/{name}'] = content
    parts[part] = (image, label)
  _set_spec(monkeypatch, 'cifar10', {n: _part(*p) for n, p in parts.items()})
  return members, parts


@pytest.mark.parametrize(
  ('name', 'cut'),
  [
    ('cifar-10-binary.tar.gz', 0),
    ('cifar-10-binary.tar', 0),
    ('', 0),
    ('', len('cifar-10-batches-bin/')),
  ],
)
def test_cifar10_in_every_packing(tmp_path, folder, cifar10, name, cut):
  members, parts = cifar10
  _write(folder / name, {n[cut:]: content for n, content in members.items()})
  _prepare(tmp_path, 'cifar10')
  for part, (image, label) in parts.items():
    found, names = _read(tmp_path, 'cifar10', part)
    np.testing.assert_array_equal(found.image, image)
    np.testing.assert_array_equal(found.label, label)
    assert names[0] == 'airplane' and names[9] == 'truck'


@pytest.fixture
def cifar100(monkeypatch, generator):
  """Members of CIFAR-100's archive, images of 3 classes; its pictures."""
  names = ('apple', 'aquarium_fish', 'baby')
  image, label = _images(generator, 9), np.arange(9) % 3
  records = [
    bytes([19, k]) + x.transpose(2, 0, 1).tobytes()
    for x, k in zip(image, label, strict=True)
  ]
  members = {
    'cifar-100-binary/train.bin': b'x' * 100,
    'cifar-100-binary/test.bin': b''.join(records),
    'cifar-100-binary/fine_label_names.txt': '\n'.join([*names, '']).encode(),
    'cifar-100-binary/coarse_label_names.txt': b'fruit\n',
  }
  # Numbered by class, as folders of pictures are.
  pictures = {
    f'test/{names[label[i]]}/{n:05d}.png': _encoded(image[i])
    for n, i in enumerate(np.argsort(label, kind='stable'))
  }
  expected = _in_order(image, label)
  _set_spec(monkeypatch, 'cifar100', {'test': _part(*expected)})
  return members, pictures, expected, names


@pytest.mark.parametrize('packing', ['archive', 'folder', 'files', 'pictures'])
def test_cifar100_in_every_packing(tmp_path, folder, cifar100, packing):
  members, pictures, (image, label), names = cifar100
  if packing == 'archive':
    _write(folder / 'cifar-100-binary.tar.gz', members)
  elif packing == 'folder':
    _write(folder, members)
  elif packing == 'files':
    _write(folder, {n.partition('/')[2]: x for n, x in members.items()})
  else:
    _write(folder, pictures)
  _prepare(tmp_path, 'cifar100')
  found, found_names = _read(tmp_path, 'cifar100', 'test')
  np.testing.assert_array_equal(found.image, image)
  np.testing.assert_array_equal(found.label, label)
  assert found_names == names


_ODIN = tuple(catalog.DATA_SETS['odin'].files)


@pytest.fixture
def odin(monkeypatch, generator):
  """Members of the four archives: 36x36, JPEG, grey and plain ones."""
  members, expected = {}, {}
  for k, (file, part) in enumerate(
    zip(_ODIN, catalog.DATA_SETS['odin'].parts, strict=True)
  ):
    image = _images(generator, 4, 36 if k % 2 == 0 else 32)
    pictures = [_encoded(x) for x in image]
    image = np.stack([x[2:34, 2:34] if k % 2 == 0 else x for x in image])
    pictures[1] = _encoded(image[1], 'jpeg', quality=95)
    decoded = Image.open(io.BytesIO(pictures[1]))
    image[1] = np.asarray(decoded)
    pictures[2] = _encoded(image[2], mode='L')
    grey = np.asarray(Image.fromarray(image[2]).convert('L'))
    image[2] = grey[..., None]
    name = file.removesuffix('.tar.gz')
    members[file] = {
      f'{name}/test/{i}.{"jpg" if i == 1 else "png"}': content
      for i, content in enumerate(pictures)
    }
    expected[part] = _in_order(image, np.zeros(4, int))
  parts = {n: _part(*found) for n, found in expected.items()}
  _set_spec(monkeypatch, 'odin', parts)
  return members, expected


@pytest.mark.parametrize('packed', [True, False])
def test_odin_in_every_packing(tmp_path, folder, odin, packed):
  members, expected = odin
  for i, (file, found) in enumerate(members.items()):
    if packed:
      _write(folder / file, found)
    else:
      # Names and depth are the user's affair.
      renamed = {
        f'{n.partition("/")[0]}/{"x/" * i}{len(found) - k}.{n[-3:]}': x
        for k, (n, x) in enumerate(found.items())
      }
      _write(folder, {**renamed, f'{file[:-7]}/Thumbs.db': b'x'})
  _prepare(tmp_path, 'odin')
  for part, (image, _) in expected.items():
    found, names = _read(tmp_path, 'odin', part)
    np.testing.assert_array_equal(found.image, image)
    assert not found.label.any() and names == ('unlabelled',)


@pytest.fixture
def svhn(folder, monkeypatch, generator):
  """SVHN's two files, of 12 and 11 digits, and what is in them."""
  parts = {}
  for part, count in (('train', 12), ('test', 11)):
    image = _images(generator, count)
    label = np.arange(count) % 10
    scipy_io.savemat(
      folder / f'{part}_32x32.mat',
      {
        'X': image.transpose(1, 2, 3, 0),
        'y': np.where(label == 0, 10, label).astype(np.uint8)[:, None],
      },
      do_compression=True,
    )
    parts[part] = (image, label)
  _set_spec(
    monkeypatch, 'svhn', {n: _counted(p[1], 10) for n, p in parts.items()}
  )
  return folder / 'test_32x32.mat', parts


def test_svhn_comes_back_as_it_was(tmp_path, svhn):
  _prepare(tmp_path, 'svhn')
  for part, (image, label) in svhn[1].items():
    found, names = _read(tmp_path, 'svhn', part)
    np.testing.assert_array_equal(found.image, image)
    np.testing.assert_array_equal(found.label, label)
    assert names == tuple('0123456789')


def _change_digest(folder):
  path = folder / 'metadata.json'
  noted = json.loads(path.read_text())
  noted['test'][0] = '0' * 64
  path.write_text(json.dumps(noted))


def _flip(folder):
  record = next(folder.glob('*-test.array_record*'))
  content = bytearray(record.read_bytes())
  content[len(content) // 2] ^= 1
  record.write_bytes(content)


@pytest.mark.parametrize(
  'change',
  [_flip, _change_digest, lambda folder: (folder / 'metadata.json').unlink()],
)
def test_damage_is_found_where_nothing_is_published(tmp_path, svhn, change):
  where = _prepare(tmp_path, 'svhn')
  change(where)
  with pytest.raises(types.UserError, match=r'prepare it again: python -m'):
    _read(tmp_path, 'svhn', 'test')
  _prepare(tmp_path, 'svhn')
  found, _ = _read(tmp_path, 'svhn', 'test')
  np.testing.assert_array_equal(found.image, svhn[1]['test'][0])


def _save(path, **arrays):
  scipy_io.savemat(path, arrays)


_X = np.zeros((32, 32, 3, 11), np.uint8)
_Y = (np.arange(11) % 10 + 1)[:, None]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda p: p.write_bytes(p.read_bytes()[:-99]), 'truncated or damaged'),
    (lambda p: p.write_bytes(b'<html>' * 99), 'truncated or damaged'),
    (lambda p: p.write_bytes(b''), 'truncated or damaged'),
    (lambda p: _save(p, X=_X), 'y is not the 11 digits'),
    (lambda p: _save(p, y=_Y), 'X is object of no shape'),
    (lambda p: _save(p, X=_X[..., 1:], y=_Y), '32 x 32 x 3 x 10 where uint8'),
    (lambda p: _save(p, X=_X.astype(float), y=_Y), 'X is float64 of'),
    (lambda p: _save(p, X=_X, y=_Y - 1), 'y is not the 11 digits'),
    (lambda p: _save(p, X=_X, y=_Y.astype(float)), 'y is not the 11 digits'),
    (lambda p: _save(p, X=_X, y=np.ones_like(_Y)), 'class 0 has 0 samples whe'),
  ],
)
def test_svhn_that_is_not_as_published(tmp_path, svhn, change, message):
  change(svhn[0])
  with pytest.raises(types.UserError, match=message) as caught:
    _prepare(tmp_path, 'svhn')
  assert str(svhn[0]) in str(caught.value)


_WNIDS = ('n02', 'n01', 'n03')


@pytest.fixture
def tiny(monkeypatch, generator):
  """Members of Tiny ImageNet's zip: 3 classes of 2, 6 to validate."""
  members = {
    'wnids.txt': '\n'.join(_WNIDS).encode(),
    # Two classes of one name keep their ids.
    'words.txt': b'n00\tentity\nn01\tgoldfish, Carassius\nn02\tcrane\n'
    b'n03\tcrane\n',
    'test/images/test_0.JPEG': b'x',
  }
  parts = {}
  for part in ('train', 'val'):
    files = [
      _encoded(x, 'jpeg', 'L' if i == 1 else None)
      for i, x in enumerate(_images(generator, 6, 64))
    ]
    image = np.stack(
      [np.asarray(Image.open(io.BytesIO(f)).convert('RGB')) for f in files]
    )
    # In the order of the sorted ids; to validate, in the order of numbers.
    label = np.repeat(range(3), 2) if part == 'train' else np.arange(6) % 3
    ids = [sorted(_WNIDS)[k] for k in label]
    names = [
      f'train/{wnid}/images/{wnid}_{i % 2}.JPEG'
      if part == 'train'
      else f'val/images/val_{i}.JPEG'
      for i, wnid in enumerate(ids)
    ]
    members |= dict(reversed(list(zip(names, files, strict=True))))
    rows = (f'val_{i}.JPEG\t{wnid}\t0\t0\t9\t9' for i, wnid in enumerate(ids))
    members['val/val_annotations.txt'] = '\n'.join(rows).encode()
    parts[part] = (image, label)
  _set_spec(
    monkeypatch,
    'tinyimagenet',
    {n: _counted(p[1], 3) for n, p in parts.items()},
  )
  return {f'tiny-imagenet-200/{n}': x for n, x in members.items()}, parts


def test_tinyimagenet_comes_back_as_it_was(tmp_path, folder, tiny):
  members, parts = tiny
  members['__MACOSX/tiny-imagenet-200/val/images/._val_0.JPEG'] = b'x'
  _write(folder / 'tiny-imagenet-200.zip', members)
  _prepare(tmp_path, 'tinyimagenet')
  for part, (image, label) in parts.items():
    found, names = _read(tmp_path, 'tinyimagenet', part)
    np.testing.assert_array_equal(found.image, image)
    np.testing.assert_array_equal(found.label, label)
    assert names == ('goldfish', 'n02', 'n03')


def test_a_large_part_is_written_in_pieces(tmp_path, folder, tiny, monkeypatch):
  monkeypatch.setattr(builders, '_LARGEST_SPLIT', 4 * 64 * 64 * 3)
  _write(folder / 'tiny-imagenet-200.zip', tiny[0])
  where = _prepare(tmp_path, 'tinyimagenet')
  assert next(where.glob('*-train_1.array_record*'))
  for part, (image, label) in tiny[1].items():
    found, _ = _read(tmp_path, 'tinyimagenet', part)
    np.testing.assert_array_equal(found.image, image)
    np.testing.assert_array_equal(found.label, label)


def _swap(members, name, content):
  (found,) = (n for n in members if n.endswith(name))
  members[found] = content


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda m: _swap(m, 'wnids.txt', b'n01\nn02'), 'names 2 classes where 3'),
    (lambda m: m.pop('tiny-imagenet-200/words.txt'), '2 lists where 3'),
    (lambda m: _swap(m, 'n02_1.JPEG', b'x'), 'n02_1 is no image of 64 x 64'),
    (lambda m: _swap(m, 'n02_1.JPEG', b'x' * 10**6), 'too large for one'),
    (
      lambda m: _swap(m, 'val_3.JPEG', _encoded(np.zeros((9, 9, 3), 'B'))),
      'val_3.JPEG is no image of 64 x 64',
    ),
    (
      lambda m: _swap(m, 'val_annotations.txt', b'val_0.JPEG\tn01\tx'),
      'is a picture of no class',
    ),
    (
      lambda m: m.update({'a/train/n04/images/n04_0.JPEG': b'x'}),
      'more than the 6 pictures of train',
    ),
    (lambda m: m.pop(next(n for n in m if 'val_2' in n)), '5 pictures of val'),
  ],
)
def test_tinyimagenet_that_is_not_as_published(
  tmp_path, folder, tiny, edit, message
):
  members, _ = tiny
  edit(members)
  path = folder / 'tiny-imagenet-200.zip'
  _write(path, members)
  with pytest.raises(types.UserError, match=message) as caught:
    _prepare(tmp_path, 'tinyimagenet')
  assert str(path) in str(caught.value)


@pytest.mark.parametrize('name', ['svhn', 'tinyimagenet'])
def test_a_file_of_another_sha256(tmp_path, folder, monkeypatch, name):
  """Held where no SHA-256 of the pixels is known."""
  spec = catalog.DATA_SETS[name]
  monkeypatch.setitem(catalog.DATA_SETS, name, spec._replace(space=1))
  for file in spec.files:
    (folder / file).write_bytes(b'short')
  with pytest.raises(
    types.UserError,
    match=r'is not the published file: 5 of \d+ bytes, SHA-256 f9b0078b5df5',
  ):
    _prepare(tmp_path, name)


def _link(path):
  with tarfile.open(path, 'w:gz') as archive:
    for name in _BATCHES:
      info = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
      archive.addfile(info)


def _edited(edit):
  """A change of the archive by a change of its members."""

  def change(path):
    with tarfile.open(path) as archive:
      members = {m.name: archive.extractfile(m).read() for m in archive}
    edit(members)
    _write(path, members)

  return change


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda p: p.write_bytes(p.read_bytes()[:-500]), 'truncated or damaged'),
    (lambda p: p.write_bytes(b'<html>' * 999), 'truncated or damaged'),
    (lambda p: p.write_bytes(gzip.compress(b'x' * 999)), 'truncated or dam'),
    (lambda p: p.write_bytes(b''), 'truncated or damaged|holds 0 files'),
    (_link, 'holds 0 files of records where 6 were published'),
    (_edited(lambda m: m.popitem()), 'holds 5 files of records where 6'),
    (
      _edited(lambda m: _swap(m, 'test_batch.bin', b'x' * 10**5)),
      'test_batch.bin has 100000 bytes, too large',
    ),
    (
      _edited(lambda m: _swap(m, 'test_batch.bin', b'xy')),
      'test_batch.bin has 2 bytes where 9219 were published',
    ),
    (
      _edited(lambda m: _swap(m, 'test_batch.bin', b'x' * 9219)),
      'images are not the published ones',
    ),
    (
      _edited(lambda m: m.update({'x/test_batch.bin': b'x'})),
      'test_batch.bin more than once',
    ),
    (_edited(lambda m: m.update({'../x': b'x'})), r"'\.\./x', which leads out"),
    (
      _edited(lambda m: m.update({'/etc/x': b'x'})),
      "'/etc/x', which leads out",
    ),
  ],
)
def test_a_tar_that_is_not_as_published(
  tmp_path, folder, cifar10, change, message
):
  path = folder / 'cifar-10-binary.tar.gz'
  _write(path, cifar10[0])
  change(path)
  with pytest.raises(types.UserError, match=message) as caught:
    _prepare(tmp_path, 'cifar10')
  assert str(path) in str(caught.value)
  assert len(str(caught.value).splitlines()) == 1


def test_names_that_a_terminal_would_obey(tmp_path):
  path = tmp_path / 'x.zip'
  _write(path, {'a\n\x1b[2J.png': b'x' * 9})
  with pytest.raises(types.UserError) as caught:
    list(
      archives.read(
        path, re.compile(r'(.*\.png)', re.DOTALL), count=1, what='', largest=1
      )
    )
  assert str(caught.value).isprintable()


def _read_x(path, count):
  pattern = re.compile(r'(x\d*)')
  return dict(
    archives.read(path, pattern, count=count, what='files', largest=1000)
  )


def test_what_is_no_file_in_a_folder(tmp_path):
  for name in ('x0', 'x1'):
    (tmp_path / name).write_bytes(b'a')
  os.mkfifo(tmp_path / 'x2')
  (tmp_path / 'x3').symlink_to('nowhere')
  (tmp_path / 'x4').symlink_to('/dev/zero')
  (tmp_path / 'x5').symlink_to('x5')
  assert _read_x(tmp_path, 2) == {'x0': b'a', 'x1': b'a'}
  with pytest.raises(types.UserError, match='holds 2 files where 6 were'):
    _read_x(tmp_path, 6)


def test_a_zip_that_lies_about_a_size(tmp_path):
  path, size = tmp_path / 'x.zip', 30_000_000
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('x', bytes(size))
  data = path.read_bytes()
  told = data.replace(struct.pack('<I', size), struct.pack('<I', 10))
  assert told != data
  path.write_bytes(told)
  tracemalloc.start()
  try:
    with pytest.raises(types.UserError, match='truncated or damaged'):
      _read_x(path, 1)
    # What it holds is never all in memory.
    assert tracemalloc.get_traced_memory()[1] < size / 10
  finally:
    tracemalloc.stop()


def test_a_link_in_a_zip_is_no_file(tmp_path):
  path = tmp_path / 'x.zip'
  link = zipfile.ZipInfo('x1')
  link.external_attr = (stat.S_IFLNK | 0o777) << 16
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('x0', b'a')
    archive.writestr(link, b'/etc/passwd')
  assert _read_x(path, 1) == {'x0': b'a'}


def test_a_zip_of_another_packing(tmp_path):
  path = tmp_path / 'x.zip'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_LZMA) as archive:
    archive.writestr('x', b'a')
  with pytest.raises(types.UserError, match='truncated or damaged'):
    _read_x(path, 1)


def test_a_tar_whose_header_takes_long(tmp_path):
  """Of digits alone, which Python once read in time that is quadratic."""
  header = tarfile.TarInfo('pax')
  header.type, header.size = tarfile.XHDTYPE, 200_000
  path = tmp_path / 'x.tar.gz'
  path.write_bytes(
    gzip.compress(header.tobuf() + b'1' * header.size + bytes(2048))
  )
  begin = time.monotonic()
  with pytest.raises(types.UserError, match='truncated or damaged'):
    _read_x(path, 1)
  assert time.monotonic() - begin < 2


def test_a_tar_that_swells(tmp_path, folder, cifar10, monkeypatch):
  path = folder / 'cifar-10-binary.tar.gz'
  _write(path, {'big': bytes(2_000_000), **cifar10[0]})
  _prepare(tmp_path, 'cifar10')
  monkeypatch.setattr(archives, '_LARGEST_TAR', 1_000_000)
  with pytest.raises(types.UserError, match='truncated or damaged'):
    prepared.prepare('cifar10', tmp_path / 'other', folder)


@pytest.mark.parametrize(
  ('name', 'there', 'message'),
  [
    (
      'cifar10',
      'cifar-10-python.tar.gz',
      'there is cifar-10-python.tar.gz: another packing, which is not read',
    ),
    (
      'cifar10',
      'cifar-10-binary (1).tar.gz',
      r'there is cifar-10-binary \(1\).tar.gz: is it that, renamed',
    ),
    (
      'odin',
      'Imagenet.tar.gz',
      r'no Imagenet_resize.tar.gz or Imagenet_resize.tar or Imagenet_resize/; ',
    ),
    ('tinyimagenet', 'tiny-imagenet-200', 'packing, which is not read'),
    ('svhn', 'train.mat', 'svhn is made of train_32x32.mat, test_32x32.mat'),
  ],
)
def test_files_that_are_not_there(tmp_path, folder, name, there, message):
  (folder / there).touch()
  with pytest.raises(types.UserError, match=message):
    _prepare(tmp_path, name)


@pytest.fixture
def damaged(folder, cifar10, tiny, svhn):
  """Files, and what reads them."""
  paths = {
    'tar.gz': folder / 'cifar-10-binary.tar.gz',
    'tar': folder / 'cifar-10-binary.tar',
    'zip': folder / 'tiny-imagenet-200.zip',
    'mat': svhn[0],
  }
  # Small, so that headers are met as often as pixels.
  for name in ('tar.gz', 'tar'):
    _write(paths[name], dict(itertools.islice(cifar10[0].items(), 2, 4)))
  _write(paths['zip'], tiny[0])
  specs = catalog.DATA_SETS
  content = svhn[0].read_bytes()
  file = catalog.File('', len(content), hashlib.sha256(content).hexdigest())
  mat = specs['svhn']._replace(
    files={'x': file}, parts={'test': specs['svhn'].parts['test']}
  )
  readers = {
    'tar.gz': lambda p: raw.cifar10(specs['cifar10'], {'x': p}),
    'tar': lambda p: raw.cifar10(specs['cifar10'], {'x': p}),
    'zip': lambda p: raw.tinyimagenet(
      specs['tinyimagenet'], {'tiny-imagenet-200.zip': p}
    ),
    'mat': lambda p: raw.svhn(mat, {'x': p}),
  }
  return {n: (p, p.read_bytes(), readers[n]) for n, p in paths.items()}


@settings(
  max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
  name=st.sampled_from(['tar.gz', 'tar', 'zip', 'mat']),
  place=st.floats(0, 1),
  byte=st.integers(0, 255),
  cut=st.booleans(),
)
def test_any_damage_is_one_line(damaged, name, place, byte, cut):
  path, content, read = damaged[name]
  at = min(int(place * len(content)), len(content) - 1)
  end = content[at + 1 :] if not cut else b''
  path.write_bytes(content[:at] + bytes([byte]) + end)
  try:
    read(path)
  except types.UserError as error:
    assert str(path) in str(error)
    assert len(str(error).splitlines()) == 1
