"""The full comparison: rate and distortion of our methods and of the baseline codecs, on Kodak.

  python -m cgvq_jax.main --config=configs/rd.py --workdir=runs/rd

Real files, each decoded by a new process. `cgvq_rd` at five qualities, 0.08 to 1.4 bpp, `cgvq`
and `gi` at three numbers of Gaussians; JPEG, WebP, AVIF and JPEG 2000. Writes report.md, with rates
at equal PSNR, BD-rates and seconds, and two plots. The photographs that the codec is tuned on and
the others have means of their own. About four hours on two cores; in one hour the six that the
codec is tuned on:

  ... --config.data.images=kodim03,kodim05,kodim08,kodim13,kodim15,kodim20
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import kodak


def get_config() -> ConfigDict:
  """Kodak's, on curves."""
  config = kodak.get_config()
  config.method = ('cgvq_rd', 'cgvq', 'gi')
  config.quality = (1, 16, 32, 52, 85)
  config.num_gaussians = (2500, 5000, 10_000)
  config.baselines = ('JPEG', 'WebP', 'AVIF', 'JPEG 2000')
  config.reference_method = 'cgvq'
  return config
