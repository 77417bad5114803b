"""Rate-distortion plots by what they draw."""

from __future__ import annotations

import math

import numpy as np
from report_rows import BASELINES, ROWS, row

from cgvq_jax.evaluate import plots


def test_every_curve_is_drawn():
  baselines = [*BASELINES, *(row | {'method': 'WebP'} for row in BASELINES)]
  partial = row('one', 'gi', 9000, 3.0, 36)  # lacks an image, so no mean compares with the others
  figure = plots.rate_distortion([*ROWS[::-1], partial], baselines)
  (axes,) = figure.axes
  lines = {line.get_label(): line for line in axes.lines}
  np.testing.assert_allclose(lines['gi'].get_xydata(), [(0.5, 30), (2, 34)])
  np.testing.assert_allclose(lines['cgvq'].get_xydata(), [(0.25, 30), (1, 34)])
  np.testing.assert_allclose(lines['JPEG'].get_xydata(), [(1, 30), (4, 34)])
  assert {'WebP', 'VTM', 'C3', 'GaussianImage', 'CGVQ'} <= set(lines)
  assert axes.get_xscale() == 'log' and axes.get_xlim()[1] > 4
  (legend,) = figure.legends
  names = [text.get_text() for text in legend.get_texts()]
  without_file = names.index('published, rate by parameter count, no file')
  published = names.index('published, mean over Kodak')
  assert names.index('gi') < published < names.index('VTM') < without_file
  assert names.index('GaussianImage') > without_file and names.index('CGVQ') > without_file


def test_ms_ssim_is_in_decibels_and_has_nothing_published():
  rows = [row | {'ms_ssim': 0.9 if row['setting'] == '1000' else 0.99} for row in ROWS]
  figure = plots.rate_distortion(rows, BASELINES, 'ms_ssim')
  (axes,) = figure.axes
  lines = {line.get_label(): line for line in axes.lines}
  assert set(lines) == {'gi', 'cgvq', 'JPEG'}
  np.testing.assert_allclose(lines['gi'].get_xydata(), [(0.5, 10), (2, 20)])
  assert 'MS-SSIM' in axes.get_ylabel()


def test_neither_baselines_nor_finite_points():
  figure = plots.rate_distortion([row('one', 'gi', 10, 20.0, math.inf)], [])
  names = [text.get_text() for text in figure.legends[0].get_texts()]
  assert 'measured on the same images' not in names and 'gi' in names
