"""Prepares data sets: downloads them, or reads local files, once.

  python -m crosr_jax.prepare mnist omniglot
  python -m crosr_jax.prepare mnist --manual_dir=FOLDER

Without a network, --manual_dir names a folder that holds the publisher's files
as they are; where a line below says so, unpacked will do. Everything is held
against published checksums; what is prepared already is checked and left alone.

Data sets, with what is downloaded:

  mnist         11.6 MB: four idx files, with or without their .gz
  omniglot      15.9 MB: two zips
  cifar10       170 MB: cifar-10-binary.tar.gz, or cifar-10-batches-bin/
  cifar100      169 MB: cifar-100-binary.tar.gz, or cifar-100-binary/, or
                pictures test/<label>/<number>.png; its test part alone
  odin          four archives: Imagenet.tar.gz, Imagenet_resize.tar.gz,
                LSUN.tar.gz, LSUN_resize.tar.gz, or folders of their pictures
  svhn          246 MB: train_32x32.mat, test_32x32.mat
  tinyimagenet  248 MB: tiny-imagenet-200.zip
"""

from absl import flags

from crosr_jax import bucket, cli, types
from crosr_jax.data import catalog, prepared

_MANUAL_DIR = flags.DEFINE_string(
  'manual_dir',
  '',
  "folder with the publisher's files, or with a folder <name> that has them; "
  'default: download them',
)
_DATA_DIR = cli.define_data_dir()


def main(names: list[str]) -> None:
  """Prepares what is named on the command line."""
  if not names:
    raise types.UsageError(
      'name a data set: python -m crosr_jax.prepare mnist; there are '
      f'{", ".join(catalog.DATA_SETS)}'
    )
  for name in names:
    types.check_choice('data set', name, catalog.DATA_SETS)
  data_dir, manual_dir = cli.path_of_data(_DATA_DIR, writes=True), None
  if _MANUAL_DIR.value:
    manual_dir = cli.folder('manual_dir', _MANUAL_DIR.value)
  for name in dict.fromkeys(names):
    print(bucket.named(prepared.prepare(name, data_dir, manual_dir)))


if __name__ == '__main__':
  cli.run(main, takes_arguments=True)
