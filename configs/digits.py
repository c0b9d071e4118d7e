"""Real digits that come with scikit-learn: no network, under a minute on a CPU.

1,797 handwritten digits, 8x8. Classes 0..6 are known; 7, 8, 9 and noise come as
unknown.

  python -m crosr_jax.main --config=configs/digits.py
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
  """Defaults, shortened and narrowed for digits."""
  config = common.get_config()
  config.train.num_steps = 600
  config.train.batch_size = 64
  config.train.checkpoint_every = 200
  config.train.shift = 1
  return config
