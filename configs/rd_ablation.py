"""An ablation of `cgvq_rd`: the method, and each of its parts switched off, as BD-rates of files.

  python -m cgvq_jax.main --config=configs/rd_ablation.py --workdir=runs/rd_ablation

The six photographs that the codec is tuned on, two qualities: about an hour on two cores. Parts of
the fit are switched off in a folder of their own, whose report compares with the baselines only:

  ... --workdir=runs/no_growth --config.fit.densifier=none --config.method=cgvq_rd
"""

from __future__ import annotations

from ml_collections import ConfigDict

from cgvq_jax.methods.registry import ABLATIONS
from configs import kodak


def get_config() -> ConfigDict:
  """Kodak's, with other methods."""
  config = kodak.get_config()
  config.method = ('cgvq_rd', *ABLATIONS)
  config.quality = (16, 52)  # as in configs/rd.py, whose working folder and fits serve here too
  config.reference_method = 'cgvq_rd'
  config.baselines = ('JPEG',)
  config.update_from_flattened_dict({'data.images': kodak.TUNED_ON})
  return config
