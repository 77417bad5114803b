"""Fitting: what it reaches, that it repeats and resumes bit for bit, overflow, NaN, one trace."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import raster_scenes

from cgvq_jax import devices
from cgvq_jax.fit import blocks, driver, initialize, losses, optimizers, stages
from cgvq_jax.fit.api import fit_image
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import api, layout, tiles

STEPS, NUM_GAUSSIANS = 3 * stages.BLOCK_STEPS, 300
ATTRIBUTES = ('mean_xy', 'log_scale', 'rotation', 'color')
OPTIMIZER = optimizers.adam(STEPS)


@pytest.fixture(scope='module')
def target():
  return jnp.asarray(raster_scenes.photograph(96, 96))


@pytest.fixture(scope='module')
def start(target):
  return initialize.gradient_guided(jax.random.key(0), target, NUM_GAUSSIANS)


def run(gaussians, target, steps=STEPS, optimizer=OPTIMIZER, state=None, between=None, **options):
  """The last state, and what `on_block` was given."""
  seen = []
  implementation = options.pop('implementation', None)
  state = stages.initial_state(gaussians, (), optimizer) if state is None else state

  def after_block(state, progress):
    if between and progress.step < steps:
      state = state.replace(current=between(state.current, target))
    return state, progress

  stage = stages.plain_stage(
    state, target, steps, optimizer=optimizer, after_block=after_block, **options
  )

  def on_block(stage, state, progress):
    seen.append((state.current, progress))

  hooks = driver.Hooks(on_block=on_block)
  return driver.run_stage(stage, hooks, implementation=implementation).current, seen


@pytest.fixture(scope='module')
def adam_run(start, target):
  return run(start, target)


def image_of(gaussians, target):
  height, width, _ = target.shape
  return np.asarray(api.rasterize(gaussians, height, width))


def psnr_of(gaussians, target):
  error = np.clip(image_of(gaussians, target), 0, 1) - np.asarray(target)
  return -10 * np.log10(np.mean(error.astype(np.float64) ** 2))


def assert_same_bits(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


# --- what it reaches ---


@pytest.mark.accelerated
def test_adam_reaches_the_photograph(adam_run, start, target):
  state, _ = adam_run
  assert psnr_of(start, target) < 25
  assert psnr_of(state.params, target) > 34


@pytest.mark.accelerated
def test_adan_reaches_the_photograph(start, target):
  optimizer = optimizers.adam(STEPS, preconditioner=optimizers.scale_by_adan)
  state, _ = run(start, target, optimizer=optimizer)
  assert psnr_of(state.params, target) > 31


@pytest.mark.slow
@pytest.mark.parametrize('name', ['l1', 'l1_ssim', 'feature'])
def test_other_losses_reach_the_photograph(name, start, target):
  state, _ = run(start, target, loss=getattr(losses, name))
  assert psnr_of(state.params, target) > 33


@pytest.mark.slow
@pytest.mark.accelerated
def test_random_start_reaches_the_photograph(target):
  gaussians = initialize.random(jax.random.key(0), target, NUM_GAUSSIANS)
  assert psnr_of(run(gaussians, target)[0].params, target) > 28


def test_progress_is_shown_after_each_block(adam_run, target):
  state, seen = adam_run
  assert [p.step for _, p in seen] == [int(s.step) for s, _ in seen] == [50, 100, 150]
  assert_same_bits(seen[-1][0], state)
  for block_state, progress in seen:
    assert progress.psnr == pytest.approx(psnr_of(block_state.params, target), abs=1e-2)
    # The loss is the last step's, before its update.
    assert -10 * np.log10(progress.loss) == pytest.approx(progress.psnr, abs=1)
  assert seen[0][1].psnr < seen[1][1].psnr < seen[2][1].psnr


def test_an_image_is_fitted_from_a_fresh_state(adam_run, target):
  shown = []
  settings = FitSettings(steps=STEPS, densifier='none')
  hooks = driver.Hooks(on_block=lambda stage, state, progress: shown.append(progress))
  gaussians = fit_image(target, NUM_GAUSSIANS, settings, hooks)
  # In more rows, and XLA computes the last digit of loops of another length differently.
  for attribute in ATTRIBUTES:
    got, want = (getattr(g, attribute) for g in (gaussians, adam_run[0].params))
    np.testing.assert_allclose(got, want, atol=1e-2)
  assert [p.step for p in shown] == [p.step for _, p in adam_run[1]]
  assert shown[-1].psnr == pytest.approx(adam_run[1][-1][1].psnr, abs=0.01)


def test_steps_are_those_of_the_plain_definition():
  """Blocks, tile lists, several devices and the backward pass by hand change nothing."""
  scene, steps = raster_scenes.random(), 40
  target = jnp.asarray(raster_scenes.photograph(scene.height, scene.width))
  rates = Gaussians(mean_xy=300.0, log_scale=10.0, rotation=10.0, color=10.0)
  optimizer = optimizers.adam(
    steps, rates, frame=optimizers.pixel_frame, preconditioner=optax.identity
  )

  @jax.jit
  def plain(gaussians):
    def step(carried, _):
      gaussians, optimizer_state = carried
      gradient = jax.grad(
        lambda g: losses.clamped_l2(
          api.rasterize(g, *target.shape[:2], implementation='reference'), target
        )
      )(gaussians)
      updates, optimizer_state = optimizer.update(gradient, optimizer_state, gaussians)
      return (optax.apply_updates(gaussians, updates), optimizer_state), None

    return jax.lax.scan(step, (gaussians, optimizer.init(gaussians)), length=steps)[0][0]

  want = plain(scene.gaussians)
  got, _ = run(scene.gaussians, target, steps, optimizer)
  moved = np.linalg.norm(want.mean_xy - scene.gaussians.mean_xy, axis=-1)
  assert np.sum(moved > 2) >= 5  # their lists changed on the way
  for attribute in ATTRIBUTES:
    np.testing.assert_allclose(
      getattr(got.params, attribute), getattr(want, attribute), atol=2e-3, err_msg=attribute
    )


def test_one_device_and_several_agree(adam_run, monkeypatch):
  several = devices.mesh()
  assert several.size == jax.device_count() > 1
  first_devices = {device for leaf in jax.tree.leaves(adam_run[0]) for device in leaf.devices()}
  assert first_devices == {jax.devices()[0]}  # whoever takes the state on need not know of it
  # Plain gradient descent: Adam would turn the rounding of a gradient near 0 into a whole step.
  scene, steps = raster_scenes.random(), 20
  image = jnp.asarray(raster_scenes.photograph(scene.height, scene.width))
  rates = Gaussians(mean_xy=300.0, log_scale=10.0, rotation=10.0, color=10.0)
  optimizer = optimizers.adam(
    steps, rates, frame=optimizers.pixel_frame, preconditioner=optax.identity
  )
  want, _ = run(scene.gaussians, image, steps, optimizer)
  monkeypatch.setattr(
    devices, 'mesh', lambda: jax.sharding.Mesh(jax.devices()[:1], (devices.AXIS,))
  )
  got, _ = run(scene.gaussians, image, steps, optimizer)
  assert np.linalg.norm(want.params.mean_xy - scene.gaussians.mean_xy, axis=-1).max() > 2
  for attribute in ATTRIBUTES:
    np.testing.assert_allclose(
      getattr(got.params, attribute), getattr(want.params, attribute), atol=1e-3, err_msg=attribute
    )


# --- the same bits ---


@pytest.mark.accelerated
def test_same_start_same_bits(adam_run, start, target):
  assert_same_bits(run(start, target)[0], adam_run[0])


@pytest.mark.parametrize('stopped_after', [0, 1])
@pytest.mark.accelerated
def test_a_stopped_run_goes_on_to_the_same_bits(adam_run, start, target, stopped_after):
  # Through the host and plain arrays, as a checkpoint takes it.
  whole, seen = adam_run
  state = jax.tree.map(np.array, jax.device_get(seen[stopped_after][0]))
  resumed, later = run(start, target, state=state)
  assert_same_bits(resumed, whole)
  assert [p for _, p in later] == [p for _, p in seen[stopped_after + 1 :]]


def test_a_finished_run_takes_no_step(adam_run, start, target):
  state, seen = run(start, target, state=adam_run[0])
  assert seen == []
  assert_same_bits(state, adam_run[0])


def test_between_blocks_the_state_may_change(start, target):
  called = []

  def between(state, image):
    called.append(int(state.step))
    np.testing.assert_array_equal(image, target)
    return state.replace(params=state.params.replace(color=state.params.color + len(called)))

  state, seen = run(start, target, between=between)
  assert called == [50, 100]  # and not after the last
  # `on_block` gets the changed state, from which a stopped run goes on.
  assert seen[0][0].params.color.min() > 0.3 and seen[1][0].params.color.max() > 2
  assert_same_bits(seen[-1][0], state)
  again = {'state': seen[1][0], 'between': lambda state, image: pytest.fail('called again')}
  assert_same_bits(run(start, target, **again)[0], state)


# --- overflow ---


grown = tiles.Capacity.grown


def test_overflow_runs_the_block_again_with_more_capacity(adam_run, start, target, monkeypatch):
  # Capacity for the lists of one core for the block's first step, but not for all that follow.
  def needed(gaussians):
    shares = [tiles.Share(rank, devices.mesh().size) for rank in range(devices.mesh().size)]
    return max(int(tiles.bin_gaussians(gaussians, 96, 96, 8192, s).num_pairs) for s in shares)

  first, last = needed(start), needed(adam_run[1][0][0].params)
  capacity, asked = (first + last) // 2, []
  assert min(first, last) < capacity < max(first, last)

  def spy(num_pairs):
    asked.append((num_pairs, round_capacity(num_pairs)))
    return asked[-1][1]

  round_capacity = tiles.round_capacity
  monkeypatch.setattr(tiles, 'round_capacity', spy)
  monkeypatch.setattr(blocks, 'initial_capacity', lambda *sizes: capacity)
  state, seen = run(start, target, stages.BLOCK_STEPS)
  assert asked and all(capacity < wanted <= got for wanted, got in asked)
  assert [p.step for _, p in seen] == [state.step] == [50]  # one block is shown, not two
  assert seen[0][1].psnr == pytest.approx(adam_run[1][0][1].psnr, abs=1e-3)


def assert_like_before(run, adam_run):
  """One block that ended as the module's run did, up to the order of sums."""
  state, seen = run
  assert [p.step for _, p in seen] == [state.step] == [50]
  assert seen[0][1].psnr == pytest.approx(adam_run[1][0][1].psnr, abs=0.02)


