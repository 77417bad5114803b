"""Optimizers: rates, schedules, and the steps in each Gaussian's own frame."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import raster_scenes

from cgvq_jax.fit import optimizers
from cgvq_jax.methods import codebooks
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize.api import rasterize

ATTRIBUTES = ('mean_xy', 'log_scale', 'rotation', 'color')


def first_updates(optimizer, steps=1):
  """Updates of each step under a constant gradient of mixed signs, of a disc of 1 px."""
  params = jax.tree.map(jnp.zeros_like, raster_scenes.one_gaussian().gaussians)
  gradient = jax.tree.map(lambda p: 3 * (-1.0) ** jnp.arange(p.size).reshape(p.shape), params)
  state, updates_of_steps = optimizer.init(params), []
  update = jax.jit(optimizer.update)
  for _ in range(steps):
    updates, state = update(gradient, state, params)
    updates_of_steps.append(updates)
  return updates_of_steps


@pytest.mark.parametrize('frame', [optimizers.own_frame, optimizers.pixel_frame])
@pytest.mark.parametrize(
  'rates', [None, Gaussians(mean_xy=0.5, log_scale=0.0, rotation=0.25, color=2.0)]
)
def test_every_attribute_has_its_rate(rates, frame):
  (updates,) = first_updates(optimizers.adam(10, rates, frame=frame))
  # No rotation shears a disc: its unit of rotation is the bound.
  unit = {'rotation': 1 / 0.3} if frame is optimizers.own_frame else {}
  for attribute in ATTRIBUTES:
    update = np.asarray(getattr(updates, attribute))
    want = getattr(rates or optimizers.RATES, attribute) * unit.get(attribute, 1)
    np.testing.assert_allclose(np.abs(update), want, rtol=1e-4)
    if want:
      assert update.ravel()[0] < 0  # against the gradient


def test_rates_decay_along_a_cosine():
  updates = first_updates(optimizers.adam(8, final=0.1), steps=10)
  relative = np.array([u.color[0, 0] for u in updates]) / updates[0].color[0, 0]
  progress = np.minimum(np.arange(10) / 8, 1)
  want = 0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2
  np.testing.assert_allclose(relative, want, rtol=1e-3)


@pytest.mark.parametrize('make', optimizers.OPTIMIZERS.values())
def test_equal_settings_are_one_optimizer(make):
  # A new optimizer compiles the block anew.
  assert make(77) is make(77)
  assert optimizers.adam(77) is not optimizers.adam(78)


def test_the_papers_rate_is_halved_after_equal_numbers_of_steps():
  updates = first_updates(optimizers.papers_adan(1, halved_every=3), steps=7)
  sizes = [abs(float(u.rotation[0])) / 1.4e-3 for u in updates]
  np.testing.assert_allclose(sizes, [1] * 3 + [0.5] * 3 + [0.25], rtol=1e-2)


def test_adan_is_algorithm_1():
  """The paper's own recursion, whose betas are 1 minus ours, on very small gradients."""
  gradients = np.array([3.0, -1.0, 2.0, 0.5]) * 1e-7
  one, two, three = 0.02, 0.08, 0.01
  m = v = n = last = 0.0
  optimizer = optimizers.scale_by_adan()
  state = optimizer.init(jnp.zeros(()))
  for k, g in enumerate(gradients, 1):
    d = g - last if k > 1 else 0.0
    m = (1 - one) * m + one * g
    v = (1 - two) * v + two * d
    n = (1 - three) * n + three * (g + (1 - two) * d) ** 2
    m_hat, v_hat, n_hat = m / (1 - 0.98**k), v / (1 - 0.92**k), n / (1 - 0.99**k)
    want, last = (m_hat + (1 - two) * v_hat) / np.sqrt(n_hat), g
    got, state = optimizer.update(jnp.float32(g), state)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_the_papers_scales_are_in_pixels():
  """One step of 1e-3 px, for a large Gaussian as for a small one."""
  gaussians = ellipse()
  gradient = jax.tree.map(jnp.ones_like, gaussians)
  update = stepped(optimizers.papers_adan(), gaussians, gradient)
  scale = np.exp(gaussians.log_scale)
  np.testing.assert_allclose(scale * np.expm1(update.log_scale), -1e-3, rtol=1e-2)


