"""What the pictures are, and what they are drawn from; draws nothing itself.

N samples, K known classes, D activation width.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from crosr_jax import types

# In the order they are shown.
NAMES = (
  'samples',
  'training',
  'unknown_scores',
  'roc',
  'f1_threshold',
  'tail',
  'map',
  'reconstructions',
  'counterfactuals',
  'mistakes',
  'confusion',
)
# The methods that a report leads with: the first one that was scored.
_LEADS = ('crosr', 'crosr_y', 'openmax', 'softmax')


class Picture(NamedTuple):
  """One picture of the report."""

  name: str  # of its file, without .png
  title: str
  caption: str
  png: bytes


class Generated(NamedTuple):
  """Unknowns that were made of training images; rows correspond."""

  image: np.ndarray  # [M, H, W, C] uint8, training images
  label: np.ndarray  # [M]
  reconstruction: np.ndarray  # [M, H, W, C] uint8
  made: np.ndarray  # [M, H, W, C] uint8, what was trained on as unknown


class Material(NamedTuple):
  """What the pictures are drawn from.

  Names are 'train' (known training samples, may be left out), 'test' (known
  test samples) and those of the unknown sets; rows correspond. Scores may
  hold other parts too, which are not drawn.
  """

  class_names: tuple[str, ...]  # K
  history: list[dict]  # rows of the training log, in order of steps
  image: dict[str, np.ndarray]  # name -> [N, H, W, C] uint8, C = 1 or 3
  features: dict[str, types.Features]  # name -> N rows
  # name -> [N, D], already scaled; not of 'train'
  activation: dict[str, np.ndarray]
  scores: dict[str, dict[str, types.Scores]]  # method -> name -> N rows
  threshold: dict[str, float]  # method -> tpr95, from held-out knowns
  # name -> [N], the lead method's answers under the run's decision
  decided: dict[str, np.ndarray]
  # uint8 images -> uint8 reconstructions; None where the net has no lateral
  reconstruct: Callable[[np.ndarray], np.ndarray] | None
  # threshold of the run's decision, where it has one that is none of those
  followed: float | None = None
  # None where the net saw no generated unknowns
  generated: Generated | None = None
  # None where the tail was given, not chosen
  tail: types.TailChoice | None = None


def lead(methods) -> str:
  """The method to show first, out of the names that there are."""
  methods = list(methods)
  return next((m for m in _LEADS if m in methods), methods[0])


def unknown_names(material: Material) -> list[str]:
  """Names of the unknown sets, in the order they were scored."""
  scored = material.scores[lead(material.scores)]
  return [
    name for name in scored if name in material.image.keys() - set(types.PARTS)
  ]


def closed_prediction(material: Material, name: str) -> np.ndarray:
  """Closed-set class of every sample of a set, [N]."""
  return np.argmax(material.features[name].logits, axis=1)


def choose(
  rng: np.random.Generator, where: np.ndarray, count: int
) -> np.ndarray:
  """At most `count` of the row numbers `where`, drawn once, in order."""
  if len(where) <= count:
    return where
  return np.sort(rng.choice(where, count, replace=False))
