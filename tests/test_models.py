"""Shapes, parameter counts, laterals, dropout."""

import functools
import math
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from conftest import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from crosr_jax import features, models, types
from crosr_jax.models import dhrnet, layers

# Trained numbers of the net of every config: image shape, classes, count.
_PARAMETERS = {
  'cifar10': ((32, 32, 3), 10, 1_547_533),
  'cifar10:accelerator': ((32, 32, 3), 10, 9_830_253),
  'cifar10:paper': ((32, 32, 3), 10, 8_005_549),
  'cifar10:densenet': ((32, 32, 3), 10, 49_228_829),
  'cifar10:wide_resnet': ((32, 32, 3), 10, 9_373_565),
  'cifar10_split': ((32, 32, 3), 6, 1_546_761),
  'cifar10_split:distinct': ((32, 32, 3), 6, 1_546_761),
  'cifar10_split:accelerator': ((32, 32, 3), 6, 9_828_201),
  'cifar_plus': ((32, 32, 3), 4, 1_546_375),
  'cifar_plus:published10': ((32, 32, 3), 4, 1_546_375),
  'cifar_plus:distinct50': ((32, 32, 3), 4, 1_546_375),
  'cifar_plus:distinct10': ((32, 32, 3), 4, 1_546_375),
  'cifar_plus:accelerator50': ((32, 32, 3), 4, 9_827_175),
  'cifar_plus:accelerator10': ((32, 32, 3), 4, 9_827_175),
  'digits': ((8, 8, 1), 7, 116_520),
  'folder': ((64, 64, 3), 6, 746_025),
  'imagenet1k': ((224, 224, 3), 1000, 38_972_235),
  'mnist': ((28, 28, 1), 10, 372_715),
  'mnist:upright': ((28, 28, 1), 10, 362_695),
  'mnist:paper': ((28, 28, 1), 10, 1_420_707),
  'mnist_split': ((28, 28, 1), 6, 366_703),
  'mnist_split:distinct': ((28, 28, 1), 6, 366_703),
  'svhn_split': ((32, 32, 3), 6, 1_546_761),
  'svhn_split:distinct': ((32, 32, 3), 6, 1_546_761),
  'tinyimagenet': ((64, 64, 3), 20, 1_549_463),
  'tinyimagenet:distinct': ((64, 64, 3), 20, 1_549_463),
}

_FIELDS = {'backbone': 'digits_cnn', 'width': 4, 'dropout': 0.25,
           'head_dropout': 0.5, 'latent_width': 3}  # fmt: skip


def _build(image_shape=(8, 8, 1), num_classes=5, **changes):
  channels = image_shape[-1]
  return models.build(
    num_classes, [0.4] * channels, [0.3] * channels, **{**_FIELDS, **changes}
  )


def _net(image_shape=(8, 8, 1), num_classes=5, **changes):
  net = _build(image_shape, num_classes, **changes)
  return net, models.init(
    net, np.zeros((1, *image_shape), np.uint8), jax.random.key(0)
  )


def _traced(net, image_shape):
  """Shapes of variables and outputs; nothing is compiled."""
  image = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
  variables = jax.eval_shape(net.init, jax.random.key(0), image)
  return variables, jax.eval_shape(net.apply, variables, image)


def _count(variables):
  return sum(x.size for x in jax.tree.leaves(variables['params']))


def _image(generator, n=6, shape=(8, 8, 1)):
  return generator.integers(0, 256, (n, *shape), np.uint8)


def test_every_config_has_a_row():
  assert list(_PARAMETERS) == list(CONFIGS)


@pytest.mark.parametrize('name', _PARAMETERS)
def test_parameters_of_a_config(name):
  config = CONFIGS[name]
  shape, num_classes, count = _PARAMETERS[name]
  net = _build(shape, num_classes, **config.model)
  # What is computed in has neither shapes nor counts of its own.
  variables, out = _traced(net.clone(dtype='float32'), shape)
  assert _count(variables) == count
  assert out.logits.shape == (2, num_classes)
  views = net.ways if config.model.eval_rotations else 1
  assert [z.shape for z in out.latents] == [(2, 32 * views)] * len(net.blocks)
  assert out.reconstruction.shape == (2, *shape)


