"""Orders of the Gaussians: sorted, by bits back, and as they are."""

from __future__ import annotations

import math

import make_golden
import numpy as np
import pytest

from cgvq_jax.bitstream import codebooks, container
from cgvq_jax.bitstream.container import read, sections
from cgvq_jax.bitstream.ordering import ORDERS
from cgvq_jax.quantize.clustered import ATTRIBUTES, CodebookSymbols, Stream


def write(symbols: CodebookSymbols, order: str) -> bytes:
  return container.write(symbols._replace(order=order))


def all_rows(symbols):
  streams = (symbols.position, symbols.rotation_scale, symbols.color)
  return np.concatenate([stream.symbols for stream in streams], axis=1)


def test_canonical_sorts_within_clusters_and_keeps_rows_together():
  before = make_golden.clustered()
  after = make_golden.canonical(before)
  start = 0
  for count in before.counts:
    a, b = all_rows(before)[start : start + count], all_rows(after)[start : start + count]
    assert sorted(map(tuple, a)) == list(map(tuple, b))
    start += count
  assert not np.array_equal(all_rows(before), all_rows(after))


def positions(counts, seed=0, side=1024) -> CodebookSymbols:
  """Gaussians evenly over a lattice, with six bits of something else."""
  rng = np.random.default_rng(seed)
  total = int(np.sum(counts))
  position = Stream('lattice', (65536,) * 2, {}, rng.integers(0, side, (total, 2)).astype(np.int32))
  other = Stream('uniform', (64,), {}, rng.integers(0, 64, (total, 1)).astype(np.int32))
  nothing = Stream('uniform', (1,), {}, np.zeros((total, 1), np.int32))
  return CodebookSymbols(512, 768, 3, 'gi', np.array(counts, np.int32), position, other, nothing)


@pytest.mark.parametrize('counts', [[5000], [400, 0, 1, 1000, 99]])
def test_orders_save_the_bits_of_the_order(counts):
  symbols = positions(counts)
  bits = {order: 8 * len(write(symbols, order)) for order in ORDERS}
  of_order = sum(math.lgamma(count + 1) for count in counts) / math.log(2)
  assert 0.98 * of_order < bits['none'] - bits['sorted'] < of_order + 300  # and its histograms
  # The plain Gaussians' bits, 26 each, have to suffice for the order of the others.
  saved = bits['none'] - bits['bits_back']
  assert 0.6 * of_order < saved < 0.9 * of_order


def test_bits_back_takes_the_fewest_plain_gaussians_that_suffice():
  symbols = positions([3000])
  symbols = symbols._replace(order='bits_back')
  parsed = codebooks.parse(codebooks.write(symbols))
  assert parsed.symbols.order == 'bits_back'
  plain = parsed.num_plain
  assert plain is not None

  def is_enough(num_plain):
    return 26 * num_plain >= math.lgamma(3000 - num_plain + 1) / math.log(2)

  fewest = next(n for n in range(3000) if is_enough(n))
  assert abs(plain - fewest) <= 3  # the stream's last word, and what histograms lose


@pytest.mark.parametrize('order', ['sorted', 'bits_back'])
def test_the_order_given_does_not_matter(order):
  symbols = positions([50, 30])
  rng = np.random.default_rng(5)
  shuffle = np.concatenate([rng.permutation(50), 50 + rng.permutation(30)])
  shuffled = symbols._replace(
    **{
      attribute: stream._replace(symbols=stream.symbols[shuffle])
      for attribute in ATTRIBUTES
      for stream in [getattr(symbols, attribute)]
    }
  )
  assert write(shuffled, order) == write(symbols, order)
  assert write(shuffled, 'none') != write(symbols, 'none')


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('counts', [[1], [2], [1, 1, 1], [300]])
def test_equal_gaussians_come_back(order, counts):
  symbols = positions(counts, side=2)
  other = symbols.rotation_scale
  symbols = symbols._replace(rotation_scale=other._replace(symbols=other.symbols % 2))
  got = read(write(symbols, order))
  np.testing.assert_array_equal(
    all_rows(make_golden.canonical(got)), all_rows(make_golden.canonical(symbols))
  )


def test_what_bits_back_saves_is_the_positions_section():
  symbols = positions([2000])
  plain, back = (sections(write(symbols, name)) for name in ('none', 'bits_back'))
  assert back['positions'] < plain['positions'] - 1000
  assert abs(back['rotation_scale'] - plain['rotation_scale']) <= 8
