"""Our convolution against XLA's, in value and all gradients, and where it is
used: wide maps on CPU, nothing that leaves the machine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crosr_jax import models, sharding
from crosr_jax.models import convolution, layers


def _stock(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _arrays(seed, batch, height, width, channels, features):
  generator = np.random.default_rng(seed)
  return [
    generator.normal(size=shape).astype(np.float32)
    for shape in (
      (batch, height, width, channels),
      (3, 3, channels, features),
      (batch, height, width, features),
    )
  ]


def _exact(x, kernel):
  """The definition, in float64."""
  padded = np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
  height, width = x.shape[1:3]
  return sum(
    np.einsum(
      'bhwc,cf->bhwf', padded[:, i : i + height, j : j + width], kernel[i, j]
    )
    for i in range(3)
    for j in range(3)
  )


def _value_and_gradients(convolve, x, kernel, back):
  value, vjp = jax.vjp(convolve, x, kernel)
  return [value, *vjp(back)]


def _both_and_size(*arrays):
  """Ours, XLA's, and the same of sizes, which nothing cancels out in.

  Ours adds up all of a kernel, the parts too that an image is too small for.
  """
  x, kernel, back = (jnp.abs(x) for x in arrays)
  largest = kernel.max(axis=(0, 1), keepdims=True)
  sizes = x, jnp.broadcast_to(largest, kernel.shape), back
  return (
    *(_value_and_gradients(convolve, *arrays) for convolve in _BOTH),
    _value_and_gradients(_stock, *sizes),
  )


_BOTH = (convolution.convolve, _stock)


@settings(max_examples=12)
@given(
  seed=st.integers(0, 999), batch=st.integers(1, 5),
  height=st.integers(1, 13), width=st.integers(1, 13),
  channels=st.integers(1, 9), features=st.integers(1, 9),
  images=st.integers(1, 5),
)  # fmt: skip
@example(seed=4, batch=1, height=1, width=1, channels=1, features=1, images=1)
def test_value_and_gradients(
  seed, batch, height, width, channels, features, images
):
  x, kernel, back = _arrays(seed, batch, height, width, channels, features)
  # Whatever number of images is in work at a time.
  tiles = -(-height // 4) * -(-width // 4)
  chunk = 4 * 36 * tiles * max(channels, features) * images
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(convolution, '_CHUNK_BYTES', chunk)
    found, expected, size = jax.jit(_both_and_size)(x, kernel, back)
  np.testing.assert_allclose(found[0], _exact(x, kernel), atol=1e-4)
  for one, other, bound in zip(found, expected, size, strict=True):
    assert one.shape == other.shape and one.dtype == other.dtype
    np.testing.assert_allclose(one, other, atol=1e-5 * bound.max())


def test_second_derivatives():
  # Of a critic with a gradient penalty.
  x, kernel, back = _arrays(0, 3, 6, 5, 4, 2)

  def penalty(convolve, x, kernel):
    slope = jax.grad(lambda x: jnp.sum(jnp.tanh(convolve(x, kernel)) * back))(x)
    return jnp.sum(jnp.square(slope))

  def of_kernel(convolve, x, kernel):
    cubes = jax.grad(lambda w: jnp.sum(convolve(x, w) ** 3))(kernel)
    return jnp.sum(jnp.square(cubes))

  for fn in (penalty, of_kernel):
    ours, stock = jax.jit(
      lambda *a, fn=fn: [
        jax.grad(functools.partial(fn, c), (0, 1))(*a) for c in _BOTH
      ]
    )(x, kernel)
    for one, other in zip(ours, stock, strict=True):
      np.testing.assert_allclose(one, other, atol=3e-5 * np.abs(other).max())


@pytest.mark.parametrize('scale', [1e-15, 1e12])
def test_any_scale(scale):
  x, kernel, _ = _arrays(1, 2, 8, 8, 64, 64)
  found = jax.jit(convolution.convolve)(x * np.float32(scale), kernel)
  exact = _exact(x, kernel)
  np.testing.assert_allclose(
    np.asarray(found, np.float64) / scale,
    exact,
    atol=1e-5 * np.abs(exact).max(),
  )


def _operations(fn, *args):
  return str(jax.make_jaxpr(fn)(*args))


@pytest.mark.parametrize(
  ('channels', 'features', 'fields', 'is_ours'),
  [
    # Twenty tiles.
    (64, 64, {}, True),
    (100, 64, {}, True),
    (63, 64, {}, False),
    (64, 63, {}, False),
    (64, 64, {'size': 1}, False),
    (64, 64, {'strides': (2, 2)}, False),
    (64, 64, {'kernel_dilation': (2, 2)}, False),
    (64, 64, {'feature_group_count': 2}, False),
  ],
)
def test_where_it_is_used(channels, features, fields, is_ours):
  net = layers.conv(features, **fields)
  x = jnp.ones((5, 8, 8, channels))
  variables = net.init(jax.random.key(0), x)
  used = _operations(net.apply, variables, x)
  assert ('conv_general_dilated' not in used) == is_ours
  with layers.stock_operations():
    assert 'conv_general_dilated' in _operations(net.apply, variables, x)
  assert _operations(net.apply, variables, x) == used
  assert 'conv_general_dilated' in _operations(net.apply, variables, x[:4])
  if 'size' not in fields:
    assert variables['params']['kernel'].shape[:2] == (3, 3)


def test_other_numbers_and_platforms_take_the_stock_one(monkeypatch):
  x, kernel, _ = _arrays(0, 1, 8, 8, 64, 64)
  net = layers.conv(64)
  variables = {'params': {'kernel': kernel, 'bias': jnp.zeros(64)}}
  half = jax.tree.map(jnp.bfloat16, (variables, x))
  assert 'conv_general_dilated' in _operations(net.apply, *half)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert 'conv_general_dilated' in _operations(net.apply, variables, x)


def test_a_whole_net_agrees_with_stock_operations():
  image = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
  net = models.build(
    *(4, [0.4] * 3, [0.3] * 3),
    **{'backbone': 'vgg', 'width': 64, 'dropout': 0.0, 'head_dropout': 0.0},
  )
  variables = models.init(net, image, jax.random.key(0))

  def outputs(image):
    return net.apply(variables, image)

  ours = jax.jit(outputs)(image)
  with layers.stock_operations():
    stock = jax.jit(lambda image: outputs(image))(image)
  for one, other in zip(
    jax.tree.leaves(ours), jax.tree.leaves(stock), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize('parallel', sharding.PARALLEL)
def test_inside_a_replica_step(parallel):
  # Sums over chunks inside pmap and shard_map, four images a device.
  x, kernel, back = _arrays(0, 32, 8, 8, 64, 64)

  def step(kernel, batch):
    def loss(kernel):
      return jnp.mean(convolution.convolve(batch[0], kernel) * batch[1])

    gradient = jax.lax.pmean(jax.grad(loss)(kernel), sharding.AXIS)
    return gradient, {'loss': jax.lax.pmean(loss(kernel), sharding.AXIS)}

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(convolution, '_CHUNK_BYTES', 4 * 36 * 4 * 64 * 2)
    engine = sharding.engine(step, parallel=parallel)
    gradient, _ = engine.step(engine.place(kernel), (x, back))
  expected = jax.grad(lambda w: jnp.mean(_stock(x, w) * back))(kernel)
  np.testing.assert_allclose(
    engine.fetch(gradient), expected, atol=1e-5 * np.abs(expected).max()
  )
