"""The scripts in reliability/ see what they look for."""

import importlib
import json
import sys

import numpy as np
import pytest
from conftest import ROOT


@pytest.fixture
def script(monkeypatch):
  """Imports a script by its name."""
  monkeypatch.syspath_prepend(str(ROOT / 'reliability'))

  def load(name):
    sys.modules.pop(name, None)
    return importlib.import_module(name)

  return load


def test_half_written_files_are_found(script, tmp_path):
  jobs = script('jobs')
  np.savez(tmp_path / 'a.npz', x=np.arange(9))
  (tmp_path / 'b.json').write_text('{"a": 1}')
  (tmp_path / 'c.html').write_text('<html></html>')
  step = tmp_path / 'checkpoints' / '20'
  step.mkdir(parents=True)
  (step / 'data').write_text('x')
  (tmp_path / 'digests').mkdir()
  digests = json.dumps({'data': jobs.digest(step / 'data')})
  (tmp_path / 'digests' / '20.json').write_text(digests)
  # Unfinished ones have other names.
  (tmp_path / '.a.npz.host.1.x.aside').write_text('half')
  assert jobs.half_written(tmp_path) == []
  assert jobs.leftovers(tmp_path) == ['.a.npz.host.1.x.aside']
  for path in (tmp_path / 'a.npz', tmp_path / 'b.json', tmp_path / 'c.html'):
    before = path.read_bytes()
    path.write_bytes(before[:-3])
    assert jobs.half_written(tmp_path)[0].startswith(path.name)
    path.write_bytes(before)
  (step / 'data').write_text('y')
  assert jobs.half_written(tmp_path) == ['20/data']
  # A checkpoint without digests is not read.
  (tmp_path / 'digests' / '20.json').unlink()
  assert jobs.half_written(tmp_path) == []


def test_a_difference_of_one_bit_is_seen(script, digits_run, tmp_path):
  jobs = script('jobs')
  workdir, _ = digits_run
  jobs.LAST_STEP = 200
  whole = jobs.result(workdir)
  assert jobs.differing(workdir, whole) == []
  log = json.loads(json.dumps(whole['history']))
  log[0]['loss'] = np.nextafter(log[0]['loss'], 9)
  assert jobs.differing(workdir, whole | {'history': log}) == ['history']
  assert jobs.differing(tmp_path, whole)[0].startswith('FileNotFoundError')


def test_what_is_said_must_be_one_line(script):
  faults = script('faults')
  assert faults.told_plainly(1, 'x\nerror: disk is full', 'disk') == []
  assert faults.told_plainly(1, 'error: disk', 'full') == ['not said: full']
  assert faults.told_plainly(1, 'error: a\nerror: b') != []
  assert faults.told_plainly(1, 'Traceback\nerror: a') == ['traceback']
  assert faults.told_plainly(137, 'error: a') != []


def test_tables_count_what_was_lost(script):
  kills = script('kills')
  fine = kills.Kill(
    0, 'fit', 'SIGTERM', 0.1, '', 0.5, 143, False, [], [], [], ''
  )
  lost = fine._replace(number=1, differing=['report'], seconds=1.5)
  told = kills.tables([fine, lost])
  assert '| fit | SIGTERM | 2 | 1 | 1 |' in told
  assert '| all |  | 2 | 1 | 1 |' in told
  assert '| fit | 2 | 0 | 1.00 | 1.50 |' in told


def test_growth_is_after_warm_up(script):
  soak = script('soak')
  rows = [soak.Row(rss, 9, 1.0) for rss in (1, 50, 80, 90, 99, 100, 102, 104)]
  assert soak.growth(rows) == pytest.approx(2.0)


def test_prepared_numbers_are_what_was_made(script, tmp_path, monkeypatch):
  small = script('small_mnist')
  monkeypatch.setattr(small, '_SAMPLES', {'train': 30, 'test': 10})
  monkeypatch.setitem(
    small.catalog.DATA_SETS, 'mnist', small.make(tmp_path / 'raw')
  )
  small.prepared.prepare('mnist', tmp_path / 'data', tmp_path / 'raw')
  parts = small.catalog.DATA_SETS['mnist'].parts
  assert small.found(tmp_path / 'raw', tmp_path / 'data') == {
    name: part.image_sha256 + part.label_sha256 for name, part in parts.items()
  }
