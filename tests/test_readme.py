"""What the README shows does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_jobs import write_image

from cgvq_jax.bitstream import container

README = (Path(__file__).parents[1] / 'README.md').read_text()
RESEARCH, SPAWN = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)


def test_the_research_example_runs():
  names: dict = {}
  exec(RESEARCH, names)
  assert names['picture'].shape == (160, 240, 3)
  assert names['decoded'].gaussians.num_gaussians == 300
  # The quantizer that was passed in is the one in the file: three stages of 16 entries.
  assert names['decoded'].labels.max() == 3
  color = container.read(names['data']).color
  assert color.alphabets == (16, 16, 16)
  assert color.symbols.shape == (300, 3)
  assert np.isfinite(names['picture']).all()


@pytest.mark.slow
def test_new_processes_encode(tmp_path):
  for name in ('a.png', 'b.png'):
    write_image(tmp_path / name)
  told = '    print([len(cg.decode(file).labels) > 0 for file in files])\n'
  (tmp_path / 'example.py').write_text(SPAWN + told)
  done = subprocess.run(
    [sys.executable, 'example.py'], cwd=tmp_path, capture_output=True, text=True, timeout=300
  )
  assert (done.returncode, done.stdout) == (0, '[True, True]\n'), done.stderr


def test_the_scripts_it_names_are_there():
  root = Path(__file__).parents[1]
  for script in set(re.findall(r'launch/\w+\.sh', README)):
    assert (root / script).stat().st_mode & 0o111, script
  for page in set(re.findall(r'(?:docs|configs|tests|cgvq_jax)/[\w/]+\.(?:md|py)', README)):
    assert (root / page).is_file(), page
