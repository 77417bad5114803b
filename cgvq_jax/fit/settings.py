"""How to fit, as one value; the defaults stand here and nowhere else. Nothing here needs JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cgvq_jax.inputs import check_number

# A registered name, or the function itself.
NameOr = str | Callable[..., Any]


class FitSettings(NamedTuple):
  """All that an encode depends on besides the image, the method and the kind of device.

  The last four are names of the registries (`fit.initialize.INITIALIZERS` and so on) or functions:

    initializer  (key, image, N) -> Gaussians
    densifier    (steps, `densify.Growth`) -> `densify.Densifier`
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
    """Raises ValueError where a number is not whole or out of range, or a function is neither."""
    check_number('steps', self.steps, 1)
    check_number('finetune_steps', self.finetune_steps, 1)
    check_number('seed', self.seed, 0, 2**32 - 1)
    for name in ('initializer', 'densifier', 'optimizer', 'loss'):
      value = getattr(self, name)
      if not isinstance(value, str) and not callable(value):
        raise ValueError(f'{name}: wanted a name or a function, got {value!r}')


PRESETS = {
  'fast': FitSettings(steps=300, finetune_steps=300),
  'default': FitSettings(),
  'best': FitSettings(steps=5000, finetune_steps=3000),
}


def check_settings(settings: Any) -> None:
  """That they are FitSettings. Raises TypeError; ValueError as their `check`."""
  if not isinstance(settings, FitSettings):
    hints = {dict: ': cg.FitSettings(**settings)', str: ': cg.PRESETS[name]'}
    got = f'{type(settings).__name__}{hints.get(type(settings), "")}'
    raise TypeError(f'settings: wanted cg.FitSettings(steps=..., ...), got {got}')
  settings.check()
