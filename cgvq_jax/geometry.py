"""From rotation and scale to covariance, conic and the extents of the cutoff ellipse."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

# A Gaussian ends where its weight falls below 1/255, half a grey level of the brightest colour:
# q = (p-mu)^T Sigma^-1 (p-mu) / 2 <= ln 255. The cutoff is part of the image's definition.
CUTOFF = math.log(255.0)
CUTOFF_RADIUS = math.sqrt(2.0 * CUTOFF)  # 3.33 standard deviations

# Standard deviations outside this range (px) would overflow float32 in the conic.
MIN_SCALE, MAX_SCALE = 1e-3, 1e6


def standard_deviations(log_scale: Float[Array, '*N 2']) -> Float[Array, '*N 2']:
  """exp(log_scale) in px, clamped to [MIN_SCALE, MAX_SCALE]; no gradient outside the range."""
  return jnp.exp(jnp.clip(log_scale, math.log(MIN_SCALE), math.log(MAX_SCALE)))


def _rotated_diagonal(first, second, rotation):
  """R(rotation) diag(first, second) R(rotation)^T as [..., (xx, xy, yy)]."""
  cosine, sine = jnp.cos(rotation), jnp.sin(rotation)
  return jnp.stack(
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


def conic(log_scale: Float[Array, '*N 2'], rotation: Float[Array, '*N']) -> Float[Array, '*N 3']:
  """Sigma^-1 = R diag(s1^-2, s2^-2) R^T as [xx, xy, yy], px^-2; never inverts a matrix."""
  precision = standard_deviations(log_scale) ** -2
  return _rotated_diagonal(precision[..., 0], precision[..., 1], rotation)


def root_covariance(
  log_scale: Float[Array, '*N 2'], rotation: Float[Array, '*N']
) -> Float[Array, '*N 3']:
  """The symmetric square root Sigma^(1/2) = R diag(s1, s2) R^T as [xx, xy, yy], px.

  It maps the unit disc onto the one-sigma ellipse, so the Frobenius distance of two roots bounds
  how far one ellipse reaches beyond the other in any direction.
  """
  scale = standard_deviations(log_scale)
  return _rotated_diagonal(scale[..., 0], scale[..., 1], rotation)


def squared_distance(
  conic_xx: Float[Array, '*S'],
  conic_xy: Float[Array, '*S'],
  conic_yy: Float[Array, '*S'],
  dx: Float[Array, '*S'],
  dy: Float[Array, '*S'],
) -> Float[Array, '*S']:
  """q = (dx, dy) Sigma^-1 (dx, dy)^T / 2. Every rasterizer evaluates the exponent by this line,
  in offsets from the mean: expanded into monomials of the pixel it would cancel in float32."""
  return (0.5 * conic_xx * dx + conic_xy * dy) * dx + 0.5 * conic_yy * dy * dy
