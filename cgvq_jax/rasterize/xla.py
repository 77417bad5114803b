"""The blocked rasterizer in plain jax.numpy: CPU and TPU, and the fallback anywhere else.

A block of chunks is evaluated at a time, so that its weights [BLOCK, CHUNK, TILE^2] stay in cache
and memory is bounded by the block, never by the number of pairs. The loop's bound is the number of
chunks in use: room to spare in the lists costs nothing. The backward pass is written by hand: it
recomputes the weights instead of storing them, and gathers its sums by matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from cgvq_jax import cores
from cgvq_jax.geometry import CUTOFF, squared_distance, whitening
from cgvq_jax.rasterize.tiles import (
  CHUNK,
  TILE,
  WHOLE,
  Bins,
  Share,
  bin_gaussians,
  grid,
  initial_capacity,
  round_capacity,
)
from cgvq_jax.types import Gaussians

BLOCK = 64  # chunks: 1 MiB of weights, half of it on each of two cores

# Pairs listed at most (64 MiB of integers); beyond, every tile is nearly every Gaussian's anyway.
MAX_CAPACITY = 1 << 24

_PIXELS = TILE * TILE
# Pixel centres relative to the tile's centre, x fastest.
_X = np.tile(np.arange(TILE) - (TILE - 1) / 2, TILE).astype(np.float32)
_Y = np.repeat(np.arange(TILE) - (TILE - 1) / 2, TILE).astype(np.float32)
# [8, TILE^2]; the last two are 0: a matrix product with eight columns is faster than with six.
_MONOMIALS = np.stack([np.ones_like(_X), _X, _Y, _X * _X, _X * _Y, _Y * _Y, 0 * _X, 0 * _X])

# exp(-q / 8) for q in 0..ln 255, by Chebyshev interpolation: relative error 2e-8, 2e-7 once raised
# to the eighth power. The cutoff spares the general exponential's range reduction, a third of it.
_EXP = tuple(
  float(c)
  for c in np.polynomial.Chebyshev.interpolate(lambda q: np.exp(-q / 8), 6, [0, CUTOFF])
  .convert(kind=np.polynomial.Polynomial)
  .coef
)


def _decay(q: Float[Array, '*S']) -> Float[Array, '*S']:
  """exp(-q) where 0 <= q <= ln 255; elsewhere anything, infinity included."""
  p = jnp.asarray(_EXP[-1], q.dtype)
  for c in _EXP[-2::-1]:
    p = p * q + c
  p = p * p
  p = p * p
  return p * p


def compiler_options() -> dict[str, int]:
  """For `jax.jit` of programs that render: on a CPU, XLA's default of 256-bit vectors leaves a
  fifth of the speed behind where AVX-512 is at hand, and is what it falls back to elsewhere."""
  return {'xla_cpu_prefer_vector_width': 512} if jax.default_backend() == 'cpu' else {}


# lists(i) -> Gaussian ids [B, CHUNK] (N on unused places) and tile ids [B] of a block of chunks.
Lists = Callable[[Int[Array, '']], tuple[Int[Array, 'B G'], Int[Array, 'B']]]


def _lists_at(bins: Bins, num_gaussians: int, num_tiles: int, block: int) -> Lists:
  """Of the block of chunks from chunk i on."""
  place = jnp.arange(CHUNK)
  pad = (0, block)
  chunk_tile = jnp.pad(bins.chunk_tile, pad, constant_values=num_tiles)
  chunk_start = jnp.pad(bins.chunk_start, pad)
  chunk_size = jnp.pad(bins.chunk_size, pad)

  def lists(i):
    start, size, tile = (
      lax.dynamic_slice(a, (i,), (block,)) for a in (chunk_start, chunk_size, chunk_tile)
    )
    ids = bins.pair_gaussian[start[:, None] + place]
    return jnp.where(place < size[:, None], ids, num_gaussians), tile

  return lists


def _dense_lists(num_gaussians: int, num_tiles: int) -> Lists:
  """Every Gaussian on every tile, by arithmetic: what remains when the lists overflowed."""
  per_tile = -(-num_gaussians // CHUNK)

  def lists(i):
    chunk = i * BLOCK + jnp.arange(BLOCK)
    ids = (chunk % per_tile)[:, None] * CHUNK + jnp.arange(CHUNK)
    tile = chunk // per_tile
    used = (ids < num_gaussians) & (tile < num_tiles)[:, None]
    return jnp.where(used, ids, num_gaussians), jnp.minimum(tile, num_tiles)

  return lists


@jax.named_scope('weights')
def _block(table, ids, tile, columns, share):
  """Gathers a block: means about their tile's centre, whitenings, colours and weights."""
  rows = table[ids]  # [B, G, 5 + C]
  center = jnp.stack([tile % columns, share.row(tile // columns)], -1) * TILE + TILE / 2
  mean = rows[..., :2] - center[:, None, :]
  white, color = rows[..., 2:5], rows[..., 5:]
  dx, dy = _X - mean[..., 0, None], _Y - mean[..., 1, None]
  q = squared_distance([white[..., i, None] for i in range(3)], dx, dy)
  weight = jnp.where(q <= CUTOFF, _decay(q), 0.0)  # [B, G, TILE^2]
  # Without the barrier XLA fuses the exponential into each of its consumers and repeats it there.
  return mean, white, color, lax.optimization_barrier(weight)


@jax.named_scope('colors')
def _chunk_images(mean, white, color, weight):
  """What each chunk adds to its tile, [B, C, TILE^2]."""
  del mean, white
  # A broadcast sum, not a dot: with an inner size of CHUNK and three outputs it is faster.
  return jnp.sum(weight[:, :, None, :] * color[..., None], axis=1)


def _render_tiles(table, lists: Lists, num_blocks, share: Share, columns: int, num_tiles: int):
  """Sums each block's chunk images into the tiles [T, C, TILE^2]."""
  channels = table.shape[-1] - 5

  def body(i, image):
    ids, tile = lists(i)
    added = _chunk_images(*_block(table, ids, tile, columns, share))
    return image.at[tile].add(added, mode='drop', indices_are_sorted=True)

  image = jnp.zeros((num_tiles, channels, _PIXELS), jnp.float32)
  return lax.fori_loop(0, num_blocks, body, image)


@jax.named_scope('gradients')
def _pairs_gradient(mean, white, color, weight, pixels):
  """Gradient [B, G, 5 + C] of the table's rows, each through its own chunk, given the cotangent
  [B, C, TILE^2] of the chunks' tiles.

  With s = (sum_c color_c cotangent_c) w, every gradient is a sum over the tile's pixels:
  d W = -2 W M2 (its upper triangle), d mean = 2 W^T W m1 (W the whitening, m1 and M2 the first and
  second moments of s about the Gaussian's mean), d color_c = sum_p w cotangent_c. The moments are
  taken about the tile's centre, where one matrix product [B CHUNK, TILE^2] x [TILE^2, 8] gives all.
  """
  d_color = jnp.einsum('bgp,bcp->bgc', weight, pixels, precision='highest')
  # Written out over the channels: a reduction over so short an axis is not vectorized.
  channels = pixels.shape[1]
  s = weight * sum(color[..., c, None] * pixels[:, None, c] for c in range(channels))
  s = lax.optimization_barrier(s)
  with jax.named_scope('moments'):
    moments = jnp.dot(s.reshape(-1, _PIXELS), _MONOMIALS.T, precision='highest')
  moments = moments.reshape(*s.shape[:2], 8)
  s0, sx, sy, sxx, sxy, syy, _, _ = jnp.moveaxis(moments, -1, 0)
  mx, my = mean[..., 0], mean[..., 1]
  m_x, m_y = sx - mx * s0, sy - my * s0
  m_xx = sxx - mx * (2 * sx - mx * s0)
  m_xy = sxy - mx * sy - my * m_x
  m_yy = syy - my * (2 * sy - my * s0)
  a, b, c = jnp.moveaxis(white, -1, 0)
  u = a * m_x + b * m_y
  rows = [
    2 * a * u,
    2 * (b * u + c * c * m_y),
    -2 * (a * m_xx + b * m_xy),
    -2 * (a * m_xy + b * m_yy),
    -2 * c * m_yy,
  ]
  return jnp.concatenate([jnp.stack(rows, axis=-1), d_color], axis=-1)


def _tiles_gradient(table, cotangent, lists: Lists, num_blocks, share: Share, columns: int):
  """Gradient [N + 1, 5 + C] of the table, given the tiles' cotangent [T, C, TILE^2]."""

  def body(i, gradient):
    ids, tile = lists(i)
    block = _block(table, ids, tile, columns, share)
    pixels = cotangent.at[tile].get(mode='clip')  # [B, C, TILE^2]
    return gradient.at[ids].add(_pairs_gradient(*block, pixels))

  return lax.fori_loop(0, num_blocks, body, jnp.zeros_like(table))


def _on_lists(bins: Bins | None, num_gaussians: int, num_tiles: int, run):
  """Runs `run(lists, num_blocks, share)` on the binned lists, or without them on all pairs."""
  if bins is None:
    num_chunks = -(-num_gaussians // CHUNK) * num_tiles
    return run(_dense_lists(num_gaussians, num_tiles), -(-num_chunks // BLOCK), WHOLE)
  lists = _lists_at(bins, num_gaussians, num_tiles, BLOCK)
  return run(lambda i: lists(i * BLOCK), -(-bins.num_chunks // BLOCK), bins.share)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _tiles(table, bins: Bins | None, columns: int, num_tiles: int, axis: str | None):
  """The tiles [T, C, TILE^2] of this device's share."""
  del axis
  run = partial(_render_tiles, table, columns=columns, num_tiles=num_tiles)
  return _on_lists(bins, table.shape[0] - 1, num_tiles, run)


def _tiles_forward(table, bins, columns, num_tiles, axis):
  return _tiles(table, bins, columns, num_tiles, axis), (table, bins)


def _tiles_backward(columns, num_tiles, axis, saved, cotangent):
  table, bins = saved
  run = partial(_tiles_gradient, table, cotangent, columns=columns)
  gradient = _on_lists(bins, table.shape[0] - 1, num_tiles, run)
  return lax.psum(gradient, axis) if axis else gradient, None


_tiles.defvjp(_tiles_forward, _tiles_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(share, axis: str):
  """The shares of all devices, on a leading axis."""
  return lax.all_gather(share, axis)


def _gather_forward(share, axis):
  return _gather(share, axis), None


def _gather_backward(axis, saved, cotangent):
  # Every device has the same whole cotangent, which all_gather's own transpose would sum.
  del saved
  return (cotangent[lax.axis_index(axis)],)


_gather.defvjp(_gather_forward, _gather_backward)


def gaussian_table(gaussians: Gaussians) -> Float[Array, 'N1 D']:
  """Rows [mean, whitening, color] and a last one of weight 0 everywhere, for unused places."""
  white = whitening(gaussians.log_scale, gaussians.rotation)
  rows = jnp.concatenate([gaussians.mean_xy, white, gaussians.color], axis=-1)
  # Far away and of unit size: q is about 1e12, finite and beyond the cutoff, on any tile.
  nobody = jnp.array([-1e6, -1e6, 1.0, 0.0, 1.0])
  nobody = jnp.pad(nobody, (0, rows.shape[-1] - nobody.size))[None]
  return jnp.concatenate([rows, nobody])


def arranged(tiles: Float[Array, 'T C P'], columns: int) -> Float[Array, 'R Y X C']:
  """The pixels of rows of tiles, in the order of an image: tile row, y, x, channel."""
  image = tiles.reshape(-1, columns, tiles.shape[1], TILE, TILE).transpose(0, 3, 1, 4, 2)
  return image.reshape(-1, TILE, columns * TILE, tiles.shape[1])


def rasterize_binned(
  gaussians: Gaussians, bins: Bins | None, height: int, width: int, *, axis: str | None = None
) -> Float[Array, 'H W C']:
  """The image from given tile lists, which must be complete: the caller checks
  `bins.overflowed`. `None` evaluates every Gaussian on every tile.

  Inside a `shard_map` over `axis`, whose devices all have the same arguments but for the bins, made
  with `own_share(axis)`, each renders its share, and all get the whole image and gradient.
  """
  num_shares = lax.axis_size(axis) if axis else 1
  rows, columns = grid(height, width, num_shares)
  tiles: Array = _tiles(gaussian_table(gaussians), bins, columns, rows * columns, axis)  # pyright: ignore
  image = arranged(tiles, columns)
  if axis:
    image = jnp.swapaxes(_gather(image, axis), 0, 1)  # rows interleave  # pyright: ignore
  return image.reshape(-1, columns * TILE, gaussians.num_channels)[:height, :width]


def own_tiles(image: Float[Array, 'H W C'], share: Share) -> Float[Array, 'T C P']:
  """The share's tiles of an image, its pixels in the order of a tile's; 0 beyond the borders."""
  height, width, channels = image.shape
  rows, columns = grid(height, width, share.size)
  pad = rows * share.size * TILE - height, columns * TILE - width
  image = jnp.pad(image, ((0, pad[0]), (0, pad[1]), (0, 0)))
  image = image.reshape(rows, share.size, TILE, columns, TILE, channels)[:, share.rank]
  return image.transpose(0, 2, 4, 1, 3).reshape(rows * columns, channels, _PIXELS)


@struct.dataclass
class Target:
  """The tiles of a share of a target image, for `mean_error`; `block` more follow, all outside."""

  pixels: Float[Array, 'T C P']
  inside: Bool[Array, 'T 1 P']
  height: int = struct.field(pytree_node=False)  # px, of the image
  width: int = struct.field(pytree_node=False)
  block: int = struct.field(pytree_node=False)  # chunks that `mean_error` evaluates at a time


def tile_target(
  target: Float[Array, 'H W C'], *, axis: str | None = None, block: int = BLOCK
) -> Target:
  """Done once for many calls of `mean_error`."""
  height, width, _ = target.shape
  share, pad = own_share(axis), ((0, block), (0, 0), (0, 0))
  pixels = jnp.pad(own_tiles(target, share), pad)
  inside = jnp.pad(own_tiles(jnp.ones((height, width, 1)), share), pad) > 0
  return Target(pixels, inside, height, width, block)


def mean_error(
  error: Callable[[Array, Array], Array],
  target: Target,
  gaussians: Gaussians,
  bins: Bins,
  *,
  axis: str | None = None,
) -> tuple[Float[Array, ''], Gaussians]:
  """The mean of error(image, target) over all samples, and its gradient by the Gaussians.

  `error` works sample by sample. So a tile's cotangent is known as soon as its own pixels are, and
  the weights that rendered it pull it back while they are still in cache: half the exponentials,
  and no image between. A block takes as many whole tiles as have at most `target.block` chunks; no
  tile may have more (`bins.most_chunks`). `axis` as for `rasterize_binned`.
  """
  block, channels = target.block, target.pixels.shape[1]
  samples = target.height * target.width * channels
  columns = grid(target.height, target.width)[1]
  table, pullback = jax.vjp(gaussian_table, gaussians)
  starts, after = _whole_tiles(bins, block)
  lists = _lists_at(bins, gaussians.num_gaussians, after.size, block)

  @jax.named_scope('loss')
  def error_and_cotangent(chunk_images, slot, first, end):
    """Of the tiles first..end-1: their part of the value, and the cotangent of each chunk's."""
    image = jnp.zeros((block, channels, _PIXELS))
    image = image.at[slot].add(chunk_images, mode='drop', indices_are_sorted=True)
    pixels = lax.dynamic_slice_in_dim(target.pixels, first, block)
    counted = lax.dynamic_slice_in_dim(target.inside, first, block)
    counted = counted & (jnp.arange(block) < end - first)[:, None, None]
    share_of_each = jnp.where(counted, 1 / samples, 0.0)
    errors, pullback = jax.vjp(lambda image: error(image, pixels), image)
    (cotangent,) = pullback(jnp.broadcast_to(share_of_each, image.shape))
    value = jnp.sum(jnp.where(counted, errors * share_of_each, 0.0))
    # An error may have no finite derivative where there is no sample.
    cotangent = lax.optimization_barrier(jnp.where(counted, cotangent, 0.0))
    return value, cotangent.at[slot].get(mode='clip')

  def body(carry):
    first, value, gradient = carry
    end = after[first]
    used = jnp.arange(block) < bins.tile_end[end - 1] - starts[first]
    ids, tile = lists(starts[first])
    pairs = _block(table, ids, tile, columns, bins.share)
    # What follows the last whole tile is dropped here and has a cotangent of 0: fewer tiles than
    # `block` leave its last slot empty, which is the one that a place beyond it is clipped to.
    slot = jnp.where(used, tile - first, block)
    part, cotangent = error_and_cotangent(_chunk_images(*pairs), slot, first, end)
    rows = _pairs_gradient(*pairs, cotangent)
    with jax.named_scope('scatter'):
      gradient = gradient.at[ids].add(rows)
    return end, value + part, gradient

  carry = jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros_like(table)
  _, value, gradient = lax.while_loop(lambda carry: carry[0] < after.size, body, carry)
  if axis:
    with jax.named_scope('exchange'):
      value, gradient = lax.psum((value, gradient), axis)
  return value, pullback(gradient)[0]


def _whole_tiles(bins: Bins, block: int):
  """For each tile its first chunk, and the tile after the last that shares a block with it."""
  starts = jnp.concatenate([jnp.zeros(1, jnp.int32), bins.tile_end[:-1]])
  after = jnp.searchsorted(bins.tile_end, starts + block, side='right').astype(jnp.int32)
  # Where a tile has more chunks than a block the result is wrong, but the loop must end.
  return starts, jnp.maximum(after, jnp.arange(1, after.size + 1))


def evaluated_pairs(num_chunks: int) -> int:
  """Weights that a rendering evaluates for so many chunks in use: whole blocks, padding and all."""
  return -(-int(num_chunks) // BLOCK) * BLOCK * CHUNK * _PIXELS


def evaluated_pairs_of_whole_tiles(bins: Bins, block: int = BLOCK) -> int:
  """Weights that `mean_error` evaluates: blocks that hold whole tiles are not quite full."""
  tile, blocks, (_, after) = 0, 0, _whole_tiles(bins, block)
  after = np.asarray(after)
  while tile < after.size:
    tile, blocks = int(after[tile]), blocks + 1
  return blocks * block * CHUNK * _PIXELS


def own_share(axis: str | None) -> Share:
  """The share of the image that falls to this device of a `shard_map` over `axis`."""
  return Share(lax.axis_index(axis), lax.axis_size(axis)) if axis else WHOLE


def rasterize(
  gaussians: Gaussians, height: int, width: int, *, capacity: int | None = None
) -> Float[Array, 'H W C']:
  """Bins and renders; differentiable, and correct whatever the capacity.

  Where the lists overflow their capacity (by default a guess from the sizes), they are made again
  with more room; inside `jax.jit`, where that cannot be, all pairs are evaluated instead, slowly.
  Code that renders often bins once and calls `rasterize_binned`.
  """
  options: dict[str, int] = {'height': height, 'width': width}
  if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(gaussians)):
    capacity = capacity or initial_capacity(gaussians.num_gaussians, height, width)
    return _nested_program(gaussians, capacity=capacity, **options)
  mesh = cores.mesh()
  count, rows = -(-gaussians.num_gaussians // mesh.size), -(-height // mesh.size)
  capacity = capacity or initial_capacity(count, rows, width)
  everywhere = jax.device_put(gaussians, NamedSharding(mesh, P()))
  while capacity <= MAX_CAPACITY:
    image, needed = _shared_program()(everywhere, capacity=capacity, **options)
    if int(needed) <= capacity:
      return image.addressable_data(0)
    capacity = round_capacity(math.ceil(1.1 * int(needed)))
  return _dense_program(gaussians, **options)


_STATIC = ('height', 'width', 'capacity')
_dense_program = jax.jit(partial(rasterize_binned, bins=None), static_argnames=_STATIC[:2])


@partial(jax.jit, static_argnames=_STATIC)
def _nested_program(gaussians, *, height, width, capacity):
  bins = bin_gaussians(gaussians, height, width, capacity)
  return lax.cond(
    bins.overflowed,
    lambda g: rasterize_binned(g, None, height, width),
    lambda g: rasterize_binned(g, bins, height, width),
    gaussians,
  )


@lru_cache
def _shared_program():
  # Made at the first call: which options apply is known once the backend is. JAX takes options for
  # a whole program only, so a rendering inside another function's jit goes by that one's.
  def render(gaussians, *, height, width, capacity, axis):
    bins = bin_gaussians(gaussians, height, width, capacity, own_share(axis))
    image = rasterize_binned(gaussians, bins, height, width, axis=axis)
    return image, lax.pmax(bins.num_pairs, axis) if axis else bins.num_pairs

  def program(gaussians, **static):
    return cores.together(partial(render, **static))(gaussians)

  return jax.jit(program, static_argnames=_STATIC, compiler_options=compiler_options())
