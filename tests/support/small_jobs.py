"""Jobs so small that they take seconds, shared by the tests of the dataset job and the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cgvq_jax.fit.api import Recipe
from cgvq_jax.io import datasets, images
from cgvq_jax.jobs import rate_distortion

ROOT = Path(__file__).parents[2]
POINTS = rate_distortion.grid(['gi'], [60])
SETTINGS = rate_distortion.Settings(Recipe(steps=500), finetune_steps=100)


def write_image(path: Path, left: int = 200) -> Path:
  """48 x 40 pixels of the sample photograph."""
  images.save(path, datasets.sample_photograph()[100:148, left : left + 40])
  return path


def sources(folder: Path) -> list[rate_distortion.Source]:
  return [
    rate_distortion.Source(path.stem, lambda path=path: images.load(path))
    for path in datasets.find_dataset(folder)
  ]


def share_programs(folder: Path) -> None:
  """Lets the processes that tests start share what they compile, where nobody has said how."""
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
