"""Which renderer makes an image of Gaussians, where no gradient is needed: NumPy's or JAX's.

JAX renders a large image faster, on all cores, but a process that decodes a single image spends
more time on importing JAX and on compiling. The choice depends on the amount of work alone, so that
a file is always rendered by the same code, unless a renderer is named. Importing this module does
not import JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cgvq_jax.extensions import Registry
from cgvq_jax.rasterize import numpy_renderer

if TYPE_CHECKING:
  from jaxtyping import Float

  from cgvq_jax.primitives.gaussians import Gaussians

# (gaussians, height, width) -> the image [H, W, C], float32, not clipped to 0..1.
Renderer = Callable[['Gaussians', int, int], np.ndarray]

# Gaussians x pixels up to which NumPy serves: those of a photograph of 20 million pixels with as
# many Gaussians as a fit gives it. A process with JAX is as fast at 14 million pixels if it finds
# its programs in the persistent cache, at some 23 million if it compiles them. Measured by
# `python -m cgvq_jax.benchmark renderers`, see docs/RESULTS.md.
MAX_NUMPY_WORK = 10**13


def _render_by_jax(gaussians: Gaussians, height: int, width: int) -> Float[np.ndarray, 'H W C']:
  from cgvq_jax import devices  # here, since these import JAX
  from cgvq_jax.rasterize import api

  with devices.own_configuration():
    return np.asarray(api.rasterize_padded(gaussians, height, width))[:height, :width]


RENDERERS: Registry[Renderer] = Registry(
  'renderer', {'numpy': numpy_renderer.rasterize, 'jax': _render_by_jax}
)


def choose(num_gaussians: int, height: int, width: int) -> str:
  """The name of the renderer that is faster for so much work in a new process."""
  return 'numpy' if num_gaussians * height * width <= MAX_NUMPY_WORK else 'jax'


def renderer_for(num_gaussians: int, height: int, width: int, name: str | None = None) -> Renderer:
  """The renderer of this name, or else the one that `choose` names.

  Raises ValueError on an unknown name."""
  return RENDERERS.find(name or choose(num_gaussians, height, width))


def render(
  gaussians: Gaussians, height: int, width: int, name: str | None = None
) -> Float[np.ndarray, 'H W C']:
  """I(p) = sum_i c_i exp(-q_i(p)), q_i <= ln 255 (see `reference`), unclamped, float32.

  Raises ValueError on an unknown name, on impossible sizes and where a renderer returns another
  shape than the image's."""
  image = renderer_for(gaussians.num_gaussians, height, width, name)(gaussians, height, width)
  wanted = height, width, gaussians.num_channels
  if image.shape != wanted:
    raise ValueError(f'renderer: wanted an image of shape {wanted}, got {image.shape}')
  return image
