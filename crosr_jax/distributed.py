"""Where processes are spoken of: how several of them become one JAX.

One process is the rule, and then nothing is done here. Several are told of by
flags, or by what started them: SLURM, or the workers of a TPU. They must find
each other before JAX looks for its devices.
"""

import atexit
import contextlib
import glob
import importlib.util
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from crosr_jax import signals, types

MODES = ('auto', 'on', 'off')
TIMEOUT = 300

# JAX ends the process with a page of C++ when its own limit is over, so that
# comes after ours.
_SECONDS_MORE_FOR_JAX = 60
_SECONDS_FOR_METADATA = 5
# A process of which nothing is heard for so long is gone; JAX itself would wait
# 100 s, and then end the others with a page of C++. Not less: a machine
# that has too much to do must not look lost.
_SECONDS_OF_SILENCE = 60
_SECONDS_BETWEEN_BEATS = 1
# Those who leave together come to the door together.
_SECONDS_TO_LEAVE = 10
# Others live as long as they compute: whoever waits for them has no limit of
# its own.
_DAY_IN_MS = 86_400_000
# Where SLURM's jobs listen: a port of their own among the last 4,096.
_FIRST_PORT, _PORTS = 61440, 4096


class Processes(NamedTuple):
  """Processes that compute together, and which of them this one is."""

  num_processes: int
  told_by: str  # 'flags', 'SLURM' or 'TPU'
  # Where process 0 listens, HOST:PORT, and this one's number; for a TPU, JAX
  # finds both.
  coordinator_address: str = ''
  process_id: int = -1
  # Which of the node's GPUs are this process's; () = all of them.
  local_device_ids: tuple[int, ...] = ()
  timeout: int = TIMEOUT  # seconds until all must have come


def told(
  mode: str,
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: int = TIMEOUT,
) -> Processes | None:
  """What flags say, or else the environment; None = one process.

  Args:
    mode: 'auto' takes what it finds, 'on' must find something, 'off' looks for
      nothing.
    coordinator_address: HOST:PORT of process 0; None = not given.
    num_processes: of them all; None = not given.
    process_id: of this one, from 0; None = not given.
    timeout: seconds to wait for each other.

  Raises:
    UsageError: for flags that cannot be used, or not together.
  """
  types.check_choice('--distributed', mode, MODES)
  if timeout < 1:
    raise types.UsageError(
      f'--initialization_timeout={timeout}: at least 1 second is needed'
    )
  given = _given(coordinator_address, num_processes, process_id)
  if mode == 'off':
    if given:
      raise types.UsageError(
        f'--distributed=off and --num_processes={given.num_processes} '
        'contradict each other; leave one of them out'
      )
    return None
  found = given or found_in(os.environ)
  if mode == 'on' and not found:
    raise types.UsageError(
      '--distributed=on, but neither SLURM (srun) nor a TPU tells of the '
      'processes; say --coordinator_address, --num_processes and --process_id, '
      'or leave it out for one process'
    )
  if not found or found.num_processes == 1:
    return None
  return found._replace(timeout=timeout)


def found_in(environment: Mapping[str, str]) -> Processes | None:
  """What the environment tells of processes; None = nothing."""
  return _of_slurm(environment) or _of_tpu(environment)


@contextlib.contextmanager
def joined(processes: Processes | None) -> Iterator[None]:
  """All processes are one JAX from here on; with None, nothing happens.

  They end together. A process that fails tells the others why and leaves: else
  JAX would let it wait minutes for them, which wait for it. One that is killed
  can tell nothing; it is missed after a minute. Either way each of the
  others ends with one line and the same exit code. Only where process 0 is
  killed, which all of them hang on, JAX ends them itself, at once.

  Raises:
    UserError: where they cannot be joined. Where they do not come in time, the
      process ends with one line and exit code 1.
  """
  if processes is None:
    yield
    return
  _initialize(processes)
  watch = _Watch()
  watch.start()
  try:
    yield
    wait('end')
  except BaseException as error:
    if isinstance(error, signals.Terminated) and _all_come('asked'):
      raise
    if _is_of_others(error):
      # What is wrong there is the line to end with, and the watch will say it.
      watch.wait_for_others()
    watch.tell(error)
    # The last to be registered is the first to run, before JAX's own.
    atexit.register(watch.leave, _exit_code(error))
    raise
  finally:
    watch.stop()


