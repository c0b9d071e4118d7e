"""The comparison: published figures, table, verdicts, pictures, the command."""

import collections
import functools
import io
import json
import re
import signal
from html import parser

import pytest
from conftest import CONFIGS
from matplotlib import text
from ml_collections import config_dict
from PIL import Image

from configs import cifar10_split, cifar_plus
from crosr_jax import cli, comparison, files, signals, types
from crosr_jax.report import (
  architecture,
  dots,
  judgement,
  published,
  rows,
  words,
)
from crosr_jax.report import comparison as pages

_READINGS = [reading.key for reading in words.READINGS]
_METHODS = ('softmax', 'max_logit', 'openmax', 'crosr_published', 'crosr')


@pytest.mark.parametrize(
  ('key', 'row', 'unknown', 'expected'),
  [
    ('mnist', ('supervised', 'openmax'), 'noise', (0.890, 'poster')),
    ('mnist', ('laddernet', 'openmax'), 'mnist_noise', (0.821, 'poster')),
    ('mnist', ('dhrnet', 'crosr_published'), 'omniglot', (0.793, 'poster')),
    ('cifar10', ('supervised', 'softmax'), 'lsun_crop', (0.642, 'quoted')),
    ('cifar10', ('dhrnet', 'openmax'), 'imagenet_resize', (0.675, 'quoted')),
    ('cifar10', ('gan', 'gan'), 'imagenet_crop', (0.636, 'poster')),
    ('cifar10', ('dhrnet', 'crosr_published'), 'lsun_resize',
     (0.749, 'poster')),
  ],
)  # fmt: skip
def test_published_f1(key, row, unknown, expected):
  figure = published.figures(key)[row][unknown]
  assert (figure.value, figure.source) == expected
  assert figure.reading == 'macro_f1_half'


@pytest.mark.parametrize(
  ('key', 'unknown', 'softmax', 'gan', 'crosr', 'best'),
  [
    ('mnist_split', 'mnist_unknown', 0.978, 0.988, 0.991, 0.993),
    ('cifar10_split', 'cifar10_unknown', 0.677, 0.699, 0.883, 0.936),
    ('cifar_plus_10', 'cifar100', 0.816, 0.838, 0.912, 0.979),
    ('cifar_plus_50', 'cifar100', 0.805, 0.827, 0.905, 0.965),
    ('tinyimagenet_split', 'tinyimagenet_unknown', 0.577, 0.586, 0.589, 0.830),
  ],
)
def test_published_auroc(key, unknown, softmax, gan, crosr, best):
  found = published.figures(key)
  for row, value in (
    (('supervised', 'softmax'), softmax),
    (('gan', 'gan'), gan),
    (('dhrnet', 'crosr_published'), crosr),
  ):
    assert found[row] == {
      unknown: published.Figure(value, 'auroc', found[row][unknown].source)
    }
  assert max(o.value[unknown] for o in published.others(key)) == best


def test_published_by_others_keep_their_reading():
  aosr = published.others('mnist')[0]
  assert aosr.reading == 'macro_f1' and aosr.value['mnist_noise'] == 0.977
  found = {other.name: other for other in published.others('cifar10')}
  assert found['PROSER'].reading == published.OWN
  assert found['Best later work seen: RCSSR / CSSR'].reading == (
    'macro_f1_tpr95_test'
  )
  # ARPL and CSSR have no figure for MNIST.
  assert len(published.others('mnist_split')) == 1


def test_published_figures_are_for_the_published_protocol_alone():
  assert published.benchmark('mnist', ()) == 'mnist'
  assert published.benchmark('mnist', (7, 8)) == ''
  assert published.benchmark('digits', ()) == ''
  splits = cifar10_split.PUBLISHED
  assert published.benchmark('cifar10', (), splits) == 'cifar10_split'
  assert published.benchmark('svhn', (), splits) == ''
  altered = (*splits[:4], (0, 1, 2, 3, 4, 5))
  assert published.benchmark('cifar10', (), altered) == ''
  splits, ten = cifar_plus.PUBLISHED, cifar_plus.PUBLISHED_10
  assert published.benchmark('cifar10', (), splits, ten) == 'cifar_plus_10'
  assert published.benchmark('cifar10', (), splits, ten[:4]) == ''
  assert published.absent('mnist', 'gan') == 'not in the poster'


def _report(sets=('omniglot',), **values):
  """A report.json; values: method -> number for every reading, or a dict."""
  entry = {'n_known': 10_000, 'n_unknown': 10_000}
  for method, value in values.items():
    found = value if isinstance(value, dict) else {}
    plain = 0.5 if isinstance(value, dict) else value
    entry[method] = {key: found.get(key, plain) for key in _READINGS}
  return {
    'unknown': dict.fromkeys(sets, entry),
    'class_names': ['a', 'b'],
    'closed_set_accuracy': 0.9,
    'train': {'steps': 3, 'seconds': 60.0},
    'device': 'cpu',
    'parameters': 1234,
    'notes': ['all warn of this'],
  }


