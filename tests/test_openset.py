"""A finished run as a model, and predictions of image files."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from sklearn import metrics as sk
from test_images import bad_files

import crosr_jax
from crosr_jax import data, openset, pipeline, saved, scorer, types, weibull


@pytest.fixture
def workdir(digits_run):
  return digits_run[0]


@pytest.fixture(scope='session')
def benchmark(digits_run):
  _, config = digits_run
  return data.load(
    seed=config.seed, data_dir=ROOT, **config.data, **config.evaluation
  )


def test_answers_are_those_of_the_report(workdir, benchmark):
  model = crosr_jax.load(workdir)
  report = json.loads((workdir / 'report.json').read_text())
  test, unknown = benchmark.test, benchmark.unknown['digits_unknown'].image
  scores, strange = model(test.image), model(unknown)
  row = report['unknown']['digits_unknown']['crosr']
  # By scikit-learn, from what the loaded model says.
  truth = np.repeat([0, 1], [len(test.label), len(unknown)])
  score = np.append(scores.unknown_score, strange.unknown_score)
  assert sk.roc_auc_score(truth, score) == row['auroc']
  argmax = np.argmax(np.concatenate([scores[0], strange[0]]), axis=1)
  label = np.append(test.label, np.full(len(unknown), 7))
  assert sk.f1_score(label, argmax, average='macro') == row['macro_f1']
  rejected = np.mean(scores.prediction == types.UNKNOWN)
  assert rejected == report['known_rejected']['test']
  assert model.class_names == tuple('0123456')
  assert model.decision == report['decision']


def test_folders_as_a_user_writes_them(workdir, monkeypatch):
  monkeypatch.setenv('HOME', str(workdir.parent))
  model = crosr_jax.load(f'~/{workdir.name}')
  assert model.class_names == tuple('0123456')
  # Arrays have no single == and no hash; a model does.
  assert model == model and model != openset.load(workdir)
  assert len({model, model}) == 1
  monkeypatch.chdir(workdir)
  with pytest.raises(types.UsageError, match=r"'' is no folder .* is '\."):
    crosr_jax.load('')
  assert crosr_jax.load('.').class_names == model.class_names


def test_a_row_is_its_own(workdir, benchmark):
  model = openset.load(workdir)
  image = benchmark.test.image[:40]
  together = model(image)
  for rows in ([3], [7, 2], np.arange(40)[::-1]):
    alone = model(image[rows])
    for one, all_of_them in zip(alone, together, strict=True):
      # Its place in the batch may change the last bit.
      np.testing.assert_allclose(one, all_of_them[rows], rtol=1e-5, atol=1e-7)
  assert len(model(image[:0]).prediction) == 0


@pytest.mark.parametrize(
  ('count', 'side', 'rows'),
  [
    (0, 8, 1), (1, 8, 1), (2, 8, 16), (16, 8, 16), (17, 8, 256),
    # Of large images no more than memory has room for.
    (1, 1024, 1), (9, 1024, 4), (1, 4096, 1),
  ],
)  # fmt: skip
def test_few_images_do_not_cost_what_many_do(
  workdir, monkeypatch, count, side, rows
):
  asked = []
  for name in ('extract', 'reconstruct'):
    monkeypatch.setattr(
      openset.features, name, lambda *_, batch_size: asked.append(batch_size)
    )
  model = dataclasses.replace(
    openset.load(workdir), image_shape=(side, side, 1)
  )
  image = np.zeros((1, side, side, 1), np.uint8)
  image = np.broadcast_to(image, (count, side, side, 1))
  model.features(image)
  model.reconstruct(image)
  model.features(image, batch_size=3)
  assert asked == [rows, rows, 3]


def test_rejecting_a_share(workdir, benchmark):
  model = openset.load(workdir)
  calibrate = model.features(benchmark.calibrate.image)
  held_out = scorer.score(calibrate, model.fitted, method=model.method)
  np.testing.assert_array_equal(model.held_out, held_out.unknown_score)
  before = 0.0
  for share in (0.05, 0.1, 0.3, 0.49):
    changed = model.rejecting(share)
    assert changed.decision == 'calibrated'
    rejected = changed.score(calibrate).prediction == types.UNKNOWN
    # The largest possible number that is no more than was asked for.
    assert np.mean(rejected) == np.floor(share * len(rejected)) / len(rejected)
    found = changed(benchmark.test.image).prediction == types.UNKNOWN
    assert found.mean() >= before
    before = found.mean()
  assert model.decision != changed.decision or model.threshold > (
    changed.threshold
  )
  for share in (0.0, 0.5, -1.0, 'a', None):
    with pytest.raises(types.UsageError, match='reject_known'):
      model.rejecting(share)


def test_reconstructions(workdir, benchmark):
  model = openset.load(workdir)
  image = benchmark.test.image[:20]
  made = model.reconstruct(image)
  assert made.shape == image.shape and made.dtype == np.uint8
  np.testing.assert_array_equal(model.reconstruct(list(image)), made)
  # Better than the mean image would be.
  error = np.square(made.astype(float) - image).mean()
  assert error < np.square(image.mean(axis=0) - image).mean()


@pytest.mark.parametrize(
  'image',
  [
    np.zeros((2, 8, 8, 1), np.float32),
    np.zeros((2, 9, 8, 1), np.uint8),
    np.zeros((8, 8, 1), np.uint8),
    np.zeros((2, 8, 8, 3), np.uint8),
  ],
)
def test_other_images(workdir, image):
  model, message = openset.load(workdir), r'uint8 of shape \[N, 8, 8, 1\]'
  for ask in (model, model.reconstruct):
    with pytest.raises(types.UsageError, match=message):
      ask(image)


def test_features_are_kept(workdir, benchmark):
  found = saved.load_features(workdir)
  assert list(found) == [name for name, _, _ in benchmark.parts()]
  model = openset.load(workdir)
  expected = model.features(benchmark.test.image)
  for name in ('logits', 'latent', 'reconstruction_error'):
    np.testing.assert_array_equal(
      getattr(found['test'], name), getattr(expected, name)
    )
  np.testing.assert_array_equal(found['test'].label, benchmark.test.label)
  assert (found['noise'].label == types.UNKNOWN).all()
  # They are enough to fit again.
  again = weibull.fit(found['train'], vector='joint', tail_size=20)
  before = saved.load(workdir).models['crosr_published']
  np.testing.assert_array_equal(again.shape, before.shape)


def test_a_net_without_a_decoder_and_without_features(
  digits_run, tmp_path, benchmark
):
  config = digits_run[1].copy_and_resolve_references()
  config.model.lateral, config.report.features = 'none', False
  (tmp_path / 'features.npz').write_bytes(b'of an earlier run')
  report = pipeline.run(config, 'digits', tmp_path, tmp_path)
  model = openset.load(tmp_path)
  rejected = model(benchmark.test.image).prediction == types.UNKNOWN
  assert np.mean(rejected) == report['known_rejected']['test']
  with pytest.raises(types.UsageError, match='without a decoder'):
    model.reconstruct(benchmark.test.image)
  with pytest.raises(types.UserError, match=r'report\.features=True'):
    saved.load_features(tmp_path)


@pytest.fixture
def predict(run_command):
  def call(*arguments, code=0, **options):
    # Compiled as for users: a place in the batch changes no bit.
    process = run_command('predict', *arguments, XLA_FLAGS='', **options)
    assert process.returncode == code, process.stderr
    assert 'Traceback' not in process.stderr
    return process

  return call


@pytest.fixture
def pictures(tmp_path, benchmark):
  """Ten test digits and two unknown ones as files, in alphabetical order."""
  image = np.concatenate(
    [benchmark.test.image[:10], benchmark.unknown['digits_unknown'].image[:2]]
  )
  for i, x in enumerate(image):
    path = tmp_path / 'pictures' / str(i // 6) / f'{i:02d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x[..., 0]).save(path)
  return tmp_path / 'pictures', image


def test_predict_says_what_the_model_says(workdir, predict, pictures):
  folder, image = pictures
  process = predict(f'--workdir={workdir}', '--format=json', folder)
  found = json.loads(process.stdout)
  model = openset.load(workdir)
  scores = model(image)
  assert [pathlib.Path(x['path']).stem for x in found] == [
    f'{i:02d}' for i in range(12)
  ]
  nearest = np.argmax(model.features(image).logits, axis=1)
  for i, row in enumerate(found):
    k = scores.prediction[i]
    assert row['prediction'] == ('unknown' if k < 0 else str(k))
    # The test's devices are others than those of a command.
    for key, value in (
      ('probability', scores.probability[i, k if k >= 0 else nearest[i]]),
      ('unknown_probability', scores.probability[i, -1]),
    ):
      assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert row['nearest'] == str(nearest[i])
    assert row['error'] == ''
  # The decision is told, since it is not the largest probability.
  assert f'decision: {model.decision}' in process.stderr


def test_one_bad_file_never_stops_the_rest(workdir, predict, pictures):
  folder, _ = pictures
  (folder / '0' / '03b.png').write_bytes(b'x')
  (folder / '0' / 'notes.txt').write_text('x')
  lines = f'{folder}/1/*.png\n\n{folder}/0/00.png\r\n'
  process = predict(
    f'--workdir={workdir}', '--format=csv', folder / '0', '-', 'nowhere.png',
    code=1, stdin=lines,
  )  # fmt: skip
  rows = list(csv.DictReader(io.StringIO(process.stdout)))
  names = [pathlib.Path(row['path']).name for row in rows]
  assert names == [
    '00.png', '01.png', '02.png', '03.png', '03b.png', '04.png', '05.png',
    *(f'{i:02d}.png' for i in range(6, 12)), '00.png', 'nowhere.png',
  ]  # fmt: skip
  errors = {row['path']: row['error'] for row in rows if row['error']}
  assert list(errors.values()) == [
    'it is no BMP, JPEG, PNG or WebP image', 'there is no such file',
  ]  # fmt: skip
  assert all(not r['prediction'] for r in rows if r['error'])
  assert rows[0] == rows[13]
  assert 'error: 2 of 15 files could not be read' in process.stderr
  assert '1 files that are no images are left out' in process.stderr


def test_images_of_other_names(predict, pictures, workdir):
  """A folder's images are those that training would find there."""
  folder, _ = pictures
  (folder / '0' / '00.png').rename(folder / '0' / '00')
  with Image.open(folder / '0' / '01.png') as picture:
    picture.save(folder / '0' / '01.jfif', 'JPEG')
  (folder / '0' / 'notes.txt').write_text('BUT no image')
  process = predict(f'--workdir={workdir}', '--format=json', folder / '0')
  names = [pathlib.Path(x['path']).name for x in json.loads(process.stdout)]
  assert names[:3] == ['00', '01.jfif', '01.png'] and 'notes.txt' not in names
  assert '1 files that are no images are left out' in process.stderr