def client() -> Any:
  """What JAX's processes tell each other small things by.

  Not a public name of JAX, but there is none, and Orbax uses it likewise.
  """
  from jax._src import distributed

  return distributed.global_state.client


def wait(name: str) -> None:
  """Waits until all processes are here, as long as they live.

  The name must be new.
  """
  client().wait_at_barrier(f'crosr_jax/{name}', _DAY_IN_MS)


def say(name: str, text: str) -> None:
  """Tells all processes something, under a name that is new."""
  client().key_value_set(f'crosr_jax/{name}', text)


def hear(name: str) -> str:
  """What was said under this name; waits for it while the processes live."""
  return client().blocking_key_value_get(f'crosr_jax/{name}', _DAY_IN_MS)


class _Watch(threading.Thread):
  """Looks after the other processes, and ends this one where one has failed."""

  def __init__(self) -> None:
    super().__init__(name='watch', daemon=True)
    from jax._src import distributed

    self._index = int(distributed.global_state.process_id)
    self._over = threading.Event()
    self._is_leaving = threading.Event()
    self._beat = 0
    # What was last heard of each process, and when.
    now = time.monotonic()
    self._heard = {
      str(i): ('', now) for i in range(distributed.global_state.num_processes)
    }

  def run(self) -> None:
    while not self._over.wait(_SECONDS_BETWEEN_BEATS):
      # Without a line to process 0 there is nothing to see; if it has gone, JAX
      # ends this process.
      with contextlib.suppress(RuntimeError):
        self._look()

  def stop(self) -> None:
    self._over.set()

  def wait_for_others(self) -> None:
    """Until another process is known to have failed, if it is seen at all.

    Then this one ends here.
    """
    if self._is_leaving.wait(_SECONDS_OF_SILENCE + 8 * _SECONDS_BETWEEN_BEATS):
      self.join()

  def tell(self, error: BaseException) -> None:
    """Tells the others that this process fails, and why."""
    self.stop()
    reason = ' '.join(str(error).split())
    if not isinstance(error, types.UserError):
      reason = f'{type(error).__name__}{": " if reason else ""}{reason}'
    with contextlib.suppress(RuntimeError):
      say(f'failed/{self._index}', f'{_exit_code(error)} {reason}')

  def leave(self, code: int) -> None:
    """Ends this process, once the others have heard why."""
    _all_come('failed')
    _leave(code)

  def _look(self) -> None:
    self._beat += 1
    client().key_value_set(
      f'crosr_jax/beat/{self._index}', str(self._beat), allow_overwrite=True
    )
    if self._index == 0:
      self._miss()
    for key, text in client().key_value_dir_get('crosr_jax/failed/'):
      if self._over.is_set():
        return
      self._is_leaving.set()
      code, _, reason = text.partition(' ')
      logging.error('error: process %s: %s', key.rpartition('/')[2], reason)
      self.leave(int(code))

  def _miss(self) -> None:
    """Tells of a process that has gone without a word."""
    now = time.monotonic()
    for key, beat in client().key_value_dir_get('crosr_jax/beat/'):
      index = key.rpartition('/')[2]
      if self._heard[index][0] != beat:
        self._heard[index] = beat, now
    for index, (_, when) in self._heard.items():
      if now - when > _SECONDS_OF_SILENCE:
        say(
          f'failed/{index}',
          f'{types.UserError.exit_code} nothing was heard of it for '
          f'{_SECONDS_OF_SILENCE} s, it was killed or its machine is lost; '
          'start all processes again, they go on from the newest checkpoint',
        )


def _all_come(name: str) -> bool:
  """Whether all who live leave for this reason, together; waits for them.

  They hang on process 0, which waits a moment more.
  """
  from jax._src import distributed

  try:
    client().wait_at_barrier(f'crosr_jax/{name}', 1000 * _SECONDS_TO_LEAVE)
  except RuntimeError:
    return False
  if distributed.global_state.process_id == 0:
    time.sleep(_SECONDS_BETWEEN_BEATS)
  return True


