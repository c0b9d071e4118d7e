"""OpenSetClassifier as a member of scikit-learn's family."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import weibull_min
from sklearn import (
  calibration,
  compose,
  datasets,
  ensemble,
  frozen,
  linear_model,
  model_selection,
  neighbors,
  pipeline,
  preprocessing,
  svm,
)
from sklearn.utils import estimator_checks

from crosr_jax import types
from crosr_jax.sklearn import OpenSetClassifier

# Checks that do not hold, and why they cannot.
_EXEMPT = {
  'check_classifiers_classes': 'has a class -1, which is the default '
  'unknown_label; a class may not be called as unknown is',
  'check_fit2d_1feature': 'has classes of one or two samples: no tail can be '
  'fitted to them, and the error says so, not that there is one feature',
  'check_n_features_in_after_fitting': 'has random labels, of which two of a '
  'class are right by chance: equally far from their mean, no tail',
}


def test_check_estimator():
  found = estimator_checks.check_estimator(
    OpenSetClassifier(), expected_failed_checks=_EXEMPT, on_skip=None
  )
  statuses = {x['check_name']: x['status'] for x in found}
  assert {n for n, s in statuses.items() if s == 'xfail'} == set(_EXEMPT)
  assert sum(s == 'passed' for s in statuses.values()) > 40


@pytest.fixture(scope='module')
def digits():
  """Digits 0..6 to train and to test on, and 7, 8, 9."""
  X, y = datasets.load_digits(return_X_y=True)
  known = y < 7
  return *model_selection.train_test_split(
    X[known], y[known], stratify=y[known], random_state=0
  ), X[~known]


def test_a_classifier_sees_the_data_frame_that_is_given(digits):
  train, test, label, _, _ = digits
  names = [f'pixel {i}' for i in range(64)]
  frame, new = (
    pd.DataFrame(x, columns=names, index=np.arange(len(x))[::-1])
    for x in (train, test)
  )
  by_name = compose.make_column_transformer(
    (preprocessing.StandardScaler(with_std=False), names)
  )
  inner = pipeline.make_pipeline(by_name, svm.SVC())
  with warnings.catch_warnings():
    # Of missing names, scikit-learn warns.
    warnings.simplefilter('error')
    model = OpenSetClassifier(inner, vector='logits').fit(frame, label)
    found = model.predict(new)
  assert list(model.feature_names_in_) == names
  scaled = pipeline.make_pipeline(
    preprocessing.StandardScaler(with_std=False), svm.SVC()
  )
  plain = OpenSetClassifier(scaled, vector='logits').fit(train, label)
  np.testing.assert_array_equal(found, plain.predict(test))
  assert model.threshold_ == pytest.approx(plain.threshold_)


def test_a_class_of_one_sample_is_named(digits):
  train, _, label, _, _ = digits
  rows = np.r_[np.flatnonzero(label < 2), np.flatnonzero(label == 5)[:1]]
  names = np.array(['a', 'b', '', '', '', 'zebra'])
  for reject_known in (0.0, 0.05):
    model = OpenSetClassifier(unknown_label='?', reject_known=reject_known)
    with pytest.raises(types.UserError, match=r"class 'zebra' has 1 sample"):
      model.fit(train[rows], names[label[rows]])
    model.unknown_label = -1
    with pytest.raises(types.UserError, match='class 5 has 1 sample'):
      model.fit(train[rows], label[rows])


@pytest.mark.parametrize(
  'estimator',
  [
    None,
    svm.SVC(),
    ensemble.RandomForestClassifier(50, random_state=0),
    neighbors.KNeighborsClassifier(),
  ],
)
def test_knows_what_it_does_not_know(digits, estimator):
  train, test, label, test_label, strange = digits
  model = pipeline.make_pipeline(
    preprocessing.StandardScaler(with_std=False),
    OpenSetClassifier(estimator, reject_known=0.1),
  ).fit(train, label)
  found = model.predict(test)
  rejected = np.mean(found == -1)
  assert 0.02 < rejected < 0.2
  assert np.mean(found[found != -1] == test_label[found != -1]) > 0.97
  assert np.mean(model.predict(strange) == -1) > max(0.45, 3 * rejected)
  probability = model[-1].open_set_proba(model[0].transform(test))
  np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
  assert probability.shape == (len(test), 8)


def test_grid_search(digits):
  train, _, label, _, _ = digits
  search = model_selection.GridSearchCV(
    OpenSetClassifier(linear_model.LogisticRegression(max_iter=3000)),
    {'vector': ['joint', 'evidence'], 'estimator__C': [0.01, 1.0]},
    cv=2,
  ).fit(train[::2], label[::2])
  assert search.best_score_ > 0.8
  assert set(search.best_params_) == {'vector', 'estimator__C'}


def test_words(digits):
  train, _, label, _, strange = digits
  # In the same order as the numbers: held-out samples are drawn by class.
  names = np.array([f'digit {k}' for k in range(7)])
  numbers = OpenSetClassifier().fit(train, label)
  words = OpenSetClassifier(unknown_label='unknown').fit(train, names[label])
  a, b = numbers.predict(strange), words.predict(strange)
  np.testing.assert_array_equal(a == -1, b == 'unknown')
  np.testing.assert_array_equal(names[a[a >= 0]], b[b != 'unknown'])
  # Longer than any class, or of another kind: nothing is cut or turned.
  longer = OpenSetClassifier(unknown_label='none of these')
  assert 'none of these' in longer.fit(train, names[label]).predict(strange)
  assert 0.7 < words.score(train, names[label]) < 1
  # As pandas has them.
  objects = OpenSetClassifier(unknown_label='unknown')
  objects.fit(train, names.astype(object)[label])
  np.testing.assert_array_equal(objects.predict(strange), b)
  with pytest.raises(types.UsageError, match="take 'unknown' for words"):
    OpenSetClassifier().fit(train, names.astype(object)[label])


def test_whole_numbers_of_any_kind(digits):
  train, _, label, _, strange = digits
  names = label.astype(np.uint64) + np.uint64(2**63 + 1)
  model = OpenSetClassifier().fit(train, names)
  expected = OpenSetClassifier().fit(train, label).predict(strange)
  found = model.predict(strange)
  for a, b in zip(found, expected, strict=True):
    assert a == (-1 if b < 0 else int(b) + 2**63 + 1)
  # Whoever is in the batch.
  model.fit(train[label < 2], label[label < 2] > 0)
  both = model.predict(train[label < 2])
  assert {-1, 0, 1} == set(both)
  assert both.dtype == model.predict(train[label < 2][both >= 0]).dtype


def test_against_scipy():
  """Two classes on a line, by the formula and SciPy's own Weibull."""
  generator = np.random.default_rng(0)
  label = np.repeat([0, 1], 200)
  X = generator.normal(size=(400, 1)) + 20 * label[:, None]
  model = OpenSetClassifier(
    vector='logits', scaling='none', reject_known=0.0
  ).fit(X, label)
  log_odds = model.estimator_.decision_function(X)
  logits = np.stack([-log_odds / 2, log_odds / 2], axis=1)
  new = np.array([[-9.0], [0.3], [8.0], [31.0]])
  log_odds = model.estimator_.decision_function(new)
  new_logits = np.stack([-log_odds / 2, log_odds / 2], axis=1)
  w = np.zeros((4, 2))
  for k in (0, 1):
    mav = logits[label == k].mean(axis=0)
    tail = np.sort(np.linalg.norm(logits[label == k] - mav, axis=1))[-20:]
    shift = tail.min() - 1
    shape, _, scale = weibull_min.fit(tail - shift, floc=0)
    d = np.linalg.norm(new_logits - mav, axis=1)
    w[:, k] = weibull_min.cdf(d - shift, shape, scale=scale)
  closed = np.exp(new_logits) / np.exp(new_logits).sum(axis=1, keepdims=True)
  found = model.open_set_proba(new)
  np.testing.assert_allclose(found[:, 2], (closed * w).sum(axis=1), atol=1e-4)
  np.testing.assert_allclose(found[:, :2], closed * (1 - w), atol=1e-4)
  np.testing.assert_array_equal(
    np.argsort(model.score_samples(new)), np.argsort(-model.unknown_score(new))
  )