def _case(system, report, seed=0, split=None):
  return rows.Case(system, seed, split, report, f'{system}/seed{seed}')


def test_published_f1_stands_beside_as_many_samples_alone(tmp_path):
  report = _report(('omniglot', 'mnist_noise'), openmax=0.9)
  fewer = json.loads(json.dumps(report))
  fewer['unknown']['omniglot']['n_unknown'] = 100
  cases = [
    _case('supervised', report, 0), _case('supervised', fewer, 1)
  ]  # fmt: skip
  result = _write(tmp_path, cases)
  row = rows.find(result, 'supervised', 'openmax')
  assert set(row['paper']) == {'mnist_noise'}
  assert 'omniglot' not in ' '.join(result['published_sentences'])
  (note,) = [note for note in result['notes'] if 'do not compare' in note]
  assert note == (
    'Published F1 figures are of 10,000 known and 10,000 unknown samples, ours '
    'of omniglot are not: they do not compare.'
  )


def test_mean_and_sample_deviation_over_seeds():
  cases = [
    _case('supervised', _report(softmax=value), seed)
    for seed, value in enumerate((0.7, 0.8, 0.6))
  ]
  table = rows.table([*cases, _case('supervised', None, 3)], 'mnist')
  assert table['by'] == 'seed' and table['labels'] == [0, 1, 2, 3]
  row = rows.find(table, 'supervised', 'softmax')
  cell = row['unknown']['omniglot']['auroc']
  assert cell['mean'] == pytest.approx(0.7)
  # sqrt((0 + .01 + .01) / 2), by hand.
  assert cell['std'] == pytest.approx(0.1)
  assert cell['values'] == [0.7, 0.8, 0.6, None]
  assert judgement.spread(cell) == '.700 ± .100 [3 of 4]'
  assert rows.summary([0.25])['std'] is None
  assert rows.summary([None])['mean'] is None


def test_splits_are_means_over_their_seeds():
  name = 'mnist_unknown'
  cases = [
    _case('dhrnet', _report([name], crosr_published=value), seed, split)
    for split, seed, value in (
      (0, 0, 0.6), (0, 1, 0.8), (1, 0, 0.9), (1, 1, None), (2, 0, 0.5),
    )
    if value
  ]  # fmt: skip
  table = rows.table(cases, 'mnist_split')
  assert table['by'] == 'split' and table['readings'][:2] == ['auroc', 'oscr']
  row = rows.find(table, 'dhrnet', 'crosr_published')
  cell = row['unknown'][name]['auroc']
  assert cell['values'] == pytest.approx([0.7, 0.9, 0.5])
  assert cell['mean'] == pytest.approx(0.7)
  assert cell['std'] == pytest.approx(0.2)
  assert row['paper'][name]['value'] == 0.991


_BARE = {'macro_f1': None, 'macro_f1_half': None}


@pytest.mark.parametrize(
  ('crosr', 'softmax', 'max_logit', 'reading', 'outcome'),
  [
    # Both rivals have the reading.
    ({}, 0.4, 0.4, 'auroc', 'win'),
    ({}, 0.4, 0.6, 'auroc', 'loss'),
    ({}, 0.6, 0.4, 'auroc', 'loss'),
    # Level as printed, with three decimals.
    ({}, 0.4, 0.5004, 'auroc', 'level'),
    ({}, 0.6, 0.5004, 'auroc', 'loss'),
    # Low is good.
    ({'fpr95': 0.3}, 0.4, 0.4, 'fpr95', 'win'),
    ({'fpr95': 0.5}, 0.4, 0.6, 'fpr95', 'loss'),
    # The maximum logit has no half: AUROC and tpr95 stand for it.
    ({}, 0.4, {**_BARE, 'auroc': 0.4, 'macro_f1_tpr95': 0.4},
     'macro_f1_half', 'win'),
    ({}, 0.4, {**_BARE, 'auroc': 0.6, 'macro_f1_tpr95': 0.4},
     'macro_f1_half', 'no win'),
    ({}, 0.4, {**_BARE, 'auroc': 0.4, 'macro_f1_tpr95': 0.5},
     'macro_f1', 'no win'),
    ({}, 0.6, {**_BARE, 'auroc': 0.4, 'macro_f1_tpr95': 0.4},
     'macro_f1_half', 'loss'),
    ({}, 0.5, {**_BARE, 'auroc': 0.4, 'macro_f1_tpr95': 0.4},
     'macro_f1_half', 'level'),
  ],
)  # fmt: skip
def test_verdict(crosr, softmax, max_logit, reading, outcome):
  report = _report(
    crosr_published=crosr, crosr=0.5, softmax=softmax, max_logit=max_logit
  )
  table = rows.table([_case('dhrnet', report)])
  found = {
    (e['method'], e['reading']): e['outcome']
    for e in judgement.verdicts(table)
    if e['unknown'] == 'omniglot'
  }
  assert found['crosr_published', reading] == outcome


