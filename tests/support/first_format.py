"""What files would take in the first format: their integers, written by another checkout's code.

    git worktree add first 6285aee
    python tests/support/first_format.py first a.cgvq b.cgvq ...

prints the bytes of each file and of its sections, then the means.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np

from cgvq_jax.bitstream import codebooks, container

# Run by the other checkout, with plain tuples for values: its classes are others.
_WRITER = """
import pickle, sys
from cgvq_jax.bitstream import container
from cgvq_jax.types import Stream, Symbols
for *fields, position, rotation_scale, color in pickle.load(sys.stdin.buffer):
  streams = [Stream(*stream) for stream in (position, rotation_scale, color)]
  data = container.write(Symbols(*fields, *streams))
  print(len(data), *container.sections(data).values())
"""


def main() -> int:
  checkout, *files = sys.argv[1:]
  symbols = [container.read(container.read_file(file)) for file in files]
  plain = [
    tuple(tuple(field) if isinstance(field, tuple) else field for field in s[:-1])  # no order
    for s in symbols
  ]
  done = subprocess.run(
    [sys.executable, '-c', _WRITER],
    cwd=checkout,
    env={'PYTHONPATH': str(Path(checkout).resolve())},
    input=pickle.dumps(plain),
    capture_output=True,
    check=True,
  )
  rows = [list(map(int, line.split())) for line in done.stdout.decode().splitlines()]
  print('file bytes', *codebooks.SECTIONS)
  for file, row in zip(files, rows, strict=True):
    print(file, *row)
  print('mean', *np.mean(rows, axis=0).round(1))
  return 0


if __name__ == '__main__':
  sys.exit(main())