def test_a_tile_with_more_chunks_runs_the_block_again(adam_run, start, target, monkeypatch):
  asked = []
  monkeypatch.setattr(blocks, 'BLOCK', 1)
  monkeypatch.setattr(blocks, 'initial_capacity', lambda *sizes: 8192)  # more than enough
  monkeypatch.setattr(
    tiles.Capacity,
    'grown',
    lambda capacity, needed: asked.append(needed) or grown(capacity, needed),
  )
  assert_like_before(run(start, target, stages.BLOCK_STEPS), adam_run)
  assert len(asked) == 1 and asked[0].chunks > 1


def test_too_many_chunks_in_a_tile_are_rendered_in_two_passes(adam_run, start, target, monkeypatch):
  def nothing(*arguments, **options):
    raise AssertionError('tile by tile')

  monkeypatch.setattr(blocks, '_MOST_CHUNKS', 2)
  monkeypatch.setattr(blocks.api, 'mean_errors', nothing)
  devices.drop_programs()  # or a program that is there already would run
  assert_like_before(run(start, target, stages.BLOCK_STEPS), adam_run)
  devices.drop_programs()


def test_a_loss_of_samples_and_of_the_image_fit_alike(adam_run, start, target):
  whole = run(
    start, target, stages.BLOCK_STEPS, loss=lambda image, target: losses.clamped_l2(image, target)
  )
  assert_like_before(whole, adam_run)


