"""The states of long stages, kept on disk by orbax so that a killed process goes on from them.

A folder holds the newest state only, under the number of its step, with the settings that it was
made with. orbax writes under a temporary name and renames, so a kill leaves the old state or the
new one, and what it left half-written is cleared away by the next use of the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cgvq_jax.fit.blocks import Progress
from cgvq_jax.jobs.progress import Bars


class CheckpointError(ValueError):
  """A state that cannot be gone on from: its folder, what was wanted and what was got."""


class Saved(NamedTuple):
  """A state as it was saved."""

  state: Any
  step: int
  seconds: float  # spent on it until then, by all the processes that worked on it


def save(
  folder: str | os.PathLike[str],
  step: int,
  state: Any,
  settings: Mapping[str, Any],
  seconds: float = 0.0,
) -> None:
  """Puts a pytree of arrays in the place of the state before it, and returns when it is on disk.

  `settings` are plain numbers and names; `restore` wants the same. `step` must grow from save to
  save within a folder.

  Raises:
    OSError: the folder cannot be written.
    ValueError: there is a state of this step or of a later one; `remove` it first.
  """
  with _manager(folder) as manager:
    newest = manager.latest_step()
    if newest is not None and newest >= step:
      raise ValueError(f'{folder}: wanted a step after {newest}, got {step}')
    about = {'settings': dict(settings), 'arrays': _arrays(state), 'seconds': seconds}
    contents = ocp.args.Composite(
      about=ocp.args.JsonSave(about), state=ocp.args.StandardSave(state)
    )
    manager.save(step, args=contents)


def restore(
  folder: str | os.PathLike[str], template: Any, settings: Mapping[str, Any]
) -> Saved | None:
  """The newest state of a folder, a pytree as `template`; None where there is none.

  Raises:
    CheckpointError: it was made with other settings, has other arrays than the template, or
      cannot be read.
  """
  if not Path(folder).is_dir():
    return None
  with _manager(folder) as manager:
    step = manager.latest_step()
    if step is None:
      return None
    try:
      about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
      # Looked at first: orbax leaves threads behind when it stops at an array of another shape.
      _check(folder, 'settings', about['settings'], dict(settings))
      _check(folder, 'arrays', about['arrays'], _arrays(template))
      wanted = ocp.args.Composite(state=ocp.args.StandardRestore(template))
      state = manager.restore(step, args=wanted).state
      # orbax ties its arrays to a device, for which every program would be compiled again.
      state = jax.tree.map(lambda array: jnp.asarray(np.asarray(array)), state)
      return Saved(state, step, float(about['seconds']))
    except CheckpointError:
      raise
    except Exception as error:  # whatever orbax or tensorstore stumble over in a damaged file
      raise CheckpointError(
        f'{folder}: wanted a state of step {step}, got {type(error).__name__}'
      ) from error


def remove(folder: str | os.PathLike[str]) -> None:
  """Removes a folder and the state in it, if it is there."""
  shutil.rmtree(folder, ignore_errors=True)


class Stage(NamedTuple):
  """One of an encode's long stages."""

  folder: Path  # of its states
  steps: int
  settings: dict[str, Any]  # what its states depend on


class Checkpointer:
  """Saves the states of an encode's stages every so many seconds, and goes on from them.

  `resume` and `on_block` are what `codec.encode` takes. The last state of a stage is always saved.
  The states carry the encode's clock with them.
  """

  def __init__(self, title: str, stages: Mapping[str, Stage], every: float, bars: Bars):
    self._title, self._stages, self._every, self._bars = title, stages, every, bars
    self._unsaved: tuple[str, Any, int] | None = None
    self._zero = self._saved_at = time.perf_counter()

  @property
  def seconds(self) -> float:
    """Spent on this encode, by this process and by earlier ones up to the states they left."""
    return time.perf_counter() - self._zero

  def resume(self, stage: str, start: Any) -> Any:
    """The state that was saved, or the start; a state of other settings is removed."""
    folder, steps, settings = self._stages[stage]
    try:
      saved = restore(folder, start, settings)
    except CheckpointError as error:
      print(f'{error}: starts anew', flush=True)
      remove(folder)
      saved = None
    if saved is None:
      self._bars.begin(stage)
      return start
    self._zero = time.perf_counter() - saved.seconds
    if saved.step < steps:
      print(f'{self._title} {stage}: goes on from step {saved.step}', flush=True)
    self._bars.begin(stage, saved.step)
    return saved.state

  def on_block(self, stage: str, state: Any, progress: Progress) -> None:
    """A block of steps is done."""
    self._unsaved = stage, state, progress.step
    due = time.perf_counter() - self._saved_at >= self._every
    if due or progress.step == self._stages[stage].steps:
      self.save()
    self._bars.show(stage, progress)

  def save(self) -> None:
    """Saves the last block's state, if there is one that is not saved."""
    if self._unsaved is not None:
      stage, state, step = self._unsaved
      folder, _, settings = self._stages[stage]
      save(folder, step, state, settings, self.seconds)
      self._unsaved, self._saved_at = None, time.perf_counter()


def _manager(folder: str | os.PathLike[str]) -> ocp.CheckpointManager:
  # Synchronous: a save takes some 30 ms, and the caller may be killed right after it.
  options = ocp.CheckpointManagerOptions(
    max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
  )
  return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def _arrays(tree: Any) -> dict[str, str]:
  """Name -> type and shape of every array of a pytree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}' for path, leaf in leaves}


def _check(folder: Any, what: str, got: dict[str, Any], wanted: dict[str, Any]) -> None:
  """Raises with the first entries that differ."""
  wanted = json.loads(json.dumps(wanted))  # as JSON gives them back: lists for tuples
  different = [name for name in {**wanted, **got} if got.get(name) != wanted.get(name)]
  if different:
    pairs = [f'{name} {wanted.get(name)} (got {got.get(name)})' for name in different[:3]]
    raise CheckpointError(f'{folder}: state of other {what}, wanted {", ".join(pairs)}')
