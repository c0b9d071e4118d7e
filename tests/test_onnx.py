"""The exported model in onnxruntime; needs crosr_jax[onnx]."""

import json

import numpy as np
import pytest
from conftest import CONFIGS
from sklearn import datasets

from crosr_jax import openset, pipeline

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('jax2onnx')


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'added': 'seven'},
    {'weibull.vector': 'neighbour'},
    # So wide that distances are a matmul.
    {'model.latent_width': 1200, 'train.num_steps': 100},
    {
      'model.lateral': 'none',
      'model.backbone': 'mnist_cnn',
      'train.num_steps': 400,
    },
    {
      'model.backbone': 'fast_cnn',
      'model.eval_mirror': True,
      'model.rotation_classes': (90, 180),
      'model.eval_rotations': True,
      'model.eval_shift': 1,
      'train.optimizer': 'muon',
      'scorer.decision': 'half',
    },
  ],
)
def test_answers_as_the_project_does(tmp_path, run_command, fields):
  config = CONFIGS['digits'].copy_and_resolve_references()
  fields, added = dict(fields), fields.get('added')
  fields.pop('added', None)
  config.update_from_flattened_dict(
    {
      'model.width': 8, 'model.latent_width': 8, 'train.num_steps': 200,
      'report.pictures': False, **fields,
    }
  )  # fmt: skip
  pipeline.run(config, 'digits', tmp_path, tmp_path)
  digits = datasets.load_digits()
  image = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  if added:
    model = openset.load(tmp_path)
    model.with_class(added, image[digits.target == 7]).save_added(tmp_path)
  output = tmp_path / 'digits.onnx'
  process = run_command('export', f'--workdir={tmp_path}', f'--output={output}')
  assert process.returncode == 0, process.stderr
  expected = openset.load(tmp_path)(image)
  assert len(process.stdout.splitlines()) == 1 and not process.stderr
  onnx.checker.check_model(onnx.load(output), full_check=True)
  session = onnxruntime.InferenceSession(output)
  for count in (1, len(image)):
    found = session.run(
      ['probability', 'unknown_score', 'prediction'], {'image': image[:count]}
    )
    np.testing.assert_allclose(
      found[0], expected.probability[:count], atol=1e-4
    )
    np.testing.assert_allclose(
      found[1], expected.unknown_score[:count], rtol=1e-3, atol=1e-3
    )
    np.testing.assert_array_equal(found[2], expected.prediction[:count])
  told = session.get_modelmeta().custom_metadata_map
  names = [*'0123456', *([added] if added else [])]
  assert json.loads(told['class_names']) == names
  assert json.loads(told['card'])['source_step'] == config.train.num_steps
