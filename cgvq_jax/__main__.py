"""python -m cgvq_jax encode|decode|info|compare|sample"""

import sys

from cgvq_jax.cli import main

if __name__ == '__main__':
  sys.exit(main())
