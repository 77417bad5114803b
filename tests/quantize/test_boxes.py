"""Boxes of positions: each row is alone in its own, and the counts are enough to find them."""

from __future__ import annotations

import numpy as np
import pytest

from cgvq_jax.quantize import boxes


def crowd(seed=2):
  """Rows in a box of 90 x 70, of which a few are equal."""
  rng = np.random.default_rng(seed)
  rows = np.concatenate([rng.integers(0, [90, 70], (300, 2)), [[5, 6]] * 3])
  return rows, np.array([90, 70])


def test_boxes_hold_their_rows_alone():
  rows, size = crowd()
  order, box, _ = boxes.partition(rows, size)
  assert sorted(order) == list(range(len(rows)))
  assert np.all((box.low <= rows[order]) & (rows[order] < box.low + box.size))
  for low, side in zip(box.low[:50], box.size[:50], strict=True):
    inside = np.all((rows >= low) & (rows < low + side), axis=1)
    assert inside.sum() == 1 or np.all(side == 1)


def test_boxes_are_rebuilt_from_the_counts_of_the_first_halves():
  rows, size = crowd()
  _, want, depths = boxes.partition(rows, size)
  left = iter(depths)

  def first_of(count):
    depth = next(left)
    np.testing.assert_array_equal(count, depth.count)
    return depth.first

  got = boxes.rebuild(len(rows), size, first_of)
  assert next(left, None) is None
  for ours, theirs in zip(got, want, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_cuts_go_across_the_longest_side():
  whole = boxes.Boxes(np.zeros(2, int), np.zeros((2, 2), int), np.array([[5, 3], [4, 4]]), [2, 1])
  whole = whole._replace(count=np.array([2, 1]))
  side, cut = boxes.cuts(whole)
  assert side.tolist() == [0, 0] and cut.tolist() == [3, 2]
  parts, index = boxes.halves(whole, side, cut, np.array([1, 0]))
  assert parts.low.tolist() == [[0, 0], [3, 0], [2, 0]]
  assert parts.size.tolist() == [[3, 3], [2, 3], [2, 4]]
  assert parts.count.tolist() == [1, 1, 1] and index.tolist() == [0, 1, 1, 2]


def test_boxes_lie_around_their_means_in_any_order():
  rng = np.random.default_rng(0)
  means = rng.uniform([-9, -3], [98, 69], (200, 2))
  low, size = boxes.boxes_of(means, 64, 96)
  assert np.all((low <= means * boxes.UNIT) & (means * boxes.UNIT < low + size))
  shuffle = rng.permutation(200)
  again = boxes.boxes_of(means[shuffle], 64, 96)
  np.testing.assert_array_equal(again[0], low[shuffle])
  np.testing.assert_array_equal(again[1], size[shuffle])


@pytest.mark.parametrize(
  ('low', 'high', 'want'),
  [
    ([0, 0], [96 * 16, 64 * 16], [0, 0, 0, 0]),
    ([-1, 5], [96 * 16 + 1, 64 * 16 - 9], [1, 0, 1, 0]),
    ([-16, -17], [96 * 16 + 16, 64 * 16 + 17], [1, 2, 1, 2]),
    ([-(1 << 40), 0], [1, 1 << 40], [boxes.MAX_OVERHANG, 0, 0, boxes.MAX_OVERHANG]),
  ],
)
def test_overhangs_are_whole_pixels(low, high, want):
  assert boxes.overhangs(np.array([low]), np.array([high]), 64, 96) == want
  corner, size = boxes.outer(64, 96, want)
  assert corner.tolist() == [-16 * want[0], -16 * want[1]]
  assert size.tolist() == [16 * (96 + want[0] + want[2]), 16 * (64 + want[1] + want[3])]
