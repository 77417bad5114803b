"""Kodak's 24 photographs, `gi` and `cgvq` at 10,000 Gaussians.

  python -m cgvq_jax.main --config=configs/kodak.py --workdir=runs/kodak

Six images of it, and four numbers of Gaussians for a curve:

  ... --config.data.images=kodim03,kodim05,kodim08,kodim13,kodim15,kodim20
  ... --config.num_gaussians='(2500,5000,10000,20000)'

48,000 steps in all with the default preset, 1000 to fit each image and 500 to fine-tune it by each
method: about an hour on two cores. A stopped job goes on where it was.

The images are looked for in the folder that CGVQ_KODAK names, or else in data/kodak.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Every value is a default that the command line can override."""
  config = ConfigDict()
  config.method = ('gi', 'cgvq')  # or gi_fp16, cgvq_fp16
  config.num_gaussians = (10_000,)
  config.num_clusters = (0,)  # 0: the method's own
  config.order = (
    'sorted'  # of the Gaussians in a file; or bits_back, none: the same picture, longer
  )
  config.preset = 'default'  # or fast, best
  config.seed = 0

  config.fit = ConfigDict()
  config.fit.steps = 0  # 0: the preset's
  config.fit.initializer = 'gradient_guided'  # or random
  config.fit.densifier = 'matching_pursuit'  # or none
  config.fit.optimizer = 'adam'  # or adam_in_pixels, adan, papers_adan
  config.fit.loss = 'clamped_l2'  # l2, l1, l1_ssim or feature

  config.finetune = ConfigDict()
  config.finetune.steps = 0  # 0: the preset's

  config.data = ConfigDict()
  config.data.root = ''  # a folder of images; empty: Kodak
  config.data.images = ()  # names without extension; empty: all

  config.classic = True  # measure JPEG and WebP too
  config.checkpoint_seconds = 60.0
  return config
