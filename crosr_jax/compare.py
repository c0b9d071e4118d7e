"""Trains and scores every system of the paper's table, side by side.

  python -m crosr_jax.compare --config=configs/mnist.py

Each system is a run of its own below --workdir, with a report of its own. Run
again, the comparison goes on where it stopped: runs that are finished with the
same config and the same version are not touched; delete the report.json of one
to have it scored again. Any field is overridden by --config.<field>=VALUE. The
page is <workdir>/compare.html.
"""

from absl import flags
from ml_collections import config_flags

from crosr_jax import bucket, cli, types

_CONFIG = cli.define_config()
_SYSTEMS = flags.DEFINE_string(
  'systems',
  '',
  'supervised, laddernet, dhrnet, gan and dhrnet_w0 (DHRNet with '
  'reconstruction weight 0), separated by commas; default all',
)
_SEEDS = flags.DEFINE_string('seeds', '0', 'of training, separated by commas')
_SPLITS = flags.DEFINE_string(
  'splits',
  '',
  'positions of class splits, separated by commas, for configs with '
  'data.splits; default all',
)
_ONLY_REPORT = flags.DEFINE_bool(
  'only_report',
  False,
  'train and score nothing, only write the tables of the finished runs',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'folder of the comparison and of all its runs; default '
  'runs/<file>[-<variant>]',
)
_DATA_DIR = cli.define_data_dir()


def main() -> None:
  """Compares."""
  # Flags are looked at before JAX is loaded: a typo is told at once.
  name = cli.config_name()
  root = cli.folder('workdir', _WORKDIR.value or f'runs/{name}', bucket.workdir)
  data_dir = cli.path_of_data(_DATA_DIR)
  seeds = cli.numbers('seeds', _SEEDS.value)
  splits = cli.numbers('splits', _SPLITS.value)
  if not seeds:
    raise types.UsageError('--seeds= names no seed, for example --seeds=0,1,2')
  from crosr_jax import comparison

  config = _CONFIG.value
  systems = cli.words('systems', _SYSTEMS.value)
  comparison.check_overrides(
    list(config_flags.get_override_values(flags.FLAGS['config'])), systems
  )
  runs = comparison.plan(
    config,
    name,
    root,
    systems=systems,
    seeds=seeds,
    splits=splits,
  )
  diverged = [] if _ONLY_REPORT.value else comparison.execute(runs, data_dir)
  result = comparison.report(runs, name, root, pictures=config.report.pictures)
  print(_summary(result))
  print(f'Report: {root / "compare.html"}')
  if diverged:
    raise types.DivergedError('; '.join(diverged))


def _summary(result: dict) -> str:
  """The first two readings of every row, the published figure in brackets."""
  from crosr_jax.report import comparison

  return '\n\n'.join(
    comparison.plain_text(result, key) for key in result['readings'][:2]
  )


if __name__ == '__main__':
  cli.run(main, resumes=True)
