"""Structural similarity of decoded 8-bit images; of RGBA, of its composites on black and white."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from cgvq_jax import devices
from cgvq_jax.metrics import seen

if TYPE_CHECKING:
  from jaxtyping import Array, Float, UInt8

_WINDOW = 11  # px, the side of SSIM's Gaussian window; its standard deviation is 1.5 px
# Wang et al. 2003, from the finest scale to the coarsest.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@devices.own_configuration()
def ssim(reference: UInt8[np.ndarray, 'H W C'], decoded: UInt8[np.ndarray, 'H W C']) -> float:
  """Structural similarity (Wang et al. 2004), the mean over channels; 1 at equality.

  Gaussian window of 11 x 11 px with sigma = 1.5 px, K1 = 0.01, K2 = 0.03, over the positions where
  the window lies inside the image. In an image with a side below 11 px the window shrinks to the
  largest odd size that fits.

  Raises:
    ValueError: as `metrics.psnr`.
  """
  reference, decoded = seen(reference, decoded)
  return float(_ssim(reference, decoded, window=_window(reference)))


@devices.own_configuration()
def ms_ssim(reference: UInt8[np.ndarray, 'H W C'], decoded: UInt8[np.ndarray, 'H W C']) -> float:
  """Multi-scale structural similarity (Wang et al. 2003, eq. 7), the mean over channels.

  The product over scales j = 1..5 of max(0, cs_j)^w_j, where cs_j is the mean contrast-structure
  term and at the coarsest scale the whole SSIM. Each scale halves the one before by 2 x 2 means; an
  odd edge is repeated. Five scales need both sides above 160 px. A smaller image has only the
  scales that are no smaller than the 11 px window, with their weights renormalised to sum 1; below
  21 px that is one scale.

  Raises:
    ValueError: as `metrics.psnr`.
  """
  reference, decoded = seen(reference, decoded)
  side, scales = min(reference.shape[:2]), 1
  while scales < len(_SCALE_WEIGHTS) and (side := -(-side // 2)) >= _WINDOW:
    scales += 1
  return float(_ms_ssim(reference, decoded, window=_window(reference), scales=scales))


def _window(image: np.ndarray) -> int:
  side = min(image.shape[:2])
  return min(_WINDOW, side - 1 + side % 2)


@partial(jax.jit, static_argnames='window')
def _ssim(reference, decoded, window: int) -> Float[Array, '']:
  return jnp.asarray(dm_pix.ssim(reference / 255.0, decoded / 255.0, filter_size=window))


@partial(jax.jit, static_argnames=('window', 'scales'))
def _ms_ssim(reference, decoded, window: int, scales: int) -> Float[Array, '']:
  # Channels become a batch of gray images, because the product over scales is one for each.
  a, b = (jnp.moveaxis(image, -1, 0)[..., None] / 255.0 for image in (reference, decoded))
  weights = np.array(_SCALE_WEIGHTS[:scales]) / sum(_SCALE_WEIGHTS[:scales])
  product = jnp.ones(a.shape[0])
  for scale, weight in enumerate(weights):
    coarsest = scale == scales - 1
    # A K1 this large makes the luminance factor 1, which leaves the contrast-structure term.
    similarity = dm_pix.ssim(a, b, filter_size=window, k1=0.01 if coarsest else 1e6)
    product *= jnp.maximum(similarity, 0) ** float(weight)
    if not coarsest:
      a, b = _halved(a), _halved(b)
  return jnp.mean(product)


def _halved(images: Float[Array, 'B H W 1']) -> Float[Array, 'B h w 1']:
  height, width = images.shape[1:3]
  images = jnp.pad(images, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode='edge')
  return images.reshape(images.shape[0], -1, 2, images.shape[2] // 2, 2, 1).mean((2, 4))
