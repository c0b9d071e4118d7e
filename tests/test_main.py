"""The main job as a user runs it: one process, one config, one workdir."""

import functools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, SMALL

from crosr_jax import saved


@pytest.fixture(scope='session')
def run(run_command):
  """Runs the main job; returns the finished process."""
  return functools.partial(run_command, 'main')


@pytest.fixture(scope='session')
def start(start_command):
  """Starts the main job."""
  return functools.partial(start_command, 'main')


def _fails(process, code, *words):
  """One line on stderr with these words, this exit code, no traceback."""
  assert process.returncode == code, process.stderr
  assert 'Traceback' not in process.stderr
  lines = [x for x in process.stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 1, process.stderr
  for word in words:
    assert word in lines[0]


@pytest.fixture(scope='session')
def whole(run, tmp_path_factory):
  """A run that nothing interrupted, its seconds, and what it printed."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  begin = time.monotonic()
  process = run(*SMALL, f'--workdir={workdir}')
  assert process.returncode == 0, process.stderr
  return workdir, time.monotonic() - begin, process.stdout


@pytest.fixture
def finished(whole, tmp_path):
  """A copy of that run's workdir, to do with as one likes."""
  return shutil.copytree(whole[0], tmp_path / 'finished')


def _figures(workdir):
  """All of a report but its times."""
  report = json.loads((workdir / 'report.json').read_text())
  del report['train'], report['sha256']
  return report


def test_main_job(whole):
  finished, _, printed = whole
  assert 'digits_unknown: 316 known, 533 unknown' in printed
  report = json.loads((finished / 'report.json').read_text())
  assert report['parameters'] > 0 and report['train']['steps'] == 300
  methods = {
    'crosr', 'crosr_published', 'crosr_y', 'openmax', 'softmax', 'max_logit',
  }  # fmt: skip
  for name, count in (('digits_unknown', 533), ('noise', 316)):
    row = report['unknown'][name]
    assert row['n_known'] == 316 and row['n_unknown'] == count
    assert methods | {'trivial', 'openness'} <= row.keys()
    for method in methods:
      assert 0 < row[method]['auroc'] <= 1
      assert np.sum(row['crosr']['confusion']) == 316 + count
  assert report['unknown']['noise']['max_logit']['macro_f1'] is None
  found = saved.load(finished)
  assert set(found.models) == methods - {'softmax', 'max_logit'}
  assert found.info['class_names'] == list('0123456')
  for name in ('report.html', 'report.md', 'run.log', 'config.json'):
    assert (finished / name).stat().st_size > 0


def test_again_with_other_scorer_fields(run, finished):
  before = _figures(finished)
  process = run(
    *SMALL, f'--workdir={finished}', '--config.scorer.decision=tpr95',
    '--config.weibull.scaling=none', '--config.report.pictures=True',
    "--config.evaluation.unknown_sets=('mnist_noise:sum',)",
  )  # fmt: skip
  assert process.returncode == 0, process.stderr
  assert 'first step' not in process.stderr
  assert 'restored the checkpoint of step 300' in process.stderr
  after = _figures(finished)
  assert after['closed_set_accuracy'] == before['closed_set_accuracy']
  assert after['known_rejected'] != before['known_rejected']
  assert list(after['unknown']) == ['digits_unknown', 'mnist_noise_sum']
  assert (finished / 'figures' / 'map.png').exists()


def test_bound_fields_are_named(run, finished):
  process = run(*SMALL, f'--workdir={finished}', '--config.train.flip=True')
  _fails(process, 2, 'train.flip was False and is now True', '--workdir')
  process = run(*SMALL, f'--workdir={finished}', '--config.seed=3')
  _fails(process, 2, 'seed was 0 and is now 3')


def test_a_workdir_that_lost_its_config(run, finished):
  (finished / 'config.json').unlink()
  arguments = (*SMALL, f'--workdir={finished}')
  process = run(*arguments, '--config.train.learning_rate=0.5')
  _fails(process, 2, 'has lost its config.json', 'word for word')
  assert not (finished / 'config.json').exists()
  process = run(*arguments, '--config.scorer.reject_known=0.05')
  assert process.returncode == 0, process.stderr
  assert 'first step' not in process.stderr


def test_a_workdir_from_before_a_field(run, finished):
  path = finished / 'config.json'
  config = json.loads(path.read_text())
  del config['train']['keep'], config['model']['eval_crop']
  del config['data']['splits'], config['counterfactual']
  path.write_text(json.dumps(config))
  # It had the default, and nothing else.
  process = run(*SMALL, f'--workdir={finished}', '--config.train.keep=best')
  _fails(process, 2, "train.keep was 'last' and is now 'best'")
  process = run(*SMALL, f'--workdir={finished}', '--config.seed=3')
  _fails(process, 2, ': seed was 0 and is now 3; take')


def test_damaged_checkpoint_falls_back(run, finished, whole):
  newest = finished / 'checkpoints' / '300'
  target = max(newest.rglob('*'), key=lambda p: p.stat().st_size)
  target.write_bytes(target.read_bytes()[:-1])
  process = run(*SMALL, f'--workdir={finished}')
  assert process.returncode == 0, process.stderr
  assert 'checkpoint 300 cannot be trusted' in process.stderr
  assert 'restored the checkpoint of step 240' in process.stderr
  assert _figures(finished) == _figures(whole[0])


def _assert_as(workdir, whole):
  assert _figures(workdir) == _figures(whole)
  for name in ('weights.npz', 'fitted.npz'):
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()
  logs = (path / 'checkpoints/300/log/metadata' for path in (workdir, whole))
  before, after = (json.loads(x.read_text())['history'] for x in logs)
  assert before == after
  assert list(workdir.rglob('.*')) == []


def test_killed_at_any_moment_ends_bit_equal(
  run, start, whole, request, tmp_path
):
  seed = time.time_ns()
  generator = np.random.default_rng(seed)
  for i in range(request.config.getoption('--kills')):
    workdir = tmp_path / f'killed{i}'
    moment = generator.uniform(0.3, 1.0) * whole[1]
    # Shown where it fails.
    print(f'seed {seed}, run {i}: killed after {moment:.3f} s')
    process = start(*SMALL, f'--workdir={workdir}')
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.ended()
    again = run(*SMALL, f'--workdir={workdir}')
    assert again.returncode == 0, again.stderr
    _assert_as(workdir, whole[0])


def test_one_job_at_a_time_and_sigterm_saves_first(run, start, whole, tmp_path):
  workdir = tmp_path / 'w'
  process = start(*SMALL, f'--workdir={workdir}')
  process.tells('first step after')
  process.send_signal(signal.SIGSTOP)
  holder = f'process {process.pid} on {socket.gethostname()}'
  second = run(*SMALL, f'--workdir={workdir}')
  _fails(second, 1, str(workdir), f'in use by {holder}', 'take another')
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGCONT)
  told = process.ended().stderr
  assert process.returncode == -signal.SIGTERM
  saved_step = re.search(
    r'asked to end: saved the checkpoint of step (\d+)', told
  )
  assert told.endswith(
    'terminated; the same command goes on from what was saved\n'
  )
  again = run(*SMALL, f'--workdir={workdir}')
  assert again.returncode == 0, again.stderr
  assert f'restored the checkpoint of step {saved_step[1]}\n' in again.stderr
  _assert_as(workdir, whole[0])


