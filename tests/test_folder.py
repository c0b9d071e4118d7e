"""Folders of images: classes, files that are left out, what is remembered."""

import functools
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from conftest import CONFIGS
from PIL import Image
from test_images import bad_files

from crosr_jax import (
  binding,
  data,
  models,
  openset,
  pipeline,
  saved,
  settings,
  train,
  types,
)
from crosr_jax.data import batches, duplicates, folder, images, named, splits
from crosr_jax.models import backbones, resnet

_SHAPE = (8, 8, 3)
_COUNTS = {'pear': 20, 'apple': 12, 'fig': 10}


def _write(path, generator):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = generator.integers(0, 256, _SHAPE, np.uint8)
  Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path, generator):
  """Three classes, some images deeper than others, and a folder of others."""
  for name, count in _COUNTS.items():
    for i in range(count):
      deeper = 'more' if i % 3 == 0 else ''
      _write(tmp_path / 'known' / name / deeper / f'{i:02d}.png', generator)
  for i in range(7):
    _write(tmp_path / 'Odd ones' / str(i % 2) / f'{i}.png', generator)
  return tmp_path


def _source(photos, **fields):
  fields = {'field': 'data.train_dir', 'shape': _SHAPE, **fields}
  return folder.source(
    str(photos / 'known'), data_dir=photos / 'data', **fields
  )


def test_classes_are_sub_folders(photos):
  found, skipped = _source(photos)
  assert found.class_names == ('apple', 'fig', 'pear') and not skipped
  np.testing.assert_array_equal(np.bincount(found.label), [12, 10, 20])
  for path, label in zip(found.image.paths, found.label, strict=True):
    relative = pathlib.Path(path).relative_to(photos / 'known')
    assert relative.parts[0] == found.class_names[label]
    with Image.open(path) as picture:
      pixels = np.asarray(picture)
    np.testing.assert_array_equal(
      found.image[found.image.paths.index(path)], pixels
    )


def test_links_are_followed_but_not_round(photos, generator):
  elsewhere = photos / 'elsewhere'
  _write(elsewhere / 'a.png', generator)
  (photos / 'known' / 'fig' / 'link').symlink_to(elsewhere)
  (elsewhere / 'round').symlink_to(photos / 'known' / 'fig')
  found, _ = _source(photos)
  np.testing.assert_array_equal(np.bincount(found.label), [12, 11, 20])


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_what_is_no_image_is_left_out(photos):
  photo = Image.new('RGB', (30, 20), (90, 20, 50))
  kinds = bad_files(photo)
  for name, content, _ in kinds:
    (photos / 'known' / 'fig' / name).write_bytes(content)
  (photos / 'known' / 'readme.txt').write_text('hello')
  (photos / 'known' / '.hidden').write_text('hello')
  (photos / 'known' / 'pear' / '.DS_Store').write_text('hello')
  (photos / 'known' / 'pear' / 'gone.png').symlink_to(photos / 'nowhere.png')
  before = list(_source(photos)[0].image.paths)
  found, skipped = _source(photos)
  assert len(found.label) == 42 and list(found.image.paths) == before
  reasons = {pathlib.Path(s.path).name: s.reason for s in skipped}
  assert len(reasons) == len(skipped) == len(kinds) + 2
  for name, _, reason in kinds:
    assert reason in reasons[name]
  assert 'no class folder' in reasons['readme.txt']
  assert 'no such file' in reasons['gone.png']


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read all')
def test_a_folder_that_may_not_be_read(photos):
  closed = photos / 'known' / 'fig' / 'closed'
  closed.mkdir(mode=0)
  found, skipped = _source(photos)
  assert len(found.label) == 42
  assert [(s.path, 'Permission' in s.reason) for s in skipped] == [
    (str(closed), True)
  ]


def test_of_a_folder_that_may_not_be_read_the_rest_is_used(photos, monkeypatch):
  """The same for root, who may."""
  closed = photos / 'known' / 'fig' / 'closed'
  closed.mkdir()
  scandir = os.scandir

  def refused(path):
    if pathlib.Path(path) == closed:
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refused)
  found, skipped = _source(photos)
  assert len(found.label) == 42
  assert [s.path for s in skipped] == [str(closed)]
  assert str(closed) in named.paths([str(photos / 'known')])


