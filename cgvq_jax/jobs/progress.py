"""Progress of an encode's stages: a bar for each on a terminal, else a line when a stage ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from cgvq_jax.console import say
from cgvq_jax.evaluate.timer import Stopwatch

if TYPE_CHECKING:
  from cgvq_jax.fit.stages import Progress, Stage


class Bars:
  """Shows the stages of one encode: steps done, PSNR, time left.

  On a terminal a bar moves after every block of steps; elsewhere one line is written when a stage
  ends; with `quiet` nothing is shown.
  """

  def __init__(self, title: str, quiet: bool = False, file: TextIO | None = None):
    self._title, self._quiet = title, quiet
    self._file = sys.stderr if file is None else file
    self._bar: tqdm | None = None
    self._stopwatch = Stopwatch()

  def begin(self, stage: Stage, done: int = 0) -> None:
    """A stage starts, or continues after `done` steps."""
    self.close()
    self._stopwatch = Stopwatch()
    if self._quiet or not self._file.isatty() or done >= stage.num_steps:
      return
    self._bar = tqdm(
      desc=f'{self._title} {stage.name}',
      total=stage.num_steps,
      initial=done,
      unit='step',
      file=self._file,
      dynamic_ncols=True,
      bar_format='{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}, {remaining} left{postfix}',
    )

  def show(self, stage: Stage, progress: Progress) -> None:
    """A block of steps is done."""
    if self._bar is not None:
      self._bar.set_postfix_str(f'{progress.psnr:.2f} dB', refresh=False)
      self._bar.update(progress.step - self._bar.n)
      if progress.step >= stage.num_steps:
        self.close()
    elif progress.step >= stage.num_steps and not self._quiet:
      done = f'{progress.step} steps, {progress.psnr:.2f} dB, {self._stopwatch.elapsed:.1f} s'
      say(f'{self._title} {stage.name}: {done}', self._file)

  def close(self) -> None:
    """Ends the bar that is shown, which stays on the terminal as it is."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None
