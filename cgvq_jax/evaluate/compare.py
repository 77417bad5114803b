"""Files compared with other codecs at the same number of bytes: a table, and pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cgvq_jax import codec, metrics
from cgvq_jax.bitstream import container
from cgvq_jax.evaluate import baselines, pictures, plots, similarity, timer
from cgvq_jax.io.images import to_bytes8

if TYPE_CHECKING:
  import numpy as np
  from jaxtyping import UInt8

_DECODES = 5  # of which the seconds are the median


class Compared(NamedTuple):
  """A file of ours, and of each other codec the best file that is no larger."""

  name: str
  data: bytes
  pixels: UInt8[np.ndarray, 'H W C']  # decoded
  # By codec: a file and its pixels, or why there is none.
  others: Mapping[str, tuple[bytes, UInt8[np.ndarray, 'H W C']] | str]


def warm_decode_seconds(data: bytes, clock: timer.Clock = time.perf_counter) -> float:
  """Median seconds from the bytes of a file to pixels once everything is compiled."""
  return timer.repeat(lambda: codec.render(codec.decode(data)), _DECODES, clock=clock).median


def check(original: UInt8[np.ndarray, 'H W C'], data: bytes) -> None:
  """That a file is of a picture of the original's size and channels, by the file's header.

  Raises:
    ValueError: it is not, or it is no file of ours (ContainerError).
  """
  about = container.describe(data)
  wanted, got = original.shape, (about['height'], about['width'], about['channels'])
  if got != wanted:
    raise ValueError(f'wanted a file of {_size(wanted)} as the original, got one of {_size(got)}')


def compare(
  original: UInt8[np.ndarray, 'H W C'], name: str, data: bytes, codecs: Iterable[str]
) -> Compared:
  """Decodes a file, and makes the files of some of `baselines.CODECS`.

  Raises:
    ValueError: as `check`; or a codec is none of baselines.CODECS.
  """
  check(original, data)
  others = {
    other: baselines.at_bytes(original, other, len(data))
    or baselines.obstacle(original.shape, other)
    or f'no file of at most {len(data)} bytes'
    for other in codecs
  }
  return Compared(name, data, to_bytes8(codec.render(codec.decode(data))), others)


def table(
  original: UInt8[np.ndarray, 'H W C'],
  compared: Sequence[Compared],
  encode_seconds: float | None = None,
) -> str:
  """Bytes, bpp, PSNR, MS-SSIM and seconds of files, and below each those of the other codecs.

  `encode_seconds` are those of the first file. A codec without a file has the reason in its row.
  """
  titles = 'bytes', 'bpp', 'PSNR dB', 'MS-SSIM', 'encode s', 'decode s'
  rows: list[tuple[str, ...]] = [('', *titles)]
  encode = '-' if encode_seconds is None else f'{encode_seconds:.0f}'
  for name, data, pixels, others in compared:
    decode = f'{warm_decode_seconds(data):.3f}'
    rows.append((name, *_measures(original, data, pixels), encode, decode))
    for other, file in others.items():
      cells = (file,) if isinstance(file, str) else (*_measures(original, *file), '-', '-')
      rows.append((f'  {other}', *cells))
    encode = '-'
  width = max(len(row[0]) for row in rows)
  sizes = 9, 8, 8, 8, 9, 9
  lines = []
  for name, *cells in rows:
    aligned = [f'{cell:>{size}}' for cell, size in zip(cells, sizes, strict=False)]
    lines.append(' '.join([f'{name:{width}}', *aligned]))
  return '\n'.join(lines)


def _measures(original: np.ndarray, data: bytes, pixels: np.ndarray) -> tuple[str, ...]:
  rate = metrics.bpp(len(data), *original.shape[:2])
  psnr, ms_ssim = metrics.psnr(original, pixels), similarity.ms_ssim(original, pixels)
  return f'{len(data)}', f'{rate:.4f}', f'{psnr:.2f}', f'{ms_ssim:.4f}'


def _size(shape: tuple[int, ...]) -> str:
  height, width, channels = shape
  return f'{width} x {height} px and {channels} channel{"s" if channels > 1 else ""}'


def save_side_by_side(
  original: UInt8[np.ndarray, 'H W C'], compared: Compared, path: str | os.PathLike[str]
) -> None:
  """Writes a picture of the original, the decoded image, their error, and the file's Gaussians."""
  data, pixels = compared.data, compared.pixels
  contents = codec.decode(data)
  rate = metrics.bpp(len(data), contents.height, contents.width)
  psnr = metrics.psnr(original, pixels)
  title = f'{container.describe(data)["method"]}: {len(data)} bytes, {rate:.3f} bpp, {psnr:.2f} dB'
  figure = pictures.side_by_side(original, pixels, contents.gaussians, contents.labels, title)
  plots.save_figure(figure, path)


def save_worst_tiles(
  original: UInt8[np.ndarray, 'H W C'], compared: Compared, path: str | os.PathLike[str]
) -> None:
  """Writes a picture of the tiles where our file has the largest errors, and of the others'."""
  method = container.describe(compared.data)['method']
  shown = {f'{method}, {len(compared.data)} bytes': compared.pixels}
  for name, other in compared.others.items():
    if not isinstance(other, str):
      shown[f'{name}, {len(other[0])} bytes'] = other[1]
  plots.save_figure(pictures.worst_tiles(original, shown), path)
