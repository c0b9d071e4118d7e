"""Publishers' files, damaged and hostile, as `prepare` reads them.

The data sets are small here, so that a case is quick; the readers are those of
the package. Features in npz files, which `evaluate` reads, are here too.
"""

import gzip
import hashlib
import io
import os
import pathlib
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import bad_images
import jobs  # Puts the project on the path.
import numpy as np
from hypothesis import strategies as st
from PIL import Image
from scipy import io as scipy_io

from crosr_jax import saved, types
from crosr_jax.data import catalog, raw

# Memory that a reader of these small files may take, beside what was taken.
_MOST_BYTES = 16 << 20
_BOMB = 32 << 20  # bytes that a few ten thousand expand to
_EVIL = (
  *('../escaped', '../../escaped', 'a/../../../escaped', '..', './../escaped'),
  *('/escaped', '//escaped', '..\\escaped', 'C:\\escaped', ''),
)
_SETS = ('mnist', 'omniglot', 'cifar10', 'cifar100', 'odin', 'svhn', 'npz')
_PACKINGS = {
  'mnist': ('gz', 'plain'),
  'omniglot': ('zip', 'folder'),
  'cifar10': ('tar.gz', 'tar', 'folder'),
  'cifar100': ('tar.gz', 'tar', 'folder'),
  'odin': ('tar.gz', 'tar', 'folder'),
  'svhn': ('mat',),
  'npz': ('npz',),
}
_CHANGES = (
  *('evil name', 'evil link', 'duplicate', 'device', 'fifo', 'missing'),
  *('more', 'too large', 'bomb', 'lying size', 'other content', 'sparse'),
)


class Case(NamedTuple):
  """One data set in one packing, and what is wrong with it."""

  name: str
  packing: str
  changes: tuple[tuple[str, int], ...]  # to members, with a number for details
  damage: tuple[tuple[str, float, int], ...]  # to the bytes of one file
  file: int  # which of them
  magic: bytes  # that it begins with instead; b'' = its own


@st.composite
def cases(draw: Any) -> Case:
  """Cases."""
  name = draw(st.sampled_from(_SETS))
  packing = draw(st.sampled_from(_PACKINGS[name]))
  change = st.tuples(st.sampled_from(_CHANGES), st.integers(0, 99))
  one = st.tuples(
    st.sampled_from(('cut', 'flip', 'put', 'double', 'drop', 'zero')),
    st.floats(0, 1),
    st.integers(0, 255),
  )
  way = draw(st.sampled_from(('changes', 'damage', 'magic', 'both', 'none')))
  return Case(
    name,
    packing,
    tuple(draw(st.lists(change, min_size=1, max_size=2)))
    if way in ('changes', 'both')
    else (),
    tuple(draw(st.lists(one, min_size=1, max_size=3)))
    if way in ('damage', 'both')
    else (),
    draw(st.integers(0, 3)),
    draw(
      st.sampled_from(
        (
          b'PK\x03\x04',
          b'\x1f\x8b',
          b'\x89PNG',
          b'BZh9',
          b'\x93NUMPY',
          b'\0' * 9,
        )
      )
    )
    if way == 'magic'
    else b'',
  )


class Member(NamedTuple):
  """What a packing holds."""

  name: str
  content: bytes
  kind: str = 'file'  # or link, hard link, device, fifo, sparse, lying


