"""The judge: rate and distortion of our methods and of the classic codecs, on Kodak.

  python -m cgvq_jax.main --config=configs/rd.py --workdir=runs/rd

Real files, each decoded by a new process. `cgvq_rd` at five qualities, 0.08 to 1.4 bpp, `cgvq`
and `gi` at three numbers of Gaussians; JPEG, WebP, AVIF and JPEG 2000. Writes report.md, with rates
at equal PSNR, BD-rates and seconds, and two plots. The photographs that the codec is tuned on are
told apart from the others. About four hours on two cores; the tuned six alone, in one:

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
  config.classic = ('JPEG', 'WebP', 'AVIF', 'JPEG 2000')
  config.baseline = 'cgvq'
  return config