def test_patterns(photos, tmp_path, monkeypatch):
  (photos / 'known' / 'none').mkdir()
  every = named.paths([str(photos / 'known' / '*')])
  assert len(every) == 42
  with pytest.raises(types.UsageError, match='holds no image'):
    named.paths([str(photos / 'known' / 'none')])
  with pytest.raises(types.UsageError, match='fits no file'):
    named.paths([str(photos / 'known' / 'none' / '*')])
  # A link to nothing that is called as a pattern.
  monkeypatch.chdir(tmp_path)
  (tmp_path / '*').symlink_to('nowhere')
  assert named.paths(['*']) == ['*']
  # Nor a home; that of nobody is missing like any other file.
  (tmp_path / '~x.png').touch()
  (tmp_path / '~folder').mkdir()
  (tmp_path / '~folder' / 'y.png').touch()
  monkeypatch.setenv('HOME', str(tmp_path))
  nowhere = '~nobody-of-that-name/z.png'
  assert named.paths(['~x.png', '~folder', '~*.png', nowhere]) == [
    *('~x.png', '~folder/y.png', '~x.png', nowhere)
  ]
  assert named.paths(['~/~x.png']) == [str(tmp_path / '~x.png')]
  with pytest.raises(types.UsageError, match="'' names no image"):
    named.paths([''])


@pytest.mark.parametrize('field', ['train_dir', 'test_dir', 'unknown_dirs'])
def test_a_workdir_among_the_images(photos, field):
  config = CONFIGS['folder'].copy_and_resolve_references()
  config.data.train_dir = str(photos / 'known')
  if field == 'unknown_dirs':
    config.evaluation.unknown_dirs = (str(photos / 'other'),)
  else:
    config.data[field] = str(photos / 'other')
  workdir = photos / 'other' / 'runs' / 'folder'
  with pytest.raises(types.UsageError, match=f'lies in .*{field}.*elsewhere'):
    pipeline.run(config, 'folder', workdir, photos / 'data')
  assert not (photos / 'other').exists()


def test_files_are_read_once(photos, monkeypatch):
  bad = photos / 'known' / 'fig' / 'bad.png'
  bad.write_bytes(b'x')
  first, skipped = _source(photos)
  read, seen = images.read, []
  monkeypatch.setattr(
    images, 'read', lambda path, shape: seen.append(path) or read(path, shape)
  )
  again, skipped_again = _source(photos)
  # Only what could not be used: it may have been mended.
  assert seen == [str(bad)] and skipped == skipped_again
  seen.clear()
  assert again.image.paths == first.image.paths
  np.testing.assert_array_equal(again.image.digest, first.image.digest)
  # One that changed, one that is new, and one that is gone.
  changed, gone = first.image.paths[0], first.image.paths[1]
  os.utime(changed, ns=(1, 1))
  new = photos / 'known' / 'pear' / 'new.png'
  Image.new('RGB', (8, 8)).save(new)
  pathlib.Path(gone).unlink()
  last, _ = _source(photos)
  assert sorted(seen) == sorted([changed, str(new), str(bad)])
  assert set(last.image.paths) == {*first.image.paths, str(new)} - {gone}
  # Another size is another look; and so is a memory that is damaged.
  seen.clear()
  _source(photos, shape=(4, 4, 3))
  assert len(seen) == 43
  for path in (photos / 'data').rglob('*.npz'):
    path.write_bytes(path.read_bytes()[:100])
  seen.clear()
  _source(photos)
  assert len(seen) == 43


def test_files_that_change_their_names_are_read_anew(photos, generator):
  """Of one size and time, as archives leave them."""
  paths = [photos / 'known' / name / 'x.bmp' for name in ('fig', 'pear')]
  for path in paths:
    pixels = generator.integers(0, 256, _SHAPE, np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(1, 1))
  before, _ = _source(photos)
  paths[0].rename(photos / 'x')
  paths[1].rename(paths[0])
  (photos / 'x').rename(paths[1])
  after, _ = _source(photos)
  assert after.image.paths == before.image.paths
  a, b = (before.image.paths.index(str(path)) for path in paths)
  np.testing.assert_array_equal(
    after.image.digest[[a, b]], before.image.digest[[b, a]]
  )


