"""Rounding with refitting: it beats rounding, goes on where it stopped, and tells what shows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raster_scenes

from cgvq_jax import codec, metrics
from cgvq_jax.bitstream import container
from cgvq_jax.io import images
from cgvq_jax.methods import rd, registry
from cgvq_jax.methods.base import Telling
from cgvq_jax.quantize import adaptive
from cgvq_jax.rasterize.api import rasterize

IMAGE = raster_scenes.photograph(64, 96)
COUNT, FIT_STEPS, STEPS, PRECISION = 300, 300, 200, 312
METHOD = registry.cgvq_rd()._replace(step_index=PRECISION)
TURNS = METHOD.parts * len(rd.ORDER)


@pytest.fixture(scope='module')
def fitted():
  return codec.fit_image(jax.random.key(0), jnp.asarray(IMAGE), COUNT, steps=FIT_STEPS)


def told(fitted, method=METHOD, steps=STEPS, **changes):
  blocks = []
  telling = Telling(
    key=jax.random.key(1),
    gaussians=fitted,
    target=jnp.asarray(IMAGE),
    num_clusters=1,
    steps=steps,
    loss=codec.clamped_l2,
    resume=lambda state: state,
    on_block=lambda state, progress: blocks.append((state, progress)),
  )
  return method.tell(telling._replace(**changes)), blocks


@pytest.fixture(scope='module')
def done(fitted):
  return told(fitted)


def psnr_of(gaussians):
  rendered = np.asarray(rasterize(gaussians, *IMAGE.shape[:2]))
  return metrics.psnr(images.to_bytes8(IMAGE), images.to_bytes8(rendered))


@pytest.mark.accelerated
def test_refitting_makes_up_for_much_of_the_rounding(fitted, done):
  """Against the same numbers of the same Gaussians rounded all at once."""
  unpaid = METHOD._replace(weight=0.0)
  symbols, blocks = told(fitted, unpaid, steps=400)
  thinning = rd.schedule(400, unpaid.parts).thinning
  (start,) = [state for state, progress in blocks if progress.step == thinning]
  at_once = start
  for turn in range(TURNS):
    at_once = rd.rounded(at_once, jax.random.key(1), turn, unpaid, IMAGE.shape[:2])
  plain = rd.freeze(at_once, unpaid, *IMAGE.shape[:2])
  free = psnr_of(rd.with_floor(start.params))
  lost, lost_at_once = (free - psnr_of(adaptive.dequantize(s)) for s in (symbols, plain))
  assert 0 < lost < 0.8 * lost_at_once


def test_a_file_shows_what_was_fitted(done):
  symbols, blocks = done
  decoded = codec.decode(container.write(symbols))
  last = blocks[-1][0]
  whole = rd.rounded(last, jax.random.key(1), TURNS - 1, METHOD, IMAGE.shape[:2])
  fitted = rd.forward(whole.params, whole.carry, rd.FREE).gaussians
  height, width, _ = IMAGE.shape
  np.testing.assert_allclose(
    rasterize(decoded.gaussians, height, width), rasterize(fitted, height, width), atol=2e-4
  )


def test_thinning_drops_what_is_not_worth_its_bits(fitted, done):
  symbols, _ = done
  plain, _ = told(fitted, METHOD._replace(weight=0.0))
  assert len(symbols.energy_class) < 0.9 * len(plain.energy_class) <= 0.9 * COUNT
  assert len(container.write(symbols)) < 0.9 * len(container.write(plain))


def test_precision_is_quality(fitted, done):
  finer, _ = told(fitted, METHOD._replace(step_index=376))
  assert len(container.write(finer)) > len(container.write(done[0]))
  assert psnr_of(adaptive.dequantize(finer)) > psnr_of(adaptive.dequantize(done[0])) + 0.5


@pytest.mark.parametrize('stopped_after', [0, 9, 30])
@pytest.mark.accelerated
def test_a_stopped_rounding_goes_on_to_the_same_integers(fitted, done, stopped_after):
  symbols, blocks = done
  state = jax.tree.map(np.array, jax.device_get(blocks[stopped_after][0]))
  resumed, later = told(fitted, resume=lambda start: state)
  assert len(later) == len(blocks) - stopped_after - 1
  for got, want in zip(resumed, symbols, strict=True):
    np.testing.assert_array_equal(got, want)


def test_what_is_free_is_not_told(fitted):
  state = rd.initial_state(fitted, rd.adam())
  with pytest.raises(ValueError, match='freeze: wanted all numbers rounded'):
    rd.freeze(state, METHOD, *IMAGE.shape[:2])


@pytest.mark.parametrize(
  ('shape', 'count'),
  [
    ((1, 1, 3), 1),
    pytest.param((9, 5, 1), 30, marks=pytest.mark.slow),
    pytest.param((16, 16, 4), 40, marks=pytest.mark.slow),
  ],
)
def test_small_pictures_of_any_channels(shape, count):
  picture = np.random.default_rng(0).random(shape, np.float32)
  method = registry.cgvq_rd(shape[2])
  data = codec.encode(picture, method, num_gaussians=count, fit_steps=50, finetune_steps=31)
  decoded = codec.decode(data)
  assert codec.render(decoded).shape == shape
  assert 1 <= decoded.gaussians.num_gaussians <= count


def test_the_rate_is_paid_at_the_slope_of_rounding(fitted):
  """An octave of every Gaussian's energy costs about 3 bits each, delta^2 / 12 2 ln 2 a bit."""
  delta, samples = 1e-3, IMAGE.size
  price = rd.price(delta, 1.0, 0.0, samples)
  carry = rd.initial_state(fitted, rd.adam()).carry
  louder = fitted.replace(color=fitted.color * np.sqrt(2))
  penalties = [float(rd.forward(g, carry, price).penalty) for g in (fitted, louder)]
  bits = 3 * fitted.num_gaussians
  slope = 2 * np.log(2) * delta**2 / 12 / samples
  assert penalties[1] - penalties[0] == pytest.approx(bits * slope, rel=0.02)


