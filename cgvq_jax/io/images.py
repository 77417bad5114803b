"""Image files to float32 [H, W, C] arrays in [0, 1], and back."""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from cgvq_jax.io import color, metadata, png
from cgvq_jax.io.files import is_special, write_atomically

if TYPE_CHECKING:
  from jaxtyping import Float, UInt8

MAX_PIXELS = 8192 * 8192  # 67 MP: a whole camera sensor, and three quarters of Pillow's own limit
_MAX_BYTES = 9 * MAX_PIXELS  # that many pixels of four 16-bit samples, and metadata

_ORIENTATION = 0x0112  # the tag of EXIF, and how its values bring a picture upright
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
  """A file is not the image that was wanted: its path, what was wanted and what was got."""


class LoadedImage(NamedTuple):
  """An image, and a note on each conversion that was needed to read it."""

  pixels: Float[np.ndarray, 'H W C']  # float32 in [0, 1]; C is 1 (gray), 3 (RGB) or 4 (RGBA)
  notes: tuple[str, ...]  # such as 'CMYK converted to RGB'; empty where nothing was converted


def load(path: str | os.PathLike[str]) -> LoadedImage:
  """Reads an image of any kind that Pillow knows, from a file or a pipe, as a viewer shows it.

  Pixels are sRGB with straight alpha, gray on the tone curve of sRGB. Other colours are converted:
  those of an embedded profile, of the chunks cICP, gAMA and cHRM in PNG (in the order of the PNG
  specification: cICP, iCCP, sRGB, gAMA and cHRM), and of nclx in AVIF. Where that is not possible,
  as for PQ and HLG, the numbers are kept. Gray stays one channel; an image with transparency
  becomes RGBA; every other colour space becomes RGB.

  8-bit values are divided by 255 and 16-bit gray by 65535; colour of more bits is cut to 8. 32-bit
  integers are read on the 16-bit scale, because Pillow gives this mode to 16-bit files;
  floating-point gray is read as 0..1, or as 0..255 where a value is above 1. The EXIF orientation
  is applied. Of several frames the first is read. Damaged metadata is ignored.

  Raises:
    ImageError: there is no such file, it cannot be read, it is not an image, it is truncated,
      it has more than `MAX_PIXELS` pixels, or its values are not finite or out of range.
  """
  path = Path(path)
  try:
    # Pillow warns of damaged metadata and of large pictures; there are notes and a limit for both.
    with _open(path) as file, warnings.catch_warnings():
      warnings.simplefilter('ignore')
      return _read(path, file)
  except ImageError:
    raise
  except Image.UnidentifiedImageError as error:
    raise ImageError(f'{path}: wanted an image file, got a file of an unknown kind') from error
  # Pillow's plugins raise many kinds of errors on a damaged file: OSError, SyntaxError, ValueError
  # and RuntimeError have been seen.
  except Exception as error:
    raise ImageError(
      f'{path}: wanted a readable image file, got {type(error).__name__}: {error}'
    ) from error


def to_bytes8(pixels: Float[np.ndarray, '*shape']) -> UInt8[np.ndarray, '*shape']:
  """round(255 clip(x, 0, 1)) as uint8: the only place where values are rounded to 8 bits.

  Raises:
    ValueError: the values are not floating-point numbers, or one of them is NaN.
  """
  values = np.asarray(pixels)
  if values.dtype.kind in 'biuOSU':  # bfloat16 is of kind V
    raise ValueError(f'pixels: wanted floating-point values in [0, 1], got {values.dtype}')
  values = values.astype(np.float32)
  if np.isnan(values).any():
    raise ValueError(f'pixels: wanted numbers, got {np.isnan(values).sum()} NaN')
  return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


