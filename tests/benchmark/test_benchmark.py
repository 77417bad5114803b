"""The scenes of the benchmark, its command, the profile of a step, and the times of decoding."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes as small_scenes

from cgvq_jax import codec
from cgvq_jax.benchmark import __main__ as benchmark
from cgvq_jax.benchmark import decoding, profiling, scenes
from cgvq_jax.bitstream import container
from cgvq_jax.fit import blocks

TINY = {'tiny': lambda: scenes.random(60, 40, 56)}


# --- scenes ---


def test_the_random_scene_is_the_one_described():
  scene = scenes.random(1000, 50, 80)
  assert scene.gaussians.num_gaussians == 1000 and scene[1:] == (50, 80)
  scale = np.exp(np.asarray(scene.gaussians.log_scale))
  assert 1 <= scale.min() < 1.2 and 4.8 < scale.max() <= 5
  mean = np.asarray(scene.gaussians.mean_xy)
  assert mean.min() >= 0 and mean[:, 0].max() > 75 and 45 < mean[:, 1].max() <= 50


def photograph(name):
  assert name == 'cup'
  return small_scenes.photograph(48, 48)


def test_a_fitted_scene_is_fitted_once(tmp_path, monkeypatch):
  monkeypatch.setenv('CGVQ_CACHE', str(tmp_path))
  first = scenes.fitted('cup', 60, steps=2, load=photograph)
  assert first.gaussians.num_gaussians == 60
  (file,) = tmp_path.iterdir()
  # If the second call fitted again, it would not return what the file was changed to.
  with np.load(file) as arrays:
    changed = {name: array + 1 for name, array in arrays.items()}
  np.savez(file, **changed)
  again = scenes.fitted('cup', 60, steps=2, load=photograph)
  assert again[1:] == first[1:] == (48, 48)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b + 1), again.gaussians, first.gaussians
  )
  # Another number of steps or of Gaussians is another scene.
  for count, steps in ((60, 3), (50, 2)):
    other = scenes.fitted('cup', count, steps=steps, load=photograph)
    assert np.max(np.asarray(other.gaussians.rotation)) < np.max(changed['rotation']) - 0.5


@pytest.mark.slow
def test_a_fitted_scene_is_the_default_fit(tmp_path, monkeypatch):
  monkeypatch.setenv('CGVQ_CACHE', str(tmp_path))
  steps = 6 * blocks.BLOCK_STEPS
  scene = scenes.fitted('cup', 60, steps=steps, load=photograph)
  target = jnp.asarray(photograph('cup'))
  want = codec.fit_image(jax.random.key(0), target, 60, steps=steps)
  jax.tree.map(np.testing.assert_array_equal, scene.gaussians, want)


# --- the command ---


def test_the_command_says_what_it_skips_and_writes_rows(monkeypatch, tmp_path, capsys):
  monkeypatch.setenv('CGVQ_KODAK', str(tmp_path / 'nowhere'))
  arguments = ['rasterize', '--scenes', 'small', 'kodim15-1k', '--implementations', 'xla']
  benchmark.main([*arguments, '--json', str(tmp_path / 'rows.json')])
  printed = capsys.readouterr().out
  assert '| kodim15-1k | xla | skipped: ' in printed and '| small | xla | 500 |' in printed
  (row,) = json.loads((tmp_path / 'rows.json').read_text())
  assert row['scene'] == 'small' and row['value_and_grad_ms'] > 0


# --- profiling ---


def test_an_operation_belongs_to_its_innermost_part():
  text = """
%fused (p: f32[2]) -> f32[2] {
  ROOT %exp.1 = f32[2]{0} exponential(%p), metadata={op_name="jit(f)/binning/exp" stack_frame_id=1}
}
ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %sort.7 = u32[9]{0} sort(%a), dimensions={0}, metadata={op_name="jit(f)/while/binning/sort/sort"}
  %fusion.2 = f32[2]{0} fusion(%a), metadata={op_name="jit(f)/transpose(jvp(weights))/mul"}
  %add.3 = f32[2]{0} add(%a, %a), metadata={op_name="jit(f)/add"}
  ROOT %while.9 = (f32[2]) while(%a), body=%b, metadata={op_name="jit(f)/weights/while"}
}
"""
  parts = profiling.parts_of(text)
  want = {'exp.1': 'binning', 'sort.7': 'sort', 'fusion.2': 'weights', 'add.3': 'other'}
  assert parts == want  # a loop's time is that of its body


@pytest.mark.parametrize(
  'stages', [['cgvq'], pytest.param(['fit', 'cgvq'], marks=pytest.mark.slow)]
)
def test_a_profile_has_all_parts_of_a_step(stages, capsys):
  rows = profiling.profile('tiny', stages, TINY)
  for stage in stages:
    part = {row['part']: row for row in rows if row['stage'] == stage}
    assert {'binning', 'sort', 'weights', 'colors', 'gradients', 'moments', 'update'} <= part.keys()
    assert ('quantize' in part) == (stage == 'cgvq')
    assert sum(row['share'] for row in part.values()) == pytest.approx(1)
    assert all(row['step_ms'] > 0 for row in part.values())
  assert '| tiny | cgvq | quantize |' in capsys.readouterr().out


# --- decoding ---


def test_the_parts_of_decoding_are_timed_with_the_files_alternating(tmp_path, monkeypatch, capsys):
  clock, calls = [0.0], []

  def taking(name, seconds, result):
    def call(argument):
      clock[0] += seconds
      calls.append((name, argument))
      return result

    return call

  one = replace(
    scenes.random(1, 40, 56).gaussians,
    mean_xy=jnp.array([[16.0, 8.0]]),
    log_scale=jnp.zeros((1, 2)),
  )
  decoded = codec.Decoded(one, 40, 56, np.zeros(1, np.int32))
  monkeypatch.setattr(container, 'read', taking('read', 1.0, None))
  monkeypatch.setattr(codec, 'decode', taking('decode', 3.0, decoded))
  monkeypatch.setattr(codec, 'render', taking('render', 10.0, None))
  files = [tmp_path / 'a.cgvq', tmp_path / 'b.cgvq']
  for file in files:
    container.write_file(file, file.name.encode())
  rows = decoding.decode(files, rounds=2, clock=lambda: clock[0])

  read = [argument for name, argument in calls if name == 'read']
  assert read == [b'a.cgvq', b'b.cgvq'] * 3  # once to compile, then twice
  same = {'read_ms': 1e3, 'look_up_ms': 2e3, 'render_ms': 1e4, 'decode_ms': 1.3e4, 'bytes': 6}
  # A disc of radius 3.3 px on the border of two tiles, clear of the next row.
  assert rows == [{'file': str(file), 'tile_pairs': 2, **same} for file in files]
  out = capsys.readouterr().out
  assert all(f'{file} | 6 | 1000.0 | 2000.0 | 10000.0 | 13000.0 | 2 |' in out for file in files)
