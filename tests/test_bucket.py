"""Folders of a bucket, against a server that speaks its protocol."""

import contextlib
import http.server
import itertools
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
import types as python_types
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import ROOT, SMALL, free_port
from gcp_storage_emulator import server as emulator
from google.cloud import storage
from PIL import Image
from test_prepared import mnist  # noqa: F401

import crosr_jax
from crosr_jax import bucket, checkpoint, cli, files, prepare, types
from crosr_jax.data import prepared

_URL = 'gs://models/runs/x'


class _Server:
  """The server; what it was asked, and what it answers with a failure."""

  def __init__(self, host):
    self.host = host
    self.asked: list[str] = []
    self.fails = lambda count, asked: 0  # the status, 0 = as it is
    self.bucket = storage.Client(project=None).bucket('models')

  def names(self, prefix=''):
    return {
      blob.name.removeprefix(prefix)
      for blob in self.bucket.list_blobs(prefix=prefix)
    }

  def read(self, name):
    blob = self.bucket.get_blob(name)
    return blob and blob.download_as_bytes()

  def write(self, name, data):
    self.bucket.blob(name).upload_from_string(data)


@pytest.fixture
def impatient(monkeypatch):
  """Nobody should wait for what fails for good."""
  monkeypatch.setattr(bucket, '_PATIENCE', {'read': 0.05, 'written': 0.05})


