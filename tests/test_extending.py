"""The programs of docs/EXTENDING.md do what the page says, by its own commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_jobs import ROOT, share_programs

from cgvq_jax.io import datasets, images

PAGE = (ROOT / 'docs' / 'EXTENDING.md').read_text()
PROGRAMS = dict(re.findall(r'```python\n# (\w+\.py)\n(.*?)```', PAGE, flags=re.DOTALL))
EXAMPLES = re.findall(r'```python\n(import cgvq_jax as cg\n.*?)```', PAGE, flags=re.DOTALL)
COMMANDS = [
  line
  for block in re.findall(r'```bash\n(.*?)```', PAGE, flags=re.DOTALL)
  for line in block.replace('\\\n', ' ').splitlines()
]
# After the page's own flags: few steps.
_SHORT = {
  'cgvq encode': ['--fit_steps', '60', '--finetune_steps', '20', '--quiet'],
  'cgvq decode': [],
  'cgvq info': [],
  'python -m': ['--config.fit.steps=60', '--config.finetune.steps=40', '--config.quality=(5,)'],
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
  """A folder with the page's programs, its photograph and the configs."""
  folder = tmp_path_factory.mktemp('extending')
  share_programs(folder)
  for name, program in PROGRAMS.items():
    (folder / name).write_text(program)
  images.save(folder / 'photo.png', datasets.sample_photograph()[100:148, 200:264])
  (folder / 'configs').symlink_to(ROOT / 'configs')
  return folder


def _python(folder: Path, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
  )
  assert (done.returncode == 0) == ok, done.stderr
  return done


def _run(folder: Path, *needles: str) -> subprocess.CompletedProcess[str]:
  """Runs the one command of the page that has all the needles."""
  (command,) = [c for c in COMMANDS if all(needle in c.split() for needle in needles)]
  program, name, *flags = command.split()
  flags += _SHORT[f'{program} {name}']
  if program == 'cgvq':
    return _python(folder, '-m', 'cgvq_jax', name, *flags)
  return _python(folder, '-m', *flags)


def _psnr(folder: Path, name: str) -> float:
  original, decoded = (images.load(folder / file).pixels for file in ('photo.png', name))
  return -10 * np.log10(np.mean((original - decoded) ** 2))


def test_programs_are_short():
  assert list(PROGRAMS) == ['one_grid.py', 'square_law.py', 'my_fit.py', 'dense.py', 'raw.py']
  for name, program in PROGRAMS.items():
    assert len(program.splitlines()) + 1 < 60, name


def test_a_method_of_stages(folder):
  _run(folder, 'encode', 'one_grid.py')
  again = folder / 'again.png'
  again.unlink(missing_ok=True)
  _python(folder, '-m', 'cgvq_jax', 'decode', 'photo.cgvq', 'again.png')
  assert _psnr(folder, 'again.png') > 22
  about = _python(folder, '-m', 'cgvq_jax', 'info', 'photo.cgvq').stdout
  assert 'method one_grid' in about


def test_a_quantizer(folder):
  _run(folder, 'encode', 'square_law.py')
  _run(folder, 'decode', 'square_law.py')
  assert _psnr(folder, 'again.png') > 22
  decode = ['-m', 'cgvq_jax', 'decode', 'photo.cgvq', 'again.png']
  error = _python(folder, *decode, ok=False).stderr
  assert "got 'square_law'" in error and len(error.splitlines()) == 1


def test_a_job_decodes_by_a_quantizer(folder):
  done = _run(folder, '--workdir=runs/square_law')
  assert '1 files made' in done.stdout
  assert list((folder / 'runs' / 'square_law').glob('cgvq_square_law*/500/sample.png'))


def test_an_initializer_a_loss_and_a_densifier_from_a_config(folder):
  done = _run(folder, '--workdir=runs/my_fit')
  assert '1 files made' in done.stdout
  record = next((folder / 'runs' / 'my_fit').glob('cgvq_rd/*/sample.json')).read_text()
  assert all(name in record for name in ('lattice', 'charbonnier', 'halves'))


def test_an_initializer_a_loss_and_a_densifier_from_python(folder):
  (example,) = EXAMPLES
  example = example.replace('steps=200', 'steps=60')
  _python(folder, '-c', f'{example}\nassert 250 <= gaussians.num_gaussians <= 500\ncg.decode(data)')


def test_a_renderer(folder):
  _run(folder, 'encode', 'one_grid.py')
  _python(folder, '-m', 'cgvq_jax', 'decode', 'photo.cgvq', 'usual.png')
  _run(folder, 'decode', 'dense.py')
  usual, dense = (images.load(folder / name).pixels for name in ('usual.png', 'again.png'))
  np.testing.assert_allclose(usual, dense, atol=1.01 / 255)


def test_a_file_format(folder):
  _run(folder, 'encode', 'raw.py')
  assert 'version 200, method raw' in _run(folder, 'info', 'raw.py').stdout
  _python(folder, '-m', 'cgvq_jax', 'decode', 'raw.cgvq', 'raw.png', '--extension', 'raw.py')
  assert _psnr(folder, 'raw.png') > 22
  error = _python(folder, '-m', 'cgvq_jax', 'info', 'raw.cgvq', ok=False).stderr
  assert 'version: wanted 1 or 2, got 200' in error
