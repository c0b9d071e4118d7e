"""A finished run scored again."""

import json

import numpy as np
import pytest
from PIL import Image

from crosr_jax import data, judge, metrics, openset, pipeline, saved, types


@pytest.fixture
def workdir(digits_run):
  return digits_run[0]


@pytest.fixture
def evaluate(run_command):
  def call(*arguments, code=0):
    process = run_command('evaluate', *arguments)
    assert process.returncode == code, process.stderr
    assert 'Traceback' not in process.stderr
    return process

  return call


def _figures(row):
  """All that does not depend on devices, to six digits."""
  return {
    method: {
      key: pytest.approx(value, abs=1e-6)
      for key, value in found.items()
      if isinstance(value, float)
    }
    for method, found in row.items()
    if isinstance(found, dict)
  }


def test_without_a_change_it_is_the_report(workdir, evaluate):
  process = evaluate(f'--workdir={workdir}', '--format=json')
  found = json.loads(process.stdout)
  report = json.loads((workdir / 'report.json').read_text())
  for key in ('decision', 'closed_set_accuracy'):
    assert found[key] == report[key]
  assert found['known_rejected'].items() >= report['known_rejected'].items()
  assert list(found['unknown']) == list(report['unknown'])
  for name, row in report['unknown'].items():
    for key in ('n_known', 'n_unknown', 'openness', 'ceiling_f1'):
      assert found['unknown'][name][key] == row[key]
    del row['trivial']
    for method, figures in _figures(row).items():
      assert figures.items() <= found['unknown'][name][method].items()
    assert 'energy' in found['unknown'][name]


def test_other_recipes_are_those_of_the_main_job(
  digits_run, evaluate, tmp_path
):
  workdir, config = digits_run
  process = evaluate(
    f'--workdir={workdir}', '--format=json', '--vector=joint',
    '--scaling=none', '--tail=30', '--decision=tpr95',
  )  # fmt: skip
  found = json.loads(process.stdout)
  config = config.copy_and_resolve_references()
  config.weibull.update(vector='joint', scaling='none', tail='30')
  config.scorer.decision = 'tpr95'
  copy = tmp_path / 'copy'
  copy.mkdir()
  for name in ('checkpoints', 'digests', 'config.json'):
    (copy / name).symlink_to(workdir / name)
  report = pipeline.run(config, 'digits', copy, copy)
  assert found['decision'] == 'tpr95'
  assert found['known_rejected']['test'] == report['known_rejected']['test']
  for name, row in report['unknown'].items():
    figures = _figures({'crosr': row['crosr']})['crosr']
    assert figures.items() <= found['unknown'][name]['crosr'].items()
  # What is in the workdir was not touched.
  assert saved.load_info(workdir)['weibull']['vector'] == 'evidence'


def test_a_margin_that_is_asked_for(evaluate, tmp_path, generator):
  path, parts = tmp_path / 'x.npz', _parts(generator)
  saved.write_features(path, parts)
  words = (f'--features={path}', '--tail=20', '--format=json', '--margin=1')
  found = json.loads(evaluate(*words).stdout)
  assert found['weibull']['margin'] == 1
  fields = {'alpha': 10, 'decision': 'auto', 'reject_known': 0.02, 'tail': '20'}
  fields |= {'vector': 'evidence', 'scaling': 'within_class'}
  rows = [
    judge.against(judge.score(parts, 'abc', margin=x, **fields), 'odd', 4)
    for x in (1.0, 0.0)
  ]
  told, plain = (_figures({'crosr': row['crosr']})['crosr'] for row in rows)
  assert (
    told != plain and told.items() <= found['unknown']['odd']['crosr'].items()
  )


