"""One file beside other codecs at the same bytes: a table, and pictures."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import UInt8

from cgvq_jax import codec, metrics
from cgvq_jax.bitstream import container
from cgvq_jax.evaluate import baselines, pictures, similarity

_DECODES = 5  # of which the seconds are the median


def warm_decode_seconds(data: bytes) -> float:
  """Seconds from the bytes of a file to pixels once everything is compiled, the median of some."""
  seconds = []
  for _ in range(1 + _DECODES):
    start = time.perf_counter()
    codec.render(codec.decode(data))
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds[1:])


Others = Mapping[str, tuple[bytes, np.ndarray]]  # a codec's file and what it decodes to


def others(original: UInt8[np.ndarray, 'H W C'], data: bytes, codecs: Iterable[str]) -> Others:
  """The best file of each of baselines.CODECS that is no larger than `data`, where there is one."""
  files = {name: baselines.at_bytes(original, name, len(data)) for name in codecs}
  return {name: file for name, file in files.items() if file is not None}


def table(
  original: UInt8[np.ndarray, 'H W C'],
  data: bytes,
  decoded: UInt8[np.ndarray, 'H W C'],
  beside: Others,
  encode_seconds: float | None = None,
) -> str:
  """Bytes, bpp, PSNR, MS-SSIM and seconds of a file, and what there is of that of the others.

  `decoded` is what a decoder made of `data`. Raises ValueError where the images differ in shape.
  """
  seconds = ('-' if encode_seconds is None else f'{encode_seconds:.0f}', warm_decode_seconds(data))
  method = container.describe(data)['method']
  lines = [_line(method, original, len(data), decoded, seconds[0], f'{seconds[1]:.3f}')]
  for name, (file, pixels) in beside.items():
    lines.append(_line(name, original, len(file), pixels, '-', '-'))
  header = (
    f'{"":9} {"bytes":>8} {"bpp":>7} {"PSNR dB":>8} {"MS-SSIM":>8} {"encode s":>9} {"decode s":>9}'
  )
  return '\n'.join([header, *lines])


def _line(name, original, num_bytes, decoded, encode, decode) -> str:
  rate = metrics.bpp(num_bytes, *original.shape[:2])
  psnr, ms_ssim = metrics.psnr(original, decoded), similarity.ms_ssim(original, decoded)
  return (
    f'{name:9} {num_bytes:>8} {rate:>7.4f} {psnr:>8.2f} {ms_ssim:>8.4f} {encode:>9} {decode:>9}'
  )


def picture(
  original: UInt8[np.ndarray, 'H W C'],
  data: bytes,
  decoded: UInt8[np.ndarray, 'H W C'],
  path: str | os.PathLike[str],
) -> None:
  """Writes original, decoded, error and Gaussians side by side (`pictures.side_by_side`)."""
  held = codec.decode(data)
  rate, psnr = metrics.bpp(len(data), held.height, held.width), metrics.psnr(original, decoded)
  title = f'{container.describe(data)["method"]}: {len(data)} bytes, {rate:.3f} bpp, {psnr:.2f} dB'
  pictures.side_by_side(original, decoded, held.gaussians, held.labels, path, title)


def tiles(
  original: UInt8[np.ndarray, 'H W C'],
  data: bytes,
  decoded: UInt8[np.ndarray, 'H W C'],
  beside: Others,
  path: str | os.PathLike[str],
) -> None:
  """Writes the worst tiles of a file beside those of the others (`pictures.worst_tiles`)."""
  shown = {f'{container.describe(data)["method"]}, {len(data)} bytes': decoded}
  shown |= {f'{name}, {len(file)} bytes': pixels for name, (file, pixels) in beside.items()}
  pictures.worst_tiles(original, shown, path)