def test_verdict_in_words():
  report = _report(
    crosr_published=0.5,
    crosr=0.9,
    softmax=0.4,
    max_logit={**dict.fromkeys(_READINGS, 0.45), **_BARE, 'auroc': 0.625},
  )
  says = dict(
    judgement.verdict_sentences(
      judgement.verdicts(rows.table([_case('dhrnet', report)]))
    )
  )
  head = (
    'CROSR as published: 4 won, 2 lost, 0 level, 2 ahead of Softmax alone, '
    'over 1 unknown set in 8 readings.'
  )
  (sentence,) = says[head]
  assert 'loses in AUROC (.500 against .625 of Maximum logit)' in sentence
  assert (
    'no win, in F1 half (.500 against .625 of Maximum logit in AUROC)'
    in sentence
  )
  assert sentence.startswith('omniglot: wins in F1 tpr95, F1 tpr95 test*')


def _controls(values, by='seed'):
  """Sentences of one control; values: with and without, per seed."""
  cases = []
  for i, (a, b) in enumerate(values):
    place = {'seed': i} if by == 'seed' else {'split': i}
    for system, value in (('dhrnet', a), ('dhrnet_w0', b)):
      report = value and _report(crosr_published=value, crosr=value)
      cases.append(_case(system, report, **place))
  table = rows.table(cases)
  return judgement.controls(table), table


def test_controls_are_paired_and_signed():
  found, table = _controls([(0.8, 0.7), (0.9, 0.6), (0.5, None)])
  first = found[0]
  assert first['control'] == 'reconstruction'
  assert first['reading'] == 'macro_f1_half'
  # The third seed has no partner and must not count.
  assert first['with'] == pytest.approx(0.85)
  assert first['without'] == pytest.approx(0.65)
  assert first['worth'] == pytest.approx(0.2)
  # Differences .1 and .3.
  assert first['spread'] == pytest.approx(0.02**0.5)
  assert first['sentence'] == (
    'With the reconstruction switched off, CROSR as published reaches .650 '
    'against .850 on omniglot (F1 half): the reconstruction is worth +.200 '
    'there, more than its spread over seeds (.141).'
  )
  says = judgement.control_sentences(found, table['by'])
  assert len(says) == 4  # two recipes, two readings
  assert says[0].endswith(
    'worth +.200 on omniglot; a gain beyond the spread over seeds on 1 of 1 '
    'set, a loss beyond it on 0.'
  )


def test_controls_of_splits_are_of_the_same_seeds():
  cases = []
  for split in (0, 1):
    for seed, value in ((0, 0.9), (1, 0.5)):
      report = _report(crosr=value)
      cases.append(_case('dhrnet', report, seed, split))
      # One of them is not there; what is there is all the same.
      is_there = (split, seed) != (1, 1)
      report = report if is_there else None
      cases.append(_case('dhrnet_w0', report, seed, split))
  table = rows.table(cases)
  cells = rows.find(table, 'dhrnet_w0', 'crosr')['unknown']['omniglot']
  assert cells['auroc']['values'] == [pytest.approx(0.7), None]
  for entry in judgement.controls(table):
    assert entry['with'] == entry['without'] == pytest.approx(0.7)
    assert entry['worth'] == 0


def test_controls_of_one_seed_and_of_chance():
  found, _ = _controls([(0.7, 0.75)])
  assert found[0]['sentence'].endswith('−.050 there, one seed: no spread.')
  found, _ = _controls([(0.7, 0.75), (0.8, 0.7)], by='split')
  assert 'not more than its spread over splits (.106)' in found[0]['sentence']


