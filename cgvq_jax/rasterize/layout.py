"""Arrays that implementations work on: Gaussians as rows of a table, images as tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from cgvq_jax.primitives.geometry import whitening
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize.tiles import (
  BLOCK,
  TILE,
  Bins,
  Share,
  Size,
  TileShape,
  grid,
  own_share,
  round_side,
)

Table = Float[Array, 'N1 D']
Tiles = Float[Array, 'T C P']


class Kernels(NamedTuple):
  """An implementation. Tile lists must be complete.

  `mean_errors(errors, target, table, bins)` returns the means and the gradient of the table. It is
  optional: for implementations that fuse rendering, errors and backward pass.
  """

  render: Callable[[Table, Bins], Tiles]
  backward: Callable[[Table, Bins, Tiles], Table]  # (..., cotangent) -> gradient of the table
  mean_errors: Callable[..., tuple[Float[Array, 'E'], Table]] | None = None


# (image, target) -> errors of their shape: the first is minimized, the others are reported.
Errors = Callable[[Array, Array], tuple[Array, ...]]


def errors_of_samples(
  errors: Errors,
  image: Tiles,
  target: Tiles,
  counted: Bool[Array, 'T 1 P'],
  num_samples: Int[Array, ''] | int,
) -> tuple[Float[Array, 'E'], Tiles]:
  """The contribution of these tiles to the means of errors(image, target) over all samples, and the
  cotangent of the image by the first error.

  Samples that are not counted have a cotangent of 0, even where the error has no finite
  derivative."""
  sample_weight = jnp.where(counted, 1 / num_samples, 0.0)

  def first_and_others(image):
    first, *others = errors(image, target)
    return first, others

  first, pullback, others = jax.vjp(first_and_others, image, has_aux=True)
  (cotangent,) = pullback(jnp.broadcast_to(sample_weight, image.shape))
  values = [jnp.sum(jnp.where(counted, each * sample_weight, 0.0)) for each in (first, *others)]
  return jnp.stack(values), jnp.where(counted, cotangent, 0.0)


def gaussian_table(gaussians: Gaussians) -> Table:
  """Rows [mean, whitening, color], and a last row of weight 0 everywhere that pads lists."""
  white = whitening(gaussians.log_scale, gaussians.rotation)
  rows = jnp.concatenate([gaussians.mean_xy, white, gaussians.color], axis=-1)
  # Far away and of unit size: q is about 1e12, finite and beyond the cutoff, on any tile.
  padding = jnp.array([-1e6, -1e6, 1.0, 0.0, 1.0])
  padding = jnp.pad(padding, (0, rows.shape[-1] - padding.size))[None]
  return jnp.concatenate([rows, padding])


def untile(tiles: Tiles, tile_shape: TileShape, columns: int) -> Float[Array, 'R Y X C']:
  """The pixels of rows of tiles as strips of an image: [tile row, y, x, channel]."""
  channels = tiles.shape[1]
  image = tiles.reshape(-1, columns, channels, *tile_shape).transpose(0, 3, 1, 4, 2)
  return image.reshape(-1, tile_shape.height, columns * tile_shape.width, channels)


def tile_image(image: Float[Array, 'H W C'], share: Share, tile_shape: TileShape = TILE) -> Tiles:
  """The tiles of a share of an image; 0 beyond the image's borders."""
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
class PaddedImage:
  """An image in the upper left corner of a larger array, so that many sizes share a program."""

  pixels: Float[Array, '*B Hp Wp C']  # 0 beyond the image
  size: Size

  @property
  def inside(self) -> Bool[Array, 'Hp Wp']:
    """Which pixels are the image's."""
    height, width, _ = self.pixels.shape
    row, column = jnp.arange(height)[:, None], jnp.arange(width)
    return (row < self.size.height) & (column < self.size.width)


def padded_image(image: Float[np.ndarray, 'H W C'], *, exactly: bool = False) -> PaddedImage:
  """An image, padded to sides of `tiles.round_side`, or not at all; made by NumPy."""
  image = np.asarray(image, np.float32)
  height, width, _ = image.shape
  if not exactly:
    pad = round_side(height) - height, round_side(width) - width
    image = np.pad(image, ((0, pad[0]), (0, pad[1]), (0, 0)))
  return PaddedImage(image, Size(np.int32(height), np.int32(width)))  # pyright: ignore


@struct.dataclass
class Target:
  """The tiles of a share of a target image, for `mean_errors`, and `block` tiles of padding."""

  pixels: Float[Array, 'T C P']
  inside: Bool[Array, 'T 1 P']
  size: Size  # of the image
  block: int = struct.field(pytree_node=False)  # chunks that `mean_errors` evaluates at a time

  @property
  def num_samples(self) -> Int[Array, ''] | int:
    """Pixels times channels of the whole image."""
    return self.size.height * self.size.width * self.pixels.shape[-2]


def tile_target(
  target: PaddedImage,
  *,
  axis: str | None = None,
  block: int = BLOCK,
  tile_shape: TileShape = TILE,
) -> Target:
  """The target of `mean_errors`, to be made once for many calls."""
  share, pad = own_share(axis), ((0, block), (0, 0), (0, 0))
  pixels = jnp.pad(tile_image(target.pixels, share, tile_shape), pad)
  inside = target.inside[..., None].astype(jnp.float32)
  inside = jnp.pad(tile_image(inside, share, tile_shape), pad) > 0
  return Target(pixels, inside, target.size, block)


def inactive(count: int, channels: int) -> Gaussians:
  """`count` black Gaussians outside of the picture, in no tile's list; NumPy arrays."""
  return Gaussians(
    mean_xy=np.full((count, 2), -1e3, np.float32),
    log_scale=np.zeros((count, 2), np.float32),
    rotation=np.zeros(count, np.float32),
    color=np.zeros((count, channels), np.float32),
  )


def with_inactive(gaussians: Gaussians, num_gaussians: int) -> Gaussians:
  """The Gaussians, padded with inactive ones to `num_gaussians`; NumPy arrays."""
  more = inactive(num_gaussians - gaussians.num_gaussians, gaussians.num_channels)
  return jax.tree.map(lambda a, b: np.concatenate([np.asarray(a), b]), gaussians, more)