def test_a_memory_of_a_version_that_looked_at_less(photos):
  first, _ = _source(photos)
  (path,) = (photos / 'data').rglob('*.npz')
  with np.load(path) as old:
    np.savez(path, **{**old, 'stamp': old['stamp'][:, :2]})
  again, _ = _source(photos)
  np.testing.assert_array_equal(again.image.digest, first.image.digest)


@pytest.mark.parametrize('unknown', ['known', 'known/fig', '.'])
def test_known_images_cannot_come_as_unknown(photos, unknown):
  config = CONFIGS['folder'].copy_and_resolve_references()
  config.data.train_dir = str(photos / 'known')
  folder_ = str(photos / unknown)
  config.evaluation.unknown_dirs = (str(photos / 'Odd ones'), folder_)
  workdir = photos.parent / f'{photos.name}-run'
  with pytest.raises(
    types.UsageError, match=r'unknown_dirs: .* lies in data\.train_dir=.* known'
  ):
    pipeline.run(config, 'folder', workdir, photos / 'data')
  # A class that is not known may come, and no other.
  if unknown == 'known/fig':
    for kept_back in ((0,), (2,)):
      config.data.unknown_classes = kept_back
      with pytest.raises(
        types.UsageError, match=r'fig lies in data\.train_dir'
      ):
        settings.check_apart(config, workdir)
    config.data.unknown_classes = ()
    config.data.splits = ((0, 2),)
    settings.check_apart(config, workdir)
    config.data.splits = ()
    config.data.unknown_classes = (1,)
    settings.check_apart(config, workdir)


def test_a_finished_run_tells_of_the_folders_of_its_images(photos, caplog):
  """Wherever it is asked, and where a class of them is gone."""
  folder = str(photos / 'known')
  info = {
    'class_names': ['fig', 'cup'],
    'known_images': {
      'folders': {'data.train_dir': folder}, 'is_all_known': False,
    },
  }  # fmt: skip
  assert saved.image_folders(info) == ({'data.train_dir': folder}, False)
  assert not caplog.messages
  # Another folder of that name.
  assert saved.image_folders({**info, 'class_names': ['cup']}) == ({}, False)
  assert f'{folder} is not there: whether' in caplog.text
  # One of before.
  assert saved.image_folders({'class_names': ['fig']}) == ({}, True)


@pytest.mark.parametrize('test', ['known', 'known/fig', '.', 'link'])
def test_training_images_cannot_be_tested_on(photos, test):
  (photos / 'link').symlink_to(photos / 'known')
  config = CONFIGS['folder'].copy_and_resolve_references()
  config.data.train_dir = str(photos / 'known')
  config.data.test_dir = str(photos / test)
  with pytest.raises(
    types.UsageError, match=r'data\.test_dir=.* lies in data\.train_dir=.*share'
  ):
    settings.check_apart(config, photos.parent / 'run')


def test_a_link_to_itself_is_no_folder(photos):
  link = photos / 'link'
  link.symlink_to(link)
  config = CONFIGS['folder'].copy_and_resolve_references()
  config.data.train_dir = str(photos / 'known')
  config.evaluation.unknown_dirs = (str(link),)
  with pytest.raises(types.UsageError, match='link does not exist; name a f'):
    pipeline.run(config, 'folder', photos / 'run', photos / 'data')
  with pytest.raises(types.UsageError, match=r'model\.json is the run'):
    saved.check_output(photos / 'run' / 'model.json', photos / 'run')
  saved.check_output(link, photos / 'run')


