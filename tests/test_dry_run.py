"""What a run would take, told without running it."""

import jax
import jax.numpy as jnp
import pytest
from conftest import CONFIGS, ROOT
from test_models import _PARAMETERS

from crosr_jax import data, pipeline, sharding, types
from crosr_jax.data import catalog, sources
from crosr_jax.report import terminal, words


def _config(name, **fields):
  config = CONFIGS[name].copy_and_resolve_references()
  config.update_from_flattened_dict(fields)
  return config


def _forward(found):
  return sum(row.multiply_adds for row in found.parts)


@pytest.mark.parametrize('name', [n for n in CONFIGS if n != 'folder'])
def test_shapes_and_classes_without_data(name):
  shape, num_classes, _ = _PARAMETERS[name]
  assert data.expected(**CONFIGS[name].data) == (shape, num_classes)


def test_shapes_of_every_data_set(tmp_path):
  assert list(sources.SHAPES) == list(sources.SOURCES)
  found = sources.digits(tmp_path).train
  assert sources.SHAPES['digits'] == (
    found.image.shape[1:],
    len(found.class_names),
  )
  for name, (_, num_classes) in sources.SHAPES.items():
    if name in catalog.DATA_SETS:
      for part in catalog.DATA_SETS[name].parts.values():
        assert len(part.class_counts) in (0, num_classes)


def test_classes_of_a_folder(tmp_path):
  fields = {**CONFIGS['folder'].data, 'image_size': 32, 'grey': True}
  with pytest.raises(types.UsageError, match=r'num_classes is needed, or data'):
    data.expected(**fields)
  assert data.expected(**{**fields, 'num_classes': 5}) == ((32, 32, 1), 5)
  for name in 'abc':
    (tmp_path / name).mkdir()
  fields['train_dir'] = str(tmp_path)
  assert data.expected(**fields).num_classes == 3
  fields['unknown_classes'] = (1,)
  assert data.expected(**fields).num_classes == 2
  with pytest.raises(types.UsageError, match=r'unknown_classes: 3 is no class'):
    data.expected(**{**fields, 'unknown_classes': (3,)})
  with pytest.raises(types.UsageError, match=r'3 sub-folders.*num_classes=4'):
    data.expected(**{**fields, 'num_classes': 4})


@pytest.mark.parametrize(
  ('name', 'parallel'), [('digits', 'pmap'), ('mnist', 'shard_map')]
)
def test_costs_by_hand(name, parallel):
  config = _config(name, parallel=parallel)
  found = pipeline.plan(config)
  shape, num_classes, parameters = _PARAMETERS[name]
  assert found.image_shape == shape and found.num_classes == num_classes
  step = found.step
  assert step.parameters == parameters
  rows = config.train.batch_size // jax.local_device_count()
  # A gradient takes two products for each of the forward pass, but for the
  # first convolution, of whose input none is asked.
  first = 9 * shape[0] * shape[1] * config.model.width
  # Where a net is asked about turns too, a step is still of one view.
  asked = config.model.eval_rotations
  views = 1 + len(config.model.rotation_classes) if asked else 1
  forward, rest = divmod(_forward(found), views)
  assert rest == 0
  of_schedule = step.multiply_adds - rows * (3 * forward - first)
  assert 0 <= of_schedule < 10
  # uint8 pixels, two numbers and a bool.
  height, width, channels = shape
  assert step.batch == rows * (height * width * channels + 4 + 4 + 1)
  # Parameters and their momentum, and some statistics.
  assert 8 * parameters < step.state < 8.1 * parameters
  # What a step returns alone, its gradients, is as much as the parameters.
  assert step.working > 4 * parameters


