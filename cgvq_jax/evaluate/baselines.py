"""Other codecs on the same images: really encoded, really decoded, measured like every codec."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cgvq_jax import metrics
from cgvq_jax.evaluate import similarity
from cgvq_jax.io import images

QUALITIES = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
_RATIOS = (400, 240, 160, 110, 80, 60, 44, 32, 24, 16, 10)  # of 24 bits a pixel, for JPEG 2000


class Codec(NamedTuple):
  """A format that Pillow writes, at its best within reason."""

  format: str
  options: dict[str, Any]
  longest_side: int  # px
  modes: tuple[str, ...] = ('L', 'RGB', 'RGBA')  # that it keeps as they are
  alpha: bool = True
  quality: Callable[[float], dict[str, Any]] = lambda quality: {'quality': quality}
  qualities: tuple[int, ...] = QUALITIES
  ladder: Sequence[float] = range(101)  # qualities that there are, from the smallest files up


# JPEG is optimized, progressive and 4:2:0, and WebP is always 4:2:0; AVIF is better in 4:4:4, JPEG
# 2000 by far with its colour transform. `exact` keeps the colour under transparent pixels, which
# the metrics count.
CODECS = {
  'JPEG': Codec(
    'JPEG', {'optimize': True, 'progressive': True}, 65500, alpha=False, ladder=range(1, 96)
  ),
  'WebP': Codec('WEBP', {'method': 6, 'exact': True}, 16383, ('RGB', 'RGBA')),
  'AVIF': Codec('AVIF', {'speed': 4, 'subsampling': '4:4:4'}, 16384, ('RGB', 'RGBA')),
  'JPEG 2000': Codec(
    'JPEG2000',
    {'irreversible': True, 'quality_mode': 'rates', 'mct': 1},
    1 << 20,
    quality=lambda ratio: {'quality_layers': [ratio]},
    qualities=_RATIOS,
    ladder=tuple(2.0 ** (-k / 64) for k in range(-768, 0)),
  ),
}


def points(
  pixels: UInt8[np.ndarray, 'H W C'],
  codec: str,
  image: str = '',
  qualities: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
  """Encodes one image with one of CODECS at each quality and measures the decoded files.

  WebP and AVIF have no gray mode: a gray image is stored in colour and its decoded luma is
  compared. JPEG has no alpha, so it has no points for RGBA; nor has a codec for an image with a
  side too long for its format.

  Returns:
    Rows {image, method, quality, bytes, bpp, psnr, ssim, ms_ssim, encode_seconds, decode_seconds}.

  Raises:
    ValueError: the codec is none of CODECS, or pixels are not what `metrics.psnr` takes.
  """
  rows = []
  for quality in _codec(codec).qualities if qualities is None else qualities:
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
        'ssim': similarity.ssim(pixels, decoded),
        'ms_ssim': similarity.ms_ssim(pixels, decoded),
        'encode_seconds': middle - start,
        'decode_seconds': end - middle,
      }
    )
  return rows


def at_bytes(
  pixels: UInt8[np.ndarray, 'H W C'], codec: str, num_bytes: int
) -> tuple[bytes, UInt8[np.ndarray, 'H W C']] | None:
  """The file of highest quality that one of CODECS makes of at most `num_bytes`, and its pixels.

  None where even the lowest quality is larger, and where the format cannot hold the image (as in
  `points`). The bisection takes the size to grow with quality, which a few bytes here and there do
  not disturb.

  Raises:
    ValueError: the codec is none of CODECS.
  """
  best, qualities = None, _codec(codec).ladder
  low, high = 0, len(qualities) - 1
  while low <= high:
    middle = (low + high) // 2
    data = _encode(pixels, codec, qualities[middle])
    if data is None:
      return None
    if len(data) <= num_bytes:
      best, low = data, middle + 1
    else:
      high = middle - 1
  return None if best is None else (best, _decode(best, pixels.shape[2]))


def _codec(name: str) -> Codec:
  if name not in CODECS:
    raise ValueError(f'codec: wanted one of {", ".join(CODECS)}, got {name!r}')
  return CODECS[name]


def _encode(pixels: np.ndarray, codec: str, quality: float) -> bytes | None:
  """The file, or None where the format cannot hold the image."""
  known = _codec(codec)
  has_alpha = pixels.shape[2] == 4
  if max(pixels.shape[:2]) > known.longest_side or (has_alpha and not known.alpha):
    return None
  picture = images.to_picture(pixels)
  if picture.mode not in known.modes:
    picture = picture.convert('RGB')
  buffer = io.BytesIO()
  picture.save(buffer, format=known.format, **known.quality(quality), **known.options)
  return buffer.getvalue()


def _decode(data: bytes, channels: int) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as image:
    pixels = np.asarray(image.convert({1: 'L', 3: 'RGB', 4: 'RGBA'}[channels]))
  return pixels.reshape(*pixels.shape[:2], channels)
