"""Our method, `cgvq_rd`: staged quantization with refitting, in steps of each Gaussian's own.

Two stages: the fit, then `finetune`, which prunes and quantizes. Pruning pays for the rate in the
loss, so that Gaussians which are not worth their bits fade away. Then the numbers are quantized
group by group, an eighth of one attribute at a time: log scales, rotations, means, colours, each
in the quantization steps that the numbers before it imply (`quantize.adaptive`). Between groups the
numbers that are still free are refitted and make up for part of the error; quantized all at once,
every number would add its own. Colours come last: the picture is linear in them, so they compensate
best.
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
from jaxtyping import Float, Int, PRNGKeyArray

from cgvq_jax.bitstream.base import MAX_GAUSSIANS
from cgvq_jax.fit import optimizers
from cgvq_jax.fit.api import fit_stage, functions_of
from cgvq_jax.fit.initialize import random_generator
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.fit.stages import (
  BLOCK_STEPS,
  FitState,
  Forward,
  NextBlock,
  Progress,
  Stage,
  Stages,
  StageState,
  initial_state,
  padded_target,
)
from cgvq_jax.methods.base import check_number
from cgvq_jax.primitives.geometry import area, canonical, energy
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.quantize import adaptive, boxes
from cgvq_jax.quantize.adaptive import AdaptiveSymbols
from cgvq_jax.rasterize.layout import inactive, with_inactive
from cgvq_jax.rasterize.tiles import round_gaussians

# The order in which attributes are quantized.
ATTRIBUTES = ('log_scale', 'rotation', 'mean_xy', 'color')

# A fifth of the fit's, in each Gaussian's own frame. They do not decay: the last group is quantized
# as coarsely as the first and needs as much refitting.
RATES = optimizers.rates(mean_xy=0.02, log_scale=0.01, rotation=0.01, color=0.001)
# The share of the steps that prune, before the first group is quantized.
_PRUNING_SHARE = 0.7
# The cost of a Gaussian's existence: its place, its energy class, its share of the tables. In units
# of the rate of its numbers, of which ln 2 are 3 bits: 13 bits.
_PRESENCE = 3.0
# The dead zone: levels of a colour below this become 0. At 2 ln 2 delta^2 / 12 a bit, 0.65 is the
# break-even if a 0 takes 2.6 bits less, as it does on the weak axes.
_DEAD_ZONE = 0.65
_SCALE_FLOOR = 0.4  # px
# How many Gaussians to start from: pixels for each at a step index, and twice as many for every
# _OCTAVE of step indices, whatever the picture. Two or three times as many as will be left: the
# surplus shows where the others are best.
_PIXELS_EACH, _STEP_INDEX, _OCTAVE = 40, 256, 80


class AdaptiveMethod(NamedTuple):
  """Every number in quantization steps of its own, by its Gaussian's energy and shape."""

  name: str
  step_index: int  # the quantization step is delta = 2^(2 - step_index / 64)
  num_gaussians: int | None = None  # to start from; None: by the step and the size of the picture
  lmbda: float = 1.5  # weight of the rate while pruning, over the slope of quantization
  presence: float = _PRESENCE
  groups: int = 8  # of each attribute
  # For ablations: how energies become classes, and the axes along which colours are quantized.
  classify: Callable[[Float[np.ndarray, 'N'], float], Int[np.ndarray, 'N']] = (
    adaptive.energy_classes
  )
  axes: Callable[[Float[np.ndarray, 'N C']], Int[np.ndarray, 'C C']] = adaptive.color_axes

  @property
  def quantization_step(self) -> float:
    """Delta, the step of e, colour times px."""
    return adaptive.quantization_step(self.step_index)

  @property
  def min_gain(self) -> float:
    """Squared error that a Gaussian has to gain: the energy below which none is kept."""
    return self.quantization_step**2

  def gaussian_budget(self, num_pixels: int) -> int:
    """How many to fit; pruning leaves a half or a third of them, by what the picture needs."""
    if self.num_gaussians is not None:
      return self.num_gaussians
    return self.default_budget(num_pixels)

  def default_budget(self, num_pixels: int) -> int:
    """By the quantization step and the size of the picture."""
    octaves = (self.step_index - _STEP_INDEX) / _OCTAVE
    return max(round(num_pixels / _PIXELS_EACH * 2**octaves), 1)

  def check(self, channels: int) -> None:
    """Raises ValueError where an option is out of range; any number of channels will do."""
    del channels
    check_number('step_index', self.step_index, 0, adaptive.MAX_STEP_INDEX)
    if self.num_gaussians is not None:
      check_number('num_gaussians', self.num_gaussians, 1, MAX_GAUSSIANS)

  def stages(self, target: Float[np.ndarray, 'H W C'], settings: FitSettings) -> Stages:
    """Fit, then prune and quantize; finishes with `AdaptiveSymbols`."""
    fit_key, quantize_key = jax.random.split(jax.random.key(settings.seed))
    budget = self.gaussian_budget(math.prod(target.shape[:2]))
    # A number that was asked for is a limit. That by the size of the picture is a plan, and places
    # that gain as much as a Gaussian must have got further ones.
    price = math.inf if self.num_gaussians is not None else self.min_gain
    return [
      lambda _: fit_stage(fit_key, target, budget, settings, self.min_gain, price),
      lambda gaussians: quantize_stage(self, quantize_key, gaussians, target, settings),
    ]