def test_unknowns_of_a_folder(digits_run, evaluate, tmp_path):
  workdir, config = digits_run
  benchmark = data.load(
    seed=0, data_dir=tmp_path, **config.data, **config.evaluation
  )
  folder = tmp_path / 'Some others'
  folder.mkdir()
  strange = benchmark.unknown['digits_unknown'].image[:40]
  for i, image in enumerate(strange):
    Image.fromarray(image[..., 0]).save(folder / f'{i:02d}.png')
  (folder / 'notes.txt').write_text('x')
  kept = tmp_path / 'kept.npz'
  process = evaluate(
    f'--workdir={workdir}', f'--unknown={folder}', '--unknown=noise',
    f'--save_features={kept}', '--format=json', f'--data_dir={tmp_path}',
  )  # fmt: skip
  assert 'left out: ' in process.stderr and 'notes.txt' in process.stderr
  found = json.loads(process.stdout)['unknown']
  assert {n: row['n_unknown'] for n, row in found.items()} == {
    'some_others': 40, 'noise': 316,
  }  # fmt: skip
  model = openset.load(workdir)
  known, unknown = model(benchmark.test.image), model(strange)
  wins = np.mean(unknown.unknown_score[:, None] > known.unknown_score[None, :])
  assert found['some_others']['crosr']['auroc'] == pytest.approx(wins, abs=1e-4)
  report = json.loads((workdir / 'report.json').read_text())
  assert found['noise']['crosr']['auroc'] == pytest.approx(
    report['unknown']['noise']['crosr']['auroc'], abs=1e-6
  )
  # The features that were saved are enough, for any recipe.
  again = json.loads(
    evaluate(
      f'--features={kept}', '--format=json', '--reject_known=0.05'
    ).stdout
  )
  for name, row in again['unknown'].items():
    # Of how many classes a set of a file is, nobody knows.
    assert row['openness'] is None
    for method in _figures(row):
      assert row[method]['auroc'] == pytest.approx(
        found[name][method]['auroc'], abs=1e-6
      )


def test_the_table(workdir, evaluate):
  process = evaluate(f'--workdir={workdir}')
  assert 'digits_unknown: 316 known, 533 unknown' in process.stdout
  assert 'of the known test samples are called unknown' in process.stdout


def _parts(generator, k=3, n=60):
  label = np.arange(n) % k
  return {
    name: types.Features(
      generator.normal(size=(n, k)) + 6 * np.eye(k)[label] * (sign > 0),
      np.zeros((n, 0)),
      label if sign > 0 else np.full(n, -1),
    )
    for name, sign in (
      ('train', 1), ('select', 1), ('calibrate', 1), ('test', 1), ('odd', -1),
    )
  }  # fmt: skip


def test_features_of_any_net(evaluate, tmp_path, generator):
  path = tmp_path / 'mine.npz'
  saved.write_features(path, _parts(generator))
  process = evaluate(f'--features={path}', '--tail=20', '--vector=joint')
  assert 'odd: 60 known, 60 unknown' in process.stdout


@pytest.mark.parametrize('decision', ['argmax', 'calibrated'])
def test_what_the_decision_finds(evaluate, tmp_path, generator, decision):
  parts = _parts(generator)
  # Some of the unknown samples are like a known class.
  parts['odd'].logits[:20] = parts['test'].logits[:20]
  saved.write_features(tmp_path / 'x.npz', parts)
  words = (f'--features={tmp_path / "x.npz"}', f'--decision={decision}')
  found = json.loads(evaluate(*words, '--format=json').stdout)
  scored = judge.score(
    parts, 'abc', vector='evidence', scaling='within_class', tail='auto',
    alpha=10, decision=decision, reject_known=0.02,
  )  # fmt: skip
  share = np.mean(scored.decided['odd'] == types.UNKNOWN)
  assert 0 < share < 1 and found['unknown_found'] == {'odd': share}
  told = evaluate(*words).stdout
  assert f'\nodd: {share:.1%} of it is called unknown\n' in told


