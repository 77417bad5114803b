"""The whole codec on one screen: encode(image) -> bytes, decode(bytes) -> Gaussians -> image."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cgvq_jax.bitstream import container
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.primitives.geometry import standard_deviations
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize.api import rasterize
from cgvq_jax.rasterize.limits import CHANNELS, MAX_SIDE

if TYPE_CHECKING:
  from jaxtyping import Float

  from cgvq_jax.fit.driver import Hooks
  from cgvq_jax.methods.base import Method

_MAX_PIXELS = 1 << 28  # of a rendering: four times what a file's own size may be


def encode(
  image: Float[np.ndarray, 'H W C'],
  method: Method,
  settings: FitSettings = FitSettings(),
  hooks: Hooks | None = None,
) -> bytes:
  """Compresses an image in 0..1 into the bytes of one file.

  image -> stages of the method, run by the driver -> integers -> bytes. `method` is a value of the
  registry (`cg.methods.cgvq_rd(channels=3, quality=50)`) or your own; its options are its own
  affair. `hooks` are called between blocks of steps: progress, checkpoints.

  Raises ValueError on an image or a number out of range and on functions that do not fit it,
  FitError where the fit diverges.
  """
  import jax.numpy as jnp

  from cgvq_jax.fit import driver

  _check_image(image)
  method.check(image.shape[2])
  stages = method.stages(jnp.asarray(image, jnp.float32), settings)
  return container.write(driver.run(stages, hooks or driver.Hooks()))


class Decoded(NamedTuple):
  """What a file holds: the Gaussians and the size of the image they were fitted to."""

  gaussians: Gaussians
  height: int  # px
  width: int  # px
  labels: np.ndarray  # [N] int32, the cluster of each Gaussian, or its energy class


def decode(data: bytes) -> Decoded:
  """Reads the bytes of a file; raises ContainerError, naming the field, where they are not one."""
  symbols = container.read(data)
  gaussians, labels = container.dequantize(symbols)
  return Decoded(gaussians, symbols.height, symbols.width, labels)


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
  gaussians = jax.tree.map(jnp.asarray, decoded.gaussians)
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


def _check_image(image: np.ndarray) -> None:
  shape = np.shape(image)
  if len(shape) != 3 or min(shape[:2]) < 1 or max(shape[:2]) > MAX_SIDE:
    raise ValueError(f'image: wanted [H, W, C] with sides of 1 to {MAX_SIDE} px, got shape {shape}')
  if shape[2] not in CHANNELS:
    raise ValueError(f'image: wanted {CHANNELS} channels, got {shape[2]}')
  if not np.all(np.isfinite(image)) or np.min(image) < 0 or np.max(image) > 1:
    raise ValueError('image: wanted finite values in 0..1, got others')
