"""Files that appear whole or not at all, and whether there is room for them."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import IO

_unfinished: set[Path] = set()


def target_of(path: str | os.PathLike[str]) -> Path:
  """The file that a path names, or that a symbolic link leads to in the end; it need not exist.

  Raises:
    OSError: the links go round in a circle, a name is too long, or a folder cannot be searched.
  """
  _status(path)
  return Path(os.path.realpath(path) if os.path.islink(path) else path)


def is_special(path: str | os.PathLike[str]) -> bool:
  """Whether there is something that is neither a file nor a folder, such as /dev/null or a pipe.

  This process's standard output is one too, even where it goes to a file.
  """
  try:
    mode = os.stat(path).st_mode
  except OSError:
    return False
  return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or is_stdout(path)


def is_stdout(path: str | os.PathLike[str]) -> bool:
  """Whether a path is this process's standard output, as /dev/stdout is."""
  try:
    return os.path.samestat(os.stat(path), os.fstat(1))
  except OSError:  # there is no such file, or the output is closed
    return False


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes a file that appears whole or not at all, whenever the process or the machine stops.

  The data goes to a temporary name in the same folder, because only within one file system a
  rename replaces the old file in one step, and to the disk before the rename. Symbolic links are
  followed, and a file that is replaced keeps its mode. What `is_special` is written into as it is.

  Raises:
    OSError: the folder does not exist, or the file cannot be written.
  """
  if is_special(path):
    _write_into(path, data)
    return
  target = target_of(path)
  old = _status(target)
  temporary = target.parent / f'.{os.urandom(8).hex()}.tmp'
  _unfinished.add(temporary)
  # Nobody may read the new file who may not read the old one, not even before the rename.
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
  try:
    descriptor = os.open(temporary, flags, 0o600 if old else 0o666)
    with open(descriptor, 'wb') as file:
      file.write(data)
      file.flush()
      if old:
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
      os.fsync(descriptor)
    os.replace(temporary, target)
  except OSError as error:  # which names the temporary file or none
    raise OSError(error.errno, error.strerror, str(path)) from error
  finally:
    temporary.unlink(missing_ok=True)
    _unfinished.discard(temporary)


def check_room(folder: str | os.PathLike[str], num_bytes: int) -> None:
  """Checks that a folder has room for `num_bytes` more, 1 or more, by a nameless file of this size.

  Raises:
    OSError: the folder cannot be written, its disk is too full, or its files may not be so large.
  """
  try:
    with tempfile.TemporaryFile(dir=folder) as file:
      _allocate(file, num_bytes)
  except OSError as error:  # which names the temporary file or none
    raise OSError(error.errno, error.strerror, str(folder)) from error


def remove_unfinished() -> None:
  """Removes the temporary files of writes that are under way, for a process that ends at once."""
  for temporary in _unfinished:
    temporary.unlink(missing_ok=True)


def _allocate(file: IO[bytes], num_bytes: int) -> None:
  """Makes a file so long, all of it on the disk."""
  if hasattr(os, 'posix_fallocate'):  # not on macOS
    try:
      os.posix_fallocate(file.fileno(), 0, num_bytes)
      return
    except OSError as error:
      if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of file systems without it
        raise
  file.write(bytes(num_bytes))
  file.flush()
  os.fsync(file.fileno())


def _write_into(path: str | os.PathLike[str], data: bytes) -> None:
  if is_stdout(path):
    sys.stdout.flush()
    # Opened by its name, a file that it goes to would be written from its start.
    with open(1, 'wb', closefd=False) as file:
      file.write(data)
    return
  with open(path, 'wb') as file:
    file.write(data)


def _status(path: str | os.PathLike[str]) -> os.stat_result | None:
  """Of what a path leads to; None where there is nothing yet."""
  try:
    return os.stat(path)
  except FileNotFoundError:
    return None
