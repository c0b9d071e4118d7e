"""One run in several real processes, against the same run in one."""

import json
import re
import signal

import numpy as np
import pytest
from conftest import XLA_FLAGS, free_port

# The main job in small; or a training of next to nothing, in which one is lost.
_COMMAND = """
import itertools, os, pathlib, signal, sys
from typing import Any, NamedTuple
from crosr_jax import cli, distributed

_PROCESSES = cli.define_processes()
distributed._SECONDS_OF_SILENCE = int(os.environ.get('SILENCE', 60))


def check_doors():
  import jax.numpy as jnp
  import numpy as np
  from crosr_jax import sharding, types, weibull

  index, count = sharding.jax.process_index(), sharding.jax.process_count()
  # Uneven shares, some of them of nothing; dtypes that JAX would narrow.
  sharding._MOST_BYTES = 100
  for n in (1, 7, 33):
    for dtype in (np.float64, jnp.bfloat16, np.int64, bool):
      for shape in ((n,), (n, 3), (n, 0), (n, 2, 2)):
        rows = np.random.default_rng(n).normal(size=shape)
        rows = (1e9 * rows).astype(dtype)
        found = sharding.gathered(rows[sharding.share(n)])
        assert found.dtype == rows.dtype and found.shape == rows.shape
        assert found.tobytes() == rows.tobytes()
  told = sharding.agreed({'index': index, 'x': [0.1, None]})
  assert told == {'index': 0, 'x': [0.1, None]}
  tree = {'a': np.full(2 + index, index - 0.0), 'b': np.float32(index)}
  found = sharding.of_writer(tree)
  assert found['a'].tolist() == [0.0, 0.0] and found['a'].dtype == np.float64
  assert found['b'] == 0 and found['b'].dtype == np.float32
  # A streamed fit, each process of its own blocks.
  generator = np.random.default_rng(0)
  label = np.arange(301) % 3
  whole = types.Features(
    generator.normal(size=(301, 3)) + 6 * np.eye(3)[label],
    generator.normal(size=(301, 8)),
    label,
  )
  own = types.Features(*(x[sharding.share(301)] for x in whole[:3]))
  recipe = {'scaling': 'within_class', 'tail_share': 0.2}
  fitted = weibull.fit_stream(
    lambda: [own], everyone=sharding.everyones, **recipe
  )
  for a, b in zip(fitted[1:], weibull.fit(whole, **recipe)[1:]):
    np.testing.assert_allclose(a, b, rtol=1e-9)


class State(NamedTuple):
  step: Any
  w: Any


def train(parallel, workdir, lost):
  import jax
  import numpy as np
  from crosr_jax import loop, sharding

  def step(state, batch):
    w = state.w * 0.9 + jax.lax.pmean(batch.mean(), 'batch')
    return State(state.step + 1, w), {'loss': w[0]}

  def order(first):
    for i in itertools.count(first):
      # As if its machine was lost.
      if f'{jax.process_index()}:{i}' == lost:
        os.kill(os.getpid(), signal.SIGKILL)
      if f'{jax.process_index()}:{i}' == os.environ.get('ASKED'):
        os.kill(os.getpid(), int(os.environ['ASKED_BY']))
      yield np.arange(i, i + 8, dtype=np.float32)[sharding.share(8)]

  found = loop.run(
    sharding.engine(step, parallel=parallel),
    State(np.zeros((), np.int32), np.zeros(2, np.float32)),
    order,
    workdir,
    loop.Words('training', ('loss',), ''),
    num_steps=100,
    batch_size=8,
    log_every=25,
    checkpoint_every=25,
    keep_checkpoints=3,
  )
  # At once: Gloo writes there too.
  told = ' '.join(map(str, ['w', *found.state.w.tolist()]))
  sys.stdout.write(f'\\n{told}\\n')


def main():
  processes = cli.processes(_PROCESSES)
  with distributed.joined(processes):
    from configs import digits
    from crosr_jax import pipeline, sharding

    if processes and 'LOST' not in os.environ:
      check_doors()
    parallel = os.environ['PARALLEL']
    workdir = pathlib.Path(os.environ['WORKDIR'], parallel)
    if 'LOST' in os.environ:
      train(parallel, workdir, os.environ['LOST'])
    else:
      config = digits.get_config()
      config.update_from_flattened_dict({
        'parallel': parallel, 'model.width': 8, 'model.latent_width': 8,
        'model.dropout': 0.1, 'model.head_dropout': 0.1,
        'train.num_steps': 50, 'train.checkpoint_every': 25,
        'train.batch_size': 48, 'train.log_every': 25,
        'train.mixup': 0.2, 'train.keep': 'best',
        'weibull.tail': '10', 'report.pictures': False,
      })
      result = pipeline.run(config, 'digits', workdir, workdir)
      assert bool(result) == sharding.is_writer()
  print('done', flush=True)


cli.run(main)
"""


