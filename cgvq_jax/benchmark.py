"""How long one fit step takes, or decoding files.

  python -m cgvq_jax.benchmark [--json FILE]
  python -m cgvq_jax.benchmark --decode a.cgvq b.cgvq ...

A step is value, gradient and update, with the binning it needs. The first rows hold the blocked
rasterizer against the definition, which evaluates every Gaussian at every pixel, at a size that
both can run; the last is a photograph's size. Compile seconds and warm milliseconds are apart.
Files are decoded in turn, round after round, so that a machine whose speed drifts is fair to all.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from cgvq_jax import codec, fit
from cgvq_jax.bitstream import container
from cgvq_jax.images import write_atomically
from cgvq_jax.losses import l2
from cgvq_jax.rasterize import reference
from cgvq_jax.types import Gaussians

SCENES = {'small': (500, 96, 128), 'photograph': (10_000, 512, 768)}  # N, height, width
_REPEATS = 5


def random_scene(num_gaussians: int, height: int, width: int) -> Gaussians:
  """Uniform positions and rotations, standard deviations of 1-5 px, random colours."""
  keys = jax.random.split(jax.random.key(0), 4)
  return Gaussians(
    mean_xy=jax.random.uniform(keys[0], (num_gaussians, 2)) * jnp.array([width, height]),
    log_scale=jnp.log(jax.random.uniform(keys[1], (num_gaussians, 2), minval=1.0, maxval=5.0)),
    rotation=jnp.pi * jax.random.uniform(keys[2], (num_gaussians,)),
    color=0.3 * jax.random.normal(keys[3], (num_gaussians, 3)),
  )


def _timed(call: Callable[[], Any], steps: int) -> tuple[float, float]:
  """Seconds of the first call, and the median of later ones in ms a step."""
  seconds = []
  for _ in range(1 + _REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return seconds[0], 1e3 * statistics.median(seconds[1:]) / steps


def blocked_step(gaussians: Gaussians, target: Float[Array, 'H W C']) -> tuple[float, float]:
  """The fit's own loop: a block of its steps, binned whenever they need it."""
  optimizer = fit.adam(steps=1000)
  start = fit.initial_state(gaussians, (), optimizer)

  def block():
    return fit.run(start, target, steps=fit.BLOCK_STEPS, optimizer=optimizer).params

  return _timed(block, fit.BLOCK_STEPS)


def dense_step(gaussians: Gaussians, target: Float[Array, 'H W C']) -> tuple[float, float]:
  """One step through the definition."""
  optimizer = fit.adam(steps=1000)
  params: Any = gaussians
  state = optimizer.init(params)
  height, width, _ = target.shape

  @jax.jit
  def step(gaussians: Any, state: Any):
    def objective(gaussians):
      return l2(reference.rasterize(gaussians, height, width), target)

    gradient = jax.grad(objective)(gaussians)
    updates, state = optimizer.update(gradient, state, gaussians)
    return optax.apply_updates(gaussians, updates), state

  return _timed(lambda: step(params, state), 1)


def measure() -> list[dict[str, Any]]:
  """One row for each scene and implementation that can run it."""
  rows = []
  for scene, step in (('small', dense_step), ('small', blocked_step), ('photograph', blocked_step)):
    count, height, width = SCENES[scene]
    target = jax.random.uniform(jax.random.key(1), (height, width, 3))
    compile_s, step_ms = step(random_scene(count, height, width), target)
    rows.append(
      {
        'scene': scene,
        'implementation': 'reference' if step is dense_step else 'xla',
        'num_gaussians': count,
        'height': height,
        'width': width,
        'compile_s': compile_s,
        'step_ms': step_ms,
        # Linux counts kibibytes; a maximum over the process so far.
        'peak_memory_mb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        'device': jax.devices()[0].device_kind,
      }
    )
  return rows


def decode_milliseconds(files: Sequence[Path], rounds: int = 25) -> dict[str, float]:
  """Median warm milliseconds from each file's bytes to pixels."""
  contents = {str(file): container.read_file(file) for file in files}
  seconds: dict[str, list[float]] = {file: [] for file in contents}
  for _ in range(1 + rounds):
    for file, data in contents.items():
      start = time.perf_counter()
      codec.render(codec.decode(data))
      seconds[file].append(time.perf_counter() - start)
  return {file: 1e3 * statistics.median(each[1:]) for file, each in seconds.items()}


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    prog='python -m cgvq_jax.benchmark',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--json', type=Path, metavar='FILE', help='write the rows there as well')
  parser.add_argument('--decode', type=Path, nargs='+', metavar='FILE', help='decode these instead')
  arguments = parser.parse_args()
  fit.use_all_cores()
  if arguments.decode:
    for file, milliseconds in decode_milliseconds(arguments.decode).items():
      print(f'{file}: {milliseconds:.1f} ms')
    return
  rows = measure()
  print('| scene | implementation | N | size | first block s | ms a step | peak MiB |')
  print('|---|---|---|---|---|---|---|')
  for r in rows:
    print(
      f'| {r["scene"]} | {r["implementation"]} | {r["num_gaussians"]} | {r["width"]}x{r["height"]} '
      f'| {r["compile_s"]:.1f} | {r["step_ms"]:.2f} | {r["peak_memory_mb"]:.0f} |'
    )
  if arguments.json:
    write_atomically(arguments.json, (json.dumps(rows, indent=1) + '\n').encode())


if __name__ == '__main__':
  main()
