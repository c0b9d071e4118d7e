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

from configs import cifar10, common


def get_config() -> ConfigDict:
  """The fast net, and a training that shows small classes as often as large."""
  config = common.get_config()
  config.data.name = 'folder'
  config.data.unknown_classes = ()
  config.data.test_share = 0.2
  config.evaluation.unknown_sets = ()
  cifar10.use_fast_net(config)
  config.train.balanced = True
  config.train.num_steps = 1_500
  config.train.batch_size = 64
  config.train.flip = True
  return config
