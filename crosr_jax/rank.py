"""Ranks recipes on known data alone: what stands in for unknowns is known too.

  python -m crosr_jax.rank --config=configs/mnist.py

Some known classes are kept back, a net is trained on the others, and every
recipe is scored on telling its held-out known samples from the classes kept
back and from images made of known ones. No test sample is ever scored and no
unknown read. The ranking is <workdir>/ranking.md. Fields of data, model and
train are overridden by --config.<field>=VALUE: try other trainings so.
"""

from absl import flags
from ml_collections import config_flags

from crosr_jax import cli, types

_CONFIG = cli.define_config()
_HOLD_OUT = flags.DEFINE_integer(
  'hold_out', 3, 'known classes that are kept back in each fold'
)
_FOLDS = flags.DEFINE_integer(
  'folds', 1, 'different sets of classes that are kept back, one training each'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'folder of the nets and the ranking; default runs/<file>[-<variant>]-rank',
)
_DATA_DIR = cli.define_data_dir()

# Fields that a ranking does not read, and why.
_UNREAD = {
  'weibull.tail': 'every recipe has tails of its own',
  'scorer.': 'all that it decides is ranked for several shares',
  'evaluation.': 'no unknown is read',
  'report.': 'it has none of that kind',
}


def main() -> None:
  """Ranks."""
  # Flags are looked at before JAX is loaded: a typo is told at once.
  if _FOLDS.value < 1:
    raise types.UsageError(f'--folds={_FOLDS.value}: at least 1 is needed')
  for field in config_flags.get_override_values(flags.FLAGS['config']):
    for start, why in _UNREAD.items():
      if field.startswith(start):
        raise types.UsageError(
          f'--config.{field} has no say in a ranking: {why}; leave it out'
        )
  name = cli.config_name()
  workdir = cli.made_folder('workdir', _WORKDIR.value or f'runs/{name}-rank')
  from crosr_jax import ranking

  result = ranking.run(
    _CONFIG.value,
    workdir,
    cli.path_of_data(_DATA_DIR),
    hold_out=_HOLD_OUT.value,
    folds=_FOLDS.value,
  )
  print(ranking.table(result))
  print(f'Ranking: {workdir / "ranking.md"}')


if __name__ == '__main__':
  cli.run(main, resumes=True)
