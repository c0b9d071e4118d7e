"""One file that answers as the project does, without the project."""

import dataclasses
import json
import shutil
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from sklearn import datasets

from crosr_jax import (
  exported,
  exporting,
  models,
  openset,
  saved,
  scorer,
  types,
  weibull,
)
from crosr_jax.models import layers


@pytest.fixture
def workdir(digits_run):
  return digits_run[0]


@pytest.fixture(scope='module')
def image():
  generator = np.random.default_rng(0)
  digits = datasets.load_digits().images[:300] * (255 / 16)
  noise = generator.integers(0, 256, (50, 8, 8))
  return np.concatenate([digits, noise]).astype(np.uint8)[..., None]


def _loaded(tmp_path, model):
  path = tmp_path / 'x.jaxexport'
  path.write_bytes(exporting.pack(model, {'about': 'a test'}))
  return exported.load(str(path))


def _compare(found, model, image):
  probability, unknown_score, prediction = found(image)
  scores = model(image)
  np.testing.assert_allclose(probability, scores.probability, atol=1e-6)
  np.testing.assert_allclose(
    unknown_score, scores.unknown_score, rtol=1e-4, atol=1e-4
  )
  np.testing.assert_array_equal(prediction, scores.prediction)


def test_answers_as_the_project_does(tmp_path, workdir, image):
  model = openset.load(workdir)
  found = _loaded(tmp_path, model)
  for count in (1, 2, 77, len(image)):
    _compare(found, model, image[:count])
  header = found.header
  assert header['most_rows'] == 256 < len(image)
  for answer, wanted in zip(found(image[:0]), found(image), strict=True):
    assert answer.shape == (0, *wanted.shape[1:])
    assert answer.dtype == wanted.dtype
  assert header['class_names'] == list('0123456')
  assert header['image_shape'] == [8, 8, 1]
  assert header['platforms'] == ['cpu', 'cuda', 'tpu']
  assert header['card'] == {'about': 'a test'}


def test_as_the_project_compiles_it(tmp_path, workdir, image, monkeypatch):
  """Of XLA's two libraries of convolutions each rounds in its own way."""
  told = []
  jit = jax.jit

  def spied(fn, **kwargs):
    told.append(kwargs.get('compiler_options'))
    return jit(fn, **kwargs)

  model = openset.load(workdir)
  monkeypatch.setattr(jax, 'jit', spied)
  _loaded(tmp_path, model)
  assert told[-1] == exported.compiler_options('cpu')


def test_a_file_of_before_tells_of_no_rows(workdir, image):
  model = openset.load(workdir)
  _compare(exported.Exported({}, exporting.function(model)), model, image)


def test_every_decision(tmp_path, workdir, image):
  model = openset.load(workdir)
  published = saved.load(workdir).models['crosr_published']
  for fields in (
    {'decision': 'argmax', 'fitted': published},
    {'decision': 'half'},
    {'decision': 'tpr95', 'threshold': 0.5},
    {'decision': 'calibrated', 'method': 'max_logit', 'threshold': -5.0},
  ):
    changed = dataclasses.replace(model, **fields)
    _compare(_loaded(tmp_path, changed), changed, image)


@pytest.mark.parametrize(
  'fields',
  [
    {'backbone': 'digits_cnn', 'lateral': 'none'},
    {'backbone': 'mnist_cnn', 'lateral': 'identity', 'latent': 'hr'},
    {'backbone': 'fast_cnn', 'eval_crop': 6, 'pool': 'mean'},
    {
      'backbone': 'fast_cnn',
      'eval_mirror': True,
      'rotation_classes': (90, 270),
      'eval_rotations': True,
      'eval_shift': 1,
    },
  ],
)
def test_other_nets(tmp_path, workdir, image, fields):
  """As they begin: what an export does is no matter of training."""
  model = openset.load(workdir)
  net = models.build(
    7, (0.3,), (0.3,), width=8, dropout=0.1, head_dropout=0.1, **fields
  )
  changed = dataclasses.replace(
    model,
    net=net,
    variables=models.init(net, image, jax.random.key(0)),
    method='max_logit',
    threshold=0.0,
  )
  _compare(_loaded(tmp_path, changed), changed, image)


