"""The quality at which a file has the rate or the PSNR that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

LEAST, MOST = 1.0, 100.0  # qualities
_TRIES = 8
_FIRST = 50.0


class SearchError(RuntimeError):
  """What was asked for cannot be had; says what was wanted and the closest that was got."""


class Target(NamedTuple):
  """What a file shall measure, in units in which it grows about evenly with quality."""

  name: str
  wanted: float
  tolerance: float
  slope: float  # a quality's worth, about: where one try is all that is known
  told: Callable[[float], float]  # what it is to who asked for it


def bpp(wanted: float) -> Target:
  """Within 2 %; measured in ln(bits per pixel)."""
  return Target('bpp', math.log(wanted), math.log(1.02), 0.03, math.exp)


def psnr(wanted: float) -> Target:
  """Within 0.1 dB; measured in dB."""
  return Target('PSNR', wanted, 0.1, 0.14, float)


def search(
  encode: Callable[[float], bytes], measure: Callable[[bytes], float], target: Target
) -> bytes:
  """Encodes at qualities of 1 to 100 until the file measures what is wanted; returns that file.

  Secants between the closest tries on either side: three files or so.

  Raises:
    SearchError: even the least or the most quality is not it, or the tries were used up.
  """
  tried: list[tuple[float, float]] = []
  quality = _FIRST
  for _ in range(_TRIES):
    file = encode(quality)
    value = measure(file)
    if abs(value - target.wanted) <= target.tolerance:
      return file
    tried.append((quality, value))
    following = _next(tried, target)
    if any(following == quality for quality, _ in tried):
      break
    quality = following
  quality, value = min(tried, key=lambda pair: abs(pair[1] - target.wanted))
  raise SearchError(
    f'{target.name}: wanted {target.told(target.wanted):.4g}, got {target.told(value):.4g} at'
    f' quality {quality:.1f} as the closest of 1 to 100'
  )


def _next(tried: Sequence[tuple[float, float]], target: Target) -> float:
  """Where the line through the closest tries on both sides, or the last, has what is wanted."""
  below = max((t for t in tried if t[1] < target.wanted), key=lambda t: t[1], default=None)
  above = min((t for t in tried if t[1] > target.wanted), key=lambda t: t[1], default=None)
  if below and above and above[0] > below[0]:
    share = (target.wanted - below[1]) / (above[1] - below[1])
    return below[0] + share * (above[0] - below[0])
  quality, value = tried[-1]
  slope = target.slope
  if len(tried) > 1 and quality != tried[-2][0]:
    slope = max((value - tried[-2][1]) / (quality - tried[-2][0]), slope / 4)
  return min(max(quality + (target.wanted - value) / slope, LEAST), MOST)
