"""What an accelerator makes of the rasterizer and the fit: every implementation, batches, floors.

Times are of many calls with one wait at the end, divided by calls and images: a loop that keeps the
device busy, as a fit of a data set does. The floors are what the same device did in the same run
where it did nothing else: exponentials of numbers that it has at hand (a weight takes one to
render and one to pull back), and a copy of memory (an image in tiles is written and read, and so is
its cotangent).
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
from cgvq_jax.fit import blocks, optimizers
from cgvq_jax.fit.losses import l2
from cgvq_jax.io import datasets, images
from cgvq_jax.methods import registry
from cgvq_jax.metrics import psnr
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import api, layout, pallas, tiles
from cgvq_jax.rasterize.tiles import TILE, TileShape

BATCHES = (1, 4, 16)
_LEAST_SECONDS = 0.2  # of a measurement


class Candidate(NamedTuple):
  """What can be measured: a rasterizer, and the tiles it works on."""

  implementation: str
  tile_shape: TileShape = TILE

  def __str__(self) -> str:
    return f'{self.implementation} {self.tile_shape.height}x{self.tile_shape.width}'


def candidates() -> list[Candidate]:
  """All that a GPU can run: first what it gets by default, other tiles last."""
  names = [f'pallas_{name}' for name in pallas.VARIANTS if 'interpret' not in name]
  first = sorted(names, key=lambda name: name not in ('pallas_triton', 'pallas_mosaic'))
  shapes = TileShape(8, 16), TileShape(32, 8)
  main = ['xla', *first]
  others = [Candidate(name, shape) for name in first[:2] for shape in shapes]
  return [*map(Candidate, main), *others]


def _seconds(call: Callable[[], Any]) -> float:
  """Of one call among many, the first apart."""
  jax.block_until_ready(call())
  calls, spent = 1, 0.0
  while spent < _LEAST_SECONDS:
    calls = max(calls + 1, 2 * calls if spent < _LEAST_SECONDS / 4 else calls + calls // 2)
    start = time.perf_counter()
    results = [call() for _ in range(calls)][-1]
    jax.block_until_ready(results)
    spent = time.perf_counter() - start
  return spent / calls


class Floors(NamedTuple):
  """What the device does where it does nothing else."""

  exponentials: float  # float32, a second
  bytes: float  # read or written, a second


def floors(values: int = 1 << 24, rounds: int = 64) -> Floors:
  """Measured on this device, now."""

  @jax.jit
  def exponentials(x):
    return lax.fori_loop(0, rounds, lambda _, x: jnp.exp(-x), x, unroll=True)

  @jax.jit
  def copy(x):
    return x + 1.0

  x = jnp.linspace(0.0, 1.0, values)
  return Floors(
    exponentials=values * rounds / _seconds(lambda: exponentials(x)),
    bytes=2 * 4 * values / _seconds(lambda: copy(x)),
  )


def _batch(scene: Scene, size: int) -> Gaussians:
  """So many pictures like the scene, each moved by another part of a pixel."""
  shift = jnp.arange(size)[:, None, None] / size
  batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * size), scene.gaussians)
  return batch.replace(mean_xy=batch.mean_xy + shift)


def measure(
  scene: Scene, candidate: Candidate, batch: int, floor: Floors, *, steps: int = blocks.BLOCK_STEPS
) -> dict[str, Any]:
  """Milliseconds an image of each part, and of whole steps of a fit of the batch."""
  name, shape = candidate
  _, height, width = scene
  gaussians = _batch(scene, batch)
  target = jax.random.uniform(jax.random.key(1), (height, width, scene.gaussians.num_channels))
  room = _room(gaussians, height, width, shape)
  options: dict[str, Any] = {'compiler_options': devices.compiler_options()}

  def over_batch(function, *, shared: int = 0):
    axes = (0, 0, *[None] * shared)
    return jax.jit(jax.vmap(function, in_axes=axes), **options)

  make_bins = jax.jit(
    jax.vmap(lambda g: tiles.bin_gaussians(g, height, width, room.pairs, tile_shape=shape)),
    **options,
  )
  bins = make_bins(gaussians)
  tiled = layout.tile_target(target, block=room.chunks, tile_shape=shape)
  how: dict[str, Any] = {'implementation': name}
  render = over_batch(lambda g, b: api.rasterize_binned(g, b, height, width, **how))
  error = over_batch(lambda g, b, t: api.mean_error(l2.error, t, g, b, **how), shared=1)

  optimizer = optimizers.adam(1000)
  block = partial(
    blocks.block,
    forward=blocks.free,
    loss=l2,
    optimizer=optimizer,
    steps=steps,
    room=blocks.Capacity(2 * room.pairs, room.chunks),
    implementation=name,
    tile_shape=shape,
  )
  states = jax.vmap(lambda g: blocks.initial_state(g, (), optimizer))(gaussians)
  start = time.perf_counter()
  stepping = jax.jit(jax.vmap(block, in_axes=(0, None, None)), **options)
  stepping = stepping.lower(states, None, target).compile()
  compile_s = time.perf_counter() - start

  pairs = float(jnp.sum(bins.num_pairs)) / batch * shape.num_pixels
  traffic = 4 * 4 * bins.num_tiles * tiled.pixels.shape[1] * shape.num_pixels
  floor_ms = 1e3 * max(2 * pairs / floor.exponentials, traffic / floor.bytes)
  per_image = {
    'binning_ms': lambda: make_bins(gaussians),
    'render_ms': lambda: render(gaussians, bins),
    'value_and_grad_ms': lambda: error(gaussians, bins, tiled),
  }
  times = {part: 1e3 * _seconds(call) / batch for part, call in per_image.items()}
  step = 1e3 * _seconds(lambda: stepping(states, None, target).state) / batch / steps
  images_a_second = 1e3 / (times['binning_ms'] + times['render_ms'])
  return {
    'implementation': name,
    'tile': f'{shape.height}x{shape.width}',
    'batch': batch,
    'compile_s': compile_s,
    **times,
    'step_ms': step,
    'images_a_second': images_a_second,
    'evaluated_pairs': pairs,
    'floor_ms': floor_ms,
  }


def _room(gaussians: Gaussians, height: int, width: int, shape: TileShape) -> blocks.Capacity:
  """What the largest lists of a batch need."""
  count = gaussians.mean_xy.shape[1]
  room = blocks.Capacity(tiles.initial_capacity(count, height, width, shape), tiles.BLOCK)
  while True:

    def needed(gaussians, pairs=room.pairs):
      bins = tiles.bin_gaussians(gaussians, height, width, pairs, tile_shape=shape)
      return blocks.Capacity(bins.num_pairs, bins.most_chunks)

    each = jax.jit(jax.vmap(needed))(gaussians)
    wanted = blocks.Capacity(*(int(jnp.max(number)) for number in each))
    if room.holds(wanted):
      return room
    room = room.grown(wanted)


def fit_photograph(num_gaussians: int = 10_000, steps: int = 5_000) -> dict[str, Any]:
  """The sample photograph, start to end, compilation and growth included."""
  picture = datasets.sample_photograph()
  start = time.perf_counter()
  fitted = codec.fit_image(jax.random.key(0), jnp.asarray(picture), num_gaussians, steps=steps)
  image = api.rasterize(fitted, *picture.shape[:2])
  jax.block_until_ready(image)
  seconds = time.perf_counter() - start
  return {
    'num_gaussians': num_gaussians,
    'steps': steps,
    'height': picture.shape[0],
    'width': picture.shape[1],
    'seconds': seconds,
    'psnr': psnr(images.to_bytes8(picture), images.to_bytes8(np.asarray(image))),
  }


def encode_photograph(steps: int = 1000, size: int | None = None) -> dict[str, Any]:
  """A file of the sample photograph, or its first rows and columns, by `cgvq_rd`, start to end."""
  picture = datasets.sample_photograph()[:size, :size]
  start = time.perf_counter()
  data = codec.encode(picture, registry.cgvq_rd(), fit_steps=steps, finetune_steps=steps)
  seconds = time.perf_counter() - start
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


def run(
  scene_name: str,
  chosen: Sequence[Candidate],
  *,
  batches: Sequence[int] = BATCHES,
  seconds: float = 300.0,
  fit_steps: int = 5_000,
) -> dict[str, Any]:
  """Prints a table and what it left out and why; returns all of it."""
  end = time.perf_counter() + seconds
  device = jax.devices()[0]
  floor = floors()
  print(f'{device.device_kind}, JAX {jax.__version__}, {scene_name}')
  print(f'floors: {floor.exponentials:.3g} exponentials/s, {floor.bytes / 1e9:.0f} GB/s\n')
  print(f'| {" | ".join(_COLUMNS)} |\n{len(_COLUMNS) * "|---"}|')
  scene, rows, skipped = SCENES[scene_name](), [], []
  for candidate, batch in _in_order(chosen, batches):
    if time.perf_counter() > end:
      skipped.append(f'{candidate}, batch {batch}: no time left of {seconds:.0f} s')
      continue
    try:
      row = measure(scene, candidate, batch, floor)
    except Exception as error:  # one that does not run must not hide what the others do
      skipped.append(f'{candidate}, batch {batch}: {type(error).__name__}: {str(error)[:200]}')
      continue
    rows.append(row)
    cells = [form.format(row[column]) for column, form in _COLUMNS.items()]
    print(f'| {" | ".join(cells)} |', flush=True)
  for words in skipped:
    print(f'skipped: {words}')
  photograph = fit_photograph(steps=fit_steps)
  print(
    f'\nsample photograph, {photograph["num_gaussians"]} Gaussians, {fit_steps} steps:'
    f' {photograph["seconds"]:.1f} s, {photograph["psnr"]:.2f} dB unquantized'
  )
  encoded = encode_photograph(min(fit_steps, 1000))
  print(
    f'as a file of cgvq_rd, {encoded["steps"]} + {encoded["steps"]} steps:'
    f' {encoded["seconds"]:.1f} s, {encoded["bytes"]} bytes, {encoded["psnr"]:.2f} dB'
  )
  best = _best(rows)
  if best:
    print(f'best step: {best["step_ms"]:.3f} ms; for rasterize.pallas.TUNED:')
    print(f'  {device.device_kind!r}: {_tuning(best)!r},')
  return {
    'device': device.device_kind,
    'jax': jax.__version__,
    'scene': scene_name,
    'floors': floor._asdict(),
    'rows': rows,
    'skipped': skipped,
    'photograph': photograph,
    'encoded': encoded,
  }


def _in_order(
  chosen: Sequence[Candidate], batches: Sequence[int]
) -> Iterator[tuple[Candidate, int]]:
  """The largest batch of all comes first: it decides which one is the device's."""
  for batch in sorted(batches, reverse=True):
    for candidate in chosen:
      yield candidate, batch


def _best(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
  """The fastest step of the kernels that keep to the definition's precision."""
  kept = [
    row
    for row in rows
    if row['implementation'].startswith('pallas_') and not row['implementation'].endswith('_tf32')
  ]
  return min(kept, key=lambda row: row['step_ms'], default=None)


def _tuning(row: dict[str, Any]) -> pallas.Tuning:
  height, width = map(int, row['tile'].split('x'))
  return pallas.Tuning(row['implementation'].removeprefix('pallas_'), TileShape(height, width))
