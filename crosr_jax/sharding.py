"""Where devices are spoken of, once, and the processes that they belong to.

The math elsewhere is written for one replica, with means over the axis
AXIS. State crosses this door without a device axis.

Where several processes run the same program (distributed.py), devices train all
together: each process reads its own `share` of a batch, the rows of its own
devices. Of images to evaluate too each takes a share, and `gathered` brings
together what came of them. One process, the `writer`, writes every file; what
it alone knows, all ask it for, in the same order.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from crosr_jax import distributed, exported, types

PARALLEL = ('pmap', 'shard_map')
# The axis of data parallelism: replicas.
AXIS = 'batch'

# Of a process, that are gathered at a time: every device holds those of all.
_MOST_BYTES = 1 << 24
# Numbers what processes say to each other.
_numbers = itertools.count()

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
  # one element for each step. A batch is this process's share of it.
  step: Callable[..., tuple[Any, Any]]
  # Compiles what `step` runs with these arguments, and leaves them alone.
  compile: Callable[..., None]
  fetch: Callable[[Any], Any]  # placed state -> NumPy, of its own memory
  # The program of one step, from shapes of a state and a batch; nothing is run.
  planned: Callable[[Any, Any], jax.stages.Compiled]


class _Way(NamedTuple):
  """How replicas come onto devices. T steps of a program."""

  place: Callable[[Any], Any]  # tree -> the same on every device
  # T batches, this process's shares -> one, spread by rows
  split: Callable[[Sequence[Any]], Any]
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
    step: written with `lax.pmean(.., AXIS)`; what it returns must be
      equal on all replicas.
    parallel: 'pmap', or 'shard_map' for jit(shard_map).
    devices: default all, those of other processes too.
    shared: what every step is given beside its batch; it is put on each device
      once.

  Returns:
    Place, step, compile, fetch, planned. The leading axis of every leaf of a
    batch is split over the devices of the process that has it. Steps of one
    program are those of many, but for how XLA rounds: what it fuses is another.

  Raises:
    ValueError: for another `parallel`.
  """
  types.check_choice('parallel', parallel, PARALLEL)
  devices = list(devices or _all_devices())
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
      compiler_options=exported.compiler_options(platform)
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
    if platform == 'cpu' and len(devices) > 1:
      # One at a time: on a machine under load, replicas with many steps under
      # way were seen to wait for each other until XLA's limit ended them.
      jax.block_until_ready(metrics)
    # Indexing would move every number of every step between the devices.
    return state, jax.tree.map(lambda x: x.addressable_data(0), metrics)

  def compile_only(state: Any, *batches: Any) -> None:
    prepared(state, batches)

  def planned(state: Any, batch: Any) -> jax.stages.Compiled:
    return compiled(1, *way.shapes(state, batch), ())

  return Engine(way.place, run, compile_only, way.fetch, planned)


def _pmap(devices: Sequence[jax.Device]) -> _Way:
  mesh = _mesh(devices)
  n, split_over = len(mesh.local_devices), P(AXIS)

  def place(tree: Any) -> Any:
    stacked = jax.tree.map(
      lambda x: np.broadcast_to(np.asarray(x), (n, *np.shape(x))), tree
    )
    return _put(stacked, mesh, split_over)

  def split(batches: Sequence[Any]) -> Any:
    def joined(*leaves: np.ndarray) -> np.ndarray:
      parts = [x.reshape(n, -1, *x.shape[1:]) for x in leaves]
      return parts[0] if len(parts) == 1 else np.stack(parts, axis=1)

    return _put(jax.tree.map(joined, *batches), mesh, split_over)

  def mapped(fn: ReplicaStep, count: int) -> Any:
    del count  # The steps of a replica lie behind its own axis.
    return jax.pmap(fn, AXIS, devices=devices, donate_argnums=0)

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
    return P(AXIS) if count == 1 else P(None, AXIS)

  def place(tree: Any) -> Any:
    # The step gives the memory of a placed state away, but never NumPy's.
    host = jax.tree.map(np.asarray, tree)
    return _put(host, mesh, P())

  def split(batches: Sequence[Any]) -> Any:
    def joined(*leaves: np.ndarray) -> np.ndarray:
      return leaves[0] if len(leaves) == 1 else np.stack(leaves)

    return _put(jax.tree.map(joined, *batches), mesh, rows(len(batches)))

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


def _put(tree: Any, mesh: Mesh, spec: P) -> Any:
  """What each process has, on its own devices, as one for all."""
  # jax.make_array_from_process_local_data would not count as an explicit move.
  own = jax.device_put(tree, NamedSharding(mesh.local_mesh, spec))
  if jax.process_count() == 1:
    return own
  return multihost_utils.host_local_array_to_global_array(own, mesh, spec)


def _is_unrolled(platform: str) -> bool:
  """Whether a loop is written out: one of XLA's runs on one core of a CPU."""
  return platform == 'cpu'


def _of_first_device(tree: Any) -> Any:
  """What the first device has, as NumPy that may share its memory."""
  return jax.device_get(jax.tree.map(lambda x: x.addressable_data(0), tree))