def save(path: str | os.PathLike[str], pixels: Float[np.ndarray, 'H W C']) -> tuple[str, ...]:
  """Writes pixels, rounded by `to_bytes8`, in the format of the path's extension.

  Options are Pillow's defaults, so .png is lossless while .jpg and .webp are not. The file appears
  whole or not at all. Returns a note on each thing that the format does not keep, such as 'RGBA
  written as RGB, without alpha'.

  Raises:
    ImageError: Pillow writes no such extension, the format cannot hold these channels, or the
      file cannot be written.
    ValueError: pixels are not [H, W, C] with C = 1, 3 or 4, or not what `to_bytes8` takes.
  """
  path, file_format = Path(path), format_of(path)
  values = to_bytes8(pixels)
  if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or values.size == 0:
    raise ValueError(f'pixels: wanted [H, W, C] with C = 1, 3 or 4, got shape {values.shape}')
  buffer = io.BytesIO()
  try:
    to_picture(values).save(buffer, file_format)
    write_atomically(path, buffer.getvalue())
  except (OSError, ValueError) as error:
    shape = 'x'.join(map(str, values.shape))
    raise ImageError(f'{path}: wanted to write {shape} pixels, got: {error}') from error
  return _notes_on_written(values, buffer, file_format)


def format_of(path: str | os.PathLike[str]) -> str:
  """Pillow's name for the format that `save` writes: the extension's, and PNG for what is no file
  and has no extension, such as /dev/stdout.

  Raises:
    ImageError: Pillow writes no such extension.
  """
  extension = Path(path).suffix.lower()
  if not extension and is_special(path):
    return 'PNG'
  file_format = Image.registered_extensions().get(extension)
  if file_format not in Image.SAVE:
    raise ImageError(
      f'{path}: wanted a name that ends in .png, .jpg, .webp or so, got {extension!r}'
    )
  return file_format


def to_picture(values: UInt8[np.ndarray, 'H W C']) -> Image.Image:
  """8-bit pixels as a Pillow image of mode L, RGB or RGBA."""
  return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def _notes_on_written(
  values: UInt8[np.ndarray, 'H W C'], file: io.BytesIO, file_format: str
) -> tuple[str, ...]:
  """What a file did not keep, by what it reads back as; lossy coding is not meant."""
  if file_format not in Image.OPEN:  # such as PDF
    return ()
  file.seek(0)
  # Not by Image.open, which would refuse what it takes for a decompression bomb.
  with Image.OPEN[file_format][0](file, '') as image:
    size, mode, has_alpha = image.size, image.mode, image.has_transparency_data
  height, width, channels = values.shape
  notes = []
  if size != (width, height):
    notes.append(f'{width} x {height} px written as {size[0]} x {size[1]}')
  if Image.getmodebands(mode) < channels:
    kind = 'a palette' if mode == 'P' else mode
    alpha = 'alpha as transparent or opaque' if has_alpha else 'without alpha'
    notes.append(f'RGBA written as {kind}, {alpha}' if channels == 4 else f'RGB written as {kind}')
  return tuple(notes)


def _open(path: Path) -> BinaryIO:
  """The bytes of a regular file, or all that a pipe gives, as a file that can be sought in."""
  try:
    kind = path.stat().st_mode
  except FileNotFoundError:
    raise ImageError(f'{path}: wanted an image file, got no such file') from None
  if stat.S_ISREG(kind):
    return path.open('rb')
  if not stat.S_ISFIFO(kind):
    got = 'a folder' if stat.S_ISDIR(kind) else 'a socket' if stat.S_ISSOCK(kind) else 'a device'
    raise ImageError(f'{path}: wanted an image file, got {got}')
  with path.open('rb') as pipe:
    data = pipe.read(_MAX_BYTES + 1)
  if len(data) > _MAX_BYTES:
    raise ImageError(f'{path}: wanted an image, got a pipe of more than {_MAX_BYTES} bytes')
  return io.BytesIO(data)


