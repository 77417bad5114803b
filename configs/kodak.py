"""Kodak's 24 photographs by `cgvq_rd`, or by the papers' methods.

  python -m cgvq_jax.main --config=configs/kodak.py --workdir=runs/kodak

Six of the images, four qualities for a curve, and the papers' methods at some N:

  ... --config.data.images=kodim03,kodim05,kodim08,kodim13,kodim15,kodim20
  ... --config.quality='(20,40,60,80)'
  ... --config.method=gi,cgvq --config.num_gaussians='(2500,5000,10000,20000)'

48,000 steps in all with the default preset, 1000 to fit each image and 1000 to prune and quantize
it: about ten minutes on two cores. A job that was stopped continues when it is run again.

The images are looked for in the folder that CGVQ_KODAK names, or else in data/kodak.
"""

from __future__ import annotations

from ml_collections import ConfigDict

# The photographs that the codec is tuned on.
TUNED_ON = tuple(f'kodim{number:02d}' for number in (3, 5, 8, 13, 15, 20))


def get_config() -> ConfigDict:
  """All values; the command line can override each of them."""
  config = ConfigDict()
  config.method = ('cgvq_rd',)  # or the papers': gi, cgvq, gi_fp16, cgvq_fp16
  config.quality = (50,)  # of cgvq_rd: 1 to 100
  config.num_gaussians = (10_000,)  # of the papers' methods, and so are the next two
  config.num_clusters = (0,)  # 0: the method's default
  # The order of the Gaussians in a file, sorted, bits_back or none: the same picture, other bytes.
  config.order = 'sorted'
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

  config.baselines = ('JPEG', 'WebP')  # measured on the same images; or AVIF, JPEG 2000
  config.reference_method = ''  # BD-rates are taken against it too; empty: baselines only
  config.tuned_on = TUNED_ON  # these images and the others have means of their own
  config.checkpoint_seconds = 60.0
  config.extensions = ()  # modules or .py files that register more names: docs/EXTENDING.md
  return config
