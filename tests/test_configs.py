"""Every field has a comment, a type, and a reader."""

import importlib
import sys

import pytest
from conftest import CONFIGS, ROOT

from configs import common
from crosr_jax import cli, pipeline, settings, types

_FIELDS = dict(cli._fields(common.get_config()))


def test_every_field_has_one_comment():
  comments = cli.field_comments((ROOT / 'configs' / 'common.py').read_text())
  told = {name: comments.get(name, '') for name in _FIELDS}
  assert [name for name, text in told.items() if not text] == []
  assert all(text.endswith('.') for text in told.values())


def test_no_field_is_none():
  assert [name for name, value in _FIELDS.items() if value is None] == []


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_only_changes_fields(name):
  module = importlib.import_module(f'configs.{name.partition(":")[0]}')
  found = dict(cli._fields(CONFIGS[name]))
  assert list(found) == list(_FIELDS)
  assert [type(v) for v in found.values()] == [
    type(v) for v in _FIELDS.values()
  ]
  assert f'--config=configs/{name.replace(":", ".py:")}' in module.__doc__


@pytest.mark.parametrize('name', [n for n in CONFIGS if CONFIGS[n].data.splits])
def test_five_splits_that_go_together(name):
  config = CONFIGS[name]
  assert config.data.unknown_classes == () and config.data.split == 0
  cifar100 = config.evaluation.cifar100_splits
  assert len(config.data.splits) == 5 and len(cifar100) in (0, 5)
  # CIFAR-100's classes come in place of the data set's others.
  assert config.data.others_unknown == (not cifar100)
  for lists in (config.data.splits, cifar100):
    assert len({len(set(classes)) for classes in lists}) <= 1


def test_variant_that_does_not_exist():
  with pytest.raises(ValueError, match="'papper'; did you mean 'paper'"):
    importlib.import_module('configs.mnist').get_config('papper')


def test_every_field_has_the_type_that_its_stage_takes():
  found = settings.fields()
  # The whole of common.py, and nothing else.
  assert found.keys() == _FIELDS.keys()
  assert all(settings._fits(_FIELDS[n], kind) for n, (kind, _) in found.items())


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('train.num_steps', '9', "num_steps must be a whole number, got '9'"),
    ('train.num_steps', True, 'num_steps must be a whole number, got True'),
    ('train.flip', 1, 'train.flip must be True or False, got 1'),
    ('train.learning_rate', None, 'learning_rate must be a number, got None'),
    ('weibull.tail', 20, 'weibull.tail must be a text, got 20'),
    ('report.map_samples', 1.5, 'map_samples must be a whole number'),
    ('evaluation.unknown_sets', 'noise', "each item a text, got 'noise'"),
    ('data.unknown_classes', ((1,),), 'a tuple, each item a whole number'),
    ('train', 3, 'the config has train=3, which must be a section'),
  ],
)
def test_a_value_of_another_type_is_one_line(name, value, message):
  config = common.get_config()
  with config.ignore_type():
    config.update_from_flattened_dict({name: value})
  with pytest.raises(types.UsageError) as caught:
    settings.check_config(config)
  assert message in str(caught.value)


@pytest.mark.parametrize('name', CONFIGS)
def test_only_nets_that_see_mirror_images_answer_with_them(name):
  config = CONFIGS[name]
  assert config.train.flip or not config.model.eval_mirror


@pytest.mark.parametrize('flip', [True, False])
def test_mirror_images_that_the_net_never_saw(flip, caplog):
  config = common.get_config()
  config.model.eval_mirror, config.train.flip = True, flip
  settings.check_config(config)
  assert ('set train.flip=True' in caplog.text) != flip


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('seeds', r'did you mean seed\?'),
    ('report.picture', r'did you mean report\.pictures\?'),
    ('train.momentun', r'did you mean train\.momentum\?'),
    ('weibull.tails', r'did you mean weibull\.tail\?'),
    ('extra.x', 'leave it out'),
  ],
)
def test_a_field_that_nothing_reads_is_one_line(name, hint):
  config = common.get_config()
  section, _, field = name.rpartition('.')
  with config.unlocked():
    if section and section not in config:
      config[section] = {}
    (config[section] if section else config)[field] = 3
  with pytest.raises(types.UsageError, match=f'has {name}, .* reads; .*{hint}'):
    settings.check_config(config)


def test_any_field_with_a_default_may_be_missing(tmp_path, monkeypatch):
  """As in a config of before that field; and what is written is written."""
  config = CONFIGS['digits'].copy_and_resolve_references()
  config.report.pictures, config.train.num_steps = False, 150
  config.model.width = config.model.latent_width = 4
  with config.unlocked():
    for name, (_, is_needed) in settings.fields().items():
      section, _, field = name.rpartition('.')
      if not is_needed and field in config[section]:
        del config[section][field]
  assert 'lateral' not in config.model
  monkeypatch.setattr(sys, 'argv', ['x', '--config=configs/digits.py'])
  assert cli.run_name(config) == 'digits'
  assert pipeline.run(config, 'digits', tmp_path / 'w', tmp_path)['parameters']


def test_a_default_is_one_for_every_stage_that_reads_the_field():
  """Or a stage that has none would ask for a field that may be left out."""
  defaults = {}
  for name, parameter in settings.parameters():
    defaults.setdefault(name, []).append(parameter.default)
  assert len(defaults['train.average']) == 2
  for name, found in defaults.items():
    assert all(x == found[0] for x in found), name


def test_a_field_that_is_missing_is_one_line():
  config = common.get_config()
  del config.train.flip
  with pytest.raises(types.UsageError, match=r'no train\.flip; start it from'):
    settings.check_config(config)
  # One that has a default may be, as in configs of earlier versions.
  config = common.get_config()
  del config.train.mixup
  settings.check_config(config)
