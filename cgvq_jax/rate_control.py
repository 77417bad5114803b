"""Rate control: the quality at which a file has a given rate or a given PSNR."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

MIN_QUALITY, MAX_QUALITY = 1.0, 100.0
_MAX_ENCODES = 8
_FIRST_QUALITY = 50.0


class TargetError(RuntimeError):
  """No quality reaches the target: what was wanted and the closest that was reached."""


class Target(NamedTuple):
  """A measure that a file shall have, in units that are about linear in quality."""

  name: str
  wanted: float
  tolerance: float
  slope: float  # typical change of the measure per unit of quality, used after a single encode
  display: Callable[[float], float]  # from the units of the search to those that are printed


def bpp(wanted: float) -> Target:
  """A rate in bits per pixel, within 2 %; the search works in ln(bits per pixel)."""
  return Target('bpp', math.log(wanted), math.log(1.02), 0.03, math.exp)


def psnr(wanted: float) -> Target:
  """A PSNR in dB, within 0.1 dB."""
  return Target('PSNR', wanted, 0.1, 0.14, float)


def find_quality(
  encode: Callable[[float], bytes], measure: Callable[[bytes], float], target: Target
) -> bytes:
  """The first file that measures `target.wanted` within its tolerance, at a quality of 1 to 100.

  `encode` makes the file of a quality, and `measure` returns its measure in the target's units. The
  search interpolates between the closest file on either side of the target, or extrapolates from
  the last two; it takes about three encodes, at most 8.

  Raises:
    TargetError: the target is beyond the lowest or the highest quality, or 8 encodes missed it.
  """
  tried: list[tuple[float, float]] = []  # quality, measure
  quality = _FIRST_QUALITY
  for _ in range(_MAX_ENCODES):
    file = encode(quality)
    value = measure(file)
    if abs(value - target.wanted) <= target.tolerance:
      return file
    tried.append((quality, value))
    following = _next_quality(tried, target)
    if any(following == quality for quality, _ in tried):
      break
    quality = following
  quality, value = min(tried, key=lambda pair: abs(pair[1] - target.wanted))
  raise TargetError(
    f'{target.name}: wanted {target.display(target.wanted):.4g}, got {target.display(value):.4g} at'
    f' quality {quality:.1f} as the closest of 1 to 100'
  )


def _next_quality(tried: Sequence[tuple[float, float]], target: Target) -> float:
  """Where a line through two files reaches the target.

  The files are the closest one on either side of the target, or else the last two; the line of a
  single file has the target's slope.
  """
  below = max((t for t in tried if t[1] < target.wanted), key=lambda t: t[1], default=None)
  above = min((t for t in tried if t[1] > target.wanted), key=lambda t: t[1], default=None)
  if below and above and above[0] > below[0]:
    share = (target.wanted - below[1]) / (above[1] - below[1])
    return below[0] + share * (above[0] - below[0])
  quality, value = tried[-1]
  slope = target.slope
  if len(tried) > 1 and quality != tried[-2][0]:
    # A flat or falling line would send the next quality to the far end, or the wrong way.
    slope = max((value - tried[-2][1]) / (quality - tried[-2][0]), slope / 4)
  return min(max(quality + (target.wanted - value) / slope, MIN_QUALITY), MAX_QUALITY)
