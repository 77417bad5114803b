"""Encodes many images by several methods, decodes each file in a new process, measures and reports.

Under the working folder:
  <method>/<setting>/<image>.cgvq   the file; its setting is q<quality>, or N where the method has
                                    no quality; <method>-K<K> where K is not the method's default
  <method>/<setting>/<image>.png    the image that a new process decoded
  <method>/<setting>/<image>.json   its row, and the settings that it was made with
  fits/<setting>/<image>/fit/       the last state of the fit, which the methods share
  fits/<setting>/<image>/<method>/  states of an encode's other stages, until its file is written
  baselines.json                    rows of JPEG, WebP, AVIF and JPEG 2000
  results.json, report.md, plots    of all files that are in the folder
Every file appears whole or not at all. A job first looks at what is there, so the same job run
again makes only the files that are missing, damaged or made with other settings.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cgvq_jax import codec, metrics
from cgvq_jax.bitstream import container
from cgvq_jax.console import say
from cgvq_jax.evaluate import baselines, compare, report, similarity
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.io import images
from cgvq_jax.jobs import base, checkpoint
from cgvq_jax.jobs.base import Outcome, Source, reported
from cgvq_jax.jobs.progress import Bars
from cgvq_jax.methods import registry
from cgvq_jax.methods.base import Method

if TYPE_CHECKING:
  import numpy as np
  from jaxtyping import Float, UInt8


class Point(NamedTuple):
  """A method and the options that it has; those that it does not have are None."""

  method: str  # a key of METHODS
  num_gaussians: int | None = None
  num_clusters: int | None = None
  order: str | None = None  # of the Gaussians in the file
  quality: float | None = None

  @property
  def setting(self) -> str:
    """The name of the point on its method's curve."""
    if self.quality is not None:
      return f'q{self.quality:g}'
    return 'default' if self.num_gaussians is None else str(self.num_gaussians)

  def make(self, channels: int) -> Method:
    """The method with these options, for images of so many channels."""
    return registry.make(self.method, channels, **self.options)

  @property
  def options(self) -> dict[str, Any]:
    """The options by name, as `registry.make` takes them."""
    options = self._asdict()
    del options['method']
    return options


def grid(
  methods: Sequence[str],
  num_gaussians: Sequence[int],
  num_clusters: Sequence[int | None] = (None,),
  qualities: Sequence[float] = (),
  order: str | None = None,
) -> list[Point]:
  """A point for each quality of a method that has that option, else for each N and K; each once.

  A K of None is the method's default, and K is at most N. A method without one of the options
  `num_gaussians`, `num_clusters` and `order` is made without it.
  """
  by_count = [
    _counted(method, count, clusters, order)
    for count, method, clusters in itertools.product(num_gaussians, methods, num_clusters)
    if 'quality' not in registry.options(method)
  ]
  by_quality = [
    Point(method, quality=quality)
    for quality, method in itertools.product(qualities, methods)
    if 'quality' in registry.options(method)
  ]
  return list(dict.fromkeys(by_count + by_quality))


def _counted(method: str, count: int, clusters: int | None, order: str | None) -> Point:
  """A point at some N and K, of which it keeps what the method has as an option."""
  known = registry.options(method)
  if 'num_clusters' in known:
    clusters = min(clusters or _default_clusters(method), count)
  options = {'num_gaussians': count, 'num_clusters': clusters, 'order': order}
  return Point(method, **{name: value for name, value in options.items() if name in known})


def _default_clusters(method: str) -> int:
  return inspect.signature(registry.METHODS[method]).parameters['num_clusters'].default


