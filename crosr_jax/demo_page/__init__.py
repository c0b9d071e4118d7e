"""A page that answers for images that are drawn or dropped on it.

K known classes. One process, one page; every answer is the loaded model's.
"""

import base64
import importlib.resources
import io
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

import flask
import numpy as np
from PIL import Image
from sklearn import decomposition, discriminant_analysis, preprocessing
from sklearn import pipeline as sk_pipeline

from crosr_jax import openset, types, vectors
from crosr_jax.data import images

MOST_BYTES = 10 * 1024 * 1024
ANSWERS_PER_SECOND = 10.0
_BURST = 20.0
# Seconds that an image waits for those before it.
_PATIENCE = 5.0
# Of an upload; decoding one of a few bytes may take 30 bytes a pixel.
_MOST_PIXELS = 25_000_000
_MAP_SAMPLES = 800
# Classes with bars of their own: the likeliest, and the one decided for.
_MOST_BARS = 10


class Map(NamedTuple):
  """The plane that samples are shown on."""

  place: Callable[[types.Features], np.ndarray]  # N features -> [N, 2]
  point: np.ndarray  # [M, 2] known training samples
  label: np.ndarray  # [M]


def fit_map(known: types.Features, seed: int = 0) -> Map:
  """The plane on which the known classes lie farthest apart.

  Linear discriminants of the activation vectors; of two classes principal
  components.
  """
  rows = np.random.default_rng(seed).permutation(len(known.label))
  some = known.rows(rows[:_MAP_SAMPLES])
  kinds = len(np.unique(some.label))
  plane: Any = decomposition.PCA(2, random_state=seed)
  if kinds > 2:
    plane = discriminant_analysis.LinearDiscriminantAnalysis(
      n_components=2, solver='eigen', shrinkage=0.1
    )
  to_plane = sk_pipeline.make_pipeline(preprocessing.StandardScaler(), plane)
  a = vectors.activation_vector(some, 'joint')
  point = to_plane.fit_transform(a, some.label)
  low, high = np.percentile(point, (1, 99), axis=0)
  middle, half = (low + high) / 2, np.maximum(high - low, 1e-9) / 2

  def place(found: types.Features) -> np.ndarray:
    a = vectors.activation_vector(found, 'joint')
    return (to_plane.transform(a) - middle) / half

  return Map(place, (point - middle) / half, some.label)