def test_a_folder_is_the_same_however_it_is_written(photos, monkeypatch):
  config = CONFIGS['folder'].copy_and_resolve_references()
  config.data.train_dir = str(photos / 'known')
  workdir = photos / 'run'
  binding.bind(config, workdir)
  (workdir / 'checkpoints' / '10').mkdir(parents=True)
  config.data.train_dir += '/'
  binding.bind(config, workdir)
  monkeypatch.chdir(photos / 'run')
  config.data.train_dir = '../known'
  binding.bind(config, workdir)
  config.data.test_dir = 'x'
  with pytest.raises(types.UsageError, match=r"test_dir was '' and is now 'x'"):
    binding.bind(config, workdir)


def test_a_field_that_is_left_out_is_at_its_default(tmp_path):
  """In a config that tells no more than it has to, of a run that told all."""
  config = CONFIGS['digits'].copy_and_resolve_references()
  workdir = tmp_path / 'run'
  binding.bind(config, workdir)
  (workdir / 'checkpoints' / '10').mkdir(parents=True)
  with config.unlocked():
    for section, field in (('train', 'mixup'), ('model', 'members')):
      del config[section][field]
  settings.check_config(config)
  binding.bind(config, workdir)
  with config.unlocked():
    del config['train']['flip']
    config.seed = 3
  with pytest.raises(types.UsageError, match=r'config: seed was 0 and is now'):
    binding.bind(config, workdir)
  before = json.loads((workdir / 'config.json').read_text())
  before['train']['mixup'] = 0.2
  (workdir / 'config.json').write_text(json.dumps(before))
  with pytest.raises(types.UsageError, match=r'mixup was 0.2 and is now 0.0'):
    binding.bind(config, workdir)


def test_a_memory_that_cannot_be_kept(photos, caplog):
  (photos / 'data').write_text('a file')
  found, _ = _source(photos)
  assert len(found.label) == 42
  assert 'the next run looks through all files again' in caplog.text


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (
      # What is left out of another class is not why.
      lambda p: ((p / 'few').mkdir(), (p / 'fig' / 'x.png').write_bytes(b'x')),
      ('10', 'few: 0;'),
    ),
    (lambda p: (p / 'unknown').mkdir(), ("'unknown'", 'unknown_dirs')),
    (
      lambda p: [x.write_bytes(b'x') for x in list((p / 'fig').glob('*.png'))],
      ('fig: 4', 'left out', 'fig/', 'no BMP'),
    ),
  ],
)
def test_classes_that_cannot_be_used(photos, change, words):
  change(photos / 'known')
  with pytest.raises(types.UsageError) as caught:
    _source(photos)
  for word in ('data.train_dir', *words):
    assert word in str(caught.value)


@pytest.mark.parametrize(
  ('train_dir', 'words'),
  [
    ('', ('is needed', '--config.data.train_dir=DIR')),
    ('nowhere', ('does not exist',)),
    ('known/pear/01.png', ('is a file',)),
    ('known/pear', ('1 sub-folders', 'at least 2')),
  ],
)
def test_folders_that_cannot_be_used(photos, monkeypatch, train_dir, words):
  monkeypatch.chdir(photos)
  with pytest.raises(types.UsageError) as caught:
    folder.source(train_dir, 'data.train_dir', _SHAPE, photos / 'data')
  for word in words:
    assert word in str(caught.value)


def _load(photos, **fields):
  fields = {
    'train_dir': str(photos / 'known'),
    'unknown_dirs': (str(photos / 'Odd ones'),),
    'unknown_sets': (),
    **fields,
  }
  fields = {'test_share': 0.2, 'image_size': 8, **fields}
  return data.load(
    seed=0, data_dir=photos / 'data', name='folder', unknown_classes=(),
    select_share=0.1, calibrate_share=0.1, evaluation_seed=0, max_unknown=5,
    **fields,
  )  # fmt: skip


