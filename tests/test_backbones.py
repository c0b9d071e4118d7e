"""Backbones against their publications; operations against a hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crosr_jax import models, train, types
from crosr_jax.models import (
  backbones,
  densenet,
  dhrnet,
  resnet,
  summary,
  vgg,
  wide_resnet,
)

_CIFAR = (32, 32, 3)
# As deep as a test can wait for.
_SHALLOW = {
  'vgg': vgg.vgg(5, 4, 0.25, 0.5),
  'densenet': densenet.densenet(5, 3, 0.25, 0.5, num_layers=2),
  'wide_resnet': wide_resnet.wide_resnet(5, 4, 0.25, 0.5, num_residuals=2),
  'resnet': resnet.resnet(5, 4, 0.25, 0.5, num_bottlenecks=(2, 1)),
}


def _around(parts, lateral='bottleneck'):
  return dhrnet.DHRNet(
    parts.blocks,
    parts.head,
    mean=(0.4,) * 3,
    deviation=(0.3,) * 3,
    lateral=lateral,
    latent_width=3,
  )


def _published(backbone, width, num_classes=10):
  """The net without laterals, as its publication counts it."""
  parts = backbones.BACKBONES[backbone](num_classes, width, 0, 0)
  return _around(parts, 'none')


def _traced(net, image_shape=_CIFAR):
  """Shapes of variables and outputs; nothing is compiled."""
  image = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
  variables = jax.eval_shape(net.init, jax.random.key(0), image)
  return variables, jax.eval_shape(net.apply, variables, image)


def _parameters(net):
  variables, _ = _traced(net)
  return sum(x.size for x in jax.tree.leaves(variables['params']))


def test_parameters_of_vgg_by_hand():
  convs = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256)]
  convs += [(256, 256)] * 3
  # A norm has a scale and a bias; the convolution before it has none.
  count = sum(9 * a * b + 2 * b for a, b in convs)
  count += (4 * 4 * 256 + 1) * 1024 + (1024 + 1) * 1024 + (1024 + 1) * 10
  assert _parameters(_published('vgg', 64)) == count


def test_parameters_of_densenet_by_hand_and_as_published():
  count, channels = 9 * 3 * 16, 16
  for block in range(3):
    if block:
      count += 2 * channels + channels**2
    for _ in range(32):
      count += 2 * channels + 9 * channels * 24
      channels += 24
  count += 2 * channels + (channels + 1) * 10
  assert round(count / 1e6, 1) == 27.2
  assert _parameters(_published('densenet100', 24)) == count


def test_parameters_of_wide_resnet_by_hand_and_as_published():
  count, channels = 9 * 3 * 16, 16
  for width in (64, 128, 256):
    count += channels * width
    for _ in range(6):
      count += 2 * channels + 9 * channels * width + 2 * width + 9 * width**2
      channels = width
  count += 2 * channels + (channels + 1) * 10
  assert round(count / 1e6, 1) == 8.9
  assert _parameters(_published('wide_resnet40_4', 64)) == count


def test_resnet50_as_published():
  rows = summary.rows(_published('resnet50', 64, 1000), (224, 224, 3))
  assert [row.shape for row in rows] == [
    (56, 56, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048),
    (1000,),
  ]  # fmt: skip
  # As every published table of this net has them.
  assert sum(row.parameters for row in rows) == 25_557_032
  assert round(sum(row.multiply_adds for row in rows) / 1e9, 2) == 4.09
  # By hand: the stem, and bottlenecks with the stride in their 3x3.
  count, channels = 112**2 * 49 * 3 * 64, 64
  for width, size, bottlenecks in (
    (64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3),
  ):  # fmt: skip
    before = size if width == 64 else 2 * size
    count += size**2 * channels * 4 * width
    for _ in range(bottlenecks):
      count += before**2 * channels * width
      count += size**2 * (9 * width**2 + width * 4 * width)
      channels, before = 4 * width, size
  assert sum(row.multiply_adds for row in rows) == count + 2048 * 1000


@pytest.mark.parametrize('backbone', _SHALLOW)
@pytest.mark.parametrize('shape', [_CIFAR, (9, 13, 3)])
@pytest.mark.parametrize('lateral', dhrnet.LATERALS)
def test_shapes(backbone, shape, lateral):
  net = _around(_SHALLOW[backbone], lateral)
  _, out = _traced(net, shape)
  assert out.logits.shape == (2, 5)
  if lateral == 'none':
    assert out.reconstruction == ()
  else:
    assert out.reconstruction.shape == (2, *shape)
  # Deepest block first, as in [y, z_L, .., z_1].
  expected = {
    'vgg': [16, 8, 4],
    'densenet': [34, 28, 22],
    'wide_resnet': [16, 8, 4],
    'resnet': [32, 16, 4],
  }
  widths = [z.shape[1] for z in out.latents]
  assert widths == ([3] * 3 if lateral == 'bottleneck' else expected[backbone])


@pytest.mark.parametrize('backbone', _SHALLOW)
def test_gradient_reaches_every_parameter(generator, backbone):
  net = _around(_SHALLOW[backbone])
  image = generator.integers(0, 256, (16, 8, 8, 3), np.uint8)
  label = generator.integers(0, 5, 16)
  keys = jax.random.split(jax.random.key(1), 16)
  shapes, _ = _traced(net, (8, 8, 3))
  variables = jax.tree.map(
    lambda x: generator.normal(0, 0.3, x.shape).astype(np.float32), shapes
  )

  def loss(params):
    def replica(image, label, keys):
      batch = types.Batch(image, label, None)
      return train.loss_fn(
        params, variables['batch_stats'], net, batch, keys, 1.0, 0.0
      )[0]

    each = jax.vmap(replica, axis_name='batch')
    return each(image[None], label[None], keys[None])[0]

  compiled = jax.jit(
    jax.grad(loss), compiler_options={'xla_backend_optimization_level': 0}
  )
  dead = [
    jax.tree_util.keystr(path)
    for path, x in jax.tree_util.tree_leaves_with_path(
      compiled(variables['params'])
    )
    if not np.any(x)
  ]
  assert dead == []


def test_operations_of_the_papers_mnist_net_by_hand():
  net = models.build(10, [0.4], [0.3], backbone='mnist_cnn', width=100,
                     dropout=0.25, head_dropout=0.5)  # fmt: skip
  wide, narrow = 9 * 100 * 100, 9 * 100 * 32
  assert summary.rows(net, (28, 28, 1)) == [
    # Convolutions before the pool: 28x28 and 28x28, 14x14 and 14x14, 7x7.
    ('blocks_0', 'block', (14, 14, 100), 91_100, 784 * (9 * 100 + wide)),
    ('blocks_1', 'block', (7, 7, 100), 180_200, 196 * 2 * wide),
    ('blocks_2', 'block', (4, 4, 100), 90_100, 49 * wide),
    ('head', 'head', (10,), 805_510, 1600 * 500 + 500 * 10),
    ('h_2', 'lateral', (4, 4, 32), 28_832, 16 * narrow),
    ('hr_2', 'lateral', (4, 4, 100), 28_900, 16 * narrow),
    # Each of the 4x4 pixels becomes 2x2; the border is cut off afterwards.
    ('g_2', 'decoder', (8, 8, 100), 40_100, 64 * 100 * 100),
    ('h_1', 'lateral', (7, 7, 32), 28_832, 49 * narrow),
    ('hr_1', 'lateral', (7, 7, 100), 28_900, 49 * narrow),
    ('g_1', 'decoder', (14, 14, 100), 40_100, 196 * 100 * 100),
    ('h_0', 'lateral', (14, 14, 32), 28_832, 196 * narrow),
    ('hr_0', 'lateral', (14, 14, 100), 28_900, 196 * narrow),
    ('g_0', 'decoder', (28, 28, 1), 401, 784 * 100 * 1),
  ]


def test_operations_inside_what_is_made_again():
  # Layers of 2 maps, 16 channels and 2 more each, inside jax.checkpoint.
  net = _around(densenet.densenet(5, 2, 0.0, 0.0, num_layers=2), 'none')
  found = {row.name: row.multiply_adds for row in summary.rows(net, (8, 8, 3))}
  assert found == {
    'blocks_0': 64 * 9 * (3 * 16 + 16 * 2 + 18 * 2),
    'blocks_1': 64 * 20 * 20 + 16 * 9 * (20 * 2 + 22 * 2),
    'blocks_2': 16 * 24 * 24 + 4 * 9 * (24 * 2 + 26 * 2),
    'head': 28 * 5,
  }


def test_operations_of_strides_and_of_no_laterals():
  net = _around(_SHALLOW['wide_resnet'], 'none')
  found = {row.name: row.multiply_adds for row in summary.rows(net, (8, 8, 3))}
  assert found == {
    'blocks_0': 64 * (9 * (3 * 16 + 16 * 4 + 3 * 4 * 4) + 16 * 4),
    'blocks_1': 16 * (9 * (4 * 8 + 3 * 8 * 8) + 4 * 8),
    'blocks_2': 4 * (9 * (8 * 16 + 3 * 16 * 16) + 8 * 16),
    'head': 16 * 5,
  }


def test_identity_laterals_have_no_rows():
  rows = summary.rows(_around(_SHALLOW['vgg'], 'identity'), (8, 8, 3))
  assert [row.name for row in rows if row.kind == 'lateral'] == []
  decoder = sum(row.parameters for row in rows if row.kind == 'decoder')
  assert decoder == sum(4 * a * b + b for a, b in ((16, 8), (8, 4), (4, 3)))


def _operands(jaxpr, name):
  """Types of what an operation is given, wherever it is called below."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == name:
      found += [x.aval.dtype for x in equation.invars]
    for inner in summary._jaxprs(equation.params.values()):
      found += _operands(inner, name)
  return found


