"""The scripts in benchmarks/ measure what they say, on small sizes."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crosr_jax import weibull
from crosr_jax.models import summary

_SCRIPTS = 'benchmarks'


class _Clock:
  """That moves where a case or a pause moves it."""

  def __init__(self):
    self.now = 0.0

  def perf_counter(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds


def test_cases_come_in_turns(script, monkeypatch):
  timing, done, clock = script('timing'), [], _Clock()
  monkeypatch.setattr(timing, 'time', clock)

  def case(name, seconds, first):
    def run():
      clock.now += seconds if name in done else first
      done.append(name)

    return run

  rows = timing.interleaved(
    {'a': case('a', 0.06, 5.0), 'b': case('b', 1.5, 1.5)}, 3
  )
  # Each warms up, again where it took long, and each begins a round in turn;
  # short ones for a tenth of a second before each time, and as often for it.
  assert ''.join(done) == 'aabb' + 'aaaab' + 'baaaa' + 'aaaab'
  assert [row.name for row in rows] == ['a', 'b']
  assert [row.median for row in rows] == pytest.approx([0.06, 1.5])
  assert [row.ratio for row in rows] == pytest.approx([1.0, 25.0])
  assert all(row.least <= row.median <= row.most for row in rows)


def test_peers_fit_the_same_tails(script):
  peers = script('weibull_fit')._peers()
  distance = np.abs(np.random.default_rng(0).normal(5.0, 1.0, (3, 200)))
  largest = np.sort(distance, axis=1)[:, -20:].T
  expected = weibull.cdf(largest, *weibull.fit_tails(distance, tail_size=20))
  for name in ('ours', 'scipy weibull_min.fit'):
    found = weibull.cdf(largest, *peers[name](distance, 20))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_numpy_version_is_the_same_formula(script):
  scoring = script('scoring')
  rows = scoring._measured(40, 6, 20, 1)
  away = next(row.note for row in rows if 'float32' in row.name)
  assert float(away.rpartition(' ')[2]) < 1e-4
  assert [row.name for row in rows][:2] == ['ours', 'NumPy, vectorised']


def test_growth_and_streams(script, monkeypatch):
  point = script('growth')._point(1, N=120, K=4, D=10)
  assert all(value > 0 for value in point.values()) and len(point) == 4
  streamed = script('streamed_fit')
  monkeypatch.setattr(streamed, '_CLASSES', 4)
  monkeypatch.setattr(streamed, '_BLOCK', 100)
  for case in ('two passes', *streamed.TAILS):
    found = streamed._one(case, 300)
    assert found['seconds'] > 0 and found['peak_mib'] > 0


@pytest.mark.parametrize('vector', ['joint', 'evidence'])
def test_many_classes(script, vector):
  found = script('imagenet21k').measured(
    200, vector, classes=20, latent=10, block=30, scored=40
  )
  assert found['width'] == 30 and found['means_gib'] * 2**30 >= 20 * 30 * 8
  cases = found['cases']
  assert [cases[name]['count'] for name in cases] == [0, 200, 40]
  assert 0 < cases['begin']['peak_gib'] <= cases['fit']['peak_gib']
  assert cases['fit']['seconds'] > 0 and cases['score']['seconds'] > 0


def _event(name, thread, start, length, process=7, **args):
  return {
    'ph': 'X', 'pid': process, 'tid': thread, 'name': name,
    'ts': start, 'dur': length, 'args': args,
  }  # fmt: skip


def _named(kind, name, **where):
  return {'ph': 'M', 'name': f'{kind}_name', 'args': {'name': name}, **where}


def test_where_the_time_of_a_trace_goes(script, tmp_path, monkeypatch, capsys):
  events = [
    _named('process', '/host:CPU', pid=1),
    _named('process', '/device:GPU:0', pid=7),
    _named('thread', 'Stream #14(Compute)', pid=7, tid=14),
    _named('thread', 'Stream #15(MemcpyD2D)', pid=7, tid=15),
    _named('thread', 'XLA Ops', pid=7, tid=99),
    # 1 ms until the first; 4 of 8 ms busy, since two overlap.
    _event('sm90_xmma_fprop_implicit_gemm_bf16', 14, 1000, 1000),
    _event('sm90_xmma_fprop_implicit_gemm_bf16', 14, 4000, 1000),
    _event('loop_add_fusion_3', 14, 7000, 1500, hlo_op='add_fusion'),
    _event('MemcpyD2D', 15, 8000, 1000),
    # The same once more, and the host.
    _event('cudnn-conv.1', 99, 1000, 1000),
    _event('PjitFunction', 1, 0, 90_000, process=1),
    {},
  ]
  folder = tmp_path / 'plugins' / 'profile' / 'now'
  folder.mkdir(parents=True)
  with gzip.open(folder / 'vm.trace.json.gz', 'wt') as file:
    json.dump({'traceEvents': events}, file)
  found = script('kernels').read(tmp_path)
  assert (found.span, found.busy) == (8.0, 4.0)
  assert found.kinds == {
    'convolution': 2.0,
    'elementwise': 1.5,
    'copy, transpose': 1.0,
  }
  longest = found.kernels[0]
  assert (longest.time, longest.count, longest.kind) == (2.0, 2, 'convolution')
  assert found.kernels[1].operation == 'add_fusion'
  module, path = script('accelerator'), tmp_path / 'found.json'
  monkeypatch.setattr(module.kernels, 'read', lambda folder: found)
  monkeypatch.setattr(module, '_trainer', lambda *of: lambda count: None)
  module._profile(module.Book(module.SMALL, 1, 100.0, str(path)), 'vgg')
  told = capsys.readouterr().out
  # Two programs of two steps.
  assert '4 steps in 8.0 ms, of which kernels ran 50.0 %' in told
  assert f'{"convolution":26}  44.4 %     0.5000' in told
  (written,) = json.loads(path.read_text())['profiles'].values()
  assert written['kinds'] == found.kinds and len(written['kernels']) == 3


@pytest.mark.parametrize(
  ('kind', 'name', 'operation'),
  [
    ('convolution', 'sm80_xmma_wgrad_implicit_gemm_indexed_bf16', ''),
    ('convolution', 'cudnn_generated_fort_native_sm90_x', 'cudnn-conv.3'),
    ('copy, transpose', 'void cudnn::ops::nchwToNhwcKernel<float>', ''),
    ('matmul', 'nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NTN', ''),
    ('matmul', 'gemm_fusion_dot_12', ''),
    ('matmul', 'void cublasLt::splitKreduce_kernel<32>', ''),
    ('reduce', 'input_convert_reduce_fusion_2', ''),
    ('pool', 'loop_reduce_window_fusion', ''),
    ('elementwise', 'loop_convert_fusion', ''),
    ('elementwise', 'wrapped_convert', ''),
    ('copy, transpose', 'input_transpose_fusion', ''),
    ('collective', 'ncclDevKernel_AllReduce_Sum_f32', ''),
    ('memset', 'Memset', ''),
    ('convolution', 'kernel_7', 'cudnn-conv-bw-filter.2'),
    ('other', 'kernel_7', 'call.1'),
  ],
)
def test_kinds_of_kernels(script, kind, name, operation):
  assert script('kernels').kind(name, operation) == kind


def test_a_trace_without_a_gpu(script, tmp_path):
  with jax.profiler.trace(str(tmp_path)):
    jnp.ones((9, 9)).block_until_ready()
  assert list(tmp_path.rglob('*.trace.json.gz'))
  assert script('kernels').read(tmp_path) is None


def _accelerator(script, monkeypatch, *flags):
  module = script('accelerator')
  monkeypatch.setattr('sys.argv', ['accelerator.py', *flags])
  monkeypatch.setenv('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  return module.main()


def test_a_trial_without_accelerator(script, monkeypatch, capsys, tmp_path):
  path = tmp_path / 'found.json'
  code = _accelerator(
    *(script, monkeypatch, '--small', '--no_torch', '--parts=peak,score'),
    f'--output={path}',
  )
  found = json.loads(path.read_text())
  assert code == 0 and not found['failed'] and not found['left_out']
  assert len(found['tables']) == 4 and found['peak'] > 0
  names = [row['name'] for row in found['tables'][list(found['tables'])[2]]]
  assert names[0] == 'ours' and 'bare matmul' in names
  assert 'samples/s' in capsys.readouterr().out


def test_what_has_no_time_and_what_fails_is_told(
  script, monkeypatch, capsys, tmp_path
):
  path = tmp_path / 'found.json'
  flags = '--small', '--no_torch', '--parts=peak', f'--output={path}'
  assert _accelerator(script, monkeypatch, '--budget=0', *flags) == 0
  found = json.loads(path.read_text())
  assert found['left_out'] == ['peak'] and not found['tables']
  module = script('accelerator')
  book = module.Book(module.SMALL, 1, 100.0, str(path))

  def broken():
    raise RuntimeError('out of memory')

  rows = book.measure(
    'a title',
    {'broken': broken, 'whole': lambda: lambda count: None},
    lambda name, seconds: name,
  )
  assert [row.name for row in rows] == ['whole']
  assert 'a title: broken: failed, RuntimeError: out of memory' in (
    capsys.readouterr().out
  )
  found = json.loads(path.read_text())
  assert 'out of memory' in found['failed']['a title: broken']


@pytest.mark.parametrize(
  'flags', [(), ('--parts=peaks', '--small'), ('--nets=vgg16', '--small')]
)
def test_one_line_where_it_cannot_be_used(script, monkeypatch, capsys, flags):
  assert _accelerator(script, monkeypatch, *flags) == 2
  assert len(capsys.readouterr().err.splitlines()) == 1


def test_operations_of_a_step(script):
  module = script('accelerator')
  model = script('train_step').build('mnist', 4)
  forward = sum(row.multiply_adds for row in summary.rows(model, (28, 28, 1)))
  # All but the images has a gradient, which is what the first layer saves.
  first = 28 * 28 * 3 * 3 * 1 * 4
  assert module._operations('mnist', 4, 1) == 2 * (3 * forward - first)
  assert module._operations('mnist', 4, 6) == 12 * (3 * forward - first)


def test_trainer_takes_steps_without_moving_anything(script, compilations):
  module = script('accelerator')
  sizes = module.SMALL._replace(samples=8, batch=4)
  work = module._trainer('mnist', 2, 4, 'bfloat16', sizes)
  work(1)
  before = len(compilations)
  work(3)
  assert len(compilations) == before


@pytest.mark.parametrize('name', ['mnist', 'vgg', 'fast', 'wide_resnet'])
def test_nets_in_pytorch_are_ours(script, name):
  pytest.importorskip('torch')
  # It compares them itself.
  assert script('train_step').torch_net(name, 8)


@pytest.mark.parametrize('flag', ['--repeats=0', '--output=/nowhere/x.json'])
def test_flags_are_looked_at_before_anything_is_measured(script, capsys, flag):
  with pytest.raises(SystemExit) as ended:
    script('timing').parser('').parse_args([flag])
  assert ended.value.code == 2
  assert flag.split('=')[1] in capsys.readouterr().err


@pytest.mark.parametrize(
  ('name', 'flags', 'words'),
  [
    ('train_step', ['--nets=mnist,vgg16'], "'vgg16' is none of mnist, "),
    ('inference', ['--nets=foo'], "'foo' is none of mnist, "),
    ('streamed_fit', ['--rows=abc'], "'abc': numbers above 0"),
    ('streamed_fit', ['--rows=0'], 'multiples of 10,000'),
    ('streamed_fit', ['--rows=10000,15000'], 'multiples of 10,000'),
    ('folder_memory', ['--counts=x'], "'x': numbers above 0"),
    ('folder_memory', ['--output=/nowhere/x.json'], 'cannot be written'),
    ('imagenet21k', ['--output=/'], '/ cannot be written'),
    ('imagenet21k', ['--vector=neighbour'], 'neighbour'),
    ('growth', ['--picture=/nowhere/x.png'], 'cannot be written'),
    ('cold_start', ['--workdir=/nowhere'], '/nowhere'),
  ],
)
def test_bad_flags(script, monkeypatch, capsys, name, flags, words):
  monkeypatch.setattr('sys.argv', [name, *flags])
  with pytest.raises(SystemExit) as ended:
    script(name).main()
  assert ended.value.code == 2 and words in capsys.readouterr().err


def test_figures_are_written_whole_or_not_at_all(script, tmp_path):
  timing = script('timing')
  path = tmp_path / 'x.json'
  timing.save(str(path), {'a': 1})
  with pytest.raises(TypeError):
    timing.save(str(path), {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1}
  timing.save('', {'a': 1})
  assert [x.name for x in tmp_path.iterdir()] == ['x.json']


def test_streams_in_turns(script):
  module = script('streamed_fit')
  rows = module._measured(10_000, 1)
  assert [row.name for row in rows] == ['two passes', *module.TAILS]
  assert rows[0].ratio == 1 and all(row.median > 0 for row in rows)
  assert all(row.note.startswith('peak ') for row in rows)
