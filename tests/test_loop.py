"""The loop around steps: programs, transfers, checkpoints."""

import itertools
import threading
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from conftest import AS_FOR_USERS
from hypothesis import given
from hypothesis import strategies as st

from crosr_jax import checkpoint, exported, loop, sharding

_WORDS = loop.Words('training', ('loss',), 'Do better')


class _State(NamedTuple):
  step: Any
  w: Any


def _step(state, batch):
  w = state.w * 0.9 + jax.lax.pmean(batch.mean(), 'batch')
  return _State(state.step + 1, w), {'loss': w[0]}


def _order(first):
  return (np.full(8, i, np.float32) for i in itertools.count(first))


def _run(workdir, engine, **changes):
  fields = {
    'num_steps': 25, 'batch_size': 8, 'log_every': 6, 'checkpoint_every': 10,
    'keep_checkpoints': 3, 'steps_per_dispatch': 4, **changes,
  }  # fmt: skip
  state = _State(np.zeros((), np.int32), np.zeros(2, np.float32))
  return loop.run(engine, state, _order, workdir, _WORDS, **fields)


@given(
  first=st.integers(0, 300),
  left=st.integers(1, 300),
  most=st.integers(1, 20),
  every=st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
def test_programs(first, left, most, every):
  last = first + left
  counts = loop._counts(first, last, most, every)
  ends = list(itertools.accumulate(counts, initial=first))
  assert ends[-1] == last and max(counts) <= most
  assert set(counts) <= {1, min(most, last, *every)}
  # Rows and checkpoints are never in the middle of one.
  for n in every:
    assert {i for i in range(first + 1, last) if i % n == 0} <= set(ends)
  # From where one ended, another session goes on with the same.
  stops = [i for i in ends if i % every[0] == 0 and i < last]
  for stop in stops:
    assert loop._counts(stop, last, most, every) == counts[ends.index(stop) :]


def test_programs_by_hand():
  # Up to 6, 10, 12, 18, 20, 24 and 25.
  expected = [4, 1, 1, 4, 1, 1, 4, 1, 1, 1, 1, 4, 1]
  assert loop._counts(0, 25, 4, (6, 10)) == expected
  assert loop._counts(0, 600, 10, (50, 500)) == [10] * 60
  assert loop._counts(0, 6, 10, (2, 500)) == [2, 2, 2]


@pytest.mark.parametrize('parallel', sharding.PARALLEL)
def test_two_programs_and_none_is_compiled_in_the_loop(
  tmp_path, parallel, compilations
):
  engine = sharding.engine(_step, parallel=parallel)
  calls = []

  def watched(fn):
    def call(placed, *batches):
      before = len(compilations)
      found = fn(placed, *batches)
      calls.append((len(batches), len(compilations) - before))
      return found

    return call

  _run(
    tmp_path,
    engine._replace(compile=watched(engine.compile), step=watched(engine.step)),
  )
  before, during = calls[:2], calls[2:]
  assert sorted(count for count, _ in before) == [1, 4]
  assert all(compiled for _, compiled in before)
  assert during == [(n, 0) for n in loop._counts(0, 25, 4, (6, 10))]


@pytest.mark.parametrize('parallel', sharding.PARALLEL)
def test_steps_of_a_program_are_steps(tmp_path, monkeypatch, parallel):
  # Bit for bit where it is compiled as for users.
  monkeypatch.setattr(
    exported, 'compiler_options', lambda platform: AS_FOR_USERS
  )
  one, four = (
    _run(
      tmp_path / str(n),
      sharding.engine(_step, parallel=parallel),
      steps_per_dispatch=n,
    )
    for n in (1, 4)
  )
  jax.tree.map(np.testing.assert_array_equal, one.state, four.state)
  assert one.history == four.history
  # By hand, and a mean over the steps since the row before.
  w = list(
    itertools.accumulate(range(25), lambda w, i: 0.9 * w + i, initial=0.0)
  )[1:]
  assert [row['step'] for row in one.history] == [6, 10, 12, 18, 20, 24, 25]
  np.testing.assert_allclose(
    [one.history[0]['loss'], one.history[1]['loss'], one.state.w[0]],
    [np.mean(w[:6]), np.mean(w[6:10]), w[-1]],
    rtol=1e-5,
  )


@pytest.mark.parametrize('parallel', sharding.PARALLEL)
def test_what_moves_without_saying_so_is_an_error(tmp_path, parallel):
  engine = sharding.engine(_step, parallel=parallel)
  doubled = jax.jit(lambda x: 2 * x)
  doubled(np.float32(1))

  def step(placed, *batches):
    doubled(np.float32(1))
    return engine.step(placed, *batches)

  with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
    _run(tmp_path, engine._replace(step=step))
  # Outside of steps nobody is kept from it.
  _run(tmp_path, engine, select_accuracy=lambda x: float(doubled(x.w[0])))


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
  engine = sharding.engine(_step)
  later, write = threading.Event(), checkpoint.Checkpoints._write
  taken = 0

  def step(placed, *batches):
    nonlocal taken
    taken += len(batches)
    if taken > 10:
      later.set()
    return engine.step(placed, *batches)

  def slow(self, step, *rest):
    # Would never come, if the loop waited.
    assert later.wait(60)
    write(self, step, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, '_write', slow)
    found = _run(tmp_path, engine._replace(step=step))
  # All are on disk when the training ends, and are what they were at the time.
  with checkpoint.Checkpoints(tmp_path, 3) as checkpoints:
    for i, seen in ((10, 2), (20, 5), (25, 7)):
      state, record = checkpoints._restore(i, found.state)
      assert state.step == i and record['history'] == found.history[:seen]


def test_a_full_disk_is_told_at_the_next_row(tmp_path):
  (tmp_path / 'digests').write_text('')
  with pytest.raises(ValueError, match=r'checkpoint of step 10 cannot be writ'):
    _run(tmp_path, sharding.engine(_step), num_steps=10**5)