def test_f1_tpr95_is_of_the_decision_of_that_name(generator):
  """Of samples so near to those of its threshold that rounding could decide."""
  parts = _parts(generator)
  near = parts['calibrate']
  parts['odd'] = near._replace(
    logits=near.logits * np.float32(1 - 1e-5), label=np.full(60, types.UNKNOWN)
  )
  scored = judge.score(
    parts, 'abc', vector='evidence', scaling='within_class', tail='20',
    alpha=10, decision='tpr95', reject_known=0.02,
  )  # fmt: skip
  assert scored.threshold == scored.thresholds['crosr']
  decided = [scored.decided[name] for name in ('test', 'odd')]
  truth = np.append(parts['test'].label, parts['odd'].label)
  told = judge.against(scored, 'odd', 1)['crosr']['macro_f1_tpr95']
  assert told == metrics.macro_f1(np.concatenate(decided), truth, 3)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda p: p.pop('select'), "no part 'select'"),
    (
      lambda p: p.update(test=p['test']._replace(logits=np.zeros((60, 4)))),
      'test/logits has shape [60, 4], needed is [60, 3]',
    ),
    (
      lambda p: p.update(test=p['test']._replace(label=np.full(60, 3))),
      'test/label has 3, known classes are 0..2',
    ),
    (
      lambda p: p.update(odd=types.Features(*(x[:0] for x in p['odd']))),
      'odd holds no sample; leave it out',
    ),
    (
      lambda p: p.update(validation=p['test']),
      'validation/label has 2, but labels of unknown sets are -1; known',
    ),
  ],
)
def test_features_that_cannot_be_used(
  evaluate, tmp_path, generator, change, words
):
  parts = _parts(generator)
  change(parts)
  saved.write_features(tmp_path / 'x.npz', parts)
  process = evaluate(f'--features={tmp_path / "x.npz"}', code=2)
  assert words in process.stderr


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda a: a.pop('train/latent'), "train has no 'latent'; .* shape [N, 0]"),
    (lambda a: a.update(mine=a['test/label']), "'mine' is none of <part>/<fie"),
    (
      lambda a: a.update({'test/labels': a['test/label']}),
      "'test/labels' is none of <part>/<field>, with the fields logits, ",
    ),
  ],
)
def test_arrays_that_are_no_features(tmp_path, generator, change, words):
  arrays = saved._by_field(_parts(generator))
  del arrays['test/reconstruction_error']
  np.savez(tmp_path / 'x.npz', **arrays)
  assert (
    saved.read_features(tmp_path / 'x.npz').keys() == _parts(generator).keys()
  )
  change(arrays)
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(types.UserError) as caught:
    saved.read_features(tmp_path / 'x.npz')
  first, _, second = words.partition(' .* ')
  assert first in str(caught.value) and second in str(caught.value)


@pytest.mark.parametrize(
  ('field', 'shape', 'words'),
  [
    ('logits', (60,), 'train/logits has shape [60]'),
    ('label', (), 'they have 2, 2 and 0'),
    ('label', (60, 3), 'they have 2, 2 and 2'),
    ('latent', (59, 0), 'train/latent has 59 rows for 60 labels'),
    ('logits', (59, 3), 'train/logits has shape [59, 3], needed is [60, 3]'),
    ('latent', (60, 2), 'has 0 columns, train/latent has 2'),
    (
      'reconstruction_error',
      (60,),
      'reconstruction_error has shape [0], needed is [',
    ),
  ],
)
def test_shapes(generator, field, shape, words):
  parts = _parts(generator)
  changed = np.zeros(shape, np.int64)
  parts['train'] = parts['train']._replace(**{field: changed})
  with pytest.raises(types.UsageError) as caught:
    judge.check_parts(parts, 'x.npz')
  assert words in str(caught.value)


@pytest.mark.parametrize(
  ('part', 'field', 'value', 'words'),
  [
    ('odd', 'label', 'unknown', 'odd/label has <U'),
    ('train', 'logits', '1.5', 'train/logits has <U'),
    ('test', 'logits', 1j, 'test/logits has complex128 values'),
    ('odd', 'logits', np.nan, '1 of 180 values of odd/logits are not finite'),
    ('select', 'label', np.inf, 'values of select/label are not finite'),
    ('odd', 'logits', 1e39, 'values of odd/logits are too large for float32'),
  ],
)
def test_values(generator, part, field, value, words):
  parts = _parts(generator)
  found = getattr(parts[part], field).astype(np.asarray([value, 1.0]).dtype)
  found.flat[3] = value
  parts[part] = parts[part]._replace(**{field: found})
  with pytest.raises(types.UsageError) as caught:
    judge.check_parts(parts, 'x.npz')
  assert words in str(caught.value)


