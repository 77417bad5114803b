"""Adaptive quantization: each Gaussian's steps follow from its energy and its shape.

Alone in the plane a Gaussian of colour c and area A = pi s1 s2 has the energy E = |c|^2 A. With
e = c sqrt(A), the colour scaled so that E = |e|^2, the errors of the numbers do not interact: an
error d of a number changes the picture by H d^2 (`sensitivity`, with e in place of c):

      e                   1 for each channel
      log s1, log s2      E / 2
      rotation            E / 4 (s1/s2 - s2/s1)^2
      mean along axis i   E / (2 s_i^2)

So all of them add the same error (reverse water-filling, number by number) when e is quantized in
steps of `step` and, with the energy class g = log2(E / step^2) and r = 2^(-g/2), log scales in
steps of sqrt(2) r, rotations in steps of 2 r / (s1/s2 - s2/s1), and means in steps of sqrt(2) r
standard deviations. The file stores the step and each Gaussian's energy class as an integer, so a
decoder knows all steps of a Gaussian before it reads its numbers.

How many values a number has is computed in integers and in doubles by sums, products, quotients and
square roots alone, so that every machine finds the same.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.quantize.boxes import UNIT

if TYPE_CHECKING:
  from jaxtyping import Float, Int

OCTAVE = 1024  # log scales are stored in multiples of 1/1024 octave
NUM_ENERGY_CLASSES = 32  # 0..31: energies of step^2 to 2^31 step^2
MAX_STEP_INDEX = 1023
MAX_ROTATIONS = 4096  # values of a rotation
MAX_CELLS = 4096  # values of a mean along a side of its box
LEVELS = 1 << 15  # log scales in -LEVELS..LEVELS - 1 of 1/1024 octave: 2^-32 to 2^32 px
_ANGLES = 4096  # of half a turn
_EXACT = 2.0**30  # tables hold multiples of 2^-30: the last digits, which differ, are rounded away


class AdaptiveSymbols(NamedTuple):
  """One image as integers. N Gaussians, in any order."""

  version = 2  # of the file format

  height: int  # px
  width: int  # px
  channels: int
  method: str
  step_index: int  # of the quantization step of e: see `quantization_step`
  axes: np.ndarray  # [C, C] int8, rows of the colours' axes in 1/127: see `color_axes`
  energy_class: np.ndarray  # [N] 0..NUM_ENERGY_CLASSES-1
  log_scale: np.ndarray  # [N, 2] in the energy class's steps, the longer axis first
  rotation: np.ndarray  # [N] 0..M-1, M of `num_rotations`
  low: np.ndarray  # [N, 2] corner x, y of the box that the mean is in, 1/UNIT px
  size: np.ndarray  # [N, 2] of the box, 1/UNIT px
  cell: np.ndarray  # [N, 2] 0..n-1 from the corner, n of `num_cells`
  color: np.ndarray  # [N, C] e along the axes, in quantization steps


def quantization_step(step_index: int) -> float:
  """The step of e, colour times px: 2^(2 - step_index / 64)."""
  return 2.0 ** (2 - step_index / 64)


def energy_classes(energy: Float[np.ndarray, 'N'], step: float) -> Int[np.ndarray, 'N']:
  """round(log2(E / step^2)), in 0..NUM_ENERGY_CLASSES-1."""
  octaves = 2 * np.log2(np.sqrt(np.maximum(energy, 1e-30)) / step)
  return np.clip(np.rint(octaves), 0, NUM_ENERGY_CLASSES - 1).astype(np.int64)


@functools.cache
def log_scale_steps() -> Int[np.ndarray, 'G']:
  """sqrt(2) 2^(-g/2) of each energy class in 1/1024 octave, at least 1 and at most 1024."""
  steps = OCTAVE * math.sqrt(2) / math.log(2) * 2.0 ** (-np.arange(NUM_ENERGY_CLASSES) / 2)
  return np.clip(np.rint(steps), 1, OCTAVE).astype(np.int64)


@functools.cache
def _ratios() -> Float[np.ndarray, 'G']:
  """r = 2^(-g/2) of each energy class."""
  return np.rint(2.0 ** (-np.arange(NUM_ENERGY_CLASSES) / 2) * _EXACT) / _EXACT


@functools.cache
def _powers() -> Float[np.ndarray, 'O']:
  return np.rint(2.0 ** (np.arange(OCTAVE) / OCTAVE) * _EXACT) / _EXACT


@functools.cache
def _cosines() -> Float[np.ndarray, 'A']:
  return np.rint(np.cos(np.pi * np.arange(_ANGLES) / _ANGLES) * _EXACT) / _EXACT


def _power(octaves: Int[np.ndarray, '*N']) -> Float[np.ndarray, '*N']:
  """2^(octaves / 1024)."""
  return np.ldexp(_powers()[octaves % OCTAVE], octaves // OCTAVE)


def scales(
  log_scale: Int[np.ndarray, 'N 2'], energy_class: Int[np.ndarray, 'N']
) -> Float[np.ndarray, 'N 2']:
  """Standard deviations, px."""
  octaves = np.asarray(log_scale, np.int64) * log_scale_steps()[energy_class][:, None]
  return _power(np.clip(octaves, -LEVELS, LEVELS - 1))


def num_rotations(
  scale: Float[np.ndarray, 'N 2'], energy_class: Int[np.ndarray, 'N']
) -> Int[np.ndarray, 'N']:
  """M = ceil(pi (s1/s2 - s2/s1) / (2 r)), 1 to MAX_ROTATIONS: a rotation is pi m / M."""
  ratio = scale[:, 0] / scale[:, 1]
  shear = np.abs(ratio - 1 / ratio)
  wanted = np.minimum(math.pi / 2 * shear / _ratios()[energy_class], float(MAX_ROTATIONS))
  return np.maximum(np.ceil(wanted), 1).astype(np.int64)


def spreads(
  scale: Float[np.ndarray, 'N 2'], rotation: Int[np.ndarray, 'N'], rotations: Int[np.ndarray, 'N']
) -> tuple[Float[np.ndarray, 'N 2'], Float[np.ndarray, 'N']]:
  """The standard deviations of x where y is known, and of y; and how far x then moves with y."""
  angle = np.asarray(rotation, np.int64) * _ANGLES // rotations
  cosine = _cosines()[angle]
  sine = _cosines()[np.abs(angle - _ANGLES // 2)]
  first, second = scale.T
  variance = (first * sine) * (first * sine) + (second * cosine) * (second * cosine)
  y = np.sqrt(variance)
  covariance = (first * first - second * second) * (sine * cosine)
  return np.stack([first * second / y, y], axis=-1), covariance / variance


def num_cells(
  size: Int[np.ndarray, 'N 2'], spread: Float[np.ndarray, 'N 2'], energy_class: Int[np.ndarray, 'N']
) -> Int[np.ndarray, 'N 2']:
  """How many values x and y have in a box: cells of sqrt(2) r spreads, 1 to MAX_CELLS.

  A lattice that is whitened by the Cholesky factor of the covariance has rows at equal y. Shifting
  a row along x does not change its error, so the first points of all rows lie at the box's edge.
  """
  step = math.sqrt(2) * _ratios()[energy_class][:, None] * spread
  cells = np.floor(np.minimum(size / UNIT / step, float(MAX_CELLS)) + 0.5)
  return np.maximum(cells, 1).astype(np.int64)


def means(
  low: Int[np.ndarray, 'N 2'],
  size: Int[np.ndarray, 'N 2'],
  cell: Int[np.ndarray, 'N 2'],
  cells: Int[np.ndarray, 'N 2'],
) -> Float[np.ndarray, 'N 2']:
  """The middle of each cell, px."""
  return (low + (2 * cell + 1) * size / (2 * cells)) / UNIT


def nearest_cell(
  mean: Float[np.ndarray, 'N 2'],
  low: Int[np.ndarray, 'N 2'],
  size: Int[np.ndarray, 'N 2'],
  cells: Int[np.ndarray, 'N 2'],
  spread: Float[np.ndarray, 'N 2'],
  shear: Float[np.ndarray, 'N'],
) -> Int[np.ndarray, 'N 2']:
  """The cell of a box that a mean is nearest to, in the Gaussian's own standard deviations."""
  corner, side = low / UNIT, size / UNIT / cells
  middle = np.floor((mean[:, 1] - corner[:, 1]) / side[:, 1])
  best, least = np.zeros_like(cells), np.full(len(cells), np.inf)
  for offset in (-1, 0, 1):
    row = np.clip(middle + offset, 0, cells[:, 1] - 1)
    dy = corner[:, 1] + (row + 0.5) * side[:, 1] - mean[:, 1]
    x = mean[:, 0] + shear * dy  # nearest for this y
    column = np.clip(np.floor((x - corner[:, 0]) / side[:, 0]), 0, cells[:, 0] - 1)
    dx = corner[:, 0] + (column + 0.5) * side[:, 0] - x
    distance = (dx / spread[:, 0]) ** 2 + (dy / spread[:, 1]) ** 2
    nearer = distance < least
    least = np.where(nearer, distance, least)
    chosen = np.stack([column, row], axis=-1).astype(np.int64)
    best = np.where(nearer[:, None], chosen, best)
  return best


