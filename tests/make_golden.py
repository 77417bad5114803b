"""Writes the golden files: small files of fixed integers that pin the format's bytes.

    python tests/make_golden.py

rewrites tests/golden/v1_*.cgvq with the code as it stands. Do that only when the format changes
on purpose; once a version is released its files stay, and must stay readable.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cgvq_jax.bitstream import container, ordering
from cgvq_jax.types import Stream, Symbols

FOLDER = Path(__file__).parent / 'golden'


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


def clustered() -> Symbols:
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
  return Symbols(
    height=512,
    width=768,
    channels=3,
    method='cgvq',
    counts=counts,
    position=Stream('fp16', (65536, 65536), {}, positions),
    rotation_scale=Stream('uniform', (64, 64, 64), tables, np.stack(scales, axis=1)),
    color=Stream('residual_vq', (8, 8), codebooks, colors),
  )


def sorted_by_position() -> Symbols:
  """The same, in the order that lets positions be coded as gaps."""
  return ordering.canonical(clustered())


def odd() -> Symbols:
  """Alphabets that are no powers of two, or 1; columns of one value; four channels; no tables."""
  counts = np.array([70, 1], np.int32)
  total = int(counts.sum())
  positions = np.stack([integers(1, total, 1000), integers(2, total, 4096)], axis=1)
  scales = np.stack([np.zeros(total, np.int32), np.full(total, 6, np.int32)], axis=1)
  return Symbols(
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


def single() -> Symbols:
  """One Gaussian, one channel, one cluster."""
  one = np.zeros((1, 1), np.int32)
  return Symbols(
    height=1,
    width=1,
    channels=1,
    method='gi',
    counts=np.ones(1, np.int32),
    position=Stream('fp16', (65536, 65536), {}, np.array([[0x3C00, 0xBC00]], np.int32)),
    rotation_scale=Stream('uniform', (64,), {'step': np.full((1, 1), 65535, np.uint16)}, one + 63),
    color=Stream('vq', (8,), {'entries': np.zeros((1, 8, 1), np.uint8)}, one),
  )


CASES = {
  'v1_clustered': clustered,
  'v1_sorted': sorted_by_position,
  'v1_odd': odd,
  'v1_single': single,
}


if __name__ == '__main__':
  FOLDER.mkdir(exist_ok=True)
  for name, symbols in CASES.items():
    container.write_file(FOLDER / f'{name}.cgvq', container.write(symbols()))
