import base64
import io
import json
import math
import os
import re
import subprocess
import sys
from html import parser

import numpy as np
import pytest
from conftest import CONFIGS
from PIL import Image

from crosr_jax import files, metrics, report, types
from crosr_jax.report import (
  curves,
  maps,
  markdown,
  matrices,
  pictures,
  published,
  sheets,
  tables,
  tail,
  threshold,
  words,
)
from crosr_jax.report import material as material_lib

HOSTILE = ('a|b\n<script>alert(1)</script>', '日本 "x" $y$ \udcff & `c` [d](e)')
METHODS = ('crosr', 'softmax', 'max_logit')
SETS = {'far_set': 9, 'near': 1}
COUNTS = {'test': 30, 'calibrate': 20, **SETS}


def make_scores(rng, logits, is_known):
  """Unknown scores that mostly go the right way, over many decades."""
  n, k = logits.shape
  score = np.sinh(rng.normal(-1.0 if is_known else 1.0, 2.0, n))
  p = 1 / (1 + np.exp(-np.clip(score, -30, 30)))[:, None]
  closed = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  probability = np.concatenate([closed * (1 - p), p], axis=1)
  prediction = probability.argmax(axis=1)
  prediction[prediction == k] = types.UNKNOWN
  return types.Scores(probability, prediction, score.astype(np.float32))


def make_material(k=3, channels=1, lateral=True, names=None):
  rng = np.random.default_rng(0)
  image, features, activation = {}, {}, {}
  scores = {method: {} for method in METHODS}
  for name, n in COUNTS.items():
    label = np.arange(n) % k if name not in SETS else np.full(n, -1)
    logits = rng.normal(size=(n, k)) + 3 * (label[:, None] == np.arange(k))
    latent = rng.normal(size=(n, 2))
    features[name] = types.Features(logits, latent, label)
    for method in METHODS:
      scores[method][name] = make_scores(rng, logits, name not in SETS)
    if name != 'calibrate':
      image[name] = rng.integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)
      activation[name] = np.concatenate([logits, latent], axis=1)
  history = [
    {'step': i, 'loss': 2 / (i + 1), 'cross_entropy': 1 / (i + 1),
     'learning_rate': 0.1, 'accuracy': 0.5}
    for i in range(5)
  ]  # fmt: skip
  history[-1]['select_accuracy'] = 0.4
  return report.Material(
    class_names=names or tuple(f'class {i}' for i in range(k)),
    history=history,
    image=image,
    features=features,
    activation=activation,
    scores=scores,
    threshold={
      m: metrics.threshold_at_tpr(s['calibrate'].unknown_score)
      for m, s in scores.items()
    },
    decided={name: s.prediction for name, s in scores[METHODS[0]].items()},
    reconstruct=(lambda x: 255 - x) if lateral else None,
    generated=report.Generated(
      image['test'][:6],
      features['test'].label[:6],
      255 - image['test'][:6],
      image['test'][6:12],
    ),
    tail=types.TailChoice(
      0.05, 0.02, (0.01, 0.05, 0.2), (0.0, 0.01, 0.1), (0.004, 0.025, 0.2), 500
    ),
  )


def make_entry(material, name):
  test = material.features['test']
  closed = np.append(
    test.logits.argmax(axis=1), material.features[name].logits.argmax(axis=1)
  )
  entry = {
    'n_known': 1234,
    'n_unknown': SETS[name],
    'openness': 0.25,
    'ceiling_f1': 0.9876,
    'recipe': 'made | by <hand>',
    'trivial': {'mean_pixel': {'auroc': 0.75}, 'max_pixel': {'auroc': 0.5}},
  }
  for method, scores in material.scores.items():
    entry[method] = metrics.evaluate(
      scores['test'],
      scores[name],
      test.label,
      closed,
      threshold=material.threshold[method],
      is_probability=method != 'max_logit',
    )
  return entry


