"""Growing and moving Gaussians while they are fitted: matching pursuit on what is left over.

A fit starts with few Gaussians. Every so often the residual is searched for the discs and ellipses
that explain most of it, and those Gaussians that show least are put there, first of all the ones
that are still asleep. Both sides are squared errors, so they can be compared: what a new Gaussian
would take away against what the old one is worth.
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
from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.primitives.geometry import CUTOFF_RADIUS, covariance
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize.api import rasterize

# Shapes that the residual is searched for, at each level of a pyramid of halved images: standard
# deviations of _SCALE sqrt(e) and _SCALE / sqrt(e) px for each elongation e, in some directions.
_SCALE, _ELONGATIONS, _DIRECTIONS = 0.75, (1.0, 2.0), 4
_LEVELS = 5  # up to 0.75 * 2^4 = 12 px
# Squared error, summed: less than a grey level of one sample is not worth a Gaussian.
MIN_GAIN = 1 / 255**2
_FEWEST_ROUNDS = 4


class Candidates(NamedTuple):
  """Gaussians that could be added, a place in a pyramid each, and what each would be worth."""

  gain: Float[Array, 'M']  # squared error that it takes away, summed; 0 where another is better
  gaussians: Gaussians


@lru_cache
def _shapes() -> tuple[np.ndarray, np.ndarray]:
  """[F, 3] s1, s2 (px), rotation; and what they look like on pixels, [F, S, S]."""
  shapes = [
    (_SCALE * math.sqrt(e), _SCALE / math.sqrt(e), math.pi * k / _DIRECTIONS)
    for e in _ELONGATIONS
    for k in range(_DIRECTIONS if e > 1 else 1)
  ]
  radius = math.ceil(2.7 * _SCALE * math.sqrt(max(_ELONGATIONS)))
  y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
  s1, s2, turn = np.array(shapes).T[:, :, None, None]
  u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
  weights = np.exp(-((u / s1) ** 2 + (v / s2) ** 2) / 2)
  return np.array(shapes, np.float32), weights.astype(np.float32)


def _even(image: Array) -> Array:
  """[H, W, ...] with zeros beyond where a side is odd."""
  height, width = image.shape[:2]
  return jnp.pad(image, [(0, height % 2), (0, width % 2)] + [(0, 0)] * (image.ndim - 2))


def _halved(image: Array, of_four: Callable[..., Array]) -> Array:
  """[H, W, ...] -> [H/2, W/2, ...], `of_four` (a sum, a maximum) of the pixels each."""
  image = _even(image)
  height, width, *rest = image.shape
  return of_four(image.reshape(height // 2, 2, width // 2, 2, *rest), axis=(1, 3))


def _doubled(image: Float[Array, 'h w'], like: Float[Array, 'H W']) -> Float[Array, 'H W']:
  height, width = like.shape
  return jnp.repeat(jnp.repeat(image, 2, axis=0), 2, axis=1)[:height, :width]


def _matched(residual: Float[Array, 'H W C']):
  """For each pixel of a level the best shape centred on it: gain, colour [H, W, C], its number.

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
  """The Gaussians that explain most of a residual, each better than any other near its place."""
  shapes, _ = _shapes()
  levels, gains = [], []
  for level in range(min(_LEVELS, 1 + int(math.log2(min(residual.shape[:2]))))):
    # A pixel here is the sum of 4^level: <r, w> is as at full size, <w, w> is 4^level times less.
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
  """The squared error that taking a Gaussian away adds to a picture that needs it as it is.

  |c|^2 pi s1 s2, and 0 where it lies outside of the picture. Its neighbours would make up for a
  part, so this is an upper bound.
  """
  energy = jnp.sum(gaussians.color**2, axis=-1) * jnp.pi * jnp.exp(jnp.sum(gaussians.log_scale, -1))
  variance = covariance(gaussians.log_scale, gaussians.rotation)
  extent = CUTOFF_RADIUS * jnp.sqrt(variance[:, ::2])
  size = jnp.array([width, height])
  seen = (gaussians.mean_xy + extent > 0) & (gaussians.mean_xy - extent < size)
  return jnp.where(jnp.all(seen, axis=-1), energy, 0.0)


