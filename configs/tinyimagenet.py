"""TinyImageNet, 20 classes known and 180 unknown: mean AUROC of five splits.

All five splits and their mean, or the fourth alone. The held-back classes are
all that comes as unknown. Classes are positions in the sorted WordNet ids.

  python -m crosr_jax.prepare tinyimagenet
  python -m crosr_jax.compare --config=configs/tinyimagenet.py --systems=dhrnet
  python -m crosr_jax.main --config=configs/tinyimagenet.py \\
    --config.data.split=3

':distinct' takes five different sets, drawn by a rule (data/splits.py), in
place of the published ones:

  python -m crosr_jax.main --config=configs/tinyimagenet.py:distinct

To be met, mean AUROC of the five splits as others published it: softmax .577,
OpenMax .576, CROSR .589, maximum logit with strong training .830. Time: not yet
run.
"""

from ml_collections import ConfigDict

from configs import cifar10
from crosr_jax import types
from crosr_jax.data import splits

# The first is meant where none is named.
VARIANTS = ('published', 'distinct')
# Known classes as the code of ARPL (Chen et al. 2021) and of MLS (Vaze et al.
# 2022) has them.
PUBLISHED = (
  (
    108, 147, 17, 58, 193, 123, 72, 144, 75, 167, 134, 14, 81, 171, 44, 197,
    152, 66, 1, 133,
  ),
  (
    198, 161, 91, 59, 57, 134, 61, 184, 90, 35, 29, 23, 199, 38, 133, 19, 186,
    18, 85, 67,
  ),
  (
    177, 0, 119, 26, 78, 80, 191, 46, 134, 92, 31, 152, 27, 60, 114, 50, 51,
    133, 162, 93,
  ),
  (
    98, 36, 158, 177, 189, 157, 170, 191, 82, 196, 138, 166, 43, 13, 152, 11,
    75, 174, 193, 190,
  ),
  (
    95, 6, 145, 153, 0, 143, 31, 23, 189, 81, 20, 21, 89, 26, 36, 170, 102,
    177, 108, 169,
  ),
)  # fmt: skip


def get_config(variant: str = VARIANTS[0]) -> ConfigDict:
  """The net of CIFAR-10 on one class split of TinyImageNet."""
  types.check_choice('variant', variant, VARIANTS)
  config = cifar10.get_config()
  config.data.name = 'tinyimagenet'
  # Forty epochs of twenty classes.
  config.train.num_steps = 1_410
  config.evaluation.unknown_sets = ()
  config.data.splits = (
    PUBLISHED if variant == 'published' else splits.distinct(200, 20, 5, seed=0)
  )
  return config
