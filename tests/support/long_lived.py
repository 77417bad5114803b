"""What a process that lives long takes of a machine: memory, memory mappings, compilations.

    python tests/support/long_lived.py KIND COUNT [KIND COUNT ...]

does so many of each kind, one kind after the other in one process, and prints a line of JSON for
each. The kinds are

  renderings  of one file at as many sizes, by NumPy and by JAX
  sizes       short encodes of pictures of as many sizes
  qualities   short encodes of one picture at as many qualities
  pictures    short encodes of as many pictures of one size
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import cgvq_jax as cg
from cgvq_jax import devices
from cgvq_jax.io import datasets

# Enough steps that some Gaussians are relocated.
SETTINGS = cg.FitSettings(steps=60, finetune_steps=31)
PHOTOGRAPH = datasets.sample_photograph()


def renderings(count: int) -> Iterator[None]:
  """Each is a pixel wider than the one before, from 27 px."""
  data = _encoded(PHOTOGRAPH[:60, :90], 50)
  decoded = cg.decode(data)
  for i in range(count):
    scale = (27 + i) / 90
    for renderer in ('numpy', 'jax'):
      cg.render(decoded, scale, renderer)
    yield


def sizes(count: int) -> Iterator[None]:
  """17 to 128 px by 17 to 140 px, in no order."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    height, width = rng.integers(17, [129, 141])
    _encoded(PHOTOGRAPH[:height, :width], 50)
    yield


def qualities(count: int) -> Iterator[None]:
  """From 1 to 100, in no order."""
  for quality in np.random.default_rng(0).permutation(np.linspace(1, 100, count)):
    _encoded(PHOTOGRAPH[:96, :128], float(quality))
    yield


def pictures(count: int) -> Iterator[None]:
  """Parts of the photograph that begin at other places."""
  for i in range(count):
    y, x = 7 * i % 200, 13 * i % 300
    _encoded(PHOTOGRAPH[y : y + 96, x : x + 128], 50)
    yield


KINDS: dict[str, Callable[[int], Iterator[None]]] = {
  f.__name__: f for f in (renderings, sizes, qualities, pictures)
}


def _encoded(image: np.ndarray, quality: float) -> bytes:
  method = cg.methods.cgvq_rd(channels=image.shape[2], quality=quality)
  return cg.encode(np.ascontiguousarray(image), method, SETTINGS)


def num_mappings() -> int:
  """Memory mappings of this process."""
  with open('/proc/self/maps', 'rb') as lines:
    return sum(1 for _ in lines)


def resident_mib() -> float:
  """Resident memory of this process."""
  fields = Path('/proc/self/statm').read_text().split()
  return int(fields[1]) * 4096 / 2**20


class Compilations:
  """Counts the programs that XLA compiles."""

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, seconds: float, **about: str) -> None:
    self.count += event == '/jax/core/compile/backend_compile_duration'


def figures_of(kind: str, count: int, start: float, compilations: Compilations) -> dict[str, Any]:
  """Does `count` of a kind; memory is counted from `start`, MiB."""
  before, memory, mappings, compiled = compilations.count, [], [], []
  for _ in KINDS[kind](count):
    gc.collect()
    memory.append(resident_mib() - start)
    mappings.append(num_mappings())
    compiled.append(compilations.count - before)
  half = count // 2
  return {
    'kind': kind,
    'count': count,
    'most_mappings': max(mappings),
    'most_mib_above_start': round(max(memory)),
    'mib_in_second_half': round(max(memory[half:]) - max(memory[:half])),
    'compiled_by_first': compiled[0],
    'compiled_by_others': compiled[-1] - compiled[0],
  }


def main(*arguments: str) -> None:
  devices.use_all()
  compilations, start = Compilations(), resident_mib()
  for kind, count in zip(arguments[::2], arguments[1::2], strict=True):
    print(json.dumps(figures_of(kind, int(count), start, compilations)), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