def test_published_figures_stand_in_their_own_reading_alone(tmp_path):
  report = _report(
    ('omniglot', 'mnist_noise', 'mnist_noise_sum'),
    openmax={'macro_f1_half': 0.7, 'auroc': 0.99},
  )
  cases = [_case('supervised', report), _case('gan', None)]
  result = _write(tmp_path, cases)
  assert not [note for note in result['notes'] if 'do not compare' in note]
  (sentence,) = result['published_sentences']
  assert 'above it on omniglot (.700 here, .680 there)' in sentence
  assert 'below it on mnist_noise (.700 here, .720 there)' in sentence
  assert '.990' not in sentence
  half, auroc, *_ = pages.sections(result)
  cells = {line.title: line.cells for line in half.lines}
  assert [cell.paper for cell in cells['Supervised · OpenMax']] == [
    'poster .680', 'poster .720', '',
  ]  # fmt: skip
  gan = cells['GAN unknown augmentation']
  assert {(c.ours, c.paper) for c in gan} == {
    ('not yet run', 'not in the poster')
  }
  assert {c.paper for line in auroc.lines for c in line.cells} == {''}
  row = next(
    row for row in result['rows']
    if (row['system'], row['method']) == ('supervised', 'openmax')
  )  # fmt: skip
  assert row['paper']['omniglot'] == {
    'value': 0.680, 'reading': 'macro_f1_half', 'source': 'poster',
  }  # fmt: skip


def _write(folder, cases, benchmark='mnist', **kwargs):
  return pages.write(
    folder,
    'mnist',
    cases,
    benchmark=benchmark,
    changes=comparison.SYSTEMS,
    **{'pictures': False, **kwargs},
  )


