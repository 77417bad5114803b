"""The order of the files: each imports only from those below it, and decoding starts light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'cgvq_jax'
GOLDEN = Path(__file__).parent / 'golden'
# Folders and single files of the package, from the top: a row imports from itself and from below.
ROWS = (
  ('cli', 'main', '__main__', '__init__'),
  ('jobs',),
  ('benchmark',),
  ('evaluate',),
  ('codec',),
  ('methods',),
  ('bitstream',),
  ('fit',),
  ('quantize',),
  ('inputs',),
  ('rasterize',),
  ('primitives',),
  ('io',),
  ('alpha', 'metrics', 'rate_control', 'console', 'devices', 'extensions'),
)
MODULES = {
  'cgvq_jax.' + '.'.join(path.relative_to(PACKAGE).with_suffix('').parts): path
  for path in sorted(PACKAGE.rglob('*.py'))
}


def imports_of(module: str) -> set[str]:
  """The modules of the package that a module names in its imports, those inside functions too."""
  found = set()
  for node in ast.walk(ast.parse(MODULES[module].read_text('utf-8'))):
    if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('cgvq_jax'):
      for name in node.names:
        whole = f'{node.module}.{name.name}'
        found.add(whole if whole in MODULES else str(node.module))
  return found & MODULES.keys() - {module}


def row_of(module: str) -> int:
  top = module.split('.')[1]
  return next(i for i, row in enumerate(ROWS) if top in row)


def in_new_process(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
  """Runs a script beside the golden files."""
  environment = {'PYTHONPATH': str(PACKAGE.parent), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', script, *arguments]
  return subprocess.run(command, cwd=GOLDEN, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize('module', MODULES)
def test_a_file_imports_only_from_below(module):
  above = {other for other in imports_of(module) if row_of(other) < row_of(module)}
  assert not above


def test_there_are_no_circles():
  graph = {module: imports_of(module) for module in MODULES}
  assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_the_table_of_the_design_is_this_layout():
  page = (PACKAGE.parent / 'docs' / 'DESIGN.md').read_text('utf-8')
  table = page.split('## Where things are')[1].split('\n## ')[0]
  rows = [row.split('|')[1:3] for row in table.splitlines() if row.startswith('| `')]
  tops = [re.findall(r'`(\w+)(?:\.py|/)`', first) for first, _ in rows]
  order = [row_of(f'cgvq_jax.{top}') for names in tops for top in names]
  assert order == sorted(order) and set(order) == set(range(len(ROWS)))
  named = {top: second for names, (_, second) in zip(tops, rows, strict=True) for top in names}
  for module in MODULES:
    top, *inner = module.split('.')[1:]
    assert top == '__init__' or top in named, module
    if inner and not inner[-1].startswith('__'):
      assert f'`{inner[-1]}`' in named[top], module


@pytest.mark.parametrize(
  'arguments',
  [
    ['info', 'v2_photo.cgvq'],
    ['info', 'v1_photo_cgvq.cgvq', '--json'],
    ['decode', 'v2_photo.cgvq', 'OUT'],
    ['decode', 'v1_photo_cgvq.cgvq', 'OUT', '--scale', '2'],
  ],
  ids=' '.join,
)
def test_reading_a_file_loads_no_training_and_no_jax(arguments, tmp_path):
  script = (
    'import sys\nfrom cgvq_jax.cli import main\ncode = main(sys.argv[1:])\n'
    'print(code, *sorted(sys.modules), file=sys.stderr)\n'
  )
  arguments = [str(tmp_path / 'x.png') if each == 'OUT' else each for each in arguments]
  done = in_new_process(script, *arguments)
  code, *modules = done.stderr.split()
  assert code == '0', done.stderr
  roots = {module.split('.')[0] for module in modules}
  assert not roots & {'jax', 'jaxlib', 'jaxtyping', 'flax', 'optax', 'orbax', 'scipy', 'matplotlib'}
  ours = {module for module in modules if module.startswith(('cgvq_jax.methods', 'cgvq_jax.fit.'))}
  assert ours <= {'cgvq_jax.fit.settings'}  # plain numbers


def test_decoded_gaussians_are_a_pytree_where_jax_is_in_use():
  script = (
    'import sys, jax, cgvq_jax as cg\n'
    'gaussians = cg.decode(open(sys.argv[1], "rb").read()).gaussians\n'
    'assert len(jax.tree.leaves(gaussians)) == 4\n'
  )
  done = in_new_process(script, 'v2_photo.cgvq')
  assert done.returncode == 0, done.stderr


def test_the_package_itself_loads_nothing_but_knows_its_names():
  script = (
    'import sys, cgvq_jax as cg\nprint(*[m for m in sys.modules if m.startswith("cgvq_jax.")])\n'
    'assert set(cg.__all__) <= set(dir(cg))\n'
    'assert all(getattr(cg, name) is not None for name in cg.__all__)\n'
  )
  done = in_new_process(script)
  assert (done.returncode, done.stdout.strip()) == (0, ''), done.stderr
