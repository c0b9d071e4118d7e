"""What every command shares: flags, --help, one-line errors, exit codes.

0 done (and --help), 1 a failure at run time, 2 a flag or a config field that
cannot be used; by the signal 130 Ctrl-C, 143 SIGTERM, 129 a terminal that was
closed. A traceback is a bug of ours.
"""

import contextlib
import functools
import importlib.util
import inspect
import io
import logging
import os
import pathlib
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

from absl import flags
from ml_collections import config_dict, config_flags

from crosr_jax import bucket, distributed, files, signals, types

_CONFIG_FLAG = 'config'
_FIELD = re.compile(r'^\s*config\.([\w.]+) = ')
_CACHE = flags.DEFINE_string(
  'cache',
  '',
  'folder of this machine for copies of gs:// folders; default '
  '$CROSR_JAX_CACHE, or else ~/.cache/crosr_jax',
)
# Control characters, ends of lines and paragraphs, marks that turn the
# direction of writing, and what is no text.
_HIDDEN = re.compile(
  '[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)
# Gives the local copy of a URL, as bucket.workdir does.
Opens = Callable[[str, str], pathlib.Path]


def define_config() -> flags.FlagHolder:
  """Defines --config=FILE[:VARIANT] and --config.<field>=VALUE."""
  return config_flags.DEFINE_config_file(
    _CONFIG_FLAG,
    None,
    'file of the benchmark, for example configs/digits.py; a variant follows '
    'a colon',
    lock_config=True,
  )


def define_data_dir() -> flags.FlagHolder:
  """Defines --data_dir=DIR; `path_of_data` has its value."""
  return flags.DEFINE_string(
    'data_dir',
    '',
    'folder of prepared data sets, gs://bucket/path too; default '
    '$TFDS_DATA_DIR, or else ~/tensorflow_datasets',
  )


def define_reject_known() -> flags.FlagHolder:
  """Defines --reject_known=SHARE, of commands that decide; None = not given."""
  return flags.DEFINE_float(
    'reject_known',
    None,
    'decide by a threshold that rejects this share of known images, found on '
    'those the run held out; default: as the run decides',
  )


class ProcessFlags(NamedTuple):
  """Flags of a command that several processes can run together."""

  distributed: flags.FlagHolder
  coordinator_address: flags.FlagHolder
  num_processes: flags.FlagHolder
  process_id: flags.FlagHolder
  initialization_timeout: flags.FlagHolder


def define_processes() -> ProcessFlags:
  """Defines the flags of several processes; `processes` has what they say."""
  return ProcessFlags(
    flags.DEFINE_string(
      'distributed',
      'auto',
      'whether several processes run this together: auto = where the three '
      'flags below, srun of SLURM or a TPU of several hosts tell of them; on = '
      'an error where nothing does; off = this one alone',
    ),
    flags.DEFINE_string(
      'coordinator_address',
      None,
      'HOST:PORT where process 0 listens and all others find it, the same for '
      'all of them',
    ),
    flags.DEFINE_integer('num_processes', None, 'how many processes there are'),
    flags.DEFINE_integer(
      'process_id', None, 'which of them this one is, from 0'
    ),
    flags.DEFINE_integer(
      'initialization_timeout',
      distributed.TIMEOUT,
      'seconds that processes wait for each other at the start',
    ),
  )


def processes(
  process_flags: ProcessFlags,
) -> distributed.Processes | None:
  """What the flags or the environment tell; None = one process.

  Raises:
    UsageError: for flags that cannot be used, or not together.
  """
  return distributed.told(*(holder.value for holder in process_flags))


def path_of_data(
  data_dir: flags.FlagHolder, *, writes: bool = False
) -> pathlib.Path:
  """What --data_dir was given, or its default; see bucket.data."""
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  opens = functools.partial(bucket.data, writes=writes)
  return folder('data_dir', data_dir.value or default, opens)


def folder(flag: str, value: str, opens: Opens | None = None) -> pathlib.Path:
  """The folder that a flag names, which need not exist yet.

  Args:
    flag: its name.
    value: what it was given.
    opens: of a folder of a bucket; None = it must be of this machine.

  Raises:
    UsageError: where it can be none.
    UserError: where a bucket cannot be read.
  """
  if opens and bucket.is_url(value):
    return opens(value, _CACHE.value)
  if '://' in value:
    of_bucket = ', or of a bucket, gs://bucket/path' if opens else ''
    raise types.UsageError(
      f'--{flag}={value}: only folders of this machine can be used{of_bucket}'
    )
  path = files.user_path(value)
  if path.exists() and not path.is_dir():
    raise types.UsageError(f'--{flag}={value} is a file, not a folder')
  return path


def made_folder(flag: str, value: str) -> pathlib.Path:
  """`folder`, made if it is not there.

  Raises:
    UsageError: where that cannot be.
  """
  path = folder(flag, value, bucket.workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise types.UsageError(
      f'--{flag}={path} cannot be written: {error.strerror}; take another'
    ) from None
  return path


def finished_run(workdir: str, *, writes: bool = False) -> pathlib.Path:
  """The folder that --workdir names, of a command that needs a finished run.

  Args:
    workdir: what the flag was given.
    writes: whether what is written in a folder of a bucket is kept there.

  Raises:
    UsageError: where nothing is named, or it can be no folder.
    UserError: as `folder`.
  """
  if not workdir:
    raise types.UsageError(
      '--workdir is needed, the folder of a finished run, for example '
      '--workdir=runs/mnist'
    )
  opens = functools.partial(bucket.finished, writes=writes)
  return folder('workdir', workdir, opens)


def words(flag: str, value: str) -> tuple[str, ...]:
  """What a flag lists between commas; () where it is empty.

  Raises:
    UsageError: for an empty item, and for one that is there twice.
  """
  items = tuple(item.strip() for item in value.split(',')) if value else ()
  if '' in items:
    raise types.UsageError(
      f'--{flag}={value}: nothing between two commas, or at an end'
    )
  if twice := next((item for item in items if items.count(item) > 1), ''):
    raise types.UsageError(f'--{flag}={value} names {twice} more than once')
  return items


def numbers(flag: str, value: str) -> tuple[int, ...]:
  """What a flag lists between commas, as whole numbers from 0.

  Raises:
    UsageError: as `words`, and for an item that is no such number.
  """
  items = words(flag, value)
  for item in items:
    if not re.fullmatch('0|[1-9][0-9]{0,9}', item):
      raise types.UsageError(
        f'--{flag}={value}: {item!r} is no whole number from 0, for example '
        f'--{flag}=0,1,2'
      )
  return tuple(map(int, items))


def run(
  main: Callable[..., None],
  *,
  takes_arguments: bool = False,
  resumes: bool = False,
) -> NoReturn:
  """Parses the flags in sys.argv, runs the command and ends the process.

  --help begins with the page of the command's module.

  Args:
    main: the command.
    takes_arguments: whether it is called with what is no flag.
    resumes: whether the same command goes on from what it saved.
  """
  _open_streams()
  _set_up_logging()
  signals.listen(resumes=resumes)
  try:
    if any(re.fullmatch(r'--?h(elp(full|short)?)?', a) for a in sys.argv[1:]):
      print(_help(main))
      sys.exit(0)
    arguments = _parse()
    if arguments and not takes_arguments:
      raise types.UsageError(
        f'unexpected argument {arguments[0]!r}; flags are written '
        '--name=value, --help lists them'
      )
    with bucket.session():
      main(*([arguments] if takes_arguments else []))
    sys.stdout.flush()
  except types.UserError as error:
    _end(str(error), error.exit_code)
  except flags.Error as error:
    hint = ''
    if any(a.startswith('-') and os.path.lexists(a) for a in sys.argv[1:]):
      hint = '; the name of a file that begins with - comes after --'
    _end(f'{error}{hint}', types.UsageError.exit_code)
  except BrokenPipeError:
    # `| head`: whoever read has left, and the rest is not wanted.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except OSError as error:
    # A full disk, a folder without permission: nothing a traceback explains.
    name = f'{error.filename}: ' if error.filename else ''
    reason = f'{name}{error.strerror or error}'
    _end(
      f'{reason}; mend that and run the same command again',
      types.UserError.exit_code,
    )
  except MemoryError:
    _end(
      'out of memory; end what else runs here, or lower data.image_size, '
      'train.batch_size or model.width',
      types.UserError.exit_code,
    )
  except signals.Terminated as ended:
    signals.end(ended.number)
  except KeyboardInterrupt:
    with contextlib.suppress(OSError, ValueError):
      sys.stdout.flush()
    # Not by way of Python's own end, which a compiler that was interrupted may
    # not survive.
    signals.end(signal.SIGINT)
  except Exception as error:
    if _is_without_device(error):
      told = str(error).partition(' (set ')[0] or 'there is no such device'
      platforms = os.environ.get('JAX_PLATFORMS', '')
      _end(
        f'JAX_PLATFORMS={platforms}: {told}; unset it for what is there, or '
        "pip install '.[cuda]' or '.[tpu]' where that is missing",
        types.UserError.exit_code,
      )
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    reason = str(error).partition('\n')[0]
    _end(
      f'out of memory on the device ({reason}); lower train.batch_size or '
      'model.width',
      types.UserError.exit_code,
    )
  sys.exit(0)


def _is_without_device(error: Exception) -> bool:
  """Whether JAX has failed to start on the devices it was asked for."""
  if isinstance(error, AssertionError):
    # All it says of GPUs where there are none.
    bridge = sys.modules.get('jax._src.xla_bridge')
    if not bridge or not os.environ.get('JAX_PLATFORMS'):
      return False
    return not bridge.backends_are_initialized()
  return 'Unable to initialize backend' in str(error)


def config_name() -> str:
  """Name of a run after its --config: '<file>' or '<file>-<variant>'."""
  path, variant = _split_variant(_value_of_config())
  return pathlib.Path(path).stem + (f'-{variant}' if variant else '')


def run_name(config: config_dict.ConfigDict) -> str:
  """Name of a run of one config: config_name(), and '-split<k>' if it has any.

  Without it, runs of different splits would share a default workdir.
  """
  data = config.data
  return config_name() + (
    f'-split{data.get("split", 0)}' if data.get('splits') else ''
  )


def _parse() -> list[str]:
  """sys.argv to FLAGS, the config's fields looked at first; what is no flag."""
  if _CONFIG_FLAG in flags.FLAGS:
    config = _load(_value_of_config())
    for argument in sys.argv[1:]:
      if match := re.match(rf'--?(?:no)?{_CONFIG_FLAG}\.([^=]*)', argument):
        _check_field(config, match[1])
  return flags.FLAGS(sys.argv)[1:]


def _load(value: str) -> config_dict.ConfigDict:
  """The config as its file has it; `value` is of --config."""
  path, variant = _split_variant(value)
  if value.endswith(':'):
    raise types.UsageError(
      f'--{_CONFIG_FLAG}={value}: no variant after the colon, leave it out'
    )
  if not pathlib.Path(path).is_file():
    there = 'is a folder' if pathlib.Path(path).is_dir() else 'is no file'
    raise types.UsageError(
      f'--{_CONFIG_FLAG}={value}: {path!r} {there}{_nearest(path)}'
    )
  try:
    spec = importlib.util.spec_from_file_location('config', path)
    if spec is None or spec.loader is None:
      raise ValueError('a config is a Python file, its name ends in .py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if variant and not inspect.signature(module.get_config).parameters:
      raise types.UsageError(f'it has no variants, leave out :{variant}')
    return module.get_config(*([variant] if variant else []))
  except Exception as error:
    # Whatever a config file raises is that file's fault, and no bug of ours.
    reason = (
      error
      if isinstance(error, ValueError)
      else (f'{type(error).__name__}: {error}')
    )
    raise types.UsageError(
      f'--{_CONFIG_FLAG}={value} cannot be loaded: {reason}'
    ) from error


def _value_of_config() -> str:
  """What --config was given, as one word or two."""
  values, argv = [], sys.argv
  for i, argument in enumerate(argv):
    if match := re.fullmatch(rf'--?{_CONFIG_FLAG}=(.*)', argument):
      values.append(match[1])
    elif re.fullmatch(rf'--?{_CONFIG_FLAG}', argument):
      values += argv[i + 1 : i + 2]
  if len(values) > 1:
    raise types.UsageError(
      f'--{_CONFIG_FLAG} is given more than once: {", ".join(values)}'
    )
  value = values[0] if values else ''
  if not value or value.startswith('-'):
    raise types.UsageError(
      f'--{_CONFIG_FLAG} is needed, for example '
      f'--{_CONFIG_FLAG}=configs/digits.py'
    )
  return value


def _split_variant(value: str) -> tuple[str, str]:
  path, _, variant = value.partition(':')
  return path, variant


def _nearest(path: str) -> str:
  """A hint at the file that was meant."""
  folder = pathlib.Path(path).parent
  names = [
    str(p) for p in folder.glob('*.py') if p.stem not in ('common', '__init__')
  ]
  return types.near(path, names)


def _check_field(config: config_dict.ConfigDict, name: str) -> None:
  fields = [field for field, _ in _fields(config)]
  if name in fields:
    return
  if any(field.startswith(f'{name}.') for field in fields):
    hint = f'; it is a section, set one of its fields: {name}.<field>=VALUE'
  else:
    hint = types.near(name, fields) or '; --help lists the fields'
  raise types.UsageError(f'the config has no field {name!r}{hint}')


def _fields(
  config: config_dict.ConfigDict, prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """'section.field' and its value, in the order of the file."""
  for name in config:
    value = config[name]
    if isinstance(value, config_dict.ConfigDict):
      yield from _fields(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def _help(main: Callable[..., None]) -> str:
  """The command's page, its flags, and the fields of its config."""
  page = inspect.cleandoc(sys.modules[main.__module__].__doc__ or '')
  own = [
    flag
    for module in (sys.argv[0], __name__)
    for flag in flags.FLAGS.get_key_flags_for_module(module)
  ]
  lines = [f'  --{f.name}: {" ".join(f.help.split())}' for f in own]
  parts = [page, 'Flags:\n' + '\n'.join(_wrap(line) for line in lines)]
  if _CONFIG_FLAG in flags.FLAGS:
    parts.append(_help_fields())
  return '\n\n'.join(parts)


def _help_fields() -> str:
  """Every field, with its value in --config, or else its default."""
  try:
    from configs import common
  except ImportError:
    return 'Fields of the config: see configs/common.py beside your config.'
  try:
    title = _value_of_config()
    config = _load(title)
  except types.UserError:
    config, title = common.get_config(), 'configs/common.py'
  comments = field_comments(inspect.getsource(common))
  lines = [
    _wrap(f'  --config.{name}={value!r}: {comments.get(name, "")}')
    for name, value in _fields(config)
  ]
  return f'Fields of the config, as {title} has them:\n' + '\n'.join(lines)


def field_comments(source: str) -> dict[str, str]:
  """The comment above each `config.<field> = ...` of a config's source."""
  comments, above = {}, []
  for line in source.splitlines():
    if line.strip().startswith('#'):
      above.append(line.strip().lstrip('# '))
      continue
    if match := _FIELD.match(line):
      comments[match[1]] = ' '.join(above)
    above = []
  return comments


def _wrap(line: str) -> str:
  return textwrap.fill(
    line, 80, subsequent_indent=' ' * 6, break_long_words=False
  )


def in_line(text: str) -> str:
  """What would end, steer or turn round a line of a terminal, as escapes."""
  return _HIDDEN.sub(lambda x: x[0].encode('unicode_escape').decode(), text)


def in_lines(text: str) -> str:
  """`in_line` of each line."""
  return '\n'.join(map(in_line, text.split('\n')))


def _open_streams() -> None:
  """Those that a daemon or `>&-` closed; and a name ends no output."""
  for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
    if getattr(sys, name) is None:
      setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
  # Names of files need not be text, nor what the terminal can show.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')


class _Plain(logging.Formatter):
  """Lines in which no name of a file or a class steers the terminal."""

  def format(self, record: logging.LogRecord) -> str:
    """The message; of our own, each is one line."""
    is_own = record.name == 'root' and not record.exc_info
    return (in_line if is_own else in_lines)(super().format(record))


def _set_up_logging() -> None:
  logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
  logging.getLogger().handlers[0].setFormatter(_Plain('%(message)s'))
  # A full disk is told once, by whoever waits for the file: not by the log, nor
  # by the threads of TensorBoard and Orbax, nor by what they do at the exit.
  logging.raiseExceptions = False
  threading.excepthook = lambda thread: logging.debug('%s', thread.exc_value)
  sys.unraisablehook = _look_at_unraisable
  sys.excepthook = _print_of_main_thread
  # Orbax tells every file it opens, and what it then raises.
  for name in ('jax', 'onnx_ir', 'matplotlib', 'PIL'):
    logging.getLogger(name).setLevel(logging.ERROR)
  # Here it warns of an accelerator that is there and not used; what it does not
  # find is no more than information.
  logging.getLogger('jax._src.xla_bridge').setLevel(logging.WARNING)
  for name in ('absl', 'asyncio', 'orbax'):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def _look_at_unraisable(what: Any) -> None:
  """Ctrl-C may come where Python, or JAX beneath it, cannot pass it on."""
  if isinstance(what.exc_value, KeyboardInterrupt):
    signals.end(signal.SIGINT)
  logging.debug('%s', what.exc_value)


def _print_of_main_thread(*error: Any) -> None:
  """A traceback, but for threads of C++, whose errors come to us otherwise."""
  if threading.current_thread() is threading.main_thread():
    sys.__excepthook__(*error)
  else:
    logging.debug('%s', error[1])


def _end(message: str, code: int) -> NoReturn:
  """One line, in the log file of a run too, and the exit code."""
  logging.error('error: %s', ' '.join(message.split()))
  sys.exit(code)
