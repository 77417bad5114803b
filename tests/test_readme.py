"""What the README shows does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from cgvq_jax.bitstream import container

README = (Path(__file__).parents[1] / 'README.md').read_text()


def test_the_research_example_runs():
  (example,) = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)
  names: dict = {}
  exec(example, names)
  assert names['picture'].shape == (160, 240, 3)
  assert names['decoded'].gaussians.num_gaussians == 300
  # The quantizer that was passed in is the one in the file: three stages of 16 entries.
  assert names['decoded'].labels.max() == 3
  color = container.read(names['data']).color
  assert color.alphabets == (16, 16, 16)
  assert color.symbols.shape == (300, 3)
  assert np.isfinite(names['picture']).all()


def test_the_scripts_it_names_are_there():
  root = Path(__file__).parents[1]
  for script in set(re.findall(r'launch/\w+\.sh', README)):
    assert (root / script).stat().st_mode & 0o111, script
  for page in set(re.findall(r'(?:docs|configs|tests|cgvq_jax)/[\w/]+\.(?:md|py)', README)):
    assert (root / page).is_file(), page