@struct.dataclass
class QuantizationState:
  """What is quantized, and its values: the carry of the stage."""

  quantized: Gaussians  # bools
  value: Gaussians  # of those; for colours e, colour times sqrt(area)
  kept: Any  # [N] those that the file will hold
  energy_class: Any  # [N]
  axes: Any  # [C, C]
  low: Any  # [N, 2] boxes of the means, once these are quantized
  size: Any  # [N, 2]


def with_scale_floor(gaussians: Gaussians) -> Gaussians:
  """Standard deviations s become sqrt(s^2 + f^2) with f = 0.4 px: the s are what is fitted.

  A Gaussian that is thinner than a pixel and stands on a row of pixels contributes more than its
  area says, so its energy would be underestimated and its numbers quantized too coarsely.
  """
  xp = gaussians.log_scale.__array_namespace__()
  floor = xp.asarray(2 * math.log(_SCALE_FLOOR), dtype=gaussians.log_scale.dtype)
  return replace(gaussians, log_scale=xp.logaddexp(2 * gaussians.log_scale, floor) / 2)


def without_scale_floor(gaussians: Gaussians) -> Gaussians:
  """The inverse of `with_scale_floor`, for standard deviations that are above the floor."""
  variance = np.exp(2 * gaussians.log_scale) - _SCALE_FLOOR**2
  return replace(gaussians, log_scale=np.log(np.maximum(variance, (_SCALE_FLOOR / 4) ** 2)) / 2)


class RatePenalty(NamedTuple):
  """The rate in the loss; see `rate_penalty`."""

  energy: Any  # delta^2
  lmbda: Any  # weight of the whole
  presence: Any  # weight of existing at all


NO_PENALTY = RatePenalty(1.0, 0.0, 0.0)


def rate_penalty(step: float, lmbda: float, presence: float, samples: int) -> RatePenalty:
  """The rate at `lmbda` times the slope of quantization in steps of delta, here `step`.

  All of a Gaussian's numbers together take about 3 log2(1 + x) bits, x = E / delta^2, and 3 / ln 2
  times `presence` more where it exists at all. At the slope of quantization in steps of delta,
  2 ln 2 delta^2 / 12 of squared error a bit, that is

      penalty = lmbda / samples * sum_i delta^2 / 2 (ln(1 + x_i) + presence (1 - exp(-x_i)))

  in units of the mean squared error of `samples` pixels times channels. Energies below delta^2 are
  pulled to nothing, those above hardly change.
  """
  return RatePenalty(step**2, lmbda * step**2 / 2 / samples, presence)


