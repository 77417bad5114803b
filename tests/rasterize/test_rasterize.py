"""One suite for every rasterizer: values, gradients, the cutoff, tile lists, misuse.

An implementation that `rasterize` offers has to be named here, and every test then runs on it.
"""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from cgvq_jax.primitives.geometry import CUTOFF, CUTOFF_RADIUS
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import api, layout, limits, numpy_renderer, tiles


def on_this_machine(names):
  """Marked where they need a GPU, or a later JAX."""
  later = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason='needs JAX 0.11')
  for name in names:
    gpu = name.startswith('pallas') and 'interpret' not in name
    marks = [pytest.mark.gpu] if gpu else [later] if name == 'pallas_mosaic_interpret' else []
    yield pytest.param(name, marks=marks)


MAIN = ['xla', 'pallas_interpret', 'pallas', 'pallas_triton', 'pallas_mosaic']
IMPLEMENTATIONS = list(on_this_machine(MAIN))
# The others differ from these in one part each, so some scenes are enough.
OTHERS = [name for name in api.implementations() if name not in ('reference', *MAIN)]
ATTRIBUTES = ('mean_xy', 'log_scale', 'rotation', 'color')
NUMPY = 'numpy'  # renders, but has no gradient and is no implementation of `api.rasterize`

each_implementation = pytest.mark.parametrize('name', IMPLEMENTATIONS)
each_renderer = pytest.mark.parametrize('name', [*IMPLEMENTATIONS, NUMPY])
each_renderer_and_reference = pytest.mark.parametrize(
  'name', ['reference', *IMPLEMENTATIONS, NUMPY]
)
each_scene = pytest.mark.parametrize('scene', list(raster_scenes.SCENES))

# The value is a sum of float32 terms: where colours add up to 120, so does the rounding.
VALUE_TOLERANCE = 1e-5
# Moments of a tiny or thin Gaussian are about 0.1^2 px^2, taken about the centre of a tile 8 px
# away, where float32 resolves 64 px^2 * 6e-8. The tiny ones show on one pixel at most.
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
  return image_and_gradient(name, raster_scenes.SCENES[scene]())


def image_of(name, scene):
  if name == NUMPY:
    return numpy_renderer.rasterize(*scene)
  return np.asarray(image_and_gradient(name, scene)[0])


def image_of_scene(name, scene):
  if name == NUMPY:
    return numpy_renderer.rasterize(*raster_scenes.SCENES[scene]())
  return np.asarray(of_scene(name, scene)[0])


def written_out(scene):
  """The definition once more: float64, inverse matrices, a loop over pixels and Gaussians."""
  mean, log_scale, rotation, color = (
    np.asarray(getattr(scene.gaussians, a), np.float64) for a in ATTRIBUTES
  )
  image = np.zeros((scene.height, scene.width, color.shape[1]))
  inverses = []
  for (s1, s2), r in zip(np.exp(log_scale), rotation, strict=True):
    turn = np.array([[np.cos(r), -np.sin(r)], [np.sin(r), np.cos(r)]])
    inverses.append(np.linalg.inv(turn @ np.diag([s1**2, s2**2]) @ turn.T))
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
  # Where a program may be chosen by the Gaussians themselves.
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
  """`program` from lists that suffice: without what evaluates all pairs where they do not."""

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
def test_black_gaussians_make_no_image_but_may_learn_a_colour(name):
  image, gradient = image_and_gradient(name, raster_scenes.black())
  for array in (image, gradient.mean_xy, gradient.log_scale, gradient.rotation):
    assert np.all(np.asarray(array) == 0)
  assert np.all(np.abs(gradient.color).max(axis=-1) > 0)


@pytest.mark.parametrize('name', ['reference', *IMPLEMENTATIONS])
def test_gaussians_outside_give_nothing_and_get_nothing(name):
  scene = raster_scenes.outside()
  image, gradient = image_and_gradient(name, scene)
  away = np.arange(11)  # the twelfth is as far, and wide enough to be seen
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
def test_image_does_not_know_where_tiles_begin(name, shift):
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

  def compilations(gaussians, width):
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
      api.rasterize(gaussians, 8, width, implementation=name).block_until_ready()
    return [m for m in caplog.messages if m.startswith('Compiling')]

  assert compilations(one.gaussians, 24)  # the log does tell
  assert not compilations(other.gaussians, 24)


# --- tile lists ---

BIN_CAPACITY = 1024


@functools.partial(jax.jit, static_argnames='capacity')
def bin_small(gaussians, capacity=BIN_CAPACITY):
  return tiles.bin_gaussians(gaussians, raster_scenes.HEIGHT, raster_scenes.WIDTH, capacity)


