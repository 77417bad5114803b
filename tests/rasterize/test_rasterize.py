"""One suite for every rasterizer: values, gradients, the cutoff, transformations, misuse."""

from __future__ import annotations

import functools
import logging
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes
from rasterizers import (
  ATTRIBUTES,
  BIN_CAPACITY,
  GRADIENT_TOLERANCE,
  IMPLEMENTATIONS,
  OTHERS,
  VALUE_TOLERANCE,
  asymmetric,
  each_implementation,
  each_renderer,
  each_renderer_and_reference,
  each_scene,
  image_and_gradient,
  image_of,
  image_of_scene,
  of_scene,
  on_this_machine,
  program,
  target_of,
  unpadded,
  whole_image,
)

from cgvq_jax import devices
from cgvq_jax.primitives.geometry import CUTOFF_RADIUS
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import api, layout, limits, numpy_renderer, tiles


def written_out(scene):
  """The definition, independently: float64, inverse matrices, loops over pixels and Gaussians."""
  mean, log_scale, rotation, color = (
    np.asarray(getattr(scene.gaussians, a), np.float64) for a in ATTRIBUTES
  )
  image = np.zeros((scene.height, scene.width, color.shape[1]))
  inverses = []
  for (s1, s2), r in zip(np.exp(log_scale), rotation, strict=True):
    rotate = np.array([[np.cos(r), -np.sin(r)], [np.sin(r), np.cos(r)]])
    inverses.append(np.linalg.inv(rotate @ np.diag([s1**2, s2**2]) @ rotate.T))
  for i, j in np.ndindex(scene.height, scene.width):
    for n, inverse in enumerate(inverses):
      offset = np.array([j + 0.5, i + 0.5]) - mean[n]
      q = offset @ inverse @ offset / 2
      if q <= math.log(255):
        image[i, j] += color[n] * math.exp(-q)
  return image


# --- values and gradients ---


@each_renderer_and_reference
@pytest.mark.parametrize('scene', ['odd_size_gray', 'thin'])
def test_value_is_the_definition_written_out(name, scene):
  scene = raster_scenes.SCENES[scene]()
  want = written_out(scene)
  assert np.abs(want).max() > 0.5
  np.testing.assert_allclose(image_of(name, scene), want, atol=1e-5)


@each_renderer
@each_scene
def test_value_matches_reference(name, scene):
  want, got = (image_of_scene(n, scene) for n in ('reference', name))
  assert got.shape == want.shape and got.dtype == np.float32
  assert np.abs(want).max() > 0.05 or scene == 'black'
  size = max(1, np.abs(want).max())
  np.testing.assert_allclose(got, want, atol=VALUE_TOLERANCE * size)


@each_implementation
def test_value_outside_of_jit(name):
  # Outside of jit the capacity of the lists is grown to what the Gaussians need.
  scene = raster_scenes.covering()
  want = image_of('reference', scene)
  got = api.rasterize(*scene, implementation=name)
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@each_implementation
@each_scene
@pytest.mark.parametrize('attribute', ATTRIBUTES)
def test_gradient_matches_reference(name, scene, attribute):
  want, got = (np.asarray(getattr(of_scene(n, scene)[1], attribute)) for n in ('reference', name))
  largest = np.abs(want).max()
  assert largest > 0 or scene == 'black'
  np.testing.assert_allclose(got, want, atol=GRADIENT_TOLERANCE[scene] * largest)


@functools.lru_cache
def listed_program(name, height, width, capacity=2048):
  """`program` from lists of sufficient capacity, without the branch for an overflow."""

  def run(gaussians, cotangent):
    bins = tiles.bin_gaussians(gaussians, height, width, capacity)
    image, pullback = jax.vjp(
      lambda g: api.rasterize_binned(g, bins, height, width, implementation=name), gaussians
    )
    return image, pullback(cotangent)[0], bins.overflowed

  return jax.jit(run)


@pytest.mark.parametrize('name', list(on_this_machine(OTHERS)))
@pytest.mark.parametrize('scene', ['borders', 'thin', 'outside', 'one_row_with_alpha', 'crowded'])
def test_variants_match_reference(name, scene):
  image, gradient = of_scene('reference', scene)
  gaussians, height, width = raster_scenes.SCENES[scene]()
  cotangent = np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)
  got, got_gradient, overflowed = listed_program(name, height, width)(gaussians, cotangent)
  assert not overflowed
  factor = 200 if name.endswith('_tf32') else 1  # ten bits of mantissa
  size = max(1, np.abs(image).max())
  np.testing.assert_allclose(got, image, atol=factor * VALUE_TOLERANCE * size)
  for attribute in ATTRIBUTES:
    want = np.asarray(getattr(gradient, attribute))
    atol = factor * GRADIENT_TOLERANCE[scene] * np.abs(want).max()
    np.testing.assert_allclose(getattr(got_gradient, attribute), want, atol=atol)


