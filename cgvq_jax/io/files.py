"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes a file that appears whole or not at all, whenever the process or the machine stops.

  The data goes to a temporary name in the same folder, because only within one file system a
  rename replaces the old file in one step, and to the disk before the rename.

  Raises:
    OSError: the folder does not exist, or the file cannot be written.
  """
  path = Path(path)
  temporary = path.parent / f'.{os.urandom(8).hex()}.tmp'
  try:
    with temporary.open('xb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
