"""Checkpoints of long stages, saved by orbax, from which a killed encode resumes.

A folder holds the newest state only, under the number of its step, and the settings that it depends
on. orbax writes under a temporary name and renames, so a kill leaves the old state or the new one;
the next use of the folder removes what a kill left half-written. orbax starts only where the disk
has the room, because on a full one its threads print pages of tracebacks.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cgvq_jax.console import check_interrupt, say
from cgvq_jax.evaluate.timer import Stopwatch
from cgvq_jax.fit.driver import Hooks
from cgvq_jax.io import files
from cgvq_jax.jobs.progress import Bars

if TYPE_CHECKING:
  from cgvq_jax.fit.stages import Progress, Stage, StageState

_BYTES_BESIDE_ARRAYS = 2**20  # for some twenty small files of orbax, 110 kB in blocks of 4 kB


class CheckpointError(ValueError):
  """A saved state that cannot be used: its folder, what was wanted and what was got."""


class Saved(NamedTuple):
  """A state that was restored."""

  state: Any
  step: int
  seconds: float  # that the encode had taken, in all its processes


def save(
  folder: str | os.PathLike[str],
  step: int,
  state: Any,
  settings: Mapping[str, Any],
  seconds: float = 0.0,
) -> None:
  """Saves a pytree of arrays in place of an earlier one; returns when it is on disk.

  `settings` are numbers and strings by name; `restore` wants the same. Within a folder `step` must
  grow from save to save.

  Raises:
    OSError: the folder cannot be written, or the disk has no room for the state.
    ValueError: a state of this step or of a later one is there; `remove` it first.
  """
  Path(folder).mkdir(parents=True, exist_ok=True)
  num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  files.check_room(folder, num_bytes + _BYTES_BESIDE_ARRAYS)
  with _manager(folder) as manager:
    newest = manager.latest_step()
    if newest is not None and newest >= step:
      raise ValueError(f'{folder}: wanted a step after {newest}, got {step}')
    about = {'settings': dict(settings), 'arrays': _arrays(state), 'seconds': seconds}
    contents = ocp.args.Composite(
      about=ocp.args.JsonSave(about), state=ocp.args.StandardSave(state)
    )
    try:
      manager.save(step, args=contents)
    except Exception as error:  # tensorstore raises ValueError where it cannot write
      raise OSError(
        f'{folder}: wanted the state of step {step} saved, got {type(error).__name__}'
      ) from error


def restore(
  folder: str | os.PathLike[str], template: Any, settings: Mapping[str, Any]
) -> Saved | None:
  """The newest state of a folder, a pytree like `template`; None where there is none.

  Its arrays may have more rows than the template's: a fit adds Gaussians.

  Raises:
    CheckpointError: its settings or its arrays' types and shapes are others than those wanted, or
      it cannot be read.
  """
  if not Path(folder).is_dir():
    return None
  with _manager(folder) as manager:
    step = manager.latest_step()
    if step is None:
      return None
    try:
      about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
      # Checked first, because orbax leaves threads running when it fails at an array's shape.
      _check(folder, 'settings', about['settings'], dict(settings))
      template = _with_saved_rows(template, about['arrays'])
      _check(folder, 'arrays', about['arrays'], _arrays(template))
      wanted = ocp.args.Composite(state=ocp.args.StandardRestore(template))
      state = manager.restore(step, args=wanted).state
      # orbax commits its arrays to a device, for which every program would be compiled again.
      state = jax.tree.map(lambda array: jnp.asarray(np.asarray(array)), state)
      return Saved(state, step, float(about['seconds']))
    except CheckpointError:
      raise
    except Exception as error:  # orbax and tensorstore raise many kinds on a damaged file
      raise CheckpointError(
        f'{folder}: wanted a state of step {step}, got {type(error).__name__}'
      ) from error


def remove(folder: str | os.PathLike[str]) -> None:
  """Removes a folder with the states in it, if it is there."""
  shutil.rmtree(folder, ignore_errors=True)


class Location(NamedTuple):
  """Where the states of a stage are saved."""

  folder: Path
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
    folder, settings = self._locate(stage.name)
    try:
      saved = restore(folder, start, settings)
    except CheckpointError as error:
      say(f'{error}: starts again')
      remove(folder)
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
      folder, settings = self._locate(stage.name)
      try:
        save(folder, step, state, settings, self.seconds)
      except OSError as error:
        say(f'{self._title} {stage.name}: state not saved: {error}', sys.stderr)
      self._unsaved, self._since_save = None, Stopwatch()


def _manager(folder: str | os.PathLike[str]) -> ocp.CheckpointManager:
  # Synchronous: a save takes some 30 ms, and the caller may be killed right after it.
  options = ocp.CheckpointManagerOptions(
    max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
  )
  return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def _arrays(tree: Any) -> dict[str, str]:
  """The type and shape of every array of a pytree, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in leaves}


def _with_saved_rows(template: Any, saved: dict[str, str]) -> Any:
  """The template, with arrays that were saved with more rows as long as those."""

  def longer(path, leaf):
    leaf = np.asarray(leaf)  # to orbax a NumPy scalar is something else than an array
    dtype, _, shape = saved.get(jax.tree_util.keystr(path), '').partition('[')
    rows, *rest = json.loads(f'[{shape}') if shape.strip(']') else [0]
    if leaf.ndim and dtype == str(leaf.dtype) and rest == list(leaf.shape[1:]):
      return np.zeros((max(rows, leaf.shape[0]), *rest), leaf.dtype)
    return leaf

  return jax.tree_util.tree_map_with_path(longer, template)


def _check(folder: Any, what: str, got: dict[str, Any], wanted: dict[str, Any]) -> None:
  """Raises CheckpointError with the first entries that differ."""
  wanted = json.loads(json.dumps(wanted))  # JSON turns tuples into lists
  different = [name for name in {**wanted, **got} if got.get(name) != wanted.get(name)]
  if different:
    pairs = [f'{name} {wanted.get(name)} (got {got.get(name)})' for name in different[:3]]
    raise CheckpointError(f'{folder}: state with other {what}, wanted {", ".join(pairs)}')
