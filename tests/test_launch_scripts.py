"""Scripts and manifests of launch/, with stand-ins for clouds and clusters."""

import configparser
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

_LAUNCH = ROOT / 'launch'
_SCRIPTS = sorted([*_LAUNCH.glob('*.sh'), ROOT / '.ci' / 'run'])
_MANIFESTS = sorted(_LAUNCH.glob('gke_jobset_*.yaml'))

# As gcloud: keeps what it was called with, a state of the TPU for each time it
# is asked until the last, and a home folder for each worker. After as many
# calls as `reaches` has, it reaches none of them, and takes that for success.
_GCLOUD = """#!{python} -IS
import json, os, pathlib, shutil, subprocess, sys
cloud = pathlib.Path(os.environ['CLOUD'])
words = sys.argv[1:]
with open(cloud / 'calls', 'a') as file:
  file.write(json.dumps(words) + '\\n')
states = cloud / 'states'
reaches = cloud / 'reaches'
workers = sorted((cloud / 'workers').iterdir())

def flag(name):
  return next(x for x in words if x.startswith(name)).partition('=')[2]

def left():
  found = int(reaches.read_text())
  reaches.write_text(str(max(0, found - 1)))
  return found

if words[:2] == ['storage', 'rsync']:
  pathlib.Path(words[3], 'report.json').write_text('{{}}')
elif words[2] == 'tpu-vm':
  print(len(workers))
elif words[3] == 'describe':
  if (cloud / 'no_account').exists():
    sys.exit('ERROR: You do not currently have an active account selected.')
  if not states.exists():
    sys.exit('ERROR: (gcloud) NOT_FOUND: Resource was not found.')
  first, *rest = states.read_text().split()
  if rest:
    states.write_text(' '.join(rest))
  if first == 'BLIP':
    sys.exit('ERROR: Network is unreachable')
  print(first)
elif words[3] == 'create':
  # Of several lines, the first is for the first time.
  plan = cloud / 'plan'
  lines = plan.read_text().splitlines() if plan.exists() else ['ACTIVE']
  states.write_text(lines[0])
  if lines[1:]:
    plan.write_text('\\n'.join(lines[1:]))
elif words[3] == 'delete':
  states.unlink()
  # The next TPU has other disks.
  for home in workers:
    worker = home / 'crosr_jax_source/launch/tpu_worker.sh'
    if worker.exists():
      environment = {{**os.environ, 'HOME': str(home)}}
      subprocess.call(['bash', str(worker), 'stop'], env=environment)
    for path in home.glob('crosr_jax_*'):
      shutil.rmtree(path)
    (home / 'seconds').unlink(missing_ok=True)
elif words[3] in ('ssh', 'scp') and reaches.exists() and not left():
  print('Could not prepare all the nodes, attempting to ssh into the rest.',
        file=sys.stderr)
elif words[3] == 'scp' and words[4].startswith('/'):
  for home in workers:
    shutil.copy(words[4], home / words[5].partition(':')[2])
elif words[3] == 'scp':
  shutil.copytree(
    workers[0] / words[4].partition(':')[2],
    pathlib.Path(words[5], pathlib.Path(words[4]).name), dirs_exist_ok=True,
    copy_function=shutil.copy)
elif words[3] == 'ssh':
  codes = [
    subprocess.call(
      ['bash', '-c', flag('--command=')],
      cwd=home,
      env={{**os.environ, 'HOME': str(home)}},
    )
    for home in workers
  ]
  sys.exit(max(codes))
"""
# As uv, which makes a Python that keeps what it was called with.
_UV = """#!/usr/bin/env bash
echo "$@" >> uv_calls
if [[ $1 = venv ]]; then
  mkdir -p crosr_jax_env/bin
  cat > crosr_jax_env/bin/python <<'PYTHON'
#!/usr/bin/env bash
trap 'sleep 1; touch saved; exit 143' TERM
printf '%s\\n' "$@" > python_call
echo a line of the log
mkdir -p runs/x && echo report > runs/x/report.json
sleep "$(cat seconds 2>/dev/null || echo 0)" &
wait $!
code=$(head -n 1 codes 2>/dev/null)
[[ -z $code ]] || sed -i 1d codes
exit "${code:-0}"
PYTHON
  chmod +x crosr_jax_env/bin/python
fi
"""
_ZONE = '--zone=us-central1-a'
_TRAIN = (
  _ZONE,
  '--accelerator=v5litepod-8',
  '--config=configs/digits.py',
  '--workdir=gs://bucket/runs/x',
  '--poll=0',
)


def _linter(name):
  """The program, or a skip; pip puts it beside Python."""
  path = shutil.which(name) or shutil.which(
    name, path=str(pathlib.Path(sys.executable).parent)
  )
  if not path:
    pytest.skip(f"needs {name}: pip install -e '.[test]'")
  return path


def _script(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content)
  path.chmod(0o755)