def forward(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Compiles fn(variables, image), rows spread over this process's devices.

  Rows must be a multiple of the number of devices; results keep their order.
  """
  mesh = _mesh(jax.local_devices())
  rows, whole = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())
  compiled = jax.jit(
    fn,
    in_shardings=(whole, rows),
    out_shardings=rows,
    compiler_options=exported.compiler_options(jax.default_backend()),
  )
  # Of several processes, JAX would not take NumPy for rows of this one.
  return lambda variables, image: compiled(
    variables, jax.device_put(image, rows)
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
  """Devices of all processes, among which a batch is split."""
  return jax.device_count()


def is_writer() -> bool:
  """Whether this process is the one that writes files."""
  return jax.process_index() == 0


def barrier() -> None:
  """Waits for all processes, as long as they live.

  Whatever devices do together needs one before it, where a process may be late:
  on CPU they wait for each other half a minute at first, and no longer.
  """
  if jax.process_count() > 1:
    distributed.wait(str(next(_numbers)))


@contextlib.contextmanager
def writer_first() -> Iterator[None]:
  """What is inside is done by the writer, and then by all others."""
  if not is_writer():
    barrier()
  yield
  if is_writer():
    barrier()


def agreed(value: Any) -> Any:
  """The writer's value in every process; JSON."""
  if jax.process_count() == 1:
    return value
  name = f'agreed/{next(_numbers)}'
  if is_writer():
    distributed.say(name, json.dumps(value))
  return json.loads(distributed.hear(name))


def of_writer(tree: Any) -> Any:
  """The writer's arrays in every process, bit for bit.

  The others' may have other shapes, in a tree of the same structure.
  """
  if jax.process_count() == 1:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  leaves = [np.asarray(x) for x in leaves]
  kinds = agreed([(x.shape, x.dtype.name) for x in leaves])
  if not is_writer():
    leaves = [np.zeros(shape, dtype) for shape, dtype in kinds]
  told = np.concatenate([_bytes(x) for x in leaves])
  barrier()
  told = multihost_utils.broadcast_one_to_all(told)
  ends = np.cumsum([x.nbytes for x in leaves])
  return jax.tree.unflatten(
    structure,
    [
      # A copy, since views of bytes may lie askew in memory.
      np.array(x).view(dtype).reshape(shape)
      for x, (shape, dtype) in zip(
        np.split(told, ends[:-1]), kinds, strict=True
      )
    ],
  )


def anyone(flag: bool, *, now: bool) -> bool:
  """Whether it is true in any process; several of them look only `now`.

  All must come with the same `now`.
  """
  if jax.process_count() == 1:
    return flag
  # It is asked in a loop where nothing moves without saying so.
  with jax.transfer_guard('allow'):
    return now and any(x.any() for x in everyones(np.array([flag])))


def share(count: int) -> slice:
  """Which of `count` rows are this process's.

  Together they are all; of a batch they are the rows of its own devices.
  """
  index, processes = jax.process_index(), jax.process_count()
  return slice(count * index // processes, count * (index + 1) // processes)


def everyones(rows: np.ndarray) -> list[np.ndarray]:
  """What each process gives, in their order, bit for bit.

  [n, ...] each; only n may differ between them.
  """
  if jax.process_count() == 1:
    return [rows]
  rows = np.asarray(rows)
  barrier()
  counts = multihost_utils.process_allgather(np.array(len(rows), np.int32))
  found = [np.empty((n, *rows.shape[1:]), rows.dtype) for n in counts]
  each = max(1, int(np.prod(rows.shape[1:])) * rows.dtype.itemsize)
  size = max(1, min(int(counts.max()), _MOST_BYTES // each))
  for start in range(0, int(counts.max()), size):
    piece = rows[start : start + size]
    padded = np.zeros(size * each, np.uint8)
    padded[: piece.nbytes] = _bytes(piece)
    for whole, part in zip(
      found, multihost_utils.process_allgather(padded), strict=True
    ):
      out = whole[start : start + size]
      out[:] = part[: out.nbytes].view(rows.dtype).reshape(out.shape)
  return found


def gathered(rows: np.ndarray) -> np.ndarray:
  """What every process made of its `share`, as one, in order."""
  found = everyones(rows)
  return found[0] if len(found) == 1 else np.concatenate(found)


def _bytes(array: np.ndarray) -> np.ndarray:
  return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)


def is_accelerated() -> bool:
  """Whether the devices are GPUs or TPUs, not this machine's own cores."""
  return jax.default_backend() != 'cpu'


def memory() -> int | None:
  """Bytes of the smallest local device; None where one does not tell.

  Of all that JAX may take, whatever is in use: so a run that is resumed finds
  the same number.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if not all('bytes_limit' in each for each in stats):
    return None
  return min(each['bytes_limit'] for each in stats)


def evened(rows: int) -> int:
  """The next number that the devices of `forward` take equal shares of."""
  devices = jax.local_device_count()
  return -(-rows // devices) * devices


def check_even(field: str, rows: int) -> None:
  """Raises a UsageError where rows cannot be split among the devices."""
  devices = num_devices()
  if rows % devices:
    raise types.UsageError(
      f'{field}={rows} cannot be split evenly among {devices} devices; take a '
      f'multiple of {devices}'
    )


def _all_devices() -> list[jax.Device]:
  """Those of a process side by side, process after process."""
  processes = range(jax.process_count())
  found = [jax.local_devices(process_index=i) for i in processes]
  if len({len(devices) for devices in found}) > 1:
    told = ', '.join(str(len(devices)) for devices in found)
    raise types.UserError(
      f'the processes have {told} devices; start all of them with as many'
    )
  return [device for devices in found for device in devices]


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
  return Mesh(np.array(devices), (AXIS,))
