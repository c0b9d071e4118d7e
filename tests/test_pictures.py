"""What the lines, points and fields of pictures are, read from the drawing."""

import numpy as np
import pytest
from matplotlib.backends import backend_agg
from sklearn import metrics as sk
from test_diagnose import _examine
from test_report import COUNTS, SETS, make_material

from crosr_jax import types
from crosr_jax.report import (
  curves,
  diagnosis,
  maps,
  matrices,
  sheets,
  strips,
  style,
  threshold,
  training,
)


@pytest.fixture(autouse=True)
def figures(monkeypatch):
  """Pictures hold the drawing itself, in place of its file."""
  monkeypatch.setattr(style, 'png', lambda figure: figure)


@pytest.fixture(scope='module')
def material():
  return make_material()._replace(followed=1.5)


def _lines(ax):
  return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_roc(material):
  panels = curves.roc(material).png.axes
  for ax, name in zip(panels, SETS, strict=True):
    (label,) = (x for x in _lines(ax) if x.endswith('CROSR'))
    a, b = (material.scores['crosr'][n].unknown_score for n in ('test', name))
    line = _lines(ax)[label]
    area = np.trapezoid(line[:, 1], line[:, 0])
    expected = sk.roc_auc_score(np.repeat([0, 1], [len(a), len(b)]), [*a, *b])
    assert area == pytest.approx(expected) and expected > 0.5
    assert label.startswith(f'{expected:.4f}')


def test_thresholds_in_the_histograms(material):
  for ax in curves.unknown_scores(material).png.axes:
    drawn = {
      line.get_linestyle(): line.get_xdata()[0]
      for line in ax.lines
      if len(line.get_xdata())
    }
    marks = {':': 0.0, '--': material.threshold['crosr'], '-.': 1.5}
    assert drawn == pytest.approx({k: np.arcsinh(x) for k, x in marks.items()})


def test_marks_of_thresholds(material):
  picture = threshold.f1_threshold(material)
  assert "Diamonds: that of the run's decision." in picture.caption
  without = threshold.f1_threshold(material._replace(followed=None))
  assert 'Diamonds' not in without.caption
  (ax,) = picture.png.axes
  curve = {name: _lines(ax)[name] for name in SETS}
  marks = [line for line in ax.lines if line.get_marker() in ('*', 'o', 'D')]
  assert len(marks) == 3 * len(SETS) + 3
  test = material.scores['crosr']['test'].unknown_score
  for i, name in enumerate(SETS):
    at = {
      line.get_marker(): line.get_xydata()[0]
      for line in marks[3 * i : 3 * i + 3]
    }
    assert at['*'][1] == curve[name][:, 1].max()
    for form, x in (('o', material.threshold['crosr']), ('D', 1.5)):
      assert at[form][0] == np.mean(test > x)
      assert at[form][1] <= at['*'][1]


def test_training(material):
  loss, rate, accuracy = training.training(material).png.axes
  steps = np.arange(5)
  np.testing.assert_allclose(
    _lines(loss)['total'], np.stack([steps, 2 / (steps + 1)], axis=1)
  )
  assert _lines(rate)['learning rate'][:, 1].tolist() == [0.1] * 5
  assert _lines(accuracy)['held-out part'].tolist() == [[4, 0.4]]
  one = training.training(material._replace(history=material.history[:1])).png
  assert one.axes[0].lines[0].get_marker() == 'o'


def test_confusion(material):
  panels = matrices.confusion(material).png.axes
  for ax, name in zip(panels, SETS, strict=True):
    test, odd = (material.scores['crosr'][n].prediction for n in ('test', name))
    truth = [*material.features['test'].label, *[-1] * SETS[name]]
    counts = sk.confusion_matrix(
      np.where(np.equal(truth, -1), 3, truth),
      np.where(np.append(test, odd) == -1, 3, np.append(test, odd)),
      labels=range(4),
    )
    share = counts / counts.sum(axis=1, keepdims=True)
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array(), np.sqrt(share))
    told = {text.get_position(): int(text.get_text()) for text in ax.texts}
    assert told == {(j, i): counts[i, j] for i, j in np.argwhere(counts)}


