"""How a gradient becomes a step: Adam, in each Gaussian's own frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cgvq_jax.types import Gaussians

# Below this, what a Gaussian's rotation does is too little to measure its steps by.
_ROUND = 0.3


def rates(mean_xy: float, log_scale: float, rotation: float, color: float) -> Any:
  """Learning rates, one an attribute; within `own_frame` in standard deviations, log px, shear
  (below) and colour a step."""
  each: dict[str, Any] = {'mean_xy': mean_xy, 'log_scale': log_scale}
  return Gaussians(**each, rotation=rotation, color=color)  # pyright: ignore[reportArgumentType]


RATES = rates(mean_xy=0.1, log_scale=0.05, rotation=0.05, color=0.005)
# The best of some for those that others are compared with.
_RATES_IN_PIXELS = rates(mean_xy=0.4, log_scale=0.05, rotation=0.05, color=0.005)
_RATES_OF_ADAN = rates(mean_xy=0.2, log_scale=0.1, rotation=0.1, color=0.01)


def _of_gaussians(function: Callable[..., Gaussians], tree: Any, *others: Any) -> Any:
  """Applies a function to the Gaussians of a tree, and nothing to its other leaves."""

  def each(leaf, *leaves):
    return function(leaf, *leaves) if isinstance(leaf, Gaussians) else leaf

  return jax.tree.map(each, tree, *others, is_leaf=lambda leaf: isinstance(leaf, Gaussians))


def _along(vector, rotation):
  """A vector's components along axes that are turned by `rotation`."""
  x, y = vector[..., 0], vector[..., 1]
  cosine, sine = jnp.cos(rotation), jnp.sin(rotation)
  return jnp.stack([cosine * x + sine * y, cosine * y - sine * x], axis=-1)


def _units(at: Gaussians):
  """What one unit of the own frame is: of the mean along each axis, px, and of the rotation."""
  scale = jnp.exp(at.log_scale)
  ratio = scale[..., 0] / scale[..., 1]
  shear = (ratio - 1 / ratio) / 2
  return scale, 1 / jnp.sqrt(shear**2 + _ROUND**2)


def own_frame(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Lets `inner` see each Gaussian as the unit disc: lengths along its axes in its own standard
  deviations, rotations by how far they shear it.

  A mean's gradient becomes diag(s1, s2) R(r)^T g, its step R(r) diag(s1, s2) u. In the pixels'
  frame Adam gives x and y of a long oblique Gaussian one step, far too short along it and too long
  across. A turn by dr shears the disc by (s1/s2 - s2/s1)/2 dr, whose error counts as a mean's does
  (`curvature`); for a round one that tells nothing, so the unit is bounded.
  """

  def to_frame(gradient: Gaussians, at: Gaussians) -> Gaussians:
    scale, turn = _units(at)
    mean = _along(gradient.mean_xy, at.rotation) * scale
    return replace(gradient, mean_xy=mean, rotation=gradient.rotation * turn)

  def from_frame(update: Gaussians, at: Gaussians) -> Gaussians:
    scale, turn = _units(at)
    mean = _along(update.mean_xy * scale, -at.rotation)
    return replace(update, mean_xy=mean, rotation=update.rotation * turn)

  def update(updates, state, params=None):
    if params is None:
      raise ValueError('own_frame: wanted the params, which the frames are taken from, got None')
    updates, state = inner.update(_of_gaussians(to_frame, updates, params), state, params)
    return _of_gaussians(from_frame, updates, params), state

  return optax.GradientTransformation(inner.init, update)


def pixel_frame(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Means in px along x and y, rotations in radians: what the papers do."""
  return inner


@lru_cache
def adam(
  steps: int = 1000,
  rates: Any = None,
  *,
  b1: float = 0.9,
  b2: float = 0.985,
  final: float = 0.1,
  frame: Callable[[optax.GradientTransformation], optax.GradientTransformation] = own_frame,
  preconditioner: Callable[[], optax.GradientTransformation] | None = None,
) -> optax.GradientTransformation:
  """Adam with one learning rate an attribute and a cosine decay to `final` of it over `steps`.

  `rates` is a prefix of the parameters' tree (default: RATES), in the units of the `frame`.
  `preconditioner` replaces Adam's scaling (`optax.scale_by_adan` for Adan). Cached, so that equal
  arguments compile once.
  """
  rates = RATES if rates is None else rates
  scaling = preconditioner() if preconditioner else optax.scale_by_adam(b1=b1, b2=b2, eps=1e-15)

  def per_attribute(updates, params):
    del params
    return jax.tree.map(
      lambda rate, subtree: jax.tree.map(lambda u: rate * u, subtree), rates, updates
    )

  schedule = optax.cosine_decay_schedule(-1.0, steps, alpha=final)
  chain = optax.chain(scaling, optax.stateless(per_attribute), optax.scale_by_schedule(schedule))
  return frame(chain)


@lru_cache
def adam_in_pixels(steps: int = 1000) -> optax.GradientTransformation:
  """Adam as most use it: steps in px along x and y, and in radians."""
  return adam(steps, _RATES_IN_PIXELS, frame=pixel_frame)


@lru_cache
def adan(steps: int = 1000) -> optax.GradientTransformation:
  """`adam` with Adan's scaling (Xie et al. 2022) in place of Adam's."""
  return adam(steps, _RATES_OF_ADAN, preconditioner=optax.scale_by_adan)


@lru_cache
def papers_adan(
  steps: int = 1000, *, rate: float = 1e-3, halved_every: int = 20_000
) -> optax.GradientTransformation:
  """GaussianImage's released optimizer: Adan at 1e-3 for all, halved every 20,000 steps."""
  del steps
  return optax.adan(optax.exponential_decay(rate, halved_every, 0.5, staircase=True))


OPTIMIZERS = {
  'adam': adam,
  'adam_in_pixels': adam_in_pixels,
  'adan': adan,
  'papers_adan': papers_adan,
}
