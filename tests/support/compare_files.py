"""Whether two checkouts write the same files: for changes that must not change a byte.

    python tests/support/compare_files.py OTHER_CHECKOUT

encodes a grey picture and one with alpha by every method, in this checkout and in the other, with
the same seed, and compares the files byte by byte. Exits with 1 where any differs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[2]
METHODS = ('gi', 'cgvq', 'gi_fp16', 'cgvq_fp16', 'cgvq_rd')
PICTURES = ('grey', 'alpha')
# Run in a checkout: its own command, all files in one process so that programs are compiled once.
SCRIPT = """
import sys
from cgvq_jax.cli import main
folder, pictures, methods = sys.argv[1], sys.argv[2].split(','), sys.argv[3].split(',')
for picture in pictures:
  for method in methods:
    count = [] if method == 'cgvq_rd' else ['--num_gaussians', '150']
    steps = ['--fit_steps', '300', '--finetune_steps', '120', '--seed', '5', '--quiet']
    source, target = f'{folder}/{picture}.png', f'{folder}/{picture}-{method}.cgvq'
    if main(['encode', source, target, '--method', method, *count, *steps]):
      sys.exit(f'{picture} {method}: not encoded')
"""


def write_pictures(folder: Path) -> None:
  """64 x 48 pixels in grey, and 56 x 72 with a soft round mask, of the sample photograph."""
  import numpy as np
  from PIL import Image
  from skimage import data

  photograph = data.coffee()
  Image.fromarray(photograph[100:148, 200:264]).convert('L').save(folder / 'grey.png')
  piece = photograph[150:222, 250:306]
  y, x = np.mgrid[-1:1:72j, -1:1:56j]
  mask = np.clip(700 * (1 - np.hypot(x, y)), 0, 255).astype(np.uint8)
  Image.fromarray(np.dstack([piece, mask])).save(folder / 'alpha.png')


def encode_all(checkout: Path, folder: Path) -> dict[str, bytes]:
  """The bytes of every file, by its name."""
  folder.mkdir()
  write_pictures(folder)
  arguments = [str(folder), ','.join(PICTURES), ','.join(METHODS)]
  subprocess.run([sys.executable, '-c', SCRIPT, *arguments], cwd=checkout, check=True)
  return {file.name: file.read_bytes() for file in sorted(folder.glob('*.cgvq'))}


def main() -> int:
  if len(sys.argv) != 2:
    print(__doc__, file=sys.stderr)
    return 2
  with tempfile.TemporaryDirectory() as folder:
    ours = encode_all(HERE, Path(folder) / 'here')
    theirs = encode_all(Path(sys.argv[1]).resolve(), Path(folder) / 'there')
  different = [name for name in ours if ours[name] != theirs[name]]
  for name in ours:
    said = 'DIFFERENT' if name in different else 'same'
    print(f'{name:24} {len(ours[name]):6} and {len(theirs[name]):6} bytes: {said}')
  return 1 if different else 0


if __name__ == '__main__':
  sys.exit(main())
