"""Seconds of the rasterizers and of one fit step on a CPU, with lower bounds.

An evaluated pair is one Gaussian's weight at one pixel; it is needed where q <= ln 255 and the
pixel is in the image. The floor is the time of one exponential (forward) or two (value and
gradient) for each evaluated pair, on data that stays in cache, on the same devices in the same run.
"""

from __future__ import annotations

import multiprocessing
import resource
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
from cgvq_jax.benchmark.scenes import FITTED, SCENES, Scene, Scenes
from cgvq_jax.evaluate import tables
from cgvq_jax.evaluate.timer import Timing, repeat
from cgvq_jax.fit import blocks, optimizers
from cgvq_jax.fit.losses import l2
from cgvq_jax.fit.stages import BLOCK_STEPS, initial_state, plain_stage
from cgvq_jax.io.images import ImageError
from cgvq_jax.primitives.geometry import CUTOFF, covariance
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import api, layout, reference, tiles, xla
from cgvq_jax.rasterize.tiles import Capacity

_REPEATS = 15
_REPLICATED = P()  # the same on all devices
MAX_REFERENCE_PAIRS = 1 << 25  # that the reference can hold in memory at once: half a GiB
_FLOOR_VALUES = 1 << 14  # 64 KiB on each device, read and written


class CannotRun(Exception):
  """An implementation cannot run a scene here; the message is the reason."""


def _timed(call: Callable[[], Any]) -> Timing:
  return repeat(call, _REPEATS, wait=jax.block_until_ready)


def _device() -> str:
  return f'{jax.devices()[0].device_kind} x {devices.mesh().size}'


def _peak_memory_mb() -> float:
  # Linux counts kibibytes; a maximum over the process so far.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _on_devices(function: Callable[..., Any], out_specs: Any, in_specs: Any = _REPLICATED):
  """Jitted, on all the devices that a fit uses."""
  options: dict[str, Any] = {'mesh': devices.mesh(), 'in_specs': in_specs, 'out_specs': out_specs}
  program = jax.shard_map(function, check_vma=False, **options)
  return jax.jit(program, compiler_options=devices.compiler_options())


def floor_seconds(rounds: int = 1000) -> float:
  """Seconds for one cache-resident float32 exponential with all devices at work: the minimum of
  several measurements of `rounds` passes over the data."""

  def loop(x):
    def body(i, before):
      # Each round has the same inputs: chained ones would become denormal or saturate, which has
      # another speed. The barrier and the addend keep XLA from moving the work out of the loop.
      values, _ = lax.optimization_barrier((x, before))
      return jnp.exp(values + 1e-9 * i.astype(jnp.float32))

    return lax.fori_loop(0, rounds, body, x)[None]

  program = _on_devices(loop, P(*devices.mesh().axis_names))
  x = jnp.linspace(-5.5, 0.0, _FLOOR_VALUES)
  seconds = _timed(lambda: program(x)).minimum
  return seconds / (_FLOOR_VALUES * rounds * devices.mesh().size)


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
  """Times of an implementation's three programs, as a row's columns, and the pairs that the first
  two evaluate."""
  rendering, gradients = _timed(forward), _timed(value_and_gradient)
  binning = _timed(bins) if bins else Timing(0.0, (0.0,))
  return {
    'compile_s': rendering.first + gradients.first + binning.first,
    'forward_ms': 1e3 * rendering.minimum,
    'value_and_grad_ms': 1e3 * gradients.minimum,
    'binning_ms': 1e3 * binning.minimum,
    'forward_pairs': forward_pairs,
    'evaluated_pairs': evaluated_pairs,
  }


def measure_reference(
  scene: Scene, target: Float[Array, 'H W C'], max_pairs: int = MAX_REFERENCE_PAIRS
) -> dict[str, Any]:
  """The columns of `measure` that are the implementation's. Raises CannotRun on more pairs."""
  gaussians, height, width = scene
  evaluated = gaussians.num_gaussians * height * width
  if evaluated > max_pairs:
    raise CannotRun(f'{evaluated} pairs, at most {max_pairs} fit in memory')

  def loss(gaussians):
    return l2(reference.rasterize(gaussians, height, width), target)

  gradient = jax.jit(jax.value_and_grad(loss))
  return _measured(
    lambda: reference.rasterize(gaussians, height, width),
    lambda: gradient(gaussians),
    forward_pairs=evaluated,
    evaluated_pairs=evaluated,
  )


