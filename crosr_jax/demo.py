"""Serves a page to play with: draw or drop an image, see what it is.

  python -m crosr_jax.demo --workdir=runs/mnist

Then open the address that is printed. Draw with the mouse or a finger, or drop
an image: the class or "unknown", the probabilities, what the net rebuilds, and
where it lies on the map of the known classes. Needs pip install
'crosr_jax[demo]'. Only this machine can open the page; --host=0.0.0.0 opens it
to the network, to everyone who can reach it.
"""

import contextlib
import ipaddress
import logging
import socket

from absl import flags

from crosr_jax import cli, types

_WORKDIR = flags.DEFINE_string('workdir', '', 'folder of a finished run')
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'address to serve at')
_PORT = flags.DEFINE_integer('port', 8000, 'port to serve at; 0 = a free one')


def main() -> None:
  """Serves until it is interrupted."""
  # Flags are looked at before JAX is loaded: a typo is told at once.
  workdir = cli.finished_run(_WORKDIR.value)
  if not _HOST.value.strip():
    # A socket takes it for all addresses of this machine.
    raise types.UsageError(
      '--host is empty; name an address, --host=0.0.0.0 for all of this machine'
    )
  if not 0 <= _PORT.value < 65536:
    raise types.UsageError(f'--port={_PORT.value}: ports are 0..65535')
  listening = _listen(_HOST.value, _PORT.value)
  try:
    from crosr_jax import demo_page
  except ImportError:
    raise types.UsageError(
      "the page needs flask: pip install 'crosr_jax[demo]'"
    ) from None
  from werkzeug import serving

  from crosr_jax import openset, saved

  model = openset.load(workdir)
  known = None
  if 'features_sha256' in saved.load_info(workdir):
    known = saved.load_features(workdir)['train']
  # Else a page of elsewhere, whose name leads here, could ask in its place.
  is_welcome = _is_of_this_machine if _is_of_this_machine(_HOST.value) else None
  app = demo_page.create(model, known, is_welcome=is_welcome)
  # Compiles, so that the first drawing is answered at once.
  demo_page.warm_up(model)
  logging.getLogger('werkzeug').setLevel(logging.ERROR)
  host, port = listening.getsockname()[:2]
  server = serving.make_server(
    host, port, app, threaded=True, fd=listening.fileno()
  )
  shown = f'[{host}]' if ':' in host else host
  print(f'Open http://{shown}:{port}/ (stop with Ctrl-C)', flush=True)
  server.serve_forever()


def _is_of_this_machine(host: str) -> bool:
  """Whether a name or an address leads from here to here, wherever asked."""
  with contextlib.suppress(ValueError):
    return ipaddress.ip_address(host).is_loopback
  return host.lower() == 'localhost'


def _listen(host: str, port: int) -> socket.socket:
  """A socket before anything slow is done: a taken port is told at once."""
  if not _is_of_this_machine(host):
    logging.warning(
      'everyone who can reach %s can open the page and send it images', host
    )
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  listening = socket.socket(family)
  listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    listening.bind((host, port))
    listening.listen()
  except (OSError, TypeError, UnicodeError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise types.UsageError(
      f'--host={host} --port={port} cannot be served at: {reason}; take '
      'another, for example --port=0'
    ) from None
  return listening


if __name__ == '__main__':
  cli.run(main)
