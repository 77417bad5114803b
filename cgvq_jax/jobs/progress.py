"""What a person sees of an encode's long stages: a bar for each on a terminal, elsewhere a line."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm

from cgvq_jax.fit.blocks import Progress


class Bars:
  """Shows the stages of one encode: steps done, PSNR, time left.

  `steps` gives each stage's steps. On a terminal a bar moves with every block of steps; elsewhere
  one line is written when a stage ends; `quiet` shows nothing.
  """

  def __init__(
    self, name: str, steps: Mapping[str, int], quiet: bool = False, file: TextIO | None = None
  ):
    self._name, self._steps, self._quiet = name, steps, quiet
    self._file = sys.stderr if file is None else file
    self._bar: tqdm | None = None
    self._start = time.perf_counter()

  def begin(self, stage: str, done: int = 0) -> None:
    """A stage starts, or goes on after `done` steps."""
    self.close()
    self._start = time.perf_counter()
    if self._quiet or not self._file.isatty() or done >= self._steps[stage]:
      return
    self._bar = tqdm(
      desc=f'{self._name} {stage}',
      total=self._steps[stage],
      initial=done,
      unit='step',
      file=self._file,
      dynamic_ncols=True,
      bar_format='{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}, {remaining} left{postfix}',
    )

  def show(self, stage: str, progress: Progress) -> None:
    """A block of steps is done."""
    if self._bar is not None:
      self._bar.set_postfix_str(f'{progress.psnr:.2f} dB', refresh=False)
      self._bar.update(progress.step - self._bar.n)
      if progress.step >= self._steps[stage]:
        self.close()
    elif progress.step >= self._steps[stage] and not self._quiet:
      seconds = time.perf_counter() - self._start
      line = f'{self._name} {stage}: {progress.step} steps, {progress.psnr:.2f} dB, {seconds:.1f} s'
      print(line, file=self._file, flush=True)

  def close(self) -> None:
    """Leaves the last bar as it stands."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None
