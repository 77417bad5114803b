"""Wall seconds: of the parts of one run, and of repeated calls, the first of which compiles.

stopwatch = Stopwatch()
data = encode(); encode_seconds = stopwatch.lap()
decode(data); decode_seconds = stopwatch.lap()

timing = repeat(lambda: program(x), 15, wait=jax.block_until_ready)
timing.first, timing.minimum, timing.median
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

Clock = Callable[[], float]  # seconds since some fixed time


class Stopwatch:
  """Starts when it is made."""

  def __init__(self, clock: Clock = time.perf_counter):
    self._clock = clock
    self._start = self._lap_start = clock()

  @property
  def elapsed(self) -> float:
    """Seconds since the start."""
    return self._clock() - self._start

  def lap(self) -> float:
    """Seconds since the last call of `lap`, or since the start."""
    now = self._clock()
    seconds, self._lap_start = now - self._lap_start, now
    return seconds


class Timing(NamedTuple):
  """Seconds of repeated calls."""

  first: float  # of the first call, compilation included
  warm: tuple[float, ...]  # of each call after it

  @property
  def median(self) -> float:
    """Of the warm calls: what a user waits for."""
    return statistics.median(self.warm)

  @property
  def minimum(self) -> float:
    """Of the warm calls: what the machine can do with nothing else to do."""
    return min(self.warm)


def _returned(result: Any) -> Any:
  return result


def repeat(
  call: Callable[[], Any],
  repeats: int,
  wait: Callable[[Any], Any] = _returned,
  clock: Clock = time.perf_counter,
) -> Timing:
  """Times one call and then `repeats` more.

  `wait` gets the result of each call and returns when that is computed: `jax.block_until_ready`
  for JAX, which returns before the device is done.

  Raises:
    ValueError: `repeats` is below 1.
  """
  if repeats < 1:
    raise ValueError(f'repeats: wanted 1 or more, got {repeats}')
  seconds = []
  for _ in range(1 + repeats):
    stopwatch = Stopwatch(clock)
    wait(call())
    seconds.append(stopwatch.elapsed)
  return Timing(seconds[0], tuple(seconds[1:]))


def seconds_per_call(
  call: Callable[[], Any],
  at_least: float = 0.2,
  wait: Callable[[Any], Any] = _returned,
  clock: Clock = time.perf_counter,
) -> float:
  """Mean seconds of a warm call among many in a row, with one `wait` at their end.

  This is the throughput of a device that is kept busy: calls are queued, so the time of handing
  over each one is hidden. The number of calls grows until they take `at_least` seconds.
  """
  wait(call())
  calls, seconds = 1, 0.0
  while seconds < at_least:
    calls = max(calls + 1, 2 * calls if seconds < at_least / 4 else calls + calls // 2)
    stopwatch = Stopwatch(clock)
    wait([call() for _ in range(calls)][-1])
    seconds = stopwatch.elapsed
  return seconds / calls
