"""Trains a net, fits its open-set model, scores and reports, from one config.

  python -m crosr_jax.main --config=configs/digits.py

Run again, it goes on where it stopped, or only fits, scores and reports again
with other `evaluation`, `weibull`, `scorer` and `report` fields. Any field is
overridden by --config.<field>=VALUE. The report is <workdir>/report.html.

  python -m crosr_jax.main --config=configs/imagenet1k.py --dry_run --devices=8

says what a run would take, and does nothing.
"""

import functools

from absl import flags

from crosr_jax import bucket, cli, distributed, types

_MOST_DEVICES = 1024
_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'folder of the run, for checkpoints and report, gs://bucket/path too; '
  'default runs/<file>[-<variant>][-split<k>]',
)
_DATA_DIR = cli.define_data_dir()
_DRY_RUN = flags.DEFINE_boolean(
  'dry_run',
  False,
  'print the shape, parameters and operations of each part of the net, and the '
  'operations and memory of a training step as it is compiled for the devices '
  'that are there; nothing is trained, no image is read (a data set that is '
  'not prepared is no hindrance), nothing is written',
)
_DEVICES = flags.DEFINE_integer(
  'devices',
  0,
  'with --dry_run: so many CPU devices in place of those that are there',
)
_PROCESSES = cli.define_processes()


def main() -> None:
  """Runs the config."""
  name = cli.run_name(_CONFIG.value)
  run_folder = _WORKDIR.value or f'runs/{name}'
  workdir = None
  if not bucket.is_url(run_folder):
    workdir = cli.folder('workdir', run_folder, bucket.workdir)
  data_dir = cli.path_of_data(_DATA_DIR)
  processes = cli.processes(_PROCESSES)
  if _DEVICES.present and not _DRY_RUN.value:
    raise types.UsageError(
      f'--devices={_DEVICES.value} is for --dry_run; a run takes the devices '
      'that are there'
    )
  # Flags are looked at before JAX is loaded: a typo is told at once.
  from crosr_jax import pipeline, settings, sharding
  from crosr_jax.report import terminal

  if _DRY_RUN.value:
    if _DEVICES.present:
      _pretend(_DEVICES.value)
    print(terminal.plan(name, pipeline.plan(_CONFIG.value)))
    return
  # Whose number a process is starts JAX, which reads that but once.
  settings.set_deterministic(_CONFIG.value)
  with distributed.joined(processes):
    if workdir is None:
      # One process works in it.
      opens = functools.partial(bucket.workdir, writes=sharding.is_writer())
      workdir = cli.folder('workdir', run_folder, opens)
    result = pipeline.run(_CONFIG.value, name, workdir, data_dir)
  if not result:
    # Of several processes one tells.
    return
  print(cli.in_lines(terminal.summary(result)))
  for found in result['skipped']:
    print(cli.in_line(f'left out: {found["path"]}: {found["reason"]}'))
  for note in result['notes']:
    print(cli.in_line(f'note: {note}'))
  print(f'Report: {workdir / "report.html"}')


def _pretend(count: int) -> None:
  from crosr_jax import sharding

  if not 1 <= count <= _MOST_DEVICES:
    raise types.UsageError(f'--devices={count}: must be in 1..{_MOST_DEVICES}')
  sharding.pretend(count)


if __name__ == '__main__':
  cli.run(main, resumes=True)