def make_report(material):
  return {
    'name': 'run',
    'system': 'dhrnet',
    'seed': 3,
    'config': {'b': {'z': [1, 2]}, 'a': '</pre>'},
    'versions': {'jax': '0.8'},
    'device': 'cpu',
    'parameters': 1234567,
    'train': {'steps': 10, 'seconds': 100.0, 'images_per_second': 1500.4},
    'class_names': list(material.class_names),
    'closed_set_accuracy': 0.9876,
    'known_rejected': {'train': 0.01, 'calibrate': 0.02, 'test': 0.0345},
    'decision': 'argmax',
    'dead_coordinates': 1,
    'activation_width': 5,
    'tail_count': {'crosr': [20] * len(material.class_names)},
    'notes': ['handle | with <care>'],
    'data': {'train': 100, 'select': 10, 'calibrate': 20, 'test': 30},
    'unknown': {name: make_entry(material, name) for name in SETS},
    'nobody_knows': {'this': ['key']},
  }


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A whole report with pictures: folder, report, material."""
  workdir = tmp_path_factory.mktemp('run')
  material = make_material()
  result = make_report(material)
  report.write(workdir, result, material, map_samples=40, seed=1)
  return workdir, result, material


class Page(parser.HTMLParser):
  """Cells of tables, attributes that load something, and all text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.loads, self.rows, self.text = [], [], [], ''
    self.in_cell = False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.loads += [v for k, v in attrs if k in ('src', 'href', 'srcset')]
    if tag == 'tr':
      self.rows.append([])
    if tag in ('th', 'td'):
      self.rows[-1].append('')
      self.in_cell = True
    if tag == 'b':
      self.rows[-1][-1] += '*'

  def handle_endtag(self, tag):
    if tag in ('th', 'td'):
      self.in_cell = False

  def handle_data(self, data):
    self.text += data
    if self.in_cell:
      self.rows[-1][-1] += data


def markdown_rows(text):
  """Cells of all table rows, unescaped, bold marked by one star."""
  rows = [line for line in text.splitlines() if line.startswith('| ')]
  cells = [re.split(r'(?<!\\) \| ', row[2:-2]) for row in rows]
  return [
    [re.sub(r'^\*\*(.*)\*\*$', r'*\1', cell).replace('\\', '') for cell in row]
    for row in cells
  ]


def row_of(rows, title, width):
  return next(row for row in rows if row[0] == title and len(row) == width)


def test_every_figure_of_every_method_is_in_both_pages(written):
  workdir, result, _ = written
  pages = (
    markdown_rows((workdir / 'report.md').read_text('utf-8')),
    Page((workdir / 'report.html').read_text('utf-8')).rows,
  )
  width = 1 + len(words.READINGS)
  for rows in pages:
    for method in METHODS:
      found = [
        row[1:]
        for row in rows
        if row[0] == words.method_title(method) and len(row) == width
      ]
      expected = [
        [entry[method][r.key] for r in words.READINGS]
        for entry in result['unknown'].values()
      ]
      assert [[c.strip('*') for c in row] for row in found] == [
        ['–' if v is None else f'{v:.4f}' for v in row] for row in expected
      ]
    glance = row_of(rows, 'far_set', 6)
    entry = result['unknown']['far_set']
    ceiling = entry.get('ceiling_f1')
    assert [cell.strip('*') for cell in glance[1:]] == [
      *(
        f'{entry[m][key]:.4f}'
        for key in ('auroc', 'macro_f1')
        for m in ('crosr', 'softmax')
      ),
      '–' if ceiling is None else f'{ceiling:.4f}',
    ]


def test_ours_stands_beside_the_published():
  config = {
    'data': {'name': 'mnist', 'unknown_classes': ()},
    'evaluation': {'cifar100_splits': ()},
  }
  count = {'n_known': 10_000, 'n_unknown': 10_000}
  report = {
    'system': 'dhrnet',
    'config': config,
    'unknown': {
      'omniglot': {**count, 'crosr_published': {'macro_f1_half': 0.8}},
      'noise': {**count, 'crosr_published': {'macro_f1_half': 0.5}},
      'mnist_noise_sum': {**count, 'crosr_published': {'macro_f1_half': 0.9}},
    },
  }
  table = tables.beside(report)
  # The poster's .793 and .826; the sum is no set of the poster.
  assert table.head == ('F1 half: ours / published', 'omniglot', 'noise')
  ((title, cells),) = table.rows
  assert title == 'CROSR as published (poster)'
  assert [(cell.text, cell.best) for cell in cells] == [
    ('0.8000 / 0.7930', True), ('0.5000 / 0.8260', False),
  ]  # fmt: skip
  assert tables.differences(report) == []
  config['model'] = {'eval_shift': 0, 'rotation_classes': ()}
  assert tables.differences(report) == []
  config['model'] = {'eval_shift': 1, 'rotation_classes': (90,), 'width': 8}
  (note,) = tables.differences(report)
  told = 'Nets here have eval_shift=1, rotation_classes=[90], those of publ'
  assert note.startswith(told)
  for change in (
    {'system': 'gan'},
    {'config': {}},
    {'unknown': {}},
    {'config': {**config, 'data': {'name': 'mnist', 'unknown_classes': (7,)}}},
  ):
    assert tables.beside({**report, **change}) is None
    assert tables.differences({**report, **change}) == []
  # F1 depends on how many there are; a set of fewer stands beside none.
  config['model'] = {}
  report['unknown']['noise']['n_unknown'] = 100
  assert tables.beside(report).head[1:] == ('omniglot',)
  (note,) = tables.differences(report)
  assert note.endswith('ours of noise are not: they do not compare.')


