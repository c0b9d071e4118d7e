"""Writes a finished run into one file that needs no more than JAX.

  python -m crosr_jax.export --workdir=runs/mnist --output=mnist.jaxexport

The file holds one compiled function, uint8 images -> probability, unknown_score
and prediction, for any number of images, on CPU, GPU and TPU; and a header in
JSON with class names, image size, decision and where it comes from. The module
crosr_jax/exported.py reads it, alone: jax, numpy and flatbuffers are all that
it needs. --output=NAME.onnx writes ONNX instead (pip install
'crosr_jax[onnx]').
"""

from absl import flags

from crosr_jax import cli, files, types

_WORKDIR = flags.DEFINE_string('workdir', '', 'folder of a finished run')
_OUTPUT = flags.DEFINE_string('output', '', 'file to write')
_REJECT_KNOWN = cli.define_reject_known()


def main() -> None:
  """Exports."""
  # Flags are looked at before JAX is loaded: a typo is told at once.
  workdir = cli.finished_run(_WORKDIR.value)
  if not _OUTPUT.value:
    raise types.UsageError(
      '--output is needed, the file to write, for example '
      '--output=mnist.jaxexport'
    )
  output = files.user_path(_OUTPUT.value)
  files.check_output(output)
  from crosr_jax import exporting, openset, saved

  saved.check_output(output, workdir)
  model = openset.load(workdir)
  if _REJECT_KNOWN.value is not None:
    model = model.rejecting(_REJECT_KNOWN.value)
  is_onnx = output.suffix.lower() == '.onnx'
  pack = exporting.pack_onnx if is_onnx else exporting.pack
  data = pack(model, exporting.card(model, saved.load_info(workdir)))
  files.write_bytes(output, data)
  print(f'{output}: {len(data):,} bytes, decision: {model.told()}')


if __name__ == '__main__':
  cli.run(main)
