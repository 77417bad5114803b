"""Recipes for fitting, compared: what each lever is worth, in PSNR by steps and by seconds.

Nothing is quantized and no file is made: a PSNR is that of the clamped 8-bit rendering of the free
Gaussians. Under the working folder:
  fits/<recipe>/<image>.json   a row: settings, PSNR, and its curve over the steps
  study.md, study.png          means over the images, and a plot of them
Rows are written whole or not at all and kept, so the same study run again makes what is missing.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from cgvq_jax import codec, devices, metrics
from cgvq_jax.evaluate import report
from cgvq_jax.fit.api import Recipe
from cgvq_jax.fit.blocks import Progress
from cgvq_jax.io import files, images
from cgvq_jax.jobs.progress import Bars
from cgvq_jax.jobs.rate_distortion import Outcome, Source, digest_of, reported
from cgvq_jax.rasterize.api import rasterize

Row = Mapping[str, Any]


class Fit(NamedTuple):
  """All that a fit depends on but the image."""

  num_gaussians: int
  recipe: Recipe


def run(
  sources: Sequence[Source],
  workdir: str | os.PathLike[str],
  *,
  fits: Mapping[str, Fit],
  tuned_on: Sequence[str] = (),
) -> Outcome:
  """Fits every image in every way, whose names become folders; the first is the baseline.

  Seconds are wall seconds on this machine, compilation included where this process compiled. An
  image that fails is reported on stderr and the others go on. `tuned_on` names images that the
  the ways were chosen by: the report tells the others' mean apart. Raises OSError where the folder
  cannot be written.
  """
  workdir = Path(workdir)
  rows: list[Row] = []
  failures: list[str] = []
  made = unchanged = 0
  for source in sources:
    with reported(source.name, failures):
      pixels = source.load().pixels
      digest = digest_of(pixels)
      for name, fit in fits.items():
        path = workdir / 'fits' / name / f'{source.name}.json'
        count, recipe = fit
        settings = {'image': digest, 'num_gaussians': count, **recipe._asdict()}
        with reported(f'{source.name} {name}', failures):
          row = _read(path, settings)
          if row is None:
            devices.forget_programs_if_many()
            row = _fitted(source.name, name, pixels, fit)
            path.parent.mkdir(parents=True, exist_ok=True)
            record = json.dumps({'settings': settings, 'row': row}) + '\n'
            files.write_atomically(path, record.encode())
            made += 1
          else:
            unchanged += 1
          rows.append(row)
  if rows:
    files.write_atomically(workdir / 'study.md', markdown(rows, tuned_on).encode())
    plot(rows, workdir / 'study.png')
  return Outcome(made, unchanged, failures)


def _read(path: Path, settings: Mapping[str, Any]) -> Row | None:
  """A row that was made with these settings."""
  try:
    record = json.loads(path.read_text('utf-8'))
    return record['row'] if record['settings'] == settings else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _fitted(image: str, name: str, pixels: Float[np.ndarray, 'H W C'], fit: Fit) -> Row:
  """Fits one image; returns what it came to."""
  count, recipe = fit
  bars = Bars(f'{image} {name}', {'fit': recipe.steps})
  curve: list[tuple[int, float, float]] = []
  bars.begin('fit')
  start = time.perf_counter()

  def on_block(state: Any, progress: Progress) -> None:
    del state
    curve.append((progress.step, time.perf_counter() - start, progress.psnr))
    bars.show('fit', progress)

  try:
    gaussians = codec.fit_image(
      jax.random.key(recipe.seed),
      jnp.asarray(pixels),
      count,
      steps=recipe.steps,
      on_block=on_block,
      **recipe.functions(),
    )
  finally:
    bars.close()
  seconds = time.perf_counter() - start
  rendered = np.asarray(rasterize(gaussians, *pixels.shape[:2]))
  psnr = metrics.psnr(images.to_bytes8(pixels), images.to_bytes8(rendered))
  print(f'{image} {name}: {psnr:.2f} dB, {seconds:.1f} s', flush=True)
  return {
    'recipe': name,
    'image': image,
    'num_gaussians': gaussians.num_gaussians,
    'psnr': psnr,
    'seconds': seconds,
    'curve': curve,
  }


def _by_recipe(rows: Sequence[Row]) -> dict[str, list[Row]]:
  groups: dict[str, list[Row]] = {}
  for row in rows:
    groups.setdefault(row['recipe'], []).append(row)
  return groups


def _mean(rows: Sequence[Row], key: str) -> float:
  return statistics.fmean(row[key] for row in rows)


def markdown(rows: Sequence[Row], tuned_on: Sequence[str] = ()) -> str:
  """A table of the recipes; differences are taken over the images that the first has too.

  Raises:
    ValueError: there are no rows.
  """
  if not rows:
    raise ValueError('rows: wanted one or more, got none')
  groups = _by_recipe(rows)
  baseline = {row['image']: row for row in next(iter(groups.values()))}
  apart = any(row['image'] in tuned_on for row in rows)
  header = ['recipe', 'N', 'steps', 'images', 'PSNR', *(['not tuned on'] if apart else [])]
  lines = [[*header, 'against the first', 'seconds']]
  for name, group in groups.items():
    shared = [row for row in group if row['image'] in baseline]
    gain = [row['psnr'] - baseline[row['image']]['psnr'] for row in shared]
    others = [row for row in group if row['image'] not in tuned_on]
    lines.append(
      [
        name,
        f'{_mean(group, "num_gaussians"):.0f}',
        str(max(row['curve'][-1][0] for row in group)),
        str(len(group)),
        f'{_mean(group, "psnr"):.2f}',
        *([f'{_mean(others, "psnr"):.2f}' if others else '-'] if apart else []),
        f'{statistics.fmean(gain):+.2f}' if gain else '-',
        f'{statistics.median(row["seconds"] for row in group):.1f}',
      ]
    )
  rule = ['---'] * len(lines[0])
  table = '\n'.join(f'| {" | ".join(line)} |' for line in [lines[0], rule, *lines[1:]])
  return (
    '# Fits\n\nMean PSNR (dB) of the clamped 8-bit image, nothing quantized; median seconds.\n\n'
    f'{table}\n'
  )


def plot(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
  """PSNR by steps and by seconds, both on a logarithmic axis: means over the images, and medians of
  the seconds. A curve ends where its shortest does."""
  figure = Figure(figsize=(13, 5.5), layout='constrained')
  axes = figure.subplots(1, 2, sharey=True)
  for index, (name, group) in enumerate(_by_recipe(rows).items()):
    length = min(len(row['curve']) for row in group)
    curves = np.array([row['curve'][:length] for row in group])  # [images, blocks, 3]
    steps, psnr = curves[0, :, 0], curves[:, :, 2].mean(axis=0)
    seconds = np.median(curves[:, :, 1], axis=0)
    for place, x in zip(axes, (steps, seconds), strict=True):
      place.plot(x, psnr, color=f'C{index % 10}', lw=2, label=name)
  for place, label in zip(axes, ('steps', 'seconds'), strict=True):
    place.set(xscale='log', xlabel=label)
    place.grid(alpha=0.3, which='both')
  count = len({row['image'] for row in rows})
  axes[0].set_ylabel(f'PSNR, dB: mean of {count} image{"s" * (count > 1)}')
  axes[0].legend(loc='lower right')
  report.save_figure(figure, path)