def test_one_class_split_stands_beside_no_mean():
  report = {
    'system': 'dhrnet',
    'config': CONFIGS['mnist_split'].to_dict(),
    'unknown': {'mnist_unknown': {'crosr_published': {'auroc': 0.99}}},
  }
  assert published.figures('mnist_split')
  assert tables.beside(report) is None


def test_best_is_bold_ties_included_and_low_is_good_for_fpr():
  entry = {
    'a': {'auroc': 0.91, 'fpr95': 0.2, 'macro_f1': None},
    'b': {'auroc': 0.90, 'fpr95': 0.1, 'macro_f1': 0.5},
    'c': {'auroc': 0.910001, 'fpr95': 0.3, 'macro_f1': 0.4},
    'trivial': {'mean_pixel': {'auroc': 0.99}},
  }
  (result,) = tables.results({'unknown': {'s': entry}})
  bold = {
    name: [
      reading.key
      for reading, cell in zip(words.READINGS, cells, strict=True)
      if cell.best
    ]
    for name, cells in result.table.rows
  }
  assert bold == {
    'a': ['auroc'],
    'b': ['macro_f1', 'fpr95'],
    'c': ['auroc'],
    'mean pixel alone': [],
  }


def test_summary_says_what_the_dictionary_says(written):
  _, result, _ = written
  said = dict(tables.summary(result))
  assert said['Closed-set accuracy'] == '98.76 %'
  assert said['Parameters'] == '1,234,567'
  assert said['Training'] == '10 steps in 1.7 min, 1,500 images/s'
  assert said['Known samples rejected'] == (
    'train 1.00 %, calibrate 2.00 %, test 3.45 %'
  )
  assert said['Activation vector'] == '5 wide, 1 dead coordinates'


def test_verdict_counts_wins_and_ties_as_printed():
  pairs = [(0.9, 0.8), (0.70001, 0.7), (0.1, 0.2)]
  unknown = {
    str(i): {'crosr': {'auroc': a}, 'softmax': {'auroc': b}}
    for i, (a, b) in enumerate(pairs)
  }
  says = tables.verdict({'unknown': unknown, 'closed_set_accuracy': 0.5})
  assert says[1:] == [
    'CROSR is above softmax on 1 and level on 1 of 3 unknown sets in AUROC.',
    'Highest AUROC: CROSR on 0 (0.9000), CROSR on 1 (0.7000), Softmax on 2 '
    '(0.2000).',
  ]
  assert says[0].startswith('Closed-set accuracy 50.00 % on – known')


def test_no_column_for_a_method_that_was_not_scored():
  table = tables.glance({'unknown': {'s': {'gan': {'auroc': 0.9}}}})
  title = words.method_title('gan')
  assert table.head == (
    'Unknown set', f'AUROC, {title}', f'F1 argmax, {title}', 'F1, ceiling',
  )  # fmt: skip
  assert [cell.text for cell in table.rows[0][1]] == ['0.9000', '–', '–']


def test_a_statistic_that_beats_the_lead_is_pointed_out():
  def warning(mean):
    entry = {'crosr': {'auroc': 0.9}, 'trivial': {'mean_pixel': mean}}
    return tables.results({'unknown': {'s': entry}})[0].warning

  assert warning({'auroc': 0.89}) == ''
  assert warning({'auroc': 0.9}).startswith('Mean pixel alone')
  assert warning({'auroc': None}) == ''