@pytest.mark.parametrize('implementation', ['xla', 'pallas_interpret'])
def test_any_rasterizer_fits_alike(adam_run, start, target, implementation):
  state, seen = run(start, target, stages.BLOCK_STEPS, implementation=implementation)
  assert state.step == 50  # another order of sums, fifty large steps on
  assert seen[0][1].psnr == pytest.approx(adam_run[1][0][1].psnr, abs=0.2)


@pytest.mark.parametrize('name', ['cuda', 'reference'])
def test_a_fit_wants_a_rasterizer_that_works_from_lists(start, target, name, monkeypatch):
  with pytest.raises(ValueError, match=f"implementation='{name}': wanted one of .*'xla'"):
    run(start, target, 1, implementation=name)
  monkeypatch.setenv('CGVQ_RASTERIZER', name)
  with pytest.raises(ValueError, match=f"CGVQ_RASTERIZER={name}: wanted one of .*'xla'"):
    run(start, target, 1)


@pytest.mark.accelerated
def test_blocks_of_a_batch_of_images_are_those_of_each(start, target):
  optimizer = optimizers.adam(50)
  options = {
    'forward': stages.unquantized,
    'loss': losses.l2,
    'update': optimizer.update,
    'steps': 1,
  }
  height, width, _ = target.shape
  capacity = blocks.first_capacity(start.num_gaussians, height, width)
  capacity = capacity._replace(pairs=4 * capacity.pairs)  # one device has what several would share
  block = functools.partial(blocks.block, **options, capacity=capacity)
  # Two sizes, which share a program.
  images = [np.asarray(target), np.asarray(jnp.flip(target, 1))[:70, :93]]
  targets = [layout.padded_image(image) for image in images]
  state = stages.initial_state(start, (), optimizer)
  states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
  batch = jax.jit(jax.vmap(block, in_axes=(0, None, 0)))(
    states, None, jax.tree.map(lambda *leaves: jnp.stack(leaves), *targets)
  )
  for i in range(2):
    alone = jax.jit(block)(state, None, targets[i])
    assert alone.psnr > 5 and capacity.holds(tiles.Capacity(*map(int, alone.needed)))
    # Adam takes whole steps where a gradient is rounding alone, as by the rotation of a disc.
    assert batch.psnr[i] == pytest.approx(float(alone.psnr), abs=0.1)
    np.testing.assert_allclose(batch.loss[i], alone.loss, rtol=1e-5)


