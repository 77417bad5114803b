"""An ablation of the fit: the default settings, and each of their parts replaced; unquantized.

  python -m cgvq_jax.main --config=configs/ablation.py --workdir=runs/ablation

The six photographs that the codec is tuned on, 10,000 Gaussians, 1,000 steps each: about 18 minutes
on two cores. Writes fit_study.md and fit_study.png. A study that was stopped continues when it is
run again.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import kodak

# GaussianImage's released code.
PAPERS = {'initializer': 'random', 'densifier': 'none', 'optimizer': 'papers_adan', 'loss': 'l2'}


def get_config() -> ConfigDict:
  """Each entry of `fits` overrides values of `fit`; all are compared with the first of `names`."""
  config = ConfigDict()
  config.fit = ConfigDict()
  config.fit.num_gaussians = 10_000
  config.fit.steps = 1000
  config.fit.seed = 0
  config.fit.initializer = 'gradient_guided'
  config.fit.densifier = 'matching_pursuit'
  config.fit.optimizer = 'adam'
  config.fit.loss = 'clamped_l2'

  fits = {
    'all': {},
    'another_seed': {'seed': 1},  # the effect of chance alone
    'no_growth': {'densifier': 'none'},
    'pixel_frame': {'optimizer': 'adam_in_pixels'},
    'unclamped': {'loss': 'l2'},
    'random_start': {'initializer': 'random'},
    'adan': {'optimizer': 'adan'},
    'papers': PAPERS,
  }
  config.fits = ConfigDict(fits)
  config.names = tuple(fits)  # those that are made, in this order

  config.data = ConfigDict()
  config.data.root = ''  # a folder of images; empty: Kodak
  config.data.images = kodak.TUNED_ON  # names without extension; empty: all
  config.tuned_on = kodak.TUNED_ON  # the others have a mean of their own
  config.extensions = ()  # modules or .py files that register more names: docs/EXTENDING.md
  return config
