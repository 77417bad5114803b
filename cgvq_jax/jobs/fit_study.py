"""Compares named fit settings on many images: PSNR by steps and by seconds, nothing quantized.

A PSNR is that of the clamped 8-bit rendering of the fitted Gaussians. Under the working folder:
  fits/<name>/<image>.json       a row: settings, PSNR, and its curve over the steps
  fit_study.md, fit_study.png    means over the images, and a plot of them
Every file appears whole or not at all, and rows are kept: the same study run again makes only the
rows that are missing, damaged or made with other settings.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from cgvq_jax import metrics
from cgvq_jax.console import check_interrupt, say
from cgvq_jax.evaluate import plots
from cgvq_jax.evaluate.tables import table
from cgvq_jax.evaluate.timer import Stopwatch
from cgvq_jax.fit.api import fit_image
from cgvq_jax.fit.driver import Hooks
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.io import files, images
from cgvq_jax.jobs import base
from cgvq_jax.jobs.base import Outcome, Source, reported
from cgvq_jax.jobs.progress import Bars
from cgvq_jax.rasterize.api import rasterize

if TYPE_CHECKING:
  from jaxtyping import Float

  from cgvq_jax.fit.stages import Progress, Stage, StageState

Row = Mapping[str, Any]

REPORT, PLOT = 'fit_study.md', 'fit_study.png'


class Fit(NamedTuple):
  """All that a fit depends on besides the image."""

  num_gaussians: int  # at most
  settings: FitSettings  # names, not functions


def run(
  sources: Sequence[Source],
  workdir: str | os.PathLike[str],
  *,
  fits: Mapping[str, Fit],
  tuned_on: Sequence[str] = (),
) -> Outcome:
  """Fits every image with all settings, which are named after their folders; the first of them is
  the one that the others are compared with.

  Seconds are wall seconds on this machine, compilation included where this process compiled. An
  image that fails is reported on stderr, and the job continues with the next one. `tuned_on` names
  images that the settings were chosen by: the report has the mean over the others as well.
  """
  workdir = Path(workdir)
  rows: list[Row] = []
  failures: list[str] = []
  made = unchanged = 0
  for source in sources:
    with reported(source.name, failures):
      pixels = source.load().pixels
      digest = base.digest_of(pixels)
      for name, fit in fits.items():
        path = workdir / 'fits' / name / f'{source.name}.json'
        settings = _recorded_settings(digest, fit)
        with reported(f'{source.name} {name}', failures):
          row = _read_row(path, settings)
          if row is None:
            row = _fit(source.name, name, pixels, fit)
            base.write_json(path, {'settings': settings, 'row': row})
            made += 1
          else:
            unchanged += 1
          rows.append(row)
  if rows:
    with reported(REPORT, failures):
      files.write_atomically(workdir / REPORT, markdown(rows, tuned_on).encode())
      plots.save_figure(plot(rows), workdir / PLOT)
  return Outcome(made, unchanged, failures)


def _recorded_settings(digest: str, fit: Fit) -> dict[str, Any]:
  settings = fit.settings._asdict()
  del settings['finetune_steps']  # of which a fit has none
  return {'image': digest, 'num_gaussians': fit.num_gaussians, **settings}


def _read_row(path: Path, settings: Mapping[str, Any]) -> Row | None:
  """The row of a file, or None where it is missing, damaged or made with other settings."""
  record = base.read_json(path)
  if not isinstance(record, dict) or record.get('settings') != settings:
    return None
  return record.get('row')


def _fit(image: str, name: str, pixels: Float[np.ndarray, 'H W C'], fit: Fit) -> Row:
  """Fits one image and measures it; `curve` has (step, seconds, dB) after every block of steps."""
  bars = Bars(f'{image} {name}')
  curve: list[tuple[int, float, float]] = []
  stopwatch = Stopwatch()

  def resume(stage: Stage, start: StageState) -> StageState:
    bars.begin(stage)
    return start

  def on_block(stage: Stage, state: StageState, progress: Progress) -> None:
    del state
    check_interrupt()
    curve.append((progress.step, stopwatch.elapsed, progress.psnr))
    bars.show(stage, progress)

  try:
    gaussians = fit_image(pixels, fit.num_gaussians, fit.settings, Hooks(resume, on_block))
  finally:
    bars.close()
  seconds = stopwatch.elapsed
  rendered = np.asarray(rasterize(gaussians, *pixels.shape[:2]))
  psnr = metrics.psnr(images.to_bytes8(pixels), images.to_bytes8(rendered))
  say(f'{image} {name}: {psnr:.2f} dB, {seconds:.1f} s')
  return {
    'fit': name,
    'image': image,
    'num_gaussians': gaussians.num_gaussians,
    'psnr': psnr,
    'seconds': seconds,
    'curve': curve,
  }


def _by_fit(rows: Sequence[Row]) -> dict[str, list[Row]]:
  groups: dict[str, list[Row]] = {}
  for row in rows:
    groups.setdefault(row['fit'], []).append(row)
  return groups


def _mean(rows: Sequence[Row], key: str) -> float:
  return statistics.fmean(row[key] for row in rows)


def markdown(rows: Sequence[Row], tuned_on: Sequence[str] = ()) -> str:
  """A table with a line for each of the settings.

  A difference to the first is taken over the images that both have.

  Raises:
    ValueError: there are no rows.
  """
  if not rows:
    raise ValueError('rows: wanted one or more, got none')
  groups = _by_fit(rows)
  first = {row['image']: row['psnr'] for row in next(iter(groups.values()))}
  any_tuned = any(row['image'] in tuned_on for row in rows)
  lines = []
  for name, group in groups.items():
    gains = [row['psnr'] - first[row['image']] for row in group if row['image'] in first]
    others = [row for row in group if row['image'] not in tuned_on]
    lines.append(
      [
        name,
        f'{_mean(group, "num_gaussians"):.0f}',
        max(row['curve'][-1][0] for row in group),
        len(group),
        f'{_mean(group, "psnr"):.2f}',
        *([f'{_mean(others, "psnr"):.2f}' if others else '-'] if any_tuned else []),
        f'{statistics.fmean(gains):+.2f}' if gains else '-',
        f'{statistics.median(row["seconds"] for row in group):.1f}',
      ]
    )
  columns = ['settings', 'N', 'steps', 'images', 'PSNR', *(['not tuned on'] if any_tuned else [])]
  return (
    '# Fits\n\nMean PSNR (dB) of the clamped 8-bit image, nothing quantized; median seconds.\n\n'
    f'{table([*columns, "against the first", "seconds"], lines)}\n'
  )


def plot(rows: Sequence[Row]) -> Figure:
  """Mean PSNR over the images by steps and by median seconds, both on logarithmic axes.

  A curve ends with the shortest of its images.
  """
  figure = Figure(figsize=(13, 5.5), layout='constrained')
  panels = figure.subplots(1, 2, sharey=True)
  for index, (name, group) in enumerate(_by_fit(rows).items()):
    length = min(len(row['curve']) for row in group)
    curves = np.array([row['curve'][:length] for row in group])  # [images, blocks, 3]
    steps, psnr = curves[0, :, 0], curves[:, :, 2].mean(axis=0)
    seconds = np.median(curves[:, :, 1], axis=0)
    for axes, x in zip(panels, (steps, seconds), strict=True):
      axes.plot(x, psnr, color=f'C{index % 10}', lw=2, label=name)
  for axes, label in zip(panels, ('steps', 'seconds'), strict=True):
    axes.set(xscale='log', xlabel=label)
    axes.grid(alpha=0.3, which='both')
  count = len({row['image'] for row in rows})
  panels[0].set_ylabel(f'PSNR, dB: mean of {count} image{"s" * (count > 1)}')
  panels[0].legend(loc='lower right')
  return figure