class _Links(parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.found = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.found += [v for k, v in attrs if k in ('src', 'href')]


def _full_report():
  return _report(
    ('omniglot', 'mnist_noise'),
    softmax=0.4, max_logit=dict.fromkeys(_READINGS, 0.45) | _BARE,
    openmax=0.5, crosr_y=0.5, crosr_published=0.6, crosr=0.7,
  )  # fmt: skip


def test_page_and_markdown_hold_every_part(tmp_path):
  cases = [
    _case(system, _full_report(), seed)
    for system in ('supervised', 'laddernet', 'dhrnet', 'dhrnet_w0')
    for seed in (0, 1)
  ]
  nets = pages.Nets(_nets(), (8, 8, 1))
  result = _write(tmp_path, cases, nets=nets, pictures=True)
  page = (tmp_path / 'compare.html').read_text()
  links = _Links(page).found
  pictures = [x for x in links if x.startswith('data:image/png')]
  assert len(pictures) == 6
  assert {x for x in links if not x.startswith('data:')} == {
    f'{case.folder}/report.html' for case in cases
  }
  assert '<script' not in page and 'http' not in page
  markdown = (tmp_path / 'compare.md').read_text()
  for text_ in (page, markdown):
    for words_ in (
      'Does CROSR win?', 'What the controls show', 'poster .793',
      'Weight 0 · CROSR, our recipe', 'AOSR', 'all warn of this',
    ):  # fmt: skip
      assert words_ in text_
  names = re.findall(r'\(figures/(\w+)\.png\)', markdown)
  found = {path.stem for path in (tmp_path / 'figures').glob('*.png')}
  assert set(names) == found and 'architecture' in found
  assert json.loads((tmp_path / 'compare.json').read_text()) == result
  # Without pictures, none of a former comparison stays.
  _write(tmp_path, cases)
  assert not list((tmp_path / 'figures').glob('*.png'))


def test_nothing_run_yet(tmp_path):
  cases = [_case(system, None) for system in ('supervised', 'dhrnet')]
  result = _write(tmp_path, cases, pictures=True)
  assert result['sets'] == ['omniglot', 'mnist_noise', 'noise']
  assert (
    'No CROSR row has been run yet' in (tmp_path / 'compare.html').read_text()
  )
  assert 'not yet run' in pages.plain_text(result, 'macro_f1_half')
  assert '(.793)' in pages.plain_text(result, 'macro_f1_half')


def test_dots_mark_means_spread_and_published():
  cases = [
    _case('supervised', _report(openmax=value, softmax=0.5), seed)
    for seed, value in enumerate((0.6, 0.8))
  ]
  table = rows.table(cases, 'mnist')
  shown = [rows.find(table, 'supervised', 'openmax')]
  figure = dots.figure_of(table, shown, 'macro_f1_half')
  lines = figure.axes[0].lines
  marks = {
    line.get_marker(): list(line.get_xdata())
    for line in lines
    if line.get_markersize() > 5
  }
  assert marks['D'] == [0.68] and marks['o'] == pytest.approx([0.7])
  bars = [line.get_xdata() for line in lines if line.get_linestyle() == '-']
  assert bars[0] == pytest.approx([0.7 - 0.02**0.5, 0.7 + 0.02**0.5])
  # In another reading the published figure has no place.
  other = dots.figure_of(table, shown, 'auroc')
  assert 'D' not in {line.get_marker() for line in other.axes[0].lines}
  assert dots.draw(rows.table([_case('gan', None)], 'mnist'), 'auroc') is None


_Row = collections.namedtuple(
  '_Row', ['name', 'kind', 'shape', 'parameters', 'multiply_adds']
)


def _nets():
  base = [
    _Row('blocks_0', 'block', (4, 4, 32), 832, 92_160),
    _Row('blocks_1', 'block', (2, 2, 64), 18_624, 1_810_000),
    _Row('head', 'head', (7,), 2_000, 2_048),
  ]
  decoder = [
    _Row('g_1', 'decoder', (4, 4, 32), 100, 10),
    _Row('g_0', 'decoder', (8, 8, 1), 200, 20),
  ]
  lateral = [
    _Row('h_1', 'lateral', (2, 2, 16), 1_000, 3_000),
    _Row('hr_1', 'lateral', (2, 2, 64), 500, 4_000),
    _Row('h_0', 'lateral', (4, 4, 16), 30, 40),
    _Row('hr_0', 'lateral', (4, 4, 32), 50, 60),
  ]
  return [
    architecture.Net('Supervised', base),
    architecture.Net('LadderNet', base + decoder),
    architecture.Net('DHRNet', base + lateral + decoder),
  ]


def test_architecture_tells_shapes_and_costs():
  figure = architecture.figure_of(_nets(), (8, 8, 1))
  supervised, ladder, dhrnet = (
    [found.get_text() for found in ax.findobj(text.Text)] for ax in figure.axes
  )
  assert '21,456 parameters\n1.9 M multiply-adds' in supervised
  assert 'reconstruction' not in supervised and 'identity' not in supervised
  assert ladder.count('identity') == 2 and 'bottleneck 1' not in ladder
  at = dhrnet.index('bottleneck 2')
  # The code's shape; the cost there and back.
  assert dhrnet[at : at + 4] == [
    'bottleneck 2', '2 × 2 × 16', '1.5 k params', '7 k mult-adds',
  ]  # fmt: skip
  assert dhrnet.count('8 × 8 × 1') == 3  # image, decoder 1, reconstruction
  picture = architecture.draw(_nets(), (8, 8, 1))
  assert Image.open(io.BytesIO(picture.png)).size[0] > 800
  numbers = (999, 9_250, 1_810_000, 3 * 10**9, 21 * 10**12)
  assert [words.short(n) for n in numbers] == [
    '999', '9.25 k', '1.81 M', '3 G', '21 T',
  ]  # fmt: skip


def test_plan_changes_what_makes_a_system_and_nothing_else(tmp_path):
  config = CONFIGS['digits']
  runs = comparison.plan(config, 'digits', tmp_path, seeds=(0, 2))
  assert [run.system for run in runs][::2] == list(comparison.SYSTEMS)
  by_system = {(run.system, run.seed): run for run in runs}
  control = by_system['dhrnet_w0', 2]
  assert control.workdir == tmp_path / 'dhrnet_w0' / 'seed2'
  expected = config_dict.ConfigDict(config.to_dict())
  expected.seed = 2
  expected.train.reconstruction_weight = 0.0
  assert control.config.to_dict() == expected.to_dict()
  assert by_system['supervised', 0].config.model.lateral == 'none'
  assert config.seed == 0


def _split_config():
  config = config_dict.ConfigDict(CONFIGS['digits'].to_dict())
  config.data.splits = ((0, 1, 2), (3, 4, 5), (6, 7, 8))
  config.data.split = 0
  config.data.unknown_classes = ()
  return config


def test_plan_of_class_splits(tmp_path):
  config = _split_config()
  runs = comparison.plan(
    config, 'x', tmp_path, systems=['dhrnet'], seeds=(0, 1)
  )
  assert [(run.config.data.split, run.seed) for run in runs] == [
    (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
  ]  # fmt: skip
  assert runs[3].workdir == tmp_path / 'dhrnet' / 'split1-seed1'
  runs = comparison.plan(config, 'x', tmp_path, systems=['dhrnet'], splits=[2])
  assert [run.split for run in runs] == [2]
  with pytest.raises(types.UsageError, match='no split 3, the config has 0 to'):
    comparison.plan(config, 'x', tmp_path, splits=[3])


def test_generated_unknowns_are_for_their_system_alone(tmp_path):
  config = config_dict.ConfigDict(CONFIGS['digits'].to_dict())
  config.counterfactual = config_dict.ConfigDict({'count': 5})
  runs = [
    comparison._run(config, 'x', tmp_path, system, None, 0)
    for system in ('supervised', 'gan')
  ]
  counts = [run.config.counterfactual.count for run in runs]
  assert counts == [0, 10_000]


@pytest.mark.parametrize(
  ('value', 'expected'),
  [('', ()), ('0', (0,)), ('2, 0', (2, 0))],
)
def test_numbers_of_a_flag(value, expected):
  assert cli.numbers('seeds', value) == expected


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    ('1,', 'nothing between two commas'),
    ('one', "'one' is no whole number"),
    ('-1', "'-1' is no whole number"),
    ('1.5', "'1.5' is no whole number"),
    ('1,2,1', 'names 1 more than once'),
  ],
)
def test_numbers_that_are_none(value, message):
  with pytest.raises(types.UsageError, match=message):
    cli.numbers('seeds', value)


