"""What is odd with a fit, and that it is said."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from crosr_jax import diagnosis, judge, saved, types

_RECIPE = {
  'vector': 'joint', 'scaling': 'within_class', 'tail': '20', 'alpha': 10,
}  # fmt: skip


def _part(generator, n=240, *, spread=1.0, wrong=0.0, shift=0.0):
  """Three classes; those of class 2 may lie elsewhere, some may be wrong."""
  label = np.arange(n, dtype=np.int32) % 3
  logits = generator.normal(size=(n, 3)) + 12 * np.eye(3)[label]
  told = np.where(generator.uniform(size=n) < wrong, (label + 1) % 3, label)
  latent = spread * generator.normal(size=(n, 4))
  latent[label == 2] += shift
  return types.Features(logits, latent, told.astype(np.int32))


def _examine(generator, decision='argmax', test=None, odd=None, **held_out):
  parts = {
    'train': _part(generator),
    'select': _part(generator, **held_out),
    'calibrate': _part(generator, **held_out),
    'test': _part(generator, **(test or held_out)),
    'odd': _part(generator, **(odd or {}))._replace(label=np.full(240, -1)),
  }
  scored = judge.score(
    parts, 'abc', **_RECIPE, decision=decision, reject_known=0.05
  )
  return parts, scored, diagnosis.examine(
    scored, 'abc', reject_known=0.05,
    unknown={'odd': judge.against(scored, 'odd', 1)},
  )  # fmt: skip


def test_numbers_of_a_class(generator):
  parts, scored, found = _examine(generator)
  model = scored.fitted['crosr']
  a = np.concatenate([parts['train'].logits, parts['train'].latent], axis=1)
  for k, row in enumerate(found.rows):
    own = a[parts['train'].label == k]
    d = np.linalg.norm((own - model.mav[k]) / model.feature_scale, axis=1)
    np.testing.assert_allclose(
      row.train, np.percentile(d, diagnosis.PERCENTILES), rtol=1e-4
    )
    assert row.num_train == 80 and row.tail_count == 20
    np.testing.assert_allclose(row.tail_begin, np.sort(d)[-20], rtol=1e-4)
    assert row.tail_begin < row.half < d.max() + 1
    test = scored.decided['test'][parts['test'].label == k]
    assert row.rejected_test == np.mean(test == -1)
  assert found.bin_count.sum() == 240 and found.width == 7 and found.dead == 0
  assert found.accuracy['test'] == 1.0


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'spread': 3.0}, ['are called unknown, 5.0% was asked for', 'by heart']),
    ({'spread': 0.2}, ['unknowns are missed for nothing']),
    ({'shift': 6.0}, ['Class c: ', 'wrong labels']),
    ({'wrong': 0.3}, ['of those held out: the net has overfitted']),
  ],
)
def test_what_is_odd_is_said(generator, fields, words):
  _, _, found = _examine(generator, **fields)
  told = '\n'.join(found.findings)
  for word in words:
    assert word in told
  # Unknowns that are like known ones.
  assert 'odd: AUROC' in told or 'spread' in fields or 'shift' in fields


def test_a_threshold_of_few_that_does_not_keep_to_it(generator):
  """Where it was found it always does."""
  parts = {
    'train': _part(generator),
    'select': _part(generator, spread=1.5),
    'calibrate': _part(generator, 30),
    'test': _part(generator, spread=1.5),
  }
  scored = judge.score(
    parts, 'abc', **_RECIPE, decision='calibrated', reject_known=0.05
  )
  found = diagnosis.examine(scored, 'abc', reject_known=0.05, unknown={})
  assert found.rejected['calibrate'] <= 0.05
  (told, *_) = found.findings
  assert told.startswith(
    f'{scored.rejected("select"):.1%} of the known samples held out for '
    'choices are called unknown, 5.0% was asked for: the threshold of 30 others'
  )


def test_nothing_odd_is_said_of_a_good_fit(generator):
  _, _, found = _examine(generator, decision='calibrated')
  assert [x for x in found.findings if not x.startswith('odd: ')] == []


def test_a_test_part_that_is_called_unknown(generator):
  _, scored, found = _examine(generator, 'calibrated', test={'spread': 2.5})
  assert scored.rejected('test') > 0.5
  (told,) = [x for x in found.findings if not x.startswith(('odd', 'Class'))]
  assert told.startswith(f'{scored.rejected("test"):.1%} of the known test ')
  assert 'of those held out, 5.0% was asked for: test images differ' in told


def test_a_test_part_that_is_classified_wrong(generator):
  _, _, found = _examine(generator, 'calibrated', test={'wrong': 0.3})
  told = '\n'.join(found.findings)
  right = f'{found.accuracy["test"]:.1%}'
  assert f'held out are classified right, {right} of the test samples' in told
  # Of samples held out the net knows what it knows of those it was trained on.
  assert 'overfitted' not in told


def test_unknowns_that_are_missed(generator):
  _, scored, found = _examine(generator, 'calibrated', odd={'spread': 1.3})
  share = scored.rejected('odd')
  assert 0.1 < share < 0.5 and found.rejected['odd'] == share
  (told,) = found.findings
  assert told.startswith(f'odd: {share:.1%} of it is called unknown, though AU')
  assert 'A larger share of known samples to give up (scorer.reject_kn' in told
  _, _, found = _examine(generator, 'calibrated', odd={'spread': 4.0})
  assert found.rejected['odd'] > 0.9 and found.findings == []


def test_dead_codes_and_short_tails(generator):
  counts = {'train': 45, 'select': 240, 'calibrate': 240, 'test': 240}
  parts = {}
  for name, count in counts.items():
    part = _part(generator, count)
    latent = np.zeros((count, 12))
    latent[:, 0] = part.latent[:, 0]
    parts[name] = part._replace(latent=latent)
  scored = judge.score(
    parts, 'abc', **_RECIPE, decision='argmax',
    reject_known=0.05,
  )  # fmt: skip
  found = diagnosis.examine(scored, 'abc', reject_known=0.05, unknown={})
  told = '\n'.join(found.findings)
  assert '11 of 15 coordinates never moved' in told
  assert 'Class a: its Weibull rests on 15 distances' in told


def test_reliability_by_hand():
  logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
  found = types.Features(logits, np.zeros((4, 0)), np.array([0, 1, 1, 1]))
  confidence, right, count = diagnosis._reliability(found)
  np.testing.assert_allclose(count[[6, 8, 9]], [1, 1, 2])
  np.testing.assert_allclose(confidence[[6, 8, 9]], [0.6, 0.8, 0.9])
  np.testing.assert_allclose(right[[6, 8, 9]], [1, 1, 0.5])


def test_what_is_no_number_is_null(generator):
  _, _, found = _examine(generator)
  row = found.rows[0]._replace(held_out=(float('nan'),) * 4, rejected_test=0.1)
  told = json.dumps(diagnosis.plain(found._replace(rows=[row])))
  again = json.loads(told, parse_constant=pytest.fail)
  assert again['rows'][0]['held_out'] == [None] * 4
  assert again['rows'][0]['rejected_test'] == 0.1
  assert len(again['bin_count']) == 10


def test_medians_of_nothing(generator):
  _, _, found = _examine(generator)
  nothing = found.rows[0]._replace(train=(0.0,) * 4)
  assert diagnosis._ratio([nothing]) == 1.0
  # Half of them are all as usual; the others are twice as far.
  half = found.rows[0]._replace(
    train=(0.0, 0.0, 2.0, 3.0), held_out=(0.0, 0.0, 4.0, 9.0)
  )
  assert diagnosis._ratio([half, nothing]) == 2.0


def test_a_class_without_a_test_sample(generator):
  rng, label = generator, np.arange(60) % 3
  logits = 6 * np.eye(3)[label] + rng.normal(size=(60, 3))
  whole = types.Features(logits, np.zeros((60, 0)), label)
  parts = dict.fromkeys(types.PARTS, whole)
  parts['test'] = whole.rows(label != 1)
  assert judge.untested(whole, 'abc') == []
  (told,) = judge.untested(parts['test'], 'abc')
  assert told.startswith('No test sample is of b: F1 of such a class is 0')
  scored = judge.score(
    parts, 'abc', **_RECIPE, decision='argmax', reject_known=0.02
  )
  found = diagnosis.examine(scored, 'abc', reject_known=0.02, unknown={})
  assert np.isnan([x.rejected_test for x in found.rows]).tolist() == [
    False, True, False,
  ]  # fmt: skip


def test_the_command(digits_run, run_command):
  workdir, _ = digits_run
  before = {p.name: p.stat().st_mtime_ns for p in workdir.iterdir()}
  process = run_command('diagnose', f'--workdir={workdir}', '--format=json')
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout)
  report = json.loads((workdir / 'report.json').read_text())
  assert found['rejected']['test'] == report['known_rejected']['test']
  assert found['accuracy']['test'] == report['closed_set_accuracy']
  assert [row['name'] for row in found['rows']] == list('0123456')
  with Image.open(workdir / 'diagnosis.png') as picture:
    assert picture.width > 1000
  (workdir / 'diagnosis.png').unlink()
  assert before == {p.name: p.stat().st_mtime_ns for p in workdir.iterdir()}
  table = run_command('diagnose', f'--workdir={workdir}')
  assert 'decision' in table.stdout
  # A line for each class, as its help says.
  lines = table.stdout.splitlines()[2:]
  for line, row in zip(lines, found['rows'], strict=False):
    cells = line.split()
    assert cells[0] == row['name']
    assert cells[5] == f'{row["tail_begin"]:.2f}'
    assert cells[6] == f'{row["half"]:.2f}'
    assert cells[7] == str(row['tail_count'])


def test_mistakes(run_command, digits_run, tmp_path):
  workdir, _ = digits_run
  for arguments, code, words in (
    ((), 2, '--workdir is needed'),
    ((f'--workdir={workdir}', '--format=x'), 2, '--format'),
    ((f'--workdir={tmp_path}',), 1, 'no finished run'),
  ):
    process = run_command('diagnose', *arguments)
    assert process.returncode == code and words in process.stderr
    assert 'Traceback' not in process.stderr


def test_a_run_without_weibulls(generator):
  part = _part(generator)
  parts = dict.fromkeys(types.PARTS, part._replace(latent=part.latent[:, :1]))
  scored = judge.score(
    parts, 'abc', **_RECIPE, decision='argmax', reject_known=0.05,
    augmented=True,
  )  # fmt: skip
  with pytest.raises(types.UserError, match='has no Weibulls'):
    diagnosis.examine(scored, 'abc', reject_known=0.05, unknown={})


def test_features_round_trip(tmp_path, generator):
  parts = {'train': _part(generator), 'a b/c': _part(generator)}
  saved.write_features(tmp_path / 'x.npz', parts)
  found = saved.read_features(tmp_path / 'x.npz')
  assert list(found) == list(parts)
  for name, part in parts.items():
    for a, b in zip(found[name], part, strict=True):
      np.testing.assert_array_equal(a, b)
  # Of NumPy's own types alone files have names.
  half = parts['train']._replace(
    logits=parts['train'].logits.astype(jax.numpy.bfloat16),
    label=parts['train'].label.astype('>i2'),
  )
  saved.write_features(tmp_path / 'x.npz', {'train': half})
  found = saved.read_features(tmp_path / 'x.npz')['train']
  assert found.logits.dtype == np.float32
  assert found.latent.dtype == half.latent.dtype
  assert found.label.dtype == half.label.dtype
  np.testing.assert_array_equal(found.logits, half.logits.astype(np.float32))
