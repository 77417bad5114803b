"""The primitive: anisotropic 2D Gaussians, in arrays of NumPy or of JAX."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jaxtyping import Float

  Array = Any  # NumPy's or JAX's: this module imports neither, since a decoder needs no JAX


@dataclasses.dataclass(frozen=True)
class Gaussians:
  """N Gaussians of one image, in pixels; origin at the top-left corner, x right, y down.

  The covariance is R(rotation) diag(exp(2 log_scale)) R(rotation)^T. There is no opacity and no
  background; the order of the Gaussians does not matter. `primitives.trees` makes this a pytree.
  """

  mean_xy: Float[Array, 'N 2']  # px
  log_scale: Float[Array, 'N 2']  # standard deviations along the two axes, log px
  rotation: Float[Array, 'N']  # radians, first axis against x
  color: Float[Array, 'N C']  # additive, may be negative, not clipped

  @property
  def num_gaussians(self) -> int:
    return self.mean_xy.shape[-2]

  @property
  def num_channels(self) -> int:
    return self.color.shape[-1]

  def replace(self, **changes: Float[Array, 'N ...']) -> Gaussians:
    return dataclasses.replace(self, **changes)
