"""What predict writes comes back as it was, whatever a name holds."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from crosr_jax import openset, predict, types

_NAMES = (
  'a\nb',
  'a\rb',
  'a\r\nb',
  'a"b',
  'a,b',
  '=1+1',
  ' ',
  '\0',
  '日本',
  '👨‍👩‍👧',
)


def _written(name, kind):
  stream = io.StringIO()
  write = predict._WRITERS[kind](stream, (name, 'b'))
  write.row(predict.Row(f'{name}.png', name, 0.5, 0.25, 'b', ''))
  write.row(predict.Row(name, '', None, None, '', 'it is a folder'))
  write.end()
  return stream.getvalue()


@pytest.mark.parametrize('name', _NAMES)
def test_names_are_read_back(name):
  rows = list(csv.reader(io.StringIO(_written(name, 'csv'), newline='')))
  assert rows[1] == [f'{name}.png', name, '0.5', '0.25', 'b', '']
  assert rows[2] == [name, '', '', '', '', 'it is a folder'] and len(rows) == 3
  first, second = json.loads(_written(name, 'json'))
  assert first['prediction'] == name and second['path'] == name


@pytest.mark.parametrize(
  ('name', 'shown'),
  [
    ('a\nb', r'a\nb'),
    ('a\x1b[2Jb', r'a\x1b[2Jb'),
    ('a\u202eb', r'a\u202eb'),
    ('a\u2028b', r'a\u2028b'),
    ('a\udcffb', r'a\udcffb'),
    # Joined emoji and wide spaces are text.
    ('👨\u200d👧\u3000', '👨\u200d👧\u3000'),
  ],
)
def test_a_name_stays_in_its_line_of_the_table(name, shown):
  lines = _written(name, 'table').splitlines()
  assert len(lines) == 3 and lines[1].startswith(shown)
  assert lines[2].endswith(f'{shown}: it is a folder')


@pytest.mark.parametrize('is_known', [True, False])
def test_the_probability_is_that_of_the_prediction(
  digits_run, tmp_path, monkeypatch, is_known
):
  Image.new('L', (8, 8), 90).save(tmp_path / 'x.png')
  model = openset.load(digits_run[0])
  found = model.features(np.full((1, 8, 8, 1), 90, np.uint8))
  closed = np.argmax(found.logits, axis=1)
  # Another class than that of the largest logit is the likeliest.
  probability = np.full((1, 8), 0.1, np.float32)
  probability[0, closed] = 0.05
  decided = closed if is_known else np.full(1, types.UNKNOWN)
  scores = types.Scores(probability, decided, np.zeros(1))
  monkeypatch.setattr(openset.OpenSetModel, 'score', lambda *_: scores)
  (row,) = predict.rows(model, [str(tmp_path / 'x.png')])
  name = model.class_names[closed[0]]
  assert row.prediction == (name if is_known else 'unknown')
  assert row.nearest == name
  assert row.probability == pytest.approx(0.05)
