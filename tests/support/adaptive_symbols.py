"""Random `AdaptiveSymbols` for the tests of quantization and of the file."""

from __future__ import annotations

import numpy as np

from cgvq_jax.quantize import adaptive, boxes

HEIGHT, WIDTH = 64, 96
STEP_INDEX = 48


def random_symbols(count=400, channels=3, seed=0, height=HEIGHT, width=WIDTH):
  """Integers of any kind that the format allows, and the means that they stand for."""
  rng = np.random.default_rng(seed)
  energy_class = rng.integers(0, adaptive.NUM_ENERGY_CLASSES, count)
  scale = np.exp(rng.normal([1.2, 0.0], 0.9, (count, 2)))
  octaves = adaptive.OCTAVE * np.log2(np.sort(scale)[:, ::-1])
  log_scale = np.rint(octaves / adaptive.log_scale_steps()[energy_class][:, None]).astype(np.int64)
  mean = rng.uniform([-9, -3], [width + 2, height + 5], (count, 2))
  low, size = boxes.boxes_of(mean, height, width)
  scale = adaptive.scales(log_scale, energy_class)
  rotations = adaptive.num_rotations(scale, energy_class)
  rotation = rng.integers(0, rotations)
  spread, shear = adaptive.spreads(scale, rotation, rotations)
  cells = adaptive.num_cells(size, spread, energy_class)
  color = np.rint(2.0 ** (energy_class / 2)[:, None] * rng.normal(0, 0.6, (count, channels)))
  symbols = adaptive.AdaptiveSymbols(
    height=height,
    width=width,
    channels=channels,
    method='cgvq_rd',
    step_index=STEP_INDEX,
    axes=adaptive.color_axes(color),
    energy_class=energy_class,
    log_scale=log_scale,
    rotation=rotation,
    low=low,
    size=size,
    cell=adaptive.nearest_cell(mean, low, size, cells, spread, shear),
    color=color.astype(np.int64),
  )
  return symbols, mean


def in_order(symbols, order):
  per_gaussian = ('energy_class', 'log_scale', 'rotation', 'low', 'size', 'cell', 'color')
  return symbols._replace(**{name: getattr(symbols, name)[order] for name in per_gaussian})


def sorted_rows(symbols):
  columns = [
    np.asarray(symbols.energy_class)[:, None],
    symbols.log_scale,
    symbols.rotation[:, None],
  ]
  columns += [symbols.low, symbols.size, symbols.cell, symbols.color]
  rows = np.concatenate(columns, axis=1)
  return rows[np.lexsort(rows.T)]
