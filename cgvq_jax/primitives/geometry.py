"""From rotation and scale to covariance, whitening and the extents of the cutoff ellipse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cgvq_jax.primitives.gaussians import Gaussians

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
) -> Float[Array, '*N 3']:
  """The upper triangular W = [[a, b], [0, c]] with 2 W^T W = Sigma^-1, as [a, b, c], 1/px.

  So q = |W (p - mu)|^2. Triangular, since c and all that goes with it is the same along a row of
  pixels: a^2 = i1^2 cos^2 + i2^2 sin^2, b = (i1^2 - i2^2) cos sin / a, c = i1 i2 / a, where
  i = 1 / (sqrt(2) s).
  """
  inverse = math.sqrt(0.5) / standard_deviations(log_scale)
  first, second = inverse[..., 0], inverse[..., 1]
  cosine, sine = jnp.cos(rotation), jnp.sin(rotation)
  a = jnp.sqrt((first * cosine) ** 2 + (second * sine) ** 2)
  b = (first - second) * (first + second) * cosine * sine / a
  return jnp.stack([a, b, first * second / a], axis=-1)


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


@jax.jit
def canonical(gaussians: Gaussians) -> Gaussians:
  """The same image, described in the one way with s1 >= s2 and rotation in [0, pi).

  An ellipse is its own image under a half turn, and under a quarter turn with the axes swapped.
  """
  swap = gaussians.log_scale[..., 0] < gaussians.log_scale[..., 1]
  log_scale = jnp.where(swap[..., None], gaussians.log_scale[..., ::-1], gaussians.log_scale)
  rotation = jnp.mod(gaussians.rotation + jnp.where(swap, jnp.pi / 2, 0), jnp.pi)
  # In float32 the remainder of a tiny negative angle rounds up to pi itself.
  rotation = jnp.where(rotation >= jnp.float32(jnp.pi), 0, rotation)
  return Gaussians(gaussians.mean_xy, log_scale, rotation, gaussians.color)
