"""Seconds of a whole new process that renders one image, by NumPy and by JAX.

This is what `renderers.MAX_NUMPY_WORK` is chosen by. A process starts Python, reads Gaussians from
a file, scales them, renders and ends. With JAX it imports and compiles as well, or finds its
programs in the persistent cache that JAX_COMPILATION_CACHE_DIR names, where an image of this size
and number of Gaussians has been rendered before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cgvq_jax.benchmark.scenes import SCENES
from cgvq_jax.evaluate import tables
from cgvq_jax.evaluate.timer import Stopwatch


class Case(NamedTuple):
  """An image to render: a scene of `benchmark.scenes`, repeated across and down, then enlarged."""

  scene: str
  repeats: int = 1  # more pixels and more Gaussians, as in a larger photograph
  scale: int = 1  # more pixels of the same Gaussians


CASES = (
  Case('kodim15-10k'),
  *(Case('kodim15-10k', repeats=n) for n in (2, 4, 6, 8)),
  *(Case('kodim15-10k', scale=n) for n in (4, 8, 12, 16)),
  Case('kodim15-1k', scale=8),
)

_CACHED = 'jax_cached'
_PROGRAM = """
import sys
import numpy as np
from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.rasterize import renderers
file, name, height, width = sys.argv[1:]
if name == 'jax':
  from cgvq_jax import devices
  devices.use_all()
with np.load(file) as arrays:
  gaussians = Gaussians(**arrays)
renderers.render(gaussians, int(height), int(width), name)
"""


def _save(case: Case, file: Path) -> tuple[int, int, int]:
  """Writes the Gaussians of a case; their number, and the height and width of the image, px."""
  gaussians, height, width = SCENES[case.scene]()
  copies = case.repeats**2
  corners = np.indices((case.repeats, case.repeats)).reshape(2, -1).T[:, ::-1] * [width, height]
  mean_xy = corners[:, None] + np.asarray(gaussians.mean_xy)  # [copies, N, 2]
  np.savez(
    file,
    mean_xy=np.float32(mean_xy.reshape(-1, 2) * case.scale),
    log_scale=np.tile(
      np.asarray(gaussians.log_scale) + np.float32(np.log(case.scale)), (copies, 1)
    ),
    rotation=np.tile(np.asarray(gaussians.rotation), copies),
    color=np.tile(np.asarray(gaussians.color), (copies, 1)),
  )
  side = case.repeats * case.scale
  return gaussians.num_gaussians * copies, height * side, width * side


def _process_seconds(name: str, file: Path, height: int, width: int, cache: str | None) -> float:
  """Wall seconds of one process; raises CalledProcessError where it fails."""
  environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_COMPILATION_CACHE')}
  if cache:
    environment['JAX_COMPILATION_CACHE_DIR'] = cache
  command = [sys.executable, '-c', _PROGRAM, str(file), name, str(height), str(width)]
  stopwatch = Stopwatch()
  subprocess.run(command, env=environment, check=True)
  return stopwatch.elapsed


def run(cases: Sequence[Case] = CASES, rounds: int = 3) -> list[dict[str, Any]]:
  """A row for each case, printed: the minimum of `rounds` processes of each kind, alternating."""
  rows = []
  columns = ('scene', 'repeats', 'scale', 'N', 'size', 'N x pixels', 'NumPy s', 'JAX s')
  print(tables.header([*columns, 'JAX s, cached programs']))
  for case in cases:
    with tempfile.TemporaryDirectory() as folder:
      file = Path(folder, 'gaussians.npz')
      size = num_gaussians, height, width = _save(case, file)
      kinds = {'numpy': ('numpy', None), 'jax': ('jax', None), _CACHED: ('jax', folder)}
      _process_seconds('jax', file, height, width, folder)  # fills the cache
      seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
      for _ in range(rounds):
        for kind, (name, cache) in kinds.items():
          seconds[kind].append(_process_seconds(name, file, height, width, cache))
    row = {
      'scene': case.scene,
      'repeats': f'{case.repeats} x {case.repeats}',
      'scale': case.scale,
      'num_gaussians': num_gaussians,
      'height': height,
      'width': width,
      'work': int(np.prod(size, dtype=np.int64)),
      **{f'{kind}_s': min(each) for kind, each in seconds.items()},
    }
    rows.append(row)
    work = num_gaussians, f'{width}x{height}', f'{row["work"]:.1e}'
    spent = (f'{row[f"{kind}_s"]:.2f}' for kind in kinds)
    print(tables.row([case.scene, row['repeats'], case.scale, *work, *spent]), flush=True)
  return rows