@jax.jit
def bin_share(gaussians, share):
  return tiles.bin_gaussians(
    gaussians, raster_scenes.HEIGHT, raster_scenes.WIDTH, BIN_CAPACITY, share
  )


def listed_pairs(bins):
  """(tile, Gaussian) of every place of the chunks in use."""
  bins, pairs = jax.tree.map(np.asarray, bins), []
  for tile, start, size in zip(bins.chunk_tile, bins.chunk_start, bins.chunk_size, strict=True):
    pairs += [(int(tile), int(n)) for n in bins.pair_gaussian[int(start) : int(start + size)]]
  return pairs


def needed_pairs(scene):
  """The pairs that some pixel needs, by trying them all in float64."""
  mean, log_scale, rotation, _ = (
    np.asarray(getattr(scene.gaussians, a), np.float64) for a in ATTRIBUTES
  )
  y, x = np.mgrid[: scene.height, : scene.width] + 0.5
  dx, dy = x[..., None] - mean[:, 0], y[..., None] - mean[:, 1]
  along = (np.cos(rotation) * dx + np.sin(rotation) * dy) / np.exp(log_scale[:, 0])
  across = (np.cos(rotation) * dy - np.sin(rotation) * dx) / np.exp(log_scale[:, 1])
  pixels_y, pixels_x, gaussian = np.nonzero(along**2 + across**2 <= 2 * CUTOFF)
  columns = tiles.grid(scene.height, scene.width)[1]
  tile = pixels_y // tiles.TILE.height * columns + pixels_x // tiles.TILE.width
  return set(zip(tile.tolist(), gaussian.tolist(), strict=True))


