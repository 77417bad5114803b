"""Binning: which tiles does each Gaussian's cutoff ellipse touch, as lists cut into chunks.

Shapes are static, lists are not. The lists hold at most `capacity` (tile, Gaussian) pairs; the true
number is counted and returned, so that a caller sees an overflow and bins again with more room.
A tile has no cap of its own: its list is cut into chunks of CHUNK Gaussians, as many as it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Int

from cgvq_jax.primitives.geometry import CUTOFF, CUTOFF_RADIUS, covariance
from cgvq_jax.primitives.trees import Gaussians


class TileShape(NamedTuple):
  """The rectangle of pixels that has one list of Gaussians."""

  height: int  # px
  width: int  # px

  @property
  def num_pixels(self) -> int:
    return self.height * self.width


TILE = TileShape(16, 16)  # 256 pixels fill vector registers, a chunk's weights stay in L2 cache
CHUNK = 16  # Gaussians; shorter chunks waste fewer evaluations but copy more of the cotangent
BLOCK = 64  # chunks at a time: 1 MiB of weights, half of it on each of two cores

# Most Gaussians meet several tiles in a row: of a capacity in pairs, what their rows may take.
_ROOM_FOR_ROWS = 5 / 8
_BEYOND = 1 << 29  # what is counted as so many is too many to list; twice that is still an int32


@struct.dataclass
class Share:
  """Every `size`-th row of tiles from row `rank` on: what one of `size` devices renders.

  Interleaved rows are nearly equal shares whatever the picture, which halves would not be.
  """

  rank: Int[Array, ''] | int = 0
  size: int = struct.field(pytree_node=False, default=1)

  def row(self, local: Int[Array, '*S']) -> Int[Array, '*S']:
    """The row in the image of this share's row `local`."""
    return local * self.size + self.rank


WHOLE = Share()


def own_share(axis: str | None) -> Share:
  """The share of the image that falls to this device of a `shard_map` over `axis`."""
  return Share(lax.axis_index(axis), lax.axis_size(axis)) if axis else WHOLE


