"""A fitted model on disk, beside the checkpoints of its training.

Layout of a workdir, for whoever uses the model:
  weights.npz    variables of the net, by their path
  fitted.npz     class means and Weibulls of every method; the unknown scores of
                 the samples held out for thresholds
  features.npz   features of every part, unless report.features is off
  added.npz      classes that were added since, if any; added-<digest>.npz, to
                 another fit, with which they come back
  model.json     all else that an answer needs, and all digests
Nothing that is read can run code, and files are read only if they belong
together: model.json is written last.
"""

import hashlib
import io
import json
import logging
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from crosr_jax import bucket, extension, files, types, vectors

FORMAT = 4
_AGAIN = 'run the main job again in this workdir, which trains nothing anew'


class Saved(NamedTuple):
  """What an answer needs."""

  info: dict[str, Any]  # model.json
  models: dict[str, types.WeibullModel]  # by method
  held_out: np.ndarray  # [n] float32, unknown scores of the calibrate part
  variables: dict[str, Any]  # of the net, evaluation mode


def save(
  workdir: pathlib.Path,
  saved: Saved,
  features: Mapping[str, types.Features] | None = None,
) -> None:
  """Writes all of it; `load` and `load_features` give it back.

  Args:
    workdir: where to.
    saved: its `info` is anything that JSON can hold.
    features: by part; None = no features.npz, and an old one is removed.
  """
  arrays = _by_field(saved.models) | {'held_out': saved.held_out}
  paths = traverse_util.flatten_dict(dict(saved.variables), sep='/')
  digests = {
    'weights_sha256': _write(workdir / 'weights.npz', paths),
    'fitted_sha256': _write(workdir / 'fitted.npz', arrays),
  }
  path = workdir / 'features.npz'
  if features is None:
    path.unlink(missing_ok=True)
  else:
    digests['features_sha256'] = _write(path, _by_field(features))
  added, fit = workdir / 'added.npz', digests['fitted_sha256']
  of = _read_added(added)[0] if added.exists() else fit
  if of != fit:
    old = _kept_aside(workdir, of)
    logging.warning(
      '%s belongs to what was fitted before and is now %s; add its classes '
      'again, or fit as before',
      *(added, old.name),
    )
    added.replace(old)
  kept = _kept_aside(workdir, fit)
  if kept.exists() and not added.exists() and _read_added(kept)[0] == fit:
    logging.info('%s is of this fit: its classes are known again', kept)
    kept.replace(added)
  info = {**saved.info, 'format': FORMAT, **digests}
  info['sha256'] = files.digest(info)
  files.write_text(
    workdir / 'model.json', json.dumps(info, indent=2, allow_nan=False)
  )
  bucket.put(workdir)


def load(workdir: pathlib.Path) -> Saved:
  """What `save` was given.

  Raises:
    UserError: where a file is missing, damaged, of another version, or does not
      belong to the others.
  """
  info = load_info(workdir)
  arrays = _read(workdir, 'fitted.npz', info)
  held_out = arrays.pop('held_out')
  weights = _read(workdir, 'weights.npz', info)
  try:
    models = {name: _model(fields) for name, fields in _by_name(arrays).items()}
  except (KeyError, TypeError):
    # It is whole, by its digest.
    raise types.UserError(
      f'{workdir / "fitted.npz"} was written by another version of crosr_jax; '
      f'{_AGAIN}'
    ) from None
  variables = traverse_util.unflatten_dict(weights, sep='/')
  return Saved(info, models, held_out, {'batch_stats': {}, **variables})


def check_output(path: pathlib.Path, workdir: pathlib.Path) -> None:
  """Raises a UsageError where a file to be written is one of the run's own."""
  own = [
    *(f'{x}.npz' for x in ('weights', 'fitted', 'features', 'added')),
    *('model.json', 'config.json', 'images.sha256', 'run.log', 'run.lock'),
    *(f'report.{x}' for x in ('html', 'md', 'json')),
    *('checkpoints', 'damaged', 'digests', 'members', 'counterfactual'),
    *('figures', 'tensorboard', 'diagnosis.png'),
  ]
  target, root = files.real(path), files.real(workdir)
  if target.is_relative_to(root) and target.relative_to(root).parts[:1] in [
    (name,) for name in own
  ]:
    raise types.UsageError(f"{path} is the run's own; name another file")


