"""Scenes: the random ones as described, and the fitted ones cached."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes as small_scenes

from cgvq_jax import codec
from cgvq_jax.benchmark import scenes
from cgvq_jax.fit import blocks


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