def test_a_net_in_bfloat16(tmp_path, workdir, image):
  model = openset.load(workdir)
  half = dataclasses.replace(model, net=model.net.clone(dtype='bfloat16'))
  probability, _, prediction = _loaded(tmp_path, half)(image)
  scores = half(image)
  # Eight bits of a number; XLA's operations add in another order.
  np.testing.assert_allclose(probability, scores.probability, atol=0.02)
  assert np.mean(prediction == scores.prediction) > 0.99
  # It is not the same net in float32.
  assert np.abs(probability - model(image).probability).max() > 1e-4


def test_no_onnx_of_what_runtimes_do_not_take(workdir):
  model = openset.load(workdir)
  half = dataclasses.replace(model, net=model.net.clone(dtype='bfloat16'))
  with pytest.raises(
    types.UsageError, match=r'bfloat16.*\.jaxexport, or train'
  ):
    exporting.pack_onnx(half, {})


def test_an_augmented_net(tmp_path, workdir, image):
  """Unknown as a logit of its own: the last of the seven stands for it."""
  model = openset.load(workdir)
  augmented = dataclasses.replace(
    model,
    method='augmented',
    fitted=None,
    class_names=tuple('012345'),
    decision='argmax',
  )
  _compare(_loaded(tmp_path, augmented), augmented, image)


def test_wide_nets_are_exported_with_stock_convolutions(
  workdir, image, monkeypatch
):
  """Where they run is not known; here they are computed in our own way."""
  net = models.build(
    7, (0.3,), (0.3,), backbone='digits_cnn', width=64, dropout=0.1,
    head_dropout=0.1,
  )  # fmt: skip
  variables = models.init(net, image, jax.random.key(0))
  changed = dataclasses.replace(
    openset.load(workdir), net=net, variables=variables, method='max_logit'
  )

  def operations(text):
    return [
      text.count(f' stablehlo.{name}')
      for name in ('convolution', 'dot_general')
    ]

  def exported():
    return operations(exporting.function(changed).mlir_module())

  def computed():
    # A function of its own each time: JAX keeps what it has traced.
    traced = jax.jit(lambda v, x: net.apply(v, x))
    return operations(traced.lower(variables, image).as_text())

  found, here = exported(), computed()
  monkeypatch.setattr(layers, '_WIDE', 1_000_000)
  assert found == exported()
  assert here != computed()


def test_stock_operations_only(workdir):
  """A custom call would need its library wherever the file is loaded."""
  module = exporting.function(openset.load(workdir)).mlir_module()
  calls = {
    line.split('@')[1].split('(')[0]
    for line in module.splitlines()
    if 'custom_call' in line
  }
  # What tells shapes apart is a part of the format itself.
  assert calls <= {'shape_assertion'}, calls


def test_the_traced_scorer_is_the_scorer(generator):
  label = np.arange(300) % 3
  features = types.Features(
    generator.normal(size=(300, 3)) + 4 * np.eye(3)[label],
    generator.normal(size=(300, 5)) + label[:, None],
    label,
    generator.uniform(0.1, 0.2, size=300),
  )
  arrays = [np.asarray(x, np.float32) for x in features]
  for vector, method in (
    ('evidence', 'crosr'), ('neighbour', 'crosr'), ('joint', 'crosr'),
    ('logits', 'openmax'), ('logits', 'crosr_y'), ('', 'softmax'),
    ('', 'max_logit'), ('', 'energy'),
  ):  # fmt: skip
    model = weibull.fit(features, vector=vector, tail_size=20) if vector else (
      None
    )  # fmt: skip
    expected = scorer.score(features, model, method=method, alpha=2)
    found = scorer.traced(
      arrays[0], arrays[1], arrays[3], model, method=method, alpha=2
    )
    # In how near the nearest is, float32 has one digit less.
    away = 3e-6 if vector == 'neighbour' else 1e-6
    np.testing.assert_allclose(found[0], expected.probability, atol=away)
    np.testing.assert_allclose(
      found[1], expected.unknown_score, rtol=1e-5, atol=5e-6
    )


