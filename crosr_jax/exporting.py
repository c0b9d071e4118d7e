"""A loaded model as one function in one file.

Of JAX, which exported.py reads; or ONNX, which many runtimes do.

B batch, K known classes, H x W pixels, C channels.
"""

import contextlib
import dataclasses
import json
import logging
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import crosr_jax
from crosr_jax import exported, extension, features, openset, scorer, types
from crosr_jax.models import layers

PLATFORMS = ('cpu', 'cuda', 'tpu')


def pack(model: openset.OpenSetModel, card: Mapping[str, Any]) -> bytes:
  """The bytes of the file: net, Weibulls and decision, for any batch size.

  Args:
    model: as openset.load has it.
    card: what else the header should tell.
  """
  found = function(model)
  body = bytes(found.serialize())
  header: dict[str, Any] = {
    'format': exported.FORMAT,
    **_facts(model),
    'platforms': list(PLATFORMS),
    'most_rows': features.most_rows(model.net, (0, *model.image_shape)),
    'readers': (
      f'jax {jax.__version__}, which wrote it, and later ones: JAX promises to '
      'read what it exports for six months at least'
    ),
    'calling_convention': found.calling_convention_version,
    'card': dict(card),
  }
  header['sha256'] = exported.checksum(header, body)
  text = json.dumps(header, indent=1).encode()
  return b''.join([exported.MAGIC, struct.pack('<Q', len(text)), text, body])


def pack_onnx(model: openset.OpenSetModel, card: Mapping[str, Any]) -> bytes:
  """The same as an ONNX model; the header is in its metadata, in JSON.

  Raises:
    UsageError: where the converter is not installed, or the net is one that
      runtimes do not take.
  """
  if model.net.dtype != 'float32':
    raise types.UsageError(
      f'ONNX: the net computes in {model.net.dtype}, in which onnxruntime has '
      'no convolution for CPU; export to a name that ends in .jaxexport, or '
      "train with model.dtype='float32'"
    )
  with _no_news():
    try:
      import jax2onnx
    except ImportError:
      raise types.UsageError(
        "ONNX needs a converter: pip install 'crosr_jax[onnx]'"
      ) from None
    found = jax2onnx.to_onnx(
      _run(model),
      [jax.ShapeDtypeStruct(('N', *model.image_shape), jnp.uint8)],
      model_name='crosr_jax',
      input_names=['image'],
      output_names=['probability', 'unknown_score', 'prediction'],
    )
  # Shapes of what is between; the converter gets some of them wrong.
  del found.graph.value_info[:]
  for key, value in {**_facts(model), 'card': dict(card)}.items():
    entry = found.metadata_props.add()
    entry.key, entry.value = key, json.dumps(value)
  return found.SerializeToString()


@contextlib.contextmanager
def _no_news() -> Iterator[None]:
  """Only warnings are logged: the converter tells what else it looks for."""
  logging.disable(logging.INFO)
  try:
    yield
  finally:
    logging.disable(logging.NOTSET)


def _facts(model: openset.OpenSetModel) -> dict[str, Any]:
  return {
    'class_names': list(model.class_names),
    'image_shape': list(model.image_shape),
    'decision': model.decision,
    'threshold': model.threshold,
    'method': model.method,
    'crosr_jax': crosr_jax.__version__,
  }


def card(
  model: openset.OpenSetModel, info: Mapping[str, Any]
) -> dict[str, Any]:
  """What a user of the file should know; `info` is the run's model.json."""
  made_from = (
    'Class means and Weibull tails of known training images; no unknown image '
    'was used in training or for the decision.'
  )
  if model.fitted is None:
    made_from = (
      'A net with an output for unknown, trained on images that were generated '
      'from known ones (counterfactual images).'
    )
  return {
    'what': 'Open-set classifier: one of class_names, or unknown (-1).',
    'input': (
      'uint8 images [N, H, W, C] of image_shape, N at least 1, RGB or grey, 0 '
      'is black; those of another size resized until they just cover H x W, '
      'then their middle.'
    ),
    'output': (
      'probability [N, K+1], the last column unknown; unknown_score [N], '
      'higher is more unknown; prediction [N].'
    ),
    'made_from': made_from,
    'decision': model.told(),
    'limits': (
      'What resembles a known class may be called so. Known images are called '
      'unknown too, more of them where they differ from those of the training.'
    ),
    'recipe': info['weibull'],
    'source_step': info['source_step'],
    'config_sha256': info['config_sha256'],
    'versions': info['versions'],
  }


def function(model: openset.OpenSetModel) -> jax.export.Exported:
  """uint8 images -> probability [B, K+1], unknown_score [B], prediction [B]."""
  (batch,) = jax.export.symbolic_shape('b')
  image = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.uint8)

  def run(image: jax.Array) -> tuple[jax.Array, ...]:
    # Or the compiler computes with the weights ahead, which rounds otherwise
    # than the project's own program, to which they are arguments.
    variables = jax.lax.optimization_barrier(model.variables)
    return _run(dataclasses.replace(model, variables=variables))(image)

  return jax.export.export(jax.jit(run), platforms=PLATFORMS)(image)


def _run(model: openset.OpenSetModel) -> Callable[..., tuple[jax.Array, ...]]:
  def run(image: jax.Array) -> tuple[jax.Array, ...]:
    with layers.stock_operations():
      logits, latent, *error = features.traced(
        model.net, model.variables, image
      )
    if model.method == 'augmented':
      logits, latent = logits[:, :-1], logits[:, -1:]
    probability, unknown_score = scorer.traced(
      logits,
      latent,
      error[0] if error else None,
      model.fitted,
      method=model.method,
      alpha=model.alpha,
    )
    prediction = _decide(model, logits, probability, unknown_score)
    if model.added:
      probability, prediction, unknown_score = extension.traced(
        probability, prediction, unknown_score, logits, latent, model.added
      )
    return probability, unknown_score, prediction

  return run


def _decide(
  model: openset.OpenSetModel,
  logits: jax.Array,
  probability: jax.Array,
  unknown_score: jax.Array,
) -> jax.Array:
  """scorer.decide, traced."""
  column = jnp.argmax(probability, axis=1).astype(jnp.int32)
  known = jnp.argmax(logits, axis=1).astype(jnp.int32)
  if model.decision == 'argmax':
    known, accepted = column, column < logits.shape[1]
  elif model.decision == 'half':
    known = column
    accepted = (column < logits.shape[1]) & (probability.max(axis=1) >= 0.5)
  else:
    accepted = unknown_score <= np.float32(model.threshold)
  return jnp.where(accepted, known, types.UNKNOWN)
