"""The device step: a jitted block of optimizer steps, with more capacity where lists overflow.

The same block fits free Gaussians and fine-tunes quantized ones, by the stage's `forward`. A block
in which some step's tile lists outgrew their capacity is run again from its start with more, so no
Gaussian is ever dropped.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from cgvq_jax import devices
from cgvq_jax.fit.losses import Loss, MeanError
from cgvq_jax.fit.stages import BLOCK_STEPS, FitState, ForwardFn, Progress, Stage
from cgvq_jax.rasterize import api, limits
from cgvq_jax.rasterize.layout import PaddedImage, tile_target
from cgvq_jax.rasterize.tiles import (
  BLOCK,
  TILE,
  Capacity,
  TileShape,
  bin_gaussians,
  grow_until_it_fits,
  initial_capacity,
  own_share,
)


class FitError(RuntimeError):
  """The fit cannot go on: a value that is not finite, with the step and the attribute."""


def _nonfinite(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: ~jnp.all(jnp.isfinite(leaf)), tree)


def _block_on_devices(state, context, target, steps, **static):
  # Each device bins and renders its share of the image, and repeats everything else: small work
  # is done faster than it is sent. All get the same gradient, so their states stay equal.
  return devices.over_devices(partial(block, **static))(state, context, target, steps)


def first_capacity(
  num_gaussians: int, height: int, width: int, shape: TileShape = TILE
) -> Capacity:
  """A guess for each device's lists, which hold a share of the pairs."""
  size = devices.mesh().size
  count, rows = -(-num_gaussians // size), -(-height // size)
  return Capacity(initial_capacity(count, rows, width, shape), BLOCK)


# A block of more chunks (64 MiB of weights) is not worth it: two passes take bounded memory.
_MOST_CHUNKS = 4096


def _squared_error(image, target):
  return (jnp.clip(image, 0.0, 1.0) - target) ** 2


def _value_and_gradient(loss: Loss, target: PaddedImage, chunks: int, shape: TileShape, **how):
  """(gaussians, bins) -> the loss and the mean squared error of the clamped image, [2], and the
  loss's gradient by the Gaussians."""
  if isinstance(loss, MeanError) and chunks <= _MOST_CHUNKS:
    tiled = tile_target(target, axis=how['axis'], block=chunks, tile_shape=shape)

    def errors(image, target):
      return loss.error(image, target), _squared_error(image, target)

    return partial(api.mean_errors, errors, tiled, **how)
  pixels = target.pixels  # without padding, unless there are too many chunks
  height, width, channels = pixels.shape

  def objective(gaussians, bins):
    image = api.rasterize_binned(gaussians, bins, height, width, **how)
    if isinstance(loss, MeanError):
      counted = target.inside[..., None]
      share = counted / (target.size.height * target.size.width * channels)
      value = jnp.sum(jnp.where(counted, loss.error(image, pixels), 0) * share)
    else:
      share, value = 1 / pixels.size, loss(image, pixels)
    return value, jnp.stack([value, jnp.sum(share * _squared_error(image, pixels))])

  def values_and_gradient(gaussians, bins):
    (_, values), gradient = jax.value_and_grad(objective, has_aux=True)(gaussians, bins)
    return values, gradient

  return values_and_gradient


class Block(NamedTuple):
  """The result of a block of steps. Only `needed` is valid where it exceeds the capacity."""

  state: FitState
  loss: Float[Array, '']  # of the last step
  wrong: Any  # of the loss and the gradient's leaves: at which steps they were not finite
  psnr: Float[Array, '']  # of the clamped render after the block, dB
  needed: Capacity


def block(
  state: FitState,
  context: Any,
  target: PaddedImage,
  steps: Int[Array, ''] | int,
  *,
  forward: ForwardFn,
  loss: Loss,
  update: optax.TransformUpdateFn,
  capacity: Capacity,
  implementation: str | None = None,
  tile_shape: TileShape | None = None,
  axis: str | None = None,
) -> Block:
  """At most BLOCK_STEPS steps from `state`, as a pure function: what `run_block` jits.

  One program does any number of steps and rasterizes in one place, since the rasterizer is most of
  what there is to compile: a last iteration of the same loop measures the state after the steps,
  and changes nothing.

  Public for drivers that jit it another way, such as over a batch of images by `jax.vmap`. Within
  a `shard_map` over `axis` its devices share the image. `update` is the optimizer's.
  """
  height, width, _ = target.pixels.shape
  share, shape = own_share(axis), tile_shape or api.tile_shape(implementation)
  how = {'axis': axis, 'implementation': implementation}
  objective = _value_and_gradient(loss, target, capacity.chunks, shape, **how)

  def make_bins(gaussians, before: Capacity):
    bins = bin_gaussians(gaussians, height, width, capacity.pairs, share, shape, target.size)
    return bins, jax.tree.map(jnp.maximum, before, Capacity(bins.num_pairs, bins.most_chunks))

  def iteration(i, before: Block):
    state = before.state
    (gaussians, penalty), pullback, carry = jax.vjp(
      lambda params: (lambda f: ((f.gaussians, f.penalty), f.carry))(
        forward(params, state.carry, context)
      ),
      state.params,
      has_aux=True,
    )
    bins, needed = make_bins(gaussians, before.needed)
    (value, mse), gradient = objective(gaussians, bins)
    value += penalty
    (gradient,) = pullback((gradient, jnp.ones_like(penalty)))
    with jax.named_scope('update'):
      updates, optimizer_state = update(gradient, state.optimizer, state.params)
      params = optax.apply_updates(state.params, updates)
    stepped = FitState(params, carry, optimizer_state, state.step + 1)
    # What is not finite counts as long as the lists were complete; else the block is run again.
    wrong = jax.tree.map(
      lambda flags, flag: flags.at[i].set(flag & capacity.holds(needed)),
      before.wrong,
      _nonfinite((value, gradient)),
    )
    state, value = jax.tree.map(
      lambda new, old: jnp.where(i < steps, new, old), (stepped, value), (state, before.loss)
    )
    return Block(state, value, wrong, -10 * jnp.log10(mse), needed)

  never = jnp.zeros(BLOCK_STEPS + 1, bool)
  wrong = jax.tree.map(lambda _: never, (0, state.params))
  nothing = Capacity(*jnp.zeros(2, jnp.int32))
  start = Block(state, jnp.zeros(()), wrong, jnp.zeros(()), nothing)
  after = lax.fori_loop(0, steps + 1, iteration, start)
  if axis:
    needed, wrong = lax.pmax(after.needed, axis), lax.pmin(after.wrong, axis)
    after = after._replace(needed=needed, wrong=wrong)
  return after


def _raise_if_not_finite(wrong, first_step: int) -> None:
  """Names the first step and the attributes whose gradient was not finite."""
  wrong = jax.tree.map(np.asarray, wrong)
  flags = np.stack(jax.tree.leaves(wrong), axis=-1)
  if not np.any(flags):
    return
  at = int(np.argmax(np.any(flags, axis=-1)))
  _, gradient = wrong
  leaves = jax.tree_util.tree_leaves_with_path(gradient)
  names = [jax.tree_util.keystr(path).lstrip('.') for path, flag in leaves if bool(flag[at])]
  where = ', '.join(names) if names else 'the loss'
  raise FitError(f'not finite at step {first_step + at}: gradient of {where}')


def _first_capacity(stage: Stage, state: FitState, context: Any, name: str | None) -> Capacity:
  """A first guess. Raises ValueError where sizes do not fit each other."""
  gaussians = jax.eval_shape(stage.forward, state.params, state.carry, context).gaussians
  height, width = int(stage.target.size.height), int(stage.target.size.width)
  channels = stage.target.pixels.shape[-1]
  limits.validate(gaussians, height, width)
  if channels != gaussians.num_channels:
    raise ValueError(f'target: wanted {gaussians.num_channels} channels, got {channels}')
  return first_capacity(gaussians.num_gaussians, height, width, api.tile_shape(name))


def _arguments(stage: Stage, state: FitState, name: str | None) -> tuple[Any, dict[str, Any]]:
  """What the block program takes: placed arrays, and static values."""
  count, context = stage.next_block(int(state.step))
  arrays = devices.place((state, context, stage.target, np.int32(count)))
  static = {'forward': stage.forward, 'loss': stage.loss, 'update': stage.optimizer.update}
  return arrays, {**static, 'implementation': name}


def lower_block(stage: Stage, *, implementation: str | None = None):
  """The program of a stage's first block, to be compiled and looked into, and its arguments."""
  name = api.chosen(implementation, from_lists=True)
  arguments, static = _arguments(stage, stage.start.current, name)
  capacity = _first_capacity(stage, arguments[0], arguments[1], name)
  program = jax.jit(partial(_block_on_devices, **static, capacity=capacity))
  return program.lower(*arguments), arguments


def run_block(
  stage: Stage,
  state: FitState,
  capacity: Capacity | None = None,
  *,
  implementation: str | None = None,
) -> tuple[FitState, Progress, Capacity]:
  """The steps that come next in a stage; the capacity returned is for the block after it.

  `implementation` is the rasterizer's, as for `rasterize.api`. Raises FitError on NaN, ValueError
  on sizes that do not fit each other and on an unknown implementation.
  """
  name = api.chosen(implementation, from_lists=True)
  arguments, static = _arguments(stage, state, name)
  capacity = capacity or _first_capacity(stage, arguments[0], arguments[1], name)
  done, (count, _) = int(state.step), stage.next_block(int(state.step))

  def attempt(capacity: Capacity) -> tuple[Block, Capacity]:
    after = devices.call(_block_on_devices, *arguments, **static, capacity=capacity)
    _raise_if_not_finite(after.wrong, done)
    return after, Capacity(*map(int, after.needed))

  after, capacity = grow_until_it_fits(capacity, attempt)
  return after.state, Progress(done + count, float(after.loss), float(after.psnr)), capacity
