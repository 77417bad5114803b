"""Rasterizers and steps are timed as is said, beside floors that are what they are called."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes as small_scenes

from cgvq_jax.benchmark import cpu, scenes
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
def test_a_row_has_every_column(monkeypatch, implementation):
  monkeypatch.setattr(cpu, 'SCENES', TINY)
  row = cpu.measure('tiny', implementation)
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


def test_what_the_definition_cannot_hold_is_said(monkeypatch):
  monkeypatch.setattr(cpu, '_MOST_REFERENCE_PAIRS', 60 * 40 * 56 - 1)
  with pytest.raises(cpu.CannotRun, match='134400 pairs, at most 134399'):
    cpu._measure_reference(TINY['tiny'](), jnp.zeros((40, 56, 3)))


def test_the_floor_is_the_time_of_an_exponential():
  # From 2 GHz with one vector of 16 a cycle to a machine a hundred times slower than ours.
  assert 1e-12 < cpu.floor_seconds() < 3e-8


# --- one step ---


def test_both_steps_run_and_take_time(monkeypatch):
  monkeypatch.setattr(cpu, 'SCENES', TINY | {n: TINY['tiny'] for n in ('small', 'random-768')})
  rows = cpu.fit_steps()
  found = [(row['scene'], row['implementation']) for row in rows]
  assert found == [('small', 'reference'), ('small', 'xla'), ('random-768', 'xla')]
  assert all(row['compile_s'] > 0 and row['step_ms'] > 0 for row in rows)


def test_only_the_calls_after_the_first_count(monkeypatch):
  laps = (100.0, 5.0, 1.0, 3.0, *(float(k) for k in range(4, cpu._REPEATS + 1)))
  clock = iter([t for k, lap in enumerate(laps) for t in (1000.0 * k, 1000.0 * k + lap)])
  monkeypatch.setattr(cpu.time, 'perf_counter', lambda: next(clock))
  assert cpu._timed(lambda: jnp.zeros(())) == (100.0, list(laps[1:]))
