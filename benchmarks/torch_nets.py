"""The same nets in PyTorch, as one would write them there.

Modules have the names of the Flax parameters, so that those can be carried over
and both nets compared before they are timed.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class DHRNet(nn.Module):
  """See crosr_jax/models/dhrnet.py; images are [B, C, H, W], standardised."""

  def __init__(self, backbone, width, channels, side, dropout, head_dropout):
    """The backbones of `layout`, for ten classes."""
    super().__init__()
    self.backbone, self.dropout = backbone, dropout
    self.head_dropout = head_dropout
    self.layout = {
      'mnist_cnn': ((width, 2), (width, 2), (width, 1)),
      'vgg': ((width, 2), (2 * width, 2), (4 * width, 4)),
      'fast_cnn': ((width, 2), (4 * width, 2), (4 * width, 2)),
      'wide_resnet40_4': ((width, 6), (2 * width, 6), (4 * width, 6)),
    }[backbone]
    layers, norm = {}, backbone != 'mnist_cnn'
    inside, sides = channels, [side]
    for i, (out, count) in enumerate(self.layout):
      if backbone == 'wide_resnet40_4':
        layers |= _group(f'blocks_{i}', inside, out, count)
        count = 0
      before = inside
      if backbone == 'fast_cnn' and i == 0:
        self.register_buffer(
          'whitening', torch.zeros(8 * channels, channels, 2, 2)
        )
        before = 8 * channels
      for j in range(count):
        layers[f'blocks_{i}/Conv_{j}'] = nn.Conv2d(
          before if j == 0 else out, out, 3, padding=1, bias=not norm
        )
        if norm:
          layers[f'blocks_{i}/Norm_{j}/BatchNorm_0'] = nn.BatchNorm2d(out)
      layers[f'h_{i}'] = nn.Conv2d(out, 32, 3, padding=1)
      layers[f'hr_{i}'] = nn.Conv2d(32, out, 3, padding=1)
      if backbone == 'wide_resnet40_4' and i == 0:
        layers['g_0'] = nn.Conv2d(out, inside, 3, padding=1)
        sides.append(sides[-1])
      else:
        layers[f'g_{i}'] = nn.ConvTranspose2d(out, inside, 2, stride=2)
        sides.append(-(-sides[-1] // 2))
      inside = out
    hidden = {
      'mnist_cnn': (sides[-1] ** 2 * inside, 500, 10),
      'vgg': (sides[-1] ** 2 * inside, 1024, 1024, 10),
      'fast_cnn': (inside, 10),
      'wide_resnet40_4': (inside, 10),
    }[backbone]
    if backbone == 'wide_resnet40_4':
      layers['head/Norm_0/BatchNorm_0'] = nn.BatchNorm2d(inside)
    self.num_dense = len(hidden) - 1
    for i in range(self.num_dense):
      layers[f'head/Dense_{i}'] = nn.Linear(hidden[i], hidden[i + 1])
    self.names = {name: name.replace('/', '_') for name in layers}
    self.layers = nn.ModuleDict({self.names[k]: v for k, v in layers.items()})

  def layer(self, name):
    """By its name in Flax."""
    return self.layers[self.names[name]]

  def forward(self, x):
    """Logits, latents, reconstruction."""
    maps = [x]
    for i in range(len(self.layout)):
      maps.append(self._block(maps[-1], i))
    logits = self._head(maps[-1])
    latents, r = [], None
    for i in reversed(range(len(self.layout))):
      code = functional.relu(self.layer(f'h_{i}')(maps[i + 1]))
      latents.append(code.amax((2, 3)))
      back = self.layer(f'hr_{i}')(code)
      back = back if r is None else r + back
      height, width = maps[i].shape[2:]
      r = self.layer(f'g_{i}')(back)[:, :, :height, :width]
      r = functional.relu(r) if i else r
    return logits, torch.cat(latents, 1), r

  def _block(self, x, i):
    count = self.layout[i][1]
    if self.backbone == 'wide_resnet40_4':
      if i == 0:
        x = self.layer('blocks_0/Conv_0')(x)
      for j in range(count):
        x = self._residual(x, f'blocks_{i}/Residual_{j}')
      return x
    if self.backbone == 'fast_cnn':
      if i == 0:
        y = functional.conv2d(functional.pad(x, (0, 1, 0, 1)), self.whitening)
        x = functional.gelu(y, approximate='tanh')
      x = self.layer(f'blocks_{i}/Conv_0')(x)
      x = functional.max_pool2d(x, 2, ceil_mode=True)
      x = self.layer(f'blocks_{i}/Norm_0/BatchNorm_0')(x)
      x = self.layer(f'blocks_{i}/Conv_1')(
        functional.gelu(x, approximate='tanh')
      )
      x = self.layer(f'blocks_{i}/Norm_1/BatchNorm_0')(x)
      x = functional.gelu(x, approximate='tanh')
    else:
      for j in range(count):
        x = self.layer(f'blocks_{i}/Conv_{j}')(x)
        if self.backbone == 'vgg':
          x = self.layer(f'blocks_{i}/Norm_{j}/BatchNorm_0')(x)
        x = functional.relu(x)
      x = functional.max_pool2d(x, 2, ceil_mode=True)
    return functional.dropout(x, self.dropout, self.training)

  def _residual(self, x, name):
    out = functional.relu(self.layer(f'{name}/Norm_0/BatchNorm_0')(x))
    if f'{name}/shortcut' in self.names:
      x = self.layer(f'{name}/shortcut')(out)
    first = self.layer(f'{name}/Conv_0')
    if first.stride == (2, 2):
      # XLA's 'SAME' of an even side.
      out = functional.pad(out, (0, 1, 0, 1))
    out = self.layer(f'{name}/Norm_1/BatchNorm_0')(first(out))
    out = functional.relu(out)
    out = functional.dropout(out, self.dropout, self.training)
    return x + self.layer(f'{name}/Conv_1')(out)

  def _head(self, x):
    if self.backbone == 'wide_resnet40_4':
      x = functional.relu(self.layer('head/Norm_0/BatchNorm_0')(x))
      x = x.mean((2, 3))
      x = functional.dropout(x, self.head_dropout, self.training)
      return self.layer('head/Dense_0')(x)
    if self.backbone == 'fast_cnn':
      x = functional.dropout(x.amax((2, 3)), self.head_dropout, self.training)
      return self.layer('head/Dense_0')(x)
    x = x.permute(0, 2, 3, 1).flatten(1)
    for i in range(self.num_dense - 1):
      x = functional.relu(self.layer(f'head/Dense_{i}')(x))
      x = functional.dropout(x, self.head_dropout, self.training)
    return self.layer(f'head/Dense_{self.num_dense - 1}')(x)

  def take(self, variables):
    """Carries the Flax net's variables over; both then are one function."""
    params, stats = variables['params'], variables['batch_stats']

    def at(tree, name):
      for key in name.split('/'):
        tree = tree[key]
      return {k: np.asarray(v) for k, v in tree.items()}

    with torch.no_grad():
      for name in self.names:
        layer, found = self.layer(name), at(params, name)
        if isinstance(layer, nn.BatchNorm2d):
          values = {'weight': found['scale'], 'bias': found['bias']}
          moving = at(stats, name)
          layer.running_mean.copy_(torch.tensor(moving['mean']))
          layer.running_var.copy_(torch.tensor(moving['var']))
        else:
          kernel = found['kernel']
          if isinstance(layer, nn.Linear):
            kernel = kernel.T
          elif isinstance(layer, nn.ConvTranspose2d):
            kernel = kernel[::-1, ::-1].transpose(2, 3, 0, 1)
          else:
            kernel = kernel.transpose(3, 2, 0, 1)
          values = {'weight': kernel}
          if 'bias' in found:
            values['bias'] = found['bias']
        for key, value in values.items():
          getattr(layer, key).copy_(torch.tensor(value.copy()))
      if self.backbone == 'fast_cnn':
        kernel = np.asarray(stats['blocks_0']['Whitening_0']['kernel'])
        self.whitening.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1).copy()))
    return self


def _group(name, inside, out, count):
  """Layers of a group of wide_resnet.py by their names in Flax."""
  layers, stride = {}, 2
  if name == 'blocks_0':
    layers[f'{name}/Conv_0'] = nn.Conv2d(inside, 16, 3, padding=1, bias=False)
    inside, stride = 16, 1
  for j in range(count):
    own = f'{name}/Residual_{j}'
    if inside != out or stride > 1:
      layers[f'{own}/shortcut'] = nn.Conv2d(
        inside, out, 1, stride=stride, bias=False
      )
    layers[f'{own}/Norm_0/BatchNorm_0'] = nn.BatchNorm2d(inside)
    layers[f'{own}/Conv_0'] = nn.Conv2d(
      *(inside, out, 3, stride), padding=2 - stride, bias=False
    )
    layers[f'{own}/Norm_1/BatchNorm_0'] = nn.BatchNorm2d(out)
    layers[f'{own}/Conv_1'] = nn.Conv2d(out, out, 3, padding=1, bias=False)
    inside, stride = out, 1
  return layers
