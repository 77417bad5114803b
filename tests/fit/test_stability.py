"""Pictures that are no photographs, and any number of Gaussians: nothing runs away."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from cgvq_jax.fit.api import fit_image
from cgvq_jax.fit.driver import Hooks
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.fit.stages import BLOCK_STEPS
from cgvq_jax.rasterize.api import rasterize

HEIGHT, WIDTH = 40, 56
STEPS = 6 * BLOCK_STEPS  # enough to grow


def drawn(draw):
  canvas = Image.new('RGB', (WIDTH, HEIGHT), 'white')
  draw(ImageDraw.Draw(canvas))
  return np.asarray(canvas, np.float32) / 255


def gray(values):
  return np.repeat(np.asarray(values, np.float32)[..., None], 3, axis=-1)


Y, X = np.mgrid[:HEIGHT, :WIDTH]
SIZE = (HEIGHT, WIDTH, 3)
PICTURES = {
  'black': np.zeros(SIZE, np.float32),
  'white': np.ones(SIZE, np.float32),
  'noise': np.random.default_rng(0).random(SIZE, np.float32),
  'black-or-white noise': np.random.default_rng(1).integers(0, 2, SIZE).astype(np.float32),
  'text': drawn(
    lambda draw: [
      draw.text((1, y), 'Gaussians 0123', fill=ink)
      for y, ink in ((0, 'black'), (13, 'red'), (26, 'blue'))
    ]
  ),
  'line art': drawn(
    lambda draw: [draw.line((x, 0, WIDTH - x, HEIGHT), fill='black') for x in range(0, WIDTH, 7)]
  ),
  'checkerboard': gray((X + Y) % 2),
  'one white pixel': gray((X == 20) & (Y == 17)),
  'edge': gray(X > 20),
}


def fitted(picture, num_gaussians, steps=STEPS):
  """The Gaussians, and the PSNR after each block."""
  seen = []
  hooks = Hooks(on_block=lambda stage, state, progress: seen.append(progress.psnr))
  return fit_image(picture, num_gaussians, FitSettings(steps=steps), hooks), seen


def psnr_of(picture, other):
  return -10 * np.log10(max(np.mean(np.square(picture - other)), 1e-12))


def check_sane(gaussians, seen, picture):
  """Finite, of sizes and colours that a picture can use, and at the end about as good as ever."""
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gaussians))
  height, width, _ = picture.shape
  assert np.max(gaussians.log_scale) < np.log(4 * max(height, width))
  assert np.min(gaussians.log_scale) > np.log(0.03)
  assert np.max(np.abs(gaussians.color)) < 3
  rendered = np.clip(np.asarray(rasterize(gaussians, height, width)), 0, 1)
  psnr = psnr_of(picture, rendered)
  assert psnr > min(psnr_of(picture, picture.mean((0, 1))), 40) - 0.1  # no worse than its mean
  assert psnr > min(max(seen), 50) - 2
  return psnr


@pytest.mark.parametrize('name', list(PICTURES))
def test_any_picture(name):
  gaussians, seen = fitted(PICTURES[name], 200)
  check_sane(gaussians, seen, PICTURES[name])


@pytest.mark.parametrize(
  'name', ['text', *(pytest.param(name, marks=pytest.mark.slow) for name in ('noise', 'line art'))]
)
def test_one_gaussian_and_more_than_pixels(name):
  one, seen = fitted(PICTURES[name], 1)
  assert one.num_gaussians == 1
  psnr_of_one = check_sane(one, seen, PICTURES[name])
  many, seen = fitted(PICTURES[name], HEIGHT * WIDTH + 100)
  assert check_sane(many, seen, PICTURES[name]) > psnr_of_one + 10


def test_equal_seeds_are_equal_bits_on_noise():
  first, _ = fitted(PICTURES['noise'], 200)
  second, _ = fitted(PICTURES['noise'], 200)
  jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.slow
def test_a_huge_picture():
  y, x = np.mgrid[:3072, :4096]
  picture = gray(0.5 + 0.4 * np.sin(x / 90) * np.cos(y / 130))
  gaussians, seen = fitted(picture, 3000)
  assert check_sane(gaussians, seen, picture) > 22
