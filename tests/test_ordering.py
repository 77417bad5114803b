"""Sorting within clusters, and gaps instead of values."""

from __future__ import annotations

import math

import make_golden
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cgvq_jax.bitstream import container, ordering
from cgvq_jax.types import Stream, Symbols


def test_canonical_sorts_within_clusters_and_keeps_rows_together():
  before = make_golden.clustered()
  after = ordering.canonical(before)

  def rows(symbols):
    streams = (symbols.position, symbols.rotation_scale, symbols.color)
    return np.concatenate([stream.symbols for stream in streams], axis=1)

  start = 0
  for count in before.counts:
    a, b = rows(before)[start : start + count], rows(after)[start : start + count]
    assert sorted(map(tuple, a)) == sorted(map(tuple, b))
    positions = list(map(tuple, b[:, :2]))
    assert positions == sorted(positions)
    start += count
  assert not np.array_equal(rows(before), rows(after))


def test_gaps_by_hand():
  values, counts = np.array([5, 5, 9, 2, 7]), np.array([3, 0, 2])
  gaps = ordering.to_gaps(values, counts)
  assert gaps.tolist() == [5, 0, 4, 2, 5]
  assert ordering.from_gaps(gaps, counts).tolist() == values.tolist()


def test_an_unsorted_cluster_has_a_negative_gap():
  assert (ordering.to_gaps(np.array([5, 4]), np.array([2])) < 0).any()
  # The first of the next cluster may be smaller: that is no gap.
  assert (ordering.to_gaps(np.array([5, 4]), np.array([1, 1])) >= 0).all()


@given(st.lists(st.lists(st.integers(0, 65535), max_size=20), min_size=1, max_size=6))
def test_gaps_and_their_parts_round_trip(clusters):
  counts = np.array([len(cluster) for cluster in clusters])
  values = np.array([value for cluster in clusters for value in sorted(cluster)], np.int64)
  gaps = ordering.to_gaps(values, counts)
  high, low = ordering.split_gaps(gaps)
  assert np.array_equal((high << ordering.LOW_BITS) + low, gaps)
  for part, alphabet in zip((high, low), ordering.split_alphabet(65536), strict=True):
    assert ((part >= 0) & (part < alphabet)).all()
  assert np.array_equal(ordering.from_gaps(gaps, counts), values)


def uniform_positions(count: int) -> Symbols:
  """One cluster of half-precision positions spread evenly over the image."""
  x, y = np.random.default_rng(0).uniform(-1, 1, (2, count))
  positions = np.stack([x, y], 1).astype(np.float16).view(np.uint16).astype(np.int32)
  nothing = Stream('uniform', (1,), {}, np.zeros((count, 1), np.int32))
  position = Stream('fp16', (65536, 65536), {}, positions)
  counts = np.array([count], np.int32)
  return Symbols(512, 768, 3, 'gi', counts, position, nothing, nothing)


def test_sorting_saves_most_of_log2_of_the_orders():
  symbols = uniform_positions(5000)
  plain = container.sections(container.write(symbols))['positions']
  ordered = container.sections(container.write(ordering.canonical(symbols)))['positions']
  saved, bound = 8 * (plain - ordered), math.lgamma(5001) / math.log(2)
  # Not all of it: half precision is denser near 0, so gaps there follow another law than at the
  # edges, and one histogram serves both.
  assert 0.7 * bound < saved < bound, (saved, bound)