def test_parameters_of_the_papers_mnist_net_by_hand():
  _, variables = _net((28, 28, 1), 10, backbone='mnist_cnn', width=100,
                      latent_width=32)  # fmt: skip
  conv = (9 * 1 + 1) * 100 + 4 * (9 * 100 + 1) * 100
  head = (4 * 4 * 100 + 1) * 500 + (500 + 1) * 10
  lateral = 3 * ((9 * 100 + 1) * 32 + (9 * 32 + 1) * 100)
  decoder = 2 * (4 * 100 + 1) * 100 + (4 * 100 + 1) * 1
  assert _count(variables) == conv + head + lateral + decoder


@pytest.mark.parametrize('backbone', ['digits_cnn', 'mnist_cnn'])
@pytest.mark.parametrize('shape', [(8, 8, 1), (28, 28, 1), (9, 13, 3)])
@pytest.mark.parametrize('lateral', dhrnet.LATERALS)
def test_shapes(backbone, shape, lateral):
  _, out = _traced(_build(shape, backbone=backbone, lateral=lateral), shape)
  assert out.logits.shape == (2, 5)
  if lateral == 'none':
    assert out.reconstruction == ()
  else:
    assert out.reconstruction.shape == (2, *shape)
  # Deepest block first, as in [y, z_L, .., z_1].
  widths = [x.shape[1] for x in out.latents]
  if lateral == 'bottleneck':
    assert widths == [3] * len(widths)
  else:
    assert (
      widths
      == {
        'digits_cnn': [8, 4],
        'mnist_cnn': [4, 4, 4],
        'fast_cnn': [16, 16, 4],
      }[backbone]
    )


def test_laterals_do_not_touch_the_logits(generator):
  image = _image(generator)
  net, variables = _net()
  plain, _ = _net(lateral='none')
  shared = {
    kind: {
      k: v for k, v in tree.items() if k in ('blocks_0', 'blocks_1', 'head')
    }
    for kind, tree in variables.items()
  }
  np.testing.assert_array_equal(
    net.apply(variables, image).logits, plain.apply(shared, image).logits
  )


def test_latents_are_pooled_codes(generator):
  image = _image(generator)
  net, variables = _net(latent='z', pool='max')
  _, state = net.apply(
    variables, image, capture_intermediates=True, mutable='intermediates'
  )
  codes = state['intermediates']['h_1']['__call__'][0]
  out = net.apply(variables, image)
  np.testing.assert_allclose(
    out.latents[0], np.maximum(codes, 0).max((1, 2)), rtol=1e-6
  )
  mean = net.clone(pool='mean').apply(variables, image)
  np.testing.assert_allclose(
    mean.latents[0], np.maximum(codes, 0).mean((1, 2)), rtol=1e-5
  )
  back = state['intermediates']['hr_0']['__call__'][0]
  wide = net.clone(latent='hr').apply(variables, image)
  np.testing.assert_allclose(wide.latents[1], back.max((1, 2)), rtol=1e-6)


def test_without_lateral_latents_are_pooled_blocks(generator):
  image = _image(generator)
  net, variables = _net(lateral='none')
  _, state = net.apply(
    variables, image, capture_intermediates=True, mutable='intermediates'
  )
  blocks = [
    state['intermediates'][f'blocks_{i}']['__call__'][0] for i in range(2)
  ]
  found = net.apply(variables, image).latents
  for latent, block in zip(found, reversed(blocks), strict=True):
    np.testing.assert_array_equal(latent, block.max((1, 2)))
  # The same numbers as LadderNet's, whose codes are the blocks themselves.
  ladder, more = _net(lateral='identity')
  for ours, its in zip(
    net.apply({k: {n: more[k][n] for n in variables[k]} for k in variables},
              image).latents,
    ladder.apply(more, image).latents, strict=True,
  ):  # fmt: skip
    np.testing.assert_array_equal(ours, its)
  mean = net.clone(pool='mean').apply(variables, image).latents
  np.testing.assert_allclose(mean[0], blocks[1].mean((1, 2)), rtol=1e-5)


def test_last_layer_reaches_negative_values(generator):
  image = _image(generator, 20)
  net, variables = _net()
  assert net.apply(variables, image).reconstruction.min() < 0
  ended = net.clone(last='relu').apply(variables, image)
  assert ended.reconstruction.min() == 0


