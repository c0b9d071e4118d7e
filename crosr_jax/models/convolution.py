"""3x3 convolutions of wide maps for CPU, in Winograd's way; plain JAX.

B batch, H x W pixels, C and F channels; M x N tiles of 4 x 4 pixels.

XLA hands a convolution to a library that multiplies as often as its definition
says. Four outputs in a row of a 3-tap filter need 12 products so, and 6 in
Winograd's algorithm F(4, 3); 4x4 outputs need 36 instead of 144 (Lavin and
Gray, Fast Algorithms for Convolutional Neural Networks, 2016, section 4.2):

  y = A' [(G w G') * (B' x B)] A,   summed over channels: 36 matrix products.

The rest is additions over memory, so it is done for as many images at a time as
stay in a cache. Both gradients are convolutions of the same kind, and so are
theirs.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Tiles of 4 outputs reach over 6 inputs.
_OUT, _IN = 4, 6
# Of interpolation. With 0, 1, -1, 2, -2, as usual, errors are twice as large.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A', B' and G by Toom and Cook, for _POINTS and infinity; float32.

  Products of polynomials, as their values at the points: G evaluates the
  filter, B' the input, A' takes the transpose of evaluation back.
  """
  points = np.array(_POINTS)
  others = [np.delete(points, i) for i in range(len(points))]
  power = np.vander(points, _OUT, increasing=True)
  a = np.vstack([power, np.eye(_OUT)[-1]]).T
  b = np.zeros((_IN, _IN))
  for i, roots in enumerate(others):
    b[i, :-1] = np.poly(roots)[::-1]
  b[-1] = np.poly(points)[::-1]
  scale = [np.prod(point - x) for point, x in zip(points, others, strict=True)]
  g = np.vstack([power[:, :3] / np.array(scale)[:, None], np.eye(3)[-1]])
  return a.astype(np.float32), b.astype(np.float32), g.astype(np.float32)


_A, _B, _G = _matrices()
# Transformed inputs that are in work at a time; measured, see benchmarks/.
_CHUNK_BYTES = 6_000_000


def _keeping_both(
  fn: Callable[[Array, Array], Array],
) -> Callable[[Array, Array], tuple[Array, tuple[Array, Array]]]:
  """fn, and what it was given: all that its gradients need."""
  return lambda x, other: (fn(x, other), (x, other))


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
  """What lax.conv gives with stride 1 and padding 'SAME', to rounding.

  Args:
    x: [B, H, W, C] float32.
    kernel: [3, 3, C, F] float32.

  Returns:
    [B, H, W, F]. Errors are twice those of lax.conv: 8e-7 of what values are
    at 100 channels.
  """
  matrices = _of_kernel(kernel)

  def some(x: Array) -> Array:
    return _outputs(_products(_inputs(x), matrices), x.shape)

  return _in_chunks(some, (x,), kernel.shape)


