"""Loads an exported model; this file alone, jax, numpy and flatbuffers do.

  import exported
  model = exported.load('mnist.jaxexport')
  probability, unknown_score, prediction = model(images)  # uint8 [N, H, W, C]

A file is a line that names its kind, the length of its header, the header in
JSON, and a function as `jax.export` writes it. Nothing else in it is run.
"""

import functools
import hashlib
import json
import struct
from typing import Any

import jax
import jax.export
import numpy as np

MAGIC = b'crosr_jax exported model\n'
FORMAT = 2
# Images that are asked about at once where a file of before does not tell.
_MOST_ROWS = 256
_ON_ALL_CORES = {'xla_cpu_experimental_ynn_fusion_type': ''}


class Exported:
  """A model of one file."""

  def __init__(self, header: dict[str, Any], function: Any):
    """Of what `load` read."""
    self.header = header
    self._most_rows = int(header.get('most_rows', _MOST_ROWS))
    self._run = jax.jit(
      function.call, compiler_options=compiler_options(jax.default_backend())
    )

  def __call__(self, image: Any) -> tuple[Any, Any, Any]:
    """Answers for images, however many: some of them at a time.

    Args:
      image: [N, H, W, C] uint8; H, W, C as the header's image_shape has them.

    Returns:
      probability [N, K+1], its last column unknown; unknown_score [N], higher =
      more unknown; prediction [N], -1 = unknown, else a position in the
      header's class_names.
    """
    image = np.asarray(image)
    # Filled up to powers of two, or every other number would be compiled for.
    rows = min(1 << max(len(image) - 1, 0).bit_length(), self._most_rows)
    found = []
    for start in range(0, max(len(image), 1), rows):
      block = image[start : start + rows]
      padded = np.zeros((rows, *block.shape[1:]), block.dtype)
      padded[: len(block)] = block
      found.append([np.asarray(x)[: len(block)] for x in self._run(padded)])
    probability, unknown_score, prediction = map(
      np.concatenate, zip(*found, strict=True)
    )
    return probability, unknown_score, prediction


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
  """What XLA should be told when it compiles a net.

  It takes convolutions on CPU from one of two libraries. The one it prefers
  computes the gradient of a kernel on one core, and most nets slower; and each
  rounds in its own way, so all programs take the same.
  """
  if platform != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0.0, compiler_options=_ON_ALL_CORES)()
  except jax.errors.JaxRuntimeError as error:
    if 'No such compile option' not in str(error):
      raise
    # Of a version that has no such library.
    return {}
  return _ON_ALL_CORES


def checksum(header: dict[str, Any], body: bytes) -> str:
  """SHA-256 in hex of a header, without this, and of what follows it."""
  text = json.dumps(header, sort_keys=True)
  return hashlib.sha256(text.encode() + body).hexdigest()


def load(path: str) -> Exported:
  """The model in a file.

  Raises:
    ValueError: where the file is of another kind or version, or damaged.
  """
  with open(path, 'rb') as file:
    data = file.read()
  start = len(MAGIC) + 8
  if not data.startswith(MAGIC) or len(data) < start:
    raise ValueError(f'{path} is no exported model of crosr_jax')
  (length,) = struct.unpack('<Q', data[len(MAGIC) : start])
  body = data[start + length :]
  try:
    header = dict(json.loads(data[start : start + length]))
  except (RecursionError, TypeError, ValueError):
    raise ValueError(f'{path} is damaged: its header cannot be read') from None
  if header.get('format') != FORMAT:
    raise ValueError(
      f'{path} is of format {header.get("format")}, this reads {FORMAT}'
    )
  if header.pop('sha256', '') != checksum(header, body):
    raise ValueError(f'{path} is damaged: its checksum is another')
  return Exported(header, jax.export.deserialize(bytearray(body)))