def test_unknowns_that_are_called_as_a_known_part(workdir, evaluate, tmp_path):
  folder = tmp_path / 'test'
  folder.mkdir()
  Image.new('L', (8, 8), 255).save(folder / 'white.png')
  process = evaluate(
    f'--workdir={workdir}', f'--unknown={folder}', f'--data_dir={tmp_path}'
  )
  assert 'test_unknown: 316 known, 1 unknown' in process.stdout


def test_a_net_without_weibulls_has_no_recipe(evaluate, tmp_path, generator):
  parts = {
    name: part._replace(latent=np.zeros((60, 1)))
    for name, part in _parts(generator).items()
  }
  own = {'vector': 'evidence', 'scaling': 'within_class', 'tail': 'auto'}
  fields = {'alpha': 10, 'decision': 'auto', 'reject_known': 0.05}
  info = {
    'class_names': list('abc'), 'method': 'augmented', 'weibull': own,
    'scorer': fields,
  }  # fmt: skip
  whole = saved.Saved(info, {}, np.zeros(3, np.float32), {})
  saved.save(tmp_path, whole, parts)
  run = f'--workdir={tmp_path}'
  assert 'decision ' in evaluate(run).stdout
  for flag in ('--vector=joint', '--scaling=none', '--tail=20', '--margin=0.0'):
    process = evaluate(run, flag, code=2)
    assert f'{flag}: this net has an output for unknown' in process.stderr


def test_mistakes(workdir, evaluate, tmp_path):
  (tmp_path / 'x.npz').write_bytes(b'PK\x03\x04 nothing')
  np.savez(tmp_path / 'y.npz', a=np.array([print], object))
  run = f'--workdir={workdir}'
  for arguments, code, words in (
    ((), 2, '--workdir is needed'),
    (('--features=x.npz', '--unknown=noise'), 2, 'needs the net'),
    # Of another net, maybe.
    (
      (run, f'--features={workdir / "features.npz"}', '--unknown=noise'),
      2,
      '--unknown=noise: its features would be of the net of --workdir',
    ),
    ((run, '--unknown=nonsense'), 2, 'no folder, and no unknown set'),
    ((run, '--unknown=mnist_noise:sum'), 2, 'made of known test images'),
    ((run, '--unknown=noise:foo'), 2, '--unknown: recipe of noise must be'),
    ((run, '--unknown=cifar100'), 2, '--unknown: cifar100 has images of'),
    ((run, '--unknown=noise', '--max_unknown=0'), 2, 'at least 1 is needed'),
    ((run, '--max_unknown=9'), 2, '--max_unknown=9 is of --unknown, and there'),
    ((run, '--tail=-3'), 2, 'tail'),
    (
      (run, '--vector=joint', '--margin=1'),
      2,
      "--margin=1: the vector 'joint' has none; take --vector=evidence or",
    ),
    ((run, '--format=xml'), 2, '--format'),
    ((run, '--reject_known=0.9'), 2, 'reject_known'),
    ((f'--features={tmp_path / "x.npz"}',), 1, 'holds no features'),
    ((f'--features={tmp_path / "y.npz"}',), 1, 'holds no features'),
    ((f'--features={tmp_path / "no.npz"}',), 2, 'no.npz is no file; name'),
    ((f'--features={tmp_path}',), 2, 'is no file; name an npz file'),
    (
      (run, '--save_features=gs://b/x.npz'),
      2,
      'cannot be written to from here',
    ),
    (('--features=~nobody-of-that-name/x.npz',), 2, 'home'),
  ):
    process = evaluate(*arguments, code=code)
    assert words in process.stderr, arguments
