"""Bodies of Pallas kernels: what one GPU program does for its tile.

A forward body sums its tile's colours in registers and writes them once. A backward body writes a
row of gradients for each pair of its tile's list, given the tile's cotangent. The list of tile t
begins at `start[t]` in `ids`, `corner` is the centre of its first pixel (px), `table` is that of
`layout`.

Bodies that process one Gaussian at a time use only what both of Pallas's GPU backends lower: scalar
reads, elementwise operations on vectors of a power of two, reductions to a scalar. They run
unchanged under Triton, Mosaic GPU and the interpreter. Bodies that process chunks gather vectors
from memory, which only Triton lowers; a chunk of 16 hides the latency of its reads and reductions.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton

from cgvq_jax.primitives.geometry import CUTOFF, squared_distance
from cgvq_jax.rasterize.tiles import TileShape

# Indices are int32 arrays: a Python int would be an int64 in an index, which does not lower.
_int = jnp.int32

# emit(out, k, n, i, value) stores entry i of the gradient through pair k, of Gaussian n.
Emit = Callable[..., None]


def _pixel_centers(tile, corner, shape: TileShape):
  pixel = lax.broadcasted_iota(jnp.int32, (shape.num_pixels,), 0)
  x = lax.rem(pixel, _int(shape.width)).astype(jnp.float32) + corner[tile, _int(0)]
  y = lax.div(pixel, _int(shape.width)).astype(jnp.float32) + corner[tile, _int(1)]
  return x, y


def _weight(mean, white, x, y):
  """Offsets of a tile's pixels from a mean, and the Gaussian's weights there."""
  dx, dy = x - mean[0], y - mean[1]
  q = squared_distance(white, dx, dy)
  return dx, dy, jnp.where(q <= CUTOFF, jnp.exp(-q), 0.0)


def _sums(white, color, dx, dy, weight, cotangent, total):
  """The sums over the tile's pixels of s u, s v, s u dx, s u dy, s v dy and of w cotangent_c, where
  s = (sum_c color_c cotangent_c) w, u = a dx + b dy and v = dy."""
  a, b, _ = white
  s = weight * sum(color[i] * cotangent[i] for i in range(len(color)))
  u, v = s * (a * dx + b * dy), s * dy
  moments = [total(part) for part in (u, v, u * dx, u * dy, v * dy)]
  return moments, [total(weight * one) for one in cotangent]


def _geometry_gradient(white, moments):
  """The gradient of a pair's mean and whitening by `_sums`: d mean = 2 sum s (a u, b u + c^2 dy),
  d a = -2 sum s u dx, d b = -2 sum s u dy, d c = -2 c sum s dy^2."""
  a, b, c = white
  u, v, u_dx, u_dy, v_dy = moments
  return [2 * a * u, 2 * (b * u + c * c * v), -2 * u_dx, -2 * u_dy, -2 * c * v_dy]


# --- one Gaussian at a time ---


def to_row(out, k, n, i, value) -> None:
  """A row for each pair, summed by Gaussian after the kernel: nothing is written twice."""
  del n
  out[k, i] = value


def to_gaussian(out, k, n, i, value) -> None:
  """Atomically to the sum of the Gaussian, in an undefined order: no sum after the kernel."""
  del k
  triton.atomic_add(out, (n, i), value)


def _row(table, n, first: int, count: int):
  return [table[n, _int(i)] for i in range(first, first + count)]


def render(tile, start, corner, ids, table, image, *, shape: TileShape) -> None:
  """image[tile, c] = sum over the tile's list of color_c w."""
  channels = image.shape[1]
  x, y = _pixel_centers(tile, corner, shape)

  def add(k, sums):
    n = ids[k]
    mean, white, color = _row(table, n, 0, 2), _row(table, n, 2, 3), _row(table, n, 5, channels)
    *_, weight = _weight(mean, white, x, y)
    return tuple(s + weight * c for s, c in zip(sums, color, strict=True))

  sums = lax.fori_loop(start[tile], start[tile + 1], add, (jnp.zeros_like(x),) * channels)
  for c in range(channels):
    image[tile, _int(c)] = sums[c]


def backward(
  tile, start, corner, ids, table, cotangent, out, *, shape: TileShape, emit: Emit = to_row
) -> None:
  """The gradient of each pair of the tile's list."""
  channels = cotangent.shape[1]
  x, y = _pixel_centers(tile, corner, shape)
  cotangents = [cotangent[tile, _int(c)] for c in range(channels)]

  def backward_of(k, nothing):
    n = ids[k]
    mean, white, color = _row(table, n, 0, 2), _row(table, n, 2, 3), _row(table, n, 5, channels)
    dx, dy, weight = _weight(mean, white, x, y)
    moments, of_color = _sums(white, color, dx, dy, weight, cotangents, jnp.sum)
    for i, value in enumerate(_geometry_gradient(white, moments) + of_color):
      emit(out, k, n, _int(i), value)
    return nothing

  lax.fori_loop(start[tile], start[tile + 1], backward_of, _int(0))


# --- in chunks, for Triton ---

_CHUNK = 16  # the smallest side of a matrix product


def _iota(size: int):
  return lax.broadcasted_iota(jnp.int32, (size,), 0)


def _chunks(tile, start):
  """(number of chunks, pairs(j) -> pairs [G] of chunk j and whether they are in the list)."""
  first, end = start[tile], start[tile + 1]

  def pairs(j):
    k = first + j * _CHUNK + _iota(_CHUNK)
    return k, k < end

  return lax.div(end - first + (_CHUNK - 1), _int(_CHUNK)), pairs