def test_twenty_kinds_of_bad_file(workdir, predict, pictures, tmp_path):
  folder, _ = pictures
  photo = Image.new('RGB', (30, 20), (90, 20, 50))
  bad = []
  for name, content, _ in bad_files(photo):
    bad.append(tmp_path / name)
    bad[-1].write_bytes(content)
  good = folder / '0' / '00.png'
  process = predict(
    f'--workdir={workdir}', '--format=json', good, *bad, good, code=1
  )
  rows = json.loads(process.stdout)
  assert [bool(row['error']) for row in rows] == [False, *[True] * 20, False]
  assert rows[0] == rows[-1]
  assert 'error: 20 of 22 files could not be read' in process.stderr


def test_names_that_are_no_text(workdir, environment, pictures):
  """As bytes on standard input, in a strict locale; hidden files; links."""
  folder, _ = pictures
  odd = os.fsencode(folder) + b'/caf\xe9.png'
  with open(odd, 'wb') as file, open(folder / '0' / '00.png', 'rb') as start:
    file.write(start.read())
  (folder / '0' / '._00.png').write_bytes(b'x')
  (folder / 'link').symlink_to(folder / '1')
  process = subprocess.run(
    [sys.executable, '-m', 'crosr_jax.predict', f'--workdir={workdir}',
     '--format=csv', '-', 'x' * 300, folder],
    cwd=ROOT, env={**environment, 'PYTHONIOENCODING': 'utf-8:strict'},
    capture_output=True, input=odd + b'\n',
  )  # fmt: skip
  assert process.returncode == 1 and b'Traceback' not in process.stderr
  lines = process.stdout.splitlines()
  assert b'caf' in lines[1] and lines[1].endswith(b',')
  assert b'cannot be read (File name too long)' in lines[2]
  # 12 and the odd one, and those behind the link once more.
  assert len(lines) == 3 + 13 + 6


