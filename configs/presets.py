"""The encoder's presets and the papers' settings, unquantized: PSNR by steps and by seconds.

  python -m cgvq_jax.main --config=configs/presets.py --workdir=runs/presets

Kodak's 24 photographs, about two hours on two cores. The papers' settings (GaussianImage's released
code: random start, Adan at 1e-3, halved every 20,000 steps) get as many steps as `best`, of the
50,000 that the papers take. A part of it, in 12 minutes: --config.names=fast,default
"""

from __future__ import annotations

from ml_collections import ConfigDict

from cgvq_jax.fit.settings import PRESETS
from configs import ablation


def get_config() -> ConfigDict:
  """The ablation's, with other fits."""
  config = ablation.get_config()
  fits: dict[str, dict] = {name: {'steps': preset.steps} for name, preset in PRESETS.items()}
  fits['steps_1500'] = {'steps': 1500}
  fits['steps_1500_5000'] = {'steps': 1500, 'num_gaussians': 5000}
  fits['papers'] = {**ablation.PAPERS, 'steps': PRESETS['best'].steps}
  config.fits = ConfigDict(fits)
  config.names = ('default', *(name for name in fits if name != 'default'))
  config.update_from_flattened_dict({'data.images': ()})
  return config
