"""Tables of a file: half precision as bits, and what a table has to look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from jaxtyping import Float, Float32, UInt16

LARGEST_HALF = 65504.0
SMALLEST_NORMAL_HALF = 2.0**-14


def half_bits(values: Float[np.ndarray, '*shape']) -> UInt16[np.ndarray, '*shape']:
  """The bits of the nearest half-precision numbers; beyond +-65504, those of +-65504."""
  return np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float16).view(np.uint16)


def from_half_bits(bits: UInt16[np.ndarray, '*shape']) -> Float32[np.ndarray, '*shape']:
  """The inverse of `half_bits`, exact."""
  return np.ascontiguousarray(bits, np.uint16).view(np.float16).astype(np.float32)


def check(
  tables: dict[str, np.ndarray], wanted: dict[str, tuple[type[np.unsignedinteger], tuple[int, ...]]]
) -> None:
  """Raises ValueError unless the tables are those `wanted`: type, and shape after the K axis."""
  if set(tables) != set(wanted):
    raise ValueError(f'wanted tables {sorted(wanted)}, got {sorted(tables)}')
  for name, (dtype, shape) in wanted.items():
    table = tables[name]
    if table.dtype != dtype or table.shape[1:] != shape:
      kind = f'{table.dtype} {table.shape[1:]}'
      raise ValueError(f'table {name}: wanted {np.dtype(dtype)} {shape} a cluster, got {kind}')