def test_names_that_the_terminal_cannot_show(workdir, environment, pictures):
  folder, _ = pictures
  (folder / '0' / '00.png').rename(folder / '0' / '\U0001f600.png')
  # JSON is ASCII.
  for form, shown in (('table', 'f600'), ('csv', 'f600'), ('json', 'ude00')):
    process = subprocess.run(
      [sys.executable, '-m', 'crosr_jax.predict', f'--workdir={workdir}',
       f'--format={form}', folder],
      cwd=ROOT, env={**environment, 'PYTHONIOENCODING': 'latin-1:strict'},
      capture_output=True, encoding='latin-1',
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert f'{shown}.png' in process.stdout and '05.png' in process.stdout


@pytest.mark.parametrize(
  ('closed', 'lines'), [('<&-', 13), ('2>&-', 13), ('<&- >&- 2>&-', 0)]
)
def test_closed_streams(workdir, environment, pictures, closed, lines):
  folder, _ = pictures
  command = f'"$0" -m crosr_jax.predict "$@" {closed}'
  process = subprocess.run(
    ['bash', '-c', command, sys.executable, f'--workdir={workdir}', folder],
    cwd=ROOT, env=environment, capture_output=True, text=True,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr
  assert 'Traceback' not in process.stderr
  assert len(process.stdout.splitlines()) == lines


def test_the_table(workdir, predict, pictures):
  folder, image = pictures
  process = predict(f'--workdir={workdir}', '--reject_known=0.3', folder)
  lines = process.stdout.splitlines()
  assert lines[0].split() == [
    'prediction', 'probability', 'unknown', 'nearest', 'image',
  ]  # fmt: skip
  expected = openset.load(workdir).rejecting(0.3)(image).prediction
  found = [line.split()[0] for line in lines[1:]]
  assert found == ['unknown' if k < 0 else str(k) for k in expected]
  assert 'rejects 29.8% of the known images held out (84)' in process.stderr


def test_mistakes(workdir, predict, pictures, tmp_path):
  folder, _ = pictures
  (tmp_path / 'none').mkdir()
  for arguments, words in (
    ((folder,), ('--workdir is needed',)),
    (('--workdir=~nobody-of-that-name/x', folder), ('home',)),
    ((f'--workdir={workdir}',), ('name images',)),
    ((f'--workdir={tmp_path}/no', folder), ('no folder',)),
    ((f'--workdir={workdir}', tmp_path / 'none'), ('holds no image',)),
    ((f'--workdir={workdir}', f'{tmp_path}/*.jpg'), ('fits no file',)),
    ((f'--workdir={workdir}', '--format=xml', folder), ('--format', 'json')),
    (
      (f'--workdir={workdir}', '--reject_known=0.7', folder),
      ('reject_known', '0.5'),
    ),
  ):
    process = predict(*arguments, code=2)
    (line,) = [x for x in process.stderr.splitlines() if 'error: ' in x]
    for word in words:
      assert word in line
    assert not process.stdout
  (tmp_path / '-x.png').touch()
  process = predict(f'--workdir={workdir}', '-x.png', code=2, cwd=tmp_path)
  assert "flag 'x.png'; the name of a file that begins with -" in process.stderr
  process = predict(f'--workdir={tmp_path / "none"}', folder, code=1)
  assert 'model.json is missing: no finished run' in process.stderr
  assert 'standard input' in predict('--help').stdout
