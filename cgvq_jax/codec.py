"""The whole codec on one screen: encode(image) -> bytes, decode(bytes) -> Gaussians -> image."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cgvq_jax import alpha, inputs, metrics
from cgvq_jax.bitstream import container
from cgvq_jax.fit.settings import FitSettings, check_settings
from cgvq_jax.io import images
from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.primitives.geometry import standard_deviations
from cgvq_jax.rasterize import renderers
from cgvq_jax.rasterize.limits import MAX_SIDE
from cgvq_jax.rate_control import Measures

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

  image -> hidden colours filled -> stages of the method, run by the driver -> integers -> bytes.
  The colours of pixels of alpha 0 are not kept (`alpha.fill_hidden`). `method` is a value of the
  registry (`cg.methods.cgvq_rd(channels=3, quality=50)`) or your own; its options are its own
  affair. `hooks` are called between blocks of steps: progress, checkpoints.

  Raises TypeError or ValueError, naming the argument, on an image, a method, settings or hooks that
  are of another kind or out of range, FitError where the fit diverges, DeviceError where JAX has no
  device. Computes in float32 whatever the process has configured (`devices.own_configuration`).
  """
  from cgvq_jax import devices
  from cgvq_jax.fit import driver

  image = inputs.checked_image(image)
  check_settings(settings)
  hooks = driver.Hooks() if hooks is None else hooks
  inputs.check_hooks(hooks)
  with devices.own_configuration():
    inputs.check_method(method, image.shape[2])
    stages = method.stages(np.asarray(alpha.fill_hidden(image), np.float32), settings)
    symbols = driver.run(stages, hooks)
  return container.write(symbols)


class Decoded(NamedTuple):
  """What a file holds: the Gaussians and the size of the image they were fitted to."""

  gaussians: Gaussians
  height: int  # px
  width: int  # px
  labels: np.ndarray  # [N] int32, the cluster of each Gaussian, or its energy class


def decode(data: bytes) -> Decoded:
  """Reads the bytes of a file; raises ContainerError, naming the field, where they are not one.

  TypeError where they are no bytes, bytearray, memoryview or other buffer.
  The Gaussians are NumPy arrays, and a pytree where the process has imported JAX.
  """
  if 'jax' in sys.modules:
    importlib.import_module('cgvq_jax.primitives.trees')
  symbols = container.read(inputs.checked_bytes(data))
  gaussians, labels = container.dequantize(symbols)
  return Decoded(gaussians, symbols.height, symbols.width, labels)


def render(
  decoded: Decoded, scale: float = 1.0, renderer: str | None = None
) -> Float[np.ndarray, 'H W C']:
  """The image in 0..1 at `scale` times its size; rounding to 8 bits is `images.to_bytes8`.

  Means and standard deviations are scaled. A smaller image is seen through larger pixels: the box
  filter of a pixel has variance 1/12 px^2, of which the original pixels have done scale^2, so the
  rest is added to each covariance, and the colour is lowered to keep each Gaussian's integral.
  `renderer` is a name of `rasterize.renderers`; None chooses by the work, Gaussians x pixels.

  Raises TypeError where `decoded` is something else, ValueError as `scaled_size` and on an unknown
  renderer.
  """
  height, width = scaled_size(decoded, scale)
  scaled = _scaled(decoded.gaussians, scale)
  return np.clip(renderers.render(scaled, height, width, renderer), 0.0, 1.0)


def scaled_size(decoded: Decoded, scale: float) -> tuple[int, int]:
  """The height and the width of a rendering.

  Raises ValueError where the scale is no number above 0, or a side would leave 1..MAX_SIDE px, or
  all the pixels 2^28.
  """
  if not isinstance(decoded, Decoded):
    got = type(decoded).__name__
    raise TypeError(f'decoded: wanted what cg.decode(data) returns, got {got}')
  inputs.check_positive('scale', scale)
  size = decoded.height, decoded.width
  height, width = (round(min(side * float(scale), MAX_SIDE + 1)) for side in size)
  if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE) or height * width > _MAX_PIXELS:
    raise ValueError(
      f'scale: wanted sides of 1 to {MAX_SIDE} px and at most {_MAX_PIXELS} pixels,'
      f' got {scale:g} x {decoded.width} x {decoded.height} px'
    )
  return height, width


def measure(image: Float[np.ndarray, 'H W C'], data: bytes) -> Measures:
  """The rate of a file, and the PSNR of its picture in 8 bits to an image in 0..1.

  Raises TypeError and ValueError as `encode` and `decode`, ValueError where the image has another
  shape than the file's.
  """
  image, data = inputs.checked_image(image), inputs.checked_bytes(data)
  decoded = decode(data)
  psnr = metrics.psnr(images.to_bytes8(image), images.to_bytes8(render(decoded)))
  return Measures(metrics.bpp(len(data), decoded.height, decoded.width), psnr)


def _scaled(gaussians: Gaussians, scale: float) -> Gaussians:
  """As `render` says, in NumPy."""
  mean_xy, log_scale, rotation, color = (
    np.asarray(getattr(gaussians, name), np.float32)
    for name in ('mean_xy', 'log_scale', 'rotation', 'color')
  )
  variance = (standard_deviations(log_scale) * np.float32(scale)) ** 2
  wider = variance + np.float32(max(1 - scale**2, 0.0) / 12)
  share = np.sqrt(np.prod(variance / wider, axis=-1, keepdims=True))
  return Gaussians(mean_xy * np.float32(scale), np.log(wider) / 2, rotation, color * share)
