"""Covariances and whitenings against NumPy's matrices, and the clamping of the scales."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgvq_jax.primitives import geometry
from cgvq_jax.primitives.sensitivity import sensitivity
from cgvq_jax.primitives.trees import Gaussians

RNG = np.random.default_rng(0)
LOG_SCALE = np.log(RNG.uniform(0.3, 8, (50, 2))).astype(np.float32)
ROTATION = RNG.uniform(-7, 7, 50).astype(np.float32)
FUNCTIONS = [geometry.covariance, geometry.whitening]


def matrices(triples):
  """[xx, xy, yy] as symmetric matrices [..., 2, 2], float64."""
  xx, xy, yy = np.moveaxis(np.asarray(triples, np.float64), -1, 0)
  return np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2)


def rotated(diagonal, rotation):
  """R diag R^T by matrix products, float64."""
  cosine, sine = np.cos(rotation, dtype=np.float64), np.sin(rotation, dtype=np.float64)
  matrix = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)
  return matrix @ (diagonal[..., None] * np.swapaxes(matrix, -1, -2))


def test_cutoff_is_a_weight_of_one_in_255():
  assert math.exp(-geometry.CUTOFF) == pytest.approx(1 / 255)
  # At so many standard deviations from the mean.
  assert math.exp(-(geometry.CUTOFF_RADIUS**2) / 2) == pytest.approx(1 / 255)


def test_covariance_is_the_rotated_square_of_the_standard_deviations():
  want = rotated(np.exp(2 * LOG_SCALE.astype(np.float64)), ROTATION)
  got = matrices(geometry.covariance(LOG_SCALE, ROTATION))
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_covariance_has_the_variances_as_eigenvalues_and_the_rotation_as_direction():
  sigma = matrices(geometry.covariance(LOG_SCALE, ROTATION))
  values, vectors = np.linalg.eigh(sigma)
  np.testing.assert_allclose(values, np.sort(np.exp(2 * LOG_SCALE), axis=1), rtol=1e-4)
  first_axis = np.stack([np.cos(ROTATION), np.sin(ROTATION)], -1)
  longest = np.where(LOG_SCALE[:, :1] > LOG_SCALE[:, 1:], vectors[:, :, 1], vectors[:, :, 0])
  np.testing.assert_allclose(np.abs(np.sum(first_axis * longest, -1)), 1, atol=1e-4)


def test_whitening_maps_the_ellipse_onto_a_circle():
  a, b, c = np.asarray(geometry.whitening(LOG_SCALE, ROTATION)).T
  white = np.stack([a, b, 0 * a, c], axis=-1).reshape(-1, 2, 2)
  sigma = matrices(geometry.covariance(LOG_SCALE, ROTATION))
  circle = white @ sigma @ white.transpose(0, 2, 1)
  np.testing.assert_allclose(circle, np.broadcast_to(np.eye(2) / 2, (50, 2, 2)), atol=2e-4)


def test_half_turn_and_swapped_axes_describe_the_same_ellipse():
  same = geometry.covariance(LOG_SCALE, ROTATION)
  atol = 1e-5 * np.abs(same).max()
  for log_scale, angle in ((LOG_SCALE, np.pi), (LOG_SCALE[:, ::-1], np.pi / 2)):
    same_ellipse = geometry.covariance(log_scale, ROTATION + angle)
    np.testing.assert_allclose(same_ellipse, same, atol=atol)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_leading_axes_are_batches(function):
  batched = function(LOG_SCALE.reshape(5, 10, 2), ROTATION.reshape(5, 10))
  assert batched.shape[:2] == (5, 10)
  np.testing.assert_array_equal(batched.reshape(50, -1), function(LOG_SCALE, ROTATION))


def test_squared_distance_is_half_the_mahalanobis_distance():
  offset = RNG.uniform(-5, 5, (50, 2)).astype(np.float32)
  inverse = np.linalg.inv(matrices(geometry.covariance(LOG_SCALE, ROTATION)).astype(np.float64))
  want = np.einsum('ni,nij,nj->n', offset, inverse, offset) / 2
  got = geometry.squared_distance(geometry.whitening(LOG_SCALE, ROTATION).T, *offset.T)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_scales_are_clamped_and_everything_stays_finite():
  log_scale = jnp.array([[-1e3, 1e3], [-200.0, -20.0], [20.0, 200.0], [0.0, 0.5]])
  deviations = np.asarray(geometry.standard_deviations(log_scale))
  low, high = geometry.MIN_SCALE, geometry.MAX_SCALE
  want = [[low, high], [low, low], [high, high], [1, math.exp(0.5)]]
  np.testing.assert_allclose(deviations, want, rtol=1e-5)
  for function in FUNCTIONS:
    assert np.all(np.isfinite(function(log_scale, jnp.array([0.3, 1.0, 2.0, 3.0]))))


@pytest.mark.parametrize('function', FUNCTIONS)
def test_gradient_is_zero_where_clamped_and_finite_anywhere(function):
  log_scale = jnp.array([[-30.0, 0.2], [0.1, 30.0], [-30.0, 30.0]])

  def trace(log_scale, rotation):
    triples = function(log_scale, rotation)
    return jnp.sum(triples[:, 0] + triples[:, 2])

  by_scale, by_rotation = jax.grad(trace, argnums=(0, 1))(log_scale, jnp.array([0.3, 1.0, 2.0]))
  assert np.all(np.isfinite(by_rotation))
  np.testing.assert_array_equal(np.asarray(by_scale) == 0, [[1, 0], [0, 1], [1, 1]])


def random_gaussians() -> Gaussians:
  color = RNG.normal(size=(50, 3)).astype(np.float32)
  return Gaussians(RNG.uniform(0, 90, (50, 2)).astype(np.float32), LOG_SCALE, ROTATION, color)


@pytest.mark.parametrize('function', [geometry.canonical, geometry.energy, sensitivity])
def test_numpy_and_jax_arrays_give_the_same_numbers(function):
  gaussians = random_gaussians()
  want = function(gaussians)
  got = jax.jit(function)(gaussians)
  for ours, theirs in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    assert isinstance(ours, np.ndarray) and ours.dtype == theirs.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize('function', FUNCTIONS)
def test_numpy_and_jax_arrays_give_the_same_shapes(function):
  want = function(LOG_SCALE, ROTATION)
  got = jax.jit(function)(LOG_SCALE, ROTATION)
  assert isinstance(want, np.ndarray) and want.dtype == got.dtype == np.float32
  np.testing.assert_allclose(want, got, rtol=1e-4, atol=1e-6 * np.abs(want).max())


def test_energy_is_the_squared_error_of_the_absence():
  one = Gaussians(
    mean_xy=np.array([[40.0, 40.0]]),
    log_scale=np.log([[5.0, 3.0]]),
    rotation=np.zeros(1),
    color=np.array([[0.5, -0.25]]),
  )
  y, x = np.mgrid[:80, :80] + 0.5
  weight = np.exp(-(((x - 40) / 5) ** 2 + ((y - 40) / 3) ** 2) / 2)
  np.testing.assert_allclose(geometry.area(one.log_scale), [[np.sum(weight**2)]], rtol=1e-6)
  error = np.sum((weight[..., None] * one.color) ** 2)
  np.testing.assert_allclose(geometry.energy(one), [error], rtol=1e-6)
