"""One file compared with other codecs at the same number of bytes: a table, and pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cgvq_jax import codec, metrics
from cgvq_jax.bitstream import container
from cgvq_jax.evaluate import baselines, pictures, plots, similarity, timer

if TYPE_CHECKING:
  import numpy as np
  from jaxtyping import UInt8

_DECODES = 5  # of which the seconds are the median

# By name of a baseline codec: its file, and the pixels that the file decodes to.
BaselineFiles = Mapping[str, 'tuple[bytes, UInt8[np.ndarray, "H W C"]]']


def warm_decode_seconds(data: bytes, clock: timer.Clock = time.perf_counter) -> float:
  """Median seconds from the bytes of a file to pixels once everything is compiled."""
  return timer.repeat(lambda: codec.render(codec.decode(data)), _DECODES, clock=clock).median


def baseline_files(
  original: UInt8[np.ndarray, 'H W C'], data: bytes, codecs: Iterable[str]
) -> BaselineFiles:
  """Of each codec the best file that is no larger than `data`; codecs that have none are left out.

  Raises:
    ValueError: a codec is none of baselines.CODECS.
  """
  files = {name: baselines.at_bytes(original, name, len(data)) for name in codecs}
  return {name: file for name, file in files.items() if file is not None}


def table(
  original: UInt8[np.ndarray, 'H W C'],
  data: bytes,
  decoded: UInt8[np.ndarray, 'H W C'],
  compare_with: BaselineFiles,
  encode_seconds: float | None = None,
) -> str:
  """Bytes, bpp, PSNR, MS-SSIM and seconds of a file; the same without seconds of the baselines.

  `decoded` are the pixels that a decoder made of `data`; they are what is measured.

  Raises:
    ValueError: the images differ in shape.
    ContainerError: `data` is not a file of ours.
  """
  encode = '-' if encode_seconds is None else f'{encode_seconds:.0f}'
  decode = f'{warm_decode_seconds(data):.3f}'
  method = container.describe(data)['method']
  lines = [_line(method, original, len(data), decoded, encode, decode)]
  for name, (file, pixels) in compare_with.items():
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


def save_side_by_side(
  original: UInt8[np.ndarray, 'H W C'],
  data: bytes,
  decoded: UInt8[np.ndarray, 'H W C'],
  path: str | os.PathLike[str],
) -> None:
  """Writes a picture of the original, the decoded image, their error, and the file's Gaussians."""
  contents = codec.decode(data)
  rate = metrics.bpp(len(data), contents.height, contents.width)
  psnr = metrics.psnr(original, decoded)
  title = f'{container.describe(data)["method"]}: {len(data)} bytes, {rate:.3f} bpp, {psnr:.2f} dB'
  figure = pictures.side_by_side(original, decoded, contents.gaussians, contents.labels, title)
  plots.save_figure(figure, path)


def save_worst_tiles(
  original: UInt8[np.ndarray, 'H W C'],
  data: bytes,
  decoded: UInt8[np.ndarray, 'H W C'],
  compare_with: BaselineFiles,
  path: str | os.PathLike[str],
) -> None:
  """Writes a picture of the tiles where `decoded` has the largest errors, and of the baselines'."""
  shown = {f'{container.describe(data)["method"]}, {len(data)} bytes': decoded}
  for name, (file, pixels) in compare_with.items():
    shown[f'{name}, {len(file)} bytes'] = pixels
  plots.save_figure(pictures.worst_tiles(original, shown), path)
