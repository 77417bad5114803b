"""Many images: each encoded to a file by each method, decoded in a new process and measured.

Under the working folder:
  <method>/<setting>/<image>.cgvq   the file; a setting is N, or q<quality> where a method has
                                    one; <method>-K<K> where K is not the method's own
  <method>/<setting>/<image>.png    what a new process decoded of it
  <method>/<setting>/<image>.json   its row and the settings that it was made with
  fits/<setting>/<image>/           states of the fit, which methods share, and of a fine-tuning
  baselines.json                      rows of JPEG, WebP, AVIF and JPEG 2000
  results.json, report.md and plots of all files that are there
Everything appears whole or not at all and is looked at before it is made, so the same job run again
makes what is missing, what other settings made, and nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from cgvq_jax import codec, devices, metrics
from cgvq_jax.bitstream import container
from cgvq_jax.evaluate import baselines, compare, report, similarity
from cgvq_jax.fit.api import Recipe
from cgvq_jax.fit.blocks import FitError
from cgvq_jax.io import files, images
from cgvq_jax.jobs import checkpoint
from cgvq_jax.jobs.progress import Bars
from cgvq_jax.methods.registry import ABLATIONS, CODEBOOK_METHODS, METHODS, Method

_PACKAGE_PARENT = Path(__file__).parents[1]


class Source(NamedTuple):
  """An image of the job, read when its turn comes."""

  name: str
  load: Callable[[], images.LoadedImage]


class Point(NamedTuple):
  """What to make of each image: of the papers' methods at some N and K, of others at a quality."""

  method: str  # a key of METHODS or ABLATIONS
  num_gaussians: int | None = None
  num_clusters: int | None = None
  quality: float | None = None

  @property
  def setting(self) -> str:
    return str(self.num_gaussians) if self.quality is None else f'q{self.quality:g}'

  def make(self, channels: int) -> Method:
    quality = () if self.quality is None else (self.quality,)
    return (METHODS | ABLATIONS)[self.method](channels, *quality)


class Settings(NamedTuple):
  """What else the files depend on."""

  fit: Recipe = Recipe()
  finetune_steps: int = 500
  order: str = 'sorted'  # a key of ordering.ORDERS


class Outcome(NamedTuple):
  """What a job did: numbers of files, and a line for each failure."""

  encoded: int
  unchanged: int
  failures: list[str]


class DecodeError(RuntimeError):
  """A new process could not decode a file; says which, and what that process said."""


def grid(
  methods: Sequence[str],
  num_gaussians: Sequence[int],
  num_clusters: Sequence[int | None] = (None,),
  qualities: Sequence[float] = (),
) -> list[Point]:
  """Every method at every N and K, or at every quality where it has one, each once; K = None is the
  method's own, and K is at most N."""
  papers = [
    Point(method, count, min(clusters or CODEBOOK_METHODS[method]().num_clusters, count))
    for count, method, clusters in itertools.product(num_gaussians, methods, num_clusters)
    if method in CODEBOOK_METHODS
  ]
  others = [
    Point(method, quality=quality)
    for quality, method in itertools.product(qualities, methods)
    if method not in CODEBOOK_METHODS
  ]
  return list(dict.fromkeys(papers + others))


def run(
  sources: Sequence[Source],
  workdir: str | os.PathLike[str],
  *,
  points: Sequence[Point],
  settings: Settings,
  classic_codecs: Sequence[str] = (),
  judged: report.Judged = report.ALONE,
  checkpoint_seconds: float = 60.0,
) -> Outcome:
  """Makes every point of every image, one after another; what is there already is left alone.

  An image or a point that fails is reported on stderr and the others go on. The state of the
  running stage is saved every `checkpoint_seconds` and on KeyboardInterrupt, which goes through.
  `classic_codecs` are measured on the same images, and `judged` is how the report compares.

  A row's `encode_seconds` are what one file would take a user: wall seconds from the pixels to the
  bytes, compilation included where this process compiled, the shared fit counted in each row, and
  of an encode that was killed and went on, without the work that was lost. `decode_seconds` are
  the median of some decodes of the bytes to pixels once everything is compiled. The quality is that
  of the PNG that a new process decoded.

  Raises:
    OSError: the folder cannot be made or written.
  """
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  records = _read_records(workdir)
  classic_rows = _read_json(workdir / 'baselines.json', [])
  failures: list[str] = []
  encoded = unchanged = 0
  for source in sources:
    with reported(source.name, failures):
      image = source.load()
      for note in image.notes:
        print(f'{source.name}: {note}', flush=True)
      digest = digest_of(image.pixels)
      for name in classic_codecs:
        classic_rows = _with_classic(workdir, classic_rows, name, source.name, image.pixels, digest)
      for point in points:
        task = _Task.of(source.name, image.pixels, digest, point, settings, workdir)
        record = records.pop(task.file, None)
        if record and record['settings'] == task.settings_of_file():
          records[task.file] = record
          unchanged += 1
          continue
        devices.forget_programs_if_many()
        with reported(task.title, failures):
          records[task.file] = _make(task, image.pixels, checkpoint_seconds)
          encoded += 1
          _write_results(workdir, records)
  _write_results(workdir, records)
  shown = [row for row in classic_rows if row['method'] in classic_codecs]
  _write_report(workdir, records, shown, judged)
  return Outcome(encoded, unchanged, failures)


