"""One photograph that needs no download, small and quick.

python -m cgvq_jax.main --config=configs/quickstart.py --workdir=quickstart
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Every value is a default that the command line can override."""
  config = ConfigDict()
  config.method = ('gi', 'cgvq')
  config.num_gaussians = (4000,)
  config.num_clusters = (0,)  # 0: the method's own
  config.seed = 0

  config.fit = ConfigDict()
  config.fit.steps = 300
  config.fit.loss = 'l2'
  config.fit.initializer = 'gradient_guided'

  config.finetune = ConfigDict()
  config.finetune.steps = 150

  config.data = ConfigDict()
  config.data.root = ''
  config.data.images = ('sample',)

  config.classic = True
  config.checkpoint_seconds = 60.0
  return config
