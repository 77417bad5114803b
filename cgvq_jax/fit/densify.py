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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from cgvq_jax import devices
from cgvq_jax.devices import fetch
from cgvq_jax.extensions import Registry
from cgvq_jax.fit.stages import BLOCK_STEPS, FitState
from cgvq_jax.primitives.geometry import CUTOFF_RADIUS, covariance, energy
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize.api import rasterize_padded
from cgvq_jax.rasterize.layout import PaddedImage, with_inactive
from cgvq_jax.rasterize.tiles import Size, round_gaussians

# The shapes to search for, at each level of a pyramid of halved residuals: standard deviations of
# _SCALE sqrt(e) and _SCALE / sqrt(e) px for each elongation e, in _DIRECTIONS directions.
_SCALE, _ELONGATIONS, _DIRECTIONS = 0.75, (1.0, 2.0), 4
_LEVELS = 5  # up to 0.75 * 2^4 = 12 px
# Squared error, summed over samples: a gain below one grey level of one sample is noise.
MIN_GAIN = 1 / 255**2
_MIN_SEARCHES = 4  # that growth takes
_MIN_BEYOND = 64  # that may be placed beyond the budget at a time, however few there are


class Candidates(NamedTuple):
  """Gaussians that could be added, and what each would gain."""

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
  height, width, _ = residual.shape
  radius = weights.shape[-1] // 2
  padded = jnp.pad(jnp.moveaxis(residual, -1, 0), ((0, 0), (radius, radius), (radius, radius)))
  best: Any = jnp.full((height, width), -1.0), jnp.zeros_like(padded[:, :height, :width]), 0
  for which, weight in enumerate(weights):
    # A sum of shifted images: ten times as fast on a CPU as XLA's convolution of few channels.
    product: Any = sum(
      float(weight[y, x]) * padded[:, y : y + height, x : x + width]
      for y, x in np.ndindex(*weight.shape)
    )  # [C, H, W]
    energy = float(np.sum(weight**2))
    gain = jnp.sum(product**2, axis=0) / energy
    better = gain > best[0]
    best = (
      jnp.where(better, gain, best[0]),
      jnp.where(better, product / energy, best[1]),
      jnp.where(better, which, best[2]),
    )
  gain, color, which = best
  return gain, jnp.moveaxis(color, 0, -1), which


def candidates(residual: Float[Array, 'H W C'], most: int) -> Candidates:
  """The Gaussians that would reduce a residual most, the best first; each is the best of those near
  its position."""
  shapes, _ = _shapes()
  levels = [residual]
  while len(levels) < min(_LEVELS, 1 + int(math.log2(min(residual.shape[:2])))):
    levels.append(_halved(levels[-1], jnp.sum))
  gains, colors, which = zip(*_matched_levels(levels), strict=True)
  # A pixel here is a sum of 4^level pixels: <r, w> is as at full size, <w, w> 4^level times less.
  gains = [gain / 4**level for level, gain in enumerate(gains)]
  best = [jnp.where(_is_best(gains, level), gain, 0) for level, gain in enumerate(gains)]
  gain, place = lax.top_k(jnp.concatenate([gain.ravel() for gain in best]), most)
  sizes = np.array([gain.size for gain in gains])
  level = jnp.searchsorted(jnp.asarray(np.cumsum(sizes)), place, side='right')
  place_in_level = place - jnp.asarray(np.cumsum(sizes) - sizes)[level]
  y, x = jnp.divmod(place_in_level, jnp.asarray([gain.shape[1] for gain in gains])[level])
  shape = jnp.asarray(shapes)[jnp.concatenate([w.ravel() for w in which])[place]]
  color = jnp.concatenate([color.reshape(-1, color.shape[-1]) for color in colors])[place]
  scale = 2.0**level
  return Candidates(
    gain,
    Gaussians(
      mean_xy=(jnp.stack([x, y], axis=-1) + 0.5) * scale[:, None],
      log_scale=jnp.log(shape[:, :2] * scale[:, None]),
      rotation=shape[:, 2],
      color=color / scale[:, None] ** 2,
    ),
  )


