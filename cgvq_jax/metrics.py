"""Quality of decoded 8-bit images, and the rates of real files.

Every function compares what a viewer gets: uint8 pixels after decoding. Channels count alike, and
alpha is one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from scipy.interpolate import PchipInterpolator

_WINDOW = 11  # px, the side of SSIM's Gaussian window; its standard deviation is 1.5 px
_SCALE_WEIGHTS = (
  0.0448,
  0.2856,
  0.3001,
  0.2363,
  0.1333,
)  # Wang et al. 2003, from finest to coarsest


def psnr(reference: UInt8[np.ndarray, 'H W C'], decoded: UInt8[np.ndarray, 'H W C']) -> float:
  """10 log10(255^2 / MSE) in dB, the mean over all pixels and channels; inf at equality.

  Raises:
    ValueError: the images are not two uint8 [H, W, C] arrays of one shape, C = 1, 3 or 4.
  """
  reference, decoded = _checked(reference, decoded)
  difference = reference.astype(np.int16) - decoded
  mean_squared_error = np.mean(np.square(difference, dtype=np.int32))
  return 10 * math.log10(255**2 / mean_squared_error) if mean_squared_error else math.inf


def ssim(reference: UInt8[np.ndarray, 'H W C'], decoded: UInt8[np.ndarray, 'H W C']) -> float:
  """Structural similarity (Wang et al. 2004), the mean over channels; 1 at equality.

  Gaussian window of 11 x 11 px with sigma = 1.5 px, K1 = 0.01, K2 = 0.03, over the positions where
  the window lies inside the image. In an image with a side below 11 px the window shrinks to the
  largest odd size that fits.

  Raises:
    ValueError: as `psnr`.
  """
  reference, decoded = _checked(reference, decoded)
  return float(_ssim(reference, decoded, window=_window(reference)))


def ms_ssim(reference: UInt8[np.ndarray, 'H W C'], decoded: UInt8[np.ndarray, 'H W C']) -> float:
  """Multi-scale structural similarity (Wang et al. 2003, eq. 7), the mean over channels.

  The product over scales j = 1..5 of max(0, cs_j)^w_j, where cs_j is the mean contrast-structure
  term and at the coarsest scale the whole SSIM. Each scale halves the one before by 2 x 2 means; an
  odd edge is repeated. Five scales need both sides above 160 px. A smaller image has as many
  scales as leave room for the 11 px window, with the weights of these renormalised to sum 1; below
  21 px that is one scale.

  Raises:
    ValueError: as `psnr`.
  """
  reference, decoded = _checked(reference, decoded)
  side, scales = min(reference.shape[:2]), 1
  while scales < len(_SCALE_WEIGHTS) and (side := -(-side // 2)) >= _WINDOW:
    scales += 1
  return float(_ms_ssim(reference, decoded, window=_window(reference), scales=scales))


def bpp(num_bytes: int, height: int, width: int) -> float:
  """Bits per pixel, 8 bytes / (H W): the only rate there is.

  Raises:
    ValueError: a size is below 1 px, or the number of bytes is negative.
  """
  if min(height, width) < 1 or num_bytes < 0:
    raise ValueError(
      f'wanted bytes >= 0 and sides >= 1 px, got {num_bytes} bytes of {height} x {width} px'
    )
  return 8 * num_bytes / (height * width)


def bd_rate(
  rate_a: Sequence[float],
  quality_a: Sequence[float],
  rate_b: Sequence[float],
  quality_b: Sequence[float],
  between: tuple[float, float] = (0.0, math.inf),
) -> float:
  """Mean change of rate from codec b to codec a at equal quality, in percent; negative: a saves.

  100 (exp(mean(ln rate_a - ln rate_b)) - 1), the mean over the range of quality that both curves
  cover and where b's rate is within `between` (Bjontegaard, VCEG-M33), with ln rate as a monotone
  piecewise cubic function of quality instead of one cubic, which overshoots between points that lie
  far apart. Qualities are in dB: PSNR, or -10 log10(1 - MS-SSIM).

  Raises:
    ValueError: a curve has fewer than 2 points of different quality, a rate that is not positive or
      a value that is not finite, or the curves share no range of quality.
  """
  log_rate_a, log_rate_b = _log_rate('a', rate_a, quality_a), _log_rate('b', rate_b, quality_b)
  low = max(log_rate_a.x[0], log_rate_b.x[0])
  high = min(log_rate_a.x[-1], log_rate_b.x[-1])
  least, most = (_quality_at(log_rate_b, rate) for rate in between)
  low, high = max(low, least), min(high, most)
  if low >= high:
    ranges = ' and '.join(f'{f.x[0]:.2f}..{f.x[-1]:.2f}' for f in (log_rate_a, log_rate_b))
    raise ValueError(f'wanted curves that overlap in quality, got {ranges} dB')
  difference = log_rate_a.integrate(low, high) - log_rate_b.integrate(low, high)
  return 100 * math.expm1(difference / (high - low))


def rate_at(psnr_wanted: float, rates: Sequence[float], psnrs: Sequence[float]) -> float:
  """The rate of a measured curve at one PSNR, by the interpolation of `bd_rate`.

  Raises:
    ValueError: the PSNR is outside the measured range, or as `bd_rate`.
  """
  log_rate = _log_rate('measured', rates, psnrs)
  if not log_rate.x[0] <= psnr_wanted <= log_rate.x[-1]:
    raise ValueError(
      f'wanted {log_rate.x[0]:.2f}..{log_rate.x[-1]:.2f} dB as measured, got {psnr_wanted:.2f} dB'
    )
  return math.exp(log_rate(psnr_wanted))


def _quality_at(log_rate: PchipInterpolator, rate: float) -> float:
  """Where a curve has a rate, the first place; infinite where it is all above or all below."""
  if rate == math.inf:
    return math.inf
  above = log_rate(log_rate.x) - (math.log(rate) if rate > 0 else -math.inf)
  if above.min() >= 0:
    return -math.inf
  places = PchipInterpolator(log_rate.x, above).roots(extrapolate=False)
  return float(places[0]) if places.size else math.inf


def _log_rate(name: str, rates: Sequence[float], qualities: Sequence[float]) -> PchipInterpolator:
  """ln rate over quality; of points with the same quality the cheapest counts."""
  rate, level = np.asarray(rates, np.float64), np.asarray(qualities, np.float64)
  if rate.shape != level.shape or rate.ndim != 1:
    raise ValueError(f'curve {name}: wanted one quality a rate, got {rate.shape}, {level.shape}')
  if not (np.isfinite(rate) & np.isfinite(level) & (rate > 0)).all():
    raise ValueError(
      f'curve {name}: wanted finite qualities and positive rates, got {rate}, {level}'
    )
  order = np.lexsort((rate, level))
  level, first = np.unique(level[order], return_index=True)
  if len(level) < 2:
    raise ValueError(
      f'curve {name}: wanted 2 points of different quality or more, got {len(level)}'
    )
  return PchipInterpolator(level, np.log(rate[order][first]))


def _checked(reference, decoded) -> tuple[np.ndarray, np.ndarray]:
  arrays = np.asarray(reference), np.asarray(decoded)
  for name, array in zip(('reference', 'decoded'), arrays, strict=True):
    wanted = array.ndim == 3 and array.shape[2] in (1, 3, 4) and array.size > 0
    if not wanted or array.dtype != np.uint8:
      raise ValueError(
        f'{name}: wanted uint8 [H, W, C] with C = 1, 3 or 4, got {array.dtype} {array.shape}'
      )
  if arrays[0].shape != arrays[1].shape:
    raise ValueError(f'decoded: wanted the shape {arrays[0].shape}, got {arrays[1].shape}')
  return arrays


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
