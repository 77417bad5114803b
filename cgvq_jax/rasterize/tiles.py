"""Binning: for each tile, the list of the Gaussians whose cutoff ellipse meets it, cut into chunks.

The arrays have static shapes: they hold at most `capacity` (tile, Gaussian) pairs. The number of
pairs that the image needs is returned too, so that a caller detects an overflow and bins again with
a larger capacity. A single tile has no limit: its list takes as many chunks of CHUNK Gaussians as
it needs.
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
  """The size of the rectangles of pixels that each have one list of Gaussians."""

  height: int  # px
  width: int  # px

  @property
  def num_pixels(self) -> int:
    return self.height * self.width


TILE = TileShape(16, 16)  # 256 pixels fill vector registers, a chunk's weights stay in L2 cache
CHUNK = 16  # Gaussians; shorter chunks pad lists less but copy the cotangent more often
BLOCK = 64  # chunks evaluated at a time: 1 MiB of weights

# Most Gaussians meet several tiles of a row: capacity for (tile row, Gaussian) pairs, as a fraction
# of that for (tile, Gaussian) pairs.
_ROW_FRACTION = 5 / 8
_TOO_MANY = 1 << 29  # stands for any larger number of pairs; twice that is still an int32


@struct.dataclass
class Share:
  """Every `size`-th row of tiles from row `rank` on: the part of an image that one device renders.

  Interleaved rows balance the load for any image; contiguous halves would not.
  """

  rank: Int[Array, ''] | int = 0
  size: int = struct.field(pytree_node=False, default=1)

  def row(self, local: Int[Array, '*S']) -> Int[Array, '*S']:
    """The row in the image of this share's row `local`."""
    return local * self.size + self.rank


WHOLE = Share()


def own_share(axis: str | None) -> Share:
  """The share of this device inside a `shard_map` over `axis`; without an axis, the whole image."""
  return Share(lax.axis_index(axis), lax.axis_size(axis)) if axis else WHOLE


@struct.dataclass
class Size:
  """The size of an image in px, where it may be data of a program and not part of it."""

  height: Any  # [*B] int
  width: Any  # [*B] int


