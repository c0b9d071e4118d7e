"""The data sets that `prepare` knows: where from, how large, whose.

Facts only; nothing heavy is imported here. To add one, write its row, a reader
of its publisher's files in raw.py, and a builder in builders.py.
"""

from typing import NamedTuple


class File(NamedTuple):
  """A file as its publisher offers it."""

  url: str
  size: int  # bytes; 0 = not known
  sha256: str  # '' = not known: then the pixels' are
  # What may lie there in its place; a name that ends in / is a folder.
  unpacked: tuple[str, ...] = ()
  # Other packings of the same, which are not read.
  not_read: tuple[str, ...] = ()


class Part(NamedTuple):
  """One part of a data set, and what it must contain."""

  num_samples: int
  # Of the pixels [N, H, W, C] and of the labels [N] as little-endian int32: one
  # check for a download, for a local file in any packing, and for what is read
  # back years later. '' = not known: then the publisher's file must have its
  # SHA-256, the classes their counts, and what is read back the SHA-256 that
  # was noted when it was written.
  image_sha256: str
  label_sha256: str
  class_counts: tuple[int, ...] = ()  # samples of each class; () = not checked


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
  # Of the names of its classes, one a line. '' = not known: then they must
  # differ, and there must be one for each label.
  names_sha256: str = ''


_MNIST = 'https://storage.googleapis.com/cvdf-datasets/mnist/'
_OMNIGLOT = 'https://github.com/brendenlake/omniglot/raw/master/python/'
_CIFAR = 'https://www.cs.toronto.edu/~kriz/'
_SVHN = 'http://ufldl.stanford.edu/housenumbers/'
_DROPBOX = 'https://www.dropbox.com/s/'
_CIFAR_LICENCE = 'none stated; the author asks to cite the technical report'
_CIFAR_CITATION = (
  'Krizhevsky: Learning Multiple Layers of Features from Tiny Images. '
  'Technical report, University of Toronto, 2009'
)

