"""The package is laid out as docs/DESIGN.md says, and imports go down its table only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'cgvq_jax'
TABLE = (ROOT / 'docs' / 'DESIGN.md').read_text().split('## Where things are')[1].split('\n## ')[0]
# From top to bottom: the names in the first column, and all of the row.
ROWS = [
  (re.findall(r'`([\w.]+)/?`', row.split('|')[1]), row)
  for row in TABLE.splitlines()
  if row.startswith('| `')
]
RANKS = {name.removesuffix('.py'): rank for rank, (names, _) in enumerate(ROWS) for name in names}
FILES = sorted(
  path.relative_to(PACKAGE) for path in PACKAGE.rglob('*.py') if path.name != '__init__.py'
)


def _imported(path: Path) -> set[str]:
  """The folders and top-level files of the package that a file imports, also inside functions."""
  found = set()
  for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
    if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'cgvq_jax':
      inner = (node.module or '').split('.')[1:]
      found |= {inner[0]} if inner else {alias.name for alias in node.names}
  return found


@pytest.mark.parametrize('path', FILES, ids=str)
def test_each_file_is_in_the_table_and_imports_what_is_below(path):
  top = path.parts[0].removesuffix('.py')
  assert top in RANKS
  if len(path.parts) > 1 and path.stem != '__main__':
    assert f'`{path.stem}`' in ROWS[RANKS[top]][1]
  above = {name for name in _imported(path) if RANKS.get(name, len(ROWS)) < RANKS[top]}
  assert not above


def test_the_table_names_files_that_are_there():
  assert len(ROWS) > 12
  for name, rank in RANKS.items():
    assert (PACKAGE / f'{name}.py').is_file() or (PACKAGE / name).is_dir(), (name, rank)
