"""Small named scenes: the arguments that every rasterizer is tested with.

Most have the same size, so that one compiled program serves them all. Where a scene allows it,
means are multiples of 1/64 px: distances to pixel centres are then exact, and no pixel is inside
the cutoff for one rasterizer and outside for another because of rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from cgvq_jax.io import datasets
from cgvq_jax.primitives.trees import Gaussians

NUM_GAUSSIANS, HEIGHT, WIDTH = 24, 40, 56  # neither side is a multiple of a tile's


class Scene(NamedTuple):
  """The arguments of a rasterizer."""

  gaussians: Gaussians
  height: int  # px
  width: int  # px


def photograph(height: int, width: int) -> np.ndarray:
  """The inside of the cup in the sample photograph: sharp rims, and smooth surfaces."""
  return datasets.sample_photograph()[100 : 100 + height, 200 : 200 + width]


def make(mean_xy, scale, rotation, color, height=HEIGHT, width=WIDTH) -> Scene:
  """A scene from plain arrays; `scale` in px."""
  arrays = [np.asarray(a, np.float32) for a in (mean_xy, np.log(scale), rotation, color)]
  return Scene(Gaussians(*map(jnp.asarray, arrays)), height, width)


def snapped(mean_xy: np.ndarray) -> np.ndarray:
  """The nearest multiples of 1/64 px."""
  return np.round(64 * mean_xy) / 64


def random(
  num_gaussians=NUM_GAUSSIANS, height=HEIGHT, width=WIDTH, channels=3, seed=0, scale=(0.6, 6.0)
) -> Scene:
  """Anywhere in the image, any direction, standard deviations log-uniform within `scale` px."""
  rng = np.random.default_rng(seed)
  return make(
    mean_xy=snapped(rng.random((num_gaussians, 2)) * [width, height]),
    scale=np.exp(rng.uniform(*np.log(scale), (num_gaussians, 2))),
    rotation=rng.uniform(-4, 4, num_gaussians),
    color=rng.uniform(-0.5, 1, (num_gaussians, channels)),
    height=height,
    width=width,
  )


def borders() -> Scene:
  """Centred on the image's edges and corners, on the tiles' edges, and a little beyond."""
  scene = random(seed=1)
  x, y = np.meshgrid([-3.5, 0, 16, 32, WIDTH, WIDTH + 3.5], [-3.5, 0, 16, HEIGHT])
  mean_xy = np.stack([x.ravel(), y.ravel()], axis=-1)
  return scene._replace(gaussians=scene.gaussians.replace(mean_xy=jnp.asarray(mean_xy, 'float32')))


def outside() -> Scene:
  """Half wholly outside the image, some 1e5 px away; one of those is wide enough to cover it."""
  scene = random(seed=2)
  mean_xy = np.array(scene.gaussians.mean_xy)
  away = [[-60, 20], [WIDTH + 60, 20], [20, -60], [20, HEIGHT + 60], [-1e5, 20], [20, 1e5]]
  mean_xy[:12] = [*away, [1e5, 1e5], [-1e5, 1e5], [1e5, -1e5], [-1e5, -1e5], [0, -1e5], [1e5, 20]]
  log_scale = np.array(scene.gaussians.log_scale)
  log_scale[11] = np.log([6e4, 4e4])
  gaussians = scene.gaussians.replace(
    mean_xy=jnp.asarray(mean_xy), log_scale=jnp.asarray(log_scale)
  )
  return scene._replace(gaussians=gaussians)


def enormous() -> Scene:
  """Standard deviations of 300 to 700 px: every Gaussian on every tile."""
  return random(seed=3, scale=(300, 700))


def tiny() -> Scene:
  """Standard deviations of 0.05 to 0.3 px, means within 0.1 px of a pixel's centre."""
  rng = np.random.default_rng(4)
  pixel = np.floor(rng.random((NUM_GAUSSIANS, 2)) * [WIDTH, HEIGHT]) + 0.5
  scene = random(seed=4, scale=(0.05, 0.3))
  mean_xy = pixel + rng.integers(-6, 7, (NUM_GAUSSIANS, 2)) / 64
  return scene._replace(gaussians=scene.gaussians.replace(mean_xy=jnp.asarray(mean_xy, 'float32')))


def thin() -> Scene:
  """A hundred times as long as wide, at random angles."""
  rng = np.random.default_rng(5)
  scene = random(seed=5)
  gaussians = scene.gaussians.replace(
    log_scale=jnp.broadcast_to(jnp.log(jnp.array([20.0, 0.2])), (NUM_GAUSSIANS, 2)),
    rotation=jnp.asarray(rng.uniform(0, np.pi, NUM_GAUSSIANS), 'float32'),
  )
  return scene._replace(gaussians=gaussians)


def black() -> Scene:
  """Colour 0: a black image, but the colours have a gradient."""
  scene = random(seed=16)
  return scene._replace(gaussians=scene.gaussians.replace(color=jnp.zeros((NUM_GAUSSIANS, 3))))


def single_pixel() -> Scene:
  return random(num_gaussians=5, height=1, width=1, seed=7)


def odd_size_gray() -> Scene:
  return random(height=17, width=33, channels=1, seed=8)


def one_row_with_alpha() -> Scene:
  return random(height=1, width=50, channels=4, seed=9)


def one_gaussian() -> Scene:
  return make([[29.5, 13.25]], [[9.0, 3.0]], [0.4], [[0.9, -0.3, 0.5]])


def crowded(num_gaussians=300) -> Scene:
  """All on one tile: far more than its share of any capacity."""
  scene = random(num_gaussians, seed=13, scale=(0.5, 1.0))
  mean_xy = scene.gaussians.mean_xy / jnp.array([WIDTH, HEIGHT]) * 8 + 20  # [20, 28]^2
  return scene._replace(gaussians=scene.gaussians.replace(mean_xy=snapped(mean_xy)))


def covering(num_gaussians=300) -> Scene:
  """Every Gaussian on every tile: tile lists of the initial capacity overflow."""
  return random(num_gaussians, seed=14, scale=(60, 90))


SCENES: dict[str, Callable[[], Scene]] = {
  function.__name__: function
  for function in (
    random,
    borders,
    outside,
    enormous,
    tiny,
    thin,
    black,
    single_pixel,
    odd_size_gray,
    one_row_with_alpha,
    one_gaussian,
    crowded,
    covering,
  )
}
