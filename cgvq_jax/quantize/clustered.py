"""One image as integers, cluster by cluster, and the Gaussians that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cgvq_jax.extensions import Registry
from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.quantize.base import Dequantizer
from cgvq_jax.quantize.dequantizers import GRID, HALF, RESIDUAL

if TYPE_CHECKING:
  from jaxtyping import Float32

ATTRIBUTES = ('position', 'rotation_scale', 'color')


class Stream(NamedTuple):
  """One attribute as integers: what the file holds of it."""

  quantizer: str  # Quantizer.name
  alphabets: tuple[int, ...]  # Quantizer.alphabets
  tables: dict[str, np.ndarray]  # Quantizer.tabulate: [K, ...], uint8 or uint16
  symbols: np.ndarray  # [N, S] int32, cluster by cluster


class CodebookSymbols(NamedTuple):
  """One encoded image as integers; the file is a lossless coding of exactly this."""

  version = 1  # of the file format

  height: int  # px
  width: int  # px
  channels: int  # 1, 3 or 4
  method: str  # the name of the method that made them
  counts: np.ndarray  # [K] int32, Gaussians of each cluster; sum is N
  position: Stream
  rotation_scale: Stream
  color: Stream
  order: str = 'sorted'  # of the Gaussians in the file, a key of `bitstream.ordering.ORDERS`


# What a file may name as its quantizers. Sizes of codebooks are in the file's tables.
DEQUANTIZERS: Registry[Dequantizer] = Registry(
  'quantizer', {'fp16': HALF, 'lattice': GRID, 'uniform': GRID, 'residual': RESIDUAL}
)


def columns_of(channels: int) -> dict[str, int]:
  """Numbers of each attribute's rows: x, y; rotation and two log scales; the channels."""
  return dict(zip(ATTRIBUTES, (2, 3, channels), strict=True))


def dequantize(
  symbols: CodebookSymbols, dequantizers: Mapping[str, Dequantizer] = DEQUANTIZERS
) -> Gaussians:
  """The Gaussians that the integers stand for, NumPy float32: table look-ups, cluster by cluster.

  Positions are rows [x, y], -1..1 from edge to edge of the image, rotation and scale rows
  [rotation, log s1, log s2]. Tables may hold any bits, so what comes out may be NaN or infinite.

  Raises:
    ValueError: the attribute has a quantizer that is not among `dequantizers`, or tables that do
      not fit it, the alphabets or the number of channels.
  """
  with np.errstate(over='ignore', invalid='ignore'):
    position, rotation_scale, color = (
      _rows(attribute, symbols, count, dequantizers)
      for attribute, count in columns_of(symbols.channels).items()
    )
    return Gaussians(
      mean_xy=(position + 1) * np.array([symbols.width, symbols.height], np.float32) / 2,
      log_scale=rotation_scale[:, 1:],
      rotation=rotation_scale[:, 0],
      color=color,
    )


def _rows(
  attribute: str, symbols: CodebookSymbols, count: int, dequantizers: Mapping[str, Dequantizer]
) -> Float32[np.ndarray, 'N D']:
  stream: Stream = getattr(symbols, attribute)
  if stream.quantizer not in dequantizers:
    known = sorted(dequantizers)
    raise ValueError(f'{attribute} quantizer: wanted one of {known}, got {stream.quantizer!r}')
  dequantizer = dequantizers[stream.quantizer]
  try:
    params = dequantizer.restore(stream.tables, stream.alphabets)
  except ValueError as error:
    raise ValueError(f'{attribute}: {stream.quantizer}: {error}') from error
  parts = np.split(np.asarray(stream.symbols), np.cumsum(symbols.counts)[:-1])
  rows = np.concatenate(
    [
      dequantizer.dequantize(type(params)(*(leaf[cluster] for leaf in params)), part)
      for cluster, part in enumerate(parts)
    ]
  )
  if rows.shape[1] != count:
    raise ValueError(f'{attribute}: wanted {count} columns, got {rows.shape[1]}')
  return rows