def test_missing_figures_are_dashes_and_never_numbers(tmp_path):
  result = {
    'name': 'bare',
    'train': None,
    'closed_set_accuracy': None,
    'unknown': {
      's': {'openness': None, 'crosr': {'auroc': None}, 'energy': {}}
    },
  }
  report.write(tmp_path, result, None)
  rows = Page((tmp_path / 'report.html').read_text('utf-8')).rows
  assert row_of(rows, 'CROSR', 9)[1:] == ['–'] * 8
  assert row_of(rows, 'Energy', 9)[1:] == ['–'] * 8
  text = (tmp_path / 'report.md').read_text('utf-8')
  assert '– known and – unknown samples, openness –.' in text
  assert 'None' not in text and 'nan' not in text
  written = json.loads((tmp_path / 'report.json').read_text())
  assert written.pop('sha256') == files.digest(result)
  assert written == result


def test_json_is_strict_complete_and_keeps_its_order(written):
  workdir, result, _ = written

  def refuse(constant):
    raise AssertionError(constant)

  found = json.loads(
    (workdir / 'report.json').read_text(), parse_constant=refuse
  )
  assert found.pop('sha256') == files.digest(result)
  assert found == result
  assert list(found) == list(result)


def test_json_takes_numpy_and_refuses_what_is_not_finite(tmp_path):
  value = {'a': np.float32(0.5), 'b': (np.arange(2), {3: np.bool_(True)})}
  assert report.plain(value) == {'a': 0.5, 'b': [[0, 1], {'3': True}]}
  bad = {'name': 'x', 'unknown': {'s': {'knn': {'auroc': np.float32('nan')}}}}
  with pytest.raises(types.UserError, match=r'unknown\.s\.knn\.auroc .* nan'):
    report.write(tmp_path, bad, None)
  with pytest.raises(types.UserError, match=r'a\[1\] of the report is inf'):
    report.plain({'a': [0.0, math.inf]})
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('held_out', 'told'),
  [
    ((0.004, 0.025, 0.2), '5 %'),
    ((0.018, 0.025, 0.2), '1 % to 5 %'),
    ((0.2, 0.25, 0.3), 'none does'),
  ],
)
def test_the_picture_of_the_tail_says_what_fits_as_well(held_out, told):
  chosen = types.TailChoice(
    0.05, 0.02, (0.01, 0.05, 0.2), (0.0, 0.0, 0.0), held_out, 500
  )
  picture = tail.tail(make_material()._replace(tail=chosen))
  assert picture.caption.endswith(f'fit as well: {told}.')
  assert tail.tail(make_material()._replace(tail=None)) is None


def test_every_picture_is_drawn_linked_and_embedded(written):
  workdir, _, _ = written
  found = {path.stem for path in (workdir / 'figures').iterdir()}
  assert found == set(material_lib.NAMES)
  text = (workdir / 'report.md').read_text('utf-8')
  linked = re.findall(r'\]\((figures/\w+\.png)\)', text)
  assert linked == [f'figures/{name}.png' for name in material_lib.NAMES]
  page = Page((workdir / 'report.html').read_text('utf-8'))
  embedded = [
    base64.b64decode(load.split(',', 1)[1])
    for load in page.loads
    if load.startswith('data:image/png')
  ]
  assert embedded == [(workdir / name).read_bytes() for name in linked]
  for png in embedded:
    with Image.open(io.BytesIO(png)) as image:
      # Something is drawn: not one colour all over.
      assert len(np.unique(np.asarray(image.convert('L')))) > 10


def test_page_needs_nothing_from_outside(written):
  workdir, _, _ = written
  text = (workdir / 'report.html').read_text('utf-8')
  page = Page(text)
  assert all(load.startswith('data:') for load in page.loads)
  assert not {'script', 'iframe', 'object', 'embed'} & set(page.tags)
  assert not re.search(r'https?://|@import|url\(', text)
  assert 'prefers-color-scheme: dark' in text


def test_choices_and_map_depend_on_the_seed_alone():
  material = make_material()

  def draw(seed):
    rng = np.random.default_rng(seed)
    return (
      maps.embedding(material, rng, samples=12, seed=seed).png,
      sheets.samples(material, rng).png,
    )

  first = draw(0)
  assert draw(0) == first
  assert draw(1)[0] != first[0]


def test_nothing_but_the_report_is_left_behind(written):
  workdir, _, _ = written
  assert {path.name for path in workdir.iterdir()} == {
    'report.json', 'report.md', 'report.html', 'figures',
  }  # fmt: skip
  assert all(p.suffix == '.png' for p in (workdir / 'figures').iterdir())