@pytest.mark.parametrize(
  'name', ['densenet', 'wide_resnet', 'resnet', 'fast', 'digits']
)
def test_bfloat16(name):
  parts = {
    **_SHALLOW,
    'fast': backbones.fast.fast_cnn(5, 4, 0.25, 0.5),
    'digits': backbones.digits_cnn(5, 4, 0.25, 0.5),
  }[name]
  full, half = (_around(parts).clone(dtype=x) for x in dhrnet.DTYPES)
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
  variables = models.init(half, image, jax.random.key(0))
  for x in jax.tree.leaves(variables):
    assert x.dtype == jnp.float32

  @functools.partial(jax.jit, static_argnums=0)
  def run(net, variables):
    return net.apply(models.for_compute(net, variables), image)

  found, expected = run(half, variables), run(full, variables)
  # Eight bits of a number, through some layers.
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert one.dtype == jnp.float32
    one, other = np.asarray(one), np.asarray(other)
    assert 0 < np.linalg.norm(one - other) < 0.05 * np.linalg.norm(other)
  jaxpr = jax.make_jaxpr(lambda v: run(half, v))(variables).jaxpr
  single, short = jnp.dtype('float32'), jnp.dtype('bfloat16')
  assert set(_operands(jaxpr, 'conv_general_dilated')) == {short}
  # Of the matrix products, the last one alone: its logits do not tie.
  products = _operands(jaxpr, 'dot_general')
  assert products.count(single) == 2 and set(products) <= {single, short}
  assert jnp.any(found.logits != found.logits.astype(short).astype(single))
  batch = types.Batch(image, np.arange(8, dtype=np.int32) % 5, np.ones(8, bool))

  def loss(params, net):
    step = jax.vmap(
      lambda _: train.loss_fn(
        params,
        variables['batch_stats'],
        net,
        batch,
        jax.random.split(jax.random.key(1), 8),
        1.0,
        0.0,
      )[0],
      axis_name='batch',
    )
    return step(jnp.zeros(1))[0]

  gradient = jax.eval_shape(
    lambda p: jax.grad(loss)(p, half), variables['params']
  )
  assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype('float32')}
  if name == 'digits':
    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradient = run(variables['params'], half)
    expected, other = run(variables['params'], full)
    assert float(value) == pytest.approx(float(expected), rel=0.03)
    one, other = (
      np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
      for tree in (gradient, other)
    )
    assert 0 < np.linalg.norm(one - other) < 0.05 * np.linalg.norm(other)