class _Task(NamedTuple):
  """One file to be made."""

  image: str
  digest: str  # of the image's pixels
  num_gaussians: int  # at most
  point: Point
  settings: Settings
  workdir: Path

  @classmethod
  def of(
    cls, image: str, pixels: np.ndarray, digest: str, point: Point, settings, workdir
  ) -> _Task:
    method = point.make(pixels.shape[2])
    count = point.num_gaussians or method.num_gaussians(math.prod(pixels.shape[:2]))
    return cls(image, digest, count, point, settings, workdir)

  @property
  def title(self) -> str:
    method, _, clusters, _ = self.point
    setting = self.point.setting
    return f'{self.image} {method} ' + (f'N={setting} K={clusters}' if clusters else setting)

  @property
  def file(self) -> Path:
    method, count, clusters, _ = self.point
    usual = (
      min(CODEBOOK_METHODS[method]().num_clusters, count)
      if count and method in CODEBOOK_METHODS
      else None
    )
    folder = method if clusters == usual else f'{method}-K{clusters}'
    return self.workdir / folder / self.point.setting / f'{self.image}.cgvq'

  def stages(self) -> dict[str, checkpoint.Stage]:
    """Steps of the two stages and where their states are kept; a fit is every method's."""
    states = self.workdir / 'fits' / self.point.setting / self.image
    fit_steps, finetune_steps = self.settings.fit.steps, self.settings.finetune_steps
    tuning = states / self.file.parts[-3]
    return {
      'fit': checkpoint.Stage(states / 'fit', fit_steps, self.settings_of_fit()),
      'finetune': checkpoint.Stage(tuning, finetune_steps, self.settings_of_file()),
    }

  def settings_of_fit(self) -> dict[str, Any]:
    asked = {'num_gaussians': self.num_gaussians, 'quality': self.point.quality}
    return {'image': self.digest, **asked, **self.settings.fit._asdict()}

  def settings_of_file(self) -> dict[str, Any]:
    settings = {**self.settings._asdict(), 'fit': self.settings.fit._asdict()}
    asked = {**self.point._asdict(), 'num_gaussians': self.num_gaussians}
    return {'image': self.digest, **asked, **settings}


def _make(task: _Task, pixels: Float[np.ndarray, 'H W C'], every: float) -> dict[str, Any]:
  """Encodes, decodes and measures one file; returns its record."""
  task.file.parent.mkdir(parents=True, exist_ok=True)
  record_file = task.file.with_suffix('.json')
  record_file.unlink(missing_ok=True)
  stages = task.stages()
  bars = Bars(task.title, {name: stage.steps for name, stage in stages.items()})
  keeper = checkpoint.Checkpointer(task.title, stages, every, bars)
  try:
    data = codec.encode(
      pixels,
      task.point.make(pixels.shape[2]),
      num_gaussians=task.num_gaussians,
      num_clusters=task.point.num_clusters,
      fit_steps=task.settings.fit.steps,
      finetune_steps=task.settings.finetune_steps,
      seed=task.settings.fit.seed,
      **task.settings.fit.functions(),
      order=task.settings.order,
      resume=keeper.resume,
      on_block=keeper.on_block,
    )
  except KeyboardInterrupt:
    keeper.save()
    raise
  finally:
    bars.close()
  encode_seconds = keeper.seconds
  container.write_file(task.file, data)
  row = _row(task, images.to_bytes8(pixels), data, encode_seconds)
  checksum = hashlib.sha256(data).hexdigest()
  record = {'settings': task.settings_of_file(), 'sha256': checksum, 'row': row}
  files.write_atomically(record_file, (json.dumps(record, indent=1) + '\n').encode())
  checkpoint.remove(stages['finetune'].folder)
  print(
    f'{task.title}: {row["bytes"]} bytes, {row["bpp"]:.4f} bpp, {row["psnr"]:.2f} dB, '
    f'MS-SSIM {row["ms_ssim"]:.4f}, {encode_seconds:.1f} s',
    flush=True,
  )
  return record


