"""The chunks of a PNG file: those of the pixels apart from those that a reader may ignore.

Pillow refuses a whole file for one damaged ancillary chunk, does not report cICP, and leaves a
transparent gray value on the scale of the file's bits. So it gets the chunks of the pixels alone.
Portable Network Graphics (PNG) Specification, third edition, sections 5 and 11.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b'\x89PNG\r\n\x1a\n'

_TEXTS = (b'tEXt', b'zTXt', b'iTXt')
_MAX_TEXT = 1 << 24  # bytes of an uncompressed profile, EXIF or XMP block


class DamagedChunk(ValueError):
  """A chunk that the pixels depend on does not match its checksum."""


class Png(NamedTuple):
  """A PNG file for Pillow, and what its ancillary chunks say."""

  data: bytes  # a file of IHDR, PLTE, tRNS, IDAT and IEND alone
  frames: int  # of an animation; 1 otherwise
  metadata: dict[str, bytes]  # 'exif' and 'xmp', as Pillow keeps them in Image.info
  profile: bytes | None  # iCCP, uncompressed
  codes: tuple[int, int, int, int] | None  # cICP: primaries, transfer, matrix, full range
  srgb: bool
  gamma: int | None  # gAMA, in 1/100000
  chromaticities: tuple[int, ...] | None  # cHRM: x and y of white, red, green, blue in 1/100000
  ignored: tuple[str, ...]  # the ancillary chunks that cannot be read


class _Chunk(NamedTuple):
  name: bytes
  body: bytes
  raw: bytes  # with its length, name and checksum
  complete: bool
  intact: bool  # complete, and the checksum matches


def read(data: bytes) -> Png:
  """Takes a file apart that starts with `SIGNATURE`; its pixels are not decoded.

  Raises:
    DamagedChunk: the checksum of IHDR, IDAT or a palette that is used does not match.
  """
  chunks = list(_chunks(data))
  names = [chunk.name for chunk in chunks]
  start = names.index(b'IDAT') if b'IDAT' in names else len(names)
  damaged = [chunk for chunk in chunks if not chunk.intact]
  blocks = {chunk.name: chunk.body for chunk in reversed(chunks) if chunk.intact}
  header = blocks.get(b'IHDR', b'')
  # A palette in a picture without one is a hint, and Pillow does not look into IEND.
  needed = (b'IHDR', b'IDAT', b'PLTE') if header[9:10] == b'\3' else (b'IHDR', b'IDAT')
  for chunk in damaged:
    if chunk.name in needed and chunk.complete:
      raise DamagedChunk(f'damaged {chunk.name.decode()} chunk')
  ignored = [chunk.name.decode() for chunk in damaged if chunk.name not in needed]

  def parsed(name: bytes, parse):
    """What `parse` makes of the first such chunk; None where there is none or it is not one."""
    try:
      return parse(blocks[name]) if name in blocks else None
    except (ValueError, IndexError, struct.error, zlib.error):
      ignored.append(name.decode())
      return None

  transparency = parsed(b'tRNS', lambda body: _transparency(header, body))
  kept = [chunk.raw for chunk in chunks[:start] if chunk.name in needed]
  kept += [_chunk(b'tRNS', transparency)] if transparency else []
  kept += [chunk.raw for chunk in chunks[start:] if chunk.name in (b'IDAT', b'IEND')]
  metadata = {}
  for chunk in chunks:
    if chunk.intact and chunk.name in _TEXTS:
      metadata.update(_metadata(chunk, ignored))
  if b'eXIf' in blocks:
    metadata['exif'] = b'Exif\0\0' + blocks[b'eXIf']
  # The picture of IDAT is the first frame where its fcTL comes before it, else it is none of them.
  frames = parsed(b'acTL', lambda body: struct.unpack_from('>I', body)[0]) or 1
  frames += frames > 1 and b'fcTL' not in names[:start]
  return Png(
    data=SIGNATURE + b''.join(kept),
    frames=frames,
    metadata=metadata,
    profile=parsed(b'iCCP', _profile),
    codes=parsed(b'cICP', lambda body: struct.unpack('>4B', body)),
    srgb=parsed(b'sRGB', lambda body: body[0]) is not None,
    gamma=parsed(b'gAMA', lambda body: struct.unpack('>I', body)[0]),
    chromaticities=parsed(b'cHRM', lambda body: struct.unpack('>8I', body)),
    ignored=tuple(dict.fromkeys(ignored)),
  )


def _chunks(data: bytes) -> Iterator[_Chunk]:
  """All chunks up to the end, or to bytes that are none."""
  offset = len(SIGNATURE)
  while len(data) >= offset + 8:
    size, name = struct.unpack_from('>I4s', data, offset)
    if not name.isalpha() or not name.isascii():
      return
    body, end = data[offset + 8 : offset + 8 + size], offset + 12 + size
    complete = len(data) >= end
    intact = complete and data[end - 4 : end] == struct.pack('>I', zlib.crc32(name + body))
    yield _Chunk(name, body, data[offset:end], complete, intact)
    if name == b'IEND':
      return
    offset = end


def _chunk(name: bytes, body: bytes) -> bytes:
  return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def _transparency(header: bytes, body: bytes) -> bytes:
  """tRNS on the scale of the pixels as Pillow has them: 8 bits, but 16 for 16-bit gray."""
  bits, color_type = header[8], header[9]
  if color_type == 3:
    if not 1 <= len(body) <= 256:
      raise ValueError('wanted 1 to 256 values of alpha')
    return body
  values = struct.unpack({0: '>H', 2: '>3H'}[color_type], body) if color_type in (0, 2) else ()
  if not values:
    raise ValueError('an image with alpha has no transparent colour')
  values = [value & ((1 << bits) - 1) for value in values]  # section 11.3.1: the low bits count
  if color_type == 0 and bits in (2, 4):
    values = [value * 255 // ((1 << bits) - 1) for value in values]
  if color_type == 2 and bits == 16:
    values = [value >> 8 for value in values]
  return struct.pack(f'>{len(values)}H', *values)


def _profile(body: bytes) -> bytes:
  _, rest = body.split(b'\0', 1)
  if rest[:1] != b'\0':
    raise ValueError('unknown compression')
  return _inflate(rest[1:])


def _metadata(chunk: _Chunk, ignored: list[str]) -> dict[str, bytes]:
  """EXIF that ImageMagick and exiftool put into text, and XMP."""
  keyword, _, rest = chunk.body.partition(b'\0')
  try:
    if keyword == b'XML:com.adobe.xmp' and chunk.name == b'iTXt':
      _, _, text = rest[2:].split(b'\0', 2)
      return {'xmp': _inflate(text) if rest[0] else text}
    if keyword in (b'Raw profile type exif', b'Raw profile type APP1'):
      text = _inflate(rest[1:]) if chunk.name == b'zTXt' else rest
      lines = text.decode('latin-1').strip('\n').split('\n')  # name, number of bytes, hex digits
      return {'exif': bytes.fromhex(''.join(lines[2:]))}
  except (ValueError, IndexError, zlib.error):
    ignored.append(f'{chunk.name.decode()} {keyword.decode()!r}')
  return {}


def _inflate(data: bytes) -> bytes:
  stream = zlib.decompressobj()
  plain = stream.decompress(data, _MAX_TEXT)
  if not stream.eof:
    raise ValueError('incomplete or too large')
  return plain
