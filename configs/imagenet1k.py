"""ImageNet-1k: ResNet-50 with codes, 1,000 classes known; for accelerators.

As published: a folder with a sub-folder for each of the 1,000 classes, and the
50,000 images for validation likewise, which take the place of the test part.
Images are read from these folders as they are needed; none is held in memory.

  python -m crosr_jax.main --config=configs/imagenet1k.py \
    --config.data.train_dir=imagenet/train --config.data.test_dir=imagenet/val

Folders of images of none of the classes come as unknown, a set each:

  --config.evaluation.unknown_dirs="('imagenet-o', 'textures')"

What a step takes, before anything is there (see --help):

  python -m crosr_jax.main --config=configs/imagenet1k.py --dry_run --devices=8

The training is the usual one of this net: 90 epochs of 1,024 images, SGD with a
cosine. Features of all images are held in memory at the end: 1,160 float32
numbers of each, 6 GB in all, and more than that while Weibulls are fitted. Not
yet run.
"""

from ml_collections import ConfigDict

from configs import common

# Of 1,024 among the 1,255,600 samples or so that are not held out.
_STEPS_OF_AN_EPOCH = 1_226


def get_config() -> ConfigDict:
  """The published net and its usual training."""
  config = common.get_config()
  config.data.name = 'folder'
  config.data.num_classes = 1_000
  config.data.image_size = 224
  config.data.unknown_classes = ()
  config.data.test_share = 0.0
  # A dozen of each class.
  config.data.select_share = 0.01
  config.data.calibrate_share = 0.01
  config.evaluation.unknown_sets = ()
  config.model.backbone = 'resnet50'
  config.model.width = 64
  config.model.dropout = 0.0
  config.model.head_dropout = 0.0
  config.model.dtype = 'bfloat16'
  config.train.num_steps = 90 * _STEPS_OF_AN_EPOCH
  config.train.batch_size = 1_024
  config.train.learning_rate = 0.4
  config.train.weight_decay = 1e-4
  config.train.schedule = 'cosine'
  config.train.warmup_share = 5 / 90
  config.train.flip = True
  # An eighth of the side.
  config.train.shift = 28
  config.train.shift_fill = 'reflect'
  config.train.log_every = 100
  config.train.checkpoint_every = _STEPS_OF_AN_EPOCH
  return config
