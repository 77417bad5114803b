"""JPEG and WebP on the same images: really encoded, really decoded, measured like every codec."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cgvq_jax import images, metrics

QUALITIES = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)

# `exact` keeps the colour under transparent pixels, which the metrics count.
_OPTIONS = {
  'JPEG': {'format': 'JPEG', 'optimize': True, 'progressive': True},
  'WebP': {'format': 'WEBP', 'method': 6, 'exact': True},
}
_LONGEST_SIDE = {'JPEG': 65500, 'WebP': 16383}  # px


def points(
  pixels: UInt8[np.ndarray, 'H W C'],
  codec: str,
  image: str = '',
  qualities: Sequence[int] = QUALITIES,
) -> list[dict[str, Any]]:
  """Encodes one image with a classic codec at each quality and measures the decoded files.

  JPEG is optimised, progressive and 4:2:0; WebP is lossy with its slowest search. WebP has no gray
  mode: a gray image is stored in colour and its decoded luma is compared. JPEG has no alpha, so it
  has no points for RGBA; nor has a codec for an image with a side too long for its format.

  Returns:
    Rows {image, method, quality, bytes, bpp, psnr, ssim, ms_ssim, encode_seconds, decode_seconds}.

  Raises:
    ValueError: the codec is not 'JPEG' or 'WebP', or pixels are not what `metrics.psnr` takes.
  """
  rows = []
  for quality in qualities:
    start = time.perf_counter()
    data = _encode(pixels, codec, quality)
    if data is None:
      return []
    middle = time.perf_counter()
    decoded = _decode(data, pixels.shape[2])
    end = time.perf_counter()
    rows.append(
      {
        'image': image,
        'method': codec,
        'quality': quality,
        'bytes': len(data),
        'bpp': metrics.bpp(len(data), *pixels.shape[:2]),
        'psnr': metrics.psnr(pixels, decoded),
        'ssim': metrics.ssim(pixels, decoded),
        'ms_ssim': metrics.ms_ssim(pixels, decoded),
        'encode_seconds': middle - start,
        'decode_seconds': end - middle,
      }
    )
  return rows


def jpeg_at_bytes(
  pixels: UInt8[np.ndarray, 'H W C'], num_bytes: int
) -> tuple[bytes, UInt8[np.ndarray, 'H W C']] | None:
  """The JPEG of highest quality, 1..95, that has at most `num_bytes`: the file and its pixels.

  None where even quality 1 is larger, and where JPEG cannot hold the image (as in `points`). The
  bisection takes the size to grow with quality, which a few bytes here and there do not disturb.
  """
  best, low, high = None, 1, 95
  while low <= high:
    quality = (low + high) // 2
    data = _encode(pixels, 'JPEG', quality)
    if data is None:
      return None
    if len(data) <= num_bytes:
      best, low = data, quality + 1
    else:
      high = quality - 1
  return None if best is None else (best, _decode(best, pixels.shape[2]))


def _encode(pixels: np.ndarray, codec: str, quality: int) -> bytes | None:
  """The file, or None where the format cannot hold the image."""
  if codec not in _OPTIONS:
    raise ValueError(f'codec: wanted one of {", ".join(_OPTIONS)}, got {codec!r}')
  has_alpha = pixels.shape[2] == 4
  if max(pixels.shape[:2]) > _LONGEST_SIDE[codec] or (has_alpha and codec == 'JPEG'):
    return None
  buffer = io.BytesIO()
  images.to_picture(pixels).save(buffer, quality=quality, **_OPTIONS[codec])
  return buffer.getvalue()


def _decode(data: bytes, channels: int) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as image:
    pixels = np.asarray(image.convert({1: 'L', 3: 'RGB', 4: 'RGBA'}[channels]))
  return pixels.reshape(*pixels.shape[:2], channels)
