"""Columns of integers: compact histograms, and the values coded by them.

A column is n integers below its alphabet, in G groups that follow each other (the clusters). It has
one common histogram; a group may have its own where that takes fewer bits, the histogram's
included. A histogram is a piecewise linear log density: levels at every 2^i-th bin, straight lines
between them, so that the bell of a 600-member cluster takes about 35 bits and a large, rough column
can still have a level for every bin. Columns of many bits have a histogram of their high bits only
and store the low bits flat.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cgvq_jax.bitstream.ans import (
  COST_UNITS,
  OCTAVES,
  STEPS,
  Reader,
  Writer,
  bit_cost,
  categorical,
  frequencies,
  normalize_frequencies,
  uniform_cost,
)

if TYPE_CHECKING:
  from jaxtyping import Float, Int

MAX_ALPHABET = 1 << 16
RESOLUTIONS = (1, 4)  # levels in an octave
DECAYS = (8, 16, 32)  # heights lost for each level of difference between neighbouring knots
MAX_HIGH_BITS = 10  # a histogram has at most 2^10 bins
_TRIED_HIGH_BITS = (6, 8)
_MANY_VALUES = 512  # fewer are too few to estimate more than 2^6 bins
_NEVER = 1 << 60  # a cost


class Layout(NamedTuple):
  """What a decoder knows of a column before it reads it."""

  alphabet: int  # the values are 0..alphabet-1
  counts: Sequence[int] | Int[np.ndarray, 'G']  # values in each group


class Histogram(NamedTuple):
  """A distribution over bins, and the integers that store it."""

  kind: int  # 0: flat; otherwise 1 + the index in `shapes(num_bins)`
  levels: Int[np.ndarray, 'M']  # at the knots, 0..OCTAVES * resolution; none when flat
  weights: Int[np.ndarray, 'B']  # probabilities in units of 2^-24


class _Stored(NamedTuple):
  """A histogram as it is stored; a spacing of 0 is the flat one."""

  spacing: int
  resolution: int
  levels: Int[np.ndarray, 'M']


class Plan(NamedTuple):
  """How one column is coded, chosen by `plan`."""

  high_bits: int
  common: Histogram
  own: list[Histogram | None]  # for each group that is not empty; None: the common one
  cost: int


class Model(NamedTuple):
  """The distributions that code the values of a column."""

  shift: int  # low bits, which are stored flat
  groups: list[Any]  # constriction's model of the high bits in each group, None in an empty one


def put_column(writer: Writer, values: Int[np.ndarray, 'n'], layout: Layout) -> None:
  """Codes a column: its model, then its values."""
  put_values(writer, put_model(writer, values, layout), values, layout.counts)


def take_column(reader: Reader, layout: Layout) -> Int[np.ndarray, 'n']:
  """The inverse of `put_column`. Raises ValueError."""
  return take_values(reader, take_model(reader, layout), layout)


def _spacings(num_bins: int) -> list[int]:
  return [1 << i for i in range((num_bins - 1).bit_length() + 1)]


@functools.cache
def shapes(num_bins: int) -> list[tuple[int, int, int]]:
  """The ways to store a histogram: (bins between knots, levels in an octave, decay)."""
  return list(itertools.product(_spacings(num_bins), RESOLUTIONS, DECAYS))


def knots(num_bins: int, spacing: int) -> int:
  """Knots at bins 0, spacing, 2 spacing, ...: the last one at or after the last bin."""
  return -(-(num_bins - 1) // spacing) + 1


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
  return normalize_frequencies(
    frequencies(np.maximum(OCTAVES * STEPS - np.abs(difference) * decay, 0))
  )


@functools.cache
def _decay_model(resolution: int, decay: int) -> Any:
  return categorical(_decay_weights(resolution, decay))


@functools.cache
def _flat(num_bins: int) -> Histogram:
  return Histogram(0, np.zeros(0, np.int64), normalize_frequencies(np.ones(num_bins, np.int64)))


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

  Maximum likelihood would iterate from here; it saves 0.1 % of the bytes. The products are in
  float64 for speed and exact, since the integers stay below 2^53.
  """
  tents = _tents(occurrences.shape[-1], spacing)
  frequency = STEPS * (occurrences.astype(np.float64) @ tents) // tents.sum(axis=0)
  excess = frequency.max(axis=-1, keepdims=True) // _height_table()[-1] + 1
  return np.searchsorted(_height_table(), frequency // excess, side='right') - 1


@functools.cache
def _decay_costs(resolution: int, decay: int) -> Int[np.ndarray, 'D']:
  return bit_cost(_decay_weights(resolution, decay))


def _fit(
  occurrences: Int[np.ndarray, 'G B'],
) -> tuple[list[Histogram], Int[np.ndarray, 'G']]:
  """The cheapest histogram of each group, and its cost with the table and the values."""
  num_groups, num_bins = occurrences.shape
  flat, header = _flat(num_bins), uniform_cost(1 + len(shapes(num_bins)))
  best, cost = [flat] * num_groups, occurrences @ bit_cost(flat.weights) + header
  for spacing in _spacings(num_bins):
    heights = _knot_heights(occurrences, spacing)
    for resolution in RESOLUTIONS:
      levels = (heights * resolution + STEPS // 2) // STEPS
      frequency = expand(levels, num_bins, spacing, resolution)
      empty = ~frequency.any(axis=-1)
      frequency[empty] = 1
      weights = normalize_frequencies(frequency)
      values = np.where(empty, _NEVER, (occurrences * bit_cost(weights)).sum(axis=-1))
      top = OCTAVES * resolution
      differences = np.diff(levels, axis=-1) + top
      for decay in DECAYS:
        table = uniform_cost(top + 1) + _decay_costs(resolution, decay)[differences].sum(axis=-1)
        total = values + header + table
        kind = 1 + shapes(num_bins).index((spacing, resolution, decay))
        for group in np.flatnonzero(total < cost):
          best[group] = Histogram(kind, levels[group], weights[group])
        cost = np.minimum(cost, total)
  return best, cost


def _plan(occurrences: Int[np.ndarray, 'G B'], high_bits: int) -> Plan:
  """Splits the groups into those that share the common histogram and those that have their own.

  Starts with all groups sharing; then lets the groups choose and fits the common histogram to
  those that still share, at most twice; returns the cheapest plan seen.
  """
  num_groups, num_bins = occurrences.shape
  own, own_cost = _fit(occurrences)
  if num_groups == 1:
    return Plan(high_bits, own[0], [None], int(own_cost[0]))
  shares = np.ones(num_groups, bool)
  plans = []
  for _ in range(3):
    common, table_cost = _flat(num_bins), uniform_cost(1 + len(shapes(num_bins)))
    if shares.any():
      (common,), (fitted,) = _fit(occurrences[shares].sum(axis=0, keepdims=True))
      table_cost = fitted - occurrences[shares].sum(axis=0) @ bit_cost(common.weights)
    shared_cost = occurrences @ bit_cost(common.weights)
    flags = np.bincount(shares, minlength=2) @ bit_cost(
      _share_weights(int(shares.sum()), num_groups)
    )
    cost = table_cost + flags + np.where(shares, shared_cost, own_cost).sum()
    choice = [None if share else histogram for share, histogram in zip(shares, own, strict=True)]
    plans.append(Plan(high_bits, common, choice, int(cost)))
    shares, before = shared_cost <= own_cost, shares
    if (shares == before).all():
      break
  return min(plans, key=lambda plan: plan.cost)


def _share_weights(num_shares: int, num_groups: int) -> Int[np.ndarray, '2']:
  return normalize_frequencies(np.array([num_groups - num_shares, num_shares]))


# --- columns in a stream ---


def put_model(writer: Writer, values: Int[np.ndarray, 'n'], layout: Layout) -> Model | None:
  """Chooses the histograms for a column's values, and codes them; None if nothing needs coding.

  Raises:
    ValueError: the column has another length than its counts say, or a value outside its alphabet.
  """
  values, counts = np.asarray(values), np.asarray(layout.counts, np.int64)
  if values.shape != (counts.sum(),):
    raise ValueError(f'wanted {counts.sum()} values, got shape {values.shape}')
  if values.size and not 0 <= values.min() <= values.max() < layout.alphabet:
    raise ValueError(
      f'wanted values in 0..{layout.alphabet - 1}, got {values.min()}..{values.max()}'
    )
  if not values.size or layout.alphabet == 1:
    return None
  plan = _best_plan(values.astype(np.int64), layout.alphabet, counts[counts > 0])
  bits = (layout.alphabet - 1).bit_length()
  shares = np.array([histogram is None for histogram in plan.own])
  writer.put_uniform(plan.high_bits - 1, min(bits, MAX_HIGH_BITS))
  _put_histogram(writer, plan.common)
  writer.put_uniform(shares.sum(), len(shares) + 1)
  writer.put(shares, categorical(_share_weights(shares.sum(), len(shares))))
  for histogram in plan.own:
    if histogram is not None:
      _put_histogram(writer, histogram)
  chosen = [(histogram or plan.common).weights for histogram in plan.own]
  return _model(bits - plan.high_bits, counts, [categorical(weights) for weights in chosen])


def take_model(reader: Reader, layout: Layout) -> Model | None:
  """The inverse of `put_model`. Raises ValueError on an invalid histogram."""
  counts = np.asarray(layout.counts, np.int64)
  num_groups = int(np.count_nonzero(counts))
  if num_groups == 0 or layout.alphabet == 1:
    return None
  bits = (layout.alphabet - 1).bit_length()
  shift = int(bits - 1 - reader.take_uniform(min(bits, MAX_HIGH_BITS), 1)[0])
  num_bins = (layout.alphabet - 1 >> shift) + 1
  common = _take_levels(reader, num_bins)
  num_shares = int(reader.take_uniform(num_groups + 1, 1)[0])
  share_model = categorical(_share_weights(num_shares, num_groups))
  shares = reader.take(share_model, num_groups).astype(bool)
  stored = [common, *(_take_levels(reader, num_bins) for _ in range(np.count_nonzero(~shares)))]
  models = [categorical(row) for row in _weights(stored, num_bins)]
  # The first is the common one, then those of the groups that do not share, in order.
  which = np.where(shares, 0, np.cumsum(~shares))
  return _model(shift, counts, [models[i] for i in which])


def _model(shift: int, counts: Int[np.ndarray, 'G'], models: list[Any]) -> Model:
  left = iter(models)
  return Model(shift, [next(left) if count else None for count in counts])


def put_values(
  writer: Writer,
  model: Model | None,
  values: Int[np.ndarray, 'n'],
  counts: Sequence[int] | Int[np.ndarray, 'G'],
) -> None:
  """Codes values by a column's model: all of them, or some of each group."""
  if model is not None:
    parts = np.split(values >> model.shift, np.cumsum(counts)[:-1])
    for part, group in zip(parts, model.groups, strict=True):
      if part.size:
        writer.put(part, group)
    writer.put_uniform(values & (1 << model.shift) - 1, 1 << model.shift)


def take_values(reader: Reader, model: Model | None, layout: Layout) -> Int[np.ndarray, 'n']:
  """The inverse of `put_values`, as int32. Raises ValueError on a value outside the alphabet."""
  counts = np.asarray(layout.counts, np.int64)
  values = np.zeros(counts.sum(), np.int32)
  if model is None or not values.size:
    return values
  high = [
    reader.take(group, count) for group, count in zip(model.groups, counts, strict=True) if count
  ]
  values = np.concatenate(high) << model.shift
  if model.shift:
    values |= reader.take_uniform(1 << model.shift, len(values))
  if values.max() >= layout.alphabet:
    raise ValueError(f'wanted values in 0..{layout.alphabet - 1}, got {values.max()}')
  return values


def _best_plan(values: Int[np.ndarray, 'n'], alphabet: int, counts: Int[np.ndarray, 'G']) -> Plan:
  bits = (alphabet - 1).bit_length()
  group = np.repeat(np.arange(len(counts)), counts)
  plans = []
  tried = _TRIED_HIGH_BITS if len(values) >= _MANY_VALUES else _TRIED_HIGH_BITS[:1]
  for high_bits in sorted({min(bits, most) for most in tried}):
    shift = bits - high_bits
    num_bins = (alphabet - 1 >> shift) + 1
    bins = group * num_bins + (values >> shift)
    occurrences = np.bincount(bins, minlength=len(counts) * num_bins)
    plan = _plan(occurrences.reshape(len(counts), num_bins), high_bits)
    plans.append(plan._replace(cost=plan.cost + len(values) * shift * COST_UNITS))
  return min(plans, key=lambda plan: plan.cost)


def _put_histogram(writer: Writer, histogram: Histogram) -> None:
  known = shapes(len(histogram.weights))
  writer.put_uniform(histogram.kind, 1 + len(known))
  if histogram.kind:
    _, resolution, decay = known[histogram.kind - 1]
    top = OCTAVES * resolution
    writer.put_uniform(histogram.levels[0], top + 1)
    writer.put(np.diff(histogram.levels) + top, _decay_model(resolution, decay))


def _take_levels(reader: Reader, num_bins: int) -> _Stored:
  """A stored histogram, not yet expanded."""
  known = shapes(num_bins)
  kind = reader.take_uniform(1 + len(known), 1)[0]
  if kind == 0:
    return _Stored(0, 0, np.zeros(0, np.int64))
  spacing, resolution, decay = known[kind - 1]
  top = OCTAVES * resolution
  first = reader.take_uniform(top + 1, 1)
  differences = reader.take(_decay_model(resolution, decay), knots(num_bins, spacing) - 1) - top
  levels = np.cumsum(np.concatenate([first, differences]), dtype=np.int64)
  return _Stored(spacing, resolution, levels)


def _weights(stored: list[_Stored], num_bins: int) -> Int[np.ndarray, 'G B']:
  """The weights of stored histograms, computed for all of one kind at once, which is faster."""
  weights = np.tile(_flat(num_bins).weights, (len(stored), 1))
  kinds = [(spacing, resolution) for spacing, resolution, _ in stored]
  for kind in set(kinds) - {(0, 0)}:
    rows = [i for i, other in enumerate(kinds) if other == kind]
    levels = np.stack([stored[i].levels for i in rows])
    top = OCTAVES * kind[1]
    if levels.min() < 0 or levels.max() > top:
      raise ValueError(f'histogram levels: wanted 0..{top}, got {levels.min()}..{levels.max()}')
    frequency = expand(levels, num_bins, *kind)
    if not frequency.any(axis=-1).all():
      raise ValueError('histogram: wanted a frequency above 0, got none')
    weights[rows] = normalize_frequencies(frequency)
  return weights
