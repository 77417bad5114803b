"""Initial Gaussians for a fit: (key, image, N) -> Gaussians."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cgvq_jax.extensions import Registry
from cgvq_jax.primitives.trees import Gaussians


def gradient_magnitude(image: Float[Array, 'H W C']) -> Float[Array, 'H W']:
  """|grad I| by central differences, root of the sum over channels; borders repeat."""
  padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode='edge')
  dx = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
  dy = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
  return jnp.sqrt(jnp.sum(dx**2 + dy**2, axis=-1))


def _sample_pixels(key, density: Float[Array, 'H W'], num: int) -> tuple[Int[Array, 'N'], ...]:
  """Draws `num` pixels (row, column) from a density that sums to 1: by systematic sampling over the
  rows, so that no band of the image is left out by chance, and independently within a row."""
  height, width = density.shape
  row_key, column_key = jax.random.split(key)
  # Two short cumulative sums: one over all the pixels of a large image would exhaust float32.
  row_cdf = jnp.cumsum(jnp.sum(density, axis=1))
  u = (jnp.arange(num) + jax.random.uniform(row_key, (num,))) / num
  row = jnp.searchsorted(row_cdf, u * row_cdf[-1], side='right').clip(0, height - 1)
  column_cdf = jnp.cumsum(density, axis=1)
  target = jax.random.uniform(column_key, (num,)) * column_cdf[row, -1]

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) // 2
    right = column_cdf[row, middle] <= target
    return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

  bounds = jnp.zeros(num, jnp.int32), jnp.full(num, width - 1)
  column, _ = lax.fori_loop(0, math.ceil(math.log2(width + 1)) + 1, halve, bounds)
  return row, column.clip(0, width - 1)


@partial(jax.jit, static_argnames='num_gaussians')
def gradient_guided(
  key: PRNGKeyArray,
  image: Float[Array, 'H W C'],
  num_gaussians: int,
  *,
  uniform_share: float = 0.05,
  relative_scale: float = 0.5,
  color_share: float = 0.5,
) -> Gaussians:
  """More and smaller Gaussians where the image changes.

  A pixel is drawn with probability (1 - u) |grad I| / sum |grad I| + u / (H W), u the uniform
  share. With lambda Gaussians per px^2 there, the standard deviations are relative_scale /
  sqrt(lambda) px; the colour is color_share of the pixel's, since neighbours overlap and add.
  """
  height, width, channels = image.shape
  magnitude = gradient_magnitude(image)
  total = jnp.sum(magnitude)
  share = jnp.where(total > 0, 1 - uniform_share, 0.0)  # a flat image has no gradient to follow
  density = share * magnitude / jnp.maximum(total, 1e-12) + (1 - share) / (height * width)
  pixel_key, jitter_key = jax.random.split(key)
  row, column = _sample_pixels(pixel_key, density, num_gaussians)
  mean = jnp.stack([column, row], -1) + jax.random.uniform(jitter_key, (num_gaussians, 2))
  scale = relative_scale / jnp.sqrt(num_gaussians * density[row, column])
  scale = jnp.clip(scale, 0.3, relative_scale * math.hypot(height, width))
  return Gaussians(
    mean_xy=mean,
    log_scale=jnp.broadcast_to(jnp.log(scale)[:, None], (num_gaussians, 2)),
    rotation=jnp.zeros(num_gaussians),
    color=color_share * image[row, column].reshape(num_gaussians, channels),
  )


@partial(jax.jit, static_argnames='num_gaussians')
def random(key: PRNGKeyArray, image: Float[Array, 'H W C'], num_gaussians: int) -> Gaussians:
  """The papers' initial values (GaussianImage's released code, rotation-scale variant), all
  uniform: positions in the image, standard deviations in 0.5-1.5 px, rotations in 0-2 pi, colours
  in 0-1."""
  height, width, channels = image.shape
  keys = jax.random.split(key, 4)
  return Gaussians(
    mean_xy=jax.random.uniform(keys[0], (num_gaussians, 2)) * jnp.array([width, height]),
    log_scale=jnp.log(0.5 + jax.random.uniform(keys[1], (num_gaussians, 2))),
    rotation=2 * jnp.pi * jax.random.uniform(keys[2], (num_gaussians,)),
    color=jax.random.uniform(keys[3], (num_gaussians, channels)),
  )


INITIALIZERS = Registry('initializer', {'gradient_guided': gradient_guided, 'random': random})
