"""PNG files of any bit depth with any chunks, which Pillow does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def chunk(name: bytes, body: bytes) -> bytes:
  return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def png_file(pixels: np.ndarray, before: bytes = b'', after: bytes = b'', bits: int = 8) -> bytes:
  """A file of integers [H, W] or [H, W, C], C = 2, 3 or 4, with chunks before and after IDAT."""
  height, width = pixels.shape[:2]
  channels = pixels.shape[2] if pixels.ndim == 3 else 1
  samples = np.asarray(pixels, '>u2').reshape(height, width * channels)
  sample_bits = np.unpackbits(samples.view(np.uint8).reshape(height, -1, 2), axis=-1)[..., -bits:]
  rows = np.packbits(sample_bits.reshape(height, -1), axis=-1)
  header = struct.pack('>IIBBBBB', width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
  data = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
  parts = chunk(b'IHDR', header), before, chunk(b'IDAT', data), after, chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)
