"""Checkpoints of long stages, from which a killed encode resumes.

A file holds the newest state of a stage and the settings that it depends on, and is replaced in one
step: a kill or a full disk leaves the old state or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from cgvq_jax.console import check_interrupt, say
from cgvq_jax.evaluate.timer import Stopwatch
from cgvq_jax.fit.driver import Hooks
from cgvq_jax.io import files
from cgvq_jax.jobs.progress import Bars

if TYPE_CHECKING:
  from cgvq_jax.fit.stages import Progress, Stage, StageState

_CRC_BYTES = 4


class CheckpointError(ValueError):
  """A saved state that cannot be used: its file, what was wanted and what was got."""


class Saved(NamedTuple):
  """A state that was restored."""

  state: Any
  step: int
  seconds: float  # that the encode had taken, in all its processes


def save(
  file: str | os.PathLike[str],
  step: int,
  state: Any,
  settings: Mapping[str, Any],
  seconds: float = 0.0,
) -> None:
  """Saves a pytree of arrays in place of an earlier one; returns when it is on disk.

  `settings` are numbers and strings by name; `restore` wants the same.

  Raises:
    OSError: the file cannot be written.
  """
  about = {'step': step, 'seconds': seconds, 'settings': dict(settings), 'arrays': _arrays(state)}
  leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
  data = serialization.msgpack_serialize({'about': json.dumps(about), 'leaves': leaves})
  Path(file).parent.mkdir(parents=True, exist_ok=True)
  files.write_atomically(file, data + zlib.crc32(data).to_bytes(_CRC_BYTES, 'little'))


def restore(
  file: str | os.PathLike[str], template: Any, settings: Mapping[str, Any]
) -> Saved | None:
  """The state of a file, a pytree like `template`; None where there is no such file.

  Raises:
    CheckpointError: its settings or its arrays' types and shapes are others than those wanted, or
      it is damaged.
    OSError: it cannot be read.
  """
  try:
    whole = Path(file).read_bytes()
  except FileNotFoundError:
    return None
  data, crc = whole[:-_CRC_BYTES], whole[-_CRC_BYTES:]
  if zlib.crc32(data).to_bytes(_CRC_BYTES, 'little') != crc:
    raise CheckpointError(f'{file}: wanted a saved state, got a damaged one')
  contents: Any = serialization.msgpack_restore(data)
  about, leaves = json.loads(contents['about']), contents['leaves']
  _check(file, 'settings', about['settings'], dict(settings))
  _check(file, 'arrays', about['arrays'], _arrays(template))
  arrays = [jnp.asarray(leaves[str(i)]) for i in range(len(leaves))]
  state = jax.tree.unflatten(jax.tree.structure(template), arrays)
  return Saved(state, about['step'], about['seconds'])


def remove(path: str | os.PathLike[str]) -> None:
  """Removes a state, or a folder with the states in it, if it is there."""
  if Path(path).is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    Path(path).unlink(missing_ok=True)


class Location(NamedTuple):
  """Where the states of a stage are saved."""

  file: Path
  settings: dict[str, Any]  # that its states depend on, as for `save`


class Checkpointer:
  """Saves the states of an encode's stages every so many seconds, and resumes from them.

  `hooks` are an encode's hooks. `locate` names the place of a stage by the stage's
  name. The last state of a stage is always saved. Each state is saved with the seconds that the
  encode has taken, so that `seconds` includes those of earlier processes. A state that cannot be
  saved is a line on stderr, and the encode goes on.
  """

  def __init__(self, title: str, locate: Callable[[str], Location], every: float, bars: Bars):
    self._title, self._locate, self._every, self._bars = title, locate, every, bars
    self._unsaved: tuple[Stage, StageState, int] | None = None
    self._stopwatch, self._since_save = Stopwatch(), Stopwatch()
    self._seconds_before = 0.0

  @property
  def hooks(self) -> Hooks:
    """For `codec.encode`."""
    return Hooks(self.resume, self.on_block)

  @property
  def seconds(self) -> float:
    """Taken by this encode: by this process, and by earlier ones up to the states they saved."""
    return self._seconds_before + self._stopwatch.elapsed

  def resume(self, stage: Stage, start: StageState) -> StageState:
    """The state that was saved, or `start`; a state that cannot be used is removed."""
    file, settings = self._locate(stage.name)
    try:
      saved = restore(file, start, settings)
    except CheckpointError as error:
      say(f'{error}: starts again')
      remove(file)
      saved = None
    if saved is None:
      self._bars.begin(stage)
      return start
    self._seconds_before, self._stopwatch = saved.seconds, Stopwatch()
    if saved.step < stage.num_steps:
      say(f'{self._title} {stage.name}: resumes at step {saved.step}')
    self._bars.begin(stage, saved.step)
    return saved.state

  def on_block(self, stage: Stage, state: StageState, progress: Progress) -> None:
    """Saves the state after a block of steps if it is due."""
    self._unsaved = stage, state, progress.step
    check_interrupt()
    due = self._since_save.elapsed >= self._every
    if due or progress.step == stage.num_steps:
      self.save()
    self._bars.show(stage, progress)

  def save(self) -> None:
    """Saves the state after the last block, unless it is saved already."""
    if self._unsaved is not None:
      stage, state, step = self._unsaved
      file, settings = self._locate(stage.name)
      try:
        save(file, step, state, settings, self.seconds)
      except OSError as error:
        say(f'{self._title} {stage.name}: state not saved: {error}', sys.stderr)
      self._unsaved, self._since_save = None, Stopwatch()


def _arrays(tree: Any) -> dict[str, str]:
  """The type and shape of every array of a pytree, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in leaves}


def _check(file: Any, what: str, got: dict[str, Any], wanted: dict[str, Any]) -> None:
  """Raises CheckpointError with the first entries that differ."""
  wanted = json.loads(json.dumps(wanted))  # JSON turns tuples into lists
  different = [name for name in {**wanted, **got} if got.get(name) != wanted.get(name)]
  if different:
    pairs = [f'{name} {wanted.get(name)} (got {got.get(name)})' for name in different[:3]]
    raise CheckpointError(f'{file}: state with other {what}, wanted {", ".join(pairs)}')
