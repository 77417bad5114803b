"""Rendering without JAX: the NumPy renderer, and the choice of a renderer."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from cgvq_jax.extensions import Registry
from cgvq_jax.primitives.geometry import CUTOFF
from cgvq_jax.rasterize import numpy_renderer, reference, renderers

# --- the NumPy renderer; test_rasterize has it in the shared suite ---


def needed(scene):
  """Pixels [H, W] that some Gaussian reaches, and those where float32 may decide otherwise."""
  mean, log_scale, rotation = (
    np.asarray(getattr(scene.gaussians, a), np.float64)
    for a in ('mean_xy', 'log_scale', 'rotation')
  )
  y, x = np.mgrid[: scene.height, : scene.width] + 0.5
  dx, dy = x[..., None] - mean[:, 0], y[..., None] - mean[:, 1]
  along = (np.cos(rotation) * dx + np.sin(rotation) * dy) / np.exp(log_scale[:, 0])
  across = (np.cos(rotation) * dy - np.sin(rotation) * dx) / np.exp(log_scale[:, 1])
  q = (along**2 + across**2) / 2
  return np.any(q <= CUTOFF, axis=-1), np.any(np.abs(q - CUTOFF) < 5e-3, axis=-1)


@st.composite
def drawn_scenes(draw):
  """Ellipses of any shape, partly outside of the image, and images of several sizes."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  height, width = draw(st.sampled_from([(1, 1), (1, 70), (33, 2), (16, 32), (47, 50)]))
  count = draw(st.integers(1, 12))
  low = draw(st.floats(np.log(0.05), np.log(300)))
  high = draw(st.floats(low, np.log(300)))
  return raster_scenes.make(
    rng.uniform(-30, [width + 30, height + 30], (count, 2)),
    np.exp(rng.uniform(low, high, (count, 2))),
    rng.choice([0, np.pi / 4, np.pi / 2, 1.1], count) + rng.choice([0, 1e-4, 0.3], count),
    rng.uniform(0.5, 1, (count, 3)),
    height,
    width,
  )


@settings(max_examples=60, deadline=None)
@given(drawn_scenes())
def test_no_gaussian_misses_a_pixel_that_it_reaches(scene):
  want = np.asarray(reference.rasterize(*scene))
  got = numpy_renderer.rasterize(*scene)
  reached, close = needed(scene)
  # A missing Gaussian would be seen: colours are at least 0.5 and weights at least 1/255.
  np.testing.assert_allclose(got[~close], want[~close], atol=0.4 / 255)
  assert np.all(got[reached & ~close] > 0.4 / 255) and np.all(got[~reached & ~close] == 0)


