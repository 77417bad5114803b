"""Seconds by a clock that the tests set."""

from __future__ import annotations

import pytest

from cgvq_jax.evaluate import timer


class Clock:
  """Stands still until `advance`."""

  def __init__(self):
    self.now = 10.0

  def __call__(self):
    return self.now

  def advance(self, seconds):
    self.now += seconds


def test_a_stopwatch_has_laps_and_a_total():
  clock = Clock()
  stopwatch = timer.Stopwatch(clock)
  clock.advance(2)
  assert stopwatch.lap() == 2
  clock.advance(3)
  assert (stopwatch.lap(), stopwatch.lap(), stopwatch.elapsed) == (3, 0, 5)


def test_the_first_call_is_kept_apart():
  clock, seconds = Clock(), iter([100.0, 5.0, 1.0, 3.0, 2.0, 4.0])
  timing = timer.repeat(lambda: clock.advance(next(seconds)), 5, clock=clock)
  assert timing == (100, (5, 1, 3, 2, 4))
  assert (timing.median, timing.minimum) == (3, 1)


def test_the_wait_for_a_result_counts():
  clock = Clock()
  timing = timer.repeat(lambda: 7.0, 2, wait=clock.advance, clock=clock)
  assert timing == (7, (7, 7))


def test_no_repeats_are_refused():
  with pytest.raises(ValueError, match='repeats: wanted 1 or more, got 0'):
    timer.repeat(lambda: None, 0)


def test_calls_in_a_row_wait_once():
  clock, waits = Clock(), []

  def wait(result):
    waits.append(result)
    clock.advance(0.01)

  calls = iter(range(1, 1000))

  def call():
    clock.advance(0.02)
    return next(calls)

  seconds = timer.seconds_per_call(call, at_least=0.21, wait=wait, clock=clock)
  # One call to warm up, then 2, 4 and, from a quarter of the wanted time on, half as many more.
  assert waits == [1, 1 + 2, 3 + 4, 7 + 6, 13 + 9, 22 + 13]
  assert seconds == pytest.approx((13 * 0.02 + 0.01) / 13)
