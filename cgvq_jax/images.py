"""Files <-> float32 [H, W, C] arrays in [0, 1]; where images come from."""

from __future__ import annotations

import io
import os
import secrets
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFile, ImageOps

MAX_PIXELS = 8192 * 8192  # 67 MP: a whole camera sensor, and three quarters of Pillow's own limit

# fmt: off
_EXTENSIONS = frozenset((
  '.avif', '.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.pfm', '.pgm',
  '.png', '.pnm', '.ppm', '.tga', '.tif', '.tiff', '.webp',
))
# fmt: on
_KODAK_STEMS = tuple(f'kodim{number:02d}' for number in range(1, 25))
_KODAK_ADDRESS = 'https://r0k.us/graphics/kodak/kodak/{stem}.png'
_KODAK_SIZES = ((768, 512), (512, 768))  # width, height in px
_KODAK_VARIABLE = 'CGVQ_KODAK'
_KODAK_FOLDER = Path('data/kodak')


class ImageError(ValueError):
  """A file is not the image that was wanted; says the path, what was wanted and what was got."""


class LoadedImage(NamedTuple):
  """An image as it was read, and in plain words every conversion that reading it took."""

  pixels: Float[np.ndarray, 'H W C']  # float32 in [0, 1]; C is 1 (gray), 3 (RGB) or 4 (RGBA)
  notes: tuple[str, ...]  # such as 'CMYK converted to RGB'; empty where nothing was changed


def load(path: str | os.PathLike[str]) -> LoadedImage:
  """Reads an image file of any kind that Pillow knows.

  8-bit values are divided by 255 and 16-bit gray by 65535. Gray stays one channel; anything
  transparent becomes RGBA, with alpha not multiplied in; every other colour space becomes RGB.
  32-bit integers are read on the 16-bit scale, as in the files that Pillow gives this mode;
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
  """round(255 clip(x, 0, 1)) as uint8: the project's only rounding of values to 8 bits.

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
  """Writes pixels, rounded by `to_bytes8`, in the format that the extension names.

  The settings are Pillow's own, so .png is lossless while .jpg and .webp are not. The file
  appears whole or not at all.

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


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes a file that appears whole or not at all, whenever the process is killed.

  The data goes to a temporary name in the same folder, because only within one file system a
  rename replaces the old file in one step.

  Raises:
    OSError: the folder does not exist, or the file cannot be written.
  """
  path = Path(path)
  temporary = path.parent / f'.{secrets.token_hex(8)}.tmp'
  try:
    temporary.write_bytes(data)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def find_dataset(root: str | os.PathLike[str] | None = None) -> list[Path]:
  """The images of a folder, sorted by name; without a folder, Kodak's 24 photographs.

  Kodak's photographs are looked for in the folder that the environment variable CGVQ_KODAK
  names, or else in data/kodak under the working directory; all 24 must be there, so that a mean
  over Kodak is never a mean over a part of it. A given `root` may be any folder.

  Raises:
    ImageError: the folder is missing, holds no image, or holds two images of one stem.
  """
  if root is not None:
    return _images_in(Path(root).expanduser())
  named = os.environ.get(_KODAK_VARIABLE)
  folder = Path(named).expanduser() if named else _KODAK_FOLDER
  images = {path.stem: path for path in _images_in(folder)} if folder.is_dir() else {}
  missing = [stem for stem in _KODAK_STEMS if stem not in images]
  if missing:
    where = f'{_KODAK_VARIABLE}={named}' if named else f'{_KODAK_VARIABLE} unset, {folder}'
    raise ImageError(
      f'Kodak images: wanted {_KODAK_STEMS[0]} to {_KODAK_STEMS[-1]}, got {len(images)} images '
      f'({where}; {", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""} missing). Give '
      f'their folder as the dataset root, or name it in {_KODAK_VARIABLE}, or put them into '
      f'{_KODAK_FOLDER}. They are at {_KODAK_ADDRESS.format(stem=_KODAK_STEMS[0])} and so on; '
      f'cgvq_jax.images.download_kodak({str(_KODAK_FOLDER)!r}) fetches them.'
    )
  return [images[stem] for stem in _KODAK_STEMS]


def select(paths: Sequence[Path], names: Sequence[str]) -> list[Path]:
  """The paths whose stems are `names` ('kodim03'), in the order of `names`; all if it is empty.

  Raises:
    ImageError: no path has one of these stems.
  """
  known = {path.stem: path for path in paths}
  for name in names:
    if name not in known:
      raise ImageError(f'image {name!r}: wanted one of {", ".join(known)}, got an unknown name')
  return [known[name] for name in names] if names else list(paths)


def download_kodak(root: str | os.PathLike[str]) -> list[Path]:
  """Fetches those of Kodak's 24 photographs that `root` lacks; returns the paths of all 24.

  Each file appears whole or not at all, so an interrupted download goes on where it stopped.

  Raises:
    ImageError: the network, the server or the disk refuses, or what came is not the photograph.
  """
  root = Path(root).expanduser()
  paths = [root / f'{stem}.png' for stem in _KODAK_STEMS]
  for path in paths:
    if path.exists():
      continue
    address = _KODAK_ADDRESS.format(stem=path.stem)
    try:
      with urllib.request.urlopen(address, timeout=60) as response:
        data = response.read()
      with Image.open(io.BytesIO(data)) as image:
        image.load()
        size = image.size
      if size not in _KODAK_SIZES:
        raise ValueError(f'an image of {size[0]} x {size[1]} pixels')
      root.mkdir(parents=True, exist_ok=True)
      write_atomically(path, data)
    except (
      OSError,
      ValueError,
      SyntaxError,
    ) as error:  # Pillow reports a broken PNG as a syntax error
      raise ImageError(f'{path}: wanted the photograph at {address}, got: {error}') from error
  return paths


def sample_photograph() -> Float[np.ndarray, '400 600 3']:
  """A photograph that needs no download: scikit-image's `coffee`, 600 x 400 pixels.

  A cup on a wooden table, by Rachel Michetti, courtesy of Pikolo Espresso Bar, released under CC0;
  the PNG lies inside scikit-image's package. It was chosen over `rocket`, which is the same size
  but a JPEG file and so favours a comparison with JPEG.
  """
  from skimage import data  # slow to import, and only needed here

  return data.coffee().astype(np.float32) / 255


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
  # A damaged file raises whatever its plugin stumbles over: OSError, SyntaxError, ValueError and
  # RuntimeError have been seen.
  except Exception as error:
    raise ImageError(
      f'{path}: wanted a readable image file, got {type(error).__name__}: {error}'
    ) from error


def _file_notes(image: ImageFile.ImageFile) -> list[str]:
  """What reading this file leaves out or changes, apart from its mode."""
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


def _images_in(folder: Path) -> list[Path]:
  """Image files of a folder, sorted by name. Stems must differ: results are kept by stem."""
  try:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith('.'))
  except OSError as error:
    raise ImageError(f'{folder}: wanted a folder of images, got: {error.strerror}') from error
  images = [path for path in files if path.suffix.lower() in _EXTENSIONS and path.is_file()]
  if not images:
    raise ImageError(f'{folder}: wanted a folder of images, got {len(files)} files and no image')
  stem, count = Counter(path.stem for path in images).most_common(1)[0]
  if count > 1:
    raise ImageError(f'{folder}: wanted one image of each name, got {count} named {stem!r}')
  return images
