"""One photograph that needs no download, small and quick.

python -m cgvq_jax.main --config=configs/quickstart.py --workdir=quickstart
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import kodak


def get_config() -> ConfigDict:
  """Kodak's, with other numbers."""
  config = kodak.get_config()
  config.update_from_flattened_dict(
    {
      'num_gaussians': (4000,),
      'fit.steps': 300,
      'finetune.steps': 150,
      'data.images': ('sample',),
    }
  )
  return config