class _Cloud:
  """A cloud with one project, and a checkout of the scripts."""

  def __init__(self, folder, num_workers=1):
    self.folder = folder
    self.homes = [folder / 'workers' / str(i) for i in range(num_workers)]
    for home in self.homes:
      _script(home / '.local' / 'bin' / 'uv', _UV)
    _script(folder / 'bin' / 'gcloud', _GCLOUD.format(python=sys.executable))
    (folder / 'tmp').mkdir()
    self.checkout = folder / 'checkout'
    (self.checkout / 'configs').mkdir(parents=True)
    shutil.copytree(_LAUNCH, self.checkout / 'launch')
    shutil.copy(ROOT / 'configs' / 'digits.py', self.checkout / 'configs')
    self.commit()

  def commit(self):
    """Commits what the checkout has."""
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C']
    for words in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'x']):
      subprocess.run([*git, self.checkout, *words], check=True)

  def write(self, name, text):
    (self.folder / name).write_text(text)

  def run(self, *words, code=0, **variables):
    """Runs the script; what it printed."""
    process = subprocess.run(
      ['bash', self.checkout / 'launch' / 'tpu_vm.sh', *words],
      cwd=self.folder,
      env={**self.environment, **variables},
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert process.returncode == code, process.stderr + process.stdout
    return process

  @property
  def environment(self):
    kept = {k: v for k, v in os.environ.items() if not k.startswith('LAUNCH_')}
    return {
      **kept,
      'PATH': f'{self.folder / "bin"}:{os.environ["PATH"]}',
      'TMPDIR': str(self.folder / 'tmp'),
      'CLOUD': str(self.folder),
    }

  def calls(self):
    """All calls since the last time, as lists of words."""
    path = self.folder / 'calls'
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]

  def verbs(self):
    """What was done since the last time: create, ssh start, ..."""
    found = []
    for words in self.calls():
      verb = words[3] if words[1] == 'tpus' else 'rsync'
      if verb == 'ssh':
        command = next(x for x in words if x.startswith('--command='))
        verb += ' ' + re.findall(r'tpu_worker.sh (\w+)', command)[-1]
      if verb != 'describe':
        found.append(verb)
    return found

  def until_done(self):
    """Waits until no worker runs."""
    for _ in range(300):
      shown = self.run(_ZONE, 'status').stdout
      if ': running' not in shown:
        return shown
      time.sleep(0.1)
    raise AssertionError(shown)


@pytest.fixture
def cloud(tmp_path):
  return _Cloud(tmp_path)


@pytest.fixture
def pair(tmp_path):
  """A cloud whose TPU has two workers."""
  return _Cloud(tmp_path, 2)


