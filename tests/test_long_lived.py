"""A process may live long: it neither fills its memory and mappings, nor compiles things twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='wants /proc')


KINDS = 'renderings', 'sizes', 'qualities', 'pictures'


@pytest.fixture(scope='module')
def figures(request):
  """What `tests/support/long_lived.py` says of a process that does many of all kinds."""
  command = [sys.executable, str(ROOT / 'tests' / 'support' / 'long_lived.py')]
  for kind, count in zip(KINDS, request.param, strict=True):
    command += [kind, str(count)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return {line['kind']: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize(
  'figures',
  [(200, 20, 5, 30), pytest.param((2000, 200, 50, 300), marks=pytest.mark.slow)],
  indirect=True,
  ids=['some', 'many'],
)
@pytest.mark.parametrize(
  ('kind', 'programs'),
  # Two sides an octave and rows in powers of two, not one program for each size and quality.
  [('renderings', 25), ('sizes', 12), ('qualities', 20), ('pictures', 1)],
)
def test_a_process_that_lives_long(figures, kind, programs):
  """Far below the 65,530 mappings that Linux grants, little memory, and no growth to the end."""
  got = figures[kind]
  assert got['most_mappings'] <= 40_000
  assert got['most_mib_above_start'] <= 500
  assert got['mib_in_second_half'] <= 100
  assert got['compiled_by_others'] <= programs
