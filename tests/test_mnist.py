"""The main job on real MNIST and Omniglot: a slice of the training."""

import json

import numpy as np
import pytest
from conftest import needs_raw

from crosr_jax import data
from crosr_jax.data import duplicates, prepared

pytestmark = needs_raw

_SETS = (
  'omniglot', 'omniglot:nearest', 'omniglot:mnist_style', 'omniglot:dark',
  'mnist_noise', 'mnist_noise:sum', 'noise',
)  # fmt: skip


@pytest.fixture(scope='module')
def data_dir(raw_data, tmp_path_factory):
  """Both data sets, prepared."""
  folder = tmp_path_factory.mktemp('data')
  for name in ('mnist', 'omniglot'):
    prepared.prepare(name, folder, raw_data)
  return folder


@pytest.fixture(scope='module')
def benchmark(data_dir):
  return data.load(
    seed=0,
    data_dir=data_dir,
    name='mnist',
    unknown_classes=(),
    test_share=0.0,
    select_share=0.05,
    calibrate_share=0.05,
    evaluation_seed=0,
    unknown_sets=_SETS,
    max_unknown=10_000,
  )


def test_counts(benchmark):
  counts = {name: len(image) for name, image, _ in benchmark.parts()}
  assert counts['test'] == 10_000
  assert sum(counts[n] for n in ('train', 'select', 'calibrate')) == 60_000
  assert [counts[name] for name in benchmark.unknown] == [10_000] * 7


def test_polarity(benchmark):
  """Ink is bright on black in known and unknown images alike."""
  for name, image, _ in benchmark.parts():
    background = np.median(image, axis=(1, 2, 3))
    if 'noise' in name:
      assert 120 < background.mean() < 160, name
    elif name == 'omniglot_dark':
      assert (background == 255).all()
    else:
      assert (background == 0).all(), name


def test_no_image_is_known_and_unknown(benchmark):
  found = duplicates.count((n, image) for n, image, _ in benchmark.parts())
  for pair in found:
    first, _, second = pair.partition(', ')
    # Two recipes may draw one character alike; nothing else meets its like.
    assert (first.startswith('omniglot') and second.startswith('omniglot')) or (
      not second and first in benchmark.unknown
    ), found


def test_main_job(run_command, data_dir, benchmark, tmp_path):
  process = run_command(
    'main',
    # So few steps are for upright digits alone.
    '--config=configs/mnist.py:upright',
    *(f'--data_dir={data_dir}', f'--workdir={tmp_path}'),
    *('--config.model.width=8', '--config.train.num_steps=250'),
    *('--config.train.checkpoint_every=250', '--config.train.batch_size=64'),
    # Three digits known, fewer unknowns: evaluation is what takes time.
    '--config.data.unknown_classes=(3,4,5,6,7,8,9)',
    '--config.evaluation.max_unknown=500',
    '--config.report.pictures=False',
  )
  assert process.returncode == 0, process.stderr
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['closed_set_accuracy'] > 0.9
  assert list(report['unknown']) == [
    'mnist_unknown', 'omniglot', 'mnist_noise', 'noise',
    'omniglot_mnist_style', 'mnist_noise_sum',
  ]  # fmt: skip
  unseen = report['unknown'].pop('mnist_unknown')
  assert unseen['recipe'] == 'mnist classes 3, 4, 5, 6, 7, 8, 9'
  assert unseen['crosr']['auroc'] > 0.65
  for name, row in report['unknown'].items():
    assert (row['n_known'], row['n_unknown']) == (3_147, 500)
    assert row['recipe'] == benchmark.unknown[name].recipe
    assert row['crosr']['auroc'] > 0.65, name
    # The mean of the pixels gives a noise set away.
    easy = row['trivial']['mean_pixel']['auroc']
    assert (easy > 0.999) == ('noise' in name)


def test_data_that_is_not_there(run_command, tmp_path):
  process = run_command(
    'main', '--config=configs/mnist.py',
    f'--data_dir={tmp_path / "none"}', f'--workdir={tmp_path / "run"}',
    # No network, whatever this machine has.
    https_proxy='http://127.0.0.1:9', no_proxy='',
  )  # fmt: skip
  assert process.returncode == 1
  lines = [x for x in process.stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 1 and 'Traceback' not in process.stderr
  assert 'python -m crosr_jax.prepare mnist' in lines[0]
  assert '--manual_dir=' in lines[0]
