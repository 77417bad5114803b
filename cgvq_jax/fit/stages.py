"""What a method is made of: stages, each steps on the device with work on the host in between.

A stage knows what to optimize (`forward`, `loss`, `optimizer`), how many steps come next
(`next_block`) and what the host does after them (`after_block`). It does not know who runs it: a
driver owns the loop, the devices, checkpoints, progress and interruption, for one image or many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from cgvq_jax import devices
from cgvq_jax.fit.losses import Loss, MeanError, clamped_l2
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize.layout import PaddedImage, padded_image

BLOCK_STEPS = 50  # at most, of a block: how often progress is shown and a state can be saved


class Forward(NamedTuple):
  """The Gaussians that a step renders, the carry for the next step, and an additional loss."""

  gaussians: Gaussians
  carry: Any
  penalty: Float[Array, '']


# (params, carry, context) -> Forward: which Gaussians the parameters stand for. Pure, and jitted.
ForwardFn = Callable[[Any, Any, Any], Forward]


def unquantized(params: Gaussians, carry: Any, context: Any) -> Forward:
  """The parameters are the Gaussians."""
  del context
  return Forward(params, carry, jnp.zeros(()))


@struct.dataclass
class FitState:
  """Everything that a step on the device reads and writes."""

  params: Any  # Gaussians, or what `forward` makes Gaussians of
  carry: Any  # state without a gradient: moving averages of codebooks, values that are quantized
  optimizer: optax.OptState
  step: Int[Array, '']  # steps done


def initial_state(params: Any, carry: Any, optimizer: optax.GradientTransformation) -> FitState:
  """The state before the first step."""
  return FitState(params, carry, devices.call(optimizer.init, params), np.int32(0))  # pyright: ignore


@struct.dataclass
class StageState:
  """Everything that changes while a stage runs: a checkpoint is exactly this pytree."""

  current: FitState
  memory: Any = ()  # what the host keeps from block to block, such as the best state so far

  @property
  def step(self) -> int:
    """Steps done."""
    return int(self.current.step)


class Progress(NamedTuple):
  """What a caller is shown after each block."""

  step: int
  loss: float  # of the block's last step
  psnr: float  # of the clamped picture after the block, dB


class NextBlock(NamedTuple):
  """The steps that come next, which share a context."""

  steps: int  # 1..BLOCK_STEPS
  context: Any  # constants of `forward`


class Stage(NamedTuple):
  """One stage of one image."""

  name: str
  num_steps: int  # in all
  target: PaddedImage
  start: StageState
  forward: ForwardFn
  optimizer: optax.GradientTransformation
  loss: Loss
  next_block: Callable[[int], NextBlock]  # steps done -> what comes next
  # (state, progress) after a block -> the state to go on from and the progress to show.
  after_block: Callable[[StageState, Progress], tuple[StageState, Progress]]
  finish: Callable[[StageState], Any]  # the last state -> what the next stage starts from


def padded_target(image: Float[np.ndarray, 'H W C'], loss: Loss) -> PaddedImage:
  """`Stage.target`, on the stage's devices.

  A loss that is a mean over samples leaves out those of the padding. Another sees the image as it
  is, and each size has its own programs.
  """
  exactly = not isinstance(loss, MeanError)
  return devices.place(padded_image(np.asarray(image), exactly=exactly))


# What the stage before finished with (None for the first) -> the stage.
MakeStage = Callable[[Any], Stage]
Stages = Sequence[MakeStage]


def blocks_of(num_steps: int, context: Any = None) -> Callable[[int], NextBlock]:
  """`Stage.next_block` of a stage whose steps all have one context."""
  return lambda done: NextBlock(min(BLOCK_STEPS, num_steps - done), context)


def unchanged(state: StageState, progress: Progress) -> tuple[StageState, Progress]:
  """`Stage.after_block` of a stage that leaves the host nothing to do."""
  return state, progress


def plain_stage(
  start: FitState,
  target: Float[np.ndarray, 'H W C'],
  steps: int,
  *,
  optimizer: optax.GradientTransformation,
  loss: Loss = clamped_l2,
  forward: ForwardFn = unquantized,
  context: Any = None,
  after_block: Callable[[StageState, Progress], tuple[StageState, Progress]] = unchanged,
) -> Stage:
  """A stage of optimizer steps and nothing else; finishes with the parameters."""
  return Stage(
    name='fit',
    num_steps=steps,
    target=padded_target(target, loss),
    start=StageState(start),
    forward=forward,
    optimizer=optimizer,
    loss=loss,
    next_block=blocks_of(steps, context),
    after_block=after_block,
    finish=lambda state: state.current.params,
  )