@pytest.mark.parametrize(
  ('classes', 'estimator', 'words'),
  [
    # As many pairs as classes.
    (3, svm.SVC(decision_function_shape='ovo'), "decision_function_shape='ovr"),
    (
      2,
      model_selection.FixedThresholdClassifier(
        linear_model.LogisticRegression(), threshold=0.9
      ),
      'a threshold of its own is not taken',
    ),
    (
      2,
      model_selection.TunedThresholdClassifierCV(
        linear_model.LogisticRegression(), scoring='recall'
      ),
      'a threshold of its own is not taken',
    ),
  ],
)
def test_decision_values_that_do_not_say_what_is_predicted(
  classes, estimator, words
):
  X, label = datasets.make_classification(
    *(600, 10),
    **{'n_informative': 5, 'n_classes': classes, 'n_clusters_per_class': 1},
    class_sep=0.5,
    random_state=0,
  )
  with pytest.raises(types.UsageError, match=words):
    OpenSetClassifier(estimator).fit(X, label)


def test_even_votes_and_probabilities_of_an_svc():
  X, label = datasets.make_classification(
    *(1500, 20),
    **{'n_informative': 10, 'n_classes': 20, 'n_clusters_per_class': 1},
    class_sep=0.3,
    random_state=0,
  )
  linear = svm.SVC(kernel='linear').fit(X, label)
  decided = np.argmax(linear.decision_function(X), axis=1)
  assert np.mean(decided != linear.predict(X)) > 0.1
  OpenSetClassifier(frozen.FrozenEstimator(linear)).fit(X, label)
  two = label < 2
  calibrated = calibration.CalibratedClassifierCV(svm.SVC())
  OpenSetClassifier(calibrated).fit(X[two], label[two])