def test_an_average_and_a_larger_batch_take_more():
  small = pipeline.plan(_config('digits'))
  large = pipeline.plan(
    _config('digits', **{'train.average': 0.9, 'train.batch_size': 256})
  )
  taken = large.step.state - small.step.state
  assert 4 * small.step.parameters <= taken < 4.1 * small.step.parameters
  assert large.step.batch == 4 * small.step.batch
  assert large.step.multiply_adds == pytest.approx(
    4 * small.step.multiply_adds, abs=40
  )
  assert large.step.working > small.step.working


def test_state_and_batch_are_what_the_program_takes():
  def step(state, batch):
    return state * jax.lax.pmean(batch.sum(), 'batch'), {'loss': batch.sum()}

  n = jax.local_device_count()
  state = jax.ShapeDtypeStruct((1000,), jnp.float32)
  batch = jax.ShapeDtypeStruct((3 * n, 7), jnp.float32)
  for parallel in sharding.PARALLEL:
    program = sharding.engine(step, parallel=parallel).planned(state, batch)
    found = program.memory_analysis()
    assert found.argument_size_in_bytes == 4 * 1000 + 4 * 3 * 7
    assert found.alias_size_in_bytes == 4 * 1000


def test_imagenet1k():
  found = pipeline.plan(_config('imagenet1k'))
  assert found.step.parameters == 38_972_235 and found.num_classes == 1000
  rows = 1024 // jax.local_device_count()
  share = found.step.multiply_adds / (rows * _forward(found))
  assert 2.95 < share < 3
  # Of each image at least the maps that its gradient needs, in two bytes.
  maps = 112**2 * 64 + sum(
    size**2 * 6 * width * count
    for size, width, count in (
      (56, 64, 3), (28, 128, 4), (14, 256, 6), (7, 512, 3),
    )
  )  # fmt: skip
  assert found.step.working > rows * 2 * maps
  text = terminal.plan('imagenet1k', found)
  assert '38,972,235' in text and '224 × 224 × 3' in text
  assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('data_on_device', 'allways'),
    ('steps_per_dispatch', -1),
    ('evaluation.unknown_sets', ('noize',)),
    ('evaluation.unknown_sets', ('noise', 'noise')),
    ('evaluation.max_unknown', 0),
    ('data.evaluation_seed', -1),
  ],
)
def test_what_a_run_refuses_is_refused(field, value):
  with pytest.raises(types.UsageError, match=rf'^{field} '):
    pipeline.plan(_config('digits', **{field: value}))


def test_words_of_memory():
  assert [words.memory(n) for n in (832, 1023 << 10, 3 << 29)] == [
    '832 B', '1023 KiB', '1.5 GiB',
  ]  # fmt: skip


@pytest.fixture
def run(run_command, tmp_path):
  """Runs the main job in an empty folder; returns the finished process."""

  def call(config, *arguments):
    return run_command(
      'main', f'--config={config}', *arguments,
      cwd=tmp_path, TFDS_DATA_DIR=str(tmp_path / 'none'),
    )  # fmt: skip

  return call


def test_the_command_writes_nothing(run, tmp_path):
  done = run(ROOT / 'configs' / 'mnist.py', '--dry_run', '--devices=2')
  assert not done.returncode, done.stderr
  assert 'on 2 x cpu' in done.stdout and '372,715' in done.stdout
  assert 'A dry run: nothing was trained, read or written.' in done.stdout
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--devices=2'], '--devices=2 is for --dry_run'),
    (['--dry_run', '--devices=0'], '--devices=0: must be in 1..'),
    (['--dry_run', '--devices=3'], 'train.batch_size=64 cannot be split'),
    (['--dry_run', '--config.train.keep=b'], 'train.keep must be one of'),
    (['--dry_run', '--config.data.num_classes=5'], 'is for data.name='),
    (['--workdir=s3://b/x'], 'or of a bucket, gs://bucket/path'),
  ],
)
def test_mistakes(run, arguments, message):
  done = run(ROOT / 'configs' / 'digits.py', *arguments)
  assert done.returncode == 2 and message in done.stderr
  assert 'Traceback' not in done.stderr