def _png(pixels: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


class DataSet(NamedTuple):
  """One data set in small: what is in its files, and in itself."""

  spec: catalog.DataSet
  files: dict[str, list[Member]]  # by the name of the file without its packing
  parts: dict[str, raw.Raw]


def _part(image: np.ndarray, label: np.ndarray) -> catalog.Part:
  digests = (
    hashlib.sha256(x.tobytes()).hexdigest()
    for x in (image, label.astype('<i4'))
  )
  return catalog.Part(len(label), *digests)


def _spec(name: str, parts: dict[str, raw.Raw]) -> catalog.DataSet:
  spec = catalog.DATA_SETS[name]
  return spec._replace(
    files={n: f._replace(sha256='') for n, f in spec.files.items()},
    parts={n: _part(*part) for n, part in parts.items()},
  )


def _sorted(image: np.ndarray, label: np.ndarray) -> raw.Raw:
  keys = [hashlib.sha256(x.tobytes()).digest() for x in image]
  order = sorted(range(len(label)), key=lambda i: (keys[i], int(label[i])))
  return raw.Raw(image[order], label[order])


def _samples(count: int, shape: tuple[int, int, int]) -> raw.Raw:
  generator = np.random.default_rng(count)
  image = generator.integers(0, 256, (count, *shape), np.uint8)
  return raw.Raw(image, np.arange(count, dtype=np.int32) % 10)


def _mnist() -> DataSet:
  parts = {'train': _samples(5, (28, 28, 1)), 'test': _samples(3, (28, 28, 1))}
  contents = []
  for part in parts.values():
    for array in (part.image[..., 0], part.label.astype(np.uint8)):
      head = bytes([0, 0, 8, array.ndim])
      head += struct.pack(f'>{array.ndim}I', *array.shape)
      contents.append(head + array.tobytes())
  spec = _spec('mnist', parts)
  names = list(spec.files)
  files = {n: [Member(n, c)] for n, c in zip(names, contents, strict=True)}
  return DataSet(spec, files, parts)


def _omniglot() -> DataSet:
  shape = catalog.DATA_SETS['omniglot'].image_shape
  parts, files = {}, {}
  generator = np.random.default_rng(0)
  names = list(catalog.DATA_SETS['omniglot'].files)
  for i, part in enumerate(catalog.DATA_SETS['omniglot'].parts):
    label = np.array([2 * i, 2 * i, 2 * i + 1], np.int32)
    image = (generator.integers(0, 2, (3, *shape)) * 255).astype(np.uint8)
    parts[part] = raw.Raw(image, label)
    files[names[i]] = [
      Member(f'x/alphabet{k // 2}/character{k}/{j}.png', _png(x[..., 0]))
      for j, (x, k) in enumerate(zip(image, label, strict=True))
    ]
  return DataSet(_spec('omniglot', parts), files, parts)


def _records(part: raw.Raw, num_labels: int) -> bytes:
  return b''.join(
    bytes([k]) * num_labels + x.transpose(2, 0, 1).tobytes()
    for x, k in zip(part.image, part.label, strict=True)
  )


def _cifar10() -> DataSet:
  parts = {'train': _samples(10, (32, 32, 3)), 'test': _samples(2, (32, 32, 3))}
  members = [
    Member(
      f'cifar/data_batch_{i + 1}.bin',
      _records(raw.Raw(*(x[2 * i : 2 * i + 2] for x in parts['train'])), 1),
    )
    for i in range(5)
  ]
  members.append(Member('cifar/test_batch.bin', _records(parts['test'], 1)))
  spec = _spec('cifar10', parts)
  return DataSet(spec, {next(iter(spec.files)): members}, parts)


def _cifar100() -> DataSet:
  part = _samples(4, (32, 32, 3))
  members = [
    Member('cifar/test.bin', _records(part, 2)),
    Member('cifar/fine_label_names.txt', b'apple\nbear\n'),
  ]
  parts = {'test': _sorted(*part)}
  spec = _spec('cifar100', parts)
  return DataSet(spec, {next(iter(spec.files)): members}, parts)


def _odin() -> DataSet:
  parts, files = {}, {}
  spec = catalog.DATA_SETS['odin']
  for name, part in zip(spec.files, spec.parts, strict=True):
    image = _samples(3, (32, 32, 3)).image
    files[name] = [
      Member(f'x/{i}.png', _png(pixels)) for i, pixels in enumerate(image)
    ]
    parts[part] = _sorted(image, np.zeros(3, np.int32))
  return DataSet(_spec('odin', parts), files, parts)


def _svhn() -> DataSet:
  parts, files = {}, {}
  spec = catalog.DATA_SETS['svhn']
  for name, part in zip(spec.files, spec.parts, strict=True):
    parts[part] = _samples(4, (32, 32, 3))
    image, label = parts[part]
    file = io.BytesIO()
    digit = np.where(label == 0, 10, label).astype(np.uint8)[:, None]
    scipy_io.savemat(
      file, {'X': image.transpose(1, 2, 3, 0), 'y': digit}, do_compression=True
    )
    files[name] = [Member(name, file.getvalue())]
  return DataSet(_spec('svhn', parts), files, parts)


def features() -> dict[str, types.Features]:
  """Few, of two parts."""
  return {
    part: types.Features(
      np.ones((4, 3), np.float32),
      np.zeros((4, 2), np.float32),
      np.arange(4, dtype=np.int32) % 3,
      np.ones(4, np.float32),
    )
    for part in ('train', 'test')
  }


def _npz() -> DataSet:
  members = []
  for part, found in features().items():
    for field, array in found._asdict().items():
      file = io.BytesIO()
      np.save(file, array)
      members.append(Member(f'{part}/{field}.npy', file.getvalue()))
  return DataSet(catalog.DATA_SETS['mnist'], {'features': members}, {})


MAKERS: dict[str, Callable[[], DataSet]] = {
  'mnist': _mnist,
  'omniglot': _omniglot,
  'cifar10': _cifar10,
  'cifar100': _cifar100,
  'odin': _odin,
  'svhn': _svhn,
  'npz': _npz,
}


def changed(
  members: list[Member], changes: tuple[tuple[str, int], ...]
) -> list[Member]:
  """With what an archive should not hold."""
  found = list(members)
  for change, number in changes:
    i = number % max(len(found), 1)
    chosen = found[i] if found else Member('x', b'')
    evil = _EVIL[number % len(_EVIL)]
    match change:
      case 'evil name':
        at = f'{evil}/{chosen.name}' if number % 2 else evil
        found[i : i + 1] = [chosen._replace(name=at)]
      case 'evil link':
        kind = 'link' if number % 2 else 'hard link'
        found.insert(i, Member(chosen.name, evil.encode(), kind))
      case 'duplicate':
        found.append(chosen)
      case 'device' | 'fifo' | 'sparse':
        found[i : i + 1] = [chosen._replace(kind=change)]
      case 'missing':
        del found[i : i + 1]
      case 'more':
        stem, dot, suffix = chosen.name.rpartition('.')
        found.append(Member(f'{stem}0{dot}{suffix}', chosen.content))
      case 'too large':
        more = bytes(1 + 40_000 * (number % 4))
        found[i : i + 1] = [chosen._replace(content=chosen.content + more)]
      case 'bomb':
        found[i : i + 1] = [chosen._replace(kind='bomb')]
      case 'lying size':
        found[i : i + 1] = [chosen._replace(kind='lying')]
      case 'other content':
        content = np.random.default_rng(number).bytes(len(chosen.content))
        found[i : i + 1] = [chosen._replace(content=content)]
  return found


def _content(member: Member) -> bytes:
  """Nothing but zeros of a bomb, and of what lies about its size."""
  is_large = member.kind in ('bomb', 'lying')
  return member.content + bytes(_BOMB) if is_large else member.content


def _zip(members: list[Member]) -> bytes:
  file = io.BytesIO()
  lies = []
  with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
    for member in members:
      info = zipfile.ZipInfo(member.name or 'x')
      # As archives say it: a link's target is its content.
      info.external_attr = (
        0o120777 if 'link' in member.kind else 0o100644
      ) << 16
      if member.name and os.sep in member.name:
        info.filename = member.name
      archive.writestr(info, _content(member), zipfile.ZIP_DEFLATED, 1)
      if member.kind == 'lying':
        lies.append((len(member.content) + _BOMB, len(member.content)))
  data = file.getvalue()
  for real, told in lies:
    data = data.replace(struct.pack('<I', real), struct.pack('<I', told))
  return data


def _tar(members: list[Member]) -> bytes:
  file = io.BytesIO()
  kinds = {
    'link': tarfile.SYMTYPE,
    'hard link': tarfile.LNKTYPE,
    'device': tarfile.CHRTYPE,
    'fifo': tarfile.FIFOTYPE,
  }
  with tarfile.open(
    fileobj=file, mode='w', format=tarfile.PAX_FORMAT
  ) as archive:
    for member in members:
      info = tarfile.TarInfo(member.name)
      if member.kind in kinds:
        info.type = kinds[member.kind]
        info.linkname = member.content.decode('latin-1')[:90]
        archive.addfile(info)
        continue
      if member.kind == 'sparse':
        # Claims what it does not hold.
        info.pax_headers = {
          'GNU.sparse.map': '0,1', 'GNU.sparse.size': str(1 << 40),
          'GNU.sparse.numblocks': '1', 'GNU.sparse.offset': '0',
        }  # fmt: skip
      content = _content(member)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return file.getvalue()


def _in_folder(members: list[Member], folder: pathlib.Path) -> None:
  for member in members:
    path = folder / member.name.replace('..', 'up').lstrip('/')
    if path.is_dir() or path.exists() or path.is_symlink():
      continue
    path.parent.mkdir(parents=True, exist_ok=True)
    match member.kind:
      case 'link':
        path.symlink_to(os.fsdecode(member.content) or 'nowhere')
      case 'hard link':
        path.symlink_to(path.name)
      case 'fifo':
        os.mkfifo(path)
      case 'device':
        path.symlink_to('/dev/zero')
      case 'bomb' | 'lying' | 'sparse':
        with path.open('wb') as file:
          file.truncate(_BOMB * 1000)
      case _:
        path.write_bytes(member.content)


class Trial:
  """Writes a data set, and reads it."""

  def __init__(self, folder: pathlib.Path):
    self.cases = cases()
    self._folder = folder / 'raw'
    self._sets = {name: make() for name, make in MAKERS.items()}

  def __call__(self, case: Case) -> list[str]:
    """What is wrong; raises a UserError where the case is refused."""
    shutil.rmtree(self._folder, ignore_errors=True)
    self._folder.mkdir()
    found = self._sets[case.name]
    paths = {}
    for i, (name, members) in enumerate(found.files.items()):
      if i == case.file % len(found.files):
        members = changed(members, case.changes)
        paths[name] = self._write(case, name, members)
        if paths[name].is_file():
          data = bad_images.damaged(paths[name].read_bytes(), case.damage)
          if case.magic:
            data = case.magic + data[len(case.magic) :]
          paths[name].write_bytes(data)
      else:
        paths[name] = self._write(case, name, members)
    before = jobs.tree(self._folder) if case.packing != 'folder' else None
    start = _memory('VmRSS')
    # From here on the peak is the reader's, not that of writing the files.
    pathlib.Path('/proc/self/clear_refs').write_text('5')
    refused, faults = None, []
    try:
      if case.name == 'npz':
        faults = _read_features(paths['features'])
      else:
        faults = _read(case, found, paths)
    except types.UserError as error:
      refused = error
    if _memory('VmHWM') - start > _MOST_BYTES:
      faults.append('more memory than a small data set needs')
    if before is not None and jobs.tree(self._folder) != before:
      faults.append('files changed')
    if refused and not faults:
      raise refused
    return faults

  def _write(
    self, case: Case, name: str, members: list[Member]
  ) -> pathlib.Path:
    stem = name.partition('.')[0]
    path = self._folder / f'{stem}.{case.packing}'
    if case.packing == 'folder':
      path = self._folder / stem
      path.mkdir()
      _in_folder(members, path)
      return path
    if case.packing in ('zip', 'npz'):
      data = _zip(members)
    elif case.packing.startswith('tar'):
      data = _tar(members)
    else:
      data = b''.join(map(_content, members))
    if case.packing in ('gz', 'tar.gz'):
      data = gzip.compress(data, 1)
    path.write_bytes(data)
    return path


def _memory(name: str) -> int:
  """Bytes, of Linux alone."""
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  (found,) = (line for line in lines if line.startswith(name))
  return int(found.split()[1]) << 10


def _read(
  case: Case, found: DataSet, paths: dict[str, pathlib.Path]
) -> list[str]:
  """What is accepted is what was published."""
  read = raw.READERS[case.name](found.spec, paths)
  return [
    f'{part} is not read back equal'
    for part, expected in found.parts.items()
    if not all(map(np.array_equal, read.parts[part], expected))
  ]


def _read_features(path: pathlib.Path) -> list[str]:
  found = saved.read_features(path)
  copy = path.with_name('again.npz')
  saved.write_features(copy, found)
  again = saved.read_features(copy)
  copy.unlink()
  is_equal = found.keys() == again.keys() and all(
    np.array_equal(x, y, equal_nan=x.dtype.kind == 'f')
    for name in found
    for x, y in zip(found[name], again[name], strict=True)
  )
  return [] if is_equal else ['features are not read back equal']
