"""Version 2 of the file: `AdaptiveSymbols`, in steps that follow from each Gaussian's energy class.

    height width channels method step_index N
    one stream of coded integers:
      boxes | energy classes | log scales | rotations | cells | colours

Each number comes after those that decide how many values it has. Columns have a histogram for each
energy class, or share one (`histograms`). Where an energy class has many values, since its steps
are fine, the histogram is of their high bits and the low bits are stored flat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cgvq_jax.bitstream import base, histograms
from cgvq_jax.bitstream.ans import Reader, Stack, Writer
from cgvq_jax.bitstream.fields import ContainerError, FieldReader, FieldWriter
from cgvq_jax.bitstream.point_sets import put_counts, take_counts
from cgvq_jax.quantize import adaptive, boxes
from cgvq_jax.quantize.adaptive import MAX_STEP_INDEX, NUM_ENERGY_CLASSES, AdaptiveSymbols
from cgvq_jax.quantize.boxes import MAX_OVERHANG

if TYPE_CHECKING:
  from jaxtyping import Bool, Int

  from cgvq_jax.primitives.gaussians import Gaussians

SECTIONS = ('positions', 'rotation_scale', 'color', 'header')
ATTRIBUTES = ('position', 'rotation_scale', 'color')
_BINS = 16  # of half a turn
_CONTEXTS = 3  # groups of each energy class for a number, by the one coded before it
_FLAT = 1 << 16  # for integers that are stored once


def write(symbols: AdaptiveSymbols) -> bytes:
  """The symbols as a body; the Gaussians come back in the order of their boxes.

  Raises:
    ContainerError: a field of the symbols is outside the format's limits.
    ValueError: the integers do not fit each other.
  """
  fields = FieldWriter()
  base.put_front(fields, symbols)
  fields.varint('step_index', symbols.step_index, 0, MAX_STEP_INDEX)
  count = fields.varint('Gaussians', len(symbols.energy_class), 1, base.MAX_GAUSSIANS)
  writer = Writer()
  _put(writer, symbols)
  body = bytes(fields.data) + Stack(writer).to_bytes()
  base.check_gaussians(count, len(body))
  return body


def read(body: bytes) -> AdaptiveSymbols:
  """The inverse of `write`, but for the order. Raises ContainerError."""
  return _parse(body)[0]


def describe(body: bytes) -> dict[str, Any]:
  """No clusters; `energy_classes` are the numbers of Gaussians of class 0, 1, ..."""
  symbols, sections = _parse(body)
  return {
    'method': symbols.method,
    'height': symbols.height,
    'width': symbols.width,
    'channels': symbols.channels,
    'num_gaussians': len(symbols.energy_class),
    'num_clusters': 0,
    'counts': [],
    'energy_classes': np.bincount(symbols.energy_class).tolist(),
    'order': 'sorted',
    'quantizers': dict.fromkeys(ATTRIBUTES, 'adaptive'),
    'sections': sections,
  }


def dequantize(symbols: AdaptiveSymbols) -> tuple[Gaussians, Int[np.ndarray, 'N']]:
  """The Gaussians and the energy class of each. Raises ValueError as `adaptive.dequantize`."""
  return adaptive.dequantize(symbols), np.asarray(symbols.energy_class)


FORMAT = base.Format(AdaptiveSymbols.version, write, read, describe, dequantize)


class _Fields(NamedTuple):
  """What stands before the stream."""

  front: base.Front
  step_index: int
  count: int


def _parse(body: bytes) -> tuple[AdaptiveSymbols, dict[str, int]]:
  """The integers, and the bytes of each section."""
  reader = FieldReader(body, 0, len(body), SECTIONS)
  reader.section = 'header'
  fields = _Fields(
    base.take_front(reader),
    reader.varint('step_index', 0, MAX_STEP_INDEX),
    reader.varint('Gaussians', 1, base.MAX_GAUSSIANS),
  )
  base.check_gaussians(fields.count, len(body))
  stream = body[reader.position :]
  try:
    coded = Reader(stream, SECTIONS)
    symbols = _take(coded, fields)
    coded.finish()
  except ValueError as error:
    raise ContainerError(f'coded integers: {error}') from error
  return symbols, base.section_bytes(reader.sizes, coded.bits, len(stream))


# --- the stream ---


def color_shifts() -> Int[np.ndarray, 'G']:
  """Low bits of e that are stored flat: all but the highest four or so."""
  return np.maximum(np.arange(NUM_ENERGY_CLASSES) // 2 - 4, 0)


def scale_shifts() -> Int[np.ndarray, 'G']:
  """Low bits of log scales that are stored flat: those below 1/16 octave or so."""
  return np.array(
    [max(0, (64 // int(step)).bit_length() - 1) for step in adaptive.log_scale_steps()]
  )


def _put(writer: Writer, symbols: AdaptiveSymbols) -> None:
  """Codes the integers. Raises ValueError where they do not fit each other or the format."""
  low = np.asarray(symbols.low, np.int64)
  overhang = boxes.overhangs(low, low + symbols.size, symbols.height, symbols.width)
  corner, size = boxes.outer(symbols.height, symbols.width, overhang)
  for side in overhang:
    writer.put_uniform(side, MAX_OVERHANG + 1)
  writer.put_uniform(np.asarray(symbols.axes, np.int64).ravel() + 128, 256)
  energy_class = np.asarray(symbols.energy_class, np.int64)
  least, most = energy_class.min(), energy_class.max()
  if not 0 <= least <= most < NUM_ENERGY_CLASSES:
    raise ValueError(f'energy_class: wanted 0..{NUM_ENERGY_CLASSES - 1}, got {least}..{most}')
  # A decoder gets the boxes in the order of the cuts; all other columns follow this order.
  order, box, depths = boxes.partition(low - corner, size)
  if np.any(box.low + corner != low[order]) or np.any(box.size != symbols.size[order]):
    raise ValueError('boxes: wanted those that the means are alone in, got others')
  for depth in depths:
    put_counts(writer, depth.first, depth.count)
  energy_class = energy_class[order]
  _put_column(writer, energy_class, np.zeros_like(energy_class))

  first, second = np.asarray(symbols.log_scale, np.int64)[order].T
  shifts = scale_shifts()[energy_class]
  _put_shifted(writer, first, shifts, energy_class)
  _put_shifted(writer, second, shifts, _CONTEXTS * energy_class + _thirds(first, energy_class))

  scale = adaptive.scales(symbols.log_scale[order], energy_class)
  rotations = adaptive.num_rotations(scale, energy_class)
  rotation = np.asarray(symbols.rotation, np.int64)[order]
  _check_below('rotation', rotation, rotations)
  fine = rotations >= _BINS
  bins = rotation * _BINS // rotations
  _put_column(writer, bins[fine], np.zeros_like(bins[fine]))
  start, stop = _bin_bounds(bins, rotations, fine)
  writer.put_below(rotation - start, stop - start)

  spread, _ = adaptive.spreads(scale, rotation, rotations)
  cells = adaptive.num_cells(box.size, spread, energy_class)
  cell = np.asarray(symbols.cell, np.int64)[order]
  _check_below('cell', cell, cells)
  writer.put_below(cell.ravel(), cells.ravel())

  shifts, context = color_shifts()[energy_class], np.zeros_like(energy_class)
  for level in np.asarray(symbols.color, np.int64)[order].T:
    _put_shifted(writer, level, shifts, _CONTEXTS * energy_class + context)
    context = _magnitudes(level, shifts)


def _take(reader: Reader, fields: _Fields) -> AdaptiveSymbols:
  """The inverse of `_put`, in the order of the boxes. Raises ValueError."""
  height, width, channels, _ = fields.front
  reader.section = 'header'
  overhang = [int(reader.take_uniform(MAX_OVERHANG + 1, 1)[0]) for _ in range(4)]
  corner, size = boxes.outer(height, width, overhang)
  axes = (reader.take_uniform(256, channels**2) - 128).astype(np.int8)
  reader.section = 'positions'
  box = boxes.rebuild(fields.count, size, lambda count: take_counts(reader, count))
  reader.section = 'color'
  energy_class = _take_column(reader, np.zeros(fields.count, np.int64))
  if energy_class.max() >= NUM_ENERGY_CLASSES:
    raise ValueError(f'energy_class: wanted 0..{NUM_ENERGY_CLASSES - 1}, got {energy_class.max()}')

  reader.section = 'rotation_scale'
  shifts = scale_shifts()[energy_class]
  first = _take_shifted(reader, shifts, energy_class)
  groups = _CONTEXTS * energy_class + _thirds(first, energy_class)
  log_scale = np.stack([first, _take_shifted(reader, shifts, groups)], axis=-1)
  scale = adaptive.scales(log_scale, energy_class)
  rotations = adaptive.num_rotations(scale, energy_class)
  fine = rotations >= _BINS
  bins = np.zeros_like(rotations)
  bins[fine] = _take_column(reader, np.zeros(np.count_nonzero(fine), np.int64))
  if bins.max() >= _BINS:
    raise ValueError(f'rotation: wanted 0..{_BINS - 1} of its high bits, got {bins.max()}')
  start, stop = _bin_bounds(bins, rotations, fine)
  rotation = start + reader.take_below(stop - start)

  reader.section = 'positions'
  spread, _ = adaptive.spreads(scale, rotation, rotations)
  cells = adaptive.num_cells(box.size, spread, energy_class)
  cell = reader.take_below(cells.ravel()).reshape(cells.shape)

  reader.section = 'color'
  shifts, context, levels = color_shifts()[energy_class], np.zeros_like(energy_class), []
  for _ in range(channels):
    levels.append(_take_shifted(reader, shifts, _CONTEXTS * energy_class + context))
    context = _magnitudes(levels[-1], shifts)
  return AdaptiveSymbols(
    *fields.front,
    step_index=fields.step_index,
    axes=axes.reshape(channels, channels),
    energy_class=energy_class,
    log_scale=log_scale,
    rotation=rotation,
    low=box.low + corner,
    size=box.size,
    cell=cell,
    color=np.stack(levels, axis=-1),
  )


# --- columns ---


def _put_column(writer: Writer, values: np.ndarray, group: np.ndarray) -> None:
  """Non-negative integers, by a histogram for each group."""
  alphabet = int(values.max(initial=0)) + 1
  if alphabet > histograms.MAX_ALPHABET:
    raise ValueError(f'column: wanted values below {histograms.MAX_ALPHABET}, got {alphabet - 1}')
  writer.put_uniform(alphabet - 1, histograms.MAX_ALPHABET)
  order = np.argsort(group, kind='stable')
  counts = np.bincount(group, minlength=1)
  histograms.put_column(writer, values[order], histograms.Layout(alphabet, counts))


def _take_column(reader: Reader, group: np.ndarray) -> Int[np.ndarray, 'n']:
  alphabet = int(reader.take_uniform(histograms.MAX_ALPHABET, 1)[0]) + 1
  order = np.argsort(group, kind='stable')
  counts = np.bincount(group, minlength=1)
  values = np.zeros(len(group), np.int64)
  values[order] = histograms.take_column(reader, histograms.Layout(alphabet, counts))
  return values


def _put_shifted(writer: Writer, values: np.ndarray, shifts: np.ndarray, group: np.ndarray) -> None:
  """Integers of either sign: high bits as a column from their least, low bits flat."""
  high = values >> shifts
  least = int(high.min())
  if not -_FLAT // 2 <= least < _FLAT // 2:
    raise ValueError(f'column: wanted a least of {-_FLAT // 2}..{_FLAT // 2 - 1}, got {least}')
  writer.put_uniform(least + _FLAT // 2, _FLAT)
  _put_column(writer, high - least, group)
  writer.put_below(values - (high << shifts), 1 << shifts)


def _take_shifted(reader: Reader, shifts: np.ndarray, group: np.ndarray) -> Int[np.ndarray, 'n']:
  least = int(reader.take_uniform(_FLAT, 1)[0]) - _FLAT // 2
  high = _take_column(reader, group) + least
  return (high << shifts) + reader.take_below(1 << shifts)


def _thirds(values: np.ndarray, group: np.ndarray) -> Int[np.ndarray, 'n']:
  """0, 1 or 2: whether each value is in the lower, middle or upper third of its group."""
  thirds = np.zeros_like(group)
  for member in np.unique(group):
    which = np.flatnonzero(group == member)
    ordered = np.sort(values[which])
    cuts = ordered[[len(which) // 3, 2 * len(which) // 3]]
    thirds[which] = np.sum(values[which][:, None] > cuts, axis=1)
  return thirds


def _magnitudes(levels: np.ndarray, shifts: np.ndarray) -> Int[np.ndarray, 'n']:
  """0, 1 or 2, the context of the next channel: high bits of |level| are 0, 1, or more."""
  return np.minimum(np.abs(levels) >> shifts, _CONTEXTS - 1)


def _bin_bounds(
  bins: Int[np.ndarray, 'n'], rotations: Int[np.ndarray, 'n'], fine: Bool[np.ndarray, 'n']
) -> tuple[Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
  """The rotations of a bin, from start to before stop; of a Gaussian with few, all of them."""
  start, stop = (-(-edge * rotations // _BINS) for edge in (bins, bins + 1))
  return np.where(fine, start, 0), np.where(fine, stop, rotations)


def _check_below(name: str, values: np.ndarray, limits: np.ndarray) -> None:
  if np.any((values < 0) | (values >= limits)):
    raise ValueError(f'{name}: wanted values that its steps allow, got others')