@pytest.mark.parametrize('path', _SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_linted(path):
  subprocess.run(['bash', '-n', path], check=True)
  process = subprocess.run(
    [_linter('shellcheck'), path], capture_output=True, text=True
  )
  assert process.returncode == 0, process.stdout


def test_scripts_and_manifests_are_of_80_columns():
  for path in (*_SCRIPTS, *_MANIFESTS, _LAUNCH / 'Dockerfile'):
    for line in path.read_text().splitlines():
      # What cannot be broken.
      assert len(line) <= 80 or 'metadata.annotations' in line, (path, line)


@pytest.mark.parametrize('script', ['tpu_vm.sh', 'slurm.sh'])
def test_help(script):
  process = subprocess.run(
    ['bash', _LAUNCH / script, '--help'], capture_output=True, text=True
  )
  assert process.returncode == 0 and not process.stderr
  for flag in re.findall(r'^\s+(--\w+)=\*\) ', (_LAUNCH / script).read_text()):
    assert flag in process.stdout


@pytest.mark.parametrize(
  ('words', 'told'),
  [
    ([], 'a command is needed'),
    (['make'], 'no command make'),
    (['create', 'delete'], 'two commands, create and delete'),
    (['--zones=a', 'create'], 'no flag --zones=a'),
    (['--zone', 'a', 'create'], 'no flag --zone;'),
    (['status'], '--zone is needed'),
    ([_ZONE, 'create'], '--accelerator is needed'),
    ([_ZONE, '--accelerator=v9-8', 'create'], 'say --runtime too'),
    ([_ZONE, '--name=A_b', 'status'], '--name=A_b: lower-case'),
    ([_ZONE, '--poll=often', 'status'], '--poll=often is no number'),
    ([_ZONE, 'run'], '--config is needed'),
    ([_ZONE, '--config=configs/digits.py', 'run'], '--workdir is needed'),
    ([_ZONE, 'fetch'], '--workdir is needed'),
    ([_ZONE, '--workdir=s3://a/b', 'fetch'], '--workdir=s3://a/b: gs://'),
    (
      [_ZONE, '--config=configs/digit.py', '--workdir=gs://a/b/', 'run'],
      '--config=configs/digit.py: no file of this commit',
    ),
  ],
)
def test_mistakes_get_a_line_and_cost_nothing(cloud, words, told):
  process = cloud.run(*words, code=2)
  assert told in process.stderr and not process.stdout
  assert len(process.stderr.splitlines()) == 1
  assert not cloud.calls()


def _quoted(text):
  return "'" + text.replace("'", "'\\''") + "'"


def test_dry_run_prints_every_command(cloud):
  words = [*_TRAIN, '--dry-run', '--spot', '--project=p', 'all', '--']
  words += ["--config.evaluation.unknown_sets=('a b',)"]
  printed = cloud.run(*words).stdout.splitlines()
  assert not cloud.calls()
  commit = subprocess.run(
    ['git', '-C', cloud.checkout, 'rev-parse', 'HEAD'],
    capture_output=True,
    text=True,
  ).stdout.strip()
  place = '--zone=us-central1-a --project=p'
  queued = 'gcloud compute tpus queued-resources'
  look = f"{queued} describe crosr-jax '--format=value(state.state)' {place}"
  archive = f'{cloud.folder}/tmp/crosr_jax-{commit}.tar.gz'
  worker = 'bash crosr_jax_source/launch/tpu_worker.sh'

  def _ssh(command):
    word = _quoted(f'--command=echo reached; {command}')
    return f'{queued} ssh crosr-jax --worker=all {word} {place}'

  assert printed == [
    look,
    f'{queued} create crosr-jax --node-id=crosr-jax '
    '--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite '
    f'--spot {place}',
    look,
    f'git -C {cloud.checkout} archive --format=tar.gz --output={archive} HEAD',
    f'{queued} scp {archive} crosr-jax:crosr_jax.tar.gz --worker=all {place}',
    _ssh(
      f'if {worker} alive 2>/dev/null; then '
      "echo 'a run goes on; stop it, or let it end' >&2; exit 1; fi; "
      'rm -rf crosr_jax_source && mkdir crosr_jax_source && '
      'tar -xzf crosr_jax.tar.gz -C crosr_jax_source && '
      'rm crosr_jax.tar.gz && '
      f'{worker} install {commit}'
    ),
    f'rm -f {archive}',
    look,
    _ssh(
      f'{worker} start crosr_jax_env/bin/python -m crosr_jax.main '
      '--config=crosr_jax_source/configs/digits.py '
      f'--workdir=gs://bucket/runs/x --distributed=on {_quoted(words[-1])}'
    ),
    'mkdir -p fetched/x',
    'gcloud storage rsync gs://bucket/runs/x fetched/x --recursive '
    "'--exclude=^(.*/)?(checkpoints|digests|damaged)/'",
    look,
    f'{queued} delete crosr-jax --force --quiet {place}',
  ]
  # A shell that reads them does what the script does: the same word reaches the
  # main job in the end.
  cloud.write('states', 'ACTIVE')
  lines = [line for line in printed if 'describe' not in line]
  subprocess.run(
    ['bash', '-e'],
    input='\n'.join(lines),
    cwd=cloud.folder,
    env=cloud.environment,
    text=True,
    check=True,
  )
  assert cloud.verbs() == [
    'create', 'scp', 'ssh install', 'ssh start', 'rsync', 'delete'
  ]  # fmt: skip
  call = _until(cloud.homes[0] / 'python_call')
  assert call.splitlines()[-1] == words[-1]


@pytest.mark.parametrize(
  ('path', 'comes'),
  [
    ('report.json', True),
    ('figures/map.png', True),
    ('checkpoints/300/state/x', False),
    # Of an ensemble, and of a GAN's.
    ('members/0/digests/300.json', False),
    ('counterfactual/gan/members/0/checkpoints/5/x', False),
    ('members/0/checkpoints.txt', True),
  ],
)
def test_of_a_bucket_no_checkpoint_comes(cloud, path, comes):
  printed = cloud.run(*_TRAIN, '--dry-run', 'fetch').stdout
  pattern = re.search("'--exclude=(.*)'", printed)[1]
  # gcloud takes it for a regular expression of Python's.
  assert (re.match(pattern, path) is None) == comes


def _until(path):
  """What a file has, once it is there."""
  for _ in range(300):
    if path.exists() and path.read_text():
      return path.read_text()
    time.sleep(0.1)
  raise AssertionError(f'no {path}')


@pytest.mark.parametrize('command', ['status', 'stop', 'delete', 'create'])
def test_dry_run_of_one_command_calls_nothing(cloud, command):
  process = cloud.run(*_TRAIN, '--dry-run', command)
  assert process.stdout.startswith('gcloud compute tpus queued-resources')
  assert not cloud.calls()


def test_create_waits_and_creates_once(cloud):
  cloud.write('plan', 'WAITING_FOR_RESOURCES BLIP PROVISIONING ACTIVE')
  told = cloud.run(*_TRAIN, 'create').stderr
  assert cloud.verbs() == ['create']
  assert 'is WAITING_FOR_RESOURCES' in told and 'is PROVISIONING' in told
  assert 'Network is unreachable' in told and 'looking again' in told
  assert 'costs until launch/tpu_vm.sh delete' in told
  cloud.run(*_TRAIN, 'create')
  assert not cloud.verbs()
  cloud.run(*_TRAIN, 'delete')
  assert cloud.verbs() == ['delete']
  assert 'there is no crosr-jax' in cloud.run(*_TRAIN, 'delete').stderr
  assert not cloud.verbs()


def test_a_preempted_tpu_is_asked_for_again(cloud):
  cloud.write('states', 'SUSPENDING SUSPENDED')
  cloud.run(*_TRAIN, 'create')
  assert cloud.verbs() == ['delete', 'create']


def test_a_request_that_fails_is_told(cloud):
  cloud.write('plan', 'PROVISIONING FAILED')
  assert 'crosr-jax is FAILED' in cloud.run(*_TRAIN, 'create', code=1).stderr


def test_without_an_answer_nothing_is_created_or_deleted(cloud):
  cloud.write('no_account', '')
  for command in ('create', 'delete', 'status'):
    told = cloud.run(*_TRAIN, command, code=1).stderr
    assert 'active account' in told and 'cannot say whether' in told
  assert not cloud.verbs()


def test_install_and_run_happen_once(pair):
  for command in ('install', 'run', 'stop'):
    told = pair.run(*_TRAIN, command, code=1).stderr
    assert 'is NONE, not ACTIVE; launch/tpu_vm.sh create' in told
  pair.write('states', 'ACTIVE')
  pair.calls()
  pair.run(*_TRAIN, 'install')
  assert pair.verbs() == ['ssh installed', 'scp', 'ssh install']
  assert 'is installed' in pair.run(*_TRAIN, 'install').stderr
  assert pair.verbs() == ['ssh installed']
  for home in pair.homes:
    (home / 'seconds').write_text('600')
  pair.run(*_TRAIN, '--data_dir=gs://bucket/data', 'run')
  assert pair.verbs() == ['ssh state', 'ssh start']
  for home in pair.homes:
    assert _until(home / 'python_call').splitlines() == [
      '-m', 'crosr_jax.main', '--config=crosr_jax_source/configs/digits.py',
      '--workdir=gs://bucket/runs/x', '--distributed=on',
      '--data_dir=gs://bucket/data',
    ]  # fmt: skip
  assert 'the run goes on' in pair.run(*_TRAIN, 'run').stderr
  assert pair.verbs() == ['ssh state']
  # Another commit, while the run goes on.
  (pair.checkout / 'new').write_text('')
  pair.commit()
  assert 'a run goes on' in pair.run(*_TRAIN, 'install', code=1).stderr
  assert pair.run(*_TRAIN, 'status').stdout.count(': running') == 2
  pair.run(*_TRAIN, 'stop')
  # What it saves is saved before anything else starts.
  assert all((home / 'saved').exists() for home in pair.homes)
  assert pair.until_done().count(': stopped; a line of the log') == 2
  pair.run(*_TRAIN, 'install')
  assert (pair.homes[1] / 'crosr_jax_source' / 'new').exists()
  # Python and packages stay.
  calls = (pair.homes[1] / 'uv_calls').read_text().splitlines()
  assert [call.split()[0] for call in calls] == ['venv', 'pip', 'pip']
  assert calls[-1].endswith('--editable ./crosr_jax_source[tpu,gcs]')


def test_one_worker_that_died_has_all_started_again(pair):
  pair.write('states', 'ACTIVE')
  pair.run(*_TRAIN, 'install')
  (pair.homes[0] / 'seconds').write_text('600')
  (pair.homes[1] / 'codes').write_text('134\n')
  pair.run(*_TRAIN, 'run')
  for _ in range(100):
    shown = pair.run(*_TRAIN, 'status').stdout
    if ': failed 134' in shown:
      break
  assert ': running' in shown and ': failed 134' in shown
  (pair.homes[1] / 'seconds').write_text('600')
  pair.calls()
  before = (pair.homes[0] / 'crosr_jax_run' / 'pid').read_text()
  pair.run(*_TRAIN, 'run')
  assert pair.verbs() == ['ssh state', 'ssh start']
  assert (pair.homes[0] / 'crosr_jax_run' / 'pid').read_text() != before
  assert pair.run(*_TRAIN, 'status').stdout.count(': running') == 2
  pair.run(*_TRAIN, 'stop')


def test_all_ends_with_results_and_without_a_tpu(pair):
  pair.run(*_TRAIN, 'all')
  verbs = pair.verbs()
  assert [verb for verb in verbs if verb != 'ssh state'] == [
    'create', 'ssh installed', 'scp', 'ssh install', 'ssh start', 'rsync',
    'delete',
  ]  # fmt: skip
  assert (pair.folder / 'fetched' / 'x' / 'report.json').exists()
  assert not (pair.folder / 'states').exists()
  assert not list((pair.folder / 'tmp').iterdir())


def test_all_comes_back_after_preemption(cloud):
  # Looked at by create, install, run, and then while it runs.
  cloud.write('plan', 'ACTIVE ACTIVE ACTIVE ACTIVE BLIP SUSPENDED\nACTIVE')
  (cloud.homes[0] / 'seconds').write_text('600')
  told = cloud.run(*_TRAIN, 'all').stderr
  verbs = cloud.verbs()
  assert verbs.count('create') == 2 and verbs.count('delete') == 2
  assert verbs.count('scp') == 2 and verbs.count('ssh start') == 2
  assert 'crosr-jax is SUSPENDED\n' in told and '9 restarts are left' in told
  assert verbs[-2:] == ['rsync', 'delete']


@pytest.mark.parametrize(
  ('codes', 'code', 'starts', 'told'),
  [
    # A mistake is not tried again.
    ('2\n', 2, 1, 'a mistake'),
    # Another failure is, and may pass.
    ('1\n0\n', 0, 2, 'failed 1'),
    ('1\n134\n1\n', 1, 2, 'given up after 1 restarts'),
  ],
)
def test_all_where_the_run_fails(cloud, codes, code, starts, told):
  (cloud.homes[0] / 'codes').write_text(codes)
  process = cloud.run(*_TRAIN, '--restarts=1', 'all', code=code)
  assert told in process.stderr
  verbs = cloud.verbs()
  assert verbs.count('ssh start') == starts and verbs.count('create') == 1
  # It stays where something is to be looked at.
  assert ('delete' in verbs) == (code == 0)
  assert ('costs until launch/tpu_vm.sh delete' in process.stderr) or not code


@pytest.mark.parametrize('command', ['install', 'run', 'status', 'stop'])
def test_where_no_worker_is_reached_nothing_is_done(cloud, command):
  cloud.write('states', 'ACTIVE')
  cloud.write('reaches', '0')
  told = cloud.run(*_TRAIN, command, code=1).stderr
  assert 'error: no worker of crosr-jax was reached' in told


def test_an_archive_that_did_not_come_is_not_installed(cloud):
  cloud.write('states', 'ACTIVE')
  cloud.run(*_TRAIN, 'install')
  (cloud.checkout / 'new').write_text('')
  cloud.commit()
  gcloud = cloud.folder / 'bin' / 'gcloud'
  # Only what is copied does not come.
  text = gcloud.read_text()
  gcloud.write_text(text.replace("in ('ssh', 'scp')", "== 'scp'"))
  cloud.write('reaches', '0')
  cloud.run(*_TRAIN, 'install', code=2)
  assert not (cloud.homes[0] / 'crosr_jax_source' / '.installed').exists()


# Calls of `all`: installed, scp, install, state, start, state, ...
@pytest.mark.parametrize('reached', [1, 2, 4, 6])
def test_all_ends_where_no_worker_is_reached_any_more(pair, reached):
  for home in pair.homes:
    (home / 'seconds').write_text('600')
  pair.write('reaches', str(reached))
  told = pair.run(*_TRAIN, 'all', code=1).stderr
  assert 'costs until launch/tpu_vm.sh delete' in told
  verbs = pair.verbs()
  assert 'delete' not in verbs and 'rsync' not in verbs
  if reached == 6:
    assert 'no worker of crosr-jax has answered 20 times in a row' in told
    # The first look had an answer.
    assert verbs[-21:] == ['ssh state'] * 21
    (pair.folder / 'reaches').unlink()
    pair.run(*_TRAIN, 'stop')


def test_without_results_the_tpu_stays(cloud):
  words = [_ZONE, '--accelerator=v5litepod-8', '--config=configs/digits.py']
  words += ['--workdir=runs/x', '--poll=1']
  (cloud.homes[0] / 'codes').write_text('0\n')
  # Of an earlier run of that name.
  (cloud.folder / 'fetched' / 'x').mkdir(parents=True)
  (cloud.folder / 'fetched' / 'x' / 'report.json').write_text('old\n')
  gcloud = cloud.folder / 'bin' / 'gcloud'
  text = gcloud.read_text()
  is_fetch = "words[4] == 'crosr-jax:runs/x'"
  gcloud.write_text(text.replace("words[3] in ('ssh', 'scp')", is_fetch))
  cloud.write('reaches', '0')
  told = cloud.run(*words, 'all', code=1).stderr
  assert 'error: nothing came of runs/x from crosr-jax' in told
  assert 'delete' not in cloud.verbs()


def test_a_disk_of_their_own_is_not_enough_for_two_hosts(pair, tmp_path):
  pair.write('states', 'ACTIVE')
  words = [_ZONE, '--config=configs/digits.py', '--workdir=runs/x']
  told = pair.run(*words, 'run', code=2).stderr
  assert '--workdir=runs/x: crosr-jax has 2 hosts' in told
  alone = _Cloud(tmp_path / 'alone')
  alone.write('states', 'ACTIVE')
  alone.run(*words, 'install')
  alone.run(*words, 'run')
  assert ': done' in alone.until_done()
  for _ in range(2):
    alone.run(*words, 'fetch')
  report = alone.folder / 'fetched' / 'x' / 'report.json'
  assert report.read_text() == 'report\n'


def test_a_worker_installs_uv_of_one_version(tmp_path):
  """From its own address; after that it is there."""
  _script(
    tmp_path / 'bin' / 'curl',
    '#!/usr/bin/env bash\necho "${@: -1}" >> ~/asked\n'
    'echo "mkdir -p \\"\\$UV_INSTALL_DIR\\"; '
    'cp ~/uv \\"\\$UV_INSTALL_DIR/uv\\""\n',
  )
  _script(tmp_path / 'uv', _UV)
  (tmp_path / 'crosr_jax_source').mkdir()
  path = f'{tmp_path / "bin"}:{os.environ["PATH"]}'
  worker = ['bash', _LAUNCH / 'tpu_worker.sh']
  environment = {**os.environ, 'HOME': str(tmp_path), 'PATH': path}
  asked = {'env': environment, 'capture_output': True, 'text': True}
  assert subprocess.run([*worker, 'installed', 'c0'], **asked).returncode
  for _ in range(2):
    subprocess.run([*worker, 'install', 'c0'], **asked, check=True)
  assert not subprocess.run([*worker, 'installed', 'c0'], **asked).returncode
  (address,) = (tmp_path / 'asked').read_text().splitlines()
  assert re.fullmatch(r'https://astral.sh/uv/[0-9.]+/install.sh', address)


# Values that an example may have, and a schema accepts.
_VALUES = {
  'NAME': 'cifar10', 'IMAGE': 'host/project/crosr_jax:1', 'BUCKET': 'bucket',
  'SERVICE_ACCOUNT': 'default', 'CONFIG': 'configs/cifar10.py:paper',
  'TPU_ACCELERATOR': 'tpu-v5-lite-podslice', 'TPU_TOPOLOGY': '2x4',
  'HOSTS': '2', 'CHIPS': '4', 'SLICES': '1', 'GPU_ACCELERATOR': 'nvidia-l4',
  'NODES': '3', 'GPUS': '8',
}  # fmt: skip


def _render(path, values):
  return subprocess.run(
    ['bash', _LAUNCH / 'render.sh', path],
    env={'PATH': os.environ['PATH'], **values},
    capture_output=True,
    text=True,
  )


def _manifest(path):
  """A manifest with values in it, as Python."""
  yaml = pytest.importorskip('yaml')
  process = _render(path, _VALUES)
  assert process.returncode == 0, process.stderr
  (manifest,) = yaml.safe_load_all(process.stdout)
  return manifest


@pytest.fixture(scope='module')
def jobset():
  """JobSet's own schema, with Kubernetes' for pods in it, as a validator.

  It comes from the OpenAPI of both, by way of Kubeflow's package.
  """
  jsonschema = pytest.importorskip('jsonschema')
  pytest.importorskip('kubeflow_trainer_api')
  from kubeflow_trainer_api.models import jobset_v1alpha2_job_set

  model = jobset_v1alpha2_job_set.JobsetV1alpha2JobSet
  schema = model.model_json_schema(by_alias=True)
  # Its Python has a class for what is a number or a word.
  for name in ('ApiResourceQuantity', 'UtilIntstrIntOrString'):
    schema['$defs'][f'IoK8sApimachineryPkg{name}'] = {
      'type': ['integer', 'string']
    }
  # The server refuses fields that it does not know.
  for part in (schema, *schema['$defs'].values()):
    if 'properties' in part:
      part['additionalProperties'] = False
  return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize('path', _MANIFESTS, ids=lambda path: path.stem)
def test_manifests_are_what_kubernetes_takes(path, jobset):
  manifest = _manifest(path)
  assert [e.message for e in jobset.iter_errors(manifest)] == []
  assert manifest['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert manifest['kind'] == 'JobSet'
  spec = manifest['spec']
  (replicated,) = spec['replicatedJobs']
  for wrong in (
    {'failurePolicies': {}},
    {'ttlSecondsAfterFinished': 'x'},
    {'replicatedJobs': [{**replicated, 'template': {'specs': {}}}]},
  ):
    assert not jobset.is_valid({**manifest, 'spec': {**spec, **wrong}})


@pytest.mark.parametrize('path', _MANIFESTS, ids=lambda path: path.stem)
def test_manifests_start_all_again(path):
  """What no schema says: words that mean something, and fit each other."""
  spec = _manifest(path)['spec']
  policy = spec['failurePolicy']
  assert policy['restartStrategy'] == 'BlockingRecreate'
  rules = {rule['name']: rule for rule in policy['rules']}
  assert rules['mistake']['action'] == 'FailJobSet'
  assert rules['disrupted']['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  (replicated,) = spec['replicatedJobs']
  job = replicated['template']['spec']
  assert job['completionMode'] == 'Indexed' and job['backoffLimit'] == 0
  assert job['parallelism'] == job['completions'] > 1
  pod = job['template']['spec']
  assert pod['restartPolicy'] == 'Never'
  (container,) = pod['containers']
  # The words of Kubernetes' job controller, of each rule of the Job.
  told = {
    'mistake': f'Container {container["name"]} for pod default/x-0 failed with '
    'exit code 2 matching FailJob rule at index 0',
    'disrupted': 'Pod default/x-0 has condition DisruptionTarget matching '
    'FailJob rule at index 1',
  }
  for name, rule in rules.items():
    assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
    (pattern,) = rule['onJobFailureMessagePatterns']
    assert [x for x in told if re.search(pattern, told[x])] == [name]
  exit_codes, conditions = job['podFailurePolicy']['rules']
  assert exit_codes['onExitCodes']['containerName'] == container['name']
  assert exit_codes['onExitCodes']['values'] == [2]
  assert conditions['onPodConditions'][0]['type'] == 'DisruptionTarget'
  arguments = container['args']
  assert arguments[0] == 'crosr_jax.main'
  assert '--workdir=gs://bucket/runs/cifar10' in arguments
  assert '--config=configs/cifar10.py:paper' in arguments
  limits = container['resources']['limits']
  if 'tpu' in path.stem:
    assert limits == {'google.com/tpu': 4}
    assert '--distributed=on' in arguments
    return
  assert limits == {'nvidia.com/gpu': 8}
  assert spec['coordinator']['replicatedJob'] == replicated['name']
  names = {x['name'] for x in container['env']}
  used = re.findall(r'\$\((\w+)\)', ' '.join(arguments))
  assert sorted(used) == sorted(names) == ['COORDINATOR', 'PROCESS_ID']
  assert '--num_processes=3' in arguments
  port = next(x for x in arguments if 'coordinator' in x).rpartition(':')[2]
  assert int(port) == container['ports'][0]['containerPort']


@pytest.mark.parametrize('path', _MANIFESTS, ids=lambda path: path.stem)
def test_every_variable_is_explained_and_needed(path):
  text = path.read_text()
  used = set(re.findall(r'\$\{(\w+)\}', text))
  assert used == set(re.findall(r'^# ([A-Z_]+)  +\w', text, re.MULTILINE))
  page = (_LAUNCH / 'README.md').read_text()
  for name in used:
    assert re.search(rf'\b{name}=', page)
  process = _render(path, {})
  assert process.returncode == 2 and not process.stdout
  assert f'export {" ".join(sorted(used))};' in process.stderr
  process = _render(path, {**_VALUES, 'NAME': 'a: b'})
  assert process.returncode == 2 and 'NAME=a: b' in process.stderr
  assert _render(_LAUNCH / 'gke.yaml', _VALUES).returncode == 2


def test_the_dockerfile_is_linted():
  process = subprocess.run(
    [_linter('hadolint'), _LAUNCH / 'Dockerfile'],
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stdout


@pytest.mark.parametrize('name', ['Dockerfile', 'tpu_worker.sh'])
def test_what_is_installed_can_reach_a_bucket(name):
  """As every example with gs:// in it wants."""
  known = configparser.ConfigParser()
  known.read(ROOT / 'setup.cfg')
  told = re.findall(
    r'extra=(?!\[)"?(.*?)"? ;;|\[([\w,]+)\]\'$',
    (_LAUNCH / name).read_text(),
    re.MULTILINE,
  )
  found = [''.join(x).replace('$ACCELERATOR', 'cuda').split(',') for x in told]
  assert found
  for extras in found:
    assert 'gcs' in extras
    assert known['options.extras_require'].keys() >= set(extras)


def test_the_image_has_what_it_needs_and_no_root():
  text = (_LAUNCH / 'Dockerfile').read_text()
  lines = re.sub(r'\\\n', '', text).splitlines()
  said = [line.split(maxsplit=1) for line in lines if line[:1].isupper()]
  word = dict(said)  # the last of each
  assert re.fullmatch(r'python:3\.\d+\.\d+-slim-\w+', word['FROM'])
  assert int(word['USER']) > 0
  assert said.index(['USER', word['USER']]) > max(
    i for i, (name, _) in enumerate(said) if name in ('RUN', 'COPY')
  )
  assert 'rm -rf /var/lib/apt/lists/*' in text
  # SIGTERM reaches Python, which as process 1 would not hear it.
  assert json.loads(word['ENTRYPOINT'])[0] == 'tini'
  admitted = {
    line[1:]
    for line in (ROOT / '.dockerignore').read_text().splitlines()
    if line.startswith('!')
  }
  copied = {
    source
    for name, rest in said
    if name == 'COPY'
    for source in rest.split()[:-1]
  }
  assert copied == admitted
  assert all((ROOT / name).exists() for name in copied)


# As srun: keeps its words, and its environment; sleeps until tasks are told.
# SIGTERM to itself kills them.
_SRUN = """#!/usr/bin/env bash
trap 'echo KILL > "$CLUSTER/told"; exit 137' TERM
printf '%s\\n' "$@" > "$CLUSTER/srun"
echo "$SRUN_CPUS_PER_TASK" > "$CLUSTER/cpus"
for _ in $(seq "$(cat "$CLUSTER/seconds" 2>/dev/null || echo 0)"); do
  [[ -e "$CLUSTER/told" ]] && exit "$(cat "$CLUSTER/ended" 2>&- || echo 143)"
  sleep 1
done
exit "$(cat "$CLUSTER/code" 2>/dev/null || echo 0)"
"""


@pytest.fixture
def cluster(tmp_path):
  """Starts slurm.sh as a batch job."""
  _script(tmp_path / 'bin' / 'srun', _SRUN)
  _script(
    tmp_path / 'bin' / 'scontrol',
    '#!/usr/bin/env bash\necho "$@" > "$CLUSTER/scontrol"\n',
  )
  _script(
    tmp_path / 'bin' / 'scancel',
    '#!/usr/bin/env bash\necho "$@" > "$CLUSTER/told"\n',
  )

  def start(*words, **variables):
    return subprocess.Popen(
      ['bash', _LAUNCH / 'slurm.sh', *words],
      env={
        **os.environ,
        'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
        'CLUSTER': str(tmp_path),
        'SLURM_JOB_ID': '7',
        'SLURM_JOB_NODELIST': 'a,b',
        'SLURM_CPUS_PER_TASK': '6',
        **variables,
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


@pytest.mark.parametrize('code', [0, 2, 134])
def test_slurm_starts_a_step_and_ends_as_it_does(cluster, tmp_path, code):
  (tmp_path / 'code').write_text(str(code))
  process = cluster('--config=a b', '--workdir=/shared/x')
  out, err = process.communicate(timeout=60)
  assert process.returncode == code and not err
  assert 'job 7 on a,b, started again 0 times' in out
  assert (tmp_path / 'srun').read_text().splitlines() == [
    '--label', '--kill-on-bad-exit=1', 'python', '-m', 'crosr_jax.main',
    '--distributed=on', '--config=a b', '--workdir=/shared/x',
  ]  # fmt: skip
  assert (tmp_path / 'cpus').read_text() == '6\n'
  assert not (tmp_path / 'scontrol').exists()


def test_slurm_goes_back_without_what_it_cannot_save(cluster, tmp_path):
  (tmp_path / 'bin' / 'scancel').write_text('#!/bin/sh\nexit 1\n')
  (tmp_path / 'seconds').write_text('60')
  process = cluster('--workdir=x')
  _until(tmp_path / 'cpus')
  process.send_signal(signal.SIGUSR1)
  process.communicate(timeout=50)
  assert (tmp_path / 'told').read_text() == 'KILL\n'
  assert (tmp_path / 'scontrol').read_text() == 'requeue 7\n'


@pytest.mark.parametrize(('before', 'code'), [('3', 0), ('50', 1)])
def test_slurm_goes_back_into_the_queue(cluster, tmp_path, before, code):
  """Near the time limit; but not for ever."""
  (tmp_path / 'seconds').write_text('60')
  process = cluster('--workdir=x', SLURM_RESTART_COUNT=before)
  _until(tmp_path / 'cpus')
  process.send_signal(signal.SIGUSR1)
  _, err = process.communicate(timeout=50)
  assert process.returncode == code
  assert (tmp_path / 'told').read_text() == '--signal=TERM 7\n'
  if code:
    assert 'started again 50 times already' in err
    assert not (tmp_path / 'scontrol').exists()
  else:
    assert (tmp_path / 'scontrol').read_text() == 'requeue 7\n'


@pytest.mark.parametrize('code', [0, 1, 2])
def test_slurm_ends_as_a_step_that_was_over(cluster, tmp_path, code):
  (tmp_path / 'seconds').write_text('60')
  (tmp_path / 'ended').write_text(str(code))
  process = cluster('--workdir=x', SLURM_RESTART_COUNT='50')
  _until(tmp_path / 'cpus')
  process.send_signal(signal.SIGUSR1)
  _, err = process.communicate(timeout=50)
  assert process.returncode == code and not err
  assert not (tmp_path / 'scontrol').exists()


@pytest.mark.parametrize(
  ('words', 'variables', 'told'),
  [
    (['--workdir=x'], {'SLURM_JOB_ID': ''}, 'this is for sbatch'),
    (['--config=x'], {}, '--workdir=FOLDER is needed'),
    (['--workdir='], {}, '--workdir=FOLDER is needed'),
  ],
)
def test_slurm_says_what_is_missing(cluster, tmp_path, words, variables, told):
  process = cluster(*words, **variables)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 2 and not out and told in err
  assert not (tmp_path / 'srun').exists()


def test_slurm_asks_for_what_its_page_says():
  asked = dict(
    line.removeprefix('#SBATCH --').partition('=')[::2]
    for line in (_LAUNCH / 'slurm.sh').read_text().splitlines()
    if line.startswith('#SBATCH')
  )
  # One task on a node; a signal for this script alone; a log that goes on.
  assert asked['ntasks-per-node'] == '1'
  assert asked['signal'] == 'B:USR1@120'
  assert 'requeue' in asked and asked['open-mode'] == 'append'


def test_the_page_names_what_is_there(cloud):
  page = (_LAUNCH / 'README.md').read_text()
  for name in _LAUNCH.iterdir():
    if name.suffix in ('.sh', '.yaml') or name.name == 'Dockerfile':
      # The worker's half is tpu_vm.sh's own.
      assert name.name in page or name.name == 'tpu_worker.sh', name
  for name in re.findall(r'launch/([\w.]+)', page):
    assert (_LAUNCH / name).exists(), name
  blocks = re.findall(r'^```bash\n(.*?)^```', page, re.DOTALL | re.MULTILINE)
  assert len(blocks) >= 8
  for block in blocks:
    subprocess.run(['bash', '-n'], input=block, text=True, check=True)
  shutil.copy(ROOT / 'configs' / 'cifar10.py', cloud.checkout / 'configs')
  cloud.commit()
  for block in blocks:
    if block.startswith('launch/tpu_vm.sh'):
      first = block.replace('\\\n', '').splitlines()[0]
      cloud.run('--dry-run', *first.split()[1:])