def forward(params: Gaussians, carry: QuantizationState, context: RatePenalty) -> Forward:
  """Quantized numbers stay as they are, the others are free, and all pay for their rate."""
  quantized, value = carry.quantized, carry.value
  params = with_scale_floor(params)
  x = energy(params) / context.energy
  rate = jnp.sum(jnp.log1p(x) - context.presence * jnp.expm1(-x))
  # The area that a free colour was fitted with moves on only while it is free itself.
  scale = jnp.where(quantized.log_scale, jax.lax.stop_gradient(params.log_scale), params.log_scale)
  free = replace(params, color=params.color * jnp.sqrt(area(scale)))
  mixed = jax.tree.map(jnp.where, quantized, value, free)
  gaussians = replace(mixed, color=mixed.color / jnp.sqrt(area(mixed.log_scale)))
  return Forward(gaussians, carry, context.lmbda * rate)


@lru_cache
def adam() -> optax.GradientTransformation:
  """The fit's, at one rate from the first group to the last."""
  return optimizers.adam(1, RATES, final=1.0)


def unquantized_state(gaussians: Gaussians) -> FitState:
  """Nothing quantized, no energy classes yet; of Gaussians in NumPy arrays."""
  gaussians = canonical(without_scale_floor(gaussians))
  count, channels = gaussians.color.shape
  nothing = QuantizationState(
    quantized=jax.tree.map(lambda a: np.zeros(a.shape, bool), gaussians),
    value=jax.tree.map(np.zeros_like, gaussians),
    kept=np.ones(count, bool),
    energy_class=np.zeros(count, np.int32),
    axes=np.zeros((channels, channels), np.int8),
    low=np.zeros((count, 2), np.int32),
    size=np.zeros((count, 2), np.int32),
  )
  return initial_state(gaussians, nothing, adam())


class Schedule(NamedTuple):
  """Steps that prune, then groups with steps of refitting between them."""

  pruning: int
  refitting: int  # between two groups
  num_groups: int

  @property
  def num_steps(self) -> int:
    return self.pruning + self.refitting * (self.num_groups - 1)

  def next_block(self, done: int, penalty: RatePenalty) -> NextBlock:
    """Up to the end of pruning or of a group's refitting; only pruning pays for the rate."""
    if done < self.pruning:
      return NextBlock(min(BLOCK_STEPS, self.pruning - done), penalty)
    left = self.refitting - (done - self.pruning) % self.refitting
    return NextBlock(min(BLOCK_STEPS, left), NO_PENALTY)

  def group_after(self, done: int) -> int | None:
    """The group that is quantized after so many steps, if there is one."""
    group, rest = divmod(done - self.pruning, self.refitting)
    return group if done >= self.pruning and rest == 0 else None


def schedule(steps: int, groups: int) -> Schedule:
  """`steps` in all, or a few more or less."""
  num_groups = groups * len(ATTRIBUTES)
  refitting = max(round((1 - _PRUNING_SHARE) * steps / (num_groups - 1)), 1)
  return Schedule(max(steps - refitting * (num_groups - 1), 0), refitting, num_groups)


def quantize_stage(
  method: AdaptiveMethod,
  key: PRNGKeyArray,
  gaussians: Gaussians,
  target: Float[np.ndarray, 'H W C'],
  settings: FitSettings,
) -> Stage:
  """The stage 'finetune': prunes the Gaussians and quantizes them group by group."""
  height, width, _ = target.shape
  plan, loss = schedule(settings.finetune_steps, method.groups), functions_of(settings).loss
  # As many as the fit started with, whatever is left: pictures of one size share a program.
  count = max(method.default_budget(height * width), gaussians.num_gaussians)
  gaussians = with_inactive(gaussians, round_gaussians(count))
  penalty = rate_penalty(method.quantization_step, method.lmbda, method.presence, target.size)
  # As arguments of the program, so that all blocks share one.
  with_penalty, without = (jax.tree.map(np.float32, p) for p in (penalty, NO_PENALTY))

  def next_block(done: int) -> NextBlock:
    block = plan.next_block(done, with_penalty)
    return block if block.context is with_penalty else block._replace(context=without)

  def quantized(state: FitState) -> FitState:
    group = plan.group_after(int(state.step))
    if group is None:
      return state
    return quantize_group(state, key, group, method, (height, width))

  def after_block(state: StageState, progress: Progress) -> tuple[StageState, Progress]:
    return replace(state, current=quantized(state.current)), progress

  return Stage(
    name='finetune',
    num_steps=plan.num_steps,
    target=padded_target(target, loss),
    start=StageState(quantized(unquantized_state(gaussians))),
    forward=forward,
    optimizer=adam(),
    loss=loss,
    next_block=next_block,
    after_block=after_block,
    finish=lambda state: to_symbols(state.current, method, height, width),
  )


