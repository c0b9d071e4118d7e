"""Data sets on disk: whole or absent, as published or refused."""

import errno
import fcntl
import gzip
import hashlib
import http.server
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
from conftest import needs_raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from crosr_jax import types
from crosr_jax.data import builders, catalog, prepared, raw, sources

_MNIST = tuple(catalog.DATA_SETS['mnist'].files)


def _sha256(array):
  return hashlib.sha256(array.tobytes()).hexdigest()


def _part(image, label):
  return catalog.Part(
    len(label), _sha256(image), _sha256(np.asarray(label, '<i4'))
  )


def _idx(array):
  dims = struct.pack(f'>{array.ndim}I', *array.shape)
  return bytes([0, 0, 8, array.ndim]) + dims + array.tobytes()


@pytest.fixture
def mnist(tmp_path, monkeypatch, generator):
  """A folder as MNIST's publisher has it, of a few digits; its images."""
  folder, images, parts = tmp_path / 'raw', {}, {}
  folder.mkdir(exist_ok=True)
  for i, (part, count) in enumerate((('train', 40), ('test', 20))):
    image = generator.integers(0, 256, (count, 28, 28), np.uint8)
    label = generator.integers(0, 10, count).astype(np.uint8)
    for name, array in zip(_MNIST[2 * i :], (image, label), strict=False):
      (folder / name).write_bytes(gzip.compress(_idx(array)))
    images[part], parts[part] = image[..., None], _part(image, label)
  spec = catalog.DATA_SETS['mnist']._replace(parts=parts, space=1)
  monkeypatch.setitem(catalog.DATA_SETS, 'mnist', spec)
  return folder, images


@pytest.fixture
def omniglot(tmp_path, monkeypatch, generator):
  """Two zips as Omniglot's publisher has them, of a few drawings."""
  folder, parts, start = tmp_path / 'raw', {}, 0
  folder.mkdir(exist_ok=True)
  for part, count in (('background', 6), ('evaluation', 4)):
    images = np.where(generator.random((count, 105, 105)) < 0.05, 0, 255)
    images = images.astype(np.uint8)
    with zipfile.ZipFile(folder / f'images_{part}.zip', 'w') as archive:
      archive.writestr(f'images_{part}/', '')
      for i, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).convert('1').save(file, 'png')
        name = f'{part.title()}/character{i // 2:02d}/{i:04d}_01.png'
        archive.writestr(f'images_{part}/{name}', file.getvalue())
    parts[part] = _part(images, start + np.arange(count) // 2)
    start += count // 2
  spec = catalog.DATA_SETS['omniglot']._replace(
    parts=parts, space=1, names_sha256=''
  )
  monkeypatch.setitem(catalog.DATA_SETS, 'omniglot', spec)
  return folder


def _prepare(tmp_path, name='mnist', manual='raw'):
  return prepared.prepare(name, tmp_path / 'data', tmp_path / manual)


def _left(tmp_path):
  """Files in data_dir, and folders that are not finished."""
  return [
    path.name
    for path in (tmp_path / 'data').rglob('*')
    if (path.is_file() and path.name != '.lock') or 'incomplete' in path.name
  ]


def test_mnist_comes_back_as_it_was(tmp_path, mnist):
  folder, images = mnist
  # Packed or not is the user's affair.
  plain = gzip.decompress((folder / _MNIST[0]).read_bytes())
  (folder / _MNIST[0]).unlink()
  (folder / _MNIST[0].removesuffix('.gz')).write_bytes(plain)
  where = _prepare(tmp_path)
  assert where == tmp_path / 'data' / 'crosr_jax' / 'mnist' / '1.0.0'
  for part, image in images.items():
    found, class_names = prepared.read('mnist', part, tmp_path / 'data')
    np.testing.assert_array_equal(found.image, image)
    assert found.label.dtype == np.int32
    assert class_names == tuple('0123456789')
  assert not [n for n in _left(tmp_path) if 'incomplete' in n]


def test_omniglot_comes_back_as_it_was(tmp_path, omniglot):
  _prepare(tmp_path, 'omniglot')
  found, class_names = prepared.read(
    'omniglot', 'evaluation', tmp_path / 'data'
  )
  assert found.image.shape == (4, 105, 105, 1)
  assert set(np.unique(found.image)) == {0, 255}
  assert class_names[found.label[0]] == 'Evaluation/character00'
  assert len(class_names) == 5


def test_a_folder_by_name_is_found(tmp_path, mnist):
  folder, _ = mnist
  (tmp_path / 'all').mkdir()
  folder.rename(tmp_path / 'all' / 'mnist')
  assert _prepare(tmp_path, manual='all').exists()


def test_what_is_not_ours_stays(tmp_path, mnist):
  """TFDS's own sets of the same names, and what it is preparing."""
  others = [
    tmp_path / 'data' / 'mnist' / '1.0.0' / 'dataset_info.json',
    tmp_path / 'data' / 'mnist' / 'incomplete.ABCDEF_3.0.1' / 'x',
  ]
  for other in others:
    other.parent.mkdir(parents=True)
    other.write_text('{}')
  _prepare(tmp_path)
  assert all(other.read_text() == '{}' for other in others)
  code = (
    'from crosr_jax.data import builders\n'
    'import sys, tensorflow_datasets as tfds\n'
    'assert tfds.builder_cls("mnist") is not builders.Mnist\n'
    'assert "tensorflow" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-20])


def _alter(path):
  content = bytearray(gzip.decompress(path.read_bytes()))
  content[-1] ^= 1
  path.write_bytes(gzip.compress(bytes(content)))


def _shorten(path):
  path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def _lengthen(path):
  path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b'0'))


