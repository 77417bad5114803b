"""Rendering in plain NumPy: for decoding one image without starting JAX. It has no gradient.

Each Gaussian is listed for the tiles that its cutoff ellipse meets, tile row by tile row as in
`tiles.assign`. Then blocks of (tile, Gaussian) pairs are evaluated at all pixels of their tiles, as
arrays [pixel, pair]: pairs are on the contiguous axis, since NumPy starts a loop of its own for
each row of a broadcast operation and a tile's 16 columns would be too short for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cgvq_jax.primitives.geometry import CUTOFF, CUTOFF_RADIUS, covariance, whitening
from cgvq_jax.rasterize.limits import validate

if TYPE_CHECKING:
  from jaxtyping import Float, Int

  from cgvq_jax.primitives.gaussians import Gaussians

_SIDE = 16  # px, of a tile
_BLOCK = 512  # pairs evaluated at a time: two arrays of 512 KiB, which stay in L2 cache
_LISTED = 1 << 18  # pairs listed at a time, some 50 bytes each
_SLICES = 1 << 16  # parts of ellipses in rows of tiles, of which pairs are made at a time


def rasterize(gaussians: Gaussians, height: int, width: int) -> Float[np.ndarray, 'H W C']:
  """I(p) = sum_i c_i exp(-q_i(p)), q_i <= ln 255 (see `reference`), unclamped, float32.

  Memory: the image, lists that are no larger (or 50 MiB), and one block of pairs. Raises
  ValueError on impossible sizes.
  """
  validate(gaussians, height, width)
  mean, log_scale, rotation, color = (
    np.asarray(getattr(gaussians, name), np.float32)
    for name in ('mean_xy', 'log_scale', 'rotation', 'color')
  )
  white = whitening(log_scale, rotation)  # [N, 3]
  rows, columns = -(-height // _SIDE), -(-width // _SIDE)
  image = np.zeros((rows * _SIDE, columns * _SIDE, color.shape[-1]), np.float32)
  # Where float32 overflows or underflows, q is beyond the cutoff or the weight is 0.
  with np.errstate(over='ignore', under='ignore'):
    for tile, gaussian in _lists(mean, covariance(log_scale, rotation), rows, columns):
      order = np.argsort(tile, kind='stable')
      _add_pairs(image, tile[order], gaussian[order], mean, white, color)
  return np.ascontiguousarray(image[:height, :width])


# --- tile lists ---


def _lists(
  mean: Float[np.ndarray, 'N 2'], sigma: Float[np.ndarray, 'N 3'], rows: int, columns: int
) -> Iterator[tuple[Int[np.ndarray, 'P'], Int[np.ndarray, 'P']]]:
  """Tile and Gaussian of all pairs, each once: some _LISTED at a time, from the top to the bottom.

  Most tiles have all their pairs in one of these lists, so that they are added to the image in few
  products."""
  extent = CUTOFF_RADIUS * np.sqrt(sigma[:, 0] + sigma[:, 2])
  # A bound on the float32 rounding of positions and extents, px.
  slack = 1e-3 + 4e-6 * (extent + np.max(np.abs(mean), axis=-1))
  half = CUTOFF_RADIUS * np.sqrt(sigma[:, 2]) + slack
  first_row, num_rows = _span(mean[:, 1] - half, mean[:, 1] + half, rows)
  # At some 40 bytes each, 64 slices for every tile take no more memory than three channels.
  for some in _groups(num_rows, max(_LISTED, 64 * rows * columns)):
    owner, row = _expand(some, first_row, num_rows)
    downwards = np.argsort(row, kind='stable')
    for start in range(0, owner.size, _SLICES):
      part = downwards[start : start + _SLICES]
      yield from _row_lists(mean, sigma, slack, owner[part], row[part], columns)


def _row_lists(mean, sigma, slack, owner, row, columns: int):
  """Tile and Gaussian of the pairs of slices: of Gaussians `owner` [S] in rows of tiles `row`."""
  low, high = _row_extents(mean[owner], sigma[owner], slack[owner], row * np.float32(_SIDE))
  first_column, num_columns = _span(low, high, columns)
  for some in _groups(num_columns, _LISTED):
    slice_, column = _expand(some, first_column, num_columns)
    yield row[slice_] * columns + column, owner[slice_]


def _span(low, high, num_tiles: int):
  """First tile and number of tiles whose pixel centres meet [low, high] (px), within the image."""
  first = np.ceil(np.clip((low + 0.5) / _SIDE - 1, 0, num_tiles)).astype(np.int64)
  last = np.floor(np.clip((high - 0.5) / _SIDE, -1, num_tiles - 1)).astype(np.int64)
  return first, np.maximum(last - first + 1, 0)


def _groups(counts: Int[np.ndarray, 'M'], limit: int) -> Iterator[Int[np.ndarray, 'G']]:
  """Indices of consecutive items whose counts add up to at most `limit`, or of a single item."""
  ends, first = np.cumsum(counts), 0
  while first < counts.size:
    before = ends[first - 1] if first else 0
    last = max(int(np.searchsorted(ends, before + limit, side='right')), first + 1)
    yield np.arange(first, last)
    first = last


def _expand(items: Int[np.ndarray, 'G'], first, counts):
  """Lists item i counts[i] times: the items, and with them first[i], first[i] + 1, ..."""
  counts = counts[items]
  starts = np.cumsum(counts) - counts
  owner = np.repeat(items, counts)
  return owner, np.arange(owner.size) + np.repeat(first[items] - starts, counts)


def _row_extents(mean, sigma, slack, y):
  """The x range (px) of each cutoff ellipse, grown by `slack`, in the row of tiles that begins at
  y; see `tiles._row_extents`, which this repeats operation by operation."""
  sxx, sxy, syy = sigma.T
  half_x, half_y = CUTOFF_RADIUS * np.sqrt(sxx), CUTOFF_RADIUS * np.sqrt(syy)
  top = np.maximum(y + 0.5 - slack - mean[:, 1], -half_y)
  bottom = np.minimum(y + (_SIDE - 0.5) + slack - mean[:, 1], half_y)
  slope = sxy / syy
  across = np.maximum(sxx - sxy * slope, 1e-6 * sxx)
  furthest = half_x * sxy / sxx

  def border(dy):
    chord = np.maximum(2 * CUTOFF - dy**2 / syy, 0)
    return slope * dy, np.sqrt(chord * across)

  center, reach = border(np.clip(furthest, top, bottom))
  right = mean[:, 0] + center + reach
  center, reach = border(np.clip(-furthest, top, bottom))
  left = mean[:, 0] + center - reach
  return left - slack, right + slack


# --- pixels ---


def _add_pairs(
  image: Float[np.ndarray, 'Y X C'],
  tile: Int[np.ndarray, 'P'],
  gaussian: Int[np.ndarray, 'P'],
  mean: Float[np.ndarray, 'N 2'],
  white: Float[np.ndarray, 'N 3'],
  color: Float[np.ndarray, 'N C'],
) -> None:
  """Adds pairs, sorted by tile, to an image whose sides are multiples of a tile's."""
  rows, columns = image.shape[0] // _SIDE, image.shape[1] // _SIDE
  tiles = image.reshape(rows, _SIDE, columns, _SIDE, -1).swapaxes(1, 2)  # a view
  for start in range(0, tile.size, _BLOCK):
    of_tile, of_gaussian = tile[start : start + _BLOCK], gaussian[start : start + _BLOCK]
    row, column = np.divmod(of_tile, columns)
    weight = _weights(mean[of_gaussian], white[of_gaussian], row * _SIDE, column * _SIDE)
    weight, colors = weight.reshape(_SIDE * _SIDE, -1), color[of_gaussian]
    cuts = np.flatnonzero(np.diff(of_tile)) + 1  # where another tile begins
    for first, end in zip([0, *cuts.tolist()], [*cuts.tolist(), of_tile.size], strict=True):
      added = weight[:, first:end] @ colors[first:end]
      tiles[row[first], column[first]] += added.reshape(_SIDE, _SIDE, -1)


def _weights(mean, white, top, left) -> Float[np.ndarray, 'Y X B']:
  """exp(-q) where q <= ln 255, else 0, of each pair at the pixels of its tile.

  `top` and `left` [B] are the tile's corner, px. q is the sum of squares that
  `geometry.squared_distance` is, here with each factor computed once for a row or a column."""
  position = np.arange(_SIDE, dtype=np.float32)[:, None] + np.float32(0.5)
  dx = (position + left.astype(np.float32)) - mean[:, 0]  # [X, B]
  dy = (position + top.astype(np.float32)) - mean[:, 1]  # [Y, B]
  a, b, c = white.T
  minus_q = np.add(a * dx, (b * dy)[:, None])  # [Y, X, B]
  np.square(minus_q, out=minus_q)
  np.subtract(-np.square(c * dy)[:, None], minus_q, out=minus_q)
  inside = minus_q >= np.float32(-CUTOFF)
  weight = np.exp(minus_q, out=minus_q)
  # Several times faster than an assignment where the mask is false.
  return np.multiply(weight, inside, out=weight)
