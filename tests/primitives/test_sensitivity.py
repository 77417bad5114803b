"""Sensitivities, against the picture that the definition gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgvq_jax.methods import codebooks
from cgvq_jax.primitives.sensitivity import sensitivity
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize.reference import rasterize as render

SIZE = 96


def one(first=6.0, second=3.0, rotation=0.4):
  """A Gaussian in the middle, far from the edges."""
  return Gaussians(
    mean_xy=jnp.array([[48.3, 47.6]]),
    log_scale=jnp.log(jnp.array([[first, second]])),
    rotation=jnp.array([rotation]),
    color=jnp.array([[0.5, -0.2, 0.9]]),
  )


def whole_picture(gaussian):
  """One Gaussian in float64, without the cutoff, which would jump as it moves."""
  g = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64)[0], gaussian)
  y, x = np.mgrid[:SIZE, :SIZE] + 0.5
  dx, dy = x - g.mean_xy[0], y - g.mean_xy[1]
  cosine, sine = np.cos(g.rotation), np.sin(g.rotation)
  first, second = np.exp(g.log_scale)
  q = ((dx * cosine + dy * sine) / first) ** 2 + ((dy * cosine - dx * sine) / second) ** 2
  return np.exp(-q / 2)[..., None] * g.color


@pytest.mark.parametrize('name', ['mean_xy', 'log_scale', 'rotation', 'color'])
@pytest.mark.parametrize('shape', [(6.0, 3.0, 0.4), (2.5, 9.0, -1.1)])
def test_a_small_change_adds_the_sensitivity_times_its_square(name, shape):
  gaussians = one(*shape)
  want = getattr(sensitivity(gaussians), name)
  flat, size = np.asarray(getattr(gaussians, name), np.float64).ravel(), 1e-3
  for index in range(flat.size):
    pictures = []
    for sign in (-0.5, 0.5):
      moved = flat + sign * size * (np.arange(flat.size) == index)
      moved = moved.reshape(getattr(gaussians, name).shape)
      pictures.append(whole_picture(gaussians.replace(**{name: moved})))
    cost = np.sum(np.square(pictures[1] - pictures[0]))
    np.testing.assert_allclose(cost / size**2, want.ravel()[index], rtol=1e-4)


def test_equal_slope_steps_add_the_share_they_are_given():
  # Positions rounded at random to their own steps: their mean cost is POSITION_SHARE of the error.
  gaussians = jax.tree.map(
    lambda *leaves: jnp.concatenate(leaves), one(), one(3.0, 8.0, 1.0), one(4.0, 4.0, 0.0)
  )
  size, error = jnp.array([SIZE, SIZE], jnp.float32), jnp.array(2.0)
  steps = codebooks.equal_slope_steps(gaussians, size, error).position * size / 2  # px
  keys, costs = jax.random.split(jax.random.key(0), 60), []
  for i in range(3):
    alone = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], gaussians)
    before = render(alone, SIZE, SIZE)
    for key in keys:
      moved = alone.mean_xy + jax.random.uniform(key, (1, 2), minval=-0.5, maxval=0.5) * steps[i]
      after = render(alone.replace(mean_xy=moved), SIZE, SIZE)
      costs.append(float(jnp.sum(jnp.square(after - before))))
  assert np.sum(costs) / len(keys) == pytest.approx(codebooks.POSITION_SHARE * 2.0, rel=0.2)


def test_an_invisible_gaussian_may_have_any_steps():
  black = one().replace(color=jnp.zeros((1, 3)))
  steps = codebooks.equal_slope_steps(black, jnp.array([96.0, 96.0]), jnp.array(1.0))
  for leaf in jax.tree.leaves(steps):
    assert np.all(np.isfinite(leaf))
  assert np.all(steps.position > 1e3)
