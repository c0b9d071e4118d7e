"""Figures as plain text, for whoever looks at a terminal."""

from typing import Any

from crosr_jax.report import words


def summary(result: dict) -> str:
  """The figures people ask for first, as a table for each unknown set."""
  lines = [f'Closed-set accuracy {result["closed_set_accuracy"]:.3f}']
  for name, row in result['unknown'].items():
    lines.append(
      f'\n{name}: {row["n_known"]} known, {row["n_unknown"]} unknown\n'
      f'{"":17}{"macro F1":>10}{"AUROC":>10}{"FPR95":>10}{"OSCR":>10}'
    )
    for method, found in row.items():
      if isinstance(found, dict) and 'auroc' in found:
        keys = ('macro_f1', 'auroc', 'fpr95', 'oscr')
        cells = ''.join(f'{_cell(found[key]):>10}' for key in keys)
        lines.append(f'{method:17}{cells}')
  return '\n'.join(lines)


def plan(name: str, found: Any) -> str:
  """What a run would take, a pipeline.Plan."""
  shape, step = words.size(found.image_shape), found.step
  lines = [
    f'{name}: {found.num_classes:,} known classes, images of {shape}, on '
    f'{found.device}',
    f'\n{"part":12}{"output":>18}{"parameters":>14}{"multiply-adds":>16}',
  ]
  for row in found.parts:
    lines.append(
      f'{row.name:12}{words.size(row.shape):>18}{row.parameters:>14,}'
      f'{words.short(row.multiply_adds):>16}'
    )
  forward = sum(row.multiply_adds for row in found.parts)
  lines.append(
    f'{"all":12}{"":18}{step.parameters:>14,}{words.short(forward):>16}'
  )
  total = step.state + step.batch + step.working + step.program
  lines += [
    'Multiply-adds of one image in evaluation, by definition: convolutions and '
    'matrix\nproducts, whatever way a device computes them.',
    f'\nA step of {found.batch_size:,} images, on each device:',
    f'  {words.short(step.multiply_adds)} multiply-adds, gradients and update '
    'among them, counted likewise',
    f'  {words.memory(total)} of memory: parameters and what goes with them '
    f'{words.memory(step.state)},\n  its share of the batch '
    f'{words.memory(step.batch)}, while it computes '
    f'{words.memory(step.working)}, program {words.memory(step.program)};\n'
    f'  as XLA compiled the step for {found.device}, in {step.seconds:.0f} s. '
    'Another kind of\n  device needs other memory.',
    '\nA dry run: nothing was trained, read or written.',
  ]
  return '\n'.join(lines)


def _cell(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'