def test_standardised_once_and_back(generator, monkeypatch):
  image = _image(generator, 3, (4, 4, 3))
  mean, deviation = models.pixel_statistics(image)
  np.testing.assert_allclose(mean, image.mean((0, 1, 2)) / 255)
  np.testing.assert_allclose(deviation, image.std((0, 1, 2)) / 255)
  monkeypatch.setattr(models, '_IMAGES_AT_A_TIME', 2)
  assert models.pixel_statistics(image) == (mean, deviation)
  x = layers.standardise(image, mean, deviation)
  np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(x.std((0, 1, 2)), 1, rtol=1e-5)
  np.testing.assert_array_equal(layers.unstandardise(x, mean, deviation), image)


def test_evaluation_sees_the_centre(generator):
  image = _image(generator, 4, (32, 32, 3))
  image[0] = 77
  whole = _build((32, 32, 3))
  np.testing.assert_array_equal(
    whole.standardise(image), whole.standardise(image, train=True)
  )
  np.testing.assert_array_equal(whole.view(image), image)
  net = _build((32, 32, 3), eval_crop=28)
  np.testing.assert_array_equal(net.view(image, train=True), image)
  view = np.asarray(net.view(image))
  assert view.dtype == np.uint8 and view.shape == image.shape
  np.testing.assert_array_equal(view[0], image[0])
  expected = [
    PIL.Image.fromarray(x[2:30, 2:30]).resize((32, 32), PIL.Image.BILINEAR)
    for x in image
  ]
  # Pillow rounds its weights and after each axis.
  assert np.abs(view.astype(int) - np.stack(expected).astype(int)).max() <= 1


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ((8, 8), (12, 12)),
    ((5, 7), (9, 16)),
    ((28, 28), (32, 32)),
    ((1, 3), (4, 5)),
  ],
)
def test_enlarging_is_exact_and_halves_go_to_the_even(generator, old, new):
  image = _image(generator, 2, (*old, 3))
  image[0, 0], image[1, -1] = 0, 255

  def exact(line, count):
    """By fractions, the border repeated; [n, ...] -> [count, ...]."""
    found = []
    for i in range(count):
      place = Fraction(2 * i + 1, 2 * count) * len(line) - Fraction(1, 2)
      low = math.floor(place)
      first, second = (
        line[min(max(x, 0), len(line) - 1)] for x in (low, low + 1)
      )
      found.append(first + (second - first) * (place - low))
    return np.stack(found)

  expected = [
    exact(exact(x, new[0]).swapaxes(0, 1), new[1]).swapaxes(0, 1)
    for x in image.astype(int).astype(object)
  ]
  # Python rounds a half of a Fraction to the even number.
  rounded = np.vectorize(round)(np.stack(expected))
  np.testing.assert_array_equal(layers.enlarged(image, *new), rounded)


def test_images_too_large_to_be_enlarged_exactly():
  white = np.full((1, 8, 8, 1), 255, np.uint8)
  assert (np.asarray(layers.enlarged(white, 1450, 1451)) == 255).all()
  with pytest.raises(types.UsageError, match='1451 x 1451 pixels are too larg'):
    layers.enlarged(white, 1451, 1451)


def test_features_and_reconstruction_are_of_the_view(generator):
  image = _image(generator, 3, (12, 12, 3))
  net, variables = _net((12, 12, 3), eval_crop=8)
  whole = _build((12, 12, 3))
  view = np.asarray(net.view(image))
  assert not np.array_equal(view, image)
  label = np.zeros(3, np.int32)
  # Two programs, whose roundings some versions of XLA have otherwise.
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    features.extract(net, variables, image, label),
    features.extract(whole, variables, view, label),
  )


