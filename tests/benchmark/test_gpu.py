"""The benchmark for accelerators where there is none: rows, candidates that fail, the summary."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import raster_scenes

from cgvq_jax.benchmark import __main__ as benchmark
from cgvq_jax.benchmark import crosscompile, gpu
from cgvq_jax.rasterize import pallas, tiles

FLOORS = gpu.Floors(exponentials=1e9, bytes=1e10)
QUICK = {'steps': 2, 'min_seconds': 0.01}
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_row_is_of_one_image_of_the_batch():
  candidate = gpu.Candidate('pallas_interpret', tiles.TileShape(8, 16))
  row = gpu.measure(raster_scenes.random(30), candidate, 2, FLOORS, **QUICK)
  assert (row['implementation'], row['tile'], row['batch']) == ('pallas_interpret', '8x16', 2)
  parts = [row[part] for part in ('binning_ms', 'render_ms', 'value_and_grad_ms', 'step_ms')]
  assert min(parts) > 0 and row['compile_s'] > 0
  assert row['images_a_second'] == pytest.approx(1e3 / (parts[0] + parts[1]))
  # Two exponentials for each pixel of each listed pair; the other picture has nearly as many pairs.
  gaussians, height, width = raster_scenes.random(30)
  bins = tiles.bin_gaussians(gaussians, height, width, 2048, tile_shape=candidate.tile_shape)
  assert row['evaluated_pairs'] == pytest.approx(128 * float(bins.num_pairs), rel=0.1)
  assert row['floor_ms'] == pytest.approx(2e3 * row['evaluated_pairs'] / 1e9)


def test_a_candidate_that_does_not_run_is_skipped_and_the_rest_is_measured(capsys):
  chosen = [gpu.Candidate('xla'), gpu.Candidate('pallas_triton')]
  scene = raster_scenes.random(30)
  rows, skipped = gpu.measure_all(scene, chosen, FLOORS, batches=(1,), **QUICK)
  assert [row['implementation'] for row in rows] == ['xla']
  (reason,) = skipped
  assert 'pallas_triton 16x16, batch 1' in reason and 'interpret mode' in reason
  printed = capsys.readouterr().out
  assert '| xla | 16x16 | 1 |' in printed and f'skipped: {reason}' in printed


def test_no_row_is_begun_when_the_time_is_up(capsys):
  clock = iter([0.0, 4.0, 6.0, 6.0])
  chosen = [gpu.Candidate('pallas_triton')]  # fails at once where it is begun
  _, skipped = gpu.measure_all(
    raster_scenes.random(30), chosen, FLOORS, seconds=5, clock=lambda: next(clock), **QUICK
  )
  first, *late = skipped
  assert 'batch 16' in first and 'interpret mode' in first
  assert len(late) == len(gpu.BATCHES) - 1
  assert all('no time left of 5 s' in reason for reason in late)
  assert capsys.readouterr().out.count('no time left') == len(late)


def test_floors_are_speeds():
  # Twice the values and twice the rounds, measured at the same speed.
  floors = gpu.measure_floors(values=1 << 16, rounds=8, min_seconds=0.01)
  more = gpu.measure_floors(values=1 << 17, rounds=16, min_seconds=0.01)
  assert 0.2 < more.exponentials / floors.exponentials < 5
  assert 0.2 < more.bytes / floors.bytes < 5


@pytest.mark.slow
def test_the_photograph_is_fitted_and_encoded():
  fitted = gpu.fit_photograph(100, steps=2, size=96)
  assert (fitted['num_gaussians'], fitted['steps']) == (100, 2)
  assert (fitted['height'], fitted['width']) == (96, 96)
  assert fitted['psnr'] > 10 and fitted['seconds'] > 0
  encoded = gpu.encode_photograph(steps=2, size=32)
  assert 0 < encoded['bytes'] < 2000 and encoded['psnr'] > 10 and encoded['seconds'] > 0


def test_the_summary_has_the_photograph_and_the_line_for_the_tuning_table():
  photograph = {'num_gaussians': 100, 'steps': 7, 'seconds': 1.0, 'psnr': 20.0}
  encoded = {'steps': 5, 'seconds': 2.0, 'bytes': 1000, 'psnr': 19.0}
  rows = [{'implementation': 'pallas_mosaic', 'tile': '32x8', 'step_ms': 0.3}]
  text = gpu.summary('GPU 9', rows, photograph, encoded)
  assert '100 Gaussians, 7 steps: 1.0 s, 20.00 dB' in text
  assert 'as a file of cgvq_rd, 5 + 5 steps: 2.0 s, 1000 bytes, 19.00 dB' in text
  line = text.splitlines()[-1].strip()
  # The line can be pasted into the table as it is.
  table = eval(f'{{{line}}}', {'Tuning': pallas.Tuning, 'TileShape': tiles.TileShape})
  assert table == {'GPU 9': pallas.Tuning('mosaic', tiles.TileShape(32, 8))}
  assert 'TUNED' not in gpu.summary('GPU 9', [], photograph, encoded)


def test_all_variants_and_tiles_are_candidates():
  named = {candidate.implementation for candidate in gpu.candidates()}
  assert named == {
    'xla',
    *(f'pallas_{name}' for name in pallas.VARIANTS if 'interpret' not in name),
  }
  shapes = {candidate.tile_shape for candidate in gpu.candidates()}
  assert shapes == {(16, 16), (8, 16), (32, 8)}


def test_the_fastest_in_full_precision_is_proposed():
  rows = [
    {'implementation': name, 'tile': tile, 'step_ms': step}
    for name, tile, step in (
      ('xla', '16x16', 0.1),
      ('pallas_triton_products_tf32', '16x16', 0.2),
      ('pallas_mosaic', '32x8', 0.3),
      ('pallas_triton', '16x16', 0.4),
    )
  ]
  best = gpu.fastest(rows)
  assert best and gpu.tuning(best) == pallas.Tuning('mosaic', tiles.TileShape(32, 8))
  assert gpu.fastest(rows[:2]) is None


# --- the command and the script ---


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
  # A pretended machine: its GPU answers, and its Python fails at the tests, then at nothing.
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


# --- resources of kernels ---


def test_a_kernel_that_does_not_fit_fails_the_command(capsys):
  fits = crosscompile.Needs('H100', 'triton', '16x16', 'render', 128, 32, 0, 9, 10, 16)

  def needing(shared):
    return lambda device, variants, tile: ([fits._replace(shared_bytes=shared)], [])

  (row,) = crosscompile.kernels(['H100'], measure=needing(9))
  assert row == fits._asdict()
  line = '| H100 | triton | 16x16 | render | 128 | 32 | 0 | 9 | 10 | 16 |'
  assert line in capsys.readouterr().out
  with pytest.raises(SystemExit) as exit:
    crosscompile.kernels(['H100'], measure=needing(11))
  assert exit.value.code == 1
  assert 'failed: H100 triton render: too big' in capsys.readouterr().out