def _convolve_backward(
  residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
  x, kernel = residuals
  return convolve(gradient, _turned(kernel)), kernel_gradient(x, gradient)


convolve.defvjp(_keeping_both(convolve), _convolve_backward)


@jax.custom_vjp
def kernel_gradient(x: Array, gradient: Array) -> Array:
  """The gradient of `convolve` by its kernel.

  Args:
    x: [B, H, W, C] float32.
    gradient: [B, H, W, F] float32, by the result.

  Returns:
    [3, 3, C, F].
  """
  shape = (3, 3, x.shape[3], gradient.shape[3])

  def some(x: Array, gradient: Array) -> Array:
    return jax.lax.dot_general(
      _inputs(x), _gradients(gradient), (((1,), (1,)), ((0,), (0,)))
    )

  found = _in_chunks(some, (x, gradient), shape, add=True)
  return jnp.einsum(
    'ki,lj,klcf->jicf', _G, _G, found.reshape(_IN, _IN, *shape[2:]),
    precision='highest',
  )  # fmt: skip


def _kernel_gradient_backward(
  residuals: tuple[Array, Array], back: Array
) -> tuple[Array, Array]:
  x, gradient = residuals
  return convolve(gradient, _turned(back)), convolve(x, back)


kernel_gradient.defvjp(
  _keeping_both(kernel_gradient), _kernel_gradient_backward
)


def _turned(kernel: Array) -> Array:
  """The kernel that carries outputs back to inputs."""
  return kernel[::-1, ::-1].transpose(0, 1, 3, 2)


def _of_kernel(kernel: Array) -> Array:
  """G w G': [3, 3, C, F] -> [36, C, F], columns first as everywhere here."""
  spread = jnp.einsum('ki,lj,jicf->klcf', _G, _G, kernel, precision='highest')
  return spread.reshape(_IN * _IN, *kernel.shape[2:])


def _inputs(x: Array) -> Array:
  """B' x B of overlapping 6x6 tiles; [B, H, W, C] -> [36, B * M * N, C]."""
  return _of_tiles(_B, _padded(x, 1), _IN)


def _gradients(gradient: Array) -> Array:
  """A y A' of 4x4 tiles; [B, H, W, F] -> [36, B * M * N, F]."""
  return _of_tiles(_A.T, _padded(gradient, 0), _OUT)


def _padded(x: Array, border: int) -> Array:
  """Whole tiles, and zeros around them."""
  (high, wide), (_, height, width, _) = _tiles(x.shape), x.shape
  return jnp.pad(
    x,
    (
      (0, 0),
      (border, _OUT * high - height + border),
      (border, _OUT * wide - width + border),
      (0, 0),
    ),
  )


def _of_tiles(matrix: np.ndarray, x: Array, size: int) -> Array:
  """matrix t matrix' of every tile t, size x size pixels, 4 apart."""
  rows = _applied(matrix, _every(x, 1, size))
  # Or XLA computes each row anew for every column it goes into.
  rows = jax.lax.optimization_barrier(rows)
  columns = _applied(matrix, _every(rows, 3, size))
  return columns.reshape(_IN * _IN, -1, x.shape[-1])


def _every(x: Array, axis: int, size: int) -> list[Array]:
  """The k-th of each tile's pixels along an axis, for k below `size`."""
  end = x.shape[axis] - size
  return [
    jax.lax.slice_in_dim(x, k, k + end + 1, _OUT, axis) for k in range(size)
  ]


def _applied(matrix: np.ndarray, parts: Sequence[Array]) -> Array:
  """A matrix times a column of equal arrays, on a new first axis."""
  return jnp.stack(
    [
      functools.reduce(
        jnp.add,
        (
          part if factor == 1 else factor * part
          for factor, part in zip(row, parts, strict=True)
          if factor
        ),
      )
      for row in matrix
    ]
  )


def _products(x: Array, kernel: Array) -> Array:
  """[36, T, C] x [36, C, F] -> [36, T, F]."""
  return jax.lax.dot_general(x, kernel, (((2,), (1,)), ((0,), (0,))))


def _outputs(products: Array, shape: Sequence[int]) -> Array:
  """A' m A, put together: [36, B * M * N, F] -> [B, H, W, F]."""
  batch, height, width, _ = shape
  high, wide = _tiles(shape)
  products = products.reshape(_IN, _IN, batch, high, wide, -1)
  columns = _applied(_A, list(products))
  tiles = _applied(_A, [columns[:, k] for k in range(_IN)])
  # [row, column, B, M, N, F], each in its tile.
  image = tiles.transpose(2, 3, 0, 4, 1, 5)
  image = image.reshape(batch, _OUT * high, _OUT * wide, -1)
  return image[:, :height, :width]


def num_tiles(shape: Sequence[int]) -> int:
  """Of all images together; shape [B, H, W, C]."""
  high, wide = _tiles(shape)
  return shape[0] * high * wide


def _tiles(shape: Sequence[int]) -> tuple[int, int]:
  return -(-shape[1] // _OUT), -(-shape[2] // _OUT)


def _in_chunks(
  fn: Callable[..., Array],
  arrays: Sequence[Array],
  kernel_shape: Sequence[int],
  *,
  add: bool = False,
) -> Array:
  """fn of a few images at a time: results one after another, or their sum."""
  batch, high, wide = arrays[0].shape[0], *_tiles(arrays[0].shape)
  each = 4 * _IN * _IN * high * wide * max(kernel_shape[2:])
  count = -(-batch // max(1, _CHUNK_BYTES // each))
  if count == 1:
    return fn(*arrays)
  size = -(-batch // count)
  # Images of zeros give results that are cut off, and add nothing.
  parts = [
    jnp.pad(x, ((0, count * size - batch), (0, 0), (0, 0), (0, 0))).reshape(
      count, size, *x.shape[1:]
    )
    for x in arrays
  ]
  if add:
    shape = (_IN * _IN, *kernel_shape[2:])
    total = jnp.zeros(shape, jnp.float32)
    return jax.lax.scan(lambda s, x: (s + fn(*x), None), total, parts)[0]
  found = jax.lax.map(lambda x: fn(*x), parts)
  return found.reshape(-1, *found.shape[2:])[:batch]
