"""The scripts in benchmarks/ measure what they say, on small sizes."""

import numpy as np
import pytest

from crosr_jax import weibull

_SCRIPTS = 'benchmarks'


def test_cases_come_in_turns(script):
  timing, done = script('timing'), []
  rows = timing.interleaved(
    {'a': lambda: done.append('a'), 'b': lambda: done.append('b')}, 3
  )
  # Each warms up once, and each begins a round in turn.
  assert ''.join(done) == 'ab' + 'ab' + 'ba' + 'ab'
  assert [row.name for row in rows] == ['a', 'b'] and rows[0].ratio == 1.0
  assert all(0 < row.least <= row.median <= row.most for row in rows)


def test_peers_fit_the_same_tails(script):
  peers = script('weibull_fit')._peers()
  distance = np.abs(np.random.default_rng(0).normal(5.0, 1.0, (3, 200)))
  largest = np.sort(distance, axis=1)[:, -20:].T
  expected = weibull.cdf(largest, *weibull.fit_tails(distance, tail_size=20))
  for name in ('ours', 'scipy weibull_min.fit'):
    found = weibull.cdf(largest, *peers[name](distance, 20))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_numpy_version_is_the_same_formula(script):
  scoring = script('scoring')
  rows = scoring._measured(40, 6, 20, 1)
  away = next(row.note for row in rows if 'float32' in row.name)
  assert float(away.rpartition(' ')[2]) < 1e-4
  assert [row.name for row in rows][:2] == ['ours', 'NumPy, vectorised']


def test_growth_and_streams(script, monkeypatch):
  point = script('growth')._point(1, N=120, K=4, D=10)
  assert all(value > 0 for value in point.values()) and len(point) == 4
  streamed = script('streamed_fit')
  monkeypatch.setattr(streamed, '_CLASSES', 4)
  monkeypatch.setattr(streamed, '_BLOCK', 100)
  for case in ('two passes', *streamed.TAILS):
    found = streamed._one(case, 300)
    assert found['seconds'] > 0 and found['peak_mib'] > 0


@pytest.mark.parametrize('vector', ['joint', 'evidence'])
def test_many_classes(script, vector):
  found = script('imagenet21k').measured(
    200, vector, classes=20, latent=10, block=30, scored=40
  )
  assert found['width'] == 30 and found['means_gib'] * 2**30 >= 20 * 30 * 8
  cases = found['cases']
  assert [cases[name]['count'] for name in cases] == [0, 200, 40]
  assert 0 < cases['begin']['peak_gib'] <= cases['fit']['peak_gib']
  assert cases['fit']['seconds'] > 0 and cases['score']['seconds'] > 0
