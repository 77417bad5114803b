"""A Gaussian image codec in pure JAX: `import cgvq_jax as cg`.

Names are loaded when they are first used, so that decoding a file does not wait for JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from cgvq_jax import devices, extensions, metrics, quantize, rasterize, rate_control
  from cgvq_jax.bitstream.fields import ContainerError
  from cgvq_jax.codec import Decoded, decode, encode, measure, render
  from cgvq_jax.fit import densify, initialize, losses, optimizers, stages
  from cgvq_jax.fit.api import fit_image
  from cgvq_jax.fit.blocks import FitError
  from cgvq_jax.fit.driver import Hooks
  from cgvq_jax.fit.settings import PRESETS, FitSettings
  from cgvq_jax.fit.stages import Stage, StageState
  from cgvq_jax.io import datasets, images
  from cgvq_jax.methods import registry as methods
  from cgvq_jax.methods.base import Method
  from cgvq_jax.primitives.gaussians import Gaussians
  from cgvq_jax.quantize.base import Quantized, Quantizer

__version__ = '0.1.0'

# Name -> the module that it is in; or, for a module, its own name.
_HOMES = {
  'ContainerError': 'bitstream.fields',
  'Decoded': 'codec',
  'FitError': 'fit.blocks',
  'FitSettings': 'fit.settings',
  'Gaussians': 'primitives.gaussians',
  'Hooks': 'fit.driver',
  'Method': 'methods.base',
  'PRESETS': 'fit.settings',
  'Quantized': 'quantize.base',
  'Quantizer': 'quantize.base',
  'Stage': 'fit.stages',
  'StageState': 'fit.stages',
  'decode': 'codec',
  'encode': 'codec',
  'fit_image': 'fit.api',
  'measure': 'codec',
  'render': 'codec',
}
_MODULES = {
  'datasets': 'io.datasets',
  'densify': 'fit.densify',
  'devices': 'devices',
  'extensions': 'extensions',
  'images': 'io.images',
  'initialize': 'fit.initialize',
  'losses': 'fit.losses',
  'methods': 'methods',
  'metrics': 'metrics',
  'optimizers': 'fit.optimizers',
  'quantize': 'quantize',
  'rasterize': 'rasterize',
  'rate_control': 'rate_control',
  'stages': 'fit.stages',
}

__all__ = [
  'PRESETS',
  'ContainerError',
  'Decoded',
  'FitError',
  'FitSettings',
  'Gaussians',
  'Hooks',
  'Method',
  'Quantized',
  'Quantizer',
  'Stage',
  'StageState',
  'datasets',
  'decode',
  'densify',
  'devices',
  'encode',
  'extensions',
  'fit_image',
  'images',
  'initialize',
  'losses',
  'measure',
  'methods',
  'metrics',
  'optimizers',
  'quantize',
  'rasterize',
  'rate_control',
  'render',
  'stages',
]


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    value = importlib.import_module(f'cgvq_jax.{_MODULES[name]}')
  elif name in _HOMES:
    value = getattr(importlib.import_module(f'cgvq_jax.{_HOMES[name]}'), name)
  else:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted(__all__)
