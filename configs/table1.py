"""Table 1 of the CGVQ poster: the time for K = 1, 4, 8, 16; 20,000 Gaussians, two photographs.

  python -m cgvq_jax.main --config=configs/table1.py --workdir=runs/table1

The poster's encoder is 15.3 times slower at K = 16 than at K = 1, its decoder 4.0 times. This
measures seconds, so run it on a machine that does nothing else. About 15 minutes on two cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import kodak


def get_config() -> ConfigDict:
  """Kodak's, with other numbers."""
  config = kodak.get_config()
  config.update_from_flattened_dict(
    {
      'method': ('cgvq',),
      'num_gaussians': (20_000,),
      'num_clusters': (1, 4, 8, 16),
      'data.images': ('kodim15', 'kodim05'),
      'baselines': (),
    }
  )
  return config
