"""The primitive: anisotropic 2D Gaussians."""

from __future__ import annotations

from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Gaussians:
  """N Gaussians of one image, in pixels; origin at the top-left corner, x right, y down.

  The covariance is R(rotation) diag(exp(2 log_scale)) R(rotation)^T. There is no opacity and no
  background; the order of the Gaussians does not matter.
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
