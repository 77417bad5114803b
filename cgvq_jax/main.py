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

Exit codes: 0 all fine, 1 some image failed, 2 a bad command or config, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from cgvq_jax import dataset, images
from cgvq_jax.bitstream import container
from cgvq_jax.methods import METHODS

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
  try:
    if len(argv) > 1:
      raise ConfigError(f'wanted flags only, got {argv[1]!r}')
    if not _WORKDIR.value:
      raise ConfigError('--workdir: wanted a folder for the results, got none')
    arguments = job(_CONFIG.value)
    Path(_WORKDIR.value).mkdir(parents=True, exist_ok=True)
  except (ConfigError, images.ImageError, OSError) as error:
    return _refuse(error)
  try:
    outcome = dataset.run(workdir=_WORKDIR.value, **arguments)
  except KeyboardInterrupt:
    print('stopped; the same command goes on from here', file=sys.stderr)
    return 130
  except OSError as error:
    print(f'{_WORKDIR.value}: {error}', file=sys.stderr)
    return 1
  if not outcome.encoded and not outcome.failures:
    print(f'nothing to do: {outcome.unchanged} files are there and unchanged')
    return 0
  print(
    f'{outcome.encoded} files encoded, {outcome.unchanged} unchanged, '
    f'{len(outcome.failures)} failures; see {Path(_WORKDIR.value) / "report.md"}'
  )
  for failure in outcome.failures:
    print(f'failed: {failure}', file=sys.stderr)
  return 1 if outcome.failures else 0


def job(config: ConfigDict) -> dict[str, Any]:
  """The arguments of `dataset.run` that a config stands for.

  Raises:
    ConfigError: a value is not what its name wants, or a name is missing.
    images.ImageError: the images are not there.
  """
  if config is None:
    raise ConfigError('--config: wanted a file such as configs/kodak.py, got none')
  try:
    return {
      'sources': _sources(config.data),
      'points': dataset.grid(
        _names('method', config.method, METHODS),
        _numbers('num_gaussians', config.num_gaussians, 1, container.MAX_GAUSSIANS),
        [
          number or None
          for number in _numbers(
            'num_clusters', config.num_clusters or 0, 0, container.MAX_CLUSTERS
          )
        ],
      ),
      'settings': dataset.Settings(
        fit_steps=_number('fit.steps', config.fit.steps, 1),
        finetune_steps=_number('finetune.steps', config.finetune.steps, 1),
        seed=_number('seed', config.seed, 0, 2**32 - 1),
        loss=_name('fit.loss', config.fit.loss, dataset.LOSSES),
        initializer=_name('fit.initializer', config.fit.initializer, dataset.INITIALIZERS),
      ),
      'with_classic': bool(config.classic),
      'checkpoint_seconds': config.checkpoint_seconds,
    }
  except (AttributeError, KeyError) as error:
    raise ConfigError(f'config: {_one_line(error)}') from error


def _sources(data: ConfigDict) -> list[dataset.Source]:
  names = _listed(data.images)
  sample = [dataset.Source(_SAMPLE, _load_sample)] if _SAMPLE in names else []
  names = [name for name in names if name != _SAMPLE]
  if sample and not names:
    return sample
  paths = images.select(images.find_dataset(data.root or None), names)
  return [*sample, *(dataset.Source(path.stem, partial(images.load, path)) for path in paths)]


def _load_sample() -> images.LoadedImage:
  return images.LoadedImage(images.sample_photograph(), ())


def _listed(value: Any) -> list[Any]:
  """One value, a tuple of them, or several in a string with commas, as a list without repeats."""
  values = value if isinstance(value, (tuple, list)) else [value]
  parts = [p.strip() for v in values for p in (v.split(',') if isinstance(v, str) else [v])]
  return list(dict.fromkeys(part for part in parts if part != ''))


def _number(name: str, value: Any, low: int, high: int | None = None) -> int:
  if type(value) is int and low <= value and (high is None or value <= high):
    return value
  wanted = f'{low} or more' if high is None else f'{low} to {high}'
  raise ConfigError(f'config.{name}: wanted a whole number, {wanted}, got {value!r}')


def _numbers(name: str, value: Any, low: int, high: int) -> list[int]:
  numbers = [_number(name, number, low, high) for number in _listed(value)]
  if not numbers:
    raise ConfigError(f'config.{name}: wanted a number or several, got none')
  return numbers


def _name(name: str, value: Any, known: dict[str, Callable]) -> str:
  if value not in known:
    raise ConfigError(f'config.{name}: wanted one of {", ".join(known)}, got {value!r}')
  return value


def _names(name: str, value: Any, known: dict[str, Callable]) -> list[str]:
  chosen = [_name(name, each, known) for each in _listed(value)]
  if not chosen:
    raise ConfigError(f'config.{name}: wanted some of {", ".join(known)}, got none')
  return chosen


def _one_line(error: Exception) -> str:
  """ml_collections' words for an unknown name, which hold line breaks as characters."""
  text = str(error.args[0]) if error.args else str(error)
  return ' '.join(text.strip('"\'').replace('\\n', '\n').split())


def _interrupt(signum: int, frame: Any) -> None:
  del signum, frame
  raise KeyboardInterrupt


def _refuse(error: Exception) -> int:
  print(_one_line(error), file=sys.stderr)
  return 2


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """As absl does, but a bad flag or a bad config file is one line and exit code 2."""
  try:
    remaining = flags.FLAGS(argv)
    _ = _CONFIG.value  # loads the file
    return remaining
  except SystemExit:  # --help, which absl ends with 1
    sys.exit(0)
  except Exception as error:  # absl's, ml_collections', and what a config file itself raises
    print(f'{_one_line(error)} (see --help)', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
