"""GPU kernels: one program a tile, its pixels one vector, a loop over the tile's list.

The lists, the rows of numbers and the definition are those of `xla`. Forward, a program sums its
tile's colours in registers and writes them once. Backward, it writes one row of gradients for each
pair of its list, and the rows are summed by Gaussian outside: a pair belongs to one program, so
nothing is written twice and the result does not depend on the order in which programs run.

The bodies keep to what both of Pallas's GPU backends lower: scalar reads, element-wise work on
vectors of a power of two, sums to a scalar. So they are the same under Triton, Mosaic GPU and the
interpreter, which runs them on any machine, slowly, to check them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from cgvq_jax.geometry import CUTOFF, squared_distance
from cgvq_jax.rasterize.tiles import TILE, Bins, bin_gaussians, grid, initial_capacity
from cgvq_jax.rasterize.xla import arranged, gaussian_table, rasterize_binned
from cgvq_jax.types import Gaussians

_PIXELS = TILE * TILE
_WARPS = 4  # threads / 32: two pixels a thread

# run(body, output, grid size, arguments): `body(program id, *refs)` once for each program.
Runner = Callable[[Callable[..., None], jax.ShapeDtypeStruct, int, Sequence[Array]], Array]


def triton_runner(*, interpret: bool = False) -> Runner:
  """By Triton (compute capability 8.0 and later), or by the interpreter."""

  def run(body, output, size, arguments):
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
      lambda *refs: body(pl.program_id(0), *refs),
      out_shape=output,
      grid=(size,),
      in_specs=[anywhere] * len(arguments),
      out_specs=anywhere,
      compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
      interpret=interpret,
    )
    return call(*arguments)

  return run


def _pixel_centers(tile, columns: int):
  pixel = lax.broadcasted_iota(jnp.int32, (_PIXELS,), 0)
  x = pixel % TILE + tile % columns * TILE
  y = pixel // TILE + tile // columns * TILE
  return x.astype(jnp.float32) + 0.5, y.astype(jnp.float32) + 0.5


def _weight(table, n, x, y):
  """Offsets of a tile's pixels from Gaussian n, its whitening, and its weights there."""
  dx, dy = x - table[n, 0], y - table[n, 1]
  white = table[n, 2], table[n, 3], table[n, 4]
  q = squared_distance(white, dx, dy)
  return dx, dy, white, jnp.where(q <= CUTOFF, jnp.exp(-q), 0.0)


def _render_tile(tile, start, end, ids, table, image, *, columns: int):
  """image[tile, c] = sum over the tile's list of color_c w."""
  channels = image.shape[1]
  x, y = _pixel_centers(tile, columns)

  def add(k, sums):
    n = ids[k]
    *_, weight = _weight(table, n, x, y)
    return tuple(s + weight * table[n, 5 + c] for c, s in enumerate(sums))

  sums = lax.fori_loop(start[tile], end[tile], add, (jnp.zeros_like(x),) * channels)
  for c in range(channels):
    image[tile, jnp.int32(c)] = sums[c]


def _pull_back_tile(tile, start, end, ids, table, cotangent, rows, *, columns: int):
  """rows[k] = the gradient of pair k's mean, whitening and colour, through this tile alone.

  With s = (sum_c color_c cotangent_c) w and u = a dx + b dy: d a = -2 sum s u dx,
  d b = -2 sum s u dy, d c = -2 c sum s dy^2, d mean = 2 sum s (a u, b u + c^2 dy).
  """
  channels = cotangent.shape[1]
  x, y = _pixel_centers(tile, columns)
  wanted = [cotangent[tile, jnp.int32(c)] for c in range(channels)]

  def pull(k, nothing):
    n = ids[k]
    dx, dy, (a, b, c), weight = _weight(table, n, x, y)
    s = weight * sum(table[n, 5 + i] * wanted[i] for i in range(channels))
    u, v = s * (a * dx + b * dy), s * dy
    of_u, of_v = jnp.sum(u), jnp.sum(v)
    row = [
      2 * a * of_u,
      2 * (b * of_u + c * c * of_v),
      -2 * jnp.sum(u * dx),
      -2 * jnp.sum(u * dy),
      -2 * c * jnp.sum(v * dy),
      *(jnp.sum(weight * wanted[i]) for i in range(channels)),
    ]
    for i, value in enumerate(row):
      rows[k, jnp.int32(i)] = value
    return nothing

  lax.fori_loop(start[tile], end[tile], pull, jnp.int32(0))


def _bounds(bins: Bins) -> tuple[Int[Array, 'T'], Int[Array, 'T']]:
  """Where each tile's pairs start and end."""
  first = jnp.concatenate([jnp.zeros(1, jnp.int32), bins.tile_end[:-1]])
  last = bins.tile_end - 1
  return bins.chunk_start[first], bins.chunk_start[last] + bins.chunk_size[last]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _tiles(table, bins: Bins, columns: int, run: Runner):
  num_tiles, channels = bins.tile_end.size, table.shape[1] - 5
  output = jax.ShapeDtypeStruct((num_tiles, channels, _PIXELS), jnp.float32)
  body = partial(_render_tile, columns=columns)
  return run(body, output, num_tiles, (*_bounds(bins), bins.pair_gaussian, table))


def _tiles_forward(table, bins, columns, run):
  return _tiles(table, bins, columns, run), (table, bins)


def _tiles_backward(columns, run, saved, cotangent):
  table, bins = saved
  num_pairs, capacity = bins.num_pairs, bins.pair_gaussian.size
  output = jax.ShapeDtypeStruct((capacity, table.shape[1]), jnp.float32)
  arguments = (*_bounds(bins), bins.pair_gaussian, table, cotangent)
  rows = run(partial(_pull_back_tile, columns=columns), output, bins.tile_end.size, arguments)
  # Rows that no program wrote hold anything.
  rows = jnp.where(jnp.arange(capacity)[:, None] < num_pairs, rows, 0.0)
  return jnp.zeros_like(table).at[bins.pair_gaussian].add(rows), None


_tiles.defvjp(_tiles_forward, _tiles_backward)


def rasterize(
  gaussians: Gaussians,
  height: int,
  width: int,
  *,
  capacity: int | None = None,
  run: Runner | None = None,
) -> Float[Array, 'H W C']:
  """Bins and renders by the kernels, differentiable; by Triton unless another runner is given.

  Lists that overflow `capacity` (by default a guess from the sizes) are not used: all pairs are
  evaluated instead, slowly, by `xla`. Raises where the platform has no such kernels.
  """
  capacity = capacity or initial_capacity(gaussians.num_gaussians, height, width)
  return _program(gaussians, height, width, capacity, run or _TRITON)


_TRITON, INTERPRETER = triton_runner(), triton_runner(interpret=True)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _program(gaussians: Any, height: int, width: int, capacity: int, run: Runner):
  bins = bin_gaussians(gaussians, height, width, capacity)
  _, columns = grid(height, width)

  def by_kernels(gaussians):
    tiles: Array = _tiles(gaussian_table(gaussians), bins, columns, run)  # pyright: ignore
    image = arranged(tiles, columns)
    return image.reshape(-1, *image.shape[2:])[:height, :width]

  def by_xla(gaussians):
    return rasterize_binned(gaussians, None, height, width)

  return lax.cond(bins.overflowed, by_xla, by_kernels, gaussians)