def _swap(path):
  other = path.with_name(path.name.replace('train', 't10k'))
  path.write_bytes(other.read_bytes())


def _rename(path):
  path.rename(path.with_name(path.name.replace('-idx3', '.idx3')))


@pytest.mark.parametrize('name', [_MNIST[0], _MNIST[3]])
@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (_truncate, 'is truncated or damaged'),
    (_alter, 'are not the published ones .SHA-256 '),
    (_shorten, r'is truncated: \d+ of \d+ bytes'),
    (_lengthen, 'holds more than its header tells'),
    (lambda p: p.write_bytes(b''), 'is no idx file'),
    (lambda p: p.write_bytes(b'\0\0\x08'), 'is no idx file'),
    (lambda p: p.write_bytes(b'<html>'), 'is no idx file'),
    (lambda p: p.unlink(), 'has no .*; mnist is made of'),
  ],
)
def test_mnist_that_is_not_as_published(tmp_path, mnist, name, change, message):
  path = mnist[0] / name
  change(path)
  with pytest.raises(types.UserError, match=message) as caught:
    _prepare(tmp_path)
  assert str(path) in str(caught.value) or name in str(caught.value)
  assert _left(tmp_path) == []


def test_mnist_under_other_names(tmp_path, mnist):
  path = mnist[0] / _MNIST[0]
  _swap(path)
  with pytest.raises(
    types.UserError,
    match='holds 20 x 28 x 28 bytes where 40 x 28 x 28 were published',
  ):
    _prepare(tmp_path)
  _rename(path)
  with pytest.raises(
    types.UserError, match=r'there is train-images\.idx3.*renamed\?'
  ):
    _prepare(tmp_path)


def _rewrite(path, edit):
  """A zip with other members."""
  with zipfile.ZipFile(path) as archive:
    members = {n: archive.read(n) for n in archive.namelist()}
  edit(members)
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(name, content)


def _drawing(members):
  return max(members)


def _white(size):
  file = io.BytesIO()
  Image.new('1', size, 1).save(file, 'png')
  return file.getvalue()


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda m: m.pop(_drawing(m)), 'holds 3 drawings where 4 were published'),
    (lambda m: m.update({_drawing(m): b'no png'}), 'is no drawing of 105 x'),
    (lambda m: m.update({_drawing(m): _white((9, 9))}), 'is no drawing of 105'),
    (
      lambda m: m.update({_drawing(m): _white((105, 105))}),
      'images are not the published',
    ),
    (lambda m: m.update({_drawing(m): b'0' * 10**6}), 'too large'),
    (
      lambda m: m.update({f'../../{_drawing(m)}': m.pop(_drawing(m))}),
      'leads out of it',
    ),
    (
      lambda m: m.update({f'twice/{_drawing(m)}': m[_drawing(m)]}),
      'more than once',
    ),
    (
      lambda m: m.update({'Other/character01/9.png': m[_drawing(m)]}),
      'more than the 4 drawings',
    ),
  ],
)
def test_omniglot_that_is_not_as_published(tmp_path, omniglot, edit, message):
  path = omniglot / 'images_evaluation.zip'
  _rewrite(path, edit)
  with pytest.raises(types.UserError, match=message) as caught:
    _prepare(tmp_path, 'omniglot')
  assert str(path) in str(caught.value)
  assert _left(tmp_path) == []


def test_omniglot_that_is_no_zip(tmp_path, omniglot):
  _truncate(omniglot / 'images_background.zip')
  with pytest.raises(types.UserError, match=r'background.zip is truncated or'):
    _prepare(tmp_path, 'omniglot')


