"""What the versions of the file have in common: the Format, the fields in front, the limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cgvq_jax.bitstream.fields import ContainerError, FieldReader, FieldWriter

if TYPE_CHECKING:
  from jaxtyping import Int

  from cgvq_jax.primitives.gaussians import Gaussians

MAX_SIDE = 65535  # px
MAX_PIXELS = 1 << 26
CHANNELS = (1, 3, 4)
MAX_GAUSSIANS = 1 << 22
FRAME_BYTES = 9  # of the container around a body: magic, version, CRC
GAUSSIANS_A_BYTE = 32  # at most: files hold far fewer, and a small hostile one costs little


class Format(NamedTuple):
  """One version of the file. A body is what lies between the version byte and the CRC.

  `write` raises ContainerError or ValueError where no file can hold the symbols, `read` and
  `describe` where the bytes are no body of this version. `describe` gives at least method, height,
  width, channels, num_gaussians and sections, which add up to the body. `dequantize` raises
  ValueError where the integers make no sense; its arrays are NumPy's.
  """

  version: int  # the byte; `symbols.version` of its symbols
  write: Callable[[Any], bytes]  # symbols -> body
  read: Callable[[bytes], Any]  # body -> symbols
  describe: Callable[[bytes], dict[str, Any]]
  # symbols -> Gaussians, float32, and a label of each: its cluster, its energy class, ...
  dequantize: Callable[[Any], tuple[Gaussians, Int[np.ndarray, 'N']]]


class Front(NamedTuple):
  """The fields that a body begins with."""

  height: int  # px
  width: int  # px
  channels: int
  method: str


def put_front(fields: FieldWriter, symbols: Any) -> None:
  """Writes height, width, channels and method of the symbols. Raises ContainerError."""
  height = fields.varint('height', symbols.height, 1, MAX_SIDE)
  width = fields.varint('width', symbols.width, 1, MAX_SIDE)
  channels = fields.varint('channels', symbols.channels, 1, max(CHANNELS))
  _check_size(height, width, channels)
  fields.name('method', symbols.method)


def take_front(fields: FieldReader) -> Front:
  """The inverse of `put_front`. Raises ContainerError."""
  height = fields.varint('height', 1, MAX_SIDE)
  width = fields.varint('width', 1, MAX_SIDE)
  channels = fields.varint('channels', 1, max(CHANNELS))
  _check_size(height, width, channels)
  return Front(height, width, channels, fields.name('method'))


def _check_size(height: int, width: int, channels: int) -> None:
  if height * width > MAX_PIXELS:
    raise ContainerError(f'height * width: wanted <= {MAX_PIXELS}, got {height} * {width}')
  if channels not in CHANNELS:
    raise ContainerError(f'channels: wanted one of {CHANNELS}, got {channels}')


def check_gaussians(number: int, body_bytes: int) -> None:
  """Raises ContainerError where a file of this size may not hold so many."""
  num_bytes = body_bytes + FRAME_BYTES
  most = num_bytes * GAUSSIANS_A_BYTE
  if number > most:
    raise ContainerError(f'Gaussians: wanted <= {most} in {num_bytes} bytes, got {number}')


def section_bytes(
  field_bytes: dict[str, int], stream_bits: dict[str, int], stream_bytes: int
) -> dict[str, int]:
  """Bytes of each section: those of its fields, and its share of the stream by its bits.

  Shares are rounded together, so that they add up to `stream_bytes`.
  """
  sizes = dict(field_bytes)
  ends = np.cumsum([0, *stream_bits.values()]) * stream_bytes / max(1, sum(stream_bits.values()))
  for name, share in zip(stream_bits, np.diff(np.rint(ends)), strict=True):
    sizes[name] += int(share)
  return sizes
