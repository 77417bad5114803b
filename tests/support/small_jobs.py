"""Jobs so small that they take seconds, shared by the tests of the jobs and of the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.io import datasets, images
from cgvq_jax.jobs import rate_distortion
from cgvq_jax.jobs.base import Source

ROOT = Path(__file__).parents[2]
POINTS = rate_distortion.grid(['gi'], [60], order='sorted')
SETTINGS = FitSettings(steps=500, finetune_steps=100)


def write_image(path: Path, left: int = 200) -> Path:
  """48 x 40 pixels of the sample photograph."""
  images.save(path, datasets.sample_photograph()[100:148, left : left + 40])
  return path


def sources(folder: Path) -> list[Source]:
  return [
    Source(path.stem, lambda path=path: images.load(path)) for path in datasets.find_dataset(folder)
  ]


def share_programs(folder: Path) -> None:
  """Lets the processes that tests start share their compiled programs, unless a cache is set."""
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder / 'compiled'))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


def start(*arguments: str | Path) -> subprocess.Popen[str]:
  """`python -m ...` in the project's folder."""
  return subprocess.Popen(
    [sys.executable, '-m', *map(str, arguments)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def call(*arguments: str | Path) -> tuple[int, str, str]:
  """Exit code, stdout and stderr of `python -m ...`."""
  process = start(*arguments)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err
