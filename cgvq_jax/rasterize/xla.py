"""The blocked implementation in plain jax.numpy, for any platform.

It evaluates a block of chunks at a time, so that the weights [BLOCK, CHUNK, P] stay in cache and
memory is bounded by the block, not by the number of pairs. The loop ends at the number of chunks in
use: unused capacity costs nothing. The backward pass is written by hand: it recomputes the weights
instead of storing them and computes its sums as matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from cgvq_jax.primitives.geometry import CUTOFF, squared_distance
from cgvq_jax.rasterize.layout import Errors, Kernels, Table, Target, Tiles, errors_of_samples
from cgvq_jax.rasterize.tiles import BLOCK, CHUNK, TILE, Bins, TileShape


@lru_cache
def _offsets(shape: TileShape) -> tuple[np.ndarray, np.ndarray]:
  """x and y [P] of pixel centres relative to the tile's centre, x fastest."""
  y, x = np.indices(shape, np.float32)
  return (x - (shape.width - 1) / 2).ravel(), (y - (shape.height - 1) / 2).ravel()


@lru_cache
def _monomials(shape: TileShape) -> np.ndarray:
  """1, x, y, x^2, xy, y^2 [8, P], padded by 0: a product with 8 columns is faster than with 6."""
  x, y = _offsets(shape)
  return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y, 0 * x, 0 * x])


# Polynomial of exp(-q / 8) for q in 0..ln 255, by Chebyshev interpolation: relative error 2e-8, and
# 2e-7 after the eighth power. It needs no range reduction, a third of a general exponential.
_EXP = tuple(
  float(c)
  for c in np.polynomial.Chebyshev.interpolate(lambda q: np.exp(-q / 8), 6, [0, CUTOFF])
  .convert(kind=np.polynomial.Polynomial)
  .coef
)


def _decay(q: Float[Array, '*S']) -> Float[Array, '*S']:
  """exp(-q) where 0 <= q <= ln 255; undefined elsewhere, possibly infinite."""
  p = jnp.asarray(_EXP[-1], q.dtype)
  for c in _EXP[-2::-1]:
    p = p * q + c
  p = p * p
  p = p * p
  return p * p


# lists(i) -> Gaussian ids [B, CHUNK] (padded with N) and tile ids [B] of a block of chunks.
Lists = Callable[[Int[Array, '']], tuple[Int[Array, 'B G'], Int[Array, 'B']]]


def _lists_at(table: Table, bins: Bins, block: int) -> Lists:
  """lists(i) returns the block that begins with chunk i."""
  position, pad = jnp.arange(CHUNK), (0, block)
  chunk_tile = jnp.pad(bins.chunk_tile, pad, constant_values=bins.num_tiles)
  chunk_start = jnp.pad(bins.chunk_start, pad)
  chunk_size = jnp.pad(bins.chunk_size, pad)

  def lists(i):
    start, size, tile = (
      lax.dynamic_slice(a, (i,), (block,)) for a in (chunk_start, chunk_size, chunk_tile)
    )
    ids = bins.pair_gaussian[start[:, None] + position]
    return jnp.where(position < size[:, None], ids, table.shape[0] - 1), tile

  return lists


# blocks(table, bins) -> lists of the block of chunks i, and how many blocks there are.
Blocks = Callable[[Table, Bins], tuple[Lists, Int[Array, '']]]


