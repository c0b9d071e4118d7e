"""Processes: told by flags or their surroundings, joined, and left."""

import http.server
import os
import signal
import threading
import time

import pytest
from conftest import CONFIGS, free_port

from crosr_jax import distributed, pipeline, sharding, types

# As a command of the project would do it.
_COMMAND = """
import os, sys, time
from crosr_jax import cli

_PROCESSES = cli.define_processes()


def main():
  processes = cli.processes(_PROCESSES)
  from crosr_jax import distributed, types
  distributed._SECONDS_OF_SILENCE = int(os.environ.get('SILENCE', 60))
  with distributed.joined(processes):
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    index = jax.process_index()
    total = jax.pmap(lambda x: jax.lax.psum(x, 'i'), 'i')(
      np.arange(2.0) + 10 * index
    )
    everyone = multihost_utils.process_allgather(np.array([index, 7]))
    seen = (
      jax.process_count(), jax.device_count(), jax.local_device_count(),
      np.asarray(total.addressable_data(0)).item(), everyone.tolist(),
    )
    # At once: Gloo writes there too.
    sys.stdout.write('\\n' + ' '.join(map(str, seen)) + '\\n')
    sys.stdout.flush()
    what = os.environ.get('WHAT')
    if what == f'fail {index}':
      raise types.UsageError(f'a mistake of process {index}')
    if what:
      time.sleep(600)


cli.run(main)
"""
_SEEN = '2 4 2 22.0 [[0, 7], [1, 7]]'


@pytest.fixture
def start(start_command):
  """Starts a command with two devices."""
  flags = '--xla_force_host_platform_device_count=2'
  started = []

  def call(*arguments, **variables):
    started.append(start_command(*arguments, XLA_FLAGS=flags, **variables))
    return started[-1]

  yield call
  for process in started:
    process.send_signal(signal.SIGKILL)


@pytest.fixture
def pair(start, command):
  """Starts two processes, by flags."""

  def call(**variables):
    address = f'--coordinator_address=127.0.0.1:{free_port()}'
    return [
      start(
        command, address, '--num_processes=2', f'--process_id={i}', **variables
      )
      for i in range(2)
    ]

  return call


def _ended(process, limit=300):
  """Code, stdout and stderr of a process."""
  done = process.ended(limit)
  return done.returncode, done.stdout, done.stderr


def _last_line(text):
  return text.strip().splitlines()[-1]


def test_two_processes_find_each_other_by_flags(pair):
  for process in pair():
    code, out, err = _ended(process)
    assert code == 0, err
    assert _SEEN in out
    assert 'joining 2 processes, told by flags' in err


def test_two_processes_find_each_other_in_slurm(start, command):
  """What srun tells each of its tasks is enough."""
  job = free_port()  # two runs of the tests at once must not meet
  tasks = {
    'SLURM_JOB_ID': str(job),
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_STEP_NUM_TASKS': '2',
    'SLURM_STEP_TASKS_PER_NODE': '2',
    'SLURM_NODEID': '0',
  }
  started = [
    start(command, **tasks, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))
    for i in range(2)
  ]
  for process in started:
    code, out, err = _ended(process)
    assert code == 0, err
    assert _SEEN in out and 'told by SLURM' in err


@pytest.mark.parametrize('fails', [0, 1])
def test_a_process_that_fails_tells_the_others_why(pair, fails):
  """JAX alone would wait 300 s for the others, which compute on."""
  started = pair(WHAT=f'fail {fails}')
  # Gloo has words there too, and in pieces.
  assert started[0].prints('2 ') == _SEEN
  begin = time.monotonic()
  ended = [_ended(process, limit=90) for process in started]
  assert time.monotonic() - begin < 60
  told = [_last_line(err) for _, _, err in ended]
  # With the same code: a mistake is not tried again.
  assert [code for code, _, _ in ended] == [2, 2]
  assert told[fails] == f'error: a mistake of process {fails}'
  assert told[1 - fails] == f'error: process {fails}: ' + told[fails][7:]
  assert all(err.count('error:') == 1 for _, _, err in ended)


def test_a_process_that_is_killed_is_missed(pair):
  """JAX alone would not hear SIGTERM at all."""
  first, second = pair(WHAT='sleep', SILENCE='5')
  assert first.prints('2 ') == _SEEN
  second.send_signal(signal.SIGTERM)
  assert _ended(second, limit=90)[0] == -signal.SIGTERM
  begin = time.monotonic()
  code, _, err = _ended(first, limit=90)
  assert 3 < time.monotonic() - begin < 60
  assert code == 1 and err.count('error:') == 1
  assert _last_line(err).startswith(
    'error: process 1: nothing was heard of it for 5 s'
  )


