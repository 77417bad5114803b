"""Rounding with refitting: some numbers are rounded for good, the others make up for it, and on.

Rounding all at once adds every number's error. Here they are rounded in turns, an eighth of one
attribute at a time: log scales, rotations, means, colours, each in the steps that what is rounded
already allows it (`quantize.graded`). Between turns the numbers that are still free are fitted on.
Colours are the last: the picture is linear in them, so they make up for the others best.
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
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cgvq_jax.bitstream import adaptive as stream
from cgvq_jax.fit import blocks, densify, optimizers
from cgvq_jax.fit.losses import Loss, clamped_l2
from cgvq_jax.methods.base import Telling
from cgvq_jax.primitives.geometry import canonical
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.quantize import adaptive
from cgvq_jax.quantize.adaptive import AdaptiveSymbols

ORDER = ('log_scale', 'rotation', 'mean_xy', 'color')

# A fifth of the fit's, in each Gaussian's own frame, and they do not decay: the last turn rounds as
# much as the first.
RATES = optimizers.rates(mean_xy=0.02, log_scale=0.01, rotation=0.01, color=0.001)
# Of all steps, for those that thin the Gaussians out before the first is rounded.
_THINNING = 0.7
# What it takes to tell that a Gaussian is there at all: its place, its grade, its share of the
# tables. In units of the rate of its numbers, of which ln 2 are 3 bits: 13 bits.
_PRESENCE = 3.0
# Levels of a colour below this are told as 0: at 2 ln 2 delta^2 / 12 a bit, 0.65 is where that pays
# if 0 takes 2.6 bits less, as it does for the weak axes.
_LEAST_LEVEL = 0.65
_FLOOR = 0.4  # px
# Gaussians to start from: pixels for each at a step_index, and twice as many for every _OCTAVE of
# step_index, the same for every picture. That is 2 or 3 times as many as will be left; those that
# are too many show where the others are best.
_PIXELS_EACH, _PRECISION, _OCTAVE = 40, 256, 80


class Rounding(NamedTuple):
  """A method: how fitted Gaussians become `AdaptiveSymbols` integers."""

  name: str
  step_index: int  # delta = 2^(2 - step_index / 64)
  weight: float = 1.5  # of the rate while Gaussians are thinned out, over the slope of rounding
  presence: float = _PRESENCE
  parts: int = 8  # turns of an attribute
  # What may be another: how energies become grades, and the axes that colours are told along.
  grades: Callable[[Float[np.ndarray, 'N'], float], Int[np.ndarray, 'N']] = adaptive.energy_classes
  axes: Callable[[Float[np.ndarray, 'N C']], Int[np.ndarray, 'C C']] = adaptive.color_axes

  num_clusters = 1  # Gaussians are told by their grades; there are no codebooks to share

  @property
  def min_gain(self) -> float:
    """Squared error that a Gaussian has to gain: the energy below which none is kept."""
    return adaptive.step_of(self.step_index) ** 2

  def num_gaussians(self, num_pixels: int) -> int:
    """How many to fit; thinning leaves a half or a third of them, by what the picture needs."""
    octaves = (self.step_index - _PRECISION) / _OCTAVE
    return max(round(num_pixels / _PIXELS_EACH * 2**octaves), 1)

  def check(self, channels: int) -> None:
    """Any number of channels can be told."""

  def tell(self, telling: Telling) -> AdaptiveSymbols:
    """Thins out, rounds and refits. Raises FitError as `blocks.run`."""
    optimizer = adam()
    # As many as the fit started with, whatever it has left: pictures of one size share a program.
    count = max(
      self.num_gaussians(math.prod(telling.target.shape[:2])), telling.gaussians.num_gaussians
    )
    gaussians = densify.with_inactive(telling.gaussians, count)
    state = telling.resume(initial_state(gaussians, optimizer))
    state = run(
      state,
      telling.target,
      key=telling.key,
      method=self,
      steps=telling.steps,
      optimizer=optimizer,
      loss=telling.loss,
      on_block=telling.on_block,
    )
    return freeze(state, self, *telling.target.shape[:2])


@struct.dataclass
class Told:
  """What is rounded, and to what: the carry of a fit. `e`, colour times sqrt(area), for colours."""

  done: Gaussians  # bools
  value: Gaussians
  kept: Any  # [N] those that the file will tell
  energy_class: Any  # [N]
  axes: Any  # [C, C]
  low: Any  # [N, 2] boxes of the means, once these are rounded
  size: Any  # [N, 2]


def with_floor(gaussians: Gaussians) -> Gaussians:
  """Standard deviations s become sqrt(s^2 + f^2) with f = _FLOOR px: what is fitted is the s.

  A thinner Gaussian that stands on a row of pixels shows more than its area, so its energy would
  be taken for less than it is and its numbers told too coarsely.
  """
  log_scale = jnp.logaddexp(2 * gaussians.log_scale, 2 * math.log(_FLOOR)) / 2
  return replace(gaussians, log_scale=log_scale)


def without_floor(gaussians: Gaussians) -> Gaussians:
  """The inverse of `with_floor`, for standard deviations that are above the floor."""
  variance = jnp.exp(2 * gaussians.log_scale) - _FLOOR**2
  return replace(gaussians, log_scale=jnp.log(jnp.maximum(variance, (_FLOOR / 4) ** 2)) / 2)


def _area(log_scale: Float[Array, 'N 2']) -> Float[Array, 'N 1']:
  return jnp.pi * jnp.exp(jnp.sum(log_scale, axis=-1, keepdims=True))


def energies(gaussians: Gaussians) -> Float[Array, 'N']:
  """|c|^2 pi s1 s2: the squared error of each Gaussian's absence, alone in the plane."""
  return jnp.sum(gaussians.color**2 * _area(gaussians.log_scale), axis=-1)


