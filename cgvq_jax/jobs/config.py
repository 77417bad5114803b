"""Turns the values of a config, such as configs/kodak.py, into keyword arguments of the jobs.

Every value is checked here, so that a wrong one is refused by its name before any work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cgvq_jax import rate_control
from cgvq_jax.bitstream.base import MAX_GAUSSIANS
from cgvq_jax.bitstream.codebooks import MAX_CLUSTERS
from cgvq_jax.bitstream.ordering import ORDERS
from cgvq_jax.evaluate import baselines, report
from cgvq_jax.fit.api import REGISTRIES
from cgvq_jax.fit.settings import PRESETS, FitSettings
from cgvq_jax.io import datasets, images
from cgvq_jax.jobs import fit_study, rate_distortion
from cgvq_jax.jobs.base import Source, name_in_results
from cgvq_jax.methods.registry import METHODS

_SAMPLE = 'sample'  # the name of the photograph that needs no download
_MAX_SEED = 2**32 - 1


class ConfigError(ValueError):
  """A value of the config cannot be used: its name, what was wanted and what was got."""


def extensions(config: Any) -> list[str]:
  """The modules to load before any other value is read, since they may register its names.

  Raises:
    ConfigError: one of them is not a name, or config.extensions is missing.
  """
  modules = _list(_value(config, 'extensions'))
  for module in modules:
    if not isinstance(module, str):
      raise ConfigError(f'config.extensions: wanted modules or .py files, got {module!r}')
  return modules


def rate_distortion_arguments(config: Any) -> dict[str, Any]:
  """The arguments of `rate_distortion.run`, except the working folder.

  Raises:
    ConfigError: a value is not what its name wants, or a name is missing.
    images.ImageError: the images are not there.
  """
  clusters = _integers(config, 'num_clusters', 0, MAX_CLUSTERS)
  return {
    'sources': _sources(config),
    'points': rate_distortion.grid(
      _keys(config, 'method', METHODS),
      _integers(config, 'num_gaussians', 1, MAX_GAUSSIANS),
      [number or None for number in clusters],
      _qualities(config),
      _key(config, 'order', ORDERS),
    ),
    'settings': _encode_settings(config),
    'baseline_codecs': _baselines(config),
    'comparison': report.Comparison(
      _value(config, 'reference_method') or None, tuple(_list(_value(config, 'tuned_on')))
    ),
    'checkpoint_seconds': _seconds(config, 'checkpoint_seconds'),
  }


def fit_study_arguments(config: Any) -> dict[str, Any]:
  """The arguments of `fit_study.run`, except the working folder.

  Each entry of config.fits, of which config.names are studied, overrides values of config.fit.

  Raises:
    ConfigError, images.ImageError: as `rate_distortion_arguments`.
  """
  names = _keys(config, 'names', _value(config, 'fits'))
  return {
    'sources': _sources(config),
    'fits': {name: _named_fit(config, name) for name in names},
    'tuned_on': _list(_value(config, 'tuned_on')),
  }


def _encode_settings(config: Any) -> FitSettings:
  """The preset's settings with the values that the config gives."""
  preset = PRESETS[_key(config, 'preset', PRESETS)]
  return preset._replace(
    steps=_integer(config, 'fit.steps', 0) or preset.steps,
    finetune_steps=_integer(config, 'finetune.steps', 0) or preset.finetune_steps,
    seed=_integer(config, 'seed', 0, _MAX_SEED),
    **_functions(config, 'fit.{}'.format),
  )


def _named_fit(config: Any, name: str) -> fit_study.Fit:
  if not re.fullmatch(r'[\w.-]+', name):  # it names a folder
    raise ConfigError(f'config.fits: wanted names of letters, digits, ._-, got {name!r}')
  overrides = _value(config, 'fits')[name]
  known = {'num_gaussians', 'steps', 'seed', *REGISTRIES}
  if unknown := sorted(set(overrides) - known):
    wanted = ', '.join(sorted(known))
    raise ConfigError(f'config.fits.{name}: wanted some of {wanted}, got {unknown[0]!r}')

  def path(field: str) -> str:
    return f'fits.{name}.{field}' if field in overrides else f'fit.{field}'

  settings = FitSettings(
    steps=_integer(config, path('steps'), 1),
    seed=_integer(config, path('seed'), 0, _MAX_SEED),
    **_functions(config, path),
  )
  count = _integer(config, path('num_gaussians'), 1, MAX_GAUSSIANS)
  return fit_study.Fit(count, settings)


