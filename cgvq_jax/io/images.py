"""Image files to float32 [H, W, C] arrays in [0, 1], and back."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from cgvq_jax.io.files import write_atomically

if TYPE_CHECKING:
  from jaxtyping import Float, UInt8

MAX_PIXELS = 8192 * 8192  # 67 MP: a whole camera sensor, and three quarters of Pillow's own limit


class ImageError(ValueError):
  """A file is not the image that was wanted: its path, what was wanted and what was got."""


class LoadedImage(NamedTuple):
  """An image, and a note on each conversion that was needed to read it."""

  pixels: Float[np.ndarray, 'H W C']  # float32 in [0, 1]; C is 1 (gray), 3 (RGB) or 4 (RGBA)
  notes: tuple[str, ...]  # such as 'CMYK converted to RGB'; empty where nothing was converted


def load(path: str | os.PathLike[str]) -> LoadedImage:
  """Reads an image file of any kind that Pillow knows.

  8-bit values are divided by 255 and 16-bit gray by 65535. Gray stays one channel; an image with
  transparency becomes RGBA, with straight alpha; every other colour space becomes RGB. 32-bit
  integers are read on the 16-bit scale, because Pillow gives this mode to 16-bit files;
  floating-point gray is read as 0..1, or as 0..255 where a value is above 1. The EXIF orientation
  is applied, an embedded colour profile is not. Of several frames the first is read.

  Raises:
    ImageError: there is no such file, it cannot be read, it is not an image, it is truncated,
      it has more than `MAX_PIXELS` pixels, or its values are not finite or out of range.
  """
  path = Path(path)
  image, notes = _read(path)
  values, scale_notes = _scale(path, image)
  pixels = values if values.ndim == 3 else values[..., None]
  return LoadedImage(np.ascontiguousarray(pixels, np.float32), (*notes, *scale_notes))


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


def save(path: str | os.PathLike[str], pixels: Float[np.ndarray, 'H W C']) -> None:
  """Writes pixels, rounded by `to_bytes8`, in the format of the path's extension.

  Options are Pillow's defaults, so .png is lossless while .jpg and .webp are not. The file appears
  whole or not at all.

  Raises:
    ImageError: Pillow writes no such extension, the format cannot hold these channels, or the
      file cannot be written.
    ValueError: pixels are not [H, W, C] with C = 1, 3 or 4, or not what `to_bytes8` takes.
  """
  path = Path(path)
  file_format = Image.registered_extensions().get(path.suffix.lower())
  if file_format not in Image.SAVE:
    raise ImageError(f'{path}: wanted an extension such as .png, .jpg, .webp, got {path.suffix!r}')
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


def to_picture(values: UInt8[np.ndarray, 'H W C']) -> Image.Image:
  """8-bit pixels as a Pillow image of mode L, RGB or RGBA."""
  return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def _read(path: Path) -> tuple[Image.Image, list[str]]:
  """The upright first frame in one of the modes L, RGB, RGBA, I;16*, I and F, and the notes."""
  try:
    if not path.is_file():
      got = 'a folder' if path.is_dir() else 'no such file'
      raise ImageError(f'{path}: wanted an image file, got {got}')
    if path.stat().st_size == 0:
      raise ImageError(f'{path}: wanted an image file, got an empty file')
    with Image.open(path) as image:
      width, height = image.size
      if not 1 <= width * height <= MAX_PIXELS:
        raise ImageError(
          f'{path}: wanted 1 to {MAX_PIXELS} pixels, got {width} x {height} = {width * height}'
        )
      notes = _file_notes(image)
      image.load()
      return _to_common_mode(ImageOps.exif_transpose(image), notes)
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


def _file_notes(image: ImageFile.ImageFile) -> list[str]:
  """Notes on what reading a file leaves out or converts, apart from its mode."""
  notes = []
  frames = getattr(image, 'n_frames', 1)
  if frames > 1:
    notes.append(f'first of {frames} frames read')
  if image.mode in ('RGB', 'RGBA') and any(';16' in str(tile.args) for tile in image.tile):
    notes.append('16-bit colour reduced to 8 bits')
  if 'icc_profile' in image.info:
    notes.append('embedded colour profile not applied')
  orientation = image.getexif().get(0x0112, 1)
  if orientation in range(2, 9):
    notes.append(f'EXIF orientation {orientation} applied')
  return notes


def _to_common_mode(image: Image.Image, notes: list[str]) -> tuple[Image.Image, list[str]]:
  """The image in one of the modes that `_scale` reads, and the notes with those on its mode."""
  mode = image.mode
  if mode in ('I', 'F') or mode.startswith('I;16'):
    # No conversion: Pillow clips these modes at 255 on the way to gray.
    ignored = ['transparent gray value ignored'] if 'transparency' in image.info else []
    return image, notes + ignored
  opaque = {'1': 'L', 'L': 'L'}.get(mode, 'RGB')
  target = 'RGBA' if image.has_transparency_data else opaque
  if mode == target:
    return image, notes
  names = {'1': 'black and white', 'L': 'gray', 'LA': 'gray with alpha', 'P': 'palette'}
  colour_key = ' with a transparent colour' if 'transparency' in image.info else ''
  target_name = {'L': 'gray'}.get(target, target)
  note = f'{names.get(mode, mode)}{colour_key} converted to {target_name}'
  return image.convert(target), [*notes, note]


def _scale(path: Path, image: Image.Image) -> tuple[np.ndarray, list[str]]:
  """Values in [0, 1], [H, W] or [H, W, C], and the notes on their scale."""
  values = np.asarray(image).astype(np.float32)
  if image.mode in ('L', 'RGB', 'RGBA'):
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