class Price(NamedTuple):
  """What a fit pays for what its Gaussians will take to tell; see `price`."""

  energy: Any  # delta^2
  weight: Any  # of all
  presence: Any  # of being there at all


FREE = Price(1.0, 0.0, 0.0)


def price(delta: float, weight: float, presence: float, samples: int) -> Price:
  """At the slope of rounding in steps of `delta`, times `weight`.

  All of a Gaussian's numbers together take about 3 log2(1 + x) bits, x = E / delta^2, and 3 / ln 2
  times `presence` more where it is there at all. At the slope of rounding in steps of delta,
  2 ln 2 delta^2 / 12 of squared error a bit, that is

      penalty = weight / samples * sum_i delta^2 / 2 (ln(1 + x_i) + presence (1 - exp(-x_i)))

  in units of the mean squared error of `samples` pixels times channels. What is below delta^2 is
  pulled to nothing, what is above hardly feels that it is there.
  """
  return Price(delta**2, weight * delta**2 / 2 / samples, presence)


def forward(params: Gaussians, carry: Told, context: Price) -> blocks.Forward:
  """Numbers that are rounded stand as they are, the others are free, and all have their price."""
  done, value = carry.done, carry.value
  params = with_floor(params)
  x = energies(params) / context.energy
  rate = jnp.sum(jnp.log1p(x) - context.presence * jnp.expm1(-x))
  # The area that a free colour was fitted with moves on only while it is free itself.
  scale = jnp.where(done.log_scale, jax.lax.stop_gradient(params.log_scale), params.log_scale)
  free = replace(params, color=params.color * jnp.sqrt(_area(scale)))
  told = jax.tree.map(jnp.where, done, value, free)
  gaussians = replace(told, color=told.color / jnp.sqrt(_area(told.log_scale)))
  return blocks.Forward(gaussians, carry, context.weight * rate)


@lru_cache
def adam() -> optax.GradientTransformation:
  """The fit's, at one rate from the first turn to the last."""
  return optimizers.adam(1, RATES, final=1.0)


def initial_state(gaussians: Gaussians, optimizer: optax.GradientTransformation) -> blocks.FitState:
  """Nothing rounded, no grades yet."""
  gaussians = jax.jit(canonical)(without_floor(gaussians))
  count, channels = gaussians.color.shape
  told = Told(
    done=jax.tree.map(lambda a: jnp.zeros(a.shape, bool), gaussians),
    value=jax.tree.map(jnp.zeros_like, gaussians),
    kept=jnp.ones(count, bool),
    energy_class=jnp.zeros(count, jnp.int32),
    axes=jnp.zeros((channels, channels), jnp.int8),
    low=jnp.zeros((count, 2), jnp.int32),
    size=jnp.zeros((count, 2), jnp.int32),
  )
  return blocks.initial_state(gaussians, told, optimizer)


