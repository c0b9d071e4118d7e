"""The page: what it answers, what it refuses, and in a real browser."""

import functools
import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import COMMAND_ENVIRONMENT, ROOT
from PIL import Image
from sklearn import datasets

from crosr_jax import openset, saved, types

flask = pytest.importorskip('flask')

from crosr_jax import demo_page  # noqa: E402

_NAMES = ('chromium', 'chromium-browser', 'google-chrome')
_CHROMIUM = next(filter(None, map(shutil.which, _NAMES)), None)


def _png(pixels):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  return buffer.getvalue()


@pytest.fixture(scope='module')
def model(digits_run):
  return openset.load(digits_run[0])


@pytest.fixture(scope='module')
def client(digits_run, model):
  known = saved.load_features(digits_run[0])['train']
  limiter = demo_page.Limiter(1e9, 1e9)
  return demo_page.create(model, known, limiter).test_client()


def _digit(position):
  raw = datasets.load_digits().images[position] * (255 / 16)
  return np.round(raw).astype(np.uint8)


def test_answers_are_the_models(client, model):
  for position in (0, 3, 8):
    digit = _digit(position)
    found = client.post('/answer', data=_png(digit)).json
    scores = model(digit[None, ..., None])
    k = scores.prediction[0]
    assert found['prediction'] == ('unknown' if k < 0 else str(k))
    assert found['is_unknown'] == (k < 0)
    # Another batch may change the last bit.
    close = functools.partial(pytest.approx, abs=1e-5)
    assert found['unknown_probability'] == close(scores.probability[0, -1])
    for entry in found['bars']:
      expected = scores.probability[0, int(entry['name'])]
      assert entry['probability'] == close(expected)
    assert found['reconstruction'].startswith('data:image/png;base64,')
    assert np.isfinite(found['point']).all()


@pytest.mark.parametrize('k', [3, types.UNKNOWN])
def test_the_bar_of_what_was_decided_is_marked(model, monkeypatch, k):
  # Others are likelier, more of them than there are bars.
  probability = np.linspace(0.2, 0.1, 8, dtype=np.float32)[None]
  scores = types.Scores(probability, np.array([k]), np.zeros(1))
  monkeypatch.setattr(openset.OpenSetModel, 'score', lambda *_: scores)
  monkeypatch.setattr(demo_page, '_MOST_BARS', 2)
  found = demo_page.answer(model, None, np.zeros((8, 8, 1), np.uint8))
  shown = {bar['name']: bar['is_decided'] for bar in found['bars']}
  wanted = {'0': False, '1': False} if k < 0 else {'0': False, '3': True}
  assert shown == wanted and found['is_unknown'] == (k < 0)


def test_what_is_drawn_is_centred(client):
  digit = np.kron(_digit(0), np.ones((16, 16), np.uint8))
  drawn = np.zeros((280, 280), np.uint8)
  drawn[100:228, 10:138] = digit
  found = client.post('/answer?drawn=1', data=_png(drawn)).json
  corner = np.zeros((280, 280), np.uint8)
  corner[152:, 152:] = digit
  again = client.post('/answer?drawn=1', data=_png(corner)).json
  assert found == again and found['prediction'] == '0'
  # An empty page is no digit, and no error either.
  empty = np.zeros((280, 280), np.uint8)
  assert client.post('/answer?drawn=1', data=_png(empty)).status_code == 200


@pytest.mark.parametrize(
  ('data', 'status', 'words'),
  [
    (b'', 400, 'empty'),
    (b'no image', 400, 'no BMP'),
    (b'\x89PNG\r\n\x1a\n' + bytes(50), 400, 'no BMP'),
    (bytes(demo_page.MOST_BYTES + 1), 413, 'larger than 10 MB'),
    (_png(np.zeros((5001, 5000), np.uint8)), 400, 'pixels'),
  ],
)
def test_a_bad_upload_gets_a_message(client, data, status, words):
  for how in ('', '?drawn=1'):
    response = client.post(f'/answer{how}', data=data)
    assert response.status_code == status and words in response.json['error']


