# %% [markdown]
# # Known, or unknown?
#
# Open-set recognition with crosr_jax: train a net that classifies and rebuilds,
# see how it finds what it has never seen, then ask it about your own image.
# Any runtime will do; with a GPU or TPU the MNIST part takes a minute instead
# of ten.

# %% [markdown]
# ## 1. Install
#
# In a folder of the repository nothing is fetched. Elsewhere, say where it is:
# an address that `git clone` takes.

# %%
import glob
import os
import pathlib
import shutil
import subprocess
import sys

ADDRESS = ''  # @param {type:"string"}

if not pathlib.Path('configs', 'digits.py').exists():
  if not ADDRESS:
    raise SystemExit('fill in ADDRESS, where the repository is, and run again')
  subprocess.run(['git', 'clone', '--depth=1', ADDRESS, 'source'], check=True)
  os.chdir('source')
if 'CROSR_JAX_INSTALLED' not in os.environ:
  # What JAX reaches an accelerator by has to be of one version with it.
  if shutil.which('nvidia-smi'):
    what = '.[cuda]'
  elif (
    glob.glob('/dev/accel*')
    or glob.glob('/dev/vfio/[0-9]*')
    or {'COLAB_TPU_ADDR', 'TPU_ACCELERATOR_TYPE'} & os.environ.keys()
  ):
    what = '.[tpu]'
  else:
    what = '.'
  subprocess.run(
    [sys.executable, '-m', 'pip', 'install', '-q', '-e', what], check=True
  )
# In a process of its own: this one would keep them from those that train.
devices = [sys.executable, '-c', 'import jax; print(jax.devices())']
print(subprocess.check_output(devices, text=True))

# %% [markdown]
# ## 2. Digits: a minute
#
# 1,797 real digits; 7, 8 and 9 are kept back, and come as unknown.


# %%
def crosr(command, *arguments):
  """Runs a command of the package, and shows what it says."""
  process = subprocess.Popen(
    [sys.executable, '-m', f'crosr_jax.{command}', *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  for line in process.stdout:
    print(line, end='')
  # 1 of predict: some of the files are no images; it has answered the others.
  if process.wait() not in ((0, 1) if command == 'predict' else (0,)):
    raise SystemExit(f'{command} failed')


# Shorter where a test runs this page.
SHORT = os.environ.get('CROSR_JAX_SHORT', '').split()
crosr('main', '--config=configs/digits.py', '--workdir=runs/digits', *SHORT)

# %% [markdown]
# The report, as it is in `runs/digits/report.html`:

# %%
import html


def show(workdir):
  """The report of a run, in a frame of its own."""
  from IPython import display

  page = pathlib.Path(workdir, 'report.html').read_text(encoding='utf-8')
  frame = (
    f'<iframe srcdoc="{html.escape(page)}" width="100%" height="600"></iframe>'
  )
  display.display(display.HTML(frame))


show('runs/digits')

# %% [markdown]
# ## 3. MNIST against letters and noise
#
# The paper's first table. 27 MB are downloaded; the training takes about a
# minute on an accelerator and ten on two CPU cores.

# %%
if not SHORT:
  crosr('prepare', 'mnist', 'omniglot')
  crosr('main', '--config=configs/mnist.py', '--workdir=runs/mnist')
  show('runs/mnist')

# %% [markdown]
# ## 4. Your own image
#
# Bright ink on black, as MNIST has it. Upload a digit, then a letter.

# %%
WORKDIR = 'runs/digits' if SHORT else 'runs/mnist'
try:
  from google.colab import files

  names = list(files.upload())
except ImportError:
  # Not in Colab: one of scikit-learn's digits stands in.
  import numpy as np
  from PIL import Image
  from sklearn import datasets

  digit = np.round(datasets.load_digits().images[0] * (255 / 16))
  Image.fromarray(digit.astype(np.uint8)).save('digit.png')
  names = ['digit.png']
crosr('predict', f'--workdir={WORKDIR}', *names)

# %% [markdown]
# Photos in folders, one for each class? `configs/folder.py` trains on them, see
# the README, "Your own images".
