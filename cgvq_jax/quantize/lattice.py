"""Positions in half precision or on lattices, and the straight-through gradient."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from cgvq_jax.quantize import uniform
from cgvq_jax.quantize.base import Quantized, Quantizer
from cgvq_jax.quantize.dequantizers import GRID, HALF, HALF_ALPHABETS, Grid, NoParams, grid_value
from cgvq_jax.quantize.tables import LARGEST_HALF, SMALLEST_NORMAL_HALF

_ALPHABETS = (65536, 65536)
# Members may move this many steps below the smallest of them, which costs the file nothing much.
_MARGIN = 16


def fp16() -> Quantizer:
  """Rows [x, y] rounded to the nearest half-precision number, ties to even (GaussianImage).

  The gradient is straight-through: d value / d x = 1. Between -1 and 1 the error is at most 2^-12,
  less towards 0. A coordinate beyond +-65504 is taken as +-65504. A symbol is the number's 16 bits.
  There are no params and no tables.
  """
  return Quantizer(
    name='fp16',
    alphabets=HALF_ALPHABETS,
    init=lambda key, rows, mask, steps: NoParams(),
    quantize=_to_half,
    tabulate=lambda params: {},
    dequantizer=HALF,
  )


def lattice() -> Quantizer:
  """Rows [x, y] rounded to the points of a lattice that each cluster chooses, offset + step level.

  Quantizing in a step adds a squared error in proportion to step^2 H, H the sensitivity, so the
  cluster's step is the one that adds as much as the members' own steps s_i would:

      step = (mean_i s_i^-2)^(-1/2)        for each of the two columns

  Steps and offsets are not learned. The gradient is straight-through: d value / d x = 1. A level
  is a symbol; the offset lies some steps below the smallest member, and a member that moves below
  the offset has level 0. The tables hold step (at least 2^-14) and offset as half-precision bits,
  and `init` chooses among these already.
  """
  return Quantizer(
    name='lattice',
    alphabets=_ALPHABETS,
    init=_init,
    quantize=_quantize,
    tabulate=uniform.tabulate,
    dequantizer=GRID,
  )


def straight_through(
  x: Float[Array, '*shape'], value: Float[Array, '*shape']
) -> Float[Array, '*shape']:
  """`value`, with the gradient of x (Bengio et al. 2013)."""
  # The usual x + stop_gradient(value - x) differs from value by a rounding; x - x is exactly 0.
  return lax.stop_gradient(value) + (x - lax.stop_gradient(x))


def _to_half(params: NoParams, rows: Float[Array, 'P 2'], mask) -> Quantized:
  del mask  # nothing is learned from the members
  value = _round_to_half(lax.stop_gradient(rows))
  symbols = lax.bitcast_convert_type(value.astype(jnp.float16), jnp.uint16).astype(jnp.int32)
  return Quantized(straight_through(rows, value), symbols, params, jnp.zeros(()))


def _round_to_half(x):
  # Not x.astype(float16).astype(float32): XLA may drop such a pair as excess precision. It keeps
  # reduce_precision, which flushes subnormals to 0; they are multiples of 2^-24.
  x = jnp.clip(x, -LARGEST_HALF, LARGEST_HALF)
  subnormal = jnp.round(x * 2.0**24) * 2.0**-24
  normal = lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
  return jnp.where(jnp.abs(x) < SMALLEST_NORMAL_HALF, subnormal, normal)


def _init(
  key: PRNGKeyArray,
  rows: Float[Array, 'P 2'],
  mask: Bool[Array, 'P'],
  steps: Float[Array, 'P 2'],
) -> Grid:
  del key
  costs = jnp.where(mask[:, None], steps**-2.0, 0)
  mean = jnp.sum(costs, axis=0) / jnp.maximum(jnp.sum(mask), 1)
  step = lax.rsqrt(jnp.clip(mean, LARGEST_HALF**-2.0, SMALLEST_NORMAL_HALF**-2.0))
  step = _round_to_half(step)
  low = jnp.min(jnp.where(mask[:, None], rows, jnp.inf), axis=0)
  low = jnp.where(jnp.any(mask), low, 0)
  return Grid(step, _round_to_half(low - _MARGIN * step))


def _quantize(params: Grid, rows: Float[Array, 'P 2'], mask) -> Quantized:
  del mask
  params = lax.stop_gradient(params)
  position = (lax.stop_gradient(rows) - params.offset) / params.step
  level = jnp.round(jnp.clip(position, 0, _ALPHABETS[0] - 1))
  value = straight_through(rows, grid_value(params, level))
  return Quantized(value, level.astype(jnp.int32), params, jnp.zeros(()))
