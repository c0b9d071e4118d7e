"""Whether our convolution trains as XLA's does: losses, step by step.

  python -m crosr_jax.prepare mnist
  python benchmarks/same_training.py --steps=2000 --output=same_training.json

The MNIST net at a width that takes our convolution, trained with each in turn
from the same parameters on the same batches with the same dropout. Rounding is
different; a ReLU or a pool that was close to a tie then goes the other way, and
a training makes small differences grow. How fast, whatever they come from, the
control tells: XLA's convolution with pixels that are off by a millionth.
"""

import contextlib
import logging
import os
import pathlib
import sys

import numpy as np
import timing
import tqdm
import train_step

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from configs import mnist
from crosr_jax import data, features, judge, models
from crosr_jax.data import batches, images
from crosr_jax.models import layers

# What a convolution of ours is off by, see models/convolution.py.
_NOISE = 1e-6
# Where windows of steps end.
WINDOWS = (1, 10, 100, 500, 1_000, 2_000)


def main() -> None:
  """Trains and prints."""
  parser = timing.parser(__doc__, rounds=False)
  parser.add_argument('--steps', type=int, default=2_000)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument(
    '--data_dir', default=os.environ.get('TFDS_DATA_DIR', ''),
    help='of prepared data; default $TFDS_DATA_DIR or ~/tensorflow_datasets',
  )  # fmt: skip
  arguments = parser.parse_args()
  logging.disable(logging.INFO)
  config = mnist.get_config('upright')
  config.evaluation.unknown_sets = ()
  known = data.load(
    seed=0,
    data_dir=pathlib.Path(
      arguments.data_dir or '~/tensorflow_datasets'
    ).expanduser(),
    **config.data,
    **config.evaluation,
  )
  found = losses(
    known.train, known.select, arguments.steps, arguments.width, arguments.batch
  )
  print(table(found, arguments.steps))
  timing.write(
    arguments.output,
    {},
    losses={name: list(row) for name, (row, _) in found.items()},
    select_accuracy={name: accuracy for name, (_, accuracy) in found.items()},
  )


def losses(samples, select, steps, width, batch):
  """By name: loss of each step, and accuracy on held-out samples at the end."""
  mean, deviation = models.pixel_statistics(
    images.for_statistics(samples.image)
  )
  net = models.build(
    int(samples.label.max()) + 1,
    mean,
    deviation,
    backbone='mnist_cnn',
    width=width,
    dropout=0.25,
    head_dropout=0.5,
  )
  fields = train_step.RULE | {
    'learning_rate': 0.03,
    'schedule': 'one_cycle',
    'warmup_share': 0.3,
    'clip_norm': 5.0,
  }
  engines, placed = {}, {}
  for name in ('XLA', 'ours', 'control'):
    engines[name], state = train_step.training(
      net, samples.image[:1], steps, fields
    )
    placed[name] = engines[name].place(state)
  taken = {name: [] for name in engines}
  order = batches.training(samples, batch, 0, 0)
  generator = np.random.default_rng(0)
  for _ in tqdm.trange(steps):
    rows = next(order)
    for name, engine in engines.items():
      given = rows
      if name == 'control':
        given_batch, index = rows
        noise = 1 + _NOISE * generator.normal(size=given_batch.image.shape)
        noisy = (given_batch.image * noise).astype(np.float32)
        given = given_batch._replace(image=noisy), index
      # It is the first step that compiles.
      stock = layers.stock_operations()
      with contextlib.nullcontext() if name == 'ours' else stock:
        placed[name], metrics = engine.step(placed[name], given)
      taken[name].append(np.asarray(metrics['loss']).item())
  result = {}
  for name, engine in engines.items():
    variables = engine.fetch(placed[name]).variables
    seen = features.extract(net, variables, select.image, select.label)
    accuracy = float(np.mean(judge.closed(seen) == seen.label))
    result[name] = np.array(taken[name]), accuracy
  return result


def table(found, steps) -> str:
  """How far losses are from XLA's, in windows of steps."""
  lines = [
    f'{"steps":>12} {"loss":>8} {"ours":>18} {"control":>18}',
    f'{"":>12} {"":>8} {"median":>9}{"most":>9} {"median":>9}{"most":>9}',
  ]
  stock = found['XLA'][0]
  for begin, end in zip((0, *WINDOWS), (*WINDOWS, steps), strict=False):
    if begin >= min(end, steps):
      continue
    part = slice(begin, min(end, steps))
    line = f'{begin + 1:>5} - {part.stop:>4} {stock[part].mean():8.4f}'
    for name in ('ours', 'control'):
      away = np.abs(found[name][0][part] - stock[part])
      line += f' {np.median(away):9.1e}{away.max():9.1e}'
    lines.append(line)
  accuracy = ', '.join(f'{name} {found[name][1]:.4f}' for name in found)
  lines.append(f'accuracy on held-out samples: {accuracy}')
  return '\n'.join(lines)


if __name__ == '__main__':
  main()