def test_manual_dir_that_cannot_be_used(tmp_path, mnist):
  with pytest.raises(types.UsageError, match=r'manual_dir=.*No such file'):
    _prepare(tmp_path, manual='nowhere')
  (tmp_path / 'file').touch()
  with pytest.raises(types.UsageError, match=r'manual_dir=.*Not a directory'):
    _prepare(tmp_path, manual='file')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(types.UserError, match=r'empty has no train.*it is empty'):
    _prepare(tmp_path, manual='empty')


def test_data_set_that_is_not_known(tmp_path):
  with pytest.raises(types.UsageError, match="'minst'; did you mean 'mnist'"):
    _prepare(tmp_path, 'minst')


@pytest.mark.parametrize('keep', [0, 1000])
def test_damage_is_found_and_mended(tmp_path, mnist, keep):
  folder = _prepare(tmp_path)
  record = next(folder.glob('*-train.array_record*'))
  content = bytearray(record.read_bytes())
  if keep:
    record.write_bytes(content[:keep])
  else:
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
  with pytest.raises(types.UserError, match=r'prepare it again: python -m'):
    prepared.read('mnist', 'train', tmp_path / 'data')
  _prepare(tmp_path)
  found, _ = prepared.read('mnist', 'train', tmp_path / 'data')
  np.testing.assert_array_equal(found.image, mnist[1]['train'])


@pytest.mark.parametrize(
  'change', ['0\n1\n2\n', '', '0\n1\n2\n3\n4\n5\n6\n7\n8\n8\n']
)
def test_damaged_class_names(tmp_path, mnist, change):
  path = _prepare(tmp_path) / 'label.labels.txt'
  before = path.read_text()
  path.write_text(change)
  with pytest.raises(
    types.UserError, match=r'names of classes are not .* prepare it again'
  ):
    prepared.read('mnist', 'train', tmp_path / 'data')
  _prepare(tmp_path)
  assert path.read_text() == before


def test_a_missing_record_file_is_damage(tmp_path, mnist):
  folder = _prepare(tmp_path)
  next(folder.glob('*-test.array_record*')).unlink()
  with pytest.raises(types.UserError, match='is damaged: test cannot be read'):
    prepared.read('mnist', 'test', tmp_path / 'data')


def test_a_passing_error_is_no_damage(tmp_path, mnist, monkeypatch):
  folder = _prepare(tmp_path)

  def too_many(*_, **__):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

  with monkeypatch.context() as patch:
    patch.setattr(builders.Mnist, 'as_data_source', too_many)
    with pytest.raises(OSError, match='Too many open files'):
      _prepare(tmp_path)
  assert next(folder.glob('*.array_record*')).stat().st_size


def test_a_damaged_set_stays_until_there_is_a_new_one(tmp_path, mnist):
  folder = _prepare(tmp_path)
  (folder / 'label.labels.txt').write_text('x')
  next(folder.glob('*-test.array_record*')).unlink()
  _truncate(mnist[0] / _MNIST[0])
  with pytest.raises(types.UserError, match='is truncated or damaged'):
    _prepare(tmp_path)
  assert (folder / 'label.labels.txt').read_text() == 'x'
  assert not [n for n in _left(tmp_path) if 'incomplete' in n]


def test_what_a_killed_process_left_is_not_read(tmp_path, mnist):
  folder = tmp_path / 'data' / 'crosr_jax' / 'mnist'
  stale = folder / 'incomplete.ABCDEF_1.0.0'
  stale.mkdir(parents=True)
  (stale / 'mnist-train.array_record-00000-of-00001').write_bytes(b'half')
  _prepare(tmp_path)
  assert [p.name for p in folder.iterdir() if p.is_dir()] == ['1.0.0']
  found, _ = prepared.read('mnist', 'train', tmp_path / 'data')
  np.testing.assert_array_equal(found.image, mnist[1]['train'])


@settings(
  max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
  name=st.sampled_from(['idx', 'gz', 'zip']),
  place=st.floats(0, 1),
  byte=st.integers(0, 255),
  cut=st.booleans(),
)
def test_any_damage_is_one_line(tmp_path, damaged, name, place, byte, cut):
  path, content, read = damaged[name]
  at = min(int(place * len(content)), len(content) - 1)
  end = content[at + 1 :] if not cut else b''
  path.write_bytes(content[:at] + bytes([byte]) + end)
  try:
    read()
  except types.UserError as error:
    assert str(path) in str(error)


