"""The table of odd image files: those to read by default, those to encode with --slow."""

from __future__ import annotations

import odd_inputs
import pytest


@pytest.mark.parametrize(
  'row',
  [
    pytest.param(row, id=f'{row.file} {row.name}', marks=[pytest.mark.slow] if row.encodes else [])
    for row in odd_inputs.rows()
  ],
)
def test_odd_inputs(row):
  right, got = row.check(odd_inputs.CASES / row.file)
  assert right, f'wanted {row.expected}, got {got}'


def test_every_case_has_a_row():
  named = {row.file for row in odd_inputs.rows()}
  assert named == {path.name for path in odd_inputs.CASES.iterdir()}