def test_hostile_names_stay_text(tmp_path):
  material = make_material(k=2, channels=3, names=HOSTILE)
  result = make_report(material)
  result['unknown'] = {HOSTILE[0]: result['unknown']['near']}
  report.write(tmp_path, result, material, map_samples=20)
  html = (tmp_path / 'report.html').read_text('utf-8')
  page = Page(html)
  assert 'script' not in page.tags
  assert '<script>alert(1)</script>' in page.text
  assert '</pre>' in page.text and html.count('</pre>') == 1
  assert 'handle | with <care>' in page.text
  text = (tmp_path / 'report.md').read_text('utf-8')
  assert '<script' not in text and '<hand>' not in text
  glance = next(r for r in markdown_rows(text) if 'script' in r[0])
  assert glance[0] == 'a|b &lt;script&gt;alert(1)&lt;/script&gt;'
  assert len(glance) == 6


def test_markdown_escapes_what_markdown_reads():
  assert markdown.escape('mnist_noise') == 'mnist_noise'
  assert markdown.escape('_a_ *b*') == '\\_a\\_ \\*b\\*'
  assert markdown.escape('a|b\r\n`c` \\ [d](e)') == (
    'a\\|b \\`c\\` \\\\ \\[d\\](e)'
  )
  assert markdown.escape('<b>&') == '&lt;b&gt;&amp;'


def test_no_picture_of_a_former_run_stays(tmp_path):
  material = make_material(lateral=False)
  result = make_report(material)
  stale = tmp_path / 'figures' / 'reconstructions.png'
  files.write_bytes(stale, b'of a former run')
  mine = tmp_path / 'figures' / 'mine.png'
  files.write_bytes(mine, b'not ours')
  report.write(tmp_path, result, material, map_samples=20)
  assert not stale.exists()
  assert mine.read_bytes() == b'not ours'
  assert 'reconstructions' not in (tmp_path / 'report.md').read_text('utf-8')
  report.write(tmp_path, result, None)
  assert [path.name for path in (tmp_path / 'figures').iterdir()] == [mine.name]
  assert '## Pictures' not in (tmp_path / 'report.md').read_text('utf-8')


def test_many_classes_are_capped_and_the_caption_says_so():
  k = 120
  material = make_material(k=k)
  drawn = {p.name: p for p in pictures.draw(material, map_samples=30)}
  assert '20 of 120 known classes are drawn' in drawn['map'].caption
  assert 'block of 3 by 3 classes' in drawn['confusion'].caption
  assert '12 of 120 classes are shown' in drawn['samples'].caption
  for picture in drawn.values():
    with Image.open(io.BytesIO(picture.png)) as image:
      assert max(image.size) < 3000
  f1 = [0.5] * 119 + [0.25, 1.0]
  table, note = tables.classes(
    {
      'class_names': [f'c{i}' for i in range(k)],
      'unknown': {'s': {'crosr': {'class_f1': f1}}},
    }
  )
  assert table.rows[0][0] == 'c119'
  assert table.rows[-1] == ('(unknown)', [tables.Cell('1.0000')])
  assert len(table.rows) == 31 and 'worst 30 of 120' in note


def test_grouping_a_confusion_keeps_counts_and_the_unknown():
  counts = np.arange(36).reshape(6, 6)
  found = matrices.grouped(counts, 2)
  assert found.shape == (4, 4)
  assert found[0, 0] == 0 + 1 + 6 + 7
  assert found[2, 3] == counts[4, 5]
  assert found[3, 3] == counts[5, 5]
  assert found.sum() == counts.sum()
  np.testing.assert_array_equal(matrices.grouped(counts, 1), counts)


@pytest.mark.parametrize(
  ('low', 'high'),
  [(-0.3, 0.2), (-3.0, 3.0), (-6.0, 12.0), (-70.0, 71.0), (1.0, 80.0)],
)
def test_score_ticks_are_few_inside_and_where_they_say(low, high):
  places, texts = curves.score_ticks(low, high)
  assert 2 <= len(places) <= 11
  assert low <= min(places) and max(places) <= high
  superscripts = str.maketrans('⁰¹²³⁴⁵⁶⁷⁸⁹−', '0123456789-')
  for place, text in zip(places, texts, strict=True):
    power = re.fullmatch('(−?)10([⁰¹²³⁴⁵⁶⁷⁸⁹]+)', text)
    if power:
      exponent = int(power[2].translate(superscripts))
      value = (-1 if power[1] else 1) * 10.0**exponent
    else:
      value = float(text.translate(superscripts))
    assert place == pytest.approx(np.arcsinh(value), abs=1e-6)


