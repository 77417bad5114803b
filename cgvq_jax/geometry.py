"""From rotation and scale to covariance, whitening and the extents of the cutoff ellipse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

# A Gaussian ends where its weight falls below 1/255, half a grey level of the brightest colour:
# q = (p-mu)^T Sigma^-1 (p-mu) / 2 <= ln 255. The cutoff is part of the image's definition.
CUTOFF = math.log(255.0)
CUTOFF_RADIUS = math.sqrt(2.0 * CUTOFF)  # 3.33 standard deviations

# Standard deviations outside this range (px) would overflow float32 when squared.
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


def whitening(
  log_scale: Float[Array, '*N 2'], rotation: Float[Array, '*N']
) -> Float[Array, '*N 4']:
  """W = diag(1/s1, 1/s2) R^T / sqrt(2) as [ux, uy, vx, vy], 1/px, so that q = |W (p - mu)|^2."""
  inverse = math.sqrt(0.5) / standard_deviations(log_scale)
  cosine, sine = jnp.cos(rotation)[..., None], jnp.sin(rotation)[..., None]
  first, second = inverse[..., :1], inverse[..., 1:]
  return jnp.concatenate([first * cosine, first * sine, -second * sine, second * cosine], axis=-1)


def squared_distance(
  white: Sequence[Float[Array, '*S']],
  dx: Float[Array, '*S'],
  dy: Float[Array, '*S'],
) -> Float[Array, '*S']:
  """q = |W (dx, dy)|^2, W given as the four columns of `whitening`.

  Every rasterizer evaluates the exponent by this line, in offsets from the mean. As a polynomial of
  the pixel, or with the inverse covariance, q would be a small difference of large terms: a long
  thin Gaussian at an oblique angle would lose all digits but four."""
  ux, uy, vx, vy = white
  return (ux * dx + uy * dy) ** 2 + (vx * dx + vy * dy) ** 2
