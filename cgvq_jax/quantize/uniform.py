"""Uniform quantization with a learned step and offset for each cluster and column (LSQ+)."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from cgvq_jax.quantize.base import Quantized, Quantizer
from cgvq_jax.quantize.dequantizers import GRID, Grid, grid_value
from cgvq_jax.quantize.tables import LARGEST_HALF, SMALLEST_NORMAL_HALF, half_bits

# The file holds steps in half precision: no step is smaller than the smallest normal half, below
# which halves lose their relative precision and end in 0.
_SMALLEST_STEP = SMALLEST_NORMAL_HALF


def uniform(levels: int = 64, num_columns: int = 3) -> Quantizer:
  """value = level * step + offset, level = round(clip((x - offset) / step, 0, levels - 1)).

  Step and offset start at the members' range and are learned by gradient (LSQ+, Bhalgat et al.
  2020, learnable asymmetric quantization): with v = (x - offset) / step, for each element

      d value / d x       1 where 0 <= v <= levels - 1, else 0
      d value / d step    level - v there, else level, times g
      d value / d offset  0 there, else 1, times g

  g = 1 / sqrt(members * (levels - 1)) keeps the updates of the two in proportion to those of the
  rows (LSQ, Esser et al. 2020, section 2.2). The range includes its ends, unlike the papers',
  because the first step and offset put the smallest and largest member exactly there.

  The tables hold step and offset as half-precision bits, the step at least 2^-14. A restored step
  has 11 significant bits, so level * step is exact in float32 up to 8192 levels, and fused or not,
  on any machine, the value is the same float.

  Raises:
    ValueError: `levels` outside 2..65536 or `num_columns` below 1.
  """
  if not 2 <= levels <= 65536:
    raise ValueError(f'levels must be in 2..65536, got {levels}')
  if num_columns < 1:
    raise ValueError(f'num_columns must be at least 1, got {num_columns}')
  return Quantizer(
    name='uniform',
    alphabets=(levels,) * num_columns,
    init=functools.partial(_init, levels=levels),
    quantize=functools.partial(_quantize, levels=levels),
    tabulate=tabulate,
    dequantizer=GRID,
  )


def _init(
  key: PRNGKeyArray,
  rows: Float[Array, 'P D'],
  mask: Bool[Array, 'P'],
  steps: Float[Array, 'P D'],
  *,
  levels: int,
) -> Grid:
  del key, steps
  low = jnp.min(jnp.where(mask[:, None], rows, jnp.inf), axis=0)
  high = jnp.max(jnp.where(mask[:, None], rows, -jnp.inf), axis=0)
  occupied = jnp.any(mask)
  low, high = jnp.where(occupied, low, 0), jnp.where(occupied, high, 0)
  step = jnp.maximum((high - low) / (levels - 1), _SMALLEST_STEP)
  return Grid(step, low)


def _quantize(
  params: Grid, rows: Float[Array, 'P D'], mask: Bool[Array, 'P'], *, levels: int
) -> Quantized:
  grid = lax.stop_gradient(Grid(jnp.maximum(params.step, _SMALLEST_STEP), params.offset))
  x = lax.stop_gradient(rows)
  position = (x - grid.offset) / grid.step  # v above
  inside = (position >= 0) & (position <= levels - 1)
  level = jnp.round(jnp.clip(position, 0, levels - 1))

  gradient_scale = lax.rsqrt(jnp.maximum(jnp.sum(mask), 1) * (levels - 1.0))
  weight = jnp.where(mask[:, None], gradient_scale, 0)
  by_step = weight * jnp.where(inside, level - position, level)
  by_offset = weight * jnp.where(inside, 0, 1)
  # Each difference is exactly 0 and only carries a gradient. The step's reaches the param itself
  # also where that is below the smallest, so that it can grow again.
  learned = (
    jnp.where(inside, rows - x, 0)
    + by_step * (params.step - lax.stop_gradient(params.step))
    + by_offset * (params.offset - grid.offset)
  )
  value = grid_value(grid, level) + learned
  return Quantized(value, level.astype(jnp.int32), grid, jnp.zeros(()))


def tabulate(params: Grid) -> dict[str, np.ndarray]:
  step = np.clip(np.asarray(params.step), _SMALLEST_STEP, LARGEST_HALF)
  return {'step': half_bits(step), 'offset': half_bits(np.asarray(params.offset))}
