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
import optax
from flax import struct
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from cgvq_jax import cores
from cgvq_jax.losses import Loss, MeanError, l2
from cgvq_jax.rasterize.api import validate
from cgvq_jax.rasterize.tiles import bin_gaussians, initial_capacity, round_capacity
from cgvq_jax.rasterize.xla import (
  BLOCK,
  compiler_options,
  mean_error,
  own_share,
  rasterize_binned,
  tile_target,
)
from cgvq_jax.types import Gaussians

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


class FitError(RuntimeError):
  """The fit cannot go on: a value that is not finite, with the step and the attribute."""


def rates(mean_xy: float, log_scale: float, rotation: float, color: float) -> Any:
  """Learning rates, one an attribute, in its own unit a step: px, log px, radians, colour."""
  each: dict[str, Any] = {'mean_xy': mean_xy, 'log_scale': log_scale}
  return Gaussians(**each, rotation=rotation, color=color)  # pyright: ignore[reportArgumentType]


RATES = rates(mean_xy=0.8, log_scale=0.16, rotation=0.16, color=0.04)


@lru_cache
def adam(
  rates: Any = None,
  steps: int = 1000,
  *,
  b2: float = 0.94,
  final: float = 0.1,
  preconditioner: Callable[[], optax.GradientTransformation] | None = None,
) -> optax.GradientTransformation:
  """Adam with one learning rate an attribute and a cosine decay to `final` of it over `steps`.

  `rates` is a prefix of the parameters' tree (default: RATES); eight times the usual rates, with
  a short second-moment memory (b2), fit several times faster. `preconditioner` replaces Adam's
  scaling (`optax.scale_by_adan` for Adan). Cached, so that equal arguments compile once.
  """
  rates = RATES if rates is None else rates
  scaling = preconditioner() if preconditioner else optax.scale_by_adam(b2=b2, eps=1e-15)

  def per_attribute(updates, params):
    del params
    return jax.tree.map(
      lambda rate, subtree: jax.tree.map(lambda u: rate * u, subtree), rates, updates
    )

  schedule = optax.cosine_decay_schedule(-1.0, steps, alpha=final)
  return optax.chain(scaling, optax.stateless(per_attribute), optax.scale_by_schedule(schedule))


def initial_state(params: Any, carry: Any, optimizer: optax.GradientTransformation) -> FitState:
  """The state before the first step."""
  return FitState(params, carry, optimizer.init(params), jnp.zeros((), jnp.int32))


def _nonfinite(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: ~jnp.all(jnp.isfinite(leaf)), tree)


@lru_cache
def _block_program():
  # Made at the first call: which options apply is known once the backend is.
  def program(state, context, target, **static):
    # Each device bins and renders its share of the image and does all the rest: what is small is
    # done sooner than sent. All get the same gradient, so their states stay equal.
    return cores.together(partial(_run_block, **static))(state, context, target)

  static = ('forward', 'loss', 'optimizer', 'steps', 'room')
  return jax.jit(program, static_argnames=static, compiler_options=compiler_options())


class Room(NamedTuple):
  """Static sizes of a program, which grow when a picture needs more: no Gaussian is dropped."""

  pairs: Any  # of a core's tile lists
  chunks: Any  # of a tile, where tiles are rendered and pulled back one by one

  def holds(self, needed: Room) -> Any:
    return (needed.pairs <= self.pairs) & (needed.chunks <= self.chunks)

  def grown(self, needed: Room) -> Room:
    """With some to spare; chunks in powers of two, since whole tiles have to fill a block."""
    pairs, chunks = self
    if needed.pairs > pairs:
      pairs = round_capacity(int(1.1 * needed.pairs))
    if needed.chunks > chunks:
      chunks = 2 << needed.chunks.bit_length()
    return Room(pairs, chunks)


