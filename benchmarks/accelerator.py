"""Training and scoring on an accelerator: ours, PyTorch, and the limits.

  python benchmarks/accelerator.py --output=accelerator.json

In parts, the most wanted first, each shown and written as soon as it is there:

- peak: products of large bfloat16 matrices, and a copy within memory. The
  fastest product is what 'of peak' speaks of: multiply-adds of convolutions and
  matrix products of a training step, counted from its program (updating the
  parameters has none), times two.
- train: steps as the project trains: images uint8 on the device, their rows
  looked up there, ten steps of a program, nothing else moved; computed in
  bfloat16. PyTorch trains the same net, compared in float32 first: images and
  order on the device too, channels_last, bfloat16 by autocast, a fused
  optimizer, cuDNN's search for the best convolution.
- score: open-set scores of K = 1,000 classes, of features that come as NumPy
  and go back so, and of such that stay on the device.
- width: the MNIST net with more channels than it needs.
- profile: of what a step consists, by the kernels that ran.

What fails is told, and all else goes on; what has not begun when the seconds of
--budget are over is left out, and told too. A program that is being compiled is
not stopped.
"""

import contextlib
import copy
import functools
import gc
import itertools
import os
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import kernels
import numpy as np
import scoring
import timing
import train_step

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from crosr_jax import feed, scorer, sharding, train, types
from crosr_jax.data import splits
from crosr_jax.models import layers

# Does a unit of work so often, and has done all of it when it returns.
Work = Callable[[int], None]

PARTS = ('peak', 'train', 'score', 'width', 'profile')
NETS = ('vgg', 'mnist', 'fast', 'wide_resnet')
_IMAGES_FOR_INIT = 512
# A rate at which random labels do no harm.
_RULE = train_step.RULE | {'learning_rate': 1e-3}


class Sizes(NamedTuple):
  """Of everything that is measured."""

  samples: int
  batch: int
  small_batch: int
  steps: int  # of a program
  seconds: float  # that a timing should take
  width: int  # of all nets, 0 = their own
  widths: tuple[int, ...]  # of the MNIST net
  side: int  # of a matrix
  products: int
  copied: int  # bytes
  rows: tuple[int, ...]  # to score
  classes: int
  activation: int  # width of what is scored


FULL = Sizes(
  samples=51_200,
  batch=1024,
  small_batch=128,
  steps=10,
  seconds=0.2,
  width=0,
  # Its own first.
  widths=(100, 104, 112, 128, 96),
  side=8192,
  products=20,
  copied=2**30,
  rows=(10_000, 100_000),
  classes=1000,
  activation=1512,
)
# So that everything runs once, wherever it is; its figures tell nothing.
SMALL = Sizes(
  samples=64,
  batch=8,
  small_batch=4,
  steps=2,
  seconds=0.0,
  width=8,
  widths=(8, 12),
  side=128,
  products=2,
  copied=2**20,
  rows=(100, 300),
  classes=100,
  activation=200,
)