def _given(
  address: str | None, count: int | None, index: int | None
) -> Processes | None:
  """What the three flags say; None = none is given."""
  flags = {
    '--coordinator_address': address,
    '--num_processes': count,
    '--process_id': index,
  }
  if all(value is None for value in flags.values()):
    return None
  if address is None or count is None or index is None:
    there = ' '.join(f'{k}={v}' for k, v in flags.items() if v is not None)
    missing = ' and '.join(k for k, v in flags.items() if v is None)
    raise types.UsageError(
      f'{there} without {missing}: several processes need all three, one needs '
      'none of them'
    )
  host, port = _split(address)
  if not host or not 0 < port < 2**16:
    raise types.UsageError(
      f'--coordinator_address={address} is no HOST:PORT, where process 0 '
      'listens, for example 10.0.0.1:8476'
    )
  if count < 1:
    raise types.UsageError(f'--num_processes={count}: at least 1 is needed')
  if not 0 <= index < count:
    raise types.UsageError(
      f'--process_id={index}: with --num_processes={count} the processes are '
      f'0 to {count - 1}'
    )
  return Processes(count, 'flags', address, index)


def _split(address: str) -> tuple[str, int]:
  """Host and port of HOST:PORT or [IPv6]:PORT; ('', 0) where it is neither."""
  match = re.fullmatch(
    r'(\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):([0-9]{1,5})', address
  )
  return (match[1], int(match[2])) if match else ('', 0)


def _of_slurm(environment: Mapping[str, str]) -> Processes | None:
  """The tasks of a step that srun started; None = it is in no such step."""
  names = ('JOB_ID', 'STEP_NODELIST', 'STEP_NUM_TASKS', 'PROCID')
  values = [environment.get(f'SLURM_{name}', '') for name in names]
  if not all(values):
    return None
  job, nodes, count, index = values
  port = int(job) % _PORTS + _FIRST_PORT
  return Processes(
    int(count),
    'SLURM',
    f'{_first_node(nodes)}:{port}',
    int(index),
    _devices_of_task(environment),
  )


def _first_node(nodes: str) -> str:
  """Of SLURM's list: 'a', 'a,b', 'a[001,007-015],b', 'a[1-4]-ib'."""
  match = re.match(r'([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?', nodes)
  if not match:
    raise types.UserError(
      f'SLURM_STEP_NODELIST={nodes} names no node; say --coordinator_address, '
      '--num_processes and --process_id'
    )
  return ''.join(part or '' for part in match.groups())


def _devices_of_task(environment: Mapping[str, str]) -> tuple[int, ...]:
  """GPUs of a task: all of its node, or one where tasks share the node.

  JAX by itself would take one in either case.
  """
  told_of = environment.get('SLURM_STEP_TASKS_PER_NODE', '1')
  tasks = [
    int(number)
    for number, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', told_of)
    for _ in range(int(times or 1))
  ]
  visible = environment.get('CUDA_VISIBLE_DEVICES', '')
  # SLURM may have bound a GPU to the task, which then sees no other.
  is_bound = bool(visible) and ',' not in visible
  if tasks[int(environment.get('SLURM_NODEID', 0))] == 1 or is_bound:
    return ()
  return (int(environment.get('SLURM_LOCALID', 0)),)


def _of_tpu(environment: Mapping[str, str]) -> Processes | None:
  """The workers of a TPU, of all its slices; None = there is no TPU."""
  platforms = environment.get('JAX_PLATFORMS', '')
  if platforms and 'tpu' not in platforms:
    return None
  slices = environment.get('MEGASCALE_NUM_SLICES', '')
  # In a pod of GKE.
  workers = environment.get('TPU_PROCESS_ADDRESSES') or environment.get(
    'TPU_WORKER_HOSTNAMES', ''
  )
  if not workers and _is_tpu_vm(environment):
    workers = _metadata('worker-network-endpoints', environment)
    if match := re.search(
      r"^MEGASCALE_NUM_SLICES: *'?(\d+)",
      _metadata('tpu-env', environment),
      re.MULTILINE,
    ):
      slices = slices or match[1]
  if not workers:
    return None
  return Processes(len(workers.split(',')) * int(slices or 1), 'TPU')


