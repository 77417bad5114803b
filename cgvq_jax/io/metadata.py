"""What Pillow does not do with metadata: open a file in spite of it, and tell AVIF's colours."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

# The tags of the pixels in TIFF 6.0, and the ICC profile.
_TIFF_TAGS = {
  256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325,
  332, 338, 339, 347, 512, 513, 514, 529, 530, 531, 532, 34675,
}  # fmt: skip

Info = dict[str, bytes]  # 'exif', 'xmp' and 'icc_profile', as Pillow keeps them in Image.info


def without(data: bytes) -> tuple[bytes, Info] | None:
  """The file with nothing but what its pixels need, and the metadata that could be taken out.

  None where the format is another. A damaged or truncated stream of pixels stays what it is.
  """
  kinds: tuple[tuple[bool, Callable[[bytes], tuple[bytes, Info]]], ...] = (
    (data[:3] == b'\xff\xd8\xff', _jpeg),
    (data[:4] == b'RIFF' and data[8:12] == b'WEBP', _webp),
    (data[4:8] == b'ftyp', _avif),
    (data[:4] in (b'II*\0', b'MM\0*'), _tiff),
  )
  strip = next((function for found, function in kinds if found), None)
  return strip(data) if strip else None


class AvifProperties(NamedTuple):
  """What the boxes of an AVIF file state of its first picture."""

  codes: tuple[int, int] | None  # primaries and transfer, ITU-T H.273
  bits: int  # of a sample


def avif_properties(data: bytes) -> AvifProperties:
  """From the first boxes `colr` of type `nclx` and `pixi` (ISO/IEC 23008-12, sections 6.5.5-6).

  The properties of the primary picture come first in the files of the usual encoders; following the
  table of associations instead would take a parser of the whole format.
  """
  start = data.find(b'meta')
  meta = data[start : start - 4 + int.from_bytes(data[start - 4 : start], 'big')]
  colour, depth = meta.find(b'colrnclx'), meta.find(b'pixi')
  codes = struct.unpack_from('>HH', meta, colour + 8) if 0 <= colour <= len(meta) - 12 else None
  # pixi: version and flags, the number of channels, the bits of each
  bits = meta[depth + 9] if 0 <= depth < len(meta) - 9 else 8
  return AvifProperties(codes, bits)


def _jpeg(data: bytes) -> tuple[bytes, Info]:
  """Without application segments and comments, but for JFIF's and Adobe's: they tell colours."""
  kept, info, fragments = [data[:2]], {}, {}
  offset = 2
  while data[offset : offset + 1] == b'\xff' and len(data) >= offset + 4:
    marker, size = struct.unpack_from('>xBH', data, offset)
    if marker == 0xFF:  # a fill byte
      offset += 1
      continue
    if marker == 0xDA:  # the scans follow
      break
    segment = data[offset : offset + 2 + size]
    body = segment[4:]
    application = 0xE0 <= marker <= 0xEF or marker == 0xFE
    colour = (marker == 0xE0 and body[:4] == b'JFIF') or (marker == 0xEE and body[:5] == b'Adobe')
    if not application or (colour and len(body) >= 12):
      kept.append(segment)
    elif body.startswith(b'Exif\0\0'):
      info.setdefault('exif', body)
    elif body.startswith(b'http://ns.adobe.com/xap/1.0/\0'):
      info.setdefault('xmp', body.split(b'\0', 1)[1])
    elif body.startswith(b'ICC_PROFILE\0') and len(body) > 14:
      fragments[body[12]] = body[14:]
    offset += 2 + size
  if fragments:
    info['icc_profile'] = b''.join(fragments[number] for number in sorted(fragments))
  return b''.join(kept) + data[offset:], info


def _webp(data: bytes) -> tuple[bytes, Info]:
  names = {b'ICCP': 'icc_profile', b'EXIF': 'exif', b'XMP ': 'xmp'}
  kept, info = [], {}
  offset = 12
  while len(data) >= offset + 8:
    name, size = struct.unpack_from('<4sI', data, offset)
    chunk = data[offset : offset + 8 + size + size % 2]
    if name == b'VP8X' and len(chunk) > 8:
      chunk = chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:]  # the flags of those three
    if name in (b'VP8X', b'VP8 ', b'VP8L', b'ALPH', b'ANIM', b'ANMF'):
      kept.append(chunk)
    elif name in names and len(chunk) >= 8 + size:
      info.setdefault(names[name], chunk[8 : 8 + size])
    offset += 8 + size + size % 2
  body = b'WEBP' + b''.join(kept)
  return b'RIFF' + struct.pack('<I', len(body)) + body, info


def _avif(data: bytes) -> tuple[bytes, Info]:
  """With its EXIF item renamed in the table of items (iinf), which keeps all offsets."""
  start = data.find(b'iinf')
  if start < 4:
    return data, {}
  end = start - 4 + int.from_bytes(data[start - 4 : start], 'big')
  return data[:start] + data[start:end].replace(b'Exif', b'skip') + data[end:], {}


def _tiff(data: bytes) -> tuple[bytes, Info]:
  """With all other tags of the first directory given the type 0, which readers pass over."""
  order = '<' if data[:2] == b'II' else '>'
  changed = bytearray(data)
  try:
    (start,) = struct.unpack_from(f'{order}I', data, 4)
    (count,) = struct.unpack_from(f'{order}H', data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
      tag, kind, values = struct.unpack_from(f'{order}HHI', data, entry)
      orientation = (tag, kind, values) == (274, 3, 1)
      if tag not in _TIFF_TAGS and not orientation:
        changed[entry + 2 : entry + 4] = bytes(2)
  except struct.error:
    return data, {}
  return bytes(changed), {}
