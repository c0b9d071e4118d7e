"""Open-set recognition by classification and reconstruction, in JAX."""

import os
import typing

if typing.TYPE_CHECKING:
  from crosr_jax.openset import OpenSetModel

__version__ = '0.1.0'


def load(workdir: str | os.PathLike) -> 'OpenSetModel':
  """The model of a finished run: uint8 images in, `types.Scores` out.

  Args:
    workdir: of the run, gs://bucket/path too.

  Raises:
    UserError: where there is none, or a file of it is missing or damaged.
  """
  # Whoever wants the Weibulls alone should not wait for JAX.
  from crosr_jax import openset

  return openset.load(workdir)