@pytest.fixture(scope='module')
def start(start_command, command):
  """Starts `count` processes of the same run."""

  def call(workdir, count, devices, parallel, **more):
    address = f'--coordinator_address=127.0.0.1:{free_port()}'
    more |= {
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
      + XLA_FLAGS,
      'WORKDIR': str(workdir),
      'PARALLEL': parallel,
    }
    return [
      start_command(
        *(command, address, f'--num_processes={count}', f'--process_id={i}'),
        **more,
      )
      for i in range(count)
    ]

  return call


def _ended(processes):
  """Code, stdout and stderr of each."""
  try:
    found = [process.ended() for process in processes]
  finally:
    for process in processes:
      process.send_signal(signal.SIGKILL)
  return [(done.returncode, done.stdout, done.stderr) for done in found]


def _all_done(processes):
  for code, out, err in _ended(processes):
    assert code == 0 and 'done' in out, err


@pytest.fixture(scope='module')
def alone(start, tmp_path_factory):
  """Workdir of the run in one process, on one device."""
  workdir = tmp_path_factory.mktemp('alone')
  _all_done(start(workdir, 1, 1, 'shard_map'))
  return workdir / 'shard_map'


def _numbers(value, where=''):
  """'a.b[0]' -> each number and text of a report but times and devices."""
  if isinstance(value, dict):
    value = {f'.{k}': v for k, v in value.items()}
  elif isinstance(value, list):
    value = {f'[{i}]': v for i, v in enumerate(value)}
  else:
    return {where: value}
  found = {}
  for k, v in value.items():
    if k not in (
      '.seconds',
      '.images_per_second',
      '.device',
      '.parallel',
      '.sha256',
    ):
      found |= _numbers(v, where + k)
  return found


def _difference(workdir, expected):
  """The largest of all numbers that a run leaves, relative to 1 or more."""
  largest = {}
  for name in ('weights', 'fitted', 'features'):
    with (
      np.load(workdir / f'{name}.npz') as a,
      np.load(expected / f'{name}.npz') as b,
    ):
      assert a.files == b.files
      for key in a.files:
        assert a[key].shape == b[key].shape and a[key].dtype == b[key].dtype
        if a[key].dtype.kind == 'f':
          found = np.abs(a[key] - b[key]) / np.maximum(np.abs(b[key]), 1)
          largest[f'{name}/{key}'] = found.max(initial=0)
        else:
          # Order and labels.
          np.testing.assert_array_equal(a[key], b[key], err_msg=key)
  a, b = (
    _numbers(json.loads((x / 'report.json').read_text()))
    for x in (workdir, expected)
  )
  assert a.keys() == b.keys()
  for key in a:
    if isinstance(a[key], float):
      largest[key] = abs(a[key] - b[key])
    else:
      assert a[key] == b[key], key
  return max((found, key) for key, found in largest.items())


