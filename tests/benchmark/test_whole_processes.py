"""The benchmark of renderers in whole processes."""

from __future__ import annotations

import pytest

from cgvq_jax.benchmark import renderers


@pytest.mark.slow
def test_each_renderer_is_timed_in_a_process_of_its_own(capsys):
  (row,) = renderers.run([renderers.Case('small', repeats=2, scale=2)], rounds=1)
  assert (row['num_gaussians'], row['height'], row['width']) == (4 * 500, 4 * 96, 4 * 128)
  assert row['work'] == 2000 * 384 * 512
  assert all(row[f'{kind}_s'] > 0.05 for kind in ('numpy', 'jax', 'jax_cached'))
  (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith('| small'))
  assert '| 2 x 2 | 2 | 2000 | 512x384 | 3.9e+08 |' in line
