"""Writes the golden files, which pin the format: they stay, and must stay readable.

    python tests/support/make_golden.py

writes those of tests/golden that are not there: files of fixed integers, and small pieces of a
photograph that are encoded and decoded now, with the pictures that came out. A file is removed only
with the version that it belongs to.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cgvq_jax import codec
from cgvq_jax.bitstream import container, ordering
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.io import datasets, images
from cgvq_jax.methods.registry import METHODS
from cgvq_jax.quantize import adaptive, boxes
from cgvq_jax.quantize.adaptive import AdaptiveSymbols
from cgvq_jax.quantize.clustered import ATTRIBUTES, CodebookSymbols, Stream

FOLDER = Path(__file__).parents[1] / 'golden'


def integers(seed: int, count: int, size: int) -> np.ndarray:
  """Pseudo-random integers in 0..size-1: a linear congruential generator, the same everywhere."""
  state, values = seed, []
  for _ in range(count):
    state = (state * 1103515245 + 12345) % (1 << 31)
    values.append((state >> 8) % size)
  return np.array(values, np.int32)


def bell(seed: int, count: int, size: int) -> np.ndarray:
  """The mean of four uniform integers: a bell around (size - 1) / 2."""
  return integers(seed, 4 * count, size).reshape(count, 4).sum(axis=1, dtype=np.int32) // 4


def half_floats(seed: int, count: int) -> np.ndarray:
  """Bit patterns of float16 numbers k / 512, k in -520..520: most inside -1..1."""
  numbers = (integers(seed, count, 1041) - 520).astype(np.float16) / np.float16(512)
  return numbers.view(np.uint16).astype(np.int32)


def table(seed: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
  """Bell-shaped bytes, or 16-bit numbers that differ in their low ten bits."""
  size = int(np.prod(shape))
  values = bell(seed, size, 256) if dtype is np.uint8 else 0x2C00 + integers(seed, size, 1024)
  return values.astype(dtype).reshape(shape)


def clustered() -> CodebookSymbols:
  """Four clusters, one of them empty: float16 positions, 6-bit scales, residual codebooks."""
  counts = np.array([150, 0, 13, 60], np.int32)
  total = int(counts.sum())
  scales = [
    np.concatenate([bell(10 * j + k, n, 64) for k, n in enumerate(counts)]) for j in (1, 2, 3)
  ]
  tables = {'step': table(5, (4, 3), np.uint16), 'offset': table(6, (4, 3), np.uint16)}
  codebooks = {
    'entries': table(7, (4, 2, 8, 3), np.uint8),
    'low': table(8, (4, 2, 3), np.uint16),
    'step': table(9, (4, 2, 3), np.uint16),
  }
  colors = np.stack([bell(50, total, 8), integers(51, total, 8)], axis=1)
  positions = np.stack([half_floats(60, total), half_floats(61, total)], axis=1)
  return CodebookSymbols(
    height=512,
    width=768,
    channels=3,
    method='cgvq',
    counts=counts,
    position=Stream('fp16', (65536, 65536), {}, positions),
    rotation_scale=Stream('uniform', (64, 64, 64), tables, np.stack(scales, axis=1)),
    color=Stream('residual_vq', (8, 8), codebooks, colors),
  )


def odd() -> CodebookSymbols:
  """Alphabets that are no powers of two, or 1; columns of one value; four channels; no tables."""
  counts = np.array([70, 1], np.int32)
  total = int(counts.sum())
  positions = np.stack([integers(1, total, 1000), integers(2, total, 4096)], axis=1)
  scales = np.stack([np.zeros(total, np.int32), np.full(total, 6, np.int32)], axis=1)
  return CodebookSymbols(
    height=1,
    width=65535,
    channels=4,
    method='other.method-2',
    counts=counts,
    position=Stream('lattice', (1000, 4096), {}, positions),
    rotation_scale=Stream('uniform', (1, 7), {}, scales),
    color=Stream(
      'vq', (3,), {'deep': table(3, (2, 1, 2, 1, 5), np.uint8)}, integers(3, total, 3)[:, None]
    ),
  )


def single() -> CodebookSymbols:
  """One Gaussian, one channel, one cluster."""
  one = np.zeros((1, 1), np.int32)
  return CodebookSymbols(
    height=1,
    width=1,
    channels=1,
    method='gi',
    counts=np.ones(1, np.int32),
    position=Stream('fp16', (65536, 65536), {}, np.array([[0x3C00, 0xBC00]], np.int32)),
    rotation_scale=Stream('uniform', (64,), {'step': np.full((1, 1), 65535, np.uint16)}, one + 63),
    color=Stream('vq', (8,), {'entries': np.zeros((1, 8, 1), np.uint8)}, one),
  )


def with_sorted_codebooks(symbols: CodebookSymbols) -> CodebookSymbols:
  """The same with codebooks whose entries are sorted, the last ones repeated."""
  entries = symbols.color.tables['entries'].copy()
  for book in np.ndindex(entries.shape[:2]):
    different = np.unique(entries[book][: 8 - sum(book)], axis=0)
    entries[book] = different[np.minimum(np.arange(8), len(different) - 1)]
  tables = symbols.color.tables | {'entries': entries}
  return symbols._replace(color=symbols.color._replace(tables=tables))


def repeated() -> CodebookSymbols:
  """Rows of which many are equal, whose order no decoder can know."""
  symbols = clustered()

  def few(stream: Stream, values: int) -> Stream:
    return stream._replace(symbols=stream.symbols % values)

  return symbols._replace(
    position=few(symbols.position, 5),
    rotation_scale=few(symbols.rotation_scale, 2),
    color=few(symbols.color, 2),
  )


def crowded() -> CodebookSymbols:
  """More rows in one cluster than a count's own distribution is made for."""
  counts = np.array([700, 300], np.int32)
  position = np.stack([bell(1, 1000, 900), bell(2, 1000, 500)], axis=1)
  return CodebookSymbols(
    height=500,
    width=900,
    channels=3,
    method='gi',
    counts=counts,
    position=Stream('lattice', (65536, 65536), {}, position),
    rotation_scale=Stream('uniform', (64,), {}, bell(3, 1000, 64)[:, None]),
    color=Stream('vq', (8,), {}, bell(4, 1000, 8)[:, None]),
  )


