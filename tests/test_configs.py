"""Every field has a comment, a type, and a reader."""

import importlib

import pytest
from conftest import CONFIGS, ROOT

from configs import common
from crosr_jax import cli

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
