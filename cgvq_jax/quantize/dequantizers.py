"""Symbols back to real rows, in NumPy: half precision, uniform steps, residual codebooks.

All arithmetic is float32, in the order that docs/FORMAT.md gives. Products with half-precision
steps are exact up to 8192 levels, so the encoder's JAX gets the same numbers there, with or without
fused multiply-adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cgvq_jax.quantize import tables
from cgvq_jax.quantize.base import Dequantizer
from cgvq_jax.quantize.tables import from_half_bits

if TYPE_CHECKING:
  from jaxtyping import Float, Int

  Array = Any  # NumPy's here, JAX's in training

HALF_ALPHABETS = (65536, 65536)


class NoParams(NamedTuple):
  """Those of a quantizer that has none."""


class Grid(NamedTuple):
  """Equal steps of one cluster, column by column, in the units of the rows."""

  step: Float[Array, 'D']  # > 0
  offset: Float[Array, 'D']  # the value of level 0


class Codebooks(NamedTuple):
  """S codebooks of M entries for one cluster, in the units of the rows, with moving averages."""

  entries: Float[Array, 'S M D']
  counts: Float[Array, 'S M']  # members that chose the entry, moving average
  sums: Float[Array, 'S M D']  # sum of what it was chosen for, moving average


def grid_value(grid: Grid, level: Float[Array, 'P D']) -> Float[Array, 'P D']:
  """level * step + offset, of NumPy or JAX arrays."""
  return level * grid.step + grid.offset


def _restore_half(stored: dict[str, np.ndarray], alphabets: tuple[int, ...]) -> NoParams:
  tables.check(stored, {})
  if alphabets != HALF_ALPHABETS:
    raise ValueError(f'wanted alphabets {HALF_ALPHABETS}, got {alphabets}')
  return NoParams()


def _dequantize_half(params: NoParams, symbols: Int[np.ndarray, 'n 2']) -> Float[np.ndarray, 'n 2']:
  del params
  return from_half_bits(symbols.astype(np.uint16))


def _restore_grid(stored: dict[str, np.ndarray], alphabets: tuple[int, ...]) -> Grid:
  columns = (len(alphabets),)
  tables.check(stored, {'step': (np.uint16, columns), 'offset': (np.uint16, columns)})
  return Grid(from_half_bits(stored['step']), from_half_bits(stored['offset']))


def _dequantize_grid(params: Grid, symbols: Int[np.ndarray, 'n D']) -> Float[np.ndarray, 'n D']:
  return grid_value(params, symbols.astype(np.float32))


def _restore_residual(stored: dict[str, np.ndarray], alphabets: tuple[int, ...]) -> Codebooks:
  """entry = low + step * code; the counts are 1, so that the entries are in use."""
  stages, size = len(alphabets), alphabets[0]
  if alphabets != (size,) * stages:
    raise ValueError(f'wanted codebooks of one size, got {alphabets}')
  columns = stored['low'].shape[-1] if 'low' in stored else 0
  shapes = {'low': (stages, columns), 'step': (columns,), 'entries': (stages, size, columns)}
  types = {'low': np.uint16, 'step': np.uint16, 'entries': np.uint8}
  tables.check(stored, {name: (types[name], shape) for name, shape in shapes.items()})
  low = from_half_bits(stored['low'])[:, :, None]
  step = from_half_bits(stored['step'])[:, None, None]
  # 8 by 11 significant bits at most: the product is exact and the sum rounds once, everywhere.
  entries = low + step * stored['entries'].astype(np.float32)
  return Codebooks(entries, np.ones(entries.shape[:-1], np.float32), entries)


def _dequantize_residual(
  params: Codebooks, symbols: Int[np.ndarray, 'n S']
) -> Float[np.ndarray, 'n D']:
  value = np.zeros((len(symbols), params.entries.shape[-1]), np.float32)
  # From the first stage to the last, as the encoder sums, so that both round alike.
  for entries, chosen in zip(params.entries, symbols.T, strict=True):
    value = value + entries[chosen]
  return value


HALF = Dequantizer(_restore_half, _dequantize_half)
GRID = Dequantizer(_restore_grid, _dequantize_grid)
RESIDUAL = Dequantizer(_restore_residual, _dequantize_residual)
