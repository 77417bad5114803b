"""How to fit, as one value; the defaults stand here and nowhere else. Nothing here needs JAX."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

# A registered name, or the function itself.
NameOr = str | Callable[..., Any]


class FitSettings(NamedTuple):
  """All that an encode depends on besides the image, the method and the kind of device.

  The last four are names of the registries (`fit.initialize.INITIALIZERS` and so on) or functions:

    initializer  (key, image, N) -> Gaussians
    densifier    (steps, min_gain) -> `densify.Densifier`
    optimizer    (steps) -> `optax.GradientTransformation`
    loss         (rendered, target) -> scalar, both [H, W, C]; twice as fast as a `MeanError`
  """

  steps: int = 1000  # of the fit
  finetune_steps: int = 1000  # while the Gaussians are quantized
  seed: int = 0
  initializer: NameOr = 'gradient_guided'
  densifier: NameOr = 'matching_pursuit'
  optimizer: NameOr = 'adam'
  loss: NameOr = 'clamped_l2'

  def check(self) -> None:
    """Raises ValueError where a number is not whole or out of range."""
    for name in ('steps', 'finetune_steps', 'seed'):
      value = getattr(self, name)
      try:
        operator.index(value)
      except TypeError:
        raise ValueError(f'{name}: wanted a whole number, got {value!r}') from None
    if min(self.steps, self.finetune_steps) < 1:
      got = f'{self.steps}, {self.finetune_steps}'
      raise ValueError(f'steps, finetune_steps: wanted >= 1, got {got}')
    if not 0 <= self.seed < 2**32:
      raise ValueError(f'seed: wanted 0 to {2**32 - 1}, got {self.seed}')


PRESETS = {
  'fast': FitSettings(steps=300, finetune_steps=300),
  'default': FitSettings(),
  'best': FitSettings(steps=5000, finetune_steps=3000),
}