@pytest.fixture
def damaged(tmp_path, mnist, omniglot):
  """Files, what they hold, and what reads them."""
  folder = tmp_path / 'raw'
  plain = tmp_path / 'idx'
  plain.write_bytes(gzip.decompress((folder / _MNIST[3]).read_bytes()))
  specs = catalog.DATA_SETS
  zips = {name: folder / name for name in specs['omniglot'].files}
  sources_of = {
    'idx': (plain, lambda: raw.read_idx(plain, (20,))),
    'gz': (
      folder / _MNIST[3],
      lambda: raw.read_idx(folder / _MNIST[3], (20,)),
    ),
    'zip': (
      zips['images_evaluation.zip'],
      lambda: raw.omniglot(specs['omniglot'], zips),
    ),
  }
  return {n: (p, p.read_bytes(), read) for n, (p, read) in sources_of.items()}


def test_full_disk(tmp_path, mnist, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=0)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(types.UserError, match=r'has 0.0 MB free, preparing mn'):
      _prepare(tmp_path)

  def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(builders.Mnist, 'download_and_prepare', full)
  with pytest.raises(types.UserError, match='No space left on device; make'):
    _prepare(tmp_path)
  assert _left(tmp_path) == []


def test_a_file_system_without_locks(tmp_path, mnist, monkeypatch, caplog):
  def flock(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', flock)
  _prepare(tmp_path)
  assert 'knows no locks (No locks available)' in caplog.text


def test_two_at_once(tmp_path, mnist, caplog):
  """The second waits for the first, and finds its work done."""
  caplog.set_level('INFO')
  results = []

  def work():
    results.append(_prepare(tmp_path))

  lock = tmp_path / 'data' / 'crosr_jax' / 'mnist' / '.lock'
  lock.parent.mkdir(parents=True)
  handle = os.open(lock, os.O_RDWR | os.O_CREAT)
  fcntl.flock(handle, fcntl.LOCK_EX)
  threads = [threading.Thread(target=work) for _ in range(2)]
  for thread in threads:
    thread.start()
  time.sleep(0.3)
  assert not results
  os.close(handle)
  for thread in threads:
    thread.join()
  assert len(results) == 2
  assert caplog.text.count('another process prepares') == 2
  assert caplog.text.count('writing mnist train 40/40') == 1
  assert not [n for n in _left(tmp_path) if 'incomplete' in n]


class _Server(http.server.ThreadingHTTPServer):
  """The publisher."""

  def handle_error(self, *_):
    pass


class _Publisher(http.server.SimpleHTTPRequestHandler):
  stalls = threading.Event()

  def log_message(self, *_):
    pass

  def copyfile(self, source, outputfile):
    outputfile.write(source.read(10))
    if not self.stalls.is_set():
      outputfile.write(source.read())
    else:
      time.sleep(1.5)


@pytest.fixture
def published(mnist, monkeypatch):
  """The small MNIST, to be downloaded from this machine."""
  folder, images = mnist

  def handler(*arguments):
    return _Publisher(*arguments, directory=str(folder))

  server = _Server(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  files = {
    name: catalog.File(
      f'http://127.0.0.1:{server.server_port}/{name}',
      (folder / name).stat().st_size,
      hashlib.sha256((folder / name).read_bytes()).hexdigest(),
    )
    for name in _MNIST
  }
  spec = catalog.DATA_SETS['mnist']._replace(files=files)
  monkeypatch.setitem(catalog.DATA_SETS, 'mnist', spec)
  # A proxy has no business between a test and itself.
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  yield folder, images, server
  server.shutdown()
  server.server_close()


def test_download(tmp_path, published):
  found = sources.mnist(tmp_path / 'data')
  np.testing.assert_array_equal(found.train.image, published[1]['train'])
  np.testing.assert_array_equal(found.test.image, published[1]['test'])
  # The records are all that is kept.
  assert 'downloads' not in ' '.join(_left(tmp_path))


def test_download_that_is_not_as_published(tmp_path, published):
  _alter(published[0] / _MNIST[2])
  with pytest.raises(
    types.UserError, match=f'{_MNIST[2]} is not the published file'
  ):
    prepared.prepare('mnist', tmp_path / 'data')
  assert _left(tmp_path) == []


def test_download_of_no_known_digest(tmp_path, published, monkeypatch):
  """The pixels are held against theirs; a page is no archive."""
  spec = catalog.DATA_SETS['mnist']
  files = {n: f._replace(size=0, sha256='') for n, f in spec.files.items()}
  spec = spec._replace(files=files, space=10**6)
  monkeypatch.setitem(catalog.DATA_SETS, 'mnist', spec)
  prepared.prepare('mnist', tmp_path / 'data')
  _alter(published[0] / _MNIST[0])
  with pytest.raises(types.UserError, match='images are not the published'):
    prepared.prepare('mnist', tmp_path / 'other')
  (published[0] / _MNIST[0]).write_bytes(b'<html>')
  with pytest.raises(prepared.DownloadError, match=r'gz gives no archive'):
    prepared.prepare('mnist', tmp_path / 'other')


def test_download_that_is_gone(tmp_path, published):
  (published[0] / _MNIST[1]).unlink()
  with pytest.raises(prepared.DownloadError, match=r'labels.*gz: 404'):
    prepared.prepare('mnist', tmp_path / 'data')
  assert _left(tmp_path) == []


def test_download_that_stalls(tmp_path, published, monkeypatch):
  monkeypatch.setattr(prepared, '_SECONDS_OF_SILENCE', 0.3)
  monkeypatch.setattr(_Publisher, 'stalls', threading.Event())
  _Publisher.stalls.set()
  with pytest.raises(prepared.DownloadError, match=r'train-images.*timed out'):
    prepared.prepare('mnist', tmp_path / 'data')
  assert _left(tmp_path) == []


def test_no_network(tmp_path, published):
  published[2].shutdown()
  published[2].server_close()
  begin = time.monotonic()
  with pytest.raises(
    types.UserError,
    match='mnist is not prepared in .* and cannot be downloaded .*refused'
    r'.*fetch train-images.* run: python -m crosr_jax\.prepare mnist '
    '--data_dir=.* --manual_dir=FOLDER',
  ):
    sources.mnist(tmp_path / 'data')
  assert time.monotonic() - begin < 10
  assert _left(tmp_path) == []


@pytest.mark.parametrize(
  ('arguments', 'code', 'words'),
  [
    ([], 2, ['name a data set', 'mnist, omniglot']),
    (['minst'], 2, ["'minst'", "did you mean 'mnist'?"]),
    (['mnist', '--manual_dir=no/such'], 2, ['no/such', 'No such file']),
    (['mnist', '--manual_dir=setup.cfg'], 2, ['setup.cfg is a file']),
    (['mnist', '--manualdir=x'], 2, ['manualdir']),
    (['mnist', '--data_dir=setup.cfg'], 2, ['setup.cfg is a file']),
    (['mnist', '--data_dir=~nobody-here/x'], 2, ['~nobody-here/x']),
    (['mnist', '--data_dir=s3://bucket/x'], 2, ['s3://bucket/x', 'machine']),
    (['mnist', '--manual_dir=gs://b/x'], 2, ['gs://b/x', 'this machine']),
  ],
)
def test_usage_errors(run_command, arguments, code, words):
  process = run_command('prepare', *arguments)
  told = process.stderr
  assert process.returncode == code
  assert told.startswith('error: ') and len(told.splitlines()) == 1
  for word in words:
    assert word in told


def test_help_names_every_data_set(run_command):
  told = run_command('prepare', '--help').stdout
  for name in catalog.DATA_SETS:
    assert name in told
  assert '--manual_dir: folder' in told and '--data_dir: folder' in told


@needs_raw
def test_the_published_files(start_command, raw_data, tmp_path):
  """Prepared by a command that is killed, then by two at once; then read."""
  arguments = ('mnist', f'--manual_dir={raw_data}', f'--data_dir={tmp_path}')
  killed = start_command('prepare', *arguments)
  while not list(tmp_path.glob('crosr_jax/mnist/incomplete.*/*')):
    assert killed.poll() is None
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  killed.ended()
  folder = tmp_path / 'crosr_jax' / 'mnist'
  assert not (folder / '1.0.0').exists()
  both = [start_command('prepare', *arguments) for _ in range(2)]
  done = [process.ended() for process in both]
  assert [process.returncode for process in done] == [0, 0], done
  lines = done[0].stderr.splitlines()
  assert lines[:4] == catalog.summary('mnist')
  assert 'Creative Commons' in lines[2] and 'LeCun' in lines[3]
  assert done[0].stdout.strip() == str(folder / '1.0.0')
  assert sorted(p.name for p in folder.iterdir()) == ['.lock', '1.0.0']
  found = sources.mnist(tmp_path)
  assert found.train.image.shape == (60_000, 28, 28, 1)
  # As others count the test labels.
  assert list(np.bincount(found.test.label)) == [
    980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
  ]  # fmt: skip
  # Ink is bright.
  assert np.median(found.train.image) == 0 and found.train.image.mean() < 50