def run(
  sources: Sequence[Source],
  workdir: str | os.PathLike[str],
  *,
  points: Sequence[Point],
  settings: FitSettings = FitSettings(),
  baseline_codecs: Sequence[str] = (),
  comparison: report.Comparison = report.DEFAULT_COMPARISON,
  checkpoint_seconds: float = 60.0,
) -> Outcome:
  """Makes the file of every point of every image, one after another, unless it is there already.

  An image or a point that fails is reported on stderr, and the job continues with the next one. The
  state of the running stage is saved every `checkpoint_seconds` and on KeyboardInterrupt, which
  is raised again. `settings` must hold names, not functions. `baseline_codecs`, keys of
  baselines.CODECS, are measured on the same images.

  A row's `encode_seconds` are what one file would take a user: wall seconds from pixels to bytes,
  compilation included where this process compiled. The shared fit counts in each row, and work that
  was lost when an encode was killed does not count. `decode_seconds` are the median of some decodes
  from bytes to pixels once everything is compiled. Quality is that of the PNG that a new process
  decoded.

  Raises:
    OSError: the folder cannot be made.
  """
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  records = _read_records(workdir)
  baseline_rows = base.read_json(workdir / 'baselines.json', [])
  failures: list[str] = []
  made = unchanged = 0
  for source in sources:
    with reported(source.name, failures):
      image = source.load()
      for note in image.notes:
        say(f'{source.name}: {note}')
      digest = base.digest_of(image.pixels)
      for name in baseline_codecs:
        baseline_rows = _with_baseline(
          workdir, baseline_rows, name, source.name, image.pixels, digest
        )
      for point in points:
        task = Task(source.name, digest, image.pixels.shape, point, settings, workdir)
        record = records.pop(task.file, None)
        if record and record['settings'] == task.settings_of_file():
          records[task.file] = record
          unchanged += 1
          continue
        with reported(task.title, failures):
          records[task.file] = _make(task, image.pixels, checkpoint_seconds)
          made += 1
          _write_results(workdir, records)
  with reported('results.json', failures):
    _write_results(workdir, records)
  shown = [row for row in baseline_rows if row['method'] in baseline_codecs]
  with reported('report.md', failures):
    _write_report(workdir, records, shown, comparison)
  return Outcome(made, unchanged, failures)


class Task(NamedTuple):
  """One file to be made."""

  image: str
  digest: str  # of the image's pixels
  shape: tuple[int, ...]  # of the image
  point: Point
  settings: FitSettings
  workdir: Path

  @property
  def title(self) -> str:
    """As progress and failures name it."""
    point = self.point
    option = point.setting
    if point.num_clusters:
      option = f'N={point.num_gaussians} K={point.num_clusters}'
    return f'{self.image} {point.method} {option}'

  @property
  def folder(self) -> str:
    """The name of the folder of its method."""
    method, count, clusters = self.point[:3]
    usual = min(_default_clusters(method), count) if count and clusters else None
    return method if clusters == usual else f'{method}-K{clusters}'

  @property
  def file(self) -> Path:
    return self.workdir / self.folder / self.point.setting / f'{self.image}.cgvq'

  @property
  def method(self) -> Method:
    """The method with its options."""
    return self.point.make(self.shape[2])

  @property
  def num_gaussians(self) -> int:
    """The most Gaussians that are fitted."""
    return self.method.gaussian_budget(math.prod(self.shape[:2]))

  def locate(self, stage: str) -> checkpoint.Location:
    """Where the states of a stage are saved: those of a fit in one place for all methods."""
    states = self.workdir / 'fits' / self.point.setting / self.image
    if stage == 'fit':
      return checkpoint.Location(states / 'fit', self.settings_of_fit())
    return checkpoint.Location(states / self.folder / stage, self.settings_of_file())

  def settings_of_fit(self) -> dict[str, Any]:
    """All that the shared fit depends on."""
    settings = self.settings._asdict()
    del settings['finetune_steps']
    options = {'num_gaussians': self.num_gaussians, 'quality': self.point.quality}
    return {'image': self.digest, **options, **settings}

  def settings_of_file(self) -> dict[str, Any]:
    """All that the file depends on."""
    options = {**self.point._asdict(), 'num_gaussians': self.num_gaussians}
    return {'image': self.digest, **options, **self.settings._asdict()}


