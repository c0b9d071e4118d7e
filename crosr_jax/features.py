"""From a net and images to Features. N samples, B batch."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from crosr_jax import models, sharding, types
from crosr_jax.data import batches, images

Variables = dict[str, Any]

# Images that the net is asked about at once, and the pixels of them all: what
# a block of a net keeps of large images would fill the memory.
_MOST_ROWS = 256
_MOST_PIXELS = 1 << 22


def stream(
  model: models.Net,
  variables: Variables,
  image: np.ndarray,
  label: np.ndarray,
  *,
  batch_size: int = 0,
) -> Iterator[types.Features]:
  """Features of [N, H, W, C] uint8 images, batch by batch, in order.

  The net is in evaluation mode; every sample comes once: of several processes
  each has those of its own `share`. `batch_size` is the rows of a batch, 0 =
  256, fewer for images of more than 128 x 128 pixels with all their views.
  """
  share = sharding.share(len(image))
  image, label = images.part(image, share), label[share]
  run, variables = _compiled(model), sharding.replicate(variables)
  batch_size = batch_size or most_rows(model, image.shape)
  # What fills the last batch up is cut off again.
  for batch in batches.padded(image, label, sharding.evened(batch_size)):
    parts = [np.asarray(x)[batch.mask] for x in run(variables, batch.image)]
    logits, latent, *error = parts
    yield types.Features(logits, latent, batch.label[batch.mask], *error)


def extract(
  model: models.Net,
  variables: Variables,
  image: np.ndarray,
  label: np.ndarray,
  *,
  batch_size: int = 0,
) -> types.Features:
  """`stream`, in memory; all samples in every process."""
  found: list[np.ndarray] = []
  share = sharding.share(len(image))
  count, start = share.stop - share.start, 0
  for block in stream(model, variables, image, label, batch_size=batch_size):
    if not found:
      # At once: parts that are joined would lie in memory twice.
      found = [np.zeros((count, *x.shape[1:]), x.dtype) for x in block]
    stop = start + len(block.label)
    for whole, part in zip(found, block, strict=True):
      if len(part):
        whole[start:stop] = part
    start = stop
  if not len(block.reconstruction_error):
    # Of a net that reconstructs nothing, or of no image.
    found[3] = found[3][:0]
  return types.Features(*map(sharding.gathered, found))


def most_rows(model: models.Net, shape: tuple[int, ...]) -> int:
  """Of a batch of images [N, H, W, C], however many there are."""
  pixels = shape[1] * shape[2] * model.num_views
  return max(1, min(_MOST_ROWS, _MOST_PIXELS // pixels))


def reconstruct(
  model: models.Net,
  variables: Variables,
  image: np.ndarray,
  *,
  batch_size: int = 0,
) -> np.ndarray:
  """Reconstructions of [N, H, W, C] uint8 images, as uint8 images.

  `batch_size` is as for `stream`, but for 0 at most 64.
  """
  batch_size = batch_size or min(64, most_rows(model, image.shape))
  run = _compiled_reconstruction(model)
  label = np.zeros(len(image), np.int32)
  return np.concatenate(
    [
      np.asarray(run(variables, batch.image))[batch.mask]
      for batch in batches.padded(image, label, sharding.evened(batch_size))
    ]
  )


def split_unknown(found: types.Features) -> types.Features:
  """Features of K + 1 outputs as logits [N, K] and unknown's, as [N, 1].

  So `logits` means the known classes here as everywhere; see the scorer's
  method 'augmented'.
  """
  return found._replace(
    logits=found.logits[:, :-1], latent=found.logits[:, -1:]
  )


@functools.cache
def _compiled_reconstruction(model: models.Net) -> Callable[..., Any]:
  return sharding.forward(
    lambda variables, image: model.to_image(
      models.evaluated(model, variables, image).reconstruction
    )
  )


def traced(
  model: models.Net, variables: Variables, image: Any
) -> tuple[Any, ...]:
  """For a program that JAX traces: logits [B, K], latent [B, L], error [B].

  The mean squared error of the reconstruction is left out where there is none.
  """
  outputs = models.evaluated(model, variables, image)
  latent = jnp.zeros((image.shape[0], 0))
  if outputs.latents:
    latent = jnp.concatenate(outputs.latents, axis=1)
  if isinstance(outputs.reconstruction, tuple):
    return outputs.logits, latent
  error = jnp.mean(
    jnp.square(outputs.reconstruction - model.standardise(image)),
    axis=(1, 2, 3),
  )
  return outputs.logits, latent, error


@functools.cache
def _compiled(model: models.Net) -> Callable[..., Any]:
  return sharding.forward(functools.partial(traced, model))
