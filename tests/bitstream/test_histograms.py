from __future__ import annotations

import format_decoder
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgvq_jax.bitstream import histograms
from cgvq_jax.bitstream.ans import Reader, Stack, Writer
from cgvq_jax.bitstream.histograms import Layout


def encode(columns, layouts):
  """A stream of columns, one after the other."""
  writer = Writer()
  for column, layout in zip(columns, layouts, strict=True):
    histograms.put_column(writer, column, layout)
  return Stack(writer).to_bytes()


def decode(data, layouts):
  reader = Reader(data)
  columns = [histograms.take_column(reader, layout) for layout in layouts]
  reader.finish()
  return columns


def bells(rng, counts, alphabet):
  """One bell for each cluster: uneven centres, widths and skews."""
  parts = []
  for count in counts:
    noise = rng.normal(size=count)
    noise += rng.uniform(-0.5, 0.5) * (noise**2 - 1) / 2
    centre = alphabet / 2 + rng.normal() * alphabet / 16
    values = np.rint(centre + noise * alphabet / rng.uniform(4.5, 8))
    parts.append(np.clip(values, 0, alphabet - 1).astype(np.int32))
  return np.concatenate(parts)


def uneven_counts(rng, total, num_clusters):
  return rng.multinomial(total, rng.dirichlet(np.full(num_clusters, 2.0)))


def half_floats(rng, count):
  values = rng.uniform(-1, 1, count)
  values[: count // 500] *= 1.1
  return values.astype(np.float16).view(np.uint16).astype(np.int32)


def empirical_bytes(values, counts, alphabet):
  """Order-0 entropy with each cluster's own, free histogram."""
  total = 0.0
  for part in np.split(values, np.cumsum(counts)[:-1]):
    share = np.bincount(part, minlength=alphabet) / max(len(part), 1)
    total -= len(part) * np.sum(share * np.log2(np.where(share > 0, share, 1)))
  return total / 8


def assert_round_trip(columns, layouts):
  data = encode(columns, layouts)
  decoded = decode(data, layouts)
  for column, got in zip(columns, decoded, strict=True):
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, column)
  return data


# --- sizes ---


@pytest.mark.parametrize(
  ('total', 'num_clusters', 'excess'), [(10000, 16, 0.032), (10000, 1, 0.006), (15000, 64, 0.065)]
)
def test_bell_shaped_clusters_cost_little_more_than_their_entropy(total, num_clusters, excess):
  rng = np.random.default_rng(1)
  counts = uneven_counts(rng, total, num_clusters)
  columns = [bells(rng, counts, 64) for _ in range(3)]
  data = assert_round_trip(columns, [Layout(64, counts)] * 3)
  floor = sum(empirical_bytes(column, counts, 64) for column in columns)
  assert len(data) < (1 + excess) * floor


def test_half_float_positions_cost_thirteen_bits():
  # Uniform on -1..1 in float16: one sign bit, two bits of exponent, ten of mantissa, 12.995 in all.
  rng = np.random.default_rng(2)
  columns = [half_floats(rng, 10000) for _ in range(2)]
  counts = uneven_counts(rng, 10000, 16)
  data = assert_round_trip(columns, [Layout(65536, counts)] * 2)
  assert 8 * len(data) / 20000 < 13.03


def test_uniform_values_cost_their_bits_and_no_table():
  rng = np.random.default_rng(3)
  counts = np.full(64, 10)
  values = rng.integers(0, 64, counts.sum()).astype(np.int32)
  assert len(assert_round_trip([values], [Layout(64, counts)])) <= 6 * len(values) // 8 + 4


def test_alphabet_that_is_no_power_of_two_loses_no_bit():
  rng = np.random.default_rng(4)
  values = rng.integers(0, 5, 8000).astype(np.int32)
  assert len(assert_round_trip([values], [Layout(5, [8000])])) < 8000 * np.log2(5) / 8 + 8


def test_equal_clusters_share_one_histogram():
  rng = np.random.default_rng(5)
  values = bells(rng, [6400], 64)
  one = len(assert_round_trip([values], [Layout(64, [6400])]))
  many = len(assert_round_trip([values], [Layout(64, [100] * 64)]))
  assert many <= one + 3


def test_unlike_clusters_have_their_own_histograms():
  rng = np.random.default_rng(6)
  low, high = rng.integers(0, 4, 4000), rng.integers(48, 64, 4000)
  values = np.concatenate([low, high]).astype(np.int32)
  data = assert_round_trip([values], [Layout(64, [4000, 4000])])
  assert len(data) < (2 * 4000 + 4 * 4000) / 8 + 60  # one shared histogram would need 8,161 bytes


def test_one_odd_cluster_does_not_stop_the_others_from_sharing():
  rng = np.random.default_rng(7)
  alike = bells(rng, [3000], 64)
  data_alike = encode([alike], [Layout(64, [100] * 30)])
  odd = np.concatenate([alike, np.full(500, 60, np.int32)])
  data = assert_round_trip([odd], [Layout(64, [100] * 30 + [500])])
  assert len(data) < len(data_alike) + 30


def test_tiny_and_empty_clusters_cost_no_padding():
  counts = np.array([0, 1, 0, 2, 1] + [0] * 50 + [1] * 9)
  values = np.arange(counts.sum(), dtype=np.int32)
  assert len(assert_round_trip([values], [Layout(64, counts)])) <= 6 * len(values) / 8 + 5


