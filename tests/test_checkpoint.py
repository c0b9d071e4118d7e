"""Checkpoints that come back whole or not at all."""

import contextlib
import errno
import itertools
import logging
import os
import shutil
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest

from crosr_jax import checkpoint, types


class _State(NamedTuple):
  step: Any
  w: Any
  newer: Any = ()


def _like(shape=(3, 2), **kwargs):
  return _State(np.zeros((), np.int32), np.zeros(shape, np.float32), **kwargs)


def _state(step):
  return _State(np.array(step, np.int32), np.full((3, 2), step, np.float32))


def _save(workdir, *steps, keep=3):
  with checkpoint.Checkpoints(workdir, keep) as checkpoints:
    checkpoints.restore(_like())
    for step in steps:
      checkpoints.save(step, _state(step), {'history': [{'step': step}]})


def _restore(workdir):
  with checkpoint.Checkpoints(workdir, 3) as checkpoints:
    return checkpoints.restore(_like())


def _files(workdir, step):
  folder = workdir / 'checkpoints' / str(step)
  return sorted(p for p in folder.rglob('*') if p.is_file())


def test_nothing_to_restore(tmp_path):
  assert _restore(tmp_path) is None


def test_round_trip(tmp_path):
  _save(tmp_path, 1, 2)
  state, log = _restore(tmp_path)
  np.testing.assert_array_equal(state.w, _state(2).w)
  assert state.step == 2 and state.step.dtype == np.int32
  assert log == {'history': [{'step': 2}]}


def test_a_checkpoint_from_before_a_field_was_there(tmp_path, monkeypatch):
  class _Older(NamedTuple):
    step: Any
    w: Any

  with (
    checkpoint.Checkpoints(tmp_path, 3) as checkpoints,
    monkeypatch.context() as patch,
  ):
    # As it was then: the tuple itself.
    patch.setattr(checkpoint, '_saved', lambda state: state)
    checkpoints.save(1, _Older(*_state(1)[:2]), {})
  state, _ = _restore(tmp_path)
  assert state.step == 1 and state.newer == ()
  np.testing.assert_array_equal(state.w, _state(1).w)


def test_only_the_newest_are_kept(tmp_path):
  _save(tmp_path, 1, 2, 3, 4, keep=2)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == [
    '3', '4',
  ]  # fmt: skip
  assert sorted(p.name for p in (tmp_path / 'digests').iterdir()) == [
    '3.json', '4.json',
  ]  # fmt: skip


