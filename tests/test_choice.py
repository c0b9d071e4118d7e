"""Tail and decision from known samples: the rule, by hand and by law."""

import types as python_types

import numpy as np
import pytest
from conftest import CONFIGS

from crosr_jax import choice, judge, scorer, types, weibull


def _features(generator, n, spread=1.0, k=3, width=5):
  label = (np.arange(n) % k).astype(np.int32)
  return types.Features(
    (generator.normal(0, spread, (n, k)) + 8 * np.eye(k)[label]).astype('f4'),
    generator.normal(label[:, None], spread, (n, width)).astype('f4'),
    label,
  )


@pytest.mark.parametrize('vector', ['joint', 'evidence', 'neighbour'])
def test_rejects_what_was_asked_for(generator, vector):
  train, held_out = _features(generator, 12_000), _features(generator, 6_000)
  asked = (0.01, 0.03, 0.1)
  chosen = [
    choice.tail(
      *(train, held_out),
      reject_known=r,
      vector=vector,
      scaling='within_class',
    )
    for r in asked
  ]
  assert np.all(np.diff([c.share for c in chosen]) > 0)
  for wanted, found in zip(asked, chosen, strict=True):
    assert found.reject_known == wanted and found.num_held_out == 6_000
    model = weibull.fit(
      train, vector=vector, scaling='within_class', tail_share=found.share
    )
    rejected = np.mean(scorer.score(held_out, model).prediction == -1)
    assert rejected == found.held_out[found.shares.index(found.share)]
    assert abs(rejected - wanted) == min(
      abs(x - wanted) for x in found.held_out
    )
    # Half of a tail is beyond its median, up to what the fit and the softmax
    # of others take.
    assert 0.3 * found.share < rejected < 0.7 * found.share
    assert choice.decision(rejected, wanted) == 'argmax'


def test_a_choice_is_made_on_known_samples_alone(generator):
  train, held_out = _features(generator, 3_000), _features(generator, 600)
  fields = {'vector': 'joint', 'scaling': 'none', 'reject_known': 0.02}
  expected = choice.tail(train, held_out, **fields)
  is_unknown = np.arange(3_000) % 10 == 0
  known = choice.tail(train.rows(~is_unknown), held_out, **fields)
  assert known != expected
  labelled = train._replace(
    label=np.where(is_unknown, types.UNKNOWN, train.label)
  )
  assert choice.tail(labelled, held_out, **fields) == known
  for label in (types.UNKNOWN, held_out.logits.shape[1]):
    others = held_out._replace(label=held_out.label.copy())
    others.label[:7] = label
    told = f'7 samples of no known class, labelled {label}'
    with pytest.raises(types.UsageError, match=told):
      choice.tail(train, others, **fields)
  with pytest.raises(types.UsageError, match=r"take vector='joint'"):
    choice.tail(train, held_out, **fields | {'vector': 'logits'})


def test_scores_that_give_no_threshold():
  for scores, told in (
    (np.arange(20.0)[:, None], r'must be \[n\], got shape \(20, 1\)'),
    (np.ma.masked_greater(np.arange(20.0), 9), '10 values are masked'),
  ):
    with pytest.raises(types.UsageError, match=told):
      choice.threshold(scores, 0.05)


def test_another_share_of_the_same_trials(generator):
  parts = _features(generator, 6_000), _features(generator, 3_000)
  fields = {'vector': 'joint', 'scaling': 'none'}
  found = choice.tail(*parts, reject_known=0.01, **fields)
  other = choice.tail(*parts, reject_known=0.1, **fields)
  assert choice.again(found, 0.1) == other != found
  with pytest.raises(ValueError, match='reject_known must be in'):
    choice.again(found, 0.0)


def test_held_out_samples_farther_out_need_shorter_tails(generator):
  train = _features(generator, 6_000)
  fields = {'reject_known': 0.05, 'vector': 'joint', 'scaling': 'none'}
  honest = choice.tail(train, _features(generator, 3_000), **fields)
  strange = choice.tail(train, _features(generator, 3_000, 1.15), **fields)
  assert strange.share < honest.share


def test_ties_take_the_shortest_tail(generator):
  # 20 at least of 60: all short shares are the same tail.
  train, held_out = _features(generator, 180), _features(generator, 300)
  found = choice.tail(
    *(train, held_out), reject_known=0.01, vector='joint', scaling='none'
  )
  assert found.share == choice.SHARES[0]


@pytest.mark.parametrize(
  ('rejected', 'expected'),
  [
    (0.0, 'calibrated'), (0.0099, 'calibrated'), (0.01, 'argmax'),
    (0.02, 'argmax'), (0.04, 'argmax'), (0.0401, 'calibrated'),
  ],
)  # fmt: skip
def test_decision(rejected, expected):
  assert choice.decision(rejected, 0.02) == expected


@pytest.mark.parametrize('value', [0.0, 0.5, -1.0, float('nan')])
def test_bad_share(generator, value):
  with pytest.raises(ValueError, match=r'reject_known must be in \(0, 0.5\)'):
    choice.check_decision(alpha=1, decision='auto', reject_known=value)


@pytest.mark.parametrize(
  ('scores', 'share', 'told'),
  [
    (np.arange(9.0), 2, 'reject_known must be in .* got 2'),
    (np.arange(9.0), -1, 'reject_known must be in'),
    (np.arange(9.0), float('nan'), 'reject_known must be in'),
    (np.array([0.0, np.nan]), 0.1, 'must be finite'),
  ],
)
def test_bad_thresholds(scores, share, told):
  with pytest.raises(ValueError, match=told):
    choice.threshold(scores, share)


