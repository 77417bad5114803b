"""The colours that a file states, and their conversion to sRGB by littleCMS."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from cgvq_jax.io import icc


class Stated(NamedTuple):
  """What a file says of its colours: ICC profiles of them, or why there are none."""

  name: str  # for the note on the conversion, such as 'gAMA'
  rgb: bytes = b''  # of colour
  gray: bytes = b''  # of gray alone
  problem: str = ''  # why the numbers are kept


class ProfileError(ValueError):
  """A profile cannot be applied; the message says why."""


# ITU-T H.273, tables 2 and 3: the code points of cICP in PNG and of nclx in AVIF.
_UNSPECIFIED = 2
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
_BT601 = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
_PRIMARIES = {
  1: ('BT.709', icc.SRGB_PRIMARIES, icc.D65),
  5: ('BT.470 BG', ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), icc.D65),
  6: ('BT.601', _BT601, icc.D65),
  7: ('SMPTE 240M', _BT601, icc.D65),
  9: ('BT.2020', ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), icc.D65),
  11: ('DCI-P3', _P3, (0.314, 0.351)),
  12: ('Display P3', _P3, icc.D65),
}
_BT709_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES = {
  **dict.fromkeys((1, 6, 14, 15), _BT709_CURVE),
  4: (2.2,),
  5: (2.8,),
  8: (1.0,),
  13: icc.SRGB_CURVE,
}
_HIGH_RANGE = {16: 'PQ', 18: 'HLG'}

# The intent of browsers and image editors. A profile of primaries and curves has no other, and of
# a printer's it keeps all colours but those out of range: the paper's white becomes white and its
# deepest black becomes black, which perceptual tables leave to the taste of their makers.
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
_SAME = 2  # 8-bit levels: what differs by no more is taken as sRGB, and its numbers are kept


def from_profile(data: object) -> Stated:
  """The colours of an embedded ICC profile, as bytes; of anything else it is a broken one."""
  name = 'embedded colour profile'
  if not isinstance(data, bytes) or not data:
    return Stated(name, problem='it is damaged')
  try:
    description = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(data)))
  except Exception:  # as in `to_srgb`, which says why
    description = ''
  description = ''.join(filter(str.isprintable, description)).strip()[:40]
  return Stated(f'{name} ({description})' if description else name, data, data)


def from_codes(name: str, primaries: int, transfer: int) -> Stated | None:
  """The colours of code points of ITU-T H.273; None where they are unspecified."""
  if transfer in _HIGH_RANGE:
    return Stated(name, problem=f'{_HIGH_RANGE[transfer]} has a higher range than sRGB')
  if primaries == _UNSPECIFIED and transfer == _UNSPECIFIED:
    return None
  known = _PRIMARIES.get(1 if primaries == _UNSPECIFIED else primaries)
  curve = _CURVES.get(13 if transfer == _UNSPECIFIED else transfer)
  if known is None or curve is None:
    return Stated(name, problem=f'primaries {primaries} with transfer {transfer} are not supported')
  label, points, white = known
  return _built(f'{name} ({label})', points, white, curve)


def from_gamma(gamma: int | None, chromaticities: tuple[int, ...] | None) -> Stated | None:
  """The colours of gAMA and cHRM, in 1/100000: encoded = linear^gamma; None without both."""
  if gamma is None and chromaticities is None:
    return None
  names = [('gAMA', gamma), ('cHRM', chromaticities)]
  name = ' and '.join(each for each, value in names if value is not None)
  # 1/2.2 is how sRGB is written in gAMA (section 11.3.2.2 of the PNG specification); some write
  # 45000. cHRM alone leaves the curve open.
  srgb_like = gamma is None or 45000 <= gamma <= 46000
  curve = icc.SRGB_CURVE if srgb_like else (100000 / max(gamma or 0, 1),)
  numbers = [value / 100000 for value in chromaticities or ()]
  points = [(x, y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
  white, *primaries = points or (icc.D65, *icc.SRGB_PRIMARIES)
  return _built(name, primaries, white, curve)


def to_srgb(image: Image.Image, stated: Stated) -> Image.Image:
  """The picture in sRGB; the same object where its numbers are sRGB already.

  Modes L and I;16 keep their mode, on the tone curve of sRGB; RGB and CMYK become RGB. Gray is
  converted exactly, through a table; colour on 8 bits.

  Raises:
    ProfileError: the profile is damaged, is of another kind of picture, or cannot be expressed, or
      Pillow has no littleCMS.
  """
  if stated.problem:
    raise ProfileError(stated.problem)
  try:
    data = stated.gray if image.mode in ('L', 'I;16') else stated.rgb
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    space = data[16:20].decode('latin-1').strip()  # ICC.1:2022, section 7.2.6
    if image.mode in ('L', 'I;16') and space in ('GRAY', 'RGB'):
      return _gray_to_srgb(image, profile, space)
    if image.mode == space == 'RGB':
      cube = Image.fromarray(_cube())
      difference = np.asarray(_transformed(cube, profile)).astype(int) - np.asarray(cube)
      return image if abs(difference).max() <= _SAME else _transformed(image, profile)
    if image.mode == space == 'CMYK':
      return _transformed(image, profile)
    red, green, blue = (image if image.mode == 'RGB' else image.convert('RGB')).split()
    if image.mode == 'RGB' and space == 'GRAY' and red == green == blue:
      gray = _gray_to_srgb(red, profile, space)
      return image if gray is red else Image.merge('RGB', (gray,) * 3)
  except ProfileError:
    raise
  # OSError, PyCMSError and ValueError have been seen, and ImportError without littleCMS.
  except Exception as error:
    raise ProfileError(str(error)) from error
  raise ProfileError(f'it is of {space}, the picture of {image.mode}')


def _built(name: str, primaries, white: icc.Chromaticity, curve: icc.Curve) -> Stated:
  try:
    return Stated(name, icc.rgb_profile(primaries, white, curve), icc.gray_profile(curve))
  except ValueError as error:
    return Stated(name, problem=str(error))


def _transformed(
  image: Image.Image,
  profile: ImageCms.ImageCmsProfile,
  target: ImageCms.ImageCmsProfile | None = None,
  mode: str = 'RGB',
  precision: ImageCms.Flags = ImageCms.Flags.HIGHRESPRECALC,
) -> Image.Image:
  srgb = target or ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB'))
  transform = ImageCms.ImageCmsTransform(
    profile, srgb, image.mode, mode, _INTENT, flags=_FLAGS | precision
  )
  result = transform.apply(image)
  result.info.clear()  # Pillow attaches the profile
  return result


def _gray_to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile, space: str) -> Image.Image:
  """Through a table of all levels, in which it is exact."""
  ramp = np.arange(256, dtype=np.uint8)
  table = _gray_table(ramp, profile, space)
  if abs(table.astype(int) - ramp).max() <= _SAME:
    return image
  if image.mode == 'L':
    return image.point(table.tolist())
  levels = np.arange(65536, dtype=np.uint16)
  if space == 'GRAY':
    wide = _gray_table(levels, profile, space)
  else:  # littleCMS has 16 bits for gray alone in Pillow
    wide = np.rint(np.interp(levels / 257, ramp, table * 257.0)).astype(np.uint16)
  return Image.fromarray(wide[np.asarray(image)])


def _gray_table(levels: np.ndarray, profile: ImageCms.ImageCmsProfile, space: str) -> np.ndarray:
  """What each gray level becomes on the tone curve of sRGB."""
  # littleCMS's precalculated grid for gray is off by up to ten levels near black.
  exact = ImageCms.Flags.NOOPTIMIZE
  ramp = Image.fromarray(levels[None])
  if space == 'GRAY':
    srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc.gray_profile(icc.SRGB_CURVE)))
    return np.asarray(_transformed(ramp, profile, srgb, ramp.mode, exact))[0]
  # A gray picture should have no profile of RGB, but many have one of sRGB.
  colours = np.asarray(_transformed(ramp.convert('RGB'), profile, precision=exact))[0]
  if np.ptp(colours.astype(int), axis=-1).max() > _SAME:
    raise ProfileError('it gives gray a colour')
  return colours[:, 1]


def _cube() -> np.ndarray:
  """16 x 16 x 16 colours, [64, 64, 3] uint8."""
  levels = np.arange(0, 256, 17, dtype=np.uint8)
  return np.stack(np.meshgrid(levels, levels, levels, indexing='ij'), -1).reshape(64, 64, 3)
