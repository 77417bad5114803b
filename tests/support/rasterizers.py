"""Every rasterizer by name, its compiled programs, and the tolerances of the shared suite.

An implementation that `rasterize` offers has to be named here; the suite then runs on it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes

from cgvq_jax.rasterize import api, layout, numpy_renderer, tiles


def on_this_machine(names):
  """Parameters, skipped where they need a GPU or a later JAX."""
  later = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason='needs JAX 0.11')
  for name in names:
    gpu = name.startswith('pallas') and 'interpret' not in name
    marks = [pytest.mark.gpu] if gpu else [later] if name == 'pallas_mosaic_interpret' else []
    yield pytest.param(name, marks=marks)


MAIN = ['xla', 'pallas_interpret', 'pallas', 'pallas_triton', 'pallas_mosaic']
IMPLEMENTATIONS = list(on_this_machine(MAIN))
# Each of the others differs from one of these in one part, so a few scenes are enough.
OTHERS = [name for name in api.implementations() if name not in ('reference', *MAIN)]
ATTRIBUTES = ('mean_xy', 'log_scale', 'rotation', 'color')
NUMPY = 'numpy'  # renders, but has no gradient and is no implementation of `api.rasterize`

each_implementation = pytest.mark.parametrize('name', IMPLEMENTATIONS)
each_renderer = pytest.mark.parametrize('name', [*IMPLEMENTATIONS, NUMPY])
each_renderer_and_reference = pytest.mark.parametrize(
  'name', ['reference', *IMPLEMENTATIONS, NUMPY]
)
each_scene = pytest.mark.parametrize('scene', list(raster_scenes.SCENES))

# For sums of up to 1. The rounding of a float32 sum is in proportion to it, and scenes reach 120.
VALUE_TOLERANCE = 1e-5
# The moments of a tiny or thin Gaussian are about 0.1^2 px^2. They are taken about the centre of a
# tile, up to 8 px away, where float32 resolves 64 px^2 * 6e-8. Tiny ones reach a pixel at most.
GRADIENT_TOLERANCE = dict.fromkeys(raster_scenes.SCENES, 1e-4) | {'thin': 3e-4, 'tiny': 1e-3}


@functools.lru_cache
def program(name, height, width):
  """(gaussians, cotangent) -> (image, gradient), compiled once for all scenes of a size."""

  def run(gaussians, cotangent):
    image, pullback = jax.vjp(
      lambda g: api.rasterize(g, height, width, implementation=name), gaussians
    )
    return image, pullback(cotangent)[0]

  return jax.jit(run)


def image_and_gradient(name, scene):
  shape = scene.height, scene.width, scene.gaussians.num_channels
  cotangent = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  return program(name, scene.height, scene.width)(scene.gaussians, cotangent)


@functools.lru_cache
def of_scene(name, scene):
  """`image_and_gradient` of a named scene, computed once."""
  return image_and_gradient(name, raster_scenes.SCENES[scene]())


def image_of(name, scene):
  if name == NUMPY:
    return numpy_renderer.rasterize(*scene)
  return np.asarray(image_and_gradient(name, scene)[0])


def image_of_scene(name, scene):
  if name == NUMPY:
    return numpy_renderer.rasterize(*raster_scenes.SCENES[scene]())
  return np.asarray(of_scene(name, scene)[0])


# --- tile lists, and errors tile by tile ---

BIN_CAPACITY = 1024


@functools.partial(jax.jit, static_argnames='capacity')
def bin_small(gaussians, capacity=BIN_CAPACITY):
  return tiles.bin_gaussians(gaussians, raster_scenes.HEIGHT, raster_scenes.WIDTH, capacity)


def asymmetric(image, target):
  """An elementwise error that is not symmetric in image and target."""
  return jnp.where(image > target, 3.0, 1.0) * jnp.abs(image - target) ** 1.5


def whole_image_loss(gaussians, target):
  height, width, _ = target.shape
  image = api.rasterize(gaussians, height, width, implementation='reference')
  return jnp.mean(asymmetric(image, target))


whole_image = jax.jit(jax.value_and_grad(whole_image_loss))


def unpadded(image):
  """An image as a target, without padding."""
  height, width, _ = image.shape
  return layout.PaddedImage(image, tiles.Size(height, width))


def target_of(scene):
  shape = scene.height, scene.width, scene.gaussians.num_channels
  return np.random.default_rng(1).random(shape, np.float32)