def _choose_steps(state: FitState, method: AdaptiveMethod) -> FitState:
  """Chooses energy classes and colour axes, and removes Gaussians of too little energy."""
  params = canonical(jax.tree.map(np.asarray, state.params))
  gaussians = with_scale_floor(params)
  energy_of_each, e = energy(gaussians), gaussians.color * np.sqrt(area(gaussians.log_scale))
  kept = energy_of_each > method.min_gain
  kept[np.argmax(energy_of_each)] = True  # a file has one at least
  energy_class = np.zeros(energy_of_each.shape, np.int64)
  energy_class[kept] = method.classify(energy_of_each[kept], method.quantization_step)
  nowhere = inactive(*e.shape)
  carry = replace(
    jax.tree.map(np.asarray, state.carry),
    quantized=jax.tree.map(lambda leaf: np.broadcast_to(~_like(kept, leaf), leaf.shape), nowhere),
    value=nowhere,
    kept=kept,
    energy_class=energy_class.astype(np.int32),
    axes=method.axes(e[kept]),
  )
  return replace(state, params=params, carry=carry)


def _like(mask: np.ndarray, leaf: np.ndarray) -> np.ndarray:
  """A mask of Gaussians, shaped to broadcast against an attribute's numbers."""
  return mask.reshape(-1, *[1] * (leaf.ndim - 1))


def quantize_group(
  state: FitState, key: PRNGKeyArray, group: int, method: AdaptiveMethod, sizes: tuple[int, ...]
) -> FitState:
  """Quantizes a group of an attribute's numbers, a random part of them; nothing a second time.

  `sizes` are the picture's height and width.
  """
  if group == 0 and not np.any(np.asarray(state.carry.quantized.log_scale)):
    state = _choose_steps(state, method)
  # On the host: JAX would compile each of these small operations, once for each number of rows.
  params, carry = jax.tree.map(np.asarray, (state.params, state.carry))
  free = with_scale_floor(params)
  which, part = divmod(group, method.groups)
  name = ATTRIBUTES[which]
  order = random_generator(key, which).permutation(np.flatnonzero(carry.kept))
  mine = np.zeros(carry.kept.shape, bool)
  mine[np.array_split(order, method.groups)[part]] = True
  if name == 'mean_xy' and not np.any(carry.size):
    low, size = np.zeros((mine.size, 2), np.int32), np.ones((mine.size, 2), np.int32)
    means = free.mean_xy[carry.kept].astype(np.float64)
    low[carry.kept], size[carry.kept] = boxes.boxes_of(means, *sizes)
    carry = replace(carry, low=low, size=size)
  values = _NEAREST[name](free, carry, method.quantization_step).astype(np.float32)
  before = getattr(carry.quantized, name)
  new = _like(mine, values) & ~before
  value = np.where(new, values, getattr(carry.value, name))
  carry = replace(
    carry,
    value=replace(carry.value, **{name: value}),
    quantized=replace(carry.quantized, **{name: before | new}),
  )
  return replace(state, carry=carry)