def first_room(num_gaussians: int, height: int, width: int) -> Room:
  """A guess for each core's lists, which hold a share of the pairs."""
  size = cores.mesh().size
  return Room(initial_capacity(-(-num_gaussians // size), -(-height // size), width), BLOCK)


# A block of more chunks (64 MiB of weights) is not worth it: two passes take bounded memory.
_MOST_CHUNKS = 4096


def _value_and_gradient(loss: Loss, target, axis: str | None, chunks: int):
  """(gaussians, bins) -> the loss and its gradient by the Gaussians."""
  if isinstance(loss, MeanError) and chunks <= _MOST_CHUNKS:
    tiled = tile_target(target, axis=axis, block=chunks)
    return partial(mean_error, loss.error, tiled, axis=axis)
  height, width, _ = target.shape

  def objective(gaussians, bins):
    return loss(rasterize_binned(gaussians, bins, height, width, axis=axis), target)

  return jax.value_and_grad(objective)


@MeanError
def _clamped_l2(image, target):
  return (jnp.clip(image, 0.0, 1.0) - target) ** 2


def _run_block(state, context, target, *, forward, loss, optimizer, steps, room: Room, axis):
  height, width, _ = target.shape
  share = own_share(axis)
  objective = _value_and_gradient(loss, target, axis, room.chunks)

  def make_bins(gaussians, before: Room):
    bins = bin_gaussians(gaussians, height, width, room.pairs, share)
    return bins, jax.tree.map(jnp.maximum, before, Room(bins.num_pairs, bins.most_chunks))

  def step(carried, _):
    state, needed = carried
    (gaussians, penalty), pullback, carry = jax.vjp(
      lambda params: (lambda f: ((f.gaussians, f.penalty), f.carry))(
        forward(params, state.carry, context)
      ),
      state.params,
      has_aux=True,
    )
    bins, needed = make_bins(gaussians, needed)
    value, gradient = objective(gaussians, bins)
    value += penalty
    (gradient,) = pullback((gradient, jnp.ones_like(penalty)))
    with jax.named_scope('update'):
      updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
      params = optax.apply_updates(state.params, updates)
    state = FitState(params, carry, optimizer_state, state.step + 1)
    # What is not finite counts as long as the lists were complete; else the block is run again.
    wrong = jax.tree.map(lambda flag: flag & room.holds(needed), _nonfinite((value, gradient)))
    return (state, needed), (value, wrong)

  nothing = Room(*jnp.zeros(2, jnp.int32))
  (state, needed), (losses, wrong) = lax.scan(step, (state, nothing), length=steps)
  gaussians = forward(state.params, state.carry, context).gaussians
  bins, needed = make_bins(gaussians, needed)
  mse, _ = _value_and_gradient(_clamped_l2, target, axis, room.chunks)(gaussians, bins)
  psnr = -10 * jnp.log10(mse)
  if axis:
    needed, wrong = lax.pmax(needed, axis), lax.pmin(wrong, axis)
  return state, losses, wrong, psnr, needed


def _raise_if_not_finite(wrong, first_step: int) -> None:
  """Names the first step and the attributes whose gradient was not finite."""
  leaves = jax.tree_util.tree_leaves_with_path(wrong)
  flags = jnp.stack([flag for _, flag in leaves], axis=-1)
  if not bool(jnp.any(flags)):
    return
  at = int(jnp.argmax(jnp.any(flags, axis=-1)))
  _, gradient = wrong
  leaves = jax.tree_util.tree_leaves_with_path(gradient)
  names = [jax.tree_util.keystr(path).lstrip('.') for path, flag in leaves if bool(flag[at])]
  where = ', '.join(names) if names else 'the loss'
  raise FitError(f'not finite at step {first_step + at}: gradient of {where}')


def _placed(state, context, target, forward):
  """A block's arguments on every core, and a first guess at its room; checks the sizes."""
  everywhere = NamedSharding(cores.mesh(), P())
  target = jnp.asarray(target, jnp.float32)
  state, context, target = jax.device_put((state, context, target), everywhere)
  gaussians = jax.eval_shape(forward, state.params, state.carry, context).gaussians
  height, width, channels = target.shape
  validate(gaussians, height, width)
  if channels != gaussians.num_channels:
    raise ValueError(f'target: wanted {gaussians.num_channels} channels, got {channels}')
  return (state, context, target), first_room(gaussians.num_gaussians, height, width)


def lower_block(
  state: FitState,
  target: Float[Array, 'H W C'],
  *,
  optimizer: optax.GradientTransformation,
  loss: Loss = l2,
  forward: ForwardFn = free,
  context: Any = None,
):
  """The program of a first block of `run`, to be compiled and looked into, and its arguments."""
  arguments, room = _placed(state, context, target, forward)
  static = {'forward': forward, 'loss': loss, 'optimizer': optimizer}
  lowered = _block_program().lower(*arguments, **static, steps=BLOCK_STEPS, room=room)
  return lowered, arguments


def run(
  state: FitState,
  target: Float[Array, 'H W C'],
  *,
  steps: int,
  optimizer: optax.GradientTransformation,
  loss: Loss = l2,
  forward: ForwardFn = free,
  context: Any = None,
  on_block: Callable[[FitState, Progress], None] | None = None,
) -> FitState:
  """Goes on from `state` until `steps` steps are done; calls `on_block` after every block.

  A run that was stopped after a block and goes on from its state gives the very same result.
  Raises FitError on NaN, ValueError on sizes that do not fit each other.
  """
  (state, context, target), room = _placed(state, context, target, forward)
  done = int(state.step)
  while done < steps:
    block = min(BLOCK_STEPS, steps - done)
    after, losses, wrong, psnr, needed = _block_program()(
      state,
      context,
      target,
      forward=forward,
      loss=loss,
      optimizer=optimizer,
      steps=block,
      room=room,
    )
    _raise_if_not_finite(wrong, done)
    needed = Room(*map(int, needed))
    if not room.holds(needed):
      room = room.grown(needed)
      continue  # from the block's start
    state, done = after, done + block
    if on_block:
      on_block(_on_one_device(state), Progress(done, float(losses[-1]), float(psnr)))
  return _on_one_device(state)


def _on_one_device(tree: Any) -> Any:
  """For callers, who would not expect arrays of several devices to come out of a fit."""
  return jax.device_put(tree, jax.local_devices()[0])


def fit(
  gaussians: Gaussians,
  target: Float[Array, 'H W C'],
  *,
  steps: int = 1000,
  loss: Loss = l2,
  optimizer: optax.GradientTransformation | None = None,
  on_block: Callable[[FitState, Progress], None] | None = None,
) -> Gaussians:
  """Fits free Gaussians to an image in 0..1, [H, W, C]; raises FitError, ValueError."""
  optimizer = optimizer or adam(steps=steps)
  state = initial_state(gaussians, (), optimizer)
  state = run(state, target, steps=steps, optimizer=optimizer, loss=loss, on_block=on_block)
  return state.params
