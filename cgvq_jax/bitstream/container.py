"""The file: one image's integers as bytes, and back, with the size of every part.

    'CGVQ' version | a body of the version's format | CRC-32

A version byte finds its format in FORMATS: `codebooks` is 1, `adaptive` is 2. docs/FORMAT.md
defines every byte. Reading is strict: each field is checked against its limits before it is used,
and a file can ask for no more Gaussians and table entries than its own size allows.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cgvq_jax.bitstream import adaptive, codebooks
from cgvq_jax.bitstream.base import FRAME_BYTES, Format
from cgvq_jax.bitstream.fields import ContainerError
from cgvq_jax.io.files import write_atomically

if TYPE_CHECKING:
  from jaxtyping import Int

  from cgvq_jax.primitives.gaussians import Gaussians

MAGIC = b'CGVQ'
MAX_FILE_BYTES = 1 << 30
FORMATS: dict[int, Format] = {f.version: f for f in (codebooks.FORMAT, adaptive.FORMAT)}
_CRC_BYTES = 4


def register(format: Format) -> None:
  """Lets files have a version of your own.

  Raises:
    ValueError: the version is not a byte, or belongs to another format.
  """
  if not 0 <= format.version <= 255:
    raise ValueError(f'version: wanted 0..255, got {format.version}')
  if FORMATS.setdefault(format.version, format) is not format:
    raise ValueError(f'version: wanted one that is not in use, got {format.version}')


def write(symbols: Any) -> bytes:
  """Codes one image's integers into the bytes of a file.

  Raises:
    ContainerError: a field of the symbols is outside the format's limits, or two fields disagree.
  """
  format = _format(symbols.version)
  with _container_errors():
    body = format.write(symbols)
  data = MAGIC + bytes([format.version]) + body
  return data + zlib.crc32(data).to_bytes(_CRC_BYTES, 'little')


def read(data: bytes) -> Any:
  """The inverse of `write`: the same integers, as the symbols of the file's version.

  The numbers behind the integers are for `dequantize` to check: a float16 in a table may be NaN.

  Raises:
    ContainerError: the bytes are not a whole, undamaged file of a known version.
  """
  format, body = _opened(data)
  with _container_errors():
    return format.read(body)


def dequantize(symbols: Any) -> tuple[Gaussians, Int[np.ndarray, 'N']]:
  """The Gaussians, NumPy float32, and the label of each: its cluster, or its energy class.

  Raises:
    ContainerError: the integers do not stand for finite Gaussians.
  """
  format = _format(symbols.version)
  with _container_errors():
    gaussians, labels = format.dequantize(symbols)
  for field in dataclasses.fields(gaussians):
    if not np.all(np.isfinite(getattr(gaussians, field.name))):
      raise ContainerError(f'{field.name}: wanted finite values, got NaN or infinity')
  return gaussians, np.asarray(labels, np.int32)


def describe(data: bytes) -> dict[str, Any]:
  """A file's version, method, sizes, counts, quantizers, sections, bytes and bits per pixel.

  `bpp` is 8 times the bytes of the file over its pixels.

  Raises:
    ContainerError: as `read`.
  """
  format, body = _opened(data)
  with _container_errors():
    about = format.describe(body)
  header = about['sections'].get('header', 0) + FRAME_BYTES
  return {
    'version': format.version,
    **about,
    'sections': about['sections'] | {'header': header},
    'bytes': len(data),
    'bpp': 8 * len(data) / (about['height'] * about['width']),
  }


def sections(data: bytes) -> dict[str, int]:
  """Bytes of each part of a file; they add up to its size.

  `positions`, `rotation_scale` and `color` are the coded symbols with their histograms,
  `codebooks` all the quantizers' tables, `header` the rest: sizes, counts, names, CRC. The parts of
  the stream are measured in bits, and rounded to bytes together.

  Raises:
    ContainerError: as `read`.
  """
  return describe(data)['sections']


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
  """Replaces a file in one step: a reader sees the old bytes or the new, never a part.

  Raises:
    ContainerError: the file cannot be written there.
  """
  try:
    write_atomically(path, data)
  except OSError as error:
    raise ContainerError(f'{path}: wanted a place for a file, got {error.strerror}') from error


def read_file(path: str | os.PathLike[str]) -> bytes:
  """The bytes of a file, for `read`.

  Raises:
    ContainerError: it is missing, not a regular file, unreadable or above MAX_FILE_BYTES.
  """
  try:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
      kind = 'a directory' if stat.S_ISDIR(status.st_mode) else 'something else'
      raise ContainerError(f'{path}: wanted a file, got {kind}')
    if status.st_size > MAX_FILE_BYTES:
      raise ContainerError(f'{path}: wanted <= {MAX_FILE_BYTES} bytes, got {status.st_size}')
    return Path(path).read_bytes()
  except OSError as error:
    raise ContainerError(f'{path}: wanted a file, got {error.strerror}') from error


@contextmanager
def _container_errors() -> Iterator[None]:
  """A format's ValueError becomes a ContainerError, which is one too."""
  try:
    yield
  except ContainerError:
    raise
  except ValueError as error:
    raise ContainerError(str(error)) from error


def _format(version: int) -> Format:
  if version not in FORMATS:
    known = ' or '.join(map(str, sorted(FORMATS)))
    raise ContainerError(f'version: wanted {known}, got {version}')
  return FORMATS[version]


def _opened(data: bytes) -> tuple[Format, bytes]:
  """The format and the body of a file that is whole, as its CRC shows."""
  if not data.startswith(MAGIC[: max(len(data), 1)]):
    raise ContainerError(
      f'not a .cgvq file: wanted one that begins with {MAGIC!r}, got {data[:8]!r}'
    )
  if len(data) < FRAME_BYTES:
    raise ContainerError(f'truncated file: wanted {FRAME_BYTES} bytes or more, got {len(data)}')
  format = _format(data[len(MAGIC)])
  end = len(data) - _CRC_BYTES
  wanted, got = int.from_bytes(data[end:], 'little'), zlib.crc32(data[:end])
  if wanted != got:  # which of the two it is cannot be told: the size of a file stands nowhere
    raise ContainerError(
      f'damaged or truncated file: wanted contents of CRC-32 {wanted:#010x}, got {got:#010x}'
    )
  return format, data[len(MAGIC) + 1 : end]
