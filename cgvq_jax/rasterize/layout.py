"""What implementations work on: Gaussians as rows of a table, pictures as tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from cgvq_jax.primitives.geometry import whitening
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize.tiles import BLOCK, TILE, Bins, Share, TileShape, grid, own_share

Table = Float[Array, 'N1 D']
Tiles = Float[Array, 'T C P']


class Kernels(NamedTuple):
  """An implementation. Tile lists must be complete; those of all but `xla` may be of any shape.

  `mean_errors(errors, target, table, bins)` is there where it can be done in less than a rendering,
  the errors of all samples and a pull back: the values, and the gradient of the table.
  """

  render: Callable[[Table, Bins], Tiles]
  backward: Callable[[Table, Bins, Tiles], Table]  # (..., cotangent) -> gradient of the table
  mean_errors: Callable[..., tuple[Float[Array, 'E'], Table]] | None = None


# (image, target) -> errors of their shape: the one to descend, and others to be told as well.
Errors = Callable[[Array, Array], tuple[Array, ...]]


def errors_of_samples(
  errors: Errors,
  image: Tiles,
  target: Tiles,
  counted: Bool[Array, 'T 1 P'],
  num_samples: int,
) -> tuple[Float[Array, 'E'], Tiles]:
  """What these tiles add to the means of errors(image, target), and the cotangent of the first.

  Samples that do not count have a cotangent of 0, even where an error has no finite derivative."""
  share_of_each = jnp.where(counted, 1 / num_samples, 0.0)

  def first_apart(image):
    first, *others = errors(image, target)
    return first, others

  first, pullback, others = jax.vjp(first_apart, image, has_aux=True)
  (cotangent,) = pullback(jnp.broadcast_to(share_of_each, image.shape))
  values = [jnp.sum(jnp.where(counted, each * share_of_each, 0.0)) for each in (first, *others)]
  return jnp.stack(values), jnp.where(counted, cotangent, 0.0)


def gaussian_table(gaussians: Gaussians) -> Table:
  """Rows [mean, whitening, color] and a last one of weight 0 everywhere, for unused places."""
  white = whitening(gaussians.log_scale, gaussians.rotation)
  rows = jnp.concatenate([gaussians.mean_xy, white, gaussians.color], axis=-1)
  # Far away and of unit size: q is about 1e12, finite and beyond the cutoff, on any tile.
  nobody = jnp.array([-1e6, -1e6, 1.0, 0.0, 1.0])
  nobody = jnp.pad(nobody, (0, rows.shape[-1] - nobody.size))[None]
  return jnp.concatenate([rows, nobody])


def arranged(tiles: Tiles, tile_shape: TileShape, columns: int) -> Float[Array, 'R Y X C']:
  """The pixels of rows of tiles, in the order of an image: tile row, y, x, channel."""
  channels = tiles.shape[1]
  image = tiles.reshape(-1, columns, channels, *tile_shape).transpose(0, 3, 1, 4, 2)
  return image.reshape(-1, tile_shape.height, columns * tile_shape.width, channels)


def own_tiles(image: Float[Array, 'H W C'], share: Share, tile_shape: TileShape = TILE) -> Tiles:
  """The share's rows of tiles; 0 beyond the image's borders."""
  height, width, channels = image.shape
  rows, columns = grid(height, width, share.size, tile_shape)
  pad = (
    rows * share.size * tile_shape.height - height,
    columns * tile_shape.width - width,
  )
  image = jnp.pad(image, ((0, pad[0]), (0, pad[1]), (0, 0)))
  image = image.reshape(rows, share.size, tile_shape.height, columns, tile_shape.width, channels)[
    :, share.rank
  ]
  return image.transpose(0, 2, 4, 1, 3).reshape(rows * columns, channels, tile_shape.num_pixels)


@struct.dataclass
class Target:
  """The tiles of a share of a target image, for `mean_errors`; `block` more follow, all outside."""

  pixels: Float[Array, 'T C P']
  inside: Bool[Array, 'T 1 P']
  height: int = struct.field(pytree_node=False)  # px, of the image
  width: int = struct.field(pytree_node=False)
  block: int = struct.field(pytree_node=False)  # chunks that `mean_errors` evaluates at a time

  @property
  def num_samples(self) -> int:
    """Of the whole image."""
    return self.height * self.width * self.pixels.shape[-2]


def tile_target(
  target: Float[Array, 'H W C'],
  *,
  axis: str | None = None,
  block: int = BLOCK,
  tile_shape: TileShape = TILE,
) -> Target:
  """Done once for many calls of `mean_errors`."""
  height, width, _ = target.shape
  share, pad = own_share(axis), ((0, block), (0, 0), (0, 0))
  pixels = jnp.pad(own_tiles(target, share, tile_shape), pad)
  inside = jnp.pad(own_tiles(jnp.ones((height, width, 1)), share, tile_shape), pad) > 0
  return Target(pixels, inside, height, width, block)
