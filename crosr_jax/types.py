"""What crosses the doors between the rooms; NumPy only.

N samples, B batch, K known classes, L latent width, D activation width.
"""

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

# Label and prediction of a sample that belongs to no known class.
UNKNOWN = -1

# Parts of the known samples: to train on, held out for choices, held out for
# thresholds, to test on. All other names are unknown sets.
PARTS = ('train', 'select', 'calibrate', 'test')

# An array of NumPy or of JAX: this module imports no jax.
Array = Any


class UserError(ValueError):
  """Something the user can mend; the message names the value and the way out.

  Commands print it as one line and end with `exit_code`.
  """

  exit_code = 1


class DivergedError(UserError):
  """A training whose loss or gradient is not finite."""


class UsageError(UserError):
  """A flag, a config field or an argument has a value that cannot be used."""

  exit_code = 2


def near(value: str, choices: Iterable[str]) -> str:
  """'; did you mean x?' of the choice most like it; '' where none is."""
  found = difflib.get_close_matches(value, tuple(choices), 1)
  return f'; did you mean {found[0]}?' if found else ''


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
  """Raises a UsageError that lists the choices and suggests the nearest."""
  choices = tuple(choices)
  if value not in choices:
    near = difflib.get_close_matches(str(value), choices, 1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise UsageError(
      f'{name} must be one of {", ".join(choices)}, got {value!r}{hint}'
    )


def check_unmasked(name: str, values: Any) -> None:
  """Raises a UsageError for NumPy's masked values."""
  if np.ma.is_masked(values):
    raise UsageError(
      f'{name}: {np.ma.count_masked(values)} values are masked, which no '
      'distance knows of; leave their samples out'
    )


class Batch(NamedTuple):
  """Images as they come, 8-bit for knowns, unknowns and noise alike."""

  image: Array  # [B, H, W, C] uint8
  label: Array  # [B] int32, -1 = unknown
  mask: Array  # [B] bool, False = padding


class Outputs(NamedTuple):
  """What a net returns."""

  logits: Array  # [B, K] closed-set output y, before softmax
  # of [B, D_l], deepest block first: pooled codes, or what the blocks gave,
  # pooled, where the net has no lateral
  latents: tuple[Array, ...]
  reconstruction: Array  # [B, H, W, C], standardised; () without lateral


class Features(NamedTuple):
  """What a net says of N samples: all that fitting and scoring need."""

  logits: np.ndarray  # [N, K] float32
  latent: np.ndarray  # [N, L] float32, L = 0 where there is none
  label: np.ndarray  # [N] int32, -1 = unknown
  # [N] float32, mean squared error of each sample; empty where there is none
  reconstruction_error: np.ndarray = np.zeros(0, np.float32)

  def rows(self, chosen: Any) -> 'Features':
    """Those of some samples: a slice, positions or a mask of [N]."""
    # Errors may be missing, and then are for all of them.
    return Features(*(x[chosen] if len(x) else x for x in self))


class WeibullModel(NamedTuple):
  """A class mean and a Weibull on the largest distances to it, per class.

  distance = norm((a - mav) / feature_scale), a = activation vector, but for
  'evidence' and 'neighbour', see vectors.py;
  cdf(d) = 1 - exp(-((d - loc) / scale)**shape), and 0 below loc.
  """

  # What `a` is: 'logits', 'joint' (logits and latent), or 'evidence' and
  # 'neighbour' (logits, latent and the logarithm of the reconstruction error,
  # where there is one).
  vector: str
  feature_scale: np.ndarray  # [D] float64
  mav: np.ndarray  # [K, D] float64, mean activation vectors
  shape: np.ndarray  # [K] float64
  loc: np.ndarray  # [K] float64
  scale: np.ndarray  # [K] float64
  tail_count: np.ndarray  # [K] int64, distances each tail was fitted on
  dead: np.ndarray  # [D] bool, coordinates (nearly) constant in training
  # Of 'evidence' and 'neighbour' alone, [K, 3] float64, for their three
  # questions: the answer from which on it counts, which is the mean of those of
  # the class's training samples moved by the recipe's margin; and the deviation
  # that it is measured in, infinity where a part tells nothing.
  part_mean: np.ndarray = np.zeros((0, 3))
  part_deviation: np.ndarray = np.zeros((0, 3))
  latent_width: int = 0  # L, of the same
  part_weight: np.ndarray = np.zeros(0)  # [3], of the same
  # Of 'neighbour' alone: directions of [y, z] of the correctly classified
  # training samples, by class, [M, K+L] float32; and how many each class has,
  # [K] int64.
  exemplars: np.ndarray = np.zeros((0, 0), np.float32)
  exemplar_count: np.ndarray = np.zeros(0, np.int64)
  # Nearest ones that are asked about, at least 1; of other vectors 0.
  neighbours: int = 0


class TailChoice(NamedTuple):
  """A tail share, and what the others that were tried would have rejected."""

  share: float
  reject_known: float  # what was asked for
  shares: tuple[float, ...]  # that were tried, T
  train: tuple[float, ...]  # share of training samples that each rejects
  held_out: tuple[float, ...]  # the same of held-out ones, which decide
  num_held_out: int


class Scores(NamedTuple):
  """The open-set answer for N samples."""

  probability: np.ndarray  # [N, K+1] float32, column K = unknown
  prediction: np.ndarray  # [N] int32, what was decided, -1 = unknown
  unknown_score: np.ndarray  # [N] float32, higher = more unknown
