"""The search for a quality, on files that are made up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cgvq_jax import rate_control
from cgvq_jax.methods import registry
from cgvq_jax.rate_control import Measures, at_least_psnr, at_most_bpp


def even_rate(quality):
  return math.exp(0.024 * quality - 2.3)


def even_psnr(quality):
  return 24 + 0.12 * quality


def searched(target, rate=even_rate, psnr=even_psnr):
  """What was found, and the measures of each quality that was tried."""
  tried = {}

  def encode(quality):
    assert 1 <= quality <= 100 and quality not in tried
    tried[quality] = Measures(rate(quality), psnr(quality))
    return str(quality).encode(), tried[quality]

  found = rate_control.search(encode, target)
  assert found.data == str(found.quality).encode() and found.measures == tried[found.quality]
  assert found.num_encodes == len(tried) <= 8
  return found, tried


def noise(quality):
  return np.random.default_rng(round(10 * quality)).normal()


# As photographs have it, bent, steep, and noisy.
RATES = {
  'even': even_rate,
  'steep': lambda q: math.exp(0.05 * q - 4),
  'bent': lambda q: (q / 60) ** 2,
  'noisy': lambda q: math.exp(0.024 * q - 2.3 + 0.003 * noise(q)),
}
PSNRS = {
  'even': even_psnr,
  'steep': lambda q: 20 + 0.3 * q,
  'bent': lambda q: 24 + 1.6 * math.sqrt(q),
  'noisy': lambda q: 24 + 0.15 * q + 0.03 * noise(q),
}


@pytest.mark.parametrize('rate', RATES.values(), ids=RATES)
@pytest.mark.parametrize('most', [0.3, 0.5, 0.8])
def test_a_rate_is_kept_and_used_in_a_few_files(rate, most):
  found, tried = searched(at_most_bpp(most), rate)
  assert found.keeps_bound and found.in_aim and 0.98 * most <= found.measures.bpp <= most
  assert len(tried) <= 6


@pytest.mark.parametrize('psnr', PSNRS.values(), ids=PSNRS)
@pytest.mark.parametrize('least', [31, 33, 35.5])
def test_a_psnr_is_reached_in_a_few_files(psnr, least):
  found, tried = searched(at_least_psnr(least), psnr=psnr)
  assert found.keeps_bound and found.in_aim and least <= found.measures.psnr <= least + 0.1
  assert len(tried) <= 6


def test_a_few_files_are_about_three():
  counts = [len(searched(at_most_bpp(0.15 + 0.05 * k))[1]) for k in range(18)]
  counts += [len(searched(at_least_psnr(24.5 + 0.6 * k))[1]) for k in range(18)]
  assert np.mean(counts) < 3.1


def test_of_the_files_that_keep_the_bound_the_best_is_returned():
  # As small text has it: PSNR falls where quality grows. The aim is missed, and by far.
  psnrs = {50.0: 33.0, 64.8: 35.7, 59.6: 34.2, 62.4: 36.1, 61.2: 34.9, 61.6: 35.2}
  found, tried = searched(at_least_psnr(35), psnr=lambda q: psnrs.get(q, 34 if q < 62 else 35.5))
  kept = [measures.bpp for measures in tried.values() if measures.psnr >= 35]
  assert found.keeps_bound and not found.in_aim and found.measures.bpp == min(kept)
  assert {50.0, found.quality} < tried.keys()

  found, tried = searched(at_most_bpp(0.5), rate=lambda q: even_rate(q) + 0.06 * (q > 65) - 0.03)
  kept = [measures.psnr for measures in tried.values() if measures.bpp <= 0.5]
  assert found.keeps_bound and not found.in_aim and found.measures.psnr == max(kept)


@pytest.mark.parametrize('seed', range(20))
def test_what_is_found_is_the_best_of_what_was_made_however_noisy(seed):
  noises = np.random.default_rng(seed).normal(size=(101, 2))

  def rate(quality):
    return even_rate(quality) * math.exp(0.1 * noises[round(quality), 0])

  def psnr(quality):
    return even_psnr(quality) + 0.7 * noises[round(quality), 1]

  found, tried = searched(at_most_bpp(0.4), rate, psnr)
  assert found.measures.psnr == max(m.psnr for m in tried.values() if m.bpp <= 0.4)
  found, tried = searched(at_least_psnr(30), rate, psnr)
  assert found.measures.bpp == min(m.bpp for m in tried.values() if m.psnr >= 30)


@pytest.mark.parametrize('jump', [1.5, 40.123, 77, 99.9])
def test_a_jump_over_the_aim_ends_the_search_above_it(jump):
  found, tried = searched(at_least_psnr(25), psnr=lambda q: 20 if q < jump else 30)
  assert found.keeps_bound and not found.in_aim and found.measures.psnr == 30
  assert found.quality == min(quality for quality in tried if quality >= jump)


def test_neighbours_with_nothing_between_end_the_search():
  found, tried = searched(at_least_psnr(30), psnr=lambda q: 29.9 if q < 50.3 else 30.3)
  assert [found.quality, *tried] == [50.4, 50.0, 51.2, 50.4]


def test_a_flat_picture_that_is_better_than_wanted_gets_the_smallest_file():
  for psnr in (48.0, math.inf):
    found, tried = searched(at_least_psnr(35), psnr=lambda q, psnr=psnr: psnr)
    assert (found.quality, found.keeps_bound, found.in_aim) == (1, True, False)
    assert len(tried) == 2


def test_a_flat_picture_that_is_smaller_than_wanted_gets_the_highest_psnr():
  found, tried = searched(at_most_bpp(2), rate=lambda q: 0.01)
  assert (found.quality, found.keeps_bound, found.in_aim) == (100, True, False)
  found, tried = searched(at_most_bpp(2), rate=lambda q: 0.01 + q / 1e6, psnr=lambda q: math.inf)
  assert found.quality == min(tried)  # none is better: the smallest


@pytest.mark.parametrize(
  ('target', 'closest'),
  [(at_least_psnr(60), 100), (at_most_bpp(0.05), 1), (at_least_psnr(36.1), 100)],
)
def test_where_no_file_keeps_the_bound_the_closest_is_returned(target, closest):
  found, tried = searched(target)
  assert (found.quality, found.keeps_bound, found.in_aim) == (closest, False, False)
  assert len(tried) <= 4


@pytest.mark.parametrize('psnr', [lambda q: 34.99, lambda q: 34.99 - q / 1e4, lambda q: 30.0])
def test_the_ends_are_reached_on_a_flat_curve(psnr):
  found, tried = searched(at_least_psnr(35), psnr=psnr)
  assert not found.keeps_bound and max(tried) == 100


def test_a_step_of_quality_is_a_step_of_quantization():
  first, last = round(1 / rate_control.QUALITY_STEP), round(100 / rate_control.QUALITY_STEP)
  qualities = [max(round(k * rate_control.QUALITY_STEP, 1), 1) for k in range(first, last + 1)]
  indices = [registry.cgvq_rd(quality=quality).step_index for quality in qualities]
  assert indices == [*range(indices[0], indices[0] + len(indices))]


@pytest.mark.parametrize('wanted', [0, -1, math.inf, math.nan])
def test_impossible_targets(wanted):
  with pytest.raises(ValueError, match='bpp: wanted a finite number above 0, got'):
    at_most_bpp(wanted)
  with pytest.raises(ValueError, match='psnr: wanted a finite number above 0, got'):
    at_least_psnr(wanted)
