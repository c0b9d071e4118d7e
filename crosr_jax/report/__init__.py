"""The report of a run: report.json, report.md, report.html and pictures.

Everything heavy is imported when a report is written, not before.
"""

import json
import math
import pathlib
from typing import Any

import numpy as np

from crosr_jax import files, types
from crosr_jax.report import material as material_lib

Material = material_lib.Material
Generated = material_lib.Generated


def write(
  workdir: pathlib.Path,
  report: dict,
  material: Material | None,
  *,
  map_samples: int = 1000,
  seed: int = 0,
) -> None:
  """Writes report.json, report.md, report.html and figures/*.png.

  Each file is written aside, then renamed. The figures come first, in
  report.json: should a picture fail, they are there. Pictures of a former run
  that this one does not draw are removed, so that none stands beside figures
  it does not belong to.

  Args:
    workdir: folder to write into.
    report: every figure of the run, plain Python or NumPy; None where there
      is none.
    material: what the pictures are drawn from; None: no pictures.
    map_samples: points of the t-SNE map, at most.
    seed: of the choice of samples and of the map.

  Raises:
    UserError: where a figure is not finite.
  """
  from crosr_jax.report import markdown, page

  workdir = pathlib.Path(workdir)
  report = plain(report)
  # Last of all comes a page of these very figures: one that is there says that
  # the report is whole.
  (workdir / 'report.html').unlink(missing_ok=True)
  checked = {**report, 'sha256': files.digest(report)}
  text = json.dumps(checked, indent=2, allow_nan=False)
  files.write_text(workdir / 'report.json', text + '\n')
  drawn = []
  if material is not None:
    # matplotlib takes as long to import as JAX does.
    from crosr_jax.report import pictures

    drawn = pictures.draw(
      material,
      map_samples=map_samples,
      seed=seed,
    )
  for picture in drawn:
    files.write_bytes(_figure(workdir, picture.name), picture.png)
  for name in set(material_lib.NAMES) - {picture.name for picture in drawn}:
    _figure(workdir, name).unlink(missing_ok=True)
  files.write_text(workdir / 'report.md', markdown.render(report, drawn))
  files.write_text(workdir / 'report.html', page.render(report, drawn))


def plain(value: Any, where: str = '') -> Any:
  """The same in types of JSON; keys keep their order.

  Raises:
    UserError: naming a number that is not finite, which JSON cannot hold.
  """
  if isinstance(value, dict):
    return {
      str(k): plain(v, f'{where}.{k}'.strip('.')) for k, v in value.items()
    }
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [plain(item, f'{where}[{i}]') for i, item in enumerate(value)]
  if isinstance(value, float) and not math.isfinite(value):
    raise types.UserError(
      f'{where} of the report is {value}; look at the features it came from'
    )
  return value


def _figure(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return workdir / 'figures' / f'{name}.png'