def test_a_test_part_of_its_own(photos, generator):
  for name in _COUNTS:
    _write(photos / 'val' / name / '0.png', generator)
  found = _load(photos, test_dir=str(photos / 'val'), test_share=0.0)
  assert [pathlib.Path(path).parts[-3:] for path in found.test.image.paths] == [
    ('val', name, '0.png') for name in sorted(_COUNTS)
  ]
  assert found.test.label.tolist() == [0, 1, 2]
  assert sum(len(found[i].label) for i in (1, 2, 3)) == sum(_COUNTS.values())
  with pytest.raises(types.UsageError, match='test_dir is the test part, set'):
    _load(photos, test_dir=str(photos / 'val'))
  (photos / 'val' / 'fig').rename(photos / 'val' / 'figs')
  with pytest.raises(types.UsageError, match='same classes: fig is in one of'):
    _load(photos, test_dir=str(photos / 'val'), test_share=0.0)


def test_as_many_classes_as_there_must_be(photos):
  assert len(_load(photos, num_classes=3).class_names) == 3
  with pytest.raises(types.UsageError, match=r'3 sub-folders.*num_classes=4'):
    _load(photos, num_classes=4)
  with pytest.raises(types.UsageError, match=r'num_classes=3 is for .*folder'):
    data.load(
      seed=0, data_dir=photos, name='digits', unknown_classes=(),
      num_classes=3, test_share=0.2, select_share=0.1, calibrate_share=0.1,
      evaluation_seed=0, max_unknown=5, unknown_sets=(),
    )  # fmt: skip


def test_a_benchmark(photos, monkeypatch):
  (photos / 'Odd ones' / 'bad.png').write_bytes(b'x')
  _load(photos)
  # Splits of a folder that was looked through read no image again.
  read, seen = images.read, []
  with monkeypatch.context() as patch:
    patch.setattr(
      images, 'read', lambda path, shape: seen.append(path) or read(path, shape)
    )
    found = _load(photos)
  assert [pathlib.Path(path).name for path in seen] == ['bad.png']
  assert found.class_names == ('apple', 'fig', 'pear')
  parts = {name: image for name, image, _ in found.parts()}
  assert {name: len(image) for name, image in parts.items()} == {
    'train': 27, 'select': 4, 'calibrate': 3, 'test': 8, 'odd_ones': 5,
  }  # fmt: skip
  paths = [path for image in parts.values() for path in image.paths]
  assert len(set(paths)) == len(paths)
  unknown = found.unknown['odd_ones']
  assert unknown.num_classes == 2 and 'Odd ones' in unknown.recipe
  assert [pathlib.Path(s.path).name for s in found.skipped] == ['bad.png']
  assert duplicates.count(parts.items()) == {}
  # Noise needs no more than a shape.
  noise = _load(photos, unknown_sets=('noise', 'mnist_noise:sum'))
  assert noise.unknown['noise'].image.shape == (5, *_SHAPE)
  again = _load(photos, unknown_sets=('noise', 'mnist_noise:sum'))
  for name in ('noise', 'mnist_noise_sum'):
    np.testing.assert_array_equal(
      noise.unknown[name].image, again.unknown[name].image
    )


def test_unknowns_take_no_name_of_a_known_part(photos):
  (photos / 'Odd ones').rename(photos / 'Test')
  found = _load(photos, unknown_dirs=(str(photos / 'Test'),))
  assert list(found.unknown) == ['test_unknown']
  assert len(list(found.parts())) == 5


def test_errors_of_a_benchmark(photos):
  with pytest.raises(types.UsageError, match='image_size must be in 8'):
    data.load(
      seed=0, data_dir=photos / 'data', name='folder', unknown_classes=(),
      test_share=0.2, select_share=0.1, calibrate_share=0.1, evaluation_seed=0,
      max_unknown=5, image_size=4, unknown_sets=(),
      train_dir=str(photos / 'known'),
    )  # fmt: skip
  with pytest.raises(types.UsageError, match=r"train_dir=x is for .*'folder'"):
    data.load(
      seed=0, data_dir=photos, name='digits', unknown_classes=(), train_dir='x',
      test_share=0.2, select_share=0.1, calibrate_share=0.1, evaluation_seed=0,
      max_unknown=5, unknown_sets=(),
    )  # fmt: skip
  with pytest.raises(types.UsageError, match='rename the folder'):
    _load(photos, unknown_dirs=(str(photos / 'Odd ones'),) * 2)
  (photos / 'none').mkdir()
  with pytest.raises(types.UsageError, match='holds no image'):
    _load(photos, unknown_dirs=(str(photos / 'none'),))
  for folder_, words in (
    ('~nobody-of-that-name/x', 'home'), ('', 'does not exist'),
    (5, 'does not exist'),
  ):  # fmt: skip
    with pytest.raises(types.UsageError, match=words):
      _load(photos, unknown_dirs=(folder_,))


