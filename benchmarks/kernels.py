"""Where a GPU's time goes, from what jax.profiler.trace has written.

A kernel's kind is told by its name: XLA names its own after what it fused, the
libraries theirs after what they compute.
"""

import collections
import gzip
import json
import pathlib
import re
from typing import Any, NamedTuple

# The first that is found in a name, in lower case, counts.
_KINDS = (
  ('collective', 'nccl|all.?reduce|all.?gather'),
  ('copy, transpose', 'memcpy|nchw_?(to|2)_?nhwc|nhwc_?(to|2)_?nchw'),
  ('memset', 'memset'),
  ('convolution', 'fprop|dgrad|wgrad|conv(?!ert)|cudnn|winograd|implicit'),
  ('matmul', 'gemm|nvjet|cublas|cutlass|matmul|xmma|split_?k|dot'),
  ('random', 'threefry|rng|philox'),
  ('pool', 'reduce.?window|scatter|pool'),
  ('reduce', 'reduce'),
  ('copy, transpose', 'transpose|copy'),
  ('elementwise', 'fusion|loop_|wrapped_|elementwise|triton'),
  ('graph, not looked into', 'graph'),
)
_OTHER = 'other'
# Rows of a trace that tell of the same kernels once more.
_DERIVED = re.compile('XLA|Step|Framework|TensorFlow|Source|Launch')
_SHOWN = 10


class Kernel(NamedTuple):
  """All calls of one name; milliseconds."""

  name: str
  operation: str  # of XLA's program, of one of them
  kind: str
  time: float
  count: int


class Profile(NamedTuple):
  """What a GPU did while it was traced; milliseconds."""

  span: float  # from the first kernel's start to the last one's end
  busy: float  # of it, while at least one ran
  kinds: dict[str, float]  # the longest first
  kernels: list[Kernel]  # likewise


def kind(name: str, operation: str = '') -> str:
  """Of a kernel, by its name, or else by XLA's operation."""
  for text in (name, operation):
    for found, pattern in _KINDS:
      if re.search(pattern, text.lower()):
        return found
  return _OTHER


def read(folder: str | pathlib.Path) -> Profile | None:
  """Of the traces in a folder; None where no GPU is in them."""
  spans, names = [], collections.defaultdict(list)
  for path in sorted(pathlib.Path(folder).rglob('*.trace.json.gz')):
    with gzip.open(path) as file:
      events = json.load(file)['traceEvents']
    for event in _on_gpu(events):
      start, length = float(event['ts']), float(event.get('dur', 0.0))
      spans.append((start / 1e3, (start + length) / 1e3))
      names[event['name']].append(event)
  if not spans:
    return None
  kernels = []
  for name, events in names.items():
    operation = str(events[0].get('args', {}).get('hlo_op', ''))
    time = sum(float(event.get('dur', 0.0)) for event in events) / 1e3
    kernels.append(
      Kernel(name, operation, kind(name, operation), time, len(events))
    )
  kernels.sort(key=lambda kernel: -kernel.time)
  kinds: dict[str, float] = collections.defaultdict(float)
  for kernel in kernels:
    kinds[kernel.kind] += kernel.time
  return Profile(
    span=max(end for _, end in spans) - min(start for start, _ in spans),
    busy=_union(spans),
    kinds=dict(sorted(kinds.items(), key=lambda item: -item[1])),
    kernels=kernels,
  )


def show(title: str, profile: Profile, steps: int) -> None:
  """Prints both tables; shares are of all kernels' time."""
  total = sum(profile.kinds.values()) or 1.0
  print(
    f'\n{title}: {steps} steps in {profile.span:.1f} ms, of which kernels ran '
    f'{100 * profile.busy / max(profile.span, 1e-9):.1f} %'
  )
  print(f'{"":26} {"share":>7} {"ms a step":>10}')
  for name, time in profile.kinds.items():
    print(f'{name:26} {100 * time / total:5.1f} % {time / steps:10.4f}')
  print(f'{"longest kernels":26} {"share":>7} {"ms a step":>10} {"times":>6}')
  for kernel in profile.kernels[:_SHOWN]:
    print(
      f'{kernel.kind:26} {100 * kernel.time / total:5.1f} % '
      f'{kernel.time / steps:10.4f} {kernel.count / steps:6.1f}  '
      f'{kernel.name[:90]}  {kernel.operation[:40]}'.rstrip()
    )
  print(end='', flush=True)


def _on_gpu(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Kernels and copies, each once."""
  gpus, threads = set(), {}
  for event in events:
    if event.get('ph') == 'M':
      told = str(event.get('args', {}).get('name', ''))
      if event.get('name') == 'process_name' and '/device:GPU' in told:
        gpus.add(event['pid'])
      elif event.get('name') == 'thread_name':
        threads[event['pid'], event['tid']] = told
  found = [
    event
    for event in events
    if event.get('ph') == 'X' and event.get('pid') in gpus
  ]

  def row(event: dict[str, Any]) -> str:
    return threads.get((event['pid'], event.get('tid')), '')

  on_streams = [event for event in found if row(event).startswith('Stream')]
  return on_streams or [e for e in found if not _DERIVED.match(row(e))]


def _union(spans: list[tuple[float, float]]) -> float:
  """How long at least one of them lasts."""
  total, reached = 0.0, float('-inf')
  for start, end in sorted(spans):
    total += max(0.0, end - max(start, reached))
    reached = max(reached, end)
  return total