@pytest.mark.parametrize('lateral', ['bottleneck', 'none'])
def test_the_mean_answer_for_image_and_mirror_image(generator, lateral):
  image = _image(generator, 3, (12, 12, 3))
  fields = {'image_shape': (12, 12, 3), 'lateral': lateral}
  one, variables = _net(**fields)
  net = _build(**fields, eval_mirror=True)
  found = net.apply(variables, image)
  own, other = (
    one.apply(variables, x) for x in (image, image[:, :, ::-1].copy())
  )
  assert not np.allclose(own.logits, other.logits, atol=1e-3)
  np.testing.assert_allclose(
    found.logits, (own.logits + other.logits) / 2, atol=1e-5
  )
  for a, b, c in zip(found.latents, own.latents, other.latents, strict=True):
    np.testing.assert_allclose(a, (b + c) / 2, atol=1e-5)
  if lateral != 'none':
    np.testing.assert_allclose(
      found.reconstruction,
      (own.reconstruction + other.reconstruction[:, :, ::-1]) / 2,
      atol=1e-5,
    )
  # A mirror image is told the same.
  again = net.apply(variables, image[:, :, ::-1].copy())
  np.testing.assert_allclose(again.logits, found.logits, atol=1e-5)


_close = functools.partial(np.testing.assert_allclose, atol=1e-5)


def _is_mean_of(found, logits, rebuilt):
  """Of views that do not all answer alike."""
  assert np.std(logits, axis=0).max() > 1e-3
  _close(found.logits, np.mean(logits, axis=0))
  _close(found.reconstruction, np.mean(rebuilt, axis=0))


