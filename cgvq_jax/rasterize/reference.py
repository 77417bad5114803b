"""The definition of the image: every pixel sees every Gaussian."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cgvq_jax.primitives.geometry import CUTOFF, squared_distance, whitening
from cgvq_jax.primitives.trees import Gaussians


@partial(jax.jit, static_argnames=('height', 'width'))
def rasterize(gaussians: Gaussians, height: int, width: int) -> Float[Array, 'H W C']:
  """I(p) = sum_i c_i exp(-q_i(p)) over the i with q_i(p) <= ln 255; p a pixel centre (GaussianImage
  eq. 4 without opacity). O(H W N) time and memory: for tests and for small images."""
  white = whitening(gaussians.log_scale, gaussians.rotation)  # [N, 3]
  dx = (jnp.arange(width) + 0.5)[None, :, None] - gaussians.mean_xy[:, 0]
  dy = (jnp.arange(height) + 0.5)[:, None, None] - gaussians.mean_xy[:, 1]
  dx, dy = jnp.broadcast_arrays(dx, dy)  # [H, W, N]
  q = squared_distance([white[:, i] for i in range(3)], dx, dy)
  # The inner where keeps the exponential finite where it is not used, so its gradient stays finite.
  inside = q <= CUTOFF
  weight = jnp.where(inside, jnp.exp(-jnp.where(inside, q, 0.0)), 0.0)
  return jnp.einsum('hwn,nc->hwc', weight, gaussians.color, precision='highest')
