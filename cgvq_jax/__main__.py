"""The command `cgvq`, also as python -m cgvq_jax: encode, decode, info, compare, sample."""

import sys

from cgvq_jax.console import stops_quietly

with stops_quietly():
  from cgvq_jax.cli import main

if __name__ == '__main__':
  sys.exit(main())