def _row(
  task: _Task, original: UInt8[np.ndarray, 'H W C'], data: bytes, encode_seconds: float
) -> dict[str, Any]:
  """The measures of one file."""
  decoded = _decode_in_new_process(task.file)
  about = container.describe(data)
  return {
    'image': task.image,
    'method': task.point.method,
    'setting': task.point.setting,
    'num_gaussians': about['num_gaussians'],
    'num_clusters': task.point.num_clusters or 1,
    'fit_steps': task.settings.fit.steps,
    'finetune_steps': task.settings.finetune_steps,
    'bytes': about['bytes'],
    'sections': about['sections'],
    'bpp': about['bpp'],
    'psnr': metrics.psnr(original, decoded),
    'ssim': similarity.ssim(original, decoded),
    'ms_ssim': similarity.ms_ssim(original, decoded),
    'encode_seconds': encode_seconds,
    'decode_seconds': compare.warm_decode_seconds(data),
    'device': _device(),
  }


def _decode_in_new_process(file: Path) -> UInt8[np.ndarray, 'H W C']:
  """The 8-bit pixels of the PNG that another process makes of a file, left beside it."""
  png = file.with_suffix('.png')
  path = os.pathsep.join(filter(None, [str(_PACKAGE_PARENT), os.environ.get('PYTHONPATH')]))
  # This process holds most of a GPU's memory; the other takes only what it needs of the rest.
  environment = {**os.environ, 'PYTHONPATH': path, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  done = subprocess.run(
    [sys.executable, '-m', 'cgvq_jax', 'decode', str(file), str(png)],
    env=environment,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    said = done.stderr.strip().splitlines() or ['nothing']
    raise DecodeError(f'{file}: the decoder ended with {done.returncode} and said: {said[-1]}')
  return images.to_bytes8(images.load(png).pixels)


def _device() -> str:
  device = jax.devices()[0]
  return f'CPU, {devices.usable()} cores' if device.platform == 'cpu' else device.device_kind


@contextmanager
def reported(name: str, failures: list[str]) -> Iterator[None]:
  """Turns a failure into a line; one that nobody foresaw is also shown in full."""
  try:
    yield
  except Exception as error:
    foreseen = (images.ImageError, container.ContainerError, FitError, DecodeError, OSError)
    if not isinstance(error, foreseen):
      traceback.print_exc()
    lines = str(error).strip().splitlines() or ['']
    failures.append(f'{name}: {type(error).__name__}: {lines[0]}')
    print(f'failed: {failures[-1]}', file=sys.stderr, flush=True)


def digest_of(pixels: Float[np.ndarray, 'H W C']) -> str:
  return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _with_classic(
  workdir: Path, rows: list[dict[str, Any]], method: str, name: str, pixels, digest: str
) -> list[dict[str, Any]]:
  """The classic codecs' rows, those of this one and this image among them."""

  def same(row: dict[str, Any]) -> bool:
    return (row['method'], row['image']) == (method, name)

  if any(same(row) and row['source'] == digest for row in rows):
    return rows
  points = baselines.points(images.to_bytes8(pixels), method, name)
  measured = [{**row, 'source': digest} for row in points]
  rows = [row for row in rows if not same(row)] + measured
  if measured:
    report.write_json(workdir / 'baselines.json', rows)
  return rows


def _read_json(path: Path, default: Any) -> Any:
  """A file's contents, or the default where there is no such file or it is damaged."""
  try:
    return json.loads(path.read_text('utf-8'))
  except (OSError, ValueError):
    return default


def _read_records(workdir: Path) -> dict[Path, dict[str, Any]]:
  """By file, the records whose file is there as it was made."""
  records = {}
  for path in workdir.glob('*/*/*.json'):
    file, record = path.with_suffix('.cgvq'), _read_json(path, None)
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
  """Writes results.json, unless it holds these rows already."""
  rows = _rows(records)
  if _read_json(workdir / 'results.json', None) != rows:
    report.write_json(workdir / 'results.json', rows)


def _write_report(
  workdir: Path,
  records: dict[Path, dict[str, Any]],
  classic_rows: list[dict[str, Any]],
  judged: report.Judged,
) -> None:
  """Writes the report and its plots, unless they say this already."""
  rows = _rows(records)
  written = workdir / 'report.md'
  whole = written.is_file() and all((workdir / plot).is_file() for plot in report.PLOTS)
  said = written.read_text('utf-8') if whole else ''
  if rows and not said.startswith(report.markdown(rows, classic_rows, judged)):
    report.write(workdir, rows, classic_rows, judged)
