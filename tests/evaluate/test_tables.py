"""Markdown tables, letter by letter."""

from __future__ import annotations

import pytest

from cgvq_jax.evaluate import tables


def test_a_table():
  assert tables.table(['name', 'N'], [['a|b', 1], ('c', 2.5)]) == (
    '| name | N |\n| --- | --- |\n| a\\|b | 1 |\n| c | 2.5 |'
  )
  assert tables.table(['name'], []) == tables.header(['name']) == '| name |\n| --- |'


def test_a_row_that_does_not_fit_is_refused():
  with pytest.raises(ValueError, match=r"wanted 2 cells, got 1: \['x'\]"):
    tables.table(['name', 'N'], [['x']])
