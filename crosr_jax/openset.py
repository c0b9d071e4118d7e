"""A finished run as a model: 8-bit images in, open-set answers out.

N samples, K known classes, H x W pixels, C channels.
"""

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from crosr_jax import (
  bucket,
  choice,
  extension,
  features,
  files,
  judge,
  models,
  saved,
  scorer,
  types,
)
from crosr_jax.data import images

_TOLD = {
  'argmax': 'argmax, the largest of the K + 1 probabilities',
  'half': 'half, the class of a probability of at least one half',
}
# Rows of a batch where images are few; each is a program of its own.
_FEW = (1, 16)


# Two with the same arrays are two: arrays have no single == or hash.
@dataclasses.dataclass(frozen=True, eq=False)
class OpenSetModel:
  """Net, Weibulls and decision; `load` makes it, a call answers."""

  class_names: tuple[str, ...]  # K, then the added ones
  image_shape: tuple[int, int, int]  # H, W, C
  net: models.Net
  variables: dict[str, Any]
  fitted: types.WeibullModel | None  # None where the method needs none
  method: str
  alpha: int
  decision: str
  threshold: float  # of the decisions that have one
  held_out: np.ndarray  # [n] unknown scores of known samples, for thresholds
  reject_known: float = 0.02  # share of known samples that may be rejected
  added: extension.Extension | None = None  # classes that came after training
  fitted_sha256: str = ''  # of the file that `fitted` is of

  def __call__(self, image: np.ndarray) -> types.Scores:
    """Scores [N, H, W, C] uint8 images; `prediction` follows the decision.

    A sample's answer never depends on the others, and is the one that the
    report of the run is made of, but for the last bits of float32, which how
    many images are asked about at once may change.

    Raises:
      UsageError: for images of another type or shape.
    """
    return self.score(self.features(image))

  def features(
    self, image: np.ndarray, *, batch_size: int = 0
  ) -> types.Features:
    """What the net says of the images; all of them are labelled unknown.

    Args:
      image: [N, H, W, C] uint8, in memory or images.ImageFiles.
      batch_size: see features.stream; 0 = 1 for one image, 16 for up to 16,
        and for more as there.

    Raises:
      UsageError: as a call.
    """
    image = self._checked(image)
    label = np.full(len(image), types.UNKNOWN, np.int32)
    batch_size = batch_size or _batch_size(self.net, image.shape)
    found = features.extract(
      self.net, self.variables, image, label, batch_size=batch_size
    )
    if self.method == 'augmented':
      return features.split_unknown(found)
    return found

  def score(self, found: types.Features) -> types.Scores:
    """Scores what `features` gave; `prediction` follows the decision."""
    scores = scorer.score(
      found, self._prepared, method=self.method, alpha=self.alpha
    )
    scores = scores._replace(
      prediction=scorer.decide(
        scores,
        judge.closed(found),
        decision=self.decision,
        threshold=self.threshold,
      )
    )
    if self.added is None:
      return scores
    return extension.score(scores, found, self.added)

  @functools.cached_property
  def _prepared(self) -> scorer.Prepared | None:
    return scorer.prepare(self.fitted) if self.fitted else None

  def nearest(self, found: types.Features, scores: types.Scores) -> np.ndarray:
    """Position of the class that each sample is nearest to, [N].

    The closed-set class, or the added class that was decided for; whether or
    not the sample is unknown.
    """
    closed = judge.closed(found)
    is_added = scores.prediction >= found.logits.shape[1]
    return np.where(is_added, scores.prediction, closed)

  def with_class(
    self, name: str, image: np.ndarray | types.Features
  ) -> 'OpenSetModel':
    """The same with a class more, of which there are a few images.

    The net stays as it is: the class gets a mean and a tail, and names what
    the known classes reject. An answer that was a known class stays.

    Args:
      name: of the class.
      image: [n, H, W, C] uint8, n at least 10; or their features.

    Raises:
      UsageError: see check_name.
      UserError: for too few different images.
    """
    self.check_name(name)
    assert self.fitted
    found = image if isinstance(image, types.Features) else self.features(image)
    more = extension.add(
      name,
      found,
      self.fitted,
      reject_known=self.reject_known,
      before=self.added,
    )
    return dataclasses.replace(
      self, class_names=(*self.class_names, name), added=more
    )

  def check_name(self, name: str) -> None:
    """Raises a UsageError where no class of that name can be added."""
    if not isinstance(name, str):
      raise types.UsageError(f'a class is named by a text, got {name!r}')
    if not name.strip() or name in (*self.class_names, 'unknown'):
      raise types.UsageError(
        f'{name!r} cannot name a new class; taken are unknown, '
        f'{", ".join(self.class_names)}'
      )
    if name != name.strip():
      # Nobody would tell it from the same name without.
      raise types.UsageError(
        f'{name!r} begins or ends with a blank; leave it out'
      )
    try:
      name.encode()
      is_text = '\0' not in name  # Arrays of text lose it.
    except UnicodeEncodeError:
      is_text = False
    if not is_text:
      raise types.UsageError(f'{name!r} is no text')
    if self.fitted is None:
      raise types.UsageError(
        f'the method {self.method!r} has no Weibulls that a class could be '
        'added to'
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
      reject_known=reject_known,
      added=self.added and extension.rejecting(self.added, reject_known),
      threshold=choice.threshold(self.held_out, reject_known),
    )

  def told(self) -> str:
    """The decision in words."""
    if self.added:
      names = ', '.join(self.added.class_names)
      known = dataclasses.replace(self, added=None).told()
      return (
        f'{known}; what that rejects is {names} where it is inside its tail'
      )
    if self.decision not in choice.BY_THRESHOLD:
      return _TOLD[self.decision]
    rejected = float(np.mean(self.held_out > self.threshold))
    share = choice.share(self.decision, self.reject_known)
    few = choice.too_few(len(self.held_out), share)
    return (
      f'{self.decision}, unknown where the unknown score is above '
      f'{self.threshold:.4g}, which rejects {rejected:.1%} of the known images '
      f'held out ({len(self.held_out):,}){"; " if few else ""}{few}'
    )

  def save_added(self, workdir: str | os.PathLike) -> None:
    """Keeps the added classes in the workdir that the model was loaded from.

    Raises:
      UsageError: where there is none, or the workdir is another's, was fitted
        again or got other classes since.
      UserError: where the workdir is in use.
    """
    if self.added is None:
      raise types.UsageError('no class was added; see with_class')
    workdir = bucket.finished(workdir, writes=True)
    # A folder that is none of a run is left as it is.
    saved.load_info(workdir)
    with files.held(workdir):
      saved.save_added(workdir, self.added, self.fitted_sha256)

  def reconstruct(
    self, image: np.ndarray, *, batch_size: int = 0
  ) -> np.ndarray:
    """What the decoder makes of [N, H, W, C] uint8 images, as such.

    `batch_size` is as for `features`.

    Raises:
      UsageError: where the net has no decoder, and as a call.
    """
    if self.net.lateral == 'none':
      raise types.UsageError('this net was trained without a decoder')
    image = self._checked(image)
    batch_size = batch_size or _batch_size(self.net, image.shape)
    return features.reconstruct(
      self.net, self.variables, image, batch_size=batch_size
    )

  def _checked(self, image: np.ndarray) -> np.ndarray:
    """The images, if they are of the model's type and shape."""
    if not images.is_lazy(image):
      image = np.asarray(image)
    if image.dtype != np.uint8 or image.shape[1:] != self.image_shape:
      height, width, channels = self.image_shape
      raise types.UsageError(
        f'images must be uint8 of shape [N, {height}, {width}, {channels}], '
        f'got {image.dtype} of shape {list(image.shape)}'
      )
    return image


def _batch_size(net: models.Net, shape: tuple[int, ...]) -> int:
  """Rows of a batch of [N, H, W, C]: what fills one up costs as an image."""
  most = features.most_rows(net, shape)
  return min(next((n for n in _FEW if shape[0] <= n), most), most)


def load(workdir: str | os.PathLike) -> OpenSetModel:
  """The model of a finished run. Nothing that is read can run code.

  Args:
    workdir: of the run, gs://bucket/path too.

  Raises:
    UserError: where there is none, or a file of it is missing or damaged.
  """
  workdir = bucket.finished(workdir)
  found = saved.load(workdir)
  info = found.info
  added = saved.load_added(workdir, info['fitted_sha256'])
  if added:
    # The main job may have asked for another share since, of the same fit.
    added = extension.rejecting(added, info['scorer']['reject_known'])
  return OpenSetModel(
    class_names=(*info['class_names'], *(added.class_names if added else ())),
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
    reject_known=info['scorer']['reject_known'],
    added=added,
    fitted_sha256=info['fitted_sha256'],
  )