def test_a_frozen_classifier(digits):
  train, _, label, _, _ = digits
  three = label < 3
  trained = linear_model.LogisticRegression(max_iter=3000)
  trained = frozen.FrozenEstimator(trained.fit(train[three], label[three] + 1))
  OpenSetClassifier(trained).fit(train[three], label[three] + 1)
  with pytest.raises(
    types.UsageError, match=r'\[1, 2, 3\], those of y are \[0'
  ):
    OpenSetClassifier(trained).fit(train[three], label[three])


def test_a_tail_that_is_a_number(digits):
  train, _, label, _, _ = digits
  scores = [
    OpenSetClassifier(tail=tail).fit(train, label).unknown_score(train)
    for tail in (15, '15', np.int64(15), '20')
  ]
  np.testing.assert_array_equal(scores[0], scores[1])
  np.testing.assert_array_equal(scores[0], scores[2])
  assert (scores[0] != scores[3]).any()


def test_errors(digits):
  train, _, label, _, _ = digits
  for fields, words in (
    ({'unknown_label': 3}, 'unknown_label=3 is a class'),
    ({'tail': '0'}, 'tail'),
    ({'reject_known': 0.7}, 'reject_known'),
    ({'vector': 'latent'}, 'vector'),
    ({'tail': 'auto'}, "tail='auto'"),
    ({'tail': 1}, "tail=1: a number from 2 as '20' or a share as '5%' is n"),
    ({'tail': 0.05}, r'tail=0\.05: a number from 2'),
    ({'tail': True}, 'tail=True: a number from 2'),
    ({'unknown_label': 'none'}, 'another kind'),
    ({'unknown_label': [1]}, r'\[1\] is no single label'),
    ({'unknown_label': None}, 'None is no single label'),
    ({'unknown_label': float('nan')}, 'nan is no single label'),
    (
      {'estimator': svm.SVC(decision_function_shape='ovo')},
      '21 decision values for 7 classes',
    ),
    ({'estimator': linear_model.LinearRegression()}, 'or predict_proba is'),
  ):
    with pytest.raises(types.UsageError, match=words):
      OpenSetClassifier(**fields).fit(train, label)
  with pytest.raises(ValueError, match='at least 2 classes'):
    OpenSetClassifier().fit(train[label == 1], label[label == 1])