def _matched_levels(levels: list[Array]):
  """`_matched` of each level. All are parts of one image, so that there is one search to compile:
  the finest on the left, the others in a column, with gaps of zeros that no shape reaches across.
  """
  finest, *others = levels
  gap = _shapes()[1].shape[-1] // 2
  width = others[0].shape[1] if others else 0
  column = [jnp.pad(a, ((0, gap), (0, width - a.shape[1]), (0, 0))) for a in others]
  column = jnp.concatenate(column or [finest[:, :0]])
  height = max(finest.shape[0], column.shape[0])
  parts = jnp.pad(finest, ((0, 0), (0, gap), (0, 0))), column
  whole = [jnp.pad(a, ((0, height - a.shape[0]), (0, 0), (0, 0))) for a in parts]
  matched = _matched(jnp.concatenate(whole, axis=1))
  corner = 0, 0
  for level in levels:
    y, x = corner
    yield [a[y : y + level.shape[0], x : x + level.shape[1]] for a in matched]
    corner = (0 if x == 0 else y + level.shape[0] + gap), finest.shape[1] + gap


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


def contribution(gaussians: Gaussians, size: Size) -> Float[Array, 'N']:
  """The squared error that the removal of a Gaussian adds to a picture it is fitted to.

  |c|^2 pi s1 s2, and 0 where it lies outside of the picture. An upper bound, since its neighbours
  would make up for a part after some steps.
  """
  variance = covariance(gaussians.log_scale, gaussians.rotation)
  extent = CUTOFF_RADIUS * jnp.sqrt(variance[:, ::2])
  corner = jnp.stack([jnp.asarray(size.width), jnp.asarray(size.height)]).astype(jnp.float32)
  seen = (gaussians.mean_xy + extent > 0) & (gaussians.mean_xy - extent < corner)
  return jnp.where(jnp.all(seen, axis=-1), energy(gaussians), 0.0)


class Terms(NamedTuple):
  """The terms on which Gaussians are placed. They are data of the program; errors are summed."""

  budget: Any  # Gaussians that may be active at no price
  most: Any  # that are placed at once within the budget
  ratio: Any  # of a candidate's gain to the contribution that it replaces, at least
  min_gain: Any
  most_beyond: Any = 0  # that are placed at once beyond the budget
  price: Any = math.inf  # the least gain of a Gaussian beyond the budget

  def as_arrays(self) -> Terms:
    """In the types of which a program is compiled."""
    counts = {name: np.int32(getattr(self, name)) for name in ('budget', 'most', 'most_beyond')}
    gains = {name: np.float32(getattr(self, name)) for name in ('ratio', 'min_gain', 'price')}
    return Terms(**counts, **gains)