def _flip_a_bit(path):
  data = bytearray(path.read_bytes())
  if data:
    data[len(data) // 2] ^= 0x10
  path.write_bytes(data or b'x')


def test_every_damaged_file_is_noticed(tmp_path, caplog):
  for i in itertools.count():
    workdir = tmp_path / str(i)
    _save(workdir, 1, 2)
    # How many files Orbax writes differs from save to save.
    if i >= len(_files(workdir, 2)):
      break
    target = _files(workdir, 2)[i]
    _flip_a_bit(target)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      state, _ = _restore(workdir)
    name = target.relative_to(workdir / 'checkpoints' / '2')
    assert state.step == 1, name
    told = f'checkpoint 2 cannot be trusted ({name} is damaged)'
    assert any(m.startswith(told) for m in caplog.messages)
    # Set aside, not lost, until its step is saved again.
    assert (workdir / 'damaged' / '2').is_dir()
    _save(workdir, 2)
    assert _restore(workdir)[0].step == 2
    assert not (workdir / 'damaged').exists()
  assert i > 5


@pytest.mark.parametrize('fault', ['truncated', 'missing', 'added'])
def test_other_damage(tmp_path, fault):
  _save(tmp_path, 1, 2)
  target = max(_files(tmp_path, 2), key=lambda p: p.stat().st_size)
  if fault == 'truncated':
    target.write_bytes(target.read_bytes()[:-1])
  elif fault == 'missing':
    target.unlink()
  else:
    (target.parent / 'more').write_bytes(b'')
  assert _restore(tmp_path)[0].step == 1


def test_all_damaged_is_an_error_and_nothing_is_lost(tmp_path):
  _save(tmp_path, 1, 2)
  for step in (1, 2):
    target = _files(tmp_path, step)[0]
    target.write_bytes(target.read_bytes() + b'x')
  for _ in range(2):
    with pytest.raises(ValueError, match=r'no checkpoint in .* can be trusted'):
      _restore(tmp_path)
  assert _files(tmp_path, 1) and _files(tmp_path, 2)


def test_lost_digests_cost_nothing(tmp_path):
  # As after a copy that left the folder out.
  _save(tmp_path, 1, 2)
  (tmp_path / 'digests').rename(tmp_path / 'elsewhere')
  with pytest.raises(ValueError, match=r'no checkpoint .* bring one back'):
    _restore(tmp_path)
  (tmp_path / 'elsewhere').rename(tmp_path / 'digests')
  assert _restore(tmp_path)[0].step == 2


@pytest.mark.parametrize('keep', [1, 3])
def test_unfinished_ones_do_not_count(tmp_path, caplog, keep, monkeypatch):
  # Killed between the last file of a checkpoint and its digests.
  _save(tmp_path, 1, keep=keep)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, '_sha256', lambda _: 1 / 0)
    with (
      checkpoint.Checkpoints(tmp_path / 'new', keep) as checkpoints,
      pytest.raises(ZeroDivisionError),
    ):
      checkpoints.save(2, _state(2), {})
      checkpoints.wait()
  (tmp_path / 'new' / 'checkpoints' / '2').rename(
    tmp_path / 'checkpoints' / '2'
  )
  with caplog.at_level(logging.WARNING):
    assert _restore(tmp_path)[0].step == 1
  told = 'checkpoint 2 cannot be trusted (it was not finished): going back'
  assert any(m.startswith(told) for m in caplog.messages)
  assert (tmp_path / 'damaged' / '2').is_dir()
  _save(tmp_path, 2)
  assert _restore(tmp_path)[0].step == 2


@pytest.mark.parametrize('text', ['{"a"', '[1]', '7', ''])
def test_damaged_digests(tmp_path, text):
  _save(tmp_path, 1, 2)
  (tmp_path / 'digests' / '2.json').write_text(text)
  assert _restore(tmp_path)[0].step == 1


def test_killed_while_the_first_is_written(tmp_path):
  _save(tmp_path, 1)
  (tmp_path / 'digests' / '1.json').unlink()
  assert _restore(tmp_path) is None
  assert (tmp_path / 'damaged' / '1').is_dir()
  _save(tmp_path, 1)
  assert _restore(tmp_path)[0].step == 1


@pytest.mark.parametrize(('first', 'is_killed'), [(1, False), (2, True)])
def test_one_checkpoint_whose_digests_are_lost(tmp_path, first, is_killed):
  """A later one than the first was not killed in the first."""
  _save(tmp_path, 2)
  (tmp_path / 'digests' / '2.json').unlink()
  lost = pytest.raises(ValueError, match=r'no checkpoint .* bring one back')
  with contextlib.nullcontext() if is_killed else lost:
    checkpoint.Checkpoints(tmp_path, 3, first).wait()
  assert (tmp_path / 'checkpoints' / '2').is_dir() != is_killed
  assert (tmp_path / 'damaged' / '2').is_dir() == is_killed


@pytest.mark.parametrize(
  ('number', 'words'),
  [
    (errno.ENOSPC, 'space left on device; make room'),
    (errno.EFBIG, 'too large; mend'),
  ],
)
def test_what_cannot_be_written_is_told_in_few_words(
  tmp_path, monkeypatch, number, words
):
  def full(*_):
    raise ValueError(
      f'OUT_OF_RANGE: among much else: {os.strerror(number)} [x]'
    )

  monkeypatch.setattr(checkpoint.Checkpoints, '_write', full)
  with pytest.raises(types.UserError, match=f'{words} .*again$') as caught:
    _save(tmp_path, 1)
  assert 'OUT_OF_RANGE' not in str(caught.value)


