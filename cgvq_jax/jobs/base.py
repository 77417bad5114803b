"""What all jobs share: images, outcomes, reports of failures, JSON, decoding in a new process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from cgvq_jax import devices
from cgvq_jax.bitstream.container import ContainerError
from cgvq_jax.console import say
from cgvq_jax.fit.blocks import FitError
from cgvq_jax.io import files, images

if TYPE_CHECKING:
  from jaxtyping import Float, UInt8

_MAX_NAME_BYTES = 250  # file systems take 255, and the longest extension, .cgvq, takes five
_PACKAGE_PARENT = Path(__file__).parents[2]


class Source(NamedTuple):
  """An image of a job, which is read only when the job comes to it."""

  name: str
  load: Callable[[], images.LoadedImage]


def name_in_results(stem: str) -> str:
  """The name of an image in the results and of its files there: the stem of its own file.

  Where that is not UTF-8, or too long for another extension, it is as much of it as can be kept and
  eight digits of its SHA-256.
  """
  raw = os.fsencode(stem)
  plain = raw.decode('utf-8', 'replace').replace('\ufffd', '_')
  if plain == stem and len(raw) <= _MAX_NAME_BYTES:
    return stem
  digits = hashlib.sha256(raw).hexdigest()[:8]
  start = plain.encode()[: _MAX_NAME_BYTES - len(digits) - 1].decode('utf-8', 'ignore')
  return f'{start}-{digits}'


class Outcome(NamedTuple):
  """What a job did."""

  made: int  # files, or fits
  unchanged: int  # that were there already
  failures: list[str]  # a line for each


class DecodeError(RuntimeError):
  """A new process could not decode a file: the file, and the last line of its error output."""


_EXPECTED = (images.ImageError, ContainerError, FitError, DecodeError, OSError)


@contextmanager
def reported(name: str, failures: list[str]) -> Iterator[None]:
  """Catches an exception, prints it as one line and appends that to `failures`.

  The traceback is printed too where the exception is not one that bad input or a full disk causes.
  """
  try:
    yield
  except Exception as error:
    if not isinstance(error, _EXPECTED):
      traceback.print_exc()
    lines = str(error).strip().splitlines() or ['']
    failures.append(f'{name}: {type(error).__name__}: {lines[0]}')
    say(f'failed: {failures[-1]}', sys.stderr)


def digest_of(pixels: Float[np.ndarray, 'H W C']) -> str:
  """SHA-256 of an image's shape and pixels, in hexadecimal."""
  return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def read_json(path: str | os.PathLike[str], default: Any = None) -> Any:
  """A file's contents, or the default where there is no such file or it is damaged."""
  try:
    return json.loads(Path(path).read_text('utf-8'))
  except (OSError, ValueError):
    return default


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes a value as JSON; the file appears whole or not at all.

  Raises:
    OSError: the folder cannot be made or the file cannot be written.
  """
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(path, (json.dumps(value, indent=1) + '\n').encode())


def decode_in_new_process(file: Path) -> UInt8[np.ndarray, 'H W C']:
  """The 8-bit pixels that another process decodes a file to; its PNG stays beside the file.

  Raises:
    DecodeError: that process failed.
  """
  png = file.with_suffix('.png')
  path = os.pathsep.join(filter(None, [str(_PACKAGE_PARENT), os.environ.get('PYTHONPATH')]))
  # This process holds most of a GPU's memory; the other takes only what it needs of the rest.
  environment = {**os.environ, 'PYTHONPATH': path, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  done = subprocess.run(
    [sys.executable, '-m', 'cgvq_jax', 'decode', str(file), str(png)],
    env=environment,
    capture_output=True,
    text=True,
    errors='replace',
  )
  if done.returncode:
    error = (done.stderr.strip().splitlines() or ['nothing on stderr'])[-1]
    raise DecodeError(f'{file}: wanted a decoded image, got exit code {done.returncode}: {error}')
  return images.to_bytes8(images.load(png).pixels)


def device_name() -> str:
  """The device that this process encodes on, as reports name it."""
  device = jax.devices()[0]
  if device.platform == 'cpu':
    return f'CPU, {devices.num_usable_cores()} cores'
  return device.device_kind
