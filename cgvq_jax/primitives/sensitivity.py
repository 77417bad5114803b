"""What rounding a number of a Gaussian costs the picture, to second order."""

from __future__ import annotations

import jax.numpy as jnp

from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.primitives.geometry import standard_deviations


def sensitivity(gaussians: Gaussians) -> Gaussians:
  """H of each number of each Gaussian: moved by d, it changes the picture by H d^2.

  The change is the sum over pixels and channels of the squared difference, and H the integral of
  (dI / d theta)^2 over the plane. With the area A = pi s1 s2 of w^2 and the energy |c|^2 A:

      colour       A for each channel
      position     |c|^2 A / 2 times the diagonal of R diag(s1^-2, s2^-2) R^T, px^-2
      log scale    3/4 |c|^2 A for each axis
      rotation     |c|^2 A / 4 (s1/s2 - s2/s1)^2, radians^-2

  What lies outside of the image or below the cutoff is counted too. A uniform rounding error of
  step s costs H s^2 / 12 in the mean; equal costs are the reverse water-filling that spends bits
  best (Cover & Thomas, section 10.3).
  """
  first, second = jnp.moveaxis(standard_deviations(gaussians.log_scale), -1, 0)
  area = jnp.pi * first * second
  energy = jnp.sum(jnp.square(gaussians.color), axis=-1) * area
  cosine, sine = jnp.cos(gaussians.rotation), jnp.sin(gaussians.rotation)
  across = jnp.stack(
    [
      (cosine / first) ** 2 + (sine / second) ** 2,
      (sine / first) ** 2 + (cosine / second) ** 2,
    ],
    axis=-1,
  )
  return Gaussians(
    mean_xy=energy[..., None] / 2 * across,
    log_scale=jnp.repeat(0.75 * energy[..., None], 2, axis=-1),
    rotation=energy / 4 * jnp.square(first / second - second / first),
    color=jnp.repeat(area[..., None], gaussians.num_channels, axis=-1),
  )
