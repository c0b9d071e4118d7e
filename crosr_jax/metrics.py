"""Figures of open-set recognition, from scores and labels; NumPy in and out.

N samples, K known classes. "Unknown" is the positive class of AUROC and AUPR;
scikit-learn does the counting wherever it has the figure.
"""

from typing import Any

import numpy as np

from crosr_jax import types

# Images that are looked at together.
_BLOCK = 1_000


def _sk() -> Any:
  """scikit-learn's metrics: a second to load, which predict has no use for."""
  from sklearn import metrics

  return metrics


def openness(num_known: int, num_unknown: int) -> float:
  """1 - sqrt(2 n_train / (n_test + n_target)), n_train = n_target = K."""
  return 1.0 - float(np.sqrt(2 * num_known / (2 * num_known + num_unknown)))


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
  """Area under the ROC curve of unknown scores [N], [M]; ties count half."""
  return float(_sk().roc_auc_score(*_joined(known, unknown)))


def aupr(known: np.ndarray, unknown: np.ndarray) -> float:
  """Average precision of finding the unknown samples."""
  return float(_sk().average_precision_score(*_joined(known, unknown)))


def threshold_at_tpr(known: np.ndarray, tpr: float = 0.95) -> float:
  """Smallest score t that keeps at least a share `tpr` of knowns at or below.

  Args:
    known: unknown scores of known samples, [N].
    tpr: share of the knowns to keep, in (0, 1].

  Returns:
    One of the given scores, so that `score > t` rejects at most 1 - tpr.

  Raises:
    UserError: where there is no sample to choose from, or a score is not
      finite.
  """
  (known,) = _finite(known)
  if len(known) == 0:
    raise types.UserError(
      'a threshold needs held-out known samples, there are none; raise '
      'data.calibrate_share'
    )
  keep = int(np.ceil(tpr * len(known) - 1e-9))
  return float(np.sort(known)[max(keep, 1) - 1])


def fpr_at_tpr(
  known: np.ndarray, unknown: np.ndarray, tpr: float = 0.95
) -> float:
  """Share of unknowns accepted where a share `tpr` of knowns is accepted.

  Raises:
    UserError: as `threshold_at_tpr`.
  """
  (unknown,) = _finite(unknown)
  return float(np.mean(unknown <= threshold_at_tpr(known, tpr)))


def oscr(known: np.ndarray, unknown: np.ndarray, correct: np.ndarray) -> float:
  """Area under correct classification rate against false positive rate.

  Args:
    known: unknown scores of known samples, [N].
    unknown: unknown scores of unknown samples, [M].
    correct: whether the closed-set class of each known sample is right, [N].

  Returns:
    The area (Dhamija et al. 2018), by trapezoids over distinct scores: tied
    samples are accepted together, so a constant score gives accuracy / 2.

  Raises:
    UserError: where a score is not finite.
  """
  known, unknown = _finite(known, unknown)
  score = np.concatenate([known, unknown])
  order = np.argsort(score, kind='stable')
  accepted_right = np.concatenate([correct, np.zeros(len(unknown))])[order]
  accepted_unknown = np.concatenate(
    [np.zeros(len(known)), np.ones(len(unknown))]
  )[order]
  score = score[order]
  last_of_tie = np.append(score[1:] > score[:-1], True)
  ccr = np.cumsum(accepted_right)[last_of_tie] / len(known)
  fpr = np.cumsum(accepted_unknown)[last_of_tie] / len(unknown)
  return float(np.trapezoid(np.append(0.0, ccr), np.append(0.0, fpr)))


def macro_f1(
  prediction: np.ndarray, label: np.ndarray, num_classes: int
) -> float:
  """Mean F1 over K + 1 classes of predictions [N], -1 = unknown."""
  return float(np.mean(class_f1(prediction, label, num_classes)))


def class_f1(
  prediction: np.ndarray, label: np.ndarray, num_classes: int
) -> np.ndarray:
  """F1 per class, [K+1], unknown last; 0 where it is undefined."""
  return _sk().f1_score(
    label,
    prediction,
    labels=[*range(num_classes), types.UNKNOWN],
    average=None,
    zero_division=0.0,
  )


def ceiling_f1(
  closed_prediction: np.ndarray,
  label: np.ndarray,
  num_unknown: int,
  num_classes: int,
) -> float:
  """Macro F1 of a perfect detector of unknowns on the same net.

  Args:
    closed_prediction: closed-set class of each known sample, [N].
    label: its class, [N], 0..K-1.
    num_unknown: samples of the unknown set, all of which it finds.
    num_classes: K; of a class without a sample F1 is 0, as in `macro_f1`.
  """
  unknown = np.full(num_unknown, types.UNKNOWN)
  return macro_f1(
    np.append(closed_prediction, unknown),
    np.append(label, unknown),
    num_classes,
  )


def macro_f1_half(probability: np.ndarray, label: np.ndarray) -> float:
  """The poster's reading: in class c iff p_c >= 0.5, K + 1 binary problems.

  The authors' print_results.py. A sample may be in no class (or, at exactly
  one half, in two).
  """
  probability, label = np.asarray(probability), np.asarray(label)
  num_columns = probability.shape[1]
  column = np.where(label == types.UNKNOWN, num_columns - 1, label)
  truth = column[:, None] == np.arange(num_columns)
  return float(
    _sk().f1_score(
      truth, probability >= 0.5, average='macro', zero_division=0.0
    )
  )


