"""How much an error in a number of a Gaussian changes the picture, to second order."""

from __future__ import annotations

import math

from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.primitives.geometry import standard_deviations


def sensitivity(gaussians: Gaussians) -> Gaussians:
  """H of each number of each Gaussian: an error d of the number changes the picture by H d^2.

  The change is the sum over pixels and channels of the squared difference, and H the integral of
  (dI / d theta)^2 over the plane. With the area A = pi s1 s2 of w^2 and the energy |c|^2 A:

      colour       A for each channel
      position     |c|^2 A / 2 times the diagonal of R diag(s1^-2, s2^-2) R^T, px^-2
      log scale    3/4 |c|^2 A for each axis
      rotation     |c|^2 A / 4 (s1/s2 - s2/s1)^2, radians^-2

  What lies outside of the image or below the cutoff is counted too. A uniform quantization error of
  step s costs H s^2 / 12 on average; equal costs are the reverse water-filling that spends bits
  best (Cover & Thomas, section 10.3). Arrays are NumPy's or JAX's, as in `geometry`.
  """
  xp = gaussians.color.__array_namespace__()
  first, second = xp.moveaxis(standard_deviations(gaussians.log_scale), -1, 0)
  area = math.pi * first * second
  energy = xp.sum(xp.square(gaussians.color), axis=-1) * area
  cosine, sine = xp.cos(gaussians.rotation), xp.sin(gaussians.rotation)
  across = xp.stack(
    [
      (cosine / first) ** 2 + (sine / second) ** 2,
      (sine / first) ** 2 + (cosine / second) ** 2,
    ],
    axis=-1,
  )
  return Gaussians(
    mean_xy=energy[..., None] / 2 * across,
    log_scale=xp.repeat(0.75 * energy[..., None], 2, axis=-1),
    rotation=energy / 4 * xp.square(first / second - second / first),
    color=xp.repeat(area[..., None], gaussians.num_channels, axis=-1),
  )
