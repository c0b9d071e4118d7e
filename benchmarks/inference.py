"""Net and scorer as one program against PyTorch's net and a NumPy scorer.

  python benchmarks/inference.py --nets=mnist,fast

uint8 images in, probabilities and unknown scores out, batch 1, 64 and 1,024.
Ours is what `export` puts into a file, before it is a file, compiled as the
project compiles its nets. PyTorch runs the same net, eager and compiled,
inference mode, and CROSR's formula in NumPy on what it gives, with the same
Weibulls.
"""

import copy
import os
import pathlib
import sys

import jax
import numpy as np
import timing
import train_step

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from crosr_jax import exported, features, scorer, types, weibull

BATCHES = (1, 64, 1024)


def main() -> None:
  """Measures and prints."""
  parser = timing.parser(__doc__)
  parser.add_argument(
    '--nets', type=timing.names(train_step.NETS), default='mnist,fast'
  )
  arguments = parser.parse_args()
  tables = {}
  for name in arguments.nets:
    model = _fitted(name)
    shape = train_step.NETS[name][2]
    for batch in BATCHES:
      image = np.random.default_rng(1).integers(
        0, 256, (batch, *shape), np.uint8
      )
      title = f'{name}, batch {batch}'
      cases = _cases(name, model, image)
      _check(cases)
      rows = timing.interleaved(cases, arguments.repeats)
      rows = [
        row._replace(note=f'{batch / row.median:8.0f} images/s') for row in rows
      ]
      timing.show(title, rows)
      tables[title] = rows
  timing.write(arguments.output, tables)


def _fitted(name: str) -> types.WeibullModel:
  """Weibulls of features that look like the net's own, as published."""
  net, variables = train_step.net(name)
  image = np.random.default_rng(0).integers(
    0, 256, (400, *train_step.NETS[name][2]), np.uint8
  )
  found = features.extract(net, variables, image, np.zeros(400, np.int32))
  # Nothing is trained here: logits as a trained net would have them.
  label = np.arange(400, dtype=np.int32) % 10
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(400, 10)) + 9 * np.eye(10)[label]
  latent = found.latent + rng.normal(size=found.latent.shape) * 0.01
  return weibull.fit(
    types.Features(logits.astype('f4'), latent.astype('f4'), label),
    vector='joint',
    tail_size=20,
  )


def _cases(name, model, image):
  net, variables = train_step.net(name)

  def run(image):
    logits, latent, *_ = features.traced(net, variables, image)
    return scorer.traced(logits, latent, None, model, method='crosr', alpha=10)

  options = exported.compiler_options(jax.default_backend())
  program = jax.jit(run, compiler_options=options)
  cases = {'ours': lambda: [np.asarray(x) for x in program(image)]}
  try:
    import torch
  except ImportError:
    return cases
  torch.set_num_threads(os.cpu_count())
  made = train_step.torch_net(name).eval()
  # Of the shapes before, of which it keeps eight at most.
  torch._dynamo.reset()
  fitted = [x.astype(np.float32) for x in model[2:6]]
  for layout in (torch.contiguous_format, torch.channels_last):
    title = f'PyTorch, {str(layout).removeprefix("torch.").split("_f")[0]}'
    # Its weights too lie as the layout has it.
    laid = copy.deepcopy(made).to(memory_format=layout)
    cases[title] = _torch(torch, laid, image, layout, fitted)
    compiled = torch.compile(laid, dynamic=False)
    cases[f'{title}, compiled'] = _torch(torch, compiled, image, layout, fitted)
  return cases


def _torch(torch, made, image, layout, fitted):
  mav, shape, loc, scale = fitted

  def run():
    with torch.inference_mode():
      x = train_step.standardise(torch.from_numpy(image))
      logits, latent, _ = made(x.contiguous(memory_format=layout))
    logits, latent = logits.numpy(), latent.numpy()
    a = np.concatenate([logits, latent], axis=1)
    distance = np.linalg.norm(a[:, None] - mav[None], axis=2)
    t = np.maximum((distance - loc) / scale, 0) ** shape
    w = -np.expm1(-t)
    closed = np.exp(logits - logits.max(axis=1, keepdims=True))
    closed /= closed.sum(axis=1, keepdims=True)
    unknown = (closed * w).sum(axis=1, keepdims=True)
    known = closed * (1 - w)
    with np.errstate(divide='ignore'):
      score = np.log(unknown[:, 0]) - np.log(known.sum(axis=1))
    return np.concatenate([known, unknown], axis=1), score

  return run


def _check(cases) -> None:
  """All give the same probabilities, or it is not one subject."""
  expected = cases['ours']()[0]
  for name, case in cases.items():
    away = np.abs(case()[0] - expected).max()
    if not away < 1e-3:
      raise AssertionError(f'{name}: probabilities differ by {away:.2g}')


if __name__ == '__main__':
  main()
