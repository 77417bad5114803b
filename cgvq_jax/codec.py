"""The whole codec on one screen: encode(image) -> bytes, decode(bytes) -> Gaussians -> image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from cgvq_jax.bitstream import container, ordering
from cgvq_jax.fit import blocks, densify, initialize, optimizers
from cgvq_jax.fit.losses import Loss, clamped_l2
from cgvq_jax.methods import codebooks
from cgvq_jax.methods.base import Telling
from cgvq_jax.methods.registry import Method, dequantizers
from cgvq_jax.primitives.geometry import standard_deviations
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.quantize import adaptive
from cgvq_jax.quantize.adaptive import AdaptiveSymbols
from cgvq_jax.rasterize.api import rasterize
from cgvq_jax.rasterize.limits import CHANNELS, MAX_SIDE

_MAX_PIXELS = 1 << 28  # of a rendering: four times what a file's own size may be


class Preset(NamedTuple):
  """How long an encoder may take."""

  fit_steps: int
  finetune_steps: int


PRESETS = {'fast': Preset(300, 300), 'default': Preset(1000, 1000), 'best': Preset(5000, 3000)}

Initializer = Callable[[PRNGKeyArray, Float[Array, 'H W C'], int], Gaussians]


def _from_start(stage: str, state: Any) -> Any:
  del stage
  return state


def _in_silence(stage: str, state: Any, progress: blocks.Progress) -> None:
  del stage, state, progress


def encode(
  image: Float[np.ndarray, 'H W C'],
  method: Method,
  *,
  num_gaussians: int | None = None,
  num_clusters: int | None = None,
  fit_steps: int = 1000,
  finetune_steps: int = 1000,
  seed: int = 0,
  initializer: Initializer = initialize.gradient_guided,
  densifier: Callable[[int, float], densify.Densifier] = densify.matching_pursuit,
  optimizer: Callable[[int], optax.GradientTransformation] = optimizers.adam,
  loss: Loss = clamped_l2,
  order: ordering.Put = ordering.put_sorted,
  resume: Callable[[str, Any], Any] = _from_start,
  on_block: Callable[[str, Any, blocks.Progress], None] = _in_silence,
) -> bytes:
  """Compresses an image in 0..1 into the bytes of one file.

  image -> initialize -> fit -> the method's integers -> bytes. A picture that needs fewer than
  `num_gaussians` gets fewer. It and `num_clusters` default to the method's. `densifier` and
  `optimizer` are made for `fit_steps`, and Gaussians are added where they gain what the method
  says they cost. The two long stages are 'fit' and 'finetune': `on_block(stage, state, progress)`
  is called every BLOCK_STEPS steps, and `resume(stage, initial state)` returns the state to go
  on from, the initial one or one that `on_block` was given earlier; the bytes are the same. `order`
  is how the Gaussians are ordered in the file, one of container.ORDERS; the picture is the same.

  Raises ValueError on an image or a number out of range and on functions that do not fit it,
  FitError where the fit diverges.
  """
  if num_gaussians is None:
    num_gaussians = method.num_gaussians(math.prod(np.shape(image)[:2]))
  num_clusters = method.num_clusters if num_clusters is None else num_clusters
  num_clusters = min(num_clusters, num_gaussians)
  _validate(image, num_gaussians, num_clusters, fit_steps, finetune_steps)
  method.check(image.shape[2])
  target = jnp.asarray(image, jnp.float32)
  start_key, method_key = jax.random.split(jax.random.key(seed))

  fitted = fit_image(
    start_key,
    target,
    num_gaussians,
    steps=fit_steps,
    min_gain=method.min_gain,
    initializer=initializer,
    densifier=densifier,
    optimizer=optimizer,
    loss=loss,
    resume=partial(resume, 'fit'),
    on_block=partial(on_block, 'fit'),
  )
  telling = Telling(
    method_key,
    fitted,
    target,
    num_clusters,
    steps=finetune_steps,
    loss=loss,
    resume=partial(resume, 'finetune'),
    on_block=partial(on_block, 'finetune'),
  )
  return container.write(method.tell(telling), order)


def fit_image(
  key: PRNGKeyArray,
  target: Float[Array, 'H W C'],
  num_gaussians: int,
  *,
  steps: int = 1000,
  min_gain: float = densify.MIN_GAIN,
  initializer: Initializer = initialize.gradient_guided,
  densifier: Callable[[int, float], densify.Densifier] = densify.matching_pursuit,
  optimizer: Callable[[int], optax.GradientTransformation] = optimizers.adam,
  loss: Loss = clamped_l2,
  resume: Callable[[blocks.FitState], blocks.FitState] = lambda state: state,
  on_block: Callable[[blocks.FitState, blocks.Progress], None] | None = None,
) -> Gaussians:
  """The first half of `encode`: at most `num_gaussians` free Gaussians, fitted to an image.

  `min_gain` is the squared error, summed over samples, below which a place is not worth a Gaussian.
  Raises ValueError where the initializer makes another number than it was asked for, FitError where
  the fit diverges.
  """
  densifying, stepping = densifier(steps, min_gain), optimizer(steps)
  first = densifying.first(num_gaussians)
  gaussians = initializer(key, target, first)
  if gaussians.num_gaussians != first:
    raise ValueError(f'initializer: wanted {first} Gaussians, got {gaussians.num_gaussians}')
  gaussians = densify.with_inactive(gaussians, num_gaussians)
  state = blocks.run(
    resume(blocks.initial_state(gaussians, (), stepping)),
    target,
    steps=steps,
    optimizer=stepping,
    loss=loss,
    between=densifying.between,
    on_block=on_block,
  )
  return densify.without_inactive(state.params)


class Decoded(NamedTuple):
  """What a file holds: the Gaussians and the size of the image they were fitted to."""

  gaussians: Gaussians
  height: int  # px
  width: int  # px
  labels: np.ndarray  # [N] int32, the cluster of each Gaussian, or its grade


def decode(data: bytes) -> Decoded:
  """Reads the bytes of a file; raises ContainerError, naming the field, where they are not one."""
  symbols = container.read(data)
  try:
    if isinstance(symbols, AdaptiveSymbols):
      gaussians, labels = adaptive.dequantize(symbols), symbols.energy_class
    else:
      gaussians = codebooks.thaw(symbols, dequantizers(symbols.channels))
      labels = np.repeat(np.arange(symbols.counts.size), symbols.counts)
  except ValueError as error:
    raise container.ContainerError(str(error)) from error
  for name in ('mean_xy', 'log_scale', 'rotation', 'color'):
    if not np.all(np.isfinite(getattr(gaussians, name))):
      raise container.ContainerError(f'{name}: wanted finite values, got NaN or infinity')
  return Decoded(gaussians, symbols.height, symbols.width, labels.astype(np.int32))


def render(decoded: Decoded, scale: float = 1.0) -> Float[np.ndarray, 'H W C']:
  """The image in 0..1 at `scale` times its size; rounding to 8 bits is `images.to_bytes8`.

  Means and standard deviations are scaled. A smaller image is seen through larger pixels: the box
  filter of a pixel has variance 1/12 px^2, of which the original pixels have done scale^2, so the
  rest is added to each covariance, and the colour is lowered to keep each Gaussian's integral.
  Raises ValueError where a side would leave 1..MAX_SIDE px, or all the pixels 2^28.
  """
  size = decoded.height, decoded.width
  sides = [round(side * scale) if math.isfinite(scale) else 0 for side in size]
  if not all(1 <= side <= MAX_SIDE for side in sides) or math.prod(sides) > _MAX_PIXELS:
    raise ValueError(
      f'scale: wanted sides of 1 to {MAX_SIDE} px and at most {_MAX_PIXELS} pixels,'
      f' got {scale} x {size}'
    )
  gaussians = decoded.gaussians
  variance = (standard_deviations(gaussians.log_scale) * scale) ** 2
  wider = variance + max(1 - scale**2, 0.0) / 12
  share = jnp.sqrt(jnp.prod(variance / wider, axis=-1, keepdims=True))
  scaled = replace(
    gaussians,
    mean_xy=gaussians.mean_xy * scale,
    log_scale=jnp.log(wider) / 2,
    color=gaussians.color * share,
  )
  return np.clip(np.asarray(rasterize(scaled, sides[0], sides[1])), 0.0, 1.0)


def _validate(
  image: np.ndarray, num_gaussians: int, num_clusters: int, fit_steps: int, finetune_steps: int
) -> None:
  shape = np.shape(image)
  if len(shape) != 3 or min(shape[:2]) < 1 or max(shape[:2]) > MAX_SIDE:
    raise ValueError(f'image: wanted [H, W, C] with sides of 1 to {MAX_SIDE} px, got shape {shape}')
  if shape[2] not in CHANNELS:
    raise ValueError(f'image: wanted {CHANNELS} channels, got {shape[2]}')
  if not np.all(np.isfinite(image)) or np.min(image) < 0 or np.max(image) > 1:
    raise ValueError('image: wanted finite values in 0..1, got others')
  if not 1 <= num_gaussians <= container.MAX_GAUSSIANS:
    raise ValueError(f'num_gaussians: wanted 1 to {container.MAX_GAUSSIANS}, got {num_gaussians}')
  if not 1 <= num_clusters <= container.MAX_CLUSTERS:
    raise ValueError(f'num_clusters: wanted 1 to {container.MAX_CLUSTERS}, got {num_clusters}')
  if min(fit_steps, finetune_steps) < 1:
    raise ValueError(f'fit_steps, finetune_steps: wanted >= 1, got {fit_steps}, {finetune_steps}')