@pytest.mark.parametrize(
  ('count', 'devices', 'parallel'),
  [(2, 2, 'pmap'), (3, 2, 'shard_map')],
)
def test_processes_end_where_one_ends(
  start, alone, tmp_path, count, devices, parallel, record_property
):
  """The two of uneven shares: 533 unknown digits, say."""
  _all_done(start(tmp_path, count, devices, parallel))
  workdir = tmp_path / parallel
  difference, where = _difference(workdir, alone)
  record_property('largest difference', f'{difference} {where}')
  assert difference < 1e-5, where
  log = (workdir / 'run.log').read_text()
  assert f'on {count * devices} x cpu' in log
  # One of them writes.
  assert log.count('writing the report') == 1
  assert len(list((workdir / 'tensorboard').iterdir())) == 1


def test_a_lost_process_ends_the_others_and_any_number_goes_on(start, tmp_path):
  parallel = 'pmap'
  digests = tmp_path / parallel / 'digests'
  started = start(tmp_path, 2, 1, parallel, LOST='1:60', SILENCE='10')
  (code, out, err), (lost, _, _) = _ended(started)
  assert lost == -signal.SIGKILL
  assert code == 1 and 'done' not in out
  assert err.count('error: ') == 1 and 'Traceback' not in err
  assert (
    err.strip()
    .splitlines()[-1]
    .startswith('error: process 1: nothing was heard of it for 10 s')
  )
  assert sorted(x.name for x in digests.iterdir()) == ['25.json', '50.json']
  # One goes on, and is lost too; then two again.
  (found,) = _ended(start(tmp_path, 1, 1, parallel, LOST='0:80'))
  assert found[0] == -signal.SIGKILL
  assert 'restored the checkpoint of step 50' in found[2]
  w = 0.0
  for i in range(100):
    w = 0.9 * w + i + 3.5
  for i, (code, out, err) in enumerate(
    _ended(start(tmp_path, 2, 1, parallel, LOST=''))
  ):
    assert code == 0, err
    # What was being written when it was lost may be missing.
    restored = re.search('restored the checkpoint of step (50|75)', err)
    assert bool(restored) == (i == 0)
    told = re.search(r'^w (.*)$', out, re.MULTILINE)[1].split()
    np.testing.assert_allclose([float(x) for x in told], [w, w], rtol=1e-6)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_one_is_asked_to_end_and_all_do(start, tmp_path, number):
  """At the next row after step 60; what is saved there is gone on from.

  Who was not asked ends as by SIGTERM.
  """
  parallel = 'shard_map'
  asked = {'ASKED': '1:60', 'ASKED_BY': str(int(number))}
  ended = _ended(start(tmp_path, 2, 1, parallel, LOST='', **asked))
  assert [x[0] for x in ended] == [-signal.SIGTERM, -number]
  for _, out, err in ended:
    assert 'done' not in out
    assert 'error: ' not in err and 'Traceback' not in err
    assert 'asked to end: saved the checkpoint of step 75' in err
  digests = tmp_path / parallel / 'digests'
  assert sorted(x.name for x in digests.iterdir())[-1] == '75.json'
  again = _ended(start(tmp_path, 2, 1, parallel, LOST=''))
  assert 'restored the checkpoint of step 75' in again[0][2]
  assert [code for code, *_ in again] == [0, 0]


def test_all_end_where_one_is_asked_before_the_first_step(start, tmp_path):
  """The first batch is drawn to compile with."""
  asked = {'ASKED': '1:0', 'ASKED_BY': str(int(signal.SIGTERM))}
  ended = _ended(start(tmp_path, 2, 1, 'shard_map', LOST='', **asked))
  for code, out, err in ended:
    assert code == -signal.SIGTERM and 'done' not in out
    assert 'error: ' not in err and 'Traceback' not in err
  assert not list(tmp_path.rglob('*.json'))