class Book:
  """What was measured, what failed, and the time that is left."""

  def __init__(self, sizes: Sizes, repeats: int, budget: float, output: str):
    self.sizes = sizes
    self.peak = 0.0  # operations in a second; 0 = not measured
    self._repeats, self._output = repeats, output
    self._begin, self._budget = time.monotonic(), budget
    self._tables: dict[str, list[timing.Row]] = {}
    self._more: dict[str, Any] = {
      name: {} for name in ('multiply_adds', 'ready', 'profiles', 'failed')
    }
    self._more['left_out'] = []

  def begins(self, name: str) -> bool:
    """Whether there is time for it; if not, it is told."""
    if time.monotonic() - self._begin < self._budget:
      return True
    print(f'  {name}: left out, {self._budget:g} s are over', flush=True)
    self._more['left_out'].append(name)
    return False

  def note(self, kind: str, name: str, value: Any) -> None:
    """For the file."""
    self._more[kind][name] = value

  @contextlib.contextmanager
  def surviving(self, name: str):
    """Tells of what fails inside, and goes on."""
    try:
      yield
    except Exception as error:
      told = f'{type(error).__name__}: {error}'
      print(f'  {name}: failed, {told[:600]}', flush=True)
      self.note('failed', name, traceback.format_exc()[-4000:])

  def measure(
    self,
    title: str,
    makers: Mapping[str, Callable[[], Work]],
    told: Callable[[str, float], str],
    units: int = 1,
  ) -> list[timing.Row]:
    """Measures cases in turns, shows and writes the table.

    Args:
      title: of the table.
      makers: of each case, makes its work.
      told: from a case and its seconds for one unit to what is said beside it.
      units: in a piece of work.

    Returns:
      Seconds for one unit, of the cases that did not fail.
    """
    print(f'\n{title}: made ready', flush=True)
    works = {}
    for name, make in makers.items():
      case = f'{title}: {name}'
      if not self.begins(case):
        continue
      start = time.monotonic()
      with self.surviving(case):
        work = make()
        work(1)
        works[name] = work
        taken = time.monotonic() - start
        self.note('ready', case, taken)
        print(f'  {name}: ready after {taken:.1f} s', flush=True)
    rows: list[timing.Row] = []
    if works:
      with self.surviving(title):
        rows = self._rows(works, told, units)
        timing.show(title, rows)
        self._tables[title] = rows
    self.write()
    return rows

  def write(self) -> None:
    """All so far."""
    more = self._more | {'peak': self.peak, 'sizes': self.sizes._asdict()}
    timing.write(self._output, self._tables, **more)

  def speed(self, operations: float) -> str:
    """Operations in a second, and what share of the peak that is."""
    told = f'{operations / 1e12:6.1f} TFLOP/s'
    if self.peak:
      told += f' {100 * operations / self.peak:5.1f} % of peak'
    return told

  def _rows(self, works, told, units) -> list[timing.Row]:
    first = next(iter(works.values()))
    start = time.perf_counter()
    first(1)
    taken = time.perf_counter() - start
    count = max(1, round(self.sizes.seconds / taken))
    cases = {
      name: functools.partial(work, count) for name, work in works.items()
    }
    rows = []
    for row in timing.interleaved(cases, self._repeats):
      seconds = [x / (count * units) for x in row[1:4]]
      note = told(row.name, seconds[0])
      rows.append(timing.Row(row.name, *seconds, row.ratio, note))
    return rows


def main() -> int:
  """Measures and prints; gives the exit code."""
  # PyTorch needs memory too. JAX reads it when it first asks for devices.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  parser = timing.parser(__doc__)
  parser.add_argument('--parts', default=','.join(PARTS))
  parser.add_argument('--nets', default=','.join(NETS))
  parser.add_argument(
    '--budget', type=float, default=900.0, help='seconds in which cases begin'
  )
  parser.add_argument(
    '--small', action='store_true', help='a trial on any machine'
  )
  parser.add_argument('--no_torch', action='store_true')
  arguments = parser.parse_args()
  parts, nets = arguments.parts.split(','), arguments.nets.split(',')
  try:
    for name in parts:
      types.check_choice('--parts', name, PARTS)
    for name in nets:
      types.check_choice('--nets', name, NETS)
    if not arguments.small and not sharding.is_accelerated():
      raise types.UsageError(
        'JAX finds no accelerator here; --small tries everything on this CPU'
      )
  except types.UsageError as error:
    print(f'accelerator.py: {error}', file=sys.stderr)
    return error.exit_code
  torch = None if arguments.no_torch else _torch(arguments.small)
  book = Book(
    SMALL if arguments.small else FULL,
    1 if arguments.small else arguments.repeats,
    arguments.budget,
    arguments.output,
  )
  if not sharding.is_accelerated():
    print('No accelerator: this is a trial, its figures tell nothing')
  print(f'{timing.machine()}', flush=True)
  for name, step in _plan(book, torch, parts, nets):
    if book.begins(name):
      with book.surviving(name):
        step()
    _release(torch)
  book.write()
  return 0