@pytest.mark.parametrize('mirror', [False, True])
def test_the_mean_answer_for_image_and_turns(generator, mirror):
  image = _image(generator, 3, (12, 12, 3))
  fields = {'image_shape': (12, 12, 3), 'rotation_classes': (270, 180)}
  one, variables = _net(**fields)
  net = _build(**fields, eval_rotations=True, eval_mirror=mirror)
  found = net.apply(variables, image)
  # In training all outputs are told: 5 classes, those turned by 270, by 180.
  whole = one.clone(rotation_classes=())
  parts = []
  for flip in (False, True)[: 1 + mirror]:
    for block, turn in enumerate((0, 270, 180)):
      seen = np.rot90(image[:, :, ::-1] if flip else image, turn // 90, (1, 2))
      answer = whole.apply(variables, seen.copy())
      back = np.rot90(answer.reconstruction, 4 - turn // 90, (1, 2))
      parts.append(
        (
          np.split(np.asarray(answer.logits), 3, axis=1)[block],
          answer.latents,
          back[:, :, ::-1] if flip else back,
        )
      )
  logits, latents, rebuilt = zip(*parts, strict=True)
  _is_mean_of(found, logits, rebuilt)
  for block, code in zip(
    zip(*latents, strict=True), found.latents, strict=True
  ):
    # Of image and mirror image means, of the turns side by side.
    mirrors = np.reshape(block, (1 + mirror, 3, *block[0].shape))
    _close(code, np.concatenate(mirrors.mean(axis=0), axis=1))
  # Without the field, of the upright image alone.
  _close(one.apply(variables, image).logits, logits[0])
  # Dropout reaches all views.
  keys = jax.random.split(jax.random.key(0), len(image))
  dropped = net.apply(variables, image, keys)
  assert not np.allclose(dropped.logits, found.logits, atol=1e-3)


@pytest.mark.parametrize('mirror', [False, True])
def test_the_mean_answer_for_an_image_that_is_moved(generator, mirror):
  image = _image(generator, 3, (12, 12, 3))
  fields = {
    'image_shape': (12, 12, 3), 'rotation_classes': (90,),
    'eval_rotations': True, 'eval_mirror': mirror,
  }  # fmt: skip
  asked, variables = _net(**fields)
  net = _build(**fields, eval_shift=2)
  found = net.apply(variables, image)
  parts = []
  for axis, by in ((1, 0), (1, 2), (1, -2), (2, 2), (2, -2)):
    # As SciPy moves it; and back, of what has no place any more the border.
    move = [0, by, 0, 0] if axis == 1 else [0, 0, by, 0]
    moved = ndimage.shift(image, move, order=0, mode='nearest')
    answer = asked.apply(variables, moved)
    back = ndimage.shift(
      answer.reconstruction, [-x for x in move], order=0, mode='nearest'
    )
    parts.append((answer.logits, answer.latents, back))
  logits, latents, rebuilt = zip(*parts, strict=True)
  _is_mean_of(found, logits, rebuilt)
  for codes, code in zip(
    zip(*latents, strict=True), found.latents, strict=True
  ):
    _close(code, np.mean(codes, axis=0))


@pytest.mark.parametrize('by', [-1, 5])
def test_moves_that_cannot_be(by):
  with pytest.raises(types.UsageError, match=r'eval_shift must be in 0\.\.4'):
    _build(eval_shift=by)


def test_evaluation_drops_nothing(generator):
  image = _image(generator)
  net, variables = _net()
  a, b = (net.apply(variables, image) for _ in range(2))
  np.testing.assert_array_equal(a.logits, b.logits)
  keys = jax.random.split(jax.random.key(1), len(image))
  dropped = net.apply(variables, image, keys)
  assert not np.array_equal(a.logits, dropped.logits)


def test_dropout_belongs_to_the_sample():
  x = jnp.ones((4, 50, 50))
  keys = jax.random.split(jax.random.key(1), 4)
  out = layers.Dropout(0.25).apply({}, x, keys)
  assert abs(float(jnp.mean(out == 0)) - 0.25) < 0.02
  np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
  order = np.array([2, 0, 3, 1])
  np.testing.assert_array_equal(
    layers.Dropout(0.25).apply({}, x, keys[order]), out[order]
  )


def test_dropout_of_almost_everything():
  keys = jax.random.split(jax.random.key(1), 2)
  out = layers.Dropout(0.999999).apply({}, jnp.ones((2, 100)), keys)
  assert np.isfinite(out).all()


@pytest.mark.parametrize('strides', [(2, 2), (2, 3)])
def test_upsampling_is_a_transposed_convolution(generator, strides):
  x = generator.normal(size=(2, 3, 4, 5)).astype(np.float32)
  ours = layers.Upsample(6, strides)
  expected = nn.ConvTranspose(6, strides, strides)
  variables = expected.init(jax.random.key(0), x)
  jax.tree.map(
    np.testing.assert_array_equal, ours.init(jax.random.key(0), x), variables
  )
  variables['params']['bias'] = jnp.arange(6.0)

  def loss(net, variables):
    return jnp.sum(jnp.sin(net.apply(variables, x)))

  np.testing.assert_allclose(
    ours.apply(variables, x), expected.apply(variables, x), rtol=1e-6, atol=1e-6
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    *(jax.grad(loss, argnums=1)(net, variables) for net in (ours, expected)),
  )


def test_parameters_of_the_fast_net_by_hand():
  net = _build((32, 32, 3), 10, backbone='fast_cnn', width=48, latent_width=32)
  variables, _ = _traced(net, (32, 32, 3))
  # Bare convolutions, two norms a block; the whitening one is not trained.
  wide = 4 * 48
  convs = 9 * (24 * 48 + 48 * 48 + 48 * wide + 3 * wide * wide)
  norms = 4 * (48 + wide + wide)
  head = (wide + 1) * 10
  lateral = sum((9 * c + 1) * 32 + (9 * 32 + 1) * c for c in (48, wide, wide))
  decoder = (4 * wide + 1) * wide + (4 * wide + 1) * 48 + (4 * 48 + 1) * 3
  assert _count(variables) == convs + norms + head + lateral + decoder


def test_whitened_patches_are_uncorrelated(generator):
  # Smooth colour images: neighbours and channels move together.
  image = generator.integers(0, 256, (50, 5, 5, 3)).repeat(2, 1).repeat(2, 2)
  image[..., 1] = (image[..., 0] + image[..., 1]) // 2
  image = image.astype(np.uint8)
  net, _ = _net((10, 10, 3), backbone='fast_cnn')
  mean, deviation = models.pixel_statistics(image)
  net = net.clone(mean=mean, deviation=deviation)
  variables = models.init(net, image, jax.random.key(0))
  kernel = variables['batch_stats']['blocks_0']['Whitening_0']['kernel']
  assert kernel.shape == (2, 2, 3, 24)
  x = np.asarray(net.standardise(image))
  patches = np.concatenate(
    [x[:, i:9 + i, j:9 + j] for i in range(2) for j in range(2)], axis=-1
  ).reshape(-1, 12)  # fmt: skip
  found = patches @ np.asarray(kernel).reshape(12, 24)
  np.testing.assert_allclose(found[:, :12], -found[:, 12:], atol=1e-5)
  second = found[:, :12].T @ found[:, :12] / len(found)
  # Up to the floor under small variances: decorrelated, of variance 1.
  np.testing.assert_allclose(second, np.diag(np.diag(second)), atol=2e-3)
  assert (np.diag(second) < 1.001).all() and np.diag(second).max() > 0.99
  assert 'kernel' not in str(jax.tree.map(np.shape, variables['params'])[
    'blocks_0'].get('Whitening_0', ''))  # fmt: skip


@jax.jit
def _pools(x, back):
  """Value and gradient of our pool and of Flax's."""

  def of_flax(x):
    return nn.max_pool(x, (2, 2), (2, 2), padding='SAME')

  found = [jax.vjp(pool, x) for pool in (layers.max_pool, of_flax)]
  return [(value, gradient(back)[0]) for value, gradient in found]


@settings(max_examples=15)
@given(
  height=st.integers(1, 5), width=st.integers(1, 5), seed=st.integers(0, 999)
)
def test_pool_and_its_gradient_are_those_of_flax(height, width, seed):
  generator = np.random.default_rng(seed)
  # Few values, so that windows have ties; odd sizes have cut windows.
  x = generator.integers(-2, 3, (20, height, width, 3)).astype(np.float32)
  out = (20, (height + 1) // 2, (width + 1) // 2, 3)
  back = generator.normal(size=out).astype(np.float32)
  ours, expected = _pools(x, back)
  np.testing.assert_array_equal(ours[0], expected[0])
  np.testing.assert_array_equal(ours[1], expected[1])


@pytest.mark.parametrize(
  ('backend', 'is_ours'), [('cpu', True), ('gpu', True), ('tpu', False)]
)
def test_pool_of_a_backend(backend, is_ours, monkeypatch):
  def program():
    # A new function, or JAX would give the trace of another backend.
    x = jnp.zeros((1, 4, 4, 1))
    return str(jax.make_jaxpr(lambda x: layers.max_pool(x))(x))

  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  assert ('custom_vjp' in program()) == is_ours
  with layers.stock_operations():
    assert 'custom_vjp' not in program()


def test_odd_sizes_pool_every_pixel():
  x = jnp.zeros((1, 7, 7, 1)).at[0, 6, 6, 0].set(5.0)
  pooled = layers.max_pool(x)
  assert pooled.shape == (1, 4, 4, 1)
  assert pooled[0, 3, 3, 0] == 5


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'backbone': 'digit_cnn'}, "model.backbone .*did you mean 'digits_cnn'"),
    ({'lateral': 'bottle'}, 'model.lateral must be one of bottleneck'),
    ({'latent': 'y'}, 'model.latent'),
    ({'pool': 'maxx'}, "did you mean 'max'"),
    ({'last': 'tanh'}, 'model.last'),
    ({'width': 0}, 'model.width must be at least 1, got 0'),
    ({'latent_width': -1}, 'model.latent_width'),
    ({'eval_crop': -1}, 'model.eval_crop must be at least 0, got -1'),
    ({'rotation_classes': (90, 45)}, r'of 90, 180, 270 .*, got \(90, 45\)'),
    ({'rotation_classes': False}, 'rotation_classes .* got False'),
    ({'eval_rotations': True}, 'eval_rotations=True: .*set model.rotation_cl'),
    ({'rotation_classes': (90, 90)}, r'different ones of .* got \(90, 90\)'),
    ({'eval_crop': 9}, 'eval_crop=9 is larger than the images, 8 x 8'),
    ({'dropout': 1.0}, r'model.dropout must be in \[0, 1\), got 1.0'),
    ({'head_dropout': float('nan')}, 'model.head_dropout'),
  ],
)
def test_bad_fields(changes, message):
  with pytest.raises(ValueError, match=message):
    _net(**changes)


def test_one_class_is_no_classifier():
  with pytest.raises(ValueError, match='at least 2 known classes, got 1'):
    _net(num_classes=1)


def test_the_view_of_evaluation_lets_a_gradient_through(generator):
  net = _build(eval_crop=6)
  image = generator.uniform(0, 255, (2, 8, 8, 1)).astype(np.float32)
  slope = jax.grad(lambda x: jnp.sum(net.view(x)))(image)
  assert (np.asarray(slope)[:, 2:6, 2:6] > 0).all()
  assert (np.asarray(slope)[:, 0] == 0).all()
