"""Positions in IEEE half precision, and the straight-through gradient."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from cgvq_jax.quantize import tables
from cgvq_jax.quantize.tables import LARGEST_HALF, SMALLEST_NORMAL_HALF
from cgvq_jax.types import Quantized, Quantizer

_ALPHABETS = (65536, 65536)


def fp16() -> Quantizer:
  """Rows [x, y] rounded to the nearest half-precision number, ties to even (GaussianImage).

  The gradient is straight-through: d value / d x = 1. Between -1 and 1 the error is at most 2^-12,
  less towards 0. A coordinate beyond +-65504 is taken as +-65504. A symbol is the number's 16 bits.
  There are no params and no tables.
  """
  return Quantizer(
    name='fp16',
    alphabets=_ALPHABETS,
    init=lambda key, rows, mask: (),
    quantize=_quantize,
    dequantize=_dequantize,
    tabulate=lambda params: {},
    restore=_restore,
  )


def straight_through(
  x: Float[Array, '*shape'], value: Float[Array, '*shape']
) -> Float[Array, '*shape']:
  """`value`, with the gradient of x (Bengio et al. 2013)."""
  # The usual x + stop_gradient(value - x) differs from value by a rounding; x - x is exactly 0.
  return lax.stop_gradient(value) + (x - lax.stop_gradient(x))


def _quantize(params: tuple[()], rows: Float[Array, 'P 2'], mask) -> Quantized:
  del mask  # nothing is learned from the members
  value = _round_to_half(lax.stop_gradient(rows))
  symbols = lax.bitcast_convert_type(value.astype(jnp.float16), jnp.uint16).astype(jnp.int32)
  return Quantized(straight_through(rows, value), symbols, params, jnp.zeros(()))


def _dequantize(params: tuple[()], symbols: Int[Array, 'P 2']) -> Float[Array, 'P 2']:
  del params
  halves = lax.bitcast_convert_type(symbols.astype(jnp.uint16), jnp.float16)
  return halves.astype(jnp.float32)


def _round_to_half(x):
  # Not x.astype(float16).astype(float32): XLA may drop such a pair as excess precision. It keeps
  # reduce_precision, which flushes subnormals to 0; they are multiples of 2^-24.
  x = jnp.clip(x, -LARGEST_HALF, LARGEST_HALF)
  subnormal = jnp.round(x * 2.0**24) * 2.0**-24
  normal = lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
  return jnp.where(jnp.abs(x) < SMALLEST_NORMAL_HALF, subnormal, normal)


def _restore(stored: dict[str, np.ndarray], alphabets: tuple[int, ...]) -> tuple[()]:
  tables.check(stored, {})
  if alphabets != _ALPHABETS:
    raise ValueError(f'wanted alphabets {_ALPHABETS}, got {alphabets}')
  return ()
