"""The search for a quality, on files that are made up and on a real one."""

from __future__ import annotations

import json
import math

import pytest

from cgvq_jax import rate_control


def made_up(curve):
  """An encoder whose file is its quality, what measures it, and the qualities it was asked for."""
  asked = []

  def encode(quality):
    asked.append(quality)
    return json.dumps(quality).encode()

  return encode, lambda data: curve(json.loads(data)), asked


# ln bpp of photographs, about: even, bent, in steps as the precision has them, and with some noise.
CURVES = {
  'even': lambda q: 0.024 * q - 2.3,
  'steep': lambda q: 0.05 * q - 4,
  'bent': lambda q: 2 * math.log(q / 60),
  'in steps': lambda q: 0.024 * round(2 * q) / 2 - 2.3,
  'noisy': lambda q: 0.024 * q - 2.3 + 0.008 * math.sin(17 * q),
}


@pytest.mark.parametrize('curve', CURVES.values(), ids=CURVES)
@pytest.mark.parametrize('wanted', [0.3, 0.5, 0.8])
def test_a_rate_is_hit_in_a_few_files(curve, wanted):
  encode, measure, asked = made_up(curve)
  data = rate_control.search(encode, measure, rate_control.bpp(wanted))
  assert abs(math.exp(measure(data)) / wanted - 1) < 0.0201
  assert len(asked) <= 6 and all(1 <= quality <= 100 for quality in asked)


def test_a_psnr_is_hit():
  encode, measure, asked = made_up(lambda q: 24 + 1.6 * math.sqrt(q))
  assert abs(measure(rate_control.search(encode, measure, rate_control.psnr(31))) - 31) <= 0.1
  assert len(asked) <= 5


@pytest.mark.parametrize(('wanted', 'closest'), [(60, '100.0'), (10, '1.0')])
def test_what_no_quality_has_is_said_with_the_closest(wanted, closest):
  encode, measure, asked = made_up(lambda q: 24 + 0.12 * q)
  with pytest.raises(
    rate_control.SearchError, match=rf'PSNR: wanted {wanted}, .* quality {closest}'
  ):
    rate_control.search(encode, measure, rate_control.psnr(wanted))
  assert len(asked) <= 8


def test_a_rate_that_cannot_be_had_is_told_in_bpp():
  encode, measure, _ = made_up(CURVES['even'])
  with pytest.raises(
    rate_control.SearchError, match=r'bpp: wanted 5, got 1\.105 at quality 100\.0'
  ):
    rate_control.search(encode, measure, rate_control.bpp(5))


def test_a_jump_over_the_target_ends():
  encode, measure, asked = made_up(lambda q: 20 if q < 40.123 else 30)
  with pytest.raises(rate_control.SearchError, match='PSNR: wanted 25'):
    rate_control.search(encode, measure, rate_control.psnr(25))
  assert len(asked) <= 8