def _log_scale_levels(log_scale, energy_class):
  steps = adaptive.log_scale_steps()[energy_class][:, None]
  most = adaptive.LEVELS // steps - 1
  levels = np.rint(adaptive.OCTAVE * log_scale / np.log(2) / steps)
  return np.clip(levels, -most, most).astype(np.int64)


def _nearest_log_scale(free: Gaussians, carry: QuantizationState, step: float):
  scale = adaptive.scales(_log_scale_levels(free.log_scale, carry.energy_class), carry.energy_class)
  return np.log(scale)


def _shapes(carry: QuantizationState):
  """Of quantized log scales: levels, standard deviations, and how many values a rotation has."""
  levels = _log_scale_levels(carry.value.log_scale, carry.energy_class)
  scale = adaptive.scales(levels, carry.energy_class)
  return levels, scale, adaptive.num_rotations(scale, carry.energy_class)


def _nearest_rotation(free: Gaussians, carry: QuantizationState, step: float):
  _, _, rotations = _shapes(carry)
  return np.pi * _rotation_levels(free.rotation, rotations) / rotations


def _rotation_levels(rotation, rotations):
  return np.mod(np.rint(rotation * rotations / np.pi), rotations).astype(np.int64)


def _cells(mean, carry: QuantizationState):
  """The cell of its box that each mean is nearest to, and the cell's middle, px."""
  _, scale, rotations = _shapes(carry)
  rotation = _rotation_levels(carry.value.rotation, rotations)
  spread, shear = adaptive.spreads(scale, rotation, rotations)
  low, size = carry.low.astype(np.int64), carry.size.astype(np.int64)
  cells = adaptive.num_cells(size, spread, carry.energy_class)
  cell = adaptive.nearest_cell(mean.astype(np.float64), low, size, cells, spread, shear)
  return cell, adaptive.means(low, size, cell, cells)


def _nearest_mean(free: Gaussians, carry: QuantizationState, step: float):
  return _cells(free.mean_xy, carry)[1]


def _color_levels(e, carry: QuantizationState, step: float):
  x = e @ adaptive.unit_axes(carry.axes).T / step
  return np.where(np.abs(x) < _DEAD_ZONE, 0, np.rint(x)).astype(np.int64)


def _nearest_color(free: Gaussians, carry: QuantizationState, step: float):
  # The area by which the fit turns colours into e: that of the scales as they are fitted.
  e = free.color * np.sqrt(np.pi * np.exp(np.sum(free.log_scale, axis=-1, keepdims=True)))
  return step * _color_levels(e, carry, step) @ adaptive.unit_axes(carry.axes)


# (free Gaussians, state, quantization step) -> the nearest values that a file can hold.
_NEAREST = {
  'log_scale': _nearest_log_scale,
  'rotation': _nearest_rotation,
  'mean_xy': _nearest_mean,
  'color': _nearest_color,
}


def to_symbols(state: FitState, method: AdaptiveMethod, height: int, width: int) -> AdaptiveSymbols:
  """The integers of a state in which all is quantized. Raises ValueError on another."""
  carry: QuantizationState = jax.tree.map(np.asarray, state.carry)
  if not all(np.all(leaf) for leaf in jax.tree.leaves(carry.quantized)):
    raise ValueError('to_symbols: wanted all numbers quantized, got some that are free')
  carry = replace(
    jax.tree.map(lambda leaf: leaf[carry.kept], replace(carry, axes=None)), axes=carry.axes
  )
  levels, _, rotations = _shapes(carry)
  cell, _ = _cells(carry.value.mean_xy, carry)
  return AdaptiveSymbols(
    height=height,
    width=width,
    channels=carry.value.color.shape[-1],
    method=method.name,
    step_index=method.step_index,
    axes=carry.axes,
    energy_class=carry.energy_class.astype(np.int64),
    log_scale=levels,
    rotation=_rotation_levels(carry.value.rotation, rotations),
    low=carry.low.astype(np.int64),
    size=carry.size.astype(np.int64),
    cell=cell,
    color=_color_levels(carry.value.color, carry, method.quantization_step),
  )
