"""Where devices are spoken of, once.

The math elsewhere is written for one replica, with means over the axis
layers.AXIS. State crosses this door without a device axis.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from crosr_jax import types
from crosr_jax.models import layers

PARALLEL = ('pmap', 'shard_map')

_ON_ALL_CORES = {'xla_cpu_experimental_ynn_fusion_type': ''}

# (state, batch) -> (state, metrics), for one replica's share of the batch.
ReplicaStep = Callable[[Any, Any], tuple[Any, Any]]


class Engine(NamedTuple):
  """A replica step on every device."""

  place: Callable[[Any], Any]  # state -> state on the devices
  # Donates the placed state it is given; metrics have one element each.
  step: ReplicaStep
  fetch: Callable[[Any], Any]  # placed state -> NumPy
  # Of the shapes of a state and of a batch; nothing is run.
  compiled: Callable[[Any, Any], jax.stages.Compiled]


def engine(
  step: ReplicaStep,
  *,
  parallel: str = 'pmap',
  devices: Sequence[jax.Device] | None = None,
) -> Engine:
  """Compiles a replica step.

  Args:
    step: written with `lax.pmean(.., layers.AXIS)`; what it returns must be
      equal on all replicas.
    parallel: 'pmap', or 'shard_map' for jit(shard_map).
    devices: default all of this process.

  Returns:
    Place, step, fetch, compiled. The leading axis of every leaf of a batch is
    split over the devices.

  Raises:
    ValueError: for another `parallel`.
  """
  types.check_choice('parallel', parallel, PARALLEL)
  devices = list(devices or jax.local_devices())
  build = _pmap if parallel == 'pmap' else _shard_map
  return build(step, devices)


def _pmap(step: ReplicaStep, devices: Sequence[jax.Device]) -> Engine:
  n = len(devices)
  mesh = _mesh(devices)
  mapped = jax.pmap(step, layers.AXIS, devices=devices, donate_argnums=0)
  compile_ = _compiler(mapped, devices)
  call = _at_first_call(compile_)

  def place(state: Any) -> Any:
    stacked = jax.tree.map(
      lambda x: np.broadcast_to(np.asarray(x), (n, *np.shape(x))), state
    )
    return jax.device_put(stacked, NamedSharding(mesh, P(layers.AXIS)))

  def run(state: Any, batch: Any) -> tuple[Any, Any]:
    split = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)
    state, metrics = call(state, split)
    # Indexing would move every number of every step between the devices.
    return state, jax.tree.map(lambda x: x.addressable_data(0), metrics)

  def fetch(state: Any) -> Any:
    # asarray once more: indexing turns a scalar into np.int32, no array.
    return jax.tree.map(
      lambda x: np.asarray(np.asarray(x.addressable_data(0))[0]), state
    )

  def compiled(state: Any, batch: Any) -> jax.stages.Compiled:
    def stacked(x: Any) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct((n, *x.shape), x.dtype)

    def split(x: Any) -> jax.ShapeDtypeStruct:
      shape = (n, x.shape[0] // n, *x.shape[1:])
      return jax.ShapeDtypeStruct(shape, x.dtype)

    return compile_(jax.tree.map(stacked, state), jax.tree.map(split, batch))

  return Engine(place, run, fetch, compiled)


def _shard_map(step: ReplicaStep, devices: Sequence[jax.Device]) -> Engine:
  mesh = _mesh(devices)
  # With the check on, gradients of replicated parameters would be summed over
  # the devices before the step takes their mean itself, as under pmap.
  mapped = jax.jit(
    jax.shard_map(
      step,
      mesh=mesh,
      in_specs=(P(), P(layers.AXIS)),
      out_specs=(P(), P()),
      check_vma=False,
    ),
    donate_argnums=0,
  )
  compiled = _compiler(mapped, devices)
  call = _at_first_call(compiled)

  def place(state: Any) -> Any:
    # A copy: the step gives the memory of what it is handed away.
    copied = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    return jax.device_put(copied, NamedSharding(mesh, P()))

  def run(state: Any, batch: Any) -> tuple[Any, Any]:
    return call(
      state, jax.device_put(batch, NamedSharding(mesh, P(layers.AXIS)))
    )

  def fetch(state: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), state)

  return Engine(place, run, fetch, compiled)


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
  """What XLA should be told when it compiles a net.

  It takes convolutions on CPU from one of two libraries. The one it prefers
  computes the gradient of a kernel on one core, and most nets slower.
  """
  if platform != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0.0, compiler_options=_ON_ALL_CORES)()
  except jax.errors.JaxRuntimeError as error:
    if 'No such compile option' not in str(error):
      raise
    # Of a version that has no such library.
    return {}
  return _ON_ALL_CORES


def _compiler(
  step: Any, devices: Sequence[jax.Device]
) -> Callable[[Any, Any], jax.stages.Compiled]:
  """A mapped step to its program for what it is given, or shapes of that."""

  def compiled(state: Any, batch: Any) -> jax.stages.Compiled:
    options = compiler_options(devices[0].platform)
    return step.lower(state, batch).compile(compiler_options=options)

  return compiled


def _at_first_call(
  compiled: Callable[[Any, Any], jax.stages.Compiled],
) -> ReplicaStep:
  """Compiles at the first call, whose shapes are those of all."""
  program = None

  def run(state: Any, batch: Any) -> tuple[Any, Any]:
    nonlocal program
    if program is None:
      program = compiled(state, batch)
    return program(state, batch)

  return run


def forward(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Compiles fn(variables, image), rows spread over this process's devices.

  Rows must be a multiple of the number of devices; results keep their order.
  """
  mesh = _mesh(jax.local_devices())
  rows, whole = NamedSharding(mesh, P(layers.AXIS)), NamedSharding(mesh, P())
  return jax.jit(
    fn,
    in_shardings=(whole, rows),
    out_shardings=rows,
    compiler_options=compiler_options(jax.default_backend()),
  )


def replicate(tree: Any) -> Any:
  """A copy on every device, for `forward` to be called with many times."""
  mesh = _mesh(jax.local_devices())
  return jax.device_put(tree, NamedSharding(mesh, P()))


def pretend(count: int) -> None:
  """So many CPU devices in place of those there are; before JAX is used."""
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', count)


def num_devices() -> int:
  """Devices of this process, among which a batch is split."""
  return jax.local_device_count()


def evened(rows: int) -> int:
  """The next number of rows that every device takes the same share of."""
  devices = num_devices()
  return -(-rows // devices) * devices


def check_even(field: str, rows: int) -> None:
  """Raises a UsageError where rows cannot be split among the devices."""
  devices = num_devices()
  if rows % devices:
    raise types.UsageError(
      f'{field}={rows} cannot be split evenly among {devices} devices; take a '
      f'multiple of {devices}'
    )


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
  return Mesh(np.array(devices), (layers.AXIS,))