@pytest.mark.parametrize(
  'code',
  [
    'cli.run(lambda: signal.raise_signal(signal.SIGINT))',
    # Where Python cannot pass it on, as while it collects garbage.
    """class X:
  def __del__(self):
    signal.raise_signal(signal.SIGINT)


def main():
  X()
  sys.exit('it went on')


cli.run(main)""",
  ],
)
def test_an_interrupted_command_ends_by_the_signal(environment, code):
  """Else a shell would go on with the next round of its loop."""
  code = f'import signal, sys\nfrom crosr_jax import cli\n{code}'
  process = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True
  )
  assert process.returncode == -signal.SIGINT
  assert process.stderr == b'interrupted\n'


def test_a_workdir_that_is_deleted_is_not_made_anew(start, tmp_path):
  workdir = tmp_path / 'w'
  process = start(*SMALL, f'--workdir={workdir}')
  process.tells('fitting and scoring')
  process.send_signal(signal.SIGSTOP)
  shutil.rmtree(workdir)
  process.send_signal(signal.SIGCONT)
  _fails(process.ended(), 1, f'{workdir} was deleted while the run was in it')
  assert not workdir.exists()


def test_files_that_cannot_be_written(run, environment, whole, tmp_path):
  """As on a full disk, which needs root: no file may be larger than 4 kB."""
  workdir = tmp_path / 'w'
  process = subprocess.run(
    ['bash', '-c', 'ulimit -f 4; exec "$@"', 'bash',
     sys.executable, '-m', 'crosr_jax.main', *SMALL, f'--workdir={workdir}'],
    cwd=ROOT, env=environment, capture_output=True, text=True,
  )  # fmt: skip
  _fails(process, 1, 'checkpoint of step 60 cannot be written', str(workdir))
  again = run(*SMALL, f'--workdir={workdir}')
  assert again.returncode == 0, again.stderr
  _assert_as(workdir, whole[0])


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([], ['--config is needed', '--config=configs/digits.py']),
    (['--config='], ['--config is needed']),
    (['--config=configs/digit.py'], ['no file', 'mean configs/digits.py?']),
    (['--config=configs/digits.py:'], ['no variant after the colon']),
    ([*SMALL, '--config=configs/no.py'], ['more than once']),
    ([*SMALL, f'--config.seed={10**30}'], ['seed is too large', str(10**30)]),
    (
      [*SMALL, f'--config.seed={2**31 - 1}', '--config.model.members=3'],
      [f'seed={2**31 - 1} is too large for model.members=3'],
    ),
    ([*SMALL, '--config.seed=-1'], ['seed must be at least 0, got -1']),
    (['--config=configs'], ["'configs' is a folder"]),
    (['--config=setup.cfg'], ['setup.cfg cannot be loaded', '.py']),
    (['--config=configs/digits.py:paper'], ['no variants', ':paper']),
    ([*SMALL, '--config.train.numsteps=3'],
     ["no field 'train.numsteps'", 'did you mean train.num_steps?']),
    ([*SMALL, '--config.trian.num_steps=3'], ["no field 'trian.num_steps'"]),
    ([*SMALL, '--config.train=3'], ["'train'", 'it is a section']),
    ([*SMALL, '--config.train.num_steps=many'], ['num_steps=many']),
    ([*SMALL, '--config.train.num_steps=1.5'], ['num_steps=1.5']),
    ([*SMALL, '--config.train.flip=perhaps'], ['flip=perhaps']),
    ([*SMALL, '--config.train.num_steps=-1'], ['num_steps', '-1']),
    ([*SMALL, '--config.model.lateral=bottle'], ["'bottle'", 'bottleneck']),
    ([*SMALL, '--config.data.unknown_classes=1,2,3,4,5,6,7,8,9'],
     ['leaves 1 of 10', 'at least 2']),
    ([*SMALL, '--config.weibull.tail=0.05'], ["'0.05'", "'5%'"]),
    ([*SMALL, '--config.scorer.reject_known=0.6'], ['reject_known', '0.6']),
    ([*SMALL, '--config.scorer.decision=half1'], ["'half1'", 'half']),
    ([*SMALL, '--config.scorer.alpha=0'], ['alpha', '0']),
    ([*SMALL, '--config.parallel=both'], ["'both'", 'shard_map']),
    ([*SMALL, '--wrkdir=x'], ["'wrkdir'", 'workdir']),
    ([*SMALL, 'runs/x'], ["unexpected argument 'runs/x'"]),
    ([*SMALL, '--workdir=setup.cfg'], ['--workdir=setup.cfg is a file']),
    ([*SMALL, '--workdir=/proc/nowhere'], ['--workdir=/proc/nowhere cannot']),
    ([*SMALL, '--workdir=setup.cfg/x'], ['--workdir=setup.cfg/x cannot']),
  ],
)  # fmt: skip
def test_usage_errors(run, tmp_path, arguments, words):
  if arguments and not any(a.startswith('--workdir') for a in arguments):
    arguments = [*arguments, f'--workdir={tmp_path / "w"}']
  _fails(run(*arguments), 2, *words)