def _read(path: Path, file: BinaryIO) -> LoadedImage:
  """The upright first frame in sRGB."""
  start = file.read(len(png.SIGNATURE))
  file.seek(0)
  if not start:
    raise ImageError(f'{path}: wanted an image file, got an empty file')
  chunks = png.read(file.read(_MAX_BYTES)) if start == png.SIGNATURE else None
  image, notes = _identify(file, chunks)
  with image:
    width, height = image.size
    if not 1 <= width * height <= MAX_PIXELS:
      raise ImageError(
        f'{path}: wanted 1 to {MAX_PIXELS} pixels, got {width} x {height} = {width * height}'
      )
    notes += _depth_notes(image)
    stated = _png_colours(chunks) if chunks else None
    if image.format == 'AVIF':
      file.seek(0)
      properties = metadata.avif_properties(file.read(_MAX_BYTES))
      if properties.bits > 8:
        notes.append(f'{properties.bits}-bit colour reduced to 8 bits')
      stated = color.from_codes('nclx', *properties.codes) if properties.codes else None
    notes += _orientation_notes(image)
    image.load()
    if image.mode == 'LAB':
      stated = None  # these numbers are colours by themselves
    elif image.info.get('icc_profile', b'') != b'':
      stated = color.from_profile(image.info['icc_profile'])
    # Pillow has turned TIFF itself, and taken the tag away.
    turn = _UPRIGHT.get(_orientation(image))
    upright = image.transpose(turn) if turn is not None else image.copy()
    notes = _frame_notes(image, chunks) + notes
  opaque, alpha, mode_notes = _without_alpha(upright)
  converted, colour_notes = _to_srgb(opaque, stated)
  values, scale_notes = _scale(path, converted)
  if alpha is not None:
    colours = values if values.ndim == 3 else np.repeat(values[..., None], 3, -1)
    values = np.concatenate([colours, np.asarray(alpha, np.float32)[..., None] / 255], -1)
  elif values.ndim == 2:
    values = values[..., None]
  notes = (*notes, *mode_notes, *colour_notes, *scale_notes)
  return LoadedImage(np.ascontiguousarray(values, np.float32), notes)


def _identify(file: BinaryIO, chunks: png.Png | None) -> tuple[Image.Image, list[str]]:
  """The image before its pixels are decoded, and a note on metadata that was in the way."""
  if chunks:
    image = Image.open(io.BytesIO(chunks.data))
    image.info.update(chunks.metadata)
    return image, [f'damaged {name} chunk ignored' for name in chunks.ignored]
  try:
    return Image.open(file), []
  except Exception:
    file.seek(0)
    stripped = metadata.without(file.read(_MAX_BYTES))
    if stripped is None:
      raise
    data, info = stripped
    image = Image.open(io.BytesIO(data))
    image.info.update(info)
    return image, ['damaged metadata ignored']


def _png_colours(chunks: png.Png) -> color.Stated | None:
  """What counts of the chunks on colours, by section 4.3 of the PNG specification."""
  if chunks.codes:
    primaries, transfer, matrix, full_range = chunks.codes
    if matrix != 0 or full_range != 1:
      return color.Stated('cICP', problem='it is not of RGB in full range')
    return color.from_codes('cICP', primaries, transfer)
  if chunks.profile is not None:
    return color.from_profile(chunks.profile)
  return None if chunks.srgb else color.from_gamma(chunks.gamma, chunks.chromaticities)


def _depth_notes(image: Image.Image) -> list[str]:
  """A note where Pillow cuts samples to 8 bits, which the arguments of its decoders tell."""
  if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
    return []
  for tile in getattr(image, 'tile', []):
    codec, arguments = tile[0], tile[3]
    deep_ppm = codec.startswith('ppm') and isinstance(arguments, tuple) and arguments[-1] > 255
    if ';16' in str(arguments) or codec == 'SGI16' or deep_ppm:
      return [f'16-bit {"gray" if image.mode in ("L", "LA") else "colour"} reduced to 8 bits']
  return []


def _orientation(image: Image.Image) -> int:
  """The orientation that EXIF or XMP states, 1 to 8; raises what Pillow raises on a damaged one."""
  value = image.getexif().get(_ORIENTATION, 1)
  return int(value) if value in _UPRIGHT else 1


