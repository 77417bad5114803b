"""Composites, and colours under transparent pixels."""

from __future__ import annotations

import numpy as np
import pytest

from cgvq_jax import alpha

RNG = np.random.default_rng(0)


def test_composites_are_what_is_seen_on_black_and_on_white():
  levels = np.arange(256, dtype=np.uint8)
  image = np.stack(np.meshgrid(levels, levels, indexing='ij'), -1)[..., [0, 0, 0, 1]]
  share = image[..., 3:] / 255
  on_black, on_white = np.split(alpha.composites(image), 2, axis=-1)
  np.testing.assert_array_equal(on_black, np.rint(share * image[..., :3]))
  np.testing.assert_array_equal(on_white, np.rint(share * image[..., :3] + 255 * (1 - share)))


def _noise_around(visible):
  """Noise at random alpha where `visible` [H, W] says so, and noise at alpha 0 elsewhere."""
  image = RNG.random((*visible.shape, 4), np.float32)
  image[..., 3] = np.where(visible, 0.1 + 0.9 * image[..., 3], 0)
  return image


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (8, 1), (7, 13), (32, 33)])
def test_visible_pixels_and_alpha_are_kept(shape):
  visible = RNG.random(shape) < 0.5
  image = _noise_around(visible)
  before = image.copy()
  filled = alpha.fill_hidden(image)
  np.testing.assert_array_equal(image, before)
  np.testing.assert_array_equal(filled[visible], image[visible])
  np.testing.assert_array_equal(filled[..., 3], image[..., 3])
  assert filled.dtype == np.float32 and np.isfinite(filled).all()
  assert filled.min() >= 0 and filled.max() <= 1


def test_one_colour_continues_as_it_is():
  visible = np.zeros((21, 34), bool)
  visible[3:8, 20:30] = True
  image = _noise_around(visible)
  image[visible, :3] = 0.2, 0.5, 0.9
  filled = alpha.fill_hidden(image)
  assert np.abs(filled[..., :3] - np.float32([0.2, 0.5, 0.9])).max() < 1e-6


def test_the_fill_is_smooth_and_near_its_neighbours():
  visible = np.zeros((64, 64), bool)
  visible[:, :16] = visible[:, 48:] = True
  image = _noise_around(visible)
  image[:, :16, :3], image[:, 48:, :3] = 0, 1
  filled = alpha.fill_hidden(image)[..., :3]
  steps = np.abs(np.diff(filled, axis=1))
  assert steps.max() < 0.25 < steps[:, 15:48].sum(1).min()
  assert np.diff(filled, axis=1).min() > -1e-6  # from black to white
  assert filled[:, 16].max() < 0.25 and filled[:, 47].min() > 0.75


def test_hidden_colours_have_no_influence():
  visible = RNG.random((16, 16)) < 0.3
  image = _noise_around(visible)
  other = np.where(visible[..., None], image, RNG.random((16, 16, 4)))
  other[..., 3] = image[..., 3]
  np.testing.assert_array_equal(alpha.fill_hidden(image), alpha.fill_hidden(other.astype('f4')))


def test_nothing_visible_is_black():
  filled = alpha.fill_hidden(_noise_around(np.zeros((5, 6), bool)))
  np.testing.assert_array_equal(filled, np.zeros((5, 6, 4)))


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_images_without_hidden_pixels_are_returned(channels):
  image = 1 - RNG.random((5, 6, channels), np.float32)
  assert alpha.fill_hidden(image) is image
