"""From a net and images to Features."""

import jax
import numpy as np
import pytest

from crosr_jax import features, models, train

_SHAPE = (8, 8, 1)


@pytest.fixture(scope='module')
def net():
  model = models.build(
    3, [0.4], [0.3], backbone='digits_cnn', width=4, dropout=0.25,
    head_dropout=0.5, latent_width=3,
  )  # fmt: skip
  return model, models.init(
    model, np.zeros((1, *_SHAPE), np.uint8), jax.random.key(0)
  )


def _images(n):
  generator = np.random.default_rng(0)
  image = generator.integers(0, 256, (n, *_SHAPE), np.uint8)
  return image, np.arange(n, dtype=np.int32) % 3


def test_every_sample_once_and_in_order(net):
  image, label = _images(37)
  found = features.extract(*net, image, label, batch_size=16)
  np.testing.assert_array_equal(found.label, label)
  outputs = net[0].apply(net[1], image)
  np.testing.assert_allclose(found.logits, outputs.logits, atol=1e-5)
  np.testing.assert_allclose(
    found.latent, np.concatenate(outputs.latents, axis=1), atol=1e-5
  )
  target = (image / 255 - 0.4) / 0.3
  error = np.mean((np.asarray(outputs.reconstruction) - target) ** 2, (1, 2, 3))
  np.testing.assert_allclose(found.reconstruction_error, error, rtol=1e-4)
  assert {x.dtype for x in (found.logits, found.latent)} == {np.dtype('f4')}


@pytest.mark.parametrize('batch_size', [1, 8, 13])
def test_stream_is_the_same_in_parts(net, batch_size):
  image, label = _images(21)
  whole = features.extract(*net, image, label, batch_size=32)
  blocks = list(features.stream(*net, image, label, batch_size=batch_size))
  assert len(blocks) > 1
  for a, b in zip(zip(*blocks, strict=True), whole, strict=True):
    np.testing.assert_allclose(np.concatenate(a), b, atol=1e-5)


def test_without_lateral_pooled_blocks_are_latent():
  model = models.build(
    3, [0.4], [0.3], backbone='digits_cnn', width=4, dropout=0.0,
    head_dropout=0.0, lateral='none',
  )  # fmt: skip
  variables = models.init(
    model, np.zeros((1, *_SHAPE), np.uint8), jax.random.key(0)
  )
  found = features.extract(model, variables, *_images(5))
  # 8 channels of the deeper block, then 4 of the first.
  assert found.latent.shape == (5, 12)
  assert found.reconstruction_error.shape == (0,)


def test_reconstructions_are_images(net):
  image, _ = _images(70)
  found = features.reconstruct(*net, image)
  assert found.shape == image.shape and found.dtype == np.uint8
  outputs = net[0].apply(net[1], image)
  expected = np.clip(np.asarray(outputs.reconstruction) * 0.3 + 0.4, 0, 1) * 255
  np.testing.assert_allclose(found, expected, atol=0.51)


def test_large_images_come_in_small_batches(net, monkeypatch):
  image, label = _images(40)
  whole = features.extract(*net, image, label)
  monkeypatch.setattr(features, '_MOST_PIXELS', 8 * 8 * 16)
  blocks = list(features.stream(*net, image, label))
  assert [len(block.label) for block in blocks] == [16, 16, 8]
  for a, b in zip(zip(*blocks, strict=True), whole, strict=True):
    np.testing.assert_allclose(np.concatenate(a), b, rtol=1e-5, atol=1e-6)
  # With all of their views in memory at once.
  mirrored = net[0].clone(eval_mirror=True)
  blocks = list(features.stream(mirrored, net[1], image, label))
  assert [len(block.label) for block in blocks] == [8] * 5


@pytest.mark.parametrize('members', [1, 2])
def test_views_are_counted(members):
  for fields, expected in (
    ({}, 1),
    ({'eval_mirror': True}, 2),
    ({'rotation_classes': (90, 270)}, 1),
    ({'eval_shift': 1}, 5),
    ({'rotation_classes': (90, 270), 'eval_rotations': True}, 3),
    (
      {
        'rotation_classes': (90, 180, 270), 'eval_rotations': True,
        'eval_mirror': True,
      },
      8,
    ),
  ):  # fmt: skip
    net = models.build(
      3, [0.4], [0.3], backbone='digits_cnn', width=4, dropout=0.0,
      head_dropout=0.0, latent_width=3, members=members, **fields,
    )  # fmt: skip
    assert net.num_views == expected
    assert features.most_rows(net, (9, 512, 512, 3)) == 16 // expected
    assert features.most_rows(net, (9, 32, 32, 3)) == 256
    first = getattr(net, 'members', (net,))[0]
    # Of what whitening sees, the configs' images as they were.
    assert train._images_for_init(first, (50_000, 64, 64, 3)) == 512
    assert train._images_for_init(first, (9, 512, 512, 3)) == 128 // expected
