"""MNIST, 6 digits known and the other 4 unknown: mean AUROC of five splits.

The held-back digits are all that comes as unknown. The net is that of
configs/mnist.py:upright, trained with shifts and rotations, and with digits
that lie on their side as classes of their own; it is asked about the image,
moved by a pixel to each side too, and about all that on its sides: an answer
takes fifteen of the net's. All five splits and their mean, then the fourth
alone:

  python -m crosr_jax.prepare mnist
  python -m crosr_jax.compare --config=configs/mnist_split.py --systems=dhrnet
  python -m crosr_jax.main --config=configs/mnist_split.py --config.data.split=3

':distinct' takes five different sets, drawn by a rule (data/splits.py), in
place of the published ones:

  python -m crosr_jax.main --config=configs/mnist_split.py:distinct

To be met, mean AUROC of the five splits as others published it: softmax .978,
OpenMax .981, CROSR .991, maximum logit with strong training .993. On two CPU
cores all five take an hour.
"""

from ml_collections import ConfigDict

from configs import mnist
from crosr_jax import types
from crosr_jax.data import splits

# The first is meant where none is named.
VARIANTS = ('published', 'distinct')
# Known classes as the code of ARPL (Chen et al. 2021) and of MLS (Vaze et al.
# 2022) has them.
PUBLISHED = (
  (2, 4, 5, 9, 8, 3),
  (3, 2, 6, 9, 4, 0),
  (5, 8, 3, 2, 4, 6),
  (3, 7, 8, 4, 0, 5),
  (6, 3, 4, 9, 8, 2),
)


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
  """The net for two CPU cores, trained for minutes, on one class split."""
  types.check_choice('variant', variant, VARIANTS)
  config = mnist.get_config('upright')
  config.evaluation.unknown_sets = ()
  # Chosen on known digits alone: of the first split four trained on for 2,000
  # steps, 3 and 8 kept back as unknowns, AUROC on the select and calibrate
  # parts: maximum logit .981 against .973 without, CROSR as published .980
  # against .972.
  config.train.shift = 2
  config.train.rotate = 10.0
  # Likewise: docs/experiments.md, 16 to 18. A half turn makes a 9 of a 6, and
  # is left out.
  config.model.rotation_classes = (90, 270)
  config.model.eval_rotations = True
  # Likewise: section 22, near and far .9963 and .9968, before .9951 and .9963.
  config.model.eval_shift = 1
  config.weibull.tail = '20%'
  config.data.splits = (
    PUBLISHED if variant == 'published' else splits.distinct(10, 6, 5, seed=0)
  )
  return config