def test_the_command_and_a_bare_environment(
  tmp_path, workdir, image, environment, run_command
):
  output = tmp_path / 'sub' / 'digits.jaxexport'
  process = run_command(
    'export', f'--workdir={workdir}', f'--output={output}', '--reject_known=0.1'
  )
  assert process.returncode == 0, process.stderr
  assert 'decision: calibrated' in process.stdout
  # The reader alone, and nothing else of the project within reach.
  shutil.copy(ROOT / 'crosr_jax' / 'exported.py', tmp_path / 'exported.py')
  np.save(tmp_path / 'image.npy', image)
  script = (
    'import sys, numpy as np, exported\n'
    f'model = exported.load({str(output)!r})\n'
    'found = model(np.load("image.npy"))\n'
    'np.savez("found.npz", *found)\n'
    'used = {x.partition(".")[0] for x in sys.modules}\n'
    'assert not used & {"crosr_jax", "flax", "sklearn"}, used\n'
    'print(model.header["card"]["recipe"]["vector"])\n'
  )
  (tmp_path / 'script.py').write_text(script)
  bare = {k: v for k, v in environment.items() if k != 'PYTHONPATH'}
  process = subprocess.run(
    [sys.executable, 'script.py'],
    cwd=tmp_path, env=bare, capture_output=True, text=True,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr
  assert process.stdout == 'evidence\n'
  header = exported.load(str(output)).header
  assert header['card']['decision'].startswith('calibrated')
  # Of none ONNX gives no answer.
  assert 'N at least 1' in header['card']['input']
  with np.load(tmp_path / 'found.npz') as arrays:
    found = [arrays[key] for key in arrays.files]
  expected = openset.load(workdir).rejecting(0.1)(image)
  np.testing.assert_allclose(found[0], expected.probability, atol=1e-6)
  np.testing.assert_array_equal(found[2], expected.prediction)


def test_files_that_are_none(tmp_path, workdir):
  whole = exporting.pack(openset.load(workdir), {})
  (length,) = struct.unpack(
    '<Q', whole[len(exported.MAGIC) : len(exported.MAGIC) + 8]
  )
  start = len(exported.MAGIC) + 8
  header = json.loads(whole[start : start + length])
  later = json.dumps({**header, 'format': 99}).encode()
  flipped = bytearray(whole)
  flipped[-1000] ^= 1
  renamed = whole.replace(b'"1",', b'"7",', 1)
  assert renamed != whole
  for data, words in (
    (b'', 'no exported model'),
    (b'x' * 1000, 'no exported model'),
    (whole[: len(exported.MAGIC) + 3], 'no exported model'),
    (whole[: start + 10], 'header cannot be read'),
    (
      exported.MAGIC + struct.pack('<Q', 10**6) + b'[' * 10**6,
      'header cannot be read',
    ),
    (whole[:-1], 'checksum'),
    (bytes(flipped), 'checksum'),
    (renamed, 'checksum'),
    (whole.replace(b'"sha256"', b'"sha25_"', 1), 'checksum'),
    (
      exported.MAGIC
      + struct.pack('<Q', len(later))
      + later
      + whole[start + length :],
      'of format 99',
    ),
  ):
    path = tmp_path / 'x.jaxexport'
    path.write_bytes(data)
    with pytest.raises(ValueError, match=words):
      exported.load(str(path))


def test_mistakes(tmp_path, workdir, run_command):
  for arguments, words in (
    ((f'--output={tmp_path}/x',), '--workdir is needed'),
    ((f'--workdir={workdir}',), '--output is needed'),
    ((f'--workdir={workdir}', f'--output={tmp_path}'), 'is a folder'),
    ((f'--workdir={workdir}', '--output=/dev/null'), 'is no regular file'),
    ((f'--workdir={workdir}', f'--output={workdir}/weights.npz'), 'own; name'),
    (
      (f'--workdir={workdir}', '--output=gs://bucket/x.jaxexport'),
      'gs:/bucket/x.jaxexport cannot be written to from here',
    ),
  ):
    process = run_command('export', *arguments)
    assert process.returncode == 2 and words in process.stderr
    assert 'Traceback' not in process.stderr
