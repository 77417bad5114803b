"""What measures and compares files starts without the libraries that only encoding needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cgvq_jax

HEAVY = ('flax', 'jax', 'jaxtyping', 'matplotlib', 'optax', 'scipy', 'skimage')

# The package's own __init__ is left out, so that each module answers for itself.
PROGRAM = """
import importlib, sys, types
package = types.ModuleType('cgvq_jax')
package.__path__ = [{folder!r}]
sys.modules['cgvq_jax'] = package
importlib.import_module({module!r})
print(*sorted({heavy!r} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
  'module', ['evaluate.baselines', 'io.datasets', 'io.images', 'metrics', 'rate_control']
)
def test_a_light_module_imports_nothing_heavy(module):
  folder = str(Path(cgvq_jax.__file__).parent)
  program = PROGRAM.format(folder=folder, module=f'cgvq_jax.{module}', heavy=set(HEAVY))
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert done.stdout.split() == []
