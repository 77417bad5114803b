"""The front door to a fit: at most N free Gaussians for an image, by one `FitSettings`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

from cgvq_jax import devices, inputs
from cgvq_jax.extensions import Registry
from cgvq_jax.fit import densify, driver
from cgvq_jax.fit.densify import DENSIFIERS, Growth
from cgvq_jax.fit.driver import Hooks
from cgvq_jax.fit.initialize import INITIALIZERS
from cgvq_jax.fit.losses import LOSSES, Loss
from cgvq_jax.fit.optimizers import OPTIMIZERS
from cgvq_jax.fit.settings import FitSettings, check_settings
from cgvq_jax.fit.stages import (
  Progress,
  Stage,
  StageState,
  blocks_of,
  initial_state,
  padded_target,
  unquantized,
)
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize.layout import with_inactive
from cgvq_jax.rasterize.tiles import round_gaussians

Initializer = Callable[[PRNGKeyArray, Float[np.ndarray, 'H W C'], int], Gaussians]

# The fields of FitSettings that are names or functions, and the names that there are.
REGISTRIES: dict[str, Registry[Any]] = {
  'initializer': INITIALIZERS,
  'densifier': DENSIFIERS,
  'optimizer': OPTIMIZERS,
  'loss': LOSSES,
}


class Functions(NamedTuple):
  """The functions of `FitSettings`."""

  initializer: Initializer
  densifier: Callable[[int, Growth], densify.Densifier]
  optimizer: Callable[[int], optax.GradientTransformation]
  loss: Loss


def functions_of(settings: FitSettings) -> Functions:
  """Functions in place of names. Raises ValueError on an unknown name or a number out of range."""
  settings.check()
  return Functions(
    *(REGISTRIES[field].resolve(getattr(settings, field)) for field in Functions._fields)
  )


def fit_stage(
  key: PRNGKeyArray,
  target: Float[np.ndarray, 'H W C'],
  num_gaussians: int,
  settings: FitSettings,
  min_gain: float = densify.MIN_GAIN,
  price: float = math.inf,
) -> Stage:
  """The stage 'fit': initialize, then grow and relocate between blocks of steps.

  Finishes with the Gaussians that were ever visible: a picture that needs fewer than
  `num_gaussians` gets fewer, and one with places that gain more than `price` gets more. `min_gain`
  and `price` are squared errors, summed over samples. Raises ValueError where the initializer makes
  another number than it was asked for.
  """
  functions, steps = functions_of(settings), settings.steps
  densifier = functions.densifier(steps, Growth(num_gaussians, min_gain, price))
  optimizer, first = functions.optimizer(steps), densifier.first
  gaussians = functions.initializer(key, target, first)
  if gaussians.num_gaussians != first:
    raise ValueError(f'initializer: wanted {first} Gaussians, got {gaussians.num_gaussians}')
  gaussians = with_inactive(gaussians, round_gaussians(num_gaussians))
  padded = padded_target(target, functions.loss)

  def after_block(state: StageState, progress: Progress) -> tuple[StageState, Progress]:
    if densifier.between and progress.step < steps:
      state = replace(state, current=densifier.between(state.current, padded))
    return state, progress

  return Stage(
    name='fit',
    num_steps=steps,
    target=padded,
    start=StageState(initial_state(gaussians, (), optimizer)),
    forward=unquantized,
    optimizer=optimizer,
    loss=functions.loss,
    next_block=blocks_of(steps),
    after_block=after_block,
    finish=lambda state: densify.without_inactive(state.current.params),
  )


@devices.own_configuration()
def fit_image(
  image: Float[np.ndarray, 'H W C'],
  num_gaussians: int,
  settings: FitSettings = FitSettings(),
  hooks: Hooks = Hooks(),
  *,
  min_gain: float = densify.MIN_GAIN,
) -> Gaussians:
  """Fits at most `num_gaussians` free Gaussians to an image in 0..1: the first half of `encode`.

  `min_gain` is the squared error, summed over samples, below which a place is not worth a Gaussian.
  Raises ValueError as `fit_stage`, FitError where the fit diverges, DeviceError where JAX has no
  device. Computes in float32 as `codec.encode` does.
  """
  image = inputs.checked_image(image)
  inputs.check_number('num_gaussians', num_gaussians, 1)
  check_settings(settings)
  inputs.check_hooks(hooks)
  target, key = np.asarray(image, np.float32), jax.random.key(settings.seed)
  return driver.run([lambda _: fit_stage(key, target, num_gaussians, settings, min_gain)], hooks)
