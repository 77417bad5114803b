"""The benchmark times what it says it does."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from cgvq_jax import benchmark
from cgvq_jax.bitstream import container


def test_both_steps_run_and_take_time(monkeypatch):
  monkeypatch.setattr(benchmark, 'SCENES', {'small': (20, 24, 32), 'photograph': (30, 32, 48)})
  rows = benchmark.measure()
  found = [(row['scene'], row['implementation']) for row in rows]
  assert found == [('small', 'reference'), ('small', 'xla'), ('photograph', 'xla')]
  assert all(row['compile_s'] > 0 and row['step_ms'] > 0 for row in rows)
  assert [row['num_gaussians'] for row in rows] == [20, 20, 30]


def test_the_scene_is_the_one_described():
  scene = benchmark.random_scene(1000, 50, 80)
  assert scene.num_gaussians == 1000
  scale = np.exp(np.asarray(scene.log_scale))
  assert 1 <= scale.min() < 1.2 and 4.8 < scale.max() <= 5
  mean = np.asarray(scene.mean_xy)
  assert mean.min() >= 0 and mean[:, 0].max() > 75 and 45 < mean[:, 1].max() <= 50


def test_only_the_calls_after_the_first_count(monkeypatch):
  laps = (100.0, 5.0, 1.0, 3.0, 2.0, 4.0)
  clock = iter([t for k, lap in enumerate(laps) for t in (1000.0 * k, 1000.0 * k + lap)])
  monkeypatch.setattr(benchmark.time, 'perf_counter', lambda: next(clock))
  first, milliseconds = benchmark._timed(lambda: jnp.zeros(()), 50)
  assert (first, milliseconds) == (100.0, pytest.approx(3000 / 50))


def test_files_are_decoded_in_turn(tmp_path, monkeypatch):
  decoded = []
  monkeypatch.setattr(benchmark.codec, 'decode', decoded.append)
  monkeypatch.setattr(benchmark.codec, 'render', lambda image: image)
  files = [tmp_path / 'a.cgvq', tmp_path / 'b.cgvq']
  for file in files:
    container.write_file(file, file.name.encode())
  found = benchmark.decode_milliseconds(files, rounds=2)
  assert decoded == [b'a.cgvq', b'b.cgvq'] * 3  # once to compile, then twice
  assert list(found) == [str(file) for file in files]
