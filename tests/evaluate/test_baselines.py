"""Other codecs as real files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cgvq_jax import metrics
from cgvq_jax.evaluate import baselines
from cgvq_jax.io import images


def _pixels(channels, height=48, width=64):
  y, x = np.mgrid[:height, :width] / 9
  waves = [128 + 70 * np.sin(x * (1 + c / 3) + y) * np.cos(y - c) for c in range(channels)]
  noise = np.random.default_rng(0).normal(0, 6, (height, width, channels))
  return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize('codec', baselines.CODECS)
@pytest.mark.parametrize('channels', [1, 3])
def test_points_are_measured_on_real_files(codec, channels):
  pixels = _pixels(channels)
  qualities = baselines.CODECS[codec].qualities[2::4]
  rows = baselines.points(pixels, codec, 'waves', qualities=qualities)
  assert [row['quality'] for row in rows] == [*qualities]
  for row in rows:
    assert row['image'] == 'waves' and row['method'] == codec
    assert row['bpp'] == metrics.bpp(row['bytes'], 48, 64)
    assert 0.2 < row['ssim'] < 1 and 0.1 < row['ms_ssim'] < 1
    assert row['encode_seconds'] > 0 and row['decode_seconds'] > 0
  for key in ('bytes', 'psnr', 'ssim', 'ms_ssim'):
    values = [row[key] for row in rows]
    assert values == sorted(values) and values[0] < values[-1]
  assert 15 < rows[0]['psnr'] < rows[2]['psnr'] < 50


def test_every_quality_is_another_file():
  pixels = _pixels(3, 96, 144)
  for codec, known in baselines.CODECS.items():
    rows = baselines.points(pixels, codec)
    assert [row['quality'] for row in rows] == [*known.qualities]
    assert len({row['bytes'] for row in rows}) > len(rows) / 2


def test_alpha_is_kept_by_webp_and_left_out_by_jpeg():
  pixels = _pixels(4)
  pixels[:24, :, 3] = 0  # colour under transparent pixels counts, so the codec has to keep it
  (row,) = baselines.points(pixels, 'WebP', qualities=(90,))
  assert row['psnr'] > 28
  assert baselines.points(pixels, 'JPEG') == []
  assert baselines.at_bytes(pixels, 'JPEG', 10**6) is None


def test_side_beyond_the_format_has_no_points():
  assert baselines.points(np.zeros((1, 16384, 3), np.uint8), 'WebP', qualities=(50,)) == []
  assert len(baselines.points(np.zeros((1, 16384, 3), np.uint8), 'JPEG', qualities=(50,))) == 1
  assert baselines.at_bytes(np.zeros((1, 65501, 1), np.uint8), 'JPEG', 10**6) is None


@pytest.mark.parametrize('name', ['JPEG 2000', 'jpeg2000', 'JPEG-2000', 'Jpeg2000'])
def test_names_are_found_without_case_spaces_and_hyphens(name):
  assert baselines.canonical(name) == 'JPEG 2000'
  assert [baselines.canonical(codec) for codec in baselines.CODECS] == [*baselines.CODECS]


def test_what_a_format_cannot_hold_is_said():
  assert baselines.obstacle((9, 9, 4), 'JPEG') == 'cannot store transparency'
  assert baselines.obstacle((9, 16384, 3), 'WebP') == 'cannot store sides of more than 16383 px'
  assert baselines.obstacle((9, 16384, 3), 'JPEG') is None


def test_unknown_codec():
  with pytest.raises(ValueError, match="wanted one of JPEG, WebP, AVIF, JPEG 2000, got 'PNG'"):
    baselines.canonical('PNG')
  with pytest.raises(ValueError, match="wanted one of JPEG, WebP, AVIF, JPEG 2000, got 'PNG'"):
    baselines.points(_pixels(3), 'PNG')
  with pytest.raises(ValueError, match="got 'PNG'"):
    baselines.at_bytes(_pixels(3), 'PNG', 1000)


@pytest.mark.parametrize('channels', [1, 3])
def test_a_jpeg_at_bytes_is_the_largest_that_fits(channels):
  pixels = _pixels(channels)
  sizes = {}
  for quality in range(1, 96):
    buffer = io.BytesIO()
    picture = images.to_picture(pixels)
    picture.save(buffer, 'JPEG', quality=quality, optimize=True, progressive=True)
    sizes[quality] = len(buffer.getvalue())
  for wanted in (sizes[1], sizes[40], sizes[40] - 1, sizes[95], 10**6):
    data, decoded = baselines.at_bytes(pixels, 'JPEG', wanted)
    assert len(data) == max(size for size in sizes.values() if size <= wanted)
    with Image.open(io.BytesIO(data)) as image:
      assert image.format == 'JPEG' and image.info['progressive']
      np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), decoded)
  assert baselines.at_bytes(pixels, 'JPEG', min(sizes.values()) - 1) is None


@pytest.mark.parametrize('codec', baselines.CODECS)
def test_at_bytes_comes_close(codec):
  pixels = _pixels(3)
  for row in baselines.points(pixels, codec):
    data, decoded = baselines.at_bytes(pixels, codec, row['bytes'])
    assert 0.8 * row['bytes'] < len(data) <= row['bytes']
    assert metrics.psnr(pixels, decoded) > row['psnr'] - 0.5
