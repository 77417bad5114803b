"""What a method is: how an image becomes the integers of a file, as stages that a driver runs."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jaxtyping import Float

from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.fit.stages import Stages
from cgvq_jax.inputs import check_number as check_number  # for methods


class Method(Protocol):
  """A codec variant, for images of some number of channels.

  A method is frozen and hashable, and holds its options. The stages of one image are made anew for
  each encode; the last one finishes with symbols, which `bitstream.container.write` takes: a value
  of `CodebookSymbols`, `AdaptiveSymbols` or of another registered format.
  """

  @property
  def name(self) -> str:
    """Stands in the file."""
    ...

  def gaussian_budget(self, num_pixels: int) -> int:
    """The most Gaussians that it fits to a picture of so many pixels."""
    ...

  def check(self, channels: int) -> None:
    """Raises ValueError where an option is out of range or does not fit the channels."""
    ...

  def stages(self, target: Float[np.ndarray, 'H W C'], settings: FitSettings) -> Stages:
    """How to encode an image."""
    ...
