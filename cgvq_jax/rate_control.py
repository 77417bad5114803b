"""Rate control: the best file within a rate, or the smallest file of a PSNR."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

MIN_QUALITY, MAX_QUALITY = 1.0, 100.0
QUALITY_STEP = 0.4  # qualities that are closer make the same file of `cgvq_rd`
_MAX_ENCODES = 8
_FIRST_QUALITY = 50.0
_MAX_PSNR = 100.0  # dB; stands for equality, which would be infinite


class Measures(NamedTuple):
  """What a file costs, and what it is worth."""

  bpp: float
  psnr: float  # dB


class TargetError(RuntimeError):
  """No file keeps the bound: what was wanted, and the closest file."""


class Target(NamedTuple):
  """A bound on the rate or on the PSNR of a file, and how close to it is close enough."""

  bound: str  # such as 'at most 0.3 bpp'
  aim: str  # such as '0.294 to 0.3 bpp'
  low: float  # of the aim, in units of `value`
  high: float
  value: Callable[[Measures], float]  # grows with quality, about linearly
  slope: float  # typical growth of the value per unit of quality, used after a single encode
  keeps: Callable[[Measures], bool]  # the bound
  cost: Callable[[Measures], tuple[float, float]]  # of files that keep it the lowest is the best


class Found(NamedTuple):
  """The best of the files that a search has made."""

  quality: float
  data: bytes
  measures: Measures
  keeps_bound: bool  # if not, no file did, and this one came closest
  in_aim: bool
  num_encodes: int  # of the whole search


def at_most_bpp(most: float) -> Target:
  """The highest PSNR at a rate of at most so many bits per pixel; 98 % of it is close enough.

  Raises ValueError where it is not a finite number above 0.
  """
  _check('bpp', most)
  low = 0.98 * most
  return Target(
    bound=f'at most {most:g} bpp',
    aim=f'{low:.4g} to {most:.4g} bpp',
    low=math.log(low),
    high=math.log(most),
    value=lambda measures: math.log(measures.bpp),
    slope=0.03,
    keeps=lambda measures: measures.bpp <= most,
    cost=lambda measures: (-measures.psnr, measures.bpp),
  )


def at_least_psnr(least: float) -> Target:
  """The lowest rate at a PSNR of at least so many dB; 0.1 dB more is close enough.

  Raises ValueError where it is not a finite number above 0.
  """
  _check('psnr', least)
  high = least + 0.1
  return Target(
    bound=f'at least {least:g} dB',
    aim=f'{least:g} to {high:g} dB',
    low=least,
    high=high,
    value=lambda measures: min(measures.psnr, _MAX_PSNR),
    slope=0.14,
    keeps=lambda measures: measures.psnr >= least,
    cost=lambda measures: (measures.bpp, -measures.psnr),
  )


def _check(name: str, wanted: float) -> None:
  if not 0 < wanted < math.inf:
    raise ValueError(f'{name}: wanted a finite number above 0, got {wanted}')


def search(encode: Callable[[float], tuple[bytes, Measures]], target: Target) -> Found:
  """The best file that keeps the target's bound, of those of some qualities from 1 to 100.

  `encode` makes and measures the file of a quality, a multiple of `QUALITY_STEP` or 1; none is
  asked for twice. The search looks for the middle of the aim. It ends with a file in the aim,
  between two neighbouring qualities, at quality 1 or 100 where the aim lies beyond, or after 8
  encodes; usually it takes about three. Neither rate nor PSNR need grow with quality: the best
  file may be any of those made, and where none keeps the bound, the closest to it is returned.

      def encode(quality):
        data = cg.encode(image, cg.methods.cgvq_rd(quality=quality))
        return data, cg.measure(image, data)

      found = cg.rate_control.search(encode, cg.rate_control.at_most_bpp(0.3))
  """
  files: list[Found] = []
  tried: list[_Point] = []
  middle = (target.low + target.high) / 2
  index: int | None = round(_FIRST_QUALITY / QUALITY_STEP)
  while index is not None and len(files) < _MAX_ENCODES:
    quality = max(round(index * QUALITY_STEP, 1), MIN_QUALITY)
    data, measures = encode(quality)
    value, keeps = target.value(measures), target.keeps(measures)
    in_aim = keeps and target.low <= value <= target.high
    files.append(Found(quality, data, measures, keeps, in_aim, len(files) + 1))
    if in_aim:
      break
    tried.append(_Point(index, value))
    index = _next_index(tried, middle, target.slope * QUALITY_STEP)
  if kept := [file for file in files if file.keeps_bound]:
    best = min(kept, key=lambda file: target.cost(file.measures))
  else:
    best = min(files, key=lambda file: abs(target.value(file.measures) - middle))
  return best._replace(num_encodes=len(files))


class _Point(NamedTuple):
  index: int  # the quality in steps
  value: float


def _next_index(tried: list[_Point], middle: float, slope: float) -> int | None:
  """Where a line through two points reaches the middle of the aim; None where nothing is left.

  Between the innermost points on either side of the aim, or else beyond the last one. The line of a
  single point has the typical slope.
  """
  below = max((point for point in tried if point.value < middle), default=None)
  above = min((point for point in tried if point.value >= middle), default=None)
  if below and above:
    # Each time in a row that one side was hit, the other side's distance is halved, or else a bent
    # curve or a jump would be approached from that side in ever smaller steps (Illinois method).
    rise, fall = middle - below.value, above.value - middle
    sides = [point.value < middle for point in reversed(tried)]
    in_a_row = next(i for i, side in enumerate(sides) if side != sides[0])
    if sides[0]:
      fall /= 2 ** (in_a_row - 1)
    else:
      rise /= 2 ** (in_a_row - 1)
    share = rise / (rise + fall)
    index = round(below.index + share * (above.index - below.index))
    index = min(max(index, below.index + 1), above.index - 1)
    return index if index > below.index else None
  last = tried[-1]
  if len(tried) > 1:
    secant = (last.value - tried[-2].value) / (last.index - tried[-2].index)
    slope = min(max(secant, slope / 4), slope * 4)  # noise may turn it, or make it steep
  # Twice as far each time, so that the last quality is reached in time.
  step = max(abs(middle - last.value) / slope, 2 ** (len(tried) - 1))
  index = round(last.index + math.copysign(step, middle - last.value))
  index = min(max(index, math.floor(MIN_QUALITY / QUALITY_STEP)), round(MAX_QUALITY / QUALITY_STEP))
  return index if index != last.index else None
