"""Losses: (rendered image, target) -> scalar, both [H, W, C]; the target is in 0..1.

The rendered image is not clamped, so it may leave 0..1.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax
from jaxtyping import Array, Float

from cgvq_jax.extensions import Registry

Loss = Callable[[Float[Array, 'H W C'], Float[Array, 'H W C']], Float[Array, '']]


class MeanError:
  """A loss that is the mean over samples of an elementwise error: (image, target) -> error.

  The gradient of such a loss is computed tile by tile, about twice as fast as that of a function of
  the whole image, so decorate your own where it is such a mean. `error` takes two arrays of any
  shape and returns one of the same shape.
  """

  def __init__(self, error: Callable[[Array, Array], Array]):
    self.error = error
    functools.update_wrapper(self, error)

  def __call__(
    self, image: Float[Array, 'H W C'], target: Float[Array, 'H W C']
  ) -> Float[Array, '']:
    return jnp.mean(self.error(image, target))


@MeanError
def l2(image: Float[Array, '*S'], target: Float[Array, '*S']) -> Float[Array, '*S']:
  """Mean squared error, the loss of the released code (GaussianImage, section 3.4)."""
  return (image - target) ** 2


@MeanError
def clamped_l2(image: Float[Array, '*S'], target: Float[Array, '*S']) -> Float[Array, '*S']:
  """Squared error of the clamped image, continued along its tangents outside of 0..1.

  A decoder clamps the image, so where the target is white (1) a brighter image is no error.
  For any other target the slope beyond 0 or 1 is that at 0 or 1, so no sample loses its gradient.
  """
  inside = jnp.clip(image, 0.0, 1.0)
  error = inside - target
  return error**2 + 2 * error * (image - inside)


@MeanError
def l1(image: Float[Array, '*S'], target: Float[Array, '*S']) -> Float[Array, '*S']:
  """Mean absolute error."""
  return jnp.abs(image - target)


def ssim(image: Float[Array, 'H W C'], target: Float[Array, 'H W C']) -> Float[Array, '']:
  """1 - SSIM (Wang et al. 2004), Gaussian window of 11 px, sigma 1.5; smaller on smaller images."""
  window = min(11, *image.shape[:2])
  return 1 - jnp.asarray(dm_pix.ssim(image, target, filter_size=window))


def l1_ssim(
  image: Float[Array, 'H W C'], target: Float[Array, 'H W C'], *, ssim_share: float = 0.3
) -> Float[Array, '']:
  """(1 - a) L1 + a (1 - SSIM), a = ssim_share (GaussianImage's released code offers 0.3)."""
  return (1 - ssim_share) * l1(image, target) + ssim_share * ssim(image, target)


@functools.lru_cache
def _oriented_filters(size: int = 7, sigma: float = 1.2, orientations: int = 4) -> np.ndarray:
  """First derivatives of a Gaussian in `orientations` directions, unit L1 norm: [h, w, 1, O]."""
  axis = np.arange(size) - size // 2
  y, x = np.meshgrid(axis, axis, indexing='ij')
  envelope = np.exp(-(x**2 + y**2) / (2 * sigma**2))
  angles = np.arange(orientations) * math.pi / orientations
  filters = np.stack([(x * np.cos(a) + y * np.sin(a)) * envelope for a in angles], axis=-1)
  return (filters / np.abs(filters).sum((0, 1)))[:, :, None, :].astype(np.float32)


def _convolve(images: Float[Array, 'B H W I'], filters) -> Float[Array, 'B H W O']:
  # Borders repeat: a border of zeros would be an edge, in a flat image too.
  size = filters.shape[0] // 2
  return lax.conv_general_dilated(
    jnp.pad(images, ((0, 0), (size, size), (size, size), (0, 0)), mode='edge'),
    jnp.asarray(filters),
    (1, 1),
    'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision='highest',
  )


def oriented_features(image: Float[Array, 'H W C'], *, scales: int = 3) -> list[Array]:
  """Responses of fixed oriented filters at octave scales: one [C, H_s, W_s, O] array per scale."""
  planes = jnp.moveaxis(image, -1, 0)[..., None]  # [C, H, W, 1]
  features = []
  for scale in range(scales):
    features.append(_convolve(planes, _oriented_filters()))
    if scale == scales - 1 or min(planes.shape[1:3]) < 2:
      break
    planes = linen.avg_pool(planes, (2, 2), strides=(2, 2))
  return features


def feature(
  image: Float[Array, 'H W C'],
  target: Float[Array, 'H W C'],
  *,
  features: Callable[[Float[Array, 'H W C']], list[Array]] = oriented_features,
  image_share: float = 0.7,
) -> Float[Array, '']:
  """lambda L1(image) + (1 - lambda) L1(features), lambda = image_share (CGVQ poster, section 2).

  The poster does not name its features: fixed oriented filters by default, `vgg_features(path)`
  for a user who has weights.
  """
  pairs = zip(features(image), features(target), strict=True)
  distances = [jnp.mean(jnp.abs(a - b)) for a, b in pairs]
  return image_share * l1(image, target) + (1 - image_share) * sum(distances) / len(distances)


class VGGFeatures(linen.Module):
  """The first convolutions of VGG-16 (Simonyan and Zisserman 2015), up to relu3_3."""

  widths: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256, 256))

  @linen.compact
  def __call__(self, x: Float[Array, 'B H W 3']) -> list[Array]:
    features = []
    for i, stage in enumerate(self.widths):
      if i:
        x = linen.max_pool(x, (2, 2), strides=(2, 2), padding='SAME')
      for j, width in enumerate(stage):
        x = linen.relu(linen.Conv(width, (3, 3), name=f'conv{i + 1}_{j + 1}')(x))
      features.append(x)
    return features


def vgg_features(path: str | os.PathLike) -> Callable[[Float[Array, 'H W C']], list[Array]]:
  """Features of a VGG-16 whose weights the user gives, for `feature(features=...)`.

  `path` is an .npz with arrays 'conv1_1/kernel' [3, 3, I, O] and 'conv1_1/bias' [O] to conv3_3.
  Raises FileNotFoundError, or ValueError naming the first array that is missing or has another
  shape. Grey images are repeated to three channels; alpha is left out.
  """
  with np.load(path) as archive:
    arrays = dict(archive)
  model = VGGFeatures()
  template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  params: dict[str, dict[str, Array]] = {}
  for layer, leaves in template.items():
    for leaf, wanted in leaves.items():
      name = f'{layer}/{leaf}'
      if name not in arrays or arrays[name].shape != wanted.shape:
        got = arrays[name].shape if name in arrays else 'nothing'
        raise ValueError(f'{path}: {name}: wanted shape {wanted.shape}, got {got}')
      params.setdefault(layer, {})[leaf] = jnp.asarray(arrays[name], jnp.float32)
  mean, deviation = jnp.array([0.485, 0.456, 0.406]), jnp.array([0.229, 0.224, 0.225])

  def features(image):
    rgb = jnp.broadcast_to(image[..., :3], (*image.shape[:2], 3))
    outputs: Any = model.apply({'params': params}, ((rgb - mean) / deviation)[None])
    return outputs

  return features


LOSSES: Registry[Loss] = Registry(
  'loss',
  {'clamped_l2': clamped_l2, 'l2': l2, 'l1': l1, 'l1_ssim': l1_ssim, 'feature': feature},
)
