"""DHRNet: one net that classifies, and reconstructs its input from codes.

B batch, H x W pixels, C channels, K known classes, D_l width of block l's code.

CROSR, section 4: x_{l+1} = f_l(x_l); z_l = h_l(x_{l+1});
r_l = g_l(r_{l+1} + hr_l(z_l)), at the top g_L(hr_L(z_L)); r_1 is the
reconstruction of x_1, the standardised image.
"""

import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from crosr_jax import types
from crosr_jax.models import layers

Array = jax.Array

LATERALS = ('bottleneck', 'identity', 'none')
LATENTS = ('z', 'hr')
POOLS = ('max', 'mean')
LAST = ('linear', 'relu')
DTYPES = ('float32', 'bfloat16')


class DHRNet(nn.Module):
  """Laterals and a decoder around the blocks of any backbone."""

  blocks: tuple[nn.Module, ...]
  head: nn.Module
  mean: tuple[float, ...]  # of the training pixels, per channel, in [0, 1]
  deviation: tuple[float, ...]
  lateral: str = 'bottleneck'  # 'identity': LadderNet; 'none': classifier alone
  latent_width: int = 32
  latent: str = 'z'  # 'hr': hr_l(z_l), as the authors' scripts have it
  pool: str = 'max'
  last: str = 'linear'  # 'relu': the authors'; cannot reach negative values
  eval_crop: int = 0  # side of the centre crop seen in evaluation; 0 = all
  eval_mirror: bool = False  # mean answer for image and mirror image there
  # Degrees. The first K outputs are of upright images, K more of each turn;
  # where the net is not in training K are told, see `_over_views`.
  rotation_classes: tuple[int, ...] = ()
  eval_rotations: bool = False  # answer for the image and its turns there
  eval_shift: int = 0  # mean answer for it and it moved by so many pixels there
  dtype: str = 'float32'  # that is computed in, see models.for_compute

  @property
  def num_views(self) -> int:
    """Of an image that the net is asked about where it is not in training."""
    turns = 1 + len(self.rotation_classes) if self.eval_rotations else 1
    mirrors = 2 if self.eval_mirror else 1
    return turns * mirrors * len(_shifts(self.eval_shift))

  @nn.compact
  def __call__(
    self, image: Array, keys: Array | None = None, train: bool = False
  ) -> types.Outputs:
    """Classifies and reconstructs.

    Args:
      image: [B, H, W, C] uint8.
      keys: one PRNG key per sample, [B], for dropout; None = no dropout.
      train: whether batch statistics are of this batch.

    Returns:
      logits [B, K], in training K more for each of `rotation_classes`; latents,
      deepest block first, each [B, D_l], wider with `eval_rotations`; the
      reconstruction [B, H, W, C] of the view, in standardised units.
    """
    seen = self.standardise(image, train)
    if train:
      return self._outputs(seen, keys, train)
    return self._over_views(seen, keys)

  def _over_views(self, seen: Array, keys: Array | None) -> types.Outputs:
    """Of the image, moved, of mirror images and of turns, as the fields ask.

    Logits are means, of a turned image those of the classes turned so, and
    reconstructions likewise, which are brought back first. Codes of an image,
    of its mirror image and of both moved are means too; those of each turn
    stand side by side, upright first: each [B, D_l] becomes
    [B, (1 + turns) D_l].
    """
    turns = (0, *self.rotation_classes) if self.eval_rotations else (0,)
    mirrors = (False, True) if self.eval_mirror else (False,)
    shifts = _shifts(self.eval_shift)
    views = list(itertools.product(turns, mirrors, shifts))
    if len(views) == 1:
      answer = self._outputs(seen, keys, False)
      num_classes = answer.logits.shape[1] // self.ways
      return answer._replace(logits=answer.logits[:, :num_classes])
    asked = jnp.stack([_view(seen, *view) for view in views], axis=1)
    if keys is not None:
      keys = jnp.repeat(keys, len(views))
    answers = self._outputs(asked.reshape(-1, *seen.shape[1:]), keys, False)
    num_classes = answers.logits.shape[1] // self.ways

    def mean(x: Array, pick: Callable[[int, Array], Array]) -> Array:
      # The converter to ONNX splits no axis whose length is open.
      each = x.reshape(-1, len(views), *x.shape[1:])
      picked = [pick(i, each[:, i]) for i in range(len(views))]
      return jnp.mean(jnp.stack(picked), axis=0)

    def of_its_turn(i: int, logits: Array) -> Array:
      first = num_classes * turns.index(views[i][0])
      return logits[:, first : first + num_classes]

    def side_by_side(code: Array) -> Array:
      of_turn = len(mirrors) * len(shifts)
      each = code.reshape(-1, len(turns), of_turn, code.shape[1])
      return jnp.mean(each, axis=2).reshape(-1, len(turns) * code.shape[1])

    return types.Outputs(
      mean(answers.logits, of_its_turn),
      tuple(side_by_side(code) for code in answers.latents),
      mean(answers.reconstruction, lambda i, x: _seen_from(x, *views[i]))
      if self.lateral != 'none'
      else (),
    )

  def _outputs(
    self, seen: Array, keys: Array | None, train: bool
  ) -> types.Outputs:
    """Of standardised images."""
    maps = [seen.astype(self.dtype)]
    for block in self.blocks:
      maps.append(block(maps[-1], keys, train))
    logits = self.head(maps[-1], keys, train).astype(jnp.float32)
    if self.lateral == 'none':
      # Of a net that reconstructs nothing: the control of what codes are worth.
      pooled = tuple(self._pool(x) for x in reversed(maps[1:]))
      return types.Outputs(logits, pooled, ())
    latents, reconstruction = [], jnp.zeros(())
    for level in reversed(range(len(self.blocks))):
      code, back = self._lateral(maps[level + 1], level)
      latents.append(self._pool(code if self.latent == 'z' else back))
      if level + 1 < len(self.blocks):
        back = reconstruction + back
      reconstruction = self._decode(back, maps[level], level)
    return types.Outputs(
      logits, tuple(latents), reconstruction.astype(jnp.float32)
    )

  @property
  def ways(self) -> int:
    """That training shows a class, upright and turned."""
    return 1 + len(self.rotation_classes)

  def standardise(self, image: Array, train: bool = False) -> Array:
    """What the reconstruction is compared with; [B, H, W, C]."""
    return layers.standardise(
      self.view(image, train), self.mean, self.deviation
    )

  def view(self, image: Array, train: bool = False) -> Array:
    """What the net sees of 8-bit images, as such; [B, H, W, C].

    In evaluation the centre crop, resized bilinearly to the full size: the mean
    view of a training with train.crop, which the augmentation has made there.

    Raises:
      UsageError: for images smaller than the crop, or too large to be exact.
    """
    if train or not self.eval_crop:
      return image
    _, height, width, _ = image.shape
    if self.eval_crop > min(height, width):
      raise types.UsageError(
        f'model.eval_crop={self.eval_crop} is larger than the images, '
        f'{height} x {width} pixels; make it smaller, or 0 for the whole image'
      )
    top, left = (height - self.eval_crop) // 2, (width - self.eval_crop) // 2
    crop = image[:, top : top + self.eval_crop, left : left + self.eval_crop]
    if image.dtype != jnp.uint8:
      # Of a search through images, which needs a gradient.
      return jax.image.resize(crop.astype(jnp.float32), image.shape, 'linear')
    return layers.enlarged(crop, height, width)

  def to_image(self, reconstruction: Array) -> Array:
    """A reconstruction as 8-bit images; [B, H, W, C]."""
    return layers.unstandardise(reconstruction, self.mean, self.deviation)

  def _lateral(self, x: Array, level: int) -> tuple[Array, Array]:
    """z_l and hr_l(z_l) of a block's output x."""
    if self.lateral == 'identity':
      return x, x
    code = nn.relu(layers.conv(self.latent_width, name=f'h_{level}')(x))
    return code, layers.conv(x.shape[-1], name=f'hr_{level}')(code)

  def _decode(self, x: Array, like: Array, level: int) -> Array:
    """g_l: a transposed convolution to the shape of the block's input."""
    _, height, width, channels = like.shape
    strides = (-(-height // x.shape[1]), -(-width // x.shape[2]))
    if strides == (1, 1):
      # 1x1 would see no neighbour, and 3x3 is a convolution like others.
      x = layers.conv(channels, name=f'g_{level}')(x)
    elif 1 in strides:
      kernel = tuple(3 if s == 1 else s for s in strides)
      x = nn.ConvTranspose(channels, kernel, strides, name=f'g_{level}')(x)
    else:
      x = layers.Upsample(channels, strides, name=f'g_{level}')(x)
    x = x[:, :height, :width]
    return nn.relu(x) if level > 0 or self.last == 'relu' else x

  def _pool(self, x: Array) -> Array:
    """[B, H, W, D_l] -> [B, D_l], float32."""
    x = x.astype(jnp.float32)
    return x.max(axis=(1, 2)) if self.pool == 'max' else x.mean(axis=(1, 2))


_Shift = tuple[int, int]


def _shifts(by: int) -> tuple[_Shift, ...]:
  """None, and down, up, right and left by so many pixels if there are any."""
  moves = ((by, 0), (-by, 0), (0, by), (0, -by))
  return ((0, 0), *(moves if by else ()))


def _view(x: Array, turn: int, mirror: bool, shift: _Shift) -> Array:
  """Moved, left and right exchanged, then turned; [B, H, W, C]."""
  x = layers.moved(x, *shift)
  return layers.turned(x[:, :, ::-1] if mirror else x, turn)


def _seen_from(x: Array, turn: int, mirror: bool, shift: _Shift) -> Array:
  """What a view shows, as it was before; [B, H, W, C]."""
  x = layers.turned(x, -turn)
  down, right = shift
  return layers.moved(x[:, :, ::-1] if mirror else x, -down, -right)
