"""Transparency: the colours that are seen, and colours for the pixels where none is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from jaxtyping import Float, UInt8


def composites(image: UInt8[np.ndarray, 'H W 4']) -> UInt8[np.ndarray, 'H W 6']:
  """The colours of RGBA on black, then those on white, rounded to 8 bits.

  round(alpha c / 255) and round(alpha c / 255 + 255 - alpha). Where two images agree on both, they
  agree on every background, because the two differ by 255 - alpha.
  """
  alpha = image[..., 3:].astype(np.uint16)
  products = alpha * image[..., :3]
  both = [(products + 127) // 255, (products + (255 - alpha) * 255 + 127) // 255]
  return np.concatenate(both, -1).astype(np.uint8)


def fill_hidden(image: Float[np.ndarray, 'H W C']) -> Float[np.ndarray, 'H W C']:
  """RGBA in 0..1 with the colours of pixels of alpha 0 replaced by a smooth continuation.

  Nobody sees these colours, and whatever a program has left there, such as noise, would take most
  of the file. Visible pixels keep their values, and an image without hidden ones is returned as it
  is, as are gray and RGB. Hidden pixels get means of the visible ones around them, weighted by
  alpha, over the smallest areas that have any (the pull-push algorithm: Gortler et al., The
  Lumigraph, SIGGRAPH 1996, section 3.4.2). Where nothing is visible, they are black.
  """
  if image.shape[2] < 4:
    return image
  hidden = image[..., 3] == 0
  if not hidden.any():
    return image
  filled = np.array(image)
  # Channels come first, so that all operations are on long rows.
  planes = np.moveaxis(np.asarray(image, np.float32), 2, 0)
  colour = _continued(planes[:3] * planes[3:], planes[3:])
  filled[hidden, :3] = colour[:, hidden].T
  return filled


def _continued(
  total: Float[np.ndarray, '3 H W'], weight: Float[np.ndarray, '1 H W']
) -> Float[np.ndarray, '3 H W']:
  """Means total / weight; where the weight is below 1, the rest is of those of twice the area."""
  share = np.minimum(weight, 1)
  own = total * (share / np.maximum(weight, np.finfo(np.float32).tiny))
  if max(weight.shape) == 1:
    return own
  coarse = _continued(_halved(total), _halved(weight))
  return own + (1 - share) * _doubled(coarse, *weight.shape[1:])


def _halved(planes: Float[np.ndarray, 'C H W']) -> Float[np.ndarray, 'C h w']:
  """Sums over 2 x 2 pixels; an odd edge has no partner."""
  _, height, width = planes.shape
  planes = np.pad(planes, [(0, 0), (0, height % 2), (0, width % 2)])
  rows = planes[:, 0::2] + planes[:, 1::2]
  return rows[..., 0::2] + rows[..., 1::2]


def _doubled(
  planes: Float[np.ndarray, 'C h w'], height: int, width: int
) -> Float[np.ndarray, 'C H W']:
  """Bilinear interpolation to twice the size, without a last row or column that is too many."""
  for axis, size in ((1, height), (2, width)):
    count = planes.shape[axis]
    before = planes.take(np.maximum(np.arange(count) - 1, 0), axis)
    after = planes.take(np.minimum(np.arange(count) + 1, count - 1), axis)
    pairs = np.stack([0.75 * planes + 0.25 * before, 0.75 * planes + 0.25 * after], axis + 1)
    shape = list(planes.shape)
    shape[axis] = 2 * count
    planes = pairs.reshape(shape).take(np.arange(size), axis)
  return planes