def test_the_same_image_twice(photos, generator):
  pixels = generator.integers(0, 256, (30, *_SHAPE), np.uint8)
  for i, x in enumerate(pixels[:20]):
    Image.fromarray(x).save(photos / 'known' / 'pear' / f'{i:02d}x.png')
  Image.fromarray(pixels[3]).save(photos / 'known' / 'pear' / 'zz.bmp')
  found, _ = _source(photos)
  # Against arrays that hold the same pixels.
  assert duplicates.count([('a', found.image), ('b', pixels)]) == {
    'a': 1, 'a, b': 20,
  }  # fmt: skip


def test_files_come_in_the_order_of_arrays(photos):
  found, _ = _source(photos)
  in_files = splits.Labelled(found.image, found.label)
  in_memory = splits.Labelled(found.image[:], found.label)
  for first in (0, 9):
    a, b = (
      batches.training(x, 4, 3, first, balanced=True)
      for x in (in_files, in_memory)
    )
    for _ in range(40):
      (x, row), (y, expected_row) = next(a), next(b)
      np.testing.assert_array_equal(row, expected_row)
      for one, other in zip(x, y, strict=True):
        np.testing.assert_array_equal(one, other)
  a, b = (batches.padded(*x, 16) for x in (in_files, in_memory))
  for x, y in zip(a, b, strict=True):
    for one, other in zip(x, y, strict=True):
      np.testing.assert_array_equal(one, other)


def test_balanced_epochs(photos):
  found, _ = _source(photos)
  samples = splits.Labelled(np.zeros((42, 1, 1, 1), np.uint8), found.label)
  plain = batches.training(samples, 7, 0, 0)
  rows = np.concatenate([next(plain)[1] for _ in range(6)])
  np.testing.assert_array_equal(np.sort(rows), np.arange(42))
  balanced = batches.training(samples, 10, 0, 0, balanced=True)
  numbers = np.concatenate([next(balanced)[1] for _ in range(6)])
  rows = numbers % 42
  np.testing.assert_array_equal(np.bincount(found.label[rows]), [20, 20, 20])
  # What is shown again is told apart: it is turned, moved and dropped anew.
  assert len(np.unique(numbers)) == 60 and numbers.max() < 2 * 42
  # Within a class, no sample is shown twice more than another.
  count = np.bincount(rows, minlength=42)
  for k in range(3):
    assert np.ptp(count[found.label == k]) <= 1
  # From any step on it is the same order.
  later = batches.training(samples, 10, 0, 4, balanced=True)
  np.testing.assert_array_equal(next(later)[1], numbers[40:50])


def test_a_file_that_goes_while_batches_are_read(photos):
  found, _ = _source(photos)
  for path in found.image.paths[:20]:
    pathlib.Path(path).unlink()
  stream = batches.training(splits.Labelled(found.image, found.label), 10, 0, 0)
  with pytest.raises(types.UserError, match='there is no such file'):
    for _ in range(4):
      next(stream)


def test_a_run_belongs_to_its_images(photos, tmp_path, caplog):
  found = _load(photos)
  workdir = tmp_path / 'run'
  binding.bind_files(found, workdir)
  (workdir / 'checkpoints' / '10').mkdir(parents=True)
  binding.bind_files(found, workdir)
  pathlib.Path(found.train.image.paths[0]).unlink()
  with pytest.raises(types.UsageError, match='trained on other images'):
    binding.bind_files(_load(photos), workdir)
  (workdir / 'images.sha256').write_bytes(b'\xff\xfe\0')
  with pytest.raises(
    types.UserError, match=r'images\.sha256 is damaged; delete'
  ):
    binding.bind_files(_load(photos), workdir)
  (workdir / 'images.sha256').unlink()
  binding.bind_files(_load(photos), workdir)
  assert 'has lost its images.sha256' in caplog.text
  # Before anything was trained, nothing is bound.
  (workdir / 'checkpoints' / '10').rmdir()
  binding.bind_files(_load(photos), workdir)