DATA_SETS = {
  'mnist': DataSet(
    # In the order of the parts: images, then labels.
    files={
      'train-images-idx3-ubyte.gz': File(
        _MNIST + 'train-images-idx3-ubyte.gz',
        9_912_422,
        '440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609',
        unpacked=('train-images-idx3-ubyte',),
      ),
      'train-labels-idx1-ubyte.gz': File(
        _MNIST + 'train-labels-idx1-ubyte.gz',
        28_881,
        '3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c',
        unpacked=('train-labels-idx1-ubyte',),
      ),
      't10k-images-idx3-ubyte.gz': File(
        _MNIST + 't10k-images-idx3-ubyte.gz',
        1_648_877,
        '8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6',
        unpacked=('t10k-images-idx3-ubyte',),
      ),
      't10k-labels-idx1-ubyte.gz': File(
        _MNIST + 't10k-labels-idx1-ubyte.gz',
        4_542,
        'f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6',
        unpacked=('t10k-labels-idx1-ubyte',),
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
    names_sha256='29dd21f55e4611d4c787c2148e39b4e341d4c10701dd03eed360aa55035bdb34',
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
    names_sha256='2f1d1d148e5ac8e1a22d32f3f46002a286de7921f9c8242a9f17c86694eef248',
  ),
  'cifar10': DataSet(
    files={
      'cifar-10-binary.tar.gz': File(
        _CIFAR + 'cifar-10-binary.tar.gz',
        170_052_171,
        'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
        unpacked=(
          'cifar-10-binary.tar',
          'cifar-10-batches-bin/',
          'test_batch.bin',
        ),
        not_read=(
          'cifar-10-python.tar.gz',
          'cifar-10-batches-py',
          'cifar-10-matlab.tar.gz',
        ),
      ),
    },
    parts={
      'train': Part(
        50_000,
        '47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a',
        '1431253c7e60f5a2b7e2531aeca20b26a5e5951dcc4977b9c457ebfc43aedb75',
      ),
      'test': Part(
        10_000,
        'f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04',
        '46759f9470c7bc483fc69c725b42c97033013de7690e19b600cf30381a76b9e5',
      ),
    },
    image_shape=(32, 32, 3),
    space=400_000_000,
    version='1.0.0',
    title='CIFAR-10: 60,000 colour images of 10 classes, 32x32',
    homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
    licence=_CIFAR_LICENCE,
    citation=_CIFAR_CITATION,
    names_sha256='bb3914949cecedee6d1257f7f5fdb8f43fa3b2c8095fd1763161caf1b873fe59',
  ),
  'cifar100': DataSet(
    files={
      'cifar-100-binary.tar.gz': File(
        _CIFAR + 'cifar-100-binary.tar.gz',
        168_513_733,
        '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
        unpacked=(
          'cifar-100-binary.tar',
          'cifar-100-binary/',
          'test.bin',
          'test/',
        ),
        not_read=(
          'cifar-100-python.tar.gz',
          'cifar-100-python',
          'cifar-100-matlab.tar.gz',
        ),
      ),
    },
    # Only ever an unknown set, and no unknown is trained on.
    parts={
      'test': Part(
        10_000,
        '3649f267eb9a14c4acea5df2e2b437abe44b7a6b67c2ffd653ebea273d00305e',
        'ca493128e013da9ea0f42b60487b8b55f35bf85da953bd5ff610f4957ac187aa',
      ),
    },
    image_shape=(32, 32, 3),
    space=250_000_000,
    version='1.0.0',
    title='CIFAR-100: 10,000 colour images of 100 classes, 32x32; the test '
    'part alone, as an unknown set',
    homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
    licence=_CIFAR_LICENCE,
    citation=_CIFAR_CITATION,
    names_sha256='fbe8ad23bbaf24969898a386833b49c3aaf6ad1119d43f7b41cdea1b3416d578',
  ),
  'odin': DataSet(
    # Their publisher tells neither size nor SHA-256.
    files={
      'Imagenet.tar.gz': File(
        _DROPBOX + 'avgm2u562itwpkl/Imagenet.tar.gz?dl=1',
        0,
        '',
        unpacked=('Imagenet.tar', 'Imagenet/'),
      ),
      'Imagenet_resize.tar.gz': File(
        _DROPBOX + 'kp3my3412u5k9rl/Imagenet_resize.tar.gz?dl=1',
        0,
        '',
        unpacked=('Imagenet_resize.tar', 'Imagenet_resize/'),
      ),
      'LSUN.tar.gz': File(
        _DROPBOX + 'fhtsw1m3qxlwj6h/LSUN.tar.gz?dl=1',
        0,
        '',
        unpacked=('LSUN.tar', 'LSUN/'),
      ),
      'LSUN_resize.tar.gz': File(
        _DROPBOX + 'moqh2wh8696c3yl/LSUN_resize.tar.gz?dl=1',
        0,
        '',
        unpacked=('LSUN_resize.tar', 'LSUN_resize/'),
      ),
    },
    parts={
      'imagenet_crop': Part(
        10_000,
        '59bf3d31fa74ac9ecf34a3b1592dc366bafb9cee2920b5df607f6c19e4f1097f',
        'e7e2dcff542de95352682dc186432e98f0188084896773f1973276b0577d5305',
      ),
      'imagenet_resize': Part(
        10_000,
        'bf866fca81fe136b18e36c6302b8de46a02bc5d25796b4beee4b60ed29e508c4',
        'e7e2dcff542de95352682dc186432e98f0188084896773f1973276b0577d5305',
      ),
      'lsun_crop': Part(
        10_000,
        'f69e6776d762b7597e7ff28d871ba7ceefe1720bede82a8b63bb2c917ce82aa4',
        'e7e2dcff542de95352682dc186432e98f0188084896773f1973276b0577d5305',
      ),
      'lsun_resize': Part(
        10_000,
        'b9dd4414256ba4b59c2805b78b41f61e3ac27900579a9ef9d9243df11e2dacbf',
        'e7e2dcff542de95352682dc186432e98f0188084896773f1973276b0577d5305',
      ),
    },
    image_shape=(32, 32, 3),
    space=400_000_000,
    version='1.0.0',
    title='Outliers of the ODIN paper: 10,000 colour images each of Tiny '
    'ImageNet and of LSUN, cropped and resized to 32x32',
    homepage='https://github.com/facebookresearch/odin',
    licence="none stated; the images are ImageNet's and LSUN's, for research",
    citation='Liang, Li and Srikant: Enhancing the Reliability of '
    'Out-of-distribution Image Detection in Neural Networks. ICLR 2018',
  ),
  'svhn': DataSet(
    files={
      'train_32x32.mat': File(
        _SVHN + 'train_32x32.mat',
        182_040_794,
        '435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8',
      ),
      'test_32x32.mat': File(
        _SVHN + 'test_32x32.mat',
        64_275_384,
        'cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b',
      ),
    },
    parts={
      'train': Part(
        73_257,
        '',
        '',
        (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
      ),
      'test': Part(
        26_032,
        '',
        '',
        (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
      ),
    },
    image_shape=(32, 32, 3),
    space=600_000_000,
    version='1.0.0',
    title='SVHN: 99,289 house number digits, cropped to 32x32, in colour',
    homepage=_SVHN,
    licence='none stated beyond non-commercial use only',
    citation='Netzer, Wang, Coates, Bissacco, Wu and Ng: Reading Digits in '
    'Natural Images with Unsupervised Feature Learning. NIPS Workshop on Deep '
    'Learning and Unsupervised Feature Learning, 2011',
    names_sha256='29dd21f55e4611d4c787c2148e39b4e341d4c10701dd03eed360aa55035bdb34',
  ),
  'tinyimagenet': DataSet(
    files={
      'tiny-imagenet-200.zip': File(
        'http://cs231n.stanford.edu/tiny-imagenet-200.zip',
        248_100_043,
        '6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821',
        not_read=('tiny-imagenet-200',),
      ),
    },
    parts={
      'train': Part(100_000, '', '', (500,) * 200),
      'val': Part(10_000, '', '', (50,) * 200),
    },
    image_shape=(64, 64, 3),
    space=1_700_000_000,
    version='1.0.0',
    title='Tiny ImageNet: 110,000 colour images of 200 classes, 64x64; the '
    'published test part has no labels and stays out',
    homepage='http://cs231n.stanford.edu/',
    licence="ImageNet's terms of access: non-commercial research and education",
    citation='Le and Yang: Tiny ImageNet Visual Recognition Challenge. '
    'Stanford CS 231N, 2015',
  ),
}


def summary(name: str) -> list[str]:
  """Lines for a person: title, home, licence and citation of a data set."""
  spec = DATA_SETS[name]
  return [
    spec.title,
    f'  Home: {spec.homepage}',
    f'  Licence: {spec.licence}',
    f'  Cite: {spec.citation}',
  ]