def reject(
  closed_prediction: np.ndarray, unknown_score: np.ndarray, threshold: float
) -> np.ndarray:
  """Closed-set predictions [N] with -1 where unknown_score > threshold."""
  return np.where(
    np.asarray(unknown_score) > threshold, types.UNKNOWN, closed_prediction
  ).astype(np.int32)


def confusion(
  prediction: np.ndarray, label: np.ndarray, num_classes: int
) -> np.ndarray:
  """Counts [K+1, K+1], rows = truth, unknown last in both."""
  return _sk().confusion_matrix(
    label, prediction, labels=[*range(num_classes), types.UNKNOWN]
  )


def evaluate(
  known: types.Scores,
  unknown: types.Scores,
  label: np.ndarray,
  closed_prediction: np.ndarray,
  *,
  threshold: float,
  is_probability: bool = True,
) -> dict:
  """Every figure of one method against one unknown set.

  Args:
    known: scores of the known test samples, N rows.
    unknown: scores of the unknown samples, M rows.
    label: class of each known test sample, [N], 0..K-1.
    closed_prediction: closed-set class of all N + M samples, known ones first.
    threshold: of `macro_f1_tpr95`, chosen on held-out known samples.
    is_probability: False for plain scores: the readings that need the
      probability of unknown are then None, never invented.

  Returns:
    The method's entry of report.json.

  Raises:
    UserError: where a score is not finite.
  """
  num_classes = known.probability.shape[1] - 1
  truth = np.append(label, np.full(len(unknown.prediction), types.UNKNOWN))
  a, b = _finite(known.unknown_score, unknown.unknown_score)
  score = np.append(a, b)

  def f1_at(t: float) -> float:
    return macro_f1(reject(closed_prediction, score, t), truth, num_classes)

  result: dict = {
    'macro_f1': None,
    'macro_f1_half': None,
    'macro_f1_tpr95': f1_at(threshold),
    'macro_f1_tpr95_test': f1_at(threshold_at_tpr(a)),
    'auroc': auroc(a, b),
    'aupr': aupr(a, b),
    'fpr95': fpr_at_tpr(a, b),
    'fpr99': fpr_at_tpr(a, b, 0.99),
    'oscr': oscr(a, b, closed_prediction[: len(a)] == label),
  }
  if is_probability:
    prediction = np.append(known.prediction, unknown.prediction)
    probability = np.concatenate([known.probability, unknown.probability])
    f1 = class_f1(prediction, truth, num_classes)
    result['macro_f1'] = float(f1.mean())
    result['macro_f1_half'] = macro_f1_half(probability, truth)
    result['class_f1'] = f1.tolist()
    result['confusion'] = confusion(prediction, truth, num_classes).tolist()
  return result


def trivial(known: np.ndarray, unknown: np.ndarray) -> dict[str, dict]:
  """How well three plain numbers of an image tell the sets apart.

  Args:
    known: images [N, H, W, C] uint8.
    unknown: images [M, H, W, C] uint8.

  Returns:
    For mean pixel, maximum pixel and total variation: the AUROC in the better
    of the two directions, which only someone who has seen the unknowns can
    pick. Near 1: the set is easy, and a good score on it says little.
  """
  a, b = (_image_statistics(x) for x in (known, unknown))
  rows = {name: auroc(a[name], b[name]) for name in a}
  return {name: {'auroc': max(x, 1.0 - x)} for name, x in rows.items()}


def _image_statistics(image: np.ndarray) -> dict[str, np.ndarray]:
  """By blocks: images may be many, and in files."""
  blocks = [
    _block_statistics(image[i : i + _BLOCK])
    for i in range(0, len(image), _BLOCK)
  ]
  return {
    name: np.concatenate([block[name] for block in blocks])
    for name in blocks[0]
  }


def _block_statistics(image: np.ndarray) -> dict[str, np.ndarray]:
  pixels = image.astype(np.float64)
  variation = [
    np.abs(np.diff(pixels, axis=axis)).sum(axis=(1, 2, 3)) for axis in (1, 2)
  ]
  return {
    'mean_pixel': pixels.mean(axis=(1, 2, 3)),
    'max_pixel': pixels.max(axis=(1, 2, 3)),
    'total_variation': variation[0] + variation[1],
  }


def _finite(*scores: np.ndarray) -> list[np.ndarray]:
  """Them as arrays; a UserError where one is not finite."""
  found = [np.asarray(x) for x in scores]
  bad = sum(x.size - np.count_nonzero(np.isfinite(x)) for x in found)
  if bad:
    raise types.UserError(
      f'{bad} of {sum(x.size for x in found)} unknown scores are not finite; '
      'look at the features they came from'
    )
  return found


def _joined(
  known: np.ndarray, unknown: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  truth = np.repeat([0, 1], [len(known), len(unknown)])
  # Sums and differences of float32's largest are none of float32.
  return truth, np.concatenate([known, unknown], dtype=np.float64)
