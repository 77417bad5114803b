"""Rendering Gaussians: `api.rasterize` by JAX, with gradients; `renderers.render` for decoding."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
  if name.startswith('_'):
    raise AttributeError(name)
  try:
    return importlib.import_module(f'{__name__}.{name}')
  except ModuleNotFoundError as error:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}') from error