def relocate(
  state: FitState,
  residual: Float[Array, 'H W C'],
  min_gain: float = MIN_GAIN,
  *,
  most: int,
  ratio: float,
) -> FitState:
  """Puts up to `most` Gaussians, those that are worth min_gain, where they explain most of a residual.

  The i-th worst goes to the i-th best place if that gains over `min_gain`, squared error, and over
  `ratio` times its worth; below 1, since both are bounds that later steps improve on. The optimizer
  forgets those that moved.
  """
  height, width, _ = residual.shape
  gaussians: Gaussians = state.params
  found = candidates(residual)
  most = min(most, gaussians.num_gaussians, found.gain.size)
  gain, place = lax.top_k(found.gain, most)
  loss, who = lax.top_k(-contribution(gaussians, height, width), most)
  pays = gain > jnp.maximum(-ratio * loss, min_gain)
  who = jnp.where(pays, who, gaussians.num_gaussians)  # beyond the last: dropped

  def put(old, new):
    return old.at[who].set(new, mode='drop')

  def forget(leaf):
    return put(leaf, 0) if leaf.shape[:1] == gaussians.rotation.shape else leaf

  return replace(
    state,
    params=jax.tree.map(put, gaussians, jax.tree.map(lambda a: a[place], found.gaussians)),
    optimizer=jax.tree.map(forget, state.optimizer),
  )


@lru_cache
def _relocate_program():
  # Made at the first call, as in `fit`: which options apply is known once the backend is.
  return jax.jit(relocate, static_argnames='most', compiler_options=devices.compiler_options())


# (state after a block, target) -> the state to go on from, of the same shapes.
Between = Callable[[FitState, Float[Array, 'H W C']], FitState]


class Densifier(NamedTuple):
  """How the Gaussians of a fit come to be many."""

  first: Callable[[int], int]  # N -> how many there are at the start, 1 or more
  between: Between | None  # what is done between blocks of steps


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
  """Starts with a share of the Gaussians and has them all after `grown` of `steps`; from then on
  `until` that share of them, those that are worth least move to where they are worth more. Fewer
  steps than it takes to grow start with all. Where no place gains `min_gain`, squared error, none is
  put."""
  rounds = max(round(grown * steps / BLOCK_STEPS), 1)
  # A search finds no two places close together, so all of them take a few.
  share = first_share if until * steps >= _FEWEST_ROUNDS * BLOCK_STEPS else 1.0

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
  """All Gaussians are there from the start and stay who they are."""
  del steps, min_gain
  return Densifier(lambda num_gaussians: num_gaussians, None)


def with_inactive(gaussians: Gaussians, num_gaussians: int) -> Gaussians:
  """As many as asked for: the rest are black, outside of the picture, and wait to be moved."""
  more = inactive(num_gaussians - gaussians.num_gaussians, gaussians.num_channels)
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), gaussians, more)


def inactive(count: int, channels: int) -> Gaussians:
  """Gaussians that show nothing, and that no tile has to render."""
  return Gaussians(
    mean_xy=jnp.full((count, 2), -1e3, jnp.float32),  # a weak type would be another program
    log_scale=jnp.zeros((count, 2)),
    rotation=jnp.zeros(count),
    color=jnp.zeros((count, channels)),
  )


def without_inactive(gaussians: Gaussians) -> Gaussians:
  """Those that were ever seen, or one where there is none."""
  awake = np.any(np.asarray(gaussians.color) != 0, axis=-1)
  awake[0] |= not np.any(awake)
  return jax.tree.map(lambda a: a[awake], gaussians)


DENSIFIERS = Registry('densifier', {'matching_pursuit': matching_pursuit, 'none': none})
