"""Optimizers: Adam and Adan, with one rate per attribute, in each Gaussian's own frame or in px."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cgvq_jax.extensions import Registry
from cgvq_jax.primitives.trees import Gaussians

# Bounds the unit of rotation (radians per unit shear), which is infinite for a round Gaussian.
_MIN_SHEAR = 0.3


def rates(mean_xy: float, log_scale: float, rotation: float, color: float) -> Any:
  """One learning rate per attribute. Within `own_frame` a step is in standard deviations, log px,
  shear (see there) and colour."""
  each: dict[str, Any] = {'mean_xy': mean_xy, 'log_scale': log_scale}
  return Gaussians(**each, rotation=rotation, color=color)  # pyright: ignore[reportArgumentType]


RATES = rates(mean_xy=0.1, log_scale=0.05, rotation=0.05, color=0.005)
# The best of a few values that were tried, for the optimizers that `adam` is compared with.
_RATES_IN_PIXELS = rates(mean_xy=0.4, log_scale=0.05, rotation=0.05, color=0.005)
_RATES_OF_ADAN = rates(mean_xy=0.4, log_scale=0.2, rotation=0.2, color=0.02)
# 1e-3 in the parameters of GaussianImage's released code (rotation-scale variant), converted to
# ours. Its parameters are the inverse hyperbolic tangent of a mean in -1..1 from edge to edge (here
# the average over 768 x 512 px), a scale in px, the logit of r / 2 pi, and the colour itself.
_RATES_OF_PAPERS = rates(mean_xy=0.2, log_scale=1e-3, rotation=1.4e-3, color=1e-3)


def _of_gaussians(function: Callable[..., Gaussians], tree: Any, *others: Any) -> Any:
  """Applies a function to each `Gaussians` of a tree and leaves the other leaves as they are."""

  def each(leaf, *leaves):
    return function(leaf, *leaves) if isinstance(leaf, Gaussians) else leaf

  return jax.tree.map(each, tree, *others, is_leaf=lambda leaf: isinstance(leaf, Gaussians))


def _along(vector, rotation):
  """A vector's components along axes that are rotated by `rotation`."""
  x, y = vector[..., 0], vector[..., 1]
  cosine, sine = jnp.cos(rotation), jnp.sin(rotation)
  return jnp.stack([cosine * x + sine * y, cosine * y - sine * x], axis=-1)


def _units(at: Gaussians):
  """The units of the own frame: [N, 2] px for the mean along each axis, [N] radians for the
  rotation."""
  scale = jnp.exp(at.log_scale)
  ratio = scale[..., 0] / scale[..., 1]
  shear = (ratio - 1 / ratio) / 2
  return scale, 1 / jnp.sqrt(shear**2 + _MIN_SHEAR**2)


def _framed(
  name: str,
  inner: optax.GradientTransformation,
  of_gradients: Callable[[Gaussians, Gaussians], Gaussians],
  of_steps: Callable[[Gaussians, Gaussians], Gaussians],
) -> optax.GradientTransformation:
  """`inner` in other coordinates: `of_gradients(gradient, params)` is its input, and its output is
  mapped back by `of_steps(step, params)`."""

  def update(updates, state, params=None):
    if params is None:
      raise ValueError(f'{name}: wanted the params, which define its coordinates, got None')
    updates, state = inner.update(_of_gaussians(of_gradients, updates, params), state, params)
    return _of_gaussians(of_steps, updates, params), state

  return optax.GradientTransformation(inner.init, update)