@st.composite
def drawn_scenes(draw, scale=(0.05, 300.0), beyond=60.0):
  """Any ellipses, also long and thin ones, also outside the image, some of them 1e5 px away."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  low = draw(st.floats(*np.log(scale)))
  high = draw(st.floats(low, np.log(scale[1])))
  size = np.array([raster_scenes.WIDTH, raster_scenes.HEIGHT])
  mean_xy = rng.uniform(-beyond, size + beyond, (raster_scenes.NUM_GAUSSIANS, 2))
  if draw(st.booleans()) and beyond:
    mean_xy[0] = [1e5, -1e5]
  if draw(st.booleans()):
    mean_xy = np.round(2 * mean_xy) / 2  # on the pixels' centres and edges, and on the tiles'
  return raster_scenes.make(
    mean_xy,
    np.exp(rng.uniform(low, high, (raster_scenes.NUM_GAUSSIANS, 2))),
    rng.choice([0, np.pi / 4, np.pi / 2, 1.1], raster_scenes.NUM_GAUSSIANS)
    + rng.choice([0, 1e-4, 0.3], raster_scenes.NUM_GAUSSIANS),
    np.ones((raster_scenes.NUM_GAUSSIANS, 3)),
  )


@settings(max_examples=60, deadline=None)
@given(drawn_scenes())
def test_every_pair_that_a_pixel_needs_is_listed_once(scene):
  bins = bin_small(scene.gaussians)
  listed = listed_pairs(bins)
  assert len(listed) == len(set(listed)) == bins.num_pairs and not bins.overflowed
  assert needed_pairs(scene) <= set(listed)


@settings(max_examples=30, deadline=None)
@given(drawn_scenes(scale=(1.0, 30.0), beyond=0))
def test_few_pairs_are_listed_that_no_pixel_needs(scene):
  # A bounding box would list up to twice as many for a thin oblique ellipse.
  assert len(listed_pairs(bin_small(scene.gaussians))) <= 1.1 * len(needed_pairs(scene)) + 3


@settings(max_examples=30, deadline=None)
@given(drawn_scenes(), st.integers(2, 5))
def test_shares_list_each_pair_once_between_them(scene, size):
  columns = tiles.grid(scene.height, scene.width)[1]
  listed = []
  for rank in range(size):
    share = tiles.Share(rank, size)
    pairs = listed_pairs(bin_share(scene.gaussians, share))
    local = np.array([tile for tile, _ in pairs], int)
    whole = share.row(local // columns) * columns + local % columns
    listed += [(int(tile), n) for tile, (_, n) in zip(whole, pairs, strict=True)]
  assert sorted(listed) == sorted(listed_pairs(bin_small(scene.gaussians)))


# With 20 and more bits of Gaussians a tile and a Gaussian no longer fit 32 bits together.
@pytest.mark.parametrize('count', [1, 400, 1 << 20, 1 << 30])
@pytest.mark.parametrize('num_tiles', [1, 70_000])
def test_pairs_are_sorted_by_tile_and_keep_their_order(count, num_tiles):
  rng = np.random.default_rng(0)
  # Nor do 70,000 tiles (17 bits) and places (18), so that it takes two digits.
  tile = rng.integers(0, num_tiles + 1, 140_000).astype(np.int32)
  gaussian = np.sort(rng.integers(0, count, tile.size)).astype(np.int32)
  order = np.argsort(tile, kind='stable')
  sort = jax.jit(lambda tile, gaussian: tiles.sort_by_tile(tile, num_tiles, gaussian, count))
  got = sort(jnp.asarray(tile), jnp.asarray(gaussian))
  np.testing.assert_array_equal(got[0], tile[order])
  np.testing.assert_array_equal(got[1], gaussian[order])


# --- several devices ---


@functools.lru_cache
def shared_program(height, width):
  """`program` for xla, by all the devices there are, each with its share of the image."""
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


def asymmetric(image, target):
  """An error of one sample that tells the image from the target."""
  return jnp.where(image > target, 3.0, 1.0) * jnp.abs(image - target) ** 1.5


def whole_image_loss(gaussians, target):
  height, width, _ = target.shape
  image = api.rasterize(gaussians, height, width, implementation='reference')
  return jnp.mean(asymmetric(image, target))


whole_image = jax.jit(jax.value_and_grad(whole_image_loss))


@functools.lru_cache
def tile_by_tile(block, axis):
  """(gaussians, target) -> value, gradient and whether a tile had more chunks than a block."""

  def run(gaussians, target):
    height, width, _ = target.shape
    share = tiles.own_share(axis)
    bins = tiles.bin_gaussians(gaussians, height, width, 4 * BIN_CAPACITY, share)
    tiled = layout.tile_target(target, axis=axis, block=block)
    value, gradient = api.mean_error(asymmetric, tiled, gaussians, bins, axis=axis)
    wrong = bins.overflowed | (bins.most_chunks > block)
    return value, gradient, lax.pmax(wrong, axis) if axis else wrong

  if axis is None:
    return jax.jit(run)
  mesh = Mesh(jax.devices(), (axis,))
  return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))


def target_of(scene):
  shape = scene.height, scene.width, scene.gaussians.num_channels
  return np.random.default_rng(1).random(shape, np.float32)


@each_scene
# `crowded` and `covering` have tiles of 19 chunks, other scenes many tiles in a block of either.
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
  # More tiles than a block has places, nearly all of them empty.
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
    return api.mean_error(root, layout.tile_target(target), gaussians, bins)

  _, gradient = run(scene.gaussians)
  assert all(np.all(np.isfinite(getattr(gradient, a))) for a in ATTRIBUTES)


def test_a_tile_that_outgrows_a_block_is_seen():
  scene = raster_scenes.crowded()
  *_, wrong = tile_by_tile(18, None)(scene.gaussians, target_of(scene))
  assert wrong


def test_own_tiles_are_the_pixels_of_a_share():
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


# --- overflow ---


@pytest.mark.parametrize('capacity', [16, 128])
def test_overflow_is_seen_counted_and_mended(capacity):
  scene = raster_scenes.random(scale=(3.0, 9.0))
  needed = len(listed_pairs(bin_small(scene.gaussians)))
  bins = bin_small(scene.gaussians, capacity=capacity)
  assert capacity < needed < BIN_CAPACITY
  assert bool(bins.overflowed) and capacity < bins.num_pairs <= 4 * needed
  # Where the room suffices for the Gaussians' tile rows, the count is exact.
  assert capacity == 16 or bins.num_pairs == needed
  grown = bin_small(scene.gaussians, capacity=tiles.round_capacity(int(bins.num_pairs)))
  assert not grown.overflowed and grown.num_pairs == needed


@each_implementation
def test_no_gaussian_is_dropped_from_lists_without_room(name):
  scene = raster_scenes.random(scale=(3.0, 9.0))
  want, want_gradient = image_and_gradient('reference', scene)
  cotangent = np.random.default_rng(0).standard_normal(want.shape).astype(np.float32)

  @jax.jit
  def crammed(gaussians):
    image, pullback = jax.vjp(
      lambda g: api.rasterize_within(
        g, height=scene.height, width=scene.width, capacity=16, implementation=name
      ),
      gaussians,
    )
    return image, pullback(cotangent)[0]

  image, gradient = crammed(scene.gaussians)
  np.testing.assert_allclose(image, want, atol=1e-5)
  np.testing.assert_allclose(gradient.color, want_gradient.color, atol=1e-4)


def test_as_many_rows_as_pairs_get_room():
  # Where every Gaussian is in one tile only, the rows outgrow their part of the room first.
  scene = raster_scenes.random(3000, scale=(0.1, 0.2))
  bins = bin_small(scene.gaussians, capacity=4096)
  assert bool(bins.overflowed) and bins.num_pairs > 4096
  bins = bin_small(scene.gaussians, capacity=tiles.round_capacity(int(bins.num_pairs)))
  assert not bins.overflowed and 2900 <= bins.num_pairs < 1.2 * 3000


@pytest.mark.parametrize(
  ('count', 'height', 'width', 'capacity'),
  # 2.4e9 rows of tiles; 6.6e5 rows, for which there is room, of 3,875 tiles each.
  [(600_000, 65_000, 16, 1024), (170, 62_000, 62_000, 2_000_000)],
)
def test_more_pairs_than_an_integer_holds_are_too_many(count, height, width, capacity):
  gaussians = Gaussians(
    mean_xy=jnp.full((count, 2), 8.0),
    log_scale=jnp.full((count, 2), 12.0),
    rotation=jnp.zeros(count),
    color=jnp.ones((count, 1)),
  )
  assign = jax.jit(lambda gaussians: tiles.assign(gaussians, height, width, capacity)[-1])
  assert int(assign(gaussians)) > api.MAX_CAPACITY


def test_the_covering_scene_overflows_a_guessed_capacity():
  # So that the shared suite has a scene whose lists do not fit.
  gaussians, height, width = raster_scenes.covering()
  rows, columns = tiles.grid(height, width)
  pairs = gaussians.num_gaussians * rows * columns
  assert tiles.initial_capacity(gaussians.num_gaussians, height, width) < pairs


def test_capacities_come_in_a_few_sizes():
  wanted = np.unique(np.geomspace(1, 1e7, 2000).astype(int))
  rounded = np.array([tiles.round_capacity(int(n)) for n in wanted])
  assert np.all(rounded >= wanted) and np.all(np.diff(rounded) >= 0)
  assert np.all(rounded <= 1.125 * wanted + 1024)
  assert len(set(rounded.tolist())) <= 8 * math.log2(1e7)


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
def test_shapes_that_do_not_fit(rasterize, attribute, shape):
  gaussians = raster_scenes.random().gaussians.replace(**{attribute: jnp.zeros(shape)})
  with pytest.raises(ValueError, match=rf"'{attribute}'.*got.*{re.escape(str(shape))}"):
    rasterize(gaussians, 8, 8)


@rasterizers
def test_no_gaussians(rasterize):
  with pytest.raises(ValueError, match='wanted N >= 1'):
    rasterize(raster_scenes.random(num_gaussians=0).gaussians, 8, 8)


# --- choice ---


def test_the_environment_names_an_implementation(monkeypatch):
  scene = raster_scenes.single_pixel()
  want = np.asarray(api.rasterize(*scene))
  monkeypatch.setenv('CGVQ_RASTERIZER', 'reference')
  assert api.chosen() == 'reference' and api.chosen('xla') == 'xla'
  np.testing.assert_allclose(api.rasterize(*scene), want, atol=1e-6)
  monkeypatch.setenv('CGVQ_RASTERIZER', 'cuda')
  with pytest.raises(ValueError, match=r"CGVQ_RASTERIZER=cuda: wanted one of .*'xla'"):
    api.rasterize(*scene)
  monkeypatch.setenv('CGVQ_RASTERIZER', '')
  assert api.chosen() is None


def test_the_choice_is_told_once(caplog):
  scene = raster_scenes.single_pixel()
  api.log_choice.cache_clear()
  with caplog.at_level(logging.INFO):
    for _ in range(2):
      api.rasterize(*scene)
      api.rasterize(*scene, implementation='reference')
  told = [message for message in caplog.messages if message.startswith('rasterizer')]
  assert told == ['rasterizer: by platform (cpu: xla)', 'rasterizer: reference']


def test_a_batch_whose_lists_suffice_evaluates_no_more_than_they_hold():
  # Under vmap a condition that differs within the batch would evaluate both of its branches.
  scene = raster_scenes.random()
  batch = jax.tree.map(lambda a: jnp.stack([a, a]), scene.gaussians)

  def render(gaussians):
    return api.rasterize(gaussians, scene.height, scene.width, implementation='xla')

  def conditions(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments)).count('cond[')

  assert conditions(jax.vmap(render), batch) == conditions(render, scene.gaussians) == 1
  assert conditions(jax.vmap(jax.vmap(render)), jax.tree.map(lambda a: a[None], batch)) == 1


def test_one_overflow_in_a_batch_is_mended():
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
    tiled = layout.tile_target(target, tile_shape=bins.tile_shape)
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


def test_unknown_implementation():
  with pytest.raises(ValueError, match=r"implementation='cuda': wanted one of .*'xla'"):
    api.rasterize(raster_scenes.random().gaussians, 8, 8, implementation='cuda')
