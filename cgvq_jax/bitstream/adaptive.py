"""The integers of `quantize.graded` in a stream, each told once what decides its values is known.

    boxes | grades | log scales | rotations | cells | colours

Columns have a histogram for each grade, or share one (`entropy`). Where a grade's steps are so fine
that its values are many, the histogram is of their high bits and the low ones are stored flat.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cgvq_jax.bitstream import boxes as mean_boxes
from cgvq_jax.bitstream import histograms
from cgvq_jax.bitstream.ans import Reader, Writer
from cgvq_jax.quantize import adaptive
from cgvq_jax.quantize.adaptive import NUM_ENERGY_CLASSES, UNIT, AdaptiveSymbols

SECTIONS = ('positions', 'rotation_scale', 'color', 'header')
MAX_OVERHANG = 1 << 13  # px that the boxes may reach beyond an edge of the picture
_BINS = 16  # of half a turn
_TERMS = 3  # groups that the first of two numbers makes for the second
_FLAT = 1 << 16  # numbers that are told once


class Shape(NamedTuple):
  """What the file's fields tell."""

  height: int
  width: int
  channels: int
  method: str
  step_index: int
  count: int


def color_shifts() -> Int[np.ndarray, 'G']:
  """Low bits of e that are stored flat: all but the highest four or so."""
  return np.maximum(np.arange(NUM_ENERGY_CLASSES) // 2 - 4, 0)


def scale_shifts() -> Int[np.ndarray, 'G']:
  """Low bits of log scales that are stored flat: those below 1/16 octave or so."""
  return np.array(
    [max(0, (64 // int(step)).bit_length() - 1) for step in adaptive.log_scale_steps()]
  )


def put(writer: Writer, symbols: AdaptiveSymbols) -> None:
  """Codes the integers. Raises ValueError where they do not fit each other or the format."""
  low = np.asarray(symbols.low, np.int64)
  overhang = _overhangs(low, low + symbols.size, symbols.height, symbols.width)
  corner, size = _outer(symbols.height, symbols.width, overhang)
  for side in overhang:
    writer.put_uniform(side, MAX_OVERHANG + 1)
  writer.put_uniform(np.asarray(symbols.axes, np.int64).ravel() + 128, 256)
  grade = np.asarray(symbols.energy_class, np.int64)
  if not 0 <= grade.min() <= grade.max() < NUM_ENERGY_CLASSES:
    raise ValueError(
      f'energy_class: wanted 0..{NUM_ENERGY_CLASSES - 1}, got {grade.min()}..{grade.max()}'
    )
  # The order of the boxes is that of everything, so the grades are told after them.
  order, boxes = mean_boxes.put(writer, low - corner, size)
  if np.any(boxes.low + corner != low[order]) or np.any(boxes.size != symbols.size[order]):
    raise ValueError('boxes: wanted those that the means are alone in, got others')
  grade = grade[order]
  _put_column(writer, grade, np.zeros_like(grade))

  first, second = np.asarray(symbols.log_scale, np.int64)[order].T
  shifts = scale_shifts()[grade]
  _put_shifted(writer, first, shifts, grade)
  _put_shifted(writer, second, shifts, _TERMS * grade + _thirds(first, grade))

  scale = adaptive.scales(symbols.log_scale[order], grade)
  turns = adaptive.num_turns(scale, grade)
  rotation = np.asarray(symbols.rotation, np.int64)[order]
  _check_below('rotation', rotation, turns)
  fine = turns >= _BINS
  bins = rotation * _BINS // turns
  _put_column(writer, bins[fine], np.zeros_like(bins[fine]))
  start, stop = _bin_bounds(bins, turns, fine)
  writer.put_below(rotation - start, stop - start)

  spread, _ = adaptive.spreads(scale, rotation, turns)
  cells = adaptive.num_cells(boxes.size, spread, grade)
  cell = np.asarray(symbols.cell, np.int64)[order]
  _check_below('cell', cell, cells)
  writer.put_below(cell.ravel(), cells.ravel())

  shifts, context = color_shifts()[grade], np.zeros_like(grade)
  for level in np.asarray(symbols.color, np.int64)[order].T:
    _put_shifted(writer, level, shifts, _TERMS * grade + context)
    context = _sizes(level, shifts)


def take(reader: Reader, shape: Shape) -> AdaptiveSymbols:
  """The inverse of `put`, in the order of the boxes. Raises ValueError."""
  reader.section = 'header'
  overhang = [int(reader.take_uniform(MAX_OVERHANG + 1, 1)[0]) for _ in range(4)]
  corner, size = _outer(shape.height, shape.width, overhang)
  axes = (reader.take_uniform(256, shape.channels**2) - 128).astype(np.int8)
  axes = axes.reshape(shape.channels, shape.channels)
  reader.section = 'positions'
  boxes = mean_boxes.take(reader, shape.count, size)
  reader.section = 'color'
  grade = _take_column(reader, np.zeros(shape.count, np.int64))
  if grade.max() >= NUM_ENERGY_CLASSES:
    raise ValueError(f'energy_class: wanted 0..{NUM_ENERGY_CLASSES - 1}, got {grade.max()}')

  reader.section = 'rotation_scale'
  shifts = scale_shifts()[grade]
  first = _take_shifted(reader, shifts, grade)
  second = _take_shifted(reader, shifts, _TERMS * grade + _thirds(first, grade))
  log_scale = np.stack([first, second], axis=-1)
  scale = adaptive.scales(log_scale, grade)
  turns = adaptive.num_turns(scale, grade)
  fine = turns >= _BINS
  bins = np.zeros_like(turns)
  bins[fine] = _take_column(reader, np.zeros(np.count_nonzero(fine), np.int64))
  if bins.max() >= _BINS:
    raise ValueError(f'rotation: wanted 0..{_BINS - 1} of its high bits, got {bins.max()}')
  start, stop = _bin_bounds(bins, turns, fine)
  rotation = start + reader.take_below(stop - start)

  reader.section = 'positions'
  spread, _ = adaptive.spreads(scale, rotation, turns)
  cells = adaptive.num_cells(boxes.size, spread, grade)
  cell = reader.take_below(cells.ravel()).reshape(cells.shape)

  reader.section = 'color'
  shifts, context, levels = color_shifts()[grade], np.zeros_like(grade), []
  for _ in range(shape.channels):
    levels.append(_take_shifted(reader, shifts, _TERMS * grade + context))
    context = _sizes(levels[-1], shifts)
  return AdaptiveSymbols(
    *shape[:5],
    axes=axes,
    energy_class=grade,
    log_scale=log_scale,
    rotation=rotation,
    low=boxes.low + corner,
    size=boxes.size,
    cell=cell,
    color=np.stack(levels, axis=-1),
  )


def boxes_of(
  means: np.ndarray, height: int, width: int
) -> tuple[Int[np.ndarray, 'N 2'], Int[np.ndarray, 'N 2']]:
  """Corners and sizes of the boxes that means, px, are alone in, 1/UNIT px."""
  places = np.floor(means * UNIT).astype(np.int64)
  corner, size = _outer(height, width, _overhangs(places, places + 1, height, width))
  places = np.clip(places - corner, 0, size - 1)
  order, boxes = mean_boxes.put(Writer(), places, size)
  back = np.argsort(order)
  return (boxes.low + corner)[back], boxes.size[back]


def _overhangs(low: np.ndarray, high: np.ndarray, height: int, width: int) -> list[int]:
  """How far boxes reach beyond the left, top, right and bottom edge, whole px up to the most."""
  far = high.max(axis=0) - UNIT * np.array([width, height])
  return [int(np.clip(-(side // UNIT), 0, MAX_OVERHANG)) for side in (*low.min(axis=0), *(-far))]


def _outer(height: int, width: int, overhang) -> tuple[np.ndarray, np.ndarray]:
  """Corner and size of the box of all boxes, 1/UNIT px."""
  left, top, right, bottom = (int(side) for side in overhang)
  corner = -UNIT * np.array([left, top], np.int64)
  return corner, UNIT * np.array([width + left + right, height + top + bottom], np.int64)


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
  """Whether each value is in the lower, middle or upper third of its group's."""
  thirds = np.zeros_like(group)
  for member in np.unique(group):
    which = np.flatnonzero(group == member)
    ordered = np.sort(values[which])
    cuts = ordered[[len(which) // 3, 2 * len(which) // 3]]
    thirds[which] = np.sum(values[which][:, None] > cuts, axis=1)
  return thirds


def _sizes(levels: np.ndarray, shifts: np.ndarray) -> Int[np.ndarray, 'n']:
  """0, 1 or 2: nothing, little or more of a colour, for the next one's group."""
  return np.minimum(np.abs(levels) >> shifts, _TERMS - 1)


def _bin_bounds(bins: np.ndarray, turns: np.ndarray, fine: np.ndarray):
  """The rotations of a bin, from start to before stop; all of them where they are few."""
  start, stop = (-(-edge * turns // _BINS) for edge in (bins, bins + 1))
  return np.where(fine, start, 0), np.where(fine, stop, turns)


def _check_below(name: str, values: np.ndarray, limits: np.ndarray) -> None:
  if np.any((values < 0) | (values >= limits)):
    raise ValueError(f'{name}: wanted values that its steps allow, got others')
