"""Markdown tables, whole or line by line for a terminal that follows a long run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def row(cells: Iterable[object]) -> str:
  """One line of a table; a | inside a cell is escaped."""
  return '| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in cells) + ' |'


def header(columns: Sequence[object]) -> str:
  """The first two lines of a table: the names of its columns and a rule."""
  return f'{row(columns)}\n{row(["---"] * len(columns))}'


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
  """A table without a newline at its end.

  Raises:
    ValueError: a row has another number of cells than there are columns.
  """
  lines = [header(columns)]
  for cells in rows:
    if len(cells) != len(columns):
      raise ValueError(f'row: wanted {len(columns)} cells, got {len(cells)}: {[*cells]}')
    lines.append(row(cells))
  return '\n'.join(lines)
