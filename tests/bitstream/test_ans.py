"""Entropy coding: distributions, and a stack of symbols."""

from __future__ import annotations

import format_decoder
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgvq_jax.bitstream import ans


@pytest.mark.parametrize('num_bins', [2, 3, 64, 1000, 1024])
def test_weights_are_positive_sum_to_a_power_of_two_and_follow_the_frequencies(num_bins):
  rng = np.random.default_rng(num_bins)
  frequency = rng.integers(0, 2**19, (5, num_bins)) * rng.integers(0, 2, (5, num_bins))
  frequency[:, -1] += 1
  weights = ans.normalize_frequencies(frequency)
  assert weights.min() >= 1
  np.testing.assert_array_equal(weights.sum(axis=1), 2**24)
  share = frequency / frequency.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(weights / 2**24, share, atol=2 * num_bins / 2**24)
  for row, want in zip(frequency, weights, strict=True):
    assert format_decoder.normalize_frequencies(row.tolist()) == want.tolist()


@pytest.mark.parametrize('num_bins', [2, 61, 1024])
def test_constriction_codes_with_exactly_these_weights(num_bins):
  # Rare and likely symbols alike, decoded by integer arithmetic on the weights alone.
  rng = np.random.default_rng(num_bins)
  weights = ans.normalize_frequencies(np.exp(rng.uniform(0, 13, num_bins)).astype(np.int64))
  symbols = rng.integers(0, num_bins, 2000)
  writer = ans.Writer()
  writer.put(symbols, ans.categorical(weights))
  other = format_decoder.Ans(ans.Stack(writer).to_bytes())
  assert [other.take(weights.tolist()) for _ in symbols] == symbols.tolist()
  assert other.state == 0


def test_frequencies_rise_from_zero_by_octaves():
  heights = np.arange(ans.OCTAVES * ans.STEPS + 1)
  frequency = ans.frequencies(heights)
  assert np.all(np.diff(frequency) > 0)
  np.testing.assert_array_equal(frequency[::16], 16 * (2 ** np.arange(16) - 1))
  np.testing.assert_allclose(np.log2(frequency + 16) - 4, heights / 16, atol=0.09)


@given(st.data())
def test_uniform_symbols_of_different_sizes_round_trip_and_by_the_second_decoder(data):
  pairs = data.draw(
    st.lists(
      st.integers(1, 70000).flatmap(
        lambda size: st.tuples(st.integers(0, size - 1), st.just(size))
      ),
      max_size=20,
    )
  )
  symbols, sizes = np.array(pairs, np.int64).reshape(-1, 2).T
  writer = ans.Writer()
  writer.put_below(symbols, sizes)
  stream = ans.Stack(writer).to_bytes()
  reader = ans.Reader(stream)
  assert reader.take_below(sizes).tolist() == symbols.tolist()
  reader.finish()
  other = format_decoder.Ans(stream)
  assert [other.uniform(size) for size in sizes.tolist()] == symbols.tolist()


def test_bits_that_are_given_back_can_be_taken_again():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 1000, 300)
  writer = ans.Writer()
  writer.put_uniform(rng.integers(0, 1 << 20, 500), 1 << 20)
  stream = ans.Stack(writer).to_bytes()
  reader, other = ans.Reader(stream), format_decoder.Ans(stream)
  symbols = reader.take_below(sizes)
  reader.give_back(symbols, sizes)
  expected = ans.Reader(stream).take_uniform(1 << 20, 500)
  assert reader.take_uniform(1 << 20, 500).tolist() == expected.tolist()
  reader.finish()
  taken = [other.uniform(size) for size in sizes.tolist()]
  assert taken == symbols.tolist()
  for symbol, size in zip(taken[::-1], sizes[::-1].tolist(), strict=True):
    other.give_back_uniform(symbol, size)
  assert [other.uniform(1 << 20) for _ in range(500)] == expected.tolist()


def test_a_reader_counts_bits_by_section():
  writer = ans.Writer()
  writer.put_uniform(np.arange(64), 64)
  writer.put_uniform(np.arange(256), 256)
  reader = ans.Reader(ans.Stack(writer).to_bytes(), ('a', 'b'))
  reader.take_uniform(64, 64)
  reader.section = 'b'
  reader.take_uniform(256, 256)
  reader.finish()
  assert abs(reader.bits['a'] - 64 * 6) <= 8
  assert abs(reader.bits['b'] - 256 * 8) <= 40