@pytest.mark.parametrize(('more', 'status'), [(-1, 200), (1, 413), (1000, 413)])
def test_an_upload_in_pieces_is_not_cut(client, more, status):
  png = _png(_digit(0))
  data = png + bytes(demo_page.MOST_BYTES + more - len(png))
  response = client.post(
    '/answer',
    input_stream=io.BytesIO(data),
    environ_overrides={
      'HTTP_TRANSFER_ENCODING': 'chunked', 'wsgi.input_terminated': True,
    },
  )  # fmt: skip
  assert response.status_code == status
  if status == 413:
    assert 'larger than 10 MB' in response.json['error']


def test_the_rate_is_bounded(model):
  clock = [0.0]
  limiter = demo_page.Limiter(2.0, 3.0, clock=lambda: clock[0])
  assert [limiter.take() for _ in range(4)] == [True, True, True, False]
  clock[0] = 0.5
  assert [limiter.take() for _ in range(2)] == [True, False]
  clock[0] = 100.0
  assert [limiter.take() for _ in range(4)] == [True, True, True, False]
  client = demo_page.create(model, None, limiter).test_client()
  response = client.post('/answer', data=_png(_digit(0)))
  assert response.status_code == 429 and 'wait' in response.json['error']


def test_the_map_tells_classes_apart(digits_run):
  parts = saved.load_features(digits_run[0])
  plane = demo_page.fit_map(parts['train'])
  centres = np.stack(
    [plane.point[plane.label == k].mean(axis=0) for k in range(7)]
  )
  test = plane.place(parts['test'])
  distance = np.linalg.norm(test[:, None] - centres[None], axis=2)
  # On a plane, of seven classes: chance would be a seventh.
  assert np.mean(distance.argmin(axis=1) == parts['test'].label) > 0.6
  two = parts['train'].label < 2
  some = types.Features(*(x[two] for x in parts['train']))
  assert demo_page.fit_map(some).point.shape == (two.sum(), 2)