def test_imagenet1k_small(photos, tmp_path, generator, monkeypatch):
  """The config's training and net, shallow and narrow, one step."""
  shallow = functools.partial(resnet.resnet, num_bottlenecks=(1, 1, 1, 1))
  monkeypatch.setitem(backbones.BACKBONES, 'resnet50', shallow)
  for name in _COUNTS:
    _write(photos / 'val' / name / '0.png', generator)
  config = CONFIGS['imagenet1k'].copy_and_resolve_references()
  config.update_from_flattened_dict(
    {
      'data.train_dir': str(photos / 'known'),
      'data.test_dir': str(photos / 'val'), 'data.num_classes': 3,
      'data.image_size': 32, 'data.select_share': 0.1,
      'data.calibrate_share': 0.1, 'model.width': 2, 'model.latent_width': 2,
      'train.num_steps': 1, 'train.batch_size': 8,
    }
  )  # fmt: skip
  found = data.load(
    seed=0, data_dir=tmp_path, **config.data, **config.evaluation
  )
  net = models.build(3, (0.5,) * 3, (0.25,) * 3, **config.model)
  trained = train.fit(
    net,
    found.train,
    found.select,
    tmp_path / 'run',
    seed=0,
    parallel='pmap',
    **config.train,
  )
  (row,) = trained.history
  assert int(trained.state.step) == 1 and np.isfinite(row['loss'])
  # Around log 3, and the variance of the pixels.
  assert 0.2 < row['cross_entropy'] < 5 and 0.2 < row['reconstruction'] < 5
  variables = models.for_compute(net, trained.state.variables)
  out = jax.eval_shape(net.apply, variables, found.test.image[:])
  assert out.logits.shape == (3, 3)
  assert out.reconstruction.shape == (3, 32, 32, 3)
  assert [z.shape for z in out.latents] == [(3, 2)] * 5


def test_the_main_job(photos, tmp_path):
  """Classes, a folder of unknowns, and a file that is no image."""
  (photos / 'known' / 'fig' / 'bad.png').write_bytes(b'x')
  # Classes that a net can tell apart.
  for k, name in enumerate(sorted(_COUNTS)):
    for path in (photos / 'known' / name).rglob('*.png'):
      if path.name != 'bad.png':
        with Image.open(path) as picture:
          pixels = np.asarray(picture) // 4 + 80 * k
        Image.fromarray(pixels.astype(np.uint8)).save(path)
  config = CONFIGS['folder'].copy_and_resolve_references()
  config.update_from_flattened_dict(
    {
      'data.train_dir': str(photos / 'known'),
      'evaluation.unknown_dirs': (str(photos / 'Odd ones'),),
      'data.image_size': 8, 'data.calibrate_share': 0.2,
      'data.select_share': 0.15, 'model.backbone': 'digits_cnn',
      'model.width': 4, 'model.latent_width': 4, 'train.batch_size': 8,
      'train.num_steps': 60, 'train.shift': 1, 'report.map_samples': 20,
    }
  )  # fmt: skip
  report = pipeline.run(config, 'folder', tmp_path / 'run', photos / 'data')
  assert report['class_names'] == ['apple', 'fig', 'pear']
  assert [pathlib.Path(x['path']).name for x in report['skipped']] == [
    'bad.png'
  ]
  assert any('left out: 1' in note for note in report['notes'])
  assert report['unknown']['odd_ones']['n_unknown'] == 7
  assert (tmp_path / 'run' / 'figures' / 'samples.png').exists()
  model = openset.load(tmp_path / 'run')
  assert model.class_names == ('apple', 'fig', 'pear')
  known = saved.load_info(tmp_path / 'run')['known_images']
  folders = {'data.train_dir': str(photos / 'known')}
  assert known == {'folders': folders, 'is_all_known': True}
