"""This checkout of the project and another, run in turns: layout, start-up, encoding, decoding.

    python tests/support/compare_checkouts.py OTHER_CHECKOUT photo.png [--rounds 7] [--steps 250]

prints a Markdown table: files, levels of imports, and median seconds of whole processes, each with
the median of the ratios of the pairs. Wants a machine that does nothing else; compiled programs are
kept in a folder that both use, and the first round is not counted.
"""

from __future__ import annotations

import argparse
import ast
import os
import statistics
import subprocess
import sys
import tempfile
import time
from graphlib import TopologicalSorter
from pathlib import Path

HERE = Path(__file__).parents[2]


def import_levels(checkout: Path) -> tuple[int, int]:
  """The longest chain of imports, of folders and files at the top of the package; and of files,
  from cli.py down. Imports at the top of modules only: what starting a command loads."""
  package = checkout / 'cgvq_jax'
  files = {
    'cgvq_jax.' + '.'.join(path.relative_to(package).with_suffix('').parts): path
    for path in package.rglob('*.py')
    if path.name != '__init__.py'
  }
  graph: dict[str, set[str]] = {}
  for module, path in files.items():
    found = set()
    for node in ast.parse(path.read_text('utf-8')).body:
      if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('cgvq_jax'):
        found |= {f'{node.module}.{name.name}' for name in node.names} | {str(node.module)}
    graph[module] = found & files.keys() - {module}
  tops: dict[str, set[str]] = {}
  for module, others in graph.items():
    top = module.split('.')[1]
    tops.setdefault(top, set()).update({other.split('.')[1] for other in others} - {top})
  return max(_levels(tops).values()), _levels(graph)['cgvq_jax.cli']


def _levels(graph: dict[str, set[str]]) -> dict[str, int]:
  level: dict[str, int] = {}
  for node in TopologicalSorter(graph).static_order():
    level[node] = 1 + max((level[other] for other in graph[node]), default=0)
  return level


def seconds(checkout: Path, arguments: list[str], cache: str) -> float:
  """Wall seconds of one process in a checkout."""
  environment = os.environ | {
    'PYTHONPATH': str(checkout),
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
  }
  start = time.perf_counter()
  command = [sys.executable, *arguments]
  subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)
  return time.perf_counter() - start


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('other', type=Path)
  parser.add_argument('image', type=Path)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--steps', default='250')
  arguments = parser.parse_args()
  other, image = arguments.other.resolve(), str(arguments.image.resolve())
  with tempfile.TemporaryDirectory() as folder:
    file, picture, cache = (f'{folder}/{name}' for name in ('x.cgvq', 'x.png', 'cache'))
    steps = ['--fit_steps', arguments.steps, '--finetune_steps', arguments.steps, '--quiet']
    cgvq = ['-m', 'cgvq_jax']
    commands = {
      'cgvq encode': [*cgvq, 'encode', image, file, *steps],
      'cgvq encode --method cgvq': [*cgvq, 'encode', image, file, '--method', 'cgvq', *steps],
      'import cgvq_jax': ['-c', 'import cgvq_jax'],
      'cgvq info': [*cgvq, 'info', file],
      'cgvq info --json': [*cgvq, 'info', file, '--json'],
      'cgvq decode': [*cgvq, 'decode', file, picture],
    }
    print('| | other checkout | this one | ratio |\n|---|---|---|---|')
    tops = [len(list((path / 'cgvq_jax').glob('*.py'))) for path in (other, HERE)]
    print(f'| files at the top of the package | {tops[0]} | {tops[1]} | |')
    (top_before, cli_before), (top_after, cli_after) = map(import_levels, (other, HERE))
    print(f'| levels of imports, folders and files at the top | {top_before} | {top_after} | |')
    print(f'| levels of imports, files below cli.py | {cli_before} | {cli_after} | |')
    for name, command in commands.items():
      if name == 'import cgvq_jax':  # the files that follow are of quality 50, whole
        seconds(HERE, [*cgvq, 'encode', image, file, '--quiet'], cache)
      pairs = [
        (seconds(other, command, cache), seconds(HERE, command, cache))
        for _ in range(1 + arguments.rounds)
      ][1:]
      before, after = (statistics.median(each) for each in zip(*pairs, strict=True))
      ratio = statistics.median(b / a for a, b in pairs)
      print(f'| `{name}`, s | {before:.2f} | {after:.2f} | {ratio:.2f} |', flush=True)


if __name__ == '__main__':
  main()
