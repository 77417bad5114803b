"""The benchmark for accelerators, where there is none: that it measures, skips and says so."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest
import raster_scenes

from cgvq_jax.benchmark import __main__ as benchmark
from cgvq_jax.benchmark import gpu
from cgvq_jax.rasterize import pallas, tiles

FLOOR = gpu.Floors(exponentials=1e9, bytes=1e10)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(gpu, '_LEAST_SECONDS', 0.01)
  monkeypatch.setattr(gpu, 'floors', lambda: FLOOR)
  monkeypatch.setitem(gpu.SCENES, 'tiny', functools.partial(raster_scenes.random, 30))


@pytest.mark.slow
def test_a_row_is_of_one_image_of_the_batch():
  candidate = gpu.Candidate('pallas_interpret', tiles.TileShape(8, 16))
  row = gpu.measure(raster_scenes.random(30), candidate, 2, FLOOR, steps=2)
  assert (row['implementation'], row['tile'], row['batch']) == ('pallas_interpret', '8x16', 2)
  parts = [row[part] for part in ('binning_ms', 'render_ms', 'value_and_grad_ms', 'step_ms')]
  assert min(parts) > 0 and row['compile_s'] > 0
  assert row['images_a_second'] == pytest.approx(1e3 / (parts[0] + parts[1]))
  # Two exponentials for each pixel of each listed pair, some of which the other picture moves.
  gaussians, height, width = raster_scenes.random(30)
  bins = tiles.bin_gaussians(gaussians, height, width, 2048, tile_shape=candidate.tile_shape)
  assert row['evaluated_pairs'] == pytest.approx(128 * float(bins.num_pairs), rel=0.1)
  assert row['floor_ms'] == pytest.approx(2e3 * row['evaluated_pairs'] / 1e9)


@pytest.fixture(params=['told', pytest.param('made', marks=pytest.mark.slow)])
def photograph(request, monkeypatch):
  """What is made of the photograph, small; told in place of made, the benchmark is quick."""
  fitted = functools.partial(gpu.fit_photograph, 100)
  encoded = functools.partial(gpu.encode_photograph, size=32)
  if request.param == 'told':

    def fitted(steps):
      return {'num_gaussians': 100, 'steps': steps, 'seconds': 1.0, 'psnr': 20.0}

    def encoded(steps):
      return {'steps': steps, 'seconds': 1.0, 'bytes': 1000, 'psnr': 20.0}

  monkeypatch.setattr(gpu, 'fit_photograph', fitted)
  monkeypatch.setattr(gpu, 'encode_photograph', encoded)


@pytest.mark.usefixtures('photograph')
def test_what_does_not_run_is_told_and_the_rest_is_measured(capsys):
  chosen = [gpu.Candidate('xla'), gpu.Candidate('pallas_triton')]
  measured = gpu.run('tiny', chosen, batches=(1,), fit_steps=2)
  assert [row['implementation'] for row in measured['rows']] == ['xla']
  (words,) = measured['skipped']
  assert 'pallas_triton 16x16, batch 1' in words and 'interpret mode' in words
  assert measured['photograph']['psnr'] > 10 and measured['photograph']['steps'] == 2
  assert 0 < measured['encoded']['bytes'] < 2000 and measured['encoded']['psnr'] > 10
  said = capsys.readouterr().out
  assert f'skipped: {words}' in said and 'as a file of cgvq_rd, 2 + 2 steps' in said


@pytest.mark.usefixtures('photograph')
def test_without_time_nothing_is_measured_and_that_is_told():
  measured = gpu.run('tiny', [gpu.Candidate('xla')], seconds=0, fit_steps=1)
  assert not measured['rows'] and len(measured['skipped']) == len(gpu.BATCHES)
  assert all('no time left of 0 s' in words for words in measured['skipped'])


def test_all_variants_and_tiles_are_candidates():
  named = {candidate.implementation for candidate in gpu.candidates()}
  assert named == {
    'xla',
    *(f'pallas_{name}' for name in pallas.VARIANTS if 'interpret' not in name),
  }
  shapes = {candidate.tile_shape for candidate in gpu.candidates()}
  assert shapes == {(16, 16), (8, 16), (32, 8)}


def test_the_fastest_that_is_precise_is_proposed():
  rows = [
    {'implementation': name, 'tile': tile, 'step_ms': step}
    for name, tile, step in (
      ('xla', '16x16', 0.1),
      ('pallas_triton_products_tf32', '16x16', 0.2),
      ('pallas_mosaic', '32x8', 0.3),
      ('pallas_triton', '16x16', 0.4),
    )
  ]
  best = gpu._best(rows)
  assert best and gpu._tuning(best) == pallas.Tuning('mosaic', tiles.TileShape(32, 8))
  assert gpu._best(rows[:2]) is None


# --- what says that there is no GPU ---


@pytest.mark.skipif(os.path.exists('/dev/nvidia0'), reason='there is a GPU')
def test_without_a_gpu_the_command_says_so(capsys):
  with pytest.raises(SystemExit) as exit:
    benchmark.main(['gpu'])
  assert exit.value.code == 3
  assert 'skipped: wanted an NVIDIA GPU, JAX has cpu' in capsys.readouterr().out


@pytest.mark.skipif(os.path.exists('/dev/nvidia0'), reason='there is a GPU')
def test_without_a_gpu_the_script_says_so():
  done = subprocess.run([ROOT / 'launch/gpu_check.sh'], capture_output=True, text=True, check=False)
  assert done.returncode == 3 and 'skipped: no NVIDIA GPU answers nvidia-smi' in done.stderr


def test_the_script_fails_where_a_step_fails(tmp_path):
  # A machine as it seems to be: its GPU answers, its Python fails at the tests, then at nothing.
  (tmp_path / 'nvidia-smi').write_text('#!/bin/sh\necho GPU 0\n')
  (tmp_path / 'python').write_text('#!/bin/sh\ncase "$*" in "-m pytest"*) exit $FAILS;; esac\n')
  for program in tmp_path.iterdir():
    program.chmod(0o755)
  path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
  for fails, code, words in (('1', 1, 'FAILED'), ('0', 0, 'passed')):
    environment = {**os.environ, 'PATH': path, 'PYTHON': 'python', 'FAILS': fails}
    environment['VENV'] = str(tmp_path / 'venv')  # never the one that runs this
    done = subprocess.run(
      [ROOT / 'launch/gpu_check.sh'], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code and done.stdout.strip().endswith(words)


# --- what kernels need ---


def test_a_kernel_that_does_not_fit_fails_the_command(monkeypatch, capsys):
  fits = benchmark.crosscompile.Needs('H100', 'triton', '16x16', 'render', 128, 32, 0, 9, 10, 16)

  def needs(shared):
    return lambda device, variants, tile: ([fits._replace(shared_bytes=shared)], [])

  monkeypatch.setattr(benchmark.crosscompile, 'all_needs', needs(9))
  benchmark.main(['kernels', '--devices', 'H100'])
  assert (
    '| H100 | triton | 16x16 | render | 128 | 32 | 0 | 9 | 10 | 16 |' in capsys.readouterr().out
  )
  monkeypatch.setattr(benchmark.crosscompile, 'all_needs', needs(11))
  with pytest.raises(SystemExit) as exit:
    benchmark.main(['kernels', '--devices', 'H100'])
  assert exit.value.code == 1
  assert 'failed: H100 triton render: too big' in capsys.readouterr().out
