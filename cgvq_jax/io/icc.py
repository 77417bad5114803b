"""ICC profiles made from primaries and a tone curve, for files that state those alone.

Matrix/TRC display profiles and gray profiles as ICC.1:2022 (profile version 4.4) defines them:
sections 7 (layout), 8.3 (required tags), 10.18 (parametric curves) and annex F (the model).
"""

from __future__ import annotations

import struct

import numpy as np

Chromaticity = tuple[float, float]  # CIE 1931 x, y
Curve = tuple[float, ...]  # parameters of `encoded -> linear` as `_parametric_curve` lists them

D65 = (0.3127, 0.3290)
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))  # IEC 61966-2-1, those of BT.709
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)

_D50 = (0.9642, 1.0, 0.8249)  # XYZ of the profile connection space, ICC.1:2022 section 7.2.16
_BRADFORD = np.array(
  [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)  # from XYZ to cone responses, ICC.1:2022 annex E


def rgb_profile(
  primaries: tuple[Chromaticity, Chromaticity, Chromaticity], white: Chromaticity, curve: Curve
) -> bytes:
  """The profile of an RGB space: its primaries red, green and blue, its white and its curve.

  Raises:
    ValueError: the primaries lie on a line, or a chromaticity or a curve is none.
  """
  if not all(x >= 0 and y > 0 and x + y <= 1 for x, y in (*primaries, white)):
    raise ValueError(f'wanted chromaticities x, y > 0 with x + y <= 1, got {primaries}, {white}')
  columns = np.array([_xyz(point) for point in primaries]).T
  if abs(np.linalg.det(columns)) < 1e-6:
    raise ValueError(f'primaries: wanted a triangle, got {primaries}')
  columns = columns * np.linalg.solve(columns, _xyz(white))  # their sum is the white
  cone_ratio = (_BRADFORD @ _D50) / (_BRADFORD @ _xyz(white))
  adaptation = np.linalg.solve(_BRADFORD, cone_ratio[:, None] * _BRADFORD)
  columns = adaptation @ columns
  if abs(columns).max() >= 2**15:
    raise ValueError(f'primaries: wanted a triangle around the white, got {primaries}, {white}')
  shared = _parametric_curve(curve)
  return _profile(
    b'RGB ',
    {
      b'rXYZ': _xyz_tag(columns[:, 0]),
      b'gXYZ': _xyz_tag(columns[:, 1]),
      b'bXYZ': _xyz_tag(columns[:, 2]),
      b'rTRC': shared,
      b'gTRC': shared,
      b'bTRC': shared,
      b'chad': b'sf32\0\0\0\0' + b''.join(map(_fixed, adaptation.ravel().tolist())),
    },
  )


def gray_profile(curve: Curve) -> bytes:
  """The profile of a gray scale with this curve; raises ValueError where the curve is none."""
  return _profile(b'GRAY', {b'kTRC': _parametric_curve(curve)})


def _xyz(point: Chromaticity) -> np.ndarray:
  x, y = point
  return np.array([x / y, 1.0, (1 - x - y) / y])


def _parametric_curve(curve: Curve) -> bytes:
  """(g): Y = X^g. (g, a, b, c, d): Y = (a X + b)^g where X >= d, and c X below.

  ICC.1:2022 table 68, function types 0 and 3.
  """
  if len(curve) not in (1, 5) or not 0 < curve[0] < 100:
    raise ValueError(f'curve: wanted 1 or 5 parameters, an exponent of 0 to 100, got {curve}')
  kind = {1: 0, 5: 3}[len(curve)]
  return b'para\0\0\0\0' + struct.pack('>HH', kind, 0) + b''.join(map(_fixed, curve))


def _fixed(value: float) -> bytes:
  return struct.pack('>i', round(value * 65536))  # s15Fixed16Number


def _xyz_tag(values: np.ndarray | tuple[float, ...]) -> bytes:
  return b'XYZ \0\0\0\0' + b''.join(map(_fixed, values))


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
  """Header, tag table and tag data; tags of equal data share it."""
  text = 'cgvq_jax'.encode('utf-16-be')
  text_tag = b'mluc\0\0\0\0' + struct.pack('>II2s2sII', 1, 12, b'en', b'US', len(text), 28) + text
  tags = {b'desc': text_tag, b'cprt': text_tag, b'wtpt': _xyz_tag(_D50), **tags}
  offset = 128 + 4 + 12 * len(tags)
  table, data, places = struct.pack('>I', len(tags)), b'', {}
  for name, body in tags.items():
    if body not in places:
      places[body] = offset + len(data)
      data += body + bytes(-len(body) % 4)
    table += struct.pack('>4sII', name, places[body], len(body))
  header = struct.pack(
    '>I4sI4s4s4s12s4s',
    *(128 + len(table) + len(data), bytes(4), 0x04400000, b'mntr', space, b'XYZ '),
    *(struct.pack('>6H', 2000, 1, 1, 0, 0, 0), b'acsp'),
  )
  header += bytes(28) + b''.join(map(_fixed, _D50))  # of rendering intent 0: a matrix has one
  return header.ljust(128, b'\0') + table + data
