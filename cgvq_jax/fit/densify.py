"""Densification: adding and relocating Gaussians during a fit, by matching pursuit on the residual.

A fit starts with few active Gaussians; the others of its arrays are inactive. Between blocks of
steps the residual is searched for the discs and ellipses that would reduce it most, and the
Gaussians with the smallest contribution are relocated there, inactive ones first. The gain of a new
Gaussian and the contribution of an old one are both squared errors, so they can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from cgvq_jax import devices
from cgvq_jax.extensions import Registry
from cgvq_jax.fit.stages import BLOCK_STEPS, FitState
from cgvq_jax.primitives.geometry import CUTOFF_RADIUS, covariance, energy
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize.api import rasterize

# The shapes to search for, at each level of a pyramid of halved residuals: standard deviations of
# _SCALE sqrt(e) and _SCALE / sqrt(e) px for each elongation e, in _DIRECTIONS directions.
_SCALE, _ELONGATIONS, _DIRECTIONS = 0.75, (1.0, 2.0), 4
_LEVELS = 5  # up to 0.75 * 2^4 = 12 px
# Squared error, summed over samples: a gain below one grey level of one sample is noise.
MIN_GAIN = 1 / 255**2
_MIN_SEARCHES = 4  # that growth takes


class Candidates(NamedTuple):
  """A Gaussian that could be added for each position of the pyramid, and its gain."""

  gain: Float[Array, 'M']  # summed squared error that it removes; 0 next to a better candidate
  gaussians: Gaussians


@lru_cache
def _shapes() -> tuple[np.ndarray, np.ndarray]:
  """[F, 3] s1, s2 (px), rotation; and their weights on pixels, [F, S, S]."""
  shapes = [
    (_SCALE * math.sqrt(e), _SCALE / math.sqrt(e), math.pi * k / _DIRECTIONS)
    for e in _ELONGATIONS
    for k in range(_DIRECTIONS if e > 1 else 1)
  ]
  radius = math.ceil(2.7 * _SCALE * math.sqrt(max(_ELONGATIONS)))
  y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
  s1, s2, rotation = np.array(shapes).T[:, :, None, None]
  cos, sin = np.cos(rotation), np.sin(rotation)
  u, v = cos * x + sin * y, cos * y - sin * x
  weights = np.exp(-((u / s1) ** 2 + (v / s2) ** 2) / 2)
  return np.array(shapes, np.float32), weights.astype(np.float32)


def _even(image: Array) -> Array:
  """[H, W, ...] padded with zeros to even sides."""
  height, width = image.shape[:2]
  return jnp.pad(image, [(0, height % 2), (0, width % 2)] + [(0, 0)] * (image.ndim - 2))


def _halved(image: Array, of_four: Callable[..., Array]) -> Array:
  """[H, W, ...] -> [H/2, W/2, ...]: `of_four` (a sum, a maximum) of each 2 x 2 pixels."""
  image = _even(image)
  height, width, *rest = image.shape
  return of_four(image.reshape(height // 2, 2, width // 2, 2, *rest), axis=(1, 3))


def _doubled(image: Float[Array, 'h w'], like: Float[Array, 'H W']) -> Float[Array, 'H W']:
  height, width = like.shape
  return jnp.repeat(jnp.repeat(image, 2, axis=0), 2, axis=1)[:height, :width]


def _matched(residual: Float[Array, 'H W C']):
  """The best shape centred on each pixel of a level: gain [H, W], colour [H, W, C], index [H, W].

  With r the residual, the best colour of a weight w is <r, w> / <w, w>, and its gain
  |<r, w>|^2 / <w, w>, summed over channels (Mallat & Zhang 1993, eq. 14).
  """
  _, weights = _shapes()
  energy = jnp.asarray(np.sum(weights**2, axis=(1, 2)))
  product = lax.conv_general_dilated(
    jnp.moveaxis(residual, -1, 0)[:, None],
    jnp.asarray(weights)[:, None],
    (1, 1),
    'SAME',
    precision='highest',
  )  # [C, F, H, W]
  gains = jnp.sum(product**2, axis=0) / energy[:, None, None]
  which = jnp.argmax(gains, axis=0)
  best = jnp.take_along_axis(product, which[None, None], axis=1)[:, 0]
  return jnp.max(gains, axis=0), jnp.moveaxis(best, 0, -1) / energy[which][..., None], which


def candidates(residual: Float[Array, 'H W C']) -> Candidates:
  """The Gaussians that would reduce a residual most, each the best of those near its position."""
  shapes, _ = _shapes()
  levels, gains = [], []
  for level in range(min(_LEVELS, 1 + int(math.log2(min(residual.shape[:2]))))):
    # A pixel here is a sum of 4^level pixels: <r, w> is as at full size, <w, w> 4^level times less.
    gain, color, which = _matched(residual)
    gains.append(gain / 4**level)
    y, x = jnp.indices(which.shape)
    shape = jnp.asarray(shapes)[which]
    levels.append(
      Gaussians(
        mean_xy=(jnp.stack([x, y], axis=-1) + 0.5) * 2.0**level,
        log_scale=jnp.log(shape[..., :2] * 2**level),
        rotation=shape[..., 2],
        color=color / 4**level,
      )
    )
    residual = _halved(residual, jnp.sum)
  best = [jnp.where(_is_best(gains, level), gain, 0) for level, gain in enumerate(gains)]
  levels = [jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), level) for level in levels]
  return Candidates(
    jnp.concatenate([gain.ravel() for gain in best]),
    jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *levels),
  )


def _is_best(gains: list[Array], level: int) -> Bool[Array, 'h w']:
  """Where no gain of any level is larger within a pixel of this one."""
  finer, coarser = gains[0], gains[-1]
  for gain in gains[1 : level + 1]:
    finer = jnp.maximum(_halved(finer, jnp.max), gain)
  for gain in gains[-2 : level - len(gains) - 1 : -1]:
    coarser = jnp.maximum(_doubled(coarser, gain), gain)
  own = gains[level]
  around = lax.reduce_window(jnp.maximum(finer, coarser), -jnp.inf, lax.max, (3, 3), (1, 1), 'SAME')
  return own >= around


def contribution(gaussians: Gaussians, height: int, width: int) -> Float[Array, 'N']:
  """The squared error that the removal of a Gaussian adds to a picture it is fitted to.

  |c|^2 pi s1 s2, and 0 where it lies outside of the picture. An upper bound, since its neighbours
  would make up for a part after some steps.
  """
  variance = covariance(gaussians.log_scale, gaussians.rotation)
  extent = CUTOFF_RADIUS * jnp.sqrt(variance[:, ::2])
  size = jnp.array([width, height])
  seen = (gaussians.mean_xy + extent > 0) & (gaussians.mean_xy - extent < size)
  return jnp.where(jnp.all(seen, axis=-1), energy(gaussians), 0.0)


def relocate(
  state: FitState,
  residual: Float[Array, 'H W C'],
  min_gain: float = MIN_GAIN,
  *,
  most: int,
  ratio: float,
) -> FitState:
  """Relocates up to `most` Gaussians, those of the smallest contribution, to the best candidates.

  The Gaussian with the i-th smallest contribution takes the place of the i-th best candidate if the
  candidate's gain exceeds `min_gain` (squared error, summed) and `ratio` times the contribution.
  `ratio` may be below 1, since later steps increase the gain and reduce the loss. The optimizer's
  state is reset to 0 for those that moved.
  """
  height, width, _ = residual.shape
  gaussians: Gaussians = state.params
  found = candidates(residual)
  most = min(most, gaussians.num_gaussians, found.gain.size)
  gain, place = lax.top_k(found.gain, most)
  loss, who = lax.top_k(-contribution(gaussians, height, width), most)
  improves = gain > jnp.maximum(-ratio * loss, min_gain)
  who = jnp.where(improves, who, gaussians.num_gaussians)  # beyond the last: dropped

  def put(old, new):
    return old.at[who].set(new, mode='drop')

  def reset(leaf):
    return put(leaf, 0) if leaf.shape[:1] == gaussians.rotation.shape else leaf

  return replace(
    state,
    params=jax.tree.map(put, gaussians, jax.tree.map(lambda a: a[place], found.gaussians)),
    optimizer=jax.tree.map(reset, state.optimizer),
  )


@lru_cache
def _relocate_program():
  # Not at import: the options depend on the backend.
  return jax.jit(relocate, static_argnames='most', compiler_options=devices.compiler_options())


# (state after a block, target) -> the state to go on from, of the same shapes.
Between = Callable[[FitState, Float[Array, 'H W C']], FitState]


class Densifier(NamedTuple):
  """How the number of active Gaussians grows in a fit of N."""

  first: Callable[[int], int]  # N -> the number of active Gaussians at the start, 1 or more
  between: Between | None  # changes the state between blocks of steps


@lru_cache
def matching_pursuit(
  steps: int,
  min_gain: float = MIN_GAIN,
  *,
  first_share: float = 0.1,
  grown: float = 0.4,
  until: float = 0.85,
  ratio: float = 0.3,
) -> Densifier:
  """Starts with `first_share` of the Gaussians active, and activates the others by `grown` of
  `steps`. From then until `until` of `steps` it relocates those with the smallest contributions.

  A fit with too few steps to grow starts with all. No Gaussian is placed where the gain is below
  `min_gain`, squared error; for `ratio` see `relocate`.
  """
  rounds = max(round(grown * steps / BLOCK_STEPS), 1)
  # One search finds no two places close together, so growth takes a few.
  share = first_share if until * steps >= _MIN_SEARCHES * BLOCK_STEPS else 1.0

  def first(num_gaussians: int) -> int:
    return max(round(share * num_gaussians), 1)

  def between(state: FitState, target: Float[Array, 'H W C']) -> FitState:
    if int(state.step) > until * steps:
      return state
    height, width, _ = target.shape
    count = state.params.num_gaussians
    residual = target - jnp.clip(rasterize(state.params, height, width), 0.0, 1.0)
    most = max(math.ceil((1 - first_share) * count / rounds), 1)
    return _relocate_program()(state, residual, jnp.float32(min_gain), most=most, ratio=ratio)

  return Densifier(first, between)


def none(steps: int, min_gain: float = MIN_GAIN) -> Densifier:
  """No densification: all Gaussians are active from the start, none is relocated."""
  del steps, min_gain
  return Densifier(lambda num_gaussians: num_gaussians, None)


def with_inactive(gaussians: Gaussians, num_gaussians: int) -> Gaussians:
  """The Gaussians, padded with inactive ones to `num_gaussians`."""
  more = inactive(num_gaussians - gaussians.num_gaussians, gaussians.num_channels)
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), gaussians, more)


def inactive(count: int, channels: int) -> Gaussians:
  """`count` black Gaussians outside of the picture: in no tile's list, until they are relocated."""
  return Gaussians(
    mean_xy=jnp.full((count, 2), -1e3, jnp.float32),  # a weak type would be another program
    log_scale=jnp.zeros((count, 2)),
    rotation=jnp.zeros(count),
    color=jnp.zeros((count, channels)),
  )


def without_inactive(gaussians: Gaussians) -> Gaussians:
  """The active Gaussians, or the first one where all are inactive."""
  active = np.any(np.asarray(gaussians.color) != 0, axis=-1)
  active[0] |= not np.any(active)
  return jax.tree.map(lambda a: a[active], gaussians)


DENSIFIERS = Registry('densifier', {'matching_pursuit': matching_pursuit, 'none': none})
