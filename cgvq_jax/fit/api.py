"""How free Gaussians are fitted, in names and numbers that can be written down."""

from __future__ import annotations

from typing import Any, NamedTuple

from cgvq_jax.fit.densify import DENSIFIERS
from cgvq_jax.fit.initialize import INITIALIZERS
from cgvq_jax.fit.losses import LOSSES
from cgvq_jax.fit.optimizers import OPTIMIZERS


class Recipe(NamedTuple):
  """One way to fit."""

  steps: int = 1000
  seed: int = 0
  initializer: str = 'gradient_guided'  # a key of INITIALIZERS
  densifier: str = 'matching_pursuit'  # a key of DENSIFIERS
  optimizer: str = 'adam'  # a key of OPTIMIZERS
  loss: str = 'clamped_l2'  # a key of LOSSES

  def functions(self) -> dict[str, Any]:
    """The functions of these names, as `codec.encode` and `codec.fit_image` take them."""
    return {name: known[getattr(self, name)] for name, known in KNOWN.items()}


KNOWN = {
  'initializer': INITIALIZERS,
  'densifier': DENSIFIERS,
  'optimizer': OPTIMIZERS,
  'loss': LOSSES,
}
