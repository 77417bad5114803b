"""Errors and gradients tile by tile, and images shared by several devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from rasterizers import (
  ATTRIBUTES,
  BIN_CAPACITY,
  GRADIENT_TOLERANCE,
  asymmetric,
  each_scene,
  image_and_gradient,
  target_of,
  unpadded,
  whole_image,
)

from cgvq_jax.rasterize import api, layout, tiles

# --- several devices ---


@functools.lru_cache
def shared_program(height, width):
  """`program` of 'xla' on all devices, each of which renders its share of the image."""
  mesh = Mesh(jax.devices(), ('core',))

  def run(gaussians, cotangent):
    share = tiles.own_share('core')
    bins = tiles.bin_gaussians(gaussians, height, width, 4 * BIN_CAPACITY, share)
    image, pullback = jax.vjp(
      lambda g: api.rasterize_binned(g, bins, height, width, axis='core'), gaussians
    )
    return image, pullback(cotangent)[0], lax.pmax(bins.overflowed, 'core')

  return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))


@each_scene
def test_devices_share_one_image_and_its_gradient(scene):
  assert jax.device_count() > 1  # tests/conftest.py sees to it
  scene = raster_scenes.SCENES[scene]()
  shape = scene.height, scene.width, scene.gaussians.num_channels
  cotangent = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  image, gradient, overflowed = shared_program(*shape[:2])(scene.gaussians, cotangent)
  assert not overflowed
  want, want_gradient = image_and_gradient('xla', scene)
  np.testing.assert_allclose(image, want, atol=2e-6 * max(1, np.abs(want).max()))
  for attribute in ATTRIBUTES:
    one = np.asarray(getattr(want_gradient, attribute))
    atol = GRADIENT_TOLERANCE['tiny'] * np.abs(one).max()
    np.testing.assert_allclose(getattr(gradient, attribute), one, atol=atol)


# --- tile by tile ---


@functools.lru_cache
def tile_by_tile(block, axis):
  """(gaussians, target) -> value, gradient, and whether lists or a tile exceeded their capacity."""

  def run(gaussians, target):
    height, width, _ = target.shape
    share = tiles.own_share(axis)
    bins = tiles.bin_gaussians(gaussians, height, width, 4 * BIN_CAPACITY, share)
    tiled = layout.tile_target(unpadded(target), axis=axis, block=block)
    value, gradient = api.mean_error(asymmetric, tiled, gaussians, bins, axis=axis)
    wrong = bins.overflowed | (bins.most_chunks > block)
    return value, gradient, lax.pmax(wrong, axis) if axis else wrong

  if axis is None:
    return jax.jit(run)
  mesh = Mesh(jax.devices(), (axis,))
  return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))


@each_scene
# `crowded` and `covering` have tiles of 19 chunks; in other scenes a block holds many tiles.
@pytest.mark.parametrize(('axis', 'block'), [(None, 19), ('core', 64)])
def test_mean_error_is_that_of_the_whole_image(scene, axis, block):
  scene = raster_scenes.SCENES[scene]()
  target = target_of(scene)
  want, want_gradient = whole_image(scene.gaussians, target)
  got, gradient, wrong = tile_by_tile(block, axis)(scene.gaussians, target)
  assert not wrong
  assert got == pytest.approx(float(want), rel=1e-5)
  for attribute in ATTRIBUTES:
    whole = np.asarray(getattr(want_gradient, attribute))
    atol = GRADIENT_TOLERANCE['tiny'] * np.abs(whole).max()
    np.testing.assert_allclose(getattr(gradient, attribute), whole, atol=atol)


def test_tiles_without_gaussians_are_part_of_the_mean():
  # More tiles than chunks in a block, nearly all of them empty.
  scene = raster_scenes.one_gaussian()
  target = target_of(scene)
  want, want_gradient = whole_image(scene.gaussians, target)
  got, gradient, wrong = tile_by_tile(3, None)(scene.gaussians, target)
  assert not wrong and got == pytest.approx(float(want), rel=1e-5)
  np.testing.assert_allclose(gradient.color, want_gradient.color, atol=1e-6)


def test_pixels_beyond_the_border_have_no_derivative():
  scene = raster_scenes.odd_size_gray()
  target = jnp.asarray(target_of(scene))

  def root(image, target):  # no derivative where they are equal, as they are beyond the border
    return jnp.sqrt((image - target) ** 2)

  @jax.jit
  def run(gaussians):
    bins = tiles.bin_gaussians(gaussians, scene.height, scene.width, BIN_CAPACITY)
    return api.mean_error(root, layout.tile_target(unpadded(target)), gaussians, bins)

  _, gradient = run(scene.gaussians)
  assert all(np.all(np.isfinite(getattr(gradient, a))) for a in ATTRIBUTES)


def test_a_tile_larger_than_a_block_is_detected():
  scene = raster_scenes.crowded()
  *_, wrong = tile_by_tile(18, None)(scene.gaussians, target_of(scene))
  assert wrong


def test_tile_image_returns_the_pixels_of_a_share():
  image = np.arange(40 * 50 * 3, dtype=np.float32).reshape(40, 50, 3)
  for rank in range(2):
    got = np.asarray(layout.tile_image(jnp.asarray(image), tiles.Share(rank, 2)))
    assert got.shape == (2 * 4, 3, 256)
    for row, column in ((0, 0), (0, 3), (1, 1)):
      whole = np.zeros((16, 16, 3), np.float32)
      y, x = 16 * (2 * row + rank), 16 * column
      part = image[y : y + 16, x : x + 16]
      whole[: part.shape[0], : part.shape[1]] = part
      np.testing.assert_array_equal(got[4 * row + column], whole.transpose(2, 0, 1).reshape(3, -1))
