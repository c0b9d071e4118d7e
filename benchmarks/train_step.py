"""Training steps: ours against the same net in PyTorch.

  python benchmarks/train_step.py --nets=mnist,vgg,fast

A step is what a training repeats: images as they come, forward, both losses,
gradients, Nesterov momentum with weight decay; in PyTorch in its default
layout, channels_last, and compiled. Both nets are one function first: with the
same parameters they must give the same logits and reconstructions.
"""

import functools
import os
import pathlib
import sys

import jax
import numpy as np
import timing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from crosr_jax import models, sharding, train, types

# Backbone, width, shape of an image, both dropout rates, batch size.
NETS = {
  'mnist': ('mnist_cnn', 100, (28, 28, 1), 0.25, 0.5, 128),
  'vgg': ('vgg', 64, (32, 32, 3), 0.25, 0.5, 128),
  'fast': ('fast_cnn', 48, (32, 32, 3), 0.0, 0.0, 256),
  'fast_wide': ('fast_cnn', 128, (32, 32, 3), 0.0, 0.0, 256),
  'wide_resnet': ('wide_resnet40_4', 64, (32, 32, 3), 0.0, 0.0, 128),
}
_MEAN, _DEVIATION = 0.4, 0.3
RULE = {
  'optimizer': 'sgd',
  'learning_rate': 0.01,
  'momentum': 0.9,
  'weight_decay': 5e-4,
  'schedule': 'constant',
  'warmup_share': 0.0,
  'halvings': 19,
  'clip_norm': 0.0,
}


def main() -> None:
  """Measures and prints."""
  parser = timing.parser(__doc__)
  parser.add_argument(
    '--nets', type=timing.names(NETS), default='mnist,vgg,fast'
  )
  parser.add_argument('--steps', type=int, default=3, help='in one timing')
  parser.add_argument('--no_compile', action='store_true')
  arguments = parser.parse_args()
  tables = {}
  for name in arguments.nets:
    batch = NETS[name][-1]
    rows = timing.interleaved(
      _cases(name, arguments.steps, not arguments.no_compile),
      arguments.repeats,
    )
    rows = [
      row._replace(note=f'{arguments.steps * batch / row.median:7.0f} images/s')
      for row in rows
    ]
    title = f'{name}: {arguments.steps} steps of {batch} images'
    timing.show(title, rows)
    tables[title] = rows
  timing.write(arguments.output, tables)


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels of one batch."""
  *_, shape, _, _, batch = NETS[name]
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (batch, *shape), np.uint8)
  return image, rng.integers(0, 10, batch, np.int32)


def build(name: str, width: int = 0, dtype: str = 'float32'):
  """Ours; width 0 is that of NETS."""
  backbone, usual, shape, dropout, head_dropout, _ = NETS[name]
  channels = shape[2]
  return models.build(
    10,
    [_MEAN] * channels,
    [_DEVIATION] * channels,
    backbone=backbone,
    width=width or usual,
    dropout=dropout,
    head_dropout=head_dropout,
    dtype=dtype,
  )


def net(name: str, width: int = 0):
  """Ours, and its variables."""
  model = build(name, width)
  return model, models.init(model, data(name)[0], jax.random.key(0))


def _cases(name: str, steps: int, compiled: bool) -> dict[str, timing.Case]:
  cases = {'ours': _ours(name, steps)}
  try:
    import torch
  except ImportError:
    return cases
  torch.set_num_threads(os.cpu_count())
  for layout in ('default', 'channels_last'):
    cases[f'PyTorch, {layout}'] = _torch(name, steps, layout, False)
    if compiled:
      cases[f'PyTorch, {layout}, compiled'] = _torch(name, steps, layout, True)
  return cases


def training(model, image, num_steps: int, fields):
  """Steps without augmentation, and the state before them.

  `fields` are those of optimizer.build.
  """
  step, rule = plain_step(model, image, num_steps, fields)
  state = train.init_state(model, rule, image, jax.random.key(0))
  return sharding.engine(step), state


def plain_step(model, image, num_steps: int, fields):
  """A step without augmentation, and its update rule."""
  return train.build_step(
    model,
    image,
    seed=0,
    num_steps=num_steps,
    average=0.0,
    reconstruction_weight=1.0,
    shift=0,
    flip=False,
    **fields,
  )


def _ours(name: str, steps: int) -> timing.Case:
  image, label = data(name)
  model, _ = net(name)
  engine, state = training(model, image, 1000, RULE)
  state = engine.place(state)
  mask = np.ones(len(label), bool)
  batch = types.Batch(image, label, mask), np.arange(len(label), dtype=np.int32)

  def run():
    nonlocal state
    for _ in range(steps):
      state, metrics = engine.step(state, batch)
    jax.block_until_ready((state, metrics))

  return run


def torch_net(name: str, width: int = 0):
  """The same net in PyTorch, checked against ours."""
  import torch
  import torch_nets

  backbone, usual, shape, dropout, head_dropout, _ = NETS[name]
  made = torch_nets.DHRNet(
    backbone, width or usual, shape[2], shape[0], dropout, head_dropout
  )
  image = data(name)[0][:8]
  # Accelerators round float32 by default.
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    model, variables = net(name, width)
    expected = model.apply(variables, image)
  made.take(variables).eval()
  with torch.no_grad():
    logits, latent, reconstruction = made(standardise(torch.tensor(image)))
  for one, other in (
    (logits, expected.logits),
    (latent, np.concatenate(expected.latents, axis=1)),
    (reconstruction.permute(0, 2, 3, 1), expected.reconstruction),
  ):
    other = np.asarray(other)
    away = np.abs(one.numpy() - other).max() / np.abs(other).max()
    if not away < 1e-4:
      raise AssertionError(f'{name}: the nets differ by {away:.2g}')
  return made


def standardise(image):
  """[B, H, W, C] uint8 -> [B, C, H, W]."""
  return (image.permute(0, 3, 1, 2).float() / 255.0 - _MEAN) / _DEVIATION


def torch_loss(made, x, label):
  """Both losses of a net in PyTorch on [B, C, H, W], standardised."""
  from torch.nn import functional

  logits, _, reconstruction = made(x)
  return functional.cross_entropy(logits, label) + functional.mse_loss(
    reconstruction, x
  )


def _torch(name: str, steps: int, layout: str, compiled: bool) -> timing.Case:
  import torch

  image, label = (torch.tensor(x) for x in data(name))
  label = label.long()
  made = torch_net(name).train()
  memory = torch.contiguous_format
  if layout == 'channels_last':
    memory = torch.channels_last
    made = made.to(memory_format=memory)
  rule = torch.optim.SGD(
    made.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True
  )

  loss_of = functools.partial(torch_loss, made)
  if compiled:
    loss_of = torch.compile(loss_of, dynamic=False)

  def run():
    for _ in range(steps):
      x = standardise(image).contiguous(memory_format=memory)
      rule.zero_grad(set_to_none=True)
      loss_of(x, label).backward()
      rule.step()

  return run


if __name__ == '__main__':
  main()
