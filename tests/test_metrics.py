"""Quality metrics against independent formulations; rates against hand-made curves."""

from __future__ import annotations

import math

import bjontegaard
import numpy as np
import pytest
from scipy.signal import convolve2d
from skimage.metrics import structural_similarity

from cgvq_jax import metrics
from cgvq_jax.evaluate import curves, similarity

RNG = np.random.default_rng(0)


def _pair(height, width, channels, noise=12.0, seed=0):
  """A picture with structure at every scale, and a noisy, slightly darker copy of it."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width] / 40
  waves = [np.sin(x * (1 + c) + y) + np.cos(y * (2 - c / 2) * x / 2) for c in range(channels)]
  picture = 128 + 45 * np.stack(waves, -1) + rng.normal(0, 8, (height, width, channels))
  copy = 0.95 * picture + rng.normal(0, noise, picture.shape)
  return tuple(np.clip(image, 0, 255).astype(np.uint8) for image in (picture, copy))


def _on(background, image):
  """An RGBA image over a grey level, in float64, rounded to 8 bits."""
  share = image[..., 3:] / 255
  return np.rint(share * image[..., :3] + (1 - share) * background)


def test_psnr_of_a_known_error():
  reference = np.full((3, 5, 1), 100, np.uint8)
  assert metrics.psnr(reference, reference + 5) == pytest.approx(20 * math.log10(255 / 5))
  assert metrics.psnr(reference + 5, reference) == metrics.psnr(reference, reference + 5)
  assert metrics.psnr(reference, reference) == math.inf
  assert metrics.psnr(np.zeros_like(reference), np.full_like(reference, 255)) == 0


def test_psnr_of_rgba_is_that_of_its_composites():
  reference, decoded = _pair(20, 30, 4)
  errors = [_on(level, reference) - _on(level, decoded) for level in (0, 255)]
  expected = 10 * math.log10(255**2 / np.mean(np.square(errors)))
  assert metrics.psnr(reference, decoded) == pytest.approx(expected, abs=1e-9)


def test_colours_that_cannot_be_seen_do_not_count():
  reference, decoded = _pair(20, 30, 4)
  decoded[:10] = reference[:10]
  reference[10:, :, 3] = decoded[10:, :, 3] = 0
  assert metrics.psnr(reference, decoded) == math.inf
  assert similarity.ssim(reference, decoded) == pytest.approx(1, abs=1e-6)
  assert similarity.ms_ssim(reference, decoded) == pytest.approx(1, abs=1e-6)
  # An error of alpha alone is seen, on white under black and on black under white.
  black = np.zeros((4, 4, 4), np.uint8)
  assert metrics.psnr(black, black + np.uint8([0, 0, 0, 51])) == pytest.approx(
    10 * math.log10(2 * 25)
  )


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_ssim_matches_scikit_image(channels):
  reference, decoded = _pair(61, 83, channels)
  shown = [reference, decoded]
  if channels == 4:
    shown = [np.concatenate([_on(0, image), _on(255, image)], -1) for image in shown]
  expected = structural_similarity(
    *shown,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
    channel_axis=2,
    data_range=255,
  )
  assert 0.2 < expected < 0.9
  assert similarity.ssim(reference, decoded) == pytest.approx(expected, abs=1e-4)


def _ssim_in_numpy(a, b, kernel):
  """SSIM of two gray images in float64, and its contrast-structure part."""

  def mean(z):
    return convolve2d(z, kernel, mode='valid')

  a, b = a.astype(np.float64), b.astype(np.float64)
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  variance_a, variance_b = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
  structure = (2 * (mean(a * b) - mean(a) * mean(b)) + c2) / (variance_a + variance_b + c2)
  luminance = (2 * mean(a) * mean(b) + c1) / (mean(a) ** 2 + mean(b) ** 2 + c1)
  return (structure * luminance).mean(), structure.mean()


def _ms_ssim_in_numpy(reference, decoded, scales):
  """Wang et al. 2003 written out in float64: direct 2D windows, symmetric borders when halving."""
  taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
  kernel = np.outer(taps, taps) / taps.sum() ** 2
  weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
  weights /= weights.sum()

  def halve(z):
    z = np.pad(z, [(0, side % 2) for side in z.shape], mode='symmetric')
    return (z[::2, ::2] + z[1::2, ::2] + z[::2, 1::2] + z[1::2, 1::2]) / 4

  values = []
  for channel in range(reference.shape[2]):
    a, b = (image[..., channel].astype(np.float64) for image in (reference, decoded))
    product = 1.0
    for scale, weight in enumerate(weights):
      similarity, structure = _ssim_in_numpy(a, b, kernel)
      factor = similarity if scale == scales - 1 else structure
      product *= max(factor, 0) ** weight
      a, b = halve(a), halve(b)
    values.append(product)
  return np.mean(values)


@pytest.mark.parametrize(
  ('height', 'width', 'channels', 'scales'),
  [(161, 190, 1, 5), (177, 163, 3, 5), (160, 200, 1, 4), (21, 50, 4, 2), (20, 50, 3, 1)],
)
def test_ms_ssim_matches_numpy(height, width, channels, scales):
  reference, decoded = _pair(height, width, channels, noise=25)
  shown = [reference, decoded]
  if channels == 4:
    shown = [np.concatenate([_on(0, image), _on(255, image)], -1) for image in shown]
  expected = _ms_ssim_in_numpy(*shown, scales)
  assert 0.1 < expected < 0.98
  assert similarity.ms_ssim(reference, decoded) == pytest.approx(expected, abs=1e-4)


def test_similarity_is_one_at_equality_and_falls_with_noise():
  for metric in (similarity.ssim, similarity.ms_ssim):
    reference, _ = _pair(48, 48, 1)
    values = [metric(*_pair(48, 48, 1, noise=noise)) for noise in (2, 10, 40)]
    assert metric(reference, reference) == pytest.approx(1, abs=1e-6)
    assert 1 > values[0] > values[1] > values[2] > 0


def test_ms_ssim_of_a_negative_is_zero():
  reference, _ = _pair(48, 48, 1)
  assert similarity.ms_ssim(reference, 255 - reference) == 0  # not a power of a negative number


def test_ssim_of_one_pixel_compares_luminance():
  reference, decoded = np.array([[[100]]], np.uint8), np.array([[[50]]], np.uint8)
  c1 = (0.01 * 255) ** 2
  expected = (2 * 100 * 50 + c1) / (100**2 + 50**2 + c1)
  assert similarity.ssim(reference, decoded) == pytest.approx(expected, abs=1e-5)


def test_ssim_of_a_narrow_image_uses_a_smaller_window():
  taps = np.exp(-0.5 * (np.arange(-1, 2) / 1.5) ** 2)
  kernel = np.outer(taps, taps) / taps.sum() ** 2
  reference, decoded = _pair(4, 30, 1)
  expected = _ssim_in_numpy(reference[..., 0], decoded[..., 0], kernel)[0]
  assert similarity.ssim(reference, decoded) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 9, 3), (4, 4, 4), (10, 300, 1)])
def test_metrics_of_tiny_images(shape):
  reference = RNG.integers(0, 256, shape, np.uint8)
  for metric in (similarity.ssim, similarity.ms_ssim):
    assert metric(reference, reference) == pytest.approx(1, abs=1e-6)
    assert metric(reference, 255 - reference) < 0.999


@pytest.mark.parametrize('metric', [metrics.psnr, similarity.ssim, similarity.ms_ssim])
@pytest.mark.parametrize(
  ('decoded', 'message'),
  [
    (np.zeros((4, 5, 3), np.uint8), r'decoded: wanted the shape \(4, 4, 3\)'),
    (np.zeros((4, 4, 3), np.float32), 'decoded: wanted uint8 .*got float32'),
    (np.zeros((4, 4), np.uint8), r'decoded: wanted uint8 \[H, W, C\]'),
    (np.zeros((4, 4, 2), np.uint8), 'C = 1, 3 or 4'),
    (np.zeros((0, 4, 3), np.uint8), 'decoded: wanted'),
  ],
)
def test_metrics_refuse(metric, decoded, message):
  with pytest.raises(ValueError, match=message):
    metric(np.zeros((4, 4, 3), np.uint8), decoded)


def test_bpp():
  assert metrics.bpp(1000, 20, 40) == 10
  for bad in [(1, 0, 4), (1, 4, 0), (-1, 4, 4)]:
    with pytest.raises(ValueError, match='got'):
      metrics.bpp(*bad)


RATE, PSNR = [0.2, 0.5, 0.9, 1.8], [28.0, 31.0, 33.5, 37.0]


def test_bd_rate_of_scaled_rates():
  assert curves.bd_rate(RATE, PSNR, RATE, PSNR) == pytest.approx(0, abs=1e-9)
  half = [rate / 2 for rate in RATE]
  assert curves.bd_rate(half, PSNR, RATE, PSNR) == pytest.approx(-50)
  assert curves.bd_rate(RATE, PSNR, half, PSNR) == pytest.approx(100)


def test_bd_rate_by_hand():
  # ln rate is linear in PSNR on both curves; in the overlap, 30..34 dB, a costs 1/2 of b at one end
  # and 1/8 at the other, so 1/4 in the geometric mean.
  rate_b, psnr_b = [1, 16], [30, 34]
  rate_a, psnr_a = [0.25, 0.5, 2, 4], [28, 30, 34, 36]
  assert curves.bd_rate(rate_a, psnr_a, rate_b, psnr_b) == pytest.approx(-75)


# Of the `bjontegaard` package's page: libx265 at two presets.
PUBLISHED = (
  [9787.80, 4469.00, 2451.52, 1356.24],
  [40.121, 38.651, 36.970, 34.987],
  [9487.76, 4593.60, 2486.44, 1358.24],
  [40.037, 38.615, 36.845, 34.851],
)


@pytest.mark.parametrize('points', [PUBLISHED, (*PUBLISHED[2:], *PUBLISHED[:2])])
def test_bd_rate_is_that_of_the_standards_sheet(points):
  """The package's PCHIP agrees with the common test conditions' Excel sheet to ten digits."""
  rate_a, psnr_a, rate_b, psnr_b = points
  wanted = bjontegaard.bd_rate(rate_b, psnr_b, rate_a, psnr_a, method='pchip', min_overlap=0)
  assert abs(wanted) > 1
  assert curves.bd_rate(*points) == pytest.approx(wanted, rel=1e-9)


def test_bd_rate_between_two_rates():
  # ln rate is linear in PSNR: a costs as much as b at 30 dB and a quarter at 34 dB.
  points = [1, 4], [30, 34], [1, 16], [30, 34]
  assert curves.bd_rate(*points) == pytest.approx(-50)
  assert curves.bd_rate(*points, rate_range=(1, 4)) == pytest.approx(100 * (2**-0.5 - 1))
  assert curves.bd_rate(*points, rate_range=(4, 99)) == pytest.approx(100 * (2**-1.5 - 1))
  assert curves.bd_rate(*points, rate_range=(0.1, 99)) == pytest.approx(-50)
  for nothing in ((0.1, 0.5), (17, 20), (4, 4)):
    with pytest.raises(ValueError, match='overlap'):
      curves.bd_rate(*points, rate_range=nothing)


def test_bd_rate_directions_are_reciprocal():
  other = [0.3, 0.6, 0.8, 2.5], [27.0, 32.0, 33.0, 38.0]
  there = curves.bd_rate(RATE, PSNR, *other) / 100
  back = curves.bd_rate(*other, RATE, PSNR) / 100
  assert (1 + there) * (1 + back) == pytest.approx(1) and abs(there) > 0.01


def test_bd_rate_ignores_order_and_duplicates():
  shuffled = [1.8, 0.2, 0.9, 0.5, 0.5, 0.7], [37.0, 28.0, 33.5, 31.0, 31.0, 31.0]
  assert curves.bd_rate(*shuffled, RATE, PSNR) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
  ('rate', 'psnr', 'message'),
  [
    ([0.5], [30.0], 'wanted 2 points'),
    ([0.5, 0.6], [30.0, 30.0], 'wanted 2 points'),
    ([0.5, 0.6], [38.0, 40.0], 'overlap'),
    ([0.5, 0.6], [37.0, 40.0], 'overlap'),
    ([0.0, 0.6], [30.0, 31.0], 'positive rates'),
    ([0.5, 0.6], [30.0, math.inf], 'finite qualities'),
    ([0.5, 0.6], [30.0], 'one quality a rate'),
  ],
)
def test_bd_rate_refuses(rate, psnr, message):
  with pytest.raises(ValueError, match=message):
    curves.bd_rate(rate, psnr, RATE, PSNR)


def test_rate_at():
  assert curves.rate_at(31.0, RATE, PSNR) == pytest.approx(0.5)
  assert curves.rate_at(32.0, [1, 16], [30, 34]) == pytest.approx(4)
  for outside in (27.9, 37.1):
    with pytest.raises(ValueError, match='as measured'):
      curves.rate_at(outside, RATE, PSNR)
