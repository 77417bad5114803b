"""What a run achieved: tables and rate-distortion plots.

`rows` are the entries of results.json, one for each encoded file:
  image, method, setting, num_gaussians, num_clusters, fit_steps, finetune_steps, bytes, sections
  {name: bytes}, bpp, psnr, ssim, ms_ssim, encode_seconds, decode_seconds, device.
`classic_rows` are those of `classic.points` on the same images.

A curve is one method at one number of clusters and steps, over its settings: numbers of Gaussians,
or qualities. A point of it is the mean rate and the mean PSNR over images, and never made of other
images than the point it is compared with.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cgvq_jax.evaluate import curves
from cgvq_jax.io import files

Rows = Sequence[Mapping[str, Any]]

PLOTS = ('rate_distortion.png', 'rate_ms_ssim.png')

_CURVE = ('method', 'num_clusters', 'fit_steps', 'finetune_steps')
_POINT = (*_CURVE, 'setting')
_CLASSIC_POINT = ('method', 'quality')
_LEVELS = (28.0, 31.0, 34.0, 37.0)  # dB at which rates are told
_QUALITY = ('bpp', 'PSNR', 'SSIM', 'MS-SSIM')
_SECONDS = ('encode s', 'decode s')
_ACCOUNTED = ('GaussianImage', 'CGVQ')  # published rates that count parameters: no file existed
_RATE_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)  # bpp


class Judged(NamedTuple):
  """How results are compared."""

  baseline: str | None = None  # the method that the others are held against beside the classic ones
  tuned_on: tuple[str, ...] = ()  # images that the codec was tuned on: told apart from the others
  # bpp of a classic codec within which BD-rates against it are taken
  between: tuple[float, float] = (0.2, 1.5)


ALONE = Judged()


def write(
  workdir: str | os.PathLike[str], rows: Rows, classic_rows: Rows, judged: Judged = ALONE
) -> None:
  """Writes report.md and the PLOTS into a folder, which is made if it is missing."""
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  text = markdown(rows, classic_rows, judged)
  for quality, name in zip(_AXES, PLOTS, strict=True):
    plot(rows, classic_rows, workdir / name, quality)
    text += f'\n![rate and {quality}]({name})\n'
  files.write_atomically(workdir / 'report.md', text.encode())


def write_json(path: str | os.PathLike[str], rows: Rows) -> None:
  """Writes rows as JSON; the file appears whole or not at all."""
  files.write_atomically(path, (json.dumps([*rows], indent=1) + '\n').encode())


def markdown(rows: Rows, classic_rows: Rows, judged: Judged = ALONE) -> str:
  """The tables of a run: means, rates at equal PSNR, BD-rates, bytes by section, classic codecs,
  each image.

  Raises:
    ValueError: there are no rows, or two rows of one image at the same point.
  """
  _check(rows, classic_rows)
  devices = ', '.join(sorted({row['device'] for row in rows}))
  count = len(_images(rows))
  low, high = judged.between
  parts = [
    '# Results',
    f'{count} image{"s" * (count > 1)}, encoded on {devices}. A rate is 8 x bytes of the file / '
    'pixels; PSNR (dB), SSIM and MS-SSIM are of decoded 8-bit pixels; steps are fit + fine-tune.',
    '## Means over images',
    _means_table(rows, classic_rows),
    '## Rates at equal PSNR, bpp of the mean curves',
    _levels_table(rows, classic_rows, judged),
    '## BD-rate: change of rate at equal PSNR, negative is better',
    f'Against the classic codecs where these take {low:g} to {high:g} bpp. Of the mean curves, and'
    " as the mean of the images' own.",
    _bd_rate_table(rows, classic_rows, judged, 'psnr'),
    '## BD-rate at equal MS-SSIM',
    'The same, with curves of -10 log10(1 - MS-SSIM).',
    _bd_rate_table(rows, classic_rows, judged, 'ms_ssim'),
    '## BD-rate of each image at equal PSNR',
    _bd_rates_of_images(rows, classic_rows, judged),
    '## Mean bytes by section of the file',
    _sections_table(rows),
    '## Each image',
    _image_table(rows),
  ]
  if classic_rows:
    parts += ['## Classic codecs, means over images', _classic_table(classic_rows)]
  return '\n\n'.join(parts) + '\n'


def plot(
  rows: Rows, classic_rows: Rows, path: str | os.PathLike[str], quality: str = 'psnr'
) -> None:
  """Rate-distortion plot: these rows, the classic codecs on the same images, published curves.

  `quality` is psnr, or ms_ssim, which is drawn as -10 log10(1 - MS-SSIM) and has nothing published
  beside it. A point that lacks one of its curve's images is left out.

  Raises:
    ValueError: as `markdown`.
  """
  _check(rows, classic_rows)
  figure = Figure(figsize=(11, 6.5))
  axes = figure.add_axes((0.06, 0.08, 0.64, 0.89))
  ours, classic = [], []
  for index, (name, curve) in enumerate(_curves(rows).items()):
    points = _mean_curve(curve, _POINT, _images(curve), quality)
    ours += axes.plot(points[0], points[1], f'C{index % 10}-o', ms=6, lw=2.2, label=name, zorder=5)
  for index, (codec, curve) in enumerate(_codecs(classic_rows).items()):
    points = _mean_curve(curve, _CLASSIC_POINT, _images(rows) & _images(curve), quality)
    if points[0]:
      style: dict[str, Any] = {'color': f'{0.65 * index / 4:g}', 'marker': 'sDv^'[index % 4]}
      classic += axes.plot(*points, ms=3.5, lw=1.6, label=codec, **style)
  _frame(axes, [*ours, *classic], quality)
  for line in (*ours, *classic):
    if len(line.get_xydata()):
      place = {'xytext': (7, -3), 'textcoords': 'offset points', 'annotation_clip': True}
      axes.annotate(line.get_label(), line.get_xydata()[-1], color=line.get_color(), **place)
  coded, accounted = _draw_published(axes) if quality == 'psnr' else ([], [])
  count = len(_images(rows))
  groups = {
    f'this run, {count} image{"s" * (count > 1)}': ours,
    'measured on the same images': classic,
    'published, mean over Kodak': coded,
    'published, accounted: no file existed': accounted,
  }
  _legend(figure, groups)
  save_figure(figure, path)


def _check(rows: Rows, classic_rows: Rows) -> None:
  if not rows:
    raise ValueError('rows: wanted one or more, got none')
  groups = _grouped(rows, _POINT) | _grouped(classic_rows, _CLASSIC_POINT)
  for point, members in groups.items():
    if len(_images(members)) < len(members):
      raise ValueError(f'rows: wanted one of each image at a point, got several at {point}')


def _images(rows: Rows) -> set[str]:
  return {row['image'] for row in rows}


def _grouped(rows: Rows, keys: Sequence[str]) -> dict[tuple, list[Mapping[str, Any]]]:
  groups: dict[tuple, list[Mapping[str, Any]]] = {}
  for row in rows:
    groups.setdefault(tuple(row[key] for key in keys), []).append(row)
  return groups


def _curves(rows: Rows) -> dict[str, Rows]:
  """Rows by curve, each under the shortest name that tells it from the others."""
  groups = _grouped(rows, _CURVE)
  named = {}
  for (method, clusters, *steps), members in groups.items():
    others = [key for key in groups if key[0] == method]
    name = method
    if len({key[1] for key in others}) > 1:
      name += f' K={clusters}'
    if len({key[2:] for key in others}) > 1:
      name += f' {steps[0]}+{steps[1]} steps'
    named[name] = members
  return named


def _codecs(classic_rows: Rows) -> dict[str, Rows]:
  groups = _grouped(classic_rows, ('method',))
  return {name: members for (name,), members in groups.items()}


def _mean(rows: Rows, key: str) -> float:
  return float(np.mean([row[key] for row in rows]))


def _mean_curve(
  rows: Rows, keys: Sequence[str], among: set[str], quality: str = 'psnr'
) -> tuple[list[float], list[float]]:
  """Rates and qualities of the points that have all these images, in order of rate."""
  points = _grouped([row for row in rows if row['image'] in among], keys).values()
  pairs = [(_mean(p, 'bpp'), _AXES[quality].of(p)) for p in points if _images(p) == among]
  pairs = sorted(pair for pair in pairs if np.isfinite(pair[1]))
  return [rate for rate, _ in pairs], [value for _, value in pairs]


def _decibels_of_ms_ssim(rows: Rows) -> float:
  lost = 1 - _mean(rows, 'ms_ssim')
  return -10 * math.log10(lost) if lost > 0 else math.inf


class _Axis(NamedTuple):
  """A quality: of a point, its name, and the range that is always shown."""

  of: Callable[[Rows], float]
  label: str
  usual: tuple[float, float]


_AXES = {
  'psnr': _Axis(lambda rows: _mean(rows, 'psnr'), 'PSNR, dB', (24, 40)),
  'ms_ssim': _Axis(_decibels_of_ms_ssim, '-10 log10(1 - MS-SSIM), dB', (8, 22)),
}


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  rows = [header, ['---'] * len(header), *lines]
  return '\n'.join('| ' + ' | '.join(c.replace('|', '\\|') for c in row) + ' |' for row in rows)


def _means_table(rows: Rows, classic_rows: Rows) -> str:
  lines = []
  for members in _grouped(rows, _POINT).values():
    first = members[0]
    lines.append(
      [
        first['method'],
        first['setting'],
        f'{_mean(members, "num_gaussians"):.0f}',
        str(first['num_clusters']),
        f'{first["fit_steps"]}+{first["finetune_steps"]}',
        str(len(members)),
        *_quality_cells(members),
        f'{_mean(members, "bytes"):.0f}',
        f'{_mean(members, "encode_seconds"):.3g}',
        f'{_mean(members, "decode_seconds"):.3g}',
        _jpeg_rate(members, classic_rows),
      ]
    )
  header = ('method', 'setting', 'N', 'K', 'steps', 'images', *_QUALITY, 'bytes', *_SECONDS)
  return _table([*header, 'JPEG bpp at this PSNR'], lines)


def _quality_cells(rows: Rows) -> list[str]:
  return [
    f'{_mean(rows, key):.{digits}f}'
    for key, digits in (('bpp', 4), ('psnr', 2), ('ssim', 4), ('ms_ssim', 4))
  ]


def _jpeg_rate(point: Rows, classic_rows: Rows) -> str:
  jpeg = [row for row in classic_rows if row['method'] == 'JPEG']
  if not _images(point) <= _images(jpeg):
    return 'no JPEG of these images'
  rates, psnrs = _mean_curve(jpeg, _CLASSIC_POINT, _images(point))
  wanted = _mean(point, 'psnr')
  if len(psnrs) > 1 and not min(psnrs) <= wanted <= max(psnrs):
    return f'{"below" if wanted < min(psnrs) else "above"} the range of JPEG'
  try:
    return f'{curves.rate_at(wanted, rates, psnrs):.4f}'
  except ValueError as error:
    return str(error)


def _sections_table(rows: Rows) -> str:
  names = list(dict.fromkeys(name for row in rows for name in row['sections']))
  lines = []
  for (method, clusters, *_, setting), members in _grouped(rows, _POINT).items():
    sizes = [np.mean([row['sections'].get(name, 0) for row in members]) for name in names]
    cells = [f'{size:.0f}' for size in (*sizes, _mean(members, 'bytes'))]
    lines.append([method, setting, str(clusters), *cells])
  return _table(['method', 'setting', 'K', *names, 'whole file'], lines)


def _parts(rows: Rows, judged: Judged) -> dict[str, set[str]]:
  """The images, and apart those that the codec was tuned on and those that it was not."""
  every = _images(rows)
  tuned = every & set(judged.tuned_on)
  parts = {f'all {len(every)}': every}
  if tuned and tuned != every:
    others = every - tuned
    parts |= {f'{len(tuned)} tuned on': tuned, f'{len(others)} others': others}
  return parts


def _levels_table(rows: Rows, classic_rows: Rows, judged: Judged) -> str:
  lines = []
  named = [(name, curve, _POINT) for name, curve in _curves(rows).items()]
  named += [(name, curve, _CLASSIC_POINT) for name, curve in _codecs(classic_rows).items()]
  for part, among in _parts(rows, judged).items():
    for name, curve, keys in named:
      if among <= _images(curve):
        points = _mean_curve(curve, keys, among)
        lines.append([name, part, *(_rate_at(level, *points) for level in _LEVELS)])
  return _table(('curve', 'images', *(f'{level:g} dB' for level in _LEVELS)), lines)


def _rate_at(level: float, rates: Sequence[float], psnrs: Sequence[float]) -> str:
  try:
    return f'{curves.rate_at(level, rates, psnrs):.4f}'
  except ValueError:  # not measured there
    return '-'


class _Anchor(NamedTuple):
  """A curve that others are held against."""

  rows: Rows
  keys: Sequence[str]  # that make a point of it
  between: tuple[float, float]  # of its rates, bpp


def _anchors(rows: Rows, classic_rows: Rows, judged: Judged) -> dict[str, _Anchor]:
  """The baseline, if there is one, and the classic codecs."""
  base = [(name, c) for name, c in _curves(rows).items() if c[0]['method'] == judged.baseline][:1]
  return {name: _Anchor(curve, _POINT, (0.0, math.inf)) for name, curve in base} | {
    name: _Anchor(curve, _CLASSIC_POINT, judged.between)
    for name, curve in _codecs(classic_rows).items()
  }


def _bd_rate_table(rows: Rows, classic_rows: Rows, judged: Judged, quality: str) -> str:
  anchors, lines = _anchors(rows, classic_rows, judged), []
  for part, among in _parts(rows, judged).items():
    for name, curve in _curves(rows).items():
      ours, cells = [row for row in curve if row['image'] in among], []
      for anchor in anchors.values():
        both = [_bd_rate(ours, anchor, quality, each) for each in (False, True)]
        cells.append(both[0] if both[0].startswith('none') else ', '.join(both))
      lines.append([name, part, *cells])
  return _table(('curve', 'images', *(f'against {name}' for name in anchors)), lines)


def _bd_rates_of_images(rows: Rows, classic_rows: Rows, judged: Judged) -> str:
  anchors, lines = _anchors(rows, classic_rows, judged), []
  for image in sorted(_images(rows)):
    for name, curve in _curves(rows).items():
      if own := [row for row in curve if row['image'] == image]:
        lines.append([image, name, *(_bd_rate(own, anchor, 'psnr') for anchor in anchors.values())])
  return _table(('image', 'curve', *(f'against {name}' for name in anchors)), lines)


def _bd_rate(curve: Rows, anchor: _Anchor, quality: str, each: bool = False) -> str:
  """The BD-rate over the images that both have, or the reason why there is none.

  Of the mean curves, or the mean of each image's: of those that have one, and how many these are.
  """
  among = _images(curve) & _images(anchor.rows)
  if not among:
    return 'none: no image in common'
  groups = [{image} for image in sorted(among)] if each else [among]
  changes, reason = [], ''
  for group in groups:
    ours = _mean_curve(curve, _POINT, group, quality)
    theirs = _mean_curve(anchor.rows, anchor.keys, group, quality)
    if min(len(set(values)) for _, values in (ours, theirs)) < 2:
      reason = 'none: one point is no curve'
      continue
    try:
      changes.append(curves.bd_rate(*ours, *theirs, anchor.between))
    except ValueError as error:
      reason = f'none: {error}'
  if not changes:
    return reason
  some = f' ({len(changes)} of {len(groups)})' if reason else ''
  return f'{np.mean(changes):+.1f} %{some}'


def _classic_table(classic_rows: Rows) -> str:
  lines = [
    [str(method), str(quality), str(len(members)), *_quality_cells(members)]
    + [f'{_mean(members, f"{name}_seconds"):.3g}' for name in ('encode', 'decode')]
    for (method, quality), members in _grouped(classic_rows, _CLASSIC_POINT).items()
  ]
  return _table(('codec', 'quality', 'images', *_QUALITY, *_SECONDS), lines)


def _image_table(rows: Rows) -> str:
  lines = []
  for row in sorted(rows, key=lambda row: row['image']):
    numbers = (row['setting'], row['num_gaussians'], row['num_clusters'], row['bytes'])
    seconds = (row['encode_seconds'], row['decode_seconds'])
    lines.append(
      [row['image'], row['method'], *map(str, numbers), *_quality_cells([row])]
      + [f'{value:.3g}' for value in seconds]
    )
  return _table(('image', 'method', 'setting', 'N', 'K', 'bytes', *_QUALITY, *_SECONDS), lines)


def _draw_published(axes: Axes) -> tuple[list[Line2D], list[Line2D]]:
  """Thin lines of the published means over Kodak: those of real files, and accounted rates."""
  text = resources.files('cgvq_jax.evaluate').joinpath('anchors/kodak_rd.csv').read_text('utf-8')
  lines: tuple[list[Line2D], list[Line2D]] = [], []
  points = list(csv.DictReader(io.StringIO(text)))
  for name in dict.fromkeys(point['codec'] for point in points):
    curve = sorted(
      (float(point['bpp']), float(point['psnr_db'])) for point in points if point['codec'] == name
    )
    accounted = name.startswith(_ACCOUNTED)
    index = len(lines[accounted])
    marker = 'x+D^v1'[index % 6] if accounted else ''
    color = matplotlib.colormaps['Dark2'](index % 8)
    style: dict[str, Any] = {'color': color, 'ls': '--' if accounted else '-', 'marker': marker}
    rates, psnrs = zip(*curve, strict=True)
    lines[accounted].extend(axes.plot(rates, psnrs, lw=0.8, ms=5, alpha=0.75, label=name, **style))
  return lines


def _frame(axes: Axes, measured: Sequence[Line2D], quality: str) -> None:
  """Limits that hold every measured point, and at least the usual range."""
  rates = np.concatenate([np.asarray(line.get_xdata(), float) for line in measured])
  values = np.concatenate([np.asarray(line.get_ydata(), float) for line in measured])
  _, label, (low, high) = _AXES[quality]
  axes.set(xscale='log', xlabel='bits per pixel', ylabel=label)
  axes.set_xlim(min([0.1, *(rates / 1.1)]), max([3, *(rates * 1.3)]))  # room for names
  axes.set_ylim(min([low, *(values - 0.5)]), max([high, *(values + 0.5)]))
  ticks = [tick for tick in _RATE_TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
  axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
  axes.set_xticks([], minor=True)
  axes.grid(alpha=0.25)


def _legend(figure: Figure, groups: Mapping[str, Sequence[Line2D]]) -> None:
  """One list beside the axes, each group under its name."""
  entries = []
  for name, lines in groups.items():
    if lines:
      entries += [Line2D([], [], ls='', label=name), *lines]
  legend = figure.legend(
    handles=entries, loc='upper left', bbox_to_anchor=(0.705, 0.98), fontsize=8, frameon=False
  )
  for text in legend.get_texts():
    text.set_fontweight('bold' if text.get_text() in groups else 'normal')


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
  """Writes a figure whole or not at all."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format=Path(path).suffix.lstrip('.') or 'png', dpi=130)
  files.write_atomically(path, buffer.getvalue())
