"""The state of a long computation, kept on disk by orbax so that a killed process goes on from it.

A folder holds the newest state only, under the number of its step, with the settings that it was
made with. orbax writes under a temporary name and renames, so a kill leaves the old state or the
new one, and what it left half-written is cleared away by the next save.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp


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
      return Saved(manager.restore(step, args=wanted).state, step, float(about['seconds']))
    except CheckpointError:
      raise
    except Exception as error:  # whatever orbax or tensorstore stumble over in a damaged file
      raise CheckpointError(
        f'{folder}: wanted a state of step {step}, got {type(error).__name__}'
      ) from error


def remove(folder: str | os.PathLike[str]) -> None:
  """Removes a folder and the state in it, if it is there."""
  shutil.rmtree(folder, ignore_errors=True)


def _manager(folder: str | os.PathLike[str]) -> ocp.CheckpointManager:
  # Synchronous: a save takes some 30 ms, and the caller may be killed right after it.
  options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
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