@pytest.mark.parametrize('name', ['reference', *IMPLEMENTATIONS])
def test_black_gaussians_add_nothing_but_their_colour_has_a_gradient(name):
  image, gradient = image_and_gradient(name, raster_scenes.black())
  for array in (image, gradient.mean_xy, gradient.log_scale, gradient.rotation):
    assert np.all(np.asarray(array) == 0)
  assert np.all(np.abs(gradient.color).max(axis=-1) > 0)


@pytest.mark.parametrize('name', ['reference', *IMPLEMENTATIONS])
def test_gaussians_outside_of_the_image_have_no_effect_and_no_gradient(name):
  scene = raster_scenes.outside()
  image, gradient = image_and_gradient(name, scene)
  away = np.arange(11)  # the twelfth is as far away, but wide enough to reach the image
  for attribute in ATTRIBUTES:
    rows = np.abs(np.asarray(getattr(gradient, attribute)).reshape(raster_scenes.NUM_GAUSSIANS, -1))
    assert np.all(rows[away] == 0) and np.all(rows[11:].max(axis=1) > 0)
  black = scene.gaussians.color.at[away].set(0)
  without = scene._replace(gaussians=scene.gaussians.replace(color=black))
  np.testing.assert_array_equal(image, image_of(name, without))


@each_renderer_and_reference
def test_order_does_not_matter(name):
  scene = raster_scenes.random()
  backwards = jax.tree.map(lambda a: a[::-1], scene.gaussians)
  got = image_of(name, scene._replace(gaussians=backwards))
  np.testing.assert_allclose(got, image_of(name, scene), atol=2e-6)


# --- the cutoff ---


def lone(mean_xy, scale, rotation=0.0):
  """One Gaussian of colour 1 among black ones, in the size of the other scenes."""
  scene = raster_scenes.black()
  values = dict(mean_xy=mean_xy, log_scale=np.log(scale), rotation=rotation, color=1.0)
  rows = {a: getattr(scene.gaussians, a).at[0].set(jnp.asarray(v)) for a, v in values.items()}
  return scene._replace(gaussians=Gaussians(**rows))


@each_renderer_and_reference
@pytest.mark.parametrize('center', [(20.5, 20.5), (15.5, 16.5), (0.5, 39.5)])
def test_cutoff_is_the_ellipse_of_weight_one_in_255(name, center):
  # 8 px along the first axis, 3 px along the second: just inside, then just outside.
  (x, y), (reach_x, reach_y) = (int(c) for c in center), (8, 3)
  pixels = [(y, x + reach_x), (y, x - reach_x), (y + reach_y, x), (y - reach_y, x)]
  pixels = [
    (i, j) for i, j in pixels if 0 <= i < raster_scenes.HEIGHT and 0 <= j < raster_scenes.WIDTH
  ]
  for factor, weight in ((1.0001, 1 / 255), (0.9999, 0.0)):
    scale = np.array([reach_x, reach_y]) / CUTOFF_RADIUS * factor
    image = image_of(name, lone(center, scale))[..., 0]
    assert image[y, x] == pytest.approx(1)
    for pixel in pixels:
      assert image[pixel] == pytest.approx(weight, rel=2e-3), pixel
    assert np.min(image[image > 0]) >= 0.999 / 255


@each_renderer_and_reference
@pytest.mark.parametrize('shift', [(5, 3), (16, 0), (-7, 9)])
def test_image_does_not_depend_on_the_position_of_tiles(name, shift):
  scene = raster_scenes.random()
  moved = scene.gaussians.replace(mean_xy=scene.gaussians.mean_xy + jnp.array(shift, 'float32'))
  before = image_of(name, scene)
  after = image_of(name, scene._replace(gaussians=moved))
  dx, dy = shift
  height, width = scene.height - abs(dy), scene.width - abs(dx)
  top, left = max(-dy, 0), max(-dx, 0)
  np.testing.assert_allclose(
    after[top + dy : top + dy + height, left + dx : left + dx + width],
    before[top : top + height, left : left + width],
    atol=2e-6,
  )


# --- transformations ---


@each_implementation
def test_batches_by_vmap(name):
  batch = [raster_scenes.random(), raster_scenes.borders(), raster_scenes.outside()]
  gaussians = jax.tree.map(lambda *a: jnp.stack(a), *(s.gaussians for s in batch))
  cotangent = np.random.default_rng(0).standard_normal(
    (raster_scenes.HEIGHT, raster_scenes.WIDTH, 3)
  )
  run = jax.jit(
    jax.vmap(program(name, raster_scenes.HEIGHT, raster_scenes.WIDTH), in_axes=(0, None))
  )
  images, gradients = run(gaussians, cotangent.astype(np.float32))
  for i, scene in enumerate(batch):
    image, gradient = image_and_gradient(name, scene)
    np.testing.assert_allclose(images[i], image, atol=1e-5)
    for attribute in ATTRIBUTES:
      want, got = getattr(gradient, attribute), getattr(gradients, attribute)[i]
      np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize('name', ['reference', *IMPLEMENTATIONS])
