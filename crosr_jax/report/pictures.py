"""All pictures of a report, in the order they are shown."""

from collections.abc import Callable, Iterator

import matplotlib
import numpy as np

from crosr_jax.report import (
  curves,
  maps,
  matrices,
  sheets,
  style,
  tail,
  threshold,
  training,
)
from crosr_jax.report import material as material_lib


def draw(
  material: material_lib.Material,
  *,
  map_samples: int = 1000,
  seed: int = 0,
) -> list[material_lib.Picture]:
  """Draws what the material allows, one picture per name of material.NAMES.

  Args:
    material: what to draw.
    map_samples: points of the map, at most.
    seed: of every choice of samples and of the map.
  """
  with matplotlib.rc_context(style.settings()):
    made = {
      name: make(np.random.default_rng([seed, i]))
      for i, (name, make) in enumerate(_makers(material, map_samples, seed))
    }
  return [picture for name in material_lib.NAMES if (picture := made.get(name))]


def _makers(
  material: material_lib.Material, map_samples: int, seed: int
) -> Iterator[tuple[str, Callable]]:
  """A function of a random generator for every name."""
  yield 'samples', lambda rng: sheets.samples(material, rng)
  yield 'training', lambda _: training.training(material)
  yield 'reconstructions', lambda rng: sheets.reconstructions(material, rng)
  yield 'tail', lambda _: tail.tail(material)
  yield 'counterfactuals', lambda rng: sheets.counterfactuals(material, rng)
  if not material_lib.unknown_names(material):
    return
  yield 'unknown_scores', lambda _: curves.unknown_scores(material)
  yield 'roc', lambda _: curves.roc(material)
  yield 'f1_threshold', lambda _: threshold.f1_threshold(material)
  yield (
    'map',
    lambda rng: maps.embedding(material, rng, samples=map_samples, seed=seed),
  )
  yield 'mistakes', lambda _: sheets.mistakes(material)
  yield 'confusion', lambda _: matrices.confusion(material)