def _plan(book: Book, torch: Any, parts: list[str], nets: list[str]):
  """Name and step of all that is wanted, the most wanted first."""
  sizes = book.sizes

  def training(name: str, batch: int):
    return f'train {name}, batch {batch}', functools.partial(
      _train, book, torch, name, batch
    )

  def profile(name: str):
    return f'profile {name}', functools.partial(_profile, book, name)

  def wanted(part: str, net: str = '') -> bool:
    return part in parts and (not net or net in nets)

  steps = [
    (wanted('peak'), ('peak', functools.partial(_peak, book, torch))),
    (wanted('train', 'vgg'), training('vgg', sizes.batch)),
    (wanted('profile', 'vgg'), profile('vgg')),
    (wanted('train', 'mnist'), training('mnist', sizes.batch)),
    (wanted('train', 'fast'), training('fast_wide', sizes.batch)),
    (wanted('profile', 'fast'), profile('fast_wide')),
    *(
      (
        wanted('score'),
        (f'score {count}', functools.partial(_score, book, count)),
      )
      for count in sizes.rows
    ),
    (
      wanted('width', 'mnist'),
      ('width', functools.partial(_widths, book)),
    ),
    (wanted('train', 'mnist'), training('mnist', sizes.small_batch)),
    (wanted('train', 'fast'), training('fast', sizes.batch)),
    (wanted('train', 'wide_resnet'), training('wide_resnet', sizes.batch)),
  ]
  return [step for is_wanted, step in steps if is_wanted]


def _torch(small: bool) -> Any:
  """PyTorch, where it is, with what makes it fast."""
  try:
    import torch
  except (ImportError, OSError) as error:
    print(f'No PyTorch: {error}')
    return None
  if not torch.cuda.is_available() and not small:
    print('PyTorch finds no GPU: it is left out')
    return None
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision('high')
  return torch


def _release(torch: Any) -> None:
  """Gives back what the last table took; ours is kept for the next parts."""
  gc.collect()
  if torch:
    torch.compiler.reset()
    torch.cuda.empty_cache()


def _device(torch: Any) -> str:
  return 'cuda' if torch.cuda.is_available() else 'cpu'


def _waiting(torch: Any, step: Callable[[], Any]) -> Work:
  """Steps of PyTorch as a work."""

  def work(count: int) -> None:
    for _ in range(count):
      step()
    if torch.cuda.is_available():
      torch.cuda.synchronize()

  return work