@pytest.mark.parametrize('error', [False, True])
def test_map(material, error):
  if error:
    activation = {
      name: np.pad(a, ((0, 0), (0, 1)))
      for name, a in material.activation.items()
    }
    material = material._replace(activation=activation)
  rng = np.random.default_rng(0)
  picture = maps.embedding(material, rng, samples=200, seed=0)
  assert ('codes z and the reconstruction error' in picture.caption) == error
  for ax in picture.png.axes:
    drawn = [len(group.get_offsets()) for group in ax.collections]
    assert drawn == [COUNTS['test'] // 3] * 3
    assert [text.get_text() for text in ax.texts] == list(material.class_names)
    assert {n: len(x) for n, x in _lines(ax).items()} == SETS


def test_rows_of_sheets_have_room_for_wide_letters():
  image = np.zeros((2, 8, 8, 1), np.uint8)
  for title in ('WWWWWWWWWW MMMMMMMMMM', 'iiiiiiiiii', 'W' * 400):
    strip = strips.Strip(title, image, ('WWWWWWWWWW\n1', 'i\n2'))
    figure = strips.sheet([strip])
    first, *captions = figure.axes[0].texts
    renderer = backend_agg.FigureCanvasAgg(figure).get_renderer()
    box = first.get_window_extent(renderer)
    left = figure.axes[0].images[0].get_window_extent(renderer).x0
    assert box.x0 > 0 and box.x1 < left
    a, b = (x.get_window_extent(renderer) for x in captions)
    assert a.width < (b.x0 + b.x1 - a.x0 - a.x1) / 2
    assert captions[0].get_text().endswith('…\n1')
    assert first.get_text() == title or len(title) == 400


def test_mistakes_are_of_the_decision(material):
  picture = sheets.mistakes(material)
  accepted = [
    name for name in SETS if (material.decided[name] != types.UNKNOWN).any()
  ]
  texts = [text.get_text() for text in picture.png.axes[0].texts]
  assert [x.split('\n')[0] for x in texts if 'accepted as' in x] == accepted


def test_reliability_and_distances(generator):
  _, scored, found = _examine(generator, spread=1.2)
  left, middle, right = diagnosis.figure_of(found).axes
  (points,) = right.collections
  there = found.bin_count > 0
  np.testing.assert_allclose(
    points.get_offsets(),
    np.stack([found.confidence, found.right], axis=1)[there],
  )
  (middle_line,) = middle.lines
  rejected = np.mean(scored.decided['test'] == types.UNKNOWN)
  assert middle_line.get_xdata()[0] == rejected
  assert [bar.get_width() for bar in middle.patches[3:]] == [
    row.rejected_test for row in found.rows
  ]
  bars = [line for line in left.lines if line.get_linewidth() == 3]
  assert [list(line.get_xdata()) for line in bars[::2]] == [
    [row.train[0], row.train[2]] for row in found.rows
  ]


def test_classes_that_lose_most_are_drawn_of_many(generator):
  _, _, found = _examine(generator)
  rows = [
    found.rows[0]._replace(name=f'c{i}', rejected_test=i % 10 / 10)
    for i in range(200)
  ]
  figure = diagnosis.figure_of(found._replace(rows=rows))
  left, _, right = figure.axes
  shown = [text.get_text() for text in left.get_yticklabels()]
  # Twenty lose .9; of those that lose .8 the first ten, all in their order.
  worst = {f'c{i}' for i in range(200) if i % 10 == 9}
  worst |= {f'c{i}' for i in range(100) if i % 10 == 8}
  assert set(shown) == worst
  assert shown == sorted(shown, key=lambda name: int(name[1:]))
  assert figure.get_size_inches()[1] < 11
  assert right.get_box_aspect() == 1
  title = figure.legends[0].get_title().get_text()
  assert 'Of 200 classes the 30 that lose most test samples.' in title