def test_config_with_a_mistake(run, tmp_path):
  path = tmp_path / 'mine.py'
  for text, words in (
    ('def get_config(:', ['SyntaxError']),
    ('x = 1', ['AttributeError', 'get_config']),
    ('import nowhere', ['nowhere']),
    ('def get_config():\n  return {}["a"]', ['KeyError']),
  ):
    path.write_text(text)
    _fails(run(f'--config={path}'), 2, str(path), *words)


def test_class_that_cannot_be_fitted(run, tmp_path):
  arguments = (*SMALL, f'--workdir={tmp_path / "w"}')
  # A typo that stopped a run does not bind its workdir.
  _fails(run(*arguments, '--config.train.momentum=2'), 2, 'momentum')
  process = run(*arguments, '--config.train.num_steps=1')
  _fails(process, 1, 'class ', 'at least 2 are needed', 'train longer')
  assert 'error: class' in (tmp_path / 'w' / 'run.log').read_text()
  # A checkpoint does.
  _fails(run(*arguments), 2, 'train.num_steps was 1 and is now 300')


def test_divergence_is_one_line(run, tmp_path):
  process = run(
    *SMALL, f'--workdir={tmp_path / "w"}', '--config.train.clip_norm=0',
    '--config.train.learning_rate=1e30', '--config.train.schedule=constant',
    '--config.train.warmup_share=0',
  )  # fmt: skip
  _fails(process, 1, 'diverged', 'train.learning_rate')


def test_config_from_anywhere(run, tmp_path):
  # A user's own file, in a folder of its own, and a workdir beside it.
  (tmp_path / 'mine.py').write_text(
    'from configs import common\n\n\ndef get_config(variant=""):\n'
    '  config = common.get_config()\n'
    '  config.train.num_steps = 2 if variant == "short" else 3\n'
    '  return config\n'
  )
  process = run('--config=mine.py:short', '--config.nothing=1', cwd=tmp_path)
  _fails(process, 2, "no field 'nothing'")
  process = run('--config=mine.py:short', cwd=tmp_path)
  assert (tmp_path / 'runs' / 'mine-short' / 'config.json').exists()
  assert '2/2' in process.stderr


def test_help_lists_flags_and_fields(run):
  process = run('--help')
  assert process.returncode == 0
  words = ' '.join(process.stdout.split())
  assert words.startswith('Trains a net')
  assert '--workdir: folder of the run' in words
  assert (
    '--config.train.num_steps=1000: Steps of the whole training; schedules '
    'stretch to it.' in words
  )
  process = run('--help', '--config=configs/digits.py')
  assert '--config.train.num_steps=600: Steps' in process.stdout
