"""What each lever of `cgvq_rd` is worth: all of them, and each one off, as BD-rates of real files.

  python -m cgvq_jax.main --config=configs/rd_ablation.py --workdir=runs/rd_ablation

The six photographs that the project is tuned on, two qualities: about an hour on two cores. The
levers of the fit, each with its own folder, in which the first line of the table of means is it:

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
  config.quality = (16, 52)  # of the judge's: files and fits of its folder serve here too
  config.baseline = 'cgvq_rd'
  config.classic = ('JPEG',)
  config.update_from_flattened_dict({'data.images': kodak.TUNED_ON})
  return config
