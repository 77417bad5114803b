"""Initial Gaussians for a fit: (key, image, N) -> Gaussians.

Those of this file are made by NumPy, once for each image: a program would be one for each size.
"""

from __future__ import annotations

import math

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from cgvq_jax.extensions import Registry
from cgvq_jax.primitives.trees import Gaussians


def random_generator(key: PRNGKeyArray, *stream: int) -> np.random.Generator:
  """NumPy's random numbers of a JAX key; `stream` names one of several sequences."""
  return np.random.default_rng([*np.asarray(jax.random.key_data(key)), *stream])


def gradient_magnitude(image: Float[np.ndarray, 'H W C']) -> Float[np.ndarray, 'H W']:
  """|grad I| by central differences, root of the sum over channels; borders repeat."""
  padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode='edge')
  dx = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
  dy = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
  return np.sqrt(np.sum(dx**2 + dy**2, axis=-1))


def _sample_pixels(
  rng: np.random.Generator, density: Float[np.ndarray, 'H W'], num: int
) -> tuple[Int[np.ndarray, 'N'], Int[np.ndarray, 'N']]:
  """Draws `num` pixels (row, column) from a density: by systematic sampling, so that no part of the
  image is left out by chance."""
  cdf = np.cumsum(density, dtype=np.float64)
  at = (np.arange(num) + rng.random(num)) / num * cdf[-1]
  pixel = np.searchsorted(cdf, at, side='right').clip(0, density.size - 1)
  row, column = np.divmod(pixel, density.shape[1])
  return row, column


def gradient_guided(
  key: PRNGKeyArray,
  image: Float[np.ndarray, 'H W C'],
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
  pixels, rng = np.asarray(image, np.float32), random_generator(key)
  height, width, channels = pixels.shape
  magnitude = gradient_magnitude(pixels)
  total = np.sum(magnitude, dtype=np.float64)
  share = 1 - uniform_share if total > 0 else 0.0  # a flat image has no gradient to follow
  density = share * magnitude / max(total, 1e-12) + (1 - share) / (height * width)
  row, column = _sample_pixels(rng, density, num_gaussians)
  mean = np.stack([column, row], -1) + rng.random((num_gaussians, 2))
  scale = relative_scale / np.sqrt(num_gaussians * density[row, column])
  scale = np.clip(scale, 0.3, relative_scale * math.hypot(height, width))
  return _in_float32(
    mean_xy=mean,
    log_scale=np.repeat(np.log(scale)[:, None], 2, axis=1),
    rotation=np.zeros(num_gaussians),
    color=color_share * pixels[row, column].reshape(num_gaussians, channels),
  )


def random(key: PRNGKeyArray, image: Float[np.ndarray, 'H W C'], num_gaussians: int) -> Gaussians:
  """The papers' initial values (GaussianImage's released code, rotation-scale variant), all
  uniform: positions in the image, standard deviations in 0.5-1.5 px, rotations in 0-2 pi, colours
  in 0-1."""
  height, width, channels = np.shape(image)
  rng = random_generator(key)
  return _in_float32(
    mean_xy=rng.random((num_gaussians, 2)) * [width, height],
    log_scale=np.log(0.5 + rng.random((num_gaussians, 2))),
    rotation=2 * np.pi * rng.random(num_gaussians),
    color=rng.random((num_gaussians, channels)),
  )


def _in_float32(**arrays: np.ndarray) -> Gaussians:
  return Gaussians(**{name: array.astype(np.float32) for name, array in arrays.items()})


INITIALIZERS = Registry('initializer', {'gradient_guided': gradient_guided, 'random': random})
