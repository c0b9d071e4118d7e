"""Strict JAX: 8 CPU devices, no silent promotion of types or ranks."""

import gc
import importlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
from importlib import metadata

# A shell has what it starts in the background not hear Ctrl-C, and so it would
# be with the commands that are sent it here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ['JAX_PLATFORMS'] = 'cpu'
ROOT = pathlib.Path(__file__).resolve().parent.parent
# A compiler that optimises little takes a quarter of the time and changes
# nothing that is tested here; and the same small programs are compiled again
# and again.
XLA_FLAGS = '--xla_backend_optimization_level=1'
AS_FOR_USERS: dict[str, bool] = {}
_JAXLIB = tuple(map(int, metadata.version('jaxlib').split('.')[:2]))
if _JAXLIB < (0, 11):
  # The older of two ways to fuse operations takes two thirds of that. Later
  # versions have one, and end at a flag that they do not know.
  XLA_FLAGS += ' --xla_cpu_use_fusion_emitters=false'
  AS_FOR_USERS['xla_cpu_use_fusion_emitters'] = True
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {XLA_FLAGS}'
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(ROOT / '.pytest_cache' / 'jax')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
# Of two at a time one may read what the other has written half, of which JAX
# warns, and compiles.
os.environ['PYTHONWARNINGS'] = 'ignore:Error reading persistent compilation'
# Commands that tests start as processes see one device, as on a laptop.
COMMAND_ENVIRONMENT = dict(os.environ)
# 8 devices here. On a busy machine eight replicas wait for each other longer
# than the 40 s after which XLA aborts.
os.environ['XLA_FLAGS'] += (
  ' --xla_force_host_platform_device_count=8'
  ' --xla_cpu_collective_call_terminate_timeout_seconds=600'
)

import commands
import hypothesis
import jax
import numpy as np
import pytest

# A folder that lies beside the project where the real data is at hand.
GOLDEN = ROOT.parent / 'shared' / 'golden'
_UNPACK = ROOT.parent / 'shared' / 'data' / 'unpack.py'

sys.path.insert(0, str(ROOT))


def _configs():
  """Every config by its name on the command line: 'file' or 'file:variant'."""
  found = {}
  for path in sorted((ROOT / 'configs').glob('*.py')):
    if path.stem != 'common':
      module = importlib.import_module(f'configs.{path.stem}')
      found[path.stem] = module.get_config()
      for variant in getattr(module, 'VARIANTS', ('',))[1:]:
        found[f'{path.stem}:{variant}'] = module.get_config(variant)
  return found


CONFIGS = _configs()
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Compilation makes first examples slow, which says nothing of the code.
hypothesis.settings.register_profile('crosr_jax', deadline=None)
hypothesis.settings.load_profile('crosr_jax')
# What has been imported stays: looking through all of it whenever tracing had
# made some hundred objects took a tenth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 100)


needs_raw = pytest.mark.skipif(
  'CROSR_JAX_RAW' not in os.environ and not _UNPACK.exists(),
  reason="needs the publishers' files: set CROSR_JAX_RAW to a folder with "
  'mnist/ and omniglot/ in it',
)


@pytest.fixture(scope='session')
def raw_data(tmp_path_factory):
  """Folder with a folder of the publisher's files for each data set."""
  if 'CROSR_JAX_RAW' in os.environ:
    return pathlib.Path(os.environ['CROSR_JAX_RAW'])
  folder = tmp_path_factory.mktemp('raw')
  subprocess.run(
    [sys.executable, _UNPACK, folder, 'mnist', 'omniglot'], check=True
  )
  return folder


needs_raw_colour = pytest.mark.skipif(
  not _UNPACK.exists()
  if 'CROSR_JAX_RAW' not in os.environ
  else not all(
    pathlib.Path(os.environ['CROSR_JAX_RAW'], name).is_dir()
    for name in ('cifar10', 'cifar100', 'odin')
  ),
  reason="needs the publishers' files: set CROSR_JAX_RAW to a folder with "
  'cifar10/, cifar100/ and odin/ in it',
)