def _peak(book: Book, torch: Any) -> None:
  """Products of matrices, and copies; what is copied is negated."""
  sizes = book.sizes
  side, products, copied = sizes.side, sizes.products, sizes.copied

  def product() -> Work:
    a, b = (
      jax.random.normal(jax.random.key(seed), (side, side)) for seed in (0, 1)
    )
    # So that products of products stay as large as they were.
    a, b = a.astype(jnp.bfloat16), (b / side**0.5).astype(jnp.bfloat16)

    @jax.jit
    def chain(a, b):
      for _ in range(products):
        a = a @ b
      return a

    def work(count: int) -> None:
      jax.block_until_ready([chain(a, b) for _ in range(count)])

    return work

  def torch_product() -> Work:
    device = _device(torch)
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    a, b = a.bfloat16(), (b / side**0.5).bfloat16()

    def step() -> None:
      x = a
      for _ in range(products):
        x = x @ b

    return _waiting(torch, step)

  def copying() -> Work:
    x = jax.random.normal(jax.random.key(0), (copied // 4,))
    program = jax.jit(lambda x: -x, donate_argnums=0)

    def work(count: int) -> None:
      nonlocal x
      for _ in range(count):
        x = program(x)
      x.block_until_ready()

    return work

  def torch_copying() -> Work:
    x = torch.randn(copied // 4, device=_device(torch))
    y = torch.empty_like(x)
    return _waiting(torch, lambda: torch.neg(x, out=y))

  makers = {'JAX': product}
  copiers = {'JAX': copying}
  if torch:
    makers['PyTorch'] = torch_product
    copiers['PyTorch'] = torch_copying
  rows = book.measure(
    f'peak: product of {side:,} x {side:,} matrices, bfloat16',
    makers,
    lambda _, seconds: book.speed(2 * side**3 / seconds),
    products,
  )
  if rows:
    book.peak = 2 * side**3 / min(row.median for row in rows)
    print(f'peak: {book.peak / 1e12:.1f} TFLOP/s', flush=True)
  book.measure(
    f'peak: {copied / 2**20:,.0f} MiB read, and as many written',
    copiers,
    lambda _, seconds: f'{2 * copied / seconds / 1e9:8.0f} GB/s',
  )


def _train(book: Book, torch: Any, name: str, batch: int) -> None:
  """Steps of a net, by ours and by PyTorch."""
  sizes = book.sizes
  width = sizes.width or train_step.NETS[name][1]
  title = f'train: {name}, {width} wide, a step of {batch:,}'
  operations = _operations(name, width, batch)
  book.note('multiply_adds', title, operations // 2)

  def ours(dtype: str, is_stock: bool = False) -> Work:
    return _trainer(name, width, batch, dtype, sizes, is_stock)

  makers = {'ours': functools.partial(ours, 'bfloat16')}
  if torch:
    modes = {'PyTorch, compiled': 'default', 'PyTorch, eager': ''}
    if batch == sizes.small_batch and torch.cuda.is_available():
      # Steps that take less time than starting their kernels.
      modes['PyTorch, compiled, CUDA graphs'] = 'reduce-overhead'
    for case, mode in modes.items():
      makers[case] = functools.partial(
        _torch_training, torch, name, batch, mode, sizes
      )
  makers['ours, XLA pools'] = functools.partial(ours, 'bfloat16', is_stock=True)
  if name == 'vgg':
    makers['ours, float32'] = functools.partial(ours, 'float32')
  book.measure(
    title,
    makers,
    lambda _, seconds: (
      f'{batch / seconds:9,.0f} images/s {book.speed(operations / seconds)}'
    ),
    sizes.steps,
  )


@functools.cache
def _samples(name: str, count: int) -> splits.Labelled:
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (count, *train_step.NETS[name][2]), np.uint8)
  return splits.Labelled(image, rng.integers(0, 10, count, np.int32))


@functools.cache
def _operations(name: str, width: int, batch: int) -> int:
  """Of a training step: two for each multiply-add."""
  shape = train_step.NETS[name][2]
  model = train_step.build(name, width)
  step, rule = train_step.plain_step(
    model, np.zeros((1, *shape), np.uint8), 1000, _RULE
  )
  state = train.state_shapes(model, rule, shape)
  return 2 * train.multiply_adds(step, state, train.batch_shapes(shape, batch))


@functools.cache
def _trainer(
  name: str,
  width: int,
  batch: int,
  dtype: str,
  sizes: Sizes,
  is_stock: bool = False,
) -> Work:
  """Programs of some steps, on one device, as train.fit and loop.run do.

  `is_stock` for XLA's operations in place of ours, of which a GPU has pooling.
  """
  samples = _samples(name, sizes.samples)
  model = train_step.build(name, width, dtype)
  step, rule = train_step.plain_step(model, samples.image, 1000, _RULE)
  fed = feed.build(
    step,
    samples,
    batch,
    0,
    steps_per_dispatch=sizes.steps,
    data_on_device='always',
  )
  state = train.init_state(
    model, rule, samples.image[:_IMAGES_FOR_INIT], jax.random.key(0)
  )
  engine = sharding.engine(
    fed.step, shared=fed.shared, devices=jax.local_devices()[:1]
  )
  placed, order, guard = engine.place(state), fed.order(0), 'disallow'
  with layers.stock_operations() if is_stock else contextlib.nullcontext():
    engine.compile(placed, *[next(order)] * sizes.steps)

  def work(count: int) -> None:
    nonlocal placed
    with jax.transfer_guard(guard):
      for _ in range(count):
        placed, metrics = engine.step(
          placed, *itertools.islice(order, sizes.steps)
        )
    jax.block_until_ready((placed, metrics))

  try:
    work(1)
  except Exception as error:
    if 'isallowed' not in str(error):
      raise
    # To be mended, but no reason to measure nothing.
    print(f'  {name}: something moves unasked: {error}', flush=True)
    placed, guard = engine.place(state), 'allow'
  return work


@functools.cache
def _torch_net(name: str, width: int) -> Any:
  return train_step.torch_net(name, width)


def _torch_training(
  torch: Any, name: str, batch: int, mode: str, sizes: Sizes
) -> Work:
  """The same; `mode` is that of torch.compile, '' = eager."""
  device = _device(torch)
  image, label = (
    torch.from_numpy(x).to(device) for x in _samples(name, sizes.samples)
  )
  label = label.long()
  order = torch.randperm(len(label), device=device)
  made = copy.deepcopy(_torch_net(name, sizes.width)).train()
  made = made.to(device, memory_format=torch.channels_last)
  rule = torch.optim.SGD(
    made.parameters(),
    _RULE['learning_rate'],
    _RULE['momentum'],
    weight_decay=_RULE['weight_decay'],
    nesterov=True,
    fused=True,
  )

  def loss_of(image, label):
    with torch.autocast(device, torch.bfloat16):
      return train_step.torch_loss(made, train_step.standardise(image), label)

  if mode:
    loss_of = torch.compile(loss_of, dynamic=False, mode=mode)
  starts = itertools.cycle(range(0, len(label) - batch + 1, batch))

  def step() -> None:
    start = next(starts)
    rows = order[start : start + batch]
    if mode == 'reduce-overhead':
      torch.compiler.cudagraph_mark_step_begin()
    rule.zero_grad(set_to_none=True)
    loss_of(image[rows], label[rows]).backward()
    rule.step()

  once = _waiting(torch, step)
  return lambda count: once(count * sizes.steps)


def _widths(book: Book) -> None:
  """The MNIST net, wider or narrower by some channels."""
  sizes = book.sizes

  def told(case: str, seconds: float) -> str:
    operations = _operations('mnist', int(case.split()[0]), sizes.batch)
    return (
      f'{sizes.batch / seconds:9,.0f} images/s '
      f'{book.speed(operations / seconds)}'
    )

  book.measure(
    f'width: mnist, a step of {sizes.batch:,}',
    {
      f'{width} wide': functools.partial(
        *(_trainer, 'mnist', width, sizes.batch, 'bfloat16', sizes)
      )
      for width in sizes.widths
    },
    told,
    sizes.steps,
  )


def _score(book: Book, count: int) -> None:
  """Scores of N samples, on and off the device."""
  sizes = book.sizes
  features, model = scoring.made(count, sizes.classes, sizes.activation)
  vector = np.concatenate([features.logits, features.latent], axis=1)
  mav = model.mav.astype(np.float32)
  fitted = [mav, *(x.astype(np.float32) for x in model[3:6])]

  def repeated(run: Callable[[], Any]) -> Work:
    def work(count: int) -> None:
      for _ in range(count):
        run()

    return work

  def in_blocks_of(rows: int) -> None:
    with mock.patch.object(scorer, '_rows', lambda *_: rows):
      scorer.score(features, model)

  def on_device() -> Work:
    program = jax.jit(
      lambda logits, latent: scorer.traced(
        logits, latent, None, model, method='crosr', alpha=10
      )
    )
    given = jax.device_put((features.logits, features.latent))
    expected = scorer.score(features, model).probability
    away = np.abs(np.asarray(program(*given)[0]) - expected).max()
    if not away < 1e-3:
      raise AssertionError(f'probabilities differ by {away:.2g}')
    return repeated(lambda: jax.block_until_ready(program(*given)))

  makers = {
    'ours': lambda: repeated(lambda: scorer.score(features, model)),
    'ours, 128 rows at a time': lambda: repeated(lambda: in_blocks_of(128)),
    'ours, on the device': on_device,
    'bare matmul': lambda: repeated(
      scoring.bare_matmul(vector, jax.device_put(mav))
    ),
  }
  if count <= 10_000:
    # It takes as many times as long for more.
    makers['NumPy, all in float32'] = lambda: repeated(
      lambda: scoring.in_numpy(features.logits, vector, *fitted)
    )
  book.measure(
    f'score: N = {count:,}, K = {sizes.classes:,}, D = {sizes.activation:,}',
    makers,
    lambda _, seconds: f'{count / seconds:12,.0f} samples/s',
  )


def _profile(book: Book, name: str) -> None:
  """Of two programs of steps."""
  sizes = book.sizes
  width = sizes.width or train_step.NETS[name][1]
  title = f'profile: {name}, {width} wide, batch {sizes.batch:,}'
  work = _trainer(name, width, sizes.batch, 'bfloat16', sizes)
  work(1)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      work(2)
    profile = kernels.read(folder)
  if profile is None:
    print(f'\n{title}: no GPU in the trace', flush=True)
    return
  kernels.show(title, profile, 2 * sizes.steps)
  book.note(
    'profiles',
    title,
    profile._asdict()
    | {
      'steps': 2 * sizes.steps,
      'kernels': [kernel._asdict() for kernel in profile.kernels[:40]],
    },
  )
  book.write()


if __name__ == '__main__':
  sys.exit(main())