def measure_xla(scene: Scene, target: Float[Array, 'H W C']) -> dict[str, Any]:
  """The columns of `measure` that are the implementation's."""
  gaussians, height, width = scene
  (axis,) = devices.mesh().axis_names

  # Between programs, the values that differ by device are stacked on a leading axis.
  def stacked(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)

  def own(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)

  def make_bins(gaussians, pairs):
    share = tiles.own_share(axis)
    return stacked(tiles.bin_gaussians(gaussians, height, width, pairs, share))

  def render(gaussians, bins):
    return api.rasterize_binned(gaussians, own(bins), height, width, axis=axis)

  def value_and_gradient(gaussians, bins, target):
    return api.mean_error(l2.error, own(target), gaussians, own(bins), axis=axis)

  def attempt(capacity: Capacity):
    program = _on_devices(partial(make_bins, pairs=capacity.pairs), P(axis))
    bins = program(gaussians)
    most_chunks = jax.vmap(lambda bins: bins.most_chunks)(bins)
    return (program, bins), Capacity(int(jnp.max(bins.num_pairs)), int(jnp.max(most_chunks)))

  first = blocks.first_capacity(gaussians.num_gaussians, height, width)
  (bin_program, bins), capacity = tiles.grow_until_it_fits(first, attempt)

  def tile_target(target):
    image = layout.PaddedImage(target, tiles.Size(height, width))
    return stacked(layout.tile_target(image, axis=axis, block=capacity.chunks))

  tiled = _on_devices(tile_target, P(axis))(target)
  forward = _on_devices(render, P(), (P(), P(axis)))
  gradient = _on_devices(value_and_gradient, P(), (P(), P(axis), P(axis)))
  each = [jax.tree.map(itemgetter(device), bins) for device in range(devices.mesh().size)]
  return _measured(
    lambda: forward(gaussians, bins),
    lambda: gradient(gaussians, bins, tiled),
    lambda: bin_program(gaussians),
    forward_pairs=sum(xla.evaluated_pairs(bins.num_chunks) for bins in each),
    evaluated_pairs=sum(xla.evaluated_pairs_of_whole_tiles(bins, capacity.chunks) for bins in each),
  )


IMPLEMENTATIONS = {'reference': measure_reference, 'xla': measure_xla}


def measure(scene_name: str, implementation: str, scenes: Scenes = SCENES) -> dict[str, Any]:
  """A row of the benchmark. Raises CannotRun, and ImageError where a photograph is missing."""
  devices.use_all()
  scene = scenes[scene_name]()
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
    'device': _device(),
  }


def rasterize(scenes: Sequence[str], implementations: Sequence[str]) -> list[dict[str, Any]]:
  """Rows of all combinations that can run, each measured in a new process; prints them, and the
  others with the reason."""
  rows = []
  print(tables.header(_RASTERIZE_COLUMNS))
  for scene in scenes:
    for implementation in implementations:
      context = multiprocessing.get_context('spawn')
      try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
          if scene in FITTED:
            pool.submit(_prepare, scene).result()  # peak memory must not include that of the fit
        with ProcessPoolExecutor(1, mp_context=context) as pool:
          row = pool.submit(measure, scene, implementation).result()
      except (CannotRun, ImageError) as error:
        print(tables.row([scene, implementation, f'skipped: {error}']), flush=True)
        continue
      rows.append(row)
      print(_rasterize_line(row), flush=True)
  return rows


def _prepare(scene: str) -> None:
  devices.use_all()
  SCENES[scene]()


_RASTERIZE_COLUMNS = (
  'scene', 'implementation', 'N', 'size', 'compile s', 'forward ms', 'value+grad ms', 'binning ms',
  'evaluated M', 'needed M', 'evaluated / needed', 'forward / floor', 'value+grad / floor',
  'peak MiB',
)  # fmt: skip


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
  return tables.row(cells)


# --- one fit step ---


def blocked_step(scene: Scene, target: Float[Array, 'H W C']) -> tuple[float, float]:
  """A block of steps as a fit runs it: seconds of the first call, warm ms a step."""
  optimizer = optimizers.adam(1000)
  start = initial_state(scene.gaussians, (), optimizer)
  stage = plain_stage(start, np.asarray(target), BLOCK_STEPS, optimizer=optimizer)
  timing = _timed(lambda: blocks.run_block(stage, start)[0].params)
  return timing.first, 1e3 * timing.median / BLOCK_STEPS


def dense_step(scene: Scene, target: Float[Array, 'H W C']) -> tuple[float, float]:
  """One step with the reference rasterizer: seconds of the first call, warm ms a step."""
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

  timing = _timed(lambda: step(params, state))
  return timing.first, 1e3 * timing.median


def fit_steps(scenes: Scenes = SCENES) -> list[dict[str, Any]]:
  """One row for each scene and implementation."""
  rows = []
  columns = ('scene', 'implementation', 'N', 'size', 'first block s', 'ms a step', 'peak MiB')
  print(tables.header(columns))
  for name, step in (
    ('small', dense_step),
    ('small', blocked_step),
    ('random-768', blocked_step),
  ):
    scene = scenes[name]()
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
      'device': _device(),
    }
    rows.append(row)
    size = f'{scene.width}x{scene.height}'
    numbers = (f'{first_s:.1f}', f'{step_ms:.2f}', f'{row["peak_memory_mb"]:.0f}')
    cells = [name, row['implementation'], row['num_gaussians'], size, *numbers]
    print(tables.row(cells), flush=True)
  return rows