class Schedule(NamedTuple):
  """How many steps, in their order."""

  thinning: int
  between: int  # two turns
  turns: int


def schedule(steps: int, parts: int) -> Schedule:
  """`steps` in all, or a few more or less."""
  turns = parts * len(ORDER)
  between = max(round((1 - _THINNING) * steps / (turns - 1)), 1)
  return Schedule(max(steps - between * (turns - 1), 0), between, turns)


def run(
  state: blocks.FitState,
  target: Float[Array, 'H W C'],
  *,
  key: PRNGKeyArray,
  method: Rounding,
  steps: int,
  optimizer: optax.GradientTransformation,
  loss: Loss = clamped_l2,
  on_block: Callable[[blocks.FitState, blocks.Progress], None] | None = None,
) -> blocks.FitState:
  """Goes on from `state` until all is rounded; what is next follows from the steps it has done.

  Raises FitError as `blocks.run`.
  """
  delta = adaptive.step_of(method.step_index)
  thinning, between, turns = schedule(steps, method.parts)

  def fitted(state: blocks.FitState, steps: int, price: Price) -> blocks.FitState:
    # One program for all: the price is an argument.
    context = jax.tree.map(np.float32, price)
    options: dict[str, Any] = {'optimizer': optimizer, 'loss': loss, 'on_block': on_block}
    return blocks.run(state, target, steps=steps, forward=forward, context=context, **options)

  if int(state.step) < thinning:
    state = fitted(state, thinning, price(delta, method.weight, method.presence, target.size))
  while (turn := (int(state.step) - thinning) // between) < turns - 1:
    state = rounded(state, key, turn, method, target.shape[:2])
    state = fitted(state, thinning + (turn + 1) * between, FREE)
  return rounded(state, key, turns - 1, method, target.shape[:2])


@jax.jit
def _seen(params: Gaussians):
  """The canonical parameters, and of the Gaussians that they stand for the energies and e."""
  params = canonical(params)
  gaussians = with_floor(params)
  return params, energies(gaussians), gaussians.color * jnp.sqrt(_area(gaussians.log_scale))


def _graded(state: blocks.FitState, method: Rounding, delta: float) -> blocks.FitState:
  """Chooses grades and colour axes, and lets those of too little energy go."""
  params, *seen = _seen(state.params)
  energy, e = map(np.asarray, seen)
  kept = energy > delta**2
  kept[np.argmax(energy)] = True  # a file has one at least
  nowhere = jax.tree.map(np.asarray, densify.inactive(*e.shape))
  told = replace(
    jax.tree.map(np.asarray, state.carry),
    done=jax.tree.map(lambda leaf: np.broadcast_to(~_beside(kept, leaf), leaf.shape), nowhere),
    value=nowhere,
    kept=kept,
    energy_class=_grades(method, energy, kept, delta).astype(np.int32),
    axes=method.axes(e[kept]),
  )
  return replace(state, params=params, carry=told)


def _beside(mask: np.ndarray, leaf: np.ndarray) -> np.ndarray:
  """A mask of Gaussians, shaped to go with an attribute's numbers."""
  return mask.reshape(-1, *[1] * (leaf.ndim - 1))


def _grades(method: Rounding, energy: np.ndarray, kept: np.ndarray, delta: float) -> np.ndarray:
  grades = np.zeros(energy.shape, np.int64)
  grades[kept] = method.grades(energy[kept], delta)
  return grades


def rounded(
  state: blocks.FitState, key: PRNGKeyArray, turn: int, method: Rounding, sizes: tuple[int, ...]
) -> blocks.FitState:
  """Rounds the part of the attribute whose turn it is; nothing where that was done.

  `sizes` are the picture's height and width.
  """
  delta = adaptive.step_of(method.step_index)
  if turn == 0 and not np.any(state.carry.done.log_scale):
    state = _graded(state, method, delta)
  # On the host, and back in one piece: JAX would compile each of these small operations.
  free, told = jax.tree.map(np.asarray, (_floored(state.params), state.carry))
  which, part = divmod(turn, method.parts)
  name = ORDER[which]
  order = jax.random.permutation(jax.random.fold_in(key, which), told.energy_class.size)
  mine = np.zeros(told.energy_class.size, bool)
  mine[np.array_split(np.asarray(order), method.parts)[part]] = True
  if name == 'mean_xy' and not np.any(told.size):
    low, size = np.zeros((mine.size, 2), np.int32), np.ones((mine.size, 2), np.int32)
    means = free.mean_xy[told.kept].astype(np.float64)
    low[told.kept], size[told.kept] = stream.boxes_of(means, *sizes)
    told = replace(told, low=low, size=size)
  values = _NEAREST[name](free, told, delta).astype(np.float32)
  done = getattr(told.done, name)
  new = _beside(mine, values) & ~done
  value = np.where(new, values, getattr(told.value, name))
  told = replace(
    told, value=replace(told.value, **{name: value}), done=replace(told.done, **{name: done | new})
  )
  return replace(state, carry=jax.tree.map(jnp.asarray, told))


_floored = jax.jit(with_floor)


def _log_scale_levels(log_scale, grade):
  steps = adaptive.log_scale_steps()[grade][:, None]
  most = adaptive.LEVELS // steps - 1
  levels = np.rint(adaptive.OCTAVE * log_scale / np.log(2) / steps)
  return np.clip(levels, -most, most).astype(np.int64)


def _nearest_log_scale(free: Gaussians, told: Told, delta: float):
  scale = adaptive.scales(_log_scale_levels(free.log_scale, told.energy_class), told.energy_class)
  return np.log(scale)


def _shapes(told: Told):
  levels = _log_scale_levels(told.value.log_scale, told.energy_class)
  scale = adaptive.scales(levels, told.energy_class)
  return levels, scale, adaptive.num_turns(scale, told.energy_class)


def _nearest_rotation(free: Gaussians, told: Told, delta: float):
  _, _, turns = _shapes(told)
  return np.pi * _rotation_levels(free.rotation, turns) / turns


def _rotation_levels(rotation, turns):
  return np.mod(np.rint(rotation * turns / np.pi), turns).astype(np.int64)


def _cells(mean, told: Told):
  _, scale, turns = _shapes(told)
  rotation = _rotation_levels(told.value.rotation, turns)
  spread, shear = adaptive.spreads(scale, rotation, turns)
  low, size = told.low.astype(np.int64), told.size.astype(np.int64)
  cells = adaptive.num_cells(size, spread, told.energy_class)
  cell = adaptive.nearest_cell(mean.astype(np.float64), low, size, cells, spread, shear)
  return cell, adaptive.means(low, size, cell, cells)


def _nearest_mean(free: Gaussians, told: Told, delta: float):
  return _cells(free.mean_xy, told)[1]


def _color_levels(e, told: Told, delta: float):
  x = e @ adaptive.unit_axes(told.axes).T / delta
  return np.where(np.abs(x) < _LEAST_LEVEL, 0, np.rint(x)).astype(np.int64)


def _nearest_color(free: Gaussians, told: Told, delta: float):
  # The area by which the fit turns colours into e: that of the scales as they are fitted.
  e = free.color * np.sqrt(np.pi * np.exp(np.sum(free.log_scale, axis=-1, keepdims=True)))
  return delta * _color_levels(e, told, delta) @ adaptive.unit_axes(told.axes)


_NEAREST = {
  'log_scale': _nearest_log_scale,
  'rotation': _nearest_rotation,
  'mean_xy': _nearest_mean,
  'color': _nearest_color,
}


def freeze(state: blocks.FitState, method: Rounding, height: int, width: int) -> AdaptiveSymbols:
  """The integers of a state in which all is rounded. Raises ValueError on another."""
  told: Told = jax.tree.map(np.asarray, state.carry)
  if not all(np.all(leaf) for leaf in jax.tree.leaves(told.done)):
    raise ValueError('freeze: wanted all numbers rounded, got some that are free')
  told = replace(
    jax.tree.map(lambda leaf: leaf[told.kept], replace(told, axes=None)), axes=told.axes
  )
  levels, _, turns = _shapes(told)
  cell, _ = _cells(told.value.mean_xy, told)
  return AdaptiveSymbols(
    height=height,
    width=width,
    channels=told.value.color.shape[-1],
    method=method.name,
    step_index=method.step_index,
    axes=told.axes,
    energy_class=told.energy_class.astype(np.int64),
    log_scale=levels,
    rotation=_rotation_levels(told.value.rotation, turns),
    low=told.low.astype(np.int64),
    size=told.size.astype(np.int64),
    cell=cell,
    color=_color_levels(told.value.color, told, adaptive.step_of(method.step_index)),
  )
