"""Where devices are spoken of, once.

The math elsewhere is written for one replica, with means over the axis
layers.AXIS. State crosses this door without a device axis.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from crosr_jax import types
from crosr_jax.models import layers

PARALLEL = ('pmap', 'shard_map')

_ON_ALL_CORES = {'xla_cpu_experimental_ynn_fusion_type': ''}

# (state, batch, *shared) -> (state, metrics), for one replica's share of the
# batch.
ReplicaStep = Callable[..., tuple[Any, Any]]


class Engine(NamedTuple):
  """A replica step on every device.

  What crosses between host and devices does so explicitly: states that are
  placed or fetched, and batches.
  """

  place: Callable[[Any], Any]  # state -> state on the devices
  # (placed state, batch, ..) -> (placed state, metrics): a step with each batch
  # in turn, as one program. Donates the placed state it is given; a metric has
  # one element for each step.
  step: Callable[..., tuple[Any, Any]]
  # Compiles what `step` runs with these arguments, and leaves them alone.
  compile: Callable[..., None]
  fetch: Callable[[Any], Any]  # placed state -> NumPy, of its own memory
  # The program of one step, from shapes of a state and a batch; nothing is run.
  planned: Callable[[Any, Any], jax.stages.Compiled]


class _Way(NamedTuple):
  """How replicas come onto devices. T steps of a program."""

  place: Callable[[Any], Any]  # tree -> the same on every device
  split: Callable[[Sequence[Any]], Any]  # T batches -> one, spread by rows
  # (function of state, batches and shared; T) -> the same, compiled when called
  mapped: Callable[[ReplicaStep, int], Any]
  fetch: Callable[[Any], Any]  # the opposite of `place`
  # Shapes of a state and a batch -> those of what `place` and `split` give
  shapes: Callable[[Any, Any], tuple[Any, Any]]


def engine(
  step: ReplicaStep,
  *,
  parallel: str = 'pmap',
  devices: Sequence[jax.Device] | None = None,
  shared: Sequence[Any] = (),
) -> Engine:
  """Compiles a replica step.

  Args:
    step: written with `lax.pmean(.., layers.AXIS)`; what it returns must be
      equal on all replicas.
    parallel: 'pmap', or 'shard_map' for jit(shard_map).
    devices: default all of this process.
    shared: what every step is given beside its batch; it is put on each device
      once.

  Returns:
    Place, step, compile, fetch, planned. The leading axis of every leaf of a
    batch is split over the devices. Steps of one program are those of many, but
    for how XLA rounds: what it fuses is another.

  Raises:
    ValueError: for another `parallel`.
  """
  types.check_choice('parallel', parallel, PARALLEL)
  devices = list(devices or jax.local_devices())
  platform = devices[0].platform
  way = (_pmap if parallel == 'pmap' else _shard_map)(devices)
  programs: dict[int, Callable[..., tuple[Any, Any]]] = {}

  @functools.cache
  def beside_batches() -> Any:
    # Not before the first step: a training that is finished has none.
    return way.place(tuple(shared))

  def one(state: Any, batch: Any, beside: Any) -> tuple[Any, Any]:
    return step(state, batch, *beside)

  def several(state: Any, batches: Any, beside: Any) -> tuple[Any, Any]:
    def body(state: Any, batch: Any) -> tuple[Any, Any]:
      return one(state, batch, beside)

    return jax.lax.scan(body, state, batches, unroll=_is_unrolled(platform))

  def compiled(count: int, *arguments: Any) -> jax.stages.Compiled:
    mapped = way.mapped(one if count == 1 else several, count)
    return mapped.lower(*arguments).compile(
      compiler_options=compiler_options(platform)
    )

  def prepared(state: Any, batches: Sequence[Any]) -> tuple[Any, Any]:
    count = len(batches)
    arguments = state, way.split(batches), beside_batches()
    if count not in programs:
      programs[count] = compiled(count, *arguments)
    return programs[count], arguments

  def run(state: Any, *batches: Any) -> tuple[Any, Any]:
    program, arguments = prepared(state, batches)
    state, metrics = program(*arguments)
    # Indexing would move every number of every step between the devices.
    return state, jax.tree.map(lambda x: x.addressable_data(0), metrics)

  def compile_only(state: Any, *batches: Any) -> None:
    prepared(state, batches)

  def planned(state: Any, batch: Any) -> jax.stages.Compiled:
    return compiled(1, *way.shapes(state, batch), ())

  return Engine(way.place, run, compile_only, way.fetch, planned)


def _pmap(devices: Sequence[jax.Device]) -> _Way:
  n = len(devices)
  split_over = NamedSharding(_mesh(devices), P(layers.AXIS))

  def place(tree: Any) -> Any:
    stacked = jax.tree.map(
      lambda x: np.broadcast_to(np.asarray(x), (n, *np.shape(x))), tree
    )
    return jax.device_put(stacked, split_over)

  def split(batches: Sequence[Any]) -> Any:
    def joined(*leaves: np.ndarray) -> np.ndarray:
      parts = [x.reshape(n, -1, *x.shape[1:]) for x in leaves]
      return parts[0] if len(parts) == 1 else np.stack(parts, axis=1)

    return jax.device_put(jax.tree.map(joined, *batches), split_over)

  def mapped(fn: ReplicaStep, count: int) -> Any:
    del count  # The steps of a replica lie behind its own axis.
    return jax.pmap(fn, layers.AXIS, devices=devices, donate_argnums=0)

  def fetch(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.array(x[0]), _of_first_device(tree))

  def shapes(state: Any, batch: Any) -> tuple[Any, Any]:
    def stacked(x: Any) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct((n, *x.shape), x.dtype)

    def share(x: Any) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct((n, x.shape[0] // n, *x.shape[1:]), x.dtype)

    return jax.tree.map(stacked, state), jax.tree.map(share, batch)

  return _Way(place, split, mapped, fetch, shapes)


def _shard_map(devices: Sequence[jax.Device]) -> _Way:
  mesh = _mesh(devices)

  def rows(count: int) -> P:
    return P(layers.AXIS) if count == 1 else P(None, layers.AXIS)

  def place(tree: Any) -> Any:
    # The step gives the memory of a placed state away, but never NumPy's.
    host = jax.tree.map(np.asarray, tree)
    return jax.device_put(host, NamedSharding(mesh, P()))

  def split(batches: Sequence[Any]) -> Any:
    def joined(*leaves: np.ndarray) -> np.ndarray:
      return leaves[0] if len(leaves) == 1 else np.stack(leaves)

    return jax.device_put(
      jax.tree.map(joined, *batches), NamedSharding(mesh, rows(len(batches)))
    )

  def mapped(fn: ReplicaStep, count: int) -> Any:
    # With the check on, gradients of replicated parameters would be summed over
    # the devices before the step takes their mean itself, as under pmap.
    return jax.jit(
      jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=(P(), rows(count), P()),
        out_specs=(P(), P()),
        check_vma=False,
      ),
      donate_argnums=0,
    )

  def fetch(tree: Any) -> Any:
    return jax.tree.map(np.array, _of_first_device(tree))

  return _Way(place, split, mapped, fetch, lambda *shapes: shapes)


def _is_unrolled(platform: str) -> bool:
  """Whether a loop is written out: one of XLA's runs on one core of a CPU."""
  return platform == 'cpu'


def _of_first_device(tree: Any) -> Any:
  """What the first device has, as NumPy that may share its memory."""
  return jax.device_get(jax.tree.map(lambda x: x.addressable_data(0), tree))


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


def forget() -> None:
  """Gives back all programs; for after a run, of which none runs again.

  JAX keeps what a pmap was compiled from as long as the process lives: some 25
  MB for each training of a small net.
  """
  jax.clear_caches()


def pretend(count: int) -> None:
  """So many CPU devices in place of those there are; before JAX is used."""
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', count)


def replicate(tree: Any) -> Any:
  """A copy on every device, for `forward` to be called with many times."""
  mesh = _mesh(jax.local_devices())
  return jax.device_put(tree, NamedSharding(mesh, P()))


def num_devices() -> int:
  """Devices of this process, among which a batch is split."""
  return jax.local_device_count()


def is_accelerated() -> bool:
  """Whether they are more than the cores that run this program."""
  return jax.default_backend() != 'cpu'


def memory() -> int | None:
  """Bytes that each of them has for us; None where one does not tell.

  In use or not, so that a run has the same number whenever it is resumed.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if not all('bytes_limit' in each for each in stats):
    return None
  return min(each['bytes_limit'] for each in stats)


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