def _make(task: Task, pixels: Float[np.ndarray, 'H W C'], every: float) -> dict[str, Any]:
  """Encodes, decodes and measures one file; returns its record."""
  task.file.parent.mkdir(parents=True, exist_ok=True)
  record_file = task.file.with_suffix('.json')
  record_file.unlink(missing_ok=True)
  bars = Bars(task.title)
  checkpointer = checkpoint.Checkpointer(task.title, task.locate, every, bars)
  try:
    data = codec.encode(pixels, task.method, task.settings, checkpointer.hooks)
  except KeyboardInterrupt:
    checkpointer.save()
    raise
  finally:
    bars.close()
  encode_seconds = checkpointer.seconds
  container.write_file(task.file, data)
  row = _row(task, images.to_bytes8(pixels), data, encode_seconds)
  checksum = hashlib.sha256(data).hexdigest()
  record = {'settings': task.settings_of_file(), 'sha256': checksum, 'row': row}
  base.write_json(record_file, record)
  checkpoint.remove(task.locate('finetune').folder.parent)  # only the fit is of further use
  say(
    f'{task.title}: {row["bytes"]} bytes, {row["bpp"]:.4f} bpp, {row["psnr"]:.2f} dB, '
    f'MS-SSIM {row["ms_ssim"]:.4f}, {encode_seconds:.1f} s',
  )
  return record


def _row(
  task: Task, original: UInt8[np.ndarray, 'H W C'], data: bytes, encode_seconds: float
) -> dict[str, Any]:
  """The measures of one file, as `report` lists them."""
  decoded = base.decode_in_new_process(task.file)
  about = container.describe(data)
  return {
    'image': task.image,
    'method': task.point.method,
    'setting': task.point.setting,
    'num_gaussians': about['num_gaussians'],
    'num_clusters': task.point.num_clusters or 1,
    'fit_steps': task.settings.steps,
    'finetune_steps': task.settings.finetune_steps,
    'bytes': about['bytes'],
    'sections': about['sections'],
    'bpp': about['bpp'],
    'psnr': metrics.psnr(original, decoded),
    'ssim': similarity.ssim(original, decoded),
    'ms_ssim': similarity.ms_ssim(original, decoded),
    'encode_seconds': encode_seconds,
    'decode_seconds': compare.warm_decode_seconds(data),
    'device': base.device_name(),
  }


def _with_baseline(
  workdir: Path, rows: list[dict[str, Any]], codec_name: str, image: str, pixels, digest: str
) -> list[dict[str, Any]]:
  """The baseline rows with those of one codec and one image, measured unless they are there."""

  def same(row: dict[str, Any]) -> bool:
    return (row['method'], row['image']) == (codec_name, image)

  if any(same(row) and row['source'] == digest for row in rows):
    return rows
  points = baselines.points(images.to_bytes8(pixels), codec_name, image)
  measured = [{**row, 'source': digest} for row in points]
  rows = [row for row in rows if not same(row)] + measured
  if measured:
    base.write_json(workdir / 'baselines.json', rows)
  return rows


def _read_records(workdir: Path) -> dict[Path, dict[str, Any]]:
  """The records of all files that are as they were written, by file."""
  records = {}
  for path in workdir.glob('*/*/*.json'):
    file, record = path.with_suffix('.cgvq'), base.read_json(path)
    if isinstance(record, dict) and {'settings', 'sha256', 'row'} <= record.keys():
      data = file.read_bytes() if file.is_file() else b''
      if hashlib.sha256(data).hexdigest() == record['sha256']:
        records[file] = record
  return records


def _rows(records: dict[Path, dict[str, Any]]) -> list[dict[str, Any]]:
  keys = ('method', 'num_clusters', 'fit_steps', 'finetune_steps', 'image', 'bpp')
  rows = [record['row'] for record in records.values()]
  return sorted(rows, key=lambda row: tuple(row[key] for key in keys))


def _write_results(workdir: Path, records: dict[Path, dict[str, Any]]) -> None:
  """Writes results.json, unless it has these rows already."""
  rows = _rows(records)
  if base.read_json(workdir / 'results.json') != rows:
    base.write_json(workdir / 'results.json', rows)


def _write_report(
  workdir: Path,
  records: dict[Path, dict[str, Any]],
  baseline_rows: list[dict[str, Any]],
  comparison: report.Comparison,
) -> None:
  """Writes the report and its plots, unless they are there and of the same rows."""
  rows = _rows(records)
  written = workdir / 'report.md'
  whole = written.is_file() and all((workdir / plot).is_file() for plot in report.PLOTS.values())
  text = written.read_text('utf-8') if whole else ''
  if rows and not text.startswith(report.markdown(rows, baseline_rows, comparison)):
    report.write(workdir, rows, baseline_rows, comparison)