def test_lists_of_any_length_are_rendered_in_bounded_memory():
  # 307,200 pairs, of 300 x 1,024 tiles: more than are listed at a time. All Gaussians at all pixels
  # would take 300 MiB.
  scene = raster_scenes.random(300, 512, 512, seed=14, scale=(200, 400))
  numpy_renderer.rasterize(*raster_scenes.single_pixel())
  tracemalloc.start()
  got = numpy_renderer.rasterize(*scene)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 64 * 2**20
  corner = scene._replace(height=16, width=24)
  want = np.asarray(reference.rasterize(*corner))
  np.testing.assert_allclose(got[:16, :24], want, atol=1e-5 * np.abs(want).max())
  mean_xy = scene.gaussians.mean_xy - jnp.array([488.0, 496.0])
  corner = corner._replace(gaussians=scene.gaussians.replace(mean_xy=mean_xy))
  want = np.asarray(reference.rasterize(*corner))
  np.testing.assert_allclose(got[496:, 488:], want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize('scene', ['outside', 'single_pixel', 'enormous'])
def test_arrays_of_numpy_and_of_float64_are_rendered_alike(scene):
  scene = raster_scenes.SCENES[scene]()
  fields = ('mean_xy', 'log_scale', 'rotation', 'color')
  doubles = {a: np.asarray(getattr(scene.gaussians, a), np.float64) for a in fields}
  got = numpy_renderer.rasterize(scene.gaussians.replace(**doubles), *scene[1:])
  assert got.dtype == np.float32 and got.flags.c_contiguous
  np.testing.assert_array_equal(got, numpy_renderer.rasterize(*scene))


def test_nothing_in_view_is_black():
  scene = raster_scenes.make([[-50, -50], [500, 20]], [[2, 2], [3, 1]], [0, 1], [[1.0], [1.0]])
  got = numpy_renderer.rasterize(*scene)
  assert got.shape == (raster_scenes.HEIGHT, raster_scenes.WIDTH, 1) and not got.any()


# --- the choice of a renderer ---


def scene_of_numpy():
  scene = raster_scenes.one_gaussian()
  fields = ('mean_xy', 'log_scale', 'rotation', 'color')
  arrays = {a: np.asarray(getattr(scene.gaussians, a)) for a in fields}
  return scene._replace(gaussians=scene.gaussians.replace(**arrays))


@pytest.mark.parametrize(
  ('num_gaussians', 'height', 'width'), [(10_000, 512, 768), (1, 1, 1), (300_000, 3000, 4000)]
)
def test_photographs_are_rendered_by_numpy(num_gaussians, height, width):
  renderer = renderers.renderer_for(num_gaussians, height, width)
  assert renderer is renderers.RENDERERS['numpy']


def test_the_work_alone_decides():
  largest = renderers.MAX_NUMPY_WORK
  for num_gaussians in (1, 10, 1000):
    pixels = largest // num_gaussians
    numpy = renderers.renderer_for(num_gaussians, pixels, 1)
    jax = renderers.renderer_for(num_gaussians, 1, pixels + 1)
    assert numpy is renderers.RENDERERS['numpy'] and jax is renderers.RENDERERS['jax']


@pytest.mark.parametrize('name', ['numpy', 'jax'])
def test_a_name_overrules_the_work(name):
  for size in ((1, 1, 1), (10**6, 65_535, 65_535)):
    assert renderers.renderer_for(*size, name=name) is renderers.RENDERERS[name]


def test_an_unknown_renderer_is_an_error():
  with pytest.raises(ValueError, match="renderer: wanted one of numpy, jax, got 'cuda'"):
    renderers.render(*scene_of_numpy(), name='cuda')


@pytest.mark.parametrize('name', [None, 'numpy', 'jax'])
def test_renderers_agree(name):
  scene = scene_of_numpy()
  got = renderers.render(*scene, name=name)
  assert isinstance(got, np.ndarray) and got.dtype == np.float32
  np.testing.assert_allclose(got, reference.rasterize(*scene), atol=1e-5)


@pytest.fixture
def registry(monkeypatch):
  monkeypatch.setattr(renderers, 'RENDERERS', Registry('renderer', renderers.RENDERERS))


def test_a_registered_renderer_is_used(registry):
  renderers.RENDERERS.register(
    'grey', lambda gaussians, height, width: np.full((height, width, 3), 0.5)
  )
  assert np.all(renderers.render(*scene_of_numpy(), name='grey') == 0.5)
  with pytest.raises(ValueError, match="wanted one of numpy, jax, grey, got 'gray'"):
    renderers.renderer_for(1, 1, 1, name='gray')


def test_a_name_is_registered_once(registry):
  with pytest.raises(ValueError, match="renderer 'numpy': wanted a new name"):
    renderers.RENDERERS.register('numpy', reference.rasterize)


def test_a_renderer_of_another_shape_is_an_error(registry):
  renderers.RENDERERS.register('flat', lambda gaussians, height, width: np.zeros((height, width)))
  with pytest.raises(ValueError, match=r'wanted an image of shape \(40, 56, 3\), got \(40, 56\)'):
    renderers.render(*scene_of_numpy(), name='flat')


def test_rendering_by_numpy_imports_no_jax():
  program = """
import sys
import numpy as np
from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.extensions import Registry
from cgvq_jax.rasterize import renderers
gaussians = Gaussians(np.ones((1, 2)), np.zeros((1, 2)), np.zeros(1), np.ones((1, 3)))
assert renderers.render(gaussians, 2, 2).max() > 0
print([name for name in ('jax', 'flax', 'optax', 'scipy', 'jaxtyping') if name in sys.modules])
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'