def relocate(
  state: FitState, residual: Float[Array, 'H W C'], size: Size, terms: Terms
) -> tuple[FitState, Int[Array, '']]:
  """Relocates the Gaussians of the smallest contribution to the best candidates.

  The i-th best candidate takes the i-th cheapest Gaussian: an inactive one within the budget costs
  nothing, an active one its contribution, an inactive one beyond the budget `price`. It does so if
  its gain exceeds `min_gain` and the price, or `ratio` times the contribution: below 1, since later
  steps increase the gain and reduce the loss. The optimizer's state is reset to 0 for those that
  moved.

  Returns the state, and the number of rows that it takes; where there are fewer, some candidates
  have got no Gaussian, and the caller repeats this with more.
  """
  gaussians: Gaussians = state.params
  count = gaussians.num_gaussians
  most = min(max(count // 2, 1), math.prod(residual.shape[:2]))
  gain, new = candidates(residual, most)
  active = jnp.any(gaussians.color != 0, axis=-1)
  num_active = jnp.sum(active)
  free = ~active & (jnp.cumsum(~active) <= terms.budget - num_active)
  cost = jnp.where(active, contribution(gaussians, size), jnp.where(free, 0.0, terms.price))
  cheapest, who = lax.top_k(-cost, most)
  rank = jnp.arange(most)
  beyond = rank >= jnp.sum(cost < terms.price)
  allowed = rank < jnp.where(beyond, terms.most_beyond, terms.most)
  least = jnp.where(beyond, terms.price, terms.ratio * -cheapest)
  improves = allowed & (gain > jnp.maximum(least, terms.min_gain))
  rows = jnp.maximum(num_active, terms.budget) + jnp.sum(improves & beyond)
  who = jnp.where(improves & (-cheapest <= terms.price), who, count)  # beyond the last: dropped

  def put(old, new):
    return old.at[who].set(new, mode='drop')

  def reset(leaf):
    return put(leaf, 0) if leaf.shape[:1] == gaussians.rotation.shape else leaf

  state = replace(
    state,
    params=jax.tree.map(put, gaussians, new),
    optimizer=jax.tree.map(reset, state.optimizer),
  )
  return state, rows


def _relocate(state: FitState, target: PaddedImage, image: Float[Array, 'Hp Wp C'], terms: Terms):
  """`relocate` by the residual of a rendered image."""
  residual = target.pixels - jnp.clip(image, 0.0, 1.0)
  residual = jnp.where(target.inside[..., None], residual, 0.0)
  return relocate(state, residual, target.size, terms)


def with_rows(state: FitState, count: int) -> FitState:
  """The state with inactive Gaussians added: `count` in all."""
  gaussians: Gaussians = state.params
  more = count - gaussians.num_gaussians

  def longer(leaf):
    leaf = np.asarray(leaf)
    if leaf.shape[:1] != gaussians.rotation.shape:
      return leaf
    return np.pad(leaf, [(0, more)] + [(0, 0)] * (leaf.ndim - 1))

  return replace(
    state,
    params=with_inactive(gaussians, count),
    optimizer=jax.tree.map(longer, state.optimizer),
  )


class Growth(NamedTuple):
  """How many Gaussians a fit may have, and what each has to gain: squared error, summed."""

  budget: int  # that the fit is planned for
  min_gain: float = MIN_GAIN
  price: float = math.inf  # the least gain of a Gaussian beyond the budget


# (state after a block, target) -> the state to go on from, with as many Gaussians or more.
Between = Callable[[FitState, PaddedImage], FitState]


class Densifier(NamedTuple):
  """How the number of active Gaussians grows in a fit."""

  first: int  # active at the start, 1 to the budget
  between: Between | None  # changes the state between blocks of steps


def matching_pursuit(
  steps: int,
  growth: Growth,
  *,
  first_share: float = 0.1,
  grown: float = 0.4,
  until: float = 0.85,
  ratio: float = 0.3,
) -> Densifier:
  """Starts with `first_share` of the budget active, and activates the others by `grown` of `steps`.

  From then until `until` of `steps` it relocates those with the smallest contributions. A fit with
  too few steps to grow starts with all. Beyond the budget a Gaussian is placed where it gains more
  than `growth.price`; no more than half as many again as there are at a time. For `ratio` see
  `relocate`.
  """
  rounds = max(round(grown * steps / BLOCK_STEPS), 1)
  # One search finds no two places close together, so growth takes a few.
  share = first_share if until * steps >= _MIN_SEARCHES * BLOCK_STEPS else 1.0

  def between(state: FitState, target: PaddedImage) -> FitState:
    if int(state.step) > until * steps:
      return state
    most = math.ceil((1 - first_share) * growth.budget / rounds)
    terms = Terms(
      budget=growth.budget,
      most=min(most, max(growth.budget // 2, 1)),
      ratio=ratio,
      min_gain=growth.min_gain,
      most_beyond=max(_num_active(state) // 2, _MIN_BEYOND),
      price=growth.price,
    )
    return place(state, target, terms)

  return Densifier(max(round(share * growth.budget), 1), between)


def _num_active(state: FitState) -> int:
  return int(np.sum(np.any(np.asarray(state.params.color) != 0, axis=-1)))


def place(state: FitState, target: PaddedImage, terms: Terms) -> FitState:
  """Relocates Gaussians by the residual of what they show (`relocate`), in more rows if need be."""
  size = int(target.size.height), int(target.size.width)
  image, target = fetch(rasterize_padded(state.params, *size)), fetch(target)
  while True:
    moved, rows = devices.call(_relocate, fetch(state), target, image, terms.as_arrays())
    if int(rows) <= state.params.num_gaussians:
      return moved
    state = with_rows(state, round_gaussians(int(rows)))


def none(steps: int, growth: Growth) -> Densifier:
  """No densification: all Gaussians are active from the start, none is relocated."""
  del steps
  return Densifier(growth.budget, None)


def without_inactive(gaussians: Gaussians) -> Gaussians:
  """The active Gaussians, or the first one where all are inactive; NumPy arrays."""
  gaussians = jax.tree.map(np.asarray, gaussians)
  active = np.any(gaussians.color != 0, axis=-1)
  active[0] |= not np.any(active)
  return jax.tree.map(lambda a: a[active], gaussians)


DENSIFIERS = Registry('densifier', {'matching_pursuit': matching_pursuit, 'none': none})
