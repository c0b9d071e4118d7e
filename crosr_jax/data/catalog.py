"""The data sets that `prepare` knows: where from, how large, whose.

Facts only; nothing heavy is imported here. To add one, write its row, a reader
of its publisher's files in raw.py, and a builder in builders.py.
"""

from typing import NamedTuple


class File(NamedTuple):
  """A file as its publisher offers it."""

  url: str
  size: int  # bytes
  sha256: str


class Part(NamedTuple):
  """One part of a data set, and what it must contain."""

  num_samples: int
  # Of the pixels [N, H, W] and of the labels [N] as little-endian int32: one
  # check for a download, for a local file in any packing, and for what is read
  # back years later.
  image_sha256: str
  label_sha256: str


class DataSet(NamedTuple):
  """One data set."""

  files: dict[str, File]  # by file name
  parts: dict[str, Part]  # by name
  image_shape: tuple[int, int, int]  # height, width, channels
  space: int  # bytes on disk while it is prepared
  version: str  # of our on-disk form
  title: str
  homepage: str
  licence: str
  citation: str


_MNIST = 'https://storage.googleapis.com/cvdf-datasets/mnist/'
_OMNIGLOT = 'https://github.com/brendenlake/omniglot/raw/master/python/'

DATA_SETS = {
  'mnist': DataSet(
    # In the order of the parts: images, then labels.
    files={
      'train-images-idx3-ubyte.gz': File(
        _MNIST + 'train-images-idx3-ubyte.gz',
        9_912_422,
        '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
      ),
      'train-labels-idx1-ubyte.gz': File(
        _MNIST + 'train-labels-idx1-ubyte.gz',
        28_881,
        '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
      ),
      't10k-images-idx3-ubyte.gz': File(
        _MNIST + 't10k-images-idx3-ubyte.gz',
        1_648_877,
        '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
      ),
      't10k-labels-idx1-ubyte.gz': File(
        _MNIST + 't10k-labels-idx1-ubyte.gz',
        4_542,
        'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
      ),
    },
    parts={
      'train': Part(
        60_000,
        '741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757',
        'ba2e26c82ab7a46fbcd5ec6de8eee4d541cf3829f5050669177da23b515defeb',
      ),
      'test': Part(
        10_000,
        '6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161',
        '52aa149c856ca033d02e1d2e5cc61033b4c56ed4a56f0edc328206a178c42126',
      ),
    },
    image_shape=(28, 28, 1),
    space=60_000_000,
    version='1.0.0',
    title='MNIST: 70,000 handwritten digits, 28x28 grey',
    homepage='http://yann.lecun.com/exdb/mnist/',
    licence='Creative Commons Attribution-Share Alike 3.0; copyright of Yann '
    'LeCun and Corinna Cortes',
    citation='LeCun, Bottou, Bengio and Haffner: Gradient-based learning '
    'applied to document recognition. Proceedings of the IEEE 86(11), '
    '2278-2324, 1998',
  ),
  'omniglot': DataSet(
    files={
      'images_background.zip': File(
        _OMNIGLOT + 'images_background.zip',
        9_464_212,
        'ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640',
      ),
      'images_evaluation.zip': File(
        _OMNIGLOT + 'images_evaluation.zip',
        6_462_886,
        '1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee',
      ),
    },
    parts={
      'background': Part(
        19_280,
        'f32435a80e3966c7aa29e20298c2c9ec9947dbf555cecea37d51cfc8e1365fa0',
        'ef492011a0bc914e7be50a0d022c4c4bebbbfd46de17004e3b99945ef83f42f6',
      ),
      'evaluation': Part(
        13_180,
        'eb68a59f8009779aa59cff308d7af8e3b946a55d740dad6a8ed9364f7c20fa27',
        '7b94b42b40d570dc2df1f8172ccce822594cb30e2c98c3025efe81612f84cf97',
      ),
    },
    image_shape=(105, 105, 1),
    space=60_000_000,
    version='1.0.0',
    title='Omniglot: 32,460 drawings of 1,623 characters, 105x105, ink dark',
    homepage='https://github.com/brendenlake/omniglot',
    licence='MIT; copyright of Brenden Lake',
    citation='Lake, Salakhutdinov and Tenenbaum: Human-level concept learning '
    'through probabilistic program induction. Science 350(6266), 1332-1338, '
    '2015',
  ),
}


def summary(name: str) -> str:
  """Title, home, licence and citation of a data set, for a person."""
  spec = DATA_SETS[name]
  return (
    f'{spec.title}\n  Home: {spec.homepage}\n  Licence: {spec.licence}\n'
    f'  Cite: {spec.citation}'
  )