def _functions(config: Any, path: Callable[[str], str]) -> dict[str, Any]:
  """The fields of FitSettings that name functions; `path(field)` is where the config has one."""
  return {field: _key(config, path(field), registry) for field, registry in REGISTRIES.items()}


def _sources(config: Any) -> list[Source]:
  names = _list(_value(config, 'data.images'))
  sample = [Source(_SAMPLE, _load_sample)] if _SAMPLE in names else []
  names = [name for name in names if name != _SAMPLE]
  if sample and not names:
    return sample
  folder = datasets.find_dataset(_value(config, 'data.root') or None)
  paths = datasets.select(folder, names)
  return [*sample, *map(_source, paths)]


def _source(path: Path) -> Source:
  name = name_in_results(path.stem)
  return Source(name, partial(images.load if name == path.stem else _load_renamed, path))


def _load_renamed(path: Path) -> images.LoadedImage:
  pixels, notes = images.load(path)
  return images.LoadedImage(pixels, (f'the name in the results of {path.name}', *notes))


def _load_sample() -> images.LoadedImage:
  return images.LoadedImage(datasets.sample_photograph(), ())


# --- values by name ---


def _value(config: Any, name: str) -> Any:
  """The value of a name such as 'fit.steps'."""
  value = config
  for part in name.split('.'):
    if part not in value:
      raise ConfigError(f'config.{name}: wanted a value, got none')
    value = value[part]
  return value


def _list(value: Any) -> list[Any]:
  """One value, a tuple of values, or a string with commas, as a list without repeats."""
  values = value if isinstance(value, tuple | list) else [value]
  parts = [part for v in values for part in (v.split(',') if isinstance(v, str) else [v])]
  return list(dict.fromkeys(part for part in parts if part != ''))


def _checked_integer(name: str, value: Any, low: int, high: int | None) -> int:
  if type(value) is int and low <= value and (high is None or value <= high):
    return value
  wanted = f'{low} or more' if high is None else f'{low} to {high}'
  raise ConfigError(f'config.{name}: wanted a whole number, {wanted}, got {value!r}')


def _integer(config: Any, name: str, low: int, high: int | None = None) -> int:
  return _checked_integer(name, _value(config, name), low, high)


def _integers(config: Any, name: str, low: int, high: int) -> list[int]:
  """One integer or several; None stands for the lowest."""
  value = _value(config, name)
  values = _list(low if value is None else value)
  if not values:
    raise ConfigError(f'config.{name}: wanted one whole number or more, got none')
  return [_checked_integer(name, each, low, high) for each in values]


def _qualities(config: Any) -> list[float]:
  low, high = rate_control.MIN_QUALITY, rate_control.MAX_QUALITY
  qualities = _list(_value(config, 'quality'))
  for quality in qualities:
    if not isinstance(quality, int | float) or not low <= quality <= high:
      raise ConfigError(f'config.quality: wanted numbers of {low:g} to {high:g}, got {quality!r}')
  return qualities


def _baselines(config: Any) -> list[str]:
  try:
    return [baselines.canonical(str(name)) for name in _list(_value(config, 'baselines'))]
  except ValueError as error:
    raise ConfigError(f'config.baselines: {str(error).removeprefix("codec: ")}') from error


def _seconds(config: Any, name: str) -> float:
  value = _value(config, name)
  if not isinstance(value, int | float) or not value >= 0:
    raise ConfigError(f'config.{name}: wanted seconds, 0 or more, got {value!r}')
  return float(value)


def _one_of(name: str, value: Any, known: Mapping[str, Any]) -> str:
  if value not in known:
    raise ConfigError(f'config.{name}: wanted one of {", ".join(known)}, got {value!r}')
  return value


def _key(config: Any, name: str, known: Mapping[str, Any]) -> str:
  return _one_of(name, _value(config, name), known)


def _keys(config: Any, name: str, known: Mapping[str, Any]) -> list[str]:
  keys = [_one_of(name, value, known) for value in _list(_value(config, name))]
  if not keys:
    raise ConfigError(f'config.{name}: wanted some of {", ".join(known)}, got none')
  return keys