def _orientation_notes(image: Image.Image) -> list[str]:
  """A note on the orientation; a damaged block is cleared, so that Pillow reads it no more."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      # Pillow's plugins read EXIF already, and some of them keep what they got of a damaged block.
      Image.Exif().load(image.info.get('exif', b''))
      orientation = _orientation(image)
    except Exception:
      image.info.pop('exif', None)
      image.getexif().clear()
      return ['damaged EXIF ignored']
  if orientation > 1:
    return [f'EXIF orientation {orientation} applied']
  return ['damaged EXIF ignored'] if caught else []


def _frame_notes(image: Image.Image, chunks: png.Png | None) -> list[str]:
  """A note where the file has more than one frame; those after the first may be damaged."""
  try:
    frames = chunks.frames if chunks else getattr(image, 'n_frames', 1)
  except Exception:
    return ['first frame read, others are damaged']
  return [f'first of {frames} frames read'] if frames > 1 else []


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None, list[str]]:
  """Gray (L, I;16, I, F), RGB or CMYK; alpha (L) where the image has transparency; and a note."""
  mode, transparent = image.mode, image.info.get('transparency')
  gray = mode in ('1', 'L', 'I', 'F') or mode.startswith('I;16')
  alpha = None
  if gray:
    opaque = image.convert('L') if mode == '1' else image
    if mode.startswith('I;16'):  # in the byte order of this machine
      opaque = Image.fromarray(np.asarray(image).astype(np.uint16))
    if isinstance(transparent, int):
      alpha = Image.fromarray(np.where(np.asarray(opaque) == transparent, 0, 255).astype(np.uint8))
  elif mode in ('LA', 'La'):
    opaque, alpha = image.convert('LA').split()
  elif image.has_transparency_data:
    with_alpha = image.convert('RGBA')
    opaque, alpha = with_alpha.convert('RGB'), with_alpha.getchannel('A')
  else:
    opaque = image if mode in ('RGB', 'CMYK') else image.convert('RGB')
  target = 'RGBA' if alpha is not None else 'gray' if gray else 'RGB'
  if mode == target or (gray and mode != '1' and alpha is None):
    return opaque, alpha, []
  names = {'1': 'black and white', 'L': 'gray', 'LA': 'gray with alpha', 'P': 'palette'}
  name = '16-bit gray' if mode.startswith('I;16') else names.get(mode, mode)
  colour_key = ' with a transparent colour' if transparent is not None else ''
  return opaque, alpha, [f'{name}{colour_key} converted to {target}']


def _to_srgb(image: Image.Image, stated: color.Stated | None) -> tuple[Image.Image, list[str]]:
  """Gray or RGB in sRGB, and a note where the image states other colours."""
  notes = []
  if stated and image.mode not in ('I', 'F'):
    try:
      converted = color.to_srgb(image, stated)
      notes = [] if converted is image else [f'{stated.name} converted to sRGB']
      image = converted
    except color.ProfileError as error:
      notes = [f'{stated.name} not applied: {error}']
  elif stated:
    notes = [f'{stated.name} not applied: the picture is 32-bit gray']
  return image.convert('RGB') if image.mode == 'CMYK' else image, notes


def _scale(path: Path, image: Image.Image) -> tuple[np.ndarray, list[str]]:
  """Values in [0, 1], [H, W] or [H, W, C], and the notes on their scale."""
  values = np.asarray(image).astype(np.float32)
  if image.mode in ('L', 'RGB'):
    return values / 255, []
  low, high = values.min(), values.max()
  if image.mode == 'F':
    limit = 1 if high <= 1 else 255
    note = f'floating-point gray read on the scale 0..{limit}'
  else:
    limit = 65535
    note = f'{"32" if image.mode == "I" else "16"}-bit gray read on the scale 0..65535'
  if not (low >= 0 and high <= limit):  # NaN fails every comparison
    raise ImageError(f'{path}: wanted gray values in 0..{limit}, got {low} to {high}')
  return values / limit, [note]
