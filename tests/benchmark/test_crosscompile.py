"""Cross-compilation of all programs for GPUs and TPUs, and the resources that the kernels need.

Four levels, each with a broken program that it catches: the interpreter, lowering, binary code, and
the resources of a multiprocessor.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import device_programs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes

from cgvq_jax.benchmark import crosscompile
from cgvq_jax.rasterize import api, layout, pallas, pallas_kernels, tiles

ON_A_GPU = [name for name in pallas.VARIANTS if 'interpret' not in name]
OFFERED_ON_A100 = crosscompile.offered('A100')
# Calls that XLA itself implements on every platform; any other is to a library or to the host.
CALLS = {'Sharding', 'SPMDFullToShardShape', 'SPMDShardToFullShape', 'annotate_device_placement'}
KERNEL_CALLS = {'__gpu$xla.gpu.triton', 'mosaic_gpu', 'mosaic_gpu_v2'}


def calls(text: str) -> set[str]:
  """The targets of a lowered program's custom calls."""
  return set(re.findall(r'custom_call @([\w.$]+)', text))


# --- interpreter ---


def test_the_interpreter_catches_a_wrong_kernel():
  def wrong(*refs, shape):
    def emit(rows, k, n, i, value):
      pallas_kernels.to_row(rows, k, n, i, 1.001 * value)

    pallas_kernels.backward(*refs, shape=shape, emit=emit)

  gaussians, height, width = raster_scenes.random()
  bins = tiles.bin_gaussians(gaussians, height, width, 2048)
  table = layout.gaussian_table(gaussians)
  cotangent = jnp.ones((bins.num_tiles, 3, tiles.TILE.num_pixels))
  right = pallas.VARIANTS['interpret'].backward(table, bins, cotangent)
  kernels = pallas.make_kernels(pallas.triton_runner(interpret=True), pallas_kernels.render, wrong)
  broken = kernels.backward(table, bins, cotangent)
  np.testing.assert_allclose(broken, right, rtol=2e-3)
  with pytest.raises(AssertionError):
    np.testing.assert_allclose(broken, right, rtol=5e-4)


# --- lowering ---


@pytest.mark.parametrize('variant', ON_A_GPU)
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_kernels_lower_for_an_nvidia_gpu(variant, channels):
  table, bins, cotangent = crosscompile.kernel_arguments(num_gaussians=100, channels=channels)
  kernels = pallas.VARIANTS[variant]
  wanted = 'triton' if variant.startswith('triton') else 'mosaic'
  for function, arguments in (
    (kernels.render, (table, bins)),
    (kernels.backward, (table, bins, cotangent)),
  ):
    text = crosscompile.lowered(function, *arguments, device='H100').as_text()
    (kernel,) = calls(text) - CALLS
    assert wanted in kernel and text.count(f'custom_call @{kernel}') == 1


@pytest.mark.parametrize('name', device_programs.PROGRAMS)
@pytest.mark.parametrize('device', ['H100', 'TPU'])
def test_every_stage_lowers_without_calls_to_the_host(name, device):
  function, arguments = device_programs.PROGRAMS[name]()
  called = calls(crosscompile.lowered(function, *arguments, device=device).as_text()) - CALLS
  # By the platform's default: kernels on a GPU wherever something is rendered, plain XLA elsewhere.
  with_kernels = device == 'H100' and name not in ('k-means', 'densify')
  assert len(called) == with_kernels and called <= KERNEL_CALLS


