"""A finished run as a model: 8-bit images in, open-set answers out.

N samples, K known classes, H x W pixels, C channels.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from crosr_jax import choice, features, models, saved, scorer, types
from crosr_jax.data import images
from crosr_jax.models import dhrnet

_TOLD = {
  'argmax': 'argmax, the largest of the K + 1 probabilities',
  'half': 'half, the class of a probability of at least one half',
}


@dataclasses.dataclass(frozen=True)
class OpenSetModel:
  """Net, Weibulls and decision; `load` makes it, a call answers."""

  class_names: tuple[str, ...]  # K
  image_shape: tuple[int, int, int]  # H, W, C
  net: dhrnet.DHRNet
  variables: dict[str, Any]
  fitted: types.WeibullModel | None  # None where the method needs none
  method: str
  alpha: int
  decision: str
  threshold: float  # of the decisions that have one
  held_out: np.ndarray  # [n] unknown scores of known samples, for thresholds

  def __call__(self, image: np.ndarray) -> types.Scores:
    """Scores [N, H, W, C] uint8 images; `prediction` follows the decision.

    A sample's answer never depends on the others, and is the one that the
    report of the run is made of.

    Raises:
      UsageError: for images of another type or shape.
    """
    return self.score(self.features(image))

  def features(
    self, image: np.ndarray, *, batch_size: int = 256
  ) -> types.Features:
    """What the net says of the images; all of them are labelled unknown.

    Args:
      image: [N, H, W, C] uint8, in memory or images.ImageFiles.
      batch_size: rows that the net is asked about at once.

    Raises:
      UsageError: as a call.
    """
    if not images.is_lazy(image):
      image = np.asarray(image)
    if image.dtype != np.uint8 or image.shape[1:] != self.image_shape:
      height, width, channels = self.image_shape
      raise types.UsageError(
        f'images must be uint8 of shape [N, {height}, {width}, {channels}], '
        f'got {image.dtype} of shape {list(image.shape)}'
      )
    label = np.full(len(image), types.UNKNOWN, np.int32)
    found = features.extract(
      self.net, self.variables, image, label, batch_size=batch_size
    )
    if self.method == 'augmented':
      return features.split_unknown(found)
    return found

  def score(self, found: types.Features) -> types.Scores:
    """Scores what `features` gave; `prediction` follows the decision."""
    scores = scorer.score(
      found, self.fitted, method=self.method, alpha=self.alpha
    )
    return scores._replace(
      prediction=scorer.decide(
        scores,
        np.argmax(found.logits, axis=1),
        decision=self.decision,
        threshold=self.threshold,
      )
    )

  def rejecting(self, reject_known: float) -> 'OpenSetModel':
    """The same with a threshold that rejects this share of known samples.

    Args:
      reject_known: of the known samples that were held out for thresholds, in
        (0, 0.5).

    Raises:
      UsageError: for another share.
    """
    choice.check_reject_known(reject_known)
    return dataclasses.replace(
      self,
      decision='calibrated',
      threshold=choice.threshold(self.held_out, reject_known),
    )

  def told(self) -> str:
    """The decision in words."""
    if self.decision not in ('tpr95', 'calibrated'):
      return _TOLD[self.decision]
    rejected = float(np.mean(self.held_out > self.threshold))
    return (
      f'{self.decision}, unknown where the unknown score is above '
      f'{self.threshold:.4g}, which rejects {rejected:.1%} of the known images '
      f'held out ({len(self.held_out):,})'
    )

  def reconstruct(
    self, image: np.ndarray, *, batch_size: int = 64
  ) -> np.ndarray:
    """What the decoder makes of [N, H, W, C] uint8 images, as such.

    Raises:
      UsageError: where the net has no decoder.
    """
    if self.net.lateral == 'none':
      raise types.UsageError('this net was trained without a decoder')
    return features.reconstruct(
      self.net, self.variables, image, batch_size=batch_size
    )


def load(workdir: str | os.PathLike) -> OpenSetModel:
  """The model of a finished run. Nothing that is read can run code.

  Args:
    workdir: of the run.

  Raises:
    UserError: where there is none, or a file of it is missing or damaged.
  """
  found = saved.load(pathlib.Path(workdir))
  info = found.info
  return OpenSetModel(
    class_names=tuple(info['class_names']),
    image_shape=tuple(info['image_shape']),
    net=models.build(
      info['num_outputs'], info['mean'], info['deviation'], **info['net']
    ),
    variables=found.variables,
    fitted=found.models.get(info['entry']),
    method=info['method'],
    alpha=info['alpha'],
    decision=info['decision'],
    threshold=info['threshold'],
    held_out=found.held_out,
  )