@struct.dataclass
class Bins:
  """The tile lists of one image, or of a share of it: tiles are counted within the share.

  Pairs are sorted by tile: tile t has the Gaussians
  `pair_gaussian[tile_start[t] : tile_start[t + 1]]`. For those who work on several tiles at a time,
  the lists are cut into chunks: chunk j is
  `pair_gaussian[chunk_start[j] : chunk_start[j] + chunk_size[j]]` on the pixels of tile
  `chunk_tile[j]`. Every tile has a chunk, be it an empty one; those from `num_chunks` on are none.
  """

  pair_gaussian: Int[Array, 'capacity']
  tile_start: Int[Array, 'tiles+1']
  chunk_tile: Int[Array, 'chunks']
  chunk_start: Int[Array, 'chunks']
  chunk_size: Int[Array, 'chunks']  # 0..CHUNK
  tile_end: Int[Array, 'tiles']  # the number of chunks up to and including each tile's
  num_pairs: Int[Array, '']  # may exceed the capacity: then the lists are incomplete
  share: Share
  tile_shape: TileShape = struct.field(pytree_node=False)
  columns: int = struct.field(pytree_node=False)  # tiles in a row

  @property
  def num_tiles(self) -> int:
    return self.tile_end.shape[-1]

  @property
  def num_chunks(self) -> Int[Array, '*B']:
    return self.tile_end[..., -1]

  @property
  def most_chunks(self) -> Int[Array, '']:
    """Of one tile."""
    return jnp.max(jnp.diff(self.tile_end, prepend=0))

  @property
  def overflowed(self) -> Bool[Array, '']:
    return self.num_pairs > self.pair_gaussian.shape[-1]

  def corner(self, tile: Int[Array, '*S']) -> tuple[Int[Array, '*S'], Int[Array, '*S']]:
    """x and y (px) of the upper left corner of a tile."""
    row, column = self.share.row(tile // self.columns), tile % self.columns
    return column * self.tile_shape.width, row * self.tile_shape.height


def grid(
  height: int, width: int, num_shares: int = 1, tile_shape: TileShape = TILE
) -> tuple[int, int]:
  """Rows and columns of tiles that cover the image, or the largest of its shares."""
  return -(-height // (tile_shape.height * num_shares)), -(-width // tile_shape.width)


def initial_capacity(
  num_gaussians: int, height: int, width: int, tile_shape: TileShape = TILE
) -> int:
  """A first guess at the number of pairs; growing it costs one compilation, not correctness.

  Fitted to a photograph, Gaussians overlap some sixteenfold whatever their number: a box of
  e = 4 sqrt(pixels / N) px a side meets (1 + e / height) (1 + e / width) tiles in the mean."""
  side = 4 * math.sqrt(height * width / num_gaussians)
  met = (1 + side / tile_shape.height) * (1 + side / tile_shape.width)
  return round_capacity(math.ceil(1.15 * num_gaussians * met))


def round_capacity(num_pairs: int) -> int:
  """The next of eight sizes an octave, so that slightly longer lists do not compile again."""
  step = 2 ** max(10, math.ceil(math.log2(max(num_pairs, 2))) - 4)
  return step * -(-num_pairs // step)


def _expand(counts: Int[Array, 'M'], capacity: int):
  """Lists item i counts[i] times: (owner of each place, where each item ends); junk after all."""
  ends = jnp.cumsum(counts)
  # The owner of a place is the number of items that end at or before it.
  owner = jnp.cumsum(jnp.zeros(capacity, jnp.int32).at[ends].add(1, mode='drop'))
  return jnp.minimum(owner, counts.size - 1), ends


def _total(counts: Int[Array, 'M'], ends: Int[Array, 'M']) -> Int[Array, '']:
  """The sum of the counts; of those whose sum is beyond int32, a number beyond any room."""
  return jnp.where(jnp.sum(counts.astype(jnp.float32)) > _BEYOND, _BEYOND, ends[-1])


def _span(low, high, num_tiles: int, side: int):
  """First tile and number of tiles whose pixel centres meet [low, high] (px), within the image.

  `side` is that of a tile in this direction, px."""
  # Clipped before the cast: a float beyond int32 has no defined integer.
  first = jnp.ceil(jnp.clip((low + 0.5) / side - 1.0, 0, num_tiles)).astype(jnp.int32)
  last = jnp.floor(jnp.clip((high - 0.5) / side, -1, num_tiles - 1)).astype(jnp.int32)
  return first, jnp.maximum(last - first + 1, 0)


def _slack(mean, sigma):
  """What float32 rounding of positions and extents may amount to (px)."""
  extent = CUTOFF_RADIUS * jnp.sqrt(sigma[:, 0] + sigma[:, 2])
  return 1e-3 + 4e-6 * (extent + jnp.max(jnp.abs(mean), axis=-1))


def _row_extents(mean, sigma, slack, y, height: int):
  """The x range (px) of each cutoff ellipse, grown by `slack`, in `height` pixel rows from y on.

  Along y the ellipse's right border is furthest out at dy = (sxy / sxx) hx; outside that point it
  falls monotonically, so the extreme over a strip is at the strip's end nearest to it.
  """
  half = CUTOFF_RADIUS * jnp.sqrt(sigma[..., 0]), CUTOFF_RADIUS * jnp.sqrt(sigma[..., 2])
  top = y + 0.5 - slack - mean[..., 1]
  bottom = y + (height - 0.5) + slack - mean[..., 1]
  top, bottom = jnp.maximum(top, -half[1]), jnp.minimum(bottom, half[1])
  slope = sigma[..., 1] / sigma[..., 2]
  # Sxx - Sxy^2/Syy as a difference cancels for thin oblique ellipses, so it is bounded below by the
  # rounding of its terms: the range may come out wide, never narrow.
  across = jnp.maximum(sigma[..., 0] - sigma[..., 1] * slope, 1e-6 * sigma[..., 0])
  furthest = half[0] * sigma[..., 1] / sigma[..., 0]

  def border(dy):
    chord = jnp.maximum(2 * CUTOFF - dy**2 / sigma[..., 2], 0.0)
    return slope * dy, jnp.sqrt(chord * across)

  center, width = border(jnp.clip(furthest, top, bottom))
  right = mean[..., 0] + center + width
  center, width = border(jnp.clip(-furthest, top, bottom))
  left = mean[..., 0] + center - width
  return left - slack, right + slack


def assign(
  gaussians: Gaussians,
  height: int,
  width: int,
  capacity: int,
  share: Share = WHOLE,
  tile_shape: TileShape = TILE,
) -> tuple[Int[Array, 'capacity'], Int[Array, 'capacity'], Int[Array, '']]:
  """The (tile, Gaussian) pairs of all ellipses: exact by tile row.

  Returns tile [capacity] (the number of tiles on unused pairs), Gaussian [capacity] and the number
  of pairs needed. First each Gaussian is listed once for each tile row it meets, then each of those
  once for each tile of the row that the ellipse's slice meets; a bounding box would list up to
  twice as many for the long thin Gaussians of a fitted photograph.
  """
  rows, columns = grid(height, width, tile_shape=tile_shape)
  sigma = covariance(gaussians.log_scale, gaussians.rotation)
  slack = _slack(gaussians.mean_xy, sigma)
  half_y = CUTOFF_RADIUS * jnp.sqrt(sigma[:, 2]) + slack
  center_y = gaussians.mean_xy[:, 1]
  first_row, num_rows = _span(center_y - half_y, center_y + half_y, rows, tile_shape.height)
  # The share's rows among first_row .. first_row + num_rows - 1.
  end_row = (first_row + num_rows - share.rank + share.size - 1) // share.size
  first_row = (first_row - share.rank + share.size - 1) // share.size

  room = math.ceil(_ROOM_FOR_ROWS * capacity)
  num_rows = end_row - first_row
  owner, ends = _expand(num_rows, room)
  total_rows = _total(num_rows, ends)
  # The first of an item's places stands for its first row, the next for the next.
  row = (end_row - ends)[owner] + jnp.arange(room)
  y = share.row(row).astype(jnp.float32) * tile_shape.height
  low, high = _row_extents(
    gaussians.mean_xy[owner], sigma[owner], slack[owner], y, tile_shape.height
  )
  first_column, num_columns = _span(low, high, columns, tile_shape.width)
  num_columns = jnp.where(jnp.arange(room) < total_rows, num_columns, 0)

  slice_, ends = _expand(num_columns, capacity)
  end_tile = row * columns + first_column + num_columns
  tile = (end_tile - ends)[slice_] + jnp.arange(capacity)
  num_tiles = math.prod(grid(height, width, share.size, tile_shape))
  tile = jnp.where(jnp.arange(capacity) < ends[-1], tile, num_tiles)
  # A truncated row list truncates the pairs unseen; how many there are is then a guess.
  needed = jnp.where(total_rows > room, 2 * total_rows, _total(num_columns, ends))
  return tile, owner[slice_], needed


def _sort_by_tile(tile: Int[Array, 'P'], num_tiles: int, gaussian: Int[Array, 'P'], count: int):
  """Tiles and Gaussians in the order of the tiles.

  One packed key sorts several times faster on a CPU than a key with a value. Where tile and
  Gaussian do not fit 32 bits, it takes one sort for each digit of the tile (least significant
  first) that fits them with the place in the list.
  """
  bits = max(count - 1, 1).bit_length()
  if (num_tiles + 1) << bits <= 1 << 32:
    key = lax.sort((tile.astype(jnp.uint32) << bits) | gaussian.astype(jnp.uint32))
    return (key >> bits).astype(jnp.int32), (key & ((1 << bits) - 1)).astype(jnp.int32)
  place = jnp.arange(tile.size, dtype=jnp.uint32)
  bits = max(tile.size - 1, 1).bit_length()
  order = place
  for shift in range(0, num_tiles.bit_length(), 32 - bits):
    digit = (tile[order].astype(jnp.uint32) >> shift) << bits  # higher digits fall out of the key
    order = order[lax.sort(digit | place) & ((1 << bits) - 1)]
  return tile[order], gaussian[order]


@jax.named_scope('binning')
def bin_gaussians(
  gaussians: Gaussians,
  height: int,
  width: int,
  capacity: int,
  share: Share = WHOLE,
  tile_shape: TileShape = TILE,
) -> Bins:
  """Tile lists of the Gaussians' cutoff ellipses; see `Bins`."""
  rows, columns = grid(height, width, share.size, tile_shape)
  num_tiles = rows * columns
  gaussians = jax.tree.map(lax.stop_gradient, gaussians)
  tile, gaussian, needed = assign(gaussians, height, width, capacity, share, tile_shape)
  with jax.named_scope('sort'):
    tile, gaussian = _sort_by_tile(tile, num_tiles, gaussian, gaussians.num_gaussians)

  ends = jnp.searchsorted(tile, jnp.arange(num_tiles), side='right').astype(jnp.int32)
  tile_start = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
  starts = tile_start[:-1]
  chunks = jnp.maximum(-(-(ends - starts) // CHUNK), 1)
  chunk_tile, tile_end = _expand(chunks, capacity // CHUNK + num_tiles)
  rank = jnp.arange(chunk_tile.size) - (tile_end - chunks)[chunk_tile]
  chunk_start = starts[chunk_tile] + rank * CHUNK
  chunk_size = jnp.clip(ends[chunk_tile] - chunk_start, 0, CHUNK)
  used = jnp.arange(chunk_tile.size) < tile_end[-1]
  return Bins(
    pair_gaussian=gaussian,
    tile_start=tile_start,
    chunk_tile=chunk_tile,
    chunk_start=jnp.where(used, chunk_start, 0),
    chunk_size=jnp.where(used, chunk_size, 0),
    tile_end=tile_end,
    num_pairs=needed,
    share=share,
    tile_shape=tile_shape,
    columns=columns,
  )


# --- capacity ---


class Capacity(NamedTuple):
  """The static sizes of a program that works from tile lists; also what an image needs of them."""

  pairs: Any  # (tile, Gaussian) pairs in one device's lists
  chunks: Any = 0  # chunks of one tile, where whole tiles are evaluated at a time

  def holds(self, needed: Capacity) -> Any:
    return (needed.pairs <= self.pairs) & (needed.chunks <= self.chunks)

  def grown(self, needed: Capacity) -> Capacity:
    """With some to spare; chunks in powers of two, since whole tiles have to fill a block."""
    pairs, chunks = self
    if needed.pairs > pairs:
      pairs = round_capacity(int(1.1 * needed.pairs))
    if needed.chunks > chunks:
      chunks = 2 << needed.chunks.bit_length()
    return Capacity(pairs, chunks)


_Result = TypeVar('_Result')


def grow_until_it_fits(
  capacity: Capacity, attempt: Callable[[Capacity], tuple[_Result, Capacity]]
) -> tuple[_Result, Capacity]:
  """The first complete result of `attempt`, and the capacity that held it.

  `attempt(capacity)` returns its result and the capacity that was needed, in Python integers. Where
  that is more than there was, the result is incomplete and the attempt is repeated with
  `capacity.grown(needed)`: one more compilation, but no Gaussian is dropped.
  """
  while True:
    result, needed = attempt(capacity)
    if capacity.holds(needed):
      return result, capacity
    capacity = capacity.grown(needed)
