"""The report of a run: report.md, with tables and plots.

`rows` are the entries of results.json, one for each encoded file:
  image, method, setting, num_gaussians, num_clusters, fit_steps, finetune_steps, bytes, sections
  {name: bytes}, bpp, psnr, ssim, ms_ssim, encode_seconds, decode_seconds, device.
`baseline_rows` are those of `baselines.points` on the same images. Curves and their points are
those of `curves`: two points are compared by their means over the same images only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cgvq_jax.evaluate import curves, plots
from cgvq_jax.evaluate.curves import BASELINE_POINT, POINT, Rows, images_of, mean
from cgvq_jax.evaluate.tables import table
from cgvq_jax.io import files

PLOTS = {'psnr': 'rate_distortion.png', 'ms_ssim': 'rate_ms_ssim.png'}  # by quality

_PSNR_LEVELS = (28.0, 31.0, 34.0, 37.0)  # dB, of the table of rates
_QUALITY = ('bpp', 'PSNR', 'SSIM', 'MS-SSIM')
_SECONDS = ('encode s', 'decode s')


class Comparison(NamedTuple):
  """What the results of a run are compared with, and over which images."""

  reference_method: str | None = None  # BD-rates are taken against it and the baseline codecs
  tuned_on: tuple[str, ...] = ()  # images that the codec was tuned on: they get means of their own
  # A baseline codec's rates, bpp, within which BD-rates against it are taken.
  baseline_rates: tuple[float, float] = (0.2, 1.5)


DEFAULT_COMPARISON = Comparison()


def write(
  workdir: str | os.PathLike[str],
  rows: Rows,
  baseline_rows: Rows,
  comparison: Comparison = DEFAULT_COMPARISON,
) -> None:
  """Writes report.md and the PLOTS into a folder, which is made if it is missing."""
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  text = markdown(rows, baseline_rows, comparison)
  for quality, name in PLOTS.items():
    plots.save_figure(plots.rate_distortion(rows, baseline_rows, quality), workdir / name)
    text += f'\n![rate and {quality}]({name})\n'
  files.write_atomically(workdir / 'report.md', text.encode())


def markdown(rows: Rows, baseline_rows: Rows, comparison: Comparison = DEFAULT_COMPARISON) -> str:
  """The tables of a run: means, rates at equal PSNR, BD-rates, bytes by section, each image, and
  the baseline codecs.

  Raises:
    ValueError: there are no rows, or two rows of one image at the same point.
  """
  curves.check(rows, baseline_rows)
  devices = ', '.join(sorted({row['device'] for row in rows}))
  count = len(images_of(rows))
  low, high = comparison.baseline_rates
  parts = [
    '# Results',
    f'{count} image{"s" * (count > 1)}, encoded on {devices}. A rate is 8 x bytes of the file / '
    'pixels; PSNR (dB), SSIM and MS-SSIM are of decoded 8-bit pixels; steps are fit + fine-tune.',
    '## Means over images',
    _means_table(rows, baseline_rows),
    '## Rates at equal PSNR, bpp of the mean curves',
    _rates_table(rows, baseline_rows, comparison),
    '## BD-rate: change of rate at equal PSNR, negative is better',
    f'Against the baseline codecs where their rate is {low:g} to {high:g} bpp. First the BD-rate of'
    ' the mean curves, then the mean of the BD-rates of each image.',
    _bd_rate_table(rows, baseline_rows, comparison, 'psnr'),
    '## BD-rate at equal MS-SSIM',
    'The same, with curves of -10 log10(1 - MS-SSIM).',
    _bd_rate_table(rows, baseline_rows, comparison, 'ms_ssim'),
    '## BD-rate of each image at equal PSNR',
    _bd_rates_of_images(rows, baseline_rows, comparison),
    '## Mean bytes by section of the file',
    _sections_table(rows),
    '## Each image',
    _image_table(rows),
  ]
  if baseline_rows:
    parts += ['## Baseline codecs, means over images', _baseline_table(baseline_rows)]
  return '\n\n'.join(parts) + '\n'


def _means_table(rows: Rows, baseline_rows: Rows) -> str:
  lines = []
  for members in curves.group(rows, POINT).values():
    first = members[0]
    lines.append(
      [
        first['method'],
        first['setting'],
        f'{mean(members, "num_gaussians"):.0f}',
        first['num_clusters'],
        f'{first["fit_steps"]}+{first["finetune_steps"]}',
        len(members),
        *_quality_cells(members),
        f'{mean(members, "bytes"):.0f}',
        *_seconds_cells(members),
        _jpeg_rate(members, baseline_rows),
      ]
    )
  columns = ('method', 'setting', 'N', 'K', 'steps', 'images', *_QUALITY, 'bytes', *_SECONDS)
  return table([*columns, 'JPEG bpp at this PSNR'], lines)


def _quality_cells(rows: Rows) -> list[str]:
  digits = {'bpp': 4, 'psnr': 2, 'ssim': 4, 'ms_ssim': 4}
  return [f'{mean(rows, key):.{count}f}' for key, count in digits.items()]


def _seconds_cells(rows: Rows) -> list[str]:
  return [f'{mean(rows, key):.3g}' for key in ('encode_seconds', 'decode_seconds')]


def _jpeg_rate(point: Rows, baseline_rows: Rows) -> str:
  """JPEG's rate at a point's PSNR over the same images, or the reason why there is none."""
  jpeg = [row for row in baseline_rows if row['method'] == 'JPEG']
  if not images_of(point) <= images_of(jpeg):
    return 'no JPEG of these images'
  rates, psnrs = curves.mean_curve(jpeg, BASELINE_POINT, images_of(point))
  psnr = mean(point, 'psnr')
  if len(psnrs) > 1 and not min(psnrs) <= psnr <= max(psnrs):
    return f'{"below" if psnr < min(psnrs) else "above"} the range of JPEG'
  try:
    return f'{curves.rate_at(psnr, rates, psnrs):.4f}'
  except ValueError as error:
    return str(error)


def _sections_table(rows: Rows) -> str:
  names = list(dict.fromkeys(name for row in rows for name in row['sections']))
  lines = []
  for (method, clusters, *_, setting), members in curves.group(rows, POINT).items():
    sizes = [np.mean([row['sections'].get(name, 0) for row in members]) for name in names]
    cells = [f'{size:.0f}' for size in (*sizes, mean(members, 'bytes'))]
    lines.append([method, setting, clusters, *cells])
  return table(['method', 'setting', 'K', *names, 'whole file'], lines)


def _parts(rows: Rows, comparison: Comparison) -> dict[str, set[str]]:
  """All images; then those that the codec was tuned on and the others, if there are both."""
  every = images_of(rows)
  tuned = every & set(comparison.tuned_on)
  parts = {f'all {len(every)}': every}
  if tuned and tuned != every:
    others = every - tuned
    parts |= {f'{len(tuned)} tuned on': tuned, f'{len(others)} others': others}
  return parts


def _rates_table(rows: Rows, baseline_rows: Rows, comparison: Comparison) -> str:
  lines = []
  named = [(name, curve, POINT) for name, curve in curves.by_curve(rows).items()]
  named += [(name, curve, BASELINE_POINT) for name, curve in curves.by_codec(baseline_rows).items()]
  for part, images in _parts(rows, comparison).items():
    for name, curve, point in named:
      if images <= images_of(curve):
        means = curves.mean_curve(curve, point, images)
        lines.append([name, part, *(_rate_cell(level, *means) for level in _PSNR_LEVELS)])
  return table(['curve', 'images', *(f'{level:g} dB' for level in _PSNR_LEVELS)], lines)


def _rate_cell(psnr: float, rates: Sequence[float], psnrs: Sequence[float]) -> str:
  try:
    return f'{curves.rate_at(psnr, rates, psnrs):.4f}'
  except ValueError:  # not measured there
    return '-'


class _Reference(NamedTuple):
  """A curve that others are compared with."""

  rows: Rows
  point: Sequence[str]  # the keys of its points
  rates: tuple[float, float]  # bpp, within which it is compared


def _references(rows: Rows, baseline_rows: Rows, comparison: Comparison) -> dict[str, _Reference]:
  """The first curve of the reference method, if there is one, and the baseline codecs."""
  references = {}
  for name, curve in curves.by_curve(rows).items():
    if curve[0]['method'] == comparison.reference_method:
      references[name] = _Reference(curve, POINT, (0.0, math.inf))
      break
  for name, curve in curves.by_codec(baseline_rows).items():
    references[name] = _Reference(curve, BASELINE_POINT, comparison.baseline_rates)
  return references


def _bd_rate_table(rows: Rows, baseline_rows: Rows, comparison: Comparison, quality: str) -> str:
  references, lines = _references(rows, baseline_rows, comparison), []
  for part, images in _parts(rows, comparison).items():
    for name, curve in curves.by_curve(rows).items():
      chosen, cells = [row for row in curve if row['image'] in images], []
      for reference in references.values():
        both = [_bd_rate_cell(chosen, reference, quality, each) for each in (False, True)]
        cells.append(both[0] if both[0].startswith('none') else ', '.join(both))
      lines.append([name, part, *cells])
  return table(['curve', 'images', *(f'against {name}' for name in references)], lines)


def _bd_rates_of_images(rows: Rows, baseline_rows: Rows, comparison: Comparison) -> str:
  references, lines = _references(rows, baseline_rows, comparison), []
  for image in sorted(images_of(rows)):
    for name, curve in curves.by_curve(rows).items():
      if chosen := [row for row in curve if row['image'] == image]:
        cells = [_bd_rate_cell(chosen, reference, 'psnr') for reference in references.values()]
        lines.append([image, name, *cells])
  return table(['image', 'curve', *(f'against {name}' for name in references)], lines)


def _bd_rate_cell(curve: Rows, reference: _Reference, quality: str, each: bool = False) -> str:
  """The BD-rate over the images that both curves have, or the reason why there is none.

  It is that of the mean curves; with `each`, the mean of the BD-rates of the single images, of
  which those that have none are left out and counted.
  """
  images = images_of(curve) & images_of(reference.rows)
  if not images:
    return 'none: no image in common'
  groups = [{image} for image in sorted(images)] if each else [images]
  changes, reason = [], ''
  for members in groups:
    a = curves.mean_curve(curve, POINT, members, quality)
    b = curves.mean_curve(reference.rows, reference.point, members, quality)
    if min(len(set(qualities)) for _, qualities in (a, b)) < 2:
      reason = 'none: one point is no curve'
      continue
    try:
      changes.append(curves.bd_rate(*a, *b, reference.rates))
    except ValueError as error:
      reason = f'none: {error}'
  if not changes:
    return reason
  some = f' ({len(changes)} of {len(groups)})' if reason else ''
  return f'{np.mean(changes):+.1f} %{some}'


def _baseline_table(baseline_rows: Rows) -> str:
  lines = [
    [method, quality, len(members), *_quality_cells(members), *_seconds_cells(members)]
    for (method, quality), members in curves.group(baseline_rows, BASELINE_POINT).items()
  ]
  return table(['codec', 'quality', 'images', *_QUALITY, *_SECONDS], lines)


def _image_table(rows: Rows) -> str:
  keys = ('image', 'method', 'setting', 'num_gaussians', 'num_clusters', 'bytes')
  lines = [
    [*(row[key] for key in keys), *_quality_cells([row]), *_seconds_cells([row])]
    for row in sorted(rows, key=lambda row: row['image'])
  ]
  return table(['image', 'method', 'setting', 'N', 'K', 'bytes', *_QUALITY, *_SECONDS], lines)