def _tiles_of(size: Size, tile_shape: TileShape) -> tuple[Any, Any]:
  """Rows and columns of tiles that cover an image."""
  return -(-size.height // tile_shape.height), -(-size.width // tile_shape.width)


@struct.dataclass
class Bins:
  """The tile lists of one image or of a share of it; tiles are numbered within the share.

  Pairs are sorted by tile: the list of tile t is
  `pair_gaussian[tile_start[t] : tile_start[t + 1]]`. For code that evaluates several tiles at a
  time the lists are also cut into chunks: chunk j is
  `pair_gaussian[chunk_start[j] : chunk_start[j] + chunk_size[j]]`, of tile `chunk_tile[j]`. A tile
  of the image without Gaussians has one chunk, of size 0, and a tile of padding none. Chunks from
  `num_chunks` on are unused.
  """

  pair_gaussian: Int[Array, 'capacity']
  tile_start: Int[Array, 'tiles+1']
  chunk_tile: Int[Array, 'chunks']
  chunk_start: Int[Array, 'chunks']
  chunk_size: Int[Array, 'chunks']  # 0..CHUNK
  tile_end: Int[Array, 'tiles']  # the last chunk of each tile, plus 1
  num_pairs: Int[Array, '']  # needed; above the capacity the lists are incomplete
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
    """The largest number of chunks of one tile."""
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
  """Rows and columns of tiles that cover the image, or the largest of its `num_shares` shares."""
  return -(-height // (tile_shape.height * num_shares)), -(-width // tile_shape.width)


def initial_capacity(
  num_gaussians: int, height: int, width: int, tile_shape: TileShape = TILE
) -> int:
  """An estimate of the number of pairs; one that is too low costs one more compilation.

  Gaussians fitted to a photograph cover each pixel some sixteen times, whatever their number N: a
  box of e = 4 sqrt(pixels / N) px a side meets (1 + e / tile height) (1 + e / tile width) tiles on
  average."""
  side = 4 * math.sqrt(height * width / num_gaussians)
  met = (1 + side / tile_shape.height) * (1 + side / tile_shape.width)
  return round_capacity(math.ceil(1.15 * num_gaussians * met))


def _expand(counts: Int[Array, 'M'], capacity: int):
  """Lists item i counts[i] times: (the item at each position, the end of each item's positions).

  Positions after the last item's end hold any item."""
  ends = jnp.cumsum(counts)
  # The item at a position is the number of items that end at or before it.
  owner = jnp.cumsum(jnp.zeros(capacity, jnp.int32).at[ends].add(1, mode='drop'))
  return jnp.minimum(owner, counts.size - 1), ends


def _total(counts: Int[Array, 'M'], ends: Int[Array, 'M']) -> Int[Array, '']:
  """The sum of the counts, or _TOO_MANY where it would overflow int32."""
  return jnp.where(jnp.sum(counts.astype(jnp.float32)) > _TOO_MANY, _TOO_MANY, ends[-1])


def _span(low, high, num_tiles: int, side: int):
  """First tile and number of tiles with pixel centres in [low, high] (px), within the image.

  `side` is that of a tile in this direction, px."""
  # Clipped before the cast: a float beyond int32 has no defined integer.
  first = jnp.ceil(jnp.clip((low + 0.5) / side - 1.0, 0, num_tiles)).astype(jnp.int32)
  last = jnp.floor(jnp.clip((high - 0.5) / side, -1, num_tiles - 1)).astype(jnp.int32)
  return first, jnp.maximum(last - first + 1, 0)


def _slack(mean, sigma):
  """A bound on the float32 rounding of positions and extents (px)."""
  extent = CUTOFF_RADIUS * jnp.sqrt(sigma[:, 0] + sigma[:, 2])
  return 1e-3 + 4e-6 * (extent + jnp.max(jnp.abs(mean), axis=-1))


def _row_extents(mean, sigma, slack, y, height: int):
  """The x range (px) of each cutoff ellipse, widened by `slack`, in `height` pixel rows from y on.

  The ellipse reaches furthest to the right at dy = (sxy / sxx) hx, and less far the further a row
  is from there: the maximum over a strip is at the point of the strip that is nearest to that dy.
  """
  half = CUTOFF_RADIUS * jnp.sqrt(sigma[..., 0]), CUTOFF_RADIUS * jnp.sqrt(sigma[..., 2])
  top = y + 0.5 - slack - mean[..., 1]
  bottom = y + (height - 0.5) + slack - mean[..., 1]
  top, bottom = jnp.maximum(top, -half[1]), jnp.minimum(bottom, half[1])
  slope = sigma[..., 1] / sigma[..., 2]
  # Sxx - Sxy^2/Syy as a difference cancels for thin oblique ellipses, so it is bounded below by the
  # rounding of its terms: the range may be too wide, never too narrow.
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
  size: Size | None = None,
) -> tuple[Int[Array, 'capacity'], Int[Array, 'capacity'], Int[Array, '']]:
  """The (tile, Gaussian) pairs of all ellipses, exact within each row of tiles.

  Arguments as for `bin_gaussians`. Returns tile [capacity] (unused pairs: the number of tiles),
  Gaussian [capacity] and the number of pairs needed. First each Gaussian is listed for every row of
  tiles that it meets, then each of these entries for every tile that the ellipse's part in that row
  meets. A bounding box would give up to twice as many pairs for the long thin Gaussians of a fitted
  photograph.
  """
  _, columns = grid(height, width, tile_shape=tile_shape)
  used_rows, used_columns = _tiles_of(size or Size(height, width), tile_shape)
  sigma = covariance(gaussians.log_scale, gaussians.rotation)
  slack = _slack(gaussians.mean_xy, sigma)
  half_y = CUTOFF_RADIUS * jnp.sqrt(sigma[:, 2]) + slack
  center_y = gaussians.mean_xy[:, 1]
  first_row, num_rows = _span(center_y - half_y, center_y + half_y, used_rows, tile_shape.height)
  # The share's rows among first_row .. first_row + num_rows - 1.
  end_row = (first_row + num_rows - share.rank + share.size - 1) // share.size
  first_row = (first_row - share.rank + share.size - 1) // share.size

  row_capacity = math.ceil(_ROW_FRACTION * capacity)
  num_rows = end_row - first_row
  owner, ends = _expand(num_rows, row_capacity)
  total_rows = _total(num_rows, ends)
  # The first position of a Gaussian is its first row, the next one its second, and so on.
  row = (end_row - ends)[owner] + jnp.arange(row_capacity)
  y = share.row(row).astype(jnp.float32) * tile_shape.height
  low, high = _row_extents(
    gaussians.mean_xy[owner], sigma[owner], slack[owner], y, tile_shape.height
  )
  first_column, num_columns = _span(low, high, used_columns, tile_shape.width)
  num_columns = jnp.where(jnp.arange(row_capacity) < total_rows, num_columns, 0)

  slice_, ends = _expand(num_columns, capacity)
  end_tile = row * columns + first_column + num_columns
  tile = (end_tile - ends)[slice_] + jnp.arange(capacity)
  num_tiles = math.prod(grid(height, width, share.size, tile_shape))
  tile = jnp.where(jnp.arange(capacity) < ends[-1], tile, num_tiles)
  # Where the list of rows overflows, some pairs are not counted: the number needed is an estimate.
  needed = jnp.where(total_rows > row_capacity, 2 * total_rows, _total(num_columns, ends))
  return tile, owner[slice_], needed


def sort_by_tile(tile: Int[Array, 'P'], num_tiles: int, gaussian: Int[Array, 'P'], count: int):
  """Tiles and Gaussians, sorted by tile.

  On a CPU one packed key sorts several times faster than a key with a value. Where tile and
  Gaussian do not fit 32 bits together, this is a radix sort: each pass sorts by a digit of the tile
  (least significant first), packed with the position in the list.
  """
  bits = max(count - 1, 1).bit_length()
  if (num_tiles + 1) << bits <= 1 << 32:
    key = lax.sort((tile.astype(jnp.uint32) << bits) | gaussian.astype(jnp.uint32))
    return (key >> bits).astype(jnp.int32), (key & ((1 << bits) - 1)).astype(jnp.int32)
  position = jnp.arange(tile.size, dtype=jnp.uint32)
  bits = max(tile.size - 1, 1).bit_length()
  order = position
  for shift in range(0, num_tiles.bit_length(), 32 - bits):
    digit = (tile[order].astype(jnp.uint32) >> shift) << bits  # higher digits fall out of the key
    order = order[lax.sort(digit | position) & ((1 << bits) - 1)]
  return tile[order], gaussian[order]


@jax.named_scope('binning')
def bin_gaussians(
  gaussians: Gaussians,
  height: int,
  width: int,
  capacity: int,
  share: Share = WHOLE,
  tile_shape: TileShape = TILE,
  size: Size | None = None,
) -> Bins:
  """Tile lists of the Gaussians' cutoff ellipses; see `Bins`.

  With a `size`, `height` and `width` are those of a padded image, whose upper left part has this
  size; tiles beyond it have no Gaussians and no chunks."""
  rows, columns = grid(height, width, share.size, tile_shape)
  num_tiles = rows * columns
  gaussians = jax.tree.map(lax.stop_gradient, gaussians)
  tile, gaussian, needed = assign(gaussians, height, width, capacity, share, tile_shape)
  with jax.named_scope('sort'):
    tile, gaussian = sort_by_tile(tile, num_tiles, gaussian, gaussians.num_gaussians)

  ends = jnp.searchsorted(tile, jnp.arange(num_tiles), side='right').astype(jnp.int32)
  tile_start = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])
  starts = tile_start[:-1]
  chunks = jnp.maximum(-(-(ends - starts) // CHUNK), 1)
  if size is not None:
    used_rows, used_columns = _tiles_of(size, tile_shape)
    row, column = jnp.divmod(jnp.arange(num_tiles), columns)
    chunks = jnp.where((share.row(row) < used_rows) & (column < used_columns), chunks, 0)
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

# Programs have static sizes, and compiling one takes longer than running a larger one for a while.
# So sizes are rounded up to a few: numbers of Gaussians, whose padding costs some hundredths of the
# time, to powers of two; sides to two an octave, 1 and 1.5 times a power of two; and lists of
# pairs, which are sorted, to four.
_LEAST_SIDE, _LEAST_GAUSSIANS, _LEAST_PAIRS = 128, 1024, 2048


def _round_up(size: int, per_octave: int, least: int) -> int:
  """The smallest of `per_octave` sizes an octave that holds `size`, from `least`, a power of 2."""
  step = max(1 << max(size - 1, 1).bit_length() - 1, least) // per_octave
  return max(step * -(-size // step), least)


def round_side(side: int) -> int:
  """The side (px) of the padded image that an image of this side has."""
  return _round_up(side, 2, _LEAST_SIDE)


def round_gaussians(num_gaussians: int) -> int:
  """The number of rows, some of them inactive, that so many Gaussians have."""
  return _round_up(num_gaussians, 1, _LEAST_GAUSSIANS)


def round_capacity(num_pairs: int) -> int:
  """The capacity of lists for so many pairs."""
  return _round_up(num_pairs, 4, _LEAST_PAIRS)


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
