"""Trains a net, fits its open-set model, scores and reports, from one config.

  python -m crosr_jax.main --config=configs/digits.py

Run again, it goes on where it stopped, or only fits, scores and reports again
with other `evaluation`, `weibull`, `scorer` and `report` fields. Any field is
overridden by --config.<field>=VALUE. The report is <workdir>/report.html.
"""

from absl import flags

from crosr_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'folder of the run, for checkpoints and report; default '
  'runs/<file>[-<variant>][-split<k>]',
)
_DATA_DIR = cli.define_data_dir()


def main() -> None:
  """Runs the config."""
  # Flags are looked at before JAX is loaded: a typo is told at once.
  from crosr_jax import pipeline

  name = cli.run_name(_CONFIG.value)
  workdir = cli.folder('workdir', _WORKDIR.value or f'runs/{name}')
  result = pipeline.run(
    _CONFIG.value, name, workdir, cli.path_of_data(_DATA_DIR)
  )
  print(_summary(result))
  print(f'Report: {workdir / "report.html"}')


def _summary(result: dict) -> str:
  """The figures people ask for first, as a table."""
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


def _cell(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'


if __name__ == '__main__':
  cli.run(main)
