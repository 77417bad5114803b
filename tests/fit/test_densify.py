"""Densification: candidates for a residual, contributions, relocation, and fits that grow."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes

from cgvq_jax.fit import densify, driver, optimizers
from cgvq_jax.fit.api import fit_image, fit_stage
from cgvq_jax.fit.driver import Hooks
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.fit.stages import BLOCK_STEPS, initial_state
from cgvq_jax.primitives.trees import Gaussians
from cgvq_jax.rasterize import layout, tiles
from cgvq_jax.rasterize.api import rasterize

HEIGHT, WIDTH = 45, 64  # not all levels of a pyramid are even
TARGET = jnp.asarray(raster_scenes.photograph(96, 96))


def one(x, y, s1, s2, rotation=0.0, color=(0.5, -0.3, 0.2)):
  return Gaussians(
    mean_xy=jnp.array([[x, y]], jnp.float32),
    log_scale=jnp.log(jnp.array([[s1, s2]], jnp.float32)),
    rotation=jnp.array([rotation], jnp.float32),
    color=jnp.array([color], jnp.float32),
  )


# Compiled as one program, as in fits: operation by operation takes as many compilations.
search = jax.jit(densify.candidates, static_argnums=1)
jitted_relocate = jax.jit(densify.relocate)
SIZE = tiles.Size(HEIGHT, WIDTH)


def candidates(residual):
  return search(residual, min(2000, residual.shape[0] * residual.shape[1]))


def relocate(state, residual, *, most, ratio, budget=None, price=np.inf, min_gain=densify.MIN_GAIN):
  """`densify.relocate`: the state, and the rows that it takes."""
  budget = state.params.num_gaussians if budget is None else budget
  terms = densify.Terms(budget, most, ratio, min_gain, 64, price)
  return jitted_relocate(state, residual, SIZE, terms.as_arrays())


def best_of(residual):
  found = candidates(residual)
  return float(found.gain[0]), jax.tree.map(lambda a: np.asarray(a[0]), found.gaussians)


@pytest.mark.parametrize('scale', [0.75, 1.5, 3.0, 6.0])
def test_a_lone_disc_is_found(scale):
  target = one(32.5, 20.5, scale, scale)
  residual = rasterize(target, HEIGHT, WIDTH)
  gain, got = best_of(residual)
  step = scale / 0.75  # px between two positions of that level
  np.testing.assert_allclose(got.mean_xy, [32.5, 20.5], atol=step / 2 + 1e-3)
  np.testing.assert_allclose(np.exp(got.log_scale), scale, rtol=0.45)
  np.testing.assert_allclose(got.color, target.color[0], rtol=0.35)
  # The nearest position may be half a step away along each axis.
  assert 0.65 * float(jnp.sum(residual**2)) < gain < 1.02 * float(jnp.sum(residual**2))


@pytest.mark.parametrize('direction', range(4))
def test_a_lone_ellipse_is_found_with_its_direction(direction):
  rotation = np.pi * direction / 4
  residual = rasterize(one(30.5, 22.5, 1.6, 0.5, rotation), HEIGHT, WIDTH)
  _, got = best_of(residual)
  assert got.log_scale[0] > got.log_scale[1]
  assert got.rotation == pytest.approx(rotation, abs=1e-5)
  np.testing.assert_allclose(got.mean_xy, [30.5, 22.5], atol=1e-3)


def test_the_gain_is_the_squared_error_that_adding_the_candidate_removes():
  residual = TARGET - jnp.roll(TARGET, (1, 2), (0, 1))  # fine detail
  found = candidates(residual)
  gains = np.asarray(found.gain)
  assert list(gains) == sorted(gains, reverse=True)
  before, checked = float(jnp.sum(residual**2)), []
  for at, gain in enumerate(gains[gains > 0]):
    added = jax.tree.map(lambda a, at=at: a[at][None], found.gaussians)
    extent = 3 * np.exp(np.max(np.asarray(added.log_scale)))
    if np.any(np.abs(np.asarray(added.mean_xy) - 48) > 48 - extent):
      continue  # the part outside of the image removes nothing
    after = float(jnp.sum((residual - rasterize(added, 96, 96)) ** 2))
    checked.append((before - after) / gain)
  assert len(checked) > 5
  # A pixel of a level is a sum of pixels, so a shape there differs a little from its rendering.
  np.testing.assert_allclose(checked, 1, atol=0.35)


def test_neighbours_of_a_better_candidate_are_no_candidates():
  residual = rasterize(one(32.5, 20.5, 1.5, 1.5), HEIGHT, WIDTH)
  found = candidates(residual)
  good = np.asarray(found.gain) > 0.3 * float(jnp.sum(residual**2))
  assert good.sum() == 1


@pytest.mark.parametrize(
  ('size', 'channels'), [((1, 1), 3), ((1, 7), 1), ((2, 3), 4), ((17, 16), 3)]
)
def test_any_size_and_channels(size, channels):
  found = candidates(jnp.ones((*size, channels)))
  assert found.gaussians.color.shape == (found.gain.size, channels)
  assert np.all(np.isfinite(found.gain)) and float(found.gain.max()) > 0


def test_contribution_is_the_squared_error_of_the_removal():
  gaussians = one(30.0, 20.0, 3.0, 1.5, 0.6)
  seen = float(jnp.sum(rasterize(gaussians, HEIGHT, WIDTH) ** 2))
  (contribution,) = densify.contribution(gaussians, SIZE)
  assert float(contribution) == pytest.approx(seen, rel=0.01)
  for x, y in ((-20.0, 20.0), (30.0, 60.0), (90.0, 20.0)):
    assert densify.contribution(one(x, y, 3.0, 1.5), SIZE)[0] == 0


def state_of(gaussians):
  state = initial_state(gaussians, (), optimizers.adam(100))
  return state.replace(optimizer=jax.tree.map(lambda a: a + 1, state.optimizer))


def test_the_smallest_contribution_takes_the_best_place_and_its_optimizer_state_is_reset():
  bright, dim = one(10, 10, 2, 2), one(50, 30, 2, 2, color=(1e-3, 0, 0))
  gaussians = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), bright, dim)
  residual = rasterize(one(30.5, 20.5, 1.5, 1.5), HEIGHT, WIDTH)
  before = state_of(gaussians)
  after, _ = relocate(before, residual, most=2, ratio=0.5)
  gain, best = best_of(residual)
  assert gain > 0.5 * densify.contribution(dim, SIZE)[0]
  for name in ('mean_xy', 'log_scale', 'rotation', 'color'):
    np.testing.assert_array_equal(getattr(after.params, name)[0], getattr(gaussians, name)[0])
    np.testing.assert_array_equal(getattr(after.params, name)[1], getattr(best, name))
  moments = [leaf for leaf in jax.tree.leaves(after.optimizer) if leaf.ndim]
  assert moments and all(np.all(leaf[0] == 1) and np.all(leaf[1] == 0) for leaf in moments)
  counts = [
    [leaf for leaf in jax.tree.leaves(s.optimizer) if not leaf.ndim] for s in (before, after)
  ]
  assert counts[0] and counts[0] == counts[1]
  assert after.step == before.step


def test_no_gaussian_is_relocated_for_too_small_a_gain():
  before = state_of(one(10, 10, 2, 2))
  small = 0.1 * rasterize(one(30.5, 20.5, 1.5, 1.5), HEIGHT, WIDTH)
  for residual in (small, jnp.zeros_like(small)):
    after, _ = relocate(before, residual, most=1, ratio=1.0)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_inactive_gaussians_are_invisible_and_are_removed_at_the_end():
  active = one(10, 10, 2, 2)
  padded = layout.with_inactive(active, 5)
  assert padded.num_gaussians == 5
  shown = rasterize(padded, HEIGHT, WIDTH)
  np.testing.assert_array_equal(shown, rasterize(active, HEIGHT, WIDTH))
  np.testing.assert_array_equal(densify.contribution(padded, SIZE)[1:], np.zeros(4))
  jax.tree.map(np.testing.assert_array_equal, densify.without_inactive(padded), active)
  assert densify.without_inactive(padded.replace(color=0 * padded.color)).num_gaussians == 1


STEPS, COUNT = 6 * BLOCK_STEPS, 300


def fitted(resume=lambda stage, start: start, **settings):
  """The Gaussians, and what `on_block` was given."""
  seen = []
  hooks = Hooks(resume, lambda stage, state, progress: seen.append((state, progress)))
  return fit_image(TARGET, COUNT, FitSettings(steps=STEPS, **settings), hooks), seen


@pytest.fixture(scope='module')
def grown():
  return fitted()


@pytest.mark.accelerated
def test_growing_beats_all_at_once(grown):
  gaussians, blocks_done = grown
  assert gaussians.num_gaussians == COUNT
  active = [
    int(np.sum(np.any(np.asarray(s.current.params.color) != 0, -1))) for s, _ in blocks_done
  ]
  assert active == sorted(active) and active[0] < COUNT
  _, at_once = fitted(densifier=densify.none)
  assert blocks_done[-1][1].psnr > at_once[-1][1].psnr + 0.3


@pytest.mark.accelerated
def test_a_stopped_fit_grows_on_to_the_same_bits(grown):
  gaussians, blocks_done = grown
  for stopped_after in (0, 3):
    state = jax.tree.map(np.array, jax.device_get(blocks_done[stopped_after][0]))
    resumed, _ = fitted(resume=lambda stage, start, state=state: state)
    jax.tree.map(np.testing.assert_array_equal, resumed, gaussians)


def test_the_last_block_is_not_changed(grown):
  gaussians, blocks_done = grown
  rendered = np.clip(np.asarray(rasterize(gaussians, 96, 96)), 0, 1)
  psnr = -10 * np.log10(np.mean((rendered - np.asarray(TARGET)) ** 2))
  assert blocks_done[-1][1].psnr == pytest.approx(psnr, abs=1e-2)


def test_a_flat_picture_stays_flat_with_few_gaussians():
  gaussians = fit_image(jnp.full((48, 48, 3), 0.5), 400, FitSettings(steps=6 * BLOCK_STEPS))
  assert gaussians.num_gaussians < 400
  error = np.clip(np.asarray(rasterize(gaussians, 48, 48)), 0, 1) - 0.5
  assert np.abs(error).max() < 0.05


@pytest.mark.parametrize('count', [1, pytest.param(9, marks=pytest.mark.slow)])
def test_few_gaussians(count):
  steps = 2 * BLOCK_STEPS
  gaussians = fit_image(TARGET[:20, :20], count, FitSettings(steps=steps))
  assert 1 <= gaussians.num_gaussians <= count
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gaussians))


@pytest.mark.slow
@pytest.mark.accelerated
def test_a_batch_of_images_can_be_densified_at_once():
  residuals = jnp.stack([TARGET - 0.5, jnp.flip(TARGET, 1) - 0.3])
  state = state_of(layout.with_inactive(one(10, 10, 2, 2), 20))
  some = functools.partial(relocate, most=10, ratio=0.3)
  together, _ = jax.vmap(some, in_axes=(None, 0))(state, residuals)
  for i in range(2):
    alone, _ = some(state, residuals[i])
    np.testing.assert_allclose(together.params.mean_xy[i], alone.params.mean_xy, atol=1e-3)


# --- beyond the budget ---


def test_beyond_the_budget_places_that_gain_more_than_the_price_get_gaussians_of_their_own():
  bright = one(10, 10, 2, 2)
  residual = rasterize(one(30.5, 20.5, 1.5, 1.5), HEIGHT, WIDTH)
  gain, best = best_of(residual)
  state = state_of(layout.with_inactive(bright, 4))
  for price, placed in ((0.9 * gain, True), (1.1 * gain, False)):
    after, rows = relocate(state, residual, most=1, ratio=1e3, budget=1, price=price)
    assert int(rows) == 1 + placed
    for name in ('mean_xy', 'color'):
      np.testing.assert_array_equal(getattr(after.params, name)[0], getattr(bright, name)[0])
    assert np.any(after.params.color[1] != 0) == placed
    assert not np.any(after.params.color[2:])
  np.testing.assert_array_equal(
    relocate(state, residual, most=1, ratio=1e3, budget=1, price=0.9 * gain)[0].params.mean_xy[1],
    best.mean_xy,
  )


def test_a_gaussian_of_less_than_the_price_is_relocated_instead():
  gaussians = jax.tree.map(
    lambda a, b: np.concatenate([a, b]),
    one(10, 10, 2, 2),
    one(50, 30, 2, 2, color=(1e-3, 0, 0)),
  )
  residual = rasterize(one(30.5, 20.5, 1.5, 1.5), HEIGHT, WIDTH)
  state = state_of(layout.with_inactive(gaussians, 4))
  after, rows = relocate(
    state, residual, most=2, ratio=0.3, budget=2, price=best_of(residual)[0] / 2
  )
  assert int(rows) == 2 and not np.any(after.params.color[2:])
  np.testing.assert_array_equal(after.params.mean_xy[1], best_of(residual)[1].mean_xy)


NOISE = np.random.default_rng(0).random((40, 40, 3), np.float32)


def fitted_in(rows, monkeypatch):
  """A fit of noise that begins with so many rows, and its rows after each block."""
  monkeypatch.setattr(tiles, '_LEAST_GAUSSIANS', rows)
  seen = []
  hooks = Hooks(on_block=lambda stage, state, _: seen.append(len(state.current.params.color)))
  settings = FitSettings(steps=5 * BLOCK_STEPS)
  stage = [lambda _: fit_stage(jax.random.key(0), NOISE, 40, settings, 1e-3, price=1e-3)]
  return driver.run(stage, hooks), seen


def test_where_rows_are_full_there_are_more():
  residual = rasterize(one(30.5, 20.5, 1.5, 1.5), HEIGHT, WIDTH)
  before = state_of(jax.tree.map(np.asarray, one(10, 10, 2, 2)))
  shown = rasterize(before.params, HEIGHT, WIDTH)
  target = layout.padded_image(np.clip(shown + residual + 0.3, 0, 1))
  terms = densify.Terms(1, 1, 1e3, densify.MIN_GAIN, most_beyond=64, price=0.1)
  after = densify.place(before, target, terms)
  rows = tiles.round_gaussians(2)
  assert after.params.num_gaussians == rows > 1
  assert 1 < np.sum(np.any(after.params.color != 0, axis=-1)) <= 65
  np.testing.assert_array_equal(after.params.mean_xy[0], before.params.mean_xy[0])
  moments = [leaf for leaf in jax.tree.leaves(after.optimizer) if leaf.ndim]
  assert moments and all(
    len(m) == rows and np.all(m[0] == 1) and not np.any(m[1:]) for m in moments
  )


@pytest.mark.slow
def test_a_fit_that_outgrows_its_rows_goes_on_in_more(monkeypatch):
  gaussians, rows = fitted_in(128, monkeypatch)
  assert rows[0] == 128 < rows[-1] and gaussians.num_gaussians > 128


@pytest.mark.slow
def test_a_fit_does_not_depend_on_its_rows(monkeypatch):
  few, rows = fitted_in(128, monkeypatch)
  much, rows_from_start = fitted_in(1024, monkeypatch)
  assert rows[0] < rows[-1] < rows_from_start[0] == rows_from_start[-1]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), few, much)