def test_a_call_of_the_host_is_seen():
  def ask(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

  assert calls(crosscompile.lowered(ask, jnp.ones(3), device='CPU').as_text()) - CALLS
  with pytest.raises(ValueError, match='backend'):
    crosscompile.lowered(ask, jnp.ones(3), device='H100')


@pytest.mark.parametrize('variant', ['triton', 'mosaic'])
def test_a_named_implementation_is_what_lowers(variant):
  function, arguments = device_programs.fit_block(f'pallas_{variant}')
  (kernel,) = calls(crosscompile.lowered(function, *arguments, device='H100').as_text()) - CALLS
  assert variant in kernel
  function, arguments = device_programs.fit_block('xla')
  assert not calls(crosscompile.lowered(function, *arguments, device='H100').as_text()) - CALLS


def test_value_and_gradient_of_an_image_lower_where_the_platform_chooses():
  scene = raster_scenes.random()

  def loss(gaussians):
    return jnp.sum(api.rasterize(gaussians, scene.height, scene.width) ** 2)

  for device, kernels_called in (('H100', 1), ('TPU', 0), ('CPU', 0)):
    text = crosscompile.lowered(jax.value_and_grad(loss), scene.gaussians, device=device).as_text()
    assert len(calls(text) & KERNEL_CALLS) == kernels_called


def test_a_kernel_that_no_gpu_can_run_does_not_lower():
  # The interpreter takes sizes that are not powers of two, a GPU does not.
  def body(program, values, out):
    out[...] = jnp.exp(values[...]) + program

  output = jax.ShapeDtypeStruct((100,), jnp.float32)
  values = jnp.zeros(100)
  run = pallas.triton_runner(interpret=True)
  assert run('odd', body, output, 1, [values]).shape == (100,)
  with pytest.raises(Exception, match='power of 2'):
    crosscompile.lowered(
      lambda values: pallas.triton_runner()('odd', body, output, 1, [values]), values, device='H100'
    )


def test_named_kernels_run_or_raise():
  if jax.default_backend() == 'gpu':
    pytest.skip('there is a GPU: the shared suite runs them')
  scene = raster_scenes.one_gaussian()
  for name in ('pallas_triton', 'pallas_mosaic', 'pallas'):
    with pytest.raises(Exception, match='interpret mode'):
      api.rasterize(*scene, implementation=name)


def test_mosaic_has_no_atomic_sums():
  with pytest.raises(NotImplementedError, match='atomic'):
    pallas.mosaic_runner()('sum', None, None, 1, [], zeroed=True)


# --- binary code ---


@pytest.fixture(scope='module')
def compilers():
  if not (crosscompile.compilers() / '.installed').is_file():
    if os.environ.get('CI'):
      pytest.fail('wanted the compilers of launch/compilers.sh, which CI must not do without')
    pytest.skip('needs compilers for GPUs and TPUs: launch/compilers.sh')


@pytest.mark.parametrize(
  ('device', 'variants'),
  [('H100', ON_A_GPU), ('A100', [v for v in ('triton', 'mosaic') if v in OFFERED_ON_A100])],
)
@pytest.mark.usefixtures('compilers')
def test_kernels_compile_and_fit(device, variants):
  rows, failures = crosscompile.all_needs(device, variants)
  assert not failures
  assert [(row.variant, row.kernel) for row in rows] == [
    (variant, kernel) for variant in variants for kernel in ('render', 'backward')
  ]
  for row in rows:
    assert row.fits and 16 <= row.registers <= 255 and row.threads in (32, 128, 256)
    # The default variants spill no registers and occupy half of a multiprocessor or more.
    if row.variant in ('triton', 'mosaic'):
      assert row.spilled_bytes == 0 and row.programs * row.threads >= 1024


@pytest.mark.parametrize('tile', ['8x16', '32x8'])
@pytest.mark.usefixtures('compilers')
def test_kernels_compile_for_other_tiles(tile):
  rows, failures = crosscompile.all_needs(
    'H100', ['triton', 'mosaic'], crosscompile.parse_tile(tile)
  )
  assert not failures and {row.tile for row in rows} == {tile} and len(rows) == 4


TOO_BIG = """
import jax, jax.numpy as jnp
from cgvq_jax.benchmark import crosscompile
from cgvq_jax.rasterize import pallas

def body(program, left, right, out):
  out[...] = jnp.dot(left[...], right[...])

square = jax.ShapeDtypeStruct((512, 512), jnp.float32)
product = lambda *operands: pallas.triton_runner()('big', body, square, 1, operands)
for make in crosscompile.lowered, crosscompile.compiled:
  make(product, square, square, device='H100')
  print(make.__name__, flush=True)
"""


@pytest.mark.usefixtures('compilers')
def test_a_kernel_that_is_too_big_lowers_and_does_not_compile():
  done = crosscompile.in_new_process(['-c', TOO_BIG])
  assert done.returncode and done.stdout.split() == ['lowered']
  assert re.search('(?i)shared memory|resource', done.stderr)


def test_after_a_failure_the_other_variants_are_compiled():
  # A process that dies on its second variant: the first is kept, the third is still tried.
  row = crosscompile.Needs('H100', '', '16x16', 'render', 128, 32, 0, 0, 1000, 16)
  asked = []

  def process(arguments, **environment):
    _, _, _, *variants = arguments[: arguments.index('--tile')]
    asked.append(variants)
    failed = 'bad' in variants
    made = variants[: variants.index('bad')] if failed else variants
    lines = [json.dumps([row._asdict() | {'variant': variant}]) for variant in made]
    stderr = 'x\nLLVM ERROR: no such thing\n*** end ***\n' if failed else ''
    return subprocess.CompletedProcess(arguments, int(failed), '\n'.join(lines), stderr)

  rows, failures = crosscompile.all_needs('H100', ['good', 'bad', 'late'], run=process)
  assert [r.variant for r in rows] == ['good', 'late']
  assert failures == ['H100 bad: exit 1: LLVM ERROR: no such thing']
  assert asked == [['good', 'bad', 'late'], ['late']]


@pytest.mark.parametrize('device', ['H100', 'TPU'])
@pytest.mark.parametrize(
  'names', [['cgvq', 'k-means'], pytest.param(['batch', 'gi', 'densify'], marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures('compilers')
def test_every_stage_compiles(names, device):
  folder = str(Path(__file__).parents[1] / 'support')
  program = [str(Path(folder) / 'device_programs.py'), device, *names]
  done = crosscompile.in_new_process(program)
  assert done.returncode == 0, done.stderr[-2000:]
  lines = [line.split() for line in done.stdout.splitlines()]
  assert [line[0] for line in lines] == names
  for _, size, unordered_scatters in lines:
    assert int(size) > 10_000 and (device == 'TPU' or unordered_scatters == '0')


def test_a_missing_compiler_is_named(tmp_path):
  program = """
from cgvq_jax.benchmark import crosscompile
import jax.numpy as jnp
try:
  crosscompile.compiled(jnp.sin, jnp.ones(3), device='H100')
except crosscompile.NoCompiler as error:
  print(error)
"""
  done = crosscompile.in_new_process(['-c', program], PYTHONPATH=str(Path(__file__).parents[2]))
  assert 'H100: wanted jax-cuda12-plugin, jax-cuda12-pjrt (launch/compilers.sh)' in done.stdout


@pytest.mark.parametrize('text', ['16', '16x17', '0x16', '16x16x16', '64x64', 'axb'])
def test_impossible_tiles(text):
  with pytest.raises(ValueError, match='wanted HEIGHTxWIDTH'):
    crosscompile.parse_tile(text)


# --- which variant ---


def test_a_measured_device_gets_what_was_measured(monkeypatch):
  kind = jax.devices()[0].device_kind
  measured = pallas.Tuning('triton_chunks', tiles.TileShape(8, 16))
  monkeypatch.setattr(pallas, 'TUNED', {kind: measured})
  assert pallas.tuned() == measured
  assert api.tile_shape('pallas') == (8, 16) and api.tile_shape('xla') == tiles.TILE
  monkeypatch.setattr(pallas, 'TUNED', {'another device': measured})
  assert pallas.tuned().variant in ('mosaic', 'triton')
  assert api.tile_shape('pallas') == tiles.TILE


def test_the_default_variant_is_one_that_the_installed_jax_offers_every_gpu(monkeypatch):
  monkeypatch.setattr(pallas, 'TUNED', {})
  for device in crosscompile.GPUS:
    assert pallas.tuned().variant in crosscompile.offered(device)
