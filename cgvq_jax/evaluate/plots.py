"""Rate-distortion plots: measured curves, baseline codecs on the same images, published curves."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cgvq_jax.evaluate import curves
from cgvq_jax.evaluate.curves import Rows
from cgvq_jax.io import files

# Published rates that were computed from parameter counts: no file existed.
_WITHOUT_FILES = ('GaussianImage', 'CGVQ')
_RATE_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)  # bpp


class _Axis(NamedTuple):
  """A quality's axis: its label, and the range that is always shown."""

  label: str
  usual: tuple[float, float]  # dB


_AXES = {
  'psnr': _Axis('PSNR, dB', (24, 40)),
  'ms_ssim': _Axis('-10 log10(1 - MS-SSIM), dB', (8, 22)),
}


def rate_distortion(rows: Rows, baseline_rows: Rows, quality: str = 'psnr') -> Figure:
  """A figure of the mean curves of `rows`, of the baseline codecs and of published codecs.

  `quality` is a key of `curves.QUALITIES`. Published curves are drawn for PSNR only. A baseline
  codec's mean is over the images that it shares with `rows`; a point that lacks one of its curve's
  images is left out.

  Raises:
    ValueError: there are no rows, or two rows of one image at the same point.
  """
  curves.check(rows, baseline_rows)
  figure = Figure(figsize=(11, 6.5))
  axes = figure.add_axes((0.06, 0.08, 0.64, 0.89))
  images = curves.images_of(rows)
  measured = _draw_measured(axes, rows, quality)
  baselines = _draw_baselines(axes, baseline_rows, images, quality)
  _set_limits(axes, [*measured, *baselines], quality)
  _name_curves(axes, [*measured, *baselines])
  with_files, without_files = _draw_published(axes) if quality == 'psnr' else ([], [])
  groups = {
    f'this run, {len(images)} image{"s" * (len(images) > 1)}': measured,
    'measured on the same images': baselines,
    'published, mean over Kodak': with_files,
    'published, rate by parameter count, no file': without_files,
  }
  _add_legend(figure, groups)
  return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
  """Writes a figure in the format of its extension; the file appears whole or not at all."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format=Path(path).suffix.lstrip('.') or 'png', dpi=130)
  files.write_atomically(path, buffer.getvalue())


def _draw_measured(axes: Axes, rows: Rows, quality: str) -> list[Line2D]:
  lines = []
  for index, (name, curve) in enumerate(curves.by_curve(rows).items()):
    points = curves.mean_curve(curve, curves.POINT, curves.images_of(curve), quality)
    lines += axes.plot(*points, f'C{index % 10}-o', ms=6, lw=2.2, label=name, zorder=5)
  return lines


def _draw_baselines(
  axes: Axes, baseline_rows: Rows, images: set[str], quality: str
) -> list[Line2D]:
  lines = []
  for index, (codec, curve) in enumerate(curves.by_codec(baseline_rows).items()):
    shared = images & curves.images_of(curve)
    points = curves.mean_curve(curve, curves.BASELINE_POINT, shared, quality)
    if points[0]:
      style: dict[str, Any] = {'color': f'{0.65 * index / 4:g}', 'marker': 'sDv^'[index % 4]}
      lines += axes.plot(*points, ms=3.5, lw=1.6, label=codec, **style)
  return lines


def _draw_published(axes: Axes) -> tuple[list[Line2D], list[Line2D]]:
  """Thin lines of the published means over Kodak: rates of real files, and rates by counting."""
  text = resources.files('cgvq_jax.evaluate').joinpath('anchors/kodak_rd.csv').read_text('utf-8')
  lines: tuple[list[Line2D], list[Line2D]] = [], []
  points = list(csv.DictReader(io.StringIO(text)))
  for name in dict.fromkeys(point['codec'] for point in points):
    curve = sorted(
      (float(point['bpp']), float(point['psnr_db'])) for point in points if point['codec'] == name
    )
    without_file = name.startswith(_WITHOUT_FILES)
    index = len(lines[without_file])
    marker = 'x+D^v1'[index % 6] if without_file else ''
    color = matplotlib.colormaps['Dark2'](index % 8)
    style: dict[str, Any] = {'color': color, 'ls': '--' if without_file else '-', 'marker': marker}
    rates, psnrs = zip(*curve, strict=True)
    drawn = axes.plot(rates, psnrs, lw=0.8, ms=5, alpha=0.75, label=name, **style)
    lines[without_file].extend(drawn)
  return lines


def _set_limits(axes: Axes, measured: Sequence[Line2D], quality: str) -> None:
  """Limits that hold every measured point, and at least the usual range."""
  rates = np.concatenate([np.asarray(line.get_xdata(), float) for line in measured])
  values = np.concatenate([np.asarray(line.get_ydata(), float) for line in measured])
  label, (low, high) = _AXES[quality]
  axes.set(xscale='log', xlabel='bits per pixel', ylabel=label)
  axes.set_xlim(min([0.1, *(rates / 1.1)]), max([3, *(rates * 1.3)]))  # space for the names
  axes.set_ylim(min([low, *(values - 0.5)]), max([high, *(values + 0.5)]))
  ticks = [tick for tick in _RATE_TICKS if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
  axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
  axes.set_xticks([], minor=True)
  axes.grid(alpha=0.25)


def _name_curves(axes: Axes, lines: Sequence[Line2D]) -> None:
  """Writes each curve's name to the right of its last point."""
  style: dict[str, Any] = {'textcoords': 'offset points', 'annotation_clip': True}
  for line in lines:
    points = np.asarray(line.get_xydata(), float)  # [points, 2]
    if len(points):
      name, (x, y) = str(line.get_label()), points[-1]
      axes.annotate(name, (x, y), xytext=(7, -3), color=line.get_color(), **style)


def _add_legend(figure: Figure, groups: Mapping[str, Sequence[Line2D]]) -> None:
  """One list to the right of the axes, each group under its name in bold."""
  entries = []
  for name, lines in groups.items():
    if lines:
      entries += [Line2D([], [], ls='', label=name), *lines]
  legend = figure.legend(
    handles=entries, loc='upper left', bbox_to_anchor=(0.705, 0.98), fontsize=8, frameon=False
  )
  for text in legend.get_texts():
    text.set_fontweight('bold' if text.get_text() in groups else 'normal')
