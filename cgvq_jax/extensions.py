"""Registries that modules from outside of the package add to, and how such modules are loaded."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

VARIABLE = 'CGVQ_EXTENSIONS'  # modules to load in every process, separated as paths in PATH

T = TypeVar('T')


class ExtensionError(ValueError):
  """A module that was asked for cannot be loaded; says which and why."""


class Registry(dict[str, T]):
  """Values by name; `kind` is what one of them is called in messages."""

  def __init__(self, kind: str, known: dict[str, T] | None = None):
    super().__init__(known or {})
    self.kind = kind

  def register(self, name: str, value: T) -> T:
    """Adds a value. Raises ValueError where the name is taken by another one."""
    if name in self and self[name] is not value:
      raise ValueError(f'{self.kind} {name!r}: wanted a new name, got one that is registered')
    self[name] = value
    return value

  def find(self, name: str) -> T:
    """The value of a name. Raises ValueError naming those that there are."""
    if not isinstance(name, str) or name not in self:
      raise ValueError(f'{self.kind}: wanted one of {", ".join(map(str, self))}, got {name!r}')
    return self[name]

  def resolve(self, value: Any) -> Any:
    """The value of a registered name; whatever is no name stays as it is."""
    return self.find(value) if isinstance(value, str) else value


def lazy_modules(package: str) -> Callable[[str], Any]:
  """The `__getattr__` of a package whose modules are imported when they are first named."""

  def find(name: str) -> Any:
    if not name.startswith('_') and importlib.util.find_spec(f'{package}.{name}'):
      return importlib.import_module(f'{package}.{name}')
    raise AttributeError(f'module {package!r} has no attribute {name!r}')

  return find


def load(modules: Iterable[str]) -> None:
  """Imports modules, which register what they add: those named, then those of CGVQ_EXTENSIONS.

  A module is a dotted name that Python finds, also in the current folder, or the path of a .py
  file. Each is loaded once, however often it is named.

  Raises:
    ExtensionError: there is no such module, or importing it fails.
  """
  variable = os.environ.get(VARIABLE, '')
  for module in [*modules, *filter(None, variable.split(os.pathsep))]:
    try:
      _load(module)
    except Exception as error:  # whatever a researcher's module raises
      said = f'{type(error).__name__}: {error}'
      raise ExtensionError(f'extension {module}: wanted a module that loads, got {said}') from error


def export(modules: Iterable[str]) -> None:
  """Adds modules to CGVQ_EXTENSIONS, so that processes which this one starts load them too."""
  named = [str(Path(module).resolve()) if _is_file(module) else module for module in modules]
  known = filter(None, os.environ.get(VARIABLE, '').split(os.pathsep))
  if all_of_them := dict.fromkeys([*known, *named]):
    os.environ[VARIABLE] = os.pathsep.join(all_of_them)


def _is_file(module: str) -> bool:
  return module.endswith('.py')


def _load(module: str) -> None:
  if not _is_file(module):
    if os.getcwd() not in sys.path:
      sys.path.append(os.getcwd())
    importlib.import_module(module)
    return
  path = Path(module).resolve()
  name = f'cgvq_extension_{path.stem}_{zlib.crc32(bytes(path)):08x}'  # files may share a name
  if name in sys.modules:
    return
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise ImportError(f'{path} is no Python module')
  made = importlib.util.module_from_spec(spec)
  sys.modules[name] = made
  try:
    spec.loader.exec_module(made)
  except BaseException:
    del sys.modules[name]
    raise
