"""Entropy coding of integer columns: histograms told in few bits, and one ANS stream.

A column is n integers below its alphabet, in G groups that follow each other (the clusters). It
has one common histogram; a group may bring its own where that is cheaper, tables included. A
histogram is a piecewise linear log density: levels at every 2^i-th bin, straight lines between
them, so that the bell of a 600-member cluster costs about 35 bits and a large, rough column can
still have every bin told. Columns of many bits code the histogram of their high bits only and
store the low bits flat.

Every number that the decoder computes is an integer, and the floats handed to `constriction` are
integers below 2^24 that it multiplies by exactly 1, so what one machine encodes every machine
decodes. docs/FORMAT.md defines each step; the coder is Duda's asymmetric numeral system (arXiv
1311.2540) as constriction's default AnsCoder has it: 32-bit words, 64-bit state, 24-bit
probabilities.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import constriction
import numpy as np
from jaxtyping import Float, Int

PRECISION = 24  # bits of a probability, given by constriction's default coder
STEPS = 16  # heights in an octave of frequency
OCTAVES = 15  # from the lowest to the highest bin of a histogram
RESOLUTIONS = (1, 4)  # levels in an octave
DECAYS = (8, 16, 32)  # heights lost for each level of difference between neighbouring knots
MAX_HIGH_BITS = 10  # a histogram has at most 2^10 bins
_TRIED_HIGH_BITS = (6, 8)
_COST_UNITS = 1024  # costs are integers, in 1/1024 bit: sums do not depend on their order
_NEVER = 1 << 60  # a cost

_stream = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]


class Layout(NamedTuple):
  """What a decoder knows of a column before it reads it."""

  alphabet: int  # the values are 0..alphabet-1
  counts: Sequence[int] | Int[np.ndarray, 'G']  # values in each group


class Histogram(NamedTuple):
  """A distribution over bins, and what the file tells of it."""

  kind: int  # 0: flat; otherwise 1 + the index in `shapes(num_bins)`
  levels: Int[np.ndarray, 'M']  # at the knots, 0..OCTAVES * resolution; none when flat
  weights: Int[np.ndarray, 'B']  # probabilities in units of 2^-24


class _Told(NamedTuple):
  """A histogram as a file tells it; a spacing of 0 is the flat one."""

  spacing: int
  resolution: int
  levels: Int[np.ndarray, 'M']


class _Plan(NamedTuple):
  """How one column will be coded."""

  high_bits: int
  common: Histogram
  own: list[Histogram | None]  # for each group that is not empty; None: the common one
  cost: int


def encode(columns: Sequence[Int[np.ndarray, 'n']], layouts: Sequence[Layout]) -> bytes:
  """Codes integer columns, one after the other, into one stream of bytes.

  Args:
    columns: one array for each layout, n = sum(counts) values in 0..alphabet-1.
    layouts: alphabet and group sizes of each column; the decoder needs the same ones.

  Returns:
    The stream; empty where there is nothing to tell.

  Raises:
    ValueError: a column has another length than its counts say, or a value outside its alphabet.
  """
  writer = _Writer()
  for index, (values, layout) in enumerate(zip(columns, layouts, strict=True)):
    values, counts = np.asarray(values), np.asarray(layout.counts, np.int64)
    if values.shape != (counts.sum(),):
      raise ValueError(f'column {index}: wanted {counts.sum()} values, got shape {values.shape}')
    if values.size and not 0 <= values.min() <= values.max() < layout.alphabet:
      raise ValueError(
        f'column {index}: wanted values in 0..{layout.alphabet - 1}, '
        f'got {values.min()}..{values.max()}'
      )
    if values.size and layout.alphabet > 1:
      _put_column(writer, values.astype(np.int64), layout.alphabet, counts[counts > 0])
  return writer.to_bytes()


def decode(data: bytes, layouts: Sequence[Layout]) -> list[Int[np.ndarray, 'n']]:
  """The inverse of `encode`: one int32 array for each layout.

  Raises:
    ValueError: the bytes are not a stream of these layouts. A damaged stream that decodes to
      valid integers and ends where it should is not noticed here; the container's CRC is for that.
  """
  reader = _Reader(data)
  columns = []
  for index, layout in enumerate(layouts):
    counts = np.asarray(layout.counts, np.int64)
    values = np.zeros(counts.sum(), np.int32)
    if values.size and layout.alphabet > 1:
      values = _take_column(reader, layout.alphabet, counts[counts > 0])
      if values.max() >= layout.alphabet:
        raise ValueError(
          f'column {index}: wanted values in 0..{layout.alphabet - 1}, got {values.max()}'
        )
    columns.append(values)
  reader.finish()
  return columns


def _spacings(num_bins: int) -> list[int]:
  return [1 << i for i in range((num_bins - 1).bit_length() + 1)]


@functools.cache
def shapes(num_bins: int) -> list[tuple[int, int, int]]:
  """The ways to tell a histogram: (bins between knots, levels in an octave, decay)."""
  return list(itertools.product(_spacings(num_bins), RESOLUTIONS, DECAYS))


def knots(num_bins: int, spacing: int) -> int:
  """Knots at bins 0, spacing, 2 spacing, ...: the last one at or behind the last bin."""
  return -(-(num_bins - 1) // spacing) + 1


def frequencies(heights: Int[np.ndarray, '*B']) -> Int[np.ndarray, '*B']:
  """(16 + h mod 16) 2^(h div 16) - 16: 16 (2^(h/16) - 1), linear inside each octave.

  The subtraction lets a height of 0 mean a frequency of 0, and makes low heights count in
  sixteenths of one occurrence.
  """
  return ((STEPS + heights % STEPS) << (heights // STEPS)) - STEPS


def weigh(frequency: Int[np.ndarray, '*G B']) -> Int[np.ndarray, '*G B']:
  """Integer probabilities in units of 2^-24: each at least 1, the sum exactly 2^24.

  With F_b the frequencies summed up to and including bin b, the free weight 2^24 - B is shared at
  the cuts floor(F_b (2^24 - B) / F_last), and every bin gets 1 more.
  """
  cumulative = np.cumsum(frequency, axis=-1)
  free = (1 << PRECISION) - frequency.shape[-1]
  cuts = cumulative * free // cumulative[..., -1:]
  cuts[..., 1:] -= cuts[..., :-1].copy()
  return cuts + 1


def expand(
  levels: Int[np.ndarray, '*G M'], num_bins: int, spacing: int, resolution: int
) -> Int[np.ndarray, '*G B']:
  """The frequencies of all bins from the levels at the knots: straight lines between heights."""
  left, right, along = _lines(num_bins, spacing)
  heights = levels * (STEPS // resolution)
  return frequencies(
    (heights[..., left] * (spacing - along) + heights[..., right] * along) // spacing
  )


@functools.cache
def _lines(num_bins: int, spacing: int) -> tuple[Int[np.ndarray, 'B'], ...]:
  """The knots to the left and right of each bin, and its distance from the left one."""
  bins = np.arange(num_bins)
  left = bins // spacing
  return left, np.minimum(left + 1, knots(num_bins, spacing) - 1), bins % spacing


@functools.cache
def _decay_weights(resolution: int, decay: int) -> Int[np.ndarray, 'D']:
  """Two-sided exponential over differences of levels, -OCTAVES * resolution..+."""
  top = OCTAVES * resolution
  difference = np.arange(-top, top + 1)
  return weigh(frequencies(np.maximum(OCTAVES * STEPS - np.abs(difference) * decay, 0)))


@functools.cache
def _decay_model(resolution: int, decay: int) -> Any:
  return _categorical(_decay_weights(resolution, decay))


def _cost(weights: Int[np.ndarray, '*B']) -> Int[np.ndarray, '*B']:
  return np.rint(_COST_UNITS * (PRECISION - np.log2(weights))).astype(np.int64)


def _uniform_cost(size: int) -> int:
  return round(_COST_UNITS * math.log2(size))


@functools.cache
def _flat(num_bins: int) -> Histogram:
  return Histogram(0, np.zeros(0, np.int64), weigh(np.ones(num_bins, np.int64)))


# --- choosing histograms ---


@functools.cache
def _tents(num_bins: int, spacing: int) -> Float[np.ndarray, 'B M']:
  """The weight of each bin at each knot in straight-line interpolation, times the spacing."""
  knot_bins = spacing * np.arange(knots(num_bins, spacing))
  distance = np.abs(np.arange(num_bins)[:, None] - knot_bins)
  return np.maximum(spacing - distance, 0).astype(np.float64)


@functools.cache
def _height_table() -> Int[np.ndarray, 'H']:
  return frequencies(np.arange(OCTAVES * STEPS + 1))


def _knot_heights(occurrences: Int[np.ndarray, 'G B'], spacing: int) -> Int[np.ndarray, 'G M']:
  """The height of the mean frequency under the tent around each knot.

  Maximum likelihood would iterate from here; it saves 0.1 % of the bytes. The products are
  float64 for speed, of integers below 2^53: exact.
  """
  tents = _tents(occurrences.shape[-1], spacing)
  frequency = STEPS * (occurrences.astype(np.float64) @ tents) // tents.sum(axis=0)
  excess = frequency.max(axis=-1, keepdims=True) // _height_table()[-1] + 1
  return np.searchsorted(_height_table(), frequency // excess, side='right') - 1


@functools.cache
def _decay_costs(resolution: int, decay: int) -> Int[np.ndarray, 'D']:
  return _cost(_decay_weights(resolution, decay))


def _fit(
  occurrences: Int[np.ndarray, 'G B'],
) -> tuple[list[Histogram], Int[np.ndarray, 'G']]:
  """The cheapest histogram of each group, and its cost with the table and the values."""
  num_groups, num_bins = occurrences.shape
  flat, header = _flat(num_bins), _uniform_cost(1 + len(shapes(num_bins)))
  best, cost = [flat] * num_groups, occurrences @ _cost(flat.weights) + header
  for spacing in _spacings(num_bins):
    heights = _knot_heights(occurrences, spacing)
    for resolution in RESOLUTIONS:
      levels = (heights * resolution + STEPS // 2) // STEPS
      frequency = expand(levels, num_bins, spacing, resolution)
      empty = ~frequency.any(axis=-1)
      frequency[empty] = 1
      weights = weigh(frequency)
      values = np.where(empty, _NEVER, (occurrences * _cost(weights)).sum(axis=-1))
      top = OCTAVES * resolution
      differences = np.diff(levels, axis=-1) + top
      for decay in DECAYS:
        table = _uniform_cost(top + 1) + _decay_costs(resolution, decay)[differences].sum(axis=-1)
        total = values + header + table
        kind = 1 + shapes(num_bins).index((spacing, resolution, decay))
        for group in np.flatnonzero(total < cost):
          best[group] = Histogram(kind, levels[group], weights[group])
        cost = np.minimum(cost, total)
  return best, cost


def _plan(occurrences: Int[np.ndarray, 'G B'], high_bits: int) -> _Plan:
  """Splits the groups in those that share the common histogram and those that bring their own.

  Starts with all groups sharing; then lets the groups choose and fits the common histogram to
  those that still share, at most twice; keeps the cheapest of what it saw.
  """
  num_groups, num_bins = occurrences.shape
  own, own_cost = _fit(occurrences)
  shares = np.ones(num_groups, bool)
  plans = []
  for _ in range(3):
    common, table_cost = _flat(num_bins), _uniform_cost(1 + len(shapes(num_bins)))
    if shares.any():
      (common,), (fitted,) = _fit(occurrences[shares].sum(axis=0, keepdims=True))
      table_cost = fitted - occurrences[shares].sum(axis=0) @ _cost(common.weights)
    shared_cost = occurrences @ _cost(common.weights)
    flags = np.bincount(shares, minlength=2) @ _cost(_share_weights(int(shares.sum()), num_groups))
    cost = table_cost + flags + np.where(shares, shared_cost, own_cost).sum()
    choice = [None if share else histogram for share, histogram in zip(shares, own, strict=True)]
    plans.append(_Plan(high_bits, common, choice, int(cost)))
    shares, before = shared_cost <= own_cost, shares
    if (shares == before).all():
      break
  return min(plans, key=lambda plan: plan.cost)


def _share_weights(num_shares: int, num_groups: int) -> Int[np.ndarray, '2']:
  return weigh(np.array([num_groups - num_shares, num_shares]))


# --- columns in a stream ---


def _put_column(
  writer: _Writer, values: Int[np.ndarray, 'n'], alphabet: int, counts: Int[np.ndarray, 'G']
) -> None:
  bits = (alphabet - 1).bit_length()
  group = np.repeat(np.arange(len(counts)), counts)
  plans = []
  for high_bits in sorted({min(bits, tried) for tried in _TRIED_HIGH_BITS}):
    shift = bits - high_bits
    num_bins = (alphabet - 1 >> shift) + 1
    bins = group * num_bins + (values >> shift)
    occurrences = np.bincount(bins, minlength=len(counts) * num_bins)
    plan = _plan(occurrences.reshape(len(counts), num_bins), high_bits)
    plans.append(plan._replace(cost=plan.cost + len(values) * shift * _COST_UNITS))
  plan = min(plans, key=lambda plan: plan.cost)
  shift = bits - plan.high_bits
  shares = np.array([histogram is None for histogram in plan.own])
  writer.put_uniform(plan.high_bits - 1, min(bits, MAX_HIGH_BITS))
  _put_histogram(writer, plan.common)
  writer.put_uniform(shares.sum(), len(counts) + 1)
  writer.put(shares, _categorical(_share_weights(shares.sum(), len(counts))))
  for histogram in plan.own:
    if histogram is not None:
      _put_histogram(writer, histogram)
  high = np.split(values >> shift, np.cumsum(counts)[:-1])
  for members, histogram in zip(high, plan.own, strict=True):
    writer.put(members, _categorical((histogram or plan.common).weights))
  writer.put_uniform(values & (1 << shift) - 1, 1 << shift)


def _take_column(
  reader: _Reader, alphabet: int, counts: Int[np.ndarray, 'G']
) -> Int[np.ndarray, 'n']:
  bits = (alphabet - 1).bit_length()
  shift = bits - 1 - reader.take_uniform(min(bits, MAX_HIGH_BITS), 1)[0]
  num_bins = (alphabet - 1 >> int(shift)) + 1
  common = _take_levels(reader, num_bins)
  num_shares = reader.take_uniform(len(counts) + 1, 1)[0]
  share_model = _categorical(_share_weights(num_shares, len(counts)))
  shares = reader.take(share_model, len(counts)).astype(bool)
  told = [common, *(_take_levels(reader, num_bins) for _ in range(np.count_nonzero(~shares)))]
  weights = _weights(told, num_bins)
  models = [_categorical(row) for row in weights]
  # The first is the common one, then those of the groups that do not share, in order.
  which = np.where(shares, 0, np.cumsum(~shares))
  high = [reader.take(models[i], count) for i, count in zip(which, counts, strict=True)]
  return np.concatenate(high) << shift | reader.take_uniform(1 << int(shift), counts.sum())


def _put_histogram(writer: _Writer, histogram: Histogram) -> None:
  known = shapes(len(histogram.weights))
  writer.put_uniform(histogram.kind, 1 + len(known))
  if histogram.kind:
    _, resolution, decay = known[histogram.kind - 1]
    top = OCTAVES * resolution
    writer.put_uniform(histogram.levels[0], top + 1)
    writer.put(np.diff(histogram.levels) + top, _decay_model(resolution, decay))


def _take_levels(reader: _Reader, num_bins: int) -> _Told:
  """A stored histogram, not yet expanded."""
  known = shapes(num_bins)
  kind = reader.take_uniform(1 + len(known), 1)[0]
  if kind == 0:
    return _Told(0, 0, np.zeros(0, np.int64))
  spacing, resolution, decay = known[kind - 1]
  top = OCTAVES * resolution
  first = reader.take_uniform(top + 1, 1)
  differences = reader.take(_decay_model(resolution, decay), knots(num_bins, spacing) - 1) - top
  levels = np.cumsum(np.concatenate([first, differences]), dtype=np.int64)
  return _Told(spacing, resolution, levels)


def _weights(told: list[_Told], num_bins: int) -> Int[np.ndarray, 'G B']:
  """The weights of stored histograms, those of one kind together: K costs next to nothing."""
  weights = np.tile(_flat(num_bins).weights, (len(told), 1))
  kinds = [(spacing, resolution) for spacing, resolution, _ in told]
  for kind in set(kinds) - {(0, 0)}:
    rows = [i for i, other in enumerate(kinds) if other == kind]
    levels = np.stack([told[i].levels for i in rows])
    top = OCTAVES * kind[1]
    if levels.min() < 0 or levels.max() > top:
      raise ValueError(f'histogram levels: wanted 0..{top}, got {levels.min()}..{levels.max()}')
    frequency = expand(levels, num_bins, *kind)
    if not frequency.any(axis=-1).all():
      raise ValueError('histogram: wanted a frequency above 0, got none')
    weights[rows] = weigh(frequency)
  return weights


class _Writer:
  """Symbols in the order in which a decoder takes them.

  The coder is a stack, so they are pushed last to first, when all of them are known.
  """

  def __init__(self):
    self._runs: list[tuple[np.ndarray, Any]] = []

  def put(self, symbols: Int[np.ndarray, 'n'], model: Any) -> None:
    self._runs.append((np.asarray(symbols, np.int32), model))

  def put_uniform(self, symbols: Any, size: int) -> None:
    if size > 1:
      self._runs.append((np.atleast_1d(np.asarray(symbols, np.int32)), _stream.model.Uniform(size)))

  def to_bytes(self) -> bytes:
    coder = _stream.stack.AnsCoder()
    for symbols, model in reversed(self._runs):
      coder.encode_reverse(symbols, model)
    # The last word is never 0, so its zero bytes can go and come back.
    return coder.get_compressed().astype('<u4').tobytes().rstrip(b'\0')


class _Reader:
  """Takes symbols from a stream of `_Writer`."""

  def __init__(self, data: bytes):
    if data.endswith(b'\0'):
      raise ValueError('coded stream: wanted a last byte other than 0, got 0')
    words = np.frombuffer(data + bytes(-len(data) % 4), '<u4')
    self._coder = _stream.stack.AnsCoder(words.astype(np.uint32))

  def take(self, model: Any, count: int) -> Int[np.ndarray, 'n']:
    return self._coder.decode(model, int(count))

  def take_uniform(self, size: int, count: int) -> Int[np.ndarray, 'n']:
    if size == 1:
      return np.zeros(count, np.int32)
    return self._coder.decode(_stream.model.Uniform(size), int(count))

  def finish(self) -> None:
    if not self._coder.is_empty():
      raise ValueError('coded stream: wanted its end after the last value, got more')


def _categorical(weights: Int[np.ndarray, 'B']) -> Any:
  # constriction gives every bin 1, scales the floats to a sum of 2^24 - B and floors their partial
  # sums. Weights less 1 have that sum already: the scale is 1.0 and nothing is ever rounded.
  return _stream.model.Categorical((weights - 1).astype(np.float64), perfect=False)