@pytest.fixture(scope='module')
def address(digits_run):
  """Of a page that is served as a user serves it."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'crosr_jax.demo', f'--workdir={digits_run[0]}',
     '--port=0'],
    cwd=ROOT, env={**COMMAND_ENVIRONMENT, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    found = re.search(r'http://127\.0\.0\.1:\d+/', process.stdout.readline())
    assert found, 'it ended before it served'
    yield found[0]
  finally:
    process.terminate()
    process.wait(10)


def test_it_is_served(address):
  with urllib.request.urlopen(address) as response:
    page = response.read().decode()
    policy = response.headers['Content-Security-Policy']
  assert 'Known, or unknown?' in page and "default-src 'none'" in policy
  # Nothing comes from anywhere else.
  assert not re.search(r'(src|href)="?https?:', page)
  with urllib.request.urlopen(f'{address}model.json') as response:
    told = json.load(response)
  assert told['class_names'] == list('0123456') and told['size'] == '8 x 8'
  assert len(told['points']) == len(told['labels']) > 100


@pytest.mark.parametrize(
  ('host', 'origin', 'status'),
  [
    ('127.0.0.1:8000', '', 200),
    ('localhost', 'http://localhost', 200),
    ('[::1]:8000', 'http://[::1]:8000', 200),
    ('evil.example', '', 403),
    ('127.0.0.1.evil.example', '', 403),
    ('localhost', 'http://evil.example', 403),
    ('localhost', 'null', 403),
    ('localhost', 'http://[::1', 403),
  ],
)
def test_pages_of_elsewhere_are_not_answered(address, host, origin, status):
  """Though their names may lead to this machine."""
  headers = {'Host': host} | ({'Origin': origin} if origin else {})
  asked = urllib.request.Request(f'{address}model.json', headers=headers)
  try:
    with urllib.request.urlopen(asked) as response:
      found = response.status
  except urllib.error.HTTPError as error:
    found = error.code
    assert '--host=0.0.0.0 opens it' in json.load(error)['error']
  assert found == status


def test_a_page_for_all_answers_under_any_name(model):
  client = demo_page.create(model, None).test_client()
  response = client.get('/model.json', headers={'Host': 'example.org'})
  assert response.status_code == 200


@pytest.fixture
def page(address):
  """The page in a headless browser."""
  playwright = pytest.importorskip('playwright.sync_api')
  if _CHROMIUM is None:
    pytest.skip('needs Chromium on the path')
  with playwright.sync_playwright() as p:
    browser = p.chromium.launch(
      executable_path=_CHROMIUM,
      args=['--no-sandbox', '--disable-gpu', '--disable-background-networking'],
    )
    page = browser.new_page(viewport={'width': 1200, 'height': 900})
    problems = []
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.goto(address)
    page.wait_for_selector('body[data-ready=yes]')
    yield page
    assert problems == []
    browser.close()


def _draw(page, *strokes):
  """Strokes of points in [0, 1] x [0, 1], as a hand would."""
  box = page.locator('#pad').bounding_box()
  for stroke in strokes:
    points = [
      (box['x'] + x * box['width'], box['y'] + y * box['height'])
      for x, y in stroke
    ]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
      page.mouse.move(*point, steps=4)
    page.mouse.up()


def _answer(page):
  page.wait_for_selector('#prediction.known, #prediction.unknown')
  # What was asked for while it was drawn is overtaken by the last answer, which
  # takes long on a busy machine.
  for _ in range(60):
    time.sleep(1.0)
    if page.evaluate('waiting === null && !asking && !next'):
      break
  return page.locator('#prediction').inner_text()


_ANGLES = np.linspace(0, 2 * np.pi, 24)
_ZERO = [(0.5 + 0.22 * np.sin(t), 0.5 - 0.36 * np.cos(t)) for t in _ANGLES]


def test_draws_a_digit_then_a_letter(page):
  assert not page.locator('#pictures').is_visible()
  _draw(page, _ZERO)
  assert _answer(page) == '0'
  assert page.locator('#prediction').get_attribute('class') == 'known'
  assert page.locator('#bars .bar').count() == 8
  decided = page.locator('#bars .bar.decided')
  assert decided.locator('span').first.inner_text() == '0'
  assert page.locator('#reconstruction').is_visible()
  # Let go of outside the pad, nothing is asked.
  page.mouse.move(5, 5)
  page.mouse.down()
  page.mouse.up()
  page.click('#clear')
  assert page.locator('#prediction').inner_text() == '–'
  # A letter: M.
  _draw(
    page,
    [(0.1, 0.9), (0.1, 0.1), (0.5, 0.6), (0.9, 0.1), (0.9, 0.9)],
  )
  assert _answer(page) == 'unknown'
  assert page.locator('#prediction').get_attribute('class') == 'unknown'
  assert decided.locator('span').first.inner_text() == 'unknown'


def test_an_image_is_chosen(page, tmp_path):
  page.set_input_files(
    '#file', files=[{'name': 'a.png', 'mimeType': 'image/png',
                     'buffer': _png(_digit(0))}],
  )  # fmt: skip
  assert _answer(page) == '0'
  page.set_input_files(
    '#file', files=[{'name': 'b.png', 'mimeType': 'image/png',
                     'buffer': b'nothing'}],
  )  # fmt: skip
  page.wait_for_selector('#problem:not(:empty)')
  assert 'no BMP' in page.locator('#problem').inner_text()


def test_on_a_phone(page):
  page.set_viewport_size({'width': 360, 'height': 740})
  wide = page.evaluate('document.documentElement.scrollWidth')
  assert wide <= 360


def test_mistakes(run_command, digits_run, address, tmp_path):
  run = f'--workdir={digits_run[0]}'
  taken = address.rstrip('/').rpartition(':')[2]
  for arguments, code, words in (
    ((), 2, '--workdir is needed'),
    ((run, '--port=99999'), 2, 'ports are 0..65535'),
    ((run, '--host='), 2, '--host is empty; name an address'),
    ((run, '--host=ü..x'), 2, 'cannot be served at'),
    ((run, f'--port={taken}'), 2, 'cannot be served at'),
    ((f'--workdir={tmp_path}', '--port=0'), 1, 'no finished run'),
  ):
    process = run_command('demo', *arguments)
    assert process.returncode == code and words in process.stderr
    assert 'Traceback' not in process.stderr
  # However it is written, no one else can reach it, and the page keeps to it.
  for host, others in (('LOCALHOST', False), ('0.0.0.0', True)):
    process = run_command('demo', run, f'--host={host}', f'--port={taken}')
    assert process.returncode == 2
    assert ('everyone who can reach' in process.stderr) is others