@pytest.fixture
def compare(run_command):
  """Runs the command; returns the finished process."""
  return functools.partial(run_command, 'compare')


_SMALL = (
  '--config=configs/digits.py',
  '--config.model.width=8',
  '--config.model.latent_width=8',
  '--config.model.dropout=0',
  '--config.model.head_dropout=0',
  '--config.train.num_steps=30',
  '--config.train.shift=0',
  '--config.train.learning_rate=0.1',
  '--config.report.pictures=False',
)


def _changed(root):
  return {
    str(path.relative_to(root)): path.stat().st_mtime_ns
    for path in root.rglob('*')
    if path.is_file() and path.parent != root
  }


def test_compare_goes_on_and_reports(compare, tmp_path):
  root = tmp_path / 'digits'
  arguments = (*_SMALL, f'--workdir={root}', '--systems=dhrnet,supervised')
  process = compare(*arguments)
  assert process.returncode == 0, process.stderr
  assert 'system 1 of 2: supervised, seed 0' in process.stderr
  assert 'system 2 of 2: dhrnet, seed 0' in process.stderr
  result = json.loads((root / 'compare.json').read_text())
  own = json.loads((root / 'dhrnet' / 'seed0' / 'report.json').read_text())
  row = rows.find(result, 'dhrnet', 'crosr_published')
  for name in ('digits_unknown', 'noise'):
    assert row['unknown'][name]['auroc'] == {
      'mean': own['unknown'][name]['crosr_published']['auroc'],
      'std': None,
      'values': [own['unknown'][name]['crosr_published']['auroc']],
    }
  assert re.search(r'CROSR as published +\.\d{3} +\.\d{3}', process.stdout)
  assert any('One seed' in note for note in result['notes'])

  # Again: nothing but the tables is written.
  before = _changed(root)
  process = compare(*arguments)
  assert process.returncode == 0, process.stderr
  assert process.stderr.count('finished, not run again') == 2
  assert 'reading digits' not in process.stderr
  assert _changed(root) == before

  # A run that is not there, and other fields of the report: only told.
  process = compare(
    *arguments[:-1], '--systems=dhrnet,laddernet', '--only_report'
  )
  assert process.returncode == 0, process.stderr
  assert 'laddernet, seed 0: not yet run' in process.stderr
  assert re.search(r'LadderNet · OpenMax +not yet run', process.stdout)
  assert _changed(root) == before

  # The second system belongs to another training: told before the first runs.
  config = config_dict.ConfigDict(own['config'])
  config.train.num_steps = 40
  with pytest.raises(types.UsageError, match='num_steps was 30 and is now 40'):
    comparison.plan(config, 'x', root, systems=['laddernet', 'dhrnet'])
  assert _changed(root) == before


def test_what_counts_as_finished(tmp_path, monkeypatch):
  (run,) = comparison.plan(
    CONFIGS['digits'], 'digits', tmp_path, systems=['dhrnet']
  )
  report = {
    'config': json.loads(json.dumps(run.config.to_dict())),
    'versions': {'crosr_jax': comparison.crosr_jax.__version__},
  }
  (run.workdir / 'digests').mkdir(parents=True)
  path = run.workdir / 'report.json'

  def found(changes=()):
    wanted = {**report, **dict(changes)}
    checked = {**wanted, 'sha256': files.digest(wanted)}
    path.write_text(json.dumps(checked))
    return comparison.finished(run)

  monkeypatch.setattr(comparison.saved, 'load_info', lambda _: {})
  assert comparison.finished(run) is None
  assert found() is None
  (run.workdir / 'digests' / '600.json').write_text('{}')
  assert found() is None
  (run.workdir / 'report.html').write_text('')
  assert found() == report
  assert found({'versions': {'crosr_jax': '0.0.1'}}) is None
  other = {**report['config'], 'weibull': {'tail_size': 20}}
  assert found({'config': other}) is None
  assert found({'config': 3}) is None
  other = {**report['config'], 'report': {}}
  assert found({'config': other}) is None
  assert comparison.finished(run, but=['report'])['config'] == other
  path.write_text('{')
  assert comparison.finished(run) is None
  # A figure that changed on the disk; and one of before there was a digest.
  assert found()
  text = path.read_text()
  path.write_text(text.replace('600', '601', 1))
  assert path.read_text() != text and comparison.finished(run) is None
  path.write_text(json.dumps(report))
  assert comparison.finished(run) is None
  monkeypatch.undo()
  assert found() is None  # There is no model.
  monkeypatch.setattr(comparison.saved, 'load_info', lambda _: {})
  # Of several nets each has its own checkpoints.
  run.config.model.members = 2
  report['config']['model']['members'] = 2
  for i in range(2):
    assert found() is None
    digests = run.workdir / 'members' / str(i) / 'digests'
    digests.mkdir(parents=True)
    (digests / '600.json').write_text('{}')
  assert found() == report