def test_more_values_than_a_histogram_can_count_keep_their_proportions():
  rng = np.random.default_rng(11)
  values = rng.choice(8, size=1_000_000, p=[0.6, 0.2, 0.1, 0.05, 0.03, 0.01, 0.009, 0.001])
  data = assert_round_trip([values], [Layout(8, [len(values)])])
  assert len(data) < 1.005 * empirical_bytes(values, [len(values)], 8)


def test_constant_columns_cost_a_few_bytes():
  values = np.full(10000, 41, np.int32)
  assert len(assert_round_trip([values], [Layout(64, [10000])])) < 20


@pytest.mark.parametrize('layouts', [[], [Layout(64, [])], [Layout(64, [0, 0])], [Layout(1, [9])]])
def test_nothing_to_code_takes_no_byte(layouts):
  columns = [np.zeros(sum(layout.counts), np.int32) for layout in layouts]
  assert assert_round_trip(columns, layouts) == b''


# --- exactness ---


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trip_of_anything_and_by_the_second_decoder(data):
  seed = data.draw(st.integers(0, 2**32 - 1))
  rng = np.random.default_rng(seed)
  columns, layouts = [], []
  for _ in range(data.draw(st.integers(1, 3))):
    alphabet = data.draw(st.one_of(st.integers(1, 70), st.integers(71, 65536)))
    counts = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5))
    spread = data.draw(st.sampled_from([0.002, 0.1, 1.0]))
    top = max(1, round(alphabet * spread))
    columns.append(rng.integers(alphabet - top, alphabet, sum(counts)).astype(np.int32))
    layouts.append(Layout(alphabet, counts))
  stream = assert_round_trip(columns, layouts)
  assert format_decoder.decode_columns(stream, layouts) == [column.tolist() for column in columns]


def test_second_decoder_agrees_on_large_columns():
  rng = np.random.default_rng(8)
  counts = uneven_counts(rng, 3000, 16)
  columns = [bells(rng, counts, 64), half_floats(rng, 3000), bells(rng, counts, 1000)]
  layouts = [Layout(64, counts), Layout(65536, counts), Layout(1000, counts)]
  stream = encode(columns, layouts)
  assert format_decoder.decode_columns(stream, layouts) == [column.tolist() for column in columns]


def test_encoding_does_not_depend_on_the_type_or_layout_of_the_input():
  rng = np.random.default_rng(9)
  values = bells(rng, [300, 200], 64)
  want = encode([values], [Layout(64, [300, 200])])
  strided = np.stack([values, values], axis=1).astype(np.uint8)[:, 1]
  assert encode([strided], [Layout(64, np.array([300, 200], np.int32))]) == want


# --- bad input ---


@pytest.mark.parametrize('values', [[0, 64], [-1, 0]])
def test_encode_names_values_outside_the_alphabet(values):
  with pytest.raises(ValueError, match=r'wanted values in 0\.\.63, got'):
    encode([np.zeros(2, np.int32), np.array(values)], [Layout(64, [2])] * 2)


def test_encode_names_a_column_of_the_wrong_length():
  with pytest.raises(ValueError, match='wanted 5 values, got shape'):
    encode([np.zeros(4, np.int32)], [Layout(64, [2, 3])])


def test_decode_refuses_streams_that_end_elsewhere():
  rng = np.random.default_rng(10)
  values = bells(rng, [500], 64)
  data = encode([values], [Layout(64, [500])])
  with pytest.raises(ValueError, match='wanted its end'):
    decode(data, [Layout(64, [499])])
  with pytest.raises(ValueError, match='last byte'):
    decode(data + b'\0', [Layout(64, [500])])
  with pytest.raises(ValueError, match='wanted its end'):
    decode(b'\1', [])


@pytest.mark.parametrize(
  ('levels', 'message'),
  [
    ([2, 1, 0, -1], r'histogram levels: wanted 0\.\.15, got -1\.\.2'),
    ([14, 15, 16, 3], r'histogram levels: wanted 0\.\.15, got 3\.\.16'),
    ([0, 0, 0, 0], 'histogram: wanted a frequency above 0, got none'),
  ],
)
def test_decode_refuses_invalid_histograms(levels, message):
  kind = 1 + histograms.shapes(4).index((1, 1, 8))
  writer = Writer()
  writer.put_uniform(1, 2)  # both bits of four values have bins
  histograms._put_histogram(
    writer, histograms.Histogram(kind, np.array(levels), np.ones(4, np.int64))
  )
  with pytest.raises(ValueError, match=message):
    decode(Stack(writer).to_bytes(), [Layout(4, [1])])


@settings(max_examples=300, deadline=None)
@given(
  st.binary(max_size=120),
  st.lists(st.tuples(st.integers(1, 65536), st.lists(st.integers(0, 30), max_size=4)), max_size=3),
)
def test_any_bytes_decode_to_valid_values_or_a_value_error(data, layouts):
  layouts = [Layout(*layout) for layout in layouts]
  try:
    columns = decode(data, layouts)
  except ValueError:
    return
  for column, layout in zip(columns, layouts, strict=True):
    assert column.shape == (sum(layout.counts),)
    assert np.all((column >= 0) & (column < layout.alphabet))