def test_what_killed_writers_leave_is_swept(tmp_path):
  _save(tmp_path, 1)
  (tmp_path / 'digests' / '.2.json.abc.aside').touch()
  (tmp_path / 'checkpoints' / '7.orbax-checkpoint-tmp').mkdir()
  _save(tmp_path, 2)
  names = [path.name for path in tmp_path.rglob('*')]
  assert [n for n in names if 'aside' in n or 'checkpoint-tmp' in n] == []


@pytest.mark.parametrize(
  'like',
  [_like((4, 2)), _like(newer=np.zeros(2, np.float32))],
)
def test_checkpoint_of_another_net(tmp_path, like):
  _save(tmp_path, 1)
  with (
    checkpoint.Checkpoints(tmp_path, 3) as checkpoints,
    pytest.raises(ValueError, match=r'step 1 .* is of another net'),
  ):
    checkpoints.restore(like)


class _Gate(NamedTuple):
  """Where a writer has all files of a checkpoint, and not yet its digests."""

  reached: threading.Semaphore
  passed: threading.Semaphore


@pytest.fixture
def gate(monkeypatch):
  """Stops the writer there."""
  found = _Gate(threading.Semaphore(0), threading.Semaphore(0))
  digests = checkpoint._digests

  def stop(folder):
    found.reached.release()
    assert found.passed.acquire(timeout=60)
    return digests(folder)

  monkeypatch.setattr(checkpoint, '_digests', stop)
  return found


def test_nobody_waits_for_the_disk(tmp_path, gate, monkeypatch):
  workdir, killed = tmp_path / 'run', [tmp_path / '1', tmp_path / '2']
  with checkpoint.Checkpoints(workdir, 1) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, _state(step), {})
      assert gate.reached.acquire(timeout=60)
      checkpoints.check()
      shutil.copytree(workdir, killed[step - 1])
      gate.passed.release()
  monkeypatch.undo()
  assert _restore(workdir)[0].step == 2 and not _files(workdir, 1)
  # Killed there, its files do not count; one before is not pruned yet.
  assert _files(killed[0], 1) and _restore(killed[0]) is None
  assert _files(killed[1], 2) and _restore(killed[1])[0].step == 1


@pytest.mark.parametrize('door', ['wait', 'check', 'save', 'restore', 'end'])
def test_a_folder_that_cannot_be_written(tmp_path, door):
  (tmp_path / 'digests').write_text('')
  told = pytest.raises(
    types.UserError, match=r'checkpoint of step 1 cannot be written'
  )
  if door == 'end':
    with told, checkpoint.Checkpoints(tmp_path, 3) as checkpoints:
      checkpoints.save(1, _state(1), {})
    return
  with checkpoint.Checkpoints(tmp_path, 3) as checkpoints:
    checkpoints.save(1, _state(1), {})
    with told:
      if door == 'wait':
        checkpoints.wait()
      elif door == 'save':
        checkpoints.save(2, _state(2), {})
      elif door == 'restore':
        checkpoints.restore_step(1, _like())
      while door == 'check':
        checkpoints.check()


def test_what_ended_a_training_is_what_is_raised(tmp_path, caplog):
  (tmp_path / 'digests').write_text('')
  with (
    pytest.raises(KeyboardInterrupt),
    checkpoint.Checkpoints(tmp_path, 3) as checkpoints,
  ):
    checkpoints.save(1, _state(1), {})
    raise KeyboardInterrupt
  (told,) = (r for r in caplog.records if r.levelno == logging.ERROR)
  assert 'checkpoint of step 1 cannot be written' in told.getMessage()


def test_a_folder_that_was_deleted_is_not_made_anew(tmp_path):
  with checkpoint.Checkpoints(tmp_path / 'w', 3) as checkpoints:
    checkpoints.save(1, _state(1), {})
    checkpoints.wait()
    shutil.rmtree(tmp_path / 'w')
    checkpoints.save(2, _state(2), {})
    with pytest.raises(ValueError, match=r'w/checkpoints was deleted while'):
      checkpoints.wait()
  assert not (tmp_path / 'w').exists()
