"""Rows of a made-up run and of a made-up baseline codec, whose means and BD-rates are known."""

from __future__ import annotations


def row(image, method, gaussians, bpp, psnr, **changes):
  columns = {
    'image': image,
    'method': method,
    'setting': str(gaussians),
    'num_gaussians': gaussians,
    'num_clusters': 1 if method == 'gi' else 16,
    'fit_steps': 500,
    'finetune_steps': 200,
    'bytes': int(1000 * bpp),
    'sections': {'positions': int(600 * bpp), 'color': int(400 * bpp)},
    'bpp': bpp,
    'psnr': psnr,
    'ssim': 0.9,
    'ms_ssim': 0.97,
    'encode_seconds': 1.5,
    'decode_seconds': 0.25,
    'device': 'a machine',
  }
  return columns | changes


def baseline(image, quality, bpp, psnr, method='JPEG'):
  keys = ('image', 'method', 'quality', 'bpp', 'psnr')
  columns = dict(zip(keys, (image, method, quality, bpp, psnr), strict=True))
  seconds = {'encode_seconds': 0.5, 'decode_seconds': 0.125}
  return columns | seconds | {'bytes': int(1000 * bpp), 'ssim': 0.8, 'ms_ssim': 0.9}


# Two images a point. The means of gi are (0.5, 30) and (2, 34); cgvq has half the rate and
# the baseline codec twice the rate at the same PSNR.
ROWS = [
  row(image, method, gaussians, factor * bpp * (1 + sign / 10), psnr + sign)
  for image, sign in (('one', -1), ('two', 1))
  for method, factor in (('gi', 1), ('cgvq', 0.5))
  for gaussians, bpp, psnr in ((1000, 0.5, 30), (4000, 2, 34))
]
BASELINES = [
  baseline(image, quality, bpp, psnr + sign)
  for image, sign in (('one', -2), ('two', 2))
  for quality, bpp, psnr in ((10, 1, 30), (90, 4, 34))
]