def listed(table: Table, bins: Bins):
  """Blocks of the chunks of the tile lists, which must be complete."""
  lists = _lists_at(table, bins, BLOCK)
  return lambda i: lists(i * BLOCK), -(-bins.num_chunks // BLOCK)


def all_pairs(table: Table, bins: Bins):
  """Blocks of chunks of every Gaussian on every tile, for tile lists that overflowed."""
  num_gaussians, num_tiles = table.shape[0] - 1, bins.num_tiles
  per_tile = -(-num_gaussians // CHUNK)

  def lists(i):
    chunk = i * BLOCK + jnp.arange(BLOCK)
    ids = (chunk % per_tile)[:, None] * CHUNK + jnp.arange(CHUNK)
    tile = chunk // per_tile
    used = (ids < num_gaussians) & (tile < num_tiles)[:, None]
    return jnp.where(used, ids, num_gaussians), jnp.minimum(tile, num_tiles)

  return lists, jnp.int32(-(-per_tile * num_tiles // BLOCK))


@jax.named_scope('weights')
def _block(table, ids, tile, bins: Bins):
  """Of a block: means relative to their tile's centre, whitenings, colours and weights."""
  rows, shape = table[ids], bins.tile_shape  # [B, G, 5 + C]
  x, y = _offsets(shape)
  corner = jnp.stack(bins.corner(tile), -1)
  mean = rows[..., :2] - (corner + jnp.array([shape.width / 2, shape.height / 2]))[:, None, :]
  white, color = rows[..., 2:5], rows[..., 5:]
  dx, dy = x - mean[..., 0, None], y - mean[..., 1, None]
  q = squared_distance([white[..., i, None] for i in range(3)], dx, dy)
  weight = jnp.where(q <= CUTOFF, _decay(q), 0.0)  # [B, G, P]
  # Without the barrier XLA fuses the exponential into each of its consumers, and so repeats it.
  return mean, white, color, lax.optimization_barrier(weight)


@jax.named_scope('colors')
def _chunk_images(mean, white, color, weight):
  """The contribution of each chunk to its tile, [B, C, P]."""
  del mean, white
  # A broadcast sum is faster than a dot product of inner size CHUNK and three outputs.
  return jnp.sum(weight[:, :, None, :] * color[..., None], axis=1)


def render(table: Table, bins: Bins, *, blocks: Blocks = listed) -> Tiles:
  """Sums each block's chunk images into the tiles."""
  lists, num_blocks = blocks(table, bins)

  def body(i, image):
    ids, tile = lists(i)
    added = _chunk_images(*_block(table, ids, tile, bins))
    return image.at[tile].add(added, mode='drop', indices_are_sorted=True)

  channels = table.shape[-1] - 5
  image = jnp.zeros((bins.num_tiles, channels, bins.tile_shape.num_pixels), jnp.float32)
  return lax.fori_loop(0, num_blocks, body, image)


@jax.named_scope('gradients')
def _pairs_gradient(mean, white, color, weight, pixels, shape: TileShape):
  """Gradient [B, G, 5 + C] of the table's rows through each chunk, given the cotangent [B, C, P] of
  the chunks' tiles.

  With s = (sum_c color_c cotangent_c) w, every gradient is a sum over the tile's pixels:
  d W = -2 W M2 (its upper triangle), d mean = 2 W^T W m1 (W the whitening, m1 and M2 the first and
  second moments of s about the Gaussian's mean), d color_c = sum_p w cotangent_c. The moments are
  taken about the tile's centre, where one matrix product [B CHUNK, P] x [P, 8] gives them all.
  """
  d_color = jnp.einsum('bgp,bcp->bgc', weight, pixels, precision='highest')
  # A Python sum over the channels: XLA does not vectorize a reduction over so short an axis.
  channels = pixels.shape[1]
  s = weight * sum(color[..., c, None] * pixels[:, None, c] for c in range(channels))
  s = lax.optimization_barrier(s)
  with jax.named_scope('moments'):
    moments = jnp.dot(s.reshape(-1, s.shape[-1]), _monomials(shape).T, precision='highest')
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


def backward(table: Table, bins: Bins, cotangent: Tiles, *, blocks: Blocks = listed) -> Table:
  """The gradient of the table, given the tiles' cotangent."""
  lists, num_blocks = blocks(table, bins)

  def body(i, gradient):
    ids, tile = lists(i)
    block = _block(table, ids, tile, bins)
    pixels = cotangent.at[tile].get(mode='clip')  # [B, C, P]
    return gradient.at[ids].add(_pairs_gradient(*block, pixels, bins.tile_shape))

  return lax.fori_loop(0, num_blocks, body, jnp.zeros_like(table))


def mean_errors(
  errors: Errors, target: Target, table: Table, bins: Bins
) -> tuple[Float[Array, 'E'], Table]:
  """The contribution of this share to the means of errors(image, target) over all samples, and the
  gradient of the first.

  Errors are elementwise, so the cotangent of a tile is known as soon as its own pixels are, and the
  backward pass uses the tile's weights while they are in cache: half the exponentials, and no image
  in memory. A block holds as many whole tiles as have at most `target.block` chunks together; no
  tile may have more (`bins.most_chunks`).
  """
  block = target.block
  _, channels, pixels_a_tile = target.pixels.shape
  starts, after = _whole_tiles(bins, block)
  lists = _lists_at(table, bins, block)

  @jax.named_scope('loss')
  def errors_and_cotangent(chunk_images, slot, first, end):
    """Of tiles first..end-1: the contribution to the means, and the cotangent for each chunk."""
    image = jnp.zeros((block, channels, pixels_a_tile))
    image = image.at[slot].add(chunk_images, mode='drop', indices_are_sorted=True)
    pixels = lax.dynamic_slice_in_dim(target.pixels, first, block)
    counted = lax.dynamic_slice_in_dim(target.inside, first, block)
    counted = counted & (jnp.arange(block) < end - first)[:, None, None]
    values, cotangent = errors_of_samples(errors, image, pixels, counted, target.num_samples)
    return values, lax.optimization_barrier(cotangent).at[slot].get(mode='clip')

  def body(carry):
    first, values, gradient = carry
    end = after[first]
    used = jnp.arange(block) < bins.tile_end[end - 1] - starts[first]
    ids, tile = lists(starts[first])
    pairs = _block(table, ids, tile, bins)
    # Chunks after the last whole tile get slot `block`: their images are dropped, and their
    # cotangents are read from the last slot, which is 0: the block then has fewer tiles.
    slot = jnp.where(used, tile - first, block)
    part, cotangent = errors_and_cotangent(_chunk_images(*pairs), slot, first, end)
    rows = _pairs_gradient(*pairs, cotangent, bins.tile_shape)
    with jax.named_scope('scatter'):
      gradient = gradient.at[ids].add(rows)
    return end, values + part, gradient

  count = len(jax.eval_shape(errors, target.pixels, target.pixels))
  carry = jnp.zeros((), jnp.int32), jnp.zeros(count), jnp.zeros_like(table)
  _, values, gradient = lax.while_loop(lambda carry: carry[0] < after.size, body, carry)
  return values, gradient


def _whole_tiles(bins: Bins, block: int):
  """For each tile: its first chunk, and the first tile after a block that begins with it."""
  starts = jnp.concatenate([jnp.zeros(1, jnp.int32), bins.tile_end[:-1]])
  after = jnp.searchsorted(bins.tile_end, starts + block, side='right').astype(jnp.int32)
  # A tile of more chunks than a block gives a wrong result, but must not make the loop endless.
  # Tiles of padding have no chunks: a block has room for `block` tiles all the same.
  tile = jnp.arange(after.size)
  return starts, jnp.clip(after, tile + 1, tile + block)


def evaluated_pairs(num_chunks: int, tile_shape: TileShape = TILE) -> int:
  """Weights that `render` evaluates for a number of chunks, rounded up to whole blocks."""
  return -(-int(num_chunks) // BLOCK) * BLOCK * CHUNK * tile_shape.num_pixels


def evaluated_pairs_of_whole_tiles(bins: Bins, block: int = BLOCK) -> int:
  """Weights that `mean_errors` evaluates; its blocks hold whole tiles and so are not quite full."""
  tile, blocks, (_, after) = 0, 0, _whole_tiles(bins, block)
  after = np.asarray(after)
  while tile < after.size:
    tile, blocks = int(after[tile]), blocks + 1
  return blocks * block * CHUNK * bins.tile_shape.num_pixels


KERNELS = Kernels(render, backward, mean_errors)
# Correct even for incomplete lists, and slow: uses the grid of the bins alone.
WITHOUT_LISTS = Kernels(partial(render, blocks=all_pairs), partial(backward, blocks=all_pairs))
