"""A process may live long: it neither fills its memory and mappings, nor compiles things twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='wants /proc')


def figures_of(kind, count):
  """What `tests/support/long_lived.py` says of a process that does so many of a kind."""
  command = [sys.executable, str(ROOT / 'tests' / 'support' / 'long_lived.py'), kind, str(count)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)


def counts(few, many):
  return pytest.mark.parametrize('count', [few, pytest.param(many, marks=pytest.mark.slow)])


def assert_bounded(figures):
  """Far below the 65,530 mappings that Linux grants, little memory, and no growth to the end."""
  assert figures['most_mappings'] <= 40_000
  assert figures['most_mib_above_start'] <= 500
  assert figures['mib_in_second_half'] <= 100


@counts(200, 2000)
def test_renderings_at_many_sizes(count):
  figures = figures_of('renderings', count)
  assert_bounded(figures)
  assert figures['compiled_by_others'] <= 20  # two sides an octave, not one program for each size


@counts(20, 200)
def test_encodes_of_many_sizes(count):
  figures = figures_of('sizes', count)
  assert_bounded(figures)
  assert figures['compiled_by_second_half'] <= 4


@counts(5, 50)
def test_a_picture_at_many_qualities(count):
  figures = figures_of('qualities', count)
  assert_bounded(figures)
  assert figures['compiled_by_others'] <= 20


@counts(30, 300)
def test_pictures_of_one_size(count):
  figures = figures_of('pictures', count)
  assert_bounded(figures)
  assert figures['compiled_by_others'] <= 1