class Limiter:
  """So many answers a second, with a reserve for a burst; thread-safe."""

  def __init__(
    self,
    per_second: float = ANSWERS_PER_SECOND,
    burst: float = _BURST,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Full."""
    self._per_second, self._burst, self._clock = per_second, burst, clock
    self._left, self._last = burst, clock()
    self._lock = threading.Lock()

  def take(self) -> bool:
    """Whether there is one more."""
    with self._lock:
      now = self._clock()
      gained = (now - self._last) * self._per_second
      self._left = min(self._burst, self._left + gained)
      self._last = now
      if self._left < 1:
        return False
      self._left -= 1
      return True


def answer(
  model: openset.OpenSetModel, plane: Map | None, image: np.ndarray
) -> dict[str, Any]:
  """What the page shows of one image [H, W, C] uint8."""
  found = model.features(image[None])
  scores = model.score(found)
  k = int(scores.prediction[0])
  probability = scores.probability[0]
  # What was decided has a bar, be it the likeliest or not.
  order = -probability[:-1] - (np.arange(len(probability) - 1) == k)
  best = np.argsort(order, kind='stable')[:_MOST_BARS]
  # A few bars stay in the order of the classes, so that they do not jump.
  result = {
    'prediction': 'unknown' if k == types.UNKNOWN else model.class_names[k],
    'is_unknown': k == types.UNKNOWN,
    'nearest': model.class_names[model.nearest(found, scores)[0]],
    'unknown_probability': float(probability[-1]),
    'bars': [
      {
        'name': model.class_names[i],
        'probability': float(probability[i]),
        'is_decided': bool(i == k),
      }
      for i in sorted(best)
    ],
    'seen': _as_url(image),
    'reconstruction': '',
    'point': None,
  }
  if model.net.lateral != 'none':
    made = model.reconstruct(image[None])
    result['reconstruction'] = _as_url(made[0])
  if plane:
    result['point'] = np.clip(plane.place(found)[0], -1.6, 1.6).tolist()
  return result


def warm_up(model: openset.OpenSetModel) -> None:
  """Compiles what `answer` needs."""
  answer(model, None, np.zeros(model.image_shape, np.uint8))


def create(
  model: openset.OpenSetModel,
  known: types.Features | None,
  limiter: Limiter | None = None,
  is_welcome: Callable[[str], bool] | None = None,
) -> flask.Flask:
  """The page's application.

  Args:
    model: that answers.
    known: features of known training samples, for the map; None = no map.
    limiter: of answers.
    is_welcome: of a host, without its port: whether who asks for the page by
      that name is answered; None = by any.
  """
  app = flask.Flask(__name__)
  app.config['MAX_CONTENT_LENGTH'] = MOST_BYTES
  limiter = limiter or Limiter()
  plane = None if known is None else fit_map(known)
  page = importlib.resources.files(__name__).joinpath('page.html')
  text = page.read_text(encoding='utf-8')
  # One image at a time is decoded and asked about.
  lock = threading.Lock()

  @app.before_request
  def check() -> Any:
    request = flask.request
    asked = [f'//{request.host}']
    if 'Origin' in request.headers:
      asked.append(request.headers['Origin'])
    if is_welcome and not all(is_welcome(_host(x)) for x in asked):
      return _problem(
        'only this machine can open the page; the command with --host=0.0.0.0 '
        'opens it to others',
        403,
      )
    return None

  @app.get('/')
  def show() -> flask.Response:
    response = flask.Response(text, mimetype='text/html')
    # Nothing from elsewhere is loaded, whatever a class is called.
    response.headers['Content-Security-Policy'] = (
      "default-src 'none'; img-src data: blob:; connect-src 'self'; "
      "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    return response

  @app.get('/model.json')
  def tell() -> dict[str, Any]:
    height, width, _ = model.image_shape
    points = [] if plane is None else plane.point.round(3).tolist()
    return {
      'class_names': list(model.class_names),
      'size': f'{height} x {width}',
      'decision': model.told(),
      'points': points,
      'labels': [] if plane is None else plane.label.tolist(),
    }

  @app.post('/answer')
  def reply() -> Any:
    if not limiter.take():
      return _problem('too many images at once; wait a second', 429)
    data = flask.request.get_data()
    if flask.request.content_length is None and len(data) >= MOST_BYTES:
      # Sent in pieces, of untold length, of which no more is read than that.
      flask.abort(413)
    if not lock.acquire(timeout=_PATIENCE):
      return _problem('too many images at once; wait a second', 429)
    try:
      image = images.decode(
        data,
        model.image_shape,
        most_pixels=_MOST_PIXELS,
        is_drawing='drawn' in flask.request.args,
      )
      return answer(model, plane, image)
    except images.ImageError as error:
      return _problem(str(error), 400)
    finally:
      lock.release()

  @app.errorhandler(413)
  def too_large(_: Exception) -> Any:
    return _problem(f'the file is larger than {MOST_BYTES // 1024**2} MB', 413)

  return app


def _host(address: str) -> str:
  """Of an address of the web; '' where there is none."""
  try:
    return urllib.parse.urlsplit(address).hostname or ''
  except ValueError:
    return ''


def _problem(text: str, status: int) -> tuple[dict[str, str], int]:
  return {'error': text}, status


def _as_url(image: np.ndarray) -> str:
  """[H, W, C] uint8 as a PNG that a page can hold."""
  buffer = io.BytesIO()
  squeezed = image[..., 0] if image.shape[2] == 1 else image
  Image.fromarray(squeezed).save(buffer, 'PNG')
  code = base64.b64encode(buffer.getvalue()).decode()
  return f'data:image/png;base64,{code}'
