"""Trains a net, fits its open-set model, scores and reports, from one config.

  python -m crosr_jax.main --config=configs/digits.py

Run again, it goes on where it stopped, or only fits, scores and reports again
with other `evaluation`, `weibull`, `scorer` and `report` fields. Any field is
overridden by --config.<field>=VALUE. The report is <workdir>/report.html.
"""

from absl import flags

from crosr_jax import bucket, cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'folder of the run, for checkpoints and report, gs://bucket/path too; '
  'default runs/<file>[-<variant>][-split<k>]',
)
_DATA_DIR = cli.define_data_dir()


def main() -> None:
  """Runs the config."""
  # Flags are looked at before JAX is loaded: a typo is told at once.
  from crosr_jax import pipeline
  from crosr_jax.report import terminal

  name = cli.run_name(_CONFIG.value)
  workdir = cli.folder(
    'workdir', _WORKDIR.value or f'runs/{name}', bucket.workdir
  )
  result = pipeline.run(
    _CONFIG.value, name, workdir, cli.path_of_data(_DATA_DIR)
  )
  print(terminal.summary(result))
  for found in result['skipped']:
    print(f'left out: {found["path"]}: {found["reason"]}')
  print(f'Report: {workdir / "report.html"}')


if __name__ == '__main__':
  cli.run(main)
