"""What a net is made of and what it costs, by tracing alone.

H x W pixels, C channels, K known classes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from crosr_jax.models import dhrnet, ensemble, layers


class Row(NamedTuple):
  """One part of a net, for one image."""

  name: str  # of its parameters
  kind: str  # 'block', 'head', 'lateral' or 'decoder'
  shape: tuple[int, ...]  # of its output, without the batch
  parameters: int
  multiply_adds: int  # of convolutions and matrix products


def rows(
  model: dhrnet.DHRNet | ensemble.Ensemble, image_shape: Sequence[int]
) -> list[Row]:
  """Blocks, head, then laterals and decoder from the deepest block on.

  Multiply-adds are those of a forward pass in evaluation, counted from shapes:
  zeros that pad a convolution count, as is usual; the zeros that a transposed
  convolution puts between pixels do not.

  Args:
    model: the net; of an ensemble, one member is told.
    image_shape: [3] H, W, C.
  """
  if isinstance(model, ensemble.Ensemble):
    model = model.members[0]
  # What is computed in has no counts of its own.
  model = model.clone(dtype='float32')
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)

  def run(variables: Any, image: Any) -> Any:
    _, state = model.apply(
      variables, image, capture_intermediates=True, mutable='intermediates'
    )
    return state['intermediates']

  # The names by which operations are told apart, whatever flax_profile says;
  # and convolutions by their definition, not as a CPU computes them.
  with nn.override_named_call(True), layers.stock_operations():
    jaxpr, outputs = jax.make_jaxpr(run, return_shape=True)(variables, image)
  parts = {k: v for k, v in _parts(len(model.blocks)) if k in outputs}
  cost = _multiply_adds_by_part(jaxpr.jaxpr, parts)
  return [
    Row(
      name,
      kind,
      tuple(outputs[name]['__call__'][0].shape[1:]),
      _count(variables['params'].get(name, {})),
      cost[name],
    )
    for name, kind in parts.items()
  ]


def multiply_adds(jaxpr: core.Jaxpr) -> int:
  """Of all convolutions and matrix products of a program, as in `rows`.

  Trace it inside layers.stock_operations(). What a gradient makes again counts
  again.
  """
  return sum(_multiply_adds(equation) for equation in jaxpr.eqns)


def _parts(num_blocks: int) -> Iterator[tuple[str, str]]:
  """Name and kind of every part that a net may have, in order."""
  for level in range(num_blocks):
    yield f'blocks_{level}', 'block'
  yield 'head', 'head'
  for level in reversed(range(num_blocks)):
    yield f'h_{level}', 'lateral'
    yield f'hr_{level}', 'lateral'
    yield f'g_{level}', 'decoder'


def _count(params: Mapping[str, Any]) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def _multiply_adds_by_part(
  jaxpr: core.Jaxpr, parts: Iterable[str]
) -> dict[str, int]:
  """By the outermost part in an equation's scopes, 'DHRNet/blocks_0/Conv_0'."""
  cost = dict.fromkeys(parts, 0)
  for equation in jaxpr.eqns:
    scopes = str(equation.source_info.name_stack).split('/')
    part = next((scope for scope in scopes if scope in cost), None)
    if part is not None:
      cost[part] += _multiply_adds(equation)
  return cost


def _multiply_adds(equation: core.JaxprEqn) -> int:
  """Of one equation and all inside it."""
  params = equation.params
  if equation.primitive.name == 'conv_general_dilated':
    return _of_convolution(equation)
  if equation.primitive.name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    left = _shape(equation.invars[0])
    each = math.prod(left[i] for i in contracted)
    return math.prod(_shape(equation.outvars[0])) * each
  inside = [multiply_adds(jaxpr) for jaxpr in _jaxprs(params.values())]
  if equation.primitive.name == 'cond':
    return max(inside)
  # A scan runs its body so often; whatever else has one runs it once.
  return sum(inside) * params.get('length', 1)


def _jaxprs(values: Any) -> Iterator[core.Jaxpr]:
  """Programs among an equation's parameters."""
  for value in values:
    if isinstance(value, core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
      yield value
    elif isinstance(value, (tuple, list)):
      yield from _jaxprs(value)


def _shape(variable: Any) -> tuple[int, ...]:
  return variable.aval.shape


def _of_convolution(equation: core.JaxprEqn) -> int:
  params = equation.params
  kernel = _shape(equation.invars[1])
  out = _shape(equation.outvars[0])
  numbers = params['dimension_numbers']
  # Input channels of a group, output channels, batch: all pairs meet.
  cost = math.prod(kernel[i] for i in numbers.rhs_spec[:2])
  cost *= out[numbers.out_spec[0]]
  for i in range(len(params['window_strides'])):
    cost *= _taps(
      out[numbers.out_spec[2 + i]],
      kernel[numbers.rhs_spec[2 + i]],
      stride=params['window_strides'][i],
      before=params['padding'][i][0],
      spread=params['lhs_dilation'][i],
      dilation=params['rhs_dilation'][i],
    )
  return cost


def _taps(
  out: int, kernel: int, *, stride: int, before: int, spread: int, dilation: int
) -> int:
  """Pairs of output and kernel positions that meet no inserted zero."""
  return sum(
    (position * stride + tap * dilation - before) % spread == 0
    for position in range(out)
    for tap in range(kernel)
  )
