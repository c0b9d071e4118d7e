"""Strict JAX: 8 CPU devices, no silent promotion of types or ranks."""

import os
import pathlib
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
# Commands that tests start as processes see one device, as on a laptop.
COMMAND_ENVIRONMENT = dict(os.environ)
# 8 devices; and a compiler that optimises little, which takes a quarter of the
# time and changes nothing that is tested here.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=1',
  ]
)

import hypothesis
import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A folder that lies beside the project where the real data is at hand.
GOLDEN = ROOT.parent / 'shared' / 'golden'

sys.path.insert(0, str(ROOT))
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Tests compile the same small programs again and again.
jax.config.update(
  'jax_compilation_cache_dir', str(ROOT / '.pytest_cache' / 'jax')
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
# Compilation makes first examples slow, which says nothing of the code.
hypothesis.settings.register_profile('crosr_jax', deadline=None)
hypothesis.settings.load_profile('crosr_jax')


def pytest_addoption(parser):
  parser.addoption(
    '--kills',
    type=int,
    default=1,
    help='how often the resume test kills a run at a random moment',
  )


@pytest.fixture
def generator():
  return np.random.default_rng(0)


@pytest.fixture
def root():
  return ROOT


@pytest.fixture
def environment():
  """Environment of a command, as a user has it."""
  return {**COMMAND_ENVIRONMENT, 'PYTHONPATH': str(ROOT)}
