"""Rate-distortion curves: rates at equal quality, BD-rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator


def bd_rate(
  rate_a: Sequence[float],
  quality_a: Sequence[float],
  rate_b: Sequence[float],
  quality_b: Sequence[float],
  between: tuple[float, float] = (0.0, math.inf),
) -> float:
  """Mean change of rate from codec b to codec a at equal quality, in percent; negative: a saves.

  100 (exp(mean(ln rate_a - ln rate_b)) - 1), the mean over the range of quality that both curves
  cover and where b's rate is within `between` (Bjontegaard, VCEG-M33), with ln rate as a monotone
  piecewise cubic function of quality instead of one cubic, which overshoots between points that lie
  far apart. Qualities are in dB: PSNR, or -10 log10(1 - MS-SSIM).

  Raises:
    ValueError: a curve has fewer than 2 points of different quality, a rate that is not positive or
      a value that is not finite, or the curves share no range of quality.
  """
  log_rate_a, log_rate_b = _log_rate('a', rate_a, quality_a), _log_rate('b', rate_b, quality_b)
  low = max(log_rate_a.x[0], log_rate_b.x[0])
  high = min(log_rate_a.x[-1], log_rate_b.x[-1])
  least, most = (_quality_at(log_rate_b, rate) for rate in between)
  low, high = max(low, least), min(high, most)
  if low >= high:
    ranges = ' and '.join(f'{f.x[0]:.2f}..{f.x[-1]:.2f}' for f in (log_rate_a, log_rate_b))
    raise ValueError(f'wanted curves that overlap in quality, got {ranges} dB')
  difference = log_rate_a.integrate(low, high) - log_rate_b.integrate(low, high)
  return 100 * math.expm1(difference / (high - low))


def rate_at(psnr_wanted: float, rates: Sequence[float], psnrs: Sequence[float]) -> float:
  """The rate of a measured curve at one PSNR, by the interpolation of `bd_rate`.

  Raises:
    ValueError: the PSNR is outside the measured range, or as `bd_rate`.
  """
  log_rate = _log_rate('measured', rates, psnrs)
  if not log_rate.x[0] <= psnr_wanted <= log_rate.x[-1]:
    raise ValueError(
      f'wanted {log_rate.x[0]:.2f}..{log_rate.x[-1]:.2f} dB as measured, got {psnr_wanted:.2f} dB'
    )
  return math.exp(log_rate(psnr_wanted))


def _quality_at(log_rate: PchipInterpolator, rate: float) -> float:
  """Where a curve has a rate, the first place; infinite where it is all above or all below."""
  if rate == math.inf:
    return math.inf
  above = log_rate(log_rate.x) - (math.log(rate) if rate > 0 else -math.inf)
  if above.min() >= 0:
    return -math.inf
  places = PchipInterpolator(log_rate.x, above).roots(extrapolate=False)
  return float(places[0]) if places.size else math.inf


def _log_rate(name: str, rates: Sequence[float], qualities: Sequence[float]) -> PchipInterpolator:
  """ln rate over quality; of points with the same quality the cheapest counts."""
  rate, level = np.asarray(rates, np.float64), np.asarray(qualities, np.float64)
  if rate.shape != level.shape or rate.ndim != 1:
    raise ValueError(f'curve {name}: wanted one quality a rate, got {rate.shape}, {level.shape}')
  if not (np.isfinite(rate) & np.isfinite(level) & (rate > 0)).all():
    raise ValueError(
      f'curve {name}: wanted finite qualities and positive rates, got {rate}, {level}'
    )
  order = np.lexsort((rate, level))
  level, first = np.unique(level[order], return_index=True)
  if len(level) < 2:
    raise ValueError(
      f'curve {name}: wanted 2 points of different quality or more, got {len(level)}'
    )
  return PchipInterpolator(level, np.log(rate[order][first]))
