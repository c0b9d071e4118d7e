"""Commands as they start by themselves: one line of them, and no other.

Most tests fork them from a process that has imported everything (commands.py).
"""

import os
import subprocess
import sys

import commands
import pytest
from conftest import ROOT


@pytest.mark.parametrize(
  ('arguments', 'code', 'told'),
  [
    ('main --config=configs/digits.py --config.seed=-1', 2, 'seed must be'),
    ('compare --config=configs/digits.py --splits=0', 2, '--splits=0'),
    ('rank --config=configs/digits.py --hold_out=6', 2, '--hold_out=6'),
    ('prepare mist', 2, "did you mean 'mnist'"),
    ('predict --workdir={run} {empty}', 2, 'holds no image'),
    ('evaluate --workdir={run} --unknown=mnist_noise', 2, 'made of known test'),
    ('diagnose --workdir={empty}', 1, 'no finished run'),
    ('add_class --workdir={run} --name=0 {image}', 2, 'cannot name a new'),
    ('demo --workdir={empty} --port=0', 1, 'no finished run'),
    ('export --workdir={run} --output={run}/model.json', 2, "run's own"),
  ],
)
def test_a_mistake_is_the_one_line(
  digits_run, environment, tmp_path, arguments, code, told
):
  empty = tmp_path / 'empty'
  empty.mkdir()
  image = tmp_path / 'x.png'
  image.touch()
  words = [
    x.format(run=digits_run[0], empty=empty, image=image)
    for x in arguments.split()
  ]
  name, *rest = words
  if name in ('main', 'compare', 'rank'):
    rest.append(f'--workdir={tmp_path / "w"}')
  process = subprocess.run(
    [sys.executable, '-m', f'crosr_jax.{name}', *rest],
    cwd=ROOT, env=environment, capture_output=True, text=True,
  )  # fmt: skip
  assert process.returncode == code, process.stderr
  (line,) = process.stderr.splitlines()
  assert line.startswith('error: ') and told in line


@pytest.mark.parametrize('platforms', ['cuda', 'rocm'])
def test_devices_that_are_not_there_are_one_line(environment, platforms):
  asked = {'JAX_PLATFORMS': platforms, 'CUDA_VISIBLE_DEVICES': ''}
  process = subprocess.run(
    [sys.executable, '-m', 'crosr_jax.main', '--config=configs/digits.py',
     '--dry_run'],
    cwd=ROOT, env={**environment, **asked}, capture_output=True, text=True,
  )  # fmt: skip
  assert process.returncode == 1, process.stderr
  (line,) = process.stderr.splitlines()
  assert line.startswith(f'error: JAX_PLATFORMS={platforms}: ')
  assert 'unset it' in line


@pytest.mark.parametrize('is_there', [True, False])
def test_an_accelerator_that_is_not_used_is_told(environment, is_there):
  code = f"""
import jax
from jax._src import hardware_utils
from crosr_jax import cli

hardware_utils.has_visible_nvidia_gpu = lambda: {is_there}
hardware_utils.num_available_tpu_chips_and_device_id = lambda: (0, None)
cli.run(lambda: print(jax.devices()))
"""
  own = {k: v for k, v in environment.items() if k != 'JAX_PLATFORMS'}
  process = subprocess.run(
    [sys.executable, '-c', code], env=own, capture_output=True, text=True
  )
  assert process.returncode == 0, process.stderr
  lines = process.stderr.splitlines()
  # Of what it looks for besides, and does not find, nothing.
  assert len(lines) == is_there
  assert all(x.startswith('An NVIDIA GPU may be present') for x in lines)


def test_a_server_that_died_is_started_anew(commands_server):
  assert commands_server.run('prepare', '--help').returncode == 0
  commands_server._process.kill()
  commands_server._process.wait()
  assert commands_server.run('prepare', '--help').returncode == 0


def test_what_runs_ends_with_its_server(environment, tmp_path):
  """And does not outlive the tests."""
  path = tmp_path / 'wait.py'
  path.write_text("import time\nprint('here', flush=True)\ntime.sleep(600)\n")
  server = commands.Server(environment, tmp_path)
  started = server.start(path)
  assert started.prints('her') == 'here'
  server.stop()
  with pytest.raises(ProcessLookupError):
    os.kill(started.pid, 0)
