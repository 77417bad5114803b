"""Adaptive steps: they add the error that they should, and every integer comes back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from adaptive_symbols import HEIGHT, STEP_INDEX, WIDTH, random_symbols

from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.quantize import adaptive
from cgvq_jax.rasterize.api import rasterize


def test_decoded_numbers_are_those_of_the_integers():
  symbols, _ = random_symbols()
  once = adaptive.dequantize(symbols)
  scale = np.exp(np.asarray(once.log_scale, np.float64))
  octaves = (
    np.log2(scale) * adaptive.OCTAVE / adaptive.log_scale_steps()[symbols.energy_class][:, None]
  )
  np.testing.assert_allclose(octaves, symbols.log_scale, atol=0.02)
  energy = np.sum(np.asarray(once.color) ** 2, axis=1) * np.pi * np.prod(scale, axis=1)
  stored = np.sum((adaptive.quantization_step(STEP_INDEX) * symbols.color) ** 2, axis=1)
  np.testing.assert_allclose(energy, stored, rtol=1e-4)


# --- steps ---


@pytest.mark.parametrize('attribute', ['mean_xy', 'log_scale', 'rotation', 'color'])
def test_rounding_any_number_costs_the_same(attribute):
  """A step s of a number with sensitivity H adds H s^2 / 12; here that is step^2 / 12 for each."""
  energy_class, step = 9, 0.05
  r = 2.0 ** (-energy_class / 2)
  s1, s2, angle = 4.0, 1.5, 0.6
  color = np.array([0.8, -0.5, 0.3])
  color *= np.sqrt(step**2 * 2**energy_class / (np.pi * s1 * s2) / (color @ color))

  def picture(mean=(48.0, 32.0), scale=(s1, s2), rotation=angle, c=color):
    gaussian = Gaussians(
      mean_xy=jnp.array([mean], jnp.float32),
      log_scale=jnp.log(jnp.array([scale], jnp.float32)),
      rotation=jnp.array([rotation], jnp.float32),
      color=jnp.array([c], jnp.float32),
    )
    return np.asarray(rasterize(gaussian, HEIGHT, WIDTH), np.float64)

  part = 0.5  # of a step: the change is H (s/2)^2
  if attribute == 'mean_xy':
    along = np.array([np.cos(angle), np.sin(angle)]) * np.sqrt(2) * r * s1 * part
    moved = picture(mean=np.array([48.0, 32.0]) + along)
  elif attribute == 'log_scale':
    # At equal energy: colours are stored as e.
    wider = s1 * np.exp(np.sqrt(2) * r * part)
    moved = picture(scale=(wider, s2), c=color * np.sqrt(s1 / wider))
  elif attribute == 'rotation':
    moved = picture(rotation=angle + 2 * r / (s1 / s2 - s2 / s1) * part)
  else:
    moved = picture(c=color + np.array([1.0, 0, 0]) * step / np.sqrt(np.pi * s1 * s2) * part)
  change = np.sum((moved - picture()) ** 2)
  assert change == pytest.approx((step * part) ** 2, rel=0.06)


def test_cells_are_as_good_as_a_lattice_in_the_gaussians_own_frame():
  symbols, mean = random_symbols(4000, height=512, width=768)
  scale = adaptive.scales(symbols.log_scale, symbols.energy_class)
  rotations = adaptive.num_rotations(scale, symbols.energy_class)
  spread, _ = adaptive.spreads(scale, symbols.rotation, rotations)
  cells = adaptive.num_cells(symbols.size, spread, symbols.energy_class)
  several = (cells.min(axis=1) > 12) & (cells.max(axis=1) < adaptive.MAX_CELLS)
  assert several.sum() > 300
  error = np.asarray(adaptive.dequantize(symbols).mean_xy, np.float64) - mean
  angle = np.pi * symbols.rotation / rotations
  along = np.cos(angle) * error[:, 0] + np.sin(angle) * error[:, 1]
  across = np.cos(angle) * error[:, 1] - np.sin(angle) * error[:, 0]
  step = np.sqrt(2) * 2.0 ** (-symbols.energy_class / 2)
  for part, deviation in ((along, scale[:, 0]), (across, scale[:, 1])):
    relative = (part / deviation / step)[several]
    assert np.mean(relative**2) == pytest.approx(1 / 12, rel=0.12)


def test_rotations_are_as_fine_as_their_step():
  """pi / M is at most 2 r / (s1/s2 - s2/s1), and M - 1 rotations would be too coarse."""
  scale, energy_class = np.array([[4.0, 1.5], [30.0, 1.0], [2.0, 2.0]]), np.array([9, 4, 20])
  rotations = adaptive.num_rotations(scale, energy_class)
  ratio = scale[:2, 0] / scale[:2, 1]
  step = 2 * 2.0 ** (-energy_class[:2] / 2) / (ratio - 1 / ratio)
  assert np.all(np.pi / rotations[:2] <= step) and np.all(step < np.pi / (rotations[:2] - 1))
  assert rotations[2] == 1


def test_energy_classes_are_octaves_of_energy():
  step = 0.25
  energy = step**2 * np.array([0.1, 1, 1.3, 1.5, 2, 1000, 1e30])
  np.testing.assert_array_equal(adaptive.energy_classes(energy, step), [0, 0, 0, 1, 1, 10, 31])


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_color_axes_are_principal_and_come_back_orthonormal(channels):
  rng = np.random.default_rng(1)
  colors = rng.normal(size=(500, channels)) @ rng.normal(size=(channels, channels))
  axes = adaptive.unit_axes(adaptive.color_axes(colors))
  np.testing.assert_allclose(axes @ axes.T, np.eye(channels), atol=1e-12)
  along = colors @ axes.T
  moments = along.T @ along
  off = moments - np.diag(np.diag(moments))
  assert np.abs(off).max() < 0.02 * np.diag(moments).max()
  assert np.all(np.diff(np.diag(moments)) < 0)
