"""Which implementation renders: by name, by the environment, by the platform."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import raster_scenes

from cgvq_jax.rasterize import api


def test_the_environment_names_an_implementation(monkeypatch):
  scene = raster_scenes.single_pixel()
  want = np.asarray(api.rasterize(*scene))
  monkeypatch.setenv('CGVQ_RASTERIZER', 'reference')
  assert api.chosen() == 'reference' and api.chosen('xla') == 'xla'
  np.testing.assert_allclose(api.rasterize(*scene), want, atol=1e-6)
  monkeypatch.setenv('CGVQ_RASTERIZER', 'cuda')
  with pytest.raises(ValueError, match=r"CGVQ_RASTERIZER=cuda: wanted one of .*'xla'"):
    api.rasterize(*scene)
  monkeypatch.setenv('CGVQ_RASTERIZER', '')
  assert api.chosen() is None


def test_the_choice_is_logged_once(caplog):
  scene = raster_scenes.single_pixel()
  api.log_choice.cache_clear()
  with caplog.at_level(logging.INFO):
    for _ in range(2):
      api.rasterize(*scene)
      api.rasterize(*scene, implementation='reference')
  logged = [message for message in caplog.messages if message.startswith('rasterizer')]
  assert logged == ['rasterizer: by platform (cpu: xla)', 'rasterizer: reference']


def test_unknown_implementation():
  with pytest.raises(ValueError, match=r"implementation='cuda': wanted one of .*'xla'"):
    api.rasterize(raster_scenes.random().gaussians, 8, 8, implementation='cuda')