def _gather(ids, table, k, used, channels: int):
  """Gaussians [G] of a chunk, means, whitenings and colours [G]; of weight 0 beyond the list."""
  n = triton.load(ids.at[k], mask=used, other=_int(table.shape[0] - 1))
  numbers = [triton.load(table.at[n, _int(i)]) for i in range(5 + channels)]
  return n, numbers[:2], numbers[2:5], numbers[5:]


def _as_columns(numbers):
  """[G, 1] each, to broadcast with pixels [1, P]."""
  return [one[:, None] for one in numbers]


def _total(values):
  return jnp.sum(values, axis=1)


def render_in_chunks(tile, start, corner, ids, table, image, *, shape: TileShape) -> None:
  """`render`, 16 Gaussians of the list at a time."""
  channels = image.shape[1]
  x, y = (axis[None, :] for axis in _pixel_centers(tile, corner, shape))
  num_chunks, pairs = _chunks(tile, start)

  def add(j, sums):
    _, mean, white, color = _gather(ids, table, *pairs(j), channels)
    *_, weight = _weight(_as_columns(mean), _as_columns(white), x, y)  # [G, P]
    return tuple(
      s + jnp.sum(weight * c, axis=0) for s, c in zip(sums, _as_columns(color), strict=True)
    )

  nothing = jnp.zeros((shape.num_pixels,), jnp.float32)
  sums = lax.fori_loop(_int(0), num_chunks, add, (nothing,) * channels)
  for c in range(channels):
    image[tile, _int(c)] = sums[c]


def backward_in_chunks(
  tile, start, corner, ids, table, cotangent, rows, *, shape: TileShape
) -> None:
  """`backward`, 16 Gaussians of the list at a time."""
  channels = cotangent.shape[1]
  x, y = (axis[None, :] for axis in _pixel_centers(tile, corner, shape))
  cotangents = [cotangent[tile, _int(c)][None, :] for c in range(channels)]
  num_chunks, pairs = _chunks(tile, start)

  def backward_of(j, nothing):
    k, used = pairs(j)
    _, mean, white, color = _gather(ids, table, k, used, channels)
    dx, dy, weight = _weight(_as_columns(mean), _as_columns(white), x, y)
    sums = _sums(_as_columns(white), _as_columns(color), dx, dy, weight, cotangents, _total)
    for i, values in enumerate(_geometry_gradient(white, sums[0]) + sums[1]):
      triton.store(rows.at[k, _int(i)], values, mask=used)
    return nothing

  lax.fori_loop(_int(0), num_chunks, backward_of, _int(0))


# --- in chunks, with the products of weights and colours as matrix products ---

_COLUMNS = 16  # channels, padded to the smallest side of a matrix product


def render_by_products(
  tile, start, corner, ids, table, image, *, shape: TileShape, precision: lax.DotAlgorithmPreset
) -> None:
  """`render_in_chunks`; the colours [C, G] times the weights [G, P]."""
  channels = image.shape[1]
  x, y = (axis[None, :] for axis in _pixel_centers(tile, corner, shape))
  num_chunks, pairs = _chunks(tile, start)
  channel = _iota(_COLUMNS)[:, None]

  def add(j, sums):
    n, mean, white, _ = _gather(ids, table, *pairs(j), 0)
    *_, weight = _weight(_as_columns(mean), _as_columns(white), x, y)
    color = table.at[n[None, :], 5 + channel]  # [C, G]
    color = triton.load(color, mask=(channel < channels) & (n[None, :] >= 0), other=0.0)
    return sums + _product(color, weight, precision)

  sums = jnp.zeros((_COLUMNS, shape.num_pixels), jnp.float32)
  sums = lax.fori_loop(_int(0), num_chunks, add, sums)
  pixel = _iota(shape.num_pixels)[None, :]
  triton.store(image.at[tile, channel, pixel], sums, mask=(channel < channels) & (pixel >= 0))


def backward_by_products(
  tile,
  start,
  corner,
  ids,
  table,
  cotangent,
  rows,
  *,
  shape: TileShape,
  precision: lax.DotAlgorithmPreset,
) -> None:
  """`backward_in_chunks`; the gradient of the colours is the weights [G, P] times [P, C]."""
  channels = cotangent.shape[1]
  x, y = (axis[None, :] for axis in _pixel_centers(tile, corner, shape))
  cotangents = [cotangent[tile, _int(c)][None, :] for c in range(channels)]
  channel, pixel = _iota(_COLUMNS)[None, :], _iota(shape.num_pixels)[:, None]
  counted = (channel < channels) & (pixel >= 0)
  columns = triton.load(cotangent.at[tile, channel, pixel], mask=counted, other=0.0)  # [P, C]
  num_chunks, pairs = _chunks(tile, start)

  def backward_of(j, nothing):
    k, used = pairs(j)
    _, mean, white, color = _gather(ids, table, k, used, channels)
    dx, dy, weight = _weight(_as_columns(mean), _as_columns(white), x, y)
    moments, _ = _sums(_as_columns(white), _as_columns(color), dx, dy, weight, cotangents, _total)
    for i, values in enumerate(_geometry_gradient(white, moments)):
      triton.store(rows.at[k, _int(i)], values, mask=used)
    of_color = _product(weight, columns, precision)  # [G, C]
    mask = used[:, None] & (channel < channels)
    triton.store(rows.at[k[:, None], 5 + channel], of_color, mask=mask)
    return nothing

  lax.fori_loop(_int(0), num_chunks, backward_of, _int(0))


def _product(left, right, precision: lax.DotAlgorithmPreset):
  return lax.dot(left, right, precision=precision, preferred_element_type=jnp.float32)