def own_frame(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Runs `inner` in coordinates in which each Gaussian is the unit disc: lengths along its axes in
  its own standard deviations, rotations as the shear that they cause.

  A mean's gradient becomes diag(s1, s2) R(r)^T g, its step R(r) diag(s1, s2) u. In the pixels'
  frame Adam takes equal steps in x and y for a long oblique Gaussian, far too short along it and
  too long across. A rotation by dr shears the disc by (s1/s2 - s2/s1)/2 dr, and a shear causes an
  error like that of a shift of the mean (see `sensitivity`). The shear of a round Gaussian is 0
  for any rotation, so the unit is bounded.
  """

  def to_frame(gradient: Gaussians, at: Gaussians) -> Gaussians:
    scale, angle = _units(at)
    mean = _along(gradient.mean_xy, at.rotation) * scale
    return replace(gradient, mean_xy=mean, rotation=gradient.rotation * angle)

  def from_frame(update: Gaussians, at: Gaussians) -> Gaussians:
    scale, angle = _units(at)
    mean = _along(update.mean_xy * scale, -at.rotation)
    return replace(update, mean_xy=mean, rotation=update.rotation * angle)

  return _framed('own_frame', inner, to_frame, from_frame)


def pixel_frame(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Means in px along x and y, rotations in radians, as in the papers."""
  return inner


def _per_attribute(rates: Any) -> optax.GradientTransformation:
  """Multiplies each subtree by its rate."""

  def scaled(updates, params):
    del params
    return jax.tree.map(
      lambda rate, subtree: jax.tree.map(lambda u: rate * u, subtree), rates, updates
    )

  return optax.stateless(scaled)


class _DecayState(NamedTuple):
  count: jax.Array  # steps taken
  steps: jax.Array  # of the decay


def _scale_by_cosine_decay(steps: int, final: float) -> optax.GradientTransformation:
  """Minus a cosine decay from 1 to `final` over `steps` (Loshchilov and Hutter 2017, eq. 5).

  The number of steps is part of the state, so that fits of any length share a program.
  """

  def init(params):
    del params
    return _DecayState(jnp.zeros((), jnp.int32), jnp.full((), steps, jnp.int32))

  def update(updates, state, params=None):
    del params
    done = jnp.minimum(state.count / state.steps, 1.0)
    factor = final + (1 - final) * (1 + jnp.cos(jnp.pi * done)) / 2
    state = state._replace(count=state.count + 1)
    return jax.tree.map(lambda u: -factor * u, updates), state

  return optax.GradientTransformation(init, update)


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
  """Adam with one learning rate per attribute and a cosine decay to `final` of it over `steps`.

  `rates` is a prefix of the parameters' tree (default: RATES), in the units of the `frame`.
  `preconditioner` replaces Adam's scaling, as `scale_by_adan` does. Optimizers that differ in
  `steps` alone have the same `update`, and so share the programs that it is part of.
  """
  rates = RATES if rates is None else rates
  one = _adam(1, rates, b1, b2, final, frame, preconditioner)
  return _adam(steps, rates, b1, b2, final, frame, preconditioner)._replace(update=one.update)


@lru_cache
def _adam(steps, rates, b1, b2, final, frame, preconditioner) -> optax.GradientTransformation:
  scaling = preconditioner() if preconditioner else optax.scale_by_adam(b1=b1, b2=b2, eps=1e-15)
  return frame(optax.chain(scaling, _per_attribute(rates), _scale_by_cosine_decay(steps, final)))


@lru_cache
def adam_in_pixels(steps: int = 1000) -> optax.GradientTransformation:
  """Adam as usual: steps in px along x and y, and in radians."""
  return adam(steps, _RATES_IN_PIXELS, frame=pixel_frame)


class _AdanState(NamedTuple):
  mean: Any  # of the gradient
  difference: Any  # mean difference of consecutive gradients
  square: Any
  last: Any  # gradient
  count: jax.Array


def scale_by_adan(
  b1: float = 0.98, b2: float = 0.92, b3: float = 0.99, eps: float = 1e-15
) -> optax.GradientTransformation:
  """Adan (Xie et al. 2022, algorithm 1) in the convention of its released code.

      m = ema(g, b1),  v = ema(d, b2),  n = ema((g + b2 d)^2, b3),  d = g - g_last
      step = (m + b2 v) / (sqrt(n) + eps), each average corrected for its start

  Optax 0.2.8 weights the differences by 1 - b2, which is 0.08 where the algorithm has 0.92.
  """

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return _AdanState(zeros, zeros, zeros, zeros, jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    del params
    mean, difference, square, last, count = state

    def average(decay, old, new):
      return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, old, new)

    change = jax.tree.map(lambda g, last: jnp.where(count > 0, g - last, 0), updates, last)
    ahead = jax.tree.map(lambda g, d: jnp.square(g + b2 * d), updates, change)
    mean, difference = average(b1, mean, updates), average(b2, difference, change)
    square, count = average(b3, square, ahead), count + 1
    share_1, share_2, share_3 = (1 - jnp.float32(b) ** count for b in (b1, b2, b3))
    steps = jax.tree.map(
      lambda m, v, n: (m / share_1 + b2 * v / share_2) / (jnp.sqrt(n / share_3) + eps),
      mean,
      difference,
      square,
    )
    return steps, _AdanState(mean, difference, square, updates, count)

  return optax.GradientTransformation(init, update)


@lru_cache
def adan(steps: int = 1000) -> optax.GradientTransformation:
  """`adam` with Adan's scaling in place of Adam's."""
  return adam(steps, _RATES_OF_ADAN, preconditioner=scale_by_adan)


# px; a step in px may lead to 0 or below.
_MIN_SCALE = 0.01


def plain_scales(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Runs `inner` on standard deviations in px instead of their logarithms; none falls to 0."""

  def in_pixels(gradient: Gaussians, at: Gaussians) -> Gaussians:
    return replace(gradient, log_scale=gradient.log_scale / jnp.exp(at.log_scale))

  def in_logs(step: Gaussians, at: Gaussians) -> Gaussians:
    scale = jnp.maximum(jnp.exp(at.log_scale) + step.log_scale, _MIN_SCALE)
    return replace(step, log_scale=jnp.log(scale) - at.log_scale)

  return _framed('plain_scales', inner, in_pixels, in_logs)


@lru_cache
def papers_adan(steps: int = 1000, *, halved_every: int = 20_000) -> optax.GradientTransformation:
  """The optimizer of GaussianImage's released code: Adan with a rate of 1e-3 for all parameters,
  halved every `halved_every` steps, in the units of its own parameters."""
  del steps
  schedule = optax.exponential_decay(-1.0, halved_every, 0.5, staircase=True)
  each = _per_attribute(_RATES_OF_PAPERS)
  return plain_scales(optax.chain(scale_by_adan(), each, optax.scale_by_schedule(schedule)))


OPTIMIZERS = Registry(
  'optimizer',
  {
    'adam': adam,
    'adam_in_pixels': adam_in_pixels,
    'adan': adan,
    'papers_adan': papers_adan,
  },
)
