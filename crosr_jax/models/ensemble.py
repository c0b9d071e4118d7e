"""Several nets of one kind, trained apart, that answer as one."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from crosr_jax import types
from crosr_jax.models import dhrnet

Array = jax.Array


class Ensemble(nn.Module):
  """Mean logits, the codes of all members, and the mean reconstruction.

  The members see the same; their variables are 'members_0', 'members_1', ...
  It stands wherever a trained DHRNet does; each member is trained by itself.
  """

  members: tuple[dhrnet.DHRNet, ...]

  @nn.compact
  def __call__(self, image: Array) -> types.Outputs:
    """In evaluation mode; image and outputs as DHRNet has them.

    Codes [B, D_l] of M members become [B, M * D_l], member by member.
    """
    logits, latents, reconstruction = zip(
      *(member(image) for member in self.members), strict=True
    )
    return types.Outputs(
      jnp.mean(jnp.stack(logits), axis=0),
      tuple(
        jnp.concatenate(blocks, axis=1) for blocks in zip(*latents, strict=True)
      ),
      jnp.mean(jnp.stack(reconstruction), axis=0)
      if self.lateral != 'none'
      else (),
    )

  def standardise(self, image: Array) -> Array:
    """See DHRNet."""
    return self.members[0].standardise(image)

  def view(self, image: Array) -> Array:
    """See DHRNet."""
    return self.members[0].view(image)

  def to_image(self, reconstruction: Array) -> Array:
    """See DHRNet."""
    return self.members[0].to_image(reconstruction)

  @property
  def num_views(self) -> int:
    """See DHRNet."""
    return self.members[0].num_views

  @property
  def mean(self) -> tuple[float, ...]:
    """See DHRNet."""
    return self.members[0].mean

  @property
  def deviation(self) -> tuple[float, ...]:
    """See DHRNet."""
    return self.members[0].deviation

  @property
  def lateral(self) -> str:
    """See DHRNet."""
    return self.members[0].lateral

  @property
  def dtype(self) -> str:
    """See DHRNet."""
    return self.members[0].dtype
