"""Nets: DHRNet around a backbone; LadderNet and the plain classifier too."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crosr_jax import types
from crosr_jax.models import backbones, dhrnet, ensemble, layers

# What answers; a member alone is what trains.
Net = dhrnet.DHRNet | ensemble.Ensemble

# What the paper calls a net with this lateral.
SYSTEMS = {
  'bottleneck': 'dhrnet',
  'identity': 'laddernet',
  'none': 'supervised',
}

_MOST_MEMBERS = 1_000
# Pixels; the smallest images have eight.
_MOST_SHIFT = 4
_IMAGES_AT_A_TIME = 1_000


def build(
  num_classes: int,
  mean: Sequence[float],
  deviation: Sequence[float],
  *,
  backbone: str,
  width: int,
  dropout: float,
  head_dropout: float,
  lateral: str = 'bottleneck',
  latent_width: int = 32,
  latent: str = 'z',
  pool: str = 'max',
  last: str = 'linear',
  eval_crop: int = 0,
  eval_mirror: bool = False,
  rotation_classes: tuple[int, ...] = (),
  eval_rotations: bool = False,
  eval_shift: int = 0,
  dtype: str = 'float32',
  members: int = 1,
) -> Net:
  """The net, without parameters.

  Args:
    num_classes: K, at least 2.
    mean: of the training pixels per channel, in [0, 1].
    deviation: likewise; a channel that never moves counts as 1.
    backbone: a name in backbones.BACKBONES.
    width: channels of its first block; what each layer adds in 'densenet100'.
    dropout: rate after each block, in deep nets within them; in [0, 1).
    head_dropout: rate before each fully connected layer that follows another
      or a mean over space, in [0, 1).
    lateral: 'bottleneck' (DHRNet), 'identity' (LadderNet), 'none'.
    latent_width: channels of each bottleneck.
    latent: 'z' or 'hr'.
    pool: 'max' or 'mean' over space.
    last: 'linear' or 'relu' end of the reconstruction.
    eval_crop: side of the centre crop that is seen, resized to the full size,
      where the net is not in training; 0 = the whole image.
    eval_mirror: whether the net, where it is not in training, answers with the
      mean of what it says of the image and of its mirror image.
    rotation_classes: degrees by which images are turned in training, where each
      class, turned by each of them, is a class of its own (Golan and El-Yaniv
      2018; Lee et al. 2020, 'self-supervised label augmentation', whose joint
      labels these are); images must be square.
    eval_rotations: whether the net, where it is not in training, answers for
      the image and all of these turns: mean logits, the codes side by side.
    eval_shift: pixels by which an image is also moved to each side where the
      net is not in training; the answer is the mean. 0 = not at all, 4 at most.
    dtype: that the net computes in, 'float32' or 'bfloat16'; parameters,
      statistics and outputs are float32.
    members: nets that answer together where there are several; 1000 at most.

  Raises:
    ValueError: for a value that cannot be used; names it and the choices.
  """
  if num_classes < 2:
    raise types.UsageError(
      f'a classifier needs at least 2 known classes, got {num_classes}'
    )
  types.check_choice('model.backbone', backbone, backbones.BACKBONES)
  types.check_choice('model.lateral', lateral, dhrnet.LATERALS)
  types.check_choice('model.latent', latent, dhrnet.LATENTS)
  types.check_choice('model.pool', pool, dhrnet.POOLS)
  types.check_choice('model.last', last, dhrnet.LAST)
  types.check_choice('model.dtype', dtype, dhrnet.DTYPES)
  for name, value in (
    ('width', width),
    ('latent_width', latent_width),
    ('members', members),
  ):
    if value < 1:
      raise types.UsageError(f'model.{name} must be at least 1, got {value}')
  if members > _MOST_MEMBERS:
    raise types.UsageError(
      f'model.members must be at most {_MOST_MEMBERS}, got {members}'
    )
  if eval_crop < 0:
    raise types.UsageError(
      f'model.eval_crop must be at least 0, got {eval_crop}'
    )
  if not 0 <= eval_shift <= _MOST_SHIFT:
    raise types.UsageError(
      f'model.eval_shift must be in 0..{_MOST_SHIFT}, got {eval_shift}'
    )
  if not isinstance(rotation_classes, (tuple, list)) or sorted(
    rotation_classes
  ) != [x for x in layers.TURNS if x in rotation_classes]:
    raise types.UsageError(
      'model.rotation_classes must be different ones of '
      f'{", ".join(map(str, layers.TURNS))} degrees, () for none, got '
      f'{rotation_classes}'
    )
  if eval_rotations and not rotation_classes:
    raise types.UsageError(
      'model.eval_rotations=True: the net must know turned images; set '
      "model.rotation_classes, as '(90,180,270)', or this to False"
    )
  for name, rate in (('dropout', dropout), ('head_dropout', head_dropout)):
    if not 0 <= rate < 1:
      raise types.UsageError(f'model.{name} must be in [0, 1), got {rate}')

  def one() -> dhrnet.DHRNet:
    parts = backbones.BACKBONES[backbone](
      num_classes * (1 + len(rotation_classes)),
      width,
      dropout,
      head_dropout,
    )
    return dhrnet.DHRNet(
      blocks=parts.blocks,
      head=parts.head,
      mean=tuple(float(x) for x in mean),
      deviation=tuple(float(x) if x > 0 else 1.0 for x in deviation),
      lateral=lateral,
      latent_width=latent_width,
      latent=latent,
      pool=pool,
      last=last,
      eval_crop=eval_crop,
      eval_mirror=eval_mirror,
      rotation_classes=tuple(rotation_classes),
      eval_rotations=eval_rotations,
      eval_shift=eval_shift,
      dtype=dtype,
    )

  if members == 1:
    return one()
  return ensemble.Ensemble(tuple(one() for _ in range(members)))


def evaluated(
  model: Net, variables: dict[str, Any], image: Any
) -> types.Outputs:
  """What the net makes of images [B, H, W, C], in evaluation mode."""
  variables = for_compute(model, variables)
  # apply's own type covers calls that also mutate.
  return model.apply(variables, image)  # type: ignore[return-value]


def for_compute(model: Net, variables: dict[str, Any]) -> dict[str, Any]:
  """Variables as the net computes with them, parameters in its dtype.

  Those of norms stay in float32, and what trains is always float32: the cast is
  a part of the function whose gradient is taken.
  """
  if model.dtype == 'float32':
    return variables

  def cast(path: Any, x: jax.Array) -> jax.Array:
    is_norm = any('BatchNorm' in str(key) for key in path)
    return x if is_norm else x.astype(model.dtype)

  params = jax.tree_util.tree_map_with_path(cast, variables['params'])
  return {**variables, 'params': params}


def init(
  model: dhrnet.DHRNet, image: np.ndarray, key: jax.Array
) -> dict[str, Any]:
  """Variables of a net before training.

  Args:
    model: the net.
    image: [N, H, W, C] uint8, of the training data: a layer that whitens is
      made from them, all others take no more than their shape.
    key: of the random initialisation.
  """
  options = None
  if jax.default_backend() == 'cpu':
    # It runs once: optimised, it compiles for 9 s instead of 1.
    options = {'xla_backend_optimization_level': 0}
  # Parameters are float32, and so is what whitens.
  model = model.clone(dtype='float32')
  variables = jax.jit(model.init, compiler_options=options)(key, image)
  return {'batch_stats': {}, **variables}


def shapes(model: dhrnet.DHRNet, image_shape: Sequence[int]) -> dict[str, Any]:
  """What `init` would give for images of [3] H, W, C, as shapes alone."""
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
  init = model.clone(dtype='float32').init
  return {'batch_stats': {}, **jax.eval_shape(init, jax.random.key(0), image)}


def pixel_statistics(
  image: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and deviation per channel of [N, H, W, C] uint8, in [0, 1]."""
  # Exact from a histogram of the 256 values, some images at a time: NumPy turns
  # what it counts into numbers of 8 bytes.
  levels = np.arange(256) / 255.0
  mean, deviation = [], []
  for channel in range(image.shape[-1]):
    count = np.zeros(256, np.int64)
    for start in range(0, len(image), _IMAGES_AT_A_TIME):
      part = image[start : start + _IMAGES_AT_A_TIME, ..., channel]
      count += np.bincount(part.ravel(), minlength=256)
    share = count / count.sum()
    mean.append(float(share @ levels))
    deviation.append(float(np.sqrt(share @ np.square(levels - mean[-1]))))
  return tuple(mean), tuple(deviation)