@pytest.fixture
def server(monkeypatch, tmp_path):
  port = free_port()
  monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{port}')
  monkeypatch.setenv('CROSR_JAX_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(bucket, '_FIRST_WAIT', 0.02)
  found = _Server(f'http://127.0.0.1:{port}')
  handle = emulator.Router.handle

  def listen(router, method):
    request = router._request_handler
    asked = f'{method} {request.path}'
    found.asked.append(asked)
    status = found.fails(len(found.asked) - 1, asked)
    if not status:
      return handle(router, method)
    request.rfile.read(int(request.headers.get('Content-Length', 0)))
    request.send_response(status, http.HTTPStatus(status).phrase)
    request.send_header('Content-Length', '0')
    return request.end_headers()

  monkeypatch.setattr(emulator.Router, 'handle', listen)
  # One at a time, it would wait for who keeps a connection open.
  threads = http.server.ThreadingHTTPServer
  monkeypatch.setattr(emulator.server, 'HTTPServer', threads)
  logging.getLogger('gcp_storage_emulator').setLevel(logging.CRITICAL)
  with emulator.create_server(
    '127.0.0.1', port, in_memory=True, default_bucket='models'
  ) as running:
    found.storage = running._storage
    yield found
  bucket._open.clear()


class _State(NamedTuple):
  step: Any
  w: Any


def _state(step):
  return _State(np.array(step, np.int32), np.full((3, 2), step, np.float32))


def _save(workdir, *steps, keep=3):
  with checkpoint.Checkpoints(workdir, keep) as checkpoints:
    checkpoints.restore(_state(0))
    for step in steps:
      checkpoints.save(step, _state(step), {'step': step})


def _restored(cache):
  """The step that another machine would go on from; 0 = the start."""
  shutil.rmtree(cache, ignore_errors=True)
  workdir = bucket.workdir(_URL, str(cache))
  with checkpoint.Checkpoints(workdir, 3) as checkpoints:
    found = checkpoints.restore(_state(0))
  if not found:
    return 0
  state, log = found
  np.testing.assert_array_equal(state.w, _state(int(state.step)).w)
  assert log == {'step': int(state.step)}
  return int(state.step)


def _local(workdir):
  return {
    path.relative_to(workdir).as_posix()
    for path in workdir.rglob('*')
    if path.is_file() and not path.name.startswith('.bucket.')
  }


def test_checkpoints_go_up_and_are_pruned(server, tmp_path):
  workdir = bucket.workdir(_URL)
  _save(workdir, 1, 2, 3, 4, keep=2)
  names = server.names('runs/x/')
  assert names == _local(workdir)
  assert {n for n in names if n.startswith('digests')} == {
    'digests/3.json', 'digests/4.json',
  }  # fmt: skip
  assert _restored(tmp_path / 'other') == 4


def _uploads(server):
  return [x for x in server.asked if x.startswith('POST /upload')]


def test_what_makes_it_count_goes_last(server):
  workdir = bucket.workdir(_URL)
  _save(workdir, 1)
  for name in ('model.json', 'weights.npz', 'a/report.json', 'report.html'):
    (workdir / name).parent.mkdir(exist_ok=True)
    (workdir / name).write_text(name)
  bucket.put(workdir)
  names = {name: i for i, name in enumerate(_order(server))}
  steps = [i for x, i in names.items() if 'checkpoints/1/' in x]
  assert max(steps) < names['runs/x/digests/1.json']
  assert names['runs/x/weights.npz'] < names['runs/x/model.json']
  assert names['runs/x/report.html'] < names['runs/x/a/report.json']
  # Changed, it counts no more while what it tells of changes.
  server.asked.clear()
  for name in ('model.json', 'weights.npz'):
    (workdir / name).write_text(name * 2)
  bucket.put(workdir)
  assert [
    x.partition(' ')[0] for x in server.asked if not x.startswith('GET')
  ] == ['DELETE', 'POST', 'POST']
  assert _order(server)[-2:] == ['runs/x/weights.npz', 'runs/x/model.json']


def _order(server):
  """Names in the order they came."""
  blobs = server.bucket.list_blobs()
  return [b.name for b in sorted(blobs, key=lambda b: b.generation)]


def _write(workdir, version):
  """A checkpoint and a model, as far as a bucket knows them."""
  shutil.rmtree(workdir / 'checkpoints', ignore_errors=True)
  shutil.rmtree(workdir / 'digests', ignore_errors=True)
  for name in ('a', 'b', 'c/d'):
    path = workdir / 'checkpoints' / version / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(version + name)
  (workdir / 'digests').mkdir()
  for name in (f'digests/{version}.json', 'weights.npz', 'model.json'):
    (workdir / name).write_text(version)


def _check_whole(server):
  """What counts has all that it tells of; returns what counts."""
  there = {
    name: server.read(f'runs/x/{name}').decode()
    for name in server.names('runs/x/')
  }
  steps = {n for n in there if n.startswith('digests/')}
  for step in steps:
    version = there[step]
    for name in ('a', 'b', 'c/d'):
      assert there[f'checkpoints/{version}/{name}'] == version + name
  if 'model.json' in there:
    assert there['weights.npz'] == there['model.json']
  return {there[step] for step in steps}, there.get('model.json')


def test_broken_off_at_any_request(server, tmp_path, impatient):
  """What counts in the bucket is whole, and what is missing goes up later."""
  seen, is_done = set(), False
  for i in itertools.count():
    for name in server.names():
      server.bucket.delete_blob(name)
    cache = str(tmp_path / f'cache{i}')
    workdir = bucket.workdir(_URL, cache)
    _write(workdir, '1')
    bucket.put(workdir)
    assert _check_whole(server) == ({'1'}, '1')
    _write(workdir, '2')
    server.asked.clear()
    # From the i-th request on.
    server.fails = lambda count, asked, i=i: 503 if count >= i else 0
    try:
      bucket.put(workdir)
      is_done = True
    except types.UserError as error:
      assert f'the copy in {workdir} is whole' in str(error)
      assert _URL in str(error)
    server.fails = lambda count, asked: 0
    steps, model = _check_whole(server)
    assert steps
    seen.add((*sorted(steps), model))
    # The same command again.
    bucket.put(bucket.workdir(_URL, cache))
    steps, model = _check_whole(server)
    assert '2' in steps and model == '2'
    if is_done:
      break
  assert i >= 10
  assert {('1', None), ('1', '2', '2'), ('2', '2')} <= seen


def test_training_where_the_bucket_fails(server, tmp_path, impatient, caplog):
  workdir = bucket.workdir(_URL)
  _save(workdir, 1)
  server.fails = lambda count, asked: 503
  with pytest.raises(types.UserError, match='copy in') as told:
    _save(workdir, 2)
  assert str(workdir) in str(told.value)
  assert any('trying again' in m for m in caplog.messages)
  server.fails = lambda count, asked: 0
  # Meanwhile another machine goes on from what went up; this one from its own.
  assert _restored(tmp_path / 'other') == 1
  workdir = bucket.workdir(_URL)
  with checkpoint.Checkpoints(workdir, 3) as checkpoints:
    assert checkpoints.restore(_state(0))[0].step == 2
  bucket.put(workdir)
  assert _restored(tmp_path / 'other') == 2


def test_a_failure_that_passes(server, caplog):
  workdir = bucket.workdir(_URL)
  server.asked.clear()
  (workdir / 'a').write_text('a')

  def told():
    return sum('trying again' in message for message in caplog.messages)

  # Until that was said twice: some requests are sent again without a word.
  server.fails = lambda count, asked: 503 if told() < 2 else 0
  with caplog.at_level(logging.WARNING):
    bucket.put(workdir)
  assert server.read('runs/x/a') == b'a'
  assert told() == 2


def test_truncated_is_not_whole(server, tmp_path, caplog):
  workdir = bucket.workdir(_URL)
  _save(workdir, 1, 2)
  name = max(
    (n for n in server.names() if '/checkpoints/2/' in n),
    key=lambda n: len(server.read(n)),
  )
  server.write(name, server.read(name)[:-1])
  assert _restored(tmp_path / 'other') == 1
  assert any('checkpoint 2 cannot be trusted' in m for m in caplog.messages)
  # Its next version takes its place, every file of it.
  other = bucket.workdir(_URL, str(tmp_path / 'other'))
  _save(other, 2)
  assert _restored(tmp_path / 'third') == 2


# Last the same, here, there -> on both sides. '-' is no file.
_MERGED = {
  '---': '-', '--c': 'c', '-b-': 'b', '-bb': 'b', '-bc': 'c',
  'a--': '-', 'a-a': 'a', 'a-c': 'c', 'aa-': '-', 'aaa': 'a', 'aac': 'c',
  'ab-': 'b', 'aba': 'b', 'abb': 'b', 'abc': 'c',
}  # fmt: skip


@pytest.mark.parametrize('case', _MERGED)
def test_two_sides(server, case, caplog):
  last, here, there = case
  expected = _MERGED[case]
  workdir = bucket.workdir(_URL)
  path, name = workdir / 'sub' / 'f', 'runs/x/sub/f'
  if last != '-':
    path.parent.mkdir()
    path.write_text(last)
    bucket.put(workdir)
  if here != '-':
    path.parent.mkdir(exist_ok=True)
    path.write_text(here)
  else:
    path.unlink(missing_ok=True)
  if there != '-':
    server.write(name, there)
  elif last != '-':
    server.bucket.delete_blob(name)
  with caplog.at_level(logging.WARNING):
    assert bucket.workdir(_URL) == workdir
  assert any('changed in' in m for m in caplog.messages) == (case == 'abc')
  bucket.put(workdir)
  assert (path.read_text() if path.exists() else '-') == expected
  assert (server.read(name) or b'-') == expected.encode()
  if expected == '-' and here != '-':
    assert not path.parent.exists()


def test_a_lost_copy_deletes_nothing(server):
  workdir = bucket.workdir(_URL)
  _save(workdir, 1, 2)
  names = server.names()
  shutil.rmtree(workdir / 'checkpoints')
  bucket.workdir(_URL)
  bucket.put(workdir)
  assert server.names() == names
  shutil.rmtree(workdir)
  bucket.workdir(_URL)
  bucket.put(workdir)
  assert server.names() == names


def test_names_that_are_no_paths(server, tmp_path):
  server.write('runs/x/in', b'x')
  server.write('runs/xy', b'x')
  # The server would not make such, others do.
  there = server.storage.objects['models']
  for name in ('runs/x/../../out', f'runs/x/{tmp_path}/out', 'runs/x/d/'):
    there[name] = {**there['runs/x/in'], 'name': name}
  assert len(server.names()) == 5
  workdir = bucket.workdir(_URL)
  assert _local(workdir) == {'in'}
  assert not list(tmp_path.rglob('out'))


def test_large_and_put_together_there(server, generator):
  data = generator.bytes(9 * 2**20)
  workdir = bucket.workdir(_URL)
  (workdir / 'large').write_bytes(data)
  bucket.put(workdir)
  assert server.read('runs/x/large') == data
  # As a copy in parallel makes it: without an MD5.
  parts = [server.bucket.blob(f'part{i}') for i in range(2)]
  for i, part in enumerate(parts):
    part.upload_from_string(data[i * 2**22 :][: 2**22])
  server.bucket.blob('runs/x/both').compose(parts)
  server.asked.clear()
  bucket.workdir(_URL)
  assert (workdir / 'both').read_bytes() == data[: 2**23]
  bucket.workdir(_URL)
  bucket.put(workdir)
  assert len([x for x in server.asked if 'alt=media' in x]) == 1
  assert not _uploads(server)


def test_a_finished_run_is_brought_alone(server, tmp_path):
  for name in ('model.json', 'weights.npz', 'checkpoints/1/x', 'report.html'):
    server.write(f'runs/x/{name}', name)
  workdir = bucket.finished(_URL)
  assert _local(workdir) == {'model.json', 'weights.npz'}
  # Where nothing is written nothing goes up.
  (workdir / 'added.npz').write_text('x')
  bucket.put(workdir)
  assert 'runs/x/added.npz' not in server.names()
  workdir = bucket.finished(_URL, writes=True)
  (workdir / 'diagnosis.png').write_text('x')
  bucket.put(workdir)
  assert server.names('runs/x/') == {
    'model.json', 'weights.npz', 'checkpoints/1/x', 'report.html', 'added.npz',
    'diagnosis.png',
  }  # fmt: skip
  assert bucket.finished(tmp_path) == tmp_path


@pytest.mark.parametrize('failure', [None, types.UserError, types.UsageError])
def test_session(server, failure):
  try:
    with bucket.session():
      workdir = bucket.workdir(_URL)
      (workdir / 'run.log').write_text('x')
      if failure:
        raise failure('x')
  except types.UserError as error:
    assert type(error) is failure
  assert ('runs/x/run.log' in server.names()) == (
    failure is not types.UsageError
  )
  (workdir / 'later').write_text('x')
  bucket.put(workdir)
  assert 'runs/x/later' not in server.names()


def test_a_second_job_of_this_machine_changes_nothing(server):
  """It is refused before it brings or uploads anything."""
  with bucket.session():
    workdir = bucket.workdir(_URL)
    (workdir / 'weights.npz').write_text('half')
    server.write('runs/x/run.log', b'of another time')
    names = server.names('runs/x/')
    code = (
      'from crosr_jax import bucket\n'
      f'with bucket.session(): bucket.workdir("{_URL}")'
    )
    process = subprocess.run(
      [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
    )
    assert f'{workdir} is in use by process' in process.stderr
    assert server.names('runs/x/') == names
    assert not (workdir / 'run.log').exists()
    # Twice in one session is no second job.
    assert bucket.finished(_URL, writes=True) == workdir
  with bucket.session():
    bucket.finished(_URL)
    bucket.finished(_URL, writes=True)
    assert (workdir / '.bucket.lock').read_text().startswith('process')
    with (
      pytest.raises(types.UserError, match='is in use'),
      files.held(workdir, '.bucket.lock'),
    ):
      pass
  # Without a session nothing is held longer than it takes.
  bucket.finished(_URL, writes=True)
  with files.held(workdir, '.bucket.lock'):
    pass


def test_an_upload_that_failed_is_told_last(server, impatient):
  server.fails = lambda _, asked: 503 if 'upload' in asked else 0
  with (
    pytest.raises(types.UserError, match='cannot be written'),
    bucket.session(),
  ):
    workdir = bucket.workdir(_URL)
    (workdir / 'run.log').write_text('x')
    # As where a training diverges meanwhile, and others are to follow.
    with contextlib.suppress(types.UserError):
      bucket.put(workdir)


def test_who_took_it_last_has_it(server, tmp_path, caplog):
  def work(cache, step):
    workdir = bucket.workdir(_URL, str(tmp_path / cache))
    bucket.take(workdir)
    bucket.take(workdir)
    _save(workdir, step)
    return workdir

  with (
    pytest.raises(types.UserError, match=r'taken over by a job that has ended'),
    bucket.session(),
  ):
    first = work('a', 1)
    assert 'worked in by' not in caplog.text
    bucket._open.pop(first).leave()
    left = bucket._Mirror(_URL, str(tmp_path / 'a'), writes=True)
    left.open()
    left.take()
    # The first was lost, and another goes on.
    second = work('b', 2)
    assert f'{_URL} was worked in by process' in caplog.text
    caplog.clear()
    names = server.names('runs/x/')
    (first / 'run.log').write_text('more')
    with pytest.raises(types.UserError, match=r'taken over by process .* on'):
      left.put()
    # It does not try again, and takes nothing away from the second.
    left.put()
    left.leave()
    assert server.names('runs/x/') == names
    assert '.holder.json' in names
    bucket._open[second].leave()
    assert '.holder.json' not in server.names('runs/x/')
    (second / 'run.log').write_text('more')
    bucket.put(second)
  assert 'runs/x/run.log' not in server.names()
  assert _restored(tmp_path / 'c') == 2
  # Nobody could tell.
  server.write('runs/x/.holder.json', b'[1]')
  work('d', 3)
  assert 'worked in by somebody' in caplog.text


def test_prepared_in_a_bucket(server, mnist, tmp_path, monkeypatch, capsys):  # noqa: F811
  folder, images = mnist
  url = 'gs://models/data'

  def flag(value):
    return python_types.SimpleNamespace(value=value)

  for name, value in (('_DATA_DIR', url), ('_MANUAL_DIR', str(folder))):
    monkeypatch.setattr(prepare, name, flag(value))
  monkeypatch.setattr(cli, '_CACHE', flag(''))
  with bucket.session():
    prepare.main(['mnist'])
  assert capsys.readouterr().out == f'{url}/crosr_jax/mnist/1.0.0\n'
  assert _order(server)[-1] == 'data/crosr_jax/mnist/1.0.0/dataset_info.json'
  names = server.names()
  # To train on it, once.
  cache = str(tmp_path / 'other')
  data_dir = bucket.data(url, cache)
  server.asked.clear()
  for part, image in images.items():
    found, _ = prepared.read('mnist', part, data_dir)
    np.testing.assert_array_equal(found.image, image)
  assert len([x for x in server.asked if 'alt=media' in x]) == len(names)
  # What is damaged here is brought again.
  target = next(data_dir.rglob('*.array_record*'))
  target.write_bytes(target.read_bytes()[:-1])
  prepared.read('mnist', 'train', data_dir)
  # Prepared again it stays as it is.
  server.asked.clear()
  with bucket.session():
    prepare.main(['mnist'])
  assert not _uploads(server) and server.names() == names
  # Half of it is none, and is made whole.
  server.bucket.delete_blob('data/crosr_jax/mnist/1.0.0/dataset_info.json')
  data_dir = bucket.data(url, str(tmp_path / 'third'))
  bucket.bring(data_dir / 'crosr_jax' / 'mnist' / '1.0.0', 'dataset_info.json')
  assert not _local(data_dir)
  bucket._open.clear()
  monkeypatch.setenv('CROSR_JAX_CACHE', str(tmp_path / 'fourth'))
  with bucket.session():
    prepare.main(['mnist'])
  assert server.names() == names


def _one_line(call, *words):
  with pytest.raises(types.UserError) as caught:
    call()
  for word in words:
    assert word in str(caught.value)
  return caught.value


def test_errors(server, impatient, monkeypatch, tmp_path):
  _one_line(lambda: bucket.workdir('gs://nowhere/x'), 'no bucket nowhere')
  for url in ('gs://', 'gs:///x', 'gs://B/x', 'gs://models/a//b',
              'gs://models/../x'):  # fmt: skip
    error = _one_line(lambda url=url: bucket.workdir(url), url, 'gs://bucket/')
    assert error.exit_code == 2
  workdir = bucket.workdir(_URL)
  _one_line(lambda: bucket.data(_URL), 'both --workdir and --data_dir')
  server.fails = lambda count, asked: 403
  _one_line(lambda: bucket.workdir(_URL), _URL, 'no permission')
  (workdir / 'a').write_text('a')
  _one_line(lambda: bucket.put(workdir), 'no permission', str(workdir))
  server.fails = lambda count, asked: 503
  _one_line(lambda: bucket.workdir(_URL), 'cannot be read', '503')
  with monkeypatch.context() as patch:
    patch.setenv('STORAGE_EMULATOR_HOST', 'http://127.0.0.1:9')
    _one_line(lambda: bucket.workdir(_URL), _URL, 'refused')
  with monkeypatch.context() as patch:
    patch.delenv('STORAGE_EMULATOR_HOST')
    patch.setenv('GOOGLE_APPLICATION_CREDENTIALS', str(tmp_path / 'none'))
    _one_line(lambda: bucket.workdir(_URL), 'GOOGLE_APPLICATION_CREDENTIALS')
  monkeypatch.setitem(sys.modules, 'google.cloud.storage', None)
  _one_line(lambda: bucket.workdir(_URL), "pip install 'crosr_jax[gcs]'")


def test_killed_and_moved_to_another_machine(
  server, start_command, tmp_path, generator
):
  def start(*arguments, cache='cache'):
    return start_command(
      *arguments,
      STORAGE_EMULATOR_HOST=server.host,
      CROSR_JAX_CACHE=str(tmp_path / cache),
    )

  job = ('main', *SMALL, '--data_dir=gs://models/data')
  whole = start(*job, f'--workdir={tmp_path / "w"}').ended()
  assert whole.returncode == 0, whole.stderr
  killed = start(*job, f'--workdir={_URL}')
  while 'runs/x/digests/60.json' not in server.names():
    assert killed.poll() is None, killed.ended()
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  killed.ended()
  assert 'runs/x/model.json' not in server.names()
  shutil.rmtree(tmp_path / 'cache')
  again = start(*job, f'--workdir={_URL}').ended()
  told = again.stderr
  assert again.returncode == 0, told
  assert 'restored the checkpoint of step' in told
  assert f'{_URL} is up to date' in told
  for name in ('weights.npz', 'fitted.npz', 'features.npz'):
    expected = (tmp_path / 'w' / name).read_bytes()
    assert server.read(f'runs/x/{name}') == expected, name
  figures = [
    json.loads(x)
    for x in ((tmp_path / 'w/report.json').read_text(),
              server.read('runs/x/report.json'))
  ]  # fmt: skip
  for report in figures:
    del report['train'], report['sha256']
  assert figures[0] == figures[1]
  names = server.names('runs/x/')
  assert 'report.html' in names and 'digests/300.json' in names

  # Who asks elsewhere gets the same answers.
  image = generator.integers(0, 256, (5, 8, 8, 1), np.uint8)
  model = crosr_jax.load(_URL)
  np.testing.assert_array_equal(
    model(image).probability, crosr_jax.load(tmp_path / 'w')(image).probability
  )
  path = tmp_path / 'one.png'
  Image.fromarray(image[0, ..., 0]).save(path)
  asked = start(
    'predict', f'--workdir={_URL}', '--format=json', path, cache='elsewhere'
  ).ended()
  assert asked.returncode == 0, asked.stderr
  assert json.loads(asked.stdout)[0]['unknown_probability'] == pytest.approx(
    float(model(image[:1]).probability[0, -1]), rel=1e-5
  )
  (folder,) = (tmp_path / 'elsewhere').iterdir()
  assert _local(folder) == {
    'model.json', 'weights.npz', 'fitted.npz', 'features.npz',
  }  # fmt: skip

  # And a class that is added there is known everywhere.
  assert 'added.npz' not in names
  images = generator.integers(0, 256, (12, 8, 8, 1), np.uint8)
  more = crosr_jax.load(_URL).with_class('dots', images)
  more.save_added(_URL)
  assert 'added.npz' in server.names('runs/x/')
  shutil.rmtree(tmp_path / 'cache')
  assert crosr_jax.load(_URL).class_names[-1] == 'dots'
