"""Commands of the package, forked from a process that has imported its parts.

A command takes two seconds to import them, more than most take for what tests
ask of them. `Server.run` is what subprocess.run of `python -m crosr_jax.<name>`
is, but for that: how a command starts by itself, test_commands.py sees.
"""

import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import warnings

# What nothing reads while it is imported, so that a command may have another.
_READ_LATER = 'XLA_FLAGS', 'TFDS_DATA_DIR', 'https_proxy', 'no_proxy'
# Of them the commands import others. None starts JAX or defines a flag, but
# cli, which all commands share.
_PARTS = (
  'bucket', 'cli', 'comparison', 'diagnosis', 'distributed', 'exporting',
  'extension', 'judge', 'openset', 'pipeline', 'ranking', 'report.comparison',
  'report.diagnosis', 'report.material', 'report.terminal',
)  # fmt: skip


class Server:
  """The process that commands are forked from; started by the first of them."""

  def __init__(self, environment: dict[str, str], cwd: str | os.PathLike):
    """Commands have this environment, and work in this folder."""
    self._environment, self._cwd = environment, cwd
    self._process: subprocess.Popen | None = None

  def run(
    self,
    name: str,
    *arguments: object,
    cwd: str | os.PathLike | None = None,
    stdin: str = '',
    **environment: str,
  ) -> subprocess.CompletedProcess:
    """`python -m crosr_jax.<name>`, to its end; it may have another folder.

    And other variables, of those that nothing reads while it is imported.
    """
    assert environment.keys() <= set(_READ_LATER)
    if self._process is None or self._process.poll() is not None:
      self._process = subprocess.Popen(
        [sys.executable, __file__], env=self._environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      )  # fmt: skip
    command = [f'crosr_jax.{name}', *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
      streams = [pathlib.Path(folder, x) for x in ('in', 'out', 'err')]
      streams[0].write_text(stdin)
      request = {
        'command': command, 'cwd': str(cwd or self._cwd),
        'environment': environment, 'streams': list(map(str, streams)),
      }  # fmt: skip
      print(json.dumps(request), file=self._process.stdin, flush=True)
      code = int(self._process.stdout.readline())
      told = [stream.read_text() for stream in streams[1:]]
    return subprocess.CompletedProcess(command, code, *told)

  def stop(self) -> None:
    """Ends it, where it was started."""
    if self._process is not None:
      self._process.communicate()


def _serve() -> dict | None:
  """In each forked process what it was asked for; at the end None."""
  for line in sys.stdin:
    with warnings.catch_warnings():
      # JAX and newer versions of Python warn of threads, which nothing started.
      warnings.simplefilter('ignore')
      process = os.fork()
    if not process:
      return json.loads(line)
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
  return None


def _become(request: dict) -> None:
  """Streams, folder, environment and arguments of the command."""
  flags = os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2
  for stream, (path, how) in enumerate(
    zip(request['streams'], flags, strict=True)
  ):
    file = os.open(path, how)
    os.dup2(file, stream)
    os.close(file)
  os.chdir(request['cwd'])
  os.environ.update(request['environment'])
  sys.path[0] = request['cwd']
  sys.argv = request['command']


if __name__ == '__main__':
  for part in _PARTS:
    __import__(f'crosr_jax.{part}')
  if wanted := _serve():
    _become(wanted)
    # Nothing of it is above the command, which ends as Python ends.
    runpy.run_module(wanted['command'][0], run_name='__main__', alter_sys=True)
