"""The one loop that repeats a program with larger lists until they hold what an image needs."""

from __future__ import annotations

import pytest

from cgvq_jax.rasterize.tiles import Capacity, grow_until_it_fits, round_capacity


@pytest.mark.parametrize(
  ('first', 'needed', 'tried'),
  [
    (Capacity(2048, 64), [Capacity(2048, 64)], [(2048, 64)]),  # exactly full still fits
    (Capacity(2048), [Capacity(3000), Capacity(3000)], [(2048, 0), (3584, 0)]),
    (Capacity(2048, 64), [Capacity(9, 65), Capacity(9, 65)], [(2048, 64), (2048, 256)]),
    # A truncated list cannot say how much it lacks: a second growth follows.
    (
      Capacity(1024, 64),
      [Capacity(2000, 10), Capacity(9000, 300), Capacity(9000, 300)],
      [(1024, 64), (2560, 64), (10240, 1024)],
    ),
  ],
)
def test_a_capacity_grows_until_it_holds_what_is_needed(first, needed, tried):
  asked = []

  def attempt(capacity):
    asked.append(tuple(capacity))
    return f'result {len(asked)}', needed[len(asked) - 1]

  result, capacity = grow_until_it_fits(first, attempt)
  assert asked == tried
  assert result == f'result {len(tried)}' and capacity == tried[-1]


@pytest.mark.parametrize('pairs', [1025, 5000, 99_999, 1 << 23])
def test_growth_leaves_some_to_spare(pairs):
  grown = Capacity(1024, 64).grown(Capacity(pairs, 1))
  assert 1.05 * pairs < grown.pairs <= max(1.4 * pairs, 2048) and grown.chunks == 64
  assert grown.pairs == round_capacity(grown.pairs)