def test_where_nobody_answers_one_line_says_so(start, command, environment):
  port = free_port()
  without = {k: None for k in environment if 'proxy' in k.lower()}
  started = [
    start(
      command,
      f'--coordinator_address=127.0.0.1:{port + shift}',
      '--num_processes=2',
      f'--process_id={index}',
      '--initialization_timeout=2',
      **without,
    )
    # Process 0 of one address, process 1 of another.
    for index, shift in ((0, 0), (1, 1))
  ]
  for process, words in zip(
    started,
    (
      'not all of 2 processes came within 2 s',
      f'process 1 of 2: nobody answers at 127.0.0.1:{port + 1} within 2 s '
      '(Connection refused); start process 0 there',
    ),
    strict=True,
  ):
    code, out, err = _ended(process)
    assert code == 1 and not out
    assert len(err.strip().splitlines()) == 2, err
    assert _last_line(err).startswith(f'error: {words}')


def test_a_mistake_of_the_main_job_is_one_line(run_command, tmp_path):
  """Told before JAX is loaded, and before anything is written."""
  workdir = tmp_path / 'run'
  for flags, words in (
    (['--num_processes=2'], 'without --coordinator_address and --process_id'),
    (['--num_processes=two'], '--num_processes=two'),
  ):
    process = run_command(
      'main', f'--workdir={workdir}', '--config=configs/digits.py', *flags
    )
    assert process.returncode == 2, process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    assert process.stderr.startswith('error: ') and words in process.stderr
    assert not workdir.exists()


def test_processes_of_different_configs_do_not_train(start, tmp_path):
  """They would train something else together, or wait for ever."""
  address = f'--coordinator_address=127.0.0.1:{free_port()}'
  workdir = tmp_path / 'run'
  started = [
    start(
      'main',
      address,
      '--num_processes=2',
      f'--process_id={i}',
      '--config=configs/digits.py',
      f'--config.train.num_steps={7 + i}',
      f'--workdir={workdir}',
    )
    for i in range(2)
  ]
  ended = [_ended(process, limit=90) for process in started]
  told = (
    'the configs of the processes differ: train.num_steps is 8 here and 7 in '
    'process 0; start all'
  )
  for (code, _, err), by in zip(ended, ('process 1: ', ''), strict=True):
    assert code == 2, err
    assert err.count('error:') == 1 and 'Traceback' not in err
    assert _last_line(err).startswith(f'error: {by}{told}')
  assert not workdir.exists()


@pytest.mark.parametrize(
  ('first', 'words'),
  [
    ({'train.flip': True}, 'train.flip is False here and True in process 0'),
    ({'crosr_jax': '0.0'}, "and '0.0' in process 0"),
    ({'train.nothing': 1}, 'train.nothing is not there here and 1 in process'),
  ],
)
def test_what_differs_between_processes_is_named(monkeypatch, first, words):
  config = CONFIGS['digits']
  pipeline._check_same(config)
  monkeypatch.setattr(sharding, 'agreed', lambda own: {**own, **first})
  with pytest.raises(types.UsageError) as error:
    pipeline._check_same(config)
  assert words in str(error.value)


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (
      {'count': 2},
      '--num_processes=2 without --coordinator_address and --process_id',
    ),
    (
      {'address': 'a:1', 'index': 0},
      '--coordinator_address=a:1 --process_id=0 without --num_processes',
    ),
    (
      {'address': 'a', 'count': 2, 'index': 0},
      '--coordinator_address=a is no HOST:PORT',
    ),
    (
      {'address': '::1:8', 'count': 2, 'index': 0},
      '--coordinator_address=::1:8 is no HOST:PORT',
    ),
    (
      {'address': 'a:0', 'count': 2, 'index': 0},
      '--coordinator_address=a:0 is no HOST:PORT',
    ),
    (
      {'address': '', 'count': 2, 'index': 0},
      '--coordinator_address= is no HOST:PORT',
    ),
    (
      {'address': 'a:1', 'count': 2, 'index': 2},
      '--process_id=2: with --num_processes=2 the processes are 0 to 1',
    ),
    (
      {'address': 'a:1', 'count': 0, 'index': 0},
      '--num_processes=0: at least 1 is needed',
    ),
    (
      {'mode': 'off', 'address': 'a:1', 'count': 2, 'index': 0},
      '--distributed=off and --num_processes=2 contradict',
    ),
    ({'mode': 'onn'}, "got 'onn'; did you mean 'on'?"),
    ({'mode': 'on'}, 'neither SLURM (srun) nor a TPU tells'),
    ({'timeout': 0}, '--initialization_timeout=0: at least 1'),
  ],
)
def test_flags_that_cannot_be(flags, words):
  with pytest.raises(types.UsageError) as error:
    _told({}, **flags)
  assert words in str(error.value)


def _told(environment, mode='auto', **flags):
  """`told`, of an environment that is given whole."""
  before = dict(os.environ)
  os.environ.clear()
  os.environ.update(environment)
  try:
    return distributed.told(
      mode,
      flags.get('address'),
      flags.get('count'),
      flags.get('index'),
      flags.get('timeout', distributed.TIMEOUT),
    )
  finally:
    os.environ.clear()
    os.environ.update(before)


