"""What can be rendered: the sides and channels of an image, the shapes of its Gaussians."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from cgvq_jax.primitives.gaussians import Gaussians

MAX_SIDE = 65_535  # px
CHANNELS = (1, 3, 4)


def validate(gaussians: Gaussians, height: int, width: int) -> None:
  """Raises ValueError where the sizes cannot be rendered: name, wanted, got."""
  if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
    raise ValueError(f'image size: wanted 1 to {MAX_SIDE} px a side, got {height=} {width=}')
  n, channels = np.shape(gaussians.color)
  wanted = {'mean_xy': (n, 2), 'log_scale': (n, 2), 'rotation': (n,), 'color': (n, channels)}
  got = {name: np.shape(getattr(gaussians, name)) for name in wanted}
  if n < 1 or got != wanted:
    raise ValueError(f'gaussians: wanted N >= 1 and shapes {wanted}, got {got}')
  if channels not in CHANNELS:
    raise ValueError(f'color channels: wanted one of {CHANNELS}, got {channels}')
