"""Seconds of the rasterizers and of one fit step, beside what they cannot be below.

An evaluated pair is one Gaussian's weight at one pixel; it is needed where q <= ln 255 and the
pixel is in the image. The floor is the time of one exponential (forward) or two (value and
gradient) for each evaluated pair, on data that stays in cache, on the same cores in the same run.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from cgvq_jax import devices
from cgvq_jax.benchmark.scenes import SCENES, Scene
from cgvq_jax.fit import blocks, optimizers
from cgvq_jax.fit.losses import l2
from cgvq_jax.io.images import ImageError
from cgvq_jax.primitives.geometry import CUTOFF, covariance
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import api, layout, reference, tiles, xla

_REPEATS = 15
_EVERYWHERE = P()  # alike on all cores
_MOST_REFERENCE_PAIRS = 1 << 25  # that the definition can hold in memory at once: half a GiB
_FLOOR_VALUES = 1 << 14  # 64 KiB on each core, read and written
_FLOOR_ROUNDS = 1000


class CannotRun(Exception):
  """An implementation cannot run a scene here; says why."""


# --- timing ---


def _timed(call: Callable[[], Any]) -> tuple[float, list[float]]:
  """Seconds of the first call, and of later ones."""
  seconds = []
  for _ in range(1 + _REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return seconds[0], seconds[1:]


def _peak_memory_mb() -> float:
  # Linux counts kibibytes; a maximum over the process so far.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _on_cores(function: Callable[..., Any], out_specs: Any, in_specs: Any = _EVERYWHERE):
  """Jitted, on all the cores that a fit uses."""
  options: dict[str, Any] = {'mesh': devices.mesh(), 'in_specs': in_specs, 'out_specs': out_specs}
  program = jax.shard_map(function, check_vma=False, **options)
  return jax.jit(program, compiler_options=devices.compiler_options())


def floor_seconds() -> float:
  """Seconds for one cache-resident float32 exponential, all cores working: the least of several."""

  def loop(x):
    def body(i, before):
      # Of the same values each round, or denormals and saturation would tell their own time; the
      # barrier and the addend keep XLA from moving the work out of the loop.
      values, _ = lax.optimization_barrier((x, before))
      return jnp.exp(values + 1e-9 * i.astype(jnp.float32))

    return lax.fori_loop(0, _FLOOR_ROUNDS, body, x)[None]

  program = _on_cores(loop, P(devices.AXIS))
  x = jnp.linspace(-5.5, 0.0, _FLOOR_VALUES)
  _, seconds = _timed(lambda: program(x))
  return min(seconds) / (_FLOOR_VALUES * _FLOOR_ROUNDS * devices.mesh().size)


# --- rasterize ---


def needed_pairs(scene: Scene) -> int:
  """Pixel-Gaussian pairs with q <= ln 255 inside the image.

  Pixel row by pixel row: an ellipse's chord at height dy is centred on (sxy / syy) dy and reaches
  sqrt((2 ln 255 - dy^2 / syy) (sxx - sxy^2 / syy)) to either side.
  """
  mean = np.asarray(scene.gaussians.mean_xy, np.float64)
  sigma = covariance(scene.gaussians.log_scale, scene.gaussians.rotation)
  _, sxy, syy = np.asarray(sigma, np.float64).T
  across = np.exp(2 * np.sum(np.asarray(scene.gaussians.log_scale, np.float64), axis=-1)) / syy
  half = np.sqrt(2 * CUTOFF * syy)
  first = np.clip(np.ceil(mean[:, 1] - half - 0.5), 0, scene.height).astype(np.int64)
  last = np.clip(np.floor(mean[:, 1] + half - 0.5), -1, scene.height - 1).astype(np.int64)
  rows = np.maximum(last - first + 1, 0)
  total = 0
  for part in np.array_split(np.arange(rows.size), max(1, int(rows.sum()) >> 22)):
    owner = np.repeat(part, rows[part])
    starts = np.cumsum(rows[part]) - rows[part]
    y = first[owner] + np.arange(owner.size) - np.repeat(starts, rows[part])
    dy = y + 0.5 - mean[owner, 1]
    reach = np.sqrt(np.maximum(2 * CUTOFF - dy**2 / syy[owner], 0) * across[owner])
    center = mean[owner, 0] + sxy[owner] / syy[owner] * dy - 0.5
    left = np.clip(np.ceil(center - reach), 0, scene.width)
    right = np.clip(np.floor(center + reach), -1, scene.width - 1)
    total += int(np.sum(np.maximum(right - left + 1, 0)))
  return total


def _measured(
  forward, value_and_gradient, bins=None, *, forward_pairs: int, evaluated_pairs: int
) -> dict[str, Any]:
  """Times of an implementation's three programs, as a row's columns, and what the first two
  evaluate."""
  compile_forward, forward_s = _timed(forward)
  compile_gradient, gradient_s = _timed(value_and_gradient)
  compile_bins, bins_s = _timed(bins) if bins else (0.0, [0.0])
  return {
    'compile_s': compile_forward + compile_gradient + compile_bins,
    'forward_ms': 1e3 * min(forward_s),
    'value_and_grad_ms': 1e3 * min(gradient_s),
    'binning_ms': 1e3 * min(bins_s),
    'forward_pairs': forward_pairs,
    'evaluated_pairs': evaluated_pairs,
  }


def _measure_reference(scene: Scene, target: Float[Array, 'H W C']) -> dict[str, Any]:
  gaussians, height, width = scene
  evaluated = gaussians.num_gaussians * height * width
  if evaluated > _MOST_REFERENCE_PAIRS:
    raise CannotRun(f'{evaluated} pairs, at most {_MOST_REFERENCE_PAIRS} fit in memory')

  def loss(gaussians):
    return l2(reference.rasterize(gaussians, height, width), target)

  gradient = jax.jit(jax.value_and_grad(loss))
  return _measured(
    lambda: reference.rasterize(gaussians, height, width),
    lambda: gradient(gaussians),
    forward_pairs=evaluated,
    evaluated_pairs=evaluated,
  )


def _measure_xla(scene: Scene, target: Float[Array, 'H W C']) -> dict[str, Any]:
  gaussians, height, width = scene
  axis = devices.AXIS

  # Between programs what each core has of its own stands side by side on a leading axis.
  def beside(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)

  def own(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)

  def make_bins(gaussians, capacity):
    share = tiles.own_share(axis)
    return beside(tiles.bin_gaussians(gaussians, height, width, capacity, share))

  def render(gaussians, bins):
    return api.rasterize_binned(gaussians, own(bins), height, width, axis=axis)

  def value_and_gradient(gaussians, bins, target):
    return api.mean_error(l2.error, own(target), gaussians, own(bins), axis=axis)

  def tile_target(target):
    return beside(layout.tile_target(target, axis=axis, block=room.chunks))

  # Capacity as a fit finds it.
  room = blocks.first_capacity(gaussians.num_gaussians, height, width)
  while True:
    bin_program = _on_cores(partial(make_bins, capacity=room.pairs), P(axis))
    bins = bin_program(gaussians)
    needed = blocks.Capacity(bins.num_pairs, jax.vmap(lambda bins: bins.most_chunks)(bins))
    needed = blocks.Capacity(*(int(jnp.max(number)) for number in needed))
    if room.holds(needed):
      break
    room = room.grown(needed)
  tiled = _on_cores(tile_target, P(axis))(target)
  forward = _on_cores(render, P(), (P(), P(axis)))
  gradient = _on_cores(value_and_gradient, P(), (P(), P(axis), P(axis)))
  each = [jax.tree.map(itemgetter(core), bins) for core in range(devices.mesh().size)]
  return _measured(
    lambda: forward(gaussians, bins),
    lambda: gradient(gaussians, bins, tiled),
    lambda: bin_program(gaussians),
    forward_pairs=sum(xla.evaluated_pairs(bins.num_chunks) for bins in each),
    evaluated_pairs=sum(xla.evaluated_pairs_of_whole_tiles(bins, room.chunks) for bins in each),
  )


IMPLEMENTATIONS = {'reference': _measure_reference, 'xla': _measure_xla}


def measure(scene_name: str, implementation: str) -> dict[str, Any]:
  """A row of the benchmark. Raises CannotRun, and ImageError where a photograph is missing."""
  devices.use_all()
  scene = SCENES[scene_name]()
  target = jax.random.uniform(jax.random.key(1), (scene.height, scene.width, 3))
  measured = IMPLEMENTATIONS[implementation](scene, target)
  exponential_ms = 1e3 * floor_seconds()
  return {
    'scene': scene_name,
    'implementation': implementation,
    'num_gaussians': scene.gaussians.num_gaussians,
    'height': scene.height,
    'width': scene.width,
    **measured,
    'needed_pairs': needed_pairs(scene),
    'floor_forward_ms': exponential_ms * measured['forward_pairs'],
    'floor_value_and_grad_ms': 2 * exponential_ms * measured['evaluated_pairs'],
    'peak_memory_mb': _peak_memory_mb(),
    'device': f'{jax.devices()[0].device_kind} x {devices.mesh().size}',
  }


def rasterize(scenes: Sequence[str], implementations: Sequence[str]) -> list[dict[str, Any]]:
  """Rows of all that can run, each measured in a new process; says what cannot, and why."""
  rows = []
  print(_RASTERIZE_HEADER)
  for scene in scenes:
    for implementation in implementations:
      context = multiprocessing.get_context('spawn')
      try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
          if scene in _FITTED:
            pool.submit(_prepare, scene).result()  # its fit must not count as the peak of memory
        with ProcessPoolExecutor(1, mp_context=context) as pool:
          row = pool.submit(measure, scene, implementation).result()
      except (CannotRun, ImageError) as error:
        print(f'| {scene} | {implementation} | skipped: {error} |', flush=True)
        continue
      rows.append(row)
      print(_rasterize_line(row), flush=True)
  return rows


def _prepare(scene: str) -> None:
  devices.use_all()
  SCENES[scene]()


_FITTED = {name for name in SCENES if name.startswith(('kodim', 'sample'))}
_RASTERIZE_HEADER = (
  '| scene | implementation | N | size | compile s | forward ms | value+grad ms | binning ms '
  '| evaluated M | needed M | evaluated / needed | forward / floor | value+grad / floor '
  '| peak MiB |\n' + 14 * '|---' + '|'
)


def _rasterize_line(r: dict[str, Any]) -> str:
  cells = [
    r['scene'],
    r['implementation'],
    f'{r["num_gaussians"]}',
    f'{r["width"]}x{r["height"]}',
    f'{r["compile_s"]:.1f}',
    f'{r["forward_ms"]:.2f}',
    f'{r["value_and_grad_ms"]:.2f}',
    f'{r["binning_ms"]:.2f}',
    f'{r["evaluated_pairs"] / 1e6:.1f}',
    f'{r["needed_pairs"] / 1e6:.1f}',
    f'{r["evaluated_pairs"] / r["needed_pairs"]:.2f}',
    f'{r["forward_ms"] / r["floor_forward_ms"]:.2f}',
    f'{r["value_and_grad_ms"] / r["floor_value_and_grad_ms"]:.2f}',
    f'{r["peak_memory_mb"]:.0f}',
  ]
  return '| ' + ' | '.join(cells) + ' |'


# --- one fit step ---


def blocked_step(scene: Scene, target: Float[Array, 'H W C']) -> tuple[float, float]:
  """The fit's own loop, a block of its steps: seconds of the first, warm ms a step."""
  optimizer = optimizers.adam(1000)
  start = blocks.initial_state(scene.gaussians, (), optimizer)

  def block():
    return blocks.run(start, target, steps=blocks.BLOCK_STEPS, optimizer=optimizer).params

  first, later = _timed(block)
  return first, 1e3 * statistics.median(later) / blocks.BLOCK_STEPS


