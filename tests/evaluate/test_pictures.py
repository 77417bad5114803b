"""Figures by what they show."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cgvq_jax.evaluate import pictures, plots
from cgvq_jax.io import images
from cgvq_jax.primitives.trees import Gaussians


def _gaussians(count, channels=3):
  rng = np.random.default_rng(0)
  return Gaussians(
    mean_xy=rng.uniform(0, 40, (count, 2)).astype(np.float32),
    log_scale=rng.normal(0, 0.5, (count, 2)).astype(np.float32),
    rotation=rng.uniform(0, 3, count).astype(np.float32),
    color=rng.normal(0, 1, (count, channels)).astype(np.float32),
  )


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_side_by_side_writes_a_picture(tmp_path, channels):
  original = np.random.default_rng(0).integers(0, 256, (30, 40, channels), np.uint8)
  path = tmp_path / 'a.png'
  gaussians = _gaussians(50, channels)
  title = 'of a file named $\\x$'
  figure = pictures.side_by_side(original, original, gaussians, np.arange(50) % 4, title)
  plots.save_figure(figure, path)
  assert list(tmp_path.iterdir()) == [path] and images.load(path).pixels.std() > 0.1


def test_side_by_side_panels():
  original = np.zeros((30, 40, 4), np.uint8)
  original[..., 3] = [[0] * 20 + [255] * 20] * 30
  decoded = original.copy()
  decoded[..., 0] += 10  # invisible on the left, where alpha is 0
  gaussians, labels = _gaussians(4000), np.arange(4000) % 7
  axes = pictures.side_by_side(original, decoded, gaussians, labels, 'title').axes
  np.testing.assert_array_equal(axes[0].images[0].get_array()[0, [0, -1]], [[255] * 3, [0] * 3])
  np.testing.assert_array_equal(axes[2].images[0].get_array()[0, [0, -1]], [[0] * 3, [40, 0, 0]])
  assert axes[2].get_title() == 'error: |difference| x 4'
  assert axes[3].get_title() == '3,000 strongest of 4,000 Gaussians, 1 sigma; 7 groups'
  assert axes[3].get_ylim() == (30, 0) and axes[3].get_xlim() == (0, 40)


def test_side_by_side_refuses():
  original, gaussians = np.zeros((30, 40, 3), np.uint8), _gaussians(5)
  with pytest.raises(ValueError, match=r'decoded: wanted the shape \(30, 40, 3\)'):
    pictures.side_by_side(original, original[1:], gaussians, np.zeros(5, int), '')
  with pytest.raises(ValueError, match=r'labels: wanted \[5\], got shape \(4,\)'):
    pictures.side_by_side(original, original, gaussians, np.zeros(4, int), '')


def test_strongest_ellipses_are_kept():
  gaussians = Gaussians(
    mean_xy=np.array([[1, 1], [2, 2], [3, 3]], np.float32),
    log_scale=np.log(np.array([[1, 1], [3, 3], [2, 2]], np.float32)),
    rotation=np.zeros(3, np.float32),
    color=np.array([[0.1, -9.0], [0.1, 0.2], [0.0, 0.3]], np.float32),  # area x colour: 9, 1.8, 1.2
  )
  axes = Figure().subplots()
  assert pictures.draw_ellipses(axes, gaussians, np.zeros(3, int), most=2) == 2
  np.testing.assert_array_equal(axes.collections[0].get_offsets(), [[1, 1], [2, 2]])


def test_ellipses_follow_the_image_convention():
  # y points down and rotation turns from +x to +y: at 30 degrees the long axis runs down right.
  gaussians = Gaussians(
    mean_xy=np.array([[50, 50]], np.float32),
    log_scale=np.log(np.array([[30, 3]], np.float32)),
    rotation=np.array([np.pi / 6], np.float32),
    color=np.ones((1, 3), np.float32),
  )
  figure = Figure(figsize=(4, 4), dpi=100)
  axes = figure.add_axes((0, 0, 1, 1))
  axes.axis('off')
  axes.set(xlim=(0, 100), ylim=(100, 0))
  pictures.draw_ellipses(axes, gaussians, np.zeros(1, int))
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  ink = np.asarray(canvas.buffer_rgba())[..., :3].min(-1) < 200  # [400, 400], 4 px a unit
  y, x = (np.argwhere(ink) + 0.5).T / 4 - 50
  radius = np.hypot(x, y)
  tip = np.argmax(radius)
  assert radius[tip] == pytest.approx(30, abs=0.5) and radius.min() == pytest.approx(3, abs=0.5)
  assert np.tan(np.pi / 6) == pytest.approx(y[tip] / x[tip], abs=0.03)


def test_worst_tiles_are_those_of_the_first():
  original = np.zeros((200, 300, 3), np.uint8)  # three rows of four tiles, the last ones overlap
  ours, other = original.copy(), original.copy()
  ours[96:192, 192:288] = 20  # the worst, then the one above
  ours[:96, 192:288, 0] = 20
  ours[199] = 1
  other[:96, :96] = 255
  figure = pictures.worst_tiles(original, {'ours': ours, 'other': other})
  axes = np.reshape(figure.axes, (4, 3))
  assert [a.get_title() for a in axes[0]] == ['original', 'ours', 'other']
  assert [a.get_xlabel() for a in axes[0]] == ['x 192, y 96', '22.11 dB', 'inf dB']
  assert [a.get_xlabel() for a in axes[1]][:2] == ['x 192, y 0', '26.88 dB']
  np.testing.assert_array_equal(axes[0, 1].images[0].get_array(), np.full((96, 96, 3), 20))


@pytest.mark.parametrize('shape', [(1, 1, 1), (40, 100, 4), (96, 200, 3)])
def test_worst_tiles_of_small_images(tmp_path, shape):
  original = np.full(shape, 255, np.uint8)
  plots.save_figure(pictures.worst_tiles(original, {'one': original}), tmp_path / 'a.png')
  assert images.load(tmp_path / 'a.png').pixels.std() > 0


def test_worst_tiles_refuse():
  original = np.zeros((30, 40, 3), np.uint8)
  with pytest.raises(ValueError, match=r'two: wanted the shape \(30, 40, 3\)'):
    pictures.worst_tiles(original, {'one': original, 'two': original[1:]})
  with pytest.raises(ValueError, match='wanted one image or more'):
    pictures.worst_tiles(original, {})
