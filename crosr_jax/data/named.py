"""The image files that the arguments of a command mean."""

import glob
import logging
import os
import pathlib
import sys
from collections.abc import Sequence

from crosr_jax import types
from crosr_jax.data import folder, images


def paths(arguments: Sequence[str]) -> list[str]:
  """Files that the arguments mean, in their order.

  Raises:
    UsageError: where there is no argument, or one that fits no image.
  """
  if not arguments:
    raise types.UsageError(
      "name images, folders or patterns, or '-' for a list of them on standard "
      'input'
    )
  found: list[str] = []
  for argument in arguments:
    if argument == '-':
      # Names of files are bytes; what is no text is a name too.
      for line in sys.stdin.buffer:
        if name := os.fsdecode(line).rstrip('\r\n'):
          found += _meant(name)
    else:
      found += _meant(argument)
  return found


def _meant(argument: str) -> list[str]:
  if not argument:
    # Of a shell's variable that is not set, and not the folder that one is in.
    raise types.UsageError(
      "'' names no image, folder or pattern; the folder that you are in is '.'"
    )
  # A file may be called ~x; and the home of nobody is a file that is missing.
  is_there = os.path.lexists(argument)
  path = pathlib.Path(argument if is_there else os.path.expanduser(argument))
  # Unlike pathlib's, these are False for what cannot even be looked at.
  if os.path.isdir(path):
    chosen = _below(path)
    if not chosen:
      raise types.UsageError(
        f'{argument}: the folder holds no image; looked for '
        f'{", ".join(images.SUFFIXES)}'
      )
    return chosen
  if not os.path.lexists(path) and glob.has_magic(argument):
    chosen = []
    for found in sorted(glob.glob(str(path), recursive=True)):
      # A folder without an image is no mistake here.
      is_folder = os.path.isdir(found)
      chosen += _below(pathlib.Path(found)) if is_folder else [found]
    if not chosen:
      raise types.UsageError(f'{argument}: the pattern fits no file')
    return chosen
  # One that is not there has a row that says so.
  return [str(path)]


def _below(path: pathlib.Path) -> list[str]:
  """The images below a folder."""
  there = list(folder.below(path))
  # A folder that may not be read is named, to have a row that says so.
  chosen = [x for x in there if images.is_image(x) or os.path.isdir(x)]
  if others := len(there) - len(chosen):
    logging.info('%s: %d files that are no images are left out', path, others)
  return chosen