@pytest.mark.parametrize(
  ('arguments', 'words_'),
  [
    (['--splits=0'], ['--splits=0', 'no class splits']),
    (['--seeds='], ['no seed', '--seeds=0,1,2']),
    (['--config.model.lateral=none'], ['model.lateral', '--systems']),
  ],
)
def test_usage_errors(compare, tmp_path, arguments, words_):
  process = compare(*_SMALL, f'--workdir={tmp_path / "w"}', *arguments)
  assert process.returncode == 2, process.stderr
  lines = [x for x in process.stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 1 and 'Traceback' not in process.stderr
  for word in words_:
    assert word in lines[0]
  assert not (tmp_path / 'w').exists()


def test_systems_and_sections_that_are_not_there(tmp_path):
  config = config_dict.ConfigDict(CONFIGS['digits'].to_dict())
  with pytest.raises(types.UsageError, match="did you mean 'dhrnet'"):
    comparison.plan(config, 'x', tmp_path, systems=['dhrnt'])
  del config.counterfactual
  with pytest.raises(types.UsageError, match="no 'counterfactual'"):
    comparison.plan(config, 'x', tmp_path, systems=['dhrnet'])


def test_no_unknowns_are_generated_for_a_folder(tmp_path, caplog):
  config = config_dict.ConfigDict(CONFIGS['folder'].to_dict())
  for name in 'abc':
    (tmp_path / 'photos' / name).mkdir(parents=True)
  config.data.train_dir = str(tmp_path / 'photos')
  runs = comparison.plan(config, 'x', tmp_path / 'w')
  assert [run.system for run in runs] == [
    'supervised', 'laddernet', 'dhrnet', 'dhrnet_w0',
  ]  # fmt: skip
  assert (
    'gan: left out, unknowns are generated for images in mem' in caplog.text
  )
  with pytest.raises(
    types.UsageError, match='--systems=dhrnet,gan: gan cannot'
  ):
    comparison.plan(config, 'x', tmp_path / 'w', systems=['dhrnet', 'gan'])


def test_what_a_system_sets_itself_is_told(caplog):
  comparison.check_overrides(['train.keep', 'train.num_steps'], ['dhrnet'])
  assert not caplog.text
  comparison.check_overrides(['train.keep'])
  assert "gan: train.keep is 'best' there, whatever is given" in caplog.text


def test_malformed_splits_are_told_before_any_run(tmp_path):
  config = _split_config()
  config.data.splits = (0, 1, 2)
  with pytest.raises(types.UsageError, match='a single split is written'):
    comparison.plan(config, 'x', tmp_path)


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path, monkeypatch):
  runs = comparison.plan(CONFIGS['digits'], 'digits', tmp_path)
  ran = []

  def run(config, name, workdir, data_dir):
    ran.append(workdir.parent.name)
    if workdir.parent.name == 'laddernet':
      raise types.DivergedError('training diverged')

  monkeypatch.setattr(comparison.pipeline, 'run', run)
  told = comparison.execute(runs, tmp_path)
  assert ran == list(comparison.SYSTEMS)
  assert told == ['laddernet, seed 0: training diverged']


def test_who_asks_one_that_diverges_to_end_asks_all(tmp_path, monkeypatch):
  runs = comparison.plan(CONFIGS['digits'], 'digits', tmp_path)
  ran = []

  def run(config, name, workdir, data_dir):
    ran.append(workdir)
    with signals.deferred():
      signal.raise_signal(signal.SIGTERM)
      raise types.DivergedError('training diverged')

  monkeypatch.setattr(comparison.pipeline, 'run', run)
  before = signal.getsignal(signal.SIGTERM)
  signals.listen()
  try:
    with pytest.raises(signals.Terminated):
      comparison.execute(runs, tmp_path)
  finally:
    signal.signal(signal.SIGTERM, before)
  assert len(ran) == 1


