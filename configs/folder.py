"""Your own images: a folder with a sub-folder for each class.

  python -m crosr_jax.main --config=configs/folder.py \
    --config.data.train_dir=photos

jpg, png, webp and bmp of any size; the names of the sub-folders are the
classes. A fifth of each class is tested on. Folders of images of none of the
classes tell how well unknowns are found, and are used for nothing else:

  --config.evaluation.unknown_dirs="('others', 'rubbish')"

64 x 64 pixels, 1,500 steps: as long as it takes on a laptop. Larger images
(data.image_size), more steps (train.num_steps) and a larger net
(model.backbone) are better, with an accelerator.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
  """The fast net, and a training that shows small classes as often as large."""
  config = common.get_config()
  config.data.name = 'folder'
  config.data.unknown_classes = ()
  config.data.test_share = 0.2
  config.evaluation.unknown_sets = ()
  config.model.backbone = 'fast_cnn'
  config.model.dropout = 0.0
  config.model.head_dropout = 0.0
  config.train.balanced = True
  config.train.num_steps = 1_500
  config.train.batch_size = 64
  config.train.optimizer = 'muon'
  config.train.weight_decay = 0.05
  config.train.clip_norm = 0.0
  config.train.schedule = 'linear'
  config.train.warmup_share = 0.1
  config.train.average = 0.99
  config.train.flip = True
  config.train.shift = 4
  config.train.shift_fill = 'reflect'
  return config