@pytest.fixture(scope='session')
def raw_colour(tmp_path_factory):
  """As `raw_data`, of the data sets in colour."""
  if 'CROSR_JAX_RAW' in os.environ:
    return pathlib.Path(os.environ['CROSR_JAX_RAW'])
  folder = tmp_path_factory.mktemp('raw_colour')
  names = ('cifar10', 'cifar100', 'odin')
  subprocess.run([sys.executable, _UNPACK, folder, *names], check=True)
  return folder


@pytest.fixture(scope='session')
def digits_run(tmp_path_factory):
  """Workdir of a small run on digits, and its config."""
  from crosr_jax import pipeline

  config = CONFIGS['digits'].copy_and_resolve_references()
  config.update_from_flattened_dict(
    {
      'model.width': 8, 'model.latent_width': 8, 'train.num_steps': 200,
      'report.pictures': False, 'scorer.reject_known': 0.05,
    }
  )  # fmt: skip
  workdir = tmp_path_factory.mktemp('digits_run') / 'digits'
  pipeline.run(config, 'digits', workdir, workdir)
  return workdir, config


# The files that take longest, the longest first.
_LONG = ('train', 'processes', 'main', 'mnist', 'counterfactual', 'cifar')


def pytest_collection_modifyitems(items):
  """Long files first: none is left to one worker while the others are done."""
  order = [f'test_{name}.py' for name in _LONG]
  items.sort(
    key=lambda x: (
      order.index(x.path.name) if x.path.name in order else len(order)
    )
  )


def pytest_addoption(parser):
  parser.addoption(
    '--kills',
    type=int,
    default=1,
    help='how often the resume test kills a run at a random moment',
  )


# The main job in a few seconds.
SMALL = (
  '--config=configs/digits.py',
  '--config.model.width=8',
  '--config.model.latent_width=8',
  '--config.train.num_steps=300',
  '--config.train.checkpoint_every=60',
  '--config.train.log_every=30',
  '--config.report.pictures=False',
)


def free_port():
  """Of this machine."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


@pytest.fixture(scope='module')
def command(request, tmp_path_factory):
  """The module's _COMMAND as a file."""
  path = tmp_path_factory.mktemp('command') / 'command.py'
  path.write_text(request.module._COMMAND)
  return path


@pytest.fixture
def script(request, monkeypatch):
  """Imports a script of the module's _SCRIPTS by its name."""
  monkeypatch.syspath_prepend(str(ROOT / request.module._SCRIPTS))

  def load(name):
    sys.modules.pop(name, None)
    return importlib.import_module(name)

  return load


@pytest.fixture(scope='session')
def compilations():
  """A list that grows by one with every program that is compiled."""
  found = []

  def listen(event, seconds, **_):
    del seconds
    if event == '/jax/core/compile/backend_compile_duration':
      found.append(event)

  # Not every version can take a listener away again.
  jax.monitoring.register_event_duration_secs_listener(listen)
  return found


@pytest.fixture
def generator():
  return np.random.default_rng(0)


@pytest.fixture
def root():
  return ROOT


@pytest.fixture(scope='session')
def environment():
  """Environment of a command, as a user has it."""
  return {**COMMAND_ENVIRONMENT, 'PYTHONPATH': str(ROOT)}


@pytest.fixture(scope='session')
def commands_server(environment):
  """Forks commands, in that environment and the project's folder."""
  server = commands.Server(environment, ROOT)
  yield server
  server.stop()


@pytest.fixture(scope='session')
def run_command(commands_server):
  """`commands.Server.run`."""
  return commands_server.run


@pytest.fixture(scope='session')
def start_command(commands_server):
  """`commands.Server.start`."""
  return commands_server.start
