"""Encodes a set of images by several methods, decodes the files, measures and reports.

Example, two images at two numbers of Gaussians:

  python -m cgvq_jax.main --config=configs/kodak.py --workdir=runs/kodak \\
    --config.data.images=kodim15,kodim05 --config.num_gaussians='(5000,10000)'

The images are those of the folder config.data.root. Where it is empty they are Kodak's 24
photographs, in the folder that the environment variable CGVQ_KODAK names or else in data/kodak;
the name 'sample' is a photograph that needs no download. Each value of the config can be set as
--config.name=value; lists are (5000,10000) or gi,cgvq.

The working folder gets <method>/<N>/<image>.cgvq and .png, results.json, report.md and a plot. The
same command goes on where it was stopped or killed, and does nothing where all is done.

A config with recipes, such as configs/ablation.py, compares ways to fit instead: nothing is
quantized, and the working folder gets fit_study.md and fit_study.png.

Exit codes: 0 all fine, 1 some image failed, 2 a bad command or config, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from cgvq_jax import devices, rate_control
from cgvq_jax.bitstream import base, codebooks, ordering
from cgvq_jax.codec import PRESETS
from cgvq_jax.evaluate import baselines, report
from cgvq_jax.fit.api import KNOWN, Recipe
from cgvq_jax.io import datasets, images
from cgvq_jax.jobs import fit_study, rate_distortion
from cgvq_jax.methods.registry import ABLATIONS, METHODS

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The config file, such as configs/kodak.py.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder for results; made if it is missing.')
_SAMPLE = 'sample'


class ConfigError(ValueError):
  """A value of the config: its name, what was wanted and what was got."""


def main(argv: Sequence[str]) -> int:
  """Runs the job of the flags; returns the exit code."""
  signal.signal(signal.SIGTERM, _interrupt)
  devices.use_all()
  try:
    if len(argv) > 1:
      raise ConfigError(f'wanted flags only, got {argv[1]!r}')
    if not _WORKDIR.value:
      raise ConfigError('--workdir: wanted a folder for the results, got none')
    if _CONFIG.value is None:
      raise ConfigError('--config: wanted a file such as configs/kodak.py, got none')
    studied = 'recipes' in _CONFIG.value
    arguments = study_job(_CONFIG.value) if studied else job(_CONFIG.value)
    Path(_WORKDIR.value).mkdir(parents=True, exist_ok=True)
  except (ConfigError, images.ImageError, OSError) as error:
    print(' '.join(str(error).split()), file=sys.stderr)  # a missing config file takes four lines
    return 2
  try:
    run = fit_study.run if studied else rate_distortion.run
    outcome = run(workdir=_WORKDIR.value, **arguments)
  except KeyboardInterrupt:
    print('stopped; the same command goes on from here', file=sys.stderr)
    return 130
  except OSError as error:
    print(f'{_WORKDIR.value}: {error}', file=sys.stderr)
    return 1
  if not outcome.encoded and not outcome.failures:
    what = 'fits' if studied else 'files'
    print(f'nothing to do: {outcome.unchanged} {what} are there and unchanged')
    return 0
  page = Path(_WORKDIR.value) / ('fit_study.md' if studied else 'report.md')
  print(
    f'{outcome.encoded} {"fitted" if studied else "files encoded"}, {outcome.unchanged} unchanged, '
    f'{len(outcome.failures)} failures; see {page}'
  )
  for failure in outcome.failures:
    print(f'failed: {failure}', file=sys.stderr)
  return 1 if outcome.failures else 0


def job(config: Any) -> dict[str, Any]:
  """The arguments of `rate_distortion.run` that a config stands for.

  Raises:
    ConfigError: a value is not what its name wants, or a name is missing.
    images.ImageError: the images are not there.
  """
  preset = PRESETS[_name(config, 'preset', PRESETS)]
  clusters = _numbers(config, 'num_clusters', 0, codebooks.MAX_CLUSTERS)
  return {
    'points': rate_distortion.grid(
      _names(config, 'method', METHODS | ABLATIONS),
      _numbers(config, 'num_gaussians', 1, base.MAX_GAUSSIANS),
      [number or None for number in clusters],
      _qualities(config, 'quality'),
    ),
    'settings': rate_distortion.Settings(
      fit=_recipe(config, _number(config, 'fit.steps', 0) or preset.fit_steps, _of_job),
      finetune_steps=_number(config, 'finetune.steps', 0) or preset.finetune_steps,
      order=_name(config, 'order', ordering.ORDERS),
    ),
    'classic_codecs': [
      _known('classic', name, baselines.CODECS) for name in _listed(_value(config, 'classic'))
    ],
    'judged': report.Judged(
      _value(config, 'baseline') or None, tuple(_listed(_value(config, 'tuned_on')))
    ),
    'checkpoint_seconds': _seconds(config, 'checkpoint_seconds'),
    'sources': _sources(config),
  }


def study_job(config: Any) -> dict[str, Any]:
  """The arguments of `fit_study.run`: a recipe has what config.fit says and it does not.

  Raises:
    ConfigError, images.ImageError: as `job`.
  """
  names = _names(config, 'names', _value(config, 'recipes'))
  return {
    'fits': {name: _fit(config, name) for name in names},
    'tuned_on': _listed(_value(config, 'tuned_on')),
    'sources': _sources(config),
  }


def _fit(config: Any, name: str) -> fit_study.Fit:
  own = config.recipes[name]
  if not re.fullmatch(r'[\w.-]+', name):
    raise ConfigError(f'config.recipes: wanted names of letters, digits, ._-, got {name!r}')
  known = {'num_gaussians', *Recipe._fields}
  if unknown := sorted(set(own) - known):
    wanted = ', '.join(sorted(known))
    raise ConfigError(f'config.recipes.{name}: wanted some of {wanted}, got {unknown[0]!r}')

  def at(field: str) -> str:
    return f'recipes.{name}.{field}' if field in own else f'fit.{field}'

  count = _number(config, at('num_gaussians'), 1, base.MAX_GAUSSIANS)
  return fit_study.Fit(count, _recipe(config, _number(config, at('steps'), 1), at))


def _recipe(config: Any, steps: int, at: Callable[[str], str]) -> Recipe:
  """Whose field `name` stands under `at(name)`."""
  functions = {name: _name(config, at(name), known) for name, known in KNOWN.items()}
  return Recipe(steps, _number(config, at('seed'), 0, 2**32 - 1), **functions)


def _of_job(field: str) -> str:
  return field if field == 'seed' else f'fit.{field}'  # clusters and codebooks go by it too


def _sources(config: Any) -> list[rate_distortion.Source]:
  names = _listed(_value(config, 'data.images'))
  sample = [rate_distortion.Source(_SAMPLE, _load_sample)] if _SAMPLE in names else []
  names = [name for name in names if name != _SAMPLE]
  if sample and not names:
    return sample
  folder = datasets.find_dataset(_value(config, 'data.root') or None)
  paths = datasets.select(folder, names)
  return [
    *sample,
    *(rate_distortion.Source(path.stem, partial(images.load, path)) for path in paths),
  ]


def _load_sample() -> images.LoadedImage:
  return images.LoadedImage(datasets.sample_photograph(), ())


def _value(config: Any, name: str) -> Any:
  """The value under a name with dots."""
  value = config
  for part in name.split('.'):
    if part not in value:
      raise ConfigError(f'config.{name}: wanted a value, got none')
    value = value[part]
  return value


def _listed(value: Any) -> list[Any]:
  """One value, a tuple of them, or several in a string with commas, as a list without repeats."""
  values = value if isinstance(value, tuple | list) else [value]
  parts = [part for v in values for part in (v.split(',') if isinstance(v, str) else [v])]
  return list(dict.fromkeys(part for part in parts if part != ''))


def _checked(name: str, value: Any, low: int, high: int | None) -> int:
  if type(value) is int and low <= value and (high is None or value <= high):
    return value
  wanted = f'{low} or more' if high is None else f'{low} to {high}'
  raise ConfigError(f'config.{name}: wanted a whole number, {wanted}, got {value!r}')


def _number(config: Any, name: str, low: int, high: int | None = None) -> int:
  return _checked(name, _value(config, name), low, high)


def _numbers(config: Any, name: str, low: int, high: int) -> list[int]:
  """Several numbers; None, as in 'not set', is the lowest."""
  value = _value(config, name)
  numbers = [_checked(name, n, low, high) for n in _listed(low if value is None else value)]
  if not numbers:
    raise ConfigError(f'config.{name}: wanted a number or several, got none')
  return numbers


def _qualities(config: Any, name: str) -> list[float]:
  qualities = _listed(_value(config, name))
  for quality in qualities:
    number = isinstance(quality, int | float) and rate_control.LEAST <= quality <= rate_control.MOST
    if not number:
      raise ConfigError(f'config.{name}: wanted numbers of 1 to 100, got {quality!r}')
  return qualities


def _seconds(config: Any, name: str) -> float:
  value = _value(config, name)
  if not isinstance(value, int | float) or not value >= 0:
    raise ConfigError(f'config.{name}: wanted seconds, 0 or more, got {value!r}')
  return float(value)


def _known(name: str, value: Any, known: Mapping[str, Any]) -> str:
  if value not in known:
    raise ConfigError(f'config.{name}: wanted one of {", ".join(known)}, got {value!r}')
  return value


def _name(config: Any, name: str, known: Mapping[str, Any]) -> str:
  return _known(name, _value(config, name), known)


def _names(config: Any, name: str, known: Mapping[str, Any]) -> list[str]:
  chosen = [_known(name, each, known) for each in _listed(_value(config, name))]
  if not chosen:
    raise ConfigError(f'config.{name}: wanted some of {", ".join(known)}, got none')
  return chosen


def _interrupt(signum: int, frame: Any) -> None:
  del signum, frame
  raise KeyboardInterrupt


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """As absl does, but a bad flag or a bad config file is one line and exit code 2."""
  try:
    remaining = flags.FLAGS(argv)
  except SystemExit:  # --help, which absl ends with 1
    sys.exit(0)
  except Exception as error:  # absl's, ml_collections', and what a config file itself raises
    print(f'{_one_line(error)} (see --help)', file=sys.stderr)
    sys.exit(2)
  if flags.FLAGS['verbosity'].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING  # orbax tells of every step of a save
  return remaining


def _one_line(error: BaseException) -> str:
  """An error of reading flags; ml_collections wraps its own around an unknown name."""
  text = str(error)
  if isinstance(error, AttributeError | KeyError) and error.args:
    inner = error.args[0]
    text = f'unknown name in the config: {inner.args[0] if isinstance(inner, KeyError) else inner}'
  return ' '.join(text.split())


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