def image_folders(info: Mapping[str, Any]) -> tuple[dict[str, str], bool]:
  """Folders of known images that a run was made of, by field, if any.

  Those that are there, with a sub-folder of a class; of others it is said that
  they are not. And whether every class in them was known.

  Args:
    info: of `load_info`.
  """
  # A run of before tells of none.
  of_run = info.get('known_images', {})
  found = {}
  for field, folder in of_run.get('folders', {}).items():
    if any(os.path.isdir(f'{folder}/{x}') for x in info['class_names']):
      found[field] = folder
    else:
      logging.warning(
        '%s=%s is not there: whether images of it come as unknown cannot be '
        'looked at',
        *(field, folder),
      )
  return found, of_run.get('is_all_known', True)


def load_info(workdir: pathlib.Path) -> dict[str, Any]:
  """model.json.

  Raises:
    UserError: where it is missing, damaged, or of another version.
  """
  path = workdir / 'model.json'
  if not workdir.is_dir():
    raise types.UsageError(f'{workdir} is no folder; name that of a run')
  try:
    info = dict(json.loads(path.read_text()))
  except FileNotFoundError:
    raise types.UserError(
      f'{bucket.named(path)} is missing: no finished run; run the main job in '
      'this workdir'
    ) from None
  except (RecursionError, TypeError, ValueError):
    raise types.UserError(f'{path} is damaged; {_AGAIN}') from None
  if info.get('format') != FORMAT:
    raise types.UserError(
      f'{path} is of format {info.get("format")}, this version of crosr_jax '
      f'reads {FORMAT}; {_AGAIN}'
    )
  if info.pop('sha256', None) != files.digest(info):
    raise types.UserError(f'{path} is damaged; {_AGAIN}')
  return info


def save_added(
  workdir: pathlib.Path, added: extension.Extension, fitted_sha256: str
) -> None:
  """Writes added classes; `load_added` gives them back.

  Args:
    workdir: of the run that they were added to, held by the caller.
    added: M classes, those first that are there.
    fitted_sha256: of the fitted.npz that they were added to.

  Raises:
    UsageError: where the workdir has another, or classes that would be lost.
    UserError: as `load_added`.
  """
  if load_info(workdir)['fitted_sha256'] != fitted_sha256:
    raise types.UsageError(
      f'{workdir} is not the run that the classes were added to, or was fitted '
      'again since; load it and add them again'
    )
  there = load_added(workdir, fitted_sha256)
  if lost := extension.lacking(added, there) if there else []:
    raise types.UsageError(
      f'{workdir} got {", ".join(lost)} since the model was loaded; load it '
      'and add your classes again'
    )
  arrays = added._asdict() | {'fitted_sha256': fitted_sha256}
  _write(workdir / 'added.npz', arrays)
  bucket.put(workdir)


def load_added(
  workdir: pathlib.Path, fitted_sha256: str
) -> extension.Extension | None:
  """What `save_added` was given; None where no class was added.

  Args:
    workdir: of a run.
    fitted_sha256: of its fitted.npz.

  Raises:
    UserError: where the file is damaged, or belongs to another fit.
  """
  path = workdir / 'added.npz'
  if not path.exists():
    return None
  fit, arrays = _read_added(path)
  if fit != fitted_sha256:
    raise types.UserError(
      f'{path} is damaged or not of this model.json; delete it and add its '
      'classes again'
    )
  names = tuple(map(str, arrays.pop('class_names')))
  return extension.Extension(names, **arrays)


def _kept_aside(workdir: pathlib.Path, fitted_sha256: str) -> pathlib.Path:
  """Where the classes are that were added to another fit.

  It lies in no other folder, whoever wrote the digest.
  """
  is_digest = re.fullmatch('[0-9a-f]{64}', fitted_sha256)
  return workdir / f'added-{fitted_sha256[:12] if is_digest else "damaged"}.npz'