def test_what_incomplete_lists_break_is_not_held_against_the_fit(monkeypatch):
  start = Gaussians(
    mean_xy=jnp.full((4, 2), 32.0),
    log_scale=jnp.full((4, 2), 5.0),
    rotation=jnp.zeros(4),
    color=jnp.full((4, 3), 0.25),
  )

  def loss(image, target):
    # Not a number where a Gaussian was left out.
    return jnp.where(jnp.min(image) > 0.75, losses.l2(image, target), jnp.nan)

  monkeypatch.setattr(blocks, 'initial_capacity', lambda *sizes: 16)
  state, _ = run(start, jnp.ones((64, 64, 3)), 2, loss=loss)
  assert state.step == 2


@pytest.mark.slow
@pytest.mark.parametrize('side', [1, 64])
def test_half_a_million_gaussians_on_few_pixels(side):
  keys = jax.random.split(jax.random.key(0), 3)
  start = Gaussians(
    mean_xy=side * jax.random.uniform(keys[0], (500_000, 2)),
    log_scale=jnp.zeros((500_000, 2)),
    rotation=jax.random.uniform(keys[1], (500_000,)),
    color=1e-4 * jax.random.normal(keys[2], (500_000, 3)),
  )
  state, seen = run(start, jnp.full((side, side, 3), 0.5), 2)
  assert state.step == 2 and np.isfinite(seen[0][1].loss)
  assert np.all(np.isfinite(state.params.mean_xy))


# --- not finite ---


@pytest.mark.parametrize('attribute', ATTRIBUTES)
def test_nan_in_the_start_is_named(start, target, attribute):
  value = getattr(start, attribute)
  broken = start.replace(**{attribute: jnp.asarray(value).at[7].set(jnp.nan)})
  with pytest.raises(blocks.FitError, match=rf'not finite at step 0: gradient of .*{attribute}'):
    run(broken, target, stages.BLOCK_STEPS)


