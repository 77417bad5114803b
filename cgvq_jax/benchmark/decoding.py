"""Seconds from a file's bytes to its integers, to Gaussians and to pixels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgvq_jax import codec
from cgvq_jax.bitstream import container
from cgvq_jax.evaluate import tables
from cgvq_jax.evaluate.timer import Clock, Stopwatch
from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.rasterize import tiles
from cgvq_jax.rasterize.tiles import Capacity

_COLUMNS = (
  'file', 'bytes', 'integers ms', 'Gaussians ms', 'pixels ms', 'decode ms', 'tile pairs'
)  # fmt: skip


def _tile_pairs(gaussians: Gaussians, height: int, width: int) -> int:
  """The number of (tile, Gaussian) pairs, which determines the cost of a rendering."""

  def attempt(capacity: Capacity):
    needed = int(tiles.assign(gaussians, height, width, capacity.pairs)[-1])
    return needed, Capacity(needed)

  first = Capacity(tiles.initial_capacity(gaussians.num_gaussians, height, width))
  return tiles.grow_until_it_fits(first, attempt)[0]


def decode(
  files: Sequence[Path],
  renderer: str | None = None,
  rounds: int = 25,
  clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
  """Median warm milliseconds from each file's bytes to integers, to Gaussians and to pixels."""
  contents = {str(file): container.read_file(file) for file in files}
  seconds: dict[str, list[list[float]]] = {file: [] for file in contents}
  for _ in range(1 + rounds):
    for file, data in contents.items():
      stopwatch = Stopwatch(clock)
      container.read(data)
      read = stopwatch.lap()
      decoded = codec.decode(data)
      decoding = stopwatch.lap()
      codec.render(decoded, renderer=renderer)
      seconds[file].append([read, decoding, stopwatch.lap()])
  rows = []
  print(tables.header(_COLUMNS))
  for file, each in seconds.items():
    read, decoding, rendering = 1e3 * np.array(each[1:]).T
    gaussians, height, width, _ = codec.decode(contents[file])
    row = {
      'file': file,
      'bytes': len(contents[file]),
      'read_ms': statistics.median(read),
      'look_up_ms': statistics.median(decoding - read),
      'render_ms': statistics.median(rendering),
      'decode_ms': statistics.median(decoding + rendering),
      'tile_pairs': _tile_pairs(gaussians, height, width),
    }
    rows.append(row)
    milliseconds = [
      f'{row[key]:.1f}' for key in ('read_ms', 'look_up_ms', 'render_ms', 'decode_ms')
    ]
    print(tables.row([file, row['bytes'], *milliseconds, row['tile_pairs']]))
  return rows
