"""Initial Gaussians: their ranges, and more of them where the image changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgvq_jax.fit import initialize

INITIALIZERS = {f.__name__: f for f in (initialize.gradient_guided, initialize.random)}
HEIGHT, WIDTH, NUM_GAUSSIANS = 48, 64, 2000

each_initializer = pytest.mark.parametrize('name', list(INITIALIZERS))


def start(name, image, num_gaussians, seed=0):
  return INITIALIZERS[name](jax.random.key(seed), jnp.asarray(image, jnp.float32), num_gaussians)


def guided(image, seed=0, num_gaussians=NUM_GAUSSIANS, **options):
  """`gradient_guided` with options, of an image or a colour."""
  image = np.broadcast_to(np.asarray(image, np.float32), (HEIGHT, WIDTH, 3))
  options = {'uniform_share': 0.1} | options
  return initialize.gradient_guided(jax.random.key(seed), image, num_gaussians, **options)


@pytest.fixture(scope='module')
def half_textured():
  """Flat on the left, noise on the right."""
  image = np.full((HEIGHT, WIDTH, 3), 0.5, np.float32)
  image[:, WIDTH // 2 :] = np.random.default_rng(0).random((HEIGHT, WIDTH // 2, 3))
  return image


@each_initializer
def test_a_numpy_image_gives_what_a_jax_image_gives(name, half_textured):
  initializer = INITIALIZERS[name]
  gaussians = initializer(jax.random.key(0), half_textured, NUM_GAUSSIANS)
  same = initializer(jax.random.key(0), jnp.asarray(half_textured), NUM_GAUSSIANS)
  jax.tree.map(np.testing.assert_array_equal, gaussians, same)


def check(gaussians, shape, num_gaussians):
  height, width, channels = shape
  assert gaussians.mean_xy.shape == gaussians.log_scale.shape == (num_gaussians, 2)
  assert gaussians.rotation.shape == (num_gaussians,)
  assert gaussians.color.shape == (num_gaussians, channels)
  for leaf in jax.tree.leaves(gaussians):
    assert leaf.dtype == np.float32 and np.all(np.isfinite(leaf))
  assert np.all(gaussians.mean_xy >= 0) and np.all(gaussians.mean_xy <= np.array([width, height]))


@each_initializer
@pytest.mark.parametrize(
  ('shape', 'num_gaussians'),
  [
    ((1, 1, 4), 1),
    ((1, 50, 3), 20),
    ((17, 3, 1), 400),  # more Gaussians than pixels
  ],
)
def test_any_size_and_number(name, shape, num_gaussians):
  image = np.random.default_rng(1).random(shape)
  check(start(name, image, num_gaussians), shape, num_gaussians)


@each_initializer
@pytest.mark.parametrize('level', [0.0, 0.5, 1.0])
def test_flat_images(name, level):
  shape = (HEIGHT, WIDTH, 3)
  gaussians = start(name, np.full(shape, level), NUM_GAUSSIANS)
  check(gaussians, shape, NUM_GAUSSIANS)
  # No gradient to follow, so the density is uniform: each quarter has its share.
  right, below = np.array(gaussians.mean_xy > np.array([WIDTH / 2, HEIGHT / 2])).T
  quarters = np.bincount(2 * below + right, minlength=4) / NUM_GAUSSIANS
  np.testing.assert_allclose(quarters, 0.25, atol=0.03)


@each_initializer
def test_the_result_depends_on_the_key_alone(name, half_textured):
  one, same, other = (start(name, half_textured, NUM_GAUSSIANS, seed) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, same)
  assert np.mean(one.mean_xy == other.mean_xy) < 0.01


# --- gradient-guided ---


def test_gradient_magnitude_by_hand():
  y, x = np.mgrid[:6, :8].astype(np.float32)
  ramp = np.stack([3 * x, 4 * y, 0 * x], axis=-1)
  magnitude = initialize.gradient_magnitude(ramp)
  np.testing.assert_allclose(magnitude[1:-1, 1:-1], 5)  # sqrt(3^2 + 4^2)
  np.testing.assert_allclose(magnitude[0, 1:-1], np.hypot(3, 2))  # half the step at a border
  np.testing.assert_allclose(magnitude[1:-1, -1], np.hypot(1.5, 4))
  np.testing.assert_allclose(magnitude[0, 0], 2.5)


@pytest.mark.parametrize(('uniform_share', 'want'), [(0.1, 0.95), (0.5, 0.75), (1.0, 0.5)])
def test_density_follows_the_gradient(half_textured, uniform_share, want):
  gaussians = guided(half_textured, uniform_share=uniform_share)
  textured = np.asarray(gaussians.mean_xy[:, 0] >= WIDTH / 2 - 1)
  assert np.mean(textured) == pytest.approx(want, abs=0.03)
  if uniform_share < 1:
    scale = np.asarray(gaussians.log_scale[:, 0])
    assert np.median(scale[textured]) < np.median(scale[~textured])


def test_pixels_are_drawn_by_their_own_gradient():
  # A ramp that is steep in its third quarter.
  slopes = np.repeat([1.0, 3.0, 9.0, 3.0], 16)
  image = np.broadcast_to(np.cumsum(slopes)[None, :, None] / 350, (HEIGHT, WIDTH, 1))
  gaussians = guided(image, uniform_share=0.0)
  density = initialize.gradient_magnitude(image).sum(0)
  column = np.floor(np.asarray(gaussians.mean_xy[:, 0])).astype(int)
  drawn = np.bincount(column, minlength=WIDTH) / NUM_GAUSSIANS
  np.testing.assert_allclose(drawn, density / density.sum(), atol=0.015)


def test_each_band_of_rows_has_its_share_within_one():
  # Sampling is systematic: no band of the image is left out by chance.
  image = np.random.default_rng(2).random((HEIGHT, WIDTH, 1)).astype(np.float32)
  magnitude = initialize.gradient_magnitude(image).astype(np.float64)
  want = NUM_GAUSSIANS * np.cumsum(magnitude.sum(1)) / magnitude.sum()
  row = np.floor(np.asarray(guided(image, uniform_share=0.0).mean_xy[:, 1])).astype(int)
  got = np.cumsum(np.bincount(row, minlength=HEIGHT))
  assert np.all(np.abs(got - want) <= 1.01)


def test_pixels_without_a_gradient_are_not_drawn():
  image = np.zeros((HEIGHT, WIDTH, 1), np.float32)
  image[10:20, 30:] = 1  # an edge in the middle, a flat rest
  for seed in range(3):
    gaussians = guided(image, seed, uniform_share=0.0)
    column, row = np.floor(np.asarray(gaussians.mean_xy)).astype(int).T
    magnitude = initialize.gradient_magnitude(image)
    assert np.all(magnitude[row, column] > 0)


def test_scale_is_the_distance_to_neighbours():
  gaussians = guided(0.5, relative_scale=0.7)
  want = np.log(0.7 * np.sqrt(HEIGHT * WIDTH / NUM_GAUSSIANS))
  np.testing.assert_allclose(gaussians.log_scale, want, rtol=1e-5)
  assert np.all(gaussians.rotation == 0)


def test_scale_is_neither_below_a_pixel_nor_above_the_image(half_textured):
  crowd = guided(half_textured, relative_scale=0.1)
  few = guided(half_textured, num_gaussians=1, relative_scale=10.0)
  assert np.all(np.exp(crowd.log_scale) >= 0.3 - 1e-6)
  assert np.all(np.exp(few.log_scale) <= 10 * np.hypot(HEIGHT, WIDTH) * (1 + 1e-6))


def test_colour_is_a_share_of_the_pixel_under_the_mean():
  image = np.random.default_rng(3).random((HEIGHT, WIDTH, 3)).astype(np.float32)
  gaussians = guided(image, color_share=0.25)
  column, row = np.floor(np.asarray(gaussians.mean_xy)).astype(int).T
  np.testing.assert_allclose(gaussians.color, 0.25 * image[row, column], rtol=1e-6)


# --- random ---


def test_random_has_the_ranges_of_the_papers():
  gaussians = start('random', np.zeros((HEIGHT, WIDTH, 3)), NUM_GAUSSIANS)
  x, y = np.asarray(gaussians.mean_xy).T
  columns = {
    'x': (x, 0, WIDTH),
    'y': (y, 0, HEIGHT),
    'scale': (np.exp(gaussians.log_scale).ravel(), 0.5, 1.5),
    'rotation': (gaussians.rotation, 0, 2 * np.pi),
    'color': (np.asarray(gaussians.color).ravel(), 0, 1),
  }
  for name, (values, low, high) in columns.items():
    quantiles = np.quantile((np.asarray(values) - low) / (high - low), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [0, 0.25, 0.5, 0.75, 1], atol=0.04, err_msg=name)
  assert not np.any(gaussians.log_scale[:, 0] == gaussians.log_scale[:, 1])