def color_axes(colors: Float[np.ndarray, 'N C']) -> Int[np.ndarray, 'C C']:
  """The principal axes of e (Karhunen-Loeve), rows in 1/127, the strongest first."""
  _, vectors = np.linalg.eigh(colors.T.astype(np.float64) @ colors)
  axes = vectors[:, ::-1].T
  # Of both signs the one whose largest part is positive, so that tiny changes do not flip an axis.
  largest = np.argmax(np.abs(axes), axis=1)
  axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
  return np.rint(127 * axes).astype(np.int8)


def unit_axes(axes: Int[np.ndarray, 'C C']) -> Float[np.ndarray, 'C C']:
  """The orthonormal axes nearest to the stored ones, row by row (Gram-Schmidt).

  Raises:
    ValueError: the stored rows do not span the colours.
  """
  rows: list[np.ndarray] = []
  for stored in np.asarray(axes, np.float64) / 127:
    row = stored.copy()
    for other in rows:
      row -= (stored @ other) * other
    length = math.sqrt(row @ row)
    if length < 0.25:
      raise ValueError('color axes: wanted rows that span all colours, got dependent ones')
    rows.append(row / length)
  return np.stack(rows)


def dequantize(symbols: AdaptiveSymbols) -> Gaussians:
  """The Gaussians that the integers stand for, NumPy float32.

  Raises:
    ValueError: an integer is outside of what its Gaussian's steps allow, or the axes do not span
      the colours.
  """
  energy_class = np.asarray(symbols.energy_class)
  scale = scales(symbols.log_scale, energy_class)
  rotations = num_rotations(scale, energy_class)
  spread, _ = spreads(scale, symbols.rotation, rotations)
  cells = num_cells(symbols.size, spread, energy_class)
  _check_below('rotation', symbols.rotation, rotations)
  _check_below('cell', symbols.cell, cells)
  color = quantization_step(symbols.step_index) * symbols.color @ unit_axes(symbols.axes)
  color = color / np.sqrt(np.pi * scale[:, :1] * scale[:, 1:])
  mean = means(symbols.low, symbols.size, symbols.cell, cells)
  return Gaussians(
    mean_xy=mean.astype(np.float32),
    log_scale=np.log(scale).astype(np.float32),
    rotation=(np.pi * symbols.rotation / rotations).astype(np.float32),
    color=color.astype(np.float32),
  )


def _check_below(name: str, values: np.ndarray, limits: np.ndarray) -> None:
  wrong = (values < 0) | (values >= limits)
  if np.any(wrong):
    at = tuple(np.argwhere(wrong)[0])
    raise ValueError(f'{name}: wanted 0..{limits[at] - 1}, got {values[at]}')
