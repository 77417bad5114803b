"""Odd image files: what each has to become, as a table; exits with 1 where one is wrong.

    python tests/support/odd_inputs.py            # minutes: some files are encoded
    python tests/support/odd_inputs.py --load     # a second: they are only read

The files are in tests/data/cases. Expected colours are those of the standards' formulas, computed
by hand; `GRADIENT` is the picture that most of the files hold, as they should be shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cgvq_jax import alpha, cli, codec, metrics
from cgvq_jax.io import images

CASES = Path(__file__).parents[1] / 'data' / 'cases'

_X = np.arange(32)[None, :] + np.zeros((32, 1), int)
GRADIENT = np.stack([8 * _X, 8 * _X.T, 255 - 4 * _X], -1)  # [32, 32, 3], red by x and green by y
# Places (x, y) of the gradient, and what their colours are in sRGB where they were stated to be
# linear light: 1.055 l^(1/2.4) - 0.055.
LINEAR = {
  (0, 0): (0, 0, 255),
  (8, 24): (137.21, 225.0, 240.38),
  (24, 8): (225.0, 137.21, 206.94),
  (31, 31): (251.9, 251.9, 189.8),
}
# The same where they were of Display P3: its curve, its primaries to those of sRGB, clipped, sRGB's
# curve.
DISPLAY_P3 = {
  (0, 0): (0, 0, 255),
  (8, 24): (0, 195.22, 226.98),
  (24, 8): (208.5, 49.46, 163.03),
  (16, 16): (128, 128, 195.84),
  (31, 0): (255, 0, 132.03),
  (31, 31): (248, 248, 110.36),
}


class Row(NamedTuple):
  """One file and one expectation; `check` returns whether it is met, and what was got."""

  name: str
  file: str
  expected: str
  check: Callable[[Path], tuple[bool, str]]
  encodes: bool = False


def rows() -> list[Row]:
  colours = {(x, y): GRADIENT[y, x] for x in range(32) for y in range(32)}
  swapped = {place: colour[[1, 0, 2]] for place, colour in colours.items()}
  damaged = ('damaged EXIF ignored',)
  text_chunk = ("damaged tEXt 'Raw profile type exif' chunk ignored",)
  return [
    _loaded('plain32.png', colours, 0, ()),
    _loaded('exif_raw_profile.png', colours, 0, text_chunk),
    _loaded('exif_no_tiff.png', colours, 0, damaged),
    _loaded('exif_garbage.webp', colours, 15, damaged),  # a lossy file
    _loaded('srgb_icc.png', colours, 0, ()),
    _loaded('display_p3.png', DISPLAY_P3, 2, ('embedded colour profile (uP3) converted to sRGB',)),
    _loaded('gama_linear.png', LINEAR, 1.5, ('gAMA converted to sRGB',)),
    _loaded('chrm_swapped.png', swapped, 1, ('gAMA and cHRM converted to sRGB',)),
    _loaded(
      'rgb16.ppm',  # 20500, 40970 and 55535 of 65535
      {(0, 0): (0, 0, 255), (10, 20): (79.8, 159.4, 216.1)},
      1,
      ('16-bit colour reduced to 8 bits',),
    ),
    _loaded(
      'gray4_trns.png',  # levels of two columns each, 15 is transparent
      {(x, y): 3 * (17 * (x // 2),) + (255 * (x < 30),) for x in range(32) for y in range(32)},
      0,
      ('gray with a transparent colour converted to RGBA',),
    ),
    _loaded('rgba32.png', {place: (*c, 8 * place[0]) for place, c in colours.items()}, 0, ()),
    _loaded('hidden_clean.png', {(0, 0): (255, 0, 0, 0), (32, 32): (255, 0, 0, 255)}, 0, ()),
    Row('fill', 'hidden_noise.png', 'red everywhere, as is seen', _filled_with_red),
    _encoded('plain32.png', 45, 200, '--preset', 'fast'),
    _encoded('rgba32.png', 44, 200, '--preset', 'fast'),
    _encoded('hidden_clean.png', 45, 300, '--preset', 'fast'),
    _encoded('hidden_noise.png', 45, 300, '--preset', 'fast'),
    _encoded('tiny2x2.png', 40, None, '--quality', '100'),
    _encoded('tiny8x8.png', 55, None, '--quality', '100'),
    _encoded('text.png', 35, None, '--target_psnr', '35', '--preset', 'fast'),
  ]


def _loaded(file: str, colours: dict, tolerance: float, notes: tuple[str, ...]) -> Row:
  """Colours at (x, y) on the scale 0..255, at most `tolerance` levels off, and all the notes."""

  def check(path: Path) -> tuple[bool, str]:
    loaded = images.load(path)
    values = images.to_bytes8(loaded.pixels).astype(float)
    error = max(np.abs(values[y, x] - wanted).max() for (x, y), wanted in colours.items())
    channels = len(next(iter(colours.values())))
    right = values.shape[2] == channels and error <= tolerance and loaded.notes == notes
    return right, f'off by {error:.1f}; {_listed(loaded.notes)}'

  return Row('load', file, f'off by <= {tolerance:.1f}; {_listed(notes)}', check)


def _listed(notes: tuple[str, ...]) -> str:
  return ', '.join(notes) or 'no note'


def _filled_with_red(path: Path) -> tuple[bool, str]:
  pixels = images.load(path).pixels
  colours = images.to_bytes8(alpha.fill_hidden(pixels))[..., :3]
  error = np.abs(colours.astype(int) - (255, 0, 0)).max()
  return bool(error == 0), 'red everywhere' if error == 0 else f'off by {error}'


def _encoded(file: str, least_psnr: float, most_bytes: int | None, *options: str) -> Row:
  """A file by `cgvq encode` with these options, its PSNR in dB and its size."""

  def check(path: Path) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
      out = Path(folder) / 'out.cgvq'
      code = cli.main(['encode', str(path), str(out), '--quiet', *options])
      if code:
        return False, f'exit code {code}'
      data = out.read_bytes()
    decoded = images.to_bytes8(codec.render(codec.decode(data)))
    psnr = metrics.psnr(images.to_bytes8(images.load(path).pixels), decoded)
    small = most_bytes is None or len(data) <= most_bytes
    return psnr >= least_psnr and small, f'{psnr:.2f} dB, {len(data)} bytes'

  size = f', <= {most_bytes} bytes' if most_bytes else ''
  name = ' '.join(('encode', *options))
  return Row(name, file, f'>= {least_psnr} dB{size}', check, encodes=True)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--load', action='store_true', help='leave out the files to encode')
  arguments = parser.parse_args()
  table = [('file', 'by', 'expected', 'got', '')]
  for row in rows():
    if row.encodes and arguments.load:
      continue
    try:
      right, got = row.check(CASES / row.file)
    except Exception as error:
      right, got = False, f'{type(error).__name__}: {error}'
    table.append((row.file, row.name, row.expected, got, 'OK' if right else 'wrong'))
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  for line in table:
    print('  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
  return int(any(line[-1] == 'wrong' for line in table))


if __name__ == '__main__':
  sys.exit(main())
