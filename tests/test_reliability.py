"""The scripts in reliability/ see what they look for."""

import json
import time

import hypothesis
import numpy as np
import pytest

from crosr_jax import types

_SCRIPTS = 'reliability'


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


def test_each_stage_meets_both_signals(script):
  kills = script('kills')
  met = {kills.aim(number) for number in range(2 * len(kills.STAGES))}
  assert len(met) == 2 * len(set(kills.STAGES))


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


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--scratch=/dev/null/x'], '--scratch: /dev/null/x cannot be made'),
    (['--scratch={}', '--kills=0'], '--kills: must be at least 1, got 0'),
    (['--scratch={}', '--jobs=-1'], '--jobs: must be at least 1, got -1'),
  ],
)
def test_mistakes(script, tmp_path, monkeypatch, capsys, arguments, message):
  arguments = [x.format(tmp_path) for x in arguments]
  monkeypatch.setattr('sys.argv', ['kills.py', *arguments])
  with pytest.raises(SystemExit) as found:
    script('kills').main()
  assert found.value.code == 2 and message in capsys.readouterr().err


def test_growth_is_after_warm_up(script):
  soak = script('soak')
  rows = [soak.Row(own, 9, 1.0) for own in (1, 50, 80, 90, 99, 100, 102, 104)]
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


@pytest.mark.parametrize(
  ('trial', 'how', 'fault'),
  [
    (lambda case: [], 'accepted', ''),
    (lambda case: ['differs'], 'defect', 'differs'),
    (lambda case: int('x'), 'defect', 'ValueError: test_reliability.py'),
    (lambda case: time.sleep(9), 'defect', 'no end: '),
  ],
)
def test_what_is_no_refusal_is_a_defect(script, trial, how, fault):
  found = script('bad_input').examine(trial, 0, 0.2)
  assert found.how == how and ''.join(found.faults).startswith(fault)


def test_a_refusal_has_words(script):
  bad_input = script('bad_input')

  def refuse(case):
    raise types.UserError(case)

  found = bad_input.examine(refuse, 'two\nlines', 1)
  assert (found.how, found.said) == ('refused', 'two lines')
  assert bad_input.examine(refuse, '', 1).how == 'defect'


def test_strays_are_files_elsewhere_and_aside(script, tmp_path):
  bad_input = script('bad_input')
  for name in ('own/fine', 'elsewhere'):
    (tmp_path / name).mkdir(parents=True)
  assert bad_input.strays(tmp_path) == []
  (tmp_path / 'elsewhere' / 'x').touch()
  (tmp_path / 'own' / '.y.aside').touch()
  assert bad_input.strays(tmp_path) == [
    'written outside: elsewhere/x', 'left aside',
  ]  # fmt: skip


def test_defects_are_counted_by_place(script):
  bad_input = script('bad_input')
  tally = bad_input.Tally('images')
  for case in range(5):
    tally.add(case, bad_input.Outcome('defect', 'x', ['a: b'], 0.1))
  tally.add(9, bad_input.Outcome('refused', 'x', [], 0.3))
  found = tally.told()
  assert found['slowest'] == 0.3 and len(found['defects']['a: b']['cases']) == 3
  assert '| images | 6 | 0 | 1 | 5 | 1 |' in bad_input.table([found])


@pytest.mark.parametrize('kind', ['images', 'archives'])
def test_a_few_bad_inputs(script, tmp_path, kind):
  bad_input = script('bad_input')
  trial = script(f'bad_{kind}').Trial(tmp_path)
  found = set()

  @hypothesis.settings(max_examples=25, derandomize=True, database=None)
  @hypothesis.given(trial.cases)
  def each(case):
    outcome = bad_input.examine(trial, case, 60)
    assert not outcome.faults, outcome
    found.add(outcome.how)

  each()
  assert found == {'accepted', 'refused'}


def test_a_page_with_a_name_in_it_keeps_its_elements(script):
  bad_names = script('bad_names')
  plain = bad_names.Page('<p class="x">a</p>')
  assert bad_names.Page('<p class="x">&lt;b&gt;</p>').shape == plain.shape
  for text in ('<p class="x"><b></p>', '<p class="x" y>a</p>', '<p>a</p>'):
    assert bad_names.Page(text).shape != plain.shape


def test_a_config_file_of_a_case_sets_what_it_says(script, tmp_path):
  bad_config = script('bad_config')
  case = bad_config.Case('digits', 'force', (('train.flip', 'x"\n'),))
  path = tmp_path / 'config.py'
  path.write_text(bad_config._source(case, ''))
  assert bad_config.parse([f'--config={path}']).train.flip == 'x"\n'
