"""The driver: runs the stages of one image, one block of steps after the other.

It owns the loop and everything around it; methods know of none of these. Another driver, for a
batch of images or for two at a time, is another file like this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cgvq_jax.devices import fetch
from cgvq_jax.fit.blocks import Capacity, run_block
from cgvq_jax.fit.stages import Progress, Stage, Stages, StageState


def _from_start(stage: Stage, start: StageState) -> StageState:
  del stage
  return start


def _silent(stage: Stage, state: StageState, progress: Progress) -> None:
  del stage, state, progress


class Hooks(NamedTuple):
  """What a caller wants to do between blocks.

  `resume(stage, initial state)` returns the state to go on from: the initial one, or one that
  `on_block` was given earlier, also in another process; the result is the same, bit for bit.
  `on_block(stage, state, progress)` is called after every block.
  """

  resume: Callable[[Stage, StageState], StageState] = _from_start
  on_block: Callable[[Stage, StageState, Progress], None] = _silent


def advance(
  stage: Stage,
  state: StageState,
  capacity: Capacity | None = None,
  *,
  implementation: str | None = None,
) -> tuple[StageState, Progress, Capacity]:
  """One block of steps on the device and the host's step after it.

  Hand the capacity that comes back to the next call. Raises FitError, ValueError as `run_block`.
  """
  current, progress, capacity = run_block(
    stage, state.current, capacity, implementation=implementation
  )
  state = StageState(fetch(current), state.memory)
  return *stage.after_block(state, progress), capacity


def run_stage(
  stage: Stage, hooks: Hooks = Hooks(), *, implementation: str | None = None
) -> StageState:
  """Runs a stage to its end and returns its last state. Raises FitError, ValueError."""
  state, capacity = hooks.resume(stage, stage.start), None
  while state.step < stage.num_steps:
    state, progress, capacity = advance(stage, state, capacity, implementation=implementation)
    hooks.on_block(stage, state, progress)
  return state


def run(stages: Stages, hooks: Hooks = Hooks(), *, implementation: str | None = None) -> Any:
  """Runs stages one after another; returns what the last one finishes with.

  `implementation` names a rasterizer (`rasterize.api.implementations`), None leaves the choice to
  the platform. Raises FitError on values that are not finite, ValueError on what does not fit.
  """
  result = None
  for make in stages:
    stage = make(result)
    result = stage.finish(run_stage(stage, hooks, implementation=implementation))
  return result
