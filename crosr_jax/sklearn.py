"""Any scikit-learn classifier, made able to say "unknown".

n samples, d features, K classes.
"""

import reprlib
import warnings
from typing import Any

import numpy as np
from sklearn import base, linear_model, model_selection
from sklearn.utils import multiclass, validation

from crosr_jax import choice, scorer, types, weibull

# Share of training samples for which the largest decision value may be another
# class than that predicted: of two classes hardly one; of more an SVC takes
# votes, which may be even.
_MOST_OTHERS = 0.01
_MOST_OTHERS_OF_MANY = 0.15


class OpenSetClassifier(base.ClassifierMixin, base.BaseEstimator):
  """CROSR's Weibulls on a classifier's decision values and its features.

  The classifier is trained, on a data frame where there is one, then asked for
  its decision values; together with the features they are the activation
  vectors, of which CROSR measures how far a sample strays from its class, see
  vectors.py.

  Args:
    estimator: a classifier with `decision_function`, one column per class, or
      `predict_proba`, that predicts the class of the largest; None =
      LogisticRegression().
    unknown_label: what `predict` gives for unknown; no class may be called so,
      and it is a word where classes are words.
    vector: 'joint' (decision values and features), 'logits' (decision values
      alone), 'evidence' or 'neighbour', see weibull.fit.
    scaling: 'none', 'std' or 'within_class', see weibull.fit.
    margin: of 'evidence' and 'neighbour', see weibull.fit.
    tail: largest distances per class that are fitted, as 20 or '20', or a share
      as '5%' (at least 20).
    reject_known: share of known samples to reject: by a threshold from held-out
      samples; 0 = the largest of the K + 1 probabilities decides.
    held_out_share: of the samples, for that threshold.
    random_state: of the draw of those.

  Attributes:
    classes_: the K known classes.
    estimator_: the classifier as it was trained.
    weibull_: a types.WeibullModel.
    threshold_: of `unknown_score`, infinity where there is none.
  """

  def __init__(
    self,
    estimator: Any = None,
    *,
    unknown_label: Any = -1,
    vector: str = 'joint',
    scaling: str = 'within_class',
    margin: float = 0.0,
    tail: str | int = '20',
    reject_known: float = 0.05,
    held_out_share: float = 0.2,
    random_state: Any = 0,
  ):
    """See the class."""
    self.estimator = estimator
    self.unknown_label = unknown_label
    self.vector = vector
    self.scaling = scaling
    self.margin = margin
    self.tail = tail
    self.reject_known = reject_known
    self.held_out_share = held_out_share
    self.random_state = random_state

  def fit(self, X: Any, y: Any) -> 'OpenSetClassifier':
    """Trains the classifier, then fits the Weibulls.

    Args:
      X: [n, d].
      y: [n], the classes.

    Raises:
      ValueError: for arguments that cannot be used, and for a class whose tail
        cannot be fitted; the message names it and the way out.
    """
    given = X
    X, y = validation.validate_data(self, X, y, ensure_min_samples=2)
    given = _as_given(given, X)
    multiclass.check_classification_targets(y)
    self.classes_, label = np.unique(y, return_inverse=True)
    # As a user writes them, and not as NumPy does.
    names = self.classes_.tolist()
    if len(names) < 2:
      raise types.UsageError(
        f'at least 2 classes are needed, y has 1 class: {names[0]!r}'
      )
    asked = self.unknown_label
    # NaN is not itself, and finds nothing.
    if asked is None or np.ndim(asked) or asked != asked:
      raise types.UsageError(f'unknown_label={asked!r} is no single label')
    # Those of pandas are objects.
    words = all(isinstance(name, str) for name in self.classes_)
    if words != isinstance(self.unknown_label, str):
      raise types.UsageError(
        f'unknown_label={self.unknown_label!r} is of another kind than the '
        f"classes, {names[0]!r} for one; take 'unknown' for words, -1 "
        'for numbers'
      )
    if self.unknown_label in names:
      raise types.UsageError(
        f'unknown_label={self.unknown_label!r} is a class of y; choose another'
      )
    count = np.bincount(label)
    if count.min() < 2:
      raise types.UserError(
        f'class {names[np.argmin(count)]!r} has 1 sample, at least 2 '
        'are needed to fit it; add some, or leave it out'
      )
    rows, held_out = np.arange(len(y)), np.zeros(0, np.int64)
    if self.reject_known:
      choice.check_reject_known(self.reject_known)
      rows, held_out = model_selection.train_test_split(
        rows,
        test_size=self.held_out_share,
        stratify=label,
        random_state=self.random_state,
      )
    start = self.estimator
    if start is None:
      start = linear_model.LogisticRegression()
    length = self._length()
    trained_on = _rows(given, rows)
    self.estimator_ = base.clone(start).fit(trained_on, y[rows])
    found = self._features(trained_on, X[rows], label[rows])
    self._check_answers(trained_on, found.logits)
    self.weibull_ = weibull.fit(
      found,
      vector=self.vector,
      scaling=self.scaling,
      margin=self.margin,
      class_names=[str(name) for name in self.classes_],
      **length,
    )
    self.threshold_ = np.inf
    if self.reject_known:
      few = choice.too_few(len(held_out), self.reject_known)
      if few:
        warnings.warn(f'{few} (held_out_share).', stacklevel=2)
      others = self._features(
        _rows(given, held_out), X[held_out], label[held_out]
      )
      self.threshold_ = choice.threshold(
        self._score(others).unknown_score, self.reject_known
      )
    return self

  def predict(self, X: Any) -> np.ndarray:
    """Classes, or `unknown_label`, [n]."""
    found = self._checked(X)
    scores = self._score(found)
    decided = scorer.decide(
      scores,
      np.argmax(found.logits, axis=1),
      decision='argmax' if np.isinf(self.threshold_) else 'calibrated',
      threshold=self.threshold_,
    )
    answer = self.classes_[decided].astype(self._dtype())
    answer[decided == types.UNKNOWN] = self.unknown_label
    return answer

  def open_set_proba(self, X: Any) -> np.ndarray:
    """Probabilities of the classes and, in the last column, unknown, [n, K+1].

    CROSR's formula: each class keeps 1 - w of its closed-set probability.
    """
    return self._score(self._checked(X)).probability

  def unknown_score(self, X: Any) -> np.ndarray:
    """Any real number, higher = more unknown, [n]."""
    return self._score(self._checked(X)).unknown_score

  def score_samples(self, X: Any) -> np.ndarray:
    """The opposite, as scikit-learn's outlier detectors have it, [n]."""
    return -self.unknown_score(X)

  def _dtype(self) -> np.dtype:
    """Of answers: wide enough for a word longer than all classes."""
    label = np.asarray(self.unknown_label)
    dtype = np.result_type(self.classes_, label)
    # What unsigned and signed integers have in common is no integer.
    both_whole = self.classes_.dtype.kind in 'bui' and label.dtype.kind in 'ui'
    return np.dtype(object) if both_whole and dtype.kind == 'f' else dtype

  def _checked(self, X: Any) -> types.Features:
    validation.check_is_fitted(self)
    given, X = X, validation.validate_data(self, X, reset=False)
    return self._features(
      _as_given(given, X), X, np.full(len(X), types.UNKNOWN)
    )

  def _score(self, found: types.Features) -> types.Scores:
    is_logits = self.weibull_.vector == 'logits'
    method = 'crosr_y' if is_logits else 'crosr'
    return scorer.score(found, self.weibull_, method=method)

  def _length(self) -> dict[str, Any]:
    """Of a tail, as weibull.fit takes it."""
    try:
      if found := weibull.parse_tail(str(self.tail)):
        return found
    except types.UsageError:
      pass
    raise types.UsageError(
      f"tail={self.tail!r}: a number from 2 as '20' or a share as '5%' is "
      'needed; reject_known asks for a share of known samples'
    )

  def _check_answers(self, X: Any, logits: np.ndarray) -> None:
    """Raises a UsageError where decision values do not say what is predicted.

    Args:
      X: [n, d], the training samples, as the classifier takes them.
      logits: [n, K], their decision values.
    """
    predicted = np.ravel(self.estimator_.predict(X))
    low, high = np.sort(logits, axis=1)[:, -2:].T
    is_other = self.classes_[np.argmax(logits, axis=1)] != predicted
    share = np.mean(is_other & (low < high))
    is_pair = len(self.classes_) == 2
    if share > (_MOST_OTHERS if is_pair else _MOST_OTHERS_OF_MANY):
      way_out = (
        'a threshold of its own is not taken: give the classifier without it'
        if is_pair
        else "an SVC needs decision_function_shape='ovr', and break_ties=True"
      )
      raise types.UsageError(
        f'{type(self.estimator_).__name__} predicts another class than that of '
        f'the largest decision value for {share:.1%} of the training samples; '
        f'{way_out}'
      )

  def _features(
    self, given: Any, X: np.ndarray, label: np.ndarray
  ) -> types.Features:
    """Of samples as the classifier takes them, and as an array, [n, d]."""
    # One that is frozen may have been trained on others.
    trained = getattr(self.estimator_, 'classes_', self.classes_)
    if not np.array_equal(trained, self.classes_):
      of_y = reprlib.repr(self.classes_.tolist())
      raise types.UsageError(
        f'{type(self.estimator_).__name__} was trained on the classes '
        f'{reprlib.repr(np.asarray(trained).tolist())}, those of y are {of_y}; '
        'give it those samples, or train it on these'
      )
    if hasattr(self.estimator_, 'decision_function'):
      logits = np.asarray(self.estimator_.decision_function(given))
    elif not hasattr(self.estimator_, 'predict_proba'):
      raise types.UsageError(
        f'{self.estimator_}: a classifier with decision_function or '
        'predict_proba is needed'
      )
    else:
      probability = np.asarray(self.estimator_.predict_proba(given))
      logits = np.log(np.maximum(probability, np.finfo(np.float32).tiny))
    if logits.ndim == 1:
      # Of two classes: the log-odds of the second.
      logits = np.stack([-logits / 2, logits / 2], axis=1)
    if logits.shape[1] != len(self.classes_):
      raise types.UsageError(
        f'{self.estimator_}: {logits.shape[1]} decision values for '
        f'{len(self.classes_)} classes, one for each is needed; '
        "decision_function_shape='ovr' gives that"
      )
    return types.Features(logits, np.asarray(X), label)


def _as_given(given: Any, X: np.ndarray) -> Any:
  """A data frame, whose columns a classifier may ask for; else the array."""
  return given if hasattr(given, 'columns') else X


def _rows(given: Any, chosen: np.ndarray) -> Any:
  """Those of what `_as_given` gives."""
  return given.iloc[chosen] if hasattr(given, 'iloc') else given[chosen]
