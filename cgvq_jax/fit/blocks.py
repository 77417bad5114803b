"""Fitting by gradient descent: a jitted block of scanned steps, its state a frozen pytree.

The same loop fits free Gaussians and fine-tunes quantized ones: `forward(params, carry, context)`
says which Gaussians the parameters stand for. A block in which some step's tile lists outgrew their
room is run again from its start with more, so no Gaussian is ever dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cgvq_jax import devices
from cgvq_jax.fit.losses import Loss, MeanError, clamped_l2
from cgvq_jax.fit.optimizers import adam
from cgvq_jax.primitives.gaussians import Gaussians
from cgvq_jax.rasterize import api
from cgvq_jax.rasterize.layout import tile_target
from cgvq_jax.rasterize.tiles import (
  BLOCK,
  TILE,
  TileShape,
  bin_gaussians,
  initial_capacity,
  own_share,
  round_capacity,
)

BLOCK_STEPS = 50  # steps a block: how often progress is shown and a state can be saved


class Forward(NamedTuple):
  """The Gaussians that a step renders, the carry for the next step, and a loss of their own."""

  gaussians: Gaussians
  carry: Any
  penalty: Float[Array, '']


ForwardFn = Callable[[Any, Any, Any], Forward]


def free(params: Gaussians, carry: Any, context: Any) -> Forward:
  """Unquantized: the parameters are the Gaussians."""
  del context
  return Forward(params, carry, jnp.zeros(()))


@struct.dataclass
class FitState:
  """Everything a step reads and writes; saved and restored as it is."""

  params: Any  # Gaussians, or what `forward` makes Gaussians of
  carry: Any  # state without gradient: moving averages of codebooks
  optimizer: optax.OptState
  step: Int[Array, '']  # steps done


class Progress(NamedTuple):
  """What a caller learns after each block."""

  step: int
  loss: float  # of the block's last step
  psnr: float  # of the clamped render after the block, dB


# (state after a block, target) -> the state to go on from.
Between = Callable[[FitState, Float[Array, 'H W C']], FitState]


class FitError(RuntimeError):
  """The fit cannot go on: a value that is not finite, with the step and the attribute."""


def initial_state(params: Any, carry: Any, optimizer: optax.GradientTransformation) -> FitState:
  """The state before the first step."""
  return FitState(params, carry, optimizer.init(params), jnp.zeros((), jnp.int32))


def _nonfinite(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: ~jnp.all(jnp.isfinite(leaf)), tree)


@lru_cache
def _block_program():
  # Made at the first call: which options apply is known once the backend is.
  def program(state, context, target, steps, **static):
    # Each device bins and renders its share of the image and does all the rest: what is small is
    # done sooner than sent. All get the same gradient, so their states stay equal.
    return devices.over_devices(partial(block, **static))(state, context, target, steps)

  static = ('forward', 'loss', 'optimizer', 'room', 'implementation')
  return jax.jit(program, static_argnames=static, compiler_options=devices.compiler_options())


class Capacity(NamedTuple):
  """Static sizes of a program, which grow when a picture needs more: no Gaussian is dropped."""

  pairs: Any  # of a core's tile lists
  chunks: Any  # of a tile, where tiles are rendered and pulled back one by one

  def holds(self, needed: Capacity) -> Any:
    return (needed.pairs <= self.pairs) & (needed.chunks <= self.chunks)

  def grown(self, needed: Capacity) -> Capacity:
    """With some to spare; chunks in powers of two, since whole tiles have to fill a block."""
    pairs, chunks = self
    if needed.pairs > pairs:
      pairs = round_capacity(int(1.1 * needed.pairs))
    if needed.chunks > chunks:
      chunks = 2 << needed.chunks.bit_length()
    return Capacity(pairs, chunks)


def first_capacity(
  num_gaussians: int, height: int, width: int, shape: TileShape = TILE
) -> Capacity:
  """A guess for each core's lists, which hold a share of the pairs."""
  size = devices.mesh().size
  count, rows = -(-num_gaussians // size), -(-height // size)
  return Capacity(initial_capacity(count, rows, width, shape), BLOCK)


# A block of more chunks (64 MiB of weights) is not worth it: two passes take bounded memory.
_MOST_CHUNKS = 4096


def _squared_error(image, target):
  return (jnp.clip(image, 0.0, 1.0) - target) ** 2


def _value_and_gradient(loss: Loss, target, chunks: int, shape: TileShape, **how):
  """(gaussians, bins) -> the loss and the mean squared error of the clamped image, [2], and the
  loss's gradient by the Gaussians."""
  if isinstance(loss, MeanError) and chunks <= _MOST_CHUNKS:
    tiled = tile_target(target, axis=how['axis'], block=chunks, tile_shape=shape)

    def errors(image, target):
      return loss.error(image, target), _squared_error(image, target)

    return partial(api.mean_errors, errors, tiled, **how)
  height, width, _ = target.shape

  def objective(gaussians, bins):
    image = api.rasterize_binned(gaussians, bins, height, width, **how)
    value = loss(image, target)
    return value, jnp.stack([value, jnp.mean(_squared_error(image, target))])

  def values_and_gradient(gaussians, bins):
    (_, values), gradient = jax.value_and_grad(objective, has_aux=True)(gaussians, bins)
    return values, gradient

  return values_and_gradient


class Block(NamedTuple):
  """What a block of steps leaves behind. All but `needed` is void where it exceeds the room."""

  state: FitState
  loss: Float[Array, '']  # of the last step
  wrong: Any  # of the loss and the gradient's leaves: at which steps they were not finite
  psnr: Float[Array, '']  # of the clamped render after the block, dB
  needed: Capacity


def block(
  state: FitState,
  context: Any,
  target: Float[Array, 'H W C'],
  steps: Int[Array, ''] | int,
  *,
  forward: ForwardFn,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  room: Capacity,
  implementation: str | None = None,
  tile_shape: TileShape | None = None,
  axis: str | None = None,
) -> Block:
  """At most BLOCK_STEPS steps from `state`, as a pure function: what `run` jits and repeats.

  One program does any number of steps and evaluates the picture in one place, since rasterizing is
  most of what there is to compile: after the steps a last turn of the same loop measures where they
  led, and changes nothing.

  For those who want to jit it another way, such as over a batch of images by `jax.vmap`. Within a
  `shard_map` over `axis` its devices share the image.
  """
  height, width, _ = target.shape
  share, shape = own_share(axis), tile_shape or api.tile_shape(implementation)
  how = {'axis': axis, 'implementation': implementation}
  objective = _value_and_gradient(loss, target, room.chunks, shape, **how)

  def make_bins(gaussians, before: Capacity):
    bins = bin_gaussians(gaussians, height, width, room.pairs, share, shape)
    return bins, jax.tree.map(jnp.maximum, before, Capacity(bins.num_pairs, bins.most_chunks))

  def turn(i, before: Block):
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
      updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
      params = optax.apply_updates(state.params, updates)
    stepped = FitState(params, carry, optimizer_state, state.step + 1)
    # What is not finite counts as long as the lists were complete; else the block is run again.
    wrong = jax.tree.map(
      lambda flags, flag: flags.at[i].set(flag & room.holds(needed)),
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
  after = lax.fori_loop(0, steps + 1, turn, start)
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


def _placed(state, context, target, forward, implementation):
  """A block's arguments on every core, and a first guess at its room; checks the sizes."""
  everywhere = NamedSharding(devices.mesh(), P())
  target = jnp.asarray(target, jnp.float32)
  state, context, target = jax.device_put((state, context, target), everywhere)
  gaussians = jax.eval_shape(forward, state.params, state.carry, context).gaussians
  height, width, channels = target.shape
  api.validate(gaussians, height, width)
  if channels != gaussians.num_channels:
    raise ValueError(f'target: wanted {gaussians.num_channels} channels, got {channels}')
  room = first_capacity(gaussians.num_gaussians, height, width, api.tile_shape(implementation))
  return (state, context, target), room


def lower_block(
  state: FitState,
  target: Float[Array, 'H W C'],
  *,
  optimizer: optax.GradientTransformation,
  loss: Loss = clamped_l2,
  forward: ForwardFn = free,
  context: Any = None,
  implementation: str | None = None,
):
  """The program of a first block of `run`, to be compiled and looked into, and its arguments."""
  name = api.chosen(implementation, from_lists=True)
  arguments, room = _placed(state, context, target, forward, name)
  static = {'forward': forward, 'loss': loss, 'optimizer': optimizer, 'implementation': name}
  arguments = *arguments, np.int32(BLOCK_STEPS)
  return _block_program().lower(*arguments, **static, room=room), arguments


def run(
  state: FitState,
  target: Float[Array, 'H W C'],
  *,
  steps: int,
  optimizer: optax.GradientTransformation,
  loss: Loss = clamped_l2,
  forward: ForwardFn = free,
  context: Any = None,
  between: Between | None = None,
  on_block: Callable[[FitState, Progress], None] | None = None,
  implementation: str | None = None,
) -> FitState:
  """Goes on from `state` until `steps` steps are done; calls `on_block` after every block.

  `between` two blocks may change the state in any way that keeps its shapes. A run that was stopped
  after a block and goes on from its state gives the very same result.
  `implementation` is the rasterizer's, as for `rasterize.api`. Raises FitError on NaN, ValueError
  on sizes that do not fit each other and on an unknown implementation.
  """
  name = api.chosen(implementation, from_lists=True)
  everywhere = NamedSharding(devices.mesh(), P())
  (state, context, target), room = _placed(state, context, target, forward, name)
  done = int(state.step)
  while done < steps:
    count = min(BLOCK_STEPS, steps - done)
    after = _block_program()(
      state,
      context,
      target,
      np.int32(count),
      forward=forward,
      loss=loss,
      optimizer=optimizer,
      room=room,
      implementation=name,
    )
    _raise_if_not_finite(after.wrong, done)
    needed = Capacity(*map(int, after.needed))
    if not room.holds(needed):
      room = room.grown(needed)
      continue  # from the block's start
    state, done = after.state, done + count
    if between and done < steps:
      state = jax.device_put(between(*_on_one_device((state, target))), everywhere)
    if on_block:
      progress = Progress(done, float(after.loss), float(after.psnr))
      on_block(_on_one_device(state), progress)
  return _on_one_device(state)


def _on_one_device(tree: Any) -> Any:
  """For callers, who would not expect arrays of several devices to come out of a fit."""
  return jax.device_put(tree, jax.local_devices()[0])


def fit(
  gaussians: Gaussians,
  target: Float[Array, 'H W C'],
  *,
  steps: int = 1000,
  loss: Loss = clamped_l2,
  optimizer: optax.GradientTransformation | None = None,
  on_block: Callable[[FitState, Progress], None] | None = None,
  implementation: str | None = None,
) -> Gaussians:
  """Fits free Gaussians to an image in 0..1, [H, W, C]; raises FitError, ValueError."""
  optimizer = optimizer or adam(steps)
  state = initial_state(gaussians, (), optimizer)
  options = {'loss': loss, 'on_block': on_block, 'implementation': implementation}
  return run(state, target, steps=steps, optimizer=optimizer, **options).params