def test_no_rate_is_a_free_fit(fitted):
  carry = rd.initial_state(fitted, rd.adam()).carry
  for price in (rd.FREE, rd.price(0.1, 0.0, 3.0, IMAGE.size)):
    made = rd.forward(fitted, carry, price)
    assert float(made.penalty) == 0.0
    want = rd.with_floor(fitted)
    jax.tree.map(
      lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6), made.gaussians, want
    )


def test_the_floor_keeps_what_is_above_it(fitted):
  wide = fitted.replace(log_scale=jnp.maximum(fitted.log_scale, np.log(0.45)))
  again = rd.with_floor(rd.without_floor(wide))
  np.testing.assert_allclose(again.log_scale, wide.log_scale, atol=1e-5)
  thin = fitted.replace(log_scale=jnp.full_like(fitted.log_scale, -20.0))
  for gaussians in (thin, rd.without_floor(thin)):
    assert 0.399 < float(jnp.exp(rd.with_floor(gaussians).log_scale).min()) < 0.42


@pytest.mark.accelerated
def test_a_row_of_another_colour_is_told():
  """A thin Gaussian on one row of pixels: its energy is more than its area says."""
  picture = np.full((32, 48, 3), 0.5, np.float32)
  picture[-1] = 0
  # Of this size: a larger picture with more Gaussians is told as well without the floor.
  data = codec.encode(picture, registry.cgvq_rd(), num_gaussians=60, fit_steps=400)
  decoded = images.to_bytes8(codec.render(codec.decode(data)))
  assert metrics.psnr(images.to_bytes8(picture), decoded) > 34
  assert decoded[-1].max() < 30


def test_every_ablation_makes_files_and_is_what_it_says(fitted):
  made = {}
  for name, make in registry.ABLATIONS.items():
    method = make(3, 50)
    assert method.name == 'cgvq_rd' and method.step_index == registry.cgvq_rd(3, 50).step_index
    assert method != registry.cgvq_rd(3, 50)
    symbols, _ = told(fitted, method, steps=64)
    made[name] = codec.decode(container.write(symbols)).gaussians.num_gaussians, symbols
    assert made[name][0] == len(symbols.energy_class)
  assert (
    len(np.unique(made['rd_common_steps'][1].energy_class))
    == 1
    < len(np.unique(made['rd_plain_axes'][1].energy_class))
  )
  np.testing.assert_array_equal(made['rd_plain_axes'][1].axes, 127 * np.eye(3))
  assert made['rd_no_rate'][0] >= made['rd_no_presence'][0] > made['rd_plain_axes'][0]


def test_a_small_level_of_a_colour_is_told_as_none(fitted):
  told = rd.initial_state(fitted, rd.adam()).carry
  told = told.replace(axes=(127 * np.eye(3)).astype(np.int8))
  e = 0.5 * np.array([[0.64, -0.64, 0.0], [0.66, -0.66, 1.49], [1.51, -2.6, 10.4]])
  np.testing.assert_array_equal(
    rd._color_levels(e, told, 0.5), [[0, 0, 0], [1, -1, 1], [2, -3, 10]]
  )


def test_thinning_and_all_turns_are_one_program(fitted, monkeypatch):
  """And none is made again for a weak type or for turns of fewer steps."""
  traces = []

  def traced(params, carry, context):
    traces.append(context)
    return forward(params, carry, context)

  forward = rd.forward
  monkeypatch.setattr(rd, 'forward', traced)
  told(fitted, METHOD, steps=130)
  assert 1 <= len(traces) <= 3  # a loop may trace its body twice, and shapes are looked at once