def _is_tpu_vm(environment: Mapping[str, str]) -> bool:
  """Whether a TPU can be used, and its machine may be asked about it."""
  return (
    'TPU_SKIP_MDS_QUERY' not in environment
    and importlib.util.find_spec('libtpu') is not None
    and bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))
  )


def _metadata(name: str, environment: Mapping[str, str]) -> str:
  """What Google's cloud says of this machine; '' where it is none of its."""
  host = environment.get('GCE_METADATA_IP', 'metadata.google.internal')
  request = urllib.request.Request(
    f'http://{host}/computeMetadata/v1/instance/attributes/{name}',
    headers={'Metadata-Flavor': 'Google'},
  )
  # Never through a proxy: the answer is this machine's own.
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with opener.open(request, timeout=_SECONDS_FOR_METADATA) as answer:
      return answer.read().decode()
  except (urllib.error.URLError, OSError):
    return ''


def _initialize(processes: Processes) -> None:
  """Joins them.

  Raises:
    UserError: where JAX says why it cannot be.
  """
  # Flags are looked at before JAX is loaded.
  import jax

  logging.info(
    'joining %d processes, told by %s; waiting for all of them, %d s at most%s',
    processes.num_processes,
    processes.told_by,
    processes.timeout,
    f': this is process {processes.process_id}, process 0 is at '
    f'{processes.coordinator_address}'
    if processes.coordinator_address
    else '',
  )
  timeout = processes.timeout + _SECONDS_MORE_FOR_JAX
  before = signal.getsignal(signal.SIGTERM)
  try:
    with _limit(processes):
      if processes.coordinator_address:
        jax.distributed.initialize(
          processes.coordinator_address,
          processes.num_processes,
          processes.process_id,
          list(processes.local_device_ids) or None,
          # Else JAX would look for SLURM beside flags, and take one GPU of a
          # node.
          cluster_detection_method='deactivate',
          initialization_timeout=timeout,
        )
      else:
        jax.distributed.initialize(initialization_timeout=timeout)
  except (RuntimeError, ValueError) as error:
    reason = str(error).partition('\n')[0].rstrip('.')
    raise types.UserError(
      f'{processes.num_processes} processes, told by {processes.told_by}, '
      f'cannot be joined: {reason}; mend that, or say --distributed=off for '
      'one process'
    ) from error
  # JAX takes the signal to itself and goes on until it is killed.
  signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _limit(processes: Processes) -> Iterator[None]:
  """Ends the process where what is inside takes too long."""

  def end() -> None:
    logging.error('error: %s', _why_late(processes))
    _leave(types.UserError.exit_code)

  timer = threading.Timer(processes.timeout, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _why_late(processes: Processes) -> str:
  """What is missing, as far as it can be seen from here."""
  count, seconds = processes.num_processes, processes.timeout
  proxies = sorted(x for x in os.environ if re.fullmatch('(?i)https?_proxy', x))
  hint = f'; unset {", ".join(proxies)}, which JAX obeys' if proxies else ''
  if processes.process_id > 0:
    host, port = _split(processes.coordinator_address)
    try:
      socket.create_connection((host.strip('[]'), port), timeout=5).close()
    except OSError as error:
      return (
        f'process {processes.process_id} of {count}: nobody answers at '
        f'{processes.coordinator_address} within {seconds} s '
        f'({error.strerror or error}); start process 0 there, with the same '
        f'address{hint}'
      )
  return (
    f'not all of {count} processes came within {seconds} s; start the same '
    'command for each of them, or say --distributed=off for one process'
    f'{hint}'
  )


def _exit_code(error: BaseException) -> int:
  """What the command will end with, see cli.py."""
  if isinstance(error, KeyboardInterrupt):
    return 130
  return getattr(error, 'exit_code', types.UserError.exit_code)


def _is_of_others(error: BaseException) -> bool:
  """Whether it may come of another process, which computed with this one."""
  # JAX raises either, with a status of XLA; others are this process's own.
  words = 'UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED'
  is_of_jax = isinstance(error, RuntimeError | ValueError)
  return is_of_jax and bool(re.search(rf'\b({words}): ', str(error)))


def _leave(code: int) -> None:
  """Ends the process without a word to the others."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  os._exit(code)
