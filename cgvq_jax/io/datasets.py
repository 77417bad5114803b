"""Images to work on: those of a folder, Kodak's 24 photographs, and a sample."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cgvq_jax.io.files import write_atomically
from cgvq_jax.io.images import ImageError

if TYPE_CHECKING:
  from jaxtyping import Float

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


def find_dataset(root: str | os.PathLike[str] | None = None) -> list[Path]:
  """The images of a folder, sorted by name; without a folder, Kodak's 24 photographs.

  Kodak's photographs are looked for in the folder that the environment variable CGVQ_KODAK
  names, or else in data/kodak under the working directory. All 24 must be there, so that a mean
  over Kodak is never a mean over a part of it. A given `root` may be any folder.

  Raises:
    ImageError: the folder is missing, has no image, has two images of one stem, or lacks some of
      Kodak's.
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
      f'cgvq_jax.io.datasets.download_kodak({str(_KODAK_FOLDER)!r}) fetches them.'
    )
  return [images[stem] for stem in _KODAK_STEMS]


def select(paths: Sequence[Path], names: Sequence[str]) -> list[Path]:
  """The paths whose stems are `names` ('kodim03'), in the order of `names`; all if it is empty.

  Raises:
    ImageError: a name is not the stem of any path.
  """
  known = {path.stem: path for path in paths}
  for name in names:
    if name not in known:
      raise ImageError(f'image {name!r}: wanted one of {", ".join(known)}, got an unknown name')
  return [known[name] for name in names] if names else list(paths)


def download_kodak(root: str | os.PathLike[str]) -> list[Path]:
  """Downloads those of Kodak's 24 photographs that `root` lacks; returns the paths of all 24.

  Each file appears whole or not at all, so an interrupted download continues where it stopped.

  Raises:
    ImageError: the download or the write failed, or the data is no image of Kodak's size.
  """
  import urllib.request  # slow to import, and only needed here

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
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: Pillow's of a broken PNG
      raise ImageError(f'{path}: wanted the photograph at {address}, got: {error}') from error
  return paths


def sample_photograph() -> Float[np.ndarray, '400 600 3']:
  """A photograph that needs no download: scikit-image's `coffee`, 600 x 400 pixels.

  A cup on a wooden table, by Rachel Michetti, courtesy of Pikolo Espresso Bar, released under CC0;
  the PNG is part of scikit-image's package. It was preferred to `rocket`, which has the same size
  but is a JPEG file, so that a comparison with JPEG would favour JPEG.
  """
  from skimage import data  # slow to import, and only needed here

  return data.coffee().astype(np.float32) / 255


def _images_in(folder: Path) -> list[Path]:
  """Image files of a folder, sorted by name. Stems must differ, for results are named by them."""
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
