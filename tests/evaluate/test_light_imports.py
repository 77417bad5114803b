"""What measures and compares files starts without the libraries that only encoding needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cgvq_jax

HEAVY = ('flax', 'jax', 'jaxtyping', 'matplotlib', 'optax', 'scipy', 'skimage')

PROGRAM = """
import importlib, sys
importlib.import_module({module!r})
print(*sorted({heavy!r} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
  'module', ['evaluate.baselines', 'io.datasets', 'io.images', 'metrics', 'rate_control']
)
def test_a_light_module_imports_nothing_heavy(module):
  program = PROGRAM.format(module=f'cgvq_jax.{module}', heavy=set(HEAVY))
  root = str(Path(cgvq_jax.__file__).parents[1])
  command = [sys.executable, '-c', program]
  environment = os.environ | {'PYTHONPATH': root}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  assert done.stdout.split() == []
