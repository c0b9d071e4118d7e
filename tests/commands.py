"""Commands of the package, forked from a process that has imported its parts.

A command takes two seconds to import them, more than most take for what tests
ask of them. `Server.run` is what subprocess.run of `python -m crosr_jax.<name>`
is, `Server.start` what subprocess.Popen is, but for that: how a command starts
by itself, test_commands.py sees.
"""

import gc
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings

# Of them the commands import others. None starts JAX or defines a flag, but
# cli, which all commands share.
_PARTS = (
  'bucket', 'cli', 'comparison', 'diagnosis', 'distributed', 'exporting',
  'extension', 'judge', 'openset', 'pipeline', 'ranking', 'report.comparison',
  'report.diagnosis', 'report.material', 'report.terminal',
)  # fmt: skip
# Some of what starts with these is read while the parts are imported; a command
# that is to have others does not come from here.
_READ_EARLY = 'JAX_', 'PYTHON'


class Command:
  """A command that was started; ends by itself or by a signal."""

  # What it says is in files, which go when its end was waited for.

  def __init__(self, server: 'Server', request: dict, stdin: str):
    self._server = server
    self._folder = tempfile.TemporaryDirectory()
    self._out, self._err = (
      pathlib.Path(self._folder.name, x) for x in ('out', 'err')
    )
    given = pathlib.Path(self._folder.name, 'in')
    for path, text in ((given, stdin), (self._out, ''), (self._err, '')):
      path.write_text(text)
    streams = [str(x) for x in (given, self._out, self._err)]
    self._words = request['command']
    self.pid = server.ask({'start': request | {'streams': streams}})
    self.returncode: int | None = None
    self._done: subprocess.CompletedProcess | None = None

  def poll(self) -> int | None:
    """The exit code, -n of signal n; None while it runs."""
    if self.returncode is None:
      self.returncode = self._server.ask({'poll': self.pid})
    return self.returncode

  def send_signal(self, number: int) -> None:
    """To a command that runs."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def tells(self, text: str) -> None:
    """Waits until that stands in what it says on stderr."""
    while text not in self._err.read_text():
      if self.poll() is not None and text not in self._err.read_text():
        raise AssertionError(f'it ended without {text!r}: {self.ended()}')
      time.sleep(0.01)

  def prints(self, text: str) -> str:
    """Waits until a line starts with that; the line."""
    while True:
      ended = self.poll() is not None
      for line in self._out.read_text().splitlines(keepends=True):
        if line.startswith(text) and line.endswith('\n'):
          return line.strip()
      if ended:
        raise AssertionError(f'it ended without {text!r}: {self.ended()}')
      time.sleep(0.01)

  def ended(self, limit: float = 600) -> subprocess.CompletedProcess:
    """Waits for its end; after `limit` seconds it is killed, an error."""
    latest = time.monotonic() + limit
    while self.poll() is None:
      if time.monotonic() > latest:
        self.send_signal(signal.SIGKILL)
        told = self._out.read_text() + self._err.read_text()
        raise AssertionError(f'still there after {limit} s: {told}')
      time.sleep(0.005)
    if self._done is None:
      told = [x.read_text() for x in (self._out, self._err)]
      self._done = subprocess.CompletedProcess(
        self._words, self.returncode, *told
      )
      self._folder.cleanup()
    return self._done


class Server:
  """The process that commands are forked from; started by the first of them."""

  def __init__(self, environment: dict[str, str], cwd: str | os.PathLike):
    """Commands have this environment, and work in this folder."""
    self._environment, self._cwd = environment, cwd
    self._process: subprocess.Popen | None = None

  def start(
    self,
    name: str | os.PathLike,
    *arguments: object,
    cwd: str | os.PathLike | None = None,
    stdin: str = '',
    **environment: str | None,
  ) -> Command:
    """`python -m crosr_jax.<name>`, or `python <name>` of a path.

    It may have another folder, and other variables; None takes one away.
    """
    assert not any(x.startswith(_READ_EARLY) for x in environment)
    if self._process is None or self._process.poll() is not None:
      self._process = subprocess.Popen(
        [sys.executable, __file__], env=self._environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      )  # fmt: skip
    if isinstance(name, str):
      name = f'crosr_jax.{name}'
    request = {
      'command': [str(name), *map(str, arguments)],
      'cwd': str(cwd or self._cwd),
      'environment': environment,
    }
    return Command(self, request, stdin)

  def run(self, *arguments: object, **options) -> subprocess.CompletedProcess:
    """`start`, to its end."""
    return self.start(*arguments, **options).ended()

  def ask(self, what: dict) -> int | None:
    """What the process answers."""
    print(json.dumps(what), file=self._process.stdin, flush=True)
    return json.loads(self._process.stdout.readline())

  def stop(self) -> None:
    """Ends it and what it started, where it was started."""
    if self._process is not None:
      self._process.communicate()


def _serve() -> dict | None:
  """In each forked process what it was asked for; at the end None."""
  running = set()
  for line in sys.stdin:
    asked = json.loads(line)
    if 'start' in asked:
      with warnings.catch_warnings():
        # JAX and newer versions of Python warn of threads, which nothing
        # started.
        warnings.simplefilter('ignore')
        process = os.fork()
      if not process:
        return asked['start']
      running.add(process)
      answer = process
    else:
      process, status = os.waitpid(asked['poll'], os.WNOHANG)
      running.discard(process)
      answer = os.waitstatus_to_exitcode(status) if process else None
    print(json.dumps(answer), flush=True)
  for process in running:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
  return None


def _become(request: dict) -> None:
  """Streams, folder, environment and arguments of the command."""
  flags = os.O_RDONLY, *[os.O_WRONLY | os.O_APPEND] * 2
  for stream, (path, how) in enumerate(
    zip(request['streams'], flags, strict=True)
  ):
    file = os.open(path, how)
    os.dup2(file, stream)
    os.close(file)
  os.chdir(request['cwd'])
  for name, value in request['environment'].items():
    if value is None:
      os.environ.pop(name, None)
    else:
      os.environ[name] = value
  sys.argv = request['command']
  is_path = os.path.isabs(sys.argv[0])
  sys.path[0] = os.path.dirname(sys.argv[0]) if is_path else request['cwd']


if __name__ == '__main__':
  for part in _PARTS:
    __import__(f'crosr_jax.{part}')
  # A command that ends looks through its own objects, not through all of these,
  # of which it would have to take a copy: that took most of a second.
  gc.freeze()
  if wanted := _serve():
    _become(wanted)
    # Nothing of it is above the command, which ends as Python ends.
    if os.path.isabs(sys.argv[0]):
      runpy.run_path(sys.argv[0], run_name='__main__')
    else:
      runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
