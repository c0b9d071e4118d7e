"""Adds a class to a finished run, from a few images, without training.

  python -m crosr_jax.add_class --workdir=runs/photos --name=cup cups/

Arguments are image files, folders, patterns and '-', as for predict; what
cannot be read is named and left out. Ten different images are the least, fifty
are better. The net stays as it is: the class gets a mean and a tail, and is
named where the known classes reject an image that lies inside its tail. What
was answered with a known class stays as it was. predict, demo and export know
the class from then on; the report and evaluate tell of the trained classes
alone. To take it back, delete added.npz in the workdir.
"""

import logging

from absl import flags

from crosr_jax import cli, files, types

_WORKDIR = flags.DEFINE_string('workdir', '', 'folder of a finished run')
_NAME = flags.DEFINE_string('name', '', 'of the new class')


def main(arguments: list[str]) -> None:
  """Adds it."""
  workdir = cli.finished_run(_WORKDIR.value, writes=True)
  if not _NAME.value:
    raise types.UsageError('--name is needed, that of the new class')
  from crosr_jax.data import images, named

  paths = named.paths(arguments)
  from crosr_jax import openset, saved

  # A folder that is none of a run is left as it is.
  saved.load_info(workdir)
  # Two at a time would each keep a class of their own alone.
  with files.held(workdir):
    model = openset.load(workdir)
    model.check_name(_NAME.value)
    image, faults = images.read_all(paths, model.image_shape)
    for i, fault in faults.items():
      logging.warning('%s is left out: %s', paths[i], fault)
    found = model.features(image)
    model = model.with_class(_NAME.value, found)
    assert model.added
    saved.save_added(workdir, model.added, model.fitted_sha256)
  answer = model.score(found).prediction
  new = len(model.class_names) - 1
  called_so = (answer == new).sum()
  called_other = ((answer != types.UNKNOWN) & (answer != new)).sum()
  name = cli.in_line(_NAME.value)
  print(
    f'{name}: added, from {len(image)} images. Of these, {called_so} are '
    f'called so, {called_other} are called a class that was there before'
  )
  trained = found.logits.shape[1]
  called_trained = (answer != types.UNKNOWN) & (answer < trained)
  if 2 * called_trained.sum() > len(image):
    logging.warning(
      'the net takes most of these images for classes it knows; to tell them '
      'apart it must be trained with the new class'
    )


if __name__ == '__main__':
  cli.run(main, takes_arguments=True)
