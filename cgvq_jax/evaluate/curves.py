"""Rate-distortion curves of measured rows: means over images, rates at equal quality, BD-rates.

`rows` are a run's, one for each file, and `baseline_rows` those of `baselines.points`; `report`
lists their keys. A curve is one method at one number of clusters and steps, over its settings:
numbers of Gaussians, or qualities. A point of it is the mean rate and the mean quality over images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

Rows = Sequence[Mapping[str, Any]]

# The keys whose values name a curve, a point of a curve, and a point of a baseline codec's curve.
_CURVE = ('method', 'num_clusters', 'fit_steps', 'finetune_steps')
POINT = (*_CURVE, 'setting')
BASELINE_POINT = ('method', 'quality')


def check(rows: Rows, baseline_rows: Rows) -> None:
  """Raises ValueError where there are no rows, or several of one image at one point."""
  if not rows:
    raise ValueError('rows: wanted one or more, got none')
  groups = group(rows, POINT) | group(baseline_rows, BASELINE_POINT)
  for point, members in groups.items():
    if len(images_of(members)) < len(members):
      raise ValueError(f'rows: wanted one of each image at a point, got several at {point}')


def images_of(rows: Rows) -> set[str]:
  """The names of the images that the rows are about."""
  return {row['image'] for row in rows}


def group(rows: Rows, keys: Sequence[str]) -> dict[tuple, list[Mapping[str, Any]]]:
  """The rows by their values of these keys, in the order of the first row of each group."""
  groups: dict[tuple, list[Mapping[str, Any]]] = {}
  for row in rows:
    groups.setdefault(tuple(row[key] for key in keys), []).append(row)
  return groups


def by_curve(rows: Rows) -> dict[str, Rows]:
  """The rows of each curve under its method's name.

  K and the steps are part of the name where curves of one method differ in them.
  """
  groups = group(rows, _CURVE)
  named = {}
  for (method, clusters, *steps), members in groups.items():
    same_method = [key for key in groups if key[0] == method]
    name = method
    if len({key[1] for key in same_method}) > 1:
      name += f' K={clusters}'
    if len({key[2:] for key in same_method}) > 1:
      name += f' {steps[0]}+{steps[1]} steps'
    named[name] = members
  return named


def by_codec(baseline_rows: Rows) -> dict[str, Rows]:
  """The rows of each baseline codec."""
  return {name: members for (name,), members in group(baseline_rows, ('method',)).items()}


def mean(rows: Rows, key: str) -> float:
  """The mean of one measure over the rows."""
  return float(np.mean([row[key] for row in rows]))


def _ms_ssim_in_decibels(rows: Rows) -> float:
  loss = 1 - mean(rows, 'ms_ssim')
  return -10 * math.log10(loss) if loss > 0 else math.inf


# The quality of a point in dB, from its rows.
QUALITIES: dict[str, Callable[[Rows], float]] = {
  'psnr': lambda rows: mean(rows, 'psnr'),
  'ms_ssim': _ms_ssim_in_decibels,
}


def mean_curve(
  rows: Rows, point: Sequence[str], images: set[str], quality: str = 'psnr'
) -> tuple[list[float], list[float]]:
  """Mean rates (bpp) and qualities (dB) over some images, in the order of the rates.

  `point` is POINT or BASELINE_POINT. A point that lacks one of the images is left out, for its mean
  compares with no other; so is one of infinite quality.
  """
  points = group([row for row in rows if row['image'] in images], point).values()
  whole = [members for members in points if images_of(members) == images]
  pairs = [(mean(members, 'bpp'), QUALITIES[quality](members)) for members in whole]
  pairs = sorted(pair for pair in pairs if np.isfinite(pair[1]))
  return [rate for rate, _ in pairs], [value for _, value in pairs]


def bd_rate(
  rate_a: Sequence[float],
  quality_a: Sequence[float],
  rate_b: Sequence[float],
  quality_b: Sequence[float],
  rate_range: tuple[float, float] = (0.0, math.inf),
) -> float:
  """Mean change of rate from codec b to codec a at equal quality, in percent; negative: a saves.

  100 (exp(mean(ln rate_a - ln rate_b)) - 1), the mean over the range of quality that both curves
  cover and where b's rate is within `rate_range` (Bjontegaard, VCEG-M33). ln rate is a monotone
  piecewise cubic function of quality instead of one cubic, which overshoots between points that lie
  far apart. Qualities are in dB: PSNR, or -10 log10(1 - MS-SSIM).

  Raises:
    ValueError: a curve has fewer than 2 points of different quality, a rate that is not positive or
      a value that is not finite, or the curves share no range of quality.
  """
  log_rate_a, log_rate_b = _log_rate('a', rate_a, quality_a), _log_rate('b', rate_b, quality_b)
  low = max(log_rate_a.x[0], log_rate_b.x[0])
  high = min(log_rate_a.x[-1], log_rate_b.x[-1])
  at_lowest, at_highest = (_quality_at(log_rate_b, rate) for rate in rate_range)
  low, high = max(low, at_lowest), min(high, at_highest)
  if low >= high:
    ranges = ' and '.join(f'{f.x[0]:.2f}..{f.x[-1]:.2f}' for f in (log_rate_a, log_rate_b))
    raise ValueError(f'wanted curves that overlap in quality, got {ranges} dB')
  difference = log_rate_a.integrate(low, high) - log_rate_b.integrate(low, high)
  return 100 * math.expm1(difference / (high - low))


def rate_at(psnr: float, rates: Sequence[float], psnrs: Sequence[float]) -> float:
  """The rate of a measured curve at one PSNR in dB, interpolated as in `bd_rate`.

  Raises:
    ValueError: the PSNR is outside the measured range, or as `bd_rate`.
  """
  log_rate = _log_rate('measured', rates, psnrs)
  if not log_rate.x[0] <= psnr <= log_rate.x[-1]:
    raise ValueError(
      f'wanted {log_rate.x[0]:.2f}..{log_rate.x[-1]:.2f} dB as measured, got {psnr:.2f} dB'
    )
  return math.exp(log_rate(psnr))


def _quality_at(log_rate: PchipInterpolator, rate: float) -> float:
  """The lowest quality at which a curve reaches a rate.

  -inf where the whole curve costs more, inf where it costs less.
  """
  if rate == math.inf:
    return math.inf
  above = log_rate(log_rate.x) - (math.log(rate) if rate > 0 else -math.inf)
  if above.min() >= 0:
    return -math.inf
  places = PchipInterpolator(log_rate.x, above).roots(extrapolate=False)
  return float(places[0]) if places.size else math.inf


def _log_rate(name: str, rates: Sequence[float], qualities: Sequence[float]) -> PchipInterpolator:
  """ln rate as a function of quality; of points of one quality the cheapest one counts."""
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
