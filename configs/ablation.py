"""What each lever of the fit is worth: all of them, and each one off. Nothing is quantized.

  python -m cgvq_jax.main --config=configs/ablation.py --workdir=runs/ablation

The six photographs that the project is tuned on, 10,000 Gaussians, 1,000 steps each: about 18
minutes on two cores. Writes study.md and study.png. A stopped study goes on where it was.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import kodak

# GaussianImage's released code.
PAPERS = {'initializer': 'random', 'densifier': 'none', 'optimizer': 'papers_adan', 'loss': 'l2'}


def get_config() -> ConfigDict:
  """A recipe says what is another than in `fit`; all are compared with the first of `names`."""
  config = ConfigDict()
  config.fit = ConfigDict()
  config.fit.num_gaussians = 10_000
  config.fit.steps = 1000
  config.fit.seed = 0
  config.fit.initializer = 'gradient_guided'
  config.fit.densifier = 'matching_pursuit'
  config.fit.optimizer = 'adam'
  config.fit.loss = 'clamped_l2'

  recipes = {
    'all': {},
    'another_seed': {'seed': 1},  # what chance alone does
    'no_growth': {'densifier': 'none'},
    'pixel_frame': {'optimizer': 'adam_in_pixels'},
    'unclamped': {'loss': 'l2'},
    'random_start': {'initializer': 'random'},
    'adan': {'optimizer': 'adan'},
    'papers': PAPERS,
  }
  config.recipes = ConfigDict(recipes)
  config.names = tuple(recipes)  # which of them, and in which order

  config.data = ConfigDict()
  config.data.root = ''  # a folder of images; empty: Kodak
  config.data.images = kodak.TUNED_ON  # names without extension; empty: all
  config.tuned_on = kodak.TUNED_ON  # told apart from the others
  return config
