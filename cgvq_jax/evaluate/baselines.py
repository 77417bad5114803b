"""JPEG, WebP, AVIF and JPEG 2000 on the same images: real files, decoded and measured as ours are.

Needs Pillow and NumPy only; the structural similarities of `points` import JAX when they are taken.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from cgvq_jax import metrics
from cgvq_jax.evaluate.timer import Stopwatch
from cgvq_jax.io import images

if TYPE_CHECKING:
  from jaxtyping import UInt8

QUALITIES = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
_RATIOS = (400, 240, 160, 110, 80, 60, 44, 32, 24, 16, 10)  # of 24 bits a pixel, for JPEG 2000


class Codec(NamedTuple):
  """A format that Pillow writes, with the options that make its files smallest in useful time."""

  format: str  # Pillow's name of it
  options: dict[str, Any]
  longest_side: int  # px
  modes: tuple[str, ...] = ('L', 'RGB', 'RGBA')  # Pillow's modes that it stores unconverted
  alpha: bool = True
  quality: Callable[[float], dict[str, Any]] = lambda quality: {'quality': quality}  # as an option
  qualities: tuple[int, ...] = QUALITIES  # of the points of its curve
  all_qualities: Sequence[float] = range(101)  # in the order of growing files


# JPEG is optimized, progressive and 4:2:0, and WebP is always 4:2:0. AVIF is better in 4:4:4, and
# JPEG 2000 is far better with its colour transform (mct).
CODECS = {
  'JPEG': Codec(
    'JPEG', {'optimize': True, 'progressive': True}, 65500, alpha=False, all_qualities=range(1, 96)
  ),
  'WebP': Codec('WEBP', {'method': 6}, 16383, ('RGB', 'RGBA')),
  'AVIF': Codec('AVIF', {'speed': 4, 'subsampling': '4:4:4'}, 16384, ('RGB', 'RGBA')),
  'JPEG 2000': Codec(
    'JPEG2000',
    {'irreversible': True, 'quality_mode': 'rates', 'mct': 1},
    1 << 20,
    quality=lambda ratio: {'quality_layers': [ratio]},
    qualities=_RATIOS,
    all_qualities=tuple(2.0 ** (-k / 64) for k in range(-768, 0)),
  ),
}


def canonical(name: str) -> str:
  """The key of CODECS that a name stands for, whatever its case, spaces and hyphens.

  Raises:
    ValueError: there is none.
  """
  for codec in CODECS:
    if _plain(codec) == _plain(name):
      return codec
  raise ValueError(f'codec: wanted one of {", ".join(CODECS)}, got {name!r}')


def _plain(name: str) -> str:
  return name.lower().replace(' ', '').replace('-', '')


def obstacle(shape: tuple[int, ...], codec: str) -> str | None:
  """Why a format cannot hold an image of shape [H, W, C] at all; None where it can.

  Raises:
    ValueError: the codec is none of CODECS.
  """
  known = _codec(codec)
  if shape[2] == 4 and not known.alpha:
    return 'cannot store transparency'
  if max(shape[:2]) > known.longest_side:
    return f'cannot store sides of more than {known.longest_side} px'
  return None


def points(
  pixels: UInt8[np.ndarray, 'H W C'],
  codec: str,
  image: str = '',
  qualities: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
  """Encodes one image with one of CODECS at each quality and measures the decoded files.

  WebP and AVIF have no gray mode: a gray image is stored in colour and its decoded luma is
  compared. There are no points where the format cannot hold the image: see `obstacle`.

  Returns:
    Rows {image, method, quality, bytes, bpp, psnr, ssim, ms_ssim, encode_seconds, decode_seconds}.

  Raises:
    ValueError: the codec is none of CODECS, or pixels are not what `metrics.psnr` takes.
  """
  from cgvq_jax.evaluate import similarity  # imports JAX, which `at_bytes` does not need

  rows = []
  for quality in _codec(codec).qualities if qualities is None else qualities:
    stopwatch = Stopwatch()
    data = _encode(pixels, codec, quality)
    encode_seconds = stopwatch.lap()
    if data is None:
      return []
    decoded = _decode(data, pixels.shape[2])
    decode_seconds = stopwatch.lap()
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
        'encode_seconds': encode_seconds,
        'decode_seconds': decode_seconds,
      }
    )
  return rows


def at_bytes(
  pixels: UInt8[np.ndarray, 'H W C'], codec: str, num_bytes: int
) -> tuple[bytes, UInt8[np.ndarray, 'H W C']] | None:
  """The file of highest quality that has at most `num_bytes`, and the pixels it decodes to.

  None where even the lowest quality is larger, and where the format cannot hold the image (see
  `obstacle`). Found by bisection, as if sizes grew with quality; where they do not, by a few bytes,
  the file may be one quality below the best.

  Raises:
    ValueError: the codec is none of CODECS.
  """
  best, qualities = None, _codec(codec).all_qualities
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
  if obstacle(pixels.shape, codec):
    return None
  known = _codec(codec)
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