def test_second_call_compiles_nothing(name, caplog):
  one, other = raster_scenes.random(), raster_scenes.borders()
  devices.drop_programs()  # those of other tests

  def compilations(gaussians, width):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
      api.rasterize(gaussians, 8, width, implementation=name).block_until_ready()
    return [m for m in caplog.messages if m.startswith('Compiling')]

  assert compilations(one.gaussians, 24)  # so the log is complete
  assert not compilations(other.gaussians, 24)
  if name != 'reference':
    assert not compilations(other.gaussians, 97)  # nor of another size


def test_a_batch_is_rendered_with_one_condition_on_overflow():
  # vmap evaluates both branches of a condition that differs within the batch.
  scene = raster_scenes.random()
  batch = jax.tree.map(lambda a: jnp.stack([a, a]), scene.gaussians)

  def render(gaussians):
    return api.rasterize(gaussians, scene.height, scene.width, implementation='xla')

  def conditions(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments)).count('cond[')

  assert conditions(jax.vmap(render), batch) == conditions(render, scene.gaussians) == 1
  assert conditions(jax.vmap(jax.vmap(render)), jax.tree.map(lambda a: a[None], batch)) == 1


def test_a_batch_with_one_overflow_is_rendered_correctly():
  batch = [raster_scenes.random(300), raster_scenes.covering()]
  gaussians = jax.tree.map(lambda *a: jnp.stack(a), *(s.gaussians for s in batch))
  got = jax.jit(jax.vmap(lambda g: api.rasterize(g, raster_scenes.HEIGHT, raster_scenes.WIDTH)))(
    gaussians
  )
  for i, scene in enumerate(batch):
    want = image_of('reference', scene)
    np.testing.assert_allclose(got[i], want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize('name', ['xla', 'pallas_interpret', 'pallas_interpret_products'])
@pytest.mark.parametrize('shape', [(8, 16), (32, 8)])
def test_tiles_of_another_shape(name, shape):
  gaussians, height, width = raster_scenes.borders()
  want, want_gradient = of_scene('reference', 'borders')
  target = target_of(raster_scenes.borders())
  cotangent = np.random.default_rng(0).standard_normal(want.shape).astype(np.float32)

  @jax.jit
  def run(gaussians):
    bins = tiles.bin_gaussians(
      gaussians, height, width, 2 * BIN_CAPACITY, tile_shape=tiles.TileShape(*shape)
    )
    image, pullback = jax.vjp(
      lambda g: api.rasterize_binned(g, bins, height, width, implementation=name), gaussians
    )
    tiled = layout.tile_target(unpadded(target), tile_shape=bins.tile_shape)
    error = api.mean_error(asymmetric, tiled, gaussians, bins, implementation=name)
    return image, pullback(cotangent)[0], bins.overflowed, error

  image, gradient, overflowed, (error, error_gradient) = run(gaussians)
  assert not overflowed
  np.testing.assert_allclose(image, want, atol=1e-5)
  want_error, want_error_gradient = whole_image(gaussians, target)
  assert error == pytest.approx(float(want_error), rel=1e-5)
  for attribute in ATTRIBUTES:
    for got, reference in ((gradient, want_gradient), (error_gradient, want_error_gradient)):
      whole = np.asarray(getattr(reference, attribute))
      np.testing.assert_allclose(getattr(got, attribute), whole, atol=1e-4 * np.abs(whole).max())


# --- misuse ---


rasterizers = pytest.mark.parametrize('rasterize', [api.rasterize, numpy_renderer.rasterize])


@rasterizers
@pytest.mark.parametrize('size', [(0, 5), (5, 0), (-1, 5), (5, limits.MAX_SIDE + 1)])
def test_impossible_sizes(rasterize, size):
  with pytest.raises(
    ValueError, match=r'image size: wanted 1 to 65535 px a side, got height=.*wid'
  ):
    rasterize(raster_scenes.random().gaussians, *size)


@rasterizers
@pytest.mark.parametrize('channels', [2, 5])
def test_impossible_channels(rasterize, channels):
  with pytest.raises(ValueError, match=rf'channels: wanted one of \(1, 3, 4\), got {channels}'):
    rasterize(raster_scenes.random(channels=channels).gaussians, 8, 8)


@rasterizers
@pytest.mark.parametrize(
  ('attribute', 'shape'), [('mean_xy', (24, 3)), ('log_scale', (23, 2)), ('rotation', (24, 1))]
)
def test_inconsistent_shapes(rasterize, attribute, shape):
  gaussians = raster_scenes.random().gaussians.replace(**{attribute: jnp.zeros(shape)})
  with pytest.raises(ValueError, match=rf"'{attribute}'.*got.*{re.escape(str(shape))}"):
    rasterize(gaussians, 8, 8)


@rasterizers
def test_no_gaussians(rasterize):
  with pytest.raises(ValueError, match='wanted N >= 1'):
    rasterize(raster_scenes.random(num_gaussians=0).gaussians, 8, 8)
