"""The command `cgvq`, also as python -m cgvq_jax: encode, decode, info, compare, sample."""

import sys

from cgvq_jax.console import ends_on_interrupt


def main() -> int:
  """Runs the command of this process and returns its exit code."""
  with ends_on_interrupt():
    from cgvq_jax import cli
    from cgvq_jax.io import files

  with ends_on_interrupt(files.remove_unfinished):
    return cli.main()


if __name__ == '__main__':
  sys.exit(main())
