"""From rotation and scale to covariance, whitening, area, energy and the cutoff ellipse.

Arrays may be NumPy's or JAX's: functions take their operations from the namespace of the array
(the Python array API standard), so this module imports neither.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cgvq_jax.primitives.gaussians import Gaussians

if TYPE_CHECKING:
  from collections.abc import Sequence

  from jaxtyping import Float

  Array = Any

# A Gaussian ends where its weight falls below 1/255, half a grey level of the brightest colour:
# q = (p-mu)^T Sigma^-1 (p-mu) / 2 <= ln 255. The cutoff is part of the image's definition.
CUTOFF = math.log(255.0)
CUTOFF_RADIUS = math.sqrt(2.0 * CUTOFF)  # 3.33 standard deviations

# Standard deviations outside this range (px) would overflow float32 when squared.
MIN_SCALE, MAX_SCALE = 1e-3, 1e6


def standard_deviations(log_scale: Float[Array, '*N 2']) -> Float[Array, '*N 2']:
  """exp(log_scale) in px, clamped to [MIN_SCALE, MAX_SCALE]; no gradient outside the range."""
  xp = log_scale.__array_namespace__()
  return xp.exp(xp.clip(log_scale, math.log(MIN_SCALE), math.log(MAX_SCALE)))


def _rotated_diagonal(first, second, rotation):
  """R(rotation) diag(first, second) R(rotation)^T as [..., (xx, xy, yy)]."""
  xp = rotation.__array_namespace__()
  cosine, sine = xp.cos(rotation), xp.sin(rotation)
  return xp.stack(
    [
      first * cosine**2 + second * sine**2,
      (first - second) * cosine * sine,
      first * sine**2 + second * cosine**2,
    ],
    axis=-1,
  )


def covariance(
  log_scale: Float[Array, '*N 2'], rotation: Float[Array, '*N']
) -> Float[Array, '*N 3']:
  """Sigma = R diag(s1^2, s2^2) R^T as [xx, xy, yy], px^2 (GaussianImage, section 3.1)."""
  variance = standard_deviations(log_scale) ** 2
  return _rotated_diagonal(variance[..., 0], variance[..., 1], rotation)


def whitening(
  log_scale: Float[Array, '*N 2'], rotation: Float[Array, '*N']
) -> Float[Array, '*N 3']:
  """The upper triangular W = [[a, b], [0, c]] with 2 W^T W = Sigma^-1, as [a, b, c], 1/px.

  So q = |W (p - mu)|^2. Triangular, since c and all that goes with it is the same along a row of
  pixels: a^2 = i1^2 cos^2 + i2^2 sin^2, b = (i1^2 - i2^2) cos sin / a, c = i1 i2 / a, where
  i = 1 / (sqrt(2) s).
  """
  xp = rotation.__array_namespace__()
  inverse = math.sqrt(0.5) / standard_deviations(log_scale)
  first, second = inverse[..., 0], inverse[..., 1]
  cosine, sine = xp.cos(rotation), xp.sin(rotation)
  a = xp.sqrt((first * cosine) ** 2 + (second * sine) ** 2)
  b = (first - second) * (first + second) * cosine * sine / a
  return xp.stack([a, b, first * second / a], axis=-1)


def squared_distance(
  white: Sequence[Float[Array, '*S']],
  dx: Float[Array, '*S'],
  dy: Float[Array, '*S'],
) -> Float[Array, '*S']:
  """q = |W (dx, dy)|^2 = (a dx + b dy)^2 + (c dy)^2, given the three columns of `whitening`.

  Every rasterizer evaluates the exponent as this sum of squares. As a polynomial of the pixel, or
  with the inverse covariance, q would be a small difference of large terms: a long thin Gaussian
  at an oblique angle would lose all digits but four."""
  a, b, c = white
  return (a * dx + b * dy) ** 2 + (c * dy) ** 2


def area(log_scale: Float[Array, '*N 2']) -> Float[Array, '*N 1']:
  """pi s1 s2, px^2: the integral of exp(-2 q), the squared weight, over the plane."""
  xp = log_scale.__array_namespace__()
  return math.pi * xp.exp(xp.sum(log_scale, axis=-1, keepdims=True))


def energy(gaussians: Gaussians) -> Float[Array, '*N']:
  """|c|^2 pi s1 s2: the squared error of each Gaussian's absence, alone in the plane."""
  xp = gaussians.color.__array_namespace__()
  return xp.sum(gaussians.color**2 * area(gaussians.log_scale), axis=-1)


def canonical(gaussians: Gaussians) -> Gaussians:
  """The same image, described in the one way with s1 >= s2 and rotation in [0, pi).

  An ellipse is its own image under a half turn, and under a quarter turn with the axes swapped.
  """
  log_scale, rotation = gaussians.log_scale, gaussians.rotation
  xp, dtype = rotation.__array_namespace__(), rotation.dtype
  swap = log_scale[..., 0] < log_scale[..., 1]
  log_scale = xp.where(swap[..., None], log_scale[..., ::-1], log_scale)
  quarter, zero = xp.asarray(math.pi / 2, dtype=dtype), xp.asarray(0, dtype=dtype)
  rotation = xp.remainder(rotation + xp.where(swap, quarter, zero), math.pi)
  # In float32 the remainder of a tiny negative angle rounds up to pi itself.
  rotation = xp.where(rotation >= xp.asarray(math.pi, dtype=dtype), zero, rotation)
  return gaussians.replace(log_scale=log_scale, rotation=rotation)