def adaptive_integers(count: int, channels: int, places: int, seed: int = 0) -> AdaptiveSymbols:
  """Steps from the coarsest to the finest, means beyond the edges, and several Gaussians at one
  place where there are more of them than places."""
  height, width = 60, 90
  spots = np.stack([integers(seed + j, places, side) for j, side in ((1, 120), (2, 90))], axis=1)
  mean = (spots[np.arange(count) % places] - 15).astype(np.float64)
  energy_class = bell(seed + 3, count, 31).astype(np.int64)
  octaves = np.stack([bell(seed + j, count, 6000) - 1500 for j in (4, 5)], axis=1)
  log_scale = octaves // adaptive.log_scale_steps()[energy_class][:, None]
  scale = adaptive.scales(log_scale, energy_class)
  rotations = adaptive.num_rotations(scale, energy_class)
  rotation = integers(seed + 6, count, 1 << 20) % rotations
  low, size = boxes.boxes_of(mean, height, width)
  spread, _ = adaptive.spreads(scale, rotation, rotations)
  cells = adaptive.num_cells(size, spread, energy_class)
  cell = np.stack([integers(seed + j, count, 1 << 20) for j in (7, 8)], axis=1) % cells
  extent = 1 + (1 << energy_class // 2)
  color = np.stack(
    [integers(seed + 9 + j, count, 1 << 20) % extent - extent // 2 for j in range(channels)], axis=1
  )
  axes = 100 * np.eye(channels, dtype=np.int8) + (table(seed, (channels,) * 2, np.uint8) % 20)
  return AdaptiveSymbols(
    height=height,
    width=width,
    channels=channels,
    method='cgvq_rd',
    step_index=268,
    axes=axes.astype(np.int8),
    energy_class=energy_class,
    log_scale=log_scale,
    rotation=rotation,
    low=low,
    size=size,
    cell=cell,
    color=color,
  )


ADAPTIVE = {
  'v2_adaptive': partial(adaptive_integers, 300, 3, 300),
  'v2_crowded': partial(adaptive_integers, 900, 4, 20),
  'v2_few': partial(adaptive_integers, 3, 1, 3),
  'v2_single': partial(adaptive_integers, 1, 1, 1),
}

# Of fixed integers: what is in them and in which order.
CASES = {
  'v1_clustered': (clustered, 'none'),
  'v1_sorted': (clustered, 'sorted'),
  'v1_bits_back': (clustered, 'bits_back'),
  'v1_sets': (lambda: with_sorted_codebooks(clustered()), 'sorted'),
  'v1_repeated': (repeated, 'sorted'),
  'v1_repeated_bits_back': (repeated, 'bits_back'),
  'v1_crowded': (crowded, 'sorted'),
  'v1_odd': (odd, 'none'),
  'v1_odd_sorted': (odd, 'sorted'),
  'v1_single': (single, 'sorted'),
  'v1_single_none': (single, 'none'),
}


def golden(name: str) -> bytes:
  return (FOLDER / f'{name}.cgvq').read_bytes()


def written(name: str) -> bytes:
  symbols, order = CASES[name]
  return container.write(symbols()._replace(order=order))


def canonical(symbols: CodebookSymbols) -> CodebookSymbols:
  """The same picture, its Gaussians in the order in which files give them back."""
  streams = [getattr(symbols, attribute) for attribute in ATTRIBUTES]
  rows = ordering.canonical([stream.symbols for stream in streams], symbols.counts)
  replaced = [stream._replace(symbols=row) for stream, row in zip(streams, rows, strict=True)]
  return symbols._replace(**dict(zip(ATTRIBUTES, replaced, strict=True)))


# --- pieces of a photograph ---


def piece(channels: int = 3) -> np.ndarray:
  """48 x 64 pixels of the sample photograph, with an alpha that falls from left to right."""
  pixels = datasets.sample_photograph()[100:196:2, 200:328:2]
  grey = pixels.mean(axis=2, keepdims=True)
  alpha = np.broadcast_to(np.linspace(1, 0.2, 64, dtype=np.float32)[None, :, None], grey.shape)
  return {1: grey, 3: pixels, 4: np.concatenate([pixels, alpha], axis=2)}[channels]


def encoded(method: str, order: str, channels: int = 3) -> bytes:
  options: dict[str, Any] = {'num_gaussians': 150}
  if method != 'cgvq_rd':
    options |= {'num_clusters': 4 if method.startswith('cgvq') else 1, 'order': order}
  settings = FitSettings(steps=100, finetune_steps=50)
  return codec.encode(piece(channels), METHODS[method](channels, **options), settings)


PHOTOGRAPHS = {
  'v1_photo_gi': partial(encoded, 'gi', 'sorted'),
  'v1_photo_cgvq': partial(encoded, 'cgvq', 'sorted'),
  'v1_photo_cgvq_fp16': partial(encoded, 'cgvq_fp16', 'bits_back'),
  'v1_photo_grey': partial(encoded, 'cgvq', 'none', 1),
  'v1_photo_alpha': partial(encoded, 'gi_fp16', 'sorted', 4),
  'v2_photo': partial(encoded, 'cgvq_rd', 'sorted'),
  'v2_photo_grey': partial(encoded, 'cgvq_rd', 'sorted', 1),
  'v2_photo_alpha': partial(encoded, 'cgvq_rd', 'sorted', 4),
}


def main() -> None:
  FOLDER.mkdir(exist_ok=True)
  fixed = {name: partial(written, name) for name in CASES}
  fixed |= {name: lambda make=make: container.write(make()) for name, make in ADAPTIVE.items()}
  for name, make in {**fixed, **PHOTOGRAPHS}.items():
    path = FOLDER / f'{name}.cgvq'
    if not path.exists():
      container.write_file(path, make())
      print(path)
    if name in PHOTOGRAPHS and not path.with_suffix('.png').exists():
      images.save(path.with_suffix('.png'), codec.render(codec.decode(path.read_bytes())))


if __name__ == '__main__':
  main()
