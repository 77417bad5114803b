"""Point sets: the rows that come back, and the bits that they take."""

from __future__ import annotations

import math

import format_decoder
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgvq_jax.bitstream import point_sets
from cgvq_jax.bitstream.ans import Reader, Stack, Writer
from cgvq_jax.quantize import boxes


def encode(rows, alphabets, counts):
  writer = Writer()
  point_sets.put(writer, rows, alphabets, counts)
  return Stack(writer).to_bytes()


def decode(data, alphabets, counts):
  reader = Reader(data)
  rows = point_sets.take(reader, alphabets, counts)
  reader.finish()
  return rows


def in_order(rows, counts):
  group = np.repeat(np.arange(len(counts)), counts)
  return np.asarray(rows)[np.lexsort((*np.asarray(rows).T[::-1], group))]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_rows_come_back_in_order_and_by_the_second_decoder(data):
  rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
  alphabets = data.draw(st.lists(st.integers(1, 65536), min_size=1, max_size=4))
  counts = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
  spread = data.draw(st.sampled_from([0.0001, 0.01, 1.0]))
  tops = [max(1, round(alphabet * spread)) for alphabet in alphabets]
  rows = np.stack([rng.integers(0, top, sum(counts)) for top in tops], axis=1)
  coded = encode(rows, alphabets, counts)
  got = decode(coded, alphabets, counts)
  assert got.dtype == np.int32
  np.testing.assert_array_equal(got, in_order(rows, counts))
  shuffled = rows[np.lexsort((rng.random(len(rows)), np.repeat(np.arange(len(counts)), counts)))]
  assert encode(shuffled, alphabets, counts) == coded
  ans = format_decoder.Ans(coded)
  assert format_decoder.take_point_sets(ans, alphabets, counts) == got.tolist()
  assert ans.state == 0
  assert point_sets.in_order(got, counts)


def test_rows_out_of_order_are_noticed():
  rows = np.array([[1, 2], [1, 3], [0, 9]])
  assert point_sets.in_order(rows, np.array([2, 1]))
  assert not point_sets.in_order(rows, np.array([3]))
  assert not point_sets.in_order(rows[[1, 0, 2]], np.array([2, 1]))


@pytest.mark.parametrize(('total', 'num_groups'), [(1000, 1), (10000, 1), (10000, 16), (64, 4)])
def test_even_rows_cost_their_bits_less_the_order(total, num_groups):
  rng = np.random.default_rng(0)
  counts = np.full(num_groups, total // num_groups)
  rows = rng.integers(0, [1536, 1024], (counts.sum(), 2))
  ideal = len(rows) * math.log2(1536 * 1024)
  ideal -= num_groups * math.lgamma(counts[0] + 1) / math.log(2)
  bits = 8 * len(encode(rows, (65536, 65536), counts))
  more = 16 * 2 * num_groups + 3 * 22  # the boxes and the alphas
  assert bits < 1.005 * ideal + more


def test_crowded_rows_cost_less_than_even_ones():
  rng = np.random.default_rng(1)
  rows = np.clip(rng.normal(500, 40, (5000, 2)).astype(int), 0, 1023)
  even = rng.integers(0, 1024, (5000, 2))
  # Of 1024 values a bell of 40 fills 165: log2 of their proportion, for both columns.
  saved = 5000 * 2 * math.log2(1024 / (40 * math.sqrt(2 * math.pi * math.e)))
  crowded, evenly = (len(encode(a, (1024, 1024), [5000])) for a in (rows, even))
  # Nearly all of it: boxes of one depth share one alpha, whether they are crowded or not.
  assert 8 * (evenly - crowded) > 0.92 * saved


def test_equal_rows_cost_next_to_nothing():
  assert len(encode(np.full((5000, 2), 777), (1024, 1024), [5000])) < 70
  assert encode(np.zeros((0, 2), int), (1024, 1024), [0, 0]) == b''


@pytest.mark.parametrize('alpha', point_sets.ALPHAS)
def test_counts_follow_the_beta_binomial_distribution(alpha):
  def log_beta(a, b):
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

  for count in (1, 2, 7, 100, point_sets.MAX_COUNT):
    weights = point_sets.count_weights(alpha)[count, : count + 1]
    assert weights.sum() == 2**24
    assert weights.min() >= 1
    first = np.arange(count + 1)
    logs = np.array([math.log(math.comb(count, int(f))) for f in first])
    if alpha:
      logs += [log_beta(int(f) + alpha, count - int(f) + alpha) for f in first]
    share = np.exp(logs - np.logaddexp.reduce(logs))
    # A few thousandths of a bit: heights are in sixteenths of an octave.
    assert np.sum(share * np.log2(share / (weights / 2**24))) < 0.004
    assert format_decoder.count_weights(count, alpha or None) == weights.tolist()


def test_logarithms_are_exact():
  exact = np.diff(point_sets.log_sums(320))
  approximate = np.floor(256 * np.log2(np.arange(1, 320)))
  np.testing.assert_array_equal(exact, approximate)


def test_counts_of_boxes_come_back_and_save_the_order():
  """The counts, and the places left in the boxes, take log2 n! bits less than the places."""
  rng = np.random.default_rng(3)
  count, size = 1000, np.array([1 << 12, 1 << 12])
  rows = rng.integers(0, size, (count, 2))
  _, box, depths = boxes.partition(rows, size)
  writer = Writer()
  for depth in depths:
    point_sets.put_counts(writer, depth.first, depth.count)
  inside = np.sum(np.log2(np.prod(box.size, axis=1)))
  of_order = np.sum(np.log2(np.arange(1, count + 1)))
  stack = Stack(writer)
  assert stack.num_bits + inside < 24 * count - 0.985 * of_order
  reader = Reader(stack.to_bytes())
  got = boxes.rebuild(count, size, lambda counts: point_sets.take_counts(reader, counts))
  reader.finish()
  for ours, theirs in zip(got, box, strict=True):
    np.testing.assert_array_equal(ours, theirs)
