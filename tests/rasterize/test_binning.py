"""Tile lists: every pair that a pixel needs, few others, and what happens when they overflow."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterizers import ATTRIBUTES, BIN_CAPACITY, bin_small, each_implementation, image_and_gradient

from cgvq_jax.primitives.geometry import CUTOFF
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import api, tiles

# --- tile lists ---


@jax.jit
def bin_share(gaussians, share):
  return tiles.bin_gaussians(
    gaussians, raster_scenes.HEIGHT, raster_scenes.WIDTH, BIN_CAPACITY, share
  )


def listed_pairs(bins):
  """(tile, Gaussian) of every entry of the chunks in use."""
  bins, pairs = jax.tree.map(np.asarray, bins), []
  for tile, start, size in zip(bins.chunk_tile, bins.chunk_start, bins.chunk_size, strict=True):
    pairs += [(int(tile), int(n)) for n in bins.pair_gaussian[int(start) : int(start + size)]]
  return pairs


def needed_pairs(scene):
  """The pairs that some pixel needs, by evaluating all of them in float64."""
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
  """Ellipses of any shape, inside and outside of the image, some of them 1e5 px away."""
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
def test_few_unneeded_pairs_are_listed(scene):
  # A bounding box would list up to twice as many for a thin oblique ellipse.
  assert len(listed_pairs(bin_small(scene.gaussians))) <= 1.1 * len(needed_pairs(scene)) + 3


@settings(max_examples=30, deadline=None)
@given(drawn_scenes(), st.integers(2, 5))
def test_each_pair_is_listed_in_one_share(scene, size):
  columns = tiles.grid(scene.height, scene.width)[1]
  listed = []
  for rank in range(size):
    share = tiles.Share(rank, size)
    pairs = listed_pairs(bin_share(scene.gaussians, share))
    local = np.array([tile for tile, _ in pairs], int)
    whole = share.row(local // columns) * columns + local % columns
    listed += [(int(tile), n) for tile, (_, n) in zip(whole, pairs, strict=True)]
  assert sorted(listed) == sorted(listed_pairs(bin_small(scene.gaussians)))


# From 2^20 Gaussians on, with 70,000 tiles, a tile and a Gaussian do not fit 32 bits together.
@pytest.mark.parametrize('count', [1, 400, 1 << 20, 1 << 30])
@pytest.mark.parametrize('num_tiles', [1, 70_000])
def test_pairs_are_sorted_by_tile_and_keep_their_order(count, num_tiles):
  rng = np.random.default_rng(0)
  # Nor do a tile (17 bits) and a position (18 bits), so that the radix sort takes two passes.
  tile = rng.integers(0, num_tiles + 1, 140_000).astype(np.int32)
  gaussian = np.sort(rng.integers(0, count, tile.size)).astype(np.int32)
  order = np.argsort(tile, kind='stable')
  sort = jax.jit(lambda tile, gaussian: tiles.sort_by_tile(tile, num_tiles, gaussian, count))
  got = sort(jnp.asarray(tile), jnp.asarray(gaussian))
  np.testing.assert_array_equal(got[0], tile[order])
  np.testing.assert_array_equal(got[1], gaussian[order])


# --- overflow ---


@pytest.mark.parametrize('capacity', [16, 128])
def test_overflow_is_detected_and_the_needed_capacity_counted(capacity):
  scene = raster_scenes.random(scale=(3.0, 9.0))
  needed = len(listed_pairs(bin_small(scene.gaussians)))
  bins = bin_small(scene.gaussians, capacity=capacity)
  assert capacity < needed < BIN_CAPACITY
  assert bool(bins.overflowed) and capacity < bins.num_pairs <= 4 * needed
  # The count is exact if the list of tile rows does not overflow.
  assert capacity == 16 or bins.num_pairs == needed
  grown = bin_small(scene.gaussians, capacity=tiles.round_capacity(int(bins.num_pairs)))
  assert not grown.overflowed and grown.num_pairs == needed


@each_implementation
def test_no_gaussian_is_dropped_where_lists_overflow(name):
  scene = raster_scenes.random(scale=(3.0, 9.0))
  want, want_gradient = image_and_gradient('reference', scene)
  cotangent = np.random.default_rng(0).standard_normal(want.shape).astype(np.float32)

  @jax.jit
  def overflowing(gaussians):
    image, pullback = jax.vjp(
      lambda g: api.rasterize_within(
        g, height=scene.height, width=scene.width, capacity=16, implementation=name
      ),
      gaussians,
    )
    return image, pullback(cotangent)[0]

  image, gradient = overflowing(scene.gaussians)
  np.testing.assert_allclose(image, want, atol=1e-5)
  np.testing.assert_allclose(gradient.color, want_gradient.color, atol=1e-4)


def test_the_list_of_rows_overflows_before_that_of_pairs():
  # Where every Gaussian is in a single tile, there are as many rows as pairs, and less capacity.
  scene = raster_scenes.random(3000, scale=(0.1, 0.2))
  bins = bin_small(scene.gaussians, capacity=4096)
  assert bool(bins.overflowed) and bins.num_pairs > 4096
  bins = bin_small(scene.gaussians, capacity=tiles.round_capacity(int(bins.num_pairs)))
  assert not bins.overflowed and 2900 <= bins.num_pairs < 1.2 * 3000


@pytest.mark.parametrize(
  ('count', 'height', 'width', 'capacity'),
  # 2.4e9 rows of tiles; 6.6e5 rows, within the capacity, of 3,875 tiles each.
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
  # So the shared suite has a scene whose lists overflow.
  gaussians, height, width = raster_scenes.covering()
  rows, columns = tiles.grid(height, width)
  pairs = gaussians.num_gaussians * rows * columns
  assert tiles.initial_capacity(gaussians.num_gaussians, height, width) < pairs


def test_capacities_are_rounded_to_few_sizes():
  wanted = np.unique(np.geomspace(1, 1e7, 2000).astype(int))
  rounded = np.array([tiles.round_capacity(int(n)) for n in wanted])
  assert np.all(rounded >= wanted) and np.all(np.diff(rounded) >= 0)
  assert np.all(rounded <= np.maximum(1.25 * wanted, 2048))
  assert len(set(rounded.tolist())) <= 4 * math.log2(1e7)


@pytest.mark.parametrize(
  ('round_up', 'most'), [(tiles.round_side, 1.5), (tiles.round_gaussians, 2)]
)
def test_sides_and_numbers_are_rounded_to_few_sizes(round_up, most):
  rounded = [round_up(n) for n in range(1, 5000)]
  assert all(n <= up <= max(most * n, round_up(1)) for n, up in enumerate(rounded, start=1))
  assert rounded == sorted(rounded) and round_up(2048) == 2048
