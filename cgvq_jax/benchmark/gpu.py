"""The rasterizer and the fit on an accelerator: every implementation, batches, lower bounds.

Times are of many calls with one wait at their end, divided by calls and images: this keeps the
device busy, as a fit of a data set does. The floors are measured on the same device in the same
run: exponentials of values in registers (a weight takes one in the forward and one in the backward
pass), and a copy of memory (the tiles of an image and of its cotangent are written and read once).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cgvq_jax import codec, devices
from cgvq_jax.benchmark.scenes import SCENES, Scene
from cgvq_jax.evaluate import tables
from cgvq_jax.evaluate.timer import Clock, Stopwatch, seconds_per_call
from cgvq_jax.fit import blocks, optimizers
from cgvq_jax.fit.api import fit_image
from cgvq_jax.fit.losses import l2
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.fit.stages import BLOCK_STEPS, FitState, unquantized
from cgvq_jax.io import datasets, images
from cgvq_jax.methods import registry
from cgvq_jax.metrics import psnr
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import api, layout, pallas, tiles
from cgvq_jax.rasterize.tiles import TILE, Capacity, TileShape

BATCHES = (1, 4, 16)
MIN_SECONDS = 0.2  # of one measurement


class Candidate(NamedTuple):
  """A rasterizer to measure, and the shape of its tiles."""

  implementation: str
  tile_shape: TileShape = TILE

  def __str__(self) -> str:
    return f'{self.implementation} {self.tile_shape.height}x{self.tile_shape.width}'


def candidates() -> list[Candidate]:
  """All that a GPU can run, in the order of measurement: its defaults early, other tiles last."""
  names = [f'pallas_{name}' for name in pallas.VARIANTS if 'interpret' not in name]
  first = sorted(names, key=lambda name: name not in ('pallas_triton', 'pallas_mosaic'))
  shapes = TileShape(8, 16), TileShape(32, 8)
  main = ['xla', *first]
  others = [Candidate(name, shape) for name in first[:2] for shape in shapes]
  return [*map(Candidate, main), *others]


def _seconds(call: Callable[[], Any], min_seconds: float) -> float:
  return seconds_per_call(call, min_seconds, wait=jax.block_until_ready)


class Floors(NamedTuple):
  """The speed of a device at either of two operations alone."""

  exponentials: float  # float32, per second
  bytes: float  # read or written, per second


def measure_floors(
  values: int = 1 << 24, rounds: int = 64, min_seconds: float = MIN_SECONDS
) -> Floors:
  """Of this device: `rounds` exponentials of each of `values` numbers, and a copy of them."""

  @jax.jit
  def exponentials(x):
    return lax.fori_loop(0, rounds, lambda _, x: jnp.exp(-x), x, unroll=True)

  @jax.jit
  def copy(x):
    return x + 1.0

  x = jnp.linspace(0.0, 1.0, values)
  return Floors(
    exponentials=values * rounds / _seconds(lambda: exponentials(x), min_seconds),
    bytes=2 * 4 * values / _seconds(lambda: copy(x), min_seconds),
  )


def _batch(scene: Scene, size: int) -> Gaussians:
  """`size` copies of the scene, the i-th shifted by i / size px along both axes."""
  shift = jnp.arange(size)[:, None, None] / size
  batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * size), scene.gaussians)
  return batch.replace(mean_xy=batch.mean_xy + shift)


def measure(
  scene: Scene,
  candidate: Candidate,
  batch: int,
  floors: Floors,
  *,
  steps: int = BLOCK_STEPS,
  min_seconds: float = MIN_SECONDS,
) -> dict[str, Any]:
  """Milliseconds per image of each part, and of whole steps of a fit of the batch."""
  name, shape = candidate
  _, height, width = scene
  gaussians = _batch(scene, batch)
  target = jax.random.uniform(jax.random.key(1), (height, width, scene.gaussians.num_channels))
  capacity = _capacity(gaussians, height, width, shape)
  options: dict[str, Any] = {'compiler_options': devices.compiler_options()}

  def over_batch(function, *, shared: int = 0):
    axes = (0, 0, *[None] * shared)
    return jax.jit(jax.vmap(function, in_axes=axes), **options)

  make_bins = jax.jit(
    jax.vmap(lambda g: tiles.bin_gaussians(g, height, width, capacity.pairs, tile_shape=shape)),
    **options,
  )
  bins = make_bins(gaussians)
  image = layout.PaddedImage(target, tiles.Size(height, width))
  tiled = layout.tile_target(image, block=capacity.chunks, tile_shape=shape)
  how: dict[str, Any] = {'implementation': name}
  render = over_batch(lambda g, b: api.rasterize_binned(g, b, height, width, **how))
  error = over_batch(lambda g, b, t: api.mean_error(l2.error, t, g, b, **how), shared=1)

  optimizer = optimizers.adam(1000)
  block = partial(
    blocks.block,
    forward=unquantized,
    loss=l2,
    update=optimizer.update,
    steps=steps,
    capacity=capacity._replace(pairs=2 * capacity.pairs),
    implementation=name,
    tile_shape=shape,
  )
  states = jax.vmap(lambda g: FitState(g, (), optimizer.init(g), jnp.int32(0)))(gaussians)
  stopwatch = Stopwatch()
  step = jax.jit(jax.vmap(block, in_axes=(0, None, None)), **options)
  step = step.lower(states, None, image).compile()
  compile_s = stopwatch.elapsed

  pairs = float(jnp.sum(bins.num_pairs)) / batch * shape.num_pixels
  traffic = 4 * 4 * bins.num_tiles * tiled.pixels.shape[1] * shape.num_pixels
  floor_ms = 1e3 * max(2 * pairs / floors.exponentials, traffic / floors.bytes)
  per_image = {
    'binning_ms': lambda: make_bins(gaussians),
    'render_ms': lambda: render(gaussians, bins),
    'value_and_grad_ms': lambda: error(gaussians, bins, tiled),
  }
  times = {part: 1e3 * _seconds(call, min_seconds) / batch for part, call in per_image.items()}
  block_ms = 1e3 * _seconds(lambda: step(states, None, image).state, min_seconds)
  images_a_second = 1e3 / (times['binning_ms'] + times['render_ms'])
  return {
    'implementation': name,
    'tile': f'{shape.height}x{shape.width}',
    'batch': batch,
    'compile_s': compile_s,
    **times,
    'step_ms': block_ms / batch / steps,
    'images_a_second': images_a_second,
    'evaluated_pairs': pairs,
    'floor_ms': floor_ms,
  }


def _capacity(gaussians: Gaussians, height: int, width: int, shape: TileShape) -> Capacity:
  """The capacity for the longest lists of a batch."""

  def attempt(capacity: Capacity):
    def needed(gaussians):
      bins = tiles.bin_gaussians(gaussians, height, width, capacity.pairs, tile_shape=shape)
      return Capacity(bins.num_pairs, bins.most_chunks)

    each = jax.jit(jax.vmap(needed))(gaussians)
    return None, Capacity(*(int(jnp.max(number)) for number in each))

  count = gaussians.mean_xy.shape[1]
  first = Capacity(tiles.initial_capacity(count, height, width, shape), tiles.BLOCK)
  return tiles.grow_until_it_fits(first, attempt)[1]


def fit_photograph(
  num_gaussians: int = 10_000, steps: int = 5_000, size: int | None = None
) -> dict[str, Any]:
  """The default fit of the sample photograph, or of its first `size` rows and columns, from start
  to end: compilation and growth included."""
  picture = datasets.sample_photograph()[:size, :size]
  stopwatch = Stopwatch()
  fitted = fit_image(picture, num_gaussians, FitSettings(steps=steps))
  image = api.rasterize(fitted, *picture.shape[:2])
  jax.block_until_ready(image)
  seconds = stopwatch.elapsed
  return {
    'num_gaussians': num_gaussians,
    'steps': steps,
    'height': picture.shape[0],
    'width': picture.shape[1],
    'seconds': seconds,
    'psnr': psnr(images.to_bytes8(picture), images.to_bytes8(np.asarray(image))),
  }


def encode_photograph(steps: int = 1000, size: int | None = None) -> dict[str, Any]:
  """The same photograph, or a part of it, to a file of `cgvq_rd`, from start to end."""
  picture = datasets.sample_photograph()[:size, :size]
  stopwatch = Stopwatch()
  settings = FitSettings(steps=steps, finetune_steps=steps)
  data = codec.encode(picture, registry.cgvq_rd(), settings)
  seconds = stopwatch.elapsed
  decoded = images.to_bytes8(codec.render(codec.decode(data)))
  return {
    'steps': steps,
    'seconds': seconds,
    'bytes': len(data),
    'psnr': psnr(images.to_bytes8(picture), decoded),
  }


_COLUMNS = {
  'implementation': '{}',
  'tile': '{}',
  'batch': '{}',
  'compile_s': '{:.1f}',
  'binning_ms': '{:.3f}',
  'render_ms': '{:.3f}',
  'value_and_grad_ms': '{:.3f}',
  'step_ms': '{:.3f}',
  'images_a_second': '{:.0f}',
  'floor_ms': '{:.4f}',
}


def measure_all(
  scene: Scene,
  chosen: Sequence[Candidate],
  floors: Floors,
  *,
  batches: Sequence[int] = BATCHES,
  seconds: float = 300.0,
  min_seconds: float = MIN_SECONDS,
  steps: int = BLOCK_STEPS,
  clock: Clock = time.perf_counter,
) -> tuple[list[dict[str, Any]], list[str]]:
  """Prints a table of all candidates by all batches; returns its rows, and why others are missing.

  No row is begun later than `seconds` after the start; an error in one does not end the others.
  """
  print(tables.header([*_COLUMNS]))
  stopwatch, rows, skipped = Stopwatch(clock), [], []
  for candidate, batch in _in_order(chosen, batches):
    if stopwatch.elapsed > seconds:
      skipped.append(f'{candidate}, batch {batch}: no time left of {seconds:.0f} s')
      continue
    try:
      options = {'steps': steps, 'min_seconds': min_seconds}
      row = measure(scene, candidate, batch, floors, **options)
    except Exception as error:  # the other candidates are still to be measured
      skipped.append(f'{candidate}, batch {batch}: {type(error).__name__}: {str(error)[:200]}')
      continue
    rows.append(row)
    cells = [form.format(row[column]) for column, form in _COLUMNS.items()]
    print(tables.row(cells), flush=True)
  for reason in skipped:
    print(f'skipped: {reason}')
  return rows, skipped


def summary(
  device_kind: str,
  rows: Sequence[dict[str, Any]],
  photograph: dict[str, Any],
  encoded: dict[str, Any],
) -> str:
  """The lines after the table: the times of the photograph, and the entry for the tuning table."""
  lines = [
    f'sample photograph, {photograph["num_gaussians"]} Gaussians, {photograph["steps"]} steps:'
    f' {photograph["seconds"]:.1f} s, {photograph["psnr"]:.2f} dB unquantized',
    f'as a file of cgvq_rd, {encoded["steps"]} + {encoded["steps"]} steps:'
    f' {encoded["seconds"]:.1f} s, {encoded["bytes"]} bytes, {encoded["psnr"]:.2f} dB',
  ]
  best = fastest(rows)
  if best:
    lines += [
      f'best step: {best["step_ms"]:.3f} ms; for rasterize.pallas.TUNED:',
      f'  {device_kind!r}: {tuning(best)!r},',
    ]
  return '\n'.join(lines)


def gpu(scene_name: str, seconds: float = 300.0, fit_steps: int = 5_000) -> dict[str, Any]:
  """Prints the table and the summary, and returns both as values.

  Raises SystemExit, with 3 where JAX has no GPU and with 1 where no candidate ran.
  """
  if jax.default_backend() != 'gpu':
    print(f'skipped: wanted an NVIDIA GPU, JAX has {jax.default_backend()}')
    raise SystemExit(3)
  device = jax.devices()[0].device_kind
  floors = measure_floors()
  print(f'{device}, JAX {jax.__version__}, {scene_name}')
  print(f'floors: {floors.exponentials:.3g} exponentials/s, {floors.bytes / 1e9:.0f} GB/s\n')
  rows, skipped = measure_all(SCENES[scene_name](), candidates(), floors, seconds=seconds)
  photograph = fit_photograph(steps=fit_steps)
  encoded = encode_photograph(min(fit_steps, 1000))
  print(f'\n{summary(device, rows, photograph, encoded)}')
  if not rows:
    raise SystemExit(1)
  return {
    'device': device,
    'jax': jax.__version__,
    'scene': scene_name,
    'floors': floors._asdict(),
    'rows': rows,
    'skipped': skipped,
    'photograph': photograph,
    'encoded': encoded,
  }


def _in_order(
  chosen: Sequence[Candidate], batches: Sequence[int]
) -> Iterator[tuple[Candidate, int]]:
  """The largest batch first, of all candidates: it decides which of them the device gets."""
  for batch in sorted(batches, reverse=True):
    for candidate in chosen:
      yield candidate, batch


def fastest(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
  """The row with the fastest step of all kernels that compute in full float32 precision."""
  kept = [
    row
    for row in rows
    if row['implementation'].startswith('pallas_') and not row['implementation'].endswith('_tf32')
  ]
  return min(kept, key=lambda row: row['step_ms'], default=None)


def tuning(row: dict[str, Any]) -> pallas.Tuning:
  """A row's kernels and tiles, as an entry of the tuning table."""
  height, width = map(int, row['tile'].split('x'))
  return pallas.Tuning(row['implementation'].removeprefix('pallas_'), TileShape(height, width))
