"""The encoder's presets and the papers' recipe, unquantized: PSNR by steps and by seconds.

  python -m cgvq_jax.main --config=configs/presets.py --workdir=runs/presets

Kodak's 24 photographs, about two hours on two cores. The papers' recipe (GaussianImage's released
code: random start, Adan at 1e-3, halved every 20,000 steps) is given as many steps as `best`, of
the 50,000 that the papers take. Some of it, in 12 minutes: --config.names=fast,default
"""

from __future__ import annotations

from ml_collections import ConfigDict

from cgvq_jax.codec import PRESETS
from configs import ablation


def get_config() -> ConfigDict:
  """The ablation's, with other recipes."""
  config = ablation.get_config()
  most = PRESETS['best'].fit_steps
  recipes: dict[str, dict] = {name: {'steps': p.fit_steps} for name, p in PRESETS.items()}
  recipes['steps_1500'] = {'steps': 1500}
  recipes['steps_1500_5000'] = {'steps': 1500, 'num_gaussians': 5000}
  recipes['papers'] = {**ablation.PAPERS, 'steps': most}
  config.recipes = ConfigDict(recipes)
  config.names = ('default', *(name for name in recipes if name != 'default'))
  config.update_from_flattened_dict({'data.images': ()})
  return config