def test_a_threshold_of_a_list():
  scores = [3.0, 1.0, 2.0, 0.0]
  assert choice.threshold(scores, 0.3) == 2.5
  assert choice.threshold(np.array(scores), 0.3) == 2.5


def test_a_threshold_between_neighbours_keeps_what_it_should():
  """Between which float32, in which it is compared, has no number."""
  low = np.float32(1.0)
  high = np.nextafter(low, np.float32(2.0))
  for values in ((low, high), (high, np.nextafter(high, np.float32(2.0)))):
    scores = np.repeat(np.array(values, np.float32), [98, 2])
    found = np.float32(choice.threshold(scores, 0.02))
    assert np.mean(scores > found) == pytest.approx(0.02)


def test_features_of_no_run_get_the_recipe_of_the_configs():
  config = CONFIGS['folder']
  assert config.weibull.to_dict() == {**choice.RECIPE, 'margin': 0.0}
  assert config.scorer.to_dict() == choice.SCORER


def test_nothing_held_out(generator):
  none = _features(generator, 0)
  with pytest.raises(ValueError, match=r'raise data.select_share'):
    choice.tail(
      *(_features(generator, 90), none),
      reject_known=0.02,
      vector='joint',
      scaling='none',
    )


@pytest.mark.parametrize(
  ('tail', 'expected'),
  [
    ('auto', {}),
    ('20', {'tail_size': 20}),
    ('5%', {'tail_share': 0.05}),
    ('0.5%', {'tail_share': 0.005}),
  ],
)
def test_tails_in_words(tail, expected):
  assert weibull.parse_tail(tail) == pytest.approx(expected)


@pytest.mark.parametrize(
  'tail', ['', '%', '0', '-3', '9' * 20, '0.05', 'five', '1e3', '5 %%', 5]
)
def test_bad_tails(tail):
  with pytest.raises(ValueError, match=r"tail must be 'auto', .* got"):
    weibull.parse_tail(tail)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'tail': '1'}, "a number of samples from 2 .* got '1'"),
    ({'tail': '0%'}, "above 0 and at most 100.* got '0%'"),
    ({'tail': '120%'}, "above 0 and at most 100.* got '120%'"),
    ({'tail': 'nan%'}, "above 0 and at most 100.* got 'nan%'"),
    ({'vector': 'logits'}, 'crosr_y'),
    ({'scaling': 'with'}, 'within_class'),
    ({'margin': 11.0}, r'margin must be in \[0, 10\], got 11.0'),
  ],
)
def test_bad_recipes(fields, message):
  good = {'vector': 'evidence', 'scaling': 'none', 'tail': 'auto'}
  choice.check_recipe(**good)
  with pytest.raises(ValueError, match=message):
    choice.check_recipe(**{**good, **fields})


@pytest.mark.parametrize(
  ('asked', 'followed', 'rejected', 'told'),
  [
    ('auto', 'argmax', 2, None),
    ('auto', 'calibrated', 6, 'the decision is "calibrated"'),
    ('argmax', 'argmax', 6, '"calibrated" is a threshold for it'),
    ('argmax', 'argmax', 2, None),
    ('tpr95', 'tpr95', 6, None),
    ('half', 'half', 6, None),
  ],
)
def test_the_report_says_where_argmax_does_not_keep_to_it(
  asked, followed, rejected, told
):
  # Whether the tail was chosen or given.
  prediction = np.where(np.arange(100) < rejected, types.UNKNOWN, 0)
  scores = types.Scores(np.zeros((100, 2)), prediction, np.arange(100.0))
  scored = python_types.SimpleNamespace(
    lead='crosr', scores={'crosr': {'calibrate': scores}}, decision=followed
  )
  assert judge.decide(scores, asked, 0.02)[0] == followed
  notes = judge.promise(scored, asked, 0.02)
  if told is None:
    assert notes == []
  else:
    assert len(notes) == 1 and told in notes[0]
    assert 'rejects 6.0% of the 100 known samples' in notes[0]
    assert 'asked for was 2.0%' in notes[0]


@pytest.mark.parametrize(
  ('count', 'share', 'needed'),
  [(16, 0.02, 49), (48, 0.02, 49), (49, 0.02, 0), (18, 0.05, 19), (19, 0.05, 0),
   (9, 0.1, 0), (0, 0.3, 3)],
)  # fmt: skip
def test_too_few_samples_for_a_threshold(count, share, needed):
  told = choice.too_few(count, share)
  if not needed:
    assert told == ''
  else:
    assert told.endswith(f'It takes {needed}')
    assert f'of new ones {1 / (count + 1):.1%} lie beyond' in told


def test_new_samples_beyond_all_of_few():
  """What is told, by drawing it."""
  rng = np.random.default_rng(0)
  held_out, new = rng.normal(size=(2, 20_000, 16))
  lost = [
    np.mean(x > choice.threshold(known, 0.02))
    for known, x in zip(held_out, new, strict=True)
  ]
  assert np.mean(lost) == pytest.approx(1 / 17, abs=0.002)
  for asked, followed, count, needed in (
    ('calibrated', 'calibrated', 1, 49),
    ('auto', 'calibrated', 2, 49),
    ('tpr95', 'tpr95', 1, 19),
  ):
    scores = types.Scores(
      np.zeros((16, 2)), np.full(16, types.UNKNOWN), held_out[0]
    )
    scored = python_types.SimpleNamespace(
      lead='crosr', scores={'crosr': {'calibrate': scores}},
      decision=followed,
    )  # fmt: skip
    notes = judge.promise(scored, asked, 0.02)
    assert len(notes) == count
    assert '16 known samples held out for the threshold are' in notes[-1]
    assert notes[-1].endswith(f'It takes {needed} (data.calibrate_share).')
