"""The search for a quality, on files that are made up."""

from __future__ import annotations

import json
import math

import pytest

from cgvq_jax import rate_control


def made_up(curve):
  """An encoder whose file is its quality, what measures it, and the qualities that were tried."""
  tried = []

  def encode(quality):
    tried.append(quality)
    return json.dumps(quality).encode()

  return encode, lambda data: curve(json.loads(data)), tried


# ln bpp over quality, about as photographs have it: linear, bent, in steps as step indices are
# whole numbers, and with some noise.
CURVES = {
  'even': lambda q: 0.024 * q - 2.3,
  'steep': lambda q: 0.05 * q - 4,
  'bent': lambda q: 2 * math.log(q / 60),
  'in steps': lambda q: 0.024 * round(2 * q) / 2 - 2.3,
  'noisy': lambda q: 0.024 * q - 2.3 + 0.008 * math.sin(17 * q),
}


@pytest.mark.parametrize('curve', CURVES.values(), ids=CURVES)
@pytest.mark.parametrize('wanted', [0.3, 0.5, 0.8])
def test_a_rate_is_reached_in_a_few_files(curve, wanted):
  encode, measure, tried = made_up(curve)
  data = rate_control.find_quality(encode, measure, rate_control.bpp(wanted))
  assert abs(math.exp(measure(data)) / wanted - 1) < 0.0201
  assert len(tried) <= 6 and all(1 <= quality <= 100 for quality in tried)


def test_a_psnr_is_reached():
  encode, measure, tried = made_up(lambda q: 24 + 1.6 * math.sqrt(q))
  assert abs(measure(rate_control.find_quality(encode, measure, rate_control.psnr(31))) - 31) <= 0.1
  assert len(tried) <= 5


@pytest.mark.parametrize(('wanted', 'closest'), [(60, '100.0'), (10, '1.0')])
def test_a_target_beyond_all_qualities_is_refused_with_the_closest(wanted, closest):
  encode, measure, tried = made_up(lambda q: 24 + 0.12 * q)
  with pytest.raises(
    rate_control.TargetError, match=rf'PSNR: wanted {wanted}, .* quality {closest}'
  ):
    rate_control.find_quality(encode, measure, rate_control.psnr(wanted))
  assert len(tried) <= 8


def test_a_rate_that_no_quality_has_is_displayed_in_bpp():
  encode, measure, _ = made_up(CURVES['even'])
  with pytest.raises(
    rate_control.TargetError, match=r'bpp: wanted 5, got 1\.105 at quality 100\.0'
  ):
    rate_control.find_quality(encode, measure, rate_control.bpp(5))


def test_a_jump_over_the_target_ends_the_search():
  encode, measure, tried = made_up(lambda q: 20 if q < 40.123 else 30)
  with pytest.raises(rate_control.TargetError, match='PSNR: wanted 25'):
    rate_control.find_quality(encode, measure, rate_control.psnr(25))
  assert len(tried) <= 8
