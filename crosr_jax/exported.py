"""Loads an exported model; this file alone, jax, numpy and flatbuffers do.

  import exported
  model = exported.load('mnist.jaxexport')
  probability, unknown_score, prediction = model(images)  # uint8 [N, H, W, C]

A file is a line that names its kind, the length of its header, the header in
JSON, and a function as `jax.export` writes it. Nothing else in it is run.
"""

import hashlib
import json
import struct
from typing import Any

import jax.export
import numpy as np

MAGIC = b'crosr_jax exported model\n'
FORMAT = 2


class Exported:
  """A model of one file."""

  def __init__(self, header: dict[str, Any], function: Any):
    """Of what `load` read."""
    self.header = header
    self._function = function

  def __call__(self, image: Any) -> tuple[Any, Any, Any]:
    """Answers for images.

    Args:
      image: [N, H, W, C] uint8, N at least 1; H, W, C as the header's
        image_shape has them.

    Returns:
      probability [N, K+1], its last column unknown; unknown_score [N], higher =
      more unknown; prediction [N], -1 = unknown, else a position in the
      header's class_names.
    """
    found = self._function.call(np.asarray(image))
    return tuple(np.asarray(x) for x in found)  # type: ignore[return-value]


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
