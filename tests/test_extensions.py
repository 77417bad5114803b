"""Registries, and the modules from outside of the package that add to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cgvq_jax import cli, extensions
from cgvq_jax.extensions import ExtensionError, Registry
from cgvq_jax.fit import api
from cgvq_jax.fit.losses import LOSSES
from cgvq_jax.fit.settings import FitSettings
from cgvq_jax.methods import registry as methods

_REGISTERING = """
from cgvq_jax.fit.losses import LOSSES

LOSSES.register({name!r}, lambda image, target: abs(image - target).mean())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
  """The current folder; what a test registers, imports and exports is undone after it."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.setitem(os.environ, extensions.VARIABLE, '')  # so that it is restored
  monkeypatch.delenv(extensions.VARIABLE)
  losses, modules = dict(LOSSES), set(sys.modules)
  yield tmp_path
  for name in set(LOSSES) - set(losses):
    del LOSSES[name]
  for name in set(sys.modules) - modules:
    del sys.modules[name]


def _losses(*arguments: str, environment: dict[str, str] | None = None) -> set[str]:
  """The losses that a new process knows after loading what its arguments name."""
  program = """
import sys
from cgvq_jax import extensions
from cgvq_jax.fit.losses import LOSSES
extensions.load(sys.argv[1:])
print(*LOSSES)
"""
  done = subprocess.run(
    [sys.executable, '-c', program, *arguments],
    env={**os.environ, **(environment or {})},
    capture_output=True,
    text=True,
    check=True,
  )
  return set(done.stdout.split())


# --- registries ---


def test_a_registered_value_is_found_by_its_name():
  colors = Registry('color', {'red': 1})
  assert colors.register('blue', 2) == 2
  assert colors.find('blue') == colors.resolve('blue') == 2
  assert colors.resolve(3) == 3  # what is not a name is the value itself


def test_a_name_is_registered_once():
  colors = Registry('color', {'red': 1})
  colors.register('red', 1)  # the same value again
  with pytest.raises(ValueError, match="color 'red': wanted a new name"):
    colors.register('red', 2)
  assert colors == {'red': 1}


def test_an_unknown_name_lists_those_that_there_are():
  with pytest.raises(ValueError, match="color: wanted one of red, blue, got 'green'"):
    Registry('color', {'red': 1, 'blue': 2}).find('green')


@pytest.mark.parametrize('field', api.REGISTRIES)
def test_each_function_of_the_settings_has_a_registry(field):
  registry = api.REGISTRIES[field]
  assert registry.kind == field
  default = getattr(FitSettings(), field)
  assert getattr(api.functions_of(FitSettings()), field) is registry[default]
  with pytest.raises(ValueError, match=f"{field}: wanted one of {default}.*, got 'nothing'"):
    api.functions_of(FitSettings()._replace(**{field: 'nothing'}))


def test_an_unknown_method_lists_those_that_there_are():
  with pytest.raises(ValueError, match=r"method: wanted one of cgvq_rd, cgvq.*, got 'nothing'"):
    methods.make('nothing', 3)


# --- loading ---


def test_a_file_is_loaded(folder):
  (folder / 'mine.py').write_text(_REGISTERING.format(name='mine'))
  extensions.load(['mine.py'])
  functions = api.functions_of(FitSettings(loss='mine'))
  assert functions.loss is LOSSES['mine']


def test_a_module_of_the_current_folder_is_loaded(folder):
  (folder / 'my_package').mkdir()
  (folder / 'my_package' / 'mine.py').write_text(_REGISTERING.format(name='mine'))
  extensions.load(['my_package.mine'])
  assert 'mine' in LOSSES


def test_two_files_may_have_one_name(folder):
  for name in ('a', 'b'):
    (folder / name).mkdir()
    (folder / name / 'mine.py').write_text(_REGISTERING.format(name=f'mine_{name}'))
  extensions.load(['a/mine.py', 'b/mine.py', 'a/mine.py'])
  assert {'mine_a', 'mine_b'} <= set(LOSSES)


def test_loading_twice_registers_once(folder, monkeypatch):
  (folder / 'mine.py').write_text(_REGISTERING.format(name='mine'))
  monkeypatch.setenv(extensions.VARIABLE, 'mine.py')
  extensions.load(['mine.py', str(folder / 'mine.py')])
  first = LOSSES['mine']
  extensions.load(['mine.py'])
  assert LOSSES['mine'] is first


@pytest.mark.parametrize(
  ('module', 'text', 'said'),
  [
    ('missing.py', None, 'FileNotFoundError'),
    ('missing', None, "ModuleNotFoundError: No module named 'missing'"),
    ('broken.py', '1 / 0', 'ZeroDivisionError: division by zero'),
    ('broken', '1 / 0', 'ZeroDivisionError: division by zero'),
    ('broken.py', 'def', 'SyntaxError'),
    ('taken.py', _REGISTERING.format(name='l1'), "loss 'l1': wanted a new name"),
  ],
)
def test_a_module_that_does_not_load_is_one_error(folder, module, text, said, capsys):
  if text:
    (folder / f'{module.removesuffix(".py")}.py').write_text(text)
  for _ in range(2):  # the second time as the first: nothing half loaded is left
    with pytest.raises(ExtensionError, match=f'^extension {module}: wanted .*{said}'):
      extensions.load([module])
  assert cli.main(['info', 'photo.cgvq', '--extension', module]) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'cgvq: extension {module}: wanted ') and error.count('\n') == 1


# --- other processes ---


def test_the_environment_names_modules(folder):
  for name in ('a', 'b', 'c'):
    (folder / f'{name}.py').write_text(_REGISTERING.format(name=f'mine_{name}'))
  environment = {extensions.VARIABLE: os.pathsep.join(['a.py', str(folder / 'b.py'), ''])}
  known = _losses('c', environment=environment)
  assert {'mine_a', 'mine_b', 'mine_c'} <= known
  assert not {'mine_a', 'mine_b', 'mine_c'} & _losses()


def test_exported_modules_are_loaded_by_processes_in_any_folder(folder, monkeypatch):
  (folder / 'elsewhere').mkdir()
  (folder / 'mine.py').write_text(_REGISTERING.format(name='mine'))
  extensions.export(['mine.py', 'json'])
  extensions.export(['mine.py'])
  assert os.environ[extensions.VARIABLE] == os.pathsep.join([str(folder / 'mine.py'), 'json'])
  monkeypatch.chdir('elsewhere')
  assert 'mine' in _losses()


def test_nothing_is_exported_where_nothing_is_named(folder):
  extensions.export([])
  assert extensions.VARIABLE not in os.environ