def _step(**more):
  return {
    'SLURM_JOB_ID': '4097',
    'SLURM_STEP_NODELIST': 'gpu[07-08,11],big',
    'SLURM_STEP_NUM_TASKS': '4',
    'SLURM_STEP_TASKS_PER_NODE': '1(x4)',
    'SLURM_PROCID': '2',
    'SLURM_NODEID': '2',
    'SLURM_LOCALID': '0',
    **more,
  }


def test_one_process_is_the_rule():
  for environment in (
    {},
    # In an allocation, but not started by srun.
    {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '8', 'SLURM_PROCID': '0'},
    _step(SLURM_STEP_NUM_TASKS='1', SLURM_PROCID='0'),
    {'TPU_WORKER_HOSTNAMES': 'localhost'},
    {'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': 'cpu'},
    {'KUBERNETES_SERVICE_HOST': '10.0.0.1'},
  ):
    assert _told(environment) is None, environment
  assert _told(_step(), mode='off') is None
  assert _told({}, address='a:1', count=1, index=0) is None
  # What was found, if it is one process, is enough for 'on'.
  assert _told({'TPU_WORKER_HOSTNAMES': 'localhost'}, mode='on') is None
  with pytest.raises(types.UsageError, match='tells of the processes'):
    _told({}, mode='on')


def test_a_step_of_slurm():
  found = _told(_step())
  assert found == distributed.Processes(4, 'SLURM', 'gpu07:61441', 2)
  # Flags come first.
  flags = {'address': '[::1]:8', 'count': 3, 'index': 1}
  assert _told(_step(), **flags) == distributed.Processes(
    3, 'flags', '[::1]:8', 1
  )


@pytest.mark.parametrize(
  ('nodes', 'first'),
  [
    ('node', 'node'),
    ('node001,other', 'node001'),
    ('node[001-015],other', 'node001'),
    ('node[3,7-9]', 'node3'),
    ('gpu[1-4]-ib,x', 'gpu1-ib'),
  ],
)
def test_the_first_node_of_a_list(nodes, first):
  found = _told(_step(SLURM_STEP_NODELIST=nodes))
  assert found.coordinator_address.split(':')[0] == first


@pytest.mark.parametrize(
  ('tasks', 'visible', 'devices'),
  [
    # The only task of its node has all of its GPUs.
    ('1(x4)', '0,1,2,3', ()),
    ('2(x2),1', '0,1', ()),
    # Tasks that share a node have one each.
    ('2(x3)', '0,1', (1,)),
    ('2(x3)', '', (1,)),
    # But where SLURM has given each its own, there is no other.
    ('2(x3)', '3', ()),
  ],
)
def test_gpus_of_a_task(tasks, visible, devices):
  found = _told(
    _step(
      SLURM_STEP_TASKS_PER_NODE=tasks,
      CUDA_VISIBLE_DEVICES=visible,
      SLURM_LOCALID='1',
    )
  )
  assert found.local_device_ids == devices


def test_hosts_of_a_tpu_in_a_pod():
  assert _told({'TPU_WORKER_HOSTNAMES': 'a,b,c'}) == distributed.Processes(
    3, 'TPU'
  )
  slices = {'TPU_WORKER_HOSTNAMES': 'a,b', 'MEGASCALE_NUM_SLICES': '2'}
  assert _told(slices).num_processes == 4


def test_hosts_of_a_tpu_vm(monkeypatch):
  """Its metadata server is asked, and no other machine's."""
  told = {
    'worker-network-endpoints': 'unknown:1:10.0.0.2,unknown:2:10.0.0.3',
    'tpu-env': "ZONE: 'a'\nMEGASCALE_NUM_SLICES: '2'\n",
  }
  asked = []

  class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)
      name = self.path.rpartition('/')[2]
      known = self.headers['Metadata-Flavor'] == 'Google' and name in told
      self.send_response(200 if known else 404)
      self.end_headers()
      self.wfile.write(told.get(name, '').encode())

    def log_message(self, *_):
      pass

  server = http.server.HTTPServer(('127.0.0.1', 0), Server)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  environment = {'GCE_METADATA_IP': f'127.0.0.1:{server.server_port}'}
  try:
    assert _told(environment) is None and not asked
    monkeypatch.setattr(distributed, '_is_tpu_vm', lambda _: True)
    assert _told(environment) == distributed.Processes(4, 'TPU')
    told['worker-network-endpoints'] = 'unknown:1:10.0.0.2'
    del told['tpu-env']
    assert _told(environment) is None
  finally:
    server.shutdown()
    server.server_close()
  # A TPU elsewhere, as a notebook's, has no such server.
  assert _told(environment) is None
