"""The times of rasterizers and steps on a CPU, the pairs that they need, and the floor."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes as small_scenes

from cgvq_jax import devices
from cgvq_jax.benchmark import cpu, scenes
from cgvq_jax.evaluate.timer import repeat
from cgvq_jax.primitives.geometry import CUTOFF, squared_distance, whitening
from cgvq_jax.rasterize import tiles

TINY = {'tiny': lambda: scenes.random(60, 40, 56)}


# --- the rasterizers ---


@pytest.mark.parametrize(
  'name', ['random', 'borders', 'outside', 'enormous', 'thin', 'single_pixel']
)
def test_needed_pairs_are_those_within_the_cutoff(name):
  scene = small_scenes.SCENES[name]()
  gaussians, height, width = scene
  white = np.asarray(whitening(gaussians.log_scale, gaussians.rotation), np.float64)
  mean = np.asarray(gaussians.mean_xy, np.float64)
  y, x = np.mgrid[:height, :width] + 0.5
  q = squared_distance(white.T, x[..., None] - mean[:, 0], y[..., None] - mean[:, 1])
  found = cpu.needed_pairs(scenes.Scene(*scene))
  assert found == pytest.approx(np.sum(q <= CUTOFF), rel=2e-3, abs=1)


@pytest.mark.parametrize('implementation', list(cpu.IMPLEMENTATIONS))
def test_a_row_has_every_column(implementation):
  row = cpu.measure('tiny', implementation, TINY)
  assert (row['num_gaussians'], row['height'], row['width']) == (60, 40, 56)
  for column in ('compile_s', 'forward_ms', 'value_and_grad_ms', 'peak_memory_mb'):
    assert row[column] > 0, column
  assert row['evaluated_pairs'] >= row['needed_pairs'] > 0
  if implementation == 'reference':
    assert row['evaluated_pairs'] == 60 * 40 * 56
  else:
    assert row['binning_ms'] > 0
    assert row['evaluated_pairs'] % (tiles.CHUNK * tiles.TILE.num_pixels) == 0
  assert row['floor_value_and_grad_ms'] == 2 * row['floor_forward_ms'] > 0
  assert row['device']
  json.dumps(row)


def test_a_scene_that_is_too_large_for_the_reference_is_refused():
  target = jnp.zeros((40, 56, 3))
  with pytest.raises(cpu.CannotRun, match='134400 pairs, at most 134399'):
    cpu.measure_reference(TINY['tiny'](), target, max_pairs=60 * 40 * 56 - 1)


def test_the_floor_is_the_time_of_one_exponential():
  # If XLA moved the exponentials out of the loop, or made them once for all rounds, an exponential
  # of four times as many rounds would seem to take a quarter of the time.
  few, many = np.min([[cpu.floor_seconds(500), cpu.floor_seconds(2000)] for _ in range(3)], axis=0)
  assert 0.5 < many / few < 2
  # NumPy's takes a similar time: both are evaluated by vectors of values.
  x = np.linspace(-5.5, 0.0, 1 << 14, dtype=np.float32)
  out = np.empty_like(x)
  numpy_seconds = repeat(lambda: np.exp(x, out=out), 200).minimum / x.size
  assert numpy_seconds / 20 < devices.mesh().size * many < 8 * numpy_seconds


# --- one step ---


def test_both_steps_run_and_take_time():
  rows = cpu.fit_steps({name: TINY['tiny'] for name in ('small', 'random-768')})
  found = [(row['scene'], row['implementation']) for row in rows]
  assert found == [('small', 'reference'), ('small', 'xla'), ('random-768', 'xla')]
  assert all(row['compile_s'] > 0 and row['step_ms'] > 0 for row in rows)