def test_plain_scales_descend_as_scales_do():
  """Gradient descent: a step in s is proportional to the derivative by s, not by its logarithm."""
  gaussians = ellipse()
  gradient = jax.tree.map(jnp.ones_like, gaussians)
  update = stepped(optimizers.plain_scales(optax.scale(-0.1)), gaussians, gradient)
  scale = np.exp(gaussians.log_scale)
  np.testing.assert_allclose(scale * np.expm1(update.log_scale), -0.1 / scale, rtol=1e-4)


def test_the_papers_scales_do_not_fall_to_0():
  small = replace(ellipse(), log_scale=jnp.full((1, 2), jnp.log(0.0105)))
  gradient = jax.tree.map(jnp.ones_like, small)
  update = stepped(optimizers.papers_adan(), small, gradient)
  np.testing.assert_allclose(np.exp(small.log_scale + update.log_scale), 0.01, rtol=1e-4)


def ellipse(rotation=0.0):
  return Gaussians(
    mean_xy=jnp.array([[32.0, 32.0]]),
    log_scale=jnp.log(jnp.array([[6.0, 1.5]])),
    rotation=jnp.array([rotation], jnp.float32),
    color=jnp.ones((1, 1)),
  )


def stepped(optimizer, gaussians, gradient):
  updates, _ = optimizer.update(gradient, optimizer.init(gaussians), gaussians)
  return updates


def test_a_step_along_an_axis_is_proportional_to_its_standard_deviation():
  """Rotated with the gradient, a Gaussian's step rotates too, and keeps the ratio 6 : 1.5."""
  optimizer = optimizers.adam(10)
  zero = jax.tree.map(jnp.zeros_like, ellipse())
  for rotation in (0.0, 0.4, 2.5):
    cosine, sine = np.cos(rotation), np.sin(rotation)
    across, along = (-sine, cosine), (cosine, sine)
    gradient = zero.replace(mean_xy=jnp.array([np.add(along, across)], jnp.float32))
    update = np.asarray(stepped(optimizer, ellipse(rotation), gradient).mean_xy[0])
    np.testing.assert_allclose(update @ along, -6.0 * optimizers.RATES.mean_xy, rtol=1e-4)
    np.testing.assert_allclose(update @ across, -1.5 * optimizers.RATES.mean_xy, rtol=1e-4)


def test_units_of_the_frame_change_the_picture_equally():
  """Gradient descent with one rate: a step in any coordinate of the frame adds the same error."""
  gaussians = ellipse(0.7)
  image = rasterize(gaussians, 64, 64)
  zero = jax.tree.map(jnp.zeros_like, gaussians)
  inner = optax.scale(-0.05)
  costs = []
  for name, direction in (('mean_xy', (1.0, 0.0)), ('mean_xy', (0.0, 1.0)), ('rotation', 1.0)):
    cosine, sine = np.cos(0.7), np.sin(0.7)
    matrix = np.array([[cosine, -sine], [sine, cosine]])
    unit = matrix @ (np.array(direction) / [6.0, 1.5]) if name == 'mean_xy' else direction
    if name == 'rotation':  # a shear of one
      unit = np.hypot((4 - 0.25) / 2, 0.3)
    value = jnp.asarray(unit, jnp.float32).reshape(getattr(gaussians, name).shape)
    update = stepped(optimizers.own_frame(inner), gaussians, zero.replace(**{name: value}))
    moved = jax.tree.map(jnp.add, gaussians, update)
    costs.append(float(jnp.sum((rasterize(moved, 64, 64) - image) ** 2)))
  # The error of a unit of the mean is |c|^2 A / 2, that of a unit of shear |c|^2 A.
  np.testing.assert_allclose(np.array(costs) / costs[0], [1, 1, 2], rtol=0.08)


@pytest.mark.parametrize('name', ['own_frame', 'plain_scales'])
def test_a_frame_needs_params(name):
  optimizer = getattr(optimizers, name)(optax.identity())
  gaussians = ellipse()
  with pytest.raises(ValueError, match=f'{name}: wanted the params'):
    optimizer.update(gaussians, optimizer.init(gaussians))


def test_the_frame_leaves_other_params_alone():
  optimizer = optimizers.own_frame(optax.identity())
  params = codebooks.Trained(gaussians=ellipse(0.4), quantizers={'step': jnp.array([2.0])})
  gradient = jax.tree.map(jnp.ones_like, params)
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  np.testing.assert_array_equal(updates.quantizers['step'], gradient.quantizers['step'])
  assert not np.allclose(updates.gaussians.mean_xy, gradient.gaussians.mean_xy)