def dense_step(scene: Scene, target: Float[Array, 'H W C']) -> tuple[float, float]:
  """One step through the definition."""
  optimizer = optimizers.adam(1000)
  params: Any = scene.gaussians
  state = optimizer.init(params)

  @jax.jit
  def step(gaussians: Any, state: Any):
    def objective(gaussians: Gaussians):
      return l2(reference.rasterize(gaussians, scene.height, scene.width), target)

    gradient = jax.grad(objective)(gaussians)
    updates, state = optimizer.update(gradient, state, gaussians)
    return optax.apply_updates(gaussians, updates), state

  first, later = _timed(lambda: step(params, state))
  return first, 1e3 * statistics.median(later)


def fit_steps() -> list[dict[str, Any]]:
  """One row for each scene and implementation."""
  rows = []
  print('| scene | implementation | N | size | first block s | ms a step | peak MiB |')
  print('|---|---|---|---|---|---|---|')
  for name, step in (
    ('small', dense_step),
    ('small', blocked_step),
    ('random-768', blocked_step),
  ):
    scene = SCENES[name]()
    target = jax.random.uniform(jax.random.key(1), (scene.height, scene.width, 3))
    first_s, step_ms = step(scene, target)
    row = {
      'scene': name,
      'implementation': 'reference' if step is dense_step else 'xla',
      'num_gaussians': scene.gaussians.num_gaussians,
      'height': scene.height,
      'width': scene.width,
      'compile_s': first_s,
      'step_ms': step_ms,
      'peak_memory_mb': _peak_memory_mb(),
      'device': f'{jax.devices()[0].device_kind} x {devices.mesh().size}',
    }
    rows.append(row)
    print(
      f'| {name} | {row["implementation"]} | {row["num_gaussians"]} | {scene.width}x{scene.height} '
      f'| {first_s:.1f} | {step_ms:.2f} | {row["peak_memory_mb"]:.0f} |',
      flush=True,
    )
  return rows