def _read_added(path: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
  """SHA-256 of the fit that classes were added to, and their fields.

  Both empty where the file is damaged.
  """
  data = path.read_bytes()
  try:
    arrays = _arrays(data)
    fit = str(arrays.pop('fitted_sha256'))
    _check_added(extension.Extension(**arrays))  # type: ignore[arg-type]
  except Exception:
    # Whatever is in it: a damaged file fails in many ways.
    return '', {}
  return fit, arrays


def load_features(workdir: pathlib.Path) -> dict[str, types.Features]:
  """Features of a run by part: train, select, calibrate, test, unknown sets.

  Raises:
    UserError: as `load`, and where the run keeps none.
  """
  info = load_info(workdir)
  if 'features_sha256' not in info:
    raise types.UserError(
      f'{workdir} keeps no features (report.features=False); run the main job '
      'again in it with --config.report.features=True'
    )
  arrays = _read(workdir, 'features.npz', info)
  return {name: types.Features(**x) for name, x in _by_name(arrays).items()}


def write_features(
  path: str | os.PathLike, features: Mapping[str, types.Features]
) -> None:
  """Features by part into one npz file, '<part>/<field>' each.

  Raises:
    UsageError: for masked values and for Python objects.
  """
  _write(pathlib.Path(path), _by_field(features))


def read_features(path: str | os.PathLike) -> dict[str, types.Features]:
  """What `write_features` was given.

  Raises:
    UserError: where the file cannot be read, or holds something else.
  """
  fields = types.Features._fields
  try:
    arrays = _arrays(pathlib.Path(path).read_bytes())
  except OSError as error:
    raise types.UserError(f'{path}: {error.strerror}') from None
  except Exception as error:
    # Whatever is in it: a file that is no npz fails in many ways.
    raise types.UserError(
      f'{path} holds no features ({error}); an npz file of arrays '
      f'<part>/<field> is needed, with the fields {", ".join(fields)}'
    ) from None
  needed = [x for x in fields if x not in types.Features._field_defaults]
  found = {}
  for name, part in _by_name(arrays).items():
    for field in part:
      if not name or field not in fields:
        key = f'{name}/{field}' if name else field
        raise types.UserError(
          f'{path}: {key!r} is none of <part>/<field>, with the fields '
          f'{", ".join(fields)}; leave it out'
        )
    if lacking := [x for x in needed if x not in part]:
      raise types.UserError(
        f'{path}: {name} has no {lacking[0]!r}; a net without codes has a '
        'latent of shape [N, 0]'
      )
    found[name] = types.Features(**part)
  return found


def write_model(path: str | os.PathLike, model: types.WeibullModel) -> None:
  """A fitted model alone into one npz file, an array for each field."""
  _write(pathlib.Path(path), model._asdict())


def read_model(path: str | os.PathLike) -> types.WeibullModel:
  """What `write_model` was given.

  Raises:
    UserError: where the file cannot be read, or holds something else.
  """
  try:
    model = _model(_arrays(pathlib.Path(path).read_bytes()))
    _check_model(model)
  except OSError as error:
    raise types.UserError(f'{path}: {error.strerror}') from None
  except Exception as error:
    # Whatever is in it: a file that is no npz fails in many ways.
    raise types.UserError(
      f'{path} holds no model ({error}); write_model makes such files'
    ) from None
  return model


def _write(path: pathlib.Path, arrays: Mapping[str, Any]) -> str:
  """Its SHA-256.

  Types that files have no name for, as bfloat16, are written as float32.

  Raises:
    UsageError: for what a file would not give back as it is.
  """
  found = {key: np.asarray(value) for key, value in arrays.items()}
  for key, array in found.items():
    types.check_unmasked(f'{path}: {key}', arrays[key])
    if array.dtype.hasobject:
      raise types.UsageError(
        f'{path}: {key} holds Python objects, numbers are needed; leave out '
        'what there is none of'
      )
    if array.dtype.isbuiltin == 2 and np.can_cast(array.dtype, np.float32):
      found[key] = array.astype(np.float32)
  with files.aside(path) as file:
    np.savez(file, **found)  # type: ignore[arg-type]
  with path.open('rb') as written:
    return hashlib.file_digest(written, 'sha256').hexdigest()


def _read(
  workdir: pathlib.Path, name: str, info: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  digest = info.get(f'{pathlib.Path(name).stem}_sha256')
  try:
    data = (workdir / name).read_bytes()
  except FileNotFoundError:
    raise types.UserError(f'{workdir / name} is missing; {_AGAIN}') from None
  if hashlib.sha256(data).hexdigest() != digest:
    raise types.UserError(
      f'{workdir / name} is damaged or not of this model.json; {_AGAIN}'
    )
  return _arrays(data)


def _arrays(data: bytes) -> dict[str, np.ndarray]:
  # Of what NumPy cannot read it says that it would with pickle.
  if not zipfile.is_zipfile(io.BytesIO(data)):
    raise ValueError('it is no npz file')
  found = {}
  with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
    for key in arrays.files:
      try:
        found[key] = arrays[key]
      except ValueError as error:
        if 'pickle' in str(error):
          raise ValueError(f'{key} holds Python objects') from None
        raise
  # What is no array comes as the bytes of its file.
  if wrong := [k for k, x in found.items() if not isinstance(x, np.ndarray)]:
    raise ValueError(f'{wrong[0]} is no array')
  return found


def _by_field(found: Mapping[str, Any]) -> dict[str, Any]:
  """NamedTuples by name -> arrays by '<name>/<field>'."""
  return {
    f'{name}/{field}': value
    for name, fields in found.items()
    for field, value in fields._asdict().items()
  }


def _by_name(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
  """The way back: fields of each name."""
  found: dict[str, dict[str, Any]] = {}
  for key, value in arrays.items():
    name, _, field = key.rpartition('/')
    found.setdefault(name, {})[field] = value
  return found


def _model(fields: dict[str, Any]) -> types.WeibullModel:
  vector, width = str(fields['vector']), int(fields['latent_width'])
  # Models of before have no such field, and ask about the nearest alone.
  neighbours = int(fields.get('neighbours', vector == 'neighbour'))
  return types.WeibullModel(
    **{
      **fields,
      'vector': vector,
      'latent_width': width,
      'neighbours': neighbours,
    }
  )


def _check_model(model: types.WeibullModel) -> None:
  """Raises a ValueError where the fields are not of one model."""
  if model.vector not in vectors.VECTORS:
    raise ValueError(f'vector {model.vector!r}')
  k, width = model.mav.shape
  rows, joint = model.exemplars.shape
  has_parts = model.vector in vectors.PART_WEIGHTS
  wanted = {
    'mav': (k, width),
    'feature_scale': (width,),
    'dead': (width,),
    **dict.fromkeys(('shape', 'loc', 'scale', 'tail_count'), (k,)),
    **dict.fromkeys(('part_mean', 'part_deviation'), (k * has_parts, 3)),
    'part_weight': (3 * has_parts,),
    'exemplars': (rows, joint),
    'exemplar_count': (k * (rows > 0),),
  }
  if (rows > 0) != (model.vector == 'neighbour'):
    raise ValueError(f'{rows} exemplars of vector {model.vector!r}')
  if not (rows > 0) <= model.neighbours <= rows:
    raise ValueError(f'neighbours is {model.neighbours}, of {rows} exemplars')
  if rows and joint != k + model.latent_width:
    raise ValueError(f'exemplars are {joint} wide, not {k} + latent_width')
  if has_parts and width - k - model.latent_width not in (0, 1):
    raise ValueError(f'latent_width is {model.latent_width}, mav {width} wide')
  _check_arrays(model._asdict(), wanted)
  if model.exemplar_count.sum() != rows:
    raise ValueError('exemplar_count is not of exemplars')


def _check_added(added: extension.Extension) -> None:
  """Raises a ValueError where the fields are not of the same classes."""
  count, width = np.shape(added.class_names), np.shape(added.center)
  wanted = {'center': width, 'unit': width, 'mav': count + width}
  rows = ('shape', 'loc', 'scale', 'share', 'limit')
  _check_arrays(added._asdict(), wanted | dict.fromkeys(rows, count))


def _check_arrays(
  arrays: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> None:
  """Raises a ValueError where they are no finite numbers of these shapes."""
  for name, shape in wanted.items():
    found = arrays[name]
    if found.shape != shape or found.dtype.kind not in 'biuf':
      raise ValueError(
        f'{name} is {found.dtype} of shape {list(found.shape)}, needed are '
        f'numbers of shape {list(shape)}'
      )
    # Of a part that tells nothing the deviation is infinite.
    if name != 'part_deviation' and not np.isfinite(found).all():
      raise ValueError(f'{name} is not finite')