def test_no_outlier_sets_the_scale_of_the_scores():
  rng = np.random.default_rng(0)
  for n in (20, 1000):
    values = np.arcsinh(np.append(rng.normal(size=n - 1), 1e30))
    low, high = curves.limits(values, np.zeros(1))
    assert -5 < low < -1 and 1 < high < 5
  assert curves.limits(np.zeros(3)) == pytest.approx((-0.1, 0.1))


def test_f1_curve_agrees_with_the_figures_of_the_report(written):
  _, result, material = written
  held_out = np.asarray([material.threshold['crosr']])
  for name in SETS:
    share, f1 = threshold.f1_curve(material, name, held_out)
    assert f1[0] == result['unknown'][name]['crosr']['macro_f1_tpr95']
    known = material.scores['crosr']['test'].unknown_score
    assert share[0] == np.mean(known > held_out[0])
    tried = threshold.candidates(material, name)
    share, f1 = threshold.f1_curve(material, name, tried)
    assert share[0] == 0.0 and share[-1] == 1.0
    assert np.all(np.diff(share) >= 0)
    # With every sample rejected only the class `unknown` has an F1.
    n, m = COUNTS['test'], SETS[name]
    assert f1[-1] == pytest.approx(2 * m / (2 * m + n) / 4)


def test_mistakes_are_the_worst_first():
  material = make_material()
  test = material.scores['crosr']['test']
  wrong = material.decided['test'] == types.UNKNOWN
  label = material.features['test'].label
  strip = sheets.errors(material, 'test', wrong, label, '', 'k')
  order = np.argsort(-test.unknown_score, kind='stable')
  worst = [row for row in order if wrong[row]][: len(strip.image)]
  assert len(strip.image) == min(wrong.sum(), 10) > 0
  np.testing.assert_array_equal(strip.image, material.image['test'][worst])
  score = sheets.number(test.unknown_score[worst[0]])
  assert strip.captions[0] == f'class {label[worst[0]]}\n{score}'
  answer = material.decided['far_set']
  score = material.scores['crosr']['far_set'].unknown_score
  strip = sheets.errors(
    material, 'far_set', answer != types.UNKNOWN, answer, '', 'k'
  )
  lowest = np.where(answer != types.UNKNOWN, score, np.inf).argmin()
  np.testing.assert_array_equal(
    strip.image[0], material.image['far_set'][lowest]
  )


def test_known_parts_are_no_unknown_sets():
  assert material_lib.unknown_names(make_material()) == list(SETS)
  assert material_lib.lead(['softmax', 'openmax']) == 'openmax'
  assert material_lib.lead(['knn', 'energy']) == 'knn'


def test_map_separates_what_is_apart_and_bears_what_is_not():
  rng = np.random.default_rng(0)
  apart = np.concatenate(
    [rng.normal(size=(30, 5)), rng.normal(size=(30, 5)) + 50]
  )
  found = maps.place(apart, seed=0)
  a, b = found[:30], found[30:]
  gap = np.linalg.norm(a.mean(axis=0) - b.mean(axis=0))
  assert gap > 2 * max(a.std(), b.std())
  np.testing.assert_array_equal(
    maps.place(np.ones((8, 3)), seed=0), np.zeros((8, 2))
  )


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'report.md'
  files.write_text(path, 'old')

  def fail(*_):
    raise OSError('disk full')

  for broken in ('replace', 'fsync'):
    with monkeypatch.context() as patch:
      patch.setattr(os, broken, fail)
      with pytest.raises(OSError, match='disk full'):
        files.write_text(path, 'new')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]
  files.write_text(path, 'new ü \udcff')
  assert path.read_bytes() == 'new ü \\udcff'.encode()


def test_files_get_the_permissions_of_a_plain_open(tmp_path):
  plain, ours = tmp_path / 'plain', tmp_path / 'deep' / 'ours'
  plain.write_bytes(b'')
  files.write_bytes(ours, b'')
  assert ours.stat().st_mode == plain.stat().st_mode
  ours.chmod(0o640)
  files.write_bytes(ours, b'again')
  assert ours.stat().st_mode & 0o777 == 0o640


def test_importing_the_room_is_cheap():
  heavy = ('matplotlib', 'sklearn', 'jinja2', 'jax')
  code = (
    'import sys, crosr_jax.report; '
    f'print([m for m in {heavy} if m in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'
