"""Training through the quantizers: what a step sees, what is kept, what a file would hold."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes

from cgvq_jax.fit import driver, stages
from cgvq_jax.fit.api import fit_image
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.methods import codebooks
from cgvq_jax.methods.registry import codebook_method
from cgvq_jax.primitives.geometry import canonical
from cgvq_jax.quantize import vector
from cgvq_jax.quantize.clustered import DEQUANTIZERS, dequantize
from cgvq_jax.quantize.clusters import cluster, join, split

# tests/test_codec.py uses the same sizes, so that what is compiled for one serves the other.
SIDE, NUM_GAUSSIANS, NUM_CLUSTERS, STEPS = 48, 60, 4, 2 * stages.BLOCK_STEPS
METHOD = codebook_method('small', NUM_CLUSTERS, 2)(3)  # so few entries that tuning them matters
SETTINGS = FitSettings(steps=STEPS, finetune_steps=STEPS, densifier='none')


@pytest.fixture(scope='module')
def target():
  return jnp.asarray(raster_scenes.photograph(SIDE, SIDE))


@pytest.fixture(scope='module')
def gaussians(target):
  return canonical(fit_image(target, NUM_GAUSSIANS, SETTINGS))


def context_of(labels):
  return codebooks.make_context(np.asarray(labels), NUM_CLUSTERS, SIDE, SIDE)


@pytest.fixture(scope='module')
def context(gaussians):
  return context_of(cluster(jax.random.key(1), gaussians, NUM_CLUSTERS))


def stage_of(gaussians, context, target):
  return codebooks.finetune_stage(METHOD, jax.random.key(2), gaussians, context, target, SETTINGS)


def start_of(gaussians, context, target):
  return stage_of(gaussians, context, target).start.current


def run(stage):
  """The last state, and what `on_block` was given."""
  seen = []
  hooks = driver.Hooks(on_block=lambda stage, state, progress: seen.append((state, progress)))
  return driver.run_stage(stage, hooks), seen


@pytest.fixture(scope='module')
def tuned(gaussians, context, target):
  return run(stage_of(gaussians, context, target))


def quantized(state, context):
  return codebooks.quantize(state, context, METHOD, SIDE, SIDE)


def assert_same_bits(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.lru_cache
def quantize(function):
  return jax.jit(jax.vmap(function))


# --- rows ---


def test_rows_and_back(gaussians):
  size = jnp.array([64.0, 32.0])  # powers of two, so nothing rounds
  rows = codebooks.to_rows(gaussians, size)
  np.testing.assert_array_equal(rows.rotation_scale[:, 0], gaussians.rotation)
  np.testing.assert_array_equal(rows.rotation_scale[:, 1:], gaussians.log_scale)
  np.testing.assert_array_equal(rows.color, gaussians.color)
  back = codebooks.from_rows(rows, size)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), back, gaussians)


def test_positions_are_minus_one_to_one_from_edge_to_edge(gaussians):
  corners = jnp.array([[0.0, 0.0], [64.0, 32.0], [32.0, 16.0]])
  rows = codebooks.to_rows(gaussians.replace(mean_xy=corners), jnp.array([64.0, 32.0]))
  np.testing.assert_array_equal(rows.position, [[-1, -1], [1, 1], [0, 0]])


# --- one step's forward function ---


@pytest.fixture(scope='module')
def forward():
  return jax.jit(codebooks.forward_through(METHOD.quantizers))


def test_forward_is_one_function_a_method():
  # Another function compiles the step anew.
  assert codebooks.forward_through(METHOD.quantizers) is codebooks.forward_through(
    METHOD.quantizers
  )


def test_forward_renders_what_the_quantizers_say(gaussians, context, forward, target):
  start = start_of(gaussians, context, target)
  got = codebooks.to_rows(forward(start.params, start.carry, context).gaussians, context.size)
  rows = codebooks.to_rows(gaussians, context.size)
  for attribute in codebooks.ATTRIBUTES:
    quantizer = getattr(METHOD, attribute)
    padded = split(getattr(rows, attribute), context.clusters)
    params = getattr(start.params.quantizers, attribute)
    value = quantize(quantizer.quantize)(params, padded, context.clusters.mask).value
    want = join(value, context.clusters)
    np.testing.assert_allclose(getattr(got, attribute), want, atol=1e-5)
    assert np.any(want != getattr(rows, attribute)), attribute


def test_penalty_is_the_mean_commitment_over_all_members(gaussians, context, forward, target):
  start = start_of(gaussians, context, target)
  out = forward(start.params, start.carry, context)
  error = np.asarray(gaussians.color, np.float64) - np.asarray(out.gaussians.color)
  assert out.penalty == pytest.approx(np.mean(error**2), rel=1e-4) and out.penalty > 0


def test_gradient_passes_straight_through_to_the_gaussians(gaussians, context, target):
  start = start_of(gaussians, context, target)

  @jax.jit
  @jax.grad
  def gradient(params):
    out = codebooks.forward_through(METHOD.quantizers)(params, start.carry, context)
    leaves = jax.tree.leaves(out.gaussians)
    return sum(jnp.sum(leaf) for leaf in leaves)

  got = gradient(start.params)
  np.testing.assert_allclose(got.gaussians.mean_xy, 1, rtol=1e-6)
  np.testing.assert_allclose(got.gaussians.color, 1, rtol=1e-6)
  inside = np.mean(np.asarray(got.gaussians.log_scale) == 1)
  assert inside > 0.9  # all but what lies at the ends of a cluster's range, by a rounding
  # Codebooks learn by moving averages, steps by gradient.
  assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(got.quantizers.color))
  assert np.all(np.asarray(got.quantizers.rotation_scale.step) != 0)


def test_carry_is_how_far_the_codebooks_have_moved(gaussians, context, forward, target):
  state = start_of(gaussians, context, target)
  params = state.params.replace(gaussians=gaussians.replace(color=gaussians.color + 0.1))
  moved, effective = state.carry, state.params.quantizers.color
  rows = split(params.gaussians.color, context.clusters)
  for _ in range(3):
    moved = forward(params, moved, context).carry
    effective = quantize(METHOD.color.quantize)(effective, rows, context.clusters.mask).params
  got = jax.tree.map(jnp.add, params.quantizers.color, moved.color)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), got, effective)
  assert np.abs(moved.color.entries).max() > 0.01
  # What learns by gradient has no moving average.
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(moved.rotation_scale))


# --- many steps ---


def test_fine_tuning_raises_the_decoded_image(tuned, gaussians, context, target):
  state, _ = tuned
  symbols = quantized(start_of(gaussians, context, target), context)
  before = codebooks.decoded_psnr(symbols, target, DEQUANTIZERS)
  after = codebooks.decoded_psnr(quantized(state.memory.state, context), target, DEQUANTIZERS)
  assert after > before + 1
  assert state.memory.psnr == pytest.approx(after, abs=1e-4)


def test_progress_is_of_the_decoded_image(tuned, context, target):
  state, seen = tuned
  assert [p.step for _, p in seen] == [50, 100]
  for block, progress in seen:
    symbols = quantized(block.current, context)
    assert progress.psnr == codebooks.decoded_psnr(symbols, target, DEQUANTIZERS)
    assert block.current.step == progress.step
  assert state.memory.psnr == pytest.approx(max(p.psnr for _, p in seen), abs=1e-4)


def test_optimizer_leaves_the_codebooks_to_their_averages(tuned, gaussians, context, target):
  start, end = start_of(gaussians, context, target), tuned[0].current
  assert_same_bits(end.params.quantizers.color, start.params.quantizers.color)
  assert np.abs(end.carry.color.entries).max() > 1e-3
  before, after = start.params.quantizers.rotation_scale, end.params.quantizers.rotation_scale
  # An offset learns only where a member leaves its cluster's range.
  assert np.all(before.step != after.step) and np.any(before.offset != after.offset)


@pytest.mark.parametrize(
  ('measured', 'best_step'), [((30, 10, 20), 0), ((10, 30, 20), 50), ((10, 20, 30), 100)]
)
def test_the_best_is_kept(gaussians, context, target, monkeypatch, measured, best_step):
  values = iter(measured)
  monkeypatch.setattr(codebooks, 'decoded_psnr', lambda *arguments: float(next(values)))
  state, seen = run(stage_of(gaussians, context, target))
  assert (
    state.memory.psnr == 30 and state.memory.state.step == best_step and state.current.step == STEPS
  )
  assert [p.psnr for _, p in seen] == list(measured[1:])


def test_same_start_same_bits(tuned, gaussians, context, target):
  assert_same_bits(run(stage_of(gaussians, context, target))[0], tuned[0])


def test_a_stopped_run_goes_on_to_the_same_bits(tuned, gaussians, context, target):
  whole, seen = tuned
  stopped = jax.tree.map(np.array, jax.device_get(seen[0][0]))
  state, later = run(stage_of(gaussians, context, target)._replace(start=stopped))
  assert_same_bits(state, whole)
  assert [p for _, p in later] == [seen[1][1]]


# --- what a file holds ---


def check_quantized(state, context):
  """The symbols hold every Gaussian once, and dequantize to what the quantizers chose for them."""
  symbols = quantized(state, context)
  clusters = context.clusters
  np.testing.assert_array_equal(symbols.counts, clusters.counts)
  total = int(np.sum(clusters.counts))
  assert (symbols.height, symbols.width, symbols.channels) == (SIDE, SIDE, 3)
  rows = codebooks.to_rows(state.params.gaussians, context.size)
  chosen = []
  for attribute in codebooks.ATTRIBUTES:
    stream, quantizer = getattr(symbols, attribute), getattr(METHOD, attribute)
    assert stream.symbols.shape == (total, len(quantizer.alphabets))
    assert np.all((stream.symbols >= 0) & (stream.symbols < quantizer.alphabets))
    params = quantizer.dequantizer.restore(stream.tables, stream.alphabets)
    padded = split(getattr(rows, attribute), clusters)
    chosen.append(quantize(quantizer.quantize)(params, padded, clusters.mask).value)
  want = np.concatenate([np.asarray(join(value, clusters)) for value in chosen], axis=1)
  want = want[np.asarray(clusters.members)[np.asarray(clusters.mask)]]  # cluster by cluster
  dequantized = codebooks.to_rows(dequantize(symbols), context.size)
  got = np.concatenate([np.asarray(getattr(dequantized, a)) for a in codebooks.ATTRIBUTES], axis=1)
  start = 0
  for count in symbols.counts:  # within a cluster, the file has its own order
    one, other = got[start : start + count], want[start : start + count]
    order_one, order_other = (np.lexsort(np.round(a[:, 1::-1].T, 6)) for a in (one, other))
    # A position between two halves may go to either: its row is rounded as the program likes.
    np.testing.assert_allclose(one[order_one, :2], other[order_other, :2], rtol=2**-10)
    np.testing.assert_array_equal(one[order_one, 2:], other[order_other, 2:])
    start += count
  return symbols


def test_quantized_and_dequantized_is_what_was_measured(tuned, context):
  check_quantized(tuned[0].memory.state, context)
  check_quantized(tuned[0].current, context)


@pytest.mark.parametrize('counts', [[60, 0, 0, 0], [0, 57, 1, 2]])
def test_empty_and_tiny_clusters(gaussians, target, counts):
  context = context_of(np.random.default_rng(0).permutation(np.repeat(np.arange(4), counts)))
  stage = stage_of(gaussians, context, target)
  check_quantized(stage.start.current, context)
  state, seen = run(stage)
  check_quantized(state.memory.state, context)
  assert all(np.isfinite(p.psnr) for _, p in seen)
  for leaf in jax.tree.leaves(state.current):
    assert np.all(np.isfinite(leaf))


def test_fewer_distinct_gaussians_than_clusters(gaussians, target):
  same = gaussians.replace(
    **{
      a: jnp.broadcast_to(getattr(gaussians, a)[:1], getattr(gaussians, a).shape)
      for a in ('log_scale', 'rotation', 'color')
    }
  )
  context = context_of(cluster(jax.random.key(0), same, NUM_CLUSTERS))
  check_quantized(start_of(same, context, target), context)


def test_entries_in_7_bits_cost_no_more_than_a_twentieth_of_a_decibel(
  tuned, context, target, monkeypatch
):
  pixels = np.asarray(target)
  stored = codebooks.decoded_psnr(quantized(tuned[0].memory.state, context), pixels, DEQUANTIZERS)
  monkeypatch.setattr(vector, '_LEVELS', 255)  # as many as a byte has
  finer = codebooks.decoded_psnr(quantized(tuned[0].memory.state, context), pixels, DEQUANTIZERS)
  assert stored > finer - 0.05


def test_dequantize_names_an_unknown_quantizer(tuned, context):
  symbols = quantized(tuned[0].memory.state, context)
  stranger = symbols._replace(color=symbols.color._replace(quantizer='unknown'))
  with pytest.raises(ValueError, match=r"color quantizer: wanted one of .*, got 'unknown'"):
    dequantize(stranger)