def test_some_of_the_splits_do_not_compare(tmp_path):
  report = _report(('cifar10_unknown',), openmax=0.7)
  cases = [_case('supervised', report, split=k) for k in range(5)]
  result = _write(tmp_path, cases, 'cifar10_split')
  (sentence,) = result['published_sentences']
  assert '.700 here, .695 there' in sentence
  (section, *_) = pages.sections(result)
  (line,) = (x for x in section.lines if x.title == 'Supervised · OpenMax')
  assert line.cells[0].paper.endswith('.695')
  result = _write(tmp_path, cases[:2], 'cifar10_split')
  assert result['published_sentences'] == []
  # None of those stands beneath ours, nor beside it in the terminal.
  for section in pages.sections(result):
    for line in section.lines:
      if line.cells[0].ours != pages.NOT_YET:
        assert not line.cells[0].is_figure
  assert '(.695)' not in pages.plain_text(result, 'auroc')
  words = 'of 5 class splits, ours here of {}: they do not'
  assert any(words.format(2) in note for note in result['notes'])
  # Nor do those that are there, where others are not yet run.
  some = [_case('supervised', None, split=k) for k in range(1, 5)]
  result = _write(tmp_path, [cases[0], *some], 'cifar10_split')
  assert result['published_sentences'] == []
  assert any(words.format(1) in note for note in result['notes'])
  assert any(note.startswith('One split: ') for note in result['notes'])


def test_controls_are_explained_where_there_are_some(tmp_path):
  report = _report(**dict.fromkeys(_METHODS, 0.5))
  for system, there in (('dhrnet', False), ('dhrnet_w0', True)):
    _write(tmp_path, [_case(system, report)])
    page = (tmp_path / 'compare.html').read_text()
    assert ('Weight 0: DHRNet trained with' in page) == there


def test_time_of_a_system_counts_all_its_stages(tmp_path):
  report = _report(gan=0.5)
  report['counterfactual'] = {'seconds': {'classifier': 30.0, 'search': 5.0}}
  (system,) = _write(tmp_path, [_case('gan', report)])['systems']
  assert system['seconds']['mean'] == 95.0


def test_fields_are_looked_at_before_any_run(tmp_path):
  config = config_dict.ConfigDict(CONFIGS['digits'].to_dict())
  config.scorer.decision = 'haf'
  with pytest.raises(types.UsageError, match='decision must be one of'):
    comparison.plan(config, 'x', tmp_path)


def test_runs_of_several_sizes_and_nets_are_told_so(tmp_path):
  cases = []
  for split, (known, names, parameters) in enumerate(
    [(5_899, 'abc', 12_000), (5_848, 'abc', 12_000), (5_971, 'abcd', 12_500)]
  ):
    found = _report(['mnist_unknown', 'b'], **dict.fromkeys(_METHODS, 0.9))
    found['unknown'] = {
      name: {**entry, 'n_known': known}
      for name, entry in found['unknown'].items()
    }
    found['unknown']['b']['n_unknown'] = 20 + split // 2
    found |= {'class_names': list(names), 'parameters': parameters}
    found['config'] = {'model': {'rotation_classes': [90], 'eval_shift': 0}}
    found['notes'].append('of the first two' if split < 2 else 'of the third')
    folder = f'split{split}'
    cases.append(rows.Case('dhrnet', 0, split, found, folder))
  result = pages.write(
    tmp_path, 'x', cases, benchmark='mnist_split', changes={'dhrnet': {}},
    pictures=False,
  )  # fmt: skip
  assert result['facts'] == [
    '3 to 4 known classes, 3 steps each, on cpu.',
    'mnist_unknown: 5,848 to 5,971 known and 10,000 unknown samples.',
    'b: 5,848 to 5,971 known and 20 to 21 unknown samples.',
  ]
  assert result['systems'][0]['parameters'] is None
  assert result['notes'][-3:] == [
    'all warn of this',
    'split0, split1: of the first two',
    'split2: of the third',
  ]
  told = 'Nets here have rotation_classes=[90], those of published figures'
  assert any(note.startswith(told) for note in result['notes'])


def test_no_page_of_a_former_comparison_stays(tmp_path, monkeypatch):
  cases = [_case('dhrnet', _report(**dict.fromkeys(_METHODS, 0.9)))]
  write = functools.partial(
    pages.write, tmp_path, 'x', cases, changes={'dhrnet': {}}
  )
  write(pictures=False)
  assert (tmp_path / 'compare.html').exists()

  def full(*_):
    raise OSError('No space left on device')

  monkeypatch.setattr(dots, 'draw', full)
  with pytest.raises(OSError, match='No space left'):
    write()
  assert not (tmp_path / 'compare.html').exists()


def test_nothing_run_yet_of_a_config_that_nobody_published(tmp_path):
  cases = [_case('dhrnet', None)]
  result = pages.write(tmp_path, 'x', cases, changes={'dhrnet': {}})
  assert not result['sets'] and not pages.sections(result)
  assert 'not yet run' in (tmp_path / 'compare.md').read_text().lower()