# What breaks the rotations is an update, so the next step finds out: or, after the last of a
# block, the measurement after it.
@pytest.mark.parametrize('at', [stages.BLOCK_STEPS + 6, 2 * stages.BLOCK_STEPS - 1])
def test_nan_on_the_way_is_named_with_its_step(at):
  scene = raster_scenes.random()
  target = jnp.asarray(raster_scenes.photograph(scene.height, scene.width))
  spoil = optax.scale_by_schedule(lambda count: jnp.where(count == at, jnp.nan, 1.0))
  rotation_only = Gaussians(False, False, True, False)
  optimizer = optax.chain(optimizers.adam(STEPS), optax.masked(spoil, rotation_only))
  shown = []
  state = stages.initial_state(scene.gaussians, (), optimizer)
  stage = stages.plain_stage(state, target, STEPS, optimizer=optimizer)
  hooks = driver.Hooks(on_block=lambda stage, state, progress: shown.append(progress.step))
  with pytest.raises(
    blocks.FitError, match=rf'not finite at step {at + 1}: gradient of .*rotation'
  ):
    driver.run_stage(stage, hooks)
  assert shown == [stages.BLOCK_STEPS]  # a block with NaN in it is not handed out


# --- one trace ---


def test_a_block_is_traced_once():
  traces = []

  def loss(image, target):
    traces.append(image.shape)
    return losses.l2(image, target)

  scene = raster_scenes.random()
  target = jnp.asarray(raster_scenes.photograph(scene.height, scene.width))
  run(scene.gaussians, target, 2 * stages.BLOCK_STEPS, loss=loss)
  once = len(traces)
  assert once <= 2  # a loop may trace its body twice
  other = raster_scenes.borders()
  # The last block is a shorter one, and so is the decay of the rates.
  optimizer = optimizers.adam(STEPS - 7)
  run(other.gaussians, 0.5 * target, STEPS - 7, optimizer, loss=loss)
  assert len(traces) == once


# --- forward functions ---


def penalized(params, carry, context):
  penalty = context['weight'] * jnp.sum(params.color**2) + context['constant']
  return stages.Forward(params, carry + context['step'], penalty)


def run_penalized(scene, **context):
  target = jnp.asarray(raster_scenes.photograph(scene.height, scene.width))
  optimizer = optimizers.adam(STEPS, optimizers.rates(0.1, 0.05, 0.05, color=0.05))
  state = stages.initial_state(scene.gaussians, jnp.zeros(()), optimizer)
  context = {name: jnp.float32(value) for name, value in context.items()}
  options = {'forward': penalized, 'context': context}
  return run(None, target, stages.BLOCK_STEPS, optimizer, state=state, **options)


def test_forward_has_a_context_a_carry_and_a_penalty():
  scene = raster_scenes.random()
  state, seen = run_penalized(scene, weight=1e3, step=2, constant=5e4)
  assert state.carry == 2 * stages.BLOCK_STEPS
  # The penalty outweighs the image: the colours go out. It is part of the loss.
  assert np.abs(state.params.color).max() < 0.1 * np.abs(scene.gaussians.color).max()
  assert seen[0][1].loss > 5e4


def test_nan_in_the_loss_alone_is_named():
  with pytest.raises(blocks.FitError, match=r'not finite at step 0: .*the loss'):
    run_penalized(raster_scenes.random(), weight=0, step=0, constant=np.nan)


# --- misuse ---


def test_impossible_gaussians_are_refused(target):
  gaussians = raster_scenes.random(channels=3).gaussians
  with pytest.raises(ValueError, match='gaussians: wanted N >= 1'):
    run(gaussians.replace(rotation=jnp.zeros(3)), target)
  with pytest.raises(ValueError, match='color channels'):
    run(raster_scenes.random(channels=2).gaussians, target[..., :2])
  for channels in ([0], [0, 1, 2, 2]):
    with pytest.raises(ValueError, match='target: wanted 3 channels'):
      run(gaussians, target[..., channels])
